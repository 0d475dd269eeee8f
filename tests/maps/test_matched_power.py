"""Matched simulations have the power of the survey, without which the null of l_max fails."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.matched_power import PRIOR, MatchedPower
from cobaya_cnnlens.maps.tile_maps import TilePatches
from cobaya_cnnlens.maps.tile_nulls import Bench, Choices
from cobaya_cnnlens.maps.tiles import Tile
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import Instrument, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.validate.survey_nulls import relative

# Of C^κκ, and of C^EE at both ends.
TRUTH = (1.6, 1.05, 0.9)
GEOMETRY = PatchGeometry(2.5, 64)
N_TILES = 24


@pytest.fixture(scope="module")
def setup(fiducial):
    made = MapSetup(
        *("small", GEOMETRY, Instrument(1.0, 1.0, 0.4), Bins(72, 288, 7), "a" * 64, {}, 1, None)
    )
    vars(made)["theory"] = fiducial
    return made


@pytest.fixture(scope="module")
def tiles(setup):
    """Q and U of tiles without holes, yet to be drawn."""
    ivar = np.full((1, 64, 64), setup.instrument.noise_rms(GEOMETRY) ** -2)
    blank = np.zeros((1, 64, 64))
    made = [Tile(i, np.zeros(2), GEOMETRY, setup.mask, ivar) for i in range(N_TILES)]
    return [TilePatches(tile, blank, blank, blank[0], blank[0]) for tile in made]


def bench_of(setup, power=None):
    own = QuadraticEstimator(GEOMETRY, setup.instrument, setup.mask, setup.theory, leakage="pure")
    estimator = SimpleNamespace(reconstruct=lambda q, u, rms: own.reconstruct(q, u))
    bench = Bench(setup, estimator, Choices.of(setup))
    if power is not None:
        bench.match(MatchedPower(power, bench.reach))
    return bench


def low_and_all(bench, tiles):
    """Power of the null, and of κ̂, of one simulation of each tile."""
    rows = [bench._measured(bench.simulated(maps, 0), None, None) for maps in tiles]
    return np.stack([[row["low"], row["kk"]] for row in rows])


def test_the_null_of_l_max_holds_for_another_power_of_kappa_and_e_when_it_is_matched(setup, tiles):
    """A survey of the same phases and noise: fiducial simulations fail it, matched ones do not."""
    truth = bench_of(setup, TRUTH)
    survey = [truth.simulated(maps, 0) for maps in tiles]
    kappas = [truth.estimator.reconstruct(m.q[None], m.u[None], None)[0] for m in survey]
    bench = bench_of(setup)
    merged = {"survey": low_and_all(truth, tiles), "fiducial": low_and_all(bench, tiles)}
    power = bench.measure_power(list(zip(survey, kappas, strict=True)))
    merged["matched"] = low_and_all(bench, tiles)
    # C^κκ to 7% in 150 square degrees of quadratic κ̂, C^EE to 2%.
    np.testing.assert_allclose(power.factors, TRUTH, rtol=0.12)
    one = {name: setup.spectra.merge(values, 7) for name, values in merged.items()}
    shift = {name: relative(one["survey"], one[name]).mean() for name in ("fiducial", "matched")}
    assert shift["fiducial"] < -0.03
    assert abs(shift["matched"]) < 0.3 * abs(shift["fiducial"])


def test_a_fit_without_noise_is_exact_and_one_without_data_stays_where_it_was():
    spectra = FlatSpectra(GEOMETRY, Bins(72, 288, 7), cosine_mask(GEOMETRY, 0.4))
    at = spectra.bins.centres / spectra.bins.edges[-1]
    signal, noise = 1.0 / (1.0 + 9.0 * at), 0.3
    e = 1.0 + 0.1 * (1.0 - at) - 0.2 * at
    kk = 0.25 * signal + noise
    powers = {
        "kk": kk,
        "cross": 0.5 * signal,
        "kappa": signal,
        "tile_kk": kk + 0.3 * np.sqrt(0.25 * signal * kk),
        "ee": signal + noise,
        "signal": signal,
        "tile_ee": e * signal + noise,
    }
    many = {name: np.tile(values, (4000, 1)) for name, values in powers.items()}
    start = MatchedPower((2.0, 1.0, 1.0), float(spectra.bins.edges[-1]))
    np.testing.assert_allclose(start.updated(spectra, many).factors, (2.6, 1.1, 0.8), rtol=2e-3)
    faint = {"cross": 1e-6 * many["cross"], "signal": 1e-6 * signal + 0 * many["signal"]}
    assert start.updated(spectra, many | faint).factors == pytest.approx((2.0, 1.0, 1.0), abs=PRIOR)


def test_spectra_follow_the_factors(fiducial):
    theory = replace(fiducial, ee=np.ones(5001), kk=np.ones(5001))
    made = MatchedPower((1.2, 1.1, 0.9), 2000.0).spectra(theory)
    np.testing.assert_array_equal(made.kk, 1.2)
    np.testing.assert_allclose(made.ee[[0, 1000, 2000, 4000]], [1.1, 1.0, 0.9, 0.9])
