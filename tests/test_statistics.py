import numpy as np
import pytest
from scipy import stats

from cobaya_cnnlens.calibrate.covariance import mean_covariance, sample_covariance
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.statistics import (
    chi2_pte,
    hartlap_factor,
    inverse_covariance,
    pte_to_sigma,
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


def test_covariance_of_the_mean():
    samples = np.random.default_rng(2).standard_normal((50, 3))
    np.testing.assert_allclose(mean_covariance(samples), sample_covariance(samples) / 50)
