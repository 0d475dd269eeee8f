"""The noise debias from a survey's own maps.

The noise bias depends on the primary E power, the gain and the noise of the maps. A survey measures
all three through p̂, the E and B power of the same patches. The debiased bandpowers are

    d'_b = d_b − Σ_i G_bi (p̂_i − p_i^fid)

(docs/noise-bias, eqs 6 and 7). To first order they do not depend on C^EE. They depend on the gain
and the noise far less than d does. This module takes and returns arrays.
:mod:`cobaya_cnnlens.pipeline.assemble` and :mod:`cobaya_cnnlens.maps` read the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg

from ..likelihood.fields import NUISANCES, ROTATION, SIMULATED
from . import curvature, second_order
from .covariance import mean_covariance, sample_covariance, shrunk_covariance
from .curvature import Curvature
from .derivatives import BandDerivatives, NoiseDerivatives
from .response import standard_error
from .second_order import FitPoints, SecondOrder

# Columns of the nuisances that a likelihood samples, among ``SIMULATED``.
SAMPLED = slice(len(NUISANCES))
# Prior widths S of the relative change of the power in a band of E, of the shift of the peaks of E
# in steps of ω_c, and of the relative change of the noise rms.
E_WIDTH, SHIFT_WIDTH, NOISE_WIDTH = 1.0, 3.0, 0.05
# With fewer than FEW simulated patches per entry of d and p̂, the correlations are shrunk. With
# fewer than MANY, the scatter is that of held-out patches: each of FOLDS parts is left out in turn.
FEW, MANY, FOLDS = 20, 50, 20


@dataclass(frozen=True)
class SimulatedChanges:
    """How bandpowers, or the power of E and B, change in simulations with common random numbers.

    Attributes
    ----------
    derivatives : in the bands of both spectra, by patch
    shifted : d − signal, or p̂ (not its change), of the same patches at ω_c − step and ω_c + step,
        (2, n_patches, n)
    nuisances : first and second order in what simulations change of the instrument, in the order of
        ``SIMULATED``, (n_patches, n, n_simulated) each
    """

    derivatives: NoiseDerivatives
    shifted: np.ndarray
    nuisances: tuple[np.ndarray, np.ndarray]

    def to_ee_and_noise(self, shifted_bands: np.ndarray) -> np.ndarray:
        """A or J of docs/noise-bias, eq. 7.

        ω_c shifts the peaks of C^EE. No change of the bands' amplitudes describes that if the bands
        are as wide as the peaks.

        Parameters
        ----------
        shifted_bands : δ_j of the bands at ω_c ∓ step, (2, n_kk + n_ee)

        Returns
        -------
        mean change per unit relative change of each band of C^EE, per step of ω_c at fixed C^κκ,
        and per unit relative change of the map noise, (n, n_ee + 2)
        """
        kk, ee = self.derivatives.kk.values, self.derivatives.ee.values
        below, above = self.shifted.mean(1)
        of_kk = kk @ (shifted_bands[1] - shifted_bands[0])[: kk.shape[1]]
        noise = self.nuisances[0][..., SIMULATED.index("noise")].mean(0)
        return np.column_stack([ee, 0.5 * (above - below - of_kk), noise])

    def scaled(self, factor: np.ndarray) -> SimulatedChanges:
        """The same relative changes of other values, bin by bin.

        Parameters
        ----------
        factor : the other values over those of these simulations, (n,)

        Returns
        -------
        changes : each times the factor of its bin
        """
        kk, ee = (
            replace(bands, patches=bands.patches * factor[:, None])
            for bands in (self.derivatives.kk, self.derivatives.ee)
        )
        first, second = (orders * factor[:, None] for orders in self.nuisances)
        derivatives = NoiseDerivatives(kk, ee, self.derivatives.centre * factor)
        return SimulatedChanges(derivatives, self.shifted * factor, (first, second))


@dataclass(frozen=True)
class DataDebias:
    """The debias of a survey by its own power, and what is left of the changes of its bandpowers.

    Attributes
    ----------
    coefficients : G, (n_bins, n_power) in 1/µK²
    derivatives : of d'
    power : changes of p̂
    test_power : p̂ of the test patches, (n_patches, n_power) in µK²
    second : response surface of d' over the prior, or its second order along ω_c
    over_fitted : d' of a test patch with G, less that with the G of other patches,
        (n_patches, n_bins); zero if there are many patches
    """

    coefficients: np.ndarray
    derivatives: NoiseDerivatives
    power: SimulatedChanges
    test_power: np.ndarray
    second: SecondOrder | Curvature
    over_fitted: np.ndarray

    def model_error(self, bands: np.ndarray, constant: bool = False) -> np.ndarray:
        """Monte-Carlo covariance of the models' changes of d' and p̂ at some spectra.

        Parameters
        ----------
        bands : δ_j, C^κκ before C^EE, (n_kk + n_ee,)
        constant : leave out the terms whose error follows the survey's amplitudes

        Returns
        -------
        (n_bins + n_power, n_bins + n_power)
        """
        kk = bands[: self.derivatives.kk.patches.shape[2]]
        power = self.power.derivatives.change_at(bands)
        if isinstance(self.second, Curvature):
            u = kk @ self.second.kk_direction
            first = self.derivatives.change_at(bands) + self.second.left * u
            first = first + self.second.patches * u**2
            return mean_covariance(np.hstack([first, power]))
        w = self.second.amplitudes(power.mean(0), kk)
        # Along its directions the surface holds the first order, and the error of that.
        beyond = self.derivatives.change_at(bands - self.second.along(w))
        error = mean_covariance(np.hstack([beyond, power]))
        if constant:
            w[: self.second.n_v], w[-1] = 0.0, 0.0
        n_bins = len(self.coefficients)
        error[:n_bins, :n_bins] += self.second.covariance(w)
        return error


def fit(
    bandpowers: SimulatedChanges,
    power: SimulatedChanges,
    test_bandpowers: np.ndarray,
    test_power: np.ndarray,
    shifted_bands: np.ndarray,
    points: FitPoints | None,
    n_patches: int,
    groups: np.ndarray | None = None,
) -> DataDebias:
    """Fit the debias of surveys of ``n_patches`` patches to simulations.

    Parameters
    ----------
    bandpowers, power : changes of d − signal, and of p̂
    test_bandpowers, test_power : d and p̂ of the test patches, (n_sim, n_bins) and (n_sim, n_power)
    shifted_bands : δ_j of the bands at ω_c ∓ step, (2, n_kk + n_ee)
    points : patches at other cosmologies, for a response surface over the prior; None for a second
        order along ω_c
    n_patches : of the survey
    groups : of the test patches, see :func:`fit_coefficients`

    Returns
    -------
    coefficients, and what they leave
    """
    fiducial = test_power.mean(0)
    n_bins = test_bandpowers.shape[1]
    # Relative powers: p̂ spans six orders of magnitude.
    relative = power.to_ee_and_noise(shifted_bands) / fiducial[:, None]
    n_ee = relative.shape[1] - 2
    widths = np.array([*np.full(n_ee, E_WIDTH), SHIFT_WIDTH, NOISE_WIDTH])
    samples = np.hstack([test_bandpowers, test_power / fiducial - 1.0])
    coefficients, over_fitted = fit_coefficients(
        bandpowers.to_ee_and_noise(shifted_bands), relative, widths, samples, n_patches, groups
    )
    coefficients = coefficients / fiducial
    derivatives = _less_power(bandpowers.derivatives, power.derivatives, coefficients)
    second: SecondOrder | Curvature
    if points is None:
        shifted = bandpowers.shifted - power.shifted @ coefficients.T
        second = curvature.curvature_of(derivatives, shifted, shifted_bands)
    else:
        weight = np.linalg.inv(_scatter(samples)[n_bins:, n_bins:])

        def amplitudes(directions: np.ndarray) -> np.ndarray:
            """Generalised least squares of the amplitudes of changes of C^EE, the noise free."""
            changes = relative[:, :n_ee] @ directions.T
            design = np.column_stack([changes, relative[:, -1]])
            return np.linalg.solve(design.T @ weight @ design, design.T @ weight)[:-1] / fiducial

        second = second_order.fit(points, derivatives, coefficients, amplitudes)
    return DataDebias(coefficients, derivatives, power, test_power, second, over_fitted)


def release_fields(
    debias: DataDebias,
    nuisances: tuple[np.ndarray, np.ndarray],
    test_bandpowers: np.ndarray,
    test_truth: np.ndarray,
    error_bands: np.ndarray,
) -> dict[str, Any]:
    """The fields of a release that the debias determines; ``power`` is the fiducial one.

    Parameters
    ----------
    debias : of :func:`fit`
    nuisances : first and second order of d, by patch
    test_bandpowers, test_truth : d and ⟨κκ*⟩ of the test patches, (n_sim, n_bins)
    error_bands : δ_j where the Monte-Carlo error of the model is taken, (n_kk + n_ee,)

    Returns
    -------
    arrays by the attributes of a release
    """
    fiducial = debias.test_power.mean(0)
    coefficients, derivatives = debias.coefficients, debias.derivatives
    if isinstance(debias.second, SecondOrder):
        coefficients, derivatives, fields = _second_order_fields(debias, debias.second)
    else:
        fields = _moments("curvature", debias.second.patches)
    scattered = test_bandpowers - (debias.test_power - fiducial) @ coefficients.T
    scattered = scattered - debias.over_fitted
    first, second = (
        d - np.einsum("bi,pix->pbx", coefficients, p)
        for d, p in zip(nuisances, debias.power.nuisances, strict=True)
    )
    n_bins = scattered.shape[1]
    # Of d' and p̂ side by side: the scatter of one patch, and the errors of N, p^fid and the model.
    scatter = sample_covariance(np.hstack([scattered, debias.test_power]))
    noise_error = mean_covariance(np.hstack([scattered - test_truth, debias.test_power]))
    model_error = debias.model_error(error_bands, constant=True)
    d_d, d_p, p_p = np.s_[:n_bins, :n_bins], np.s_[:n_bins, n_bins:], np.s_[n_bins:, n_bins:]
    power = debias.power
    return {
        "power": fiducial,
        "fiducial_power": fiducial,
        "debias_coefficients": coefficients,
        "kk_direction": debias.second.kk_direction,
        "patch_covariance": scatter[d_d],
        "noise_covariance": noise_error[d_d],
        "derivative_covariance": model_error[d_d],
        **derivative_fields(derivatives),
        **nuisance_fields((first, second)),
        "power_kk_derivatives": power.derivatives.kk.values,
        "power_ee_derivatives": power.derivatives.ee.values,
        **rotation_fields(second, power.nuisances[1]),
        "power_nuisance_first": power.nuisances[0][..., SAMPLED].mean(0),
        "power_nuisance_second": power.nuisances[1][..., SAMPLED].mean(0),
        "power_covariance": scatter[p_p],
        "power_cross_covariance": scatter[d_p],
        "power_error_covariance": (noise_error + model_error)[p_p],
        "power_error_cross": (noise_error + model_error)[d_p],
        **fields,
    }


def _second_order_fields(
    debias: DataDebias, second: SecondOrder
) -> tuple[np.ndarray, NoiseDerivatives, dict[str, Any]]:
    """G and the derivatives of d' with the first order of the response surface, and the fields of
    its second order."""
    # The surface is what the derivatives N' δ leave: G takes its first order in v, N' that in u.
    of_v, of_u = second.first_order
    coefficients = debias.coefficients + of_v @ second.ee_directions.T
    kk = debias.derivatives.kk
    kk = replace(kk, patches=kk.patches + of_u[:, None] * second.kk_direction)
    n_v, n_main = second.n_v, second.n_main
    squares = [second.number(i, j) for i, j in second_order.pairs(n_v)]
    cross, square_of_u = [second.number(i, n_v) for i in range(n_v)], second.number(n_v, n_v)
    directions = second.ee_directions[:, :n_v]
    variance = second.error_terms[square_of_u, square_of_u] * np.diagonal(second.error_bins)
    fields = {
        "curvature": second.values[:, square_of_u],
        "curvature_errors": np.sqrt(variance),
        "ee_directions": directions,
        "amplitude_covariance": directions.T @ sample_covariance(debias.test_power) @ directions,
        "debias_second": second.values[:, squares],
        "debias_cross": second.values[:, cross],
        "surface_error_terms": linalg.block_diag(
            second.error_terms[:n_main, :n_main], second.misfit**2
        ),
        "surface_error_bins": second.error_bins,
    }
    return coefficients, replace(debias.derivatives, kk=kk), fields


def _moments(name: str, by_patch: np.ndarray) -> dict[str, np.ndarray]:
    return {name: by_patch.mean(0), f"{name}_errors": standard_error(by_patch)}


def derivative_fields(derivatives: NoiseDerivatives) -> dict[str, np.ndarray]:
    """The fields of a release that hold the derivatives in C^κκ.

    Parameters
    ----------
    derivatives : by patch

    Returns
    -------
    means and standard errors by the attributes of a release
    """
    kk = derivatives.kk
    return {"kk_derivatives": kk.values, "kk_derivative_errors": kk.errors}


def nuisance_fields(by_patch: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields of a release that hold the nuisances.

    Parameters
    ----------
    by_patch : first and second order, (n_patches, n_bins, n_simulated) each

    Returns
    -------
    means and standard errors by the attributes of a release
    """
    first, second = (orders[..., SAMPLED] for orders in by_patch)
    return _moments("nuisance_first", first) | _moments("nuisance_second", second)


