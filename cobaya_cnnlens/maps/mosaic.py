"""κ̂ of all tiles on the sphere: one HEALPix map, and its weight.

At a pixel of the map, κ̂ with its taper is interpolated between the four nearest pixels of the tile,
and divided by the taper there. The weight is taper² where the tile saw something. It is zero in
holes, where κ̂ follows from the surroundings. Tiles do not overlap. The map is empty near the edges
of a tile, where the taper is below :data:`LEAST`.
"""

from __future__ import annotations

from pathlib import Path

import healpy
import numpy as np
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from ..files import atomic_write
from ..simulate.tiling import project
from .plan import Plan
from .reconstruction import TileReconstruction
from .tiles import Tile

# Pixels of a smaller taper are not written.
LEAST = 0.2


def nside_for(plan: Plan) -> int:
    """Resolution of HEALPix pixels that are no wider than a tile's.

    Parameters
    ----------
    plan : the survey's plan

    Returns
    -------
    nside : a power of two
    """
    return 2 ** int(np.ceil(np.log2(np.sqrt(np.pi / 3.0) / plan.geometry.pixel)))


def make(reconstruction: TileReconstruction, nside: int | None = None) -> Path:
    """Write κ̂ of all tiles and its weight as a HEALPix map of the pixels that have any.

    Parameters
    ----------
    reconstruction : of the tiles
    nside : resolution; by default pixels no wider than a tile's

    Returns
    -------
    path : of the FITS file
    """
    plan, path = reconstruction.plan, reconstruction.folder / "mosaic.fits"
    nside = nside or nside_for(plan)
    kappa = np.full(12 * nside**2, healpy.UNSEEN, np.float32)
    weight = np.zeros(12 * nside**2, np.float32)
    for tile in tqdm(plan.tiles, desc="mosaic", unit="tile"):
        pixels, values, weights = on_sphere(tile, reconstruction.read_tile(tile)["kappa"], nside)
        kappa[pixels], weight[pixels] = values, weights
    weight[kappa == healpy.UNSEEN] = healpy.UNSEEN
    with atomic_write(path) as partial:
        healpy.write_map(
            partial,
            [kappa, weight],
            partial=True,
            coord=plan.frame,
            column_names=["KAPPA", "WEIGHT"],
            column_units="",
            dtype=np.float32,
            overwrite=True,
        )
    return path


def on_sphere(
    tile: Tile, kappa: np.ndarray, nside: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolate κ̂ of a tile on HEALPix pixels.

    Parameters
    ----------
    tile : a tile of the plan
    kappa : with the taper, (n, n)
    nside : resolution of the HEALPix map

    Returns
    -------
    pixels : numbers in ring order, (n,)
    kappa : κ̂ there without the taper, (n,)
    weight : taper² where the tile saw something, else 0, (n,)
    """
    geometry = tile.geometry
    middle = healpy.ang2vec(*tile.centre)
    # A radius r of the plane is the angle 2 arcsin(r/2).
    reach = 2.0 * np.arcsin(0.5 * np.radians(geometry.size_deg) / np.sqrt(2.0))
    pixels = healpy.query_disc(nside, middle, reach)
    x, y = project(np.stack(healpy.pix2vec(nside, pixels), axis=1), tile.centre)
    place = np.stack([y, x]) / geometry.pixel + 0.5 * (geometry.n_pixels - 1)
    inside = np.all((place >= 0) & (place <= geometry.n_pixels - 1), axis=0)
    pixels, place = pixels[inside], place[:, inside]
    taper = map_coordinates(tile.taper, place, order=1)
    seen = map_coordinates(tile.seen.astype(np.uint8), place, order=0) > 0
    kept = taper >= LEAST
    pixels, place, taper, seen = pixels[kept], place[:, kept], taper[kept], seen[kept]
    values = map_coordinates(np.asarray(kappa, float), place, order=1) / taper
    return pixels, values, taper**2 * seen
