"""How a refining network learns: error modes weighed by what can be known of them, patches turned
by the symmetries of the square, the mean of late weights.
"""

from __future__ import annotations

import keras
import numpy as np

from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..theory import Spectra
from .features import RefiningPatches, turned
from .n0 import Filter, band_of, n0_iterated

# Multipoles between which N_L is interpolated, and below which modes count no more for being few.
NODES = (30, 60, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4400)
FLOOR = 100.0
# Noise levels of which weights are made, a quarter apart, in µK′; none below the least.
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
        self._beam, self._spectra = instrument.beam_fwhm_arcmin, spectra
        self._band = band_of(geometry, spectra, Filter().lmin)
        n, pixel = geometry.n_pixels, geometry.pixel
        l = 2.0 * np.pi * np.fft.fftfreq(n, pixel)
        self._ell = np.hypot(l[:, None], l[None, :])
        self._inside = (self._ell > 0) & (self._ell < NODES[-1])
        self._unit = pixel**2 / (n**2 * mean_square_mask)
        self._made: dict[int, np.ndarray] = {}

    def at(self, level: float) -> np.ndarray:
        """Weights at a noise level in µK′, (n, n) float32, modes as :func:`numpy.fft.fft2` has
        them."""
        key = round(np.log(max(level, LOWEST_LEVEL)) / np.log(LEVEL_RATIO))
        if key not in self._made:
            self._made[key] = self._make(LEVEL_RATIO**key)
        return self._made[key]

    def _make(self, level: float) -> np.ndarray:
        nodes = np.array(NODES, float)
        instrument = Instrument(level, self._beam)
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

    def call(self, y_true, y_pred):
        """One number a patch."""
        error = y_pred[..., 0] - y_true[..., 0]
        real, imaginary = keras.ops.fft2((error, keras.ops.zeros_like(error)))
        return keras.ops.sum((real**2 + imaginary**2) * y_true[..., 1], axis=(1, 2))


def targets_of(
    kappa: np.ndarray, e: np.ndarray, level: np.ndarray, weights: ModeWeights
) -> dict[str, np.ndarray]:
    """Targets of a batch by head: E (n, ny, nx, 1), and κ with the weights of its modes,
    (n, ny, nx, 2)."""
    modes = np.stack([weights.at(value) for value in level])
    return {
        "e": e[..., None].astype(np.float32),
        "kappa": np.stack([kappa.astype(np.float32), modes], axis=-1),
    }


class FeatureBatches(keras.utils.PyDataset):
    """The batches of one epoch, each drawn from its own seed and turned at random.

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

    def __getitem__(self, step: int):
        generator = np.random.default_rng(self._seeds[step])
        known = self._patches
        drawn = generator.integers(len(known.features), size=self._batch)
        features, kappa, e = [], [], []
        for i in drawn:
            turns, flip = int(generator.integers(4)), bool(generator.integers(2))
            features.append(turned(known.features[i], turns, flip))
            for into, maps in ((kappa, known.kappa), (e, known.e)):
                moved = np.rot90(maps[i], turns)
                into.append(moved[:, ::-1] if flip else moved)
        targets = targets_of(np.array(kappa), np.array(e), known.level[drawn], self._weights)
        return np.array(features, np.float32), targets
