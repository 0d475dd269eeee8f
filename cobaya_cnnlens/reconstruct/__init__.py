"""Reconstruction: maps (Q̃, Ũ) in, κ̂ out.

Every estimator, learned or not, follows :class:`Estimator`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
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

    Where the environment names none, and JAX is installed but TensorFlow is not, the environment
    gets ``KERAS_BACKEND=jax``: Keras by itself would look for TensorFlow.

    Raises
    ------
    NetworkError
        if the environment names a backend that is not in :data:`BACKENDS`
    """
    installed = [name for name in BACKENDS if find_spec(name) is not None]
    if not os.environ.get("KERAS_BACKEND") and installed == ["jax"]:
        os.environ["KERAS_BACKEND"] = "jax"
    if (backend := os.environ.get("KERAS_BACKEND") or BACKENDS[0]) not in BACKENDS:
        raise refused_backend(backend)


def refused_backend(name: str) -> NetworkError:
    """The error of a backend of Keras on which no network runs.

    Parameters
    ----------
    name : the backend that the user chose

    Returns
    -------
    error : to be raised
    """
    return NetworkError(
        f"Keras has the backend '{name}' (KERAS_BACKEND, or 'backend' in keras.json), on which the "
        f"networks do not run; set KERAS_BACKEND to one of {', '.join(BACKENDS)}"
    )


class Estimator(Protocol):
    """Maps → κ̂.

    The maps are beamed, noisy and masked. κ̂ is not yet divided by the estimator's response.
    """

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Reconstruct the convergence.

        Parameters
        ----------
        q, u : (n, ny, nx), masked Q̃ and Ũ in µK

        Returns
        -------
        kappa : (n, ny, nx)
        """
