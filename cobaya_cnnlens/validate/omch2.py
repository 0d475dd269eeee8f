"""ω_c by maximum likelihood, of many surveys at a time, and how far single patches reject the
fiducial cosmology.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import CubicSpline

from ..calibrate.response import standard_error
from ..errors import CNNLensError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.fields import Release
from ..likelihood.release import with_fixed_debias
from ..likelihood.statistics import chi2_pte, inverse_covariance, pte_to_sigma
from ..pipeline.assemble import calibration_of
from ..pipeline.power import Power
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..table import plus_minus, text_table

# Range and spacing of ω_c over which the model is tabulated for maximum-likelihood tests.
OMCH2_NODES = np.arange(0.080, 0.1651, 0.005)


@dataclass(frozen=True)
class Recovered:
    """Maximum-likelihood ω_c of disjoint surveys cut from simulated skies.

    ``truth``; ``estimates`` (n_surveys,); ``shared_error``: 1σ of what all of them share, the
    Monte-Carlo errors of N and of the derivatives; ``at_edge``: how many ended at the end of the
    table
    """

    truth: float
    patches_each: int
    estimates: np.ndarray
    shared_error: float
    at_edge: int

    @property
    def mean(self) -> float:
        return float(self.estimates.mean())

    @property
    def scatter(self) -> float:
        return float(self.estimates.std(ddof=1))

    @property
    def error(self) -> float:
        """Standard error of the mean, the shared error included."""
        return float(np.hypot(standard_error(self.estimates), self.shared_error))


def shift_gain(slope: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Shift of ω_c, in its Fisher σ, by a shift of the bandpowers: F^−½ C⁻¹ s, (n_bins,).

    Parameters
    ----------
    slope : s = ∂µ_b/∂ω_c, (n_bins,)
    covariance : C, (n_bins, n_bins)

    Returns
    -------
    gain : (n_bins,)
    """
    weighted = inverse_covariance(covariance) @ slope
    return weighted / np.sqrt(slope @ weighted)


def at_the_tangent(likelihood: BandpowerLikelihood, release: Release) -> np.ndarray:
    """Q û² of a likelihood with the debias from the data, (n_bins,): the second order at the
    amplitude about which its model is linear, which it has added to the release's bandpowers.

    Parameters
    ----------
    likelihood : the likelihood whose model is used
    release : the release as it was read

    Returns
    -------
    bandpowers : Q û², (n_bins,)
    """
    return likelihood.release.bandpowers - (release.bandpowers - release.correction)


class Omch2Likelihood:
    """χ² of ω_c alone for many data vectors: the model tabulated with CAMB and splined.

    Parameters
    ----------
    run : for the theory settings; its spectra are kept as products
    likelihood : of the release whose calibration is used
    """

    def __init__(self, run: Run, likelihood: BandpowerLikelihood):
        table = []
        for omch2 in OMCH2_NODES:
            theory = run.spectra(run.config.cosmology.vary(omch2=float(round(omch2, 6))))
            table.append(likelihood.model(theory.kk, theory.ee))
        self._model = CubicSpline(OMCH2_NODES, np.array(table))
        self._grid = np.linspace(OMCH2_NODES[0], OMCH2_NODES[-1], 4001)
        self._mu = self._model(self._grid)

    def model(self, omch2: np.ndarray | float) -> np.ndarray:
        """The model's bandpowers µ_b at ω_c.

        Parameters
        ----------
        omch2 : ω_c, any shape

        Returns
        -------
        model : (..., n_bins)
        """
        return self._model(omch2)

    def slope(self, omch2: float) -> np.ndarray:
        """The derivative ∂µ_b/∂ω_c.

        Parameters
        ----------
        omch2 : ω_c

        Returns
        -------
        slope : (n_bins,)
        """
        return self._model(omch2, 1)

    def sigma(self, omch2: float, covariance: np.ndarray) -> float:
        """Fisher error of ω_c for data of this covariance.

        Parameters
        ----------
        omch2 : ω_c at which the model is linearised
        covariance : of the bandpowers, (n_bins, n_bins)

        Returns
        -------
        sigma : of ω_c
        """
        slope = self.slope(omch2)
        return float(1.0 / np.sqrt(slope @ inverse_covariance(covariance) @ slope))

    def shift_error(self, omch2: float, covariance: np.ndarray, shared: np.ndarray) -> float:
        """Standard error of ω_c that a common error of all data causes.

        Parameters
        ----------
        omch2 : ω_c at which the model is linearised
        covariance : of the bandpowers, (n_bins, n_bins)
        shared : covariance of the common error, (n_bins, n_bins)

        Returns
        -------
        error : of ω_c
        """
        inverse = inverse_covariance(covariance)
        slope = self.slope(omch2)
        gain = inverse @ slope / (slope @ inverse @ slope)
        return float(np.sqrt(gain @ shared @ gain))

    def maximum(self, data: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, int]:
        """Find the ω_c of highest likelihood for each data vector.

        Parameters
        ----------
        data : bandpowers, (n, n_bins)
        covariance : of the bandpowers, (n_bins, n_bins)

        Returns
        -------
        omch2 : best ω_c of each, (n,)
        at_edge : how many ended at the table's edge
        """
        inverse = inverse_covariance(covariance)
        best, at_edge = np.empty(len(data)), 0
        projected = self._mu @ inverse
        constant = np.einsum("gb,gb->g", projected, self._mu)
        for i, d in enumerate(data):
            chi2 = constant - 2.0 * projected @ d
            k = int(np.argmin(chi2))
            if k in (0, len(self._grid) - 1):
                at_edge += 1
                best[i] = self._grid[k]
                continue
            a, b, c = chi2[k - 1 : k + 2]
            best[i] = self._grid[k] + 0.5 * (a - c) / (a - 2 * b + c) * (
                self._grid[1] - self._grid[0]
            )
        return best, at_edge


