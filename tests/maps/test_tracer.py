"""Cross-correlation with a tracer: its simulations, bandpowers of tiles, and their covariance."""

import healpy
import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.maps.mosaic import Normalisation
from cobaya_cnnlens.maps.tiles import Tile
from cobaya_cnnlens.maps.tracer import TileSpectra, TracerSpectra
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm

FLAT = PatchGeometry(5.0, 32, pad=0)
BINS = Bins(100, 300, 3)
TAPER = cosine_mask(FLAT, 0.5)


def test_a_simulated_tracer_has_its_spectra():
    lmax = 400
    kk = 1e-7 / (1.0 + np.arange(lmax + 1))
    spectra = TracerSpectra(2.0 * kk, 8.0 * kk + 1e-10)
    generator = np.random.default_rng(1)
    kappa = scale_alm(unit_alm(lmax, generator), np.sqrt(kk))
    tracer = spectra.draw(kappa, kk, generator)
    for found, expected in (
        (healpy.alm2cl(kappa, tracer), spectra.kg),
        (healpy.alm2cl(tracer), spectra.gg),
    ):
        ratio = (found / expected)[100:]
        assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    # The part that follows κ is known without any scatter.
    other = spectra.draw(2.0 * kappa, kk, np.random.default_rng(2))
    same = spectra.draw(kappa, kk, np.random.default_rng(2))
    np.testing.assert_allclose(other - same, 2.0 * kappa, atol=1e-12)
    with pytest.raises(CNNLensError, match="correlated with κ by more than one"):
        TracerSpectra(2.0 * kk, 3.9 * kk).draw(kappa, kk, generator)


def tile_of(number, ivar):
    return Tile(number, np.array([1.0, 0.1 * number]), FLAT, TAPER, ivar)


@pytest.fixture(scope="module")
def measured():
    """Four tiles, two of which are half as deep, one with a hole; and surveys of them with white
    κ of power 1, noise, and g = 2 κ and noise of its own."""
    ivar = [np.full((1, 32, 32), value, np.float32) for value in (1.0, 0.25, 1.0, 0.25)]
    ivar[0][:, 8:16, 8:16] = 0.0
    tiles = tuple(tile_of(i, values) for i, values in enumerate(ivar))
    response = np.array([[0.8] * 3, [0.5] * 3])
    noise = np.array([[0.5] * 3, [2.0] * 3])
    normalisation = Normalisation(BINS, np.array([0, 1, 0, 1]), response, noise)
    spectra = TileSpectra(tiles, FlatSpectra(FLAT, BINS, TAPER), normalisation)
    generator = np.random.default_rng(3)
    surveys = []
    for _ in range(400):
        # White noise of power one has this rms in a pixel.
        kappa, own, other = generator.standard_normal((3, 4, 32, 32)) / FLAT.pixel
        label = normalisation.label
        seen = kappa + np.sqrt(noise[label, 0])[:, None, None] * own
        estimate = response[label, 0][:, None, None] * seen * TAPER
        surveys.append(spectra.measure(estimate, 2.0 * kappa + other))
    return spectra, np.stack(surveys)


def test_bandpowers_of_tiles_are_unbiased(measured):
    """The noise is taken off κκ and none of κg; R is divided out, twice and once; holes and the
    taper do not matter."""
    _, surveys = measured
    error = surveys.std(0) / np.sqrt(len(surveys))
    expected = np.repeat([1.0, 2.0], 3)
    pull = (surveys.mean(0) - expected) / error
    assert np.abs(pull).max() < 4.0
    assert error.max() < 0.05


def test_the_joint_covariance_is_the_scatter_of_surveys(measured):
    """Half of the surveys give the covariance, the others scatter; κκ and κg are correlated."""
    spectra, surveys = measured
    kk = np.ones(3)
    simulated, others = surveys[:200], surveys[200:]
    found = [spectra.survey(bandpowers, simulated, kk) for bandpowers in others]
    covariance = found[0][1]
    scatter = np.cov([d for d, _ in found], rowvar=False)
    ratio = np.diag(scatter) / np.diag(covariance)
    assert ratio.mean() == pytest.approx(1.0, abs=0.15)
    sigma = np.sqrt(np.diag(covariance))
    correlation = (np.diag(covariance[:3, 3:]) / sigma[:3] / sigma[3:]).mean()
    of_surveys = np.corrcoef(np.array([d for d, _ in found]).T)[:3, 3:].diagonal().mean()
    assert correlation == pytest.approx(of_surveys, abs=0.1)
    assert correlation > 0.3


def test_deep_tiles_weigh_more(measured):
    spectra, _ = measured
    weight = spectra.weight(np.ones(3))
    np.testing.assert_allclose(weight.sum(0), 1.0)
    np.testing.assert_allclose(weight[2, :3] / weight[3, :3], (3.0 / 1.5) ** 2)
    np.testing.assert_allclose(weight[2, 3:] / weight[3, 3:], 3.0 / 1.5)


def test_sacc_holds_both_spectra(measured, tmp_path):
    sacc = pytest.importorskip("sacc")
    spectra, surveys = measured
    bandpowers, covariance = spectra.survey(surveys[0], surveys, np.ones(3))
    spectra.write(tmp_path / "s.fits", bandpowers, covariance, 1200, name="toy")
    data = sacc.Sacc.load_fits(str(tmp_path / "s.fits"))
    L, cl = data.get_ell_cl("cmbGalaxy_convergenceDensity_cl", "ck", "gc")
    np.testing.assert_allclose(cl, bandpowers[3:])
    np.testing.assert_allclose(L, BINS.centres)
    np.testing.assert_allclose(data.covariance.dense, covariance)
    assert data.metadata["bin_edges_ck_gc"] == "100 400 700 1000"
