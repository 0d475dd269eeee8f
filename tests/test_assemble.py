"""A calibration written by hand, product by product, and what is made of it against closed forms.

κ̂ = R(κ + n) with R ≠ 1 and bandpowers of κ's own size: a power of R that is dropped, or a truth
that is not taken off, is no small thing here. Samples are whitened, so that means and covariances
of patches are exact and every field of a release is known to rounding.
"""

import itertools

import numpy as np
import pytest

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.assemble import (
    WINDOW_TOLERANCE,
    band_changes,
    make_release,
    read_curvature,
    read_derivatives,
    shifted_noise,
    trim_windows,
)
from cobaya_cnnlens.calibrate.measure import signal_bandpowers, spectra_of
from cobaya_cnnlens.calibrate.nuisances import check_nuisances
from cobaya_cnnlens.calibrate.points import check_points
from cobaya_cnnlens.calibrate.primary import KIND as PRIMARY
from cobaya_cnnlens.calibrate.primary import _path as primary_path
from cobaya_cnnlens.calibrate.primary import _recipe as primary_recipe
from cobaya_cnnlens.calibrate.primary import read_joint
from cobaya_cnnlens.config import Config, load_config
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.release import NUISANCES, from_document, seal, to_document
from cobaya_cnnlens.report import tables
from cobaya_cnnlens.report.tables import (
    Omch2Likelihood,
    noise_table,
    null_significance,
    points_table,
    residual_table,
)
from cobaya_cnnlens.simulate.instrument import Systematics
from cobaya_cnnlens.simulate.observation import observe_sky
from cobaya_cnnlens.simulate.stage import make_skies, spectra_for
from cobaya_cnnlens.statistics import inverse_covariance

from .conftest import REPOSITORY

HASH = "a" * 64
N_BINS, PER_SKY = 4, 10
RESPONSE = np.array([0.8, 0.7, 0.55, 0.4])


def small(folder) -> dict:
    """A configuration of coarse pixels and few bins, as a file holds it."""
    content = load_config(REPOSITORY / "training" / "config" / "test.yaml").model_dump(mode="json")
    content["products"] = str(folder)
    content["camb"]["lmax"] = content["sky"]["lmax"] = 1000
    content["sky"]["band_limit"] = 800
    content["patch"] = {"size_deg": 10.0, "n_pixels": 48, "pad": 2}
    content["centres"] = {"nside": 1, "poles": 1}  # 10 patches of a sky
    content["bandpowers"] = {"lmin": 36, "width": 150, "n_bins": N_BINS}
    content["derivatives"] = {
        "kk_edges": [2, 400, 801],
        "ee_edges": [2, 300, 600, 1001],
        "step": 0.1,
    }
    content["skies"] = {"train": 1, "validation": 2, "test": 3, "derivatives": 2}
    content["nuisances"] = {"skies": 2}
    content["surveys"]["high"]["skies"] = 2
    content["points"] = {"skies": 2, "at": {"some": [{"As": 2.3e-9}, {"omch2": 0.122}]}}
    return content


@pytest.fixture
def config(tmp_path) -> Config:
    return Config.model_validate(small(tmp_path / "products"))


def white(seed, n, width):
    """n samples of ``width`` numbers whose mean is 0 and whose covariance is 1, exactly."""
    draws = np.random.default_rng(seed).standard_normal((n, width))
    draws -= draws.mean(0)
    return draws @ np.linalg.inv(np.linalg.cholesky(np.cov(draws, rowvar=False))).T


