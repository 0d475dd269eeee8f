"""Response, noise, derivatives and assembly, with estimators whose answers are known."""

import numpy as np
import pytest

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.assemble import (
    band_changes,
    make_data_release,
    make_release,
    read_curvature,
    read_derivatives,
    trim_windows,
)
from cobaya_cnnlens.calibrate.covariance import mean_covariance, sample_covariance
from cobaya_cnnlens.calibrate.coverage import measure_coverage, read_coverage
from cobaya_cnnlens.calibrate.curvature import direction, measure_curvature, second_order
from cobaya_cnnlens.calibrate.derivatives import measure_derivatives
from cobaya_cnnlens.calibrate.measure import (
    MAP_BANDPOWERS,
    PatchBandpowers,
    measure,
    measure_skies,
    read_bandpowers,
    spectra_of,
)
from cobaya_cnnlens.calibrate.nuisances import measure_nuisances, read_nuisances
from cobaya_cnnlens.calibrate.points import check_points, measure_points
from cobaya_cnnlens.calibrate.response import calibrate
from cobaya_cnnlens.config import Config
from cobaya_cnnlens.errors import CNNLensError, ConfigError, ProductError
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.release import read_release, write_release
from cobaya_cnnlens.simulate.instrument import Systematics
from cobaya_cnnlens.simulate.observation import observe_sky
from cobaya_cnnlens.simulate.patches import patch_centres
from cobaya_cnnlens.simulate.stage import make_skies, spectra_for

HASH = "a" * 64


class Linear:
    """κ̂ = Q̃: its power is linear in the EE spectrum, so derivatives are known exactly."""

    def reconstruct(self, q, u):
        return q


@pytest.fixture
def tiny(small_config) -> Config:
    config = small_config.model_dump(mode="json")
    config["camb"]["lmax"] = config["sky"]["lmax"] = 1000
    config["sky"]["band_limit"] = 800
    config["patch"] = {"size_deg": 10.0, "n_pixels": 48, "pad": 2}
    config["centres"] = {"nside": 2, "poles": 4}
    config["bandpowers"] = {"lmin": 36, "width": 150, "n_bins": 4}
    config["derivatives"] = {"kk_edges": [2, 400, 801], "ee_edges": [2, 300, 1001], "step": 0.1}
    config["skies"] = {"train": 1, "validation": 1, "test": 1, "derivatives": 1}
    return Config.model_validate(config)


def linear_model(generator, n, response, noise, kk):
    """κ̂ bandpowers of a known response and noise: κ̂ = Rκ + n."""
    kappa = np.sqrt(kk) * generator.standard_normal((n, 500, len(kk)))
    extra = np.sqrt(noise) * generator.standard_normal((n, 500, len(kk)))
    estimate = response * (kappa + extra)
    return PatchBandpowers((estimate**2).mean(1), (kappa * estimate).mean(1), (kappa**2).mean(1))


def test_known_response_and_noise_are_recovered():
    generator = np.random.default_rng(0)
    response, noise, kk = np.array([0.9, 0.3]), np.array([0.5, 4.0]), np.array([2.0, 1.0])
    validation, test = (linear_model(generator, 400, response, noise, kk) for _ in range(2))
    found = calibrate(validation, test)
    assert (np.abs(found.response - response) < 4 * found.response_error).all()
    assert (np.abs(found.noise - noise) < 4 * found.noise_error).all()
    assert (found.noise_error < 0.05 * noise).all()
    # d_b averages to the true spectrum of that test set, exactly.
    np.testing.assert_allclose(found.debias(test.auto).mean(0), test.truth.mean(0), rtol=1e-12)


def test_covariances_of_a_sample_and_of_its_mean():
    """Against the covariance the samples were drawn from, and the scatter of 500 means."""
    generator = np.random.default_rng(2)
    truth = np.array([[2.0, 0.6], [0.6, 1.0]])
    samples = generator.multivariate_normal([1.0, -1.0], truth, size=(500, 40))
    mean = np.mean([sample_covariance(s) for s in samples], axis=0)
    np.testing.assert_allclose(mean, truth, atol=0.04)
    of_mean = np.mean([mean_covariance(s) for s in samples], axis=0)
    np.testing.assert_allclose(of_mean, np.cov(samples.mean(1), rowvar=False), atol=0.01)


def test_a_network_that_knows_nothing_is_refused():
    generator = np.random.default_rng(1)
    good = linear_model(generator, 50, np.array([1.0, 1.0]), np.ones(2), np.ones(2))
    blind = PatchBandpowers(good.auto, good.cross * [1, -1e-3], good.truth)
    with pytest.raises(CNNLensError, match=r"not positive in bins \[1\]"):
        calibrate(blind, good)


