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
    from ..plots.drawing import save
    from ..plots.figures import draw

    path = out or run.config.products / "figures" / f"{stage}.png"
    typer.echo(save(draw(run, stage), path))


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
    from ..plots.drawing import save
    from ..plots.posteriors import posteriors_figure
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
    from ..table import text_table
    from ..validate import costs

    members = load_study(config)
    survey = None
    if area is not None:
        members, survey = costs.of_survey(members, str(config), area)
    left = costs.stages_of(members, str(config), everything, releases)
    rows = [(s.rule, s.jobs, s.left, s.cpu_s / 3600) for s in left]
    if survey is not None:
        rows.append((f"{survey.tiles} tiles", 1, 1, survey.cpu_s / 3600))
    rules, jobs, remaining, hours = zip(*rows, strict=True)
    columns = {
        "job": ("", [*rules, "together"]),
        "all": ("d", [*jobs, sum(jobs)]),
        "left": ("d", [*remaining, sum(remaining)]),
        "CPU-hours": (".2f", [*hours, sum(hours)]),
    }
    typer.echo(text_table(columns))
    typer.echo(f"{sum(hours) / cores:.1f} hours on {cores} cores that are never idle")
    if survey is not None:
        side = f"{survey.area_deg2:g} deg2 in {survey.tiles} tiles"
        typer.echo(f"{side}; of the test skies as many as their noise debias needs")
