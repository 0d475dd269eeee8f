"""The same χ² through other people's codes, from the exported files, handed spectra and run."""

from dataclasses import replace

import numpy as np
import pytest
from cobaya.likelihoods.base_classes import CMBlikes
from cobaya.model import get_model
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.export import (
    SaccSpectrum,
    export_release,
    linear_model,
    write_sacc,
)
from cobaya_cnnlens.likelihood.fields import NUISANCES, Group
from cobaya_cnnlens.likelihood.release import read_release, with_fixed_debias, without
from cobaya_cnnlens.theory.camb import convergence_from_potential

from ..conftest import at_fiducial_power, synthetic_release

CMBLIKES = "cobaya.likelihoods.base_classes.CMBlikes"
CANDL = "candl.interface.CandlCobayaLikelihood"
# CMBlikes' unit of lensing, [L(L+1)]² C^φφ/2π over C^κκ.
UNIT = 4 / (2 * np.pi)


@pytest.fixture(scope="module")
def shipped():
    return read_release("refined_high")


@pytest.fixture(scope="module")
def cosmologies(shipped):
    """Six smooth, different C^κκ to L = 4500, some far from the fiducial."""
    L, fiducial = np.arange(4501), shipped.fiducial_kk
    fiducial = np.concatenate([fiducial, np.full(4501 - len(fiducial), fiducial[-1])])
    return [fiducial * (1 + a * (1 + L / 3000)) for a in (0, 0.05, 0.07, -0.1, 0.2, 0.02)]


# What χ² is through each format with each debias.
STATISTICS = {
    ("cmblikes", "data"): "hamimeche-lewis",
    ("cmblikes", "fixed"): "hartlap",
    ("candl", "data"): "hartlap",
    ("candl", "fixed"): "hartlap",
}
EXPORTS = [*STATISTICS]


@pytest.mark.parametrize("noise_debias", ["data", "fixed"])
def test_matrices_are_the_model(shipped, cosmologies, noise_debias):
    model = linear_model(shipped, noise_debias)
    likelihood = BandpowerLikelihood(shipped, noise_debias, "hartlap")
    for kk in cosmologies:
        got = (model.windows + model.kk) @ kk[: model.lmax + 1] - model.fiducial_correction
        np.testing.assert_allclose(got, likelihood.model(kk, None), rtol=1e-9)


@pytest.mark.parametrize(("format", "noise_debias"), EXPORTS)
def test_chi2_through_other_codes(shipped, cosmologies, tmp_path, format, noise_debias):
    path = export_release(shipped, format, tmp_path / "out", noise_debias)
    ours = BandpowerLikelihood(shipped, noise_debias, STATISTICS[format, noise_debias])
    n = linear_model(shipped).lmax + 1
    if format == "cmblikes":
        other = CMBlikes({"dataset_file": str(path), "path": str(path.parent)})
    else:
        other = pytest.importorskip("candl").LensLike(str(path))
    for kk in cosmologies:
        if format == "cmblikes":
            got = -2 * other.log_likelihood({"pp": 4 * kk / (2 * np.pi)})
        else:
            got = float(other.chi_square({"Dl": {"kk": kk[2:n]}}))
        assert got == pytest.approx(ours.chi2(kk, None), rel=1e-6)


def block(release, format, noise_debias, folder):
    """A ``likelihood`` block for the exported files, as the documentation writes it."""
    path = export_release(release, format, folder / f"{format}-{noise_debias}", noise_debias)
    if format == "cmblikes":
        return {CMBLIKES: {"dataset_file": str(path)}}
    pytest.importorskip("candl")
    return {CANDL: {"data_set_file": str(path), "lensing": True, "feedback": False}}


