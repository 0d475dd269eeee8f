"""Commands that print numbers: noise, recovered cosmology, coverage, null tests."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from . import runs
from .arguments import FRONT, ConfigFile, Indices, SetName

if TYPE_CHECKING:
    from ..pipeline.run import Run
    from ..validate.verification import Verification

app = typer.Typer()
command = partial(app.command, rich_help_panel="Validate")


class Table(str, Enum):
    """Tables that `evaluate` prints of what stages made."""

    noise = "noise"
    recovery = "recovery"
    forecast = "forecast"
    points = "points"
    foregrounds = "foregrounds"


@command(epilog="Example: cnnlens evaluate my.yaml --table forecast")
def evaluate(
    configs: Annotated[list[Path], typer.Argument(help="Pipeline configurations or studies.")],
    table: Annotated[
        Table,
        typer.Option(
            help="Reconstruction noise; recovered omch2 and the null hypothesis; Fisher forecast "
            "of omch2; shifts of omch2 at other cosmologies, or by foregrounds."
        ),
    ] = Table.noise,
    merge: Annotated[
        int, typer.Option(min=1, help="Neighbouring bins of the noise to take together.")
    ] = 1,
) -> None:
    """Print a table of what stages made: by default the noise beside the analytic curves.

    Several configurations, or the members of a study, stand side by side.
    """
    members = [run for config in configs for run in runs.load_study(config)]
    if table is not Table.noise and merge != 1:
        raise ConfigError(f"--merge is of --table noise, not of {table.value}")
    typer.echo("\n".join(_tables(members, table, merge)))


def _tables(members: list[Run], table: Table, merge: int) -> list[str]:
    """One table of several runs, or one for each, as text."""
    from ..validate import forecast, foregrounds, noise

    if table is Table.forecast:
        return [forecast.forecast(*members).table()]
    if table is Table.noise:
        if len(members) > 1:
            return [noise.compare(members, merge).table()]
        return [noise.noise_table(run, merge).table() for run in members]
    if table is Table.points:
        return [text for run in members for text in _points_tables(run)]
    if table is Table.recovery:
        return [_recovery_table(run) for run in members]
    return [foregrounds.foregrounds_table(run).table() for run in members]


def _recovery_table(run: Run) -> str:
    """Maximum-likelihood omch2 of the surveys' patches, and the test of the null hypothesis."""
    from ..pipeline.assemble import make_releases
    from ..validate.omch2 import recovery

    return recovery(run, make_releases(run, dict.fromkeys(run.config.surveys, 0)), 1).table()


def _points_tables(run: Run) -> list[str]:
    """Shifts of omch2 at the cosmologies that test the model, a table for each group."""
    from ..validate import points

    if not (groups := run.config.points.at):
        raise ConfigError(f"{run.config.name}: key 'points.at' lists no cosmologies; add some")
    return [points.points_table(run, group).table() for group in groups]


@command(epilog="Example: cnnlens n0 --estimator eb-iterative --noise 1")
def n0(
    estimator: Annotated[str, typer.Option(help="eb, ee, mv (both) or eb-iterative.")] = "eb",
    noise: Annotated[float, typer.Option(help="White noise of Q and of U, µK-arcmin.")] = 1.0,
    beam: Annotated[float, typer.Option(help="FWHM of the beam, arcmin.")] = 1.0,
    lmin: Annotated[int, typer.Option(help="Lowest multipole of E and B.")] = 72,
    lmax: Annotated[int, typer.Option(help="Highest multipole of E and B.")] = 4600,
    multipole: Annotated[
        list[int] | None, typer.Option(help="L to print; repeatable; 20 of them by default.")
    ] = None,
) -> None:
    """Analytic reconstruction noise N0 of κ at the fiducial cosmology, beside C_L of κ."""
    from ..reconstruct.n0 import Filter
    from ..simulate.instrument import Instrument
    from ..validate.analytic import analytic_noise

    table = analytic_noise(estimator, Instrument(noise, beam), Filter(lmin, lmax), multipole)
    typer.echo(table.table())


@command(epilog="Example: cnnlens points my.yaml --fit")
def points(
    config: ConfigFile,
    fit: Annotated[
        bool, typer.Option(help="Instead: those to which the debias from the data is fitted.")
    ] = False,
) -> None:
    """Make test skies again at other cosmologies; print how far off omch2 is there, in sigmas."""
    run = runs.load(config)
    from ..pipeline import cosmologies

    chosen = cosmologies.fitted(run) if fit else cosmologies.checked(run)
    if not chosen:
        key = "points.fit" if fit else "points.at"
        raise ConfigError(f"{config}: key '{key}' names no cosmologies; add some")
    runs.ready(run)
    files = cosmologies.Points(run, runs.threads()).measure(chosen)
    typer.echo(files[0].parent if fit else "\n".join(_points_tables(run)))


