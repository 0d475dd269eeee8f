"""Features of skies on disk, and a refining network's training and use from a configuration."""

import keras
import numpy as np
import pytest

from cobaya_cnnlens import products
from cobaya_cnnlens.errors import ConfigError, NetworkError
from cobaya_cnnlens.pipeline import features, networks, refining
from cobaya_cnnlens.pipeline.features import Features
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.estimator_settings import Phase, Refining
from cobaya_cnnlens.pipeline.sections.sky_settings import PatchCentres
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.pipeline.training_state import save_atomically
from cobaya_cnnlens.reconstruct.features import FEATURES, KAPPA_UNIT, PASSES, REFINED, features_of
from cobaya_cnnlens.reconstruct.files import networks_hash
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.refined import RefiningUNet, load_refining
from cobaya_cnnlens.reconstruct.resunet import ResUNet, load_network
from cobaya_cnnlens.simulate.instrument import convolve_beam, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.shards import FIELDS
from cobaya_cnnlens.simulate.skies import seed_sequence
from cobaya_cnnlens.simulate.tiling import largest_overlap, ring_centres
from cobaya_cnnlens.simulate.varied import Variation

from ..conftest import REPOSITORY

PATCHES = 3
# One noise level: a filter is made for each.
VARIATION = Variation(as_it_is=1.0, noiseless=0.0, taper_share=0.5)


