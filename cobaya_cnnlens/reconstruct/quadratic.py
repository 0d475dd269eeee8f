"""Quadratic estimators of filtered E and B of masked patches (Hu & Okamoto 2002), flat sky.

With P_l = e^{2iϑ}(E_l + iB_l), filtered once by C/(C + N) and once by 1/(C + N), the estimator is

    g = −∇·Re[P̄* ∇P^W],   φ̂_L = N0_L g_L,

the slope of ln p(d | φ) at φ = 0 where every mode is filtered by itself, with lensed spectra: the
pair (B̄, E^W) and its mirror image are EB, (Ē, E^W) is EE. With the curl in the place of the
divergence, −∇×Re[P̄* ∇P^W] is the slope along a curl potential: ω̂, which lensing does not make and
which is odd under mirrors where κ̂ is even. On a masked patch the modes are mixed; what the mask
makes of E is counted as B ("naive", as in Caldeira et al. 2018), unless B is pure.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from ..simulate.instrument import Instrument
from ..simulate.modes import pure_b_modes
from ..simulate.patches import PatchGeometry
from ..simulate.periodic import Box
from ..theory.camb import Spectra
from .n0 import Filter, band_of, n0_eb, polarisation_noise

# Which of E and B is filtered by 1/(C + N), and which by C/(C + N).
PAIRS = {"eb": [("b", "e"), ("e", "b")], "ee": [("e", "e")]}
PAIRS["mv"] = [*PAIRS["eb"], *PAIRS["ee"]]


class QuadraticEstimator:
    """κ̂ of masked patches by a quadratic estimator, normalised by the EB estimator's N0.

    Parameters
    ----------
    geometry, instrument : of the patches; modes are those of the patch, taken as periodic
    mask : (n, n) that the maps carry
    spectra : fiducial, whose lensed spectra are used
    combination : "eb", "ee" or "mv", their sum
    leakage : "naive" or "pure"; "pure" divides by the mask and needs one that tapers to the edge
    band : multipoles of E and B in use
    curl : give ω̂ instead of κ̂, by the same normalisation
    """

    def __init__(
        self,
        geometry: PatchGeometry,
        instrument: Instrument,
        mask: np.ndarray,
        spectra: Spectra,
        combination: str = "eb",
        leakage: str = "naive",
        band: Filter | None = None,
        curl: bool = False,
    ):
        band = band or band_of(geometry, spectra, round(geometry.fundamental))
        self._box = box = Box(geometry, instrument, band.lmax, border=0)
        self._n_fine = scipy.fft.next_fast_len(3 * box.n // 2)
        self._mask = mask if leakage == "pure" else None
        self._pairs = PAIRS[combination]
        # Along y and x: by what the flux is multiplied, and along what P^W is differentiated.
        along = [box.ly, box.lx]
        self._axes = list(zip([-box.lx, box.ly] if curl else along, along, strict=True))
        noise = polarisation_noise(instrument, band.lmax)
        inside = box.band & (box.ell >= band.lmin)
        self._inverse, self._wiener = {}, {}
        for name, cl in (("e", spectra.lensed_ee), ("b", spectra.lensed_bb)):
            power = box.spectrum(cl[: band.lmax + 1])
            total = power + box.spectrum(noise)
            self._inverse[name] = np.divide(1.0, total, out=np.zeros_like(total), where=inside)
            self._wiener[name] = power * self._inverse[name]
        nodes = np.unique(np.geomspace(10, band.lmax, 40).round())
        ell = np.maximum(box.ell, 1.0)
        kappa_noise = np.log(n0_eb(nodes, spectra, instrument, band))
        # κ_L = ½ L² φ_L of φ̂_L = N0^φ g_L.
        self._weight = 2.0 / ell**2 * np.exp(np.interp(np.log(ell), np.log(nodes), kappa_noise))

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Reconstruct the convergence.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        kappa : (n, ny, nx)
        """
        return np.array([self.combine(self.modes(*maps)) for maps in zip(q, u, strict=True)])

    def combine(self, modes: dict[str, np.ndarray]) -> np.ndarray:
        """Combine the modes of E and B of one patch.

        Parameters
        ----------
        modes : of :meth:`modes`

        Returns
        -------
        kappa : (n, n)
        """
        box = self._box
        total = 0.0
        for inverse, wiener in self._pairs:
            left = self._fine(box.turn * self._inverse[inverse] * modes[inverse])
            right = 1j * box.turn * self._wiener[wiener] * modes[wiener]
            total = total - 1j * sum(
                outward * self._coarse((np.conj(left) * self._fine(l * right)).real)
                for outward, l in self._axes
            )
        return scipy.fft.ifft2(np.where(box.band, self._weight * total, 0.0)).real

    # The product of two fields has modes up to twice theirs: on pixels half as large again none of
    # them is aliased onto a mode in use.

    def _fine(self, modes: np.ndarray) -> np.ndarray:
        """Modes to a map on the finer pixels."""
        n, m = len(modes), self._n_fine
        low = m // 2 - n // 2
        padded = np.zeros((m, m), complex)
        padded[low : low + n, low : low + n] = scipy.fft.fftshift(modes)
        return scipy.fft.ifft2(scipy.fft.ifftshift(padded)) * (m / n) ** 2

    def _coarse(self, values: np.ndarray) -> np.ndarray:
        """A map on the finer pixels to modes."""
        n, m = self._box.n, self._n_fine
        low = m // 2 - n // 2
        modes = scipy.fft.fftshift(scipy.fft.fft2(values))[low : low + n, low : low + n]
        return scipy.fft.ifftshift(modes) * (n / m) ** 2

    def modes(self, q: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Modes of one patch, with the beam divided out.

        Parameters
        ----------
        q, u : masked maps of one patch in µK

        Returns
        -------
        modes : E_l as ``e`` and iB_l as ``b``, (n, n) each in µK
        """
        box = self._box
        x = np.conj(box.turn) * scipy.fft.fft2(q + 1j * u) / box.beam
        mirrored = np.conj(np.roll(x[::-1, ::-1], 1, (0, 1)))
        polarisation = {"e": 0.5 * (x + mirrored), "b": 0.5 * (x - mirrored)}
        if self._mask is not None:
            pure = pure_b_modes(q / self._mask, u / self._mask, self._mask, box.pixel)
            real = np.fft.irfft2(pure / box.pixel**2, s=q.shape)
            polarisation["b"] = 1j * scipy.fft.fft2(real) / box.beam
        return polarisation
