"""Does the covariance follow the cosmology? The scatter of single patches against the total power.

In the variables of Hamimeche & Lewis the patches of every sky scatter alike, whatever the sky's
cosmology (docs/noise-bias, eq. 16). Of each coverage sky we take the covariance S of its patches'
T_fid d'/T. The mean of tr(C⁻¹S)/n_bins over the skies is one, and its slope against ln T² is zero,
if the claimed covariance is right over the prior. Thousands of patches enter, so that this test is
far sharper than the number of surveys whose intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.fields import Group, Release
from ..likelihood.statistics import inverse_covariance
from ..table import plus_minus, text_table


@dataclass(frozen=True)
class PatchScatter:
    """Scatter of the patches of each sky over the covariance of a release.

    Attributes
    ----------
    ln_total : mean over the bins of ln (T/T_fid)², (n_skies,)
    ratio : tr(C⁻¹S)/n_bins, (n_skies,)
    n_patches : of each sky, (n_skies,)
    """

    ln_total: np.ndarray
    ratio: np.ndarray
    n_patches: np.ndarray

    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        """Straight line of the ratio against ln T², by least squares with the patches as weights.

        Returns
        -------
        values : the mean ratio of all skies, and the slope, (2,)
        errors : their standard errors from the scatter of the skies about the line, (2,)
        """
        weight = self.n_patches / self.n_patches.mean()
        mean = np.average(self.ln_total, weights=weight)
        design = np.column_stack([np.ones(len(self.ratio)), self.ln_total - mean])
        covariance = np.linalg.inv(design.T @ (weight[:, None] * design))
        values = covariance @ (design.T @ (weight * self.ratio))
        left = self.ratio - design @ values
        variance = weight @ left**2 / (len(left) - 2)
        return values, np.sqrt(variance * np.diag(covariance))

    def table(self) -> str:
        """As text: the mean of tr(C⁻¹S)/n and its slope against ln T², with errors."""
        rows = ["mean of tr(C⁻¹S)/n", "its slope against ln T²"]
        return text_table(
            {
                "": ("", rows),
                "measured": (">", plus_minus(*self.fit(), ".3f")),
                "expected": (">", ["1", "0"]),
            },
            f"scatter of {self.n_patches.sum()} patches of {len(self.ratio)} skies over the "
            "covariance, in the variables of Hamimeche & Lewis",
        )


def debiased_patches(release: Release, auto: np.ndarray, power: np.ndarray | None) -> np.ndarray:
    """d' of every patch of a survey, with the debias linear about the survey's own power.

    Parameters
    ----------
    release : of all the patches
    auto : ⟨κ̂κ̂*⟩, (n_patches, n_bins)
    power : of E and B, (n_patches, n_power); not used by a release without the debias from the data

    Returns
    -------
    d' but for a constant, (n_patches, n_bins)
    """
    bandpowers = release.noise_subtracted(auto)
    if power is None or not release.has(Group.DEBIAS):
        return bandpowers
    return bandpowers - power @ release.correction_slope.T


def patch_scatter(
    surveys: Sequence[tuple[BandpowerLikelihood, np.ndarray]], models: np.ndarray
) -> PatchScatter:
    """Compare the scatter of the patches of several skies with the covariance.

    Parameters
    ----------
    surveys : of each sky the likelihood of all its patches, by one calibration, and d' of every
        patch, (n_patches, n_bins)
    models : µ_b at each sky's truth, (n_skies, n_bins)

    Returns
    -------
    the scatter of each sky
    """
    inverse = inverse_covariance(surveys[0][0].release.patch_covariance)
    scales = [
        likelihood.scatter(model) for (likelihood, _), model in zip(surveys, models, strict=True)
    ]
    patches = [debiased for _, debiased in surveys]
    ratio = [
        np.trace(inverse @ np.cov(debiased / scale, rowvar=False)) / len(inverse)
        for debiased, scale in zip(patches, scales, strict=True)
    ]
    ln_total = 2.0 * np.log(scales).mean(1)
    return PatchScatter(ln_total, np.array(ratio), np.array([len(some) for some in patches]))
