"""The quadratic and the MAP estimators on periodic patches without a mask, where analytic
noise and response are known."""

import itertools

import numpy as np
import pytest
import scipy.fft

from cobaya_cnnlens.reconstruct import map_lensing
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.n0 import (
    ESTIMATORS,
    Filter,
    band_of,
    delensing_passes,
    n0_eb,
)
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import Instrument, cosine_mask
from cobaya_cnnlens.simulate.modes import mode_vectors
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import Box, Displaced, PeriodicSkies

GEOMETRY = PatchGeometry(pad=0)
INSTRUMENT = Instrument(noise_uk_arcmin=1.0, beam_fwhm_arcmin=1.0)
N = 24


@pytest.fixture(scope="module")
def patches(fiducial):
    """Periodic patches: Q + iU as observed, and κ; unlensed E alone."""
    box = Box(GEOMETRY, INSTRUMENT, 4600, border=0)
    generator = np.random.default_rng(1)

    def field(cl):
        white = scipy.fft.fft2(generator.standard_normal((box.n, box.n)))
        return white * np.sqrt(box.spectrum(cl)) / box.pixel

    maps, kappas = [], []
    rms = INSTRUMENT.noise_rms(GEOMETRY)
    for _ in range(N):
        e, phi = field(fiducial.ee), field(fiducial.pp)
        lensed = box.blur(box.at(box.turn * e, box.positions(phi)))
        noise = rms * generator.standard_normal((2, box.n, box.n))
        maps.append(lensed + noise[0] + 1j * noise[1])
        kappas.append(scipy.fft.ifft2(0.5 * box.ell**2 * phi).real)
    return np.array(maps), np.array(kappas)


@pytest.fixture(scope="module")
def spectra():
    return FlatSpectra(GEOMETRY, Bins(100, 380, 5), np.ones((128, 128)))


def measure(estimator, patches, spectra):
    """Response and ⟨κ̂κ̂⟩/R² − C of every patch."""
    maps, kappa = patches
    found = spectra.transform(estimator.reconstruct(maps.real, maps.imag))
    true = spectra.transform(kappa)
    auto, cross, truth = (
        spectra.cross(a, b) for a, b in ((found, found), (true, found), (true, true))
    )
    response = cross.mean(0) / truth.mean(0)
    error = (cross - response * truth).std(0, ddof=1) / np.sqrt(len(maps)) / truth.mean(0)
    return response, error, auto / response**2 - truth


def eb(fiducial):
    ones = np.ones((128, 128))
    return QuadraticEstimator(GEOMETRY, INSTRUMENT, ones, fiducial, band=Filter(72, 4600))


def test_eb_response_without_a_mask(fiducial, patches, spectra):
    """R is one to the few per cent by which lensed spectra in the weights are off."""
    response, error, _ = measure(eb(fiducial), patches, spectra)
    assert (np.abs(response - 1.0) < 0.02 + 3 * error).all(), (response, error)
    assert (error[1:] < 0.02).all()


def test_the_curl_estimator_finds_a_curl(fiducial, spectra):
    """ω̂ of maps deflected by a gradient turned by 90° follows its potential, and κ̂ does not."""
    box = Box(GEOMETRY, INSTRUMENT, 4600, border=0)
    generator = np.random.default_rng(6)
    skies = PeriodicSkies(GEOMETRY, INSTRUMENT, fiducial)
    maps, truth = [], []
    for _ in range(8):
        e, psi = (skies.draw(name, generator) for name in ("e", "phi"))
        gradient = box.gradient(psi)
        turned = np.stack([-gradient[..., 1], gradient[..., 0]], -1)
        points = Displaced(box, (box._grid + turned)[box.region].reshape(-1, 2))
        maps.append(box.blur(box.at(box.turn * e, points)) + skies.noise(generator))
        truth.append(skies.convergence(psi))
    maps, true = np.array(maps), spectra.transform(np.array(truth))
    responses = []
    for curl in (True, False):
        estimator = QuadraticEstimator(
            *(GEOMETRY, INSTRUMENT, np.ones((128, 128)), fiducial),
            band=Filter(72, 4600),
            curl=curl,
        )
        found = spectra.transform(estimator.reconstruct(maps.real, maps.imag))
        responses.append(spectra.cross(true, found).mean(0) / spectra.cross(true, true).mean(0))
    assert (responses[0][:4] > 0.4).all(), responses
    assert (np.abs(responses[1][:4]) < 0.15).all(), responses


