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
from pathlib import Path
from typing import Any

import numpy as np

from .. import products
from ..pipeline import skies
from ..pipeline.run import Run
from ..theory.camb import Cosmology
from .bandpowers import measurement_recipe
from .derivatives import SET, NoiseDerivatives, PerturbedSky

KIND = "curvature"
ALGORITHM = 1


@dataclass(frozen=True)
class Curvature:
    """Second order of the noise bias along ω_c.

    Attributes
    ----------
    kk_direction : a of the amplitude u = a·δ of the changes of C^κκ, (n_kk,)
    patches : Q by patch, (n_patches, n_bins)
    """

    kk_direction: np.ndarray
    patches: np.ndarray


def path(run: Run, index: int) -> Path:
    """Where the bandpowers of a derivatives sky at shifted ω_c lie.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "curvature" / f"sky_{index:04d}.h5"


def recipe(run: Run, index: int) -> dict[str, Any]:
    """What determines the bandpowers of a derivatives sky at shifted ω_c.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky

    Returns
    -------
    mapping for JSON
    """
    return {
        "sky": skies.recipe(run, SET, index),
        **measurement_recipe(run),
        "curvature_algorithm": ALGORITHM,
        "omch2_step": run.config.derivatives.omch2_step,
        **({"patches": n} if (n := run.config.derivatives.patches) is not None else {}),
    }


def measure(run: Run, index: int, nthreads: int = 0) -> None:
    """Measure the bandpowers of one sky of the ``derivatives`` set at ω_c − step and ω_c + step.

    The product holds ``auto`` (of κ̂) and ``truth``, each (2, n_patches, n_bins).

    Parameters
    ----------
    run : a configuration with its estimator
    index : of the sky
    nthreads : of transforms; 0 for all
    """
    run.config.check_index(SET, index)
    file, made_of = path(run, index), recipe(run, index)
    if products.exists(file, KIND, made_of):
        return
    skies_at = []
    for omch2 in run.config.shifted_omch2():
        cosmology = run.config.cosmology.vary(omch2=omch2)
        skies_at.append(PerturbedSky(run, index, nthreads, cosmology).unperturbed())
    arrays = {name: np.stack([sky[name] for sky in skies_at]) for name in ("auto", "truth")}
    products.write_product(file, KIND, made_of, arrays)


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
    return Curvature(along, second_order(left, changes[:, :n_kk] @ along))


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


def shifted_noise(run: Run, response: np.ndarray) -> np.ndarray:
    """Noise bias of the patches of the ``derivatives`` skies at ω_c − step and ω_c + step.

    Parameters
    ----------
    run : a configuration
    response : R_b, (n_bins,)

    Returns
    -------
    (2, n_patches, n_bins)

    Raises
    ------
    products.ProductError
        if a sky has not been measured, or was with another network or configuration
    """
    shifted = []
    for index in range(run.config.skies.derivatives):
        file, made_of = path(run, index), recipe(run, index)
        with products.open_product(file, KIND, made_of, run.config.shipped) as product:
            shifted.append(product.array("auto") / response**2 - product.array("truth"))
    return np.concatenate(shifted, axis=1)


def changes_at(run: Run, cosmology: Cosmology) -> np.ndarray:
    """δ_j of the configuration's bands at a cosmology (docs/noise-bias, eq. 9).

    Parameters
    ----------
    run : a configuration
    cosmology : where CAMB runs, unless its spectra are kept

    Returns
    -------
    C^κκ before C^EE, (n_kk + n_ee,)
    """
    moved, fiducial, settings = run.spectra(cosmology), run.spectra(), run.config.derivatives
    kk = band_changes(settings.kk_edges, moved.kk, fiducial.kk)
    return np.concatenate([kk, band_changes(settings.ee_edges, moved.ee, fiducial.ee)])


def shifted_changes(run: Run) -> np.ndarray:
    """:func:`changes_at` ω_c − step and ω_c + step.

    Parameters
    ----------
    run : a configuration

    Returns
    -------
    (2, n_kk + n_ee)
    """
    shifted = (run.config.cosmology.vary(omch2=omch2) for omch2 in run.config.shifted_omch2())
    return np.array([changes_at(run, cosmology) for cosmology in shifted])


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
