"""Reconstruction: maps (Q̃, Ũ) in, κ̂ out.

Every estimator, learned or not, follows :class:`Estimator`.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

# TensorFlow 2.21's oneDNN kernels write past their buffers: in some products of matrices
# (tensorflow#117700), and in the gradient of the convolutions here. Without them a compiled
# training step takes a tenth longer. TensorFlow reads this once, when it is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


class Estimator(Protocol):
    """Maps → κ̂.

    ``reconstruct`` takes beamed, noisy, masked Q̃ and Ũ, each (n, ny, nx) in µK, and
    returns κ̂, (n, ny, nx), before division by the response.
    """

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """κ̂ of masked maps."""
