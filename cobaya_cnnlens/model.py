"""The likelihood of debiased lensing bandpowers, without Cobaya.

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
        self._windows = _Windows(release.windows[self.bins])
        self._bands = _Bands(
            (release.kk_edges, release.fiducial_kk), (release.ee_edges, release.fiducial_ee)
        )
        # First-order derivatives of every bin, and below them the direction that gives t.
        self._correction = np.block(
            [
                [release.kk_derivatives[self.bins], release.ee_derivatives[self.bins]],
                [release.kk_direction, release.ee_direction],
            ]
        )
        # What x and x² do to every bin.
        self._nuisances = np.hstack(
            [release.nuisance_first[self.bins], release.nuisance_second[self.bins]]
        )
        self._curvature = release.curvature[self.bins] if noise_debias == "quadratic" else 0.0
        lmax_kk, self.lmax_ee = self._bands.lmax
        self.lmax_kk = max(release.windows.shape[1] - 1, lmax_kk)

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
        signal = self._windows.bandpowers(clkk)
        if nuisances is not None:
            x = np.asarray(nuisances, dtype=float)
            signal += self._nuisances @ np.concatenate((x, x**2))
        if self.noise_debias == "fixed":
            return signal
        if len(clee) <= self.lmax_ee:
            raise SpectrumError(
                f"unlensed C_l^EE ends at l = {len(clee) - 1}, the release needs l = {self.lmax_ee}"
            )
        moved = self._correction @ self._changes(clkk, clee)
        return signal + moved[:-1] + moved[-1] ** 2 * self._curvature

    def excursion(self, clkk: np.ndarray, clee: np.ndarray) -> tuple[float, float]:
        """How far the spectra are from the fiducial ones: t along ω_c, and the largest relative
        change of a band's power that t leaves. The noise debias was measured to |t| = 1 and, band
        by band, to changes of ``release.derivative_step``."""
        changes, along = self._changes(clkk, clee), self._correction[-1]
        t = float(along @ changes)
        return t, float(np.abs(changes - t * along / (along @ along)).max())

    def _changes(self, clkk, clee):
        return self._bands.change(clkk, clee)

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


class _Windows:
    """Σ_L W_bL C_L. A window is zero away from its bin: a few neighbouring bins at a time, over the
    multipoles that they see, halves the memory to go through, which is what the time goes to."""

    BINS = 8

    def __init__(self, windows: np.ndarray):
        self._n_bins = len(windows)
        self._blocks = []
        for first in range(0, self._n_bins, self.BINS):
            rows = windows[first : first + self.BINS]
            seen = np.flatnonzero(rows.any(axis=0))
            start, stop = (seen[0], seen[-1] + 1) if len(seen) else (0, 0)
            block = np.ascontiguousarray(rows[:, start:stop])
            self._blocks.append((slice(first, first + len(rows)), slice(start, stop), block))

    def bandpowers(self, cl: np.ndarray) -> np.ndarray:
        """(n_bins,)"""
        found = np.empty(self._n_bins)
        for bins, multipoles, block in self._blocks:
            found[bins] = block @ cl[multipoles]
        return found


class _Bands:
    """Relative change of the power in the bands of several spectra, each a pair of band edges and
    fiducial spectrum."""

    def __init__(self, *spectra: tuple[np.ndarray, np.ndarray]):
        self.lmax = [int(edges[-1]) - 1 for edges, _ in spectra]
        self._parts, starts, size = [], [], 0
        for edges, fiducial in spectra:
            ell = np.arange(edges[0], edges[-1])
            weight = 2.0 * ell + 1.0
            first = np.asarray(edges[:-1] - edges[0], dtype=np.intp)
            power = np.add.reduceat(weight * fiducial[edges[0] : edges[-1]], first)
            weight /= np.repeat(power, np.diff(edges))
            place = slice(size, size + len(ell))
            self._parts.append((place, slice(int(edges[0]), int(edges[-1])), weight))
            starts.append(first + size)
            size += len(ell)
        self._starts, self._size = np.concatenate(starts), size

    def change(self, *spectra: np.ndarray) -> np.ndarray:
        """δ_j of the bands of all, in their order."""
        weighted = np.empty(self._size)
        for cl, (place, multipoles, weight) in zip(spectra, self._parts, strict=True):
            np.multiply(weight, cl[multipoles], out=weighted[place])
        return np.add.reduceat(weighted, self._starts) - 1.0
