import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.reconstruct.n0 import (
    Filter,
    Plane,
    band_of,
    n0_eb,
    n0_ee,
    n0_iterated,
    phi_to_convergence,
    polarisation_noise,
)
from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.patches import PatchGeometry

REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "n0_pytempura.json").read_text())
L = np.array([300.0, 1000.0, 2000.0])


def polarisation(spectra, level):
    """Lensed E and B and their totals, to the filter's end."""
    noise = polarisation_noise(Instrument(float(level)), 4600)
    ee, bb = (cl[:4601] for cl in (spectra.lensed_ee, spectra.lensed_bb))
    return ee, bb, ee + noise, bb + noise


@pytest.mark.parametrize("level", ["1", "2", "5"])
def test_n0_against_pytempura(fiducial, level):
    """The curved-sky normalisations of an independent package; see the fixture's note."""
    instrument = Instrument(float(level))
    found = {"ee": n0_ee(L, fiducial, instrument)}
    # Without B in the response, as the package has it.
    ee, bb, *totals = polarisation(fiducial, level)
    plane = Plane(Filter())
    found["eb"] = phi_to_convergence(L, [plane.eb_noise(x, ee, 0 * bb, *totals) for x in L])
    for name, values in found.items():
        reference = REFERENCE["n0_kappa"][name][level]
        np.testing.assert_allclose(values, reference, rtol=2e-3, err_msg=name)
    full = n0_eb(L, fiducial, instrument)
    assert (full[:2] > found["eb"][:2]).all()
    np.testing.assert_allclose(full, found["eb"], rtol=0.012)


def test_first_order_lensed_b_against_camb(fiducial):
    plane = Plane(Filter(2, 5000))
    for l in (300, 1000, 2000):
        found = plane.lensed_b(float(l), fiducial.ee, fiducial.pp)
        assert found == pytest.approx(fiducial.lensed_bb[l], rel=0.015)


def test_delensing_lowers_the_noise_where_b_is_lensing(fiducial):
    ratio = {
        level: n0_iterated(L, fiducial, Instrument(level)) / n0_eb(L, fiducial, Instrument(level))
        for level in (1.0, 5.0)
    }
    assert (ratio[1.0] < 0.75).all()
    assert (ratio[5.0] < 1.0).all()
    assert (ratio[1.0] < ratio[5.0]).all()


def test_iterated_noise_without_lensing_is_that_of_unlensed_b(fiducial):
    """With φ = 0 there is nothing to delens: N0 is the QE's with B = 0 in filter and response."""
    bare = replace(
        fiducial,
        kk=1e-6 * fiducial.kk,
        lensed_ee=fiducial.ee,
        lensed_bb=np.zeros_like(fiducial.ee),
    )
    found = n0_iterated(L, bare, Instrument(1.0))
    np.testing.assert_allclose(found, n0_eb(L, bare, Instrument(1.0)), rtol=5e-3)


@pytest.mark.parametrize("size_deg", [5.0, 4.9, 10.0])
def test_band_ends_below_the_nyquist_multipole(fiducial, size_deg):
    """All multipoles below it and none at it, where modes have no mirror image; the beam and the
    spectra end it too."""
    geometry = PatchGeometry(size_deg=size_deg, n_pixels=64, pad=0)
    if size_deg == 5.0:  # π/Δ is 2304 but for rounding: the modes there stay out either way
        assert geometry.nyquist == pytest.approx(2304, abs=1e-6)
    band = band_of(geometry, fiducial, 30)
    assert band.lmin == 30
    assert geometry.nyquist - 1 - 1e-6 <= band.lmax < geometry.nyquist - 1e-6
    assert band_of(PatchGeometry(), fiducial, 72) == Filter(72, 4600)
    short = replace(fiducial, ee=fiducial.ee[:1001], kk=fiducial.kk[:1001])
    assert band_of(geometry, short, 30).lmax == 1000


def test_noise_spectrum_is_divided_by_the_beam():
    """N_l e^{l²σ²}, of (level in µK rad)²; at FWHM² l² = 8 ln 2 it is e times the white."""
    instrument = Instrument(3.0, 10.0)
    found = polarisation_noise(instrument, 2000)
    assert found.shape == (2001,)
    white = (3.0 * np.radians(1 / 60)) ** 2
    assert found[0] == pytest.approx(white, rel=1e-12)
    l = np.sqrt(8 * np.log(2)) / np.radians(10 / 60)
    assert np.interp(l, np.arange(2001), found) == pytest.approx(np.e * white, rel=1e-5)


def test_short_spectra_are_refused(fiducial):
    with pytest.raises(CNNLensError, match="filter needs 6000"):
        n0_eb(L, fiducial, Instrument(), Filter(72, 6000))


def test_the_table_of_a_command(fiducial):
    """`cnnlens n0` prints what the functions give."""
    options = ["--estimator", "ee", "--multipole", "300", "--multipole", "1000", "--lmax", "3000"]
    result = CliRunner().invoke(app, ["n0", *options])
    assert result.exit_code == 0, result.output
    _, *rows = result.output.splitlines()
    n0 = n0_ee(np.array([300.0, 1000.0]), fiducial, Instrument(), Filter(72, 3000))
    expected = [["300", f"{n0[0]:.4e}"], ["1000", f"{n0[1]:.4e}"]]
    assert [row.split()[:2] for row in rows] == expected
    for wrong in (["--estimator", "xy"], ["--lmax", "50"], ["--noise", "0"], ["--multipole", "1"]):
        result = CliRunner().invoke(app, ["n0", *wrong])
        assert isinstance(result.exception, CNNLensError)
        assert wrong[0] in str(result.exception)
