"""Foregrounds: their maps against closed forms, and what they do to a survey of known answer."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.constants
from scipy.integrate import quad

from cobaya_cnnlens.calibrate.windows import expected_e_and_b
from cobaya_cnnlens.errors import CNNLensError, ConfigError, ProductError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.pipeline.assemble import make_release
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.plots.validation_figures import draw_foregrounds
from cobaya_cnnlens.simulate import foregrounds as simulated
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra, e_and_b
from cobaya_cnnlens.simulate.foregrounds import (
    PowerLaw,
    SourceCounts,
    dust_scaling,
    foreground_patches,
    power_law_patches,
    source_patches,
    synchrotron_scaling,
    thermodynamic,
)
from cobaya_cnnlens.simulate.instrument import ARCMIN, Instrument, convolve_beam, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.validate import foregrounds
from cobaya_cnnlens.validate.foregrounds import CLEAN, Foreground, foregrounds_table

from ..conftest import png
from ..written import HASH, NoisyOracle

# Tucci et al. 2011, C2Ex at 148 GHz: fluxes in Jy between those of the fit, dN/dS in 1/(Jy sr).
TUCCI = {3.16e-4: 1.52e8, 3.16e-3: 2.04e6, 3.16e-2: 1.77e4, 0.316: 163.0}


def generators(seed, n):
    return [np.random.default_rng([seed, i]) for i in range(n)]


def planck(ghz, kelvin):
    """Jy/sr."""
    h, c, k = scipy.constants.h, scipy.constants.c, scipy.constants.k
    nu = 1e9 * ghz
    return 1e26 * 2 * h * nu**3 / c**2 / np.expm1(h * nu / (k * kelvin))


@pytest.mark.parametrize("ghz", [30, 150, 353])
def test_brightness_and_temperature(ghz):
    """The derivative of Planck's law by differences; brightness of the Galaxy over it."""
    step = 1e-4
    slope = (planck(ghz, 2.7255 + step) - planck(ghz, 2.7255 - step)) / (2 * step)
    assert thermodynamic(ghz) == pytest.approx(1e-6 * slope, rel=1e-6)
    of_dust = (ghz / 353) ** 1.53 * planck(ghz, 19.6) / planck(353, 19.6)
    unit = thermodynamic(353) / thermodynamic(ghz)
    assert dust_scaling(ghz) == pytest.approx(of_dust * unit, rel=1e-9)
    # Brightness of a power law in brightness temperature goes as ν² T.
    unit = thermodynamic(23) / thermodynamic(ghz)
    assert synchrotron_scaling(ghz) == pytest.approx((ghz / 23) ** -1.1 * unit, rel=1e-9)


def test_counts_are_those_of_the_model():
    """In thin slices of flux; moments by quadrature; another frequency moves fluxes."""
    for flux, counted in TUCCI.items():
        above, below = (SourceCounts(1e3 * flux * f, 148.0).moment(0) for f in (1.01, 0.99))
        assert (above - below) / (0.02 * flux) == pytest.approx(counted, rel=0.07)

    def by_quadrature(power):
        nodes, values = np.log(simulated.COUNT_FLUXES), np.log(simulated.COUNTS)
        integrand = lambda s: np.exp((power + 1) * s + np.interp(s, nodes, values))  # noqa: E731
        return quad(integrand, nodes[0], np.log(0.03), points=nodes[1:3])[0]

    counts = SourceCounts(30.0, 148.0)
    for power in (0, 1, 2, 4):
        assert counts.moment(power) == pytest.approx(by_quadrature(power), rel=1e-6)
    lower = SourceCounts(30.0 * (95 / 148) ** -0.5, 95.0)
    assert lower.moment(0) == pytest.approx(counts.moment(0), rel=1e-9)
    assert lower.moment(2) == pytest.approx((148 / 95) * counts.moment(2), rel=1e-9)


