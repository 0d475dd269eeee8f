"""Training of the ResUNet: patches in memory, fresh noise per batch, resumable by epoch.

Every batch is a function of (seed, epoch, step), so a run that was killed goes on from its
last epoch with the batches it would have seen (:mod:`.training_state`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import NetworkError
from ..reconstruct.backend import keras
from ..reconstruct.resunet import ResUNet, apply_symmetry, load_network
from ..simulate.instrument import convolve_beam
from ..simulate.skies import seed_sequence
from . import networks
from .observation import observe_sky
from .sections.estimator_settings import Phase
from .simulation import Simulation
from .skies import Skies
from .training_state import EpochPlan, ScaledMSE, TrainingRun, plan_epochs


@dataclass(frozen=True)
class TrainingPatches:
    """Noiseless, unmasked training maps in memory.

    Attributes
    ----------
    lensed : beamed Q̃ and Ũ in µK, (n, ny, nx, 2)
    targets : E in µK and κ, (n, ny, nx, 2)
    """

    lensed: np.ndarray
    targets: np.ndarray


def load_training_patches(run: Simulation) -> TrainingPatches:
    """Read the whole training set; 2 GB for 48 skies of the paper's patches.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    maps of all training skies
    """
    config = run.config
    n_skies, n = config.skies.train, config.patch.n_pixels
    target_names = ("e", "kappa")
    lensed: np.ndarray = np.empty(0)
    targets: np.ndarray = np.empty(0)
    for i in tqdm(range(n_skies), desc="training set", unit="sky"):
        q, u, *truth = Skies(run).read("train", i, ("lensed_q", "lensed_u", *target_names))
        if i == 0:
            shape = (n_skies * len(q), n, n)
            lensed = np.empty((*shape, 2), np.float32)
            targets = np.empty((*shape, len(target_names)), np.float32)
        rows = slice(i * len(q), (i + 1) * len(q))
        for c, maps in enumerate((q, u)):
            lensed[rows, ..., c] = convolve_beam(maps, config.instrument, config.patch)
        for c, maps in enumerate(truth):
            targets[rows, ..., c] = config.patch.crop(maps)
    return TrainingPatches(lensed, targets)


def normalisation(
    patches: TrainingPatches, mask: np.ndarray, noise_rms: float | np.ndarray
) -> tuple[list[float], list[float]]:
    """Standard deviations of the masked (Q̃, Ũ) with noise, and of the masked E and κ.

    Parameters
    ----------
    patches : the training set
    mask : (n, n)
    noise_rms : of Q and of U per pixel in µK, a number or (n, n)

    Returns
    -------
    of Q̃ and Ũ in µK, and of E in µK and κ
    """
    weight = mask**2 / mask.size
    inputs = np.einsum("nyxc,yx->c", patches.lensed**2, weight) / len(patches.lensed)
    outputs = np.einsum("nyxc,yx->c", patches.targets**2, weight) / len(patches.targets)
    return (
        np.sqrt(inputs + (noise_rms**2 * weight).sum()).tolist(),
        np.sqrt(outputs).tolist(),
    )


class EpochBatches(keras.utils.PyDataset):
    """The batches of one epoch, each drawn from its own seed.

    Parameters
    ----------
    patches : the training set
    run : the configuration and what follows from it
    phase : of training
    epoch : number of the epoch
    steps : number of batches
    """

    def __init__(
        self, patches: TrainingPatches, run: Simulation, phase: Phase, epoch: int, steps: int
    ):
        super().__init__(workers=1, use_multiprocessing=False)
        self._patches, self._config, self._phase = patches, run.config, phase
        self._epoch, self._steps = epoch, steps
        self._mask = run.mask.astype(np.float32)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        training, config = self._config.training, self._config
        generator = np.random.default_rng(
            seed_sequence(training.seed, "training", self._epoch, step)
        )
        n = config.patch.n_pixels
        size = self._phase.crop or n
        shape = (self._phase.batch, size, size)
        inputs, outputs = np.empty((2, *shape, 2), np.float32)
        rms = np.asarray(config.instrument.noise_rms(config.patch), np.float32)[..., None]
        for b in range(self._phase.batch):
            i = generator.integers(len(self._patches.lensed))
            y, x = generator.integers(n - size + 1, size=2)
            window = (slice(y, y + size), slice(x, x + size))
            if training.fresh_noise:
                draw = generator
            else:  # the paper's: one noise realisation per patch
                draw = np.random.default_rng(seed_sequence(training.seed, "fixed noise", int(i)))
            noise = rms * draw.standard_normal((n, n, 2), dtype=np.float32)
            mask = self._mask[window][..., None]
            qu = (self._patches.lensed[i][window] + noise[window]) * mask
            target = self._patches.targets[i][window] * mask
            if training.augment:
                turns, flip = int(generator.integers(4)), bool(generator.integers(2))
                qu = apply_symmetry(qu, turns, flip, spin2=True)
                target = apply_symmetry(target, turns, flip, spin2=False)
            inputs[b], outputs[b] = qu, target
        return inputs, {"e": outputs[..., :1], "kappa": outputs[..., 1:]}


def cosine_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then half a cosine from ``learning_rate`` to ``final_rate``.

    Parameters
    ----------
    phase : with the rates and steps
    step : number of the step in the phase

    Returns
    -------
    the learning rate
    """
    if step < phase.warmup:
        return phase.learning_rate * (step + 1) / phase.warmup
    fraction = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    drop = 0.5 * (1.0 + np.cos(np.pi * fraction))
    return phase.final_rate + (phase.learning_rate - phase.final_rate) * drop


