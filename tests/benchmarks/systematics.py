"""Shape of the beam, leakage of temperature and anisotropic dust: what they do to ω_c, to the
amplitude of C_L^κκ and to the power of E and B.

    python tests/benchmarks/systematics.py [PATCHES]

Patches of one test sky of training/config/refined.yaml are observed again with one effect at a
time, with the same sky and noise, and d' is debiased with their own E and B power. Shifts are in σ
of the 160 patches of refined_fiducial, all else fixed, with jackknife errors over the patches. χ²
is that of the change of d' in its 24 bins, without what the Monte-Carlo error adds. The last column
is the change of the power of E and B in σ, if its fiducial were known. T is drawn with CAMB's TE,
and lensed by the φ of the sky. A case that was measured before is not measured again; the rest
takes half a CPU-second a patch and case, and two minutes for the sky.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.perturbations import perturbed_sky
from cobaya_cnnlens.pipeline.power import Power, power_of
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.bandpowers import e_and_b, pure_b
from cobaya_cnnlens.simulate.foregrounds import PowerLaw, foreground_patches, power_law_patches
from cobaya_cnnlens.simulate.instrument import ARCMIN, Instrument, convolve_beam
from cobaya_cnnlens.simulate.modes import mode_vectors, plane_vectors, polarisation_angles
from cobaya_cnnlens.simulate.skies import scale_alm, seed_sequence, unit_alm
from cobaya_cnnlens.simulate.tiling import evenly, ring_centres
from cobaya_cnnlens.table import plus_minus, text_table
from cobaya_cnnlens.theory.camb import camb_parameters
from cobaya_cnnlens.validate.omch2 import fisher

ROOT = Path(__file__).parents[2]
SET, INDEX = "test", 2  # the nuisances were measured on another sky
PAD, TAPER = 24, 16  # pixels around a patch of T, and how many of them are tapered
MODULATION = 0.5  # rms of the logarithm of dust's amplitude, within a patch and between patches
FREQUENCY = 150.0

n = int(sys.argv[1]) if len(sys.argv) > 1 else 64
config = load_config(ROOT / "training" / "config" / "refined.yaml")
run, geometry, instrument = Run(config), config.patch, config.instrument
rows = evenly(run.n_patches, n)
folder = config.products / "systematics" / f"sky_{INDEX:04d}_{n}"


@dataclass(frozen=True)
class ShapedInstrument(Instrument):
    """An instrument whose beam is multiplied by 1 + size · shape(l)."""

    shape: object = None
    size: float = 0.0

    def response(self, ly, lx):
        return super().response(ly, lx) * (1.0 + self.size * self.shape(np.hypot(ly, lx)))


def width(ell):
    """∂ ln B_l/∂ ln FWHM of the Gaussian beam."""
    sigma = instrument.beam_fwhm_arcmin * ARCMIN / np.sqrt(8.0 * np.log(2.0))
    return -((ell * sigma) ** 2)


def without_width(shape):
    """A shape less its projection on a change of width, over the E modes that are signal."""
    ell = np.arange(geometry.fundamental, geometry.nyquist)
    signal = run.spectra().lensed_ee[ell.astype(int)] * instrument.beam(ell) ** 2
    weight = ell * (signal / (signal + (instrument.noise_uk_arcmin * ARCMIN) ** 2)) ** 2
    share = (weight * shape(ell) * width(ell)).sum() / (weight * width(ell) ** 2).sum()
    return lambda l: shape(l) - share * width(l)


# Changes of ln B_l. A side lobe of 10 arcmin holds that part of the solid angle.
SHAPES = {
    "shoulder": lambda l: 0.5 * (1.0 + np.tanh((l - 3000.0) / 300.0)),
    "tilt": lambda l: l / 3000.0,
    "side lobe": lambda l: np.exp(-0.5 * (l * 10.0 * ARCMIN / 2.355) ** 2) - 1.0,
}


class Observer:
    """The patches of the sky, observed with one effect at a time."""

    def __init__(self):
        self.sky = perturbed_sky(run, INDEX, set_name=SET, rows=rows)
        padded = self.sky.lensed.reshape(n, geometry.n_padded, geometry.n_padded)
        self.padded = np.stack([padded.real, padded.imag])
        self.temperature = self._temperature()

    def _temperature(self):
        """Lensed T on patches with a wide margin that is tapered, (n, ny, nx) in µK."""
        import camb

        results = camb.get_results(camb_parameters(config.cosmology, config.camb))
        lmax = self.sky.sky.lmax
        cls = results.get_unlensed_scalar_cls(lmax, CMB_unit="muK", raw_cl=True)
        tt, te = cls[:, 0], cls[:, 3]
        lensed = results.get_lensed_scalar_cls(lmax, CMB_unit="muK", raw_cl=True)
        self.theory = {"tt": lensed[:, 0], "te": lensed[:, 3]}
        ee = np.where(run.spectra().ee[: lmax + 1] > 0, run.spectra().ee[: lmax + 1], np.inf)
        generator = np.random.default_rng(seed_sequence(config.seed, "temperature/test", INDEX))
        alm = scale_alm(unit_alm(lmax, generator), np.sqrt(tt - te**2 / ee))
        alm += scale_alm(self.sky.sky.elm, te / ee)
        self.wide = replace(geometry, pad=PAD)
        pointing = patches.point_patches(ring_centres(geometry.size_deg)[rows], self.wide)
        gradient = patches.gradient_at(self.sky.sky.philm, lmax, pointing)
        moved = patches.deflect_by(gradient, pointing)
        source = patches.Pointing(moved.theta, moved.phi, np.zeros_like(moved.phi))
        values = patches.scalar_at(alm, lmax, source)
        distance = np.minimum(np.arange(self.wide.n_padded) + 0.5, TAPER)
        side = np.sin(0.5 * np.pi * np.minimum(distance, distance[::-1]) / TAPER) ** 2
        return values.reshape(n, *2 * [self.wide.n_padded]) * side[:, None] * side

    def beamed(self, shape=None, size=0.0):
        """Q and U through a beam of another shape, (2, n, ny, nx)."""
        optics = instrument
        if shape is not None:
            optics = ShapedInstrument(**vars(instrument), shape=shape, size=size)
        return convolve_beam(self.padded, optics, geometry)

    def wider(self, size):
        fwhm = instrument.beam_fwhm_arcmin * (1.0 + size)
        return convolve_beam(self.padded, replace(instrument, beam_fwhm_arcmin=fwhm), geometry)

    def monopole(self, into_q, into_u):
        """T that leaks into Q and U as it is."""
        t = convolve_beam(self.temperature, instrument, self.wide)
        return self.beamed() + np.stack([into_q * t, into_u * t])

    def quadrupole(self, size):
        """T that leaks into E as size · (l/3000)²."""
        ly, lx = mode_vectors(self.wide.n_padded, self.wide.pixel)
        leaked = np.fft.rfft2(self.temperature) * size * (ly**2 + lx**2) / 3000.0**2
        shape = self.temperature.shape[1:]
        maps = [np.fft.irfft2(leaked * part, s=shape) for part in polarisation_angles(ly, lx)]
        return self.beamed() + convolve_beam(np.stack(maps), instrument, self.wide)

    def dust(self, level, modulated):
        """Dust of D_80^EE = level at 353 GHz, on demand with an amplitude that varies."""

        def generators(stage):
            of_patch = partial(seed_sequence, config.seed, stage, INDEX)
            return [np.random.default_rng(of_patch(i)) for i in rows]

        args = level, FREQUENCY, geometry
        maps = foreground_patches("dust", *args, generators("foregrounds/dust"))
        if modulated:
            law = PowerLaw(1.0, 1.0, (-0.5, -0.5))
            field = power_law_patches(law, geometry, generators("modulation"))[0]
            field -= field.mean((1, 2), keepdims=True)
            between = [g.standard_normal() for g in generators("modulation/patch")]
            log = field / field.std() + np.array(between)[:, None, None]
            amplitude = np.exp(MODULATION * log)
            maps = maps * amplitude / np.sqrt(np.mean(amplitude**2))
        return self.beamed() + convolve_beam(maps, instrument, geometry)

    def measure(self, maps):
        """Power of κ̂; p̂; and with bins of κ̂, power of pure B, and of E and T of the effect."""
        whole = maps + self.sky.observation.noise
        q, u = whole * run.mask
        e, b = e_and_b(run.bandpowers, *((maps - self.beamed()) * run.mask))
        pure = pure_b(run.bandpowers, *whole)
        cross = run.bandpowers.cross
        return {
            "auto": run.bandpowers.auto(run.estimator.reconstruct(q, u)),
            "power": power_of(run)(q, u),
            "pure_b": cross(pure, pure),
            "added_e": cross(e, e),
            "added_b": cross(b, b),
        }

    def spectra_of_temperature(self):
        """Power of T and its cross power with E by patch, in bins of κ̂, and CAMB's C_l of both."""
        inner = (slice(None), *2 * [slice(PAD, PAD + geometry.n_pixels)])
        t = run.bandpowers.transform(self.temperature[inner] * run.mask)
        e, _ = e_and_b(run.bandpowers, *(geometry.crop(self.padded) * run.mask))
        cross = run.bandpowers.cross
        return self.theory | {"tt_sky": cross(t, t), "te_sky": cross(t, e)}


