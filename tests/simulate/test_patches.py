import healpy
import numpy as np
import pytest
from astropy.wcs import WCS

from cobaya_cnnlens.calibrate.windows import expected_e_and_b, expected_pure_b
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra, e_and_b, pure_b
from cobaya_cnnlens.simulate.instrument import cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.theory.camb import Spectra, lensed_polarisation

LMAX = 2500


@pytest.fixture(scope="module")
def sky(fiducial):
    return draw_sky(fiducial, LMAX, 11, "tests", 0)


def centres_at(declinations):
    return np.array([[np.radians(90.0 - d), 1.0 + 0.7 * i] for i, d in enumerate(declinations)])


def test_centres_are_160_and_patches_do_not_overlap():
    centres = patches.patch_centres()
    assert centres.shape == (160, 2)
    xyz = healpy.ang2vec(*centres.T)
    separation = np.degrees(np.arccos(np.clip(xyz @ xyz.T - 2 * np.eye(160), -1, 1)))
    assert separation.min() > 5 * np.sqrt(2)


def test_pixels_are_those_of_a_lambert_projection():
    """Positions against astropy's WCS, zenithal equal area (ZEA)."""
    geometry = PatchGeometry(n_pixels=32, pad=0)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---ZEA", "DEC--ZEA"
    wcs.wcs.crval = 57.0, 40.0
    wcs.wcs.crpix = 16.5, 16.5
    wcs.wcs.cdelt = (5 / 32, 5 / 32)  # east to the right: the sphere seen from outside
    x, y = (c.ravel() for c in np.meshgrid(np.arange(32), np.arange(32)))
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    ours = patches.point_patch(np.radians([50.0, 57.0]), geometry)
    np.testing.assert_allclose(np.degrees(ours.phi), ra, atol=1e-9)
    np.testing.assert_allclose(90 - np.degrees(ours.theta), dec, atol=1e-9)


def test_frame_angle_at_a_corner():
    # 2ψ is 9° at a patch corner at declination 60.
    geometry = PatchGeometry(n_pixels=129, pad=0)
    pointing = patches.point_patch(centres_at([60.0])[0], geometry)
    frame = np.degrees(pointing.frame.reshape(129, 129))
    assert frame[64, 64] == pytest.approx(0, abs=1e-9)
    assert 2 * np.abs(frame).max() == pytest.approx(9, abs=0.5)


def test_fields_at_healpix_pixels_are_healpys(sky):
    """Scalar and spin-2 synthesis against healpy.alm2map at HEALPix pixel centres."""
    nside, lmax = 256, 600
    pixels = np.arange(312_000, 315_000)
    theta, phi = healpy.pix2ang(nside, pixels)
    pointing = patches.Pointing(theta, phi, np.zeros(len(theta)))
    elm = patches.truncate_alm(sky.elm, LMAX, lmax)
    e = patches.scalar_at(elm, lmax, pointing)
    p = patches.polarisation_at(elm, lmax, pointing)
    zero = np.zeros_like(elm)
    _, q, u = healpy.alm2map([zero, elm, zero], nside, lmax=lmax, pol=True)
    scalar = healpy.alm2map(elm, nside, lmax=lmax)
    rms = np.std(e)
    assert np.std(e - scalar[pixels]) < 1e-5 * rms
    assert np.std(p.real - q[pixels]) < 1e-5 * rms
    assert np.std(p.imag - u[pixels]) < 1e-5 * rms


def test_lensing_against_lenspyx(sky):
    """Q̃ and Ũ at patch pixels against lenspyx lensing the same a_lm."""
    from lenspyx.remapping.deflection_028 import deflection
    from lenspyx.remapping.utils_geom import Geom

    geometry = PatchGeometry(size_deg=5 * 24 / 128, n_pixels=24, pad=0)
    pointing = patches.point_patches(centres_at([0.0, 60.0]), geometry)
    lmax = 1200
    elm, philm = (patches.truncate_alm(alm, LMAX, lmax) for alm in (sky.elm, sky.philm))
    deflected = patches.deflect_by(patches.gradient_at(philm, lmax, pointing), pointing)
    ours = patches.lensed_polarisation_at(elm, lmax, pointing, deflected)
    n = len(pointing.theta)
    rings = Geom(pointing.theta, pointing.phi, np.ones(n, int), np.arange(n), np.ones(n))
    l = np.arange(lmax + 1)
    dlm = scale_alm(philm, np.sqrt(l * (l + 1.0)))
    q, u = deflection(rings, dlm, None, epsilon=1e-7, numthreads=2).gclm2lenmap(
        elm[None], None, 2, False
    )
    theirs = (q + 1j * u) * np.exp(-2j * pointing.frame)
    rms = np.std(theirs)
    assert np.std(ours - theirs) < 1e-6 * rms
    # The unlensed field is far from this: the test can fail.
    unlensed = patches.polarisation_at(elm, lmax, pointing)
    assert np.std(unlensed - theirs) > 0.1 * rms


