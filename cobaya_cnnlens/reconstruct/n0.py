"""Analytic reconstruction noise of polarisation estimators (Hu & Okamoto 2002, Smith et al. 2012).

Flat sky. With l2 = L − l1 and φ12 the angle between them, the EB and EE responses are

    f_EB = [C^EE_l1 (L·l1) + C^BB_l2 (L·l2)] sin 2φ12,
    f_EE = [C^EE_l1 (L·l1) + C^EE_l2 (L·l2)] cos 2φ12,
    N0^φ = [∫ d²l1/(2π)² f² / total]⁻¹,   N0^κ = L⁴ N0^φ / 4,

with total = C^EE,tot_l1 C^BB,tot_l2 for EB and 2 C^EE,tot_l1 C^EE,tot_l2 for EE. Parity makes the
noise of EE and EB independent, so that 1/N adds. (In Caldeira et al. 2018 eq. 6 reads l·(L−l) for
L·l; eq. 8 lacks a power of 2π and gives R, not 1/R.)
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ..errors import CNNLensError
from ..simulate.instrument import ARCMIN, Instrument
from ..simulate.patches import PatchGeometry
from ..theory.camb import Spectra


@dataclass(frozen=True)
class Filter:
    """Multipoles lmin ≤ l ≤ lmax of E and B that enter the estimator."""

    lmin: int = 72
    lmax: int = 4600


def band_of(geometry: PatchGeometry, spectra: Spectra, lmin: int) -> Filter:
    """Multipoles from ``lmin`` that the modes of a patch, its beam and the spectra allow.

    Modes at the Nyquist multipole have no mirror image. With them an estimator would give another
    κ̂ for a mirrored patch.

    Parameters
    ----------
    geometry : of the patch
    spectra : whose lmax is a limit
    lmin : the lowest multipole

    Returns
    -------
    band : limits in l
    """
    return Filter(lmin, min(math.ceil(geometry.nyquist) - 1, spectra.lmax, 4600))


def polarisation_noise(instrument: Instrument, lmax: int) -> np.ndarray:
    """Noise spectrum of E and of B, with the beam divided out.

    Parameters
    ----------
    instrument : whose beam and noise it is
    lmax : largest multipole

    Returns
    -------
    noise : from l = 0, (lmax + 1,) in µK²
    """
    ell = np.arange(lmax + 1)
    white = (instrument.noise_uk_arcmin * ARCMIN) ** 2 / instrument.beam(ell) ** 2
    if instrument.one_over_f is None:
        return white
    return white * instrument.one_over_f.mean_ratio(ell)


def n0_eb(
    L: np.ndarray, spectra: Spectra, instrument: Instrument, band: Filter = Filter()
) -> np.ndarray:
    """N0^κ of the quadratic EB estimator; response and filters hold lensed spectra.

    Parameters
    ----------
    L : multipoles, of any shape
    spectra : of φ and of unlensed and lensed polarisation
    instrument : whose beam and noise it is
    band : multipoles of the maps that are used

    Returns
    -------
    noise : of the shape of ``L``

    Raises
    ------
    CNNLensError
        if the spectra end below the filter's lmax
    """
    ee, bb, noise = _inputs(spectra, instrument, band)
    plane = Plane(band)
    phi_noise = np.array([plane.eb_noise(x, ee, bb, ee + noise, bb + noise) for x in L])
    return phi_to_convergence(L, phi_noise)


def n0_ee(
    L: np.ndarray, spectra: Spectra, instrument: Instrument, band: Filter = Filter()
) -> np.ndarray:
    """N0^κ of the quadratic EE estimator.

    Parameters
    ----------
    L, spectra, instrument, band : as in :func:`n0_eb`

    Returns
    -------
    noise : of the shape of ``L``

    Raises
    ------
    CNNLensError
        if the spectra end below the filter's lmax
    """
    ee, _, noise = _inputs(spectra, instrument, band)
    plane = Plane(band)
    return phi_to_convergence(L, np.array([plane.ee_noise(x, ee, ee + noise) for x in L]))


def n0_mv(
    L: np.ndarray, spectra: Spectra, instrument: Instrument, band: Filter = Filter()
) -> np.ndarray:
    """N0^κ of EB and EE together, weighted by inverse variance.

    Parameters
    ----------
    L, spectra, instrument, band : as in :func:`n0_eb`

    Returns
    -------
    noise : of the shape of ``L``

    Raises
    ------
    CNNLensError
        if the spectra end below the filter's lmax
    """
    made_for = L, spectra, instrument, band
    return 1.0 / (1.0 / n0_eb(*made_for) + 1.0 / n0_ee(*made_for))


def n0_iterated(
    L: np.ndarray,
    spectra: Spectra,
    instrument: Instrument,
    band: Filter = Filter(),
    tolerance: float = 1e-3,
) -> np.ndarray:
    """N0^κ of the iterated EB estimator.

    Reconstruction and delensing of B alternate until N0 changes by less than ``tolerance`` (Smith
    et al. 2012, arXiv:1010.0048, with the residual B of their eq. 12).

    Parameters
    ----------
    L, spectra, instrument, band : as in :func:`n0_eb`
    tolerance : largest relative change of N0 in the last pass

    Returns
    -------
    noise : of the shape of ``L``
    """
    passes = delensing_passes(spectra, instrument, band)
    phi_noise, _ = next(passes)
    for new, _ in passes:
        moved = np.max(np.abs(np.log(new / phi_noise)))
        phi_noise = new
        if moved < tolerance:
            break
    return phi_to_convergence(L, np.interp(L, np.arange(len(phi_noise)), phi_noise))


def delensing_passes(
    spectra: Spectra, instrument: Instrument, band: Filter = Filter()
) -> Generator[tuple[np.ndarray, np.ndarray], None, NoReturn]:
    """Passes of the iterated EB estimator, without end.

    The first pass is that of the quadratic estimator.

    Parameters
    ----------
    spectra, instrument, band : as in :func:`n0_eb`

    Yields
    ------
    noise, bb : N0^φ at every L of C^φφ; power in µK² of the B modes that the pass used, which are
        lensed or left by delensing, to the filter's lmax
    """
    _, _, noise = _inputs(spectra, instrument, band)
    ee = spectra.ee[: band.lmax + 1]
    pp = spectra.pp
    plane = Plane(band)
    nodes = np.unique(np.geomspace(4, band.lmax, 60).round()).astype(float)
    grid = np.arange(len(pp), dtype=float)
    wiener_e = np.divide(ee**2, ee + noise, out=np.zeros_like(ee), where=ee > 0)
    lensed = np.array([plane.lensed_b(l, ee, pp) for l in nodes])
    zero = np.zeros_like(ee)
    residual = lensed
    while True:
        bb = np.exp(np.interp(np.log(grid[: len(noise)].clip(1)), np.log(nodes), np.log(residual)))
        at_nodes = np.array([plane.eb_noise(x, ee, zero, ee + noise, bb + noise) for x in nodes])
        phi_noise = np.exp(np.interp(np.log(grid.clip(1)), np.log(nodes), np.log(at_nodes)))
        yield phi_noise, bb
        wiener_phi = np.divide(pp**2, pp + phi_noise, where=pp > 0, out=np.zeros_like(pp))
        residual = lensed - np.array([plane.lensed_b(l, wiener_e, wiener_phi) for l in nodes])


# By the name a user gives.
ESTIMATORS = {"eb": n0_eb, "ee": n0_ee, "mv": n0_mv, "eb-iterative": n0_iterated}


def phi_to_convergence(L: np.ndarray, phi_noise: np.ndarray) -> np.ndarray:
    """Turn a spectrum of φ into one of κ = ½L²φ (flat sky).

    Parameters
    ----------
    L : multipoles, of any shape
    phi_noise : spectrum of φ at ``L``

    Returns
    -------
    noise : L⁴/4 times ``phi_noise``, same shape
    """
    return 0.25 * np.asarray(L, dtype=float) ** 4 * np.asarray(phi_noise)


def _inputs(
    spectra: Spectra, instrument: Instrument, band: Filter
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lensed C^EE and C^BB and the noise's spectrum, each from l = 0 to the filter's lmax."""
    if spectra.lmax < band.lmax:
        raise CNNLensError(f"spectra end at l = {spectra.lmax}, the filter needs {band.lmax}")
    stop = slice(band.lmax + 1)
    return (
        spectra.lensed_ee[stop],
        spectra.lensed_bb[stop],
        polarisation_noise(instrument, band.lmax),
    )