def beam(shape):
    return lambda sky, size: sky.beamed(without_width(SHAPES[shape]), size)


# How each effect changes the maps, and its sizes.
EFFECTS = {
    "width": (Observer.wider, (-0.01, 0.01)),
    **{shape: (beam(shape), (0.005, 0.01)) for shape in SHAPES},
    "T into Q": (lambda sky, size: sky.monopole(size, 0.0), (0.0003, 0.001, 0.003)),
    "T into U": (lambda sky, size: sky.monopole(0.0, size), (0.003,)),
    "T into E": (Observer.quadrupole, (0.0025, 0.005)),
    "dust": (lambda sky, level: sky.dust(level, False), (0.088, 8.8, 88.0)),
    "modulated dust": (lambda sky, level: sky.dust(level, True), (0.088, 8.8, 88.0)),
}
CASES = [(effect, size) for effect, (_, sizes) in EFFECTS.items() for size in sizes]


def path_of(effect, size=0.0):
    return folder / f"{effect.replace(' ', '_')}_{size:g}.npz"


def measure():
    """Measure the cases that have not been measured."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [case for case in [("none", 0.0), *CASES] if not path_of(*case).exists()]
    if not todo:
        return
    sky = Observer()
    np.savez(folder / "temperature.npz", **sky.spectra_of_temperature())
    for effect, size in tqdm(todo, unit="case"):
        maps = sky.beamed() if effect == "none" else EFFECTS[effect][0](sky, size)
        np.savez(path_of(effect, size), **sky.measure(maps))


def read(effect, size=0.0):
    return dict(np.load(path_of(effect, size)))


def jackknife(function):
    """Value and covariance of a function of the patches to average over."""
    every = np.arange(n)
    left_out = np.array([function(np.delete(every, i)) for i in every])
    return function(every), (n - 1) * np.cov(left_out, rowvar=False, ddof=0)


def chi2(change, error, covariance):
    """χ² of a change whose own error is left out of it."""
    inverse = np.linalg.inv(covariance)
    return change @ inverse @ change - np.trace(inverse @ error)


measure()
release = read_release("refined_fiducial")
likelihood = BandpowerLikelihood(release)
kk = release.fiducial_kk
down, up = (
    likelihood.model(run.spectra(config.cosmology.vary(omch2=config.cosmology.omch2 + step)).kk)
    for step in (-0.002, 0.002)
)
slopes = {
    "omch2": up - down,
    "amplitude": likelihood.model(1.01 * kk) - likelihood.model(0.99 * kk),
}
gains = {name: fisher(slope[None], likelihood.covariance)[1][0] for name, slope in slopes.items()}
clean = read("none")


def debiased(effect, size):
    """Change of d' and its covariance."""
    of_case, centre = read(effect, size), clean["power"].mean(0)

    def change(kept):
        moved, still = (
            part["auto"][kept].mean(0) / release.response**2
            - replace(
                release, power=release.fiducial_power + part["power"][kept].mean(0) - centre
            ).correction
            for part in (of_case, clean)
        )
        return moved - still

    return jackknife(change)


