"""Files of emulators: a NumPy archive of :class:`.emulator.Tables` and of how they were made."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import EmulatorError
from ..files import atomic_write, given_path
from .emulator import AMPLITUDE, SCALARS, Emulator, Tables

FORMAT = "cobaya_cnnlens emulator 2"
SHIPPED = files("cobaya_cnnlens.theory") / "data"
# An emulator takes some megabytes; a file that unpacks to more, or has more points, is none.
LARGEST_FILE = 64_000_000
MOST_POINTS = 4000
LARGEST_MULTIPOLE = 50_000


def write_emulator(tables: Tables, record: Mapping[str, Any], path: str | Path) -> None:
    """Write the file of an emulator, atomically.

    Parameters
    ----------
    tables : coefficients and nodes
    record : how the emulator was made
    path : of the file
    """
    text = json.dumps({"format": FORMAT, **record})
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, record=np.array(text), **vars(tables))


def shipped_emulators() -> list[str]:
    """Names of the emulators that come with the package."""
    return sorted(Path(str(p)).stem.removeprefix("emulator_") for p in SHIPPED.iterdir())


def read_emulator(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Emulator:
    """Read an emulator.

    Parameters
    ----------
    source : a path, or the name of a shipped emulator (see :func:`shipped_emulators`), before which
        a file of that name comes; or several, each in ratio to the same other emulator, whose
        ratios are multiplied, as ``["mnu", "feedback"]``

    Returns
    -------
    emulator : ready to be evaluated

    Raises
    ------
    EmulatorError
        if the file is missing, damaged or not an emulator, or a field has a wrong shape or is not
        finite; or if several are not in ratio to the same one
    """
    if isinstance(source, list | tuple) and source:
        return reduce(_multiply, map(read_emulator, source))
    names = f"give the path of an emulator, or one of the shipped {', '.join(shipped_emulators())}"
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise EmulatorError(f"emulator {source!r:.40} is not a path; {names}")
    path = given_path(source)
    if str(source) in shipped_emulators() and not path.is_file():
        path = Path(str(SHIPPED / f"emulator_{source}.npz"))
    again = "make it again with `cnnlens emulator`"
    try:
        with path.open("rb") as opened:
            _check_size(opened, path)
            with np.load(opened, allow_pickle=False) as file:
                record = json.loads(str(file["record"]))
                tables = Tables(**{field.name: file[field.name] for field in fields(Tables)})
    except OSError as error:
        raise EmulatorError(
            f"{source}: cannot be read as an emulator ({error.strerror or error}); {names}"
        ) from None
    except EmulatorError:
        raise
    except Exception as error:  # whatever zipfile, NumPy and json raise for a damaged file
        raise EmulatorError(
            f"{path}: is not an emulator or is damaged ({_line(error)}); {again}"
        ) from None
    _check(tables, record, path)
    base = _read_base(record, tables, path)
    try:
        with np.errstate(all="ignore"):
            return Emulator(tables, record, base)
    except (ValueError, TypeError, KeyError, AttributeError, np.linalg.LinAlgError) as error:
        raise EmulatorError(f"{path}: cannot be interpolated ({_line(error)}); {again}") from None


def _multiply(first: Emulator, second: Emulator) -> Emulator:
    """An emulator to which the ratio of another is added, in the place of that one's base."""
    base = first
    while base.base is not None:
        base = base.base
    known = set(second.parameters) <= set(first.parameters)
    if base is first or known or second.base is None or second.base.digest != base.digest:
        names = [emulator.record.get("name") for emulator in (first, second)]
        raise EmulatorError(
            f"emulators {names} cannot be multiplied: each must add parameters to the same other "
            "emulator, as 'mnu' and 'feedback' do to 'lcdm'"
        )
    record = {"base": first.record.get("name"), "base_digest": first.digest}
    return Emulator(second.tables, second.record | record, first)


def _read_base(record: dict[str, Any], tables: Tables, path: Path) -> Emulator | None:
    """The emulator that another one goes on from, as it was then."""
    if not (name := record.get("base")):
        return None
    if not isinstance(name, str) or name == record.get("name"):
        raise EmulatorError(f"{path}: field 'base' is {name!r}, not another emulator's name")
    base = read_emulator(name)
    if base.base is not None or base.digest != record.get("base_digest"):
        raise EmulatorError(
            f"{path}: was made from another emulator '{name}' than there is now; make it again "
            "with `cnnlens emulator`"
        )
    sides = zip(tables.low, tables.high, strict=True)
    box = dict(zip(record["parameters"], sides, strict=True))
    check_base(base, box, record["fixed"], (tables.L[-1], tables.x[-1]), str(path))
    return base


