"""Beams, transfer functions and depths from files, and an instrument that has them."""

from dataclasses import replace

import numpy as np
import pytest

import yaml
from cobaya_cnnlens.errors import ConfigError, InstrumentError
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.features import PASSES, features_of
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import (
    Instrument,
    Systematics,
    convolve_beam,
    cosine_mask,
    draw_noise,
    level_of,
)
from cobaya_cnnlens.simulate.instrument_files import read_beam, read_transfer
from cobaya_cnnlens.simulate.one_over_f import OneOverF
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import Box, PeriodicSkies
from cobaya_cnnlens.simulate.shards import FIELDS

from ..conftest import REPOSITORY

GEOMETRY = PatchGeometry(n_pixels=64, size_deg=2.5, pad=4)
ELL = np.arange(5001)
GAUSSIAN = Instrument(1.0, 1.7, taper_deg=0.3)


def table(path, *columns, head="l, B_l"):
    np.savetxt(path, np.stack(columns, axis=1), fmt="%.17g", header=head)
    return path


@pytest.fixture
def measured(tmp_path):
    """The Gaussian beam from a file, with an error mode."""
    mode = 0.01 * (ELL / 3000.0) ** 2
    path = table(tmp_path / "beam.txt", ELL, GAUSSIAN.beam(ELL), mode, head="l B_l e_1")
    return Instrument(1.0, taper_deg=0.3, beam_file=path).measured(GEOMETRY)


def test_a_gaussian_from_a_file_is_the_gaussian(measured):
    """Between its multipoles, beyond its end, and in its width; in maps and in filters."""
    assert measured.beam_fwhm_arcmin == pytest.approx(1.7, rel=1e-12)
    ell = np.linspace(0, 6500, 999)
    np.testing.assert_allclose(measured.beam(ell), GAUSSIAN.beam(ell), rtol=1e-12)
    sky = np.random.default_rng(1).standard_normal((3, 72, 72))
    both = [convolve_beam(sky, i, GEOMETRY) for i in (measured, GAUSSIAN)]
    np.testing.assert_allclose(*both, atol=1e-12)
    bins = FlatSpectra(GEOMETRY, Bins(100, 200, 20), np.ones((64, 64)))
    np.testing.assert_allclose(*(bins.auto(maps) for maps in both), rtol=1e-12)
    boxes = [Box(GEOMETRY, i, 4000) for i in (measured, GAUSSIAN)]
    np.testing.assert_allclose(boxes[0].beam, boxes[1].beam, rtol=1e-12)


def test_features_of_a_beam_from_a_file(measured, fiducial):
    """Those of the Gaussian: the same filter, in single precision throughout."""
    patch = PatchGeometry(n_pixels=64, size_deg=2.5, pad=0)
    skies = PeriodicSkies(patch, GAUSSIAN, fiducial)
    generator = np.random.default_rng(3)
    seen = skies.lensed(skies.draw("e", generator), skies.draw("phi", generator))
    mask = cosine_mask(patch, 0.3)
    seen = mask * (seen + skies.noise(generator))
    found = []
    for instrument in (measured, GAUSSIAN):
        estimator = MAPLensing(patch, instrument, mask, fiducial, PASSES, threads=1)
        found += features_of(estimator, seen.real[None], seen.imag[None], threads=1)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)


def test_a_beam_that_is_off(measured):
    """In width as a Gaussian of another FWHM; by its error mode 1 + a e(l)."""
    wide = Systematics(beam=0.05).of(measured)
    other = Systematics(beam=0.05).of(GAUSSIAN)
    np.testing.assert_allclose(wide.beam(ELL), other.beam(ELL), rtol=1e-11)
    off = replace(measured, beam_modes=(-2.0,))
    change = off.beam(np.array([0, 1500, 3000])) / measured.beam(np.array([0, 1500, 3000]))
    np.testing.assert_allclose(change, [1.0, 1 - 0.005, 1 - 0.02], rtol=1e-12)
    with pytest.raises(InstrumentError, match="has 1 error modes, not 2"):
        replace(measured, beam_modes=(1.0, 1.0)).beam(ELL)


