"""An experiment's own simulations of a survey: they are cut and reconstructed as the data, their
files are checked before anything slow, and the release rests on them. Toy pixels: tiles of 20° with
32² pixels."""

import json
from dataclasses import replace

import healpy
import numpy as np
import pytest
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.debias import SimulatedChanges
from cobaya_cnnlens.calibrate.derivatives import BandDerivatives, NoiseDerivatives
from cobaya_cnnlens.calibrate.rotation import rotation_of
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError, MapError, ProductError
from cobaya_cnnlens.likelihood.fields import SIMULATED
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps import assembly, tiles
from cobaya_cnnlens.maps.bandpower_file import MapBandpowers
from cobaya_cnnlens.maps.calibration import KIND, SurveyCalibration
from cobaya_cnnlens.maps.comparison import Compared, Scaling, compare, noise_error
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.own_simulations import OwnSimulations
from cobaya_cnnlens.maps.plan import make_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.simulation_files import read_simulation_files
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.tile_maps import TileMaps
from cobaya_cnnlens.maps.weights import shares
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.perturbations import shifted_changes
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.plots.survey_figure import comparison_figure
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import PatchGeometry, point_patches, scalar_at
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm

from .test_survey import SIDE, TAPER, toy_configuration

NSIDE, LMAX, LEVEL = 128, 256, 30.0  # LEVEL in µK-arcmin
N_SIMULATIONS, N_VALIDATION = 8, 2
THETA, PHI = healpy.pix2ang(NSIDE, np.arange(12 * NSIDE**2))
LATITUDE, LONGITUDE = 90.0 - np.degrees(THETA), np.degrees(PHI)
SEEN = (np.abs(LATITUDE) < 22.0) & (LONGITUDE > 100.0) & (LONGITUDE < 144.0)
SEEN &= np.hypot(LATITUDE - 8.0, LONGITUDE - 112.0) > 1.5  # a hole
GAIN = 40.0


class Linear:
    """κ̂ = Q/GAIN where something was seen: the mock maps hold κ in Q, and the gain in R."""

    def reconstruct(self, q, u, rms):
        return np.where(np.isfinite(rms), q / GAIN, 0.0)


def write(path, planes, **options):
    names = ["Q_STOKES", "U_STOKES"] if len(planes) == 2 else ["W"]
    healpy.write_map(path, planes, column_names=names, overwrite=True, dtype=np.float64, **options)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    content = toy_configuration(tmp_path_factory.mktemp("toy"))
    content |= {
        "centres": {"nside": 1, "poles": 0},
        "skies": {"train": 1, "validation": 1, "test": 2, "derivatives": 1},
        "instrument": {"noise_uk_arcmin": LEVEL, "beam_fwhm_arcmin": 1.0, "taper_deg": TAPER},
        "bandpowers": {"lmin": 18, "width": 50, "n_bins": 4},
        "data_debias": True,
        "nuisances": {"patches": 4},
    }
    content["derivatives"] |= {"patches": 6, "ee_edges": [2, 200, 401]}
    return Run(Config.model_validate(content), "a" * 64, Linear())


