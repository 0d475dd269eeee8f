"""What a non-Gaussian κ does to the debiased bandpowers of the shipped refining network.

    python tests/benchmarks/lognormal.py [PAIRS]

A pair is the same patch of a flat, periodic sky with a shifted-lognormal and with a Gaussian κ.
Both have the same spectrum, the same white noise behind κ, and the same E and map noise. The
skewness is that of κ in our pixels; docs/measured.md compares it with ray-traced simulations. The
changes are printed by bin and as shifts of omch2 and of the amplitude of C_L^κκ, in σ of
`refined_fiducial`. docs/_static/lognormal.png is drawn from them.

1.5 CPU-s a pair. Each batch is kept under products/refined, and a stopped run goes on from there.
"""

import sys
from pathlib import Path

import numpy as np
import scipy.fft
from PIL import Image
from tqdm import tqdm

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.covariance import mean_covariance, sample_covariance
from cobaya_cnnlens.calibrate.response import patch_bandpowers, standard_error
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.likelihood.statistics import hotelling_pte, inverse_covariance
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.power import power_of
from cobaya_cnnlens.pipeline.reconstructions import measurement_recipe
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.plots.drawing import save, subplots
from cobaya_cnnlens.simulate.modes import plane_vectors
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies
from cobaya_cnnlens.simulate.skies import seed_sequence
from cobaya_cnnlens.table import plus_minus, text_table
from cobaya_cnnlens.theory.camb import Cosmology
from cobaya_cnnlens.theory.emulator_files import read_emulator
from cobaya_cnnlens.validate.omch2 import fisher

ROOT = Path(__file__).parents[2]
MEMBERS = {"Gaussian": None, "lognormal": 0.28, "twice the skewness": 0.56}
# What fits to the matter bispectrum and its post-Born terms give at the same pixel and band limit.
EXPECTED = 0.17
BATCH = 8
# The box is this many patches wide; κ is made on a grid so many times finer.
WIDE, FINER = 2, 2
# A lognormal κ of this skewness is Gaussian: what differs is the noise of the method.
NULL = {"Gaussian": None, "almost Gaussian": 1e-6}
# Bins that the table joins; draws of a bootstrap; step of omch2.
MERGED, DRAWS, STEP = 4, 300, 0.001
FIGURE = ROOT / "docs" / "_static" / "lognormal.png"


