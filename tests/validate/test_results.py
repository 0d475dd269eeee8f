"""What is measured of releases and estimators, from bandpowers whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.stats import kstest, norm

from cobaya_cnnlens import products
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.statistics import inverse_covariance
from cobaya_cnnlens.pipeline.assemble import calibration_of, make_release
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.power import Power
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers, signal_bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.n0 import n0_iterated
from cobaya_cnnlens.theory.camb import Spectra
from cobaya_cnnlens.validate import coverage, points, posterior_grid
from cobaya_cnnlens.validate.coverage import coverage_tables
from cobaya_cnnlens.validate.forecast import forecast
from cobaya_cnnlens.validate.noise import compare, noise_table
from cobaya_cnnlens.validate.omch2 import (
    Omch2Likelihood,
    fisher,
    null_significance,
    recovered_omch2,
)
from cobaya_cnnlens.validate.points import points_table
from cobaya_cnnlens.validate.posterior_grid import PosteriorGrid
from cobaya_cnnlens.validate.ranks import CoverageTable, Draws, SimulatedRanks, simulate_ranks

from .. import written as written_by_hand
from ..conftest import fixed_release, synthetic_release, with_made_up_debias
from ..written import (
    N_BINS,
    PER_SKY,
    Written,
    covariance_of_mean,
    error_of_mean,
    small,
)

HASH = "a" * 64
RESPONSE, NOISE = 0.5, 3.0


@pytest.fixture(autouse=True)
def curves_once(monkeypatch, curves):
    """The analytic curves of one instrument and cosmology are worked out once for all tests."""

    def remembered(L, spectra, *instrument_and_filter):
        key = (*L, *instrument_and_filter, spectra.kk.tobytes())
        if key not in curves:
            curves[key] = n0_iterated(L, spectra, *instrument_and_filter)
        return curves[key]

    monkeypatch.setattr("cobaya_cnnlens.validate.noise.n0_iterated", remembered)


@pytest.fixture(scope="module")
def curves():
    return {}


def with_bandpowers(config, name, noise, seed, modes=200):
    """A configuration and the bandpowers of κ̂ = R(κ + n) on 600 patches per set, κ and n of power
    1 and ``noise``; of two configurations κ is the same, and half of n's amplitude² is."""
    config = config.model_copy(update={"name": name, "products": config.products / name})
    for k, set_name in enumerate(("validation", "test", "survey-fiducial")):
        sky, own = np.random.default_rng(k), np.random.default_rng([k, 10 + seed])
        shape = (600, modes, config.bandpowers.n_bins)
        kappa, common = sky.standard_normal((2, *shape))
        extra = np.sqrt(noise / 2) * (common + own.standard_normal(shape))
        estimate = RESPONSE * (kappa + extra)
        arrays = {"auto": estimate**2, "cross": kappa * estimate, "truth": kappa**2}
        products.write_product(
            Bandpowers(Run(config)).path(set_name, 0),
            "bandpowers",
            Bandpowers(Run(config, HASH)).recipe(set_name, 0),
            {name: values.mean(1) for name, values in arrays.items()},
        )
    return config


def measured_response(config):
    return calibration_of(Run(config, HASH))[0].response


def test_comparison_of_networks_of_known_noise(small_config):
    """Ratio of N_L, its paired error and eq. 18's scatter against their closed forms."""
    modes = 200
    configs = [with_bandpowers(small_config, n, NOISE, i) for i, n in enumerate("abc")]
    configs.append(with_bandpowers(small_config, "d", 2 * NOISE, 3))
    table = compare([Run(c, HASH) for c in configs])
    assert table.names == ("a", "b", "c", "d")
    assert (np.abs(table.relative[1] - 1.0) < 4 * table.relative_error[1]).all()
    assert (np.abs(table.relative[3] - 2.0) < 4 * table.relative_error[3]).all()
    np.testing.assert_array_equal(table.relative[0], 1.0)
    np.testing.assert_allclose(table.relative_error[0], 0.0, atol=1e-12)
    # κ̂κ̂ of two n correlated by one half: per mode ⟨Δ²⟩ is 4κ²⟨(n − n')²⟩ plus that of n² − n'²,
    # 4CN + 2·2N²(1 − 1/4). By way of R, of κ(n − n') with variance CN, times 2(C + N)/C.
    by_test = 4 * NOISE + 3 * NOISE**2
    by_validation = 4 * (1 + NOISE) ** 2 * NOISE
    expected = np.sqrt((by_test + by_validation) / (600 * modes)) / NOISE
    np.testing.assert_allclose(table.relative_error[1], expected, rtol=0.1)
    np.testing.assert_allclose(
        table.power,
        [[RESPONSE**2 * (1 + NOISE)] * 4] * 3 + [[RESPONSE**2 * (1 + 2 * NOISE)] * 4],
        rtol=0.02,
    )
    three = compare([Run(c, HASH) for c in configs[:3]])
    # Between members one patch's power scatters by half of Δ's variance.
    expected = np.sqrt((4 * NOISE + 3 * NOISE**2) / 2 / modes) / (1 + NOISE)
    # The mean of the sample standard deviation of three is √(π)/2 of σ.
    np.testing.assert_allclose(three.scatter, expected * np.sqrt(np.pi) / 2, rtol=0.05)


