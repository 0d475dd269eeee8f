"""Q and U of every tile: one product for each split.

What is not seen, holes and the survey's edge, is filled smoothly before the harmonic analysis (see
:func:`.grids.fill`). One synthesis gives all tiles' pixels, nothing is interpolated: on pixels of
half the patch's, since the a_lm go to the corner of its modes, √2 of the Nyquist multipole, and
would alias. Modes beyond the patch's are then taken off, so that white noise of the maps is white
noise of the patch, with variance 1/(Δ² ρ).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ducc0
import healpy
import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import MapError, ProductError
from ..simulate.patches import EPSILON, PatchGeometry, point_patches
from .grids import HealpixGrid, fill
from .patch_files import pixel_window_of
from .plan import Plan, Tile, splits_of

KIND = "survey maps"
ALGORITHM = 1
# Pixels of a patch to which maps go on where they end.
BEYOND = 8
# Around a patch while modes beyond its own are taken off: a part of its side, and pixels at least.
# Fields to .87 of the Nyquist multipole come out to 4e-4 of their rms at 128² pixels, .5% at 32².
BORDER, LEAST_BORDER = 4, 16
# Tiles whose pixels are synthesised at a time.
CHUNK = 100


@dataclass(frozen=True)
class TilePatches:
    """Masked Q and U of a tile in µK, in the patch's frame: of each split, (n_splits, n, n), and of
    the coadd, their mean weighted by the inverse variance, (n, n)."""

    tile: Tile
    split_q: np.ndarray
    split_u: np.ndarray
    q: np.ndarray
    u: np.ndarray

    @classmethod
    def of_splits(cls, tile: Tile, split_q: np.ndarray, split_u: np.ndarray) -> TilePatches:
        """Masked patches of a tile, with the coadd of their splits.

        Parameters
        ----------
        tile : a tile of the plan
        split_q : masked Q of each split in µK, (n_splits, n, n)
        split_u : masked U of each split in µK, (n_splits, n, n)

        Returns
        -------
        patches : the splits and their mean weighted by the inverse variance
        """
        total = tile.split_ivar.sum(0, dtype=float)
        share = np.divide(tile.split_ivar, total, out=np.zeros(split_q.shape), where=tile.seen)
        return cls(tile, split_q, split_u, (share * split_q).sum(0), (share * split_u).sum(0))


def path(plan: Plan, folder: str | Path, split: int) -> Path:
    """Path of the patches of one split.

    Parameters
    ----------
    plan : the survey's plan
    folder : the survey's products
    split : number of the split, from 0

    Returns
    -------
    path : of the product
    """
    return Path(folder) / "maps" / f"split_{split}.h5"


def recipe(plan: Plan, split: int) -> dict[str, Any]:
    """What determines the patches of one split; of the plan's tiles, those that it began with.

    Parameters
    ----------
    plan : the survey's plan
    split : number of the split, from 0

    Returns
    -------
    recipe : of the product
    """
    return {"plan": plan.identity, "split": split, "maps_algorithm": ALGORITHM}


def measure(plan: Plan, folder: str | Path, nthreads: int = 0) -> None:
    """Cut the patches of every split that are not there yet; a killed run goes on with the split
    at which it was.

    A product holds ``q`` and ``u``, (n_tiles, n, n) in µK without a mask, zero where unseen, and
    ``numbers`` of the tiles.

    Parameters
    ----------
    plan : the survey's plan
    folder : the survey's products
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

    Raises
    ------
    MapError
        if the files are not those of the plan, or cannot be used
    """
    todo = [
        split
        for split in range(plan.n_splits)
        if not products.exists(path(plan, folder, split), KIND, recipe(plan, split))
    ]
    if not todo:
        return
    splits = tqdm(splits_of(plan, todo), desc="patches", total=len(todo), unit="split")
    for number, split in zip(todo, splits, strict=True):
        # Told before anything slow, if it cannot be had.
        window = _window(plan, split.grid) if plan.sources.pixel_window else None
        known = split.density > 0
        pixels = int(np.ceil(BEYOND * plan.geometry.pixel / split.grid.step))
        q, u = fill(split.grid, split.maps, known, pixels)
        alm = split.grid.harmonics(q, u, plan.lmax, nthreads)
        del q, u
        if window is not None:
            alm = np.array([healpy.almxfl(a, window) for a in alm])
        p = cut(alm, plan.lmax, plan.centres, plan.geometry, nthreads)
        p = np.where([tile.seen for tile in plan.tiles], p, 0.0)
        if not np.isfinite(p).all():
            raise MapError(f"{plan.sources.maps[number]}: its patches are not finite; restore it")
        arrays = {
            "q": p.real.astype(np.float32),
            "u": p.imag.astype(np.float32),
            "numbers": np.array([tile.number for tile in plan.tiles]),
        }
        products.write_product(path(plan, folder, number), KIND, recipe(plan, number), arrays)


def _window(plan: Plan, grid: HealpixGrid) -> np.ndarray:
    """By what a_lm are multiplied to take the pixels' window out, (lmax + 1,)."""
    window = pixel_window_of(Path(plan.sources.maps[0]), grid.nside, plan.lmax)
    return np.divide(1.0, window, out=np.zeros_like(window), where=window > 0)


