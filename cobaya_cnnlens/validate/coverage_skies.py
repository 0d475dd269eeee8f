"""Bandpowers of skies whose ω_c is drawn from a prior: the material of coverage tests.

A sky is drawn, lensed, observed, reconstructed and let go: only its bandpowers are kept. It shares
phases and noise with no other sky.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.derivatives import Bench
from ..pipeline.config import COVERAGE_SET, Config
from ..reconstruct import Estimator

KIND = "coverage"


@dataclass(frozen=True)
class CoverageSky:
    """True ω_c of a sky, and per patch ``auto`` ⟨κ̂κ̂*⟩ and ``truth`` ⟨κκ*⟩, (n_patches, n_bins)."""

    omch2: float
    auto: np.ndarray
    truth: np.ndarray


def measure_coverage(
    config: Config,
    estimator: Estimator,
    network_hash: str,
    indices: Iterable[int] | None = None,
    nthreads: int = 0,
) -> None:
    """Simulate and measure the coverage skies that have no bandpowers yet."""
    indices = range(config.coverage.skies) if indices is None else list(indices)
    for index in indices:
        config.check_index(COVERAGE_SET, index)
    todo = [
        (index, recipe)
        for index in indices
        for recipe in [config.coverage_recipe(index, network_hash)]
        if not products.exists(config.coverage_path(index), KIND, recipe)
    ]
    for index, recipe in tqdm(todo, desc=COVERAGE_SET, unit="sky", disable=not todo):
        cosmology = config.coverage_cosmology(index)
        bench = Bench(config, estimator, index, nthreads, cosmology, COVERAGE_SET)
        products.write_product(config.coverage_path(index), KIND, recipe, bench.unperturbed())


def read_coverage(config: Config, network_hash: str) -> list[CoverageSky]:
    """The coverage skies that have been measured, in order.

    Raises
    ------
    products.ProductError
        if none has been, or one was made with another network or configuration
    """
    skies = []
    for index in range(config.coverage.skies):
        path = config.coverage_path(index)
        if index and not path.exists():
            break
        with products.open_product(path, KIND, config.coverage_recipe(index, network_hash)) as p:
            omch2 = config.coverage_cosmology(index).omch2
            skies.append(CoverageSky(omch2, p.array("auto"), p.array("truth")))
    return skies
