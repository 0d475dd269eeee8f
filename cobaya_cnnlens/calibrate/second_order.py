"""Response surface of the debiased bandpowers over the prior of lensing-only ΛCDM.

Nearly all changes of the spectra lie along a few directions. Their amplitudes are w = (v, u): v of
C^EE and u of C^κκ. The derivatives in the bands explain the change of d' to first order. A
quadratic polynomial, the response surface, describes the rest:

    r_b = Σ_i l_bi w_i + Σ_{i≤j} s_bij w_i w_j

(docs/noise-bias, eqs 10 and 11). :mod:`.debias` puts the coefficients into a release. This module
takes and returns arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..likelihood.spectra import terms
from .derivatives import NoiseDerivatives

# Directions of C^EE in the fit of v to p̂. The fit marginalises over those beyond n_directions.
N_DISTINGUISHED = 4
# Part of the variance of the coefficients that a release may leave out.
LEAST_VARIANCE = 0.01
# Significant digits of the error's modes.
ERROR_DIGITS = 3


@dataclass(frozen=True)
class FitPoints:
    """Test patches made again at other cosmologies, less the same at the fiducial one.

    Attributes
    ----------
    noise : change of d − signal, (n_points, n_patches, n_bins)
    power : change of p̂, (n_points, n_patches, n_power)
    bands : δ_j of the bands, C^κκ before C^EE, (n_points, n_kk + n_ee)
    n_directions : number of principal changes of C^EE that get an amplitude
    """

    noise: np.ndarray
    power: np.ndarray
    bands: np.ndarray
    n_directions: int


@dataclass(frozen=True)
class SecondOrder:
    """Amplitudes of docs/noise-bias, eq. 10, and coefficients of eq. 11 by patch.

    Attributes
    ----------
    ee_directions : P, (n_power, n_v); |v| ≤ 1 at the points of the fit
    kk_direction : a, (n_kk,); |u| ≤ 1 at the points of the fit
    ee_changes : change of the bands of C^EE by v = 1, (n_v, n_ee)
    patches : l_bi and s_bij in the order of :func:`.terms`, (n_patches, n_bins, n_terms)
    weight : f of docs/noise-bias, the weight of l_bi when it is added to the derivatives in the
        bands: n_s/(n_s + n_d), for n_s patches of the surface and n_d of the derivatives
    """

    ee_directions: np.ndarray
    kk_direction: np.ndarray
    ee_changes: np.ndarray
    patches: np.ndarray
    weight: float

    @property
    def n_v(self) -> int:
        """Number of amplitudes v."""
        return self.ee_directions.shape[1]

    @property
    def values(self) -> np.ndarray:
        """Means over the patches, (n_bins, n_terms)."""
        return self.patches.mean(0)

    @property
    def linear(self) -> np.ndarray:
        """l_bi, (n_bins, n_v + 1), u last."""
        return self.values[:, : self.n_v + 1]

    def product(self, i: int, j: int) -> np.ndarray:
        """One product's coefficients.

        Parameters
        ----------
        i, j : of two amplitudes, i ≤ j, where n_v is the number of u

        Returns
        -------
        s_bij by patch, (n_patches, n_bins)
        """
        number: int = pairs(self.n_v + 1).index((i, j))
        return self.patches[..., self.n_v + 1 + number]

    def amplitudes(self, power: np.ndarray, kk: np.ndarray) -> np.ndarray:
        """Amplitudes of a change of the spectra.

        Parameters
        ----------
        power : change of p̂ in µK², (n_power,)
        kk : δ_j of the bands of C^κκ, (n_kk,)

        Returns
        -------
        w = (v, u), (n_v + 1,)
        """
        return np.append(power @ self.ee_directions, kk @ self.kk_direction)

    def along(self, w: np.ndarray) -> np.ndarray:
        """Change of the bands of both spectra along the directions.

        Parameters
        ----------
        w : (v, u), (n_v + 1,)

        Returns
        -------
        δ_j, C^κκ before C^EE, (n_kk + n_ee,)
        """
        *v, u = w
        kk = u * self.kk_direction / (self.kk_direction @ self.kk_direction)
        return np.concatenate([kk, v @ self.ee_changes])

    def weighted(self) -> np.ndarray:
        """Coefficients by patch, the linear ones times :attr:`weight`, (n_patches, n_bins,
        n_terms)."""
        weight = np.ones(self.patches.shape[2])
        weight[: self.n_v + 1] = self.weight
        return self.patches * weight


def pairs(n: int) -> list[tuple[int, int]]:
    """Indices of the products of amplitudes.

    Parameters
    ----------
    n : number of amplitudes

    Returns
    -------
    i ≤ j, in the order of the products

    Examples
    --------
    >>> pairs(2)
    [(0, 0), (0, 1), (1, 1)]
    """
    return list(itertools.combinations_with_replacement(range(n), 2))


def fit(
    points: FitPoints,
    derivatives: NoiseDerivatives,
    coefficients: np.ndarray,
    amplitudes: Callable[[np.ndarray], np.ndarray],
) -> SecondOrder:
    """The response surface that patches with other spectra show.

    Parameters
    ----------
    points : the patches
    derivatives : first order of d'
    coefficients : G, (n_bins, n_power)
    amplitudes : what p̂ − p^fid tells of the amplitudes of directions of C^EE's changes,
        (n, n_ee) → (n, n_power)

    Returns
    -------
    amplitudes and coefficients
    """
    n_kk = derivatives.kk.patches.shape[2]
    kk = points.bands[:, :n_kk]
    signal = np.einsum("bj,cj->cb", derivatives.kk.values, kk)
    left = points.noise - points.power @ coefficients.T - signal[:, None]
    ee_changes = principal(points.bands[:, n_kk:], N_DISTINGUISHED)
    ee_directions = amplitudes(ee_changes)[: points.n_directions].T
    (kk_direction,) = principal(points.bands[:, :n_kk], 1)
    w = np.column_stack([points.power.mean(1) @ ee_directions, kk @ kk_direction])
    # Amplitudes are at most one at the points of the fit.
    *largest, largest_u = np.abs(w).max(0)
    w /= np.append(largest, largest_u)
    # The third order is largest at the far points: the nearer ones weigh more.
    nearness = 1.0 / np.sqrt(1.0 + (w**2).sum(1))
    solve = np.linalg.pinv(nearness[:, None] * terms(w)) * nearness
    n_surface, n_derivatives = points.noise.shape[1], len(derivatives.kk.patches)
    return SecondOrder(
        ee_directions / largest,
        kk_direction / largest_u,
        ee_changes[: points.n_directions] * np.transpose([largest]),
        np.einsum("tc,cpb->pbt", solve, left),
        n_surface / (n_surface + n_derivatives),
    )


def error_modes(by_patch: np.ndarray) -> np.ndarray:
    """The Monte-Carlo covariance of the mean of some coefficients, as a factor.

    Modes that hold together less than ``LEAST_VARIANCE`` of the variance are left out.

    Parameters
    ----------
    by_patch : coefficients, (n_patches, n_bins, n_terms)

    Returns
    -------
    F with covariance Σ_r F_tbr F_t'b'r, (n_terms, n_bins, n_modes)
    """
    n, n_bins, n_terms = by_patch.shape
    scale = by_patch.std(0, ddof=1)
    flat = ((by_patch - by_patch.mean(0)) / scale).reshape(n, -1)
    _, size, modes = np.linalg.svd(flat, full_matrices=False)
    left_out = np.cumsum(size[::-1] ** 2)[::-1]  # with each mode and all after it
    kept = np.count_nonzero(left_out > LEAST_VARIANCE * left_out[0])
    factor = modes[:kept].T * size[:kept] / np.sqrt(n * (n - 1.0))
    factor = (factor.reshape(n_bins, n_terms, kept) * scale[..., None]).transpose(1, 0, 2)
    # Few digits of an error suffice, and keep a release small.
    digits = 10.0 ** (ERROR_DIGITS - 1 - np.floor(np.log10(np.abs(factor))))
    return np.rint(factor * digits) / digits


def principal(changes: np.ndarray, n: int) -> np.ndarray:
    """Orthonormal directions that hold most of some changes.

    Parameters
    ----------
    changes : (n_points, n_bands)
    n : number of directions

    Returns
    -------
    (n, n_bands), the largest entry of each positive
    """
    directions = np.linalg.svd(changes, full_matrices=False)[2][:n]
    largest = np.abs(directions).argmax(1)
    return directions * np.sign(directions[np.arange(n), largest])[:, None]
