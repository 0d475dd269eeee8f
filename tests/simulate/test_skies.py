import healpy
import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, seed_sequence, unit_alm


def test_unit_alm_have_unit_spectrum():
    alm = unit_alm(400, np.random.default_rng(0))
    cl = healpy.alm2cl(alm)
    l = np.arange(401)
    # 2l+1 modes each: the mean over l ≥ 2 has standard error sqrt(2/Σ(2l+1)).
    mean = np.average(cl[2:], weights=2 * l[2:] + 1)
    assert abs(mean - 1) < 4 * np.sqrt(2 / np.sum(2 * l[2:] + 1))
    assert np.all(alm[:401].imag == 0)


def test_scale_alm_is_healpys_almxfl():
    alm = unit_alm(60, np.random.default_rng(1))
    factor = np.linspace(0, 2, 61)
    np.testing.assert_allclose(scale_alm(alm, factor), healpy.almxfl(alm, factor), rtol=1e-14)


def test_scale_alm_refuses_a_wrong_length():
    with pytest.raises(CNNLensError, match="does not fit"):
        scale_alm(unit_alm(60, np.random.default_rng(1)), np.ones(50))


def test_seeds_differ_between_stages_and_indices():
    states = [
        tuple(seed_sequence(*key).generate_state(4))
        for key in ((1, "train", 0), (1, "train", 1), (1, "test", 0), (2, "train", 0))
    ]
    assert len(set(states)) == 4


def test_sky_follows_the_spectra_with_fixed_phases(fiducial):
    from dataclasses import replace

    doubled = replace(fiducial, ee=4 * fiducial.ee)
    one = draw_sky(fiducial, 500, 3, "train", 7)
    two = draw_sky(doubled, 500, 3, "train", 7)
    np.testing.assert_allclose(two.elm, 2 * one.elm, rtol=1e-12)
    np.testing.assert_array_equal(two.philm, one.philm)
    ratio = healpy.alm2cl(one.elm)[30:] / fiducial.ee[30:501]
    assert np.average(ratio, weights=np.arange(30, 501)) == pytest.approx(1, abs=0.02)
    # E and φ are drawn independently.
    ee, pp, ep = (
        healpy.alm2cl(*pair)[30:]
        for pair in ((one.elm, one.elm), (one.philm, one.philm), (one.elm, one.philm))
    )
    assert abs(np.mean(ep / np.sqrt(ee * pp))) < 0.01


def test_short_spectra_are_refused(fiducial):
    with pytest.raises(CNNLensError, match="needs lmax = 6000"):
        draw_sky(fiducial, 6000, 1, "train", 0)
