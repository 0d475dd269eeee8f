import copy
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.fields import ARRAYS, NUISANCES, VERSION, Group, Sign, fields_of
from cobaya_cnnlens.likelihood.release import (
    Release,
    check_arrays,
    from_document,
    read_release,
    shipped_releases,
    without,
    write_release,
)
from cobaya_cnnlens.likelihood.summary import release_table

from ..conftest import BY_MULTIPOLE, synthetic_release


@pytest.fixture
def document(release):
    return to_document(release)


def refused(document, match):
    """The document, sealed with a correct digest, is refused for the stated reason."""
    with pytest.raises(ReleaseError, match=match) as caught:
        from_document(seal(document), "file.json")
    assert str(caught.value).startswith("file.json: ")
    assert "\n" not in str(caught.value)


def accepted(document):
    return from_document(seal(document), "file.json")


def test_round_trip(release, tmp_path):
    write_release(release, tmp_path / "r.json")
    again = read_release(tmp_path / "r.json")
    for f in fields(Release):
        a, b = getattr(release, f.name), getattr(again, f.name)
        if f.name == "windows":  # stored without trailing zeros
            assert not a[:, b.shape[1] :].any()
            a = a[:, : b.shape[1]]
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-6 if f.name in BY_MULTIPOLE else 1e-9)
            assert not b.flags.writeable
        elif f.name != "instrument":
            assert a == b
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    # Reading and writing again changes nothing any more.
    write_release(again, tmp_path / "s.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "s.json").read_text()
    assert release.instrument == synthetic_release().instrument


def test_covariance_is_that_of_the_survey(release):
    np.testing.assert_allclose(
        release.covariance,
        release.patch_covariance / 40 + release.noise_covariance + release.derivative_covariance,
    )


@pytest.mark.parametrize("text", ["hello\n", "omch2 0.1185", "<html></html>", "# weight omch2\n"])
def test_another_file_of_a_shipped_name(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refined_fiducial").write_text(text)
    with pytest.raises(ReleaseError, match=r"it is no release: give .* shipped refined_fiducial"):
        read_release("refined_fiducial")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.9999])
def test_truncated_file(release, tmp_path, keep):
    path = tmp_path / "r.json"
    write_release(release, path)
    text = path.read_text()
    path.write_text(text[: int(keep * len(text))])
    with pytest.raises(ReleaseError, match=r"r\.json: not valid JSON.*cut off or damaged"):
        read_release(path)


def test_altered_file(release, tmp_path):
    path = tmp_path / "r.json"
    write_release(release, path)
    path.write_text(path.read_text().replace('"n_patches": 40', '"n_patches": 41'))
    with pytest.raises(ReleaseError, match=r"field 'digest' does not match.*altered"):
        read_release(path)


def test_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(ReleaseError, match="no such release") as caught:
        read_release(tmp_path / "none.json")
    assert all(name in str(caught.value) for name in shipped_releases())


