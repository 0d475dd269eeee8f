"""Headers of FITS maps, in the spellings that other people's tools write.

A keyword of a map stands in its extension or in the primary header; two values that differ are
refused. Words are compared whole and in any case, with tables of what is accepted. Units are
parsed by astropy, so that only one of the right dimension passes. A missing or unknown keyword is
an error that says what to write, unless a standard says what its absence means.

:mod:`.fits_maps` finds the map of a file and calls this module; so do the readers of patches
(:mod:`.map_files`) and of surveys.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.wcs import WCS

from ..errors import MapError
from .separation import FRAMES

# The words of ``COORDSYS``, by frame. FK4 is none: its coordinates differ by up to a degree.
FRAME_WORDS = {
    "C": "C CEL CELESTIAL EQ EQU EQUATORIAL ICRS FK5 J2000 RADEC RA/DEC RA,DEC",
    "G": "G GAL GALACTIC",
    "E": "E ECL ECLIPTIC",
}
# The first letters of CTYPE1 and CTYPE2, by frame; the projection follows them.
AXES = {"C": ("RA---", "DEC--"), "G": ("GLON-", "GLAT-"), "E": ("ELON-", "ELAT-")}
# What HEALPix tables call the columns of a Stokes parameter, and of the numbers of pixels.
COLUMNS = "{0} {0}_STOKES STOKES_{0} {0}_POLARISATION {0}_POLARIZATION {0}POLARISATION "
COLUMNS += "{0}POLARIZATION {0}_POL {0}POL POL_{0} {0}_MAP MAP_{0} {0}_SIGNAL SIGNAL_{0}"
PIXEL_COLUMNS = (
    "PIX PIXEL PIXELS PIXNUM IPIX HPIX HPX HPXPIX PIXNO INDEX IDX PIXEL_INDEX PIX_INDEX "
)
PIXEL_COLUMNS += "PIXELINDEX PIXINDEX PIXEL_NUMBER PIXEL_ID PIX_ID HEALPIX HEALPIX_INDEX"
# Values of the Stokes axis, FITS standard 4.0, table 29.
STOKES = {1: "I", 2: "Q", 3: "U", 4: "V"}
# Beyond these a value stands for nothing seen: UNSEEN is −1.6375e30, in any unit of K.
LARGEST, MOST_NEGATIVE = 1e20, -1e12
# Of the largest of Q and U, what is zero but for rounding.
ZERO = 1e-10
# Of a pixel, how far a header may turn or shift it.
PLACE_TOLERANCE = 0.01

TEMPERATURE, INVERSE_VARIANCE, LEVEL = "uK", "uK-2", "uK arcmin"
# What a unit is the unit of, and what to do with one that another is given for.
QUANTITIES = {
    TEMPERATURE: "a temperature or its rms",
    INVERSE_VARIANCE: "an inverse variance",
    LEVEL: "a noise level",
    "uK2": "a variance",
}
MENDS = {
    TEMPERATURE: "write the unit of Q and U, uK or K",
    INVERSE_VARIANCE: "an inverse variance is in uK^-2 or K^-2: give 1/variance or 1/rms^2, or a "
    "noise level as --level",
    LEVEL: "a noise level is in uK arcmin: multiply the rms of a pixel by its side in arcmin, or "
    "give an inverse variance as --ivar",
}

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
        """A keyword's number.

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
        value = self.find((key,), self.parse_number)
        value = default if value is None else value
        if value is None:
            raise MapError(f"{self.path}: {key} is missing; write it, a number")
        return value

    def parse_number(self, key: str, text: str) -> float:
        """The number of a keyword's text, finite but for ``BAD_DATA``.

        Parameters
        ----------
        key : the keyword, for errors
        text : its text

        Returns
        -------
        the number

        Raises
        ------
        MapError
            if it is none
        """
        with contextlib.suppress(ValueError):
            if np.isfinite(float(text)) or key == "BAD_DATA":
                return float(text)
        raise MapError(f"{self.path}: {key} is '{text:.40}'; it must be a number")

    def frame(self) -> str | None:
        """The frame that ``COORDSYS`` names, a key of :data:`.separation.FRAMES`; None without."""

        def parse(key: str, text: str) -> str:
            for frame, words in FRAME_WORDS.items():
                if text.upper() in words.split():
                    return frame
            raise MapError(
                f"{self.path}: {key} is '{text}'; it must be C, G or E, for equatorial (ICRS, "
                "J2000), galactic or ecliptic: write one, or rotate the map"
            )

        return self.find(("COORDSYS",), parse)

    def frame_of_axes(self, projection: str) -> str:
        """The frame of an image whose axes are longitude and latitude in a projection.

        Parameters
        ----------
        projection : the last three letters of ``CTYPE1`` and ``CTYPE2``

        Returns
        -------
        a key of :data:`.separation.FRAMES`

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

        def parse(key: str, text: str) -> bool:
            if text.upper() not in ("RING", "NEST", "NESTED"):
                raise MapError(
                    f"{self.path}: {key} is '{text}'; write the map in RING or NESTED order"
                )
            return text.upper() != "RING"

        nested = self.find(("ORDERING",), parse)
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

        def parse(key: str, text: str) -> float:
            if text.upper() not in ("IAU", "COSMO"):
                raise MapError(f"{self.path}: {key} is '{text.upper()}'; it must be IAU or COSMO")
            return 1.0 if text.upper() == "COSMO" else -1.0

        sign = self.find(("POLCCONV",), parse)
        if sign is None and not standard:
            raise MapError(
                f"{self.path}: POLCCONV is missing; write IAU or COSMO, whose signs of U are "
                "opposite (what pixell writes without saying so is COSMO, what it reads IAU)"
            )
        return parse("", standard) if sign is None else sign

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
            return no_number(values) | (np.abs(values - marker) <= 1e-6 * abs(marker))


def no_number(values: np.ndarray) -> np.ndarray:
    """Where values, of any shape, are not finite, or such as no map holds: UNSEEN in any unit."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(values) < LARGEST) | (values < MOST_NEGATIVE)


