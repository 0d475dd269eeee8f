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
    loaded = _load(config)
    from ..pipeline.skies import spectra_for

    for name in loaded.set_names():
        for index in range(loaded.set_size(name)):
            spectra_for(loaded, loaded.set_cosmology(name, index))
    typer.echo(f"spectra in {loaded.sky_directory / 'spectra'}")


@app.command()
def skies(
    config: ConfigFile, set_name: SetName, index: Indices = None, threads: Threads = 0
) -> None:
    """Simulate the skies of a set: one file of patches (Q̃, Ũ, Q, U, E, κ) each."""
    loaded = _load(config)
    from ..pipeline.skies import make_skies

    for path in make_skies(loaded, set_name, index, threads):
        typer.echo(path)


@app.command()
def train(config: ConfigFile) -> None:
    """Train the ResUNet; a run that was stopped goes on from its last epoch."""
    loaded = _load(config)
    if loaded.network.pretrained is not None:
        raise ConfigError(
            f"{config}: key 'network.pretrained' names {loaded.network.pretrained}, so there is "
            "nothing to train; remove the key to train a network"
        )
    from tqdm import tqdm

    from ..pipeline import training

    directory, trained = loaded.training_directory, False
    for record in training.train(loaded, directory):
        trained = True
        values = (f"{k} {v:.5g}" for k, v in record.items())
        tqdm.write("  ".join(values))
    # A Keras file holds its date: writing the same weights again would change the network's hash.
    if trained or not loaded.trained_path.exists():
        run = training.TrainingRun(directory, training.training_recipe(loaded))
        training.save_atomically(run.best(), loaded.trained_path)
    typer.echo(f"network in {loaded.trained_path}")


@app.command("mean-field")
def mean_field(config: ConfigFile) -> None:
    """Measure the mean field of an estimator without a network (``baseline``)."""
    loaded = _load(config)
    if loaded.baseline is None:
        raise ConfigError(f"{config}: key 'baseline' names no estimator; a network needs no field")
    _network(loaded)
    typer.echo(loaded.mean_field_path)


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
    _config_module()  # tells what to install if it is the pipeline that is missing
    from ..calibrate.own_maps import is_release

    if not maps:
        if is_release(config):
            raise ConfigError(f"{config} is a release: --set needs the configuration that made it")
        loaded = _load(config)
        from ..calibrate.measure import measure_skies

        estimator, network_hash = _network(loaded)
        measure_skies(loaded, estimator, network_hash, set_name, index)
        return
    from ..calibrate import maps as own

    setup, load_estimator = _map_setup(config, network)
    folder = out or maps[0].with_suffix("")
    own.check_folder(folder)
    centres, source = own.parse_centres(centre or []), ", ".join(path.name for path in maps)
    found = own.PatchMaps.join(
        [own.read_maps(path, setup.patch, centres, pixel_window, unit=unit) for path in maps],
        setup.patch.size_deg,
        source,
    )
    for warning in own.check_maps(found, setup, source):
        typer.secho(f"warning: {source}: {warning}", fg="yellow", err=True)
    typer.echo(own.reconstruct_maps(setup, load_estimator(), found, source, folder))


