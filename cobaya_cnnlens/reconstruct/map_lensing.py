"""The lensing potential of maximum posterior probability (MAP) of masked patches.

Quasi-Newton steps climb to it. The slope of ln p(d | φ) at the current φ is that of Wiener-filtered
fields (:mod:`.wiener`). With the prior the slope of the posterior is g = slope − φ/C. An analytic
curvature 1/C + 1/N sets the length of the step, and limited-memory BFGS corrects it from the steps
already made (Nocedal & Wright 2006, algorithm 7.4; Carron & Lewis 2017, arXiv:1704.08230).

The noise rms of every pixel describes depth and holes; it is infinite in pixels without data. The
mean field is left to a subtraction from simulations, or to a network. Without it the lowest
multipoles become worse after the fifth pass.

With ``lmin_b``, B modes at lower multipoles carry no weight: before lensing they have an unknown
power. κ̂ then hardly depends on them, and a template of κ̂ can delens them (docs/delensing.md). The
analytic curvature still counts them. It changes the steps, and κ̂ of a single pass by a factor.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft

from ..errors import CNNLensError
from ..simulate.instrument import ARCMIN, Instrument
from ..simulate.patches import PatchGeometry
from ..simulate.periodic import Box, Displaced
from ..theory.camb import Spectra
from .n0 import band_of, delensing_passes
from .wiener import WienerFilter

# Residual of the Wiener filter's equations over their right-hand side, pass by pass; the last one's
# for all that follow. At 1 µK' 1e-5 throughout changes nothing, 1e-3 costs 40% of N_L at L = 600.
# With less noise the right-hand side grows with the signal's modes as 1/σ², but not what the small
# ones tell: below 1 µK' the tolerance falls as σ². With these alone κ̂ is lost at 0.3 µK'.
TOLERANCES = (2e-3, 1e-3, 5e-4, 3e-4, 2e-4, 1e-4)
# Of the second step, before there is a curvature learnt.
FIRST_STEP = 0.45
MEMORY = 6
# Noise levels (µK-arcmin) at which filters are made, a tenth apart; each patch takes the nearest
# one's spectra of what delensing leaves. A filter divides by the noise, and takes the lowest level
# for less. E beyond the band is below 0.3: with 0.1 it counts as signal, and N_L is three times as
# high at L < 1000.
LEVEL_RATIO = 1.1
# Power of B modes that carry no weight: in µK², as that of E there and 500 times that of lensing B
# modes, or this many times that of the noise.
UNKNOWN_B, UNKNOWN_OVER_NOISE = 1e-3, 300.0
LOWEST_LEVEL = 0.3


@dataclass(frozen=True)
class Pass:
    """One pass over one patch, all on the box: what the filter saw at the φ before, and the step.

    Attributes
    ----------
    kappa : κ̂ after the step on the patch, (ny, nx)
    phi : φ before the step, modes
    modes : filtered X = E + iB, modes in µK
    positions : displaced by ∇φ; None on the first pass
    data : Q + iU over the mask, µK
    filter : the Wiener filter of this pass
    """

    kappa: np.ndarray
    phi: np.ndarray
    modes: np.ndarray
    positions: Displaced | None
    data: np.ndarray
    filter: WienerFilter


class MAPLensing:
    """κ̂ of masked patches at, or on the way to, the φ of maximum posterior probability.

    With one pass and a filter that converges this is the quadratic estimator of Wiener-filtered E
    and B together.

    Parameters
    ----------
    geometry, instrument : of the patches; of the instrument the beam counts, and the noise where
        no other is given
    mask : (n, n); divided out of the data, pixels where it is zero are left out
    spectra : fiducial
    passes : how many
    threads : patches at a time; 0 for one per core, which changes no result
    tolerances : of the Wiener filter in each pass, the last one's in all that follow;
        :data:`TOLERANCES` by default
    lmin_b : B modes of the sky below this multipole carry no weight

    Raises
    ------
    CNNLensError
        if ``passes`` is none
    """

    def __init__(
        self,
        geometry: PatchGeometry,
        instrument: Instrument,
        mask: np.ndarray,
        spectra: Spectra,
        passes: int = 5,
        threads: int = 0,
        tolerances: tuple[float, ...] | None = None,
        lmin_b: int = 0,
    ):
        if passes < 1:
            raise CNNLensError(f"passes is {passes}; at least one is needed")
        self._band = band_of(geometry, spectra, 2)
        self._geometry, self._instrument, self._spectra = geometry, instrument, spectra
        self.mask = mask
        self.box = Box(geometry, instrument, self._band.lmax, precision="single")
        self._inverse_mask = np.divide(1.0, mask, out=np.zeros_like(mask), where=mask > 0)
        self._n_passes, self._threads = passes, threads or os.cpu_count()
        self._tolerances, self._lmin_b = tolerances or TOLERANCES, lmin_b
        power = self.box.spectrum(spectra.pp)
        self._inside = power > 0
        self._inverse_prior = np.divide(1.0, power, out=np.zeros_like(power), where=self._inside)
        self._levels: dict[int, list[tuple[WienerFilter, np.ndarray]]] = {}

    def reconstruct(
        self, q: np.ndarray, u: np.ndarray, rms: np.ndarray | None = None
    ) -> np.ndarray:
        """Reconstruct the convergence.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each
        rms : noise per pixel of the unmasked Q and U in µK, (ny, nx) or (n, ny, nx), infinite in
            pixels without data; that of the instrument by default

        Returns
        -------
        kappa : (n, ny, nx)
        """
        rms = np.broadcast_to(self.noise_rms() if rms is None else rms, np.shape(q))
        with ThreadPoolExecutor(self._threads) as pool:
            return np.array(list(pool.map(lambda *maps: self.last(*maps).kappa, q, u, rms)))

    def noise_rms(self) -> np.ndarray:
        """The instrument's noise per pixel in µK, (ny, nx)."""
        n = self._geometry.n_pixels
        return np.broadcast_to(self._instrument.noise_rms(self._geometry), (n, n))

    def last(self, q: np.ndarray, u: np.ndarray, rms: np.ndarray) -> Pass:
        """The last pass over one patch.

        Parameters
        ----------
        q, u, rms : as in :meth:`reconstruct`, (ny, nx) each

        Returns
        -------
        last : the pass with the MAP estimate

        Raises
        ------
        CNNLensError
            if no pixel of the patch has data
        """
        for last in self.passes(q, u, rms):  # noqa: B007  (the loop only finds the last one)
            pass
        return last

    def passes(self, q: np.ndarray, u: np.ndarray, rms: np.ndarray) -> Iterator[Pass]:
        """Every pass over one patch.

        Parameters
        ----------
        q, u, rms : as in :meth:`reconstruct`, (ny, nx) each

        Yields
        ------
        step : the next pass

        Raises
        ------
        CNNLensError
            if no pixel of the patch has data
        """
        box = self.box
        rms = np.where((self.mask > 0) & np.isfinite(rms), rms, np.inf)
        if not np.isfinite(rms).any():
            raise CNNLensError("a patch without a pixel that was seen; leave it out")
        # A filter divides by the noise: none below the least it can take.
        rms = np.maximum(rms, LOWEST_LEVEL * ARCMIN / self._geometry.pixel)
        weight = np.where(np.isfinite(rms), self._inverse_mask, 0.0)
        data = box.pad((q + 1j * u) * weight).astype(box.complex)
        phi, modes = np.zeros((box.n, box.n), complex), None
        ascent = Ascent(MEMORY)
        level = self._level(rms)
        for number, (prepared, noise) in enumerate(self._filters_for(level)):
            tolerance = self._tolerances[min(number, len(self._tolerances) - 1)]
            wiener = prepared.with_noise(rms, tolerance * min(level, 1.0) ** 2)
            positions = box.positions(phi) if number else None
            modes = wiener.filter(data, positions, modes)
            slope = wiener.slope(data, modes, positions) / box.pixel**2
            slope = np.where(self._inside, slope - phi * self._inverse_prior, 0.0)
            curvature = self._inverse_prior + 1.0 / noise
            step = ascent.step(phi, slope, curvature) if number else slope / curvature
            yield Pass(self.kappa(phi + step), phi, modes, positions, data, wiener)
            phi = phi + step

    def kappa(self, phi: np.ndarray) -> np.ndarray:
        """κ = ½ L²φ on the patch.

        Parameters
        ----------
        phi : modes of φ on the box

        Returns
        -------
        kappa : (ny, nx)
        """
        box = self.box
        return box.crop(scipy.fft.ifft2(0.5 * box.ell**2 * phi).real)

    def _level(self, rms: np.ndarray) -> float:
        """Noise level in µK-arcmin of the mean inverse variance of the pixels with data."""
        seen = rms[np.isfinite(rms)]
        return float(self._geometry.pixel / ARCMIN / np.sqrt(np.mean(1.0 / np.square(seen))))

    def _filters_for(self, level: float) -> list[tuple[WienerFilter, np.ndarray]]:
        """Filter and N^φ of every pass at the noise level nearest to a map's, made once."""
        key = round(np.log(level / LOWEST_LEVEL) / np.log(LEVEL_RATIO))
        if key not in self._levels:
            self._levels[key] = self._make_filters(LOWEST_LEVEL * LEVEL_RATIO**key)
        return self._levels[key]

    def _make_filters(self, level: float) -> list[tuple[WienerFilter, np.ndarray]]:
        box, spectra = self.box, self._spectra
        instrument = self._instrument.at_level(level)
        rms = np.full(self.mask.shape, instrument.noise_rms(self._geometry))
        ell = np.maximum(box.ell, 1.0)
        analytic = delensing_passes(spectra, instrument, self._band)
        made = []
        for number, (noise, clbb) in enumerate(itertools.islice(analytic, self._n_passes)):
            clee, clbb = (spectra.ee, clbb) if number else (spectra.lensed_ee, spectra.lensed_bb)
            unknown = max(UNKNOWN_B, UNKNOWN_OVER_NOISE * (level * ARCMIN) ** 2)
            clbb = clbb + unknown * (np.arange(len(clbb)) < self._lmin_b)
            at_modes = np.exp(np.interp(ell, np.arange(len(noise)), np.log(noise)))
            made.append((WienerFilter(box, clee, clbb, rms), at_modes))
        return made


