"""The emulator: against functions whose answer is known, through Cobaya, and its files."""

import hashlib
import json
import tracemalloc
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import camb
import numpy as np
import pytest
from cobaya.log import LoggedError
from cobaya.model import get_model
from scipy.interpolate import CubicSpline
from typer.testing import CliRunner

from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError, EmulatorError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.release import read_release, write_release
from cobaya_cnnlens.pipeline import emulation
from cobaya_cnnlens.pipeline.emulation import Plan, Points, load_plan
from cobaya_cnnlens.pipeline.emulator_fit import fit
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    background_parameters,
    camb_parameters,
    convergence_from_potential,
)
from cobaya_cnnlens.theory.emulator import SCALARS, Emulator, unit_box
from cobaya_cnnlens.theory.emulator_files import read_emulator, write_emulator
from cobaya_cnnlens.validate.emulator_errors import errors

from ..conftest import REPOSITORY, synthetic_release

FIDUCIAL = {"ombh2": 0.0222, "omch2": 0.1185, "ns": 0.9624, "H0": 67.94}
PLANS = {"lcdm": "emulator", "mnu": "emulator_mnu", "feedback": "emulator_feedback"}
INSTRUMENT = {f"cnnlens_{name}": 0 for name in NUISANCES}


def made_up(plan: Plan, at: np.ndarray) -> Points:
    """A universe in closed form: peaks at multiples of π/θ*, a tilt, an amplitude."""
    l = np.arange(plan.camb.lmax + 1.0)
    kk, ee, scalars = [], [], []
    for point in at:
        p = dict(zip(plan.parameters, point, strict=True))
        theta = 0.0104 * (p["omch2"] / 0.12) ** 0.1 * (p["H0"] / 68) ** 0.2
        tilt = (1 + l * theta / 5.0) ** (p["ns"] - 2.5)
        mass = p.get("mnu", plan.fixed.get("mnu"))
        suppression = 1 - 0.3 * mass * l / (l + 100.0)
        theta *= 1 - 0.02 * mass
        amplitude = 3e-7 * suppression * np.exp(p["logA"])
        feedback = 1 - 0.05 * (p.get("HMCode_logT_AGN", 7.0) - 7.0) * l / (l + 1000.0)
        kk.append(amplitude * feedback * p["omch2"] ** 2 * (1 + l / 300.0) ** (p["ns"] - 2.8))
        ee.append(
            theta**2 * np.exp(p["logA"]) * tilt * (1.2 + np.cos(l * theta)) * (1 + 5 * p["ombh2"])
        )
        omegam = (p["ombh2"] + p["omch2"]) / (0.01 * p["H0"]) ** 2
        kk[-1][:2] = ee[-1][:2] = 0.0
        rdrag = 147 * (p["omch2"] / 0.12) ** -0.2 * (p["ombh2"] / 0.022) ** -0.1 * (1 - mass / 500)
        scalars.append([theta, np.sqrt(np.exp(p["logA"]) * p["omch2"]), omegam, rdrag])
    return Points(at, np.array(kk), np.array(ee), np.array(scalars))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulator") / "plan.yaml"
    path.write_text(
        "name: toy\nproducts: products\n"
        "box: {ombh2: [.02, .024], omch2: [.1, .14], ns: [.9, 1.02], H0: [55, 80], "
        "logA: [2.9, 3.2]}\n"
        "fixed: {tau: .0943, mnu: .06}\nlmax: 1300\ncamb: {lmax: 1600}\npoints: 150\nchecks: 30\n"
    )
    return load_plan(path)


@pytest.fixture(scope="module")
def release(plan):
    """A release of the toy universe: its spectra at the middle of the box are the fiducial ones."""
    made = synthetic_release()
    middle = np.array([[np.mean(sides) for sides in plan.box.values()]])
    points = made_up(plan, middle)
    lengths = len(made.fiducial_kk), len(made.fiducial_ee)
    return replace(
        made,
        fiducial_kk=points.kk[0][: lengths[0]],
        fiducial_ee=points.ee[0][: lengths[1]],
    )


@pytest.fixture(scope="module")
def toy(plan):
    return fit(plan, made_up(plan, plan.design()[: plan.points]))


