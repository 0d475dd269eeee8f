"""Covariance of debiased bandpowers from simulated patches."""

from __future__ import annotations

import numpy as np

from ..errors import CNNLensError


def sample_covariance(samples: np.ndarray) -> np.ndarray:
    """Unbiased covariance of one patch from (n_sim, n_bins) samples, (n_bins, n_bins).

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
    """Covariance of the mean of the samples: their covariance over their number."""
    return np.cov(samples, rowvar=False) / len(samples)
