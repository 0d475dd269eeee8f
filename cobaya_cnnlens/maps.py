"""A user's own polarisation maps: read, checked against what the network was trained for, written.

Three kinds of file hold Q and U:

- a FITS image per patch, in the Lambert equal-area projection (``ZEA``) about its centre that the
  patches of the simulations have, with planes (Q, U) or (I, Q, U);
- a HEALPix FITS map of the sky, from which patches are cut by spherical-harmonic synthesis at their
  pixels, so that nothing is interpolated;
- a NumPy ``.npz`` with arrays ``q`` and ``u``, (n_patches, n, n), already in the patch's frame (see
  :mod:`cobaya_cnnlens.simulate.patches`), in µK.

In the FITS files Q and U refer to the local meridian, with ``POLCCONV`` IAU or COSMO; where it is
missing an image is taken as IAU, a HEALPix map as COSMO, as their standards say.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ducc0
import healpy
import numpy as np
from astropy.io import fits

from . import products
from .calibrate.bandpowers import FlatSpectra, e_and_b
from .calibrate.measure import MAP_BANDPOWERS, spectra_of
from .config import Config
from .errors import MapError
from .products import temporary_name
from .reconstruct import Estimator
from .simulate.instrument import cosine_mask
from .simulate.patches import EPSILON, PatchGeometry, point_patch, point_patches
from .simulate.stage import spectra_for

# To µK; the spellings of FITS headers.
UNITS = {"uk": 1.0, "uk_cmb": 1.0, "muk": 1.0, "ukcmb": 1.0, "µk": 1.0, "k": 1e6, "k_cmb": 1e6}
UNITS |= {"kcmb": 1e6, "mk": 1e3, "mk_cmb": 1e3}
PIXEL_TOLERANCE = 1e-3
# The rms of a patch's Q and U, and its power at high l, may be off by these before a warning;
# beyond the second factor the unit is wrong.
RMS_TOLERANCE, RMS_IMPOSSIBLE = 0.25, 10.0
NOISE_TOLERANCE = 0.15


@dataclass(frozen=True)
class PatchMaps:
    """Unmasked Q and U in µK in the patches' frame, (n_patches, n, n) each; the centres,
    colatitude and longitude in radians, (n_patches, 2); the multipole where the maps end, if
    that is known."""

    q: np.ndarray
    u: np.ndarray
    centres: np.ndarray
    lmax: int | None = None


def read_maps(
    path: str | Path,
    geometry: PatchGeometry,
    centres: np.ndarray | None = None,
    pixel_window: bool = False,
    nthreads: int = 0,
) -> PatchMaps:
    """Read the patches of one file.

    Parameters
    ----------
    geometry : of the patches that the network was trained on
    centres : colatitude and longitude of the patches to cut from a HEALPix map, (n, 2)
    pixel_window : whether to divide a HEALPix map's pixel window out

    Raises
    ------
    MapError
        naming the file, the field and the mend
    """
    path = Path(path)
    if not path.exists():
        raise MapError(f"{path}: no such file")
    if path.suffix == ".npz":
        maps = _read_arrays(path, geometry)
    else:
        try:
            with fits.open(path) as file:
                table = next((h for h in file if h.header.get("PIXTYPE") == "HEALPIX"), None)
                if table is None:
                    maps = _read_image(path, file, geometry)
        except OSError as error:
            raise MapError(f"{path}: not a FITS file or damaged ({error}); restore it") from None
        if table is not None:
            if centres is None or not len(centres):
                raise MapError(f"{path}: a HEALPix map; say where to cut patches with --centre")
            maps = _cut_healpix(path, table.header, geometry, centres, pixel_window, nthreads)
    bad = ~np.isfinite(maps.q) | ~np.isfinite(maps.u)
    if bad.any():
        patch, y, x = np.argwhere(bad)[0]
        raise MapError(
            f"{path}: {bad.sum()} pixels of Q or U are not finite, the first in patch {patch} at "
            f"(y, x) = ({y}, {x}); fill them, or choose a patch without holes"
        )
    return maps


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


def _read_arrays(path: Path, geometry: PatchGeometry) -> PatchMaps:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = {"q", "u"} - set(file.files)
            if missing:
                raise MapError(f"{path}: no array '{min(missing)}'; it needs 'q' and 'u' in µK")
            q, u = (np.asarray(file[k], dtype=float) for k in ("q", "u"))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, MapError):
            raise
        raise MapError(f"{path}: cannot be read as arrays ({error}); restore it") from None
    n = geometry.n_pixels
    if q.shape != u.shape or q.ndim != 3 or q.shape[1:] != (n, n):
        raise MapError(
            f"{path}: 'q' has shape {q.shape}, 'u' {u.shape}; both must be (n_patches, {n}, {n})"
        )
    return PatchMaps(q, u, np.tile([0.5 * np.pi, 0.0], (len(q), 1)))


def _read_image(path: Path, file: fits.HDUList, geometry: PatchGeometry) -> PatchMaps:
    image = next((h for h in file if h.data is not None and h.header.get("NAXIS", 0) == 3), None)
    if image is None or len(image.data) not in (2, 3):
        raise MapError(
            f"{path}: no image with planes (Q, U) or (I, Q, U), and no HEALPix map; write one"
        )
    header, n = image.header, geometry.n_pixels
    q, u = np.asarray(image.data[-2:], dtype=float) * _unit(path, header, "BUNIT")
    for axis in (1, 2):
        kind = str(header.get(f"CTYPE{axis}", ""))
        if not kind.endswith("ZEA"):
            raise MapError(
                f"{path}: CTYPE{axis} is '{kind}'; patches are in the equal-area projection ZEA "
                "about their centre: reproject, or give the map as HEALPix"
            )
        step = float(header.get(f"CDELT{axis}", np.nan))
        want = np.degrees(geometry.pixel)
        if not abs(abs(step) / want - 1.0) < PIXEL_TOLERANCE:
            raise MapError(
                f"{path}: CDELT{axis} is {60 * abs(step):.4g}', the network's pixels are "
                f"{60 * want:.4g}'; project onto those"
            )
        middle = float(header.get(f"CRPIX{axis}", np.nan))
        if header[f"NAXIS{axis}"] != n or not abs(middle - 0.5 * (n + 1)) < 1e-3:
            raise MapError(
                f"{path}: NAXIS{axis} is {header[f'NAXIS{axis}']} with CRPIX{axis} {middle:g}; a "
                f"patch has {n} pixels about CRPIX {0.5 * (n + 1):g}: cut it out"
            )
    turned = [k for k in ("PC1_2", "PC2_1", "CD1_2", "CD2_1", "CROTA2") if header.get(k, 0.0) != 0]
    if turned:
        raise MapError(f"{path}: {turned[0]} turns the image; project it with north along y")
    if header["CDELT1"] < 0:
        q, u = q[:, ::-1], u[:, ::-1]
    if header["CDELT2"] < 0:
        q, u = q[::-1], u[::-1]
    centre = np.radians([90.0 - header["CRVAL2"], header["CRVAL1"]])
    p = q + 1j * _sign_of_u(path, header, "IAU") * u
    flat = PatchGeometry(geometry.size_deg, n, pad=0)
    p = p * np.exp(-2j * point_patch(centre, flat).frame.reshape(n, n))
    return PatchMaps(p.real[None], p.imag[None], centre[None])


def _cut_healpix(path, header, geometry, centres, pixel_window, nthreads) -> PatchMaps:
    names = [str(header.get(f"TTYPE{i + 1}", "")).upper() for i in range(header["TFIELDS"])]
    columns = [
        next((i for i, name in enumerate(names) if name.startswith(letter)), None)
        for letter in ("Q", "U")
    ]
    if None in columns:
        raise MapError(
            f"{path}: columns {names} hold no Q and U; name them Q_POLARISATION, U_POLARISATION"
        )
    factor = _unit(path, header, f"TUNIT{columns[0] + 1}")
    try:
        q, u = healpy.read_map(path, field=columns, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise MapError(f"{path}: cannot be read ({error}); restore the file") from None
    unseen = (q == healpy.UNSEEN) | (u == healpy.UNSEEN) | ~np.isfinite(q) | ~np.isfinite(u)
    nside = healpy.get_nside(q)
    half_diagonal = np.radians(geometry.size_deg) / np.sqrt(2.0)
    for theta, phi in centres:
        disc = healpy.query_disc(nside, healpy.ang2vec(theta, phi), half_diagonal)
        if unseen[disc].any():
            raise MapError(
                f"{path}: {unseen[disc].sum()} unseen or non-finite pixels within the patch at "
                f"(lon, lat) = ({np.degrees(phi):g}, {90 - np.degrees(theta):g}); cut elsewhere"
            )
    q, u = (np.where(unseen, 0.0, m) * factor for m in (q, u))
    u *= _sign_of_u(path, header, "COSMO")
    # Beyond 2 nside the map's quadrature is poor, beyond the patch's corners nothing is needed.
    lmax = min(2 * nside, int(np.sqrt(2.0) * geometry.nyquist))
    elm, blm = healpy.map2alm_spin([q, u], 2, lmax=lmax)
    if pixel_window:
        window = healpy.pixwin(nside, pol=True, lmax=lmax)[1]
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
    return PatchMaps(p.real, p.imag, np.asarray(centres), lmax)


def _unit(path: Path, header: fits.Header, key: str) -> float:
    unit = str(header.get(key, "")).strip()
    if unit.lower() not in UNITS:
        raise MapError(f"{path}: {key} is '{unit}'; write the unit of Q and U, uK or K")
    return UNITS[unit.lower()]


def _sign_of_u(path: Path, header: fits.Header, standard: str) -> float:
    convention = str(header.get("POLCCONV", standard)).strip().upper()
    if convention not in ("IAU", "COSMO"):
        raise MapError(f"{path}: POLCCONV is '{convention}'; it must be IAU or COSMO")
    return 1.0 if convention == "COSMO" else -1.0


def check_maps(maps: PatchMaps, config: Config, source: str) -> list[str]:
    """Compare the patches with what the configuration's instrument and fiducial cosmology give.

    Returns
    -------
    warnings: a map that ends below the patches' Nyquist multipole, the rms of Q and U off by more
    than a quarter, noise at the highest multipoles off by more than 15%, or less B power with U's
    sign flipped than as it is

    Raises
    ------
    MapError
        if the rms is off by more than tenfold: the unit is wrong
    """
    theory = spectra_for(config, config.cosmology)
    instrument, spectra = config.instrument, spectra_of(config)
    l = np.arange(len(theory.ee))
    signal = (theory.lensed_ee + theory.lensed_bb) * instrument.beam(l) ** 2
    inside = (l >= config.patch.fundamental) & (l <= config.patch.nyquist)
    variance = np.sum(((2 * l + 1) * signal)[inside]) / (8.0 * np.pi)
    noise_rms = float(np.sqrt(np.mean(np.square(instrument.noise_rms(config.patch)))))
    expected = np.sqrt(variance + noise_rms**2)
    rms = np.sqrt(0.5 * np.mean(maps.q**2 + maps.u**2))
    warnings = []
    if not expected / RMS_IMPOSSIBLE < rms < expected * RMS_IMPOSSIBLE:
        raise MapError(
            f"{source}: Q and U have rms {rms:.3g} µK, {expected:.3g} µK are expected; look at "
            "their unit"
        )
    if maps.lmax is not None and maps.lmax < (nyquist := round(config.patch.nyquist)):
        nside = 2 ** int(np.ceil(np.log2(nyquist / 2.0)))
        warnings.append(
            f"the map ends at l = {maps.lmax} (2 nside), the patches that the network knows at "
            f"{nyquist}: κ̂ is not what calibrated it; take nside {nside} or more"
        )
    if abs(rms / expected - 1.0) > RMS_TOLERANCE:
        warnings.append(f"Q and U have rms {rms:.3g} µK where {expected:.3g} µK are expected")
    mask = cosine_mask(config.patch, instrument.taper_deg)
    q, u = maps.q * mask, maps.u * mask
    e, b = e_and_b(spectra, q, u)
    flipped = e_and_b(spectra, q, -u)[1]
    power = {name: _power(spectra, m) for name, m in (("e", e), ("b", b), ("flipped", flipped))}
    if power["flipped"].sum() < 0.5 * power["b"].sum():
        warnings.append(
            f"B has {power['b'].sum() / power['e'].sum():.2f} of E's power, and "
            f"{power['flipped'].sum() / power['e'].sum():.2f} with the sign of U flipped: is "
            "POLCCONV right?"
        )
    found, want = _high_l_power(config, maps, theory, mask)
    if abs(np.sqrt(found / want) - 1.0) > NOISE_TOLERANCE:
        warnings.append(
            f"at the highest multipoles the maps have {np.sqrt(found / want):.2f} times the "
            f"amplitude that the beam and {instrument.noise_uk_arcmin:g} µK-arcmin of noise give"
        )
    return warnings


def _power(spectra: FlatSpectra, modes: np.ndarray) -> np.ndarray:
    return spectra.cross(modes, modes).mean(0)


def _high_l_power(config: Config, maps: PatchMaps, theory, mask) -> tuple[float, float]:
    """Mean power of Q and U over modes of .8 to 1 Nyquist, measured and expected."""
    n, pixel = config.patch.n_pixels, config.patch.pixel
    ly = 2.0 * np.pi * np.fft.fftfreq(n, pixel)
    ell = np.hypot(ly[:, None], ly[None, :])
    ring = (ell > 0.8 * config.patch.nyquist) & (ell < config.patch.nyquist)
    area = (n * pixel) ** 2 * np.mean(mask**2)
    found = np.mean(
        [
            (np.abs(np.fft.fft2(m * mask) * pixel**2) ** 2 / area)[..., ring].mean()
            for m in (maps.q, maps.u)
        ]
    )
    l = np.round(ell[ring]).astype(int)
    l = np.minimum(l, len(theory.ee) - 1)
    beam = config.instrument.beam(l) ** 2
    signal = 0.5 * np.mean((theory.lensed_ee[l] + theory.lensed_bb[l]) * beam)
    rms = np.square(config.instrument.noise_rms(config.patch)) * mask**2
    return float(found), float(signal + np.mean(rms) / np.mean(mask**2) * pixel**2)


def write_images(
    path: str | Path,
    planes: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
    unit: str,
    **cards: str | float,
) -> None:
    """Write a patch, (ny, nx) or (n_planes, ny, nx), as a FITS image with its WCS, atomically.

    Polarisation planes must refer to the local meridian, see :func:`to_meridian`.
    """
    n, step = geometry.n_pixels, np.degrees(geometry.pixel)
    # Astronomical images have longitude growing to the left.
    image = fits.PrimaryHDU(np.ascontiguousarray(planes[..., ::-1], dtype=np.float32))
    header = image.header
    latitude, longitude = 90.0 - np.degrees(centre[0]), np.degrees(centre[1])
    for axis, (kind, value, sign) in enumerate(
        (("RA---ZEA", longitude, -1.0), ("DEC--ZEA", latitude, 1.0)), start=1
    ):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = kind, "deg"
        header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = value, sign * step
        header[f"CRPIX{axis}"] = 0.5 * (n + 1)
    header["BUNIT"] = unit
    for key, value in cards.items():
        header[key] = value
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(path)
    try:
        image.writeto(partial, overwrite=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def to_meridian(
    q: np.ndarray, u: np.ndarray, centre: np.ndarray, geometry: PatchGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Q, U (n, n) in the patch's frame → those that refer to the local meridian, COSMO sign."""
    flat = PatchGeometry(geometry.size_deg, geometry.n_pixels, pad=0)
    frame = point_patch(centre, flat).frame.reshape(q.shape)
    p = (q + 1j * u) * np.exp(2j * frame)
    return p.real, p.imag


