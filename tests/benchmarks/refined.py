"""Noise of the refining network over that of other estimators, on the same masked patches of a
dense test sky, with paired errors by bootstrap over the patches; and what each costs.

    python tests/benchmarks/refined.py [CONFIG] [PATCHES] [NETWORK...]

CONFIG is training/config/refined.yaml or a member of training/config/refined_levels.yaml, at whose
noise level all is measured; NETWORK other refining networks to measure too, their mean last. Makes
test sky 0 if it is not there, in a minute and a half; some 3 s a patch. Beside the refining network
stand six and all passes of its own MAP steps, one Wiener-filtered quadratic estimate, the ResUNet
on maps for this noise, and the analytic iterated EB noise.

Two changes of the estimator that no release has are measured too: the same network on the features
of a faster Wiener filter, and its correction of the MAP estimate divided by the noise in µK-arcmin.
"""

import sys
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
from paired import Paired

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.features import FEATURES, KAPPA_UNIT, PASSES, features_of
from cobaya_cnnlens.reconstruct.map_lensing import LOWEST_LEVEL, TOLERANCES, MAPLensing
from cobaya_cnnlens.reconstruct.n0 import Filter, band_of, n0_iterated
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, load_refining
from cobaya_cnnlens.reconstruct.resunet import networks_estimator

ROOT = Path(__file__).parents[2]
# Tolerances of a faster Wiener filter: from the fifth pass on 2.5e-4.
FASTER = (2e-3, 1e-3, 5e-4, 3e-4, 2.5e-4)
RESUNETS = {0.0: NETWORKS / "resunet_0uk.keras", 1.0: NETWORKS / "resunet_1uk.keras"}

arguments = sys.argv[1:]
config = load_config(arguments[0] if arguments else ROOT / "training" / "config" / "refined.yaml")
wanted = int(arguments[1]) if len(arguments) > 1 else 120
run = Run(config)
Skies(run).measure("test", [0])
seen = observe_sky(run, "test", 0)
chosen = np.arange(wanted) * len(seen.q) // wanted
q, u = seen.q[chosen], seen.u[chosen]
mask, theory = run.mask, run.spectra()
paired = Paired(run, seen.kappa[chosen])
noise, ones = paired.noise, paired.ones
instrument, level = config.instrument, config.instrument.noise_uk_arcmin
# As `baseline` has it: filters divide by the noise.
filtered = replace(instrument, noise_uk_arcmin=max(level, LOWEST_LEVEL))
print(f"{config.name}: {level:g} µK-arcmin, {wanted} patches of test sky 0")


def timed(name, make):
    """Maps of an estimator, its cost printed."""
    start = process_time()
    maps = make()
    print(f"{name}: {(process_time() - start) / wanted:.3f} CPU-s a patch", flush=True)
    return maps


def known_features(tolerances=None):
    ascent = MAPLensing(config.patch, instrument, mask, theory, PASSES, tolerances=tolerances)
    return np.stack(list(features_of(ascent, q, u)))


def wiener():
    last = TOLERANCES[-1:]
    estimator = MAPLensing(config.patch, filtered, mask, theory, passes=1, tolerances=last)
    return mask * estimator.reconstruct(q, u)


files = [NETWORKS / "refined.keras", *map(Path, arguments[2:])]
known = timed("features", known_features)
found = {}
for file in files:
    one = RefinedEstimator(None, [load_refining(file)])
    one.refine(known[:16])  # makes its graph
    found[file.stem] = timed(file.stem, lambda one=one: one.refine(known)["kappa"])
if len(files) > 1:
    found["their mean"] = np.mean(list(found.values()), axis=0)
for passes in (PASSES - 1, PASSES):
    at = FEATURES.index(f"kappa_{passes}")
    found[f"MAP, {passes} passes"] = KAPPA_UNIT * known[..., at].astype(float)
quick = timed("faster features", lambda: known_features(FASTER))
network = RefinedEstimator(None, [load_refining(files[0])])
found["faster filter"] = network.refine(quick)["kappa"]
start, weight = found[f"MAP, {PASSES} passes"], min(1.0, 1.0 / max(level, 0.1))
found["weaker correction"] = start + weight * (found[files[0].stem] - start)
if instrument.depth_ratio is None:
    found["Wiener QE"] = timed("Wiener QE", wiener)
if level in RESUNETS:
    resunet = networks_estimator([RESUNETS[level]], 1, instrument.noise_rms(config.patch))
    found["ResUNet on maps"] = timed("ResUNet", lambda: resunet.reconstruct(q, u))
bandpowers = {name: paired.measured(maps) for name, maps in found.items()}
L = paired.spectra.bins.centres
first = files[0].stem


def table(title, row):
    print(f"\n{title}\n{'L':>22}", *(f"{x:6.0f}" for x in L))
    for name in bandpowers:
        if (values := row(name, ones)) is not None:
            error = np.std([row(name, w) for w in paired.draws], axis=0)
            print(f"{name:>22}", *(f"{v:6.3f}" for v in values))
            print(f"{'+-':>22}", *(f"{e:6.3f}" for e in error))


def ratio(name, weight):
    if name == first:
        return None
    return noise(*bandpowers[first], weight) / noise(*bandpowers[name], weight)


analytic = n0_iterated(L, theory, filtered, band_of(config.patch, theory, Filter().lmin))
table(f"N_L of {first} over that of", ratio)
table("N_L over the analytic iterated EB noise", lambda n, w: noise(*bandpowers[n], w) / analytic)
table("response", lambda n, w: (w @ bandpowers[n][1]) / (w @ paired.power))
table(
    "correlation with the truth",
    lambda n, w: (w @ bandpowers[n][1]) / np.sqrt((w @ bandpowers[n][0]) * (w @ paired.power)),
)
if len(files) > 2:
    autos = np.stack([bandpowers[file.stem][0] for file in files])
    scatter = 100.0 * np.mean(autos.std(0, ddof=1) / autos.mean(0), axis=0)
    print("\nscatter of one patch's ⟨κ̂κ̂*⟩ between the networks, % (Caldeira et al. 2018, eq. 18)")
    print(" " * 22, *(f"{x:6.2f}" for x in scatter))