class Plane:
    """Polar quadrature over l1 within the filter's annulus."""

    def __init__(self, band: Filter, n_radius: int = 300, n_angle: int = 120):
        self.band = band
        edges = np.linspace(band.lmin, band.lmax, n_radius + 1)
        self.l1 = 0.5 * (edges[1:] + edges[:-1])[:, None]
        angle = (np.arange(n_angle) + 0.5) * np.pi / n_angle  # upper half plane, counted twice
        self.cos, self.sin = np.cos(angle)[None], np.sin(angle)[None]
        self.measure = (
            2.0 * self.l1 * np.diff(edges)[:, None] * (np.pi / n_angle) / (2 * np.pi) ** 2
        )
        self.ell = np.arange(band.lmax + 1)

    def triangle(self, L: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The triangle l2 = L − l1 at every l1 of the plane.

        Parameters
        ----------
        L : multipole of the lens

        Returns
        -------
        l2, L_l1, cos, sin : |l2|, L·l1, cos 2φ12 and sin 2φ12, one value for each l1
        """
        x, y = self.l1 * self.cos, self.l1 * self.sin
        l2 = np.hypot(L - x, y)
        dot = (x * (L - x) - y * y) / (self.l1 * l2)
        cross = (-x * y - y * (L - x)) / (self.l1 * l2)
        return l2, L * x, dot**2 - cross**2, 2.0 * dot * cross

    def at(self, l: np.ndarray, cl: np.ndarray) -> np.ndarray:
        """Interpolate a spectrum.

        Parameters
        ----------
        l : multipoles, of any shape
        cl : from l = 0

        Returns
        -------
        values : of the shape of ``l``
        """
        return np.interp(l, self.ell, cl)

    def integral(self, l2: np.ndarray, integrand: np.ndarray) -> float:
        """∫ d²l1/(2π)² over l1 and l2 within the filter.

        Parameters
        ----------
        l2 : of :meth:`triangle`
        integrand : at every l1

        Returns
        -------
        value : of the integral
        """
        inside = (l2 >= self.band.lmin) & (l2 <= self.band.lmax)
        return np.sum(np.where(inside, integrand, 0.0) * self.measure)

    def eb_noise(
        self,
        L: float,
        ee: np.ndarray,
        bb: np.ndarray,
        ee_total: np.ndarray,
        bb_total: np.ndarray,
    ) -> float:
        """N0^φ of the EB estimator.

        Parameters
        ----------
        L : multipole of the lens
        ee, bb : spectra of the response from l = 0, in µK²
        ee_total, bb_total : spectra of the filters, with noise

        Returns
        -------
        noise : N0^φ
        """
        l2, dot1, _, sin = self.triangle(L)
        f = self.at(self.l1, ee) * dot1 + self.at(l2, bb) * (L * L - dot1)
        total = self.at(self.l1, ee_total) * self.at(l2, bb_total)
        return 1.0 / self.integral(l2, (f * sin) ** 2 / total)

    def ee_noise(self, L: float, ee: np.ndarray, ee_total: np.ndarray) -> float:
        """N0^φ of the EE estimator.

        Parameters
        ----------
        L : multipole of the lens
        ee : spectrum of the response from l = 0, in µK²
        ee_total : spectrum of the filter, with noise

        Returns
        -------
        noise : N0^φ
        """
        l2, dot1, cos, _ = self.triangle(L)
        response = np.interp(self.l1, self.ell, ee) * dot1
        response = response + np.interp(l2, self.ell, ee) * (L * L - dot1)
        total = np.interp(self.l1, self.ell, ee_total) * np.interp(l2, self.ell, ee_total)
        return 1.0 / self.integral(l2, (response * cos) ** 2 / (2.0 * total))

    def lensed_b(self, l: float, ee: np.ndarray, pp: np.ndarray) -> float:
        """Lensed B to first order: ∫ [l1·(l − l1)]² sin² 2φ_{l1,l} C^EE_l1 C^φφ_{|l−l1|}.

        Parameters
        ----------
        l : multipole of B
        ee, pp : spectra of E (µK²) and of φ from l = 0

        Returns
        -------
        bb : in µK²
        """
        x, y = self.l1 * self.cos, self.l1 * self.sin
        L = np.hypot(l - x, y)
        dot = x * (l - x) - y * y
        sin2 = (2.0 * self.cos * self.sin) ** 2
        weight = np.interp(self.l1, self.ell, ee) * np.interp(L, np.arange(len(pp)), pp, right=0.0)
        return np.sum(dot**2 * sin2 * weight * self.measure)
