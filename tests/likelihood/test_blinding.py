"""Blinded releases: χ², PTE and errors stay, parameters move, and nothing tells the open numbers
until the key does."""

import json
import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from cobaya.log import LoggedError
from cobaya.model import get_model
from cobaya.run import run
from cobaya.yaml import yaml_load_file
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError, ReleaseError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.blinding import (
    LARGEST_OFFSET,
    Offset,
    amplitude,
    blind,
    expected_bandpowers,
    shifted_bandpowers,
    unblind,
)
from cobaya_cnnlens.likelihood.combined import combine
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.encryption import BlindingKey
from cobaya_cnnlens.likelihood.export import export_release
from cobaya_cnnlens.likelihood.fields import Release
from cobaya_cnnlens.likelihood.release import (
    DATA_DIRECTORY,
    from_document,
    read_release,
    shipped_releases,
    write_release,
)
from cobaya_cnnlens.plots.posteriors import posteriors_figure, predictive_figure
from cobaya_cnnlens.plots.release_figure import release_figure
from cobaya_cnnlens.theory.camb import Cosmology
from cobaya_cnnlens.theory.emulator_files import read_emulator
from cobaya_cnnlens.validate.chains import load_chain
from cobaya_cnnlens.validate.predictive import predictive

from ..conftest import REPOSITORY, synthetic_release

NAME = "cobaya_cnnlens.CNNLens"
TEXT = "key 0 of these tests"  # of an offset that is far from zero
KEY, OTHER = BlindingKey.of(TEXT), BlindingKey(b"another" * 5)
FIDUCIAL = Cosmology()


@cache
def emulated(omch2: float, logA: float) -> np.ndarray:
    """C_L^κκ at the fiducial cosmology with other ω_c and ln A_s, from L = 0."""
    emulator = read_emulator("lcdm")
    point = {name: getattr(FIDUCIAL, name) for name in ("ombh2", "ns", "H0")}
    spectra = emulator(point | {"omch2": FIDUCIAL.omch2 + omch2, "logA": np.log(22.1) + logA})
    return spectra[0]


def ratio_of(offset: Offset, release: Release) -> np.ndarray:
    ratio = np.ones(len(release.fiducial_kk))
    inside = slice(2, len(ratio))
    ratio[inside] = emulated(offset.omch2, offset.logA)[inside] / emulated(0.0, 0.0)[inside]
    return ratio


def blinded(release: Release, key: BlindingKey = KEY) -> Release:
    return blind(release, ratio_of(Offset.drawn(key), release), key)


# The offset.


def test_the_offset_follows_from_the_key_alone():
    offset = Offset.drawn(KEY)
    assert offset == Offset.drawn(BlindingKey.of(TEXT))
    assert offset != Offset.drawn(OTHER)
    moved = offset.applied(FIDUCIAL)
    assert moved.omch2 == pytest.approx(FIDUCIAL.omch2 + offset.omch2)
    assert np.log(moved.As / FIDUCIAL.As) == pytest.approx(offset.logA)
    assert replace(moved, omch2=FIDUCIAL.omch2, As=FIDUCIAL.As) == FIDUCIAL


def test_offsets_of_many_keys_are_flat_and_independent():
    offsets = [Offset.drawn(BlindingKey(i.to_bytes(4, "big"))) for i in range(2000)]
    x = np.array([[o.omch2, o.logA] for o in offsets]) / list(LARGEST_OFFSET.values())
    assert np.abs(x).max() <= 1.0
    assert np.abs(x.mean(0)).max() < 4 / np.sqrt(3 * 2000)
    np.testing.assert_allclose(x.std(0), 1 / np.sqrt(3), rtol=0.05)
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(2000)


# What it does to the data.


def test_data_of_one_amplitude_become_those_of_the_other_cosmology():
    """Without noise, and with a model that is linear in the amplitude, exactly."""
    release = synthetic_release()
    release = replace(release, curvature=0 * release.curvature, power=1.5 * release.power)
    expected = expected_bandpowers(release, 1.1 * release.fiducial_kk)
    release = replace(release, bandpowers=expected + release.correction)
    assert amplitude(release) == pytest.approx(1.1, rel=1e-6)
    ratio = 1.0 + 1e-4 * np.arange(len(release.fiducial_kk))
    shifted = shifted_bandpowers(release, ratio) - release.correction
    assert np.abs(release.correction / shifted).max() > 0.02
    np.testing.assert_allclose(
        shifted, expected_bandpowers(release, 1.1 * ratio * release.fiducial_kk), rtol=1e-6
    )
    np.testing.assert_allclose(shifted_bandpowers(release, 1 + 0 * ratio), release.bandpowers)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_model_is_that_of_the_likelihood(second_order):
    """But for its tangent, which is exact where the model is linear."""
    release = read_release("refined_fiducial")
    if not second_order:
        release = replace(release, curvature=0 * release.curvature)
    likelihood = BandpowerLikelihood(release)
    constant = likelihood.release.bandpowers - (release.bandpowers - release.correction)
    kk = 1.02 * release.fiducial_kk
    model = likelihood.model(np.pad(kk, (0, 10))) - constant
    ours = expected_bandpowers(release, kk)
    np.testing.assert_allclose(ours, model, rtol=1e-4 if second_order else 1e-12)
    assert second_order == (np.abs(ours / model - 1).max() > 1e-9)


