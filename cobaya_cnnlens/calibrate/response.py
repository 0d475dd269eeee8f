"""Response and noise of κ̂ (Caldeira et al. 2018, eqs 10–12), with Monte-Carlo errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import CNNLensError
from ..simulate.bandpowers import FlatSpectra


@dataclass(frozen=True)
class PatchBandpowers:
    """Bandpowers by patch before any calibration, of masked maps over ⟨M²⟩.

    Attributes
    ----------
    auto, cross, truth : ⟨κ̂κ̂*⟩, ⟨κκ̂*⟩ and ⟨κκ*⟩, (n_patches, n_bins) each
    """

    auto: np.ndarray
    cross: np.ndarray
    truth: np.ndarray

    @classmethod
    def join(cls, parts: Iterable[PatchBandpowers]) -> PatchBandpowers:
        """The patches of several skies, one after another.

        Parameters
        ----------
        parts : bandpowers of each sky

        Returns
        -------
        bandpowers of all patches
        """
        parts = list(parts)
        return cls(*(np.concatenate([getattr(p, k) for p in parts]) for k in FIELDS))


FIELDS = tuple(PatchBandpowers.__annotations__)


def patch_bandpowers(
    spectra: FlatSpectra, estimate: np.ndarray, kappa: np.ndarray
) -> PatchBandpowers:
    """Bandpowers of masked κ̂ and κ.

    Parameters
    ----------
    spectra : of the masked patches
    estimate, kappa : κ̂ and the true κ, (n_patches, n, n) each

    Returns
    -------
    bandpowers by patch

    Raises
    ------
    CNNLensError
        if κ̂ is not finite
    """
    if not np.isfinite(estimate).all():
        raise CNNLensError(
            "the reconstructed convergence is not finite; check the input maps for NaN"
        )
    estimated, true = spectra.transform(estimate), spectra.transform(kappa)
    return PatchBandpowers(
        spectra.cross(estimated, estimated),
        spectra.cross(true, estimated),
        spectra.cross(true, true),
    )


@dataclass(frozen=True)
class Calibration:
    """Response and noise bias of an estimator (docs/noise-bias, eqs 1 and 2).

    R is a fixed normalisation: data, noise, covariance and derivatives all divide by the same
    R_b², so its Monte-Carlo error cancels and enters no error budget; it is kept for reference.

    Attributes
    ----------
    response, response_error : R_b and its standard error, (n_bins,)
    noise, noise_error : N_b and its standard error, (n_bins,)
    """

    response: np.ndarray
    response_error: np.ndarray
    noise: np.ndarray
    noise_error: np.ndarray

    def debias(self, auto: np.ndarray) -> np.ndarray:
        """Bandpowers d_b = ⟨|κ̂|²⟩/R_b² − N_b (docs/noise-bias, eq. 3).

        Parameters
        ----------
        auto : ⟨|κ̂|²⟩, (..., n_bins)

        Returns
        -------
        of the same shape
        """
        return auto / self.response**2 - self.noise


def calibrate(validation: PatchBandpowers, test: PatchBandpowers) -> Calibration:
    """R from the validation patches, N from the test patches.

    R_b = ⟨κκ̂*⟩/⟨κκ*⟩ and N_b = ⟨κ̂κ̂*⟩/R_b² − ⟨κκ*⟩. Since N is the mean of a difference on the
    same patches, the cosmic variance of κ cancels in it.

    Parameters
    ----------
    validation, test : bandpowers by patch, of two sets of skies

    Returns
    -------
    response and noise bias with their standard errors

    Raises
    ------
    CNNLensError
        if the response is not positive in some bin: the network knows nothing there
    """
    response = validation.cross.mean(0) / validation.truth.mean(0)
    if (response <= 0).any():
        bad = np.flatnonzero(response <= 0).tolist()
        raise CNNLensError(
            f"the response is not positive in bins {bad}; the network recovers nothing there: "
            "use fewer bins or train longer"
        )
    scatter = validation.cross - response * validation.truth
    response_error = standard_error(scatter) / validation.truth.mean(0)
    each = test.auto / response**2 - test.truth
    return Calibration(response, response_error, each.mean(0), standard_error(each))


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis.

    Parameters
    ----------
    samples : (n, ...)

    Returns
    -------
    (...)

    Examples
    --------
    >>> float(standard_error(np.array([1.0, 3.0])))
    1.0
    """
    return samples.std(0, ddof=1) / np.sqrt(len(samples))