class Written:
    """The products of a calibration, and the numbers that they were made of; all in κ's units.

    ``signal`` S_b of the fiducial; patches' truth S + t, κ̂κ̂* = R²(S + t + N + n), with t of
    covariance ``cosmic`` and n of ``own``.
    """

    def __init__(self, config, digest=HASH):
        self.config, self.digest = config, digest
        self.signal = signal_bandpowers(config, spectra_for(config, config.cosmology).kk)
        self.noise = self.signal * np.array([0.5, 1.1, 2.0, 3.1])
        n = config.skies.test * PER_SKY
        both = white(1, n, 2 * N_BINS)
        mix = np.linalg.cholesky(np.eye(N_BINS) + 0.3)
        self.t = 0.3 * self.signal * (both[:, :N_BINS] @ mix.T)
        self.n = 0.2 * self.noise * (both[:, N_BINS:] @ mix.T)
        self.truth = self.signal + self.t
        self.auto = RESPONSE**2 * (self.truth + self.noise + self.n)
        self.cosmic, self.own = (np.cov(x, rowvar=False) for x in (self.t, self.n))
        self.put("test", self.auto, self.auto, self.truth)

        # R from the validation set: κκ̂* = Rκκ* + s with no s on average.
        n = config.skies.validation * PER_SKY
        both = white(2, n, 2 * N_BINS)
        truth = self.signal * (1 + 0.3 * both[:, :N_BINS])
        self.s = 0.05 * self.signal * both[:, N_BINS:]
        self.put("validation", truth, RESPONSE * truth + self.s, truth)

        for k, (name, survey) in enumerate(config.surveys.items()):
            n = survey.skies * PER_SKY
            scatter = 0.1 * self.signal * np.random.default_rng([3, k]).standard_normal((n, N_BINS))
            data = self.signal * (1 + 0.1 * (k + 1)) + scatter
            setattr(self, name, data)
            auto = RESPONSE**2 * (data + self.noise)
            self.put(f"survey-{name}", auto, auto, data)
        self.derivatives()
        self.nuisances()

    def put(self, set_name, auto, cross, truth):
        """Bandpowers of a set, sky by sky."""
        for i in range(self.config.set_size(set_name)):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            products.write_product(
                self.config.bandpower_path(set_name, i),
                "bandpowers",
                self.config.bandpower_recipe(set_name, i, self.digest),
                {"auto": auto[rows], "cross": cross[rows], "truth": truth[rows]},
            )

    def changes(self, **change):
        """δ_j of the bands, C^κκ before C^EE: Σ(2l+1)C_l over the band against the fiducial's."""
        moved = spectra_for(self.config, self.config.cosmology.vary(**change))
        fiducial = spectra_for(self.config, self.config.cosmology)
        settings, found = self.config.derivatives, []
        for name in ("kk", "ee"):
            for low, high in itertools.pairwise(getattr(settings, f"{name}_edges")):
                new, old = (
                    sum((2 * l + 1) * getattr(s, name)[l] for l in range(low, high))
                    for s in (moved, fiducial)
                )
                found.append(new / old - 1)
        return np.array(found)

    def derivatives(self):
        """N' of every band and patch, and Q: the debias at ω_c ± step is N' δ + Q t²."""
        config, generator = self.config, np.random.default_rng(4)
        n = config.skies.derivatives * PER_SKY
        n_bands = (len(config.derivatives.kk_edges) - 1, len(config.derivatives.ee_edges) - 1)
        mean = 0.3 * self.signal[:, None] * generator.standard_normal((N_BINS, sum(n_bands)))
        scatter = 0.1 * self.signal[:, None]
        self.slopes = mean + scatter * generator.standard_normal((n, N_BINS, sum(n_bands)))
        self.q = self.signal * (0.1 + 0.05 * generator.standard_normal((n, N_BINS)))
        step = config.derivatives.omch2_step
        ends = np.array([self.changes(omch2=0.1185 + sign * step) for sign in (-1, 1)])
        half = (ends[1] - ends[0]) / 2
        self.along = half / np.sum(half**2)
        t = ends @ self.along
        self.moved = np.einsum("pbj,sj->spb", self.slopes, ends) + self.q * t[:, None, None] ** 2

        kk = np.moveaxis(self.slopes[..., : n_bands[0]], -1, 0)
        ee = np.moveaxis(self.slopes[..., n_bands[0] :], -1, 0)
        kk_truth = self.signal * generator.random(kk.shape)
        truth = self.signal * (1 + 0.2 * generator.standard_normal((n, N_BINS)))
        self.centre = self.noise * (1 + 0.1 * generator.standard_normal((n, N_BINS)))
        truths = self.signal * generator.random((2, n, N_BINS))
        for i in range(config.skies.derivatives):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            products.write_product(
                config.derivative_path(i),
                "derivatives",
                config.derivative_recipe(i, self.digest),
                {
                    "kk": RESPONSE**2 * (kk + kk_truth)[:, rows],
                    "ee": RESPONSE**2 * ee[:, rows],
                    "kk_truth": kk_truth[:, rows],
                    "auto": RESPONSE**2 * (self.centre + truth)[rows],
                    "truth": truth[rows],
                },
            )
            shifted = RESPONSE**2 * (self.centre + self.moved + truths)
            products.write_product(
                config.curvature_path(i),
                "curvature",
                config.curvature_recipe(i, self.digest),
                {"auto": shifted[:, rows], "truth": truths[:, rows]},
            )

    def nuisances(self):
        """A and B of the first test skies' patches: d(±x) − d(0) = ±A x + B x²."""
        config, generator = self.config, np.random.default_rng(5)
        n = config.nuisances.skies * PER_SKY
        shape = (n, N_BINS, len(NUISANCES))
        mean = np.array([2.0, -0.7, 0.3, 0.05])
        unit = self.signal[:, None]
        self.first = unit * (mean + 0.1 * generator.standard_normal(shape))
        self.second = unit * (mean[::-1] + 0.1 * generator.standard_normal(shape))
        for i in range(config.nuisances.skies):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            arrays = {}
            for k, name in enumerate(NUISANCES):
                x = getattr(config.nuisances, name)
                shifts = np.array(
                    [
                        s * self.first[rows, :, k] * x + self.second[rows, :, k] * x**2
                        for s in (-1, 1)
                    ]
                )
                arrays[name] = self.auto[rows] + RESPONSE**2 * shifts
            recipe = config.nuisance_recipe(i, self.digest)
            products.write_product(config.nuisance_path(i), "nuisances", recipe, arrays)


