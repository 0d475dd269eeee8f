"""Files of a user's own polarisation maps: read into patches, and written.

Three kinds of file hold Q and U:

- a FITS image per patch, in the Lambert equal-area projection (``ZEA``) about its centre that the
  patches of the simulations have, with planes (Q, U) or (I, Q, U);
- a HEALPix FITS map of the sky, from which patches are cut by spherical-harmonic synthesis at their
  pixels, so that nothing is interpolated;
- a NumPy ``.npz`` with arrays ``q`` and ``u``, (n_patches, n, n), already in the patch's frame (see
  :mod:`cobaya_cnnlens.simulate.patches`), in µK; optionally ``centres``, (n_patches, 2), longitude
  and latitude in degrees, without which nobody can tell whether patches overlap.

In the FITS files Q and U refer to the local meridian, with ``POLCCONV`` IAU or COSMO; where it is
missing an image is taken as IAU, a HEALPix map as COSMO, as their standards say. Coordinates are
equatorial, galactic or ecliptic (``COORDSYS`` of a HEALPix map, equatorial where it is missing),
and the meridian is that of the same coordinates.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ducc0
import healpy
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ..errors import MapError
from ..files import atomic_write
from ..simulate.patches import EPSILON, PatchGeometry, point_patch, point_patches
from .separation import check_separate

# To µK; the spellings of FITS headers.
UNITS = {"uk": 1.0, "uk_cmb": 1.0, "muk": 1.0, "ukcmb": 1.0, "µk": 1.0, "k": 1e6, "k_cmb": 1e6}
UNITS |= {"kcmb": 1e6, "mk": 1e3, "mk_cmb": 1e3}
PIXEL_TOLERANCE = 1e-3
# How far, in pixels, a header may put a pixel from where the patch has it.
PLACE_TOLERANCE = 0.05
# The coordinates of FITS images and HEALPix maps, by the first letter of ``COORDSYS``.
AXES = {"C": ("RA---ZEA", "DEC--ZEA"), "G": ("GLON-ZEA", "GLAT-ZEA"), "E": ("ELON-ZEA", "ELAT-ZEA")}


@dataclass(frozen=True)
class PatchMaps:
    """Unmasked Q and U in µK in the patches' frame, (n_patches, n, n) each; the centres,
    colatitude and longitude in radians, (n_patches, 2), NaN where unknown; the multipole where the
    maps end, if that is known; and the frame of the coordinates, a key of
    :data:`~cobaya_cnnlens.pipeline.separation.FRAMES`."""

    q: np.ndarray
    u: np.ndarray
    centres: np.ndarray
    lmax: int | None = None
    frame: str = "C"

    @classmethod
    def join(cls, parts: Sequence[PatchMaps], size_deg: float, source: str) -> PatchMaps:
        """Several files' patches as one survey.

        Raises
        ------
        MapError
            if their coordinates are of different frames, or patches overlap
        """
        if len({part.frame for part in parts}) > 1:
            raise MapError(f"{source}: the maps' coordinates are of different frames; choose one")
        q, u, centres = (
            np.concatenate([getattr(part, key) for part in parts]) for key in ("q", "u", "centres")
        )
        check_separate(centres, size_deg, source)
        ends = [part.lmax for part in parts if part.lmax is not None]
        return cls(q, u, centres, min(ends, default=None), parts[0].frame)


def read_maps(
    path: str | Path,
    geometry: PatchGeometry,
    centres: np.ndarray | None = None,
    pixel_window: bool = False,
    nthreads: int = 0,
    unit: str | None = None,
) -> PatchMaps:
    """Read the patches of one file.

    Parameters
    ----------
    geometry : of the patches that the network was trained on
    centres : colatitude and longitude of the patches to cut from a HEALPix map, or of those of an
        ``.npz``, (n, 2)
    pixel_window : whether to divide a HEALPix map's pixel window out
    unit : of Q and U where a FITS header does not say, or of an ``.npz`` that is not in µK

    Raises
    ------
    MapError
        naming the file, the field and the mend
    """
    path = Path(path)
    given = centres is not None and len(centres) > 0
    if unit is not None and unit.lower() not in UNITS:
        raise MapError(f"--unit {unit}: give uK, mK or K")
    if given:
        check_separate(centres, geometry.size_deg, "--centre")
    if not path.is_file():
        raise MapError(f"{path}: no such file")
    if path.suffix == ".npz":
        _refuse(path, pixel_window, "--pixel-window", "arrays have no pixel window of HEALPix")
        maps = _read_arrays(path, geometry, centres if given else None, unit)
    else:
        found = _read_fits(path)
        if found.healpix:
            if not given:
                raise MapError(f"{path}: a HEALPix map; say where to cut patches with --centre")
            maps = _cut_healpix(path, found, geometry, centres, pixel_window, nthreads, unit)
        else:
            _refuse(path, given, "--centre", "an image says itself where it lies")
            _refuse(path, pixel_window, "--pixel-window", "an image has no pixel window of HEALPix")
            maps = _read_image(path, found, geometry, unit)
    bad = ~np.isfinite(maps.q) | ~np.isfinite(maps.u)
    if bad.any():
        patch, y, x = np.argwhere(bad)[0]
        raise MapError(
            f"{path}: {bad.sum()} pixels of Q or U are not finite, the first in patch {patch} at "
            f"(y, x) = ({y}, {x}); fill them, or choose a patch without holes"
        )
    # What was seen is nowhere exactly zero in both; a patch that is zero throughout is told later.
    holes = (maps.q == 0) & (maps.u == 0)
    holes &= ~holes.all((1, 2), keepdims=True)
    if holes.sum() > 1:
        patch, y, x = np.argwhere(holes)[0]
        raise MapError(
            f"{path}: {holes.sum()} pixels are zero in Q and in U, the first in patch {patch} at "
            f"(y, x) = ({y}, {x}): holes filled with zeros; choose patches without holes"
        )
    check_separate(maps.centres, geometry.size_deg, str(path))
    return maps


def _refuse(path: Path, given: bool, option: str, why: str) -> None:
    if given:
        raise MapError(f"{path}: {why}; leave {option} out")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a foreign reader makes of a damaged file becomes one error, and so does its warning
    that a file was cut off; its other warnings are of headers that it mends."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*(truncated|corrupt).*")
            yield
    except Exception as error:
        raise MapError(
            f"{path}: cannot be read, it is no map or is damaged ({type(error).__name__}: "
            f"{str(error)[:200] or 'empty'}); restore it"
        ) from None


def parse_centres(texts: Sequence[str]) -> np.ndarray:
    """``"LON,LAT"`` in degrees → colatitude and longitude in radians, (n, 2).

    Raises
    ------
    MapError
    """
    centres = []
    for text in texts:
        try:
            longitude, latitude = (float(part) for part in text.split(","))
        except ValueError:
            raise MapError(f"--centre {text}: write LON,LAT in degrees, e.g. 120,-45") from None
        if not abs(latitude) < 90 or not np.isfinite(longitude):
            raise MapError(f"--centre {text}: the latitude must lie between -90 and 90 degrees")
        centres.append(np.radians([90.0 - latitude, longitude]))
    return np.array(centres).reshape(-1, 2)


def _read_arrays(
    path: Path, geometry: PatchGeometry, centres: np.ndarray | None, unit: str | None
) -> PatchMaps:
    n = geometry.n_pixels
    with reading(path), zipfile.ZipFile(path) as file:
        names = {name.removesuffix(".npy") for name in file.namelist()}
        shapes = {name: _header(file, name) for name in ("q", "u", "centres") if name in names}
    missing = {"q", "u"} - names
    if missing:
        raise MapError(f"{path}: no array '{min(missing)}'; it needs 'q' and 'u' in µK")
    # What the headers say is checked before anything is unpacked.
    (q_shape, _), (u_shape, _) = shapes["q"], shapes["u"]
    if q_shape != u_shape or len(q_shape) != 3 or q_shape[1:] != (n, n):
        raise MapError(
            f"{path}: 'q' has shape {q_shape}, 'u' {u_shape}; both must be (n_patches, {n}, {n})"
        )
    n_patches = q_shape[0]
    most = int(4.0 * np.pi / np.radians(geometry.size_deg) ** 2)
    if not 0 < n_patches <= most:
        raise MapError(
            f"{path}: {n_patches} patches; the sky holds 1 to {most} of {geometry.size_deg:g} deg"
        )
    if "centres" in shapes and shapes["centres"][0] != (n_patches, 2):
        raise MapError(
            f"{path}: 'centres' has shape {shapes['centres'][0]}; it must be ({n_patches}, 2), "
            "longitude and latitude in degrees of each patch"
        )
    for name, (_, dtype) in shapes.items():
        if dtype.kind not in "iuf":
            raise MapError(f"{path}: '{name}' is of type {dtype}; it must hold real numbers")
    with reading(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: np.asarray(file[name], dtype=float) for name in shapes}
    q, u = (arrays[name] * UNITS[(unit or "uK").lower()] for name in ("q", "u"))
    if centres is None:
        longitude, latitude = arrays.get("centres", np.full((n_patches, 2), np.nan)).T
        if "centres" in arrays and not (np.abs(latitude) <= 90.0).all():
            raise MapError(f"{path}: 'centres' holds a latitude beyond 90 degrees; correct it")
        centres = np.radians(np.stack([90.0 - latitude, longitude], axis=1))
    elif "centres" in arrays or len(centres) != n_patches:
        raise MapError(
            f"{path}: {len(centres)} --centre for {n_patches} patches"
            f"{', whose centres the file has' if 'centres' in arrays else ''}; give one for each, "
            "or none"
        )
    return PatchMaps(q, u, centres)


def _header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that an array of an ``.npz`` says it has."""
    with file.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        shape, _, dtype = read(member)
    return shape, dtype


