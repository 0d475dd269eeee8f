"""Stages that perturb the spectra of skies: band by band, and along ω_c.

One sky of fixed phases and noise is observed with one band of C_L^κκ, or of the unlensed C_l^EE,
scaled by 1 + ε and by 1 − ε, and again at ω_c ± step. :mod:`cobaya_cnnlens.calibrate.derivatives`
and :mod:`cobaya_cnnlens.calibrate.curvature` say what follows for the noise bias.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..calibrate.curvature import band_changes
from ..calibrate.derivatives import BandDerivatives, NoiseDerivatives
from ..simulate import shards
from ..simulate.patches import Pointing
from ..simulate.perturbed_skies import Observation, PerturbedSky
from ..simulate.tiling import evenly
from ..theory.camb import Cosmology, Spectra
from .observation import sky_noise
from .reconstructions import measurement_recipe
from .run import Run
from .simulation import Simulation
from .skies import Skies
from .stage import Stage

# The set of skies that the stages of this module perturb.
SET = "derivatives"


def perturbed_sky(
    run: Run,
    index: int,
    nthreads: int = 0,
    spectra: Spectra | None = None,
    set_name: str = SET,
    measured: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    rows: np.ndarray | None = None,
    observation: Observation | None = None,
) -> PerturbedSky:
    """A sky of a configuration, kept in memory to be perturbed.

    Parameters
    ----------
    run : the configuration and what follows from it
    index : number of the sky, which with ``set_name`` fixes phases and noise
    nthreads : threads of the transforms; 0 for all cores
    spectra : of the sky; the fiducial ones by default
    set_name : name of the set of skies
    measured : from masked Q̃ and Ũ, (n_patches, ny, nx) each, to (n_patches, n); bandpowers of κ̂
        by default
    rows : numbers of the patches; all by default
    observation : of every patch; that of the configuration by default

    Returns
    -------
    the sky
    """
    config, settings = run.config, run.config.derivatives
    pointing = _pointing(run, set_name)
    n_patches = len(pointing.theta) // config.patch.n_padded**2
    if rows is not None:
        pointing = shards.some_patches(pointing, config.patch, rows)
    if observation is None:
        noise = sky_noise(run, set_name, index, n_patches)
        noise = noise if rows is None else noise[:, rows]
        observation = Observation(config.instrument, noise, run.data_mask)
    return PerturbedSky(
        shards.draw_sky(spectra or run.spectra(), config.sky.lmax, config.seed, set_name, index),
        pointing,
        observation,
        run.bandpowers,
        measured or _power_of_estimates(run),
        {"kk": settings.kk_edges, "ee": settings.ee_edges},
        settings.step,
        config.sky.band_limit,
        nthreads,
    )


def _pointing(run: Simulation, set_name: str) -> Pointing:
    """Of the patches of a set, or of those of the derivatives' that the configuration takes."""
    pointing, geometry = run.pointing_of(set_name), run.config.patch
    chosen = run.config.derivatives.patches
    if set_name != SET or chosen is None:
        return pointing
    n_patches = len(pointing.theta) // geometry.n_padded**2
    return shards.some_patches(pointing, geometry, evenly(n_patches, chosen))


def _power_of_estimates(run: Run) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    estimator, spectra = run.estimator, run.bandpowers
    return lambda q, u: spectra.auto(estimator.reconstruct(q, u))


class _Perturbed(Stage[Run]):
    """A stage with one product for each sky of the ``derivatives`` set."""

    def keys(self, indices: Iterable[int] | None = None) -> list[tuple[int]]:
        """The skies.

        Parameters
        ----------
        indices : numbers of the skies; all by default

        Returns
        -------
        number of each sky
        """
        return [(index,) for index in self.config.indices(SET, indices)]

    def _sky_recipe(self, index: int) -> dict[str, Any]:
        return {"sky": Skies(self.run).recipe(SET, index), **measurement_recipe(self.run)}


class Derivatives(_Perturbed):
    """Derivatives of bandpowers in bands of both spectra, by patch.

    A product holds ``kk`` and ``ee``: derivatives of auto-bandpowers of κ̂, (n_bands, n_patches,
    n_bins); ``kk_truth``: those of the true κ; ``auto`` and ``truth`` of the fiducial sky,
    (n_patches, n_bins).
    """

    kind = "derivatives"
    command = "derivatives CONFIG --index {}"

    def recipe(self, index: int) -> dict[str, Any]:
        """What determines the derivatives measured on one sky.

        Parameters
        ----------
        index : number of the sky

        Returns
        -------
        mapping for JSON
        """
        return {
            **self._sky_recipe(index),
            "derivative_algorithm": self.algorithm,
            "derivatives": self.config.derivatives.recipe(),
        }

    def make(self, index: int) -> dict[str, np.ndarray]:
        """Perturb every band of a sky; each is kept on disk as soon as it is done.

        Parameters
        ----------
        index : number of the sky

        Returns
        -------
        arrays of the product
        """
        stage = _Band(self.run, index, self.threads)
        stage.measure()
        bands = stage.keys()
        done = {band: stage.arrays(*band) for band in bands}
        arrays = dict(done["fiducial", 0])
        for kind in ("kk", "ee"):
            arrays[kind] = np.stack([band["auto"] for key, band in done.items() if key[0] == kind])
        arrays["kk_truth"] = np.stack([b["truth"] for key, b in done.items() if key[0] == "kk"])
        return arrays

    def write(self, arrays: Mapping[str, np.ndarray], index: int) -> None:
        """Write the product, which takes the place of what its bands left on disk.

        Parameters
        ----------
        arrays : by name
        index : number of the sky
        """
        super().write(arrays, index)
        shutil.rmtree(self.path(index).with_suffix(""), ignore_errors=True)

    def read(self, response: np.ndarray) -> NoiseDerivatives:
        """Derivatives of the noise bias from all skies.

        Parameters
        ----------
        response : R_b, (n_bins,)

        Returns
        -------
        derivatives of d − signal by patch

        Raises
        ------
        products.ProductError
            if a sky has not been measured, or was with another network or configuration
        """
        skies = [self.arrays(*key) for key in self.keys()]
        kk = [sky["kk"] / response**2 - sky["kk_truth"] for sky in skies]
        ee = [sky["ee"] / response**2 for sky in skies]
        centre = [sky["auto"] / response**2 - sky["truth"] for sky in skies]
        settings = self.config.derivatives
        return NoiseDerivatives(
            BandDerivatives.of_bands(settings.kk_edges, np.concatenate(kk, axis=1)),
            BandDerivatives.of_bands(settings.ee_edges, np.concatenate(ee, axis=1)),
            np.concatenate(centre),
        )


