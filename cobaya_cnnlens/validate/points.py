"""Is the noise bias at other cosmologies where the model puts it?

The change of the noise bias of test skies made again (:mod:`..pipeline.cosmologies`) beside what
the model says, whose derivatives were measured on skies that share nothing with these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..calibrate.covariance import mean_covariance
from ..calibrate.response import Calibration
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.release import Release
from ..likelihood.statistics import hotelling_pte, inverse_covariance
from ..pipeline import cosmologies
from ..pipeline.assemble import bandpower_changes, fit_debias, make_release, with_data
from ..pipeline.cosmologies import Patches, Points
from ..pipeline.perturbations import bands_of
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..table import plus_minus, text_table
from ..theory.camb import Cosmology, Spectra
from .omch2 import Omch2Likelihood, at_the_tangent, fisher

# Parameters that are fitted together, and relative steps of their derivatives.
JOINT = {"omch2": 0.02, "As": 0.02, "H0": 0.02}


@dataclass(frozen=True)
class PointCheck:
    """Change of the noise bias at one cosmology.

    ``measured`` by patch, (n_patches, n_bins); ``predicted``, and without its second order
    ``linear``, (n_bins,); ``model_error`` the model's Monte-Carlo covariance, (n_bins, n_bins)
    """

    change: dict[str, float]
    measured: np.ndarray
    predicted: np.ndarray
    linear: np.ndarray
    model_error: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """Mean of measured − predicted, (n_bins,)."""
        return self.measured.mean(0) - self.predicted

    @property
    def covariance(self) -> np.ndarray:
        """Of ``residual``, (n_bins, n_bins)."""
        return mean_covariance(self.measured) + self.model_error


def check_points(run: Run, release: Release, group: str) -> list[PointCheck]:
    """Compare the changes of the noise bias at a group's points with what a release predicts.

    Parameters
    ----------
    run : a configuration, with its products and networks
    release : the release, with its calibration
    group : name of a group of cosmologies in ``points.at``

    Returns
    -------
    checks : one for each point

    Raises
    ------
    products.ProductError
        if a point has not been measured, or was with another network or configuration
    """
    model_error = _model_error(run, release)
    names = ("curvature", "debias_second", "debias_cross")
    flat = replace(release, **{name: np.zeros_like(getattr(release, name)) for name in names})
    checks = []
    for point in cosmologies.points_of(run, group):
        cosmology = run.config.cosmology.vary(**point.change)
        changed, fiducial = Points(run).read(point), Points(run).at_fiducial(point)
        measured = cosmologies.change_of_noise(changed, fiducial, release.response)
        if changed.power is not None and fiducial.power is not None:
            measured = measured - (changed.power - fiducial.power) @ release.debias_coefficients.T
        predicted, linear = (
            _noise(model, changed, run.spectra(cosmology)) - _noise(model, fiducial, run.spectra())
            for model in (release, flat)
        )
        checks.append(PointCheck(point.change, measured, predicted, linear, model_error(cosmology)))
    return checks


def _noise(release: Release, patches: Patches, theory: Spectra) -> np.ndarray:
    """What the model has beside the signal, and the second order of the debias from the power of
    these patches, (n_bins,)."""
    survey = with_data(release, patches.auto, patches.power)
    signal = release.windows @ theory.kk[: release.windows.shape[1]]
    likelihood = BandpowerLikelihood(survey)
    noise = likelihood.model(theory.kk, theory.ee) - signal
    second = survey.correction - survey.correction_of(survey.power)
    return noise + second - at_the_tangent(likelihood, survey)


def _model_error(run: Run, release: Release) -> Callable[[Cosmology], np.ndarray]:
    """The model's Monte-Carlo covariance as a function of the cosmology, (n_bins, n_bins)."""
    calibration = Calibration(
        release.response, release.response_error, release.noise, release.noise_error
    )
    test = Bandpowers(run).read(cosmologies.SET)
    changes = bandpower_changes(run, calibration)
    fitted = fit_debias(run, calibration, test, changes, release.n_patches)
    of_bandpowers = np.s_[: release.n_bins, : release.n_bins]
    return lambda cosmology: fitted.model_error(bands_of(run, run.spectra(cosmology)))[
        of_bandpowers
    ]


