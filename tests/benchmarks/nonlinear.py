"""How models of the non-linear and baryonic matter power move what lensing measures.

    python tests/benchmarks/nonlinear.py [RELEASE [FIGURE]]

Each model is taken for the truth, at the release's fiducial cosmology. First the theory is the
release's own, with all other parameters fixed: shifts of omch2 and of the amplitude of C_L^κκ, in
sigma of the bins in use. Then the emulators analyse these truths, without feedback and with
logT_AGN sampled over its box: shift ± error of omch2 and of the amplitude, each with all else of
the cosmology fixed, and of σ8 Ωm^0.25 in ΛCDM with the priors of yaml/lcdm.yaml (flat ones as
Gaussians of the same width, all centred on the truth). The model is linear in the cosmology at each
of a hundred values of logT_AGN. FIGURE is the second table as a picture. CAMB runs nine times, 8 s
of a core each.
"""

import sys

import numpy as np

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.likelihood.statistics import inverse_covariance
from cobaya_cnnlens.table import plus_minus, text_table
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Cosmology,
    camb_parameters,
    convergence_from_potential,
)
from cobaya_cnnlens.theory.emulator_files import read_emulator
from cobaya_cnnlens.validate.omch2 import fisher

FEEDBACK = "HMCode_logT_AGN"
MODELS = {
    **{
        f"feedback, logT_AGN {value}": {"halofit_version": "mead2020_feedback", FEEDBACK: value}
        for value in (7.3, 7.8, 8.3)
    },
    "mead2016": {"halofit_version": "mead2016"},
    "takahashi": {"halofit_version": "takahashi"},
}
# The AGN of HMCode-2016 (Mead et al. 2015, arXiv:1505.07833, table 4), which no logT_AGN gives.
OTHER_FEEDBACK = {
    "halofit_version": "mead2016",
    "HMCode_A_baryon": 2.32,
    "HMCode_eta_baryon": 0.76,
}
CUTS = (1000, 1500, None)
STEP = 0.002
# Steps of the derivatives in ΛCDM, and the widths of the priors of yaml/lcdm.yaml.
STEPS = {"omch2": 0.001, "ombh2": 0.0002, "ns": 0.005, "H0": 1.0, "logA": 0.01}
WIDTHS = {"omch2": 0.04, "ombh2": 0.0005, "ns": 0.02, "H0": 40.0, "logA": 0.6}
SPANS = 2 * np.array(list(STEPS.values()))
FLAT = ("omch2", "H0", "logA")
QUANTITIES = {"omch2": ".5f", "amplitude, %": ".2f", "s8omegamp25": ".4f"}

release = read_release(sys.argv[1] if len(sys.argv) > 1 else "refined_fiducial")
cosmology = Cosmology(**release.theory["cosmology"])
settings = CambSettings(lmax=4500, lens_potential_accuracy=8.0)


def convergence(cosmology, model=None):
    import camb

    results = camb.get_results(camb_parameters(cosmology, settings, model))
    return convergence_from_potential(
        results.get_lens_potential_cls(settings.lmax, raw_cl=True)[:, 0]
    )


def emulated(emulator, point):
    """C_L^κκ and σ8 Ωm^0.25, which does not depend on the feedback."""
    kk, _, derived = emulator(point)
    return kk, derived["sigma8"] * derived["omegam"] ** 0.25


class Analysis:
    """The theory of an emulator and its slopes in ΛCDM, linear at each value of logT_AGN."""

    def __init__(self, emulator, values):
        point = {name: getattr(cosmology, name) for name in STEPS if name != "logA"}
        point["logA"] = np.log(1e10 * cosmology.As)
        self.kk, self.sides = [], []
        for value in values:
            at = point if value is None else point | {FEEDBACK: value}
            self.kk.append(emulated(emulator, at)[0])
            sides = [
                [emulated(emulator, at | {name: at[name] + sign * step}) for sign in (1, -1)]
                for name, step in STEPS.items()
            ]
            self.sides.append([(up, down) for (up, _), (down, _) in sides])
            self.s8_slope = np.array([up - down for (_, up), (_, down) in sides]) / SPANS

    def measures(self, likelihood, truth):
        """Shift and error of each of ``QUANTITIES``, marginalised over logT_AGN, (3, 2)."""
        inverse, data = inverse_covariance(likelihood.covariance), likelihood.model(truth)
        scale = [np.sqrt(12) if name in FLAT else 1.0 for name in STEPS]
        prior = np.diag((np.array(scale) / np.array(list(WIDTHS.values()))) ** 2)
        by_case = [[], [], []]
        for kk, sides in zip(self.kk, self.sides, strict=True):
            left = data - likelihood.model(kk)
            changes = [likelihood.model(up) - likelihood.model(down) for up, down in sides]
            lcdm = np.array(changes) / SPANS[:, None]
            amplitude = (likelihood.model(1.01 * kk) - likelihood.model(0.99 * kk)) / 0.02
            cases = (
                (lcdm[:1], 0.0, np.ones(1)),
                (amplitude[None], 0.0, 100 * np.ones(1)),
                (lcdm, prior, self.s8_slope),
            )
            for results, (model, known, of) in zip(by_case, cases, strict=True):
                weighted = model @ inverse
                matrix = weighted @ model.T + known
                shift = np.linalg.solve(matrix, weighted @ left)
                chi2 = left @ inverse @ left - shift @ matrix @ shift
                log = -0.5 * (chi2 + np.linalg.slogdet(matrix)[1])
                results.append((log, of @ shift, of @ np.linalg.solve(matrix, of)))
        return np.array([marginalised(*np.transpose(results)) for results in by_case])


