"""``cnnlens``: one command per stage of the pipeline, and the tools around a release."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..errors import CNNLensError, ConfigError, ReleaseError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
release_app = typer.Typer(no_args_is_help=True, help="Make and look at release files.")
app.add_typer(release_app, name="release")
emulator_app = typer.Typer(no_args_is_help=True, help="Make and check emulators of CAMB.")
app.add_typer(emulator_app, name="emulator")

ConfigFile = Annotated[
    Path, typer.Argument(help="Pipeline configuration (YAML), or FILE#MEMBER of a study.")
]
SetName = Annotated[
    str, typer.Option("--set", help="train, validation, test, derivatives or survey-NAME.")
]
Indices = Annotated[
    list[int] | None, typer.Option("--index", help="Sky of the set; repeatable; all by default.")
]
Threads = Annotated[
    int, typer.Option(help="Threads; 0 takes all cores. Results do not depend on it.")
]


# What the `pipeline` extra installs and a light installation may lack, but for TensorFlow: Keras
# runs on jax too.
PIPELINE_PACKAGES = ("ducc0", "healpy", "keras", "pydantic", "tqdm", "yaml")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cobaya_cnnlens {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """CMB lensing with a ResUNet: from simulated skies to a Cobaya likelihood."""


@app.command()
def spectra(config: ConfigFile) -> None:
    """Run CAMB for the fiducial cosmology and every survey."""
    run = _load(config)
    for name in run.config.set_names():
        for index in range(run.config.set_size(name)):
            run.spectra(run.config.set_cosmology(name, index))
    typer.echo(f"spectra in {run.config.sky_directory / 'spectra'}")


@app.command()
def skies(
    config: ConfigFile, set_name: SetName, index: Indices = None, threads: Threads = 0
) -> None:
    """Simulate the skies of a set: one file of patches (Q̃, Ũ, Q, U, E, κ) each."""
    run = _load(config)
    from ..pipeline import skies

    for path in skies.measure(run, set_name, index, threads):
        typer.echo(path)


@app.command()
def train(config: ConfigFile) -> None:
    """Train the ResUNet; a run that was stopped goes on from its last epoch."""
    run = _load(config)
    if run.config.network.pretrained is not None:
        raise ConfigError(
            f"{config}: key 'network.pretrained' names {run.config.network.pretrained}, so there "
            "is nothing to train; remove the key to train a network"
        )
    from tqdm import tqdm

    from ..pipeline import networks, training

    directory, trained = networks.training_directory(run), False
    for record in training.train(run, directory):
        trained = True
        values = (f"{k} {v:.5g}" for k, v in record.items())
        tqdm.write("  ".join(values))
    # A Keras file holds its date: writing the same weights again would change the network's hash.
    if trained or not networks.path(run).exists():
        state = training.TrainingRun(directory, networks.recipe(run))
        training.save_atomically(state.best(), networks.path(run))
    typer.echo(f"network in {networks.path(run)}")


@app.command("mean-field")
def mean_field(config: ConfigFile) -> None:
    """Measure the mean field of an estimator without a network (``baseline``)."""
    run = _load(config)
    if run.config.baseline is None:
        raise ConfigError(f"{config}: key 'baseline' names no estimator; a network needs no field")
    from ..pipeline import mean_field

    _ = _ready(run).estimator
    typer.echo(mean_field.path(run))


@app.command()
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
    unit: Annotated[
        str | None, typer.Option(help="uK, mK or K: of Q and U where the file does not say.")
    ] = None,
    network: Annotated[
        list[Path] | None,
        typer.Option(
            help="The network that made the release, if it is no shipped one; repeatable."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for κ̂ of your own maps.")] = None,
) -> None:
    """Reconstruct κ̂ on the skies of a set, or on your own maps, and measure its bandpowers."""
    if bool(maps) == (set_name is not None):
        raise ConfigError("give either --set NAME or --maps FILE")
    _loading()  # tells what to install if it is the pipeline that is missing
    from ..calibrate.release_networks import is_release

    if not maps:
        if is_release(config):
            raise ConfigError(f"{config} is a release: --set needs the configuration that made it")
        run = _load(config)
        from ..calibrate import bandpowers

        bandpowers.measure(_ready(run), set_name, index)
        return
    from ..calibrate import own_maps
    from ..calibrate.map_checks import check_maps
    from ..pipeline.map_files import PatchMaps, parse_centres, read_maps

    setup, load_estimator = _map_setup(config, network)
    folder = out or maps[0].with_suffix("")
    own_maps.check_folder(folder)
    centres, source = parse_centres(centre or []), ", ".join(path.name for path in maps)
    found = PatchMaps.join(
        [read_maps(path, setup.patch, centres, pixel_window, unit=unit) for path in maps],
        setup.patch.size_deg,
        source,
    )
    for warning in check_maps(found, setup, source):
        typer.secho(f"warning: {source}: {warning}", fg="yellow", err=True)
    typer.echo(own_maps.reconstruct_maps(setup, load_estimator(), found, source, folder))


def _map_setup(source: Path, networks: list[Path] | None):
    """What a configuration or a release says of the maps it fits, and a function that loads its
    estimator; a missing network is told here, before maps are read and Keras is loaded."""
    from ..calibrate.own_maps import MapSetup
    from ..calibrate.release_networks import find_networks, is_release

    if not is_release(source):
        if networks:
            raise ConfigError(f"{source}: names its network itself; leave --network out")
        run = _load(source)
        return MapSetup.of_run(run), lambda: _ready(run).estimator
    from ..likelihood.release import read_release

    release = read_release(source)
    setup, paths = MapSetup.of_release(release), find_networks(release, networks or ())

    def load():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from ..reconstruct.resunet import networks_estimator

        rms = setup.instrument.noise_rms(setup.patch)
        return networks_estimator(paths, setup.symmetries, rms)

    return setup, load


@app.command()
def exhibit(config: ConfigFile) -> None:
    """Keep maps of one test patch and the power of E on its sky, for the report."""
    run = _load(config)
    from ..validate import exhibits

    exhibits.measure(_ready(run))
    typer.echo(exhibits.path(run))


@app.command()
def derivatives(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    shifted_only: Annotated[
        bool, typer.Option(help="Only the skies at shifted omch2, which `forecast` needs.")
    ] = False,
) -> None:
    """Measure the banded derivatives of the debiased bandpowers, and their second order in ω_c."""
    run = _load(config)
    from ..calibrate import curvature, derivatives

    _ready(run)
    for i in range(run.config.skies.derivatives) if index is None else index:
        if not shifted_only:
            derivatives.measure(run, i, threads)
        curvature.measure(run, i, threads)


@app.command()
def nuisances(
    config: ConfigFile,
    index: Indices = None,
    check: Annotated[
        int | None,
        typer.Option(help="Instead: compare what they predict with this other test sky."),
    ] = None,
    gain: Annotated[float, typer.Option(help="Change of gain to check.")] = 0.01,
    beam: Annotated[float, typer.Option(help="Relative change of beam width to check.")] = 0.05,
    noise: Annotated[float, typer.Option(help="Relative change of noise to check.")] = 0.1,
    angle: Annotated[float, typer.Option(help="Rotation in degrees to check.")] = 1.0,
) -> None:
    """Measure what systematics of the instrument do to the bandpowers, on test skies."""
    run = _load(config)
    from ..calibrate import nuisances
    from ..calibrate.assemble import calibration_of
    from ..report.text import format_nuisance_checks

    _ready(run)
    if check is not None:
        calibration, _ = calibration_of(run)
        changes = {"gain": gain, "beam": beam, "noise": noise, "angle": angle}
        found = nuisances.check_nuisances(run, calibration.response, check, changes)
        typer.echo(format_nuisance_checks(run, found))
        return
    for i in range(run.config.nuisances.skies) if index is None else index:
        nuisances.measure(run, i)


@app.command()
def points(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    table_only: Annotated[bool, typer.Option(help="Print the table of what there is.")] = False,
) -> None:
    """Make test skies again at other cosmologies; print how far off omch2 is there, in sigmas."""
    run = _load(config)
    from ..report.text import format_points
    from ..validate import points

    if not run.config.points.at:
        raise ConfigError(f"{config}: key 'points.at' lists no cosmologies; add some")
    if not table_only:
        _ready(run)
        for i in range(run.config.points.skies) if index is None else index:
            points.measure(run, i, threads)
    for group in run.config.points.at:
        typer.echo(format_points(group, points.points_table(run, group)))


@app.command()
def coverage(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    patches_each: Annotated[
        int | None, typer.Option(min=1, help="Patches per survey; the configuration's by default.")
    ] = None,
    table_only: Annotated[
        bool, typer.Option(help="Print the table of the skies that there are.")
    ] = False,
    release: Annotated[
        str | None,
        typer.Option(help="Release file or shipped release to test; made from products if absent."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Simulate skies of omch2 drawn from a prior, and print how often posteriors hold the truth."""
    run = _load(config)
    from ..calibrate.assemble import make_release
    from ..likelihood.release import read_release
    from ..report.text import format_coverage
    from ..validate import coverage

    if not table_only:
        _ready(run)
        coverage.measure(run, index, threads)
    if index is None:
        tested = read_release(release) if release else make_release(run, run.config.first_survey)
        table = coverage.coverage_table(run, tested, patches_each)
        typer.echo(format_coverage(table))
        if out:
            from ..report.figures import draw_coverage, save

            typer.echo(save(draw_coverage(table), out))


