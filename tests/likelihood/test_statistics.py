import numpy as np
import pytest
from scipy import stats

from cobaya_cnnlens.calibrate.covariance import mean_covariance, sample_covariance
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.statistics import (
    chi2_pte,
    hartlap_factor,
    hotelling_pte,
    inverse_covariance,
    pte_to_sigma,
    sellentin_heavens,
)


def test_hartlap_unbiases_the_inverse():
    """Mean of the scaled inverse over many sample covariances is the true inverse."""
    generator = np.random.default_rng(0)
    n_sim, n_bins = 30, 6
    total = np.zeros((n_bins, n_bins))
    for _ in range(4000):
        total += inverse_covariance(sample_covariance(generator.standard_normal((n_sim, n_bins))))
    mean = np.diag(total / 4000).mean()
    assert mean * hartlap_factor(n_sim, n_bins) == pytest.approx(1, abs=0.01)
    assert mean > 1.2  # without the factor it is far off


def test_pte_is_scipys():
    np.testing.assert_allclose(chi2_pte(np.array([3.0, 30.0]), 12), stats.chi2.sf([3.0, 30.0], 12))


def test_significance_of_known_probabilities():
    np.testing.assert_allclose(pte_to_sigma(2 * stats.norm.sf([1.0, 2.9, 4.5])), [1.0, 2.9, 4.5])


def test_too_few_simulations():
    with pytest.raises(CNNLensError, match="at least 9"):
        hartlap_factor(8, 6)
    with pytest.raises(CNNLensError, match="at least 9"):
        sample_covariance(np.random.default_rng(0).standard_normal((8, 6)))
    assert hartlap_factor(9, 6) == pytest.approx(1 / 8)
    assert hartlap_factor(101, 19) == pytest.approx(0.8)


def test_inverse_of_tiny_covariances():
    """Covariances of 1e-18 are inverted and judged by their correlations, not by size."""
    root = np.eye(4) + 0.3 * np.random.default_rng(1).standard_normal((4, 4))
    covariance = 1e-18 * root @ root.T
    np.testing.assert_allclose(inverse_covariance(covariance) @ covariance, np.eye(4), atol=1e-10)
    singular = covariance.copy()
    singular[3] = singular[2]
    singular[:, 3] = singular[:, 2]
    with pytest.raises(CNNLensError, match="positive definite"):
        inverse_covariance(singular)
    lopsided = covariance.copy()
    lopsided[0, 1] *= 1.5
    with pytest.raises(CNNLensError, match="symmetric"):
        inverse_covariance(lopsided)


@pytest.mark.parametrize("n", [2, 5])
def test_nearly_singular_covariances(n):
    """Bins correlated by 1 − ε: eigenvalue ε, below 1e-10 lost in rounding; to 1e-8 the inverse is
    still that of the closed form."""
    for epsilon, good in ((1e-8, True), (3e-11, False), (1e-14, False), (-1e-3, False)):
        correlation = np.full((n, n), 1 - epsilon) + epsilon * np.eye(n)
        if not good:
            with pytest.raises(CNNLensError, match="lowest eigenvalue of its correlation"):
                inverse_covariance(4e-18 * correlation)
            continue
        inverse = 4e-18 * inverse_covariance(4e-18 * correlation)
        want = (np.eye(n) - (1 - epsilon) / (n - (n - 1) * epsilon)) / epsilon
        np.testing.assert_allclose(inverse, want, rtol=1e-6)
        np.testing.assert_array_equal(inverse, inverse.T)


def test_asymmetries_beyond_rounding():
    """One part in 1e7 of a correlation is no rounding error, whatever the variances' sizes."""
    sigma = np.array([1.0, 1e-9, 1e3])
    correlation = np.array([[1.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 1.0]])
    for change, good in ((1e-10, True), (1e-7, False), (-1e-3, False), (0.05, False)):
        changed = correlation.copy()
        changed[1, 2] += change
        covariance = changed * np.outer(sigma, sigma)
        if good:
            inverse = inverse_covariance(covariance)
            np.testing.assert_array_equal(inverse, inverse.T)
            whole = inverse * np.outer(sigma, sigma) @ correlation
            np.testing.assert_allclose(whole, np.eye(3), atol=1e-8)
        else:
            with pytest.raises(CNNLensError, match="not symmetric"):
                inverse_covariance(covariance)


