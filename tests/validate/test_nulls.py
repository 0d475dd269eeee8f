"""Null tests: a good estimator passes every one, and each fails for an estimator that breaks it.

Patches are those of small skies at 6′, on which the quadratic estimator finds most of κ below
L = 836. Its modes end below the Nyquist multipole, at which no mode has a mirror image.
"""

import ducc0
import numpy as np
import pytest
import scipy.fft

from cobaya_cnnlens import products
from cobaya_cnnlens.errors import CNNLensError, ConfigError, ProductError
from cobaya_cnnlens.pipeline.assemble import calibration_of
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.mean_field import baseline_recipe
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.plots.figures import draw
from cobaya_cnnlens.reconstruct.n0 import Filter
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate import patches, shards
from cobaya_cnnlens.simulate.bandpowers import e_and_b
from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.one_over_f import OneOverF
from cobaya_cnnlens.validate import nulls
from cobaya_cnnlens.validate.null_tests import ROUNDING, null_test, nulls_table
from cobaya_cnnlens.validate.nulls import (
    NULLS,
    SkyNulls,
    beyond_mask,
    check_names,
    gaussian_b,
    mean_field,
    turned,
)

from ..conftest import REPOSITORY, png, write_network

HASH = "a" * 64
BAND = Filter(72, 1700)


@pytest.fixture(scope="module")
def config(camb_once, tmp_path_factory) -> Config:
    content = load_config(REPOSITORY / "training" / "config" / "test.yaml").model_dump(mode="json")
    folder = tmp_path_factory.mktemp("nulls")
    content |= {"products": str(folder / "products"), "skies_from": str(folder / "skies")}
    content["camb"]["lmax"] = content["sky"]["lmax"] = 2000
    content["sky"]["band_limit"] = 1700
    content["patch"] = {"size_deg": 5.0, "n_pixels": 48, "pad": 2}
    content["bandpowers"] = {"lmin": 36, "width": 200, "n_bins": 4}
    content["derivatives"] |= {"kk_edges": [2, 1701], "ee_edges": [2, 2001]}
    content["skies"] = {"train": 1, "validation": 1, "test": 1, "derivatives": 1}
    config = Config.model_validate(content)
    Skies(Run(config), 1).measure("test", [0])
    # One sky stands for the three sets: no null compares maps of one with those of another.
    skies = Skies(Run(config))
    for other in ("train", "validation"):
        skies.write(skies.arrays("test", 0), other, 0)
    return config


@pytest.fixture(scope="module")
def quadratic(config) -> QuadraticEstimator:
    mask = Run(config).mask
    theory = Run(config).spectra()
    return QuadraticEstimator(config.patch, config.instrument, mask, theory, band=BAND)


class Recording:
    """An estimator that keeps the maps it was shown."""

    def __init__(self, estimator):
        self.estimator, self.shown = estimator, []

    def reconstruct(self, q, u):
        self.shown.append((q, u))
        return self.estimator.reconstruct(q, u)


class Plus:
    """κ̂ of an estimator and something else that is made of the maps or is not."""

    def __init__(self, estimator, extra):
        self.estimator, self.extra = estimator, extra

    def reconstruct(self, q, u):
        return self.estimator.reconstruct(q, u) + self.extra(q, u)


@pytest.fixture(scope="module")
def shown(config, quadratic):
    """The quadratic estimator's products of every null, and the maps that it was shown."""
    recording = Recording(quadratic)
    for name in ("test", "validation"):
        Bandpowers(Run(config, HASH, quadratic)).measure(name)
    nulls.measure(Run(config, HASH, recording), nthreads=1)
    # Products are there: nothing is reconstructed again.
    nulls.measure(Run(config, HASH, None), nthreads=1)
    order = ("training", "unlensed", "swapped", "noise", "b_only", "parity", "curl")
    return dict(zip(order, recording.shown, strict=True))


def table_of(config, estimator, folder, names):
    """The table of some nulls of an estimator, with products of its own."""
    own = config.model_copy(update={"products": config.products.parent / folder})
    for name in ("test", "validation"):
        Bandpowers(Run(own, HASH, estimator)).measure(name)
    nulls.measure(Run(own, HASH, estimator), names)
    return nulls_table(Run(own, HASH), names)


