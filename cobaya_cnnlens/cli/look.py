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
    chains: Annotated[
        list[str], typer.Argument(help="Roots of chains, e.g. chains/omegac, or their files.")
    ],
    params: Annotated[
        list[str] | None, typer.Option("--param", help="Parameter; repeatable.")
    ] = None,
    burn_in: Annotated[
        float,
        typer.Option(min=0.0, max=0.99, help="Part of each file to leave out from its start."),
    ] = 0.2,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw posteriors with getdist, several chains overlaid, the truth of a mock marked; print the
    best fit's chi2 and PTE, R-1, means, errors, effective samples and pulls from the truth."""
    from ..report.drawing import save
    from ..report.posteriors import posteriors_figure
    from ..validate.chains import chain_root, describe_chains, load_chain

    roots = dict.fromkeys(map(chain_root, chains))  # a shell may give every file of a chain
    loaded = [load_chain(root, burn_in) for root in roots]
    figure = posteriors_figure(loaded, params)
    typer.echo(save(figure, out or Path(f"{loaded[0].root}.png"), dpi="figure"))
    typer.echo(describe_chains(loaded, params))


@command()
def cost(
    config: ConfigFile,
    cores: Annotated[int, typer.Option(min=1, help="Cores that share the work.")] = 2,
    everything: Annotated[
        bool, typer.Option("--everything", help="As if no product were there yet.")
    ] = False,
    releases: Annotated[
        bool, typer.Option("--releases", help="Of a study: to the releases of its members.")
    ] = False,
    area: Annotated[
        float | None,
        typer.Option(
            help="Square degrees of a survey: its tiles, and the test skies they ask for."
        ),
    ] = None,
) -> None:
    """Print the jobs that the workflow has left, and their hours by measured unit costs."""
    runs.need_pipeline()
    from ..pipeline.loading import load_study
    from ..report.text import format_costs
    from ..validate import costs

    members = load_study(config)
    survey = None
    if area is not None:
        members, survey = costs.of_survey(members, str(config), area)
    left = costs.stages_of(members, str(config), everything, releases)
    typer.echo(format_costs(left, cores, survey))
