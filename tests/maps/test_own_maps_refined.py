"""A user's own maps with a release that a refining network made."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from cobaya.yaml import yaml_load_file
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import NetworkError, ReleaseError
from cobaya_cnnlens.likelihood.release import write_release
from cobaya_cnnlens.maps import bandpower_file, map_setup
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.release_estimator import fiducial_spectra, release_estimator
from cobaya_cnnlens.pipeline import release_networks
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import check_network, find_networks
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.features import PASSES
from cobaya_cnnlens.reconstruct.files import estimator_hash, kind_of, networks_hash
from cobaya_cnnlens.reconstruct.learned import learned_estimator
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, RefiningUNet, load_refining
from cobaya_cnnlens.reconstruct.resunet import NetworkEstimator, ResUNet
from cobaya_cnnlens.simulate.instrument import Instrument, draw_noise
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies
from cobaya_cnnlens.theory.camb import Cosmology, compute_spectra, settings_record

from ..conftest import REPOSITORY, synthetic_release

# Depth varies: features of another noise than the instrument's would show.
INSTRUMENT = Instrument(1.5, 1.2, 0.4, depth_ratio=4.0)
CENTRES = [[120.0, 40.0], [-75.5, -20.0]]  # longitude, latitude


def save_refining(path, seed):
    """A network whose corrections are not zero, as an untrained one's are."""
    network = RefiningUNet(4)
    generator = np.random.default_rng(seed)
    network.set_weights(
        [w + 0.05 * generator.standard_normal(w.shape) for w in network.get_weights()]
    )
    network.save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a ResUNet, the refining network of the release, and another one."""
    folder = tmp_path_factory.mktemp("networks")
    ResUNet(width=4).save(folder / "maps.keras")
    for seed, name in enumerate(("mine", "other")):
        save_refining(folder / f"{name}.keras", seed)
    return {path.stem: path for path in sorted(folder.glob("*.keras"))}


def run_of(folder, *networks, **changes):
    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    network = {"kind": "refined", "pretrained": list(networks)} | changes
    return Run(
        config.model_copy(
            update={
                "network": config.network.model_copy(update=network),
                "instrument": INSTRUMENT,
                "products": folder / "products",
            }
        )
    )


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"), files["mine"])


@pytest.fixture(scope="module")
def release(run):
    """What :mod:`~cobaya_cnnlens.pipeline.assemble` records of the run, with made-up numbers."""
    config, spectra = run.config, run.spectra()
    return synthetic_release(
        n_bins=run.bandpowers.bins.n_bins,
        edges=run.bandpowers.bins.edges,
        fiducial_kk=spectra.kk[:2600],
        fiducial_ee=spectra.ee[:2600],
        theory=settings_record(config.cosmology, config.camb),
        instrument={
            "noise": INSTRUMENT.noise_uk_arcmin,
            "beam_fwhm": INSTRUMENT.beam_fwhm_arcmin,
            "mask_taper_deg": INSTRUMENT.taper_deg,
            "depth_ratio": INSTRUMENT.depth_ratio,
            "patch_deg": config.patch.size_deg,
            "patch_pixels": config.patch.n_pixels,
        },
        provenance={"network_sha256": run.estimator_id},
    )


@pytest.fixture(scope="module")
def observed(run):
    """Unmasked, beamed, noisy Q and U of two patches, (2, 64, 64) each."""
    clear = replace(INSTRUMENT, noise_uk_arcmin=0.0, depth_ratio=None)
    skies = PeriodicSkies(PatchGeometry(10.0, 128), clear, run.spectra())
    generator = np.random.default_rng(8)
    draws = [(skies.draw("e", generator), skies.draw("phi", generator)) for _ in CENTRES]
    p = np.array([skies.lensed(*draw)[:64, :64] for draw in draws])
    noise = draw_noise((2, *p.shape), INSTRUMENT, run.config.patch, generator)
    return p.real + noise[0], p.imag + noise[1]


def command(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def told(error, *arguments):
    """The one line that a command ends with."""
    result = command(*arguments)
    assert isinstance(result.exception, error), result.exception
    return str(result.exception)


def test_the_release_reconstructs_as_its_run_does(
    run, release, observed, files, tmp_path, monkeypatch
):
    """κ̂ and bandpowers of own maps, with the network found among shipped ones of either kind."""
    monkeypatch.setattr(release_networks, "NETWORKS", files["mine"].parent)
    q, u = observed
    np.savez(tmp_path / "m.npz", q=q, u=u, centres=CENTRES)
    write_release(release, tmp_path / "r.json")
    out = tmp_path / "out"
    result = command("reconstruct", tmp_path / "r.json", "--maps", tmp_path / "m.npz", "--out", out)
    assert result.exception is None, result.exception
    assert "warning:" not in result.output
    expected = run.estimator.reconstruct(q * run.mask, u * run.mask)
    found = [fits.getdata(out / f"kappa_{i:03d}.fits")[:, ::-1] for i in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
    path = out / "bandpowers.h5"
    with products.open_product(path, bandpower_file.KIND, map_setup.recipe(run)) as product:
        np.testing.assert_allclose(product.array("auto"), run.bandpowers.auto(expected), rtol=1e-3)


def test_the_estimator_knows_the_instruments_noise(run, release, observed, files):
    """Of every pixel, and its beam, mask and theory: built here by hand."""
    patch = run.config.patch
    ascent = MAPLensing(patch, INSTRUMENT, run.mask, run.spectra(), PASSES)
    by_hand = RefinedEstimator(ascent, [load_refining(files["mine"])])
    maps = [m[:1] * run.mask for m in observed]
    expected = by_hand.reconstruct(*maps, rms=INSTRUMENT.noise_rms(patch))
    found = release_estimator(MapSetup.of_release(release), [files["mine"]])().reconstruct(*maps)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


def test_the_mean_of_several_networks(run, release, observed, files, tmp_path):
    both = [files["other"], files["mine"]]
    release = replace(release, provenance={"network_sha256": estimator_hash(both[::-1])})
    assert find_networks(release, both) == both
    maps = [m[:1] * run.mask for m in observed]
    found = release_estimator(MapSetup.of_release(release), both)().reconstruct(*maps)
    each = [run_of(tmp_path, path).estimator.reconstruct(*maps) for path in both]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-4 * found.std())
    assert np.std(each[0] - each[1]) > 0.01 * found.std()


def test_the_network_that_made_the_release_and_no_other(release, files, tmp_path):
    write_release(release, tmp_path / "r.json")
    check = ("release", "show", tmp_path / "r.json", "--network")
    assert "was made with" in command(*check, files["mine"]).output
    wrong = told(NetworkError, *check, files["other"])
    assert "other.keras: the hash of its weights and features is" in wrong
    assert "release 'synthetic' names" in wrong
    assert "maps.keras: the hash of its weights is" in told(NetworkError, *check, files["maps"])
    maps = ("reconstruct", tmp_path / "r.json", "--maps", tmp_path / "none.npz")
    assert "other.keras: the hash of its" in told(NetworkError, *maps, "--network", files["other"])
    assert "name its file with --network" in told(NetworkError, *maps)
    # Features count: the weights alone are not the estimator.
    weights = networks_hash([files["mine"]])
    with pytest.raises(NetworkError, match="weights and features"):
        check_network(replace(release, provenance={"network_sha256": weights}), [files["mine"]])
    # Of a ResUNet they are.
    assert estimator_hash([files["maps"]]) == networks_hash([files["maps"]])


def test_kinds_are_not_mixed(run, release, files, tmp_path):
    both = [files["maps"], files["mine"]]
    message = r"different kinds have no mean: .*maps.keras holds a ResUNet, .*a RefiningUNet"
    for kind in ("refined", "resunet"):
        mixed = run_of(tmp_path, *both, kind=kind)
        for name in ("estimator_id", "estimator"):
            with pytest.raises(NetworkError, match=message):
                getattr(mixed, name)
    with pytest.raises(NetworkError, match=message):
        find_networks(release, both)
    with pytest.raises(NetworkError, match=message):
        learned_estimator(both, run.config.patch, INSTRUMENT, run.mask, run.spectra)
    write_release(release, tmp_path / "r.json")
    named = [part for path in both for part in ("--network", path)]
    assert "different kinds" in told(NetworkError, "release", "show", tmp_path / "r.json", *named)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("resunet", "mine", "mine.keras: holds a RefiningUNet, not a ResUNet; .*network.kind"),
        ("refined", "maps", "maps.keras: holds a ResUNet, not a RefiningUNet; .*network.kind"),
    ],
)
def test_a_configuration_of_the_other_kind(files, tmp_path, kind, name, message):
    other = run_of(tmp_path, files[name], kind=kind)
    for attribute in ("estimator_id", "estimator"):
        with pytest.raises(NetworkError, match=message):
            getattr(other, attribute)


def test_what_training_goes_on_from_is_no_estimator(files, tmp_path):
    path = tmp_path / "learner.keras"
    with zipfile.ZipFile(files["mine"]) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.namelist():
            content = source.read(member)
            if member == "config.json":
                named = {"registered_name": "cobaya_cnnlens>RefiningLearner"}
                content = json.dumps(json.loads(content) | named)
            target.writestr(member, content)
    with pytest.raises(NetworkError, match=r"learner\.keras: holds a RefiningLearner, neither"):
        kind_of([path])


def test_b_modes_without_weight_are_those_of_the_release(run, release, observed, files):
    """By a configuration as by its release, and by the steps built by hand. A ResUNet has none."""
    patch, low = run.config.patch, {"lmin_b": 700}
    steps = MAPLensing(patch, INSTRUMENT, run.mask, run.spectra(), PASSES, **low)
    maps = [m[:1] * run.mask for m in observed]
    expected = RefinedEstimator(steps, [load_refining(files["mine"])]).reconstruct(*maps)
    made = replace(release, provenance=release.provenance | low)
    reconstruction = run.config.reconstruction.model_copy(update=low)
    configured = Run(run.config.model_copy(update={"reconstruction": reconstruction}))
    assert MapSetup.of_run(configured).lmin_b == MapSetup.of_release(made).lmin_b == 700
    for estimator in (
        release_estimator(MapSetup.of_release(made), [files["mine"]])(),
        configured.estimator,
    ):
        kappa = estimator.reconstruct(*maps)
        np.testing.assert_allclose(kappa, expected, atol=1e-4 * expected.std())
    assert np.std(run.estimator.reconstruct(*maps) - expected) > 0.01 * expected.std()
    assert map_setup.recipe(configured) == map_setup.recipe(run) | low
    with pytest.raises(NetworkError, match="a ResUNet on maps uses B modes of all multipoles"):
        learned_estimator([files["maps"]], patch, INSTRUMENT, run.mask, run.spectra, **low)


def test_symmetries_are_refused(release, files):
    averaged = replace(release, provenance=release.provenance | {"symmetries": 8})
    load = release_estimator(MapSetup.of_release(averaged), [files["mine"]])
    with pytest.raises(NetworkError, match="not averaged over symmetries; 'symmetries' is 8"):
        load()


def altered(release, section, **values):
    """The release with entries of its theory's record changed, or left out if None."""
    record = {**release.theory[section], **values}
    record = {key: value for key, value in record.items() if value is not None}
    return replace(release, theory=release.theory | {section: record})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("cosmology", {"tau": None}, r"'theory\.cosmology\.tau' is missing"),
        ("settings", {"lmax": None}, r"'theory\.settings\.lmax' is missing"),
        ("cosmology", {"w": -1.0}, r"'theory\.cosmology\.w' is none that is known"),
        ("cosmology", {"omch2": 3.0}, r"'theory\.cosmology\.omch2' is 3; .* between 0.01 and 0.5"),
        ("settings", {"lmax": 10**6}, r"'theory\.settings\.lmax' is 1e\+06; it must lie"),
        ("settings", {"lmax": "all"}, r"'theory\.settings\.lmax' is 'all'"),
        ("settings", {"lmax": True}, r"'theory\.settings\.lmax' is True"),
        ("settings", {"halofit_version": "x"}, r"'theory\.settings\.halofit_version' is 'x'"),
    ],
)
def test_a_record_that_does_not_suffice_is_told_before_maps_are_read(
    release, files, tmp_path, section, values, message
):
    write_release(altered(release, section, **values), tmp_path / "r.json")
    found = command(
        *("reconstruct", tmp_path / "r.json", "--network", files["mine"]),
        *("--maps", tmp_path / "none.npz"),
    )
    with pytest.raises(ReleaseError, match=message):
        raise found.exception


