"""The world coordinate system (WCS) of an image: any turn or distortion is refused."""

from __future__ import annotations

import re

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ..errors import MapError
from .headers import MapHeader

# How far, in pixels, a header may put a pixel from where its projection has it.
PLACE_TOLERANCE = 0.05


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
        # The defaults of these keywords would put the map at a wrong place.
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
    # A rotation moves the last pixel of a side most.
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
