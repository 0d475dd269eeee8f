import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import keras
import numpy as np
import pytest

import yaml
from cobaya_cnnlens import reconstruct
from cobaya_cnnlens.errors import NetworkError
from cobaya_cnnlens.pipeline import training
from cobaya_cnnlens.pipeline.estimators import network_estimator
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import check_network
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.pipeline.training_state import save_atomically
from cobaya_cnnlens.reconstruct.files import network_hash
from cobaya_cnnlens.reconstruct.resunet import (
    SYMMETRIES,
    EnsembleEstimator,
    NetworkEstimator,
    ResUNet,
    apply_symmetry,
    load_network,
    undo_symmetry,
)
from cobaya_cnnlens.simulate.shards import FIELDS

from ..conftest import REPOSITORY


def untrained(width, **arguments):
    scales = {"input_std": (4.0, 4.5), "output_std": (6.0, 0.07)}
    return ResUNet(width, **scales, metadata={"noise": 1.0, "bins": [1, 2]}, **arguments)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    return untrained(4)


# Networks in a process whose keras.json is another user's: κ̂ and Ê, and the types of the weights.
FOREIGN = """
import sys
import numpy as np
from cobaya_cnnlens.reconstruct.features import FEATURES
from cobaya_cnnlens.reconstruct.refined import RefiningUNet
from cobaya_cnnlens.reconstruct.resunet import load_network
features = np.ones((1, 16, 16, len(FEATURES)), "f4")
assert RefiningUNet(2, 2, 1)(features)["kappa"].shape == (1, 16, 16, 1)
network = load_network(sys.argv[1])
maps = np.load(sys.argv[2])
np.savez(sys.argv[3], **network.predict(maps, verbose=0))
assert {str(w.dtype) for w in network.weights} == {"float32"}
"""


