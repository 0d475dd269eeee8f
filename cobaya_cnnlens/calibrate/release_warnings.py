"""Warnings that a release keeps in ``provenance.warnings``.

Warnings of the maps come with the bandpowers. A further one says that the E power of the survey is
beyond the simulations of the debias. Another says that no cosmology near the fiducial fits the
bandpowers; it rests on their best χ² over

    C_L^κκ = A C_L^fid (1 + u a_j/|a|²),  L in band j,

with the amplitude A and the change u along the direction of the release free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import scipy.optimize

from ..errors import CNNLensError, SpectrumError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.release import Release
from ..likelihood.spectra import change_along
from ..likelihood.statistics import POOR_FIT

# How far beyond the simulations amplitudes may lie, in σ of the survey's.
SCATTER = 5.0
# Of ln A and of u, which is at most 1 in the simulations.
BOUNDS = ((-1.5, 1.5), (-3.0, 3.0))


def with_warnings(release: Release, of_maps: Iterable[str] = ()) -> Release:
    """The release with the warnings of its maps, and of its fit, in place of any that it had.

    Parameters
    ----------
    release : perhaps with warnings of earlier data
    of_maps : warnings of :mod:`cobaya_cnnlens.maps.map_checks`

    Returns
    -------
    the release
    """
    warnings = [*of_maps, *filter(None, (beyond_the_surface(release), poor_fit(release)))]
    provenance = {key: value for key, value in release.provenance.items() if key != "warnings"}
    if warnings:
        provenance["warnings"] = warnings
    return replace(release, provenance=provenance)


def beyond_the_surface(release: Release) -> str | None:
    """Warn of E power beyond the simulations of the response surface.

    Parameters
    ----------
    release : with its data

    Returns
    -------
    the warning, or None
    """
    if not release.n_v:
        return None
    amplitudes = np.abs(release.amplitudes)
    scatter = np.sqrt(np.diag(release.amplitude_covariance) / release.n_patches)
    if (amplitudes <= 1.0 + SCATTER * scatter).all():
        return None
    return (
        f"the E power of the patches differs from the fiducial by an amplitude of "
        f"{amplitudes.max():.1f}, where the simulations of the debias reach 1: bandpowers are "
        "extrapolated; check the unit, the beam and the calibration of the maps"
    )


def poor_fit(release: Release) -> str | None:
    """Warn of bandpowers that nothing near the fiducial cosmology fits.

    Parameters
    ----------
    release : with its data

    Returns
    -------
    the warning, or None
    """
    chi2, pte = best_fit(release)
    if pte >= POOR_FIT:
        return None
    return (
        f"no cosmology near the fiducial fits the bandpowers: chi2 is {chi2:.0f} for "
        f"{release.n_bins} bins at the best amplitude and omch2 (PTE {pte:.1g}); look at the maps "
        "and their calibration before any posterior"
    )


def best_fit(release: Release) -> tuple[float, float]:
    """χ² at the best amplitude and omch2, and its probability to exceed.

    Parameters
    ----------
    release : with its data

    Returns
    -------
    χ² and probability to exceed
    """
    try:
        likelihood = BandpowerLikelihood(release, release.noise_debiases[0])
    except CNNLensError:  # of data whose power is not positive
        likelihood = BandpowerLikelihood(release, release.noise_debiases[0], "hartlap")
    used = likelihood.release
    kk = np.pad(used.fiducial_kk, (0, max(likelihood.lmax_kk + 1 - len(used.fiducial_kk), 0)))
    slope = change_along(len(kk), used.kk_edges, used.kk_direction)

    def chi2(x: np.ndarray) -> float:
        try:
            return likelihood.chi2(kk * np.exp(x[0]) * (1.0 + x[1] * slope))
        except SpectrumError:
            return 1e30

    start = np.array([[0.0, 0.0], [0.05, 0.0], [0.0, 0.2]])
    options = {"initial_simplex": start, "xatol": 1e-3, "fatol": 0.01}
    best = scipy.optimize.minimize(
        chi2, start[0], method="Nelder-Mead", bounds=BOUNDS, options=options
    )
    return float(best.fun), float(likelihood.pte(best.fun))
