import numpy as np
import pytest

from cobaya_cnnlens.calibrate.windows import (
    bandpower_windows,
    expected_e_and_b,
    expected_pure_b,
)
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import cosine_mask
from cobaya_cnnlens.simulate.modes import polarisation_angles
from cobaya_cnnlens.simulate.patches import PatchGeometry

GEOMETRY = PatchGeometry(n_pixels=64, pad=0)
MASK = cosine_mask(GEOMETRY, 0.5)
BINS = Bins(36, 150, 12)


def gaussian_patches(cl, n_patches, generator):
    """Patches cut from wide periodic Gaussian maps: an isotropic field, no window assumed."""
    wide = 512
    l = np.hypot(*np.meshgrid(*(2 * np.pi * np.fft.fftfreq(wide, GEOMETRY.pixel),) * 2))
    root = np.sqrt(np.interp(l, np.arange(len(cl)), cl, right=0.0)) / GEOMETRY.pixel
    patches = []
    while len(patches) < n_patches:
        noise = np.fft.fft2(generator.standard_normal((wide, wide)))
        field = np.fft.ifft2(noise * root).real
        patches += [
            field[i : i + 64, j : j + 64] for i in range(0, wide, 128) for j in range(0, wide, 128)
        ]
    return np.array(patches[:n_patches])


def test_merged_bins_are_wide_bins():
    geometry = PatchGeometry(size_deg=5.0, n_pixels=32)
    mask = cosine_mask(geometry, 0.5)
    narrow = FlatSpectra(geometry, Bins(36, 100, 7), mask)
    wide = FlatSpectra(geometry, Bins(36, 200, 3), mask)
    maps = np.random.default_rng(3).standard_normal((2, 32, 32))
    np.testing.assert_allclose(narrow.merge(narrow.auto(maps), 2), wide.auto(maps), rtol=1e-12)


def test_white_noise_has_a_flat_spectrum():
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    maps = np.random.default_rng(0).standard_normal((400, 64, 64)) * MASK
    power = spectra.auto(maps) / GEOMETRY.pixel**2
    error = power.std(0) / 20
    assert (np.abs(power.mean(0) - 1) < 4 * error).all()


def test_windows_against_simulated_patches():
    l = np.arange(2301, dtype=float)
    cl = 1.0 / (50.0 + l) ** 2
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    found = spectra.auto(gaussian_patches(cl, 1600, np.random.default_rng(1)) * MASK)
    expected = bandpower_windows(spectra, 2300) @ cl
    error = found.std(0) / 40
    assert (np.abs(found.mean(0) - expected) < 4 * error).all()
    # The mask's coupling matters: binning C_l alone would fail in the first bin.
    naive = np.mean(cl[36:186])
    assert abs(found.mean(0)[0] - naive) > 8 * error[0]


def test_windows_of_a_flat_spectrum_sum_to_what_pixels_hold():
    # A white spectrum to infinity gives a white map; to the Nyquist circle, π/4 of it and more.
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    total = bandpower_windows(spectra, 9000).sum(1)
    assert (total > 3).all()  # aliased power from beyond Nyquist is counted, not lost
    inside = bandpower_windows(spectra, 2304).sum(1)
    np.testing.assert_allclose(inside[:8], 1, atol=0.01)


def test_modes_are_counted_once():
    # In units of the fundamental, 72: four modes at 1, four at √2; four at 2, eight at √5.
    spectra = FlatSpectra(GEOMETRY, Bins(50, 60, 2), MASK)
    assert spectra.modes.tolist() == [8, 12]


def test_bins_beyond_nyquist_are_refused():
    with pytest.raises(CNNLensError, match="Nyquist"):
        FlatSpectra(GEOMETRY, Bins(36, 200, 20), MASK)
    with pytest.raises(CNNLensError, match="no Fourier mode"):
        FlatSpectra(GEOMETRY, Bins(36, 10, 5), MASK)


def test_cross_spectrum_of_a_map_with_itself_is_its_auto():
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    maps = np.random.default_rng(2).standard_normal((3, 64, 64))
    modes = spectra.transform(maps)
    np.testing.assert_allclose(spectra.cross(modes, modes), spectra.auto(maps))
    np.testing.assert_allclose(spectra.cross(modes, -modes), -spectra.auto(maps))


def test_parseval():
    """All modes in one bin: the bandpower is the map's variance times the pixel's area."""
    spectra = FlatSpectra(GEOMETRY, Bins(1, 2303, 1), np.ones((64, 64)))
    maps = np.random.default_rng(3).standard_normal((1, 64, 64))
    modes = spectra.transform(maps)
    full = np.fft.fft2(maps[0])
    l = 2 * np.pi * np.fft.fftfreq(64, GEOMETRY.pixel)
    inside = (np.hypot(l[:, None], l) >= 1) & (np.hypot(l[:, None], l) < 2304)
    expected = np.mean(np.abs(full[inside]) ** 2) * GEOMETRY.pixel**2 / 64**2
    assert spectra.cross(modes, modes)[0, 0] == pytest.approx(expected)


