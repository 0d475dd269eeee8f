"""Feature maps: what a Wiener filter and the MAP steps know of a patch.

A network that refines κ̂ need not learn what they know. Each feature is a map of the patch in
units of order one, float16 on disk; scalars, and the components of spin-2 fields, vectors and
tensors in the patch's frame, which the symmetries of the square mix as :func:`turned` says. With A
the lensing by the φ so far and the beam, X the filtered E and B, σ the noise rms of a pixel, P the
filtered, lensed Q + iU and r = σ b ∗ N⁻¹(d − A X):

====================  ======================================================================
name                  what, and the unit it is divided by
====================  ======================================================================
q, u                  masked data, 5 µK
kappa_1, _4, _6, _7   κ̂ after so many passes, masked, 0.1
e                     filtered unlensed E, masked, 5 µK
filtered_q, _u        A X, masked, 5 µK
residual_q, _u        r, masked: what the filter leaves of the data in units of the noise
slope_y, _x           Re[r* ∂P], masked, 10⁴ µK/rad: its divergence is the slope of ln p(d | φ)
curvature_yy, yx, xx  Re[∂P* ∂P], masked, (10⁴ µK/rad)²
noise                 ln(1 + σ/0.2 µK), 0 where nothing was seen
seen                  the mask times whether the pixel was seen
====================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft

from ..simulate.periodic import Box
from .map_lensing import MAPLensing, Pass

# Passes after which κ̂ is kept; the filter of the last gives all else.
KEPT_PASSES = (1, 4, 6, 7)
PASSES = KEPT_PASSES[-1]
# The κ̂ that a network corrects.
REFINED = f"kappa_{PASSES}"
POLARISATION_UNIT, KAPPA_UNIT, GRADIENT_UNIT, NOISE_UNIT = 5.0, 0.1, 1e4, 0.2
FEATURES = (
    *("q", "u"),
    *(f"kappa_{n}" for n in KEPT_PASSES),
    "e",
    *("filtered_q", "filtered_u", "residual_q", "residual_u", "slope_y", "slope_x"),
    *("curvature_yy", "curvature_yx", "curvature_xx", "noise", "seen"),
)
_AT = {name: i for i, name in enumerate(FEATURES)}
_SPIN2 = [(_AT[f"{kind}q"], _AT[f"{kind}u"]) for kind in ("", "filtered_", "residual_")]


@dataclass(frozen=True)
class RefiningPatches:
    """What a refining network learns from.

    Attributes
    ----------
    features : (n, ny, nx, len(FEATURES)), float16 as on disk
    kappa, e : masked truth, (n, ny, nx); E in µK
    level : noise of each patch in µK-arcmin, (n,)
    """

    features: np.ndarray
    kappa: np.ndarray
    e: np.ndarray
    level: np.ndarray


def features_of(
    estimator: MAPLensing,
    q: np.ndarray,
    u: np.ndarray,
    rms: np.ndarray | None = None,
    threads: int = 0,
) -> Iterator[np.ndarray]:
    """Features of patches, one patch after another.

    Parameters
    ----------
    estimator : with ``PASSES`` passes
    q, u : masked maps in µK, (n, ny, nx)
    rms : noise per pixel of the unmasked maps in µK, (ny, nx) or (n, ny, nx), infinite in pixels
        without data; that of the instrument by default
    threads : patches at a time; 0 for one per core

    Yields
    ------
    features : of one patch, (ny, nx, len(FEATURES)) float32
    """
    rms = np.broadcast_to(estimator.noise_rms() if rms is None else rms, np.shape(q))
    with ThreadPoolExecutor(threads or None) as pool:
        yield from pool.map(lambda *maps: _one(estimator, *maps), q, u, rms)


def _one(estimator: MAPLensing, q: np.ndarray, u: np.ndarray, rms: np.ndarray) -> np.ndarray:
    box, mask = estimator.box, estimator.mask
    kept: dict[str, np.ndarray] = {}
    for number, last in enumerate(estimator.passes(q, u, rms), start=1):
        if number in KEPT_PASSES:
            kept[f"kappa_{number}"] = mask * last.kappa / KAPPA_UNIT
    known = np.isfinite(rms) & (mask > 0)
    sigma = np.where(known, rms, 0.0)
    kept |= {
        name: mask * box.crop(values) for name, values in _fields(box, last, box.pad(sigma)).items()
    }
    kept["q"], kept["u"] = (np.where(known, m, 0.0) / POLARISATION_UNIT for m in (q, u))
    kept["noise"] = np.log1p(sigma / NOISE_UNIT)
    kept["seen"] = mask * known
    return np.stack([kept[name] for name in FEATURES], axis=-1, dtype=np.float32)


def _fields(box: Box, last: Pass, sigma: np.ndarray) -> dict[str, np.ndarray]:
    """The features that the last pass's filter gives, on the box."""
    predicted = last.filter.predict(last.modes, last.positions)
    residual = sigma * last.filter.weighted_residual(last.data, last.modes, last.positions)
    e = np.where(box.band, last.modes, 0.0)
    y, x = (box.at(g * last.modes, last.positions) / GRADIENT_UNIT for g in box.gradients)
    return {
        "e": scipy.fft.ifft2(e).real / POLARISATION_UNIT,
        "filtered_q": predicted.real / POLARISATION_UNIT,
        "filtered_u": predicted.imag / POLARISATION_UNIT,
        "residual_q": residual.real,
        "residual_u": residual.imag,
        "slope_y": (np.conj(residual) * y).real,
        "slope_x": (np.conj(residual) * x).real,
        "curvature_yy": np.abs(y) ** 2,
        "curvature_yx": (np.conj(y) * x).real,
        "curvature_xx": np.abs(x) ** 2,
    }


def turned(features: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """Apply one of the 8 symmetries of the square to features.

    Parameters
    ----------
    features : (..., ny, nx, len(FEATURES))
    turns : number of quarter turns
    flip : whether a mirror along x follows the turns

    Returns
    -------
    features : of the turned patch, same shape
    """
    order, signs = symmetry_of(turns, flip)
    moved = np.rot90(features, turns, axes=(-3, -2))
    if flip:
        moved = moved[..., ::-1, :]
    return moved[..., order] * signs.astype(features.dtype)


def symmetry_of(turns: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which feature a symmetry of the square puts in the place of each, and with what sign.

    A quarter turn takes (y, x) to (−x, y): Q and U change sign, a vector's (y, x) components become
    (−x, y), a tensor's yy and xx change places and yx changes sign. The mirror changes the sign of
    U, of x components, and of yx.

    Parameters
    ----------
    turns : number of quarter turns
    flip : whether a mirror along x follows the turns

    Returns
    -------
    order, signs : the feature that takes each place, and its sign, (len(FEATURES),) each
    """
    order, signs = np.arange(len(FEATURES)), np.ones(len(FEATURES), np.float32)
    slope = [_AT["slope_y"], _AT["slope_x"]]
    yy, yx, xx = (_AT[f"curvature_{k}"] for k in ("yy", "yx", "xx"))
    if turns % 2:
        order[slope] = slope[::-1]
        order[[yy, xx]] = xx, yy
        signs[yx] = -1.0
        for pair in _SPIN2:
            signs[list(pair)] = -1.0
    signs[slope] = ((1, 1), (-1, 1), (-1, -1), (1, -1))[turns % 4]
    if flip:
        signs[slope[1]] *= -1.0
        signs[yx] *= -1.0
        for _, u in _SPIN2:
            signs[u] *= -1.0
    return order, signs
