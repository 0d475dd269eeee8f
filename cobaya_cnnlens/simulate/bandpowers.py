"""Flat-sky spectra of masked patches, and what theory predicts for them.

A map f on a patch of n² pixels of side Δ has modes f_l = Δ² Σ f(x) exp(−il·x); its spectrum
is |f_l|² / (n²Δ²⟨M²⟩), with M the mask. Bandpowers are averages over the modes of a bin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import CNNLensError
from .modes import half_plane_weights, masked_area, mode_vectors, polarisation_angles, pure_b_modes
from .patches import PatchGeometry

# A bin of κ̂ holds a whole number of bins of E, each at least this many fundamental modes wide.
LEAST_WIDTH = 0.8
# B is taken between these fractions of the Nyquist multipole, E up to the second.
NOISE_BAND = (0.7, 0.98)
# Patches whose E and B are measured at a time.
CHUNK = 128


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
        """Fourier transform masked maps.

        Parameters
        ----------
        maps : (..., n, n)

        Returns
        -------
        modes : f_l on the half plane, (..., n, n//2 + 1), complex
        """
        return np.fft.rfft2(maps) * self.geometry.pixel**2

    def cross(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cross bandpowers Re⟨a_l b_l*⟩ of two sets of modes.

        Parameters
        ----------
        a, b : modes of masked maps, (n_patches, n, n//2 + 1)

        Returns
        -------
        bandpowers : (n_patches, n_bins), in the product of the maps' units
        """
        return self.average_plane(a.real * b.real + a.imag * b.imag) / self.area

    def average_plane(self, power: np.ndarray) -> np.ndarray:
        """Average half-plane values over the modes of each bin.

        Parameters
        ----------
        power : (..., n, n//2 + 1)

        Returns
        -------
        means : (..., n_bins)
        """
        flat = power.reshape(-1, self._weight.size) * self._weight
        binned = np.stack([np.bincount(self._index, p, self.bins.n_bins + 1)[:-1] for p in flat])
        return (binned / self.modes).reshape(*power.shape[:-2], self.bins.n_bins)

    def bin_weights(self, b: int) -> np.ndarray:
        """Weights with which a bin averages the modes of the half plane.

        Parameters
        ----------
        b : number of the bin

        Returns
        -------
        weights : (n, n//2 + 1), summing to one
        """
        n = self.geometry.n_pixels
        return ((self._index == b) * self._weight / self.modes[b]).reshape(n, n // 2 + 1)

    def merge(self, values: np.ndarray, factor: int) -> np.ndarray:
        """Join neighbouring bins, weighted by their numbers of modes.

        Parameters
        ----------
        values : bandpowers, (..., n_bins)
        factor : how many bins become one; those left over at the end are dropped

        Returns
        -------
        merged : (..., n_bins // factor)
        """
        n = self.bins.n_bins // factor
        weight = self.modes[: n * factor].reshape(n, factor)
        parts = values[..., : n * factor].reshape(*values.shape[:-1], n, factor)
        return (parts * weight).sum(-1) / weight.sum(-1)

    def auto(self, maps: np.ndarray) -> np.ndarray:
        """Auto bandpowers of masked maps.

        Parameters
        ----------
        maps : (n_patches, n, n)

        Returns
        -------
        bandpowers : (n_patches, n_bins), in the square of the maps' unit
        """
        modes = self.transform(maps)
        return self.cross(modes, modes)


def e_and_b(spectra: FlatSpectra, q: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Modes of E and of B of masked Q and U; the mask leaks E into B.

    Parameters
    ----------
    spectra : of the patch and its mask
    q, u : masked maps, (n_patches, n, n) in µK

    Returns
    -------
    e, b : (n_patches, n, n//2 + 1) each, complex
    """
    cos2, sin2 = polarisation_angles(*mode_vectors(q.shape[-1], spectra.geometry.pixel))
    q_l, u_l = spectra.transform(q), spectra.transform(u)
    return q_l * cos2 + u_l * sin2, -q_l * sin2 + u_l * cos2


def pure_b(spectra: FlatSpectra, q: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Modes of pure B, by :func:`cobaya_cnnlens.simulate.modes.pure_b_modes`.

    Parameters
    ----------
    spectra : of the patch and its mask
    q, u : *unmasked* maps, (n_patches, n, n) in µK

    Returns
    -------
    b : (n_patches, n, n//2 + 1), complex
    """
    return pure_b_modes(q, u, spectra.mask, spectra.geometry.pixel)


class EBPower:
    """Measures E and B of masked patches, and the rotation of their polarisation.

    Parameters
    ----------
    geometry : of the patches
    bins : of κ̂
    mask : that the maps carry already, (n, n)

    Attributes
    ----------
    e_edges, b_edges : of the bins of E, (n_e + 1,), and of the one of B, (2,)
    """

    def __init__(self, geometry: PatchGeometry, bins: Bins, mask: np.ndarray):
        mode = 2.0 * np.pi / (geometry.n_pixels * geometry.pixel)
        parts = max(1, int(bins.width / (LEAST_WIDTH * mode)))
        low, high = (round(fraction * geometry.nyquist) for fraction in NOISE_BAND)
        width = bins.width / parts
        self._e = FlatSpectra(
            geometry, Bins(bins.lmin, width, int((high - bins.lmin) / width)), mask
        )
        self._b = FlatSpectra(geometry, Bins(low, high - low, 1), mask)
        ell = np.hypot(*mode_vectors(geometry.n_pixels, geometry.pixel))
        weight = half_plane_weights(geometry.n_pixels) * np.where(ell < low, ell, 0.0)
        self._rotation_weight = weight / weight.sum() / self._e.area
        self.e_edges, self.b_edges = self._e.bins.edges.astype(float), self._b.bins.edges

    def __call__(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Measure masked patches, with their noise and beam.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        ⟨EE*⟩ of every bin and ⟨BB*⟩ in µK², (n, n_e + 1)
        """
        return np.concatenate(
            [np.hstack([self._e.cross(e, e), self._b.cross(b, b)]) for e, b in self._modes(q, u)]
        )

    def _modes(self, q: np.ndarray, u: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Modes of E and of B of some patches at a time."""
        for start in range(0, len(q), CHUNK):
            yield e_and_b(self._e, q[start : start + CHUNK], u[start : start + CHUNK])

    def rotation(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Measure what tells the rotation of the polarisation of masked patches.

        These are the means X of 2 Re(E B*) and Y of |E|² − |B|² over the modes below the bin of B,
        with weights l. A rotation by α, Q + iU → e^{2iα}(Q + iU), multiplies Y + iX by e^{4iα},
        whatever the mask (docs/noise-bias, eq. 17). At 1 µK-arcmin the error of α is within
        10% of that with the best weights.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        X and Y in µK², (n, 2)
        """
        chunks = []
        for e, b in self._modes(q, u):
            across = 2.0 * (e.real * b.real + e.imag * b.imag)
            along = np.abs(e) ** 2 - np.abs(b) ** 2
            sums = [np.tensordot(values, self._rotation_weight) for values in (across, along)]
            chunks.append(np.stack(sums, axis=1))
        return np.concatenate(chunks)
