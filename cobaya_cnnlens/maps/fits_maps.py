"""The map in a FITS file: its planes, wherever in the file they are and in whatever order.

A HEALPix map is a table of the whole sky, or of a part with a column of pixel numbers. Its planes
come in ring order. Any other map is an image. The module :mod:`.headers` reads the headers. A file
of another kind is refused, with a message that says how to convert it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import healpy
import numpy as np
from astropy.io import fits

from ..errors import MapError
from .headers import MapHeader, unseen_in

# Other kinds of files are known by their first bytes or by their suffix.
OTHER_FILES = {
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"PK\x03\x04": "a zip archive or NumPy's .npz",
    b"\x89HDF": "an HDF5 file",
    ".npy": "a NumPy array (.npy)",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".g3": "frames of spt3g",
    ".pkl": "a pickle",
    ".txt": "a text file",
}
# HEALPix tables have these names for the columns of a Stokes parameter and of pixel numbers.
COLUMNS = "{0} {0}_STOKES STOKES_{0} {0}_POLARISATION {0}_POLARIZATION {0}POLARISATION "
COLUMNS += "{0}POLARIZATION {0}_POL {0}POL POL_{0} {0}_MAP MAP_{0} {0}_SIGNAL SIGNAL_{0}"
PIXEL_COLUMNS = (
    "PIX PIXEL PIXELS PIXNUM IPIX HPIX HPX HPXPIX PIXNO INDEX IDX PIXEL_INDEX PIX_INDEX "
)
PIXEL_COLUMNS += "PIXELINDEX PIXINDEX PIXEL_NUMBER PIXEL_ID PIX_ID HEALPIX HEALPIX_INDEX"
# The FITS standard 4.0 gives these values of the Stokes axis in its table 29.
STOKES = {1: "I", 2: "Q", 3: "U", 4: "V"}
UNPACK: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
CONVERT = (
    "we read FITS: HEALPix tables and images; convert it with healpy.write_map('map.fits', [q, u], "
    "column_names=['Q', 'U']), pixell's enmap.write_fits, or spt3g's maps.fitsio"
)
STACK = (
    "put them into one map: healpy.write_map('map.fits', [q, u], column_names=['Q', 'U']), or "
    "astropy's fits.writeto('map.fits', numpy.stack([q, u]), header)"
)

# An extension of a file as astropy gives it, and its headers.
_Extension = tuple[Any, MapHeader]
_T = TypeVar("_T")


@dataclass(frozen=True)
class FitsMap:
    """One map of a file.

    Attributes
    ----------
    header : of the map
    planes : (n_planes, n_pixels) in ring order of a HEALPix map, else (n_planes, rows, columns)
    nside : of a HEALPix map, None of an image
    unit_keys : for each plane the keywords that may hold its unit
    names : of the planes
    """

    header: MapHeader
    planes: np.ndarray
    nside: int | None
    unit_keys: list[tuple[str, ...]]
    names: list[str]

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.header.path

    def with_holes(self) -> FitsMap:
        """Q and U that are NaN where either was not seen: where a number stands for a hole (see
        :meth:`.MapHeader.holes`), or both are zero (see :func:`.unseen_in`)."""
        unseen = np.any([self.header.holes(plane) for plane in self.planes], axis=0)
        self.planes[:, unseen] = np.nan
        self.planes[:, unseen_in(*self.planes)] = np.nan
        return self


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of other people's readers into one of ours.

    Their warning that a file was cut off becomes an error too. Their other warnings are about
    headers that they repair, and are not shown.

    Parameters
    ----------
    path : of the file, for errors

    Yields
    ------
    nothing
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*(truncated|corrupt).*")
            yield
    except MapError:
        raise
    except (PermissionError, MemoryError) as error:
        raise MapError(f"{path}: cannot be read: {error or 'too little memory'}") from None
    except Exception as error:
        raise MapError(
            f"{path}: cannot be read, it is damaged or cut off ({type(error).__name__}: "
            f"{str(error)[:200] or 'empty'}); restore it"
        ) from None


def check_file(path: Path, needed: str = CONVERT) -> None:
    """Refuse a file that is missing or of a kind that is not read, and say how to convert it.

    Parameters
    ----------
    needed : what is read, and how to write it

    Raises
    ------
    MapError
    """
    if path.is_dir():
        raise MapError(f"{path}: is a folder; name a file in it: {needed}")
    if not path.is_file():
        raise MapError(f"{path}: no such file")
    with reading(path), path.open("rb") as file:
        start = file.read(9)
        if unpack := UNPACK.get(start[:2]):
            with unpack(path) as packed:
                start = packed.read(9)
    known = [of for mark, of in OTHER_FILES.items() if isinstance(mark, bytes) and mark in start]
    if not known and not start.startswith(b"SIMPLE") and start:
        suffixes = [suffix for suffix in path.suffixes if suffix in OTHER_FILES]
        known = [OTHER_FILES[s] for s in suffixes] or [f"no FITS file: it begins with {start!r}"]
    if known:
        raise MapError(f"{path}: is {known[0]}; {needed}")


def read_fits(path: Path, stokes: str = "", dtype: type = np.float64) -> FitsMap:
    """Read the map of a FITS file.

    Parameters
    ----------
    path : of the file
    stokes : "QU" for the planes Q and U; else the file must hold one plane
    dtype : of the planes

    Returns
    -------
    the map

    Raises
    ------
    MapError
        if the file is damaged or of another kind, or holds none or several such maps
    """
    check_file(path)
    # The file is opened here, because fits.open leaves a damaged one open.
    with reading(path), path.open("rb") as opened, fits.open(opened, memmap=False) as file:
        parts = [(part, MapHeader(path, part.header, file[0].header)) for part in file]
        images = [
            (part, header)
            for part, header in parts
            if part.is_image and part.header["NAXIS"] > 1 and part.data is not None
        ]
        tables = [
            (part, header)
            for part, header in parts
            if isinstance(part, fits.BinTableHDU) and not part.is_image
        ]
        healpix = [(part, header) for part, header in tables if _is_healpix(part.header)]
        if not healpix and _is_healpix(file[0].header):
            healpix = tables
        if healpix:
            return _read_table(path, healpix, stokes, dtype)
        return _read_image(path, images, stokes, dtype)


def _is_healpix(header: fits.Header) -> bool:
    kind = str(header.get("PIXTYPE", "")).strip().upper()
    return kind == "HEALPIX" or (not kind and "NSIDE" in header)


def _only(path: Path, matches: Sequence[_T], kind: str) -> _T:
    """The one part of a file that holds a map."""
    if len(matches) > 1:
        raise MapError(
            f"{path}: {len(matches)} extensions hold {kind}; write the one to be read to a file of "
            "its own"
        )
    return matches[0]


def _read_table(path: Path, tables: list[_Extension], stokes: str, dtype: type) -> FitsMap:
    matches: list[tuple[Any, MapHeader, list[int], list[int]]] = []
    for part, header in tables:
        names = _column_names(part.header)
        index = [i for i, name in names.items() if name in PIXEL_COLUMNS.split()]
        if not index and header.text("INDXSCHM") == "EXPLICIT":
            index = [1]
        values = {i: name for i, name in names.items() if i not in index}
        columns = _columns(path, values, stokes) if stokes else list(values)
        if len(columns) == (len(stokes) or 1):
            matches.append((part, header, index, columns))
    if not matches:
        raise MapError(_wrong_columns(path, tables, stokes))
    part, header, index, columns = _only(path, matches, "such a HEALPix map")
    column_values: np.ndarray = np.stack([_values(path, part, i).astype(dtype) for i in columns])
    numbers = _values(path, part, index[0]) if index else None
    nside, planes = _in_rings(header, column_values, numbers, stokes)
    titles = [str(part.header.get(f"TTYPE{i}", "")) for i in columns]
    return FitsMap(header, planes, nside, [(f"TUNIT{i}", "BUNIT") for i in columns], titles)


def _values(path: Path, part: fits.BinTableHDU, column: int) -> np.ndarray:
    """A column's numbers in one row, NaN where a table of integers says that there is none."""
    values, header = np.asarray(part.data.field(column - 1)).ravel(), part.header
    if values.dtype.kind not in "iufb":
        raise MapError(
            f"{path}: column {header.get(f'TTYPE{column}', column)} is of TFORM{column} "
            f"'{header[f'TFORM{column}']}'; it must hold real numbers, one a pixel: write it as E"
        )
    blank = header.get(f"TNULL{column}")
    if blank is not None:
        blank = blank * header.get(f"TSCAL{column}", 1.0) + header.get(f"TZERO{column}", 0.0)
        values = np.where(values == blank, np.nan, values)
    return values


