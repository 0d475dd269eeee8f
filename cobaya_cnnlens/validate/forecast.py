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
    """Fisher errors of ω_c from one patch, all else fixed; (n_configurations,) each.

    ``sigma`` : with a debias that follows the cosmology; ``sigma_fixed`` : with the debias of the
    fiducial one, and ``recovered`` : the fraction of a true change of ω_c that the latter finds (1:
    no bias). Each with its 1σ Monte-Carlo error, from the derivatives' patches (jackknife) and, for
    the σ, from the number of simulations behind the covariance.
    """

    names: tuple[str, ...]
    sigma: np.ndarray
    sigma_error: np.ndarray
    sigma_fixed: np.ndarray
    sigma_fixed_error: np.ndarray
    recovered: np.ndarray
    recovered_error: np.ndarray

    def table(self) -> str:
        """As text, a line for each configuration."""
        fixed = plus_minus(self.sigma_fixed, self.sigma_fixed_error, ".5f")
        recovered = plus_minus(self.recovered, self.recovered_error, ".3f")
        return text_table(
            {
                "one patch": ("", self.names),
                "sigma(omch2)": (">", plus_minus(self.sigma, self.sigma_error, ".5f")),
                "with fixed debias": (">", fixed),
                "fraction of a change found with fixed debias": (">", recovered),
            }
        )


def forecast(*runs: Run) -> Forecast:
    """Fisher errors of ω_c from the skies of the ``derivatives`` set at ω_c ± step.

    The slope of the debiased bandpowers is that of the noise bias, measured, plus that of the
    signal through the windows; the covariance is that of single test patches with Hartlap's factor.

    Parameters
    ----------
    *runs : configurations, with their products and networks

    Returns
    -------
    forecast : errors with each debias, by configuration

    Raises
    ------
    products.ProductError
        if bandpowers or shifted skies are missing
    """
    sigma, fixed, recovered = np.transpose([_errors(run) for run in runs], (2, 1, 0))
    return Forecast(tuple(run.config.name for run in runs), *sigma, *fixed, *recovered)


def _errors(run: Run) -> np.ndarray:
    """σ, σ with the fixed debias, and the fraction recovered, with their errors, (2, 3)."""
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
    without_one = (noise.sum(0) - noise) / (n - 1)
    jackknife = np.array([results(signal + mean) for mean in without_one])
    errors = np.sqrt((n - 1) * jackknife.var(0))
    # The relative error of a Fisher error from n_sim simulations, 1/√(2(n_sim − n_bins)).
    errors[:2] = np.hypot(errors[:2], values[:2] / np.sqrt(2.0 * (n_sim - n_bins)))
    return np.array([values, errors])
