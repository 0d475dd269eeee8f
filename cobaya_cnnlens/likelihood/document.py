"""A release as a JSON document: which field holds what, reading and writing of each, the digest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ReleaseError

if TYPE_CHECKING:
    from .release import Release

FORMAT = "cobaya_cnnlens release"
# The second version has no section ``data_debias``, the fourth has. (The third had one in which the
# theory's C^EE had a part.)
VERSION, VERSION_WITH_DATA_DEBIAS = 2, 4
# Instrumental nuisances, in the order of the arrays; relative changes of gain, beam width and noise
# rms, and a rotation of the polarisation in degrees.
NUISANCES = ("gain", "beam", "noise", "angle")

# Field of the document → (attribute, shape); shapes name dimensions that must agree.
ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bins.edges": ("edges", ("n_bins+1",)),
    "data.bandpowers": ("bandpowers", ("n_bins",)),
    "covariance.patch": ("patch_covariance", ("n_bins", "n_bins")),
    "covariance.noise": ("noise_covariance", ("n_bins", "n_bins")),
    "covariance.derivatives": ("derivative_covariance", ("n_bins", "n_bins")),
    "calibration.response": ("response", ("n_bins",)),
    "calibration.response_error": ("response_error", ("n_bins",)),
    "calibration.noise": ("noise", ("n_bins",)),
    "calibration.noise_error": ("noise_error", ("n_bins",)),
    "derivatives.kk_edges": ("kk_edges", ("n_kk+1",)),
    "derivatives.kk": ("kk_derivatives", ("n_bins", "n_kk")),
    "derivatives.kk_errors": ("kk_derivative_errors", ("n_bins", "n_kk")),
    "derivatives.ee_edges": ("ee_edges", ("n_ee+1",)),
    "derivatives.ee": ("ee_derivatives", ("n_bins", "n_ee")),
    "derivatives.ee_errors": ("ee_derivative_errors", ("n_bins", "n_ee")),
    "derivatives.curvature": ("curvature", ("n_bins",)),
    "derivatives.curvature_errors": ("curvature_errors", ("n_bins",)),
    "derivatives.kk_direction": ("kk_direction", ("n_kk",)),
    "derivatives.ee_direction": ("ee_direction", ("n_ee",)),
    "nuisances.steps": ("nuisance_steps", ("n_nuisances",)),
    "nuisances.first": ("nuisance_first", ("n_bins", "n_nuisances")),
    "nuisances.first_errors": ("nuisance_first_errors", ("n_bins", "n_nuisances")),
    "nuisances.second": ("nuisance_second", ("n_bins", "n_nuisances")),
    "nuisances.second_errors": ("nuisance_second_errors", ("n_bins", "n_nuisances")),
    "fiducial.kk": ("fiducial_kk", ("L",)),
    "fiducial.ee": ("fiducial_ee", ("l",)),
}
# Those of the section that not every release has, as attributes of its DataDebias.
DATA_DEBIAS_ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "data_debias.e_edges": ("e_edges", ("n_e+1",)),
    "data_debias.b_edges": ("b_edges", ("n_b+1",)),
    "data_debias.power": ("power", ("n_power",)),
    "data_debias.fiducial_power": ("fiducial_power", ("n_power",)),
    "data_debias.coefficients": ("coefficients", ("n_bins", "n_power")),
    "data_debias.kk_direction": ("kk_direction", ("n_kk",)),
    **{
        f"data_debias.{attribute}": (attribute, shape)
        for attribute, shape in ARRAYS.values()
        if attribute.endswith("_covariance")
        or attribute.startswith(("curvature", "nuisance_first", "nuisance_second"))
        or "derivative" in attribute
    },
}
# Those of them that are there together, or not at all: the second order over the prior.
SECOND_ORDER_ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "data_debias.ee_directions": ("ee_directions", ("n_power", "n_v")),
    "data_debias.amplitude_covariance": ("amplitude_covariance", ("n_v", "n_v")),
    "data_debias.second": ("second", ("n_bins", "n_products")),
    "data_debias.cross": ("cross", ("n_bins", "n_v")),
}
# Likewise: what `primary: true` needs of the survey's E and B as data.
PRIMARY_ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    f"data_debias.{attribute}": (attribute, shape)
    for attribute, shape in (
        ("power_kk_derivatives", ("n_power", "n_kk")),
        ("power_ee_derivatives", ("n_power", "n_ee")),
        ("power_nuisance_first", ("n_power", "n_nuisances")),
        ("power_nuisance_second", ("n_power", "n_nuisances")),
        ("power_covariance", ("n_power", "n_power")),
        ("power_cross_covariance", ("n_bins", "n_power")),
        ("power_error_covariance", ("n_power", "n_power")),
        ("power_error_cross", ("n_bins", "n_power")),
    )
}
_INTEGER_ARRAYS = {"bins.edges", "derivatives.kk_edges", "derivatives.ee_edges"}
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
# Beyond any multipole or number of simulations; keeps arithmetic on a hostile file finite.
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
_CONVENTIONS: dict[str, Any] = {
    "instrument.noise_unit": "uK arcmin",
    "instrument.beam_unit": "arcmin",
    "fiducial.unit": "muK2",
    "nuisances.names": list(NUISANCES),
}


def read_only(array: np.ndarray) -> np.ndarray:
    """The same array, which can no longer be written to."""
    array.setflags(write=False)
    return array


def to_document(release: Release) -> dict[str, Any]:
    """The release as nested plain dictionaries and lists, without its digest."""
    with_data = release.data_debias is not None
    version = VERSION_WITH_DATA_DEBIAS if with_data else VERSION
    document: dict[str, Any] = {"format": FORMAT, "version": version}
    for key, (attribute, _) in _SCALARS.items():
        value = getattr(release, attribute)
        _put(document, key, dict(value) if isinstance(value, dict) else value)
    document["truth"] = release.truth
    for key, (attribute, _) in ARRAYS.items():
        array = getattr(release, attribute)
        digits = int if key in _INTEGER_ARRAYS else _rounded
        _put(document, key, _nested(array, digits))
    arrays = dict(DATA_DEBIAS_ARRAYS) if with_data else {}
    if release.data_debias is not None and release.data_debias.n_v:
        arrays |= SECOND_ORDER_ARRAYS
    if release.data_debias is not None and release.data_debias.has_primary:
        arrays |= PRIMARY_ARRAYS
    for key, (attribute, _) in arrays.items():
        _put(document, key, _nested(getattr(release.data_debias, attribute), _rounded))
    first, values = [], []
    for row in release.windows:
        inside = np.flatnonzero(row)
        start, stop = (inside[0], inside[-1] + 1) if len(inside) else (0, 1)
        first.append(int(start))
        values.append(_nested(row[start:stop], _rounded))
    document["windows"] = {"first": first, "values": values}
    for key, content in _CONVENTIONS.items():
        _put(document, key, content)
    return document


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the digest of its content."""
    return {**document, "digest": _digest(document)}


