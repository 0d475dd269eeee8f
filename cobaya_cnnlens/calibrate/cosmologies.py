"""Test skies made again at other cosmologies, with the phases and the noise of the fiducial ones.

Such a sky differs from the test sky by its cosmology alone, so the scatter of the patches cancels
in the difference. The change of its own ⟨κκ*⟩ is subtracted too, which leaves the change of the
noise bias. The second order of the debias from the data is fitted to some of these
(:mod:`.second_order`). The others, on another sky, test the model
(:mod:`cobaya_cnnlens.validate.points`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..pipeline import skies
from ..pipeline.run import Run
from ..simulate.tiling import evenly
from . import bandpowers, curvature, power
from .bandpowers import measurement_recipe
from .derivatives import PerturbedSky
from .second_order import FitPoints

KIND = "points"
SET = "test"
ALGORITHM = 2


@dataclass(frozen=True)
class Point:
    """A cosmology at which a test sky is made again.

    Attributes
    ----------
    change : values of the parameters that differ from the fiducial ones
    index : number of the test sky
    patches : how many of its patches, spread evenly; None for all
    """

    change: dict[str, float]
    index: int
    patches: int | None


def checked(run: Run, group: str | None = None) -> list[Point]:
    """Points at which the model is tested, of one group or of all.

    Parameters
    ----------
    run : the configuration and what follows from it
    group : key of ``points.at``; all groups by default

    Returns
    -------
    the points, sky by sky
    """
    settings = run.config.points
    groups = settings.at if group is None else {group: settings.at[group]}
    return [
        Point(change, index, settings.patches)
        for index in settings.skies_of
        for changes in groups.values()
        for change in changes
    ]


def fitted(run: Run) -> list[Point]:
    """Points to which the second order of the debias from the data is fitted.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the points; empty without ``points.fit``
    """
    fit = run.config.points.fit
    return [] if fit is None else [Point(change, fit.sky, fit.patches) for change in fit.at]


def path(run: Run, point: Point) -> Path:
    """Where the bandpowers of a test sky made again at another cosmology lie.

    Parameters
    ----------
    run : the configuration and what follows from it
    point : cosmology and sky

    Returns
    -------
    the file, under ``products``
    """
    name = "_".join(f"{key}={value:g}" for key, value in sorted(point.change.items()))
    return run.config.products / "points" / f"sky_{point.index:04d}" / f"{name}.h5"


def fit_path(run: Run) -> Path:
    """What the workflow puts down when all points of the fit are there.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "points" / "fit.done"


def recipe(run: Run, point: Point) -> dict[str, Any]:
    """What determines the bandpowers of a test sky made again at another cosmology.

    Parameters
    ----------
    run : the configuration and what follows from it
    point : cosmology and sky

    Returns
    -------
    mapping for JSON
    """
    cosmology = run.config.cosmology.vary(**point.change)
    return {
        "sky": {**skies.recipe(run, SET, point.index), **skies.spectra_recipe(run, cosmology)},
        **measurement_recipe(run),
        "point_algorithm": ALGORITHM,
        **({"patches": point.patches} if point.patches is not None else {}),
    }


def measure(run: Run, points: Iterable[Point], nthreads: int = 0) -> None:
    """Make test skies again at every point that has not been measured, and keep their
    bandpowers and the power of the patches themselves.

    Parameters
    ----------
    run : the configuration and what follows from it
    points : what to measure
    nthreads : threads of the transforms; 0 for all cores
    """
    todo = [p for p in points if not products.exists(path(run, p), KIND, recipe(run, p))]
    for point in tqdm(todo, desc=KIND, unit="sky", disable=not todo):
        rows = evenly(run.n_patches, point.patches)
        cosmology = run.config.cosmology.vary(**point.change)
        sky = PerturbedSky(run, point.index, nthreads, cosmology, SET, rows=rows)
        arrays = sky.unperturbed() | {"power": power.power_of(run)(*sky.observed())}
        products.write_product(path(run, point), KIND, recipe(run, point), arrays)


@dataclass(frozen=True)
class Patches:
    """What was measured of the patches of some skies.

    Attributes
    ----------
    auto, truth : ⟨κ̂κ̂*⟩ and ⟨κκ*⟩, (n_patches, n_bins) each
    power : of E and B in µK², (n_patches, n_power); None without a debias from the data
    """

    auto: np.ndarray
    truth: np.ndarray
    power: np.ndarray | None


def read(run: Run, points: Iterable[Point]) -> Patches:
    """The patches of one change of the cosmology, on all of its skies.

    Parameters
    ----------
    run : the configuration and what follows from it
    points : of one cosmology

    Returns
    -------
    the patches

    Raises
    ------
    products.ProductError
        if a point has not been measured, or was with another network or configuration
    """
    names = ["auto", "truth", *(["power"] if run.config.data_debias else [])]
    parts = []
    for point in points:
        made_of = recipe(run, point)
        with products.open_product(path(run, point), KIND, made_of, run.config.shipped) as product:
            parts.append([product.array(name) for name in names])
    arrays = dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    return Patches(arrays["auto"], arrays["truth"], arrays.get("power"))


def at_fiducial(run: Run, points: Iterable[Point]) -> Patches:
    """The patches of some points at the fiducial cosmology, as the test set holds them.

    Parameters
    ----------
    run : the configuration and what follows from it
    points : of one cosmology

    Returns
    -------
    the patches
    """
    parts = []
    for point in points:
        measured = bandpowers.read(run, SET, [point.index], point.patches)
        ee_bb = None
        if run.config.data_debias:
            ee_bb = power.read(run, SET, [point.index], point.patches)["power"]
        parts.append((measured.auto, measured.truth, ee_bb))
    auto, truth, powers = zip(*parts, strict=True)
    joined = None if powers[0] is None else np.concatenate(powers)
    return Patches(np.concatenate(auto), np.concatenate(truth), joined)


def change_of_noise(moved: Patches, fiducial: Patches, response: np.ndarray) -> np.ndarray:
    """Change of the noise bias, that is of d − signal.

    Parameters
    ----------
    moved, fiducial : the same patches at both cosmologies
    response : R_b, (n_bins,)

    Returns
    -------
    by patch, (n_patches, n_bins)
    """
    return (moved.auto - fiducial.auto) / response**2 - (moved.truth - fiducial.truth)


def fit_points(run: Run, response: np.ndarray) -> FitPoints | None:
    """The changes at the cosmologies of ``points.fit``; None if the configuration has none.

    Parameters
    ----------
    run : the configuration and what follows from it
    response : R_b, (n_bins,)

    Returns
    -------
    the changes, and the number of directions that get a second order

    Raises
    ------
    products.ProductError
        if a point has not been measured
    """
    if (fit := run.config.points.fit) is None:
        return None
    points = fitted(run)
    fiducial = at_fiducial(run, points[:1])
    noise, powers, bands = [], [], []
    for point in points:
        moved = read(run, [point])
        # The configuration has points of a fit only with a debias from the data.
        assert moved.power is not None
        assert fiducial.power is not None
        noise.append(change_of_noise(moved, fiducial, response))
        powers.append(moved.power - fiducial.power)
        bands.append(curvature.changes_at(run, run.config.cosmology.vary(**point.change)))
    return FitPoints(np.array(noise), np.array(powers), np.array(bands), fit.directions)
