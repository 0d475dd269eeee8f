"""What is told of a chain in numbers and drawn: which chains are found, means, errors, R − 1, the
truths of a mock, and where a prior makes the posterior."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.release import DATA_DIRECTORY, read_release, write_release
from cobaya_cnnlens.plots.drawing import save
from cobaya_cnnlens.plots.posteriors import posteriors_figure
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology, camb_parameters, sigma8
from cobaya_cnnlens.theory.emulator_files import read_emulator
from cobaya_cnnlens.validate.chains import (
    ChainSummary,
    Marginal,
    chain_root,
    load_chain,
    summarise,
)
from cobaya_cnnlens.validate.truths import true_parameters

# Within getdist.
pytestmark = pytest.mark.filterwarnings("ignore:The format attribute was deprecated")
NAME = "cobaya_cnnlens.CNNLens"
LENGTH, CORRELATION = 40_000, 0.8
MEAN, SIGMA = 0.1190, 0.0004
FIDUCIAL = {"omch2": 0.1185, "H0": 67.94, "sigma8": 0.8273, "omegam": 0.30622}


def write_chain(root, columns, info, numbers=(1,)):
    """Files as Cobaya writes them, of samples of weight one.

    Parameters
    ----------
    columns : values by parameter, the sampled ones first
    numbers : of the files, each with all samples
    """
    n = len(next(iter(columns.values())))
    extra = ("minuslogprior", "minuslogprior__0", "chi2", f"chi2__{NAME}")
    extra = dict.fromkeys(extra, np.zeros(n))
    columns = {
        "weight": np.ones(n),
        "minuslogpost": columns.get("cnnlens_chi2", np.zeros(n)),
        **columns,
        **extra,
    }
    for number in numbers:
        np.savetxt(
            f"{root}.{number}.txt", np.transpose(list(columns.values())), header=" ".join(columns)
        )
    Path(f"{root}.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    return str(root)


def info_of(release="refined_fiducial", **params):
    return {"likelihood": {NAME: {"release": release}}, "params": params, "sampler": {"mcmc": {}}}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain of one Gaussian parameter whose neighbouring samples correlate, and of one derived
    from it; its samples' best has χ² = 20."""
    generator = np.random.default_rng(2)
    noise = np.sqrt(1 - CORRELATION**2) * generator.standard_normal(LENGTH)
    x = np.zeros(LENGTH)
    for i in range(1, LENGTH):
        x[i] = CORRELATION * x[i - 1] + noise[i]
    omch2 = MEAN + SIGMA * x
    columns = {
        "omch2": omch2,
        "double": 2 * omch2,
        "cnnlens_chi2": 20 + x**2,
        "cnnlens_pte": 0.7 - 1e-3 * x**2,
    }
    params = {
        "omch2": {"prior": {"min": 0.1, "max": 0.14}},
        "double": {"derived": "lambda omch2: 2*omch2"},
        "cnnlens_chi2": {"derived": True},
        "cnnlens_pte": {"derived": True},
    }
    return write_chain(tmp_path_factory.mktemp("chains") / "ar", columns, info_of(**params))


def small_chain(root, release="refined_fiducial", numbers=(1,), size=400, **changes):
    """A chain of Gaussian omch2 and H0, with σ8 and Ω_m that follow from neither."""
    generator = np.random.default_rng(3)
    values = {name: generator.normal(mean, 0.002 * mean, size) for name, mean in FIDUCIAL.items()}
    params = {
        "omch2": {"prior": {"min": 0.1, "max": 0.14}},
        "H0": {"prior": {"min": 50, "max": 90}},
        "sigma8": None,
        "omegam": None,
    }
    return write_chain(root, values | changes, info_of(release, **params), numbers)


def plot(*arguments, param="omch2"):
    """What `cnnlens plot` prints, the picture of a parameter (or all) written beside the chain."""
    chosen = ("--param", param) if param else ()
    result = CliRunner().invoke(app, ["plot", *map(str, arguments), *chosen])
    assert result.exit_code == 0, result.output
    return result.output


