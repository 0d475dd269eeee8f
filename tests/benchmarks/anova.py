"""Do whole skies scatter by more than their patches say? Of the test skies' patches.

    python tests/benchmarks/anova.py [CONFIG] [RELEASE]

Each patch gives an estimate of ω_c, linear in its debiased bandpowers with the release's weights,
once as it is and once with the patch's own ⟨κκ*⟩ taken off, which leaves the noise. Printed are the
means over skies, the ratio F of the mean squares between and within skies with its probability for
independent patches, and the correlation of patches that are so many places apart on their sky.
Reads shipped bandpowers; RELEASE is that of the configuration's first survey by default.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import f as f_distribution

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.pipeline.assemble import calibration_of, make_release
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.power import Power
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.validate.omch2 import Omch2Likelihood

ROOT = Path(__file__).parents[2]
LAGS = (1, 2, 3, 5, 10, 20, 40)

arguments = sys.argv[1:]
run = Run(load_config(arguments[0] if arguments else ROOT / "training" / "config" / "refined.yaml"))
first = run.config.first_survey
release = read_release(arguments[1]) if len(arguments) > 1 else make_release(run, first)
calibration, _ = calibration_of(run)
for debias in release.noise_debiases:
    likelihood = BandpowerLikelihood(release, debias)
    slope = Omch2Likelihood(run, likelihood).slope(run.config.cosmology.omch2)
    weights = np.linalg.solve(likelihood.release.patch_covariance, slope)
    weights /= slope @ weights
    d, truth = [], []
    for index in range(run.config.skies.test):
        sky = Bandpowers(run).read("test", [index])
        debiased = calibration.debias(sky.auto)
        if debias == "data":
            own = Power(run).read("test", [index])["power"]
            debiased = debiased - release.correction_of(own)
        d.append(debiased @ weights)
        truth.append(sky.truth @ weights)
    for name, skies in (
        ("omch2", d),
        ("its noise", [a - b for a, b in zip(d, truth, strict=True)]),
    ):
        n, k = len(skies[0]), len(skies)
        means = np.array([sky.mean() for sky in skies])
        within = np.mean([sky.var(ddof=1) for sky in skies])
        ratio = n * means.var(ddof=1) / within
        p = f_distribution.sf(ratio, k - 1, k * (n - 1))
        scaled = [(sky - sky.mean()) / sky.std() for sky in skies]
        lagged = [np.mean([np.mean(s[lag:] * s[:-lag]) for s in scaled]) for lag in LAGS]
        print(f"{release.name}, noise debias {debias}, {name}: {k} skies of {n} patches")
        error = np.sqrt(within / n)
        print(
            "  means less their mean, 1e-4:",
            *(f"{v * 1e4:+.2f}" for v in means - means.mean()),
            f"+- {error * 1e4:.2f}",
        )
        print(f"  F = {ratio:.2f}, p = {p:.3f}")
        pairs = zip(LAGS, lagged, strict=True)
        print(
            "  correlation at lag",
            ", ".join(f"{lag}: {c:+.3f}" for lag, c in pairs),
            f"(error {1 / np.sqrt(n * k):.3f})",
        )