def test_noise_of_gaussian_maps_is_n0(fiducial, spectra):
    """Of Gaussian E and B with the lensed spectra and noise, κ̂κ̂* is the analytic N0 of each bin's
    modes, and nothing else; EE and both together are normalised as EB is."""
    box = Box(GEOMETRY, INSTRUMENT, 4600, border=0)
    generator = np.random.default_rng(3)
    roots = [np.sqrt(box.spectrum(c)) / box.pixel for c in (fiducial.lensed_ee, fiducial.lensed_bb)]
    rms, maps = INSTRUMENT.noise_rms(GEOMETRY), []
    for _ in range(4 * N):
        e, b, *noise = generator.standard_normal((4, box.n, box.n))
        x = roots[0] * scipy.fft.fft2(e) + 1j * roots[1] * scipy.fft.fft2(b)
        maps.append(box.blur(box.at(box.turn * x, None)) + rms * (noise[0] + 1j * noise[1]))
    maps = np.array(maps)
    L = np.arange(100.0, 2001.0, 50.0)
    norm = n0_eb(L, fiducial, INSTRUMENT)
    ell = np.hypot(*mode_vectors(128, GEOMETRY.pixel))
    for name in ("eb", "ee", "mv"):
        estimator = QuadraticEstimator(
            GEOMETRY, INSTRUMENT, np.ones((128, 128)), fiducial, name, band=Filter(72, 4600)
        )
        found = spectra.auto(estimator.reconstruct(maps.real, maps.imag))
        expected = np.interp(ell, L, norm**2 / ESTIMATORS[name](L, fiducial, INSTRUMENT))
        ratio = found / spectra.average_plane(expected)
        error = ratio.std(0, ddof=1) / np.sqrt(len(maps))
        assert (np.abs(ratio.mean(0) - 1.0) < 0.01 + 3 * error).all(), (name, ratio.mean(0), error)
        assert (error < 0.03).all()


def test_estimators_in_order_of_what_they_know(fiducial, patches, spectra):
    """Every step beyond EB alone lowers the noise of the same patches: EE with it, then
    delensing."""
    ones = np.ones((128, 128))
    estimators = [
        QuadraticEstimator(GEOMETRY, INSTRUMENT, ones, fiducial),
        QuadraticEstimator(GEOMETRY, INSTRUMENT, ones, fiducial, "mv"),
        MAPLensing(GEOMETRY, INSTRUMENT, ones, fiducial, passes=6),
    ]
    few = tuple(values[:6] for values in patches)
    noise = [measure(estimator, few, spectra)[2].mean(0)[1:4].mean() for estimator in estimators]
    assert noise[1] < noise[0]
    assert noise[2] < 0.75 * noise[1]


def test_pure_b_takes_the_leakage_out(fiducial):
    """Of a masked, noiseless, unlensed sky of E modes alone, naive B is what the mask makes."""
    box = Box(PatchGeometry(n_pixels=256, pad=0, size_deg=10.0), Instrument(0.0, 0.0), 3000, 0)
    white = np.random.default_rng(2).standard_normal((box.n, box.n))
    e = scipy.fft.fft2(white) * np.sqrt(box.spectrum(fiducial.ee)) / box.pixel
    patch = box.at(box.turn * e, None)[:128, :128]
    mask = cosine_mask(GEOMETRY, 0.5)
    power = {}
    for leakage in ("naive", "pure"):
        estimator = QuadraticEstimator(
            GEOMETRY, Instrument(1.0, 0.0), mask, fiducial, leakage=leakage
        )
        modes = estimator.modes(mask * patch.real, mask * patch.imag)
        inside = (estimator._box.ell > 300) & (estimator._box.ell < 2500)
        power[leakage] = np.mean(np.abs(modes["b"][inside]) ** 2)
    assert power["pure"] < 1e-3 * power["naive"]


