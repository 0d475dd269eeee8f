"""How well does the template of `survey template` know the lensing B modes, and is theory right?

    python tests/benchmarks/delensing.py                      # the whole sky; 15 CPU-seconds
    python tests/benchmarks/delensing.py FOLDER [TESTED]      # κ̂ of a network; 40 CPU-seconds a sky

The first compares templates of first order and of all orders, from lensed and unlensed E modes, on
a sky that ends at l = 600. The second takes the simulations that tests/benchmarks/tracer.py made
in FOLDER, draws their skies and noise again, and makes the template from κ̂ of the last TESTED (4 if
not given); the others give the transfer function and noise of κ̂. T and ρ² of the template with the
true lensing B modes stand beside theory, and the correlation with the B modes of the noise beside
both: κ̂ of the same maps contains that noise.
"""

import sys
from dataclasses import replace
from pathlib import Path

import healpy
import numpy as np
from tqdm import tqdm
from tracer import LATITUDES, LEVELS, LONGITUDES, SEED, Survey

from cobaya_cnnlens.maps import delensing
from cobaya_cnnlens.maps.cutting import sky_alm
from cobaya_cnnlens.maps.grids import HealpixGrid
from cobaya_cnnlens.maps.mosaic_simulations import STAGE, MosaicSpectra, binned, binned_spectra
from cobaya_cnnlens.maps.survey_template import (
    BINS,
    LMAX,
    Coadd,
    KappaModes,
    template,
)
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import healpix_pointing
from cobaya_cnnlens.simulate.shards import HarmonicSky, SkySettings, draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, seed_sequence, unit_alm
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Spectra,
    compute_spectra,
    lensed_polarisation,
)

# The whole sky: where it ends, its resolution, and the noise of κ̂.
WHOLE, NSIDE, N_KAPPA = 600, 256, 2e-8
# Modes of a survey's skies beyond this change B at l < 300 by less than 0.3%.
REACH = 3000
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
            p = delensing.lensing_change(elm, WHOLE, philm, WHOLE, at)
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