@app.command()
def nulltest(
    config: ConfigFile,
    index: Annotated[
        list[int] | None,
        typer.Option("--index", help="Sky of the test and training sets; repeatable."),
    ] = None,
    threads: Threads = 0,
    null: Annotated[
        list[str] | None,
        typer.Option(
            help="training, unlensed, swapped, noise, b_only, parity or curl; repeatable; all by "
            "default."
        ),
    ] = None,
    table_only: Annotated[bool, typer.Option(help="Print the table of what there is.")] = False,
) -> None:
    """Null tests: maps in which there is nothing to be found, and what the estimator finds."""
    run = _load(config)
    from ..report.text import format_nulls
    from ..validate import nulls

    names = nulls.check_names(run, null)
    if not table_only:
        _ready(run)
        nulls.measure(run, names, index, threads)
    if table_only or index is None:
        typer.echo(format_nulls(nulls.nulls_table(run, names, index)))


@app.command()
def primary(
    config: ConfigFile,
    set_name: SetName = "test",
    index: Indices = None,
    largest: Annotated[int, typer.Option(min=1, help="Coefficients to print.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Write the joint covariance: .npz or .json.")
    ] = None,
) -> None:
    """Joint covariance of the lensing bandpowers with E and B power of the same patches."""
    run = _load(config)
    from ..report.text import format_joint
    from ..validate import primary

    primary.measure(run, set_name, index)
    joint = primary.read_joint(run, set_name, index)
    true = primary.read_joint(run, set_name, index, true_kappa=True)
    typer.echo(format_joint(joint, true, largest))
    if out is not None:
        provenance = {
            "configuration": run.config.name,
            "set": set_name,
            "network_sha256": run.estimator_id,
        }
        typer.echo(primary.write_joint(joint, out, provenance))