def plateau(losses: list[float], patience: int = 3, stop: int = 10) -> tuple[int, bool]:
    """Number of halvings after these validation losses, and whether training has converged.

    The paper's rule: halve after ``patience`` consecutive epochs without a new best, stop
    after ``stop``.

    Parameters
    ----------
    losses : of validation, by epoch
    patience, stop : number of epochs

    Returns
    -------
    number of halvings, and whether to stop

    Examples
    --------
    >>> plateau([1.0, 0.9, 0.95, 0.92, 0.91])
    (1, False)
    """
    best, stale, halvings = np.inf, 0, 0
    for loss in losses:
        if loss < best:
            best, stale = loss, 0
        else:
            stale += 1
            if stale % patience == 0:
                halvings += 1
            if stale >= stop:
                return halvings, True
    return halvings, False


class StepCallback(keras.callbacks.Callback):
    """Sets the learning rate of each step and moves the progress bar.

    Parameters
    ----------
    plan : of the epoch
    halvings : of the rate so far, in a phase of schedule "plateau"
    bar : of steps
    """

    def __init__(self, plan: EpochPlan, halvings: int, bar: tqdm):
        super().__init__()
        self._plan, self._halvings, self._bar = plan, halvings, bar

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Set the learning rate.

        Parameters
        ----------
        batch : number of the step in the epoch
        logs : not used
        """
        phase = self._plan.phase
        if phase.schedule == "cosine":
            rate = cosine_rate(phase, self._plan.first_step + batch)
        else:
            rate = phase.learning_rate * 0.5**self._halvings
        self.model.optimizer.learning_rate = rate

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Move the progress bar.

        Parameters
        ----------
        batch, logs : not used
        """
        self._bar.update()