def verdicts(table):
    return {t.name: t.verdict for t in table.tests}


def test_a_good_estimator_passes(config, shown):
    table = nulls_table(Run(config, HASH))
    assert [t.name for t in table.cross] == list(NULLS)
    response = calibration_of(Run(config, HASH))[0].response
    assert (response > 0.5).all()
    found = verdicts(table)
    assert found.pop("parity") == "zero to rounding"
    # The quadratic estimator's mean field on test maps is the mask's, and it is there.
    assert found.pop("mean test") == "FAILS"
    assert "FAILS" not in found.values()
    # Nulls with power to fail: errors are a small part of what lensed maps give.
    assert all((t.errors < 0.3 * response).all() for t in table.cross)
    powers = {p.name: p for p in table.over_noise}
    assert (powers["unlensed"].values < 0.9).all()
    odd = next(p for p in table.over_own if p.name == "odd part")
    assert (odd.values < ROUNDING).all()
    text = table.table()
    for words in ("zero to rounding", "lowest PTE", "odd part"):
        assert words in text


def test_maps_are_what_they_are_said_to_be(config, shown):
    """Test maps are noiseless ones and the noise; B differs from noise by B; a curl from both."""
    quiet = config.model_copy(update={"instrument": config.instrument.__class__(0.0)})
    lensed, unlensed = (
        observe_sky(Run(quiet), "test", 0, lensed=choice) for choice in (True, False)
    )
    noise = shown["noise"][0]
    for name, clean in (("swapped", lensed), ("unlensed", unlensed)):
        np.testing.assert_allclose(shown[name][0], clean.q + noise, atol=1e-5)
    np.testing.assert_array_equal(shown["parity"][1], -shown["swapped"][1][..., ::-1])
    spectra = Run(config).bandpowers
    e, b = e_and_b(spectra, *(a - c for a, c in zip(shown["b_only"], shown["noise"], strict=True)))
    # The mask makes little E of B.
    assert (spectra.cross(e, e).mean(0) < 0.2 * spectra.cross(b, b).mean(0)).all()
    moved = [np.std(shown["curl"][0] - noise - other.q) for other in (lensed, unlensed)]
    assert min(moved) > 0.1 * lensed.q.std()


def test_some_patches_are_those_of_all(config, quadratic, shown):
    """The same maps as of the whole sky, and N_L that they are compared with is theirs."""
    own = config.model_copy(
        update={
            "products": config.products.parent / "few",
            "nulls": config.nulls.model_copy(update={"patches": 10}),
        }
    )
    for name in ("test", "validation"):
        Bandpowers(Run(own, HASH, quadratic)).measure(name)
    recording = Recording(quadratic)
    names = ("unlensed", "noise", "curl")
    nulls.measure(Run(own, HASH, recording), names, nthreads=1)
    n = Run(own).n_patches
    rows = np.arange(10) * n // 10
    for name, maps in zip(names, recording.shown, strict=True):
        for few, every in zip(maps, shown[name], strict=True):
            np.testing.assert_allclose(few, every[rows], atol=1e-5 * every.std())
        part, whole = (nulls.read(Run(c, HASH), name, [0]) for c in (own, config))
        np.testing.assert_allclose(part["auto"], whole["auto"][rows], rtol=1e-4)
    [ratio, *_] = nulls_table(Run(own, HASH), names).over_noise
    auto = nulls.read(Run(own, HASH), "unlensed", [0])["auto"]
    calibration, test = calibration_of(Run(own, HASH))
    few = test.auto[rows] / calibration.response**2 - test.truth[rows]
    expected = (auto / calibration.response**2).mean(0) / few.mean(0)
    np.testing.assert_allclose(ratio.values, expected, rtol=1e-9)


def test_figure_is_drawn(config, shown, tmp_path):
    with pytest.raises(CNNLensError, match="no null test has been measured"):
        draw(Run(config.model_copy(update={"products": tmp_path})), "nulls")
    # The configuration's hash is that of its network; here any network stands for it.
    network = config.network.model_copy(update={"pretrained": write_network(tmp_path / "n.keras")})
    own = config.model_copy(update={"network": network, "products": tmp_path})

    nulls.measure(
        Run(own, Run(own).estimator_id, Plus(Zero(), lambda q, u: q)), ["noise", "parity"]
    )
    for name in ("test", "validation"):
        kappa = observe_sky(Run(own), name, 0).kappa
        oracle = Plus(Zero(), lambda q, u, kappa=kappa: kappa + 1e-3 * q)
        Bandpowers(Run(own, Run(own).estimator_id, oracle)).measure(name)
    assert len(png(draw(Run(own), "nulls"))) > 10_000