@app.command()
def ship(config: ConfigFile) -> None:
    """Collect bandpowers, derivatives and nuisances in one small file to commit (key `shipped`)."""
    run = _load(config)
    from ..validate import shipping

    counts = shipping.ship(run)
    for what, number in counts.items():
        typer.echo(f"{number:4d} skies of {what}")
    typer.echo(f"{run.config.shipped} ({run.config.shipped.stat().st_size / 1e6:.2f} MB)")


@release_app.command("make")
def release_make(
    config: Annotated[
        Path | None,
        typer.Argument(help="Pipeline configuration (YAML); none with --calibration."),
    ] = None,
    survey: Annotated[
        str | None, typer.Option(help="Which mock survey of the configuration.")
    ] = None,
    sky: Annotated[int, typer.Option(help="Which of its skies is the data.")] = 0,
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
) -> None:
    """Calibrate a survey's bandpowers, or those of your own maps, and write the release file."""
    if bool(data) == (survey is not None):
        raise ConfigError("give either --survey NAME or --data FILE")
    if (config is None) == (calibration is None) or (calibration is not None and not data):
        raise ConfigError("give either CONFIG, or --data FILE with --calibration RELEASE")
    _loading()  # tells what to install if it is the pipeline that is missing
    from ..calibrate import assemble
    from ..likelihood.release import read_release, write_release

    path = out or (data[0].with_name("release.json") if data else None)
    if calibration is not None:
        release = assemble.make_calibrated_release(data, read_release(calibration), path.stem)
    else:
        run = _load(config)
        if data:
            release = assemble.make_data_release(run, data, path.stem)
        else:
            release = assemble.make_release(run, survey, sky)
            path = path or assemble.path(run, survey, sky)
    try:
        write_release(release, path)
    except OSError as error:
        raise ReleaseError(
            f"{path}: cannot be written ({error.strerror or error}); name another file with --out, "
            "or make room"
        ) from None
    typer.echo(path)


