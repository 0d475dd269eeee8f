"""The same χ² through other people's codes, from the exported files, handed spectra and run."""

import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from cobaya.likelihoods.base_classes import CMBlikes
from cobaya.log import LoggedError
from cobaya.model import get_model
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.document import NUISANCES
from cobaya_cnnlens.likelihood.export import export_release, linear_model
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.theory.camb import convergence_from_potential

from .conftest import synthetic_debias, synthetic_release

CMBLIKES = "cobaya.likelihoods.base_classes.CMBlikes"
CANDL = "candl.interface.CandlCobayaLikelihood"
# CMBlikes' unit of lensing, [L(L+1)]² C^φφ/2π over C^κκ.
UNIT = 4 / (2 * np.pi)


@pytest.fixture(scope="module")
def shipped():
    return read_release("refined_high")


@pytest.fixture(scope="module")
def cosmologies(shipped):
    """Six pairs of smooth, different spectra, some far from the fiducial, to l = 4500."""
    l = np.arange(4501)
    pad = [
        np.concatenate([c, np.full(4501 - len(c), c[-1])])
        for c in (shipped.fiducial_kk, shipped.fiducial_ee)
    ]
    changes = ((0, 0), (0.05, 0), (0, 0.05), (-0.1, 0.04), (0.2, -0.1), (0.02, 0.02))
    return [
        (pad[0] * (1 + a * (1 + l / 3000)), pad[1] * (1 + b * np.cos(l / 200.0)))
        for a, b in changes
    ]


def dls(clkk, clee):
    """Spectra as CMBlikes takes them: [L(L+1)]² C^φφ/2π and l(l+1) C_l/2π."""
    l = np.arange(len(clkk))
    return {"pp": 4 * clkk / (2 * np.pi), "ee": l * (l + 1) * clee / (2 * np.pi)}


@pytest.mark.parametrize("noise_debias", ["linear", "fixed"])
def test_matrices_are_the_model(shipped, cosmologies, noise_debias):
    model = linear_model(shipped, noise_debias)
    likelihood = BandpowerLikelihood(shipped, noise_debias, "hartlap")
    n = model.lmax + 1
    for kk, ee in cosmologies:
        got = (model.windows + model.kk) @ kk[:n] + model.ee @ ee[:n] - model.fiducial_correction
        np.testing.assert_allclose(got, likelihood.model(kk, ee), rtol=1e-9)


def imported(path, monkeypatch):
    """The Python module of an export."""
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return import_module(path.stem)


@pytest.mark.parametrize("noise_debias", ["linear", "fixed"])
def test_chi2_through_cmblikes(shipped, cosmologies, tmp_path, monkeypatch, noise_debias):
    path = export_release(shipped, "cmblikes", tmp_path / "out", noise_debias)
    if noise_debias == "linear":
        other = imported(path, monkeypatch).Likelihood()
    else:
        other = CMBlikes({"dataset_file": str(path), "path": str(path.parent)})
    ours = BandpowerLikelihood(shipped, noise_debias, "hartlap")
    for kk, ee in cosmologies:
        spectra = dls(kk, ee)
        got = -2 * other.log_likelihood({"pp": spectra["pp"], "uu": spectra["ee"]})
        assert got == pytest.approx(ours.chi2(kk, ee), rel=1e-6)


@pytest.mark.parametrize("noise_debias", ["linear", "fixed"])
def test_chi2_through_candl(shipped, cosmologies, tmp_path, monkeypatch, noise_debias):
    candl = pytest.importorskip("candl")
    path = export_release(shipped, "candl", tmp_path / "out", noise_debias)
    if noise_debias == "linear":
        path = imported(path, monkeypatch).Likelihood.data_set_file
    ours = BandpowerLikelihood(shipped, noise_debias, "hartlap")
    n = linear_model(shipped).lmax + 1
    other = candl.LensLike(str(path))
    for kk, ee in cosmologies:
        spectra = {"kk": kk[2:n], "EE_unlensed": dls(kk, ee)["ee"][2:n]}
        got = float(other.chi_square({"Dl": spectra}))
        assert got == pytest.approx(ours.chi2(kk, ee), rel=1e-6)


def block(release, format, noise_debias, folder):
    """A ``likelihood`` block for the exported files, as the README writes it."""
    path = export_release(release, format, folder / f"{format}-{noise_debias}", noise_debias)
    if noise_debias == "linear":
        return {f"{path.stem}.Likelihood": {"python_path": str(path.parent)}}
    if format == "cmblikes":
        return {CMBLIKES: {"dataset_file": str(path)}}
    return {CANDL: {"data_set_file": str(path), "lensing": True, "feedback": False}}


