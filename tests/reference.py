"""Make ``cobaya_cnnlens/validate/data/reference.json``, with which ``cnnlens check`` compares.

    python -m tests.reference FOLDER

CAMB runs twice for the expected χ². Then the inputs of ``yaml/`` are sampled into FOLDER. A chain
that is finished there is not sampled again.
"""

import json
import sys
import warnings
from importlib import metadata
from pathlib import Path

from cobaya.run import run
from cobaya.yaml import yaml_load_file

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.cnnlens import CNNLens
from cobaya_cnnlens.likelihood.release import digest_of_numbers, read_release, shipped_releases
from cobaya_cnnlens.likelihood.selfcheck import spectra_of
from cobaya_cnnlens.theory.emulator_files import read_emulator, shipped_emulators
from cobaya_cnnlens.validate.chains import load_chain, summarise
from cobaya_cnnlens.validate.reference import REFERENCE, content_of
from cobaya_cnnlens.validate.verification import MOCK, noiseless, second_point, with_defaults

from .conftest import REPOSITORY

PACKAGES = ("cobaya_cnnlens", "camb", "cobaya")
# Inputs that differ from another one in their theory alone have its posterior.
SAME = {"omegac": "omegac_fast", "omegac_class": "omegac_fast"}
# One parameter converges, by R-1 of its mean, before it has many samples.
RMINUS1_STOP, RMINUS1_STOP_OF_ONE = 0.01, 0.002


def posterior(path: Path, folder: Path) -> dict:
    """Content and marginals of an input."""
    info = yaml_load_file(str(path))
    root = folder / SAME.get(path.stem, path.stem)
    if path.stem not in SAME and not Path(f"{root}.done").exists():
        sampled = sum("prior" in x for x in info["params"].values() if isinstance(x, dict))
        stop = RMINUS1_STOP if sampled > 1 else RMINUS1_STOP_OF_ONE
        info["sampler"]["mcmc"] |= {"Rminus1_stop": stop, "seed": 1, "output_every": "60s"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas, on how Cobaya writes its progress
            run(info | {"output": str(root), "force": True}, no_mpi=True)
        Path(f"{root}.done").touch()
    rows = {
        m.parameter: [float(f"{m.mean:.8g}"), float(f"{m.sigma:.5g}"), int(m.effective)]
        for m in summarise(load_chain(root)).marginals
        if m.sigma > 0
    }
    return {"content": content_of(with_defaults(info)), "marginals": rows}


def expected_chi2() -> dict[str, float]:
    """χ² of the noiseless mock at the second point, and of the data at the mock point, by CAMB."""
    release, component = read_release(MOCK), CNNLens({"release": MOCK})
    theory = yaml_load_file(str(REPOSITORY / "yaml" / "omegac.yaml"))["theory"]
    cosmology = release.theory["cosmology"]
    mock = component.likelihood_of(noiseless(release, component.noise_debias))
    data = BandpowerLikelihood(release)
    return {
        "chi2_second": round(mock.chi2(*spectra_of(theory, mock, second_point(cosmology))), 4),
        "chi2_data": round(data.chi2(*spectra_of(theory, data, cosmology)), 4),
    }


def main(folder: Path) -> None:
    """Write the file."""
    inputs = sorted((REPOSITORY / "yaml").glob("*.yaml"), key=lambda path: path.stem in SAME)
    content = {
        "made_with": {
            name: metadata.version(name) for name in ("cobaya_cnnlens", "camb", "cobaya")
        },
        "release": {name: digest_of_numbers(read_release(name)) for name in shipped_releases()},
        "emulator": {name: read_emulator(name).digest for name in shipped_emulators()},
        **expected_chi2(),
        "posteriors": dict(sorted((path.stem, posterior(path, folder)) for path in inputs)),
    }
    Path(str(REFERENCE)).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(REFERENCE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