def draw(run, seed):
    """κ_lm of the fiducial power, and Q and U: κ times a gain and E, with noise."""
    generator = np.random.default_rng(seed)
    spectra = run.spectra()
    kappa = scale_alm(unit_alm(LMAX, generator), np.sqrt(spectra.kk[: LMAX + 1]))
    elm = scale_alm(unit_alm(LMAX, generator), np.sqrt(spectra.lensed_ee[: LMAX + 1]))
    q, u = healpy.alm2map_spin([elm, np.zeros_like(elm)], NSIDE, 2, LMAX)
    rms = LEVEL * ARCMIN / np.sqrt(healpy.nside2pixarea(NSIDE))
    noise = rms * generator.standard_normal((2, 2, len(q)))
    return kappa, np.stack([q + GAIN * healpy.alm2map(kappa, NSIDE, LMAX), u]), noise


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Files of simulations: the signal of each, the noise of its two splits, κ_lm and φ_lm. The
    first is also the data."""
    folder = tmp_path_factory.mktemp("experiment")
    ell = np.arange(LMAX + 1.0)
    to_phi = np.divide(2.0, ell * (ell + 1.0), out=np.zeros_like(ell), where=ell > 0)
    write(folder / "mask.fits", [SEEN.astype(float)])
    for i in range(N_SIMULATIONS):
        kappa, signal, noise = draw(run, i)
        write(folder / f"signal_{i}.fits", signal, column_units="uK")
        for split in (0, 1):
            write(folder / f"noise_{i}_{split}.fits", noise[split], column_units="uK")
            if i == 0:
                maps = np.where(SEEN, signal + noise[split], np.nan)
                write(folder / f"data_{split}.fits", maps, column_units="uK")
        healpy.write_alm(folder / f"kappa_{i}.fits", kappa, overwrite=True)
        healpy.write_alm(folder / f"phi_{i}.fits", healpy.almxfl(kappa, to_phi), overwrite=True)
    return folder


CONTENT = {
    "maps": ["signal_{index}.fits", "noise_{index}_{split}.fits"],
    "kappa": "kappa_{index}.fits",
    "index": [0, N_SIMULATIONS - 1],
    "validation": N_VALIDATION,
}


def listed(folder, **changes):
    """The YAML file of the simulations, with some keys changed or, of None, taken out."""
    path = folder / "sims.yaml"
    content = {key: x for key, x in (CONTENT | changes).items() if x is not None}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def plan(folder):
    data = tuple(str(folder / f"data_{split}.fits") for split in (0, 1))
    given = Sources(data, str(folder / "mask.fits"), level=str(LEVEL / np.sqrt(2.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SHIFTS", 2)
        patch.setattr(tiles, "TURNS", 4)
        return make_plan(folder / "toy.yaml", given, PatchGeometry(SIDE, 32), TAPER)


@pytest.fixture(autouse=True)
def any_maps(monkeypatch, request):
    """κ in Q is what no instrument gives; it is refused where a test asks for that."""
    if "as_refused" not in request.fixturenames:
        monkeypatch.setattr("cobaya_cnnlens.maps.own_simulations.check", lambda *_: [])


@pytest.fixture
def as_refused():
    """The check of the maps is on."""


@pytest.fixture(scope="module")
def measured(run, plan, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobaya_cnnlens.maps.own_simulations.check", lambda *_: [])
        own = OwnSimulations.of(run, plan, folder / "products", listed(folder))
        own.measure(warn=pytest.fail)
    return own


# What is measured


def test_a_simulation_is_cut_and_measured_as_the_data_are(run, plan, folder, measured):
    """The data are the first simulation: κ̂ of both, and the truth at the tiles' own pixels."""
    TileMaps(plan, folder / "data").measure()
    maps = list(TileMaps(plan, folder / "data").masked())
    assert len(maps) >= 3
    q, u, rms = (np.stack(x) for x in zip(*((m.q, m.u, m.tile.rms) for m in maps), strict=True))
    arrays = measured.read()
    first = slice(0, len(maps))
    estimate = Linear().reconstruct(q, u, rms)
    np.testing.assert_allclose(
        arrays["validation_auto"][first], run.bandpowers.auto(estimate), rtol=1e-4
    )
    setup = MapSetup.of_run(run)
    np.testing.assert_allclose(arrays["validation_power"][first], setup.power(q, u), rtol=1e-4)
    sums = setup.power.rotation(q, u)
    np.testing.assert_allclose(
        arrays["validation_rotation"][first], sums, atol=1e-4 * np.abs(sums).max()
    )
    alm, _, _ = draw(run, 0)
    kappa = scalar_at(alm, LMAX, point_patches(plan.centres, plan.geometry))
    kappa = kappa.reshape(estimate.shape) * run.mask
    true, found = run.bandpowers.transform(kappa), run.bandpowers.transform(estimate)
    for name, expected in (
        ("truth", run.bandpowers.cross(true, true)),
        ("cross", run.bandpowers.cross(true, found)),
    ):
        np.testing.assert_allclose(arrays[f"validation_{name}"][first], expected, rtol=1e-3)
    # κ̂ is κ where it was seen, with E and noise: R is what the holes and edges leave.
    response = arrays["test_cross"].mean(0) / arrays["test_truth"].mean(0)
    assert (response > 0.6).all()
    assert (response < 1.2).all()
    n_tiles = len(plan.tiles)
    for name, count in (("validation", N_VALIDATION), ("test", N_SIMULATIONS - N_VALIDATION)):
        assert len(arrays[f"{name}_auto"]) == count * n_tiles
        np.testing.assert_array_equal(measured.tiles(name)[:n_tiles], np.arange(n_tiles))


