"""Simulations of a survey's mosaic: its normalisation, transfer function and noise.

A mosaic is the map of κ̂ that joins the tiles of a survey. A simulation has one sky, lensed at the
pixels of all tiles, and one noise field that all tiles share. The noise of a tile is that field,
cut like a map, times the rms of its pixels. Tiles that overlap therefore have the same noise.
Pairs (κ, κ̂) on the map's pixels give, under its mask,

    T_L = ⟨κ κ̂*⟩ / ⟨κ κ*⟩,   N_L = ⟨κ̂ κ̂*⟩/T_L² − ⟨κ κ*⟩.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import healpy
import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.response import FIELDS, patch_bandpowers, standard_error
from ..errors import ConfigError
from ..pipeline.run import Run
from ..simulate import patches
from ..simulate.bandpowers import Bins, FlatSpectra
from ..simulate.instrument import convolve_beam
from ..simulate.one_over_f import BOX
from ..simulate.shards import HarmonicSky, SkySettings, draw_sky
from ..simulate.skies import scale_alm, seed_sequence, unit_alm
from .cutting import cut
from .mosaic import BEYOND, Mosaic, Normalisation, bins_to, pixels_within
from .plan import Plan
from .reconstruction import BATCH, TileReconstruction, check_setup
from .tiles import Tile

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

KIND = "mosaic simulation"
ALGORITHM = 1
STAGE = "survey mosaic"
# With fewer simulations, the transfer function would have no error.
LEAST = 2


@dataclass(frozen=True)
class MosaicSimulations:
    """Simulations of a survey's mosaic, with one product for each.

    A product holds ``kappa`` of every tile with its taper, (n_tiles, n, n), the true ``kappa_in``
    on the pixels of the map, and ``auto``, ``cross`` and ``truth`` of every tile under its mask.

    Attributes
    ----------
    reconstructions : of the plan's tiles, and of the tiles that fill the gaps between them
    lmax : largest multipole of the map
    nside : of the map
    seed : of the simulations
    """

    reconstructions: tuple[TileReconstruction, ...]
    lmax: int
    nside: int
    seed: int = 0

    @cached_property
    def tiles(self) -> list[Tile]:
        """All tiles, those of the plan first."""
        return [tile for made in self.reconstructions for tile in made.plan.tiles]

    @property
    def plan(self) -> Plan:
        """Of the survey."""
        return self.reconstructions[0].plan

    @property
    def sky_settings(self) -> SkySettings:
        """Harmonic limits of the skies: those of the configuration, or else the default."""
        fiducial = self.reconstructions[0].setup.fiducial
        return fiducial.config.sky if isinstance(fiducial, Run) else SkySettings()

    @cached_property
    def bins(self) -> Bins:
        """Bins of the response, the transfer function and the noise."""
        return bins_to(self.lmax, self.plan.geometry)

    @cached_property
    def pixels(self) -> np.ndarray:
        """Numbers of the map's pixels in ring order, ascending, (n,)."""
        return np.unique(np.concatenate([pixels_within(t, self.nside)[0] for t in self.tiles]))

    def path(self, number: int) -> Path:
        """Path of the tiles of one simulation.

        Parameters
        ----------
        number : of the simulation, from 0

        Returns
        -------
        path : of the product
        """
        return self.reconstructions[0].folder / "mosaic" / "tiles" / f"sky_{number:04d}.h5"

    def recipe(self, number: int) -> dict[str, Any]:
        """What determines one simulation.

        Parameters
        ----------
        number : of the simulation, from 0

        Returns
        -------
        recipe : of the product
        """
        setup = self.reconstructions[0].setup
        theory = setup.theory
        return {
            "plans": [made.plan.identity for made in self.reconstructions],
            "tiles": [tile.number for tile in self.plan.tiles],
            "mosaic_algorithm": ALGORITHM,
            "estimator": setup.recipe,
            "sky": asdict(self.sky_settings),
            "fiducial": [float(f"{cl.sum():.5g}") for cl in (theory.ee, theory.kk)],
            "bandpowers": vars(self.bins) | {"end": self.lmax},
            "nside": self.nside,
            "seed": self.seed,
            "number": number,
        }

    def measure(
        self, numbers: range, load_estimator: Callable[[], RefinedEstimator], nthreads: int = 0
    ) -> None:
        """Make the simulations that have no product yet. A killed run continues with the next one.

        Parameters
        ----------
        numbers : of the simulations
        load_estimator : gives the estimator; called if a simulation is missing
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
        """
        check_setup(self.plan, self.reconstructions[0].setup)
        todo = [i for i in numbers if not products.exists(self.path(i), KIND, self.recipe(i))]
        if not todo:
            return
        estimator, done = load_estimator(), len(numbers) - len(todo)
        with tqdm(total=len(numbers), initial=done, desc="simulations", unit="sky") as bar:
            for number in todo:
                arrays = self._simulated(number, estimator, nthreads)
                products.write_product(self.path(number), KIND, self.recipe(number), arrays)
                bar.update()

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Read one simulation.

        Parameters
        ----------
        number : of the simulation, from 0

        Returns
        -------
        arrays : by name

        Raises
        ------
        ProductError
            if it is missing, or was made with other inputs
        """
        with products.open_product(self.path(number), KIND, self.recipe(number)) as product:
            return {name: product.array(name) for name in product.names()}

    def normalisation(self, numbers: range) -> Normalisation:
        """Response and noise of the tiles.

        Parameters
        ----------
        numbers : of the simulations

        Returns
        -------
        normalisation : by class of depth
        """
        read = [self.read(number) for number in numbers]
        powers = (np.stack([arrays[name] for arrays in read]) for name in FIELDS)
        return Normalisation.of(self.tiles, self.bins, *powers)

    def mosaics(
        self, numbers: Iterable[int], normalisation: Normalisation
    ) -> Iterator[tuple[Mosaic, np.ndarray]]:
        """Mosaics of simulations, one after another.

        Parameters
        ----------
        numbers : of the simulations
        normalisation : of the tiles

        Returns
        -------
        pairs : an iterator over the map of κ̂ and the true κ on its pixels
        """
        for number in numbers:
            arrays = self.read(number)
            mosaic = Mosaic.of(self.tiles, arrays["kappa"], normalisation, self.nside)
            yield mosaic, arrays["kappa_in"]

    def _simulated(
        self, number: int, estimator: RefinedEstimator, nthreads: int
    ) -> dict[str, np.ndarray]:
        setup, settings = self.reconstructions[0].setup, self.sky_settings
        sky = draw_sky(setup.theory, settings.lmax, self.seed, STAGE, number)
        # Pixel values would alias multipoles that the map of κ̂ does not contain.
        limit = int(BEYOND * self.lmax)
        at = patches.healpix_pointing(self.nside, self.pixels)
        kappa_lm = patches.convergence_alm(sky.philm, sky.lmax, limit)
        kappa_in = patches.scalar_at(kappa_lm, limit, at, nthreads)
        q, u, truth = self._observed(sky, settings, number, nthreads)
        rms = np.stack([tile.rms for tile in self.tiles])
        kappa = np.concatenate(
            [
                estimator.reconstruct(q[rows], u[rows], rms[rows])
                for start in tqdm(range(0, len(q), BATCH), desc="kappa", leave=False)
                for rows in [slice(start, start + BATCH)]
            ]
        )
        spectra = FlatSpectra(self.plan.geometry, self.bins, setup.mask)
        seen = np.stack([tile.seen for tile in self.tiles])
        powers = patch_bandpowers(spectra, kappa * seen, truth * setup.mask * seen)
        # The bandpowers of a tile are means over its seen pixels.
        share = np.array([tile.seen_fraction for tile in self.tiles])[:, None]
        maps = {"kappa": kappa.astype(np.float32), "kappa_in": kappa_in.astype(np.float32)}
        return maps | {name: values / share for name, values in vars(powers).items()}

    def _observed(
        self, sky: HarmonicSky, settings: SkySettings, number: int, nthreads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masked Q and U of all tiles in µK, and their true κ, (n_tiles, n, n) each."""
        setup = self.reconstructions[0].setup
        geometry, centres = setup.patch, np.stack([tile.centre for tile in self.tiles])
        at, n = patches.point_patches(centres, geometry), geometry.n_padded
        gradient = patches.gradient_at(sky.philm, sky.lmax, at, nthreads)
        deflection = patches.deflect_by(gradient, at, nthreads)
        lensed = patches.lensed_polarisation_at(sky.elm, sky.lmax, at, deflection, nthreads)
        kappa_lm = patches.convergence_alm(sky.philm, sky.lmax, settings.band_limit)
        kappa = patches.scalar_at(kappa_lm, settings.band_limit, at, nthreads)
        noise = self._unit_noise(centres, number, nthreads)
        rms = np.stack([np.where(tile.seen, tile.rms, 0.0) for tile in self.tiles])
        mask = np.stack([tile.mask for tile in self.tiles])
        q, u = (
            ((convolve_beam(values.reshape(-1, n, n), setup.instrument, geometry)) + rms * part)
            * mask
            for values, part in ((lensed.real, noise.real), (lensed.imag, noise.imag))
        )
        return q, u, geometry.crop(kappa.reshape(-1, n, n))

    def _unit_noise(self, centres: np.ndarray, number: int, nthreads: int) -> np.ndarray:
        """Noise of all tiles for an rms of one in every pixel, Q + iU, (n_tiles, n, n).

        If the 1/f noise depends on the direction of the scan, this is its mean over directions.
        """
        geometry, excess = self.plan.geometry, self.reconstructions[0].setup.instrument.one_over_f
        ell = np.arange(self.plan.lmax + 1)
        # C_l of white noise whose rms is one in pixels of this size.
        factor = np.full(len(ell), geometry.pixel)
        if excess is not None:
            factor *= np.sqrt(excess.mean_ratio(ell))
            # As the patches that calibrate the estimator, without longer drifts.
            factor[ell < geometry.fundamental / BOX] = 0.0
        generator = np.random.default_rng(seed_sequence(self.seed, f"noise/{STAGE}", number))
        alm = [scale_alm(unit_alm(self.plan.lmax, generator), factor) for _ in range(2)]
        return cut(np.array(alm), self.plan.lmax, centres, geometry, nthreads)