def significance(case, name, covariance):
    """√χ² of the change of a power of 160 patches."""
    change = read(*case)[name] - clean[name]
    error = np.cov(change, rowvar=False) / n
    return np.sqrt(max(chi2(change.mean(0), error, covariance / release.n_patches), 0.0))


def table(rows):
    """What each case does to omch2, to the amplitude and to the power of the maps."""
    columns = {
        "": ("", [effect for effect, _ in rows]),
        "size": ("g", [size for _, size in rows]),
    }
    for name, gain in gains.items():
        values = [gain @ change for change, _ in rows.values()]
        errors = [np.sqrt(gain @ error @ gain) for _, error in rows.values()]
        columns[name] = (">", plus_minus(values, errors, "+.2f"))
    columns["chi2"] = (".2f", [chi2(*row, likelihood.covariance) for row in rows.values()])
    powers = {
        "E, B power": ("power", release.power_covariance),
        "B": ("pure_b", np.cov(clean["pure_b"], rowvar=False)),
    }
    for head, power in powers.items():
        columns[head] = (".1f", [significance(case, *power) for case in rows])
    return text_table(columns, f"{n} patches of {SET} sky {INDEX}; shifts in sigma of 160 patches")


def thresholds(rows):
    """Size that moves omch2 by 0.1σ, by a fit of the first and second order."""
    lines = {}
    for effect, (_, sizes) in EFFECTS.items():
        gain = gains["omch2"]
        shifts = [gain @ rows[effect, size][0] for size in sizes]
        errors = [np.sqrt(gain @ rows[effect, size][1] @ gain) for size in sizes]
        powers = np.array([2] if len(sizes) == 1 else [1, 2])
        design = np.array(sizes)[:, None] ** powers / np.array(errors)[:, None]
        orders = np.linalg.lstsq(design, np.array(shifts) / errors, rcond=None)[0]
        grid = np.geomspace(1e-6, 1e3, 100_000)
        moved = np.abs(grid[:, None] ** powers @ orders)
        lines[effect] = (orders, grid[np.argmax(moved > 0.1)])
    orders = [" ".join(f"{value:+.3g}" for value in of_effect) for of_effect, _ in lines.values()]
    sizes = [size for _, size in lines.values()]
    return text_table({"": ("", lines), "orders": ("", orders), "0.1 sigma at": (".2g", sizes)})


