"""Unit costs of the stages in CPU-seconds, which cobaya_cnnlens/validate/costs.py holds as a table:
patches of 128² pixels at 1 µK-arcmin, l to 5000, each stage at two numbers of patches, whose
difference is what a patch costs. CPU time of all threads: other work changes it little.

    python tests/benchmarks/costs.py [sky|bands|observation|estimators|training|start …]

Ten CPU-minutes for all.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cobaya_cnnlens.calibrate.derivatives import Bench
from cobaya_cnnlens.calibrate.power import power_of
from cobaya_cnnlens.pipeline.config import Baseline, Network
from cobaya_cnnlens.pipeline.estimators import network_estimator, registered
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate import shards

TRAINING = Path(__file__).parents[2] / "training"
CONFIG = TRAINING / "config" / "refined.yaml"
FEW, MANY = 16, 48
PASSES = {"quadratic": 9, "wiener": 9, "iterated": 9, "probable": 6}


def cpu() -> float:
    """CPU-seconds of this process and its children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def timed(label: str, work: Callable[[], object], each: int = 1) -> float:
    start, wall = cpu(), time.perf_counter()
    work()
    used, wall = cpu() - start, time.perf_counter() - wall
    print(
        f"{label:44s}{used:8.2f} CPU-s{wall:8.1f} s wall{used / each:9.4f} CPU-s each", flush=True
    )
    return used


def run_of(folder: Path, **changes) -> Run:
    config = load_config(CONFIG)
    return Run(config.model_copy(update={"products": folder, "shipped": None, **changes}))


def sky(run: Run) -> None:
    timed("spectra of a cosmology", run.spectra)
    config, whole, used = run.config, run.pointing_of("test"), {}
    for n in (80, 480):
        pointing = shards.some_patches(whole, config.patch, np.arange(n) * 3)

        def make(pointing=pointing):
            drawn = shards.draw_sky(run.spectra(), config.sky.lmax, 1, "test", 0)
            shards.sample_patches(drawn, config.sky, config.patch, pointing, 2)

        used[n] = timed(f"sky of {n} patches", make)
    each = (used[480] - used[80]) / 400
    print(f"  a sky {used[80] - 80 * each:.1f} CPU-s, and {each:.3f} a patch")


def bands(run: Run) -> None:
    """Without κ̂, which every band makes twice."""
    for n in (FEW, MANY):
        made = {}
        label = f"bench of {n} patches"
        timed(label, lambda n=n, made=made: made.update(bench=bench_of(run, n)))
        for kind, edges in (
            ("ee", run.config.derivatives.ee_edges),
            ("kk", run.config.derivatives.kk_edges),
        ):
            last = len(edges) - 2
            for band in (0, last // 2, last):
                label = f"band {kind} to l = {edges[band + 1]}, {n} patches"
                timed(label, lambda m=made, k=kind, b=band: m["bench"].measure(k, b))


def bench_of(run: Run, n: int) -> Bench:
    return Bench(run, 0, 2, measured=lambda q, u: q, rows=np.arange(n))


def observation(run: Run) -> None:
    bench, measured = bench_of(run, MANY), power_of(run)
    q, u = bench.observed()
    measured(q, u)
    times = 20
    timed("E and B power", lambda: [measured(q, u) for _ in range(times)], times * MANY)
    timed("beam, noise and mask", lambda: [bench.observed() for _ in range(times)], times * MANY)


def estimators(run: Run) -> None:
    q, u = bench_of(run, FEW).observed()
    made = {}
    for kind, file in (("resunet", "laptop_1uk.keras"), ("refined", "refined.keras")):
        network = Network(kind=kind, pretrained=TRAINING / "networks" / file)
        made[kind] = network_estimator(run_of(run.config.products, network=network))
    for kind, passes in PASSES.items():
        baseline = Baseline(kind=kind, passes=passes)
        made[kind] = registered(kind)[0](run_of(run.config.products, baseline=baseline))
    for kind, estimator in made.items():
        estimator.reconstruct(q[:4], u[:4])  # compiled, and plans of transforms made
        timed(kind, lambda e=estimator: e.reconstruct(q, u), FEW)


def training(run: Run) -> None:
    """Of the refining network: its features count by their number alone."""
    from cobaya_cnnlens.pipeline import refining
    from cobaya_cnnlens.reconstruct.features import FEATURES, RefiningPatches
    from cobaya_cnnlens.reconstruct.refining import FeatureBatches, ModeWeights

    config, n = run.config, run.config.patch.n_pixels
    network = Network(kind="refined", width=config.network.width)
    learner = refining.new_learner(run_of(config.products, network=network))
    maps = np.zeros((FEW, n, n, len(FEATURES)), np.float16)
    known = RefiningPatches(maps, maps[..., 0], maps[..., 0], np.ones(FEW))
    weights = ModeWeights(config.patch, config.instrument, run.spectra(), np.mean(run.mask**2))

    def steps(number: int) -> None:
        seeds = np.random.SeedSequence(1).spawn(number)
        learner.fit(FeatureBatches(known, weights, seeds, FEW), verbose=0)

    steps(1)  # compiled
    timed("training of the refining network", lambda: steps(10), 10 * FEW)


def start(run: Run) -> None:
    """Of a job: Snakemake reads the workflow, once more under Slurm, and a command its packages."""
    workflow = [sys.executable, "-m", "snakemake", "-s", TRAINING / "Snakefile", "--dry-run"]
    workflow += ["--quiet", "all", "--config", f"pipeline={CONFIG}"]
    where = run.config.products
    where.mkdir(exist_ok=True)
    timed("Snakemake", lambda: subprocess.run(workflow, cwd=TRAINING.parent, check=True))
    code = "import cobaya_cnnlens.cli.main, cobaya_cnnlens.reconstruct.refined"
    timed("imports", lambda: subprocess.run([sys.executable, "-c", code], check=True))


def main(*parts: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(Path(folder))
        for part in parts or ("start", "sky", "observation", "bands", "estimators", "training"):
            globals()[part](run)


if __name__ == "__main__":
    main(*sys.argv[1:])
