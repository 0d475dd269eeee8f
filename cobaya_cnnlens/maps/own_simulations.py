"""A survey's calibration by the experiment's own simulations.

Each simulation is cut into the plan's tiles like the data, with their holes, depths and weights,
and reconstructed by the same estimator. It gives the same products as a sky of
:mod:`.calibration`: ⟨κ̂κ̂*⟩, ⟨κκ̂*⟩ and ⟨κκ*⟩ of every tile, and the power of E and B. The true κ is
evaluated at the pixels of the tiles. The first simulations give the response R and the weights. The
others give the noise bias N and the covariance. The changes with cosmology and with errors of the
instrument still come from the internal simulator (:mod:`.comparison`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.response import patch_bandpowers
from ..errors import ConfigError, MapError
from ..pipeline.power import power_of
from ..pipeline.reconstructions import measurement_recipe
from ..pipeline.run import Run
from ..simulate.patches import point_patches, scalar_at
from .calibration import TEST, VALIDATION, digest_of_depth
from .grids import Grid
from .job import Job
from .map_setup import MapSetup
from .plan import Plan, splits_of
from .reconstruction import check
from .simulated import SeenAs
from .simulation_files import (
    SimulationFiles,
    all_names,
    check_files,
    check_kappa,
    read_kappa,
    read_simulation_files,
    read_split,
    split_names,
)
from .survey_files import digest_of
from .tile_maps import TilePatches, cut_split
from .weights import by_class

KIND, PART_KIND = "survey own simulations", "survey own simulation"
ALGORITHM = 1
# Least significance, in σ, of the correlation of κ̂ with the true κ over all tiles.
CORRELATED = 5.0


@dataclass(frozen=True)
class OwnSimulations:
    """Bandpowers of an experiment's own simulations of a survey, with one product for each.

    Attributes
    ----------
    run : configuration of the survey's optics, network and skies
    plan : of the survey
    folder : where the survey's products are
    files : names of the files of the simulations
    """

    run: Run
    plan: Plan
    folder: Path
    files: SimulationFiles

    @classmethod
    def of(cls, run: Run, plan: Plan, folder: Path, path: Path) -> OwnSimulations:
        """Read the YAML file that names the simulations, and check their files.

        Parameters
        ----------
        run, plan, folder : as of the class
        path : of the YAML file

        Returns
        -------
        simulations : whose bandpowers are not measured yet

        Raises
        ------
        ConfigError, MapError
            as :func:`.read_simulation_files` and :meth:`check`
        """
        simulations = cls(run, plan, folder, read_simulation_files(path))
        simulations.check()
        return simulations

    @property
    def path(self) -> Path:
        """Path of the product that joins all simulations."""
        return self.folder / "own_simulations.h5"

    def part_path(self, index: int) -> Path:
        """Path of the product of one simulation.

        Parameters
        ----------
        index : of the simulation

        Returns
        -------
        path : of the product
        """
        return self.folder / "own_simulations" / f"{index:04d}.h5"

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        """What determines the bandpowers of every simulation, apart from its files.

        The plan enters as in :attr:`.SurveyCalibration.recipe`, with the splits of the coadd.
        """
        return {
            "plan": self.plan.identity,
            "depth": digest_of_depth(self.plan),
            "tiles": [tile.number for tile in self.plan.tiles],
            "own_algorithm": ALGORITHM,
            "estimator": measurement_recipe(self.run),
        }

    def part_recipe(self, index: int) -> dict[str, Any]:
        """What determines the bandpowers of one simulation.

        Parameters
        ----------
        index : of the simulation

        Returns
        -------
        recipe : of the product, with digests of the simulation's files
        """
        names = all_names(self.files, index, self.plan.n_splits)
        return self._inputs | {"files": [digest_of(name) for name in names], **self._settings}

    @property
    def _settings(self) -> dict[str, Any]:
        """How many maps enter as a mean, and whether the a_lm are those of φ."""
        files = self.files
        return {"mean": len(files.mean), "phi": files.phi is not None}

    def recipe(self, contents: list[str]) -> dict[str, Any]:
        """What determines the product that joins all simulations.

        Parameters
        ----------
        contents : identities of the products of the simulations

        Returns
        -------
        recipe : of the product
        """
        return self._inputs | {"simulations": self.record(), "contents": contents}

    def record(self) -> dict[str, Any]:
        """What products and releases record about the simulations: file names without folders."""
        files = self.files
        return {
            "index": list(files.index),
            "validation": files.n_validation,
            "maps": [Path(name).name for name in (*files.maps, *files.mean)],
            "truth": Path(files.truth).name,
        }

    def tiles(self, set_name: str) -> np.ndarray:
        """The tile that each simulated patch of a set has.

        Parameters
        ----------
        set_name : test or validation

        Returns
        -------
        tiles : positions in the plan, (n_simulations * n_tiles,)
        """
        n = self.files.n_validation
        count = n if set_name == VALIDATION else len(self.files.indices) - n
        return np.tile(np.arange(len(self.plan.tiles)), count)

    def check(self) -> None:
        """Refuse simulations that cannot calibrate the survey, before anything slow.

        Raises
        ------
        ConfigError
            if there are fewer than the covariance needs
        MapError
            if a file is missing, or of another kind or size than the others
        """
        n_tiles, n_validation = len(self.plan.tiles), self.files.n_validation
        numbers = self.run.config.bandpowers.n_bins
        if self.run.config.data_debias:
            # The covariance is that of d and p̂ in one vector.
            numbers += len(power_of(self.run).e_edges)
        if len(self.tiles(TEST)) < numbers + 3:
            raise ConfigError(
                f"{len(self.files.indices) - n_validation} simulations of {n_tiles} tiles are too "
                f"few for the covariance of {numbers} bins of κ̂, E and B; give "
                f"{-(-(numbers + 3) // n_tiles)} or more beside the {n_validation} of "
                "'validation', or take fewer bins"
            )
        check_files(self.files, self.plan.n_splits)

    def measure(
        self,
        nthreads: int = 0,
        job: Job | None = None,
        warn: Callable[[str], object] = warnings.warn,
    ) -> Path:
        """Cut and reconstruct every simulation that has no product yet.

        One of several jobs makes its own simulations only.

        Parameters
        ----------
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
        job : which of several jobs this is; None for the whole
        warn : called with each warning of the first simulation

        Returns
        -------
        path : of the product that joins all; one of several jobs does not write it

        Raises
        ------
        MapError
            if maps or a_lm fail a check
        """
        indices = self.files.indices if job is None else job.of(self.files.indices)
        recipes = {index: self.part_recipe(index) for index in indices}
        todo = [i for i in indices if not products.exists(self.part_path(i), PART_KIND, recipes[i])]
        if todo:
            cut = _Cut(self, nthreads, warn)
            cut.check_truth(todo[0])
            bar = tqdm(todo, KIND, len(indices), initial=len(indices) - len(todo), unit="sky")
            for index in bar:
                products.write_product(
                    self.part_path(index), PART_KIND, recipes[index], cut.measure(index)
                )
        if job is None:
            contents = [products.identity_of(recipe) for recipe in recipes.values()]
            if not products.exists(self.path, KIND, self.recipe(contents)):
                joined = self._joined(recipes)
                products.write_product(self.path, KIND, self.recipe(contents), joined)
        return self.path

    def _joined(self, recipes: dict[int, dict[str, Any]]) -> dict[str, np.ndarray]:
        """Bandpowers and power of both sets, and the power of the mean field of every tile.

        The mean of κ̂ over n simulations has the power |m|² + (⟨|κ̂|²⟩ − |m|²)/n, where m is the mean
        field. We solve this for |m|².
        """
        values: dict[str, list[np.ndarray]] = {}
        total, n = np.zeros((len(self.plan.tiles), *self.run.mask.shape)), len(recipes)
        for number, (index, recipe) in enumerate(recipes.items()):
            set_name = VALIDATION if number < self.files.n_validation else TEST
            with products.open_product(self.part_path(index), PART_KIND, recipe) as product:
                total += product.array("kappa")
                for name in set(product.names()) - {"kappa"}:
                    values.setdefault(f"{set_name}_{name}", []).append(product.array(name))
        arrays = {name: np.concatenate(parts) for name, parts in values.items()}
        auto = np.concatenate([arrays[f"{name}_auto"] for name in (VALIDATION, TEST)])
        each = by_class(auto, np.tile(np.arange(len(self.plan.tiles)), n))
        of_mean = self.run.bandpowers.auto(total / n)
        return arrays | {"mean_field": (n * of_mean - each) / (n - 1)}

    def read(self) -> dict[str, np.ndarray]:
        """Read the joined product.

        Returns
        -------
        arrays : by set and name as of :meth:`.SurveyCalibration.read`, with ``rotation`` of both
            sets, (n_patches, 2), and ``mean_field``, its power in every tile, (n_tiles, n_bins).

        Raises
        ------
        ProductError
            if it is missing, or of another plan, configuration or list of simulations
        """
        command = "survey calibrate PLAN --simulations SIMS"
        with products.open_product(self.path, KIND, command=command) as product:
            recipe = self.recipe(product.recipe.get("contents", []))
        with products.open_product(self.path, KIND, recipe, command=command) as product:
            return {name: product.array(name) for name in product.names()}


class _Cut:
    """Cuts and reconstructs simulations, and keeps in memory what they share."""

    def __init__(self, simulations: OwnSimulations, nthreads: int, warn: Callable[[str], object]):
        self.nthreads, self._warn = nthreads, warn
        self.run, self.plan, self.files = simulations.run, simulations.plan, simulations.files
        self.setup = MapSetup.of_run(self.run)
        splits = splits_of(self.plan, range(self.plan.n_splits))
        pairs: list[tuple[Grid, np.ndarray]] = [(split.grid, split.density > 0) for split in splits]
        self.grid = pairs[0][0]
        known = [seen for _, seen in pairs]
        # A simulation of the coadd must have the pixels that all splits saw.
        self.known = known if self.files.by_split else [np.logical_and.reduce(known)]
        # Every simulation is checked, but only the first one issues warnings.
        self._first = True
        self.pointing = point_patches(self.plan.centres, self.plan.geometry)

    def check_truth(self, index: int) -> None:
        """Refuse a_lm that are not those of κ, or end within the bins."""
        path = self.files.truth.format(index=index)
        alm = read_kappa(self.files, index, self.run.config.sky.band_limit)
        edges = self.run.bandpowers.bins.edges
        for warning in check_kappa(path, *alm, self.run.spectra().kk, edges):
            self._warn(f"{path}: {warning}")

    def patches(self, index: int) -> list[TilePatches]:
        """Masked Q and U of all tiles."""
        names = split_names(self.files, self.plan.n_splits)
        cut = []
        for name, known in zip(names, self.known, strict=True):
            unit = self.plan.sources.unit
            maps = read_split(self.files, index, name, self.grid, known, unit)
            cut.append(cut_split(self.plan, self.grid, maps, known, self.nthreads))
        if len(cut) < self.plan.n_splits:
            # The mean of equal splits is the coadd, whatever their weights.
            cut = cut * self.plan.n_splits
        return [
            TilePatches.of_splits(
                tile,
                *(np.stack([part(p[t]) for p in cut]) * tile.mask for part in (np.real, np.imag)),
            )
            for t, tile in enumerate(self.plan.tiles)
        ]

    def measure(self, index: int) -> dict[str, np.ndarray]:
        """Bandpowers, power and κ̂ of the tiles of one simulation."""
        tiles = self.patches(index)
        name = next(iter(all_names(self.files, index, self.plan.n_splits)))
        try:
            warned = check(self.plan, self.setup, tiles)
        except MapError as error:
            raise MapError(f"{name}: the simulation's tiles: {error}") from None
        if self._first:
            self._first = False
            for warning in warned:
                self._warn(f"{name}: {warning}")
        q, u = (np.stack([getattr(maps, key) for maps in tiles]) for key in "qu")
        rows = np.arange(len(tiles))
        estimate = SeenAs(self.run, self.plan, "own", index, rows, rows).estimate(q, u)
        alm, lmax = read_kappa(self.files, index, self.run.config.sky.band_limit)
        kappa = scalar_at(alm, lmax, self.pointing, self.nthreads)
        kappa = kappa.reshape(estimate.shape) * self.run.mask
        measured = patch_bandpowers(self.run.bandpowers, estimate, kappa)
        self._check_correlated(index, vars(measured))
        return vars(measured) | {
            "power": self.setup.power(q, u),
            "rotation": self.setup.power.rotation(q, u),
            "kappa": estimate.astype(np.float32),
        }

    def _check_correlated(self, index: int, measured: dict[str, np.ndarray]) -> None:
        """Refuse a true κ that is not that of the maps.

        The correlation coefficient of independent maps scatters by one over the root of the number
        of modes.
        """
        modes = self.run.bandpowers.modes
        coefficient = measured["cross"] / np.sqrt(measured["auto"] * measured["truth"])
        significance = (np.sqrt(modes) * coefficient).sum() / np.sqrt(coefficient.size)
        if significance < CORRELATED:
            raise MapError(
                f"{self.files.truth.format(index=index)}: κ̂ of the simulation is correlated with "
                f"this κ by {significance:.1f} errors, where {CORRELATED:g} are the least; are "
                "index, sign (κ = −½∇²φ) and coordinates those of the maps?"
            )
