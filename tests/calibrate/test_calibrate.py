"""Response, noise, derivatives and assembly, with estimators whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.covariance import mean_covariance, sample_covariance
from cobaya_cnnlens.calibrate.curvature import (
    band_changes,
    change_above,
    curvature_of,
    direction,
    second_order,
)
from cobaya_cnnlens.calibrate.response import PatchBandpowers, calibrate, patch_bandpowers
from cobaya_cnnlens.calibrate.windows import WINDOW_TOLERANCE, trim_windows
from cobaya_cnnlens.errors import CNNLensError, ProductError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.release import from_document, read_release, write_release
from cobaya_cnnlens.maps import bandpower_file, map_setup
from cobaya_cnnlens.maps.assembly import make_patch_release
from cobaya_cnnlens.pipeline.assemble import make_release
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.estimators import name_of
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.perturbations import (
    Derivatives,
    ShiftedSkies,
    perturbed_sky,
    shifted_changes,
)
from cobaya_cnnlens.pipeline.power import power_of
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.simulate.instrument import Systematics
from cobaya_cnnlens.simulate.patches import patch_centres
from cobaya_cnnlens.simulate.perturbed_skies import PerturbedSky
from cobaya_cnnlens.simulate.tiling import evenly
from cobaya_cnnlens.validate import coverage
from cobaya_cnnlens.validate.nuisance_checks import check_nuisances

from ..written import (
    HASH,
    N_BINS,
    PER_SKY,
    RESPONSE,
    Written,
    covariance_of_mean,
    error_of_mean,
    small,
)


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
        patch_bandpowers(Run(tiny).bandpowers, bad, maps)


def test_derivatives_of_a_linear_estimator(tiny):
    """With κ̂ = Q̃ + noise, Σ_j ∂⟨κ̂²⟩/∂ln C_j^EE over all EE bands is ⟨Q̃ (Q̃ + n)⟩, map by map."""
    Skies(Run(tiny)).measure("derivatives", [0])
    Derivatives(Run(tiny, HASH, Linear())).measure([0])
    spectra = Run(tiny).bandpowers
    seen = observe_sky(Run(tiny), "derivatives", 0)
    quiet = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0)})
    clean = observe_sky(Run(quiet), "derivatives", 0)
    recipe = Derivatives(Run(tiny, HASH)).recipe(0)
    with products.open_product(Derivatives(Run(tiny)).path(0), "derivatives", recipe) as product:
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

    Derivatives(Run(tiny, HASH, Linear())).measure([0])
    path = Derivatives(Run(tiny)).path(0)
    whole = path.read_bytes()
    path.unlink()
    done = []
    measured = PerturbedSky.measure

    def stop_at_the_fourth(self, kind, band):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((kind, band))
        return measured(self, kind, band)

    monkeypatch.setattr(PerturbedSky, "measure", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        Derivatives(Run(tiny, HASH, Linear())).measure([0])
    monkeypatch.setattr(
        PerturbedSky,
        "measure",
        lambda s, k, b: (done.append((k, b)), measured(s, k, b))[1],
    )
    Derivatives(Run(tiny, HASH, Linear())).measure([0])
    assert len(done) == len(set(done)) == 5
    assert hash(path.read_bytes()) == hash(whole)


@pytest.mark.parametrize(("kind", "band"), [("kk", 0), ("ee", 1)])
def test_a_scaled_band_is_a_sky_of_the_scaled_spectrum(tiny, monkeypatch, kind, band):
    """What the estimator sees with a band at 1 ± ε, ε = .6, is the sky of the spectrum scaled in
    this band, with the same phases and noise; the derivative is the difference over 2ε."""
    settings = tiny.derivatives.model_copy(update={"step": 0.6})
    config = tiny.model_copy(update={"derivatives": settings})
    fiducial = Run(config).spectra()
    shown = []

    class Recording:
        def reconstruct(self, q, u):
            shown.append((q, u))
            return q

    run = Run(config, HASH, Recording())
    derivative = perturbed_sky(run, 0, 1).measure(kind, band)
    low, high = getattr(settings, f"{kind}_edges")[band : band + 2]
    power = []
    for maps, factor in zip(list(shown), (1.6, 0.4), strict=True):
        cl = getattr(fiducial, kind).copy()
        cl[low:high] *= factor
        scaled = replace(fiducial, **{kind: cl})
        monkeypatch.setattr(run, "spectra", lambda *_, scaled=scaled: scaled)
        power.append(perturbed_sky(run, 0, 1).unperturbed())
        for one, other in zip(maps, shown[-1], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * other.std())
    for name, values in derivative.items():
        difference = (power[0][name] - power[1][name]) / (2 * 0.6)
        scale = np.abs(difference).max()
        np.testing.assert_allclose(values, difference, rtol=1e-3, atol=1e-4 * scale)


class Oracle:
    """κ̂ with a known response, from the true κ of the sky being reconstructed."""

    def __init__(self, kappa, response):
        self.kappa, self.response = kappa, response

    def reconstruct(self, q, u):
        return self.response * self.kappa + 0.003 * q


def test_a_release_is_assembled_from_products(tiny, tmp_path):
    """The whole calibration on small skies: what comes out is a valid, consistent release."""
    for name in tiny.set_names():
        Skies(Run(tiny)).measure(name)
        kappa = observe_sky(Run(tiny), name, 0).kappa
        Bandpowers(Run(tiny, HASH, Oracle(kappa, 0.8))).measure(name)
    oracle = Oracle(observe_sky(Run(tiny), "derivatives", 0).kappa, 0.8)
    Derivatives(Run(tiny, HASH, oracle)).measure([0])
    ShiftedSkies(Run(tiny, HASH, oracle)).measure([0])
    Nuisances(Run(tiny, HASH, Oracle(observe_sky(Run(tiny), "test", 0).kappa, 0.8))).measure([0])
    release = make_release(Run(tiny, HASH), "high")
    write_release(release, tmp_path / "r.json")
    assert read_release(tmp_path / "r.json").name == "test_high"
    # The same patches as a user's own maps make the same release, but for its name and truth.
    auto = Bandpowers(Run(tiny, HASH)).read("survey-high").auto
    arrays = {
        "auto": auto,
        "power": np.ones((len(auto), 5)),
        "rotation": np.ones((len(auto), 2)),
        "centres": patch_centres(2, 4),
        "known": np.ones(len(patch_centres(2, 4)), bool),
        "frame": np.bytes_(b"C"),
        "source": np.bytes_(b"m.fits"),
        "warnings": products.texts(()),
    }
    products.write_product(
        tmp_path / "b.h5", bandpower_file.KIND, map_setup.recipe(Run(tiny, HASH)), arrays
    )
    own = make_patch_release(Run(tiny, HASH), tmp_path / "b.h5", "mine")
    write_release(own, tmp_path / "own.json")
    assert own.truth is None
    np.testing.assert_array_equal(own.bandpowers, release.bandpowers)
    np.testing.assert_array_equal(own.covariance, release.covariance)
    with pytest.raises(ProductError, match="network"):
        make_patch_release(Run(tiny, "b" * 64), tmp_path / "b.h5", "mine")
    np.testing.assert_allclose(release.response, 0.8, rtol=0.1)
    assert release.n_patches == release.n_sim == 40
    # Derivatives of the noise bias: the oracle does not see C^κκ move, so the truth's change is all
    # missing; of C^EE it sees what the .003 Q̃ in it carries.
    seen = observe_sky(Run(tiny), "derivatives", 0)
    quiet = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0)})
    clean = observe_sky(Run(quiet), "derivatives", 0)
    spectra = Run(tiny).bandpowers
    truth = spectra.auto(seen.kappa).mean(0)
    np.testing.assert_allclose(release.kk_derivatives.sum(1), -truth, rtol=0.05)
    estimate = spectra.transform(0.8 * seen.kappa + 0.003 * seen.q)
    moved = spectra.cross(spectra.transform(0.003 * clean.q), estimate).mean(0)
    measured = Derivatives(Run(tiny, HASH)).read(release.response)
    np.testing.assert_allclose(
        measured.ee.values.sum(1),
        moved / release.response**2,
        rtol=0.02,
        atol=1e-3 * moved.max(),
    )
    # An oracle's bandpowers follow the survey's true spectrum.
    truth = Run(tiny).spectra(tiny.set_cosmology("survey-high"))
    likelihood = BandpowerLikelihood(release, "fixed")
    chi2 = likelihood.chi2(truth.kk, truth.ee)
    assert likelihood.pte(chi2) > 1e-3
    with pytest.raises(ProductError, match="network"):
        Bandpowers(Run(tiny, "b" * 64)).read("test")


def test_nuisances_of_a_linear_estimator(tiny):
    """κ̂ = Q̃ + n: gain g changes its power by (2g + g²)⟨Q̃²⟩ + 2g⟨Q̃n⟩, noise likewise with Q̃ and n
    exchanged; a rotation by 45° exchanges Q and U; a wider beam takes power off at high L."""
    Skies(Run(tiny)).measure("test", [0])
    Bandpowers(Run(tiny, HASH, Linear())).measure("test", [0])
    Nuisances(Run(tiny, HASH, Linear())).measure([0])
    first, second = Nuisances(Run(tiny, HASH)).read(np.ones(4))
    spectra = Run(tiny).bandpowers
    seen = observe_sky(Run(tiny), "test", 0)
    quiet = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0)})
    clean = observe_sky(Run(quiet), "test", 0)
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
    turned = observe_sky(Run(quiet), "test", 0, systematics=Systematics(angle=45.0))
    np.testing.assert_allclose(turned.q, -clean.u, atol=1e-5 * np.abs(clean.u).max())
    np.testing.assert_allclose(turned.u, clean.q, atol=1e-5 * np.abs(clean.q).max())


@pytest.mark.parametrize("prior", [{}, {"logA": (2.7, 3.4)}])
def test_stratified_truths_fill_the_prior(tiny, prior):
    """Of 64, every sixteenth of each axis, and every sixteenth of a plane, holds its share to one
    or two; sixty-four independent ones leave sixteenths empty."""
    section = tiny.coverage.model_copy(update={"stratified": True, **prior})
    run = Run(tiny.model_copy(update={"coverage": section}))
    found = [coverage.drawn(run, i) for i in range(64)]
    unit = np.array(
        [[(x[k] - low) / (high - low) for k, (low, high) in section.prior.items()] for x in found]
    )
    for column in unit.T:
        counts = np.histogram(column, 16, (0, 1))[0]
        assert 2 <= counts.min() <= counts.max() <= 6, counts
    if prior:
        counts = np.histogram2d(*unit.T, 4, [(0, 1), (0, 1)])[0]
        assert 2 <= counts.min() <= counts.max() <= 6, counts
        first = coverage.cosmology_at(run, coverage.drawn(run, 0))
        assert first.As == pytest.approx(1e-10 * np.exp(found[0]["logA"]))


def test_coverage_of_some_patches_with_their_power(tiny):
    """Patches are those of the whole sky, spread evenly, of those that the set has; their power is
    that of their maps."""
    tiny = tiny.model_copy(
        update={"centres": tiny.centres.model_copy(update={"rings": True, "spread": 3})}
    )
    section = tiny.coverage.model_copy(update={"patches": 2})
    some = tiny.model_copy(update={"coverage": section, "data_debias": True})
    whole, part = Run(tiny, HASH, Linear()), Run(some, HASH, Linear())
    coverage.measure(whole, [0])
    want = coverage.read(whole)[0]
    coverage.path(whole, 0).unlink()
    coverage.measure(part, [0])
    found = coverage.read(part)[0]
    rows = evenly(len(want.auto), 2)
    np.testing.assert_allclose(found.auto, want.auto[rows], rtol=1e-6)
    np.testing.assert_allclose(found.truth, want.truth[rows], rtol=1e-6)
    assert want.power is None
    cosmology = coverage.cosmology_at(part, coverage.drawn(part, 0))
    bench = perturbed_sky(part, 0, 1, part.spectra(cosmology), coverage.KIND, rows=rows)
    np.testing.assert_allclose(found.power, power_of(part)(*bench.observed()), rtol=1e-9)


def test_coverage_skies_are_drawn_from_the_prior(tiny):
    """Each has its own ω_c, phases and noise; measuring again does nothing; a changed prior is
    another product."""
    values = [coverage.drawn(Run(tiny), i)["omch2"] for i in range(200)]
    assert len(set(values)) == 200
    assert 0.1085 <= min(values) < 0.1087
    assert 0.128 < max(values) <= 0.1285
    with pytest.raises(ProductError, match="sky_0000"):
        coverage.read(Run(tiny, HASH))
    coverage.measure(Run(tiny, HASH, Linear()), [0])
    (first,) = coverage.read(Run(tiny, HASH))
    coverage.measure(Run(tiny, HASH, Linear()))
    one, two = coverage.read(Run(tiny, HASH))
    np.testing.assert_array_equal(first.auto, one.auto)
    assert [sky.parameters for sky in (one, two)] == [{"omch2": x} for x in values[:2]]
    assert np.abs(np.corrcoef(one.auto[:, 0], two.auto[:, 0])[0, 1]) < 0.6
    before = coverage.path(Run(tiny), 0).stat().st_mtime_ns
    coverage.measure(Run(tiny, HASH, Linear()))
    assert coverage.path(Run(tiny), 0).stat().st_mtime_ns == before
    wider = tiny.coverage.model_copy(update={"omch2": (0.1, 0.13)})
    with pytest.raises(ProductError, match="omch2"):
        coverage.read(Run(tiny.model_copy(update={"coverage": wider}), HASH))


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


@pytest.fixture
def written(tmp_path) -> Written:
    return Written(Config.model_validate(small(tmp_path / "products")))


def test_every_field_of_a_release(written):
    """Against the numbers that the products were made of."""
    config = written.config
    release = make_release(Run(config, HASH), "high", sky=1)
    assert release.name == "test_high_sky1"
    assert release.truth["omch2"] == config.surveys["high"].omch2
    n_test = config.skies.test * PER_SKY
    n_validation = config.skies.validation * PER_SKY
    fiducial = Run(config).spectra()
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
        "derivative_covariance": covariance_of_mean(written.model),
        "response": RESPONSE,
        "response_error": 0.05 / np.sqrt(n_validation) * np.ones(N_BINS),
        "noise": written.noise,
        "noise_error": np.sqrt(np.diag(written.own) / n_test),
        "kk_edges": config.derivatives.kk_edges,
        "kk_derivatives": written.slopes[..., :n_kk].mean(0),
        "kk_derivative_errors": error_of_mean(written.slopes[..., :n_kk]),
        "curvature": written.q.mean(0),
        "curvature_errors": error_of_mean(written.q),
        "kk_direction": written.along,
        "nuisance_steps": [getattr(steps, name) for name in NUISANCES],
        # The last of what is simulated is the rotation, which is no nuisance.
        "nuisance_first": written.first.mean(0)[:, :-1],
        "nuisance_first_errors": error_of_mean(written.first)[:, :-1],
        "nuisance_second": written.second.mean(0)[:, :-1],
        "nuisance_second_errors": error_of_mean(written.second)[:, :-1],
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
    of = f"10 patches of 10 x 10 deg at 1 uK arcmin: convergence bandpowers ({name_of(config)})"
    assert of in release.description
    assert provenance["estimator"] == name_of(config)
    assert release.theory["cosmology"]["omch2"] == config.cosmology.omch2
    # The covariance of a survey adds what its calibration does not know.
    np.testing.assert_allclose(
        release.covariance,
        (written.cosmic + written.own) / PER_SKY
        + written.own / n_test
        + covariance_of_mean(written.model),
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


def test_the_debias_of_shifted_skies(written):
    """κ̂κ̂*/R² less the truth of the shifted sky, −step before +step; second order from both."""
    config = written.config
    noise_bias = ShiftedSkies(Run(config, HASH)).read(RESPONSE)
    np.testing.assert_allclose(noise_bias, written.centre + written.moved, rtol=1e-9)
    first = Derivatives(Run(config, HASH)).read(RESPONSE)
    np.testing.assert_allclose(first.centre, written.centre, rtol=1e-9)
    changes = shifted_changes(Run(config, HASH))
    curved = curvature_of(first, noise_bias, changes)
    np.testing.assert_allclose(curved.patches, written.q, atol=1e-7 * written.q.max())
    # Of one patch the change above is what was put in, where both signs agree on the second order.
    change = change_above(first, noise_bias, changes)
    first_order = np.einsum("pbj,sj->spb", written.slopes, changes)
    second = written.moved - first_order
    scale = np.abs(written.moved).max()
    np.testing.assert_allclose(change - first_order[1], second[1], atol=0.05 * scale)


class Scaled:
    """κ̂ = cQ̃, whose power the gain 1 + g changes by what is known."""

    def __init__(self, scale):
        self.scale = scale

    def reconstruct(self, q, u):
        return self.scale * q


def test_check_of_nuisances(written):
    """A change that was simulated beside what A and B of other skies say it does, in d's units."""
    config = written.config
    index = config.nuisances.skies
    Skies(Run(config), 1).measure("test", [index])
    spectra = Run(config).bandpowers
    seen = {
        x: observe_sky(Run(config), "test", index, systematics=Systematics(gain=x))
        for x in (0.0, 0.2)
    }
    scale = np.sqrt(written.signal.mean() / spectra.auto(seen[0.0].q).mean())
    auto = {x: spectra.auto(scale * s.q) for x, s in seen.items()}
    Bandpowers(Run(config)).path("test", index).unlink()
    products.write_product(
        Bandpowers(Run(config)).path("test", index),
        "bandpowers",
        Bandpowers(Run(config, HASH)).recipe("test", index),
        dict.fromkeys(("auto", "cross", "truth"), auto[0.0]),
    )
    changes = {"gain": 0.2}
    (check,) = check_nuisances(Run(config, HASH, Scaled(scale)), RESPONSE, index, changes)
    by_patch = 0.2 * written.first[..., 0] + 0.04 * written.second[..., 0]
    shift = (auto[0.2] - auto[0.0]) / RESPONSE**2
    np.testing.assert_allclose(check.simulated, shift.mean(0), rtol=1e-5)
    np.testing.assert_allclose(check.predicted, by_patch.mean(0), rtol=1e-9)
    expected = np.sqrt(error_of_mean(shift) ** 2 + error_of_mean(by_patch) ** 2)
    np.testing.assert_allclose(check.error, expected, rtol=1e-4)
    with pytest.raises(CNNLensError, match="gave the derivatives itself; check on one from 2"):
        check_nuisances(Run(config, HASH, Scaled(scale)), RESPONSE, 1, changes)