class Convergence:
    """Shifted-lognormal κ = λ (e^{g − σ²/2} − 1), or a Gaussian κ of the same spectrum.

    g is Gaussian with the correlation function ln(1 + ξ/λ²), so that κ has the correlation function
    ξ on the periodic grid exactly.
    """

    def __init__(self, box, kk, band_limit):
        self.n, self.n_box, self.pixel = FINER * box.n_pixels, box.n_pixels, box.pixel / FINER
        ell = np.hypot(*plane_vectors(self.n, self.pixel))
        # Beyond the table the spectrum goes on as a power law. The mean of κ, which is removed
        # again, gets power too: without that, g would need a negative one.
        table = np.arange(2, len(kk))
        slope = np.log(kk[-1] / kk[-1001]) / np.log(table[-1] / (table[-1] - 1000.0))
        at = np.clip(ell, ell[0, 1], table[-1])
        self.power = np.exp(np.interp(np.log(at), np.log(table), np.log(kk[2:])))
        self.power *= (np.maximum(ell, table[-1]) / table[-1]) ** slope
        self.correlation = scipy.fft.ifft2(self.power).real / self.pixel**2
        self.in_band = (ell > 0) & (ell <= band_limit)
        kept = np.r_[: self.n_box // 2, -self.n_box // 2 : 0]
        self.kept = np.ix_(kept, kept)

    def shift(self, skewness):
        """λ of a skewness of the band-limited κ, to first order in σ/λ.

        With h = F * ξ of the filter F, ⟨κ_F³⟩ = (3/λ) ∫ F h² and ⟨κ_F²⟩ = (F * h)(0).
        """
        h = scipy.fft.ifft2(self.power * self.in_band).real / self.pixel**2
        third = 3.0 * scipy.fft.fft2(h**2).real[self.in_band].sum() / self.n**2
        return third / (skewness * h[0, 0] ** 1.5)

    def gaussian_power(self, shift):
        """Power of g."""
        correlation = np.log1p(self.correlation / shift**2)
        power = scipy.fft.fft2(correlation).real * self.pixel**2
        assert power.min() > 0.0, "no Gaussian field has the correlation function that g needs"
        return power, correlation[0, 0]

    def modes(self, white, skewness):
        """Modes of κ on the box from a white field on the fine grid."""
        white = scipy.fft.fft2(white) / self.pixel
        if skewness is None:
            kappa = white * np.sqrt(self.power)
        else:
            shift = self.shift(skewness)
            power, variance = self.gaussian_power(shift)
            g = scipy.fft.ifft2(white * np.sqrt(power)).real
            kappa = scipy.fft.fft2(shift * np.expm1(g - 0.5 * variance))
        return kappa[self.kept] / FINER**2


class Pairs:
    """Patches of the same phases with κ of each member."""

    def __init__(self, run, members):
        self.run, self.members, geometry = run, members, run.config.patch
        self.box = PatchGeometry(WIDE * geometry.size_deg, WIDE * geometry.n_pixels, pad=0)
        self.skies = PeriodicSkies(self.box, run.config.instrument, run.spectra())
        self.limit, n = run.config.sky.band_limit, self.box.n_pixels
        self.kappa = Convergence(self.box, run.spectra().kk, self.limit)
        self.ell = np.hypot(*plane_vectors(n, self.box.pixel))
        self.of_box = np.digitize(self.ell, run.bandpowers.bins.edges).ravel()

    def target(self):
        """Mean power of κ in the bins of the box."""
        power = np.interp(self.ell, np.arange(self.run.spectra().lmax + 1), self.run.spectra().kk)
        return (np.bincount(self.of_box, power.ravel()) / np.bincount(self.of_box))[1:-1]

    def batch(self, number):
        """Everything that is measured of one batch, members along the first axis."""
        recipe = {
            **measurement_recipe(self.run),
            "spectra": self.run.spectra_recipe(self.run.config.cosmology),
            "skewness": list(self.members.values()),
            "lognormal": [1, number, BATCH, WIDE, FINER],
        }
        name = "_".join(f"{skewness or 0:g}" for skewness in self.members.values())
        path = self.run.config.products / "lognormal" / name / f"batch_{number:04d}.h5"
        if not products.exists(path, "lognormal", recipe):
            products.write_product(path, "lognormal", recipe, self.measure(number))
        with products.open_product(path, "lognormal", recipe) as product:
            return {name: product.array(name) for name in product.names()}

    def measure(self, number):
        n_members, run = len(self.members), self.run
        patches = [self.patches(number * BATCH + i) for i in range(BATCH)]
        q, u, kappa, spectrum, moments = (np.concatenate(p) for p in zip(*patches, strict=True))
        powers = vars(patch_bandpowers(run.bandpowers, run.estimator.reconstruct(q, u), kappa))
        powers |= {"power": power_of(run)(q, u), "spectrum": spectrum, "moments": moments}
        return {name: p.reshape(BATCH, n_members, -1).swapaxes(0, 1) for name, p in powers.items()}

    def patches(self, index):
        """Masked Q, U and κ of every member, and power and moments of κ in the box."""
        run, n, n_patch = self.run, self.box.n_pixels, self.run.config.patch.n_pixels
        generator = np.random.default_rng(seed_sequence(run.config.seed, "lognormal", index))
        white = generator.standard_normal((self.kappa.n, self.kappa.n))
        e, noise = self.skies.draw("e", generator), self.skies.noise(generator)
        mask, data_mask = (m.astype(np.float32) for m in (run.mask, run.data_mask))
        inner, measured = (slice(n_patch), slice(n_patch)), []
        for skewness in self.members.values():
            modes = self.kappa.modes(white, skewness)
            with np.errstate(invalid="ignore", divide="ignore"):
                phi = np.where(self.ell > 0, 2.0 * modes / self.ell**2, 0.0)
            phi[self.ell > run.config.sky.lmax] = 0.0
            maps = self.skies.lensed(e, phi) + noise
            modes[(self.ell == 0) | (self.ell > self.limit)] = 0.0
            kappa = scipy.fft.ifft2(modes).real
            power = np.abs(modes) ** 2 * (self.box.pixel / n) ** 2
            binned = np.bincount(self.of_box, power.ravel()) / np.bincount(self.of_box)
            measured.append(
                (
                    maps.real[inner].astype(np.float32) * data_mask,
                    maps.imag[inner].astype(np.float32) * data_mask,
                    kappa[inner].astype(np.float32) * mask,
                    binned[1:-1],
                    np.array([(kappa**k).mean() for k in (2, 3, 4)]),
                )
            )
        return [np.stack(parts) for parts in zip(*measured, strict=True)]


def gains(likelihood):
    """Shifts of omch2 and of the amplitude of C_L^κκ, each alone, in σ per shift of d'."""
    release, emulator = likelihood.release, read_emulator("lcdm")
    cosmology = Cosmology(**release.theory["cosmology"])
    at = {name: getattr(cosmology, name) for name in ("omch2", "ombh2", "ns", "H0")}
    at["logA"] = np.log(1e10 * cosmology.As)
    near = [emulator(at | {"omch2": at["omch2"] + sign * STEP})[0] for sign in (1, -1)]
    scaled = [(1.0 + sign * STEP) * release.fiducial_kk for sign in (1, -1)]
    slopes = [likelihood.model(up) - likelihood.model(down) for up, down in (near, scaled)]
    return np.concatenate([fisher(slope[None], likelihood.covariance)[1] for slope in slopes])


def chi2_of(values, covariance=0.0):
    """Hotelling's T² of the mean over patches, with its PTE, as text."""
    mean, (n, n_bins) = values.mean(0), values.shape
    t2 = mean @ inverse_covariance(mean_covariance(values) + covariance) @ mean
    return f"chi2 {t2:.1f} for {n_bins} bins, PTE {hotelling_pte(t2, n, n_bins):.2g}"


def shifts(values, gain, covariance=0.0):
    """Shifts of omch2 and of the amplitude by the mean over patches, as text."""
    errors = np.einsum("pb,bc,pc->p", gain, mean_covariance(values) + covariance, gain) ** 0.5
    return plus_minus(gain @ values.mean(0), errors, "+.3f")


def bootstrap(statistic, n):
    """Of all patches, and its standard deviation over patches drawn with replacement."""
    generator = np.random.default_rng(1)
    draws = [statistic(generator.integers(n, size=n)) for _ in range(DRAWS)]
    return statistic(np.arange(n)), np.std(draws, axis=0)


def draw(centres, sigma, changes):
    """The change of d' by bin in units of the bandpower error, into a PNG with a palette."""
    figure, axis = subplots(figsize=(6.0, 3.0))
    for i, (name, change) in enumerate(changes.items()):
        at, label = centres + 24 * (i - 0.5), f"skewness {MEMBERS[name]}"
        values, errors = change.mean(0) / sigma, standard_error(change) / sigma
        axis.errorbar(at, values, errors, fmt="os"[i], ms=3, lw=1, color=f"C{i}", label=label)
    axis.axhline(0.0, color="k", lw=0.8)
    axis.set(xlabel="$L$", ylabel="change of $d'$ in $\\sigma$ of 160 patches")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, FIGURE, dpi=100)
    Image.open(FIGURE).convert("RGB").quantize(16).save(FIGURE, optimize=True)


