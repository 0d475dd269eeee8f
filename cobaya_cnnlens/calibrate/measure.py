"""Bandpowers of reconstructed skies: one product per sky, from its shard and a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import CNNLensError
from ..pipeline.config import Config
from ..pipeline.observation import observe_sky
from ..reconstruct import Estimator
from ..simulate.instrument import cosine_mask
from .bandpowers import Bins, FlatSpectra
from .windows import bandpower_windows

KIND = "bandpowers"
# Those of a user's own maps, of which no true κ is known.
MAP_BANDPOWERS = "map bandpowers"


@dataclass(frozen=True)
class PatchBandpowers:
    """Per-patch bandpowers, each (n_patches, n_bins), before any calibration.

    ``auto`` ⟨κ̂κ̂*⟩, ``cross`` ⟨κκ̂*⟩, ``truth`` ⟨κκ*⟩, all of masked maps over ⟨M²⟩
    """

    auto: np.ndarray
    cross: np.ndarray
    truth: np.ndarray

    @classmethod
    def join(cls, parts: Iterable[PatchBandpowers]) -> PatchBandpowers:
        """The patches of several skies, one after another."""
        parts = list(parts)
        return cls(*(np.concatenate([getattr(p, k) for p in parts]) for k in FIELDS))


FIELDS = tuple(PatchBandpowers.__annotations__)


def spectra_of(config: Config) -> FlatSpectra:
    """The spectrum estimator of a configuration's patches, mask and bins."""
    return FlatSpectra(
        config.patch,
        Bins(**config.bandpowers.model_dump()),
        cosine_mask(config.patch, config.instrument.taper_deg),
    )


def signal_bandpowers(config: Config, kk: np.ndarray) -> np.ndarray:
    """⟨κκ*⟩_b of masked patches for C_L^κκ from L = 0, (n_bins,)."""
    limit = config.sky.band_limit
    return bandpower_windows(spectra_of(config), limit) @ kk[: limit + 1]


def measure(
    spectra: FlatSpectra, estimator: Estimator, q: np.ndarray, u: np.ndarray, kappa: np.ndarray
) -> PatchBandpowers:
    """Reconstruct masked patches and measure their bandpowers.

    Parameters
    ----------
    q, u : observed, masked maps in µK, (n_patches, n, n)
    kappa : true masked convergence, same shape

    Raises
    ------
    CNNLensError
        if κ̂ is not finite
    """
    estimate = estimator.reconstruct(q, u)
    if not np.isfinite(estimate).all():
        raise CNNLensError(
            "the reconstructed convergence is not finite; check the input maps for NaN"
        )
    found, true = spectra.transform(estimate), spectra.transform(kappa)
    return PatchBandpowers(
        spectra.cross(found, found), spectra.cross(true, found), spectra.cross(true, true)
    )


def measure_skies(
    config: Config,
    estimator: Estimator,
    network_hash: str,
    set_name: str,
    indices: Iterable[int] | None = None,
) -> None:
    """Reconstruct the skies of a set that have no bandpowers yet."""
    indices = range(config.set_size(set_name)) if indices is None else list(indices)
    todo = []
    for index in indices:
        config.check_index(set_name, index)
        recipe = config.bandpower_recipe(set_name, index, network_hash)
        if not products.exists(config.bandpower_path(set_name, index), KIND, recipe):
            todo.append((index, recipe))
    spectra = spectra_of(config)
    for index, recipe in tqdm(todo, desc=f"bandpowers/{set_name}", unit="sky", disable=not todo):
        seen = observe_sky(config, set_name, index)
        measured = measure(spectra, estimator, seen.q, seen.u, seen.kappa)
        path = config.bandpower_path(set_name, index)
        products.write_product(path, KIND, recipe, vars(measured))


def read_bandpowers(
    config: Config, network_hash: str, set_name: str, indices: Iterable[int] | None = None
) -> PatchBandpowers:
    """The bandpowers of all patches of a set, or of some of its skies; shipped ones where the
    configuration has none of its own.

    Raises
    ------
    products.ProductError
        if one is missing, damaged, or made with another network or configuration
    """
    parts = []
    for index in range(config.set_size(set_name)) if indices is None else indices:
        recipe = config.bandpower_recipe(set_name, index, network_hash)
        path = config.bandpower_path(set_name, index)
        with products.open_product(path, KIND, recipe, config.shipped) as product:
            parts.append(PatchBandpowers(*(product.array(name) for name in FIELDS)))
    return PatchBandpowers.join(parts)
