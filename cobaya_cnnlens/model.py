"""The likelihood of debiased lensing bandpowers, without Cobaya::

    µ_b(θ, x) = Σ_L W_bL C_L^κκ + Σ_j N'^κκ_bj δ_j^κκ + Σ_j N'^EE_bj δ_j^EE + Q_b t²
                + Σ_i (A_bi x_i + B_bi x_i²)

W are the bandpower windows of the masked patch. The data were debiased with the noise of the
fiducial cosmology; the sums over bands j move that noise to the cosmology θ. δ_j is the relative
change of the band's power, Σ (2l+1) C_l / Σ (2l+1) C_l^fid − 1, with unlensed C^EE, and
t = Σ_j a_j δ_j its amplitude along the direction of ω_c. ``noise_debias="linear"`` leaves out the
second order, ``"fixed"`` all of the correction, as in Caldeira et al. 2018: that is biased. x are
the instrument's nuisances (gain, beam, noise and angle), zero for that of the simulations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from .errors import CNNLensError, SpectrumError
from .release import Release
from .statistics import (
    chi2_pte,
    hartlap_factor,
    hotelling_pte,
    inverse_covariance,
    sellentin_heavens,
)

NOISE_DEBIAS = ("quadratic", "linear", "fixed")
STATISTICS = ("hartlap", "sellentin-heavens", "gaussian")


class BandpowerLikelihood:
    """Likelihood of one release.

    Parameters
    ----------
    release : the data and their calibration
    noise_debias : "quadratic", "linear" or "fixed", see above
    statistics : "hartlap" is Gaussian with the inverse covariance scaled for the finite number of
        simulations; "sellentin-heavens" the t distribution that marginalises over the true
        covariance; "gaussian" takes the covariance as exact
    L_min, L_max : only bins that lie inside are used; None for no limit
    calibration_errors : whether the Monte-Carlo errors of N_b and of its derivatives enter the
        covariance

    Attributes
    ----------
    bins : the release's bins in use, (n_bins,)
    bandpowers : d_b of those, (n_bins,)
    covariance : of those, (n_bins, n_bins)
    hartlap : Hartlap's factor for the bins in use
    inverse : inverse of ``covariance``, with Hartlap's factor where that is asked for
    lmax_kk, lmax_ee : highest multipoles that the spectra must reach

    Raises
    ------
    CNNLensError
        for an unknown option, or an L range without any bin
    """

    def __init__(
        self,
        release: Release,
        noise_debias: str = "quadratic",
        statistics: str = "hartlap",
        L_min: float | None = None,
        L_max: float | None = None,
        calibration_errors: bool = True,
    ):
        if noise_debias not in NOISE_DEBIAS:
            raise CNNLensError(f"noise_debias is {noise_debias!r}; choose one of {NOISE_DEBIAS}")
        if statistics not in STATISTICS:
            raise CNNLensError(f"statistics is {statistics!r}; choose one of {STATISTICS}")
        self.release, self.noise_debias, self.statistics = release, noise_debias, statistics
        self.bins = _bins_between(release.edges, L_min, L_max)
        self.bandpowers = release.bandpowers[self.bins]
        covariance = release.patch_covariance / release.n_patches
        if calibration_errors:
            covariance = release.covariance
        self.covariance = covariance[np.ix_(self.bins, self.bins)]
        self.inverse = inverse_covariance(self.covariance)
        self.hartlap = hartlap_factor(release.n_sim, len(self.bins))
        if statistics == "hartlap":
            self.inverse = self.inverse * self.hartlap
        # Derivatives of every bin, and below them the direction that gives t.
        kk = np.vstack([release.kk_derivatives[self.bins], release.kk_direction])
        ee = np.vstack([release.ee_derivatives[self.bins], release.ee_direction])
        self._direction = np.concatenate([release.kk_direction, release.ee_direction])
        self._kk_bands = _Bands(release.kk_edges, release.fiducial_kk)
        self._ee_bands = _Bands(release.ee_edges, release.fiducial_ee)
        self.lmax_kk = max(release.windows.shape[1], int(release.kk_edges[-1])) - 1
        self.lmax_ee = int(release.ee_edges[-1]) - 1
        # All that is linear in C^κκ as one matrix, (n_bins + 1, multipoles): W, and N'^κκ of the
        # bands on top of it. That and the bands of C^EE sum up 1 + δ: the ones are
        # what ``_offset`` takes off.
        linear = np.zeros((len(self.bins) + 1, self.lmax_kk + 1))
        linear[:-1, : release.windows.shape[1]] = release.windows[self.bins]
        if noise_debias != "fixed":
            linear += band_matrix(release.kk_edges, release.fiducial_kk, kk, self.lmax_kk + 1)
            self._ee_derivatives = ee
            self._offset = kk.sum(1) + ee.sum(1)
        used = np.flatnonzero(linear.any(0))
        self._multipoles = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        self._linear = np.ascontiguousarray(linear[:, self._multipoles])
        # What x and x² do to every bin.
        self._nuisances = np.hstack(
            [release.nuisance_first[self.bins], release.nuisance_second[self.bins]]
        )
        self._curvature = release.curvature[self.bins] if noise_debias == "quadratic" else 0.0

    def model(
        self, clkk: np.ndarray, clee: np.ndarray, nuisances: Sequence[float] | None = None
    ) -> np.ndarray:
        """µ_b, (n_bins,).

        Parameters
        ----------
        clkk : C_L^κκ from L = 0 to at least ``lmax_kk``
        clee : unlensed C_l^EE in µK² from l = 0 to at least ``lmax_ee``
        nuisances : x of the instrument in the order of ``NUISANCES``; None for zero

        Raises
        ------
        SpectrumError
            if a spectrum is too short
        """
        if len(clkk) <= self.lmax_kk:
            raise SpectrumError(
                f"C_L^κκ ends at L = {len(clkk) - 1}, the release needs L = {self.lmax_kk}"
            )
        moved = self._linear @ clkk[self._multipoles]
        if self.noise_debias != "fixed":
            if len(clee) <= self.lmax_ee:
                raise SpectrumError(
                    f"unlensed C_l^EE ends at l = {len(clee) - 1}, the release needs l = "
                    f"{self.lmax_ee}"
                )
            moved += self._ee_derivatives @ self._ee_bands.power(clee)
            moved -= self._offset
        t, bandpowers = moved[-1], moved[:-1]
        bandpowers += t * t * self._curvature
        if nuisances is not None:
            x = np.asarray(nuisances, dtype=float)
            bandpowers += self._nuisances @ np.concatenate((x, x * x))
        return bandpowers

    def excursion(self, clkk: np.ndarray, clee: np.ndarray) -> tuple[float, float]:
        """How far the spectra are from the fiducial ones: t along ω_c, and the largest relative
        change of a band's power that t leaves. The noise debias was measured to |t| = 1 and, band
        by band, to changes of ``release.derivative_step``."""
        along = self._direction
        changes = np.concatenate([self._kk_bands.power(clkk), self._ee_bands.power(clee)]) - 1.0
        t = float(along @ changes)
        return t, float(np.abs(changes - t * along / (along @ along)).max())

    def residuals(
        self, clkk: np.ndarray, clee: np.ndarray, nuisances: Sequence[float] | None = None
    ) -> np.ndarray:
        """d_b − µ_b, (n_bins,)."""
        return self.bandpowers - self.model(clkk, clee, nuisances)

    def chi2(
        self, clkk: np.ndarray, clee: np.ndarray, nuisances: Sequence[float] | None = None
    ) -> float:
        """(d − µ)ᵀ C⁻¹ (d − µ).

        Raises
        ------
        SpectrumError
            if a spectrum is too short, or not finite
        """
        residuals = self.residuals(clkk, clee, nuisances)
        chi2 = float(residuals @ self.inverse @ residuals)
        if not math.isfinite(chi2):
            raise SpectrumError("a spectrum or nuisance is not finite; check the theory")
        return chi2

    def log_likelihood(
        self, clkk: np.ndarray, clee: np.ndarray, nuisances: Sequence[float] | None = None
    ) -> float:
        """−χ²/2, or the t distribution's logarithm; the constant normalisation is left out."""
        return self.log_likelihood_of(self.chi2(clkk, clee, nuisances))

    def log_likelihood_of(self, chi2: float) -> float:
        """The log-likelihood of a χ² of this likelihood."""
        if self.statistics == "sellentin-heavens":
            return sellentin_heavens(chi2, self.release.n_sim)
        return -0.5 * chi2

    def pte(self, chi2):
        """Probability that noise alone exceeds this χ²: by Hotelling's T² where the number of
        simulations counts, by the χ² distribution for "gaussian"."""
        if self.statistics == "gaussian":
            return chi2_pte(chi2, len(self.bandpowers))
        t2 = chi2 / self.hartlap if self.statistics == "hartlap" else chi2
        return hotelling_pte(t2, self.release.n_sim, len(self.bandpowers))