def test_nan_in_the_reconstruction_is_refused(tiny):
    maps = np.ones((2, 48, 48))
    bad = maps.copy()
    bad[1, 3, 4] = np.nan
    with pytest.raises(CNNLensError, match="not finite"):
        measure(spectra_of(tiny), Linear(), bad, maps, maps)


def test_derivatives_of_a_linear_estimator(tiny):
    """With κ̂ = Q̃ + noise, Σ_j ∂⟨κ̂²⟩/∂ln C_j^EE over all EE bands is ⟨Q̃ (Q̃ + n)⟩, map by map."""
    make_skies(tiny, "derivatives", [0])
    measure_derivatives(tiny, Linear(), HASH, 0)
    spectra = spectra_of(tiny)
    seen = observe_sky(tiny, "derivatives", 0)
    quiet = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0)})
    clean = observe_sky(quiet, "derivatives", 0)
    recipe = tiny.derivative_recipe(0, HASH)
    with products.open_product(tiny.derivative_path(0), "derivatives", recipe) as product:
        ee, kk, auto = (product.array(k) for k in ("ee", "kk", "auto"))
        truth, kk_truth = product.array("truth"), product.array("kk_truth")
    np.testing.assert_allclose(auto, spectra.auto(seen.q), rtol=1e-4)
    np.testing.assert_allclose(truth, spectra.auto(seen.kappa), rtol=1e-4)
    expected = spectra.cross(spectra.transform(clean.q), spectra.transform(seen.q))
    np.testing.assert_allclose(ee.sum(0), expected, rtol=0.01, atol=1e-3 * expected.max())
    # κ is linear in φ: its power is quadratic in the bands' amplitudes, and sums to itself.
    np.testing.assert_allclose(kk_truth.sum(0), truth, rtol=0.01)
    # E power does not care much about lensing, but it cares.
    ratio = np.abs(kk.sum(0).mean(0)) / auto.mean(0)
    assert (ratio < 0.1).all()
    assert ratio.max() > 1e-5


def test_derivatives_resume_band_by_band(tiny, monkeypatch):
    """A run that stops after three bands does the other two only, with the same result."""
    from cobaya_cnnlens.calibrate import derivatives

    measure_derivatives(tiny, Linear(), HASH, 0)
    path = tiny.derivative_path(0)
    whole = path.read_bytes()
    path.unlink()
    done = []
    run = derivatives.Bench.run

    def stop_at_the_fourth(self, kind, band):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((kind, band))
        return run(self, kind, band)

    monkeypatch.setattr(derivatives.Bench, "run", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        measure_derivatives(tiny, Linear(), HASH, 0)
    monkeypatch.setattr(
        derivatives.Bench, "run", lambda s, k, b: (done.append((k, b)), run(s, k, b))[1]
    )
    measure_derivatives(tiny, Linear(), HASH, 0)
    assert len(done) == len(set(done)) == 5
    assert hash(path.read_bytes()) == hash(whole)


class Oracle:
    """κ̂ with a known response, from the true κ of the sky being reconstructed."""

    def __init__(self, kappa, response):
        self.kappa, self.response = kappa, response

    def reconstruct(self, q, u):
        return self.response * self.kappa + 0.003 * q


def test_a_release_is_assembled_from_products(tiny, tmp_path):
    """The whole calibration on small skies: what comes out is a valid, consistent release."""
    for name in tiny.set_names():
        make_skies(tiny, name)
        kappa = observe_sky(tiny, name, 0).kappa
        measure_skies(tiny, Oracle(kappa, 0.8), HASH, name)
    oracle = Oracle(observe_sky(tiny, "derivatives", 0).kappa, 0.8)
    measure_derivatives(tiny, oracle, HASH, 0)
    measure_curvature(tiny, oracle, HASH, 0)
    measure_nuisances(tiny, Oracle(observe_sky(tiny, "test", 0).kappa, 0.8), HASH, 0)
    release = make_release(tiny, HASH, "high")
    write_release(release, tmp_path / "r.json")
    assert read_release(tmp_path / "r.json").name == "test_high"
    # The same patches as a user's own maps make the same release, but for its name and truth.
    auto = read_bandpowers(tiny, HASH, "survey-high").auto
    arrays = {
        "auto": auto,
        "centres": patch_centres(2, 4),
        "frame": np.bytes_(b"C"),
        "source": np.bytes_(b"m.fits"),
    }
    products.write_product(tmp_path / "b.h5", MAP_BANDPOWERS, tiny.map_recipe(HASH), arrays)
    own = make_data_release(tiny, HASH, tmp_path / "b.h5", "mine")
    write_release(own, tmp_path / "own.json")
    assert own.truth is None
    np.testing.assert_array_equal(own.bandpowers, release.bandpowers)
    np.testing.assert_array_equal(own.covariance, release.covariance)
    with pytest.raises(ProductError, match="network"):
        make_data_release(tiny, "b" * 64, tmp_path / "b.h5", "mine")
    np.testing.assert_allclose(release.response, 0.8, rtol=0.1)
    assert release.n_patches == release.n_sim == 40
    # Noise-debias derivatives: the oracle does not see C^κκ move, so the truth's change is all
    # missing; of C^EE it sees what the .003 Q̃ in it carries.
    seen = observe_sky(tiny, "derivatives", 0)
    quiet = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0)})
    clean = observe_sky(quiet, "derivatives", 0)
    spectra = spectra_of(tiny)
    truth = spectra.auto(seen.kappa).mean(0)
    np.testing.assert_allclose(release.kk_derivatives.sum(1), -truth, rtol=0.05)
    estimate = spectra.transform(0.8 * seen.kappa + 0.003 * seen.q)
    moved = spectra.cross(spectra.transform(0.003 * clean.q), estimate).mean(0)
    np.testing.assert_allclose(
        release.ee_derivatives.sum(1),
        moved / release.response**2,
        rtol=0.02,
        atol=1e-3 * moved.max(),
    )
    # An oracle's bandpowers follow the survey's true spectrum.
    truth = spectra_for(tiny, tiny.set_cosmology("survey-high"))
    likelihood = BandpowerLikelihood(release, "fixed")
    chi2 = likelihood.chi2(truth.kk, truth.ee)
    assert likelihood.pte(chi2) > 1e-3
    with pytest.raises(ProductError, match="network"):
        read_bandpowers(tiny, "b" * 64, "test")