@pytest.fixture
def massive(plan, toy, tmp_path):
    """A plan that goes on from the toy to another mass of the neutrinos, in a smaller box."""
    write_emulator(toy.tables, toy.record, tmp_path / "below.npz")
    box = {"ombh2": (0.021, 0.023), "omch2": (0.11, 0.13), "ns": (0.93, 0.99), "H0": (62, 75)}
    box |= {"logA": (2.95, 3.15), "mnu": (0.0, 0.5)}
    return replace(
        plan,
        box=box,
        fixed={"tau": 0.0943},
        points=25,
        checks=10,
        degree=1,
        scales={"mnu": 16.0},
        upon=str(tmp_path / "below.npz"),
    )


@pytest.fixture
def toy_path(toy, tmp_path):
    write_emulator(toy.tables, toy.record, tmp_path / "toy.npz")
    return tmp_path / "toy.npz"


def test_peaks_that_move_are_followed(plan, toy, release):
    """Errors at points that did not make it are small, although peaks move."""
    checks = made_up(plan, plan.design()[plan.points :])
    period = 2 * np.pi / checks.scalars[:, 0]
    assert np.ptp(1300 / period) > 0.1
    likelihood = BandpowerLikelihood(release)
    found = errors(toy, checks, release)
    assert found.kk.max() < 3e-4
    assert found.ee.max() < 1e-3
    assert found.scalars.max() < 3e-4
    assert (found.delta_chi2 >= 0).all()
    # The measure of errors sees one that is put in.
    wrong = Points(checks.at, 1.01 * checks.kk, checks.ee, checks.scalars)
    worse = errors(toy, wrong, release)
    np.testing.assert_allclose(worse.kk, 0.01 / 1.01, atol=4e-4)
    # That of the bandpowers is of C^κκ alone.
    for kk, delta in zip(checks.kk, worse.delta_chi2, strict=True):
        moved = likelihood.model(1.01 * kk, None) - likelihood.model(kk, None)
        assert delta == pytest.approx(moved @ likelihood.inverse @ moved, rel=0.2)


def test_an_emulator_goes_on_from_another(plan, toy, massive, release, tmp_path):
    """What a sixth parameter does is learnt from 25 points where the rest is known: at others, also
    from the file, the universe in closed form comes out, and at the base's mass the base."""
    design = massive.design()
    made = fit(massive, made_up(massive, design[:25]))
    write_emulator(made.tables, made.record, tmp_path / "massive.npz")
    read = read_emulator(tmp_path / "massive.npz")
    checks = made_up(massive, design[25:])
    for emulator in (made, read):
        found = errors(emulator, checks, release)
        assert found.kk.max() < 5e-4
        assert found.ee.max() < 2e-3
        assert found.scalars.max() < 3e-4
    alone = fit(replace(massive, upon=""), made_up(massive, design[:25]))
    assert errors(alone, checks, release).kk.max() > 5 * found.kk.max()
    point = FIDUCIAL | {"logA": 3.05}
    for one, two in zip(read(point | {"mnu": 0.06})[:2], toy(point)[:2], strict=True):
        np.testing.assert_allclose(one[2:], two[2:], rtol=2e-3)
    assert read.digest == made.digest != alone.digest
    # Another base under the same name is refused, and what is no base.
    wrong = replace(toy.tables, kk_mean=1.001 * toy.tables.kk_mean)
    write_emulator(wrong, toy.record, tmp_path / "below.npz")
    with pytest.raises(EmulatorError, match="was made from another emulator"):
        read_emulator(tmp_path / "massive.npz")
    rest = replace(massive, upon=str(tmp_path / "massive.npz"))
    write_emulator(toy.tables, toy.record, tmp_path / "below.npz")
    write_emulator(
        made.tables,
        made.record | {"base": rest.upon, "base_digest": made.digest},
        tmp_path / "third.npz",
    )
    with pytest.raises(EmulatorError, match="was made from another emulator"):
        read_emulator(tmp_path / "third.npz")


@pytest.mark.parametrize("sides", [{}, {"mnu": 5}])
def test_at_the_base_s_mass_it_is_the_base(toy, massive, sides):
    """Also where no mass was .06, and where a point and its fellow at the side become one."""
    plan = replace(massive, at_low_side=sides)
    made = fit(plan, made_up(plan, plan.design()[: 25 + sum(sides.values())]))
    for at in plan.check_points():
        point = dict(zip(plan.parameters, at, strict=True)) | {"mnu": 0.06}
        for one, two in zip(made(point)[:2], toy(point)[:2], strict=True):
            np.testing.assert_allclose(one[2:], two[2:], rtol=1e-5)


