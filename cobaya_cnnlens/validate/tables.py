"""Measured numbers: reconstruction noise, bandpower errors, recovered cosmology, null tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from ..calibrate.assemble import calibration_of, make_release, read_derivatives
from ..calibrate.covariance import mean_covariance
from ..calibrate.measure import PatchBandpowers, read_bandpowers, signal_bandpowers, spectra_of
from ..calibrate.response import Calibration, calibrate, standard_error
from ..errors import CNNLensError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.release import Release
from ..likelihood.statistics import chi2_pte, hotelling_pte, inverse_covariance, pte_to_sigma
from ..pipeline.config import Config
from ..pipeline.skies import spectra_for
from ..reconstruct.n0 import band_of, n0_eb, n0_iterated
from .points import check_points

# Range and spacing of ω_c over which the model is tabulated for maximum-likelihood tests.
OMCH2_NODES = np.arange(0.080, 0.1651, 0.005)


@dataclass(frozen=True)
class NoiseTable:
    """Per bin, each (n_bins,): L; R and its error; N_L and its error; analytic N0 of the EB and of
    the iterated EB estimator; relative error of one patch's bandpower; correlation coefficient ρ;
    recovered power ⟨κ̂κ̂*⟩/⟨κκ*⟩ before calibration (the paper's Fig. 8).

    The error of N_L is that of its mean over the test patches and that of R from the validation
    patches, which moves N_L by −2⟨κ̂κ̂*⟩/R³ δR.
    """

    L: np.ndarray
    response: np.ndarray
    response_error: np.ndarray
    noise: np.ndarray
    noise_error: np.ndarray
    n0_eb: np.ndarray
    n0_iterated: np.ndarray
    relative_error: np.ndarray
    correlation: np.ndarray
    power: np.ndarray


def noise_table(
    config: Config, network_hash: str, merge: int = 1, curves: dict | None = None
) -> NoiseTable:
    """Reconstruction noise of the network beside the analytic curves, on the test set.

    Parameters
    ----------
    merge : number of neighbouring bins to take together
    curves : analytic curves already computed, to which this table's are added

    Raises
    ------
    CNNLensError
        if fewer bins are left than one
    """
    spectra = spectra_of(config)
    if not 1 <= merge <= spectra.bins.n_bins:
        raise CNNLensError(f"cannot merge {merge} of {spectra.bins.n_bins} bins")
    validation, test = merged_bandpowers(config, network_hash, merge)
    calibration = calibrate(validation, test)
    theory = spectra_for(config, config.cosmology)
    L = spectra.merge(spectra.bins.centres, merge)
    expected = spectra.merge(signal_bandpowers(config, theory.kk), merge)
    scatter = calibration.debias(test.auto).std(0, ddof=1)
    n_test, n_validation = noise_by_patch(calibration, validation, test)
    auto, cross, truth = (getattr(test, k).mean(0) for k in ("auto", "cross", "truth"))
    return NoiseTable(
        L,
        calibration.response,
        calibration.response_error,
        calibration.noise,
        np.hypot(standard_error(n_test), standard_error(n_validation)),
        *_analytic_noise(config, L, theory, {} if curves is None else curves),
        scatter / expected,
        cross / np.sqrt(auto * truth),
        auto / truth,
    )


def merged_bandpowers(
    config: Config, network_hash: str, merge: int
) -> tuple[PatchBandpowers, PatchBandpowers]:
    """Validation and test patches with every ``merge`` neighbouring bins taken together."""
    spectra = spectra_of(config)
    sets = (read_bandpowers(config, network_hash, name) for name in ("validation", "test"))
    return tuple(
        PatchBandpowers(*(spectra.merge(v, merge) for v in vars(measured).values()))
        for measured in sets
    )


def noise_by_patch(
    calibration: Calibration, validation: PatchBandpowers, test: PatchBandpowers
) -> tuple[np.ndarray, np.ndarray]:
    """What each patch of the two sets adds to N_L, (n_patches, n_bins) each: the test patches' own
    κ̂κ̂*/R² − κκ*, and the validation patches' −2⟨κ̂κ̂*⟩/R³ (κκ̂* − Rκκ*)/⟨κκ*⟩ by way of R."""
    response = calibration.response
    each = test.auto / response**2 - test.truth
    influence = (validation.cross - response * validation.truth) / validation.truth.mean(0)
    return each, -2.0 * test.auto.mean(0) / response**3 * influence


def _analytic_noise(config, L, theory, curves):
    """N0 of the EB estimator, and of the iterated one: seconds, for all L at a time."""
    band = band_of(config.patch, theory, round(config.patch.fundamental))
    key = (config.instrument, config.cosmology, config.camb, band)
    every = np.arange(band.lmax + 1.0)
    if key not in curves:
        curves[key] = n0_iterated(every, theory, config.instrument, band)
    return n0_eb(L, theory, config.instrument, band), np.interp(L, every, curves[key])


@dataclass(frozen=True)
class Comparison:
    """Reconstruction noise of several configurations in the same bins; L (n_bins,), the rest
    (n_configurations, n_bins) unless it says otherwise.

    ``excess`` : N_L over the analytic iterated-EB N0 of each one's own noise level, with its
    standard error over the test patches
    ``relative`` : N_L over the first one's, with its standard error; where both saw the same
    patches (``paired``, (n_configurations,)), what those have in common cancels
    ``power`` : ⟨κ̂κ̂*⟩/⟨κκ*⟩ before calibration (Caldeira et al. 2018, Figs 8 and 12)
    ``scatter`` (n_bins,) : scatter of one patch's ⟨κ̂κ̂*⟩ between the configurations over its mean
    (Caldeira et al. 2018, eq. 18), averaged over the patches; None for fewer than three, or where
    the patches are not the same
    """

    names: tuple[str, ...]
    L: np.ndarray
    excess: np.ndarray
    excess_error: np.ndarray
    relative: np.ndarray
    relative_error: np.ndarray
    paired: np.ndarray
    power: np.ndarray
    scatter: np.ndarray | None


def compare(
    configs: list[Config], hashes: list[str], merge: int = 1, curves: dict | None = None
) -> Comparison:
    """N_L of several networks, noise levels, patches or ways of application, side by side.

    Parameters
    ----------
    configs, hashes : configurations with the same bins, and their networks' hashes
    merge : number of neighbouring bins to take together
    curves : analytic curves already computed, to which these are added

    Raises
    ------
    CNNLensError
        if the bins differ
    """
    first = configs[0]
    for other in configs[1:]:
        if other.bandpowers != first.bandpowers:
            raise CNNLensError(
                f"configurations '{first.name}' and '{other.name}' differ in 'bandpowers'; only "
                "the same bins can be compared"
            )
    tables, noises, autos = [], [], []
    curves = {} if curves is None else curves
    for config, digest in zip(configs, hashes, strict=True):
        validation, test = merged_bandpowers(config, digest, merge)
        tables.append(noise_table(config, digest, merge, curves))
        noises.append(noise_by_patch(calibrate(validation, test), validation, test))
        autos.append(test.auto)
    ratio = np.array([t.noise / tables[0].noise for t in tables])
    paired = np.array([_same_patches(config, first) for config in configs])
    error = [
        np.hypot(*(standard_error(a - r * b) for a, b in zip(n, noises[0], strict=True)))
        if same
        else np.hypot(t.noise_error, r * tables[0].noise_error)
        for n, r, t, same in zip(noises, ratio, tables, paired, strict=True)
    ]
    scatter = None
    if len(configs) > 2 and paired.all():
        stack = np.array(autos)
        scatter = (stack.std(0, ddof=1) / stack.mean(0)).mean(0)
    return Comparison(
        tuple(config.name for config in configs),
        tables[0].L,
        np.array([t.noise / t.n0_iterated for t in tables]),
        np.array([t.noise_error / t.n0_iterated for t in tables]),
        ratio,
        np.array(error) / tables[0].noise,
        paired,
        np.array([t.power for t in tables]),
        scatter,
    )


def _same_patches(one: Config, other: Config) -> bool:
    return one.instrument.taper_deg == other.instrument.taper_deg and all(
        one.set_size(name) == other.set_size(name)
        and one.sky_recipe(name, 0) == other.sky_recipe(name, 0)
        for name in ("validation", "test")
    )


@dataclass(frozen=True)
class ResidualTable:
    """Debiased bandpowers of a set of patches against the true spectra of the same patches, each
    (n_bins,): L, truth ⟨κκ*⟩, mean of d − κκ* and its standard error; and χ² of all bins together
    with its probability to exceed."""

    L: np.ndarray
    truth: np.ndarray
    residual: np.ndarray
    error: np.ndarray
    n_patches: int
    chi2: float
    pte: float


def residual_table(
    config: Config, network_hash: str, set_name: str, merge: int = 1
) -> ResidualTable:
    """Is d = ⟨κ̂κ̂*⟩/R² − N unbiased on patches that gave neither R nor N?

    Parameters
    ----------
    set_name : a set at the fiducial cosmology other than ``validation`` and ``test``
    merge : number of neighbouring bins to take together

    Raises
    ------
    CNNLensError
        for a set whose patches gave R or N
    """
    if set_name in ("validation", "test"):
        raise CNNLensError(
            f"set '{set_name}' gave the calibration; look at patches that did not, as in "
            "--on survey-fiducial"
        )
    spectra = spectra_of(config)
    validation, test = merged_bandpowers(config, network_hash, merge)
    calibration = calibrate(validation, test)
    seen = read_bandpowers(config, network_hash, set_name)
    auto, truth = (spectra.merge(v, merge) for v in (seen.auto, seen.truth))
    each = calibration.debias(auto) - truth
    noise = test.auto / calibration.response**2 - test.truth
    covariance = mean_covariance(each) + mean_covariance(noise)
    mean = each.mean(0)
    chi2 = float(mean @ inverse_covariance(covariance) @ mean)
    return ResidualTable(
        spectra.merge(spectra.bins.centres, merge),
        truth.mean(0),
        mean,
        np.sqrt(np.diag(covariance)),
        len(each),
        chi2,
        float(chi2_pte(chi2, len(mean))),
    )


@dataclass(frozen=True)
class Recovered:
    """Maximum-likelihood ω_c of disjoint surveys cut from simulated skies.

    ``truth``; ``estimates`` (n_surveys,); ``shared_error``: 1σ of what all of them share, the
    Monte-Carlo errors of N and of the derivatives; ``at_edge``: how many ended at the end of the
    table
    """

    truth: float
    patches_each: int
    estimates: np.ndarray
    shared_error: float
    at_edge: int

    @property
    def mean(self) -> float:
        return float(self.estimates.mean())

    @property
    def scatter(self) -> float:
        return float(self.estimates.std(ddof=1))

    @property
    def error(self) -> float:
        """Standard error of the mean, the shared error included."""
        return float(np.hypot(standard_error(self.estimates), self.shared_error))


@dataclass(frozen=True)
class PointsTable:
    """What the model of the noise debias leaves at other cosmologies, as a survey's ω_c would see
    it.

    ``changes`` of the fiducial cosmology; ``shift`` and ``shift_error`` of ω_c in σ of a survey of
    ``n_survey`` patches, by point, for the first order alone too; ``chi2`` and ``pte`` of each
    point's residual bandpowers; ``mean_pte`` of their mean over the points
    """

    changes: list[dict[str, float]]
    n_survey: int
    n_patches: int
    n_bins: int
    shift: np.ndarray
    shift_error: np.ndarray
    shift_linear: np.ndarray
    chi2: np.ndarray
    pte: np.ndarray
    mean_chi2: float
    mean_pte: float


def points_table(config: Config, network_hash: str, group: str) -> PointsTable:
    """Bias of ω_c at a group of cosmologies, from skies that share phases with fiducial ones.

    The survey is that of the configuration's first mock survey's release.
    """
    release = make_release(config, network_hash, config.first_survey)
    first = read_derivatives(config, network_hash, release.response)
    both = [
        check_points(config, network_hash, release.response, first, group, second_order)
        for second_order in (True, False)
    ]
    checks, linear = both
    table = Omch2Likelihood(config, BandpowerLikelihood(release))
    slope = table.slope(config.cosmology.omch2)
    weighted = inverse_covariance(release.covariance) @ slope
    information = slope @ weighted
    # Shift of ω_c over its σ: (F⁻¹ s·C⁻¹ r) √F.
    gain = weighted / np.sqrt(information)
    n = len(checks[0].found)

    def judge(residual, covariance):
        t2 = float(residual @ inverse_covariance(covariance) @ residual)
        return t2, float(hotelling_pte(t2, n, len(residual)))

    judged = [judge(c.residual, c.covariance) for c in checks]
    mean = np.mean([c.residual for c in checks], axis=0)
    scatter = mean_covariance(np.mean([c.found for c in checks], axis=0))
    model = np.mean([c.model_covariance for c in checks], axis=0)
    mean_chi2, mean_pte = judge(mean, scatter + model)
    return PointsTable(
        [c.change for c in checks],
        release.n_patches,
        n,
        release.n_bins,
        np.array([gain @ c.residual for c in checks]),
        np.array([np.sqrt(gain @ c.covariance @ gain) for c in checks]),
        np.array([gain @ c.residual for c in linear]),
        np.array([t2 for t2, _ in judged]),
        np.array([pte for _, pte in judged]),
        mean_chi2,
        mean_pte,
    )


class Omch2Likelihood:
    """χ² of ω_c alone for many data vectors: the model tabulated with CAMB and splined.

    Parameters
    ----------
    config : for the theory settings; its spectra are kept as products
    likelihood : of the release whose calibration is used
    """

    def __init__(self, config: Config, likelihood: BandpowerLikelihood):
        table = []
        for omch2 in OMCH2_NODES:
            theory = spectra_for(config, config.cosmology.vary(omch2=float(round(omch2, 6))))
            table.append(likelihood.model(theory.kk, theory.ee))
        self._model = CubicSpline(OMCH2_NODES, np.array(table))
        self._grid = np.linspace(OMCH2_NODES[0], OMCH2_NODES[-1], 4001)
        self._mu = self._model(self._grid)

    def model(self, omch2):
        """µ_b at ω_c, (..., n_bins)."""
        return self._model(omch2)

    def slope(self, omch2: float) -> np.ndarray:
        """∂µ_b/∂ω_c, (n_bins,)."""
        return self._model(omch2, 1)

    def sigma(self, omch2: float, covariance: np.ndarray) -> float:
        """Fisher error of ω_c for data of this covariance."""
        slope = self.slope(omch2)
        return float(1.0 / np.sqrt(slope @ inverse_covariance(covariance) @ slope))

    def shift_error(self, omch2: float, covariance: np.ndarray, shared: np.ndarray) -> float:
        """1σ of ω_c that an error of the data with covariance ``shared`` causes."""
        inverse = inverse_covariance(covariance)
        slope = self.slope(omch2)
        gain = inverse @ slope / (slope @ inverse @ slope)
        return float(np.sqrt(gain @ shared @ gain))

    def posterior(
        self, data: np.ndarray, covariance: np.ndarray, grid: np.ndarray, scale: float = 1.0
    ) -> np.ndarray:
        """exp[−scale (χ² − min χ²)/2] of each data vector (n, n_bins) on a grid of ω_c,
        (n, n_grid)."""
        inverse = scale * inverse_covariance(covariance)
        mu = self._model(grid)
        projected = mu @ inverse
        chi2 = np.einsum("gb,gb->g", projected, mu) - 2.0 * data @ projected.T
        return np.exp(-0.5 * (chi2 - chi2.min(1, keepdims=True)))

    def maximum(self, data: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, int]:
        """Best ω_c of each data vector (n, n_bins), and how many ended at the table's edge."""
        inverse = inverse_covariance(covariance)
        best, at_edge = np.empty(len(data)), 0
        projected = self._mu @ inverse
        constant = np.einsum("gb,gb->g", projected, self._mu)
        for i, d in enumerate(data):
            chi2 = constant - 2.0 * projected @ d
            k = int(np.argmin(chi2))
            if k in (0, len(self._grid) - 1):
                at_edge += 1
                best[i] = self._grid[k]
                continue
            a, b, c = chi2[k - 1 : k + 2]
            best[i] = self._grid[k] + 0.5 * (a - c) / (a - 2 * b + c) * (
                self._grid[1] - self._grid[0]
            )
        return best, at_edge


def recovered_omch2(
    config: Config,
    network_hash: str,
    release: Release,
    survey: str,
    patches_each: int = 1,
    noise_debias: str = "quadratic",
) -> Recovered:
    """Maximum-likelihood ω_c of every disjoint group of patches of a survey's skies."""
    calibration, _ = calibration_of(config, network_hash)
    data = calibration.debias(read_bandpowers(config, network_hash, f"survey-{survey}").auto)
    if len(data) < 2 * patches_each:
        raise CNNLensError(
            f"survey '{survey}' has {len(data)} patches: too few for two groups of "
            f"{patches_each}; simulate more of its skies or make the groups smaller"
        )
    groups = data[: len(data) // patches_each * patches_each]
    groups = groups.reshape(-1, patches_each, data.shape[1]).mean(1)
    table = Omch2Likelihood(config, BandpowerLikelihood(release, noise_debias))
    shared = release.noise_covariance + release.derivative_covariance
    covariance = release.patch_covariance / patches_each + shared
    estimates, at_edge = table.maximum(groups, covariance)
    truth = config.surveys[survey].omch2
    shared_error = table.shift_error(truth, covariance, shared)
    return Recovered(truth, patches_each, estimates, shared_error, at_edge)


def null_significance(
    config: Config, network_hash: str, release: Release, survey: str
) -> tuple[np.ndarray, np.ndarray]:
    """χ² and significance in σ of each patch against the fiducial cosmology (paper eq. 16).

    Returns
    -------
    χ² and σ, each (n_patches,); the covariance is that of one patch
    """
    calibration, test = calibration_of(config, network_hash)
    data = calibration.debias(read_bandpowers(config, network_hash, f"survey-{survey}").auto)
    residual = data - calibration.debias(test.auto).mean(0)
    inverse = inverse_covariance(release.patch_covariance)
    chi2 = np.einsum("nb,bc,nc->n", residual, inverse, residual)
    return chi2, pte_to_sigma(chi2_pte(chi2, release.n_bins))
