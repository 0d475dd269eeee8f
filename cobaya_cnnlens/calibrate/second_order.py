"""Response surface of the debiased bandpowers over the prior of lensing-only ΛCDM.

Nearly all changes of the spectra lie along a few directions. Their amplitudes are w = (v, u): v of
C^EE and u of C^κκ. The derivatives in the bands explain the change of d' to first order. The
response surface describes the rest:

    r_b = Σ_i l_bi w_i + Σ_{i≤j} s_bij w_i w_j

(docs/noise-bias, eqs 10 and 11). It is fitted by generalised least squares to patches that were
simulated at other cosmologies. The derivatives are the prior of its first order.
:mod:`.debias` puts the coefficients into a release. This module takes and returns arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from ..likelihood.spectra import n_terms, terms
from .covariance import sample_covariance
from .derivatives import NoiseDerivatives

# Directions of C^EE that have a first order. Those beyond ``n_directions`` have no second order.
N_FIRST = 8
# Between which the misfit at |w| = 1 is sought, in standard deviations of the mean of one point.
MISFIT_BOUNDS = 1e-3, 1e3


@dataclass(frozen=True)
class FitPoints:
    """Test patches made again at other cosmologies, less the same at the fiducial one.

    Attributes
    ----------
    noise : change of d − signal, (n_points, n_patches, n_bins); every point has a portion of a sky
    power : change of p̂, (n_points, n_patches, n_power)
    bands : δ_j of the bands, C^κκ before C^EE, (n_points, n_kk + n_ee)
    n_directions : number of principal changes of C^EE that have a second order
    """

    noise: np.ndarray
    power: np.ndarray
    bands: np.ndarray
    n_directions: int


@dataclass(frozen=True)
class SecondOrder:
    """The response surface: amplitudes of docs/noise-bias, eq. 10, and coefficients of eq. 11.

    The terms are those of v and u with a second order, as :func:`.terms` orders them, and then the
    first order of the other v.

    Attributes
    ----------
    ee_directions : P, (n_power, n_first); |v| ≤ 1 at the points of the fit
    kk_direction : a, (n_kk,); |u| ≤ 1 at the points of the fit
    ee_changes : change of the bands of C^EE by v = 1, (n_first, n_ee)
    n_v : how many of the first v have a second order
    values : coefficients, (n_bins, n_terms)
    error_terms : K, their covariance between terms, (n_terms, n_terms)
    error_bins : their covariance between bins, (n_bins, n_bins); K and this make the covariance of
        all coefficients as a Kronecker product
    misfit : standard deviation of what the surface leaves at |w| = 1, where it grows as |w|³; in
        those of ``error_bins``
    """

    ee_directions: np.ndarray
    kk_direction: np.ndarray
    ee_changes: np.ndarray
    n_v: int
    values: np.ndarray
    error_terms: np.ndarray
    error_bins: np.ndarray
    misfit: float

    @property
    def n_main(self) -> int:
        """Number of terms of v and u with a second order."""
        return n_terms(self.n_v + 1)

    @property
    def first_order(self) -> tuple[np.ndarray, np.ndarray]:
        """l_bi of all v, (n_bins, n_first), and of u, (n_bins,)."""
        v = np.hstack([self.values[:, : self.n_v], self.values[:, self.n_main :]])
        return v, self.values[:, self.n_v]

    def number(self, i: int, j: int) -> int:
        """Which term the product of two amplitudes is.

        Parameters
        ----------
        i, j : of two amplitudes, i ≤ j, where n_v is the number of u

        Returns
        -------
        its number
        """
        return self.n_v + 1 + pairs(self.n_v + 1).index((i, j))

    def amplitudes(self, power: np.ndarray, kk: np.ndarray) -> np.ndarray:
        """Amplitudes of a change of the spectra.

        Parameters
        ----------
        power : change of p̂ in µK², (..., n_power)
        kk : δ_j of the bands of C^κκ, (..., n_kk)

        Returns
        -------
        all v, and u, (..., n_first + 1)
        """
        u = kk @ self.kk_direction
        return np.concatenate([power @ self.ee_directions, u[..., None]], axis=-1)

    def terms(self, w: np.ndarray) -> np.ndarray:
        """The terms of the surface.

        Parameters
        ----------
        w : of :meth:`amplitudes`, (..., n_first + 1)

        Returns
        -------
        (..., n_terms)
        """
        return surface_terms(w, self.n_v)

    def along(self, w: np.ndarray) -> np.ndarray:
        """Change of the bands of both spectra along the directions.

        Parameters
        ----------
        w : of :meth:`amplitudes`, (n_first + 1,)

        Returns
        -------
        δ_j, C^κκ before C^EE, (n_kk + n_ee,)
        """
        *v, u = w
        kk = u * self.kk_direction / (self.kk_direction @ self.kk_direction)
        return np.concatenate([kk, v @ self.ee_changes])

    def covariance(self, w: np.ndarray) -> np.ndarray:
        """Covariance of the surface's error at some amplitudes: of its coefficients, and of what a
        quadratic leaves.

        Parameters
        ----------
        w : of :meth:`amplitudes`, (n_first + 1,)

        Returns
        -------
        (n_bins, n_bins)
        """
        x = self.terms(w)
        misfit = self.misfit * third_order(w, self.n_v)
        return (x @ self.error_terms @ x + misfit**2) * self.error_bins


def surface_terms(w: np.ndarray, n_v: int) -> np.ndarray:
    """The terms of a response surface.

    Parameters
    ----------
    w : all v, and u, (..., n_first + 1)
    n_v : how many of the first v have a second order

    Returns
    -------
    those of v and u with a second order as :func:`.terms` orders them, then the other v,
    (..., n_terms)

    Examples
    --------
    >>> surface_terms(np.array([2.0, 3.0, 5.0]), 1).tolist()
    [2.0, 5.0, 4.0, 10.0, 25.0, 3.0]
    """
    return np.concatenate([terms(_main(w, n_v)), w[..., n_v:-1]], axis=-1)


def third_order(w: np.ndarray, n_v: int) -> np.ndarray:
    """|w|³ of the amplitudes with a second order.

    Parameters
    ----------
    w : all v, and u, (..., n_first + 1)
    n_v : how many of the first v have a second order

    Returns
    -------
    (...)

    Examples
    --------
    >>> float(third_order(np.array([3.0, 7.0, 4.0]), 1))
    125.0
    """
    return np.asarray(np.linalg.norm(_main(w, n_v), axis=-1) ** 3)


def _main(w: np.ndarray, n_v: int) -> np.ndarray:
    """The amplitudes with a second order, u last."""
    return np.concatenate([w[..., :n_v], w[..., -1:]], axis=-1)


def pairs(n: int) -> list[tuple[int, int]]:
    """Indices of the products of amplitudes.

    Parameters
    ----------
    n : number of amplitudes

    Returns
    -------
    i ≤ j, in the order of the products

    Examples
    --------
    >>> pairs(2)
    [(0, 0), (0, 1), (1, 1)]
    """
    return list(itertools.combinations_with_replacement(range(n), 2))


def fit(
    points: FitPoints,
    derivatives: NoiseDerivatives,
    coefficients: np.ndarray,
    amplitudes: Callable[[np.ndarray], np.ndarray],
) -> SecondOrder:
    """The response surface that patches with other spectra show.

    Parameters
    ----------
    points : the patches
    derivatives : first order of d'
    coefficients : G, (n_bins, n_power)
    amplitudes : what p̂ − p^fid tells of the amplitudes of directions of C^EE's changes,
        (n, n_ee) → (n, n_power)

    Returns
    -------
    amplitudes and coefficients
    """
    n_kk = derivatives.kk.patches.shape[2]
    kk, n_v = points.bands[:, :n_kk], points.n_directions
    left = points.noise - points.power @ coefficients.T
    left = left - (kk @ derivatives.kk.values.T)[:, None]
    ee_changes = principal(points.bands[:, n_kk:], N_FIRST)
    ee_directions = amplitudes(ee_changes).T
    (kk_direction,) = principal(kk, 1)
    w = np.column_stack([points.power.mean(1) @ ee_directions, kk @ kk_direction])
    # Amplitudes are at most one at the points of the fit.
    *largest, largest_u = np.abs(w).max(0)
    w /= np.append(largest, largest_u)
    ee_changes = ee_changes * np.transpose([largest])
    kk_direction = kk_direction / largest_u
    variance, error_bins = _separated([sample_covariance(x) / len(x) for x in left])
    changes = derivatives.kk.patches @ (kk_direction / (kk_direction @ kk_direction))
    first = np.stack([*(derivatives.ee.patches @ change for change in ee_changes), changes], axis=1)
    values, error_terms, misfit = _least_squares(
        surface_terms(w, n_v),
        left.mean(1),
        _prior(first, error_bins, n_v),
        variance,
        third_order(w, n_v),
        error_bins,
    )
    return SecondOrder(
        ee_directions=ee_directions / largest,
        kk_direction=kk_direction,
        ee_changes=ee_changes,
        n_v=n_v,
        values=values,
        error_terms=error_terms,
        error_bins=error_bins,
        misfit=misfit,
    )


def _separated(covariances: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Variances of some covariances, (n_points,), and the one covariance of bins that all of them
    have to a factor."""
    stacked = np.array(covariances)
    of_bins = np.diagonal(stacked.mean(0))
    variance = np.mean(np.diagonal(stacked, axis1=1, axis2=2) / of_bins, axis=1)
    return variance, (stacked / variance[:, None, None]).mean(0)