def _map_setup(source: Path, networks: list[Path] | None):
    """What a configuration or a release says of the maps it fits, and a function that loads its
    estimator; a missing network is told here, before maps are read and Keras is loaded."""
    from ..calibrate.own_maps import MapSetup, find_networks, is_release
    from ..reconstruct.files import estimator_hash

    if not is_release(source):
        if networks:
            raise ConfigError(f"{source}: names its network itself; leave --network out")
        loaded = _load(source)
        return MapSetup.of_config(loaded, estimator_hash(loaded)), lambda: _network(loaded)[0]
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
    loaded = _load(config)
    from ..validate.exhibits import measure_exhibit

    measure_exhibit(loaded, *_network(loaded))
    typer.echo(loaded.exhibit_path)


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
    loaded = _load(config)
    from ..calibrate.curvature import measure_curvature
    from ..calibrate.derivatives import measure_derivatives

    estimator, network_hash = _network(loaded)
    for i in range(loaded.skies.derivatives) if index is None else index:
        if not shifted_only:
            measure_derivatives(loaded, estimator, network_hash, i, threads)
        measure_curvature(loaded, estimator, network_hash, i, threads)


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
    loaded = _load(config)
    from ..calibrate.assemble import calibration_of
    from ..calibrate.nuisances import check_nuisances, measure_nuisances
    from ..report.text import format_nuisance_checks

    estimator, network_hash = _network(loaded)
    if check is not None:
        calibration, _ = calibration_of(loaded, network_hash)
        changes = {"gain": gain, "beam": beam, "noise": noise, "angle": angle}
        found = check_nuisances(
            loaded, estimator, network_hash, calibration.response, check, changes
        )
        typer.echo(format_nuisance_checks(loaded, found))
        return
    for i in range(loaded.nuisances.skies) if index is None else index:
        measure_nuisances(loaded, estimator, network_hash, i)


@app.command()
def points(
    config: ConfigFile,
    index: Indices = None,
    threads: Threads = 0,
    table_only: Annotated[bool, typer.Option(help="Print the table of what there is.")] = False,
) -> None:
    """Make test skies again at other cosmologies; print how far off omch2 is there, in sigmas."""
    loaded = _load(config)
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_points
    from ..validate.points import measure_points
    from ..validate.tables import points_table

    if not loaded.points.at:
        raise ConfigError(f"{config}: key 'points.at' lists no cosmologies; add some")
    if not table_only:
        estimator, network_hash = _network(loaded)
        for i in range(loaded.points.skies) if index is None else index:
            measure_points(loaded, estimator, network_hash, i, threads)
    digest = estimator_hash(loaded)
    for group in loaded.points.at:
        typer.echo(format_points(group, points_table(loaded, digest, group)))


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
    loaded = _load(config)
    from ..calibrate.assemble import make_release
    from ..likelihood.release import read_release
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_coverage
    from ..validate.coverage import coverage_table
    from ..validate.coverage_skies import measure_coverage

    if not table_only:
        estimator, network_hash = _network(loaded)
        measure_coverage(loaded, estimator, network_hash, index, threads)
    if index is None:
        digest = estimator_hash(loaded)
        tested = (
            read_release(release) if release else make_release(loaded, digest, loaded.first_survey)
        )
        table = coverage_table(loaded, digest, tested, patches_each)
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
    loaded = _load(config)
    from ..reconstruct.files import estimator_hash
    from ..validate.null_inputs import check_names, measure_nulls
    from ..validate.nulls import format_nulls, nulls_table

    names = check_names(loaded, null)
    if not table_only:
        estimator, network_hash = _network(loaded)
        measure_nulls(loaded, estimator, network_hash, names, index, threads)
    if table_only or index is None:
        typer.echo(format_nulls(nulls_table(loaded, estimator_hash(loaded), names, index)))


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
    loaded = _load(config)
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_joint
    from ..validate.primary import measure_primary, read_joint, write_joint

    measure_primary(loaded, set_name, index)
    digest = estimator_hash(loaded)
    joint = read_joint(loaded, digest, set_name, index)
    true = read_joint(loaded, digest, set_name, index, true_kappa=True)
    typer.echo(format_joint(joint, true, largest))
    if out is not None:
        provenance = {"configuration": loaded.name, "set": set_name, "network_sha256": digest}
        typer.echo(write_joint(joint, out, provenance))