def test_patches_that_differ_are_not_paired(small_config):
    first = with_bandpowers(small_config, "a", NOISE, 0)
    other = with_bandpowers(small_config.model_copy(update={"seed": 8}), "b", NOISE, 1)
    table = compare([Run(c, HASH) for c in (first, other, first)])
    assert table.paired.tolist() == [True, False, True]
    assert table.scatter is None
    assert (table.relative_error[1] > 1.3 * table.relative_error[2]).all()


def test_bins_must_be_the_same(small_config):
    wide = small_config.bandpowers.model_copy(update={"width": 300})
    other = small_config.model_copy(update={"name": "wide", "bandpowers": wide})
    with pytest.raises(CNNLensError, match="'test' and 'wide' differ in 'bandpowers'"):
        compare([Run(c, HASH) for c in (small_config, other)])


@pytest.fixture
def written(tmp_path) -> Written:
    return Written(Config.model_validate(small(tmp_path / "products")))


def test_points_as_a_survey_sees_them(written, monkeypatch):
    """A model that is off by what ω_c + x would do to the bandpowers moves ω_c by x, in σ."""
    config = written.config
    monkeypatch.setattr(
        "cobaya_cnnlens.validate.omch2.OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14])
    )
    release = with_made_up_debias(make_release(Run(config, HASH), "fiducial"))
    likelihood = BandpowerLikelihood(release)
    slope = Omch2Likelihood(Run(config), likelihood).slope(config.cosmology.omch2)
    sigma = (slope @ np.linalg.inv(likelihood.covariance) @ slope) ** -0.5
    generator, n = np.random.default_rng(6), 2 * PER_SKY
    checks = []
    for change in config.points.at["some"].cosmologies:
        found, model = 0.05 * written.signal * generator.standard_normal((2, n, N_BINS))
        predicted, linear = generator.standard_normal((2, N_BINS)) * written.signal
        found = found - found.mean(0) + predicted + 3.0 * sigma * slope
        checks.append(
            points.PointCheck(change, found, predicted, linear, covariance_of_mean(model))
        )
    monkeypatch.setattr(points, "make_release", lambda *_: release)
    monkeypatch.setattr(points, "check_points", lambda *_: checks)
    table = points_table(Run(config, HASH), "some")
    assert (table.n_survey, table.n_patches, table.n_bins) == (PER_SKY, n, N_BINS)
    np.testing.assert_allclose(table.shift, 3.0, rtol=1e-4)
    gain = np.linalg.inv(likelihood.covariance) @ slope * sigma
    for k, check in enumerate(checks):
        covariance = covariance_of_mean(check.measured) + check.model_error
        linear = gain @ (check.measured.mean(0) - check.linear)
        of_model = np.sqrt(gain @ check.model_error @ gain)
        assert table.model_error[k] == pytest.approx(of_model, rel=1e-4)
        assert table.shift_linear[k] == pytest.approx(linear, rel=1e-4)
        assert table.shift_error[k] == pytest.approx(np.sqrt(gain @ covariance @ gain), rel=1e-4)
        chi2 = 9 * sigma**2 * slope @ inverse_covariance(covariance) @ slope
        assert table.chi2[k] == pytest.approx(chi2, rel=1e-4)


