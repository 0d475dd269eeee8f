"""A run: what every stage needs, computed once and only when asked for."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from cobaya_cnnlens.errors import NetworkError
from cobaya_cnnlens.pipeline import networks
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.estimator_settings import Baseline
from cobaya_cnnlens.pipeline.simulation import Simulation
from cobaya_cnnlens.simulate.instrument import cosine_mask

from ..conftest import REPOSITORY, write_network


def test_nothing_is_computed_until_it_is_asked_for(small_config):
    """There is neither a network nor a spectrum; nor does a given identity look for one."""
    run = Run(small_config)
    assert set(vars(run)) == {"config", "_spectra"}
    with pytest.raises(NetworkError, match="run `cnnlens train`"):
        _ = run.estimator_id
    recipe = Bandpowers(Run(small_config, "a" * 64)).recipe("test", 0)
    assert recipe["network"] == "a" * 64
    assert not small_config.products.exists()


def test_what_is_computed_is_kept(small_config, monkeypatch):
    made = []
    monkeypatch.setattr(
        Simulation, "_kept_spectra", lambda run, cosmology: made.append(cosmology) or object()
    )
    run = Run(small_config)
    assert run.mask is run.mask
    assert run.bandpowers is run.bandpowers
    np.testing.assert_array_equal(
        run.mask, cosine_mask(small_config.patch, small_config.instrument.taper_deg)
    )
    other = small_config.cosmology.vary(omch2=0.12)
    assert run.spectra() is run.spectra(small_config.cosmology) is not run.spectra(other)
    assert made == [small_config.cosmology, other]


def test_an_estimator_may_be_given(small_config):
    """Nothing of the configuration's is then looked for."""
    mine = object()
    assert Run(small_config, estimator=mine).estimator is mine


def test_the_identity_is_the_networks_or_the_baselines(small_config, tmp_path):
    path = write_network(tmp_path / "a.keras")
    network = small_config.network.model_copy(update={"pretrained": path})
    run = Run(small_config.model_copy(update={"network": network}))
    assert run.estimator_id == networks.network_hash(path)
    baseline = small_config.model_copy(update={"baseline": Baseline(kind="wiener")})
    assert Run(baseline).estimator_id != Run(small_config, "a").estimator_id


def test_another_process_makes_anew_what_it_needs(small_config):
    run = Run(small_config, "a" * 64)
    assert run.mask.shape
    again = pickle.loads(pickle.dumps(run))
    assert again.config == small_config
    assert again.estimator_id == "a" * 64
    assert "mask" not in vars(again)


LIGHT = """
import sys
from cobaya_cnnlens.pipeline import assemble, networks
from cobaya_cnnlens.pipeline.cosmologies import Point, Points
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.mean_field import MeanField
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.perturbations import Derivatives, ShiftedSkies
from cobaya_cnnlens.pipeline.power import Power
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.simulation import Simulation
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.validate import coverage, nulls, primary
run = Run(load_config(sys.argv[1]))
paths = [stage(run).path(0) for stage in (Derivatives, ShiftedSkies, Nuisances)]
paths += [stage(run).path("test", 0) for stage in (Skies, Bandpowers, Power)]
paths += [coverage.path(run, 0), *(stage.path(run, "test", 0) for stage in (nulls, primary))]
paths += [Points(run).path(Point({"ns": 0.9}, 0, None)), MeanField(run).path()]
paths += [networks.path(run), assemble.path(run, "low")]
assert all(run.config.products in path.parents for path in paths)
heavy = {"keras", "tensorflow", "healpy", "ducc0", "camb", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_paths_need_nothing_heavy():
    """Snakemake asks for them in every job."""
    file = REPOSITORY / "training" / "config" / "test.yaml"
    ended = subprocess.run(
        [sys.executable, "-c", LIGHT, str(file)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