@dataclass(frozen=True)
class _Fits:
    """What a FITS file holds in its extension ``number``: the header of a HEALPix map, or an image
    with its header."""

    number: int
    header: fits.Header
    image: np.ndarray | None

    @property
    def healpix(self) -> bool:
        return self.image is None


def _read_fits(path: Path) -> _Fits:
    found = None
    # Opened here: what fits.open opens of a damaged file it leaves open.
    with reading(path), path.open("rb") as opened, fits.open(opened, memmap=False) as file:
        for number, part in enumerate(file):
            if part.header.get("PIXTYPE") == "HEALPIX":
                found = _Fits(number, part.header.copy(), None)
                break
            if found is None and part.header.get("NAXIS", 0) == 3 and part.data is not None:
                found = _Fits(number, part.header.copy(), np.asarray(part.data, dtype=float))
    if found is None or not (found.healpix or len(found.image) in (2, 3)):
        raise MapError(
            f"{path}: no image with planes (Q, U) or (I, Q, U), and no HEALPix map; write one"
        )
    return found


def _read_image(path: Path, found: _Fits, geometry: PatchGeometry, unit: str | None) -> PatchMaps:
    header, n = found.header, geometry.n_pixels
    q, u = found.image[-2:] * unit_factor(path, header, ("BUNIT",), unit)
    frame = _frame_of_image(path, header)
    for axis in (1, 2):
        # The one-number form of a matrix that does not turn.
        if f"CDELT{axis}" not in header and f"CD{axis}_{axis}" in header:
            header[f"CDELT{axis}"] = header[f"CD{axis}_{axis}"]
        step = _number(path, header, f"CDELT{axis}")
        want = np.degrees(geometry.pixel)
        if not abs(abs(step) / want - 1.0) < PIXEL_TOLERANCE:
            raise MapError(
                f"{path}: CDELT{axis} is {60 * abs(step):.4g}', the network's pixels are "
                f"{60 * want:.4g}'; project onto those"
            )
        middle = _number(path, header, f"CRPIX{axis}")
        if header[f"NAXIS{axis}"] != n or not abs(middle - 0.5 * (n + 1)) < 1e-3:
            raise MapError(
                f"{path}: NAXIS{axis} is {header[f'NAXIS{axis}']} with CRPIX{axis} {middle:g}; a "
                f"patch has {n} pixels about CRPIX {0.5 * (n + 1):g}: cut it out"
            )
    longitude, latitude = (_number(path, header, f"CRVAL{axis}") for axis in (1, 2))
    if not abs(latitude) < 90.0:
        raise MapError(
            f"{path}: CRVAL2 is {latitude:g}; a latitude lies between -90 and 90 degrees"
        )
    centre = np.radians([90.0 - latitude, longitude % 360.0])
    pointing = point_patch(centre, PatchGeometry(geometry.size_deg, n, pad=0))
    _check_places(path, header, pointing, geometry)
    if header["CDELT1"] < 0:
        q, u = q[:, ::-1], u[:, ::-1]
    if header["CDELT2"] < 0:
        q, u = q[::-1], u[::-1]
    p = q + 1j * sign_of_u(path, header, "IAU") * u
    p = p * np.exp(-2j * pointing.frame.reshape(n, n))
    return PatchMaps(p.real[None], p.imag[None], centre[None], frame=frame)


