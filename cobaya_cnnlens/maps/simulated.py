"""Patches of simulated skies, each seen as a tile of a survey.

The survey's configuration has the optics, the 1/f noise and the network. The plan has the noise and
holes of every tile. The patches take the tiles in turn, from the deepest to the shallowest, so that
a few patches also have all depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from ..errors import CNNLensError, ConfigError
from ..pipeline.observation import AS_CONFIGURED
from ..pipeline.power import power_of
from ..pipeline.run import Run
from ..simulate.bandpowers import EBPower
from ..simulate.instrument import Systematics, convolve_beam
from ..simulate.skies import seed_sequence
from ..simulate.tile_instrument import TileInstrument
from ..simulate.tiling import evenly
from .plan import Plan

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator


def tiles_in_turn(plan: Plan, n_patches: int) -> np.ndarray:
    """Assign a tile to each simulated patch, deepest to shallowest in turn.

    Parameters
    ----------
    plan : the survey's plan
    n_patches : number of simulated patches

    Returns
    -------
    tiles : positions in the plan, (n_patches,)
    """
    order = np.argsort([tile.depth for tile in plan.tiles], kind="stable")
    cycles, remainder = divmod(n_patches, len(order))
    return np.concatenate([np.tile(order, cycles), order[_spread(len(order), remainder)]])


def subset_in_turn(n_tiles: int, n_patches: int, n_chosen: int | None) -> np.ndarray:
    """Choose some of the patches that take tiles in turn, of as many depths as can be.

    Parameters
    ----------
    n_tiles : number of tiles of the plan
    n_patches : number of patches to choose from
    n_chosen : how many to choose; all by default

    Returns
    -------
    patches : their numbers, (n_chosen,)
    """
    if n_chosen is None or n_chosen >= n_patches:
        return np.arange(n_patches)
    cycles, remainder = divmod(n_chosen, n_tiles)
    first = cycles * n_tiles
    last = _spread(min(n_tiles, n_patches - first), remainder)
    return np.concatenate([np.arange(first), first + last])


def _spread(n: int, n_chosen: int) -> np.ndarray:
    """Numbers of some of n, or of none, spread evenly."""
    return evenly(n, n_chosen) if n_chosen else np.zeros(0, int)


def neighbours(run: Run, set_name: str, n_patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose pairs of neighbouring patches of a set, spread evenly over as few skies as have them.

    Parameters
    ----------
    run : a configuration, with its products and networks
    set_name : set of skies, for example ``test`` or ``survey-fiducial``
    n_patches : number of patches to choose

    Returns
    -------
    sky : number of each patch's sky, (n_patches,)
    row : number of each patch on its sky, (n_patches,)

    Raises
    ------
    ConfigError
        if the set has not as many
    """
    skies = -(-n_patches // run.n_patches)
    if skies > run.config.set_size(set_name):
        raise ConfigError(
            f"configuration '{run.config.name}': set '{set_name}' has "
            f"{run.config.set_size(set_name)} skies of {run.n_patches} patches, and "
            f"{n_patches} are asked for; raise skies.{set_name}, or lower --patches"
        )
    index, row = [], []
    for sky in range(skies):
        here = n_patches // skies + (sky < n_patches % skies)
        first = 2 * evenly(run.n_patches // 2, -(-here // 2))
        rows = np.stack([first, first + 1], axis=1).ravel()[:here]
        if len(rows) < here:  # all of an odd number
            rows = np.arange(here)
        index.append(np.full(here, sky))
        row.append(rows)
    return np.concatenate(index), np.concatenate(row)


@dataclass(frozen=True)
class SeenAs:
    """Patches of one simulated sky and the tiles that they are seen as.

    Attributes
    ----------
    run : of the survey's configuration
    plan : of the survey
    set_name, index : of the sky
    rows : numbers of the patches, (n,); what their noise is drawn by
    tiles : positions in the plan, (n,)
    """

    run: Run
    plan: Plan
    set_name: str
    index: int
    rows: np.ndarray
    tiles: np.ndarray

    @cached_property
    def rms(self) -> np.ndarray:
        """Noise of every pixel in µK, infinite where unseen, (n, ny, nx)."""
        return np.stack([self.plan.tiles[t].rms for t in self.tiles])

    @cached_property
    def mask(self) -> np.ndarray:
        """Taper times what was seen, (n, ny, nx)."""
        return np.stack([self.plan.tiles[t].mask for t in self.tiles])

    @cached_property
    def power(self) -> EBPower:
        """What measures the power of E and B of masked Q̃ and Ũ."""
        return power_of(self.run)

    def noise(self, systematics: Systematics = AS_CONFIGURED) -> np.ndarray:
        """Draw the noise of Q and U.

        Parameters
        ----------
        systematics : errors of the instrument; those of the configuration by default

        Returns
        -------
        noise : in µK, (2, n, ny, nx) float32
        """
        config = self.run.config
        drawn = []
        for row, rms in zip(self.rows, self.rms, strict=True):
            known = TileInstrument.of(config.instrument, rms, config.patch)
            tile = cast(TileInstrument, systematics.of(known))
            seeds = seed_sequence(config.seed, f"survey/{self.set_name}", self.index, int(row))
            drawn.append(tile.draw(1, config.patch, np.random.default_rng(seeds))[:, 0])
        return np.stack(drawn, axis=1)

    def observe(
        self, q: np.ndarray, u: np.ndarray, systematics: Systematics = AS_CONFIGURED
    ) -> tuple[np.ndarray, np.ndarray]:
        """Observe noiseless skies as the tiles do: errors of the instrument, beam, noise and mask.

        Parameters
        ----------
        q, u : padded Q̃ and Ũ in µK, (n, n_padded, n_padded) each
        systematics : errors of the instrument; those of the configuration by default

        Returns
        -------
        q, u : masked, in µK, (n, ny, nx) each
        """
        config = self.run.config
        instrument = systematics.of(config.instrument)
        noise = self.noise(systematics)
        q, u = (
            (convolve_beam(maps, instrument, config.patch) + part) * self.mask
            for maps, part in zip(systematics.distort(q, u), noise, strict=True)
        )
        return q, u

    def estimate(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Reconstruct κ̂ from masked Q̃ and Ũ; the estimator knows the noise of each tile.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        kappa : κ̂, (n, ny, nx)

        Raises
        ------
        CNNLensError
            if it is not finite
        """
        estimator = cast("RefinedEstimator", self.run.estimator)
        kappa = estimator.reconstruct(q, u, self.rms)
        if not np.isfinite(kappa).all():
            raise CNNLensError("κ̂ of a simulated tile is not finite; the network is damaged")
        return kappa

    def measure(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Measure the bandpowers of κ̂ and the power of E and B of masked Q̃ and Ũ.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        bandpowers : ⟨κ̂κ̂*⟩, then the power of E and B in µK², (n, n_bins + n_power)
        """
        return np.hstack([self.run.bandpowers.auto(self.estimate(q, u)), self.power(q, u)])