@pytest.fixture
def written(config) -> Written:
    return Written(config)


def error_of_mean(samples):
    return np.sqrt(np.sum((samples - samples.mean(0)) ** 2, 0) / (len(samples) - 1) / len(samples))


def covariance_of_mean(samples):
    off = samples - samples.mean(0)
    return off.T @ off / (len(samples) - 1) / len(samples)


def test_every_field_of_a_release(config, written):
    """Against the numbers that the products were made of."""
    release = make_release(config, HASH, "high", sky=1)
    assert release.name == "test_high_sky1"
    assert release.truth["omch2"] == config.surveys["high"].omch2
    n_test = config.skies.test * PER_SKY
    n_validation = config.skies.validation * PER_SKY
    fiducial = spectra_for(config, config.cosmology)
    n_kk = len(config.derivatives.kk_edges) - 1
    steps = config.nuisances
    expected = {
        "edges": [36, 186, 336, 486, 636],
        "bandpowers": written.high[PER_SKY:].mean(0),
        "n_patches": PER_SKY,
        "n_sim": n_test,
        # t and n of the test patches have nothing in common.
        "patch_covariance": written.cosmic + written.own,
        "noise_covariance": written.own / n_test,
        "derivative_covariance": covariance_of_mean(written.moved[1]),
        "response": RESPONSE,
        "response_error": 0.05 / np.sqrt(n_validation) * np.ones(N_BINS),
        "noise": written.noise,
        "noise_error": np.sqrt(np.diag(written.own) / n_test),
        "kk_edges": config.derivatives.kk_edges,
        "ee_edges": config.derivatives.ee_edges,
        "kk_derivatives": written.slopes[..., :n_kk].mean(0),
        "kk_derivative_errors": error_of_mean(written.slopes[..., :n_kk]),
        "ee_derivatives": written.slopes[..., n_kk:].mean(0),
        "ee_derivative_errors": error_of_mean(written.slopes[..., n_kk:]),
        "curvature": written.q.mean(0),
        "curvature_errors": error_of_mean(written.q),
        "kk_direction": written.along[:n_kk],
        "ee_direction": written.along[n_kk:],
        "nuisance_steps": [steps.gain, steps.beam, steps.noise, steps.angle],
        "nuisance_first": written.first.mean(0),
        "nuisance_first_errors": error_of_mean(written.first),
        "nuisance_second": written.second.mean(0),
        "nuisance_second_errors": error_of_mean(written.second),
        # As far as windows or bands reach.
        "fiducial_kk": fiducial.kk[:1001],
        "fiducial_ee": fiducial.ee[:1001],
    }
    for name, value in expected.items():
        found = getattr(release, name)
        scale = np.abs(value).max()
        np.testing.assert_allclose(found, value, rtol=1e-7, atol=1e-9 * scale, err_msg=name)
    # Windows end where the patches' κ does, and give the fiducial bandpowers.
    assert release.windows.shape == (N_BINS, config.sky.band_limit + 1)
    np.testing.assert_allclose(
        release.windows @ fiducial.kk[: config.sky.band_limit + 1],
        written.signal,
        rtol=3 * WINDOW_TOLERANCE,
    )
    assert release.instrument == {
        "noise": 1.0,
        "beam_fwhm": 1.0,
        "mask_taper_deg": 0.5,
        "patch_deg": 10.0,
        "patch_pixels": 48,
    }
    provenance = release.provenance
    assert provenance["network_sha256"] == HASH
    assert provenance["seed"] == config.seed
    assert provenance["derivative_step"] == 0.1
    assert provenance["derivative_excursion_omch2"] == 0.01
    assert provenance["skies"]["survey-high"] == "sky 1"
    assert "10 patches of 10 x 10 deg at 1 uK arcmin" in release.description
    assert release.theory["cosmology"]["omch2"] == config.cosmology.omch2
    # The covariance of a survey adds what its calibration does not know.
    np.testing.assert_allclose(
        release.covariance,
        (written.cosmic + written.own) / PER_SKY
        + written.own / n_test
        + covariance_of_mean(written.moved[1]),
        rtol=1e-7,
    )
    from_document(seal(to_document(release)), "memory")


