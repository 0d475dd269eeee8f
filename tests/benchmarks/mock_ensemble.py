"""Mock surveys from maps to posteriors: coverage, χ², and the PTEs of every null test.

    python tests/benchmarks/mock_ensemble.py                 # from the stored table; seconds
    python tests/benchmarks/mock_ensemble.py FOLDER [--grids car healpix car car car] [--mocks N]

Every mock has a sky of its own, at an omch2 drawn from the prior of yaml/survey.yaml. It covers 15
tiles with two splits, as CAR of 1 arcmin or as HEALPix of nside 4096; the mocks take the grids in
turn, by default one HEALPix to four CAR. The beam, the noise (1 to 3 µK-arcmin, with 1/f) and the
holes are those of survey_mock.py. One calibration serves the mocks of a grid, because their inverse
variance and holes are the same. Each mock passes `survey plan`, `reconstruct`, `release` and
`nulls`. A mock takes 400 CPU-seconds, as HEALPix 610, half of them for the nulls, and a calibration
35 CPU-minutes. What is there is not made again. What the mocks gave is written to
mock_ensemble.json, from which the coverage of omch2, the mean of the bandpowers, and the PTEs of χ²
at the truth and of every null, are printed. Draws docs/_static/mock_ensemble.png.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import ducc0
import healpy
import numpy as np
from foreign_simulations import omch2_grid
from pixell import curvedsky, enmap
from scipy import stats
from survey_mock import (
    EXCESS_LMAX,
    LMAX,
    SEED,
    Footprint,
    beamed_sky,
    cnnlens,
    excess_alm,
    write_car,
    write_configuration,
)
from tqdm import tqdm

from cobaya_cnnlens.files import atomic_write
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.tile_nulls import Choices, TileNulls
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.skies import seed_sequence
from cobaya_cnnlens.theory.camb import compute_spectra
from cobaya_cnnlens.validate.survey_nulls import survey_nulls

REPOSITORY = Path(__file__).parents[2]
FIGURE = REPOSITORY / "docs" / "_static" / "mock_ensemble.png"
FOOTPRINT = Footprint((10.0, 34.5), (-31.7, -15.5), 60)
PRIOR = (0.10, 0.14)  # of omch2, as in yaml/survey.yaml
NSIDE = 4096
ENOUGH = 10  # mocks with null tests, for their distribution to be drawn
PATCHES = 600  # of the calibration, from one sky
# Numbers below were those of mocks of another footprint, calibrated with skies of another seed.
FIRST, SKY_SEED = 40, 20
TABLE = Path(__file__).with_suffix(".json")


def truth_of(number):
    """True omch2 of a mock."""
    generator = np.random.default_rng(seed_sequence(SEED, "ensemble/truth", number))
    return generator.uniform(*PRIOR)


def polarisation_at(alm, lmax, theta, phi):
    """Q and U of a_lm of E and B at positions in radians, (2, n) in µK."""
    return ducc0.sht.synthesis_general(
        alm=alm, spin=2, lmax=lmax, loc=np.stack([theta, phi], axis=1), epsilon=1e-5, nthreads=1
    )


def write_healpix(folder, alm, realisation):
    """Two splits as partial HEALPix maps, their inverse variance and the mask."""
    west, east = np.radians(FOOTPRINT.longitudes)
    low, high = np.radians(FOOTPRINT.latitudes)
    pixels = healpy.query_strip(NSIDE, 0.5 * np.pi - high, 0.5 * np.pi - low)
    theta, phi = healpy.pix2ang(NSIDE, pixels)
    inside = (phi > west) & (phi < east)
    pixels, theta, phi = pixels[inside], theta[inside], phi[inside]
    level, seen = FOOTPRINT.level(phi), FOOTPRINT.seen(0.5 * np.pi - theta, phi)
    pixels, theta, phi, level = (values[seen] for values in (pixels, theta, phi, level))
    area = healpy.nside2pixarea(NSIDE)

    def write(name, planes, units):
        whole = np.full((len(planes), 12 * NSIDE**2), healpy.UNSEEN, np.float32)
        whole[:, pixels] = planes
        names = ["Q_POLARISATION", "U_POLARISATION"] if len(planes) == 2 else ["DATA"]
        healpy.write_map(
            folder / name,
            whole,
            partial=True,
            dtype=np.float32,
            column_names=names,
            column_units=units,
            coord="C",
            extra_header=[("POLCCONV", "COSMO")],
            overwrite=True,
        )

    write("mask.fits", np.ones((1, len(pixels))), "")
    write("ivar.fits", area / (2.0 * (level * ARCMIN) ** 2)[None], "uK^-2")
    sky = polarisation_at(alm, LMAX, theta, phi)
    for split in (0, 1):
        seeds = seed_sequence(SEED, "ensemble/noise", realisation, split)
        generator = np.random.default_rng(seeds)
        rms = np.sqrt(2.0) * level
        white = generator.standard_normal(sky.shape) * rms * ARCMIN / np.sqrt(area)
        excess = polarisation_at(excess_alm(generator), EXCESS_LMAX, theta, phi) * rms
        write(f"split_{split}.fits", sky + white + excess, "uK")


def write_maps(grid, folder, config, number):
    """The maps of one mock."""
    theory = compute_spectra(config.cosmology.vary(omch2=truth_of(number)), config.camb)
    alm = beamed_sky(theory, config.sky.lmax, FOOTPRINT, 1 + number)
    if grid == "healpix":
        write_healpix(folder, alm, 1 + number)
        return
    shape, wcs = FOOTPRINT.geometry()
    sky = curvedsky.alm2map(alm, enmap.zeros((2, *shape), wcs), spin=2)
    write_car(folder, FOOTPRINT, np.asarray(sky), 1 + number)


def make_release(grid, number, top, config_path):
    """One mock from maps to its release; the first one of a grid is calibrated."""
    folder = top / grid / f"mock_{number:02d}"
    if (folder / "survey" / "release.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    plan, options = folder / "survey.yaml", ("--config", config_path)
    maps = [folder / f"split_{split}.fits" for split in (0, 1)]
    if not plan.exists():
        write_maps(grid, folder, load_config(config_path), number)
        ivar = ("--ivar", folder / "ivar.fits")
        cnnlens("plan", *maps, *ivar, *ivar, "--mask", folder / "mask.fits", "--out", plan)
    cnnlens("reconstruct", plan, *options)
    calibration = top / grid / "calibration.h5"
    made = folder / "survey" / "calibration.h5"
    if calibration.exists() and not made.exists():
        os.link(calibration, made)
    if not calibration.exists():
        cnnlens("calibrate", plan, *options, "--patches", PATCHES)
        os.link(made, calibration)
    cnnlens("release", plan, *options)


def make_nulls(grid, number, top, run):
    """The null tests of a mock, each with matched simulations of its own."""
    folder = top / grid / f"mock_{number:02d}" / "survey"
    if not (folder / "nulls.txt").exists():
        nulls = nulls_of(folder, run, number)
        nulls.measure(lambda: run.estimator)
        table = survey_nulls(nulls, read_release(folder / "release.json")).table()
        with atomic_write(folder / "nulls.txt") as partial:
            partial.write_text(table + "\n")


def nulls_of(folder, run, number):
    """The products with the null tests of a mock.

    With one seed all mocks would have the same matched simulations, and their PTEs would not be
    independent.
    """
    setup, plan = MapSetup.of_run(run), read_plan(folder.with_suffix(".yaml"))
    return TileNulls(TileReconstruction(plan, setup, folder), Choices.of(setup, seed=number))


@dataclass
class Mock:
    """What one mock gave: its truth, posterior, χ² at the truth with its PTE, and its nulls.

    ``residuals`` are the bandpowers less the model at the truth, in σ. ``shared`` is the part of
    the variance of omch2 that comes from the calibration, ``shared_by_bin`` that of the bandpowers.
    """

    grid: str
    truth: float
    mean: float
    sigma: float
    shared: float
    rank: float
    chi2: float
    pte: float
    residuals: list[float]
    shared_by_bin: list[float]
    nulls: dict[str, dict[str, float]]


def measure(grid, folder, run, omch2_grid):
    """The posterior and nulls of a mock, from its products."""
    release = read_release(folder / "release.json")
    likelihood = BandpowerLikelihood(release)
    table = omch2_grid.table(likelihood)
    without_calibration = BandpowerLikelihood(release, calibration_errors=False)
    [marginal], [of_data] = (
        omch2_grid.posterior(each, table, each.release.bandpowers[None])
        for each in (likelihood, without_calibration)
    )
    truth = truth_of(int(folder.parent.name.removeprefix("mock_")))
    [model] = omch2_grid.at(np.array([[truth]])) @ table
    data = likelihood.release.bandpowers[None]
    chi2 = float(likelihood.chi2_of(model[None], data, likelihood.correction[None]).item())
    tests = {}
    if (folder / "nulls.txt").exists():
        number = int(folder.parent.name.removeprefix("mock_"))
        for test in survey_nulls(nulls_of(folder, run, number), release).tests:
            kept = {"mean": test.mean, "mean_error": test.mean_error, "pte": test.pte}
            tests[test.name] = {key: float(value) for key, value in kept.items()}
    [mean], [sigma], [rank] = marginal.mean, marginal.sigma, marginal.ranks(np.array([truth]))
    shared, pte = 1.0 - (of_data.sigma[0] / sigma) ** 2, float(likelihood.pte(chi2))
    variance = np.diag(likelihood.covariance)
    residuals = (data[0] - model) / np.sqrt(variance)
    shared_by_bin = 1.0 - np.diag(without_calibration.covariance) / variance
    numbers = map(float, (truth, mean, sigma, shared, rank, chi2, pte))
    return Mock(grid, *numbers, residuals.tolist(), shared_by_bin.tolist(), tests)


def uniform(ptes):
    """The KS probability that PTEs are uniform, and the smallest of them."""
    return f"KS p {stats.kstest(ptes, 'uniform').pvalue:.3f}, smallest {min(ptes):.3f}"


def report(mocks):
    """Print the coverage and the PTEs."""
    pulls = np.array([(m.mean - m.truth) / m.sigma for m in mocks])
    for m, pull in zip(mocks, pulls, strict=True):
        print(
            f"{m.grid:>7}: truth {m.truth:.5f}, omch2 {m.mean:.5f} ± {m.sigma:.5f}, {pull:+.2f} σ; "
            f"χ² at the truth {m.chi2:.1f}, PTE {m.pte:.3f}"
        )
    n, ranks = len(mocks), np.array([m.rank for m in mocks])
    for level in (0.68, 0.95):
        inside = (np.abs(ranks - 0.5) < 0.5 * level).mean()
        error = np.sqrt(level * (1.0 - level) / n)
        print(f"{level:.0%} interval holds the truth in {inside:.1%} ± {error:.1%} of {n} mocks")
    for grid in sorted({m.grid for m in mocks}):
        of_grid = pulls[[m.grid == grid for m in mocks]]
        shared = np.mean([m.shared for m in mocks if m.grid == grid])
        error = np.sqrt((1.0 - shared) / len(of_grid) + shared)
        rms = of_grid.std(ddof=1)
        print(
            f"{grid}: mean of {len(of_grid)} pulls {of_grid.mean():+.2f} ± {error:.2f}, of which "
            f"the calibration shares {np.sqrt(shared):.2f}; rms about it {rms:.2f} ± "
            f"{rms / np.sqrt(2.0 * (len(of_grid) - 1)):.2f}"
        )
    slope, off = np.polyfit([m.truth for m in mocks], [m.mean for m in mocks], 1, cov=True)
    print(f"slope of the posterior mean: {slope[0]:.3f} ± {np.sqrt(off[0, 0]):.3f}")
    residuals = np.mean([m.residuals for m in mocks], axis=0)
    shared = np.mean([m.shared_by_bin for m in mocks], axis=0)
    errors = np.sqrt((1.0 - shared) / n + shared)
    each = ", ".join(f"{r:+.2f} ± {e:.2f}" for r, e in zip(residuals, errors, strict=True))
    print(f"mean residual of each bin at the truth, in σ of a mock: {each}")
    print(f"ranks of the truth: {uniform(ranks)}")
    print(f"χ² at the truth: {uniform([m.pte for m in mocks])}")
    tested = [m.nulls for m in mocks if m.nulls]
    print(f"null tests of {len(tested)} mocks:")
    for name in tested[0] if tested else ():
        tests = [nulls[name] for nulls in tested]
        means, errors = np.array([(t["mean"], t["mean_error"]) for t in tests]).T
        weight = errors**-2 / (errors**-2).sum()
        mean = f"{weight @ means:+.2e} ± {(errors**-2).sum() ** -0.5:.1e}"
        print(f"{name:>12}: {uniform([t['pte'] for t in tests])}; mean {mean}")
    if tested:
        ptes = np.array([[test["pte"] for test in nulls.values()] for nulls in tested])
        print(f"{ptes.size} PTEs of all nulls: {uniform(ptes.ravel())}")
        ks = stats.kstest(ptes, "uniform", axis=0).pvalue
        by_chance = 1.0 - (1.0 - ks.min()) ** len(ks)
        print(
            f"{(ks < 0.05).sum()} of {len(ks)} nulls have KS p below 0.05, {0.05 * len(ks):.1f} "
            f"expected; one as low as {ks.min():.3f} with probability {by_chance:.2f}"
        )
    return pulls


def draw(mocks, pulls):
    """The posteriors over their truths, and the PTEs, as cumulative distributions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for grid, marker in (("car", "o"), ("healpix", "s")):
        chosen = [(m, p) for m, p in zip(mocks, pulls, strict=True) if m.grid == grid]
        if not chosen:
            continue
        x = [m.truth for m, _ in chosen]
        left.errorbar(x, [p for _, p in chosen], 1.0, fmt=marker, ms=4, lw=1, label=grid)
    left.axhline(0.0, color="k", lw=0.8)
    left.set(xlabel=r"true $\omega_c$", ylabel=r"(posterior mean − truth)/σ")
    left.legend(frameon=False)

    def cumulative(ptes, **style):
        right.step(np.sort(ptes), (np.arange(len(ptes)) + 1.0) / len(ptes), **style)

    tested = [m.nulls for m in mocks if m.nulls]
    for name in tested[0] if len(tested) >= ENOUGH else ():
        cumulative([nulls[name]["pte"] for nulls in tested], color="0.7", lw=1)
    cumulative([m.pte for m in mocks], color="C3", lw=2, label="χ² at the truth")
    if len(tested) >= ENOUGH:
        right.step([], [], color="0.7", label="null tests")
    right.plot([0, 1], [0, 1], "k", lw=0.8)
    right.set(xlabel="PTE", ylabel="part of the mocks below")
    right.legend(frameon=False)
    figure.savefig(FIGURE, dpi=110)