def row_of(text, parameter):
    return next(line for line in text.splitlines() if line.startswith(f"{parameter} "))


def test_numbers_of_a_chain(chain):
    """Those of the first-order autoregressive process: N (1 − ρ)/(1 + ρ) independent samples."""
    omch2, double = summarise(load_chain(chain)).marginals
    effective = 0.8 * LENGTH * (1 - CORRELATION) / (1 + CORRELATION)
    assert omch2.parameter == "omch2"
    assert omch2.effective == pytest.approx(effective, rel=0.1)
    assert omch2.mean == pytest.approx(MEAN, abs=4 * SIGMA / np.sqrt(effective))
    assert omch2.sigma == pytest.approx(SIGMA, rel=4 / np.sqrt(2 * effective))
    assert omch2.truth == 0.1185
    assert omch2.pull == pytest.approx((MEAN - 0.1185) / SIGMA, rel=0.1)
    assert (double.mean, double.truth) == (pytest.approx(2 * omch2.mean), 2 * 0.1185)
    assert double.pull == pytest.approx(omch2.pull)


def test_the_command_ends_with_the_numbers(chain, tmp_path):
    out = tmp_path / "p.png"
    path, fit, head, first, second = plot(chain, "--out", out, param=None).splitlines()
    assert path == str(out)
    assert out.stat().st_size > 5_000
    assert re.fullmatch(
        r".*/ar: best fit: chi2 = 20\.0, PTE = 0\.7; R-1 = 0\.00\d+; burn-in: first 20% left out",
        fit,
    )
    assert head.split() == [
        "parameter",
        "mean",
        "±",
        "error",
        *("effective", "samples", "truth", "pull", "prior"),
    ]
    assert first.split()[0] == "omch2"
    assert first.split()[-1].startswith("+1.")
    assert second.split()[0] == "double"
    last = plot(chain, "--out", out).splitlines()[-1]
    assert last.split()[0] == "omch2"


@pytest.mark.parametrize(
    ("mean", "sigma", "expected"),
    [
        (0.118482, 0.000412, ["0.11848", "0.00041"]),
        (3.0962, 0.0951, ["3.096", "0.095"]),
        (67.94, 3.2, ["67.9", "3.2"]),
        (1234.4, 321.0, ["1234", "321"]),
        (2.21e-9, 2.1e-11, ["2.210e-09", "2.100e-11"]),
        (1.0, 0.0, ["1", "0"]),
    ],
)
def test_two_digits_of_an_error(mean, sigma, expected):
    line = ChainSummary("", [Marginal("p", mean, sigma, 100.0, None)]).table().splitlines()[-1]
    assert line.split() == ["p", expected[0], "±", expected[1], "100"]


