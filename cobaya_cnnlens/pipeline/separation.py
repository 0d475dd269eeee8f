"""Patches of a survey must lie apart: its errors are those of independent ones."""

from __future__ import annotations

import numpy as np

from ..errors import MapError

# Frames of a map's coordinates, as HEALPix spells them: equatorial, galactic, ecliptic.
FRAMES = {"C": "equatorial", "G": "galactic", "E": "ecliptic"}


def check_separate(centres: np.ndarray, size_deg: float, source: str) -> None:
    """Refuse patches that may overlap: a survey's errors are those of independent ones.

    Parameters
    ----------
    centres : colatitude and longitude in radians, (n, 2); NaN where unknown, which is passed over
    size_deg : side of a patch; squares further apart than their diagonal never touch

    Raises
    ------
    MapError
    """
    known = np.flatnonzero(np.isfinite(centres).all(1))
    theta, phi = centres[known].T
    n_hat = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    # The chord keeps its precision where the cosine of a small angle does not.
    for i in range(len(known) - 1):
        chord = np.linalg.norm(n_hat[:, i + 1 :] - n_hat[:, i, None], axis=0)
        apart = np.degrees(2.0 * np.arcsin(np.minimum(0.5 * chord, 1.0)))
        j = int(np.argmin(apart))
        if apart[j] < np.sqrt(2.0) * size_deg:
            (a, b), first = centres[known[[i, i + 1 + j]]], known[i]
            raise MapError(
                f"{source}: patches {first} at {_place(a)} and {known[i + 1 + j]} at {_place(b)} "
                f"are {apart[j]:.3g} degrees apart, less than the diagonal "
                f"{np.sqrt(2.0) * size_deg:.3g} of a patch: they overlap or nearly do, and would "
                "count as independent; leave one out"
            )


def _place(centre: np.ndarray) -> str:
    return f"(lon, lat) = ({np.degrees(centre[1]):g}, {90.0 - np.degrees(centre[0]):g})"