@release_app.command("show")
def release_show(
    file: Annotated[str, typer.Argument(help="A release file, or the name of a shipped one.")],
) -> None:
    """Print a release: what it is, its bandpowers with errors, where it came from."""
    from ..likelihood.release import read_release
    from ..report.text import describe_release

    typer.echo(describe_release(read_release(file)))


@release_app.command("plot")
def release_plot(
    file: Annotated[str, typer.Argument(help="A release file, or the name of a shipped one.")],
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw a release: bandpowers, fiducial theory, noise and residuals."""
    from ..likelihood.release import read_release
    from ..report.release_figure import draw_release

    typer.echo(draw_release(read_release(file), out or Path(f"{Path(file).stem}.png")))


@release_app.command("list")
def release_list() -> None:
    """Names of the shipped releases."""
    from ..likelihood.release import shipped_releases

    typer.echo("\n".join(shipped_releases()))


@release_app.command("export")
def release_export(
    file: Annotated[str, typer.Argument(help="A release file, or the name of a shipped one.")],
    format: Annotated[str, typer.Option("--format", help="cmblikes, candl or sacc.")],
    out: Annotated[Path, typer.Option(help="New folder to write to.")],
    noise_debias: Annotated[
        str,
        typer.Option(
            help="fixed; or linear, with a Python module for Cobaya, which hands lensed EE to the "
            "codes themselves."
        ),
    ] = "fixed",
) -> None:
    """Write a release for cobaya's CMBlikes, for candl, or as SACC."""
    from ..likelihood.export import export_release
    from ..likelihood.release import read_release

    typer.echo(export_release(read_release(file), format, out, noise_debias))


@release_app.command("check")
def release_check(
    file: Annotated[str, typer.Argument(help="A release file, or the name of a shipped one.")],
    networks: Annotated[
        list[Path],
        typer.Option("--network", help="The network that should have made it; repeatable."),
    ],
) -> None:
    """Check that a release was made with a network, by the hash of its weights."""
    from ..calibrate.release_networks import check_network
    from ..likelihood.release import read_release

    check_network(read_release(file), networks)
    typer.echo(f"{file} was made with {', '.join(map(str, networks))}")


@app.command()
def evaluate(
    config: ConfigFile,
    merge: Annotated[int, typer.Option(min=1, help="Neighbouring bins to take together.")] = 1,
    on: Annotated[
        str | None, typer.Option(help="Instead: debiased minus true bandpowers on another set.")
    ] = None,
) -> None:
    """Print the network's reconstruction noise beside the analytic curves."""
    run = _load(config)
    from ..report.text import format_noise, format_residual
    from ..validate.noise import noise_table, residual_table

    if on:
        typer.echo(format_residual(residual_table(run, on, merge)))
    else:
        typer.echo(format_noise(noise_table(run, merge)))


@app.command()
def n0(
    estimator: Annotated[
        str, typer.Option(help="eb, ee, mv (both), eb-iterative, tt, te or tb.")
    ] = "eb",
    noise: Annotated[float, typer.Option(help="White noise of Q and of U, µK-arcmin.")] = 1.0,
    beam: Annotated[float, typer.Option(help="FWHM of the beam, arcmin.")] = 1.0,
    lmin: Annotated[int, typer.Option(help="Lowest multipole of E and B.")] = 72,
    lmax: Annotated[int, typer.Option(help="Highest multipole of E and B.")] = 4600,
    multipole: Annotated[
        list[int] | None, typer.Option(help="L to print; repeatable; 20 of them by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write too.")] = None,
) -> None:
    """Analytic reconstruction noise N0 of κ at the fiducial cosmology, beside C_L of κ."""
    from ..reconstruct.n0 import Filter
    from ..simulate.instrument import Instrument
    from ..validate.analytic import analytic_noise

    table = analytic_noise(estimator, Instrument(noise, beam), Filter(lmin, lmax), multipole)
    typer.echo(table.text())
    if out:
        table.write(out)


@app.command()
def n1(
    noise: Annotated[float, typer.Option(help="White noise of Q and of U, µK-arcmin.")] = 1.0,
    beam: Annotated[float, typer.Option(help="FWHM of the beam, arcmin.")] = 1.0,
    lmin: Annotated[int, typer.Option(help="Lowest multipole of E and B.")] = 72,
    lmax: Annotated[int, typer.Option(help="Highest multipole of E and B.")] = 4600,
    pairs: Annotated[int, typer.Option(help="Pairs of maps that share φ.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the Monte Carlo.")] = 0,
) -> None:
    """N1 of the EB estimator by Monte Carlo: pairs of maps that share φ, with its error."""
    _loading()
    from ..reconstruct.n0 import Filter
    from ..simulate.instrument import Instrument
    from ..validate.analytic import format_n1, monte_carlo_n1

    found = monte_carlo_n1(Instrument(noise, beam), Filter(lmin, lmax), pairs, seed)
    typer.echo(format_n1(found))


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(help="Pipeline configurations or studies.")],
    merge: Annotated[int, typer.Option(min=1, help="Neighbouring bins to take together.")] = 1,
) -> None:
    """Print the reconstruction noise of several configurations, or of a study's, side by side."""
    runs = [run for config in configs for run in _load_study(config)]
    from ..report.text import format_comparison
    from ..validate import noise

    typer.echo(format_comparison(noise.compare(runs, merge)))