def check_base(
    base: Emulator,
    box: Mapping[str, tuple[float, float]],
    fixed: Mapping[str, float],
    ends: tuple[float, float],
    source: str,
) -> None:
    """Check that an emulator can go on from another one.

    Parameters
    ----------
    base : the other emulator
    box : sides by parameter
    fixed : values of fixed parameters
    ends : last nodes in L and in x
    source : how to call the emulator in errors

    Raises
    ------
    EmulatorError
        if ``base`` has other parameters, a smaller box, or shorter spectra
    """
    for name, (low, high) in base.box.items():
        if name not in box or not low <= box[name][0] < box[name][1] <= high:
            raise EmulatorError(
                f"{source}: its box in {name} must lie between {low:g} and {high:g}, as its base's"
            )
    for name, value in base.fixed.items():
        if name not in box and fixed.get(name) != value:
            raise EmulatorError(f"{source}: its base was made at {name} = {value:g}, fix it so")
    if base.lmax < ends[0] or base.tables.x[-1] < ends[1]:
        raise EmulatorError(
            f"{source}: its base ends at l = {base.lmax}, it must not reach further"
        )


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def _check_size(opened: BinaryIO, path: Path) -> None:
    """What a file unpacks to, from its directory: before anything is unpacked."""
    with zipfile.ZipFile(opened) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    opened.seek(0)
    if size > LARGEST_FILE:
        raise EmulatorError(
            f"{path}: unpacks to {size / 1e6:.0f} MB, more than an emulator's "
            f"{LARGEST_FILE / 1e6:.0f}; it is damaged or no emulator"
        )


def _check(t: Tables, record: dict[str, Any], path: Path) -> None:
    again = "make it again with `cnnlens emulator`"
    if not isinstance(record, dict):
        raise EmulatorError(f"{path}: field 'record' is not a mapping; {again}")
    if record.get("format") != FORMAT:
        raise EmulatorError(
            f"{path}: field 'format' is {record.get('format')!r}, not {FORMAT!r}; {again}"
        )
    for key in ("parameters", "fixed", "kernel", "degree", "smoothing"):
        if key not in record:
            raise EmulatorError(f"{path}: field 'record' lacks '{key}'; {again}")
    kinds = {"parameters": list, "fixed": dict, "kernel": str, "degree": int, "smoothing": float}
    for key, kind in kinds.items():
        accepted = int | float if kind is float else kind
        if not isinstance(record[key], accepted) or isinstance(record[key], bool):
            raise EmulatorError(f"{path}: field '{key}' is not a {kind.__name__}; {again}")
    if len(set(map(str, record["parameters"]))) < len(record["parameters"]):
        raise EmulatorError(f"{path}: field 'parameters' names one twice; {again}")
    if missing := sorted({"ombh2", "omch2", "H0", AMPLITUDE} - set(record["parameters"])):
        raise EmulatorError(f"{path}: field 'parameters' lacks {', '.join(missing)}; {again}")
    p = len(record["parameters"])
    if t.targets.ndim != 2 or t.kk_basis.ndim != 2 or t.ee_basis.ndim != 2:
        raise EmulatorError(f"{path}: fields 'targets' and '*_basis' must be tables; {again}")
    n, n_kk, n_ee = len(t.targets), len(t.kk_basis), len(t.ee_basis)
    if n > MOST_POINTS:
        raise EmulatorError(f"{path}: has {n} points, more than {MOST_POINTS}; {again}")
    shapes: dict[str, tuple[int, ...]] = {
        "low": (p,),
        "high": (p,),
        "design": (n, p),
        "targets": (n, n_kk + len(SCALARS) - 1),
        "rdrag": (n,),
        "linear": (n, n_ee),
        "kk_mean": t.L.shape,
        "kk_basis": (n_kk, *t.L.shape),
        "ee_mean": t.x.shape,
        "ee_basis": (n_ee, *t.x.shape),
        "thetastar": (),
    }
    for name, shape in shapes.items():
        if getattr(t, name).shape != shape:
            raise EmulatorError(
                f"{path}: field '{name}' has shape {getattr(t, name).shape}, not {shape}; {again}"
            )
    for field in fields(Tables):
        values = getattr(t, field.name)
        if values.dtype.kind not in "if" or not np.isfinite(values).all():
            raise EmulatorError(f"{path}: field '{field.name}' is not finite; {again}")
    for name in ("L", "x"):
        if not (np.diff(getattr(t, name)) > 0).all():
            raise EmulatorError(f"{path}: field '{name}' must increase; {again}")
    if not 2 <= t.L[0] < t.L[-1] <= LARGEST_MULTIPOLE:
        raise EmulatorError(
            f"{path}: field 'L' runs from {t.L[0]:g} to {t.L[-1]:g}, not from 2 or more to at most "
            f"{LARGEST_MULTIPOLE}; {again}"
        )
    if not (t.low < t.high).all():
        raise EmulatorError(f"{path}: field 'low' must lie below 'high'; {again}")
