"""A survey's instrument on one of its tiles: the survey's optics and excess, the tile's depth.

Beam, transfer function and 1/f noise belong to a survey, the noise of every pixel to a tile. With
this in an instrument's place a simulation draws what the tile has, and a filter divides by it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..errors import InstrumentError
from .instrument import Instrument, convolve_beam, draw_noise, level_of
from .patches import PatchGeometry


@dataclass(frozen=True, eq=False)
class TileInstrument(Instrument):
    """An instrument whose depth on a tile is known pixel by pixel; made by :meth:`of`.

    Attributes
    ----------
    rms : noise of Q and of U per pixel in µK, (n, n), infinite where nothing was seen;
        ``noise_uk_arcmin`` is its level, and scales it when changed
    """

    rms: np.ndarray | None = None

    __eq__, __hash__ = object.__eq__, object.__hash__

    @classmethod
    def of(cls, survey: Instrument, rms: np.ndarray, geometry: PatchGeometry) -> TileInstrument:
        """The instrument of a survey on one of its tiles.

        Parameters
        ----------
        survey : :meth:`.Instrument.measured`, if it has files
        rms : noise per pixel of the tile in µK, (n, n), of :func:`.instrument_files.rms_of`
        geometry : of the tile

        Returns
        -------
        instrument : with the depth of the tile

        Raises
        ------
        InstrumentError
            if the map does not have the tile's shape, holds NaN or a value that is not positive, or
            has no pixel with data
        """
        n = geometry.n_pixels
        if np.shape(rms) != (n, n):
            raise InstrumentError(
                f"the tile's 'rms' has shape {np.shape(rms)}, its pixels are {n} × {n}; cut it at "
                "the tile's own pixels"
            )
        if not (rms > 0).all() or not np.isfinite(rms).any():
            raise InstrumentError(
                "the tile's 'rms' must be positive, infinite where nothing was seen, and finite "
                "somewhere; leave the tile out, or make it with rms_of"
            )
        kept = {field.name: getattr(survey, field.name) for field in fields(Instrument)}
        kept |= {"noise_uk_arcmin": level_of(rms, geometry), "depth_ratio": None, "ivar_file": None}
        return cls(**kept, rms=rms)

    def noise_rms(self, geometry: PatchGeometry) -> np.ndarray:
        """White noise per pixel of Q and of U.

        Parameters
        ----------
        geometry : of the tile

        Returns
        -------
        rms : (n, n) in µK, infinite in pixels without data
        """
        assert self.rms is not None  # of() gives it
        return self._scaled(self.rms, geometry)

    def at_level(self, noise_uk_arcmin: float) -> Instrument:
        """The optics and 1/f noise of the survey with uniform white noise.

        Parameters
        ----------
        noise_uk_arcmin : level of the white noise in µK-arcmin

        Returns
        -------
        instrument : without a depth map
        """
        kept = {field.name: getattr(self, field.name) for field in fields(Instrument)}
        return Instrument(**{**kept, "noise_uk_arcmin": noise_uk_arcmin})

    @property
    def symmetry(self) -> None:
        """None: what a tile was seen with has no symmetry."""
        return None

    def draw(
        self, n_maps: int, geometry: PatchGeometry, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw the noise of Q and U for realisations of the tile.

        Parameters
        ----------
        n_maps : number of realisations
        geometry : of the tile
        generator : source of the random numbers

        Returns
        -------
        noise : (2, n_maps, n, n) float32 in µK, zero in pixels without data
        """
        n = geometry.n_pixels
        return draw_noise((2, n_maps, n, n), self, geometry, generator)

    def observe(
        self,
        q: np.ndarray,
        u: np.ndarray,
        geometry: PatchGeometry,
        generator: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add beam and noise to noiseless maps.

        Parameters
        ----------
        q, u : padded, (n_maps, n_padded, n_padded) in µK
        geometry : of the tile
        generator : source of the random numbers

        Returns
        -------
        q, u : unmasked, (n_maps, n, n) float32 each in µK, zero in pixels without data
        """
        noise = self.draw(len(q), geometry, generator)
        seen = self.seen(geometry)
        q, u = (
            np.where(seen, convolve_beam(maps, self, geometry) + part, 0.0).astype(np.float32)
            for maps, part in zip((q, u), noise, strict=True)
        )
        return q, u