def test_a_normalisation_is_asked_for(tmp_path):
    path = table(tmp_path / "b.txt", ELL[1:], 0.5 * GAUSSIAN.beam(ELL[1:]))
    with pytest.raises(InstrumentError, match=r"B_l begins with 0\.5.*normalise_beam: true"):
        read_beam(path)
    beam = read_beam(path, normalise=True)
    np.testing.assert_allclose(beam(ELL[1:]), GAUSSIAN.beam(ELL[1:]) / GAUSSIAN.beam(1), rtol=1e-12)
    assert beam(0.0) == 1.0


@pytest.mark.parametrize("factor", [3e-7, 4.2e7, 1e-9, 0.5])
def test_the_mend_of_a_normalisation_works(tmp_path, factor):
    """By the solid angle, its inverse, or any number: the refusal's own mend gives the beam."""
    path = table(tmp_path / "b.txt", ELL, factor * GAUSSIAN.beam(ELL))
    with pytest.raises(InstrumentError, match=r"set 'instrument\.normalise_beam: true'"):
        read_beam(path)
    np.testing.assert_allclose(read_beam(path, normalise=True)(ELL), GAUSSIAN.beam(ELL), rtol=1e-12)
    errors = factor * 0.01 * GAUSSIAN.beam(ELL) * ELL / 5000
    path = table(tmp_path / "b.txt", ELL, factor * GAUSSIAN.beam(ELL), errors, head="l B_l dB_1")
    np.testing.assert_allclose(
        read_beam(path, normalise=True).errors[0], 0.01 * ELL / 5000, rtol=1e-9, atol=1e-15
    )


RELATIVE = (
    *("l B_l e_1 e_2", "ell, B, e1, e2", "l  B_T  e_1(l) e_2(l)"),
    *("l B_l dB_1/B dB_2/B", "l B_l deltaB/B_l dlnB_l", "l B dlnB_1 dlnB_2"),
)
ABSOLUTE = ("note\nl B_l dB_1 dB_2", "ell B dB1 dB2", "l, B_l, deltaB_1, δB_2")


@pytest.mark.parametrize("head", RELATIVE + ABSOLUTE)
def test_error_modes_by_name(tmp_path, head):
    """δB is divided by B_l, whatever its shape."""
    beam, modes = GAUSSIAN.beam(ELL), np.stack([0.02 * ELL / 5000, 0.01 * np.cos(ELL / 900)])
    columns = modes * beam if head in ABSOLUTE else modes
    read = read_beam(table(tmp_path / "b.txt", ELL, beam, *columns, head=head))
    np.testing.assert_allclose(read.errors, modes, rtol=1e-9)


@pytest.mark.parametrize(
    ("head", "columns", "message"),
    [
        ("l, B_T, B_E, B_B", (1.0, 1.0), "nothing says that column B_E is an error mode"),
        ("l B_l", (1.0, 1.0), "nothing says that columns beyond the second are an error mode"),
        ("l B_l", (0.01,), "name error modes in a comment line"),
        ("of 2024", (0.01,), "name error modes in a comment line"),
        ("l B_l sigma", (0.01,), "nothing says that column sigma is an error mode"),
        ("l B_l dB_rms/B^2", (0.01,), "nothing says that column dB_rms/B"),
        ("l B_l dBl_percent", (0.01,), "nothing says that column dBl_percent"),
        ("l W_l", (), "column W_l is a window, the square of a beam; give its root, B_l"),
        ("ell, B_l^2", (), r"column B_l\^2 is a window"),
        ("l Bl**2 dB_1", (0.01,), r"column Bl\*\*2 is a window"),
        ("l B_l e_1", (1.0,), "column e_1 reaches 1 of B_l; an error mode is one standard dev"),
        ("l B_l e_1 e_2", (0.01, 0.6), r"column e_2 reaches 0\.6 of B_l"),
        ("l B_l dB_1", (0.7,), r"column dB_1 reaches .* of B_l"),
    ],
)
def test_columns_that_are_no_error_modes_are_refused(tmp_path, head, columns, message):
    """Beams of T, E and B are no beam with two errors; the unit of an error is not guessed."""
    beam = GAUSSIAN.beam(ELL)
    further = [np.full(len(ELL), value) for value in columns]
    path = table(tmp_path / "b.txt", ELL, beam, *further, head=head)
    with pytest.raises(InstrumentError, match=message):
        read_beam(path)