def test_the_mean_field_is_what_all_simulations_share(run, plan, folder, measured):
    """Its power without a bias by the number of simulations: zero within the scatter here, and that
    of a field that is added to every κ̂."""
    arrays = measured.read()
    auto = np.concatenate([arrays[f"{name}_auto"] for name in ("validation", "test")])
    assert (np.abs(arrays["mean_field"].mean(0)) < 0.25 * auto.mean(0)).all()
    field = np.random.default_rng(3).standard_normal((32, 32)) * run.mask
    recipes = {i: measured.part_recipe(i) for i in measured.files.indices}
    original = products.Product.array
    with pytest.MonkeyPatch.context() as patch:
        # κ̂ of every simulation is the same: the mean field is all of it.
        patch.setattr(
            products.Product,
            "array",
            lambda product, name: (
                np.broadcast_to(field, (len(plan.tiles), 32, 32))
                if name == "kappa"
                else np.tile(run.bandpowers.auto(field[None]), (len(plan.tiles), 1))
                if name == "auto"
                else original(product, name)
            ),
        )
        shared = measured._joined(recipes)["mean_field"]
    np.testing.assert_allclose(
        shared, np.tile(run.bandpowers.auto(field[None]), (len(plan.tiles), 1))
    )


def test_other_files_of_the_same_simulation_give_the_same(run, plan, folder, measured, tmp_path):
    """φ in the place of κ; the coadd in the place of its splits; a mean of noise maps."""
    expected = measured.read()
    for changes in (
        {"kappa": None, "phi": "phi_{index}.fits"},
        {"maps": ["signal_{index}.fits"], "mean": [f"noise_{{index}}_{s}.fits" for s in (0, 1)]},
    ):
        files = read_simulation_files(listed(folder, index=[0, 2], **changes))
        own = OwnSimulations(run, plan, tmp_path / str(len(files.mean)), files)
        own.measure(warn=pytest.fail)
        arrays = own.read()
        n = N_VALIDATION * len(plan.tiles)
        for name in ("auto", "cross", "truth", "power"):
            key = f"validation_{name}"
            np.testing.assert_allclose(arrays[key][:n], expected[key][:n], rtol=1e-3, err_msg=name)