class Zero:
    def reconstruct(self, q, u):
        return np.zeros(q.shape)


def test_an_estimator_that_learned_the_training_set_by_heart(config, quadratic):
    seen = observe_sky(Run(config), "train", 0, lensed=False)

    def by_heart(q, u):
        return 0.1 * seen.kappa * np.array_equal(q, seen.q)

    table = table_of(config, Plus(quadratic, by_heart), "heart", ["training", "unlensed"])
    assert verdicts(table) == {"training": "FAILS", "unlensed": "consistent with zero"}
    training = table.cross[0]
    assert abs(training.mean - 0.1) < 4 * training.mean_error
    assert training.mean_error < 0.03


def test_an_estimator_that_always_answers_with_kappa(config, quadratic, shown):
    """It fails wherever the maps hold no κ of the patch, even if it is right on lensed maps."""
    kappa = observe_sky(Run(config), "test", 0).kappa
    stubborn = Plus(quadratic, lambda q, u: 0.2 * kappa)
    names = ["unlensed", "swapped", "noise", "b_only", "parity"]
    found = verdicts(table_of(config, stubborn, "stubborn", names))
    assert {found[name] for name in names if name != "swapped"} == {"FAILS"}
    assert found["swapped"] == "consistent with zero"


def test_an_estimator_that_mixes_patches_up(config, quadratic):
    mixed = Plus(Zero(), lambda q, u: np.roll(quadratic.reconstruct(q, u), len(q) // 2, axis=0))
    own = Plus(quadratic, lambda q, u: 0.5 * mixed.reconstruct(q, u))
    table = table_of(config, own, "mixed", ["swapped"])
    assert verdicts(table)["swapped"] == "FAILS"
    assert table.cross[0].n_samples == 20


def test_an_estimator_with_a_pattern(config, quadratic):
    """A pattern in every κ̂ is no part of any κ, but it is a mean field, and one that the mask with
    the symmetries of the square cannot make; one with those symmetries can be the mask's."""
    mask = Run(config).mask
    x = np.cos(2 * np.pi * 5 * (np.arange(48) - 23.5) / 48)
    seen = observe_sky(Run(config), "test", 0)
    rms = quadratic.reconstruct(seen.q, seen.u).std()
    for name, pattern, verdict in (
        ("stripes", np.broadcast_to(x, (48, 48)), "FAILS"),
        ("chequers", x * x[:, None], "consistent with zero"),
    ):
        own = Plus(quadratic, lambda q, u, pattern=pattern: 0.5 * rms * mask * pattern)
        found = verdicts(table_of(config, own, name, ["noise", "b_only"]))
        assert found["noise"] == found["b_only"] == "consistent with zero"
        assert found["mean noise"] == found["mean b_only"] == verdict


def test_an_estimator_that_knows_left_from_right(config, quadratic):
    """B is odd under mirrors. With half of it in κ̂ = E the odd part has ¼⟨BB⟩ of ⟨EE⟩ + ¼⟨BB⟩; on
    an ensemble that is symmetric it cannot correlate with κ even so."""
    spectra = Run(config).bandpowers

    def half_b(q, u):
        e, b = e_and_b(spectra, q, u)
        return np.fft.irfft2(e + 0.5 * b, s=q.shape[-2:])

    handed = Plus(Zero(), half_b)
    own = config.model_copy(update={"products": config.products.parent / "handed"})
    bench = SkyNulls(Run(own, estimator=handed), 0, 1)
    found = bench.parity()
    e, b = (spectra.cross(m, m) for m in e_and_b(spectra, bench.observed.q, bench.observed.u))
    expected = 0.25 * b.mean(0) / (e + 0.25 * b).mean(0)
    np.testing.assert_allclose(found["auto"].mean(0) / found["even"].mean(0), expected, rtol=0.05)
    test = null_test("parity", "", spectra.bins.centres, found["cross"] / found["truth"].mean(0))
    assert test.verdict != "FAILS"


class CurlQuadratic(QuadraticEstimator):
    """The quadratic estimator of a curl potential ω, of deflection (∂ω/∂x, −∂ω/∂y) along (y, x)."""

    def combine(self, modes):
        box = self._box
        total = 0.0
        for inverse, wiener in self._pairs:
            left = self._fine(box.turn * self._inverse[inverse] * modes[inverse])
            right = 1j * box.turn * self._wiener[wiener] * modes[wiener]
            for outer, inner in ((box.lx, box.ly), (-box.ly, box.lx)):
                moved = np.conj(left) * self._fine(inner * right)
                total = total - 1j * outer * self._coarse(moved.real)
        return scipy.fft.ifft2(np.where(box.band, self._weight * total, 0.0)).real


def test_curl_is_there_for_an_estimator_that_looks_for_it(config, shown):
    """Its own null: on curl-deflected maps it finds ½L²ω, on test maps no κ."""
    mask = Run(config).mask
    theory = Run(config).spectra()
    leaky = CurlQuadratic(config.patch, config.instrument, mask, theory, band=BAND)
    bench = SkyNulls(Run(config, estimator=leaky), 0, 1)
    found = {}
    for name in ("curl", "swapped"):
        made = bench._compare(leaky.reconstruct(*shown[name]), bench.observed.kappa)
        samples = made["cross"] / made["truth"].mean(0)
        found[name] = null_test(name, "", bench.spectra.bins.centres, samples)
    assert found["curl"].verdict == "FAILS"
    assert (found["curl"].values > 0.4).all()
    assert found["swapped"].verdict != "FAILS"


def test_the_turned_gradient_is_a_curl(config):
    """Against ducc's synthesis of a spin-1 field of B modes √(l(l+1)) φ."""
    theory = Run(config).spectra()
    lmax = 300
    sky = shards.draw_sky(theory, lmax, 3, "tests", 0)
    pointing = patches.point_patch(np.array([1.1, 2.0]), config.patch)
    found = turned(patches.gradient_at(sky.philm, lmax, pointing))
    l = np.arange(lmax + 1)
    b = shards.scale_alm(sky.philm, np.sqrt(l * (l + 1.0)))
    theirs = ducc0.sht.synthesis_general(
        alm=np.stack([np.zeros_like(b), b]),
        spin=1,
        lmax=lmax,
        loc=np.stack([pointing.theta, pointing.phi], axis=1),
        epsilon=1e-7,
    )
    sign = np.sign(np.sum(found * theirs.T))
    np.testing.assert_allclose(found, sign * theirs.T, atol=1e-4 * found.std())


def test_gaussian_b_has_its_spectrum_and_no_e(config):
    theory = Run(config).spectra()
    q, u = gaussian_b(Run(config), theory.lensed_bb, 300, np.random.default_rng(0))
    n = config.patch.n_padded
    geometry = config.patch.__class__(config.patch.size_deg * n / config.patch.n_pixels, n, 0)
    periodic = type(Run(config).bandpowers)(geometry, Run(config).bandpowers.bins, np.ones((n, n)))
    e, b = e_and_b(periodic, q, u)
    assert np.abs(e).max() < 1e-6 * np.abs(b).max()
    ell = np.hypot(
        *np.meshgrid(
            np.fft.fftfreq(n, 1 / n) * geometry.fundamental,
            np.arange(n // 2 + 1) * geometry.fundamental,
            indexing="ij",
        )
    )
    expected = periodic.average_plane(np.interp(ell, np.arange(2001), theory.lensed_bb))
    power = periodic.cross(b, b)
    error = power.std(0) / np.sqrt(300)
    assert (np.abs(power.mean(0) - expected) < 4 * error).all()
    assert (error < 0.03 * expected).all()


def test_the_mean_field_of_the_same_map_thrice_is_its_power(config):
    """Of n equal maps every pair has the map's own power: Σ over n(n − 1) pairs, not n²."""
    spectra = Run(config).bandpowers
    generator = np.random.default_rng(4)
    one = generator.standard_normal((1, config.patch.n_pixels, config.patch.n_pixels))
    modes = spectra.transform(np.repeat(one, 3, axis=0))
    power, _ = mean_field(spectra, modes, generator)
    np.testing.assert_allclose(power, spectra.cross(modes[:1], modes[:1])[0])


def test_mean_field_of_a_known_pattern(config):
    """Unbiased: the power of the pattern that all maps have, whatever else there is in them."""
    generator = np.random.default_rng(1)
    spectra = Run(config).bandpowers
    n = config.patch.n_pixels
    pattern = 0.3 * generator.standard_normal((n, n))
    maps = generator.standard_normal((400, n, n))
    for extra, found in ((0.0, False), (pattern, True)):
        power, draws = mean_field(spectra, spectra.transform(maps + extra), generator)
        expected = spectra.auto(np.broadcast_to(extra, (1, n, n)))[0]
        error = draws.std(0)
        # The pattern's cross-power with the rest of the mean is beyond the draws.
        assert (np.abs(power - expected) < 4 * error + 0.2 * expected).all()
        assert bool((power > 5 * error).all()) == found
        np.testing.assert_allclose(draws.mean(0) / error, 0.0, atol=4 / np.sqrt(len(draws)))
    np.testing.assert_allclose(beyond_mask(beyond_mask(maps)), beyond_mask(maps), atol=1e-12)


def test_ptes_of_true_nulls_are_uniform():
    """With as few patches as these, χ² probabilities would not be."""
    generator = np.random.default_rng(2)
    root = np.linalg.cholesky(0.5 * np.eye(8) + 0.5)
    ptes = [
        null_test("x", "", np.arange(8), generator.standard_normal((20, 8)) @ root.T).pte
        for _ in range(400)
    ]
    counts = np.histogram(ptes, bins=5, range=(0, 1))[0]
    assert (np.abs(counts - 80) < 4 * np.sqrt(80 * 0.8)).all()


def test_bad_input_is_refused(config, shown, tmp_path):
    with pytest.raises(CNNLensError, match=r"no null test 'moon' of .*; choose of training"):
        nulls.measure(Run(config, HASH, None), ["moon"])
    with pytest.raises(ConfigError, match="set 'test' has skies 0 to 0, not 1"):
        nulls.measure(Run(config, HASH, None), ["noise"], [1])
    quiet = config.model_copy(update={"instrument": Instrument(0.0, 1.0)})
    assert "noise" not in check_names(Run(quiet))
    skew = Instrument(one_over_f=OneOverF(200.0, 3.0, 2.0, scan_deg=30.0))
    skew = config.model_copy(update={"instrument": skew})
    assert not {"noise", "b_only"} & set(check_names(Run(skew)))
    with pytest.raises(CNNLensError, match="no null test 'noise'"):
        nulls.measure(Run(quiet, HASH, None), ["noise"])
    with pytest.raises(ProductError, match="network"):
        nulls.measure(Run(config, "b" * 64, None), ["noise"])
    with pytest.raises(CNNLensError, match="not finite"):
        SkyNulls(Run(config, estimator=Plus(Zero(), lambda q, u: np.nan)), 0).noise()
    content = config.model_dump(mode="json") | {"nulls": {"skies": 2}}
    with pytest.raises(ValueError, match=r"nulls\.skies is 2, but there are 1 test skies"):
        Config.model_validate(content)


def test_other_products_keep_their_identity(config):
    """The section says how many skies there are, and nothing of what they hold."""
    more = config.model_copy(update={"nulls": config.nulls.model_copy(update={"skies": 5})})
    for recipe in (
        (
            lambda c: nulls.recipe(Run(c, HASH), "curl", 0),
            lambda c: Bandpowers(Run(c, HASH)).recipe("test", 0),
            lambda c: baseline_recipe(Run(c)),
        )
        if config.baseline
        else (
            lambda c: nulls.recipe(Run(c, HASH), "curl", 0),
            lambda c: Bandpowers(Run(c, HASH)).recipe("test", 0),
        )
    ):
        assert products.identity_of(recipe(config)) == products.identity_of(recipe(more))
    identities = {products.identity_of(nulls.recipe(Run(config, HASH), n, 0)) for n in NULLS}
    assert len(identities) == len(NULLS)
