"""r from mock surveys with a lensing template: is it biased, and how much does the template help?

    python tests/benchmarks/delensed_r.py FOLDER [--skies N]

Every sky is lensed on the whole sphere, and the template is made as `cnnlens survey template` makes
it. κ̂ has Gaussian noise: the noise bias of refined_fiducial, a network at 1 µK-arcmin. Tensor modes
and noise are added to the lensing B modes. The surveys are 48 regions of each sky, apodised discs
of 957 deg². Their B modes are those of the whole sky, without leakage of E. Each sky is data
in turn; the others give its model and covariance. Eight skies take 20 CPU-minutes. Skies that are
in FOLDER are used again. Writes cobaya_cnnlens/likelihood/data/bb/bb_mock.json (r = 0.003) and
draws docs/_static/r.png.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import camb
import healpy
import numpy as np
from scipy import optimize
from tqdm import tqdm

from cobaya_cnnlens.files import atomic_write
from cobaya_cnnlens.likelihood.bmodes import BBData, BBLikelihood, write_bb
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps import delensing
from cobaya_cnnlens.maps.mosaic_simulations import binned
from cobaya_cnnlens.maps.survey_template import BINS, LMAX
from cobaya_cnnlens.reconstruct.n0 import Filter, n0_iterated, n0_mv
from cobaya_cnnlens.simulate import patches
from cobaya_cnnlens.simulate.instrument import ARCMIN, Instrument
from cobaya_cnnlens.simulate.patches import healpix_pointing
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm, seed_sequence, unit_alm
from cobaya_cnnlens.theory.camb import Cosmology, Spectra, compute_spectra, lensed_polarisation

REPOSITORY = Path(__file__).parents[2]
MOCK = REPOSITORY / "cobaya_cnnlens" / "likelihood" / "data" / "bb" / "bb_mock.json"
FIGURE = REPOSITORY / "docs" / "_static" / "r.png"
# The mock is the first region of this sky.
MOCK_SKY = 4
SEED, STAGE = 1717, "delensed_r"
# E and φ of a sky end at LMAX_SKY. The lensing power at l < 300 is then a few per cent too low.
LMAX_SKY, NSIDE = 1500, 1024
NOISE, BEAM = 1.0, 1.0  # µK-arcmin of Q and of U, and FWHM in arcmin
# The regions are discs about the pixels of NSIDE_REGIONS. They end at RADIUS and fall over
# APODISED, in degrees.
NSIDE_REGIONS, RADIUS, APODISED = 2, 19.5, 4.0
NSIDE_SPECTRA = 256
FIELDS = ("lensing", "template", "tensor", "noise")
TRUTHS = (0.0, 0.003, 0.01)
# Cosmologies whose transfer function stands beside that of the fiducial one.
COSMOLOGIES = (
    {"omch2": 0.1085},
    {"omch2": 0.1285},
    {"As": 2.43e-9},
    {"ns": 0.9824},
    {"ombh2": 0.0232},
    {"mnu": 0.3},
)
ANGLE = 0.2  # degrees, of a polarisation angle that the analysis does not know


def tensor_power(cosmology, lmax):
    """C_l^BB of tensor modes with r = 1 at 0.05/Mpc and no tilt, in µK², (lmax + 1,)."""
    c = cosmology
    parameters = camb.set_params(
        H0=c.H0, ombh2=c.ombh2, omch2=c.omch2, tau=c.tau, mnu=c.mnu, As=c.As, ns=c.ns, r=1.0,
        nt=0.0, max_l_tensor=lmax + 200, max_eta_k_tensor=2.0 * (lmax + 200),
    )  # fmt: skip
    parameters.WantTensors = True
    results = camb.get_results(parameters)
    return results.get_tensor_cls(lmax, CMB_unit="muK", raw_cl=True)[: lmax + 1, 2]


def kappa_noise(lmax):
    """N_L of a network at 1 µK-arcmin, infinite below its first bin, (lmax + 1,)."""
    release = read_release("refined_fiducial")
    ell, edges = np.arange(lmax + 1.0), release.edges
    noise = np.interp(ell, 0.5 * (edges[:-1] + edges[1:]), release.noise)
    noise[ell < edges[0]] = np.inf
    return noise


class Skies:
    """Skies of one theory, and the spectra of their regions."""

    def __init__(self, folder):
        self.folder, self.cosmology = folder, Cosmology()
        theory = compute_spectra(self.cosmology)
        theory = Spectra(*(cl[: LMAX_SKY + 1] for cl in vars(theory).values()))
        ee, bb = lensed_polarisation(theory, LMAX_SKY)
        self.theory = replace(theory, lensed_ee=ee, lensed_bb=bb)
        beam = healpy.gauss_beam(BEAM * ARCMIN, LMAX_SKY)
        self.noise = (NOISE * ARCMIN / beam) ** 2
        self.kappa_noise = kappa_noise(LMAX_SKY)
        self.filters = (
            delensing.wiener(ee, self.noise),
            delensing.wiener(self.theory.kk, self.kappa_noise),
        )
        self.tensor = tensor_power(self.cosmology, LMAX)
        self.at = healpix_pointing(NSIDE, np.arange(12 * NSIDE**2))
        vectors = np.array(healpy.pix2vec(NSIDE_SPECTRA, np.arange(12 * NSIDE_SPECTRA**2)))
        centres = np.array(healpy.pix2vec(NSIDE_REGIONS, np.arange(12 * NSIDE_REGIONS**2))).T
        self.masks = []
        for centre in centres:
            away = RADIUS - np.degrees(np.arccos(np.clip(centre @ vectors, -1.0, 1.0)))
            self.masks.append(np.sin(0.5 * np.pi * np.clip(away / APODISED, 0.0, 1.0)) ** 2)
        self.area = float(np.degrees(1.0) ** 2 * 4.0 * np.pi * self.masks[0].mean())

    def modes(self, number):
        """a_lm of the B modes in FIELDS to LMAX; tensor modes of r = 1."""
        theory, (e_filter, kappa_filter) = self.theory, self.filters
        sky = draw_sky(theory, LMAX_SKY, SEED, STAGE, number)
        pixels = np.arange(12 * NSIDE**2)
        deflection = patches.deflect_by(patches.gradient_at(sky.philm, LMAX_SKY, self.at), self.at)
        lensed, own = patches.lensed_and_unlensed_at(sky.elm, LMAX_SKY, self.at, deflection)
        truth = delensing.e_and_b_modes(NSIDE, pixels, lensed - own, LMAX)[1]
        observed = delensing.e_and_b_modes(NSIDE, pixels, lensed, LMAX_SKY)[0]
        generator = np.random.default_rng(seed_sequence(SEED, f"{STAGE}/noise", number))
        elm, kappa_lm, tensor, noise = (
            unit_alm(lmax, generator) for lmax in (LMAX_SKY, LMAX_SKY, LMAX, LMAX)
        )
        elm = observed + scale_alm(elm, np.sqrt(self.noise))
        known = np.where(np.isfinite(self.kappa_noise), self.kappa_noise, 0.0)
        kappa_lm = patches.convergence_alm(sky.philm, LMAX_SKY, LMAX_SKY) + scale_alm(
            kappa_lm, np.sqrt(known)
        )
        philm = delensing.potential_alm(kappa_lm, kappa_filter)
        change = delensing.lensing_change(
            scale_alm(elm, e_filter), LMAX_SKY, philm, LMAX_SKY, NSIDE, pixels
        )
        template = delensing.e_and_b_modes(NSIDE, pixels, change, LMAX)[1]
        tensor, noise = (
            scale_alm(lm, np.sqrt(cl[: LMAX + 1]))
            for lm, cl in ((tensor, self.tensor), (noise, self.noise))
        )
        return truth, template, tensor, noise

    def spectra(self, number):
        """Spectra of FIELDS in the regions, (n_regions, n_fields, n_fields, n_bins) in µK²."""
        path = self.folder / f"sky_{number:03d}.npy"
        if path.exists():
            return np.load(path)
        maps = [healpy.alm2map(lm, NSIDE_SPECTRA, lmax=LMAX) for lm in self.modes(number)]
        made = np.empty((len(self.masks), len(FIELDS), len(FIELDS), BINS.n_bins))
        for region, mask in enumerate(tqdm(self.masks, desc=f"sky {number}", unit="region")):
            lm = [healpy.map2alm(m * mask, lmax=int(BINS.edges[-1]) + 1, iter=0) for m in maps]
            for i, first in enumerate(lm):
                for j in range(i + 1):
                    power = binned(healpy.alm2cl(first, lm[j]), BINS) / (mask**2).mean()
                    made[region, i, j] = made[region, j, i] = power
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, made)
        return made


def bandpowers_of(spectra, r):
    """BB, Bt and tt of measured B modes with some r, (n_regions, n_bins, 3)."""
    size = {"lensing": 1.0, "noise": 1.0, "tensor": np.sqrt(r)}
    number = {name: FIELDS.index(name) for name in FIELDS}
    bb = sum(size[a] * size[b] * spectra[:, number[a], number[b]] for a in size for b in size)
    bt = sum(size[a] * spectra[:, number[a], number["template"]] for a in size)
    return np.stack([bb, bt, spectra[:, number["template"], number["template"]]], axis=-1)


@dataclass
class Study:
    """The model of some skies, and the surveys of another one."""

    skies: Skies
    data: BBData
    tested: np.ndarray

    @classmethod
    def of(cls, skies, spectra, number):
        """Test one sky; ``spectra`` of all, (n_skies, n_regions, n_fields, n_fields, n_bins)."""
        tested = spectra[number]
        fitted = np.concatenate([*spectra[:number], *spectra[number + 1 :]])
        mean = fitted.mean(0)
        lensing, template, tensor, noise = range(len(FIELDS))
        e_filter, kappa_filter = skies.filters
        power, signal = (
            binned(delensing.template_power(skies.theory, e_filter, f, LMAX), BINS)
            for f in (kappa_filter, kappa_filter**2)
        )
        with_phi = mean[template, template] * signal / power
        vectors = bandpowers_of(fitted, 0.0).reshape(len(fitted), -1)
        data = BBData(
            name="bb_mock",
            description=(
                f"mock of {skies.area:.0f} deg² at {NOISE:g} uK arcmin without foregrounds, "
                f"lensing by l <= {LMAX_SKY}"
            ),
            edges=BINS.edges.astype(float),
            bandpowers=bandpowers_of(tested[:1], TRUTHS[1])[0],
            tensor=mean[tensor, tensor],
            lensing=mean[lensing, lensing],
            noise=mean[noise, noise],
            cross=mean[lensing, template],
            template_signal=with_phi,
            template_noise=mean[template, template] - with_phi,
            covariance=np.cov(vectors.T),
            # Regions overlap: the whole sky has so many of their area.
            n_sim=(len(spectra) - 1) * int(4.0 * np.pi * np.degrees(1.0) ** 2 / skies.area),
            truth={"r": TRUTHS[1], "Alens": 1.0},
        )
        return cls(skies, data, tested)

    def fits(self, r, template):
        """Best r of each tested survey, of any sign, its error by the curvature of ln L, and A_L,
        (n_surveys, 3)."""
        fitted = []
        for bandpowers in bandpowers_of(self.tested, r):
            likelihood = BBLikelihood(replace(self.data, bandpowers=bandpowers), template)
            best, alens = best_fit(likelihood, r)
            fitted.append([best, error_of(likelihood, best, alens), alens])
        return np.array(fitted)

    def forecast(self, r, template):
        """σ(r) by Fisher of Gaussian modes under the mask, A_L free."""
        mask = self.skies.masks[0]
        part = (mask**2).mean() ** 2 / (mask**4).mean()
        edges = self.data.edges
        modes = part * (edges[1:] ** 2 - edges[:-1] ** 2)
        n = 2 if template else 1
        inverse = np.linalg.inv(self.data.model(r, 1.0)[:, :n, :n])
        steps = np.array([[1e-4, 0.0], [0.0, 1e-2]])
        change = [
            (self.data.model(r + a, 1.0 + b) - self.data.model(r - a, 1.0 - b))[:, :n, :n]
            / (2 * (a + b))
            for a, b in steps
        ]
        fisher = [
            [0.5 * modes @ np.trace(inverse @ x @ inverse @ y, axis1=1, axis2=2) for x in change]
            for y in change
        ]
        return float(np.sqrt(np.linalg.inv(fisher)[0, 0]))

    def systematics(self):
        """Print by how much errors that the analysis does not know move r = 0, in σ."""
        data, lensed = self.data, self.skies.theory.lensed_ee[: LMAX + 1]
        zero = np.zeros(data.n_bins)
        leaked = np.sin(np.radians(2.0 * ANGLE)) ** 2 * binned(lensed, BINS)
        power = data.model(0.0, 1.0)
        expected = np.stack([power[:, 0, 0], power[:, 0, 1], power[:, 1, 1]], axis=1)
        sigma = self.forecast(0.0, True)
        for name, bb, t in (
            ("noise rms +2%", 0.0404 * data.noise, zero),
            (f"polarisation angle {ANGLE:g} deg", leaked, zero),
            ("transfer of the template -1%", zero, -0.01 * np.ones(data.n_bins)),
        ):
            changed = expected * np.stack([1.0 + zero, 1.0 + t, (1.0 + t) ** 2], axis=1)
            changed[:, 0] += bb
            r = best_fit(BBLikelihood(replace(data, bandpowers=changed)), 0.0)[0]
            print(f"{name}: r {r / sigma:+.2f} σ")


def report(studies):
    """Print the bias of r, and its error with and without the template."""
    data = studies[0].data
    n_surveys = sum(len(study.tested) for study in studies)
    print(f"{n_surveys} surveys of {data.description}, n_sim {data.n_sim}")
    for r in TRUTHS:
        for template in (True, False):
            of_skies = [study.fits(r, template) for study in studies]
            best, sigma, alens = np.concatenate(of_skies).T
            means = [fits[:, 0].mean() for fits in of_skies]
            scatter = best.std(ddof=1)
            error = np.std(means, ddof=1) / np.sqrt(len(means))
            kind = "with" if template else "without"
            print(
                f"r = {r:g} {kind} template: mean {best.mean():+.5f}, scatter {scatter:.5f}, "
                f"forecast {studies[0].forecast(r, template):.5f}; bias "
                f"{(best.mean() - r) / scatter:+.3f} ± {error / scatter:.3f} σ; rms of the pulls "
                f"{np.std((best - r) / sigma):.3f}; A_L {alens.mean():.4f}, scatter "
                f"{alens.std(ddof=1):.4f}",
                flush=True,
            )


def error_of(likelihood, r, alens):
    """σ(r) by the curvature of ln L at its maximum, A_L free."""
    steps = 2e-4 * (1.0 + r / 0.01), 5e-3

    def at(i, j):
        return likelihood.log_likelihood(r + i * steps[0], alens + j * steps[1])

    rr = (at(1, 0) + at(-1, 0) - 2.0 * at(0, 0)) / steps[0] ** 2
    aa = (at(0, 1) + at(0, -1) - 2.0 * at(0, 0)) / steps[1] ** 2
    ra = (at(1, 1) + at(-1, -1) - at(1, -1) - at(-1, 1)) / (4.0 * steps[0] * steps[1])
    return np.sqrt(-aa / (rr * aa - ra**2))


def best_fit(likelihood, start):
    """Best r, of any sign, and A_L."""
    best = optimize.minimize(
        lambda x: -max(likelihood.log_likelihood(1e-3 * x[0], x[1]), -1e9),
        [1e3 * start + 1.0, 1.0],
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-3},
    )
    return 1e-3 * best.x[0], best.x[1]


def print_residuals():
    """Part of the lensing power that a template leaves, 30 < l < 300, by theory (1 − T_l)."""
    theory, L = compute_spectra(Cosmology()), np.unique(np.geomspace(2, 4000, 60).round())
    ell = np.arange(theory.lmax + 1)
    lensing = binned(theory.lensed_bb[: LMAX + 1], BINS)

    def left(noise, level):
        e_noise = (level * ARCMIN / healpy.gauss_beam(BEAM * ARCMIN, theory.lmax)) ** 2
        filters = (
            delensing.wiener(theory.lensed_ee, e_noise),
            delensing.wiener(theory.kk, noise),
        )
        return 1.0 - (binned(delensing.template_power(theory, *filters, LMAX), BINS) / lensing)

    def printed(name, level, noise):
        of_bins = left(noise, level)
        ends = f"{of_bins[0]:.3f} to {of_bins[-1]:.3f}"
        print(f"{level:4g} uK arcmin, {name}: {of_bins.mean():.3f} ({ends})", flush=True)

    printed("network", 1.0, kappa_noise(theory.lmax))
    for level in (0.3, 1.0, 2.0, 5.0, 10.0):
        instrument = Instrument(noise_uk_arcmin=level, beam_fwhm_arcmin=BEAM)
        for lmin in (30, 300):
            for name, function in (("quadratic EB, EE", n0_mv), ("iterated EB", n0_iterated)):
                noise = function(L, theory, instrument, Filter(lmin, 4600))
                printed(f"{name}, l >= {lmin}", level, np.interp(ell, L, noise))


def print_cosmology():
    """Print by theory how T_l of fixed filters changes with the cosmology, 30 < l < 300."""
    fiducial = compute_spectra(Cosmology())
    e_noise = (NOISE * ARCMIN / healpy.gauss_beam(BEAM * ARCMIN, fiducial.lmax)) ** 2
    filters = (
        delensing.wiener(fiducial.lensed_ee, e_noise),
        delensing.wiener(fiducial.kk, kappa_noise(fiducial.lmax)),
    )

    def transfer(**change):
        theory = compute_spectra(Cosmology().vary(**change))
        power = binned(delensing.template_power(theory, *filters, LMAX), BINS)
        return power / binned(theory.lensed_bb[: LMAX + 1], BINS)

    own = transfer()
    for change in COSMOLOGIES:
        off = transfer(**change) / own - 1.0
        print(f"{change}: T changes by {off.mean():+.4f} ({off.min():+.4f} to {off.max():+.4f})")


def posterior(likelihood, r, alens):
    """Of r on a grid, A_L integrated, with a flat prior."""
    logs = np.array([[likelihood.log_likelihood(x, a) for a in alens] for x in r])
    density = np.exp(logs - logs.max()).sum(1)
    return density / density.max()


def draw(data):
    """Spectra of the mock and the posterior of r."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    centres = 0.5 * (data.edges[1:] + data.edges[:-1])
    bb, bt, tt = data.bandpowers.T
    # Delensed B modes are BB − 2 Bt + tt.
    covariance = [data.covariance[3 * b : 3 * b + 3, 3 * b : 3 * b + 3] for b in range(data.n_bins)]
    errors, delensed_errors = (
        np.sqrt([x @ c @ x for c in covariance]) for x in np.array([[1, 0, 0], [1, -2, 1]])
    )
    left.errorbar(centres, bb, errors, fmt="o", ms=4, color="k", label="B modes")
    left.plot(centres, data.lensing, color="C0", label="lensing")
    delensed, label = bb - 2.0 * bt + tt, "B modes − template"
    left.errorbar(centres, delensed, delensed_errors, fmt="s", ms=4, color="C3", label=label)
    left.plot(centres, data.noise, ":", color="0.5", label="noise")
    left.plot(
        centres, data.truth["r"] * data.tensor, "--", color="C2", label=f"r = {data.truth['r']:g}"
    )
    left.set(yscale="log", xlabel=r"$\ell$", ylabel=r"$C_\ell^{BB}$ [µK²]")
    left.legend(frameon=False, fontsize=8)
    r, alens = np.linspace(0.0, 0.02, 201), np.linspace(0.85, 1.15, 61)
    for template, label in ((True, "with the template"), (False, "B modes alone")):
        right.plot(r, posterior(BBLikelihood(data, template), r, alens), label=label)
    right.axvline(data.truth["r"], color="k", ls="--", lw=0.8)
    right.set_xticks(np.arange(0.0, 0.021, 0.005))
    right.set(xlabel="r", ylabel="posterior", ylim=(0.0, None))
    right.legend(frameon=False)
    figure.savefig(FIGURE, dpi=110)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--skies", type=int, default=8)
    given = parser.parse_args()
    print_residuals()
    print_cosmology()
    given.folder.mkdir(parents=True, exist_ok=True)
    skies = Skies(given.folder)
    spectra = np.array([skies.spectra(number) for number in range(given.skies)])
    studies = [Study.of(skies, spectra, number) for number in range(given.skies)]
    report(studies)
    studies[MOCK_SKY].systematics()
    write_bb(studies[MOCK_SKY].data, MOCK)
    draw(studies[MOCK_SKY].data)


if __name__ == "__main__":
    main()
