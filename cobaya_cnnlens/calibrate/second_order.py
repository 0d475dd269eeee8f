"""Second order of the debias from the data, over the prior of lensing-only ΛCDM.

To first order d' = d − G (p̂ − p^fid) does not depend on C^EE. At other cosmologies a second order
in a few amplitudes w is left. They are v = Pᵀ (p̂ − p^fid), which the maps' own power tells of the
principal changes of C^EE, and u = a·δ^κκ of the principal change of C^κκ:

    r_b = Σ_i l_bi w_i + Σ_{i≤j} s_bij w_i w_j.

The fit is to test skies that were made again at other cosmologies. Their patches share phases with
fiducial ones, but not with those that gave the first order. The l_b are therefore the difference of
two independent measurements of the first order, and half of them is added: the mean of both.
Products of v are subtracted from the data, u² is the model's curvature, and u v changes the model's
derivative in C^κκ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .derivatives import NoiseDerivatives

# Principal changes of C^EE that are told apart in p̂.
N_SEEN = 4


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
    """Amplitudes, and coefficients by patch.

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
        return self.ee_directions.shape[1]

    @property
    def values(self) -> np.ndarray:
        """Means over the patches, (n_bins, n_terms)."""
        return self.patches.mean(0)

    @property
    def linear(self) -> np.ndarray:
        """l_bi, (n_bins, n_v + 1), u last."""
        return self.values[:, : self.n_v + 1]

    def product(self, *pair: int) -> np.ndarray:
        """s_bij by patch, (n_patches, n_bins)."""
        return self.patches[..., self.n_v + 1 + pairs(self.n_v + 1).index(pair)]

    def change_at(self, power: np.ndarray, kk: np.ndarray) -> np.ndarray:
        """½ l w + s w w by patch at a change of p̂ and of the bands of C^κκ, (n_patches, n_bins)."""
        w = np.append(power @ self.ee_directions, kk @ self.kk_direction)
        weight = terms(w[None])[0]
        weight[: len(w)] *= 0.5
        return self.patches @ weight


def pairs(n: int) -> list[tuple[int, int]]:
    """i ≤ j of n amplitudes, in the order of their products."""
    return list(itertools.combinations_with_replacement(range(n), 2))


def terms(w: np.ndarray) -> np.ndarray:
    """Amplitudes (n, n_w) and their products, (n, n_w + n_w (n_w + 1)/2)."""
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
    """
    n_kk = derivatives.kk.patches.shape[2]
    kk, ee = np.split(points.bands, [n_kk], axis=1)
    signal = np.einsum("bj,cj->cb", derivatives.kk.values, kk)
    left = points.noise - points.power @ coefficients.T - signal[:, None]
    ee_directions = amplitudes(principal(ee, N_SEEN))[: points.n_directions].T
    (kk_direction,) = principal(kk, 1)
    kk_direction = kk_direction / np.abs(kk @ kk_direction).max()
    w = np.column_stack([points.power.mean(1) @ ee_directions, kk @ kk_direction])
    # The third order is largest at the far points: the nearer ones weigh more.
    weight = 1.0 / np.sqrt(1.0 + (w**2).sum(1))
    solve = np.linalg.pinv(weight[:, None] * terms(w)) * weight
    by_patch = np.einsum("tc,cpb->pbt", solve, left)
    return SecondOrder(ee_directions, kk_direction, by_patch)


def principal(changes: np.ndarray, n: int) -> np.ndarray:
    """The n orthonormal directions with most of the changes (n_points, n_bands), (n, n_bands); the
    largest entry of each is positive."""
    directions = np.linalg.svd(changes, full_matrices=False)[2][:n]
    largest = np.abs(directions).argmax(1)
    return directions * np.sign(directions[np.arange(n), largest])[:, None]
