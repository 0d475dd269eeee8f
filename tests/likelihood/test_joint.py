"""`primary: true`: the power of the patches as data beside their lensing bandpowers."""

from dataclasses import replace

import numpy as np
import pytest
from cobaya.log import LoggedError
from cobaya.model import get_model

from cobaya_cnnlens.errors import CNNLensError, ReleaseError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.fields import NUISANCES, Group
from cobaya_cnnlens.likelihood.release import (
    debiased_by_data,
    from_document,
    without,
    write_release,
)
from cobaya_cnnlens.likelihood.spectra import band_powers
from cobaya_cnnlens.likelihood.statistics import hamimeche_lewis

from ..conftest import synthetic_release


@pytest.fixture
def release():
    """Whose noise leaves every bin with power."""
    quiet = synthetic_release()
    return replace(quiet, noise=20 * quiet.noise)


def spectra(release, kk=(0.05, -0.03), ee=(0.1, -0.05, 0.02)):
    """Of relative changes band by band."""
    found = []
    for changes, edges, fiducial in (
        (kk, release.kk_edges, release.fiducial_kk),
        (ee, release.ee_edges, release.fiducial_ee),
    ):
        cl = fiducial.copy()
        for change, low, high in zip(changes, edges[:-1], edges[1:], strict=True):
            cl[low:high] *= 1 + change
        found.append(cl)
    return found


def by_hand(release, x=(0.0, 0.0, 0.0)):
    """Data, model at :func:`spectra`, and covariance of all."""
    kk, ee, x = *spectra(release), np.array(x)
    made = debiased_by_data(release)
    delta_kk = band_powers(release.kk_edges, kk) / band_powers(
        release.kk_edges, release.fiducial_kk
    )
    delta_ee = band_powers(release.ee_edges, ee) / band_powers(
        release.ee_edges, release.fiducial_ee
    )
    lensing = made.windows @ kk[: made.windows.shape[1]] + made.kk_derivatives @ (delta_kk - 1)
    lensing = lensing + made.nuisance_first @ x + made.nuisance_second @ x**2
    power = (
        release.fiducial_power
        + release.power_kk_derivatives @ (delta_kk - 1)
        + release.power_ee_derivatives @ (delta_ee - 1)
        + release.power_nuisance_first @ x
        + release.power_nuisance_second @ x**2
    )
    n = release.n_patches
    # A rotation of the polarisation moves d' and p̂ together.
    square, variance = release.squared_rotation
    turned = release.power_rotation_second
    cross = release.power_cross_covariance / n + release.power_error_cross
    cross = cross + variance * np.outer(release.rotation_second, turned)
    own = release.power_covariance / n + release.power_error_covariance
    own = own + variance * np.outer(turned, turned)
    covariance = np.block([[made.covariance, cross], [cross.T, own]])
    return (
        np.concatenate([made.bandpowers, release.power - square * turned]),
        np.concatenate([lensing, power]),
        covariance,
    )


def test_gaussian_chi2_is_the_closed_form(release):
    likelihood = BandpowerLikelihood(release, statistics="gaussian", primary=True)
    x = np.array([0.003, -0.01, 0.02])
    data, model, covariance = by_hand(release, x)
    np.testing.assert_allclose(likelihood.bandpowers, data)
    np.testing.assert_allclose(likelihood.model(*spectra(release), x), model, rtol=1e-9)
    r = data - model
    scale = np.sqrt(np.diag(covariance))
    expected = (r / scale) @ np.linalg.solve(covariance / np.outer(scale, scale), r / scale)
    assert likelihood.chi2(*spectra(release), x) == pytest.approx(expected, rel=1e-8)
    of_own = BandpowerLikelihood(release, calibration_errors=False, primary=True).covariance
    errors = release.power_error_cross
    np.testing.assert_allclose(
        (covariance - of_own)[:5, 5:], errors, rtol=1e-6, atol=1e-9 * np.abs(errors).max()
    )


