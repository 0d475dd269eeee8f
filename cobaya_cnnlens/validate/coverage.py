"""Do the posteriors mean what they say? Coverage of intervals and simulation-based calibration.

ω_c of every sky, or ω_c and ln(10¹⁰ A_s), is drawn from the prior under which its posterior is
made. :mod:`.ranks` judges how often the posteriors hold the truth.

A coverage sky is drawn, lensed, observed, reconstructed and let go: only its bandpowers are kept.
It shares phases and noise with no other sky, and is of no set of shards.
"""

from __future__ import annotations

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
from ..likelihood.release import Release
from ..pipeline.assemble import with_data
from ..pipeline.perturbations import perturbed_sky
from ..pipeline.power import power_of
from ..pipeline.reconstructions import measurement_recipe
from ..pipeline.run import Run
from ..pipeline.sections.estimator_settings import Reconstruction
from ..pipeline.skies import Skies
from ..simulate.skies import seed_sequence
from ..simulate.tiling import evenly
from ..theory.camb import Cosmology
from .patch_scatter import PatchScatter, debiased_patches, patch_scatter
from .posterior_grid import GridMarginal, PosteriorGrid
from .ranks import CoverageTable, Draws, simulate_ranks

KIND = "coverage"
ALGORITHM = 1
# Simulated sets of surveys by the number of parameters.
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
            **run.spectra_recipe(cosmology_at(run, drawn(run, index))),
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
        spectra = run.spectra(cosmology_at(run, drawn(run, index)))
        sky = perturbed_sky(run, index, nthreads, spectra, KIND, rows=rows)
        own = {"power": power_of(run)(*sky.observed())} if run.config.data_debias else {}
        products.write_product(path(run, index), KIND, recipe(run, index), sky.unperturbed() | own)


