"""Second order of the noise debias along the direction in which ω_c moves the spectra.

The banded derivatives are first order. A network trained at one cosmology answers to others with
less than its best in either direction, and what that costs is even in Δω_c. It is measured as a
whole: the skies of the ``derivatives`` set are made again, with the same phases and noise, at
ω_c ± step, and what the first order leaves is averaged over the two signs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import products
from ..pipeline import skies
from ..pipeline.run import Run
from ..theory.camb import Cosmology
from .bandpowers import measurement_recipe
from .derivatives import SET, Bench, NoiseDerivatives

KIND = "curvature"
ALGORITHM = 1


@dataclass(frozen=True)
class Curvature:
    """Second order of the noise debias: ``patches`` (n_patches, n_bins), whose mean Q is; the
    directions in C^κκ and C^EE that give the amplitude t, (n_bands,) each; and what the whole
    correction is at ω_c + step, ``shift`` (n_patches, n_bins)."""

    kk_direction: np.ndarray
    ee_direction: np.ndarray
    patches: np.ndarray
    shift: np.ndarray


def path(run: Run, index: int) -> Path:
    """Where the bandpowers of a derivatives sky at shifted ω_c lie."""
    return run.config.products / "curvature" / f"sky_{index:04d}.h5"


def recipe(run: Run, index: int) -> dict:
    """What determines the bandpowers of a derivatives sky at shifted ω_c."""
    return {
        "sky": skies.recipe(run, SET, index),
        **measurement_recipe(run),
        "curvature_algorithm": ALGORITHM,
        "omch2_step": run.config.derivatives.omch2_step,
        **({"patches": n} if (n := run.config.derivatives.patches) is not None else {}),
    }


def measure(run: Run, index: int, nthreads: int = 0) -> None:
    """Bandpowers of one sky of the ``derivatives`` set at ω_c − step and ω_c + step.

    The product holds ``auto`` (of κ̂) and ``truth``, each (2, n_patches, n_bins).
    """
    run.config.check_index(SET, index)
    where, wanted = path(run, index), recipe(run, index)
    if products.exists(where, KIND, wanted):
        return
    seen = []
    for omch2 in run.config.shifted_omch2():
        cosmology = run.config.cosmology.vary(omch2=omch2)
        seen.append(Bench(run, index, nthreads, cosmology).unperturbed())
    arrays = {name: np.stack([s[name] for s in seen]) for name in ("auto", "truth")}
    products.write_product(where, KIND, wanted, arrays)


def read(run: Run, response: np.ndarray, first: NoiseDerivatives) -> Curvature:
    """What the first order leaves at ω_c ± step, from all skies of the set."""
    return curvature_of(run, first, shifted_noise(run, response))


def curvature_of(
    run: Run, first: NoiseDerivatives, shifted_noise: np.ndarray, by_kk: bool = False
) -> Curvature:
    """What the first order leaves of the noise debias at ω_c − step and ω_c + step,
    (2, n_patches, n_bins); with ``by_kk`` the amplitude is that of C^κκ alone."""
    shifted = (run.config.cosmology.vary(omch2=omch2) for omch2 in run.config.shifted_omch2())
    changes = np.array([all_band_changes(run, first, cosmology) for cosmology in shifted])
    n_kk = len(first.kk.edges) - 1
    seen = changes * (np.arange(changes.shape[1]) < n_kk) if by_kk else changes
    along = direction(*seen)
    change = shifted_noise - first.centre
    bands = np.concatenate([first.kk.patches, first.ee.patches], axis=2)
    first_order = np.einsum("pbj,sj->spb", bands, changes)
    amplitudes = changes @ along
    patches = second_order(change - first_order, amplitudes)
    shift = first_order[1] + patches * amplitudes[1] ** 2
    return Curvature(along[:n_kk], along[n_kk:], patches, shift)


def shifted_noise(run: Run, response: np.ndarray) -> np.ndarray:
    """Noise debias at ω_c − step and ω_c + step of the ``derivatives`` skies' patches,
    (2, n_patches, n_bins)."""
    shifted = []
    for index in range(run.config.skies.derivatives):
        where, wanted = path(run, index), recipe(run, index)
        with products.open_product(where, KIND, wanted, run.config.shipped) as product:
            shifted.append(product.array("auto") / response**2 - product.array("truth"))
    return np.concatenate(shifted, axis=1)


def all_band_changes(run: Run, first: NoiseDerivatives, cosmology: Cosmology) -> np.ndarray:
    """δ_j of the derivatives' bands at a cosmology, C^κκ before C^EE, (n_bands,)."""
    moved, fiducial = run.spectra(cosmology), run.spectra()
    kk = band_changes(first.kk.edges, moved.kk, fiducial.kk)
    return np.concatenate([kk, band_changes(first.ee.edges, moved.ee, fiducial.ee)])


def band_changes(edges: np.ndarray, cl: np.ndarray, fiducial: np.ndarray) -> np.ndarray:
    """δ_j = Σ (2l+1) C_l / Σ (2l+1) C_l^fid − 1 over each band, (n_bands,)."""
    weight = 2.0 * np.arange(len(fiducial)) + 1.0
    bands = [slice(a, b) for a, b in itertools.pairwise(edges)]
    ratio = [(weight[b] * cl[b]).sum() / (weight[b] * fiducial[b]).sum() for b in bands]
    return np.array(ratio) - 1.0


def direction(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """a with t = a·δ, the amplitude of δ along (above − below)/2, ±1 at the two ends; (n_bands,).

    Parameters
    ----------
    below, above : relative changes of band power at ω_c − step and ω_c + step, (n_bands,)
    """
    along = 0.5 * (above - below)
    return along / (along @ along)


def second_order(residuals: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Q with residual = Q t², from both signs together; (n_patches, n_bins).

    Parameters
    ----------
    residuals : what the first order leaves of d_b − signal, (2, n_patches, n_bins)
    amplitudes : t at ω_c − step and at ω_c + step, (2,)
    """
    t2 = amplitudes**2
    return np.einsum("s,spb->pb", t2, residuals) / (t2 @ t2)