def test_data_that_no_cosmology_has_are_moved_from_the_nearest_amplitude():
    release = synthetic_release()
    for factor, nearest in ((0.1, 0.5), (30.0, 2.0)):
        data = factor * release.bandpowers + release.correction
        data = replace(release, bandpowers=data)
        assert amplitude(data) == nearest
        moved = shifted_bandpowers(data, np.full(len(release.fiducial_kk), 1.05))
        assert (moved > data.bandpowers).all()


def test_a_debias_of_more_than_all_power_is_refused():
    release = synthetic_release()
    more = replace(release, noise=-3 * release.noise)
    with pytest.raises(ReleaseError, match=r"field 'data\.power' subtracts more than all power"):
        shifted_bandpowers(more, np.ones(len(release.fiducial_kk)))


def fit(release: Release) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Lowest χ² over ω_c and ln A_s, its PTE, where it is, and the errors there."""
    likelihood, unit = BandpowerLikelihood(release), np.array([0.004, 0.04])

    def chi2(x):
        return likelihood.chi2(emulated(*(np.asarray(x) * unit)))

    simplex = np.vstack([np.zeros(2), np.eye(2)])
    options = {"xatol": 1e-3, "fatol": 1e-3, "initial_simplex": simplex}
    best = scipy.optimize.minimize(chi2, np.zeros(2), method="Nelder-Mead", options=options)
    step = 0.1 * np.eye(2)
    curvature = [
        [
            sum(s * t * chi2(best.x + s * a + t * b) for s in (1, -1) for t in (1, -1)) / 0.08
            for a in step
        ]
        for b in step
    ]
    errors = np.sqrt(np.diag(np.linalg.inv(curvature)))
    return best.fun, likelihood.pte(best.fun), best.x * unit, errors * unit


@pytest.mark.parametrize("name", ["refined_fiducial", "refined_high", "survey_mock"])
def test_the_fit_stays_as_good_and_parameters_move_by_the_offset(name):
    """Also of data that are 36σ from the fiducial cosmology, by the largest offset."""
    release = read_release(name)
    offset = Offset(-LARGEST_OFFSET["omch2"], -LARGEST_OFFSET["logA"])
    moved = replace(release, bandpowers=shifted_bandpowers(release, ratio_of(offset, release)))
    chi2, pte, at, errors = fit(release)
    their_chi2, their_pte, there, their_errors = fit(moved)
    assert their_chi2 == pytest.approx(chi2, abs=0.6)
    assert their_pte == pytest.approx(pte, abs=0.03)
    np.testing.assert_allclose(their_errors, errors, rtol=0.03)
    np.testing.assert_allclose(there - at, [offset.omch2, offset.logA], rtol=0.2)
    assert np.abs(moved.bandpowers / release.bandpowers - 1).min() > 0.01


# What a blinded release holds.


@pytest.mark.parametrize("name", shipped_releases())
def test_the_unblinded_file_is_the_one_that_never_was_blinded(name, tmp_path):
    write_release(blinded(read_release(name)), tmp_path / "blinded.json")
    opened, offset = unblind(read_release(tmp_path / "blinded.json"), KEY)
    assert offset == Offset.drawn(KEY)
    write_release(opened, tmp_path / "open.json")
    again = (tmp_path / "open.json").read_bytes()
    assert again == (DATA_DIRECTORY / f"{name}.json").read_bytes()
    assert again != (tmp_path / "blinded.json").read_bytes()


def test_a_blinded_file_holds_nothing_of_the_open_numbers(tmp_path):
    release = read_release("refined_high")
    hidden = blinded(release)
    write_release(hidden, tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text()
    for value in seal(to_document(release))["data"]["bandpowers"]:
        assert str(value) not in text
    assert "0.1285" not in text  # the truth
    assert seal(to_document(release))["digest"] not in text
    # All else is as it was: no second number from which the first would follow.
    ours, theirs = to_document(hidden), to_document(release)
    del ours["blinding"]
    ours["data"]["bandpowers"], ours["truth"] = theirs["data"]["bandpowers"], release.truth
    assert ours == theirs
    assert repr(hidden).endswith("160 patches, blinded>")


def test_made_again_it_is_the_same_file(tmp_path):
    release = read_release("survey_mock")
    assert seal(to_document(blinded(release))) == seal(to_document(blinded(release)))


def test_a_wrong_key_is_one_error():
    hidden = blinded(read_release("survey_mock"))
    with pytest.raises(ReleaseError, match=f"blinded with the key {KEY.name}, the given one is"):
        unblind(hidden, OTHER)
    altered = replace(hidden.blinding, hidden="A" + hidden.blinding.hidden[1:])
    with pytest.raises(ReleaseError, match=r"field 'blinding\.hidden' was altered"):
        unblind(replace(hidden, blinding=altered), KEY)
    moved = replace(hidden, n_patches=hidden.n_patches + 1)
    with pytest.raises(ReleaseError, match=r"'blinding\.hidden' is that of another release"):
        unblind(moved, KEY)
    with pytest.raises(ReleaseError, match="'survey_mock' is not blinded"):
        unblind(read_release("survey_mock"), KEY)


@pytest.mark.parametrize(
    ("field", "value"),
    [("key", 3), ("key", None), ("hidden", ["a"]), ("hidden", "\ud800"), ("more", "a")],
)
def test_other_content_of_the_field_is_refused(field, value):
    document = to_document(blinded(read_release("survey_mock")))
    document["blinding"][field] = value
    with pytest.raises(ReleaseError, match=r"field '?blinding"):
        from_document(seal(document), "r.json")


def test_a_blinded_file_tells_no_truth():
    document = to_document(blinded(read_release("survey_mock"))) | {"truth": {"omch2": 0.12}}
    with pytest.raises(ReleaseError, match="'truth' be null beside it"):
        from_document(seal(document), "r.json")


# What is refused while it is blinded.


def test_what_would_unblind_is_refused(tmp_path):
    hidden = blinded(read_release("refined_fiducial"))
    for format in ("cmblikes", "candl", "sacc"):
        with pytest.raises(CNNLensError, match="is blinded, which no other format says"):
            export_release(hidden, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CNNLensError, match=r"primary: true: release .* is blinded"):
        BandpowerLikelihood(hidden, primary=True)


def halves() -> list[Release]:
    """Two surveys of one calibration."""
    release = read_release("refined_fiducial")
    other = replace(release, name="other", bandpowers=1.003 * release.bandpowers)
    return [release, other]


def test_surveys_are_combined_if_one_key_blinds_them():
    first, second = halves()
    whole = combine([blinded(first), blinded(second)])
    assert whole.blinding.key == KEY.name
    parts = [blinded(release).bandpowers for release in (first, second)]
    np.testing.assert_allclose(whole.bandpowers, np.mean(parts, axis=0))
    with pytest.raises(ReleaseError, match=r"combines blinded releases; unblind these"):
        unblind(whole, KEY)
    for others in ([blinded(first), second], [first, blinded(second)]):
        with pytest.raises(ReleaseError, match="are not blinded with one key"):
            combine(others)
    with pytest.raises(ReleaseError, match="are not blinded with one key"):
        combine([blinded(first), blinded(second, OTHER)])
    assert combine([first, second]).blinding is None


def test_two_likelihoods_are_blinded_with_one_key(tmp_path):
    first, second = halves()
    paths = {}
    for name, release in (
        ("first", blinded(first)),
        ("second", blinded(second)),
        ("open", second),
        ("other", blinded(second, OTHER)),
    ):
        paths[name] = str(tmp_path / f"{name}.json")
        write_release(release, paths[name])

    def model(*names):
        info = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
        block = {"class": NAME, "instrument": "known", "check_theory": False}
        info["likelihood"] = {
            f"survey_{name}": block | {"release": paths[name], "suffix": f"_{name}"}
            for name in names
        }
        return get_model({key: info[key] for key in ("likelihood", "theory", "params")})

    model("first", "second").close()
    for others in (("first", "open"), ("open", "first"), ("first", "other")):
        with pytest.raises(LoggedError, match="are not blinded with one key"):
            model(*others)


# End to end.


def sample(release: str, output: Path) -> str:
    """A short chain of the shipped input, of one seed."""
    info = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
    info["likelihood"][NAME]["release"] = str(release)
    info["sampler"] = {"mcmc": {"seed": 4, "max_samples": 120, "measure_speeds": False}}
    # Wide enough to be begun in either place.
    info["params"]["omch2"] |= {"ref": {"dist": "norm", "loc": 0.1185, "scale": 0.003}}
    with warnings.catch_warnings():  # of pandas within Cobaya
        warnings.simplefilter("ignore")
        run(info | {"output": str(output)})
    return str(output)


def cnnlens(*words) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exception is None, done.exception
    return done.output


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """Chains of a survey: open, blinded, and unblinded by the command."""
    folder = tmp_path_factory.mktemp("survey")
    (folder / "key.txt").write_text(TEXT)
    write_release(blinded(read_release("refined_fiducial")), folder / "hidden.json")
    out = folder / "again.json"
    cnnlens(
        *("release", "unblind", folder / "hidden.json"),
        *("--key", folder / "key.txt", "--out", out),
    )
    return {
        "open": sample("refined_fiducial", folder / "open"),
        "hidden": sample(folder / "hidden.json", folder / "hidden"),
        "again": sample(out, folder / "again"),
    }


def test_the_unblinded_chain_is_the_open_one(chains):
    first, hidden, again = (Path(f"{chains[name]}.1.txt").read_text() for name in chains)
    assert first == again
    assert first != hidden


def test_a_chain_says_that_it_is_blinded(chains):
    """Tables and figures do, and they compare it with no truth."""
    hidden, offset = Path(chains["hidden"]), Offset.drawn(KEY)
    version = yaml.safe_load(Path(f"{hidden}.updated.yaml").read_text())["likelihood"][NAME]
    assert version["version"].startswith("blinded ")
    text = cnnlens("plot", hidden, "--param", "omch2")
    assert "blinded: a hidden offset moves" in text
    assert "0.1185" not in text
    assert "blinded" not in cnnlens("plot", chains["again"], "--param", "omch2")
    chain = load_chain(hidden)
    assert chain.truth == {}
    opened = load_chain(chains["again"])
    moved = chain.samples.mean("omch2") - opened.samples.mean("omch2")
    assert abs(moved) > 3 * opened.samples.std("omch2")
    assert np.sign(moved) == np.sign(
        np.mean(emulated(offset.omch2, offset.logA)[200:2000] / emulated(0.0, 0.0)[200:2000]) - 1
    )
    for params in (["omch2"], ["omch2", "sigma8"]):
        assert "(blinded)" in texts_of(posteriors_figure([chain], params))
    assert "blinded" not in texts_of(posteriors_figure([opened], ["omch2"]))


def test_the_check_of_a_chain_says_that_it_is_blinded(chains):
    text = cnnlens("check", chains["hidden"], "--out", f"{chains['hidden']}.check.png")
    assert "\nblinded: a hidden offset moves" in text
    check = predictive(chains["hidden"], samples=20)
    assert "blinded: " in texts_of(predictive_figure(check))
    opened = predictive(chains["again"], samples=20)
    assert "blinded" not in opened.table() + texts_of(predictive_figure(opened))
    assert check.best_chi2 == pytest.approx(opened.best_chi2, abs=1.0)


def test_a_chain_is_not_gone_on_with_once_it_is_open(chains, tmp_path):
    info = yaml_load_file(f"{chains['hidden']}.updated.yaml")
    info["likelihood"][NAME]["release"] = str(Path(chains["hidden"]).with_name("again.json"))
    sections = {key: info[key] for key in ("likelihood", "theory", "params")}
    with pytest.raises(LoggedError, match="is not the one that the chain was begun with"):
        get_model(sections)


def test_a_chain_stays_blinded_where_its_release_is_open_by_now(chains, tmp_path):
    for end in (".1.txt", ".updated.yaml"):
        (tmp_path / f"c{end}").write_text(Path(f"{chains['hidden']}{end}").read_text())
    info = yaml.safe_load((tmp_path / "c.updated.yaml").read_text())
    info["likelihood"][NAME]["release"] = "refined_fiducial"
    (tmp_path / "c.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    chain = load_chain(tmp_path / "c")
    assert (chain.blinded, chain.truth, chain.remark) == (True, {}, "")


def test_a_release_says_that_it_is_blinded(chains):
    folder = Path(chains["open"]).parent
    text = cnnlens("release", "show", folder / "hidden.json")
    assert "blinded: a hidden offset moves" in text
    assert "blinded bandpowers in units" in text
    assert re.search(rf"blinded with the key +{KEY.name}", text)
    assert "truth of the mock" not in text
    assert "blinded bandpowers" in texts_of(release_figure(read_release(folder / "hidden.json")))
    shown = cnnlens("release", "show", folder / "again.json")
    assert "blinded" not in shown
    assert "truth of the mock" in shown


def texts_of(figure) -> str:
    """All that a figure says, its title and legends."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_command_prints_the_offset(chains):
    folder, offset = Path(chains["open"]).parent, Offset.drawn(KEY)
    words = ("--key", folder / "key.txt", "--out", folder / "later.json")
    text = cnnlens("release", "unblind", folder / "hidden.json", *words)
    said = f"the offset was {offset.omch2:+.5f} of omch2 and {offset.logA:+.4f} of logA"
    assert text.splitlines() == [str(folder / "later.json"), said]
    assert json.loads((folder / "later.json").read_text())["truth"]["omch2"] == 0.1185
