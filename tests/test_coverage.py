"""Errors of coverage where surveys share skies, and ranks where all share a calibration."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.stats import kstest, norm

from cobaya_cnnlens import products
from cobaya_cnnlens.config import Config
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.report import tables
from cobaya_cnnlens.report.coverage import (
    CoverageTable,
    SimulatedRanks,
    coverage_table,
    cumulative,
    ranks,
    simulate_ranks,
)
from cobaya_cnnlens.report.text import format_coverage

from .conftest import synthetic_release

HASH = "a" * 64
PRIOR = (0.1085, 0.1285)
NONE = SimulatedRanks(np.zeros((9, 10)), np.zeros((9, 2)))


class Linear(tables.Omch2Likelihood):
    """µ_b = s_b ω_c in two bins."""

    def __init__(self):
        self._model = CubicSpline([0.0, 0.1, 0.2, 0.3], np.outer([0.0, 0.1, 0.2, 0.3], [1.0, 0.5]))


def surveys_of_skies(generator, n_skies, each, correlation):
    """A table of surveys whose estimates, with unit error, share a part with those of their sky."""
    shared = np.repeat(generator.standard_normal(n_skies), each)
    own = generator.standard_normal(n_skies * each)
    off = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    ones = np.ones_like(off)
    sky = np.repeat(np.arange(n_skies), each)
    return CoverageTable(1, PRIOR, sky, 0 * ones, off, ones, norm.cdf(off), off, ones, NONE)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_errors_are_those_of_skies(correlation):
    """The scatter of the numbers over many sets of surveys is the error that one set states, and
    that of the mean is √[(ρ + (1 − ρ)/m)/n], with n skies of m surveys."""
    generator = np.random.default_rng(1)
    n, m = 40, 10
    sets = [surveys_of_skies(generator, n, m, correlation) for _ in range(150)]
    for number in (lambda t: t.covered(0.68), lambda t: t.bias(), lambda t: t.scatter()):
        values, errors = np.array([number(t) for t in sets]).T
        # 150 sets know their scatter to 6%, and 40 skies theirs to 11% each.
        assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.15)
    bias = np.mean([t.bias()[1] for t in sets])
    expected = np.sqrt((correlation + (1 - correlation) / m) / n)
    assert bias == pytest.approx(expected, rel=0.04)
    # Taken for independent, they would be known to much less.
    binomial = np.sqrt(0.68 * 0.32 / (n * m))
    covered = np.mean([t.covered(0.68)[1] for t in sets])
    assert (
        covered == pytest.approx(binomial, rel=0.1) if not correlation else covered > 1.4 * binomial
    )
    assert np.mean([t.covered(0.68)[0] for t in sets]) == pytest.approx(0.68, abs=0.01)


def test_surveys_of_one_sky_have_no_error():
    table = surveys_of_skies(np.random.default_rng(2), 1, 20, 0.0)
    assert np.isnan([table.covered(0.68)[1], table.bias()[1], table.scatter()[1]]).all()
    assert "one sky alone gives none" in format_coverage(table)


def test_skies_of_different_numbers_of_surveys_weigh_by_them():
    """A sky is drawn with all of its surveys: ten of one sky and one of another are two draws."""
    off = np.array([1.0] * 10 + [0.0])
    sky = np.array([0] * 10 + [1])
    one = np.ones(11)
    table = CoverageTable(1, PRIOR, sky, 0 * one, off, one, one, off, one, NONE)
    # Means of two draws: 0, 10/11, 1 with 1/4, 1/2, 1/4; and twice the variance.
    means = np.array([0.0, 10 / 11, 10 / 11, 1.0])
    assert table.bias()[1] == pytest.approx(means.std() * np.sqrt(2), rel=0.05)
    assert table.bias()[0] == pytest.approx(10 / 11)


def test_ranks_of_gaussian_posteriors():
    """Far from the prior's ends the rank of the truth is the normal probability below it."""
    table, grid = Linear(), np.linspace(0.1, 0.14, 2001)
    covariance = np.diag([1e-6, 4e-6])
    sigma = table.sigma(0.12, covariance)
    assert sigma == pytest.approx((1e6 + 0.25 * 0.25e6) ** -0.5)
    data = table.model(np.full(5, 0.12))
    truth = 0.12 + sigma * np.array([-2.0, -1.0, 0.0, 0.5, 3.0])
    for scale in (1.0, 0.8):
        probability, below = cumulative(table, data, covariance, grid, scale)
        np.testing.assert_allclose(probability.sum(1), 1.0)
        found = ranks(grid, below, truth)
        width = np.sqrt(1 / scale)
        np.testing.assert_allclose(found, norm.cdf((truth - 0.12) / sigma / width), atol=1e-4)
    # At the ends of the prior, nothing and everything.
    np.testing.assert_allclose(ranks(grid, below[:2], grid[[0, -1]]), [0.0, 1.0])