def checks():
    """What the measurement reproduces that it did not make."""
    shipped = Bandpowers(run).read(SET, [INDEX]).auto[rows]
    power = Power(run).read(SET, [INDEX])["power"][rows]
    off = [
        np.abs(a / b - 1.0).max() for a, b in ((clean["auto"], shipped), (clean["power"], power))
    ]
    print(
        f"power of kappa, and of E and B, over the shipped ones: within {off[0]:.1e}, {off[1]:.1e}"
    )
    (wide, error), (narrow, _) = debiased("width", 0.01), debiased("width", -0.01)
    x = np.zeros(len(NUISANCES))
    x[NUISANCES.index("beam")] = 0.01
    of_release = (likelihood.model(kk, None, x) - likelihood.model(kk, None, -x)) / 2.0
    here = (wide - narrow) / 2.0
    gain = gains["omch2"]
    sigma = np.sqrt(gain @ error @ gain)
    print(f"omch2 by a beam 1% wide: {gain @ here:+.3f} +- {sigma:.3f}", end="; ")
    print(f"the release's own nuisance: {gain @ of_release:+.3f}")
    temperature = dict(np.load(folder / "temperature.npz"))
    l = np.arange(len(temperature["tt"]))
    leaked, into = read("T into Q", 0.003), 0.5 * (0.003 * instrument.beam(l)) ** 2
    pairs = {
        "TT": (temperature["tt_sky"], temperature["tt"]),
        "TE": (temperature["te_sky"], temperature["te"]),
        "E of T in Q": (leaked["added_e"], into * temperature["tt"]),
        "B of T in Q": (leaked["added_b"], into * temperature["tt"]),
    }
    for name, (sky, cl) in pairs.items():
        theory = masked(cl)
        weight = theory / sky.var(0)
        ratio = sky @ weight / (theory @ weight)
        print(f"{name} over CAMB's: {ratio.mean():.3f} +- {ratio.std() / np.sqrt(n):.3f}")


def masked(cl):
    """Power of a masked field, in bins of κ̂."""
    window = np.abs(np.fft.fft2(run.mask)) ** 2
    ell = np.hypot(*plane_vectors(geometry.n_pixels, geometry.pixel)).round().astype(int)
    # The mode of the mean stands for the multipoles around it.
    plane = cl[ell.clip(int(0.3 * geometry.fundamental), len(cl) - 1)]
    power = np.fft.ifft2(np.fft.fft2(plane) * np.fft.fft2(window / window.sum())).real
    return run.bandpowers.average_plane(power[:, : geometry.n_pixels // 2 + 1])


of_cases = {case: debiased(*case) for case in CASES}
print(table(of_cases))
print(thresholds(of_cases))
checks()