def test_nuisances_of_a_linear_estimator(tiny):
    """κ̂ = Q̃ + n: gain g changes its power by (2g + g²)⟨Q̃²⟩ + 2g⟨Q̃n⟩, noise likewise with Q̃ and n
    exchanged; a rotation by 45° exchanges Q and U; a wider beam takes power off at high L."""
    make_skies(tiny, "test", [0])
    measure_skies(tiny, Linear(), HASH, "test", [0])
    measure_nuisances(tiny, Linear(), HASH, 0)
    first, second = read_nuisances(tiny, HASH, np.ones(4))
    spectra = spectra_of(tiny)
    seen = observe_sky(tiny, "test", 0)
    quiet = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0)})
    clean = observe_sky(quiet, "test", 0)
    signal, noise = (spectra.transform(m) for m in (clean.q, seen.q - clean.q))
    auto, mixed = spectra.cross(signal, signal), spectra.cross(signal, noise)
    own = spectra.cross(noise, noise)
    scale = {"rtol": 1e-3, "atol": 1e-4 * auto.max()}
    np.testing.assert_allclose(first[..., 0], 2 * (auto + mixed), **scale)
    np.testing.assert_allclose(second[..., 0], auto, rtol=0.02, atol=1e-3 * auto.max())
    np.testing.assert_allclose(first[..., 2], 2 * (own + mixed), **scale)
    assert (first[..., 1].mean(0) < 0).all()
    fall = np.abs(first[..., 1].mean(0)) / auto.mean(0)
    assert (np.diff(fall) > 0).all()
    turned = observe_sky(quiet, "test", 0, systematics=Systematics(angle=45.0))
    np.testing.assert_allclose(turned.q, -clean.u, atol=1e-5 * np.abs(clean.u).max())
    np.testing.assert_allclose(turned.u, clean.q, atol=1e-5 * np.abs(clean.q).max())


def test_another_cosmology_is_where_the_derivatives_put_it(tiny):
    """Of κ̂ = Q̃ at a tenth more power: the change of its noise debias on one sky is what another
    sky's derivatives say, to their errors; without them it is far off."""
    points = {"skies": 1, "at": {"brighter": [{"As": 1.1 * tiny.cosmology.As}]}}
    config = Config.model_validate({**tiny.model_dump(mode="json"), "points": points})
    make_skies(config, "test", [0])
    measure_skies(config, Linear(), HASH, "test", [0])
    measure_derivatives(config, Linear(), HASH, 0)
    measure_curvature(config, Linear(), HASH, 0)
    measure_points(config, Linear(), HASH, 0)
    first = read_derivatives(config, HASH, np.ones(4))
    (check,) = check_points(config, HASH, np.ones(4), first, "brighter")
    error = np.sqrt(np.diag(check.covariance))
    assert (np.abs(check.residual) < 4 * error).all()
    assert (np.abs(check.predicted) > 10 * error).all()
    with pytest.raises(ConfigError, match="no cosmological parameter A_s"):
        load_points(config, [{"A_s": 2e-9}])


