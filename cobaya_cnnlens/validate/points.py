"""Test skies made again at other cosmologies: is the noise debias where the model puts it?

A sky at another cosmology with the phases and the noise of a test sky differs from it by the
cosmology alone, so that the scatter of the patches cancels in the difference; the change of its own
⟨κκ*⟩ is subtracted too. What is left is the change of the noise debias, which the derivatives,
measured on a sky that shares nothing with these, are to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.assemble import NoiseDerivatives, band_changes, read_curvature
from ..calibrate.covariance import mean_covariance
from ..calibrate.derivatives import Bench
from ..calibrate.measure import read_bandpowers
from ..pipeline.config import Config
from ..pipeline.skies import spectra_for
from ..reconstruct import Estimator

KIND = "points"
SET = "test"


def measure_points(
    config: Config, estimator: Estimator, network_hash: str, index: int, nthreads: int = 0
) -> None:
    """Make a test sky again at every point that has not been measured, and keep its bandpowers."""
    config.check_index(SET, index)
    todo = []
    for change in (change for group in config.points.at.values() for change in group):
        recipe = config.point_recipe(change, index, network_hash)
        if not products.exists(config.point_path(change, index), KIND, recipe):
            todo.append((change, recipe))
    for change, recipe in tqdm(todo, desc=f"points/{index}", unit="sky", disable=not todo):
        cosmology = config.cosmology.vary(**change)
        bench = Bench(config, estimator, index, nthreads, cosmology, SET)
        path = config.point_path(change, index)
        products.write_product(path, KIND, recipe, bench.unperturbed())


@dataclass(frozen=True)
class PointCheck:
    """Change of the noise debias at one cosmology.

    ``found`` by patch, (n_patches, n_bins); ``predicted`` (n_bins,) and its Monte-Carlo covariance
    from the derivatives' patches, (n_bins, n_bins)
    """

    change: dict[str, float]
    found: np.ndarray
    predicted: np.ndarray
    model_covariance: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """Mean of found − predicted, (n_bins,)."""
        return self.found.mean(0) - self.predicted

    @property
    def covariance(self) -> np.ndarray:
        """Of ``residual``, (n_bins, n_bins)."""
        return mean_covariance(self.found) + self.model_covariance


def check_points(
    config: Config,
    network_hash: str,
    response: np.ndarray,
    first: NoiseDerivatives,
    group: str,
    second_order: bool = True,
) -> list[PointCheck]:
    """Changes of the noise debias at a group's points beside what the derivatives predict.

    Raises
    ------
    products.ProductError
        if a point has not been measured, or was with another network or configuration
    """
    fiducial = spectra_for(config, config.cosmology)
    curved = read_curvature(config, network_hash, response, first)
    along = np.concatenate([curved.kk_direction, curved.ee_direction])
    bands = np.concatenate([first.kk.patches, first.ee.patches], axis=2)
    indices = range(config.points.skies)
    still = read_bandpowers(config, network_hash, SET, indices)
    checks = []
    for change in config.points.at[group]:
        moved = spectra_for(config, config.cosmology.vary(**change))
        changes = np.concatenate(
            [
                band_changes(first.kk.edges, moved.kk, fiducial.kk),
                band_changes(first.ee.edges, moved.ee, fiducial.ee),
            ]
        )
        by_patch = bands @ changes
        if second_order:
            by_patch = by_patch + curved.patches * (changes @ along) ** 2
        auto, truth = [], []
        for index in indices:
            recipe = config.point_recipe(change, index, network_hash)
            with products.open_product(config.point_path(change, index), KIND, recipe) as product:
                auto.append(product.array("auto"))
                truth.append(product.array("truth"))
        found = (np.concatenate(auto) - still.auto) / response**2
        found -= np.concatenate(truth) - still.truth
        checks.append(PointCheck(change, found, by_patch.mean(0), mean_covariance(by_patch)))
    return checks
