"""Reconstruction: maps (Q̃, Ũ) in, κ̂ out.

Every estimator, learned or not, follows :class:`Estimator`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Estimator(Protocol):
    """Maps → κ̂.

    ``reconstruct`` takes beamed, noisy, masked Q̃ and Ũ, each (n, ny, nx) in µK, and
    returns κ̂, (n, ny, nx), before division by the response.
    """

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray: ...
