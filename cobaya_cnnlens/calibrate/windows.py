"""Bandpower windows: the exact expectation of masked-patch bandpowers under theory.

For an isotropic field of correlation function ξ, the modes of the masked map obey

    ⟨|f_l|²⟩ = Δ⁴ Σ_r A(r) ξ(r) exp(−il·r),   A(r) = Σ_x M(x) M(x + r),

over all pixel separations r: mask coupling and aliasing are both exact. Expanding
ξ = Σ_L (2L+1)/4π C_L P_L(cos r) gives windows W_bL with ⟨d_b⟩ = Σ_L W_bL C_L. The rows do not
sum to one, and must not be made to.
"""

from __future__ import annotations

import numpy as np

from ..simulate.bandpowers import FlatSpectra
from ..simulate.modes import mode_vectors, polarisation_angles

# Part of a bandpower that stored windows may leave out, on each side.
WINDOW_TOLERANCE = 1e-6


def bandpower_windows(spectra: FlatSpectra, lmax: int) -> np.ndarray:
    """Bandpower windows of a scalar field.

    Parameters
    ----------
    spectra : of the masked patch
    lmax : the highest multipole

    Returns
    -------
    W_bL, (n_bins, lmax + 1) from L = 0
    """
    n, pixel = spectra.geometry.n_pixels, spectra.geometry.pixel
    overlap = _mask_overlap(spectra.mask)
    offset = np.fft.fftfreq(2 * n, 1.0 / (2 * n)).round().astype(int)
    distance2 = offset[:, None] ** 2 + offset[None, :] ** 2
    unique, inverse = np.unique(distance2, return_inverse=True)
    # K_b(r): the mean over the bin's modes of exp(−il·r), times A(r), summed over |r| = const.
    kernel = np.empty((spectra.bins.n_bins, len(unique)))
    for b in range(spectra.bins.n_bins):
        weight = spectra.bin_weights(b)
        full = np.zeros((2 * n, n + 1))
        full[::2, ::2] = weight  # the patch's modes are every second one of the doubled grid
        cosines = np.fft.fft2(_whole_plane(full, 2 * n)).real
        kernel[b] = np.bincount(inverse.ravel(), (cosines * overlap).ravel(), len(unique))
    kernel *= pixel**4 / spectra.area

    mu = np.cos(np.sqrt(unique) * pixel)
    windows = np.empty((spectra.bins.n_bins, lmax + 1))
    previous, current = np.zeros_like(mu), np.ones_like(mu)  # P_{−1}, P_0
    for L in range(lmax + 1):
        windows[:, L] = kernel @ current * ((2 * L + 1) / (4.0 * np.pi))
        previous, current = current, ((2 * L + 1) * mu * current - L * previous) / (L + 1)
    return windows


def trim_windows(windows: np.ndarray, clkk: np.ndarray) -> np.ndarray:
    """Windows without their far wings, ``WINDOW_TOLERANCE`` of the bandpower on each side.

    Parameters
    ----------
    windows : W_bL, (n_bins, lmax + 1)
    clkk : fiducial C_L^κκ from L = 0

    Returns
    -------
    (n_bins, lmax + 1), zero beyond
    """
    trimmed = np.zeros_like(windows)
    for b, row in enumerate(windows):
        power = np.abs(row * clkk[: len(row)])
        cumulative = np.cumsum(power) / power.sum()
        start = np.searchsorted(cumulative, WINDOW_TOLERANCE)
        stop = np.searchsorted(cumulative, 1.0 - WINDOW_TOLERANCE) + 1
        trimmed[b, start:stop] = row[start:stop]
    return trimmed


