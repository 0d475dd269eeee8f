"""Two halves of a survey's splits, and what they differ by.

Splits 0, 2, … make half A, splits 1, 3, … half B, each with the sum of its splits' inverse
variances. With w the halves' shares of that sum, C = w_A A + w_B B is the coadd, and

    D = √(w_A w_B) (A − B)

has no sky. At every pixel it has the variance of C's noise, with which it does not correlate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tile_maps import TilePatches


def ratio(above: np.ndarray | float, below: np.ndarray) -> np.ndarray:
    """Divide, with zero where the divisor is zero.

    Parameters
    ----------
    above, below : (..., n, n), or a number above

    Returns
    -------
    ratio : of the shape of ``below``
    """
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(below.shape), where=below > 0)


@dataclass(frozen=True)
class Halves:
    """Masked Q and U of halves A and B of a tile in µK, (2, n, n) each, and their inverse variance
    per pixel in 1/µK², the same shape, zero where unseen."""

    q: np.ndarray
    u: np.ndarray
    ivar: np.ndarray

    @classmethod
    def of(cls, maps: TilePatches) -> Halves | None:
        """Halves of a tile's splits.

        Parameters
        ----------
        maps : Q and U of a tile, by split and coadded

        Returns
        -------
        halves : of the even and of the odd splits; None if there is but one split
        """
        n = len(maps.split_q)
        if n < 2:
            return None
        groups = [slice(0, n, 2), slice(1, n, 2)]
        splits = maps.tile.split_ivar * maps.tile.seen
        ivar = np.stack([splits[g].sum(0, dtype=float) for g in groups])
        q, u = (
            np.stack([ratio((splits[g] * m[g]).sum(0), ivar[i]) for i, g in enumerate(groups)])
            for m in (maps.split_q, maps.split_u)
        )
        return cls(q, u, ivar)

    @property
    def rms(self) -> np.ndarray:
        """Noise of Q and of U of each half per pixel in µK, infinite where unseen, (2, n, n)."""
        return np.where(self.ivar > 0, np.sqrt(ratio(1.0, self.ivar)), np.inf)

    @property
    def difference(self) -> tuple[np.ndarray, np.ndarray]:
        """Q and U of D, (n, n) each."""
        share = np.sqrt(ratio(self.ivar, self.ivar.sum(0)).prod(0))
        return share * (self.q[0] - self.q[1]), share * (self.u[0] - self.u[1])