def _bins_between(edges: np.ndarray, L_min: float | None, L_max: float | None) -> np.ndarray:
    for name, value in (("L_min", L_min), ("L_max", L_max)):
        if value is not None and not isinstance(value, int | float):
            raise CNNLensError(f"{name} is {value!r}; give a number, or null for no limit")
    low = -np.inf if L_min is None else L_min
    high = np.inf if L_max is None else L_max
    inside = np.flatnonzero((edges[:-1] >= low) & (edges[1:] <= high))
    if not len(inside):
        raise CNNLensError(
            f"L_min: {L_min} and L_max: {L_max} leave no bin; the release's {len(edges) - 1} bins "
            f"lie between L = {edges[0]} and {edges[-1]}, the first is {edges[0]}-{edges[1]}"
        )
    return inside


def band_matrix(
    edges: np.ndarray, fiducial: np.ndarray, derivatives: np.ndarray, size: int
) -> np.ndarray:
    """N'_bj (2l+1) / Σ_j (2l+1) C_l^fid for l in band j: what the derivatives of each bin are as a
    matrix on C_l, (n_bins, size) from l = 0."""
    matrix = np.zeros((len(derivatives), size))
    for j, (low, high) in enumerate(itertools.pairwise(edges)):
        weight = 2.0 * np.arange(low, high) + 1.0
        power = (weight * fiducial[low:high]).sum()
        matrix[:, low:high] = derivatives[:, j, None] * weight / power
    return matrix


class _Bands:
    """Power in the bands of a spectrum, relative to that of the fiducial one: 1 + δ_j."""

    def __init__(self, edges: np.ndarray, fiducial: np.ndarray):
        self._multipoles = slice(int(edges[0]), int(edges[-1]))
        self._starts = np.asarray(edges[:-1] - edges[0], dtype=np.intp)
        weight = 2.0 * np.arange(edges[0], edges[-1]) + 1.0
        power = np.add.reduceat(weight * fiducial[self._multipoles], self._starts)
        self._weight = weight / np.repeat(power, np.diff(edges))

    def power(self, cl: np.ndarray) -> np.ndarray:
        """Σ (2l+1) C_l / Σ (2l+1) C_l^fid of every band, (n_bands,)."""
        return np.add.reduceat(self._weight * cl[self._multipoles], self._starts)
