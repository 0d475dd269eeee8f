"""A release as a JSON document: reading, writing, the JSON schema and the digest.

All of it follows from the fields that :mod:`.fields` declares.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Container
from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import ReleaseError
from .declarations import LENGTHS, NUISANCES, VERSION, Blinding, Group, Numbers, read_only
from .fields import ARRAYS, Release
from .spectra import n_terms

FORMAT = "cobaya_cnnlens release"
_SCALARS: dict[str, tuple[str, type]] = {
    "name": ("name", str),
    "description": ("description", str),
    "data.n_patches": ("n_patches", int),
    "covariance.n_sim": ("n_sim", int),
    "theory": ("theory", dict),
    "instrument": ("instrument", dict),
    "provenance": ("provenance", dict),
}
_OTHER = {"format", "version", "digest", "truth", "windows.first", "windows.values"}
_BLINDING = {"blinding.key", "blinding.hidden"}
# Beyond any multipole or number of simulations; keeps arithmetic on a hostile file finite.
# Numbers by multipole, which are most of a release file.
_SPECTRA = "fiducial.kk", "fiducial.ee"
_LARGEST_INTEGER = 10**9
_LARGEST_MULTIPOLE = 100_000
# Files are named after a release, so its name must be a file's on any system.
_NAME = re.compile(r"\w[\w .+-]*")
_LONGEST_NAME = 100
# Sections of free content, and how deep they may be nested.
_FREE = ("name", "description", "theory", "instrument", "provenance", "truth")
_DEEPEST = 20
# Control characters, and halves of UTF-16 pairs, which JSON can write and no file can hold.
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Fields whose content is a convention: any other is refused.
CONVENTIONS: dict[str, Any] = {
    "instrument.noise_unit": "uK arcmin",
    "instrument.beam_unit": "arcmin",
    "fiducial.unit": "muK2",
    "nuisances.names": list(NUISANCES),
}


def to_document(release: Release) -> dict[str, Any]:
    """A release as a JSON document.

    Parameters
    ----------
    release : not checked

    Returns
    -------
    nested plain dictionaries and lists, without the digest; arrays that are empty are left out
    """
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for key, (attribute, _) in _SCALARS.items():
        value = getattr(release, attribute)
        _put(document, key, dict(value) if isinstance(value, dict) else value)
    document["truth"] = release.truth
    if release.blinding is not None:
        document["blinding"] = asdict(release.blinding)
    for name, numbers in ARRAYS.items():
        if (array := getattr(release, name)).size:
            convert = _rounded_multipole if numbers.key in _SPECTRA else _rounded
            _put(document, numbers.key, _nested(array, int if numbers.integers else convert))
    first, values = [], []
    for row in release.windows:
        inside = np.flatnonzero(row)
        start, stop = (inside[0], inside[-1] + 1) if len(inside) else (0, 1)
        first.append(int(start))
        values.append(_nested(row[start:stop], _rounded_multipole))
    document["windows"] = {"first": first, "values": values}
    for key, content in CONVENTIONS.items():
        _put(document, key, content)
    return document


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """Add the digest of its content to a document.

    Parameters
    ----------
    document : of :func:`to_document`

    Returns
    -------
    a new document
    """
    return {**document, "digest": _digest(document)}


def values_of(document: dict[str, Any], source: str) -> dict[str, Any]:
    """Attributes of a release from its document, each checked by itself.

    Parameters
    ----------
    document : as JSON gives it
    source : names the document in errors

    Returns
    -------
    arguments of :class:`~.fields.Release`

    Raises
    ------
    ReleaseError
        if a field is missing, unknown, or of a wrong type, shape or convention
    """
    if not isinstance(document, dict):
        raise ReleaseError(f"{source}: holds a {type(document).__name__}, not a release")
    if document.get("format") != FORMAT:
        raise ReleaseError(
            f"{source}: field 'format' is not '{FORMAT}'; this is another kind of file"
        )
    version = document.get("version")
    if version != VERSION or isinstance(version, bool | float):
        raise ReleaseError(
            f"{source}: field 'version' is {version!r:.40}, this package reads {VERSION}; install "
            "the package version that wrote the file, or make it again with `cnnlens release make`"
        )
    _check_keys(document, source)
    values: dict[str, Any] = {}
    for key, (attribute, kind) in _SCALARS.items():
        value = _get(document, key, source)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ReleaseError(
                f"{source}: field '{key}' must be {kind.__name__}, not {value!r:.40}"
            )
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            raise ReleaseError(f"{source}: field '{key}' is beyond {_LARGEST_INTEGER}; correct it")
        values[attribute] = value
    values["truth"] = document["truth"]
    if values["truth"] is not None and not isinstance(values["truth"], dict):
        raise ReleaseError(f"{source}: field 'truth' must be a mapping or null")
    _check_metadata(values, source)
    values["blinding"] = _blinding(document, source)
    dimensions = dict(LENGTHS)
    groups = _groups(document)
    for name, numbers in ARRAYS.items():
        if numbers.group in groups:
            values[name] = _array(document, numbers, dimensions, source)
    values["windows"] = _windows(document, dimensions["n_bins"], source)
    check_dimensions(dimensions, source)
    for key, content in CONVENTIONS.items():
        if _get(document, key, source) != content:
            raise ReleaseError(
                f"{source}: field '{key}' must be {content!r}; convert the values to it"
            )
    return values


def _blinding(document: dict[str, Any], source: str) -> Blinding | None:
    """What a document says of its blinding; a blinded one tells no truth."""
    if "blinding" not in document:
        return None
    key, hidden = (_get(document, name, source) for name in ("blinding.key", "blinding.hidden"))
    texts = isinstance(key, str) and isinstance(hidden, str | None)
    if not texts or _NO_TEXT.search(f"{key}{hidden}") or document["truth"] is not None:
        raise ReleaseError(
            f"{source}: field 'blinding' must hold plain texts ('hidden' may be null), and 'truth' "
            "be null beside it; make the release again"
        )
    return Blinding(key, hidden)


def _groups(document: dict[str, Any]) -> set[Group]:
    """Groups of which a document holds at least one field."""
    present = {Group.ALWAYS}
    for numbers in ARRAYS.values():
        section, _, last = numbers.key.partition(".")
        if isinstance(content := document.get(section), dict) and last in content:
            present.add(numbers.group)
    # What belongs to the debias says nothing without it, and the debias needs what "fixed" needs.
    if present - {Group.ALWAYS}:
        present |= {Group.DEBIAS, Group.FIXED}
    return present


def check_dimensions(dimensions: dict[str, int], source: str) -> None:
    """Check lengths that are made of others.

    Parameters
    ----------
    dimensions : lengths of the names of :class:`~.fields.Numbers`
    source : of the arrays, for errors

    Raises
    ------
    ReleaseError
        if the products, the terms or the power are not as many as the directions and edges make
    """
    n_v = dimensions.get("n_v", 0)
    if dimensions.get("n_products", 0) != n_terms(n_v) - n_v:
        raise ReleaseError(
            f"{source}: field 'debias.second' holds {dimensions['n_products']} products; "
            f"{n_v} directions have {n_terms(n_v) - n_v}: make the release again"
        )
    expected = n_terms(n_v + 1) if n_v else 0
    if dimensions.get("n_terms", 0) != expected:
        raise ReleaseError(
            f"{source}: field 'debias.error_terms' holds {dimensions['n_terms']} terms; {n_v} "
            f"directions have {expected}: make the release again"
        )
    n_power = dimensions.get("n_e", 0) + dimensions.get("n_b", 0)
    if dimensions.get("n_power", 0) != n_power:
        raise ReleaseError(
            f"{source}: field 'data.power' has {dimensions.get('n_power', 0)} entries; the edges "
            f"in 'debias' make {n_power}: make the release again"
        )


def check_digest(document: dict[str, Any], source: str) -> None:
    """Check that a document is as it was written.

    Parameters
    ----------
    document : with its digest
    source : names the document in errors

    Raises
    ------
    ReleaseError
        if the digest is that of another content
    """
    if document["digest"] != _digest(document):
        raise ReleaseError(
            f"{source}: field 'digest' does not match the content; the file was altered after it "
            "was written: restore it, or make it again with `cnnlens release make`"
        )


def check_name(name: str) -> str | None:
    """What is wrong with a release's name, which exported files carry.

    Parameters
    ----------
    name : of a release

    Returns
    -------
    the end of an error message; None if nothing is wrong
    """
    if _NAME.fullmatch(name) and len(name) <= _LONGEST_NAME:
        return None
    return (
        f"is {name!r:.60}; give at most {_LONGEST_NAME} letters, digits, spaces and any of "
        "_ . + -, beginning with a letter, digit or _"
    )


def _check_metadata(values: dict[str, Any], source: str) -> None:
    """The free sections hold text and finite numbers, and numbers where numbers are read."""
    stack = [(key, values[key], 0) for key in _FREE]
    while stack:
        key, value, depth = stack.pop()
        if depth > _DEEPEST:
            raise ReleaseError(f"{source}: field '{key:.40}…' is nested too deeply; flatten it")
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise ReleaseError(
                f"{source}: field '{key}' holds {value!r:.60}, which is no plain text"
            )
        if isinstance(value, int | float) and not abs(value) < 1e300:
            raise ReleaseError(f"{source}: field '{key}' holds {value!r:.40}, which is not finite")
        if isinstance(value, list):
            stack += [(f"{key}[{i}]", item, depth + 1) for i, item in enumerate(value)]
        if isinstance(value, dict):
            for name, item in value.items():
                if _NO_TEXT.search(name):
                    raise ReleaseError(
                        f"{source}: field '{key}' has the key {name!r:.60}, which is no plain text"
                    )
                stack.append((f"{key}.{name}", item, depth + 1))
    if problem := check_name(values["name"]):
        raise ReleaseError(f"{source}: field 'name' {problem}")
    theory, provenance = values["theory"], values["provenance"]
    warned = provenance.get("warnings", [])
    if not isinstance(warned, list) or not all(isinstance(text, str) for text in warned):
        raise ReleaseError(f"{source}: field 'provenance.warnings' must be a list of texts")
    for key in ("cosmology", "settings"):
        if not isinstance(theory.get(key, {}), dict):
            raise ReleaseError(f"{source}: field 'theory.{key}' must be a mapping")
    for section, content, keys, least in (
        ("truth", values["truth"] or {}, None, -math.inf),
        ("theory.cosmology", theory.get("cosmology", {}), None, -math.inf),
        ("instrument", values["instrument"], ("noise", "beam_fwhm"), 0.0),
        ("provenance", provenance, ("derivative_step", "rotation_step"), 0.0),
    ):
        for key, value in content.items():
            if keys is not None and key not in keys:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ReleaseError(f"{source}: field '{section}.{key}' must be a number")
            if value < least:
                raise ReleaseError(f"{source}: field '{section}.{key}' must not be negative")


def _check_keys(document: dict[str, Any], source: str) -> None:
    known = {numbers.key for numbers in ARRAYS.values()}
    known |= set(_SCALARS) | _OTHER | _BLINDING | set(CONVENTIONS)
    sections = {key.split(".")[0] for key in known}
    open_sections = {"theory", "instrument", "provenance", "truth"}
    for section, content in document.items():
        if section not in sections:
            raise ReleaseError(f"{source}: unknown field {section!r}; remove it")
        if isinstance(content, dict) and section not in open_sections:
            for key in content:
                if f"{section}.{key}" not in known:
                    raise ReleaseError(f"{source}: unknown field {f'{section}.{key}'!r}; remove it")
    for key in ("truth", "digest"):
        if key not in document:
            raise ReleaseError(f"{source}: field '{key}' is missing; make the release again")


def _array(
    document: dict[str, Any], numbers: Numbers, dimensions: dict[str, int], source: str
) -> np.ndarray:
    value = _get(document, numbers.key, source)
    array = _nested_numbers(value, len(numbers.shape), numbers.key, source, numbers.integers)
    check_shape(array, numbers.key, numbers.shape, dimensions, source)
    return array


def check_shape(
    array: np.ndarray, key: str, shape: tuple[str, ...], dimensions: dict[str, int], source: str
) -> None:
    """Compare the shape of an array with the names of its dimensions.

    Parameters
    ----------
    array : of any shape
    key : of the field, for errors
    shape : names of the dimensions, as of :class:`~.fields.Numbers`
    dimensions : lengths of the names that are known; new ones are added
    source : of the document, for errors

    Raises
    ------
    ReleaseError
        if two arrays need different lengths of one name
    """
    if array.ndim != len(shape):
        raise ReleaseError(f"{source}: field '{key}' must have {len(shape)} dimensions")
    for length, name in zip(array.shape, shape, strict=True):
        base, _, extra = name.partition("+")
        expected = dimensions.setdefault(base, length - int(extra or 0)) + int(extra or 0)
        if length != expected or expected - int(extra or 0) < 1:
            raise ReleaseError(
                f"{source}: field '{key}' has shape {array.shape}; {expected} entries are needed "
                f"where there are {length}: other fields fix {base} = {dimensions[base]}"
            )


def _nested_numbers(
    value: Any, depth: int, key: str, source: str, integers: bool = False
) -> np.ndarray:
    """Nested lists of finite numbers → array; booleans, strings and ragged lists are refused."""

    def leaves(item: Any, level: int) -> None:
        if level == 0:
            good = isinstance(item, int) if integers else isinstance(item, (int, float))
            if not good or isinstance(item, bool):
                raise ReleaseError(
                    f"{source}: field '{key}' holds {item!r:.40} where "
                    f"{'an integer' if integers else 'a number'} is needed; correct it"
                )
            if integers and abs(item) > _LARGEST_MULTIPOLE:
                raise ReleaseError(
                    f"{source}: field '{key}' holds a multipole beyond {_LARGEST_MULTIPOLE}"
                )
            if abs(item) > 1e300 or not math.isfinite(item):
                raise ReleaseError(
                    f"{source}: field '{key}' holds {item!r:.40}, which is not finite"
                )
        elif not isinstance(item, list) or not item:
            raise ReleaseError(f"{source}: field '{key}' must be a list nested {depth} deep")
        else:
            for part in item:
                leaves(part, level - 1)

    leaves(value, depth)
    rows = value
    for _ in range(depth - 1):
        if len({len(row) for row in rows}) != 1:
            raise ReleaseError(
                f"{source}: field '{key}' has rows of different lengths; make the release again"
            )
        rows = [part for row in rows for part in row]
    return read_only(np.array(value, dtype=np.int64 if integers else float))


def _windows(document: dict[str, Any], n_bins: int, source: str) -> np.ndarray:
    first = _nested_numbers(
        _get(document, "windows.first", source), 1, "windows.first", source, True
    )
    rows = _get(document, "windows.values", source)
    if not isinstance(rows, list) or len(rows) != n_bins or len(first) != n_bins:
        raise ReleaseError(f"{source}: field 'windows.values' must hold {n_bins} rows, one per bin")
    if (first < 0).any():
        raise ReleaseError(f"{source}: field 'windows.first' must hold multipoles from zero up")
    rows = [_nested_numbers(row, 1, "windows.values", source) for row in rows]
    stop = max(int(start) + len(row) for start, row in zip(first, rows, strict=True))
    windows = np.zeros((n_bins, stop))
    for b, (start, row) in enumerate(zip(first, rows, strict=True)):
        windows[b, start : start + len(row)] = row
    return read_only(windows)


def _get(document: dict[str, Any], key: str, source: str) -> Any:
    value: Any = document
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ReleaseError(f"{source}: field '{key}' is missing; make the release again")
        value = value[part]
    return value


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[last] = value


def _rounded(value: float) -> float:
    """Ten significant digits: far below any Monte-Carlo error, a third of the size."""
    return float(f"{value:.10g}")


def _rounded_multipole(value: float) -> float:
    """Seven digits. A bandpower sums hundreds of multipoles, whose rounding averages out."""
    return float(f"{value:.7g}")


def _nested(array: np.ndarray, convert: Callable[[float], float]) -> list[Any]:
    if array.ndim == 1:
        return [convert(v) for v in array.tolist()]
    return [_nested(row, convert) for row in array]


def _digest(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_numbers(release: Release, without: Container[str] = ()) -> str:
    """Hash of the numbers of a release.

    Parameters
    ----------
    release : whose numbers are hashed
    without : attributes that are left out

    Returns
    -------
    16 hex digits
    """
    digest = hashlib.sha256()
    for name in ("n_patches", "n_sim", "windows", *ARRAYS):
        if name not in without:
            value = np.asarray(getattr(release, name), dtype=float)
            digest.update(f"{name}{value.shape}".encode() + value.tobytes())
    return digest.hexdigest()[:16]


def formatted(value: Any, indent: int = 0) -> str:
    """Write JSON with a line per field and per matrix row, so that people can read and compare it.

    Parameters
    ----------
    value : a document, or a part of one
    indent : spaces before each line

    Returns
    -------
    the text
    """
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        items = (f"{pad}{json.dumps(k)}: {formatted(v, indent + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"{pad}{json.dumps(row)}" for row in value) + f"\n{' ' * indent}]"
    return json.dumps(value, allow_nan=False)
