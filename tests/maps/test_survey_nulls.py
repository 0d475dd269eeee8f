"""Nulls of a survey's own maps: those of a mock of the sphere hold, and each systematic that is
planted breaks those that it should, and no other. Toy pixels: tiles of 20° with 32² pixels."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import healpy
import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError, ConfigError, ProductError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.declarations import Blinding
from cobaya_cnnlens.likelihood.release import read_release, write_release
from cobaya_cnnlens.maps import reconstruction, tile_maps, tile_nulls, tiles
from cobaya_cnnlens.maps.halves import Halves
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import array_path, make_plan, read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.tile_maps import TileMaps, TilePatches
from cobaya_cnnlens.maps.tile_nulls import Choices, TileNulls
from cobaya_cnnlens.plots.validation_figures import survey_nulls_figure
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.bandpowers import Bins
from cobaya_cnnlens.simulate.instrument import ARCMIN, Instrument
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.validate import survey_nulls as judged
from cobaya_cnnlens.validate.null_tests import FAILED, null_test

from ..conftest import at_fiducial_power

NSIDE, LMAX = 256, 407
SIDE, TAPER, LEVEL, BEAM = 20.0, 2.0, 5.0, 60.0  # degrees, µK-arcmin, arcminutes
GEOMETRY = PatchGeometry(SIDE, 32)
# Of the two splits, of the coadd's inverse variance.
SHARES = (0.4, 0.6)


def write(path, planes, units=None):
    names = ["Q_STOKES", "U_STOKES"] if len(planes) == 2 else ["W"]
    healpy.write_map(path, planes, column_names=names, column_units=units, dtype=np.float64)
    return str(path)


class Quadratic:
    """κ̂ by the quadratic estimator, which asks for no rms."""

    def __init__(self, setup):
        self.own = QuadraticEstimator(setup.patch, setup.instrument, setup.mask, setup.theory)
        self.calls = 0

    def reconstruct(self, q, u, rms):
        self.calls += 1
        return self.own.reconstruct(q, u)


@pytest.fixture(scope="module")
def setup(fiducial):
    instrument = Instrument(LEVEL, BEAM, TAPER)
    made = MapSetup(*("toy", GEOMETRY, instrument, Bins(18, 60, 4), "a" * 64, {"toy": 1}, 1, None))
    # Waves longer than two tiles, which a matched simulation does not have, are left out.
    long = np.arange(len(fiducial.ee)) < 2 * GEOMETRY.fundamental
    cut = {name: np.where(long, 0.0, getattr(fiducial, name)) for name in ("ee", "lensed_ee")}
    vars(made)["theory"] = replace(fiducial, **cut)
    return made


@pytest.fixture(scope="module")
def plan(setup, tmp_path_factory):
    """A mock on the sphere: Gaussian skies of the lensed spectra, two splits, holes, and twice the
    variance in the south."""
    folder = tmp_path_factory.mktemp("survey")
    generator = np.random.default_rng(8)
    beam = setup.instrument.beam(np.arange(LMAX + 1))
    alm = [
        scale_alm(unit_alm(LMAX, generator), np.sqrt(cl[: LMAX + 1]) * beam)
        for cl in (setup.theory.lensed_ee, setup.theory.lensed_bb)
    ]
    q, u = healpy.alm2map_spin(alm, NSIDE, 2, LMAX)
    theta, _ = healpy.pix2ang(NSIDE, np.arange(len(q)))
    seen = np.abs(np.cos(theta)) < 0.6
    for number in range(12):
        centre = healpy.ang2vec(np.arccos(generator.uniform(-0.55, 0.55)), number * np.pi / 6)
        seen[healpy.query_disc(NSIDE, centre, np.radians(1.2))] = False
    ivar = healpy.nside2pixarea(NSIDE) / (LEVEL * ARCMIN) ** 2
    ivar = ivar * np.where(theta > 0.5 * np.pi, 0.5, 1.0)
    names = {"mask": write(folder / "mask.fits", [seen.astype(float)])}
    for i, share in enumerate(SHARES):
        noise = generator.standard_normal((2, len(q))) / np.sqrt(share * ivar)
        planes = [np.where(seen, m + n, np.nan) for m, n in zip((q, u), noise, strict=True)]
        names[f"map{i}"] = write(folder / f"map{i}.fits", planes, "uK")
        names[f"ivar{i}"] = write(folder / f"ivar{i}.fits", [share * ivar])
    sources = Sources(
        (names["map0"], names["map1"]), names["mask"], (names["ivar0"], names["ivar1"])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SHIFTS", 2)
        patch.setattr(tiles, "TURNS", 4)
        made = make_plan(folder / "toy.yaml", sources, setup.patch, TAPER)
    TileMaps(made, folder / "clean").measure()
    return made


def judge(plan, setup, folder, change=None, source="clean", **options):
    """The nulls of the mock, with its cut maps changed: a function of the split's number and
    Q + iU of all tiles."""
    clean = plan.path.parent / source
    for split in range(plan.n_splits):
        with products.open_product(TileMaps(plan, clean).path(split), tile_maps.KIND) as product:
            arrays = {name: product.array(name) for name in product.names()}
            wanted = product.recipe
        if change is not None:
            p = change(split, arrays["q"] + 1j * arrays["u"])
            arrays |= {"q": p.real, "u": p.imag}
        products.write_product(TileMaps(plan, folder).path(split), tile_maps.KIND, wanted, arrays)
    estimator = Quadratic(setup)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "check", lambda *_: [])
        TileReconstruction(plan, setup, folder).measure(lambda: estimator)
    choices = Choices.of(setup, **options)
    tests = TileNulls(TileReconstruction(plan, setup, folder), choices)
    tests.measure(lambda: estimator)
    return judged.survey_nulls(tests)


def of(table, name):
    return next(test for test in table.tests if test.name == name)


def copied(folder):
    """What a network has made is made again only where it is missing."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("nulls/tile_*.h5"))}


