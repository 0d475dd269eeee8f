"""How often 68% and 95% intervals of omch2 hold the truth, by statistics, in a Monte Carlo of a
release.

    python tests/benchmarks/intervals.py [RELEASE] [DRAWS]

Surveys of the release's size are drawn at three truths with the scatter that each has there: the
release's covariance times (µ + N)(µ + N)ᵀ over its fiducial value. CAMB runs at eight values of
omch2 first, for half a minute. Intervals are central ones of the posterior on a grid, flat prior.
"""

import sys
from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicSpline

from cobaya_cnnlens.likelihood.bandpowers import STATISTICS, BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.likelihood.statistics import hamimeche_lewis
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology, compute_spectra

TRUTHS = (0.1085, 0.1185, 0.1285)
release = read_release(sys.argv[1] if len(sys.argv) > 1 else "refined_fiducial")
draws = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
likelihood = BandpowerLikelihood(release, statistics="gaussian")
nodes = np.arange(0.1010, 0.1361, 0.005)
settings = CambSettings(lmax=4500, lens_potential_accuracy=4.0)
base = Cosmology(**release.theory["cosmology"])
theory = [compute_spectra(replace(base, omch2=float(x)), settings) for x in nodes]
model = CubicSpline(nodes, [likelihood.model(s.kk, s.ee) for s in theory])
grid = np.linspace(nodes[0], nodes[-1], 1401)
total = model(grid) + release.noise
fiducial = model(base.omch2) + release.noise


def central(log):
    """The posterior below every point of the grid, for each draw."""
    below = np.cumsum(np.exp(log - log.max(1, keepdims=True)), axis=1)
    return below / below[:, -1:]


def ranks(data, statistics, truth):
    """Part of each draw's posterior below the truth."""
    inverse = BandpowerLikelihood(release, statistics=statistics).inverse
    found = []
    for chunk in np.array_split(data, max(1, len(data) // 200)):
        if statistics == "hamimeche-lewis":
            ratio = (chunk[:, None] + release.noise) / total
            deviation = fiducial * hamimeche_lewis(ratio)
        else:
            deviation = chunk[:, None] - model(grid)
        chi2 = np.einsum("dgb,bc,dgc->dg", deviation, inverse, deviation, optimize=True)
        log = -0.5 * chi2
        if statistics == "sellentin-heavens":
            log = -0.5 * release.n_sim * np.log1p(chi2 / (release.n_sim - 1))
        found.append(central(log)[:, np.searchsorted(grid, truth)])
    return np.concatenate(found)


print(f"{release.name}: {release.n_patches} patches, {draws} surveys a truth")
print(f"{'':>18}", *(f"{truth:>22}" for truth in TRUTHS))
root = np.linalg.cholesky(likelihood.covariance)
for statistics in STATISTICS:
    cells = []
    for truth in TRUTHS:
        generator = np.random.default_rng(1)
        scale = (model(truth) + release.noise) / fiducial
        data = model(truth) + scale * (generator.standard_normal((draws, len(root))) @ root.T)
        rank = ranks(data, statistics, truth)
        held = [100 * np.mean(np.abs(rank - 0.5) < part / 2) for part in (0.6827, 0.9545)]
        error = 100 * np.sqrt(0.6827 * 0.3173 / draws)
        cells.append(f"{held[0]:5.1f} ± {error:.1f}%, {held[1]:5.1f}%")
    print(f"{statistics:>18}", *(f"{cell:>22}" for cell in cells))
