"""Banded derivatives of the debiased bandpowers, by simulation with common random numbers.

One sky of fixed phases and noise is observed with one band of C_L^κκ, or of the unlensed C_l^EE,
scaled by 1 + ε and by 1 − ε. The difference of the bandpowers gives

    N'_bj = ∂[⟨κ̂κ̂*⟩_b/R_b² − ⟨κκ*⟩_b] / ∂ ln C_j .

Subtracting the change of the truth leaves the derivative of the *noise bias*: the change of the
response, of the N1-like part and of the noise with theory. The windows carry the signal exactly.
The paper's §6.3 leaves this correction to future work; compare Planck 2015 XV, App. C.

Scaling C_j by 1 ± ε multiplies the band's a_lm by √(1 ± ε). The lensed map is linear in the
unlensed E, and the deflection linear in φ, so one extra transform per band serves both signs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..pipeline import skies
from ..pipeline.observation import sky_noise
from ..pipeline.run import Run
from ..simulate import patches, shards
from ..simulate.instrument import convolve_beam
from ..simulate.skies import scale_alm
from ..simulate.tiling import evenly
from ..theory.camb import Cosmology
from .bandpowers import measurement_recipe
from .response import standard_error

KIND = "derivatives"
SET = "derivatives"
ALGORITHM = 1


@dataclass(frozen=True)
class BandDerivatives:
    """Noise-bias derivatives in the bands of one spectrum.

    Attributes
    ----------
    edges : of the bands, (n_bands + 1,)
    patches : by patch, (n_patches, n_bins, n_bands)
    """

    edges: np.ndarray
    patches: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Means over the patches, (n_bins, n_bands)."""
        return self.patches.mean(0)

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of the means, (n_bins, n_bands)."""
        return standard_error(self.patches)


@dataclass(frozen=True)
class NoiseDerivatives:
    """Noise-bias derivatives with respect to both spectra.

    Attributes
    ----------
    kk, ee : in the bands of C^κκ and of unlensed C^EE
    centre : the noise bias of the same patches at the fiducial cosmology, (n_patches, n_bins)
    """

    kk: BandDerivatives
    ee: BandDerivatives
    centre: np.ndarray


def path(run: Run, index: int) -> Path:
    """Where the derivatives measured on one sky lie.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "derivatives" / f"sky_{index:04d}.h5"


def recipe(run: Run, index: int) -> dict[str, Any]:
    """What determines the derivatives measured on one sky.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky

    Returns
    -------
    mapping for JSON
    """
    return {
        "sky": skies.recipe(run, SET, index),
        **measurement_recipe(run),
        "derivative_algorithm": ALGORITHM,
        "derivatives": run.config.derivatives.recipe(),
    }


def read(run: Run, response: np.ndarray) -> NoiseDerivatives:
    """Noise-debias derivatives from all skies of the ``derivatives`` set.

    Parameters
    ----------
    run : the configuration and what follows from it
    response : R_b, (n_bins,)

    Returns
    -------
    derivatives of d − signal by patch

    Raises
    ------
    products.ProductError
        if a sky has not been measured, or was with another network or configuration
    """
    kk, ee, centre = [], [], []
    for index in range(run.config.skies.derivatives):
        file, made_of = path(run, index), recipe(run, index)
        with products.open_product(file, KIND, made_of, run.config.shipped) as product:
            kk.append(product.array("kk") / response**2 - product.array("kk_truth"))
            ee.append(product.array("ee") / response**2)
            centre.append(product.array("auto") / response**2 - product.array("truth"))
    settings = run.config.derivatives
    of_kk, of_ee = (
        BandDerivatives(np.array(edges), np.concatenate(parts, axis=1).transpose(1, 2, 0))
        for edges, parts in ((settings.kk_edges, kk), (settings.ee_edges, ee))
    )
    return NoiseDerivatives(of_kk, of_ee, np.concatenate(centre))


