"""A rotation of the polarisation in the release and in the likelihood."""

from dataclasses import replace

import numpy as np
import pytest
from cobaya.log import LoggedError
from cobaya.model import get_model

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.combined import combine
from cobaya_cnnlens.likelihood.document import seal, to_document
from cobaya_cnnlens.likelihood.export import linear_model
from cobaya_cnnlens.likelihood.fields import Group
from cobaya_cnnlens.likelihood.release import from_document, without, write_release
from cobaya_cnnlens.likelihood.summary import release_table

from ..conftest import synthetic_release

NAME = "cobaya_cnnlens.CNNLens"
ANGLE, ERROR = 0.15, 0.03
SQUARE = ANGLE**2 - ERROR**2
VARIANCE = (2 * ANGLE * ERROR) ** 2 + 2 * ERROR**4


def rotated_and_still(release, **options):
    """The likelihoods with the rotation of the release, and without."""
    return (
        BandpowerLikelihood(r, statistics="hartlap", **options)
        for r in (release, without(release, Group.ROTATION))
    )


def test_the_rotation_is_taken_off(release):
    """d' by B (α̂² − σ²), and with it the total power that the scatter goes with."""
    release = replace(release, curvature=0 * release.curvature)
    rotated, still = rotated_and_still(release)
    change = SQUARE * release.rotation_second
    np.testing.assert_allclose(still.bandpowers - rotated.bandpowers, change, rtol=1e-9)
    np.testing.assert_allclose(rotated.correction - still.correction, change, rtol=1e-9)
    exported = linear_model(release)
    np.testing.assert_array_equal(exported.release.bandpowers, rotated.bandpowers)
    np.testing.assert_array_equal(exported.release.covariance, rotated.covariance)


def test_its_error_is_the_surveys_own(release):
    """That of α̂ belongs to the survey's own scatter, that of B to the calibration."""
    release = replace(release, curvature=0 * release.curvature)
    rotated, still = rotated_and_still(release)
    own = VARIANCE * np.outer(release.rotation_second, release.rotation_second)
    scale = still.own_covariance
    assert (np.diag(own) > 1e-3 * np.diag(scale)).all()
    np.testing.assert_allclose(rotated.own_covariance - scale, own, atol=1e-12 * scale.max())
    of_b = np.diag((SQUARE * release.rotation_second_errors) ** 2)
    added = rotated.covariance - still.covariance - own
    np.testing.assert_allclose(added, of_b, atol=1e-9 * of_b.max())


def test_no_pull_of_a_true_zero(release):
    """α̂ of surveys whose polarisation is not rotated moves d' by nothing on average; α̂² would."""
    drawn = ERROR * np.random.default_rng(1).standard_normal(4000)
    squares = [
        replace(release, rotation=np.array([[a, ERROR, 1.0]])).squared_rotation for a in drawn
    ]
    mean, variance = np.mean(squares, axis=0)
    spread = np.std(squares, axis=0)[0]
    assert abs(mean) < 4 * spread / np.sqrt(4000) < 0.1 * ERROR**2
    # At a true zero α̂² counts once more in its own variance.
    assert spread**2 == pytest.approx(2 * ERROR**4, rel=0.2)
    assert variance == pytest.approx(6 * ERROR**4, rel=0.2)


def test_the_power_is_turned_back_too(release):
    """As data, beside the bandpowers and with their covariance."""
    rotated, still = rotated_and_still(release, primary=True)
    n = release.n_bins
    change = np.concatenate([release.rotation_second, release.power_rotation_second])
    moved = still.bandpowers - rotated.bandpowers
    np.testing.assert_allclose(moved[n:], SQUARE * release.power_rotation_second, rtol=1e-9)
    added = rotated.own_covariance - still.own_covariance
    expected = VARIANCE * np.outer(change, change)
    scale = np.sqrt(np.outer(*[np.diag(still.own_covariance)] * 2))
    np.testing.assert_allclose(added / scale, expected / scale, atol=1e-9)


