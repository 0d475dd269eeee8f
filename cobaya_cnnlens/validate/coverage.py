"""Do the posteriors mean what they say? Coverage of intervals and simulation-based calibration.

ω_c of every sky is drawn from the prior under which its posterior is made, so that the posterior's
cumulative value at the truth, the rank, is uniform if likelihood and covariance are right (Talts et
al. 2018, arXiv:1804.06788), and a central interval of probability p holds the truth p of the time.

That is so on average over calibrations. The surveys at hand are not independent in two ways:

* those cut from one sky share its ω_c and its long modes. Errors come from resampling whole skies
  (block bootstrap: Künsch 1989, Ann. Statist. 17, 1217);
* all share one calibration, whose Monte-Carlo errors of N and of its derivatives shift every
  survey's bandpowers alike. No resampling of skies sees that, and a test that takes ranks for
  independent rejects a right likelihood too often. Ranks are judged by sets of surveys simulated
  under the release's model instead, of the same truths and a calibration error each.

A coverage sky is drawn, lensed, observed, reconstructed and let go: only its bandpowers are kept.
It shares phases and noise with no other sky, and is of no set of shards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import CNNLensError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.release import Release, with_fixed_debias
from ..pipeline.assemble import with_data
from ..pipeline.perturbations import perturbed_sky
from ..pipeline.power import power_of
from ..pipeline.reconstructions import measurement_recipe
from ..pipeline.run import Run
from ..pipeline.skies import Skies
from ..simulate.skies import seed_sequence
from ..simulate.tiling import evenly
from ..table import plus_minus, text_table
from ..theory.camb import Cosmology
from .posterior_grid import (
    INTERVALS,
    Marginal,
    PosteriorGrid,
    SimulatedRanks,
    inside,
    simulate_ranks,
    tenths,
)

KIND = "coverage"
ALGORITHM = 1
# Truths this many σ within the prior are those that its ends do not touch.
INSIDE = 3.0
# Sets of skies drawn with replacement for the errors, and their seed; and simulated sets of surveys
# by the number of parameters, whose seed is the configuration's.
N_RESAMPLED, RESAMPLING_SEED = 4000, 0
N_SIMULATED = {1: 499, 2: 49}
# Steps of the stratified truths, by the number of parameters: powers of 1/g, g^(d+1) = g + 1, the
# generalised golden ratio (a Kronecker sequence; Roberts 2018, "The unreasonable effectiveness of
# quasirandom sequences").
GOLDEN = {
    d: g ** -np.arange(1.0, d + 1.0) for d, g in ((1, 1.618033988749895), (2, 1.324717957244746))
}


@dataclass(frozen=True)
class CoverageSky:
    """True parameters of a sky, and per patch ``auto`` ⟨κ̂κ̂*⟩ and ``truth`` ⟨κκ*⟩,
    (n_patches, n_bins), and the patches' own ``power``, (n_patches, n_power), where it was kept."""

    parameters: dict[str, float]
    auto: np.ndarray
    truth: np.ndarray
    power: np.ndarray | None = None


def path(run: Run, index: int) -> Path:
    """Path of the bandpowers of a sky of the coverage test.

    Parameters
    ----------
    run : a configuration, with its products and networks
    index : number of the sky

    Returns
    -------
    path : of the product
    """
    return run.config.products / KIND / f"sky_{index:04d}.h5"


def recipe(run: Run, index: int) -> dict[str, Any]:
    """What determines the bandpowers of one sky of the coverage test.

    Parameters
    ----------
    run : a configuration, with its products and networks
    index : number of the sky

    Returns
    -------
    recipe : of the product
    """
    patches = run.config.coverage.patches
    return {
        "sky": {
            **Skies(run).recipe("test", index),
            **run.spectra_recipe(cosmology_of(run, index)),
            "set": KIND,
            "centres": run.config.centres.recipe(KIND),
        },
        **measurement_recipe(run),
        "coverage_algorithm": ALGORITHM,
        **({"patches": patches} if patches is not None else {}),
    }


def drawn(run: Run, index: int) -> dict[str, float]:
    """Draw the parameters of a sky of the coverage test evenly from the prior.

    Parameters
    ----------
    run : a configuration, with its products and networks
    index : number of the sky

    Returns
    -------
    parameters : values by name
    """
    config, name = run.config, f"{KIND}/cosmology"
    prior = config.coverage.prior
    if config.coverage.stratified:
        start = np.random.default_rng(seed_sequence(config.seed, name, 0)).random(len(prior))
        unit = np.modf(start + index * GOLDEN[len(prior)])[0]
    else:
        unit = np.random.default_rng(seed_sequence(config.seed, name, index)).random(len(prior))
    return {
        key: round(float(low + (high - low) * u), 7)
        for (key, (low, high)), u in zip(prior.items(), unit, strict=True)
    }


