"""The ResUNet of Caldeira et al. 2018 (arXiv:1810.01483, §4 and Figs 2–4) in Keras 3.

Inputs (Q̃, Ũ) in µK, outputs unlensed E in µK and κ. With ``width`` 64 the network has
the paper's 5,401,418 parameters and a receptive field of 101 pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NetworkError
from .backend import Tensor, channels_last, keras, layers
from .files import read_network

# The noise rms (µK per pixel) where its logarithmic input turns linear; 1 µK-arcmin is 0.43.
NOISE_UNIT = 0.2
HEADS = ("e", "kappa")
# Options of older files that change nothing of what a network of these heads does.
FORMER = {"polarisation", "frozen_norm"}


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class ResUNet(keras.Model):
    """Residual U-net (Q̃, Ũ) → {"e", "kappa"}.

    Input (n, ny, nx, 2), or 3 with ``noise_map``, ny and nx multiples of 4; each output
    (n, ny, nx, 1). The normalisation is part of the model: both ends are in
    physical units.

    Parameters
    ----------
    width : channels of the full-resolution layers; 64 in the paper
    dropout : rate before every 5×5 convolution; 0.3 in the paper
    input_std : standard deviations of Q̃ and Ũ over the training set, in µK
    output_std : standard deviations of unlensed E (µK) and of κ over the training set
    noise_map : a third input, the noise rms of every pixel in µK
    metadata : JSON-able description of what the network was trained for
    """

    def __init__(
        self,
        width: int = 64,
        dropout: float = 0.0,
        input_std: tuple[float, float] = (1.0, 1.0),
        output_std: tuple[float, float] = (1.0, 1.0),
        noise_map: bool = False,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._arguments: dict[str, Any] = {
            "width": width,
            "dropout": dropout,
            "input_std": [float(s) for s in input_std],
            "output_std": [float(s) for s in output_std],
            "noise_map": noise_map,
            "metadata": metadata or {},
        }
        channels_last()
        maps = layers.Input((None, None, 3 if noise_map else 2), name="maps")
        variance = np.square(self._arguments["input_std"])
        normalise = layers.Normalization(mean=[0.0, 0.0], variance=variance, name="normalise")
        normalised = normalise(maps[..., :2])
        if noise_map:
            depth = keras.ops.log1p(maps[..., 2:] / NOISE_UNIT)
            normalised = layers.Concatenate(name="with_noise")([normalised, depth])
        outputs = {
            name: layers.Rescaling(std, name=name, dtype="float32")(output)
            for (name, output), std in zip(
                _body(normalised, width, dropout).items(),
                output_std,
                strict=True,
            )
        }
        super().__init__(maps, outputs, **kwargs)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the network was trained for."""
        return self._arguments["metadata"]

    @property
    def noise_map(self) -> bool:
        """Whether the noise rms of every pixel is an input."""
        return self._arguments["noise_map"]

    @property
    def output_std(self) -> dict[str, float]:
        """Standard deviation of each head's target over the training set."""
        return dict(zip(HEADS, self._arguments["output_std"], strict=True))

    def get_config(self) -> dict[str, Any]:
        """What :meth:`from_config` makes it of."""
        return {**self._arguments, "name": self.name}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> ResUNet:
        """Build the network of a configuration, as Keras asks for it; older ones hold two options
        more.

        Parameters
        ----------
        config : of :meth:`get_config`
        custom_objects : not used

        Returns
        -------
        network : with new weights
        """
        return cls(**{k: v for k, v in config.items() if k not in FORMER})


def _body(x: Tensor, width: int, dropout: float) -> dict[str, Tensor]:
    """c1–c16 of Fig. 4 with the residual shortcuts of Fig. 3 over the pairs (1,2) … (13,14)."""
    w = width

    def norm(x: Tensor, name: str) -> Tensor:
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    def conv(
        x: Tensor, filters: int, name: str, stride: int = 1, activation: str | None = "selu"
    ) -> Tensor:
        if dropout:
            x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
        x = layers.Conv2D(
            filters, 5, strides=stride, padding="same", activation=activation, name=name
        )(x)
        return norm(x, name)

    def shortcut(
        x: Tensor, name: str, filters: int | None = None, stride: int = 1, upsample: bool = False
    ) -> Tensor:
        if filters:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same", name=f"{name}_1x1")(x)
        if upsample:
            x = layers.UpSampling2D(name=f"{name}_up")(x)
        return norm(x, name)

    def add(x: Tensor, y: Tensor, name: str) -> Tensor:
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
    for head in HEADS:
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
    """Read a trained ResUNet; nothing is unpickled.

    Parameters
    ----------
    path : of the ``.keras`` file

    Returns
    -------
    network : ready to predict

    Raises
    ------
    NetworkError
        if the file is missing, cut off, or not a ResUNet of this package
    """
    if (kind := read_network(path).kind) != "ResUNet":
        raise NetworkError(f"{path}: holds a {kind}, not a ResUNet")
    return read_keras(path)


