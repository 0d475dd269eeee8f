"""How well does the template of `survey template` know the lensing B modes, and is theory right?

    python tests/benchmarks/delensing.py             # the whole sky; 15 CPU-seconds
    python tests/benchmarks/delensing.py FOLDER      # κ̂ of a network; 20 CPU-minutes

The first compares templates of first order and of all orders, from lensed and unlensed E modes, on
a sky that ends at l = 600. The second makes CAR maps of a survey of 276 deg² in FOLDER, and passes
them through `cnnlens survey plan`, `map` and `template`, with and without B modes at l < 300 in κ̂.
T and ρ² of the template with the true lensing B modes stand beside theory. The response of
the template to B modes that are added to the maps, with the shift of r of `bb_mock` that it would
make, shows the internal bias. What is in FOLDER is not made again.
"""

import sys
from dataclasses import replace
from pathlib import Path

import healpy
import numpy as np
from astropy.io import fits
from delensed_r import MOCK
from delensing_estimators import LMIN_B, TRUE_R, shift
from pixell import curvedsky, enmap
from survey_mock import SEED as MOCK_SEED
from survey_mock import Footprint, beamed_sky, cnnlens, write_car, write_configuration

from cobaya_cnnlens.likelihood.bmodes import read_bb
from cobaya_cnnlens.maps import delensing
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.mosaic import Mosaic, nside_for
from cobaya_cnnlens.maps.mosaic_simulations import binned
from cobaya_cnnlens.maps.plan import read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.survey_map import SurveyMap
from cobaya_cnnlens.maps.survey_template import BINS, LMAX, KappaModes, SurveyTemplate, template
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import healpix_pointing
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, seed_sequence, unit_alm
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Spectra,
    compute_spectra,
    lensed_polarisation,
)

SEED = 2929
# The whole sky: where it ends, its resolution, and the noise of κ̂.
WHOLE, NSIDE, N_KAPPA = 600, 256, 2e-8
# The survey: degrees, holes, the side of a CAR pixel in arcmin, noise in µK-arcmin.
LONGITUDES, LATITUDES, HOLES, STEP, LEVEL = (20.0, 40.0), (-38.0, -22.0), 60, 1.5, 1.0
# The map of κ̂ ends here.
LMAX_KAPPA = 2000
# White level of the added B modes in µK-arcmin, at 30 < l < LMIN_B.
ADDED = 3.0
SKY = 4.0 * np.pi * np.degrees(1.0) ** 2
# Modes of a survey's skies beyond this change B at l < 300 by less than 0.3%.
REACH, NSIDE_TRUTH = 3000, 1024
# True B modes are those of a region so many degrees beyond the footprint, which ends over as many.
BEYOND = 4.0
# The spectra's mask falls to zero at the edge of the footprint over so many degrees.
APODISED = 2.0


def printed(rows):
    """A line for each quantity, a column for each bin."""
    print("  ".join(["l".rjust(34), *(f"{centre:6.0f}" for centre in BINS.centres)]))
    for name, values in rows.items():
        print("  ".join([name.rjust(34), *(f"{value:6.3f}" for value in values)]))


def compared(pairs):
    """T = ⟨tB⟩/⟨BB⟩, ⟨tB⟩/⟨tt⟩, ρ² and the power of B − t over that of B, (n_bins,) each."""
    cross, auto, truth = (np.mean(values, axis=0) for values in zip(*pairs, strict=True))
    left = auto + truth - 2.0 * cross
    return cross / truth, cross / auto, cross**2 / auto / truth, left / truth


def powers(t, b):
    """⟨tB⟩, ⟨tt⟩ and ⟨BB⟩ in the bins."""
    return [binned(healpy.alm2cl(*pair), BINS) for pair in ((t, b), (t, t), (b, b))]