def reconstruct_maps(
    config: Config,
    estimator: Estimator,
    network_hash: str,
    maps: PatchMaps,
    source: str,
    folder: str | Path,
) -> Path:
    """Reconstruct a user's patches: κ̂ of each as a FITS image, and their bandpowers.

    Parameters
    ----------
    source : where the maps came from, kept in what is written
    folder : where ``kappa_000.fits`` and so on and ``bandpowers.h5`` go

    Returns
    -------
    path of the bandpowers, from which :func:`~cobaya_cnnlens.calibrate.assemble.make_data_release`
    makes a release
    """
    folder = Path(folder)
    mask = cosine_mask(config.patch, config.instrument.taper_deg)
    kappa = estimator.reconstruct(maps.q * mask, maps.u * mask)
    for i, (patch, centre) in enumerate(zip(kappa, maps.centres, strict=True)):
        path = folder / f"kappa_{i:03d}.fits"
        cards = {"NETWORK": network_hash[:16], "CONFIG": config.name}
        write_images(path, patch, centre, config.patch, "", **cards)
    path = folder / "bandpowers.h5"
    arrays = {
        "auto": spectra_of(config).auto(kappa),
        "centres": maps.centres,
        "source": np.bytes_(source.encode()),
    }
    products.write_product(path, MAP_BANDPOWERS, config.map_recipe(network_hash), arrays)
    return path