@pytest.mark.slow
def test_residuals_are_shared_out_among_three_parameters(written):
    """What one of them does to the bandpowers shifts that one, by its change over its σ, and the
    others not at all."""
    run = Run(written.config, HASH)
    likelihood = BandpowerLikelihood(make_release(run, "fiducial"), "fixed")
    _, gain = fisher(points._joint_slopes(run, likelihood), likelihood.covariance)
    fiducial = run.config.cosmology
    slopes = []
    for name in points.JOINT:
        above, below = (
            run.spectra(fiducial.vary(**{name: x * getattr(fiducial, name)})) for x in (1.01, 0.99)
        )
        moved = likelihood.model(above.kk, above.ee) - likelihood.model(below.kk, below.ee)
        slopes.append(moved / 0.02)
    slopes = np.array(slopes)
    matrix = slopes @ np.linalg.inv(likelihood.covariance) @ slopes.T
    sigma = np.sqrt(np.diag(np.linalg.inv(matrix)))
    shares = gain @ slopes.T * sigma[:, None]
    np.testing.assert_allclose(shares, np.eye(3), atol=0.1)


def test_tables_of_the_same_products(written):
    """N_L with both of its errors, ρ, power, and the error of one patch's bandpower."""
    config = written.config
    table = noise_table(Run(config, HASH))
    np.testing.assert_allclose(table.L, 36 + 150 * (np.arange(N_BINS) + 0.5))
    np.testing.assert_allclose(table.response, written_by_hand.RESPONSE, rtol=1e-9)
    np.testing.assert_allclose(table.noise, written.noise, rtol=1e-9)
    by_response = (
        2 * (written.signal + written.noise) / written_by_hand.RESPONSE * table.response_error
    )
    own = np.sqrt(np.diag(written.own) / len(written.n))
    np.testing.assert_allclose(table.noise_error, np.hypot(own, by_response), rtol=1e-7)
    sigma = np.sqrt(np.diag(written.cosmic + written.own))
    np.testing.assert_allclose(table.relative_error, sigma / written.signal, rtol=1e-7)
    power = written_by_hand.RESPONSE**2 * (1 + written.noise / written.signal)
    np.testing.assert_allclose(table.power, power, rtol=1e-7)
    # The "cross" that was written is ⟨κ̂κ̂*⟩ itself.
    np.testing.assert_allclose(table.correlation, np.sqrt(power), rtol=1e-7)


@pytest.mark.parametrize("patches_each", [1, 5])
def test_recovered_omch2(written, monkeypatch, patches_each):
    """ω_c of the lowest χ² of every group's mean, with the covariance of a group; errors of their
    mean with what all groups share."""
    config = written.config
    monkeypatch.setattr(
        "cobaya_cnnlens.validate.omch2.OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14])
    )
    release = make_release(Run(config, HASH), "high")
    found = recovered_omch2(Run(config, HASH), release, "high", patches_each, "fixed")
    assert (found.truth, found.patches_each) == (0.1285, patches_each)
    shared = release.noise_covariance
    covariance = release.patch_covariance / patches_each + shared
    inverse = np.linalg.inv(covariance)
    table = Omch2Likelihood(Run(config), BandpowerLikelihood(release, "fixed"))
    grid = np.linspace(0.1, 0.14, 20001)
    mu = table.model(grid)
    groups = written.high.reshape(-1, patches_each, N_BINS).mean(1)
    best = [grid[np.argmin(np.einsum("gb,bc,gc->g", d - mu, inverse, d - mu))] for d in groups]
    np.testing.assert_allclose(found.estimates, best, atol=4e-6)
    assert found.at_edge == np.sum(np.isin(best, [0.1, 0.14]))
    slope = table.slope(0.1285)
    gain = inverse @ slope / (slope @ inverse @ slope)
    assert found.shared_error == pytest.approx(np.sqrt(gain @ shared @ gain), rel=1e-6)
    own = np.std(best, ddof=1) / np.sqrt(len(best))
    assert found.error == pytest.approx(np.hypot(own, found.shared_error), rel=1e-2)
    assert found.mean == pytest.approx(np.mean(best), rel=1e-4)
    assert found.scatter == pytest.approx(np.std(best, ddof=1), rel=1e-2)
    with pytest.raises(CNNLensError, match="20 patches: too few for two groups of 11"):
        recovered_omch2(Run(config, HASH), release, "high", 11, "fixed")


