"""The map of `survey map` with a tracer: is the spectrum unbiased, and is its covariance right?

    python tests/benchmarks/tracer.py FOLDER [SIMULATIONS]

A footprint of 16° × 16° at 1 to 2 µK-arcmin with 60 holes of 10′, its tiles and those that fill
their tapers. Of its simulations (24 if not given; 80 CPU-seconds each) one half gives response,
transfer function and noise, and the other half is the survey. The tracer is a Gaussian field of
known C^κg and C^gg with a mask of its own. Its spectrum with κ̂ is compared with that with the true
κ of the same sky, so that cosmic variance cancels: of the masked maps, and decoupled by pymaster if
that is installed. The joint covariance of κκ and κg, from the scatter of simulated tiles, is
compared with the scatter of surveys, and with that of Gaussian modes in closed form. A run that was
stopped goes on. Draws docs/_static/tracer.png.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import healpy
import numpy as np
from matplotlib.gridspec import GridSpec
from tqdm import tqdm

from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.mosaic import BEYOND, nside_for
from cobaya_cnnlens.maps.mosaic_simulations import (
    STAGE,
    MosaicSimulations,
    MosaicSpectra,
    binned,
    binned_spectra,
)
from cobaya_cnnlens.maps.plan import make_plan, read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.release_estimator import release_estimator
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.survey_map import filling_plan
from cobaya_cnnlens.maps.tracer import TileSpectra, TracerSpectra
from cobaya_cnnlens.pipeline.release_networks import find_networks
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.bandpowers import FlatSpectra
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import healpix_pointing, point_patches
from cobaya_cnnlens.simulate.shards import SkySettings, draw_sky
from cobaya_cnnlens.simulate.skies import seed_sequence

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "_static" / "tracer.png"
SEED, NSIDE, LMAX = 2929, 2048, 2000
LONGITUDES, LATITUDES = (20.0, 38.0), (-38.0, -22.0)
LEVELS, HOLES, DIAMETER = (1.0, 2.0), 60, 10.0
# The tracer: its bias falls with L, its correlation with κ on large scales, galaxies per arcmin².
BIAS, FALL, CORRELATION, DENSITY = 5.0, 800.0, 0.7, 30.0
# Longitude beyond which the tracer was not observed.
TRACER_EDGE = 36.0
# Bins that are joined for the comparison with Gaussian modes.
MERGED = 2


def write_plan(folder, setup):
    """The survey's plan, of a mask and a map of the level alone."""
    path = folder / "tracer.yaml"
    if path.exists():
        return read_plan(path)
    theta, phi = healpy.pix2ang(NSIDE, np.arange(12 * NSIDE**2))
    longitude, latitude = np.degrees(phi), 90.0 - np.degrees(theta)
    seen = (longitude > LONGITUDES[0]) & (longitude < LONGITUDES[1])
    seen &= (latitude > LATITUDES[0]) & (latitude < LATITUDES[1])
    generator = np.random.default_rng(seed_sequence(SEED, "tracer/holes"))
    for b, a in np.radians(
        np.stack([generator.uniform(*LATITUDES, HOLES), generator.uniform(*LONGITUDES, HOLES)], 1)
    ):
        middle = healpy.ang2vec(0.5 * np.pi - b, a)
        seen[healpy.query_disc(NSIDE, middle, 0.5 * DIAMETER * ARCMIN)] = False
    along = np.clip((longitude - LONGITUDES[0]) / np.ptp(LONGITUDES), 0.0, 1.0)
    level = np.where(seen, LEVELS[0] * (LEVELS[1] / LEVELS[0]) ** along, healpy.UNSEEN)
    common = {"partial": True, "dtype": np.float32, "overwrite": True}
    mask = np.where(seen, 1.0, healpy.UNSEEN)
    healpy.write_map(folder / "mask.fits", mask, **common)
    healpy.write_map(folder / "level.fits", level, column_units="uK arcmin", **common)
    sources = Sources((), str(folder / "mask.fits"), level=str(folder / "level.fits"))
    return make_plan(path, sources, setup.patch, setup.instrument.taper_deg)


