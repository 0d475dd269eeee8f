"""Nulls of a survey's own maps: those of a mock of the sphere hold, and each systematic that is
planted breaks those that it should, and no other. Toy pixels: tiles of 20° with 32² pixels."""

from dataclasses import replace

import healpy
import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.own_maps import MapSetup
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError, ConfigError, ProductError
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.likelihood.statistics import hotelling_pte
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.report.survey_nulls_figure import survey_nulls_figure
from cobaya_cnnlens.report.text import format_survey_nulls
from cobaya_cnnlens.simulate.bandpowers import Bins
from cobaya_cnnlens.simulate.instrument import ARCMIN, Instrument
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.survey import nulls, patches, reconstruction, tiles
from cobaya_cnnlens.survey.inputs import Sources
from cobaya_cnnlens.survey.nulls import Choices, Halves
from cobaya_cnnlens.survey.plan import make_plan
from cobaya_cnnlens.validate import survey_nulls as judged

from .test_survey import write

NSIDE, LMAX = 256, 407
SIDE, TAPER, LEVEL = 20.0, 2.0, 10.0
GEOMETRY = PatchGeometry(SIDE, 32)
# Of the two splits, of the coadd's inverse variance.
SHARES = (0.4, 0.6)


class Quadratic:
    """κ̂ by the quadratic estimator, which asks for no rms."""

    def __init__(self, setup):
        self.own = QuadraticEstimator(setup.patch, setup.instrument, setup.mask, setup.theory)
        self.calls = 0

    def reconstruct(self, q, u, rms):
        self.calls += 1
        return self.own.reconstruct(q, u)


@pytest.fixture(scope="module")
def setup(fiducial):
    instrument = Instrument(LEVEL, 30.0, TAPER)
    made = MapSetup(
        *("toy", GEOMETRY, instrument, Bins(18, 60, 4), "a" * 64, {"toy": 1}, 1, None)
    )
    vars(made)["theory"] = fiducial
    return made


@pytest.fixture(scope="module")
def plan(setup, fiducial, tmp_path_factory):
    """A mock on the sphere: Gaussian skies of the lensed spectra, two splits, holes, and twice the
    variance in the south."""
    folder = tmp_path_factory.mktemp("survey")
    generator = np.random.default_rng(7)
    beam = setup.instrument.beam(np.arange(LMAX + 1))
    alm = [
        scale_alm(unit_alm(LMAX, generator), np.sqrt(cl[: LMAX + 1]) * beam)
        for cl in (fiducial.lensed_ee, fiducial.lensed_bb)
    ]
    q, u = healpy.alm2map_spin(alm, NSIDE, 2, LMAX)
    theta, phi = healpy.pix2ang(NSIDE, np.arange(len(q)))
    seen = np.abs(np.cos(theta)) < 0.77
    for number in range(12):
        centre = healpy.ang2vec(np.arccos(generator.uniform(-0.7, 0.7)), number * np.pi / 6)
        seen[healpy.query_disc(NSIDE, centre, np.radians(1.2))] = False
    ivar = healpy.nside2pixarea(NSIDE) / (LEVEL * ARCMIN) ** 2
    ivar = ivar * np.where(theta > 0.5 * np.pi, 0.5, 1.0)
    names = {"mask": write(folder / "mask.fits", [seen.astype(float)])}
    for i, share in enumerate(SHARES):
        noise = generator.standard_normal((2, len(q))) / np.sqrt(share * ivar)
        planes = [np.where(seen, m + n, np.nan) for m, n in zip((q, u), noise, strict=True)]
        names[f"map{i}"] = write(folder / f"map{i}.fits", planes, "uK")
        names[f"ivar{i}"] = write(folder / f"ivar{i}.fits", [share * ivar])
    sources = Sources(
        (names["map0"], names["map1"]), names["mask"], (names["ivar0"], names["ivar1"])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SHIFTS", 2)
        patch.setattr(tiles, "TURNS", 4)
        made = make_plan(folder / "toy.yaml", sources, setup.patch, TAPER)
    patches.measure(made, folder / "clean")
    return made


def judge(plan, setup, folder, change=None, source="clean", **options):
    """The nulls of the mock, with its cut maps changed: a function of the split's number and
    Q + iU of all tiles."""
    clean = plan.path.parent / source
    for split in range(plan.n_splits):
        with products.open_product(patches.path(plan, clean, split), patches.KIND) as product:
            arrays = {name: product.array(name) for name in product.names()}
            wanted = product.recipe
        if change is not None:
            p = change(split, arrays["q"] + 1j * arrays["u"])
            arrays |= {"q": p.real, "u": p.imag}
        products.write_product(patches.path(plan, folder, split), patches.KIND, wanted, arrays)
    estimator = Quadratic(setup)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "_check_rms", lambda *_: None)
        reconstruction.measure(plan, setup, lambda: estimator, folder)
    choices = Choices.of(setup, **options)
    nulls.measure(plan, setup, lambda: estimator, folder, choices)
    return judged.survey_nulls(plan, setup, folder, choices)


def failed(table):
    return {test.name for test in table.tests if test.pte < 1e-3}


def test_x(plan, setup, tmp_path):
    import time
    t=time.time()
    table = judge(plan, setup, tmp_path / "a")
    print(format_survey_nulls(table)); print(time.time()-t)
    gen = np.random.default_rng(1)
    def sources(split, p):
        g = np.random.default_rng(1)
        for row in p:
            for _ in range(1):
                y, x = g.integers(8, 24, 2)
                row[y, x] += 15.0 * np.exp(2j * g.uniform(0, np.pi))
        return p
    for name, change in {"gain": lambda s, p: p * (1 + 0.02 * s), "angle": lambda s, p: p * np.exp(2j * np.radians(0.5)), "sources": sources}.items():
        t=time.time()
        table = judge(plan, setup, tmp_path / name, change)
        print(name, failed(table)); print("\n".join(format_survey_nulls(table).splitlines()[3:22])); print(time.time()-t)