def test_leakage_from_e_to_b_is_predicted():
    """Expected pseudo-B of a pure-E field is what the mask leaks; pure B has none of it."""
    l = np.arange(2301, dtype=float)
    clee = 1e-4 * np.exp(-l / 500)
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    ee, bb = expected_e_and_b(spectra, clee, np.zeros_like(clee))
    assert (bb > 0).all()
    assert bb[0] / ee[0] > 0.05
    assert bb[8] / ee[8] < 0.02
    swapped_ee, swapped_bb = expected_e_and_b(spectra, np.zeros_like(clee), clee)
    np.testing.assert_allclose(swapped_bb, ee, rtol=1e-9)
    np.testing.assert_allclose(swapped_ee, bb, rtol=1e-9)
    assert expected_pure_b(spectra, np.zeros_like(clee)).max() == 0


def test_pure_b_of_power_beyond_nyquist():
    """Pure B divides by l² of its modes, which aliased power has not: none of it is counted."""
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    l = np.arange(5001, dtype=float)
    clbb = 1e-6 * np.exp(-l / 3000)
    to_nyquist = np.where(l <= GEOMETRY.nyquist, clbb, 0.0)
    found = expected_pure_b(spectra, clbb)
    np.testing.assert_allclose(found, expected_pure_b(spectra, clbb[:2305]), rtol=1e-12)
    np.testing.assert_allclose(found, expected_pure_b(spectra, to_nyquist), rtol=1e-3)


def test_window_of_the_monopole():
    """A constant of variance 1 is C_0 = 4π: its power is the mask's own, exactly."""
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    windows = bandpower_windows(spectra, 1)
    np.testing.assert_allclose(4 * np.pi * windows[:, 0], spectra.auto(MASK[None])[0], rtol=1e-6)


def test_pure_b_is_coupled_as_l_squared_b():
    """⟨|B_l|²⟩ = l⁻⁴ ∫ |M_{l−l'}|² l'⁴ C_l' d²l'/(2π)², as a convolution over a wider box."""
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    l = np.arange(2305, dtype=float)
    clbb = 1e-6 * np.exp(-l / 400)
    wide, pixel = 1024, GEOMETRY.pixel
    frequency = 2 * np.pi * np.fft.fftfreq(wide, pixel)
    ell = np.hypot(frequency[:, None], frequency)
    power = np.interp(ell, l, clbb * l**4, right=0.0)
    mask = np.abs(np.fft.fft2(MASK, s=(wide, wide))) ** 2
    coupled = np.fft.ifft2(np.fft.fft2(mask) * np.fft.fft2(power)).real * (pixel / wide) ** 2
    step = wide // 64
    modes = ell[::step, ::step][:, :33]
    expected = coupled[::step, ::step][:, :33] / np.where(modes > 0, modes, np.inf) ** 4
    area = (64 * pixel) ** 2 * np.mean(MASK**2)
    expected = spectra.average_plane(expected) / area
    np.testing.assert_allclose(expected_pure_b(spectra, clbb), expected, rtol=1e-3)


def test_windows_of_one_multipole():
    """A map of one L alone: W_bL is the power that a wave of this L has in the bin, mask and all,
    averaged over its directions."""
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    windows = bandpower_windows(spectra, 700)
    generator = np.random.default_rng(5)
    x = np.arange(64) * GEOMETRY.pixel
    for L in (260, 611):
        angle, phase = generator.uniform(0, 2 * np.pi, (2, 4000))
        waves = np.sqrt(2) * np.cos(
            L * (np.cos(angle)[:, None, None] * x[:, None] + np.sin(angle)[:, None, None] * x)
            + phase[:, None, None]
        )
        power = spectra.auto(waves * MASK)
        # Σ (2L+1)/4π C_L of the field's variance, 1.
        expected = windows[:, L] * 4 * np.pi / (2 * L + 1)
        error = power.std(0) / np.sqrt(len(power))
        assert (np.abs(power.mean(0) - expected) < 4 * error + 2e-3 * expected.max()).all()


def test_area_of_a_mask_is_its_mean_square():
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    maps = np.random.default_rng(6).standard_normal((2, 64, 64))
    whole = FlatSpectra(GEOMETRY, BINS, np.ones((64, 64)))
    np.testing.assert_allclose(spectra.auto(maps) * np.mean(MASK**2), whole.auto(maps), rtol=1e-12)


def test_bin_weights_are_those_of_the_averages():
    spectra = FlatSpectra(GEOMETRY, BINS, MASK)
    power = np.random.default_rng(7).random((64, 33))
    for b in (0, 7):
        weights = spectra.bin_weights(b)
        assert weights.sum() == pytest.approx(1.0)
        assert (weights * power).sum() == pytest.approx(spectra.average_plane(power)[b])
    np.testing.assert_allclose(BINS.edges, 36 + 150 * np.arange(13))
    np.testing.assert_allclose(BINS.centres, 111 + 150 * np.arange(12))


def test_the_angle_of_a_mode_is_from_south_towards_east():
    """E_l = Q_l cos 2ϑ + U_l sin 2ϑ: a wave towards south-east has E = U, one along y or x ±Q."""
    ly, lx = np.array([-1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    cos2, sin2 = polarisation_angles(ly, lx)
    np.testing.assert_allclose(cos2, [0.0, 1.0, -1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(sin2, [1.0, 0.0, 0.0, -1.0], atol=1e-12)
