import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

import yaml
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.report.predictive import draw_predictive, predictive, predictive_p

from .conftest import REPOSITORY, synthetic_release

NAME = "cobaya_cnnlens.CNNLens"
N_BINS = 5


def surveys(count):
    """Mock data of a known covariance, and likelihoods that take it as exact."""
    release = synthetic_release()
    generator = np.random.default_rng(4)
    root = np.linalg.cholesky(release.covariance)
    for noise in generator.standard_normal((count, N_BINS)) @ root.T:
        data = replace(release, bandpowers=release.bandpowers + noise)
        yield release, BandpowerLikelihood(data, "linear", "gaussian")


def test_p_at_the_truth_is_uniform():
    """A posterior that is a point at the truth gives each survey its PTE."""
    found = [predictive_p(mock, release.bandpowers[None]) for release, mock in surveys(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    # The same statistic of data that scatter 1.2 times as much is told from uniform.
    wider = [
        predictive_p(
            BandpowerLikelihood(
                replace(
                    mock.release,
                    bandpowers=release.bandpowers
                    + 1.2 * (mock.release.bandpowers - release.bandpowers),
                ),
                "linear",
                "gaussian",
            ),
            release.bandpowers[None],
        )
        for release, mock in surveys(400)
    ]
    assert stats.kstest(wider, "uniform").pvalue < 1e-3


def test_linear_gaussian_posterior_in_closed_form():
    """µ = µ₀ + θ g with a flat prior: χ²(d, µ) over the posterior is χ²_min plus a χ² of one degree
    of freedom, so p = ∫ P(χ²_n > χ²_min + x) P₁(x) dx."""
    generator = np.random.default_rng(5)
    for release, mock in surveys(5):
        g = release.bandpowers
        information = g @ mock.inverse @ g
        r = mock.bandpowers - release.bandpowers
        best = g @ mock.inverse @ r / information
        least = (r - best * g) @ mock.inverse @ (r - best * g)
        theta = best + generator.standard_normal(40_000) / np.sqrt(information)
        models = release.bandpowers + theta[:, None] * g
        # x = y² takes the pole of the density away.
        want, _ = quad(
            lambda y, least=least: (
                2 * y * stats.chi2(N_BINS).sf(least + y**2) * stats.chi2(1).pdf(y**2)
            ),
            0,
            9,
        )
        assert predictive_p(mock, models) == pytest.approx(want, abs=0.005)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A short chain with the emulator, noise nuisance sampled."""
    from cobaya.run import run

    root = str(tmp_path_factory.mktemp("chains") / "short")
    info = yaml.safe_load((REPOSITORY / "yaml" / "omegac_fast.yaml").read_text())
    info["params"] |= {"cnnlens_noise": {"prior": {"dist": "norm", "loc": 0, "scale": 0.01}}}
    info["sampler"] = {"mcmc": {"max_samples": 150, "burn_in": 0, "seed": 1, "covmat": None}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas, on how cobaya writes its progress
        run(info | {"output": root}, no_mpi=True)
    return root


def test_a_chain_is_reproduced(chain, tmp_path):
    """µ is that of the chain's own run: χ² of every sample is, and p is the mean of the PTEs that
    the chain holds; the band holds about 68% and 95% of replicated data by construction, and widens
    the likelihood's own errors by the posterior's width."""
    from cobaya_cnnlens.release import read_release
    from cobaya_cnnlens.report.posteriors import load_chain

    check = predictive(chain, samples=300)
    assert check.difference < 1e-3
    samples = load_chain(chain)
    pte = samples.mean(samples.paramNames.parWithName("cnnlens_pte"))
    assert check.p == pytest.approx(pte, abs=0.005)
    assert check.best_chi2 == pytest.approx(check.chi2.min(), abs=1.0)
    release = read_release("laptop_fiducial")
    np.testing.assert_array_equal(check.data, release.bandpowers)
    variance = np.diag(release.covariance) + check.models.var(0)
    half = 0.5 * (check.band[3] - check.band[1])
    np.testing.assert_allclose(half, np.sqrt(variance) * stats.norm.ppf(0.84), rtol=0.03)
    assert draw_predictive(check, tmp_path / "p.png").stat().st_size > 10_000


def test_what_is_missing_is_told(chain, tmp_path):
    with pytest.raises(CNNLensError, match=r"none\.updated\.yaml: no such file"):
        predictive(str(tmp_path / "none"))
    shutil.copy(f"{chain}.updated.yaml", tmp_path / "c.updated.yaml")
    with pytest.raises(CNNLensError, match=r"c\.1\.txt: no such chain"):
        predictive(str(tmp_path / "c"))
    shutil.copy(f"{chain}.1.txt", tmp_path / "c.1.txt")
    info = yaml.safe_load((tmp_path / "c.updated.yaml").read_text())
    other = {
        "likelihood": {"one": {"external": "lambda x: -x"}},
        "params": {"x": {"prior": [0, 1]}},
    }
    for changes, message in (
        (other | {"theory": {}}, "0 likelihoods of CNNLens, where one is needed"),
        ({"likelihood": {NAME: {"release": "no_such_release"}}}, "cannot be made again"),
    ):
        (tmp_path / "c.updated.yaml").write_text(yaml.safe_dump(info | changes))
        with pytest.raises(CNNLensError, match=message):
            predictive(str(tmp_path / "c"))
