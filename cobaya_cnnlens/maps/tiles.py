"""Where the tiles of a footprint lie: side by side in rings of equal latitude.

Rings as of :func:`cobaya_cnnlens.simulate.tiling.rings` do not overlap however each is turned about
the pole, nor do the tiles of one. So the footprint chooses: of :data:`SHIFTS` places of the rings
along the meridian that which keeps most, and in each ring of :data:`TURNS` turns the best one. What
is kept counts by its seen fraction, the mean over the tile of what was seen, weighted by the taper
squared, of tiles that reach a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import healpy
import numpy as np
from scipy import spatial
from tqdm import tqdm

from ..errors import MapError
from ..simulate.instrument import cosine_mask
from ..simulate.patches import PatchGeometry
from ..simulate.tiling import project, rings, unit_vectors

SHIFTS, TURNS = 8, 24
# Points of the footprint along a tile's side, at least, by which tiles are chosen.
POINTS = 24


@dataclass(frozen=True)
class Footprint:
    """Where a survey saw anything, at the pixels of a coarse HEALPix map: their numbers, (n,)."""

    nside: int
    pixels: np.ndarray

    @classmethod
    def of(cls, sees: Callable[[np.ndarray, np.ndarray], np.ndarray], size_deg: float) -> Footprint:
        """Sample the footprint at so many points that a tile has :data:`POINTS` along its side.

        Parameters
        ----------
        sees : colatitude and longitude → whether anything was seen there
        size_deg : side of a tile in degrees

        Returns
        -------
        footprint : the points that were seen
        """
        nside = 2 ** int(np.ceil(np.log2(POINTS * np.sqrt(np.pi / 3) / np.radians(size_deg))))
        theta, phi = healpy.pix2ang(nside, np.arange(12 * nside**2))
        return cls(nside, np.flatnonzero(sees(theta, phi)))

    @cached_property
    def points(self) -> np.ndarray:
        """Unit vectors, (n, 3)."""
        return np.stack(healpy.pix2vec(self.nside, self.pixels), axis=1)

    @cached_property
    def _tree(self) -> spatial.cKDTree:
        return spatial.cKDTree(self.points)

    @property
    def area_deg2(self) -> float:
        """Of what was seen."""
        return float(len(self.pixels) * np.degrees(np.degrees(4.0 * np.pi / (12 * self.nside**2))))

    def fractions(self, centres: np.ndarray, size_deg: float, taper_deg: float) -> np.ndarray:
        """Seen fractions of tiles, weighted by the taper squared, to a few hundredths.

        Parameters
        ----------
        centres : colatitude and longitude of each tile in radians, (n, 2)
        size_deg : side of a tile in degrees
        taper_deg : width of the taper in degrees

        Returns
        -------
        fractions : 0 to 1, (n,)
        """
        half = np.radians(0.5 * size_deg)
        reach = 2.0 * np.sin(0.5 * np.sqrt(2.0) * half) * 1.01
        near = self._tree.query_ball_point(unit_vectors(centres), reach)
        side = 64
        taper = cosine_mask(PatchGeometry(size_deg, side, 0), taper_deg) ** 2
        whole = taper.mean() * (2.0 * half) ** 2 / (4.0 * np.pi / (12 * self.nside**2))
        found = np.zeros(len(centres))
        for i, (centre, points) in enumerate(zip(centres, near, strict=True)):
            if len(points) < 0.1 * whole:
                continue
            x, y = project(self.points[points], centre)
            at = [np.floor((c + half) / (2.0 * half) * side).astype(int) for c in (y, x)]
            inside = np.all([(c >= 0) & (c < side) for c in at], axis=0)
            found[i] = taper[at[0][inside], at[1][inside]].sum() / whole
        return np.minimum(found, 1.0)


def choose_tiles(
    footprint: Footprint, size_deg: float, taper_deg: float, least: float
) -> np.ndarray:
    """Cover a footprint with tiles that do not overlap.

    Parameters
    ----------
    footprint : what the survey saw
    size_deg : side of a tile in degrees
    taper_deg : width of the taper in degrees
    least : smallest seen fraction of a tile

    Returns
    -------
    centres : colatitude and longitude in radians, from south to north, (n, 2)

    Raises
    ------
    MapError
        if no tile sees that much
    """
    best: list[np.ndarray] = []
    most, largest = 0.0, 0.0
    reach = np.radians(size_deg) / np.sqrt(2.0)
    polar = np.arccos(np.clip(footprint.points[:, 2], -1.0, 1.0))
    north, south = (polar.min(), polar.max()) if len(polar) else (0.0, 0.0)
    for shift in tqdm(range(SHIFTS), desc="tiles", unit="shift"):
        kept, total = [], 0.0
        for ring in rings(size_deg, shift / SHIFTS):
            if not north - reach < ring[0, 0] < south + reach:
                continue
            step = np.array([0.0, 2.0 * np.pi / len(ring) / TURNS])
            tried = np.concatenate([ring + turn * step for turn in range(TURNS)])
            fractions = footprint.fractions(tried, size_deg, taper_deg).reshape(TURNS, -1)
            largest = max(largest, fractions.max())
            scores = np.where(fractions >= least, fractions, 0.0).sum(1)
            turn = int(np.argmax(scores))
            total += scores[turn]
            kept.append((ring + turn * step)[fractions[turn] >= least])
        # Beyond rounding: of equals the first.
        if total > most + 1e-9:
            best, most = kept, total
    if not best:
        raise MapError(
            f"the footprint, {footprint.area_deg2:.3g} square degrees, is too small or too ragged "
            f"for a tile of {size_deg:g} degrees: at best {100 * largest:.0f}% of one was seen, "
            f"and {100 * least:.0f}% are asked for; lower --seen, or take smaller patches"
        )
    return np.concatenate(best)
