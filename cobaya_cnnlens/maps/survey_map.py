"""What ``cnnlens survey map`` makes: the mosaic of a survey, its simulations and their spectra."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError
from .mosaic import BEYOND, Mosaic, Normalisation
from .mosaic_simulations import LEAST, MosaicSimulations, MosaicSpectra, binned_spectra
from .plan import Plan, make_plan, read_plan
from .reconstruction import TileReconstruction

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

# Tiles that fill tapers may see this part of what the tiles of the plan must: at the edges of the
# footprint they see less.
SEEN = 0.5


def filling_plan(plan: Plan, path: Path) -> Plan:
    """Plan of the tiles that fill the tapers of another plan's; read if it was made before.

    Parameters
    ----------
    plan : of the survey
    path : of the YAML to read or to write

    Returns
    -------
    plan : of tiles that overlap
    """
    if path.exists():
        made = read_plan(path)
        same = {key: value for key, value in made.recipe.items() if key in ("sources", "patch")}
        fills = plan.centres.round(9).tolist()
        if same.items() <= plan.recipe.items() and made.recipe["fills"] == fills:
            return made
    least = SEEN * plan.recipe["seen"]
    return make_plan(path, plan.sources, plan.geometry, plan.taper_deg, least, fills=plan)


@dataclass(frozen=True)
class SurveyMap:
    """The map of κ̂ of a survey.

    Attributes
    ----------
    reconstruction : of the plan's tiles
    lmax : largest multipole
    nside : of HEALPix
    """

    reconstruction: TileReconstruction
    lmax: int
    nside: int

    @property
    def path(self) -> Path:
        """Of the map."""
        return self.reconstruction.folder / "mosaic.fits"

    def simulation_path(self, number: int) -> Path:
        """Path of the pair (κ, κ̂) of one simulation.

        Parameters
        ----------
        number : of the simulation, from 0

        Returns
        -------
        path : of the FITS file
        """
        return self.reconstruction.folder / "mosaic" / f"simulation_{number:04d}.fits"

    @cached_property
    def simulations(self) -> MosaicSimulations:
        """Simulations of the map, of all tiles."""
        own = self.reconstruction
        folder = own.folder / "mosaic"
        filling = filling_plan(own.plan, folder / "filling.yaml")
        further = TileReconstruction(filling, own.setup, folder)
        return MosaicSimulations((own, further), self.lmax, self.nside)

    def make(
        self,
        n_simulations: int,
        load_estimator: Callable[[], RefinedEstimator],
        nthreads: int = 0,
        warn: Callable[[str], object] = warnings.warn,
    ) -> Path:
        """Reconstruct what is missing, and write the map, its spectra and its simulations.

        Parameters
        ----------
        n_simulations : pairs (κ, κ̂)
        load_estimator : gives the estimator, which is told the noise; called if κ̂ is missing
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
        warn : called with each warning of the maps

        Returns
        -------
        path : of the map

        Raises
        ------
        ConfigError
            if there are too few simulations, or the response ends below the largest multipole
        """
        if n_simulations < LEAST:
            raise ConfigError(f"--realisations {n_simulations}: give {LEAST} or more")
        simulations, numbers = self.simulations, range(n_simulations)
        for made in simulations.reconstructions:
            made.measure(load_estimator, nthreads, warn)
        simulations.measure(numbers, load_estimator, nthreads)
        normalisation = simulations.normalisation(numbers)
        spectra = self._spectra(numbers, normalisation, nthreads)
        kappas = [
            made.read_tile(tile)["kappa"]
            for made in simulations.reconstructions
            for tile in made.plan.tiles
        ]
        mosaic = Mosaic.of(simulations.tiles, kappas, normalisation, self.nside)
        columns = {"KAPPA": mosaic.kappa, "MASK": mosaic.mask, "WEIGHT": mosaic.weight}
        table = spectra.table(normalisation.mean_response)
        mosaic.write(self.path, self.reconstruction.plan.frame, columns, table, **self._cards())
        return self.path

    def _spectra(
        self, numbers: range, normalisation: Normalisation, nthreads: int
    ) -> MosaicSpectra:
        """Spectra of the simulations, whose maps are written."""
        simulations, powers = self.simulations, []
        pairs = simulations.mosaics(numbers, normalisation)
        for number, (mosaic, true) in enumerate(tqdm(pairs, total=len(numbers), desc="maps")):
            columns = {"KAPPA_IN": true, "KAPPA": mosaic.kappa, "MASK": mosaic.mask}
            frame, cards = self.reconstruction.plan.frame, self._cards() | {"SIMULAT": number}
            mosaic.write(self.simulation_path(number), frame, columns, {}, **cards)
            kappa, kappa_in = (mosaic.modes(m, self.lmax, nthreads) for m in (mosaic.kappa, true))
            pairs_of_modes = ((kappa, kappa), (kappa_in, kappa), (kappa_in, kappa_in))
            powers.append([binned_spectra(mosaic, *p, simulations.bins) for p in pairs_of_modes])
        auto, cross, truth = np.array(powers).swapaxes(0, 1)
        return MosaicSpectra.of(auto, cross, truth, simulations.bins)

    def _cards(self) -> dict[str, str | float]:
        """What the headers say of the map."""
        simulations = self.simulations
        return {
            "L_MIN": float(simulations.bins.edges[0]),
            "L_MAX": float(self.lmax),
            "L_END": float(int(BEYOND * self.lmax)),
            "PLAN": simulations.plan.identity,
            **self.reconstruction.setup.cards,
        }
