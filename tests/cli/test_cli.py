import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

import cobaya_cnnlens
from cobaya_cnnlens.cli import main as cli
from cobaya_cnnlens.cli import runs
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.likelihood.release import write_release
from cobaya_cnnlens.pipeline.release_networks import NETWORKS

from ..conftest import REPOSITORY, at_fiducial_power, cnnlens

COMMANDS = [
    *("skies", "emulator", "features", "train", "reconstruct"),
    *("derivatives", "nuisances", "power", "ship"),
    *("release make", "release unblind", "release show", "release combine", "release export"),
    *("survey plan", "survey reconstruct", "survey calibrate", "survey release", "survey nulls"),
    *("survey map", "survey template"),
    *("evaluate", "n0", "points", "coverage", "nulltest", "foregrounds", "primary", "check"),
    *("figure", "plot"),
]
pipeline = pytest.mark.skipif(
    importlib.util.find_spec("ducc0") is None, reason="a light installation has no pipeline"
)
NETWORK = NETWORKS / "refined.keras"
CONFIG = REPOSITORY / "training" / "config" / "test.yaml"
# What a light installation has no copy of: importing it fails. CAMB is coarse: it has to run.
PIPELINE = ("ducc0", "healpy", "keras", "tensorflow", "jax", "snakemake")
BLOCKED = f"""
import contextlib, functools, io, json, sys
for name in {PIPELINE}:
    sys.modules[name] = None
from cobaya_cnnlens.cli.main import run
from cobaya_cnnlens.validate import analytic
analytic.CambSettings = functools.partial(analytic.CambSettings, lens_potential_accuracy=1.0)
done = []
for arguments in json.load(sys.stdin):
    sys.argv = ["cnnlens", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run()
    except SystemExit as stop:
        code = stop.code or 0
    done.append((code, out.getvalue(), err.getvalue()))
json.dump(done, sys.stdout)
"""
LIGHT = [
    (("--version",), cobaya_cnnlens.__version__),
    (("release", "show"), "refined_fiducial"),
    (("release", "show", "refined_low"), "bandpowers in units of 1e-9"),
    (("release", "show", "refined_fiducial", "--network", str(NETWORK)), "was made with"),
    (("release", "show", "refined_fiducial", "--figure", "OUT/release.png"), "release.png"),
    (("check", str(REPOSITORY / "yaml" / "omegac_fast.yaml")), "EmulatedCAMB, second point"),
    (("n0", "--multipole", "100", "--lmax", "2000"), "C_L^kk"),
]
NEEDS_PIPELINE = [
    *([c, str(CONFIG)] for c in ("train", "evaluate")),
    *([c, str(CONFIG)] for c in ("derivatives", "coverage", "nulltest", "primary")),
    ["skies", str(CONFIG), "--set", "test"],
    ["features", str(CONFIG), "--set", "train"],
    ["reconstruct", str(CONFIG), "--set", "test"],
    ["figure", str(CONFIG), "sky"],
    ["release", "make", str(CONFIG), "--survey", "high"],
    ["emulator", "training/emulator.yaml"],
    ["survey", "plan", "--mask", "mask.fits", "--level", "5"],
    ["survey", "reconstruct", "plan.yaml", "--release", "refined_fiducial"],
    ["survey", "nulls", "plan.yaml", "--release", "refined_fiducial"],
    ["survey", "calibrate", "plan.yaml", "--config", str(CONFIG)],
    ["survey", "release", "plan.yaml", "--config", str(CONFIG)],
]


