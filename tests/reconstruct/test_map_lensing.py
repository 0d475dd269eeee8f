"""The MAP lensing potential: where its steps end, how fast, and what noise maps do."""

import numpy as np
import pytest
import scipy.fft

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.reconstruct import map_lensing
from cobaya_cnnlens.reconstruct.map_lensing import Ascent, MAPLensing
from cobaya_cnnlens.simulate.instrument import Instrument, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import Box, PeriodicSkies

GEOMETRY = PatchGeometry(n_pixels=64, size_deg=2.5, pad=0)
INSTRUMENT = Instrument(2.0, 1.0, taper_deg=0.3)
MASK = cosine_mask(GEOMETRY, INSTRUMENT.taper_deg)


@pytest.fixture(scope="module")
def seen(fiducial):
    """Masked Q and U of one patch, and its true κ."""
    skies = PeriodicSkies(GEOMETRY, INSTRUMENT, fiducial)
    generator = np.random.default_rng(11)
    phi = skies.draw("phi", generator)
    maps = skies.lensed(skies.draw("e", generator), phi) + skies.noise(generator)
    return MASK * maps.real, MASK * maps.imag, skies.convergence(phi)


def test_steps_reach_the_top_of_a_parabola():
    """ln p = Σ (g x − ½ h x²) with a curvature h that is guessed wrong by up to two."""
    generator = np.random.default_rng(1)
    shape = (8, 8)
    slope = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    curvature = generator.uniform(1.0, 10.0, shape)
    guess = curvature * generator.uniform(0.5, 2.0, shape)
    ascent, x, left = Ascent(6), np.zeros(shape, complex), []
    for _ in range(12):
        x = x + ascent.step(x, slope - curvature * x, guess)
        left.append(np.abs(x - slope / curvature).max())
    assert left[-1] < 1e-3 * left[0]


@pytest.mark.parametrize("passes", [1, 4])
def test_kappa_does_not_follow_b_modes_without_weight(seen, fiducial, passes):
    """B modes at l < 500, as strong as those of lensing, change κ̂ by a few per cent of what they
    change if they have their weight."""
    q, u, _ = seen
    wide = PatchGeometry(n_pixels=128, size_deg=5.0, pad=0)
    box = Box(wide, INSTRUMENT, 4000, 0)
    modes = scipy.fft.fft2(np.random.default_rng(4).standard_normal((128, 128)))
    level = np.sqrt(fiducial.lensed_bb[200]) / wide.pixel
    b = level * np.where((box.ell > 100) & (box.ell < 500), modes, 0.0)
    p = MASK * scipy.fft.ifft2(box.turn * 1j * b)[:64, :64]
    changes = []
    for lmin_b in (0, 500):
        patches = GEOMETRY, INSTRUMENT, MASK, fiducial
        estimator = MAPLensing(*patches, passes, 1, tolerances=(1e-5,), lmin_b=lmin_b)
        rms = estimator.noise_rms()
        own, added = (
            estimator.last(*maps, rms).kappa for maps in ((q, u), (q + p.real, u + p.imag))
        )
        changes.append(np.std(MASK * (added - own)))
    assert changes[1] < 0.1 * changes[0]


def test_steps_end_at_the_maximum(seen, fiducial):
    """There the slope of ln p(d | φ) is the pull of the prior, φ/C. Four passes go far."""
    q, u, true = seen
    estimator = MAPLensing(GEOMETRY, INSTRUMENT, MASK, fiducial, 12, 1, tolerances=(1e-4,))
    found = list(estimator.passes(q, u, estimator.noise_rms()))
    last, box = found[-1], estimator.box
    slope = last.filter.slope(last.data, last.modes, last.positions) / box.pixel**2
    power, (_, noise) = box.spectrum(fiducial.pp), estimator._filters_for(2.0)[-1]
    well = power > 0.2 * noise
    # In units of the expected width of the posterior of every mode.
    width = 1.0 / np.sqrt(1.0 / power[well] + 1.0 / noise[well])
    pull = width * last.phi[well] / power[well]
    left = width * slope[well] - pull
    assert np.linalg.norm(left) < 0.1 * np.linalg.norm(pull)

    few = MAPLensing(GEOMETRY, INSTRUMENT, MASK, fiducial, 4, threads=1)
    quick = few.last(q, u, few.noise_rms()).kappa

    def correlation(a, b):
        return np.corrcoef((MASK * a).ravel(), (MASK * b).ravel())[0, 1]

    assert correlation(quick, last.kappa) > 0.9 > correlation(found[0].kappa, last.kappa)
    assert correlation(quick, true) > correlation(found[0].kappa, true)


