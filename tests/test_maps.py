"""A user's own maps: written in each format, read back, and checked."""

from dataclasses import replace

import healpy
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.measure import MAP_BANDPOWERS, spectra_of
from cobaya_cnnlens.config import load_config
from cobaya_cnnlens.errors import MapError
from cobaya_cnnlens.maps import (
    PatchMaps,
    check_maps,
    parse_centres,
    read_maps,
    reconstruct_maps,
    to_meridian,
    write_images,
)
from cobaya_cnnlens.simulate import shards
from cobaya_cnnlens.simulate.instrument import convolve_beam, cosine_mask
from cobaya_cnnlens.simulate.observation import sky_noise
from cobaya_cnnlens.simulate.patches import (
    PatchGeometry,
    point_patches,
    polarisation_at,
)
from cobaya_cnnlens.simulate.skies import unit_alm
from cobaya_cnnlens.simulate.stage import make_skies

from .conftest import REPOSITORY

GEOMETRY = PatchGeometry(n_pixels=64)
CENTRE = np.radians([50.0, 120.0])


@pytest.fixture
def maps():
    q, u = np.random.default_rng(2).standard_normal((2, 1, 64, 64))
    return PatchMaps(q, u, CENTRE[None])


def write(path, maps, unit="uK", scale=1.0, convention="COSMO", **cards):
    q, u = to_meridian(maps.q[0], maps.u[0], maps.centres[0], GEOMETRY)
    sign = 1.0 if convention == "COSMO" else -1.0
    planes = scale * np.array([q, sign * u])
    write_images(path, planes, maps.centres[0], GEOMETRY, unit, POLCCONV=convention, **cards)
    return path


@pytest.mark.parametrize(
    ("unit", "scale", "convention"),
    [("uK", 1.0, "COSMO"), ("uK", 1.0, "IAU"), ("K", 1e-6, "COSMO"), ("mK", 1e-3, "IAU")],
)
def test_fits_image_round_trip(tmp_path, maps, unit, scale, convention):
    path = write(tmp_path / "m.fits", maps, unit, scale, convention)
    found = read_maps(path, GEOMETRY)
    np.testing.assert_allclose(found.q, maps.q, atol=1e-6)
    np.testing.assert_allclose(found.u, maps.u, atol=1e-6)
    np.testing.assert_allclose(found.centres, maps.centres)


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


def test_an_image_that_grows_eastward_is_the_same(tmp_path, maps):
    path = write(tmp_path / "m.fits", maps)
    with fits.open(path, mode="update") as file:
        file[0].data = np.ascontiguousarray(file[0].data[:, :, ::-1])
        file[0].header["CDELT1"] *= -1
    np.testing.assert_allclose(read_maps(path, GEOMETRY).q, maps.q, atol=1e-6)


def test_patches_of_a_healpix_map_are_synthesis_at_their_pixels(tmp_path):
    """From a map of E alone, cut patches equal the simulations' own synthesis of the same a_lm."""
    nside, lmax = 256, 400
    elm = unit_alm(lmax, np.random.default_rng(3))
    elm[[0, 1, lmax + 1]] = 0  # l < 2
    q, u = healpy.alm2map_spin([elm, np.zeros_like(elm)], nside, 2, lmax)
    names = ["I_STOKES", "Q_POLARISATION", "U_POLARISATION"]
    path = tmp_path / "sky.fits"
    healpy.write_map(path, [0 * q, q, u], column_names=names, column_units="uK", dtype=np.float64)
    centres = parse_centres(["120,40", "-75.5,-20"])
    found = read_maps(path, GEOMETRY, centres)
    assert found.lmax == 2 * nside
    pointing = point_patches(centres, replace(GEOMETRY, pad=0))
    p = polarisation_at(elm, lmax, pointing).reshape(2, 64, 64)
    np.testing.assert_allclose(found.q, p.real, atol=2e-3 * p.real.std())
    np.testing.assert_allclose(found.u, p.imag, atol=2e-3 * p.imag.std())
    q[healpy.ang2pix(nside, *centres[1])] = healpy.UNSEEN
    healpy.write_map(
        path, [0 * q, q, u], column_names=names, column_units="uK", overwrite=True, dtype=float
    )
    with pytest.raises(MapError, match=r"1 unseen .* \(lon, lat\) = \(-75\.5, -20\)"):
        read_maps(path, GEOMETRY, centres)
    with pytest.raises(MapError, match="say where to cut"):
        read_maps(path, GEOMETRY)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BUNIT", "Jy", "BUNIT is 'Jy'; write the unit"),
        ("BUNIT", "", "BUNIT is ''; write the unit"),
        ("CDELT1", -0.05, "CDELT1 is 3', the network's pixels are 4.6"),
        ("CTYPE2", "DEC--TAN", "CTYPE2 is 'DEC--TAN'; patches are in the equal-area"),
        ("CRPIX1", 1.0, "NAXIS1 is 64 with CRPIX1 1; a patch has 64 pixels about CRPIX 32.5"),
        ("POLCCONV", "HEALPIX", "POLCCONV is 'HEALPIX'; it must be IAU or COSMO"),
        ("PC1_2", 0.1, "PC1_2 turns the image"),
    ],
)
def test_a_wrong_header_is_one_clear_error(tmp_path, maps, key, value, message):
    path = write(tmp_path / "m.fits", maps)
    fits.setval(path, key, value=value)
    with pytest.raises(MapError, match=message):
        read_maps(path, GEOMETRY)