def test_the_difference_of_unequal_halves_is_noise_of_the_coadd(plan):
    """D of white noise has the coadd's variance, pixel by pixel, and does not know the coadd; of a
    sky that both halves see there is nothing in it."""
    tile, generator = plan.tiles[3], np.random.default_rng(2)
    difference, coadd = [], []
    for _ in range(400):
        rms = np.stack([np.where(tile.seen, tile.split_rms(i), 0.0) for i in range(2)])
        q, u = generator.standard_normal((2, 2, 32, 32)) * rms
        share = tile.split_ivar * tile.seen / np.maximum(tile.split_ivar.sum(0), 1e-30)
        maps = TilePatches(tile, q, u, (share * q).sum(0), (share * u).sum(0))
        difference.append(Halves.of(maps).difference[0] / np.where(tile.seen, tile.rms, 1.0))
        coadd.append(maps.q / np.where(tile.seen, tile.rms, 1.0))
    inner = tile.seen
    d, c = np.array(difference)[:, inner], np.array(coadd)[:, inner]
    assert np.mean(d**2) == pytest.approx(1.0, abs=0.01)
    assert np.mean(c**2) == pytest.approx(1.0, abs=0.01)
    assert abs(np.mean(d * c)) < 0.01
    sky = np.stack([generator.standard_normal((32, 32)) * tile.seen] * 2)
    same = Halves.of(TilePatches(tile, sky, 2.0 * sky, sky[0], sky[0]))
    assert np.abs(same.difference).max() < 1e-12
    alone = TilePatches(tile, sky[:1], sky[:1], sky[0], sky[0])
    assert Halves.of(alone) is None


def test_a_mock_of_the_sphere_has_no_null_that_fails(plan, setup, tmp_path):
    """All of them, though its matched simulations are flat, and the page shows each; what could not
    be had says why."""
    table = judge(plan, setup, tmp_path)
    assert len(plan.tiles) > 30
    assert min(test.pte for test in table.tests) > FAILED, table.table()
    assert np.mean([test.pte for test in table.tests]) == pytest.approx(0.5, abs=0.25)
    halves = [f"{what} {half}" for half in ("north", "east", "deep") for what in ("kappa", "E")]
    of_splits = ["noise", "gain", "null", "null x kappa", "splits"]
    names = [*of_splits, "rotation", "curl", "peaks", "l_max", *halves]
    assert [test.name for test in table.tests] == names
    assert table.skipped.keys() == {"network", "L range"}
    text = table.table()
    assert "network: left out, no other network was given" in text
    figure = survey_nulls_figure(table)
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert len(titles) == len(names)
    assert all(f"PTE {t.pte:.3f}" in title for t, title in zip(table.tests, titles, strict=True))
    # Of one split there are none of splits.
    nulls_of_tiles = TileNulls(TileReconstruction(plan, setup, tmp_path), Choices.of(setup)).read()
    alone = {key: nulls_of_tiles[key] for key in ("kk", "ee", "eb", "curl", "low", "peaks")}
    tests, skipped = judged._TileTests(plan, setup, alone).of_tiles()
    assert [test.name for test in tests] == ["rotation", "curl", "peaks", "l_max"]
    assert skipped["gain"] == "the survey has one split; these take two"


def sources(split, p):
    """A source of 12 µK in every second tile, in both splits, at any angle."""
    generator = np.random.default_rng(1)
    for row in p[::2]:
        y, x = generator.integers(10, 22, 2)
        row[y, x] += 12.0 * np.exp(2j * generator.uniform(0, np.pi))
    return p


