import copy
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.release import (
    Release,
    from_document,
    read_release,
    seal,
    shipped_releases,
    to_document,
    write_release,
)

from .conftest import synthetic_release


@pytest.fixture
def document(release):
    return to_document(release)


def refused(document, match):
    """The document, sealed with a correct digest, is refused for the stated reason."""
    with pytest.raises(ReleaseError, match=match) as caught:
        from_document(seal(document), "file.json")
    assert str(caught.value).startswith("file.json: ")
    assert "\n" not in str(caught.value)


def test_round_trip(release, tmp_path):
    write_release(release, tmp_path / "r.json")
    again = read_release(tmp_path / "r.json")
    for f in fields(Release):
        a, b = getattr(release, f.name), getattr(again, f.name)
        if f.name == "windows":  # stored without trailing zeros
            assert not a[:, b.shape[1] :].any()
            a = a[:, : b.shape[1]]
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-9)
            assert not b.flags.writeable
        elif f.name != "instrument":
            assert a == b
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    # Reading and writing again changes nothing any more.
    write_release(again, tmp_path / "s.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "s.json").read_text()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.floats(1e-12, 1e3))
def test_round_trip_of_any_size_and_scale(n_bins, scale):
    release = synthetic_release(n_bins)
    scaled = replace(
        release,
        bandpowers=release.bandpowers * scale,
        patch_covariance=release.patch_covariance * scale**2,
        noise_covariance=release.noise_covariance * scale**2,
    )
    again = from_document(seal(json.loads(json.dumps(to_document(scaled)))), "x")
    np.testing.assert_allclose(again.bandpowers, scaled.bandpowers, rtol=1e-9)
    np.testing.assert_allclose(again.covariance, scaled.covariance, rtol=1e-8)


def test_covariance_is_that_of_the_survey(release):
    np.testing.assert_allclose(
        release.covariance,
        release.patch_covariance / 40 + release.noise_covariance + release.derivative_covariance,
    )


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
    ["data.bandpowers", "covariance.patch", "windows.values", "derivatives.ee", "truth", "theory"],
)
def test_missing_fields(document, key):
    *sections, last = key.split(".")
    part = document
    for section in sections:
        part = part[section]
    del part[last]
    refused(document, f"field '{key}' is missing")


def test_unknown_fields(document):
    document["data"]["bandpower"] = 1
    refused(document, "unknown field 'data.bandpower'")
    del document["data"]["bandpower"]
    document["extra"] = {}
    refused(document, "unknown field 'extra'")


def test_wrong_shapes(document):
    for key, part, name in (
        ("data", "bandpowers", r"data\.bandpowers"),
        ("calibration", "noise", r"calibration\.noise"),
    ):
        broken = copy.deepcopy(document)
        broken[key][part] = broken[key][part][:-1]
        refused(broken, f"field '{name}' has shape|fix n_bins")
    broken = copy.deepcopy(document)
    broken["covariance"]["patch"][1] = broken["covariance"]["patch"][1][:-1]
    refused(broken, "rows of different lengths")
    broken = copy.deepcopy(document)
    broken["derivatives"]["kk"] = [row[:-1] for row in broken["derivatives"]["kk"]]
    refused(broken, r"derivatives\.kk.*shape")


def test_wrong_types(document):
    for value in ("1e-9", True, None, [1.0], {}):
        broken = copy.deepcopy(document)
        broken["data"]["bandpowers"][0] = value
        refused(broken, r"field 'data\.bandpowers' holds")
    document["data"]["n_patches"] = 40.0
    refused(document, r"'data\.n_patches' must be int")


def test_huge_integers(document):
    for key, part in (("bins", "edges"), ("derivatives", "kk_edges"), ("windows", "first")):
        broken = copy.deepcopy(document)
        broken[key][part][-1] = 10**19
        refused(broken, f"field '{key}.{part}' holds a multipole beyond")
    document["data"]["n_patches"] = 10**400
    refused(document, r"'data\.n_patches' is beyond")


