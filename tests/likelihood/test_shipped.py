"""The shipped network and releases: they belong together, and they recover the truth."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import ARRAYS
from cobaya_cnnlens.likelihood.release import read_release, shipped_releases
from cobaya_cnnlens.likelihood.statistics import chi2_pte
from cobaya_cnnlens.pipeline.assemble import make_releases
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import NETWORKS, check_network
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.theory.emulator_files import read_emulator

from ..conftest import REPOSITORY

REFINED = ["refined_fiducial", "refined_high", "refined_low"]
SURVEY = "survey_mock"
NAMES = [*REFINED, SURVEY]
RESUNET = NETWORKS / "resunet_1uk.keras"
NETWORK = NETWORKS / "refined.keras"


def test_what_is_shipped():
    assert shipped_releases() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_release_was_made_with_the_shipped_network(name):
    check_network(read_release(name), [NETWORK])


@pytest.fixture(scope="module")
def theories():
    """By the emulator, whose error is a thousandth."""
    values, emulator = np.arange(0.1035, 0.1336, 0.0075), read_emulator("lcdm")
    fixed = {"ombh2": 0.0222, "ns": 0.9624, "logA": np.log(22.1), "H0": 67.94}
    return values, [emulator(fixed | {"omch2": omch2})[:2] for omch2 in values]


def estimate(name, theories, noise_debias):
    """Maximum-likelihood ω_c and its 1σ from Δχ² = 1, with spectra at nodes."""
    values, spectra = theories
    likelihood = BandpowerLikelihood(read_release(name), noise_debias)
    model = CubicSpline(values, [likelihood.model(*pair) for pair in spectra])
    grid = np.linspace(values[0], values[-1], 3001)
    residual = likelihood.bandpowers - model(grid)
    chi2 = np.einsum("gb,bc,gc->g", residual, likelihood.inverse, residual)
    inside = grid[chi2 < chi2.min() + 1]
    return grid[np.argmin(chi2)], 0.5 * (inside[-1] - inside[0]), chi2.min()


@pytest.mark.parametrize("name", NAMES)
def test_truth_is_recovered(name, theories):
    release = read_release(name)
    best, sigma, chi2 = estimate(name, theories, "data")
    assert abs(best - release.truth["omch2"]) < 3 * sigma
    assert 1e-4 < sigma < 1e-3 * np.sqrt(160 / release.n_patches)
    assert chi2_pte(chi2, release.n_bins - 1) > 1e-3


@pytest.mark.parametrize("name", ["refined_high", "refined_low"])
def test_fixed_debias_is_biased_towards_the_fiducial(name, theories):
    """The paper's bias: without derivatives the estimate falls short of the truth, by many σ."""
    truth, fiducial = read_release(name).truth["omch2"], 0.1185
    best, sigma, _ = estimate(name, theories, "fixed")
    assert (best - fiducial) / (truth - fiducial) < 1
    assert abs(best - truth) > 3 * sigma


@pytest.mark.slow
def test_releases_follow_from_the_shipped_bandpowers(monkeypatch, tmp_path):
    """Every array of the refined releases, calibrated again. It takes a quarter of an hour: CAMB
    runs at the 46 cosmologies of the second order."""
    monkeypatch.chdir(REPOSITORY)
    config = load_config("training/config/refined.yaml")
    config = config.model_copy(update={"products": tmp_path})
    run = Run(config, Run(config).estimator_id)
    for survey, made in make_releases(run, dict.fromkeys(config.surveys, 0)).items():
        shipped = read_release(f"refined_{survey}")
        for name in ARRAYS:
            one, other = getattr(made, name), getattr(shipped, name)
            scale = np.abs(other).max(initial=0.0)
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9 * scale, err_msg=name)
