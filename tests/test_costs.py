"""What jobs cost: as many as Snakemake would run, by what was measured."""

import importlib.util
import re

import pytest
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError

from .conftest import REPOSITORY
from .test_workflow import content, snakemake  # noqa: F401, a fixture

pytest.importorskip("snakemake")

from cobaya_cnnlens.pipeline.loading import load_config, load_study
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.validate import costs
from cobaya_cnnlens.validate.costs import UNITS, Costs

CONFIGS = REPOSITORY / "training" / "config"
REFINED = {
    "network": {"kind": "refined", "width": 4},
    "training": {"phases": [{"steps": 2, "learning_rate": 1e-3}], "validation_patches": 20},
    "refining": {"batch": 16},
}
# A study of all that makes a difference to which jobs there are.
STUDY = {
    "products": "p",
    "skies_from": "p/skies",
    "members": {
        "plain": {},
        "debiased": {"data_debias": True, "network": {"seed": 2}, "skies": {"derivatives": 2}},
        "fitted": {
            "data_debias": True,
            "points": {"fit": {"directions": 1, "at": [{"ns": 0.9 + 0.01 * i} for i in range(9)]}},
        },
        "baseline": {"baseline": {"kind": "wiener"}},
        "pretrained": {"network": {"pretrained": ["n.keras", "p/plain/network.keras"]}},
        "refined": REFINED,
        # Learns from the same features.
        "again": REFINED | {"features_from": "p/refined/features"},
    },
}
# In this order. What made the first is not made again; the refined bandpowers are, because their
# network is missing, and derivatives, because their skies at shifted omch2 are.
THERE = (
    *(f"p/skies/train/sky_{index:04d}.h5" for index in range(3)),
    *("p/skies/validation/sky_0000.h5", "p/plain/network.keras", "p/baseline/mean_field.h5"),
    *("p/pretrained/derivatives/sky_0000.h5", "p/refined/features/train/sky_0000_01.h5"),
    *("p/skies/test/sky_0000.h5", "p/refined/bandpowers/test/sky_0000.h5"),
)


def jobs_of(result) -> dict[str, int]:
    """Snakemake's own table, of the rules that make a file."""
    assert result.returncode == 0, result.stdout
    rows = re.findall(r"^(\w+) +(\d+)$", result.stdout.partition("Job stats:")[2], re.M)
    return {rule: int(n) for rule, n in rows if rule not in ("all", "releases", "total")}


@pytest.mark.parametrize(
    ("changes", "target", "there"),
    [
        (STUDY, "all", ()),
        (STUDY, "releases", THERE),
        ({"products": "p", "surveys": {}, "baseline": {"kind": "wiener"}}, "all", ()),
    ],
    ids=["study", "releases", "noise"],
)
def test_jobs_are_those_of_the_workflow(tmp_path, monkeypatch, content, changes, target, there):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content | changes))
    for name in ("n.keras", *there):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = jobs_of(snakemake(tmp_path, "--config", "pipeline=c.yaml", "--", target))
    members = load_study("c.yaml")
    found = costs.stages_of(members, "c.yaml", releases=target == "releases")
    assert {stage.rule: stage.left for stage in found if stage.left} == expected
    assert all((stage.cpu_s > 0) == (stage.left > 0) for stage in found)
    every = costs.stages_of(members, "c.yaml", everything=True, releases=target == "releases")
    assert {s.rule: s.left for s in every} == {s.rule: s.jobs for s in found}


def of(file: str, **changes) -> Costs:
    return Costs(Run(load_config(CONFIGS / file).model_copy(update=changes)))


def changed(section, **values):
    return section.model_copy(update=values)


# CPU-seconds, of what was timed as a whole elsewhere than by the unit costs' own benchmark.
@pytest.mark.parametrize(
    ("found", "measured", "within"),
    [
        (lambda: of("laptop.yaml").train(), 2 * 91 * 60, 0.05),  # training/networks/README.md
        (lambda: of("laptop.yaml").derivatives(), 2 * 13 * 60, 0.5),  # docs/experiment.md
        (lambda: of("refined.yaml").bandpowers("test"), 1543 * 0.75, 0.1),  # networks/README.md
        (lambda: of("refined.yaml").sky("test"), 77.4, 0.15),  # `cnnlens skies`, by itself
    ],
    ids=["training", "derivatives", "bandpowers", "sky"],
)
def test_costs_are_those_that_were_measured(found, measured, within):
    assert found() == pytest.approx(measured, rel=within)


