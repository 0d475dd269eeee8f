"""The tiles of a survey, and where they lie on its footprint.

Tiles lie side by side in rings of equal latitude (:func:`cobaya_cnnlens.simulate.tiling.rings`),
which do not overlap however each is turned about the pole. Of :data:`SHIFTS` places of the rings
along the meridian, and in each ring of :data:`TURNS` turns, the one with the largest seen fraction
is chosen. The seen fraction is the part of a tile's area that was seen, weighted by the taper
squared. Tiles below a threshold do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import healpy
import numpy as np
from scipy import spatial
from tqdm import tqdm

from ..errors import MapError
from ..simulate.depth import enclosed
from ..simulate.instrument import ARCMIN, cosine_mask
from ..simulate.patches import PatchGeometry, Pointing, point_patch
from ..simulate.tiling import largest_overlap, project, rings, unit_vectors

SHIFTS, TURNS = 8, 24
# The footprint has at least so many points along a tile's side.
POINTS = 24
# The taper is tabulated on so many pixels along a side.
SIDE = 64
# So many further sets of tiles fill the tapers of a plan's: the edges of two sets always cross
# somewhere, those of three need not.
FURTHER_SETS = 2
# A further tile adds so much of a tile that no other sees well, or is left out.
LEAST_ADDED = 0.01
# Edges may reach into each other by so many degrees, half a pixel. Patches that lie one side apart
# on the equator do by an eighth of that at their corners.
TOUCH_DEG = 0.02


@dataclass(frozen=True)
class Tile:
    """One patch of a survey.

    Attributes
    ----------
    number : of the plan
    centre : colatitude and longitude in radians, (2,)
    geometry : of the patch, as the simulations' but without padding
    taper : that every tile has, (n, n)
    split_ivar : inverse variance of Q and of U each of a pixel in every split, 1/µK², zero where
        nothing was seen, (n_splits, n, n)
    """

    number: int
    centre: np.ndarray
    geometry: PatchGeometry
    taper: np.ndarray
    split_ivar: np.ndarray

    @cached_property
    def seen(self) -> np.ndarray:
        """Whether all splits saw a pixel, (n, n)."""
        return np.asarray((self.split_ivar > 0).all(0))

    @property
    def mask(self) -> np.ndarray:
        """Taper times whether a pixel was seen, (n, n)."""
        return self.taper * self.seen

    @cached_property
    def rms(self) -> np.ndarray:
        """Noise of Q and of U per pixel of the coadd in µK, infinite where unseen, (n, n)."""
        return self._rms(self.split_ivar.sum(0, dtype=float))

    def split_rms(self, split: int) -> np.ndarray:
        """Noise of Q and of U per pixel of one split.

        Parameters
        ----------
        split : number of the split, from 0

        Returns
        -------
        rms : in µK, infinite where unseen, (n, n)
        """
        return self._rms(self.split_ivar[split].astype(float))

    def _rms(self, ivar: np.ndarray) -> np.ndarray:
        return np.sqrt(np.divide(1.0, ivar, out=np.full(ivar.shape, np.inf), where=self.seen))

    @property
    def depth(self) -> float:
        """Noise level in µK-arcmin whose inverse square is the mean one, weighted by the mask²."""
        weight = self.mask**2
        ivar = (weight * self.split_ivar.sum(0, dtype=float)).sum() / weight.sum()
        return float(self.geometry.pixel / ARCMIN / np.sqrt(ivar))

    @property
    def seen_fraction(self) -> float:
        """Σ mask² over Σ taper²."""
        return float((self.mask**2).sum() / (self.taper**2).sum())

    @property
    def weight(self) -> float:
        """How many modes the tile has beside one without holes and edges, as ⟨M²⟩²/⟨M⁴⟩ counts
        them: the inverse variance of its bandpowers where all tiles have the same noise."""
        counts = [(m**2).sum() ** 2 / (m**4).sum() for m in (self.mask, self.taper)]
        return float(counts[0] / counts[1])

    @cached_property
    def holes(self) -> np.ndarray:
        """Numbers from 1 of the holes, unseen pixels within what was seen, (n, n); 0 elsewhere."""
        return enclosed(~self.seen)

    @property
    def pointing(self) -> Pointing:
        """Where its pixels lie, row by row."""
        return point_patch(self.centre, self.geometry)

    def summary(self) -> dict[str, Any]:
        """What the plan's file says of it."""
        longitude, latitude = np.degrees(self.centre[1]) % 360.0, 90.0 - np.degrees(self.centre[0])
        return {
            "tile": self.number,
            "longitude": round(float(longitude), 6),
            "latitude": round(float(latitude), 6),
            "depth_uk_arcmin": round(self.depth, 4),
            "seen": round(self.seen_fraction, 4),
            "holes": int(self.holes.max()),
            "weight": round(self.weight, 4),
        }


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

    def fractions(
        self,
        centres: np.ndarray,
        size_deg: float,
        taper_deg: float,
        need: np.ndarray | None = None,
    ) -> np.ndarray:
        """Seen fractions of tiles, weighted by the taper squared, to a few hundredths.

        Parameters
        ----------
        centres : colatitude and longitude of each tile in radians, (n, 2)
        size_deg : side of a tile in degrees
        taper_deg : width of the taper in degrees
        need : how much each point of the footprint counts, 0 to 1, (..., n_points); all fully by
            default

        Returns
        -------
        fractions : 0 to 1, (..., n)
        """
        need = np.ones(len(self.pixels)) if need is None else need
        whole = (cosine_mask(PatchGeometry(size_deg, SIDE, 0), taper_deg) ** 2).mean()
        whole *= np.radians(size_deg) ** 2 / (4.0 * np.pi / (12 * self.nside**2))
        fractions = np.zeros((*need.shape[:-1], len(centres)))
        for i, (points, tapers) in enumerate(self._tapers(centres, size_deg, taper_deg)):
            fractions[..., i] = (tapers**2 * need[..., points]).sum(-1) / whole
        return np.minimum(fractions, 1.0)

    def largest_taper(self, centres: np.ndarray, size_deg: float, taper_deg: float) -> np.ndarray:
        """The largest taper that any of some tiles has at each point of the footprint.

        Parameters
        ----------
        centres : colatitude and longitude of each tile in radians, (n, 2)
        size_deg : side of a tile in degrees
        taper_deg : width of the taper in degrees

        Returns
        -------
        taper : 0 to 1, (n_points,)
        """
        largest = np.zeros(len(self.pixels))
        for points, tapers in self._tapers(centres, size_deg, taper_deg):
            largest[points] = np.maximum(largest[points], tapers)
        return largest

    def _tapers(
        self, centres: np.ndarray, size_deg: float, taper_deg: float
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of the points within each tile, and its taper there."""
        half = np.radians(0.5 * size_deg)
        reach = 2.0 * np.sin(0.5 * np.sqrt(2.0) * half) * 1.01
        near = self._tree.query_ball_point(unit_vectors(centres), reach)
        taper = cosine_mask(PatchGeometry(size_deg, SIDE, 0), taper_deg)
        for centre, numbers in zip(centres, near, strict=True):
            points = np.array(numbers, int)
            x, y = project(self.points[points], centre)
            at = [np.floor((c + half) / (2.0 * half) * SIDE).astype(int) for c in (y, x)]
            inside = np.all([(c >= 0) & (c < SIDE) for c in at], axis=0)
            yield points[inside], taper[at[0][inside], at[1][inside]]


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
    centres, largest = _best_rings(footprint, size_deg, taper_deg, least)
    if not len(centres):
        raise MapError(
            f"the footprint, {footprint.area_deg2:.3g} square degrees, is too small or too ragged "
            f"for a tile of {size_deg:g} degrees: at best {100 * largest:.0f}% of one was seen, "
            f"and {100 * least:.0f}% are asked for; lower --seen, or take smaller patches"
        )
    return centres


def filling_tiles(
    footprint: Footprint, centres: np.ndarray, size_deg: float, taper_deg: float, least: float
) -> np.ndarray:
    """Choose further tiles, which see fully what the tiles of a plan see through their tapers.

    Parameters
    ----------
    footprint : what the survey saw
    centres : of the plan's tiles, colatitude and longitude in radians, (n, 2)
    size_deg : side of a tile in degrees
    taper_deg : width of the taper in degrees
    least : smallest seen fraction of a tile

    Returns
    -------
    centres : of :data:`FURTHER_SETS` sets or fewer, whose tiles overlap; (m, 2)
    """
    every = centres
    for _ in range(FURTHER_SETS):
        need = 1.0 - footprint.largest_taper(every, size_deg, taper_deg)
        every = np.concatenate([every, _best_rings(footprint, size_deg, taper_deg, least, need)[0]])
    return every[len(centres) :]


def _best_rings(
    footprint: Footprint,
    size_deg: float,
    taper_deg: float,
    least: float,
    need: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Centres of the tiles of those rings that see most of the footprint, or of what is needed of
    it, (n, 2), and the largest seen fraction of any tile that was tried."""
    best: list[np.ndarray] = [np.zeros((0, 2))]
    most, largest = 0.0, 0.0
    everything = np.ones(len(footprint.pixels))
    counted = np.array([everything] if need is None else [everything, need])
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
            fractions = footprint.fractions(tried, size_deg, taper_deg, counted)
            largest, added = max(largest, fractions[0].max()), fractions[-1]
            enough = fractions[0] >= least
            if need is not None:
                enough &= added >= LEAST_ADDED
            scores = np.where(enough, added, 0.0).reshape(TURNS, -1).sum(1)
            turn = int(np.argmax(scores))
            total += scores[turn]
            kept.append((ring + turn * step)[enough.reshape(TURNS, -1)[turn]])
        # Of equal choices, but for rounding, the first is kept.
        if total > most + 1e-9:
            best, most = kept, total
    return np.concatenate(best), largest


def check_separate(
    centres: np.ndarray, size_deg: float, source: str, kind: str = "patches"
) -> None:
    """Refuse patches that overlap: a survey's errors are those of independent ones.

    Parameters
    ----------
    centres : (n, 2)
        Colatitude and longitude in radians; NaN where unknown, which is passed over.
    size_deg : side of a patch, whose edges lie along the meridian at its centre
    source : where the patches come from, for errors
    kind : what they are, for errors

    Raises
    ------
    MapError
        if two reach into each other by more than rounding
    """
    known = np.flatnonzero(np.isfinite(centres).all(1))
    if len(known) < 2:
        return
    # Patches that lie further apart than their diagonal never touch.
    reach = 4.0 * np.arcsin(0.5 * np.sqrt(0.5) * np.radians(size_deg))
    points = unit_vectors(centres[known])
    for pair in sorted(spatial.cKDTree(points).query_pairs(2.0 * np.sin(0.5 * reach))):
        i, j = known[list(pair)]
        if largest_overlap(centres[[i, j]], size_deg) > TOUCH_DEG:
            chord = np.linalg.norm(np.diff(points[list(pair)], axis=0))
            apart = np.degrees(2.0 * np.arcsin(0.5 * chord))
            raise MapError(
                f"{source}: {kind} {i} at {_place(centres[i])} and {j} at {_place(centres[j])} "
                f"overlap, {size_deg:g} degrees wide and {apart:.3g} degrees apart, and would "
                "count as independent; leave one out"
            )


def _place(centre: np.ndarray) -> str:
    return f"(lon, lat) = ({np.degrees(centre[1]):g}, {90.0 - np.degrees(centre[0]):g})"
