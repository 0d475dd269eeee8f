"""The workflow on a Slurm of one node, and again after its driver was killed."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

import yaml

from ..conftest import REPOSITORY
from ..slurm import local

PROFILE = REPOSITORY / "training" / "profiles" / "slurm"
# The node has as many cores as this machine, and short jobs are asked for often.
QUICK = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5")
ALONE = ("train", "sky", "bandpowers", "nuisances")
HERE = (*QUICK, "--set-threads", *(f"{rule}=1" for rule in ALONE))
LONGEST = 1800  # seconds for one workflow

pytest.importorskip("snakemake")
plugin = pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="pip install '.[slurm]'",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a Slurm that ends with the tests."""
    if reason := local.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with local.slurm(folder) as environment:
        yield environment


class Driver:
    """Snakemake with the profile, in a folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], skies_from: Path | None = None):
        self.folder, self.environment = folder, dict(environment)
        folder.mkdir()
        here = Path(sys.executable).parent
        self.environment["PATH"] = f"{here}{os.pathsep}{environment['PATH']}"
        # As `.ci/run` has it, with less: a network that has learned before, a survey.
        content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
        network = str(REPOSITORY / "tests" / "fixtures" / "width4.keras")
        content |= {
            "products": str(folder / "products"),
            "skies": {"train": 1, "validation": 1, "test": 1, "derivatives": 1},
            "network": {"width": 4, "initial": network},
            "surveys": {"high": {"omch2": 0.1285}},
        }
        phase = {"steps": 20, "batch": 16, "crop": 32, "learning_rate": 1e-4}
        content["training"] |= {"phases": [phase], "steps_per_epoch": 10, "jit_compile": False}
        if skies_from is not None:
            content["skies_from"] = str(skies_from)
        (folder / "test.yaml").write_text(yaml.safe_dump(content))

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "training" / "Snakefile"]
        command += ["--profile", PROFILE, *HERE, "--config", f"pipeline={self.folder}/test.yaml"]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [*command, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def finish(self, *arguments: str) -> None:
        driver = self.start(*arguments)
        try:
            assert driver.wait(LONGEST) == 0, self.log[-5000:]
        finally:
            driver.kill()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def made(self) -> dict[str, Path]:
        """Products and tables by their place; states of training are no product."""
        products = self.folder / "products"
        files = [f for f in products.rglob("*") if f.is_file() and not f.name.startswith(".")]
        names = {str(f.relative_to(products)): f for f in files}
        return {k: names[k] for k in sorted(names) if not k.startswith("training/")}


def content(path: Path):
    """What a file says: all arrays of a product and its identity, the hash of a network's weights,
    text."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            arrays: dict = {}
            file.visititems(lambda name, item: arrays.update({name: item}))
            found = {k: v[()].tobytes() for k, v in arrays.items() if isinstance(v, h5py.Dataset)}
            return found | {"identity": file.attrs["identity"]}
    if path.suffix == ".keras":
        from cobaya_cnnlens.reconstruct.files import network_hash

        return network_hash(path)
    return path.read_text()


WORKFLOW = """
rule all:
    input: "trained", "seen"
rule train:
    output: "trained"
    resources: mem_mb=5000, runtime=77
    shell: "scontrol show job $SLURM_JOB_ID > {output}"
rule fails_once:
    input: "trained"
    output: "seen"
    shell: "scontrol show job $SLURM_JOB_ID > {output}; test -e failed || (touch failed; exit 1)"
"""


@plugin
def test_the_workflow_asks_slurm_for_what_its_jobs_need(tmp_path):
    """Memory and time for every job, more time for training, and a GPU for training alone."""
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "training" / "Snakefile"]
    command += ["--profile", PROFILE, "--dry-run"]
    command += ["--config", f"pipeline={REPOSITORY}/training/config/test.yaml"]
    dry = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    jobs = re.findall(
        r"^rule (\w+):$.*?^    resources: (.*?)$", dry.stdout + dry.stderr, re.M | re.S
    )
    asked = {rule: dict(re.findall(r"(\w+)=(\d+)", resources)) for rule, resources in jobs}
    minutes = {rule: int(resources["runtime"]) for rule, resources in asked.items()}
    assert minutes["derivatives"] > minutes["sky"] == minutes["bandpowers"] == 60
    assert minutes["train"] > minutes["derivatives"]
    assert all(int(resources["mem_mb"]) >= 10000 for resources in asked.values())
    assert [rule for rule, resources in asked.items() if "gpu" in resources] == ["train"]


@plugin
@pytest.mark.slow
def test_the_profile_on_a_slurm(cluster, tmp_path):
    """What rules ask for is what Slurm has noted, and a job that failed has a second try."""
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    command = [sys.executable, "-m", "snakemake", "--profile", PROFILE, *QUICK]
    # The job step hides Slurm's variables from what it starts, this one too.
    environment = cluster | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster['PATH']}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trained, seen = ((tmp_path / name).read_text() for name in ("trained", "seen"))
    assert re.search(
        r"TimeLimit=01:17:00\b.*MinMemoryNode=5000M\b.*TresPerJob=gres:gpu:1\b", trained, re.S
    ), trained
    assert re.search(r"TimeLimit=02:00:00\b.*MinMemoryNode=10000M\b", seen, re.S), seen
    assert "gpu" not in seen


@plugin
@pytest.mark.slow
def test_the_workflow_on_a_slurm_and_after_its_driver_was_killed(cluster, tmp_path):
    """Products of both, on the same skies, are the same, and what was finished before the kill is
    not made again."""
    whole = Driver(tmp_path / "whole", cluster)
    start = time.monotonic()
    whole.finish()
    print(f"\nthe workflow: {time.monotonic() - start:.0f} s")

    killed = Driver(tmp_path / "killed", cluster, skies_from=tmp_path / "whole/products/skies")
    start = time.monotonic()
    driver = killed.start()
    while not any(name.startswith("bandpowers/") for name in killed.made()):
        assert driver.poll() is None, killed.log[-5000:]
        assert time.monotonic() < start + LONGEST
        time.sleep(0.5)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    written = {name: file.stat().st_mtime_ns for name, file in killed.made().items()}
    # As docs/experiment.md says: its jobs end first, then what it held is given free.
    (run_id,) = re.findall(r"^SLURM run ID: (\S+)$", killed.log, re.M)
    subprocess.run(["scancel", "--name", run_id], env=killed.environment, check=True)
    killed.finish("--unlock")
    killed.finish()
    print(f"killed with {len(written)} files there, and again: {time.monotonic() - start:.0f} s")

    found = killed.made()
    expected = {k: f for k, f in whole.made().items() if not k.startswith("skies/")}
    assert list(found) == list(expected)
    assert len(found) > len(written)
    for name in expected:
        assert content(found[name]) == content(expected[name]), name
    kept = {name for name, at in written.items() if found[name].stat().st_mtime_ns == at}
    # What Snakemake was not told of before it was killed, it has made again.
    assert "network.keras" in kept
