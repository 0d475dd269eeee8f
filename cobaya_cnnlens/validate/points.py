"""Test skies made again at other cosmologies: is the noise debias where the model puts it?

A sky at another cosmology with the phases and the noise of a test sky differs from it by the
cosmology alone, so that the scatter of the patches cancels in the difference; the change of its own
⟨κκ*⟩ is subtracted too. What is left is the change of the noise debias, which the derivatives,
measured on a sky that shares nothing with these, are to predict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate import bandpowers, curvature, debias, derivatives, power
from ..calibrate.assemble import make_release
from ..calibrate.bandpowers import measurement_recipe
from ..calibrate.covariance import mean_covariance
from ..calibrate.derivatives import Bench, NoiseDerivatives
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.statistics import hotelling_pte, inverse_covariance
from ..pipeline import skies
from ..pipeline.run import Run
from ..simulate.tiling import evenly
from .omch2 import Omch2Likelihood

KIND = "points"
SET = "test"
# Parameters that a survey's lensing tells together, and relative steps of their derivatives.
JOINT = {"omch2": 0.02, "As": 0.02, "H0": 0.02}
ALGORITHM = 2


def path(run: Run, change: dict[str, float], index: int) -> Path:
    """Where the bandpowers of a test sky made again at another cosmology lie."""
    name = "_".join(f"{key}={value:g}" for key, value in sorted(change.items()))
    return run.config.products / "points" / f"sky_{index:04d}" / f"{name}.h5"


def recipe(run: Run, change: dict[str, float], index: int) -> dict:
    """What determines the bandpowers of a test sky made again at another cosmology."""
    cosmology = run.config.cosmology.vary(**change)
    return {
        "sky": {**skies.recipe(run, SET, index), **skies.spectra_recipe(run, cosmology)},
        **measurement_recipe(run),
        "point_algorithm": ALGORITHM,
        **({"patches": n} if (n := run.config.points.patches) is not None else {}),
    }


def measure(run: Run, index: int, nthreads: int = 0) -> None:
    """Make a test sky again at every point that has not been measured, and keep its bandpowers."""
    run.config.check_index(SET, index)
    every = [change for group in run.config.points.at.values() for change in group]
    todo = [
        change
        for change in every
        if not products.exists(path(run, change, index), KIND, recipe(run, change, index))
    ]
    for change in tqdm(todo, desc=f"points/{index}", unit="sky", disable=not todo):
        rows = evenly(run.n_patches, run.config.points.patches)
        cosmology = run.config.cosmology.vary(**change)
        bench = Bench(run, index, nthreads, cosmology, SET, rows=rows)
        where, wanted = path(run, change, index), recipe(run, change, index)
        own = power.power_of(run)(*bench.observed())
        products.write_product(where, KIND, wanted, bench.unperturbed() | {"power": own})


def read(
    run: Run, change: dict[str, float], indices: Iterable[int], *names: str
) -> list[np.ndarray]:
    """Of the patches of test skies at one point, by name: "auto" ⟨κ̂κ̂*⟩ or "truth" ⟨κκ*⟩,
    (n_patches, n_bins), or "power" of the patches themselves, (n_patches, n_power).

    Raises
    ------
    products.ProductError
        if it has not been measured, or was with another network or configuration
    """
    parts = []
    for index in indices:
        where, wanted = path(run, change, index), recipe(run, change, index)
        with products.open_product(where, KIND, wanted, run.config.shipped) as product:
            parts.append([product.array(name) for name in names])
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@dataclass(frozen=True)
class PointCheck:
    """Change of the noise debias at one cosmology.

    ``found`` by patch, (n_patches, n_bins); ``predicted`` (n_bins,) and its Monte-Carlo covariance
    from the derivatives' patches, (n_bins, n_bins)
    """

    change: dict[str, float]
    found: np.ndarray
    predicted: np.ndarray
    model_covariance: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """Mean of found − predicted, (n_bins,)."""
        return self.found.mean(0) - self.predicted

    @property
    def covariance(self) -> np.ndarray:
        """Of ``residual``, (n_bins, n_bins)."""
        return mean_covariance(self.found) + self.model_covariance


def check_points(
    run: Run,
    response: np.ndarray,
    first: NoiseDerivatives,
    group: str,
    second_order: bool = True,
    coefficients: np.ndarray | None = None,
) -> list[PointCheck]:
    """Changes of the noise debias at a group's points beside what the derivatives predict.

    Parameters
    ----------
    coefficients : of the patches' own power, for the noise debias from the data; None for that
        from theory

    Raises
    ------
    products.ProductError
        if a point has not been measured, or was with another network or configuration
    """
    shifted = curvature.shifted_noise(run, response)
    if coefficients is not None:
        first, shifted = debias.corrected(run, first, shifted, coefficients)
    curved = curvature.curvature_of(run, first, shifted)
    along = np.concatenate([curved.kk_direction, curved.ee_direction])
    bands = np.concatenate([first.kk.patches, first.ee.patches], axis=2)
    indices = range(run.config.points.skies)
    patches = run.config.points.patches
    still = bandpowers.read(run, SET, indices, patches)
    if coefficients is not None:
        still_power = power.read(run, SET, indices, patches)["power"]
    checks = []
    for change in run.config.points.at[group]:
        cosmology = run.config.cosmology.vary(**change)
        changes = curvature.all_band_changes(run, first, cosmology)
        by_patch = bands @ changes
        if second_order:
            by_patch = by_patch + curved.patches * (changes @ along) ** 2
        auto, truth = read(run, change, indices, "auto", "truth")
        found = (auto - still.auto) / response**2 - (truth - still.truth)
        if coefficients is not None:
            (own,) = read(run, change, indices, "power")
            found = found - (own - still_power) @ coefficients.T
        checks.append(PointCheck(change, found, by_patch.mean(0), mean_covariance(by_patch)))
    return checks


@dataclass(frozen=True)
class PointsTable:
    """What the model of the noise debias leaves at other cosmologies, as a survey's ω_c would see
    it.

    ``changes`` of the fiducial cosmology; ``shift`` and ``shift_error`` of ω_c in σ of a survey of
    ``n_survey`` patches, by point, for the first order alone too; ``joint`` those of the parameters
    of :data:`JOINT` together, (n_points, 3), and their errors; ``chi2`` and ``pte`` of each point's
    residual bandpowers; ``mean_pte`` of their mean over the points
    """

    changes: list[dict[str, float]]
    n_survey: int
    n_patches: int
    n_bins: int
    shift: np.ndarray
    shift_error: np.ndarray
    shift_linear: np.ndarray
    joint: np.ndarray
    joint_error: np.ndarray
    chi2: np.ndarray
    pte: np.ndarray
    mean_chi2: float
    mean_pte: float


def _joint_gain(run: Run, likelihood: BandpowerLikelihood) -> np.ndarray:
    """Shift of the parameters of :data:`JOINT`, in σ of each with the others free, by residual
    bandpowers: F⁻¹ S C⁻¹ r over √(F⁻¹)_ii, (3, n_bins)."""
    fiducial = run.config.cosmology
    slopes = []
    for name, step in JOINT.items():
        both = []
        for sign in (1, -1):
            value = getattr(fiducial, name) * (1.0 + sign * step)
            theory = run.spectra(fiducial.vary(**{name: value}))
            both.append(likelihood.model(theory.kk, theory.ee))
        slopes.append((both[0] - both[1]) / (2.0 * step))
    slopes = np.array(slopes)
    weighted = slopes @ inverse_covariance(likelihood.covariance)
    inverse = np.linalg.inv(weighted @ slopes.T)
    return inverse @ weighted / np.sqrt(np.diag(inverse))[:, None]


def points_table(run: Run, group: str) -> PointsTable:
    """Bias of ω_c at a group of cosmologies, from skies that share phases with fiducial ones.

    The survey is that of the configuration's first mock survey's release.
    """
    made = make_release(run, run.config.first_survey)
    likelihood = BandpowerLikelihood(made)
    release = likelihood.release
    by_data = likelihood.noise_debias == "data"
    coefficients = made.data_debias.coefficients if by_data else None
    first = derivatives.read(run, release.response)
    both = [
        check_points(run, release.response, first, group, second_order, coefficients)
        for second_order in (True, False)
    ]
    checks, linear = both
    table = Omch2Likelihood(run, likelihood)
    slope = table.slope(run.config.cosmology.omch2)
    weighted = inverse_covariance(release.covariance) @ slope
    information = slope @ weighted
    # Shift of ω_c over its σ: (F⁻¹ s·C⁻¹ r) √F.
    gain = weighted / np.sqrt(information)
    together = _joint_gain(run, likelihood)
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
        np.array([together @ c.residual for c in checks]),
        np.array([np.sqrt(np.diag(together @ c.covariance @ together.T)) for c in checks]),
        np.array([t2 for t2, _ in judged]),
        np.array([pte for _, pte in judged]),
        mean_chi2,
        mean_pte,
    )
