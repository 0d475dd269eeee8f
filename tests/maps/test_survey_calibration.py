"""A survey's calibration: what simulated tiles are seen with, and the release of a calibration
written by hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens import products
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError, ProductError, ReleaseError
from cobaya_cnnlens.likelihood.fields import NUISANCES, SIMULATED, Group
from cobaya_cnnlens.likelihood.release import DATA_DIRECTORY, read_release, write_release
from cobaya_cnnlens.maps import assembly, calibration
from cobaya_cnnlens.maps.bandpower_file import MapBandpowers
from cobaya_cnnlens.maps.calibration import SurveyCalibration
from cobaya_cnnlens.maps.comparison import Scaling
from cobaya_cnnlens.maps.job import Job
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import Plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.simulated import SeenAs, neighbours, subset_in_turn, tiles_in_turn
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.tiles import Footprint, Tile
from cobaya_cnnlens.maps.weights import shares
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.perturbations import perturbed_sky
from cobaya_cnnlens.pipeline.power import power_of
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.calibration_settings import Fit
from cobaya_cnnlens.simulate.instrument import ARCMIN, Systematics, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.perturbed_skies import Observation

from .test_survey import SIDE, TAPER, toy_configuration
from .test_survey_weights import MODES, N_BINS, N_TILES, NOISE, RESPONSE, SIGNAL, drawn

FLAT = PatchGeometry(SIDE, 32, pad=0)
LEVELS = np.array([40.0, 90.0, 41.0, 60.0, 88.0, 61.0])  # µK-arcmin: three classes of two


def plan_of(levels=LEVELS):
    """Tiles of these depths, the second with a hole."""
    tiles = []
    for i, level in enumerate(levels):
        ivar = np.full((2, 32, 32), 0.5 * (FLAT.pixel / ARCMIN / level) ** 2)
        if i == 1:
            ivar[:, 10:13, 12:15] = 0.0
        centre = np.array([1.2, 0.7 * i])
        tiles.append(Tile(i, centre, FLAT, cosine_mask(FLAT, TAPER), ivar))
    sources = Sources(("a.fits", "b.fits"), level="60")
    footprint = Footprint(8, np.arange(3))
    return Plan(Path("toy.yaml"), sources, {"a": 1}, FLAT, TAPER, "C", 400, tuple(tiles), footprint)


class Flat:
    """κ̂ = 2 Q where something was seen, whatever the noise."""

    def reconstruct(self, q, u, rms):
        return np.where(np.isfinite(rms), 2.0 * q, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    content = toy_configuration(tmp_path_factory.mktemp("toy"))
    content |= {
        "centres": {"nside": 1, "poles": 0},  # 12 patches of a sky
        "skies": {"train": 1, "validation": 1, "test": 1, "derivatives": 1},
        "data_debias": True,
        "nuisances": {"patches": 4},
    }
    content["derivatives"] |= {"patches": 6, "ee_edges": [2, 200, 401]}
    return Run(Config.model_validate(content), "a" * 64, Flat())


# Simulated tiles


def test_patches_take_the_tiles_in_turn():
    """Every tile as often as another, to one, and few of them of all depths."""
    plan = plan_of()
    np.testing.assert_array_equal(np.bincount(tiles_in_turn(plan, 12)), np.full(6, 2))
    assert set(LEVELS[tiles_in_turn(plan, 3)]) == {40.0, 60.0, 88.0}
    counts = np.bincount(tiles_in_turn(plan, 15), minlength=6)
    assert sorted(counts) == [2, 2, 2, 3, 3, 3]
    tiles = tiles_in_turn(plan, 18)
    np.testing.assert_array_equal(np.bincount(tiles[subset_in_turn(6, 18, 12)]), np.full(6, 2))
    assert set(LEVELS[tiles[subset_in_turn(6, 18, 3)]]) == {40.0, 60.0, 88.0}
    assert len(subset_in_turn(6, 18, None)) == 18


def test_pairs_of_patches_lie_side_by_side(run):
    index, row = neighbours(run, "test", 8)
    assert (index == 0).all()
    np.testing.assert_array_equal(row, [0, 1, 2, 3, 6, 7, 8, 9])
    with pytest.raises(ConfigError, match=r"set 'test' has 1 skies of 12 patches, and 13 are"):
        neighbours(run, "test", 13)


def test_a_simulated_tile_has_the_tiles_noise_and_holes(run):
    """Its rms over draws, pixel by pixel, is the tile's, 5% more with that much more noise; nothing
    in the hole; κ̂'s power is that of the noise in closed form."""
    plan = plan_of()
    tiles = np.full(300, 1)
    seen = SeenAs(run, plan, "test", 0, np.arange(300), tiles)
    noise = seen.noise()
    tile = plan.tiles[1]
    assert not noise[:, :, ~tile.seen].any()
    rms = noise.std((0, 1))[tile.seen]
    np.testing.assert_allclose(rms.mean(), tile.rms[tile.seen][0], rtol=0.005)
    more = seen.noise(Systematics(noise=0.05))
    np.testing.assert_allclose(more, 1.05 * noise, rtol=1e-5)
    still = np.zeros((300, 40, 40))
    q, u = seen.observe(still, still)
    np.testing.assert_allclose(q, noise[0] * tile.mask, atol=1e-6)
    bright, _ = seen.observe(still + 7.0, still)
    assert not bright[:, ~tile.seen].any()
    assert bright[:, tile.seen].mean() > 1.0
    found = seen.measure(q, u)[:, :N_BINS].mean(0)
    area = (cosine_mask(FLAT, TAPER) ** 2).sum()
    level = (tile.rms[tile.seen][0] * FLAT.pixel) ** 2
    expected = 4.0 * level * (tile.mask**2).sum() / area
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_what_cannot_calibrate_is_refused(run):
    plan = plan_of()
    for patches, message in (
        (5, r"--patches 5: toy.yaml has 6 tiles, .* give --patches 24"),
        (6, "too few for the covariance of 4 bins"),
        (13, "lower --patches"),
    ):
        with pytest.raises(ConfigError, match=message):
            SurveyCalibration(run, plan, Path(), patches).check()


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """All that is simulated of the toy survey."""
    folder = tmp_path_factory.mktemp("calibration")
    SurveyCalibration(run, plan_of(), folder, 12).measure()
    return folder


