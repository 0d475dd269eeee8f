"""Lensing from masked patches by Wiener filtering: one pass, or repeated after delensing.

The quadratic estimator is one Newton step from φ = 0 towards the most probable φ. The iterated one
goes on, by steps

    δφ_l = (g_l − φ_l/C_l) / (1/C_l + 1/N_l),

with g the slope of ln p(d | φ) where the maps are delensed by the φ so far. What delensing has
left of the lensed B is noise to the next pass: its power, and N, are those of the same pass of the
analytic iteration (Smith et al. 2012, arXiv:1010.0048; Hirata & Seljak 2003; Carron & Lewis 2017,
arXiv:1704.08230). The mean field is left to a subtraction from simulations, and the size of κ̂ to
its measured response.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.fft

from ..errors import CNNLensError
from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..simulate.periodic import Box
from ..theory.camb import Spectra
from .n0 import band_of, delensing_passes
from .wiener import WienerFilter

# Fraction of a step that is taken after the first. Steps change the slope by up to twice what the
# analytic N says, by more the less noise there is: at 1 µK' .3 and .45 converge, 1 and .7 swing
# with growing amplitude; without noise .45 swings on two patches in a hundred.
DAMPING, DAMPING_LOW_NOISE = 0.45, 0.3
LOW_NOISE = 1.0


class WienerEstimator:
    """κ̂ of masked patches: the Wiener-filtered quadratic estimator, or its iteration.

    Parameters
    ----------
    geometry, instrument : of the patches; some noise, which the filter divides by
    mask : (n, n); divided out, pixels where it is zero are left out
    spectra : fiducial
    passes : 1 for the quadratic estimator
    threads : patches at a time; 0 for one per core, which changes no result
    """

    def __init__(
        self,
        geometry: PatchGeometry,
        instrument: Instrument,
        mask: np.ndarray,
        spectra: Spectra,
        passes: int = 1,
        threads: int = 0,
    ):
        if not instrument.noise_uk_arcmin > 0:
            raise CNNLensError(
                f"noise of {instrument.noise_uk_arcmin} µK-arcmin: a Wiener filter divides by the "
                "noise; give it the least that the maps can be taken to have"
            )
        band = band_of(geometry, spectra, 2)
        self._box = box = Box(geometry, instrument, band.lmax)
        self._inverse_mask = np.divide(1.0, mask, out=np.zeros_like(mask), where=mask > 0)
        self._threads = threads or os.cpu_count()
        low = instrument.noise_uk_arcmin < LOW_NOISE
        self._damping = DAMPING_LOW_NOISE if low else DAMPING
        rms = np.where(mask > 0, instrument.noise_rms(geometry), np.inf)
        ell = np.maximum(box.ell, 1.0)
        self._passes = []
        analytic = delensing_passes(spectra, instrument, band)
        for number, (noise, clbb) in enumerate(itertools.islice(analytic, passes)):
            clee = spectra.ee if number else spectra.lensed_ee
            wiener = WienerFilter(box, clee, clbb if number else spectra.lensed_bb, rms)
            at_modes = np.exp(np.interp(ell, np.arange(len(noise)), np.log(noise)))
            self._passes.append((wiener, at_modes))
        power = box.spectrum(spectra.pp)
        self._band = power > 0
        self._inverse_prior = np.divide(1.0, power, out=np.zeros_like(power), where=self._band)

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Masked Q̃, Ũ in µK, each (n, ny, nx) → κ̂ (n, ny, nx); a warning tells of how many the
        iteration swings instead of converging."""
        with ThreadPoolExecutor(self._threads) as pool:
            found, growth = zip(*pool.map(self._last, q, u), strict=True)
        if swinging := sum(g > 1.0 for g in growth):
            warnings.warn(
                f"{swinging} of {len(found)} patches: the iteration does not converge, its last "
                "step is larger than its second; take more noise for the filter "
                "(baseline.noise_floor in a configuration)",
                stacklevel=2,
            )
        return np.array(found)

    def _last(self, q: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, float]:
        """κ̂ after the last pass, and the last step over the second."""
        maps = list(self.passes(q, u))
        steps = [np.linalg.norm(b - a) for a, b in itertools.pairwise(maps)]
        return maps[-1], float(steps[-1] / steps[0]) if steps else 0.0

    def passes(self, q: np.ndarray, u: np.ndarray) -> Iterator[np.ndarray]:
        """κ̂ of one patch, (ny, nx), after every pass."""
        box = self._box
        data = box.pad((q + 1j * u) * self._inverse_mask)
        phi, modes = np.zeros_like(data), None
        for number, (wiener, noise) in enumerate(self._passes):
            positions = box.positions(phi) if number else None
            modes = wiener.filter(data, positions, modes)
            slope = wiener.slope(data, modes, positions) / box.pixel**2
            step = (slope - phi * self._inverse_prior) / (self._inverse_prior + 1.0 / noise)
            phi = phi + np.where(self._band, step, 0.0) * (self._damping if number else 1.0)
            kappa = scipy.fft.ifft2(0.5 * box.ell**2 * phi).real
            yield kappa[: box.n_patch, : box.n_patch]
