"""The scatter of patches over the covariance that a release claims for them."""

from dataclasses import replace

import numpy as np
import pytest

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.validate.patch_scatter import PatchScatter, debiased_patches, patch_scatter

AMPLITUDES = (0.7, 0.85, 1.0, 1.15, 1.3)
N_PATCHES = 1000


@pytest.fixture(scope="module")
def skies():
    """Patches of skies whose E power and C^κκ differ, whose d' scatters with the power of κ̂."""
    release = read_release("refined_fiducial")
    generator = np.random.default_rng(1)
    root = np.linalg.cholesky(release.patch_covariance)
    fiducial = release.windows @ release.fiducial_kk[: release.windows.shape[1]]
    surveys, models = [], []
    for factor in AMPLITUDES:
        survey = replace(release, power=(0.7 + 0.3 / factor) * release.fiducial_power)
        model = BandpowerLikelihood(survey).model(factor * release.fiducial_kk)
        total = model + release.noise + survey.correction
        scale = total / (fiducial + release.noise)
        draws = generator.standard_normal((N_PATCHES, len(root))) @ root.T
        power = np.tile(survey.power, (N_PATCHES, 1))
        power = power * (1.0 + 0.05 * generator.standard_normal(power.shape))
        bandpowers = model + scale * draws + survey.correction
        bandpowers = bandpowers + (power - survey.power) @ survey.correction_slope.T
        auto = (bandpowers + release.noise) * release.response**2
        survey = replace(survey, bandpowers=bandpowers.mean(0))
        surveys.append((BandpowerLikelihood(survey), debiased_patches(survey, auto, power)))
        models.append(model)
    return surveys, np.array(models)


def test_patches_of_the_total_power_scatter_as_claimed(skies):
    scatter = patch_scatter(*skies)
    assert np.ptp(scatter.ln_total) > 0.2
    values, errors = scatter.fit()
    assert errors.max() < 0.1
    assert np.all(np.abs(values - [1.0, 0.0]) < 4.0 * errors + 0.005)
    assert f"{values[0]:.3f} ± " in scatter.table()


def test_a_scatter_that_ignores_the_cosmology_is_seen(skies, monkeypatch):
    ln_total = patch_scatter(*skies).ln_total
    monkeypatch.setattr(BandpowerLikelihood, "scatter", lambda self, model: np.ones(len(model)))
    ratio = patch_scatter(*skies).ratio
    assert np.polyfit(ln_total, ratio, 1)[0] > 0.5


def test_a_line_is_fitted_with_the_patches_as_weights():
    x = np.array([-0.2, 0.0, 0.1, 0.4])
    sizes = np.array([100, 50, 200, 10])
    values, errors = PatchScatter(x, 1.0 + 0.5 * (x - np.average(x, weights=sizes)), sizes).fit()
    np.testing.assert_allclose(values, [1.0, 0.5], rtol=1e-12)
    np.testing.assert_allclose(errors, 0.0, atol=1e-12)


def test_the_slope_of_the_correction_is_its_derivative():
    release = read_release("refined_fiducial")
    power = 1.1 * release.fiducial_power
    step = 1e-4 * release.fiducial_power
    up, down = (replace(release, power=power + sign * step).correction for sign in (1, -1))
    slope = replace(release, power=power).correction_slope
    np.testing.assert_allclose(slope @ (2.0 * step), up - down, rtol=1e-6)