def test_measuring_resumes_and_refuses_other_files(run, plan, folder, measured, tmp_path):
    """A part that is there is not made again; one of another file is refused, and so is a
    calibration of other simulations."""
    before = measured.path.read_bytes()
    measured.path.unlink()
    measured.part_path(2).unlink()
    made = []
    with pytest.MonkeyPatch.context() as patch:
        original = products.write_product
        patch.setattr(
            products,
            "write_product",
            lambda path, *rest: (made.append(path), original(path, *rest)),
        )
        measured.measure(warn=pytest.fail)
    assert [path.name for path in made] == ["0002.h5", "own_simulations.h5"]
    assert measured.path.read_bytes() == before
    # Files may be moved together.
    assert str(folder) not in json.dumps(measured.recipe([]))
    fewer = OwnSimulations.of(run, plan, measured.folder, listed(folder, validation=1))
    with pytest.raises(ProductError, match="simulations"):
        fewer.read()
    kept = (folder / "noise_1_0.fits").read_bytes()
    write(folder / "noise_1_0.fits", draw(run, 99)[2][0], column_units="uK")
    with pytest.raises(ProductError, match="files"):
        measured.measure()
    (folder / "noise_1_0.fits").write_bytes(kept)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kapa": "k_{index}.fits"}, "unknown key 'kapa'"),
        ({"maps": None}, "there are no 'maps' and no 'mean'"),
        ({"phi": "phi_{index}.fits"}, "either 'kappa' or 'phi'"),
        ({"kappa": "kappa.fits"}, "'kappa.fits' does not name a file for each simulation"),
        ({"maps": ["signal_{number}.fits"]}, "'signal_{number}.fits' does not name a file"),
        ({"index": [3, 3]}, r"give the first and the last simulation, as in \[0, 99\]"),
        ({"validation": 8}, "8 of 8 simulations leave none for the noise bias"),
        ({"splits": ["a", "b", "c"]}, "names 3 splits, and the plan has 2 maps"),
        ({"index": [0, 8]}, r"signal_8.fits: no such file"),
        ({"kappa": "signal_{index}.fits"}, r"signal_0.fits: holds no a_lm"),
        ({"maps": ["kappa_{index}.fits"]}, r"kappa_0.fits: no image with planes"),
        ({"kappa": "phi_{index}.fits"}, r"phi_0.fits: the a_lm have .* times the power of κ"),
        ({"kappa": "shifted_{index}.fits"}, r"shifted_0.fits: κ̂ .* is correlated with this κ by"),
        ({"kappa": "short_{index}.fits"}, r"short_0.fits: the a_lm end at l = 100, and the band"),
        ({"kappa": "nan_{index}.fits"}, r"nan_0.fits: holds a_lm that are not finite"),
        (
            {"kappa": "uneven_{index}.fits"},
            r"uneven_1.fits: holds 5151 a_lm, and simulation 0 holds",
        ),
        ({"maps": ["holed_{index}.fits"]}, r"holed_0.fits: 1 pixels that the survey saw are not f"),
        ({"maps": ["coarse_{index}.fits"]}, r"coarse_0.fits: HEALPix nside 64, and the survey's"),
        ({"maps": ["unitless_{index}.fits"]}, r"unitless_0.fits: no unit in TUNIT1"),
    ],
)
def test_what_cannot_be_used_is_one_error(run, plan, folder, damaged, tmp_path, changes, message):
    with pytest.raises((ConfigError, MapError), match=message):
        OwnSimulations.of(run, plan, tmp_path, listed(folder, **changes)).measure(warn=str)


@pytest.fixture(scope="module")
def damaged(run, folder):
    """Files of every simulation with a fault each."""
    ell, _ = healpy.Alm.getlm(LMAX)
    kappa = draw(run, 0)[0]
    short = kappa[ell <= 100]  # in healpy's order
    q, u = healpy.read_map(folder / "signal_0.fits", field=(0, 1))
    holed = np.where(np.arange(len(q)) == np.flatnonzero(SEEN)[5], np.nan, q)
    coarse = healpy.ud_grade([q, u], 64)
    for i in range(N_SIMULATIONS):
        for name, alm in (
            ("short", short),
            ("uneven", short if i else kappa),
            ("nan", np.where(ell == 50, np.nan, kappa)),
            ("shifted", np.roll(kappa, 1)),
        ):
            healpy.write_alm(folder / f"{name}_{i}.fits", alm, overwrite=True)
        for name, maps in (("coarse", coarse), ("holed", [holed, u])):
            write(folder / f"{name}_{i}.fits", maps, column_units="uK")
        write(folder / f"unitless_{i}.fits", [q, u])


def test_maps_of_another_unit_are_refused_before_any_estimate(
    run, plan, folder, tmp_path, as_refused
):
    """By the checks that the data pass too."""
    own = OwnSimulations.of(run, plan, tmp_path, listed(folder))
    read = own.files.model_copy(update={"maps": (str(folder / "milli_{index}_{split}.fits"),)})
    for i in range(N_SIMULATIONS):
        for split in (0, 1):
            parts = [folder / f"signal_{i}.fits", folder / f"noise_{i}_{split}.fits"]
            total = sum(np.array(healpy.read_map(part, field=(0, 1))) for part in parts)
            write(folder / f"milli_{i}_{split}.fits", total, column_units="mK")
    with pytest.raises(
        MapError, match=r"milli_0_0.fits: the simulation's tiles: .*look at their unit"
    ):
        replace(own, files=read).measure(warn=str)


