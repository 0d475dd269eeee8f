"""Files of a user's own polarisation maps, read into patches.

Three kinds of file hold Q and U:

- a FITS image of one patch, in the Lambert equal-area projection (``ZEA``) about its centre, with
  planes (Q, U) or (I, Q, U);
- a HEALPix FITS map of the sky, from which :mod:`.cutting` cuts patches;
- a NumPy ``.npz`` with arrays ``q`` and ``u``, (n_patches, n, n) in µK, in the patch's frame (see
  :mod:`cobaya_cnnlens.simulate.patches`), and perhaps ``centres``, (n_patches, 2), longitude and
  latitude in degrees. Without them nobody can tell whether patches overlap.

In FITS files Q and U refer to the local meridian of the map's own coordinates. ``POLCCONV`` is IAU
or COSMO. Without it an image is taken as IAU and a HEALPix map as COSMO, as their standards say.
Coordinates are equatorial, galactic or ecliptic. A HEALPix map without ``COORDSYS`` is taken as
equatorial, with a warning. A patch must not have unseen pixels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import healpy
import numpy as np
from astropy.wcs import WCS

from ..errors import MapError
from ..simulate.patches import PatchGeometry, Pointing, point_patch
from .cutting import cut_map, lmax_of
from .fits_maps import CONVERT, FitsMap, check_file, read_fits, reading
from .grids import SkyFile, q_and_u
from .headers import ASSUMED_FRAME, MapHeader, unseen_in
from .patch_maps import PatchMaps
from .projection import PLACE_TOLERANCE, odd_keywords, wcs_of
from .tiles import check_separate
from .units import unit_option

# Pixels may be so much wider or narrower than the network's, relative.
PIXEL_TOLERANCE = 1e-3


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
        image = read_fits(path, "QU").with_holes()
        if image.nside is not None:
            if centres is None:
                raise MapError(f"{path}: a HEALPix map; say where to cut patches with --centre")
            sky = SkyFile.healpix(image, image.nside)
            maps = _cut_healpix(sky, image.nside, geometry, centres, pixel_window, nthreads, unit)
        else:
            _refuse(path, centres is not None, "--centre", "an image says itself where it lies")
            _refuse(path, pixel_window, "--pixel-window", "an image has no pixel window of HEALPix")
            maps = _read_image(image, geometry, unit)
    bad = ~np.isfinite(maps.q) | ~np.isfinite(maps.u)
    if bad.any():
        patch, y, x = np.argwhere(bad)[0]
        raise MapError(
            f"{path}: {bad.sum()} pixels of Q or U were not seen, the first in patch {patch} at "
            f"(y, x) = ({y}, {x}): they are not finite, marked as unseen, or zero in both; fill "
            "them, or choose a patch without holes"
        )
    check_separate(maps.centres, geometry.size_deg, str(path))
    return replace(maps, source=path.name)


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
    # The headers are checked before anything is unpacked.
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
    # These are the numbers of the patch's pixels in the order of the image.
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
    # Near one, the cosine is rounded to far less than a pixel.
    off = np.arccos(np.clip(cosine, -1.0, 1.0)).max() / geometry.pixel
    if not off < PLACE_TOLERANCE:
        raise MapError(
            f"{header.path}: the header puts a pixel {off:.2g} pixels from where a patch about its "
            f"CRVAL with north along y has it{odd_keywords(header.own)}; project it so, without "
            "distortion"
        )


def _cut_healpix(
    sky: SkyFile,
    nside: int,
    geometry: PatchGeometry,
    centres: np.ndarray,
    pixel_window: bool,
    nthreads: int,
    unit: str | None,
) -> PatchMaps:
    q, u = q_and_u(sky, unit)
    known = np.isfinite(q)
    half_diagonal = np.radians(geometry.size_deg) / np.sqrt(2.0)
    for theta, phi in centres:
        disc = healpy.query_disc(nside, healpy.ang2vec(theta, phi), half_diagonal)
        if not known[disc].all():
            raise MapError(
                f"{sky.path}: {(~known[disc]).sum()} unseen or non-finite pixels, or zero in Q and "
                "U, within the patch at (lon, lat) = "
                f"({np.degrees(phi):g}, {90 - np.degrees(theta):g}); cut elsewhere"
            )
    flat = replace(geometry, pad=0)
    window_of = sky.path if pixel_window else None
    p = cut_map(sky.grid, (q, u), known, centres, flat, window_of, nthreads)
    warnings = (ASSUMED_FRAME,) if sky.assumed_frame else ()
    lmax, frame = lmax_of(sky.grid, flat), sky.grid.frame
    return PatchMaps(p.real, p.imag, centres, lmax, frame, warnings=warnings)
