import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import healpy
import numpy as np
import pytest

from cobaya_cnnlens import products
from cobaya_cnnlens.errors import CNNLensError, ConfigError, ProductError
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.observation import observe_sky, sky_noise
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.simulate import patches, shards
from cobaya_cnnlens.simulate.instrument import convolve_beam
from cobaya_cnnlens.simulate.skies import scale_alm
from cobaya_cnnlens.theory.camb import Spectra


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
    with products.open_product(path, Skies.kind) as shard:
        return [shard.array(name) for name in shards.FIELDS]


def sibling(config, tmp_path, name):
    """The same configuration with products of its own, apart from CAMB's spectra, which it shares.

    Skies are bitwise functions of the spectra's product; CAMB itself does not promise its last bit.
    """
    other = config.model_copy(update={"products": tmp_path / name})
    Run(config).spectra()
    shutil.copytree(config.sky_directory / "spectra", other.sky_directory / "spectra")
    return other


def assert_identical(path, other):
    for name, a, b in zip(shards.FIELDS, content(path), content(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"{path.name}: {name}")
    assert hash(path.read_bytes()) == hash(other.read_bytes()), path.name


def test_shards_do_not_depend_on_workers_or_order(tiny, tmp_path):
    one = Skies(Run(tiny), 1).measure("train", [0, 1, 2])
    other = sibling(tiny, tmp_path, "other")
    two = Skies(Run(other), 2).measure("train", [2])
    two += Skies(Run(other), 2).measure("train", [1, 0])
    assert [p.name for p in one] == [p.name for p in sorted(two)]
    for a, b in zip(one, sorted(two), strict=True):
        assert_identical(a, b)


def test_a_killed_simulation_resumes_with_identical_shards(tiny, tmp_path):
    """kill −9 while skies are being made, then run again."""
    reference = sibling(tiny, tmp_path, "reference")
    Skies(Run(reference)).measure("train")
    config_file = tmp_path / "config.yaml"
    config_file.write_text(tiny.model_dump_json())
    command = [sys.executable, "-m", "cobaya_cnnlens", "skies", str(config_file), "--set", "train"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = Skies(Run(tiny)).path("train", 0).parent
    deadline = time.time() + 120
    while not Skies(Run(tiny)).path("train", 1).exists():
        assert process.poll() is None, "finished before it could be killed"
        assert time.time() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = sorted(folder.glob("sky_*.h5"))
    assert 2 <= len(finished) < 6
    times = {p: p.stat().st_mtime_ns for p in finished}
    Skies(Run(tiny)).measure("train")
    for i in range(6):
        assert_identical(Skies(Run(tiny)).path("train", i), Skies(Run(reference)).path("train", i))
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())  # nothing was made twice


def test_without_a_potential_nothing_is_lensed(tiny):
    """The lensed Q and U are the unlensed, each with its sign, κ is zero, and E is as it was."""
    pointing = shards.pointing_of(tiny.patch, tiny.centres.nside, tiny.centres.poles)
    sky = shards.draw_sky(made_up_spectra(600), 600, 5, "test", 0)
    smooth = replace(sky, philm=np.zeros_like(sky.philm))
    fields = shards.sample_patches(smooth, tiny.sky, tiny.patch, pointing)
    for lensed, plain in (("lensed_q", "q"), ("lensed_u", "u")):
        scale = fields[plain].std()
        np.testing.assert_allclose(fields[lensed], fields[plain], atol=1e-4 * scale)
    assert not fields["kappa"].any()
    assert fields["e"].std() == pytest.approx(np.hypot(fields["q"].std(), fields["u"].std()), 0.3)


def test_fields_and_their_statistics(tiny):
    (path,) = Skies(Run(tiny)).measure("train", [0])
    fields = dict(zip(shards.FIELDS, content(path), strict=True))
    assert all(f.shape == (4, 36, 36) and f.dtype == np.float32 for f in fields.values())
    spectra = Run(tiny).spectra()
    l = np.arange(501)
    expected = np.sqrt(((2 * l + 1) * spectra.ee[:501]).sum() / (4 * np.pi))
    assert fields["e"].std() == pytest.approx(expected, rel=0.15)
    # Lensing moves Q by a part of itself.
    moved = np.std(fields["lensed_q"] - fields["q"]) / np.std(fields["q"])
    assert 0.01 < moved < 0.5


def made_up_spectra(lmax):
    """Every spectrum another power law, so that none passes for another."""
    l = np.maximum(np.arange(lmax + 1.0), 2.0)
    return Spectra(**{name: l ** -(1.0 + k) for k, name in enumerate(Spectra.__annotations__)})


def test_a_sky_has_the_power_of_unlensed_e_and_of_the_potential():
    """Mode by mode: |a_lm|² over C_l averages to one at every scale, and E and φ share nothing."""
    spectra = made_up_spectra(400)
    sky = shards.draw_sky(spectra, 300, 5, "test", 2)
    for alm, cl in ((sky.elm, spectra.ee), (sky.philm, spectra.pp)):
        power = healpy.alm2cl(alm)[2:] / cl[2:301]
        modes = 2 * np.arange(2, 301) + 1.0
        for part in (slice(0, 100), slice(100, 200), slice(200, None)):
            mean = np.average(power[part], weights=modes[part])
            assert mean == pytest.approx(1.0, abs=5 * np.sqrt(2 / modes[part].sum()))
    cross = healpy.alm2cl(sky.elm, sky.philm)[2:] / np.sqrt(spectra.ee * spectra.pp)[2:301]
    assert abs(np.average(cross, weights=modes)) < 5 / np.sqrt(modes.sum())


def test_phases_depend_on_seed_set_and_index_alone():
    """Not on the spectra: the same modes scale with their square root."""
    spectra = made_up_spectra(300)
    louder = replace(spectra, ee=4.0 * spectra.ee)
    sky = shards.draw_sky(spectra, 200, 5, "test", 2)
    np.testing.assert_allclose(shards.draw_sky(louder, 200, 5, "test", 2).elm, 2.0 * sky.elm)
    for other in ((6, "test", 2), (5, "train", 2), (5, "test", 3)):
        drawn = shards.draw_sky(spectra, 200, *other)
        assert np.abs(np.vdot(drawn.elm, sky.elm)) < 0.2 * np.vdot(sky.elm, sky.elm).real


def test_every_sky_is_drawn_from_its_own_cosmology_and_phases(tiny, monkeypatch):
    """A survey's has its own omch2; of the settings that its recipe names."""
    drawn = []

    def draw(spectra, lmax, *key):
        drawn.append((spectra, lmax, *key))
        return shards.HarmonicSky(np.zeros(1), np.zeros(1), lmax)

    monkeypatch.setattr(Run, "spectra", lambda run, cosmology: cosmology.omch2)
    monkeypatch.setattr(shards, "draw_sky", draw)
    monkeypatch.setattr(shards, "sample_patches", lambda *_: dict.fromkeys(shards.FIELDS, 1.0))
    Skies(Run(tiny)).measure("train", [0, 1, 2])
    Skies(Run(tiny)).measure("survey-high")
    Skies(Run(tiny)).measure("test")
    expected = [(0.1185, "train", index) for index in range(3)]
    expected += [(0.1285, "survey-high", 0), (0.1185, "test", 0)]
    seed = tiny.seed
    assert drawn == [(omch2, 600, seed, name, index) for omch2, name, index in expected]
    for _, name, index in expected:
        assert len(Skies(Run(tiny)).read(name, index, ("q",))) == 1


def test_a_set_has_no_more_skies_than_it_says(tiny):
    with pytest.raises(ConfigError, match="set 'train' has skies 0 to 5, not 6"):
        Skies(Run(tiny)).measure("train", [0, 6])
    assert not Skies(Run(tiny)).path("train", 0).exists()


def test_spectra_that_end_below_the_skys(tiny):
    with pytest.raises(CNNLensError, match="spectra end at l = 250, the sky needs lmax = 300"):
        shards.draw_sky(made_up_spectra(250), 300, 5, "test", 2)


def test_fields_are_what_they_are_called(tiny):
    """Each from its own synthesis of the sky's a_lm: Q̃ and Ũ lensed, Q and U not, E and κ."""
    (path,) = Skies(Run(tiny)).measure("train", [0])
    found = dict(zip(shards.FIELDS, content(path), strict=True))
    theory = Run(tiny).spectra()
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
    (path,) = Skies(Run(tiny)).measure("train", [0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProductError, match=r"sky_0000\.h5.*cut off.*delete it"):
        Skies(Run(tiny)).measure("train", [0])
    path.unlink()
    Skies(Run(tiny)).measure("train", [0])
    assert hash(path.read_bytes()) == hash(whole)


def test_a_sky_that_is_not_finite_is_not_written(tiny, monkeypatch):
    """Nor does it stop short of naming the file and the field."""
    plain = shards.sample_patches

    def broken(*arguments):
        fields = plain(*arguments)
        fields["u"][2, 3, 4] = np.nan
        return fields

    monkeypatch.setattr(shards, "sample_patches", broken)
    with pytest.raises(ProductError, match=r"sky_0000\.h5: field 'u': 1 of 5184 values are"):
        Skies(Run(tiny)).measure("train", [0])
    assert not Skies(Run(tiny)).path("train", 0).exists()


def test_sets_have_their_own_phases_and_surveys_their_cosmology(tiny):
    train = content(Skies(Run(tiny)).measure("train", [0])[0])
    validation = content(Skies(Run(tiny)).measure("validation", [0])[0])
    assert np.abs(train[4] - validation[4]).max() > 1
    assert tiny.set_cosmology("survey-high").omch2 == 0.1285
    assert tiny.set_cosmology("train").omch2 == 0.1185


def test_noise_is_its_own_in_every_set_sky_and_map(tiny):
    """White, of the instrument's rms, without correlation between any two; the same again."""
    skies = [("test", 0), ("validation", 0), ("train", 0), ("train", 1)]
    maps = [sky_noise(Run(tiny), *sky, 4) for sky in skies]
    maps.append(sky_noise(Run(tiny.model_copy(update={"seed": tiny.seed + 1})), "test", 0, 4))
    flat = np.array([m for noise in maps for m in noise]).reshape(2 * len(maps), -1)
    rms = tiny.instrument.noise_rms(tiny.patch)
    np.testing.assert_allclose(flat.std(1), rms, rtol=5 / np.sqrt(2 * flat.shape[1]))
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 5 / np.sqrt(flat.shape[1])
    np.testing.assert_array_equal(sky_noise(Run(tiny), "train", 1, 4), maps[3])


def test_observation_is_masked_noisy_and_repeatable(tiny):
    Skies(Run(tiny)).measure("test", [0])
    one, two = observe_sky(Run(tiny), "test", 0), observe_sky(Run(tiny), "test", 0)
    np.testing.assert_array_equal(one.q, two.q)
    unlensed = observe_sky(Run(tiny), "test", 0, lensed=False)
    assert np.abs(unlensed.q - one.q).max() > 0
    np.testing.assert_array_equal(unlensed.kappa, one.kappa)
    # The noise is the same in both, so it cancels; what is left is beamed and masked.
    lensed, plain = Skies(Run(tiny)).read("test", 0, ("lensed_q", "q"))
    mask = Run(tiny).mask
    expected = convolve_beam(lensed - plain, tiny.instrument, tiny.patch) * mask
    np.testing.assert_allclose(one.q - unlensed.q, expected, atol=1e-5)
