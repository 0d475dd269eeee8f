"""Analytic reconstruction noise of the quadratic estimators with temperature (Hu & Okamoto 2002).

Flat sky, lensed spectra, l2 = L − l1, φ12 the angle between them; temperature has l1:

    f_TT = C^TT_l1 L·l1 + C^TT_l2 L·l2,
    f_TE = C^TE_l1 cos 2φ12 L·l1 + C^TE_l2 L·l2,
    f_TB = C^TE_l1 sin 2φ12 L·l1,

their eq. 13 for the weights. The patches hold no temperature: these are for comparison alone.
"""

from __future__ import annotations

import numpy as np

from ..errors import CNNLensError
from ..simulate.instrument import Instrument
from ..theory.camb import Spectra, TemperatureSpectra
from .n0 import Filter, Plane, phi_to_convergence, polarisation_noise


def n0_temperature(
    estimator: str,
    L: np.ndarray,
    spectra: Spectra,
    temperature: TemperatureSpectra,
    instrument: Instrument,
    band: Filter | None = None,
) -> np.ndarray:
    """N0^κ of the quadratic estimator "tt", "te" or "tb" at multipoles ``L``; same shape.

    Temperature's white noise is that of Q and of U over √2.

    Raises
    ------
    CNNLensError
        for another estimator, or if the spectra end below the filter's lmax
    """
    band = band or Filter()
    if estimator not in TEMPERATURE_ESTIMATORS:
        raise CNNLensError(
            f"no estimator '{estimator}'; there are {', '.join(TEMPERATURE_ESTIMATORS)}"
        )
    if min(spectra.lmax, len(temperature.tt) - 1) < band.lmax:
        raise CNNLensError(f"the spectra end below the filter's lmax = {band.lmax}")
    stop = slice(band.lmax + 1)
    noise = polarisation_noise(instrument, band.lmax)
    signal = {
        "tt": temperature.tt[stop],
        "te": temperature.te[stop],
        "ee": spectra.lensed_ee[stop],
        "bb": spectra.lensed_bb[stop],
    }
    added = {"tt": 0.5 * noise, "te": np.zeros_like(noise), "ee": noise, "bb": noise}
    total = {name: cl + added[name] for name, cl in signal.items()}
    plane = Plane(band)
    information = TEMPERATURE_ESTIMATORS[estimator]
    phi_noise = np.array([1.0 / information(plane, x, signal, total) for x in L])
    return phi_to_convergence(L, phi_noise)


def _tt(
    plane: Plane, L: float, signal: dict[str, np.ndarray], total: dict[str, np.ndarray]
) -> float:
    l2, dot1, _, _ = plane.triangle(L)
    f = plane.at(plane.l1, signal["tt"]) * dot1 + plane.at(l2, signal["tt"]) * (L * L - dot1)
    weight = 2.0 * plane.at(plane.l1, total["tt"]) * plane.at(l2, total["tt"])
    return plane.integral(l2, f**2 / weight)


def _te(
    plane: Plane, L: float, signal: dict[str, np.ndarray], total: dict[str, np.ndarray]
) -> float:
    l2, dot1, cos, _ = plane.triangle(L)
    dot2 = L * L - dot1
    te1, te2 = (plane.at(l, signal["te"]) for l in (plane.l1, l2))
    tt1, tt2, ee1, ee2 = (plane.at(l, total[c]) for c in ("tt", "ee") for l in (plane.l1, l2))
    f = te1 * cos * dot1 + te2 * dot2
    mirrored = te2 * cos * dot2 + te1 * dot1
    weight = (ee1 * tt2 * f - te1 * te2 * mirrored) / (tt1 * ee2 * ee1 * tt2 - (te1 * te2) ** 2)
    return plane.integral(l2, f * weight)


def _tb(
    plane: Plane, L: float, signal: dict[str, np.ndarray], total: dict[str, np.ndarray]
) -> float:
    l2, dot1, _, sin = plane.triangle(L)
    f = plane.at(plane.l1, signal["te"]) * sin * dot1
    return plane.integral(l2, f**2 / (plane.at(plane.l1, total["tt"]) * plane.at(l2, total["bb"])))


# By the name a user gives.
TEMPERATURE_ESTIMATORS = {"tt": _tt, "te": _te, "tb": _tb}