def test_drawn_sources_are_counted():
    """Poisson numbers and fluxes of a large area."""
    counts, area = SourceCounts(10.0), 3.0
    fluxes = counts.draw(area, np.random.default_rng(3))
    kept = fluxes[fluxes <= 0.01]
    expected = area * counts.moment(0)
    assert len(kept) == pytest.approx(expected, abs=4 * np.sqrt(expected))
    for power in (1, 2):
        scatter = np.sqrt(area * counts.moment(2 * power))
        assert np.sum(kept**power) == pytest.approx(area * counts.moment(power), abs=4 * scatter)
    assert fluxes.max() > 0.1


def test_power_of_sources_is_white_in_e_and_b():
    geometry, counts = PatchGeometry(n_pixels=64, pad=0), SourceCounts(3.0)
    q, u = source_patches(counts, geometry, generators(4, 200))
    spectra = FlatSpectra(geometry, Bins(100, 500, 4), np.ones((64, 64)))
    e, b = e_and_b(spectra, q, u)
    for power, expected in (
        (spectra.cross(e, e), counts.power),
        (spectra.cross(b, b), counts.power),
    ):
        error = power.std(0, ddof=1) / np.sqrt(len(power))
        assert (error < 0.03 * expected).all()
        assert (np.abs(power.mean(0) - expected) < 4 * error).all()
    assert (np.abs(spectra.cross(e, b).mean(0)) < 0.03 * counts.power).all()


def test_another_cut_leaves_the_other_sources():
    """Patches without a source between the cuts are the same; the rest differ."""
    geometry = PatchGeometry(n_pixels=32)
    low, high = (
        source_patches(SourceCounts(cut), geometry, generators(5, 40)) for cut in (85.0, 100.0)
    )
    same = (np.abs(low - high) < 1e-12 * high.std()).all(axis=(0, 2, 3))
    assert 0.3 < same.mean() < 0.95


def test_a_source_has_the_shape_of_the_beam(monkeypatch):
    """S p/g in all, a Gaussian about its place."""
    geometry, beam = PatchGeometry(size_deg=0.5, n_pixels=120, pad=0), Instrument(0.0, 1.5)
    monkeypatch.setattr(SourceCounts, "draw", lambda *_: np.array([0.05]))
    seed = 6
    maps = source_patches(SourceCounts(100.0), geometry, [np.random.default_rng(seed)])
    q, u = convolve_beam(maps, beam, geometry)[:, 0]
    generator = np.random.default_rng(seed)
    y, x = generator.uniform(0.0, 120 * geometry.pixel, (1, 2))[0]
    of_q, of_u = generator.standard_normal(2) * 0.03 / np.sqrt(2)
    sigma = 1.5 * ARCMIN / np.sqrt(8 * np.log(2))
    at = geometry.pixel * np.arange(120)
    assert min(x, y, at[-1] - x, at[-1] - y) > 4 * sigma
    shape = np.exp(-((at[:, None] - y) ** 2 + (at - x) ** 2) / (2 * sigma**2))
    shape *= 0.05 / thermodynamic(150) / (2 * np.pi * sigma**2)
    for found, fraction in ((q, of_q), (u, of_u)):
        np.testing.assert_allclose(found, fraction * shape, atol=1e-3 * abs(fraction) * shape.max())


def test_power_laws_have_their_spectra():
    """Of masked patches against the exact expectation, from the lowest mode of the box on."""
    geometry, law = PatchGeometry(n_pixels=64), PowerLaw(0.3, 0.1, (-0.42, -0.8))
    ee, bb = law.spectra(np.array([80, 500]))
    d_l = np.array([80 * 81, 500 * 501]) / (2 * np.pi)
    np.testing.assert_allclose(d_l * ee, [0.3, 0.3 * (500 / 80) ** -0.42])
    np.testing.assert_allclose(d_l * bb, [0.1, 0.1 * (500 / 80) ** -0.8])
    assert PowerLaw.dust(8.8, 353.0).bb == pytest.approx(4.4)
    assert PowerLaw.synchrotron(4.3, 23.0).ee == pytest.approx(4.3)
    maps = power_law_patches(law, geometry, generators(7, 100))
    mask = cosine_mask(geometry, 0.5)
    spectra = FlatSpectra(geometry, Bins(100, 300, 6), mask)
    modes = e_and_b(spectra, *(geometry.crop(maps) * mask))
    l = np.arange(int(geometry.nyquist))
    lowest = 2 * np.pi / (simulated.BOX * geometry.n_padded * geometry.pixel)
    expected = expected_e_and_b(spectra, *(cl * (l > lowest) for cl in law.spectra(l)))
    for m, exact in zip(modes, expected, strict=True):
        power = spectra.cross(m, m)
        error = power.std(0, ddof=1) / np.sqrt(len(power))
        assert (error < 0.05 * exact).all()
        assert (np.abs(power.mean(0) - exact) < 4 * error + 0.01 * exact).all()


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("moon", 1.0, "no foreground 'moon'; there are sources, dust, synchrotron"),
        ("sources", 1e4, "a flux cut of 10000 mJy; the counts of sources at 150 GHz go from"),
        ("sources", 0.05, "a flux cut of 0.05 mJy"),
    ],
)
def test_foregrounds_that_there_are_not(kind, level, message):
    with pytest.raises(CNNLensError, match=message):
        foreground_patches(kind, level, 150.0, PatchGeometry(), generators(0, 1))