def test_a_fixed_noise_bias_has_no_correction(release):
    rotated, still = rotated_and_still(release, noise_debias="fixed")
    np.testing.assert_array_equal(rotated.bandpowers, still.bandpowers)
    np.testing.assert_array_equal(rotated.covariance, still.covariance)


def test_surveys_of_rotations_of_their_own():
    """Each counts for its patches: the mean of their corrections is that of the whole."""
    release = without(synthetic_release(), Group.SECOND_ORDER)
    angles = (0.2, -0.1, None)
    parts = [
        replace(
            release if angle is not None else without(release, Group.ROTATION),
            name=f"part{i}",
            n_patches=n,
            bandpowers=(1 + 0.01 * i) * release.bandpowers,
            **({} if angle is None else {"rotation": np.array([[angle, 0.03, 1.0]])}),
        )
        for i, (n, angle) in enumerate(zip((40, 10, 30), angles, strict=True))
    ]
    whole = combine(parts)
    expected = np.average([part.correction for part in parts], axis=0, weights=(40, 10, 30))
    np.testing.assert_allclose(whole.correction, expected, rtol=1e-12)
    variances = [part.squared_rotation[1] for part in parts]
    by_hand = np.square(np.array((40, 10, 30)) / 80) @ variances
    assert whole.squared_rotation[1] == pytest.approx(by_hand, rel=1e-12)
    from_document(seal(to_document(whole)), "whole")
    again = combine([whole, replace(parts[0], name="fourth", bandpowers=1.1 * whole.bandpowers)])
    np.testing.assert_allclose(again.rotation[:, 2], [40 / 120, 10 / 120, 40 / 120])
    assert "0.2000 ± 0.0300 deg, -0.1000 ± 0.0300 deg" in release_table(whole)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.1, 0.0, 1.0], "positive standard errors"),
        ([0.1, 0.02, 0.0], "parts of the patches"),
        ([0.1, 0.02, 1.1], "parts of the patches that sum to at most one"),
        ([-0.7, 0.05, 1.0], r"by -0.7 ± 0.05 degrees, whose effect was simulated to 0.5; rotate"),
        ([0.1, 0.6, 1.0], r"standard error of 0.6 degrees.*simulated to 0.5; give more patches"),
        ([120.0, 50.0, 1.0], r"standard error of 50 degrees"),
        ([0.1, 0.02], r"shape \(1, 2\); 3 entries are needed"),
    ],
)
def test_a_wrong_rotation_is_refused(release, row, message):
    wrong = replace(release, rotation=np.array([row]))
    with pytest.raises(ReleaseError, match=f"field 'data.rotation'.*{message}"):
        from_document(seal(to_document(wrong)), "wrong")
    with pytest.raises(ReleaseError, match=message):
        BandpowerLikelihood(wrong)


def test_a_rotation_as_far_as_was_simulated(release):
    """The configuration may step further; the error of α̂ is granted."""
    for angle, step in ((0.56, None), (0.9, 1.0)):
        provenance = release.provenance | ({"rotation_step": step} if step else {})
        row = np.array([[angle, 0.03, 1.0]])
        made = replace(release, rotation=row, provenance=provenance)
        from_document(seal(to_document(made)), "far")


@pytest.mark.parametrize("place", ["input", "block"])
@pytest.mark.parametrize("suffix", ["", "_north"])
def test_an_input_that_has_the_angle_is_told(release, tmp_path, place, suffix):
    write_release(replace(release, noise=20 * release.noise), tmp_path / "r.json")
    angle = {f"cnnlens_angle{suffix}": {"prior": {"dist": "norm", "loc": 0, "scale": 0.1}}}
    options = {"release": str(tmp_path / "r.json"), "suffix": suffix, "check_theory": False}
    point = {"omch2": 0.12, "ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "H0": 67.94}
    info = {
        "likelihood": {NAME: options | ({"params": angle} if place == "block" else {})},
        "theory": {"cobaya_cnnlens.EmulatedCAMB": {"emulator": "lcdm"}},
        "params": point | (angle if place == "input" else {}),
    }
    with pytest.raises(LoggedError, match=f"'cnnlens_angle{suffix}' is no parameter any more"):
        get_model(info)