def test_metadata_that_plots_would_trip_over(document):
    broken = copy.deepcopy(document)
    broken["truth"]["omch2"] = "a"
    refused(broken, r"'truth\.omch2' must be a number")
    document["instrument"]["noise"] = -1.0
    refused(document, r"'instrument\.noise' must not be negative")


def test_empty_windows_and_negative_errors(release):
    windows = release.windows.copy()
    windows[1] = 0.0
    refused(to_document(replace(release, windows=windows)), r"no weight in bins \[1\]")
    errors = -release.kk_derivative_errors
    refused(to_document(replace(release, kk_derivative_errors=errors)), "must not be negative")


@pytest.mark.parametrize("path", [None, 5, "", {}])
def test_what_is_not_a_path(path):
    with pytest.raises(ReleaseError, match="is not a path; give the path of a file"):
        read_release(path)


def test_shipped_names_do_not_shadow_paths(tmp_path, release, monkeypatch):
    """Only a bare name means a shipped release; a path that ends in one is that path."""
    name = "laptop_fiducial"
    with pytest.raises(ReleaseError, match="no such release"):
        read_release(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    write_release(release, name)
    assert read_release(name).name == "synthetic"


def test_writing_leaves_the_release_as_it_was(release, tmp_path):
    before = dict(release.instrument)
    write_release(release, tmp_path / "r.json")
    assert release.instrument == before


def test_covariance_not_positive_definite(release):
    matrix = release.patch_covariance.copy()
    matrix[0] = matrix[1]
    matrix[:, 0] = matrix[:, 1]
    refused(to_document(replace(release, patch_covariance=matrix)), "not positive definite")
    negative = release.patch_covariance.copy()
    negative[2, 2] *= -1
    refused(to_document(replace(release, patch_covariance=negative)), "negative variance")
    lopsided = release.patch_covariance.copy()
    lopsided[0, 3] *= 1.01
    refused(to_document(replace(release, patch_covariance=lopsided)), "not symmetric")


def test_too_few_simulations(release):
    refused(
        to_document(replace(release, n_sim=7)),
        r"covariance\.n_sim' is 7: too few simulations for 5 bins; use at least 8",
    )
    from_document(seal(to_document(replace(release, n_sim=8))), "x")


def test_wrong_units(document):
    document["instrument"]["noise_unit"] = "K arcmin"
    refused(document, r"instrument\.noise_unit' must be 'uK arcmin'")


def test_nuisances_are_those_of_the_likelihood(document):
    other = copy.deepcopy(document)
    other["nuisances"]["names"] = ["gain", "beam", "noise", "tilt"]
    refused(other, r"nuisances\.names' must be \['gain', 'beam', 'noise', 'angle'\]")
    for rows in document["nuisances"]["first"]:
        rows.pop()
    refused(document, r"nuisances\.first' has shape \(5, 3\); 4 entries are needed")


def test_other_versions_and_files(document):
    refused({**document, "version": 1}, "'version' is 1.*reads 2")
    refused({**document, "format": "sacc"}, "another kind of file")
    with pytest.raises(ReleaseError, match="holds a list"):
        from_document([1], "file.json")


def test_edges_and_spectra(release):
    refused(to_document(replace(release, edges=release.edges[::-1])), "must ascend")
    ee = release.fiducial_ee.copy()
    ee[300] = 0.0
    refused(to_document(replace(release, fiducial_ee=ee)), "must be positive within its bands")
    refused(to_document(replace(release, fiducial_kk=release.fiducial_kk[:800])), "ends at l = 799")
    refused(to_document(replace(release, response=0 * release.response)), "must be positive")


def test_a_bad_release_is_not_written(release, tmp_path):
    bad = replace(release, bandpowers=np.full(5, np.nan))
    with pytest.raises(ReleaseError, match="not finite"):
        write_release(bad, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())
