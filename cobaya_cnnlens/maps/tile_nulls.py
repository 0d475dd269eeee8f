"""Null tests of the tiles of a survey: numbers that should not depend on the sky, or on a choice.

Splits 0, 2, … make half A, splits 1, 3, … half B, each with the sum of its splits' inverse
variances. With w the halves' shares of that sum, C = w_A A + w_B B is the coadd, and

    D = √(w_A w_B) (A − B)

has no sky. At every pixel it has the variance of C's noise, with which it does not correlate. The
estimator reconstructs κ̂ of C, D, A and B with the noise of each map.

A null is zero by parity (EB, ω̂κ̂), or is compared with that of the tile's *matched simulation*: a
lensed sky of the fiducial theory, flat and cut from a periodic box twice as wide, with the tile's
beam, its noise in each half, and its holes. The simulation passes the same analysis. The effects of
the mask, of the debias and of the estimator are therefore in both, and cancel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import ConfigError
from ..reconstruct.files import estimator_hash, kind_of
from ..reconstruct.learned import learned_estimator
from ..reconstruct.quadratic import QuadraticEstimator
from ..simulate.bandpowers import e_and_b
from ..simulate.modes import plane_vectors
from ..simulate.patches import PatchGeometry
from ..simulate.periodic import PeriodicSkies
from ..simulate.skies import seed_sequence
from ..simulate.tile_instrument import TileInstrument
from .job import Job
from .map_setup import MapSetup
from .reconstruction import TileReconstruction, check_setup
from .tile_maps import TilePatches
from .tiles import Tile

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

KIND = "survey nulls"
ALGORITHM = 1
# In units of the Nyquist multipole, these are the default l_max of the null of that name, and the
# edges of the bands in which the kurtosis looks for bright pixels.
LMAX = 0.65
PEAKS = (0.3, 0.5, 0.7, 0.9)
# Pixels of a smaller taper do not count there.
INNER = 0.5


@dataclass(frozen=True)
class Choices:
    """What the nulls are measured with.

    Attributes
    ----------
    lmax : multipole beyond which E and B are taken off, in one of them
    simulations : matched ones of each tile
    seed : of the simulations
    networks : files of another refining network, or several
    """

    lmax: int
    simulations: int = 1
    seed: int = 0
    networks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        setup: MapSetup,
        lmax: int | None = None,
        simulations: int = 1,
        seed: int = 0,
        networks: tuple[str, ...] = (),
    ) -> Choices:
        """Settings with defaults that follow from the setup.

        Parameters
        ----------
        setup : the patches, instrument and network for which the estimator was calibrated
        lmax : multipole beyond which E and B are removed in one null; by default :data:`LMAX` times
            the Nyquist multipole.
        simulations : matched ones of each tile
        seed : of the simulations
        networks : files of another refining network

        Returns
        -------
        choices : the settings

        Raises
        ------
        ConfigError
            if there is nothing beyond ``lmax`` or below it, or no simulation
        NetworkError
            if a network cannot be read
        """
        patch = setup.patch
        lmax = round(LMAX * patch.nyquist) if lmax is None else lmax
        low, high = (round(m) for m in (3.0 * patch.fundamental, patch.nyquist))
        if not low <= lmax < high:
            raise ConfigError(f"--lmax-cmb {lmax}: give a multipole from {low} to {high - 1}")
        if simulations < 1:
            raise ConfigError(f"--matched-simulations {simulations}: give one or more")
        if networks and kind_of(networks) == "ResUNet":
            raise ConfigError(
                f"--other-network {networks[0]}: a ResUNet on maps; tiles need a refining network"
            )
        if networks and estimator_hash(networks) == setup.network_hash:
            raise ConfigError(
                f"--other-network {networks[0]}: is the network of '{setup.name}' itself; name "
                "another one, as of another seed"
            )
        return cls(lmax, simulations, seed, networks)


@dataclass(frozen=True)
class Halves:
    """Masked Q and U of halves A and B of a tile in µK, (2, n, n) each, and their inverse variance
    per pixel in 1/µK², the same shape, zero where unseen."""

    q: np.ndarray
    u: np.ndarray
    ivar: np.ndarray

    @classmethod
    def of(cls, maps: TilePatches) -> Halves | None:
        """Halves of a tile's splits.

        Parameters
        ----------
        maps : Q and U of a tile, by split and coadded

        Returns
        -------
        halves : of the even and of the odd splits; None if there is but one split
        """
        n = len(maps.split_q)
        if n < 2:
            return None
        groups = [slice(0, n, 2), slice(1, n, 2)]
        splits = maps.tile.split_ivar * maps.tile.seen
        ivar = np.stack([splits[g].sum(0, dtype=float) for g in groups])
        q, u = (
            np.stack([_over((splits[g] * m[g]).sum(0), ivar[i]) for i, g in enumerate(groups)])
            for m in (maps.split_q, maps.split_u)
        )
        return cls(q, u, ivar)

    @property
    def rms(self) -> np.ndarray:
        """Noise of Q and of U of each half per pixel in µK, infinite where unseen, (2, n, n)."""
        return np.where(self.ivar > 0, np.sqrt(_over(1.0, self.ivar)), np.inf)

    @property
    def difference(self) -> tuple[np.ndarray, np.ndarray]:
        """Q and U of D, (n, n) each."""
        share = np.sqrt(_over(self.ivar, self.ivar.sum(0)).prod(0))
        return share * (self.q[0] - self.q[1]), share * (self.u[0] - self.u[1])


def _over(above: np.ndarray | float, below: np.ndarray) -> np.ndarray:
    """Their ratio, zero where ``below`` is."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(below.shape), where=below > 0)


