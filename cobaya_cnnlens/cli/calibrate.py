"""Commands that measure how bandpowers of κ̂ answer to the sky and to the instrument."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..errors import ConfigError
from . import runs
from .arguments import ConfigFile, Indices

app = typer.Typer()
command = partial(app.command, rich_help_panel="Calibrate")


@command(epilog="Example: cnnlens derivatives my.yaml --index 0")
def derivatives(
    config: ConfigFile,
    index: Indices = None,
    shifted_only: Annotated[
        bool, typer.Option(help="Only the skies at shifted omch2, which a forecast needs.")
    ] = False,
) -> None:
    """Measure how the debiased bandpowers change with cosmology, to second order in omch2."""
    run = runs.load(config)
    from ..calibrate import curvature, derivatives

    runs.ready(run)
    for i in range(run.config.skies.derivatives) if index is None else index:
        if not shifted_only:
            derivatives.measure(run, i, runs.threads())
        curvature.measure(run, i, runs.threads())


@command(epilog="Example: cnnlens nuisances my.yaml --index 0")
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
    """Measure how systematics of the instrument change the bandpowers, on test skies."""
    run = runs.load(config)
    from ..calibrate import nuisances
    from ..calibrate.assemble import calibration_of
    from ..likelihood.fields import NUISANCES

    runs.ready(run)
    if check is not None:
        calibration, _ = calibration_of(run)
        steps = run.config.nuisances
        changes = {name: 2.0 * getattr(steps, name) for name in NUISANCES}
        checks = nuisances.check_nuisances(run, calibration.response, check, changes)
        L = run.bandpowers.bins.centres
        typer.echo("\n".join(result.table(L) for result in checks))
        return
    for i in range(run.config.nuisances.skies) if index is None else index:
        nuisances.measure(run, i)


@command(epilog="Example: cnnlens power my.yaml --what test")
def power(
    config: ConfigFile,
    what: Annotated[
        str | None,
        typer.Option(help="test, survey-NAME, derivatives or nuisances; all by default."),
    ] = None,
    index: Indices = None,
) -> None:
    """Measure the E and B power of the patches, for `data_debias: true`; no network is run."""
    run = runs.load(config)
    from ..calibrate import power

    entries = power.entries(run)
    if what is not None and what not in dict(entries):
        raise ConfigError(f"--what is {what!r:.60}; choose one of {', '.join(dict(entries))}")
    chosen = [(kind, i) for kind, i in entries if what in (None, kind)]
    indices = {i for _, i in chosen}
    if unknown := set(index or ()) - indices:
        raise ConfigError(
            f"{config}: power of {what or 'all sets'} is of skies 0 to {max(indices)}, not "
            f"{min(unknown)}; correct --index"
        )
    chosen = [(kind, i) for kind, i in chosen if index is None or i in index]
    power.measure(run, chosen, runs.threads())


@command(epilog="Example: cnnlens ship my.yaml")
def ship(config: ConfigFile) -> None:
    """Collect bandpowers, derivatives and nuisances in one small file (key `shipped`)."""
    run = runs.load(config)
    from ..validate import shipping

    counts = shipping.ship(run)
    for name, number in counts.items():
        typer.echo(f"{number:4d} skies of {name}")
    if path := run.config.shipped:
        typer.echo(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
