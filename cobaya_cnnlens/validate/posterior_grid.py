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


@dataclass(frozen=True)
class GridMarginal:
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
    ) -> list[GridMarginal]:
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
        marginals: list[list[np.ndarray]] = [[] for _ in shape]
        for chunk in np.array_split(data, max(1, len(data) * len(models) // CHUNK)):
            chi2 = likelihood.chi2_of(models, chunk[:, None])
            p = np.exp(-0.5 * (chi2 - chi2.min(1, keepdims=True))).reshape(-1, *shape)
            for i, chunks in enumerate(marginals):
                one = p.sum(tuple(k + 1 for k in range(len(shape)) if k != i))
                chunks.append(one / one.sum(1, keepdims=True))
        return [
            GridMarginal(axis, np.concatenate(chunks))
            for axis, chunks in zip(self.axes, marginals, strict=True)
        ]
