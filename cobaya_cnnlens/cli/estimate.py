"""Commands that make κ̂: train a network, reconstruct with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from . import runs
from .arguments import FRONT, ConfigFile, Indices, Networks, Unit

if TYPE_CHECKING:
    from ..maps.map_setup import MapSetup
    from ..pipeline.run import Run

NOISY = "tiles with depths and holes of their own need a refining network, as refined_fiducial has"

app = typer.Typer()
command = partial(app.command, rich_help_panel="Estimate")


@command(epilog="Example: cnnlens features my.yaml --set train --index 0")
def features(
    config: ConfigFile,
    set_name: Annotated[
        str, typer.Option("--set", help="train, validation, test, derivatives or survey-NAME.")
    ],
    index: Indices = None,
    part: Annotated[
        list[int] | None, typer.Option(help="File of the sky; repeatable; all by default.")
    ] = None,
) -> None:
    """Compute the feature maps that a refining network learns from."""
    run = runs.load(config)
    from ..pipeline.features import Features

    files = Features(run, runs.threads()).measure(set_name, index, part)
    typer.echo(files[0].parent)


@command(rich_help_panel=FRONT, epilog="Example: cnnlens train my.yaml")
def train(config: ConfigFile) -> None:
    """Train the network, or measure the mean field of an estimator without one (`baseline`).

    A training that was stopped goes on from its last epoch.
    """
    run = runs.load(config)
    if run.config.baseline is not None:
        from ..pipeline.mean_field import MeanField

        _ = runs.ready(run).estimator
        typer.echo(f"mean field in {MeanField(run).path()}")
        return
    if run.config.network.pretrained is not None:
        raise ConfigError(
            f"{config}: key 'network.pretrained' names {run.config.network.pretrained}, so there "
            "is nothing to train; remove the key to train a network"
        )
    from tqdm import tqdm

    from ..pipeline import networks, refining, training, training_state

    train_network = refining.train if run.config.network.kind == "refined" else training.train
    directory, trained = networks.training_directory(run), False
    for record in train_network(run, directory):
        trained = True
        values = (f"{k} {v:.5g}" for k, v in record.items())
        tqdm.write("  ".join(values))
    # A Keras file holds its date: writing the same weights again would change the network's hash.
    if trained or not networks.path(run).exists():
        state = training_state.TrainingRun(directory, networks.recipe(run))
        training_state.save_atomically(state.best(), networks.path(run))
    typer.echo(f"network in {networks.path(run)}")


@command(
    rich_help_panel=FRONT,
    epilog="Example: cnnlens reconstruct refined_fiducial --maps patch.fits --out mine",
)
def reconstruct(
    config: Annotated[
        Path,
        typer.Argument(
            help="Pipeline configuration (YAML), or FILE#MEMBER of a study; with --maps also a "
            "release file or the name of a shipped one, which knows its network and instrument."
        ),
    ],
    set_name: Annotated[
        str | None,
        typer.Option("--set", help="train, validation, test, derivatives or survey-NAME."),
    ] = None,
    index: Indices = None,
    maps: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of a set: your own Q, U (FITS, HEALPix or .npz); repeatable, for the "
            "patches of one survey."
        ),
    ] = None,
    centre: Annotated[
        list[str] | None,
        typer.Option(help="LON,LAT in degrees of a patch of a HEALPix map; repeatable."),
    ] = None,
    pixel_window: Annotated[
        bool, typer.Option(help="Divide the HEALPix map's pixel window out.")
    ] = False,
    unit: Unit = None,
    network: Networks = None,
    out: Annotated[Path | None, typer.Option(help="Folder for κ̂ of your own maps.")] = None,
) -> None:
    """Reconstruct κ̂ on the skies of a set, or on your own maps, and measure its bandpowers."""
    if bool(maps) == (set_name is not None):
        raise ConfigError("give either --set NAME or --maps FILE")
    runs.need_pipeline()
    from ..pipeline.release_networks import is_release

    if set_name is not None or not maps:
        if is_release(config):
            raise ConfigError(f"{config} is a release: --set needs the configuration that made it")
        run = runs.load(config)
        from ..pipeline.reconstructions import Bandpowers

        Bandpowers(runs.ready(run)).measure(str(set_name), index)
        return
    from ..maps.bandpower_file import check_folder
    from ..maps.map_checks import check_maps
    from ..maps.patch_files import parse_centres, read_maps
    from ..maps.patch_maps import PatchMaps
    from ..maps.reconstruction import reconstruct_maps

    setup, load_estimator = map_setup(config, network)
    folder, centres = out or maps[0].parent / maps[0].stem, parse_centres(centre or [])
    check_folder(folder)
    patches = PatchMaps.join(
        [read_maps(path, setup.patch, centres, pixel_window, unit=unit) for path in maps],
        setup.patch.size_deg,
    )
    warnings = [*patches.warnings, *check_maps(patches, setup)]
    runs.warn(patches.source, warnings)
    typer.echo(reconstruct_maps(setup, load_estimator(), patches, folder, warnings))


def map_setup(
    source: Path, networks: list[Path] | None, noisy: bool = False
) -> tuple[MapSetup, Callable[[], Any]]:
    """Load what a configuration or a release says of the maps that it fits.

    Parameters
    ----------
    source : a release, the name of a shipped one, or a configuration
    networks : files of the networks, where a release does not ship with them
    noisy : whether the estimator must know each pixel's noise

    Returns
    -------
    setup : patches, instrument, theory and checks
    load_estimator : loads the estimator; missing networks are an error before this call

    Raises
    ------
    ConfigError
    If there is no such release or configuration, or the estimator is not told the noise.
    """
    from ..maps.map_setup import MapSetup
    from ..maps.release_estimator import release_estimator
    from ..pipeline.release_networks import find_networks, is_release
    from ..reconstruct.files import kind_of

    if not is_release(source):
        if not source.suffix and not source.exists():
            from ..likelihood.release import shipped_releases

            raise ConfigError(
                f"{source}: is neither a file nor a shipped release, which are "
                f"{', '.join(shipped_releases())}; give one of these, or a configuration's path"
            )
        if networks:
            raise ConfigError(f"{source}: names its network itself; leave --network out")
        run = runs.load(source)
        if noisy:
            refuse_quiet(run, source)
        return MapSetup.of_run(run), lambda: runs.ready(run).estimator
    from ..likelihood.release import read_release
    from ..reconstruct import check_backend

    release = read_release(source)
    setup = MapSetup.of_release(release)
    check_backend()
    paths = find_networks(release, networks or ())
    if noisy and kind_of(paths) == "ResUNet":
        raise ConfigError(f"release '{release.name}' was made with a ResUNet on maps; {NOISY}")
    return setup, release_estimator(setup, paths)


def refuse_quiet(run: Run, source: Path) -> None:
    """Refuse a configuration whose estimator is not told each pixel's noise.

    Parameters
    ----------
    run : a configuration, with its products and networks
    source : its file, for the message

    Raises
    ------
    ConfigError
    If the network is not a refining one.
    """
    if run.config.baseline is not None or run.config.network.kind != "refined":
        raise ConfigError(f"{source}: key 'network.kind' is not 'refined'; {NOISY}")