def without_pipeline(commands):
    """Exit code, output and errors of ``cnnlens`` commands without the pipeline's packages."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        input=json.dumps([list(c) for c in commands]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_light_installation_says_what_installs_the_pipeline(tmp_path):
    """Line for line: what needs no pipeline, and what does; a traceback would end the process."""
    commands = [[a.replace("OUT", str(tmp_path)) for a in c] for c, _ in LIGHT]
    done = without_pipeline([*commands, *NEEDS_PIPELINE])
    for (code, out, err), (command, word) in zip(done, LIGHT, strict=False):
        assert (code, err) == (0, ""), command
        assert word in out, command
    for (code, out, err), command in zip(done[len(LIGHT) :], NEEDS_PIPELINE, strict=True):
        assert (code, out) == (1, ""), command
        assert err.count("\n") == 1, err
        assert err.startswith("error: "), err
        assert "pip install '.[pipeline]'" in err
    assert (tmp_path / "release.png").stat().st_size > 10_000


@pytest.mark.slow
def test_light_installation(tmp_path):
    """`pip install .` in a fresh environment: the README's promise, TensorFlow-free."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    # An absolute path to a copy, so that no build folder is left in the working tree.
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", REPOSITORY, source], check=True)
    bin_folder = tmp_path / "venv" / "bin"
    subprocess.run([bin_folder / "pip", "install", "-q", source], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def light(*arguments):
        return subprocess.run(
            [bin_folder / "cnnlens", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

    for arguments, word in LIGHT:
        result = light(*(a.replace("OUT", str(tmp_path)) for a in arguments))
        assert result.returncode == 0, result.stderr
        assert word in result.stdout
    for arguments in NEEDS_PIPELINE:
        result = light(*arguments)
        assert result.returncode == 1
        assert "pip install '.[pipeline]'" in result.stderr
        assert "Traceback" not in result.stderr
    listed = subprocess.run([bin_folder / "pip", "list"], capture_output=True, text=True).stdout
    assert not any(f"\n{name} " in listed for name in PIPELINE)


def test_the_figure_of_a_release(release):
    """It shows the file's own numbers, also where bandpowers scatter below zero, and leaves the
    caller's matplotlib backend alone."""
    import matplotlib
    import numpy as np

    from cobaya_cnnlens.plots.release_figure import release_figure

    backend = matplotlib.rcParams["backend"]
    low = np.array([-3.0, -1.0, 0.0, 1.0, 3.0]) * np.sqrt(np.diag(release.covariance))
    release = at_fiducial_power(replace(release, bandpowers=release.bandpowers + low))
    top, bottom = release_figure(release).axes
    assert matplotlib.rcParams["backend"] == backend
    signal = release.windows @ release.fiducial_kk[: release.windows.shape[1]]
    lines = {line.get_label(): line.get_ydata() for line in top.get_lines()}
    np.testing.assert_array_equal(lines["expected bandpowers"], signal)
    np.testing.assert_array_equal(lines[r"$N_L$ of the debias"], release.noise)
    (points,) = (c for c in top.containers if c.get_label() == "bandpowers")
    np.testing.assert_array_equal(points.lines[0].get_ydata(), release.bandpowers)
    (residuals,) = bottom.containers
    np.testing.assert_allclose(residuals.lines[0].get_ydata(), [-3, -1, 0, 1, 3], atol=1e-12)
    figure_limits = top.get_ylim()
    assert figure_limits[0] <= release.bandpowers.min()


# What most users need stands in front; then the order of the pipeline.
STAGES = {
    "What most users need": ["release", "survey", "train", "reconstruct", "check", "plot"],
    "Simulate": ["skies", "emulator"],
    "Estimate": ["features"],
    "Calibrate": ["derivatives", "nuisances", "power", "ship"],
    "Validate": [
        *("evaluate", "n0", "points", "coverage", "nulltest", "foregrounds", "primary"),
    ],
    "Look": ["figure"],
}


def test_help_lists_the_commands_by_stage():
    """A command in no stage would stand under a title of its own, which is typer's."""
    output = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["--help"]).output
    shown: dict = {}
    for line in output.splitlines():
        if title := re.match(r"╭─ (\w[\w ]*) ─", line):
            stage = shown.setdefault(title[1], [])
        elif command := re.match(r"│ ([a-z][a-z0-9-]*) ", line):
            stage.append(command[1])
    assert shown.pop("Options") == []
    assert list(shown.items()) == list(STAGES.items())
    assert {name.split()[0] for name in COMMANDS} == {n for names in STAGES.values() for n in names}


def commands_of(group, words=()):
    """Every command below a group, with the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, (*words, name))
        else:
            yield (*words, name), command


def test_the_commands_are_few():
    commands = list(commands_of(typer.main.get_command(app)))
    options = [p for _, c in commands for p in c.params if p.param_type_name == "option"]
    assert len(commands) == len(COMMANDS) <= 31
    assert len(options) <= 103


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_it_accepts(name):
    words = tuple(name.split())
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    command = dict(commands_of(typer.main.get_command(app)))[words]
    example = command.epilog.removeprefix("Example: cnnlens ").split()
    assert tuple(example[: len(words)]) == words
    command.make_context(name, example[len(words) :])  # an unknown option would raise
    assert command.get_short_help_str(300).endswith((".", "?"))


@pytest.mark.parametrize(
    ("value", "threads"), [(None, 0), ("", 0), ("0", 0), ("3", 3), ("4,2", 4), ("many", None)]
)
def test_threads_are_those_of_openmp(monkeypatch, value, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    if threads is None:
        with pytest.raises(ConfigError, match="OMP_NUM_THREADS is 'many'; give a number"):
            runs.threads()
    else:
        assert runs.threads() == threads


def test_starting_is_light():
    """The help, and what the shell asks at every press of Tab, import neither numpy nor a stage."""
    code = """
import sys
from cobaya_cnnlens.cli import run
sys.argv = ["cnnlens", "--version"]
try:
    run()
finally:
    heavy = {"numpy", "cobaya", "matplotlib", "pydantic"} & set(sys.modules)
    ours = {n for n in sys.modules if n.startswith("cobaya_cnnlens.")}
    beyond = {n for n in ours if n.split(".")[1] not in ("cli", "errors")}
    assert not heavy | beyond, heavy | beyond
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cobaya_cnnlens {cobaya_cnnlens.__version__}\n"


def test_the_shell_completes_commands():
    """What the script that typer installs in bash asks when Tab is pressed."""
    code = "import sys; sys.argv = ['cnnlens']; from cobaya_cnnlens.cli import run; run()"

    def completed(line):
        asked = {"_CNNLENS_COMPLETE": "complete_bash", "COMP_WORDS": line}
        asked["COMP_CWORD"] = str(len(line.split()) - 1)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("cnnlens re") == ["release", "reconstruct"]
    assert completed("cnnlens release ex") == ["export"]
    assert completed("cnnlens n0 --lm") == ["--lmin", "--lmax"]


def test_release_show(release, tmp_path):
    write_release(release, tmp_path / "r.json")
    result = CliRunner().invoke(app, ["release", "show", str(tmp_path / "r.json")])
    assert result.exit_code == 0
    for word in ("synthetic", "bandpowers", "36-236", "network_sha256"):
        assert word in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("release", "show", "none.json"), "none.json: no such release"),
        pytest.param(
            ("skies", "none.yaml", "--set", "train"), "none.yaml: cannot be read", marks=pipeline
        ),
        (("plot", "chains/none"), "chains/none: no such chain (chains/none.1.txt,"),
        (("release", "show", "refind"), "one of the shipped refined_fiducial, refined_high,"),
        pytest.param(
            ("reconstruct", "refined_fidu", "--maps", "m.npz"),
            "refined_fidu: is neither a file nor a shipped release, which are refined_fiducial,",
            marks=pipeline,
        ),
        pytest.param(
            ("reconstruct", "refined_fiducial", "--maps", ".", "--centre", "120,-45"),
            ".: is a folder; name a file in it",
            marks=pipeline,
        ),
        pytest.param(
            ("emulator", "training/emulator.yaml", "--check", "lcmd"),
            "lcmd: cannot be read as an emulator (No such file or directory); give the path of an "
            "emulator, or one of the shipped feedback, lcdm, mnu",
            marks=pipeline,
        ),
    ],
)
def test_errors_are_one_line(arguments, message):
    result = cnnlens(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_encoding_without_our_letters(encoding):
    """What it lacks is replaced: no result is lost for a κ."""
    given = [sys.executable, "-m", "cobaya_cnnlens", "n0", "--help"]
    done = subprocess.run(
        given, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=True
    )
    assert done.stderr == b""
    assert b"?" in done.stdout


@pipeline
def test_a_backend_on_which_no_network_runs(monkeypatch):
    """It is told before the maps are read, with the ones that do."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    result = cnnlens("reconstruct", "refined_fiducial", "--maps", "none.npz")
    assert result.returncode == 1
    assert result.stderr.startswith("error: Keras has the backend 'torch' (KERAS_BACKEND,")
    assert "one of tensorflow, jax" in result.stderr
    assert result.stderr.count("\n") == 1


def test_errors_of_the_system_are_one_line(monkeypatch, capsys):
    """A full disk, a folder that may not be written: wherever it happens."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "products/x")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit, match="1"):
        cli.run()
    assert capsys.readouterr().err == "error: products/x: No space left on device\n"


@pytest.fixture
def configured(tmp_path):
    """The test configuration with some keys changed, as a file."""

    def write(**changes):
        import yaml

        content = yaml.safe_load(CONFIG.read_text()) | changes
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "c.yaml")

    return write


