"""A mock survey of 1,000 square degrees from maps to a posterior, with the wall time of each stage.

    python tests/benchmarks/survey_mock.py FOLDER [--skies FOLDER] [--realisation N]

Two splits of Q and U as CAR of 1 arcmin: a sky lensed at omch2 = 0.1235 (the fiducial is 0.1185),
the beam of a file, noise whose depth varies by a factor of 3 in rms over the footprint, 1/f with a
knee at l = 200, and 200 holes of 10 arcmin. Then `survey plan`, `reconstruct`, `calibrate` and
`release`, under a configuration that is written to FOLDER. ``--skies`` names a folder of skies of
training/config/refined.yaml, which are made otherwise (20 CPU-minutes); ``--realisation`` draws
other noise over the same sky. An hour on two cores without skies, and 6 GB of memory. What is there
is not made again.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
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
MARGIN = 1.5  # degrees
DIAMETER = 10.0  # of the holes, arcmin
LEVELS = (1.0, 3.0)  # µK-arcmin of the coadd, from east to west
KNEE, SLOPE, LOWEST = 200.0, 2.5, 36
LMAX, EXCESS_LMAX = 6500, 3000
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


@dataclass(frozen=True)
class Footprint:
    """What a mock covers: longitudes and latitudes in degrees, the number of holes, and the side of
    the CAR pixels in arcmin."""

    longitudes: tuple[float, float] = (10.0, 55.0)
    latitudes: tuple[float, float] = (-40.0, -12.0)
    holes: int = 200
    step: float = 1.0

    def geometry(self, margin=0.0):
        """Shape and WCS of the CAR pixels, with a margin in degrees."""
        corners = [
            [self.latitudes[0] - margin, self.longitudes[1] + margin],
            [self.latitudes[1] + margin, self.longitudes[0] - margin],
        ]
        return enmap.geometry2(pos=np.radians(corners), res=self.step * ARCMIN, proj="car")

    def level(self, longitude):
        """Level of the coadd in µK-arcmin at longitudes in radians."""
        west, east = np.radians(self.longitudes)
        return LEVELS[0] * (LEVELS[1] / LEVELS[0]) ** ((longitude - west) / (east - west))

    def seen(self, latitude, longitude):
        """Whether positions in radians lie in no hole."""
        generator = np.random.default_rng(seed_sequence(SEED, "mock/holes", 0))
        low, high = np.sin(np.radians(self.latitudes))
        seen = np.ones(np.shape(longitude), bool)
        for b, a in zip(
            np.arcsin(generator.uniform(low, high, self.holes)),
            generator.uniform(*np.radians(self.longitudes), self.holes),
            strict=True,
        ):
            cosine = np.sin(b) * np.sin(latitude)
            cosine = cosine + np.cos(b) * np.cos(latitude) * np.cos(longitude - a)
            seen &= cosine < np.cos(0.5 * DIAMETER * ARCMIN)
        return seen


def beam_of(ell):
    """A measured beam: a Gaussian of 1.2′ with a shoulder."""
    sigma = 1.2 * ARCMIN / np.sqrt(8.0 * np.log(2.0))
    return np.exp(-0.5 * (ell * sigma) ** 2) * (0.98 + 0.02 * np.exp(-((ell / 1500.0) ** 2)))


def write_configuration(folder, skies, **changes):
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
    content |= changes
    (folder / "mock.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "mock.yaml"


def lensed_maps(sky, footprint, nthreads=0):
    """Q and U of a lensed sky on the footprint with its margin, (2, ny, nx) in µK, and what makes
    them fall to zero over the outer two thirds of the margin, (ny, nx)."""
    shape, wcs = footprint.geometry(MARGIN)
    latitude, longitude = enmap.posmap(shape, wcs)
    at = Pointing(
        0.5 * np.pi - np.ravel(latitude),
        np.ravel(longitude) % (2 * np.pi),
        np.zeros(np.prod(shape)),
    )
    gradient = patches.gradient_at(sky.philm, sky.lmax, at, nthreads)
    deflection = patches.deflect_by(gradient, at, nthreads)
    lensed = patches.lensed_polarisation_at(sky.elm, sky.lmax, at, deflection, nthreads)
    maps = enmap.ndmap(np.stack([lensed.real, lensed.imag]).reshape(2, *shape), wcs)
    away = np.minimum.reduce(
        [
            np.radians(footprint.latitudes[1] + MARGIN) - latitude,
            latitude - np.radians(footprint.latitudes[0] - MARGIN),
            np.radians(footprint.longitudes[1] + MARGIN) - longitude,
            longitude - np.radians(footprint.longitudes[0] - MARGIN),
        ]
    )
    return maps, np.sin(0.5 * np.pi * np.clip(away / np.radians(1.0), 0.0, 1.0)) ** 2


def beamed_alm(maps, beam, nthreads=0):
    """a_lm of E and B of maps on the whole margin, times a beam from l = 0."""
    lmax = len(beam) - 1
    alm = curvedsky.map2alm(maps, lmax=lmax, spin=2, method="cyl", nthread=nthreads)
    return np.array([curvedsky.almxfl(part, beam) for part in alm])


def beamed_sky(theory, lmax, footprint, number=0):
    """a_lm of E and B of the lensed sky through the beam, good within the footprint, in µK."""
    maps, edge = lensed_maps(draw_sky(theory, lmax, SEED, "mock", number), footprint)
    return beamed_alm(maps * edge, beam_of(np.arange(LMAX + 1)) / beam_of(2))


def excess_alm(generator):
    """a_lm of E and B of the excess of the noise at low multipoles, for 1 µK-arcmin."""
    ell = np.arange(EXCESS_LMAX + 1.0)
    factor = np.zeros(len(ell))
    factor[LOWEST:] = ARCMIN * (KNEE / ell[LOWEST:]) ** (0.5 * SLOPE)
    return np.array([scale_alm(unit_alm(EXCESS_LMAX, generator), factor) for _ in range(2)])


def noise(level, wcs, realisation, split):
    """White noise and its excess at low multipoles, (2, ny, nx) in µK."""
    seeds = seed_sequence(SEED, "mock/noise", realisation, split)
    generator = np.random.default_rng(seeds)
    rms = level * ARCMIN / np.sqrt(np.asarray(enmap.pixsizemap(level.shape, wcs)))
    white = generator.standard_normal((2, *level.shape)) * rms
    blank = enmap.zeros((2, *level.shape), wcs)
    excess = curvedsky.alm2map(excess_alm(generator), blank, spin=2)
    return white + np.asarray(excess) * level


def write_car(folder, footprint, maps, realisation):
    """Two splits of Q and U, (2, ny, nx) in µK, with noise, their inverse variance and mask."""
    shape, wcs = footprint.geometry()
    latitude, longitude = enmap.posmap(shape, wcs)
    level, seen = footprint.level(longitude), footprint.seen(latitude, longitude)
    area = np.asarray(enmap.pixsizemap(level.shape, wcs))
    enmap.write_map(str(folder / "mask.fits"), enmap.ndmap(seen.astype(np.float32), wcs))
    ivar = np.where(seen, area / (2.0 * (level * ARCMIN) ** 2), 0.0)
    enmap.write_map(str(folder / "ivar.fits"), enmap.ndmap(ivar.astype(np.float32), wcs))
    fits.setval(folder / "ivar.fits", "BUNIT", value="uK^-2")
    for split in (0, 1):
        observed = maps + noise(level * np.sqrt(2.0), wcs, realisation, split)
        observed[:, ~seen] = np.nan
        name = folder / f"split_{split}.fits"
        enmap.write_map(str(name), enmap.ndmap(observed.astype(np.float32), wcs))
        for key, value in (("BUNIT", "uK"), ("POLCCONV", "COSMO")):
            fits.setval(name, key, value=value)


def cnnlens(*words):
    """Run a command of `cnnlens survey`."""
    command = [sys.executable, "-m", "cobaya_cnnlens", "survey", *map(str, words)]
    subprocess.run(command, check=True, cwd=REPOSITORY)


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

    def clocked(name, work, *words):
        if name in times:
            return
        began = time.time()
        work(*words)
        times[name] = round(time.time() - began, 1)
        times_path.write_text(json.dumps(times, indent=2))
        print(f"{name}: {times[name]} s", flush=True)

    def maps():
        footprint, kept = Footprint(), top / "sky.npy"
        if not kept.exists():
            loaded = load_config(config)
            theory = compute_spectra(loaded.cosmology.vary(omch2=OMCH2), loaded.camb)
            shape, wcs = footprint.geometry()
            alm = beamed_sky(theory, loaded.sky.lmax, footprint)
            sky = curvedsky.alm2map(alm, enmap.zeros((2, *shape), wcs), spin=2)
            np.save(kept, np.asarray(sky, np.float32))
        write_car(folder, footprint, np.load(kept), given.realisation)

    plan = folder / "survey.yaml"
    options = ("--config", config)
    clocked("maps", maps)
    files = [folder / f"split_{split}.fits" for split in (0, 1)]
    # An ivar per split: both have the same.
    ivar = ("--ivar", folder / "ivar.fits")
    mask = ("--mask", folder / "mask.fits")
    clocked("plan", cnnlens, "plan", *files, *ivar, *ivar, *mask, "--out", plan)
    clocked("reconstruct", cnnlens, "reconstruct", plan, *options)
    clocked("calibrate", cnnlens, "calibrate", plan, *options, "--patches", given.patches)
    out = folder / "survey_mock.json"
    clocked("release", cnnlens, "release", plan, *options, "--out", out)
    truth = asdict(load_config(config).cosmology.vary(omch2=OMCH2))
    write_release(replace(read_release(out), truth=truth), out)


if __name__ == "__main__":
    main()
