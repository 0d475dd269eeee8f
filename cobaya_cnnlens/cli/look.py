"""Commands that draw."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import runs
from .arguments import ConfigFile

app = typer.Typer()
command = partial(app.command, rich_help_panel="Look")


@command()
def figure(
    config: ConfigFile,
    stage: Annotated[
        str,
        typer.Argument(
            help="spectra, sky, training, reconstruction, noise, bandpowers, derivatives, "
            "nuisances, coverage, primary, nulls or foregrounds."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw what a stage made."""
    run = runs.load(config)
    from ..report.drawing import save
    from ..report.figures import draw

    path = out or run.config.products / "figures" / f"{stage}.png"
    typer.echo(save(draw(run, stage), path))


@command()
def exhibit(config: ConfigFile) -> None:
    """Keep maps of one test patch and the power of E on its sky, for the report."""
    run = runs.load(config)
    from ..validate import exhibits

    exhibits.measure(runs.ready(run))
    typer.echo(exhibits.path(run))


@command()
def report(
    plan: Annotated[Path, typer.Argument(help="What to put side by side (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Folder; the plan's if absent.")] = None,
) -> None:
    """Put the paper's figures and numbers beside ours, from products: an HTML page and tables."""
    runs.need_pipeline()
    from dataclasses import replace

    from ..report.material import load_plan
    from ..report.report import make_report

    loaded = load_plan(plan)
    page, gaps = make_report(replace(loaded, out=out) if out else loaded)
    for gap in gaps:
        typer.secho(f"missing: {gap.what}: {gap.why}\n    {gap.command}", fg="yellow", err=True)
    typer.echo(page)
    if gaps:
        raise SystemExit(1)


@command()
def plot(
    chains: Annotated[list[str], typer.Argument(help="Chain roots, e.g. chains/omegac.")],
    params: Annotated[
        list[str] | None, typer.Option("--param", help="Parameter; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw posteriors with getdist, several chains overlaid, the truth of a mock marked; print
    means, errors, effective samples and pulls from the truth."""
    from ..report.drawing import save
    from ..report.posteriors import posteriors_figure
    from ..validate.chains import format_marginals, load_chain, marginals

    samples = {root: load_chain(root) for root in chains}
    figure = posteriors_figure(samples, params)
    typer.echo(save(figure, out or Path(f"{chains[0]}.png"), dpi="figure"))
    typer.echo(format_marginals(marginals(samples, params)))
