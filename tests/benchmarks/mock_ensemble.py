"""Mock surveys from maps to posteriors: coverage, χ², and the PTEs of every null test.

    python tests/benchmarks/mock_ensemble.py FOLDER [--grids car healpix] [--mocks N]

Every mock has a sky of its own, at an omch2 drawn from the prior of yaml/survey.yaml. It covers 16
tiles with two splits, as CAR of 1 arcmin or as HEALPix of nside 4096. The beam, the noise (1 to 3
µK-arcmin, with 1/f) and the holes are those of survey_mock.py. One calibration serves the mocks of
a grid, because their inverse variance and holes are the same. Each mock passes `survey plan`,
`reconstruct`, `release` and `nulls`. A mock takes 200 CPU-seconds and a calibration half an hour.
What is there is not made again.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import ducc0
import healpy
import numpy as np
from pixell import curvedsky, enmap
from survey_mock import (
    EXCESS_LMAX,
    LMAX,
    SEED,
    Footprint,
    beamed_sky,
    excess_alm,
    write_car,
    write_configuration,
)
from tqdm import tqdm

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.skies import seed_sequence
from cobaya_cnnlens.theory.camb import compute_spectra

REPOSITORY = Path(__file__).parents[2]
FOOTPRINT = Footprint((10.0, 34.5), (-36.5, -15.5), 80)
PRIOR = (0.10, 0.14)  # of omch2, as in yaml/survey.yaml
NSIDE = 4096
PATCHES = 320  # of the calibration


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


def cnnlens(*words):
    command = [sys.executable, "-m", "cobaya_cnnlens", "survey", *map(str, words)]
    subprocess.run(command, check=True, cwd=REPOSITORY)


def make(grid, number, top, config_path):
    """One mock from maps to its nulls; the first one of a grid is calibrated."""
    folder = top / grid / f"mock_{number:02d}"
    if (folder / "survey" / "nulls.txt").exists():
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
    cnnlens("calibrate", plan, *options, "--patches", PATCHES)
    if not calibration.exists():
        os.link(made, calibration)
    release = folder / "survey" / "release.json"
    cnnlens("release", plan, *options)
    cnnlens("nulls", plan, *options, "--survey-release", release)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grids", nargs="+", default=["car", "healpix"])
    parser.add_argument("--mocks", type=int, default=15, help="of each grid")
    given = parser.parse_args()
    top = given.folder.absolute()
    top.mkdir(parents=True, exist_ok=True)
    config = write_configuration(top, None)
    for i in tqdm(range(given.mocks), desc="mocks", unit="mock"):
        for grid in given.grids:
            make(grid, 2 * i + (grid == "healpix"), top, config)


if __name__ == "__main__":
    main()