def test_calibrating_resumes(run, measured, monkeypatch):
    """What is there is not made again; other maps of the same depth take it, and tiles of another
    depth do not."""
    plan, made = plan_of(), []
    original = calibration._Simulations.measure
    monkeypatch.setattr(
        calibration._Simulations, "measure", lambda *a: made.append(a[1]) or original(*a)
    )
    stage = SurveyCalibration(run, plan, measured, 12)
    stage.measure()
    assert not made
    before = stage.path.read_bytes()
    stage.path.unlink()
    part = calibration.Part(calibration.PartKind.BAND, "ee", 1)
    stage.part_path(part).unlink()
    stage.measure()
    assert made == [part]
    assert stage.path.read_bytes() == before
    replace(stage, plan=replace(plan, recipe={"a": 2})).measure()
    assert made == [part]
    with pytest.raises(ProductError, match="depth"):
        replace(stage, plan=plan_of(LEVELS + 1)).measure()


def test_more_patches_keep_the_derivatives(run):
    kinds = calibration.PartKind
    stage = SurveyCalibration(run, plan_of(), Path(), 8)
    more = replace(stage, n_patches=12)
    kept = {part.kind for part in stage.parts if stage.part_recipe(part) == more.part_recipe(part)}
    assert kept == {kinds.FIDUCIAL, kinds.SHIFTED, kinds.BAND}


