"""N1 by Monte Carlo, and the response beyond first order."""

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.reconstruct.n0 import Filter, n0_eb, response_eb
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.modes import mode_vectors
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology, gradient_spectra
from cobaya_cnnlens.validate import analytic
from cobaya_cnnlens.validate.n1 import n1_eb

GEOMETRY = PatchGeometry(size_deg=5.0, n_pixels=128, pad=0)
INSTRUMENT, BAND = Instrument(1.0, 1.0), Filter(72, 4000)
BINS = Bins(100, 450, 5)


@pytest.fixture(scope="module")
def n1(fiducial):
    return n1_eb(GEOMETRY, INSTRUMENT, fiducial, BINS, 80, 0, BAND)


def binned(curve):
    spectra = FlatSpectra(GEOMETRY, BINS, np.ones((128, 128)))
    ell = np.hypot(*mode_vectors(128, GEOMETRY.pixel))
    L = np.arange(50.0, 2500.0, 50.0)
    return spectra.average_plane(np.interp(ell, L, curve(L)))


def test_pairs_of_different_phi_give_n0(fiducial, n1):
    ratio = n1.n0 / binned(lambda L: n0_eb(L, fiducial, INSTRUMENT, BAND))
    np.testing.assert_allclose(ratio, 1.0, atol=0.06)


def test_n0_and_n1_are_the_noise_of_lensed_maps(fiducial, n1):
    """⟨κ̂κ̂*⟩ − R²⟨κκ*⟩ of lensed maps; N0 alone falls short of it."""
    skies = PeriodicSkies(GEOMETRY, INSTRUMENT, fiducial)
    ones = np.ones((128, 128))
    estimator = QuadraticEstimator(GEOMETRY, INSTRUMENT, ones, fiducial, band=BAND)
    spectra = FlatSpectra(GEOMETRY, BINS, ones)
    rows = []
    for seed in range(80):
        generator = np.random.default_rng([5, seed])
        phi = skies.draw("phi", generator)
        maps = skies.lensed(skies.draw("e", generator), phi) + skies.noise(generator)
        fields = (
            estimator.reconstruct(maps.real[None], maps.imag[None]),
            skies.convergence(phi)[None],
        )
        found, true = map(spectra.transform, fields)
        pairs = ((found, found), (true, found), (true, true))
        rows.append([spectra.cross(a, b)[0] for a, b in pairs])
    auto, cross, truth = np.array(rows).transpose(1, 0, 2)
    response = cross.mean(0) / truth.mean(0)
    noise = auto - response**2 * truth
    error = np.hypot(noise.std(0, ddof=1) / np.sqrt(len(noise)), n1.error)
    n0 = binned(lambda L: n0_eb(L, fiducial, INSTRUMENT, BAND))
    distance = (noise.mean(0) - n0 - n1.n1) / error
    assert (np.abs(distance) < 3.5).all(), distance
    assert ((noise.mean(0) - n0) / error)[1:].max() > 5


@pytest.mark.slow
def test_response_of_gradient_spectra(fiducial):
    """One to first order, a per cent below it with CAMB's lensed gradients."""
    L = np.array([300.0, 1000.0])
    lensed = fiducial.lensed_ee, fiducial.lensed_bb
    np.testing.assert_allclose(response_eb(L, fiducial, lensed, INSTRUMENT, BAND), 1.0, rtol=1e-12)
    gradient = gradient_spectra(Cosmology(), CambSettings(lens_potential_accuracy=1))
    found = response_eb(L, fiducial, gradient, INSTRUMENT, BAND)
    assert (np.abs(found - 0.996) < 0.004).all(), found


def test_command(fiducial, monkeypatch):
    monkeypatch.setattr(analytic, "compute_spectra", lambda *_: fiducial)
    options = ["n1", "--pairs", "2", "--lmax", "1200"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "N1 by Monte Carlo, 2 pairs" in result.output
    for wrong in (["--pairs", "1"], ["--noise", "0"], ["--lmin", "0"], ["--lmax", "150"]):
        result = CliRunner().invoke(app, ["n1", *wrong])
        assert isinstance(result.exception, CNNLensError)
        assert wrong[0] in str(result.exception)
