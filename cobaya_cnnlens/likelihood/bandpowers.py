"""The likelihood of debiased lensing bandpowers, without Cobaya.

The model µ of the data is that of :mod:`.model`, linear in the spectra. ``noise_debias``:

- ``"data"``: the data are debiased with the survey's own E and B power, so that the model has no
  part of C^EE;
- ``"fixed"``: the noise bias stays at the fiducial cosmology, as in Caldeira et al. 2018. N' is
  zero and parameters are biased.

With ``primary`` the data vector goes on with p̂, the power of lensed E (and of B where it is noise)
of the same patches; T = p in the variables of Hamimeche & Lewis.

Of a C_L^κκ that has another's factor, or more or less power than the calibration covers,
:meth:`BandpowerLikelihood.doubt` says so, and χ² warns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..errors import CNNLensError, SpectrumError, SpectrumWarning
from .declarations import Group, read_only
from .fields import Release
from .model import BandpowerModel, Jacobian, ee_edges_of
from .release import (
    check_arrays,
    debiased_by_data,
    joined,
    with_fixed_debias,
    with_unrotated_power,
)
from .spectra import FACTORS, KAPPA, checked_spectrum, factor_of
from .statistics import (
    chi2_pte,
    hamimeche_lewis,
    hartlap_factor,
    hotelling_pte,
    inverse_covariance,
    sellentin_heavens,
)

NOISE_DEBIAS = ("data", "fixed")
STATISTICS = ("hartlap", "hamimeche-lewis", "sellentin-heavens", "gaussian")
# Those whose inverse covariance carries Hartlap's factor.
_SCALED = ("hartlap", "hamimeche-lewis")
# Power of C^κκ over the fiducial's, at one L, of which nobody need be told.
_USUAL_POWER = 0.9, 1.1
# How far beyond what the calibration covers the power must be for a warning, in σ of the survey's
# amplitude.
_BEYOND = 5.0
# To name a factor: how unlikely data must be with it; and without it how likely, or how much lower
# χ² and how near to the number of data, as for a theory code at a low accuracy.
_UNLIKELY, _LIKELY, _FAR_BETTER, _NEAR = 1e-6, 1e-3, 50.0, 5.0
_NOT_FINITE = "a spectrum or nuisance is not finite, or beyond all bounds; check the theory"


class BandpowerLikelihood:
    """Likelihood of one release.

    Parameters
    ----------
    release : the data and their calibration
    noise_debias : "data" or "fixed", see above
    statistics : "hartlap" is Gaussian with the inverse covariance scaled for the finite number of
        simulations; "hamimeche-lewis" the same in the variables T_fid g(T̂/T), whose scatter is the
        fiducial's at any cosmology, with the total power T = µ + N + c of κ̂
        (docs/noise-bias, eq. 16); "sellentin-heavens" the t distribution that
        marginalises over the true covariance; "gaussian" takes the covariance as exact
    L_min, L_max : only bins that lie inside are used; None for no limit
    calibration_errors : whether the Monte-Carlo errors of N_b and of its derivatives enter the
        covariance
    primary : whether p̂ follows d' in the data vector; needs "data"

    Attributes
    ----------
    release : the one that was given, debiased
    model : computes µ from spectra and nuisances
    noise_debias : the option
    bins : the release's bins in use, (n_bins,)
    bandpowers : d_b of those, (n_bins,); with ``primary`` (n_bins + n_power,), as all that follows
    correction : c_b that the debias subtracted from those
    own_covariance : of those, of the survey's own scatter, (n_bins, n_bins)
    covariance : and with the calibration's errors
    hartlap : Hartlap's factor for the bins in use
    inverse : inverse of ``covariance``, with Hartlap's factor where that is asked for
    needs_ee : whether unlensed C^EE plays a part: with ``primary``
    lmax_kk, lmax_ee : highest multipoles that the spectra must reach
    doubt_said : whether :meth:`chi2` has warned of a :meth:`doubt`; it does so once

    Raises
    ------
    CNNLensError
        for an unknown option, an L range without any bin, a release made by hand whose arrays do
        not fit together or whose fiducial spectra have no power in a band; for
        "hamimeche-lewis", data whose power is not positive before the debias; for ``primary``, a
        release without what that needs, or another debias than "data"

    Examples
    --------
    >>> from cobaya_cnnlens import read_release
    >>> release = read_release("refined_fiducial")
    >>> likelihood = BandpowerLikelihood(release)
    >>> chi2 = likelihood.chi2(release.fiducial_kk)
    >>> print(f"{chi2:.1f} for {len(likelihood.bandpowers)} bins")
    21.1 for 24 bins
    """

    @np.errstate(all="ignore")
    def __init__(
        self,
        release: Release,
        noise_debias: str = "data",
        statistics: str = "hamimeche-lewis",
        L_min: float | None = None,
        L_max: float | None = None,
        calibration_errors: bool = True,
        primary: bool = False,
    ):
        if not isinstance(release, Release):
            raise CNNLensError(f"release is {release!r:.60}; give what read_release returns")
        check_arrays(release)
        if noise_debias not in NOISE_DEBIAS:
            raise CNNLensError(f"noise_debias is {noise_debias!r}; choose one of {NOISE_DEBIAS}")
        if statistics not in STATISTICS:
            raise CNNLensError(f"statistics is {statistics!r}; choose one of {STATISTICS}")
        for option, value in (("calibration_errors", calibration_errors), ("primary", primary)):
            if not isinstance(value, bool | np.bool_):  # the text "false" counts as true
                raise CNNLensError(f"{option} is {value!r}; give true or false")
        power = _with_power(release, noise_debias) if primary else None
        debiased = debiased_by_data if noise_debias == "data" else with_fixed_debias
        self.doubt_said = False
        ee_edges = ee_edges_of(release)
        measured, release = release.bandpowers, debiased(release)
        self.release, self.noise_debias, self.statistics = release, noise_debias, statistics
        self.bins = read_only(_bins_between(release.edges, L_min, L_max))
        self.model = BandpowerModel(release, self.bins, ee_edges, power)
        self.needs_ee = self.model.needs_ee
        self.lmax_kk, self.lmax_ee = self.model.lmax_kk, self.model.lmax_ee
        self._set_data(release, power, calibration_errors)
        # The scatter of d' is that of the total power of κ̂, of which the debias is a part.
        correction = np.zeros(len(self.bandpowers))
        correction[: len(self.bins)] = (measured - release.bandpowers)[self.bins]
        self.correction = read_only(correction)
        inverse = inverse_covariance(self.covariance)
        self.hartlap = hartlap_factor(release.n_sim, len(self.bandpowers))
        self.inverse = read_only(inverse * self.hartlap if statistics in _SCALED else inverse)
        slope = self.model.amplitude_slope[:, None]
        self._amplitude_error = float(self.fisher(slope)[0, 0] ** -0.5)
        if statistics == "hamimeche-lewis":
            self._set_fiducial_total(release, power)

    def _set_fiducial_total(self, release: Release, power: Release | None) -> None:
        """T_fid of the variables of Hamimeche & Lewis, which no bin may have without power."""
        self._fiducial_total = (release.fiducial_bandpowers + release.noise)[self.bins]
        if power is not None:
            self._fiducial_total = np.append(self._fiducial_total, power.fiducial_power)
        measured_total = self.bandpowers + self._not_lensing()
        for name, total in (("bandpowers", measured_total), ("model", self._fiducial_total)):
            if not (total > 0).all():
                raise CNNLensError(
                    f"statistics 'hamimeche-lewis': the {name} of bins "
                    f"{self.bins[~(total > 0)].tolist()} with the noise on top are not "
                    "positive; take statistics: hartlap, or leave those bins out"
                )

    def _set_data(self, release: Release, power: Release | None, calibration_errors: bool) -> None:
        """The data vector, its noise, and its covariance."""
        bins = np.ix_(self.bins, self.bins)
        of_data = release.patch_covariance[bins] / release.n_patches
        with_model = release.covariance[bins]
        data, noise = release.bandpowers[self.bins], release.noise[self.bins]
        if power is not None:
            of_power = power.power_cross_covariance[self.bins], power.power_covariance
            errors = power.power_error_cross[self.bins], power.power_error_covariance
            with_errors = (
                block / release.n_patches + error
                for block, error in zip(of_power, errors, strict=True)
            )
            with_model = joined(with_model, *with_errors)
            of_data = joined(of_data, *(block / release.n_patches for block in of_power))
            data = np.concatenate([data, power.power])
            noise = np.concatenate([noise, np.zeros(len(power.power))])
        self.bandpowers, self._noise = read_only(data), noise
        self.own_covariance = read_only(of_data)
        self.covariance = read_only(with_model) if calibration_errors else self.own_covariance

    def jacobian(self, nuisances: Sequence[float] | None = None) -> Jacobian:
        """Derivatives of the model, as :meth:`.BandpowerModel.jacobian`.

        Parameters
        ----------
        nuisances : at which the derivatives are taken, in the order of ``NUISANCES``; None for zero

        Returns
        -------
        by argument of the model
        """
        return self.model.jacobian(nuisances)

    def fisher(self, slopes: np.ndarray, model: np.ndarray | None = None) -> np.ndarray:
        """Fisher matrix −∂² ln L/∂θ_i∂θ_j of data that equal the model.

        The covariance holds the error of the calibration, as that of :meth:`chi2` does. Priors are
        not in it: add 1/σ² to the diagonal.

        Parameters
        ----------
        slopes : ∂µ_b/∂θ_i, (n_bins, n_parameters), as :meth:`jacobian` times ∂C_L/∂θ_i
        model : µ_b at which it is taken, (n_bins,), by whose power "hamimeche-lewis" scales the
            covariance; None for the covariance as it is

        Returns
        -------
        (n_parameters, n_parameters)

        Raises
        ------
        CNNLensError
            if ``slopes`` has not a row for each of ``bandpowers``

        Examples
        --------
        The error of the amplitude of C_L^κκ, all else fixed:

        >>> from cobaya_cnnlens import read_release
        >>> release = read_release("refined_fiducial")
        >>> likelihood = BandpowerLikelihood(release)
        >>> slope = likelihood.jacobian().kk @ release.fiducial_kk[: likelihood.lmax_kk + 1]
        >>> print(f"{100 * likelihood.fisher(slope[:, None])[0, 0] ** -0.5:.2f}%")
        0.47%
        """
        slopes = np.asarray(slopes, dtype=float)
        if slopes.ndim != 2 or len(slopes) != len(self.bandpowers):
            raise CNNLensError(
                f"slopes have shape {slopes.shape} - each of the {len(self.bandpowers)} data has a "
                "row, each parameter a column - give jacobian().kk @ the derivatives of C_L^κκ"
            )
        if model is not None:
            slopes = slopes / self.scatter(np.asarray(model))[:, None]
        n_sim = self.release.n_sim
        curvature = n_sim / (n_sim - 1.0) if self.statistics == "sellentin-heavens" else 1.0
        return curvature * slopes.T @ self.inverse @ slopes

    @np.errstate(all="ignore")
    def factor(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> str | None:
        """What is said of a C_L^κκ that is off by a known factor, or None.

        It is where every band has that factor times the fiducial's power; or where the data, which
        exclude the spectrum, are likely once the factor is taken off, or χ² is then far lower.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerModel.__call__`

        Returns
        -------
        what a warning says, or None
        """
        clkk = checked_spectrum(clkk, self.lmax_kk, KAPPA)
        powers = self.model.kk_bands.power(clkk)
        if (words := factor_of(powers)) is None:
            now = self._chi2_or_infinite(clkk, clee, nuisances)
            off = {f: self._chi2_or_infinite(clkk / f, clee, nuisances) for f in FACTORS}
            best = min(off, key=lambda factor: off[factor])
            near = off[best] < min(now / _FAR_BETTER, _NEAR * len(self.bandpowers))
            if self.pte(now) > _UNLIKELY or not (near or self.pte(off[best]) >= _LIKELY):
                return None
            words = f"over {best:.3g} it fits the data far better, and {FACTORS[best]}"
        return f"{_said(powers)}; {words}"

    def _chi2_or_infinite(self, *point: Any) -> float:
        try:
            return self._chi2(*point)
        except SpectrumError:
            return math.inf

    def doubt(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> str | None:
        """What is doubtful about the power of a C_L^κκ, or None.

        It is off by a known factor (:meth:`factor`), or beyond what the calibration covers
        (:meth:`.BandpowerModel.excursion`) by more than 5σ of the survey's amplitude.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerModel.__call__`

        Returns
        -------
        what a warning says, or None
        """
        if factor := self.factor(clkk, clee, nuisances):
            return factor
        u, beyond = self.model.excursion(clkk)
        sigma = _BEYOND * self._amplitude_error
        along = abs(self.release.kk_direction.sum())
        if abs(u) < 1.0 + sigma * along and beyond < self.release.derivative_step + sigma:
            return None
        powers = self.model.kk_bands.power(np.asarray(clkk))
        return (
            f"{_said(powers)}, beyond what its calibration covers; check "
            "that it is [L(L+1)]²/4 C_L^φφ. If it is, the model is an extrapolation there"
        )

    def residuals(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Residuals d_b − µ_b.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerModel.__call__`

        Returns
        -------
        (n_bins,)
        """
        return self.bandpowers - self.model(clkk, clee, nuisances)

    def chi2(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> float:
        """(d − µ)ᵀ C⁻¹ (d − µ); for "hamimeche-lewis" Xᵀ C⁻¹ X.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerModel.__call__`

        Returns
        -------
        χ²

        Raises
        ------
        SpectrumError, CNNLensError
            as :meth:`.BandpowerModel.__call__`

        Warns
        -----
        SpectrumWarning
            of a :meth:`doubt`, once
        """
        chi2 = self._chi2(clkk, clee, nuisances)
        if not self.doubt_said:
            power = self.model.probe(clkk)
            if not (power == 0.0 or _USUAL_POWER[0] < power < _USUAL_POWER[1]) and (
                doubt := self.doubt(clkk, clee, nuisances)
            ):
                self.doubt_said = True
                warnings.warn(f"{doubt}. This is said once.", SpectrumWarning, stacklevel=2)
        return chi2

    def _chi2(
        self, clkk: np.ndarray, clee: np.ndarray | None, nuisances: Sequence[float] | None
    ) -> float:
        model = self.model(clkk, clee, nuisances)
        try:
            self._check_total(model)
        except SpectrumError as error:
            if words := factor_of(self.model.kk_bands.power(np.asarray(clkk))):
                raise SpectrumError(f"{error}; {words}") from None
            raise
        deviations = self._deviations(model)
        chi2 = float(deviations @ self.inverse @ deviations)
        if not math.isfinite(chi2):
            raise SpectrumError(_NOT_FINITE)
        return chi2

    def chi2_of(
        self,
        models: np.ndarray,
        data: np.ndarray | None = None,
        correction: np.ndarray | None = None,
    ) -> np.ndarray:
        """χ² of several models.

        Parameters
        ----------
        models : µ_b, (..., n_bins)
        data : d_b debiased as the release's, of a shape that goes with ``models``; the release's if
            None
        correction : c_b that the debias subtracted from ``data``, of their shape; the release's if
            None

        Returns
        -------
        (...)
        """
        self._check_total(models, correction)
        deviations = self._deviations(models, data, correction)
        return ((deviations @ self.inverse) * deviations).sum(-1)

    def scatter(self, models: np.ndarray, correction: np.ndarray | None = None) -> np.ndarray:
        """Standard deviation of data of some models, over that of ``covariance``.

        It is (µ + N + c)/T_fid for "hamimeche-lewis" (docs/noise-bias, eq. 16), else one.

        Parameters
        ----------
        models : µ_b, (..., n_bins)
        correction : c_b that the debias subtracted from the data, of a shape that goes with
            ``models``; the release's if None

        Returns
        -------
        (..., n_bins)
        """
        if self.statistics == "hamimeche-lewis":
            return (models + self._not_lensing(correction)) / self._fiducial_total
        return np.ones_like(models)

    def _not_lensing(self, correction: np.ndarray | None = None) -> np.ndarray:
        """N + c, what the total power T of κ̂ has beside µ; c of the release if None."""
        return self._noise + (self.correction if correction is None else correction)

    def _deviations(
        self,
        model: np.ndarray,
        data: np.ndarray | None = None,
        correction: np.ndarray | None = None,
    ) -> np.ndarray:
        """d − µ; X_b = T^fid_b g(T̂_b/T_b), T = µ + N + c, for "hamimeche-lewis"; (..., n_bins).

        Of NumPy or JAX.
        """
        data = self.bandpowers if data is None else data
        if self.statistics != "hamimeche-lewis":
            return data - model
        added = self._not_lensing(correction)
        return self._fiducial_total * hamimeche_lewis((data + added) / (model + added))

    def _check_total(self, model: np.ndarray, correction: np.ndarray | None = None) -> None:
        """Refuse models whose total power T is not positive, of which there is no logarithm."""
        if self.statistics != "hamimeche-lewis":
            return
        total = model + self._not_lensing(correction)
        if not np.isfinite(total).all():
            raise SpectrumError(_NOT_FINITE)
        if not (total > 0).all():
            raise SpectrumError(
                "the theory's bandpowers with the noise on top are not positive; check the theory "
                "and the nuisances"
            )

    def log_likelihood(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> float:
        """−χ²/2, or the t distribution's logarithm; the constant normalisation is left out.

        It warns as :meth:`chi2` does.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerModel.__call__`

        Returns
        -------
        ln L
        """
        return self.log_likelihood_of(self.chi2(clkk, clee, nuisances))

    def unchecked_log_likelihood(self, clkk: Any, clee: Any = None, nuisances: Any = None) -> Any:
        """ln L of spectra that are right, without checks and warnings.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerModel.__call__`, each an array; of
            NumPy, or of JAX, which can then differentiate and compile it

        Returns
        -------
        ln L, of the same kind; not a number where the model has no likelihood
        """
        deviations = self._deviations(self.model.unchecked(clkk, clee, nuisances))
        return self.log_likelihood_of(deviations @ self.inverse @ deviations)

    def log_likelihood_of(self, chi2: float) -> float:
        """The log-likelihood of a χ² of this likelihood.

        Parameters
        ----------
        chi2 : of :meth:`chi2`

        Returns
        -------
        ln L
        """
        if self.statistics == "sellentin-heavens":
            return sellentin_heavens(chi2, self.release.n_sim)
        return -0.5 * chi2

    def pte(self, chi2: float) -> float:
        """Probability that noise alone exceeds this χ²: by Hotelling's T² where the number of
        simulations counts, by the χ² distribution for "gaussian".

        Parameters
        ----------
        chi2 : of :meth:`chi2`

        Returns
        -------
        probability
        """
        if self.statistics == "gaussian":
            return chi2_pte(chi2, len(self.bandpowers))
        t2 = chi2 / self.hartlap if self.statistics in _SCALED else chi2
        return hotelling_pte(t2, self.release.n_sim, len(self.bandpowers))


def _said(powers: np.ndarray) -> str:
    median = np.median(powers)
    return f"{KAPPA.name} has {median:.3g} times the power of the release's fiducial one"


def _with_power(release: Release, noise_debias: str) -> Release:
    """The release with p̂ as data of their own, if it holds what that needs.

    Raises
    ------
    CNNLensError
        if it does not, or has a covariance of too few patches
    """
    if noise_debias != "data":
        raise CNNLensError(
            f"primary: true needs noise_debias 'data', not {noise_debias!r}: the data are then the "
            "bandpowers and the power that debiased them"
        )
    if release.blinding:
        raise CNNLensError(
            f"primary: true: release '{release.name}' is blinded, and its E and B power is not: a "
            "joint fit would be of two cosmologies; leave primary out until it is unblinded"
        )
    if not release.has(Group.PRIMARY):
        raise CNNLensError(
            f"primary: true: release '{release.name}' does not hold the covariance with the power "
            "of its patches; make it again with `data_debias: true` in its configuration"
        )
    n_data = release.n_bins + len(release.power)
    if release.n_sim <= n_data + 2:
        raise CNNLensError(
            f"primary: true: release '{release.name}', field 'covariance.n_sim': {release.n_sim} "
            f"simulated patches give no covariance of {n_data} bandpowers and powers of E; "
            f"calibrate with {n_data + 3}, or many more, or leave primary out"
        )
    return with_unrotated_power(release)


def _bins_between(edges: np.ndarray, L_min: float | None, L_max: float | None) -> np.ndarray:
    for name, value in (("L_min", L_min), ("L_max", L_max)):
        if value is not None and (not isinstance(value, Real) or isinstance(value, bool)):
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
