"""The mean field of an estimator without a network: its mean κ̂ over training skies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from .. import products
from . import skies
from .observation import observe_sky

if TYPE_CHECKING:
    from ..reconstruct import Estimator
    from .run import Run

KIND = "mean field"
# Of the estimators themselves too: their number stands in the recipe that is their identity.
ALGORITHM = 3
# Patches at a time while the mean field is summed.
CHUNK = 16


def baseline_recipe(run: Run) -> dict:
    """What determines an estimator without a network; its hash stands in a network's place."""
    config = run.config
    floored = config.instrument.noise_uk_arcmin < config.baseline.noise_floor
    return {
        "algorithm": ALGORITHM,
        "baseline": config.baseline.model_dump(exclude=set() if floored else {"noise_floor"}),
        "instrument": config.instrument.recipe(),
        "sky": skies.recipe(run, "train", 0),
    }


def path(run: Run) -> Path:
    """Where the mean field lies."""
    return run.config.products / "mean_field.h5"


def recipe(run: Run) -> dict:
    """What determines the mean field."""
    return {"mean_field": baseline_recipe(run)}


def measure(run: Run, estimator: Estimator) -> None:
    """Mean κ̂ of a bare estimator over the first training skies, unless that is done."""
    if products.exists(path(run), KIND, recipe(run)):
        return
    total, count = 0.0, 0
    for index in range(run.config.baseline.mean_field_skies):
        seen = observe_sky(run, "train", index)
        starts = range(0, len(seen.q), CHUNK)
        for start in tqdm(starts, desc=f"mean field/{index}", unit=f"{CHUNK} patches"):
            rows = slice(start, start + CHUNK)
            found = estimator.reconstruct(seen.q[rows], seen.u[rows])
            total, count = total + found.sum(0), count + len(found)
    products.write_product(path(run), KIND, recipe(run), {"kappa": total / count})


def read(run: Run) -> np.ndarray:
    """What mask and noise alone put into κ̂, (n, n).

    Raises
    ------
    products.ProductError
        if it is missing, damaged, or of another configuration
    """
    with products.open_product(path(run), KIND, recipe(run)) as product:
        return product.array("kappa")
