"""Statistics of Gaussian bandpowers with a covariance from simulations."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from ..arrays import namespace
from ..errors import CNNLensError

# Added to both sides of a ratio of squares that are zero where the model equals the data.
_TINY = 1e-18
# A best fit whose probability to exceed is below this is warned of: data, or model, are wrong.
POOR_FIT = 1e-4

Values = TypeVar("Values", float, np.ndarray)


def hartlap_factor(n_sim: int, n_bins: int) -> float:
    """(n_sim − n_bins − 2)/(n_sim − 1), which unbiases an inverse sample covariance.

    Hartlap, Simon & Schneider 2007 (astro-ph/0608064), eq. 17.

    Parameters
    ----------
    n_sim : simulations behind the covariance
    n_bins : its dimension

    Returns
    -------
    the factor, below 1

    Raises
    ------
    CNNLensError
        if n_sim ≤ n_bins + 2

    Examples
    --------
    >>> hartlap_factor(n_sim=101, n_bins=9)
    0.9
    """
    if n_sim <= n_bins + 2:
        raise CNNLensError(
            f"n_sim = {n_sim} simulations cannot give an inverse covariance of {n_bins} bins; "
            f"at least {n_bins + 3} are needed"
        )
    return (n_sim - n_bins - 2) / (n_sim - 1)


def inverse_covariance(covariance: np.ndarray) -> np.ndarray:
    """Inverse of a covariance, by way of its correlation matrix.

    Parameters
    ----------
    covariance : (n, n), of any unit

    Returns
    -------
    symmetric, (n, n)

    Raises
    ------
    CNNLensError
        if it is not symmetric and positive definite
    """
    sigma = np.sqrt(np.diag(covariance).clip(0))
    if not (sigma > 0).all():
        bad = np.flatnonzero(~(sigma > 0)).tolist()
        raise CNNLensError(f"not positive definite: the variance of bins {bad} is not positive")
    correlation = covariance / np.outer(sigma, sigma)
    if not np.allclose(correlation, correlation.T, rtol=0, atol=1e-8):
        raise CNNLensError("not symmetric")
    lowest = np.linalg.eigvalsh(correlation)[0]
    if lowest <= 1e-10:
        raise CNNLensError(
            f"not positive definite: the lowest eigenvalue of its correlation is {lowest:.1e}"
        )
    inverse = np.linalg.inv(0.5 * (correlation + correlation.T)) / np.outer(sigma, sigma)
    return 0.5 * (inverse + inverse.T)


def chi2_pte(chi2: Values, dof: int) -> Values:
    """Probability that χ² of ``dof`` degrees of freedom exceeds ``chi2``.

    Parameters
    ----------
    chi2 : one value, or an array
    dof : degrees of freedom

    Returns
    -------
    of the same shape as ``chi2``
    """
    from scipy.special import chdtrc

    return chdtrc(dof, chi2)


def hotelling_pte(t2: Values, n_sim: int, n_bins: int) -> Values:
    """Probability that Hotelling's T² = rᵀ Ŝ⁻¹ r exceeds ``t2``.

    Ŝ is a sample covariance from ``n_sim`` simulations, unscaled: then
    (n_sim − n_bins)/(n_bins (n_sim − 1)) T² follows the F distribution of n_bins and n_sim − n_bins
    degrees of freedom (Hotelling 1931), where χ² would reject too often.

    Parameters
    ----------
    t2 : one value, or an array
    n_sim : simulations behind Ŝ
    n_bins : its dimension

    Returns
    -------
    of the same shape as ``t2``

    Raises
    ------
    CNNLensError
        if n_sim ≤ n_bins
    """
    from scipy.special import fdtrc

    if n_sim <= n_bins:
        raise CNNLensError(
            f"n_sim = {n_sim} simulations cannot judge {n_bins} bins; more than {n_bins} are needed"
        )
    scale = (n_sim - n_bins) / (n_bins * (n_sim - 1.0))
    return fdtrc(n_bins, n_sim - n_bins, scale * np.asarray(t2))


def sellentin_heavens(t2: float, n_sim: int) -> float:
    """Log-likelihood, up to a constant, of Gaussian data with a sample covariance.

    It is −(n_sim/2) ln(1 + T²/(n_sim − 1)), the multivariate t of Sellentin & Heavens 2016
    (arXiv:1511.05969), eq. 12.

    Parameters
    ----------
    t2 : T² = rᵀ Ŝ⁻¹ r with the sample covariance Ŝ
    n_sim : simulations behind Ŝ

    Returns
    -------
    the logarithm
    """
    return -0.5 * n_sim * namespace(t2).log1p(t2 / (n_sim - 1.0))


def hamimeche_lewis(ratio: np.ndarray) -> np.ndarray:
    """g(x) = sign(x − 1) √(2 (x − ln x − 1)) of measured over modelled power.

    Of ν modes with power T, T̂ is a χ² variable: −2 ln L = ν (x − ln x − 1), x = T̂/T. So T_fid g(x)
    is Gaussian with the fiducial variance 2 T_fid²/ν at any T (Hamimeche & Lewis 2008,
    arXiv:0801.0554, eqs 21 and 40).

    Parameters
    ----------
    ratio : x > 0, of any shape

    Returns
    -------
    g, of the same shape
    """
    xp = namespace(ratio)
    # g = u √(2 (u − ln x)/u²), u = x − 1: precise, and with a derivative, where x is near one.
    u = ratio - 1.0
    return u * xp.sqrt((2.0 * (u - xp.log(ratio)) + _TINY) / (u * u + _TINY))


def pte_to_sigma(pte: Values) -> Values:
    """Two-sided Gaussian significance of a probability to exceed.

    A PTE of 0.3173 is 1σ; used for the null-hypothesis test of Caldeira et al. 2018, eq. 16.

    Parameters
    ----------
    pte : one value, or an array

    Returns
    -------
    of the same shape, in σ
    """
    from scipy.special import ndtri

    return -ndtri(0.5 * np.asarray(pte))
