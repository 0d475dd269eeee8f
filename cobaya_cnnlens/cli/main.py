"""``cnnlens``: one command per stage of the pipeline, and the tools around a release."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import CNNLensError
from . import calibrate, estimate, look, release, runs, simulate, survey, validate
from .arguments import FRONT

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(release.app, name="release", rich_help_panel=FRONT)
app.add_typer(survey.app, name="survey", rich_help_panel=FRONT)
for stage in (simulate, estimate, calibrate, validate, look):
    app.add_typer(stage.app)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"cobaya_cnnlens {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """CMB lensing with a neural network: from simulated skies to a Cobaya likelihood.

    OMP_NUM_THREADS says how many threads a command takes; all cores where it is not set.
    """


def run() -> None:
    """Entry point: errors a user can mend are one line, without a traceback."""
    # Commands write pictures and show none: where pyplot is used, it must look for no display.
    os.environ["MPLBACKEND"] = "Agg"
    # Before a result TensorFlow would write what it did not find on this machine.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for stream in (sys.stdout, sys.stderr):  # an encoding may lack κ, or the frames of the help
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in (*runs.PIPELINE_PACKAGES, "tensorflow", "jax"):
                raise
            raise runs.not_installed(package) from None
    except CNNLensError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {where}{error.strerror or error}", fg="red", err=True)
        raise SystemExit(1) from None