def test_recovered_omch2_knows_the_second_order_of_the_data(written, monkeypatch):
    """Every group's d less what its own power says, with Q û² added, about which the model is
    linear; û is that of the release's bandpowers."""
    run = Run(written.config, HASH)
    nodes = np.array([0.1, 0.11, 0.1185, 0.13, 0.14])
    monkeypatch.setattr("cobaya_cnnlens.validate.omch2.OMCH2_NODES", nodes)
    release = make_release(run, "high")
    release = with_made_up_debias(release)
    release = replace(release, curvature=0.3 * release.bandpowers * np.arange(1, N_BINS + 1))
    n = len(written.high)
    own = release.power * (1.0 + 0.02 * np.random.default_rng(0).standard_normal((n, 3)))
    monkeypatch.setattr(Power, "read", lambda *_: {"power": own})
    given_data = []
    maximum = Omch2Likelihood.maximum
    monkeypatch.setattr(
        Omch2Likelihood, "maximum", lambda *given: given_data.append(given[1]) or maximum(*given)
    )
    recovered_omch2(run, release, "high")
    a, used = release.kk_direction, BandpowerLikelihood(release).release
    v = release.amplitudes
    first = release.kk_derivatives + np.outer(release.debias_cross @ v, a)
    # 2 û Q a is what the derivatives have beside those.
    u = (used.kk_derivatives - first)[:, 0] / (2.0 * release.curvature * a[0])
    np.testing.assert_allclose(u, u[0], rtol=1e-9)
    assert abs(u[0]) > 0.02
    expected = [
        d - replace(release, power=p, n_patches=1).correction + release.curvature * u[0] ** 2
        for d, p in zip(written.high, own, strict=True)
    ]
    np.testing.assert_allclose(given_data[0], expected, rtol=1e-6)


def test_forecast_and_its_errors(written):
    """The part of a change that is found is linear in the patches' slopes, so that its jackknife
    error is their standard error; σ of a fixed debias has that of the covariance alone."""
    config = written.config
    low, high = (
        Run(config).spectra(config.cosmology.vary(omch2=omch2)).kk for omch2 in (0.1085, 0.1285)
    )
    signal = signal_bandpowers(Run(config), high - low) / 0.02
    slopes = (written.moved[1] - written.moved[0]) / 0.02
    n_sim = config.skies.test * PER_SKY
    hartlap = (n_sim - N_BINS - 2) / (n_sim - 1)
    inverse = np.linalg.inv(written.cosmic + written.own) * hartlap
    information = signal @ inverse @ signal
    found = forecast(Run(config, HASH))
    assert found.sigma.shape == (1,)
    by_patch = slopes @ inverse @ signal / information
    assert found.recovered == pytest.approx(1 + by_patch.mean(), rel=1e-5)
    assert found.recovered_error == pytest.approx(error_of_mean(by_patch), rel=1e-5)
    assert found.sigma_fixed == pytest.approx(information**-0.5, rel=1e-6)
    relative = 1 / np.sqrt(2 * (n_sim - N_BINS))
    assert found.sigma_fixed_error == pytest.approx(found.sigma_fixed * relative, rel=1e-6)
    slope = signal + slopes.mean(0)
    assert found.sigma == pytest.approx((slope @ inverse @ slope) ** -0.5, rel=1e-5)
    assert found.sigma_error > found.sigma * relative
    assert found.names == (config.name,)


def test_single_patches_against_the_fiducial(written):
    """χ² of d − ⟨d⟩_fid with one patch's covariance."""
    config = written.config
    release = make_release(Run(config, HASH), "high")
    chi2, sigma = null_significance(Run(config, HASH), release, "high")
    off = written.high - written.signal
    expected = [o @ np.linalg.solve(written.cosmic + written.own, o) for o in off]
    np.testing.assert_allclose(chi2, expected, rtol=1e-6)
    assert (np.diff(sigma[np.argsort(chi2)]) >= 0).all()
    # Of plain d, whatever the debias from the data says of d'.
    debiased = with_made_up_debias(release)
    chi2, _ = null_significance(Run(config, HASH), debiased, "high")
    expected = [o @ np.linalg.solve(debiased.fixed_patch_covariance, o) for o in off]
    np.testing.assert_allclose(chi2, expected, rtol=1e-6)


