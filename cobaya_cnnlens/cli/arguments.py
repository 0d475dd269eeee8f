"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FRONT = "What most users need"  # a title of the help

ConfigFile = Annotated[
    Path, typer.Argument(help="Pipeline configuration (YAML), or FILE#MEMBER of a study.")
]
SetName = Annotated[
    str, typer.Option("--set", help="train, validation, test, derivatives or survey-NAME.")
]
Indices = Annotated[
    list[int] | None, typer.Option("--index", help="Sky of the set; repeatable; all by default.")
]
Unit = Annotated[
    str | None, typer.Option(help="uK, mK or K: of Q and U where the file does not say.")
]
Networks = Annotated[
    list[Path] | None,
    typer.Option(
        "--network", help="The network that made the release, if it is no shipped one; repeatable."
    ),
]
Blind = Annotated[
    Path | None,
    typer.Option(
        metavar="KEY", help="Hide an offset in the bandpowers; a file that holds the key."
    ),
]
Estimators = Annotated[
    list[str] | None,
    typer.Option(
        "--release",
        "--config",
        help="A release that names its network (a file, or a shipped one), or a configuration.",
    ),
]
JobOption = Annotated[
    str | None,
    typer.Option(
        "--job",
        help="K/N: make only the share of job K of N jobs. Without it, make what is left and join.",
    ),
]