def measure(run: Run, index: int, nthreads: int = 0) -> None:
    """Measure all bands on one sky of the ``derivatives`` set, unless that is done.

    The product holds, per patch, ``kk`` and ``ee``: derivatives of auto-bandpowers of κ̂,
    (n_bands, n_patches, n_bins); ``kk_truth``: those of the true κ; ``auto`` and ``truth`` of
    the fiducial sky, (n_patches, n_bins). Each band is kept on disk as soon as it is done.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky
    nthreads : threads of the transforms; 0 for all cores
    """
    run.config.check_index(SET, index)
    file, made_of = path(run, index), recipe(run, index)
    if products.exists(file, KIND, made_of):
        return
    sky = PerturbedSky(run, index, nthreads)
    jobs = [("fiducial", 0), *sky.bands()]
    done = {}
    with tqdm(total=len(jobs), desc=f"derivatives/{index}", unit="band") as bar:
        for kind, band in jobs:
            part_path = file.with_suffix("") / f"{kind}_{band:03d}.h5"
            part_recipe = {**made_of, "part": f"{kind} {band}"}
            if not products.exists(part_path, KIND, part_recipe):
                products.write_product(part_path, KIND, part_recipe, sky.measure(kind, band))
            with products.open_product(part_path, KIND, part_recipe) as part:
                done[kind, band] = {name: part.array(name) for name in part.names()}
            bar.update()
    arrays = dict(done["fiducial", 0])
    for kind in ("kk", "ee"):
        bands = [done[key] for key in sorted(done) if key[0] == kind]
        arrays[kind] = np.stack([b["auto"] for b in bands])
    arrays["kk_truth"] = np.stack([done[k]["truth"] for k in sorted(done) if k[0] == "kk"])
    products.write_product(file, KIND, made_of, arrays)
    shutil.rmtree(file.with_suffix(""))


def _pointing(run: Run, set_name: str) -> patches.Pointing:
    """Of the patches of a set, or of those of the derivatives' that the configuration takes."""
    pointing, geometry = run.pointing_of(set_name), run.config.patch
    chosen = run.config.derivatives.patches
    if set_name != SET or chosen is None:
        return pointing
    n_patches = len(pointing.theta) // geometry.n_padded**2
    return shards.some_patches(pointing, geometry, evenly(n_patches, chosen))