def make(given):
    """Make what is missing, and the table of all mocks."""
    top = given.folder.absolute()
    top.mkdir(parents=True, exist_ok=True)
    config = write_configuration(top, None, seed=SKY_SEED)
    numbers = range(FIRST, FIRST + given.mocks)
    todo = [(given.grids[i % len(given.grids)], number) for i, number in enumerate(numbers)]
    for grid, number in tqdm(todo, desc="releases", unit="mock"):
        make_release(grid, number, top, config)
    # The filters of the estimator are made once for all mocks.
    run = Run(load_config(config))
    for grid, number in tqdm(todo, desc="null tests", unit="mock"):
        make_nulls(grid, number, top, run)
    prior = omch2_grid(run.config.cosmology, PRIOR)
    paths = (top / grid / f"mock_{n:02d}" / "survey" / "release.json" for grid, n in todo)
    made = [path for path in paths if path.exists()]
    mocks = [measure(path.parts[-4], path.parent, run, prior) for path in made]
    with atomic_write(TABLE) as partial:
        partial.write_text(json.dumps([asdict(mock) for mock in mocks], indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--grids", nargs="+", default=["car", "healpix", "car", "car", "car"])
    parser.add_argument("--mocks", type=int, default=30)
    given = parser.parse_args()
    if given.folder is not None:
        make(given)
    mocks = [Mock(**fields) for fields in json.loads(TABLE.read_text())]
    draw(mocks, report(mocks))


if __name__ == "__main__":
    main()
