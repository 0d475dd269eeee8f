"""``survey template``: from a survey's Q, U and map of κ̂ to its lensing B modes. A toy sky that
ends at l = 500, seen in a box of 60° × 60° with holes, by a beam of 20′."""

from dataclasses import replace

import healpy
import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.maps import delensing, survey_template
from cobaya_cnnlens.maps.grids import HealpixGrid
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.mosaic import Mosaic
from cobaya_cnnlens.maps.mosaic_simulations import binned
from cobaya_cnnlens.maps.plan import make_plan
from cobaya_cnnlens.maps.survey_files import Sources, Split
from cobaya_cnnlens.maps.survey_template import BINS, Coadd, SurveyTemplate
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.one_over_f import OneOverF
from cobaya_cnnlens.simulate.patches import healpix_pointing
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.theory.camb import Spectra, lensed_polarisation

from .test_survey import GEOMETRY, NSIDE, PHI, SEEN, TAPER, THETA, toy_configuration, write

LMAX, LEVEL, BEAM = 500, 5.0, 20.0  # µK-arcmin, arcmin
TRANSFER, N_KAPPA = 0.8, 2e-8
WHOLE = np.arange(len(SEEN))


@pytest.fixture(scope="module")
def theory(fiducial):
    cut = Spectra(*(cl[: LMAX + 1] for cl in vars(fiducial).values()))
    ee, bb = lensed_polarisation(cut, LMAX)
    return replace(cut, lensed_ee=ee, lensed_bb=bb)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    content = toy_configuration(folder)
    content["instrument"] |= {"noise_uk_arcmin": LEVEL, "beam_fwhm_arcmin": BEAM}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, Run(load_config(path))


@pytest.fixture(scope="module")
def setup(run, theory):
    made = MapSetup.of_run(run[1])
    made.__dict__["theory"] = theory
    return made


@pytest.fixture(scope="module")
def sky(theory):
    return draw_sky(theory, LMAX, 3, "template", 0)


@pytest.fixture(scope="module")
def lensed(sky):
    """E and B modes of the lensed sky."""
    at = healpix_pointing(NSIDE, WHOLE)
    deflection = patches.deflect_by(patches.gradient_at(sky.philm, LMAX, at, 1), at, 1)
    p = patches.lensed_polarisation_at(sky.elm, LMAX, at, deflection, 1)
    return delensing.e_and_b_modes(NSIDE, WHOLE, p, LMAX, 1)


