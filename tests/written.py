"""A calibration written by hand, product by product.

κ̂ = R(κ + n) with R ≠ 1 and bandpowers of κ's own size: a power of R that is dropped, or a truth
that is not taken off, is no small thing here. Samples are whitened, so that means and covariances
of patches are exact and what is made of them is known to rounding.
"""

import itertools

import numpy as np

from cobaya_cnnlens import products
from cobaya_cnnlens.likelihood.fields import SIMULATED
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.perturbations import Derivatives, ShiftedSkies
from cobaya_cnnlens.pipeline.power import Power
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers, signal_bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies

from .conftest import REPOSITORY

HASH = "a" * 64
N_BINS, PER_SKY = 4, 10
RESPONSE = np.array([0.8, 0.7, 0.55, 0.4])


def small(folder) -> dict:
    """A configuration of coarse pixels and few bins, as a file holds it."""
    content = load_config(REPOSITORY / "training" / "config" / "test.yaml").model_dump(mode="json")
    content["products"] = str(folder)
    content["camb"]["lmax"] = content["sky"]["lmax"] = 1000
    content["sky"]["band_limit"] = 800
    content["patch"] = {"size_deg": 10.0, "n_pixels": 48, "pad": 2}
    content["centres"] = {"nside": 1, "poles": 1}  # 10 patches of a sky
    content["bandpowers"] = {"lmin": 36, "width": 150, "n_bins": N_BINS}
    content["derivatives"] = {
        "kk_edges": [2, 400, 801],
        "ee_edges": [2, 300, 600, 1001],
        "step": 0.1,
    }
    content["skies"] = {"train": 1, "validation": 2, "test": 3, "derivatives": 2}
    content["nuisances"] = {"skies": 2}
    content["surveys"]["high"]["skies"] = 2
    content["points"] = {"at": {"some": {"cosmologies": [{"As": 2.3e-9}, {"omch2": 0.122}]}}}
    return content


def white(seed, n, width):
    """n samples of ``width`` numbers whose mean is 0 and whose covariance is 1, exactly."""
    draws = np.random.default_rng(seed).standard_normal((n, width))
    draws -= draws.mean(0)
    return draws @ np.linalg.inv(np.linalg.cholesky(np.cov(draws, rowvar=False))).T


