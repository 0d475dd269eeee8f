"""κ̂ of a survey's tiles, each with its own noise, holes and edges, and the tiles' bandpowers.

The refining network knows noise and holes through its features (:mod:`..reconstruct.features`):
the rms of every pixel of the coadd, infinite where nothing was seen. κ̂ therefore carries the taper
of the patches that calibrate it, and in a hole what its surroundings say. Bandpowers and the power
of E and B are divided by ⟨M²⟩ of that taper, holes or not: a calibration of the tile has the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import ConfigError, MapError
from ..simulate.bandpowers import EBPower
from . import map_checks, tile_maps
from .map_setup import MapSetup
from .patch_files import write_kappa
from .plan import Plan, Tile
from .tile_maps import TilePatches

if TYPE_CHECKING:
    from ..reconstruct.refined import RefinedEstimator

KIND, TILE_KIND = "survey bandpowers", "survey tile"
ALGORITHM = 1
# Tiles at a time: a killed run loses these.
BATCH = 4


@dataclass(frozen=True)
class SurveyBandpowers:
    """Of a survey's tiles, before any calibration.

    Attributes
    ----------
    auto : ⟨κ̂κ̂*⟩, (n_tiles, n_bins)
    power : of E and B, as :class:`.EBPower`, (n_tiles, n_power) in
        µK²
    numbers : of the tiles, (n_tiles,)
    centres : colatitude and longitude in radians, (n_tiles, 2)
    depth : in µK′, (n_tiles,)
    weight : of :attr:`.plan.Tile.weight`, (n_tiles,)
    warnings : what is suspicious of the maps, as :func:`check` says
    """

    auto: np.ndarray
    power: np.ndarray
    numbers: np.ndarray
    centres: np.ndarray
    depth: np.ndarray
    weight: np.ndarray
    warnings: tuple[str, ...]


def path(folder: str | Path) -> Path:
    """Path of the bandpowers of all tiles.

    Parameters
    ----------
    folder : the survey's products

    Returns
    -------
    path : of the product
    """
    return Path(folder) / "bandpowers.h5"


def tile_path(folder: str | Path, tile: Tile) -> Path:
    """Path of κ̂ of one tile, with its bandpowers.

    Parameters
    ----------
    folder : the survey's products
    tile : a tile of the plan

    Returns
    -------
    path : of the product
    """
    return Path(folder) / "tiles" / f"tile_{tile.number:04d}.h5"


def image_path(folder: str | Path, tile: Tile) -> Path:
    """Path of κ̂ of one tile as a FITS image with its WCS.

    Parameters
    ----------
    folder : the survey's products
    tile : a tile of the plan

    Returns
    -------
    path : of the FITS file
    """
    return Path(folder) / f"kappa_{tile.number:04d}.fits"


def tile_recipe(plan: Plan, setup: MapSetup, tile: Tile) -> dict[str, Any]:
    """What determines κ̂ of one tile.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated
    tile : a tile of the plan

    Returns
    -------
    recipe : of the product
    """
    return {
        "maps": [tile_maps.recipe(plan, split) for split in range(plan.n_splits)],
        "tile": tile.number,
        "survey_algorithm": ALGORITHM,
        "estimator": setup.recipe,
    }


def recipe(plan: Plan, setup: MapSetup) -> dict[str, Any]:
    """What determines the bandpowers of all tiles.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated

    Returns
    -------
    recipe : of the product
    """
    return {
        "tiles": [tile.number for tile in plan.tiles],
        **{key: v for key, v in tile_recipe(plan, setup, plan.tiles[0]).items() if key != "tile"},
        "checks": map_checks.ALGORITHM,
    }


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
    for option, (planned, wanted) in pairs.items():
        if planned != wanted:
            raise ConfigError(
                f"{plan.path}: planned with {option} {planned:g}, '{setup.name}' was calibrated "
                f"with {wanted:g}; plan again with {option} {wanted:g}"
            )


def measure(
    plan: Plan,
    setup: MapSetup,
    load_estimator: Callable[[], RefinedEstimator],
    folder: str | Path,
    nthreads: int = 0,
    warn: Callable[[str], object] = warnings.warn,
) -> Path:
    """Check the tiles' maps, reconstruct every tile that is not there yet, write κ̂ as FITS images
    and all bandpowers.

    Parameters
    ----------
    plan : the survey's plan
    setup : what the estimator was calibrated for
    load_estimator : gives the estimator, a
        :class:`~cobaya_cnnlens.reconstruct.refined.RefinedEstimator`; called if a tile is missing
    folder : the survey's products
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
    warn : called with each warning of the maps, before anything is reconstructed

    Returns
    -------
    path of the bandpowers

    Raises
    ------
    MapError
        if the maps are not those of the plan, or as :func:`check`
    """
    check_setup(plan, setup)
    tile_maps.measure(plan, folder, nthreads)
    maps = {found.tile.number: found for found in tile_maps.masked_patches(plan, folder)}
    suspicious = check(plan, setup, list(maps.values()))
    for warning in suspicious:
        warn(warning)
    todo = [
        tile
        for tile in plan.tiles
        if not products.exists(tile_path(folder, tile), TILE_KIND, tile_recipe(plan, setup, tile))
    ]
    if todo:
        estimator = load_estimator()
        power = EBPower(setup.patch, setup.bins, setup.mask)
        with tqdm(total=len(plan.tiles), initial=len(plan.tiles) - len(todo), desc="kappa") as bar:
            for start in range(0, len(todo), BATCH):
                batch = [maps[tile.number] for tile in todo[start : start + BATCH]]
                _reconstruct(plan, setup, estimator, power, batch, folder)
                bar.update(len(batch))
    arrays: dict[str, list[np.ndarray]] = {"auto": [], "power": []}
    for tile in tqdm(plan.tiles, desc="images", unit="tile"):
        found = read_tile(plan, setup, tile, folder)
        for name, parts in arrays.items():
            parts.append(found[name])
        cards = {"NETWORK": setup.network_hash[:16], "CONFIG": setup.name, "TILE": tile.number}
        image = image_path(folder, tile)
        write_kappa(image, found["kappa"], tile.centre, setup.patch, plan.frame, **cards)
    whole: dict[str, Any] = {
        **{name: np.stack(parts) for name, parts in arrays.items()},
        "numbers": np.array([tile.number for tile in plan.tiles]),
        "centres": plan.centres,
        "depth": np.array([tile.depth for tile in plan.tiles]),
        "weight": np.array([tile.weight for tile in plan.tiles]),
        "warnings": products.texts(suspicious),
    }
    products.write_product(path(folder), KIND, recipe(plan, setup), whole)
    return path(folder)


def _reconstruct(
    plan: Plan,
    setup: MapSetup,
    estimator: RefinedEstimator,
    power: EBPower,
    batch: list[TilePatches],
    folder: str | Path,
) -> None:
    q, u = np.stack([maps.q for maps in batch]), np.stack([maps.u for maps in batch])
    kappa = estimator.reconstruct(q, u, np.stack([maps.tile.rms for maps in batch]))
    if not np.isfinite(kappa).all():
        raise MapError(f"{plan.path}: κ̂ is not finite; the network is damaged: restore it")
    auto, of_maps = setup.spectra.auto(kappa), power(q, u)
    for i, maps in enumerate(batch):
        arrays = {"kappa": kappa[i].astype(np.float32), "auto": auto[i], "power": of_maps[i]}
        where, wanted = tile_path(folder, maps.tile), tile_recipe(plan, setup, maps.tile)
        products.write_product(where, TILE_KIND, wanted, arrays)


def check(plan: Plan, setup: MapSetup, maps: list[TilePatches]) -> list[str]:
    """Check the tiles' Q and U as :func:`~cobaya_cnnlens.maps.map_checks.check_patches` does,
    each with its own noise and holes.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated
    maps : Q and U of every tile

    Returns
    -------
    warnings

    Raises
    ------
    MapError
    """
    # The maps carry the taper already, which may be zero at the edge.
    tapers = [np.where(found.tile.taper > 0.0, found.tile.taper, 1.0) for found in maps]
    q, u = (
        np.stack([m / taper for m, taper in zip(masked, tapers, strict=True)])
        for masked in ([found.q for found in maps], [found.u for found in maps])
    )
    rms = np.stack([found.tile.rms for found in maps])
    numbers = np.array([found.tile.number for found in maps])
    tiles = map_checks.Patches(q, u, rms, plan.lmax, str(plan.path), "tile", numbers)
    return map_checks.check_patches(tiles, setup)


def read_tile(plan: Plan, setup: MapSetup, tile: Tile, folder: str | Path) -> dict[str, Any]:
    """Read κ̂ and the bandpowers of one tile.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated
    tile : a tile of the plan
    folder : the survey's products

    Returns
    -------
    arrays : ``kappa`` with the taper, (n, n), ``auto``, (n_bins,), and ``power``, (n_power,)

    Raises
    ------
    ProductError
        if it is missing, or was made with another plan or estimator
    """
    where, wanted = tile_path(folder, tile), tile_recipe(plan, setup, tile)
    with products.open_product(where, TILE_KIND, wanted) as product:
        return {name: product.array(name) for name in product.names()}


def read(plan: Plan, setup: MapSetup, folder: str | Path) -> SurveyBandpowers:
    """Read the bandpowers of all tiles.

    Parameters
    ----------
    plan : the survey's plan
    setup : the patches, instrument and network for which the estimator was calibrated
    folder : the survey's products

    Returns
    -------
    bandpowers : of the tiles, before any calibration

    Raises
    ------
    ProductError
        if they are missing, or were made with another plan or estimator
    """
    with products.open_product(path(folder), KIND, recipe(plan, setup)) as product:
        arrays = {name: product.array(name) for name in product.names() if name != "warnings"}
        return SurveyBandpowers(**arrays, warnings=tuple(product.texts("warnings")))
