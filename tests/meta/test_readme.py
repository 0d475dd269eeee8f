"""Every command that a README or a page of docs/ quotes runs from a fresh clone, or is marked with
what it needs.

``readme_commands.yaml`` says which is which; a command that it does not list fails here, and so
does one that none of them quotes any more.
"""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import yaml

from ..conftest import REPOSITORY, cnnlens

READMES = (
    *("README.md", "CONTRIBUTING.md", "training/README.md", "training/networks/README.md"),
    *(f"docs/{page.name}" for page in sorted((REPOSITORY / "docs").glob("*.md"))),
)
TABLE = yaml.safe_load((Path(__file__).parent / "readme_commands.yaml").read_text())
# How the quotes of commands begin.
COMMAND = re.compile(
    r"(\.venv/bin/)?(cnnlens|cobaya-run|snakemake|pytest|pip|python3?|mpirun|git clone)\s"
)
# What readers put in for themselves.
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|…|<|\bmy\b")


@cache
def quoted(name: str) -> list[str]:
    """Commands in a README, in order: lines of code blocks, and code within the text."""
    text, found, prose = (REPOSITORY / name).read_text(), [], []
    fence = None
    for line in text.splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line.strip("` ")
        elif fence is not None or line.startswith("    "):
            prose.append("")
            if fence in (None, "", "sh", "bash", "console"):
                found.append(line.strip().removeprefix("$ "))
        else:
            prose.append(line)
    found += re.findall(r"`([^`]+)`", re.sub(r"\n(?=[^\n])", " ", "\n".join(prose)))
    found = (" ".join(command.split("  # ")[0].split()) for command in found)
    return list(dict.fromkeys(command for command in found if COMMAND.match(command)))


def marked() -> dict[str, str]:
    """What each command of the table is marked as."""
    return {command: kind for kind, commands in TABLE.items() for command in commands}


@pytest.mark.parametrize("name", READMES)
def test_every_quoted_command_is_listed(name):
    unknown = [command for command in quoted(name) if command not in marked()]
    assert not unknown, f"{name}: add to tests/meta/readme_commands.yaml what these are: {unknown}"


def test_the_table_is_not_stale():
    known = {command for name in READMES for command in quoted(name)}
    assert not set(marked()) - known
    assert sum(map(len, TABLE.values())) == len(marked()), "a command is listed twice"


def test_the_readme_leads_on():
    """Every link and picture is a file of the repository."""
    text = (REPOSITORY / "README.md").read_text()
    links = re.findall(r"\]\((?!https:)([^)#]+)\)", text)
    assert "docs/_static/opening.png" in links
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []
    pages = {f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")}
    # Reference and choices, to which the site's index and other pages lead.
    by_others = {
        f"docs/{name}.md"
        for name in (
            *("api", "changelog", "contributing", "glossary", "index"),
            *(
                "blinding",
                "citing",
                "combine",
                "conventions",
                "export",
                "faq",
                "gallery",
                "gradients",
                "survey-nulls",
            ),
            "which-input",
        )
    }
    assert pages - by_others <= set(links)


def test_what_a_command_needs_is_said_in_its_readme():
    for command, said in TABLE["needs"].items():
        for name in READMES:
            if command in quoted(name):
                text = " ".join((REPOSITORY / name).read_text().split())
                assert said in text, f"{name}: say beside `{command}`: {said}"


def options_of(command: str) -> tuple[list[str], list[str]]:
    """A `cnnlens` command's name, and the options that are given to it."""
    words = shlex.split(command)[1:]
    group = 2 if words[:1] in (["release"], ["survey"]) else 1
    return words[:group], [word for word in words if word.startswith("--") and word != "--"]


@pytest.mark.parametrize("command", TABLE["forms"])
def test_forms_are_those_of_the_command(command):
    """A command with something to fill in exists, and has the options it is quoted with."""
    from typer.testing import CliRunner

    from cobaya_cnnlens.cli.main import app

    assert PLACEHOLDER.search(command) or len(command.split()) <= 3
    name, options = options_of(command)
    result = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for option in options:
        assert option in result.output


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone of what is committed."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs the repository")
    folder = tmp_path_factory.mktemp("readme") / "cobaya_cnnlens"
    subprocess.run(["git", "clone", "-q", REPOSITORY, folder], check=True)
    return folder


def run(command: str, folder: Path) -> None:
    """Run a quoted command in a clone, with this environment's programs and the clone's package;
    those of `cnnlens`, of which imports would take longest, in this process."""
    command = command.replace("DIR", "out").replace("…", "")
    if command.startswith("cnnlens "):
        done = cnnlens(*shlex.split(command)[1:], folder=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(folder)}
    # `cnnlens` of the clone, not of an installed copy
    stub = f'cnnlens() {{ {shlex.quote(sys.executable)} -m cobaya_cnnlens "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", "set -e\n" + stub + command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"


@pytest.mark.parametrize("command", TABLE["fast"])
def test_fast_commands(command, clone):
    run(command, clone)


@pytest.mark.slow
@pytest.mark.parametrize("command", TABLE["slow"])
def test_slow_commands(command, clone):
    """In the order of the table: one may draw the chain of another."""
    run(command, clone)