def test_feedback_changes_the_convergence_alone(plan, toy, release, tmp_path):
    """C^κκ follows it; E and the derived parameters are the base's to the bit, with its errors."""
    write_emulator(toy.tables, toy.record, tmp_path / "below.npz")
    box = plan.box | {"HMCode_logT_AGN": (7.3, 8.3)}
    more = replace(plan, box=box, points=40, checks=10, degree=1, upon=str(tmp_path / "below.npz"))
    design = more.design()
    made = fit(more, made_up(more, design[:40]))
    checks = made_up(more, design[40:])
    assert errors(made, checks, release).kk.max() < 1e-3
    with_mass = replace(more, box=box | {"mnu": (0.0, 0.3)}, fixed={"tau": 0.0943})
    assert len(fit(with_mass, made_up(with_mass, with_mass.design()[:40])).tables.design) == 40
    for at in checks.at:
        point = dict(zip(more.parameters, at, strict=True))
        _, ee, scalars = made(point)
        del point["HMCode_logT_AGN"]
        np.testing.assert_array_equal(ee, toy(point)[1])
        assert scalars == toy(point)[2]


def test_feedback_reaches_camb_and_the_name_of_a_point(plan):
    """It is no part of the cosmology; plans without it name their points as before."""
    more = replace(plan, box=plan.box | {"HMCode_logT_AGN": (7.3, 8.3)})
    low = more.design()[0]
    high = np.append(low[:-1], 8.3)
    assert more.cosmology(low) == more.cosmology(high) == plan.cosmology(low[:-1])
    assert more.path(more.recipe(low)) != more.path(more.recipe(high))
    assert "nonlinear" not in plan.recipe(low[:-1])
    parameters = camb_parameters(more.cosmology(high), more.camb, more.nonlinear(high))
    assert parameters.NonLinearModel.HMCode_logT_AGN == 8.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": {"H0": (50, 75)}}, "box in H0 must lie between 55 and 80"),
        ({"fixed": {"tau": 0.06}}, r"base was made at tau = 0\.0943"),
        ({"lmax": 1310}, "base ends at l = 1300"),
    ],
)
def test_a_base_must_hold_what_goes_on_from_it(massive, changes, message):
    changes = {k: getattr(massive, k) | v if k == "box" else v for k, v in changes.items()}
    other = replace(massive, **changes)
    with pytest.raises(EmulatorError, match=message):
        fit(other, made_up(massive, other.design()[:25]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scales: {tau: 2}", "give parameters of the box, positive"),
        ("scales: {H0: 0}", "give parameters of the box, positive"),
        ("scales: {H0: .inf}", r"'scales\.H0' is inf; give a finite number"),
        ("logarithmic: [tau]", "logarithmic: tau; give parameters of the box, positive in it"),
        ("point: 3", "unknown key 'point'"),
    ],
)
def test_a_plan_that_is_refused(tmp_path, line, message):
    (tmp_path / "p.yaml").write_text(
        f"name: a\nproducts: p\nbox: {{H0: [1, 2]}}\nfixed: {{}}\n{line}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "p.yaml")


def test_scales_bring_points_nearer(plan, release):
    """A bend along one parameter is followed better where that one is measured longer."""
    design = plan.design()
    checks = made_up(plan, design[plan.points :])

    def bent(points):
        factor = np.exp(0.05 * np.sin(150 * points.at[:, [1]]))
        return Points(points.at, factor * points.kk, points.ee, points.scalars)

    worst = {
        scale: errors(
            fit(
                replace(plan, degree=1, scales={"omch2": scale}),
                bent(made_up(plan, design[: plan.points])),
            ),
            bent(checks),
            release,
        ).kk.max()
        for scale in (1.0, 8.0)
    }
    assert worst[8.0] < 0.5 * worst[1.0]


def test_design_is_reproducible_and_inside_the_box(plan):
    design = plan.design()
    np.testing.assert_array_equal(design, plan.design())
    low, high = plan.sides()
    assert design.shape == (180, 5)
    assert ((design >= low) & (design <= high)).all()


def test_points_at_the_low_side(plan):
    """So many of the first once more; the points and checks stay."""
    sided = replace(plan, at_low_side={"H0": 6})
    design, more = plan.design(), sided.design()
    column = plan.parameters.index("H0")
    n = plan.points
    np.testing.assert_array_equal(np.vstack([more[:n], more[n + 6 :]]), design)
    assert (more[n : n + 6, column] == 55).all()
    rest = [i for i in range(5) if i != column]
    np.testing.assert_array_equal(more[n : n + 6][:, rest], design[:6][:, rest])
    for either in (plan, sided):
        np.testing.assert_array_equal(either.check_points(), design[n:])
    assert replace(plan, checks=0).check_points().shape == (0, 5)


def test_the_points_that_check_do_not_make_an_emulator(plan, tmp_path, monkeypatch):
    """Those at a parameter's low side do."""
    asked = []
    monkeypatch.setattr(emulation, "run_camb", lambda plan, points, jobs: asked.append(points))
    monkeypatch.setattr(emulation, "read_points", made_up)
    sides = {name: list(pair) for name, pair in plan.box.items()}
    (tmp_path / "plan.yaml").write_text(
        f"name: toy\nproducts: {tmp_path}\nbox: {sides}\nfixed: {plan.fixed}\nlmax: 1300\n"
        "camb: {lmax: 1600}\npoints: 60\nchecks: 10\ndegree: 1\nat_low_side: {H0: 5}\n"
    )
    done = CliRunner().invoke(app, ["emulator", f"{tmp_path / 'plan.yaml'}"])
    assert done.exit_code == 0, done.output
    assert len(asked[0]) == 75
    made = read_emulator(tmp_path / "emulator_toy.npz")
    expected = unit_box(asked[0][:65], *plan.sides())
    np.testing.assert_allclose(made.tables.design, expected, atol=1e-12)


def test_spectra_too_short_for_the_stretch_are_named(plan):
    short = replace(plan, camb=CambSettings(lmax=1350))
    with pytest.raises(EmulatorError, match=r"raise 'camb.lmax' to 1[45]00"):
        fit(short, made_up(short, short.design()[: short.points]))


def test_round_trip(toy, toy_path):
    again = read_emulator(toy_path)
    point = dict(zip(toy.parameters, (toy.tables.low + toy.tables.high) / 2, strict=True))
    for one, two in zip(toy(point)[:2], again(point)[:2], strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape == (1301,)
    assert set(toy(point)[2]) == set(SCALARS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"H0": None}, "the point lacks H0; the emulator needs ombh2, omch2, ns, H0, logA"),
        ({"logA": None, "As": 2.2e-9}, r"lacks logA; .* logA is ln\(10¹⁰ A_s\)"),
        ({"ombh2": None, "ns": None}, "lacks ombh2, ns;"),
        ({"mnu": 0.3}, r"has mnu = 0\.3, but the emulator was made at 0\.06; leave it out"),
        ({"omk": 0.1}, "has omk, which is unknown"),
        ({"H0": "70"}, "has H0 = '70', not a number"),
    ],
)
def test_an_incomplete_or_unknown_point_is_named(changes, message):
    point = FIDUCIAL | {"logA": 3.1} | changes
    point = {name: value for name, value in point.items() if value is not None}
    emulator = read_emulator("lcdm")
    for asked in (emulator, emulator.outside):
        with pytest.raises(EmulatorError, match=message):
            asked(point)