def test_periodic_skies_are_what_is_drawn(fiducial):
    """One wave of φ: κ = ½ L²φ of the flat sky, light from x + ∇φ; of one wave of E, Q and U by the
    angle of l; power and noise on average."""
    geometry = PatchGeometry(n_pixels=32, pad=0)
    skies = PeriodicSkies(geometry, Instrument(2.0, 0.0), fiducial)
    box = skies._box
    assert box.n == 32
    modes = np.zeros((32, 32), complex)
    modes[2, 3], modes[-2, -3] = 1e-7 + 2e-7j, 1e-7 - 2e-7j
    l2 = (2**2 + 3**2) * geometry.fundamental**2
    phi = scipy.fft.ifft2(modes).real
    np.testing.assert_allclose(
        skies.convergence(modes), 0.5 * l2 * phi, atol=1e-12 * l2 * phi.max()
    )
    # One wave of E along y and one along x: Q is E and −E.
    for place, sign in (((4, 0), 1.0), ((0, 4), -1.0)):
        e = np.zeros((32, 32), complex)
        e[place], e[-place[0], -place[1]] = 1.0, 1.0
        seen = skies.lensed(e, None)
        np.testing.assert_allclose(seen, sign * scipy.fft.ifft2(e).real, atol=1e-12)
    # A wave of E along y, moved by the displacement: E(y + ∂φ/∂y).
    e = np.zeros((32, 32), complex)
    e[1, 0] = e[-1, 0] = 1.0
    modes = np.zeros((32, 32), complex)
    modes[2, 0], modes[-2, 0] = -1j, 1j
    modes *= 1e-2 / box.gradient(modes).max()
    y = np.arange(32) * geometry.pixel
    moved = y + 1e-2 * np.cos(2 * geometry.fundamental * y)
    expected = np.cos(geometry.fundamental * moved) * 2 / 32**2
    np.testing.assert_allclose(
        skies.lensed(e, modes).real, expected[:, None] * np.ones(32), atol=1e-5 * expected.max()
    )
    generator = np.random.default_rng(5)
    noise = np.array([skies.noise(generator) for _ in range(200)])
    rms = 2.0 / (np.degrees(geometry.pixel) * 60)
    assert noise.real.std() == pytest.approx(rms, rel=0.01)
    assert noise.imag.std() == pytest.approx(rms, rel=0.01)
    for name, cl in (("e", fiducial.ee), ("phi", fiducial.pp)):
        power = np.mean([np.abs(skies.draw(name, generator)) ** 2 for _ in range(400)], axis=0)
        ratio = power[box.band] * (geometry.pixel / 32) ** 2 / box.spectrum(cl)[box.band]
        assert ratio.mean() == pytest.approx(1.0, abs=4 / np.sqrt(ratio.size * 400 / 2))
        assert (power[~box.band] == 0).all()


def test_every_pass_knows_what_delensing_left(fiducial, monkeypatch):
    """The first filter holds the lensed spectra; the others unlensed E, and of B what the analytic
    iteration leaves, less from pass to pass."""
    geometry, instrument = PatchGeometry(n_pixels=32, pad=0), Instrument(1.0, 1.0)
    made = []

    class Recording(map_lensing.WienerFilter):
        def __init__(self, box, *arguments):
            made.append(arguments)
            super().__init__(box, *arguments)

    monkeypatch.setattr(map_lensing, "WienerFilter", Recording)
    estimator = MAPLensing(geometry, instrument, np.ones((32, 32)), fiducial, passes=3, threads=1)
    estimator._make_filters(1.0)
    (first_e, first_b, _), *rest = made
    np.testing.assert_array_equal(first_e, fiducial.lensed_ee)
    np.testing.assert_array_equal(first_b, fiducial.lensed_bb)
    band = band_of(geometry, fiducial, 2)
    analytic = itertools.islice(delensing_passes(fiducial, instrument, band), 1, 3)
    for (clee, clbb, _), (_, left) in zip(rest, analytic, strict=True):
        np.testing.assert_array_equal(clee, fiducial.ee)
        np.testing.assert_allclose(clbb, left, rtol=1e-12)
    assert rest[1][1][500] < rest[0][1][500] < 0.8 * first_b[500]
