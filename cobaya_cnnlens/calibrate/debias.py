"""The noise debias from a survey's own maps.

N_b moves with the power of E, with the gain and with the noise of the maps, and a survey measures
all of these. As realisation-dependent debiasing does for quadratic estimators (Namikawa et al.
2013, arXiv:1209.0091), part of the data goes into the debias: with p̂ the power of E and B of the
same patches (:mod:`.power`),

    d'_b = d_b − Σ_i G_bi (p̂_i − p_i^fid).

Let x be relative changes of the power in the bands of unlensed E, and of the noise, with
independent priors of widths S; A = ∂d/∂x and J = ∂p̂/∂x from common random numbers. The best
linear estimate of d's change with x from p̂, whose scatter over n patches is C_pp/n, is

    G = (A S² Jᵀ + C_dp/n) (J S² Jᵀ + C_pp/n)⁻¹.

C_dp takes with it what of d's scatter the patches' own power tells. d' is unbiased for any G. With
few simulated patches for each number of d and p̂ a G of sample covariances fits their noise: d' of
these patches scatters less, and that of others more, than it should. With fewer than ``FEW``
correlations are shrunk; with fewer than ``MANY`` the scatter of each patch's d' is that with a G of
other patches, and beyond that the difference is below 2% of σ. What
G leaves of A, A − G J, is zero within a fraction of its Monte-Carlo error, and is left out of the
model: its error is not, and the model keeps no part of theory's C^EE. −G ∂p̂/∂ ln C^κκ stays in it.
Second order (:mod:`.second_order`, or along ω_c in C^κκ alone without ``points.fit``), nuisances
and covariances are measured of d' as they are of d.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..likelihood.document import NUISANCES
from ..likelihood.release import DataDebias
from ..pipeline.run import Run
from ..theory.camb import Cosmology
from . import curvature, nuisances, power, second_order
from .bandpowers import PatchBandpowers
from .covariance import mean_covariance, sample_covariance, shrunk_covariance
from .curvature import Curvature
from .derivatives import SET, BandDerivatives, NoiseDerivatives
from .response import Calibration, standard_error
from .second_order import SecondOrder

# Prior widths S: of the power in a band of E, and of the noise rms, relative.
E_WIDTH, NOISE_WIDTH = 1.0, 0.05
# Patches for each number, below which C is shrunk, and below which the scatter is that of patches
# left out of G; and the parts of the patches that are left out in turn.
FEW, MANY, FOLDS = 20, 50, 20


@dataclass(frozen=True)
class Measured:
    """What was measured of d = κ̂'s debiased bandpowers, by patch: ``first`` and ``shifted`` of the
    derivatives' patches, ``nuisances`` first and second order."""

    first: NoiseDerivatives
    shifted: np.ndarray
    nuisances: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """G, and of d' = d − G p̂ what :class:`Measured` holds of d.

    Attributes
    ----------
    gain : G, (n_bins, n_power)
    bands : of d'
    of_power : answers of p̂
    of_test : p̂ of the test patches, (n_patches, n_power)
    second : second order of d', over the prior or along ω_c
    over_fitted : of d' of a test patch with G, less that with the G of other patches,
        (n_patches, n_bins); zero of many patches
    """

    gain: np.ndarray
    bands: NoiseDerivatives
    of_power: Measured
    of_test: np.ndarray
    second: SecondOrder | Curvature
    over_fitted: np.ndarray

    def changes_at(self, run: Run, cosmology: Cosmology) -> tuple[np.ndarray, ...]:
        """The models' changes to a cosmology by patch, (n_patches, …), of sets of patches that
        share nothing: the first order of d' and p̂ after each other, for d' the mean of two
        measurements if there is a second order over the prior; and that of d'."""
        change = curvature.all_band_changes(run, self.bands, cosmology)
        kk, ee = np.split(change, [len(self.bands.kk.edges) - 1])
        first, power = (
            of.kk.patches @ kk + of.ee.patches @ ee for of in (self.bands, self.of_power.first)
        )
        if isinstance(self.second, Curvature):
            along = kk @ self.second.kk_direction
            return (np.hstack([first + self.second.patches * along**2, power]),)
        return np.hstack([0.5 * first, power]), self.second.change_at(power.mean(0), kk)

    def error_at(self, run: Run, cosmology: Cosmology) -> np.ndarray:
        """Monte-Carlo covariance at a cosmology of the models of d' and of p, after each other,
        (n_bins + n_power, n_bins + n_power)."""
        both, *of_d = self.changes_at(run, cosmology)
        covariance = mean_covariance(both)
        for by_patch in of_d:
            n_bins = by_patch.shape[1]
            covariance[:n_bins, :n_bins] += mean_covariance(by_patch)
        return covariance