@pytest.mark.parametrize("point", [None, [0.0222, 0.1185], 3.0])
def test_a_point_is_a_mapping(point):
    with pytest.raises(EmulatorError, match="must map names to values"):
        read_emulator("lcdm")(point)


def test_a_fixed_parameter_may_be_given_as_it_was():
    """Also where the caller raises floating-point errors: `np.seterr(all="raise")`."""
    point = FIDUCIAL | {"logA": np.log(22.1)}
    usual = read_emulator("lcdm")(point)
    with np.errstate(all="raise"):
        again = read_emulator("lcdm")(point | {"tau": 0.0943, "mnu": 0.06})
    np.testing.assert_array_equal(again[0], usual[0])
    np.testing.assert_array_equal(again[1], usual[1])


# Of everything but r_drag; the first two from the files of format 1.
SPECTRA = {"lcdm": "a61437f67f24c573", "mnu": "042d7ed3c3707fd4", "feedback": "891b6128fc142be9"}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_spectra_of_a_shipped_emulator_do_not_change(name):
    """r_drag was added to the files; what makes the spectra in them has not changed by a bit."""
    assert spectra_digest(read_emulator(name).tables) == SPECTRA[name]


def spectra_digest(tables):
    digest = hashlib.sha256()
    for field in fields(tables):
        if field.name != "rdrag":
            digest.update(np.ascontiguousarray(getattr(tables, field.name)).tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(("name", "plan"), PLANS.items())
def test_the_sound_horizon_is_camb_s(name, plan):
    """At 40 random points of the box, to 1e-4."""
    made, plan = read_emulator(name), load_plan(REPOSITORY / "training" / f"{plan}.yaml")
    generator, checked = np.random.default_rng(4), 0
    while checked < 40:
        at = generator.uniform(made.tables.low, made.tables.high)
        point = dict(zip(made.parameters, at, strict=True))
        if made.outside(point):
            continue
        checked += 1
        background = camb.get_background(background_parameters(plan.cosmology(at)))
        expected = background.get_derived_params()["rdrag"]
        assert made(point)[2]["rdrag"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("H0", [90.0, np.nan])
def test_outside_the_box_is_refused(toy, H0):
    point = dict(zip(toy.parameters, (toy.tables.low + toy.tables.high) / 2, strict=True))
    with pytest.raises(EmulatorError, match=rf"H0 = {H0:g} \(from 55 to 80\)"):
        toy({**point, "H0": H0})


def test_a_universe_without_dark_energy_is_outside(toy):
    """A box may have such a corner; the design leaves it out."""
    low = np.where(np.array(toy.parameters) == "H0", 30.0, toy.tables.low)
    wide = Emulator(replace(toy.tables, low=low), toy.record)
    point = dict(zip(toy.parameters, toy.tables.high, strict=True))
    assert not wide.outside(point | {"H0": 43.0})
    with pytest.raises(EmulatorError, match=r"\(ombh2 \+ omch2\)/h² = 1\.0\d \(to 0\.95\)"):
        wide(point | {"H0": 40.0})


def rerecord(arrays, **changes):
    record = json.loads(str(arrays["record"])) | changes
    arrays["record"] = np.array(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a["targets"].__setitem__((0, 0), np.nan), "'targets' is not finite"),
        (lambda a: a.update(kk_mean=a["kk_mean"][:-1]), "'kk_mean' has shape"),
        (lambda a: a.update(design=a["design"][:, :-1]), "'design' has shape"),
        (lambda a: a.update(L=a["L"][::-1]), "'L' must increase"),
        (lambda a: a.update(high=a["low"]), "'low' must lie below"),
        (lambda a: a.pop("x"), "is not an emulator or is damaged"),
        (lambda a: a.update(record=np.array("{}")), "field 'format'"),
        (lambda a: a.pop("rdrag"), "rdrag"),
        (
            lambda a: rerecord(a, format="cobaya_cnnlens emulator 1"),
            "'format' is 'cobaya_cnnlens emulator 1', not 'cobaya_cnnlens emulator 2'; make it",
        ),
        (lambda a: a.update(record=np.array("[]")), "'record' is not a mapping"),
        (lambda a: a.update(record=np.array("[" * 100_000)), "is not an emulator or is damaged"),
        (lambda a: a.update(L=np.linspace(2, 1e12, len(a["L"]))), "'L' runs from 2 to 1e.12"),
        (lambda a: rerecord(a, kernel="no such"), "cannot be interpolated"),
        (lambda a: rerecord(a, degree=40), "cannot be interpolated"),
        (lambda a: rerecord(a, degree="3"), "'degree' is not a int"),
        (lambda a: rerecord(a, fixed=[1]), "'fixed' is not a dict"),
        (lambda a: rerecord(a, smoothing=True), "'smoothing' is not a float"),
        (
            lambda a: rerecord(a, parameters=["ombh2", "omch2", "H0", "H0", "logA"]),
            "'parameters' names one twice",
        ),
    ],
)
def test_damaged_files_are_refused(toy_path, damage, message):
    with np.load(toy_path) as file:
        arrays = dict(file)
    damage(arrays)
    np.savez(toy_path, **arrays)
    with pytest.raises(EmulatorError, match=message) as raised:
        read_emulator(toy_path)
    assert "toy.npz" in str(raised.value)