class Delensing:
    """A survey of tests/benchmarks/tracer.py, and the template of its simulations."""

    def __init__(self, folder, tested):
        self.survey = Survey(folder)
        self.simulations, self.setup = self.survey.simulations, self.survey.setup
        stored = sorted((folder / "mosaic" / "tiles").glob("sky_*.h5"))
        self.calibrating = range(len(stored) - tested)
        self.tested = range(len(stored) - tested, len(stored))
        self.normalisation = self.simulations.normalisation(range(len(stored)))
        self.plan = self.simulations.plan
        level = healpy.read_map(folder / "level.fits")
        mask = healpy.read_map(folder / "mask.fits") == 1.0
        density = np.where(mask, 1.0 / (np.where(mask, level, 1.0) * ARCMIN) ** 2, 0.0)
        self.grid = HealpixGrid(healpy.get_nside(level), self.plan.frame)
        self.density, self.seen = density, np.flatnonzero(mask)
        nside = self.simulations.nside
        theta, phi = healpy.pix2ang(nside, np.arange(12 * nside**2))
        away = [
            0.5 * np.ptp(edges) - np.abs(np.degrees(angle) - np.mean(edges))
            for angle, edges in ((phi, LONGITUDES), (0.5 * np.pi - theta, LATITUDES))
        ]
        away = np.min(away, axis=0)
        region = np.clip(away / BEYOND + 2.0, 0.0, 1.0)
        self.region = np.flatnonzero(region > 0)
        self.window = np.sin(0.5 * np.pi * region[self.region]) ** 2
        self.mask = np.sin(0.5 * np.pi * np.clip(away / APODISED, 0.0, 1.0)) ** 2

    def spectra(self, count=6):
        """T_L and N_L of κ̂ from some simulations that are not tested."""
        measured, lmax = [], self.simulations.lmax
        numbers = list(self.calibrating)[:count]
        for mosaic, true in self.simulations.mosaics(numbers, self.normalisation):
            kappa, kappa_in = (mosaic.modes(m, lmax) for m in (mosaic.kappa, true))
            pairs = ((kappa, kappa), (kappa_in, kappa), (kappa_in, kappa_in))
            measured.append([binned_spectra(mosaic, *p, self.simulations.bins) for p in pairs])
        made = MosaicSpectra.of(*np.array(measured).swapaxes(0, 1), self.simulations.bins)
        return made.table(self.normalisation.mean_response)

    def sky(self, number):
        """Lensed polarisation on the survey's pixels, its true B modes and the noise's."""
        sky = draw_sky(self.setup.theory, SkySettings().lmax, SEED, STAGE, number)
        lm = [patches.truncate_alm(a, sky.lmax, REACH) for a in (sky.elm, sky.philm)]
        sky = HarmonicSky(*lm, REACH)
        nside = self.simulations.nside
        at = healpix_pointing(self.grid.nside, self.seen)
        deflection = patches.deflect_by(patches.gradient_at(sky.philm, REACH, at), at)
        p = patches.lensed_polarisation_at(sky.elm, REACH, at, deflection)
        region = healpix_pointing(nside, self.region)
        deflection = patches.deflect_by(patches.gradient_at(sky.philm, REACH, region), region)
        lensed, own = patches.lensed_and_unlensed_at(sky.elm, REACH, region, deflection)
        change = (lensed - own) * self.window
        truth = delensing.e_and_b_modes(nside, self.region, change, LMAX)[1]
        noise = self.noise(number)
        of_noise = self.grid.harmonics(*self.whole(noise), LMAX, 0)[1]
        return p, noise, truth, of_noise

    def noise(self, number):
        """The noise that all tiles share, at the survey's depth, on its pixels."""
        lmax = self.plan.lmax
        generator = np.random.default_rng(seed_sequence(SEED, f"noise/{STAGE}", number))
        alm = [patches.truncate_alm(unit_alm(lmax, generator), lmax, REACH) for _ in range(2)]
        at = healpix_pointing(self.grid.nside, self.seen)
        unit = patches.polarisation_at(alm[0], REACH, at)
        unit = unit + delensing.b_polarisation_at(alm[1], REACH, at)
        # White noise of C_l = pixel² has an rms of one in the tiles' pixels, as simulated.
        return unit / np.sqrt(self.density[self.seen])

    def whole(self, p):
        """Q and U on all pixels of the survey's grid."""
        maps = np.zeros((2, self.grid.size))
        maps[:, self.seen] = p.real, p.imag
        return maps

    def e_modes(self, p, lmax):
        """Filtered E modes of a simulation, and the filter."""
        maps = self.whole(p)
        coadd = Coadd(self.grid, tuple(maps), self.density)
        noise = coadd.noise_power(None, lmax)
        weight = delensing.wiener(self.setup.theory.lensed_ee[: lmax + 1], noise)
        known = self.density > 0
        alm = sky_alm(self.grid, maps, known, self.plan.geometry, lmax)
        return scale_alm(alm[0], weight), weight

    def run(self):
        """Print T and ρ² of the tested simulations."""
        table, pairs, noises = self.spectra(), [], []
        theory, nside = self.setup.theory, self.simulations.nside
        lmax = int(table["L_MAX"][-1]) + BINS.edges[-1]
        mosaics = self.simulations.mosaics(self.tested, self.normalisation)
        for number, (mosaic, _) in tqdm(zip(self.tested, mosaics, strict=True)):
            p, noise, truth, of_noise = self.sky(number)
            elm, e_filter = self.e_modes(p + noise, lmax)
            philm, kappa_filter = KappaModes.of(mosaic, table).potential(theory.kk)
            t = template(mosaic, elm, philm, (lmax, len(kappa_filter) - 1))
            at, mask = healpix_pointing(nside, mosaic.pixels), self.mask[mosaic.pixels]
            b, n = (delensing.b_polarisation_at(lm, LMAX, at) for lm in (truth, of_noise))
            modes = [
                delensing.e_and_b_modes(nside, mosaic.pixels, q * mask, LMAX)[1] for q in (t, b, n)
            ]
            pairs.append(powers(*modes[:2]))
            noises.append(binned(healpy.alm2cl(modes[0], modes[2]), BINS))
        bb = binned(theory.lensed_bb[: LMAX + 1], BINS)
        expected = binned(delensing.template_power(theory, e_filter, kappa_filter, LMAX), BINS) / bb
        transfer, scale, squared, _ = compared(pairs)
        rows = {"T_L of the file": expected, "T": transfer, "⟨tB⟩/⟨tt⟩": scale, "ρ²": squared}
        each = np.array([compared([pair])[2] for pair in pairs])
        rows |= {"error of ρ²": each.std(0, ddof=1) / np.sqrt(len(each))}
        truth = np.mean([pair[2] for pair in pairs], axis=0)
        rows |= {"⟨tN⟩/⟨BB⟩, N the noise's B": np.mean(noises, axis=0) / truth}
        print(f"{LEVELS[0]:g} to {LEVELS[1]:g} µK-arcmin, {len(pairs)} skies")
        printed(rows)
        sums = [np.sum(np.mean(values, axis=0) / bb) for values in zip(*pairs, strict=True)]
        mean = sums[0] ** 2 / sums[1] / sums[2]
        error = each.mean(1).std(ddof=1) / np.sqrt(len(each))
        print(f"ρ² of all bins {mean:.3f} ± {error:.3f}, of theory {expected.mean():.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Delensing(Path(sys.argv[1]).absolute(), int((sys.argv[2:] or [4])[0])).run()
    else:
        whole_sky()
