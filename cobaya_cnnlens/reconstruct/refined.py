"""The refining ResUNet: from feature maps to E and κ, as corrections of what physics knows.

A residual U-net in Keras 3 reads the maps of :mod:`.features`. It works at half the resolution of
the patches and below, which costs a quarter and holds all modes that 1 µK-arcmin can measure
(L ≲ 2000). Each output is a map of the features, κ̂ of the last pass or the filtered E, plus a
correction. The last layer of the correction starts at zero: an untrained network gives the MAP
estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NetworkError
from .backend import Tensor, channels_last, keras, layers
from .features import FEATURES, KAPPA_UNIT, POLARISATION_UNIT, REFINED, features_of
from .files import read_network
from .map_lensing import MAPLensing
from .resunet import read_keras

# Size of a correction of one from the last layer, in the units of the features.
CORRECTION = {"e": 0.2, "kappa": 0.2}


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class RefiningUNet(keras.Model):
    """Features (n, ny, nx, len(FEATURES)) → {"e" (µK), "kappa"}, masked, (n, ny, nx, 1) each.

    ny and nx must be multiples of 2^levels.

    Parameters
    ----------
    width : channels at half resolution; twice that at a quarter, four times at an eighth and less
    levels : resolutions below the patch's, each half the one before
    blocks : residual blocks at each level on the way down, and one less on the way up
    metadata : JSON-able description of what the network was trained for
    """

    def __init__(
        self,
        width: int = 32,
        levels: int = 4,
        blocks: int = 2,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._arguments: dict[str, Any] = {
            "width": width,
            "levels": levels,
            "blocks": blocks,
            "metadata": metadata or {},
        }
        channels_last()
        maps = layers.Input((None, None, len(FEATURES)), name="features")
        outputs = _corrected(maps, _body(maps, width, levels, blocks))
        super().__init__(maps, outputs, **kwargs)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the network was trained for."""
        return self._arguments["metadata"]

    def get_config(self) -> dict[str, Any]:
        """What :meth:`from_config` makes it of."""
        return {**self._arguments, "name": self.name}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> RefiningUNet:
        """Build the network of a configuration, as Keras asks for it.

        Parameters
        ----------
        config : of :meth:`get_config`
        custom_objects : not used

        Returns
        -------
        network : with new weights
        """
        return cls(**config)


