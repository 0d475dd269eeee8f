"""The ResUNet of Caldeira et al. 2018 (arXiv:1810.01483, §4 and Figs 2–4) in Keras 3.

Inputs (Q̃, Ũ) in µK, outputs unlensed E in µK and κ. With ``width`` 64 the network has
the paper's 5,401,418 parameters and a receptive field of 101 pixels.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import layers

from ..errors import NetworkError


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class ResUNet(keras.Model):
    """Residual U-net (Q̃, Ũ) → {"e", "kappa"}.

    Parameters
    ----------
    width : channels of the full-resolution layers; 64 in the paper
    dropout : rate before every 5×5 convolution; .3 in the paper
    input_std : standard deviations of Q̃ and Ũ over the training set, in µK
    output_std : standard deviations of E (µK) and κ over the training set
    metadata : JSON-able description of what the network was trained for

    Input (n, ny, nx, 2) with ny and nx multiples of 4; each output (n, ny, nx, 1). The
    normalisation is part of the model, so both ends are in physical units.
    """

    def __init__(
        self,
        width: int = 64,
        dropout: float = 0.0,
        input_std: tuple[float, float] = (1.0, 1.0),
        output_std: tuple[float, float] = (1.0, 1.0),
        metadata: dict | None = None,
        **kwargs,
    ):
        self._arguments = {
            "width": width,
            "dropout": dropout,
            "input_std": [float(s) for s in input_std],
            "output_std": [float(s) for s in output_std],
            "metadata": metadata or {},
        }
        maps = layers.Input((None, None, 2), name="qu")
        variance = np.square(self._arguments["input_std"])
        normalised = layers.Normalization(mean=[0.0, 0.0], variance=variance, name="normalise")(
            maps
        )
        outputs = {
            name: layers.Rescaling(std, name=name, dtype="float32")(output)
            for (name, output), std in zip(
                _body(normalised, width, dropout).items(), output_std, strict=True
            )
        }
        super().__init__(maps, outputs, **kwargs)

    @property
    def metadata(self) -> dict:
        return self._arguments["metadata"]

    @property
    def output_std(self) -> dict[str, float]:
        return dict(zip(("e", "kappa"), self._arguments["output_std"], strict=True))

    def get_config(self) -> dict:
        return {**self._arguments, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def _body(x, width: int, dropout: float) -> dict:
    """c1–c16 of Fig. 4 with the residual shortcuts of Fig. 3 over the pairs (1,2) … (13,14)."""
    w = width

    def conv(x, filters, name, stride=1, activation="selu"):
        if dropout:
            x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
        x = layers.Conv2D(
            filters, 5, strides=stride, padding="same", activation=activation, name=name
        )(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    def shortcut(x, name, filters=None, stride=1, upsample=False):
        if filters:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same", name=f"{name}_1x1")(x)
        if upsample:
            x = layers.UpSampling2D(name=f"{name}_up")(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    def add(x, y, name):
        return layers.Add(name=name)([x, y])

    c2 = conv(conv(x, w, "c1"), w, "c2")
    r2 = add(c2, shortcut(x, "s2", w), "r2")
    c3 = conv(r2, w, "c3")
    r4 = add(conv(c3, 2 * w, "c4", stride=2), shortcut(r2, "s4", 2 * w, stride=2), "r4")
    r6 = add(conv(conv(r4, 2 * w, "c5"), 2 * w, "c6"), shortcut(r4, "s6"), "r6")
    c8 = conv(conv(r6, 4 * w, "c7", stride=2), 2 * w, "c8")
    r8 = add(layers.UpSampling2D(name="c8_up")(c8), shortcut(r6, "s8"), "r8")
    joined = layers.Concatenate(name="join_8_6")([r8, r6])
    c10 = conv(conv(joined, 2 * w, "c9"), 2 * w, "c10")
    r10 = add(c10, shortcut(joined, "s10", 2 * w), "r10")
    c11 = layers.UpSampling2D(name="c11_up")(conv(r10, w, "c11"))

    outputs = {}
    for head in ("e", "kappa"):
        y = layers.Concatenate(name=f"{head}_join_11_3")([c11, c3])
        r12 = add(
            conv(y, w, f"{head}_c12"),
            shortcut(r10, f"{head}_s12", w, upsample=True),
            f"{head}_r12",
        )
        c14 = conv(conv(r12, w, f"{head}_c13"), w, f"{head}_c14")
        r14 = add(c14, shortcut(r12, f"{head}_s14"), f"{head}_r14")
        c15 = conv(r14, w, f"{head}_c15")
        outputs[head] = conv(c15, 1, f"{head}_c16", activation=None)
    return outputs


def load_network(path: str | Path) -> ResUNet:
    """Read a trained network; nothing is unpickled.

    Raises
    ------
    NetworkError
        if the file is missing, cut off, or not a network of this package
    """
    path = Path(path)
    if not path.exists():
        raise NetworkError(f"{path}: no such network file; run `cnnlens train`")
    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise NetworkError(
            f"{path}: cannot be read as a Keras model ({type(error).__name__}: "
            f"{str(error)[:200]}); "
            "the file is damaged: restore it or train again"
        ) from None
    if not isinstance(network, ResUNet):
        raise NetworkError(f"{path}: holds a {type(network).__name__}, not a ResUNet")
    return network


class NetworkEstimator:
    """A trained network as an :class:`~cobaya_cnnlens.reconstruct.Estimator`."""

    def __init__(self, network: ResUNet, batch: int = 16):
        network.compile(jit_compile=True)  # twice the speed of eager kernels on a CPU
        self._network, self._batch = network, batch

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Masked Q̃, Ũ in µK, each (n, ny, nx) → κ̂ (n, ny, nx)."""
        return self.reconstruct_both(q, u)["kappa"]

    def reconstruct_both(self, q: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """As :meth:`reconstruct`, with the unlensed Ê (µK) as ``"e"`` beside ``"kappa"``."""
        maps = np.stack([q, u], axis=-1).astype(np.float32)
        predicted = self._network.predict(maps, batch_size=self._batch, verbose=0)
        return {name: values[..., 0] for name, values in predicted.items()}
