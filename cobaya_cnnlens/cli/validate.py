"""Commands that print numbers: noise, recovered cosmology, coverage, null tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import runs
from .arguments import ConfigFile, Indices, SetName, Threads

app = typer.Typer()
command = partial(app.command, rich_help_panel="Validate")


@command()
def evaluate(
    configs: Annotated[list[Path], typer.Argument(help="Pipeline configurations or studies.")],
    merge: Annotated[int, typer.Option(min=1, help="Neighbouring bins to take together.")] = 1,
    on: Annotated[
        str | None, typer.Option(help="Instead: debiased minus true bandpowers on another set.")
    ] = None,
) -> None:
    """Print the reconstruction noise beside the analytic curves.

    Several configurations, or the members of a study, stand side by side.
    """
    members = [run for config in configs for run in runs.load_study(config)]
    from ..validate import noise

    if on:
        for run in members:
            typer.echo(noise.residual_table(run, on, merge).table())
    elif len(members) == 1:
        typer.echo(noise.noise_table(members[0], merge).table())
    else:
        typer.echo(noise.compare(members, merge).table())


@command()
def n0(
    estimator: Annotated[str, typer.Option(help="eb, ee, mv (both) or eb-iterative.")] = "eb",
    noise: Annotated[float, typer.Option(help="White noise of Q and of U, µK-arcmin.")] = 1.0,
    beam: Annotated[float, typer.Option(help="FWHM of the beam, arcmin.")] = 1.0,
    lmin: Annotated[int, typer.Option(help="Lowest multipole of E and B.")] = 72,
    lmax: Annotated[int, typer.Option(help="Highest multipole of E and B.")] = 4600,
    multipole: Annotated[
        list[int] | None, typer.Option(help="L to print; repeatable; 20 of them by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write too.")] = None,
) -> None:
    """Analytic reconstruction noise N0 of κ at the fiducial cosmology, beside C_L of κ."""
    from ..reconstruct.n0 import Filter
    from ..simulate.instrument import Instrument
    from ..validate.analytic import analytic_noise

    table = analytic_noise(estimator, Instrument(noise, beam), Filter(lmin, lmax), multipole)
    typer.echo(table.table())
    if out:
        table.write(out)


@command()
def recover(
    config: ConfigFile,
    patches_each: Annotated[int, typer.Option(min=1, help="Patches per survey.")] = 1,
) -> None:
    """Maximum-likelihood ω_c of the surveys' patches, and the null-hypothesis test."""
    run = runs.load(config)
    from ..calibrate.assemble import make_releases
    from ..validate.omch2 import recovery

    releases = make_releases(run, dict.fromkeys(run.config.surveys, 0))
    typer.echo(recovery(run, releases, patches_each).table())


@command()
def forecast(
    configs: Annotated[list[Path], typer.Argument(help="Pipeline configurations or studies.")],
) -> None:
    """Print what one patch tells about omch2 (Fisher), with and without a debias that follows."""
    members = [run for config in configs for run in runs.load_study(config)]
    from ..validate import forecast

    found = {run.config.name: forecast.forecast(run) for run in members}
    typer.echo(forecast.forecasts_table(found))


@command()
def points(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    fit: Annotated[
        bool, typer.Option(help="Instead: those to which the debias from the data is fitted.")
    ] = False,
    table_only: Annotated[bool, typer.Option(help="Print the table of what there is.")] = False,
) -> None:
    """Make test skies again at other cosmologies; print how far off omch2 is there, in sigmas."""
    run = runs.load(config)
    from ..calibrate import cosmologies
    from ..validate import points

    key = "points.fit" if fit else "points.at"
    wanted = cosmologies.fitted(run) if fit else cosmologies.checked(run)
    if not wanted:
        raise ConfigError(f"{config}: key '{key}' lists no cosmologies; add some")
    for i in index or ():
        run.config.check_index(cosmologies.SET, i)
    if not table_only:
        runs.ready(run)
        some = [p for p in wanted if index is None or p.index in index]
        cosmologies.measure(run, some, threads)
    if fit:
        typer.echo(cosmologies.path(run, wanted[0]).parent)
        return
    for group in run.config.points.at:
        typer.echo(points.points_table(run, group).table(group))


