"""Reconstruction: maps (Q̃, Ũ) in, κ̂ out.

Every estimator, learned or not, follows :class:`Estimator`.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from ..errors import NetworkError

# TensorFlow 2.21's oneDNN kernels write past their buffers: in some products of matrices
# (tensorflow#117700), and in the gradient of the convolutions here. Without them a compiled
# training step takes a tenth longer. TensorFlow reads this once, when it is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


# Backends of Keras on which the networks run.
BACKENDS = ("tensorflow", "jax")


def check_backend() -> None:
    """Refuse a ``KERAS_BACKEND`` of the environment on which no network runs; it loads no Keras.

    Raises
    ------
    NetworkError
    """
    if (backend := os.environ.get("KERAS_BACKEND") or BACKENDS[0]) not in BACKENDS:
        raise refused_backend(backend)


def refused_backend(name: str) -> NetworkError:
    """The error of a backend of Keras on which no network runs."""
    return NetworkError(
        f"Keras has the backend '{name}' (KERAS_BACKEND, or 'backend' in keras.json), on which the "
        f"networks do not run; set KERAS_BACKEND to one of {', '.join(BACKENDS)}"
    )


class Estimator(Protocol):
    """Maps → κ̂.

    ``reconstruct`` takes beamed, noisy, masked Q̃ and Ũ, each (n, ny, nx) in µK, and
    returns κ̂, (n, ny, nx), before division by the response.
    """

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """κ̂ of masked maps."""