def test_jobs_share_the_calibration(run, measured, tmp_path, monkeypatch):
    """Three jobs make every part once, the second before the first. What is joined then has the
    bytes of one run alone."""
    made = []
    original = calibration._Simulations.measure
    monkeypatch.setattr(
        calibration._Simulations, "measure", lambda *a: made.append(a[1]) or original(*a)
    )
    stage = SurveyCalibration(run, plan_of(), tmp_path, 12)
    for number in (2, 1, 3):
        before = len(made)
        stage.measure(job=Job(number, 3))
        assert made[before:] == stage.parts[number - 1 :: 3]
    assert not stage.path.exists()
    assert len(made) == len(stage.parts) == len(set(made))
    stage.measure()
    assert len(made) == len(stage.parts)
    alone = SurveyCalibration(run, plan_of(), measured, 12)
    assert stage.path.read_bytes() == alone.path.read_bytes()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1/3/2"])
def test_a_job_is_one_of_several(text):
    with pytest.raises(ConfigError, match=f"--job {text}: give K/N"):
        Job.parse(text)


def test_derivatives_are_of_the_tiles_maps(run, measured):
    """κ̂ is linear in the maps here: over all bands of E, ∂⟨κ̂κ̂*⟩/∂ ln C^EE is the cross power of
    the maps with what they are without noise, patch by patch; and so it is for E."""
    plan = plan_of()
    stage, arrays = SurveyCalibration.read(run, plan, measured)
    assert stage.n_patches == 12
    patches = stage.derivative_patches()
    still = np.zeros((6, 40, 40))
    noise = patches.measure(*patches.observe(still, still))
    bench = perturbed_sky(
        run,
        0,
        measured=patches.measure,
        observation=Observation(run.config.instrument, 0 * patches.noise(), patches.mask),
    )
    clean = bench.unperturbed()["auto"]
    whole = np.hstack([arrays["fiducial_auto"][0], arrays["fiducial_power"][0]])
    found = np.hstack([arrays["ee_auto"].sum(0), arrays["ee_power"].sum(0)])
    # To ε²/8.
    np.testing.assert_allclose(
        found, 0.5 * (whole + clean - noise), rtol=5e-3, atol=5e-3 * whole.mean()
    )


FIDUCIAL, OTHER = {"omch2": 0.1185}, {"omch2": 0.13}


def with_points(run, patches=4, changes=(FIDUCIAL, *[OTHER] * 5)):
    """The configuration with a response surface in one direction of each spectrum."""
    fit = Fit(cosmologies=list(changes), patches=patches, directions=1)
    points = run.config.points.model_copy(update={"fit": fit})
    return Run(run.config.model_copy(update={"points": points}), run.estimator_id, run.estimator)