def test_too_few_simulations_are_refused_with_the_number_needed(run, plan, folder, tmp_path):
    path = listed(folder, index=[0, 2])
    n_tiles = len(plan.tiles)
    numbers = 4 + len(MapSetup.of_run(run).power.e_edges)
    needed = -(-(numbers + 3) // n_tiles)
    message = (
        rf"1 simulations of {n_tiles} tiles are too few .* {numbers} bins .*; give {needed} or"
    )
    with pytest.raises(ConfigError, match=message):
        OwnSimulations.of(run, plan, tmp_path, path)


# The release and the comparison


@pytest.fixture(scope="module")
def internal(run, plan, measured):
    """An internal calibration and the data's bandpowers, of numbers that are known: κ̂ of half the
    response, in tiles of twice the E and B power."""
    generator, n_patches = np.random.default_rng(7), 24
    own = measured.read()
    stage = SurveyCalibration(run, plan, measured.folder, n_patches)
    arrays = {}
    for set_name in stage.counts:
        rows = [
            np.flatnonzero(measured.tiles("test") == t)[i // len(plan.tiles) % 6]
            for i, t in enumerate(stage.tiles(set_name))
        ]
        for name, factor in (("auto", 0.3), ("cross", 0.5), ("truth", 1.0), ("power", 0.5)):
            arrays[f"{set_name}_{name}"] = factor * own[f"test_{name}"][rows]
    seen = stage.derivative_patches()
    n_bins, n_power = (own[f"test_{name}"].shape[1] for name in ("auto", "power"))
    for what, count in (("fiducial", 1), ("shifted", 2), ("kk", 2), ("ee", 2)):
        shape = (count, len(seen.tiles))
        arrays[f"{what}_auto"] = 1e-5 * (1.0 + 0.1 * generator.standard_normal((*shape, n_bins)))
        arrays[f"{what}_power"] = 0.01 * (1.0 + generator.standard_normal((*shape, n_power)))
        if what != "ee":
            arrays[f"{what}_truth"] = 1e-6 * generator.standard_normal((*shape, n_bins))
    rows = stage.nuisance_patches()
    for name in SIMULATED:
        for of in ("auto", "power"):
            steps = np.array([0.9, 1.1])[:, None, None]
            arrays[f"{name}_{of}"] = arrays[f"test_{of}"][rows] * steps
    products.write_product(stage.path, KIND, stage.recipe, arrays)
    first = slice(0, len(plan.tiles))
    data = [own[f"validation_{name}"][first] for name in ("auto", "power", "rotation")]
    whole = MapBandpowers(*data, plan.centres, plan.frame, "data_0.fits", ())
    reconstruction = TileReconstruction(plan, MapSetup.of_run(run), measured.folder)
    whole.write(reconstruction.path, reconstruction.recipe)
    return arrays, stage, whole


def weighted_noise(weights, arrays, tiles):
    """N of the weighted sum, tile by tile."""
    r2 = weights.response[weights.label] ** 2
    each = arrays["test_auto"] / r2[tiles] - arrays["test_truth"]
    n_tiles = len(weights.label)
    return sum(weights.weight[t] * each[tiles == t].mean(0) for t in range(n_tiles))


def test_the_release_rests_on_the_own_simulations(run, plan, measured, internal, monkeypatch):
    """R, N and power are theirs; the changes are the internal ones times the ratio of N and of the
    power; what the ratio changes at ω_c + step is an error; the rotation starts at theirs."""
    arrays, stage, data = internal
    own = measured.read()
    made = assembly.make_release(run, plan, measured.folder, "toy", measured.files)
    by_own, by_internal = assembly.Calibrated.read(run, plan, measured.folder).by(measured)
    weights, of_internal = by_own.weights, by_internal.weights
    np.testing.assert_array_equal(weights.weight, of_internal.weight)
    noise = weighted_noise(weights, own, measured.tiles("test"))
    np.testing.assert_allclose(made.noise, noise, rtol=1e-9)
    scale = noise / weighted_noise(of_internal, arrays, stage.tiles("test"))
    r2 = weights.response[weights.label] ** 2
    d = (weights.weight * data.auto / r2).sum(0) - noise
    np.testing.assert_allclose(made.bandpowers, d, rtol=1e-9)
    np.testing.assert_allclose(made.response, weights.mean_response)
    modes = weights.modes[measured.tiles("test")][:, None]
    fiducial = (modes * own["test_power"]).sum(0) / modes.sum()
    np.testing.assert_allclose(made.fiducial_power, fiducial, rtol=1e-9)
    u = shares(stage.derivative_patches().tiles, weights.weight)
    tiles = stage.derivative_patches().tiles
    r2 = of_internal.response[of_internal.label] ** 2
    kk = (u * (arrays["kk_auto"][1] / r2[tiles] - arrays["kk_truth"][1])).mean(0)
    u = shares(tiles, of_internal.modes[:, None])
    unscaled = (u * arrays["kk_power"][1]).mean(0)
    all_modes = of_internal.modes[stage.tiles("test")][:, None]
    ratio = fiducial / ((all_modes * arrays["test_power"]).sum(0) / all_modes.sum())
    np.testing.assert_allclose(made.power_kk_derivatives[:, 1], ratio * unscaled, rtol=1e-9)
    np.testing.assert_allclose(
        made.kk_derivatives[:, 1],
        scale * kk - made.debias_coefficients @ made.power_kk_derivatives[:, 1],
        rtol=1e-9,
    )
    [[angle, _, _]] = made.rotation
    [[raw, _, _]] = rotation_of(data.rotation, weights.modes)
    [[zero, _, _]] = rotation_of(own["test_rotation"], modes[:, 0])
    assert angle == pytest.approx(raw - zero, abs=1e-9)
    assert abs(zero) > 1e-6
    assert made.provenance["survey"]["own_simulations"]["index"] == [0, N_SIMULATIONS - 1]
    assert made.provenance["survey"]["simulated_patches"] == len(own["test_auto"])
    bands = shifted_changes(run)[1][: made.kk_derivatives.shape[1]]
    of_kk = made.kk_derivatives @ bands + made.curvature * (bands @ made.kk_direction) ** 2
    u = shares(tiles, of_internal.weight)

    def bias(name, i):
        return (u * (arrays[f"{name}_auto"][i] / r2[tiles] - arrays[f"{name}_truth"][i])).mean(0)

    of_ee = bias("shifted", 1) - bias("fiducial", 0)
    of_ee = of_ee - sum(bias("kk", j) * delta for j, delta in enumerate(bands))
    monkeypatch.setattr(Scaling, "with_error", lambda _, release, changes, bands: release)
    bare = assembly.make_release(run, plan, measured.folder, "toy", measured.files)
    offs = (1.0 - 1.0 / scale) * np.array([of_kk, scale * of_ee])
    assert (np.abs(scale - 1.0) > 0.05).all()
    np.testing.assert_allclose(
        made.derivative_covariance - bare.derivative_covariance, offs.T @ offs, rtol=1e-6
    )


def test_changes_scale_bin_by_bin():
    """All of them: derivatives by band, their centre, shifted skies and both orders of errors."""
    generator = np.random.default_rng(1)
    factor = np.array([2.0, 3.0, 0.5])
    kk, ee = (BandDerivatives(np.arange(3), generator.random((5, 3, 2))) for _ in range(2))
    given = SimulatedChanges(
        NoiseDerivatives(kk, ee, generator.random((5, 3))),
        generator.random((2, 5, 3)),
        (generator.random((5, 3, 4)), generator.random((5, 3, 4))),
    )
    made = given.scaled(factor)
    for before, after in (
        (given.derivatives.kk.patches, made.derivatives.kk.patches),
        (given.derivatives.ee.patches, made.derivatives.ee.patches),
        (given.nuisances[0], made.nuisances[0]),
        (given.nuisances[1], made.nuisances[1]),
    ):
        np.testing.assert_allclose(after, before * factor[:, None])
    np.testing.assert_allclose(made.derivatives.centre, given.derivatives.centre * factor)
    np.testing.assert_allclose(made.shifted, given.shifted * factor)


def test_the_comparison_shows_what_differs(run, plan, measured, internal):
    """Twice the response, twice the power of E and of B, N as of the weighted sums."""
    arrays, stage, _ = internal
    calibrated = assembly.Calibrated.read(run, plan, measured.folder)
    comparison = compare(calibrated, measured)
    by_own, by_internal = calibrated.by(measured)
    ratio, error = comparison.response.ratio
    assert (np.abs(ratio - 2.0) < 5.0 * error).all()
    for compared in (comparison.e_power, comparison.b_power):
        ratio, error = compared.ratio
        assert (np.abs(ratio - 2.0) < 5.0 * error + 0.05).all()
        assert (error < 0.4).all()
    pairs = (by_own, measured.read(), measured), (by_internal, arrays, stage)
    noise = [weighted_noise(c.weights, a, of.tiles("test")) for c, a, of in pairs]
    np.testing.assert_allclose(comparison.noise.ratio[0], noise[0] / noise[1], rtol=1e-9)
    chi2, pte = comparison.response.chi2
    assert chi2 > 50
    assert pte < 1e-6
    same = Compared(np.array([[1.0, 2.0], [1.1, 2.0]]), np.array([[0.06, 0.1], [0.08, 0.1]]))
    assert same.chi2 == pytest.approx((1.0, np.exp(-0.5)))
    assert same.ratio[1][0] == pytest.approx(np.hypot(0.06, 0.08 / 1.1) / 1.1)
    text = comparison.table()
    assert "chi2 of R" in text
    assert "18-68" in text
    axes = comparison_figure(comparison).axes
    for axis, compared in zip(
        axes, (comparison.response, comparison.noise, comparison.e_power), strict=True
    ):
        np.testing.assert_allclose(axis.lines[0].get_ydata(), compared.ratio[0])


def test_the_error_of_the_noise_knows_that_of_the_response():
    """Of 400 sets of patches, whose R is off by 4%, N scatters as its error says."""
    generator = np.random.default_rng(5)
    truth = generator.normal(1.0, 0.1, (30, 400))
    response = generator.normal(1.0, 0.04, 400)
    auto = (truth + generator.normal(1.5, 0.2, truth.shape)) / response**2
    error = noise_error(auto, truth, np.full(400, 0.04))
    assert (auto - truth).mean(0).std() == pytest.approx(error.mean(), rel=0.15)


def test_the_commands_take_own_simulations(run, plan, folder, measured, internal, monkeypatch):
    """`survey calibrate` prints and draws the comparison, `survey release` takes the simulations;
    wrong files are one error."""
    monkeypatch.setattr("cobaya_cnnlens.maps.plan.read_plan", lambda _: plan)
    monkeypatch.setattr("cobaya_cnnlens.cli.runs.load", lambda _: run)

    def cnnlens(command, simulations, *words):
        options = ["--config", "toy.yaml", "--simulations", str(simulations)]
        return CliRunner().invoke(app, ["survey", command, "toy.yaml", *options, *words])

    path, products_folder = listed(folder), str(measured.folder)
    done = cnnlens("calibrate", path, "--out", products_folder, "--patches", "24")
    assert done.exception is None, done.exception
    assert "chi2 of N" in done.output
    assert (measured.folder / "own_simulations.png").exists()
    assert "chi2 of N" in (measured.folder / "own_simulations.txt").read_text()
    done = cnnlens("release", path, "--products", products_folder)
    assert done.exception is None, done.exception
    release = read_release(measured.folder / "release.json")
    assert "own_simulations" in release.provenance["survey"]
    wrong = cnnlens("calibrate", listed(folder, index=[0, 9]), "--out", products_folder)
    assert "signal_8.fits: no such file" in str(wrong.exception)
