"""The fit of an emulator to CAMB's spectra at the points of a design."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from ..errors import EmulatorError
from ..theory.emulator import (
    AMPLITUDE,
    NONLINEAR,
    REIONISATION,
    SCALARS,
    Emulator,
    Tables,
    baselines,
    stretched,
    unit_box,
)
from ..theory.emulator_files import check_base, read_emulator
from .emulation import Plan, Points

# The corners of a box stretch a little more than any point of the design.
STRETCH_MARGIN = 0.02
# Spacing of the nodes: in ln L for C^κκ (1 at least), in x for C^EE.
LOG_SPACING, STRETCHED_SPACING = 0.03, 6.0


def fit(plan: Plan, points: Points) -> Emulator:
    """The emulator of a design.

    Parameters
    ----------
    plan : of the emulator
    points : with CAMB's spectra, those of the checks left out

    Returns
    -------
    the emulator

    Raises
    ------
    EmulatorError
        if CAMB's spectra do not reach as far as the stretched multipoles must, or the base does not
        hold the box
    """
    base = read_emulator(plan.upon) if plan.upon else None
    sides = plan.sides()
    theta = points.scalars[:, SCALARS.index("thetastar")]
    reference = float(base.tables.thetastar if base else np.exp(np.log(theta).mean()))
    stretch = theta / reference
    L, x = _multipoles(plan), _stretched_multipoles(plan, stretch)
    kk, ee = _logarithms(plan, points, stretch, L, x)
    if base:
        check_base(base, plan.box, plan.fixed, (L[-1], x[-1]), plan.name)
    known = _take_known_off(plan, points, base, (L, kk), (x, ee))
    at, scalars = points.at, np.log(points.scalars / known)
    added = set(plan.parameters) - set(base.parameters) if base else set()
    if added and added <= set(NONLINEAR):
        # All but C^κκ is the base's: what is left of it is the base's error.
        ee, scalars = np.zeros_like(ee), np.zeros_like(scalars)
    elif base:
        # Where the further parameters are the base's, nothing is left of any of these.
        known_at = _where_the_base_is(plan, base, at)
        at, n = np.vstack([at, known_at]), len(known_at)
        kk, ee, scalars = (
            np.vstack([values, np.zeros((n, values.shape[1]))]) for values in (kk, ee, scalars)
        )
    kk_mean, kk_basis, kk_parts = _components(kk, plan.components)
    low, high = (
        _components(np.where(part, ee, 0.0), plan.components)
        for part in (x < REIONISATION, x >= REIONISATION)
    )
    tables = Tables(
        low=sides[0],
        high=sides[1],
        design=unit_box(at, *sides, np.isin(plan.parameters, plan.logarithmic)),
        targets=np.hstack([kk_parts, scalars[:, :-1]]),
        rdrag=scalars[:, -1],
        linear=np.hstack([low[2], high[2]]),
        L=L,
        kk_mean=kk_mean,
        kk_basis=kk_basis,
        x=x,
        ee_mean=low[0] + high[0],
        ee_basis=np.concatenate([low[1], high[1]]),
        thetastar=np.array(reference),
    )
    return Emulator(tables, _record(plan, points, base), base)


def _multipoles(plan: Plan) -> np.ndarray:
    """Nodes in L of C^κκ, evenly spaced in ln L from 2 to ``plan.lmax``."""
    L = np.unique(
        np.round(np.exp(np.arange(np.log(2.0), np.log(plan.lmax), LOG_SPACING))).astype(int)
    )
    return np.append(L[plan.lmax > L], plan.lmax)


def _stretched_multipoles(plan: Plan, stretch: np.ndarray) -> np.ndarray:
    """Nodes in x, the stretched multipole, of C^EE.

    Raises
    ------
    EmulatorError
        if CAMB's spectra do not reach the last
    """
    # Every point must reach the last node, which lmax needs where the stretch is largest.
    first = stretched(np.array([2.0]), stretch.max())[0]
    last = plan.lmax * (stretch.max() + STRETCH_MARGIN)
    if plan.camb.lmax * stretch.min() < last:
        raise EmulatorError(
            f"{plan.name}: over this box θ* varies by {np.ptp(stretch):.0%}; raise 'camb.lmax' to "
            f"{int(np.ceil(last / stretch.min() / 100)) * 100}, or shrink the box"
        )
    return np.concatenate(
        [np.arange(first, REIONISATION), np.arange(REIONISATION, last, STRETCHED_SPACING)]
    )


def _logarithms(
    plan: Plan, points: Points, stretch: np.ndarray, L: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln C^κκ at L and ln l²C^EE at x over A_s, (n_points, n_L) and (n_points, n_x)."""
    logA = points.at[:, plan.parameters.index(AMPLITUDE)][:, None]
    l = np.arange(2.0, plan.camb.lmax + 1.0)
    # l²C_l is what stays put at fixed x.
    ee = (
        -logA
        - 2.0 * np.log(stretch)[:, None]
        + np.array(
            [
                CubicSpline(stretched(l, s), np.log(cl[2:]))(x)
                for s, cl in zip(stretch, points.ee, strict=True)
            ]
        )
    )
    return np.log(points.kk[:, L]) - logA, ee


def _take_known_off(
    plan: Plan,
    points: Points,
    base: Emulator | None,
    kk: tuple[np.ndarray, np.ndarray],
    ee: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Take what the base has of the logarithms off them, in place; the derived parameters as the
    base or else fitting formulae have them, (n_points, n_scalars).

    Parameters
    ----------
    kk, ee : nodes, and logarithms there by point
    """
    named = [dict(zip(plan.parameters, at, strict=True)) for at in points.at]
    if base is None:
        return np.array([baselines({**plan.fixed, **point}) for point in named])
    (L, log_kk), (x, log_ee), known = kk, ee, []
    for i, point in enumerate(named):
        below, splines, logarithms = base.logarithms(point)
        log_kk[i] -= below[L - 2]
        log_ee[i] -= sum(spline(x) for spline in splines)
        known.append(np.exp(logarithms))
    return np.array(known)


def _where_the_base_is(plan: Plan, base: Emulator, at: np.ndarray) -> np.ndarray:
    """The points with the parameters that the base has not at its values, each once; none if there
    is no such value, as of feedback for a base without."""
    known_at = at.copy()
    for i, name in enumerate(plan.parameters):
        if name not in base.parameters:
            if name not in base.fixed:
                return at[:0]
            known_at[:, i] = base.fixed[name]
    return np.unique(known_at, axis=0)


def _record(plan: Plan, points: Points, base: Emulator | None) -> dict[str, Any]:
    """What an emulator says of itself."""
    recipe = plan.recipe(points.at[0])
    return {
        "name": plan.name,
        "parameters": list(plan.parameters),
        "fixed": plan.fixed,
        "kernel": plan.kernel,
        "degree": plan.degree,
        "smoothing": plan.smoothing,
        "scales": plan.scales,
        "logarithmic": plan.logarithmic,
        **({"base": plan.upon, "base_digest": base.digest} if base else {}),
        **{k: v for k, v in recipe.items() if k not in ("cosmology", "nonlinear")},
    }


def _components(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, principal components (n, …) and the values' coordinates along them."""
    mean = values.mean(0)
    _, _, vt = np.linalg.svd(values - mean, full_matrices=False)
    basis = vt[:n]
    return mean, basis, (values - mean) @ basis.T
