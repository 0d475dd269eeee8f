"""The null of l_max over mocks of other cosmologies, with fiducial and with matched simulations.

    python tests/benchmarks/null_ensemble.py [MOCKS] [--tiles N] [--quadratic] [--folder FOLDER]

The true omch2 of each mock is drawn from the prior of yaml/survey.yaml. The tiles are flat, of 1 to
3 µK-arcmin, with a hole of 10 arcmin each. Optics and network are those of refined_fiducial;
``--quadratic`` takes the quadratic EB estimator instead, in a tenth of the time. A mock is kept in
FOLDER (products/null_ensemble by default), and is not made again. Two mocks or more.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import stats
from tqdm import tqdm

from cobaya_cnnlens import read_emulator
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.tile_maps import TilePatches
from cobaya_cnnlens.maps.tile_nulls import Bench, Choices
from cobaya_cnnlens.maps.tiles import Tile
from cobaya_cnnlens.pipeline.release_networks import find_networks
from cobaya_cnnlens.reconstruct.learned import learned_estimator
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.theory.camb import Cosmology
from cobaya_cnnlens.validate.null_tests import null_test
from cobaya_cnnlens.validate.survey_nulls import relative

ROOT = Path(__file__).parents[2]
LEVELS, DIAMETER = (1.0, 3.0), 10.0  # µK-arcmin, arcmin
FACTOR = 6  # bins of the release to one of the null
PRIOR = (0.10, 0.14)  # of omch2, as in yaml/survey.yaml


def estimator_of(setup, quadratic):
    if not quadratic:
        networks = find_networks(setup.fiducial)
        return learned_estimator(
            networks, setup.patch, setup.instrument, setup.mask, lambda: setup.theory
        )
    own = QuadraticEstimator(setup.patch, setup.instrument, setup.mask, setup.theory)
    return SimpleNamespace(reconstruct=lambda q, u, rms: own.reconstruct(q, u))


def spectra_of(setup, emulator, omch2):
    """The fiducial spectra times what omch2 changes, constant beyond the emulator's end."""
    known = vars(Cosmology()) | {"logA": np.log(1e10 * Cosmology().As)}
    fiducial = {name: known[name] for name in emulator.parameters}
    point = fiducial | {"omch2": omch2}
    theory, end = setup.theory, emulator.lmax + 1
    ratios = []
    for new, old in zip(emulator(point)[:2], emulator(fiducial)[:2], strict=True):
        ratio = np.divide(new, old, out=np.ones(end), where=old > 0)
        ratios.append(np.concatenate([ratio, np.full(theory.lmax + 1 - end, ratio[-1])]))
    return replace(theory, kk=ratios[0] * theory.kk, ee=ratios[1] * theory.ee)


def tile_of(setup, number, level, generator):
    n, pixel = setup.patch.n_pixels, setup.patch.pixel
    y, x = np.indices((n, n)) - generator.uniform(0.2 * n, 0.8 * n, 2)[:, None, None]
    seen = np.hypot(y, x) * pixel > 0.5 * DIAMETER * ARCMIN
    ivar = np.where(seen, (pixel / (level * ARCMIN)) ** 2, 0.0)
    return Tile(number, np.zeros(2), setup.patch, setup.mask, ivar[None])


def low_and_all(bench, maps, kappa=None):
    """Power of κ̂ to l_max less κ̂, and of κ̂."""
    inputs = [bench._low(maps), *([] if kappa is not None else [(maps.q, maps.u)])]
    q, u = (np.stack(parts) for parts in zip(*inputs, strict=True))
    found = bench.estimator.reconstruct(q, u, np.stack([maps.tile.rms] * len(q)))
    kappa = found[1] if kappa is None else kappa
    return np.stack([bench._auto(found[0] - kappa), bench._auto(kappa)])


