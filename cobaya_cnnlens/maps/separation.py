"""Patches of a survey must lie apart: its errors are those of independent ones."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ..errors import MapError
from ..simulate.tiling import largest_overlap, unit_vectors

# Degrees that edges may reach into each other: half a pixel. Patches one side apart on the equator
# do by an eighth of that at their corners.
TOUCH_DEG = 0.02

# Frames of a map's coordinates, as HEALPix spells them: equatorial, galactic, ecliptic.
FRAMES = {"C": "equatorial", "G": "galactic", "E": "ecliptic"}


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
    # Patches further apart than their diagonal never touch.
    reach = 4.0 * np.arcsin(0.5 * np.sqrt(0.5) * np.radians(size_deg))
    points = unit_vectors(centres[known])
    for pair in sorted(cKDTree(points).query_pairs(2.0 * np.sin(0.5 * reach))):
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
