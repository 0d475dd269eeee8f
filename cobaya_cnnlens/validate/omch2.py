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
from ..likelihood.fields import Group, Release
from ..likelihood.release import with_fixed_debias, without
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
        """Of the estimates."""
        return float(self.estimates.mean())

    @property
    def scatter(self) -> float:
        """Standard deviation of the estimates."""
        return float(self.estimates.std(ddof=1))

    @property
    def error(self) -> float:
        """Standard error of the mean, the shared error included."""
        return float(np.hypot(standard_error(self.estimates), self.shared_error))


def fisher(slopes: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fisher errors of parameters, all of them free, and their shifts by a shift of the bandpowers.

    With the slopes S and the covariance C of the bandpowers, F = S C⁻¹ Sᵀ, σ_i² = (F⁻¹)_ii, and a
    shift Δd moves parameter i by (F⁻¹ S C⁻¹ Δd)_i.

    Parameters
    ----------
    slopes : derivatives of the model's bandpowers, (n_parameters, n_bins)
    covariance : of the bandpowers, (n_bins, n_bins)

    Returns
    -------
    sigma : errors of the parameters, (n_parameters,)
    gain : shifts in units of these errors, per shift of the bandpowers, (n_parameters, n_bins)
    """
    weighted = slopes @ inverse_covariance(covariance)
    inverse = np.linalg.inv(weighted @ slopes.T)
    sigma = np.sqrt(np.diag(inverse))
    return sigma, inverse @ weighted / sigma[:, None]


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
    """χ² of ω_c alone for many data vectors.

    Parameters
    ----------
    run : for the theory settings; its spectra are kept as products
    likelihood : of the release whose calibration is used

    Attributes
    ----------
    model : the model's bandpowers µ_b by ω_c, tabulated with CAMB and splined
    """

    def __init__(self, run: Run, likelihood: BandpowerLikelihood):
        table = []
        for omch2 in OMCH2_NODES:
            theory = run.spectra(run.config.cosmology.vary(omch2=float(round(omch2, 6))))
            table.append(likelihood.model(theory.kk, theory.ee))
        self.model = CubicSpline(OMCH2_NODES, np.array(table))
        self._grid = np.linspace(OMCH2_NODES[0], OMCH2_NODES[-1], 4001)
        self._mu = self.model(self._grid)

    def slope(self, omch2: float) -> np.ndarray:
        """The derivative ∂µ_b/∂ω_c.

        Parameters
        ----------
        omch2 : ω_c

        Returns
        -------
        slope : (n_bins,)
        """
        return self.model(omch2, 1)

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
            below, lowest, above = chi2[k - 1 : k + 2]  # the minimum of the parabola through them
            offset = 0.5 * (below - above) / (below - 2 * lowest + above)
            best[i] = self._grid[k] + offset * (self._grid[1] - self._grid[0])
        return best, at_edge


def recovered_omch2(
    run: Run, release: Release, survey: str, patches_each: int = 1, noise_debias: str = "data"
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
        if there are too few patches for two groups
    """
    calibration, _ = calibration_of(run)
    likelihood = BandpowerLikelihood(release, noise_debias)
    data = calibration.debias(Bandpowers(run).read(f"survey-{survey}").auto)
    if len(data) < 2 * patches_each:
        raise CNNLensError(
            f"survey '{survey}' has {len(data)} patches: too few for two groups of "
            f"{patches_each}; simulate more of its skies or make the groups smaller"
        )

    def group_means(values: np.ndarray) -> np.ndarray:
        whole = values[: len(values) // patches_each * patches_each]
        return whole.reshape(-1, patches_each, whole.shape[1]).mean(1)

    groups = group_means(data)
    if noise_debias == "data":
        skies = range(run.config.set_size(f"survey-{survey}"))
        powers = group_means(Power(run).read(f"survey-{survey}", skies)["power"])
        unrotated = without(release, Group.ROTATION)
        for d, own in zip(groups, powers, strict=True):
            d -= replace(unrotated, power=own, n_patches=patches_each).correction
        groups += at_the_tangent(likelihood, release)
    model, used = Omch2Likelihood(run, likelihood), likelihood.release
    shared = used.noise_covariance + used.derivative_covariance
    covariance = used.patch_covariance / patches_each + shared
    estimates, at_edge = model.maximum(groups, covariance)
    truth = run.config.surveys[survey].omch2
    (sigma,), (gain,) = fisher(model.slope(truth)[None], covariance)
    shared_error = float(sigma * np.sqrt(gain @ shared @ gain))
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
    """By survey: ``estimates`` by debias, and ``nulls``, χ² and significance of single
    patches against the fiducial cosmology (:func:`null_significance`), for ``n_bins`` bins."""

    estimates: dict[str, dict[str, Recovered]]
    nulls: dict[str, tuple[np.ndarray, np.ndarray]]
    n_bins: dict[str, int]

    def table(self) -> str:
        """As text: a line for each survey and debias, and one of the null for each survey."""
        rows = [
            (name, debias, recovered)
            for name, by_debias in self.estimates.items()
            for debias, recovered in by_debias.items()
        ]
        names, debiases, results = zip(*rows, strict=True)
        means, errors = [r.mean for r in results], [r.error for r in results]
        estimates = text_table(
            {
                "survey": ("", names),
                "debias": ("", debiases),
                "patches": (">", [f"{len(r.estimates)} x {r.patches_each}" for r in results]),
                "truth": (".4f", [r.truth for r in results]),
                "mean": (">", plus_minus(means, errors, ".5f")),
                "in errors": ("+.2f", [(r.mean - r.truth) / r.error for r in results]),
                "scatter": (".5f", [r.scatter for r in results]),
                "at edge": ("d", [r.at_edge for r in results]),
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
        return f"{estimates}\n\n{nulls}"


def recovery(run: Run, releases: dict[str, Release], patches_each: int) -> Recovery:
    """Find ω_c of every survey with each debias, and how far its patches reject the fiducial
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
                debias: recovered_omch2(run, release, name, patches_each, debias)
                for debias in release.noise_debiases
            }
            for name, release in releases.items()
        },
        {name: null_significance(run, release, name) for name, release in releases.items()},
        {name: release.n_bins for name, release in releases.items()},
    )
