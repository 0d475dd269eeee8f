import numpy as np
import pytest

from cobaya_cnnlens.simulate.instrument import (
    Instrument,
    Systematics,
    convolve_beam,
    cosine_mask,
    draw_noise,
)
from cobaya_cnnlens.simulate.patches import PatchGeometry

GEOMETRY = PatchGeometry()


def test_reference_numbers_of_the_patch():
    assert GEOMETRY.fundamental == pytest.approx(72, abs=0.01)
    assert GEOMETRY.nyquist == pytest.approx(4608, abs=0.1)
    assert np.degrees(GEOMETRY.pixel) * 60 == pytest.approx(2.34375)


def test_noise_level_is_per_arcmin():
    noise = draw_noise((40, 128, 128), Instrument(1.0), GEOMETRY, np.random.default_rng(0))
    assert noise.std() == pytest.approx(1 / 2.34375, rel=0.005)
    # The spectrum of 1 µK' is (1 µK · 1')².
    power = np.mean(np.abs(np.fft.fft2(noise)) ** 2) * GEOMETRY.pixel**2 / 128**2
    assert power == pytest.approx(np.radians(1 / 60) ** 2, rel=0.01)


def test_beam_of_one_arcmin():
    # exp(−l²σ²) at l = 3000 for FWHM 1′: σ = 1.235e-4 rad.
    assert Instrument().beam(3000.0) ** 2 == pytest.approx(
        np.exp(-((3000 * 1.2353e-4) ** 2)), rel=1e-4
    )


def test_beam_on_a_wave():
    """A plane wave comes out multiplied by the transfer function, padding and all."""
    geometry = PatchGeometry(pad=4)
    l = 2 * np.pi * 10 / (geometry.n_padded * geometry.pixel)
    x = np.arange(geometry.n_padded) * geometry.pixel
    wave = np.broadcast_to(np.cos(l * x), (geometry.n_padded,) * 2)
    beamed = convolve_beam(wave, Instrument(beam_fwhm_arcmin=5.0), geometry)
    expected = geometry.crop(wave) * Instrument(beam_fwhm_arcmin=5.0).beam(l)
    np.testing.assert_allclose(beamed, expected, atol=1e-12)


def test_padding_is_wide_enough():
    """Masked, beamed maps with 4 pixels of padding against 36, on noise to the Nyquist limit."""
    wide = PatchGeometry(n_pixels=128, pad=36)
    sky = np.random.default_rng(3).standard_normal((wide.n_padded,) * 2)
    narrow = PatchGeometry(n_pixels=128, pad=4)
    inner = sky[32:-32, 32:-32]
    mask = cosine_mask(narrow, 0.5)
    a = convolve_beam(sky, Instrument(), wide) * mask
    b = convolve_beam(inner, Instrument(), narrow) * mask
    assert np.std(a - b) < 2e-3 * np.std(a)
    without = PatchGeometry(n_pixels=128, pad=0)
    c = convolve_beam(narrow.crop(inner), Instrument(), without) * mask
    assert np.std(a - c) > np.std(a - b)


def test_mask_is_a_product_of_cosine_tapers():
    mask = cosine_mask(GEOMETRY, 0.5)
    taper = 0.5 / 5 * 128  # 12.8 pixels
    assert mask[64, 64] == 1
    assert mask[13, 13] == 1
    assert mask[64, 0] == pytest.approx(0.5 * (1 - np.cos(np.pi * 0.5 / taper)))
    np.testing.assert_allclose(mask, mask.T)
    np.testing.assert_allclose(mask, mask[::-1])
    assert mask[0, 0] == pytest.approx(mask[64, 0] ** 2)


def test_depth_that_varies_along_y():
    """4 µK-arcmin on one side, 1 on the other, 2 in the middle; what is drawn has that rms."""
    instrument = Instrument(2.0, depth_ratio=4.0)
    rms = instrument.noise_rms(GEOMETRY) * 2.34375
    np.testing.assert_allclose(rms[:, 0], rms[:, -1])
    assert rms.max() == pytest.approx(4.0, rel=1e-3)
    assert rms.min() == pytest.approx(1.0, rel=1e-3)
    assert rms[63:65].mean() == pytest.approx(2.0, rel=1e-3)
    noise = draw_noise((400, 128, 128), instrument, GEOMETRY, np.random.default_rng(1))
    np.testing.assert_allclose(noise.std((0, 2)) * 2.34375, rms[:, 0], rtol=0.02)


def test_depth_is_worst_in_the_south():
    """√D times the middle's noise at the first row, −y; its geometric mean is the middle's."""
    rms = Instrument(2.0, depth_ratio=4.0).noise_rms(GEOMETRY) * 2.34375
    assert rms[0, 0] == pytest.approx(4.0, rel=1e-3)
    assert rms[-1, 0] == pytest.approx(1.0, rel=1e-3)
    assert (np.diff(rms[:, 5]) < 0).all()
    np.testing.assert_allclose(rms * rms[::-1], 4.0, rtol=1e-12)


def test_systematics_are_what_they_say():
    """P → (1 + g) e^{2iα} P of the sky alone; beam and noise of the instrument alone, relative."""
    q, u = np.random.default_rng(2).standard_normal((2, 8, 8))
    off = Systematics(gain=0.1, beam=0.2, noise=-0.3, angle=15.0)
    dq, du = off.distort(q, u)
    np.testing.assert_allclose(dq + 1j * du, 1.1 * np.exp(1j * np.pi / 6) * (q + 1j * u))
    assert off.of(Instrument(2.0, 3.0, 0.7, 4.0)) == Instrument(
        pytest.approx(1.4), pytest.approx(3.6), 0.7, 4.0
    )
    same = Systematics(beam=0.2, noise=0.1).distort(q, u)
    assert same[0] is q
    assert same[1] is u


def test_no_taper_is_no_mask():
    np.testing.assert_array_equal(cosine_mask(GEOMETRY, 0.0), 1.0)


def test_noise_is_independent_of_pixels_and_repeatable():
    """Q and U, and neighbours, have nothing in common; the same seed gives the same noise at any
    level, so that differences of instruments have none of its scatter."""
    one, two = (
        draw_noise((2, 50, 128, 128), Instrument(x), GEOMETRY, np.random.default_rng(4))
        for x in (1.0, 3.0)
    )
    np.testing.assert_allclose(two, 3.0 * one, rtol=1e-6)
    size = one[0].size
    assert abs(np.mean(one[0] * one[1])) < 4 * one.var() / np.sqrt(size)
    assert abs(np.mean(one[..., 1:] * one[..., :-1])) < 4 * one.var() / np.sqrt(2 * size)
