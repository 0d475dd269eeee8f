"""Weights of a survey's tiles against the scatter of mock surveys: bandpowers of normal modes."""

from dataclasses import replace

import numpy as np
import pytest

from cobaya_cnnlens.calibrate.response import PatchBandpowers
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.maps.weights import (
    TileWeights,
    effective_number,
    neighbour_correlation,
    shares,
    weighted,
)

N_TILES, N_BINS = 6, 4


def drawn(generator, tiles, response, noise, signal, n_modes):
    """Bandpowers of patches seen as tiles: κ̂ = R(κ + n) over so many modes of each bin."""
    shape = (len(tiles), n_modes, N_BINS)
    kappa = np.sqrt(signal) * generator.standard_normal(shape)
    extra = np.sqrt(noise[tiles])[:, None] * generator.standard_normal(shape)
    found = response[tiles][:, None] * (kappa + extra)
    return PatchBandpowers((found**2).mean(1), (kappa * found).mean(1), (kappa**2).mean(1))


SIGNAL = np.array([4.0, 2.0, 1.0, 0.5])
NOISE = np.array([0.5, 6.0, 0.5, 2.0, 6.0, 2.0])[:, None] * np.ones(N_BINS)
RESPONSE = np.array([0.9, 0.3, 0.9, 0.6, 0.3, 0.6])[:, None] * np.array([1.0, 0.9, 0.8, 0.7])
LABEL = np.array([0, 2, 0, 1, 2, 1])
MODES = 40


@pytest.fixture(scope="module")
def weights():
    tiles = np.tile(np.arange(N_TILES), 1000)
    found = drawn(np.random.default_rng(1), tiles, RESPONSE, NOISE, SIGNAL, MODES)
    return TileWeights.of(found, tiles, LABEL, np.ones(N_TILES))