def run(likelihood, points, accuracy, **extra):
    """χ² of a likelihood by itself in Cobaya, theory camb, at each omch2; and the model."""
    theory = {"camb": {"extra_args": {"lens_potential_accuracy": accuracy, **extra}}}
    params = {"ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "tau": 0.0943, "H0": 67.94}
    params |= {"mnu": 0.06, "omch2": {"prior": {"min": 0.1, "max": 0.14}}}
    model = get_model({"likelihood": likelihood, "theory": theory, "params": params})
    return np.array([-2 * model.loglike({"omch2": x})[0] for x in points]), model


def spectra_of(model):
    pp = model.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
    ee = model.provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"]
    return convergence_from_potential(pp), ee


EXPORTS = [
    (format, noise_debias)
    for format in ("cmblikes", "candl")
    for noise_debias in ("fixed", "linear")
]


@pytest.mark.parametrize(("format", "noise_debias"), EXPORTS)
def test_run_inside_cobaya(tmp_path, format, noise_debias):
    """A small release through the other code with CAMB, which hands over lensed EE as "ee"."""
    if format == "candl":
        pytest.importorskip("candl")
    small = synthetic_release(name=f"{format} {noise_debias}")
    # EE at odds with its fiducial moves the linear model by more than any rounding.
    got, model = run(block(small, format, noise_debias, tmp_path), [0.12], 1, AccuracyBoost=0.6)
    if noise_debias == "fixed":
        model.add_requirements({"unlensed_Cl": {"ee": 1199}})
        model.loglike({"omch2": 0.12})
    theory = spectra_of(model)
    want = BandpowerLikelihood(small, noise_debias, "hartlap").chi2(*theory)
    assert got[0] == pytest.approx(want, rel=1e-5)
    if noise_debias == "linear":
        fixed = BandpowerLikelihood(small, "fixed", "hartlap").chi2(*theory)
        assert abs(want - fixed) > 1e-3 * want


@pytest.fixture
def by_data():
    """A release debiased by its own power, with all of its second order."""
    release = synthetic_release()
    return replace(release, data_debias=synthetic_debias(release))


@pytest.mark.parametrize("format", ["cmblikes", "candl"])
def test_debiased_by_data_inside_cobaya(by_data, tmp_path, format):
    """The default; the foreign codes by themselves, which no C^EE reaches, at two cosmologies."""
    if format == "candl":
        pytest.importorskip("candl")
    path = export_release(by_data, format, tmp_path / "out")
    if format == "cmblikes":
        likelihood = {CMBLIKES: {"dataset_file": str(path)}}
    else:
        likelihood = {CANDL: {"data_set_file": str(path), "lensing": True, "feedback": False}}
    statistics = "hamimeche-lewis" if format == "cmblikes" else "hartlap"
    ours = BandpowerLikelihood(by_data, "data", statistics)
    for point in (0.11, 0.125):
        got, model = run(likelihood, [point], 1, AccuracyBoost=0.6)
        model.add_requirements({"unlensed_Cl": {"ee": 1199}})
        model.loglike({"omch2": point})
        theory = spectra_of(model)
        assert got[0] == pytest.approx(ours.chi2(*theory), rel=1e-5)
        assert got[0] != pytest.approx(
            BandpowerLikelihood(by_data, "fixed", statistics).chi2(*theory), rel=1e-3
        )
    bare = replace(by_data, data_debias=None)
    with pytest.raises(CNNLensError, match="made without the power of its patches"):
        export_release(bare, format, tmp_path / "bare", "data")


@pytest.mark.slow
@pytest.mark.parametrize(("format", "noise_debias"), EXPORTS)
def test_shipped_release_run_inside_cobaya(tmp_path, format, noise_debias):
    """Δχ² at three omch2 as through our own likelihood, each alone in a run of its own."""
    if format == "candl":
        pytest.importorskip("candl")
    release, points = read_release("refined_fiducial"), (0.1165, 0.119, 0.1215)
    settings = {"accuracy": 8, "halofit_version": "mead2020"}
    got, _ = run(block(release, format, noise_debias, tmp_path), points, **settings)
    own = {"noise_debias": noise_debias, "statistics": "hartlap", "check_theory": False}
    own["params"] = {f"cnnlens_{name}": 0.0 for name in NUISANCES}
    want, _ = run({"cobaya_cnnlens.CNNLens": own}, points, **settings)
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["cmblikes", "candl"])
def test_shipped_release_debiased_by_its_data_inside_cobaya(tmp_path, format):
    """χ² at three omch2 to 1e-4, and the mean of omch2 under a flat prior to .02σ, as through our
    own likelihood in a run of its own."""
    if format == "candl":
        pytest.importorskip("candl")
    release, points = read_release("refined_fiducial"), np.arange(0.1163, 0.12, 0.0003)
    settings = {"accuracy": 8, "halofit_version": "mead2020"}
    got, _ = run(block(release, format, "data", tmp_path), points, **settings)
    statistics = "hamimeche-lewis" if format == "cmblikes" else "hartlap"
    own = {
        "release": release.name,
        "noise_debias": "data",
        "statistics": statistics,
        "check_theory": False,
        "params": {f"cnnlens_{name}": 0.0 for name in NUISANCES},
    }
    want, _ = run({"cobaya_cnnlens.CNNLens": own}, points, **settings)
    np.testing.assert_allclose(got[::6], want[::6], rtol=1e-4)

    def mean(chi2):
        weight = np.exp(-0.5 * (chi2 - chi2.min()))
        return weight @ points / weight.sum()

    assert abs(mean(got) - mean(want)) < 0.02 * 0.0003


