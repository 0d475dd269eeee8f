"""Training of a refining network on features (:mod:`.features`), resumable by epoch.

Beside the network that learns stands the mean of its late weights, which is what is kept. Batches
are functions of (seed, epoch, step), as in :mod:`.training`, whose state on disk this shares. The
rates, means and symmetries are computed where the network is: a GPU waits for patches alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..errors import NetworkError
from ..reconstruct.backend import keras
from ..reconstruct.refined import RefiningUNet, load_refining
from ..reconstruct.refining import (
    AveragingAdam,
    FeatureBatches,
    ModeWeights,
    RefiningLearner,
    WeighedModes,
    targets_of,
)
from ..simulate.skies import seed_sequence
from . import networks
from .features import Features
from .training_state import ScaledMSE, TrainingRun, plan_epochs

if TYPE_CHECKING:
    from .simulation import Simulation

# Of the error of E, in units of a typical residual's variance (3 µK)², beside that of κ's modes.
E_WEIGHT, E_UNIT = 0.05, 3.0
# Of the running mean of the weights: it forgets over 1/(1 − momentum) steps.
MOMENTUM = 0.998


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class PhaseRates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of every step: in each phase linear warm-up, then half a cosine down.

    Parameters
    ----------
    phases : ``steps``, ``learning_rate``, ``final_rate`` and ``warmup`` of each
    """

    def __init__(self, phases: list[dict[str, Any]]):
        self._phases = phases

    def __call__(self, step: Any) -> Any:
        """The rate at a step, a scalar of the backend."""
        ops = keras.ops
        step, first, rate = ops.cast(step, "float32"), 0, 0.0
        for phase in self._phases:
            at, warmup = step - first, phase["warmup"]
            top, last = phase["learning_rate"], phase["final_rate"]
            part = ops.clip((at - warmup) / max(1, phase["steps"] - warmup), 0.0, 1.0)
            falling = last + 0.5 * (top - last) * (1.0 + ops.cos(np.pi * part))
            rising = top * (at + 1.0) / max(warmup, 1)
            rate = ops.where(at < 0, rate, ops.where(at < warmup, rising, falling))
            first += phase["steps"]
        return rate

    def get_config(self) -> dict[str, Any]:
        """What it is made of."""
        return {"phases": self._phases}


class _Progress(keras.callbacks.Callback):
    def __init__(self, bar: tqdm):
        super().__init__()
        self._bar = bar

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._bar.update()


def train(run: Simulation, directory: Path) -> Iterator[dict[str, Any]]:
    """Train, or go on training, yielding the record of each finished epoch.

    Parameters
    ----------
    run : the configuration and what follows from it
    directory : where the state is kept

    Yields
    ------
    number of the epoch and of its last step, losses of training and validation

    Raises
    ------
    NetworkError
        if the directory holds another run, or the loss is no longer finite
    """
    config = run.config
    state, plan = TrainingRun(directory, networks.recipe(run)), plan_epochs(config)
    if len(state.history) >= len(plan):
        return
    features = Features(run)
    patches, checked = (
        features.read(features.learned_from(name)) for name in ("train", "validation")
    )
    x_val = checked.features.astype(np.float32)
    weights = ModeWeights(config.patch, config.instrument, run.spectra(), np.mean(run.mask**2))
    known = targets_of(checked.kappa, checked.e, checked.level, weights)
    learner = state.load_checkpoint() or new_learner(run)
    mean = RefiningUNet.from_config(learner.network.get_config())
    mean.compile(**_losses(), jit_compile=config.training.jit_compile)
    total, done = sum(p.steps for p in plan), sum(p.steps for p in plan[: len(state.history)])
    with tqdm(total=total, initial=done, desc="training", unit="step", mininterval=5) as bar:
        for epoch in range(len(state.history), len(plan)):
            step = plan[epoch]
            seeds = [
                seed_sequence(config.training.seed, "refining", epoch, i) for i in range(step.steps)
            ]
            fitted = learner.fit(
                FeatureBatches(patches, weights, seeds, step.phase.batch),
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[_Progress(bar)],
            )
            # All weights are trainable: there is no normalisation by batches.
            mean.set_weights(learner.optimizer.means(learner.network.trainable_variables))
            validated = mean.evaluate(x_val, known, batch_size=8, verbose=0, return_dict=True)
            record: dict[str, float] = {"epoch": epoch + 1, "steps": step.first_step + step.steps}
            record |= {k: float(v[-1]) for k, v in fitted.history.items()}
            record |= {f"val_{k}": float(v) for k, v in validated.items()}
            if not np.isfinite(record["loss"]) or not np.isfinite(record["val_loss"]):
                raise NetworkError(
                    f"{directory}: the loss is not finite after epoch {epoch + 1}; lower "
                    "'learning_rate' or set 'clip_norm' in the configuration's 'training'"
                )
            state.finish_epoch(learner, record, mean)
            bar.set_postfix(val_kappa=f"{record['val_kappa_loss']:.4f}")
            yield record


def _losses() -> dict[str, Any]:
    return {
        "loss": {"e": ScaledMSE(E_UNIT), "kappa": WeighedModes()},
        "loss_weights": {"e": E_WEIGHT, "kappa": 1.0},
    }


def new_learner(run: Simulation) -> RefiningLearner:
    """The network before training, compiled to learn; with the weights of ``network.initial`` if
    that names a file.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the network with its optimiser and losses

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
    learner = RefiningLearner(network)
    phases = [
        phase.model_dump(include={"steps", "learning_rate", "final_rate", "warmup"})
        for phase in config.training.phases
    ]
    learner.compile(
        optimizer=AveragingAdam(
            PhaseRates(phases),
            global_clipnorm=config.training.clip_norm,
            use_ema=True,
            ema_momentum=MOMENTUM,
        ),
        **_losses(),
        jit_compile=config.training.jit_compile,
    )
    return learner
