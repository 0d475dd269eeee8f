"""The noise debias from the survey's own E and B, from coefficients to the likelihood."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate import (
    curvature,
    debias,
    second_order,
)
from cobaya_cnnlens.calibrate.covariance import shrunk_covariance
from cobaya_cnnlens.calibrate.debias import debias_coefficients, fit_coefficients
from cobaya_cnnlens.calibrate.derivatives import BandDerivatives, NoiseDerivatives
from cobaya_cnnlens.calibrate.release_warnings import beyond_the_surface, with_warnings
from cobaya_cnnlens.calibrate.response import standard_error
from cobaya_cnnlens.calibrate.rotation import rotation_of
from cobaya_cnnlens.errors import CNNLensError, ConfigError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import ARRAYS, NUISANCES, SIMULATED, Group
from cobaya_cnnlens.likelihood.release import (
    debiased_by_data,
    digest_of_numbers,
    read_release,
    with_fixed_debias,
    without,
    write_release,
)
from cobaya_cnnlens.maps import bandpower_file, map_setup
from cobaya_cnnlens.maps.assembly import make_patch_release
from cobaya_cnnlens.pipeline import cosmologies
from cobaya_cnnlens.pipeline.assemble import (
    calibration_of,
    make_releases,
    with_data,
)
from cobaya_cnnlens.pipeline.cosmologies import Points
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.perturbations import Derivatives, ShiftedSkies, shifted_changes
from cobaya_cnnlens.pipeline.power import Power, power_of
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.calibration_settings import CosmologyGroup, Fit
from cobaya_cnnlens.simulate.instrument import Instrument, Systematics
from cobaya_cnnlens.validate import points, primary
from cobaya_cnnlens.validate.omch2 import at_the_tangent

from ..conftest import BY_MULTIPOLE, at_fiducial_power
from ..written import HASH, NoisyOracle


def test_coefficients_follow_what_the_power_tells():
    """With exact powers as many as unknowns, G J = A; without a prior it is the regression of d on
    p̂, by samples."""
    generator = np.random.default_rng(1)
    bandpower_response, power_response = (
        generator.standard_normal((3, 4)),
        generator.standard_normal((4, 4)),
    )
    widths = np.array([0.1, 0.3, 0.2, 0.5])
    exact = debias_coefficients(
        bandpower_response, power_response, widths, np.zeros((3, 4)), 1e-12 * np.eye(4)
    )
    np.testing.assert_allclose(exact @ power_response, bandpower_response, rtol=1e-6)

    drawn = generator.standard_normal((20_000, 7)) @ generator.standard_normal((7, 7))
    d, p = drawn[:, :3], drawn[:, 3:]
    covariance = np.cov(drawn, rowvar=False)
    regression = debias_coefficients(
        bandpower_response, power_response, 0 * widths, covariance[:3, 3:], covariance[3:, 3:]
    )
    expected = np.linalg.lstsq(p - p.mean(0), d - d.mean(0), rcond=None)[0].T
    np.testing.assert_allclose(regression, expected, rtol=1e-8)


def test_a_shift_of_the_peaks_within_a_band_is_debiased():
    """The debiased bandpowers do not follow what ω_c does to C^EE within one wide band, nor do they
    lose what it does to C^κκ."""
    generator = np.random.default_rng(5)
    n_bins, n_power, n_kk, n_patches = 3, 6, 2, 400
    step = np.array([[-0.1, -0.2, -0.03], [0.1, 0.2, 0.03]])  # two bands of C^κκ, one of C^EE
    kk, ee, d_of_peaks = (generator.standard_normal((n_bins, n)) for n in (n_kk, 1, 1))
    # Peaks and troughs of the band's power go opposite ways.
    p_of_ee, p_of_peaks = np.ones((n_power, 1)), 0.1 * np.resize([1.0, -1.0], (n_power, 1))

    def simulated(n, of_kk, of_ee, of_peaks, noise):
        changes = step[:, :n_kk] @ of_kk.T + step[:, n_kk:] @ of_ee.T
        # The second order is the same at both signs.
        changes = changes + [[-1.0], [1.0]] * of_peaks.T + 0.3 * of_peaks[::-1].T
        first = NoiseDerivatives(
            BandDerivatives(None, np.repeat(of_kk[None], 5, axis=0)),
            BandDerivatives(None, np.repeat(of_ee[None], 5, axis=0)),
            np.zeros((5, n)),
        )
        nuisances = np.zeros((5, n, len(SIMULATED)))
        nuisances[..., SIMULATED.index("noise")] = noise
        shifted = np.repeat(changes[:, None], 5, axis=1)
        return debias.SimulatedChanges(first, shifted, (nuisances, 0.0 * nuisances))

    bandpowers = simulated(n_bins, kk, ee, d_of_peaks, 0.5)
    p_of_kk = 0.2 * generator.standard_normal((n_power, n_kk))
    power = simulated(n_power, p_of_kk, p_of_ee, p_of_peaks, 0.0)
    scatter = 1e-3 * generator.standard_normal((n_patches, n_power))
    fitted = debias.fit(
        bandpowers,
        power,
        generator.standard_normal((n_patches, n_bins)),
        1.0 + scatter,
        step,
        None,
        n_patches,
    )
    below, above = (bandpowers.shifted - power.shifted @ fitted.coefficients.T)[:, 0]
    change = 0.5 * (above - below)
    of_kk = (kk - fitted.coefficients @ p_of_kk) @ step[1, :n_kk]
    # By the band's amplitude alone, all of the peaks' part would remain.
    assert np.abs(d_of_peaks).max() > 0.3
    np.testing.assert_allclose(change, of_kk, atol=0.01)


def test_no_linear_estimate_is_better():
    """Of d's change with x, over draws of x and of the scatter of d and p̂."""
    generator = np.random.default_rng(2)
    bandpower_response, power_response = (
        generator.standard_normal((1, 3)),
        generator.standard_normal((2, 3)),
    )
    widths, root = np.array([0.5, 1.0, 2.0]), generator.standard_normal((3, 3))
    scatter = root @ root.T
    best = debias_coefficients(
        bandpower_response, power_response, widths, scatter[:1, 1:], scatter[1:, 1:]
    )
    x = generator.standard_normal((400_000, 3)) * widths
    noise = generator.standard_normal((400_000, 3)) @ root.T
    d, p = x @ bandpower_response.T + noise[:, :1], x @ power_response.T + noise[:, 1:]

    def left(coefficients):
        return np.var(d - p @ coefficients.T)

    for step in (0.05 * np.eye(2)[0], -0.05 * np.eye(2)[1]):
        assert left(best) < min(left(best + step), left(best - step))