def _body(x: Tensor, width: int, levels: int, blocks: int) -> Tensor:
    """The U-net: the patch's resolution, (n, ny, nx, width // 2)."""

    def conv(x: Tensor, filters: int, name: str, stride: int = 1, **kwargs: Any) -> Tensor:
        return layers.Conv2D(filters, 3, strides=stride, padding="same", name=name, **kwargs)(x)

    def block(x: Tensor, name: str) -> Tensor:
        """x + conv(gelu(conv(gelu(x)))); the second convolution starts at zero."""
        y = layers.Activation("gelu", name=f"{name}_a1")(x)
        y = conv(y, x.shape[-1], f"{name}_c1")
        y = layers.Activation("gelu", name=f"{name}_a2")(y)
        y = conv(y, x.shape[-1], f"{name}_c2", kernel_initializer="zeros")
        return layers.Add(name=f"{name}_add")([x, y])

    stem = conv(x, width // 2, "stem")
    y, ways = stem, []
    for level in range(1, levels + 1):
        filters = width * min(2 ** (level - 1), 4)
        y = conv(layers.Activation("gelu", name=f"down{level}_a")(y), filters, f"down{level}", 2)
        for i in range(blocks):
            y = block(y, f"down{level}_{i}")
        ways.append(y)
    for level in range(levels - 1, 0, -1):
        way = ways[level - 1]
        y = layers.Conv2D(way.shape[-1], 1, name=f"up{level}_1x1")(y)
        y = layers.UpSampling2D(interpolation="bilinear", name=f"up{level}")(y)
        y = layers.Add(name=f"up{level}_add")([y, way])
        for i in range(max(blocks - 1, 1)):
            y = block(y, f"up{level}_{i}")
    y = layers.Conv2D(width // 2, 1, name="up0_1x1")(y)
    y = layers.UpSampling2D(interpolation="bilinear", name="up0")(y)
    y = layers.Add(name="up0_add")([y, stem])
    y = layers.Activation("gelu", name="end_a")(y)
    return conv(y, width // 2, "end", activation="gelu")


def _corrected(maps: Tensor, body: Tensor) -> dict[str, Tensor]:
    """Known maps plus their corrections, times the mask, in physical units."""
    mask = maps[..., FEATURES.index("seen") :][..., :1]
    outputs = {}
    for name, known, unit in (("e", "e", POLARISATION_UNIT), ("kappa", REFINED, KAPPA_UNIT)):
        at = FEATURES.index(known)
        change = layers.Conv2D(1, 3, padding="same", kernel_initializer="zeros", name=f"{name}_out")
        scaled = layers.Rescaling(CORRECTION[name], name=f"{name}_correction")(change(body))
        masked = layers.Multiply(name=f"{name}_masked")([scaled, mask])
        total = layers.Add(name=f"{name}_sum")([maps[..., at : at + 1], masked])
        outputs[name] = layers.Rescaling(unit, name=name, dtype="float32")(total)
    return outputs


def load_refining(path: str | Path) -> RefiningUNet:
    """Read a trained refining network; nothing is unpickled.

    Parameters
    ----------
    path : of the ``.keras`` file

    Returns
    -------
    network : ready to predict

    Raises
    ------
    NetworkError
        if the file is missing, cut off, or not a refining network of this package
    """
    if (kind := read_network(path).kind) != "RefiningUNet":
        raise NetworkError(f"{path}: holds a {kind}, not a RefiningUNet")
    return read_keras(path)


class RefinedEstimator:
    """The MAP estimate refined by a network, as an
    :class:`~cobaya_cnnlens.reconstruct.Estimator`.

    Parameters
    ----------
    estimator : what makes the features, of ``features.PASSES`` passes
    networks : trained; of several the mean is taken
    batch : patches at a time through both
    """

    def __init__(self, estimator: MAPLensing, networks: list[RefiningUNet], batch: int = 16):
        self._estimator, self._networks, self._batch = estimator, networks, batch

    def reconstruct(
        self, q: np.ndarray, u: np.ndarray, rms: np.ndarray | None = None
    ) -> np.ndarray:
        """Reconstruct the convergence.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each
        rms : noise per pixel, as in :func:`.features.features_of`

        Returns
        -------
        kappa : masked, (n, ny, nx)
        """
        return self.reconstruct_heads(q, u, rms)["kappa"]

    def reconstruct_heads(
        self, q: np.ndarray, u: np.ndarray, rms: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Reconstruct the convergence and the unlensed E.

        Parameters
        ----------
        q, u, rms : as in :meth:`reconstruct`

        Returns
        -------
        maps : masked ``"e"`` in µK and ``"kappa"``, (n, ny, nx) each
        """
        batches: dict[str, list[np.ndarray]] = {"e": [], "kappa": []}
        for start in range(0, len(q), self._batch):
            rows = slice(start, start + self._batch)
            rms_of_rows = rms[rows] if rms is not None and rms.ndim == 3 else rms
            features = features_of(self._estimator, q[rows], u[rows], rms_of_rows)
            for name, maps in self.refine(np.stack(list(features))).items():
                batches[name].append(maps)
        return {name: np.concatenate(maps) for name, maps in batches.items()}

    def refine(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Reconstruct from features.

        They are rounded to half precision, in which they are kept on disk.

        Parameters
        ----------
        features : (n, ny, nx, len(FEATURES))

        Returns
        -------
        maps : masked ``"e"`` in µK and ``"kappa"``, (n, ny, nx) each
        """
        batches: dict[str, list[np.ndarray]] = {"e": [], "kappa": []}
        for start in range(0, len(features), self._batch):
            maps = features[start : start + self._batch].astype(np.float16).astype(np.float32)
            outputs = [network.predict_on_batch(maps) for network in self._networks]
            for name, means in batches.items():
                means.append(np.mean([output[name][..., 0] for output in outputs], axis=0))
        return {name: np.concatenate(means) for name, means in batches.items()}
