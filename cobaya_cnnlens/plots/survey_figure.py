"""A survey drawn: the tiles of its plan by their depth, and its own simulations beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from ..maps.headers import FRAMES
from ..simulate.patches import PatchGeometry, point_patch

if TYPE_CHECKING:
    from ..maps.comparison import Comparison
    from ..maps.plan import Plan

EDGE = 9  # points along a side


def plan_figure(plan: Plan) -> Figure:
    """In the sinusoidal projection about the footprint's middle, which keeps areas: north up,
    longitude to the left.

    Parameters
    ----------
    plan : the survey's plan

    Returns
    -------
    figure : one panel
    """
    import healpy  # which imports pyplot

    theta, phi = healpy.pix2ang(plan.footprint.nside, plan.footprint.pixels)
    middle = float(np.angle(np.exp(1j * phi).sum()))

    def plane(theta: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ahead = (phi - middle + np.pi) % (2.0 * np.pi) - np.pi
        return np.degrees(ahead) * np.sin(theta), 90.0 - np.degrees(theta)

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot(*plane(theta, phi), ",", color="0.7", label="footprint", rasterized=True)
    edges = [np.stack(plane(*_edge(tile.centre, plan.geometry)), 1) for tile in plan.tiles]
    tiles = PolyCollection(edges, edgecolors="k", linewidths=0.5, alpha=0.7, cmap="viridis_r")
    tiles.set_array([tile.depth for tile in plan.tiles])
    axis.add_collection(tiles)
    for tile in plan.tiles:
        hidden = tile.holes.ravel() > 0
        if hidden.any():
            at = tile.pointing
            x, y = plane(at.theta[hidden], at.phi[hidden])
            axis.plot(x, y, ",", color="k", rasterized=True)
    figure.colorbar(tiles, label="noise of Q and of U, µK-arcmin", shrink=0.7)
    axis.set_aspect("equal")
    # Seen from the Earth, east is to the left of north.
    axis.invert_xaxis()
    holes = sum(int(tile.holes.max()) for tile in plan.tiles)
    axis.set(
        xlabel=f"(longitude − {round(np.degrees(middle), 1) % 360:.1f}°) cos(latitude), in degrees",
        ylabel=f"latitude in degrees, {FRAMES[plan.frame]}",
    )
    axis.set_title(
        f"{plan.name}: {len(plan.tiles)} tiles, {plan.area_deg2:.0f} of "
        f"{plan.footprint.area_deg2:.0f} square degrees, {holes} holes",
        size=10,
    )
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """The experiment's own simulations over the internal ones, bin by bin.

    Parameters
    ----------
    comparison : of both

    Returns
    -------
    figure : a panel each of R, N and the power of E
    """
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    centres = 0.5 * (comparison.edges[1:] + comparison.edges[:-1])
    named = {
        "response R": comparison.response,
        "noise bias N": comparison.noise,
        "E power": comparison.e_power,
    }
    for axis, (name, compared) in zip(axes, named.items(), strict=True):
        ratio, error = compared.ratio
        axis.errorbar(centres, ratio, error, fmt="o", ms=4)
        axis.axhline(1.0, color="0.6", lw=1)
        chi2, pte = compared.chi2
        axis.set_title(f"{name}: χ² {chi2:.1f} of {len(ratio)}, PTE {pte:.2g}", size=10)
        axis.set_xlabel("multipole")
    axes[0].set_ylabel("experiment's over internal simulations")
    return figure


def _edge(centre: np.ndarray, geometry: PatchGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Colatitude and longitude of points around a tile."""
    # So large that the outermost pixels' centres lie on the tile's edge.
    at = point_patch(centre, PatchGeometry(geometry.size_deg * EDGE / (EDGE - 1), EDGE, pad=0))
    grid = np.arange(EDGE**2).reshape(EDGE, EDGE)
    around = np.concatenate([grid[0], grid[1:, -1], grid[-1, -2::-1], grid[-2:0:-1, 0]])
    return at.theta[around], at.phi[around]
