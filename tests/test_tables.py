"""Tables of measured numbers, from bandpowers whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.assemble import calibration_of
from cobaya_cnnlens.calibrate.measure import spectra_of
from cobaya_cnnlens.calibrate.windows import bandpower_windows
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.reconstruct.n0 import n0_iterated
from cobaya_cnnlens.report import tables
from cobaya_cnnlens.report.coverage import coverage_table
from cobaya_cnnlens.report.forecast import forecast
from cobaya_cnnlens.report.tables import compare, residual_table
from cobaya_cnnlens.report.text import (
    format_comparison,
    format_coverage,
    format_forecasts,
    format_residual,
)
from cobaya_cnnlens.simulate.stage import spectra_for

from .conftest import synthetic_release

HASH = "a" * 64
RESPONSE, NOISE = 0.5, 3.0


@pytest.fixture(autouse=True)
def curves_once(monkeypatch, curves):
    """The analytic curves of one instrument and cosmology are worked out once for all tests."""

    def remembered(L, spectra, *instrument_and_filter):
        key = (*L, *instrument_and_filter, spectra.kk.tobytes())
        if key not in curves:
            curves[key] = n0_iterated(L, spectra, *instrument_and_filter)
        return curves[key]

    monkeypatch.setattr(tables, "n0_iterated", remembered)


@pytest.fixture(scope="module")
def curves():
    return {}


def with_bandpowers(config, name, noise, seed, modes=200):
    """A configuration and the bandpowers of κ̂ = R(κ + n) on 600 patches per set, κ and n of power
    1 and ``noise``; of two configurations κ is the same, and half of n's amplitude² is."""
    config = config.model_copy(update={"name": name, "products": config.products / name})
    for k, set_name in enumerate(("validation", "test", "survey-fiducial")):
        sky, own = np.random.default_rng(k), np.random.default_rng([k, 10 + seed])
        shape = (600, modes, config.bandpowers.n_bins)
        kappa, common = sky.standard_normal((2, *shape))
        extra = np.sqrt(noise / 2) * (common + own.standard_normal(shape))
        estimate = RESPONSE * (kappa + extra)
        arrays = {"auto": estimate**2, "cross": kappa * estimate, "truth": kappa**2}
        products.write_product(
            config.bandpower_path(set_name, 0),
            "bandpowers",
            config.bandpower_recipe(set_name, 0, HASH),
            {name: values.mean(1) for name, values in arrays.items()},
        )
    return config


def measured_response(config):
    return calibration_of(config, HASH)[0].response


def test_comparison_of_networks_of_known_noise(small_config):
    """Ratio of N_L, its paired error and eq. 18's scatter against their closed forms."""
    modes = 200
    configs = [with_bandpowers(small_config, n, NOISE, i) for i, n in enumerate("abc")]
    configs.append(with_bandpowers(small_config, "d", 2 * NOISE, 3))
    table = compare(configs, [HASH] * 4)
    assert table.names == ("a", "b", "c", "d")
    assert (np.abs(table.relative[1] - 1.0) < 4 * table.relative_error[1]).all()
    assert (np.abs(table.relative[3] - 2.0) < 4 * table.relative_error[3]).all()
    np.testing.assert_array_equal(table.relative[0], 1.0)
    np.testing.assert_allclose(table.relative_error[0], 0.0, atol=1e-12)
    # κ̂κ̂ of two n correlated by one half: per mode ⟨Δ²⟩ is 4κ²⟨(n − n')²⟩ plus that of n² − n'²,
    # 4CN + 2·2N²(1 − 1/4). By way of R, of κ(n − n') with variance CN, times 2(C + N)/C.
    by_test = 4 * NOISE + 3 * NOISE**2
    by_validation = 4 * (1 + NOISE) ** 2 * NOISE
    expected = np.sqrt((by_test + by_validation) / (600 * modes)) / NOISE
    np.testing.assert_allclose(table.relative_error[1], expected, rtol=0.1)
    np.testing.assert_allclose(
        table.power,
        [[RESPONSE**2 * (1 + NOISE)] * 4] * 3 + [[RESPONSE**2 * (1 + 2 * NOISE)] * 4],
        rtol=0.02,
    )
    three = compare(configs[:3], [HASH] * 3)
    # Between members one patch's power scatters by half of Δ's variance.
    expected = np.sqrt((4 * NOISE + 3 * NOISE**2) / 2 / modes) / (1 + NOISE)
    # The mean of the sample standard deviation of three is √(π)/2 of σ.
    np.testing.assert_allclose(three.scatter, expected * np.sqrt(np.pi) / 2, rtol=0.05)
    text = format_comparison(three)
    assert "paired errors" in text
    assert "eq. 18" in text


def test_patches_that_differ_are_not_paired(small_config):
    first = with_bandpowers(small_config, "a", NOISE, 0)
    other = with_bandpowers(small_config.model_copy(update={"seed": 8}), "b", NOISE, 1)
    table = compare([first, other, first], [HASH] * 3)
    assert table.paired.tolist() == [True, False, True]
    assert table.scatter is None
    assert (table.relative_error[1] > 1.3 * table.relative_error[2]).all()
    assert "unpaired" in format_comparison(table)


def test_bins_must_be_the_same(small_config):
    wide = small_config.bandpowers.model_copy(update={"width": 300})
    other = small_config.model_copy(update={"name": "wide", "bandpowers": wide})
    with pytest.raises(CNNLensError, match="'test' and 'wide' differ in 'bandpowers'"):
        compare([small_config, other], [HASH] * 2)