def test_ranks_under_a_shared_calibration_error():
    """p of right surveys is uniform where all share an error of the calibration, a tenth of a
    survey's variance; taken for independent, the same ranks would be refused too often."""
    generator = np.random.default_rng(3)
    table = Linear()
    own = np.diag([1e-6, 4e-6])
    shared = 0.1 * own
    n_skies, each = 15, 4
    sky = np.repeat(np.arange(n_skies), each)
    p_values, naive = [], []
    for _ in range(80):
        truth = np.repeat(generator.uniform(*PRIOR, n_skies), each)
        # Data as the model has them, of a calibration of their own.
        mean = table.model(truth) + generator.multivariate_normal(np.zeros(2), shared)
        data = mean + generator.multivariate_normal(np.zeros(2), own, len(truth))
        _, below = cumulative(table, data, own + shared, np.linspace(*PRIOR, 501), 1.0)
        rank = ranks(np.linspace(*PRIOR, 501), below, truth)
        sets = simulate_ranks(table, truth, own, shared, PRIOR, 1.0, generator, 79)
        one = np.ones_like(truth)
        found = CoverageTable(1, PRIOR, sky, truth, one, one, rank, truth, one, sets)
        p_values.append(found.uniformity)
        naive.append(kstest(rank, "uniform").pvalue)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(naive) < 0.05) > 0.1
    assert np.mean(np.array(p_values) <= 0.05) <= 0.125


def test_simulated_sets_without_a_shared_error_are_uniform():
    """Truths even over the prior: intervals hold 68 and 95%, tenths a tenth each; with a shared
    error every set is off in its own way, but not all together."""
    generator = np.random.default_rng(4)
    table = Linear()
    own = np.diag([1e-6, 4e-6])
    truth = np.linspace(*PRIOR, 2001)[1::2]
    spread = {}
    for part in (1e-9, 0.3):
        found = simulate_ranks(table, truth, own, part * own, PRIOR, 1.0, generator, 60)
        np.testing.assert_allclose(found.covered.mean(0), [0.68, 0.95], atol=0.02)
        assert (found.tenths.sum(1) == 1000).all()
        spread[part] = found.tenths.std(0).mean()
        off = np.abs(found.tenths.mean(0) - 100.0)
        assert (off < 4 * spread[part] / np.sqrt(60)).all(), (found.tenths.mean(0), spread)
    assert spread[1e-9] == pytest.approx(np.sqrt(100 * 0.9), rel=0.2)
    assert spread[0.3] > 2 * spread[1e-9]


