"""What is shipped, and with which bounds."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import cobaya_cnnlens
import yaml

from ..conftest import REPOSITORY

# Tracked, but of no use to whoever has a source distribution.
NOT_SHIPPED = (".ci/", ".git", ".pre-commit", ".readthedocs")


def tracked() -> list[str]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs the repository")
    listed = subprocess.run(
        ["git", "-C", REPOSITORY, "ls-files"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split("\n")[:-1]


def needed() -> set[str]:
    return {f for f in tracked() if not f.startswith(NOT_SHIPPED)}


def test_a_source_distribution_holds_what_its_tests_need(monkeypatch):
    """MANIFEST.in, read by setuptools' own rules, adds every tracked file that building the wheel
    does not."""
    filelist = pytest.importorskip("setuptools._distutils.filelist")
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    monkeypatch.chdir(REPOSITORY)
    found = filelist.FileList()
    found.allfiles = tracked()
    for line in (REPOSITORY / "MANIFEST.in").read_text().splitlines():
        if line and not line.startswith("#"):
            found.process_template_line(line)
    package = {f for f in needed() if f.startswith("cobaya_cnnlens/") and f.endswith(".py")}
    for of, patterns in re.findall(
        r'^"(cobaya_cnnlens[\w.]*)" = \[(.*?)\]', pyproject, re.M | re.S
    ):
        folder = REPOSITORY / of.replace(".", "/")
        for pattern in re.findall(r'"([^"]+)"', patterns):
            package |= {str(f.relative_to(REPOSITORY)) for f in folder.glob(pattern)}
    always = {"README.md", "LICENSE", "pyproject.toml"}
    assert needed() - set(found.files) - package - always == set()


@pytest.mark.slow
def test_building_a_source_distribution(tmp_path):
    """The real thing, by the build backend that pyproject.toml asks for."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", REPOSITORY, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "pip", "install", "-q", "setuptools>=77"]
    subprocess.run(pip, check=True)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    subprocess.run([tmp_path / "venv" / "bin" / "python", "-c", build], cwd=source, check=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {str(Path(*Path(name).parts[1:])) for name in file.getnames()}
    assert needed() - held == set()


def stated_versions() -> dict[str, str]:
    """The package's version, by who states it."""
    tomllib = pytest.importorskip("tomllib")
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    headings = re.findall(r"^## .*$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    command = subprocess.run(
        [sys.executable, "-m", "cobaya_cnnlens", "--version"], capture_output=True, text=True
    )
    return {
        "pyproject.toml": pyproject["project"].get("version", cobaya_cnnlens.__version__),
        "CITATION.cff": citation["version"],
        "CHANGELOG.md": re.search(r"[\d.]+\d", headings[0])[0],
        "cnnlens --version": command.stdout.split()[-1],
    }


def test_one_version():
    for stated, version in stated_versions().items():
        assert version == cobaya_cnnlens.__version__, stated


def bounds() -> dict[str, str]:
    """Lower bounds of pyproject.toml by package."""
    text = (REPOSITORY / "pyproject.toml").read_text().partition("test = [")[0]
    # What checks the sources and builds the documentation is tried as it comes.
    text = re.sub(r"\n(dev|docs) = \[.*?\n\]", "", text, flags=re.DOTALL)
    return {k.lower(): v for k, v in re.findall(r'"([A-Za-z0-9_-]+)>=([0-9.]+)"', text)}


def lowest() -> dict[str, str]:
    text = (REPOSITORY / "tests" / "constraints-lowest.txt").read_text()
    return dict(re.findall(r"^([a-z0-9_-]+)==([0-9.]+)$", text, re.MULTILINE))


def test_the_lowest_versions_are_those_of_the_bounds():
    """So that the bounds cannot be lowered without being tried."""
    tried = lowest()
    found = {k: v for k, v in bounds().items() if k != "setuptools"}
    assert len(found) > 14
    for package, bound in found.items():  # of which a patch release may never have been
        assert f"{tried[package]}.".startswith(f"{bound}."), package


def test_the_pipeline_needs_one_backend_of_keras():
    """Both extras list the same packages, but for the backend."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    assert {p for p in extras["pipeline"] if not p.startswith("tensorflow")} == {
        p for p in extras["pipeline-jax"] if not p.startswith("jax")
    }


def test_workflows_pin_every_action_and_run_the_checks():
    """An action's tag can be moved to other code, a commit's hash cannot."""
    files = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
    if not files:
        pytest.skip("needs the repository")
    for file in files:
        workflow = yaml.safe_load(file.read_text())
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        for action in (step["uses"] for step in steps if "uses" in step):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), f"{file.name}: {action}"
        assert ".ci/run" in [step.get("run") for step in steps], file.name


def test_networks_are_read_by_a_keras_that_runs_no_code_from_them():
    """CVE-2025-1550 and its successors; the last is mended in 3.15.0."""
    assert tuple(map(int, bounds()["keras"].split("."))) >= (3, 15)