class PerturbedSky:
    """One sky, kept in memory while its bands are perturbed one by one.

    Parameters
    ----------
    run : the configuration and what follows from it
    index : number of the sky, which with ``set_name`` fixes phases and noise
    nthreads : threads of the transforms; 0 for all cores
    cosmology : of its spectra; the fiducial by default
    set_name : name of the set of skies
    measured : from masked Q̃ and Ũ, (n_patches, ny, nx) each, to (n_patches, n); bandpowers of κ̂
        by default
    rows : numbers of the patches; all by default
    observation : noise, (2, n_patches, ny, nx) in µK, and mask, (n_patches, ny, nx), of every
        patch; those of the configuration by default
    """

    def __init__(
        self,
        run: Run,
        index: int,
        nthreads: int,
        cosmology: Cosmology | None = None,
        set_name: str = SET,
        measured: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        rows: np.ndarray | None = None,
        observation: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        config = run.config
        self.config, self.nthreads = config, nthreads
        self.spectra, self.mask = run.bandpowers, run.mask
        self._measured = measured or _power_of_estimates(run)
        self.step, self.pointing = config.derivatives.step, _pointing(run, set_name)
        n_patches = len(self.pointing.theta) // config.patch.n_padded**2
        if rows is not None:
            self.pointing = shards.some_patches(self.pointing, config.patch, rows)
        if observation is None:
            noise = sky_noise(run, set_name, index, n_patches)
            if rows is not None:
                noise = noise[:, rows]
            observation = noise, run.data_mask
        self.noise, self.data_mask = observation
        theory = run.spectra(cosmology)
        self.sky = shards.draw_sky(theory, config.sky.lmax, config.seed, set_name, index)
        self.gradient = patches.gradient_at(self.sky.philm, self.sky.lmax, self.pointing, nthreads)
        (self.lensed,) = self._lens([self.gradient])
        self.kappa = self._kappa(self.sky.philm)

    def bands(self) -> list[tuple[str, int]]:
        """All bands, C^κκ before C^EE, as :meth:`measure` takes them."""
        settings = self.config.derivatives
        counts = {"kk": len(settings.kk_edges) - 1, "ee": len(settings.ee_edges) - 1}
        return [(kind, band) for kind, count in counts.items() for band in range(count)]

    def measure(self, kind: str, band: int) -> dict[str, np.ndarray]:
        """Derivatives in one band, or the bandpowers of the sky as it is.

        Parameters
        ----------
        kind : "kk", "ee" or "fiducial"
        band : number of the band

        Returns
        -------
        ``auto`` of κ̂ and, but for "ee", ``truth`` of κ, (n_patches, n_bins) each
        """
        if kind == "fiducial":
            return self.unperturbed()
        return (self._kk if kind == "kk" else self._ee)(band)

    def unperturbed(self) -> dict[str, np.ndarray]:
        """Bandpowers of κ̂ and of the true κ of the sky as it is, each (n_patches, n_bins)."""
        return {"auto": self._auto(self.lensed), "truth": self.spectra.auto(self.kappa)}

    def _ee(self, band: int) -> dict[str, np.ndarray]:
        edges = self.config.derivatives.ee_edges
        elm, lmax = self._band_alm(self.sky.elm, edges[band], edges[band + 1])
        deflection = patches.deflect_by(self.gradient, self.pointing, self.nthreads)
        extra = patches.lensed_polarisation_at(elm, lmax, self.pointing, deflection, self.nthreads)
        up, down = (self._auto(self.lensed + change * extra) for change in self._changes())
        return {"auto": (up - down) / (2.0 * self.step)}

    def _kk(self, band: int) -> dict[str, np.ndarray]:
        edges = self.config.derivatives.kk_edges
        philm, lmax = self._band_alm(self.sky.philm, edges[band], edges[band + 1])
        gradient = patches.gradient_at(philm, lmax, self.pointing, self.nthreads)
        kappa = self._kappa(philm, lmax)
        changes = self._changes()
        lensed = self._lens([self.gradient + change * gradient for change in changes])
        up, down = (self._auto(maps) for maps in lensed)
        kappa_up, kappa_down = (self.spectra.auto(self.kappa + c * kappa) for c in changes)
        return {
            "auto": (up - down) / (2.0 * self.step),
            "truth": (kappa_up - kappa_down) / (2.0 * self.step),
        }

    def _changes(self) -> tuple[float, float]:
        """√(1 ± ε) − 1."""
        return np.sqrt(1.0 + self.step) - 1.0, np.sqrt(1.0 - self.step) - 1.0

    def _band_alm(self, alm: np.ndarray, low: int, high: int) -> tuple[np.ndarray, int]:
        """The a_lm with low ≤ l < high, cut at the band's top so that transforms are cheap."""
        lmax = min(high - 1, self.sky.lmax)
        cut = patches.truncate_alm(alm, self.sky.lmax, lmax)
        return scale_alm(cut, (np.arange(lmax + 1) >= low).astype(float)), lmax

    def _lens(self, gradients: list[np.ndarray]) -> list[np.ndarray]:
        """The sky's E under several deflections, from one Legendre transform."""
        deflections = [patches.deflect_by(g, self.pointing, self.nthreads) for g in gradients]
        lensed = patches.lensed_polarisation_at(
            self.sky.elm,
            self.sky.lmax,
            patches.repeat_pointing(self.pointing, len(gradients)),
            patches.join_deflections(deflections),
            self.nthreads,
        )
        return np.split(lensed, len(gradients))

    def _kappa(self, philm: np.ndarray, lmax: int | None = None) -> np.ndarray:
        lmax = lmax or self.sky.lmax
        limit = min(lmax, self.config.sky.band_limit)
        kappa = patches.scalar_at(
            patches.convergence_alm(philm, lmax, limit), limit, self.pointing, self.nthreads
        )
        return self._patches(kappa) * self.mask

    def _patches(self, values: np.ndarray) -> np.ndarray:
        n = self.config.patch.n_padded
        return self.config.patch.crop(values.reshape(-1, n, n))

    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Masked Q̃, Ũ of the sky as it is, (n_patches, ny, nx) each in µK."""
        return self._observed(self.lensed)

    def _observed(self, lensed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From padded, noiseless Q̃ + iŨ."""
        n = self.config.patch.n_padded
        q, u = (
            (
                convolve_beam(part.reshape(-1, n, n), self.config.instrument, self.config.patch)
                + noise
            )
            * self.data_mask
            for part, noise in zip((lensed.real, lensed.imag), self.noise, strict=True)
        )
        return q, u

    def _auto(self, lensed: np.ndarray) -> np.ndarray:
        """What is measured of padded, noiseless Q̃ + iŨ, (n_patches, n)."""
        return self._measured(*self._observed(lensed))


def _power_of_estimates(run: Run) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    estimator, spectra = run.estimator, run.bandpowers
    return lambda q, u: spectra.auto(estimator.reconstruct(q, u))