def test_windows_are_trimmed_by_power_on_both_sides():
    """Of windows of known wings, exactly what lies beyond the tolerance goes."""
    windows = np.zeros((2, 101))
    windows[0, [10, 50, 90]] = 0.5 * WINDOW_TOLERANCE, 1.0, 0.5 * WINDOW_TOLERANCE
    windows[1, [10, 50, 90]] = 2.0 * WINDOW_TOLERANCE, -1.0, 2.0 * WINDOW_TOLERANCE
    trimmed = trim_windows(windows, np.ones(150))
    assert np.flatnonzero(trimmed[0]).tolist() == [50]
    np.testing.assert_array_equal(trimmed[1], windows[1])


def test_changes_of_a_band_are_of_its_power():
    """Σ(2l+1)C_l of the band's multipoles, first edge in, last edge out."""
    fiducial = np.ones(10)
    moved = fiducial.copy()
    moved[3] = 2.0
    # 7 of 5 + 7 + 9, and of 11 + 13 nothing.
    np.testing.assert_allclose(band_changes(np.array([2, 5, 7]), moved, fiducial), [7 / 21, 0.0])
    np.testing.assert_allclose(band_changes(np.array([3, 4]), moved, fiducial), [1.0])
    np.testing.assert_array_equal(band_changes(np.array([4, 7]), moved, fiducial), [0.0])


def test_the_debias_of_shifted_skies(config, written):
    """κ̂κ̂*/R² less the truth of the shifted sky, −step before +step; second order from both."""
    found = shifted_noise(config, HASH, RESPONSE)
    np.testing.assert_allclose(found, written.centre + written.moved, rtol=1e-9)
    first = read_derivatives(config, HASH, RESPONSE)
    np.testing.assert_allclose(first.centre, written.centre, rtol=1e-9)
    curved = read_curvature(config, HASH, RESPONSE, first)
    np.testing.assert_allclose(curved.patches, written.q, atol=1e-7 * written.q.max())
    np.testing.assert_allclose(curved.shift, written.moved[1], atol=1e-9 * written.moved.max())


def with_points(config, written, off):
    """Test skies at the points: the debias of patch p moves by what its derivatives say and
    ``off``, the truth by something of κ's size. Gives the change of the debias that was put in."""
    put = []
    for change in config.points.at["some"]:
        delta = written.changes(**change)
        model = written.slopes.mean(0) @ delta + written.q.mean(0) * (written.along @ delta) ** 2
        parts = []
        for i in range(config.points.skies):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            generator = np.random.default_rng([6, i])
            moved = (
                model + off + 0.05 * written.signal * generator.standard_normal((PER_SKY, N_BINS))
            )
            truth = written.truth[rows] * (1 + generator.random((PER_SKY, N_BINS)))
            auto = written.auto[rows] + RESPONSE**2 * (moved + truth - written.truth[rows])
            products.write_product(
                config.point_path(change, i),
                "points",
                config.point_recipe(change, i, HASH),
                {"auto": auto, "truth": truth},
            )
            parts.append(moved)
        put.append(np.concatenate(parts))
    return put