def cosmology_at(run: Run, parameters: Mapping[str, float]) -> Cosmology:
    """The fiducial cosmology with other parameters.

    Parameters
    ----------
    run : a configuration, with its products and networks
    parameters : values by name, ``logA`` = ln(10¹⁰ A_s) among them

    Returns
    -------
    cosmology : with these values
    """
    changes = dict(parameters)
    if "logA" in changes:
        changes["As"] = 1e-10 * math.exp(changes.pop("logA"))
    return run.config.cosmology.vary(**changes)


def cosmology_of(run: Run, index: int) -> Cosmology:
    """The cosmology of a sky of the coverage test.

    Parameters
    ----------
    run : a configuration, with its products and networks
    index : number of the sky

    Returns
    -------
    cosmology : with the drawn parameters
    """
    return cosmology_at(run, drawn(run, index))


def measure(run: Run, indices: Iterable[int] | None = None, nthreads: int = 0) -> None:
    """Simulate and measure the coverage skies that have no bandpowers yet.

    Parameters
    ----------
    run : a configuration, with its products and networks
    indices : numbers of the skies; all by default
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
    """
    size = run.config.coverage.skies
    indices = range(size) if indices is None else list(indices)
    for index in indices:
        run.config.check_index(KIND, index, size)
    todo = [i for i in indices if not products.exists(path(run, i), KIND, recipe(run, i))]
    for index in tqdm(todo, desc=KIND, unit="sky", disable=not todo):
        n_patches = len(run.pointing_of(KIND).theta) // run.config.patch.n_padded**2
        rows = evenly(n_patches, run.config.coverage.patches)
        bench = perturbed_sky(run, index, nthreads, cosmology_of(run, index), KIND, rows=rows)
        own = {"power": power_of(run)(*bench.observed())} if run.config.data_debias else {}
        products.write_product(
            path(run, index), KIND, recipe(run, index), bench.unperturbed() | own
        )


def read(run: Run) -> list[CoverageSky]:
    """Read the coverage skies that have been measured, in order.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    skies : true parameters and bandpowers of each

    Raises
    ------
    products.ProductError
        if none has been, or one was made with another network or configuration
    """
    shipped = run.config.shipped
    there = [
        index
        for index in range(run.config.coverage.skies)
        if products.exists(path(run, index), KIND, recipe(run, index), shipped)
    ]
    coverage_skies = []
    for index in there or [0]:
        where, wanted = path(run, index), recipe(run, index)
        with products.open_product(where, KIND, wanted, shipped) as product:
            arrays = {name: product.array(name) for name in product.names()}
        coverage_skies.append(CoverageSky(drawn(run, index), **arrays))
    return coverage_skies


