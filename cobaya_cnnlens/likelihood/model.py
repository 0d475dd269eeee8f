"""The model of debiased bandpowers and, for a joint fit, of the power of E and B.

It is linear in the spectra::

    µ_b(θ, x) = Σ_L W_bL C_L^κκ + Σ_j N'_bj δ_j + Σ_i (A_bi x_i + B_bi x_i²)

W are the bandpower windows of the masked patch, δ_j the relative change of C^κκ in a band
(docs/noise-bias, eqs 9 and 13), and x the nuisances of the instrument. The model of p̂ is
p^fid + Σ_j ∂p/∂ ln C_j δ_j in the bands of both spectra. :mod:`.spectra` says which spectra are
refused. :class:`.BandpowerLikelihood` compares the model with data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import CNNLensError, SpectrumError
from .declarations import NUISANCES, Group
from .fields import Release
from .spectra import (
    KAPPA,
    LEAST_E_POWER,
    LEAST_POWER,
    MOST_E_POWER,
    MOST_POWER,
    UNLENSED_E,
    Bands,
    Quantity,
    band_matrix,
    checked_spectrum,
    diagnosis,
    refuse_gaps,
)

# Bands of C^EE of a release that does not say them.
_EE_BANDS = 8


class Jacobian(NamedTuple):
    """Derivatives of the model with respect to its arguments, which are linear in the spectra.

    Attributes
    ----------
    kk : ∂µ_b/∂C_L^κκ, (n_bins, lmax_kk + 1) from L = 0
    ee : ∂µ_b/∂C_l^EE (unlensed) in 1/µK² times the unit of µ, (n_bins, lmax_ee + 1) from l = 0;
        zero unless ``primary``
    nuisances : ∂µ_b/∂x_i in the order of ``NUISANCES``, (n_bins, n_nuisances)
    """

    kk: np.ndarray
    ee: np.ndarray
    nuisances: np.ndarray


class BandpowerModel:
    """Model of the bins of a release.

    Parameters
    ----------
    release : debiased, whose derivatives and windows it takes
    bins : numbers of the bins, (n_bins,)
    ee_edges : of the bands in which a C^EE is compared with the fiducial one
    power : the release whose p̂ follows the bandpowers; None without

    Attributes
    ----------
    needs_ee : whether unlensed C^EE plays a part: with ``power``
    lmax_kk, lmax_ee : highest multipoles that the spectra must reach
    kk_bands, ee_bands : bands of both spectra, with their fiducial power
    amplitude_slope : ∂µ_b/∂A of A times the fiducial C^κκ, (n_bins,)

    Raises
    ------
    CNNLensError
        if a fiducial spectrum has no power in a band
    """

    def __init__(
        self, release: Release, bins: np.ndarray, ee_edges: np.ndarray, power: Release | None = None
    ):
        self.ee_bands = Bands(ee_edges, release.fiducial_ee)
        self.lmax_ee = max(self.ee_bands.stop, 5) - 1
        self.kk_bands = Bands(release.kk_edges, release.fiducial_kk)
        self.lmax_kk = max(release.windows.shape[1], int(release.kk_edges[-1]), 5) - 1
        self.needs_ee = power is not None
        self._fiducial_ee, self._direction = release.fiducial_ee, release.kk_direction
        # Derivatives of every bin, and those of the power of E and B below them.
        kk = _stacked(release.kk_derivatives[bins], power, "power_kk_derivatives")
        # All that is linear in C^κκ as one matrix, (n, multipoles): W, and N' of the bands on top
        # of it. The bands sum up 1 + δ: ``_offset`` subtracts the ones.
        linear = band_matrix(release.kk_edges, release.fiducial_kk, kk, self.lmax_kk + 1)
        linear[: len(bins), : release.windows.shape[1]] += release.windows[bins]
        self._offset = kk.sum(1)
        if power is not None:
            ee = np.zeros((len(bins), power.power_ee_derivatives.shape[1]))
            self._ee_derivatives = np.vstack([ee, power.power_ee_derivatives])
            self._offset += self._ee_derivatives.sum(1)
            self._offset[len(bins) :] -= power.fiducial_power
        # Where the power of a spectrum is compared with the fiducial's.
        self._probe_L = max(2, int(release.kk_edges[len(kk[0]) // 2]))
        self._probe_fiducial = float(release.fiducial_kk[self._probe_L])
        self._probe_band = self.ee_bands.size // 2
        used = np.flatnonzero(linear.any(0))
        self._multipoles = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        self._linear = np.ascontiguousarray(linear[:, self._multipoles])
        self.amplitude_slope = self._linear @ release.fiducial_kk[self._multipoles]
        # What x and x² do to every bin.
        first, second = release.nuisance_first[bins], release.nuisance_second[bins]
        self._nuisance_first = _stacked(first, power, "power_nuisance_first")
        self._nuisance_second = _stacked(second, power, "power_nuisance_second")

    def __call__(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Compute µ_b, (n_bins,); with ``power`` followed by the model of p̂.

        Parameters
        ----------
        clkk : C_L^κκ from L = 0 to at least ``lmax_kk``
        clee : unlensed C_l^EE in µK² from l = 0 to at least ``lmax_ee``; it may be None unless
            ``needs_ee``, and is checked wherever it is given
        nuisances : x of the instrument in the order of ``NUISANCES``; None for zero

        Returns
        -------
        µ_b, (n_bins,); (n_bins + n_power,) with ``power``

        Raises
        ------
        SpectrumError
            if a spectrum is too short, does not begin at l = 0, is not finite, or has power that no
            cosmology has
        CNNLensError
            if the nuisances are not as many numbers as there are ``NUISANCES``
        """
        try:
            return self._checked(clkk, clee, nuisances)
        except FloatingPointError:  # which a caller's np.seterr may have asked for
            with np.errstate(all="ignore"):
                return self._checked(clkk, clee, nuisances)

    def _checked(
        self, clkk: np.ndarray, clee: np.ndarray | None, nuisances: Sequence[float] | None
    ) -> np.ndarray:
        clkk = checked_spectrum(clkk, self.lmax_kk, KAPPA)
        if not LEAST_POWER < self.probe(clkk) < MOST_POWER:
            self._refuse(KAPPA, clkk, clee)
        refuse_gaps(clkk, self.lmax_kk, KAPPA)
        ee_powers = None
        if clee is None and self.needs_ee:
            raise SpectrumError(
                f"{UNLENSED_E.name} is None; primary: true needs it: give an array from l = 0"
            )
        if clee is not None:
            clee = checked_spectrum(clee, self.lmax_ee, UNLENSED_E)
            ee_powers = self.ee_bands.power(clee)
            if not LEAST_E_POWER < ee_powers.item(self._probe_band) < MOST_E_POWER:
                self._refuse(UNLENSED_E, clkk, clee)
            refuse_gaps(clee, self.lmax_ee, UNLENSED_E)
        return self._mean(clkk, ee_powers, None if nuisances is None else _nuisances(nuisances))

    def unchecked(self, clkk: Any, clee: Any = None, nuisances: Any = None) -> Any:
        """Compute the same of spectra that are right.

        Parameters
        ----------
        clkk, clee, nuisances : as above, each an array of NumPy or of JAX

        Returns
        -------
        µ_b : of the same kind
        """
        ee_powers = self.ee_bands.power(clee) if self.needs_ee else None
        return self._mean(clkk, ee_powers, nuisances)

    def probe(self, clkk: np.ndarray) -> float:
        """Power of C^κκ over the fiducial one at a single L.

        Parameters
        ----------
        clkk : C_L^κκ from L = 0

        Returns
        -------
        ratio
        """
        return float(clkk[self._probe_L]) / self._probe_fiducial

    def _mean(self, clkk: Any, ee_powers: Any, x: Any) -> Any:
        """µ of a C^κκ, of the bands' powers of C^EE and of nuisances; of NumPy or JAX."""
        mean = self._linear @ clkk[self._multipoles] - self._offset
        if self.needs_ee:
            mean = mean + self._ee_derivatives @ ee_powers
        if x is not None:
            mean = mean + self._nuisance_first @ x + self._nuisance_second @ (x * x)
        return mean

    def jacobian(self, nuisances: Sequence[float] | None = None) -> Jacobian:
        """Derivatives of the model, analytic; those in the spectra are the same at all spectra.

        Parameters
        ----------
        nuisances : at which the derivatives are taken, in the order of ``NUISANCES``; None for zero

        Returns
        -------
        by argument of the model

        Raises
        ------
        CNNLensError
            if the nuisances are not as many numbers as there are ``NUISANCES``

        Examples
        --------
        >>> from cobaya_cnnlens import BandpowerLikelihood, read_release
        >>> likelihood = BandpowerLikelihood(read_release("refined_fiducial"))
        >>> likelihood.model.jacobian().kk.shape
        (24, 4401)
        """
        x = np.zeros(len(NUISANCES)) if nuisances is None else _nuisances(nuisances)
        kk = np.zeros((len(self._linear), self.lmax_kk + 1))
        kk[:, self._multipoles] = self._linear
        ee = np.zeros((len(self._linear), self.lmax_ee + 1))
        if self.needs_ee:
            bands, fiducial = self.ee_bands, self._fiducial_ee
            ee = band_matrix(bands.edges, fiducial, self._ee_derivatives, self.lmax_ee + 1)
        return Jacobian(kk, ee, self._nuisance_first + 2.0 * self._nuisance_second * x)

    @np.errstate(all="ignore")
    def _refuse(self, quantity: Quantity, clkk: np.ndarray, clee: np.ndarray | None) -> None:
        """Say what is wrong with a spectrum of impossible power; no lensing at all is let pass."""
        if quantity is KAPPA and not clkk[: self.lmax_kk + 1].any():
            return
        bands = {KAPPA: self.kk_bands, UNLENSED_E: self.ee_bands}
        given = {KAPPA: clkk, UNLENSED_E: np.zeros(0) if clee is None else clee}
        raise SpectrumError(diagnosis(quantity, given, bands))

    @np.errstate(all="ignore")
    def excursion(self, clkk: np.ndarray) -> tuple[float, float]:
        """How far C^κκ is from the fiducial one.

        The noise bias was measured to |u| = 1 and, band by band, to changes of
        ``release.derivative_step``.

        Parameters
        ----------
        clkk : C_L^κκ from L = 0

        Returns
        -------
        u along the direction of the fit, and the largest relative change of a band beyond it
        """
        changes = self.kk_bands.power(checked_spectrum(clkk, self.lmax_kk, KAPPA)) - 1.0
        along = self._direction
        u = float(along @ changes)
        if along.any():
            changes -= u * along / (along @ along)
        return u, float(np.abs(changes).max())


def ee_edges_of(release: Release) -> np.ndarray:
    """Bands in which a given C^EE is compared with the fiducial one."""
    if release.has(Group.PRIMARY):
        return release.ee_edges
    return np.linspace(2, len(release.fiducial_ee), _EE_BANDS + 1).astype(int)


def _stacked(rows: np.ndarray, power: Release | None, name: str) -> np.ndarray:
    """Rows of the bandpowers, and those of the power if it is there."""
    return rows if power is None else np.vstack([rows, getattr(power, name)])


def _nuisances(x: Sequence[float]) -> np.ndarray:
    try:
        array = np.asarray(x, dtype=float)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != (len(NUISANCES),):
        raise CNNLensError(
            f"nuisances are {x!r:.60}; give {len(NUISANCES)} numbers: {', '.join(NUISANCES)}"
        )
    return array
