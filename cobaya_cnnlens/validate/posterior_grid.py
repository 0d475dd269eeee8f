"""Posteriors of one or two parameters on a grid, of many surveys at a time, under the likelihood
itself and a flat prior.

CAMB runs at a few nodes of the prior; between them the model's bandpowers are splined, which is
linear in them: the same weights serve every survey.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.interpolate import CubicSpline

from ..likelihood.bandpowers import BandpowerLikelihood
from ..theory.camb import Spectra

# Nodes of CAMB and points of the grid along each axis, by the number of parameters; points of a
# grid at a time, times surveys.
NODES = {1: (9,), 2: (9, 6)}
POINTS = {1: (401,), 2: (161, 81)}
CHUNK = 200_000
# Central intervals whose coverage is counted.
INTERVALS = (0.68, 0.95)
N_TENTHS = 10


@dataclass(frozen=True)
class Marginal:
    """Posteriors of one parameter: ``grid`` (n,), even; ``probability`` (n_surveys, n), sum 1."""

    grid: np.ndarray
    probability: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(n_surveys,)."""
        return self.probability @ self.grid

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviation, (n_surveys,)."""
        off = self.grid - self.mean[:, None]
        return np.sqrt((self.probability * off**2).sum(1))

    def ranks(self, truth: np.ndarray) -> np.ndarray:
        """Posterior probability below the truths.

        Parameters
        ----------
        truth : true values, (n_surveys,)

        Returns
        -------
        ranks : 0 to 1, (n_surveys,)
        """
        p = self.probability
        below = np.pad(np.cumsum(0.5 * (p[:, 1:] + p[:, :-1]), axis=1), ((0, 0), (1, 0)))
        below /= below[:, -1:]
        place = (truth - self.grid[0]) / (self.grid[1] - self.grid[0])
        left = np.clip(place.astype(int), 0, len(self.grid) - 2)
        rows = np.arange(len(truth))
        low, high = below[rows, left], below[rows, left + 1]
        return low + (high - low) * (place - left)


class PosteriorGrid:
    """The prior as a grid.

    Parameters
    ----------
    nodes : of each parameter, ascending, from end to end of its prior
    spectra : at every combination of nodes, the last parameter fastest
    points : of the grid along each axis

    Attributes
    ----------
    axes : values of each parameter on the grid
    """

    def __init__(
        self, nodes: Sequence[np.ndarray], spectra: Sequence[Spectra], points: Sequence[int]
    ):
        self._splines = [CubicSpline(x, np.eye(len(x))) for x in nodes]
        self._spectra = spectra
        self.axes = [np.linspace(x[0], x[-1], n) for x, n in zip(nodes, points, strict=True)]
        mesh = np.meshgrid(*self.axes, indexing="ij")
        self._weights = self.at(np.stack([m.ravel() for m in mesh], axis=1))

    @classmethod
    def of_prior(
        cls,
        prior: dict[str, tuple[float, float]],
        spectra_at: Callable[[dict[str, float]], Spectra],
    ) -> PosteriorGrid:
        """The grid of a flat prior.

        Parameters
        ----------
        prior : its two ends by parameter
        spectra_at : computes the spectra at values by name

        Returns
        -------
        grid : with the spectra at its nodes
        """
        n = len(prior)
        nodes = [np.linspace(*ends, k) for ends, k in zip(prior.values(), NODES[n], strict=True)]
        spectra = [
            spectra_at(dict(zip(prior, map(float, at), strict=True)))
            for at in itertools.product(*nodes)
        ]
        return cls(nodes, spectra, POINTS[n])

    def at(self, parameters: np.ndarray) -> np.ndarray:
        """Weights of the nodes in the model at some parameters.

        Parameters
        ----------
        parameters : (n, n_parameters)

        Returns
        -------
        weights : (n, n_nodes)
        """
        each = [spline(column) for spline, column in zip(self._splines, parameters.T, strict=True)]
        return reduce(lambda a, b: (a[:, :, None] * b[:, None]).reshape(len(a), -1), each)

    def table(self, likelihood: BandpowerLikelihood) -> np.ndarray:
        """The model's bandpowers µ_b at the nodes.

        Parameters
        ----------
        likelihood : the likelihood whose model is used

        Returns
        -------
        table : (n_nodes, n_bins)
        """
        return np.array([likelihood.model(s.kk, s.ee) for s in self._spectra])

    def posterior(
        self, likelihood: BandpowerLikelihood, table: np.ndarray, data: np.ndarray
    ) -> list[Marginal]:
        """Marginal posteriors of every parameter for many surveys.

        Parameters
        ----------
        likelihood : the likelihood whose model is used
        table : of :meth:`table`
        data : bandpowers, (n_surveys, n_bins)

        Returns
        -------
        marginals : of each parameter
        """
        models = self._weights @ table
        shape = [len(axis) for axis in self.axes]
        parts: list[list[np.ndarray]] = [[] for _ in shape]
        for some in np.array_split(data, max(1, len(data) * len(models) // CHUNK)):
            chi2 = likelihood.chi2_of(models, some[:, None])
            p = np.exp(-0.5 * (chi2 - chi2.min(1, keepdims=True))).reshape(-1, *shape)
            for i, part in enumerate(parts):
                one = p.sum(tuple(k + 1 for k in range(len(shape)) if k != i))
                part.append(one / one.sum(1, keepdims=True))
        return [
            Marginal(axis, np.concatenate(part))
            for axis, part in zip(self.axes, parts, strict=True)
        ]


@dataclass(frozen=True)
class SimulatedRanks:
    """Ranks of sets of surveys simulated under the model, a set being as the one that is tested.

    ``tenths`` : ranks in every tenth, (n_sets, 10); ``covered`` : part of the intervals of
    :data:`INTERVALS` that hold the truth, (n_sets, 2)
    """

    tenths: np.ndarray
    covered: np.ndarray


def inside(rank: np.ndarray, probability: float) -> np.ndarray:
    """Whether central intervals of a probability hold the truth.

    Parameters
    ----------
    rank : posterior probability below the truth, any shape
    probability : of the intervals

    Returns
    -------
    inside : shape of ``rank``
    """
    return np.abs(rank - 0.5) < 0.5 * probability


def tenths(rank: np.ndarray) -> np.ndarray:
    """How many ranks lie in each tenth.

    Parameters
    ----------
    rank : posterior probabilities below the truth, (n,)

    Returns
    -------
    counts : (10,)
    """
    return np.histogram(rank, N_TENTHS, range=(0.0, 1.0))[0]


def simulate_ranks(
    grid: PosteriorGrid,
    likelihood: BandpowerLikelihood,
    truth: np.ndarray,
    generator: np.random.Generator,
    n_sets: int,
) -> list[SimulatedRanks]:
    """Sets of surveys as the likelihood has them, of each parameter: d = µ(θ) + s(θ)(c + e), with
    c of the calibration's covariance once a set, e of the survey's own for each, and s the scatter
    at θ over the fiducial's.

    Parameters
    ----------
    grid : of the prior
    truth : parameters of each survey of a set, (n_surveys, n_parameters)
    n_sets : how many sets of surveys to simulate

    Returns
    -------
    ranks : of each parameter
    """
    own = likelihood.own_covariance
    shared = likelihood.covariance - own
    table = grid.table(likelihood)
    mu = grid.at(truth) @ table
    scale = likelihood.scatter(mu)
    zero = np.zeros(len(own))
    ranks = []
    for _ in range(n_sets):
        calibration = generator.multivariate_normal(zero, shared)
        scatter = generator.multivariate_normal(zero, own, size=len(truth))
        posteriors = grid.posterior(likelihood, table, mu + scale * (calibration + scatter))
        ranks.append([p.ranks(t) for p, t in zip(posteriors, truth.T, strict=True)])
    return [
        SimulatedRanks(
            np.array([tenths(r) for r in of_one]),
            np.array([[inside(r, p).mean() for p in INTERVALS] for r in of_one]),
        )
        for of_one in zip(*ranks, strict=True)
    ]