def _spoilt(ell=ELL, values=None, at=None, value=0.0):
    values = GAUSSIAN.beam(ell) if values is None else values
    if at is not None:
        values = values.copy()
        values[at] = value
    return ell, values


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (_spoilt(ELL[:3001]), "beam file too short: B_l ends at l = 3000, .* hold l = 4608"),
        (_spoilt(ELL[3:]), "column l begins at 3"),
        (_spoilt(at=400, value=np.nan), "row 401 of columns l, B_l is not finite"),
        (_spoilt(at=400, value=-0.1), "'B_l' holds -0.1; it must lie between"),
        (_spoilt(ELL[::-1]), "column l does not ascend at row 2"),
        (_spoilt(values=GAUSSIAN.beam(ELL) ** -1.0), "give the beam, not its inverse"),
        ((ELL,), "no rows of columns l, B_l"),
    ],
)
def test_beams_that_are_refused(tmp_path, columns, message):
    path = table(tmp_path / "beam.txt", *columns)
    with pytest.raises(InstrumentError, match=rf"beam\.txt: .*{message}"):
        Instrument(beam_file=path).measured(GEOMETRY)


def test_an_isotropic_transfer_function(tmp_path):
    """A wave comes out times B F; the analytic noise is divided by both."""
    transfer = 1.0 - 0.9 * np.exp(-ELL / 200.0)
    path = table(tmp_path / "f.txt", ELL, transfer, head="l, F_l")
    instrument = Instrument(1.0, 1.7, transfer_file=path).measured(GEOMETRY)
    n = GEOMETRY.n_padded
    l = 2 * np.pi * 3 / (n * GEOMETRY.pixel)
    wave = np.broadcast_to(np.cos(l * np.arange(n) * GEOMETRY.pixel), (n, n))
    expected = GEOMETRY.crop(wave) * GAUSSIAN.beam(l) * np.interp(l, ELL, transfer)
    np.testing.assert_allclose(convolve_beam(wave, instrument, GEOMETRY), expected, atol=1e-12)
    np.testing.assert_allclose(instrument.beam(ELL), GAUSSIAN.beam(ELL) * transfer, rtol=1e-12)


def test_the_filter_lenses_all_that_a_transfer_function_mixes(tmp_path):
    """Displaced by nothing, what a patch sees is what it sees without lensing."""
    path = table(tmp_path / "f.txt", ELL, 1.0 - 0.9 * np.exp(-((ELL / 250.0) ** 2)))
    box = Box(GEOMETRY, Instrument(1.0, 1.7, transfer_file=path), 4000, border=60)
    modes = np.random.default_rng(4).standard_normal((2, box.n, box.n)) / np.maximum(box.ell, 72.0)
    modes = np.where(box.band, modes[0] + 1j * modes[1], 0.0)
    seen = [
        box.crop(box.blur(box.at(modes, positions)))
        for positions in (None, box.positions(np.zeros((box.n, box.n))))
    ]
    np.testing.assert_allclose(*seen, atol=1e-4 * np.std(seen[0]))


def plane(lmax=5000.0, step=100.0):
    ly, lx = np.arange(-lmax, lmax + 1, step), np.arange(0, lmax + 1, step)
    return ly, lx


