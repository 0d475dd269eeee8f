"""How a refining network learns: error modes weighed by what can be known of them, patches turned
by the symmetries of the square, the mean of late weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..theory import Spectra
from .backend import Tensor, keras, layers
from .features import FEATURES, RefiningPatches, symmetry_of
from .n0 import Filter, band_of, n0_iterated
from .refined import RefiningUNet
from .resunet import SYMMETRIES

# Multipoles between which N_L is interpolated, and below which modes count no more for being few.
NODES = (30, 60, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4400)
FLOOR = 100.0
# Noise levels of which weights are made, a quarter apart, in µK-arcmin; none below the least.
LEVEL_RATIO, LOWEST_LEVEL = 1.25, 0.3


class ModeWeights:
    """Weights of the modes of κ̂ − κ: 1/max(L, 100) × (C + N)/(C N) with N_L of the iterated EB
    estimator at a patch's noise level, so that every L counts by the relative size of the error
    that must remain, C N/(C + N); their sum over the modes of a patch's masked maps is 1.

    Parameters
    ----------
    mean_square_mask : ⟨M²⟩
    """

    def __init__(
        self,
        geometry: PatchGeometry,
        instrument: Instrument,
        spectra: Spectra,
        mean_square_mask: float,
    ):
        self._instrument, self._spectra = instrument, spectra
        self._band = band_of(geometry, spectra, Filter().lmin)
        n, pixel = geometry.n_pixels, geometry.pixel
        l = 2.0 * np.pi * np.fft.fftfreq(n, pixel)
        self._ell = np.hypot(l[:, None], l[None, :])
        self._inside = (self._ell > 0) & (self._ell < NODES[-1])
        self._unit = pixel**2 / (n**2 * mean_square_mask)
        self._made: dict[int, np.ndarray] = {}

    def at(self, level: float) -> np.ndarray:
        """Weights at a noise level.

        Parameters
        ----------
        level : in µK-arcmin

        Returns
        -------
        weights : (n, n) float32, in the order of :func:`numpy.fft.fft2`
        """
        key = round(np.log(max(level, LOWEST_LEVEL)) / np.log(LEVEL_RATIO))
        if key not in self._made:
            self._made[key] = self._make(LEVEL_RATIO**key)
        return self._made[key]

    def _make(self, level: float) -> np.ndarray:
        nodes = np.array(NODES, float)
        instrument = self._instrument.at_level(level)
        noise = n0_iterated(nodes, self._spectra, instrument, self._band)
        noise = np.exp(np.interp(self._ell, nodes, np.log(noise)))
        kk = self._spectra.kk
        signal = np.interp(np.maximum(self._ell, 8.0), np.arange(len(kk)), kk)
        flat = np.where(self._inside, 1.0 / np.maximum(self._ell, FLOOR), 0.0)
        weight = flat / flat.sum() * (signal + noise) / (signal * noise)
        return (weight * self._unit).astype(np.float32)


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class WeighedModes(keras.losses.Loss):
    """Σ_L w_L |κ̂_L − κ_L|² of each patch; the target's channels are κ and w_L
    (:class:`ModeWeights`)."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of each patch.

        Parameters
        ----------
        y_true : κ and the weights of its modes, (n, ny, nx, 2)
        y_pred : κ̂, (n, ny, nx, 1)

        Returns
        -------
        loss : (n,)
        """
        error = y_pred[..., 0] - y_true[..., 0]
        real, imaginary = keras.ops.fft2((error, keras.ops.zeros_like(error)))
        return keras.ops.sum((real**2 + imaginary**2) * y_true[..., 1], axis=(1, 2))


def targets_of(
    kappa: np.ndarray, e: np.ndarray, level: np.ndarray, weights: ModeWeights
) -> dict[str, np.ndarray]:
    """Targets of a batch, by head of the network.

    Parameters
    ----------
    kappa, e : truth, (n, ny, nx) each, E in µK
    level : noise level of each patch in µK-arcmin, (n,)
    weights : of the modes

    Returns
    -------
    targets : ``"e"``, (n, ny, nx, 1); ``"kappa"``, κ with the weights of its modes, (n, ny, nx, 2)
    """
    modes = np.stack([weights.at(value) for value in level])
    return {
        "e": e[..., None].astype(np.float32),
        "kappa": np.stack([kappa.astype(np.float32), modes], axis=-1),
    }


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class ToSymmetry(keras.layers.Layer):
    """Features (n, ny, nx, len(FEATURES)) and a symmetry of the square, (n,) the same number 0 to 7
    throughout → the features turned by it (:func:`.features.turned`), float32."""

    def call(self, features: Tensor, symmetry: Tensor) -> Tensor:
        """Turn features.

        Parameters
        ----------
        features : (n, ny, nx, len(FEATURES))
        symmetry : (n,), the same number 0 to 7 throughout

        Returns
        -------
        features : turned, float32
        """
        maps = keras.ops.cast(features, self.compute_dtype)
        return keras.ops.switch(symmetry[0], [_there(*operation) for operation in SYMMETRIES], maps)


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class FromSymmetry(keras.layers.Layer):
    """Scalar maps (n, ny, nx, 1) turned back by what :class:`ToSymmetry` turned features by."""

    def call(self, maps: Tensor, symmetry: Tensor) -> Tensor:
        """Turn maps back.

        Parameters
        ----------
        maps : (n, ny, nx, 1)
        symmetry : (n,), as for :class:`ToSymmetry`

        Returns
        -------
        maps : turned back, same shape
        """
        return keras.ops.switch(symmetry[0], [_back(*operation) for operation in SYMMETRIES], maps)


def _there(turns: int, flip: bool) -> Callable[[Tensor], Tensor]:
    order, signs = symmetry_of(turns, flip)

    def move(maps: Tensor) -> Tensor:
        moved = keras.ops.rot90(maps, turns, axes=(1, 2))
        moved = keras.ops.flip(moved, 2) if flip else moved
        return keras.ops.take(moved, order, axis=-1) * signs

    return move


def _back(turns: int, flip: bool) -> Callable[[Tensor], Tensor]:
    def move(maps: Tensor) -> Tensor:
        moved = keras.ops.flip(maps, 2) if flip else maps
        return keras.ops.rot90(moved, -turns % 4, axes=(1, 2))

    return move


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class RefiningLearner(keras.Model):
    """A refining network under a symmetry of the square: [features, symmetry] → what the network
    makes of the turned features, turned back.

    Parameters
    ----------
    network : that learns; its own arguments are the learner's configuration
    """

    def __init__(self, network: RefiningUNet, **kwargs: Any):
        maps = layers.Input((None, None, len(FEATURES)), name="features", dtype="float16")
        symmetry = layers.Input((), name="symmetry", dtype="int32")
        turned = network(ToSymmetry(name="to_symmetry")(maps, symmetry))
        outputs = {name: FromSymmetry(name=name)(turned[name], symmetry) for name in ("e", "kappa")}
        super().__init__([maps, symmetry], outputs, **kwargs)
        self._network = network

    @property
    def network(self) -> RefiningUNet:
        """The network that learns."""
        return self._network

    def get_config(self) -> dict[str, Any]:
        """What :meth:`from_config` makes it of."""
        return {**self._network.get_config(), "name": self.name}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> RefiningLearner:
        """Build the learner of a configuration, as Keras asks for it.

        Parameters
        ----------
        config : of :meth:`get_config`
        custom_objects : not used

        Returns
        -------
        learner : with new weights
        """
        name = config.pop("name", None)
        return cls(RefiningUNet(**config), name=name)


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class AveragingAdam(keras.optimizers.Adam):
    """Adam beside which stands a running mean of the weights; Keras's own puts the mean in the
    weights' place whenever ``fit`` ends, this one keeps both."""

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Leave the weights as they are at the end of training.

        Parameters
        ----------
        var_list : the trainable variables
        """

    def means(self, variables: list[Any]) -> list[np.ndarray]:
        """The running means of trainable variables.

        Parameters
        ----------
        variables : of the model that learns

        Returns
        -------
        means : in the order of ``variables``
        """
        kept = self._model_variables_moving_average
        return [keras.ops.convert_to_numpy(kept[self._get_variable_index(v)]) for v in variables]


class FeatureBatches(keras.utils.PyDataset):
    """The batches of one epoch: of each, patches and a symmetry of the square drawn from its own
    seed.

    Parameters
    ----------
    patches, weights : of the training set
    seeds : one for each batch
    batch : patches each
    """

    def __init__(
        self,
        patches: RefiningPatches,
        weights: ModeWeights,
        seeds: list[np.random.SeedSequence],
        batch: int,
    ):
        super().__init__(workers=1, use_multiprocessing=False)
        self._patches, self._weights, self._seeds, self._batch = patches, weights, seeds, batch

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, step: int) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        generator = np.random.default_rng(self._seeds[step])
        patches = self._patches
        drawn = generator.integers(len(patches.features), size=self._batch)
        symmetry = np.full(self._batch, generator.integers(len(SYMMETRIES)), np.int32)
        targets = targets_of(
            patches.kappa[drawn], patches.e[drawn], patches.level[drawn], self._weights
        )
        return (patches.features[drawn], symmetry), targets
