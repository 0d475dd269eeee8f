"""The workflows' shell commands: every path reaches `cnnlens` as it is, whatever it holds."""

import subprocess
import sys
from pathlib import Path

import pytest

import yaml

from .conftest import REPOSITORY

pytest.importorskip("snakemake")

# Blanks, both quotes, a command to be executed, a variable, an option.
NASTY = 'a b/it\'s "q" $(touch hit) `touch hit` $HOME -x'


@pytest.fixture
def content():
    return yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())


def snakemake(folder, *arguments, file="Snakefile"):
    """A dry run, which prints every shell command."""
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "training" / file]
    command += ["--dry-run", "--printshellcmds", "--cores", "1", *arguments]
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def commands_of(result):
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    found = [line.removeprefix("Shell command: ") for line in lines if "Shell command: " in line]
    return [command for command in found if command != "None"]  # rules that only gather files


def given(commands, folder):
    """What arguments `cnnlens` would get from these commands: they are run, with another's name."""
    log = folder.parent / "log"
    stub = 'set -e; cnnlens() { printf \'%s\\0\' "$@" >> "$LOG"; printf \'\\n\' >> "$LOG"; }\n'
    subprocess.run(
        ["bash", "-c", stub + "\n".join(commands)], cwd=folder, env={"LOG": log}, check=True
    )
    calls = [line.split("\0")[:-1] for line in log.read_text().splitlines()]
    log.unlink()
    return calls


@pytest.fixture
def nasty(tmp_path):
    """A working directory, with a folder of a name that a shell would make much of."""
    folder = tmp_path / "work"
    (folder / NASTY).mkdir(parents=True)
    yield folder
    assert not list(tmp_path.rglob("hit"))


@pytest.mark.parametrize("estimator", ["network", "baseline"])
def test_paths_of_the_workflow_are_quoted(nasty, content, estimator):
    """Also: an estimator without a network has its mean field measured, and trains none."""
    content["products"] = NASTY
    if estimator == "baseline":
        content["baseline"] = {"kind": "wiener"}
    path = nasty / NASTY / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    result = snakemake(nasty, "--config", f"pipeline={path}", "--", "all", "noise", "coverage")
    calls = given(commands_of(result), nasty)
    place = {"release": 2}
    assert {call[place.get(call[0], 1)] for call in calls} == {str(path)}
    made_by = {"network": "train", "baseline": "mean-field"}
    done = [call[0] for call in calls]
    assert [name for name in made_by.values() if name in done] == [made_by[estimator]]
    assert ["release", "make", str(path), "--survey", "high"] in calls
    for name in ("noise.txt", "coverage.txt", "tables.txt"):
        assert (nasty / NASTY / name).exists()


def test_paths_of_a_study_are_quoted(nasty, content):
    content["products"] = NASTY
    content["members"] = {"plain": {}, "wiener": {"baseline": {"kind": "wiener"}}}
    path = nasty / NASTY / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    targets = ("all", "for_report", "forecast")
    result = snakemake(nasty, "--config", f"study={path}", "--", *targets, file="study.smk")
    calls = given(commands_of(result), nasty)
    members = {f"{path}#plain", f"{path}#wiener"}
    assert {call[1] for call in calls} == members | {str(path)}
    assert [c[0] for c in calls].count("train") == [c[0] for c in calls].count("mean-field") == 1
    assert {c[1] for c in calls if "--shifted-only" in c} == members


def test_one_failure_in_a_study_ends_its_forecast(nasty, content):
    """The derivatives of each member are made in a loop: the first failure is not passed over."""
    content |= {"products": "p", "members": {"one": {}, "two": {}}}
    (nasty / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(nasty, "--config", "study=c.yaml", "--", "forecast", file="study.smk")
    (loop,) = (c for c in commands_of(result) if "--shifted-only" in c)
    (nasty / "p").mkdir()
    script = "set -e; cnnlens() { [ \"$2\" != 'c.yaml#one' ]; }\n" + loop
    assert subprocess.run(["bash", "-c", script], cwd=nasty).returncode == 1


def test_a_workflow_says_what_it_needs(tmp_path, content):
    for file, key in (("Snakefile", "pipeline"), ("study.smk", "study")):
        result = snakemake(tmp_path, file=file)
        assert result.returncode == 1
        assert f"--config {key}=training/config/" in result.stdout
        assert "KeyError" not in result.stdout
    content |= {"products": "a{b}", "surveys": {}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(tmp_path, "--config", "pipeline=c.yaml")
    assert "Snakemake takes no paths with braces" in result.stdout


def test_a_configuration_without_surveys_has_a_noise(tmp_path, content):
    content |= {"products": "p", "surveys": {}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(tmp_path, "--config", "pipeline=c.yaml", "--", "noise")
    assert Path(commands_of(result)[-1].split()[-1]) == Path("p/noise.txt")