@dataclass(frozen=True)
class MosaicSpectra:
    """Transfer function and noise of a mosaic.

    Attributes
    ----------
    bins : in L
    transfer, transfer_error : T and its standard error, (n_bins,)
    noise, noise_error : N and its standard error, (n_bins,)
    """

    bins: Bins
    transfer: np.ndarray
    transfer_error: np.ndarray
    noise: np.ndarray
    noise_error: np.ndarray

    @classmethod
    def of(
        cls, auto: np.ndarray, cross: np.ndarray, truth: np.ndarray, bins: Bins
    ) -> MosaicSpectra:
        """Compute the transfer function and the noise from simulations.

        Parameters
        ----------
        auto, cross, truth : ⟨κ̂κ̂*⟩, ⟨κκ̂*⟩ and ⟨κκ*⟩ over ⟨mask²⟩, (n_simulations, n_bins) each
        bins : of the bandpowers

        Returns
        -------
        spectra : with errors from the scatter of the simulations

        Raises
        ------
        ConfigError
            if there are too few simulations
        """
        if len(auto) < LEAST:
            raise ConfigError(f"--realisations {len(auto)}: give {LEAST} or more")
        transfer = cross.mean(0) / truth.mean(0)
        error = standard_error(cross - transfer * truth) / truth.mean(0)
        noise = auto / transfer**2 - truth
        # T has the scatter of the same simulations, which changes N to first order.
        slope = -2.0 * auto.mean(0) / transfer**3
        scatter = noise + slope * (cross - transfer * truth) / truth.mean(0)
        return cls(bins, transfer, error, noise.mean(0), standard_error(scatter))

    def table(self, mean_response: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the extension SPECTRA.

        Parameters
        ----------
        mean_response : response by which κ̂ was divided, averaged over the tiles, (n_bins,)

        Returns
        -------
        columns : by name, (n_bins,) each
        """
        return {
            "L_MIN": self.bins.edges[:-1].astype(float),
            "L_MAX": self.bins.edges[1:] - 1.0,
            "L": self.bins.centres,
            "N_L": self.noise,
            "N_L_ERR": self.noise_error,
            "T_L": self.transfer,
            "T_L_ERR": self.transfer_error,
            "R_L": mean_response,
        }


def binned_spectra(mosaic: Mosaic, first: np.ndarray, second: np.ndarray, bins: Bins) -> np.ndarray:
    """Cross-spectrum of the modes of two masked maps over ⟨mask²⟩, without a mode-coupling matrix.

    Parameters
    ----------
    mosaic : whose mask the maps have
    first, second : a_lm of :meth:`.Mosaic.modes`
    bins : in L

    Returns
    -------
    bandpowers : means over the modes of the bins, (n_bins,)
    """
    power = binned(healpy.alm2cl(first, second), bins)
    return power / ((mosaic.mask**2).sum() / (12 * mosaic.nside**2))


def binned(cl: np.ndarray, bins: Bins) -> np.ndarray:
    """Mean of a spectrum over the modes of each bin.

    Parameters
    ----------
    cl : from l = 0, (lmax + 1,)
    bins : in l

    Returns
    -------
    bandpowers : (n_bins,)
    """
    ell = np.arange(len(cl))
    index = np.digitize(ell, bins.edges)
    sums = [np.bincount(index, v, bins.n_bins + 2)[1:-1] for v in ((2 * ell + 1) * cl, 2 * ell + 1)]
    return sums[0] / sums[1]