def run(likelihood, points, accuracy, **extra):
    """χ² of a likelihood by itself in Cobaya, theory camb, at each omch2; and the model."""
    theory = {"camb": {"extra_args": {"lens_potential_accuracy": accuracy, **extra}}}
    params = {"ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "tau": 0.0943, "H0": 67.94}
    params |= {"mnu": 0.06, "omch2": {"prior": {"min": 0.1, "max": 0.14}}}
    model = get_model({"likelihood": likelihood, "theory": theory, "params": params})
    return np.array([-2 * model.loglike({"omch2": x})[0] for x in points]), model


@pytest.mark.parametrize(("format", "noise_debias"), EXPORTS)
def test_run_inside_cobaya(tmp_path, format, noise_debias):
    """A release with all of its second order, through the foreign codes with CAMB by themselves,
    at two cosmologies."""
    release, statistics = synthetic_release(), STATISTICS[format, noise_debias]
    ours = BandpowerLikelihood(release, noise_debias, statistics)
    other = {"fixed": "data", "data": "fixed"}[noise_debias]
    likelihood = block(release, format, noise_debias, tmp_path)
    for point in (0.11, 0.125):
        got, model = run(likelihood, [point], 1, AccuracyBoost=0.6)
        pp = model.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
        kk = convergence_from_potential(pp)
        assert got[0] == pytest.approx(ours.chi2(kk, None), rel=1e-5)
        assert got[0] != pytest.approx(
            BandpowerLikelihood(release, other, statistics).chi2(kk, None), rel=1e-3
        )


def test_what_is_right_is_the_default(tmp_path):
    """The debias from the data where release and format hold it, else the fixed one."""
    release = synthetic_release()
    bare = without(release, *(group for group in Group if group is not Group.ALWAYS))
    for k, (one, format, said) in enumerate(
        (
            (release, "cmblikes", "noise_debias: data"),
            (release, "candl", "noise_debias: data"),
            (bare, "candl", "noise_debias: fixed"),
        )
    ):
        text = export_release(one, format, tmp_path / str(k)).read_text()
        assert said in text
        assert "holds Hartlap's factor" in text
    with pytest.raises(CNNLensError, match="does not hold the power of its patches"):
        export_release(bare, "candl", tmp_path / "bare", "data")


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


def test_columns_of_the_files(tmp_path):
    """Every number that a plot or a table would take from the exported files."""
    release = at_fiducial_power(synthetic_release(n_patches=37, n_sim=60))
    release = replace(release, curvature=0 * release.curvature)
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
    np.testing.assert_array_equal(window[:, 0], np.arange(2, 1100))
    np.testing.assert_allclose(window[:, 1], release.windows[1, 2:])
    folder = export_release(release, "candl", tmp_path / "b").parent
    np.testing.assert_allclose(np.loadtxt(folder / "bandpowers.txt"), release.bandpowers)
    np.testing.assert_allclose(np.loadtxt(folder / "covariance.txt"), scaled)
    windows = np.loadtxt(folder / "windows" / "kk_window_functions.txt")
    np.testing.assert_array_equal(windows[:, 0], np.arange(2, 1100))
    np.testing.assert_allclose(windows[:, 1:].T, release.windows[:, 2:])


def test_sacc_holds_data_windows_and_covariance(shipped, cosmologies, tmp_path):
    sacc = pytest.importorskip("sacc")
    data = sacc.Sacc.load_fits(str(export_release(shipped, "sacc", tmp_path / "out")))
    L, cl, cov, index = data.get_ell_cl(
        "cmb_convergence_cl", "ck", "ck", return_cov=True, return_ind=True
    )
    windows = data.get_bandpower_windows(index)
    kk = cosmologies[3]
    r = cl - windows.weight.T @ kk[: len(windows.values)]
    ours = BandpowerLikelihood(shipped, "fixed", "gaussian")
    assert r @ np.linalg.solve(cov, r) == pytest.approx(ours.chi2(kk, None), rel=1e-6)
    np.testing.assert_allclose(L, 0.5 * (shipped.edges[1:] + shipped.edges[:-1]))
    np.testing.assert_allclose(cov, with_fixed_debias(shipped).covariance)
    np.testing.assert_array_equal(windows.values, np.arange(4401))
    said = data.metadata
    assert said["name"] == "refined_high"
    assert (said["n_sim"], said["n_patches"], said["lmax"]) == (7715, 160, 4400)
    # SOLikeT multiplies the windows with C_L[:lmax].
    assert "lmax: 4401" in said["soliket"]
    assert "fixed" in said["noise_debias"]
    assert said["network_sha256"] == shipped.provenance["network_sha256"]
    edges = [float(edge) for edge in said["bin_edges_ck_ck"].split()]
    np.testing.assert_array_equal(edges, shipped.edges)
    assert "rows do not sum to one" in said["windows"]


def test_the_digest_of_a_sacc_file_is_that_of_its_numbers(tmp_path):
    """It changes with any of them, and not with the file's date."""
    sacc = pytest.importorskip("sacc")
    edges, windows = np.array([10, 20, 30]), np.eye(2, 40)
    spectra = [SaccSpectrum(name, edges, np.ones(2), windows) for name in ("ck", "gc")]

    def digest(spectra, covariance):
        (tmp_path / "s.fits").unlink(missing_ok=True)
        write_sacc(tmp_path / "s.fits", spectra, covariance, {"name": "s"})
        return sacc.Sacc.load_fits(str(tmp_path / "s.fits")).metadata["sha256"]

    first = digest(spectra, np.eye(4))
    assert digest(spectra, np.eye(4)) == first
    others = [
        digest(spectra, 2 * np.eye(4)),
        digest([spectra[0], replace(spectra[1], bandpowers=np.zeros(2))], np.eye(4)),
        digest([spectra[0], replace(spectra[1], windows=2 * windows)], np.eye(4)),
    ]
    assert len({first, *others}) == 4
    data = sacc.Sacc.load_fits(str(tmp_path / "s.fits"))
    assert data.get_data_types() == ["cmb_convergence_cl", "cmbGalaxy_convergenceDensity_cl"]


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
    for unknown in ("quadratic", "linear", "best"):
        with pytest.raises(CNNLensError, match=f"noise_debias is '{unknown}'; choose one of"):
            export_release(release, "candl", tmp_path / "out", unknown)
    with pytest.raises(CNNLensError, match="format is 'cosmomc'; choose one of"):
        export_release(release, "cosmomc", tmp_path / "out")
    with pytest.raises(CNNLensError, match="'sacc' has no place for a correction"):
        export_release(release, "sacc", tmp_path / "out", "data")
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
    """Without an option: the debias from the data."""
    arguments = ["release", "export", "refined_low", "--format", "cmblikes", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert result.output.strip() == str(tmp_path / "out" / "refined_low.dataset")
    assert "like_approx = HL" in (tmp_path / "out" / "refined_low.dataset").read_text()
