"""Analytic reconstruction noise N0 at the fiducial cosmology, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import CNNLensError
from ..reconstruct.n0 import ESTIMATORS, Filter
from ..simulate.instrument import Instrument
from ..table import text_table
from ..theory.camb import CambSettings, Cosmology, compute_spectra

MULTIPOLES = (50, 72, 100, 150, 200, *range(300, 2001, 100), 2500, 3000)


@dataclass(frozen=True)
class AnalyticNoise:
    """L, N0^κ of an estimator and C_L^κκ, each (n,)."""

    estimator: str
    L: np.ndarray
    n0: np.ndarray
    kk: np.ndarray

    def table(self) -> str:
        """As text, a line for each multipole."""
        return text_table(
            {
                "L": (".0f", self.L),
                f"N0^kk {self.estimator}": (".4e", self.n0),
                "C_L^kk": (".4e", self.kk),
            }
        )


def analytic_noise(
    estimator: str, instrument: Instrument, band: Filter, L: Sequence[int] | None = None
) -> AnalyticNoise:
    """N0^κ at the fiducial cosmology for an instrument and the multipoles of E and B in use.

    Parameters
    ----------
    estimator : one of ``ESTIMATORS``
    instrument : noise and beam
    band : multipoles of E and B in use
    L : multipoles; ``MULTIPOLES`` within the filter's reach if None

    Returns
    -------
    noise : N0^κ and C_L^κκ by multipole

    Raises
    ------
    CNNLensError
        for an unknown estimator, no noise, or multipoles that are none
    """
    if estimator not in ESTIMATORS:
        raise CNNLensError(
            f"--estimator: no estimator '{estimator}'; there are {', '.join(ESTIMATORS)}"
        )
    if not 2 <= band.lmin < band.lmax <= 8000:
        raise CNNLensError(f"--lmin {band.lmin} --lmax {band.lmax}: give 2 <= lmin < lmax <= 8000")
    if instrument.noise_uk_arcmin <= 0 or instrument.beam_fwhm_arcmin < 0:
        raise CNNLensError("--noise must be positive and --beam not negative")
    multipoles = np.array(L or [x for x in MULTIPOLES if x <= band.lmax], dtype=float)
    if (multipoles < 2).any() or (band.lmax < multipoles).any():
        raise CNNLensError(f"--multipole must lie between 2 and --lmax {band.lmax}")
    settings = CambSettings(lmax=max(5000, band.lmax + 500))
    theory = compute_spectra(Cosmology(), settings)
    noise = ESTIMATORS[estimator](multipoles, theory, instrument, band)
    return AnalyticNoise(estimator, multipoles, noise, theory.kk[multipoles.astype(int)])