def test_weights_are_the_inverse_variance(weights):
    """w ∝ 1/(C + N)², R as it was put in; a tile of half the modes has half the weight."""
    expected = 1.0 / (SIGNAL + NOISE) ** 2
    np.testing.assert_allclose(weights.weight, expected / expected.sum(0), rtol=0.15)
    np.testing.assert_allclose(weights.response[LABEL], RESPONSE, rtol=0.05)
    tiles = np.tile(np.arange(N_TILES), 50)
    found = drawn(np.random.default_rng(2), tiles, RESPONSE, NOISE, SIGNAL, MODES)
    modes = np.array([1.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    half = TileWeights.of(found, tiles, LABEL, modes)
    np.testing.assert_allclose(half.weight[2], 0.5 * half.weight[0], rtol=1e-12)
    blind = replace(found, cross=-found.cross)
    with pytest.raises(CNNLensError, match=r"not positive in bins \[0, 1, 2, 3\]"):
        TileWeights.of(blind, tiles, LABEL, modes)


def test_the_sum_is_unbiased_and_scatters_as_its_covariance_says(weights):
    """6,000 mock surveys of these tiles, debiased by N of simulated patches: their mean is the
    signal, their scatter what the simulated patches say, and less than that of equal weights."""
    generator = np.random.default_rng(3)
    tiles = np.tile(np.arange(N_TILES), 2000)
    test = drawn(generator, tiles, RESPONSE, NOISE, SIGNAL, MODES)
    auto = weights.normalised(test.auto, tiles)
    auto, truth = (weighted(x, tiles, weights.weight, LABEL) for x in (auto, test.truth))
    noise = (auto - truth).mean(0)
    rows = np.tile(np.arange(N_TILES), 6000)
    data = drawn(generator, rows, RESPONSE, NOISE, SIGNAL, MODES).auto.reshape(-1, N_TILES, N_BINS)
    surveys = np.array([weights.combine(auto).mean(0) for auto in data])
    error = np.hypot(surveys.std(0) / np.sqrt(6000), (auto - truth).std(0) / np.sqrt(12000))
    assert (np.abs(surveys.mean(0) - noise - SIGNAL) < 4 * error).all()
    covariance = np.cov(auto, rowvar=False) / N_TILES
    np.testing.assert_allclose(covariance.diagonal(), surveys.var(0, ddof=1), rtol=0.08)
    np.testing.assert_allclose(np.sqrt(covariance.diagonal() * MODES / 2), best(), rtol=0.06)
    # What u x itself scatters by is more, in the last bin by a half.
    raw = shares(tiles, weights.weight) * weights.normalised(test.auto, tiles)
    assert raw.var(0)[-1] > 1.5 * auto.var(0)[-1]


def best():
    return np.sqrt(1.0 / (1.0 / (SIGNAL + NOISE) ** 2).sum(0))


def test_few_patches_are_unbiased_too():
    """Two of each class: the covariance over 2,000 draws is that of many, its class means taken off
    and all; and its own scatter is that of the effective number."""
    generator = np.random.default_rng(4)
    tiles, weight = np.arange(N_TILES), np.array([4.0, 1.0, 3.0, 2.0, 1.0, 2.0])[:, None]
    weight = weight / weight.sum()
    sigma = np.array([0.5, 2.0, 1.0])
    mean = np.array([0.0, 5.0, -3.0])
    n = 30
    tiles = np.tile(tiles, n // N_TILES)
    values = mean[LABEL[tiles]][:, None] + sigma[LABEL[tiles]][:, None] * (
        generator.standard_normal((2000, n, 1))
    )
    found = np.array([weighted(v, tiles, weight, LABEL).var(ddof=1) for v in values])
    exact = N_TILES * (weight[:, 0] ** 2 * sigma[LABEL] ** 2).sum()
    assert found.mean() == pytest.approx(exact, rel=4 * found.std() / exact / np.sqrt(2000))
    number = effective_number(tiles, weight, LABEL, sigma[:, None] ** 2)
    assert number == pytest.approx(2 / (found.std() / found.mean()) ** 2, rel=0.15)
    assert number < n
    # A mean keeps its value, whatever the classes.
    means = [weighted(v, tiles, weight, LABEL).mean() for v in values[:5]]
    np.testing.assert_allclose(means, [(shares(tiles, weight) * v).mean() for v in values[:5]])


def test_tiles_that_lack_patches_are_made_up_for():
    """u of patches of some tiles only has mean one; of a constant the sum is that constant."""
    weight = np.array([[0.5], [0.3], [0.2]])
    tiles = np.array([0, 0, 2])
    np.testing.assert_allclose(shares(tiles, weight)[:, 0], 3 * np.array([0.25, 0.25, 0.2]) / 0.7)
    found = weighted(np.full((3, 1, 2), 7.0), tiles, weight, np.array([0, 1, 1]))
    np.testing.assert_allclose(found, 7.0)


def test_the_correlation_of_neighbours():
    """Of .3, put in; classes of other mean and scatter do not add to it."""
    generator = np.random.default_rng(5)
    n = 6000
    common = np.repeat(generator.standard_normal((n // 2, N_BINS)), 2, axis=0)
    own = generator.standard_normal((n, N_BINS))
    tiles = np.tile(np.arange(N_TILES), n // N_TILES)
    values = np.sqrt(0.3) * common + np.sqrt(0.7) * own
    values = 10.0 * LABEL[tiles][:, None] + (1.0 + LABEL[tiles][:, None]) * values
    found, error = neighbour_correlation(values, tiles, LABEL)
    assert error < 0.02
    assert found == pytest.approx(0.3, abs=4 * error)


def test_neighbours_of_one_class_count_their_mean():
    """Two of four independent patches about the mean of the four have a correlation of −1/3."""
    generator = np.random.default_rng(7)
    tiles = np.repeat(np.arange(6), 4)
    found = [
        neighbour_correlation(generator.standard_normal((24, 8)), tiles, np.arange(6))[0]
        for _ in range(400)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
