"""Headers of FITS maps, in the spellings of other people's tools.

A keyword of a map may stand in its extension or in the primary header. Two values that differ are
refused. Words are compared whole and in any case with tables of what is accepted, and units are
parsed (:mod:`.units`). A missing or unknown keyword is an error that says what to write, unless a
standard says what its absence means.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from astropy.io import fits

from ..errors import MapError
from .units import MENDS, TEMPERATURE, factor_of, unit_option

# HEALPix has these letters for the frames of coordinates.
FRAMES = {"C": "equatorial", "G": "galactic", "E": "ecliptic"}
ASSUMED_FRAME = f"no COORDSYS in its header: taken as {FRAMES['C']} coordinates"

# ``COORDSYS`` has these words for each frame. FK4 is not among them: it is off by up to a degree.
FRAME_WORDS = {
    "C": "C CEL CELESTIAL EQ EQU EQUATORIAL ICRS FK5 J2000 RADEC RA/DEC RA,DEC",
    "G": "G GAL GALACTIC",
    "E": "E ECL ECLIPTIC",
}
# CTYPE1 and CTYPE2 begin with these letters in each frame, and the projection follows.
AXES = {"C": ("RA---", "DEC--"), "G": ("GLON-", "GLAT-"), "E": ("ELON-", "ELAT-")}
# A value beyond these marks an unseen pixel: UNSEEN is −1.6375e30, in any unit of K.
LARGEST, MOST_NEGATIVE = 1e20, -1e12
# Q and U below this part of the largest value are zero but for rounding.
ZERO = 1e-10
_T = TypeVar("_T")


@dataclass(frozen=True)
class MapHeader:
    """The headers of one map: its extension's ``own``, and the file's ``primary``."""

    path: Path
    own: fits.Header
    primary: fits.Header

    @property
    def alone(self) -> MapHeader:
        """Without the primary header: of what describes the array of an extension."""
        return replace(self, primary=self.own)

    def find(self, keys: Sequence[str], parse: Callable[[str, str], _T]) -> _T | None:
        """The value of the first of ``keys`` that the extension or the primary header holds.

        Parameters
        ----------
        keys : names of one thing, e.g. TUNIT2 and BUNIT
        parse : from keyword and text to the value

        Returns
        -------
        the value, None if no header holds any

        Raises
        ------
        MapError
            if two values differ
        """
        values: list[tuple[str, str, _T, fits.Header]] = []
        for header in (self.own,) if self.own is self.primary else (self.own, self.primary):
            for key in keys:
                value = header.get(key)
                text = "" if isinstance(value, fits.card.Undefined) else str(value or "").strip()
                # The unit of a preview image in the primary header is the image's own.
                foreign = header is not self.own and key == "BUNIT" and header.get("NAXIS", 0) > 0
                if value is not None and (text or value == 0) and not foreign:
                    text = text or str(value)
                    values.append((key, text, parse(key, text), header))
        for key, text, value, header in values[1:]:
            if value != values[0][2]:
                places = ", in the map's own header and in the primary one"
                raise MapError(
                    f"{self.path}: {values[0][0]} is '{values[0][1]}' and {key} '{text}'"
                    f"{'' if header is values[0][3] else places}; correct the wrong one"
                )
        return values[0][2] if values else None

    def text(self, *keys: str) -> str:
        """A keyword's text in capitals, empty if it is missing.

        Parameters
        ----------
        *keys : names of one thing

        Returns
        -------
        text in capitals
        """
        return self.find(keys, lambda _, text: text.upper()) or ""

    def number(self, key: str, default: float | None = None) -> float:
        """A keyword's number, finite but for ``BAD_DATA``.

        Parameters
        ----------
        key : the keyword
        default : where the keyword is missing; None to refuse that

        Returns
        -------
        the number

        Raises
        ------
        MapError
            if it is none, or missing without a default
        """

        def parse(key: str, text: str) -> float:
            with contextlib.suppress(ValueError):
                if np.isfinite(float(text)) or key == "BAD_DATA":
                    return float(text)
            raise MapError(f"{self.path}: {key} is '{text:.40}'; it must be a number")

        value = self.find((key,), parse)
        value = default if value is None else value
        if value is None:
            raise MapError(f"{self.path}: {key} is missing; write it, a number")
        return value

    def _word(self, key: str, meanings: Mapping[str, _T], mend: str) -> _T | None:
        """What a keyword's word means, None if it is missing; another word is refused."""

        def parse(key: str, text: str) -> _T:
            if text.upper() not in meanings:
                raise MapError(f"{self.path}: {key} is '{text}'; {mend}")
            return meanings[text.upper()]

        return self.find((key,), parse)

    def frame(self) -> str | None:
        """The frame that ``COORDSYS`` names, a key of :data:`FRAMES`; None without."""
        return self._word(
            "COORDSYS",
            {word: frame for frame, words in FRAME_WORDS.items() for word in words.split()},
            "it must be C, G or E, for equatorial (ICRS, J2000), galactic or ecliptic: write one, "
            "or rotate the map",
        )

    def frame_of_axes(self, projection: str) -> str:
        """The frame of an image whose axes are longitude and latitude in a projection.

        Parameters
        ----------
        projection : the last three letters of ``CTYPE1`` and ``CTYPE2``

        Returns
        -------
        a key of :data:`FRAMES`

        Raises
        ------
        MapError
            if its projection, frame (by ``COORDSYS`` too) or equinox is another
        """
        image = self.alone
        kinds = [image.text(f"CTYPE{axis}") for axis in (1, 2)]
        frames = [f for f, axes in AXES.items() if kinds == [axis + projection for axis in axes]]
        if not frames:
            first = any(kinds[0] == axes[0] + projection for axes in AXES.values())
            axis = 2 if first else 1
            raise MapError(
                f"{self.path}: CTYPE{axis} is '{kinds[axis - 1]}'; the image must be in the "
                f"projection {projection}, longitude along x ('RA---{projection}', "
                f"'DEC--{projection}'): reproject, or give the map as HEALPix"
            )
        system, year = image.text("RADESYS", "RADECSYS"), image.number("EQUINOX", 2000.0)
        if frames == ["C"] and (system not in ("", "ICRS", "FK5") or year != 2000.0):
            raise MapError(
                f"{self.path}: RADESYS is '{system}' and EQUINOX {year:g}; coordinates must be "
                "ICRS, or FK5 of 2000: reproject the map"
            )
        if image.frame() not in (None, frames[0]):
            raise MapError(
                f"{self.path}: CTYPE1 is '{kinds[0]}' and COORDSYS '{image.text('COORDSYS')}'; "
                "correct the wrong one"
            )
        return frames[0]

    def nested(self) -> bool:
        """Whether a HEALPix map is in nested order.

        Raises
        ------
        MapError
            if ``ORDERING`` is missing or unknown
        """
        words = {"RING": False, "NEST": True, "NESTED": True}
        nested = self._word("ORDERING", words, "write the map in RING or NESTED order")
        if nested is None:
            raise MapError(
                f"{self.path}: ORDERING is missing, so it cannot be told where pixels lie; write "
                "RING or NESTED"
            )
        return nested

    def sign_of_u(self, standard: str) -> float:
        """1 if U has HEALPix's sign (COSMO), −1 for IAU's, by ``POLCCONV``.

        Parameters
        ----------
        standard : what holds where the keyword is missing; empty to refuse that

        Returns
        -------
        1.0 or −1.0

        Raises
        ------
        MapError
            if the keyword is unknown, or missing without a standard
        """
        signs = {"COSMO": 1.0, "IAU": -1.0}
        sign = self._word("POLCCONV", signs, "it must be IAU or COSMO")
        if sign is None and not standard:
            raise MapError(
                f"{self.path}: POLCCONV is missing; write IAU or COSMO, whose signs of U are "
                "opposite (what pixell writes without saying so is COSMO, what it reads IAU)"
            )
        return signs[standard] if sign is None else sign

    def factor(self, keys: Sequence[str], name: str, unit: str) -> float | None:
        """Factor by which values are multiplied to have a unit.

        Parameters
        ----------
        keys : that may hold the unit of the values
        name : of the values, for errors
        unit : :data:`TEMPERATURE`, :data:`INVERSE_VARIANCE` or :data:`LEVEL`

        Returns
        -------
        the factor, None if no header says the unit

        Raises
        ------
        MapError
            if the unit is unknown, or of another dimension
        """

        def parse(key: str, text: str) -> float:
            try:
                return factor_of(text, unit)
            except ValueError as error:
                of = f" of {name}" if name else ""
                raise MapError(
                    f"{self.path}: {key}{of} is '{text}'{error}; {MENDS[unit]}"
                ) from None

        return self.find(keys, parse)

    def factor_to_uk(self, keys: Sequence[Sequence[str]], given: str | None) -> float:
        """Factor to µK of Q and U: by the headers, or by ``given`` where they do not say.

        Parameters
        ----------
        keys : for each of the planes, the keywords that may hold its unit
        given : the user's, see :func:`unit_option`

        Returns
        -------
        the factor

        Raises
        ------
        MapError
            if the unit is unknown, not said or said twice
        """
        factors = {self.factor(plane, "", TEMPERATURE) for plane in keys}
        names = " and ".join(dict.fromkeys(plane[0] for plane in keys))
        if len(factors) > 1:
            raise MapError(
                f"{self.path}: {names} differ, or one is missing; write Q and U in one unit"
            )
        [factor] = factors
        option = None if given is None else unit_option(given)
        if factor is None:
            if option is None:
                raise MapError(
                    f"{self.path}: no unit in {names}; {MENDS[TEMPERATURE]}, or give it as --unit"
                )
            return option
        if option not in (None, factor):
            raise MapError(
                f"{self.path}: {names} say a unit of {factor:g} uK, --unit {given}; leave "
                "--unit out"
            )
        return factor

    def holes(self, values: np.ndarray) -> np.ndarray:
        """Where a number stands for nothing seen: ``BAD_DATA``, a number that no map holds, as
        UNSEEN in any unit, or one that is not finite.

        Parameters
        ----------
        values : numbers of the map

        Returns
        -------
        True for holes, of the same shape
        """
        with np.errstate(invalid="ignore"):
            marker = self.number("BAD_DATA", np.nan)
            return _no_number(values) | (np.abs(values - marker) <= 1e-6 * abs(marker))


def _no_number(values: np.ndarray) -> np.ndarray:
    """Where values, of any shape, are not finite, or such as no map holds: UNSEEN in any unit."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(values) < LARGEST) | (values < MOST_NEGATIVE)


def unseen_in(q: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Where Q and U were not seen: either is no number, or both are zero.

    Parameters
    ----------
    q, u : of one shape; a mask's rounding counts as zero

    Returns
    -------
    True where they were not, of that shape
    """
    unseen, largest = _no_number(q) | _no_number(u), np.maximum(np.abs(q), np.abs(u))
    return unseen | (largest <= ZERO * np.max(largest, initial=0.0, where=~unseen))
