"""Test skies made again at other cosmologies, with the phases and the noise of the fiducial ones.

Such a sky differs from the test sky by its cosmology alone, so the scatter of the patches cancels
in the difference. The change of its own ⟨κκ*⟩ is subtracted too, which leaves the change of the
noise bias. The response surface of the debias (:mod:`cobaya_cnnlens.calibrate.second_order`) is
fitted to the cosmologies of ``points.fit``, each with a portion of a sky. Those of ``points.at``,
on another sky, test the model (:mod:`cobaya_cnnlens.validate.points`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..calibrate.second_order import FitPoints
from ..simulate.tiling import evenly, portion
from .perturbations import bands_of, perturbed_sky
from .power import Power, power_of
from .reconstructions import Bandpowers, measurement_recipe
from .run import Run
from .simulation import Simulation
from .skies import Skies
from .stage import Stage

SET = "test"


@dataclass(frozen=True)
class Point:
    """A cosmology at which patches of a test sky are made again.

    Attributes
    ----------
    change : values of the parameters that differ from the fiducial ones
    index : number of the test sky
    patches : how many of its patches; None for all
    part : number of the portion of the sky's patches; None for patches spread evenly
    """

    change: dict[str, float]
    index: int
    patches: int | None
    part: int | None = None

    def rows(self, n_patches: int) -> np.ndarray:
        """Which patches of the sky are made again.

        Parameters
        ----------
        n_patches : of the sky

        Returns
        -------
        their numbers
        """
        if self.part is None:
            return evenly(n_patches, self.patches)
        return portion(n_patches, self.patches or n_patches, self.part)


def points_of(run: Simulation, group: str) -> list[Point]:
    """Points of a group of cosmologies.

    Parameters
    ----------
    run : the configuration and what follows from it
    group : key of ``points.at``

    Returns
    -------
    the points
    """
    settings = run.config.points
    of_group = settings.at[group]
    return [Point(change, of_group.sky, settings.patches) for change in of_group.cosmologies]


def checked(run: Simulation) -> list[Point]:
    """Points at which the model is tested.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the points of all groups
    """
    return [point for group in run.config.points.at for point in points_of(run, group)]


def fitted(run: Simulation) -> list[Point]:
    """Points to which the response surface is fitted.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the points; empty without ``points.fit``
    """
    fit = run.config.points.fit
    if fit is None:
        return []
    n_skies = len(fit.skies)
    return [
        Point(change, fit.skies[i % n_skies], fit.patches, i // n_skies)
        for i, change in enumerate(fit.cosmologies)
    ]


@dataclass(frozen=True)
class Patches:
    """What was measured of the patches of a sky.

    Attributes
    ----------
    auto, truth : ⟨κ̂κ̂*⟩ and ⟨κκ*⟩, (n_patches, n_bins) each
    power : of E and B in µK², (n_patches, n_power); None without a debias from the data
    """

    auto: np.ndarray
    truth: np.ndarray
    power: np.ndarray | None

    def take(self, rows: np.ndarray) -> Patches:
        """Some of them.

        Parameters
        ----------
        rows : their numbers

        Returns
        -------
        these patches
        """
        power = None if self.power is None else self.power[rows]
        return Patches(self.auto[rows], self.truth[rows], power)


class Points(Stage[Run]):
    """Test skies made again at other cosmologies: their bandpowers, and E and B power.

    A product holds ``auto`` and ``truth``, (n_patches, n_bins) each, and ``power``.
    """

    kind = "points"
    algorithm = 2
    command = "points CONFIG"

    def keys(self, points: Iterable[Point]) -> list[tuple[Point]]:
        """A product for each point."""
        return [(point,) for point in points]

    def path(self, point: Point) -> Path:
        """Where a test sky's bandpowers at another cosmology lie."""
        name = "_".join(f"{key}={value:g}" for key, value in sorted(point.change.items()))
        return self.config.products / "points" / f"sky_{point.index:04d}" / f"{name}.h5"

    def fit_path(self) -> Path:
        """What the workflow puts down when all points of the fit are there.

        Returns
        -------
        the file, under ``products``
        """
        return self.config.products / "points" / "fit.done"

    def recipe(self, point: Point) -> dict[str, Any]:
        """What determines a test sky's bandpowers at another cosmology."""
        run, cosmology = self.run, self.config.cosmology.vary(**point.change)
        return {
            "sky": {**Skies(run).recipe(SET, point.index), **run.spectra_recipe(cosmology)},
            **measurement_recipe(run),
            "point_algorithm": self.algorithm,
            **({"patches": point.patches} if point.patches is not None else {}),
            **({"part": point.part} if point.part is not None else {}),
        }

    def make(self, point: Point) -> dict[str, np.ndarray]:
        """Make a test sky again at another cosmology."""
        run, cosmology = self.run, self.config.cosmology.vary(**point.change)
        rows, spectra = point.rows(run.n_patches), run.spectra(cosmology)
        sky = perturbed_sky(run, point.index, self.threads, spectra, SET, rows=rows)
        return sky.unperturbed() | {"power": power_of(run)(*sky.observed())}

    def read(self, point: Point) -> Patches:
        """Read the patches of a point.

        Parameters
        ----------
        point : cosmology and sky

        Returns
        -------
        the patches

        Raises
        ------
        products.ProductError
            if it has not been measured, or was with another network or configuration
        """
        names = ["auto", "truth", *(["power"] if self.config.data_debias else [])]
        arrays = self.arrays(point, names=names)
        return Patches(arrays["auto"], arrays["truth"], arrays.get("power"))

    def at_fiducial(self, point: Point) -> Patches:
        """Read the patches of a point at the fiducial cosmology, as the test set holds them.

        Parameters
        ----------
        point : whose sky and patches are read

        Returns
        -------
        the patches
        """
        return self._fiducial_sky(point.index).take(point.rows(self.run.n_patches))

    def _fiducial_sky(self, index: int) -> Patches:
        """All patches of a test sky at the fiducial cosmology."""
        measured, power = Bandpowers(self.run).read(SET, [index]), None
        if self.config.data_debias:
            power = Power(self.run).read(SET, [index])["power"]
        return Patches(measured.auto, measured.truth, power)

    def fit_points(self, response: np.ndarray) -> FitPoints | None:
        """Changes at the cosmologies of the fit; None if the configuration has none.

        Parameters
        ----------
        response : R_b, (n_bins,)

        Returns
        -------
        the changes, and the number of directions that get an amplitude

        Raises
        ------
        products.ProductError
            if a point has not been measured
        """
        if (fit := self.config.points.fit) is None:
            return None
        noise, powers, bands = [], [], []
        skies = {index: self._fiducial_sky(index) for index in set(fit.skies)}
        for point in fitted(self.run):
            moved = self.read(point)
            fiducial = skies[point.index].take(point.rows(self.run.n_patches))
            # The configuration has a fit only with a debias from the data.
            assert moved.power is not None
            assert fiducial.power is not None
            noise.append(change_of_noise(moved, fiducial, response))
            powers.append(moved.power - fiducial.power)
            spectra = self.run.spectra(self.config.cosmology.vary(**point.change))
            bands.append(bands_of(self.run, spectra))
        return FitPoints(np.array(noise), np.array(powers), np.array(bands), fit.directions)


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
