"""The workflow: which jobs are run, and that every path reaches `cnnlens` as it is, whatever it
holds.
"""

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import yaml
from cobaya_cnnlens.likelihood.declarations import Blinding
from cobaya_cnnlens.likelihood.release import read_release, write_release

from ..conftest import REPOSITORY, in_process
from ..conftest import snakemake_dry_run as snakemake
from ..maps.test_survey_calibration import plan_of

pytest.importorskip("snakemake")

# Blanks, both quotes, a command to be executed, a variable, an option.
NASTY = 'a b/it\'s "q" $(touch hit) `touch hit` $HOME -x'

TARGETS = ("all", "releases", "noise", "table", "coverage", "forecast")


@pytest.fixture
def content():
    return yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())


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


@pytest.fixture
def calls(nasty):
    """What commands, with their arguments, a configuration's targets would run."""

    def found(content, *targets):
        path = nasty / NASTY / "c.yaml"
        path.write_text(yaml.safe_dump(content))
        for member in ("", *content.get("members", ())):  # which Snakemake itself makes for outputs
            (nasty / content["products"] / member).mkdir(parents=True, exist_ok=True)
        result = snakemake(nasty, "--config", f"pipeline={path}", "--", *targets)
        return given(commands_of(result), nasty), str(path)

    return found


@pytest.mark.parametrize("estimator", ["network", "baseline"])
def test_paths_of_the_workflow_are_quoted(nasty, calls, content, estimator):
    """Also: a network is trained, and an estimator without one has its mean field measured."""
    content["products"] = NASTY
    if estimator == "baseline":
        content["baseline"] = {"kind": "wiener"}
    done, path = calls(content, *TARGETS)
    place = {"release": 2}
    assert {call[place.get(call[0], 1)] for call in done} == {path}
    assert [call for call in done if call[0] == "train"] == [["train", path]]
    assert ["release", "make", path, "--survey", "high"] in done
    tables = ("noise", "coverage", "tables", "comparison", "forecast")
    assert all((nasty / NASTY / f"{name}.txt").exists() for name in tables)


def test_paths_of_a_study_are_quoted(nasty, calls, content):
    """Also: each member's own commands name it, and members that share skies make each once."""
    content["products"] = NASTY
    content["skies_from"] = f"{NASTY}/skies"
    content["members"] = {"plain": {}, "wiener": {"baseline": {"kind": "wiener"}}}
    done, path = calls(content, *TARGETS)
    members = {f"{path}#plain", f"{path}#wiener"}
    place = {"release": 2}
    assert {call[place.get(call[0], 1)] for call in done} == members | {path}
    assert [["evaluate", path], ["evaluate", path, "--table", "forecast"]] == [
        c for c in done if path in c
    ]
    # In whichever order Snakemake takes them.
    prepared = [c for c in done if c[0] == "train"]
    assert sorted(prepared) == [["train", f"{path}#plain"], ["train", f"{path}#wiener"]]
    skies = [call[2:6] for call in done if call[0] == "skies"]
    assert len(skies) == len({tuple(sky) for sky in skies}) == 3 + 1 + 1 + 1 + 1
    assert {c[3] for c in done if c[:2] == ["release", "make"]} == {"--survey"}
    assert (nasty / NASTY / "c.txt").exists()
    assert (nasty / NASTY / "c_omch2.txt").exists()


def test_a_study_is_compared_and_releases_are_on_request(calls, content):
    content |= {"products": "p", "members": {"one": {}, "two": {"network": {"seed": 2}}}}
    done, path = calls(content, "all")
    names = {call[0] for call in done}
    assert names == {"skies", "train", "reconstruct", "evaluate"}
    done, path = calls(content, "releases")
    made = [call[2:] for call in done if call[:2] == ["release", "make"]]
    surveys = ("fiducial", "high")
    expected = [[f"{path}#{m}", "--survey", s] for m in ("one", "two") for s in surveys]
    assert sorted(made) == sorted(expected)


def test_a_member_of_a_study_is_a_configuration(calls, content, nasty):
    content |= {"products": "p", "members": {"one": {}, "two": {"network": {"seed": 2}}}}
    _, path = calls(content, "all")
    result = snakemake(nasty, "--config", f"pipeline={path}#two", "--", "all")
    done = given(commands_of(result), nasty)
    assert ["release", "make", f"{path}#two", "--survey", "high"] in done
    assert not any(f"{path}#one" in call for call in done)


@pytest.mark.parametrize("target", ["all", "coverage"])
def test_a_release_debiased_by_its_data_needs_their_power(calls, content, target):
    """Of everything that its own calibration is made of, each once; coverage tests such a one."""
    content |= {"products": "p", "data_debias": True}
    changes = [{"ns": 0.9 + 0.01 * i} for i in range(9)]
    content["points"] = {"fit": {"cosmologies": changes, "directions": 1}}
    done, _ = calls(content, target)
    asked = [call[3:6:2] for call in done if call[0] == "power"]
    of_sets = ("test", "survey-fiducial", "survey-high", "derivatives", "nuisances")
    assert sorted(asked) == sorted([name, "0"] for name in of_sets)
    assert [call[2] for call in done if call[0] == "points"] == ["--fit"]
    del content["points"]
    content |= {"products": "q", "data_debias": False}
    assert {"power", "points"}.isdisjoint(call[0] for call in calls(content, target)[0])


