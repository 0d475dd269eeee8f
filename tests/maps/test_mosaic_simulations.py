"""Simulations of a survey's map: shared noise, transfer function and noise, and the command."""

from dataclasses import replace

import healpy
import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter, map_coordinates
from typer.testing import CliRunner

from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError, MapError, ProductError
from cobaya_cnnlens.maps import survey_map
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.mosaic import Mosaic, Normalisation, bins_to
from cobaya_cnnlens.maps.mosaic_simulations import (
    MosaicSimulations,
    MosaicSpectra,
    binned_spectra,
)
from cobaya_cnnlens.maps.plan import make_plan, read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.survey_map import SurveyMap, filling_plan
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.tiling import project, unit_vectors

from .test_survey import SIDE, TAPER, toy_configuration

GEOMETRY = PatchGeometry(SIDE, 32)
NSIDE, LMAX = 64, 120


class Wiener:
    """κ̂ that is a part of the true κ, and noise; a simulation hands κ over as Q."""

    def __init__(self):
        self.calls = 0

    def reconstruct(self, q, u, rms):
        self.calls += len(q)
        return np.where(np.isfinite(rms), 0.8 * q + 0.1 * u, 0.0)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    content = toy_configuration(tmp_path_factory.mktemp("toy"))
    return MapSetup.of_run(Run(Config.model_validate(content), "a" * 64, Wiener()))


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Of a footprint of 50° × 50°, and the tiles that fill its tapers."""
    folder = tmp_path_factory.mktemp("plans")
    # Fine enough for all modes of the tiles' noise.
    theta, phi = healpy.pix2ang(256, np.arange(12 * 256**2))
    seen = (np.abs(theta - 0.5 * np.pi) < 0.44) & (np.abs(phi - 2.0) < 0.44)
    healpy.write_map(folder / "mask.fits", seen.astype(float), dtype=np.float64, coord="G")
    sources = Sources((), str(folder / "mask.fits"), level="1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobaya_cnnlens.maps.tiles.SHIFTS", 2)
        patch.setattr("cobaya_cnnlens.maps.tiles.TURNS", 6)
        plan = make_plan(folder / "toy.yaml", sources, GEOMETRY, TAPER)
        return plan, filling_plan(plan, folder / "filling.yaml")


@pytest.fixture
def simulations(setup, plans, tmp_path):
    made = (TileReconstruction(plan, setup, tmp_path / plan.name) for plan in plans)
    return MosaicSimulations(tuple(made), LMAX, NSIDE)


def test_the_plan_of_the_filling_tiles_is_kept_until_the_survey_changes(plans, monkeypatch):
    plan, filling = plans
    assert read_plan(filling.path).recipe["fills"] == plan.centres.round(9).tolist()
    monkeypatch.setattr(survey_map, "make_plan", lambda *_, **__: "made")
    assert filling_plan(plan, filling.path).identity == filling.identity
    assert filling_plan(replace(plan, tiles=plan.tiles[1:]), filling.path) == "made"


def test_tiles_that_overlap_have_the_same_noise(simulations):
    """White, of rms one in a pixel; at one place of the sky that of one tile is that of another,
    as far as the long modes that pixels of both resolve."""
    own, *others = simulations.tiles
    other = min(others, key=lambda t: np.linalg.norm(t.centre - own.centre))
    centres = np.stack([own.centre, other.centre])
    noise = simulations._unit_noise(centres, 0, 1)
    for part in (noise.real, noise.imag):
        assert part.std() == pytest.approx(1.0, abs=0.06)
    assert not np.array_equal(noise, simulations._unit_noise(centres, 1, 1))
    # |P| smoothed over some pixels does not depend on the frame.
    smooth = [np.hypot(gaussian_filter(n.real, 2.0), gaussian_filter(n.imag, 2.0)) for n in noise]
    at = own.pointing
    x, y = project(unit_vectors(np.stack([at.theta, at.phi], 1)), other.centre)
    place = np.stack([y, x]) / own.geometry.pixel + 15.5
    inside = np.all((place > 3) & (place < 28), axis=0)
    inside &= np.all(np.abs(np.indices((32, 32)).reshape(2, -1) - 15.5) < 12, axis=0)
    there = map_coordinates(smooth[1], place[:, inside], order=1)
    assert inside.sum() > 50
    assert np.corrcoef(there, smooth[0].ravel()[inside])[0, 1] > 0.95


def test_a_run_that_was_stopped_goes_on(simulations):
    estimator = Wiener()
    simulations.measure(range(1), lambda: estimator, 1)
    calls = estimator.calls
    assert calls == len(simulations.tiles)
    simulations.measure(range(2), lambda: estimator, 1)
    assert estimator.calls == 2 * calls
    arrays = simulations.read(1)
    assert arrays["kappa"].shape == (calls, 32, 32)
    assert arrays["kappa_in"].shape == simulations.pixels.shape
    assert not np.array_equal(arrays["kappa_in"], simulations.read(0)["kappa_in"])
    with pytest.raises(ProductError):
        replace(simulations, seed=1).read(0)


def test_a_perfect_estimator_has_a_transfer_function_of_one(simulations, monkeypatch):
    """κ̂ is 0.8 κ and noise: the response is 0.8 and T is one, but for modes near the largest
    multipole, of which tapers as narrow as these take some."""
    observed = MosaicSimulations._observed

    def kappa_as_q(self, *arguments):
        _, u, kappa = observed(self, *arguments)
        mask = np.stack([tile.mask for tile in self.tiles])
        u = np.random.default_rng(arguments[2]).standard_normal(u.shape) * mask * 0.2
        return kappa * mask, u, kappa

    monkeypatch.setattr(MosaicSimulations, "_observed", kappa_as_q)
    numbers = range(3)
    simulations.measure(numbers, Wiener, 1)
    normalisation = simulations.normalisation(numbers)
    np.testing.assert_allclose(normalisation.response, 0.8, rtol=0.02)
    powers = []
    for mosaic, true in simulations.mosaics(numbers, normalisation):
        modes = [mosaic.modes(m, LMAX) for m in (mosaic.kappa, true)]
        pairs = ((0, 0), (1, 0), (1, 1))
        powers.append(
            [binned_spectra(mosaic, modes[i], modes[j], simulations.bins) for i, j in pairs]
        )
    spectra = MosaicSpectra.of(*np.array(powers).swapaxes(0, 1), simulations.bins)
    # The first bin has few modes.
    assert spectra.transfer[1] == pytest.approx(1.0, abs=0.02)
    assert spectra.transfer[-1] == pytest.approx(0.95, abs=0.05)


def test_spectra_are_means_over_the_seen_part_of_the_sky():
    """Of white noise of variance v in every pixel, whatever the mask: v times the pixel's area."""
    pixels = healpy.query_strip(NSIDE, 1.0, 1.6)
    generator = np.random.default_rng(1)
    values, mask = 3.0 * generator.standard_normal(len(pixels)), generator.uniform(size=len(pixels))
    mosaic = Mosaic(NSIDE, pixels, values, mask, mask)
    bins = bins_to(120, PatchGeometry(SIDE, 64, 0))
    modes = mosaic.modes(values, 120)
    expected = 9.0 * healpy.nside2pixarea(NSIDE)
    np.testing.assert_allclose(binned_spectra(mosaic, modes, modes, bins), expected, rtol=0.1)


