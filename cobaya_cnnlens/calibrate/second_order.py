"""Second order of the debias from the data, over the prior of lensing-only ΛCDM.

To first order d' does not depend on C^EE. At other cosmologies a second order in a few amplitudes
w = (v, u) is left,

    r_b = Σ_i l_bi w_i + Σ_{i≤j} s_bij w_i w_j

(docs/noise-bias, eqs 10 and 11). :mod:`.debias` puts it into a release. Arrays in, arrays out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .derivatives import NoiseDerivatives

# Principal changes of C^EE that p̂ tells apart.
N_DISTINGUISHED = 4


@dataclass(frozen=True)
class FitPoints:
    """Test patches made again at other cosmologies, less the same at the fiducial one.

    Attributes
    ----------
    noise : change of d − signal, (n_points, n_patches, n_bins)
    power : change of p̂, (n_points, n_patches, n_power)
    bands : δ_j of the bands, C^κκ before C^EE, (n_points, n_kk + n_ee)
    n_directions : number of principal changes of C^EE that get a second order
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
    ee_directions : P, (n_power, n_v)
    kk_direction : a, (n_kk,); |u| ≤ 1 at the cosmologies of the fit
    patches : l_bi and s_bij in the order of :func:`terms`, (n_patches, n_bins, n_terms)
    """

    ee_directions: np.ndarray
    kk_direction: np.ndarray
    patches: np.ndarray

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

    def change_at(self, power: np.ndarray, kk: np.ndarray) -> np.ndarray:
        """½ l w + s w w at a change of p̂ and of the bands of C^κκ.

        Parameters
        ----------
        power : change of p̂ in µK², (n_power,)
        kk : δ_j of the bands, (n_kk,)

        Returns
        -------
        by patch, (n_patches, n_bins)
        """
        w = np.append(power @ self.ee_directions, kk @ self.kk_direction)
        weight = terms(w[None])[0]
        weight[: len(w)] *= 0.5
        return self.patches @ weight


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


def terms(w: np.ndarray) -> np.ndarray:
    """Amplitudes and their products, side by side.

    Parameters
    ----------
    w : (n, n_w)

    Returns
    -------
    (n, n_w + n_w (n_w + 1)/2)

    Examples
    --------
    >>> terms(np.array([[2.0, 3.0]])).tolist()
    [[2.0, 3.0, 4.0, 6.0, 9.0]]
    """
    products = [w[:, i] * w[:, j] for i, j in pairs(w.shape[1])]
    return np.column_stack([w, *products])


def fit(
    points: FitPoints,
    derivatives: NoiseDerivatives,
    coefficients: np.ndarray,
    amplitudes: Callable[[np.ndarray], np.ndarray],
) -> SecondOrder:
    """The second order that patches at other cosmologies show.

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
    kk, ee = np.split(points.bands, [n_kk], axis=1)
    signal = np.einsum("bj,cj->cb", derivatives.kk.values, kk)
    left = points.noise - points.power @ coefficients.T - signal[:, None]
    ee_directions = amplitudes(principal(ee, N_DISTINGUISHED))[: points.n_directions].T
    (kk_direction,) = principal(kk, 1)
    kk_direction = kk_direction / np.abs(kk @ kk_direction).max()
    w = np.column_stack([points.power.mean(1) @ ee_directions, kk @ kk_direction])
    # The third order is largest at the far points: the nearer ones weigh more.
    weight = 1.0 / np.sqrt(1.0 + (w**2).sum(1))
    solve = np.linalg.pinv(weight[:, None] * terms(w)) * weight
    by_patch = np.einsum("tc,cpb->pbt", solve, left)
    return SecondOrder(ee_directions, kk_direction, by_patch)


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
