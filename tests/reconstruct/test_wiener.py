import numpy as np
import pytest
import scipy.fft

from cobaya_cnnlens.reconstruct.wiener import WienerFilter, variance_beyond
from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import Box

GEOMETRY = PatchGeometry(size_deg=0.5, n_pixels=8, pad=0)
INSTRUMENT = Instrument(noise_uk_arcmin=1.0, beam_fwhm_arcmin=3.0)


def spectra(lmax=5000):
    ell = np.arange(lmax + 1.0)
    return 1e-2 / (ell + 200.0), 1e-4 / (ell + 400.0)


def setup(border=4, seen=True):
    box = Box(GEOMETRY, INSTRUMENT, 2400, border)
    rms = np.full((8, 8), INSTRUMENT.noise_rms(GEOMETRY))
    if not seen:
        rms[2:4, 5] = np.inf
    return box, rms


def random_modes(box, generator):
    """Modes of a complex field within the band."""
    values = generator.standard_normal((2, box.n, box.n))
    return np.where(box.band, scipy.fft.fft2(values[0] + 1j * values[1]), 0.0)


def some_lensing(box, generator, size=1e-3):
    phi = scipy.fft.fft2(generator.standard_normal((box.n, box.n)))
    phi = np.where(box.band, phi / np.maximum(box.ell, 1) ** 2, 0.0)
    return phi * size / box.gradient(phi).std()


@pytest.mark.parametrize("lensed", [False, True])
def test_adjoint(lensed):
    generator = np.random.default_rng(1)
    box, rms = setup()
    wiener = WienerFilter(box, *spectra(), rms)
    positions = box.positions(some_lensing(box, generator)) if lensed else None
    x = random_modes(box, generator)
    x[0, 0] = 3.0 - 2.0j
    y = generator.standard_normal((box.n, box.n)) + 1j * generator.standard_normal((box.n, box.n))
    one = np.vdot(y, wiener.predict(x, positions))
    other = np.vdot(wiener.back(y, positions), x)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_displacements_are_those_of_a_fourier_sum():
    generator = np.random.default_rng(2)
    box, _ = setup()
    positions = box.positions(some_lensing(box, generator))
    modes = random_modes(box, generator)
    phase = positions.coordinates @ np.stack([box.ly.ravel(), box.lx.ravel()])
    direct = np.exp(1j * phase) @ modes.ravel() / box.n**2
    np.testing.assert_allclose(box.at(modes, positions).ravel(), direct, atol=1e-5 * direct.std())


def test_the_beam_mixes_in_what_lies_around_the_patch():
    """Beamed values on the patch are those of a field displaced everywhere, though it is evaluated
    on the patch and a border of the beam's reach alone."""
    generator = np.random.default_rng(6)
    box, _ = setup(border=20)
    assert len(box.region[0]) < box.n
    phi, modes = some_lensing(box, generator), random_modes(box, generator)
    at = np.arange(box.n) * box.pixel
    everywhere = np.stack(np.meshgrid(at, at, indexing="ij"), -1) + box.gradient(phi)
    phase = everywhere.reshape(-1, 2) @ np.stack([box.ly.ravel(), box.lx.ravel()])
    direct = (np.exp(1j * phase) @ modes.ravel() / box.n**2).reshape(box.n, box.n)
    found = box.crop(box.blur(box.at(modes, box.positions(phi))))
    expected = box.crop(box.blur(direct))
    np.testing.assert_allclose(found, expected, atol=0.015 * expected.std())


def test_an_unmasked_field_is_filtered_mode_by_mode():
    """With data on the whole box E_l → C b/(C b² + N) d_l, and the same for B."""
    box, rms = setup(border=0)
    clee, clbb = spectra()
    data = np.random.default_rng(3).standard_normal((2, 8, 8))
    data = data[0] + 1j * data[1]
    found = WienerFilter(box, clee, clbb, rms, tolerance=1e-10).filter(data, None)
    noise = (rms[0, 0] * box.pixel) ** 2
    blurred = np.conj(box.turn) * scipy.fft.fft2(data)
    mirrored = np.conj(np.roll(blurred[::-1, ::-1], 1, (0, 1)))
    e, b = (blurred + mirrored) / 2, (blurred - mirrored) / 2
    gains = [
        c * box.beam / (c * box.beam**2 + noise) for c in (box.spectrum(clee), box.spectrum(clbb))
    ]
    expected = gains[0] * e + gains[1] * b
    # The mean of Q + iU has no E or B: Q and U each have half the variance of larger scales.
    variance = 0.5 * variance_beyond(box, clee)
    expected[0, 0] = data.sum() * variance / (variance + rms[0, 0] ** 2 / box.n**2)
    np.testing.assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("lensed", [False, True])
