"""What a refining network learns from, and by which measure."""

import keras
import numpy as np
import pytest

from cobaya_cnnlens.pipeline.refining import PhaseRates
from cobaya_cnnlens.pipeline.sections.estimator_settings import Phase
from cobaya_cnnlens.pipeline.training import cosine_rate
from cobaya_cnnlens.reconstruct.features import FEATURES, turned
from cobaya_cnnlens.reconstruct.n0 import band_of, n0_iterated
from cobaya_cnnlens.reconstruct.refined import RefiningUNet
from cobaya_cnnlens.reconstruct.refining import (
    SYMMETRIES,
    FeatureBatches,
    ModeWeights,
    RefiningLearner,
    RefiningPatches,
    WeighedModes,
    targets_of,
)
from cobaya_cnnlens.simulate.instrument import Instrument, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry

GEOMETRY = PatchGeometry(n_pixels=32, size_deg=5.0, pad=0)
INSTRUMENT = Instrument(1.0, 1.0)


@pytest.fixture(scope="module")
def weights(fiducial):
    mask = cosine_mask(GEOMETRY, 0.5)
    return ModeWeights(GEOMETRY, INSTRUMENT, fiducial, np.mean(mask**2))


def white(power, seed=3, n=400):
    """Masked maps whose modes have C_L = power(L)."""
    l = 2.0 * np.pi * np.fft.fftfreq(32, GEOMETRY.pixel)
    ell = np.hypot(l[:, None], l[None, :])
    noise = np.random.default_rng(seed).standard_normal((n, 32, 32)) / GEOMETRY.pixel
    maps = np.fft.ifft2(np.fft.fft2(noise) * np.sqrt(power(ell))).real
    return cosine_mask(GEOMETRY, 0.5) * maps


def test_the_error_that_must_remain_counts_as_one(weights, fiducial):
    """κ̂ − κ of power C N/(C + N) in each mode has the loss 1, whatever the level."""
    band = band_of(GEOMETRY, fiducial, 72)
    for level in (1.0, 1.25**4):
        noise_at = Instrument(level, 1.0)

        def remaining(ell, noise_at=noise_at):
            nodes = np.geomspace(30, 4400, 40)
            noise = n0_iterated(nodes, fiducial, noise_at, band)
            noise = np.interp(np.maximum(ell, 30), nodes, noise)
            signal = np.interp(np.maximum(ell, 8), np.arange(len(fiducial.kk)), fiducial.kk)
            return signal * noise / (signal + noise)

        error = white(remaining)
        targets = targets_of(np.zeros_like(error), error, np.full(len(error), level), weights)
        loss = WeighedModes()(targets["kappa"], error[..., None].astype(np.float32))
        # Interpolation of N, and the mask's window over a steep spectrum.
        assert float(loss) == pytest.approx(1.0, abs=0.1)


def test_an_error_counts_where_little_is_known_to_remain(weights):
    at_low, at_high = weights.at(1.0), weights.at(10.0)
    assert at_low[0, 0] == 0
    assert (at_low >= 0).all()
    # More noise, more error forgiven; a level between takes the nearest one's.
    assert (at_high <= at_low).all()
    assert at_high.sum() < at_low.sum()
    assert weights.at(1.05) is weights.at(0.95)
    assert weights.at(0.0) is weights.at(0.3)


def some_patches(n=3, size=16):
    generator = np.random.default_rng(1)
    maps = generator.standard_normal((n, size, size, len(FEATURES))).astype(np.float16)
    kappa, e = generator.standard_normal((2, n, size, size)).astype(np.float32)
    return RefiningPatches(maps, kappa, e, np.array([1.0, 2.0, 5.0])[:n])


class LevelWeights:
    """In the place of :class:`ModeWeights`: every level has its own."""

    def at(self, level):
        return np.full((16, 16), level, np.float32)


def test_batches_are_patches_with_their_truth_and_one_symmetry():
    patches, weights = some_patches(), LevelWeights()
    seeds = np.random.SeedSequence(5).spawn(40)
    batches = FeatureBatches(patches, weights, seeds, 4)
    assert len(batches) == 40
    seen = set()
    for step in range(40):
        (features, symmetry), targets = batches[step]
        np.testing.assert_array_equal(features, batches[step][0][0])
        assert features.dtype == np.float16
        [number] = set(symmetry)
        seen.add(number)
        for maps, kappa, e in zip(features, targets["kappa"], targets["e"], strict=True):
            [i] = [i for i in range(3) if np.array_equal(patches.features[i], maps)]
            np.testing.assert_array_equal(e[..., 0], patches.e[i])
            np.testing.assert_array_equal(kappa[..., 0], patches.kappa[i])
            np.testing.assert_array_equal(kappa[..., 1], weights.at(patches.level[i]))
    assert len(seen) == 8


def test_a_learner_turns_there_and_back():
    """[features, symmetry] give what the network makes of the turned features, turned back."""
    keras.utils.set_random_seed(2)
    network = RefiningUNet(4, levels=2)
    network.set_weights([w + 0.02 * np.ones_like(w) for w in network.get_weights()])
    learner, maps = RefiningLearner(network), some_patches().features
    different = []
    for number, (turns, flip) in enumerate(SYMMETRIES):
        found = learner.predict_on_batch([maps, np.full(len(maps), number, np.int32)])
        there = network.predict_on_batch(turned(maps, turns, flip).astype(np.float32))
        for name in ("e", "kappa"):
            back = there[name][:, :, ::-1] if flip else there[name]
            back = np.rot90(back, -turns, axes=(1, 2))
            np.testing.assert_allclose(found[name], back, rtol=1e-4, atol=1e-6)
        different.append(found["kappa"])
    # Random weights know no symmetry: each of the eight gives another κ̂.
    for i in range(8):
        assert all(np.abs(different[i] - different[j]).max() > 1e-4 for j in range(i))


def test_rates_rise_and_fall_phase_by_phase():
    phases = [
        {"steps": 10, "learning_rate": 1.0, "final_rate": 0.2, "warmup": 4},
        {"steps": 6, "learning_rate": 0.1, "final_rate": 0.0, "warmup": 0},
    ]
    rates = PhaseRates(phases)
    again = PhaseRates.from_config(rates.get_config())
    expected = [
        cosine_rate(Phase(batch=1, **phase), step)
        for phase in phases
        for step in range(phase["steps"])
    ]
    for step, rate in enumerate(expected):
        assert float(rates(step)) == pytest.approx(rate, rel=1e-5)
        assert float(again(step)) == float(rates(step))


def test_the_loss_is_saved_by_name():
    loss = keras.losses.deserialize(keras.losses.serialize(WeighedModes()))
    assert isinstance(loss, WeighedModes)