def test_unlensed_and_lensed_from_one_transform(sky):
    geometry = PatchGeometry(n_pixels=16, pad=0)
    pointing = patches.point_patches(centres_at([20.0]), geometry)
    lmax = 1200
    elm, philm = (patches.truncate_alm(alm, LMAX, lmax) for alm in (sky.elm, sky.philm))
    deflection = patches.deflect_by(patches.gradient_at(philm, lmax, pointing), pointing)
    lensed, unlensed = patches.lensed_and_unlensed_at(elm, lmax, pointing, deflection)
    alone = patches.lensed_polarisation_at(elm, lmax, pointing, deflection)
    np.testing.assert_allclose(lensed, alone, atol=1e-5 * np.std(alone))
    np.testing.assert_allclose(
        unlensed, patches.polarisation_at(elm, lmax, pointing), atol=1e-5 * np.std(alone)
    )


def test_convergence_is_half_the_laplacian():
    """κ = −½∇²φ on the sphere: κ_lm of φ with C^φφ has C^κκ = [L(L+1)]²/4 C^φφ mode by mode, zero
    beyond the band limit."""
    lmax, limit = 60, 45
    philm = unit_alm(lmax, np.random.default_rng(3))
    kappa = patches.convergence_alm(philm, lmax, limit)
    l, m = healpy.Alm.getlm(limit)
    expected = 0.5 * l * (l + 1) * philm[healpy.Alm.getidx(lmax, l, m)]
    np.testing.assert_allclose(kappa, expected, rtol=1e-14)
    with pytest.raises(CNNLensError, match="band_limit 70 lies above lmax 60"):
        patches.convergence_alm(philm, lmax, 70)


def test_deflections_lead_up_the_gradient():
    """φ = a cos θ rises to the north: pixels look north of themselves, by |∇φ| = a sin θ; turned
    about the axis, φ leaves the longitude alone."""
    centre = centres_at([20.0])[0]
    pointing = patches.point_patch(centre, PatchGeometry(n_pixels=8, pad=0))
    philm = np.zeros(6, complex)  # lmax 2; a_10 in its place
    philm[1] = 1e-3 / np.sqrt(3 / (4 * np.pi))
    gradient = patches.gradient_at(philm, 2, pointing)
    np.testing.assert_allclose(gradient[:, 0], -1e-3 * np.sin(pointing.theta), rtol=1e-4)
    np.testing.assert_allclose(gradient[:, 1], 0.0, atol=1e-8)
    seen = patches.deflect_by(gradient, pointing)
    np.testing.assert_allclose(
        pointing.theta - seen.theta, 1e-3 * np.sin(pointing.theta), rtol=1e-4
    )
    np.testing.assert_allclose(seen.phi, pointing.phi, atol=1e-10)


def test_centres_leave_out_the_poles():
    centres = patches.patch_centres(2, 4)
    theta, _ = healpy.pix2ang(2, np.arange(48))
    assert len(centres) == 40
    assert centres[:, 0].min() == pytest.approx(np.sort(theta)[4])
    assert centres[:, 0].max() == pytest.approx(np.sort(theta)[-5])


def test_crop_takes_the_padding_off():
    geometry = PatchGeometry(n_pixels=4, pad=2)
    maps = np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(geometry.crop(maps), maps[2:6, 2:6])


def test_truncated_alm_are_the_low_multipoles(sky):
    cut = patches.truncate_alm(sky.elm, LMAX, 700)
    np.testing.assert_array_equal(healpy.alm2cl(cut), healpy.alm2cl(sky.elm)[:701])