def test_binary_file(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    with pytest.raises(ReleaseError, match="cannot be read as text"):
        read_release(tmp_path / "b.json")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_values_that_are_not_finite(release, tmp_path, value):
    path = tmp_path / "r.json"
    write_release(release, path)
    document = json.loads(path.read_text())
    document["data"]["bandpowers"][2] = "HERE"
    path.write_text(json.dumps(document).replace('"HERE"', value))
    with pytest.raises(ReleaseError, match=r"not a number|not finite"):
        read_release(path)


@pytest.mark.parametrize(
    "key",
    ["data.bandpowers", "covariance.patch", "windows.values", "noise_bias.kk", "truth", "theory"],
)
def test_missing_fields(document, key):
    *sections, last = key.split(".")
    part = document
    for section in sections:
        part = part[section]
    del part[last]
    refused(document, f"field '{key}' is missing")


def with_value(document, key, value):
    """A copy with another value at a key, whose parts dots divide."""
    changed = copy.deepcopy(document)
    *sections, last = (int(k) if k.lstrip("-").isdigit() else k for k in key.split("."))
    part = changed
    for section in sections:
        part = part[section]
    part[last] = value
    return changed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.bandpower", 1, "unknown field 'data.bandpower'"),
        ("extra", {}, "unknown field 'extra'"),
        *(
            ("data.bandpowers.0", value, r"field 'data\.bandpowers' holds")
            for value in ("1e-9", True, None, [1.0], {})
        ),
        ("data.bandpowers", [1e-9] * 4, r"field 'data\.bandpowers' has shape|fix n_bins"),
        ("calibration.noise", [1e-9] * 4, r"field 'calibration\.noise' has shape|fix n_bins"),
        ("covariance.patch.1", [1e-18] * 4, "rows of different lengths"),
        ("noise_bias.kk", [[1e-9]] * 5, r"noise_bias\.kk.*shape"),
        ("data.n_patches", 40.0, r"'data\.n_patches' must be int"),
        ("data.n_patches", 10**400, r"'data\.n_patches' is beyond"),
        ("data.n_patches", 0, "is 0; a survey has at least one patch"),
        *(
            (f"{key}.-1", 10**19, f"field '{key}' holds a multipole beyond")
            for key in ("bins.edges", "noise_bias.kk_edges", "windows.first")
        ),
        ("primary.ee_edges.1", 300.5, "'primary.ee_edges' holds 300.5 where an integer is needed"),
        ("windows.first.0", -1, r"'windows\.first' must hold multipoles from zero up"),
        ("truth.omch2", "a", r"'truth\.omch2' must be a number"),
        ("truth.omch2", np.inf, "which is not finite"),
        ("instrument.noise", np.nan, "which is not finite"),
        ("instrument.noise", -1.0, r"'instrument\.noise' must not be negative"),
        ("instrument.noise_unit", "K arcmin", r"instrument\.noise_unit' must be 'uK arcmin'"),
        ("provenance.seed", [10**400], "which is not finite"),
        ("provenance.derivative_step", "a tenth", r"derivative_step' must be a number"),
        ("theory.cosmology", [1], "'theory.cosmology' must be"),
        ("theory.cosmology", {"omch2": "0.12"}, r"theory\.cosmology\.omch2' must be a n"),
        ("nuisances.names.-1", "tilt", re.escape(f"nuisances.names' must be {list(NUISANCES)}")),
        ("nuisances.first", [[0.0]] * 5, rf"shape \(5, 1\); {len(NUISANCES)} entries are needed"),
        ("version", 1, f"'version' is 1.*reads {VERSION}"),
        ("format", "sacc", "another kind of file"),
    ],
)
def test_wrong_values(document, key, value, message):
    refused(with_value(document, key, value), message)


def test_arrays_of_the_wrong_kind(document):
    """What is no list of numbers, or nested too little or too much, in every array's place."""
    arrays = [
        (section, name)
        for section, content in document.items()
        if isinstance(content, dict)
        for name, value in content.items()
        if isinstance(value, list) and (section, name) != ("nuisances", "names")
    ]
    assert len(arrays) == len(ARRAYS) + 2  # and the two of the windows
    for section, name in arrays:
        was = document[section][name]
        nested = isinstance(was[0], list)
        for value in (5, 0.0, "a", {}, [], None, True, [was], was[0], [[]], [None], [[0.0], [{}]]):
            broken = {**document, section: {**document[section], name: value}}
            refused(broken, f"field '{section}.{name}' (holds|must|has)")
        if not nested:
            refused({**document, section: {**document[section], name: [[1.0]] * len(was)}}, name)


def test_windows_are_one_row_a_bin(document):
    windows = document["windows"]
    for change in (
        {"first": windows["first"][:-1]},
        {"values": windows["values"][:-1]},
        {"first": [*windows["first"], 3], "values": [*windows["values"], [1.0]]},
    ):
        broken = {**document, "windows": {**windows, **change}}
        refused(broken, r"'windows\.values' must hold 5 rows, one per bin")
    read = accepted(with_value(document, "windows.first.0", 0)).windows
    assert read.shape == (5, 1036)
    np.testing.assert_array_equal(np.flatnonzero(read[0]), np.arange(200))
    np.testing.assert_array_equal(np.flatnonzero(read[4]), np.arange(836, 1036))


def names_with(sign):
    return [name for name, numbers in ARRAYS.items() if numbers.sign is sign]


@pytest.mark.parametrize("name", names_with(Sign.POSITIVE))
def test_fields_that_must_be_positive(release, name):
    for value in (0.0, -1e-9):
        changed = getattr(release, name).copy()
        changed[-1] = value
        refused(to_document(replace(release, **{name: changed})), "must be positive throughout")