@pytest.fixture
def cut(small_config, monkeypatch):
    """Coverage skies of a release whose calibration error is as large as a survey's scatter."""
    monkeypatch.setattr(tables, "OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14]))
    content = small_config.model_dump(mode="json")
    content["coverage"] = {"skies": 12, "patches_each": 8}
    config = Config.model_validate(content)
    release = synthetic_release(
        4, n_patches=8, n_sim=10**6, provenance={"network_sha256": HASH}, response=RESPONSE
    )
    own = release.patch_covariance / 400
    release = replace(
        release, patch_covariance=own, noise_covariance=own / 16, derivative_covariance=own / 16
    )
    table = tables.Omch2Likelihood(config, BandpowerLikelihood(release))
    generator = np.random.default_rng(5)
    calibration = generator.multivariate_normal(np.zeros(4), own / 8)
    data = []
    for i in range(12):
        scatter = generator.multivariate_normal(np.zeros(4), own, size=20)
        mean = table.model(config.coverage_cosmology(i).omch2) + calibration
        auto = (mean + scatter + release.noise) * RESPONSE**2
        recipe = config.coverage_recipe(i, HASH)
        arrays = {"auto": auto, "truth": auto}
        products.write_product(config.coverage_path(i), "coverage", recipe, arrays)
        data += [(mean + scatter)[:8].mean(0), (mean + scatter)[8:16].mean(0)]
    return config, release, table, np.array(data), own


RESPONSE = np.array([0.8, 0.7, 0.6, 0.4])


def test_a_table_from_products(cut):
    """Twelve skies of 20 patches are 24 surveys of 8; every column from the data's closed form."""
    config, release, table, data, own = cut
    found = coverage_table(config, HASH, release)
    assert found.n_skies == 12
    assert found.sky.tolist() == [i // 2 for i in range(24)]
    truth = np.repeat([config.coverage_cosmology(i).omch2 for i in range(12)], 2)
    np.testing.assert_array_equal(found.truth, truth)
    covariance = own / 8 + own / 16 + own / 16
    expected = [
        (s @ np.linalg.inv(covariance) @ s) ** -0.5 for s in (table.slope(t) for t in truth)
    ]
    np.testing.assert_allclose(found.expected, expected, rtol=1e-6)
    best, _ = table.maximum(data, covariance)
    np.testing.assert_allclose(found.best, best, rtol=1e-9)
    grid = np.linspace(*PRIOR, 4001)
    inverse = np.linalg.inv(covariance) * BandpowerLikelihood(release).hartlap
    for k in (0, 7, 23):
        off = data[k] - table.model(grid)
        posterior = np.exp(-0.5 * np.einsum("gb,bc,gc->g", off, inverse, off))
        posterior /= posterior.sum()
        assert found.mean[k] == pytest.approx(posterior @ grid, rel=1e-5)
        sigma = np.sqrt(posterior @ (grid - posterior @ grid) ** 2)
        assert found.sigma[k] == pytest.approx(sigma, rel=1e-3)
        assert found.rank[k] == pytest.approx(posterior[grid < truth[k]].sum(), abs=2e-3)
    # Half of the variance is the calibration's, which all surveys share.
    assert found.simulated.covered[:, 0].std() > 1.7 * np.sqrt(0.68 * 0.32 / 24)
    assert found.uniformity > 0.01
    assert found.tenths.sum() == 24
    again = coverage_table(config, HASH, release)
    np.testing.assert_array_equal(again.simulated.tenths, found.simulated.tenths)
    text = format_coverage(found)
    assert "24 disjoint surveys of 8 patches from 12 skies" in text
    assert "block bootstrap over the skies" in text
    part, error = found.covered(0.68)
    assert f"68% interval holds the truth in {100 * part:.1f} +- {100 * error:.1f}% of" in text
    single = coverage_table(config, HASH, release, patches_each=20)
    assert len(single.rank) == 12
    with pytest.raises(CNNLensError, match="a sky has 20 patches, a survey 21"):
        coverage_table(config, HASH, release, patches_each=21)


def test_a_release_that_is_too_sure_is_found_out(cut):
    """With a ninth of the covariance intervals are too narrow and pulls scatter by three."""
    config, release, *_ = cut
    sure = replace(
        release,
        patch_covariance=release.patch_covariance / 9,
        noise_covariance=release.noise_covariance / 9,
        derivative_covariance=release.derivative_covariance / 9,
    )
    found = coverage_table(config, HASH, sure)
    assert found.covered(0.68)[0] < 0.5
    assert found.scatter()[0] == pytest.approx(3.0, abs=0.8)
