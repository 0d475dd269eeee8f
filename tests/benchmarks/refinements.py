"""What would lower the refining network's noise: N_L of κ̂ averaged over the symmetries of the
square; mixed with the step of one more pass of the ascent at κ̂, at each L in the best linear way;
and of the network applied once more to the features of that pass; over that of κ̂. The same
patches, errors paired by bootstrap.

    python tests/benchmarks/refinements.py [PATCHES]

Takes training/config/refined.yaml. Makes validation sky 0 if it is not there, in a minute and a
half; 2 CPU-s a patch.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.fft
from paired import Paired

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.features import (
    FEATURES,
    KAPPA_UNIT,
    PASSES,
    REFINED,
    features_of,
    turned,
)
from cobaya_cnnlens.reconstruct.features import _fields as fields_of
from cobaya_cnnlens.reconstruct.map_lensing import TOLERANCES, MAPLensing
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, load_refining
from cobaya_cnnlens.reconstruct.resunet import SYMMETRIES

ROOT = Path(__file__).parents[2]
wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 64
run = Run(load_config(ROOT / "training" / "config" / "refined.yaml"))
config, mask = run.config, run.mask
Skies(run).measure("validation", [0])
seen = observe_sky(run, "validation", 0)
chosen = np.arange(wanted) * len(seen.q) // wanted
q, u = seen.q[chosen], seen.u[chosen]
paired = Paired(run, seen.kappa[chosen])
spectra = paired.spectra
ascent = MAPLensing(config.patch, config.instrument, mask, run.spectra(), PASSES)
network = RefinedEstimator(None, [load_refining(NETWORKS / "refined.keras")])
box, rms = ascent.box, ascent.noise_rms()
features = np.stack(list(features_of(ascent, q, u)))
refined = network.refine(features)["kappa"]
inverse = np.divide(2.0, box.ell**2, out=np.zeros_like(box.ell), where=box.ell > 0)
prior = box.spectrum(run.spectra().pp)
inverse_prior = np.divide(1.0, prior, out=np.zeros_like(prior), where=prior > 0)


def once_more(i: int) -> tuple[np.ndarray, np.ndarray]:
    """κ's step at the network's κ̂, masked, and the features there."""
    last = ascent.last(q[i], u[i], rms)
    # Beyond the patch, and where the mask hides it, φ is that of the pass before.
    change = box.pad(refined[i] - mask * ascent.kappa(last.phi))
    phi = np.where(prior > 0, last.phi + inverse * scipy.fft.fft2(change), 0.0)
    positions = box.positions(phi)
    wiener = last.filter.with_noise(np.where(mask > 0, rms, np.inf), TOLERANCES[-1])
    modes = wiener.filter(last.data, positions, last.modes)
    slope = wiener.slope(last.data, modes, positions) / box.pixel**2 - phi * inverse_prior
    (_, noise) = ascent._filters_for(config.instrument.noise_uk_arcmin)[-1]
    step = mask * ascent.kappa(np.where(prior > 0, slope / (inverse_prior + 1.0 / noise), 0.0))
    there = replace(last, modes=modes, positions=positions, filter=wiener)
    again = features[i].copy()
    sigma = box.pad(np.where(mask > 0, rms, 0.0))
    for name, values in fields_of(box, there, sigma).items():
        again[..., FEATURES.index(name)] = mask * box.crop(values)
    again[..., FEATURES.index(REFINED)] = refined[i] / KAPPA_UNIT
    return step, again


def under(turns: int, flip: bool) -> np.ndarray:
    """κ̂ of the features under a symmetry, turned back."""
    kappa = network.refine(turned(features, turns, flip))["kappa"]
    return np.rot90(kappa[..., ::-1] if flip else kappa, -turns, axes=(1, 2))


with ThreadPoolExecutor() as pool:
    steps, after = (np.stack(x) for x in zip(*pool.map(once_more, range(wanted)), strict=True))
averaged = np.mean([under(*symmetry) for symmetry in SYMMETRIES], axis=0)
maps = [refined, steps, network.refine(after)["kappa"], averaged]
found = [spectra.transform(x) for x in maps]
products = np.array([[spectra.cross(a, b) for b in found] for a in found])
crosses = np.array([spectra.cross(a, paired.true) for a in found])


def noise(which: list[int], weight: np.ndarray) -> np.ndarray:
    """N_L/C_L of the best mixture of these maps, C²/⟨κκ̂*⟩²⟨κ̂κ̂*⟩ − 1 over the patches."""
    among = np.einsum("i,...ib->b...", weight, products[np.ix_(which, which)])
    with_truth = np.einsum("i,...ib->b...", weight, crosses[which])
    known = (with_truth * np.linalg.solve(among, with_truth[..., None])[..., 0]).sum(-1)
    return weight @ paired.power / known - 1.0


print(f"N_L over that of the network's κ̂, {wanted} patches")
print(f"{'L':>20}", *(f"{x:6.0f}" for x in spectra.bins.centres))
mixtures = {"8 symmetries": [3], "and the step": [0, 1], "the network again": [2]}
for name, which in mixtures.items():
    ratio = noise(which, paired.ones) / noise([0], paired.ones)
    error = np.std([noise(which, w) / noise([0], w) for w in paired.draws], axis=0)
    print(f"{name:>20}", *(f"{x:6.3f}" for x in ratio))
    print(f"{'+-':>20}", *(f"{x:6.3f}" for x in error))
