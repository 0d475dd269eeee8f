"""Run in a copy of the repository to which nuisance.diff was applied: what the new nuisance does to
bandpowers, to a release and to the likelihood, each against its closed form."""

import json
import sys
from pathlib import Path

import numpy as np
from cobaya.model import get_model
from jsonschema import Draft202012Validator

import cobaya_cnnlens
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.release import read_release, write_release
from cobaya_cnnlens.likelihood.schema import json_schema
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.shards import FIELDS
from tests.conftest import synthetic_release

repository, work = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(cobaya_cnnlens.__file__).is_relative_to(repository)
column = NUISANCES.index("u_gain")


class OnlyU:
    def reconstruct(self, q, u):
        return u


# κ̂ = Ũ + n: U's gain g changes its power by 2g⟨Ũ(Ũ + n)⟩ + g²⟨Ũ²⟩.
config = load_config(repository / "training" / "config" / "test.yaml")
config = config.model_copy(update={"products": work})
run = Run(config, "a" * 64, OnlyU())
generator = np.random.default_rng(3)
n = config.patch.n_padded
fields = {f: generator.standard_normal((3, n, n)).astype("f4") for f in FIELDS}
Skies(run).write(fields, "test", 0)
Bandpowers(run).measure("test", [0])
Nuisances(run).measure([0])
first, second = Nuisances(run).read(np.ones(4))
seen = observe_sky(run, "test", 0)
quiet = config.model_copy(update={"instrument": Instrument(noise_uk_arcmin=0.0)})
clean = observe_sky(Run(quiet), "test", 0)
whole, signal = (run.bandpowers.transform(sky.u) for sky in (seen, clean))
power, mixed = run.bandpowers.cross(signal, signal), run.bandpowers.cross(whole, signal)
near = {"rtol": 1e-3, "atol": 1e-3 * power.max()}
np.testing.assert_allclose(first[..., column], 2 * mixed, **near)
np.testing.assert_allclose(second[..., column], power, rtol=0.02, atol=2e-3 * power.max())

# A release holds it, as the schema says.
release = synthetic_release()
write_release(release, work / "release.json")
Draft202012Validator(json_schema()).validate(json.loads((work / "release.json").read_text()))
release = read_release(work / "release.json")
assert release.nuisance_first.shape[1] == len(NUISANCES)

# Cobaya samples it under its prior, unless the instrument is known.
component = {"release": str(work / "release.json"), "check_theory": False}
model = get_model(
    {
        "likelihood": {"cobaya_cnnlens.CNNLens": component},
        "theory": {"camb": {"extra_args": {}}},
        "params": {"H0": 67.0, "ombh2": 0.022, "omch2": 0.12, "As": 2.1e-9, "ns": 0.96},
    }
)
assert "cnnlens_u_gain" in model.parameterization.sampled_params()