def values_of(document: dict[str, Any], source: str) -> dict[str, Any]:
    """Attributes of a release from its document, each checked by itself; ``source`` names it in
    errors.

    Raises
    ------
    ReleaseError
    """
    if not isinstance(document, dict):
        raise ReleaseError(f"{source}: holds a {type(document).__name__}, not a release")
    if document.get("format") != FORMAT:
        raise ReleaseError(
            f"{source}: field 'format' is not '{FORMAT}'; this is another kind of file"
        )
    version = document.get("version")
    if version not in (VERSION, VERSION_WITH_DATA_DEBIAS) or isinstance(version, bool | float):
        raise ReleaseError(
            f"{source}: field 'version' is {version!r:.40}, this package reads {VERSION} and "
            f"{VERSION_WITH_DATA_DEBIAS}; install the package version that wrote the file, or make "
            "it again"
        )
    with_data = version == VERSION_WITH_DATA_DEBIAS
    optional = (SECOND_ORDER_ARRAYS, PRIMARY_ARRAYS) if with_data else ()
    allowed = dict(DATA_DEBIAS_ARRAYS) if with_data else {}
    for group in optional:
        allowed |= group
    _check_keys(document, source, allowed)
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
    dimensions: dict[str, int] = {"n_nuisances": len(NUISANCES)}
    for key, (attribute, shape) in ARRAYS.items():
        values[attribute] = _array(document, key, shape, dimensions, source)
    values["windows"] = _windows(document, dimensions["n_bins"], source)
    values["data_debias"] = None
    if with_data:
        arrays = dict(DATA_DEBIAS_ARRAYS)
        section = document.get("data_debias")
        for group in optional:
            if isinstance(section, dict) and any(key.split(".")[1] in section for key in group):
                arrays |= group
        values["data_debias"] = {
            attribute: _array(document, key, shape, dimensions, source)
            for key, (attribute, shape) in arrays.items()
        }
        n_v = dimensions.get("n_v", 0)
        if dimensions.get("n_products", 0) != n_v * (n_v + 1) // 2:
            raise ReleaseError(
                f"{source}: field 'data_debias.second' holds {dimensions['n_products']} products, "
                f"of {n_v} directions there are {n_v * (n_v + 1) // 2}; restore the file"
            )
        n_power = dimensions["n_e"] + dimensions["n_b"]
        if dimensions["n_power"] != n_power:
            raise ReleaseError(
                f"{source}: field 'data_debias.power' has {dimensions['n_power']} entries, its "
                f"edges make {n_power}; restore the file"
            )
    for key, content in _CONVENTIONS.items():
        if _get(document, key, source) != content:
            raise ReleaseError(
                f"{source}: field '{key}' must be {content!r}; convert the values to it"
            )
    return values