def whole_sky():
    """Templates of several kinds, whose E modes have no noise."""
    theory = compute_spectra(settings=CambSettings(WHOLE + 500, lens_potential_accuracy=1.0))
    theory = Spectra(*(cl[: WHOLE + 1] for cl in vars(theory).values()))
    ee, bb = lensed_polarisation(theory, WHOLE)
    theory = replace(theory, lensed_ee=ee, lensed_bb=bb)
    pixels = np.arange(12 * NSIDE**2)
    at, flat = healpix_pointing(NSIDE, pixels), np.ones(WHOLE + 1)
    sky = draw_sky(theory, WHOLE, SEED, "delensing", 0)

    def change(elm, philm):
        """By all orders of φ, and the lensed polarisation."""
        deflection = patches.deflect_by(patches.gradient_at(philm, WHOLE, at), at)
        lensed, own = patches.lensed_and_unlensed_at(elm, WHOLE, at, deflection)
        return delensing.e_and_b_modes(NSIDE, pixels, lensed - own, LMAX)[1], lensed

    truth, lensed = change(sky.elm, sky.philm)
    observed = delensing.e_and_b_modes(NSIDE, pixels, lensed, WHOLE)[0]
    noise = scale_alm(unit_alm(WHOLE, np.random.default_rng(1)), np.sqrt(N_KAPPA) * flat)
    kappa_lm = patches.convergence_alm(sky.philm, WHOLE, WHOLE)
    for title, noisy, filtered in (
        ("κ itself", 0.0, flat),
        ("κ̂", 1.0, delensing.wiener(theory.kk, N_KAPPA * flat)),
    ):
        philm = delensing.potential_alm(kappa_lm + noisy * noise, filtered)
        made = {"all orders, lensed E": change(observed, philm)[0]}
        for name, elm in (("lensed E", observed), ("unlensed E", sky.elm)):
            p = delensing.lensing_change(elm, WHOLE, philm, WHOLE, NSIDE, pixels)
            made[f"first order, {name}"] = delensing.e_and_b_modes(NSIDE, pixels, p, LMAX)[1]
        power = delensing.template_power(theory, flat, filtered, LMAX)
        partial = replace(theory, kk=theory.kk * (1.0 - filtered))
        partial = lensed_polarisation(partial, WHOLE)[1]
        rows = {
            "T_L of the file": binned(power, BINS) / binned(bb[: LMAX + 1], BINS),
            "residual by CAMB": binned(partial, BINS) / binned(bb, BINS),
        }
        for name, t in made.items():
            transfer, _, _, left = compared([powers(t, truth)])
            rows |= {f"T, {name}": transfer, f"residual, {name}": left}
        print(title)
        printed(rows)


class Uniform(Footprint):
    """A footprint of one depth."""

    def level(self, longitude):
        # Of the coadd of two splits; one of them is used.
        return np.full(np.shape(longitude), LEVEL / np.sqrt(2.0))