def _frame_of_image(path: Path, header: fits.Header) -> str:
    kinds = tuple(str(header.get(f"CTYPE{axis}", "")).strip().upper() for axis in (1, 2))
    for frame, axes in AXES.items():
        if kinds == axes:
            return frame
    axis = 1 if all(kinds[0] != first for first, _ in AXES.values()) else 2
    raise MapError(
        f"{path}: CTYPE{axis} is '{kinds[axis - 1]}'; patches are in the equal-area projection ZEA "
        "about their centre, longitude along x ('RA---ZEA', 'DEC--ZEA'): reproject, or give "
        "the map as HEALPix"
    )


def _number(path: Path, header: fits.Header, key: str) -> float:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MapError(f"{path}: {key} is {value!r:.40}; it must be a number")
    return float(value)


def _check_places(path: Path, header: fits.Header, pointing, geometry: PatchGeometry) -> None:
    """Refuse an image whose header, taken whole, puts pixels elsewhere than the patch has them."""
    for key in ("CUNIT1", "CUNIT2"):
        if str(header.get(key, "deg")).strip().lower() not in ("", "deg", "degree", "degrees"):
            raise MapError(f"{path}: {key} is '{header[key]}'; write the header in deg")
    n = geometry.n_pixels
    turned = [k for k in ("PC1_2", "PC2_1", "CD1_2", "CD2_1", "CROTA2") if header.get(k, 0.0) != 0]
    if turned:
        raise MapError(f"{path}: {turned[0]} turns the image; project it with north along y")
    with reading(path):
        y, x = np.mgrid[:n, :n]
        # The patch's pixels in the image's order.
        y, x = (c if header[f"CDELT{i}"] > 0 else n - 1 - c for c, i in ((y, 2), (x, 1)))
        places = WCS(header, naxis=2).wcs_pix2world(x.ravel(), y.ravel(), 0)
    longitude, latitude = np.radians(places)
    cosine = np.cos(pointing.theta) * np.sin(latitude) + np.sin(pointing.theta) * np.cos(
        latitude
    ) * np.cos(longitude - pointing.phi)
    # A cosine near one is rounded to far less than a pixel.
    off = np.arccos(np.clip(cosine, -1.0, 1.0)).max() / geometry.pixel
    if not off < PLACE_TOLERANCE:
        odd = [
            key
            for key in header
            if key in ("LONPOLE", "LATPOLE", "PC1_1", "PC2_2", "CD1_1", "CD2_2")
            or key.startswith(("PV1_", "PV2_", "A_", "B_"))
        ]
        raise MapError(
            f"{path}: the header puts a pixel {off:.2g} pixels from where a patch about its CRVAL "
            f"with north along y has it{f' ({chr(44).join(odd)})' if odd else ''}; project it so, "
            "without distortion"
        )


