"""``cnnlens survey``: commands that take a survey's maps to κ̂ and to a release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import runs
from .arguments import Blind, Estimators, JobOption, Networks, Unit

app = typer.Typer(no_args_is_help=True, help="A survey of your own: from maps to a release.")

Simulations = Annotated[
    Path | None,
    typer.Option(
        help="YAML that names the experiment's own simulations: they give R, N and covariance."
    ),
]


def one_estimator(sources: list[str] | None) -> Path:
    """The release or configuration that names the network.

    Parameters
    ----------
    sources : what --release and --config gave

    Returns
    -------
    source : the one there is

    Raises
    ------
    ConfigError
        If there is none, or more than one.
    """
    if len(sources or ()) != 1:
        raise ConfigError("give either --release NAME or --config FILE")
    return Path(*sources or ())


@app.command(
    "plan",
    epilog="Example: cnnlens survey plan a.fits b.fits --mask mask.fits"
    " --ivar ivar.fits --out s.yaml",
)
def survey_plan(
    maps: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Q and U as HEALPix or CAR maps, one file for each split; none for a footprint "
            "alone, with --mask and --level."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The plan to write (YAML).")] = Path("plan.yaml"),
    mask: Annotated[
        Path | None, typer.Option(help="0 (not seen) to 1, with holes; seen from .5 on.")
    ] = None,
    ivar: Annotated[
        list[Path] | None,
        typer.Option(
            help="Inverse variance of Q and of U each, per pixel: one for each split, or one of "
            "the coadd; repeatable."
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(help="Instead: noise of the coadd in µK-arcmin, a number or a map of it."),
    ] = None,
    unit: Unit = None,
    pixel_window: Annotated[
        bool, typer.Option(help="Divide the HEALPix maps' pixel window out.")
    ] = False,
    seen: Annotated[
        float, typer.Option(help="Least seen fraction of a tile, weighted by the taper squared.")
    ] = 0.6,
    patch_deg: Annotated[float, typer.Option(help="Side of a tile in degrees.")] = 5.0,
    patch_pixels: Annotated[int, typer.Option(help="Pixels along a side.")] = 128,
    taper: Annotated[float, typer.Option(help="Taper of a tile's mask in degrees.")] = 0.5,
    like: Annotated[
        Path | None,
        typer.Option(help="A plan whose tiles to take: of another map, or a mock, of the survey."),
    ] = None,
) -> None:
    """Plan a survey: cover its footprint with tiles that do not overlap.

    Each tile has its depth, mask and holes. The command writes a YAML, its arrays and a figure.
    """
    runs.need_pipeline()
    from ..maps.plan import make_plan, read_plan
    from ..maps.survey_files import Sources
    from ..plots.drawing import save
    from ..plots.survey_figure import plan_figure
    from ..simulate.patches import PatchGeometry

    if not 0 < patch_deg < 60 or patch_pixels < 16 or not 0 <= taper < 0.5 * patch_deg:
        raise ConfigError(
            f"tiles of {patch_deg:g} degrees, {patch_pixels} pixels and a taper of {taper:g} "
            "degrees cannot be; give --patch-deg, --patch-pixels and --taper of your network"
        )
    sources = Sources(
        tuple(str(path.absolute()) for path in maps or ()),
        str(mask.absolute()) if mask else None,
        tuple(str(path.absolute()) for path in ivar or ()),
        str(Path(level).absolute()) if level is not None and Path(level).exists() else level,
        unit,
        pixel_window,
    )
    other = read_plan(like) if like else None
    plan = make_plan(out, sources, PatchGeometry(patch_deg, patch_pixels), taper, seen, other)
    runs.warn(out, plan.warnings)
    picture = save(plan_figure(plan), out.with_suffix(".png"))
    depths = [tile.depth for tile in plan.tiles]
    typer.echo(
        f"{out}: {len(plan.tiles)} tiles, {plan.area_deg2:.1f} of "
        f"{plan.footprint.area_deg2:.0f} square degrees, {min(depths):.3g} to {max(depths):.3g} "
        f"µK-arcmin; {picture}"
    )


@app.command(
    "reconstruct", epilog="Example: cnnlens survey reconstruct s.yaml --release refined_fiducial"
)
def survey_reconstruct(
    plan: Annotated[Path, typer.Argument(help="What `survey plan` wrote (YAML).")],
    estimator: Estimators = None,
    network: Networks = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for κ̂; named as the plan if absent.")
    ] = None,
    job: JobOption = None,
) -> None:
    """Reconstruct κ̂ of every tile, and measure its bandpowers; a stopped run goes on.

    The estimator knows each tile's noise and holes.
    """
    source = one_estimator(estimator)
    runs.need_pipeline()
    from ..maps.bandpower_file import check_folder
    from ..maps.job import Job
    from ..maps.plan import read_plan
    from ..maps.reconstruction import TileReconstruction, check_setup
    from .estimate import map_setup

    share = Job.parse(job) if job else None
    loaded = read_plan(plan)
    setup, load_estimator = map_setup(source, network, noisy=True)
    check_setup(loaded, setup)
    folder = out or plan.with_suffix("")
    check_folder(folder)
    tiles = TileReconstruction(loaded, setup, folder)
    bandpowers = tiles.measure(
        load_estimator, runs.threads(), lambda warning: runs.warn(plan, [warning]), share
    )
    if share is None:
        typer.echo(bandpowers)


@app.command("map", epilog="Example: cnnlens survey map s.yaml --config survey.yaml")
def survey_map(
    plan: Annotated[Path, typer.Argument(help="What `survey plan` wrote (YAML).")],
    estimator: Estimators = None,
    network: Networks = None,
    realisations: Annotated[int, typer.Option(help="Pairs of true and reconstructed maps.")] = 20,
    lmax: Annotated[int, typer.Option(help="Largest multipole of the map.")] = 2000,
    nside: Annotated[
        int | None, typer.Option(help="Of HEALPix; lmax/2 or the next power of two if absent.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of κ̂; named as the plan if absent.")
    ] = None,
) -> None:
    """Make a map of κ̂ without seams, to correlate with a tracer; a stopped run goes on.

    Further tiles fill the tapers of the plan's. κ̂ is divided by the response. Simulations give its
    transfer function and noise, and are written as pairs of maps (κ, κ̂).
    """
    source = one_estimator(estimator)
    runs.need_pipeline()
    from ..maps.bandpower_file import check_folder
    from ..maps.mosaic import bins_to, nside_for
    from ..maps.plan import check_sources, read_plan
    from ..maps.reconstruction import TileReconstruction, check_setup
    from ..maps.survey_map import SurveyMap
    from .estimate import map_setup

    if nside is not None and (nside < 1 or nside & (nside - 1)):
        raise ConfigError(f"--nside {nside}: give a power of two")
    loaded = read_plan(plan)
    bins_to(lmax, loaded.geometry)
    check_sources(loaded)
    setup, load_estimator = map_setup(source, network, noisy=True)
    check_setup(loaded, setup)
    folder = out or plan.with_suffix("")
    check_folder(folder)
    made = SurveyMap(TileReconstruction(loaded, setup, folder), lmax, nside or nside_for(lmax))
    path = made.make(
        realisations, load_estimator, runs.threads(), lambda warning: runs.warn(plan, [warning])
    )
    typer.echo(path)


@app.command("template", epilog="Example: cnnlens survey template s.yaml --config survey.yaml")
def survey_template(
    plan: Annotated[Path, typer.Argument(help="What `survey plan` wrote (YAML).")],
    estimator: Estimators = None,
    network: Networks = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of κ̂; named as the plan if absent.")
    ] = None,
) -> None:
    """Make a map of the B modes that lensing makes of the survey's E modes, to delens with.

    It takes the map of κ̂ that `survey map` made. The B modes end at l = 500.
    """
    source = one_estimator(estimator)
    runs.need_pipeline()
    from ..maps.plan import read_plan
    from ..maps.reconstruction import check_setup
    from ..maps.survey_template import SurveyTemplate
    from .estimate import map_setup

    loaded = read_plan(plan)
    setup, _ = map_setup(source, network, noisy=True)
    check_setup(loaded, setup)
    template = SurveyTemplate(loaded, setup, out or plan.with_suffix(""))
    runs.warn(plan, template.warnings)
    typer.echo(template.make(runs.threads()))


@app.command("calibrate", epilog="Example: cnnlens survey calibrate s.yaml --config survey.yaml")
def survey_calibrate(
    plan: Annotated[Path, typer.Argument(help="What `survey plan` wrote (YAML).")],
    config: Annotated[
        Path,
        typer.Option(
            help="The pipeline configuration that reconstructed it: network, optics, skies, bands."
        ),
    ],
    patches: Annotated[
        int | None,
        typer.Option(
            help="Simulated patches, which take the tiles in turn; four a tile if absent."
        ),
    ] = None,
    simulations: Simulations = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the survey's products; named as the plan.")
    ] = None,
    job: JobOption = None,
) -> None:
    """Calibrate a survey by simulation; a stopped run goes on.

    The simulated patches have the tiles' noise and holes. They give the response, the noise bias,
    the covariance and the derivatives. The experiment's own simulations are compared with them, in
    a table and a figure.
    """
    run = runs.load(config)
    from ..files import atomic_write
    from ..maps.assembly import Calibrated
    from ..maps.bandpower_file import check_folder
    from ..maps.calibration import EACH, SurveyCalibration
    from ..maps.comparison import compare
    from ..maps.job import Job
    from ..maps.map_setup import MapSetup
    from ..maps.own_simulations import OwnSimulations
    from ..maps.plan import read_plan
    from ..maps.reconstruction import check_setup
    from ..plots.drawing import save
    from ..plots.survey_figure import comparison_figure
    from .estimate import refuse_quiet

    refuse_quiet(run, config)
    share = Job.parse(job) if job else None
    loaded = read_plan(plan)
    check_setup(loaded, MapSetup.of_run(run))
    n_patches = EACH * len(loaded.tiles) if patches is None else patches
    folder = out or plan.with_suffix("")
    SurveyCalibration(run, loaded, folder, n_patches).check()
    own = None if simulations is None else OwnSimulations.of(run, loaded, folder, simulations)
    check_folder(folder)
    calibration = SurveyCalibration(runs.ready(run), loaded, folder, n_patches)
    # The experiment's simulations come first: what is wrong with them shows at the first one.
    if own is not None:
        own.measure(runs.threads(), share, lambda warning: runs.warn(plan, [warning]))
    path = calibration.measure(runs.threads(), share)
    if share is not None:
        return
    typer.echo(path)
    if own is not None:
        comparison = compare(Calibrated.read(run, loaded, folder), own)
        with atomic_write(folder / "own_simulations.txt") as partial:
            partial.write_text(comparison.table() + "\n", encoding="utf-8")
        typer.echo(comparison.table())
        typer.echo(save(comparison_figure(comparison), folder / "own_simulations.png"))


@app.command("release", epilog="Example: cnnlens survey release s.yaml --config survey.yaml")
def survey_release(
    plan: Annotated[Path, typer.Argument(help="What `survey plan` wrote (YAML).")],
    config: Annotated[
        Path, typer.Option(help="The pipeline configuration that reconstructed and calibrated it.")
    ],
    products: Annotated[
        Path | None, typer.Option(help="Folder of the survey's products; named as the plan.")
    ] = None,
    simulations: Simulations = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; release.json among the products.")
    ] = None,
    blind: Blind = None,
) -> None:
    """Debias the tiles' bandpowers, average them, and write the release file."""
    run = runs.load(config)
    from ..maps import assembly
    from ..maps.plan import read_plan
    from ..maps.simulation_files import read_simulation_files
    from .estimate import refuse_quiet

    refuse_quiet(run, config)
    folder = products or plan.with_suffix("")
    path = out or folder / "release.json"
    key, loaded = runs.blinding_key(path, blind), read_plan(plan)
    name = loaded.name if out is None else out.stem
    files = None if simulations is None else read_simulation_files(simulations)
    made = assembly.make_release(run, loaded, folder, name, files)
    runs.write_made(made, path, key)


