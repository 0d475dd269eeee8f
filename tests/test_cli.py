import errno
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cobaya_cnnlens import cli
from cobaya_cnnlens.cli import app
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.release import write_release

COMMANDS = [
    *("spectra", "skies", "train", "reconstruct", "derivatives", "evaluate", "recover"),
    *("plot", "figure", "release make", "release show", "release list", "release check"),
    *("compare", "forecast", "release export", "n0", "mean-field", "primary", "predictive"),
    *("nulltest", "ship"),
]


def cnnlens(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cobaya_cnnlens", *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


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
        (("skies", "none.yaml", "--set", "train"), "none.yaml: cannot be read"),
        (("plot", "chains/none"), "chains/none.1.txt: no such chain"),
    ],
)
def test_errors_are_one_line(arguments, message):
    result = cnnlens(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_errors_of_the_system_are_one_line(monkeypatch, capsys):
    """A full disk, a folder that may not be written: wherever it happens."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "products/x")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit, match="1"):
        cli.run()
    assert capsys.readouterr().err == "error: products/x: No space left on device\n"


@pytest.mark.parametrize(
    "arguments",
    [
        *(("skies", "--set", "test"), ("reconstruct", "--set", "test"), ("primary",)),
        *(("derivatives",), ("nuisances",), ("points",), ("coverage",), ("nulltest",)),
    ],
)
def test_an_index_below_zero_is_refused(tmp_path, arguments, monkeypatch):
    import yaml

    from .conftest import REPOSITORY

    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content |= {"products": str(tmp_path / "p"), "points": {"at": {"one": [{"ns": 0.95}]}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(cli, "_network", lambda config: (None, "a" * 64))
    command, *options = arguments
    result = CliRunner().invoke(app, [command, str(tmp_path / "c.yaml"), *options, "--index", "-1"])
    assert isinstance(result.exception, ConfigError), result.exception
    assert "not -1" in str(result.exception)


def test_a_pretrained_network_is_not_trained(tmp_path):
    import yaml

    from .conftest import REPOSITORY

    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content["network"] = {"pretrained": str(tmp_path / "n.keras")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = cnnlens("train", str(tmp_path / "c.yaml"))
    assert result.returncode == 1
    assert "'network.pretrained' names" in result.stderr


def test_missing_stage_is_named(tmp_path):
    import yaml

    from .conftest import REPOSITORY

    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content["products"] = str(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    result = cnnlens("reconstruct", str(path), "--set", "test")
    assert result.returncode == 1
    assert "network.keras: the network cannot be read" in result.stderr
    assert "run `cnnlens train`" in result.stderr
    result = cnnlens("figure", str(path), "moon")
    assert result.returncode == 1
    assert "no figure for stage 'moon'" in result.stderr