@command(epilog="Example: cnnlens coverage my.yaml --release refined_fiducial")
def coverage(
    config: ConfigFile,
    index: Indices = None,
    table_only: Annotated[
        bool, typer.Option(help="Print the table of the skies that exist.")
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
) -> None:
    """Simulate skies of a prior (omch2, logA), and print how often posteriors hold the truth."""
    run, *others = map(runs.load, (config, *(more or ())))
    from ..likelihood.release import Group, read_release
    from ..pipeline.assemble import make_release
    from ..validate import coverage

    if not table_only:
        runs.ready(run)
        coverage.measure(run, index, runs.threads())
    if index is None:
        tested = read_release(release) if release else make_release(run, run.config.first_survey)
        skies = coverage.read(run, *others)
        tables = coverage.coverage_tables(run, tested, skies, primary=primary)
        typer.echo("\n\n".join(table.table() for table in tables))
        if tested.has(Group.DEBIAS):
            typer.echo("\n" + coverage.coverage_scatter(run, tested, skies).table())


@command(epilog="Example: cnnlens nulltest my.yaml --null unlensed")
def nulltest(
    config: ConfigFile,
    index: Annotated[
        list[int] | None,
        typer.Option("--index", help="Sky of the test and training sets; repeatable."),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(
            help="training, unlensed, swapped, noise, b_only, parity or curl; repeatable; all by "
            "default."
        ),
    ] = None,
) -> None:
    """Null tests: reconstruct maps that hold no lensing, and print what is left."""
    run = runs.load(config)
    from ..validate import null_tests, nulls

    names = nulls.check_names(run, null)
    runs.ready(run)
    nulls.measure(run, names, index, runs.threads())
    if index is None:
        typer.echo(null_tests.nulls_table(run, names, index).table())


@command(epilog="Example: cnnlens foregrounds my.yaml --index 0")
def foregrounds(
    config: ConfigFile,
    index: Indices = None,
) -> None:
    """Add sources, dust and synchrotron to test skies; print how far off omch2 is, in sigmas."""
    run = runs.load(config)
    from ..validate import foregrounds

    foregrounds.foregrounds_of(run)
    runs.ready(run)
    for i in range(run.config.foregrounds.skies) if index is None else index:
        foregrounds.measure(run, i)
    typer.echo(foregrounds.foregrounds_table(run, index).table())


@command(epilog="Example: cnnlens primary my.yaml --out joint.npz")
def primary(
    config: ConfigFile,
    set_name: SetName = "test",
    index: Indices = None,
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
    typer.echo(joint.table(true))
    if out is not None:
        provenance = {
            "configuration": run.config.name,
            "set": set_name,
            "network_sha256": run.estimator_id,
        }
        typer.echo(joint.write(out, provenance))


@command(rich_help_panel=FRONT, epilog="Example: cnnlens check chains/omegac")
def check(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A Cobaya input (YAML), or a chain, e.g. chains/omegac; the installation if "
            "absent."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write, of a chain.")] = None,
) -> None:
    """Check the installation, a Cobaya input, or a chain against expected numbers.

    Installation and input: shipped files, and chi2 of a mock without noise. Chain: means and
    widths, if a shipped input made it; and whether the data are likely under its posterior, with
    a picture of the predicted bandpowers. The exit status is 1 if a check fails.
    """
    from ..validate.verification import check_input, check_installation

    if what is None or is_input(what):
        if out is not None:
            raise ConfigError("--out is for the picture of a chain; name the chain, or omit --out")
        _print(check_installation() if what is None else check_input(what))
    else:
        _check_chain(what, out)


def is_input(given: str) -> bool:
    """Whether a name is that of a Cobaya input, not of a chain or of a file beside one.

    Parameters
    ----------
    given : path

    Returns
    -------
    True for an input

    Examples
    --------
    >>> is_input("yaml/omegac.yaml"), is_input("chains/omegac.updated.yaml"), is_input("chains/my")
    (True, False, False)
    """
    beside_a_chain = (".updated.yaml", ".input.yaml")
    return given.endswith((".yaml", ".yml")) and not given.endswith(beside_a_chain)


def _check_chain(root: str, out: Path | None) -> None:
    """Compare a chain with its reference, and draw what its posterior predicts."""
    from ..plots.drawing import save
    from ..plots.posteriors import predictive_figure
    from ..validate.chain_comparison import compare_chain
    from ..validate.chains import load_chain
    from ..validate.predictive import predictive

    chain = load_chain(root)
    _print(compare_chain(chain))
    result = predictive(chain.root)
    typer.echo(f"\n{result.table()}")
    typer.echo(save(predictive_figure(result), out or Path(f"{chain.root}_predictive.png")))


def _print(verification: Verification) -> None:
    """Print a table of checks; stop with status 1 if one fails."""
    typer.echo(verification.table())
    if not verification.passed:
        raise typer.Exit(1)