class Survey:
    """The simulations, with a tracer of each."""

    def __init__(self, folder):
        release = read_release("refined_fiducial")
        self.setup = setup = MapSetup.of_release(release)
        plan = write_plan(folder, setup)
        filling = filling_plan(plan, folder / "mosaic" / "filling.yaml")
        own = TileReconstruction(plan, setup, folder)
        further = TileReconstruction(filling, setup, folder / "mosaic")
        self.simulations = MosaicSimulations((own, further), LMAX, nside_for(LMAX), SEED)
        self.load = release_estimator(setup, find_networks(release))
        self.tiles, self.limit = plan.tiles, int(BEYOND * LMAX)
        self.kk = kk = setup.theory.kk[: self.limit + 1]
        slope = BIAS / (1.0 + np.arange(len(kk)) / FALL)
        shot = ARCMIN**2 / DENSITY
        self.tracer = TracerSpectra(slope * kk, slope**2 * kk / CORRELATION**2 + shot)
        self.at = healpix_pointing(self.simulations.nside, self.simulations.pixels)
        # A mask of the tracer's own, apodised over a degree.
        away = TRACER_EDGE - np.degrees(self.at.phi)
        self.tracer_mask = np.sin(0.5 * np.pi * np.clip(away, 0.0, 1.0)) ** 2

    def tracer_of(self, number):
        """The tracer of a simulated sky on the map's pixels, (n,), and on the tiles."""
        sky = draw_sky(self.setup.theory, SkySettings().lmax, SEED, STAGE, number)
        kappa_lm = patches.convergence_alm(sky.philm, sky.lmax, self.limit)
        generator = np.random.default_rng(seed_sequence(SEED, "tracer", number))
        lm = self.tracer.draw(kappa_lm, self.setup.theory.kk, generator)
        geometry = self.simulations.plan.geometry
        pixels = point_patches(np.stack([t.centre for t in self.tiles]), geometry)
        n = geometry.n_pixels
        on_tiles = patches.scalar_at(lm, self.limit, pixels).reshape(-1, n, n)
        return patches.scalar_at(lm, self.limit, self.at), on_tiles


