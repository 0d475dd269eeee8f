"""Surveys of one calibration as one."""

from dataclasses import replace

import numpy as np
import pytest
from cobaya.log import LoggedError
from cobaya.model import get_model
from typer.testing import CliRunner

from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.combined import calibration_digest, combine
from cobaya_cnnlens.likelihood.fields import Group
from cobaya_cnnlens.likelihood.release import check_arrays, read_release, without, write_release

from ..conftest import synthetic_release


def surveys():
    """Three of 40, 10 and 30 patches by one calibration."""
    release = synthetic_release()
    return [
        replace(
            release,
            name=f"part{i}",
            n_patches=n,
            bandpowers=factor * release.bandpowers,
            power=power * release.fiducial_power,
            provenance=release.provenance | {"skies": {"maps": i}},
        )
        for i, (n, factor, power) in enumerate([(40, 1.05, 1.01), (10, 0.9, 0.97), (30, 1.0, 1.02)])
    ]


def test_the_same_as_their_joint_likelihood():
    """χ² of all data with the covariance that knows what the calibration shares, up to what no
    parameter moves: exactly, where one model holds for all (Gaussian, no data in the model)."""
    parts = surveys()
    whole = combine(parts)
    assert whole.n_patches == 80
    n, k = parts[0].n_bins, len(parts)
    own = [part.fixed_patch_covariance / part.n_patches for part in parts]
    shared = parts[0].fixed_noise_covariance
    covariance = np.kron(np.ones((k, k)), shared)
    for i, block in enumerate(own):
        covariance[i * n : (i + 1) * n, i * n : (i + 1) * n] += block
    inverse = np.linalg.inv(covariance)
    likelihood = BandpowerLikelihood(whole, "fixed", "gaussian")
    differences = []
    for kk in (1.0, 1.1, 0.93):
        spectra = kk * whole.fiducial_kk, whole.fiducial_ee
        r = np.concatenate(
            [BandpowerLikelihood(part, "fixed", "gaussian").residuals(*spectra) for part in parts]
        )
        differences.append(r @ inverse @ r - likelihood.chi2(*spectra))
    np.testing.assert_allclose(differences, differences[0], rtol=1e-7)
    # As if they were independent: the calibration's error would shrink.
    apart = np.linalg.inv(sum(np.linalg.inv(block + shared) for block in own))
    assert np.diag(apart)[0] < 0.97 * np.diag(likelihood.covariance)[0]


def test_their_power_is_that_of_all_patches():
    parts = surveys()
    whole = combine(parts, "all")
    np.testing.assert_allclose(whole.power / parts[0].fiducial_power, (40.4 + 9.7 + 30.6) / 80)
    assert whole.provenance["combined"]["part1"] == {"n_patches": 10, "skies": {"maps": 1}}
    assert combine(parts[:1]) is parts[0]


def test_what_shares_no_calibration_is_refused():
    first, second, _ = surveys()
    assert calibration_digest(first) == calibration_digest(second)
    other = replace(second, noise=1.0001 * second.noise)
    with pytest.raises(ReleaseError, match=r"'part1' has the calibration .* with a suffix"):
        combine([first, other])
    for name in ("debias_cross", "fiducial_ee", "fixed_noise_covariance"):
        other = replace(second, **{name: 2 * getattr(second, name)})
        with pytest.raises(ReleaseError, match="has the calibration"):
            combine([first, other])
    with pytest.raises(ReleaseError, match="hold the same bandpowers"):
        combine([first, replace(first, name="again")])
    with pytest.raises(ReleaseError, match="no release to combine"):
        combine([])


def test_surveys_without_power_are_combined():
    parts = [without(part, *(g for g in Group if g is not Group.ALWAYS)) for part in surveys()]
    whole = combine(parts, "all")
    assert not whole.has(Group.DEBIAS)
    check_arrays(whole)


def test_the_shipped_mocks_share_theirs():
    names = ("refined_fiducial", "refined_low", "refined_high")
    assert len({calibration_digest(read_release(name)) for name in names}) == 1


def test_likelihood_and_command_take_several(tmp_path):
    files = []
    for part in surveys()[:2]:
        files.append(str(tmp_path / f"{part.name}.json"))
        write_release(replace(part, noise=20 * part.noise), files[-1])
    out = tmp_path / "both.json"
    result = CliRunner().invoke(app, ["release", "combine", *files, "--out", str(out)])
    assert result.exit_code == 0, result.output
    given = {"omch2": 0.12, "ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "tau": 0.09, "H0": 67.94}
    given |= {f"cnnlens_{name}": 0 for name in ("gain", "beam", "noise")}
    name = "cobaya_cnnlens.CNNLens"

    def log_likelihood(release):
        info = {
            "likelihood": {name: {"release": release, "check_theory": False}},
            "theory": {"camb": {"extra_args": {"lens_potential_accuracy": 1}}},
            "params": given,
        }
        return get_model(info).loglikes({})[0][0]

    assert log_likelihood(files) == pytest.approx(log_likelihood(str(out)), rel=1e-8)
    with pytest.raises(LoggedError, match="hold the same bandpowers"):
        log_likelihood(files[:1] * 2)
