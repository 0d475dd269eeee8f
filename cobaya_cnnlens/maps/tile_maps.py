"""Q and U of every tile of a survey: one product for each split, made by :mod:`.cutting`.

White noise of the maps is white noise of the tile, with variance 1/(Δ² ρ).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import MapError, ProductError
from .cutting import cut_map
from .grids import Grid
from .plan import Plan, splits_of
from .tiles import Tile

KIND = "survey maps"
ALGORITHM = 1


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
        split_q, split_u : masked, of each split in µK, (n_splits, n, n) each

        Returns
        -------
        patches : the splits and their mean weighted by the inverse variance
        """
        total = tile.split_ivar.sum(0, dtype=float)
        share = np.divide(tile.split_ivar, total, out=np.zeros(split_q.shape), where=tile.seen)
        return cls(tile, split_q, split_u, (share * split_q).sum(0), (share * split_u).sum(0))


def cut_split(
    plan: Plan, grid: Grid, maps: Sequence[np.ndarray], known: np.ndarray, nthreads: int = 0
) -> np.ndarray:
    """Cut the tiles of a plan from the maps of one split, or from a simulation of it.

    Parameters
    ----------
    plan : the survey's plan
    grid : of the maps
    maps : Q and U in µK, COSMO, (n,) each
    known : whether the split saw a pixel, (n,)
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

    Returns
    -------
    patches : Q + iU in the tiles' frames in µK, zero where unseen, (n_tiles, n, n)
    """
    window_of = plan.sources.maps[0] if plan.sources.pixel_window else None
    p = cut_map(grid, maps, known, plan.centres, plan.geometry, window_of, nthreads)
    return np.where([tile.seen for tile in plan.tiles], p, 0.0)


@dataclass(frozen=True)
class TileMaps:
    """The products with Q and U of a plan's tiles.

    A product holds ``q`` and ``u``, (n_tiles, n, n) in µK without a mask, zero where unseen, and
    ``numbers`` of the tiles.

    Attributes
    ----------
    plan : of the survey
    folder : of the survey's products
    """

    plan: Plan
    folder: Path

    def path(self, split: int) -> Path:
        """Path of the patches of one split.

        Parameters
        ----------
        split : number of the split, from 0

        Returns
        -------
        path : of the product
        """
        return self.folder / "maps" / f"split_{split}.h5"

    def recipe(self, split: int) -> dict[str, Any]:
        """What determines the patches of one split; of the tiles, those that the plan began with.

        Parameters
        ----------
        split : number of the split, from 0

        Returns
        -------
        recipe : of the product
        """
        return {"plan": self.plan.identity, "split": split, "maps_algorithm": ALGORITHM}

    def measure(self, nthreads: int = 0) -> None:
        """Cut the patches of every split that are not there yet; a killed run goes on with the
        split at which it was.

        Parameters
        ----------
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

        Raises
        ------
        MapError
            if the files are not those of the plan, or cannot be used
        """
        plan, sources = self.plan, self.plan.sources
        todo = [
            split
            for split in range(plan.n_splits)
            if not products.exists(self.path(split), KIND, self.recipe(split))
        ]
        if not todo:
            return
        splits = tqdm(splits_of(plan, todo), desc="patches", total=len(todo), unit="split")
        for number, split in zip(todo, splits, strict=True):
            p = cut_split(plan, split.grid, split.maps, split.density > 0, nthreads)
            if not np.isfinite(p).all():
                raise MapError(f"{sources.maps[number]}: its patches are not finite; restore it")
            arrays = {
                "q": p.real.astype(np.float32),
                "u": p.imag.astype(np.float32),
                "numbers": np.array([tile.number for tile in plan.tiles]),
            }
            products.write_product(self.path(number), KIND, self.recipe(number), arrays)

    def masked(self) -> Iterator[TilePatches]:
        """Read every tile's masked patches, one after another.

        Returns
        -------
        patches : an iterator over the tiles

        Raises
        ------
        ProductError
            if a split has not been cut, or of another plan
        """
        q, u = [], []
        for split in range(self.plan.n_splits):
            with products.open_product(self.path(split), KIND, self.recipe(split)) as product:
                place = {int(number): i for i, number in enumerate(product.array("numbers"))}
                missing = [tile.number for tile in self.plan.tiles if tile.number not in place]
                if missing:
                    raise ProductError(
                        f"{product.path}: field 'numbers' lacks tile {missing[0]}, which the plan "
                        "did not have when it was cut; delete the file and run `cnnlens survey "
                        "reconstruct` again"
                    )
                rows = [place[tile.number] for tile in self.plan.tiles]
                q.append(product.array("q")[rows])
                u.append(product.array("u")[rows])
        for i, tile in enumerate(self.plan.tiles):
            split_q, split_u = (np.stack([m[i] for m in maps]) * tile.mask for maps in (q, u))
            yield TilePatches.of_splits(tile, split_q, split_u)