def load_points(config, changes):
    """The configuration with other points, checked as when it is read from a file."""
    from cobaya_cnnlens.config import load_config

    content = {**config.model_dump(mode="json"), "points": {"at": {"group": changes}}}
    path = config.products / "points.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_config(path)


def test_coverage_skies_are_drawn_from_the_prior(tiny):
    """Each has its own ω_c, phases and noise; measuring again does nothing; a changed prior is
    another product."""
    values = [tiny.coverage_cosmology(i).omch2 for i in range(200)]
    assert len(set(values)) == 200
    assert 0.1085 <= min(values) < 0.1087
    assert 0.128 < max(values) <= 0.1285
    measure_coverage(tiny, Linear(), HASH)
    one, two = read_coverage(tiny, HASH)
    assert (one.omch2, two.omch2) == tuple(values[:2])
    assert np.abs(np.corrcoef(one.auto[:, 0], two.auto[:, 0])[0, 1]) < 0.6
    before = tiny.coverage_path(0).stat().st_mtime_ns
    measure_coverage(tiny, Linear(), HASH)
    assert tiny.coverage_path(0).stat().st_mtime_ns == before
    wider = tiny.coverage.model_copy(update={"omch2": (0.1, 0.13)})
    with pytest.raises(ProductError, match="omch2"):
        read_coverage(tiny.model_copy(update={"coverage": wider}), HASH)


def test_second_order_of_a_known_parabola():
    """d = N'·δ + Q t² at two ends of different size gives Q back, and nothing when Q is zero."""
    generator = np.random.default_rng(3)
    below, above = np.array([-0.1, 0.05, 0.2]), np.array([0.12, -0.04, -0.23])
    along = direction(below, above)
    assert along @ (above - below) / 2 == pytest.approx(1.0)
    t = np.array([along @ below, along @ above])
    truth = generator.standard_normal((5, 4))
    np.testing.assert_allclose(second_order(t[:, None, None] ** 2 * truth, t), truth)
    np.testing.assert_array_equal(second_order(np.zeros((2, 5, 4)), t), 0.0)


def test_curvature_of_an_estimator_that_has_one(tiny):
    """κ̂ = Q̃ (⟨Q̃²⟩/⟨Q̃²⟩_fid)^½ squares the power of EE: twice the first order of κ̂ = Q̃, and what
    that leaves of the square's own change at ω_c ± step is second order."""
    make_skies(tiny, "derivatives", [0])
    level = np.mean(observe_sky(tiny, "derivatives", 0).q ** 2)

    class Squaring:
        def reconstruct(self, q, u):
            return q * np.sqrt(np.mean(q**2) / level)

    found, change = {}, {}
    for name, estimator in (("once", Linear()), ("squared", Squaring())):
        config = tiny.model_copy(update={"products": tiny.products / name})
        make_skies(config, "derivatives", [0])
        measure_derivatives(config, estimator, HASH, 0)
        measure_curvature(config, estimator, HASH, 0)
        first = read_derivatives(config, HASH, np.ones(4))
        found[name] = read_curvature(config, HASH, np.ones(4), first).patches.sum(1).mean()
        recipe = config.derivative_recipe(0, HASH)
        with products.open_product(config.derivative_path(0), "derivatives", recipe) as product:
            centre = product.array("auto")
        recipe = config.curvature_recipe(0, HASH)
        with products.open_product(config.curvature_path(0), "curvature", recipe) as product:
            change[name] = (product.array("auto").mean(0) - centre).sum(1).mean()
    first_order = change["once"] - found["once"]
    assert found["squared"] == pytest.approx(change["squared"] - 2.0 * first_order, rel=0.2)


def test_trimmed_windows_keep_the_bandpowers(fiducial):
    L = np.arange(2000)
    windows = np.array([np.exp(-0.5 * ((L - c) / 50.0) ** 2) for c in (300.0, 900.0)])
    trimmed = trim_windows(windows, fiducial.kk)
    np.testing.assert_allclose(
        trimmed @ fiducial.kk[:2000], windows @ fiducial.kk[:2000], rtol=5e-6
    )
    assert (trimmed == 0).mean() > 0.5


def test_band_changes_are_changes_of_power(fiducial):
    edges = np.array([2, 100, 1000])
    np.testing.assert_allclose(
        band_changes(edges, 1.1 * fiducial.ee, fiducial.ee), [0.1, 0.1], rtol=1e-9
    )