class Measured:
    """What some simulations calibrate, and what the others measure with that.

    crosses : κ̂g over T and κg of the masked maps, (n_tested, 2, n_bins)
    tiles : bandpowers of κκ and of κg of the tiles of all simulations, (n, n_tiles, 2 n_bins)
    """

    def __init__(self, survey, calibrating, tested):
        self.survey, simulations = survey, survey.simulations
        self.bins = bins = simulations.bins
        normalisation = simulations.normalisation(calibrating)
        spectra = FlatSpectra(simulations.plan.geometry, bins, survey.setup.mask)
        self.on_tiles = TileSpectra(survey.tiles, spectra, normalisation)
        powers, of_tiles, crosses, self.maps = [], [], [], []
        numbers = [*calibrating, *tested]
        mosaics = tqdm(simulations.mosaics(numbers, normalisation), total=len(numbers))
        for number, (mosaic, true) in zip(numbers, mosaics, strict=True):
            on_map, tracer = survey.tracer_of(number)
            kappas = simulations.read(number)["kappa"][: len(survey.tiles)]
            of_tiles.append(self.on_tiles.measure(kappas, tracer))
            kappa, kappa_in = (mosaic.modes(m, LMAX) for m in (mosaic.kappa, true))
            if number in calibrating:
                pairs = ((kappa, kappa), (kappa_in, kappa), (kappa_in, kappa_in))
                powers.append([binned_spectra(mosaic, *pair, bins) for pair in pairs])
                continue
            masked = replace(mosaic, kappa=on_map, mask=mosaic.mask * survey.tracer_mask)
            g = masked.modes(on_map, LMAX)
            crosses.append([binned_spectra(mosaic, modes, g, bins) for modes in (kappa, kappa_in)])
            self.maps.append((mosaic, true, masked))
        self.measured = MosaicSpectra.of(*np.array(powers).swapaxes(0, 1), bins)
        self.crosses = np.array(crosses) / [self.measured.transfer, np.ones(bins.n_bins)]
        self.tiles = np.stack(of_tiles)

    def gaussian_variance(self, kk, kg, gg):
        """Variance of the survey's bandpowers if all modes were Gaussian, (2 n_bins,)."""
        on_tiles = self.on_tiles
        label = on_tiles.normalisation.label[: len(on_tiles.tiles)]
        total = kk + on_tiles.normalisation.noise[label]
        share = [(t.mask**4).mean() / (t.mask**2).mean() ** 2 for t in on_tiles.tiles]
        of_mode = np.hstack([2.0 * total**2, kg**2 + total * gg]) * np.array(share)[:, None]
        weight = on_tiles.weight(kk)
        return (weight**2 * of_mode).sum(0) / np.tile(on_tiles.spectra.modes, 2)

    def error(self, kk, kg, gg, n_calibrating):
        """Error of the ratio of κ̂g/T to κg, by the noise of κ̂ in both and the number of modes."""
        mosaic, _, masked = self.maps[0]
        bins, noise = self.bins, self.measured.noise
        of_mask = [(m.mask**2).sum() ** 2 / (m.mask**4).sum() for m in (mosaic, masked)]
        modes = np.diff(bins.edges**2) * np.array(of_mask)[:, None] / (12 * mosaic.nside**2)
        of_transfer = noise / kk / modes[0] / n_calibrating
        return np.sqrt(of_transfer + noise * gg / kg**2 / modes[1] / len(self.maps))

    def decoupled(self):
        """Spectra of κ̂ over T and of κ with g by NaMaster, as crosses."""
        import pymaster

        bins, nside = self.bins, self.survey.simulations.nside
        ell = np.arange(LMAX)
        numbers = np.digitize(ell, bins.edges) - 1
        kept = numbers >= 0
        binning = pymaster.NmtBin(
            ells=ell[kept], bpws=numbers[kept], weights=(2.0 * ell + 1.0)[kept], lmax=LMAX - 1
        )

        def field(mosaic, values):
            whole = np.zeros((2, 12 * nside**2))
            whole[:, mosaic.pixels] = mosaic.mask, values
            return pymaster.NmtField(whole[0], [whole[1]], n_iter=0, lmax=LMAX - 1)

        spectra, workspace = [], None
        for mosaic, true, masked in tqdm(self.maps, desc="NaMaster"):
            tracer, of_sky = field(masked, masked.kappa), []
            for one in (field(mosaic, mosaic.kappa), field(mosaic, true)):
                workspace = workspace or pymaster.NmtWorkspace.from_fields(one, tracer, binning)
                coupled = pymaster.compute_coupled_cell(one, tracer)
                of_sky.append(workspace.decouple_cell(coupled)[0])
            spectra.append(of_sky)
        # In bins so narrow, T is the same for what couples into them.
        return np.array(spectra) / [self.measured.transfer, np.ones(bins.n_bins)]


def compared(crosses, error):
    """Ratio of the spectra with κ̂ to those with κ, (n_bins,), and the mean over all bins."""
    estimated, true = crosses.swapaxes(0, 1)
    ratio = estimated.mean(0) / true.mean(0)
    weight = error**-2 / (error**-2).sum()
    return ratio, f"{weight @ ratio:.4f} ± {(error**-2).sum() ** -0.5:.4f}"


