"""Releases of own maps that are blinded when they are made."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError, ReleaseError
from cobaya_cnnlens.likelihood.blinding import Offset, unblind
from cobaya_cnnlens.likelihood.encryption import BlindingKey
from cobaya_cnnlens.likelihood.release import read_release, write_release
from cobaya_cnnlens.maps.bandpower_file import MapBandpowers
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.release_estimator import blinded
from cobaya_cnnlens.theory.emulator_files import read_emulator

from ..conftest import synthetic_release

TEXT = "key 0 of these tests"
KEY = BlindingKey.of(TEXT)


@pytest.fixture(scope="module")
def hidden():
    """A shipped release, blinded with CAMB."""
    return blinded(read_release("refined_fiducial"), KEY)


def test_the_shift_is_that_of_camb(hidden):
    """κ̂'s own power at high signal-to-noise moves as the emulated C_L^κκ does."""
    release = read_release("refined_fiducial")
    offset, emulator = Offset.drawn(KEY), read_emulator("lcdm")
    cosmology = release.theory["cosmology"]
    point = {name: cosmology[name] for name in ("ombh2", "omch2", "ns", "H0")}
    point["logA"] = np.log(1e10 * cosmology["As"])
    moved = point | {
        "omch2": point["omch2"] + offset.omch2,
        "logA": point["logA"] + offset.logA,
    }
    change = emulator(moved)[0][100] / emulator(point)[0][100] - 1
    ours = (hidden.bandpowers - release.bandpowers) / (release.bandpowers - release.correction)
    assert ours[0] == pytest.approx(change, rel=0.1)
    assert abs(change) > 0.02


def test_a_release_that_does_not_tell_its_theory_is_not_blinded():
    with pytest.raises(ReleaseError, match=r"field 'theory\.code' is 'made up'.*or blinding"):
        blinded(synthetic_release(), KEY)


def test_the_command(tmp_path, hidden):
    """Own maps are blinded as they are made; an open release does not take the place of that by
    mistake; and the calibration of a blinded release makes open ones."""
    calibration = read_release("refined_fiducial")
    write_release(hidden, tmp_path / "calibration.json")
    generator = np.random.default_rng(3)
    n = 6
    auto = calibration.response**2 * (calibration.bandpowers + calibration.noise)
    MapBandpowers(
        auto * (1 + 0.02 * generator.standard_normal((n, 1))),
        np.tile(calibration.power, (n, 1)),
        np.array([0.002, 1.0]) + 0.001 * generator.standard_normal((n, 2)),
        np.stack([np.full(n, 1.5), np.linspace(0.5, 3.0, n)], axis=1),
        "C",
        "maps.fits",
        (),
    ).write(tmp_path / "b.h5", MapSetup.of_release(calibration).recipe)
    (tmp_path / "key.txt").write_text(TEXT)

    def make(folder, *words, calibration="refined_fiducial"):
        out = tmp_path / folder / "mine.json"
        given = ["--data", tmp_path / "b.h5", "--calibration", calibration, "--out", out, *words]
        done = CliRunner().invoke(app, ["release", "make", *map(str, given)])
        return out, done

    opened, done = make("open")
    assert done.exception is None, done.exception
    path, done = make("blinded", "--blind", tmp_path / "key.txt")
    assert done.exception is None, done.exception
    made = read_release(path)
    assert made.blinding.key == KEY.name
    write_release(unblind(made, KEY)[0], tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == opened.read_text()
    for words, said in (
        ((), "holds a blinded release, which an open one would give away"),
        (("--blind", tmp_path / "none.txt"), "none.txt: cannot be read as a key"),
    ):
        _, done = make("blinded", *words)
        assert said in str(done.exception)
    assert isinstance(make("blinded")[1].exception, ConfigError)
    assert read_release(path).blinding == made.blinding
    other, done = make("other", calibration=tmp_path / "calibration.json")
    assert done.exception is None, done.exception
    # But for the digest of the calibration it is the same.
    record = read_release(opened).provenance["calibration"]
    theirs = read_release(other)
    assert theirs.blinding is None
    provenance = theirs.provenance | {"calibration": record}
    write_release(replace(theirs, provenance=provenance), tmp_path / "same.json")
    assert (tmp_path / "same.json").read_text() == opened.read_text()
