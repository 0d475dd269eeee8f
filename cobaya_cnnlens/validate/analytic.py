"""Reconstruction noise at the fiducial cosmology, as tables: analytic N0, and N1 by Monte Carlo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CNNLensError
from ..files import atomic_write
from ..reconstruct.n0 import ESTIMATORS, Filter
from ..reconstruct.n0_temperature import TEMPERATURE_ESTIMATORS, n0_temperature
from ..simulate.bandpowers import Bins
from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..table import text_table
from ..theory.camb import CambSettings, Cosmology, compute_spectra, temperature_spectra

if TYPE_CHECKING:
    from .n1 import MonteCarloN1

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

    def write(self, path: Path) -> None:
        """Write the table as CSV, atomically."""
        values = zip(self.L, self.n0, self.kk, strict=True)
        rows = (f"{x:.0f},{n:.8e},{c:.8e}" for x, n, c in values)
        with atomic_write(path) as partial:
            partial.write_text("\n".join(["L,n0_kappa,cl_kappa", *rows]) + "\n")


def analytic_noise(
    estimator: str, instrument: Instrument, band: Filter, L: Sequence[int] | None = None
) -> AnalyticNoise:
    """N0^κ at the fiducial cosmology for an instrument and the multipoles of E and B in use.

    Parameters
    ----------
    estimator : one of ``ESTIMATORS`` or ``TEMPERATURE_ESTIMATORS``
    L : multipoles; ``MULTIPOLES`` within the filter's reach if None

    Raises
    ------
    CNNLensError
        for an unknown estimator, no noise, or multipoles that are none
    """
    names = [*ESTIMATORS, *TEMPERATURE_ESTIMATORS]
    if estimator not in names:
        raise CNNLensError(f"--estimator: no estimator '{estimator}'; there are {', '.join(names)}")
    _check(instrument, band)
    L = np.array(L or [x for x in MULTIPOLES if x <= band.lmax], dtype=float)
    if (L < 2).any() or (band.lmax < L).any():
        raise CNNLensError(f"--multipole must lie between 2 and --lmax {band.lmax}")
    settings = CambSettings(lmax=max(5000, band.lmax + 500))
    theory = compute_spectra(Cosmology(), settings)
    if estimator in ESTIMATORS:
        found = ESTIMATORS[estimator](L, theory, instrument, band)
    else:
        temperature = temperature_spectra(Cosmology(), settings)
        found = n0_temperature(estimator, L, theory, temperature, instrument, band)
    return AnalyticNoise(estimator, L, found, theory.kk[L.astype(int)])


def _check(instrument: Instrument, band: Filter) -> None:
    if not 2 <= band.lmin < band.lmax <= 8000:
        raise CNNLensError(f"--lmin {band.lmin} --lmax {band.lmax}: give 2 <= lmin < lmax <= 8000")
    if instrument.noise_uk_arcmin <= 0 or instrument.beam_fwhm_arcmin < 0:
        raise CNNLensError("--noise must be positive and --beam not negative")


def monte_carlo_n1(
    instrument: Instrument, band: Filter, n_pairs: int, seed: int = 0
) -> MonteCarloN1:
    """N1^κ of the EB estimator at the fiducial cosmology in bins of 126 up to L = 3000, from pairs
    of periodic patches of 10° that share φ.

    Raises
    ------
    CNNLensError
        for no noise, multipoles that are none or too few, or fewer than two pairs
    """
    from .n1 import n1_eb  # simulates: n0 alone does without what that needs

    _check(instrument, band)
    if n_pairs < 2:
        raise CNNLensError(f"--pairs {n_pairs}: an error needs two pairs at least")
    if band.lmax < 500:
        raise CNNLensError(
            f"--lmax {band.lmax}: modes below l = 500 alone hold no lensing to speak of"
        )
    theory = compute_spectra(Cosmology(), CambSettings(lmax=max(5000, band.lmax + 500)))
    # Pixels that resolve the lensed B of modes in use, and what lensing lifts beyond them.
    geometry = PatchGeometry(size_deg=10.0, n_pixels=2 * round(band.lmax / 24), pad=0)
    bins = Bins(100, 126, min(23, (band.lmax - 100) // 126))
    return n1_eb(geometry, instrument, theory, bins, n_pairs, seed, band)
