"""Do the posteriors mean what they say? Coverage of intervals and simulation-based calibration.

ω_c of every sky is drawn from the prior under which its posterior is made, so that the posterior's
cumulative value at the truth, the rank, is uniform if likelihood and covariance are right (Talts et
al. 2018, arXiv:1804.06788), and a central interval of probability p holds the truth p of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import kstest

from ..calibrate.coverage import read_coverage
from ..calibrate.response import Calibration, standard_error
from ..config import Config
from ..errors import CNNLensError
from ..model import BandpowerLikelihood
from ..release import Release
from .tables import Omch2Likelihood

INTERVALS = (0.68, 0.95)


@dataclass(frozen=True)
class CoverageTable:
    """Posteriors of ω_c of disjoint surveys under the prior that their truths were drawn from.

    Attributes
    ----------
    patches_each, n_skies : patches per survey; skies they were cut from
    prior : its two ends
    truth, mean, sigma : true ω_c, posterior mean and standard deviation, (n_surveys,)
    rank : posterior probability below the truth, (n_surveys,)
    best : maximum-likelihood ω_c over a range wider than the prior, (n_surveys,)
    expected : Fisher error of ω_c at each truth, (n_surveys,)
    """

    patches_each: int
    n_skies: int
    prior: tuple[float, float]
    truth: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray
    rank: np.ndarray
    best: np.ndarray
    expected: np.ndarray

    def covered(self, probability: float) -> tuple[float, float]:
        """Part of the central intervals that hold the truth, and its binomial standard error."""
        part = float((np.abs(self.rank - 0.5) < 0.5 * probability).mean())
        return part, float(np.sqrt(probability * (1 - probability) / len(self.rank)))

    @property
    def pulls(self) -> np.ndarray:
        """(best − truth)/expected error, (n_surveys,)."""
        return (self.best - self.truth) / self.expected

    @property
    def uniformity(self) -> float:
        """Probability that uniform ranks lie further from uniformity (Kolmogorov–Smirnov)."""
        return float(kstest(self.rank, "uniform").pvalue)

    def bias(self) -> tuple[float, float]:
        """Mean of best − truth and its standard error, from the scatter between surveys."""
        difference = self.best - self.truth
        return float(difference.mean()), float(standard_error(difference))


def coverage_table(
    config: Config,
    network_hash: str,
    release: Release,
    patches_each: int | None = None,
    noise_debias: str = "quadratic",
) -> CoverageTable:
    """Posteriors of all disjoint surveys that the coverage skies give.

    Parameters
    ----------
    release : whose calibration, model and covariance are tested; its data play no part
    patches_each : patches of one survey; the configuration's by default

    Raises
    ------
    CNNLensError
        if a sky has fewer patches than a survey, or another network made the release
    """
    patches_each = patches_each or config.coverage.patches_each
    if (made_with := release.provenance.get("network_sha256")) != network_hash:
        raise CNNLensError(
            f"release '{release.name}', field 'provenance.network_sha256': made with network "
            f"{str(made_with)[:16]}…, the configuration's is {network_hash[:16]}…; use the release "
            "that this network made"
        )
    calibration = Calibration(
        release.response, release.response_error, release.noise, release.noise_error
    )
    likelihood = BandpowerLikelihood(release, noise_debias)
    table = Omch2Likelihood(config, likelihood)
    shared = release.noise_covariance + release.derivative_covariance
    covariance = release.patch_covariance / patches_each + shared
    skies = read_coverage(config, network_hash)
    truth, data = [], []
    for sky in skies:
        n = len(sky.auto) // patches_each
        if not n:
            raise CNNLensError(f"a sky has {len(sky.auto)} patches, a survey {patches_each}")
        debiased = calibration.debias(sky.auto)[: n * patches_each]
        data.append(debiased.reshape(n, patches_each, -1).mean(1))
        truth += [sky.omch2] * n
    truth, data = np.array(truth), np.concatenate(data)
    low, high = config.coverage.omch2
    grid = np.linspace(low, high, 2001)
    probability = table.posterior(data, covariance, grid, likelihood.hartlap)
    cumulative = np.cumsum(0.5 * (probability[:, 1:] + probability[:, :-1]), axis=1)
    cumulative = np.pad(cumulative / cumulative[:, -1:], ((0, 0), (1, 0)))
    probability /= probability.sum(1, keepdims=True)
    mean = probability @ grid
    best, _ = table.maximum(data, covariance)
    return CoverageTable(
        patches_each,
        len(skies),
        (low, high),
        truth,
        mean,
        np.sqrt(probability @ grid**2 - mean**2),
        np.array([np.interp(t, grid, c) for t, c in zip(truth, cumulative, strict=True)]),
        best,
        np.array([table.sigma(t, covariance) for t in truth]),
    )
