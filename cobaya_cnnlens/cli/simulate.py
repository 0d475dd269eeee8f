"""Commands that simulate skies and make emulators of CAMB."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import runs
from .arguments import ConfigFile, Indices, SetName

app = typer.Typer()
command = partial(app.command, rich_help_panel="Simulate")


@command(epilog="Example: cnnlens skies my.yaml --set test --index 0")
def skies(config: ConfigFile, set_name: SetName, index: Indices = None) -> None:
    """Simulate the skies of a set: one file of patches (Q̃, Ũ, Q, U, E, κ) each."""
    run = runs.load(config)
    from ..pipeline.skies import Skies

    for path in Skies(run, runs.threads()).measure(set_name, index):
        typer.echo(path)


@command(epilog="Example: cnnlens emulator training/emulator.yaml --check lcdm")
def emulator(
    plan: Annotated[Path, typer.Argument(help="What to emulate (YAML).")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; in its products if absent.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="CAMB runs at a time.", min=1)] = 1,
    check: Annotated[
        str | None,
        typer.Option(
            help="Instead: compare this emulator, shipped or a file, with CAMB at the plan's "
            "points that did not make it."
        ),
    ] = None,
    release: Annotated[str, typer.Option(help="Release for Δχ² of --check.")] = "refined_fiducial",
) -> None:
    """Run CAMB at the points of a plan and fit an emulator to them; a stopped run goes on."""
    runs.need_pipeline()
    if check is not None:
        typer.echo(emulator_errors(plan, check, release, jobs))
        return
    from ..pipeline import emulation
    from ..pipeline.emulator_fit import fit
    from ..theory.emulator_files import write_emulator

    loaded = emulation.load_plan(plan)
    design = loaded.design()
    emulation.run_camb(loaded, design, jobs)
    training_points = design[: len(design) - loaded.checks]
    made = fit(loaded, emulation.read_points(loaded, training_points))
    path = out or loaded.products / f"emulator_{loaded.name}.npz"
    write_emulator(made.tables, made.record, path)
    typer.echo(path)


def emulator_errors(plan: Path, emulator: str, release: str, jobs: int) -> str:
    """Errors of an emulator at the plan's points that did not make it, against CAMB run there.

    Parameters
    ----------
    plan : what was emulated (YAML)
    emulator : the name of a shipped emulator, or the path of one
    release : for Δχ²
    jobs : CAMB runs at a time

    Returns
    -------
    table : as text

    Raises
    ------
    ConfigError
        If the plan has no check points, or other parameters than the emulator.
    """
    from ..likelihood.release import read_release
    from ..pipeline import emulation
    from ..theory.emulator_files import read_emulator
    from ..validate.emulator_errors import errors

    loaded, made = emulation.load_plan(plan), read_emulator(emulator)
    if made.parameters != loaded.parameters or loaded.checks < 1:
        raise ConfigError(
            f"{plan}: has {loaded.checks} checks in {', '.join(loaded.parameters)}; emulator "
            f"'{emulator}' is one of {', '.join(made.parameters)}"
        )
    check_points = loaded.check_points()
    emulation.run_camb(loaded, check_points, jobs)
    checks = emulation.read_points(loaded, check_points)
    return errors(made, checks, read_release(release)).table()