def check_digest(document: dict[str, Any], source: str) -> None:
    """Whether a document is as it was written.

    Raises
    ------
    ReleaseError
    """
    if document["digest"] != _digest(document):
        raise ReleaseError(
            f"{source}: field 'digest' does not match the content; the file was altered after it "
            "was written: restore it, or make it again with `cnnlens release make`"
        )


def check_name(name: str) -> str | None:
    """What is wrong with a release's name, whose exported files bear it; None if nothing is."""
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
        ("provenance", provenance, ("derivative_step",), 0.0),
    ):
        for key, value in content.items():
            if keys is not None and key not in keys:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ReleaseError(f"{source}: field '{section}.{key}' must be a number")
            if value < least:
                raise ReleaseError(f"{source}: field '{section}.{key}' must not be negative")


def _check_keys(document: dict[str, Any], source: str, more: Iterable[str]) -> None:
    known = set(ARRAYS) | set(_SCALARS) | _OTHER | set(_CONVENTIONS) | set(more)
    sections = {key.split(".")[0] for key in known}
    whole = {"theory", "instrument", "provenance", "truth"}
    for section, content in document.items():
        if section not in sections:
            raise ReleaseError(f"{source}: unknown field {section!r}; remove it")
        if isinstance(content, dict) and section not in whole:
            for key in content:
                if f"{section}.{key}" not in known:
                    raise ReleaseError(f"{source}: unknown field {f'{section}.{key}'!r}; remove it")
    for key in ("truth", "digest"):
        if key not in document:
            raise ReleaseError(f"{source}: field '{key}' is missing; restore the file")


def _array(
    document: dict[str, Any],
    key: str,
    shape: tuple[str, ...],
    dimensions: dict[str, int],
    source: str,
) -> np.ndarray:
    value = _get(document, key, source)
    array = _numbers(value, len(shape), key, source, integers=key in _INTEGER_ARRAYS)
    check_shape(array, key, shape, dimensions, source)
    return array


def check_shape(
    array: np.ndarray, key: str, shape: tuple[str, ...], dimensions: dict[str, int], source: str
) -> None:
    """Compare with the dimensions' names in ``shape``, whose lengths are kept in ``dimensions``."""
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


def _numbers(value: Any, depth: int, key: str, source: str, integers: bool = False) -> np.ndarray:
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
    if depth == 2 and len({len(row) for row in value}) != 1:
        raise ReleaseError(
            f"{source}: field '{key}' has rows of different lengths; restore the file"
        )
    return read_only(np.array(value, dtype=np.int64 if integers else float))


def _windows(document: dict[str, Any], n_bins: int, source: str) -> np.ndarray:
    first = _numbers(_get(document, "windows.first", source), 1, "windows.first", source, True)
    rows = _get(document, "windows.values", source)
    if not isinstance(rows, list) or len(rows) != n_bins or len(first) != n_bins:
        raise ReleaseError(f"{source}: field 'windows.values' must hold {n_bins} rows, one per bin")
    if (first < 0).any():
        raise ReleaseError(f"{source}: field 'windows.first' must hold multipoles from zero up")
    rows = [_numbers(row, 1, "windows.values", source) for row in rows]
    stop = max(int(start) + len(row) for start, row in zip(first, rows, strict=True))
    windows = np.zeros((n_bins, stop))
    for b, (start, row) in enumerate(zip(first, rows, strict=True)):
        windows[b, start : start + len(row)] = row
    return read_only(windows)


def _get(document: dict[str, Any], key: str, source: str) -> Any:
    value: Any = document
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ReleaseError(f"{source}: field '{key}' is missing; restore the file")
        value = value[part]
    return value


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[last] = value


def key_of(attribute: str) -> str:
    """The field of the document that holds an attribute's array."""
    return next(key for key, (name, _) in ARRAYS.items() if name == attribute)


def _rounded(value: float) -> float:
    """Ten significant digits: far below any Monte-Carlo error, a third of the size."""
    return float(f"{value:.10g}")


def _nested(array: np.ndarray, convert: Callable[[float], float]) -> list[Any]:
    if array.ndim == 1:
        return [convert(v) for v in array.tolist()]
    return [_nested(row, convert) for row in array]


def _digest(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def formatted(value: Any, indent: int = 0) -> str:
    """JSON with a line per field and per matrix row, so that it can be read and compared."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        items = (f"{pad}{json.dumps(k)}: {formatted(v, indent + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"{pad}{json.dumps(row)}" for row in value) + f"\n{' ' * indent}]"
    return json.dumps(value, allow_nan=False)
