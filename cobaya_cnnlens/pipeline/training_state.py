"""What trainings share: the loss, the plan of the epochs, and the state on disk.

The state is ``state.json`` (history and the names of the networks it speaks of) with the Keras
files beside it; each is written under a temporary name and renamed, the state last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NetworkError
from ..files import atomic_write
from ..reconstruct.backend import keras
from ..reconstruct.files import read_network
from . import networks
from .config import Config
from .sections.estimator_settings import Phase


@keras.saving.register_keras_serializable(package="cobaya_cnnlens")
class ScaledMSE(keras.losses.Loss):
    """Mean squared error in units of ``std``², so that E and κ weigh the same (paper §5.1).

    Parameters
    ----------
    std : standard deviation of the map, in its unit
    **kwargs : of :class:`keras.losses.Loss`
    """

    def __init__(self, std: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self._std = float(std)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Mean over the channels.

        Parameters
        ----------
        y_true, y_pred : (n, ny, nx, 1) each

        Returns
        -------
        (n, ny, nx)
        """
        return keras.ops.mean(keras.ops.square((y_true - y_pred) / self._std), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """What it is made of."""
        return {**super().get_config(), "std": self._std}


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of training.

    Attributes
    ----------
    phase : to which it belongs
    first_step : number of its first step in the phase
    steps : number of its batches
    """

    phase: Phase
    first_step: int
    steps: int


def plan_epochs(config: Config) -> list[EpochPlan]:
    """The epochs of all phases in order.

    Parameters
    ----------
    config : the pipeline's configuration

    Returns
    -------
    a plan for each epoch
    """
    plan = []
    for phase in config.training.phases:
        for first in range(0, phase.steps, config.training.steps_per_epoch):
            steps = min(config.training.steps_per_epoch, phase.steps - first)
            plan.append(EpochPlan(phase, first, steps))
    return plan


class TrainingRun:
    """The state of a training run on disk; see the module's head.

    Parameters
    ----------
    directory : where the state and the networks are kept
    recipe : what determines the run; a directory of another recipe is refused
    """

    def __init__(self, directory: Path, recipe: dict[str, Any]):
        self.directory, self._recipe = directory, json.loads(json.dumps(recipe))
        self._state_path = directory / "state.json"
        self.history: list[dict[str, Any]] = []
        self._checkpoint: str | None = None
        self._mean: str | None = None
        self._best = ""  # until the first epoch is done
        if self._state_path.exists():
            try:
                state = json.loads(self._state_path.read_text())
                recorded, self.history = state["recipe"], state["history"]
                self._checkpoint, self._best = state["checkpoint"], state["best"]
                self._mean = state.get("mean")
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise NetworkError(
                    f"{self._state_path}: damaged ({error!r}); delete the folder and train again"
                ) from None
            if different := networks.training_differences(recorded, self._recipe):
                raise NetworkError(
                    f"{self._state_path}: another training run, which differs in "
                    f"{'; '.join(different)}; delete the folder or use another products directory"
                )

    def load_checkpoint(self) -> keras.Model | None:
        """The network after the last finished epoch with its optimiser, or None at the start."""
        if self._checkpoint is None:
            return None
        return self._load(self._checkpoint)

    def finish_epoch(
        self, network: keras.Model, record: dict[str, Any], mean: keras.Model | None = None
    ) -> None:
        """Keep the network and its numbers; older checkpoints go once the state is on disk.

        Parameters
        ----------
        mean : the network of the mean of late weights, which is then what may be the best
        """
        self.history.append(record)
        epoch = len(self.history)
        self._checkpoint = f"epoch_{epoch:04d}.keras"
        self.directory.mkdir(parents=True, exist_ok=True)
        save_atomically(network, self.directory / self._checkpoint)
        if mean is not None:
            self._mean = f"mean_{epoch:04d}.keras"
            save_atomically(mean, self.directory / self._mean)
        if record["val_loss"] <= min(h["val_loss"] for h in self.history):
            self._best = self._mean or self._checkpoint
        state = {
            "recipe": self._recipe,
            "checkpoint": self._checkpoint,
            "best": self._best,
            **({"mean": self._mean} if self._mean else {}),
            "history": self.history,
        }
        with atomic_write(self._state_path) as partial:
            partial.write_text(json.dumps(state, indent=1))
        for old in (*self.directory.glob("epoch_*.keras"), *self.directory.glob("mean_*.keras")):
            if old.name not in (self._checkpoint, self._mean, self._best):
                old.unlink()

    def best(self) -> keras.Model:
        """The network of the epoch with the lowest validation loss."""
        return self._load(self._best, compile=False)

    def _load(self, name: str, **options: Any) -> keras.Model:
        path = self.directory / name
        try:
            read_network(path)
            return keras.saving.load_model(path, **options)
        except Exception as error:
            raise NetworkError(
                f"{path}: {self._state_path.name} names this checkpoint, which is missing or "
                f"damaged ({str(error)[:200]}); delete the folder and train again"
            ) from None


def save_atomically(network: keras.Model, path: Path) -> None:
    """Save under a temporary ``.keras`` name, then rename.

    Parameters
    ----------
    network : the Keras model
    path : destination
    """
    with atomic_write(path) as partial:
        network.save(partial)