# Coverage: errors where surveys share skies, ranks where all share a calibration.
PRIOR = (0.1085, 0.1285)
OF_BINS = np.array([0.8, 0.7, 0.6, 0.4])
NONE = SimulatedRanks(np.zeros((9, 10)), np.zeros((9, 2)))


def proportional(release, axes, points):
    """A likelihood and a grid of parameters whose product C^κκ is proportional to."""
    kk, ee = release.fiducial_kk, release.fiducial_ee
    nodes = [np.linspace(*ends, 4) for ends in axes]
    spectra = [
        Spectra(ee, np.prod(at) * kk, 0 * ee, 0 * ee)
        for at in np.stack(np.meshgrid(*nodes, indexing="ij"), -1).reshape(-1, len(axes))
    ]
    return PosteriorGrid(nodes, spectra, points)


def surveys_of_skies(generator, n_skies, each, correlation):
    """A table of surveys whose estimates, with unit error, share a part with those of their sky."""
    shared = np.repeat(generator.standard_normal(n_skies), each)
    own = generator.standard_normal(n_skies * each)
    off = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    ones = np.ones_like(off)
    sky = np.repeat(np.arange(n_skies), each)
    return CoverageTable("omch2", 1, PRIOR, sky, 0 * ones, off, ones, norm.cdf(off), NONE)


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


def test_between_and_within_skies():
    """Over many sets the mean square between over within skies is 1 + m ρ/(1 − ρ) times the mean
    of F, and its probability uniform where skies share nothing; the prior's ends are left out."""
    generator = np.random.default_rng(3)
    n, m = 20, 5
    free = n * (m - 1)

    def drawn(correlation, m=m):
        return replace(surveys_of_skies(generator, n, m, correlation), prior=(-9.0, 9.0))

    for correlation in (0.0, 0.5):
        skies, ratio, p = np.transpose([drawn(correlation).anova() for _ in range(400)])
        expected = (1 + m * correlation / (1 - correlation)) * free / (free - 2)
        assert ratio.mean() == pytest.approx(expected, rel=0.08)
        assert (
            (p < 0.1).mean() == pytest.approx(0.1, abs=0.05) if not correlation else p.max() < 0.1
        )
        assert (skies == n).all()
    assert np.isnan(drawn(0.0, m=1).anova()[1:]).all()
    table = drawn(0.0)
    assert "within 20 skies" in table.table()
    moved = np.where(table.sky < 3, 6.5, 0.0)
    at_ends = replace(table, truth=moved, mean=table.mean + 3.0 * moved)
    assert at_ends.anova()[0] == n - 3
    assert at_ends.anova()[1] < 3.0


def test_surveys_of_one_sky_have_no_error():
    table = surveys_of_skies(np.random.default_rng(2), 1, 20, 0.0)
    assert np.isnan([table.covered(0.68)[1], table.bias()[1], table.scatter()[1]]).all()
    assert "one sky alone gives none" in table.table()


def test_skies_of_different_numbers_of_surveys_weigh_by_them():
    """A sky is drawn with all of its surveys: ten of one sky and one of another are two draws."""
    off = np.array([1.0] * 10 + [0.0])
    sky = np.array([0] * 10 + [1])
    one = np.ones(11)
    table = CoverageTable("omch2", 1, PRIOR, sky, 0 * one, off, one, one, NONE)
    # Means of two draws: 0, 10/11, 1 with 1/4, 1/2, 1/4; and twice the variance.
    means = np.array([0.0, 10 / 11, 10 / 11, 1.0])
    assert table.bias()[1] == pytest.approx(means.std() * np.sqrt(2), rel=0.05)
    assert table.bias()[0] == pytest.approx(10 / 11)


