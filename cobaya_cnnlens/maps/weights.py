"""Weights of a survey's tiles, and the statistics of their weighted sum over simulated patches.

Tiles of similar depth and holes are a class (:mod:`cobaya_cnnlens.simulate.depth`). Simulated
patches that serve nothing else give the response R of a class and its power T = ⟨κ̂κ̂*⟩/R². With the
modes m of a tile (:attr:`.tiles.Tile.weight`), the variance of its bandpower goes as T²/m, and

    d_b = Σ_t w_tb (⟨κ̂κ̂*⟩_tb/R_tb² − N_tb),   w_tb ∝ m_t/T_tb²,   Σ_t w_tb = 1.

An error of R or w costs precision but biases nothing: N, the covariance and the derivatives are of
the same sum, over patches that are seen as the tiles in turn. Data give neither R nor w.

If k_t of n patches are seen as tile t, the sum is the mean of u_i x_i, with u_i = n w_t(i)/k_t(i),
divided by its own mean where tiles are missing. The scatter of u x over patches would contain the
different means of the tiles. The scatter of the sum is that of u times the residual about the mean
of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..calibrate.response import PatchBandpowers
from ..errors import CNNLensError


@dataclass(frozen=True)
class TileWeights:
    """Weights of a survey's tiles.

    Attributes
    ----------
    label : class of each tile, (n_tiles,)
    response : R of every class, (n_classes, n_bins)
    weight : w, (n_tiles, n_bins)
    modes : m over its sum, (n_tiles,); with it the tiles' own power of E and B is put together
    """

    label: np.ndarray
    response: np.ndarray
    weight: np.ndarray
    modes: np.ndarray

    @classmethod
    def of(
        cls, simulated: PatchBandpowers, tiles: np.ndarray, label: np.ndarray, modes: np.ndarray
    ) -> TileWeights:
        """The weights that simulated patches give.

        Parameters
        ----------
        simulated : of patches of which every class has one at least
        tiles : as which tile each was seen, (n_patches,)
        label, modes : of the tiles, (n_tiles,)

        Returns
        -------
        weights : of the tiles

        Raises
        ------
        CNNLensError
            if no class has a positive response in some bin
        """
        classes = label[tiles]
        sums = [by_class(getattr(simulated, name), classes) for name in ("auto", "cross", "truth")]
        power, cross, truth = sums
        response = cross / truth
        # This is w/R², which stays finite where the response is zero.
        gain = modes[:, None] * np.maximum(response, 0.0)[label] ** 2 / power[label] ** 2
        total = (gain * response[label] ** 2).sum(0)
        if not (total > 0).all():
            raise CNNLensError(
                f"the response is not positive in bins {np.flatnonzero(total <= 0).tolist()} of "
                "any tile: nothing is recovered there; use fewer bins"
            )
        return cls(label, response, gain / total * response[label] ** 2, modes / modes.sum())

    @property
    def mean_response(self) -> np.ndarray:
        """Σ_t w R, (n_bins,)."""
        return (self.weight * self.response[self.label]).sum(0)

    def combine(self, auto: np.ndarray) -> np.ndarray:
        """Weigh ⟨κ̂κ̂*⟩ of all tiles, so that their mean is the survey's bandpowers.

        Parameters
        ----------
        auto : ⟨κ̂κ̂*⟩ of the tiles in their order, (n_tiles, n_bins)

        Returns
        -------
        weighted : n_tiles w ⟨κ̂κ̂*⟩/R², (n_tiles, n_bins)
        """
        return len(auto) * self.weight * self.normalised(auto, np.arange(len(auto)))

    def normalised(self, auto: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """Divide ⟨κ̂κ̂*⟩ of simulated patches by R² of their tiles' class.

        Parameters
        ----------
        auto : ⟨κ̂κ̂*⟩, (..., n_patches, n_bins)
        tiles : the tile as which each patch was seen, (n_patches,)

        Returns
        -------
        normalised : the same shape
        """
        response = self.response[self.label[tiles]]
        return np.divide(auto, response**2, out=np.zeros_like(auto), where=response > 0)


def by_class(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Average patches of each class.

    Parameters
    ----------
    values : of patches, (n_patches, n_bins)
    classes : of each, (n_patches,)

    Returns
    -------
    means : (n_classes, n_bins)
    """
    return np.array([values[classes == c].mean(0) for c in range(classes.max() + 1)])


