"""What a reader wants to look at: maps of one patch, and the power of Ê beside that of κ̂.

Measured on the first test sky, for figures only; no number of a release rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import products
from ..calibrate import bandpowers
from ..pipeline.observation import observe_sky
from ..pipeline.run import Run
from ..reconstruct import Estimator

KIND = "exhibit"
ALGORITHM = 1
# The patch that is shown; any would do.
PATCH = 40


@dataclass(frozen=True)
class Exhibit:
    """Masked maps of one test patch, each (n, n): ``q``, ``u`` (observed Q̃, Ũ), unlensed ``e``,
    in µK, ``kappa``, and what the estimator makes of them, ``e_found`` and ``kappa_found``; and
    per patch of the sky, (n_patches, n_bins) each, the power of E, of Ê and of E − Ê in µK².

    Of an estimator that gives no E the four fields that need it are None.
    """

    q: np.ndarray
    u: np.ndarray
    e: np.ndarray
    kappa: np.ndarray
    kappa_found: np.ndarray
    e_found: np.ndarray | None = None
    e_truth: np.ndarray | None = None
    e_auto: np.ndarray | None = None
    e_difference: np.ndarray | None = None


def shown_patch(n_patches: int) -> int:
    """Which patch of a sky is shown: ``PATCH``, or the last of a sky that has fewer."""
    return min(PATCH, n_patches - 1)


def reconstruct_all(estimator: Estimator, q: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """All that an estimator makes of masked Q̃, Ũ (n, ny, nx): ``kappa`` κ̂, and ``e`` or ``qu`` of
    one that has them."""
    both = getattr(estimator, "reconstruct_both", None)
    return both(q, u) if both else {"kappa": estimator.reconstruct(q, u)}


def path(run: Run) -> Path:
    """Where the maps and spectra that are kept to be looked at lie."""
    return run.config.products / "exhibit.h5"


def recipe(run: Run) -> dict:
    """What determines the maps and spectra that are kept to be looked at."""
    return {**bandpowers.recipe(run, "test", 0), "exhibit_algorithm": ALGORITHM}


def measure(run: Run) -> None:
    """Reconstruct the first test sky and keep what is shown of it, unless that is done."""
    if products.exists(path(run), KIND, recipe(run)):
        return
    seen = observe_sky(run, "test", 0)
    found = reconstruct_all(run.estimator, seen.q, seen.u)
    shown = shown_patch(len(seen.q))
    arrays = {name: getattr(seen, name)[shown] for name in ("q", "u", "e", "kappa")}
    arrays["kappa_found"] = found["kappa"][shown]
    if "e" in found:
        spectra = run.bandpowers
        arrays["e_found"] = found["e"][shown]
        arrays["e_truth"] = spectra.auto(seen.e)
        arrays["e_auto"] = spectra.auto(found["e"])
        arrays["e_difference"] = spectra.auto(seen.e - found["e"])
    products.write_product(path(run), KIND, recipe(run), arrays)


def read(run: Run) -> Exhibit:
    """What :func:`measure` kept.

    Raises
    ------
    products.ProductError
        if it is missing, or was made with another network or configuration
    """
    with products.open_product(path(run), KIND, recipe(run)) as product:
        return Exhibit(**{name: product.array(name) for name in product.names()})
