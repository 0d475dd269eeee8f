"""The noise debias from a survey's own maps.

N_b moves with the power of E, with the gain and with the noise of the maps, and a survey measures
all of these. As realisation-dependent debiasing does for quadratic estimators (Namikawa et al.
2013, arXiv:1209.0091), part of the data goes into the debias: with p̂ the power of E and B of the
same patches (:mod:`.power`),

    d'_b = d_b − Σ_i G_bi (p̂_i − p_i^fid).

Let x be relative changes of the power in the bands of unlensed E, and of the noise, with
independent priors of widths S; A = ∂d/∂x and J = ∂p̂/∂x from common random numbers. The best
linear estimate of d's change with x from p̂, whose scatter over n patches is C_pp/n, is

    G = (A S² Jᵀ + C_dp/n) (J S² Jᵀ + C_pp/n)⁻¹.

C_dp takes with it what of d's scatter the patches' own power tells. What G leaves, A − G J, stays
in the model, and so does −G ∂p̂/∂ ln C^κκ: d' is unbiased for any G. Second order, nuisances and
covariances are measured of d' as they are of d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..likelihood.document import NUISANCES
from ..likelihood.release import DataDebias
from ..pipeline.run import Run
from . import curvature, nuisances, power
from .bandpowers import PatchBandpowers
from .covariance import mean_covariance, sample_covariance
from .derivatives import SET, BandDerivatives, NoiseDerivatives
from .response import Calibration, standard_error

# Prior widths S: of the power in a band of E, and of the noise rms, relative.
E_WIDTH, NOISE_WIDTH = 0.2, 0.05


@dataclass(frozen=True)
class Measured:
    """What was measured of d = κ̂'s debiased bandpowers, by patch: ``first`` and ``shifted`` of the
    derivatives' patches, ``nuisances`` first and second order."""

    first: NoiseDerivatives
    shifted: np.ndarray
    nuisances: tuple[np.ndarray, np.ndarray]


def data_debias(
    run: Run, calibration: Calibration, test: PatchBandpowers, of_d: Measured, n_patches: int
) -> DataDebias:
    """The debias from the data of surveys of ``n_patches``; its ``power`` is the fiducial's.

    Raises
    ------
    products.ProductError
        if the power of a set has not been measured
    """
    config = run.config
    of_test = power.read(run, "test", range(config.skies.test))["power"]
    fiducial = of_test.mean(0)
    answers = _power_answers(run)
    # Relative powers: p̂ spans six orders of magnitude.
    debiased = calibration.debias(test.auto)
    scatter = sample_covariance(np.hstack([debiased, of_test / fiducial]))
    n_bins = debiased.shape[1]
    noise = NUISANCES.index("noise")
    relative = coefficients(
        np.column_stack([of_d.first.ee.values, of_d.nuisances[0][..., noise].mean(0)]),
        np.column_stack([answers.first.ee.values, answers.nuisances[0][..., noise].mean(0)])
        / fiducial[:, None],
        np.append(np.full(len(of_d.first.ee.edges) - 1, E_WIDTH), NOISE_WIDTH),
        scatter[:n_bins, n_bins:] / n_patches,
        scatter[n_bins:, n_bins:] / n_patches,
    )
    gain = relative / fiducial
    bands, shifted = _less_power(of_d.first, of_d.shifted, answers, gain)
    curved = curvature.curvature_of(run, bands, shifted)
    of_patches = debiased - (of_test - fiducial) @ gain.T
    first, second = (
        d - np.einsum("bi,pix->pbx", gain, p)
        for d, p in zip(of_d.nuisances, answers.nuisances, strict=True)
    )
    measured = power.power_of(run)
    return DataDebias(
        e_edges=measured.e_edges,
        b_edges=measured.b_edges,
        power=fiducial,
        fiducial_power=fiducial,
        coefficients=gain,
        patch_covariance=sample_covariance(of_patches),
        noise_covariance=mean_covariance(of_patches - test.truth),
        derivative_covariance=mean_covariance(curved.shift),
        kk_derivatives=bands.kk.values,
        kk_derivative_errors=bands.kk.errors,
        ee_derivatives=bands.ee.values,
        ee_derivative_errors=bands.ee.errors,
        curvature=curved.patches.mean(0),
        curvature_errors=standard_error(curved.patches),
        nuisance_first=first.mean(0),
        nuisance_first_errors=standard_error(first),
        nuisance_second=second.mean(0),
        nuisance_second_errors=standard_error(second),
    )


def coefficients(
    of_d: np.ndarray,
    of_power: np.ndarray,
    widths: np.ndarray,
    cross: np.ndarray,
    scatter: np.ndarray,
) -> np.ndarray:
    """G, (n_bins, n_power).

    Parameters
    ----------
    of_d : A = ∂d/∂x, (n_bins, n_x)
    of_power : J = ∂p̂/∂x, (n_power, n_x)
    widths : S, (n_x,)
    cross, scatter : C_dp/n, (n_bins, n_power), and C_pp/n, (n_power, n_power)
    """
    spread = of_power * widths
    total = spread @ spread.T + scatter
    return np.linalg.solve(total, (of_d * widths @ spread.T + cross).T).T


def _power_answers(run: Run) -> Measured:
    """Of p̂, what :class:`Measured` holds of d; its true power is zero."""
    config = run.config
    found = power.read(run, SET, range(config.skies.derivatives))
    indices = range(config.nuisances.skies)
    centre = power.read(run, nuisances.SET, indices, config.nuisances.patches)["power"]
    seen = power.read(run, "nuisances", indices)
    both = np.stack([seen[name] for name in NUISANCES], axis=-1)
    settings = config.derivatives
    kk, ee = (
        BandDerivatives(np.array(edges), found[name].transpose(1, 2, 0))
        for name, edges in (("kk", settings.kk_edges), ("ee", settings.ee_edges))
    )
    return Measured(
        NoiseDerivatives(kk, ee, found["power"]),
        found["shifted"],
        nuisances.orders(run, centre, both),
    )


def corrected(
    run: Run, first: NoiseDerivatives, shifted: np.ndarray, gain: np.ndarray
) -> tuple[NoiseDerivatives, np.ndarray]:
    """Of d' = d − G p̂ what ``first`` and ``shifted`` are of d."""
    return _less_power(first, shifted, _power_answers(run), gain)


def _less_power(first, shifted, of_power, gain):
    def bands(kind: str) -> BandDerivatives:
        d, p = getattr(first, kind), getattr(of_power.first, kind)
        return BandDerivatives(d.edges, d.patches - np.einsum("bi,pij->pbj", gain, p.patches))

    centre = first.centre - of_power.first.centre @ gain.T
    moved = NoiseDerivatives(bands("kk"), bands("ee"), centre)
    return moved, shifted - of_power.shifted @ gain.T
