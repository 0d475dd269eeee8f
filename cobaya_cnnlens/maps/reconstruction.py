"""κ̂ of observed patches and their bandpowers: of a user's own patches, and of a survey's tiles.

An estimator of own patches knows the noise of its instrument. One of tiles must be a refining
network. Its features (:mod:`..reconstruct.features`) contain the noise and holes of each tile: the
rms of every pixel of the coadd, infinite in unseen ones. κ̂ then carries the taper of the patches
that calibrate it, and in a hole it follows from the surroundings. Bandpowers and the power of E and
B are divided by ⟨M²⟩ of that taper, with or without holes, in the data as in their calibration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import ConfigError, MapError
from ..files import atomic_write
from ..reconstruct import Estimator
from . import map_checks
from .bandpower_file import KIND, MapBandpowers, writing
from .images import write_kappa
from .job import Job
from .map_setup import MapSetup
from .patch_maps import PatchMaps
from .plan import Plan
from .tile_maps import TileMaps, TilePatches
from .tiles import Tile

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

TILE_KIND = "survey tile"
ALGORITHM = 1
# So many tiles are reconstructed at a time; a killed run loses these.
BATCH = 4


def reconstruct_maps(
    setup: MapSetup,
    estimator: Estimator,
    maps: PatchMaps,
    folder: str | Path,
    warnings: Sequence[str] = (),
) -> Path:
    """Reconstruct a user's patches: κ̂ of each as a FITS image, and their bandpowers.

    κ̂ of maps that came as arrays is written as one array too, ``kappa.npz`` with ``kappa``
    (n_patches, n, n) in the patches' frame.

    Parameters
    ----------
    setup : the patches, instrument and network for which the estimator was calibrated
    estimator : with the noise of that instrument
    maps : of the patches
    folder : where ``kappa_000.fits`` and so on and ``bandpowers.h5`` go
    warnings : of :func:`~cobaya_cnnlens.maps.map_checks.check_maps`, kept with the bandpowers

    Returns
    -------
    path of the bandpowers, from which :mod:`~cobaya_cnnlens.maps.assembly` makes a release

    Raises
    ------
    MapError
        if κ̂ is not finite, or the folder cannot be written
    """
    folder = Path(folder)
    mask = setup.mask * setup.instrument.seen(setup.patch)
    q, u = maps.q * mask, maps.u * mask
    measured = _measured(setup, estimator.reconstruct(q, u), q, u, maps.source)
    with writing(folder):
        for i, (kappa, centre) in enumerate(zip(measured["kappa"], maps.centres, strict=True)):
            image = folder / f"kappa_{i:03d}.fits"
            write_kappa(image, kappa, centre, setup.patch, maps.frame, **setup.cards)
        if maps.arrays:
            with atomic_write(folder / "kappa.npz") as partial:
                np.savez(partial, kappa=measured["kappa"].astype(np.float32))
        path = folder / "bandpowers.h5"
        rotation = setup.power.rotation(q, u)
        whole = measured["auto"], measured["power"], rotation, maps.centres
        MapBandpowers(*whole, maps.frame, maps.source, tuple(warnings)).write(path, setup.recipe)
    return path


def _measured(
    setup: MapSetup, kappa: np.ndarray, q: np.ndarray, u: np.ndarray, source: str
) -> dict[str, np.ndarray]:
    """κ̂ of masked patches, (n, ny, nx) in µK of Q and U, with its bandpowers and their power."""
    if not np.isfinite(kappa).all():
        raise MapError(f"{source}: κ̂ is not finite; the network is damaged: restore it")
    return {"kappa": kappa, "auto": setup.spectra.auto(kappa), "power": setup.power(q, u)}


def check_setup(plan: Plan, setup: MapSetup) -> None:
    """Refuse an estimator of other patches than the plan's.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated

    Raises
    ------
    ConfigError
    """
    patch = plan.geometry
    pairs = {
        "--patch-deg": (patch.size_deg, setup.patch.size_deg),
        "--patch-pixels": (patch.n_pixels, setup.patch.n_pixels),
        "--taper": (plan.taper_deg, setup.instrument.taper_deg),
    }
    for option, (planned, calibrated) in pairs.items():
        if planned != calibrated:
            raise ConfigError(
                f"{plan.path}: planned with {option} {planned:g}, '{setup.name}' was calibrated "
                f"with {calibrated:g}; plan again with {option} {calibrated:g}"
            )


def check(plan: Plan, setup: MapSetup, tiles: Sequence[TilePatches]) -> list[str]:
    """Check the tiles' Q and U as those of patches, each with its own noise and holes.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated
    tiles : Q and U of every tile

    Returns
    -------
    warnings

    Raises
    ------
    MapError
        as :func:`~cobaya_cnnlens.maps.map_checks.check_maps`
    """
    # The maps carry the taper already, which may be zero at the edge.
    tapers = [np.where(maps.tile.taper > 0.0, maps.tile.taper, 1.0) for maps in tiles]
    patches = PatchMaps(
        np.stack([maps.q / taper for maps, taper in zip(tiles, tapers, strict=True)]),
        np.stack([maps.u / taper for maps, taper in zip(tiles, tapers, strict=True)]),
        np.array([maps.tile.centre for maps in tiles]),
        plan.lmax,
        source=str(plan.path),
        rms=np.stack([maps.tile.rms for maps in tiles]),
        noun="tile",
        tiles=np.array([maps.tile.number for maps in tiles]),
    )
    return map_checks.check_maps(patches, setup)


@dataclass(frozen=True)
class TileReconstruction:
    """The products with κ̂ of a survey's tiles, and their bandpowers.

    Attributes
    ----------
    plan : of the survey
    setup : the patches, instrument and network for which the estimator was calibrated
    folder : of the survey's products
    """

    plan: Plan
    setup: MapSetup
    folder: Path

    @property
    def path(self) -> Path:
        """Of the bandpowers of all tiles."""
        return self.folder / "bandpowers.h5"

    @property
    def maps(self) -> TileMaps:
        """Q and U of the tiles."""
        return TileMaps(self.plan, self.folder)

    @property
    def _inputs(self) -> dict[str, Any]:
        """What determines κ̂ of every tile."""
        return {
            "maps": [self.maps.recipe(split) for split in range(self.plan.n_splits)],
            "survey_algorithm": ALGORITHM,
            "estimator": self.setup.recipe,
        }

    @property
    def recipe(self) -> dict[str, Any]:
        """What determines the bandpowers of all tiles."""
        tiles = [tile.number for tile in self.plan.tiles]
        return self._inputs | {"tiles": tiles, "checks": map_checks.ALGORITHM}

    def tile_recipe(self, tile: Tile) -> dict[str, Any]:
        """What determines κ̂ of one tile.

        Parameters
        ----------
        tile : of the plan

        Returns
        -------
        recipe : of the product
        """
        return self._inputs | {"tile": tile.number}

    def tile_path(self, tile: Tile) -> Path:
        """Path of κ̂ of one tile, with its bandpowers.

        Parameters
        ----------
        tile : of the plan

        Returns
        -------
        path : of the product
        """
        return self.folder / "tiles" / f"tile_{tile.number:04d}.h5"

    def image_path(self, tile: Tile) -> Path:
        """Path of κ̂ of one tile as a FITS image with its WCS.

        Parameters
        ----------
        tile : of the plan

        Returns
        -------
        path : of the FITS file
        """
        return self.folder / f"kappa_{tile.number:04d}.fits"

    def measure(
        self,
        load_estimator: Callable[[], RefinedEstimator],
        nthreads: int = 0,
        warn: Callable[[str], object] = warnings.warn,
        job: Job | None = None,
    ) -> Path:
        """Check the tiles' maps, reconstruct every tile that is not there yet, write κ̂ as FITS
        images and all bandpowers.

        One of several jobs only reconstructs its own tiles.

        Parameters
        ----------
        load_estimator : gives the estimator, which is told the noise; called if a tile is missing
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
        warn : called with each warning of the maps, before anything is reconstructed
        job : which of several jobs this is; None for the whole

        Returns
        -------
        path of the bandpowers, which one of several jobs does not write

        Raises
        ------
        MapError
            if the maps are not those of the plan, or as :func:`check`
        """
        plan, setup = self.plan, self.setup
        check_setup(plan, setup)
        self.maps.measure(nthreads)
        maps = {patches.tile.number: patches for patches in self.maps.masked()}
        # Tiles that fill tapers are of maps which the tiles of the plan itself have checked.
        suspicious = [] if plan.overlaps else check(plan, setup, list(maps.values()))
        for warning in suspicious:
            warn(warning)
        tiles = plan.tiles if job is None else job.of(plan.tiles)
        todo = [
            maps[tile.number]
            for tile in tiles
            if not products.exists(self.tile_path(tile), TILE_KIND, self.tile_recipe(tile))
        ]
        if todo:
            estimator = load_estimator()
            initial = len(tiles) - len(todo)
            with tqdm(total=len(tiles), initial=initial, desc="kappa", unit="tile") as bar:
                for start in range(0, len(todo), BATCH):
                    batch = todo[start : start + BATCH]
                    self._reconstruct(estimator, batch)
                    bar.update(len(batch))
        if job is not None:
            return self.path
        measured = []
        for tile in tqdm(plan.tiles, desc="images", unit="tile"):
            arrays = self.read_tile(tile)
            measured.append((arrays["auto"], arrays["power"]))
            cards = {**setup.cards, "TILE": tile.number}
            image = self.image_path(tile)
            write_kappa(image, arrays["kappa"], tile.centre, setup.patch, plan.frame, **cards)
        auto, power = (np.stack(values) for values in zip(*measured, strict=True))
        masked = (np.stack([getattr(maps[t.number], name) for t in plan.tiles]) for name in "qu")
        whole = auto, power, setup.power.rotation(*masked), plan.centres
        source = ", ".join(Path(name).name for name in plan.sources.maps)
        bandpowers = MapBandpowers(*whole, plan.frame, source, tuple(suspicious))
        bandpowers.write(self.path, self.recipe)
        return self.path

    def _reconstruct(self, estimator: RefinedEstimator, batch: list[TilePatches]) -> None:
        q, u, rms = (
            np.stack(parts)
            for parts in zip(*((maps.q, maps.u, maps.tile.rms) for maps in batch), strict=True)
        )
        kappa = estimator.reconstruct(q, u, rms)
        measured = _measured(self.setup, kappa, q, u, str(self.plan.path))
        measured["kappa"] = measured["kappa"].astype(np.float32)
        for i, maps in enumerate(batch):
            arrays = {name: values[i] for name, values in measured.items()}
            path, recipe = self.tile_path(maps.tile), self.tile_recipe(maps.tile)
            products.write_product(path, TILE_KIND, recipe, arrays)

    def read_tile(self, tile: Tile) -> dict[str, np.ndarray]:
        """Read κ̂ and the bandpowers of one tile.

        Parameters
        ----------
        tile : of the plan

        Returns
        -------
        arrays : ``kappa`` with the taper, (n, n), ``auto``, (n_bins,), and ``power``, (n_power,)

        Raises
        ------
        ProductError
            if it is missing, or was made with another plan or estimator
        """
        path, recipe = self.tile_path(tile), self.tile_recipe(tile)
        with products.open_product(path, TILE_KIND, recipe) as product:
            return {name: product.array(name) for name in product.names()}

    def read(self) -> MapBandpowers:
        """Read the bandpowers of all tiles.

        Returns
        -------
        bandpowers : of the tiles, before any calibration

        Raises
        ------
        ProductError
            if they are missing, or were made with another plan or estimator
        """
        command = "survey reconstruct PLAN"
        with products.open_product(self.path, KIND, self.recipe, command=command) as product:
            return MapBandpowers.of(product)
