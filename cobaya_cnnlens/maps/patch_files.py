"""Files of a user's own polarisation maps: read into patches, and written.

Three kinds of file hold Q and U:

- a FITS image per patch, in the Lambert equal-area projection (``ZEA``) about its centre that the
  patches of the simulations have, with planes (Q, U) or (I, Q, U);
- a HEALPix FITS map of the sky, from which patches are cut by spherical-harmonic synthesis at their
  pixels, so that nothing is interpolated;
- a NumPy ``.npz`` with arrays ``q`` and ``u``, (n_patches, n, n), already in the patch's frame (see
  :mod:`cobaya_cnnlens.simulate.patches`), in µK; optionally ``centres``, (n_patches, 2), longitude
  and latitude in degrees, without which nobody can tell whether patches overlap.

In the FITS files, which :mod:`.fits_maps` reads, Q and U refer to the local meridian, with
``POLCCONV`` IAU or COSMO; where it is missing an image is taken as IAU, a HEALPix map as COSMO, as
their standards say. Coordinates are equatorial, galactic or ecliptic (``COORDSYS`` of a HEALPix
map, equatorial where it is missing, with a warning), and the meridian is that of the same
coordinates. A patch must be whole: a pixel that was not seen is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ducc0
import healpy
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ..errors import MapError
from ..files import atomic_write
from ..simulate.patches import EPSILON, PatchGeometry, Pointing, point_patch, point_patches
from .fits_maps import CONVERT, FitsMap, check_file, read_fits, reading
from .headers import (
    AXES,
    MapHeader,
    odd_keywords,
    say_frame,
    unit_option,
    unseen_in,
    wcs_of,
)
from .separation import check_separate

PIXEL_TOLERANCE = 1e-3
# How far, in pixels, a header may put a pixel from where the patch has it.
PLACE_TOLERANCE = 0.05
# What κ̂'s images say of themselves.
KAPPA_COMMENTS = (
    "kappa is dimensionless (BUNIT is empty); it is times the mask,",
    "and not divided by the response R.",
    "Longitude grows to the left: data[:, ::-1] has the order of an array",
    "of maps (.npz), axis 0 north, axis 1 east.",
)


@dataclass(frozen=True)
class PatchMaps:
    """Unmasked polarisation maps of patches, in the patches' frame.

    Attributes
    ----------
    q, u : in µK, (n_patches, n, n) each
    centres : colatitude and longitude in radians, (n_patches, 2); NaN where unknown
    lmax : multipole at which the maps end; None if it is not known
    frame : of the coordinates, a key of :data:`~cobaya_cnnlens.maps.separation.FRAMES`
    arrays : whether the maps came as arrays
    warnings : of what was assumed
    """

    q: np.ndarray
    u: np.ndarray
    centres: np.ndarray
    lmax: int | None = None
    frame: str = "C"
    arrays: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def join(cls, parts: Sequence[PatchMaps], size_deg: float, source: str) -> PatchMaps:
        """Several files' patches as one survey.

        Parameters
        ----------
        parts : patches of each file
        size_deg : side of a patch in degrees
        source : for errors

        Returns
        -------
        all patches

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
        arrays = any(part.arrays for part in parts)
        warnings = tuple(dict.fromkeys(text for part in parts for text in part.warnings))
        return cls(q, u, centres, min(ends, default=None), parts[0].frame, arrays, warnings)


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
    path : of the file
    geometry : of the patches that the network was trained on
    centres : colatitude and longitude of the patches to cut from a HEALPix map, or of those of an
        ``.npz``, (n, 2)
    pixel_window : whether to divide a HEALPix map's pixel window out
    unit : of Q and U where a FITS header does not say, or of an ``.npz`` that is not in µK

    Returns
    -------
    the patches

    Raises
    ------
    MapError
        naming the file, the field and the mend
    """
    path = Path(path)
    if centres is not None and not len(centres):
        centres = None
    if unit is not None:
        unit_option(unit)
    if centres is not None:
        check_separate(centres, geometry.size_deg, "--centre")
    if path.suffix.lower() == ".npz" and path.is_file():
        _refuse(path, pixel_window, "--pixel-window", "arrays have no pixel window of HEALPix")
        maps = _read_arrays(path, geometry, centres, unit)
    else:
        check_file(path, f"{CONVERT}; or arrays of patches with numpy.savez('maps.npz', q=q, u=u)")
        sky = read_fits(path, "QU").with_holes()
        if sky.nside is not None:
            if centres is None:
                raise MapError(f"{path}: a HEALPix map; say where to cut patches with --centre")
            maps = _cut_healpix(sky, sky.nside, geometry, centres, pixel_window, nthreads, unit)
        else:
            _refuse(path, centres is not None, "--centre", "an image says itself where it lies")
            _refuse(path, pixel_window, "--pixel-window", "an image has no pixel window of HEALPix")
            maps = _read_image(sky, geometry, unit)
    bad = ~np.isfinite(maps.q) | ~np.isfinite(maps.u)
    if bad.any():
        patch, y, x = np.argwhere(bad)[0]
        raise MapError(
            f"{path}: {bad.sum()} pixels of Q or U were not seen, the first in patch {patch} at "
            f"(y, x) = ({y}, {x}): they are not finite, marked as unseen, or zero in both; fill "
            "them, or choose a patch without holes"
        )
    check_separate(maps.centres, geometry.size_deg, str(path))
    return maps


def _refuse(path: Path, given: bool, option: str, why: str) -> None:
    if given:
        raise MapError(f"{path}: {why}; leave {option} out")


def parse_centres(texts: Sequence[str]) -> np.ndarray:
    """``"LON,LAT"`` in degrees → colatitude and longitude in radians, (n, 2).

    Parameters
    ----------
    texts : ``"LON,LAT"`` in degrees

    Returns
    -------
    colatitude and longitude in radians, (n, 2)

    Raises
    ------
    MapError

    Examples
    --------
    >>> parse_centres(["90,0"]).round(4).tolist()
    [[1.5708, 1.5708]]
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
        raise MapError(
            f"{path}: no array '{min(missing)}' among {sorted(names)}; it needs 'q' and 'u' in µK"
        )
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
    q, u = (arrays[name] * unit_option(unit or "uK") for name in ("q", "u"))
    holes = unseen_in(q, u)
    q[holes] = u[holes] = np.nan
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
    return PatchMaps(q, u, centres, arrays=True)


