import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens.cli import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.reconstruct.n0 import Filter, Plane, n0_eb, n0_iterated
from cobaya_cnnlens.simulate.instrument import Instrument

REFERENCE = json.loads((Path(__file__).parent / "fixtures" / "n0_eb_pytempura.json").read_text())
L = np.array([300.0, 1000.0, 2000.0])


@pytest.mark.parametrize("level", ["1", "2", "5"])
def test_n0_against_pytempura(fiducial, level):
    """The curved-sky EB normalisation of an independent package; see the fixture's note."""
    found = n0_eb(L, fiducial, Instrument(float(level)))
    np.testing.assert_allclose(found, REFERENCE["n0_kappa"][level], rtol=0.01)


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


def test_short_spectra_are_refused(fiducial):
    with pytest.raises(CNNLensError, match="filter needs 6000"):
        n0_eb(L, fiducial, Instrument(), Filter(72, 6000))


def test_the_table_of_a_command(tmp_path):
    """`cnnlens n0` prints what the functions give, and writes it as CSV."""
    options = ["--estimator", "ee", "--multipole", "300", "--multipole", "1000", "--lmax", "3000"]
    path = tmp_path / "n0.csv"
    result = CliRunner().invoke(app, ["n0", *options, "--out", str(path)])
    assert result.exit_code == 0, result.output
    table = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_array_equal(table["L"], [300, 1000])
    assert f"{table['n0_kappa'][1]:11.4e}" in result.output
    for wrong in (["--estimator", "xy"], ["--lmax", "50"], ["--noise", "0"], ["--multipole", "1"]):
        result = CliRunner().invoke(app, ["n0", *wrong])
        assert isinstance(result.exception, CNNLensError)
        assert wrong[0] in str(result.exception)
