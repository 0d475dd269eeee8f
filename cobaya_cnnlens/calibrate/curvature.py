"""Second order of the noise debias along the direction in which ω_c moves the spectra.

The banded derivatives are first order. A network trained at one cosmology answers to others with
less than its best in either direction, and what that costs is even in Δω_c. It is measured as a
whole: the skies of the ``derivatives`` set are made again, with the same phases and noise, at
ω_c ± step, and what the first order leaves is averaged over the two signs.
"""

from __future__ import annotations

import numpy as np

from .. import products
from ..pipeline.config import Config
from ..reconstruct import Estimator
from .derivatives import Bench

KIND = "curvature"


def measure_curvature(
    config: Config, estimator: Estimator, network_hash: str, index: int, nthreads: int = 0
) -> None:
    """Bandpowers of one sky of the ``derivatives`` set at ω_c − step and ω_c + step.

    The product holds ``auto`` (of κ̂) and ``truth``, each (2, n_patches, n_bins).
    """
    config.check_index("derivatives", index)
    path = config.curvature_path(index)
    recipe = config.curvature_recipe(index, network_hash)
    if products.exists(path, KIND, recipe):
        return
    seen = []
    for omch2 in config.shifted_omch2():
        cosmology = config.cosmology.vary(omch2=omch2)
        seen.append(Bench(config, estimator, index, nthreads, cosmology).unperturbed())
    arrays = {name: np.stack([s[name] for s in seen]) for name in ("auto", "truth")}
    products.write_product(path, KIND, recipe, arrays)


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