def test_ranks_of_gaussian_posteriors():
    """Far from the prior's ends the rank of the truth is the normal probability below it."""
    release = synthetic_release(n_sim=10**6, n_patches=4000)
    likelihood = BandpowerLikelihood(release, "fixed", "gaussian")
    grid = proportional(release, [(0.8, 1.2)], (4001,))
    table = grid.table(likelihood)
    signal = release.bandpowers
    sigma = (signal @ likelihood.inverse @ signal) ** -0.5
    truth = 1.0 + sigma * np.array([-2.0, -1.0, 0.0, 0.5, 3.0])
    (found,) = grid.posterior(likelihood, table, np.tile(signal, (5, 1)))
    np.testing.assert_allclose(found.probability.sum(1), 1.0)
    np.testing.assert_allclose(found.ranks(truth), norm.cdf((truth - 1.0) / sigma), atol=1e-4)
    np.testing.assert_allclose(found.mean, 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-4)
    # At the ends of the prior, nothing and everything.
    ends = np.array([0.8, 1.2, 1.2, 1.2, 1.2])
    np.testing.assert_allclose(found.ranks(ends), [0.0, 1.0, 1.0, 1.0, 1.0], atol=1e-12)


def test_two_parameters_of_one_product():
    """Of C ∝ x y with flat priors only the product is known: the posterior of each is what is
    left after the other is integrated, ∫ p(xy) dy = ∫ p(s) ds/x."""
    release = synthetic_release(n_sim=10**6, n_patches=4000)
    likelihood = BandpowerLikelihood(release, "fixed", "gaussian")
    axes = [(0.9, 1.1), (0.7, 1.3)]
    grid = proportional(release, axes, (101, 601))
    x, y = grid.posterior(likelihood, grid.table(likelihood), release.bandpowers[None])
    expected = 1.0 / x.grid
    np.testing.assert_allclose(x.probability[0], expected / expected.sum(), rtol=1e-3)
    # y lies where x = 1/y is inside its prior.
    inside = (y.grid > 1 / 1.1 - 0.05) & (y.grid < 1 / 0.9 + 0.05)
    assert y.probability[0][inside].sum() == pytest.approx(1.0, abs=1e-3)


def drawn(likelihood, truth, model, generator):
    """Surveys of 16 patches at some truths, whose patches scatter as the likelihood has it."""
    own = 16 * likelihood.own_covariance
    patches = generator.multivariate_normal(np.zeros(len(own)), own, 3000)
    patches = patches - patches.mean(0)
    zero = np.zeros(len(own))
    scales = likelihood.scatter(model)
    return [
        Draws(np.array([t]), zero, scale * patches, 16)
        for t, scale in zip(truth, scales, strict=True)
    ]


def test_ranks_under_a_shared_calibration_error():
    """p of right surveys is uniform where all share an error of the calibration, a tenth of a
    survey's variance; taken for independent, the same ranks would be refused too often."""
    generator = np.random.default_rng(3)
    release = fixed_release(2, n_sim=10**6, n_patches=16)
    own = release.patch_covariance / 400
    release = replace(release, patch_covariance=16 * own, noise_covariance=own / 10)
    likelihood = BandpowerLikelihood(release, "fixed", "gaussian")
    ends = (0.9, 1.1)
    grid = proportional(release, [ends], (121,))
    table = grid.table(likelihood)
    n_skies, each = 15, 4
    sky = np.repeat(np.arange(n_skies), each)
    p_values, naive = [], []
    for _ in range(80):
        truth = np.repeat(generator.uniform(*ends, n_skies), each)
        # Data as the model has them, of a calibration of their own.
        mean = np.outer(truth, release.bandpowers)
        mean = mean + generator.multivariate_normal(np.zeros(2), 0.1 * own)
        data = mean + generator.multivariate_normal(np.zeros(2), own, len(truth))
        rank = grid.posterior(likelihood, table, data)[0].ranks(truth)
        surveys = drawn(likelihood, truth, np.outer(truth, release.bandpowers), generator)
        [sets] = simulate_ranks(grid, likelihood, surveys, generator, 79)
        one = np.ones_like(truth)
        found = CoverageTable("omch2", 16, ends, sky, truth, one, one, rank, sets)
        p_values.append(found.uniformity)
        naive.append(kstest(rank, "uniform").pvalue)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(naive) < 0.05) > 0.1
    assert np.mean(np.array(p_values) <= 0.05) <= 0.125


