"""``cnnlens emulator``: commands that make emulators of CAMB and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import runs

app = typer.Typer(no_args_is_help=True, help="Make and check emulators of CAMB.")

EmulatorPlan = Annotated[Path, typer.Argument(help="What to emulate (YAML).")]


@app.command("make")
def emulator_make(
    plan: EmulatorPlan,
    out: Annotated[
        Path | None, typer.Option(help="File to write; in its products if absent.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="CAMB runs at a time.", min=1)] = 1,
) -> None:
    """Run CAMB at the points of a plan, resumable, and fit an emulator to them."""
    runs.need_pipeline()
    from ..pipeline import emulation
    from ..theory.emulator_files import write_emulator

    loaded = emulation.load_plan(plan)
    design = loaded.design()
    emulation.run_camb(loaded, design, jobs)
    learnt = design[: len(design) - loaded.checks]
    made = emulation.fit(loaded, emulation.read_points(loaded, learnt))
    path = out or loaded.products / f"emulator_{loaded.name}.npz"
    write_emulator(made.tables, made.record, path)
    typer.echo(path)


@app.command("check")
def emulator_check(
    plan: EmulatorPlan,
    emulator: Annotated[str, typer.Option(help="A shipped emulator, or the path of one.")] = "lcdm",
    release: Annotated[str, typer.Option(help="Release for Δχ².")] = "refined_fiducial",
    jobs: Annotated[int, typer.Option(help="CAMB runs at a time.", min=1)] = 1,
) -> None:
    """An emulator's errors at the plan's points that did not make it, against CAMB run there."""
    runs.need_pipeline()
    from ..likelihood.release import read_release
    from ..pipeline import emulation
    from ..theory.emulator_files import read_emulator

    loaded, made = emulation.load_plan(plan), read_emulator(emulator)
    if made.parameters != loaded.parameters or loaded.checks < 1:
        raise ConfigError(
            f"{plan}: has {loaded.checks} checks in {', '.join(loaded.parameters)}; emulator "
            f"'{emulator}' is one of {', '.join(made.parameters)}"
        )
    at = loaded.check_points()
    emulation.run_camb(loaded, at, jobs)
    checks = emulation.read_points(loaded, at)
    typer.echo(emulation.errors(made, checks, read_release(release)).table())
