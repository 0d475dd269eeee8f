"""Closed formulae of flat ΛCDM, by which an emulator divides before it interpolates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..arrays import namespace
from .camb import Cosmology

NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


def matter_density(point: Mapping[str, float]) -> float:
    """Matter density without neutrinos.

    Parameters
    ----------
    point : parameters by Cobaya's names

    Returns
    -------
    omega_m : Ω_m
    """
    return (point["ombh2"] + point["omch2"]) / (0.01 * point["H0"]) ** 2


def acoustic_angle(point: Mapping[str, float]) -> float:
    """Acoustic angle θ* = r_s(z*)/D_M(z*) of flat ΛCDM.

    z* is that of Hu & Sugiyama (astro-ph/9510117, eq. E-1); neutrinos are massless. The result is
    within 1% of CAMB's; the difference hardly depends on the parameters.

    Parameters
    ----------
    point : parameters by Cobaya's names

    Returns
    -------
    theta : in radians
    """
    baryons, matter = point["ombh2"], point["ombh2"] + point["omch2"]
    g1 = 0.0783 * baryons**-0.238 / (1.0 + 39.5 * baryons**0.763)
    g2 = 0.560 / (1.0 + 21.1 * baryons**1.81)
    a_star = 1.0 / (1.0 + 1048.0 * (1.0 + 0.00124 * baryons**-0.738) * (1.0 + g1 * matter**g2))
    photons = 2.473e-5
    radiation = photons * (1.0 + 0.2271 * 3.044)
    dark_energy = (0.01 * point["H0"]) ** 2 - matter - radiation
    sqrt = namespace(dark_energy).sqrt
    root_star = sqrt(a_star)

    # dη = da/(a²H) is smooth in √a; H in units of 100 km/s/Mpc cancels in the ratio.
    def integral(low: Any, high: Any, factor: Callable[[np.ndarray], Any]) -> Any:
        root = 0.5 * (high - low) * (NODES + 1.0) + low
        a = root**2
        eta = 2.0 * root / sqrt(radiation + matter * a + dark_energy * a**4)
        return 0.5 * (high - low) * (WEIGHTS * eta * factor(a)).sum()

    sound = integral(
        0.0, root_star, lambda a: 1.0 / sqrt(3.0 * (1.0 + 0.75 * baryons / photons * a))
    )
    return sound / integral(root_star, 1.0, lambda a: 1.0)


def sound_horizon(point: Mapping[str, float]) -> float:
    """Sound horizon at the drag epoch (Aubourg et al. 2015, arXiv:1411.1074, eq. 16).

    Parameters
    ----------
    point : parameters by Cobaya's names

    Returns
    -------
    r_drag : in Mpc, within 0.1% of CAMB's
    """
    neutrinos = point.get("mnu", Cosmology.mnu) / 93.14
    slow = (point["ombh2"] + point["omch2"]) ** 0.25351 * point["ombh2"] ** 0.12807
    return 55.154 * namespace(neutrinos).exp(-72.3 * (neutrinos + 0.0006) ** 2) / slow
