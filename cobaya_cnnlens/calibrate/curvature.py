"""Second order of the noise bias along the direction in which ω_c moves C^κκ.

The banded derivatives are first order. A network that was trained at one cosmology does less well
at others on either side, and that loss is even in Δω_c. The skies of the ``derivatives`` set are
made again at ω_c ± step with the same phases and noise. What the first order leaves is averaged
over the two signs (Q of docs/noise-bias, eq. 13, where there is no second order over the prior).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .derivatives import NoiseDerivatives


@dataclass(frozen=True)
class Curvature:
    """Second order of the noise bias along ω_c.

    Attributes
    ----------
    kk_direction : a of the amplitude u = a·δ of the changes of C^κκ, (n_kk,)
    patches : Q by patch, (n_patches, n_bins)
    left : first order in u that the derivatives leave, by patch, (n_patches, n_bins). The model
        does not contain it; its scatter belongs to the error of the model
    """

    kk_direction: np.ndarray
    patches: np.ndarray
    left: np.ndarray


def curvature_of(
    derivatives: NoiseDerivatives, shifted: np.ndarray, changes: np.ndarray
) -> Curvature:
    """What the first order leaves of the noise bias at ω_c − step and ω_c + step.

    The model has no part of C^EE, so the mean of the derivatives in C^EE stays out of the first
    order; their scatter, which the shifted skies share, is subtracted.

    Parameters
    ----------
    derivatives : of n_patches patches
    shifted : noise bias of the same patches at ω_c ∓ step, (2, n_patches, n_bins)
    changes : δ_j of the bands there, C^κκ before C^EE, (2, n_kk + n_ee)

    Returns
    -------
    the second order, by patch
    """
    kk, ee = derivatives.kk.patches, derivatives.ee.patches
    n_kk = kk.shape[2]
    along = direction(*changes[:, :n_kk])
    bands = np.concatenate([kk, ee - ee.mean(0)], axis=2)
    left = shifted - derivatives.centre - np.einsum("pbj,sj->spb", bands, changes)
    amplitudes = changes[:, :n_kk] @ along
    first = np.einsum("s,spb->pb", amplitudes, left) / (amplitudes @ amplitudes)
    return Curvature(along, second_order(left, amplitudes), first)


def change_above(
    derivatives: NoiseDerivatives, shifted: np.ndarray, changes: np.ndarray
) -> np.ndarray:
    """Change of the noise bias at ω_c + step, with a second order from both signs.

    Parameters
    ----------
    derivatives, shifted, changes : as of :func:`curvature_of`

    Returns
    -------
    change : by patch, (n_patches, n_bins)
    """
    bands = np.concatenate([derivatives.kk.patches, derivatives.ee.patches], axis=2)
    first_order = np.einsum("pbj,sj->spb", bands, changes)
    amplitudes = changes @ direction(*changes)
    patches = second_order(shifted - derivatives.centre - first_order, amplitudes)
    return first_order[1] + patches * amplitudes[1] ** 2


def band_changes(edges: Sequence[int], cl: np.ndarray, fiducial: np.ndarray) -> np.ndarray:
    """δ_j = Σ (2l+1) C_l / Σ (2l+1) C_l^fid − 1 over each band (docs/noise-bias, eq. 9).

    Parameters
    ----------
    edges : band j holds edges[j] ≤ l < edges[j+1], (n_bands + 1,)
    cl, fiducial : spectra from l = 0

    Returns
    -------
    (n_bands,)

    Examples
    --------
    >>> band_changes([2, 4, 6], np.full(6, 1.1), np.ones(6)).round(3).tolist()
    [0.1, 0.1]
    """
    weight = 2.0 * np.arange(len(fiducial)) + 1.0
    bands = [slice(a, b) for a, b in itertools.pairwise(edges)]
    ratio = [(weight[b] * cl[b]).sum() / (weight[b] * fiducial[b]).sum() for b in bands]
    return np.array(ratio) - 1.0


def direction(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """a with u = a·δ, the amplitude of δ along (above − below)/2, about ±1 at the two ends.

    Parameters
    ----------
    below, above : relative changes of band power at ω_c − step and ω_c + step, (n_bands,)

    Returns
    -------
    (n_bands,)

    Examples
    --------
    >>> direction(np.array([-0.1, -0.2]), np.array([0.1, 0.2])).round(2).tolist()
    [2.0, 4.0]
    """
    along = 0.5 * (above - below)
    return along / (along @ along)


def second_order(residuals: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Q with residual = Q u², by least squares from both signs together.

    Parameters
    ----------
    residuals : what the first order leaves of d_b − signal, (2, n_patches, n_bins)
    amplitudes : u at ω_c − step and at ω_c + step, (2,)

    Returns
    -------
    (n_patches, n_bins)
    """
    squares = amplitudes**2
    return np.einsum("s,spb->pb", squares, residuals) / (squares @ squares)