def test_noise_maps_are_each_patchs_own(seen, fiducial):
    """A map of even noise is the number; deeper patches know more; an order of patches is none."""
    q, u, _ = seen
    estimator = MAPLensing(GEOMETRY, INSTRUMENT, MASK, fiducial, 3)
    rms = float(INSTRUMENT.noise_rms(GEOMETRY))
    maps = np.stack([np.full((64, 64), rms), np.full((64, 64), 3.0 * rms)])
    both = estimator.reconstruct(np.stack([q, q]), np.stack([u, u]), maps)
    np.testing.assert_array_equal(both[0], estimator.reconstruct(q[None], u[None])[0])
    turned = estimator.reconstruct(np.stack([q, q]), np.stack([u, u]), maps[::-1])
    np.testing.assert_array_equal(both, turned[::-1])
    # A filter told of more noise trusts the data less.
    assert np.std(both[1]) < 0.9 * np.std(both[0])


def test_what_cannot_be_done_is_told(seen, fiducial):
    q, u, _ = seen
    with pytest.raises(CNNLensError, match="passes is 0"):
        MAPLensing(GEOMETRY, INSTRUMENT, MASK, fiducial, 0)
    estimator = MAPLensing(GEOMETRY, INSTRUMENT, MASK, fiducial, 1)
    with pytest.raises(CNNLensError, match="without a pixel that was seen"):
        estimator.reconstruct(q[None], u[None], np.full((64, 64), np.inf))


def test_single_precision_costs_nothing(seen, fiducial, monkeypatch):
    """The first pass against the same filter in double precision at the same tolerance."""
    q, u, _ = seen
    kappa = []
    for precision in ("single", "double"):
        monkeypatch.setattr(
            map_lensing, "Box", lambda *a, p=precision, **k: Box(*a, **k | {"precision": p})
        )
        one = MAPLensing(GEOMETRY, INSTRUMENT, MASK, fiducial, 1, 1, tolerances=(1e-4,))
        kappa.append(one.reconstruct(q[None], u[None])[0])
    inside = np.s_[8:-8, 8:-8]
    modes = [scipy.fft.rfft2(k[inside])[:6, :6] for k in kappa]
    assert 0 < np.abs(modes[0] - modes[1]).max() < 0.1 * np.abs(modes[1]).max()


def test_the_less_noise_the_more_is_known(fiducial):
    """Of the same sky; with a tolerance as at 1 µK' the first pass at 0.3 µK' is lost."""
    left = []
    for level in (1.0, 0.3):
        instrument = Instrument(level, 1.0, taper_deg=0.3)
        skies = PeriodicSkies(GEOMETRY, instrument, fiducial)
        generator = np.random.default_rng(5)
        phi = skies.draw("phi", generator)
        maps = skies.lensed(skies.draw("e", generator), phi) + skies.noise(generator)
        true = MASK * skies.convergence(phi)
        estimator = MAPLensing(GEOMETRY, instrument, MASK, fiducial, 4, threads=1)
        rms = estimator.noise_rms()
        passes = estimator.passes(MASK * maps.real, MASK * maps.imag, rms)
        left.append([np.std(MASK * each.kappa - true) / np.std(true) for each in passes])
    assert left[1][-1] < min(left[1][0], 0.9 * left[0][-1])
    assert left[1][0] < 1.0
