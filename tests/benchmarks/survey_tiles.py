"""Tiles of a survey that was calibrated: N of a class against each tile's own, and the scatter of
the data's tiles against that of simulated ones.

    python tests/benchmarks/survey_tiles.py PLAN CONFIG [FOLDER]

FOLDER is that of the survey's products, named as the plan if not given. Seconds.
"""

import sys
from pathlib import Path

import numpy as np
from scipy import stats

from cobaya_cnnlens.maps.assembly import Calibrated
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run

plan, run = read_plan(sys.argv[1]), Run(load_config(sys.argv[2]))
folder = Path(sys.argv[3]) if len(sys.argv) > 3 else plan.path.with_suffix("")
calibrated = Calibrated.read(run, plan, folder)
weights, tiles, auto = calibrated.weights, calibrated.tiles, calibrated.normalised
noise = auto - calibrated.arrays["test_truth"]
label = weights.label[tiles]
mean = np.array([auto[label == c].mean(0) for c in range(label.max() + 1)])
rows = np.bincount(label)


def scatter(values, unit):
    """In units of each class, (n_classes, n_bins), of all classes together, (n_bins,)."""
    centre = np.array([values[label == c].mean(0) for c in range(len(rows))])
    off = (values - centre[label]) / unit[label]
    return np.sqrt((off**2).sum(0) / (rows - 1).sum())


# Of N with itself and with κ.
signal = calibrated.arrays["test_truth"].mean(0)
of_class = np.array([noise[label == c].mean(0) for c in range(len(rows))])
of_class = np.maximum(of_class, 0.05 * signal)
of_noise = np.sqrt(of_class**2 + 2 * of_class * signal)
sigma = scatter(noise, of_noise) * of_noise
off = []
for tile in range(len(plan.tiles)):
    own, others = tiles == tile, (tiles != tile) & (label == weights.label[tile])
    if others.sum() < 3:
        continue
    error = sigma[weights.label[tile]] * np.sqrt(1 / own.sum() + 1 / others.sum())
    off.append((noise[own].mean(0) - noise[others].mean(0)) / error)
off = np.array(off)
print(f"{label.max() + 1} classes; N of {len(off)} tiles against the rest of their class:")
print(f"  within 2 standard errors: {100 * (np.abs(off) < 2).mean():.1f}% of {off.size}")
print(f"  chi2 per number: {(off**2).mean():.3f} ± {np.sqrt(2 / off.size):.3f}")

data = TileReconstruction(plan, MapSetup.of_run(run), folder).read()
number = np.arange(len(plan.tiles))
seen = weights.normalised(data.auto, number) / mean[weights.label]
# About the mean of all tiles, which the cosmology moves.
of_data = (seen / seen.mean(0) - 1).var(0, ddof=1)
# The class's mean scatters too.
expected = scatter(auto, mean) ** 2 * (1 + 1 / rows[weights.label]).mean()
ratio = np.sqrt(of_data / expected)
print(
    "scatter of the data's tiles over that of simulated ones, by bin:", *(f"{r:.2f}" for r in ratio)
)
print(f"  rms {np.sqrt((ratio**2).mean()):.3f} ± {np.sqrt(0.5 / (len(number) * len(ratio))):.3f}")

halves = {
    "east and west": data.centres[:, 1] > np.median(data.centres[:, 1]),
    "north and south": data.centres[:, 0] < np.median(data.centres[:, 0]),
    "every second": number % 2 == 0,
}
n_of = np.array([noise[tiles == t].mean(0) for t in number])
spread = mean[weights.label] * scatter(auto, mean)
for name, half in halves.items():
    two, variance = [], []
    for part in (half, ~half):
        w = weights.weight[part] / weights.weight[part].sum(0)
        two.append((w * (weights.normalised(data.auto, number)[part] - n_of[part])).sum(0))
        counts = np.bincount(tiles, minlength=len(number))[part][:, None]
        own = sigma[weights.label[part]]
        variance.append((w**2 * (spread[part] ** 2 + own**2 / counts)).sum(0))
    z = (two[0] - two[1]) / np.sqrt(variance[0] + variance[1])
    chi2 = (z**2).sum()
    print(f"{name}: chi2 {chi2:.1f} of {len(z)}, PTE {stats.chi2.sf(chi2, len(z)):.2f}")