def test_codes_themselves_refuse_the_correction(release, tmp_path):
    """By itself either code would put lensed EE where the correction wants unlensed."""
    path = export_release(release, "cmblikes", tmp_path / "a", "linear")
    with pytest.raises(LoggedError, match="required item not found U"):
        CMBlikes({"dataset_file": str(path.parent / "synthetic.dataset")})
    candl = pytest.importorskip("candl")
    path = export_release(release, "candl", tmp_path / "b", "linear")
    with pytest.raises(Exception, match=r"cnnlens_synthetic_candl\.UnlensedResponse"):
        candl.LensLike(str(path.parent / "synthetic.yaml"))


def test_columns_of_the_files(tmp_path):
    """Every number that a plot or a table would take from the exported files."""
    release = synthetic_release(n_patches=37, n_sim=60)
    sigma = np.sqrt(np.diag(release.covariance))
    folder = export_release(release, "cmblikes", tmp_path / "a").parent
    bins = np.loadtxt(folder / "bandpowers.dat")
    np.testing.assert_array_equal(bins[:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(bins[:, 1], [36, 236, 436, 636, 836])
    np.testing.assert_array_equal(bins[:, 2], [235, 435, 635, 835, 1035])
    np.testing.assert_array_equal(bins[:, 3], [136, 336, 536, 736, 936])
    np.testing.assert_allclose(bins[:, 4], UNIT * release.bandpowers)
    np.testing.assert_allclose(bins[:, 5], UNIT * sigma)
    head = (folder / "bandpowers.dat").read_text().splitlines()[0]
    assert head.split() == ["#", "bin", "L_min", "L_max", "L_av", "PP", "Error"]
    # Hartlap: n_sim = 60, 5 bins.
    scaled = release.covariance * 59 / 53
    np.testing.assert_allclose(np.loadtxt(folder / "covariance.dat"), UNIT**2 * scaled)
    window = np.loadtxt(folder / "windows" / "window2.dat")
    np.testing.assert_array_equal(window[:, 0], np.arange(2, 1200))
    np.testing.assert_allclose(window[:1098, 1], release.windows[1, 2:])
    folder = export_release(release, "candl", tmp_path / "b").parent
    np.testing.assert_allclose(np.loadtxt(folder / "bandpowers.txt"), release.bandpowers)
    np.testing.assert_allclose(np.loadtxt(folder / "covariance.txt"), scaled)
    windows = np.loadtxt(folder / "windows" / "kk_window_functions.txt")
    np.testing.assert_array_equal(windows[:, 0], np.arange(2, 1200))
    np.testing.assert_allclose(windows[:1098, 1:].T, release.windows[:, 2:])


def test_files_say_what_they_hold(release, tmp_path):
    for format, file in (("cmblikes", "synthetic.dataset"), ("candl", "synthetic.yaml")):
        for noise_debias, said in (("fixed", "biased away"), ("linear", "UNLENSED C_l^EE")):
            out = tmp_path / f"{format}-{noise_debias}"
            export_release(release, format, out, noise_debias)
            text = (out / file).read_text()
            assert said in text
            assert "holds Hartlap's factor" in text
            assert bool(list(out.glob("*.py"))) is (noise_debias == "linear")


def test_sacc_holds_data_windows_and_covariance(shipped, cosmologies, tmp_path):
    sacc = pytest.importorskip("sacc")
    data = sacc.Sacc.load_fits(str(export_release(shipped, "sacc", tmp_path / "out")))
    L, cl, cov, index = data.get_ell_cl(
        "cmb_convergence_cl", "ck", "ck", return_cov=True, return_ind=True
    )
    windows = data.get_bandpower_windows(index)
    kk, ee = cosmologies[3]
    r = cl - windows.weight.T @ kk[: len(windows.values)]
    ours = BandpowerLikelihood(shipped, "fixed", "gaussian")
    assert r @ np.linalg.solve(cov, r) == pytest.approx(ours.chi2(kk, ee), rel=1e-6)
    np.testing.assert_allclose(L, 0.5 * (shipped.edges[1:] + shipped.edges[:-1]))
    np.testing.assert_allclose(cov, shipped.covariance)
    np.testing.assert_array_equal(windows.values, np.arange(4401))
    said = data.metadata
    assert said["name"] == "refined_high"
    assert (said["n_sim"], said["n_patches"], said["lmax"]) == (7715, 160, 4400)
    # SOLikeT multiplies the windows with C_L[:lmax].
    assert "lmax: 4401" in said["soliket"]
    assert "fixed" in said["noise_debias"]
    assert said["network_sha256"] == shipped.provenance["network_sha256"]


def test_a_name_stays_inside_the_folder(release, tmp_path):
    for name in ("../../escaped", "/tmp/escaped", "..", "", "a/b", "a\nb", "\ud800", "a" * 300):
        bad = replace(release, name=name)
        for format in ("cmblikes", "candl", "sacc"):
            with pytest.raises(CNNLensError, match=r"the release.s name is .*; give at most 100"):
                export_release(bad, format, tmp_path / "in" / "out")
    assert not list(tmp_path.iterdir())


def test_a_description_is_a_comment(shipped, tmp_path):
    """A description of several lines sets nothing in the exported files."""
    lines = "one\nuse_max = 1\r\nuse_max = 1\u2028use_max = 1\n- x: [\n"
    told = replace(shipped, description=lines)
    for format, file in (("cmblikes", "refined_high.dataset"), ("candl", "refined_high.yaml")):
        texts = []
        for i, release in enumerate((shipped, told)):
            folder = tmp_path / f"{format}{i}"
            export_release(release, format, folder)
            texts.append((folder / file).read_text().splitlines())
        assert texts[0][1:] == texts[1][1:]
        assert all(text[0].startswith("# ") for text in texts)
    assert yaml.safe_load((tmp_path / "candl1" / "refined_high.yaml").read_text())["name"]


def test_what_cannot_be_exported(release, tmp_path):
    with pytest.raises(CNNLensError, match="'quadratic', which other formats cannot hold"):
        export_release(release, "candl", tmp_path / "out", "quadratic")
    with pytest.raises(CNNLensError, match="format is 'cosmomc'; choose one of"):
        export_release(release, "cosmomc", tmp_path / "out")
    with pytest.raises(CNNLensError, match="'sacc' has no place for a correction"):
        export_release(release, "sacc", tmp_path / "out", "linear")
    (tmp_path / "there").mkdir()
    with pytest.raises(CNNLensError, match="there: exists already"):
        export_release(release, "candl", tmp_path / "there")
    (tmp_path / "file").touch()
    with pytest.raises(CNNLensError, match=r"file/out: cannot be written \(Not a directory\)"):
        export_release(release, "candl", tmp_path / "file" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]
    export_release(replace(release, name="one"), "cmblikes", tmp_path / "a" / "new")
    assert (tmp_path / "a" / "new" / "one.dataset").exists()


def test_command_line_exports_what_is_right_when_run(tmp_path):
    """Without an option: no EE anywhere."""
    arguments = ["release", "export", "refined_low", "--format", "cmblikes", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert result.output.strip() == str(tmp_path / "out" / "refined_low.dataset")
    settings = (tmp_path / "out" / "refined_low.dataset").read_text().split("\n", 1)[1]
    assert "linear_correction" in settings
    assert "EE" not in settings