def new_network(run: Simulation, patches: TrainingPatches) -> ResUNet:
    """The network before training, compiled: of the training set's normalisation, with the weights
    of ``network.initial`` if that names a file.

    Parameters
    ----------
    run : the configuration and what follows from it
    patches : the training set

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
    noise_rms = config.instrument.noise_rms(config.patch)
    input_std, output_std = normalisation(patches, run.mask, noise_rms)
    network = ResUNet(
        width=config.network.width,
        dropout=config.network.dropout,
        input_std=(input_std[0], input_std[1]),
        output_std=(output_std[0], output_std[1]),
        metadata=metadata,
    )
    if config.network.initial:
        network = _with_weights_of(config.network.initial, network)
    losses = {name: ScaledMSE(std) for name, std in network.output_std.items()}
    network.compile(
        optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=config.training.clip_norm),
        loss=losses,
        jit_compile=config.training.jit_compile,
    )
    return network


def _with_weights_of(path: Path, network: ResUNet) -> ResUNet:
    """``network`` with the trained weights in a file and the normalisation that they expect."""
    source = load_network(path)
    expected = {name: source.get_config()[name] for name in ("input_std", "output_std")}
    started = ResUNet.from_config({**network.get_config(), **expected})
    weights = []
    for old, new in zip(source.weights, started.weights, strict=True):
        values = keras.ops.convert_to_numpy(old)
        if values.shape != tuple(new.shape):
            raise NetworkError(
                f"{path}: 'network.initial' holds another width than 'network' asks for "
                f"({old.path}: {values.shape}, wanted {tuple(new.shape)})"
            )
        weights.append(values)
    started.set_weights(weights)
    return started


def validation_batch(run: Simulation) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The first ``validation_patches`` patches of the validation skies, with fixed noise.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    inputs, (n, ny, nx, 2), and targets ``e`` and ``kappa``, (n, ny, nx, 1) each
    """
    config = run.config
    n_patches = config.training.validation_patches
    inputs, e, kappa = [], [], []
    for index in range(config.skies.validation):
        sky = observe_sky(run, "validation", index)
        inputs.append(np.stack([sky.q, sky.u], axis=-1))
        e.append(sky.e[..., None])
        kappa.append(sky.kappa[..., None])
        if sum(map(len, inputs)) >= n_patches:
            break
    targets = {"e": np.concatenate(e)[:n_patches], "kappa": np.concatenate(kappa)[:n_patches]}
    return np.concatenate(inputs)[:n_patches], targets


def train(run: Simulation, directory: Path) -> Iterator[dict[str, Any]]:
    """Train, or go on training, yielding the record of each finished epoch.

    Parameters
    ----------
    run : the configuration and what follows from it
    directory : where training keeps its state

    Yields
    ------
    number of the epoch and of its last step, learning rate, losses of training and validation

    Raises
    ------
    NetworkError
        if the directory holds another run, or the loss is no longer finite
    """
    config = run.config
    state = TrainingRun(directory, networks.recipe(run))
    plan = plan_epochs(config)
    if _converged(state, plan):
        return
    patches = load_training_patches(run)
    x_val, y_val = validation_batch(run)
    network = state.load_checkpoint() or new_network(run, patches)
    total = sum(p.steps for p in plan)
    done = sum(p.steps for p in plan[: len(state.history)])
    with tqdm(total=total, initial=done, desc="training", unit="step", mininterval=5) as bar:
        while not _converged(state, plan):
            epoch = len(state.history)
            step = plan[epoch]
            halvings, _ = plateau(_phase_losses(state, plan, step.phase))
            fitted = network.fit(
                EpochBatches(patches, run, step.phase, epoch, step.steps),
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[StepCallback(step, halvings, bar)],
            )
            validated = network.evaluate(x_val, y_val, batch_size=16, verbose=0, return_dict=True)
            record: dict[str, float] = {"epoch": epoch + 1, "steps": step.first_step + step.steps}
            record["learning_rate"] = float(network.optimizer.learning_rate)
            record |= {k: v[-1] for k, v in fitted.history.items()}
            record |= {f"val_{k}": v for k, v in validated.items()}
            if not np.isfinite(record["loss"]) or not np.isfinite(record["val_loss"]):
                raise NetworkError(
                    f"{directory}: the loss is not finite after epoch {epoch + 1}; lower "
                    "'learning_rate' or set 'clip_norm' in the configuration's 'training'"
                )
            state.finish_epoch(network, record)
            bar.set_postfix(val_kappa=f"{record['val_kappa_loss']:.4f}")
            yield record


def _phase_losses(state: TrainingRun, plan: list[EpochPlan], phase: Phase) -> list[float]:
    return [h["val_loss"] for h, p in zip(state.history, plan, strict=False) if p.phase is phase]


def _converged(state: TrainingRun, plan: list[EpochPlan]) -> bool:
    if len(state.history) >= len(plan):
        return True
    last = plan[-1].phase
    return last.schedule == "plateau" and plateau(_phase_losses(state, plan, last))[1]
