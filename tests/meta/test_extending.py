"""The examples of docs/extending.md, as the page shows them: what is added from outside the package
is not copied here, and what is edited is applied to a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import yaml
from cobaya_cnnlens.pipeline.skies import Skies

from ..conftest import REPOSITORY, snakemake_dry_run

HERE = REPOSITORY / "tests" / "extending"
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
# At most so many files are touched; a stage's are those within the package, see the page.
MOST = {"estimator": 3, "stage": 3, "nuisance": 8}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The estimator's package, as ``pip install`` leaves it."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((HERE / "estimator" / "pyproject.toml").read_text())
    for module in project["tool"]["setuptools"]["py-modules"]:
        shutil.copy(HERE / "estimator" / f"{module}.py", tmp_path)
    project = project["project"]
    folder = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    named = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("scaled_wiener", None)


@pytest.fixture
def members(tmp_path, monkeypatch, installed):
    """The study of the page, by member, on a few periodic patches in place of its skies."""
    from cobaya_cnnlens.pipeline.loading import load_study
    from cobaya_cnnlens.pipeline.run import Run
    from cobaya_cnnlens.simulate.instrument import Instrument
    from cobaya_cnnlens.simulate.patches import PatchGeometry
    from cobaya_cnnlens.simulate.periodic import PeriodicSkies
    from cobaya_cnnlens.simulate.shards import FIELDS

    monkeypatch.chdir(tmp_path)
    found = load_study(HERE / "estimator" / "scaled.yaml")
    run = Run(next(iter(found.values())))
    n, patch = run.config.patch.n_padded, run.config.patch
    box = PatchGeometry(size_deg=patch.size_deg * n / patch.n_pixels, n_pixels=n, pad=0)
    periodic = PeriodicSkies(box, Instrument(beam_fwhm_arcmin=0.0), run.spectra())
    generator = np.random.default_rng(8)
    for name in ("train", "validation", "test"):
        drawn = [[periodic.draw(x, generator) for x in ("e", "phi")] for _ in range(12)]
        p = np.stack([periodic.lensed(e, phi) for e, phi in drawn])
        kappa = np.stack([periodic.convergence(phi) for _, phi in drawn])
        fields = dict.fromkeys(FIELDS, kappa) | {"lensed_q": p.real, "lensed_u": p.imag}
        fields = {field: values.astype("f4") for field, values in fields.items()}
        Skies(run).write(fields, name, 0)
    return {path.partition("#")[2]: path for path in found}


def invoke(*arguments):
    from typer.testing import CliRunner

    from cobaya_cnnlens.cli.main import app

    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_estimator_is_measured(members):
    """By the page's commands: its response is .9 times the whole one's, its noise the same."""
    from cobaya_cnnlens.pipeline.assemble import calibration_of
    from cobaya_cnnlens.pipeline.loading import load_config
    from cobaya_cnnlens.pipeline.run import Run

    found = {}
    for name, path in members.items():
        invoke("train", path)
        for set_name in ("validation", "test"):
            invoke("reconstruct", path, "--set", set_name)
        found[name], _ = calibration_of(Run(load_config(path)))
    np.testing.assert_allclose(found["scaled"].response, 0.9 * found["wiener"].response, rtol=1e-9)
    np.testing.assert_allclose(found["scaled"].noise, found["wiener"].noise, rtol=1e-9)
    table = invoke("evaluate", HERE / "estimator" / "scaled.yaml")
    assert any(line.count("1.000 ± 0.000") == 2 for line in table.splitlines())


def run_stage(path, *options):
    done = subprocess.run(
        [sys.executable, HERE / "stage" / "moments.py", path, *options],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def moments(monkeypatch):
    monkeypatch.syspath_prepend(HERE / "stage")
    import moments

    yield moments
    del sys.modules["moments"]


def test_the_stage_measures_and_keeps(members, moments):
    """Variance goes with the square of the estimator's scale, skewness not at all; a second run
    reads what is there, and another estimator's is refused."""
    from cobaya_cnnlens.pipeline.loading import load_config
    from cobaya_cnnlens.pipeline.run import Run
    from cobaya_cnnlens.products import ProductError

    runs = {name: Run(load_config(path)) for name, path in members.items()}
    found = {}
    for name, run in runs.items():
        stage = moments.Moments(run)
        with pytest.raises(ProductError, match="run `cnnlens moments CONFIG --set test --index 0`"):
            stage.arrays("test", 0)
        stage.measure("test", [0])
        found[name] = stage.arrays("test", 0, names=("variance", "skewness")).values()
    (variance, skewness), (of_scaled, skewness_of_scaled) = found["wiener"], found["scaled"]
    np.testing.assert_allclose(of_scaled, 0.81 * variance, rtol=1e-6)
    np.testing.assert_allclose(skewness_of_scaled, skewness, rtol=1e-4, atol=1e-6)
    wiener = moments.Moments(runs["wiener"])
    made = wiener.path("test", 0)
    date = made.stat().st_mtime_ns
    wiener.measure("test")
    assert made.stat().st_mtime_ns == date
    shutil.copy(moments.Moments(runs["scaled"]).path("test", 0), made)
    with pytest.raises(ProductError, match="another configuration"):
        wiener.arrays("test", 0)


