"""Noise of the most probable lensing over that of nine damped passes, on the same masked patches at
1 µK-arcmin, with paired errors by bootstrap over the patches; and what either costs.

    python tests/benchmarks/ascent.py [PATCHES]

Makes test sky 0 of training/config/laptop.yaml if it is not there, in half a minute; 1.5 s a patch.
"""

import sys
from pathlib import Path
from time import process_time

import numpy as np
from paired import Paired

from cobaya_cnnlens.pipeline import skies
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.iterative import WienerEstimator
from cobaya_cnnlens.reconstruct.probable import ProbableLensing

PASSES = 7
n = int(sys.argv[1]) if len(sys.argv) > 1 else 120
config = load_config(Path(__file__).parents[2] / "training" / "config" / "laptop.yaml")
skies.measure(Run(config), "test", [0])
seen = observe_sky(Run(config), "test", 0)
theory, mask = Run(config).spectra(), Run(config).mask
paired = Paired(Run(config), seen.kappa[:n])


def every_pass(passes):
    start, found = process_time(), []
    for i in range(n):
        found.append(list(passes(seen.q[i].astype(float), seen.u[i].astype(float))))
    return np.array(found), (process_time() - start) / n


damped = WienerEstimator(config.patch, config.instrument, mask, theory, 9, threads=1)
climbing = ProbableLensing(config.patch, config.instrument, mask, theory, PASSES, threads=1)
rms = climbing.noise_rms()
climbing.last(seen.q[0], seen.u[0], rms)  # makes its filters
slow, slow_cost = every_pass(damped.passes)
fast, fast_cost = every_pass(lambda q, u: (p.kappa for p in climbing.passes(q, u, rms)))
print(f"{n} patches; CPU-s a patch: 9 damped passes {slow_cost:.2f}, {PASSES} here {fast_cost:.2f}")
reference = paired.measured(mask * slow[:, -1])
print(
    "N_L over that of 9 damped passes\nL        ",
    *(f"{L:6.0f}" for L in paired.spectra.bins.centres),
)
for number in (5, 6, 7):
    ratio, error = paired.ratio(paired.measured(mask * fast[:, number - 1]), reference)
    print(f"{number} passes ", *(f"{r:6.3f}" for r in ratio))
    print("       +-", *(f"{e:6.3f}" for e in error))