def _column_names(header: fits.Header) -> dict[int, str]:
    """Names of a table's columns by number from 1, in capitals, with _ for other signs."""
    names = {i: str(header.get(f"TTYPE{i}", "")) for i in range(1, header.get("TFIELDS", 0) + 1)}
    return {i: re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_") for i, name in names.items()}


def _columns(path: Path, names: dict[int, str], stokes: str) -> list[int]:
    """Numbers of the columns of Stokes parameters, by whole names."""
    columns = []
    for parameter in stokes:
        spellings = COLUMNS.format(parameter).split()
        matches = [i for i, name in names.items() if name in spellings]
        if len(matches) > 1:
            raise MapError(
                f"{path}: columns {[names[i] for i in matches]} may both be {parameter}; name only "
                f"one of them {parameter}_POLARISATION"
            )
        columns += matches
    return columns


def _wrong_columns(path: Path, tables: list[_Extension], stokes: str) -> str:
    columns = [list(_column_names(part.header).values()) for part, _ in tables]
    held = " and ".join(map(str, columns))
    if not stokes:
        return (
            f"{path}: holds columns {held}; it must hold one plane: write that of Q and U with "
            "healpy.write_map('plane.fits', healpy.read_map(FILE, field=NUMBER))"
        )
    held_names = {name for names in columns for name in names}
    apart = all(held_names & set(COLUMNS.format(s).split()) for s in stokes)
    mend = STACK if apart else "name them Q_POLARISATION, U_POLARISATION"
    return f"{path}: columns {held} hold no Q and U{' in one table' if apart else ''}; {mend}"


def _in_rings(
    header: MapHeader, planes: np.ndarray, numbers: np.ndarray | None, stokes: str
) -> tuple[int, np.ndarray]:
    """nside, and planes of the whole sky in ring order: NaN where a part of the sky has no pixel,
    zero of a single plane."""
    path, nested = header.path, header.nested()
    nside = header.number("NSIDE", np.nan)
    size = planes.shape[1]
    if np.isnan(nside) and numbers is None and healpy.isnpixok(size):
        nside = np.sqrt(size / 12)
    if np.isnan(nside):
        raise MapError(
            f"{path}: NSIDE is missing, and {size} pixels are not known to be the whole sky; write "
            "NSIDE of the map"
        )
    if not healpy.isnsideok(nside, nest=nested):
        raise MapError(f"{path}: NSIDE is {nside:g}; write that of the map, a power of two")
    nside, n_sky = int(nside), 12 * int(nside) ** 2
    if numbers is None:
        if size != n_sky:
            raise MapError(
                f"{path}: NSIDE is {nside}, and there are {size} pixels, not {n_sky}; write NSIDE "
                "of the map, or a column PIXEL with the numbers of its pixels"
            )
        return nside, healpy.reorder(planes, n2r=True) if nested else planes
    pixels = numbers.astype(np.int64)
    inside = (pixels == numbers) & (pixels >= 0) & (pixels < n_sky)
    if not inside.all() or len(np.unique(pixels)) < size:
        raise MapError(
            f"{path}: the column of pixel numbers holds some twice, or beyond 0 to {n_sky - 1}, "
            f"the pixels of NSIDE {nside}; write each pixel once"
        )
    whole = np.full((len(planes), n_sky), np.nan if stokes else 0.0, planes.dtype)
    whole[:, healpy.nest2ring(nside, pixels) if nested else pixels] = planes
    return nside, whole


def _read_image(path: Path, images: list[_Extension], stokes: str, dtype: type) -> FitsMap:
    # A picture beside the map has no coordinates, and fewer planes.
    placed = [(part, header) for part, header in images if header.alone.text("CTYPE1")]
    matches = [
        (part, header)
        for part, header in placed or images
        if not stokes or _n_planes(part.header) > 1
    ]
    if not matches:
        flat = [_text(part.header, "EXTNAME") for part, _ in images]
        needed = "no image with planes (Q, U) or (I, Q, U)" if stokes else "no image"
        apart = f"images {flat} of one plane each: {STACK}" if len(flat) > 1 else "write one"
        if not flat:
            apart = "it holds no image: write those keywords into its table; or is it cut off?"
        raise MapError(
            f"{path}: {needed}, and no HEALPix table (PIXTYPE HEALPIX, with NSIDE and ORDERING); "
            f"{apart}"
        )
    part, header = _only(path, matches, "such an image")
    planes = part.data.reshape(-1, *part.data.shape[-2:])
    names = _names(path, header, len(planes))
    if not stokes:
        if len(planes) != 1:
            raise MapError(
                f"{path}: holds {len(planes)} planes{_listed(names)}; it must hold one: write that "
                "of Q and U, e.g. pixell's enmap.write_fits('plane.fits', enmap.read_fits(FILE)[1])"
            )
        taken = [0]
    else:
        taken = [names.index(s) for s in stokes if names.count(s) == 1]
    if len(taken) != (len(stokes) or 1):
        raise MapError(
            f"{path}: holds {len(planes)} planes{_listed(names)}, without Q and U; it must hold "
            f"(Q, U) or (I, Q, U): {STACK}"
        )
    kept: np.ndarray = np.array(planes[taken], dtype=dtype)
    return FitsMap(header, kept, None, [("BUNIT",)] * len(kept), [names[i] for i in taken])


def _text(header: fits.Header, key: str) -> str:
    return str(header.get(key, "")).strip().upper()


def _n_planes(header: fits.Header) -> int:
    return int(np.prod([header[f"NAXIS{axis}"] for axis in range(3, header["NAXIS"] + 1)]))


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if any(names) else ""


def _names(path: Path, header: MapHeader, n_planes: int) -> list[str]:
    """What an image's planes are, by its Stokes axis; without one (Q, U) or (I, Q, U)."""
    axes = range(3, header.own["NAXIS"] + 1)
    kinds = {axis: _text(header.own, f"CTYPE{axis}") for axis in axes}
    long = [axis for axis in axes if header.own[f"NAXIS{axis}"] > 1]
    unknown = [axis for axis in long if kinds[axis] not in ("", "STOKES")]
    if unknown or len(long) > 1:
        axis = (unknown or long)[-1]
        raise MapError(
            f"{path}: CTYPE{axis} is '{kinds[axis]}', of {header.own[f'NAXIS{axis}']} planes; "
            "planes must be Stokes parameters alone: cut the map out"
        )
    if long and kinds[long[0]]:
        return _stokes_of(header, long[0])
    return {2: ["Q", "U"], 3: ["I", "Q", "U"]}.get(n_planes, [""] * n_planes)


def _stokes_of(header: MapHeader, axis: int) -> list[str]:
    """The Stokes parameters of an axis whose ``CTYPE`` is STOKES, "?" for others."""
    header, length = header.alone, int(header.own[f"NAXIS{axis}"])
    start, value = (header.number(f"{key}{axis}", 0.0) for key in ("CRPIX", "CRVAL"))
    step = header.number(f"CDELT{axis}", header.number(f"CD{axis}_{axis}", 1.0))
    numbers = value + (np.arange(1, length + 1) - start) * step
    return [STOKES.get(round(x), "?") if abs(x - round(x)) < 1e-3 else "?" for x in numbers]