def louder(split, p):
    """More noise in one of the splits than its inverse variance says: 20% of the rms."""
    if split:
        return p
    rms = 0.2 * LEVEL / np.sqrt(SHARES[0]) * ARCMIN / GEOMETRY.pixel
    noise = np.random.default_rng(6).standard_normal((2, *p.shape)) * rms * 3.0
    return p + (noise[0] + 1j * noise[1]) * (p != 0)


@pytest.mark.parametrize(
    ("change", "fails", "holds", "name", "value"),
    [
        (lambda i, p: p * (1 + 0.02 * i), {"gain"}, {"rotation", "peaks"}, "gain", -0.0198),
        (
            lambda _, p: p * np.exp(2j * np.radians(0.5)),
            {"rotation"},
            {"gain", "noise", "null", "peaks", "E east"},
            "rotation",
            0.5 * np.sin(np.radians(2.0)),
        ),
        (sources, {"peaks"}, {"gain", "noise", "null", "rotation", "E east"}, "", None),
        (louder, {"noise", "null"}, {"rotation", "peaks", "E east"}, "", None),
    ],
    ids=["gain", "angle", "sources", "noise"],
)
def test_what_is_planted_is_found(plan, setup, tmp_path, change, fails, holds, name, value):
    """A gain of 2% between splits, an angle of half a degree, sources that nobody masked, noise
    that the inverse variance does not know: each in its own nulls, gain and angle by their size."""
    table = judge(plan, setup, tmp_path, change)
    found = {test.name for test in table.tests if test.pte < FAILED}
    assert found >= fails, table.table()
    assert not found & holds, table.table()
    if name:
        test = of(table, name)
        assert test.mean == pytest.approx(value, abs=4 * test.mean_error)
        assert test.mean_error < 0.25 * abs(value)


def test_simulations_have_the_power_of_the_survey(plan, setup, tmp_path):
    """Of maps that are brighter by a tenth in both splits: so are the simulations' E modes."""
    some = replace(plan, tiles=plan.tiles[:8])
    judge(some, setup, tmp_path, lambda _, p: 1.1 * p)
    ee = TileNulls(TileReconstruction(some, setup, tmp_path), Choices.of(setup)).read()["ee"]
    assert ee[:, 0].mean() / ee[:, 1].mean() == pytest.approx(1.0, abs=0.1)


def test_another_network(plan, setup, tmp_path, monkeypatch):
    """One with other weights passes if it is as good on tile and simulation; its own is none."""
    path = "n.keras"
    monkeypatch.setattr(tile_nulls, "kind_of", lambda _: "RefiningUNet")
    monkeypatch.setattr(tile_nulls, "estimator_hash", lambda _: "b" * 64)
    other = replace(setup, instrument=replace(setup.instrument, noise_uk_arcmin=3 * LEVEL))
    vars(other)["theory"] = setup.theory
    monkeypatch.setattr(
        tile_nulls,
        "learned_estimator",
        lambda *_, **__: SimpleNamespace(reconstruct=Quadratic(other).reconstruct),
    )
    some = replace(plan, tiles=plan.tiles[:12])
    table = judge(some, setup, tmp_path, networks=(path,))
    assert of(table, "network").pte > 0.01
    assert of(table, "network").n_samples == 12
    own = replace(setup, network_hash="b" * 64)
    with pytest.raises(ConfigError, match=r"n\.keras: is the network of 'toy' itself"):
        Choices.of(own, networks=(path,))


def test_two_groups_of_one_number_are_students_test():
    generator = np.random.default_rng(3)
    a, b = generator.standard_normal((9, 1)), generator.standard_normal((14, 1)) + 0.4
    null = null_test("x", "", np.zeros(1), a, b)
    t, pte = scipy.stats.ttest_ind(a[:, 0], b[:, 0])
    assert null.chi2 == pytest.approx(t**2)
    assert null.pte == pytest.approx(pte)


def test_two_groups_of_many_numbers_reject_as_often_as_they_say():
    generator = np.random.default_rng(4)
    ptes = [
        null_test("x", "", np.zeros(3), *np.split(generator.standard_normal((20, 3)), [8]))
        for _ in range(600)
    ]
    low = np.mean([test.pte < 0.1 for test in ptes])
    assert low == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 600))


def test_the_range_of_L_tells_an_amplitude_that_jumps():
    release = at_fiducial_power(read_release("refined_fiducial"))
    release = replace(release, curvature=0 * release.curvature)
    likelihood = BandpowerLikelihood(release)
    kk = np.pad(release.fiducial_kk, (0, 10))
    ee = np.pad(release.fiducial_ee, (0, 10))
    model, more = likelihood.model(kk, ee), likelihood.model(1.05 * kk, ee)
    same = judged.range_test(replace(release, bandpowers=model))
    assert same.values[0] == pytest.approx(0.0, abs=1e-9)
    assert same.pte == pytest.approx(1.0)
    upper = np.arange(len(model)) >= len(model) // 2
    jump = judged.range_test(replace(release, bandpowers=np.where(upper, more, model)))
    assert jump.values[0] == pytest.approx(0.05, rel=0.05)
    assert jump.pte < 0.05
    other = judged.range_test(replace(release, bandpowers=np.where(upper, model, more)))
    assert other.values[0] == pytest.approx(-0.05, rel=0.05)


