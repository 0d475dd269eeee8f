"""``cnnlens release``: commands that make release files and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import ConfigError
from . import runs
from .arguments import Blind

if TYPE_CHECKING:
    from ..pipeline.run import Run

app = typer.Typer(no_args_is_help=True, help="Make and look at release files.")


@app.command(
    "make",
    epilog="Example: cnnlens release make --data mine/bandpowers.h5 --calibration refined_fiducial",
)
def release_make(
    config: Annotated[
        Path | None,
        typer.Argument(help="Pipeline configuration (YAML); none with --calibration."),
    ] = None,
    survey: Annotated[
        str | None, typer.Option(help="Which mock survey of the configuration.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead: bandpowers of your own maps (`reconstruct`); repeatable, for the "
            "patches of one survey."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="With --data, instead of CONFIG and its products: the release, or name of a "
            "shipped one, whose calibration to use."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write it.")] = None,
    blind: Blind = None,
) -> None:
    """Calibrate a survey's bandpowers, or those of your own maps, and write the release file."""
    if bool(data) == (survey is not None):
        raise ConfigError("give either --survey NAME or --data FILE")
    if (config is None) == (calibration is None) or (calibration is not None and not data):
        raise ConfigError("give either CONFIG, or --data FILE with --calibration RELEASE")
    runs.need_pipeline()
    from ..likelihood.release import read_release
    from ..maps.assembly import make_patch_release
    from ..pipeline import assemble

    run = None if config is None else runs.load(config)
    if data:
        path = out or data[0].with_name("release.json")
        key = runs.blinding_key(path, blind)
        release = make_patch_release(run or read_release(str(calibration)), data, path.stem)
    else:
        run, survey = cast("Run", run), str(survey)
        path = out or assemble.path(run, survey)
        key = runs.blinding_key(path, blind)
        release = assemble.make_release(run, survey)
    runs.write_made(release, path, key)


@app.command(
    "unblind", epilog="Example: cnnlens release unblind mine.json --key key.txt --out open.json"
)
def release_unblind(
    file: Annotated[Path, typer.Argument(help="A blinded release.")],
    key: Annotated[Path, typer.Option(help="The file of the key that blinded it.")],
    out: Annotated[Path, typer.Option(help="Where to write the open release.")],
) -> None:
    """Write the release as it is without its offset, and print what that was."""
    from ..likelihood.blinding import unblind
    from ..likelihood.encryption import read_key
    from ..likelihood.release import read_release, write_release

    opened, offset = unblind(read_release(file), read_key(key))
    write_release(opened, out)
    runs.warn(out, opened.warnings)
    typer.echo(out)
    typer.echo(f"the offset was {offset.omch2:+.5f} of omch2 and {offset.logA:+.4f} of logA")


@app.command("show", epilog="Example: cnnlens release show refined_fiducial --figure release.png")
def release_show(
    file: Annotated[
        str | None, typer.Argument(help="A release file, or the name of a shipped one.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw it instead: bandpowers, theory, noise, residuals.")
    ] = None,
    network: Annotated[
        list[Path] | None,
        typer.Option(help="Instead: check that this network made it; repeatable."),
    ] = None,
) -> None:
    """Print a release: what it is, its bandpowers with errors, where it came from.

    Without a file the command lists the shipped releases.
    """
    from ..likelihood.release import read_release, shipped_releases
    from ..likelihood.summary import release_table

    if file is None:
        if figure is not None or network:
            raise ConfigError("--figure and --network need the FILE of a release, or its name")
        typer.echo("\n".join(shipped_releases()))
        return
    release = read_release(file)
    if network:
        from ..pipeline.release_networks import check_network

        check_network(release, network)
        typer.echo(f"{file} was made with {', '.join(map(str, network))}")
    if figure is not None:
        from ..plots.drawing import save
        from ..plots.release_figure import release_figure

        typer.echo(save(release_figure(release), figure, bbox_inches=None))
    if not network and figure is None:
        typer.echo(release_table(release))


@app.command(
    "combine", epilog="Example: cnnlens release combine north.json south.json --out both.json"
)
def release_combine(
    files: Annotated[
        list[str], typer.Argument(help="Release files, or names of shipped ones.", metavar="FILES")
    ],
    out: Annotated[Path, typer.Option(help="Release file to write; its stem is its name.")],
) -> None:
    """Make one release of surveys that share a calibration and lie apart on the sky."""
    from ..likelihood.combined import combine
    from ..likelihood.release import read_release, write_release

    made = combine([read_release(file) for file in files], out.stem)
    write_release(made, out)
    runs.warn(out, made.warnings)
    typer.echo(out)


@app.command(
    "export",
    epilog="Example: cnnlens release export refined_fiducial --format cmblikes --out cmblikes",
)
def release_export(
    file: Annotated[str, typer.Argument(help="A release file, or the name of a shipped one.")],
    format: Annotated[str, typer.Option("--format", help="cmblikes, candl or sacc.")],
    out: Annotated[Path, typer.Option(help="New folder to write to.")],
    noise_debias: Annotated[
        str | None,
        typer.Option(help="data, the default where the release and the format hold it, or fixed."),
    ] = None,
) -> None:
    """Write a release for cobaya's CMBlikes, for candl, or as SACC."""
    from ..likelihood.export import export_release
    from ..likelihood.release import read_release

    typer.echo(export_release(read_release(file), format, out, noise_debias))
