"""What is told of a chain in numbers: means, errors, effective samples and pulls from the truth."""

import numpy as np
import pytest
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.validate.chains import Marginal, format_marginals, load_chain, marginals

NAME = "cobaya_cnnlens.CNNLens"
LENGTH, CORRELATION = 40_000, 0.8
MEAN, SIGMA = 0.1190, 0.0004


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain as Cobaya writes it, of one Gaussian parameter whose neighbouring samples correlate,
    and of one derived from it."""
    root = tmp_path_factory.mktemp("chains") / "ar"
    generator = np.random.default_rng(2)
    noise = np.sqrt(1 - CORRELATION**2) * generator.standard_normal(LENGTH)
    x = np.zeros(LENGTH)
    for i in range(1, LENGTH):
        x[i] = CORRELATION * x[i - 1] + noise[i]
    omch2 = MEAN + SIGMA * x
    ones, chi2 = np.ones(LENGTH), x**2
    columns = [ones, 0.5 * chi2, omch2, 2 * omch2, 0 * ones, 0 * ones, chi2, chi2]
    header = "weight minuslogpost omch2 double minuslogprior minuslogprior__0 chi2 chi2__" + NAME
    np.savetxt(f"{root}.1.txt", np.transpose(columns), header=header)
    info = {
        "likelihood": {NAME: {"release": "refined_fiducial"}},
        "params": {
            "omch2": {"prior": {"min": 0.1, "max": 0.14}},
            "double": {"derived": "lambda omch2: 2*omch2"},
        },
        "sampler": {"mcmc": {}},
    }
    root.with_name("ar.updated.yaml").write_text(yaml.safe_dump(info))
    return str(root)


def test_numbers_of_a_chain(chain):
    """Those of the first-order autoregressive process: N (1 − ρ)/(1 + ρ) independent samples."""
    omch2, double = marginals({chain: load_chain(chain)})
    effective = 0.8 * LENGTH * (1 - CORRELATION) / (1 + CORRELATION)
    assert omch2.parameter == "omch2"
    assert omch2.effective == pytest.approx(effective, rel=0.1)
    assert omch2.mean == pytest.approx(MEAN, abs=4 * SIGMA / np.sqrt(effective))
    assert omch2.sigma == pytest.approx(SIGMA, rel=4 / np.sqrt(2 * effective))
    assert omch2.truth == 0.1185
    assert omch2.pull == pytest.approx((MEAN - 0.1185) / SIGMA, rel=0.1)
    assert (double.mean, double.truth, double.pull) == (pytest.approx(2 * omch2.mean), None, None)


@pytest.mark.filterwarnings("ignore:The format attribute was deprecated")  # within getdist
def test_the_command_ends_with_the_numbers(chain, tmp_path):
    result = CliRunner().invoke(app, ["plot", chain, "--out", str(tmp_path / "p.png")])
    assert result.exit_code == 0, result.output
    head, first, second = result.output.splitlines()[-3:]
    assert head.split()[:5] == ["chain", "parameter", "mean", "+-", "effective"]
    assert first.split()[:2] == ["ar", "omch2"]
    assert first.split()[-1].startswith("+1.")
    assert second.split()[:2] == ["ar", "double"]
    assert (tmp_path / "p.png").stat().st_size > 5_000
    result = CliRunner().invoke(
        app, ["plot", chain, "--out", str(tmp_path / "p.png"), "--param", "omch2"]
    )
    assert result.output.splitlines()[-1].split()[1] == "omch2"
    assert "double" not in result.output


@pytest.mark.parametrize(
    ("mean", "sigma", "expected"),
    [
        (0.118482, 0.000412, ["0.11848", "0.00041"]),
        (3.0962, 0.0951, ["3.096", "0.095"]),
        (67.94, 3.2, ["67.9", "3.2"]),
        (1234.4, 321.0, ["1234", "321"]),
        (2.21e-9, 2.1e-11, ["2.210e-09", "2.100e-11"]),
        (1.0, 0.0, ["1", "0"]),
    ],
)
def test_two_digits_of_an_error(mean, sigma, expected):
    line = format_marginals([Marginal("c", "p", mean, sigma, 100.0, None)]).splitlines()[-1]
    assert line.split() == ["c", "p", *expected, "100"]