def test_missing_and_cut_files(toy_path):
    for name in ("nowhere", "lcmd", "mnu.npz"):
        with pytest.raises(
            EmulatorError, match=f"{name}: cannot be read .* shipped feedback, lcdm, mnu"
        ):
            read_emulator(name)
    empty = (b"", b"\x93NUMPY\x01\x00", b"PK\x05\x06" + bytes(18))
    for content in (toy_path.read_bytes()[:3000], *empty):
        toy_path.write_bytes(content)
        with pytest.raises(EmulatorError, match=r"toy.npz: is not an emulator or is damaged"):
            read_emulator(toy_path)


@pytest.mark.parametrize("name", ["lcdm", "mnu"])
def test_a_folder_is_no_emulator(name, tmp_path, monkeypatch):
    """One of a shipped emulator's name does not stand before it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert read_emulator(name).record["name"] == name
    (tmp_path / "mine").mkdir()
    with pytest.raises(EmulatorError, match=r"mine: cannot be read as an emulator \(Is a dir"):
        read_emulator("mine")


def test_paths_as_users_give_them(toy_path, monkeypatch):
    monkeypatch.setenv("HOME", str(toy_path.parent))
    for path in (toy_path, f"~/{toy_path.name}", Path("~") / toy_path.name, str(toy_path)):
        assert read_emulator(path).digest == read_emulator(toy_path).digest


def test_damage_is_refused_wherever_it_is(toy, toy_path):
    """A bit or a stretch of bytes altered, or the end cut off: refused, or read as it was."""
    whole = toy_path.read_bytes()
    generator = np.random.default_rng(3)
    for i in range(60):
        content = bytearray(whole)
        at = int(generator.integers(len(whole)))
        if i % 3 == 0:
            content[at] ^= 1 << int(generator.integers(8))
        elif i % 3 == 1:
            content[-1 - at % 1500] ^= 1 << int(generator.integers(8))
        else:
            del content[at:]
        toy_path.write_bytes(content)
        try:
            assert read_emulator(toy_path).digest == toy.digest
        except EmulatorError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("targets.npy", "w", force_zip64=True) as entry,
    ):
        for _ in range(80):
            entry.write(bytes(1_000_000))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(EmulatorError, match=r"bomb\.npz: unpacks to 80 MB"):
        read_emulator(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_check_runs_camb_at_its_own_points(plan, toy_path, release, tmp_path):
    """From a clone without products, and only there: those that made the emulator are many."""
    write_release(release, tmp_path / "release.json")
    settings = "lmax: 1300\ncamb: {lmax: 1600, lens_potential_accuracy: 0}\npoints: 2\nchecks: 1\n"
    box = {name: list(sides) for name, sides in plan.box.items()}
    (tmp_path / "plan.yaml").write_text(
        f"name: toy\nproducts: {tmp_path / 'products'}\nbox: {box}\nfixed: {plan.fixed}\n{settings}"
    )

    def check(emulator):
        options = ["--check", emulator, "--release", f"{tmp_path / 'release.json'}"]
        return CliRunner().invoke(
            app,
            ["emulator", f"{tmp_path / 'plan.yaml'}", *options],
            env={"COLUMNS": "200"},
        )

    done = check(f"{toy_path}")
    assert done.exit_code == 0, done.output
    assert "1 points that did not make the emulator" in done.output
    assert len(list((tmp_path / "products").glob("*.h5"))) == 1
    refused = check("mnu")
    assert refused.exit_code == 1
    assert "emulator 'mnu' is one of ombh2, omch2, ns, H0, logA, mnu" in str(refused.exception)


def emulated(**params):
    return {
        "likelihood": {"cobaya_cnnlens.CNNLens": {"release": "refined_fiducial", "primary": True}},
        "theory": {"cobaya_cnnlens.EmulatedCAMB": {"emulator": "lcdm"}},
        "params": {**FIDUCIAL, "As": 2.21e-9, **INSTRUMENT, **params},
    }


def test_through_cobaya(fiducial):
    """The shipped emulator at the fiducial cosmology against CAMB's own spectra."""
    model = get_model(emulated(sigma8=None, omegam=None))
    loglike, derived = model.loglike({})
    derived = dict(zip(model.parameterization.derived_params(), derived, strict=True))
    assert loglike < 0
    provider = model.provider
    kk = convergence_from_potential(provider.get_Cl(ell_factor=False)["pp"])
    ee = provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"]
    np.testing.assert_allclose(kk[2:4001], fiducial.kk[2:4001], rtol=1e-3)
    np.testing.assert_allclose(ee[30:4001], fiducial.ee[30:4001], rtol=1e-3)
    expected = camb.set_params(**FIDUCIAL, As=2.21e-9, tau=0.0943, mnu=0.06).omegam
    assert derived["omegam"] == pytest.approx(expected, rel=1e-5)


