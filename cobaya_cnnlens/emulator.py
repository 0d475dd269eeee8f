"""An emulator of CAMB for the two spectra that the likelihood needs.

ln C_L^κκ and ln C_l^EE (unlensed) were computed at the points of a design; radial basis functions
(scipy's ``RBFInterpolator``) carry their principal components to any point of its box. Acoustic
peaks would move through a fixed multipole, and no low order could follow them; so C^EE is emulated
against x = l θ*/θ*_ref, at which peaks stay where they are, and θ* is emulated too. The amplitude
A_s is taken out of both spectra first, so that only its non-linear effects are left.

The file of an emulator says what it was made with, and its error at points that did not make it;
``emulation.py`` makes one.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline, RBFInterpolator

from .errors import EmulatorError

FORMAT = "cobaya_cnnlens emulator 1"
SHIPPED = files("cobaya_cnnlens") / "data"
# Emulated beside the components of the two spectra, through their logarithms.
SCALARS = ("thetastar", "sigma8", "omegam")
AMPLITUDE = "logA"
# A flat universe with dark energy has Ω_m < 1; a corner of a wide box has not.
LARGEST_DENSITY = 0.95


@dataclass(frozen=True)
class Tables:
    """What an emulator is made of; n points of p parameters.

    Attributes
    ----------
    low, high : sides of the box, (p,)
    design : points in units of the box, each −1 to 1, (n, p)
    targets : components of ln C^κκ/A_s, of ln C^EE/A_s, then ln of ``SCALARS``, (n, n_targets)
    L, kk_mean, kk_basis : multipoles (n_L,); mean and principal components of ln C^κκ/A_s,
        (n_L,) and (n_kk, n_L)
    x, ee_mean, ee_basis : the same of C^EE in µK², at stretched multipoles
    thetastar : θ*_ref, ()
    """

    low: np.ndarray
    high: np.ndarray
    design: np.ndarray
    targets: np.ndarray
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
    record : ``parameters`` in the order of the box; ``fixed`` parameters; ``kernel`` and ``degree``
        of the radial basis functions; CAMB's ``settings`` and ``version``; ``errors`` found
    """

    def __init__(self, tables: Tables, record: Mapping):
        self.tables, self.record = tables, dict(record)
        self.parameters = tuple(record["parameters"])
        self.fixed = dict(record["fixed"])
        self.lmax = int(tables.L[-1])
        self._interpolate = RBFInterpolator(
            tables.design, tables.targets, kernel=record["kernel"], degree=record["degree"]
        )
        # The spline through the nodes is linear in their values: taken to every L once.
        nodes = np.vstack([tables.kk_mean, tables.kk_basis])
        self._ell = np.arange(2.0, self.lmax + 1.0)
        self._kk = CubicSpline(np.log(tables.L), nodes, axis=1)(np.log(self._ell))

    def outside(self, point: Mapping[str, float]) -> list[str]:
        """Parameters of a point that lie outside the box, each with the box's sides."""
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

    def __call__(
        self, point: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Spectra at a point.

        Parameters
        ----------
        point : a value for each of ``parameters``

        Returns
        -------
        C_L^κκ and unlensed C_l^EE in µK², (lmax + 1,) each from l = 0, and ``SCALARS``

        Raises
        ------
        EmulatorError
            if the point is outside the box
        """
        if outside := self.outside(point):
            raise EmulatorError(f"outside the emulator's box: {', '.join(outside)}")
        t = self.tables
        unit = unit_box(np.array([point[name] for name in self.parameters]), t.low, t.high)
        found = self._interpolate(unit[None])[0]
        n_kk, n_ee = len(t.kk_basis), len(t.ee_basis)
        scalars = dict(zip(SCALARS, np.exp(found[n_kk + n_ee :]).tolist(), strict=True))
        amplitude = point[AMPLITUDE]
        kk = self._kk[0] + found[:n_kk] @ self._kk[1:]
        nodes = t.ee_mean + found[n_kk : n_kk + n_ee] @ t.ee_basis
        stretched = self._ell * (scalars["thetastar"] / float(t.thetastar))
        ee = CubicSpline(t.x, nodes)(stretched)
        return _from_logarithm(kk + amplitude), _from_logarithm(ee + amplitude), scalars


def matter_density(point: Mapping[str, float]) -> float:
    """Ω_m without neutrinos."""
    return (point["ombh2"] + point["omch2"]) / (0.01 * point["H0"]) ** 2


def unit_box(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Points in units of the box, −1 to 1."""
    return (2.0 * points - low - high) / (high - low)


def _from_logarithm(values: np.ndarray) -> np.ndarray:
    cl = np.zeros(len(values) + 2)
    np.exp(values, out=cl[2:])
    return cl


def write_emulator(tables: Tables, record: Mapping, path: str | Path) -> None:
    """Write an emulator's file, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial.npz")
    try:
        np.savez_compressed(
            partial, record=np.array(json.dumps({"format": FORMAT, **record})), **vars(tables)
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_emulator(source: str | Path) -> Emulator:
    """Read an emulator.

    Parameters
    ----------
    source : name of a shipped emulator, or a path

    Raises
    ------
    EmulatorError
        if the file is missing, damaged or not an emulator, or a field has a wrong shape or is not
        finite
    """
    path = Path(source)
    if not path.suffix and not path.exists():
        path = Path(str(SHIPPED / f"emulator_{source}.npz"))
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            tables = Tables(**{field.name: file[field.name] for field in fields(Tables)})
    except OSError as error:
        raise EmulatorError(
            f"{source}: cannot be read ({error.strerror or error}); give the path of an emulator, "
            "or the name of a shipped one"
        ) from None
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EmulatorError(
            f"{path}: is not an emulator or is damaged ({error}); make it again with `cnnlens "
            "emulator make`"
        ) from None
    _check(tables, record, path)
    return Emulator(tables, record)


def _check(t: Tables, record: dict, path: Path) -> None:
    again = "make it again with `cnnlens emulator make`"
    if record.get("format") != FORMAT:
        raise EmulatorError(
            f"{path}: field 'format' is {record.get('format')!r}, not {FORMAT!r}; {again}"
        )
    for key in ("parameters", "fixed", "kernel", "degree"):
        if key not in record:
            raise EmulatorError(f"{path}: field 'record' lacks '{key}'; {again}")
    p = len(record["parameters"])
    if t.targets.ndim != 2 or t.kk_basis.ndim != 2 or t.ee_basis.ndim != 2:
        raise EmulatorError(f"{path}: fields 'targets' and '*_basis' must be tables; {again}")
    n, n_kk, n_ee = len(t.targets), len(t.kk_basis), len(t.ee_basis)
    wanted = {
        "low": (p,),
        "high": (p,),
        "design": (n, p),
        "targets": (n, n_kk + n_ee + len(SCALARS)),
        "kk_mean": t.L.shape,
        "kk_basis": (n_kk, *t.L.shape),
        "ee_mean": t.x.shape,
        "ee_basis": (n_ee, *t.x.shape),
        "thetastar": (),
    }
    for name, shape in wanted.items():
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
    if not (t.low < t.high).all():
        raise EmulatorError(f"{path}: field 'low' must lie below 'high'; {again}")