def test_what_costs_grow_with():
    """Patches of a set, pixels, bands with both signs of each, and the network's width squared."""
    dense, few = of("refined.yaml"), of("refined.yaml")
    assert (dense.patches("test"), few.patches("survey-low")) == (1543, 160)
    more = dense.sky("test") - dense.sky("survey-low")
    assert more == pytest.approx((1543 - 160) * UNITS["sky patch"].cpu_s)

    settings = load_config(CONFIGS / "refined.yaml").derivatives
    halved = changed(settings, ee_edges=[2, *settings.ee_edges[2:]])  # one band less
    less = of("refined.yaml").derivatives() - of("refined.yaml", derivatives=halved).derivatives()
    both_signs = 64 * 2 * (UNITS["refined"].cpu_s + UNITS["observation"].cpu_s)
    transform = 64 * UNITS["band patch"].cpu_s + UNITS["band"].cpu_s * (60 / 4400) ** 3
    assert less == pytest.approx(both_signs + transform)

    laptop = load_config(CONFIGS / "laptop.yaml")
    start = UNITS["start"].cpu_s
    wide = of("laptop.yaml", network=changed(laptop.network, width=32))
    assert wide.train() - start == pytest.approx(4 * (of("laptop.yaml").train() - start))
    coarse = of("laptop.yaml", patch=changed_patch(laptop.patch, 64))
    ratio = (coarse.bandpowers("test") - start) / (of("laptop.yaml").bandpowers("test") - start)
    assert ratio == pytest.approx(0.25)


def changed_patch(patch, n_pixels):
    from dataclasses import replace

    return replace(patch, n_pixels=n_pixels)


def test_time_limits_hold_slower_machines():
    assert costs.minutes(3600, threads=2) == costs.MARGIN * 30
    assert costs.minutes(3600, threads=1, attempt=2) == costs.MARGIN * 120
    assert costs.minutes(1, threads=2) == costs.LEAST_MINUTES
    assert costs.minutes(1e9, threads=16) == costs.MOST_MINUTES


def test_memory_holds_a_dense_sky():
    """Measured: 8,543 MB for 1,543 patches. One of 160 needs no more than the least."""
    cost = of("refined.yaml")
    assert 8543 < cost.memory_mb("test") < 1.25 * 8543
    assert cost.memory_mb("survey-low") == costs.LEAST_MB


@pytest.mark.parametrize(("area", "tiles", "skies"), [(1000, 50, 2), (13_000, 642, 21)])
def test_a_survey_asks_for_test_skies_as_its_area(area, tiles, skies):
    """Tiles of 5° stand 4.5° apart, and N may add 2% to the variance of so many."""
    file = str(CONFIGS / "refined.yaml")
    members, survey = costs.of_survey(load_study(file), file, area)
    assert survey.tiles == tiles
    assert members[file].skies.test == skies
    assert tiles / (1543 * skies) <= 0.02 < tiles / (1543 * (skies - 1))


@pytest.mark.parametrize(
    ("file", "area", "message"),
    [
        ("refined.yaml", 0.0, "--area is 0; give square degrees"),
        ("refined.yaml", 5e4, "up to 41253"),
        ("dedicated.yaml", 1000.0, "is a study of 5 members; --area takes one"),
    ],
)
def test_a_survey_that_cannot_be_is_refused(file, area, message):
    result = CliRunner().invoke(app, ["cost", str(CONFIGS / file), "--area", str(area)])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_the_command_adds_up():
    """Hours are the sum of the stages' over the cores, and tiles of a survey are among them."""
    arguments = ["cost", str(CONFIGS / "laptop.yaml"), "--everything", "--area", "1000"]
    output = CliRunner().invoke(app, [*arguments, "--cores", "8"]).output
    rows = re.findall(r"^(\S.*?) +(\d+) +(\d+) +([\d.]+)$", output, re.M)
    *stages, total = rows
    assert total[0] == "together"
    assert sum(int(row[2]) for row in stages) == int(total[2])
    assert sum(float(row[3]) for row in stages) == pytest.approx(float(total[3]), abs=0.05)
    hours = float(re.search(r"^([\d.]+) hours on 8 cores", output, re.M)[1])
    assert hours == pytest.approx(float(total[3]) / 8, abs=0.06)
    assert "50 tiles" in [row[0] for row in stages]


def test_the_page_shows_the_unit_costs():
    page = (REPOSITORY / "docs" / "experiment.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \| ([\d.]+) \|$", page, re.M)
    shown = {what.replace("κ̂", "κ̂"): float(cpu_s) for what, cpu_s in rows}
    assert shown == {unit.of: unit.cpu_s for unit in UNITS.values()}


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="pip install '.[slurm]'",
)
def test_the_slurm_profile_asks_for_what_jobs_need(tmp_path):
    """Time by the unit costs, memory, cores, and a GPU for training alone."""
    profile = REPOSITORY / "training" / "profiles" / "slurm"
    config = f"pipeline={CONFIGS / 'laptop.yaml'}"
    result = snakemake(tmp_path, "--profile", str(profile), "--config", config)
    assert result.returncode == 0, result.stdout
    jobs = re.findall(
        r"^rule (\w+):$.*?(?:^    threads: (\d+)$.)?^    resources: (.*?)$",
        result.stdout,
        re.M | re.S,
    )
    asked = {
        rule: (int(threads or 1), dict(re.findall(r"(\w+)=(\d+)", r))) for rule, threads, r in jobs
    }
    threads, train = asked["train"]
    assert train["gpu"] == "1"
    assert [rule for rule, (_, resources) in asked.items() if "gpu" in resources] == ["train"]
    cost = of("laptop.yaml")
    assert int(train["runtime"]) == costs.minutes(cost.train(), threads)
    assert int(asked["derivatives"][1]["runtime"]) == costs.minutes(cost.derivatives(), 1)
    assert all("mem_mb" in resources for rule, (_, resources) in asked.items() if rule != "all")