@pytest.mark.parametrize("statistics", ["gaussian", "hamimeche-lewis"])
def test_simulated_sets_without_a_shared_error_are_uniform(statistics):
    """Truths even over the prior: intervals hold 68 and 95%, tenths a tenth each; with a shared
    error every set is off in its own way, but not all together."""
    generator = np.random.default_rng(4)
    release = fixed_release(2, n_sim=10**6, n_patches=16)
    own = release.patch_covariance / 1600
    ends = (0.8, 1.2)
    truth = np.linspace(*ends, 2001)[1::2]
    spread = {}
    for part in (1e-9, 0.3):
        made = replace(release, patch_covariance=16 * own, noise_covariance=part * own)
        likelihood = BandpowerLikelihood(made, "fixed", statistics)
        grid = proportional(release, [ends], (1201,))
        surveys = drawn(likelihood, truth, np.outer(truth, release.bandpowers), generator)
        [found] = simulate_ranks(grid, likelihood, surveys, generator, 60)
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
    monkeypatch.setattr(
        "cobaya_cnnlens.validate.omch2.OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14])
    )
    monkeypatch.setitem(posterior_grid.NODES, 1, (7,))
    content = small_config.model_dump(mode="json")
    content["coverage"] = {"skies": 12, "patches_each": 8}
    config = Config.model_validate(content)
    release = fixed_release(
        4, n_patches=8, n_sim=10**6, provenance={"network_sha256": HASH}, response=OF_BINS
    )
    own = release.patch_covariance / 400
    release = replace(release, patch_covariance=own, noise_covariance=own / 8)
    table = Omch2Likelihood(Run(config), BandpowerLikelihood(release, "fixed"))
    generator = np.random.default_rng(5)
    calibration = generator.multivariate_normal(np.zeros(4), own / 8)
    data = []
    for i in range(12):
        scatter = generator.multivariate_normal(np.zeros(4), own, size=20)
        mean = table.model(coverage.drawn(Run(config), i)["omch2"]) + calibration
        auto = (mean + scatter + release.noise) * OF_BINS**2
        recipe = coverage.recipe(Run(config, HASH), i)
        arrays = {"auto": auto, "truth": auto}
        products.write_product(coverage.path(Run(config), i), "coverage", recipe, arrays)
        data += [(mean + scatter)[:8].mean(0), (mean + scatter)[8:16].mean(0)]
    return config, release, np.array(data), own


def tables_of(run, release, *others, **options):
    """Of the coverage skies of some runs."""
    return coverage_tables(run, release, coverage.read(run, *others), **options)


def test_the_estimator_of_a_release_is_applied_as_its_own(cut):
    """Coverage skies whose κ̂ left out B modes are not those of a release whose κ̂ used them."""
    config, release, *_ = cut
    low = replace(release, provenance=release.provenance | {"lmin_b": 300})
    with pytest.raises(CNNLensError, match=r"applied its estimator with \{'lmin_b': 300\}, the"):
        tables_of(Run(config, HASH), low)