def test_a_transfer_function_that_knows_directions(tmp_path):
    """Linear in lx and ly, even in l; its mean over directions by quadrature."""
    ly, lx = plane()
    values = 0.2 + 1e-5 * (np.abs(ly)[:, None] + 2.0 * lx)
    np.savez(tmp_path / "f.npz", ly=ly, lx=lx, transfer=values)
    transfer = read_transfer(tmp_path / "f.npz")
    at = np.array([[130.0, 260.0], [-130.0, 260.0], [130.0, -260.0], [-130.0, -260.0]]).T
    np.testing.assert_allclose(transfer(*at), 0.2 + 1e-5 * (130 + 520), rtol=1e-12)
    skew = values + 1e-5 * np.sign(ly)[:, None] * np.minimum(lx, 1000.0)
    np.savez(tmp_path / "f.npz", ly=ly, lx=lx, transfer=skew)
    transfer = read_transfer(tmp_path / "f.npz")
    here, there = np.array([130.0, -130.0]), np.array([260.0, -260.0])
    assert len(set(transfer(here, there))) == 1
    assert (transfer(here, -there) < transfer(here, there)).all()
    angle = np.linspace(0, np.pi, 20001)
    squares = transfer(900 * np.cos(angle), 900 * np.sin(angle)) ** 2
    assert transfer.mean(900.0) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-4)
    instrument = Instrument(transfer_file=tmp_path / "f.npz").measured(GEOMETRY)
    box = Box(GEOMETRY, instrument, 4000)
    blurred = box.blur(np.random.default_rng(3).standard_normal((box.n, box.n)))
    assert np.abs(blurred.imag).max() < 1e-12 * np.abs(blurred.real).max()
    assert instrument.symmetry is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer": None}, "has no array 'transfer'"),
        ({"lx": plane()[1][1:]}, "has shape"),
        ({"ly": plane()[0] + 7.0}, "must be a half plane"),
        ({"transfer": np.zeros((101, 51))}, "filters divide by it"),
        ({"transfer": 1.0 + 1e-5 * plane()[0][:, None] * np.ones(51)}, "even in l"),
        ({"ly": plane(4000)[0], "lx": plane(4000)[1], "transfer": np.ones((81, 41))}, "too short"),
    ],
)
def test_transfer_functions_that_are_refused(tmp_path, change, message):
    ly, lx = plane()
    arrays = {"ly": ly, "lx": lx, "transfer": np.ones((len(ly), len(lx)))} | change
    path = tmp_path / "f.npz"
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    with pytest.raises(InstrumentError, match=rf"f\.npz: .*{message}"):
        Instrument(transfer_file=path).measured(GEOMETRY)


@pytest.fixture
def ivar():
    """Two depths and a hole."""
    ivar = np.full((64, 64), 4.0)
    ivar[:, 32:] = 16.0
    ivar[10:14, 20:24] = 0.0
    return ivar


def test_a_depth_from_a_file(tmp_path, ivar):
    """What is drawn has rms 1/√ivar pixel by pixel, nothing in the hole; the level is that of the
    mean inverse variance of what was seen."""
    np.savez(tmp_path / "depth.npz", ivar=ivar)
    instrument = Instrument(9.0, ivar_file=tmp_path / "depth.npz").measured(GEOMETRY)
    seen = ivar > 0
    expected = np.degrees(GEOMETRY.pixel) * 60 / np.sqrt(ivar[seen].mean())
    assert instrument.noise_uk_arcmin == pytest.approx(expected, rel=1e-12)
    noise = draw_noise((4000, 64, 64), instrument, GEOMETRY, np.random.default_rng(1))
    assert (noise[:, ~seen] == 0).all()
    np.testing.assert_allclose(noise.std(0)[seen] * np.sqrt(ivar[seen]), 1.0, atol=5.5 / 89)
    assert noise[:, seen & (ivar == 4)].std() == pytest.approx(0.5, rel=2e-3)
    louder = Systematics(noise=0.1).of(instrument)
    np.testing.assert_allclose(
        louder.noise_rms(GEOMETRY)[seen], 1.1 / np.sqrt(ivar[seen]), rtol=1e-12
    )
    assert level_of(louder.noise_rms(GEOMETRY), GEOMETRY) == pytest.approx(1.1 * expected)
    assert instrument.at_level(2.0).noise_rms(GEOMETRY) == Instrument(2.0).noise_rms(GEOMETRY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :60], r"has shape \(64, 60\), the patch 64 × 64"),
        (lambda a: np.where(a == 16, -1.0, a), "'ivar' is negative in 2048 of 4096"),
        (lambda a: np.where(a == 16, np.nan, a), "'ivar' is not finite"),
        (lambda a: 0 * a, "zero throughout"),
    ],
)
def test_depths_that_are_refused(tmp_path, ivar, change, message):
    np.savez(tmp_path / "depth.npz", ivar=change(ivar))
    with pytest.raises(InstrumentError, match=rf"depth\.npz: .*{message}"):
        Instrument(ivar_file=tmp_path / "depth.npz").measured(GEOMETRY)


