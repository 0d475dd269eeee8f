"""The shipped network and releases: they belong together, and they recover the truth."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from cobaya_cnnlens.calibrate import bandpowers
from cobaya_cnnlens.calibrate.assemble import make_release
from cobaya_cnnlens.calibrate.release_networks import NETWORKS, check_network
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release, shipped_releases
from cobaya_cnnlens.likelihood.statistics import chi2_pte, inverse_covariance
from cobaya_cnnlens.pipeline import skies
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.files import network_hash
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology

from .conftest import REPOSITORY

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
def theories(camb_once):
    settings = CambSettings(lmax=4500, lens_potential_accuracy=4.0)
    values = np.arange(0.1035, 0.1336, 0.0075)
    return values, [camb_once(Cosmology(omch2=float(v)), settings) for v in values]


def estimate(name, theories, noise_debias):
    """Maximum-likelihood ω_c and its 1σ from Δχ² = 1, with CAMB at nodes."""
    values, spectra = theories
    likelihood = BandpowerLikelihood(read_release(name), noise_debias)
    model = CubicSpline(values, [likelihood.model(s.kk, s.ee) for s in spectra])
    grid = np.linspace(values[0], values[-1], 3001)
    residual = likelihood.bandpowers - model(grid)
    chi2 = np.einsum("gb,bc,gc->g", residual, likelihood.inverse, residual)
    inside = grid[chi2 < chi2.min() + 1]
    return grid[np.argmin(chi2)], 0.5 * (inside[-1] - inside[0]), chi2.min()


@pytest.mark.parametrize(
    ("name", "debias"),
    [*((name, "quadratic") for name in NAMES), *((name, "data") for name in (*REFINED, SURVEY))],
)
def test_truth_is_recovered(name, debias, theories):
    release = read_release(name)
    best, sigma, chi2 = estimate(name, theories, debias)
    assert abs(best - release.truth["omch2"]) < 3 * sigma
    assert 1e-4 < sigma < 1e-3 * np.sqrt(160 / release.n_patches)
    assert chi2_pte(chi2, release.n_bins - 1) > 1e-3


@pytest.mark.parametrize("name", REFINED)
def test_the_theorys_e_moves_nothing(name, theories):
    """Of a release debiased by its data: C^EE 10% high in the theory moves the model by less than a
    tenth of the survey's errors, with the debias from theory by more than its errors."""
    release = read_release(name)
    moved = {}
    for debias in ("data", "quadratic"):
        likelihood = BandpowerLikelihood(release, debias)
        kk, ee = release.fiducial_kk, release.fiducial_ee
        change = likelihood.model(kk, 1.1 * ee) - likelihood.model(kk, ee)
        moved[debias] = change @ likelihood.inverse @ change
    assert moved["data"] < 0.01 * moved["quadratic"]
    assert moved["quadratic"] > 1.0


@pytest.mark.parametrize("name", ["refined_high", "refined_low"])
def test_fixed_debias_is_biased_towards_the_fiducial(name, theories):
    """The paper's bias: without derivatives the estimate falls short of the truth, by many σ."""
    truth, fiducial = read_release(name).truth["omch2"], 0.1185
    best, sigma, _ = estimate(name, theories, "fixed")
    assert (best - fiducial) / (truth - fiducial) < 1
    assert abs(best - truth) > 3 * sigma


@pytest.mark.slow
def test_a_fresh_sky_fits_the_shipped_calibration(tmp_path):
    """160 new patches from another seed, through the shipped ResUNet: their debiased bandpowers
    are the fiducial theory's, within the survey's covariance."""
    from cobaya_cnnlens.reconstruct.resunet import NetworkEstimator, load_network

    config = load_config(REPOSITORY / "training" / "config" / "resunet_1uk.yaml")
    release = make_release(Run(config), "fiducial", packages=False)
    config = config.model_copy(update={"products": tmp_path, "seed": 99})
    skies.measure(Run(config), "test", [0])
    digest = network_hash(RESUNET)
    bandpowers.measure(Run(config, digest, NetworkEstimator(load_network(RESUNET))), "test", [0])
    found = bandpowers.read(Run(config, digest), "test", [0])
    data = (found.auto / release.response**2 - release.noise).mean(0)
    likelihood = BandpowerLikelihood(release)
    residual = data - likelihood.model(release.fiducial_kk, release.fiducial_ee)
    chi2 = residual @ inverse_covariance(release.covariance) @ residual
    assert chi2_pte(chi2, release.n_bins) > 1e-3
    response = found.cross.mean(0) / found.truth.mean(0)
    scatter = (found.cross - response * found.truth).std(0) / found.truth.mean(0)
    error = np.hypot(scatter / np.sqrt(len(found.auto)), release.response_error)
    assert (np.abs(response - release.response) < 4.5 * error).all()
