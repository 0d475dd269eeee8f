"""A mock survey of 1,000 square degrees from maps to a posterior, with the wall time of each stage.

    python tests/benchmarks/survey_mock.py FOLDER [--skies FOLDER] [--realisation N]

Two splits of Q and U as CAR of 1′: a sky lensed at omch2 = .1235 (the fiducial is .1185), the beam
of a file, noise whose depth varies by a factor of 3 in rms over the footprint, 1/f with a knee at
l = 200, and 200 holes of 10′. Then `survey plan`, `reconstruct`, `calibrate` and `release`, under
a configuration that is written to FOLDER. ``--skies`` names a folder of skies of
training/config/refined.yaml, which are made otherwise (20 CPU-minutes); ``--realisation`` draws
other noise over the same sky. An hour on two cores without skies, and 6 GB of memory. What is there
is not made again.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from pixell import curvedsky, enmap

import yaml
from cobaya_cnnlens.likelihood.release import read_release, write_release
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import Pointing
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, seed_sequence, unit_alm
from cobaya_cnnlens.theory.camb import compute_spectra

REPOSITORY = Path(__file__).parents[2]
OMCH2, SEED = 0.1235, 1717
STEP, MARGIN = 1.0, 1.5  # ′, degrees
LONGITUDES, LATITUDES = (10.0, 55.0), (-40.0, -12.0)
HOLES, DIAMETER = 200, 10.0
LEVELS = (1.0, 3.0)  # µK′ of the coadd, east to west
KNEE, SLOPE, LOWEST = 200.0, 2.5, 36
LMAX = 6500
CONFIG = {
    "name": "survey_mock",
    "shipped": None,
    "instrument": {
        "noise_uk_arcmin": 1.7,
        "taper_deg": 0.5,
        "one_over_f": {"knee": KNEE, "slope": SLOPE},
    },
    "skies": {"train": 4, "validation": 1, "test": 1, "derivatives": 1},
    "bandpowers": {"lmin": 36, "width": 254, "n_bins": 8},
    "derivatives": {
        "patches": 24,
        "step": 0.2,
        "kk_edges": [2, 290, 544, 925, 1433, 2195, 4401],
        "ee_edges": [2, 300, 700, 1100, 1500, 1900, 2400, 3100, 4401],
    },
    "nuisances": {"skies": 1, "patches": 16},
    "points": None,
}


def beam_of(ell):
    """A measured beam: a Gaussian of 1.2′ with a shoulder."""
    sigma = 1.2 * ARCMIN / np.sqrt(8.0 * np.log(2.0))
    return np.exp(-0.5 * (ell * sigma) ** 2) * (0.98 + 0.02 * np.exp(-((ell / 1500.0) ** 2)))


def write_configuration(folder, skies):
    ell = np.arange(2, 7001)
    np.savetxt(folder / "beam.txt", np.column_stack([ell, beam_of(ell) / beam_of(2)]))
    content = {
        "base": str(REPOSITORY / "training" / "config" / "refined.yaml"),
        **CONFIG,
        "products": str(folder / "products"),
        "skies_from": str(skies or folder / "products" / "skies"),
    }
    content["instrument"] = content["instrument"] | {"beam_file": str(folder / "beam.txt")}
    pretrained = NETWORKS / "refined.keras"
    content["network"] = {"pretrained": str(pretrained)}
    (folder / "mock.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "mock.yaml"


def geometry(margin):
    """Pixels of the footprint with a margin in degrees."""
    corners = [
        [LATITUDES[0] - margin, LONGITUDES[1] + margin],
        [LATITUDES[1] + margin, LONGITUDES[0] - margin],
    ]
    return enmap.geometry2(pos=np.radians(corners), res=STEP * ARCMIN, proj="car")


def beamed_sky(config):
    """Q and U (COSMO) of the lensed sky through the beam on the footprint, (2, ny, nx) in µK."""
    theory = compute_spectra(config.cosmology.vary(omch2=OMCH2), config.camb)
    sky = draw_sky(theory, config.sky.lmax, SEED, "mock", 0)
    shape, wcs = geometry(MARGIN)
    latitude, longitude = enmap.posmap(shape, wcs)
    at = Pointing(
        0.5 * np.pi - np.ravel(latitude),
        np.ravel(longitude) % (2 * np.pi),
        np.zeros(np.prod(shape)),
    )
    gradient = patches.gradient_at(sky.philm, sky.lmax, at)
    deflection = patches.deflect_by(gradient, at)
    lensed = patches.lensed_polarisation_at(sky.elm, sky.lmax, at, deflection)
    maps = enmap.ndmap(np.stack([lensed.real, lensed.imag]).reshape(2, *shape), wcs)
    # To zero over the outer two thirds of the margin, before the beam.
    away = np.minimum.reduce(
        [
            np.radians(LATITUDES[1] + MARGIN) - latitude,
            latitude - np.radians(LATITUDES[0] - MARGIN),
            np.radians(LONGITUDES[1] + MARGIN) - longitude,
            longitude - np.radians(LONGITUDES[0] - MARGIN),
        ]
    )
    maps *= np.sin(0.5 * np.pi * np.clip(away / np.radians(1.0), 0.0, 1.0)) ** 2
    alm = curvedsky.map2alm(maps, lmax=LMAX, spin=2, method="cyl")
    beam = beam_of(np.arange(LMAX + 1)) / beam_of(2)
    alm = np.array([curvedsky.almxfl(part, beam) for part in alm])
    inner, inner_wcs = geometry(0.0)
    return curvedsky.alm2map(alm, enmap.zeros((2, *inner), inner_wcs), spin=2)


def footprint():
    """Level of the coadd in µK′, and what was seen, (ny, nx)."""
    shape, wcs = geometry(0.0)
    latitude, longitude = enmap.posmap(shape, wcs)
    west, east = np.radians(LONGITUDES)
    level = LEVELS[0] * (LEVELS[1] / LEVELS[0]) ** ((longitude - west) / (east - west))
    generator = np.random.default_rng(seed_sequence(SEED, "mock/holes", 0))
    low, high = np.sin(np.radians(LATITUDES))
    seen = np.ones(shape, bool)
    for b, a in zip(
        np.arcsin(generator.uniform(low, high, HOLES)),
        generator.uniform(west, east, HOLES),
        strict=True,
    ):
        cosine = np.sin(b) * np.sin(latitude)
        cosine = cosine + np.cos(b) * np.cos(latitude) * np.cos(longitude - a)
        seen &= cosine < np.cos(0.5 * DIAMETER * ARCMIN)
    return level, seen, wcs


def noise(level, wcs, realisation, split):
    """White noise and its excess at low multipoles, (2, ny, nx) in µK."""
    seeds = seed_sequence(SEED, "mock/noise", realisation, split)
    generator = np.random.default_rng(seeds)
    rms = level * ARCMIN / np.sqrt(np.asarray(enmap.pixsizemap(level.shape, wcs)))
    white = generator.standard_normal((2, *level.shape)) * rms
    ell = np.arange(3001.0)
    factor = np.zeros(len(ell))
    factor[LOWEST:] = ARCMIN * (KNEE / ell[LOWEST:]) ** (0.5 * SLOPE)
    alm = np.array([scale_alm(unit_alm(len(ell) - 1, generator), factor) for _ in range(2)])
    excess = curvedsky.alm2map(alm, enmap.zeros((2, *level.shape), wcs), spin=2)
    return white + np.asarray(excess) * level


def write_maps(folder, config, realisation):
    """Two splits, their inverse variance and the mask; the sky is kept for other realisations."""
    kept = folder / "sky.npy"
    if not kept.exists():
        np.save(kept, np.asarray(beamed_sky(config), np.float32))
    sky = np.load(kept)
    level, seen, wcs = footprint()
    area = np.asarray(enmap.pixsizemap(level.shape, wcs))
    enmap.write_map(str(folder / "mask.fits"), enmap.ndmap(seen.astype(np.float32), wcs))
    ivar = np.where(seen, area / (2.0 * (level * ARCMIN) ** 2), 0.0)
    enmap.write_map(str(folder / "ivar.fits"), enmap.ndmap(ivar.astype(np.float32), wcs))
    fits.setval(folder / "ivar.fits", "BUNIT", value="uK^-2")
    names = []
    for split in (0, 1):
        maps = sky + noise(level * np.sqrt(2.0), wcs, realisation, split)
        maps[:, ~seen] = np.nan
        names.append(folder / f"split_{split}.fits")
        enmap.write_map(str(names[-1]), enmap.ndmap(maps.astype(np.float32), wcs))
        for key, value in (("BUNIT", "uK"), ("POLCCONV", "COSMO")):
            fits.setval(names[-1], key, value=value)
    return names


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--skies", type=Path)
    parser.add_argument("--realisation", type=int, default=0)
    parser.add_argument("--patches", type=int, default=160)
    given = parser.parse_args()
    folder = given.folder.absolute() / f"noise_{given.realisation}"
    folder.mkdir(parents=True, exist_ok=True)
    top = folder.parent
    config = write_configuration(top, given.skies and given.skies.absolute())
    times_path = folder / "times.json"
    times = json.loads(times_path.read_text()) if times_path.exists() else {}

    def clocked(name, work):
        if name in times:
            return
        began = time.time()
        work()
        times[name] = round(time.time() - began, 1)
        times_path.write_text(json.dumps(times, indent=2))
        print(f"{name}: {times[name]} s", flush=True)

    def cnnlens(*words):
        command = [sys.executable, "-m", "cobaya_cnnlens", "survey", *map(str, words)]
        return lambda: subprocess.run(command, check=True, cwd=REPOSITORY)

    def maps():
        for name in write_maps(top, load_config(config), given.realisation):
            name.rename(folder / name.name)

    plan = folder / "survey.yaml"
    options = ("--config", config)
    clocked("maps", maps)
    files = [folder / f"split_{split}.fits" for split in (0, 1)]
    ivar = ("--ivar", top / "ivar.fits", "--mask", top / "mask.fits")
    # An ivar per split: both have the same.
    clocked("plan", cnnlens("plan", *files, "--ivar", top / "ivar.fits", *ivar, "--out", plan))
    clocked("reconstruct", cnnlens("reconstruct", plan, *options))
    clocked("calibrate", cnnlens("calibrate", plan, *options, "--patches", given.patches))
    out = folder / "survey_mock.json"
    clocked("release", cnnlens("release", plan, *options, "--out", out))
    truth = asdict(load_config(config).cosmology.vary(omch2=OMCH2))
    write_release(replace(read_release(out), truth=truth), out)


if __name__ == "__main__":
    main()
