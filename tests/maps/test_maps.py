"""A user's own maps: written in each format, read back, checked, and made into a release."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import replace

import healpy
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from cobaya.yaml import yaml_load_file
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError, MapError, NetworkError, ProductError, ReleaseError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.cnnlens import CNNLens
from cobaya_cnnlens.likelihood.combined import combine
from cobaya_cnnlens.likelihood.release import read_release, write_release
from cobaya_cnnlens.maps import bandpower_file, map_setup
from cobaya_cnnlens.maps.assembly import make_patch_release
from cobaya_cnnlens.maps.bandpower_file import check_folder
from cobaya_cnnlens.maps.cutting import cut
from cobaya_cnnlens.maps.headers import FRAMES
from cobaya_cnnlens.maps.images import to_meridian, write_images
from cobaya_cnnlens.maps.map_checks import check_maps
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.patch_files import parse_centres, read_maps
from cobaya_cnnlens.maps.patch_maps import PatchMaps
from cobaya_cnnlens.maps.reconstruction import reconstruct_maps
from cobaya_cnnlens.maps.tiles import check_separate
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import sky_noise
from cobaya_cnnlens.pipeline.power import power_of
from cobaya_cnnlens.pipeline.release_networks import NETWORKS, find_networks, is_release
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.simulate.bandpowers import Bins
from cobaya_cnnlens.simulate.instrument import (
    ARCMIN,
    Instrument,
    Systematics,
    convolve_beam,
    draw_noise,
)
from cobaya_cnnlens.simulate.one_over_f import OneOverF
from cobaya_cnnlens.simulate.patches import (
    PatchGeometry,
    Pointing,
    deflect_by,
    gradient_at,
    lensed_polarisation_at,
    patch_centres,
    point_patches,
    polarisation_at,
)
from cobaya_cnnlens.simulate.periodic import PeriodicSkies
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.simulate.tiling import ring_centres

from ..conftest import REPOSITORY, synthetic_release

GEOMETRY = PatchGeometry(n_pixels=64)
CENTRE = np.radians([50.0, 120.0])
HASH = "a" * 64
EXCESS = OneOverF(200.0, 3.0, 2.0)


@pytest.fixture
def maps():
    q, u = np.random.default_rng(2).standard_normal((2, 1, 64, 64))
    return PatchMaps(q, u, CENTRE[None])


def write(path, maps, unit="uK", scale=1.0, convention="COSMO", frame="C", **cards):
    q, u = to_meridian(maps.q[0], maps.u[0], maps.centres[0], GEOMETRY)
    sign = 1.0 if convention == "COSMO" else -1.0
    planes = scale * np.array([q, sign * u])
    write_images(path, planes, maps.centres[0], GEOMETRY, unit, frame, POLCCONV=convention, **cards)
    return path


def same(found, maps):
    np.testing.assert_allclose(found.q, maps.q, atol=1e-6)
    np.testing.assert_allclose(found.u, maps.u, atol=1e-6)
    np.testing.assert_allclose(found.centres, maps.centres)


@pytest.mark.parametrize(
    ("unit", "scale"),
    [
        *((unit, 1.0) for unit in ("uK", "muK", "µK", "uK_CMB", "uKCMB")),
        *((unit, 1e-3) for unit in ("mK", "mK_CMB")),
        *((unit, 1e-6) for unit in ("K", "K_CMB", "KCMB")),
    ],
)
@pytest.mark.parametrize("convention", ["COSMO", "IAU"])
def test_fits_image_round_trip(tmp_path, maps, unit, scale, convention):
    if "µ" in unit:  # no header can hold it, an option can
        path = write(tmp_path / "m.fits", maps, "", scale, convention)
        same(read_maps(path, GEOMETRY, unit=unit), maps)
        return
    same(read_maps(write(tmp_path / "m.fits", maps, unit, scale, convention), GEOMETRY), maps)


def test_an_image_without_a_convention_is_iau(tmp_path, maps):
    path = write(tmp_path / "m.fits", maps, convention="IAU")
    fits.delval(path, "POLCCONV")
    same(read_maps(path, GEOMETRY), maps)


@pytest.mark.parametrize("axes", [(2,), (1,), (1, 2)])
@pytest.mark.parametrize("matrix", [None, "CD", "PC"])
def test_an_image_that_grows_the_other_way_is_the_same(tmp_path, maps, axes, matrix):
    """Along either axis of the image (FITS axis 1 is x, the array's last), by CDELT, CD or PC."""
    path = write(tmp_path / "m.fits", maps)
    with fits.open(path, mode="update") as file:
        header = file[0].header
        for axis in axes:
            file[0].data = np.ascontiguousarray(np.flip(file[0].data, -axis))
            header[f"PC{axis}_{axis}" if matrix == "PC" else f"CDELT{axis}"] = -1 * (
                1.0 if matrix == "PC" else header[f"CDELT{axis}"]
            )
        for axis in (1, 2) if matrix == "CD" else ():
            header[f"CD{axis}_{axis}"] = header.pop(f"CDELT{axis}")
    same(read_maps(path, GEOMETRY), maps)


def test_planes_i_q_u_and_another_extension(tmp_path, maps):
    """Temperature, if there, comes first and is left aside; the image may be an extension."""
    path = write(tmp_path / "m.fits", maps)
    planes, header = fits.getdata(path), fits.getheader(path)
    planes = np.concatenate([100.0 + planes[:1], planes])
    image = fits.ImageHDU(planes, header)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "iqu.fits")
    same(read_maps(tmp_path / "iqu.fits", GEOMETRY), maps)


def test_orientation_and_frame_are_the_patchs(tmp_path):
    """Astropy's own WCS puts every pixel where the simulations' patches have it."""
    flat = replace(GEOMETRY, pad=0)
    pointing = point_patches(CENTRE[None], flat)
    write_images(tmp_path / "m.fits", np.zeros((64, 64)), CENTRE, GEOMETRY, "")
    wcs = WCS(fits.getheader(tmp_path / "m.fits"))
    y, x = np.mgrid[:64, :64]
    longitude, latitude = wcs.wcs_pix2world(x.ravel(), y.ravel(), 0)
    theta = np.radians(90 - latitude).reshape(64, 64)[:, ::-1].ravel()
    phi = np.radians(longitude).reshape(64, 64)[:, ::-1].ravel()
    np.testing.assert_allclose(theta, pointing.theta, atol=1e-9)
    np.testing.assert_allclose(phi % (2 * np.pi), pointing.phi, atol=1e-9)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_stays_that_of_the_map(tmp_path, maps, frame):
    """κ̂ of a galactic map lies where its coordinates say: not at the same numbers in RA, DEC."""
    found = read_maps(write(tmp_path / "m.fits", maps, frame=frame), GEOMETRY)
    same(found, maps)
    assert found.frame == frame
    sky = tmp_path / "sky.fits"
    q = np.random.default_rng(1).standard_normal((3, 12 * 32**2))
    healpy.write_map(
        sky, q, coord=frame, column_units="uK", dtype=float, column_names=("I", "Q", "U")
    )
    assert read_maps(sky, GEOMETRY, CENTRE[None]).frame == frame


NSIDE, LMAX = 256, 400
CENTRES = parse_centres(["120,40", "-75.5,-20"])


@pytest.fixture(scope="module")
def sky():
    """a_lm of E, and the Q, U of the HEALPix map that they make, COSMO sign, µK."""
    elm = unit_alm(LMAX, np.random.default_rng(3))
    elm[[0, 1, LMAX + 1]] = 0  # l < 2
    return elm, np.array(healpy.alm2map_spin([elm, np.zeros_like(elm)], NSIDE, 2, LMAX))


def write_healpix(path, q, u, units="uK", header=(), **keywords):
    healpy.write_map(
        path,
        [0 * q, q, u],
        column_names=["I_STOKES", "Q_POLARISATION", "U_POLARISATION"],
        column_units=units,
        extra_header=list(header),
        overwrite=True,
        dtype=np.float64,
        **keywords,
    )
    return path


