"""Instruments drawn at random are what their distribution says."""

import numpy as np
import pytest

from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.varied import Variation

GEOMETRY = PatchGeometry(n_pixels=32, size_deg=2.0, pad=0)
INSTRUMENT = Instrument(1.0, 1.0)


def draws(variation, n=600):
    generator = np.random.default_rng(4)
    pairs = [variation.draw(GEOMETRY, INSTRUMENT, generator) for _ in range(n)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def test_levels():
    level, rms = draws(Variation(depth_share=0.0, hole_share=0.0))
    pixel_arcmin = 2.0 * 60 / 32
    np.testing.assert_allclose(rms, level[:, None, None] / pixel_arcmin * np.ones((32, 32)))
    assert np.mean(level == 1.0) == pytest.approx(0.4, abs=0.06)
    assert np.mean(level == 0.3) == pytest.approx(0.08, abs=0.04)
    others = np.log(level[(level != 1.0) & (level != 0.3)] / 0.3) / np.log(10.0 / 0.3)
    assert others.min() > 0
    assert others.max() < 1
    assert others.mean() == pytest.approx(0.5, abs=0.05)


def test_depth_varies_along_one_direction_and_keeps_the_level_in_the_middle():
    _level, rms = draws(Variation(as_it_is=1.0, noiseless=0.0, depth_share=1.0, hole_share=0.0), 50)
    relative = rms * (2.0 * 60 / 32)
    middle = relative[:, 15:17, 15:17].mean((1, 2))
    np.testing.assert_allclose(middle, 1.0, atol=0.02)
    ratio = relative.max((1, 2)) / relative.min((1, 2))
    assert ratio.min() > 1.0
    assert 2.5 < ratio.max() <= 4.0 + 1e-9
    # Opposite pixels have opposite logarithms.
    np.testing.assert_allclose(relative * relative[:, ::-1, ::-1], 1.0, rtol=1e-12)


def test_holes_have_the_area_of_their_diameters():
    variation = Variation(
        as_it_is=1.0, noiseless=0.0, depth_share=0.0, hole_share=1.0, holes=1, hole_arcmin=(20, 20)
    )
    _, rms = draws(variation)
    hidden = np.isinf(rms).mean()
    # π 10′² over 120′²; some hang over the edge.
    assert hidden == pytest.approx(np.pi * 100 / 120**2, rel=0.1)
    assert np.isfinite(draws(Variation(hole_share=0.0), 20)[1]).all()


def test_tapers_come_in_turn():
    tapers = [Variation().taper(batch, INSTRUMENT) for batch in range(12)]
    assert tapers == [0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 0.5, 0.75, 0.5, 0.5, 0.5, 1.0]
    assert Variation(taper_share=0.0).taper(3, INSTRUMENT) == 0.5