def test_test_patches_are_made_again_at_other_cosmologies(run, measured, tmp_path):
    """At the fiducial cosmology a point has the κ̂, κ and power of its test patches, with their
    noise and tiles. At another one the true κ follows C^κκ. The other parts are not made again."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    (tmp_path / "calibration.h5").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    stage = SurveyCalibration(with_points(run), plan_of(), tmp_path, 12)
    stage.measure()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    _, arrays = SurveyCalibration.read(stage.run, stage.plan, tmp_path)
    first, second = (stage.point_rows(point) for point in stage.points[:2])
    assert not set(first) & set(second)
    for name in ("auto", "truth", "power"):
        np.testing.assert_allclose(
            arrays[f"point_{name}"][0], arrays[f"test_{name}"][first], rtol=1e-4
        )
    ratio = arrays["point_truth"][1] / arrays["test_truth"][second]
    new, old = (run.spectra(run.config.cosmology.vary(**c)).kk[18:258] for c in (OTHER, FIDUCIAL))
    np.testing.assert_allclose(ratio.mean(), (new / old).mean(), rtol=0.02)


# The release


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """A calibration and a survey's bandpowers as products, of numbers that are known."""
    plan, folder = plan_of(), tmp_path_factory.mktemp("written")
    generator, n = np.random.default_rng(7), 60
    run = Run(
        run.config.model_copy(
            update={
                "centres": run.config.centres.model_copy(update={"nside": 2, "poles": 8}),
                "skies": run.config.skies.model_copy(update={"test": 2}),
            }
        ),
        run.estimator_id,
    )
    signal = 1e-7 * SIGNAL
    noise = 1e-7 * NOISE
    n_power = len(power_of(run).e_edges)
    arrays = {}
    stage = SurveyCalibration(run, plan, folder, n)
    for name, count in stage.counts.items():
        tiles = tiles_in_turn(plan, count)
        found = drawn(generator, tiles, RESPONSE, noise, signal, MODES)
        arrays |= {f"{name}_{key}": values for key, values in vars(found).items()}
        arrays[f"{name}_power"] = 1.0 + 0.1 * generator.standard_normal((count, n_power))
    which = stage.derivative_patches()
    shape = (1, len(which.tiles))

    def some(*lead):
        return 1e-8 * generator.standard_normal((*lead, shape[1], N_BINS))

    for what, count in (("fiducial", 1), ("shifted", 2), ("kk", 2), ("ee", 2)):
        arrays[f"{what}_auto"] = some(count) + 1e-7
        arrays[f"{what}_power"] = 0.1 * generator.standard_normal((count, shape[1], n_power)) + 1
        if what != "ee":
            arrays[f"{what}_truth"] = some(count) + 5e-8
    rows = stage.nuisance_patches()
    for name in SIMULATED:
        arrays[f"{name}_auto"] = arrays["test_auto"][rows] * np.array([0.9, 1.1])[:, None, None]
        arrays[f"{name}_power"] = arrays["test_power"][rows] * np.array([0.9, 1.1])[:, None, None]
    products.write_product(stage.path, calibration.KIND, stage.recipe, arrays)
    data = drawn(generator, np.arange(N_TILES), RESPONSE, noise, signal, MODES)
    whole = MapBandpowers(
        data.auto,
        1.0 + 0.1 * generator.standard_normal((N_TILES, n_power)),
        np.array([0.002, 1.0]) + 0.001 * generator.standard_normal((N_TILES, 2)),
        plan.centres,
        plan.frame,
        "a.fits, b.fits",
        ("the polarisation is turned",),
    )
    tiles = TileReconstruction(plan, MapSetup.of_run(run), folder)
    whole.write(tiles.path, tiles.recipe)
    return run, plan, folder, arrays, whole