def rotation_fields(bandpowers: np.ndarray, power: np.ndarray) -> dict[str, np.ndarray]:
    """The fields of a release that hold the effect of a rotation of the polarisation, whose first
    order vanishes by parity.

    Parameters
    ----------
    bandpowers, power : second order of d' and of p̂, (n_patches, n, n_simulated) each

    Returns
    -------
    means and standard errors by the attributes of a release
    """
    column = SIMULATED.index(ROTATION)
    return {
        **_moments("rotation_second", bandpowers[..., column]),
        "power_rotation_second": power[..., column].mean(0),
    }


def fit_coefficients(
    bandpower_response: np.ndarray,
    power_response: np.ndarray,
    prior_width: np.ndarray,
    samples: np.ndarray,
    n_patches: int,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """G from simulated patches, and how far it fits the scatter of those patches.

    If there are few patches per entry of d and p̂, G fits the noise of these patches. Their d' then
    scatters less than that of other patches. With fewer than ``FEW`` patches per entry, the
    correlations are shrunk. With fewer than ``MANY``, leaving patches out measures the difference.
    With more, the difference is below 2% of σ.

    Parameters
    ----------
    bandpower_response, power_response, prior_width : of :func:`debias_coefficients`
    samples : d and p̂ of simulated patches side by side, (n_sim, n_bins + n_power), p̂ of mean zero
    n_patches : of the survey
    groups : number of each simulated patch's group, (n_sim,). Patches of one group are left out
        together, as they must be if their common mean was subtracted. By default, and if there is
        one group alone, each patch is one.

    Returns
    -------
    coefficients : G, (n_bins, n_power)
    over_fitted : d' of each patch with G, less that with a G of other patches, (n_sim, n_bins)
    """
    n_sim, n_bins = len(samples), len(bandpower_response)

    def estimate(rows: np.ndarray) -> np.ndarray:
        scatter = _scatter(rows) / n_patches
        return debias_coefficients(
            bandpower_response,
            power_response,
            prior_width,
            scatter[:n_bins, n_bins:],
            scatter[n_bins:, n_bins:],
        )

    coefficients, over_fitted = estimate(samples), np.zeros((n_sim, n_bins))
    if _fewer(samples, MANY):
        group = np.unique(np.arange(n_sim) if groups is None else groups, return_inverse=True)[1]
        if not group.any():  # one group: there are no patches of another one
            group = np.arange(n_sim)
        fold = group % min(FOLDS, group.max() + 1)
        for number in range(fold.max() + 1):
            out = fold == number
            change = estimate(samples[~out]) - coefficients
            over_fitted[out] = samples[out, n_bins:] @ change.T
    return coefficients, over_fitted


def _fewer(samples: np.ndarray, than: int) -> bool:
    """Whether there are fewer patches per number than that."""
    return len(samples) < than * samples.shape[1]


def _scatter(samples: np.ndarray) -> np.ndarray:
    """Covariance of one patch, whose inverse is not dominated by noise."""
    return (shrunk_covariance if _fewer(samples, FEW) else sample_covariance)(samples)


def debias_coefficients(
    bandpower_response: np.ndarray,
    power_response: np.ndarray,
    prior_width: np.ndarray,
    cross_covariance: np.ndarray,
    power_covariance: np.ndarray,
) -> np.ndarray:
    """Coefficients that turn a survey's own E and B power into a correction of its bandpowers.

    They are the best linear prediction of the change of the bandpowers d from the measured power p̂,

        G = (A S² Jᵀ + C_dp/n) (J S² Jᵀ + C_pp/n)⁻¹

    (docs/noise-bias, eq. 7). C_dp and C_pp are the covariances of one patch, and the survey has n
    patches. The term C_dp/n removes the scatter of d that the patches' own power predicts.

    Parameters
    ----------
    bandpower_response : A, change of d per unit relative change of each parameter, (n_bins, n_x)
    power_response : J, change of p̂ for the same, (n_power, n_x)
    prior_width : S, how far each parameter may be from the fiducial model, relative, (n_x,)
    cross_covariance, power_covariance : C_dp/n and C_pp/n, the covariances of the survey's d with
        p̂, (n_bins, n_power), and of its p̂, (n_power, n_power)

    Returns
    -------
    coefficients : G, (n_bins, n_power)
    """
    spread = power_response * prior_width
    total = spread @ spread.T + power_covariance
    numerator = bandpower_response * prior_width @ spread.T + cross_covariance
    return np.linalg.solve(total, numerator.T).T


def _less_power(
    bandpowers: NoiseDerivatives, power: NoiseDerivatives, coefficients: np.ndarray
) -> NoiseDerivatives:
    """Derivatives of d − G p̂."""

    def bands(d: BandDerivatives, p: BandDerivatives) -> BandDerivatives:
        return BandDerivatives(
            d.edges, d.patches - np.einsum("bi,pij->pbj", coefficients, p.patches)
        )

    centre = bandpowers.centre - power.centre @ coefficients.T
    return NoiseDerivatives(bands(bandpowers.kk, power.kk), bands(bandpowers.ee, power.ee), centre)