@pytest.mark.parametrize("name", names_with(Sign.NOT_NEGATIVE))
def test_fields_that_must_not_be_negative(release, name):
    changed = getattr(release, name).copy()
    changed.flat[-1] = 0.0
    accepted(to_document(replace(release, **{name: changed})))
    changed.flat[-1] = -1e-12
    refused(to_document(replace(release, **{name: changed})), "must not be negative")


@pytest.mark.parametrize(
    "name", [name for name, n in ARRAYS.items() if len(n.shape) > len({*n.shape})]
)
def test_covariances_are_covariances(release, name):
    negative = getattr(release, name).copy()
    negative[-1, -1] *= -1
    refused(to_document(replace(release, **{name: negative})), "negative variance")
    lopsided = getattr(release, name).copy()
    for change, check in ((1e-9, accepted), (1e-6, refused), (-0.05, refused)):
        lopsided[0, 1] = lopsided[1, 0] + change * np.sqrt(lopsided[0, 0] * lopsided[1, 1])
        changed = to_document(replace(release, **{name: lopsided}))
        check(changed, *(["not symmetric"] if check is refused else []))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("patch_covariance", "covariance.patch"),
        ("fixed_patch_covariance", "fixed.patch"),
        ("power_covariance", "primary.covariance"),
    ],
)
def test_covariances_of_data_have_an_inverse(release, name, key):
    matrix = getattr(release, name).copy()
    matrix[0] = matrix[1]
    matrix[:, 0] = matrix[:, 1]
    refused(to_document(replace(release, **{name: matrix})), f"'{key}' is not positive definite")


@pytest.mark.parametrize("name", ["surface_error_terms", "surface_error_bins"])
def test_the_error_of_the_surface_is_a_covariance(release, name):
    """A correlation beyond one makes the error negative somewhere; errors of zero are none."""
    matrix = getattr(release, name).copy()
    accepted(to_document(replace(release, **{name: 0 * matrix})))
    matrix[0, 1] = matrix[1, 0] = 1.1 * np.sqrt(matrix[0, 0] * matrix[1, 1])
    refused(to_document(replace(release, **{name: matrix})), "has a negative eigenvalue")


@pytest.mark.parametrize("group", [g for g in Group if len(fields_of(g)) > 1][1:])
def test_part_of_a_group_is_refused(release, group):
    """By the key that is missing, from a file and from a release made by hand."""
    names = fields_of(group)
    for name in (names[0], names[-1]):
        part = replace(release, **{name: np.zeros((0, 0))})
        key = re.escape(ARRAYS[name].key)
        refused(to_document(part), f"field '{key}' is missing")
        with pytest.raises(ReleaseError, match=f"synthetic: field '{key}' is missing"):
            check_arrays(part)


def test_groups_that_need_others(release):
    for group in (Group.SECOND_ORDER, Group.PRIMARY, Group.FIXED):
        bare = without(
            release, *{Group.DEBIAS, Group.SECOND_ORDER, Group.PRIMARY, Group.FIXED} - {group}
        )
        refused(to_document(bare), "field 'data.power' is missing")
    refused(to_document(without(release, Group.FIXED)), r"field 'fixed\.patch' is missing")
    for absent in (
        [Group.PRIMARY],
        [Group.SECOND_ORDER],
        [g for g in Group if g is not Group.ALWAYS],
    ):
        again = accepted(to_document(without(release, *absent)))
        assert {g for g in Group if not again.has(g)} == {*absent}


def test_lengths_that_follow_from_others(release, document):
    broken = copy.deepcopy(document)
    broken["debias"]["second"] = [row[:2] for row in broken["debias"]["second"]]
    refused(broken, r"'debias\.second' holds 2 products; 2 directions have 3")
    edges = replace(release, e_edges=release.e_edges[:-1])
    refused(to_document(edges), r"'data\.power' has 3 entries; the edges in 'debias' make 2")
    # A release made by hand passes the same check.
    second = replace(release, debias_second=release.debias_second[:, :2])
    terms = replace(release, surface_error_terms=release.surface_error_terms[1:, 1:])
    for made, key in ((second, "second"), (terms, "error_terms"), (edges, "power")):
        with pytest.raises(ReleaseError, match=rf"synthetic: field '\w+\.{key}' "):
            BandpowerLikelihood(made)