def test_an_ensemble_waits_for_its_networks(calls, content):
    networks = ["p/one/network.keras", "p/two/network.keras"]
    content |= {
        "products": "p",
        "skies_from": "p/skies",
        "members": {
            "one": {},
            "two": {"network": {"seed": 2}},
            "ensemble": {"network": {"pretrained": networks}},
        },
    }
    done, path = calls(content, "p/ensemble/bandpowers/test/sky_0000.h5")
    assert sorted(c[1] for c in done if c[0] == "train") == [f"{path}#one", f"{path}#two"]
    assert [c[1] for c in done if c[0] == "reconstruct"] == [f"{path}#ensemble"]


def test_a_forecast_needs_shifted_skies_alone(calls, content):
    """Scaled bands, which take far longer, come after and do not make the shifted skies again."""
    content["products"] = "p"
    done, path = calls(content, "forecast")
    shifted = ["derivatives", path, "--index", "0", "--shifted-only"]
    assert [c for c in done if c[0] == "derivatives"] == [shifted]
    done, path = calls(content, "all")
    whole = ["derivatives", path, "--index", "0"]
    assert [c for c in done if c[0] == "derivatives"] == [shifted, whole]


def readme_command(configuration):
    """The command for one's own configuration of docs/experiment.md, where it is called my.yaml."""
    text = (REPOSITORY / "docs" / "experiment.md").read_text()
    (command,) = set(re.findall(r"^ +(snakemake -s training/Snakefile .*my\.yaml)$", text, re.M))
    return shlex.split(command.replace("my.yaml", str(configuration)))


SHIPPED = REPOSITORY / "training" / "config"