@pytest.mark.parametrize("second_order", [True, False])
def test_points(config, written, second_order):
    """The change of the truth is taken off what is found; the prediction and its covariance are
    those of the derivatives' patches."""
    put = with_points(config, written, 0.0)
    first = read_derivatives(config, HASH, RESPONSE)
    checks = check_points(config, HASH, RESPONSE, first, "some", second_order)
    assert [c.change for c in checks] == config.points.at["some"]
    for check, moved in zip(checks, put, strict=True):
        delta = written.changes(**check.change)
        by_patch = written.slopes @ delta
        if second_order:
            by_patch = by_patch + written.q * (written.along @ delta) ** 2
        scale = written.signal.max()
        np.testing.assert_allclose(check.found, moved, atol=1e-9 * scale)
        np.testing.assert_allclose(check.predicted, by_patch.mean(0), atol=1e-9 * scale)
        np.testing.assert_allclose(
            check.residual, moved.mean(0) - by_patch.mean(0), atol=1e-9 * scale
        )
        np.testing.assert_allclose(
            check.covariance,
            covariance_of_mean(moved) + covariance_of_mean(by_patch),
            atol=1e-9 * scale**2 / 10,
        )


def test_points_as_a_survey_sees_them(config, written, monkeypatch):
    """A model that is off by what ω_c + x would do to the bandpowers moves ω_c by x, in σ."""
    monkeypatch.setattr(tables, "OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14]))
    release = make_release(config, HASH, "fiducial")
    table = Omch2Likelihood(config, BandpowerLikelihood(release))
    slope = table.slope(config.cosmology.omch2)
    sigma = table.sigma(config.cosmology.omch2, release.covariance)
    assert sigma == pytest.approx(
        (slope @ np.linalg.inv(release.covariance) @ slope) ** -0.5, rel=1e-6
    )
    put = with_points(config, written, 3.0 * sigma * slope)
    found = points_table(config, HASH, "some")
    assert (found.n_survey, found.n_patches, found.n_bins) == (PER_SKY, 2 * PER_SKY, N_BINS)
    gain = np.linalg.inv(release.covariance) @ slope * sigma
    for k, (change, moved) in enumerate(zip(found.changes, put, strict=True)):
        delta = written.changes(**change)
        t2 = (written.along @ delta) ** 2
        first = written.slopes @ delta
        both = first + written.q * t2
        residual = moved.mean(0) - both.mean(0)
        assert found.shift[k] == pytest.approx(gain @ residual, rel=1e-4)
        assert found.shift[k] == pytest.approx(3.0, abs=0.5)
        assert found.shift_linear[k] == pytest.approx(
            gain @ (moved.mean(0) - first.mean(0)), rel=1e-4
        )
        covariance = covariance_of_mean(moved) + covariance_of_mean(both)
        assert found.shift_error[k] == pytest.approx(np.sqrt(gain @ covariance @ gain), rel=1e-4)
        assert found.chi2[k] == pytest.approx(
            residual @ inverse_covariance(covariance) @ residual, rel=1e-4
        )
    # All points together: scatter of the patches' mean over the points.
    together = np.mean(put, axis=0)
    model = [
        written.slopes @ d + written.q * (written.along @ d) ** 2
        for d in (written.changes(**c) for c in found.changes)
    ]
    residual = together.mean(0) - np.mean([m.mean(0) for m in model], axis=0)
    covariance = covariance_of_mean(together) + np.mean([covariance_of_mean(m) for m in model], 0)
    assert found.mean_chi2 == pytest.approx(
        residual @ inverse_covariance(covariance) @ residual, rel=1e-4
    )


class Scaled:
    """κ̂ = cQ̃, whose power the gain 1 + g changes by what is known."""

    def __init__(self, scale):
        self.scale = scale

    def reconstruct(self, q, u):
        return self.scale * q


def test_check_of_nuisances(config, written):
    """A change that was simulated beside what A and B of other skies say it does, in d's units."""
    index = config.nuisances.skies
    make_skies(config, "test", [index], 1)
    spectra = spectra_of(config)
    seen = {
        x: observe_sky(config, "test", index, systematics=Systematics(gain=x)) for x in (0.0, 0.2)
    }
    scale = np.sqrt(written.signal.mean() / spectra.auto(seen[0.0].q).mean())
    auto = {x: spectra.auto(scale * s.q) for x, s in seen.items()}
    config.bandpower_path("test", index).unlink()
    products.write_product(
        config.bandpower_path("test", index),
        "bandpowers",
        config.bandpower_recipe("test", index, HASH),
        dict.fromkeys(("auto", "cross", "truth"), auto[0.0]),
    )
    changes = {"gain": 0.2}
    (check,) = check_nuisances(config, Scaled(scale), HASH, RESPONSE, index, changes)
    by_patch = 0.2 * written.first[..., 0] + 0.04 * written.second[..., 0]
    shift = (auto[0.2] - auto[0.0]) / RESPONSE**2
    np.testing.assert_allclose(check.found, shift.mean(0), rtol=1e-5)
    np.testing.assert_allclose(check.predicted, by_patch.mean(0), rtol=1e-9)
    expected = np.sqrt(error_of_mean(shift) ** 2 + error_of_mean(by_patch) ** 2)
    np.testing.assert_allclose(check.error, expected, rtol=1e-4)
    with pytest.raises(CNNLensError, match="gave the derivatives itself; check on one from 2"):
        check_nuisances(config, Scaled(scale), HASH, RESPONSE, 1, changes)


@pytest.mark.parametrize("true_kappa", [False, True])
def test_joint_covariance_of_products(config, written, true_kappa):
    """Blocks κκ, EE, BB of the same patches in order; κκ debiased, or of the true κ."""
    n = config.skies.test * PER_SKY
    power = np.random.default_rng(7).random((2, n, N_BINS))
    power *= np.array([1e-4, 1e-6])[:, None, None]
    for i in range(config.skies.test):
        rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
        arrays = {"ee": power[0, rows], "bb": power[1, rows]}
        recipe = primary_recipe(config, "test", i)
        products.write_product(primary_path(config, "test", i), PRIMARY, recipe, arrays)
    joint = read_joint(config, HASH, true_kappa=true_kappa)
    kk = written.truth if true_kappa else written.truth + written.n
    samples = np.concatenate([kk, power[0], power[1]], axis=1)
    assert joint.blocks == ("kk", "ee", "bb")
    assert joint.n_sim == n
    np.testing.assert_allclose(joint.mean, samples.mean(0), rtol=1e-7)
    expected = n * covariance_of_mean(samples)
    sigma = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        joint.covariance / np.outer(sigma, sigma), expected / np.outer(sigma, sigma), atol=1e-7
    )
    r = joint.correlation
    np.testing.assert_allclose(r, np.corrcoef(samples, rowvar=False), atol=1e-7)
    np.testing.assert_allclose(joint.correlation_error, (1 - r**2) / np.sqrt(n - 1), rtol=1e-12)
    np.testing.assert_array_equal(joint.block(r, "kk", "bb"), r[:N_BINS, 2 * N_BINS :])
    some = read_joint(config, HASH, indices=[1, 2], true_kappa=true_kappa)
    np.testing.assert_allclose(some.mean, samples[PER_SKY:].mean(0), rtol=1e-7)