def test_transfer_function_and_noise_are_those_that_were_put_in():
    generator = np.random.default_rng(2)
    truth = 1.0 + generator.uniform(size=(40, 3))
    transfer, noise = np.array([0.7, 1.0, 1.1]), np.array([0.5, 1.0, 2.0])
    auto = transfer**2 * (truth + noise)
    bins = bins_to(120, PatchGeometry(SIDE, 64, 0))
    spectra = MosaicSpectra.of(auto, transfer * truth, truth, bins)
    np.testing.assert_allclose(spectra.transfer, transfer)
    np.testing.assert_allclose(spectra.noise, noise)
    np.testing.assert_allclose(spectra.transfer_error, 0.0, atol=1e-12)
    with pytest.raises(ConfigError, match="--realisations 1: give 2 or more"):
        MosaicSpectra.of(auto[:1], truth[:1], truth[:1], bins)


@pytest.mark.parametrize("noise", [0.3, 1.0, 10.0])
def test_the_error_of_the_noise_knows_that_of_the_transfer_function(noise):
    """Of 300 sets of 20 simulations, N scatters as its standard error says."""
    generator = np.random.default_rng(3)
    kappa, other = generator.standard_normal((2, 20, 300, 400))
    estimate = kappa + np.sqrt(noise) * other
    pairs = (estimate, estimate), (kappa, estimate), (kappa, kappa)
    bins = bins_to(120, PatchGeometry(SIDE, 64, 0))
    spectra = MosaicSpectra.of(*((a * b).mean(-1) for a, b in pairs), bins)
    assert spectra.noise.std() == pytest.approx(spectra.noise_error.mean(), rel=0.15)


