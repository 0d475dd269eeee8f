"""A survey calibrated by the experiment's own simulations, and by the internal simulator.

    python tests/benchmarks/foreign_simulations.py FOLDER [--simulations N] [--tiles N]

The maps are what no instrument of ours makes: CAR of 2′, a beam of 1.4′, noise of 2 µK-arcmin with
a correlation of 0.3 between Q and U, and a high-pass filter along the rows of the maps, the scan,
which removes l_x < 300 of signal and noise. One map at omch2 = 0.1235 is the data; the others, at
the fiducial cosmology, are the experiment's simulations. The configuration knows the beam and the
level of the noise alone. The plan, the reconstruction and both calibrations are made by the
commands; then omch2 of both releases is printed. What is there is not made again.
"""

import argparse
from pathlib import Path

import healpy
import numpy as np
from astropy.io import fits
from pixell import curvedsky, enmap
from survey_mock import MARGIN, Footprint, beamed_alm, cnnlens, lensed_maps
from tqdm import tqdm

import yaml
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import seed_sequence
from cobaya_cnnlens.theory.camb import Spectra, compute_spectra
from cobaya_cnnlens.theory.emulator_files import read_emulator
from cobaya_cnnlens.validate.posterior_grid import PosteriorGrid

REPOSITORY = Path(__file__).parents[2]
OMCH2, SEED = 0.1235, 2929
PRIOR = (0.102, 0.138)  # of omch2
FOOTPRINT = Footprint((10.0, 41.0), (-13.0, 13.0), 0, step=2.0)
FWHM, LEVEL, CORRELATION = 1.4, 2.0, 0.3  # arcmin, µK-arcmin
CUT = (250.0, 350.0)  # l_x between which the filter rises from 0 to 1
LMAX, LMAX_KAPPA = 4600, 2500
ENOUGH = 90  # patches, for the debias from the data
CONFIG = {
    "base": str(REPOSITORY / "training" / "config" / "refined.yaml"),
    "name": "own_simulations",
    "shipped": None,
    "points": None,
    "instrument": {"noise_uk_arcmin": LEVEL, "beam_fwhm_arcmin": FWHM, "taper_deg": 0.5},
    "network": {"pretrained": str(NETWORKS / "refined.keras")},
    # A few patches of a sky will do, and make it in seconds.
    "centres": {"rings": False, "spread": None},
    "skies": {"train": 4, "validation": 1, "test": 1, "derivatives": 1},
    "bandpowers": {"lmin": 36, "width": 254, "n_bins": 8},
    "derivatives": {
        "patches": 4,
        "step": 0.2,
        "kk_edges": [2, 700, 4401],
        "ee_edges": [2, 1200, 4401],
    },
    "nuisances": {"skies": 1, "patches": 2},
}


def observed(sky, generator):
    """Q and U of one lensed sky with the beam, the noise and the filter, (2, ny, nx) in µK."""
    maps, edge = lensed_maps(sky, FOOTPRINT, 1)
    alm = beamed_alm(maps * edge, healpy.gauss_beam(FWHM * ARCMIN, LMAX), 1)
    shape, wcs = FOOTPRINT.geometry(MARGIN)
    latitude, _ = enmap.posmap(shape, wcs)
    maps = curvedsky.alm2map(alm, enmap.zeros((2, *shape), wcs), spin=2, nthread=1)
    white = generator.standard_normal((2, *shape))
    white[1] = CORRELATION * white[0] + np.sqrt(1.0 - CORRELATION**2) * white[1]
    rms = LEVEL * ARCMIN / np.sqrt(np.asarray(enmap.pixsizemap(shape, wcs)))
    maps = np.asarray(maps) + white * rms * edge
    step = FOOTPRINT.step * ARCMIN * np.cos(np.asarray(latitude)[:, :1])
    l_x = 2.0 * np.pi * np.fft.rfftfreq(shape[1]) / step
    rise = np.clip((l_x - CUT[0]) / (CUT[1] - CUT[0]), 0.0, 1.0)
    filtered = np.fft.irfft(np.fft.rfft(maps) * np.sin(0.5 * np.pi * rise) ** 2, n=shape[1])
    inner, inner_wcs = FOOTPRINT.geometry()
    return enmap.extract(enmap.ndmap(filtered, wcs), inner, inner_wcs)