def test_the_total_power_of_p_is_p(release):
    """In the variables of Hamimeche & Lewis: p̂ has its noise in it."""
    likelihood = BandpowerLikelihood(release, primary=True)
    data, model, covariance = by_hand(release)
    noise = np.concatenate([release.noise, np.zeros(3)])
    fiducial = np.concatenate(
        [release.windows @ release.fiducial_kk[:1100], release.fiducial_power]
    )
    subtracted = np.concatenate([release.bandpowers - data[:5], np.zeros(3)])
    ratio = (data + noise + subtracted) / (model + noise + subtracted)
    x = (fiducial + noise) * hamimeche_lewis(ratio)
    hartlap = (500 - 8 - 2) / 499
    scale = np.sqrt(np.diag(covariance))
    inverse = np.linalg.inv(covariance / np.outer(scale, scale))
    expected = hartlap * (x / scale) @ inverse @ (x / scale)
    assert likelihood.chi2(*spectra(release)) == pytest.approx(expected, rel=1e-7)


def test_bins_can_be_left_out(release):
    """The power stays, and what is left is the marginal of the whole."""
    some = BandpowerLikelihood(release, L_min=200, L_max=900, primary=True)
    whole = BandpowerLikelihood(release, primary=True)
    rows = np.concatenate([some.bins, [5, 6, 7]])
    np.testing.assert_array_equal(some.covariance, whole.covariance[np.ix_(rows, rows)])
    np.testing.assert_allclose(some.model(*spectra(release)), whole.model(*spectra(release))[rows])


def test_without_it_the_theorys_e_is_not_asked_for(release):
    likelihood = BandpowerLikelihood(release)
    assert not likelihood.needs_ee
    kk, ee = spectra(release)
    np.testing.assert_array_equal(likelihood.model(kk, None), likelihood.model(kk, ee))
    assert BandpowerLikelihood(release, primary=True).needs_ee


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise_debias": "fixed"}, "needs noise_debias 'data', not 'fixed'"),
        ({"primary": "false"}, "primary is 'false'; give true or false"),
    ],
)
def test_what_does_not_go_together(release, options, said):
    with pytest.raises(CNNLensError, match=said):
        BandpowerLikelihood(release, **{"primary": True} | options)


def test_too_few_patches_for_it(release):
    n = release.n_bins + len(release.power)
    few = replace(release, n_sim=n + 2)
    with pytest.raises(
        CNNLensError, match=f"'covariance.n_sim': {n + 2} simulated patches give no"
    ):
        BandpowerLikelihood(few, primary=True)
    BandpowerLikelihood(few)
    BandpowerLikelihood(replace(release, n_sim=n + 3), primary=True)


def test_a_release_without_it(release):
    bare = without(release, Group.PRIMARY)
    with pytest.raises(CNNLensError, match="does not hold the covariance with the power"):
        BandpowerLikelihood(bare, primary=True)
    document = to_document(bare)
    assert "primary" not in document
    assert not from_document(seal(document), "bare").has(Group.PRIMARY)
    wrong = replace(release, power_covariance=-release.power_covariance)
    with pytest.raises(ReleaseError, match=r"'primary.covariance' has a negative variance"):
        from_document(seal(to_document(wrong)), "wrong")


def test_through_cobaya(release, tmp_path):
    path = str(tmp_path / "r.json")
    write_release(release, path)
    name = "cobaya_cnnlens.CNNLens"

    def model(**options):
        values = {"ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "tau": 0.09, "H0": 67.94}
        values |= {"omch2": 0.12} | {f"cnnlens_{name}": 0 for name in NUISANCES}
        options |= {"release": path, "check_theory": False}
        camb = {"camb": {"extra_args": {"lens_potential_accuracy": 1}}}
        return get_model({"likelihood": {name: options}, "theory": camb, "params": values})

    joint, lensing = model(primary=True), model()
    assert "unlensed_Cl" in joint.likelihood[name].get_requirements()
    assert "unlensed_Cl" not in lensing.likelihood[name].get_requirements()
    value = joint.loglikes({})[0][0]
    component = joint.likelihood[name]
    ours = BandpowerLikelihood(component.release_data, primary=True)
    assert value == pytest.approx(ours.log_likelihood(*component.theory_spectra()))
    lensing.loglikes({})
    assert lensing.likelihood[name].theory_spectra()[1] is None
    with pytest.raises(LoggedError, match="option 'primary' is 'false'"):
        model(primary="false")