def test_spectra_reach_their_bands_and_windows(release):
    """To the last multipole of the last band, and of the windows: one less is refused."""
    for name, edge in (("fiducial_kk", 1100), ("fiducial_ee", 1200)):
        whole = getattr(release, name)
        accepted(to_document(replace(release, **{name: whole[:edge]})))
        shorter = to_document(replace(release, **{name: whole[: edge - 1]}))
        refused(shorter, f"ends at l = {edge - 2}, its bands at {edge - 1}")
        for l in (2, edge - 1):
            hole = whole.copy()
            hole[l] = 0.0
            refused(to_document(replace(release, **{name: hole})), "must be positive within")
    windows = np.zeros((5, 1202))
    windows[:, :1100] = release.windows
    windows[4, 1200] = 1e-5
    accepted(to_document(replace(release, windows=windows)))
    windows[4, 1201] = 1e-5
    refused(to_document(replace(release, windows=windows)), r"reach L = 1201, beyond fiducial\.kk")


def test_edges_ascend_from_zero(release):
    for name in ("edges", "kk_edges", "ee_edges", "e_edges", "b_edges"):
        edges = getattr(release, name)
        double = edges.copy()
        double[1] = double[0]
        below = edges.copy()
        below[0] = -1
        zero = edges.copy()
        zero[0] = 0
        accepted(to_document(replace(release, **{name: zero})))
        for bad in (edges[::-1], double, below):
            refused(to_document(replace(release, **{name: bad})), "must ascend from zero or above")


def test_numbers_of_patches_and_simulations(release):
    accepted(to_document(replace(release, n_patches=1)))
    for n_bins in (2, 5):
        few = replace(synthetic_release(n_bins), n_sim=n_bins + 2)
        refused(to_document(few), f"use at least {n_bins + 3}")
        accepted(to_document(replace(few, n_sim=n_bins + 3)))


@pytest.mark.parametrize(
    "name", ["../../escaped", "a/b", "a\\b", "", ".hidden", "a\nb", "a" * 101, "\ud800", "CON\x00"]
)
def test_names_that_are_no_file_names(release, name):
    refused(to_document(replace(release, name=name)), "field 'name'")
    with pytest.raises(ReleaseError, match="field 'name'"):
        write_release(replace(release, name=name), "never_written.json")


def test_names_that_are(release):
    for name in ("refined_fiducial", "1uK 2026-01.v2+b", "Ωm", "a" * 100):
        assert accepted(to_document(replace(release, name=name))).name == name


def test_metadata_that_is_no_text_or_number(release, document):
    """Halves of UTF-16 pairs, terminal codes, nesting, infinities: in a key, a value, a list."""
    for bad in ("\ud83d", "\x1b[2J", "a\x00"):
        for change in (
            {"description": bad},
            {"provenance": {"seeds": {"a": [1, bad]}}},
            {"theory": {bad: 1}},
        ):
            refused(to_document(replace(release, **change)), "which is no plain text")
        refused({**document, bad: 1}, "unknown field")
        refused({**document, "data": {**document["data"], bad: 1}}, "unknown field")
    deep: dict = {}
    for _ in range(3000):
        deep = {"a": deep}
    nested = replace(release, provenance=deep)
    with pytest.raises(ReleaseError, match=r"file.json: field 'provenance.* is nested too deeply"):
        from_document({**to_document(nested), "digest": ""}, "file.json")
    with pytest.raises(ReleaseError, match="nested too deeply"):
        write_release(nested, "never_written.json")
    smile = replace(release, description="two\nlines \U0001f600")
    assert accepted(to_document(smile)).description == smile.description


def test_files_that_are_no_text(release, tmp_path):
    """latin-1, and JSON that Python's own parser gives up on or reads as infinite."""
    path = tmp_path / "r.json"
    write_release(replace(release, description="µK"), path)
    text = path.read_text(encoding="utf-8")
    path.write_bytes(
        text.replace('"description": "\\u00b5K"', '"description": "µK"').encode("latin-1")
    )
    with pytest.raises(ReleaseError, match="cannot be read as text"):
        read_release(path)
    for content in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        '{"version": ' + "9" * 5000 + "}",
    ):
        path.write_text(content)
        with pytest.raises(ReleaseError, match=r"r\.json: (nested too deeply|not valid JSON)"):
            read_release(path)
    for strange in ("a\x00b", "\ud800", "a" * 5000, tmp_path):
        with pytest.raises(ReleaseError, match=r"cannot be read as|no such release"):
            read_release(strange)