@pytest.fixture(scope="module", autouse=True)
def one_level():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(features, "VARIATION", VARIATION)
        yield


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A configuration of a refining network whose skies are a few patches of noise."""
    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    phases = [Phase(steps=3, batch=2, learning_rate=1e-3, warmup=1)]
    training = {
        "phases": phases,
        "steps_per_epoch": 1,
        "validation_patches": 3,
        "jit_compile": False,
    }
    config = config.model_copy(
        update={
            "network": config.network.model_copy(update={"kind": "refined", "width": 4}),
            "training": config.training.model_copy(update=training),
            "refining": Refining(batch=2),
            "centres": config.centres.model_copy(update={"nside": 1, "poles": 4}),
            "skies": config.skies.model_copy(update={"train": 1}),
            "products": tmp_path_factory.mktemp("refined"),
        }
    )
    generator, n = np.random.default_rng(5), config.patch.n_padded
    for name in ("train", "validation"):
        maps = {f: generator.standard_normal((PATCHES, n, n)).astype("f4") for f in FIELDS}
        Skies(Run(config)).write(maps, name, 0)
    return config


@pytest.fixture(scope="module")
def made(refined):
    run = Run(refined)
    for name in ("train", "validation"):
        Features(run, threads=1).measure(name)
    return run


def test_a_sky_is_several_files_and_validation_as_many_as_are_asked_for(refined):
    run = Run(refined)
    assert run.n_patches == 4
    assert Features(run).keys("train") == [("train", 0, 0), ("train", 0, 1)]
    few = refined.training.model_copy(update={"validation_patches": 2})
    fewer = Run(refined.model_copy(update={"training": few}))
    assert Features(fewer).learned_from("validation") == [("validation", 0, 0)]
    assert Features(fewer).learned_from("train") == Features(fewer).keys("train")
    assert Features(run).keys("test") == [("test", 0, 0), ("test", 0, 1)]


def test_features_are_of_the_sky_seen_through_the_drawn_instrument(made):
    """Part 1, of the last patch alone, has the other taper."""
    config = made.config
    found = Features(made).read(Features(made).keys("train"))
    assert found.features.shape == (PATCHES, 64, 64, len(FEATURES))
    fields = Skies(made).read("train", 0, ("lensed_q", "lensed_u", "kappa"))
    q, u, kappa = (maps[2:3] for maps in fields)
    taper = VARIATION.taper(1, config.instrument)
    assert taper != config.instrument.taper_deg
    mask = cosine_mask(config.patch, taper)
    generator = np.random.default_rng(seed_sequence(config.seed, "features/train", 0, 2))
    level, rms = VARIATION.draw(config.patch, config.instrument, generator)
    noise = generator.standard_normal((2, 64, 64)) * np.where(np.isfinite(rms), rms, 0.0)
    q, u = (
        mask * (convolve_beam(m, config.instrument, config.patch) + n)
        for m, n in zip((q, u), noise, strict=True)
    )
    ascent = MAPLensing(config.patch, config.instrument, mask, made.spectra(), PASSES, 1)
    (expected,) = features_of(ascent, q, u, rms, threads=1)
    np.testing.assert_allclose(found.features[2], expected, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(found.kappa[2], mask * config.patch.crop(kappa)[0], atol=1e-6)
    assert found.level[2] == level


def test_validation_is_seen_by_the_instrument_itself(made):
    """With the noise of every stage, so that its features give the bandpowers of the sky itself."""
    found = Features(made).read(Features(made).keys("validation"))
    assert set(found.level) == {made.config.instrument.noise_uk_arcmin}
    seen = observe_sky(made, "validation", 0)
    ascent = MAPLensing(
        made.config.patch, made.config.instrument, made.mask, made.spectra(), PASSES, 1
    )
    expected = np.stack(list(features_of(ascent, seen.q, seen.u, threads=1)))
    np.testing.assert_array_equal(found.features, expected.astype(np.float16))
    np.testing.assert_array_equal(found.kappa, seen.kappa.astype(np.float32))


def test_bandpowers_are_the_same_from_features_on_disk(made, tmp_path, monkeypatch):
    file = tmp_path / "n.keras"
    keras.utils.set_random_seed(3)
    network = RefiningUNet(4)
    network.set_weights([w + 0.01 * np.ones_like(w) for w in network.get_weights()])
    save_atomically(network, file)
    update = {"network": made.config.network.model_copy(update={"pretrained": file})}
    run = Run(made.config.model_copy(update=update))
    Bandpowers(run).measure("validation")
    kept = Bandpowers(run).read("validation")
    Bandpowers(run).path("validation", 0).unlink()
    monkeypatch.setattr(Features, "exists", lambda *args: False)
    Bandpowers(run).measure("validation")
    for a, b in zip(
        vars(kept).values(), vars(Bandpowers(run).read("validation")).values(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_what_is_there_is_not_made_again(made):
    before = {p: p.stat().st_mtime_ns for p in made.config.products.rglob("features/**/*.h5")}
    assert len(before) == 4
    first, *rest = before
    first.unlink()
    Features(made, threads=1).measure(first.parent.name)
    assert {p: p.stat().st_mtime_ns for p in rest} == {p: before[p] for p in rest}
    assert first.exists()


def test_another_variation_is_another_product(made, monkeypatch):
    def recipes():
        return Features(made).recipe("validation", 0, 0), networks.recipe(made)

    validation, training = recipes()
    monkeypatch.setattr(features, "VARIATION", Variation(hole_share=0.1))
    with pytest.raises(products.ProductError, match=r"variation\.hole_share"):
        Features(made).read([("train", 0, 0)])
    assert recipes()[0] == validation
    assert recipes()[1] != training


def test_a_stopped_training_ends_where_it_would_have(made, tmp_path, eager):
    whole = list(refining.train(made, tmp_path / "whole"))
    assert [r["epoch"] for r in whole] == [1, 2, 3]
    run = refining.train(made, tmp_path / "parts")
    parts = [next(run)]
    run.close()
    parts += list(refining.train(made, tmp_path / "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
    for name in ("epoch_0003.keras", "mean_0003.keras"):
        ends = [
            keras.saving.load_model(tmp_path / folder / name, compile=False).get_weights()
            for folder in ("whole", "parts")
        ]
        for a, b in zip(*ends, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    assert list(refining.train(made, tmp_path / "whole")) == []


def test_the_mean_follows_the_weights_and_is_what_is_kept(made, tmp_path, eager):
    state = refining.TrainingRun(tmp_path, networks.recipe(made))
    list(refining.train(made, tmp_path))
    state = refining.TrainingRun(tmp_path, networks.recipe(made))
    mean = keras.saving.load_model(tmp_path / state._mean, compile=False)
    last, before = state.load_checkpoint().network, refining.new_learner(made).network
    moved = [np.linalg.norm(b - a) for a, b in zip(*_kernels(before, last), strict=True)]
    behind = [np.linalg.norm(b - a) for a, b in zip(*_kernels(mean, last), strict=True)]
    assert 0 < sum(behind) < sum(moved)
    best = min(state.history, key=lambda h: h["val_loss"])["epoch"]
    assert state._best == f"mean_{best:04d}.keras"


def _kernels(*models):
    return [[w for w in m.get_weights() if w.ndim == 4] for m in models]


def test_the_estimator_refines_what_the_ascent_finds(made, tmp_path):
    """An untrained network changes nothing; the run's estimator is the ascent times the mask."""
    file = tmp_path / "untrained.keras"
    save_atomically(RefiningUNet(4), file)
    network = made.config.network.model_copy(update={"pretrained": file})
    run = Run(made.config.model_copy(update={"network": network}))
    q, u = np.random.default_rng(3).standard_normal((2, 2, 64, 64)) * run.mask
    config = run.config
    ascent = MAPLensing(config.patch, config.instrument, run.mask, run.spectra(), PASSES, 1)
    expected = np.stack(list(features_of(ascent, q, u, threads=1)))[..., FEATURES.index(REFINED)]
    expected = KAPPA_UNIT * expected.astype(np.float16)
    # Half precision: 6e-8 of a feature, whatever its size.
    np.testing.assert_allclose(run.estimator.reconstruct(q, u), expected, rtol=1e-3, atol=1e-7)
    assert run.estimator_id != networks_hash([file])
    plain = Run(
        config.model_copy(update={"network": network.model_copy(update={"kind": "resunet"})})
    )
    with pytest.raises(NetworkError, match="holds a RefiningUNet, not a ResUNet"):
        plain.estimator.reconstruct(q, u)


