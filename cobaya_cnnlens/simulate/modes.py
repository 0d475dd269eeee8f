"""Modes of flat patches: multipoles, the angles of E and B, B without leakage."""

from __future__ import annotations

import numpy as np


def mode_vectors(n: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Components of l of the half plane's modes.

    Parameters
    ----------
    n : pixels on a side
    pixel : side of a pixel in radians

    Returns
    -------
    ly, lx : (n, n//2 + 1) each
    """
    ly = 2.0 * np.pi * np.fft.fftfreq(n, pixel)
    lx = 2.0 * np.pi * np.fft.rfftfreq(n, pixel)
    ly, lx = np.meshgrid(ly, lx, indexing="ij")
    return ly, lx


def plane_vectors(n: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Components of l of the whole plane's modes.

    Parameters
    ----------
    n : pixels on a side
    pixel : side of a pixel in radians

    Returns
    -------
    ly, lx : (n, n) each
    """
    l = 2.0 * np.pi * np.fft.fftfreq(n, pixel)
    ly, lx = np.meshgrid(l, l, indexing="ij")
    return ly, lx


def half_plane_weights(n: int) -> np.ndarray:
    """How many modes of a real map each mode of the half plane stands for.

    Those of columns 0 and n/2 stand for themselves, the others also for their mirror images.

    Parameters
    ----------
    n : pixels on a side

    Returns
    -------
    weights : (n, n//2 + 1), one or two
    """
    weight = np.full((n, n // 2 + 1), 2.0)
    weight[:, 0] = 1.0
    if n % 2 == 0:
        weight[:, -1] = 1.0
    return weight


def masked_area(mask: np.ndarray, pixel: float) -> float:
    """Area n²Δ²⟨M²⟩ by which |f_l|² of masked maps is divided to give their power.

    Parameters
    ----------
    mask : (n, n)
    pixel : side Δ of a pixel in radians

    Returns
    -------
    area : in sr
    """
    return float((len(mask) * pixel) ** 2 * np.mean(mask**2))


def polarisation_angles(ly: np.ndarray, lx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos 2ϑ and sin 2ϑ of l, with ϑ from south (−y) towards east (x); zero at l = 0.

    E_l = Q_l cos 2ϑ + U_l sin 2ϑ,  B_l = −Q_l sin 2ϑ + U_l cos 2ϑ.

    Parameters
    ----------
    ly, lx : components of l, of any one shape

    Returns
    -------
    cos, sin : of the same shape
    """
    l2 = ly**2 + lx**2
    with np.errstate(invalid="ignore", divide="ignore"):
        cos2 = np.where(l2 > 0, (ly**2 - lx**2) / l2, 0.0)
        sin2 = np.where(l2 > 0, -2.0 * lx * ly / l2, 0.0)
    return cos2, sin2


def pure_b_modes(q: np.ndarray, u: np.ndarray, mask: np.ndarray, pixel: float) -> np.ndarray:
    """Modes Δ² Σ B(x) e^{−il·x} of pure B.

    B^pure_l = l⁻² ∫ M(x) (−∇²B)(x) e^{−il·x} d²x, with the derivatives moved onto M e^{−il·x}
    (Smith 2006, astro-ph/0511629). No E leaks into B if the mask and its slope vanish at the edge
    and around pixels without data.

    Parameters
    ----------
    q, u : *unmasked* maps, (..., n, n) in µK
    mask : (n, n)
    pixel : side Δ of a pixel in radians

    Returns
    -------
    b : (..., n, n//2 + 1), complex
    """
    ly, lx = mode_vectors(q.shape[-1], pixel)
    m = mask
    my, mx, myy, mxx, myx = _mask_derivatives(m, pixel)

    def ft(maps: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(maps) * pixel**2

    # χ = −∇²B = cos and sin parts of the second derivatives of Q and U in the patch's frame:
    # −∇²B ↔ l²B_l = U (ly² − lx²) + 2 lx ly Q.
    u_part = (
        ft(u * (mxx - myy)) - 2j * (lx * ft(u * mx) - ly * ft(u * my)) + (ly**2 - lx**2) * ft(u * m)
    )
    q_part = (
        -2.0 * ft(q * myx) + 2j * (lx * ft(q * my) + ly * ft(q * mx)) + 2.0 * lx * ly * ft(q * m)
    )
    l2 = ly**2 + lx**2
    return np.where(l2 > 0, (u_part + q_part) / np.where(l2 > 0, l2, 1.0), 0.0)


def _mask_derivatives(mask: np.ndarray, pixel: float) -> tuple[np.ndarray, ...]:
    """M_y, M_x, M_yy, M_xx, M_yx: Fourier derivatives of the mask continued by zeros, exact for the
    band-limited interpolant of its samples."""
    n = len(mask)
    ly, lx = mode_vectors(2 * n, pixel)
    modes = np.fft.rfft2(mask, s=(2 * n, 2 * n))
    factors = (1j * ly, 1j * lx, -(ly**2), -(lx**2), -ly * lx)
    return tuple(np.fft.irfft2(f * modes, s=(2 * n, 2 * n))[:n, :n] for f in factors)