def test_folders_that_cannot_be_written(release, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReleaseError, match=r"file/r\.json: cannot be written \(.*\)"):
        write_release(release, tmp_path / "file" / "r.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ReleaseError, match="cannot be written"):
        write_release(release, tmp_path / "folder.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.json"]


def test_digits_and_windows_of_the_file(release, tmp_path):
    """The file holds what it says, field by field, ten digits each."""
    write_release(replace(release, n_sim=501), tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert (document["data"]["n_patches"], document["covariance"]["n_sim"]) == (40, 501)
    assert document["windows"]["first"] == [36, 236, 436, 636, 836]
    assert document["windows"]["values"] == [[0.005] * 200] * 5
    assert document["nuisances"]["names"] == list(NUISANCES)
    for value, exact in zip(document["data"]["bandpowers"], release.bandpowers, strict=True):
        assert value == float(f"{exact:.10g}")
    again = read_release(tmp_path / "r.json")
    np.testing.assert_array_equal(again.centres, [136, 336, 536, 736, 936])
    assert (again.n_bins, again.derivative_step) == (5, 0.1)
    step = replace(release, provenance={"derivative_step": 0.2})
    assert step.derivative_step == 0.2


def test_digest_is_that_of_the_content(document):
    """It does not change with the order of the fields, and it does with any value."""
    digest = seal(document)["digest"]
    assert seal(dict(reversed(document.items())))["digest"] == digest
    assert seal({**document, "digest": "a"})["digest"] == digest
    for change in ({"name": "b"}, {"truth": None}, {"extra": 0}):
        assert seal({**document, **change})["digest"] != digest


def test_release_show_keeps_names_from_values():
    rows = [line.split() for line in release_table(read_release("refined_fiducial")).splitlines()]
    assert ["derivative_excursion_omch2", "0.01"] in rows
    release = replace(synthetic_release(), provenance={"a" * 60: 1, "b": {"c" * 40: 2}})
    rows = [line.split() for line in release_table(release).splitlines()]
    assert ["a" * 60, "1"] in rows
    assert ["c" * 40, "2"] in rows


def test_empty_windows(release):
    windows = release.windows.copy()
    windows[1] = 0.0
    refused(to_document(replace(release, windows=windows)), r"no weight in bins \[1\]")


@pytest.mark.parametrize("path", [None, 5, "", {}])
def test_what_is_not_a_path(path):
    with pytest.raises(ReleaseError, match="is not a path; give the path of a file"):
        read_release(path)


def test_shipped_names_do_not_shadow_paths(tmp_path, release, monkeypatch):
    """Only a bare name means a shipped release; a path that ends in one is that path."""
    name = "refined_fiducial"
    with pytest.raises(ReleaseError, match="no such release"):
        read_release(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    write_release(release, name)
    assert read_release(name).name == "synthetic"


@pytest.mark.parametrize("name", ["refined_fiducial", "refined_low", "survey_mock"])
def test_a_folder_is_no_release(tmp_path, monkeypatch, name):
    """One of a shipped release's name does not stand before it; another one is told to be one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "run").mkdir(parents=True)
    assert read_release(name).n_patches in (49, 160)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ReleaseError, match=r"mine: cannot be read as a release \(Is a dir") as said:
        read_release("mine")
    assert "restore" not in str(said.value)
    assert all(shipped in str(said.value) for shipped in shipped_releases())


def test_paths_as_users_give_them(tmp_path, release, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_release(release, tmp_path / "r.json")
    for path in (tmp_path / "r.json", "~/r.json", Path("~/r.json"), str(tmp_path / "r.json")):
        assert read_release(path).name == "synthetic"
    assert read_release(Path("refined_low")).name == read_release("refined_low").name
    with pytest.raises(ReleaseError, match=f"{tmp_path}/none.json: no such release"):
        read_release("~/none.json")
    with pytest.raises(ReleaseError, match=r"~no_such_user/r\.json: no such release"):
        read_release("~no_such_user/r.json")


def test_another_kind_of_document():
    with pytest.raises(ReleaseError, match="holds a list"):
        from_document([1], "file.json")


def test_a_bad_release_is_not_written(release, tmp_path):
    bad = replace(release, bandpowers=np.full(5, np.nan))
    with pytest.raises(ReleaseError, match="not finite"):
        write_release(bad, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_a_release_is_told_in_a_line():
    told = repr(read_release("refined_fiducial"))
    assert told == "<Release 'refined_fiducial': 24 bins in L = 36-3084, 160 patches>"