def test_a_table_from_products(cut):
    """Twelve skies of 20 patches are 24 surveys of 8; every column from the data's closed form."""
    config, release, data, own = cut
    (found,) = tables_of(Run(config, HASH), release, statistics="hartlap")
    assert found.n_skies == 12
    assert found.sky.tolist() == [i // 2 for i in range(24)]
    truth = np.repeat([coverage.drawn(Run(config), i)["omch2"] for i in range(12)], 2)
    np.testing.assert_array_equal(found.truth, truth)
    covariance = own / 8 + own / 8
    grid = np.linspace(*PRIOR, 40_001)
    likelihood = BandpowerLikelihood(release, "fixed")
    inverse = np.linalg.inv(covariance) * likelihood.hartlap
    nodes = np.linspace(*PRIOR, 7)
    theory = [Run(config).spectra(config.cosmology.vary(omch2=float(x))) for x in nodes]
    model = CubicSpline(nodes, [likelihood.model(t.kk, t.ee) for t in theory])
    for k in (0, 7, 23):
        off = data[k] - model(grid)
        posterior = np.exp(-0.5 * np.einsum("gb,bc,gc->g", off, inverse, off))
        posterior /= posterior.sum()
        assert found.mean[k] == pytest.approx(posterior @ grid, rel=1e-5)
        sigma = np.sqrt(posterior @ (grid - posterior @ grid) ** 2)
        assert found.sigma[k] == pytest.approx(sigma, rel=2e-3)
        assert found.rank[k] == pytest.approx(posterior[grid < truth[k]].sum(), abs=6e-3)
    # Half of the variance is the calibration's, which all surveys share.
    assert found.simulated.covered[:, 0].std() > 1.7 * np.sqrt(0.68 * 0.32 / 24)
    assert found.uniformity > 0.01
    assert found.tenths.sum() == 24
    (again,) = tables_of(Run(config, HASH), release, statistics="hartlap")
    np.testing.assert_array_equal(again.simulated.tenths, found.simulated.tenths)
    (single,) = tables_of(Run(config, HASH), release, patches_each=20, statistics="hartlap")
    assert len(single.rank) == 12
    with pytest.raises(CNNLensError, match="a sky has 20 patches, a survey 21"):
        tables_of(Run(config, HASH), release, patches_each=21)


def test_skies_of_several_runs_are_one_table(cut):
    """Twelve skies of one seed and three of another are fifteen, the twelve as they were."""
    config, release, *_ = cut
    other = config.model_copy(
        update={"products": config.products / "other", "seed": 99, "name": "other"}
    )
    for i in range(3):
        arrays = {"auto": np.ones((8, 4)) * OF_BINS**2, "truth": np.ones((8, 4))}
        recipe = coverage.recipe(Run(other, HASH), i)
        products.write_product(coverage.path(Run(other), i), "coverage", recipe, arrays)
    runs = [Run(config, HASH), Run(other, HASH)]
    (alone,) = tables_of(runs[0], release, statistics="hartlap")
    (found,) = tables_of(runs[0], release, *runs[1:], statistics="hartlap")
    assert found.n_skies == 15
    assert found.sky[24:].tolist() == [12, 13, 14]
    np.testing.assert_array_equal(found.mean[:24], alone.mean)
    truth = [coverage.drawn(Run(other), i)["omch2"] for i in range(3)]
    np.testing.assert_array_equal(found.truth[24:], truth)
    with pytest.raises(CNNLensError, match="'seed': a sky of it has the truth, and the phases"):
        tables_of(runs[0], release, *runs[:1])
    wider = config.coverage.model_copy(update={"omch2": (0.1, 0.2)})
    wide = Run(config.model_copy(update={"coverage": wider}), HASH)
    with pytest.raises(CNNLensError, match="one table is of one prior"):
        tables_of(runs[0], release, wide)


def test_a_model_that_changes_too_fast_has_a_slope_below_one():
    """Posterior means that follow 0.9 of the truth, of four surveys a sky with a common error. The
    ends of the prior, where the means stay behind, do not count. The error is that of the skies."""
    generator = np.random.default_rng(5)
    n_skies, sigma = 400, 2e-4
    sky = np.repeat(np.arange(n_skies), 4)
    truth = generator.uniform(*PRIOR, n_skies)[sky]
    common, own = generator.standard_normal(n_skies)[sky], generator.standard_normal(4 * n_skies)
    mean = 0.12 + 0.9 * (truth - 0.12) + sigma * (0.8 * common + 0.6 * own)
    ends = np.array(PRIOR)
    near = np.abs(truth[:, None] - ends).min(1) < 3.0 * sigma
    mean[near] = 0.5 * ends.sum()
    width = np.full(len(sky), sigma)
    table = CoverageTable("omch2", 16, PRIOR, sky, truth, mean, width, 0.5 + 0 * width, NONE)
    n_surveys, slope, error = table.slope()
    assert n_surveys == (~near).sum()
    assert slope == pytest.approx(0.9, abs=3 * error)
    spread = np.std(truth[~near])
    expected = sigma * np.sqrt(0.8**2 + 0.6**2 / 4) / spread / np.sqrt(n_surveys / 4)
    assert error == pytest.approx(expected, rel=0.15)


def test_a_release_that_is_too_sure_is_found_out(cut):
    """With a ninth of the covariance intervals are too narrow and pulls scatter by three."""
    config, release, *_ = cut
    sure = replace(
        release,
        patch_covariance=release.patch_covariance / 9,
        noise_covariance=release.noise_covariance / 9,
    )
    (found,) = tables_of(Run(config, HASH), sure, statistics="hartlap")
    assert found.covered(0.68)[0] < 0.5
    assert found.scatter()[0] == pytest.approx(3.0, abs=0.8)
