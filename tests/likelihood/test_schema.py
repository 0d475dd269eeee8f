"""The JSON schema says of a release what the reader says, and describes every field."""

import copy
import json

import pytest

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood.declarations import Blinding
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.fields import Group
from cobaya_cnnlens.likelihood.release import (
    DATA_DIRECTORY,
    from_document,
    shipped_releases,
    without,
)
from cobaya_cnnlens.likelihood.schema import json_schema

from ..conftest import synthetic_release

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json_schema()
# Sections whose keys the format leaves open.
OPEN = ("theory", "instrument", "provenance", "truth")
OPTIONAL = [group for group in Group if group is not Group.ALWAYS]


@pytest.fixture(scope="module")
def document() -> dict:
    """Of a release that has all there is; blinded, so that it has no truth."""
    blinded = synthetic_release(truth=None, blinding=Blinding("0" * 16, "AAAA"))
    return seal(to_document(blinded))


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


def changed_at(document, field, value=None):
    """The document with another value of a field, or without it."""
    changed = copy.deepcopy(document)
    inner = changed
    *sections, last = field.split(".")
    for section in sections:
        inner[section] = inner[section] or {}
        inner = inner[section]
    inner[last] = value
    if value is None:
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


@pytest.mark.parametrize("absent", [[], OPTIONAL, [Group.PRIMARY], [Group.SECOND_ORDER]])
def test_groups_may_be_absent(validator, absent):
    validator.validate(seal(to_document(without(synthetic_release(), *absent))))


def test_schema_and_reader_miss_the_same_fields(document, validator):
    from_document(document, "whole")
    # What a mock whose polarisation is not rotated lacks.
    for field in set(fields(document)) - {"data.rotation"}:
        lacking = changed_at(document, field)
        assert not validator.is_valid(lacking), field
        with pytest.raises(ReleaseError, match=field):
            from_document(seal(lacking) if field != "digest" else lacking, "lacking")


def test_schema_and_reader_miss_the_same_sections(document, validator):
    bare = to_document(without(synthetic_release(), *OPTIONAL))
    with_power = changed_at(bare, "data.power", [1e-4, 1e-4, 1e-6])
    lacking = [{k: v for k, v in document.items() if k != name} for name in ("debias", "fixed")]
    lacking += [{**bare, name: document[name]} for name in ("debias", "fixed", "primary")]
    for changed in (*lacking, with_power):
        assert not validator.is_valid(seal(changed))
        with pytest.raises(ReleaseError, match=r"field '(debias|fixed|data\.power).*is missing"):
            from_document(seal(changed), "lacking")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "another"),
        ("version", 4),
        ("data.n_patches", 0),
        ("data.bandpowers", [1.0, "2", 3.0, 4.0, 5.0]),
        ("data.power", [1e-4, 0.0, 1e-6]),
        ("bins.edges", [36.5, 236, 436, 636, 836, 1036]),
        ("calibration.response", [0.9, 0.0, 0.9, 0.9, 0.9]),
        ("noise_bias.curvature_errors", [1e-9, -1e-9, 1e-9, 1e-9, 1e-9]),
        ("nuisances.names", ["beam", "gain", "noise"]),
        ("fiducial.unit", "K2"),
        ("instrument.noise", -1.0),
        ("truth.omch2", "0.12"),
        ("debias.gains", [1.0]),
        ("windows.first", [-1, 236, 436, 636, 836]),
        ("blinding.key", 3),
        ("blinding.hidden", ["a"]),
        ("blinding.offset", 0.1),
        ("truth", {"omch2": 0.12}),
    ],
)
def test_schema_and_reader_refuse_the_same_values(document, validator, field, value):
    changed = changed_at(document, field, value)
    assert not validator.is_valid(changed)
    with pytest.raises(ReleaseError):
        from_document(seal(changed), "changed")
