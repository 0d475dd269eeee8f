"""Bandpowers of reconstructed skies: one product for each sky, from its shard and an estimator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..calibrate.response import FIELDS, PatchBandpowers, patch_bandpowers
from ..calibrate.windows import bandpower_windows
from ..simulate.tiling import some
from .observation import observe_sky
from .run import Run
from .skies import Skies
from .stage import Stage

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

# Of what turns a sky into bandpowers.
ALGORITHM = 1


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
        **config.reconstruction.recipe(),
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


class Bandpowers(Stage[Run]):
    """Bandpowers of κ̂ and κ by patch, before any calibration."""

    kind = "bandpowers"
    command = "reconstruct CONFIG --set {} --index {}"

    def keys(self, set_name: str, indices: Iterable[int] | None = None) -> list[tuple[str, int]]:
        """The skies of a set."""
        return [(set_name, index) for index in self.config.indices(set_name, indices)]

    def recipe(self, set_name: str, index: int) -> dict[str, Any]:
        """What determines the bandpowers of one reconstructed sky."""
        return {"sky": Skies(self.run).recipe(set_name, index), **measurement_recipe(self.run)}

    def make(self, set_name: str, index: int) -> dict[str, np.ndarray]:
        """Reconstruct a sky; a refining network takes its features from disk, if they are there."""
        from .features import Features  # loads ducc0, which recipes and paths do without

        run = self.run
        if self.config.baseline is None and self.config.network.kind == "refined":
            features = Features(run)
            files = features.keys(set_name, [index])
            if all(features.exists(*file) for file in files):
                known = features.read(files)
                estimator = cast("RefinedEstimator", run.estimator)
                estimate = estimator.refine(known.features)["kappa"]
                return vars(patch_bandpowers(run.bandpowers, estimate, known.kappa))
        sky = observe_sky(run, set_name, index)
        estimate = run.estimator.reconstruct(sky.q, sky.u)
        return vars(patch_bandpowers(run.bandpowers, estimate, sky.kappa))

    def read(
        self, set_name: str, indices: Iterable[int] | None = None, patches: int | None = None
    ) -> PatchBandpowers:
        """Read the bandpowers of all patches of a set, or of some of its skies.

        Parameters
        ----------
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
        parts = [self.arrays(*key, names=FIELDS) for key in self.keys(set_name, indices)]
        return PatchBandpowers.join(
            PatchBandpowers(**{name: some(array, patches) for name, array in part.items()})
            for part in parts
        )