def test_forecast_of_a_known_slope(small_config):
    """An estimator whose noise debias moves by some part of what the signal does finds 1 plus that
    part of a change when its debias is fixed; σ follows from the test patches' scatter."""
    below, above = (
        spectra_for(small_config, small_config.cosmology.vary(omch2=omch2)).kk
        for omch2 in small_config.shifted_omch2()
    )
    windows = bandpower_windows(spectra_of(small_config), small_config.sky.band_limit)
    signal = windows @ (above - below)[: windows.shape[1]]
    for i, extra in enumerate((0.0, 0.4, -0.2)):
        config = with_bandpowers(small_config, f"c{i}", NOISE, 0)
        truth = np.random.default_rng(0).random((2, 50, config.bandpowers.n_bins))
        half = np.array([-0.5, 0.5])[:, None, None] * extra * signal
        arrays = {"auto": (truth + half) * measured_response(config) ** 2, "truth": truth}
        recipe = config.curvature_recipe(0, HASH)
        products.write_product(config.curvature_path(0), "curvature", recipe, arrays)
        found = forecast(config, HASH)
        # CAMB's threads sum in any order: two runs of it differ by some 1e-9.
        assert found.recovered == pytest.approx(1.0 + extra, rel=1e-6)
        assert found.sigma == pytest.approx(found.sigma_fixed / (1.0 + extra), rel=1e-6)
    # Bins of 200 independent modes: Var(d) = 2(1 + N)²/200, no correlation.
    slope = signal / (2 * small_config.derivatives.omch2_step)
    expected = 1.0 / np.sqrt((slope**2).sum() / (2 * (1 + NOISE) ** 2 / 200))
    assert found.sigma_fixed == pytest.approx(expected, rel=0.1)
    assert found.sigma_fixed_error == pytest.approx(expected / np.sqrt(2 * 596), rel=0.1)
    assert "c2" in format_forecasts({"c2": found})


def test_coverage_of_a_survey_whose_answer_is_known(small_config, monkeypatch):
    """Gaussian bandpowers about the model itself: ranks are uniform, intervals hold the truth as
    often as they say, pulls have unit variance; with half the covariance none of it is true."""
    monkeypatch.setattr(tables, "OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14]))
    config = with_bandpowers(small_config, "c", NOISE, 0)
    config = config.model_copy(
        update={"coverage": config.coverage.model_copy(update={"skies": 100, "patches_each": 16})}
    )
    made_with = {"provenance": {"network_sha256": HASH}}
    release = synthetic_release(4, n_patches=16, n_sim=10**6, **made_with)
    kinds = ("patch_covariance", "noise_covariance", "derivative_covariance")
    release = replace(release, **{kind: getattr(release, kind) / 50 for kind in kinds})
    likelihood = BandpowerLikelihood(release)
    table = tables.Omch2Likelihood(config, likelihood)
    # Patches whose mean over 16 has the survey's whole covariance.
    root = np.linalg.cholesky(16 * release.covariance)
    generator = np.random.default_rng(0)
    for i in range(100):
        draws = generator.standard_normal((160, 4)) @ root.T
        data = table.model(config.coverage_cosmology(i).omch2) + draws
        auto = (data + release.noise) * release.response**2
        recipe = config.coverage_recipe(i, HASH)
        products.write_product(
            config.coverage_path(i), "coverage", recipe, {"auto": auto, "truth": auto}
        )
    found = coverage_table(config, HASH, release)
    assert len(found.rank) == 1000
    for probability in (0.68, 0.95):
        part, error = found.covered(probability)
        assert abs(part - probability) < 3 * error
    assert found.uniformity > 0.01
    assert abs(found.scatter()[0] - 1.0) < 3 * found.scatter()[1]
    bias, error = found.bias()
    assert abs(bias) < 3 * error
    assert "1000 disjoint surveys of 16 patches from 100 skies" in format_coverage(found)
    narrow = replace(release, patch_covariance=release.patch_covariance / 2)
    wrong = coverage_table(config, HASH, narrow)
    assert wrong.covered(0.68)[0] < 0.62
    assert wrong.uniformity < 0.01
    with pytest.raises(CNNLensError, match="made with network 0000"):
        coverage_table(config, HASH, synthetic_release(4))


def test_residual_on_patches_that_gave_no_calibration(small_config):
    """Unbiased where the noise is the calibration's; far off where it is not."""
    config = with_bandpowers(small_config, "a", NOISE, 0)
    table = residual_table(config, HASH, "survey-fiducial")
    assert table.pte > 0.01
    assert np.abs(table.residual / table.error).max() < 4
    # Twice 600 patches of 200 modes: Var(κ̂κ̂*/R² − κκ*) = 4CN + 2N² per mode.
    expected = np.sqrt(2 * (4 * NOISE + 2 * NOISE**2) / (600 * 200))
    np.testing.assert_allclose(table.error, expected, rtol=0.1)
    assert "600 patches" in format_residual(table)
    louder = with_bandpowers(small_config, "a", 1.1 * NOISE, 0)
    for name in ("validation", "test"):  # as before; the survey keeps the louder noise
        louder.bandpower_path(name, 0).unlink()
    quiet = with_bandpowers(small_config, "b", NOISE, 0)
    for name in ("validation", "test"):
        quiet.bandpower_path(name, 0).rename(louder.bandpower_path(name, 0))
    off = residual_table(louder, HASH, "survey-fiducial")
    assert off.pte < 1e-6
    np.testing.assert_allclose(off.residual, 0.1 * NOISE, atol=4 * off.error.max())
    with pytest.raises(CNNLensError, match="'test' gave the calibration"):
        residual_table(config, HASH, "test")