def cut(
    alm: np.ndarray, lmax: int, centres: np.ndarray, geometry: PatchGeometry, nthreads: int = 0
) -> np.ndarray:
    """Synthesise the patches of a survey from its a_lm, without modes beyond those of their pixels.

    Parameters
    ----------
    alm : of E and B in µK, (2, n_lm)
    lmax : largest multipole of the a_lm
    centres : colatitude and longitude of each patch in radians, (n_patches, 2)
    geometry : size and pixels of the patches
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

    Returns
    -------
    patches : Q + iU in the patches' frames in µK, (n_patches, n, n)
    """
    n = geometry.n_pixels
    border = max(n // BORDER, LEAST_BORDER)
    padded = n + 2 * border
    fine = PatchGeometry(geometry.size_deg * padded / n, 2 * padded, pad=0)
    chunks = []
    for start in tqdm(range(0, len(centres), CHUNK), desc="synthesis", unit="chunk", leave=False):
        pointing = point_patches(centres[start : start + CHUNK], fine)
        q, u = ducc0.sht.synthesis_general(
            alm=alm,
            spin=2,
            lmax=lmax,
            loc=np.stack([pointing.theta, pointing.phi], axis=1),
            epsilon=EPSILON,
            nthreads=nthreads,
        )
        p = ((q + 1j * u) * np.exp(-2j * pointing.frame)).reshape(-1, 2 * padded, 2 * padded)
        chunks.append(halved(p, border)[:, border:-border, border:-border])
    return np.concatenate(chunks)


def halved(maps: np.ndarray, border: int) -> np.ndarray:
    """Resample maps on half as many pixels a side, without the modes that these pixels do not have.

    Parameters
    ----------
    maps : on fine pixels, (n, 2m, 2m)
    border : coarse pixels over which the maps fall to zero, so that opposite edges meet

    Returns
    -------
    maps : on coarse pixels, (n, m, m)
    """
    fine = maps.shape[-1]
    coarse = fine // 2
    away = np.minimum(np.arange(fine), fine - 1 - np.arange(fine)) + 0.5
    # Half of the border is left as it is: the filter's reach.
    side = np.sin(0.5 * np.pi * np.minimum(away / border, 1.0)) ** 2
    modes = np.fft.fft2(maps * side[:, None] * side)
    numbers = np.fft.fftfreq(coarse, 1.0 / coarse)
    rows = numbers.astype(int)
    # Coarse pixels' centres lie half a fine pixel beyond the fine ones'.
    shift = np.exp(1j * np.pi * numbers / fine)
    # The one mode at Nyquist stands for two.
    shift[coarse // 2] = 0.0
    kept = modes[:, rows[:, None], rows] * shift[:, None] * shift
    return np.fft.ifft2(kept) * (coarse / fine) ** 2


def masked_patches(plan: Plan, folder: str | Path) -> Iterator[TilePatches]:
    """Read every tile's masked patches, one after another.

    Parameters
    ----------
    plan : the survey's plan
    folder : the survey's products

    Returns
    -------
    patches : an iterator over the tiles

    Raises
    ------
    ProductError
        if a split has not been cut, or of another plan
    """
    q, u = [], []
    for split in range(plan.n_splits):
        with products.open_product(path(plan, folder, split), KIND, recipe(plan, split)) as product:
            place = {int(number): i for i, number in enumerate(product.array("numbers"))}
            missing = [tile.number for tile in plan.tiles if tile.number not in place]
            if missing:
                raise ProductError(
                    f"{product.path}: field 'numbers' lacks tile {missing[0]}, which the plan did "
                    "not have when it was cut; delete the file and run `cnnlens survey "
                    "reconstruct` again"
                )
            rows = [place[tile.number] for tile in plan.tiles]
            q.append(product.array("q")[rows])
            u.append(product.array("u")[rows])
    for i, tile in enumerate(plan.tiles):
        split_q, split_u = (np.stack([m[i] for m in maps]) * tile.mask for maps in (q, u))
        yield TilePatches.of_splits(tile, split_q, split_u)