@app.command()
def forecast(
    configs: Annotated[list[Path], typer.Argument(help="Pipeline configurations or studies.")],
) -> None:
    """Print what one patch tells about omch2 (Fisher), with and without a debias that follows."""
    runs = [run for config in configs for run in _load_study(config)]
    from ..report.text import format_forecasts
    from ..validate import forecast

    found = {run.config.name: forecast.forecast(run) for run in runs}
    typer.echo(format_forecasts(found))


@app.command()
def recover(
    config: ConfigFile,
    patches_each: Annotated[int, typer.Option(min=1, help="Patches per survey.")] = 1,
) -> None:
    """Maximum-likelihood ω_c of the surveys' patches, and the null-hypothesis test."""
    run = _load(config)
    from ..calibrate.assemble import make_releases
    from ..report.text import format_recovery

    releases = make_releases(run, dict.fromkeys(run.config.surveys, 0))
    typer.echo(format_recovery(run, releases, patches_each))


@app.command()
def report(
    plan: Annotated[Path, typer.Argument(help="What to put side by side (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Folder; the plan's if absent.")] = None,
) -> None:
    """Put the paper's figures and numbers beside ours, from products: an HTML page and tables."""
    _loading()
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


@app.command()
def plot(
    chains: Annotated[list[str], typer.Argument(help="Chain roots, e.g. chains/omegac.")],
    params: Annotated[
        list[str] | None, typer.Option("--param", help="Parameter; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw posteriors with getdist, several chains overlaid, the truth of a mock marked; print
    means, errors, effective samples and pulls from the truth."""
    from ..report.posteriors import plot_posteriors
    from ..validate.chains import format_marginals, load_chain, marginals

    samples = {root: load_chain(root) for root in chains}
    typer.echo(plot_posteriors(samples, params, out))
    typer.echo(format_marginals(marginals(samples, params)))


@app.command()
def predictive(
    chain: Annotated[str, typer.Argument(help="Chain root, e.g. chains/omegac.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples of the posterior.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Posterior-predictive chi2 and PTE of a chain: would data drawn from it look like these?"""
    from ..report.posteriors import draw_predictive
    from ..report.text import format_predictive
    from ..validate.predictive import predictive as check_chain

    check = check_chain(chain, samples)
    typer.echo(format_predictive(check))
    typer.echo(draw_predictive(check, out or Path(f"{chain}_predictive.png")))


EmulatorPlan = Annotated[Path, typer.Argument(help="What to emulate (YAML).")]


@emulator_app.command("make")
def emulator_make(
    plan: EmulatorPlan,
    out: Annotated[
        Path | None, typer.Option(help="File to write; in its products if absent.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="CAMB runs at a time.", min=1)] = 1,
) -> None:
    """Run CAMB at the points of a plan, resumable, and fit an emulator to them."""
    _loading()
    from ..pipeline import emulation
    from ..theory.emulator import write_emulator

    loaded = emulation.load_plan(plan)
    design = loaded.design()
    emulation.run_camb(loaded, design, jobs)
    learnt = design[: len(design) - loaded.checks]
    made = emulation.fit(loaded, emulation.read_points(loaded, learnt))
    path = out or loaded.products / f"emulator_{loaded.name}.npz"
    write_emulator(made.tables, made.record, path)
    typer.echo(path)


@emulator_app.command("check")
def emulator_check(
    plan: EmulatorPlan,
    emulator: Annotated[str, typer.Option(help="A shipped emulator, or the path of one.")] = "lcdm",
    release: Annotated[str, typer.Option(help="Release for Δχ².")] = "laptop_fiducial",
    jobs: Annotated[int, typer.Option(help="CAMB runs at a time.", min=1)] = 1,
) -> None:
    """An emulator's errors at the plan's points that did not make it, against CAMB run there."""
    _loading()
    from ..likelihood.bandpowers import BandpowerLikelihood
    from ..likelihood.release import read_release
    from ..pipeline import emulation
    from ..report.text import format_emulator
    from ..theory.emulator import read_emulator

    loaded, made = emulation.load_plan(plan), read_emulator(emulator)
    if made.parameters != loaded.parameters or loaded.checks < 1:
        raise ConfigError(
            f"{plan}: has {loaded.checks} checks in {', '.join(loaded.parameters)}; emulator "
            f"'{emulator}' is one of {', '.join(made.parameters)}"
        )
    likelihood = BandpowerLikelihood(read_release(release))
    at = loaded.check_points()
    emulation.run_camb(loaded, at, jobs)
    checks = emulation.read_points(loaded, at)
    typer.echo(format_emulator(emulation.errors(made, checks, likelihood)))


@app.command()
def figure(
    config: ConfigFile,
    stage: Annotated[
        str,
        typer.Argument(
            help="spectra, sky, training, reconstruction, noise, bandpowers, derivatives, "
            "nuisances, coverage, primary or nulls."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Draw what a stage made."""
    run = _load(config)
    from ..report import figures

    typer.echo(figures.draw(run, stage, out))


def _load(path: Path):
    """The run of a configuration."""
    loading = _loading()
    from ..pipeline.run import Run

    return Run(loading.load_config(path))


def _load_study(path: Path):
    """The runs of a study's members."""
    loading = _loading()
    from ..pipeline.run import Run

    return [Run(config) for config in loading.load_study(path).values()]


def _loading():
    """What reads configurations, if the pipeline is installed: told before anything starts."""
    for name in PIPELINE_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise _not_installed(name)
    from ..pipeline import loading

    return loading


def _not_installed(package: str) -> CNNLensError:
    return CNNLensError(
        f"this command needs the pipeline, of which {package} is not installed; "
        "install it with: pip install '.[pipeline]'"
    )


def _ready(run):
    """The run, whose network is there: a missing one is told before Keras is loaded, nor do
    bandpowers that are shipped replace it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from ..pipeline import networks
    from ..reconstruct.files import networks_hash

    _ = run.estimator_id
    if run.config.baseline is None:
        networks_hash(networks.paths(run))
    return run


def run() -> None:
    """Entry point: errors a user can mend are one line, without a traceback."""
    # Commands write pictures and show none: where pyplot is used, it must look for no display.
    os.environ["MPLBACKEND"] = "Agg"
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in (*PIPELINE_PACKAGES, "tensorflow", "jax"):
                raise
            raise _not_installed(package) from None
    except CNNLensError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {where}{error.strerror or error}", fg="red", err=True)
        raise SystemExit(1) from None
