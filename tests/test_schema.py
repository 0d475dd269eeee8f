"""docs/release.schema.json says of a release what the reader says, and describes every field."""

import copy
import json
from dataclasses import replace

import pytest

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.release import DATA_DIRECTORY, from_document, shipped_releases

from .conftest import REPOSITORY, synthetic_debias, synthetic_release

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads((REPOSITORY / "docs" / "release.schema.json").read_text(encoding="utf-8"))
# Sections whose keys the format leaves open.
OPEN = ("theory", "instrument", "provenance", "truth")


@pytest.fixture(scope="module")
def document() -> dict:
    """Of a release that has all there is."""
    release = synthetic_release()
    return seal(to_document(replace(release, data_debias=synthetic_debias(release))))


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def fields(document, prefix=""):
    """Dotted names of a document's fields; an open section is one field."""
    for key, value in document.items():
        if isinstance(value, dict) and key not in OPEN:
            yield from fields(value, f"{key}.")
        else:
            yield prefix + key


def without(document, field):
    changed = copy.deepcopy(document)
    *sections, last = field.split(".")
    inner = changed
    for section in sections:
        inner = inner[section]
    del inner[last]
    return changed


@pytest.mark.parametrize("name", shipped_releases())
def test_shipped_releases_are_valid(validator, name):
    validator.validate(json.loads((DATA_DIRECTORY / f"{name}.json").read_text(encoding="utf-8")))


def test_every_field_is_described(document):
    def described(schema, prefix=""):
        for key, part in schema["properties"].items():
            assert part.get("description"), f"{prefix}{key}"
            if "properties" in part and key not in OPEN:
                yield from described(part, f"{key}.")
            else:
                yield prefix + key

    assert sorted(described(SCHEMA)) == sorted(fields(document))


def test_every_key_of_the_open_sections_is_described():
    shipped = json.loads((DATA_DIRECTORY / "refined_fiducial.json").read_text(encoding="utf-8"))
    for section in ("theory", "instrument", "provenance"):
        assert set(shipped[section]) <= set(SCHEMA["properties"][section]["properties"]), section


def test_a_version_has_its_sections(document, validator):
    bare = seal(to_document(synthetic_release()))
    validator.validate(bare)
    validator.validate(document)
    for changed in (document | {"version": 2}, bare | {"version": 4}):
        assert not validator.is_valid(changed)
        with pytest.raises(ReleaseError):
            from_document(seal(changed), "changed")


def test_schema_and_reader_miss_the_same_fields(document, validator):
    from_document(document, "whole")
    for field in fields(document):
        lacking = without(document, field)
        assert not validator.is_valid(lacking), field
        with pytest.raises(ReleaseError, match=field):
            from_document(seal(lacking) if field != "digest" else lacking, "lacking")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "another"),
        ("version", 1),
        ("data.n_patches", 0),
        ("data.bandpowers", [1.0, "2", 3.0, 4.0, 5.0]),
        ("bins.edges", [36.5, 236, 436, 636, 836, 1036]),
        ("calibration.response", [0.9, 0.0, 0.9, 0.9, 0.9]),
        ("derivatives.curvature_errors", [1e-9, -1e-9, 1e-9, 1e-9, 1e-9]),
        ("nuisances.names", ["beam", "gain", "noise", "angle"]),
        ("fiducial.unit", "K2"),
        ("instrument.noise", -1.0),
        ("truth.omch2", "0.12"),
        ("data_debias.power", [1e-4, 0.0, 1e-6]),
        ("data_debias.curvature_errors", [1e-9, -1e-9, 1e-9, 1e-9, 1e-9]),
    ],
)
def test_schema_and_reader_refuse_the_same_values(document, validator, field, value):
    changed = copy.deepcopy(document)
    inner = changed
    *sections, last = field.split(".")
    for section in sections:
        inner[section] = inner[section] or {}
        inner = inner[section]
    inner[last] = value
    assert not validator.is_valid(changed)
    with pytest.raises(ReleaseError):
        from_document(seal(changed), "changed")
