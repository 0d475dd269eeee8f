"""Which estimator a configuration asks for: its network, or a baseline without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tqdm import tqdm

from .. import products
from ..reconstruct import Estimator
from ..reconstruct.iterative import WienerEstimator
from ..reconstruct.probable import ProbableLensing
from ..reconstruct.quadratic import QuadraticEstimator
from ..simulate.instrument import cosine_mask
from .config import Config
from .observation import observe_sky
from .skies import spectra_for

KIND = "mean field"
# Patches at a time while the mean field is summed.
CHUNK = 16


class MaskedEstimator:
    """κ̂ less its mean field, times the mask: what a network is trained to return.

    Parameters
    ----------
    estimator : of the convergence on the whole patch
    mask, mean_field : (n, n)
    """

    def __init__(self, estimator: Estimator, mask: np.ndarray, mean_field: np.ndarray | float):
        self._estimator, self._mask, self._mean_field = estimator, mask, mean_field

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Masked Q̃, Ũ in µK, each (n, ny, nx) → masked κ̂ (n, ny, nx)."""
        return self._mask * (self._estimator.reconstruct(q, u) - self._mean_field)


def estimator_for(config: Config) -> Estimator:
    """The configuration's network or networks, or its baseline with the mean field of training
    skies, which is measured first if there is none yet."""
    if config.baseline is None:
        from ..reconstruct.resunet import network_estimator

        return network_estimator(config)
    bare = _baseline(config)
    mask = cosine_mask(config.patch, config.instrument.taper_deg)
    return MaskedEstimator(bare, mask, _mean_field(config, bare))


def _baseline(config: Config) -> Estimator:
    baseline = config.baseline
    mask = cosine_mask(config.patch, config.instrument.taper_deg)
    theory = spectra_for(config, config.cosmology)
    instrument = config.instrument
    filtered_for = replace(
        instrument, noise_uk_arcmin=max(instrument.noise_uk_arcmin, baseline.noise_floor)
    )
    if baseline.kind == "quadratic":
        return QuadraticEstimator(
            config.patch,
            filtered_for,
            mask,
            theory,
            combination=baseline.combination,
            leakage=baseline.leakage,
        )
    if baseline.kind == "probable":
        return ProbableLensing(config.patch, filtered_for, mask, theory, baseline.passes)
    passes = baseline.passes if baseline.kind == "iterated" else 1
    return WienerEstimator(config.patch, filtered_for, mask, theory, passes)


def _mean_field(config: Config, estimator: Estimator) -> np.ndarray:
    """Mean κ̂ over the first training skies, (n, n): what mask and noise alone put into it."""
    path, recipe = config.mean_field_path, config.mean_field_recipe()
    if not products.exists(path, KIND, recipe):
        total, count = 0.0, 0
        for index in range(config.baseline.mean_field_skies):
            seen = observe_sky(config, "train", index)
            starts = range(0, len(seen.q), CHUNK)
            for start in tqdm(starts, desc=f"mean field/{index}", unit=f"{CHUNK} patches"):
                rows = slice(start, start + CHUNK)
                found = estimator.reconstruct(seen.q[rows], seen.u[rows])
                total, count = total + found.sum(0), count + len(found)
        products.write_product(path, KIND, recipe, {"kappa": total / count})
    with products.open_product(path, KIND, recipe) as product:
        return product.array("kappa")
