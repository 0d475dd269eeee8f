"""Bandpowers of reconstructed skies: one product per sky, from its shard and a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import CNNLensError
from ..pipeline import skies
from ..pipeline.observation import observe_sky
from ..pipeline.run import Run
from ..reconstruct import Estimator
from ..simulate.bandpowers import FlatSpectra
from ..simulate.tiling import some
from .windows import bandpower_windows

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

KIND = "bandpowers"
ALGORITHM = 1


@dataclass(frozen=True)
class PatchBandpowers:
    """Bandpowers by patch before any calibration, of masked maps over ⟨M²⟩.

    Attributes
    ----------
    auto, cross, truth : ⟨κ̂κ̂*⟩, ⟨κκ̂*⟩ and ⟨κκ*⟩, (n_patches, n_bins) each
    """

    auto: np.ndarray
    cross: np.ndarray
    truth: np.ndarray

    @classmethod
    def join(cls, parts: Iterable[PatchBandpowers]) -> PatchBandpowers:
        """The patches of several skies, one after another.

        Parameters
        ----------
        parts : bandpowers of each sky

        Returns
        -------
        bandpowers of all patches
        """
        parts = list(parts)
        return cls(*(np.concatenate([getattr(p, k) for p in parts]) for k in FIELDS))


FIELDS = tuple(PatchBandpowers.__annotations__)


def path(run: Run, set_name: str, index: int) -> Path:
    """Where the bandpowers of one reconstructed sky lie.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "bandpowers" / set_name / f"sky_{index:04d}.h5"


def recipe(run: Run, set_name: str, index: int) -> dict[str, Any]:
    """What determines the bandpowers of one reconstructed sky.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one

    Returns
    -------
    mapping for JSON
    """
    return {"sky": skies.recipe(run, set_name, index), **measurement_recipe(run)}


def measurement_recipe(run: Run) -> dict[str, Any]:
    """What turns a sky into bandpowers: instrument, estimator and bins.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    mapping for JSON
    """
    config = run.config
    return {
        "algorithm": ALGORITHM,
        "instrument": config.instrument.recipe(),
        "network": run.estimator_id,
        **({"symmetries": n} if (n := config.reconstruction.symmetries) != 1 else {}),
        "bandpowers": config.bandpowers.model_dump(),
    }


def signal_bandpowers(run: Run, kk: np.ndarray) -> np.ndarray:
    """Expected ⟨κκ*⟩_b of masked patches.

    Parameters
    ----------
    run : the configuration and what follows from it
    kk : C_L^κκ from L = 0, to the band limit of the skies or beyond

    Returns
    -------
    (n_bins,)
    """
    limit = run.config.sky.band_limit
    return bandpower_windows(run.bandpowers, limit) @ kk[: limit + 1]


def measure_patches(
    spectra: FlatSpectra, estimator: Estimator, q: np.ndarray, u: np.ndarray, kappa: np.ndarray
) -> PatchBandpowers:
    """Reconstruct masked patches and measure their bandpowers.

    Parameters
    ----------
    spectra : of the masked patches
    estimator : from masked Q and U to κ̂
    q, u : observed, masked maps in µK, (n_patches, n, n)
    kappa : true masked convergence, same shape

    Returns
    -------
    bandpowers by patch

    Raises
    ------
    CNNLensError
        if κ̂ is not finite
    """
    return bandpowers_of(spectra, estimator.reconstruct(q, u), kappa)


def bandpowers_of(spectra: FlatSpectra, estimate: np.ndarray, kappa: np.ndarray) -> PatchBandpowers:
    """Bandpowers of masked κ̂ and κ.

    Parameters
    ----------
    spectra : of the masked patches
    estimate, kappa : κ̂ and the true κ, (n_patches, n, n) each

    Returns
    -------
    bandpowers by patch

    Raises
    ------
    CNNLensError
        if κ̂ is not finite
    """
    if not np.isfinite(estimate).all():
        raise CNNLensError(
            "the reconstructed convergence is not finite; check the input maps for NaN"
        )
    estimated, true = spectra.transform(estimate), spectra.transform(kappa)
    return PatchBandpowers(
        spectra.cross(estimated, estimated),
        spectra.cross(true, estimated),
        spectra.cross(true, true),
    )


def measure(run: Run, set_name: str, indices: Iterable[int] | None = None) -> None:
    """Reconstruct the skies of a set that have no bandpowers yet.

    Parameters
    ----------
    run, set_name : the configuration, and the set of skies
    indices : numbers of the skies; all by default
    """
    indices = range(run.config.set_size(set_name)) if indices is None else list(indices)
    todo = []
    for index in indices:
        run.config.check_index(set_name, index)
        if not products.exists(path(run, set_name, index), KIND, recipe(run, set_name, index)):
            todo.append(index)
    for index in tqdm(todo, desc=f"bandpowers/{set_name}", unit="sky", disable=not todo):
        measured = _measure_sky(run, set_name, index)
        file, made_of = path(run, set_name, index), recipe(run, set_name, index)
        products.write_product(file, KIND, made_of, vars(measured))


def _measure_sky(run: Run, set_name: str, index: int) -> PatchBandpowers:
    """Bandpowers of one sky; by a refining network from the features on disk, if they are there."""
    from ..pipeline import features  # loads ducc0, which recipes and paths do without

    refined = run.config.baseline is None and run.config.network.kind == "refined"
    if refined and features.exist(run, set_name, index):
        files = [part for part in features.parts(run, set_name) if part[0] == index]
        known = features.read(run, set_name, files)
        estimator = cast("RefinedEstimator", run.estimator)
        estimate = estimator.refine(known.features)["kappa"]
        return bandpowers_of(run.bandpowers, estimate, known.kappa)
    sky = observe_sky(run, set_name, index)
    return measure_patches(run.bandpowers, run.estimator, sky.q, sky.u, sky.kappa)


def read(
    run: Run,
    set_name: str,
    indices: Iterable[int] | None = None,
    patches: int | None = None,
) -> PatchBandpowers:
    """The bandpowers of all patches of a set, or of some of its skies; shipped ones where the
    configuration has none of its own.

    Parameters
    ----------
    run : the configuration and what follows from it
    set_name : name of the set of skies
    indices : numbers of the skies; all by default
    patches : of each sky, spread evenly over it; all by default

    Returns
    -------
    bandpowers of all patches

    Raises
    ------
    products.ProductError
        if one is missing, damaged, or made with another network or configuration
    """
    parts = []
    for index in range(run.config.set_size(set_name)) if indices is None else indices:
        file, made_of = path(run, set_name, index), recipe(run, set_name, index)
        with products.open_product(file, KIND, made_of, run.config.shipped) as product:
            parts.append(PatchBandpowers(*(some(product.array(name), patches) for name in FIELDS)))
    return PatchBandpowers.join(parts)
