import json
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from cobaya_cnnlens.errors import NetworkError, ProductError
from cobaya_cnnlens.pipeline import networks, training, training_state
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.estimator_settings import Phase
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct import resunet
from cobaya_cnnlens.simulate.modes import mode_vectors, polarisation_angles
from cobaya_cnnlens.simulate.shards import FIELDS


@pytest.fixture
def tiny(small_config):
    """A configuration whose skies are a few patches of noise, and a training of seconds."""
    config = small_config
    phases = [
        Phase(steps=2, batch=2, crop=16, learning_rate=1e-3, warmup=1),
        Phase(steps=1, batch=2, crop=0, learning_rate=1e-4),
    ]
    config = config.model_copy(
        update={
            "network": config.network.model_copy(update={"width": 2}),
            "training": config.training.model_copy(
                update={
                    "phases": phases,
                    "steps_per_epoch": 1,
                    "validation_patches": 4,
                    "jit_compile": False,
                }
            ),
        }
    )
    generator = np.random.default_rng(5)
    n = config.patch.n_padded
    for name in ("train", "validation"):
        for i in range(config.set_size(name)):
            fields = {f: generator.standard_normal((3, n, n)).astype("f4") for f in FIELDS}
            Skies(Run(config)).write(fields, name, i)
    return config


def flat_e(qu):
    n = qu.shape[0]
    cos2, sin2 = polarisation_angles(*mode_vectors(n, 1.0))
    q, u = (np.fft.rfft2(qu[..., c]) for c in (0, 1))
    return np.fft.irfft2(q * cos2 + u * sin2, s=(n, n))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_symmetries_keep_e_a_scalar(turns, flip):
    """E of the transformed Q, U is the transformed E: the signs of Q and U are right."""
    # An odd grid has no Nyquist modes, whose direction would be ambiguous.
    qu = np.random.default_rng(0).standard_normal((31, 31, 2)).astype("f4")
    e = flat_e(qu)
    moved = resunet.apply_symmetry(qu, turns, flip, spin2=True)
    both = resunet.apply_symmetry(np.stack([e, e], -1), turns, flip, spin2=False)[..., 0]
    np.testing.assert_allclose(flat_e(moved), both, atol=1e-5)
    if turns % 2:
        unsigned = resunet.apply_symmetry(qu, turns, flip, spin2=False)
        assert np.abs(flat_e(unsigned) - both).max() > 0.1


def test_cosine_schedule():
    phase = Phase(steps=100, learning_rate=1.0, final_rate=0.1, warmup=10)
    assert training.cosine_rate(phase, 0) == pytest.approx(0.1)
    assert training.cosine_rate(phase, 10) == pytest.approx(1.0)
    assert training.cosine_rate(phase, 55) == pytest.approx(0.55)
    assert training.cosine_rate(phase, 100) == pytest.approx(0.1)


def test_the_papers_plateau_rule():
    falling = [5.0, 4.0, 3.0]
    assert training.plateau(falling) == (0, False)
    assert training.plateau([*falling, 3, 3, 3]) == (1, False)
    assert training.plateau([*falling, 3, 3, 2.9, 3, 3]) == (0, False)
    assert training.plateau([*falling, *[3.0] * 10]) == (3, True)


def test_normalisation_is_that_of_the_masked_noisy_maps(tiny):
    patches = training.load_training_patches(Run(tiny))
    mask = Run(tiny).mask
    inputs, outputs = training.normalisation(patches, mask, 2.0)
    generator = np.random.default_rng(1)
    seen = (patches.lensed + 2.0 * generator.standard_normal(patches.lensed.shape)) * mask[
        ..., None
    ]
    np.testing.assert_allclose(inputs, np.sqrt(np.mean(seen**2, (0, 1, 2))), rtol=0.01)
    masked = patches.targets * mask[..., None]
    np.testing.assert_allclose(outputs, np.sqrt(np.mean(masked**2, (0, 1, 2))), rtol=1e-5)


def test_batches_depend_on_epoch_and_step_only(tiny):
    patches = training.load_training_patches(Run(tiny))

    def batch(epoch, step):
        phase = tiny.training.phases[0]
        return training.EpochBatches(patches, Run(tiny), phase, epoch, 2)[step][0]

    np.testing.assert_array_equal(batch(3, 1), batch(3, 1))
    assert np.abs(batch(3, 1) - batch(3, 0)).max() > 0
    assert np.abs(batch(3, 1) - batch(4, 1)).max() > 0