def main(pairs):
    run = Run(load_config(ROOT / "training" / "config" / "refined.yaml"))
    study = Pairs(run, MEMBERS)
    batches = [study.batch(i) for i in tqdm(range(-(-pairs // BATCH)), unit="batch")]
    arrays = {name: np.concatenate([b[name] for b in batches], 1) for name in batches[0]}
    release = read_release("refined_fiducial")
    likelihood = BandpowerLikelihood(release)
    print(f"{arrays['truth'].shape[1]} pairs")
    checks(study, arrays, release, gains(likelihood))
    results(study, arrays, release, likelihood)


def debiased(release, arrays):
    """d and d' of every member and patch."""
    d = release.noise_subtracted(arrays["auto"])
    return d, d - release.correction_of(arrays["power"])


def checks(study, arrays, release, gain):
    """Are the skies what they are meant to be? Against numbers that this study did not make."""
    run, n, target = study.run, arrays["truth"].shape[1], study.target()
    print("κ of the box: rms, skewness and kurtosis; χ² of its spectrum over the target")
    for i, name in enumerate(MEMBERS):

        def cumulants(rows, moments=arrays["moments"][i]):
            second, third, fourth = moments[rows].mean(0)
            return np.array([second**0.5, third / second**1.5, fourth / second**2 - 3.0])

        spectrum = chi2_of(arrays["spectrum"][i] / target - 1.0)
        print(f"{name}: {', '.join(plus_minus(*bootstrap(cumulants, n), '.4f'))}; {spectrum}")

    print("by a skewness of 1e-6, the change of d' in σ of a patch: rms over the bins, by patch")
    null = (
        debiased(release, Pairs(run, NULL).batch(0))[1] / release.patch_covariance.diagonal() ** 0.5
    )
    print(np.sqrt(np.mean((null[1] - null[0]) ** 2, axis=1)).round(4))

    print("Gaussian κ less what the release says: omch2 and amplitude in σ of 160 patches")
    (d, *_), (after, *_), (truth, *_) = (*debiased(release, arrays), arrays["truth"])
    fiducial, error = release.fiducial_bandpowers, release.noise_covariance
    for name, values, covariance in (
        ("<κκ*> - W C", truth - fiducial, 0.0 * error),
        ("d' - W C", after - fiducial, error),
        ("d' - <κκ*>", after - truth, error),
        ("d - <κκ*>", d - truth, release.fixed_noise_covariance),
    ):
        text = ", ".join(shifts(values, gain, covariance))
        print(f"{name}: {text}; {chi2_of(values, covariance)}")


def results(study, arrays, release, likelihood):
    """The change by skewness, by bin and of the parameters, and that of the scatter."""
    gain, truth, n = gains(likelihood), arrays["truth"], arrays["truth"].shape[1]
    d, after = debiased(release, arrays)
    print("change by skewness: omch2 and amplitude in σ of 160 patches; χ²")
    changes = {}
    for i, name in list(enumerate(MEMBERS))[1:]:
        own = truth[i] - truth[0]
        for label, values in (
            ("d", d[i] - d[0]),
            ("d'", after[i] - after[0]),
            ("d - <κκ*>", d[i] - d[0] - own),
            ("d' - <κκ*>", after[i] - after[0] - own),
            ("<κκ*>", own),
        ):
            print(f"{name}, {label}: {', '.join(shifts(values, gain))}; {chi2_of(values)}")
        changes[name] = values = after[i] - after[0] - own
    one, two = changes.values()
    for label, values in (("linear", two - 2.0 * one), ("quadratic", two - 4.0 * one)):
        text = ", ".join(shifts(values, gain))
        print(f"less what a {label} change says: {text}; {chi2_of(values)}")

    x = EXPECTED / MEMBERS["lognormal"]
    values = (2.0 * x - x**2) * one + 0.5 * (x**2 - x) * two
    text = ", ".join(shifts(values, gain))
    print(f"first and second order at a skewness of {EXPECTED}: {text}; {chi2_of(values)}")

    inverse = inverse_covariance(release.patch_covariance)

    def scatter(rows):
        """tr C⁻¹S per bin, and σ of omch2 over that of the Gaussian member."""
        each = [sample_covariance(member[rows]) for member in after]
        trace = np.array([np.trace(inverse @ s) / len(s) for s in each])
        sigma = np.array([np.sqrt(gain[0] @ s @ gain[0]) for s in each])
        return np.concatenate([trace, trace / trace[0] - 1.0, sigma / sigma[0] - 1.0])

    values, errors = (x.reshape(3, -1) for x in bootstrap(scatter, n))
    heads = ("tr C^-1 S / bins", "over the Gaussian - 1", "sigma of omch2 - 1")
    columns = {
        h: (">", plus_minus(v, e, ".3f")) for h, v, e in zip(heads, values, errors, strict=True)
    }
    print(text_table({"scatter of d'": ("", MEMBERS), **columns}))

    joined = study.run.bandpowers.merge(np.eye(release.n_bins), MERGED).T
    sigma = np.sqrt(np.diag(joined @ likelihood.covariance @ joined.T))
    power = joined @ release.fiducial_bandpowers

    def variance(rows):
        """Of merged bins, over that of the Gaussian member, in per cent."""
        each = np.array([(member[rows] @ joined.T).var(0) for member in after])
        return 100.0 * (each[1] / each[0] - 1.0)

    edges = [
        f"{low} to {high}"
        for low, high in zip(
            release.edges[:-MERGED:MERGED], release.edges[MERGED::MERGED], strict=True
        )
    ]
    columns = {"L": ("", edges)}
    for name, change in changes.items():
        mean, error = (change @ joined.T).mean(0), standard_error(change @ joined.T)
        columns[f"{name}, %"] = (">", plus_minus(100 * mean / power, 100 * error / power, "+.2f"))
        columns[f"{name}, σ"] = (">", plus_minus(mean / sigma, error / sigma, "+.2f"))
    columns["variance, %"] = (">", plus_minus(*bootstrap(variance, n), "+.1f"))
    print(
        text_table(columns, "change of d' less that of κ's own power; of its variance, lognormal")
    )
    draw(release.centres, np.sqrt(np.diag(likelihood.covariance)), changes)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
