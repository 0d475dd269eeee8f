"""Noise of the MAP estimator after five and seven passes over that after six, on the same masked
patches at 1 µK-arcmin, with paired errors by bootstrap over the patches; and what a pass costs.

    python tests/benchmarks/map_passes.py [PATCHES]

Makes test sky 0 of training/config/resunet_1uk.yaml if it is not there, in half a minute.
"""

import sys
from pathlib import Path
from time import process_time

import numpy as np
from paired import Paired

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing

PASSES = 7
n = int(sys.argv[1]) if len(sys.argv) > 1 else 120
config = load_config(Path(__file__).parents[2] / "training" / "config" / "resunet_1uk.yaml")
run = Run(config)
Skies(run).measure("test", [0])
seen = observe_sky(run, "test", 0)
paired = Paired(run, seen.kappa[:n])
estimator = MAPLensing(config.patch, config.instrument, run.mask, run.spectra(), PASSES, threads=1)
rms = estimator.noise_rms()
estimator.last(seen.q[0], seen.u[0], rms)  # makes its filters
start = process_time()
maps = zip(seen.q[:n].astype(float), seen.u[:n].astype(float), strict=True)
kappa = run.mask * np.array([[p.kappa for p in estimator.passes(q, u, rms)] for q, u in maps])
print(f"{n} patches; CPU-s a patch: {PASSES} passes {(process_time() - start) / n:.2f}")
print("N_L over that of six passes\nL        ", *(f"{L:6.0f}" for L in paired.spectra.bins.centres))
for number in (5, 7):
    measured = (paired.measured(kappa[:, i - 1]) for i in (number, 6))
    ratio, error = paired.ratio(*measured)
    print(f"{number} passes ", *(f"{r:6.3f}" for r in ratio))
    print("       +-", *(f"{e:6.3f}" for e in error))