class Counting(NoisyOracle):
    """Keeps the maps it was shown."""

    def __init__(self, kappa):
        super().__init__(kappa)
        self.shown = []

    def reconstruct(self, q, u):
        self.shown.append((q, u))
        return super().reconstruct(q, u)


PATCHES = 20
DUST = {"faint": 2e3, "bright": 8e3}


@pytest.fixture(scope="module")
def measured(simulated_run):
    """A run whose foregrounds are there, and the maps that the estimator was shown, by case."""
    run = simulated_run
    settings = run.config.foregrounds.model_copy(
        update={
            "patches": PATCHES,
            "sources": [100.0],
            "dust": DUST,
            "synchrotron": {},
        }
    )
    config = run.config.model_copy(update={"foregrounds": settings})
    kappa = observe_sky(run, "test", 0).kappa[::2]
    estimator = Counting(kappa)
    foregrounds.measure(Run(config, HASH, estimator), 0)
    made = Run(config, HASH)
    cases = [CLEAN, *foregrounds.foregrounds_of(made)]
    return made, dict(zip(cases, estimator.shown, strict=True))


def of_dust(name):
    return Foreground("dust", name, DUST[name])


def test_maps_are_the_same_but_for_the_foreground(measured):
    """Without one, those of the test set; dust of four times the power is twice the map."""
    run, shown = measured
    seen = observe_sky(run, "test", 0)
    for maps, whole in zip(shown[CLEAN], (seen.q, seen.u), strict=True):
        np.testing.assert_array_equal(maps, whole[::2])
    faint, bright = (
        [a - b for a, b in zip(shown[of_dust(n)], shown[CLEAN], strict=True)] for n in DUST
    )
    for a, b in zip(faint, bright, strict=True):
        np.testing.assert_allclose(b, 2 * a, atol=1e-4 * seen.q.std())
        assert a.std() > 0.05 * seen.q.std()
        assert (a[:, run.mask == 0] == 0).all()
    # Through the beam, of which 1′ is less than can be seen in pixels of 12′.
    instrument = replace(run.config.instrument, beam_fwhm_arcmin=40.0)
    wide = Run(run.config.model_copy(update={"instrument": instrument}))
    sources = Foreground("sources", "100_mJy", 100.0)
    narrow, blurred = (foregrounds._added(r, sources, 0) for r in (run, wide))
    assert blurred.std() < 0.7 * narrow.std()
    clean = foregrounds.read(run, CLEAN, [0])
    test = Bandpowers(run).read("test", patches=PATCHES)
    for name in ("auto", "cross", "truth"):
        np.testing.assert_allclose(clean[name], getattr(test, name), rtol=1e-5)


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(measured):
    run, _ = measured
    kappa = observe_sky(run, "test", 0).kappa[::2]
    estimator = Counting(kappa)
    foregrounds.measure(Run(run.config, HASH, estimator), 0)
    assert estimator.shown == []
    one = of_dust("faint")
    where = foregrounds.path(run, one, 0)
    content = where.read_bytes()
    where.unlink()
    table = foregrounds_table(run)
    assert table.missing == [one]
    assert "not measured: dust faint" in table.table()
    foregrounds.measure(Run(run.config, HASH, estimator), 0)
    assert len(estimator.shown) == 1
    assert where.read_bytes() == content
    elsewhere = run.config.model_copy(update={"products": run.config.products / "elsewhere"})
    with pytest.raises(ProductError, match="run `cnnlens foregrounds CONFIG --index 0`"):
        foregrounds_table(Run(elsewhere, HASH))


