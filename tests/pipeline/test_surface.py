"""The stage of the response surface: its spectra, its products, its settings."""

import numpy as np
import pytest

from cobaya_cnnlens.calibrate.second_order import design
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.calibration_settings import CosmologyGroup, Points, Surface
from cobaya_cnnlens.pipeline.surface import SurfacePoints, changed
from cobaya_cnnlens.simulate.tiling import evenly

from ..written import HASH, NoisyOracle

OVER = [{"omch2": 0.11}, {"omch2": 0.13}, {"As": 1.5e-9}, {"H0": 60.0}, {"ns": 0.94}]


@pytest.fixture(scope="module")
def run(simulated_run):
    """A run whose surface of two directions is made of seven patches of the test sky."""
    points = Points(
        at={"over": CosmologyGroup(cosmologies=OVER)},
        surface=Surface(over="over", directions=2, patches=7),
    )
    config = simulated_run.config.model_copy(update={"points": points})
    kappa = observe_sky(simulated_run, "test", 0).kappa
    return Run(config, HASH, NoisyOracle(kappa[evenly(len(kappa), 7)]))


def test_spectra_move_along_the_principal_changes(run):
    """ln C is linear in the amplitudes, and u > 0 has more C^κκ."""
    stage, fiducial = SurfacePoints(run), run.spectra()
    spectra = [stage._spectra(point) for point in design(2)]
    for name, axes in (("kk", [0]), ("ee", [1, 2])):
        still = np.log(getattr(fiducial, name)[2:])
        moved = np.array([np.log(getattr(s, name)[2:]) for s in spectra]) - still
        along = design(2)[:, axes]
        np.testing.assert_allclose(moved[~along.any(1)], 0.0, atol=1e-12)
        of_one, *_ = np.linalg.lstsq(along, moved, rcond=None)
        np.testing.assert_allclose(along @ of_one, moved, atol=1e-10)
    assert (spectra[0].kk[2:] > fiducial.kk[2:]).all()


def test_spectra_keep_their_shape_beyond_the_emulator(run):
    fiducial = run.spectra()
    louder = changed(fiducial, np.array([0.1, 0.2]), np.zeros(3))
    np.testing.assert_allclose(louder.kk[2:5] / fiducial.kk[2:5], np.exp([0.1, 0.2, 0.2]))
    np.testing.assert_allclose(louder.kk[-1] / fiducial.kk[-1], np.exp(0.2))
    np.testing.assert_array_equal(louder.ee, fiducial.ee)


def test_the_point_without_a_change_is_the_test_sky(run):
    arrays = SurfacePoints(run).make(0)
    still = Bandpowers(run).read("test", [0], 7)
    np.testing.assert_allclose(arrays["auto"], still.auto, rtol=1e-5)
    np.testing.assert_allclose(arrays["truth"], still.truth, rtol=1e-5)
    np.testing.assert_array_equal(arrays["bands"], 0.0)


def test_the_design_has_so_many_points(run):
    assert SurfacePoints(run).keys() == [(k,) for k in range(len(design(2)))]
    with pytest.raises(ConfigError, match="points 0 to 11, not 12; correct --index"):
        SurfacePoints(run).keys([12])


@pytest.mark.parametrize(
    ("surface_settings", "data_debias", "message"),
    [
        (
            {"over": "over", "sky": 3},
            True,
            r"points\.surface\.sky is 3, but the last test sky is 1",
        ),
        ({"over": "over", "sky": 0}, True, r"sky 0 is that of points\.at\.over, which tests"),
        ({"over": "prior", "sky": 1}, True, "over is 'prior'; name a group of points.at: over"),
        ({"over": "over", "sky": 1}, False, "set data_debias"),
        ({"over": "over", "sky": 1, "directions": 4}, True, "4 cosmologies, too few"),
    ],
)
def test_wrong_surfaces(surface_settings, data_debias, message):
    cosmologies = OVER[:4] if surface_settings.get("directions") == 4 else OVER
    points = Points(
        at={"over": CosmologyGroup(cosmologies=cosmologies)}, surface=Surface(**surface_settings)
    )
    with pytest.raises(ValueError, match=message):
        points.check(2, data_debias)