def test_a_point_outside_has_no_likelihood_and_says_so_once(caplog):
    free = {"prior": {"min": 0.05, "max": 0.3}}
    model = get_model(emulated(omch2=free))
    assert np.isfinite(model.loglike({"omch2": 0.12})[0])
    for value in (0.2, 0.21):
        assert model.loglike({"omch2": value})[0] == -np.inf
    said = [r for r in caplog.records if "outside the emulator's box" in r.getMessage()]
    assert len(said) == 1
    assert "omch2 = 0.2" in said[0].getMessage()


def test_lensing_amplitude_is_exact():
    """C_L^φφ is proportional to Alens, as CAMB's is to rounding, and C^EE is not touched."""
    model = get_model(emulated(Alens={"prior": {"min": 0, "max": 3}}))
    spectra = {}
    for amplitude in (1.0, 0.05, 1.7):
        model.loglike({"Alens": amplitude})
        spectra[amplitude] = (
            model.provider.get_Cl(ell_factor=False)["pp"],
            model.provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"],
        )
        np.testing.assert_allclose(spectra[amplitude][0], amplitude * spectra[1.0][0], rtol=1e-14)
        np.testing.assert_array_equal(spectra[amplitude][1], spectra[1.0][1])


def test_a_name_is_wanted():
    content = emulated()
    content["theory"]["cobaya_cnnlens.EmulatedCAMB"]["emulator"] = 3
    with pytest.raises(
        LoggedError, match=r"emulator 3 is not a path; give .* shipped feedback, lcdm"
    ):
        get_model(content)


