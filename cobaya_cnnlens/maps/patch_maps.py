"""Observed patches, as the checks and the reconstruction take them: own patches and tiles alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MapError
from .tiles import check_separate

PLURALS = {"patch": "patches", "tile": "tiles"}


@dataclass(frozen=True)
class PatchMaps:
    """Unmasked polarisation maps of patches, in the patches' frame.

    Attributes
    ----------
    q, u : in µK, (n_patches, n, n) each; where the noise is infinite they do not count
    centres : colatitude and longitude in radians, (n_patches, 2); NaN where unknown
    lmax : multipole at which the maps end; None if it is not known
    frame : of the coordinates, a key of :data:`~cobaya_cnnlens.maps.headers.FRAMES`
    arrays : whether the maps came as arrays
    warnings : of what was assumed
    source : names of the files they came from
    rms : noise of Q and of U per pixel in µK, infinite where nothing was seen, (n_patches, n, n);
        None for that of the instrument
    noun : what one of them is called, a key of :data:`PLURALS`
    tiles : their numbers, (n_patches,); None for patches, which are counted from 0
    """

    q: np.ndarray
    u: np.ndarray
    centres: np.ndarray
    lmax: int | None = None
    frame: str = "C"
    arrays: bool = False
    warnings: tuple[str, ...] = ()
    source: str = ""
    rms: np.ndarray | None = None
    noun: str = "patch"
    tiles: np.ndarray | None = None

    @classmethod
    def join(cls, parts: Sequence[PatchMaps], size_deg: float) -> PatchMaps:
        """Several files' patches as one survey.

        Parameters
        ----------
        parts : patches of each file
        size_deg : side of a patch in degrees

        Returns
        -------
        all patches

        Raises
        ------
        MapError
            if their coordinates are of different frames, or patches overlap
        """
        source = ", ".join(part.source for part in parts)
        if len({part.frame for part in parts}) > 1:
            raise MapError(f"{source}: the maps' coordinates are of different frames; choose one")
        q, u, centres = (
            np.concatenate([getattr(part, key) for part in parts]) for key in ("q", "u", "centres")
        )
        check_separate(centres, size_deg, source)
        ends = [part.lmax for part in parts if part.lmax is not None]
        arrays = any(part.arrays for part in parts)
        warnings = tuple(dict.fromkeys(text for part in parts for text in part.warnings))
        return cls(q, u, centres, min(ends, default=None), parts[0].frame, arrays, warnings, source)

    @property
    def numbers(self) -> np.ndarray:
        """Of each, (n_patches,)."""
        return np.arange(len(self.q)) if self.tiles is None else self.tiles

    def named(self, which: np.ndarray) -> str:
        """Some of the patches, as a message names them.

        Parameters
        ----------
        which : true for each that is meant, (n_patches,)

        Returns
        -------
        text, e.g. "patch 0, 3"
        """
        numbers = self.numbers[which].tolist()
        if len(numbers) == len(which):
            return f"all {PLURALS[self.noun]}" if len(which) > 1 else f"the {self.noun}"
        more = f" and {len(numbers) - 5} others" if len(numbers) > 5 else ""
        return f"{self.noun} {', '.join(map(str, numbers[:5]))}{more}"