@app.command("nulls", epilog="Example: cnnlens survey nulls s.yaml --config survey.yaml")
def survey_nulls(
    plan: Annotated[Path, typer.Argument(help="What `survey plan` wrote (YAML).")],
    estimator: Estimators = None,
    network: Networks = None,
    other_network: Annotated[
        list[Path] | None,
        typer.Option(help="Another refining network, as of another seed; of several their mean."),
    ] = None,
    survey_release: Annotated[
        str | None, typer.Option(help="The release of the survey's bandpowers, for its L range.")
    ] = None,
    lmax_cmb: Annotated[
        int | None, typer.Option(help="Where E and B end in one null; .65 of Nyquist if absent.")
    ] = None,
    matched_simulations: Annotated[
        int, typer.Option(help="Simulated tiles for each tile, of the same noise and holes.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of κ̂; named as the plan if absent.")
    ] = None,
    job: JobOption = None,
) -> None:
    """Null tests of the survey's own maps; a stopped run goes on.

    They compare splits, halves of the footprint, l_max, rotation, curl and sources. The command
    writes a table and a figure beside κ̂.
    """
    source = one_estimator(estimator)
    runs.need_pipeline()
    from ..files import atomic_write
    from ..likelihood.release import read_release
    from ..maps.job import Job
    from ..maps.plan import read_plan
    from ..maps.reconstruction import TileReconstruction
    from ..maps.tile_nulls import Choices, TileNulls
    from ..plots.drawing import save
    from ..plots.validation_figures import survey_nulls_figure
    from ..validate import survey_nulls as judged
    from .estimate import map_setup

    share = Job.parse(job) if job else None
    loaded = read_plan(plan)
    judged.check_tiles(loaded)
    own = read_release(survey_release) if survey_release else None
    setup, load_estimator = map_setup(source, network, noisy=True)
    others = tuple(map(str, other_network or ()))
    choices = Choices.of(setup, lmax_cmb, matched_simulations, networks=others)
    folder = out or plan.with_suffix("")
    nulls = TileNulls(TileReconstruction(loaded, setup, folder), choices)
    nulls.measure(load_estimator, share)
    if share is not None:
        return
    table = judged.survey_nulls(nulls, own)
    text = table.table()
    with atomic_write(folder / "nulls.txt") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    typer.echo(text)
    typer.echo(save(survey_nulls_figure(table), folder / "nulls.png"))
