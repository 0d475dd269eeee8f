"""The refining network where the mask has holes and where the depth varies: noise, and whether a
calibration by other patches leaves its bandpowers unbiased.

    python tests/benchmarks/holes.py [PATCHES]

Patches of a dense test sky, at 1 µK-arcmin whole and with 12 holes of 10′ each, and with noise that
grows from 1 to 4 µK-arcmin along y. R and N come from every other patch; χ² asks whether the rest,
debiased, have the power of their own κ. Makes test sky 0 of training/config/refined.yaml if it is
not there, in a minute and a half; 2 s a patch.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cobaya_cnnlens.likelihood.statistics import hotelling_pte
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.features import PASSES
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, load_refining
from cobaya_cnnlens.simulate.instrument import ARCMIN

ROOT = Path(__file__).parents[2]
HOLES, DIAMETER = 12, 10.0
MERGED = 2

n = int(sys.argv[1]) if len(sys.argv) > 1 else 120
config = load_config(ROOT / "training" / "config" / "refined.yaml")
Skies(Run(config)).measure("test", [0])
network = load_refining(NETWORKS / "refined.keras")
generator = np.random.default_rng(1)
y, x = np.mgrid[: config.patch.n_pixels, : config.patch.n_pixels] + 0.5


def holes():
    """Pixels of one patch that its holes hide, (ny, nx)."""
    radius = 0.5 * DIAMETER * ARCMIN / config.patch.pixel
    at = generator.uniform(0, config.patch.n_pixels, (HOLES, 2))
    return np.any([np.hypot(y - a, x - b) < radius for a, b in at], axis=0)


def measured(instrument, hidden=None):
    """κ̂'s bandpowers of n patches, with κ, and κ's own; merged bins."""
    run = Run(config.model_copy(update={"instrument": instrument}))
    seen = observe_sky(run, "test", 0)
    chosen = np.arange(n) * len(seen.q) // n
    q, u, kappa = (m[chosen] for m in (seen.q, seen.u, seen.kappa))
    ascent = MAPLensing(config.patch, instrument, run.mask, run.spectra(), PASSES)
    rms = np.broadcast_to(ascent.noise_rms(), q.shape)
    if hidden is not None:
        rms = np.where(hidden, np.inf, rms)
        q, u = (np.where(hidden, 0.0, m) for m in (q, u))
    found = RefinedEstimator(ascent, [network]).reconstruct(q, u, rms)
    spectra = run.bandpowers
    a, b = spectra.transform(found), spectra.transform(kappa)
    powers = (spectra.cross(a, a), spectra.cross(a, b), spectra.cross(b, b))
    return [spectra.merge(p, MERGED) for p in powers]


def noise(auto, cross, truth, weight):
    auto, cross, truth = (weight @ p / weight.sum() for p in (auto, cross, truth))
    return auto * truth**2 / cross**2 - truth


def unbiased(auto, cross, truth):
    """χ² and PTE of what the even patches' R and N leave in the odd ones."""
    even, odd = slice(0, None, 2), slice(1, None, 2)
    response = cross[even].mean(0) / truth[even].mean(0)
    left = auto / response**2 - truth
    # The error of R is common to both halves.
    residual = left[odd].mean(0) - left[even].mean(0)
    error = sum(np.cov(half, rowvar=False) / len(half) for half in (left[even], left[odd]))
    chi2 = residual @ np.linalg.inv(error) @ residual
    return chi2, hotelling_pte(chi2, len(left[even]), len(residual))


hidden = np.stack([holes() for _ in range(n)])
mask = Run(config).mask
lost = np.mean([(mask**2 * h).sum() for h in hidden]) / (mask**2).sum()
cases = {
    "whole": measured(config.instrument),
    "holes": measured(config.instrument, hidden),
    "1 to 4 µK'": measured(replace(config.instrument, noise_uk_arcmin=2.0, depth_ratio=4.0)),
}
spectra = Run(config).bandpowers
L = spectra.merge(np.broadcast_to(spectra.bins.centres, (1, spectra.bins.n_bins)), MERGED)[0]
draws = generator.multinomial(n, np.ones(n) / n, 300).astype(float)
print(f"{n} patches; holes take {100 * lost:.2f}% of the masked area")
print(f"{'L':>12}", *(f"{v:6.0f}" for v in L))
for name, powers in cases.items():
    chi2, pte = unbiased(*powers)
    print(f"{name:>12} over whole; R, N from other patches: chi2 {chi2:.1f}, PTE {pte:.2f}")
    ratio = [noise(*powers, w) / noise(*cases["whole"], w) for w in (np.ones(n), *draws)]
    print(" " * 12, *(f"{v:6.3f}" for v in ratio[0]))
    print(f"{'+-':>12}", *(f"{v:6.3f}" for v in np.std(ratio[1:], axis=0)))