def test_a_masked_field_is_the_gaussian_mean(lensed):
    """⟨x|d⟩ = S Aᵀ(A S Aᵀ + N)⁻¹ d in dense matrices, pixels unseen left out."""
    generator = np.random.default_rng(4)
    box, rms = setup(seen=False)
    wiener = WienerFilter(box, *spectra(), rms, tolerance=1e-9, limit=2000)
    positions = box.positions(some_lensing(box, generator)) if lensed else None
    seen = box.pad(np.isfinite(rms)).ravel()
    data = generator.standard_normal((2, box.n, box.n))
    data = np.where(seen.reshape(box.n, box.n), data[0] + 1j * data[1], 0.0)
    found = wiener.filter(data, positions)

    # Real unknowns: the maps E and B; white ones coloured by the root of their spectrum.
    roots = [np.sqrt(box.spectrum(cl)) / box.pixel for cl in spectra()]
    columns = []
    for part, root in zip((1.0, 1j), roots, strict=True):
        for k in range(box.n**2):
            unit = np.zeros(box.n**2)
            unit[k] = 1.0
            modes = root * scipy.fft.fft2(part * unit.reshape(box.n, box.n))
            columns.append((modes.ravel(), wiener.predict(modes, positions).ravel()[seen]))
    for part in (1.0, 1j):
        modes = np.zeros((box.n, box.n), complex)
        modes[0, 0] = part * box.n**2 * np.sqrt(0.5 * variance_beyond(box, spectra()[0]))
        columns.append((modes.ravel(), wiener.predict(modes, positions).ravel()[seen]))
    modes, images = (np.array(c).T for c in zip(*columns, strict=True))
    a = np.concatenate([images.real, images.imag])
    d = np.concatenate([data.ravel()[seen].real, data.ravel()[seen].imag])
    noise = np.eye(len(d)) * rms[0, 0] ** 2
    expected = modes @ (a.T @ np.linalg.solve(a @ a.T + noise, d))
    np.testing.assert_allclose(found.ravel(), expected, atol=2e-4 * np.abs(expected).max(), rtol=0)


def test_scales_beyond_the_box_have_the_power_of_one_mode():
    """Of white power C the modes hold C/area each, and so does what lies around l = 0."""
    box = Box(PatchGeometry(size_deg=5.0, n_pixels=16, pad=0), INSTRUMENT, 500, 4)
    expected = 2.0 / (box.n * box.pixel) ** 2
    assert variance_beyond(box, np.full(500, 2.0)) == pytest.approx(expected, rel=0.05)


def test_what_is_larger_than_the_patch_is_no_lensing():
    """A constant Q + iU of the size that the filter expects leaves the slope nearly as it was; a
    filter of the patch's own modes takes it for lensing."""
    generator = np.random.default_rng(7)
    geometry = PatchGeometry(size_deg=2.5, n_pixels=32, pad=0)
    instrument = Instrument(noise_uk_arcmin=1.0, beam_fwhm_arcmin=3.0)
    box = Box(geometry, instrument, 2000, 8)
    clee, clbb = spectra()
    rms = np.full((32, 32), instrument.noise_rms(geometry))
    wiener = WienerFilter(box, clee, clbb, rms, tolerance=1e-6, limit=1000)
    field = np.sqrt(box.spectrum(clee)) / box.pixel
    field = field * scipy.fft.fft2(generator.standard_normal((box.n, box.n)))
    constant = np.sqrt(variance_beyond(box, clee)) * np.exp(0.7j)

    def slope(added):
        data = box.pad(box.crop(wiener.predict(field, None)) + added)
        return wiener.slope(data, wiener.filter(data, None), None)

    alone, changed = slope(0.0), slope(constant)
    assert np.linalg.norm(changed - alone) < 0.1 * np.linalg.norm(alone)


def test_slope_is_that_of_the_probability():
    generator = np.random.default_rng(5)
    box, rms = setup()
    wiener = WienerFilter(box, *spectra(), rms, tolerance=1e-9, limit=2000)
    phi, direction = (some_lensing(box, generator) for _ in range(2))
    data = box.pad(generator.standard_normal((8, 8)) + 1j * generator.standard_normal((8, 8)))
    x = wiener.filter(data, box.positions(phi))

    def log_probability(step):
        """At fixed X: its own change is of second order at the maximum."""
        seen = wiener.predict(x, box.positions(phi + step * direction))[:8, :8]
        return -0.5 * np.sum(np.abs(data[:8, :8] - seen) ** 2) / rms[0, 0] ** 2

    step = 1e-3
    change = (log_probability(step) - log_probability(-step)) / (2 * step)
    slope = wiener.slope(data, x, box.positions(phi))
    assert change == pytest.approx(np.vdot(direction, slope).real / box.n**2, rel=1e-3)