def test_products_know_their_foreground(measured):
    run, _ = measured
    settings = run.config.foregrounds.model_copy(update={"frequency_ghz": 95.0})
    other = Run(run.config.model_copy(update={"foregrounds": settings}), HASH)
    one = of_dust("faint")
    assert foregrounds.recipe(other, CLEAN, 0) == foregrounds.recipe(run, CLEAN, 0)
    assert foregrounds.recipe(other, one, 0) != foregrounds.recipe(run, one, 0)
    renamed = replace(one, name="dim")
    assert foregrounds.recipe(run, renamed, 0) == foregrounds.recipe(run, one, 0)


def shift_of_omch2(slope, covariance, shift):
    """By least squares of whitened bandpowers, in σ."""
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    (x,), *_ = np.linalg.lstsq((root @ slope)[:, None], root @ shift, rcond=None)
    return x * np.linalg.norm(root @ slope)


def slope_of(run, likelihood):
    both = []
    for sign in (1, -1):
        theory = run.spectra(run.config.cosmology.vary(omch2=0.1185 + sign * 0.0005))
        both.append(likelihood.model(theory.kk, theory.ee))
    return (both[0] - both[1]) / 0.001


def test_biases_are_those_of_the_patches(measured):
    """κ̂ = .8κ + .02Q: its power is that of the map."""
    run, shown = measured
    table = foregrounds_table(run)
    release = make_release(run, run.config.first_survey)
    response = release.response
    spectra = run.bandpowers
    kappa = observe_sky(run, "test", 0).kappa[::2]
    dust = of_dust("bright")
    clean, with_dust = (spectra.auto(0.8 * kappa + 0.02 * shown[f][0]) for f in (CLEAN, dust))
    shift = (with_dust - clean) / response**2
    biases = {b.debias: b for b in table.biases if b.foreground == dust}
    own = [foregrounds.read(run, f, [0])["power"] for f in (dust, CLEAN)]
    corrected = shift - (own[0] - own[1]) @ release.debias_coefficients.T
    for name, each in (("fixed", shift), ("data", corrected)):
        likelihood = BandpowerLikelihood(release, name)
        width, bias = np.sqrt(np.diag(likelihood.covariance)), biases[name]
        np.testing.assert_allclose(bias.bins, each.mean(0) / width, rtol=1e-3)
        error = each.std(0, ddof=1) / np.sqrt(PATCHES)
        np.testing.assert_allclose(bias.bins_error, error / width, rtol=1e-3)
        slope = slope_of(run, likelihood)
        shifts = [shift_of_omch2(slope, likelihood.covariance, s) for s in each]
        assert bias.omch2 == pytest.approx(np.mean(shifts), rel=0.02)
        assert bias.omch2_error == pytest.approx(np.std(shifts, ddof=1) / PATCHES**0.5, rel=0.02)
        sigma = (slope @ np.linalg.inv(likelihood.covariance) @ slope) ** -0.5
        assert table.sigma[name] == pytest.approx(sigma, rel=0.02)
    dust = biases["data"]
    rows = [line.split() for line in table.table().splitlines()]
    assert ["dust", "bright", f"{dust.omch2:+.2f}", "±", f"{dust.omch2_error:.2f}"] in [
        row[:5] for row in rows
    ]
    assert len(png(draw_foregrounds(table))) > 10_000


def test_a_configuration_without_foregrounds(measured):
    run, _ = measured
    nothing = {"sources": [], "dust": {}, "synchrotron": {}}
    settings = run.config.foregrounds.model_copy(update=nothing)
    with pytest.raises(ConfigError, match="key 'foregrounds' lists neither sources"):
        foregrounds_table(Run(run.config.model_copy(update={"foregrounds": settings}), HASH))