def test_the_map_and_its_simulations_are_written(simulations, monkeypatch):
    """With κ̂ of the tiles at hand; the headers say frame, multipoles and plan."""
    own = simulations.reconstructions[0]
    survey = SurveyMap(own, LMAX, NSIDE)
    monkeypatch.setattr(SurveyMap, "simulations", simulations)
    monkeypatch.setattr(TileReconstruction, "measure", lambda *_: None)
    taper = own.plan.tiles[0].taper
    monkeypatch.setattr(TileReconstruction, "read_tile", lambda *_: {"kappa": taper})
    response = np.full(simulations.bins.n_bins, 0.5)
    tiles = np.zeros(len(simulations.tiles), int)
    normalisation = Normalisation(simulations.bins, tiles, response[None], response[None])
    monkeypatch.setattr(MosaicSimulations, "normalisation", lambda *_: normalisation)
    path = survey.make(2, Wiener, 1)
    header = fits.getheader(path, 1)
    expected = {"COORDSYS": "G", "ORDERING": "RING", "L_MAX": LMAX, "PLAN": own.plan.identity}
    assert {key: header[key] for key in expected} == expected
    kappa, mask, weight = healpy.read_map(path, field=(0, 1, 2))
    inner = mask > 0.9
    # κ̂ of one over a response of a half.
    assert np.median(kappa[inner]) == pytest.approx(2.0, rel=0.01)
    np.testing.assert_allclose(weight[inner], 1.0)
    table = fits.getdata(path, "SPECTRA")
    np.testing.assert_allclose(table["R_L"], 0.5)
    assert table["L_MIN"][1] == table["L_MAX"][0] + 1
    pair = healpy.read_map(survey.simulation_path(1), field=(0, 1, 2))
    np.testing.assert_array_equal(pair[2], mask)
    np.testing.assert_allclose(pair[0][simulations.pixels], simulations.read(1)["kappa_in"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--nside", "100"], ConfigError, "--nside 100: give a power of two"),
        (["--lmax", "9"], ConfigError, "--lmax 9: give a multipole from 72 to"),
        ([], MapError, "the plan of a footprint alone; plan again with the survey's maps"),
    ],
)
def test_what_the_command_cannot_use_is_refused(plans, arguments, error, message):
    command = ["survey", "map", str(plans[0].path), "--release", "refined_fiducial"]
    lmax = [] if "--lmax" in arguments else ["--lmax", str(LMAX)]
    result = CliRunner().invoke(app, [*command, *lmax, *arguments])
    assert isinstance(result.exception, error), result.exception
    with pytest.raises(error, match=message):
        raise result.exception
