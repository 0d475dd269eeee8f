"""Covariance of debiased bandpowers from simulated patches."""

from __future__ import annotations

import numpy as np

from ..errors import CNNLensError


def sample_covariance(samples: np.ndarray) -> np.ndarray:
    """Unbiased covariance of one patch.

    Parameters
    ----------
    samples : of independent patches, (n_sim, n_bins)

    Returns
    -------
    (n_bins, n_bins)

    Raises
    ------
    CNNLensError
        if n_sim ≤ n_bins + 2, where the inverse covariance has no mean (Hartlap et al. 2007)
    """
    n_sim, n_bins = samples.shape
    if n_sim <= n_bins + 2:
        raise CNNLensError(
            f"{n_sim} simulated patches cannot give a covariance of {n_bins} bins; "
            f"at least {n_bins + 3} are needed"
        )
    # numpy makes a number of the covariance of one bin.
    return np.atleast_2d(np.cov(samples, rowvar=False))


def mean_covariance(samples: np.ndarray) -> np.ndarray:
    """Covariance of the mean of the samples: their covariance over their number.

    Parameters
    ----------
    samples : of independent patches, (n_sim, n)

    Returns
    -------
    (n, n)
    """
    return np.cov(samples, rowvar=False) / len(samples)


def shrunk_covariance(samples: np.ndarray) -> np.ndarray:
    """Covariance of one patch whose inverse exists however few the samples are.

    The sample correlations r_ij, i ≠ j, are reduced by the part λ = Σ Var(r_ij)/Σ r_ij² that their
    errors make up (Schäfer & Strimmer 2005, Stat. Appl. Genet. Mol. Biol. 4, 32, target D).

    Parameters
    ----------
    samples : of independent patches, (n_sim, n)

    Returns
    -------
    (n, n)
    """
    n_sim = len(samples)
    sigma = samples.std(0, ddof=1)
    off = (samples - samples.mean(0)) / sigma
    correlation = off.T @ off / (n_sim - 1)
    # Variance of the mean over the patches of z_i z_j.
    square = (off**2).T @ off**2 / n_sim - ((n_sim - 1) / n_sim * correlation) ** 2
    error = square * n_sim**2 / (n_sim - 1.0) ** 3
    between = ~np.eye(len(sigma), dtype=bool)
    scale = (correlation[between] ** 2).sum()
    shrinkage = min(1.0, error[between].sum() / scale) if scale > 0 else 1.0
    correlation[between] *= 1.0 - shrinkage
    return correlation * np.outer(sigma, sigma)