def _header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that an array of an ``.npz`` says it has."""
    with file.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        shape, _, dtype = read(member)
    return shape, dtype


def _read_image(image: FitsMap, geometry: PatchGeometry, unit: str | None) -> PatchMaps:
    path, header, n = image.path, image.header.alone, geometry.n_pixels
    q, u = image.planes * image.header.factor_to_uk(image.unit_keys, unit)
    frame = header.frame_of_axes("ZEA")
    for key in ("CUNIT1", "CUNIT2"):
        if header.text(key) not in ("", "DEG", "DEGREE", "DEGREES"):
            raise MapError(f"{path}: {key} is '{header.own[key]}'; write the header in deg")
    latitude, longitude = header.number("CRVAL2"), header.number("CRVAL1")
    if not abs(latitude) < 90.0:
        raise MapError(
            f"{path}: CRVAL2 is {latitude:g}; a latitude lies between -90 and 90 degrees"
        )
    for axis in (1, 2):
        middle = header.number(f"CRPIX{axis}")
        if header.own[f"NAXIS{axis}"] != n or not abs(middle - 0.5 * (n + 1)) < 1e-3:
            raise MapError(
                f"{path}: NAXIS{axis} is {header.own[f'NAXIS{axis}']} with CRPIX{axis} {middle:g}; "
                f"a patch has {n} pixels about CRPIX {0.5 * (n + 1):g}: cut it out"
            )
    wcs, steps = wcs_of(header)
    want = np.degrees(geometry.pixel)
    for axis, step in enumerate(steps, start=1):
        if not abs(abs(step) / want - 1.0) < PIXEL_TOLERANCE:
            raise MapError(
                f"{path}: CDELT{axis} is {60 * abs(step):.4g}', the network's pixels are "
                f"{60 * want:.4g}'; project onto those"
            )
    centre = np.radians([90.0 - latitude, longitude % 360.0])
    pointing = point_patch(centre, PatchGeometry(geometry.size_deg, n, pad=0))
    # The patch's pixels in the image's order.
    rows, columns = (np.arange(n) if step > 0 else np.arange(n)[::-1] for step in steps[::-1])
    _check_places(header, wcs, rows, columns, pointing, geometry)
    p = q + 1j * image.header.sign_of_u("IAU") * u
    p = p[rows[:, None], columns] * np.exp(-2j * pointing.frame.reshape(n, n))
    return PatchMaps(p.real[None], p.imag[None], centre[None], frame=frame)


def _check_places(
    header: MapHeader,
    wcs: WCS,
    rows: np.ndarray,
    columns: np.ndarray,
    pointing: Pointing,
    geometry: PatchGeometry,
) -> None:
    """Refuse an image whose header, taken whole, puts pixels elsewhere than the patch has them."""
    y, x = (c.ravel() for c in np.meshgrid(rows, columns, indexing="ij"))
    longitude, latitude = np.radians(wcs.all_pix2world(x, y, 0))
    cosine = np.cos(pointing.theta) * np.sin(latitude) + np.sin(pointing.theta) * np.cos(
        latitude
    ) * np.cos(longitude - pointing.phi)
    # A cosine near one is rounded to far less than a pixel.
    off = np.arccos(np.clip(cosine, -1.0, 1.0)).max() / geometry.pixel
    if not off < PLACE_TOLERANCE:
        raise MapError(
            f"{header.path}: the header puts a pixel {off:.2g} pixels from where a patch about its "
            f"CRVAL with north along y has it{odd_keywords(header.own)}; project it so, without "
            "distortion"
        )


def _cut_healpix(
    sky: FitsMap,
    nside: int,
    geometry: PatchGeometry,
    centres: np.ndarray,
    pixel_window: bool,
    nthreads: int,
    unit: str | None,
) -> PatchMaps:
    path, header, frame = sky.path, sky.header, sky.header.frame()
    q, u = sky.planes * header.factor_to_uk(sky.unit_keys, unit)
    unseen = np.isnan(q)
    half_diagonal = np.radians(geometry.size_deg) / np.sqrt(2.0)
    for theta, phi in centres:
        disc = healpy.query_disc(nside, healpy.ang2vec(theta, phi), half_diagonal)
        if unseen[disc].any():
            raise MapError(
                f"{path}: {unseen[disc].sum()} unseen or non-finite pixels, or zero in Q and U, "
                "within the patch at (lon, lat) = "
                f"({np.degrees(phi):g}, {90 - np.degrees(theta):g}); cut elsewhere"
            )
    q, u = (np.where(unseen, 0.0, m) for m in (q, u))
    u *= header.sign_of_u("COSMO")
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
    warnings = () if frame else (say_frame("C"),)
    return PatchMaps(p.real, p.imag, np.asarray(centres), lmax, frame or "C", warnings=warnings)


def pixel_window_of(path: Path, nside: int, lmax: int) -> np.ndarray:
    """Window of polarisation of a HEALPix map's pixels, (lmax + 1,).

    Parameters
    ----------
    path : of the map, for errors
    nside : of the map
    lmax : highest multipole

    Returns
    -------
    (lmax + 1,)
    """
    try:
        return healpy.pixwin(nside, pol=True, lmax=lmax)[1]
    except (OSError, ValueError) as error:
        raise MapError(
            f"{path}: healpy has no pixel window for nside {nside} and fetches it from the network "
            f"({error}); run `python -c 'import healpy; healpy.pixwin({nside})'` where there is one"
        ) from None


def write_images(
    path: str | Path,
    planes: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
    unit: str,
    frame: str = "C",
    comments: Sequence[str] = (),
    **cards: str | float,
) -> None:
    """Write a patch, (ny, nx) or (n_planes, ny, nx), as a FITS image with its WCS, atomically; one
    whose ``centre`` is not known (NaN) with the size of its pixels alone.

    Polarisation planes must refer to the local meridian, see :func:`to_meridian`.

    Parameters
    ----------
    path : destination
    planes : the map, (ny, nx) or (n_planes, ny, nx)
    centre : colatitude and longitude in radians, (2,), NaN where unknown
    geometry : of the patches
    unit : for ``BUNIT``
    frame : of the coordinates, a key of :data:`~.separation.FRAMES`
    comments : for the header
    **cards : further keywords of the header
    """
    n, step = geometry.n_pixels, np.degrees(geometry.pixel)
    # Astronomical images have longitude growing to the left.
    image = fits.PrimaryHDU(np.ascontiguousarray(planes[..., ::-1], dtype=np.float32))
    header = image.header
    latitude, longitude = 90.0 - np.degrees(centre[0]), np.degrees(centre[1])
    known = bool(np.isfinite(centre).all())
    kinds, place = [f"{axis}ZEA" for axis in AXES[frame]], (longitude, latitude)
    if not known:
        kinds, place = ["X", "Y"], (0.0, 0.0)
    for axis, (kind, value, sign) in enumerate(
        zip(kinds, place, (-1.0, 1.0), strict=True), start=1
    ):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = kind, "deg"
        header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = value, sign * step
        header[f"CRPIX{axis}"] = 0.5 * (n + 1)
    header["BUNIT"] = unit
    for key, value in cards.items():
        header[key] = value
    for comment in comments:
        header.add_comment(comment)
    with atomic_write(path) as partial:
        image.writeto(partial, overwrite=True)


def write_kappa(
    path: str | Path,
    kappa: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
    frame: str,
    **cards: str | float,
) -> None:
    """Write κ̂ of a patch, (ny, nx) in the patch's frame, as :func:`write_images` does, and say in
    the header what it is.

    Parameters
    ----------
    path : destination
    kappa : κ̂ in the patch's frame, (ny, nx)
    centre : colatitude and longitude in radians, (2,), NaN where unknown
    geometry : of the patches
    frame : of the coordinates, a key of :data:`~.separation.FRAMES`
    **cards : further keywords of the header
    """
    write_images(path, kappa, centre, geometry, "", frame, KAPPA_COMMENTS, **cards)


def to_meridian(
    q: np.ndarray, u: np.ndarray, centre: np.ndarray, geometry: PatchGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Turn Q and U from the patch's frame to the local meridian, with the sign of COSMO.

    Parameters
    ----------
    q, u : in the patch's frame, (n, n) each
    centre : colatitude and longitude in radians, (2,)
    geometry : of the patches

    Returns
    -------
    Q and U, (n, n) each
    """
    flat = PatchGeometry(geometry.size_deg, geometry.n_pixels, pad=0)
    frame = point_patch(centre, flat).frame.reshape(q.shape)
    p = (q + 1j * u) * np.exp(2j * frame)
    return p.real, p.imag
