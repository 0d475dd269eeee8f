"""The refining network: what it is before training, that it learns, is saved and read."""

import numpy as np
import pytest

from cobaya_cnnlens.errors import NetworkError
from cobaya_cnnlens.reconstruct.features import (
    FEATURES,
    KAPPA_UNIT,
    POLARISATION_UNIT,
    REFINED,
)
from cobaya_cnnlens.reconstruct.refined import RefiningUNet, load_refining
from cobaya_cnnlens.reconstruct.resunet import ResUNet

AT = {name: i for i, name in enumerate(FEATURES)}


def some_features(n=2, size=32):
    maps = np.random.default_rng(2).standard_normal((n, size, size, len(FEATURES)))
    maps[..., AT["seen"]] = 1.0
    maps[:, :4, :, AT["seen"]] = 0.0
    return maps.astype(np.float32)


def test_untrained_it_is_what_the_features_know():
    maps = some_features()
    found = RefiningUNet(width=8).predict(maps, verbose=0)
    np.testing.assert_allclose(
        found["kappa"][..., 0], KAPPA_UNIT * maps[..., AT[REFINED]], rtol=1e-6
    )
    np.testing.assert_allclose(
        found["e"][..., 0], POLARISATION_UNIT * maps[..., AT["e"]], rtol=1e-6
    )


def test_it_learns_and_corrects_only_what_was_seen(tmp_path):
    """A correction that the features tell, here a tenth of the residual's Q."""
    import keras

    maps = some_features(8)
    known = KAPPA_UNIT * maps[..., AT[REFINED]]
    wanted = known + 0.01 * maps[..., AT["residual_q"]] * maps[..., AT["seen"]]
    keras.utils.set_random_seed(1)
    network = RefiningUNet(width=8, levels=2, metadata={"for": "a test"})
    network.compile(
        keras.optimizers.Adam(1e-2),
        loss={"kappa": "mse", "e": "mse"},
        loss_weights={"kappa": 1.0, "e": 0.0},
    )
    targets = {"kappa": wanted[..., None], "e": maps[..., AT["e"], None]}
    network.fit(maps, targets, batch_size=4, epochs=15, verbose=0)
    found = network.predict(maps, verbose=0)["kappa"][..., 0]
    assert np.mean((found - wanted) ** 2) < 0.3 * np.mean((known - wanted) ** 2)
    np.testing.assert_allclose(found[:, :4], known[:, :4], rtol=1e-6)

    network.save(tmp_path / "n.keras")
    again = load_refining(tmp_path / "n.keras")
    assert again.metadata == {"for": "a test"}
    np.testing.assert_array_equal(again.predict(maps, verbose=0)["kappa"][..., 0], found)


def test_what_is_no_refining_network_is_told(tmp_path):
    with pytest.raises(NetworkError, match=r"none\.keras: the network cannot be read"):
        load_refining(tmp_path / "none.keras")
    (tmp_path / "damaged.keras").write_bytes(b"PK")
    with pytest.raises(NetworkError, match="cannot be read as a Keras model"):
        load_refining(tmp_path / "damaged.keras")
    ResUNet(width=4).save(tmp_path / "other.keras")
    with pytest.raises(NetworkError, match="holds a ResUNet, not a RefiningUNet"):
        load_refining(tmp_path / "other.keras")
