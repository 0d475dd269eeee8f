"""Features transform as the patch does, and are what their names say."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from cobaya_cnnlens.reconstruct.features import FEATURES, PASSES, features_of, turned
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.resunet import apply_symmetry
from cobaya_cnnlens.simulate.instrument import Instrument, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies

GEOMETRY = PatchGeometry(n_pixels=64, size_deg=2.5, pad=0)
INSTRUMENT = Instrument(1.0, 1.0, taper_deg=0.3)


@pytest.fixture(scope="module")
def patch(fiducial):
    """Estimator, masked Q and U of one patch with a hole and a gradient in depth, and its rms."""
    skies = PeriodicSkies(GEOMETRY, INSTRUMENT, fiducial)
    generator = np.random.default_rng(3)
    seen = skies.lensed(skies.draw("e", generator), skies.draw("phi", generator))
    rms = INSTRUMENT.noise_rms(GEOMETRY) * np.linspace(1.0, 2.0, 64)[:, None] * np.ones(64)
    seen = seen + rms * skies.noise(generator) / INSTRUMENT.noise_rms(GEOMETRY)
    rms[20:24, 40:44] = np.inf
    mask = cosine_mask(GEOMETRY, INSTRUMENT.taper_deg)
    estimator = MAPLensing(GEOMETRY, INSTRUMENT, mask, fiducial, PASSES, threads=1)
    return estimator, (mask * seen.real), (mask * seen.imag), rms


def of(estimator, q, u, rms):
    return next(features_of(estimator, q[None], u[None], rms[None], threads=1))


@pytest.mark.parametrize(("turns", "flip"), [(1, False), (0, True), (3, True)])
def test_features_turn_with_the_patch(patch, turns, flip):
    estimator, q, u, rms = patch
    here = of(estimator, q, u, rms)
    maps = apply_symmetry(np.stack([q, u], -1), turns, flip, spin2=True)
    moved = apply_symmetry(rms[..., None], turns, flip, spin2=False)[..., 0]
    there = of(estimator, maps[..., 0], maps[..., 1], moved)
    expected = turned(here, turns, flip)
    for i, name in enumerate(FEATURES):
        size = np.sqrt(np.mean(expected[..., i] ** 2))
        np.testing.assert_allclose(
            there[..., i], expected[..., i], atol=0.1 * size, err_msg=name, rtol=0
        )


def test_the_slopes_divergence_is_the_slope(patch):
    """−∇·Re[(b ∗ N⁻¹ r)* ∂P] of the last pass, where the noise is even."""
    estimator, q, u, _ = patch
    even = np.full((64, 64), INSTRUMENT.noise_rms(GEOMETRY))
    found = of(estimator, q, u, even)
    last = estimator.last(q, u, even)
    box = estimator.box
    modes = last.filter.slope(last.data, last.modes, last.positions)
    slope = box.crop(scipy.fft.ifft2(modes).real) * even
    parts = [1e4 * found[..., FEATURES.index(f"slope_{k}")] for k in "yx"]
    divergence = -sum(np.gradient(p, GEOMETRY.pixel, axis=a) for a, p in enumerate(parts))
    inner = np.s_[12:-12, 12:-12]  # where the mask is one
    smooth = [scipy.ndimage.gaussian_filter(m, 3)[inner] for m in (slope, divergence)]
    assert np.corrcoef(*[s.ravel() for s in smooth])[0, 1] > 0.98
    assert np.std(smooth[1]) == pytest.approx(np.std(smooth[0]), rel=0.1)


def test_holes_give_nothing(patch):
    estimator, q, u, rms = patch
    found = of(estimator, q, u, rms)
    hole = np.isinf(rms)
    for name in ("q", "u", "residual_q", "slope_x", "noise", "seen"):
        assert (found[hole][:, FEATURES.index(name)] == 0).all(), name
    filled = np.where(hole, 1e3, q)
    np.testing.assert_array_equal(of(estimator, filled, u, rms), found)