class Written:
    """The products of a calibration, and the numbers that they were made of; all in κ's units.

    ``signal`` S_b of the fiducial; patches' truth S + t, κ̂κ̂* = R²(S + t + N + n), with t of
    covariance ``cosmic`` and n of ``own``.
    """

    def __init__(self, config, digest=HASH):
        self.config, self.digest = config, digest
        self.signal = signal_bandpowers(Run(config), Run(config).spectra().kk)
        self.noise = self.signal * np.array([0.5, 1.1, 2.0, 3.1])
        n = config.skies.test * PER_SKY
        both = white(1, n, 2 * N_BINS)
        mix = np.linalg.cholesky(np.eye(N_BINS) + 0.3)
        self.t = 0.3 * self.signal * (both[:, :N_BINS] @ mix.T)
        self.n = 0.2 * self.noise * (both[:, N_BINS:] @ mix.T)
        self.truth = self.signal + self.t
        self.auto = RESPONSE**2 * (self.truth + self.noise + self.n)
        self.cosmic, self.own = (np.cov(x, rowvar=False) for x in (self.t, self.n))
        self.put("test", self.auto, self.auto, self.truth)

        # R from the validation set: κκ̂* = Rκκ* + s with no s on average.
        n = config.skies.validation * PER_SKY
        both = white(2, n, 2 * N_BINS)
        truth = self.signal * (1 + 0.3 * both[:, :N_BINS])
        self.s = 0.05 * self.signal * both[:, N_BINS:]
        self.put("validation", truth, RESPONSE * truth + self.s, truth)

        for k, (name, survey) in enumerate(config.surveys.items()):
            n = survey.skies * PER_SKY
            scatter = 0.1 * self.signal * np.random.default_rng([3, k]).standard_normal((n, N_BINS))
            data = self.signal * (1 + 0.1 * (k + 1)) + scatter
            setattr(self, name, data)
            auto = RESPONSE**2 * (data + self.noise)
            self.put(f"survey-{name}", auto, auto, data)
        self.derivatives()
        self.nuisances()

    def put(self, set_name, auto, cross, truth):
        """Bandpowers of a set, sky by sky."""
        for i in range(self.config.set_size(set_name)):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            products.write_product(
                Bandpowers(Run(self.config)).path(set_name, i),
                "bandpowers",
                Bandpowers(Run(self.config, self.digest)).recipe(set_name, i),
                {"auto": auto[rows], "cross": cross[rows], "truth": truth[rows]},
            )

    def changes(self, **change):
        """δ_j of the bands, C^κκ before C^EE: Σ(2l+1)C_l over the band against the fiducial's."""
        moved = Run(self.config).spectra(self.config.cosmology.vary(**change))
        fiducial = Run(self.config).spectra()
        settings, found = self.config.derivatives, []
        for name in ("kk", "ee"):
            for low, high in itertools.pairwise(getattr(settings, f"{name}_edges")):
                new, old = (
                    sum((2 * l + 1) * getattr(s, name)[l] for l in range(low, high))
                    for s in (moved, fiducial)
                )
                found.append(new / old - 1)
        return np.array(found)

    def derivatives(self):
        """N' of every band and patch, and Q: the noise bias at ω_c ± step is N' δ + Q u². The mean
        of N' in the bands of C^EE is zero."""
        config, generator = self.config, np.random.default_rng(4)
        n = config.skies.derivatives * PER_SKY
        n_bands = (len(config.derivatives.kk_edges) - 1, len(config.derivatives.ee_edges) - 1)
        mean = 0.3 * self.signal[:, None] * generator.standard_normal((N_BINS, sum(n_bands)))
        scatter = 0.1 * self.signal[:, None]
        self.slopes = mean + scatter * generator.standard_normal((n, N_BINS, sum(n_bands)))
        self.q = self.signal * (0.1 + 0.05 * generator.standard_normal((n, N_BINS)))
        step = config.derivatives.omch2_step
        ends = np.array([self.changes(omch2=0.1185 + sign * step) for sign in (-1, 1)])
        half = (ends[1] - ends[0])[: n_bands[0]] / 2
        self.along = half / np.sum(half**2)
        u = ends[:, : n_bands[0]] @ self.along
        self.slopes[..., n_bands[0] :] -= self.slopes[..., n_bands[0] :].mean(0)
        self.moved = np.einsum("pbj,sj->spb", self.slopes, ends) + self.q * u[:, None, None] ** 2
        self.model = self.slopes[..., : n_bands[0]] @ ends[1, : n_bands[0]] + self.q * u[1] ** 2

        kk = np.moveaxis(self.slopes[..., : n_bands[0]], -1, 0)
        ee = np.moveaxis(self.slopes[..., n_bands[0] :], -1, 0)
        kk_truth = self.signal * generator.random(kk.shape)
        truth = self.signal * (1 + 0.2 * generator.standard_normal((n, N_BINS)))
        self.centre = self.noise * (1 + 0.1 * generator.standard_normal((n, N_BINS)))
        truths = self.signal * generator.random((2, n, N_BINS))
        for i in range(config.skies.derivatives):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            products.write_product(
                Derivatives(Run(config)).path(i),
                "derivatives",
                Derivatives(Run(config, self.digest)).recipe(i),
                {
                    "kk": RESPONSE**2 * (kk + kk_truth)[:, rows],
                    "ee": RESPONSE**2 * ee[:, rows],
                    "kk_truth": kk_truth[:, rows],
                    "auto": RESPONSE**2 * (self.centre + truth)[rows],
                    "truth": truth[rows],
                },
            )
            shifted = RESPONSE**2 * (self.centre + self.moved + truths)
            products.write_product(
                ShiftedSkies(Run(config)).path(i),
                "curvature",
                ShiftedSkies(Run(config, self.digest)).recipe(i),
                {"auto": shifted[:, rows], "truth": truths[:, rows]},
            )

    def nuisances(self):
        """A and B of the first test skies' patches: d(±x) − d(0) = ±A x + B x²."""
        config, generator = self.config, np.random.default_rng(5)
        n = config.nuisances.skies * PER_SKY
        shape = (n, N_BINS, len(SIMULATED))
        mean = np.array([2.0, -0.7, 0.3, 0.05])
        unit = self.signal[:, None]
        self.first = unit * (mean + 0.1 * generator.standard_normal(shape))
        self.second = unit * (mean[::-1] + 0.1 * generator.standard_normal(shape))
        for i in range(config.nuisances.skies):
            rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
            arrays = {}
            for k, name in enumerate(SIMULATED):
                x = getattr(config.nuisances, name)
                shifts = np.array(
                    [
                        s * self.first[rows, :, k] * x + self.second[rows, :, k] * x**2
                        for s in (-1, 1)
                    ]
                )
                arrays[name] = self.auto[rows] + RESPONSE**2 * shifts
            recipe = Nuisances(Run(config, self.digest)).recipe(i)
            products.write_product(Nuisances(Run(config)).path(i), "nuisances", recipe, arrays)


def error_of_mean(samples):
    return np.sqrt(np.sum((samples - samples.mean(0)) ** 2, 0) / (len(samples) - 1) / len(samples))


def covariance_of_mean(samples):
    off = samples - samples.mean(0)
    return off.T @ off / (len(samples) - 1) / len(samples)


class NoisyOracle:
    """κ̂ = .8 κ + .02 Q̃: a response, and noise that is nothing but the maps' own power."""

    def __init__(self, kappa):
        self.kappa = kappa

    def reconstruct(self, q, u):
        return 0.8 * self.kappa + 0.02 * q


def simulated_run(folder) -> Run:
    """A run of 10° patches with every product of a calibration; those in ``folder`` are kept."""
    content = small(folder)
    content["centres"] = {"nside": 2, "poles": 4}  # 40 patches of a sky
    content["derivatives"]["ee_edges"] = [2, 150, 300, 450, 600, 1001]
    content["skies"] = {"train": 1, "validation": 1, "test": 1, "derivatives": 1}
    content["nuisances"], content["points"] = {"skies": 1}, {}
    content["surveys"]["high"]["skies"] = 1
    content["data_debias"] = True
    content["instrument"]["noise_uk_arcmin"] = 30.0
    config = Config.model_validate(content)

    def of(set_name):
        Skies(Run(config)).measure(set_name)
        return Run(config, HASH, NoisyOracle(observe_sky(Run(config), set_name, 0).kappa))

    for name in ("validation", "test", *(f"survey-{s}" for s in config.surveys)):
        Bandpowers(of(name)).measure(name)
    Derivatives(of("derivatives")).measure([0])
    ShiftedSkies(of("derivatives")).measure([0])
    Nuisances(of("test")).measure([0])
    Power(Run(config)).measure()
    return Run(config, HASH)