def marginalised(log, shift, variance):
    """Mean and error over the values of logT_AGN, of which the prior is flat."""
    weight = np.exp(log - log.max())
    mean = np.average(shift, weights=weight)
    return mean, np.sqrt(np.average(variance + (shift - mean) ** 2, weights=weight))


def draw(rows, path):
    """Shifts and errors of the rows with feedback, a panel for each of ``QUANTITIES``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = (r"$\omega_c$", r"amplitude of $C_L^{\kappa\kappa}$, %", r"$\sigma_8\Omega_m^{0.25}$")
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
    truths = list(dict.fromkeys(truth for _, truth, _, _ in rows))
    for i, (axis, label) in enumerate(zip(axes, labels, strict=True)):
        axis.axhline(0, color="0.6", lw=1)
        for j, truth in enumerate(truths):
            for k, sampled in enumerate((False, True)):
                values = np.array([v[i] for _, t, s, v in rows if (t, s) == (truth, sampled)])
                at = np.arange(len(values)) + 0.12 * (2 * j + k) - 0.18
                name = f"truth {truth}, {'sampled' if sampled else 'ignored'}"
                axis.errorbar(
                    at, *values.T, fmt="os"[j], color=f"C{j}", ms=4, label=name,
                    mfc=f"C{j}" if sampled else "w",
                )  # fmt: skip
        axis.set_xticks(range(len(CUTS)), [f"{cut or 4400}" for cut in CUTS])
        axis.set(xlabel=r"$L_\mathrm{max}$", title=f"shift of {label}")
        axis.title.set_size(10)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


fiducial = convergence(cosmology)
up, down = (convergence(cosmology.vary(omch2=cosmology.omch2 + s * STEP)) for s in (1, -1))
others = {name: convergence(cosmology, model) for name, model in MODELS.items()}
print(f"{release.name}: {release.n_patches} patches; the theory is {settings.halofit_version}")
likelihoods = [BandpowerLikelihood(release, L_max=L_max) for L_max in CUTS]
for L_max, likelihood in zip(CUTS, likelihoods, strict=True):
    still = likelihood.model(fiducial)
    slopes = {
        "omch2": (likelihood.model(up) - likelihood.model(down)) / (2 * STEP),
        "amplitude": (likelihood.model(1.01 * fiducial) - likelihood.model(0.99 * fiducial)) / 0.02,
    }
    columns = {"": ("", list(others))}
    for name, slope in slopes.items():
        (sigma,), (gain,) = fisher(slope[None], likelihood.covariance)
        shifts = [gain @ (likelihood.model(kk) - still) for kk in others.values()]
        columns[f"{name}, sigma {sigma:.5f}"] = ("+.2f", shifts)
    print(f"\n{text_table(columns, f'L_max {L_max}: shifts in sigma')}")

agn = convergence(cosmology, OTHER_FEEDBACK)
agn[2:] *= fiducial[2:] / others["mead2016"][2:]
truths = {
    "no feedback": fiducial,
    **{f"logT_AGN {value}": others[f"feedback, logT_AGN {value}"] for value in (7.8, 8.3)},
    "AGN of HMCode-2016": agn,
    "takahashi": others["takahashi"],
}
low, high = read_emulator("feedback").tables.low[-1], read_emulator("feedback").tables.high[-1]
analyses = {
    False: Analysis(read_emulator("lcdm"), [None]),
    True: Analysis(read_emulator("feedback"), np.linspace(low, high, 101)),
}
rows = [
    (L_max, truth, sampled, analysis.measures(likelihood, kk))
    for L_max, likelihood in zip(CUTS, likelihoods, strict=True)
    for truth, kk in truths.items()
    for sampled, analysis in analyses.items()
]
columns = {
    "L_max": ("", [f"{L_max or 4400}" for L_max, *_ in rows]),
    "truth": ("", [truth for _, truth, *_ in rows]),
    "logT_AGN": ("", ["sampled" if sampled else "ignored" for _, _, sampled, _ in rows]),
}
for i, (name, form) in enumerate(QUANTITIES.items()):
    shifts, errors = np.array([values[i] for *_, values in rows]).T
    columns[name] = (">", plus_minus(shifts, errors, form))
print(f"\n{text_table(columns, 'shift and error, through the emulators')}")
if len(sys.argv) > 2:
    draw([row for row in rows if row[1].startswith("logT")], sys.argv[2])