class _Band(Stage[Run]):
    """Derivatives of one sky in one band, on the way to those in all."""

    kind = "derivatives"
    command = "derivatives CONFIG"
    unit = "band"

    def __init__(self, run: Run, index: int, threads: int):
        super().__init__(run, threads)
        self._index, self._sky = index, perturbed_sky(run, index, threads)

    def keys(self) -> list[tuple[str, int]]:
        return [("fiducial", 0), *self._sky.bands()]

    def path(self, kind: str, band: int) -> Path:
        folder = Derivatives(self.run).path(self._index).with_suffix("")
        return folder / f"{kind}_{band:03d}.h5"

    def recipe(self, kind: str, band: int) -> dict[str, Any]:
        return {**Derivatives(self.run).recipe(self._index), "part": f"{kind} {band}"}

    def make(self, kind: str, band: int) -> dict[str, np.ndarray]:
        return self._sky.measure(kind, band)


class ShiftedSkies(_Perturbed):
    """Bandpowers of the skies at ω_c − step and ω_c + step.

    A product holds ``auto`` of κ̂ and ``truth`` of κ, (2, n_patches, n_bins) each.
    """

    kind = "curvature"
    command = "derivatives CONFIG --index {}"

    def recipe(self, index: int) -> dict[str, Any]:
        """What determines the bandpowers of a sky at shifted ω_c.

        Parameters
        ----------
        index : number of the sky

        Returns
        -------
        mapping for JSON
        """
        return {
            **self._sky_recipe(index),
            "curvature_algorithm": self.algorithm,
            "omch2_step": self.config.derivatives.omch2_step,
            **({"patches": n} if (n := self.config.derivatives.patches) is not None else {}),
        }

    def make(self, index: int) -> dict[str, np.ndarray]:
        """Observe a sky at both shifted ω_c.

        Parameters
        ----------
        index : number of the sky

        Returns
        -------
        arrays of the product
        """
        skies = [
            perturbed_sky(self.run, index, self.threads, self.run.spectra(cosmology)).unperturbed()
            for cosmology in shifted_cosmologies(self.run)
        ]
        return {name: np.stack([sky[name] for sky in skies]) for name in ("auto", "truth")}

    def read(self, response: np.ndarray) -> np.ndarray:
        """Noise bias of the patches at ω_c − step and ω_c + step.

        Parameters
        ----------
        response : R_b, (n_bins,)

        Returns
        -------
        (2, n_patches, n_bins)

        Raises
        ------
        products.ProductError
            if a sky has not been measured, or was with another network or configuration
        """
        skies = [self.arrays(*key) for key in self.keys()]
        return np.concatenate([s["auto"] / response**2 - s["truth"] for s in skies], axis=1)


def shifted_cosmologies(run: Simulation) -> list[Cosmology]:
    """The fiducial cosmology with ω_c − step and with ω_c + step.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the two cosmologies
    """
    return [run.config.cosmology.vary(omch2=omch2) for omch2 in run.config.shifted_omch2()]


def bands_of(run: Simulation, spectra: Spectra) -> np.ndarray:
    """δ_j of the configuration's bands (docs/noise-bias, eq. 9).

    Parameters
    ----------
    run : a configuration
    spectra : to be compared with the fiducial ones

    Returns
    -------
    C^κκ before C^EE, (n_kk + n_ee,)
    """
    fiducial, settings = run.spectra(), run.config.derivatives
    kk = band_changes(settings.kk_edges, spectra.kk, fiducial.kk)
    return np.concatenate([kk, band_changes(settings.ee_edges, spectra.ee, fiducial.ee)])


def shifted_changes(run: Simulation) -> np.ndarray:
    """:func:`bands_of` the spectra at ω_c − step and ω_c + step.

    Parameters
    ----------
    run : a configuration

    Returns
    -------
    (2, n_kk + n_ee)
    """
    return np.array([bands_of(run, run.spectra(c)) for c in shifted_cosmologies(run)])