def mock(setup, estimator, emulator, number, n_tiles):
    """Powers (n_tiles, 2, n_bins) of the tiles and of both kinds of simulations of a mock."""
    generator = np.random.default_rng([41, number])
    choices = Choices.of(setup, seed=number)
    sky = Bench(setup, estimator, Choices.of(setup, seed=10_000 + number))
    sky.skies = sky._skies(spectra_of(setup, emulator, generator.uniform(*PRIOR)))
    bench = Bench(setup, estimator, choices)
    blank = np.zeros((1, *setup.mask.shape))
    tiles = []
    for i, level in enumerate(np.geomspace(*LEVELS, n_tiles)):
        tile = tile_of(setup, i, level, generator)
        maps = sky.simulated(TilePatches(tile, blank, blank, blank[0], blank[0]), 0)
        kappa = estimator.reconstruct(maps.q[None], maps.u[None], tile.rms[None])[0]
        tiles.append((maps, kappa))
    arrays = {
        "tiles": np.stack([low_and_all(bench, maps, kappa) for maps, kappa in tiles]),
        "fiducial": np.stack([low_and_all(bench, bench.simulated(m, 0)) for m, _ in tiles]),
        "factors": np.array(bench.measure_power(tiles).factors),
    }
    arrays["matched"] = np.stack([low_and_all(bench, bench.simulated(m, 0)) for m, _ in tiles])
    return arrays


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mocks", type=int, nargs="?", default=20)
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--quadratic", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / "products" / "null_ensemble")
    given = parser.parse_args()
    kind = "quadratic" if given.quadratic else "network"
    folder = given.folder / f"{kind}_{given.tiles}"
    folder.mkdir(parents=True, exist_ok=True)
    setup, emulator = MapSetup.of_release(read_release("refined_fiducial")), read_emulator("lcdm")
    estimator = estimator_of(setup, given.quadratic)
    made = []
    for number in tqdm(range(given.mocks), desc="mocks", unit="mock"):
        path = folder / f"mock_{number:03d}.npz"
        if not path.exists():
            np.savez(path, **mock(setup, estimator, emulator, number, given.tiles))
        with np.load(path) as arrays:
            made.append(dict(arrays))
    print("factors of C^kk and of C^EE: ", np.round([m["factors"] for m in made], 2).tolist())
    for kind in ("fiducial", "matched"):
        tests, samples = [], []
        for arrays in made:
            powers = {name: setup.spectra.merge(arrays[name], FACTOR) for name in ("tiles", kind)}
            # One bin for a mock, by modes, and four for all of them.
            one = {name: setup.spectra.merge(arrays[name], setup.bins.n_bins) for name in powers}
            tests.append(null_test("", "", np.zeros(1), relative(*one.values())))
            samples.append(relative(*powers.values()))
        ptes = [test.pte for test in tests]
        kappa = np.array([arrays["factors"][0] for arrays in made])
        means, errors = np.array([(100 * test.mean, 100 * test.mean_error) for test in tests]).T
        (slope, _), covariance = np.polyfit(kappa, means, 1, w=1.0 / errors, cov="unscaled")
        every = null_test("", "", np.zeros(samples[0].shape[1]), np.concatenate(samples))
        print(
            f"{kind}: l_max of each mock in % "
            + ", ".join(f"{m:+.1f} ± {e:.1f}" for m, e in zip(means, errors, strict=True))
            + f"\n  slope with C^kk {slope:+.1f} ± {np.sqrt(covariance[0, 0]):.1f} %, "
            f"chi2 of the mocks {np.sum((means / errors) ** 2):.1f}"
            + f"\n  PTEs {np.round(np.sort(ptes), 3).tolist()}, KS p "
            f"{stats.kstest(ptes, 'uniform').pvalue:.3f}"
            + f"\n  all tiles in % {np.round(100 * every.values, 2)} ± "
            f"{np.round(100 * every.errors, 2)}, PTE {every.pte:.3g}"
        )


if __name__ == "__main__":
    main()