class Survey:
    """A survey whose κ̂ does not use B modes below a multipole, and its templates."""

    def __init__(self, folder, lmin_b):
        self.maps, self.folder = folder, folder / f"lmin_b_{lmin_b}"
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"reconstruction": {"lmin_b": lmin_b}}
        self.config = write_configuration(self.folder, None, **settings)
        self.run = Run(load_config(self.config))
        self.setup = MapSetup.of_run(self.run)
        self.footprint = Uniform(LONGITUDES, LATITUDES, HOLES, STEP)
        generator = np.random.default_rng(seed_sequence(SEED, "delensing/added", 0))
        added = np.full(LMIN_B, ADDED * ARCMIN)
        added[: BINS.edges[0]] = 0.0
        self.added = scale_alm(unit_alm(LMIN_B - 1, generator), added)

    def write(self):
        """The maps without and with the added B modes; the same sky and noise."""
        todo = {"own": 0.0, "added": 1.0}
        todo = {k: v for k, v in todo.items() if not (self.maps / k / "split_1.fits").exists()}
        if not todo:
            return
        shape, wcs = self.footprint.geometry()
        alm = beamed_sky(self.setup.theory, self.run.config.sky.lmax, self.footprint)
        for name, of_b in todo.items():
            (self.maps / name).mkdir(exist_ok=True)
            maps = curvedsky.alm2map(alm, enmap.zeros((2, *shape), wcs), spin=2)
            b = np.array([np.zeros_like(self.added), self.added])
            maps += of_b * curvedsky.alm2map(b, enmap.zeros((2, *shape), wcs), spin=2)
            write_car(self.maps / name, self.footprint, np.asarray(maps), 0)

    def map_of(self, name):
        """The plan of some maps, and what joins its tiles."""
        maps, path = self.maps / name, self.folder / f"{name}.yaml"
        if not path.exists():
            ivar, mask = ("--ivar", maps / "ivar.fits"), ("--mask", maps / "mask.fits")
            cnnlens("plan", maps / "split_0.fits", *ivar, *mask, "--out", path)
        reconstruction = TileReconstruction(read_plan(path), self.setup, path.with_suffix(""))
        return path, SurveyMap(reconstruction, LMAX_KAPPA, nside_for(LMAX_KAPPA))

    def templates(self):
        """Templates of the maps without and with the added B modes, by the filters of the first."""
        path, own = self.map_of("own")
        for command, *words in (("map", "--realisations", 2), ("template",)):
            cnnlens(command, path, "--config", self.config, *words)
        mosaic, table = Mosaic.read(own.path)
        simulations = self.map_of("added")[1].simulations
        kappas = []
        for made in simulations.reconstructions:
            made.measure(lambda: self.run.estimator)
            kappas += [made.read_tile(tile)["kappa"] for tile in made.plan.tiles]
        normalisation = own.simulations.normalisation(range(2))
        added = Mosaic.of(simulations.tiles, kappas, normalisation, mosaic.nside)
        plan, folder = own.reconstruction.plan, own.reconstruction.folder
        philms = [KappaModes.of(m, table).potential(self.setup.theory.kk) for m in (mosaic, added)]
        lmax_phi = len(philms[0][1]) - 1
        reach = lmax_phi + BINS.edges[-1]
        elm, e_filter = SurveyTemplate(plan, self.setup, folder).e_modes(reach)
        lmax = (len(e_filter) - 1, lmax_phi)
        made = [template(mosaic, elm, philm, lmax) for philm, _ in philms]
        return mosaic, made, fits.getdata(folder / "template.fits", "SPECTRA")["T_L"]

    def truth(self):
        """a_lm of the lensing B modes of the footprint and its surroundings, and of it alone."""
        lmax = self.run.config.sky.lmax
        sky = draw_sky(self.setup.theory, lmax, MOCK_SEED, "mock", 0)
        elm, philm = (patches.truncate_alm(a, lmax, REACH) for a in (sky.elm, sky.philm))
        theta, phi = healpy.pix2ang(NSIDE_TRUTH, np.arange(12 * NSIDE_TRUTH**2))
        away = self.away(theta, phi)
        region = np.clip(away / BEYOND + 2.0, 0.0, 1.0)
        pixels = np.flatnonzero(region > 0)
        at = healpix_pointing(NSIDE_TRUTH, pixels)
        deflection = patches.deflect_by(patches.gradient_at(philm, REACH, at), at)
        lensed, own = patches.lensed_and_unlensed_at(elm, REACH, at, deflection)
        windows = np.sin(0.5 * np.pi * region[pixels]) ** 2, away[pixels] > 0.0
        return [
            delensing.e_and_b_modes(NSIDE_TRUTH, pixels, (lensed - own) * window, LMAX)[1]
            for window in windows
        ]

    def away(self, theta, phi):
        """Degrees from positions in radians to the edge of the footprint, negative beyond."""
        away = [
            0.5 * np.ptp(edges) - np.abs(np.degrees(angle) - np.mean(edges))
            for angle, edges in ((phi, LONGITUDES), (0.5 * np.pi - theta, LATITUDES))
        ]
        return np.min(away, axis=0)

    def report(self):
        """Print T and ρ² of the template, and its response to the added B modes."""
        self.write()
        (truth, local), data = self.truth(), read_bb(MOCK)
        mosaic, made, expected = self.templates()
        at = healpix_pointing(mosaic.nside, mosaic.pixels)
        inside = np.clip(self.away(at.theta, at.phi) / APODISED, 0.0, 1.0)
        mask = np.sin(0.5 * np.pi * inside) ** 2
        fields = [
            *made,
            delensing.b_polarisation_at(local, LMAX, at),
            delensing.b_polarisation_at(truth, LMAX, at),
            delensing.b_polarisation_at(self.added, LMIN_B - 1, at),
        ]
        t, with_b, within, b, added = (
            delensing.e_and_b_modes(mosaic.nside, mosaic.pixels, p * mask, LMAX)[1] for p in fields
        )
        transfer, scale, squared, _ = compared([powers(t, b)])
        change = binned(healpy.alm2cl(with_b - t, added), BINS)
        response = change / binned(healpy.alm2cl(added), BINS)
        area = (mask**2).sum() * healpy.nside2pixarea(mosaic.nside, degrees=True)
        print(f"κ̂ uses B modes at l >= {self.setup.lmin_b}; {area:.0f} deg² under the mask")
        rows = {"T_L of the file": expected, "T": transfer, "⟨tB⟩/⟨tt⟩": scale, "ρ²": squared}
        rows["T of true B, footprint alone"] = compared([powers(within, b)])[0]
        printed(rows | {"χ, response to added B": response})
        for r in (0.0, TRUE_R):
            moved = [f"{shift(data, response, r, known):+.3f}" for known in (False, True)]
            print(
                f"r = {r:g} moves by {moved[0]} σ in the model of independent noise, "
                f"{moved[1]} σ in that of simulations at r = 0"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for lmin_b in (0, LMIN_B):
            Survey(Path(sys.argv[1]).absolute(), lmin_b).report()
    else:
        whole_sky()
