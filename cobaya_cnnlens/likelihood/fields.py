"""The data of a release, one flat class that declares every field once.

The reader, the writer, the checks and the JSON schema (:mod:`.schema`) follow from the
declarations: key in the file, shape, unit, allowed sign, and the group of fields that are present
together. The model that uses these numbers is :mod:`cobaya_cnnlens.likelihood.bandpowers`;
docs/noise-bias derives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from .declarations import KAPPA, KAPPA2, Blinding, Numbers, numbers, read_only
from .declarations import NUISANCES as NUISANCES
from .declarations import ROTATION as ROTATION
from .declarations import SIMULATED as SIMULATED
from .declarations import VERSION as VERSION
from .declarations import Group as Group
from .declarations import Sign as Sign
from .spectra import terms

# Of a survey, to which the error of the response surface grows.
LARGEST_AMPLITUDE = 3.0


@dataclass(frozen=True, kw_only=True)
class Release:
    """Bandpowers of a survey with their calibration; arrays are read-only.

    ``bandpowers`` are d of docs/noise-bias, eq. 3. Covariances, derivatives and nuisances are those
    of d', which the survey's own power debiases (eq. 12). The fields of the group ``FIXED`` are
    those of d, for ``noise_debias: fixed``. A release without the group ``DEBIAS`` has d' = d and
    serves that option alone.

    Attributes
    ----------
    name, description : of the survey; exported files carry the name
    theory, instrument, provenance : records of how the release was made
    truth : cosmology of a mock survey; None for data
    blinding : of bandpowers with a hidden offset (:mod:`.blinding`); None of open ones
    n_patches : over which the bandpowers are averaged
    n_sim : simulated patches behind the covariance of one patch
    windows : W_bL from L = 0, (n_bins, L_max + 1)
    the others : as their declarations say, see :data:`ARRAYS` and docs/release

    Examples
    --------
    >>> from cobaya_cnnlens import read_release
    >>> release = read_release("refined_fiducial")
    >>> release.n_bins, release.n_patches, release.has(Group.PRIMARY)
    (24, 160, True)
    """

    name: str
    description: str
    theory: dict[str, Any] = field(default_factory=dict)
    instrument: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, Any] | None = None
    blinding: Blinding | None = None
    n_patches: int
    n_sim: int

    edges: np.ndarray = numbers(
        "bins.edges",
        "n_bins+1",
        "L",
        "Bin b holds edges[b] ≤ L < edges[b+1]; ascending.",
        integers=True,
    )
    bandpowers: np.ndarray = numbers(
        "data.bandpowers",
        "n_bins",
        KAPPA,
        "Bandpowers d_b = ⟨|κ̂|²⟩_b/R_b² − N_b, mean over the patches.",
    )
    power: np.ndarray = numbers(
        "data.power",
        "n_power",
        "µK²",
        "p̂, the power of E and B of the survey's masked maps over the mean square of the mask, "
        "with noise and beam; mean over the patches.",
        Group.DEBIAS,
        Sign.POSITIVE,
    )
    rotation: np.ndarray = numbers(
        "data.rotation",
        "n_surveys n_rotation",
        "deg, deg, 1",
        "Rotation α̂ of the polarisation by the survey's EB spectrum, its standard error, and the "
        "part of the patches that have it; a row for each survey that was combined.",
        Group.ROTATION,
    )
    patch_covariance: np.ndarray = numbers(
        "covariance.patch",
        "n_bins n_bins",
        KAPPA2,
        "Sample covariance of d'_b of one patch, without Hartlap's factor.",
    )
    noise_covariance: np.ndarray = numbers(
        "covariance.noise",
        "n_bins n_bins",
        KAPPA2,
        "Monte-Carlo covariance of N_b, the same for every survey of this calibration.",
    )
    derivative_covariance: np.ndarray = numbers(
        "covariance.derivatives",
        "n_bins n_bins",
        KAPPA2,
        "Monte-Carlo covariance of the model's noise bias, at the change of ω_c in "
        "'provenance.derivative_excursion_omch2'; without that of the response surface, which "
        "'debias.error_terms' and 'debias.error_bins' hold.",
    )
    response: np.ndarray = numbers(
        "calibration.response",
        "n_bins",
        "1",
        "R_b = ⟨κκ̂*⟩/⟨κκ*⟩ of the validation patches; the data are divided by its square.",
        sign=Sign.POSITIVE,
    )
    response_error: np.ndarray = numbers(
        "calibration.response_error", "n_bins", "1", "Standard error of R_b.", sign=Sign.POSITIVE
    )
    noise: np.ndarray = numbers(
        "calibration.noise",
        "n_bins",
        KAPPA,
        "N_b = ⟨|κ̂|²⟩/R_b² − ⟨κκ*⟩ of the test patches; subtracted from the data.",
    )
    noise_error: np.ndarray = numbers(
        "calibration.noise_error", "n_bins", KAPPA, "Standard error of N_b.", sign=Sign.POSITIVE
    )
    windows: np.ndarray = field()
    """W_bL from L = 0, (n_bins, L_max + 1); the file leaves out the zeros of each row."""
    kk_edges: np.ndarray = numbers(
        "noise_bias.kk_edges",
        "n_kk+1",
        "L",
        "Band j of C^κκ holds kk_edges[j] ≤ L < kk_edges[j+1].",
        integers=True,
    )
    kk_derivatives: np.ndarray = numbers(
        "noise_bias.kk",
        "n_bins n_kk",
        KAPPA,
        "N'_bj = ∂(d'_b − signal_b)/∂ ln C^κκ_j, all of band j scaled together.",
    )
    kk_derivative_errors: np.ndarray = numbers(
        "noise_bias.kk_errors",
        "n_bins n_kk",
        KAPPA,
        "Standard errors of N'_bj.",
        sign=Sign.NOT_NEGATIVE,
    )
    kk_direction: np.ndarray = numbers(
        "noise_bias.kk_direction",
        "n_kk",
        "1",
        "a_j of the amplitude u = Σ_j a_j δ_j, bands of C^κκ; |u| is at most 1 in the simulations.",
    )
    curvature: np.ndarray = numbers(
        "noise_bias.curvature",
        "n_bins",
        KAPPA,
        "Q_b, second order of the noise bias: the model adds Q_b u².",
    )
    curvature_errors: np.ndarray = numbers(
        "noise_bias.curvature_errors",
        "n_bins",
        KAPPA,
        "Standard errors of Q_b.",
        sign=Sign.NOT_NEGATIVE,
    )
    e_edges: np.ndarray = numbers(
        "debias.e_edges",
        "n_e+1",
        "l",
        "Bins of ⟨EE*⟩, the first entries of the power.",
        Group.DEBIAS,
    )
    b_edges: np.ndarray = numbers(
        "debias.b_edges",
        "n_b+1",
        "l",
        "The bin of ⟨BB*⟩, the last entry of the power.",
        Group.DEBIAS,
    )
    fiducial_power: np.ndarray = numbers(
        "debias.fiducial_power",
        "n_power",
        "µK²",
        "p^fid, the power of the fiducial simulations.",
        Group.DEBIAS,
        Sign.POSITIVE,
    )
    debias_coefficients: np.ndarray = numbers(
        "debias.coefficients",
        "n_bins n_power",
        "1/µK²",
        "G, the change of the bandpowers per change of the power.",
        Group.DEBIAS,
    )
    ee_directions: np.ndarray = numbers(
        "debias.ee_directions",
        "n_power n_v",
        "1/µK²",
        "P: the amplitudes of the change of E are v = Pᵀ (p̂ − p^fid).",
        Group.SECOND_ORDER,
    )
    amplitude_covariance: np.ndarray = numbers(
        "debias.amplitude_covariance",
        "n_v n_v",
        "1",
        "⟨δv_i δv_j⟩ of one patch.",
        Group.SECOND_ORDER,
    )
    debias_second: np.ndarray = numbers(
        "debias.second",
        "n_bins n_products",
        KAPPA,
        "S_ij for the n_v(n_v+1)/2 products i ≤ j, in the order 11, 12, …, 22, …",
        Group.SECOND_ORDER,
    )
    debias_cross: np.ndarray = numbers(
        "debias.cross",
        "n_bins n_v",
        KAPPA,
        "X_i: the model has the term Σ_i X_i v_i u.",
        Group.SECOND_ORDER,
    )
    surface_error_terms: np.ndarray = numbers(
        "debias.error_terms",
        "n_terms+1 n_terms+1",
        "1",
        "K: the covariance of the response surface's error is xᵀKx times 'error_bins'; x holds "
        "w = (v, u), their products in the order of 'second', and |w|³, which a quadratic leaves.",
        Group.SECOND_ORDER,
    )
    surface_error_bins: np.ndarray = numbers(
        "debias.error_bins",
        "n_bins n_bins",
        KAPPA2,
        "Covariance between bins of the error of the response surface, to a factor.",
        Group.SECOND_ORDER,
    )
    nuisance_steps: np.ndarray = numbers(
        "nuisances.steps",
        "n_nuisances",
        "of each nuisance",
        "Changes x_i that were simulated.",
        sign=Sign.POSITIVE,
    )
    nuisance_first: np.ndarray = numbers(
        "nuisances.first",
        "n_bins n_nuisances",
        f"{KAPPA} per unit",
        "A_bi: d'_b changes by Σ_i A_bi x_i + B_bi x_i² when the instrument is off by x_i.",
    )
    nuisance_first_errors: np.ndarray = numbers(
        "nuisances.first_errors",
        "n_bins n_nuisances",
        f"{KAPPA} per unit",
        "Standard errors of A_bi.",
        sign=Sign.NOT_NEGATIVE,
    )
    nuisance_second: np.ndarray = numbers(
        "nuisances.second", "n_bins n_nuisances", f"{KAPPA} per unit²", "B_bi."
    )
    nuisance_second_errors: np.ndarray = numbers(
        "nuisances.second_errors",
        "n_bins n_nuisances",
        f"{KAPPA} per unit²",
        "Standard errors of B_bi.",
        sign=Sign.NOT_NEGATIVE,
    )
    rotation_second: np.ndarray = numbers(
        "rotation.second",
        "n_bins",
        f"{KAPPA} per deg²",
        "B_b: d'_b changes by B_b α² if the polarisation is rotated by α.",
        Group.DEBIAS,
    )
    rotation_second_errors: np.ndarray = numbers(
        "rotation.second_errors",
        "n_bins",
        f"{KAPPA} per deg²",
        "Standard errors of B_b.",
        Group.DEBIAS,
        Sign.NOT_NEGATIVE,
    )
    ee_edges: np.ndarray = numbers(
        "primary.ee_edges", "n_ee+1", "l", "Bands of unlensed C_l^EE.", Group.PRIMARY, integers=True
    )
    power_kk_derivatives: np.ndarray = numbers(
        "primary.kk", "n_power n_kk", "µK²", "∂p/∂ ln C_j of the bands of C^κκ.", Group.PRIMARY
    )
    power_ee_derivatives: np.ndarray = numbers(
        "primary.ee",
        "n_power n_ee",
        "µK²",
        "∂p/∂ ln C_j of the bands of unlensed C^EE.",
        Group.PRIMARY,
    )
    power_nuisance_first: np.ndarray = numbers(
        "primary.nuisance_first",
        "n_power n_nuisances",
        "µK² per unit",
        "What 'nuisances.first' is of d', of p.",
        Group.PRIMARY,
    )
    power_nuisance_second: np.ndarray = numbers(
        "primary.nuisance_second",
        "n_power n_nuisances",
        "µK² per unit²",
        "What 'nuisances.second' is of d', of p.",
        Group.PRIMARY,
    )
    power_rotation_second: np.ndarray = numbers(
        "rotation.power_second",
        "n_power",
        "µK² per deg²",
        "What 'rotation.second' is of d', of p.",
        Group.PRIMARY,
    )
    power_covariance: np.ndarray = numbers(
        "primary.covariance",
        "n_power n_power",
        "µK⁴",
        "Covariance of p̂ of one patch.",
        Group.PRIMARY,
    )
    power_cross_covariance: np.ndarray = numbers(
        "primary.cross_covariance",
        "n_bins n_power",
        "µK²",
        "Covariance of d' with p̂ of one patch.",
        Group.PRIMARY,
    )
    power_error_covariance: np.ndarray = numbers(
        "primary.error_covariance",
        "n_power n_power",
        "µK⁴",
        "Monte-Carlo covariance of p^fid and of the model of p.",
        Group.PRIMARY,
    )
    power_error_cross: np.ndarray = numbers(
        "primary.error_cross",
        "n_bins n_power",
        "µK²",
        "Monte-Carlo covariance of the model of d' with that of p.",
        Group.PRIMARY,
    )
    fixed_patch_covariance: np.ndarray = numbers(
        "fixed.patch",
        "n_bins n_bins",
        KAPPA2,
        "What 'covariance.patch' is of d', of d.",
        Group.FIXED,
    )
    fixed_noise_covariance: np.ndarray = numbers(
        "fixed.noise",
        "n_bins n_bins",
        KAPPA2,
        "Monte-Carlo covariance of N_b, and of its change at "
        "'provenance.derivative_excursion_omch2'.",
        Group.FIXED,
    )
    fixed_nuisance_first: np.ndarray = numbers(
        "fixed.nuisance_first",
        "n_bins n_nuisances",
        f"{KAPPA} per unit",
        "What 'nuisances.first' is of d', of d.",
        Group.FIXED,
    )
    fixed_nuisance_second: np.ndarray = numbers(
        "fixed.nuisance_second",
        "n_bins n_nuisances",
        f"{KAPPA} per unit²",
        "What 'nuisances.second' is of d', of d.",
        Group.FIXED,
    )
    fiducial_kk: np.ndarray = numbers(
        "fiducial.kk", "L_max+1", KAPPA, "C_L^κκ = [L(L+1)]²/4 C_L^φφ from L = 0."
    )
    fiducial_ee: np.ndarray = numbers(
        "fiducial.ee", "l_max+1", "µK²", "Unlensed C_l^EE from l = 0."
    )

    def __post_init__(self) -> None:
        # A χ² would change with an array that a caller writes to.
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray) and value.flags.writeable:
                object.__setattr__(self, item.name, read_only(value.copy()))

    def __repr__(self) -> str:
        low, high = self.edges[0], self.edges[-1]
        bins = f"{self.n_bins} bins in L = {low}-{high}"
        blinded = ", blinded" if self.blinding else ""
        return f"<Release '{self.name}': {bins}, {self.n_patches} patches{blinded}>"

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.bandpowers)

    @property
    def centres(self) -> np.ndarray:
        """Bin centres in L, (n_bins,)."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def fiducial_bandpowers(self) -> np.ndarray:
        """Bandpowers of the fiducial C_L^κκ, (n_bins,)."""
        return self.windows @ self.fiducial_kk[: self.windows.shape[1]]

    def noise_subtracted(self, auto: np.ndarray) -> np.ndarray:
        """Bandpowers d of docs/noise-bias, eq. 3, by the calibration of this release.

        Parameters
        ----------
        auto : ⟨κ̂κ̂*⟩, (..., n_bins)

        Returns
        -------
        auto/R² − N, (..., n_bins)
        """
        return auto / self.response**2 - self.noise

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is suspicious of the maps or the bandpowers, from ``provenance``."""
        return tuple(self.provenance.get("warnings", ()))

    @property
    def derivative_step(self) -> float:
        """Relative change of a band's power to which the derivatives were measured."""
        return float(self.provenance.get("derivative_step", 0.1))

    def has(self, group: Group) -> bool:
        """Whether the release holds a group of fields.

        Parameters
        ----------
        group : of which every field must be there

        Returns
        -------
        whether it is
        """
        return all(getattr(self, name).size for name in fields_of(group))

    @property
    def noise_debiases(self) -> tuple[str, ...]:
        """The values of ``noise_debias`` that the release allows, the better one first."""
        return ("data", "fixed") if self.has(Group.DEBIAS) else ("fixed",)

    @property
    def n_v(self) -> int:
        """Number of amplitudes v of C^EE that have a second order."""
        return self.ee_directions.shape[1]

    @property
    def amplitudes(self) -> np.ndarray:
        """v of the survey's power, (n_v,)."""
        return (self.power - self.fiducial_power) @ self.ee_directions if self.n_v else np.zeros(0)

    @property
    def correction(self) -> np.ndarray:
        """d − d', what the survey's own power subtracts from the bandpowers, (n_bins,); zero in a
        release without that power."""
        if not self.has(Group.DEBIAS):
            return np.zeros_like(self.bandpowers)
        rotated, _ = self.squared_rotation
        first = self.correction_of(self.power) + self.rotation_second * rotated
        if not self.n_v:
            return first
        v, scatter = self.amplitudes, self.amplitude_covariance / self.n_patches
        return first + self.debias_second @ (np.outer(v, v) - scatter)[np.triu_indices(self.n_v)]

    @property
    def rotation_step(self) -> float:
        """Rotation of the polarisation in degrees at which its effect was simulated."""
        return float(self.provenance.get("rotation_step", 0.5))

    @property
    def squared_rotation(self) -> tuple[float, float]:
        """Unbiased estimate of the square of the survey's rotation, and its variance
        (docs/noise-bias, eq. 18), in deg² and deg⁴; zero in a release without it."""
        if not self.rotation.size:
            return 0.0, 0.0
        angle, error, share = self.rotation.T
        variance = (2.0 * angle * error) ** 2 + 2.0 * error**4
        return float(share @ (angle**2 - error**2)), float(share**2 @ variance)

    @property
    def correction_slope(self) -> np.ndarray:
        """Derivative of :attr:`correction` with respect to the power, at the survey's own power,
        (n_bins, n_power)."""
        if not self.n_v:
            return self.debias_coefficients
        products = np.zeros((self.n_bins, self.n_v, self.n_v))
        products[(slice(None), *np.triu_indices(self.n_v))] = self.debias_second
        twice = products + products.transpose(0, 2, 1)
        return self.debias_coefficients + twice @ self.amplitudes @ self.ee_directions.T

    def surface_error(self, u: float) -> np.ndarray:
        """Covariance of the error of the response surface (docs/noise-bias, eq. 15).

        Simulations reach amplitudes of 1. Beyond :data:`LARGEST_AMPLITUDE` the error of that is
        taken, so that absurd data have a covariance with an inverse.

        Parameters
        ----------
        u : amplitude of C^κκ; those of C^EE are the survey's

        Returns
        -------
        (n_bins, n_bins)
        """
        w = np.append(self.amplitudes, u).clip(-LARGEST_AMPLITUDE, LARGEST_AMPLITUDE)
        x = np.append(terms(w), np.linalg.norm(w) ** 3)
        return (x @ self.surface_error_terms @ x) * self.surface_error_bins

    def correction_of(self, power: np.ndarray) -> np.ndarray:
        """First order of :attr:`correction` (docs/noise-bias, eq. 6) for any power.

        Parameters
        ----------
        power : of E and B in µK², (..., n_power)

        Returns
        -------
        what is subtracted from the bandpowers, (..., n_bins)
        """
        return (power - self.fiducial_power) @ self.debias_coefficients.T

    @cached_property
    def covariance(self) -> np.ndarray:
        """Covariance of the survey's d'_b about the model, (n_bins, n_bins)."""
        of_data = self.patch_covariance / self.n_patches
        return read_only(of_data + self.noise_covariance + self.derivative_covariance)


# Every array but the windows, by attribute.
ARRAYS: dict[str, Numbers] = {
    item.name: item.metadata["numbers"] for item in fields(Release) if "numbers" in item.metadata
}


def fields_of(group: Group) -> tuple[str, ...]:
    """Attributes of a release that belong to a group.

    Parameters
    ----------
    group : of fields

    Returns
    -------
    their names, in the order of the declarations
    """
    return tuple(name for name, declared in ARRAYS.items() if declared.group is group)