def test_a_theory_of_another_code(release, files):
    other = replace(release, theory=release.theory | {"code": "class"})
    with pytest.raises(ReleaseError, match=r"'theory\.code' is 'class', not 'camb'"):
        release_estimator(MapSetup.of_release(other), [files["mine"]])


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("cosmology", {"omch2": 0.1190}, r"'theory' gives .* of field 'fiducial\.kk', more than"),
        ("cosmology", {"tau": 0.0945}, r"'theory' gives .* of field 'fiducial\.ee', more than"),
        ("settings", {"lmax": 1000}, r"'theory\.settings\.lmax' is 1000, .*'fiducial\.kk' ends at"),
    ],
)
def test_a_record_of_another_theory_is_refused(release, files, section, values, message):
    """One that can be computed, but is not what the release was made with."""
    other = altered(release, section, **values)
    load = release_estimator(MapSetup.of_release(other), [files["mine"]])
    with pytest.raises(ReleaseError, match=message):
        load()


def test_the_record_gives_the_spectra_of_the_run(run, release):
    found, expected = fiducial_spectra(release), run.spectra()
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-6, err_msg=name)


def test_a_network_on_the_maps_asks_for_no_theory(release, files):
    """Releases whose record is another's go on with a ResUNet."""
    digest = estimator_hash([files["maps"]])
    other = replace(release, theory={}, provenance={"network_sha256": digest})
    load = release_estimator(MapSetup.of_release(other), find_networks(other, [files["maps"]]))
    assert isinstance(load(), NetworkEstimator)