def read(*runs: Run) -> list[CoverageSky]:
    """Read the coverage skies that have been measured, in order, one run after another.

    Parameters
    ----------
    *runs : of configurations with the same prior

    Returns
    -------
    skies : true parameters and bandpowers of each

    Raises
    ------
    products.ProductError
        if none has been, or one was made with another network or configuration
    CNNLensError
        if priors differ or two runs have a sky in common
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
        known = [sky.parameters for sky in coverage_skies]
        measured = [
            index
            for index in range(config.coverage.skies)
            if products.exists(path(run, index), KIND, recipe(run, index), config.shipped)
        ]
        for index in measured or [0]:  # the first of none says what to run
            parameters = drawn(run, index)
            if parameters in known:
                raise CNNLensError(
                    f"{config.name}, field 'seed': a sky of it has the truth, and the phases, of "
                    "one that is counted already; give it another seed"
                )
            with products.open_product(
                path(run, index), KIND, recipe(run, index), config.shipped
            ) as product:
                arrays = {name: product.array(name) for name in product.names()}
            coverage_skies.append(CoverageSky(parameters, **arrays))
    return coverage_skies


def coverage_tables(
    run: Run,
    release: Release,
    coverage_skies: Sequence[CoverageSky],
    patches_each: int | None = None,
    statistics: str = "hamimeche-lewis",
    primary: bool = False,
) -> list[CoverageTable]:
    """Posteriors of all disjoint surveys that the coverage skies give, a table for each parameter
    of the prior.

    Parameters
    ----------
    run : a configuration with coverage skies
    release : whose calibration, model, debias and covariance are tested; its data are not used
    coverage_skies : of :func:`read`
    patches_each : patches of one survey; the configuration's by default
    statistics : form of the likelihood
    primary : whether the likelihood takes the E power of the patches too

    Returns
    -------
    tables : one for each parameter of the prior

    Raises
    ------
    CNNLensError
        if a sky has fewer patches than a survey, or another network made the release
    """
    config = run.config
    prior = config.coverage.prior
    patches_each = patches_each or config.coverage.patches_each
    if (made_with := release.provenance.get("network_sha256")) != run.estimator_id:
        raise CNNLensError(
            f"release '{release.name}', field 'provenance.network_sha256': made with network "
            f"{str(made_with)[:16]}…, the configuration's is {run.estimator_id[:16]}…; use the "
            "release that this network made"
        )
    kept = release.provenance.items()
    applied = {key: value for key, value in kept if key in Reconstruction.model_fields}
    if applied != config.reconstruction.recipe():
        raise CNNLensError(
            f"release '{release.name}', field 'provenance': applied its estimator with "
            f"{applied or 'the defaults'}, the configuration with "
            f"{config.reconstruction.recipe() or 'the defaults'}; use the release that this "
            "configuration made"
        )
    debias = release.noise_debiases[0]
    grid = _grid(run)
    sky_of, likelihoods, posteriors, draws = [], list[BandpowerLikelihood](), [], list[Draws]()
    for number, sky in enumerate(coverage_skies):
        for survey in _surveys(sky, release, patches_each):
            likelihood = BandpowerLikelihood(survey, debias, statistics, primary=primary)
            model, data = grid.table(likelihood), likelihood.bandpowers[None]
            likelihoods.append(likelihood)
            posteriors.append(grid.posterior(likelihood, model, data))
            sky_of.append(number)
            draws.append(
                Draws(
                    np.array(list(sky.parameters.values())),
                    likelihood.correction,
                    _deviations(sky, survey, likelihood),
                    patches_each,
                )
            )
    true = np.array([survey.truth for survey in draws])
    generator = np.random.default_rng(seed_sequence(config.seed, f"{KIND}/ranks"))
    simulated = simulate_ranks(grid, likelihoods[0], draws, generator, N_SIMULATED[len(prior)])
    tables = []
    for i, (name, ends) in enumerate(prior.items()):
        probability = np.concatenate([posterior[i].probability for posterior in posteriors])
        one = GridMarginal(grid.axes[i], probability)
        columns = np.array(sky_of), true[:, i], one.mean, one.sigma, one.ranks(true[:, i])
        alone = len(prior) == 1
        tables.append(CoverageTable(name, patches_each, ends, *columns, simulated[i], alone))
    return tables


def coverage_scatter(
    run: Run, release: Release, coverage_skies: Sequence[CoverageSky]
) -> PatchScatter:
    """Scatter of the patches of the coverage skies over the covariance of a release.

    Parameters
    ----------
    run : a configuration with coverage skies
    release : with the debias from the data
    coverage_skies : of :func:`read`

    Returns
    -------
    the scatter of each sky
    """
    grid = _grid(run)
    truths = np.array([list(sky.parameters.values()) for sky in coverage_skies])
    surveys, models = [], []
    for sky, weights in zip(coverage_skies, grid.at(truths), strict=True):
        (survey,) = _surveys(sky, release, len(sky.auto))
        likelihood = BandpowerLikelihood(survey)
        models.append(weights @ grid.table(likelihood))
        surveys.append((likelihood, debiased_patches(survey, sky.auto, sky.power)))
    return patch_scatter(surveys, np.array(models))


def _grid(run: Run) -> PosteriorGrid:
    return PosteriorGrid.of_prior(
        run.config.coverage.prior, lambda at: run.spectra(cosmology_at(run, at))
    )


def _deviations(sky: CoverageSky, survey: Release, likelihood: BandpowerLikelihood) -> np.ndarray:
    """Data of each patch of a sky, as a likelihood has them, less their mean."""
    data = debiased_patches(survey, sky.auto, sky.power)[:, likelihood.bins]
    if likelihood.needs_ee and sky.power is not None:
        data = np.hstack([data, sky.power])
    return data - data.mean(0)


def _surveys(sky: CoverageSky, release: Release, patches_each: int) -> list[Release]:
    """The disjoint surveys of a sky's patches, with the calibration of a release."""
    n_surveys = len(sky.auto) // patches_each
    if not n_surveys:
        raise CNNLensError(f"a sky has {len(sky.auto)} patches, a survey {patches_each}")
    surveys = []
    for k in range(n_surveys):
        rows = slice(k * patches_each, (k + 1) * patches_each)
        surveys.append(
            with_data(release, sky.auto[rows], None if sky.power is None else sky.power[rows])
        )
    return surveys