def expected_e_and_b(
    spectra: FlatSpectra, clee: np.ndarray, clbb: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Expected pseudo-bandpowers of E and B from masked Q and U.

    Parameters
    ----------
    spectra : of the masked patch
    clee, clbb : spectra from l = 0 in µK² of the field that was masked (beam included)

    Returns
    -------
    of E and of B, each (n_bins,) in µK²
    """
    n, pixel = spectra.geometry.n_pixels, spectra.geometry.pixel
    correlations = _spin2_correlations(clee, clbb, n, pixel)
    overlap = _mask_overlap(spectra.mask)
    qq, uu, qu = (
        np.fft.fft2(overlap * xi).real[::2, ::2][:, : n // 2 + 1] * pixel**4 for xi in correlations
    )
    cos2, sin2 = polarisation_angles(*mode_vectors(n, pixel))
    ee = cos2**2 * qq + sin2**2 * uu + 2.0 * cos2 * sin2 * qu
    bb = sin2**2 * qq + cos2**2 * uu - 2.0 * cos2 * sin2 * qu
    return spectra.average_plane(ee) / spectra.area, spectra.average_plane(bb) / spectra.area


def expected_pure_b(spectra: FlatSpectra, clbb: np.ndarray) -> np.ndarray:
    """Expected bandpowers of pure B: the mask couples l²B, not B.

    Power beyond the Nyquist multipole is left out: l² is not defined for aliased modes.

    Parameters
    ----------
    spectra : of the masked patch
    clbb : spectrum from l = 0 in µK² of the field that was masked

    Returns
    -------
    (n_bins,) in µK²
    """
    clbb = clbb[: int(spectra.geometry.nyquist) + 1]
    n, pixel = spectra.geometry.n_pixels, spectra.geometry.pixel
    ell = np.arange(len(clbb), dtype=float)
    xi = _scalar_correlation(clbb * ell**4, n, pixel)
    power = np.fft.fft2(_mask_overlap(spectra.mask) * xi).real[::2, ::2][:, : n // 2 + 1]
    l2 = np.sum(np.square(mode_vectors(n, pixel)), axis=0)
    l2[0, 0] = np.inf
    return spectra.average_plane(power / l2**2) * pixel**4 / spectra.area


def _mask_overlap(mask: np.ndarray) -> np.ndarray:
    """A(r) on the (2n)² grid of separations in FFT order."""
    modes = np.fft.rfft2(mask, s=(2 * len(mask),) * 2)
    return np.fft.irfft2(np.abs(modes) ** 2, s=(2 * len(mask),) * 2)


def _whole_plane(half: np.ndarray, n: int) -> np.ndarray:
    """Half plane of weights, mirror images counted in, → symmetric whole plane (n, n)."""
    whole = np.zeros((n, n))
    whole[:, : half.shape[1]] = half
    mirror = np.roll(whole[::-1, ::-1], (1, 1), axis=(0, 1))
    return 0.5 * (whole + mirror)


def _wide_grid(n: int, pixel: float) -> tuple[int, float, np.ndarray, np.ndarray]:
    """Modes of a box 16 patches wide at half the pixel: fine enough in l, and beyond lmax."""
    size = 32 * n
    return (size, pixel / 2.0, *mode_vectors(size, pixel / 2.0))


def _separations(xi: np.ndarray, n: int) -> np.ndarray:
    """ξ on the wide grid → at the patch's (2n)² pixel separations, FFT order."""
    index = 2 * np.fft.fftfreq(2 * n, 1.0 / (2 * n)).round().astype(int)
    return xi[np.ix_(index, index)]


def _scalar_correlation(cl: np.ndarray, n: int, pixel: float) -> np.ndarray:
    size, fine, ly, lx = _wide_grid(n, pixel)
    power = np.interp(np.hypot(ly, lx), np.arange(len(cl)), cl, right=0.0)
    return _separations(np.fft.irfft2(power, s=(size, size)) / fine**2, n)


def _spin2_correlations(
    clee: np.ndarray, clbb: np.ndarray, n: int, pixel: float
) -> list[np.ndarray]:
    """⟨QQ⟩, ⟨UU⟩, ⟨QU⟩ at the patch's pixel separations."""
    size, fine, ly, lx = _wide_grid(n, pixel)
    ell = np.hypot(ly, lx)
    ee = np.interp(ell, np.arange(len(clee)), clee, right=0.0)
    bb = np.interp(ell, np.arange(len(clbb)), clbb, right=0.0)
    cos2, sin2 = polarisation_angles(ly, lx)
    # Q = E cos − B sin, U = E sin + B cos
    spectra = (
        ee * cos2**2 + bb * sin2**2,
        ee * sin2**2 + bb * cos2**2,
        (ee - bb) * cos2 * sin2,
    )
    return [_separations(np.fft.irfft2(p, s=(size, size)) / fine**2, n) for p in spectra]