@pytest.mark.parametrize(
    "given", ["c", "c.", "c.2.txt", "c.3.txt", "c.1.txt", "c.updated.yaml", "c.progress", "c.3"]
)
def test_a_chain_is_found_by_any_of_its_files(tmp_path, given, monkeypatch):
    """Also where its first file is missing, and from its own folder."""
    small_chain(tmp_path / "c", numbers=(2, 3))
    assert chain_root(tmp_path / given) == str(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    assert chain_root(given) == "c"
    assert len(load_chain(given, burn_in=0).samples.samples) == 800


def test_a_root_that_looks_like_a_file_is_the_root(tmp_path):
    """Another chain's root may end as a file does; a chain that is not there is no other's."""
    small_chain(tmp_path / "c")
    small_chain(tmp_path / "c.2")
    assert chain_root(tmp_path / "c.2") == str(tmp_path / "c.2")
    assert chain_root(tmp_path / "c.2.1.txt") == str(tmp_path / "c.2")
    for absent in ("c.post.other", "d", "c.txt.old"):
        with pytest.raises(
            CNNLensError, match=rf"{absent}: no such chain .*the chains there are .*/c,"
        ):
            chain_root(tmp_path / absent)
    with pytest.raises(CNNLensError, match=r"no such chain .*the chains there are .*/c,"):
        chain_root(tmp_path)
    for nowhere in (tmp_path / "nowhere" / "c", "/", "~/nowhere/c"):
        with pytest.raises(CNNLensError, match=r"no such chain .*run cobaya-run first"):
            chain_root(nowhere)


def test_a_shell_that_gives_every_file_gives_one_chain(tmp_path):
    root = small_chain(tmp_path / "c", numbers=(1, 2))
    assert (
        plot(*sorted(tmp_path.glob("c.*"))).count("best fit") == plot(root).count("best fit") == 0
    )
    assert plot(*sorted(tmp_path.glob("c.*.txt"))).count("R-1") == 1


def test_the_burn_in_is_an_option(tmp_path):
    """Samples from elsewhere at the start of a chain."""
    x = np.r_[np.full(200, 0.13), np.random.default_rng(0).normal(0.1185, 1e-4, 200)]
    root = small_chain(tmp_path / "c", omch2=x)
    for burn_in, kept in ((0.0, 400), (0.2, 320), (0.5, 200)):
        assert len(load_chain(root, burn_in).samples.samples) == kept
    assert "0.1185" not in row_of(plot(root), "omch2").split()[1]
    text = plot(root, "--burn-in", "0.5")
    assert "burn-in: first 50% left out" in text
    assert float(row_of(text, "omch2").split()[1]) == pytest.approx(0.1185, abs=1e-4)
    for wrong in ("1", "-0.1", "some"):
        assert CliRunner().invoke(app, ["plot", root, "--burn-in", wrong]).exit_code == 2


def test_a_process_without_a_sample_is_left_out(tmp_path):
    """Of an MPI run, the second file may be empty, or hold its header alone."""
    root = small_chain(tmp_path / "c", numbers=(1, 4))
    header = Path(f"{root}.1.txt").read_text().splitlines()[0]
    for number, text in ((2, ""), (3, header + "\n")):
        Path(f"{root}.{number}.txt").write_text(text)
    assert len(load_chain(root, burn_in=0).samples.samples) == 800


@pytest.mark.parametrize("label", [r"\frac{a", r"\nope_b^", "ω_c $x$ %", "$x$", 3, "x_a_b"])
def test_a_label_that_cannot_be_drawn_is_the_name(tmp_path, label):
    """Also where the chain's own name has what LaTeX takes for mathematics."""
    root = small_chain(tmp_path / "a$b^$_c")
    path = Path(f"{root}.updated.yaml")
    info = yaml.safe_load(path.read_text())
    info["params"]["omch2"]["latex"] = label
    path.write_text(yaml.safe_dump(info, sort_keys=False))
    chain = load_chain(root)
    save(posteriors_figure([chain], ["omch2"]), tmp_path / "x.png")
    known = {"$x$": "x", 3: "3"}
    assert chain.samples.parLabel("omch2") == known.get(label, r"\mathrm{omch2}")


@pytest.mark.parametrize("end", ["xyz", "v2", "txt"])
def test_formats_of_a_picture(tmp_path, end):
    root = small_chain(tmp_path / "c")
    result = CliRunner().invoke(app, ["plot", root, "--out", str(tmp_path / f"p.{end}")])
    assert isinstance(result.exception, CNNLensError)
    assert f"'.{end}' is no format of a picture; give one of" in str(result.exception)
    assert plot(root, "--out", tmp_path / "p").splitlines()[0] == str(tmp_path / "p.png")
    assert (tmp_path / "p.png").is_file()


def test_chains_that_share_nothing_are_told(tmp_path):
    """Or one all of whose samples are the same."""
    info = info_of(a={"prior": [0, 1]})
    other = write_chain(tmp_path / "a", {"a": np.random.default_rng(0).random(400)}, info)
    stuck = write_chain(tmp_path / "s", {"a": np.full(400, 0.5)}, info)
    for roots in ([small_chain(tmp_path / "c"), other], [stuck]):
        with pytest.raises(CNNLensError, match="no parameter that varies and that all chains have"):
            posteriors_figure([load_chain(root) for root in roots])


@pytest.mark.parametrize("size", [1, 2, 10, 24])
def test_a_chain_that_has_hardly_begun_is_told(tmp_path, size):
    root = small_chain(tmp_path / "c", size=size)
    result = CliRunner().invoke(app, ["plot", root])
    assert isinstance(result.exception, CNNLensError)
    assert re.search(r"\d+ samples after its burn-in|has hardly begun", str(result.exception))


def test_convergence_is_brooks_and_gelmans(tmp_path):
    """The means of files that lie δ σ apart, or of the quarters of one that drifts, against the
    formula: variance of the means over the mean of the variances."""
    generator = np.random.default_rng(5)
    for shift in (0.0, 0.5):
        parts = [generator.normal(0.12 + shift * 1e-3 * i, 1e-3, 500) for i in range(4)]
        expected = np.var(np.mean(parts, axis=1), ddof=1) / np.mean(np.var(parts, axis=1, ddof=1))
        columns = {"omch2": np.concatenate(parts)}
        one = write_chain(tmp_path / "one", columns, info_of(omch2={"prior": [0.1, 0.14]}))
        for i, part in enumerate(parts, 1):
            write_chain(
                tmp_path / "four", {"omch2": part}, info_of(omch2={"prior": [0.1, 0.14]}), [i]
            )
        for root in (one, tmp_path / "four"):
            assert load_chain(root, burn_in=0).convergence == pytest.approx(expected, rel=0.02)


def test_no_warning_of_getdist_is_shown(tmp_path):
    """Samples of large weight, which it calls outliers, in a process whose log nobody set up."""
    import subprocess
    import sys

    root = small_chain(tmp_path / "c")
    table = np.loadtxt(f"{root}.1.txt")
    table[::7, 0] = 90
    header = Path(f"{root}.1.txt").read_text().splitlines()[0].lstrip("# ")
    np.savetxt(f"{root}.1.txt", table, header=header)
    done = subprocess.run(
        [sys.executable, "-m", "cobaya_cnnlens", "plot", root, "--param", "omch2"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == f"{root}.png"


# Where the truth of a mock comes from.


def test_combined_releases_have_a_truth(tmp_path):
    """That of all if they share it; if not, none, and it is said."""
    own = replace(read_release("refined_fiducial"), name="again")
    own = replace(own, bandpowers=1.01 * own.bandpowers)
    write_release(own, tmp_path / "again.json")
    alike = small_chain(tmp_path / "a", ["refined_fiducial", str(tmp_path / "again.json")])
    text = plot(alike)
    assert row_of(text, "omch2").split()[-2] == "0.1185"
    assert "no truth" not in text
    differ = plot(small_chain(tmp_path / "b", ["refined_fiducial", "refined_low"]))
    assert "0.1185" not in row_of(differ, "omch2").split()[-2:]
    assert (
        "no truth of a mock is shown: the releases of the chain were simulated with different"
        in (differ)
    )


@pytest.mark.parametrize(
    "release", ["r.json", ["r.json", "refined_low"], "nothing", None, [True], 3]
)
def test_a_release_that_is_not_there_costs_the_truth_alone(tmp_path, monkeypatch, release):
    monkeypatch.chdir(tmp_path)
    text = plot(small_chain(tmp_path / "c", release))
    assert "no truth of a mock is shown: " in text
    assert row_of(text, "omch2").split()[:2][1].startswith("0.118")
    assert Path("c.png").stat().st_size > 5_000


def test_a_release_found_where_the_chain_was_begun(tmp_path, monkeypatch):
    """A relative path holds where Cobaya ran; another file of that name is told by its digest."""
    shutil.copy(DATA_DIRECTORY / "refined_low.json", tmp_path / "r.json")
    root = small_chain(tmp_path / "c", "r.json")
    monkeypatch.chdir(tmp_path)
    assert load_chain("c").truth["omch2"] == 0.1085
    info = yaml.safe_load(Path("c.updated.yaml").read_text())
    info["likelihood"][NAME]["version"] = "0123456789abcdef"
    Path("c.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    text = plot(root)
    assert "is not the one that the chain was begun with" in text
    assert "0.1085" not in text


def test_data_have_no_truth_and_no_remark(tmp_path):
    write_release(replace(read_release("refined_fiducial"), truth=None), tmp_path / "data.json")
    text = plot(small_chain(tmp_path / "c", str(tmp_path / "data.json")))
    assert "no truth" not in text
    assert len(row_of(text, "omch2").split()) == 5  # neither truth nor pull


def test_truths_of_derived_parameters():
    """By the chain's definitions, and by CAMB as it is run for a release's spectra."""
    params = {
        "logA": {"prior": {"min": 2.8, "max": 3.4}},
        "As": {"value": "lambda logA: 1e-10*np.exp(logA)", "derived": True},
        "S8": {"derived": "lambda sigma8, omegam: sigma8*(omegam/0.3)**0.5"},
        "loop": {"derived": "lambda loop: loop"},
        "broken": {"derived": "lambda sigma8: no_such_name(sigma8)"},
        "own": {"derived": "lambda unknown: unknown"},
    }
    names = [
        *params,
        "sigma8",
        "omegam",
        "Omega_m",
        "s8omegamp25",
        "Alens",
        "rdrag",
        "theta_MC_100",
    ]
    truth = true_parameters(info_of("refined_high", **params), names)
    parameters = camb_parameters(Cosmology(omch2=0.1285), CambSettings())
    density = (0.0222 + 0.1285 + 0.06 / 94.07) / 0.6794**2
    assert truth["sigma8"] == pytest.approx(sigma8(parameters), rel=1e-6)
    assert truth["omegam"] == truth["Omega_m"] == pytest.approx(density, rel=1e-4)
    assert truth["s8omegamp25"] == pytest.approx(truth["sigma8"] * truth["omegam"] ** 0.25)
    assert truth["S8"] == pytest.approx(truth["sigma8"] * (truth["omegam"] / 0.3) ** 0.5)
    assert truth["logA"] == pytest.approx(np.log(22.1))
    assert (truth["As"], truth["omch2"], truth["H0"], truth["Alens"]) == (
        2.21e-9,
        0.1285,
        67.94,
        1.0,
    )
    assert truth["rdrag"] == pytest.approx(145.1, abs=0.3)
    point = {"logA": np.log(22.1), "omch2": 0.1285, "ombh2": 0.0222, "ns": 0.9624, "H0": 67.94}
    theta = read_emulator("lcdm")(point)[2]["thetastar"]
    assert truth["theta_MC_100"] == pytest.approx(100 * theta, rel=1e-3)
    assert not {"loop", "broken", "own"} & set(truth)


@pytest.mark.parametrize("emulator", ["lcdm", "mnu", "no_such_emulator"])
def test_an_emulated_chain_has_its_emulators_truth(emulator):
    info = info_of("refined_fiducial") | {
        "theory": {"cobaya_cnnlens.EmulatedCAMB": {"emulator": emulator}}
    }
    truth = true_parameters(info, ["sigma8", "omegam"])
    by_camb = true_parameters(info_of("refined_fiducial"), ["sigma8", "omegam"])
    assert truth["sigma8"] == pytest.approx(by_camb["sigma8"], rel=5e-4)
    assert truth["omegam"] == pytest.approx(by_camb["omegam"], rel=5e-4)
    assert (truth["sigma8"] == by_camb["sigma8"]) is (emulator == "no_such_emulator")


def test_nothing_is_computed_that_a_chain_has_not(monkeypatch):
    import camb

    def refuse(*arguments):
        raise AssertionError("CAMB ran")

    monkeypatch.setattr(camb, "get_results", refuse)
    monkeypatch.setattr(camb, "get_background", refuse)
    assert true_parameters(info_of(), ["omch2", "double"])["omch2"] == 0.1185


# What a prior does to a posterior.

PRIORS = {
    "wide flat": ({"min": 0.1, "max": 0.14}, lambda n: stats.norm(0.12, 0.0004).rvs(n), ""),
    "narrow Gaussian": (
        {"dist": "norm", "loc": 0.12, "scale": 0.0012},
        lambda n: stats.norm(0.12, 0.001).rvs(n),
        "as wide as its prior",
    ),
    "wide Gaussian": (
        {"dist": "norm", "loc": 0.12, "scale": 0.0012},
        lambda n: stats.norm(0.12, 0.0006).rvs(n),
        "",
    ),
    "flat, not measured": (
        [0.1, 0.14],
        lambda n: stats.uniform(0.1, 0.04).rvs(n),
        "as wide as its prior",
    ),
    "flat, sloping": (
        {"dist": "uniform", "loc": 0.1, "scale": 0.04},
        lambda n: 0.1 + 0.04 * np.sqrt(stats.uniform(0, 1).rvs(n)),
        "as wide as its prior",
    ),
    "cut below": (
        {"min": 0.1, "max": 0.14},
        lambda n: stats.truncnorm(0, 10, 0.1, 0.004).rvs(n),
        "cut by its prior",
    ),
    "cut at 1.5 sigma": (
        {"min": 0.1, "max": 0.14},
        lambda n: stats.truncnorm(-20, 1.5, 0.134, 0.004).rvs(n),
        "cut by its prior",
    ),
    "inside by 3 sigma": (
        {"min": 0.1, "max": 0.14},
        lambda n: stats.truncnorm(-20, 3, 0.128, 0.004).rvs(n),
        "",
    ),
}


@pytest.mark.parametrize("kind", PRIORS)
def test_a_posterior_that_is_its_prior_is_marked(tmp_path, kind):
    """In the table and in the panel of the parameter."""
    prior, draw, mark = PRIORS[kind]
    np.random.seed(1)  # noqa: NPY002 (scipy's)
    values = {"omch2": draw(4000), "H0": np.random.default_rng(1).normal(68, 0.1, 4000)}
    params = {"omch2": {"prior": prior}, "H0": {"prior": [50, 90]}}
    root = write_chain(tmp_path / "c", values, info_of(**params))
    chain = load_chain(root)
    summary = summarise(chain)
    assert [m.prior for m in summary.marginals] == [mark, ""]
    line = summary.table().splitlines()[2]
    assert line.endswith(mark)
    figure = posteriors_figure([chain])
    told = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert told == ([mark] if mark else [])


def test_amplitude_that_lensing_measures_is_in_table_and_figure(tmp_path):
    """σ8 Ω_m^0.25 where the chain has both, beside one sampled parameter or against several."""
    root = small_chain(tmp_path / "c")
    chain = load_chain(root)
    at = chain.samples.getParams()
    np.testing.assert_allclose(at.s8omegamp25, at.sigma8 * at.omegam**0.25)
    marginal = {m.parameter: m for m in summarise(chain).marginals}["s8omegamp25"]
    assert marginal.mean == pytest.approx(0.8273 * 0.30622**0.25, rel=1e-3)
    assert marginal.truth == pytest.approx(0.6154, abs=2e-4)
    assert row_of(plot(root, param=None), "s8omegamp25")
    labels = {axis.get_xlabel() for axis in posteriors_figure([chain]).axes}
    assert r"$\sigma_8 \Omega_\mathrm{m}^{0.25}$" in labels
    info = yaml.safe_load(Path(f"{root}.updated.yaml").read_text())
    info["params"]["H0"] = None
    Path(f"{root}.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    one = posteriors_figure([load_chain(root)])
    assert len([axis for axis in one.axes if axis.lines]) == 2
    both = posteriors_figure([chain, load_chain(small_chain(tmp_path / "d", "refined_low"))])
    assert len(both.axes) >= 6


def test_class_names_its_density_otherwise(tmp_path):
    root = small_chain(tmp_path / "c")
    for end in (".1.txt", ".updated.yaml"):
        text = (
            Path(root + end).read_text().replace("omegam", "Omega_m").replace("omch2", "omega_cdm")
        )
        Path(root + end).write_text(text)
    truths = {m.parameter: m.truth for m in summarise(load_chain(root)).marginals}
    assert truths["omega_cdm"] == 0.1185
    assert truths["s8omegamp25"] == pytest.approx(0.6154, abs=2e-4)