def _prior(first: np.ndarray, error_bins: np.ndarray, n_v: int) -> np.ndarray:
    """Inverse covariance of the surface's terms by the derivatives alone, in units of
    ``error_bins``, (n_terms, n_terms); ``first`` are the derivatives along v and u by patch,
    (n_patches, n_first + 1, n_bins)."""
    scaled = (first - first.mean(0)) / np.sqrt(np.diagonal(error_bins))
    n_patches, n_w, n_bins = first.shape
    covariance = np.einsum("pib,pjb->ij", scaled, scaled) / (n_bins * (n_patches - 1) * n_patches)
    # Where v and u stand among the terms.
    n_main = n_terms(n_v + 1)
    n_all = n_main + n_w - 1 - n_v
    where = [*range(n_v), *range(n_main, n_all), n_v]
    inverse = np.zeros((n_all, n_all))
    inverse[np.ix_(where, where)] = np.linalg.inv(covariance)
    return inverse


def _least_squares(
    design: np.ndarray,
    values: np.ndarray,
    prior: np.ndarray,
    variance: np.ndarray,
    misfit_shape: np.ndarray,
    error_bins: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients (n_bins, n_terms), their covariance K, and the misfit.

    What a quadratic surface leaves grows with the third power of the amplitudes. Its size is that
    of the highest restricted likelihood of the residuals (Patterson & Thompson 1971).
    """
    inverse_bins = np.linalg.inv(error_bins)

    def solve(misfit: float) -> tuple[np.ndarray, np.ndarray, float]:
        weight = 1.0 / (variance + (misfit * misfit_shape) ** 2)
        information = design.T @ (weight[:, None] * design) + prior
        coefficients = np.linalg.solve(information, design.T @ (weight[:, None] * values))
        residuals = values - design @ coefficients
        chi2 = np.einsum("c,cb,bd,cd->", weight, residuals, inverse_bins, residuals)
        chi2 += np.einsum("ib,ij,jd,bd->", coefficients, prior, coefficients, inverse_bins)
        determinants = np.linalg.slogdet(information)[1] - np.log(weight).sum()
        return coefficients.T, np.linalg.inv(information), chi2 + len(error_bins) * determinants

    low, high = np.log(MISFIT_BOUNDS)
    best = optimize.minimize_scalar(
        lambda x: solve(np.exp(x))[2], bounds=(low, high), method="bounded"
    )
    misfit = float(np.exp(best.x))
    return *solve(misfit)[:2], misfit


def principal(changes: np.ndarray, n: int) -> np.ndarray:
    """Orthonormal directions that hold most of some changes.

    Parameters
    ----------
    changes : (n_points, n_bands)
    n : number of directions; no more than there are points or bands

    Returns
    -------
    (n, n_bands), the largest entry of each positive
    """
    directions = np.linalg.svd(changes, full_matrices=False)[2][:n]
    largest = np.abs(directions).argmax(1)
    return directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
