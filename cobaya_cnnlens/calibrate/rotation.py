"""The rotation of a survey's polarisation, from the EB spectrum of its own patches.

A rotation by α, Q + iU → e^{2iα}(Q + iU), rotates the sums Y + iX of a patch
(:meth:`.EBPower.rotation`) by 4α, whatever its mask and beam. On a sky without parity violation the
mean of X vanishes, so that

    α̂ = ¼ atan2(Σ_t w_t X_t, Σ_t w_t Y_t)

(docs/noise-bias, eq. 17). This module takes and returns arrays.
"""

from __future__ import annotations

import numpy as np


def rotation_of(sums: np.ndarray | None, weight: np.ndarray | None = None) -> np.ndarray:
    """The rotation of a survey, as a release holds it.

    Its standard error is that of the scatter, over the patches, of X rotated back by 4α̂. Nothing is
    known of the error of a single patch.

    Parameters
    ----------
    sums : X and Y of each patch, (n_patches, 2); None where they were not measured
    weight : of each patch, (n_patches,); all alike by default

    Returns
    -------
    α̂ and its standard error in degrees, and one for all of the patches, (1, 3); (0, 0) of fewer
    than two patches, or None

    Examples
    --------
    >>> rotation_of(np.array([[0.01, 2.0], [0.05, 2.0]])).round(3).tolist()
    [[0.215, 0.143, 1.0]]
    """
    if sums is None or len(sums) < 2:
        return np.zeros((0, 0))
    n = len(sums)
    weight = np.ones(n) if weight is None else weight
    x, y = weight @ sums
    four = np.arctan2(x, y)
    across = weight * (np.cos(four) * sums[:, 0] - np.sin(four) * sums[:, 1])
    error = np.sqrt(n / (n - 1.0) * (across**2).sum()) / np.hypot(x, y)
    return np.array([[*np.degrees([0.25 * four, 0.25 * error]), 1.0]])


def rotated_back(sums: np.ndarray, angle: float) -> np.ndarray:
    """The sums of patches whose polarisation is rotated by −α.

    Parameters
    ----------
    sums : X and Y of each patch, (n_patches, 2)
    angle : α in degrees

    Returns
    -------
    sums : (n_patches, 2)

    Examples
    --------
    >>> rotated_back(np.array([[1.0, 0.0]]), 22.5).round(3).tolist()
    [[0.0, 1.0]]
    """
    turned = (sums[:, 1] + 1j * sums[:, 0]) * np.exp(-4j * np.radians(angle))
    return np.stack([turned.imag, turned.real], axis=1)