def test_variances_that_are_not_positive():
    for variance in (0.0, -1.0, np.nan):
        covariance = np.diag([0.2, variance, 0.3])
        with pytest.raises(CNNLensError, match=r"variance of bins \[1\] is not positive"):
            inverse_covariance(covariance)


def test_covariance_of_the_mean():
    samples = np.random.default_rng(2).standard_normal((50, 3))
    np.testing.assert_allclose(mean_covariance(samples), sample_covariance(samples) / 50)


@pytest.mark.parametrize("n_sim", [60, 150, 500])
def test_hotelling_rejects_as_often_as_it_says(n_sim):
    """20 bins, covariance from n_sim simulations, 20,000 times: a nominal 1% and 10% are kept by
    T²; χ² exceeds 1% where simulations are few."""
    generator, n_bins, trials = np.random.default_rng(n_sim), 20, 20_000
    # Ŝ of unit normals is Wishart: T² = |r|² / (1/Ŝ⁻¹ along r), and Ŝ⁻¹ along any direction is
    # that of the last diagonal element of the Bartlett decomposition.
    chi2 = generator.chisquare(n_bins, trials)
    t2 = (n_sim - 1) * chi2 / generator.chisquare(n_sim - n_bins, trials)
    # The same T² by brute force, for a few.
    brute = []
    for _ in range(400):
        sample = sample_covariance(generator.standard_normal((n_sim, n_bins)))
        r = generator.standard_normal(n_bins)
        brute.append(r @ np.linalg.solve(sample, r))
    assert stats.ks_2samp(brute, t2).pvalue > 1e-3
    for level in (0.01, 0.1):
        rejected = np.mean(hotelling_pte(t2, n_sim, n_bins) < level)
        assert rejected == pytest.approx(level, abs=4 * np.sqrt(level / trials))
    if n_sim < 200:
        by_chi2 = np.mean(chi2_pte(t2 * hartlap_factor(n_sim, n_bins), n_bins) < 0.01)
        assert by_chi2 > 0.01 + 4 * np.sqrt(0.01 / trials)


def test_sellentin_heavens_is_the_t_distribution():
    """Against scipy's multivariate t, whose shape is Ŝ (n_sim − 1)/(n_sim − p), dof n_sim − p."""
    n_sim, p = 60, 3
    generator = np.random.default_rng(0)
    root = np.eye(p) + 0.3 * generator.standard_normal((p, p))
    covariance = root @ root.T
    student = stats.multivariate_t(
        shape=covariance * (n_sim - 1) / (n_sim - p), df=n_sim - p, loc=np.zeros(p)
    )
    a, b = generator.standard_normal((2, p))
    t2 = [r @ np.linalg.solve(covariance, r) for r in (a, b)]
    got = sellentin_heavens(t2[0], n_sim) - sellentin_heavens(t2[1], n_sim)
    assert got == pytest.approx(student.logpdf(a) - student.logpdf(b), rel=1e-9)
    # Many simulations: the Gaussian.
    assert sellentin_heavens(7.0, 10**9) == pytest.approx(-3.5, rel=1e-6)


def test_hotelling_needs_more_simulations_than_bins():
    with pytest.raises(CNNLensError, match="cannot judge 20 bins"):
        hotelling_pte(3.0, 20, 20)
    # (n_sim − p)/(p (n_sim − 1)) T² is F of p and n_sim − p degrees of freedom.
    assert hotelling_pte(9.0, 10, 2) == pytest.approx(stats.f.sf(8 / 18 * 9.0, 2, 8), rel=1e-12)
    got = hotelling_pte([5.0, 30.0], 10**8, 12)
    np.testing.assert_allclose(got, chi2_pte([5.0, 30.0], 12), rtol=1e-5)


def test_hamimeche_lewis_is_exact_for_the_power_of_modes():
    """−2 ln L of ν Gaussian modes of power T, by the χ² distribution itself."""
    scipy_stats = pytest.importorskip("scipy.stats")
    from cobaya_cnnlens.likelihood.statistics import hamimeche_lewis

    modes, measured, fiducial = 30, 1.3, 0.9
    power = np.geomspace(0.6, 2.5, 9)
    x = fiducial * hamimeche_lewis(measured / power)
    found = -0.5 * x**2 / (2.0 * fiducial**2 / modes)
    expected = scipy_stats.chi2.logpdf(modes * measured / power, modes) + np.log(modes / power)
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-10)
    assert (np.diff(np.sign(x)) <= 0).all()
    assert hamimeche_lewis(np.array([1.0]))[0] == 0.0
