"""The simulation stage: one shard for each sky, with all fields of all its patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..simulate import shards
from .simulation import Simulation
from .stage import Stage


class Skies(Stage[Simulation]):
    """Shards: patches of one sky each, without beam, noise or mask."""

    kind = "sky"
    command = "skies CONFIG --set {} --index {}"

    def keys(self, set_name: str, indices: Iterable[int] | None = None) -> list[tuple[str, int]]:
        """The skies of a set."""
        return [(set_name, index) for index in self.config.indices(set_name, indices)]

    def path(self, set_name: str, index: int) -> Path:
        """Where a shard lies."""
        return self.config.sky_directory / set_name / f"sky_{index:04d}.h5"

    def recipe(self, set_name: str, index: int) -> dict[str, Any]:
        """What determines a shard."""
        config = self.config
        return {
            **self.run.spectra_recipe(config.set_cosmology(set_name)),
            "algorithm": self.algorithm,
            "seed": config.seed,
            "set": set_name,
            "index": index,
            "sky": asdict(config.sky),
            "patch": asdict(config.patch),
            "centres": config.centres.recipe(set_name),
        }

    def make(self, set_name: str, index: int) -> dict[str, np.ndarray]:
        """Draw a sky and sample its patches."""
        config, theory = self.config, self.run.spectra(self.config.set_cosmology(set_name))
        sky = shards.draw_sky(theory, config.sky.lmax, config.seed, set_name, index)
        pointing = self.run.pointing_of(set_name)
        return shards.sample_patches(sky, config.sky, config.patch, pointing, self.threads)

    def read(self, set_name: str, index: int, names: Iterable[str]) -> tuple[np.ndarray, ...]:
        """Chosen fields of a shard.

        Parameters
        ----------
        set_name, index : the set of skies, and the number of one
        names : of the fields

        Returns
        -------
        (n_patches, n_padded, n_padded) float32 for each name

        Raises
        ------
        products.ProductError
            if the file is missing, damaged, or from another configuration
        """
        return tuple(self.arrays(set_name, index, names=names).values())
