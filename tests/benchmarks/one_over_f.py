"""1/f noise: what it does to the refined estimator's noise and response, where the filter takes the
noise for white and where it knows its power.

    python tests/benchmarks/one_over_f.py [PATCHES]

Patches of a dense test sky at 1 µK-arcmin with l_knee = 200, slope 3, isotropic and with an excess
that reaches 4 times as far across the scan. All cases have the same white noise; errors are those
of a jackknife over patches, of the ratio. Makes test sky 0 of training/config/refined.yaml if it is
not there, in a minute and a half; tens of seconds a patch, all cases together.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.features import PASSES
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, load_refining
from cobaya_cnnlens.simulate.instrument import convolve_beam, draw_noise
from cobaya_cnnlens.simulate.one_over_f import OneOverF

ROOT = Path(__file__).parents[2]
BINS = [0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20]

n = int(sys.argv[1]) if len(sys.argv) > 1 else 40
config = load_config(ROOT / "training" / "config" / "refined.yaml")
run = Run(config)
Skies(run).measure("test", [0])
network = load_refining(NETWORKS / "refined.keras")
q, u, kappa = Skies(run).read("test", 0, ("lensed_q", "lensed_u", "kappa"))
chosen = np.linspace(0, len(q) - 1, n).astype(int)
q, u, kappa = q[chosen], u[chosen], config.patch.crop(kappa[chosen]) * run.mask


def measured(drawn, known):
    """Auto and cross power of κ̂, and κ's own, of noise with one excess, filtered for another."""
    instrument = replace(config.instrument, one_over_f=drawn)
    n_pixels, generator = config.patch.n_pixels, np.random.default_rng(5)
    noise = draw_noise((2, n, n_pixels, n_pixels), instrument, config.patch, generator)
    maps = [
        (convolve_beam(m, instrument, config.patch) + part) * run.mask
        for m, part in zip((q, u), noise, strict=True)
    ]
    instrument = replace(config.instrument, one_over_f=known)
    ascent = MAPLensing(config.patch, instrument, run.mask, run.spectra(), PASSES)
    found = RefinedEstimator(ascent, [network]).reconstruct(*maps)
    a, b = run.bandpowers.transform(found), run.bandpowers.transform(kappa)
    return [run.bandpowers.cross(*pair) for pair in ((a, a), (a, b), (b, b))]


def response_and_noise(powers, kept):
    auto, cross, truth = (p[kept].mean(0) for p in powers)
    return np.array([cross / truth, auto * truth**2 / cross**2 - truth])


def ratio(one, other):
    """Of response and of noise, with jackknife errors, (2, 2, n_bins)."""
    every = np.arange(n)
    left_out = [np.delete(every, i) for i in every]
    found = response_and_noise(one, every) / response_and_noise(other, every)
    draws = [response_and_noise(one, k) / response_and_noise(other, k) for k in left_out]
    return np.array([found, np.std(draws, axis=0) * np.sqrt(n - 1.0)])


white = measured(OneOverF(0.0, 3.0), None)
print(f"{n} patches, over white noise")
print(f"{'L':>24}", *(f"{run.bandpowers.bins.centres[b]:6.0f}" for b in BINS))
for name, excess in {
    "isotropic": OneOverF(200.0, 3.0),
    "anisotropy 4": OneOverF(200.0, 3.0, 4.0),
}.items():
    for filtered, known in (("white filter", None), ("filter that knows", excess)):
        found, error = ratio(measured(excess, known), white)
        print(f"{name}, {filtered}")
        for label, values in (
            ("R", found[0]),
            ("+-", error[0]),
            ("N_L", found[1]),
            ("+-", error[1]),
        ):
            print(f"{label:>24}", *(f"{values[b]:6.3f}" for b in BINS))