def children_seconds():
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.slow
def test_from_a_patch_to_a_posterior_in_two_minutes(tmp_path):
    """By four commands, each a process of its own, with the shipped refining network: a patch of
    another cosmology → κ̂ → release → converged chain, whose omch2 is the patch's."""
    truth = 0.1285
    skies = PeriodicSkies(
        PatchGeometry(10.0, 256), Instrument(), compute_spectra(Cosmology(omch2=truth))
    )
    generator = np.random.default_rng(31)
    p = skies.lensed(skies.draw("e", generator), skies.draw("phi", generator))
    p = (p + skies.noise(generator))[None, :128, :128]
    np.savez(tmp_path / "patch.npz", q=p.real, u=p.imag)
    run = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
    run["likelihood"]["cobaya_cnnlens.CNNLens"]["release"] = "mine/release.json"
    run["params"]["omch2"]["proposal"] = 0.005  # one patch, not 160
    run["sampler"]["mcmc"]["seed"] = 1
    run["output"] = "chain"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    package = [sys.executable, "-m", "cobaya_cnnlens"]
    commands = [
        [*package, "reconstruct", "refined_fiducial", "--maps", "patch.npz", "--out", "mine"],
        [
            *(*package, "release", "make", "--data", "mine/bandpowers.h5"),
            *("--calibration", "refined_fiducial"),
        ],
        [sys.executable, "-m", "cobaya", "run", "run.yaml"],
        [*package, "plot", "chain"],
    ]
    # Of the processors: what else they do is no matter.
    seconds = []
    for arguments in commands:
        began = children_seconds()
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        seconds.append(children_seconds() - began)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "warning:" not in done.stderr
    said = ", ".join(f"{t:.0f} s" for t in seconds)
    print(f"CPU time of reconstruct, release make, cobaya-run, plot: {said}")
    assert sum(seconds) < 120
    columns = (tmp_path / "chain.1.txt").read_text().split("\n", 1)[0].lstrip("# ").split()
    samples = np.loadtxt(tmp_path / "chain.1.txt")
    weight, omch2 = samples[:, columns.index("weight")], samples[:, columns.index("omch2")]
    mean = np.average(omch2, weights=weight)
    sigma = np.sqrt(np.average((omch2 - mean) ** 2, weights=weight))
    assert 0.001 < sigma < 0.006
    assert abs(mean - truth) < 3.0 * sigma
    assert (tmp_path / "chain.png").exists()
