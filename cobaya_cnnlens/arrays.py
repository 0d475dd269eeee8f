"""Whose functions compute with an array: NumPy's, or JAX's.

The algebra of the emulator and of the likelihood is written once. Given arrays of JAX, it is
differentiated and compiled by JAX (:mod:`cobaya_cnnlens.likelihood.gradients`), which nothing else
imports.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def namespace(*values: Any) -> Any:
    """The array namespace of some values (the array API standard, https://data-apis.org).

    Parameters
    ----------
    *values : arrays or numbers

    Returns
    -------
    ``jax.numpy`` if one of the values is an array of JAX, else ``numpy``

    Examples
    --------
    >>> namespace(np.ones(3), 2.0).__name__
    'numpy'
    """
    for value in values:
        if not isinstance(value, np.ndarray) and hasattr(value, "__array_namespace__"):
            return value.__array_namespace__()
    return np
