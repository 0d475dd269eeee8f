"""Flat periodic skies, without a mask: where analytic noise and response of estimators are exact."""

from __future__ import annotations

import numpy as np
import scipy.fft

from ..reconstruct.wiener import Box
from ..theory import Spectra
from .instrument import Instrument
from .patches import PatchGeometry


class PeriodicSkies:
    """Lensed, beamed, noisy Q + iU of a periodic patch.

    Parameters
    ----------
    geometry : the patch; its pixels should resolve what lensing lifts past ``lmax``
    instrument : beam and white noise
    spectra : whose unlensed E and φ are drawn, to their end
    """

    def __init__(self, geometry: PatchGeometry, instrument: Instrument, spectra: Spectra):
        self.geometry = geometry
        self._box = Box(geometry, instrument, min(spectra.lmax, int(geometry.nyquist) - 1), 0)
        self._rms = instrument.noise_rms(geometry)
        self._roots = {
            name: np.sqrt(self._box.spectrum(cl)) / self._box.pixel
            for name, cl in (("e", spectra.ee), ("phi", spectra.pp))
        }

    def draw(self, name: str, generator: np.random.Generator) -> np.ndarray:
        """Modes Σ f(x) e^{−il·x} of one Gaussian field, "e" or "phi", (n, n)."""
        n = self._box.n
        return scipy.fft.fft2(generator.standard_normal((n, n))) * self._roots[name]

    def noise(self, generator: np.random.Generator) -> np.ndarray:
        """White noise of Q + iU in µK, (n, n) complex."""
        q, u = generator.standard_normal((2, self._box.n, self._box.n))
        return self._rms * (q + 1j * u)

    def lensed(self, e: np.ndarray, phi: np.ndarray | None) -> np.ndarray:
        """Beamed Q + iU in µK of unlensed E deflected by ∇φ, (n, n) complex, without noise."""
        box = self._box
        return box.blur(box.at(box.turn * e, box.positions(phi)))

    def convergence(self, phi: np.ndarray) -> np.ndarray:
        """κ = ½ L²φ on the pixels, (n, n)."""
        return scipy.fft.ifft2(0.5 * self._box.ell**2 * phi).real