def test_tables_of_the_same_products(config, written):
    """N_L with both of its errors, ρ, power, and the error of one patch's bandpower."""
    table = noise_table(config, HASH)
    np.testing.assert_allclose(table.L, 36 + 150 * (np.arange(N_BINS) + 0.5))
    np.testing.assert_allclose(table.response, RESPONSE, rtol=1e-9)
    np.testing.assert_allclose(table.noise, written.noise, rtol=1e-9)
    by_response = 2 * (written.signal + written.noise) / RESPONSE * table.response_error
    own = np.sqrt(np.diag(written.own) / len(written.n))
    np.testing.assert_allclose(table.noise_error, np.hypot(own, by_response), rtol=1e-7)
    sigma = np.sqrt(np.diag(written.cosmic + written.own))
    np.testing.assert_allclose(table.relative_error, sigma / written.signal, rtol=1e-7)
    power = RESPONSE**2 * (1 + written.noise / written.signal)
    np.testing.assert_allclose(table.power, power, rtol=1e-7)
    # The "cross" that was written is ⟨κ̂κ̂*⟩ itself.
    np.testing.assert_allclose(table.correlation, np.sqrt(power), rtol=1e-7)

    residual = residual_table(config, HASH, "survey-high")
    np.testing.assert_allclose(residual.truth, written.high.mean(0), rtol=1e-9)
    # d − κκ* of the survey is nothing at all: what is left is the noise's own error.
    np.testing.assert_allclose(residual.residual, 0.0, atol=1e-9 * written.signal.max())
    np.testing.assert_allclose(residual.error, own, rtol=1e-7)
    assert residual.n_patches == 2 * PER_SKY


def test_single_patches_against_the_fiducial(config, written):
    """χ² of d − ⟨d⟩_fid with one patch's covariance."""
    release = make_release(config, HASH, "high")
    chi2, sigma = null_significance(config, HASH, release, "high")
    off = written.high - written.signal
    expected = [o @ np.linalg.solve(written.cosmic + written.own, o) for o in off]
    np.testing.assert_allclose(chi2, expected, rtol=1e-6)
    assert (np.diff(sigma[np.argsort(chi2)]) >= 0).all()