def test_the_mass_of_the_neutrinos(fiducial):
    """The emulator that knows it: at .06 eV and the fiducial it is CAMB; through Cobaya, beside the
    one that does not."""
    made = read_emulator("mnu")
    kk, ee, _ = made(FIDUCIAL | {"logA": np.log(22.1), "mnu": 0.06})
    np.testing.assert_allclose(kk[2:4001], fiducial.kk[2:4001], rtol=1e-3)
    np.testing.assert_allclose(ee[30:4001], fiducial.ee[30:4001], rtol=1.5e-3)
    content = emulated(mnu={"prior": {"min": 0, "max": 0.6}})
    content["theory"]["cobaya_cnnlens.EmulatedCAMB"]["emulator"] = "mnu"
    model = get_model(content)
    logs = [model.loglike({"mnu": m})[0] for m in (0.0, 0.06, 0.3, 0.6)]
    assert logs[1] > logs[2] > logs[3]
    with pytest.raises(LoggedError, match="'mnu' has the neutrinos' mass"):
        get_model(emulated(mnu=0.1)).loglike({})


def feedback_errors(name, **change):
    """Δχ² of the survey's bandpowers between emulators and CAMB, by point of the fixture."""
    checks = json.loads((REPOSITORY / "tests" / "fixtures" / "feedback_checks.json").read_text())
    made, likelihood = (
        read_emulator(name.split(", ")),
        BandpowerLikelihood(read_release("refined_fiducial")),
    )
    delta_chi2, log_L = [], np.log(np.arange(2.0, made.lmax + 1.0))
    for check in checks[name]:
        kk = made(check["point"] | change)[0]
        off = np.array(check["ln_kk"]) - np.log(kk[checks["L"]])
        expected = kk.copy()
        expected[2:] *= np.exp(CubicSpline(np.log(checks["L"]), off)(log_L))
        moved = likelihood.model(expected) - likelihood.model(kk)
        delta_chi2.append(moved @ likelihood.inverse @ moved)
    return np.array(delta_chi2)


@pytest.mark.parametrize("name", ["feedback", "mnu, feedback"])
def test_feedback_is_camb_s(name):
    """At points that neither chose nor made the emulator; with another log T_AGN it is far off.
    The points are checks of the plan; for both ratios, points in the posterior of yaml/mnu.yaml."""
    assert feedback_errors(name).max() < 0.02
    assert np.median(feedback_errors(name, HMCode_logT_AGN=7.3)) > 1


