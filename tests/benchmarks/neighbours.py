"""Correlation of the bandpowers of patches side by side on one sky, of all test skies.

    python tests/benchmarks/neighbours.py [CONFIG]

Of a configuration whose patches lie in rings (training/config/refined.yaml if not given, whose
bandpowers are shipped), by bins of two: the mean over the bins to L = 2068, and each bin.
"""

import sys

import numpy as np

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate.tiling import ring_centres

LMAX = 2068
run = Run(load_config(sys.argv[1] if len(sys.argv) > 1 else "training/config/refined.yaml"))
latitude = ring_centres(run.config.patch.size_deg)[:, 0]
beside = np.isclose(latitude[1:], latitude[:-1])
auto = np.array(
    [Bandpowers(run).read("test", [i]).auto for i in range(run.config.set_size("test"))]
)
auto = run.bandpowers.merge(auto, 2)
auto = auto[..., run.bandpowers.bins.edges[2 : 2 * auto.shape[-1] + 1 : 2] <= LMAX]
off = (auto - auto.mean((0, 1))) / auto.std((0, 1))
pairs = (off[:, :-1] * off[:, 1:])[:, beside].reshape(-1, off.shape[-1])
mean = pairs.mean(1)
print(f"{len(pairs)} pairs: {mean.mean():.4f} ± {mean.std(ddof=1) / np.sqrt(len(pairs)):.4f}")
print("by bin:", *(f"{x:+.3f}" for x in pairs.mean(0)), "±", f"{1 / np.sqrt(len(pairs)):.3f}")
