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
    from ..pipeline.perturbations import Derivatives, ShiftedSkies

    runs.ready(run)
    if not shifted_only:
        Derivatives(run, runs.threads()).measure(index)
    ShiftedSkies(run, runs.threads()).measure(index)


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
    from ..pipeline.nuisances import Nuisances

    runs.ready(run)
    if check is not None:
        from ..likelihood.fields import SIMULATED
        from ..pipeline.assemble import calibration_of
        from ..validate.nuisance_checks import check_nuisances

        calibration, _ = calibration_of(run)
        steps = run.config.nuisances
        changes = {name: 2.0 * getattr(steps, name) for name in SIMULATED}
        checks = check_nuisances(run, calibration.response, check, changes)
        L = run.bandpowers.bins.centres
        typer.echo("\n".join(result.table(L) for result in checks))
        return
    Nuisances(run).measure(index)


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
    from ..pipeline.power import Power

    power = Power(run, runs.threads())
    counts = power.counts()
    if what is not None and what not in counts:
        raise ConfigError(f"--what is {what!r:.60}; choose one of {', '.join(counts)}")
    size = max(counts.values()) if what is None else counts[what]
    if unknown := set(index or ()) - set(range(size)):
        raise ConfigError(
            f"{config}: power of {what or 'all sets'} is of skies 0 to {size - 1}, not "
            f"{min(unknown)}; correct --index"
        )
    power.measure(what, index)


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
