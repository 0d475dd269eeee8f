"""What the ascent's κ̂ gains and costs when its filter converges less or further, its transforms are
more exact, or the box is smaller.

    python tests/benchmarks/tolerance.py [CONFIG] [PATCHES]

CONFIG is training/config/refined.yaml or a member of training/config/refined_levels.yaml. Prints
CPU per patch, iterations of each pass, and N_L over that of the sixth pass as it is; the mean κ̂ is
off, which a network learns, and errors are paired, by bootstrap over the patches. Makes validation
sky 0 if it is not there, in a minute and a half; some 4 s a patch at 1 µK-arcmin.
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
from cobaya_cnnlens.reconstruct import map_lensing, wiener
from cobaya_cnnlens.reconstruct.features import PASSES
from cobaya_cnnlens.simulate import periodic

ROOT = Path(__file__).parents[2]
TODAY = (map_lensing.TOLERANCES, periodic.EPSILON["single"], 28)
VARIANTS = {
    "today": TODAY,
    "2.5e-4 from pass 5": ((2e-3, 1e-3, 5e-4, 3e-4, 2.5e-4), *TODAY[1:]),
    "2e-5 throughout": ((2e-5,), *TODAY[1:]),
    "transforms to 1e-4": (TODAY[0], 1e-4, TODAY[2]),
    "box of 150 pixels": (*TODAY[:2], 22),
    "box of 144 pixels": (*TODAY[:2], 16),
}

arguments = sys.argv[1:]
config = load_config(arguments[0] if arguments else ROOT / "training" / "config" / "refined.yaml")
wanted = int(arguments[1]) if len(arguments) > 1 else 32
run = Run(config)
Skies(run).measure("validation", [0])
seen = observe_sky(run, "validation", 0)
chosen = np.arange(wanted) * len(seen.q) // wanted
q, u = seen.q[chosen], seen.u[chosen]
paired = Paired(run, seen.kappa[chosen])
iterations: list[int] = []
conjugate_gradients = wiener.conjugate_gradients


def counted(apply, *others):
    """The same, and how often ``apply`` was called."""
    calls = 0

    def counting(z):
        nonlocal calls
        calls += 1
        return apply(z)

    found = conjugate_gradients(counting, *others)
    iterations.append(calls)
    return found


def measured(tolerances, epsilon, border):
    """κ̂ after the last two passes, (2, n, ny, nx), and CPU-s a patch."""
    map_lensing.TOLERANCES, periodic.EPSILON["single"] = tolerances, epsilon
    map_lensing.Box = lambda *a, **k: periodic.Box(*a, border=border, **k)
    ascent = map_lensing.MAPLensing(
        config.patch, config.instrument, run.mask, run.spectra(), PASSES, 1
    )
    rms = ascent.noise_rms()
    ascent.last(q[0], u[0], rms)  # makes its filters
    iterations.clear()
    start, found = process_time(), []
    for maps in zip(q, u, strict=True):
        found.append([run.mask * step.kappa for step in ascent.passes(*maps, rms)][-2:])
    return np.swapaxes(found, 0, 1), (process_time() - start) / wanted


wiener.conjugate_gradients = counted
reference = None
print(f"{config.name}: {config.instrument.noise_uk_arcmin:g} µK-arcmin, {wanted} patches")
print("L", *(f"{x:.0f}" for x in paired.spectra.bins.centres))
for name, variant in VARIANTS.items():
    maps, cost = measured(*variant)
    each = np.reshape(iterations, (wanted, PASSES)).mean(0)
    print(f"\n{name}: {cost:.3f} CPU-s a patch; iterations", *(f"{x:.0f}" for x in each))
    for number, kappa in zip((PASSES - 1, PASSES), maps, strict=True):
        found = paired.measured(kappa)
        reference = reference or found
        ratio, error = paired.ratio(found, reference)
        print(f"pass {number}", *(f"{x:6.3f}" for x in ratio))
        print("    +-", *(f"{x:6.3f}" for x in error), flush=True)
