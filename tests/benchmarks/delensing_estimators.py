"""Lensing B modes that templates of three estimators leave, on the same skies, and internal bias.

    python tests/benchmarks/delensing_estimators.py FOLDER [--boxes N] [--paired N]

A sky is a periodic flat box of 10 deg × 10 deg at 1 µK-arcmin. Sixteen tiles, each half over the
next, are reconstructed by the network, by the MAP iterations on which it builds, and by the
quadratic estimator of Wiener-filtered maps. Their sum under sin² weights is κ̂ of the box. B modes
at l < 300 carry no weight in any of them. On a periodic box E and B do not mix.

The template is that of `cnnlens survey template`: of first order, from Wiener-filtered E modes and
κ̂. Its filter of κ̂ comes from the other boxes. Beside it stands the template of a κ̂ of the same
correlation ρ_L with κ, whose noise is Gaussian and independent of the maps, and that of a κ̂ with
the noise of another box. The internal bias is the response χ_l of the template to B modes b that
are added to the maps, ⟨t[m + b] − t[m], b⟩/⟨bb⟩. A box takes 16 CPU-seconds. One of the PAIRED
boxes, with χ, a rotation and another cosmology, takes 40 more. What is in FOLDER is not made again.
Draws docs/_static/delensing_estimators.png.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.fft
from delensed_r import MOCK, best_fit, error_of
from scipy.linalg import block_diag
from tqdm import tqdm

from cobaya_cnnlens.files import atomic_write
from cobaya_cnnlens.likelihood.bmodes import BBLikelihood, read_bb
from cobaya_cnnlens.maps import delensing
from cobaya_cnnlens.maps.mosaic_simulations import binned
from cobaya_cnnlens.maps.survey_template import BINS, LMAX
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.products import identity_of
from cobaya_cnnlens.reconstruct.features import FEATURES, KAPPA_UNIT, PASSES, features_of
from cobaya_cnnlens.reconstruct.files import estimator_hash
from cobaya_cnnlens.reconstruct.map_lensing import TOLERANCES, MAPLensing
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, load_refining
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import Box, PeriodicSkies
from cobaya_cnnlens.simulate.skies import seed_sequence

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "_static" / "delensing_estimators.png"
SEED, STAGE = 1717, "delensing_estimators"
# κ̂ does not use B modes below.
LMIN_B = 300
# E modes and κ̂ of the template end here.
LMAX_TEMPLATE = 3000
# Bins of ρ_L and of the filter of κ̂.
EDGES = np.array([20, 60, 100, 150, 200, 300, 400, 500, 650, 800, 1000, 1250, 1500, 2000, 3000])
ESTIMATORS = ("network", "MAP", "quadratic")
ANGLE = np.radians(0.2)
# Another cosmology, at which the response of the estimator and the template change.
SHIFT = {"omch2": 0.1285}
TRUE_R = 0.01
SURROGATES = 8  # of κ̂ with independent noise, for each box


class Boxes:
    """Periodic skies and their estimates of κ."""

    def __init__(self, folder):
        self.folder = folder
        run = Run(load_config(ROOT / "training" / "config" / "refined.yaml"))
        self.theory, patch = run.spectra(), run.config.patch
        self.n_tile, self.mask = patch.n_pixels, run.mask
        geometry = PatchGeometry(2.0 * patch.size_deg, 2 * self.n_tile, pad=0)
        self.instrument = run.config.instrument
        self.skies = PeriodicSkies(geometry, self.instrument, self.theory)
        shifted = run.spectra(run.config.cosmology.vary(**SHIFT))
        self.shifted = PeriodicSkies(geometry, self.instrument, shifted)
        # The same modes without a beam, and those of the template.
        self.box = Box(geometry, self.instrument, int(geometry.nyquist) - 1, 0)
        self.ell, self.n = self.box.ell, self.box.n
        self.pixel = geometry.pixel
        arguments = patch, self.instrument, self.mask, self.theory
        self.steps = MAPLensing(*arguments, PASSES, lmin_b=LMIN_B)
        self.internal_steps = MAPLensing(*arguments, PASSES)
        network = NETWORKS / "refined.keras"
        self.network = RefinedEstimator(self.steps, [load_refining(network)])
        last = {"tolerances": TOLERANCES[-1:], "lmin_b": LMIN_B}
        self.quadratic = MAPLensing(*arguments, passes=1, **last)
        made_of = [estimator_hash([network]), LMIN_B, PASSES, ANGLE, SHIFT, vars(self.instrument)]
        self.identity = identity_of({"made of": list(map(str, made_of))})[:8]
        across = np.sin(np.pi * (np.arange(self.n_tile) + 0.5) / self.n_tile) ** 2
        hann = across[:, None] * across
        # The sum over the tiles of the weight times the mask is one.
        self.weight = np.divide(hann, self.mask, out=np.zeros_like(hann), where=self.mask > 0)

    def e_and_b(self, p):
        """Modes of E and B of Q + iU, (n, n) each; of the sky, not of a beamed one."""
        x = np.conj(self.box.turn) * scipy.fft.fft2(p)
        mirrored = np.conj(np.roll(x[::-1, ::-1], 1, (0, 1)))
        return 0.5 * (x + mirrored), -0.5j * (x - mirrored)

    def polarisation(self, b):
        """Q + iU of modes of B."""
        return scipy.fft.ifft2(self.box.turn * 1j * b)

    def tiles(self, p):
        """Masked Q and U of all tiles, (16, n, n) each."""
        half = self.n_tile // 2
        rolled = [np.roll(p, (-y * half, -x * half), (0, 1)) for y in range(4) for x in range(4)]
        cut = np.stack([r[: self.n_tile, : self.n_tile] for r in rolled]) * self.mask
        return cut.real, cut.imag

    def joined(self, kappa):
        """Modes of κ̂ of the box, from that of all tiles."""
        half, total = self.n_tile // 2, np.zeros((self.n, self.n))
        for number, values in enumerate(kappa * self.weight):
            y, x = (half * i for i in divmod(number, 4))
            part = np.zeros_like(total)
            part[: self.n_tile, : self.n_tile] = values
            total += np.roll(part, (y, x), (0, 1))
        return scipy.fft.fft2(total)

    def estimates(self, p, every=False, internal=False):
        """Modes of κ̂ of Q + iU by the network, or by every estimator; internal ones use all B."""
        q, u = self.tiles(p)
        steps = self.internal_steps if internal else self.steps
        features = np.stack(list(features_of(steps, q, u)))
        kappa = {"network": self.network.refine(features)["kappa"]}
        if every:
            last = FEATURES.index(f"kappa_{PASSES}")
            kappa["MAP"] = KAPPA_UNIT * features[..., last].astype(float)
            kappa["quadratic"] = self.mask * self.quadratic.reconstruct(q, u)
        return {name: self.joined(values) for name, values in kappa.items()}

    def drawn(self, number, skies):
        """φ, the lensed sky, the noise and an independent field of B modes, of one box."""
        generator = np.random.default_rng(seed_sequence(SEED, STAGE, number))
        e, phi = (skies.draw(name, generator) for name in ("e", "phi"))
        noise = skies.noise(generator)
        unit = scipy.fft.fft2(generator.standard_normal((self.n, self.n)))
        # As the noise: white at its level, where r is measured.
        root = self.instrument.noise_uk_arcmin * ARCMIN / self.pixel
        extra = np.where((self.ell >= BINS.edges[0]) & (self.ell < LMIN_B), root * unit, 0.0)
        return phi, skies.lensed(e, phi), noise, extra

    def measured(self, number, kind):
        """Modes of one box, made if it has none.

        Of ``all`` estimators; ``paired`` ones of the network, with B modes and rotated; or of the
        network on the sky of a ``shifted`` cosmology, with the same phases and noise.
        """
        path = self.folder / f"box_{number:03d}_{kind}_{self.identity}.npz"
        if path.exists():
            with np.load(path) as stored:
                return dict(stored)
        skies = self.shifted if kind == "shifted" else self.skies
        phi, sky, noise, extra = self.drawn(number, skies)
        maps, made = sky + noise, {}
        if kind == "paired":
            added = maps + self.polarisation(extra)
            for name, internal in (("", False), ("internal_", True)):
                for of, p in (("own", maps), ("added", added)):
                    made[name + of] = self.estimates(p, internal=internal)["network"]
            made["turned"] = self.estimates(np.exp(2j * ANGLE) * sky + noise)["network"]
            made["extra"] = extra
        else:
            made |= self.estimates(maps, every=kind == "all")
            made["kappa"] = scipy.fft.fft2(skies.convergence(phi))
            made["e"], made["noise"] = self.e_and_b(maps)[0], self.e_and_b(noise)[1]
            made["b"] = self.e_and_b(sky)[1]
        made = {name: values.astype(np.complex64) for name, values in made.items()}
        with atomic_write(path) as partial:
            np.savez(partial, **made)
        return made


@dataclass
class Templates:
    """Templates of boxes, and powers of their modes at 30 < l < 300."""

    boxes: Boxes

    def __post_init__(self):
        boxes, theory = self.boxes, self.boxes.theory
        ell = np.arange(LMAX_TEMPLATE + 1)
        self.beam = np.maximum(boxes.instrument.beam(ell), 1e-3)
        noise = (boxes.instrument.noise_uk_arcmin * ARCMIN / self.beam) ** 2
        self.e_filter = delensing.wiener(theory.lensed_ee[: len(ell)], noise)
        self.index = np.digitize(boxes.ell, EDGES) - 1
        self.inside = (self.index >= 0) & (self.index < len(EDGES) - 1)
        self.at = np.digitize(boxes.ell, BINS.edges) - 1
        self.used = (self.at >= 0) & (self.at < BINS.n_bins)

    def mean(self, product, index, used, n):
        """Mean of a product of modes in bins."""
        counts = np.bincount(index[used], minlength=n)
        return np.bincount(index[used], product.real[used], minlength=n) / counts

    def kappa_power(self, first, second):
        """⟨ab*⟩ in EDGES, not normalised."""
        return self.mean(first * second.conj(), self.index, self.inside, len(EDGES) - 1)

    def b_power(self, first, second):
        """⟨ab*⟩ in the bins of r, in µK²."""
        scale = (self.boxes.pixel / self.boxes.n) ** 2
        return scale * self.mean(first * second.conj(), self.at, self.used, BINS.n_bins)

    def smooth(self, values):
        """Values of EDGES at the modes; zero where κ̂ is not used."""
        centres = 0.5 * (EDGES[1:] + EDGES[:-1])
        at = np.interp(self.boxes.ell, centres, values)
        return np.where(self.inside, at, 0.0)

    def of(self, e, kappa):
        """B modes of the template of filtered E and κ, (n, n)."""
        boxes, ell = self.boxes, np.arange(LMAX_TEMPLATE + 1)
        box = boxes.box
        factor = np.interp(boxes.ell, ell, self.e_filter / self.beam, right=0.0)
        phi = np.divide(2.0 * kappa, boxes.ell**2, out=np.zeros_like(kappa), where=self.inside)
        slope = box.gradient(phi)
        change = sum(slope[..., i] * scipy.fft.ifft2(box.gradients[i] * factor * e) for i in (0, 1))
        return boxes.e_and_b(change)[1]


def ratio_and_error(numerator, denominator):
    """Σ numerator/Σ denominator over boxes, and its error by the jackknife."""
    n = len(numerator)
    total = numerator.sum(0) / denominator.sum(0)
    left = (numerator.sum(0) - numerator) / (denominator.sum(0) - denominator)
    return total, np.sqrt((n - 1) * left.var(0))


class Comparison:
    """What the templates of all boxes leave."""

    def __init__(self, boxes, n_boxes):
        self.boxes, self.templates = boxes, Templates(boxes)
        self.modes = [boxes.measured(i, "all") for i in tqdm(range(n_boxes), unit="box")]
        for name in ESTIMATORS:
            self._subtract_mean_field(name)
        power = self.templates.kappa_power
        self.kappa = {
            name: np.array(
                [
                    [
                        power(m[name], m[name]),
                        power(m["kappa"], m[name]),
                        power(m["kappa"], m["kappa"]),
                    ]
                    for m in self.modes
                ]
            )
            for name in ESTIMATORS
        }

    def _subtract_mean_field(self, name):
        """Take the mean κ̂ of the other boxes off each, in the modes that tiles can have in common.

        Tiles lie half their side apart, so that the mean field has one in four modes along each
        axis.
        """
        common = np.zeros((self.boxes.n, self.boxes.n))
        common[::4, ::4] = 1.0
        total, n = sum(m[name] for m in self.modes), len(self.modes)
        for m in self.modes:
            m[name] = m[name] - common * (total - m[name]) / (n - 1)

    def filters(self, name, number=None):
        """⟨κκ̂⟩/⟨κ̂κ̂⟩, ρ_L² and the power of κ in EDGES, from all boxes or those other than one."""
        without = [] if number is None else number
        auto, cross, truth = np.delete(self.kappa[name], without, 0).mean(0)
        return cross / auto, cross**2 / auto / truth, truth

    def powers(self, t, modes):
        """⟨tt⟩, ⟨tB⟩, ⟨BB⟩ and ⟨tN⟩ in the bins of r."""
        pairs = ((t, t), (t, modes["b"]), (modes["b"], modes["b"]), (t, modes["noise"]))
        return [self.templates.b_power(*pair) for pair in pairs]

    def template(self, name, number):
        """The template of one estimator and box."""
        modes = self.modes[number]
        weight = self.templates.smooth(self.filters(name, number)[0])
        return self.templates.of(modes["e"], weight * modes[name])

    def exchanged(self, name, number):
        """Powers of the template of a κ̂ that has the noise of κ̂ of the next box."""
        other = (number + 1) % len(self.modes)
        smooth = self.templates.smooth
        (_, squared), (weight_there, squared_there) = (
            [smooth(values) for values in self.filters(name, i)[:2]] for i in (number, other)
        )
        modes, there = self.modes[number], self.modes[other]
        noise = weight_there * there[name] - squared_there * there["kappa"]
        t = self.templates.of(modes["e"], squared * modes["kappa"] + noise)
        return self.powers(t, modes)

    def surrogate(self, name, number):
        """Powers of templates of a κ̂ with the correlation of an estimator and independent noise."""
        modes, made = self.modes[number], []
        _, squared, power = (self.templates.smooth(v) for v in self.filters(name, number))
        squared = np.clip(squared, 0.0, 1.0)
        generator = np.random.default_rng(seed_sequence(SEED, f"{STAGE}/surrogate", number))
        for _ in range(SURROGATES):
            unit = scipy.fft.fft2(generator.standard_normal((self.boxes.n,) * 2)) / self.boxes.n
            kappa = squared * modes["kappa"] + np.sqrt(squared * (1.0 - squared) * power) * unit
            made.append(self.powers(self.templates.of(modes["e"], kappa), modes))
        return np.mean(made, axis=0)

    def theory(self, name):
        """1 − T_l by theory of a κ̂ of this correlation, (n_bins,)."""
        squared = self.filters(name)[1]
        ell = np.arange(LMAX_TEMPLATE + 1)
        filtered = np.interp(ell, 0.5 * (EDGES[1:] + EDGES[:-1]), np.clip(squared, 0.0, 1.0))
        filtered[ell < EDGES[0]] = 0.0
        theory, e_filter = self.boxes.theory, self.templates.e_filter
        power = delensing.template_power(theory, e_filter, filtered, LMAX)
        lensing = binned(theory.lensed_bb[: LMAX + 1], BINS)
        return 1.0 - (binned(power, BINS) / lensing)


def counts(templates):
    """Modes of each bin of r."""
    return np.bincount(templates.at[templates.used], minlength=BINS.n_bins)


def report(comparison):
    """Print what is left, network over MAP and quadratic, and over the surrogates."""
    boxes, templates, n = comparison.boxes, comparison.templates, len(comparison.modes)
    modes = counts(templates)
    measured_powers, expected, others = {}, {}, {}
    for name in ESTIMATORS:
        rows = [
            comparison.powers(comparison.template(name, i), comparison.modes[i]) for i in range(n)
        ]
        measured_powers[name] = np.array(rows)
        expected[name] = np.array([comparison.surrogate(name, i) for i in range(n)])
        others[name] = np.array([comparison.exchanged(name, i) for i in range(n)])

    def left(powers):
        """Power of B − t and of B, summed over all modes, (n_boxes,) each."""
        tt, tb, bb, _ = powers.swapaxes(0, 1)
        return (tt - 2.0 * tb + bb) @ modes, bb @ modes

    power = np.average(binned(boxes.theory.lensed_bb[: LMAX + 1], BINS), weights=modes)
    total = left(measured_powers["network"])[1] / modes.sum()
    print(f"⟨BB⟩ over that of theory {total.mean() / power:.3f}")
    print(f"{n} boxes of 100 deg², 30 < l < 300; κ̂ uses B modes at l >= {LMIN_B}")
    for name in ESTIMATORS:
        rest, total = left(measured_powers[name])
        own, _ = left(expected[name])
        exchanged, _ = left(others[name])
        theory = np.average(comparison.theory(name), weights=modes)
        print(
            "{}: left {:.4f} ± {:.4f}; independent noise of the same ρ_L {:.4f} ± {:.4f}; over it "
            "{:.3f} ± {:.3f}; noise of another box {:.4f} ± {:.4f}; theory {:.4f}".format(
                name,
                *ratio_and_error(rest, total),
                *ratio_and_error(own, total),
                *ratio_and_error(rest, own),
                *ratio_and_error(exchanged, total),
                theory,
            )
        )
        tt, tb, bb, tn = ((p @ modes) for p in measured_powers[name].swapaxes(0, 1))
        print(
            "  ⟨tB⟩/⟨BB⟩ {:.4f} ± {:.4f}, ⟨tB⟩/⟨tt⟩ {:.4f} ± {:.4f}, "
            "⟨tN⟩/⟨BB⟩ {:+.4f} ± {:.4f}".format(
                *ratio_and_error(tb, bb), *ratio_and_error(tb, tt), *ratio_and_error(tn, bb)
            )
        )
    base = left(measured_powers["network"])[0]
    for name in ESTIMATORS[1:]:
        line = ratio_and_error(base, left(measured_powers[name])[0])
        print("network over {}: {:.3f} ± {:.3f}".format(name, *line))
    return measured_powers, expected


def report_internal(comparison, n_paired):
    """Print the response to added B modes, its bias of r, and the effect of a rotation on κ̂."""
    boxes, templates, modes = comparison.boxes, comparison.templates, counts(comparison.templates)
    responses, rotations, internal = {"": [], "internal_": []}, [], []
    power = templates.kappa_power
    every = [
        [power(k, k), power(comparison.modes[i]["kappa"], k)]
        for i in range(n_paired)
        for k in [boxes.measured(i, "paired")["internal_own"]]
    ]

    def internal_weight(number):
        auto, cross = np.delete(every, number, 0).mean(0)
        return templates.smooth(cross / auto)

    def own_weight(number):
        return templates.smooth(comparison.filters("network", number)[0])

    for i in tqdm(range(n_paired), unit="box"):
        paired, b = boxes.measured(i, "paired"), comparison.modes[i]["b"]
        extra = paired.pop("extra")
        made = {
            name: templates.of(
                comparison.modes[i]["e"],
                (internal_weight(i) if name.startswith("internal") else own_weight(i)) * kappa,
            )
            for name, kappa in paired.items()
        }
        for name, rows in responses.items():
            change = made[name + "added"] - made[name + "own"]
            rows.append([templates.b_power(change, extra), templates.b_power(extra, extra)])
        rotations.append([templates.b_power(made[name], b) @ modes for name in ("turned", "own")])
        _, tb, bb, tn = comparison.powers(made["internal_own"], comparison.modes[i])
        internal.append([tb @ modes, tn @ modes, bb @ modes])
    data = read_bb(MOCK)
    for name, rows in responses.items():
        chi, error = ratio_and_error(*np.array(rows).swapaxes(0, 1))
        print(f"κ̂ uses B modes at l >= {0 if name else LMIN_B}: response χ of the template to B")
        print("  l ", *(f"{c:7.0f}" for c in BINS.centres))
        print("  χ ", *(f"{c:7.4f}" for c in chi))
        print("  ± ", *(f"{c:7.4f}" for c in error))
        for calibrated in (False, True):
            how = "simulated at r = 0" if calibrated else "of independent noise"
            shifts = []
            for r in (0.0, TRUE_R):
                moved = shift(data, chi, r, calibrated)
                slopes = []
                for step in np.diag(error):
                    slopes.append(shift(data, chi + step, r, calibrated) - moved)
                shifts.append(f"{moved:+.3f} ± {np.linalg.norm(slopes):.3f} at r = {r:g}")
            print(f"  shift of r of {data.name} in σ, model {how}: {', '.join(shifts)}")
    tb, tn, bb = np.array(internal).T
    for name, values in (("B", tb), ("N", tn)):
        line = ratio_and_error(values, bb)
        print("κ̂ of all B modes: ⟨t{}⟩/⟨BB⟩ {:+.4f} ± {:.4f}".format(name, *line))
    line = ratio_and_error(*np.array(rotations).T)
    print("⟨tB⟩ after 0.2 deg over ⟨tB⟩: {:.4f} ± {:.4f}".format(*line))


def report_cosmology(comparison, n_paired):
    """Print how the transfer changes with the cosmology, the response of κ̂ included."""
    boxes, templates, modes = comparison.boxes, comparison.templates, counts(comparison.templates)
    rows = []
    for i in tqdm(range(n_paired), unit="box"):
        shifted, own = boxes.measured(i, "shifted"), comparison.modes[i]
        weight = templates.smooth(comparison.filters("network", i)[0])
        powers = []
        for of_box in (own, shifted):
            t = templates.of(of_box["e"], weight * of_box["network"])
            powers += [templates.b_power(x, of_box["b"]) @ modes for x in (t, of_box["b"])]
        rows.append(powers)
    tb, bb, shifted_tb, shifted_bb = np.array(rows).T

    def change(chosen):
        parts = (x[chosen].sum() for x in (shifted_tb, bb, shifted_bb, tb))
        up, other, down, own = parts
        return up * other / down / own - 1.0

    every = np.arange(n_paired)
    left = np.array([change(np.delete(every, i)) for i in every])
    error = np.sqrt((n_paired - 1) * left.var())
    print(f"{SHIFT}: ⟨tB⟩/⟨BB⟩ of the network changes by {change(every):+.4f} ± {error:.4f}")


def shift(data, chi, r, calibrated):
    """Shift of the best r in σ, if the template contains χ_l (B + N + r T).

    With ``calibrated``, C^X, N^t and the covariance are those of simulations at r = 0 whose
    template contains the same. Otherwise they are those of a κ̂ with independent noise.
    """
    lensing, noise = data.lensing, data.noise
    if calibrated:
        internal = lensing + noise
        template_noise = data.template_noise + 2.0 * chi * data.cross + chi**2 * internal
        # Of (BB, Bt, tt) of t + χB, linear in those of t.
        one, zero = np.ones_like(chi), np.zeros_like(chi)
        change = np.array([[one, zero, zero], [chi, one, zero], [chi**2, 2.0 * chi, one]])
        change = block_diag(*change.transpose(2, 0, 1))
        model = replace(
            data,
            cross=data.cross + chi * internal,
            template_noise=template_noise,
            covariance=change @ data.covariance @ change.T,
        )
    else:
        model = data
    bb = r * data.tensor + lensing + noise
    bt = data.cross + chi * bb
    tt = data.template_signal + data.template_noise + 2.0 * chi * data.cross + chi**2 * bb
    observed = replace(model, bandpowers=np.stack([bb, bt, tt], axis=1))
    likelihood = BBLikelihood(observed)
    best, alens = best_fit(likelihood, r)
    return (best - r) / error_of(likelihood, best, alens)


def draw(comparison, measured_powers, expected):
    """ρ_L of the estimators, and the lensing power that their templates leave."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(ESTIMATORS):
        auto, cross, truth = comparison.kappa[name].swapaxes(0, 1)
        squared = cross.mean(0) ** 2 / auto.mean(0) / truth.mean(0)
        centres, colour = 0.5 * (EDGES[1:] + EDGES[:-1]), f"C{number}"
        left.plot(centres, squared, "o-", ms=4, color=colour, label=name)
        rests = []
        for powers in (measured_powers[name], expected[name]):
            tt, tb, bb, _ = powers.swapaxes(0, 1)
            rests.append(ratio_and_error(tt - 2.0 * tb + bb, bb))
        at = BINS.centres + 4.0 * (number - 1)
        right.errorbar(at, *rests[0], fmt="o", ms=4, color=colour, label=name)
        right.plot(at, rests[1][0], "_", ms=9, color=colour)
        right.plot(BINS.centres, comparison.theory(name), ":", lw=1, color=colour)
    left.set(xscale="log", xlabel="L", ylabel=r"$\rho_L^2$", ylim=(0.0, 1.0))
    right.set(xlabel=r"$\ell$", ylabel="lensing power left", ylim=(0.0, None))
    right.legend(frameon=False)
    figure.savefig(FIGURE, dpi=110)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--boxes", type=int, default=40)
    parser.add_argument("--paired", type=int, default=10)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    boxes = Boxes(given.folder)
    comparison = Comparison(boxes, given.boxes)
    draw(comparison, *report(comparison))
    report_internal(comparison, given.paired)
    report_cosmology(comparison, given.paired)


if __name__ == "__main__":
    main()