@dataclass(frozen=True)
class TileNulls:
    """The products with the null tests of a survey's tiles.

    A product holds bandpowers of the tile in its first row and of its matched simulations in the
    others, (1 + n_simulations, n_bins): ``kk`` ⟨κ̂κ̂*⟩, ``ee`` ⟨EE*⟩ and ``eb`` ⟨EB*⟩ of the coadd,
    ``curl`` ⟨ω̂κ̂*⟩, ``low`` of κ̂ of E and B to l_max less κ̂, ``other`` of another network's κ̂ less
    κ̂ if there is one, and ``peaks``, (1 + n_simulations, 3), ⟨|P|⁴⟩/⟨|P|²⟩² − 2 of the polarisation
    in bands of l over its noise, zero of Gaussian fields. With two splits or more also ``e_aa``,
    ``e_bb`` and ``e_ab`` of E of the halves, ``noise`` ⟨EE*⟩ + ⟨BB*⟩ of D, ``null`` ⟨κ̂κ̂*⟩ of D,
    ``null_cross`` of that with κ̂, and ``halves`` of κ̂ of A less κ̂ of B.

    Attributes
    ----------
    reconstruction : of the tiles, with their plan and what the estimator was calibrated for
    choices : what the nulls are measured with
    """

    reconstruction: TileReconstruction
    choices: Choices

    def path(self, tile: Tile) -> Path:
        """Path of the null tests of one tile.

        Parameters
        ----------
        tile : of the plan

        Returns
        -------
        path : of the product
        """
        return self.reconstruction.folder / "nulls" / f"tile_{tile.number:04d}.h5"

    def recipe(self, tile: Tile) -> dict[str, Any]:
        """What determines the null tests of one tile.

        Parameters
        ----------
        tile : of the plan

        Returns
        -------
        recipe : of the product
        """
        theory, choices = self.reconstruction.setup.theory, self.choices
        return {
            **self.reconstruction.tile_recipe(tile),
            "nulls_algorithm": ALGORITHM,
            "lmax": choices.lmax,
            # The key is part of the identity of products that users have.
            "twins": choices.simulations,
            "seed": choices.seed,
            "other_network": estimator_hash(choices.networks) if choices.networks else None,
            "fiducial": [float(f"{cl.sum():.5g}") for cl in (theory.ee, theory.kk)],
        }

    def measure(
        self, load_estimator: Callable[[], RefinedEstimator], job: Job | None = None
    ) -> None:
        """Measure the nulls of every tile that has none yet; a killed run goes on with the tile at
        which it was.

        Parameters
        ----------
        load_estimator : gives the estimator; called if a tile is missing
        job : which of several jobs this is, and measures its own tiles; None for all tiles

        Raises
        ------
        ProductError
            if a tile has not been reconstructed, or was from other maps or with another estimator
        """
        plan, setup = self.reconstruction.plan, self.reconstruction.setup
        check_setup(plan, setup)
        tiles = plan.tiles if job is None else job.of(plan.tiles)
        todo = [
            tile for tile in tiles if not products.exists(self.path(tile), KIND, self.recipe(tile))
        ]
        if not todo:
            return
        # A tile without κ̂ is an error before anything slow.
        kappas = {tile.number: self.reconstruction.read_tile(tile)["kappa"] for tile in todo}
        bench = None
        initial = len(tiles) - len(todo)
        with tqdm(total=len(tiles), initial=initial, desc="nulls", unit="tile") as bar:
            for maps in self.reconstruction.maps.masked():
                tile = maps.tile
                if tile.number not in kappas:
                    continue
                bench = bench or Bench(setup, load_estimator(), self.choices)
                arrays = bench.measure(maps, kappas[tile.number])
                products.write_product(self.path(tile), KIND, self.recipe(tile), arrays)
                bar.update()

    def read(self) -> dict[str, np.ndarray]:
        """Read the null tests of all tiles.

        Returns
        -------
        arrays : by name, (n_tiles, 1 + n_simulations, n_bins) each

        Raises
        ------
        ProductError
            if a tile is missing, or was measured otherwise
        """
        parts = []
        for tile in self.reconstruction.plan.tiles:
            with products.open_product(self.path(tile), KIND, self.recipe(tile)) as product:
                parts.append({name: product.array(name) for name in product.names()})
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


