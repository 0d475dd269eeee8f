"""The command that makes skies."""

from __future__ import annotations

from functools import partial

import typer

from . import runs
from .arguments import ConfigFile, Indices, SetName, Threads

app = typer.Typer()
command = partial(app.command, rich_help_panel="Simulate")


@command()
def skies(
    config: ConfigFile, set_name: SetName, index: Indices = None, threads: Threads = 0
) -> None:
    """Simulate the skies of a set: one file of patches (Q̃, Ũ, Q, U, E, κ) each."""
    run = runs.load(config)
    from ..pipeline import skies

    for path in skies.measure(run, set_name, index, threads):
        typer.echo(path)
