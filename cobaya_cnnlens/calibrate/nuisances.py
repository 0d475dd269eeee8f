"""What the instrument's systematics do to the debiased bandpowers, by simulation.

Skies of the test set are observed again, with the same noise realisation, by an instrument that is
off in one way at a time: polarisation gain, beam width, noise level, polarisation angle. The
differences give first and second order of each,

    d_b(x) = d_b(0) + A_b x + B_b x² ,   A = [d(x) − d(−x)]/2x ,  B = [d(x) + d(−x) − 2 d(0)]/2x² .

The angle needs the second order: by parity its first vanishes for an estimator that is equivariant
under reflections, and is small for a network that has learned to be nearly so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import CNNLensError
from ..likelihood.release import NUISANCES
from ..pipeline.config import Config
from ..pipeline.observation import observe_sky
from ..reconstruct import Estimator
from ..simulate.instrument import Systematics
from .measure import read_bandpowers, spectra_of
from .response import standard_error

KIND = "nuisances"
SET = "test"


def measure_nuisances(config: Config, estimator: Estimator, network_hash: str, index: int) -> None:
    """Observe and reconstruct one test sky with each systematic at ± its step, unless that is done.

    The product holds, by name of the systematic, ``auto`` at −step and +step,
    (2, n_patches, n_bins).
    """
    config.check_index(SET, index)
    path = config.nuisance_path(index)
    recipe = config.nuisance_recipe(index, network_hash)
    if products.exists(path, KIND, recipe):
        return
    spectra = spectra_of(config)
    jobs = [(name, sign) for name in NUISANCES for sign in (-1, 1)]
    seen: dict[str, list[np.ndarray]] = {name: [] for name in NUISANCES}
    for name, sign in tqdm(jobs, desc=f"nuisances/{index}", unit="sky"):
        step = getattr(config.nuisances, name)
        sky = observe_sky(config, SET, index, systematics=Systematics(**{name: sign * step}))
        seen[name].append(spectra.auto(estimator.reconstruct(sky.q, sky.u)))
    arrays = {name: np.stack(values) for name, values in seen.items()}
    products.write_product(path, KIND, recipe, arrays)


@dataclass(frozen=True)
class NuisanceCheck:
    """What one change of the instrument does to the bandpowers of a sky, beside what A and B from
    other skies predict: mean shifts of d_b, (n_bins,) each, and the standard error of their
    difference."""

    change: str
    size: float
    found: np.ndarray
    predicted: np.ndarray
    error: np.ndarray


def check_nuisances(
    config: Config,
    estimator: Estimator,
    network_hash: str,
    response: np.ndarray,
    index: int,
    changes: Mapping[str, float],
) -> list[NuisanceCheck]:
    """Simulate changes of the instrument on a test sky that gave no derivatives.

    Raises
    ------
    CNNLensError
        if the sky is one of those that did
    """
    config.check_index(SET, index)
    if index < config.nuisances.skies:
        raise CNNLensError(
            f"sky {index} gave the derivatives itself; check on one from {config.nuisances.skies}"
        )
    first, second = read_nuisances(config, network_hash, response)
    spectra = spectra_of(config)
    centre = read_bandpowers(config, network_hash, SET, [index]).auto
    checks = []
    for name, x in tqdm(changes.items(), desc=f"nuisances/{index}", unit="sky"):
        sky = observe_sky(config, SET, index, systematics=Systematics(**{name: x}))
        shift = (spectra.auto(estimator.reconstruct(sky.q, sky.u)) - centre) / response**2
        column = NUISANCES.index(name)
        by_patch = first[..., column] * x + second[..., column] * x**2
        error = np.hypot(standard_error(shift), standard_error(by_patch))
        checks.append(NuisanceCheck(name, x, shift.mean(0), by_patch.mean(0), error))
    return checks


def read_nuisances(
    config: Config, network_hash: str, response: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A and B of every patch, (n_patches, n_bins, n_nuisances) each, in the order of
    ``NUISANCES`` and per unit of each."""
    indices = range(config.nuisances.skies)
    centre = read_bandpowers(config, network_hash, SET, indices).auto / response**2
    both = []
    for index in indices:
        recipe = config.nuisance_recipe(index, network_hash)
        path = config.nuisance_path(index)
        with products.open_product(path, KIND, recipe, config.shipped) as product:
            both.append(np.stack([product.array(name) for name in NUISANCES], axis=-1))
    below, above = np.concatenate(both, axis=1) / response[:, None] ** 2
    step = np.array([getattr(config.nuisances, name) for name in NUISANCES])
    first = (above - below) / (2.0 * step)
    second = (above + below - 2.0 * centre[..., None]) / (2.0 * step**2)
    return first, second