def test_the_release_is_the_weighted_sum(written, tmp_path):
    """d, N, derivatives and own power against the formulas, patch by patch."""
    run, plan, folder, arrays, data = written
    release = assembly.make_release(run, plan, folder, "toy")
    calibrated = assembly.Calibrated.read(run, plan, folder)
    stage, weights = calibrated.calibration, calibrated.weights
    label = weights.label
    np.testing.assert_array_equal(label, [0, 3, 0, 1, 2, 1])  # the hole makes a class
    tiles = tiles_in_turn(plan, 30)
    for c in range(4):
        rows = label[tiles] == c
        response = arrays["validation_cross"][rows].sum(0) / arrays["validation_truth"][rows].sum(0)
        np.testing.assert_allclose(weights.response[c], response, rtol=1e-12)
    tiles = tiles_in_turn(plan, 60)
    r2 = weights.response[label] ** 2
    by_tile = arrays["test_auto"] / r2[tiles] - arrays["test_truth"]
    noise = sum(weights.weight[t] * by_tile[tiles == t].mean(0) for t in range(N_TILES))
    np.testing.assert_allclose(release.noise, noise, rtol=1e-9)
    d = (weights.weight * data.auto / r2).sum(0) - noise
    np.testing.assert_allclose(release.bandpowers, d, rtol=1e-9)
    # What was suspicious of the maps stays.
    assert release.warnings[0] == "the polarisation is turned"
    assert "convergence bandpowers (refining network), debiased" in release.description
    assert release.n_patches == N_TILES
    assert N_BINS + 2 < release.n_sim < 60
    seen = stage.derivative_patches().tiles
    u = shares(seen, weights.weight)
    kk = (u * (arrays["kk_auto"][1] / r2[seen] - arrays["kk_truth"][1])).mean(0)
    debiased = kk - release.debias_coefficients @ release.power_kk_derivatives[:, 1]
    np.testing.assert_allclose(release.kk_derivatives[:, 1], debiased, rtol=1e-9)
    gain = NUISANCES.index("gain")
    rows = stage.nuisance_patches()
    u = shares(tiles[rows], weights.weight)
    first = 0.1 / run.config.nuisances.gain * arrays["test_auto"][rows] / r2[tiles[rows]]
    np.testing.assert_allclose(
        release.fixed_nuisance_first[:, gain], (u * first).mean(0), rtol=1e-9
    )
    modes = np.array([tile.weight for tile in plan.tiles])
    own = (modes[:, None] * data.power).sum(0) / modes.sum()
    np.testing.assert_allclose(release.power, own, rtol=1e-12)
    ((angle, error, share),) = release.rotation
    x, y = modes @ data.rotation
    assert np.tan(np.radians(4 * angle)) == pytest.approx(x / y, rel=1e-9)
    across = modes * (data.rotation[:, 0] - x / y * data.rotation[:, 1])
    scatter = np.sqrt(N_TILES / (N_TILES - 1) * np.sum(across**2)) / y / 4
    assert np.radians(error) == pytest.approx(scatter, rel=1e-4)
    assert share == 1
    assert release.instrument["noise"] == pytest.approx(np.mean(LEVELS**-2.0) ** -0.5, rel=0.01)
    write_release(release, tmp_path / "toy.json")
    again = read_release(tmp_path / "toy.json")
    assert again.provenance["survey"]["tiles"] == list(range(N_TILES))
    # It calibrates no other maps.
    with pytest.raises(ReleaseError, match=r"provenance\.survey"):
        MapSetup.of_release(again)


def test_the_response_surface_is_of_the_weighted_tiles(written, tmp_path):
    """Changes of d − signal and of p̂ at other cosmologies, against the formulas; they reach the
    release, scaled with the experiment's simulations."""
    run, plan, folder, arrays, data = written
    run = with_points(run, 12, [{"omch2": value} for value in np.linspace(0.105, 0.135, 6)])
    stage = SurveyCalibration(run, plan, tmp_path, 60)
    factors = np.linspace(0.75, 1.2, 6)
    rows = [stage.point_rows(point) for point in stage.points]
    # Both skies, and no patch twice while there are others.
    assert len(np.unique(np.concatenate(rows[:4]))) == 48
    more = {
        f"point_{name}": np.stack(
            [f * arrays[f"test_{name}"][r] for f, r in zip(factors, rows, strict=True)]
        )
        for name in ("auto", "truth", "power")
    }
    products.write_product(stage.path, calibration.KIND, stage.recipe, arrays | more)
    tiles = TileReconstruction(plan, MapSetup.of_run(run), tmp_path)
    data.write(tiles.path, tiles.recipe)
    calibrated = assembly.Calibrated.read(run, plan, tmp_path)
    points, weights = calibrated.fit_points(), calibrated.weights
    seen = tiles_in_turn(plan, 60)
    r2 = weights.response[weights.label[seen]] ** 2
    noise = arrays["test_auto"] / r2 - arrays["test_truth"]
    for i, factor in enumerate(factors):
        here = rows[i]
        u = shares(seen[here], weights.weight)
        change = (factor - 1.0) * (u * noise[here]).mean(0)
        np.testing.assert_allclose(points.noise[i].mean(0), change, rtol=1e-9, atol=1e-20)
        u = shares(seen[here], weights.modes[:, None])
        change = (factor - 1.0) * (u * arrays["test_power"][here]).mean(0)
        np.testing.assert_allclose(points.power[i].mean(0), change, rtol=1e-9, atol=1e-12)
    scaled = Scaling(np.full(N_BINS, 2.0), np.full(points.power.shape[2], 3.0)).points(calibrated)
    np.testing.assert_allclose(scaled.noise, 2.0 * points.noise)
    np.testing.assert_allclose(scaled.power, 3.0 * points.power)
    release = assembly.make_release(run, plan, tmp_path, "toy")
    plain = assembly.make_release(written[0], plan, folder, "toy")
    assert release.has(Group.SECOND_ORDER)
    assert not plain.has(Group.SECOND_ORDER)