def test_feedback_through_cobaya():
    """It lowers C^κκ, most at small scales; the emulators without it do not take it."""
    free = {"prior": {"min": 7.3, "max": 8.4}}
    content = emulated(HMCode_logT_AGN=free)
    content["theory"]["cobaya_cnnlens.EmulatedCAMB"]["emulator"] = "feedback"
    model = get_model(content)
    spectra = []
    for value in (7.3, 8.3):
        assert np.isfinite(model.loglike({"HMCode_logT_AGN": value})[0])
        spectra.append(model.provider.get_Cl(ell_factor=False)["pp"])
    suppression = spectra[1][2:] / spectra[0][2:]
    assert suppression[98] > 0.998
    assert 0.85 < suppression[2998] < 0.95
    assert (np.diff(suppression[98:2998]) < 0).all()
    assert model.loglike({"HMCode_logT_AGN": 8.35})[0] == -np.inf
    with pytest.raises(LoggedError, match="HMCode_logT_AGN"):
        get_model(emulated(HMCode_logT_AGN=free))


def test_mass_and_feedback_multiply():
    """C^κκ of both is that of the mass, times what the feedback changes; E is that of the mass."""
    mass, feedback, product = (read_emulator(n) for n in ("mnu", "feedback", ["mnu", "feedback"]))
    point = FIDUCIAL | {"logA": 3.1}
    massive, full = point | {"mnu": 0.2}, point | {"mnu": 0.2, "HMCode_logT_AGN": 8.0}
    kk, ee, scalars = product(full)
    ratio = feedback(point | {"HMCode_logT_AGN": 8.0})[0][2:] / read_emulator("lcdm")(point)[0][2:]
    np.testing.assert_allclose(kk[2:], mass(massive)[0][2:] * ratio, rtol=1e-12)
    np.testing.assert_array_equal(ee, mass(massive)[1])
    assert scalars == mass(massive)[2]
    assert len({mass.digest, feedback.digest, product.digest}) == 3
    assert product.box["H0"] == (65, 71)
    assert [text.split()[0] for text in product.outside(full | {"H0": 75, "mnu": 0.7})] == [
        "H0",
        "mnu",
    ]
    swapped = read_emulator(["feedback", "mnu"])(full)[0]
    np.testing.assert_allclose(swapped[2:], kk[2:], rtol=1e-12)
    for names in (["lcdm", "mnu"], ["mnu", "lcdm"], ["mnu", "mnu"]):
        with pytest.raises(EmulatorError, match="cannot be multiplied"):
            read_emulator(names)
    content = emulated(mnu=0.2, HMCode_logT_AGN={"prior": {"min": 7.3, "max": 8.3}})
    content["theory"]["cobaya_cnnlens.EmulatedCAMB"]["emulator"] = ["mnu", "feedback"]
    model = get_model(content)
    logs = [model.loglike({"HMCode_logT_AGN": value})[0] for value in (7.3, 7.8, 8.3)]
    assert logs[0] > logs[1] > logs[2]


def test_a_fixed_parameter_must_keep_its_value():
    """τ too, where a likelihood asks for C^EE."""
    get_model(emulated(tau=0.0943)).loglike({})
    with pytest.raises(LoggedError, match=r"made at 0\.0943; C\^EE at l < 60 depends on it"):
        get_model(emulated(tau=0.06)).loglike({})
    for mass in (0, 0.1):
        with pytest.raises(LoggedError, match=r"made at 0\.06; remove the parameter"):
            get_model(emulated(mnu=mass)).loglike({})


@pytest.mark.parametrize("tau", [0.03, 0.0544, 0.12])
def test_tau_changes_nothing_where_e_plays_no_part(tau):
    content = emulated(tau={"prior": {"min": 0.01, "max": 0.8}})
    content["likelihood"] = {"cobaya_cnnlens.CNNLens": {"release": "refined_fiducial"}}
    model = get_model(content)
    assert model.loglike({"tau": tau})[0] == model.loglike({"tau": 0.0943})[0]
    assert model.loglike({"tau": 0.7})[0] == -np.inf


@pytest.mark.parametrize(("name", "file"), PLANS.items())
def test_what_made_a_shipped_emulator_is_what_the_releases_were_made_with(name, file):
    made = read_emulator(name).record
    plan = load_plan(REPOSITORY / "training" / f"{file}.yaml")
    assert made["parameters"] == list(plan.parameters)
    np.testing.assert_array_equal(
        [read_emulator(name).tables.low, read_emulator(name).tables.high], plan.sides()
    )
    assert made["settings"]["lens_potential_accuracy"] == plan.camb.lens_potential_accuracy
    theirs = dict(read_release("refined_fiducial").theory["settings"])
    if name == "feedback":
        theirs["halofit_version"] += "_feedback"
    for key in ("lens_potential_accuracy", "halofit_version"):
        assert made["settings"][key] == theirs[key]