def fit(
    run: Run,
    calibration: Calibration,
    test: PatchBandpowers,
    of_d: Measured,
    n_patches: int,
    of_power: tuple[Measured, np.ndarray] | None = None,
    groups: np.ndarray | None = None,
) -> Fitted:
    """G of surveys of ``n_patches``, and what it leaves.

    Parameters
    ----------
    of_power : of p̂ what ``of_d`` holds of d, and p̂ of the test patches, (n_patches, n_power); the
        run's products by default
    groups : of the test patches, (n_patches,), see :func:`fitted`

    Raises
    ------
    products.ProductError
        if the power of a set, or a point of ``points.fit``, has not been measured
    """
    if of_power is None:
        of_test = power.read(run, "test", range(run.config.skies.test))["power"]
        of_power = power_answers(run), of_test
    answers, of_test = of_power
    fiducial = of_test.mean(0)
    debiased = calibration.debias(test.auto)
    n_bins, noise = debiased.shape[1], NUISANCES.index("noise")

    def with_noise(of: Measured) -> np.ndarray:
        return np.column_stack([of.first.ee.values, of.nuisances[0][..., noise].mean(0)])

    # Relative powers: p̂ spans six orders of magnitude.
    relative = with_noise(answers) / fiducial[:, None]
    widths = np.full(relative.shape[1], E_WIDTH)
    widths[-1] = NOISE_WIDTH
    both = np.hstack([debiased, of_test / fiducial - 1.0])
    gain, over_fitted = fitted(with_noise(of_d), relative, widths, both, n_patches, groups)
    gain = gain / fiducial
    bands, shifted = _less_power(of_d.first, of_d.shifted, answers, gain)
    second: SecondOrder | Curvature
    if run.config.points.fit is None:
        second = _curved(run, bands, shifted)
    else:
        of_noise = (answers.nuisances[0][..., noise].mean(0) / fiducial)[:, None]
        weight = np.linalg.inv(_scatter(both)[n_bins:, n_bins:])

        def amplitudes(directions: np.ndarray) -> np.ndarray:
            """Generalised least squares of the amplitudes of changes of C^EE, the noise free."""
            changes = answers.first.ee.values @ directions.T / fiducial[:, None]
            seen = np.hstack([changes, of_noise])
            return np.linalg.solve(seen.T @ weight @ seen, seen.T @ weight)[:-1] / fiducial

        second = second_order.fit(run, calibration.response, bands, gain, amplitudes)
    return Fitted(gain, bands, answers, of_test, second, over_fitted)


def data_debias(
    run: Run, calibration: Calibration, test: PatchBandpowers, of_d: Measured, found: Fitted
) -> DataDebias:
    """The debias from the data that was fitted to them; its ``power`` is the fiducial's."""
    gain, bands, second = found.gain, found.bands, found.second
    of_test, fiducial = found.of_test, found.of_test.mean(0)
    second_order_arrays: dict[str, np.ndarray] = {}
    if isinstance(second, Curvature):
        by_patch = second.patches
    else:
        n_v = second.n_v
        by_patch = second.product(n_v, n_v)
        # One measurement of the first order says d' moves by K δ, the other by that and l w: with
        # ½ l v taken off the data, the mean of both is K δ + ½ l u.
        *of_v, of_u = 0.5 * second.linear.T
        gain = gain + np.transpose(of_v) @ second.ee_directions.T
        kk = bands.kk.patches + of_u[:, None] * second.kk_direction
        bands = replace(bands, kk=replace(bands.kk, patches=kk))
        squares = [second.product(i, j).mean(0) for i, j in second_order.pairs(n_v)]
        directions = second.ee_directions
        second_order_arrays = {
            "ee_directions": directions,
            "amplitude_covariance": directions.T @ sample_covariance(of_test) @ directions,
            "second": np.transpose(squares),
            "cross": np.transpose([second.product(i, n_v).mean(0) for i in range(n_v)]),
        }
    of_patches = calibration.debias(test.auto) - (of_test - fiducial) @ gain.T - found.over_fitted
    by_nuisance = [
        d - np.einsum("bi,pix->pbx", gain, p)
        for d, p in zip(of_d.nuisances, found.of_power.nuisances, strict=True)
    ]
    measured = power.power_of(run)
    shifted = run.config.cosmology.vary(omch2=run.config.shifted_omch2()[1])
    n_bins = of_patches.shape[1]
    # Of d' and p̂ after each other: one patch's scatter, the error of what is taken for fiducial,
    # that of the model's change.
    scatter = sample_covariance(np.hstack([of_patches, of_test]))
    fiducial_error = mean_covariance(np.hstack([of_patches - test.truth, of_test]))
    model_error = found.error_at(run, shifted)
    of_bins = np.s_[:n_bins, :n_bins]
    both, of_both = np.s_[:n_bins, n_bins:], np.s_[n_bins:, n_bins:]
    answers = found.of_power
    return DataDebias(
        e_edges=measured.e_edges,
        b_edges=measured.b_edges,
        power=fiducial,
        fiducial_power=fiducial,
        coefficients=gain,
        kk_direction=second.kk_direction,
        patch_covariance=scatter[of_bins],
        noise_covariance=fiducial_error[of_bins],
        derivative_covariance=model_error[of_bins],
        kk_derivatives=bands.kk.values,
        kk_derivative_errors=bands.kk.errors,
        ee_derivatives=bands.ee.values,
        ee_derivative_errors=bands.ee.errors,
        curvature=by_patch.mean(0),
        curvature_errors=standard_error(by_patch),
        nuisance_first=by_nuisance[0].mean(0),
        nuisance_first_errors=standard_error(by_nuisance[0]),
        nuisance_second=by_nuisance[1].mean(0),
        nuisance_second_errors=standard_error(by_nuisance[1]),
        power_kk_derivatives=answers.first.kk.values,
        power_ee_derivatives=answers.first.ee.values,
        power_nuisance_first=answers.nuisances[0].mean(0),
        power_nuisance_second=answers.nuisances[1].mean(0),
        power_covariance=scatter[of_both],
        power_cross_covariance=scatter[both],
        power_error_covariance=(fiducial_error + model_error)[of_both],
        power_error_cross=(fiducial_error + model_error)[both],
        **second_order_arrays,
    )


