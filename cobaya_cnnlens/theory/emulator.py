"""An emulator of CAMB for the two spectra that the likelihood needs.

ln C_L^κκ and ln C_l^EE (unlensed) were computed at the points of a design; radial basis functions
(scipy's ``RBFInterpolator``) carry their principal components to any point of its box. Acoustic
peaks would move through a fixed multipole, and no low order could follow them; so C^EE is emulated
against x = l θ*/θ*_ref, at which peaks stay where they are (and l²C^EE with them); θ* is emulated
too. At the lowest multipoles, which reionisation made, x goes over into l. The amplitude A_s is
taken out of both spectra first, so that only its non-linear effects are left.

The file of an emulator says what it was made with; ``emulation.py`` makes one, and measures its
error at points that did not make it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.resources import files
from math import isclose
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy.interpolate import CubicSpline, PPoly, RBFInterpolator

from ..errors import EmulatorError
from ..files import atomic_write, given_path
from .approximations import acoustic_angle, matter_density, sound_horizon

FORMAT = "cobaya_cnnlens emulator 2"
SHIPPED = files("cobaya_cnnlens.theory") / "data"
# Emulated beside the components of the two spectra, through their logarithms.
SCALARS = ("thetastar", "sigma8", "omegam", "rdrag")
AMPLITUDE = "logA"
# C^EE below this x depends on other things than above: its components are taken apart there.
REIONISATION = 100.0
# A flat universe with dark energy has Ω_m < 1; a corner of a wide box has not.
LARGEST_DENSITY = 0.95
# Below this multipole C^EE is emulated at fixed l.
LOW_MULTIPOLE = 30.0
# An emulator takes some megabytes; a file that unpacks to more, or has more points, is none.
LARGEST_FILE = 64_000_000
MOST_POINTS = 4000
LARGEST_MULTIPOLE = 50_000


@dataclass(frozen=True)
class Tables:
    """What an emulator is made of; n points of p parameters.

    Attributes
    ----------
    low, high : sides of the box, (p,)
    design : points in units of the box, each −1 to 1, (n, p)
    targets : components of ln C^κκ/A_s, then ln of ``SCALARS`` but the last over their
        ``baselines``, (n, n_kk + 3)
    rdrag : ln of the last of ``SCALARS`` over its baseline, (n,)
    linear : components of ln C^EE/A_s, which A_s does not change, (n, n_ee)
    L, kk_mean, kk_basis : multipoles (n_L,); mean and principal components of ln C^κκ/A_s,
        (n_L,) and (n_kk, n_L)
    x, ee_mean, ee_basis : the same of C^EE in µK², at stretched multipoles
    thetastar : θ*_ref, ()
    """

    low: np.ndarray
    high: np.ndarray
    design: np.ndarray
    targets: np.ndarray
    rdrag: np.ndarray
    linear: np.ndarray
    L: np.ndarray
    kk_mean: np.ndarray
    kk_basis: np.ndarray
    x: np.ndarray
    ee_mean: np.ndarray
    ee_basis: np.ndarray
    thetastar: np.ndarray


class Emulator:
    """C_L^κκ, unlensed C_l^EE and derived parameters at any point of a box.

    Parameters
    ----------
    tables : what it interpolates
    record : ``parameters`` in the order of the box; ``fixed`` parameters; ``kernel``, ``degree``
        and ``smoothing`` (of C^EE, whose troughs CAMB knows to 0.1%) of the radial basis functions;
        CAMB's ``settings`` and ``version``; ``scales``, by which the box counts as longer along a
        parameter that bends the spectra more than others, so that near points weigh more (else 1)
    base : another emulator, of fewer parameters: the tables are then of what is left when its
        logarithms are taken off, with its ``thetastar`` for θ*_ref
    """

    def __init__(self, tables: Tables, record: Mapping[str, Any], base: Emulator | None = None):
        self.tables, self.record, self.base = tables, dict(record), base
        self.parameters = tuple(record["parameters"])
        self.fixed = dict(record["fixed"])
        self.lmax = int(tables.L[-1])
        kernel, degree = record["kernel"], record["degree"]
        scales = record.get("scales", {})
        self._scales = np.array([float(scales.get(name, 1.0)) for name in self.parameters])
        design = self._scales * tables.design
        self._interpolate = RBFInterpolator(design, tables.targets, kernel=kernel, degree=degree)
        self._rdrag = RBFInterpolator(design, tables.rdrag, kernel=kernel, degree=degree)
        self._linear_in = [i for i, name in enumerate(self.parameters) if name != AMPLITUDE]
        self._linear = RBFInterpolator(
            design[:, self._linear_in],
            tables.linear,
            kernel=kernel,
            degree=degree,
            smoothing=record["smoothing"],
        )
        # A spline is linear in the values at its nodes: one for each component, made once. That in
        # L is taken to every L, that in x is evaluated where a cosmology has its multipoles.
        nodes = np.vstack([tables.kk_mean, tables.kk_basis])
        self._ell = np.arange(2.0, self.lmax + 1.0)
        self._kk = CubicSpline(np.log(tables.L), nodes, axis=1)(np.log(self._ell))
        self._ee = CubicSpline(tables.x, np.vstack([tables.ee_mean, tables.ee_basis]).T)

    @cached_property
    def digest(self) -> str:
        """Hash of everything that the emulator is made of, 16 hex digits."""
        record = {key: value for key, value in self.record.items() if key != "format"}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode())
        for field in fields(Tables):
            values = np.ascontiguousarray(getattr(self.tables, field.name), dtype=float)
            digest.update(f"{field.name}{values.shape}".encode() + values.tobytes())
        return digest.hexdigest()[:16]

    def outside(self, point: Mapping[str, float]) -> list[str]:
        """Parameters of a point that lie outside the box, each with the box's sides.

        Raises
        ------
        EmulatorError
            if the point lacks a parameter, has an unknown one, or another value of a fixed one
        """
        self._check_point(point)
        sides = zip(self.parameters, self.tables.low, self.tables.high, strict=True)
        outside = [
            f"{name} = {point[name]:.6g} (from {low:.6g} to {high:.6g})"
            for name, low, high in sides
            if not low <= point[name] <= high
        ]
        density = matter_density({**self.fixed, **point})
        if density > LARGEST_DENSITY:
            outside.append(f"(ombh2 + omch2)/h² = {density:.3g} (to {LARGEST_DENSITY})")
        return outside

    def _check_point(self, point: Mapping[str, float]) -> None:
        needs = f"the emulator needs {', '.join(self.parameters)}; {AMPLITUDE} is ln(10¹⁰ A_s)"
        if not isinstance(point, Mapping):
            raise EmulatorError(f"a point must map names to values, not be {point!r}; {needs}")
        if missing := [name for name in self.parameters if name not in point]:
            raise EmulatorError(f"the point lacks {', '.join(missing)}; {needs}")
        known = {*self.parameters, *self.fixed}
        if unknown := [str(name) for name in point if name not in known]:
            raise EmulatorError(f"the point has {', '.join(unknown)}, which is unknown; {needs}")
        for name, value in point.items():
            if not isinstance(value, Real) or isinstance(value, bool):
                raise EmulatorError(f"the point has {name} = {value!r}, not a number; {needs}")
        for name, made_at in self.fixed.items():
            if not same(point.get(name, made_at), made_at):
                raise EmulatorError(
                    f"the point has {name} = {point[name]:g}, but the emulator was made at "
                    f"{made_at:g}; leave it out, or take another emulator"
                )

    def __call__(
        self, point: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Spectra at a point.

        Parameters
        ----------
        point : a value for each of ``parameters``; those that were fixed may be given as they were

        Returns
        -------
        C_L^κκ and unlensed C_l^EE in µK², (lmax + 1,) each from l = 0, and ``SCALARS``

        Raises
        ------
        EmulatorError
            as :meth:`outside`, and if the point is outside the box
        """
        if outside := self.outside(point):
            raise EmulatorError(f"outside the emulator's box: {', '.join(outside)}")
        with np.errstate(all="ignore"):  # whatever the caller has made of underflows
            return self._spectra(point)

    def _spectra(
        self, point: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        kk, splines, logarithms = self.logarithms(point)
        scalars = dict(zip(SCALARS, np.exp(logarithms).tolist(), strict=True))
        amplitude = point[AMPLITUDE]
        stretch = scalars["thetastar"] / float(self.tables.thetastar)
        x = stretched(self._ell, stretch)
        ee = sum(spline(x) for spline in splines) + 2.0 * np.log(stretch)
        return _from_logarithm(kk + amplitude), _from_logarithm(ee + amplitude), scalars

    def logarithms(self, point: Mapping[str, float]) -> tuple[np.ndarray, list[PPoly], np.ndarray]:
        """ln C_L^κκ/A_s from L = 2; splines in x whose sum is ln C^EE/A_s, without what the stretch
        adds; and ln of ``SCALARS``, (4,)."""
        t = self.tables
        unit = unit_box(np.array([point[name] for name in self.parameters]), t.low, t.high)
        unit *= self._scales
        found = self._interpolate(unit[None])[0]
        n_kk = len(t.kk_basis)
        scalars = np.append(found[n_kk:], self._rdrag(unit[None]))
        kk = self._kk[0] + found[:n_kk] @ self._kk[1:]
        along = np.concatenate([[1.0], self._linear(unit[None, self._linear_in])[0]])
        splines = [PPoly.construct_fast(self._ee.c @ along, self._ee.x)]
        if self.base is None:
            return kk, splines, scalars + np.log(baselines({**self.fixed, **point}))
        below, others, known = self.base.logarithms(point)
        return kk + below[: len(kk)], splines + others, scalars + known


def same(value: float, made_at: float) -> bool:
    """Whether a parameter has the value that it was fixed at."""
    return isclose(value, made_at, rel_tol=1e-6)


def baselines(point: Mapping[str, float]) -> np.ndarray:
    """What ``SCALARS`` are divided by before they are emulated."""
    amplitude = np.exp(0.5 * point[AMPLITUDE])
    angle, matter = acoustic_angle(point), matter_density(point)
    return np.array([angle, amplitude, matter, sound_horizon(point)])


def unit_box(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Points in units of the box, −1 to 1."""
    return (2.0 * points - low - high) / (high - low)


def stretched(l: np.ndarray, stretch: float) -> np.ndarray:
    """x of multipoles l where θ* is ``stretch`` times the reference."""
    low = (LOW_MULTIPOLE / l) ** 2
    return l * (1.0 + (stretch - 1.0) / (1.0 + low * low * low))


def _from_logarithm(values: np.ndarray) -> np.ndarray:
    cl = np.zeros(len(values) + 2)
    np.exp(values, out=cl[2:])
    return cl


def write_emulator(tables: Tables, record: Mapping[str, Any], path: str | Path) -> None:
    """Write an emulator's file, atomically."""
    text = json.dumps({"format": FORMAT, **record})
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, record=np.array(text), **vars(tables))


def shipped_emulators() -> list[str]:
    """Names of the emulators that come with the package."""
    return sorted(Path(str(p)).stem.removeprefix("emulator_") for p in SHIPPED.iterdir())


def read_emulator(source: str | os.PathLike[str]) -> Emulator:
    """Read an emulator.

    Parameters
    ----------
    source : a path, or the name of a shipped emulator (see :func:`shipped_emulators`), before which
        a file of that name comes

    Raises
    ------
    EmulatorError
        if the file is missing, damaged or not an emulator, or a field has a wrong shape or is not
        finite
    """
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
    """Whether an emulator of this box, these fixed parameters and last nodes in L and x can go on
    from another one; ``source`` names it in errors.

    Raises
    ------
    EmulatorError
        if the other one has other parameters, a smaller box, or shorter spectra
    """
    for name, low, high in zip(base.parameters, base.tables.low, base.tables.high, strict=True):
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
