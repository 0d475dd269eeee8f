import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cobaya.yaml import yaml_load_file
from scipy import stats
from scipy.integrate import quad

import yaml
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import with_fixed_debias
from cobaya_cnnlens.plots.posteriors import _label, predictive_figure
from cobaya_cnnlens.validate.chains import load_chain
from cobaya_cnnlens.validate.predictive import predictive, predictive_p

from ..conftest import REPOSITORY, png, synthetic_release

NAME = "cobaya_cnnlens.CNNLens"
N_BINS = 5


def surveys(count):
    """Mock data of a known covariance, and likelihoods that take it as exact."""
    release = synthetic_release()
    generator = np.random.default_rng(4)
    root = np.linalg.cholesky(with_fixed_debias(release).covariance)
    for noise in generator.standard_normal((count, N_BINS)) @ root.T:
        data = replace(release, bandpowers=release.bandpowers + noise)
        yield release, BandpowerLikelihood(data, "fixed", "gaussian")


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
                "fixed",
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


def short_chain(root, samples, **options):
    """With the emulator, noise nuisance sampled."""
    from cobaya.run import run

    info = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
    info["likelihood"][NAME] |= {"check_theory": False, **options}
    del info["likelihood"][NAME]["instrument"]
    suffix = options.get("suffix", "")
    for name in ("gain", "beam"):
        info["params"][f"cnnlens_{name}{suffix}"] = 0
    prior = {"dist": "norm", "loc": 0, "scale": 0.01}
    info["params"][f"cnnlens_noise{suffix}"] = {"prior": prior}
    info["sampler"] = {"mcmc": {"max_samples": samples, "burn_in": 0, "seed": 1, "covmat": None}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas, on how cobaya writes its progress
        run(info | {"output": str(root)}, no_mpi=True)
    return str(root)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return short_chain(tmp_path_factory.mktemp("chains") / "short", 150)


def test_a_chain_is_reproduced(chain, tmp_path):
    """µ is that of the chain's own run: χ² of every sample is, and p is the mean of the PTEs that
    the chain holds; the band holds about 68% and 95% of replicated data by construction, and widens
    the likelihood's own errors by the posterior's width."""
    from cobaya_cnnlens.likelihood.release import debiased_by_data, read_release

    check = predictive(chain, samples=300)
    assert check.difference < 1e-3
    samples = load_chain(chain).samples
    pte = samples.mean(samples.paramNames.parWithName("cnnlens_pte"))
    assert check.p == pytest.approx(pte, abs=0.005)
    assert check.best_chi2 == pytest.approx(check.chi2.min(), abs=1.0)
    release = debiased_by_data(read_release("refined_fiducial"))
    np.testing.assert_array_equal(check.data, release.bandpowers)
    variance = np.diag(release.covariance) + check.models.var(0)
    half = 0.5 * (check.band[3] - check.band[1])
    np.testing.assert_allclose(half, np.sqrt(variance) * stats.norm.ppf(0.84), rtol=0.03)
    assert len(png(predictive_figure(check))) > 10_000


def test_a_post_processed_chain_is_reproduced(chain):
    """Cobaya's `post` keeps derived parameters as they were, cnnlens_chi2 too, while the likelihood
    is another: what predictive computes is the chain's own χ² still."""
    from cobaya.post import post

    other = {"check_theory": False, "L_min": 900}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        post(
            {
                "output": chain,
                "force": True,
                "post": {
                    "suffix": "other",
                    "remove": {"likelihood": [NAME]},
                    "add": {"likelihood": {NAME: other}},
                },
            }
        )
    root = f"{chain}.post.other"
    check = predictive(root, samples=20)
    assert check.difference < 1e-3
    np.testing.assert_array_equal(check.edges[0] >= 900, [True, True])
    samples = load_chain(root).samples
    kept, anew = (
        samples.samples[:, samples.paramNames.numberOfName(name)]
        for name in ("cnnlens_chi2", f"chi2__{NAME}")
    )
    assert np.abs(kept - anew).max() > 1.0


def test_a_change_of_the_likelihood_is_seen(chain, tmp_path):
    """The difference tells that an input beside a chain is not what made it."""
    for end in (".1.txt", ".updated.yaml"):
        shutil.copy(chain + end, str(tmp_path / "c") + end)
    info = yaml.safe_load((tmp_path / "c.updated.yaml").read_text())
    info["likelihood"][NAME] |= {"noise_debias": "fixed", "statistics": "gaussian"}
    (tmp_path / "c.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    assert predictive(str(tmp_path / "c"), samples=20).difference > 0.5


def test_the_t_distribution_is_reproduced(tmp_path):
    """−2 ln L of such a chain is not χ², and is compared as what it is."""
    root = short_chain(tmp_path / "t", 40, statistics="sellentin-heavens", suffix="_t")
    assert predictive(root, samples=20).difference < 1e-3


def test_a_copied_chain_is_read_itself(chain, tmp_path):
    """A copy that keeps the files' dates (rsync -a) is newer than getdist's cache without looking
    so."""
    import os

    from getdist import loadMCSamples

    root = str(tmp_path / "c")
    for end in (".1.txt", ".updated.yaml"):
        shutil.copy(chain + end, root + end)
    loadMCSamples(root, settings={"ignore_rows": 0.2})  # leaves a cache
    lines = Path(f"{root}.1.txt").read_text().splitlines()
    Path(f"{root}.1.txt").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    os.utime(f"{root}.1.txt", (1.0e9, 1.0e9))
    left, whole = (len(load_chain(x).samples.samples) for x in (root, chain))
    assert left < 0.6 * whole


def test_legends_say_of_what(chain):
    """The truth by its parameter, and the thin lines of the predictive figure."""
    loaded = load_chain(chain)
    label = _label(replace(loaded, root="chains/my_run"))
    assert label == r"my run (true $\Omega_\mathrm{c} h^2$ = 0.1185)"
    assert _label(replace(loaded, root="chains/data", info={})) == "data"
    (axis,) = predictive_figure(predictive(chain, samples=20)).axes
    told = [text.get_text() for text in axis.get_legend().get_texts()]
    assert sorted(told) == sorted(
        ["68% of the posterior's models", "95% predicted", "68% predicted", "bandpowers"]
    )


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1", b""])
def test_an_input_that_cannot_be_read_is_told(chain, tmp_path, content):
    shutil.copy(f"{chain}.1.txt", tmp_path / "c.1.txt")
    (tmp_path / "c.updated.yaml").write_bytes(content)
    with pytest.raises(CNNLensError, match=r"c\.updated\.yaml: (cannot be read|holds no input)"):
        predictive(str(tmp_path / "c"))


def test_a_chain_without_samples_is_told(chain, tmp_path):
    shutil.copy(f"{chain}.updated.yaml", tmp_path / "c.updated.yaml")
    header = Path(f"{chain}.1.txt").read_text().splitlines()[0]
    for content in (header + "\n", header + "\n1 2 three\n"):
        (tmp_path / "c.1.txt").write_text(content)
        with pytest.raises(CNNLensError, match=r"c: the chain cannot be read"):
            load_chain(str(tmp_path / "c"))


def test_what_is_missing_is_told(chain, tmp_path):
    with pytest.raises(CNNLensError, match=r"none: no such chain .*run cobaya-run first"):
        predictive(str(tmp_path / "none"))
    shutil.copy(f"{chain}.1.txt", tmp_path / "c.1.txt")
    with pytest.raises(CNNLensError, match=r"c\.updated\.yaml: no such file"):
        predictive(str(tmp_path / "c"))
    shutil.copy(f"{chain}.updated.yaml", tmp_path / "c.updated.yaml")
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