@pytest.mark.parametrize("base", ["test.yaml", "resunet_1uk.yaml", "refined_levels.yaml#2uk"])
def test_a_baseline_never_trains(tmp_path, base):
    """Whatever network its base describes, by any target, with the documented command."""
    from cobaya_cnnlens.pipeline.loading import load_config

    content = load_config(SHIPPED / base).model_dump(mode="json", exclude_none=True)
    content |= {"name": "my", "products": "p", "baseline": {"kind": "map"}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "training").symlink_to(REPOSITORY / "training")
    from snakemake.cli import main

    command = readme_command("my.yaml")
    result = in_process(main, *command[1:], "--dry-run", "--", *TARGETS, folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    jobs = re.findall(r"^rule (\w+):$", result.stdout + result.stderr, re.M)
    assert "mean_field" in jobs
    assert "train" not in jobs


def test_a_baselines_network_is_no_product(tmp_path, content):
    """Asked for by name, it is not trained either."""
    content |= {"products": "p", "baseline": {"kind": "wiener"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(tmp_path, "--config", "pipeline=c.yaml", "--", "p/network.keras")
    assert result.returncode == 1
    assert "MissingRuleException" in result.stdout


def test_a_refining_network_learns_from_features(tmp_path, content):
    """Those of all training patches, 40 of a sky, and of as many validation ones as are asked."""
    content |= {"products": "p", "network": {"kind": "refined", "width": 4}}
    content["training"]["phases"] = [{"steps": 2, "learning_rate": 1e-3}]
    content["training"]["validation_patches"] = 20
    content["refining"] = {"batch": 16}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(tmp_path, "--config", "pipeline=c.yaml", "--", "p/network.keras")
    assert result.returncode == 0, result.stdout
    commands = [command.split() for command in commands_of(result)]
    asked = {tuple(c[4:9:2]) for c in commands if c[:2] == ["cnnlens", "features"]}
    expected = {("train", str(i), str(part)) for i in range(3) for part in range(3)}
    assert asked == expected | {("validation", "0", str(part)) for part in range(2)}


@pytest.mark.parametrize("file", sorted(SHIPPED.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_file_has_a_workflow(tmp_path, file):
    # The networks that some name.
    (tmp_path / "cobaya_cnnlens").symlink_to(REPOSITORY / "cobaya_cnnlens")
    result = snakemake(tmp_path, "--quiet", "--config", f"pipeline={file}", "--", *TARGETS)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("given", [(), ("--config", "study=c.yaml")])
def test_the_workflow_says_what_it_needs(tmp_path, given):
    result = snakemake(tmp_path, *given)
    assert result.returncode == 1
    assert "name a configuration: --config pipeline=training/config/" in result.stdout
    assert "KeyError" not in result.stdout


def test_paths_with_braces_are_refused(tmp_path, content):
    content |= {"products": "a{b}", "surveys": {}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(tmp_path, "--config", "pipeline=c.yaml")
    assert result.returncode == 1
    assert "Snakemake takes no paths with braces" in result.stdout


@pytest.mark.parametrize("target", ["noise", "all"])
def test_a_configuration_without_surveys_has_a_noise(tmp_path, content, target):
    content |= {"products": "p", "surveys": {}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = snakemake(tmp_path, "--config", "pipeline=c.yaml", "--", target)
    assert Path(commands_of(result)[-1].split()[-1]) == Path("p/noise.txt")


@pytest.fixture
def of_survey(content, monkeypatch):
    """A configuration with skies for a survey of six tiles, whose plan any file gives."""
    monkeypatch.setattr("cobaya_cnnlens.maps.plan.read_plan", lambda _: plan_of())
    content |= {"products": "p", "centres": {"nside": 1, "poles": 0}, "nuisances": {"patches": 4}}
    content["skies"] = {"train": 1, "validation": 1, "test": 2, "derivatives": 1}
    return yaml.safe_dump(content)


@pytest.fixture
def small_survey(tmp_path, of_survey):
    """What a survey's workflow says, by its options."""
    (tmp_path / "c.yaml").write_text(of_survey)
    names = f"pipeline={tmp_path}/c.yaml", f"survey={tmp_path}/s.yaml"
    return lambda *options: snakemake(tmp_path, "--config", *names, *options)


def test_a_survey_is_shared_by_jobs(nasty, of_survey):
    """Each job makes its own share, the first of tiles and of nulls before the others. Skies are
    made once. The release and the null tests follow. Paths are quoted."""
    path, plan = nasty / "c.yaml", nasty / NASTY / "s.yaml"
    path.write_text(of_survey)
    options = "jobs=3", f"blind={NASTY}", f"simulations={NASTY}"
    given_to = ("--config", f"pipeline={path}", f"survey={plan}", *options, "--")
    nulls = f"{plan.with_suffix('')}/nulls.txt"
    commands = given(commands_of(snakemake(nasty, *given_to, "all", nulls)), nasty)
    done = [c[1:] for c in commands if c[0] == "survey"]
    assert {call[1] for call in done} == {str(plan)}
    assert all(call[2:4] == ["--config", str(path)] for call in done)
    stages = [call[0] for call in done]
    shared = [[call[0], call[-1]] for call in done if call[-2] == "--job"]
    for stage in ("reconstruct", "calibrate", "nulls"):
        jobs = [which for name, which in shared if name == stage]
        assert sorted(jobs) == ["1/3", "2/3", "3/3"], stage
        assert stages.count(stage) == 4
        if stage != "calibrate":
            assert jobs[0] == "1/3"
    (release,) = [call[4:] for call in done if call[0] == "release"]
    assert release == ["--simulations", NASTY, "--blind", NASTY]
    calibrations = [call[4:] for call in done if call[0] == "calibrate"]
    assert all(call[:4] == ["--patches", "24", "--simulations", NASTY] for call in calibrations)
    skies = [tuple(call[3:6:2]) for call in commands if call[0] == "skies"]
    # The network of this configuration is trained first.
    assert sorted(skies) == [("test", "0"), ("test", "1"), ("train", "0"), ("validation", "0")]


def test_a_survey_says_its_hours_before_it_starts(small_survey):
    """A dry run prints them; counted by hand for six tiles and 24 patches."""
    lines = small_survey("jobs=2").stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("6 tiles, about"))
    counts = {row[0]: int(row[1]) for row in map(str.split, lines[first + 2 : first + 5])}
    # Two sets, four nuisances of four patches at both signs, and twelve patches at the fiducial
    # cosmology, at two shifted ones, and with both signs of four bands.
    calibrate = 24 + 12 + 2 * 4 * 4 + 12 * (1 + 2 + 2 * 4)
    assert counts == {"reconstruct": 6, "calibrate": calibrate, "nulls": 11 * 6}


def test_no_open_release_takes_the_place_of_a_blinded_one(tmp_path, small_survey):
    (tmp_path / "s").mkdir()
    hidden = {"truth": None, "blinding": Blinding("0" * 16, "x")}
    blinded = replace(read_release("refined_fiducial"), **hidden)
    write_release(blinded, tmp_path / "s" / "release.json")
    result = small_survey()
    assert result.returncode == 1
    assert "holds a blinded release" in result.stdout
    assert small_survey("blind=key.txt").returncode == 0
    # Nor is an open one kept where a blinded one was asked for.
    write_release(read_release("refined_fiducial"), tmp_path / "s" / "release.json")
    result = small_survey("blind=key.txt")
    assert result.returncode == 1
    assert "is open; remove it" in result.stdout
    assert small_survey().returncode == 0


def test_other_patches_of_a_survey_are_made_anew(small_survey):
    """What says that a job is done is of its tiles, patches and simulations alone."""
    folders = []
    for options in ((), ("patches=22",), ("simulations=sims.yaml",)):
        output = small_survey(*options).stdout
        folders.append(set(re.findall(r"s/jobs/(\w+)/calibrate_1_of_8\.done", output)))
    assert len(set.union(*folders)) == 3
    assert all(len(folder) == 1 for folder in folders)