def close(found, p, tolerance=2e-3):
    np.testing.assert_allclose(found.q, p.real, atol=tolerance * p.real.std())
    np.testing.assert_allclose(found.u, p.imag, atol=tolerance * p.imag.std())


@pytest.mark.parametrize(
    ("units", "scale", "convention", "nest", "beamed"),
    [
        ("uK", 1.0, None, False, False),
        ("uK", 1.0, "COSMO", True, False),
        ("K_CMB", 1e-6, "IAU", False, False),
        ("mK", 1e-3, "IAU", True, True),
    ],
)
def test_patches_of_a_healpix_map_are_synthesis_at_their_pixels(
    tmp_path, monkeypatch, sky, units, scale, convention, nest, beamed
):
    """From a map of E alone, cut patches equal the simulations' own synthesis of the same a_lm, in
    whatever unit, order and convention the map is, and through the pixels' window."""
    elm, (q, u) = sky
    if beamed:
        # Like healpy's, which it fetches from the network.
        windows = np.exp(-np.outer([1.0, 1.2], (np.arange(2 * NSIDE + 1) / NSIDE) ** 2) / 8.0)
        monkeypatch.setattr(
            healpy, "pixwin", lambda nside, pol, lmax: tuple(windows[:, : lmax + 1])
        )
        smooth = healpy.almxfl(elm, windows[1])
        q, u = healpy.alm2map_spin([smooth, np.zeros_like(elm)], NSIDE, 2, LMAX)
    u = -u if convention == "IAU" else u
    q, u = (healpy.reorder(scale * m, r2n=True) if nest else scale * m for m in (q, u))
    header = [("POLCCONV", convention)] if convention else []
    path = write_healpix(tmp_path / "sky.fits", q, u, units, header, nest=nest)
    found = read_maps(path, GEOMETRY, CENTRES, pixel_window=beamed)
    assert found.lmax == 2 * NSIDE
    pointing = point_patches(CENTRES, replace(GEOMETRY, pad=0))
    p = polarisation_at(elm, LMAX, pointing).reshape(2, 64, 64)
    close(found, p)
    if beamed:  # the window matters at this accuracy
        with pytest.raises(AssertionError):
            close(read_maps(path, GEOMETRY, CENTRES), p)


def test_a_pixel_window_that_cannot_be_had_is_one_clear_error(tmp_path, monkeypatch, sky):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(healpy, "pixwin", offline)
    path = write_healpix(tmp_path / "sky.fits", *sky[1])
    with pytest.raises(MapError, match=r"no pixel window for nside 256 .*no network"):
        read_maps(path, GEOMETRY, CENTRES, pixel_window=True)


def test_a_healpix_map_reaches_the_patches_corners(tmp_path, sky):
    """Modes between the Nyquist multipole of a patch's side and √2 of it, at its corner in l."""
    elm, (q, u) = sky
    coarse = PatchGeometry(size_deg=20.0, n_pixels=32, pad=0)  # Nyquist 288, corner 407
    found = read_maps(write_healpix(tmp_path / "sky.fits", q, u), coarse, CENTRES)
    assert found.lmax == 408
    close(found, cut(np.array([elm, 0 * elm]), LMAX, CENTRES, coarse))


def test_holes_and_centres_of_a_healpix_map(tmp_path, sky):
    _, (q, u) = sky
    path = write_healpix(tmp_path / "sky.fits", q, u)
    with pytest.raises(MapError, match="say where to cut"):
        read_maps(path, GEOMETRY)
    with pytest.raises(
        MapError,
        match=r"--centre: patches 0 .* and 1 .* overlap, .* 1 degrees apart",
    ):
        read_maps(path, GEOMETRY, parse_centres(["10,0", "11,0"]))
    holed = q.copy()
    holed[healpy.ang2pix(NSIDE, *CENTRES[1])] = healpy.UNSEEN
    with pytest.raises(MapError, match=r"1 unseen .* \(lon, lat\) = \(-75\.5, -20\)"):
        read_maps(write_healpix(path, holed, u), GEOMETRY, CENTRES)
    # In U alone, and in the patch's corner, 3.2 of 3.5 degrees from its middle.
    corner = healpy.ang2pix(
        NSIDE, *(CENTRES[1] + np.radians([2.26, 2.26 / np.cos(np.radians(20))]))
    )
    for hole in (healpy.UNSEEN, np.nan, np.inf):
        holed = u.copy()
        holed[corner] = hole
        with pytest.raises(MapError, match="1 unseen or non-finite pixels"):
            read_maps(write_healpix(path, q, holed), GEOMETRY, CENTRES)
    # A hole elsewhere is none of the patch's business.
    assert len(read_maps(path, GEOMETRY, CENTRES[:1]).q) == 1


@pytest.mark.parametrize("nest", [False, True])
def test_a_part_of_the_sky_with_its_pixel_numbers(tmp_path, sky, nest):
    """Columns PIXEL, I, Q, U, QQ, as experiments publish: Q and U are those, wherever they are."""
    _, (q, u) = sky
    whole = read_maps(write_healpix(tmp_path / "sky.fits", q, u), GEOMETRY, CENTRES[:1])
    seen = healpy.query_disc(NSIDE, healpy.ang2vec(*CENTRES[0]), np.radians(60.0))
    unseen = np.ones(len(q), bool)
    unseen[seen] = False
    planes = np.where(unseen, healpy.UNSEEN, [0 * q, q, u, 1.0 + 0 * q])
    planes = healpy.reorder(planes, r2n=True) if nest else planes
    names = ["I_STOKES", "Q_STOKES", "U_STOKES", "QQ_COV"]
    part = tmp_path / "part.fits"
    healpy.write_map(part, planes, nest, float, partial=True, column_names=names, column_units="uK")
    found = read_maps(part, GEOMETRY, CENTRES[:1])
    # What ends 57 degrees away moves the patch little.
    np.testing.assert_allclose(found.q, whole.q, atol=0.02 * whole.q.std())
    np.testing.assert_allclose(found.u, whole.u, atol=0.02 * whole.u.std())


def test_an_image_and_a_healpix_map_of_one_sky_are_the_same_patch(tmp_path, sky):
    """Q and U of the sphere at the pixels where astropy's own WCS puts them, as an image, beside
    the patch that the simulations would cut: the meridian turns by degrees across it."""
    elm, (q, u) = sky
    centre = parse_centres(["120,60"])
    write_images(tmp_path / "m.fits", np.zeros((2, 64, 64)), centre[0], GEOMETRY, "uK")
    y, x = np.mgrid[:64, :64]
    with fits.open(tmp_path / "m.fits", mode="update") as file:
        header = file[0].header
        longitude, latitude = WCS(header, naxis=2).wcs_pix2world(x.ravel(), y.ravel(), 0)
        at = Pointing(np.radians(90 - latitude), np.radians(longitude), np.zeros(64 * 64))
        p = polarisation_at(elm, LMAX, at).reshape(64, 64)
        file[0].data = np.array([p.real, -p.imag])
        header["POLCCONV"] = "IAU"
    image = read_maps(tmp_path / "m.fits", GEOMETRY)
    cut = read_maps(write_healpix(tmp_path / "sky.fits", q, u), GEOMETRY, centre)
    close(image, cut.q + 1j * cut.u)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TUNIT2", "", "TUNIT2 and TUNIT3 differ"),
        ("TUNIT3", "K", "TUNIT2 and TUNIT3 differ"),
        ("COORDSYS", "moon", "COORDSYS is 'moon'"),
        ("TTYPE2", "N_HITS", "hold no Q and U"),
        ("POLCCONV", "other", "POLCCONV is 'other'"),
    ],
)
def test_a_wrong_healpix_header_is_one_clear_error(tmp_path, sky, key, value, message):
    path = write_healpix(tmp_path / "sky.fits", *sky[1])
    fits.setval(path, key, value=value, ext=1)
    with pytest.raises(MapError, match=message):
        read_maps(path, GEOMETRY, CENTRES)


