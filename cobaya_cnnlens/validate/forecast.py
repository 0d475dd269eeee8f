"""What one patch tells about ω_c: Fisher errors from skies with common phases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..calibrate.covariance import sample_covariance
from ..likelihood.statistics import hartlap_factor, inverse_covariance
from ..pipeline.assemble import calibration_of
from ..pipeline.perturbations import ShiftedSkies
from ..pipeline.reconstructions import signal_bandpowers
from ..pipeline.run import Run
from ..table import plus_minus, text_table


@dataclass(frozen=True)
class Forecast:
    """Fisher errors of ω_c from one patch, all else fixed.

    ``sigma`` : with a debias that follows the cosmology; ``sigma_fixed`` : with the debias of the
    fiducial one, and ``recovered`` : the part of a true change of ω_c that the latter finds (1: no
    bias). Each with its 1σ Monte-Carlo error, from the derivatives' patches (jackknife) and, for
    the σ, from the number of simulations behind the covariance.
    """

    sigma: float
    sigma_error: float
    sigma_fixed: float
    sigma_fixed_error: float
    recovered: float
    recovered_error: float
    n_bins: int
    n_sim: int


def forecasts_table(forecasts: dict[str, Forecast]) -> str:
    """Fisher errors of ω_c from one patch as text, a line for each configuration.

    Parameters
    ----------
    forecasts : by name of the configuration

    Returns
    -------
    table : as text
    """

    def column(name: str, form: str) -> tuple[str, list[str]]:
        values, errors = (
            [getattr(f, key) for f in forecasts.values()] for key in (name, f"{name}_error")
        )
        return ">", plus_minus(values, errors, form)

    return text_table(
        {
            "one patch": ("", forecasts),
            "sigma(omch2)": column("sigma", ".5f"),
            "with fixed debias": column("sigma_fixed", ".5f"),
            "part of a change found with fixed debias": column("recovered", ".3f"),
        }
    )


def forecast(run: Run) -> Forecast:
    """Fisher errors of ω_c from the skies of the ``derivatives`` set at ω_c ± step.

    The slope of the debiased bandpowers is that of the noise debias, measured, plus that of the
    signal through the windows; the covariance is that of single test patches with Hartlap's factor.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    forecast : errors with each noise debias

    Raises
    ------
    products.ProductError
        if bandpowers or shifted skies are missing
    """
    calibration, test = calibration_of(run)
    debiased = calibration.debias(test.auto)
    n_sim, n_bins = debiased.shape
    inverse = inverse_covariance(sample_covariance(debiased)) * hartlap_factor(n_sim, n_bins)

    step = 2.0 * run.config.derivatives.omch2_step
    low, high = (
        run.spectra(run.config.cosmology.vary(omch2=omch2)).kk
        for omch2 in run.config.shifted_omch2()
    )
    signal = signal_bandpowers(run, high - low) / step
    below, above = ShiftedSkies(run).read(calibration.response)
    noise = (above - below) / step

    def results(slope: np.ndarray) -> np.ndarray:
        fixed = signal @ inverse @ signal
        return np.array(
            [(slope @ inverse @ slope) ** -0.5, fixed**-0.5, signal @ inverse @ slope / fixed]
        )

    values = results(signal + noise.mean(0))
    n = len(noise)
    rest = (noise.sum(0) - noise) / (n - 1)
    left_out = np.array([results(signal + r) for r in rest])
    errors = np.sqrt((n - 1) * left_out.var(0))
    # The relative error of a Fisher error from n_sim simulations, 1/√(2(n_sim − n_bins)).
    errors[:2] = np.hypot(errors[:2], values[:2] / np.sqrt(2.0 * (n_sim - n_bins)))
    (sigma, fixed, recovered), (sigma_e, fixed_e, recovered_e) = map(
        np.ndarray.tolist, (values, errors)
    )
    return Forecast(sigma, sigma_e, fixed, fixed_e, recovered, recovered_e, n_bins, n_sim)
