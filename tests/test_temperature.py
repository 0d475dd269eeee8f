"""Temperature of simulated skies, and what leaks of it into polarisation."""

import numpy as np
import pytest

from cobaya_cnnlens.errors import SpectrumError
from cobaya_cnnlens.pipeline import skies, temperature
from cobaya_cnnlens.pipeline.config import PatchCentres
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate.instrument import Systematics, convolve_beam
from cobaya_cnnlens.simulate.patches import PatchGeometry, gradient_at, point_patches, scalar_at
from cobaya_cnnlens.simulate.shards import FIELDS, HarmonicSky, write_shard
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.simulate.temperature import lensed_temperature, temperature_alm
from cobaya_cnnlens.theory.camb import TemperatureSpectra

LMAX = 300
L = np.arange(LMAX + 1)
EE = np.where(L > 1, 1e-3 / (L + 1.0), 0.0)
TT = 1.0 / (L + 1.0) ** 2
TE = 0.4 * np.sin(L / 40.0) * np.sqrt(TT * EE)


def cross(a, b):
    """Σ_m a_lm b_lm*/(2l + 1), (LMAX + 1,)."""
    product = (a * b.conj()).real
    starts = [m * (2 * LMAX + 1 - m) // 2 for m in range(LMAX + 1)]
    sums = np.zeros(LMAX + 1)
    for m, start in enumerate(starts):
        sums[m:] += (1 + (m > 0)) * product[start + m : start + LMAX + 1]
    return sums / (2 * L + 1)


@pytest.fixture(scope="module")
def sky():
    e, phi = (unit_alm(LMAX, np.random.default_rng(i)) for i in (1, 2))
    power = np.where(L > 1, 1e-9 / (L + 1.0) ** 4, 0.0)
    return HarmonicSky(scale_alm(e, np.sqrt(EE)), scale_alm(phi, np.sqrt(power)), LMAX)


def test_temperature_is_drawn_to_the_skys_e(sky):
    """Its spectrum and that with E, each l in units of its cosmic variance: of mean 0 and rms 1."""
    t = temperature_alm(sky, EE, TemperatureSpectra(TT, TE), 7, "test", 0)
    inside = L > 1
    modes = (2 * L + 1)[inside]
    for found, expected, variance in (
        (cross(t, t), TT, 2 * TT**2),
        (cross(t, sky.elm), TE, TT * EE + TE**2),
    ):
        pull = ((found - expected)[inside]) / np.sqrt(variance[inside] / modes)
        assert abs(pull.mean()) < 4 / np.sqrt(len(pull))
        assert np.std(pull) == pytest.approx(1.0, abs=0.15)
    other = temperature_alm(sky, EE, TemperatureSpectra(TT, TE), 7, "test", 1)
    assert abs(np.vdot(t, other).real) < 0.5 * np.vdot(t, t).real


def test_spectra_that_are_refused(sky):
    with pytest.raises(SpectrumError, match="at l = 2"):
        temperature_alm(sky, EE, TemperatureSpectra(TT, np.sqrt(TT * EE) * 1.1), 7, "test", 0)
    with pytest.raises(SpectrumError, match="end below the sky's lmax = 300"):
        temperature_alm(sky, EE, TemperatureSpectra(TT[:99], TE), 7, "test", 0)


def test_temperature_is_lensed_by_the_skys_deflection(sky):
    """T(n + ∇φ) ≈ T + ∇φ·∇T for a small one."""
    geometry = PatchGeometry(n_pixels=16, size_deg=10.0, pad=0)
    pointing = point_patches(np.array([[1.2, 0.3]]), geometry)
    t = temperature_alm(sky, EE, TemperatureSpectra(TT, TE), 7, "test", 0)
    slopes = [gradient_at(alm, LMAX, pointing, 1) for alm in (t, sky.philm)]
    change = lensed_temperature(t, sky, pointing, 1) - scalar_at(t, LMAX, pointing, 1)
    first = (slopes[0] * slopes[1]).sum(1)
    np.testing.assert_allclose(change, first, atol=0.05 * first.std())


@pytest.fixture
def run(small_config):
    """A configuration whose skies have 4 patches."""
    return Run(
        small_config.model_copy(update={"centres": PatchCentres(nside=1, poles=4)}), "a" * 64
    )


def test_what_leaks_is_in_the_maps(run, monkeypatch):
    """ε B ∗ T̃ in Q and in U, and nothing where nothing leaks."""
    n = run.config.patch.n_padded
    generator = np.random.default_rng(3)
    fields = {f: generator.standard_normal((4, n, n)).astype("f4") for f in FIELDS}
    write_shard(skies.path(run, "test", 0), skies.recipe(run, "test", 0), fields)
    t = 100 * generator.standard_normal((4, n, n))
    monkeypatch.setattr(temperature, "read", lambda *which: t)
    clean = observe_sky(run, "test", 0)
    leaky = observe_sky(run, "test", 0, systematics=Systematics(leakage=(0.01, -0.002)))
    expected = convolve_beam(t, run.config.instrument, run.config.patch) * run.mask
    np.testing.assert_allclose(leaky.q - clean.q, 0.01 * expected, atol=1e-5)
    np.testing.assert_allclose(leaky.u - clean.u, -0.002 * expected, atol=1e-5)
    monkeypatch.setattr(temperature, "read", None)
    observe_sky(run, "test", 0, systematics=Systematics(gain=0.01))


def test_temperature_is_made_once(run):
    """Of CAMB's rms of ~110 µK on a sky, less what patches of 5° miss; and then read."""
    found = temperature.read(run, "test", 0)
    n = run.config.patch.n_padded
    assert found.shape == (4, n, n)
    assert 60 < found.std() < 160
    made = temperature.path(run, "test", 0)
    date = made.stat().st_mtime_ns
    np.testing.assert_array_equal(temperature.read(run, "test", 0), found)
    assert made.stat().st_mtime_ns == date