def shares(tiles: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """u of patches, whose mean is one, (n_patches, n).

    Parameters
    ----------
    tiles : as which tile each was seen, (n_patches,)
    weight : of the tiles, (n_tiles, n)

    Returns
    -------
    shares : (n_patches, n)
    """
    each = weight[tiles] / np.bincount(tiles, minlength=len(weight))[tiles][:, None]
    return each / each.mean(0)


def weighted(
    values: np.ndarray, tiles: np.ndarray, weight: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """Patches of which the mean is the tiles' weighted mean, and the covariance what that has, as
    if a survey were of such patches; linear in ``values``.

    Classes with a single patch are taken about the mean of all.

    Parameters
    ----------
    values : of patches, (n_patches, n, ...)
    tiles : as which tile each was seen, (n_patches,)
    weight : (n_tiles, n), or (n_tiles, 1) for all alike
    label : class of each tile, (n_tiles,)

    Returns
    -------
    of the shape of ``values``
    """
    u = shares(tiles, weight)
    u = u.reshape(*u.shape, *[1] * (values.ndim - 2))
    mean = (u * values).mean(0)
    off = values - mean
    classes, n = label[tiles], len(tiles)
    for c in np.unique(classes):
        rows = classes == c
        count = int(rows.sum())
        if count > 1:
            # The factor makes the covariance as unbiased as one that divides by n − 1.
            scale = np.sqrt(count / (count - 1.0) * (n - 1.0) / n)
            off[rows] = scale * (values[rows] - values[rows].mean(0))
    off = u * off
    return mean + off - off.mean(0)


def effective_number(
    tiles: np.ndarray, weight: np.ndarray, label: np.ndarray, variance: np.ndarray
) -> int:
    """Of how many patches of one kind the covariance of weighted ones is worth: of the variance
    Σ_i a_i of independent normal residuals the relative variance is 2 Σ a_i²/(Σ a_i)². The mean of
    all bins, less what the classes' means have taken.

    Parameters
    ----------
    tiles : the tile as which each patch was seen, (n_patches,)
    weight : of the tiles, (n_tiles, n_bins)
    label : class of each tile, (n_tiles,)
    variance : of the residual in each class, (n_classes, n_bins)

    Returns
    -------
    n : number of patches
    """
    a = shares(tiles, weight) ** 2 * variance[label[tiles]]
    number = (a.sum(0) ** 2 / (a**2).sum(0)).mean()
    lost = (len(np.unique(label[tiles])) - 1) / len(tiles)
    return int(number * (1.0 - lost))


def neighbour_correlation(
    values: np.ndarray, tiles: np.ndarray, label: np.ndarray
) -> tuple[float, float]:
    """Correlation of the bandpowers of patches 0 and 1, 2 and 3, …, side by side on one sky: mean
    over the bins, and its standard error.

    Parameters
    ----------
    values : of patches, (n_patches, n_bins)
    tiles : the tile as which each patch was seen, (n_patches,)
    label : class of each tile, (n_tiles,)

    Returns
    -------
    correlation : mean over the bins
    error : its standard error
    """
    classes = label[tiles]
    off = np.zeros_like(values)
    for c in np.unique(classes):
        rows = classes == c
        if rows.sum() > 1:
            part = values[rows]
            off[rows] = (part - part.mean(0)) / part.std(0, ddof=1)
    pairs = len(values) // 2
    first, second = (slice(start, 2 * pairs, 2) for start in (0, 1))
    # Two of k residuals about their mean have the correlation −1/k.
    same = classes[first] == classes[second]
    common = same / np.bincount(classes)[classes[first]]
    products = (off[first] * off[second]).mean(1) + common
    return float(products.mean()), float(products.std(ddof=1) / np.sqrt(pairs))
