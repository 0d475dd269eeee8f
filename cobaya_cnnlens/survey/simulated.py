"""Patches of simulated skies, each seen as a tile of a survey.

The survey's configuration has the optics, the excess at low multipoles and the network; the plan
has noise and holes of every tile. Patch i takes a tile in turn, deepest to shallowest, so that few
patches too are of all depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..calibrate.power import EBPower, power_of
from ..errors import CNNLensError, ConfigError
from ..pipeline.observation import AS_CONFIGURED
from ..pipeline.run import Run
from ..simulate.instrument import Systematics, convolve_beam
from ..simulate.skies import seed_sequence
from ..simulate.tile_instrument import TileInstrument
from ..simulate.tiling import evenly
from .plan import Plan


def tiles_in_turn(plan: Plan, n_patches: int) -> np.ndarray:
    """As which tile of the plan, by position, each of n patches is seen, (n_patches,)."""
    order = np.argsort([tile.depth for tile in plan.tiles], kind="stable")
    return order[_turns(len(order), n_patches)]


def part_of(n_tiles: int, n_patches: int, wanted: int | None) -> np.ndarray:
    """So many of n patches that take tiles in turn, by number, of as many depths as can be."""
    if wanted is None or wanted >= n_patches:
        return np.arange(n_patches)
    cycles, rest = divmod(wanted, n_tiles)
    left = min(n_tiles, n_patches - cycles * n_tiles)
    last = evenly(left, rest) if rest else np.zeros(0, int)
    return np.concatenate([np.arange(cycles * n_tiles), cycles * n_tiles + last])


def _turns(n_tiles: int, n_patches: int) -> np.ndarray:
    cycles, rest = divmod(n_patches, n_tiles)
    last = evenly(n_tiles, rest) if rest else np.zeros(0, int)
    return np.concatenate([np.tile(np.arange(n_tiles), cycles), last])


def neighbours(run: Run, set_name: str, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky and number of patches of a set, (wanted,) each: pairs that follow one another, side by
    side where patches lie in rings, spread evenly over as few skies as have them.

    Raises
    ------
    ConfigError
        if the set has not as many
    """
    skies = -(-wanted // run.n_patches)
    if skies > run.config.set_size(set_name):
        raise ConfigError(
            f"configuration '{run.config.name}': set '{set_name}' has "
            f"{run.config.set_size(set_name)} skies of {run.n_patches} patches, and {wanted} are "
            f"asked for; raise skies.{set_name}, or lower --patches"
        )
    index, row = [], []
    for sky in range(skies):
        here = wanted // skies + (sky < wanted % skies)
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
    def _power(self) -> EBPower:
        return power_of(self.run)

    def noise(self, systematics: Systematics = AS_CONFIGURED) -> np.ndarray:
        """Noise of Q and U in µK, (2, n, ny, nx) float32."""
        config = self.run.config
        drawn = []
        for row, rms in zip(self.rows, self.rms, strict=True):
            tile = systematics.of(TileInstrument.of(config.instrument, rms, config.patch))
            seeds = seed_sequence(config.seed, f"survey/{self.set_name}", self.index, int(row))
            drawn.append(tile.draw(1, config.patch, np.random.default_rng(seeds))[:, 0])
        return np.stack(drawn, axis=1)

    def observe(
        self, q: np.ndarray, u: np.ndarray, systematics: Systematics = AS_CONFIGURED
    ) -> tuple[np.ndarray, np.ndarray]:
        """Noiseless, padded Q̃ and Ũ → as the tiles see them, masked, (n, ny, nx) each in µK."""
        config = self.run.config
        instrument = systematics.of(config.instrument)
        noise = self.noise(systematics)
        q, u = (
            (convolve_beam(maps, instrument, config.patch) + part) * self.mask
            for maps, part in zip(systematics.distort(q, u), noise, strict=True)
        )
        return q, u

    def estimate(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """κ̂ of masked Q̃, Ũ, told the noise of each tile, (n, ny, nx).

        Raises
        ------
        CNNLensError
            if it is not finite
        """
        kappa = self.run.estimator.reconstruct(q, u, self.rms)
        if not np.isfinite(kappa).all():
            raise CNNLensError("κ̂ of a simulated tile is not finite; the network is damaged")
        return kappa

    def measure(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """⟨κ̂κ̂*⟩ and, after that, the power of E and B of masked Q̃, Ũ, (n, n_bins + n_power)."""
        return np.hstack([self.run.bandpowers.auto(self.estimate(q, u)), self.power(q, u)])

    def power(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Of E and B, (n, n_power) in µK²."""
        return self._power(q, u)