def test_few_patches_say_how_much_others_scatter():
    """G of 60 patches for 30 numbers: d' scatters over other patches, of the covariance that the 60
    are drawn from, as the 60 say of themselves, and no more than d. What the 60 scatter with their
    own G is too little; of many patches the two are one."""
    generator = np.random.default_rng(3)
    n_bins = 4
    root = np.eye(30) + 0.1 * generator.standard_normal((30, 30))
    true = root @ root.T
    widths = np.array([1.0, 0.05])
    bandpower_response, power_response = (
        generator.standard_normal((4, 2)),
        generator.standard_normal((26, 2)),
    )

    def variances(n_sim):
        """Of d' of others, of the patches as they say, and with their own G, over that of d."""
        both = generator.standard_normal((n_sim, 30)) @ root.T
        both -= both.mean(0)
        coefficients, over_fitted = fit_coefficients(
            0.1 * bandpower_response, 0.1 * power_response, widths, both, 50
        )
        debiasing = np.hstack([np.eye(n_bins), -coefficients])
        others = np.diag(debiasing @ true @ debiasing.T)
        own = both @ debiasing.T
        said = (own - over_fitted).var(0, ddof=1), own.var(0, ddof=1)
        return np.array([others, *said]) / np.diag(true)[:n_bins]

    others, said, own = np.mean([variances(60) for _ in range(30)], axis=(0, 2))
    assert said == pytest.approx(others, rel=0.04)
    assert own < 0.9 * others
    assert others < 1.02
    others, said, own = np.mean([variances(1000) for _ in range(5)], axis=(0, 2))
    assert said == pytest.approx(others, rel=0.03)
    assert own < 0.97 * others
    others, said, own = np.mean([variances(1600) for _ in range(3)], axis=(0, 2))
    assert said == own == pytest.approx(others, rel=0.05)


def test_patches_about_a_common_mean_are_left_out_together():
    """Of three that add up to nothing one is what the others are not: G would know it by them."""
    generator = np.random.default_rng(6)
    root = np.eye(30) + 0.1 * generator.standard_normal((30, 30))
    answers = generator.standard_normal((4, 2)), generator.standard_normal((26, 2))
    groups = np.repeat(np.arange(20), 3)
    ratios = []
    for _ in range(20):
        drawn = (generator.standard_normal((60, 30)) @ root.T).reshape(20, 3, 30)
        both = np.sqrt(1.5) * (drawn - drawn.mean(1, keepdims=True)).reshape(60, 30)
        widths = np.array([1.0, 0.05])
        coefficients, together = fit_coefficients(
            0.1 * answers[0], 0.1 * answers[1], widths, both, 50, groups
        )
        same, singly = fit_coefficients(0.1 * answers[0], 0.1 * answers[1], widths, both, 50)
        np.testing.assert_array_equal(coefficients, same)
        own = both @ np.hstack([np.eye(4), -coefficients]).T
        debiasing = np.hstack([np.eye(4), -coefficients])
        others = np.diag(debiasing @ root @ root.T @ debiasing.T)
        ratios.append([(own - x).var(0, ddof=1).mean() / others.mean() for x in (together, singly)])
    together, singly = np.mean(ratios, axis=0)
    assert together == pytest.approx(1.0, abs=0.05)
    assert singly < together - 0.03