def test_a_unit_that_the_header_lacks_can_be_given(tmp_path, maps, sky):
    path = write(tmp_path / "m.fits", maps, "", 1e-6)
    with pytest.raises(MapError, match=r"no unit in BUNIT; write the unit .*--unit"):
        read_maps(path, GEOMETRY)
    same(read_maps(path, GEOMETRY, unit="K"), maps)
    with pytest.raises(MapError, match="--unit Jy: give uK, mK or K"):
        read_maps(path, GEOMETRY, unit="Jy")
    path = write(tmp_path / "m.fits", maps)
    same(read_maps(path, GEOMETRY, unit="uk"), maps)
    with pytest.raises(MapError, match="BUNIT say a unit of 1 uK, --unit K"):
        read_maps(path, GEOMETRY, unit="K")
    healpix = write_healpix(tmp_path / "sky.fits", *sky[1], units=None)
    for key in ("TUNIT1", "TUNIT2", "TUNIT3"):
        fits.setval(healpix, key, value="", ext=1)
    in_uk = read_maps(healpix, GEOMETRY, CENTRES, unit="uK")
    in_mk = read_maps(healpix, GEOMETRY, CENTRES, unit="mK")
    # The planes are in single precision.
    np.testing.assert_allclose(in_mk.q, 1e3 * in_uk.q, atol=1e-3 * in_uk.q.std())
    np.savez(tmp_path / "m.npz", q=1e-3 * maps.q, u=1e-3 * maps.u)
    np.testing.assert_allclose(read_maps(tmp_path / "m.npz", GEOMETRY, unit="mK").u, maps.u)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BUNIT", "Jy", "BUNIT is 'Jy'; write the unit"),
        ("CDELT1", -0.05, "CDELT1 is 3', the network's pixels are 4.6"),
        ("CDELT2", "wide", "CDELT2 is 'wide'; it must be a number"),
        ("CTYPE2", "DEC--TAN", "CTYPE2 is 'DEC--TAN'; the image must be in the projection ZEA"),
        ("CTYPE1", "GLON-ZEA", "CTYPE2 is 'DEC--ZEA'"),
        ("CTYPE1", "DEC--ZEA", "CTYPE1 is 'DEC--ZEA'.* longitude along x"),
        ("CRPIX1", 1.0, "NAXIS1 is 64 with CRPIX1 1; a patch has 64 pixels about CRPIX 32.5"),
        ("POLCCONV", "HEALPIX", "POLCCONV is 'HEALPIX'; it must be IAU or COSMO"),
        ("PC1_2", 0.1, r"the header turns the image \(PC1_2\)"),
        ("CROTA2", 30.0, r"the header turns the image \(CROTA2\)"),
        ("LONPOLE", 90.0, r"the header puts a pixel .* \(LONPOLE\)"),
        ("LONPOLE", 0.0, r"the header puts a pixel .* \(LONPOLE\)"),
        ("CUNIT1", "arcmin", "CUNIT1 is 'arcmin'; write the header in deg"),
        ("CRVAL2", 95.0, "CRVAL2 is 95; a latitude lies between"),
        ("CRVAL1", "here", "CRVAL1 is 'here'; it must be a number"),
        ("PV2_1", 1.0, None),
    ],
)
def test_a_wrong_header_is_one_clear_error(tmp_path, maps, key, value, message):
    path = write(tmp_path / "m.fits", maps)
    fits.setval(path, key, value=value)
    if message is None:  # a parameter that the projection does not have
        same(read_maps(path, GEOMETRY), maps)
        return
    with pytest.raises(MapError, match=message):
        read_maps(path, GEOMETRY)


def test_an_option_for_another_kind_of_map_is_refused(tmp_path, maps):
    path = write(tmp_path / "m.fits", maps)
    np.savez(tmp_path / "m.npz", q=maps.q, u=maps.u)
    with pytest.raises(MapError, match="leave --centre out"):
        read_maps(path, GEOMETRY, CENTRE[None])
    for name in ("m.fits", "m.npz"):
        with pytest.raises(MapError, match="leave --pixel-window out"):
            read_maps(tmp_path / name, GEOMETRY, pixel_window=True)


def test_holes_filled_with_zeros_are_refused(tmp_path, maps):
    """One pixel is enough, in any format; so are marks of what was not seen, in any unit."""
    for value in (0.0, healpy.UNSEEN, 1e6 * healpy.UNSEEN, np.inf):
        q, u = maps.q.copy(), maps.u.copy()
        q[0, 3, 7] = u[0, 3, 7] = value
        np.savez(tmp_path / "m.npz", q=q, u=u)
        image = write(tmp_path / "m.fits", maps)
        with fits.open(image, mode="update") as file:
            file[0].data[:, 3, 63 - 7] = value
        for path in (tmp_path / "m.npz", image):
            with pytest.raises(
                MapError,
                match=r"1 pixels .* not seen, .* 0 at \(y, x\) = \(3, 7\): .* zero in both",
            ):
                read_maps(path, GEOMETRY)


@pytest.mark.parametrize("keep", [0, 30, 0.5, 0.99])
def test_arrays_cut_off(tmp_path, maps, keep):
    path = tmp_path / "m.npz"
    np.savez(path, q=maps.q, u=maps.u)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(MapError, match=r"m\.npz: cannot be read.*restore it"):
        read_maps(path, GEOMETRY)


def test_files_that_are_no_maps(tmp_path, maps):
    with pytest.raises(MapError, match="no such file"):
        read_maps(tmp_path / "none.fits", GEOMETRY)
    with pytest.raises(MapError, match="is a folder; name a file in it"):
        read_maps(tmp_path, GEOMETRY)
    np.savez(tmp_path / "one.npz", q=maps.q)
    with pytest.raises(MapError, match="no array 'u'"):
        read_maps(tmp_path / "one.npz", GEOMETRY)
    np.savez(tmp_path / "flat.npz", q=maps.q[0], u=maps.u[0])
    with pytest.raises(MapError, match=r"must be \(n_patches, 64, 64\)"):
        read_maps(tmp_path / "flat.npz", GEOMETRY)
    np.savez(tmp_path / "none.npz", q=maps.q[:0], u=maps.u[:0])
    with pytest.raises(MapError, match="0 patches"):
        read_maps(tmp_path / "none.npz", GEOMETRY)
    for bad in (maps.q.astype(complex), maps.q > 0):
        np.savez(tmp_path / "complex.npz", q=bad, u=maps.u)
        with pytest.raises(MapError, match=r"'q' is of type .* real numbers"):
            read_maps(tmp_path / "complex.npz", GEOMETRY)
    holed = maps.q.copy()
    holed[0, 3, 4] = np.nan
    np.savez(tmp_path / "nan.npz", q=holed, u=maps.u)
    with pytest.raises(MapError, match=r"1 pixels .* not seen.* patch 0 at \(y, x\) = \(3, 4\)"):
        read_maps(tmp_path / "nan.npz", GEOMETRY)
    with pytest.raises(MapError, match="write LON,LAT"):
        parse_centres(["12"])
    with pytest.raises(MapError, match="latitude"):
        parse_centres(["0,95"])


@pytest.mark.parametrize("name", ["m.npz", "m.fits", "sky.fits"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.9])
def test_a_damaged_file_is_one_clear_error(tmp_path, maps, name, keep):
    """Cut off anywhere, or empty."""
    path = tmp_path / name
    if name == "m.npz":
        np.savez(path, q=maps.q, u=maps.u)
    elif name == "m.fits":
        write(path, maps)
    else:
        write_healpix(path, *np.random.default_rng(1).standard_normal((2, 12 * 32**2)))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(MapError, match=rf"{name}: cannot be read, .*; restore it"):
        read_maps(path, GEOMETRY, CENTRES[:1] if name == "sky.fits" else None)


