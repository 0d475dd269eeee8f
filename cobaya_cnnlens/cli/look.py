"""Commands that draw."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import runs
from .arguments import FRONT, ConfigFile

app = typer.Typer()
command = partial(app.command, rich_help_panel="Look")


@command(epilog="Example: cnnlens figure my.yaml spectra")
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
    """Draw what a stage of the pipeline made."""
    run = runs.load(config)
    from ..plots.drawing import save
    from ..plots.figures import draw

    path = out or run.config.products / "figures" / f"{stage}.png"
    typer.echo(save(draw(run, stage), path))


@command(rich_help_panel=FRONT, epilog="Example: cnnlens plot chains/omegac --param omch2")
def plot(
    chains: Annotated[
        list[str], typer.Argument(help="Roots of chains, e.g. chains/omegac, or their files.")
    ],
    params: Annotated[
        list[str] | None, typer.Option("--param", help="Parameter; repeatable.")
    ] = None,
    burn_in: Annotated[
        float,
        typer.Option(min=0.0, max=0.99, help="Fraction of each file to leave out from its start."),
    ] = 0.2,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw the posteriors of chains, and print what they say of the parameters.

    The figure marks the truth of a mock. The table holds the best fit's chi2 and PTE, R-1, means,
    errors, effective samples and pulls from the truth.
    """
    from ..plots.drawing import save
    from ..plots.posteriors import posteriors_figure
    from ..validate.chains import chain_root, load_chain, summarise

    roots = dict.fromkeys(map(chain_root, chains))  # a shell may give every file of a chain
    loaded = [load_chain(root, burn_in) for root in roots]
    figure = posteriors_figure(loaded, params)
    typer.echo(save(figure, out or Path(f"{loaded[0].root}.png"), dpi="figure"))
    typer.echo("\n\n".join(summarise(chain, params).table() for chain in loaded))