def unseen_in(q: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Where Q and U, of one shape, were not seen: either is no number, or both are zero, exactly
    or but for a mask's rounding, which no sky is."""
    unseen, largest = no_number(q) | no_number(u), np.maximum(np.abs(q), np.abs(u))
    return unseen | (largest <= ZERO * np.max(largest, initial=0.0, where=~unseen))


def unit_option(text: str) -> float:
    """Factor to µK of the unit that a user gives as ``--unit``.

    Parameters
    ----------
    text : uK, mK or K

    Returns
    -------
    the factor

    Raises
    ------
    MapError
    """
    try:
        return factor_of(text, TEMPERATURE)
    except ValueError:
        raise MapError(f"--unit {text}: give uK, mK or K") from None


def factor_of(text: str, target: str) -> float:
    """Factor from a unit as headers spell it, CMB temperature in K, to ``target``.

    >>> factor_of("uK_{CMB}^{-2}", "uK-2")
    1.0

    Parameters
    ----------
    text : the unit as a header spells it
    target : the unit that is needed

    Returns
    -------
    the factor

    Raises
    ------
    ValueError
        if it is unknown or has another dimension, with what it is the unit of
    """
    try:
        unit = units.Unit(_plain(text))
    except (ValueError, TypeError):
        raise ValueError("") from None
    if not isinstance(unit, units.UnitBase) or not unit.decompose().scale > 0:
        raise ValueError("")
    if unit.is_equivalent(target):
        return float(f"{unit.to(target):.12g}")
    quantities = [name for known, name in QUANTITIES.items() if unit.is_equivalent(known)]
    raise ValueError(f", {quantities[0]}" if quantities else "")


def _plain(text: str) -> str:
    """A unit as astropy spells it, without TeX, and without the CMB in temperatures."""
    text = re.sub(r"\\(mathrm|rm|text|,)|\$", "", re.sub(r"^ *\[(.*)\] *$", r"\1", text))
    text = re.sub(r"\\mu *|µ|μ|micro|mu(?=k)", "u", text, flags=re.IGNORECASE)
    text = re.sub(r"milli(?=k)", "m", text, flags=re.IGNORECASE)
    text = text.replace("{", "(").replace("}", ")")
    text = re.sub(r"[ *.·-]*(arcminutes?|arcmin|'|′)", " arcmin", text, flags=re.IGNORECASE)
    kind = r"(cmb|thermo(dynamic)?)"
    kelvin = rf"(?<![a-z])((?-i:[uUm]?))k(elvins?)?([ _,]*({kind}|[([] *{kind} *[])]))?(?![a-z])"
    text = re.sub(kelvin, lambda m: f"{m[1].lower()}K", text, flags=re.IGNORECASE)
    text = re.sub(r"\( *([um]?K) *\)", r"\1", text)
    return re.sub("(?<=K)-(?=[a-z])", " ", text)


def columns_of(header: fits.Header) -> dict[int, str]:
    """Names of a table's columns in capitals, with _ for other signs.

    Parameters
    ----------
    header : of the table

    Returns
    -------
    names by number of the column, from 1
    """
    names = {i: str(header.get(f"TTYPE{i}", "")) for i in range(1, header.get("TFIELDS", 0) + 1)}
    return {i: re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_") for i, name in names.items()}


def stokes_of(header: MapHeader, axis: int) -> list[str]:
    """The Stokes parameters of an axis whose ``CTYPE`` is STOKES.

    Parameters
    ----------
    header : of the image
    axis : number of the axis, from 1

    Returns
    -------
    a name for each plane, "?" for others
    """
    header, length = header.alone, int(header.own[f"NAXIS{axis}"])
    start, value = (header.number(f"{key}{axis}", 0.0) for key in ("CRPIX", "CRVAL"))
    step = header.number(f"CDELT{axis}", header.number(f"CD{axis}_{axis}", 1.0))
    numbers = value + (np.arange(1, length + 1) - start) * step
    return [STOKES.get(round(x), "?") if abs(x - round(x)) < 1e-3 else "?" for x in numbers]


def wcs_of(header: MapHeader) -> tuple[WCS, np.ndarray]:
    """The whole WCS of an image's first two axes, and its steps along them in degrees, (2,).

    Parameters
    ----------
    header : of the image

    Returns
    -------
    the WCS, and its steps in degrees, (2,)

    Raises
    ------
    MapError
        if its header is not whole, or turns or distorts the image
    """
    own = header.alone
    for axis in (1, 2):
        # Their defaults place a map that nobody meant.
        needed = [] if f"CD{axis}_{axis}" in own.own else ["CDELT"]
        for key in ("CRVAL", "CRPIX", *needed):
            own.number(f"{key}{axis}")
    distorted = [key for key in own.own if re.fullmatch(r"[AB]_ORDER|C[PQ]DIS\d", key)]
    if distorted:
        raise MapError(f"{own.path}: {distorted[0]} distorts the image; project it without")
    tidy = _tidy(own)
    try:
        wcs = WCS(tidy, naxis=2)
        wcs.wcs.bounds_check(False, False)
        matrix = wcs.pixel_scale_matrix
    except Exception as error:
        raise MapError(
            f"{own.path}: its header gives no positions ({' '.join(str(error).split())[:200]}); "
            "correct its CTYPE, CUNIT, CRVAL, CRPIX and CDELT"
        ) from None
    steps = np.diag(matrix)
    # Over all pixels of a side, what a turn may move.
    size = max(own.own["NAXIS1"], own.own["NAXIS2"])
    if not np.abs(matrix - np.diag(steps)).max() * size < PLACE_TOLERANCE * np.abs(steps).min():
        raise MapError(
            f"{own.path}: the header turns the image{odd_keywords(own.own)}; project it with "
            "north along y"
        )
    return wcs, steps


def _tidy(header: MapHeader) -> fits.Header:
    """A header with words, units and numbers (of texts astropy makes defaults) as FITS has them."""
    tidy = header.own.copy()
    for key in header.own:
        if re.fullmatch(r"(CRVAL|CRPIX|CDELT|CROTA)\d|(PC|CD|PV)\d_\d+|(LON|LAT)POLE", key):
            tidy[key] = header.number(key)
        elif re.fullmatch(r"CTYPE\d", key):
            tidy[key] = header.text(key)
        elif re.fullmatch(r"CUNIT\d", key):
            tidy[key] = re.sub("^deg(rees?)?$", "deg", header.text(key).lower())
    return tidy


def odd_keywords(header: fits.Header) -> str:
    """The keywords of a header that a plain projection has not.

    Parameters
    ----------
    header : of the image

    Returns
    -------
    text in brackets for a message; empty without any
    """
    plain = {"PC1_1": 1.0, "PC2_2": 1.0, "LONPOLE": None, "LATPOLE": None}
    pattern = r"(PC|CD)\d_\d|CROTA\d|LONPOLE|LATPOLE|PV[12]_\d+"
    odd = [
        key
        for key in header
        if re.fullmatch(pattern, key) and not re.fullmatch(r"CD(\d)_\1", key)
        if header[key] != plain.get(key, 0.0)
    ]
    return f" ({', '.join(odd)})" if odd else ""


def say_frame(frame: str) -> str:
    """What is assumed of a map without ``COORDSYS``, for a warning.

    Parameters
    ----------
    frame : a key of :data:`.separation.FRAMES`

    Returns
    -------
    the warning
    """
    return f"no COORDSYS in its header: taken as {FRAMES[frame]} coordinates"