def recovered_omch2(
    run: Run,
    release: Release,
    survey: str,
    patches_each: int = 1,
    noise_debias: str = "data",
) -> Recovered:
    """Find the ω_c of highest likelihood of every disjoint group of patches of a survey's skies.

    Parameters
    ----------
    run : a configuration, with its products and networks
    release : the release, with its calibration
    survey : name of a mock survey of the configuration
    patches_each : patches in a group
    noise_debias : ``data`` or ``fixed``

    Returns
    -------
    recovered : estimates, with the error that they share

    Raises
    ------
    CNNLensError
    If there are too few patches for two groups.
    """
    calibration, _ = calibration_of(run)
    likelihood = BandpowerLikelihood(release, noise_debias)
    data = calibration.debias(Bandpowers(run).read(f"survey-{survey}").auto)
    if len(data) < 2 * patches_each:
        raise CNNLensError(
            f"survey '{survey}' has {len(data)} patches: too few for two groups of "
            f"{patches_each}; simulate more of its skies or make the groups smaller"
        )

    def in_groups(of_patches: np.ndarray) -> np.ndarray:
        some = of_patches[: len(of_patches) // patches_each * patches_each]
        return some.reshape(-1, patches_each, some.shape[1]).mean(1)

    groups = in_groups(data)
    if likelihood.noise_debias == "data":
        skies = range(run.config.set_size(f"survey-{survey}"))
        for d, own in zip(
            groups,
            in_groups(Power(run).read(f"survey-{survey}", skies)["power"]),
            strict=True,
        ):
            d -= replace(release, power=own, n_patches=patches_each).correction
        groups += at_the_tangent(likelihood, release)
    table, used = Omch2Likelihood(run, likelihood), likelihood.release
    shared = used.noise_covariance + used.derivative_covariance
    covariance = used.patch_covariance / patches_each + shared
    estimates, at_edge = table.maximum(groups, covariance)
    truth = run.config.surveys[survey].omch2
    shared_error = table.shift_error(truth, covariance, shared)
    return Recovered(truth, patches_each, estimates, shared_error, at_edge)


def null_significance(run: Run, release: Release, survey: str) -> tuple[np.ndarray, np.ndarray]:
    """χ² and significance in σ of each patch against the fiducial cosmology (paper eq. 16).

    Parameters
    ----------
    run : a configuration, with its products and networks
    release : the release, with its calibration
    survey : name of a mock survey of the configuration

    Returns
    -------
    χ² and σ, each (n_patches,); the covariance is that of one patch with the fixed noise bias
    """
    calibration, test = calibration_of(run)
    data = calibration.debias(Bandpowers(run).read(f"survey-{survey}").auto)
    residual = data - calibration.debias(test.auto).mean(0)
    inverse = inverse_covariance(with_fixed_debias(release).patch_covariance)
    chi2 = np.einsum("nb,bc,nc->n", residual, inverse, residual)
    return chi2, pte_to_sigma(chi2_pte(chi2, release.n_bins))


@dataclass(frozen=True)
class Recovery:
    """By survey: ``estimates`` by way of debias, and ``nulls``, χ² and significance of single
    patches against the fiducial cosmology (:func:`null_significance`), for ``n_bins`` bins."""

    estimates: dict[str, dict[str, Recovered]]
    nulls: dict[str, tuple[np.ndarray, np.ndarray]]
    n_bins: dict[str, int]

    def table(self) -> str:
        """As text: a line for each survey and debias, and one of the null for each survey."""
        ways = [(name, way) for name, each in self.estimates.items() for way in each]
        each = [self.estimates[name][way] for name, way in ways]
        means, errors = [r.mean for r in each], [r.error for r in each]
        pulls = [(r.mean - r.truth) / r.error for r in each]
        recovered = text_table(
            {
                "survey": ("", [name for name, _ in ways]),
                "debias": ("", [way for _, way in ways]),
                "patches": (">", [f"{len(r.estimates)} x {r.patches_each}" for r in each]),
                "truth": (".4f", [r.truth for r in each]),
                "mean": (">", plus_minus(means, errors, ".5f")),
                "in errors": ("+.2f", pulls),
                "scatter": (".5f", [r.scatter for r in each]),
                "at edge": ("d", [r.at_edge for r in each]),
            }
        )
        chi2, sigma = zip(*self.nulls.values(), strict=True)

        def scatter(values: tuple[np.ndarray, ...], form: str) -> list[str]:
            return plus_minus([x.mean() for x in values], [x.std(ddof=1) for x in values], form)

        nulls = text_table(
            {
                "survey": ("", self.nulls),
                "chi2": (">", scatter(chi2, ".1f")),
                "bins": ("d", self.n_bins.values()),
                "rejected at sigma": (">", scatter(sigma, ".2f")),
            },
            "null hypothesis (fiducial cosmology), single patches; scatter over the patches",
        )
        return f"{recovered}\n\n{nulls}"


def recovery(run: Run, releases: dict[str, Release], patches_each: int) -> Recovery:
    """Find ω_c of every survey with each noise debias, and how far its patches reject the fiducial
    one.

    Parameters
    ----------
    run : a configuration, with its products and networks
    releases : by survey
    patches_each : patches in a group

    Returns
    -------
    recovery : estimates and null tests
    """
    return Recovery(
        {
            name: {
                way: recovered_omch2(run, release, name, patches_each, way)
                for way in release.noise_debiases
            }
            for name, release in releases.items()
        },
        {name: null_significance(run, release, name) for name, release in releases.items()},
        {name: release.n_bins for name, release in releases.items()},
    )