@contextlib.contextmanager
def limited(what, soft):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_arrays_that_unpack_to_more_than_the_sky_are_not_unpacked(tmp_path, monkeypatch):
    """A zip bomb: 1,700 patches of zeros in .1 MB. Only headers are read before it is refused."""
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("q", "u"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f8", "fortran_order": False, "shape": (1700, 64, 64)}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(170):
                    member.write(bytes(10 * 8 * 64 * 64))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(MapError, match="1700 patches; the sky holds 1 to 1650"):
        read_maps(tmp_path / "b.npz", GEOMETRY)


def test_centres_of_arrays(tmp_path, maps):
    """Degrees of longitude and latitude, in the file or as --centre; unknown without."""
    two = {"q": np.repeat(maps.q, 2, 0), "u": np.repeat(maps.u, 2, 0)}
    path = tmp_path / "m.npz"
    np.savez(path, **two)
    assert np.isnan(read_maps(path, GEOMETRY).centres).all()
    np.testing.assert_array_equal(read_maps(path, GEOMETRY, CENTRES).centres, CENTRES)
    with pytest.raises(MapError, match="1 --centre for 2 patches; give one for each"):
        read_maps(path, GEOMETRY, CENTRES[:1])
    np.savez(path, **two, centres=[[120.0, 40.0], [-75.5, -20.0]])
    np.testing.assert_allclose(read_maps(path, GEOMETRY).centres, CENTRES)
    with pytest.raises(MapError, match="whose centres the file has"):
        read_maps(path, GEOMETRY, CENTRES)
    for centres, message in (
        ([[120.0, 40.0]], r"'centres' has shape \(1, 2\); it must be \(2, 2\)"),
        ([[0.0, 0.0], [0.0, 91.0]], "latitude beyond 90"),
        ([[120.0, 40.0], [122.0, 41.0]], "patches 0 .* and 1 .* overlap, .* 1.82 degrees apart"),
    ):
        np.savez(path, **two, centres=centres)
        with pytest.raises(MapError, match=message):
            read_maps(path, GEOMETRY)


def test_separation_of_patches():
    """Patches side by side pass, whose middles are a side apart, and so do the simulations' own;
    what reaches into another, anywhere on the sphere, across the meridian or near a pole, does not.
    Unknown ones are passed over."""
    check_separate(patch_centres(4, 16), 5.0, "x")
    check_separate(ring_centres(5.0), 5.0, "x")
    unknown = np.full(2, np.nan)
    for pair in (
        ["0,0", "5,0"],
        ["0,0", "5.02,0"],
        ["359,-6", "4.1,-6"],
        ["0,80", "45,80"],
        ["0,0", "5.1,5.1"],
    ):
        a, b = parse_centres(pair)
        check_separate(np.array([unknown, a, unknown, b]), 5.0, "x")
        with pytest.raises(MapError, match=r"x: tiles 0 .* and 2 .* overlap, 6 degrees wide"):
            check_separate(np.array([a, unknown, b]), 6.0, "x", "tiles")
    with pytest.raises(MapError, match="overlap, 5 degrees wide and 0 degrees apart"):
        check_separate(np.array([CENTRE, CENTRE]), 5.0, "x")


def test_maps_of_several_files_are_one_survey(maps):
    other = replace(maps, centres=CENTRES[1:], lmax=4000)
    third = replace(maps, centres=parse_centres(["0,0"]), lmax=3000)
    joined = PatchMaps.join([maps, other, third], 5.0)
    assert joined.q.shape == (3, 64, 64)
    assert joined.lmax == 3000  # the shortest: what is warned of
    with pytest.raises(MapError, match=r"x, y: patches 0 .* and 1 .* overlap, .* 0 degrees apart"):
        PatchMaps.join([replace(maps, source=name) for name in "xy"], 5.0)
    with pytest.raises(MapError, match="different frames"):
        PatchMaps.join([maps, replace(other, frame="G")], 5.0)


@pytest.fixture(scope="module")
def theory():
    """At the fiducial of the shipped releases."""
    return MapSetup.of_release(read_release("refined_fiducial")).theory


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    config = config.model_copy(update={"products": tmp_path_factory.mktemp("observed")})
    return MapSetup.of_run(Run(config, HASH))


@pytest.fixture(scope="module")
def observed(setup):
    """Unmasked, beamed and noisy patches of a simulated sky, of the configuration's instrument."""
    config = setup.fiducial.config
    Skies(Run(config)).measure("test", [0])
    fields = Skies(Run(config)).read("test", 0, ("lensed_q", "lensed_u"))
    noise = sky_noise(Run(config), "test", 0, len(fields[0]))
    q, u = (
        convolve_beam(field, config.instrument, config.patch) + n
        for field, n in zip(fields, noise, strict=True)
    )
    return PatchMaps(q, u, patch_centres(config.centres.nside, config.centres.poles))


def turned(maps, angle):
    q, u = Systematics(angle=angle).distort(maps.q, maps.u)
    return replace(maps, q=q, u=u)


def first(maps, n=1):
    return PatchMaps(maps.q[:n], maps.u[:n], maps.centres[:n])


@pytest.mark.parametrize(("gain", "told"), [(1.0, False), (1.12, True)])
def test_a_wrong_gain_is_told(setup, observed, gain, told):
    """By the power of E, far below where an rms would tell."""
    louder = replace(observed, q=gain * observed.q, u=gain * observed.u)
    warned = [w for w in check_maps(louder, setup) if "the power of E is" in w]
    assert bool(warned) is told


def test_maps_as_simulated_raise_no_warning(setup, observed):
    assert check_maps(observed, setup) == []
    for i in range(len(observed.q)):
        one = PatchMaps(*(getattr(observed, k)[i : i + 1] for k in ("q", "u", "centres")))
        assert check_maps(one, setup) == []


@pytest.mark.parametrize(
    "instrument",
    [
        Instrument(5.0, 1.0),
        Instrument(1.0, 8.0),
        Instrument(0.0, 1.0),
        Instrument(10.0, 1.0, taper_deg=1.2),
        Instrument(1.5, 1.0, taper_deg=0.0),
        Instrument(4.0, 1.0, depth_ratio=9.0),
    ],
    ids=str,
)
def test_what_is_expected_is_what_the_instrument_gives(theory, instrument):
    """Maps of noise, beam, mask and depth as stated raise no warning; those of
    3 µK-arcmin and 1′ do, or are refused."""
    patch, n = PatchGeometry(5.0, 64), 6

    def seen_by(instrument):
        clear = replace(instrument, noise_uk_arcmin=0.0, depth_ratio=None)
        skies = PeriodicSkies(PatchGeometry(10.0, 128), clear, theory)
        generator = np.random.default_rng(8)
        draws = [(skies.draw("e", generator), skies.draw("phi", generator)) for _ in range(n)]
        p = np.array([skies.lensed(*draw)[:64, :64] for draw in draws])
        noise = draw_noise((2, n, 64, 64), instrument, patch, generator)
        return PatchMaps(p.real + noise[0], p.imag + noise[1], patch_centres(4, 16)[:n])

    bins = Bins(36, 140, 4)
    release = read_release("refined_fiducial")
    known = MapSetup("x", patch, instrument, bins, HASH, {}, 1, release)
    vars(known)["theory"] = theory
    assert check_maps(seen_by(instrument), known) == []
    with contextlib.suppress(MapError):
        assert check_maps(seen_by(Instrument(3.0)), known)


def test_maps_of_another_instrument_are_told(setup, observed):
    def warned(q, u):
        return " ".join(check_maps(replace(observed, q=q, u=u), setup))

    assert "all patches the power of E is 1.4" in warned(1.17 * observed.q, 1.17 * observed.u)
    with pytest.raises(MapError, match=r"in all patches the .* more than any instrument is off"):
        warned(1.5 * observed.q, 1.5 * observed.u)
    rms = setup.instrument.noise_rms(setup.patch)
    white = np.random.default_rng(1).standard_normal((2, *observed.q.shape))

    def with_noise(factor):
        extra = np.sqrt(factor**2 - 1.0) * rms * white
        return warned(observed.q + extra[0], observed.u + extra[1])

    assert "the power of B is 1." in with_noise(2.0)
    with pytest.raises(MapError, match=r"all patches the power of B is .*more than any instrument"):
        with_noise(3.0)
    nyquist = round(setup.patch.nyquist)
    [coarse] = check_maps(replace(observed, lmax=nyquist - 1), setup)
    assert f"the maps end at l = {nyquist - 1} (2 nside" in coarse
    assert check_maps(replace(observed, lmax=nyquist), setup) == []
    with pytest.raises(MapError, match="more than any instrument is off; look at their unit"):
        warned(1e-6 * observed.q, 1e-6 * observed.u)
    [unknown] = check_maps(replace(observed, centres=np.full((40, 2), np.nan)), setup)
    assert "where its patches lie is not known" in unknown


@pytest.mark.parametrize("n", [1, 40])
def test_a_wrong_convention_is_refused(setup, observed, n):
    """One patch is enough to know: E power in B."""
    some = first(observed, n)
    with pytest.raises(MapError, match="is POLCCONV right"):
        check_maps(replace(some, u=-some.u), setup)
    with pytest.raises(MapError, match="Q and U are swapped"):
        check_maps(replace(some, q=some.u, u=some.q), setup)
    for angle in (45.0, -30.0):
        with pytest.raises(MapError, match="the polarisation is turned by"):
            check_maps(turned(some, angle), setup)
    # Half a turn of the instrument is none of the polarisation.
    assert check_maps(turned(some, 180.0), setup) == []


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("angle", [0.35, -0.4, 1.0, -2.0, 5.0])
def test_a_turned_polarisation_is_told_with_its_angle(setup, observed, n, angle):
    """Within what an instrument may be off it is a warning, beyond that it is refused."""
    maps = turned(first(observed, n), angle)
    if abs(angle) < 0.5:
        found = " ".join(check_maps(maps, setup))
    else:
        with pytest.raises(MapError) as refused:
            check_maps(maps, setup)
        found = str(refused.value)
    told = float(found.split("turned by ")[1].split(" ")[0])
    error = float(found.split("± ")[1].split(" ")[0])
    assert abs(told - angle) < 4 * error + 0.01
    assert error == pytest.approx(0.06 / np.sqrt(n), abs=0.006)
    assert "turned" not in " ".join(check_maps(turned(first(observed, n), 0.1), setup))


def test_one_patch_of_many_that_is_wrong_is_named(setup, observed):
    def with_patch(k, q, u):
        maps = replace(observed, q=observed.q.copy(), u=observed.u.copy())
        maps.q[k], maps.u[k] = q, u
        return check_maps(maps, setup)

    q, u = observed.q[7], observed.u[7]
    for factor in (3.0, 0.0):
        with pytest.raises(MapError, match="in patch 7 the rms of Q and U is"):
            with_patch(7, factor * q, factor * u)
    with pytest.raises(MapError, match=r"in patch 7 the sign of U .*POLCCONV"):
        with_patch(7, q, -u)
    with pytest.raises(MapError, match=r"in patch 7 the .* is off; .*leave the patch out"):
        with_patch(7, 1.5 * q, 1.5 * u)
    assert "in patch 7 the" in " ".join(with_patch(7, 1.28 * q, 1.28 * u))
    with pytest.raises(MapError, match="patches 7 and 9 hold the same sky"):
        with_patch(9, q, u)
    one = turned(observed, 6.0)
    with pytest.raises(MapError, match=r"in patch 7 the polarisation is turned by (5\.|6\.)"):
        with_patch(7, one.q[7], one.u[7])


def test_a_patch_given_many_times_is_refused(setup, observed):
    """Of arrays without centres too, and shifted: what overlaps is correlated."""
    q, u = (np.repeat(m[:1], 40, axis=0) for m in (observed.q, observed.u))
    with pytest.raises(MapError, match="patches 0 and 1 hold the same sky"):
        check_maps(PatchMaps(q, u, np.full((40, 2), np.nan)), setup)
    q, u = observed.q[:1], observed.u[:1]
    q, u = (np.concatenate([m, np.roll(m, (20, 5), axis=(1, 2))]) for m in (q, u))
    with pytest.raises(MapError, match="hold the same sky"):
        check_maps(PatchMaps(q, u, np.full((2, 2), np.nan)), setup)


class Sum:
    """κ̂ = Q̃ + Ũ: easily computed again."""

    def reconstruct(self, q, u):
        return q + u


def test_reconstruction_of_maps(setup, observed, tmp_path):
    """κ̂ is that of the masked patches, with its place on the sky; so are the bandpowers."""
    maps = replace(first(observed, 2), centres=CENTRES[::-1], frame="G")
    path = reconstruct_maps(setup, Sum(), replace(maps, source="mine.fits"), tmp_path / "out")
    config = setup.fiducial.config
    mask = Run(config).mask
    kappa = (maps.q + maps.u) * mask
    with products.open_product(
        path, bandpower_file.KIND, map_setup.recipe(Run(config, HASH))
    ) as product:
        np.testing.assert_allclose(product.array("auto"), Run(config).bandpowers.auto(kappa))
        own = power_of(Run(config))(maps.q * mask, maps.u * mask)
        np.testing.assert_allclose(product.array("power"), own)
        turned_by = power_of(Run(config)).rotation(maps.q * mask, maps.u * mask)
        np.testing.assert_allclose(product.array("rotation"), turned_by)
        np.testing.assert_array_equal(product.array("centres"), maps.centres)
        assert bytes(product.array("source")) == b"mine.fits"
        assert bytes(product.array("frame")) == b"G"
    with fits.open(tmp_path / "out" / "kappa_001.fits") as file:
        np.testing.assert_allclose(file[0].data[:, ::-1], kappa[1], rtol=1e-5, atol=1e-6)
        assert file[0].header["CTYPE1"] == "GLON-ZEA"
        assert file[0].header["BUNIT"] == ""
        told = " ".join(file[0].header["COMMENT"])
        assert "times the mask" in told
        assert "not divided by the response" in told
        assert "data[:, ::-1]" in told
        where = WCS(file[0].header).wcs_pix2world([[31.5, 31.5]], 0)[0]
    np.testing.assert_allclose(where, [120.0, 40.0], atol=1e-9)
    assert not (tmp_path / "out" / "kappa.npz").exists()
    # Where a patch of unknown place lies is not made up; of arrays κ̂ is an array, in their frame.
    np.savez(tmp_path / "mine.npz", q=maps.q, u=maps.u)
    maps = read_maps(tmp_path / "mine.npz", setup.patch)
    reconstruct_maps(setup, Sum(), maps, tmp_path / "nowhere")
    with np.load(tmp_path / "nowhere" / "kappa.npz") as file:
        np.testing.assert_allclose(file["kappa"], kappa, rtol=1e-5, atol=1e-6)
    header = fits.getheader(tmp_path / "nowhere" / "kappa_000.fits")
    assert "ZEA" not in header["CTYPE1"]
    assert header["CDELT2"] == pytest.approx(5.0 / 64)


def test_a_folder_that_cannot_be_written_is_one_line(setup, observed, tmp_path):
    """No folder: found out before anything slow. No room: nothing half-written stays."""
    (tmp_path / "file").write_text("")
    with pytest.raises(MapError, match=r"file.*: cannot be written"):
        check_folder(tmp_path / "file")
    with pytest.raises(MapError, match=r"file.*: cannot be written"):
        check_folder(tmp_path / "file" / "below")
    check_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with (
        limited(resource.RLIMIT_FSIZE, 8192),
        pytest.raises(MapError, match=r"cannot be written .* make room"),
    ):
        reconstruct_maps(
            setup, Sum(), replace(first(observed), source="mine.fits"), tmp_path / "full"
        )
    assert list((tmp_path / "full").iterdir()) == []


def test_kappa_that_is_not_finite_is_refused(setup, observed, tmp_path):
    class Broken:
        def reconstruct(self, q, u):
            return q * np.nan

    with pytest.raises(MapError, match="κ̂ is not finite"):
        reconstruct_maps(setup, Broken(), first(observed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


INSTRUMENT = {
    "noise": 1.5,
    "beam_fwhm": 1.2,
    "mask_taper_deg": 0.4,
    "patch_deg": 5.0,
    "patch_pixels": 64,
}


@pytest.fixture
def calibration():
    """A release that says which maps it calibrates, of a response and noise far from 1 and 0."""
    made = synthetic_release(
        instrument=INSTRUMENT, response=np.array([0.9, 0.7, 0.5, 0.4, 0.3]), truth={"omch2": 0.12}
    )
    skies = {"test": 3, "survey-fiducial": "sky 0"}
    return replace(made, provenance={"network_sha256": HASH, "seed": 5, "skies": skies})


def write_bandpowers(path, calibration, auto, centres, frame="C", warnings=(), **changed):
    recipe = MapSetup.of_release(calibration).recipe
    for key, value in changed.items():
        section, _, name = key.partition("__")
        recipe = recipe | {section: {**recipe[section], name: value} if name else value}
    arrays = {
        "auto": auto,
        "power": np.tile(calibration.fiducial_power, (len(auto), 1)),
        "rotation": np.array([[0.01 + 0.001 * i, 1.0] for i in range(len(auto))]),
        "centres": np.nan_to_num(centres),
        "known": np.isfinite(centres).all(1),
        "frame": np.bytes_(frame.encode()),
        "source": np.bytes_(path.stem.encode()),
        "warnings": products.texts(warnings),
    }
    products.write_product(path, bandpower_file.KIND, recipe, arrays)
    return path


def test_a_configuration_and_its_release_fit_the_same_maps(setup):
    """Bandpowers reconstructed by either belong to either."""
    config = setup.fiducial.config
    release = synthetic_release(
        edges=setup.bins.edges,
        n_bins=setup.bins.n_bins,
        instrument={
            "noise": config.instrument.noise_uk_arcmin,
            "beam_fwhm": config.instrument.beam_fwhm_arcmin,
            "mask_taper_deg": config.instrument.taper_deg,
            "patch_deg": config.patch.size_deg,
            "patch_pixels": config.patch.n_pixels,
            "noise_unit": "uK arcmin",
        },
        provenance={"network_sha256": HASH},
    )
    other = MapSetup.of_release(release)
    assert products.identity_of(other.recipe) == products.identity_of(setup.recipe)
    np.testing.assert_array_equal(other.mask, setup.mask)
    assert (other.bins, other.instrument) == (setup.bins, setup.instrument)
    deep = replace(release, instrument=release.instrument | {"depth_ratio": 4.0})
    assert MapSetup.of_release(deep).instrument == replace(setup.instrument, depth_ratio=4.0)
    drifting = replace(release, instrument=release.instrument | {"one_over_f": vars(EXCESS)})
    assert MapSetup.of_release(drifting).instrument == replace(setup.instrument, one_over_f=EXCESS)
    tabulated = replace(release, instrument=release.instrument | {"beam_file_sha256": HASH})
    with pytest.raises(ReleaseError, match=r"holds beam_file_sha256.* give the configuration"):
        MapSetup.of_release(tabulated)
    averaged = replace(release, provenance=release.provenance | {"symmetries": 8})
    assert MapSetup.of_release(averaged).symmetries == 8
    low = replace(release, provenance=release.provenance | {"lmin_b": 300})
    assert MapSetup.of_release(low).lmin_b == 300
    for known in (deep, averaged, low):
        recipe = MapSetup.of_release(known).recipe
        assert products.identity_of(recipe) != products.identity_of(setup.recipe)


def test_a_release_that_does_not_say_what_it_measures(calibration):
    for changed in (
        {"instrument": {k: v for k, v in INSTRUMENT.items() if k != "patch_deg"}},
        {"instrument": INSTRUMENT | {"mask_taper_deg": "wide"}},
        {"provenance": {}},
        {"provenance": {"network_sha256": HASH, "lmin_b": "low"}},
    ):
        with pytest.raises(ReleaseError, match="do not tell what its network measures"):
            MapSetup.of_release(replace(calibration, **changed))
    edges = np.array([36, 236, 436, 636, 836, 1000])
    with pytest.raises(ReleaseError, match="bins of different widths"):
        MapSetup.of_release(replace(calibration, edges=edges))


def test_a_release_calibrates_own_maps(calibration, tmp_path):
    """d_b = ⟨|κ̂|²⟩/R² − N with its R and N; one patch's covariance over the patches that there
    are, with the calibration's own errors as they were."""
    generator = np.random.default_rng(4)
    auto = 1e-7 * (1.0 + generator.random((3, 5)))
    one = write_bandpowers(tmp_path / "one.h5", calibration, auto[:1], CENTRES[:1])
    far = parse_centres(["0,0", "30,10"])
    two = write_bandpowers(tmp_path / "two.h5", calibration, auto[1:], far)
    made = make_patch_release(calibration, [one, two], "mine")
    expected = auto.mean(0) / calibration.response**2 - calibration.noise
    np.testing.assert_allclose(made.bandpowers, expected, rtol=1e-12)
    covariance = (
        calibration.patch_covariance / 3
        + calibration.noise_covariance
        + calibration.derivative_covariance
    )
    np.testing.assert_allclose(made.covariance, covariance, rtol=1e-12)
    assert (made.n_patches, made.n_sim) == (3, calibration.n_sim)
    assert made.truth is None
    assert (made.name, made.description[:9]) == ("mine", "3 patches")
    assert "1.5 uK arcmin" in made.description
    path = tmp_path / "calibration.json"
    write_release(calibration, path)
    digest = yaml.safe_load(path.read_text())["digest"]
    assert made.provenance["calibration"] == {"release": "synthetic", "digest": digest}
    assert made.provenance["skies"] == {"test": 3, "maps": "one, two"}
    assert made.provenance["network_sha256"] == HASH
    # What is written is read, the theory model is the calibration's, and it calibrates in turn.
    write_release(made, tmp_path / "mine.json")
    read = read_release(tmp_path / "mine.json")
    one_model, other_model = (
        BandpowerLikelihood(release, "fixed").model(1.1 * calibration.fiducial_kk, None)
        for release in (read, calibration)
    )
    np.testing.assert_allclose(one_model, other_model, rtol=1e-8)
    again = make_patch_release(read, one, "again")
    np.testing.assert_allclose(
        again.bandpowers, auto[0] / calibration.response**2 - calibration.noise, rtol=1e-8
    )
    assert again.n_patches == 1
    assert again.warnings[0].startswith("the rotation of the polarisation is not corrected")
    assert again.provenance["skies"]["maps"] == "one"
    assert again.provenance["calibration"]["release"] == "mine"


def test_warnings_of_maps_stay(setup, observed, tmp_path):
    """In their bandpowers, by the name of the file where there are several."""
    said = check_maps(turned(first(observed, 4), 0.4), setup)
    assert said
    path = reconstruct_maps(
        setup, Sum(), replace(first(observed, 4), source="x"), tmp_path / "x", said
    )
    assert bandpower_file.read_map_bandpowers(path, setup).warnings == tuple(said)
    others = PatchMaps(observed.q[4:6], observed.u[4:6], observed.centres[4:6])
    more = reconstruct_maps(setup, Sum(), replace(others, source="y"), tmp_path / "y", ["odd"])
    found = bandpower_file.read_map_bandpowers([path, more], setup).warnings
    assert found == (f"x: {said[0]}", "y: odd")


def test_a_release_repeats_its_warnings(calibration, tmp_path, caplog):
    """Those of its maps, and that nothing fits its bandpowers: when it is made, shown, combined and
    sampled. Those of the calibration's own maps are not its."""
    write_release(
        replace(calibration, provenance=calibration.provenance | {"warnings": ["of others"]}),
        tmp_path / "calibration.json",
    )
    like_the_model = (calibration.bandpowers + calibration.noise) * calibration.response**2
    uneven = np.array([1.0, 30.0, 1.0, 60.0, 1.0])
    made = {}
    for name, factor, said in (("good", 1.0, []), ("odd", 1.0, ["turned"]), ("bad", uneven, [])):
        auto = np.stack([0.9 * factor * like_the_model, 1.1 * factor * like_the_model])
        places = parse_centres(["0,0", "30,10"])
        data = write_bandpowers(tmp_path / f"{name}.h5", calibration, auto, places, warnings=said)
        out = tmp_path / f"{name}.json"
        given = ["--data", str(data), "--calibration", str(tmp_path / "calibration.json")]
        result = CliRunner().invoke(app, ["release", "make", *given, "--out", str(out)])
        assert result.exception is None, result.exception
        made[name] = read_release(out)
        for warning in made[name].warnings:
            assert f"warning: {out}: {warning}" in result.output
            assert (
                f"warning: {warning}"
                in CliRunner().invoke(app, ["release", "show", str(out)]).output
            )
    assert made["good"].warnings == ()
    assert made["odd"].warnings == ("turned",)
    [poor] = made["bad"].warnings
    assert "no cosmology near the fiducial fits the bandpowers: chi2 is" in poor
    both = combine([replace(made["odd"], bandpowers=1.01 * made["odd"].bandpowers), made["bad"]])
    assert both.warnings == ("odd: turned", f"bad: {poor}")
    with caplog.at_level("WARNING"):
        for name in ("good", "odd"):
            CNNLens({"release": str(tmp_path / f"{name}.json")})
    assert [record.message for record in caplog.records] == ["odd: turned"]


@pytest.mark.parametrize("wrong", ["turned", ["a", 3], {"a": "b"}])
def test_warnings_that_are_no_texts_are_refused(calibration, tmp_path, wrong):
    provenance = calibration.provenance | {"warnings": wrong}
    with pytest.raises(ReleaseError, match=r"'provenance\.warnings' must be a list of texts"):
        write_release(replace(calibration, provenance=provenance), tmp_path / "r.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "b" * 64}, r"network \(b+ ≠ a+\)"),
        ({"instrument__noise_uk_arcmin": 1.0}, r"instrument.noise_uk_arcmin \(1.0 ≠ 1.5\)"),
        ({"instrument__beam_fwhm_arcmin": 1.0}, r"instrument.beam_fwhm_arcmin \(1.0 ≠ 1.2\)"),
        ({"instrument__taper_deg": 0.5}, r"instrument.taper_deg \(0.5 ≠ 0.4\)"),
        ({"instrument__depth_ratio": 4.0}, r"instrument.depth_ratio \(4.0 ≠ None\)"),
        ({"patch__n_pixels": 128}, r"patch.n_pixels \(128 ≠ 64\)"),
        ({"patch__size_deg": 4.0}, r"patch.size_deg \(4.0 ≠ 5.0\)"),
        ({"bandpowers__width": 127}, r"bandpowers.width \(127 ≠ 200\)"),
        ({"bandpowers__lmin": 72}, r"bandpowers.lmin \(72 ≠ 36\)"),
        ({"symmetries": 8}, r"symmetries \(8 ≠ None\)"),
    ],
)
def test_a_calibration_of_other_maps_is_refused(calibration, tmp_path, changed, message):
    auto = np.ones((1, 5))
    path = write_bandpowers(tmp_path / "b.h5", calibration, auto, CENTRES[:1], **changed)
    with pytest.raises(ProductError, match=rf"b.h5: measured .* release 'synthetic' .*{message}"):
        make_patch_release(calibration, path, "mine")


def test_bandpowers_of_overlapping_patches_are_refused(calibration, tmp_path):
    """In one file and across files; where centres are unknown, the same map twice."""
    auto = 1.0 + np.random.default_rng(1).random((2, 5))
    near = parse_centres(["120,40", "121,40"])
    path = write_bandpowers(tmp_path / "b.h5", calibration, auto, near)
    with pytest.raises(MapError, match=r"patches 0 .* and 1 .* overlap, .* 0\.766 degrees apart"):
        make_patch_release(calibration, path, "mine")
    one = write_bandpowers(tmp_path / "one.h5", calibration, auto[:1], near[:1])
    two = write_bandpowers(tmp_path / "two.h5", calibration, auto[1:], near[1:])
    with pytest.raises(MapError, match=r"one.h5, .*two.h5: patches 0 .* and 1 "):
        make_patch_release(calibration, [one, two], "mine")
    unknown = np.full((2, 2), np.nan)
    apart = write_bandpowers(tmp_path / "u.h5", calibration, auto, unknown)
    assert make_patch_release(calibration, apart, "mine")
    twice = write_bandpowers(tmp_path / "t.h5", calibration, auto[[0, 0]], unknown)
    with pytest.raises(MapError, match="patches 0 and 1 have the same bandpowers"):
        make_patch_release(calibration, twice, "mine")
    galactic = write_bandpowers(tmp_path / "g.h5", calibration, auto[1:], CENTRES[1:], "G")
    with pytest.raises(MapError, match="equatorial, galactic, so it cannot be seen"):
        make_patch_release(calibration, [one, galactic], "mine")


def test_the_network_of_a_release_is_found(calibration, tmp_path):
    release = read_release("refined_fiducial")
    [shipped] = find_networks(release)
    assert shipped.name == "refined.keras"
    assert find_networks(release, [shipped]) == [shipped]
    other = NETWORKS / "resunet_0uk.keras"
    with pytest.raises(NetworkError, match=r"resunet_0uk\.keras: the hash of its weights is"):
        find_networks(release, [other])
    with pytest.raises(NetworkError, match="does not come with the package; name its file with"):
        find_networks(calibration)
    assert is_release("refined_fiducial")
    assert is_release(tmp_path / "my.json")
    assert not is_release("training/config/resunet_1uk.yaml")
    assert not is_release("training/config/study.yaml#member")


def own_patches(theory, n, seed=11):
    """Unmasked, beamed, noisy Q, U of 5° patches of 128² pixels at 1 µK-arcmin, cut from boxes four
    times as large, at the fiducial of the shipped releases."""
    skies = PeriodicSkies(PatchGeometry(10.0, 256), Instrument(), theory)
    generator = np.random.default_rng(seed)
    p = []
    for _ in range(n):
        seen = skies.lensed(skies.draw("e", generator), skies.draw("phi", generator))
        p.append((seen + skies.noise(generator))[:128, :128])
    centres = patch_centres(4, 16)[:n]
    return PatchMaps(np.real(p), np.imag(p), centres)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def told(*arguments):
    """The error of a command, which is no traceback."""
    result = invoke(*arguments)
    assert isinstance(result.exception, CNNLensError), result.exception
    return str(result.exception)


def write_patch(path, maps, k=0):
    """A patch as a FITS image."""
    geometry = PatchGeometry()
    planes = np.array(to_meridian(maps.q[k], maps.u[k], maps.centres[k], geometry))
    write_images(path, planes, maps.centres[k], geometry, "uK", POLCCONV="COSMO")
    return path


def fast_run(release, output):
    """The input of yaml/omegac_fast.yaml for a release of data."""
    run = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
    run["likelihood"]["cobaya_cnnlens.CNNLens"]["release"] = str(release)
    run["output"] = str(output)
    return run


def test_own_maps_to_a_posterior(theory, tmp_path):
    """FITS images and arrays of the same patches → κ̂ → release → posterior of omch2, by the
    shipped release's network and calibration, without any product of the pipeline."""
    from cobaya.run import run as cobaya_run

    maps = own_patches(theory, 2)
    images = [write_patch(tmp_path / f"p{k}.fits", maps, k) for k in range(2)]
    longitude, latitude = np.degrees(maps.centres[:, 1]), 90.0 - np.degrees(maps.centres[:, 0])
    np.savez(
        tmp_path / "p.npz", q=maps.q, u=maps.u, centres=np.stack([longitude, latitude], axis=1)
    )
    for name, files in (("fits", images), ("npz", [tmp_path / "p.npz"])):
        options = [part for file in files for part in ("--maps", file)]
        result = invoke("reconstruct", "refined_fiducial", *options, "--out", tmp_path / name)
        assert result.exception is None, result.exception
        assert "warning" not in result.output
        data = tmp_path / name / "bandpowers.h5"
        result = invoke("release", "make", "--data", data, "--calibration", "refined_fiducial")
        assert result.exception is None, result.exception
    release = read_release(tmp_path / "fits" / "release.json")
    other = read_release(tmp_path / "npz" / "release.json")
    error = np.sqrt(np.diag(release.covariance))
    # As near as the iterations of κ̂ converge.
    assert (np.abs(release.bandpowers - other.bandpowers) < 0.05 * error).all()
    assert release.n_patches == 2
    # κ̂ knows the sky it was made of: data within their errors of the fiducial theory.
    likelihood = BandpowerLikelihood(release)
    assert likelihood.pte(likelihood.chi2(release.fiducial_kk, None)) > 1e-4
    shipped = read_release("refined_fiducial")
    np.testing.assert_allclose(release.patch_covariance, shipped.patch_covariance)
    run = fast_run(tmp_path / "fits" / "release.json", tmp_path / "chain")
    run["sampler"]["mcmc"] |= {"max_samples": 50, "seed": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, sampler = cobaya_run(run, force=True)
    assert 0.09 < sampler.products()["sample"]["omch2"].mean() < 0.15


def healpix_patch(theory, path, seed=12):
    """A lensed sky of nside 2048 with 1 µK-arcmin of noise, seen within 9° of (30, 25); (lon, lat).

    E and φ are evaluated at the pixels as in the simulations' patches, but for the beam.
    """
    nside, lmax, centre = 2048, 4400, np.radians([65.0, 30.0])
    elm, philm = (
        scale_alm(unit_alm(lmax, np.random.default_rng([seed, i])), np.sqrt(cl[: lmax + 1]))
        for i, cl in enumerate((theory.ee, theory.pp))
    )
    pixels = healpy.query_disc(nside, healpy.ang2vec(*centre), np.radians(9.0))
    theta, phi = healpy.pix2ang(nside, pixels)
    pointing = Pointing(theta, phi, np.zeros_like(theta))
    deflection = deflect_by(gradient_at(philm, lmax, pointing), pointing)
    p = lensed_polarisation_at(elm, lmax, pointing, deflection)
    rms = ARCMIN / healpy.nside2resol(nside)
    noise = rms * np.random.default_rng([seed, 2]).standard_normal((2, len(pixels)))
    q, u = np.full((2, healpy.nside2npix(nside)), healpy.UNSEEN)
    q[pixels], u[pixels] = p.real + noise[0], p.imag + noise[1]
    names = ["Q_POLARISATION", "U_POLARISATION"]
    healpy.write_map(path, [q, u], column_names=names, column_units="uK_CMB", coord="G")
    return "30,25"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as a wheel installs it, in a folder of its own beside the running environment's
    libraries, and an environment that finds it from anywhere."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(
        REPOSITORY / "cobaya_cnnlens",
        source / "cobaya_cnnlens",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fits", "healpix", "npz"])
def test_own_maps_to_a_posterior_from_a_wheel(installed, theory, tmp_path, kind):
    """In an empty folder: one patch → κ̂ → release → chain of omch2, commands as a user gives."""

    def run(*arguments):
        result = subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=tmp_path,
            env=installed,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result

    where = "import cobaya_cnnlens; print(cobaya_cnnlens.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=installed, capture_output=True, text=True
    )
    assert found.stdout.startswith(installed["PYTHONPATH"])
    options = ["--maps", "sky.fits"]
    if kind == "healpix":
        options += ["--centre", healpix_patch(theory, tmp_path / "sky.fits")]
    elif kind == "fits":
        write_patch(tmp_path / "sky.fits", own_patches(theory, 1))
    else:
        maps = own_patches(theory, 1)
        np.savez(tmp_path / "sky.npz", q=maps.q, u=maps.u)
        options[1] = "sky.npz"
    start = time.perf_counter()
    result = run("cobaya_cnnlens", "reconstruct", "refined_fiducial", *options, "--out", "mine")
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert len(warned) == (kind == "healpix"), warned
    assert all("ends at l = 4096" in line for line in warned)
    if kind == "healpix":
        assert fits.getheader(tmp_path / "mine" / "kappa_000.fits")["CTYPE1"] == "GLON-ZEA"
    calibrated = ("--calibration", "refined_fiducial")
    run("cobaya_cnnlens", "release", "make", "--data", "mine/bandpowers.h5", *calibrated)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fast_run("mine/release.json", "chain")))
    run("cobaya", "run", "run.yaml")
    print(f"{kind}: {time.perf_counter() - start:.0f} s from map to posterior")
    columns = (tmp_path / "chain.1.txt").read_text().splitlines()[0].split()[1:]
    chain = np.loadtxt(tmp_path / "chain.1.txt")
    omch2 = chain[:, columns.index("omch2")]
    mean = np.average(omch2, weights=chain[:, 0])
    sigma = np.sqrt(np.average((omch2 - mean) ** 2, weights=chain[:, 0]))
    # σ of one patch is .0034.
    assert 0.002 < sigma < 0.006
    assert abs(mean - 0.1185) < 4 * sigma


