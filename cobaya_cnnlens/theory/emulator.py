"""An emulator of CAMB for the two spectra that the likelihood needs.

ln C_L^κκ and ln C_l^EE (unlensed) were computed at the points of a design; radial basis functions
(scipy's ``RBFInterpolator``) carry their principal components to any point of its box. Acoustic
peaks would move through a fixed multipole, and no low order could follow them; so C^EE is emulated
against x = l θ*/θ*_ref, at which peaks stay where they are (and l²C^EE with them); θ* is emulated
too. At the lowest multipoles, which reionisation made, x goes over into l. The amplitude A_s is
taken out of both spectra first, so that only its non-linear effects are left.

The mathematics is of NumPy's arrays or of JAX's, which can differentiate it.
``emulator_files.py`` reads and writes emulators. ``pipeline/emulator_fit.py`` makes one, and
``validate/emulator_errors.py`` measures its error at points that did not make it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import isclose
from numbers import Real
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline, PPoly, RBFInterpolator

from ..arrays import namespace
from ..errors import EmulatorError
from .approximations import acoustic_angle, matter_density, sound_horizon

# Emulated beside the components of the two spectra, through their logarithms.
SCALARS = ("thetastar", "sigma8", "omegam", "rdrag")
AMPLITUDE = "logA"
# Parameters of the non-linear matter power alone: they change C^κκ, but neither the unlensed C^EE
# nor any of SCALARS.
NONLINEAR = ("HMCode_logT_AGN",)
# C^EE below this x depends on other things than above: its components are taken apart there.
REIONISATION = 100.0
# A flat universe with dark energy has Ω_m < 1; a corner of a wide box has not.
LARGEST_DENSITY = 0.95
# Below this multipole C^EE is emulated at fixed l.
LOW_MULTIPOLE = 30.0


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
        parameter that bends the spectra more than others, so that near points weigh more (else 1);
        ``logarithmic``, the parameters that are interpolated in their logarithms
    base : another emulator: the tables are then of what is left when its logarithms are taken off,
        with its ``thetastar`` for θ*_ref. Its parameters count beside those of the tables.
    """

    def __init__(self, tables: Tables, record: Mapping[str, Any], base: Emulator | None = None):
        self.tables, self.record, self.base = tables, dict(record), base
        self._interpolated = tuple(record["parameters"])
        below = base.parameters if base else ()
        self.parameters: tuple[str, ...] = tuple(dict.fromkeys((*self._interpolated, *below)))
        self.fixed = {k: v for k, v in record["fixed"].items() if k not in self.parameters}
        self.lmax = int(tables.L[-1])
        kernel, degree = record["kernel"], record["degree"]
        scales = record.get("scales", {})
        self._scales = np.array([float(scales.get(name, 1.0)) for name in self._interpolated])
        self._logarithmic = np.isin(self._interpolated, record.get("logarithmic", []))
        design = self._scales * tables.design
        self._interpolate = RBFInterpolator(design, tables.targets, kernel=kernel, degree=degree)
        self._rdrag = RBFInterpolator(design, tables.rdrag, kernel=kernel, degree=degree)
        self._linear_in = np.flatnonzero(np.not_equal(self._interpolated, AMPLITUDE))
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
    def box(self) -> dict[str, tuple[float, float]]:
        """Lower and upper side of each of ``parameters``, within the tables and the base."""
        sides = zip(self.tables.low.tolist(), self.tables.high.tolist(), strict=True)
        box = dict(zip(self._interpolated, sides, strict=True))
        for name, (low, high) in self.base.box.items() if self.base else ():
            own_low, own_high = box.get(name, (low, high))
            box[name] = max(low, own_low), min(high, own_high)
        return box

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
        """Parameters of a point that lie outside the box.

        Parameters
        ----------
        point : parameters by Cobaya's names

        Returns
        -------
        outside : one text each, with the sides of the box

        Raises
        ------
        EmulatorError
            if the point lacks a parameter, has an unknown one, or another value of a fixed one
        """
        self._check_point(point)
        outside = [
            f"{name} = {point[name]:.6g} (from {low:.6g} to {high:.6g})"
            for name, (low, high) in self.box.items()
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
            clkk, clee, scalars = self.spectra(point)
        return clkk, clee, {name: float(value) for name, value in scalars.items()}

    def spectra(self, point: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Spectra at a point of the box, without a check that it is one.

        Parameters
        ----------
        point : numbers or arrays of JAX, (), by Cobaya's names

        Returns
        -------
        as a call; arrays of JAX if the point has some
        """
        xp = namespace(*point.values())
        kk, splines, logarithms = self.logarithms(point)
        scalars = dict(zip(SCALARS, xp.exp(logarithms), strict=True))
        amplitude = point[AMPLITUDE]
        stretch = scalars["thetastar"] / float(self.tables.thetastar)
        x = stretched(self._ell, stretch)
        ee = sum(spline(x) for spline in splines) + 2.0 * xp.log(stretch)
        return _from_logarithm(kk + amplitude), _from_logarithm(ee + amplitude), scalars

    def logarithms(self, point: Mapping[str, Any]) -> tuple[Any, list[Callable[[Any], Any]], Any]:
        """Logarithms of the emulated quantities at a point.

        Parameters
        ----------
        point : parameters by Cobaya's names

        Returns
        -------
        kk, ee, scalars : ln C_L^κκ/A_s from L = 2; splines in x, sum ln C^EE/A_s; ln of ``SCALARS``
        """
        xp = namespace(*point.values())
        t = self.tables
        values = xp.asarray([point[name] for name in self._interpolated])
        unit = self._scales * unit_box(values, t.low, t.high, self._logarithmic)
        emulated = interpolated(self._interpolate, unit)
        n_kk = len(t.kk_basis)
        scalars = xp.append(emulated[n_kk:], interpolated(self._rdrag, unit))
        kk = self._kk[0] + emulated[:n_kk] @ self._kk[1:]
        linear = interpolated(self._linear, unit[self._linear_in])
        along = xp.concatenate([xp.ones(1), linear])
        splines = [spline(self._ee.c @ along, self._ee.x)]
        if self.base is None:
            return kk, splines, scalars + xp.log(baselines({**self.fixed, **point}))
        below, others, known = self.base.logarithms(point)
        return kk + below[: len(kk)], splines + others, scalars + known


def same(value: float, made_at: float) -> bool:
    """Whether a parameter has the value at which it is fixed.

    Parameters
    ----------
    value : of the point
    made_at : of the emulator

    Returns
    -------
    same : to rounding
    """
    return isclose(value, made_at, rel_tol=1e-6)


# Radial functions of r² by scipy's names.
KERNELS: dict[str, Callable[[Any], Any]] = {
    "cubic": lambda square: square**1.5,
    "quintic": lambda square: -(square**2.5),
}


def interpolated(interpolator: RBFInterpolator, x: Any) -> Any:
    """Values of an interpolator at one point: scipy's, or the same sum in JAX's functions.

    Parameters
    ----------
    interpolator : fitted, with a kernel of :data:`KERNELS` where x is of JAX
    x : (n_parameters,), of NumPy or JAX

    Returns
    -------
    values : of the same kind, (n_values,)
    """
    if (xp := namespace(x)) is np:
        return interpolator(x[None])[0]
    if (kernel := KERNELS.get(interpolator.kernel)) is None:
        raise EmulatorError(
            f"the emulator's kernel '{interpolator.kernel}' is not written for JAX; make the "
            f"emulator with one of {', '.join(KERNELS)}"
        )
    # scipy's classes keep the solution of the fit in private attributes; a test compares.
    coefficients, shift, scale = interpolator._coeffs, interpolator._shift, interpolator._scale
    of_distance = kernel(((x - interpolator.y) ** 2).sum(1))
    # A monomial is a product of the entries of (1, x), as many as the degree.
    powers = np.asarray(interpolator.powers)
    powers = np.column_stack([powers.sum(1).max() - powers.sum(1), powers])
    factors = np.array([np.repeat(np.arange(len(row)), row) for row in powers])
    entries = xp.append(xp.ones(1), (x - shift) / scale)
    monomials = entries[factors[:, 0]]
    for column in factors.T[1:]:
        monomials = monomials * entries[column]
    n = len(interpolator.y)
    values = of_distance @ coefficients[:n] + monomials @ coefficients[n:]
    return values.reshape(interpolator.d_shape)


def spline(coefficients: Any, nodes: np.ndarray) -> Callable[[Any], Any]:
    """A cubic spline: scipy's, or the same polynomials in JAX's functions.

    Parameters
    ----------
    coefficients : of each piece, the highest power first, (4, n_nodes - 1)
    nodes : ascending, (n_nodes,)

    Returns
    -------
    the function; it takes arrays of the kind of ``coefficients``
    """
    if (xp := namespace(coefficients)) is np:
        return PPoly.construct_fast(coefficients, nodes)

    def polynomials(x: Any) -> Any:
        piece = xp.searchsorted(nodes, x, side="right").clip(1, len(nodes) - 1) - 1
        return xp.polyval(coefficients[:, piece], x - xp.asarray(nodes)[piece])

    return polynomials


def baselines(point: Mapping[str, Any]) -> Any:
    """Approximations by which ``SCALARS`` are divided before they are emulated.

    Parameters
    ----------
    point : parameters by Cobaya's names

    Returns
    -------
    baselines : (4,)
    """
    xp = namespace(*point.values())
    amplitude = xp.exp(0.5 * point[AMPLITUDE])
    angle, matter = acoustic_angle(point), matter_density(point)
    return xp.asarray([angle, amplitude, matter, sound_horizon(point)])


def unit_box(
    points: Any, low: np.ndarray, high: np.ndarray, logarithmic: np.ndarray | bool = False
) -> Any:
    """Points in units of the box.

    Parameters
    ----------
    points : (n, n_parameters)
    low, high : sides of the box, (n_parameters,) each
    logarithmic : which parameters count by their logarithms, (n_parameters,)

    Returns
    -------
    unit : −1 to 1, (n, n_parameters)
    """
    if np.any(logarithmic):
        points, low, high = (_logarithms(values, logarithmic) for values in (points, low, high))
    return (2.0 * points - low - high) / (high - low)


def _logarithms(values: Any, logarithmic: np.ndarray | bool) -> Any:
    """Some of the values by their logarithms; others may be zero or negative."""
    xp = namespace(values)
    return xp.where(logarithmic, xp.log(xp.where(logarithmic, values, 1.0)), values)


def stretched(l: np.ndarray, stretch: float) -> np.ndarray:
    """Coordinate x of multipoles where θ* is ``stretch`` times the reference.

    Parameters
    ----------
    l : multipoles, of any shape
    stretch : of θ*

    Returns
    -------
    x : of the shape of ``l``
    """
    low = (LOW_MULTIPOLE / l) ** 2
    return l * (1.0 + (stretch - 1.0) / (1.0 + low * low * low))


def _from_logarithm(values: Any) -> Any:
    xp = namespace(values)
    return xp.concatenate([xp.zeros(2), xp.exp(values)])