@pytest.fixture(scope="module")
def plan(lensed, setup, tmp_path_factory):
    """Of two splits of equal depth."""
    folder = tmp_path_factory.mktemp("survey")
    generator = np.random.default_rng(1)
    beam = setup.instrument.beam(np.arange(LMAX + 1))
    sky = healpy.alm2map_spin([scale_alm(lm, beam) for lm in lensed], NSIDE, 2, LMAX)
    rms = np.sqrt(2.0) * LEVEL * ARCMIN / healpy.nside2resol(NSIDE)
    names = []
    for split in range(2):
        planes = [np.where(SEEN, m + rms * generator.standard_normal(len(m)), np.nan) for m in sky]
        names.append(write(folder / f"map{split}.fits", planes, "uK"))
    mask = write(folder / "mask.fits", [SEEN.astype(float)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobaya_cnnlens.maps.tiles.SHIFTS", 2)
        patch.setattr("cobaya_cnnlens.maps.tiles.TURNS", 6)
        return make_plan(
            folder / "s.yaml", Sources(tuple(names), mask, level=str(LEVEL)), GEOMETRY, TAPER
        )


def write_mosaic(philm, plan, setup, folder):
    """A map of noisy κ̂ with a transfer function of 0.8."""
    noise = scale_alm(unit_alm(LMAX, np.random.default_rng(2)), np.full(LMAX + 1, N_KAPPA**0.5))
    kappa_lm = patches.convergence_alm(philm, LMAX, LMAX) + noise
    kappa = TRANSFER * healpy.alm2map(kappa_lm, NSIDE)[SEEN]
    mosaic = Mosaic(NSIDE, WHOLE[SEEN], kappa, np.ones(len(kappa)), np.ones(len(kappa)))
    columns = {"KAPPA": kappa, "MASK": mosaic.mask, "WEIGHT": mosaic.weight}
    low = np.arange(20.0, 480.0, 40.0)
    table = {"L_MIN": low, "L_MAX": low + 39.0, "L": low + 20.0}
    table |= {"T_L": np.full(len(low), TRANSFER), "N_L": np.full(len(low), N_KAPPA)}
    cards = {"PLAN": plan.identity, **setup.cards}
    mosaic.write(folder / "mosaic.fits", plan.frame, columns, table, **cards)
    return mosaic


@pytest.fixture(scope="module")
def made(sky, plan, setup, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    write_mosaic(sky.philm, plan, setup, folder)
    return SurveyTemplate(plan, setup, folder).make(1)


def compared(path, blm):
    """⟨tB⟩, ⟨tt⟩, ⟨BB⟩ of the file's Q and U and of true B modes, under an apodised mask."""
    q, u, mask = healpy.read_map(path, field=(0, 1, 2), dtype=np.float64)
    seen = mask != healpy.UNSEEN
    # The box is 100° to 160° by −20° to 40°; the apodisation is 5° wide.
    longitude, latitude = np.degrees(PHI[seen]), 90.0 - np.degrees(THETA[seen])
    away = np.minimum(30.0 - np.abs(longitude - 130.0), 30.0 - np.abs(latitude - 10.0))
    apodised = np.sin(0.5 * np.pi * np.clip(away / 5.0, 0.0, 1.0)) ** 2
    at = healpix_pointing(NSIDE, WHOLE[seen])
    true = delensing.b_polarisation_at(blm, LMAX, at, 1)
    modes = [
        delensing.e_and_b_modes(NSIDE, WHOLE[seen], p * apodised, LMAX, 1)[1]
        for p in ((q + 1j * u)[seen], true)
    ]
    pairs = ((0, 1), (0, 0), (1, 1))
    return [binned(healpy.alm2cl(modes[i], modes[j]), BINS) for i, j in pairs]


def test_the_template_has_the_transfer_function_that_the_file_states(made, lensed):
    cross, auto, truth = compared(made, lensed[1])
    table = fits.getdata(made, "SPECTRA")
    ratio = (cross / truth / table["T_L"]).mean()
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert (cross / auto).mean() == pytest.approx(1.0, abs=0.03)


def test_splits_are_coadded_by_inverse_variance_without_shallow_pixels(plan, monkeypatch):
    """Noise is the mean of what remains; 1/f noise adds to it."""
    grid = HealpixGrid(1, "C")
    density = np.array([np.full(12, 1.0), np.full(12, 3.0)], np.float32)
    density[:, 0], density[:, 1] = 0.0, 0.01
    splits = [Split(grid, (d * 0.0 + i, d * 0.0), d) for i, d in enumerate(density)]
    monkeypatch.setattr(survey_template, "splits_of", lambda *_: splits)
    coadd = Coadd.of(plan)
    np.testing.assert_allclose(coadd.maps[0], [0.0, 0.0, *[0.75] * 10])
    np.testing.assert_array_equal(coadd.density, [0.0, 0.0, *[4.0] * 10])
    np.testing.assert_allclose(coadd.noise_power(None, 3), 0.25)
    excess = OneOverF(knee=10.0, slope=2.0)
    np.testing.assert_allclose(
        coadd.noise_power(excess, 30) / 0.25, excess.mean_ratio(np.arange(31))
    )


def test_the_file_says_what_it_is(made, plan, setup):
    header = fits.getheader(made, 1)
    expected = {
        **{"TTYPE2": "Q", "TUNIT2": "uK", "TTYPE3": "U", "POLCCONV": "COSMO", "NSIDE": NSIDE},
        **{"COORDSYS": plan.frame, "ORDERING": "RING", "PLAN": plan.identity, **setup.cards},
    }
    assert {key: header[key] for key in expected} == expected
    [warning] = SurveyTemplate(plan, setup, made.parent).warnings
    assert warning.endswith("with a configuration that has `reconstruction: {lmin_b: 300}`")
    assert not SurveyTemplate(plan, replace(setup, lmin_b=300), made.parent).warnings
    mask = healpy.read_map(made, field=2)
    np.testing.assert_array_equal(mask != healpy.UNSEEN, SEEN)


def test_the_kappa_of_another_sky_gives_a_null(theory, lensed, plan, setup, tmp_path):
    other = draw_sky(theory, LMAX, 3, "template", 1)
    write_mosaic(other.philm, plan, setup, tmp_path)
    cross, auto, truth = compared(SurveyTemplate(plan, setup, tmp_path).make(1), lensed[1])
    ell = 2.0 * BINS.centres * BINS.width * SEEN.mean()
    np.testing.assert_array_less(np.abs(cross / np.sqrt(auto * truth)), 4.0 / np.sqrt(ell))


def test_a_map_of_another_plan_or_none_is_refused(run, plan, setup, sky, tmp_path):
    arguments = ["survey", "template", str(plan.path), "--config", str(run[0])]
    arguments += ["--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "mosaic.fits: no such file; run `cnnlens survey map` first" in str(result.exception)
    other = replace(plan, recipe=plan.recipe | {"seen": 0.5})
    write_mosaic(sky.philm, other, setup, tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "keyword PLAN is" in str(result.exception)
    write_mosaic(sky.philm, plan, setup, tmp_path)
    with pytest.raises(ConfigError, match="keyword LMIN_B is 0, not 300: the map was made with"):
        SurveyTemplate(plan, replace(setup, lmin_b=300), tmp_path).make(1)
