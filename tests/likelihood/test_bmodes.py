"""The likelihood of r from B modes and their lensing template."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cobaya.model import get_model

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood import bmodes
from cobaya_cnnlens.likelihood.bmodes import BBData, BBLikelihood, matrices, read_bb, write_bb

MODES = np.array([40.0, 90.0, 150.0])
ROWS, COLUMNS = [0, 0, 1], [0, 1, 1]


def wishart_covariance(power, modes):
    """Of BB, Bt and tt of Gaussian modes, bin by bin."""
    n = 3 * len(modes)
    covariance = np.zeros((n, n))
    for b, (c, count) in enumerate(zip(power, modes, strict=True)):
        for x in range(3):
            for y in range(3):
                i, j, k, l = ROWS[x], COLUMNS[x], ROWS[y], COLUMNS[y]
                value = (c[i, k] * c[j, l] + c[i, l] * c[j, k]) / count
                covariance[3 * b + x, 3 * b + y] = value
    return covariance


def toy(**changes):
    """Three bins of Gaussian modes."""
    lensing = np.array([2.0e-6, 2.1e-6, 2.2e-6])
    data = BBData(
        name="toy",
        description="Gaussian modes",
        edges=np.array([30.0, 90.0, 150.0, 210.0]),
        bandpowers=np.zeros((3, 3)),
        tensor=np.array([6e-5, 3e-5, 5e-6]),
        lensing=lensing,
        noise=0.1 * lensing,
        cross=0.8 * lensing,
        template_signal=0.6 * lensing,
        template_noise=0.2 * lensing,
        covariance=np.eye(9),
        n_sim=10**9,  # the covariance is known
        truth={"r": 0.003, "Alens": 1.0},
    )
    power = data.model(0.003, 1.0)
    data = replace(
        data,
        bandpowers=power[:, ROWS, COLUMNS],
        covariance=wishart_covariance(data.model(0.0, 1.0), MODES),
    )
    return replace(data, **changes)


def draws(power, modes, n, generator):
    """Measured BB, Bt and tt of Gaussian modes, (n, n_bins, 3)."""
    drawn = []
    for c, count in zip(power, modes, strict=True):
        fields = np.linalg.cholesky(c) @ generator.standard_normal((n, 2, int(count)))
        drawn.append((fields @ fields.swapaxes(1, 2) / count)[:, ROWS, COLUMNS])
    return np.stack(drawn, axis=1)


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize(("r", "alens"), [(0.0, 1.0), (0.01, 1.1), (-0.001, 0.8)])
def test_it_is_the_wishart_likelihood_of_gaussian_modes(template, r, alens):
    n = 2 if template else 1
    measured = draws(toy().model(0.003, 1.0), MODES, 1, np.random.default_rng(3))[0]
    likelihood = BBLikelihood(toy(bandpowers=measured), template)
    x = matrices(measured)[:, :n, :n] @ np.linalg.inv(toy().model(r, alens)[:, :n, :n])
    trace = np.trace(x, axis1=1, axis2=2)
    expected = (MODES * (trace - np.log(np.linalg.det(x)) - n)).sum()
    assert likelihood.chi2(r, alens) == pytest.approx(expected, rel=1e-7)


def test_the_model_written_out():
    """At r and A_L of neither zero nor one."""
    data = toy()
    expected = [
        [0.02 * 6e-5 + 1.2 * 2e-6 + 2e-7, 1.2 * 1.6e-6],
        [1.2 * 1.6e-6, 1.2 * 1.2e-6 + 4e-7],
    ]
    np.testing.assert_allclose(data.model(0.02, 1.2)[0], expected)


def test_the_error_of_the_covariance_widens_the_posterior():
    """The t distribution of Percival et al. 2022, written out for nine bandpowers."""
    measured = draws(toy().model(0.003, 1.0), MODES, 1, np.random.default_rng(3))[0]
    exact = BBLikelihood(toy(bandpowers=measured)).chi2(0.01, 1.1)
    few = BBLikelihood(toy(bandpowers=measured, n_sim=40))
    assert few.chi2(0.01, 1.1) == pytest.approx(exact * (40 - 9 - 2) / 39, rel=1e-6)
    b = 7 * (40 - 9 - 2) / ((40 - 9 - 1) * (40 - 9 - 4))
    power = 2 + 2 + (39 + b) / (1 + b)
    expected = -0.5 * power * np.log(1 + exact / 39)
    assert few.log_likelihood(0.01, 1.1) == pytest.approx(expected, rel=1e-6)


def test_intervals_cover_with_a_covariance_of_few_simulations():
    """Scatter of the mean of r of Gaussian modes over the width of its posterior."""
    generator = np.random.default_rng(6)
    grid, pulls = np.linspace(-0.03, 0.05, 161), []
    for _ in range(150):
        simulated = draws(toy().model(0.0, 1.0), MODES, 30, generator).reshape(30, -1)
        [measured] = draws(toy().model(0.003, 1.0), MODES, 1, generator)
        changes = {"bandpowers": measured, "covariance": np.cov(simulated.T), "n_sim": 30}
        likelihood = BBLikelihood(toy(**changes))
        logs = np.array([likelihood.log_likelihood(r) for r in grid])
        density = np.exp(logs - logs.max())
        mean, square = (np.average(grid**k, weights=density) for k in (1, 2))
        pulls.append((mean - 0.003) / np.sqrt(square - mean**2))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)


def test_r_of_gaussian_modes_is_unbiased_and_its_error_right():
    grid = np.linspace(-0.02, 0.03, 251)
    pulls = []
    for measured in draws(toy().model(0.003, 1.0), MODES, 150, np.random.default_rng(4)):
        likelihood = BBLikelihood(toy(bandpowers=measured))
        density = np.exp([likelihood.log_likelihood(r) for r in grid])
        mean, square = (np.average(grid**k, weights=density) for k in (1, 2))
        pulls.append((mean - 0.003) / np.sqrt(square - mean**2))
    # A posterior mean is above the truth by the skewness of few modes: by 0.1 to 0.2 σ here.
    assert abs(np.mean(pulls) - 0.15) < 3.0 / np.sqrt(len(pulls))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.15)


def test_a_model_without_power_is_excluded():
    assert BBLikelihood(toy()).chi2(-0.5) == np.inf


def test_a_file_keeps_the_data(tmp_path):
    write_bb(toy(), tmp_path / "toy.json")
    again = read_bb(tmp_path / "toy.json")
    for r in (0.0, 0.02):
        assert BBLikelihood(again).chi2(r) == pytest.approx(BBLikelihood(toy()).chi2(r), abs=1e-3)
    assert again.truth == {"r": 0.003, "Alens": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": None}, "'noise' has shape"),
        ({"noise": [1.0, float("nan"), 1.0]}, "'noise' has shape"),
        ({"noise": [1.0]}, "'noise' has shape"),
        ({"edges": [30.0, 20.0, 40.0, 50.0]}, "'edges' must rise"),
        ({"edges": 3.0}, "'edges' has shape"),
        ({"n_sim": "many"}, "'n_sim' is 'many'"),
        ({"n_sim": 13}, "'n_sim' is 13; a covariance of 9 bandpowers needs 14"),
        ({"n_sim": True}, "'n_sim' is True"),
        ({"noise": [-1e-7, 1e-7, 1e-7]}, "'noise' is negative"),
        ({"tensor": ["1e-6", "1e-6", "1e-6"]}, "'tensor' has shape"),
        ({"cross": [[1e-6], [1e-6, 2e-6], 1e-6]}, "'cross' has shape"),
        ({"lensing": [10**400, 1, 1]}, "'lensing' has shape"),
        ({"lensing": [1e6, 1e6, 1e6]}, "'lensing' exceeds 1"),
        ({"edges": []}, "'edges' has shape"),
        ({"name": None}, "'name' is None"),
        ({"truth": {"r": float("nan")}}, "'truth' may hold"),
        ({"truth": {"As": 1.0}}, "'truth' may hold"),
        ({"format": "cobaya_cnnlens release"}, "'format' is not"),
        ({"extra": 1.0}, "fields extra are missing or unknown"),
        ({"bandpowers": [[1e-6, 2e-6, 1e-6]] * 3}, "not positive definite"),
        ({"covariance": np.zeros((9, 9)).tolist()}, "'covariance' is not positive definite"),
    ],
)
def test_wrong_data_are_refused(tmp_path, change, message):
    path = tmp_path / "toy.json"
    write_bb(toy(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReleaseError, match=message):
        BBLikelihood(read_bb(path))


def test_missing_and_cut_files_are_refused(tmp_path):
    with pytest.raises(ReleaseError, match=r"no such BB data.*bb_mock"):
        read_bb(tmp_path / "none.json")
    path = tmp_path / "toy.json"
    write_bb(toy(), path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ReleaseError, match="not readable as JSON"):
        read_bb(path)
    document = {"format": bmodes.FORMAT, "name": "x"}
    path.write_text(json.dumps(document))
    with pytest.raises(ReleaseError, match="missing or unknown"):
        read_bb(path)


def test_cobaya_samples_r_without_theory():
    info = {"likelihood": {"cobaya_cnnlens.DelensedBB": None}, "debug": 50}
    model = get_model(info)
    posterior = model.logposterior({"r": 0.003, "Alens": 1.0})
    direct = BBLikelihood(read_bb("bb_mock"))
    assert posterior.loglikes[0] == pytest.approx(direct.log_likelihood(0.003, 1.0))
    assert posterior.derived == [pytest.approx(direct.chi2(0.003, 1.0))]


def test_data_of_another_unit_are_warned_of(tmp_path, caplog):
    write_bb(read_bb("bb_mock"), tmp_path / "kelvin.json")
    path = tmp_path / "kelvin.json"
    document = json.loads(path.read_text())
    document["bandpowers"] = (1e-12 * np.array(document["bandpowers"])).tolist()  # K²
    path.write_text(json.dumps(document))
    for data, warned in ((path, True), ("bb_mock", False)):
        caplog.clear()
        get_model({"likelihood": {"cobaya_cnnlens.DelensedBB": {"data": data}}})
        assert ("no r and A_L fit" in caplog.text) is warned


def test_the_mock_with_its_template_holds_its_truth_and_tells_r_better():
    data = read_bb("bb_mock")
    r = np.linspace(-0.01, 0.04, 501)
    widths = []
    for template in (True, False):
        likelihood = BBLikelihood(data, template)
        density = np.exp([likelihood.log_likelihood(x) for x in r])
        mean, square = (np.average(r**k, weights=density) for k in (1, 2))
        sigma = np.sqrt(square - mean**2)
        assert abs(mean - data.truth["r"]) < 3.0 * sigma
        widths.append(sigma)
    assert widths[0] < 0.5 * widths[1]
