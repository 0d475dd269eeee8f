"""The same χ² through other people's codes, from the exported files."""

from dataclasses import replace

import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.export import export_release, linear_model
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.release import read_release


@pytest.fixture(scope="module")
def shipped():
    return read_release("laptop_high")


@pytest.fixture(scope="module")
def cosmologies(shipped):
    """Six pairs of smooth, different spectra, some far from the fiducial, to l = 4500."""
    l = np.arange(4501)
    pad = [
        np.concatenate([c, np.full(4501 - len(c), c[-1])])
        for c in (shipped.fiducial_kk, shipped.fiducial_ee)
    ]
    changes = ((0, 0), (0.05, 0), (0, 0.05), (-0.1, 0.04), (0.2, -0.1), (0.02, 0.02))
    return [
        (pad[0] * (1 + a * (1 + l / 3000)), pad[1] * (1 + b * np.cos(l / 200.0)))
        for a, b in changes
    ]


def dls(clkk, clee):
    """Spectra as CMBlikes takes them: [L(L+1)]² C^φφ/2π and l(l+1) C_l/2π."""
    l = np.arange(len(clkk))
    return {"pp": 4 * clkk / (2 * np.pi), "ee": l * (l + 1) * clee / (2 * np.pi)}


@pytest.mark.parametrize("noise_debias", ["linear", "fixed"])
def test_matrices_are_the_model(shipped, cosmologies, noise_debias):
    model = linear_model(shipped, noise_debias)
    likelihood = BandpowerLikelihood(shipped, noise_debias)
    n = model.lmax + 1
    for kk, ee in cosmologies:
        got = (model.windows + model.kk) @ kk[:n] + model.ee @ ee[:n] - model.fiducial_correction
        np.testing.assert_allclose(got, likelihood.model(kk, ee), rtol=1e-9)


@pytest.mark.parametrize("noise_debias", ["linear", "fixed"])
def test_chi2_through_cmblikes(shipped, cosmologies, tmp_path, noise_debias):
    from cobaya.likelihoods.base_classes import CMBlikes

    path = export_release(shipped, "cmblikes", tmp_path / "out", noise_debias)
    other = CMBlikes({"dataset_file": str(path), "path": str(path.parent)})
    ours = BandpowerLikelihood(shipped, noise_debias)
    for kk, ee in cosmologies:
        want = ours.chi2(kk, ee)
        assert -2 * other.log_likelihood(dls(kk, ee)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("noise_debias", ["linear", "fixed"])
def test_chi2_through_candl(shipped, cosmologies, tmp_path, noise_debias):
    candl = pytest.importorskip("candl")
    path = export_release(shipped, "candl", tmp_path / "out", noise_debias)
    ours = BandpowerLikelihood(shipped, noise_debias)
    n = linear_model(shipped).lmax + 1
    other = candl.LensLike(str(path))
    for kk, ee in cosmologies:
        spectra = {"kk": kk[2:n], "EE": dls(kk, ee)["ee"][2:n]}
        got = float(other.chi_square({"Dl": spectra}))
        assert got == pytest.approx(ours.chi2(kk, ee), rel=1e-6)


def test_sacc_holds_data_windows_and_covariance(shipped, cosmologies, tmp_path):
    sacc = pytest.importorskip("sacc")
    data = sacc.Sacc.load_fits(str(export_release(shipped, "sacc", tmp_path / "out", "fixed")))
    _, cl, cov, index = data.get_ell_cl(
        "cmb_convergence_cl", "ck", "ck", return_cov=True, return_ind=True
    )
    windows = data.get_bandpower_windows(index)
    kk, ee = cosmologies[3]
    r = cl - windows.weight.T @ kk[: len(windows.values)]
    ours = BandpowerLikelihood(shipped, "fixed", "gaussian")
    assert r @ np.linalg.solve(cov, r) == pytest.approx(ours.chi2(kk, ee), rel=1e-6)


def test_what_cannot_be_exported(release, tmp_path):
    with pytest.raises(CNNLensError, match="'quadratic', which other formats cannot hold"):
        export_release(release, "candl", tmp_path / "out", "quadratic")
    with pytest.raises(CNNLensError, match="format is 'cosmomc'; choose one of"):
        export_release(release, "cosmomc", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(CNNLensError, match="there: exists already"):
        export_release(release, "candl", tmp_path / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    export_release(replace(release, name="one"), "cmblikes", tmp_path / "new")
    assert (tmp_path / "new" / "one.dataset").exists()