@pytest.mark.parametrize("declination", [0.0, 40.0, 60.0])
def test_a_pure_e_sky_has_no_b(sky, declination):
    """The rotation from the sphere's frame to the patch's, by the B modes an error would make."""
    geometry = PatchGeometry(pad=0)
    centres = np.array([[np.radians(90.0 - declination), phi] for phi in (0.3, 2.0, 4.0)])
    pointing = patches.point_patches(centres, geometry)
    spectra = FlatSpectra(geometry, Bins(300, 400, 6), cosine_mask(geometry, 0.5))

    def b_over_e(p):
        q, u = p.real.reshape(-1, 128, 128), p.imag.reshape(-1, 128, 128)
        b = pure_b(spectra, q, u)
        e, _ = e_and_b(spectra, q * spectra.mask, u * spectra.mask)
        return spectra.cross(b, b).mean(0) / spectra.cross(e, e).mean(0)

    p = patches.polarisation_at(sky.elm, LMAX, pointing)
    assert b_over_e(p).max() < 1e-4
    if declination == 60.0:  # without the rotation the same test fails
        assert b_over_e(p * np.exp(2j * pointing.frame)).max() > 1e-3


def test_flat_e_has_the_sign_of_the_scalar_field(sky):
    geometry = PatchGeometry(pad=0)
    pointing = patches.point_patches(centres_at([30.0, -50.0]), geometry)
    p = patches.polarisation_at(sky.elm, LMAX, pointing).reshape(-1, 128, 128)
    e = patches.scalar_at(sky.elm, LMAX, pointing).reshape(-1, 128, 128)
    spectra = FlatSpectra(geometry, Bins(500, 500, 4), cosine_mask(geometry, 0.5))
    flat, _ = e_and_b(spectra, p.real * spectra.mask, p.imag * spectra.mask)
    scalar = spectra.transform(e * spectra.mask)
    correlation = spectra.cross(flat, scalar).mean(0) / np.sqrt(
        spectra.cross(flat, flat).mean(0) * spectra.cross(scalar, scalar).mean(0)
    )
    assert correlation.min() > 0.99


def test_lensed_spectra_of_160_patches_against_camb(fiducial):
    """EE within 1% and BB within 2% of CAMB for 300 < l < 2900, beyond Monte-Carlo error."""
    lmax = 3000
    cut = Spectra(*(values[: lmax + 1] for values in vars(fiducial).values()))
    geometry = PatchGeometry(n_pixels=96, pad=0)
    bins = Bins(300, 260, 10)
    mask = cosine_mask(geometry, 0.5)
    spectra = FlatSpectra(geometry, bins, mask)
    pointing = patches.point_patches(patches.patch_centres(), geometry)
    sky = draw_sky(cut, lmax, 12, "tests", 0)
    gradient = patches.gradient_at(sky.philm, lmax, pointing)
    p = patches.lensed_polarisation_at(
        sky.elm, lmax, pointing, patches.deflect_by(gradient, pointing)
    ).reshape(-1, 96, 96)
    e, b = e_and_b(spectra, p.real * mask, p.imag * mask)
    ee, bb = spectra.cross(e, e), spectra.cross(b, b)
    b = pure_b(spectra, p.real, p.imag)
    pure = spectra.cross(b, b)
    lensed_ee, lensed_bb = lensed_polarisation(cut, 6000)
    expected_ee, expected_bb = expected_e_and_b(spectra, lensed_ee, lensed_bb)
    expected_pure = expected_pure_b(spectra, lensed_bb)
    clean = bins.centres < 2500  # above, power aliased from beyond Nyquist enters pure B
    for name, found, expected, tolerance, use in (
        ("EE", ee, expected_ee, 0.01, slice(None)),
        ("BB", bb, expected_bb, 0.02, slice(None)),
        ("pure BB", pure, expected_pure, 0.02, clean),
    ):
        each = found / expected
        error = each.std(0, ddof=1) / np.sqrt(len(each))
        excess = np.abs(each.mean(0) - 1)[use]
        assert (excess < tolerance + 2 * error[use]).all(), (name, excess, error[use])
        # The mean over all bins, where the Monte-Carlo error is small, is held harder.
        assert abs(np.average(each.mean(0)[use], weights=error[use] ** -2) - 1) < tolerance / 2
