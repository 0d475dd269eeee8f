"""The periodic box around a flat patch: modes, beam and lensing; and skies that fill it.

Without a mask, on a periodic patch, analytic noise and response of quadratic estimators are exact.
"""

from __future__ import annotations

import ducc0
import numpy as np
import scipy.fft

from ..theory import Spectra
from .instrument import Instrument
from .patches import PatchGeometry

# Of the non-uniform Fourier transforms, relative.
EPSILON = 1e-6


class Box:
    """The periodic box around a patch: modes within a band of multipoles, beam and lensing.

    Parameters
    ----------
    geometry : the patch, in the box's corner
    instrument : for the beam
    lmax : modes beyond are left out
    border : pixels of the box beyond the patch, at least
    """

    def __init__(
        self, geometry: PatchGeometry, instrument: Instrument, lmax: int, border: int = 28
    ):
        self.n_patch, self.pixel = geometry.n_pixels, geometry.pixel
        self.n = scipy.fft.next_fast_len(self.n_patch + border)
        frequency = 2.0 * np.pi * np.fft.fftfreq(self.n, self.pixel)
        self.ly, self.lx = np.meshgrid(frequency, frequency, indexing="ij")
        self.ell = np.hypot(self.ly, self.lx)
        self.band = (self.ell > 0) & (self.ell <= lmax)
        self.beam = instrument.beam(self.ell)
        # e^{2iϑ}, ϑ from south towards east.
        with np.errstate(invalid="ignore", divide="ignore"):
            turn = (self.ly - 1j * self.lx) ** 2 / self.ell**2
        self.turn = np.where(self.band, turn, 0.0)
        at = np.arange(self.n) * self.pixel
        self._grid = np.stack(np.meshgrid(at, at, indexing="ij"), -1)

    def spectrum(self, cl: np.ndarray) -> np.ndarray:
        """C_l from l = 0 on the box's modes within the band, zero elsewhere, (n, n)."""
        found = np.interp(self.ell, np.arange(len(cl)), cl, right=0.0)
        return np.where(self.band, found, 0.0)

    def gradient(self, phi: np.ndarray) -> np.ndarray:
        """∇φ on the box's pixels, (n, n, 2), from the modes of φ."""
        parts = [scipy.fft.ifft2(1j * l * phi).real for l in (self.ly, self.lx)]
        return np.stack(parts, -1)

    def positions(self, phi: np.ndarray | None) -> np.ndarray | None:
        """Displaced positions x + ∇φ, (n², 2); None for no lensing."""
        if phi is None:
            return None
        return (self._grid + self.gradient(phi)).reshape(-1, 2)

    def at(self, modes: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """Σ_l f_l e^{il·x}/n² at the positions, (n, n)."""
        if positions is None:
            return scipy.fft.ifft2(modes)
        found = ducc0.nufft.u2nu(
            grid=modes,
            coord=positions,
            forward=False,
            epsilon=EPSILON,
            nthreads=1,
            periodicity=self.n * self.pixel,
            fft_order=True,
        )
        return found.reshape(self.n, self.n) / self.n**2

    def adjoint_at(self, values: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """The adjoint of :meth:`at`: values at the positions → modes, (n, n)."""
        if positions is None:
            return scipy.fft.fft2(values) / self.n**2
        out = np.empty((self.n, self.n), complex)
        ducc0.nufft.nu2u(
            points=values.ravel(),
            coord=positions,
            forward=True,
            epsilon=EPSILON,
            nthreads=1,
            out=out,
            periodicity=self.n * self.pixel,
            fft_order=True,
        )
        return out / self.n**2

    def blur(self, values: np.ndarray) -> np.ndarray:
        """Beam-convolved values, (n, n)."""
        return scipy.fft.ifft2(self.beam * scipy.fft.fft2(values))

    def pad(self, values: np.ndarray) -> np.ndarray:
        """A patch's values in the box, zero around it."""
        out = np.zeros((self.n, self.n), values.dtype)
        out[: self.n_patch, : self.n_patch] = values
        return out


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