class Bench:
    """Measures tiles, and draws and measures their matched simulations."""

    def __init__(self, setup: MapSetup, estimator: RefinedEstimator, choices: Choices):
        self.setup, self.estimator, self.choices = setup, estimator, choices
        patch, mask = setup.patch, setup.mask
        self.patch, self.spectra = patch, setup.spectra
        wide = PatchGeometry(2.0 * patch.size_deg, 2 * patch.n_pixels, pad=0)
        self.skies = PeriodicSkies(wide, setup.instrument.at_level(1.0), setup.theory)
        self.curl = QuadraticEstimator(patch, setup.instrument, mask, setup.theory, curl=True)
        self.other: RefinedEstimator | None = None
        if choices.networks:
            other = learned_estimator(
                choices.networks, patch, setup.instrument, mask, lambda: setup.theory
            )
            self.other = cast("RefinedEstimator", other)
        self.ell = np.hypot(*plane_vectors(patch.n_pixels, patch.pixel))

    def measure(self, maps: TilePatches, kappa: np.ndarray) -> dict[str, np.ndarray]:
        """Measure the null tests of one tile and its matched simulations.

        Parameters
        ----------
        maps : Q and U of the tile, by split and coadded
        kappa : κ̂ of the tile's coadd, (n, n)

        Returns
        -------
        arrays : by name as :class:`TileNulls` lists them, (1 + n_simulations, n_bins) each
        """
        rows = [self._measured(maps, Halves.of(maps), kappa)]
        for number in range(self.choices.simulations):
            simulated = self.simulated(maps, number)
            rows.append(self._measured(simulated, Halves.of(simulated), None))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def simulated(self, maps: TilePatches, number: int) -> TilePatches:
        """Draw a matched simulation of a tile, with its splits.

        Parameters
        ----------
        maps : Q and U of a tile, by split and coadded
        number : number of the simulation, from 0

        Returns
        -------
        maps : Q and U of the simulation, with the tile's noise and holes
        """
        tile, n, setup = maps.tile, self.patch.n_pixels, self.setup
        stage = seed_sequence(self.choices.seed, "survey nulls", tile.number, number)
        generator = np.random.default_rng(stage)
        e, phi = (self.skies.draw(name, generator) for name in ("e", "phi"))
        sky = self.skies.lensed(e, phi)[:n, :n]
        q, u = [], []
        for split in range(len(maps.split_q)):
            instrument = TileInstrument.of(setup.instrument, tile.split_rms(split), self.patch)
            noise = instrument.draw(1, self.patch, generator)[:, 0]
            q.append((sky.real + noise[0]) * tile.mask)
            u.append((sky.imag + noise[1]) * tile.mask)
        return TilePatches.of_splits(tile, np.stack(q), np.stack(u))

    def _measured(
        self, maps: TilePatches, halves: Halves | None, kappa: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Of one tile or simulation; ``kappa`` as in :meth:`measure`, None to be reconstructed."""
        tile = maps.tile
        inputs = {"low": (*self._low(maps), tile.rms)}
        if kappa is None:
            inputs["coadd"] = (maps.q, maps.u, tile.rms)
        if halves is not None:
            inputs["null"] = (*halves.difference, tile.rms)
            inputs |= {
                half: (halves.q[i], halves.u[i], halves.rms[i]) for i, half in enumerate("ab")
            }
        stacked = [np.stack(parts) for parts in zip(*inputs.values(), strict=True)]
        estimates = dict(zip(inputs, self.estimator.reconstruct(*stacked), strict=True))
        kappa = estimates["coadd"] if kappa is None else kappa
        coadd = maps.q[None], maps.u[None]
        e, b = e_and_b(self.spectra, *coadd)
        modes = self._modes(kappa)
        arrays = {
            "kk": self._cross(modes, modes),
            "ee": self._cross(e, e),
            "eb": self._cross(e, b),
            "curl": self._cross(self._modes(self.curl.reconstruct(*coadd)[0]), modes),
            "low": self._auto(estimates["low"] - kappa),
            "peaks": self._peaks(maps),
        }
        if self.other is not None:
            other = self.other.reconstruct(*coadd, tile.rms[None])[0]
            arrays["other"] = self._auto(other - kappa)
        if halves is not None:
            e, _ = e_and_b(self.spectra, halves.q, halves.u)
            null_e, null_b = e_and_b(self.spectra, *(m[None] for m in halves.difference))
            null = self._modes(estimates["null"])
            arrays |= {
                "e_aa": self._cross(e[:1], e[:1]),
                "e_bb": self._cross(e[1:], e[1:]),
                "e_ab": self._cross(e[:1], e[1:]),
                "noise": self._cross(null_e, null_e) + self._cross(null_b, null_b),
                "null": self._cross(null, null),
                "null_cross": self._cross(null, modes),
                "halves": self._auto(estimates["a"] - estimates["b"]),
            }
        return arrays

    def _modes(self, values: np.ndarray) -> np.ndarray:
        return self.spectra.transform(np.asarray(values, float)[None])

    def _cross(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.spectra.cross(a, b)[0]

    def _auto(self, values: np.ndarray) -> np.ndarray:
        modes = self._modes(values)
        return self._cross(modes, modes)

    def _low(self, maps: TilePatches) -> tuple[np.ndarray, np.ndarray]:
        """Q and U without modes beyond l_max, under the tile's mask again, (n, n) each."""
        kept = self.ell <= self.choices.lmax
        # The filter acts on maps without the taper, which they get again afterwards.
        mask = maps.tile.mask
        p = self._band(_over(maps.q, mask) + 1j * _over(maps.u, mask), kept) * mask
        return p.real, p.imag

    def _band(self, p: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Some modes of a map, (n, n)."""
        return np.fft.ifft2(kept * np.fft.fft2(p))

    def _peaks(self, maps: TilePatches) -> np.ndarray:
        """⟨|P|⁴⟩/⟨|P|²⟩² − 2 in bands of l over the noise of the pixels, (3,)."""
        tile, at = maps.tile, self.ell / self.patch.nyquist
        used = tile.seen & (tile.taper > INNER)
        kurtosis = []
        for low, high in itertools.pairwise(PEAKS):
            p = self._band(maps.q + 1j * maps.u, (at >= low) & (at < high))
            power = np.abs(p[used] / (tile.taper * tile.rms)[used]) ** 2
            kurtosis.append(np.mean(power**2) / np.mean(power) ** 2 - 2.0)
        return np.array(kurtosis)
