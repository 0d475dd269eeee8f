"""What a release holds beside its bandpowers, noise and windows: covariances and changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import curvature, debias
from .covariance import mean_covariance, sample_covariance
from .debias import DataDebias, SimulatedChanges
from .response import Calibration, PatchBandpowers, standard_error


def error_fields(
    calibration: Calibration,
    test: PatchBandpowers,
    changes: SimulatedChanges,
    fitted: DataDebias | None,
    shifted: np.ndarray,
) -> dict[str, Any]:
    """Covariances, derivatives and nuisances of the bandpowers, as debiased and as they are.

    Parameters
    ----------
    calibration : R and N
    test : the patches that N and the covariance rest on
    changes : of d − signal, divided by R²
    fitted : the debias from the data; None for one that stays at the fiducial cosmology
    shifted : δ_j of the bands at ω_c ∓ step, (2, n_kk + n_ee)

    Returns
    -------
    arrays by the attributes of a release
    """
    debiased = calibration.debias(test.auto)
    covariances: dict[str, np.ndarray] = {
        "patch_covariance": sample_covariance(debiased),
        "noise_covariance": mean_covariance(debiased - test.truth),
    }
    of_nuisances = debias.nuisance_fields(changes.nuisances)
    if fitted is None:
        return covariances | of_nuisances | _second_order_along_omch2(changes, shifted)
    change = curvature.change_above(changes.derivatives, changes.shifted, shifted)
    covariances["noise_covariance"] += mean_covariance(change)
    fixed = covariances | {k: of_nuisances[k] for k in ("nuisance_first", "nuisance_second")}
    return {
        **{f"fixed_{name}": values for name, values in fixed.items()},
        **debias.release_fields(fitted, changes.nuisances, debiased, test.truth, shifted[1]),
    }


def _second_order_along_omch2(changes: SimulatedChanges, shifted: np.ndarray) -> dict[str, Any]:
    """Derivatives in C^κκ with the second order along ω_c, and their Monte-Carlo error."""
    curved = curvature.curvature_of(changes.derivatives, changes.shifted, shifted)
    kk = changes.derivatives.kk.patches
    above = shifted[1, : kk.shape[2]]
    u = above @ curved.kk_direction
    return {
        "derivative_covariance": mean_covariance(kk @ above + curved.patches * u**2),
        "kk_direction": curved.kk_direction,
        "curvature": curved.patches.mean(0),
        "curvature_errors": standard_error(curved.patches),
        **debias.derivative_fields(changes.derivatives),
    }