def test_settings_of_keras_json_do_not_matter(network, tmp_path):
    """Where the axis of channels is, and the type of numbers. Nothing is written about the machine
    either."""
    (tmp_path / "keras.json").write_text(
        '{"image_data_format": "channels_first", "floatx": "float16", "backend": "tensorflow"}'
    )
    network.save(tmp_path / "n.keras")
    maps = np.random.default_rng(0).standard_normal((1, 32, 32, 2)).astype("f4")
    np.save(tmp_path / "maps.npy", maps)
    paths = [str(tmp_path / name) for name in ("n.keras", "maps.npy", "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, *paths],
        env={**os.environ, "KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = np.load(tmp_path / "out.npz")
    for head, values in network.predict(maps, verbose=0).items():
        np.testing.assert_allclose(found[head], values, atol=2e-5 * np.abs(values).max())


def test_a_format_set_in_the_process_does_not_matter(network, tmp_path):
    network.save(tmp_path / "n.keras")
    maps = np.ones((1, 32, 32, 2), "f4")
    try:
        keras.config.set_image_data_format("channels_first")
        found = load_network(tmp_path / "n.keras").predict(maps, verbose=0)
    finally:
        keras.config.set_image_data_format("channels_last")
    for head, values in network.predict(maps, verbose=0).items():
        np.testing.assert_allclose(found[head], values, rtol=1e-5)


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="JAX is then the only choice")
@pytest.mark.parametrize(
    ("backend", "said"), [("torch", "torch"), ("theano", "theano"), ("numpy", "'numpy'")]
)
def test_a_backend_of_keras_json_on_which_no_network_runs(backend, said, tmp_path):
    (tmp_path / "keras.json").write_text(f'{{"backend": "{backend}"}}')
    done = subprocess.run(
        [sys.executable, "-c", "import cobaya_cnnlens.reconstruct.resunet"],
        env={k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
        | {"KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cobaya_cnnlens.errors.NetworkError: Keras")
    assert said in last


@pytest.mark.parametrize(
    ("installed", "chosen", "backend"),
    [
        ({"jax"}, None, "jax"),
        ({"jax"}, "tensorflow", "tensorflow"),  # asked for: Keras then says what is missing
        ({"jax", "tensorflow"}, None, None),
        ({"tensorflow"}, None, None),
        (set(), None, None),
    ],
)
def test_jax_serves_where_tensorflow_is_not_installed(monkeypatch, installed, chosen, backend):
    monkeypatch.setattr(reconstruct, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setenv("KERAS_BACKEND", chosen or "")
    reconstruct.check_backend()
    assert os.environ["KERAS_BACKEND"] == (backend or "")


def test_the_papers_number_of_parameters():
    assert ResUNet(64).count_params() == 5_401_418


def gradient(function, x: np.ndarray) -> np.ndarray:
    """Of a scalar function of an array, by the backend of Keras."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    import tensorflow

    variable = tensorflow.Variable(x)
    with tensorflow.GradientTape() as tape:
        value = function(variable)
    return tape.gradient(value, variable).numpy()


def test_receptive_field_is_101_pixels():
    """Which input pixels move one output pixel, by gradient, in both directions and heads."""
    network = ResUNet(2)
    maps = np.random.default_rng(0).standard_normal((1, 128, 128, 2)).astype("f4")
    for head in ("e", "kappa"):
        slope = gradient(lambda x, head=head: network(x, training=False)[head][0, 64, 64, 0], maps)
        moving = np.abs(slope).sum((0, 3)) > 0
        for axis in (0, 1):
            touched = np.flatnonzero(moving.any(axis))
            assert touched[-1] - touched[0] + 1 == 101


def test_outputs_are_in_physical_units(network):
    maps = 4.0 * np.random.default_rng(0).standard_normal((2, 32, 32, 2)).astype("f4")
    out = network.predict(maps, verbose=0)
    assert out["e"].shape == out["kappa"].shape == (2, 32, 32, 1)
    # An untrained network ends in batch norm: outputs of order of the targets' std.
    assert 0.05 < out["kappa"].std() / 0.07 < 20
    assert 0.05 < out["e"].std() / 6.0 < 20


def test_normalisation_is_part_of_the_network(eager):
    """Q̃ and Ũ over their standard deviations and ln(1 + rms/.2 µK) go in; each head's end comes out
    times its own."""
    network = ResUNet(2, input_std=(4.0, 5.0), output_std=(6.0, 0.07), noise_map=True)
    maps = np.random.default_rng(0).random((1, 8, 8, 3)).astype("f4")
    ends = [network.get_layer(name) for name in ("with_noise", "e", "kappa")]
    inner = keras.Model(network.input, [ends[0].output, ends[1].input, ends[2].input])
    first, e, kappa = (keras.ops.convert_to_numpy(x) for x in inner(maps))
    np.testing.assert_allclose(first[..., 0], maps[..., 0] / 4.0, rtol=1e-5)
    np.testing.assert_allclose(first[..., 1], maps[..., 1] / 5.0, rtol=1e-5)
    np.testing.assert_allclose(first[..., 2], np.log1p(maps[..., 2] / 0.2), rtol=1e-5)
    out = network(maps)
    np.testing.assert_allclose(out["e"], 6.0 * e, rtol=1e-5)
    np.testing.assert_allclose(out["kappa"], 0.07 * kappa, rtol=1e-5)


# What every architecture must keep to, whatever it is trained for.
ARCHITECTURES = {"paper": {}, "noise_map": {"noise_map": True}}


def build(name):
    """A small network of an architecture with batch norm statistics of its own, as after
    training."""
    keras.utils.set_random_seed(3)
    network = untrained(3, **ARCHITECTURES[name])
    generator = np.random.default_rng(1)
    network.set_weights(
        [
            w * (1.0 + 0.3 * generator.random(w.shape)) + 0.05 * generator.random(w.shape)
            for w in network.get_weights()
        ]
    )
    return network


@pytest.fixture(params=ARCHITECTURES, scope="module")
def architecture(request):
    return build(request.param)


def maps_for(network, shape, seed=0):
    generator = np.random.default_rng(seed)
    maps = 4.0 * generator.standard_normal((2, *shape, 3 if network.noise_map else 2))
    return np.abs(maps).astype("f4") if network.noise_map else maps.astype("f4")


@pytest.mark.parametrize("shape", [(32, 32), (48, 64)])
def test_any_map_size(architecture, shape, eager):
    network = architecture
    out = network.predict(maps_for(network, shape), verbose=0)
    assert {head: values.shape for head, values in out.items()} == dict.fromkeys(
        ("e", "kappa"), (2, *shape, 1)
    )


def test_saved_and_loaded_bit_equal(architecture, tmp_path, eager):
    network = architecture
    save_atomically(network, tmp_path / "n.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["n.keras"]
    loaded = load_network(tmp_path / "n.keras")
    assert loaded.get_config() == network.get_config()
    assert loaded.metadata == {"noise": 1.0, "bins": [1, 2]}
    assert loaded.output_std == {"e": 6.0, "kappa": 0.07}
    maps = maps_for(network, (32, 32))
    again = loaded.predict(maps, verbose=0)
    for head, values in network.predict(maps, verbose=0).items():
        np.testing.assert_array_equal(values, again[head])


def test_average_over_symmetries_is_equivariant(architecture, eager):
    """κ̂ and Ê are scalars under all eight symmetries; one orientation alone is off by more than
    rounding."""
    network = architecture
    maps = maps_for(network, (16, 16))[:1]
    # All orientations in one batch.
    moved = np.concatenate([apply_symmetry(maps, t, f, spin2=True) for t, f in SYMMETRIES])

    for symmetries in (8, 1):
        estimator = NetworkEstimator(network, symmetries=symmetries, noise_rms=0.4)
        for found in estimator.reconstruct_heads(moved[..., 0], moved[..., 1]).values():
            found = found[..., None]
            turned = [apply_symmetry(found[0], t, f, spin2=False) for t, f in SYMMETRIES]
            off = np.abs(found - turned).max() / np.abs(found).max()
            assert off < 1e-5 if symmetries == 8 else off > 1e-3


def test_file_holds_no_pickle(network, tmp_path):
    network.save(tmp_path / "n.keras")
    names = zipfile.ZipFile(tmp_path / "n.keras").namelist()
    assert sorted(names) == ["config.json", "metadata.json", "model.weights.h5"]


def test_estimator_takes_maps_to_kappa(network, eager):
    q, u = np.random.default_rng(2).standard_normal((2, 3, 32, 32))
    estimator = NetworkEstimator(network, batch=2)
    kappa = estimator.reconstruct(q, u)
    assert kappa.shape == (3, 32, 32)
    np.testing.assert_array_equal(kappa, estimator.reconstruct_heads(q, u)["kappa"])


def test_ensemble_is_the_mean(small_config, tmp_path, eager):
    """Two networks named in the configuration reconstruct the mean of what each does alone."""
    paths, alone = [], []
    q, u = np.random.default_rng(6).standard_normal((2, 2, 16, 16))
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        member = ResUNet(2)
        member.save(tmp_path / f"{seed}.keras")
        paths.append(tmp_path / f"{seed}.keras")
        alone.append(NetworkEstimator(member).reconstruct_heads(q, u))
    network = small_config.network.model_copy(update={"pretrained": paths})
    ensemble = network_estimator(Run(small_config.model_copy(update={"network": network})))
    assert isinstance(ensemble, EnsembleEstimator)
    # Of order one, in float32: each backend compiles the sums in an order of its own.
    for head, values in ensemble.reconstruct_heads(q, u).items():
        np.testing.assert_allclose(values, (alone[0][head] + alone[1][head]) / 2, atol=1e-5)


@pytest.mark.parametrize(("turns", "flip"), SYMMETRIES)
def test_symmetries_are_undone(turns, flip):
    maps = np.random.default_rng(5).standard_normal((2, 8, 8, 1))
    moved = apply_symmetry(maps, turns, flip, spin2=False)
    np.testing.assert_array_equal(undo_symmetry(moved, turns, flip), maps)


def test_noise_map_network(tmp_path, eager):
    """The third channel matters, travels with the file, and must be given."""
    keras.utils.set_random_seed(3)
    network = ResUNet(2, noise_map=True)
    q, u = np.random.default_rng(6).standard_normal((2, 1, 16, 16))
    quiet, loud = (NetworkEstimator(network, noise_rms=rms).reconstruct(q, u) for rms in (0.0, 4.0))
    assert np.abs(quiet - loud).max() > 0.01 * np.abs(quiet).max()
    network.save(tmp_path / "n.keras")
    loaded = load_network(tmp_path / "n.keras")
    assert loaded.noise_map
    map_of_zero = np.zeros((16, 16))
    again = NetworkEstimator(loaded, noise_rms=map_of_zero).reconstruct(q, u)
    np.testing.assert_array_equal(again, quiet)
    with pytest.raises(NetworkError, match="noise_rms"):
        NetworkEstimator(network)
    with pytest.raises(NetworkError, match="symmetries is 4"):
        NetworkEstimator(network, symmetries=4, noise_rms=1.0)


class Shown:
    """In a network's place: keeps the maps it is shown, and answers with one of them."""

    noise_map = True

    def __init__(self, channel):
        self.channel, self.maps = channel, []

    def compile(self, **_):
        pass

    def predict(self, maps, **_):
        self.maps.append(maps)
        one = maps[..., self.channel : self.channel + 1]
        return {"e": 2.0 * one, "kappa": one}


@pytest.mark.parametrize("symmetries", [1, 8])
def test_every_pixel_is_shown_its_own_noise(symmetries):
    """The rms of a pixel moves with it under the symmetries, and comes back where it was."""
    q, u = np.random.default_rng(7).standard_normal((2, 3, 16, 16))
    rms = np.random.default_rng(8).random((16, 16)).astype("f4")
    network = Shown(2)
    estimator = NetworkEstimator(network, symmetries=symmetries, noise_rms=rms)
    found = estimator.reconstruct_heads(q, u)
    np.testing.assert_allclose(found["kappa"], np.broadcast_to(rms, q.shape), rtol=1e-6)
    np.testing.assert_allclose(found["e"], 2.0 * found["kappa"], rtol=1e-6)
    assert len(network.maps) == symmetries
    np.testing.assert_array_equal(network.maps[0][..., 0], q.astype("f4"))
    np.testing.assert_array_equal(network.maps[0][..., 1], u.astype("f4"))
    for maps, (turns, flip) in zip(network.maps, SYMMETRIES, strict=False):
        moved = apply_symmetry(rms[..., None], turns, flip, spin2=False)[..., 0]
        np.testing.assert_array_equal(maps[1, ..., 2], moved)
    # Of Q the symmetries leave what is odd under a quarter turn.
    if symmetries == 8:
        of_q = NetworkEstimator(Shown(0), symmetries=8, noise_rms=rms).reconstruct(q, u)
        np.testing.assert_allclose(of_q, 0.0, atol=1e-6)


def test_damaged_network_files(network, tmp_path):
    path = tmp_path / "n.keras"
    with pytest.raises(NetworkError, match="the network cannot be read"):
        load_network(path)
    network.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(NetworkError, match="damaged"):
        load_network(path)
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "o.keras")
    with pytest.raises(NetworkError, match="neither a ResUNet nor a RefiningUNet"):
        load_network(tmp_path / "o.keras")


def test_release_and_network_must_match(release, network, tmp_path):
    from dataclasses import replace

    path = tmp_path / "n.keras"
    network.save(path)
    with pytest.raises(NetworkError, match="network_sha256"):
        check_network(release, [path])
    matching = replace(release, provenance={"network_sha256": network_hash(path)})
    check_network(matching, [path])
    with pytest.raises(NetworkError, match="cannot be read"):
        check_network(matching, [tmp_path / "absent.keras"])


# What a process of another backend does: apply networks, and train one.
OTHER_BACKEND = """
import json, sys
from pathlib import Path
import numpy as np
import keras
from cobaya_cnnlens.pipeline import training
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.resunet import load_network
assert keras.backend.backend() == "jax"
folder = Path(sys.argv[1])
for path in folder.glob("*.npy"):
    network = load_network(path.with_suffix(".keras"))
    np.savez(path.with_suffix(".npz"), **network.predict(np.load(path), verbose=0))
records = list(training.train(Run(load_config(folder / "c.yaml")), folder / "jax"))
(folder / "jax.json").write_text(json.dumps(records[-1]))
"""


@pytest.fixture
def training_config(tmp_path):
    """Two steps of training on patches of noise, from a network of known weights."""
    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content["products"] = str(tmp_path / "products")
    content["network"] = {"width": 2, "initial": str(tmp_path / "n.keras")}
    content["training"] = {
        "phases": [{"steps": 2, "batch": 2, "learning_rate": 1e-3}],
        "steps_per_epoch": 2,
        "validation_patches": 2,
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    keras.utils.set_random_seed(1)
    ResUNet(2).save(tmp_path / "n.keras")
    config = load_config(path)
    generator = np.random.default_rng(5)
    n = config.patch.n_padded
    for name in ("train", "validation"):
        for i in range(config.set_size(name)):
            fields = {f: generator.standard_normal((2, n, n)).astype("f4") for f in FIELDS}
            Skies(Run(config)).write(fields, name, i)
    Run(config).spectra()
    return config


def test_backends_agree(tmp_path, training_config, eager):
    """The same file under JAX gives the same maps as under TensorFlow, with and without what
    architectures have beyond the paper's; from the same weights, two steps of training under JAX
    end where TensorFlow's end."""
    pytest.importorskip("jax")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("compares the numbers of TensorFlow with those of JAX")
    expected = {}
    for name in ("paper", "noise_map"):
        network = build(name)
        maps = maps_for(network, (32, 32))
        expected[name] = network.predict(maps, verbose=0)
        network.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", maps)
    # XLA's optimisations would take most of the time; without them it compiles the same numbers.
    subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=True,
        timeout=600,
    )
    for name, heads in expected.items():
        other = np.load(tmp_path / f"{name}.npz")
        assert set(other) == set(heads)
        for head, values in heads.items():
            np.testing.assert_allclose(other[head], values, atol=2e-5 * np.abs(values).max())
    here = list(training.train(Run(training_config), tmp_path / "tensorflow"))[-1]
    there = json.loads((tmp_path / "jax.json").read_text())
    for name in ("loss", "e_loss", "kappa_loss"):
        assert there[name] == pytest.approx(here[name], rel=1e-3)