def test_targets_belong_to_their_inputs(tiny):
    """With E ≡ Q̃ in the shards and no noise, target and input move together under crops."""
    quiet = tiny.model_copy(
        update={
            "instrument": tiny.instrument.__class__(noise_uk_arcmin=0.0),
            "training": tiny.training.model_copy(update={"augment": False}),
        }
    )
    loaded = training.load_training_patches(Run(quiet))
    same = training.TrainingPatches(loaded.lensed, loaded.lensed)
    inputs, outputs = training.EpochBatches(same, Run(quiet), quiet.training.phases[0], 0, 2)[1]
    np.testing.assert_array_equal(inputs[..., :1], outputs["e"])
    np.testing.assert_array_equal(inputs[..., 1:], outputs["kappa"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_where_it_would_have(tiny, tmp_path, eager):
    whole = list(training.train(Run(tiny), tmp_path / "whole"))
    assert [r["epoch"] for r in whole] == [1, 2, 3]
    run = training.train(Run(tiny), tmp_path / "parts")
    first = next(run)
    run.close()
    rest = list(training.train(Run(tiny), tmp_path / "parts"))
    assert [r["epoch"] for r in rest] == [2, 3]
    for a, b in zip(whole, [first, *rest], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["learning_rate"] == b["learning_rate"]
    recipe = networks.recipe(Run(tiny))
    ends = [
        keras.saving.load_model(tmp_path / d / "epoch_0003.keras", compile=False).get_weights()
        for d in ("whole", "parts")
    ]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert list(training.train(Run(tiny), tmp_path / "whole")) == []
    state = json.loads((tmp_path / "whole" / "state.json").read_text())
    assert state["recipe"] == json.loads(json.dumps(recipe))
    best = min(state["history"], key=lambda h: h["val_loss"])["epoch"]
    assert state["best"] == f"epoch_{best:04d}.keras"


# `cnnlens` without the minute of tracing.
EAGER_COMMAND = """
from cobaya_cnnlens.reconstruct.backend import keras
if keras.backend.backend() == "tensorflow":
    import tensorflow
    tensorflow.config.run_functions_eagerly(True)
from cobaya_cnnlens.cli.main import run
run()
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(tiny, tmp_path, eager):
    """kill −9 after an epoch is on disk, then run again: that epoch is kept, the rest is done."""
    phases = [Phase(steps=600, batch=2, crop=16, learning_rate=1e-3)]
    slow = tiny.model_copy(update={"training": tiny.training.model_copy(update={"phases": phases})})
    config_file = tmp_path / "config.yaml"
    config_file.write_text(slow.model_dump_json())
    command = [sys.executable, "-c", EAGER_COMMAND, "train", str(config_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    directory = networks.training_directory(Run(slow))
    deadline = time.time() + 240
    while not (directory / "state.json").exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads((directory / "state.json").read_text())["history"]
    assert 1 <= len(before) < 600
    assert not networks.path(Run(slow)).exists()
    run = training.train(Run(slow), directory)
    record = next(run)
    run.close()
    assert record["epoch"] == len(before) + 1
    after = json.loads((directory / "state.json").read_text())
    assert after["history"] == [*before, record]
    network = keras.saving.load_model(directory / after["checkpoint"])
    assert int(network.optimizer.iterations) == len(after["history"])


def test_another_recipe_is_refused(tiny, tmp_path, eager):
    next(training.train(Run(tiny), tmp_path))
    other = tiny.model_copy(update={"instrument": tiny.instrument.__class__(noise_uk_arcmin=5.0)})
    with pytest.raises(NetworkError, match=r"instrument\.noise_uk_arcmin"):
        next(training.train(Run(other), tmp_path))
    # XLA does not make another run of it, also where an older state names it.
    state = json.loads((tmp_path / "state.json").read_text())
    state["recipe"]["training"]["jit_compile"] = True
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert next(training.train(Run(tiny), tmp_path))["epoch"] == 2
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(NetworkError, match="damaged"):
        next(training.train(Run(tiny), tmp_path))


class Saved:
    """Stands for a network of which only the file matters."""

    def save(self, path):
        path.write_text("network")


def test_the_best_epoch_is_kept_and_the_last(tmp_path):
    """Of equal losses the later; every other file goes once the state is on disk."""
    run = training_state.TrainingRun(tmp_path, {"seed": 1})
    kept = []
    for loss in (3.0, 1.0, 2.0, 1.0, 1.5):
        run.finish_epoch(Saved(), {"val_loss": loss})
        state = json.loads((tmp_path / "state.json").read_text())
        assert {p.name for p in tmp_path.glob("*.keras")} == {state["best"], state["checkpoint"]}
        kept.append((state["best"][6:10], state["checkpoint"][6:10]))
    best, last = zip(*kept, strict=True)
    assert best == ("0001", "0002", "0002", "0004", "0004")
    assert last == ("0001", "0002", "0003", "0004", "0005")
    again = training_state.TrainingRun(tmp_path, {"seed": 1})
    assert [h["val_loss"] for h in again.history] == [3.0, 1.0, 2.0, 1.0, 1.5]
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_checkpoint_that_is_gone_or_damaged_is_named(tmp_path):
    """Which of the files, and what to do: no traceback of Keras."""
    run = training_state.TrainingRun(tmp_path, {"seed": 1})
    assert run.load_checkpoint() is None
    for loss in (1.0, 2.0):
        run.finish_epoch(Saved(), {"val_loss": loss})
    with pytest.raises(NetworkError, match=r"epoch_0002\.keras: state.json names .*train again"):
        run.load_checkpoint()
    (tmp_path / "epoch_0001.keras").unlink()
    with pytest.raises(NetworkError, match=r"epoch_0001\.keras: state.json .* missing or damaged"):
        training_state.TrainingRun(tmp_path, {"seed": 1}).best()


def test_a_missing_sky_is_named(tiny, tmp_path):
    Skies(Run(tiny)).path("train", 1).unlink()
    with pytest.raises(ProductError, match=r"train/sky_0001\.h5: no such file"):
        next(training.train(Run(tiny), tmp_path))


def test_loss_is_in_units_of_the_targets_std():
    loss = training_state.ScaledMSE(0.5)
    assert float(loss(np.zeros((2, 3, 3, 1)), np.ones((2, 3, 3, 1)))) == pytest.approx(4.0)


def test_the_papers_noise_is_one_realisation_per_patch(tiny):
    """Without ``fresh_noise`` a patch carries the same noise in every epoch; with it, another."""
    n = tiny.patch.n_pixels
    blank = training.TrainingPatches(*np.zeros((2, 1, n, n, 2), "f4"))
    phase = Phase(steps=1, batch=2, learning_rate=1.0)
    seen = {}
    for fresh in (True, False):
        changes = {"fresh_noise": fresh, "augment": False}
        config = tiny.model_copy(update={"training": tiny.training.model_copy(update=changes)})
        seen[fresh] = [
            training.EpochBatches(blank, Run(config), phase, epoch, 1)[0][0] for epoch in (0, 1)
        ]
    one, two = seen[False]
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[0], one[1])
    one, two = seen[True]
    assert np.abs(one - two).max() > 0.1
    assert np.abs(one[0] - one[1]).max() > 0.1
    rms = tiny.instrument.noise_rms(tiny.patch)
    mask = Run(tiny).mask
    assert np.std(one[..., mask > 0.99, :]) == pytest.approx(rms, rel=0.05)


def test_training_starts_from_a_network_of_the_same_width(tiny, tmp_path, eager):
    """It does what the initial network does until it is trained."""
    patches = training.load_training_patches(Run(tiny))
    plain = training.new_network(Run(tiny), patches)
    plain.save(tmp_path / "plain.keras")
    start = {"initial": tmp_path / "plain.keras", "seed": 9}
    config = tiny.model_copy(update={"network": tiny.network.model_copy(update=start)})
    started = training.new_network(Run(config), patches)
    maps = np.random.default_rng(1).standard_normal((2, 16, 16, 2)).astype("f4")
    expected = plain.predict(maps, verbose=0)["kappa"]
    np.testing.assert_array_equal(started.predict(maps, verbose=0)["kappa"], expected)
    assert networks.recipe(Run(config)) != networks.recipe(Run(tiny))
    wider = config.model_copy(update={"network": config.network.model_copy(update={"width": 4})})
    with pytest.raises(NetworkError, match="another width"):
        training.new_network(Run(wider), patches)
