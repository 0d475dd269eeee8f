"""Every Cobaya input of ``yaml/`` starts and takes its first hundred steps."""

import re
import warnings

import numpy as np
import pytest
from cobaya.run import run
from cobaya.yaml import yaml_load_file

import yaml
from cobaya_cnnlens import BandpowerLikelihood, CNNLens, DelensedBB, read_emulator, read_release

from ..conftest import INPUTS, REPOSITORY

STEPS = 100
# Cobaya counts accepted steps: at most six of ten in these chains, and four of ten with CLASS.
ACCEPTED, ACCEPTED_CLASS = 60, 45
# As they ship, CLASS takes 20 CPU-seconds a step and CAMB 8 a node. So they take two or three, with
# spectra right to some percent.
COARSE = {
    "camb": {"lens_potential_accuracy": 1},
    "classy": {
        "k_max_limber_over_l_max_scalars": 0.001,
        "tol_perturbations_integration": 1e-3,
        "k_step_sub": 0.2,
        "k_step_super": 0.01,
        "perturbations_sampling_stepsize": 0.5,
        "k_per_decade_for_pk": 5,
        "k_per_decade_for_bao": 20,
    },
}
SLOW = ("omegac_class",)
FIDUCIAL = {"ombh2": 0.0222, "ns": 0.9624, "H0": 67.94, "logA": np.log(22.1)}


def emulated(content):
    return "cobaya_cnnlens.EmulatedCAMB" in content.get("theory", {})


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW), id=p.stem) for p in INPUTS],
)
def test_first_hundred_steps(path, tmp_path, monkeypatch):
    """From any folder: the chain takes them, and has a finite posterior at each."""
    monkeypatch.chdir(tmp_path)
    content = yaml_load_file(str(path))
    theory = content.get("theory", {})
    for code in set(COARSE) & set(theory):
        if code == "classy":
            pytest.importorskip("classy")
        theory[code]["extra_args"] |= COARSE[code]
        for block in content["likelihood"].values():
            block["check_theory"] = False  # it is off, and finding that out takes a full run
    accepted = ACCEPTED_CLASS if "classy" in theory else ACCEPTED
    content["sampler"]["mcmc"] |= {"max_samples": accepted, "burn_in": 0, "seed": 1}
    content["output"] = "c"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas, on how Cobaya writes its progress
        run(content, no_mpi=True)
    table = np.loadtxt("c.1.txt")
    assert table[:, 0].sum() >= STEPS
    assert np.isfinite(table).all()
    assert len(np.unique(table[:, 2:], axis=0)) == accepted


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_inputs_name_themselves(path):
    """The command in the first lines, and the output, are of the input's own name."""
    text = path.read_text()
    assert re.search(rf"cobaya-run yaml/{path.stem}\.yaml\b", text)
    assert set(re.findall(r"\b(?:yaml|chains)/(\w+)", text)) <= {path.stem, "omegac"}
    assert yaml_load_file(str(path))["output"] == f"chains/{path.stem}"
    assert set(re.findall(r" (\w+)\.yaml", text)) <= {*(p.stem for p in INPUTS), "CNNLens"}


@pytest.mark.parametrize(
    "path", [p for p in INPUTS if emulated(yaml_load_file(str(p)))], ids=lambda path: path.stem
)
def test_the_line_that_puts_camb_in_holds(path):
    """CAMB by that line has the settings of the main job's, and mnu where the input gives none."""
    (line,) = re.findall(r"^  # (camb: \{.*\})$", path.read_text(), re.MULTILINE)
    settings = yaml.safe_load(line)["camb"]["extra_args"]
    content = yaml_load_file(str(path))
    main = yaml_load_file(str(REPOSITORY / "yaml" / "omegac.yaml"))
    expected = dict(main["theory"]["camb"]["extra_args"])
    if "mnu" in content["params"]:
        del expected["mnu"]
    if "HMCode_logT_AGN" in content["params"]:
        expected["halofit_version"] = "mead2020_feedback"
    assert settings == expected


def sampled(content):
    """Priors of an input's parameters, its likelihood's own after them."""
    given = {n: p for n, p in content.get("params", {}).items() if isinstance(p, dict)}
    blocks = {name.split(".")[-1]: block for name, block in content["likelihood"].items()}
    if "DelensedBB" in blocks:
        given |= DelensedBB.get_defaults()["params"]
    elif blocks["CNNLens"].get("instrument") != "known":
        given |= CNNLens.get_defaults()["params"]
    return {name: p["prior"] for name, p in given.items() if "prior" in p}


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_every_chain_starts_from_the_posterior_s_covariance(path):
    """Of several parameters, it is there, can be one, and its widths are within the priors'; of one
    it is its proposal, which is as wide as the posterior by Fisher."""
    content = yaml_load_file(str(path))
    sampler, priors = content["sampler"]["mcmc"], sampled(content)
    if len(priors) == 1:
        (block,), (name,) = content["likelihood"].values(), priors
        likelihood = BandpowerLikelihood(read_release(block["release"]))
        near, far = (read_emulator("lcdm")(FIDUCIAL | {"omch2": at})[0] for at in (0.118, 0.119))
        slope = likelihood.jacobian().kk @ (far - near)[: likelihood.lmax_kk + 1] / 0.001
        width = likelihood.fisher(slope[:, None]).item() ** -0.5
        assert content["params"][name]["proposal"] == pytest.approx(width, rel=0.15)
        return
    covariance = np.array(sampler["covmat"], dtype=float)
    np.testing.assert_array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance / np.sqrt(np.outer(*2 * [np.diag(covariance)]))).min() > 0
    assert sampler["covmat_params"] == list(priors)
    for prior, width in zip(priors.values(), np.sqrt(np.diag(covariance)), strict=True):
        widest = prior.get("scale", (prior.get("max", 0) - prior.get("min", 0)) / np.sqrt(12))
        assert width < 1.1 * widest
