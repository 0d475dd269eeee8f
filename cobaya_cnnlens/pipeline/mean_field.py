"""The mean field of an estimator without a network: its mean κ̂ over training skies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
ALGORITHM = 4
# Patches at a time while the mean field is summed.
CHUNK = 16


def baseline_recipe(run: Run) -> dict[str, Any]:
    """What determines an estimator without a network; its hash stands in a network's place.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    mapping for JSON
    """
    baseline = run.config.baseline
    assert baseline is not None  # a network has no mean field
    return {
        "algorithm": ALGORITHM,
        "baseline": baseline.model_dump(),
        "instrument": run.config.instrument.recipe(),
        "sky": skies.recipe(run, "train", 0),
    }


def path(run: Run) -> Path:
    """Where the mean field lies.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "mean_field.h5"


def recipe(run: Run) -> dict[str, Any]:
    """What determines the mean field.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    mapping for JSON
    """
    return {"mean_field": baseline_recipe(run)}


def measure(run: Run, estimator: Estimator) -> None:
    """Mean κ̂ of a bare estimator over the first training sky, unless that is done.

    Parameters
    ----------
    run : the configuration and what follows from it
    estimator : of κ on the whole patch
    """
    if products.exists(path(run), KIND, recipe(run)):
        return
    sky = observe_sky(run, "train", 0)
    total = np.zeros(sky.q.shape[1:])
    for start in tqdm(range(0, len(sky.q), CHUNK), desc="mean field", unit=f"{CHUNK} patches"):
        rows = slice(start, start + CHUNK)
        total += estimator.reconstruct(sky.q[rows], sky.u[rows]).sum(0)
    products.write_product(path(run), KIND, recipe(run), {"kappa": total / len(sky.q)})


def read(run: Run) -> np.ndarray:
    """What mask and noise alone put into κ̂.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    (n, n)

    Raises
    ------
    products.ProductError
        if it is missing, damaged, or of another configuration
    """
    with products.open_product(path(run), KIND, recipe(run)) as product:
        return product.array("kappa")
