"""Training of a refining network on features (:mod:`.features`), resumable by epoch.

Beside the network that learns stands the mean of its late weights, which is what is kept: every
step takes it a part of the way. Batches are functions of (seed, epoch, step), as in
:mod:`.training`, whose state on disk this shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
from tqdm import tqdm

from ..errors import NetworkError
from ..reconstruct.refined import RefiningUNet, load_refining
from ..reconstruct.refining import FeatureBatches, ModeWeights, WeighedModes, targets_of
from ..simulate.skies import seed_sequence
from . import features, networks
from .training import ScaledMSE, StepCallback, TrainingRun, plan_epochs

if TYPE_CHECKING:
    from .run import Run

# Of the error of E, in units of a typical residual's variance (3 µK)², beside that of κ's modes.
E_WEIGHT, E_UNIT = 0.05, 3.0
# Steps over which the mean of the weights forgets.
MEMORY = 500.0


class _Mean(keras.callbacks.Callback):
    """Moves the mean network's weights towards the learning one's after each step."""

    def __init__(self, mean: RefiningUNet, steps_before: int):
        super().__init__()
        self._values, self._steps, self._mean = mean.get_weights(), steps_before, mean

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        # The first steps are forgotten sooner.
        part = 1.0 / min(MEMORY, 0.1 * self._steps + 1.0)
        for value, new in zip(self._values, self.model.get_weights(), strict=True):
            value += part * (new - value)

    def on_epoch_end(self, epoch, logs=None):
        self._mean.set_weights(self._values)


def train(run: Run, directory: Path) -> Iterator[dict]:
    """Train, or go on training, yielding the record of each finished epoch.

    Parameters
    ----------
    directory : where the state is kept

    Raises
    ------
    NetworkError
        if the directory holds another run, or the loss is no longer finite
    """
    config = run.config
    state, plan = TrainingRun(directory, networks.recipe(run)), plan_epochs(config)
    if len(state.history) >= len(plan):
        return
    patches, checked = (features.read(run, name) for name in ("train", "validation"))
    x_val = checked.features.astype(np.float32)
    weights = ModeWeights(config.patch, config.instrument, run.spectra(), np.mean(run.mask**2))
    known = targets_of(checked.kappa, checked.e, checked.level, weights)
    network = state.load_checkpoint() or new_network(run)
    mean = state.load_mean() or RefiningUNet.from_config(network.get_config())
    if not state.history:
        mean.set_weights(network.get_weights())
    mean.compile(**_losses(), jit_compile=config.training.jit_compile)
    total, done = sum(p.steps for p in plan), sum(p.steps for p in plan[: len(state.history)])
    with tqdm(total=total, initial=done, desc="training", unit="step", mininterval=5) as bar:
        for epoch in range(len(state.history), len(plan)):
            step = plan[epoch]
            seeds = [
                seed_sequence(config.training.seed, "refining", epoch, i) for i in range(step.steps)
            ]
            fitted = network.fit(
                FeatureBatches(patches, weights, seeds, step.phase.batch),
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[StepCallback(step, 0, bar), _Mean(mean, done)],
            )
            done += step.steps
            validated = mean.evaluate(x_val, known, batch_size=8, verbose=0, return_dict=True)
            record = {"epoch": epoch + 1, "steps": step.first_step + step.steps}
            record |= {k: float(v[-1]) for k, v in fitted.history.items()}
            record |= {f"val_{k}": float(v) for k, v in validated.items()}
            if not np.isfinite(record["loss"]) or not np.isfinite(record["val_loss"]):
                raise NetworkError(
                    f"{directory}: the loss is not finite after epoch {epoch + 1}; lower "
                    "'learning_rate' or set 'clip_norm' in the configuration's 'training'"
                )
            state.finish_epoch(network, record, mean)
            bar.set_postfix(val_kappa=f"{record['val_kappa_loss']:.4f}")
            yield record


def _losses() -> dict:
    return {
        "loss": {"e": ScaledMSE(E_UNIT), "kappa": WeighedModes()},
        "loss_weights": {"e": E_WEIGHT, "kappa": 1.0},
    }


def new_network(run: Run) -> RefiningUNet:
    """The network before training, compiled; with the weights of ``network.initial`` if that names
    a file.

    Raises
    ------
    NetworkError
        if ``network.initial`` does not fit
    """
    config = run.config
    keras.utils.set_random_seed(config.network.seed)
    metadata = {"config": config.name, "recipe": networks.recipe(run)}
    network = RefiningUNet(config.network.width, metadata=metadata)
    if (initial := config.network.initial) is not None:
        source = load_refining(initial)
        if source.count_params() != network.count_params():
            raise NetworkError(
                f"{initial}: 'network.initial' holds another width than {config.network.width}"
            )
        network.set_weights(source.get_weights())
    network.compile(
        optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=config.training.clip_norm),
        **_losses(),
        jit_compile=config.training.jit_compile,
    )
    return network