@command()
def coverage(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    patches_each: Annotated[
        int | None, typer.Option(min=1, help="Patches per survey; the configuration's by default.")
    ] = None,
    table_only: Annotated[
        bool, typer.Option(help="Print the table of the skies that there are.")
    ] = False,
    release: Annotated[
        str | None,
        typer.Option(help="Release file or shipped release to test; made from products if absent."),
    ] = None,
    primary: Annotated[
        bool, typer.Option(help="Of the likelihood with `primary: true`: the patches' E as well.")
    ] = False,
    more: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="FILE#MEMBER whose skies, of the same prior, are counted as well; repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Simulate skies of a prior (omch2, logA), and print how often posteriors hold the truth."""
    run, *others = map(runs.load, (config, *(more or ())))
    from ..calibrate.assemble import make_release
    from ..likelihood.release import read_release
    from ..validate import coverage

    if not table_only:
        runs.ready(run)
        coverage.measure(run, index, threads)
    if index is None:
        tested = read_release(release) if release else make_release(run, run.config.first_survey)
        tables = coverage.coverage_tables(run, tested, patches_each, primary=primary, others=others)
        typer.echo("\n\n".join(table.table() for table in tables))
        if out:
            from ..plots.drawing import save
            from ..plots.figures import draw_coverage

            typer.echo(save(draw_coverage(tables), out))


@command()
def nulltest(
    config: ConfigFile,
    index: Annotated[
        list[int] | None,
        typer.Option("--index", help="Sky of the test and training sets; repeatable."),
    ] = None,
    threads: Threads = 0,
    null: Annotated[
        list[str] | None,
        typer.Option(
            help="training, unlensed, swapped, noise, b_only, parity or curl; repeatable; all by "
            "default."
        ),
    ] = None,
    table_only: Annotated[bool, typer.Option(help="Print the table of what there is.")] = False,
) -> None:
    """Null tests: maps in which there is nothing to be found, and what the estimator finds."""
    run = runs.load(config)
    from ..validate import null_tests, nulls

    names = nulls.check_names(run, null)
    if not table_only:
        runs.ready(run)
        nulls.measure(run, names, index, threads)
    if table_only or index is None:
        typer.echo(null_tests.nulls_table(run, names, index).table())


@command()
def foregrounds(
    config: ConfigFile,
    index: Indices = None,
    table_only: Annotated[bool, typer.Option(help="Print the table of what there is.")] = False,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Add sources, dust and synchrotron to test skies; print how far off omch2 is, in sigmas."""
    run = runs.load(config)
    from ..validate import foregrounds

    foregrounds.foregrounds_of(run)
    if not table_only:
        runs.ready(run)
        for i in range(run.config.foregrounds.skies) if index is None else index:
            foregrounds.measure(run, i)
    table = foregrounds.foregrounds_table(run, index)
    typer.echo(table.table())
    if out:
        from ..plots.drawing import save
        from ..plots.figures import draw_foregrounds

        typer.echo(save(draw_foregrounds(table), out))


@command()
def primary(
    config: ConfigFile,
    set_name: SetName = "test",
    index: Indices = None,
    largest: Annotated[int, typer.Option(min=1, help="Coefficients to print.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Write the joint covariance: .npz or .json.")
    ] = None,
) -> None:
    """Joint covariance of the lensing bandpowers with E and B power of the same patches."""
    run = runs.load(config)
    from ..validate import primary

    primary.measure(run, set_name, index)
    joint = primary.read_joint(run, set_name, index)
    true = primary.read_joint(run, set_name, index, true_kappa=True)
    typer.echo(primary.joint_table(joint, true, largest))
    if out is not None:
        provenance = {
            "configuration": run.config.name,
            "set": set_name,
            "network_sha256": run.estimator_id,
        }
        typer.echo(primary.write_joint(joint, out, provenance))


@command()
def predictive(
    chain: Annotated[str, typer.Argument(help="Chain root, e.g. chains/omegac.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples of the posterior.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Posterior-predictive chi2 and PTE of a chain: would data drawn from it look like these?"""
    from ..plots.drawing import save
    from ..plots.posteriors import predictive_figure
    from ..validate.predictive import predictive as check_chain

    check = check_chain(chain, samples)
    typer.echo(check.table())
    typer.echo(save(predictive_figure(check), out or Path(f"{chain}_predictive.png")))
