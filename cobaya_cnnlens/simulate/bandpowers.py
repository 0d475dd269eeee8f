"""Flat-sky spectra of masked patches, and what theory predicts for them.

A map f on a patch of n² pixels of side Δ has modes f_l = Δ² Σ f(x) exp(−il·x); its spectrum
is |f_l|² / (n²Δ²⟨M²⟩), with M the mask. Bandpowers are averages over the modes of a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CNNLensError
from .modes import half_plane_weights, masked_area, mode_vectors, polarisation_angles, pure_b_modes
from .patches import PatchGeometry


@dataclass(frozen=True)
class Bins:
    """Bins [lmin + b·width, lmin + (b+1)·width), b < n_bins, in L."""

    lmin: int
    width: float
    n_bins: int

    @property
    def edges(self) -> np.ndarray:
        """Shape (n_bins + 1,)."""
        return self.lmin + self.width * np.arange(self.n_bins + 1)

    @property
    def centres(self) -> np.ndarray:
        """Shape (n_bins,)."""
        return self.lmin + self.width * (np.arange(self.n_bins) + 0.5)


class FlatSpectra:
    """Binned auto- and cross-spectra of patches.

    Parameters
    ----------
    geometry : the patch
    bins : bins in L; the last edge must lie below the Nyquist multipole
    mask : (n, n) mask that the maps carry already; spectra are divided by its mean square

    Raises
    ------
    CNNLensError
        if the bins pass the Nyquist multipole or a bin holds no mode
    """

    def __init__(self, geometry: PatchGeometry, bins: Bins, mask: np.ndarray):
        self.geometry, self.bins, self.mask = geometry, bins, mask
        if bins.edges[-1] > geometry.nyquist:
            raise CNNLensError(
                f"the last bin ends at L = {bins.edges[-1]}, beyond the patch's Nyquist "
                f"multipole {geometry.nyquist:.0f}; use fewer or narrower bins"
            )
        n = geometry.n_pixels
        ly, lx = mode_vectors(n, geometry.pixel)
        ell = np.hypot(ly, lx)
        index = np.digitize(ell, bins.edges) - 1
        index[(ell < bins.edges[0]) | (ell >= bins.edges[-1])] = bins.n_bins
        self._index = index.ravel()
        self._weight = half_plane_weights(n).ravel()
        self.modes = np.bincount(self._index, self._weight, bins.n_bins + 1)[:-1]
        if (self.modes == 0).any():
            raise CNNLensError(f"bin {int(np.argmin(self.modes))} holds no Fourier mode; widen it")
        self.area = masked_area(mask, geometry.pixel)

    def transform(self, maps: np.ndarray) -> np.ndarray:
        """Masked maps (..., n, n) → modes f_l on the half plane, (..., n, n//2 + 1)."""
        return np.fft.rfft2(maps) * self.geometry.pixel**2

    def cross(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Bandpowers Re⟨a_l b_l*⟩ of two sets of modes, (n_patches, n_bins)."""
        return self.average_plane(a.real * b.real + a.imag * b.imag) / self.area

    def average_plane(self, power: np.ndarray) -> np.ndarray:
        """Mean over each bin's modes of half-plane values, (..., n, n//2 + 1) → (..., n_bins)."""
        flat = power.reshape(-1, self._weight.size) * self._weight
        binned = np.stack([np.bincount(self._index, p, self.bins.n_bins + 1)[:-1] for p in flat])
        return (binned / self.modes).reshape(*power.shape[:-2], self.bins.n_bins)

    def bin_weights(self, b: int) -> np.ndarray:
        """Weights of the half plane's modes in bin ``b``, summing to one; (n, n//2 + 1)."""
        n = self.geometry.n_pixels
        return ((self._index == b) * self._weight / self.modes[b]).reshape(n, n // 2 + 1)

    def merge(self, values: np.ndarray, factor: int) -> np.ndarray:
        """Bandpowers (..., n_bins) of every ``factor`` neighbouring bins together, by their modes;
        (..., n_bins // factor). Bins left over at the end are dropped."""
        n = self.bins.n_bins // factor
        weight = self.modes[: n * factor].reshape(n, factor)
        parts = values[..., : n * factor].reshape(*values.shape[:-1], n, factor)
        return (parts * weight).sum(-1) / weight.sum(-1)

    def auto(self, maps: np.ndarray) -> np.ndarray:
        """Bandpowers of masked maps (n_patches, n, n) → (n_patches, n_bins)."""
        modes = self.transform(maps)
        return self.cross(modes, modes)


def e_and_b(spectra: FlatSpectra, q: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Modes of E and B of masked Q, U (n_patches, n, n); B holds what the mask leaks from E."""
    cos2, sin2 = polarisation_angles(*mode_vectors(q.shape[-1], spectra.geometry.pixel))
    q_l, u_l = spectra.transform(q), spectra.transform(u)
    return q_l * cos2 + u_l * sin2, -q_l * sin2 + u_l * cos2


def pure_b(spectra: FlatSpectra, q: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Modes of pure B of *unmasked* Q, U (n_patches, n, n), (n_patches, n, n//2 + 1); see
    :func:`cobaya_cnnlens.simulate.modes.pure_b_modes`."""
    return pure_b_modes(q, u, spectra.mask, spectra.geometry.pixel)
