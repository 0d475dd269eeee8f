"""What every architecture must keep to, whatever it is trained for."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import yaml
from cobaya_cnnlens.pipeline import training
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.resunet import (
    SYMMETRIES,
    NetworkEstimator,
    ResUNet,
    apply_symmetry,
    load_network,
)
from cobaya_cnnlens.simulate.shards import FIELDS

from ..conftest import REPOSITORY

pytestmark = pytest.mark.usefixtures("eager")

ARCHITECTURES = {
    "paper": {},
    "noise_map": {"noise_map": True},
}


def build(name):
    """A small network of an architecture with batch norm statistics of its own, as after
    training."""
    keras.utils.set_random_seed(3)
    network = ResUNet(3, input_std=(4.0, 4.5), output_std=(6.0, 0.07), **ARCHITECTURES[name])
    generator = np.random.default_rng(1)
    network.set_weights(
        [
            w * (1.0 + 0.3 * generator.random(w.shape)) + 0.05 * generator.random(w.shape)
            for w in network.get_weights()
        ]
    )
    return network


@pytest.fixture(params=ARCHITECTURES, scope="module")
def network(request):
    return build(request.param)


def maps_for(network, shape, seed=0):
    generator = np.random.default_rng(seed)
    maps = 4.0 * generator.standard_normal((2, *shape, 3 if network.noise_map else 2))
    return np.abs(maps).astype("f4") if network.noise_map else maps.astype("f4")


@pytest.mark.parametrize("shape", [(32, 32), (48, 64)])
def test_any_map_size(network, shape):
    out = network.predict(maps_for(network, shape), verbose=0)
    assert {head: values.shape for head, values in out.items()} == dict.fromkeys(
        ("e", "kappa"), (2, *shape, 1)
    )


def test_saved_and_loaded_bit_equal(network, tmp_path):
    network.save(tmp_path / "n.keras")
    loaded = load_network(tmp_path / "n.keras")
    assert loaded.get_config() == network.get_config()
    maps = maps_for(network, (32, 32))
    again = loaded.predict(maps, verbose=0)
    for head, values in network.predict(maps, verbose=0).items():
        np.testing.assert_array_equal(values, again[head])


def test_average_over_symmetries_is_equivariant(network):
    """κ̂ and Ê are scalars under all eight symmetries; one orientation alone is off by more than
    rounding."""
    maps = maps_for(network, (16, 16))[:1]
    # All orientations in one batch.
    moved = np.concatenate([apply_symmetry(maps, t, f, spin2=True) for t, f in SYMMETRIES])

    for symmetries in (8, 1):
        estimator = NetworkEstimator(network, symmetries=symmetries, noise_rms=0.4)
        for found in estimator.reconstruct_heads(moved[..., 0], moved[..., 1]).values():
            found = found[..., None]
            want = [apply_symmetry(found[0], t, f, spin2=False) for t, f in SYMMETRIES]
            off = np.abs(found - want).max() / np.abs(found).max()
            assert off < 1e-5 if symmetries == 8 else off > 1e-3


# What a process of another backend does: apply networks, and train one.
OTHER_BACKEND = """
import json, sys
from pathlib import Path
import numpy as np
import keras
from cobaya_cnnlens.pipeline import training
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
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


def test_backends_agree(tmp_path, training_config):
    """The same file under JAX gives the same maps as under TensorFlow, with and without what
    architectures have beyond the paper's; from the same weights, two steps of training under JAX
    end where TensorFlow's end."""
    pytest.importorskip("jax")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("compares the numbers of TensorFlow with those of JAX")
    wanted = {}
    for name in ("paper", "noise_map"):
        network = build(name)
        maps = maps_for(network, (32, 32))
        wanted[name] = network.predict(maps, verbose=0)
        network.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", maps)
    # XLA's optimisations would take most of the time; without them it compiles the same numbers.
    subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=True,
        timeout=600,
    )
    for name, heads in wanted.items():
        other = np.load(tmp_path / f"{name}.npz")
        assert set(other) == set(heads)
        for head, values in heads.items():
            np.testing.assert_allclose(other[head], values, atol=2e-5 * np.abs(values).max())
    here = list(training.train(Run(training_config), tmp_path / "tensorflow"))[-1]
    there = json.loads((tmp_path / "jax.json").read_text())
    for name in ("loss", "e_loss", "kappa_loss"):
        assert there[name] == pytest.approx(here[name], rel=1e-3)
