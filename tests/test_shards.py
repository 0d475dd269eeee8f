import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cobaya_cnnlens.config import Config
from cobaya_cnnlens.errors import ProductError
from cobaya_cnnlens.simulate import patches, shards, stage
from cobaya_cnnlens.simulate.instrument import convolve_beam, cosine_mask
from cobaya_cnnlens.simulate.observation import observe_sky
from cobaya_cnnlens.simulate.skies import scale_alm


@pytest.fixture
def tiny(small_config) -> Config:
    """Skies of a second: l ≤ 600, four patches of 32² coarse pixels."""
    config = small_config.model_dump(mode="json")
    config["camb"]["lmax"] = config["sky"]["lmax"] = 600
    config["sky"]["band_limit"] = 500
    config["patch"] = {"size_deg": 10.0, "n_pixels": 32, "pad": 2}
    config["centres"] = {"nside": 1, "poles": 4}
    config["skies"]["train"] = 6
    config["bandpowers"] = {"lmin": 36, "width": 120, "n_bins": 4}
    config["derivatives"] = {"kk_edges": [2, 300, 501], "ee_edges": [2, 300, 601]}
    return Config.model_validate(config)


def content(path):
    return shards.read_fields(path, shards.FIELDS)


def sibling(config, tmp_path, name):
    """The same configuration with products of its own, apart from CAMB's spectra, which it shares.

    Skies are bitwise functions of the spectra's product; CAMB itself does not promise its last bit.
    """
    other = config.model_copy(update={"products": tmp_path / name})
    stage.spectra_for(config, config.cosmology)
    shutil.copytree(config.sky_directory / "spectra", other.sky_directory / "spectra")
    return other


def assert_identical(path, other):
    for name, a, b in zip(shards.FIELDS, content(path), content(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"{path.name}: {name}")
    assert hash(path.read_bytes()) == hash(other.read_bytes()), path.name


def test_shards_do_not_depend_on_workers_or_order(tiny, tmp_path):
    one = stage.make_skies(tiny, "train", [0, 1, 2], nthreads=1)
    other = sibling(tiny, tmp_path, "other")
    two = stage.make_skies(other, "train", [2], nthreads=2)
    two += stage.make_skies(other, "train", [1, 0], nthreads=2)
    assert [p.name for p in one] == [p.name for p in sorted(two)]
    for a, b in zip(one, sorted(two), strict=True):
        assert_identical(a, b)


def test_a_killed_simulation_resumes_with_identical_shards(tiny, tmp_path):
    """kill −9 while skies are being made, then run again."""
    reference = sibling(tiny, tmp_path, "reference")
    stage.make_skies(reference, "train")
    config_file = tmp_path / "config.yaml"
    config_file.write_text(tiny.model_dump_json())
    command = [sys.executable, "-m", "cobaya_cnnlens", "skies", str(config_file), "--set", "train"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tiny.sky_path("train", 0).parent
    deadline = time.time() + 120
    while not tiny.sky_path("train", 1).exists():
        assert process.poll() is None, "finished before it could be killed"
        assert time.time() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = sorted(folder.glob("sky_*.h5"))
    assert 2 <= len(finished) < 6
    times = {p: p.stat().st_mtime_ns for p in finished}
    stage.make_skies(tiny, "train")
    for i in range(6):
        assert_identical(tiny.sky_path("train", i), reference.sky_path("train", i))
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())  # nothing was made twice


def test_fields_and_their_statistics(tiny):
    (path,) = stage.make_skies(tiny, "train", [0])
    fields = dict(zip(shards.FIELDS, content(path), strict=True))
    assert all(f.shape == (4, 36, 36) and f.dtype == np.float32 for f in fields.values())
    spectra = stage.spectra_for(tiny, tiny.cosmology)
    l = np.arange(501)
    expected = np.sqrt(((2 * l + 1) * spectra.ee[:501]).sum() / (4 * np.pi))
    assert fields["e"].std() == pytest.approx(expected, rel=0.15)
    # Lensing moves Q by a part of itself.
    moved = np.std(fields["lensed_q"] - fields["q"]) / np.std(fields["q"])
    assert 0.01 < moved < 0.5


def test_fields_are_what_they_are_called(tiny):
    """Each from its own synthesis of the sky's a_lm: Q̃ and Ũ lensed, Q and U not, E and κ."""
    (path,) = stage.make_skies(tiny, "train", [0])
    found = dict(zip(shards.FIELDS, content(path), strict=True))
    theory = stage.spectra_for(tiny, tiny.cosmology)
    sky = shards.draw_sky(theory, 600, tiny.seed, "train", 0)
    pointing = shards.pointing_of(tiny.patch, tiny.centres.nside, tiny.centres.poles)
    gradient = patches.gradient_at(sky.philm, 600, pointing)
    deflection = patches.deflect_by(gradient, pointing)
    lensed = patches.lensed_polarisation_at(sky.elm, 600, pointing, deflection)
    unlensed = patches.polarisation_at(sky.elm, 600, pointing)
    l = np.arange(601)
    kappa = scale_alm(sky.philm, 0.5 * l * (l + 1.0))
    expected = {
        "lensed_q": lensed.real,
        "lensed_u": lensed.imag,
        "q": unlensed.real,
        "u": unlensed.imag,
        "e": patches.scalar_at(scale_alm(sky.elm, l <= 500.0), 600, pointing),
        "kappa": patches.scalar_at(scale_alm(kappa, l <= 500.0), 600, pointing),
    }
    assert list(expected) == list(shards.FIELDS)
    for name, values in expected.items():
        scale = values.std()
        off = found[name] - values.reshape(found[name].shape)
        assert np.abs(off).max() < 1e-3 * scale, name


def test_a_shard_cut_off_is_named_and_remade_after_deletion(tiny):
    (path,) = stage.make_skies(tiny, "train", [0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProductError, match=r"sky_0000\.h5.*cut off or damaged.*delete it"):
        stage.make_skies(tiny, "train", [0])
    path.unlink()
    stage.make_skies(tiny, "train", [0])
    assert hash(path.read_bytes()) == hash(whole)


def test_sets_have_their_own_phases_and_surveys_their_cosmology(tiny):
    train = content(stage.make_skies(tiny, "train", [0])[0])
    validation = content(stage.make_skies(tiny, "validation", [0])[0])
    assert np.abs(train[4] - validation[4]).max() > 1
    assert tiny.set_cosmology("survey-high").omch2 == 0.1285
    assert tiny.set_cosmology("train").omch2 == 0.1185


def test_observation_is_masked_noisy_and_repeatable(tiny):
    stage.make_skies(tiny, "test", [0])
    one, two = observe_sky(tiny, "test", 0), observe_sky(tiny, "test", 0)
    np.testing.assert_array_equal(one.q, two.q)
    unlensed = observe_sky(tiny, "test", 0, lensed=False)
    assert np.abs(unlensed.q - one.q).max() > 0
    np.testing.assert_array_equal(unlensed.kappa, one.kappa)
    # The noise is the same in both, so it cancels; what is left is beamed and masked.
    lensed, plain = shards.read_fields(tiny.sky_path("test", 0), ("lensed_q", "q"))
    mask = cosine_mask(tiny.patch, tiny.instrument.taper_deg)
    expected = convolve_beam(lensed - plain, tiny.instrument, tiny.patch) * mask
    np.testing.assert_allclose(one.q - unlensed.q, expected, atol=1e-5)
