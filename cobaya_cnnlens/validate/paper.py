"""What Caldeira et al. 2018 (arXiv:1810.01483) quote, by noise level in µK′ where that matters, and
how ours compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from .noise import NoiseTable

# §5: realisations in the test set, of which their scatter is a measurement too.
TEST_PATCHES = 1120
# §6.1, Fig. 10: relative error of one patch's bandpower in the first bin and at two multipoles.
BANDPOWER_ERROR = {
    0.0: {"first": 0.33, 1500: 0.13, 3000: 0.10},
    1.0: {"first": 0.33, 1500: 0.33, 3000: 1.17},
    5.0: {"first": 0.48, 1500: 2.98},
}
# §6.1: power of κ recovered without noise, over all L.
NOISELESS_POWER = 0.80
# §6.2, eq. 14: ⟨κκ̂*⟩/⟨κκ*⟩ of unlensed training inputs.
TRAINING_CROSS = 1e-4
# §6.2, Fig. 11: unlensed inputs against N_L.
UNLENSED_POWER = "percent-level"
# §6.3: significance in σ, with its scatter, at which single noiseless patches reject the fiducial
# cosmology, and the mean and scatter of their maximum-likelihood ω_c.
NULL_SIGMA = {"low": (2.9, 0.9), "high": (4.5, 1.4)}
OMCH2 = {"fiducial": (0.1183, 0.0016), "low": (0.1096, None), "high": (0.1260, None)}
OMCH2_PATCHES = 320
# §7, eq. 18: scatter of one patch's bandpower between 20 initialisations.
SEED_SCATTER = 0.030
# §4 and §5: size of the network and cost of its use.
PARAMETERS = "just over 5.4 million"
RECEPTIVE_FIELD = 101
EPOCH_SECONDS = 200
PATCH_MILLISECONDS = 11


def scatter_error(value: float, n: int = TEST_PATCHES) -> float:
    """Standard error of a scatter estimated from ``n`` realisations."""
    return value / sqrt(2.0 * n)


def verdict(ours: float, error: float, paper: float, paper_error: float = 0.0) -> str:
    """Which of two numbers that should be small is smaller: "better" or "worse" beyond two
    standard errors of their difference, else "level"."""
    distance = (ours - paper) / sqrt(error**2 + paper_error**2)
    return "level" if abs(distance) <= 2.0 else "better" if distance < 0 else "worse"


@dataclass(frozen=True)
class Compared:
    """Relative error of one patch's bandpower at L, ours and the paper's, each with the standard
    error of a scatter, and the :func:`verdict`."""

    L: float
    ours: float
    error: float
    quoted: float
    quoted_error: float
    verdict: str


def compared_errors(level: float, table: NoiseTable, n_patches: int) -> list[Compared]:
    """Our bandpower errors from ``n_patches`` beside all that the paper quotes at a noise level."""
    found = []
    for where, quoted in BANDPOWER_ERROR.get(level, {}).items():
        b = 0 if where == "first" else int(np.argmin(np.abs(table.L - where)))
        ours = float(table.relative_error[b])
        errors = scatter_error(ours, n_patches), scatter_error(quoted)
        judged = verdict(ours, errors[0], quoted, errors[1])
        found.append(Compared(table.L[b], ours, errors[0], quoted, errors[1], judged))
    return found
