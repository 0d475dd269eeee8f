"""Null tests of the tiles of a survey: numbers that should not depend on the sky, or on a choice.

With two splits or more the estimator reconstructs κ̂ of the coadd C, of the halves A and B, and of
their difference D (:mod:`.halves`), with the noise of each map.

A null is zero by parity (EB, ω̂κ̂), or is compared with that of the tile's *matched simulation*: a
lensed sky, flat and cut from a periodic box twice as wide, with the survey's own power of κ and E
(:mod:`.matched_power`), the tile's beam, its noise in each half, and its holes. The simulation
passes the same analysis. The effects of the mask, of the debias and of the estimator are therefore
in both, and cancel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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
from ..theory.camb import Spectra
from .halves import Halves, ratio
from .job import Job
from .map_setup import MapSetup
from .matched_power import MatchedPower
from .reconstruction import TileReconstruction, check_setup
from .tile_maps import TilePatches
from .tiles import Tile

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

KIND, POWER_KIND = "survey nulls", "survey power"
ALGORITHM = 2
# Rounds in which the simulations take the power of the survey.
ROUNDS = 2
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
        choices = self.choices
        return {
            **self._power_recipe,
            "tile": tile.number,
            "lmax": choices.lmax,
            # The key is part of the identity of products that users have.
            "twins": choices.simulations,
            "other_network": estimator_hash(choices.networks) if choices.networks else None,
        }

    @property
    def _power_recipe(self) -> dict[str, Any]:
        """What determines the power of the matched simulations: all tiles, and the fiducial."""
        theory = self.reconstruction.setup.theory
        return {
            **self.reconstruction.recipe,
            "nulls_algorithm": ALGORITHM,
            "seed": self.choices.seed,
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
        kappas = {tile.number: self.reconstruction.read_tile(tile)["kappa"] for tile in plan.tiles}
        bench = Bench(setup, load_estimator(), self.choices)
        bench.match(self._matched_power(bench, kappas))
        missing = {tile.number for tile in todo}
        initial = len(tiles) - len(todo)
        with tqdm(total=len(tiles), initial=initial, desc="nulls", unit="tile") as bar:
            for maps in self.reconstruction.maps.masked():
                tile = maps.tile
                if tile.number not in missing:
                    continue
                arrays = bench.measure(maps, kappas[tile.number])
                products.write_product(self.path(tile), KIND, self.recipe(tile), arrays)
                bar.update()

    def _matched_power(self, bench: Bench, kappas: dict[int, np.ndarray]) -> MatchedPower:
        """Power of the matched simulations, kept when it has been measured."""
        path = self._power_path
        if not products.exists(path, POWER_KIND, self._power_recipe):
            tiles = [(maps, kappas[maps.tile.number]) for maps in self.reconstruction.maps.masked()]
            arrays = {"factors": np.array(bench.measure_power(tiles).factors)}
            products.write_product(path, POWER_KIND, self._power_recipe, arrays)
        return MatchedPower(self._read_factors(), bench.reach)

    @property
    def _power_path(self) -> Path:
        return self.reconstruction.folder / "nulls" / "power.h5"

    def _read_factors(self) -> tuple[float, ...]:
        with products.open_product(self._power_path, POWER_KIND, self._power_recipe) as product:
            return tuple(product.array("factors").tolist())

    def read_e_power(self) -> tuple[float, float]:
        """Read what multiplies C_l^EE in the matched simulations.

        That of C_L^κκ is not read: it would show what a blinded release hides.

        Returns
        -------
        factors : at l = 0 and at the end of the bins

        Raises
        ------
        ProductError
            if it has not been measured, or was otherwise
        """
        _, start, end = self._read_factors()
        return start, end

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
        self.skies = self._skies(setup.theory)
        self.curl = QuadraticEstimator(patch, setup.instrument, mask, setup.theory, curl=True)
        self.other: RefinedEstimator | None = None
        if choices.networks:
            observed = choices.networks, patch, setup.instrument, mask
            other = learned_estimator(*observed, lambda: setup.theory, lmin_b=setup.lmin_b)
            self.other = cast("RefinedEstimator", other)
        self.ell = np.hypot(*plane_vectors(patch.n_pixels, patch.pixel))

    def _skies(self, theory: Spectra) -> PeriodicSkies:
        patch = self.patch
        wide = PatchGeometry(2.0 * patch.size_deg, 2 * patch.n_pixels, pad=0)
        return PeriodicSkies(wide, self.setup.instrument.at_level(1.0), theory)

    @property
    def reach(self) -> float:
        """Multipole at which the bins end."""
        return float(self.spectra.bins.edges[-1])

    def match(self, power: MatchedPower) -> None:
        """Give the simulations that follow the power of the survey.

        Parameters
        ----------
        power : of the survey
        """
        self.skies = self._skies(power.spectra(self.setup.theory))

    def measure_power(self, tiles: Sequence[tuple[TilePatches, np.ndarray]]) -> MatchedPower:
        """Measure the power of a survey, and match it.

        The first round starts at the fiducial power, the next one where that ended, with the same
        phases and noise.

        Parameters
        ----------
        tiles : Q and U of every tile, and κ̂ of its coadd, (n, n)

        Returns
        -------
        power : that the matched simulations now have
        """
        power = MatchedPower((1.0, 1.0, 1.0), self.reach)
        for number in range(ROUNDS):
            self.match(power)
            bar = tqdm(tiles, desc=f"power, round {number + 1} of {ROUNDS}", unit="tile")
            rows = [self._powers(maps, kappa) for maps, kappa in bar]
            power = power.updated(
                self.spectra, {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            )
        self.match(power)
        return power

    def _powers(self, maps: TilePatches, kappa: np.ndarray) -> dict[str, np.ndarray]:
        """Powers of one tile and of a simulation, as :meth:`.MatchedPower.updated` takes them."""
        tile, n = maps.tile, self.patch.n_pixels
        stage = seed_sequence(self.choices.seed, "survey power", tile.number)
        generator = np.random.default_rng(stage)
        phi, sky = self._sky(generator)
        simulated = self._observed(maps, sky, generator)
        own, known = (
            self._modes(values)
            for values in (kappa, self.skies.convergence(phi)[:n, :n] * self.setup.mask)
        )
        estimated = self._modes(
            self.estimator.reconstruct(simulated.q[None], simulated.u[None], tile.rms[None])[0]
        )
        return {
            "tile_kk": self._cross(own, own),
            "tile_ee": self._e_power(maps.q, maps.u),
            "kk": self._cross(estimated, estimated),
            "ee": self._e_power(simulated.q, simulated.u),
            "cross": self._cross(estimated, known),
            "kappa": self._cross(known, known),
            "signal": self._e_power(sky.real * tile.mask, sky.imag * tile.mask),
        }

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
        stage = seed_sequence(self.choices.seed, "survey nulls", maps.tile.number, number)
        generator = np.random.default_rng(stage)
        _, sky = self._sky(generator)
        return self._observed(maps, sky, generator)

    def _sky(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Modes of φ of a box, and Q + iU in µK of a patch of it, (n, n)."""
        n = self.patch.n_pixels
        e, phi = (self.skies.draw(name, generator) for name in ("e", "phi"))
        return phi, self.skies.lensed(e, phi)[:n, :n]

    def _observed(
        self, maps: TilePatches, sky: np.ndarray, generator: np.random.Generator
    ) -> TilePatches:
        """A sky, Q + iU in µK, with the noise and holes of a tile in each split."""
        tile, survey = maps.tile, self.setup.instrument
        q, u = [], []
        for split in range(len(maps.split_q)):
            instrument = TileInstrument.of(survey, tile.split_rms(split), self.patch)
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

    def _e_power(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        e, _ = e_and_b(self.spectra, q[None], u[None])
        return self._cross(e, e)

    def _auto(self, values: np.ndarray) -> np.ndarray:
        modes = self._modes(values)
        return self._cross(modes, modes)

    def _low(self, maps: TilePatches) -> tuple[np.ndarray, np.ndarray]:
        """Q and U without modes beyond l_max, under the tile's mask again, (n, n) each."""
        kept = self.ell <= self.choices.lmax
        # The filter acts on maps without the taper, which they get again afterwards.
        mask = maps.tile.mask
        p = self._band(ratio(maps.q, mask) + 1j * ratio(maps.u, mask), kept) * mask
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
