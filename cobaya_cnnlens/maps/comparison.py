"""The experiment's own simulations of a survey beside the internal ones, bin by bin.

Both are of the same tiles and weights. A filter or beam that the configuration does not have shows
in the power of E, noise of another level in the power of B, and R and N show what they do to κ̂.
The changes with cosmology and with errors of the instrument are the internal ones, scaled to the
experiment's simulations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

from ..calibrate.debias import SimulatedChanges
from ..calibrate.response import standard_error
from ..calibrate.second_order import FitPoints
from ..errors import ConfigError
from ..likelihood.release import Release
from ..pipeline.power import power_of
from ..table import plus_minus, text_table

if TYPE_CHECKING:
    from .assembly import Calibrated
    from .own_simulations import OwnSimulations


@dataclass(frozen=True)
class Scaling:
    """What turns the changes of the internal simulations into those of the experiment's own.

    The noise bias and the power of E and B are taken to change by the same part of themselves in
    both (docs/survey, own simulations).

    Attributes
    ----------
    noise : s, the experiment's N over the internal one, (n_bins,)
    power : the same of the power of E and B, (n_power,)
    """

    noise: np.ndarray
    power: np.ndarray

    @classmethod
    def of(cls, own: Calibrated, internal: Calibrated) -> Scaling:
        """By the means of both sets of simulations.

        Parameters
        ----------
        own, internal : of :meth:`.Calibrated.by`

        Returns
        -------
        scaling : of the changes

        Raises
        ------
        ConfigError
            if a noise bias is not positive, so that nothing can be scaled by it
        """
        noise, power = [], []
        for simulated in (own, internal):
            test, of_e_and_b = simulated.test()
            noise.append((test.auto - test.truth).mean(0))
            power.append(of_e_and_b.mean(0))
        if (bad := np.flatnonzero(np.min(noise, axis=0) <= 0)).size:
            raise ConfigError(
                f"the noise bias of bins {bad.tolist()} is not positive in the experiment's "
                "simulations or in the internal ones; give more of both, or take fewer bins"
            )
        return cls(noise[0] / noise[1], power[0] / power[1])

    def changes(self, internal: Calibrated) -> tuple[SimulatedChanges, SimulatedChanges]:
        """How d − signal and p̂ of the experiment's weighted tiles change.

        Parameters
        ----------
        internal : of :meth:`.Calibrated.by`

        Returns
        -------
        changes : of d − signal, and of p̂
        """
        changes, power_changes = internal.changes()
        return changes.scaled(self.noise), power_changes.scaled(self.power)

    def points(self, internal: Calibrated) -> FitPoints | None:
        """The same at the cosmologies of the response surface; None if there are none.

        Parameters
        ----------
        internal : of :meth:`.Calibrated.by`

        Returns
        -------
        points : changes of d − signal, and of p̂
        """
        points = internal.fit_points()
        if points is None:
            return None
        return replace(points, noise=points.noise * self.noise, power=points.power * self.power)

    def with_error(self, release: Release, changes: SimulatedChanges, bands: np.ndarray) -> Release:
        """The release with the error of the scaling: all that it changes, at ω_c + step.

        The changes by C^κκ and by C^EE have opposite signs. Their errors count as independent.

        Parameters
        ----------
        release : with the scaled changes
        changes : of d − signal, scaled
        bands : δ_j at ω_c + step, C^κκ before C^EE

        Returns
        -------
        release : with Δ_b Δ_b' of both added to the Monte-Carlo covariance of the derivatives
        """
        kk = bands[: release.kk_derivatives.shape[1]]
        of_kk = release.kk_derivatives @ kk + release.curvature * (kk @ release.kk_direction) ** 2
        first = changes.derivatives
        whole = changes.shifted[1].mean(0) - first.centre.mean(0)
        covariance = release.derivative_covariance
        for change in (of_kk, whole - first.kk.values @ kk):
            off = (1.0 - 1.0 / self.noise) * change
            covariance = covariance + np.outer(off, off)
        return replace(release, derivative_covariance=covariance)


@dataclass(frozen=True)
class Compared:
    """One quantity of both kinds of simulations: values and standard errors, (2, n) each, the
    experiment's first."""

    values: np.ndarray
    errors: np.ndarray

    @property
    def ratio(self) -> tuple[np.ndarray, np.ndarray]:
        """The experiment's over the internal one, and its standard error, (n,) each."""
        ratio = self.values[0] / self.values[1]
        return ratio, np.abs(ratio) * np.hypot(*(self.errors / self.values))

    @property
    def chi2(self) -> tuple[float, float]:
        """χ² of the difference over all bins, taken as independent, and its PTE."""
        chi2 = float(((self.values[0] - self.values[1]) ** 2 / (self.errors**2).sum(0)).sum())
        return chi2, float(scipy.stats.chi2.sf(chi2, self.values.shape[1]))