def test_a_release_needs_patches_enough(written, monkeypatch):
    run, plan, folder, *_ = written
    monkeypatch.setattr(assembly, "effective_number", lambda *_: 6)
    with pytest.raises(ConfigError, match=r"worth 6 alike, and 4 bins need 7; calibrate with more"):
        assembly.make_release(run, plan, folder, "toy")


def test_the_commands(written, measured, run, tmp_path, monkeypatch):
    """`survey calibrate` finds what is there, `survey release` writes; what cannot be is one error,
    before anything slow."""
    of_release, plan, folder, *_ = written
    monkeypatch.setattr("cobaya_cnnlens.maps.plan.read_plan", lambda _: plan)

    def cnnlens(given, *words):
        monkeypatch.setattr("cobaya_cnnlens.cli.runs.load", lambda _: given)
        return CliRunner().invoke(app, ["survey", *map(str, words), "--config", "toy.yaml"])

    done = cnnlens(run, "calibrate", "toy.yaml", "--out", measured, "--patches", 12)
    assert done.exception is None, done.exception
    assert done.output.strip() == str(measured / "calibration.h5")
    few = cnnlens(run, "calibrate", "toy.yaml", "--out", measured, "--patches", 5)
    assert "give --patches 24" in str(few.exception)
    out = tmp_path / "mine.json"
    done = cnnlens(of_release, "release", "toy.yaml", "--products", folder, "--out", out)
    assert done.exception is None, done.exception
    assert read_release(out).name == "mine"
    none = cnnlens(run, "release", "toy.yaml", "--products", tmp_path)
    assert isinstance(none.exception, ProductError)
    assert "run `cnnlens survey reconstruct PLAN`" in str(none.exception)
    network = run.config.network.model_copy(update={"kind": "resunet"})
    plain = Run(run.config.model_copy(update={"network": network}), run.estimator_id)
    wrong = cnnlens(plain, "calibrate", "toy.yaml", "--out", tmp_path)
    assert "toy.yaml: key 'network.kind' is not 'refined'" in str(wrong.exception)


def test_a_survey_is_blinded_as_it_is_made(run, tmp_path, monkeypatch):
    """By a key, until that opens it; an open one does not take its place by mistake."""
    monkeypatch.setattr("cobaya_cnnlens.maps.plan.read_plan", lambda _: None)
    monkeypatch.setattr("cobaya_cnnlens.cli.runs.load", lambda _: run)
    made = read_release("survey_mock")
    monkeypatch.setattr(assembly, "make_release", lambda *_: made)
    key, hidden, opened = (tmp_path / name for name in ("key.txt", "mine.json", "open.json"))
    key.write_text("key 0 of these tests")

    def cnnlens(*words):
        return CliRunner().invoke(app, list(map(str, words)))

    release = ("survey", "release", "toy.yaml", "--config", "toy.yaml", "--out", hidden)
    done = cnnlens(*release, "--blind", key)
    assert done.exception is None, done.exception
    assert read_release(hidden).blinding
    assert (read_release(hidden).bandpowers != made.bandpowers).all()
    assert "holds a blinded release" in str(cnnlens(*release).exception)
    done = cnnlens("release", "unblind", hidden, "--key", key, "--out", opened)
    assert done.exception is None, done.exception
    assert opened.read_text() == (DATA_DIRECTORY / "survey_mock.json").read_text()