def read_all(runs: Sequence[Run]) -> list[CoverageSky]:
    """Read the coverage skies of several runs, one run after another.

    Parameters
    ----------
    runs : of configurations with the same prior

    Returns
    -------
    skies : true parameters and bandpowers of each

    Raises
    ------
    CNNLensError
        if priors differ or two runs have a sky in common; and as :func:`read`
    """
    first, coverage_skies = runs[0].config, list[CoverageSky]()
    for run in runs:
        config = run.config
        if config.coverage.prior != first.coverage.prior:
            raise CNNLensError(
                f"{config.name}, field 'coverage': its truths are drawn from "
                f"{config.coverage.prior}, those of {first.name} from {first.coverage.prior}; "
                "one table is of one prior"
            )
        of_run = read(run)
        known = [sky.parameters for sky in coverage_skies]
        if any(sky.parameters in known for sky in of_run):
            raise CNNLensError(
                f"{config.name}, field 'seed': a sky of it has the truth, and the phases, of one "
                "that is counted already; give it another seed"
            )
        coverage_skies += of_run
    return coverage_skies


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

    @property
    def n_skies(self) -> int:
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
        held = inside(self.rank, probability)
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
        """Skies whose truth lies ``INSIDE`` σ or more within the prior, where its ends pull no
        posterior; of those the mean square of pulls between skies over that within, and the
        probability of a larger one where skies do nothing (F test); NaN unless there are two, and
        one has two surveys.

        A sky's surveys share its truth and long modes: what the model misses there shows here. A
        calibration error moves all pulls alike, and is not seen.
        """
        from scipy.stats import f_oneway

        low, high = self.prior
        margin = INSIDE * np.sqrt(np.mean(self.sigma**2))
        inside = (self.truth > low + margin) & (self.truth < high - margin)
        groups = [self.pulls[inside & (self.sky == sky)] for sky in np.unique(self.sky[inside])]
        if len(groups) < 2 or len(groups) == inside.sum():
            return len(groups), float("nan"), float("nan")
        found = f_oneway(*groups)
        return len(groups), float(found.statistic), float(found.pvalue)

    @property
    def tenths(self) -> np.ndarray:
        """How many ranks lie in every tenth, (10,)."""
        return tenths(self.rank)

    @property
    def uniformity(self) -> float:
        """Probability that ranks lie further from uniformity if the release's model holds.

        How far is χ² of the tenths with mean and covariance of the simulated sets, in which what a
        calibration error tilts counts little; p the part of the sets that are further. The set
        that is tested is one of them, so that none of all is singled out.
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
        sets = self.simulated.covered
        intervals = text_table(
            {
                "interval": (">", [f"{100 * p:.0f}%" for p in INTERVALS]),
                "holds the truth, %": (
                    ">",
                    plus_minus(covered, covered_error, ".1f"),
                ),
                "simulated sets, %": (
                    ">",
                    plus_minus(100 * sets.mean(0), 100 * sets.std(0, ddof=1), ".1f"),
                ),
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
        return "\n".join([*lines, *self._quarters()])

    def _quarters(self) -> list[str]:
        """Mean and scatter of the pulls in each quarter of the prior that has two or more."""
        lines = []
        for low, high in itertools.pairwise(np.linspace(*self.prior, 5)):
            pulls = self.pulls[(self.truth >= low) & (self.truth < high)]
            if len(pulls) > 1:
                numbers = f"{pulls.mean():+.3f}, scatter {pulls.std(ddof=1):.3f}"
                lines.append(f"  truth {low:.4f}-{high:.4f}: pulls {numbers}")
        return lines

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


def coverage_tables(
    run: Run,
    release: Release,
    patches_each: int | None = None,
    noise_debias: str | None = None,
    statistics: str = "hamimeche-lewis",
    primary: bool = False,
    others: Sequence[Run] = (),
) -> list[CoverageTable]:
    """Posteriors of all disjoint surveys that the coverage skies give, a table for each parameter
    of the prior.

    Parameters
    ----------
    run : a configuration with coverage skies
    release : whose calibration, model and covariance are tested; its data play no part
    patches_each : patches of one survey; the configuration's by default
    noise_debias : "data" or "fixed"; by default "data" where the release holds it
    statistics : form of the likelihood
    primary : whether the likelihood takes the E power of the patches too
    others : runs with more skies, drawn from the same prior

    Returns
    -------
    tables : one for each parameter of the prior

    Raises
    ------
    CNNLensError
        if a sky has fewer patches than a survey, another network made the release, or skies of
        several runs are of different priors or the same
    """
    config = run.config
    patches_each = patches_each or config.coverage.patches_each
    if (made_with := release.provenance.get("network_sha256")) != run.estimator_id:
        raise CNNLensError(
            f"release '{release.name}', field 'provenance.network_sha256': made with network "
            f"{str(made_with)[:16]}…, the configuration's is {run.estimator_id[:16]}…; use the "
            "release that this network made"
        )
    skies_of = read_all([run, *others])
    noise_debias = noise_debias or release.noise_debiases[0]
    if noise_debias == "fixed":  # which asks for no power of the patches
        release = with_fixed_debias(release)
    surveys, truth, origin = [], [], []
    for number, sky in enumerate(skies_of):
        n = len(sky.auto) // patches_each
        if not n:
            raise CNNLensError(f"a sky has {len(sky.auto)} patches, a survey {patches_each}")
        for k in range(n):
            of_survey = slice(k * patches_each, (k + 1) * patches_each)
            power = None if sky.power is None else sky.power[of_survey]
            surveys.append(with_data(release, sky.auto[of_survey], power))
            truth.append(list(sky.parameters.values()))
            origin.append(number)
    typical = BandpowerLikelihood(surveys[0], noise_debias, statistics, primary=primary)
    grid = PosteriorGrid.of_prior(
        config.coverage.prior, lambda at: run.spectra(cosmology_at(run, at))
    )
    found = []
    for survey in surveys:
        likelihood = BandpowerLikelihood(survey, noise_debias, statistics, primary=primary)
        found.append(
            grid.posterior(likelihood, grid.table(likelihood), likelihood.bandpowers[None])
        )
    true, sky_of = np.array(truth), np.array(origin)
    generator = np.random.default_rng(seed_sequence(config.seed, f"{KIND}/ranks"))
    n_sets = N_SIMULATED[len(config.coverage.prior)]
    simulated = simulate_ranks(grid, typical, true, generator, n_sets)
    tables = []
    for i, (name, ends) in enumerate(config.coverage.prior.items()):
        of_one = Marginal(grid.axes[i], np.concatenate([f[i].probability for f in found]))
        tables.append(
            CoverageTable(
                name,
                patches_each,
                ends,
                sky_of,
                true[:, i],
                of_one.mean,
                of_one.sigma,
                of_one.ranks(true[:, i]),
                simulated[i],
            )
        )
    return tables