def test_what_is_wrong_is_told_before_anything_slow(tmp_path, monkeypatch):
    """The network, the folder and the options, each before a map is read."""
    monkeypatch.setattr(
        "cobaya_cnnlens.maps.patch_files.read_maps", lambda *_, **__: pytest.fail("read")
    )
    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content["products"] = str(tmp_path / "products")
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(content))
    write_release(synthetic_release(instrument=INSTRUMENT), tmp_path / "r.json")
    (tmp_path / "file").write_text("")
    maps = ("--maps", tmp_path / "m.fits")
    assert "network.keras: the network cannot be read" in told("reconstruct", config, *maps)
    assert "with --network" in told("reconstruct", tmp_path / "r.json", *maps)
    assert "leave --network out" in told("reconstruct", config, *maps, "--network", config)
    blocked = told("reconstruct", "refined_fiducial", *maps, "--out", tmp_path / "file")
    assert "file: cannot be written" in blocked
    for arguments in (
        ("reconstruct", "refined_fiducial"),
        ("reconstruct", config, "--set", "test", *maps),
    ):
        assert "give either --set NAME or --maps FILE" in told(*arguments)
    assert "is a release" in told("reconstruct", "refined_fiducial", "--set", "test")
    make = ("release", "make")
    for arguments in (
        (*make, "--data", "b.h5"),
        (*make, config, "--data", "b.h5", "--calibration", "refined_fiducial"),
        (*make, "--survey", "fiducial", "--calibration", "refined_fiducial"),
    ):
        assert "give either CONFIG, or --data FILE with --calibration" in told(*arguments)
    assert "give either --survey NAME or --data FILE" in told(*make, config)
    missing = told(*make, "--data", tmp_path / "b.h5", "--calibration", "refined_fiducial")
    assert "b.h5: no such file" in missing
    assert "none: no such release" in told(*make, "--data", "b.h5", "--calibration", "none")


def test_a_release_that_cannot_be_written_is_one_line(tmp_path):
    calibration = synthetic_release(instrument=INSTRUMENT)
    write_release(calibration, tmp_path / "r.json")
    data = write_bandpowers(tmp_path / "b.h5", calibration, np.ones((1, 5)), CENTRES[:1])
    (tmp_path / "file").write_text("")
    make = ("release", "make", "--data", data, "--calibration", tmp_path / "r.json")
    assert "cannot be written" in told(*make, "--out", tmp_path / "file" / "r.json")
    with limited(resource.RLIMIT_FSIZE, 1024):
        assert "cannot be written" in told(*make, "--out", tmp_path / "new" / "r.json")
    assert list((tmp_path / "new").iterdir()) == []
    assert invoke(*make).exception is None