def fitted(
    of_d: np.ndarray,
    of_power: np.ndarray,
    widths: np.ndarray,
    both: np.ndarray,
    n_patches: int,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """G, (n_bins, n_power), and how much of the scatter of each simulated patch's d' it fits beyond
    what it would of another's, ``over_fitted`` of :class:`Fitted`.

    Parameters
    ----------
    of_d, of_power, widths : of :func:`coefficients`
    both : d and p̂ of simulated patches side by side, (n_sim, n_bins + n_power), p̂ of mean zero
    n_patches : of the survey
    groups : number of each simulated patch's group, (n_sim,), which is left out as a whole, as
        patches that were taken about a common mean must be; each by itself by default
    """
    n_sim, n_bins = len(both), len(of_d)

    def estimate(rows: np.ndarray) -> np.ndarray:
        scatter = _scatter(rows) / n_patches
        cross, within = scatter[:n_bins, n_bins:], scatter[n_bins:, n_bins:]
        return coefficients(of_d, of_power, widths, cross, within)

    gain, over_fitted = estimate(both), np.zeros((n_sim, n_bins))
    if _fewer(both, MANY):
        group = np.arange(n_sim) if groups is None else np.unique(groups, return_inverse=True)[1]
        fold = group % min(FOLDS, group.max() + 1)
        for number in range(fold.max() + 1):
            out = fold == number
            over_fitted[out] = both[out, n_bins:] @ (estimate(both[~out]) - gain).T
    return gain, over_fitted


def _fewer(samples: np.ndarray, than: int) -> bool:
    """Fewer for each number than that."""
    return len(samples) < than * samples.shape[1]


def _scatter(samples: np.ndarray) -> np.ndarray:
    """Covariance of one patch whose inverse is no noise."""
    return (shrunk_covariance if _fewer(samples, FEW) else sample_covariance)(samples)


def _curved(run: Run, bands: NoiseDerivatives, shifted: np.ndarray) -> curvature.Curvature:
    """Second order of d' along ω_c, whose amplitude is that of C^κκ alone and whose first order is
    the model's, without a part of C^EE."""
    without = bands.ee.patches - bands.ee.values
    modelled = replace(bands, ee=replace(bands.ee, patches=without))
    return curvature.curvature_of(run, modelled, shifted, by_kk=True)


def coefficients(
    of_d: np.ndarray,
    of_power: np.ndarray,
    widths: np.ndarray,
    cross: np.ndarray,
    scatter: np.ndarray,
) -> np.ndarray:
    """G, (n_bins, n_power).

    Parameters
    ----------
    of_d : A = ∂d/∂x, (n_bins, n_x)
    of_power : J = ∂p̂/∂x, (n_power, n_x)
    widths : S, (n_x,)
    cross, scatter : C_dp/n, (n_bins, n_power), and C_pp/n, (n_power, n_power)
    """
    spread = of_power * widths
    total = spread @ spread.T + scatter
    return np.linalg.solve(total, (of_d * widths @ spread.T + cross).T).T


def power_answers(run: Run) -> Measured:
    """Of p̂, what :class:`Measured` holds of d; its true power is zero."""
    config = run.config
    found = power.read(run, SET, range(config.skies.derivatives))
    indices = range(config.nuisances.skies)
    centre = power.read(run, nuisances.SET, indices, config.nuisances.patches)["power"]
    seen = power.read(run, "nuisances", indices)
    both = np.stack([seen[name] for name in NUISANCES], axis=-1)
    settings = config.derivatives
    kk, ee = (
        BandDerivatives(np.array(edges), found[name].transpose(1, 2, 0))
        for name, edges in (("kk", settings.kk_edges), ("ee", settings.ee_edges))
    )
    return Measured(
        NoiseDerivatives(kk, ee, found["power"]),
        found["shifted"],
        nuisances.orders(run, centre, both),
    )


def _less_power(first, shifted, of_power, gain):
    def bands(kind: str) -> BandDerivatives:
        d, p = getattr(first, kind), getattr(of_power.first, kind)
        return BandDerivatives(d.edges, d.patches - np.einsum("bi,pij->pbj", gain, p.patches))

    centre = first.centre - of_power.first.centre @ gain.T
    moved = NoiseDerivatives(bands("kk"), bands("ee"), centre)
    return moved, shifted - of_power.shifted @ gain.T