class Ascent:
    """Steps of limited-memory BFGS without a line search; arrays are modes, (n, n).

    Parameters
    ----------
    memory : how many earlier steps are kept
    """

    def __init__(self, memory: int):
        self._memory = memory
        self._steps: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, x: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """The next step of the maximisation.

        Parameters
        ----------
        x : modes of φ where the step begins
        slope : ∂ ln p/∂x there
        curvature : expected −∂² ln p/∂x², positive and diagonal in the modes

        Returns
        -------
        step : to be added to ``x``
        """
        if self._before is not None:
            moved, change = x - self._before[0], self._before[1] - slope
            if _dot(moved, change) > 0:
                self._steps = [*self._steps, moved][-self._memory :]
                self._changes = [*self._changes, change][-self._memory :]
        self._before = (x, slope)
        pairs = list(zip(self._steps, self._changes, strict=True))
        direction, parts = slope, []
        for moved, change in reversed(pairs):
            part = _dot(moved, direction) / _dot(moved, change)
            direction = direction - part * change
            parts.append(part)
        scale = FIRST_STEP
        if pairs:
            moved, change = pairs[-1]
            scale = _dot(moved, change) / _dot(change, change / curvature)
        direction = scale * direction / curvature
        for (moved, change), part in zip(pairs, reversed(parts), strict=True):
            direction = direction + (part - _dot(change, direction) / _dot(moved, change)) * moved
        return direction


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a.real * b.real + a.imag * b.imag))