@pytest.mark.parametrize("keep", [0, 30, 0.5, 0.99])
def test_arrays_cut_off(tmp_path, maps, keep):
    path = tmp_path / "m.npz"
    np.savez(path, q=maps.q, u=maps.u)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(MapError, match=r"m\.npz: cannot be read as arrays .*; restore it"):
        read_maps(path, GEOMETRY)


def test_files_that_are_no_maps(tmp_path, maps):
    with pytest.raises(MapError, match="no such file"):
        read_maps(tmp_path / "none.fits", GEOMETRY)
    (tmp_path / "text.fits").write_text("text")
    with pytest.raises(MapError, match=r"text\.fits: not a FITS file"):
        read_maps(tmp_path / "text.fits", GEOMETRY)
    np.savez(tmp_path / "one.npz", q=maps.q)
    with pytest.raises(MapError, match="no array 'u'"):
        read_maps(tmp_path / "one.npz", GEOMETRY)
    np.savez(tmp_path / "flat.npz", q=maps.q[0], u=maps.u[0])
    with pytest.raises(MapError, match=r"must be \(n_patches, 64, 64\)"):
        read_maps(tmp_path / "flat.npz", GEOMETRY)
    holed = maps.q.copy()
    holed[0, 3, 4] = np.nan
    np.savez(tmp_path / "nan.npz", q=holed, u=maps.u)
    with pytest.raises(MapError, match=r"1 pixels .* patch 0 at \(y, x\) = \(3, 4\)"):
        read_maps(tmp_path / "nan.npz", GEOMETRY)
    with pytest.raises(MapError, match="write LON,LAT"):
        parse_centres(["12"])


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Unmasked, beamed and noisy patches of a simulated sky, of the configuration's instrument."""
    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    config = config.model_copy(update={"products": tmp_path_factory.mktemp("observed")})
    make_skies(config, "test", [0])
    fields = shards.read_fields(
        config.sky_path("test", 0), ("lensed_q", "lensed_u"), config.sky_recipe("test", 0)
    )
    noise = sky_noise(config, "test", 0, len(fields[0]))
    q, u = (
        convolve_beam(field, config.instrument, config.patch) + n
        for field, n in zip(fields, noise, strict=True)
    )
    return PatchMaps(q, u, np.tile(CENTRE, (len(q), 1)))


def test_maps_are_checked_against_the_training(small_config, observed):
    assert check_maps(observed, small_config, "x") == []
    one = PatchMaps(observed.q[:1], observed.u[:1], observed.centres[:1])
    assert check_maps(one, small_config, "x") == []

    def warned(q, u):
        return " ".join(check_maps(PatchMaps(q, u, observed.centres), small_config, "x"))

    assert "is POLCCONV right" in warned(observed.q, -observed.u)
    assert "where" in warned(1.5 * observed.q, 1.5 * observed.u)
    generator = np.random.default_rng(1)
    rms = 4.0 * small_config.instrument.noise_rms(small_config.patch)
    noisy = (m + rms * generator.standard_normal(m.shape) for m in (observed.q, observed.u))
    assert "at the highest multipoles" in warned(*noisy)
    nyquist = round(small_config.patch.nyquist)
    [coarse] = check_maps(replace(observed, lmax=nyquist - 1), small_config, "x")
    assert f"ends at l = {nyquist - 1} (2 nside)" in coarse
    assert check_maps(replace(observed, lmax=nyquist), small_config, "x") == []
    with pytest.raises(MapError, match="look at their unit"):
        warned(1e-6 * observed.q, 1e-6 * observed.u)


def test_reconstruction_of_maps(small_config, observed, tmp_path):
    """κ̂ is that of the masked patches, with its place on the sky; so are the bandpowers."""

    class Sum:
        def reconstruct(self, q, u):
            return q + u

    maps = PatchMaps(observed.q[:2], observed.u[:2], observed.centres[:2])
    path = reconstruct_maps(small_config, Sum(), "a" * 64, maps, "mine.fits", tmp_path / "out")
    mask = cosine_mask(small_config.patch, small_config.instrument.taper_deg)
    kappa = (maps.q + maps.u) * mask
    with products.open_product(path, MAP_BANDPOWERS, small_config.map_recipe("a" * 64)) as product:
        np.testing.assert_allclose(product.array("auto"), spectra_of(small_config).auto(kappa))
        assert bytes(product.array("source")) == b"mine.fits"
    with fits.open(tmp_path / "out" / "kappa_001.fits") as file:
        np.testing.assert_allclose(file[0].data[:, ::-1], kappa[1], rtol=1e-5, atol=1e-6)
        where = WCS(file[0].header).wcs_pix2world([[31.5, 31.5]], 0)[0]
    np.testing.assert_allclose(where, [120.0, 40.0], atol=1e-9)