def test_by_command(plan, setup, tmp_path, monkeypatch):
    """It asks for κ̂ first, goes on where it was, and writes its page; what cannot be is told."""
    estimator = Quadratic(setup)
    monkeypatch.setattr(
        "cobaya_cnnlens.cli.estimate.map_setup", lambda *_, **__: (setup, lambda: estimator)
    )
    few = [tile.number for tile in plan.tiles[:8]]
    path = tmp_path / "few.yaml"
    content = yaml.safe_load(plan.path.read_text())
    content["tiles"] = [entry for entry in content["tiles"] if entry["tile"] in few]
    path.write_text(yaml.safe_dump(content))
    shutil.copy(array_path(plan.path), array_path(path))
    folder = tmp_path / "few"
    shutil.copytree(plan.path.parent / "clean", folder)

    def command(*options):
        arguments = ["survey", "nulls", str(path), "--release", "refined_fiducial", *options]
        return CliRunner().invoke(app, arguments)

    result = command()
    assert isinstance(result.exception, ProductError)
    assert "run `cnnlens survey reconstruct PLAN`" in str(result.exception)
    loaded = read_plan(path)
    monkeypatch.setattr(reconstruction, "check", lambda *_: [])
    TileReconstruction(loaded, setup, folder).measure(lambda: estimator)
    result = command("--survey-release", "refined_fiducial")
    assert result.exception is None, result.exception
    assert (folder / "nulls.txt").read_text().strip() in result.output
    assert "L range: left out" not in result.output
    blinded = replace(
        read_release("refined_fiducial"), truth=None, blinding=Blinding("0" * 16, None)
    )
    write_release(blinded, tmp_path / "blinded.json")
    hidden = command("--survey-release", str(tmp_path / "blinded.json"))
    assert "L range: left out, the offset of a blinded release changes it" in hidden.output
    result = command("--survey-release", "refined_fiducial")
    assert (folder / "nulls.png").exists()
    made = copied(folder)
    assert len(made) == 8
    tests = TileNulls(TileReconstruction(loaded, setup, folder), Choices.of(setup))
    one = tests.path(loaded.tiles[5])
    one.unlink()
    estimator.calls = 0
    assert command().exception is None
    assert estimator.calls == 2  # a tile and its matched simulation
    again = copied(folder)
    assert [p for p in made if again[p] != made[p]] == [one]
    for options, error, message in (
        (["--lmax-cmb", "300"], ConfigError, "--lmax-cmb 300: give a multipole from 54 to 287"),
        (["--matched-simulations", "0"], ConfigError, "--matched-simulations 0: give one or more"),
        (["--config", "x.yaml"], ConfigError, "give either --release NAME or --config FILE"),
        (["--lmax-cmb", "150"], ProductError, r"differs in lmax \(187 ≠ 150\)"),
    ):
        result = command(*options)
        assert isinstance(result.exception, error), result.exception
        assert re.search(message, str(result.exception)), result.exception
    content["tiles"] = content["tiles"][:3]
    path.write_text(yaml.safe_dump(content))
    result = command()
    assert isinstance(result.exception, CNNLensError)
    assert "3 tiles; nulls are judged by the scatter of 4 or more" in str(result.exception)


def test_the_scatter_of_a_ratio_is_that_of_both_its_parts():
    """Tiles' powers x = r y of one ratio, however they scatter: the ratio does not; of independent
    powers its variance is the sum of both relative ones."""
    generator = np.random.default_rng(8)

    def judge(x, y):
        measured = object.__new__(judged._TileTests)
        measured.merge = lambda values: values
        ones = np.ones((len(x), 1, 1))
        measured.arrays = {
            "x": np.concatenate([x[:, None], 0.7 * ones], axis=1),
            "y": np.concatenate([y[:, None], ones], axis=1),
        }
        return measured.relative("x", "y")

    y = 1.0 + 0.2 * generator.standard_normal((5000, 1))
    np.testing.assert_allclose(judge(0.9 * y, y), 0.2, rtol=1e-9)
    x = 0.9 + 0.3 * generator.standard_normal((5000, 1))
    found = judge(x, y)
    assert found.mean() == pytest.approx(x.mean() / y.mean() - 0.7, rel=1e-9)
    ratio = x.mean() / y.mean()
    expected = np.hypot(0.3 / x.mean(), 0.2 / y.mean()) * ratio
    assert found.std() == pytest.approx(expected, rel=0.05)