def read_keras(path: str | Path) -> keras.Model:
    """Read the model of a ``.keras`` file, without its optimiser.

    Parameters
    ----------
    path : of the file, checked before by :func:`.files.read_network`

    Returns
    -------
    model : ready to predict

    Raises
    ------
    NetworkError
        if Keras cannot read it
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise NetworkError(
            f"{path}: cannot be read as a Keras model ({type(error).__name__}: "
            f"{str(error)[:200]}); "
            "the file is damaged: restore it or train again"
        ) from None


class NetworkEstimator:
    """A trained network as an :class:`~cobaya_cnnlens.reconstruct.Estimator`.

    Parameters
    ----------
    symmetries : 1, or 8 to average over the symmetries of the square: the maps are turned and
        mirrored, reconstructed, and κ̂ turned back, which makes the estimator exactly equivariant
        and takes off what the network's noise has not in common between them
    noise_rms : noise per pixel of Q and of U in µK, a number or a map (ny, nx); what a network
        with ``noise_map`` needs and others ignore
    jit_compile : compile with XLA, which takes seconds at first and is twice as fast from then on

    Raises
    ------
    NetworkError
        if the network needs ``noise_rms`` and there is none, or ``symmetries`` is neither 1 nor 8
    """

    def __init__(
        self,
        network: ResUNet,
        batch: int = 16,
        symmetries: int = 1,
        noise_rms: float | np.ndarray | None = None,
        jit_compile: bool = True,
    ):
        if symmetries not in (1, 8):
            raise NetworkError(f"symmetries is {symmetries}; an estimator averages over 1 or 8")
        if network.noise_map and noise_rms is None:
            raise NetworkError(
                "the network takes the noise rms of every pixel; pass 'noise_rms' in µK per pixel"
            )
        network.compile(jit_compile=jit_compile)
        self._network, self._batch = network, batch
        self._symmetries = SYMMETRIES[:symmetries]
        self._noise_rms = noise_rms

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Reconstruct the convergence.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        kappa : (n, ny, nx)
        """
        return self.reconstruct_heads(q, u)["kappa"]

    def reconstruct_heads(self, q: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Reconstruct the convergence and the unlensed E.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        maps : ``"e"`` in µK and ``"kappa"``, (n, ny, nx) each
        """
        channels = [q, u]
        if self._noise_rms is not None and self._network.noise_map:
            channels.append(np.broadcast_to(self._noise_rms, np.shape(q)))
        maps = np.stack(channels, axis=-1).astype(np.float32)
        total: dict[str, np.ndarray] = {}
        for turns, flip in self._symmetries:
            turned = apply_symmetry(maps, turns, flip, spin2=True)
            for name, values in self._predict(turned).items():
                values = undo_symmetry(values, turns, flip) / len(self._symmetries)
                total[name] = total.get(name, 0.0) + values[..., 0]
        return total

    def _predict(self, maps: np.ndarray) -> dict[str, np.ndarray]:
        return self._network.predict(maps, batch_size=self._batch, verbose=0)


class EnsembleEstimator:
    """The mean κ̂ of several estimators, which takes off what is one network's alone."""

    def __init__(self, members: list[NetworkEstimator]):
        self._members = members

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Reconstruct the convergence as the mean of the members.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        kappa : (n, ny, nx)
        """
        return self.reconstruct_heads(q, u)["kappa"]

    def reconstruct_heads(self, q: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Reconstruct the convergence and the unlensed E as means of the members.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        maps : ``"e"`` in µK and ``"kappa"``, (n, ny, nx) each
        """
        total: dict[str, np.ndarray] = {}
        for member in self._members:
            for name, values in member.reconstruct_heads(q, u).items():
                total[name] = total.get(name, 0.0) + values / len(self._members)
        return total


def networks_estimator(
    paths: Iterable[str | Path],
    symmetries: int,
    noise_rms: float | np.ndarray,
    jit_compile: bool = True,
) -> NetworkEstimator | EnsembleEstimator:
    """The estimator of one ResUNet file, or the mean of several.

    Parameters
    ----------
    paths : of the ``.keras`` files
    symmetries, noise_rms, jit_compile : of :class:`NetworkEstimator`

    Returns
    -------
    estimator : of κ and E
    """
    members = [
        NetworkEstimator(
            load_network(path), symmetries=symmetries, noise_rms=noise_rms, jit_compile=jit_compile
        )
        for path in paths
    ]
    return members[0] if len(members) == 1 else EnsembleEstimator(members)


SYMMETRIES = tuple((turns, flip) for flip in (False, True) for turns in range(4))


def apply_symmetry(maps: np.ndarray, turns: int, flip: bool, spin2: bool) -> np.ndarray:
    """Apply one of the 8 symmetries of the square to maps.

    A quarter turn takes (Q, U) to (−Q, −U), the mirror takes U to −U. Scalars only move.

    Parameters
    ----------
    maps : (..., ny, nx, channels)
    turns : number of quarter turns
    flip : whether a mirror along x follows the turns
    spin2 : whether the first two channels are Q and U

    Returns
    -------
    maps : turned, same shape
    """
    maps = np.rot90(maps, turns, axes=(-3, -2))
    if flip:
        maps = maps[..., ::-1, :]
    signs = np.ones(maps.shape[-1], np.float32)
    if spin2:
        signs[:2] *= (-1.0) ** turns
        signs[1] *= -1.0 if flip else 1.0
    return maps * signs


def undo_symmetry(maps: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """Invert :func:`apply_symmetry` for scalars.

    Parameters
    ----------
    maps : (..., ny, nx, channels)
    turns, flip : of the symmetry to undo

    Returns
    -------
    maps : turned back, same shape
    """
    if flip:
        maps = maps[..., ::-1, :]
    return np.rot90(maps, -turns, axes=(-3, -2))