def _cut_healpix(path, found, geometry, centres, pixel_window, nthreads, unit) -> PatchMaps:
    header = found.header
    names = [str(header.get(f"TTYPE{i + 1}", "")).upper() for i in range(header["TFIELDS"])]
    columns = [
        next((i for i, name in enumerate(names) if name.startswith(letter)), None)
        for letter in ("Q", "U")
    ]
    if None in columns:
        raise MapError(
            f"{path}: columns {names} hold no Q and U; name them Q_POLARISATION, U_POLARISATION"
        )
    frame = str(header.get("COORDSYS", "C")).strip().upper()[:1] or "C"
    if frame not in AXES:
        raise MapError(
            f"{path}: COORDSYS is '{header['COORDSYS']}'; it must be C, G or E, for equatorial, "
            "galactic or ecliptic"
        )
    factor = unit_factor(path, header, [f"TUNIT{column + 1}" for column in columns], unit)
    with reading(path):
        # By name: healpy does not count the column of pixel numbers that a part of the sky has.
        fields = [header[f"TTYPE{column + 1}"] for column in columns]
        q, u = healpy.read_map(path, field=fields, hdu=found.number, dtype=np.float64)
        nside = healpy.get_nside(q)
    unseen = (q == healpy.UNSEEN) | (u == healpy.UNSEEN) | ~np.isfinite(q) | ~np.isfinite(u)
    half_diagonal = np.radians(geometry.size_deg) / np.sqrt(2.0)
    for theta, phi in centres:
        disc = healpy.query_disc(nside, healpy.ang2vec(theta, phi), half_diagonal)
        if unseen[disc].any():
            raise MapError(
                f"{path}: {unseen[disc].sum()} unseen or non-finite pixels within the patch at "
                f"(lon, lat) = ({np.degrees(phi):g}, {90 - np.degrees(theta):g}); cut elsewhere"
            )
    q, u = (np.where(unseen, 0.0, m) * factor for m in (q, u))
    u *= sign_of_u(path, header, "COSMO")
    # Beyond 2 nside the map's quadrature is poor, beyond the patch's corners nothing is needed.
    lmax = min(2 * nside, int(np.sqrt(2.0) * geometry.nyquist))
    elm, blm = healpy.map2alm_spin([q, u], 2, lmax=lmax)
    if pixel_window:
        window = pixel_window_of(path, nside, lmax)
        keep = np.where(window > 0, 1.0 / np.where(window > 0, window, 1.0), 0.0)
        elm, blm = (healpy.almxfl(a, keep) for a in (elm, blm))
    flat = PatchGeometry(geometry.size_deg, geometry.n_pixels, pad=0)
    pointing = point_patches(centres, flat)
    q, u = ducc0.sht.synthesis_general(
        alm=np.array([elm, blm]),
        spin=2,
        lmax=lmax,
        loc=np.stack([pointing.theta, pointing.phi], axis=1),
        epsilon=EPSILON,
        nthreads=nthreads,
    )
    p = ((q + 1j * u) * np.exp(-2j * pointing.frame)).reshape(-1, flat.n_pixels, flat.n_pixels)
    return PatchMaps(p.real, p.imag, np.asarray(centres), lmax, frame)


