"""Errors of an emulator at points that did not make it, and what they do to a survey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.fields import Group, Release
from ..pipeline.emulation import Points
from ..table import text_table
from ..theory.emulator import SCALARS, Emulator


@dataclass(frozen=True)
class Errors:
    """An emulator's errors at each of n points.

    Attributes
    ----------
    at : the points, (n, n_parameters)
    kk, ee : largest relative error of C^κκ and of unlensed C^EE at any multipole, (n,) each
    ee_bands : largest relative error of the power of C^EE in a band of the release, or of C^κκ if
        it has none, (n,)
    delta_chi2 : ΔµᵀC⁻¹Δµ of a survey's bandpowers, (n,)
    scalars : largest relative error of the derived parameters, (n,)
    """

    at: np.ndarray
    kk: np.ndarray
    ee: np.ndarray
    ee_bands: np.ndarray
    delta_chi2: np.ndarray
    scalars: np.ndarray

    def table(self) -> str:
        """As text: median, 95% and largest over the points."""
        rows = {
            "largest |dC/C| of C^kk, %": 100 * self.kk,
            "largest |dC/C| of C^EE, %": 100 * self.ee,
            "largest |dC/C| of a band of C^EE, %": 100 * self.ee_bands,
            "dchi2 of the survey's bandpowers": self.delta_chi2,
            "derived parameters, %": 100 * self.scalars,
        }
        median, high, largest = np.percentile(list(rows.values()), (50, 95, 100), axis=1)
        title = f"{len(self.at)} points that did not make the emulator"
        return text_table(
            {
                "error": ("", rows),
                "median": (".4f", median),
                "95%": (".4f", high),
                "largest": (".4f", largest),
            },
            title,
        )


def errors(emulator: Emulator, points: Points, release: Release) -> Errors:
    """Errors of an emulator at points that did not make it, against CAMB's own spectra.

    Parameters
    ----------
    emulator : the fitted one
    points : that did not make it
    release : whose bandpowers measure the error

    Returns
    -------
    errors by point
    """
    rows, likelihood = [], BandpowerLikelihood(release)
    n = emulator.lmax + 1
    edges = release.ee_edges if release.has(Group.PRIMARY) else release.kk_edges
    weight = 2.0 * np.arange(edges[0], edges[-1]) + 1.0

    def bands(cl: np.ndarray) -> np.ndarray:
        return np.add.reduceat(weight * cl[edges[0] : edges[-1]], edges[:-1] - edges[0])

    for at, kk, ee, scalars in zip(points.at, points.kk, points.ee, points.scalars, strict=True):
        kk, ee = kk[:n], ee[:n]
        emulated_kk, emulated_ee, derived = emulator(
            dict(zip(emulator.parameters, at, strict=True))
        )
        moved = likelihood.model(emulated_kk, emulated_ee) - likelihood.model(kk, ee)
        rows.append(
            (
                np.abs(emulated_kk[2:] / kk[2:] - 1.0).max(),
                np.abs(emulated_ee[2:] / ee[2:] - 1.0).max(),
                np.abs(bands(emulated_ee) / bands(ee) - 1.0).max(),
                moved @ likelihood.inverse @ moved,
                np.abs(np.array([derived[name] for name in SCALARS]) / scalars - 1.0).max(),
            )
        )
    return Errors(points.at, *np.array(rows).T)
