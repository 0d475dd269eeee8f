"""Ranks of the truth in posteriors: whether they are as even as the likelihood says.

The rank is the posterior probability below the truth. Over truths drawn from the prior it is
uniform if likelihood and covariance are right (Talts et al. 2018, arXiv:1804.06788), and a central
interval of probability p holds the truth p of the time. That is so on average over calibrations.
The surveys at hand are not independent in two ways:

* those cut from one sky share its truth and its long modes. Errors come from resampling whole skies
  (block bootstrap: Künsch 1989, Ann. Statist. 17, 1217);
* all share one calibration, whose Monte-Carlo errors of N and of its derivatives shift every
  survey's bandpowers alike. No resampling of skies sees that, and a test that takes ranks for
  independent rejects a right likelihood too often. Ranks are judged by sets of surveys simulated
  under the release's model instead, of the same truths and a calibration error each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..likelihood.bandpowers import BandpowerLikelihood
from ..table import plus_minus, text_table
from .posterior_grid import PosteriorGrid

# Central intervals whose coverage is counted.
INTERVALS = (0.68, 0.95)
N_TENTHS = 10
# Truths this many σ within the prior are those that its ends do not touch.
INSIDE = 3.0
# Sets of skies drawn with replacement for the errors, and their seed.
N_RESAMPLED, RESAMPLING_SEED = 4000, 0


@dataclass(frozen=True)
class SimulatedRanks:
    """Ranks of sets of surveys simulated under the model, each set like the one that is tested.

    ``tenths`` : ranks in every tenth, (n_sets, 10); ``covered`` : fraction of the intervals of
    :data:`INTERVALS` that hold the truth, (n_sets, 2)
    """

    tenths: np.ndarray
    covered: np.ndarray


def _inside(rank: np.ndarray, probability: float) -> np.ndarray:
    """Whether central intervals of a probability hold the truth."""
    return np.abs(rank - 0.5) < 0.5 * probability


def _tenths(rank: np.ndarray) -> np.ndarray:
    """How many ranks lie in each tenth, (10,)."""
    return np.histogram(rank, N_TENTHS, range=(0.0, 1.0))[0]


@dataclass(frozen=True)
class Draws:
    """What surveys are drawn from.

    Attributes
    ----------
    truth : parameters of the survey, (n_parameters,)
    correction : c that the debias subtracted from its bandpowers, (n_data,)
    deviations : data of simulated patches at this truth, less their mean, (n_patches, n_data)
    n_patches : of the survey
    """

    truth: np.ndarray
    correction: np.ndarray
    deviations: np.ndarray
    n_patches: int

    def mean(self, generator: np.random.Generator) -> np.ndarray:
        """Mean deviation of patches that are drawn with replacement.

        Parameters
        ----------
        generator : of random numbers

        Returns
        -------
        (n_data,)
        """
        n = len(self.deviations)
        rows = generator.integers(n, size=self.n_patches)
        # Resampling n patches has (n − 1)/n of the variance.
        return self.deviations[rows].mean(0) * np.sqrt(n / (n - 1.0))


def simulate_ranks(
    grid: PosteriorGrid,
    likelihood: BandpowerLikelihood,
    surveys: Sequence[Draws],
    generator: np.random.Generator,
    n_sets: int,
) -> list[SimulatedRanks]:
    """Ranks of sets of surveys that are drawn from measured patches.

    d = µ(θ) + s(θ) c + e, with c of the calibration's covariance once a set, s the scatter at θ
    over the fiducial's, and e the mean of measured patches. The covariance of the likelihood plays
    no part in e, so that a wrong one is seen.

    Parameters
    ----------
    grid : of the prior
    likelihood : whose model and covariance are used
    surveys : of a set
    generator : of random numbers
    n_sets : how many sets of surveys to simulate

    Returns
    -------
    ranks : of each parameter
    """
    shared = likelihood.covariance - likelihood.own_covariance
    truth = np.array([survey.truth for survey in surveys])
    corrections = np.array([survey.correction for survey in surveys])
    table = grid.table(likelihood)
    mu = grid.at(truth) @ table
    scale = likelihood.scatter(mu, corrections)
    zero, ranks = np.zeros(len(shared)), []
    for _ in range(n_sets):
        calibration = generator.multivariate_normal(zero, shared)
        scatter = np.array([survey.mean(generator) for survey in surveys])
        data = mu + scale * calibration + scatter
        posteriors = grid.posterior(likelihood, table, data, corrections)
        ranks.append([p.ranks(t) for p, t in zip(posteriors, truth.T, strict=True)])
    return [
        SimulatedRanks(
            np.array([_tenths(rank) for rank in sets]),
            np.array([[_inside(rank, p).mean() for p in INTERVALS] for rank in sets]),
        )
        for sets in zip(*ranks, strict=True)
    ]


@dataclass(frozen=True)
class CoverageTable:
    """Posteriors of one parameter of disjoint surveys under the prior that their truths were drawn
    from, the other parameter marginalised.

    Attributes
    ----------
    parameter : its name
    patches_each : patches per survey
    prior : its two ends
    sky : number of the sky that each survey was cut from, from 0, (n_surveys,)
    truth, mean, sigma : true value, posterior mean and standard deviation, (n_surveys,)
    rank : posterior probability below the truth, (n_surveys,)
    simulated : ranks that the model gives
    alone : whether no other parameter was drawn, whose prior would pull this one's posterior

    Errors are those of the finite number of skies (block bootstrap), NaN for a single one; what
    the calibration's own error adds is in ``simulated``.
    """

    parameter: str
    patches_each: int
    prior: tuple[float, float]
    sky: np.ndarray
    truth: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray
    rank: np.ndarray
    simulated: SimulatedRanks
    alone: bool = True

    @property
    def n_skies(self) -> int:
        """Number of skies that the surveys were cut from."""
        return int(self.sky.max()) + 1

    def covered(self, probability: float) -> tuple[float, float]:
        """Fraction of the central intervals that hold the truth.

        Parameters
        ----------
        probability : of the intervals

        Returns
        -------
        fraction : of the surveys
        error : its standard error
        """
        held = _inside(self.rank, probability)
        return float(held.mean()), self._error(self._resampled(held))

    @property
    def pulls(self) -> np.ndarray:
        """(mean − truth)/σ of every posterior, (n_surveys,)."""
        return (self.mean - self.truth) / self.sigma

    def scatter(self) -> tuple[float, float]:
        """Root mean square of mean − truth over that of σ, and its standard error: over the prior,
        the variance of a posterior is the expected square of its mean's error."""
        square, variance = (self.mean - self.truth) ** 2, self.sigma**2
        resampled = np.sqrt(self._resampled(square) / self._resampled(variance))
        return float(np.sqrt(square.mean() / variance.mean())), self._error(resampled)

    def bias(self) -> tuple[float, float]:
        """Mean of (posterior mean − truth), zero over the prior, and its standard error."""
        difference = self.mean - self.truth
        return float(difference.mean()), self._error(self._resampled(difference))

    def anova(self) -> tuple[int, float, float]:
        """Compare the pulls of different skies by an F test.

        Only skies count whose truth lies ``INSIDE`` σ or more within the prior, where its ends pull
        no posterior. The three numbers are how many they are, the mean square of the pulls between
        skies over that within, and the probability of a larger one by chance; NaN unless there are
        two skies, and one has two surveys. A sky's surveys share its truth and long modes: what the
        model misses there shows here. A calibration error moves all pulls alike, and is not seen.
        """
        from scipy.stats import f_oneway

        inside = self._inside_prior
        groups = [self.pulls[inside & (self.sky == sky)] for sky in np.unique(self.sky[inside])]
        if len(groups) < 2 or len(groups) == inside.sum():
            return len(groups), float("nan"), float("nan")
        test = f_oneway(*groups)
        return len(groups), float(test.statistic), float(test.pvalue)

    @property
    def _inside_prior(self) -> np.ndarray:
        """Whether a truth lies ``INSIDE`` σ or more within the prior, (n_surveys,)."""
        low, high = self.prior
        margin = INSIDE * np.sqrt(np.mean(self.sigma**2))
        return (self.truth > low + margin) & (self.truth < high - margin)

    def slope(self) -> tuple[int, float, float]:
        """Regress the posterior mean on the truth, where the ends of the prior pull no posterior.

        A slope below one says that the model changes too fast with the parameter. This is sharper
        than the intervals.

        Returns
        -------
        n_surveys : whose truth lies ``INSIDE`` σ or more within the prior
        slope : one for a model that is right; NaN of less than three truths
        error : its standard error
        """
        inside, middle = self._inside_prior, np.mean(self.prior)
        if len(np.unique(self.truth[inside])) < 3:
            return int(inside.sum()), float("nan"), float("nan")
        x, y = (np.where(inside, values - middle, 0.0) for values in (self.truth, self.mean))

        def regressed(moment: Callable[[np.ndarray], Any]) -> Any:
            n, sx, sy, sxx, sxy = (moment(v) for v in (1.0 * inside, x, y, x * x, x * y))
            return (sxy / n - sx / n * sy / n) / (sxx / n - (sx / n) ** 2)

        with np.errstate(all="ignore"):
            slope, resampled = float(regressed(np.mean)), regressed(self._resampled)
        # Of few skies, some draws have no two truths within the prior.
        return int(inside.sum()), slope, self._error(resampled[np.isfinite(resampled)])

    @property
    def tenths(self) -> np.ndarray:
        """How many ranks lie in every tenth, (10,)."""
        return _tenths(self.rank)

    @property
    def uniformity(self) -> float:
        """Probability that ranks lie further from uniformity if the release's model holds.

        The distance is χ² of the tenths with mean and covariance of the simulated sets, in which
        the tilt by a calibration error counts little; the probability is the fraction of the sets
        that are further. The tested set is one of them, so that none is singled out.
        """
        sets = np.vstack([self.tenths, self.simulated.tenths])
        off = sets - sets.mean(0)
        # Tenths sum to the number of surveys: their covariance is singular.
        inverse = np.linalg.pinv(np.cov(sets, rowvar=False), rcond=1e-10, hermitian=True)
        chi2 = np.einsum("si,ij,sj->s", off, inverse, off)
        return float((chi2 >= chi2[0]).mean())

    def table(self) -> str:
        """As text: how often intervals hold the truth, with errors of resampled skies, beside what
        simulated sets of surveys with a calibration error give; ranks, bias and scatter."""
        low, high = self.prior
        bias, bias_error = self.bias()
        scatter, scatter_error = self.scatter()
        sigma = float(np.sqrt(np.mean(self.sigma**2)))
        covered, covered_error = 100 * np.transpose([self.covered(p) for p in INTERVALS])
        sets = 100 * self.simulated.covered
        intervals = text_table(
            {
                "interval": (">", [f"{100 * p:.0f}%" for p in INTERVALS]),
                "holds the truth, %": (">", plus_minus(covered, covered_error, ".1f")),
                "simulated sets, %": (">", plus_minus(sets.mean(0), sets.std(0, ddof=1), ".1f")),
            },
            f"{self.parameter}: {len(self.rank)} disjoint surveys of {self.patches_each} patches "
            f"from {self.n_skies} skies; drawn evenly from {low} to {high}\n"
            "errors: block bootstrap over the skies"
            + ("; one sky alone gives none" if self.n_skies == 1 else ""),
        )
        lines = [
            intervals,
            f"ranks of the truth, tenths: {' '.join(map(str, self.tenths))}; uniform with p = "
            f"{self.uniformity:.3f} (chi2 of the tenths among {len(self.simulated.tenths)} "
            "simulated sets)",
            f"posterior mean minus truth: {bias:+.5f} ± {bias_error:.5f} ({bias / sigma:+.3f} of a "
            f"posterior's sigma, {sigma:.5f}); its rms {scatter:.3f} ± {scatter_error:.3f} sigma",
        ]
        n_skies, ratio, p = self.anova()
        if np.isfinite(ratio):
            lines.append(
                f"pulls, mean square between over within {n_skies} skies whose truth the prior's "
                f"ends do not touch: {ratio:.2f}, as large by chance with p = {p:.4f}"
            )
        n_surveys, slope, slope_error = self.slope()
        if self.alone and np.isfinite(slope):
            lines.append(
                f"posterior mean against the truth, {n_surveys} surveys inside the prior: "
                f"slope {slope:.4f} ± {slope_error:.4f}"
            )
        return "\n".join(lines)

    def _resampled(self, values: np.ndarray) -> np.ndarray:
        """Means over the surveys of as many skies drawn with replacement, (N_RESAMPLED,)."""
        sums = np.bincount(self.sky, values, self.n_skies)
        counts = np.bincount(self.sky, minlength=self.n_skies)
        generator = np.random.default_rng(RESAMPLING_SEED)
        drawn = generator.integers(self.n_skies, size=(N_RESAMPLED, self.n_skies))
        return sums[drawn].sum(1) / counts[drawn].sum(1)

    def _error(self, resampled: np.ndarray) -> float:
        # Resampling n skies has (n − 1)/n of the variance.
        n = self.n_skies
        return float(resampled.std() * np.sqrt(n / (n - 1.0))) if n > 1 else float("nan")