def pixel_window_of(path: Path, nside: int, lmax: int) -> np.ndarray:
    """Window of polarisation of a HEALPix map's pixels, (lmax + 1,)."""
    try:
        return healpy.pixwin(nside, pol=True, lmax=lmax)[1]
    except (OSError, ValueError) as error:
        raise MapError(
            f"{path}: healpy has no pixel window for nside {nside} and fetches it from the network "
            f"({error}); run `python -c 'import healpy; healpy.pixwin({nside})'` where there is one"
        ) from None


def unit_factor(path: Path, header: fits.Header, keys: Sequence[str], given: str | None) -> float:
    """Factor to µK of Q and U: the header's unit, or the one given where the header has none."""
    units = {str(header.get(key, "")).strip() for key in keys}
    if len(units) > 1:
        raise MapError(f"{path}: {' and '.join(keys)} differ; write Q and U in one unit")
    [unit] = units
    if not unit and given is not None:
        unit = given
    if unit.lower() not in UNITS:
        raise MapError(
            f"{path}: {keys[0]} is '{unit}'; write the unit of Q and U, uK or K"
            + ("" if unit else ", or give it as --unit")
        )
    if given is not None and UNITS[unit.lower()] != UNITS[given.lower()]:
        raise MapError(f"{path}: {keys[0]} is '{unit}', --unit {given}; leave --unit out")
    return UNITS[unit.lower()]


def sign_of_u(path: Path, header: fits.Header, standard: str) -> float:
    convention = str(header.get("POLCCONV", standard)).strip().upper()
    if convention not in ("IAU", "COSMO"):
        raise MapError(f"{path}: POLCCONV is '{convention}'; it must be IAU or COSMO")
    return 1.0 if convention == "COSMO" else -1.0


def write_images(
    path: str | Path,
    planes: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
    unit: str,
    frame: str = "C",
    **cards: str | float,
) -> None:
    """Write a patch, (ny, nx) or (n_planes, ny, nx), as a FITS image with its WCS, atomically; one
    whose ``centre`` is not known (NaN) with the size of its pixels alone.

    Polarisation planes must refer to the local meridian, see :func:`to_meridian`.
    """
    n, step = geometry.n_pixels, np.degrees(geometry.pixel)
    # Astronomical images have longitude growing to the left.
    image = fits.PrimaryHDU(np.ascontiguousarray(planes[..., ::-1], dtype=np.float32))
    header = image.header
    latitude, longitude = 90.0 - np.degrees(centre[0]), np.degrees(centre[1])
    known = bool(np.isfinite(centre).all())
    kinds, place = (AXES[frame], (longitude, latitude)) if known else (("X", "Y"), (0.0, 0.0))
    for axis, (kind, value, sign) in enumerate(
        zip(kinds, place, (-1.0, 1.0), strict=True), start=1
    ):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = kind, "deg"
        header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = value, sign * step
        header[f"CRPIX{axis}"] = 0.5 * (n + 1)
    header["BUNIT"] = unit
    for key, value in cards.items():
        header[key] = value
    with atomic_write(path) as partial:
        image.writeto(partial, overwrite=True)


def to_meridian(
    q: np.ndarray, u: np.ndarray, centre: np.ndarray, geometry: PatchGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Q, U (n, n) in the patch's frame → those that refer to the local meridian, COSMO sign."""
    flat = PatchGeometry(geometry.size_deg, geometry.n_pixels, pad=0)
    frame = point_patch(centre, flat).frame.reshape(q.shape)
    p = (q + 1j * u) * np.exp(2j * frame)
    return p.real, p.imag
