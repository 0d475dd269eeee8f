"""Test patches made again at the points of a design, for the response surface of the debias.

The design is one in the amplitudes of the principal changes of ln C^κκ and
ln C^EE (docs/noise-bias, eqs 10 and 11). :mod:`cobaya_cnnlens.calibrate.second_order` fits the
surface. The shipped emulator gives the changes over the prior: they only choose the directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..calibrate.second_order import DesignPoints, design, profiles
from ..errors import ConfigError
from ..simulate.tiling import evenly
from ..theory.camb import Cosmology, Spectra
from ..theory.emulator_files import read_emulator
from .cosmologies import SET
from .perturbations import bands_of, perturbed_sky
from .power import power_of
from .reconstructions import measurement_recipe
from .run import Run
from .sections.calibration_settings import Surface
from .skies import Skies
from .stage import Stage

# Emulator of the spectra over the prior.
EMULATOR = "lcdm"


class SurfacePoints(Stage[Run]):
    """Patches of one test sky with other spectra: their bandpowers, and E and B power.

    A product holds ``auto`` and ``truth``, (n_patches, n_bins) each, ``power``, and ``bands``: δ_j
    of the spectra, C^κκ before C^EE.
    """

    kind = "surface"
    command = "points CONFIG --surface"
    unit = "point"

    def keys(self, indices: Iterable[int] | None = None) -> list[tuple[int]]:
        """Points of the design; none without ``points.surface``.

        Parameters
        ----------
        indices : their numbers; all by default

        Returns
        -------
        number of each

        Raises
        ------
        ConfigError
            if the design has no such point
        """
        surface = self.config.points.surface
        size = 0 if surface is None else len(design(surface.directions))
        chosen = range(size) if indices is None else sorted(indices)
        if unknown := set(chosen) - set(range(size)):
            raise ConfigError(
                f"the response surface has points 0 to {size - 1}, not {min(unknown)}; "
                "correct --index"
            )
        return [(k,) for k in chosen]

    def path(self, point: int) -> Path:
        """Where the patches at a point of the design lie.

        Parameters
        ----------
        point : its number

        Returns
        -------
        the file, under ``products``
        """
        return self.config.products / self.kind / f"point_{point:02d}.h5"

    def recipe(self, point: int) -> dict[str, Any]:
        """What determines the patches at a point of the design.

        Parameters
        ----------
        point : its number

        Returns
        -------
        mapping for JSON
        """
        surface = self._settings
        cosmologies = self.config.points.at[surface.over].cosmologies
        return {
            "sky": Skies(self.run).recipe(SET, surface.sky),
            **measurement_recipe(self.run),
            "surface_algorithm": self.algorithm,
            "bands": self.config.derivatives.recipe(),
            "over": cosmologies,
            "amplitudes": design(surface.directions)[point].tolist(),
            **({"patches": surface.patches} if surface.patches is not None else {}),
        }

    def make(self, point: int) -> dict[str, np.ndarray]:
        """Make the test sky again with the spectra of a point.

        Parameters
        ----------
        point : its number

        Returns
        -------
        arrays of the product
        """
        run, surface = self.run, self._settings
        spectra = self._spectra(design(surface.directions)[point])
        rows = evenly(run.n_patches, surface.patches)
        sky = perturbed_sky(run, surface.sky, self.threads, spectra, SET, rows=rows)
        power = power_of(run)(*sky.observed())
        return sky.unperturbed() | {"power": power, "bands": bands_of(run, spectra)}

    def read(self, response: np.ndarray) -> DesignPoints | None:
        """Changes at the points of the design; None without ``points.surface``.

        Parameters
        ----------
        response : R_b, (n_bins,)

        Returns
        -------
        the changes

        Raises
        ------
        products.ProductError
            if a point has not been measured
        """
        if (surface := self.config.points.surface) is None:
            return None
        still, *moved = (self.arrays(*key) for key in self.keys())
        noise, powers, bands = [], [], []
        for point in moved:
            change = {name: point[name] - still[name] for name in ("auto", "truth", "power")}
            noise.append(change["auto"] / response**2 - change["truth"])
            powers.append(change["power"])
            bands.append(point["bands"])
        over = (changed(self.run.spectra(), *x) for x in zip(*self._changes(), strict=True))
        prior = np.array([bands_of(self.run, spectra) for spectra in over])
        return DesignPoints(
            np.array(noise), np.array(powers), np.array(bands), prior, surface.directions
        )

    @property
    def _settings(self) -> Surface:
        assert self.config.points.surface is not None
        return self.config.points.surface

    def _spectra(self, amplitudes: np.ndarray) -> Spectra:
        """The fiducial spectra, changed along the directions by (u, v). With u > 0 there is more
        C^κκ, with v > 0 less C^EE, where they change most."""
        u, v = amplitudes[:1], amplitudes[1:]
        of_kk, of_ee = self._changes()
        fiducial = self.run.spectra()
        return changed(fiducial, u @ profiles(of_kk, len(u)), -v @ profiles(of_ee, len(v)))

    def _changes(self) -> tuple[np.ndarray, np.ndarray]:
        """Changes of ln C^κκ and of ln C^EE from l = 2 at the cosmologies of the group."""
        emulator = read_emulator(EMULATOR)
        low, high = emulator.tables.low[-1], emulator.tables.high[-1]

        def logarithms(cosmology: Cosmology) -> np.ndarray:
            ln_as = math.log(1e10 * cosmology.As)
            # Beyond the emulator's range of A_s the spectra scale with it.
            point = vars(cosmology) | {"logA": min(max(ln_as, low), high)}
            kk, ee, _ = emulator({name: point[name] for name in emulator.parameters})
            return np.log([kk[2:], ee[2:]]) + ln_as - point["logA"]

        base, over = self.config.cosmology, self.config.points.at[self._settings.over]
        moved = [logarithms(base.vary(**change)) for change in over.cosmologies]
        kk, ee = (np.array(moved) - logarithms(base)).transpose(1, 0, 2)
        return kk, ee


def changed(fiducial: Spectra, ln_kk: np.ndarray, ln_ee: np.ndarray) -> Spectra:
    """Spectra with a change of their logarithm.

    Parameters
    ----------
    fiducial : the spectra
    ln_kk, ln_ee : change from l = 2; the last value holds beyond its end

    Returns
    -------
    the changed C^κκ and C^EE; the lensed spectra are those of ``fiducial``
    """

    def factor(change: np.ndarray, cl: np.ndarray) -> np.ndarray:
        change = change[: len(cl) - 2]
        return np.exp(np.pad(change, (2, len(cl) - 2 - len(change)), mode="edge"))

    kk, ee = fiducial.kk, fiducial.ee
    return replace(fiducial, kk=kk * factor(ln_kk, kk), ee=ee * factor(ln_ee, ee))