def test_tiles_of_one_class_are_left_out_one_by_one():
    """A survey of one depth has one group: no patches of another one could fit G."""
    generator = np.random.default_rng(6)
    answers = generator.standard_normal((4, 2)), generator.standard_normal((26, 2))
    samples, widths = generator.standard_normal((60, 30)), np.array([1.0, 0.05])
    alone = fit_coefficients(*answers, widths, samples, 50, np.full(60, 7))
    for found, expected in zip(alone, fit_coefficients(*answers, widths, samples, 50), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_covariance_of_few_patches_has_an_inverse():
    """Correlations shrink by what Schäfer & Strimmer's formula says, variances stay; of many
    patches nearly nothing shrinks."""
    generator = np.random.default_rng(4)
    root = np.eye(12) + 0.5 * generator.standard_normal((12, 12))
    samples = generator.standard_normal((10, 12)) @ root.T
    found = shrunk_covariance(samples)
    sample = np.cov(samples, rowvar=False)
    np.testing.assert_allclose(np.diag(found), np.diag(sample), rtol=1e-12)
    z = (samples - samples.mean(0)) / samples.std(0, ddof=1)
    above, below = 0.0, 0.0
    for i in range(12):
        for j in set(range(12)) - {i}:
            w = z[:, i] * z[:, j]
            above += 10 / 9**3 * ((w - w.mean()) ** 2).sum()
            below += (10 / 9 * w.mean()) ** 2
    off = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(found[off], (1 - above / below) * sample[off], rtol=1e-10)
    assert np.linalg.eigvalsh(found).min() > 0 > np.linalg.eigvalsh(sample).min() - 1e-12
    many = generator.standard_normal((20_000, 12)) @ root.T
    np.testing.assert_allclose(shrunk_covariance(many), np.cov(many, rowvar=False), atol=0.02)


@pytest.fixture(scope="module")
def run(simulated_run):
    return simulated_run


@pytest.fixture(scope="module")
def made(run):
    """Releases as of many patches, whose closed forms are simple."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debias, "FEW", 0)
        patch.setattr(debias, "MANY", 0)
        return make_releases(run, dict.fromkeys(run.config.surveys, 0), packages=False)


def test_a_release_of_few_patches_has_the_scatter_of_others(run, made):
    """Of 40 patches, whose d' scatters less with the G that was fitted to them."""
    few = make_releases(run, {"fiducial": 0}, packages=False)["fiducial"]
    _, test = calibration_of(run)
    of_test = Power(run).read("test", [0])["power"]
    off = of_test - of_test.mean(0)
    d = test.auto / few.response**2 - off @ few.debias_coefficients.T
    own = np.diag(np.cov(d, rowvar=False))
    said = np.diag(few.patch_covariance)
    assert (said > own).all()
    assert said.mean() > 1.05 * own.mean()
    fixed = few.fixed_patch_covariance
    np.testing.assert_array_equal(fixed, made["fiducial"].fixed_patch_covariance)


def test_power_is_that_of_the_maps(run):
    """Parseval: all E and B modes together are all of Q and U; and each bin holds its modes."""
    seen, measured = observe_sky(run, "test", 0), power_of(run)
    found = measured(seen.q, seen.u)
    assert found.shape == (len(seen.q), len(measured.e_edges) - 1 + 1)
    edges = run.bandpowers.bins.edges
    assert (measured.e_edges[: 5 * len(edges) : 5][: len(edges)] == edges).all()
    nyquist = run.config.patch.nyquist
    assert 0.9 * nyquist < measured.e_edges[-1] < nyquist
    np.testing.assert_allclose(measured.b_edges / nyquist, [0.7, 0.98], atol=0.002)
    n, pixel = run.config.patch.n_pixels, run.config.patch.pixel
    l = 2 * np.pi * np.fft.fftfreq(n, pixel)
    ly, lx = np.meshgrid(l, l, indexing="ij")
    phi, ell = np.arctan2(lx, -ly), np.hypot(lx, ly)
    modes = [np.fft.fft2(m) * pixel**2 for m in (seen.q, seen.u)]
    e = np.abs(modes[0] * np.cos(2 * phi) + modes[1] * np.sin(2 * phi)) ** 2
    b = sum(np.abs(m) ** 2 for m in modes) - e
    area = np.mean(run.mask**2) * (n * pixel) ** 2
    for i, (low, high) in enumerate(zip(measured.e_edges[:-1], measured.e_edges[1:], strict=True)):
        inside = (ell >= low) & (ell < high)
        np.testing.assert_allclose(found[:, i], e[:, inside].mean(1) / area, rtol=1e-4)
    inside = (ell >= measured.b_edges[0]) & (ell < measured.b_edges[1])
    np.testing.assert_allclose(found[:, -1], b[:, inside].mean(1) / area, rtol=1e-4)


def test_the_theorys_e_is_hardly_needed(run, made):
    """What of the dependence on C^EE is left, in units of the survey's errors for a change by 10%
    that is the same at all l, and for one that alternates from band to band."""
    release = made["fiducial"]
    sigma = np.sqrt(np.diag(release.fixed_patch_covariance) / release.n_patches)
    changes = 0.1 * np.array([np.ones(5), [1, -1, 1, -1, 1]]).T
    derivatives_ee = Derivatives(run).read(release.response).ee.values
    before = np.abs(derivatives_ee @ changes / sigma[:, None])
    left = derivatives_ee - release.debias_coefficients @ release.power_ee_derivatives
    after = np.abs(left @ changes / sigma[:, None])
    assert before[:, 0].max() > 1.0
    assert (after < 0.25 * before.max(0)).all()


def test_gain_and_noise_that_differ_are_taken_off(run, made):
    """A survey whose gain or noise is off: the debiased bandpowers of its own maps, made here from
    the maps, move by what the release says, and by a part of what they do else."""
    release = made["fiducial"]
    calibration = calibration_of(run)[0]
    few = observe_sky(run, "test", 0).kappa
    estimator, measured = NoisyOracle(few), power_of(run)

    def seen_with(**systematics):
        sky = observe_sky(run, "test", 0, systematics=Systematics(**systematics))
        auto = run.bandpowers.auto(estimator.reconstruct(sky.q, sky.u))
        d = calibration.debias(auto).mean(0)
        return d, d - release.correction_of(measured(sky.q, sky.u).mean(0))

    still = seen_with()
    for name in ("gain", "noise"):
        x = 0.02
        moved = [a - b for a, b in zip(seen_with(**{name: x}), still, strict=True)]
        column = NUISANCES.index(name)
        predicted = (
            release.nuisance_first[:, column] * x + release.nuisance_second[:, column] * x**2
        )
        scale = np.abs(moved[0]).max()
        np.testing.assert_allclose(moved[1], predicted, atol=0.01 * scale)
        assert np.abs(moved[1]).max() < 0.3 * scale


def test_the_survey_is_debiased_by_its_own_power(run, made):
    """d' from the patches' products, and its covariance by the test set's patches."""
    release = without(made["high"], Group.ROTATION)
    calibration, test = calibration_of(run)
    of_survey = Power(run).read("survey-high", [0])["power"]
    of_test = Power(run).read("test", [0])["power"]
    auto = Bandpowers(run).read("survey-high", [0]).auto

    def debiased(auto, powers):
        shift = (powers - of_test.mean(0)) @ release.debias_coefficients.T
        return auto / calibration.response**2 - calibration.noise - shift

    used = debiased_by_data(replace(release, curvature=0 * release.curvature))
    np.testing.assert_allclose(used.bandpowers, debiased(auto, of_survey).mean(0), rtol=1e-9)
    of_patches = debiased(test.auto, of_test)
    np.testing.assert_allclose(used.patch_covariance, np.cov(of_patches, rowvar=False), rtol=1e-9)
    error = np.cov(of_patches - test.truth, rowvar=False) / len(of_patches)
    np.testing.assert_allclose(used.noise_covariance, error, rtol=1e-9)
    assert not used.power.size
    # That of plain d holds the error of its change at the excursion too.
    plain = calibration.debias(test.auto)
    error = np.cov(plain - test.truth, rowvar=False) / len(plain)
    response = calibration.response
    change = curvature.change_above(
        Derivatives(run).read(response),
        ShiftedSkies(run).read(response),
        shifted_changes(run),
    )
    error = error + np.cov(change, rowvar=False) / len(change)
    np.testing.assert_allclose(release.fixed_noise_covariance, error, rtol=1e-9)
    np.testing.assert_array_equal(used.response, release.response)


def test_power_as_data(run, made):
    """Covariance of d' and p̂ by the test set's patches, with the errors of what is taken for
    fiducial and of the model's change; signal and noise make all of p."""
    release = made["high"]
    calibration, test = calibration_of(run)
    of_test = Power(run).read("test", [0])["power"]
    d = calibration.debias(test.auto) - (of_test - of_test.mean(0)) @ release.debias_coefficients.T
    whole = np.cov(np.hstack([d, of_test]), rowvar=False)
    np.testing.assert_allclose(release.power_covariance, whole[4:, 4:], rtol=1e-9)
    np.testing.assert_allclose(release.power_cross_covariance, whole[:4, 4:], rtol=1e-9)
    noise = np.cov(np.hstack([d - test.truth, of_test]), rowvar=False) / len(d)
    powers = Power(run).read("derivatives", [0])
    first = Derivatives(run).read(calibration.response)
    kk, ee = np.split(shifted_changes(run)[1], [len(first.kk.edges) - 1])
    power_response = np.einsum("j,jpi->pi", kk, powers["kk"]) + np.einsum(
        "j,jpi->pi", ee, powers["ee"]
    )
    bandpower_response = first.kk.patches @ kk + first.ee.patches @ ee
    bandpower_response = bandpower_response - power_response @ release.debias_coefficients.T
    error = np.cov(power_response, rowvar=False) / len(power_response)
    np.testing.assert_allclose(
        release.power_error_covariance, noise[4:, 4:] + error, rtol=1e-6, atol=0
    )
    cross = np.cov(np.hstack([bandpower_response, power_response]), rowvar=False)[:4, 4:] / len(
        bandpower_response
    )
    expected = noise[:4, 4:] + cross
    np.testing.assert_allclose(
        release.power_error_cross, expected, rtol=0.2, atol=0.05 * np.abs(expected).max()
    )

    likelihood = BandpowerLikelihood(release, primary=True)
    assert len(likelihood.bandpowers) == 4 + of_test.shape[1]
    # All bands of E make the signal's power S, and p̂ is S and the noise's: with the rms 1 + x of
    # noise p = S + (1 + x)² N, with a gain (1 + x)² S + N. Skies differ, by 40 patches' scatter.
    total = release.fiducial_power
    signal = release.power_ee_derivatives.sum(1)
    of_gain, of_noise = (
        release.power_nuisance_second[:, NUISANCES.index(name)] for name in ("gain", "noise")
    )
    sigma = np.sqrt(np.diag(release.power_covariance) / 20)
    for parts in (signal + of_noise, of_gain + of_noise):
        np.testing.assert_allclose((parts - total) / sigma, 0, atol=4.0)
    assert (signal[3:-1] > 5 * sigma[3:-1]).any()
    doubled = likelihood.model(release.fiducial_kk, 2 * release.fiducial_ee)
    still = likelihood.model(release.fiducial_kk, release.fiducial_ee)
    np.testing.assert_allclose((doubled - still)[4:], signal, rtol=1e-6)
    np.testing.assert_allclose((doubled - still)[:4], 0, atol=1e-9 * still[:4].max())


def test_own_maps_are_debiased_by_their_power(run, made, tmp_path):
    """By the calibration that another release holds."""
    generator = np.random.default_rng(3)
    release = replace(
        made["high"],
        instrument=made["high"].instrument | {"patch_deg": 10.0, "patch_pixels": 48},
    )
    powers = release.power * (1 + 0.1 * generator.random((2, 1)))
    arrays = {
        "auto": release.response**2 * generator.uniform(1, 2, (2, 4)) * release.noise,
        "power": powers,
        "rotation": np.array([[0.01, 1.0], [0.03, 1.0]]),
        "centres": np.array([[0.0, 0.0], [40.0, 0.0]]),
        "known": np.ones(2, bool),
        "frame": np.bytes_(b"C"),
        "source": np.bytes_(b"m.fits"),
        "warnings": products.texts(()),
    }
    path = tmp_path / "b.h5"
    products.write_product(path, bandpower_file.KIND, map_setup.recipe(run), arrays)
    mine = make_patch_release(release, path, "mine")
    np.testing.assert_allclose(mine.power, powers.mean(0))
    d = (arrays["auto"] / release.response**2).mean(0) - release.noise
    correction = release.correction_of(powers.mean(0))
    assert mine.rotation[0, 0] == pytest.approx(np.degrees(np.arctan(0.02) / 4))
    correction += mine.rotation_second * mine.squared_rotation[0]
    used = BandpowerLikelihood(replace(mine, curvature=0 * mine.curvature))
    np.testing.assert_allclose(used.bandpowers, d - correction, rtol=1e-9)
    assert np.abs(correction).max() > 1e-3 * np.abs(d).max()


def test_a_survey_measures_its_rotation(run, made):
    """From its own maps, at the angle that they are rotated by; what calibrates has none."""
    release, survey = made["high"], "survey-high"
    measured = Power(run).read(survey, [0])["rotation"]
    np.testing.assert_array_equal(release.rotation, rotation_of(measured))
    turned = observe_sky(run, survey, 0, systematics=Systematics(angle=0.4))
    quiet = Run(run.config.model_copy(update={"instrument": Instrument(noise_uk_arcmin=0.0)}))
    still, rotated = (
        power_of(run).rotation(sky.q, sky.u) @ (1j, 1)
        for sky in (
            observe_sky(quiet, survey, 0),
            observe_sky(quiet, survey, 0, systematics=Systematics(angle=0.4)),
        )
    )
    np.testing.assert_allclose(np.angle(rotated / still, deg=True) / 4, 0.4, atol=1e-6)
    ((found, error, _),) = rotation_of(power_of(run).rotation(turned.q, turned.u))
    assert abs(found - 0.4) < 4 * error < 0.4
    for name in ("test", "nuisances"):
        assert "rotation" not in Power(run).read(name, [0])
        assert not {"rotation_algorithm"} & set(Power(run).recipe(name, 0))
    assert not with_data(release, measured[:, :1], release.power[None]).has(Group.ROTATION)


def test_a_rotation_changes_the_debiased_bandpowers_as_the_release_says(run, made):
    """Of d' and p̂, by the second order of the patches that were rotated to either side."""
    release = made["high"]
    step, column = run.config.nuisances.angle, SIMULATED.index("angle")
    second = Nuisances(run).read(release.response)[1][..., column]
    of_power = Power(run).changes().nuisances[1][..., column]
    by_patch = second - of_power @ release.debias_coefficients.T
    np.testing.assert_allclose(release.rotation_second, by_patch.mean(0), rtol=1e-9)
    np.testing.assert_allclose(release.rotation_second_errors, standard_error(by_patch), rtol=1e-9)
    np.testing.assert_allclose(release.power_rotation_second, of_power.mean(0), rtol=1e-9)
    assert release.rotation_step == step
    assert release.nuisance_second.shape[1] == len(NUISANCES) == column


def test_a_release_without_power_is_told(made):
    release = made["fiducial"]
    assert BandpowerLikelihood(release).noise_debias == "data"
    bare = without(release, *{numbers.group for numbers in ARRAYS.values()} - {Group.ALWAYS})
    BandpowerLikelihood(bare, "fixed")
    with pytest.raises(CNNLensError, match="hold the power of its patches; take noise_debias"):
        BandpowerLikelihood(bare)


def test_second_order_is_of_the_debiased(run, made):
    """At ω_c ± step, d' of the derivatives' patches less that of the fiducial and the model's first
    order is, on the mean of both signs, the curvature."""
    release = made["fiducial"]
    response = release.response
    auto = ShiftedSkies(run).read(response)
    first = Derivatives(run).read(response)
    powers = Power(run).read("derivatives", [0])
    change = (
        auto - first.centre - (powers["shifted"] - powers["power"]) @ release.debias_coefficients.T
    )
    flat = replace(release, curvature=0 * release.curvature)
    likelihood = BandpowerLikelihood(flat)
    fiducial = release.fiducial_kk, release.fiducial_ee
    left, t = [], []
    for omch2, moved in zip(run.config.shifted_omch2(), change.mean(1), strict=True):
        theory = run.spectra(run.config.cosmology.vary(omch2=omch2))
        t.append(likelihood.model.excursion(theory.kk)[0])
        signal = release.windows @ (theory.kk - run.spectra().kk)[: release.windows.shape[1]]
        model = likelihood.model(theory.kk, theory.ee) - likelihood.model(*fiducial)
        left.append(moved + signal - model)
    np.testing.assert_allclose(t, [-1.0, 1.0], rtol=0.1)
    mean = np.square(t) @ np.array(left) / np.sum(np.power(t, 4))
    np.testing.assert_allclose(mean, release.curvature, atol=1e-3 * np.abs(change).max())


def with_points(run, patches, **change):
    """The run with one point, of some patches, and measured there."""
    at = {"some": CosmologyGroup(cosmologies=[change])}
    settings = run.config.points.model_copy(update={"patches": patches, "at": at})
    moved = Run(run.config.model_copy(update={"points": settings}), HASH)
    rows = np.arange(patches) * moved.n_patches // patches
    kappa = observe_sky(run, "test", 0).kappa[rows]
    Points(Run(moved.config, HASH, NoisyOracle(kappa))).measure(cosmologies.checked(moved))
    return moved


def test_points_of_some_patches(run, made):
    """At the fiducial cosmology itself nothing has moved: phases and noise are those of the patches
    that the whole sky has there."""
    moved = with_points(run, 7, omch2=run.config.cosmology.omch2)
    (check,) = points.check_points(moved, made["fiducial"], "some")
    assert check.measured.shape == (7, 4)
    np.testing.assert_allclose(check.measured, 0, atol=1e-4 * made["fiducial"].noise.max())
    np.testing.assert_allclose(check.predicted, 0, atol=1e-12)


def test_every_cosmology_of_the_fit_has_patches_of_its_own(run):
    """They take the skies in turn; no two of one sky have the same patches, or the same product."""
    n_patches = run.n_patches // 3
    fit = Fit(cosmologies=3 * [{"ns": 0.97}, {"ns": 0.95}], skies=[0, 2], patches=n_patches)
    settings = run.config.points.model_copy(update={"fit": fit})
    moved = Run(run.config.model_copy(update={"points": settings}), HASH)
    points_ = cosmologies.fitted(moved)
    assert [point.index for point in points_] == [0, 2, 0, 2, 0, 2]
    rows = [set(point.rows(run.n_patches)) for point in points_]
    assert [len(set.union(*rows[k::2])) for k in (0, 1)] == 2 * [3 * n_patches]
    recipes = [str(Points(moved).recipe(point)) for point in points_]
    assert len(set(recipes)) == len(points_)
    fiducial, whole = Points(moved).at_fiducial(points_[2]), Bandpowers(moved).read("test", [0])
    np.testing.assert_array_equal(fiducial.auto, whole.auto[sorted(rows[2])])


def test_another_cosmology_is_where_the_model_puts_it(run, made):
    """At a tenth more power: d' of one sky changes as another sky's derivatives say, to their
    errors."""
    moved = with_points(run, run.n_patches, As=1.1 * run.config.cosmology.As)
    (check,) = points.check_points(moved, made["fiducial"], "some")
    error = np.sqrt(np.diag(check.covariance))
    assert (np.abs(check.residual) < 4 * error).all()
    assert (np.abs(check.predicted) > 10 * error).any()
    content = moved.config.model_dump(mode="json") | {
        "points": {"at": {"some": {"cosmologies": [{"A_s": 2e-9}]}}}
    }
    path = moved.config.products / "points.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="no cosmological parameter A_s"):
        load_config(path)


N_V, N_POINTS, N_PATCHES = 2, 40, 60


def surface(generator, cubic=0.0):
    """A surface fitted to points of a known one, and the coefficients that it should find; in units
    of the prior of its first order, which is what the derivatives' scatter makes it."""
    n_bins, n_power, n_kk, n_ee = 6, 7, 3, 4
    size = 0.3 + generator.random(n_bins)
    shape = np.linalg.cholesky(0.5 * np.eye(n_bins) + 0.5) * size[:, None]

    def scattered(*shape_):
        return generator.standard_normal((*shape_, n_bins)) @ shape.T

    # The bands of C^κκ move together.
    bands = np.hstack(
        [
            np.outer(generator.uniform(-0.2, 0.3, N_POINTS), np.arange(1.0, n_kk + 1)),
            generator.standard_normal((N_POINTS, n_ee)) * [3.0, 2.0, 1.0, 0.5],
        ]
    )
    # p̂ tells the amplitudes of the bands of C^EE exactly.
    mixing = generator.standard_normal((n_ee, n_power))
    power = np.repeat((bands[:, n_kk:] @ mixing)[:, None], N_PATCHES, axis=1)
    coefficients = generator.standard_normal((n_bins, n_power))
    true_kk, true_ee = (scattered(n).T for n in (n_kk, n_ee))
    kk, ee = (
        truth + scattered(N_PATCHES, truth.shape[1]).transpose(0, 2, 1)
        for truth in (true_kk, true_ee)
    )
    # The model has no part of C^EE, so its mean derivatives are zero.
    ee -= ee.mean(0)
    first = NoiseDerivatives(BandDerivatives(None, kk), BandDerivatives(None, ee), None)
    error_ee = scattered(n_ee).T / np.sqrt(N_PATCHES)
    ee_directions = lambda changes: changes @ np.linalg.pinv(mixing).T  # noqa: E731
    empty = np.zeros((N_POINTS, N_PATCHES, n_bins))
    flat = second_order.fit(
        second_order.FitPoints(empty + scattered(N_POINTS, N_PATCHES), power, bands, N_V),
        first,
        0 * coefficients,
        ee_directions,
    )
    w = flat.amplitudes(power.mean(1), bands[:, :n_kk])
    truth = scattered(len(flat.terms(w)[0])).T
    n_main, n_v = flat.n_main, flat.n_v
    along_kk = flat.kk_direction / (flat.kk_direction @ flat.kk_direction)
    l_v = (error_ee @ flat.ee_changes.T).T
    truth[:, :n_v], truth[:, n_main:] = l_v[:n_v].T, l_v[n_v:].T
    truth[:, n_v] = (true_kk - kk.mean(0)) @ along_kk
    third = (w[:, :n_v] ** 2).sum(1) + w[:, -1] ** 2
    mean = flat.terms(w) @ truth.T + bands[:, :n_kk] @ kk.mean(0).T
    mean += power.mean(1) @ coefficients.T + cubic * third[:, None] ** 1.5 * scattered(N_POINTS)
    noise = mean[:, None] + 3.0 * scattered(N_POINTS, N_PATCHES)
    points_ = second_order.FitPoints(noise, power, bands, N_V)
    fitted = second_order.fit(points_, first, coefficients, ee_directions)
    return SimpleNamespace(fitted=fitted, truth=truth, w=w, size=size)


def deviation(case):
    """χ² of all coefficients by their covariance, over their number."""
    off = case.fitted.values - case.truth
    terms_, bins = (np.linalg.inv(x) for x in (case.fitted.error_terms, case.fitted.error_bins))
    return np.einsum("bt,tu,cu,bc->", off, terms_, off, bins) / off.size


def test_the_response_surface_is_fitted():
    """The error of the coefficients is what it says, in all terms and bins together."""
    cases = [surface(np.random.default_rng(seed)) for seed in range(20)]
    for case in cases:  # amplitudes are at most one at the points
        np.testing.assert_allclose(np.abs(case.w).max(0), 1.0)
        # The derivatives know the first order, and the points add to that.
        fitted, extra = case.fitted, slice(case.fitted.n_main, None)
        by_derivatives = (fitted.ee_changes**2).sum(1)[N_V:] * (case.size**2).mean() / N_PATCHES
        variance = np.diagonal(fitted.error_terms)[extra] * np.diagonal(fitted.error_bins).mean()
        assert (variance < by_derivatives).all()
    # The misfit, of which there is none, and the covariance of 60 patches have errors.
    assert 0.85 < np.mean([deviation(case) for case in cases]) < 1.15


def test_the_error_of_the_surface_holds_what_a_quadratic_leaves():
    """A third order is found, of its size, and the coefficients' errors grow with it."""
    sizes = []
    for seed in range(8):
        plain, cubic = (surface(np.random.default_rng(seed), size) for size in (0.0, 5.0))
        unit = np.sqrt(np.diagonal(cubic.fitted.error_bins)) / cubic.size
        sizes.append(cubic.fitted.misfit * unit.mean())
        assert plain.fitted.misfit < 0.3 * cubic.fitted.misfit
        far = np.ones(cubic.w.shape[1])
        error, least = (np.diagonal(c.fitted.covariance(far)) for c in (cubic, plain))
        assert (error > least).all()
        assert (
            error > (3**1.5 * cubic.fitted.misfit) ** 2 * np.diag(cubic.fitted.error_bins)
        ).all()
        assert 0.5 < deviation(cubic) < 2.0
    assert np.mean(sizes) == pytest.approx(5.0, rel=0.1)


def test_a_release_takes_the_surface_apart():
    """G takes the first order of every v, N' that of u; products and errors have fields of their
    own."""
    generator = np.random.default_rng(8)
    n_bins, n_power, n_kk = 3, 6, 2
    # v1, v2, u; v1², v1 v2, v1 u, v2², v2 u, u²; v3, v4.
    values = generator.standard_normal((n_bins, 11))
    root = generator.standard_normal((11, 11))
    directions = generator.standard_normal((n_power, 4))
    surface_ = second_order.SecondOrder(
        directions, np.array([1.0, 2.0]), np.zeros((4, 5)), 2, values, root @ root.T, np.eye(3), 0.7
    )
    kk = BandDerivatives(None, generator.standard_normal((5, n_bins, n_kk)))
    power = generator.standard_normal((9, n_power))
    fitted = SimpleNamespace(
        coefficients=generator.standard_normal((n_bins, n_power)),
        derivatives=NoiseDerivatives(kk, kk, None),
        test_power=power,
    )
    coefficients, derivatives, fields = debias._second_order_fields(fitted, surface_)
    first = values[:, [0, 1, 9, 10]]
    np.testing.assert_allclose(coefficients, fitted.coefficients + first @ directions.T)
    np.testing.assert_allclose(
        derivatives.kk.patches, kk.patches + np.multiply.outer(values[:, 2], [1.0, 2.0])
    )
    np.testing.assert_array_equal(fields["debias_second"], values[:, [3, 4, 6]])
    np.testing.assert_array_equal(fields["debias_cross"], values[:, [5, 7]])
    np.testing.assert_array_equal(fields["curvature"], values[:, 8])
    error = fields["surface_error_terms"]
    np.testing.assert_array_equal(error[:9, :9], (root @ root.T)[:9, :9])
    assert error[9].tolist() == [*[0.0] * 9, pytest.approx(0.7**2)]
    scatter = np.cov(power @ directions[:, :2], rowvar=False)
    np.testing.assert_allclose(fields["amplitude_covariance"], scatter)


def test_what_follows_the_survey_is_not_in_the_constant_error():
    """The constant part has the v without a second order, and the bands beyond the directions."""
    case = surface(np.random.default_rng(5))
    fitted, generator = case.fitted, np.random.default_rng(6)
    n_bins, n_power, n_kk, n_ee = 6, 7, 3, 4

    def bands_of(n):
        return NoiseDerivatives(
            *(
                BandDerivatives(None, generator.standard_normal((9, n, n_bands)))
                for n_bands in (n_kk, n_ee)
            ),
            None,
        )

    of_power = debias.SimulatedChanges(bands_of(n_power), None, None)
    known = debias.DataDebias(
        np.zeros((n_bins, n_power)), bands_of(n_bins), of_power, None, fitted, None
    )
    bands = generator.standard_normal(n_kk + n_ee)
    w = fitted.amplitudes(of_power.derivatives.change_at(bands).mean(0), bands[:n_kk])
    others = np.concatenate([np.zeros(N_V), w[N_V:-1], [0.0]])
    assert others.any()
    whole, constant = (
        known.model_error(bands, constant)[:n_bins, :n_bins] for constant in (False, True)
    )
    np.testing.assert_allclose(
        whole - constant, fitted.covariance(w) - fitted.covariance(others), rtol=1e-6
    )
    beyond = known.derivatives.change_at(bands - fitted.along(w))
    of_bands = np.cov(beyond, rowvar=False) / len(beyond)
    np.testing.assert_allclose(constant, of_bands + fitted.covariance(others), rtol=1e-6)


def test_a_release_holds_the_error_of_its_surface(release):
    """At the survey's own amplitudes, and it grows with them."""
    silent = replace(release, surface_error_terms=0.0 * release.surface_error_terms)
    far, nothing = (debiased_by_data(r).derivative_covariance for r in (release, silent))
    ratio = (far - nothing) / release.surface_error_bins
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
    near, nothing = (
        debiased_by_data(at_fiducial_power(r)).derivative_covariance for r in (release, silent)
    )
    assert ratio[0, 0] > 10.0 * np.abs((near - nothing) / release.surface_error_bins).max()
    v = release.amplitudes
    u = 0.3
    x = np.array([*v, u, v[0] ** 2, v[0] * v[1], v[0] * u, v[1] ** 2, v[1] * u, u**2])
    x = np.append(x, (v @ v + u**2) ** 1.5)
    expected = sum(
        x[s] * x[t] * release.surface_error_terms[s, t] for s in range(10) for t in range(10)
    )
    np.testing.assert_allclose(
        release.surface_error(u), expected * release.surface_error_bins, rtol=1e-9
    )
    np.testing.assert_array_equal(release.surface_error(1e7), release.surface_error(3.0))


def test_principal_changes():
    """Directions of a cloud that is longest along the one and then along the other."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.standard_normal((5, 5)))[0][:2]
    cloud = generator.standard_normal((200, 2)) * [3.0, 1.0] @ axes
    found = second_order.principal(cloud, 2)
    assert (np.abs((found * axes).sum(1)) > 0.99).all()
    assert (found[[0, 1], np.abs(found).argmax(1)] > 0).all()


def test_the_survey_with_its_second_order(release):
    """Data, derivatives in C^κκ and model by their formulae; C^EE has no part."""
    whole = replace(without(release, Group.ROTATION), n_patches=9)
    used = debiased_by_data(whole)
    change = release.power - release.fiducial_power
    v = np.array([change @ release.ee_directions[:, 0], change @ release.ee_directions[:, 1]])
    scatter = release.amplitude_covariance / 9
    expected = (
        release.bandpowers
        - release.debias_coefficients @ change
        - release.debias_second[:, 0] * (v[0] ** 2 - scatter[0, 0])
        - release.debias_second[:, 1] * (v[0] * v[1] - scatter[0, 1])
        - release.debias_second[:, 2] * (v[1] ** 2 - scatter[1, 1])
    )
    likelihood = BandpowerLikelihood(whole)
    kk = release.fiducial_kk.copy()
    kk[release.kk_edges[0] : release.kk_edges[1]] *= 1.2
    u = 0.2 * release.kk_direction[0]
    model = (
        release.windows @ kk[: release.windows.shape[1]]
        + 0.2 * release.kk_derivatives[:, 0]
        + (release.debias_cross @ v) * u
    )
    # u² about the amplitude that the bandpowers have: where they have that of the model, it is u².
    found = likelihood.bandpowers - likelihood.model(kk, release.fiducial_ee)
    left = found - (expected - model - release.curvature * u**2)
    assert np.abs(left).max() > 1e-3 * np.abs(expected).max()
    distance = np.sqrt(left / release.curvature)
    np.testing.assert_allclose(distance, distance[0], rtol=1e-6)
    np.testing.assert_array_equal(used.curvature, 0.0)
    louder = 1.3 * release.fiducial_ee
    assert likelihood.chi2(kk, louder) == likelihood.chi2(kk, release.fiducial_ee)


def test_the_tangent_is_at_the_data(release):
    """Bandpowers that are the second-order model of some amplitude of C^κκ are met exactly by the
    model that is linear about it."""
    release = at_fiducial_power(release)
    a = release.kk_direction
    for u in (-0.4, 0.3):
        changes = u * a / (a @ a)
        kk = release.fiducial_kk.copy()
        for low, high, x in zip(release.kk_edges[:-1], release.kk_edges[1:], changes, strict=True):
            kk[low:high] *= 1 + x
        signal = release.windows @ kk[: release.windows.shape[1]]
        data = signal + release.kk_derivatives @ changes + release.curvature * u**2
        survey = replace(release, bandpowers=data)
        residual = BandpowerLikelihood(survey).residuals(kk, None)
        np.testing.assert_allclose(residual, 0, atol=1e-9 * signal.max())
        # The noise bias that tables of other cosmologies find is of second order all the same.
        rows = np.tile((data + release.noise) * release.response**2, (4, 1))
        patches = cosmologies.Patches(rows, rows, np.tile(release.power, (4, 1)))
        noise = points._noise(survey, patches, SimpleNamespace(kk=kk, ee=None))
        np.testing.assert_allclose(noise, data - signal, atol=1e-9 * signal.max())
        added = at_the_tangent(BandpowerLikelihood(survey), survey)
        np.testing.assert_allclose(added, release.curvature * u**2, rtol=1e-6)
        flat = replace(survey, curvature=0 * release.curvature)
        off = BandpowerLikelihood(flat).residuals(kk, None)
        assert np.abs(off).max() > 1e-3 * signal.max()


def test_nothing_else_of_the_survey_with_its_second_order(release):
    """A survey of the fiducial power and amplitude is that of the first order."""
    release = at_fiducial_power(release)
    used = debiased_by_data(release)
    np.testing.assert_allclose(used.bandpowers, release.bandpowers, rtol=1e-9)
    np.testing.assert_allclose(used.kk_derivatives, release.kk_derivatives, rtol=1e-9)


def test_a_made_release_is_written_and_read(made, tmp_path):
    release = made["high"]
    write_release(release, tmp_path / "r.json")
    again = read_release(tmp_path / "r.json")
    for name in ARRAYS:
        scale = np.abs(getattr(release, name)).max(initial=0.0)
        np.testing.assert_allclose(
            getattr(again, name),
            getattr(release, name),
            rtol=1e-6 if name in BY_MULTIPOLE else 1e-9,
            atol=1e-12 * scale,
            err_msg=name,
        )
    assert digest_of_numbers(again) != digest_of_numbers(replace(again, power=1.01 * again.power))


def test_the_joint_covariance_is_of_the_debiased(run, made, monkeypatch):
    """Its lensing block is the covariance of d' of the patches, as the release has it."""
    monkeypatch.setattr(debias, "FEW", 0)
    monkeypatch.setattr(debias, "MANY", 0)
    n = run.n_patches
    other = np.random.default_rng(0).standard_normal((n, 4))
    monkeypatch.setattr(primary, "read", lambda *_: {"ee": other, "bb": other**2})
    joint = primary.read_joint(run)
    kk = joint.covariance[:4, :4]
    np.testing.assert_allclose(kk, made["fiducial"].patch_covariance, rtol=1e-9)
    assert not np.allclose(kk, made["fiducial"].fixed_patch_covariance, rtol=1e-3, atol=0)


def test_power_beyond_the_surface_is_told(release):
    """Power 50% up moves d' by tens of σ; the simulations say nothing of it."""
    quiet = at_fiducial_power(release)
    assert beyond_the_surface(quiet) is None
    assert beyond_the_surface(with_fixed_debias(release)) is None
    far = replace(release, power=3.0 * release.fiducial_power)
    largest = np.abs(far.amplitudes).max()
    assert largest > 1.5
    assert f"an amplitude of {largest:.1f}, where" in beyond_the_surface(far)
    assert any("E power of the patches" in text for text in with_warnings(far).warnings)