def test_the_stages_rule_is_part_of_the_workflow(members):
    """A dry run of the page's command measures the moments of each member after its mean field."""
    file = HERE / "estimator" / "scaled.yaml"
    given = ("--config", f"pipeline={file}", "--", "moments")
    done = snakemake_dry_run(".", *given, snakefile=HERE / "stage" / "Snakefile")
    assert done.returncode == 0, done.stdout
    commands = re.findall(r"^Shell command: (.*)$", done.stdout, re.MULTILINE)
    assert sum("moments.py" in command for command in commands) == 2
    assert [c.split()[1] for c in commands if "train" in c.split()[:2]] == ["train"] * 2


def patched_files() -> list[str]:
    return re.findall(r"^\+\+\+ (\S+)", (HERE / "nuisance.diff").read_text(), re.MULTILINE)


def test_the_nuisance_is_measured_and_sampled(tmp_path):
    """In a copy of the repository with the page's edits, and no others."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__", "*.keras", "*.npz", "extending", "fuzz*")
    for folder in ("cobaya_cnnlens", "tests", "yaml"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=ignored)
    (copy / "training").symlink_to(REPOSITORY / "training")
    edit = ["git", "apply", "-p0", HERE / "nuisance.diff"]
    done = subprocess.run(edit, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, f"nuisance.diff no longer fits: {done.stderr}"
    environment = {"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for command in (
        [sys.executable, HERE / "nuisance.py", copy, tmp_path / "products"],
        [sys.executable, "-m", "tests.pipeline.test_config"],
    ):
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    before, after = (
        yaml.safe_load((f / "tests" / "fixtures" / "identities.yaml").read_text())
        for f in (REPOSITORY, copy)
    )
    changed = {k for name in before for k, v in before[name].items() if after[name][k] != v}
    assert changed == {"nuisances"}


def test_the_page_shows_what_is_tested_and_counts_it():
    shown = {Path(f).name for f in re.findall(r"\{literalinclude\} \.\./(\S+)", PAGE)}
    examples = ("estimator/*.py", "estimator/*.toml", "estimator/*.yaml", "stage/*[!c]", "*.diff")
    files = {pattern: [f.name for f in HERE.glob(pattern) if f.is_file()] for pattern in examples}
    assert shown == {name for names in files.values() for name in names}
    assert sum(map(len, list(files.values())[:3])) <= MOST["estimator"]
    # Beside those of the diff, the table of identities.
    assert len(patched_files()) + 1 <= MOST["nuisance"]
    for name, most in MOST.items():
        listed = re.search(rf"\*\*Files of an? {name}: (\d+)\.\*\*", PAGE)
        assert listed, name
        assert int(listed[1]) <= most