@app.command()
def ship(config: ConfigFile) -> None:
    """Collect bandpowers, derivatives and nuisances in one small file to commit (key `shipped`)."""
    loaded = _load(config)
    from ..calibrate.shipping import ship_products

    counts = ship_products(loaded)
    for what, number in counts.items():
        typer.echo(f"{number:4d} skies of {what}")
    typer.echo(f"{loaded.shipped} ({loaded.shipped.stat().st_size / 1e6:.2f} MB)")


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
    _config_module()  # tells what to install if it is the pipeline that is missing
    from ..calibrate.assemble import make_calibrated_release, make_data_release, make_release
    from ..likelihood.release import read_release, write_release
    from ..reconstruct.files import estimator_hash

    path = out or (data[0].with_name("release.json") if data else None)
    if calibration is not None:
        release = make_calibrated_release(data, read_release(calibration), path.stem)
    else:
        loaded = _load(config)
        digest = estimator_hash(loaded)
        if data:
            release = make_data_release(loaded, digest, data, path.stem)
        else:
            release = make_release(loaded, digest, survey, sky)
            path = path or loaded.release_path(survey, sky)
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
    from ..likelihood.release import read_release
    from ..reconstruct.files import check_network

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
    loaded = _load(config)
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_noise, format_residual
    from ..validate.tables import noise_table, residual_table

    digest = estimator_hash(loaded)
    if on:
        typer.echo(format_residual(residual_table(loaded, digest, on, merge)))
    else:
        typer.echo(format_noise(noise_table(loaded, digest, merge)))


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
    _config_module()
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
    loaded = [member for config in configs for member in _load_study(config).values()]
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_comparison
    from ..validate import tables

    hashes = [estimator_hash(config) for config in loaded]
    typer.echo(format_comparison(tables.compare(loaded, hashes, merge)))


@app.command()
def forecast(
    configs: Annotated[list[Path], typer.Argument(help="Pipeline configurations or studies.")],
) -> None:
    """Print what one patch tells about omch2 (Fisher), with and without a debias that follows."""
    loaded = [member for config in configs for member in _load_study(config).values()]
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_forecasts
    from ..validate import forecast

    found = {c.name: forecast.forecast(c, estimator_hash(c)) for c in loaded}
    typer.echo(format_forecasts(found))


@app.command()
def recover(
    config: ConfigFile,
    patches_each: Annotated[int, typer.Option(min=1, help="Patches per survey.")] = 1,
) -> None:
    """Maximum-likelihood ω_c of the surveys' patches, and the null-hypothesis test."""
    loaded = _load(config)
    from ..calibrate.assemble import make_releases
    from ..reconstruct.files import estimator_hash
    from ..report.text import format_recovery

    digest = estimator_hash(loaded)
    releases = make_releases(loaded, digest, dict.fromkeys(loaded.surveys, 0))
    typer.echo(format_recovery(loaded, digest, releases, patches_each))


@app.command()
def report(
    plan: Annotated[Path, typer.Argument(help="What to put side by side (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Folder; the plan's if absent.")] = None,
) -> None:
    """Put the paper's figures and numbers beside ours, from products: an HTML page and tables."""
    _config_module()
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
    from ..report.posteriors import format_marginals, load_chain, marginals, plot_posteriors

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
    from ..report.text import format_predictive
    from ..validate.predictive import draw_predictive
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
    _config_module()
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
    _config_module()
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
    loaded = _load(config)
    from ..report import figures

    typer.echo(figures.draw(loaded, stage, out))


def _load(path: Path):
    return _config_module().load_config(path)


def _load_study(path: Path):
    return _config_module().load_study(path)


def _config_module():
    """The pipeline's configuration, if the pipeline is installed: told before anything starts."""
    for name in PIPELINE_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise _not_installed(name)
    from ..pipeline import config

    return config


def _not_installed(package: str) -> CNNLensError:
    return CNNLensError(
        f"this command needs the pipeline, of which {package} is not installed; "
        "install it with: pip install '.[pipeline]'"
    )


def _network(config):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from ..reconstruct.files import estimator_hash, networks_hash

    digest = estimator_hash(config)  # a missing network is told before Keras is loaded
    if config.baseline is None:  # nor do bandpowers that are shipped replace it
        networks_hash(config.network_paths)
    from ..pipeline.estimators import estimator_for

    return estimator_for(config), digest


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