@dataclass(frozen=True)
class PointsTable:
    """Residuals of the model of the noise bias at other cosmologies, as shifts of parameters.

    Attributes
    ----------
    group : of cosmologies
    changes : of the fiducial cosmology, of each point
    n_survey : patches of the survey in whose σ the shifts are
    n_patches : behind each point
    n_bins : of the bandpowers
    shift, shift_error : of ω_c, all else fixed, (n_points,)
    model_error : the part of ``shift_error`` that is the model's, (n_points,)
    shift_linear : the shift without the second order of the model
    joint, joint_error : shifts of the parameters of :data:`JOINT` together, (n_points, 3)
    chi2, pte : of each point's residual bandpowers, (n_points,)
    """

    group: str
    changes: list[dict[str, float]]
    n_survey: int
    n_patches: int
    n_bins: int
    shift: np.ndarray
    shift_error: np.ndarray
    model_error: np.ndarray
    shift_linear: np.ndarray
    joint: np.ndarray
    joint_error: np.ndarray
    chi2: np.ndarray
    pte: np.ndarray

    def table(self) -> str:
        """As text: a line for each point, and χ² of their mean residual."""
        at = [", ".join(f"{key} {x:g}" for key, x in change.items()) for change in self.changes]
        joint = {
            f"{name}, all free": (">", plus_minus(shift, error, "+.2f"))
            for name, shift, error in zip(JOINT, self.joint.T, self.joint_error.T, strict=True)
        }
        rows = text_table(
            {
                "at": ("", at),
                "shift": (">", plus_minus(self.shift, self.shift_error, "+.3f")),
                "model's error": (".3f", self.model_error),
                "first order only": ("+.3f", self.shift_linear),
                f"chi2 of {self.n_bins}": (".1f", self.chi2),
                "PTE": (".3f", self.pte),
                **joint,
            },
            f"{self.group}: shift of omch2 in sigma of {self.n_survey} patches, from "
            f"{self.n_patches} patches that share phases and noise with fiducial ones",
        )
        return f"{rows}\n"


def _joint_slopes(run: Run, likelihood: BandpowerLikelihood) -> np.ndarray:
    """Change of the model by relative changes of the parameters of :data:`JOINT`, (3, n_bins)."""
    fiducial = run.config.cosmology
    slopes = []
    for name, step in JOINT.items():
        theories = (
            run.spectra(fiducial.vary(**{name: getattr(fiducial, name) * (1.0 + sign * step)}))
            for sign in (1, -1)
        )
        above, below = (likelihood.model(theory.kk, theory.ee) for theory in theories)
        slopes.append((above - below) / (2.0 * step))
    return np.array(slopes)


def points_table(run: Run, group: str) -> PointsTable:
    """Bias of ω_c at a group of cosmologies, from skies that share phases with fiducial ones.

    The survey is that of the configuration's first mock survey's release.

    Parameters
    ----------
    run : a configuration, with its products and networks
    group : name of a group of cosmologies in ``points.at``

    Returns
    -------
    table : biases of ω_c at the points
    """
    release = make_release(run, run.config.first_survey)
    likelihood = BandpowerLikelihood(release)
    covariance = likelihood.release.covariance
    checks = check_points(run, release, group)
    slope = Omch2Likelihood(run, likelihood).slope(run.config.cosmology.omch2)
    _, (gain,) = fisher(slope[None], covariance)
    _, joint_gain = fisher(_joint_slopes(run, likelihood), covariance)
    n = len(checks[0].measured)

    def judge(residual: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
        t2 = float(residual @ inverse_covariance(covariance) @ residual)
        return t2, float(hotelling_pte(t2, n, len(residual)))

    chi2, pte = np.transpose([judge(c.residual, c.covariance) for c in checks])
    return PointsTable(
        group=group,
        changes=[c.change for c in checks],
        n_survey=release.n_patches,
        n_patches=n,
        n_bins=release.n_bins,
        shift=np.array([gain @ c.residual for c in checks]),
        shift_error=np.array([np.sqrt(gain @ c.covariance @ gain) for c in checks]),
        model_error=np.sqrt([gain @ c.model_error @ gain for c in checks]),
        shift_linear=np.array([gain @ (c.measured.mean(0) - c.linear) for c in checks]),
        joint=np.array([joint_gain @ c.residual for c in checks]),
        joint_error=np.sqrt(
            [np.diagonal(joint_gain @ c.covariance @ joint_gain.T) for c in checks]
        ),
        chi2=chi2,
        pte=pte,
    )
