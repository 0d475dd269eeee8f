"""A release drawn from its file alone."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..likelihood.release import Release


def release_figure(release: Release) -> Figure:
    """Bandpowers, debiased by the survey's own power, with the errors of the survey; above them
    their expectation Σ_L W_bL C_L^κκ and the noise N_b at the fiducial, below (d_b − µ_b)/σ_b.

    Parameters
    ----------
    release : the release, with its calibration

    Returns
    -------
    figure : two panels
    """
    bandpowers = release.bandpowers - release.correction
    sigma = np.sqrt(np.diag(release.covariance))
    signal = release.fiducial_bandpowers
    half = 0.5 * np.diff(release.edges)
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    spectrum = np.arange(2, min(len(release.fiducial_kk), release.edges[-1] + 1))
    top.plot(spectrum, release.fiducial_kk[spectrum], "0.6", lw=1, label=r"$C_L^{\kappa\kappa}$")
    top.plot(release.centres, signal, "C0_", ms=9, label="expected bandpowers")
    top.plot(release.centres, release.noise, "C1--", lw=1, label=r"$N_L$ of the debias")
    label = "blinded bandpowers" if release.blinding else "bandpowers"
    top.errorbar(release.centres, bandpowers, sigma, half, "k.", lw=1, label=label)
    if (bandpowers > sigma).all():
        top.set_yscale("log")
    else:  # a log scale hides bandpowers that scatter below zero
        top.set_yscale("symlog", linthresh=float(signal.min()))
    top.set_ylabel(r"$C_L^{\kappa\kappa}$")
    top.set_title(f"{release.name}: {release.n_patches} patches, fiducial theory", size=10)
    top.legend(fontsize=8)
    bottom.axhline(0.0, color="C0", lw=1)
    residuals = (bandpowers - signal) / sigma
    bottom.errorbar(release.centres, residuals, 1.0, half, "k.", lw=1)
    bottom.set(xlabel="$L$", ylabel=r"residual / $\sigma$")
    return figure