def write_skies(folder, config, n_simulations):
    """The data and the simulations, with the true κ of each simulation."""
    todo = [i for i in (-1, *range(n_simulations)) if not map_path(folder, i).exists()]
    theories = {}
    for index in tqdm(todo, desc="skies", unit="sky"):
        omch2 = OMCH2 if index < 0 else config.cosmology.omch2
        if omch2 not in theories:
            cosmology = config.cosmology.vary(omch2=omch2)
            theories[omch2] = compute_spectra(cosmology, config.camb)
        sky = draw_sky(theories[omch2], LMAX, SEED, "foreign", index + 1)
        generator = np.random.default_rng(seed_sequence(SEED, "foreign/noise", index + 1))
        maps = observed(sky, generator)
        ell = np.arange(LMAX_KAPPA + 1.0)
        phi = patches.truncate_alm(sky.philm, LMAX, LMAX_KAPPA)
        healpy.write_alm(
            folder / f"kappa_{index}.fits",
            healpy.almxfl(phi, 0.5 * ell * (ell + 1.0)).astype(np.complex64),
            overwrite=True,
            out_dtype=np.float32,
        )
        partial = folder / "partial.fits"
        enmap.write_map(str(partial), maps.astype(np.float32))
        for key, value in (("BUNIT", "uK"), ("POLCCONV", "COSMO")):
            fits.setval(partial, key, value=value)
        partial.rename(map_path(folder, index))


def map_path(folder, index):
    return folder / ("data.fits" if index < 0 else f"sim_{index:03d}.fits")


def write_inputs(folder, n_simulations, n_validation):
    """The configuration, the mask and the list of the simulations."""
    content = CONFIG | {
        "products": str(folder / "products"),
        "skies_from": str(folder / "products" / "skies"),
    }
    (folder / "survey.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    fixed = {"base": str(folder / "survey.yaml"), "data_debias": False}
    (folder / "fixed.yaml").write_text(yaml.safe_dump(fixed))
    shape, wcs = FOOTPRINT.geometry()
    enmap.write_map(str(folder / "mask.fits"), enmap.ones(shape, wcs, dtype=np.float32))
    listed = {
        "maps": ["sim_{index:03d}.fits"],
        "kappa": "kappa_{index}.fits",
        "index": [0, n_simulations - 1],
        "validation": n_validation,
    }
    (folder / "sims.yaml").write_text(yaml.safe_dump(listed, sort_keys=False))


def omch2_grid(cosmology, prior):
    """A flat prior in omch2 with all else fixed, by the shipped emulator of CAMB."""
    emulator = read_emulator("lcdm")
    point = {name: getattr(cosmology, name) for name in ("ombh2", "ns", "H0")}
    point["logA"] = np.log(1e10 * cosmology.As)

    def spectra(changed):
        kk, ee, _ = emulator(point | changed)
        return Spectra(ee, kk, np.zeros_like(ee), np.zeros_like(ee))

    return PosteriorGrid.of_prior({"omch2": prior}, spectra)


def omch2_of(release, debias, grid):
    """omch2 of a release with all else fixed: mean and σ of the posterior, χ² at its best point."""
    likelihood = BandpowerLikelihood(release, debias)
    table = grid.table(likelihood)
    data = likelihood.release.bandpowers[None]
    [marginal] = grid.posterior(likelihood, table, data)
    best = marginal.grid[np.argmax(marginal.probability[0])]
    [model] = grid.at(np.array([[best]])) @ table
    chi2 = float(likelihood.chi2_of(model[None], data, likelihood.correction[None]).item())
    return float(marginal.mean[0]), float(marginal.sigma[0]), chi2, float(likelihood.pte(chi2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--simulations", type=int, default=6)
    parser.add_argument("--validation", type=int, default=1)
    parser.add_argument("--patches", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=20)
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder, given.simulations, given.validation)
    config = load_config(folder / "survey.yaml")
    write_skies(folder, config, given.simulations)

    plan, options = folder / "s.yaml", ("--config", folder / "survey.yaml")
    own = ("--simulations", folder / "sims.yaml")
    if not plan.exists():
        mask = ("--mask", folder / "mask.fits", "--level", LEVEL)
        cnnlens("plan", folder / "data.fits", *mask, "--out", plan)
        content = yaml.safe_load(plan.read_text())
        content["tiles"] = content["tiles"][: given.tiles]
        plan.write_text(yaml.safe_dump(content, sort_keys=False))
    cnnlens("reconstruct", plan, *options)
    cnnlens("calibrate", plan, *options, *own, "--patches", given.patches)
    # The debias from the data needs the covariance of κ̂, E and B, of 79 bins.
    releases = [("own", "data", own), ("own", "fixed", own), ("internal", "fixed", ())]
    if given.patches >= ENOUGH:
        releases.append(("internal", "data", ()))
    configs = {"data": "survey.yaml", "fixed": "fixed.yaml"}
    for name, debias, extra in releases:
        options = ("--config", folder / configs[debias], *extra)
        cnnlens("release", plan, *options, "--out", folder / f"{name}_{debias}.json")
    grid = omch2_grid(config.cosmology, PRIOR)
    for name, debias, _ in releases:
        release = read_release(folder / f"{name}_{debias}.json")
        mean, sigma, chi2, pte = omch2_of(release, debias, grid)
        print(
            f"{name} simulations, {debias} debias: omch2 {mean:.5f} ± {sigma:.5f}, "
            f"{(mean - OMCH2) / sigma:+.2f} σ from the truth; chi2 {chi2:.1f}, PTE {pte:.3f}"
        )


if __name__ == "__main__":
    main()
