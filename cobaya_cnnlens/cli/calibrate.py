"""Commands that measure how bandpowers of κ̂ answer to the sky and to the instrument."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..errors import ConfigError
from . import runs
from .arguments import ConfigFile, Indices, Threads

app = typer.Typer()
command = partial(app.command, rich_help_panel="Calibrate")


@command()
def derivatives(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    shifted_only: Annotated[
        bool, typer.Option(help="Only the skies at shifted omch2, which `forecast` needs.")
    ] = False,
) -> None:
    """Measure the banded derivatives of the debiased bandpowers, and their second order in ω_c."""
    run = runs.load(config)
    from ..calibrate import curvature, derivatives

    runs.ready(run)
    for i in range(run.config.skies.derivatives) if index is None else index:
        if not shifted_only:
            derivatives.measure(run, i, threads)
        curvature.measure(run, i, threads)


@command()
def nuisances(
    config: ConfigFile,
    index: Indices = None,
    check: Annotated[
        int | None,
        typer.Option(
            help="Instead: compare their prediction at twice the steps with this test sky."
        ),
    ] = None,
) -> None:
    """Measure what systematics of the instrument do to the bandpowers, on test skies."""
    run = runs.load(config)
    from ..calibrate import nuisances
    from ..calibrate.assemble import calibration_of

    runs.ready(run)
    if check is not None:
        calibration, _ = calibration_of(run)
        steps = run.config.nuisances
        changes = {name: 2.0 * getattr(steps, name) for name in nuisances.NUISANCES}
        found = nuisances.check_nuisances(run, calibration.response, check, changes)
        L = run.bandpowers.bins.centres
        typer.echo("\n".join(check.table(L) for check in found))
        return
    for i in range(run.config.nuisances.skies) if index is None else index:
        nuisances.measure(run, i)


@command()
def power(
    config: ConfigFile,
    what: Annotated[
        str | None,
        typer.Option(help="test, survey-NAME, derivatives or nuisances; all by default."),
    ] = None,
    index: Indices = None,
    threads: Threads = 0,
) -> None:
    """Measure E and B power of the patches themselves, for the noise debias from the data
    (`data_debias: true`); no network is run."""
    run = runs.load(config)
    from ..calibrate import power

    entries = power.entries(run)
    if what is not None and what not in dict(entries):
        raise ConfigError(f"--what is {what!r:.60}; choose one of {', '.join(dict(entries))}")
    wanted = [(kind, i) for kind, i in entries if what in (None, kind)]
    there = {i for _, i in wanted}
    if unknown := set(index or ()) - there:
        raise ConfigError(
            f"{config}: power of {what or 'all sets'} is of skies 0 to {max(there)}, not "
            f"{min(unknown)}; correct --index"
        )
    wanted = [(kind, i) for kind, i in wanted if index is None or i in index]
    power.measure(run, wanted, threads)


@command()
def ship(config: ConfigFile) -> None:
    """Collect bandpowers, derivatives and nuisances in one small file to commit (key `shipped`)."""
    run = runs.load(config)
    from ..validate import shipping

    counts = shipping.ship(run)
    for what, number in counts.items():
        typer.echo(f"{number:4d} skies of {what}")
    typer.echo(f"{run.config.shipped} ({run.config.shipped.stat().st_size / 1e6:.2f} MB)")