@dataclass(frozen=True)
class Comparison:
    """What differs between an experiment's own simulations and the internal ones.

    Attributes
    ----------
    edges : of the bins of κ̂, (n_bins + 1,)
    response : Σ_t w R of the weighted tiles
    noise : N of the weighted tiles
    e_power : of E in the bins of κ̂, with beam and noise
    b_power : of B where it is noise, of one bin
    mean_field : power of the mean κ̂ of the experiment's simulations, over R² N, (n_bins,)
    n_simulations : of the experiment
    """

    edges: np.ndarray
    response: Compared
    noise: Compared
    e_power: Compared
    b_power: Compared
    mean_field: np.ndarray
    n_simulations: int

    def table(self) -> str:
        """The comparison as text, a line for each bin."""
        named = {"R": self.response, "N": self.noise, "E power": self.e_power}
        columns: dict[str, tuple[str, list[str]]] = {
            "L": (">", [f"{a:.0f}-{b:.0f}" for a, b in itertools.pairwise(self.edges)]),
            **{
                f"{name} ratio": (">", plus_minus(*compared.ratio, ".3f"))
                for name, compared in named.items()
            },
            "mean field/N": (">", [f"{value:+.4f}" for value in self.mean_field]),
        }
        [[ratio], [error]] = self.b_power.ratio
        lines = [
            f"the experiment's {self.n_simulations} simulations over the internal ones",
            *(
                f"chi2 of {name}: {chi2:.1f} of {len(self.mean_field)} bins, PTE {pte:.2g}"
                for name, (chi2, pte) in ((name, x.chi2) for name, x in named.items())
            ),
            f"B power, where it is noise: {ratio:.3f} ± {error:.3f}",
        ]
        return text_table(columns, "\n".join(lines))


def noise_error(auto: np.ndarray, truth: np.ndarray, response_error: np.ndarray) -> np.ndarray:
    """Standard error of N = ⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩, whose R is of other patches.

    Parameters
    ----------
    auto, truth : ⟨κ̂κ̂*⟩/R² and ⟨κκ*⟩ of patches, (n_patches, n_bins) each
    response_error : standard error of R, relative, (n_bins,)

    Returns
    -------
    error : (n_bins,)
    """
    return np.hypot(standard_error(auto - truth), 2.0 * auto.mean(0) * response_error)


def compare(calibrated: Calibrated, simulations: OwnSimulations) -> Comparison:
    """Compare the experiment's own simulations with the internal ones.

    Parameters
    ----------
    calibrated : by the internal simulations
    simulations : the experiment's

    Returns
    -------
    comparison : of the sums over the same tiles with the same weights
    """
    own, internal = calibrated.by(simulations)
    edges, measured = simulations.run.bandpowers.bins.edges, power_of(simulations.run)
    # A bin of κ̂ holds a whole number of bins of E.
    within = np.digitize(0.5 * (measured.e_edges[1:] + measured.e_edges[:-1]), edges) - 1
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in "rneb"}
    for simulated in (own, internal):
        test, power = simulated.test()
        noise = test.auto - test.truth
        bins = [power[:, :-1][:, within == b].mean(1) for b in range(len(edges) - 1)]
        mean_response, error = simulated.weights.mean_response, simulated.response_error()
        rows["r"].append((mean_response, error))
        rows["n"].append((noise.mean(0), noise_error(test.auto, test.truth, error / mean_response)))
        for name, values in (("e", np.stack(bins, axis=1)), ("b", power[:, -1:])):
            rows[name].append((values.mean(0), standard_error(values)))
    response, noise_bias, e, b = (
        Compared(*(np.stack(parts) for parts in zip(*pairs, strict=True)))
        for pairs in rows.values()
    )
    weights = own.weights
    field = weights.normalised(own.arrays["mean_field"], np.arange(len(weights.label)))
    fraction = (weights.weight * field).sum(0) / noise_bias.values[0]
    n = len(simulations.files.indices)
    return Comparison(edges, response, noise_bias, e, b, fraction, n)