@pipeline
@pytest.mark.parametrize(
    "arguments",
    [
        *(("skies", "--set", "test"), ("reconstruct", "--set", "test"), ("primary",)),
        *(("derivatives",), ("nuisances",), ("power",), ("coverage",), ("nulltest",)),
        ("foregrounds",),
    ],
)
def test_an_index_below_zero_is_refused(tmp_path, arguments, monkeypatch, configured):
    path = configured(products=str(tmp_path / "p"))
    monkeypatch.setattr(runs, "ready", lambda run: run)
    command, *options = arguments
    result = CliRunner().invoke(app, [command, path, *options, "--index", "-1"])
    assert isinstance(result.exception, ConfigError), result.exception
    assert "not -1" in str(result.exception)


@pipeline
def test_a_pretrained_network_is_not_trained(tmp_path, configured):
    result = cnnlens("train", configured(network={"pretrained": str(tmp_path / "n.keras")}))
    assert result.returncode == 1
    assert "'network.pretrained' names" in result.stderr


@pipeline
def test_missing_stage_is_named(tmp_path, configured):
    path = configured(products=str(tmp_path))
    result = cnnlens("reconstruct", path, "--set", "test")
    assert result.returncode == 1
    assert "network.keras: the network cannot be read" in result.stderr
    assert "run `cnnlens train`" in result.stderr
    result = cnnlens("figure", path, "moon")
    assert result.returncode == 1
    assert "no figure for stage 'moon'" in result.stderr
