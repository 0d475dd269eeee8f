"""`cnnlens check CHAIN` passes a chain of the reference, and names what differs in another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cobaya.yaml import yaml_load_file
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.validate.chain_comparison import compare_chain
from cobaya_cnnlens.validate.chains import load_chain
from cobaya_cnnlens.validate.reference import read_reference
from cobaya_cnnlens.validate.verification import with_defaults

from .test_verification import CAMB, EMULATOR, NAME, written

# Columns of a chain beside the parameters.
REST = ("cnnlens_chi2", "cnnlens_pte", "minuslogprior", "minuslogprior__0", "chi2", f"chi2__{NAME}")


def chain_like(root, shift=0.0, stretch=1.0, samples=4000, **options):
    """A chain drawn from the reference posterior of omegac_fast.yaml as if it were Gaussian."""
    path = written(Path(root).parent, name="input.yaml", **options)
    info = with_defaults(yaml_load_file(str(path)))
    for section, component, kind in (
        ("likelihood", NAME, "release"),
        ("theory", EMULATOR, "emulator"),
    ):
        block = info[section][component]
        block["version"] = getattr(read_reference(), kind)[block[kind]]
    Path(f"{root}.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    marginals = read_reference().posteriors["omegac_fast"].marginals
    draws = np.random.default_rng(3).standard_normal(samples)
    names = ("omch2", "omegam", "sigma8")
    columns = [marginals[n].mean + marginals[n].sigma * (shift + stretch * draws) for n in names]
    rest = [np.full(samples, 0.5)] * len(REST)
    table = np.column_stack([np.ones(samples), draws**2 / 2, *columns, *rest])
    np.savetxt(f"{root}.1.txt", table, header=" ".join(("weight minuslogpost", *names, *REST)))
    return str(root)


def compared(root):
    return compare_chain(load_chain(root))


def test_a_chain_of_the_reference_passes(tmp_path):
    root = chain_like(tmp_path / "c")
    result = compared(root)
    assert result.passed, result.table()
    assert [check.item for check in result.checks][:3] == [
        "release refined_fiducial",
        "emulator lcdm",
        "omch2",
    ]
    printed = CliRunner().invoke(app, ["check", root])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.startswith(result.table())
    assert "posterior-predictive p" in printed.stdout
    assert Path(f"{root}_predictive.png").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shift": 0.5}, "the mean is off by +0.5"),
        ({"stretch": 1.4}, "the width is off by +"),
        ({"samples": 50}, "effective samples are too few for a comparison, which needs 50"),
    ],
)
def test_what_differs_of_a_chain_is_named(tmp_path, changes, said):
    root = chain_like(tmp_path / "c", **changes)
    check = next(c for c in compared(root).checks if c.item == "omch2")
    assert check.fault.startswith(said) or said in check.fault
    printed = CliRunner().invoke(app, ["check", root])
    assert printed.exit_code == 1
    assert f"fault: omch2: {check.fault}" in printed.stdout


def test_columns_of_another_run_are_told(tmp_path):
    """The names of the columns are in the files too; getdist goes by the input beside them."""
    root = chain_like(tmp_path / "c")
    head, _, rows = Path(f"{root}.1.txt").read_text().partition("\n")
    Path(f"{root}.1.txt").write_text(head.replace("omegam sigma8", "sigma8 omegam") + "\n" + rows)
    with pytest.raises(CNNLensError, match=r"c\.1\.txt: its columns are omch2, sigma8, omegam"):
        load_chain(root)
    Path(f"{root}.1.txt").write_text(head.replace(" omegam", "") + "\n" + rows)
    with pytest.raises(CNNLensError, match="the two are of different runs"):
        load_chain(root)


def test_the_limits_are_those_of_both_chains(tmp_path):
    """Four standard errors beside what is tolerated: independent draws have n effective samples."""
    reference = read_reference().posteriors["omegac_fast"].marginals["omch2"]
    check = next(c for c in compared(chain_like(tmp_path / "c")).checks if c.item == "omch2")
    error = np.sqrt(1 / 3200 + 1 / reference.effective)
    mean, width = (float(text.split()[0].rstrip("%")) for text in check.limit.split(", "))
    assert mean == pytest.approx(0.1 + 4 * error, abs=0.02)
    assert width == pytest.approx(5 + 400 * error / np.sqrt(2), abs=2)


def test_a_chain_of_a_wrong_theory_says_its_settings(tmp_path):
    root = chain_like(tmp_path / "c", shift=3.0)
    info = yaml.safe_load(Path(f"{root}.updated.yaml").read_text())
    info["theory"] = {"camb": {"extra_args": CAMB | {"lens_potential_accuracy": 1}}}
    Path(f"{root}.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    result = compared(root)
    assert result.remarks == (
        "The theory of the chain has other settings: lens_potential_accuracy: 1 (release: 8.0).",
    )


def test_a_chain_of_another_release_or_input_is_not_compared(tmp_path):
    """It says where the input differs; a shipped name with other numbers is a fault."""
    other = compared(chain_like(tmp_path / "c", release="refined_high", L_max=1500))
    assert other.passed
    assert [check.item for check in other.checks] == ["release refined_high", "emulator lcdm"]
    assert "release: refined_high (there: refined_fiducial)" in other.remarks[0]
    assert "L_max: 1500 (there: None)" in other.remarks[0]
    root = chain_like(tmp_path / "d")
    info = yaml.safe_load(Path(f"{root}.updated.yaml").read_text())
    info["likelihood"][NAME]["version"] = read_reference().release["refined_low"]
    Path(f"{root}.updated.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    result = compared(root)
    assert [check.fault[:14] for check in result.checks if check.fault] == ["other release:"]
    info["params"]["ns"] = {"prior": {"min": 0.9, "max": 1.0}}
    chain = replace(load_chain(root), info=info)
    assert compare_chain(chain).remarks == ("No shipped input samples the same parameters.",)