def draw(survey, mosaic, ratio, error, covariance, gaussian):
    """The map, the ratio to the truth, and the errors."""
    from matplotlib.figure import Figure
    from PIL import Image

    bins = survey.simulations.bins
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    grid = GridSpec(1, 3, figure=figure)
    axis = figure.add_subplot(grid[0])
    theta, phi = healpy.pix2ang(mosaic.nside, mosaic.pixels)
    x = (np.degrees(phi) - 29.0) * np.sin(theta)
    # Degrees and smaller scales are noise to the eye: modes to L = 500 are shown.
    shown = healpy.alm2map(mosaic.modes(mosaic.kappa, 500), mosaic.nside)[mosaic.pixels]
    image = axis.hexbin(x, 90 - np.degrees(theta), shown, gridsize=130, cmap="RdBu_r")
    image.set_clim(-0.1, 0.1)
    axis.set(title=r"$\hat\kappa$, $L \leq 500$", ylabel="latitude in degrees", aspect="equal")
    axis.set_xlabel("longitude − 29°, on the sky")
    axis.invert_xaxis()
    figure.colorbar(image, shrink=0.8, location="bottom")
    axis = figure.add_subplot(grid[1])
    axis.axhspan(-1, 1, color="0.9", lw=0)
    axis.axhline(0.0, color="k", lw=0.8)
    axis.errorbar(bins.centres, 100 * (ratio - 1), 100 * error, fmt="o", ms=3, lw=1)
    axis.set(xlabel="$L$", ylabel="%", title=r"$\hat\kappa g$ over $\kappa g$ of the same sky − 1")
    axis = figure.add_subplot(grid[2])
    for part, (label, color) in enumerate((("κκ", "C0"), ("κg", "C1"))):
        for variance, style, name in (
            (gaussian, "-", f"{label}, Gaussian modes"),
            (np.diag(covariance), "o", f"{label}, simulated tiles"),
        ):
            sigma = np.sqrt(np.split(variance, 2)[part])
            axis.semilogy(bins.centres, sigma, style, ms=3, color=color, label=name)
    axis.set(xlabel="$L$", title="σ of the bandpowers of the tiles")
    axis.legend(frameon=False, fontsize=7)
    figure.savefig(FIGURE, dpi=110)
    Image.open(FIGURE).convert("RGB").quantize(64).save(FIGURE, optimize=True)


def main(folder, n):
    folder.mkdir(parents=True, exist_ok=True)
    survey = Survey(folder)
    simulations, bins = survey.simulations, survey.simulations.bins
    print(f"{len(survey.tiles)} tiles, {len(simulations.tiles) - len(survey.tiles)} that fill")
    simulations.measure(range(n), survey.load)
    made = Measured(survey, range(n // 2), range(n // 2, n))
    kk, kg, gg = (binned(cl, bins) for cl in (survey.kk, survey.tracer.kg, survey.tracer.gg))
    error = made.error(kk, kg, gg, n // 2)
    ratio, mean = compared(made.crosses, error)
    rows = {
        "L": bins.centres,
        "T": made.measured.transfer,
        "its error": made.measured.transfer_error,
    }
    rows |= {"N/C": made.measured.noise / kk, "ratio": ratio, "its error ": error}
    print("  ".join(f"{name:>11}" for name in rows))
    for values in zip(*rows.values(), strict=True):
        print("  ".join(f"{value:11.4g}" for value in values))
    print(f"ratio, all bins: {mean}")
    print(f"χ² of the ratio {(((ratio - 1) / error) ** 2).sum():.1f} of {len(ratio)} bins")
    surveys = [made.on_tiles.survey(tiles, made.tiles, kk) for tiles in made.tiles]
    values, covariance = np.array([d for d, _ in surveys]), surveys[0][1]
    scatter = np.cov(values, rowvar=False)
    sigma2 = np.diag(covariance)
    gaussian = made.gaussian_variance(kk, kg, gg)
    # Neighbouring bins share modes under the mask, which the closed form counts in one of them.
    joined = np.kron(np.eye(len(sigma2) // MERGED), np.full((1, MERGED), 1.0 / MERGED))
    merged = np.diag(joined @ covariance @ joined.T)
    comparisons = {
        "scatter of surveys": (np.diag(scatter) / sigma2, n - 1),
        "Gaussian modes": (joined**2 @ gaussian / merged, n * len(survey.tiles) - 1),
    }
    for name, (values, dof) in comparisons.items():
        for kind, part in zip(("κκ", "κg"), np.split(values, 2), strict=True):
            print(f"variance by the {name} over the covariance, {kind}: ", end="")
            print(f"{part.mean():.3f} ± {np.sqrt(2.0 / dof / len(part)):.3f}")
    half = len(sigma2) // 2
    cross = np.diag(covariance[:half, half:]) / np.sqrt(sigma2[:half] * sigma2[half:])
    print(f"correlation of κκ and κg in a bin: {cross.mean():.3f}")
    draw(survey, made.maps[0][0], ratio, error, covariance, gaussian)
    if importlib.util.find_spec("pymaster"):
        print(f"ratio by NaMaster, all bins: {compared(made.decoupled(), error)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 24)