def test_files_stand_in_recipes_by_their_content(tmp_path, ivar):
    """Another name is the same instrument, another beam is not; what is not set is not there."""
    paths = [
        table(tmp_path / f"{name}.txt", ELL, GAUSSIAN.beam(width * ELL))
        for name, width in (("a", 1), ("b", 1), ("c", 2))
    ]
    one, two, three = (Instrument(beam_file=p).recipe() for p in paths)
    assert one == two != three
    assert {k for k, v in Instrument().recipe().items() if v is not None} == {
        *("noise_uk_arcmin", "beam_fwhm_arcmin", "taper_deg")
    }
    before = Instrument(beam_file=paths[0]).recipe()
    table(paths[0], ELL, GAUSSIAN.beam(3 * ELL))
    assert Instrument(beam_file=paths[0]).recipe() != before


@pytest.fixture
def content():
    return yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())


@pytest.mark.parametrize(
    ("instrument", "message"),
    [
        ({"beam_file": "none.txt"}, r"none\.txt: cannot be read \(No such file"),
        ({"normalise_beam": True}, "set beam_file or remove it"),
        ({"ivar_file": "depth.npz", "depth_ratio": 2.0}, "remove one"),
        ({"ivar_file": "depth.npz"}, "networks are trained on white noise"),
        ({"one_over_f": {"knee": 200.0, "slope": 3.0}}, "networks are trained on white noise"),
        ({"one_over_f": {"knee": 200.0, "slope": -3.0}}, r"one_over_f\.slope is -3; it lies"),
        ({"one_over_f": {"knee": 200.0}}, "slope"),
    ],
)
def test_configurations_that_are_refused(content, tmp_path, monkeypatch, ivar, instrument, message):
    monkeypatch.chdir(tmp_path)
    np.savez("depth.npz", ivar=ivar)
    content["instrument"] |= instrument
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rf"c\.yaml: .*instrument.*{message}"):
        load_config("c.yaml")


def test_a_configuration_with_an_instrument_as_data(content, tmp_path, monkeypatch, ivar):
    """Level and width come from the files; holes need an estimator that knows them."""
    monkeypatch.chdir(tmp_path)
    np.savez("depth.npz", ivar=ivar)
    table("beam.txt", ELL, GAUSSIAN.beam(ELL))
    excess = {"knee": 200, "slope": 3, "anisotropy": 2}
    files = {"ivar_file": "depth.npz", "beam_file": "beam.txt", "one_over_f": excess}
    content["instrument"] |= files
    content["baseline"] = {"kind": "map"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    config = load_config("c.yaml")
    assert config.instrument.beam_fwhm_arcmin == pytest.approx(1.7, rel=1e-9)
    level = level_of(config.instrument.noise_rms(config.patch), config.patch)
    assert config.instrument.noise_uk_arcmin == level != 1.0
    assert config.instrument.one_over_f == OneOverF(200.0, 3.0, 2.0)
    content["baseline"] = {"kind": "quadratic"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="pixels that were not seen"):
        load_config("c.yaml")


def test_what_was_not_seen_is_not_in_the_maps(small_config, tmp_path, ivar):
    """Q and U are zero in holes, noise and sky alike; κ, which is known from around, is not."""
    np.savez(tmp_path / "depth.npz", ivar=ivar)
    holed = Instrument(ivar_file=tmp_path / "depth.npz").measured(small_config.patch)
    runs = [Run(small_config.model_copy(update={"instrument": i})) for i in (holed, Instrument())]
    n = small_config.patch.n_padded
    generator = np.random.default_rng(3)
    fields = {f: 1.0 + generator.random((3, n, n)).astype("f4") for f in FIELDS}
    Skies(runs[0]).write(fields, "test", 0)
    seen, whole = (observe_sky(run, "test", 0) for run in runs)
    for maps in (seen.q, seen.u):
        assert (maps[:, ivar == 0] == 0).all()
        assert (maps[:, ivar > 0] != 0).all()
    np.testing.assert_array_equal(seen.kappa, whole.kappa)


@pytest.mark.parametrize(
    ("instrument", "expected"),
    [
        (Instrument(), "square"),
        (Instrument(depth_ratio=2.0), "mirror"),
        (Instrument(one_over_f=OneOverF(200.0, 3.0)), "square"),
        (Instrument(one_over_f=OneOverF(200.0, 3.0, 2.0, 90.0)), "mirror"),
        (Instrument(one_over_f=OneOverF(200.0, 3.0, 2.0, 30.0)), None),
        (Instrument(ivar_file="depth.npz"), None),
    ],
)
def test_symmetries_of_an_instrument(instrument, expected):
    assert instrument.symmetry == expected