def test_kinds_are_told_apart(tmp_path):
    save_atomically(RefiningUNet(4), tmp_path / "refining.keras")
    ResUNet(width=4).save(tmp_path / "resunet.keras")
    with pytest.raises(NetworkError, match="holds a RefiningUNet, not a ResUNet"):
        load_network(tmp_path / "refining.keras")
    with pytest.raises(NetworkError, match="holds a ResUNet, not a RefiningUNet"):
        load_refining(tmp_path / "resunet.keras")


def write(tmp_path, **changes):
    import yaml

    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content["network"] = {"kind": "refined", "width": 4}
    content["training"]["phases"] = [{"steps": 2, "learning_rate": 1e-3}]
    for section, values in changes.items():
        content[section] = {**content.get(section, {}), **values}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"dropout": 0.3}}, r"network\.dropout is of kind 'resunet'"),
        ({"patch": {"n_pixels": 72}}, "multiples of 16"),
        (
            {"training": {"phases": [{"steps": 2, "learning_rate": 1e-3, "crop": 32}]}},
            "learns whole patches",
        ),
    ],
)
def test_impossible_configurations(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, **changes))


def test_few_patches_are_taken_evenly_where_each_costs_much(tmp_path):
    """Surveys and derivatives: some of the whole sky's patches, the same of every sky."""
    patch = PatchGeometry(20.0, n_pixels=16, pad=1)
    config = load_config(write(tmp_path, centres={"rings": True, "spread": 7}))
    run = Run(config.model_copy(update={"patch": patch}))
    assert len(run.spread) == 7
    assert set(np.diff(run.spread)) <= {run.n_patches // 7, run.n_patches // 7 + 1}
    whole, few = run.pointing_of("test"), run.pointing_of("derivatives")
    for name in ("theta", "phi", "frame"):
        of_patch = [getattr(p, name).reshape(-1, 18**2) for p in (whole, few)]
        np.testing.assert_array_equal(of_patch[0][run.spread], of_patch[1])
    assert Skies(run).recipe("test", 0)["centres"] == {"rings": True}
    assert Skies(run).recipe("survey-high", 0)["centres"] == {"rings": True, "spread": 7}
    assert Features(run).keys("derivatives") == [("derivatives", 0, 0)]
    plain = Run(run.config.model_copy(update={"centres": PatchCentres(rings=True, spread=10_000)}))
    np.testing.assert_array_equal(plain.spread, np.arange(plain.n_patches))


def test_a_dense_sky_is_full_and_no_patch_lies_over_another(tmp_path):
    """Some 94% of the sky in the shipped patches' size; here larger ones, for speed."""
    config = load_config(write(tmp_path, centres={"rings": True}))
    run = Run(config.model_copy(update={"patch": PatchGeometry(20.0, n_pixels=16, pad=0)}))
    assert run.n_patches * 400 > 0.75 * 41253
    assert Skies(run).recipe("train", 0)["centres"] == {"rings": True}
    assert largest_overlap(ring_centres(20.0), 20.0) < 1e-3
    assert len(run.pointing_of("test").theta) == run.n_patches * run.config.patch.n_padded**2
