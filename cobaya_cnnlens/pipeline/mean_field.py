"""The mean field of an estimator without a network: its mean κ̂ over training skies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .observation import observe_sky
from .simulation import Simulation
from .skies import Skies
from .stage import Stage

if TYPE_CHECKING:
    from ..reconstruct import Estimator

# Of the estimators themselves too: their number stands in the recipe that is their identity.
ALGORITHM = 4
# Patches at a time while the mean field is summed.
CHUNK = 16


def baseline_recipe(run: Simulation) -> dict[str, Any]:
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
        **({"lmin_b": lmin_b} if (lmin_b := run.config.reconstruction.lmin_b) else {}),
        "instrument": run.config.instrument.recipe(),
        "sky": Skies(run).recipe("train", 0),
    }


class MeanField(Stage[Simulation]):
    """Mean κ̂ of a bare estimator over the first training sky: what mask and noise put into κ̂.

    Parameters
    ----------
    run : the configuration and what follows from it
    estimator : of κ on the whole patch; not needed to read
    """

    kind = "mean field"
    command = "train CONFIG"

    def __init__(self, run: Simulation, estimator: Estimator | None = None):
        super().__init__(run)
        self._estimator = estimator

    def keys(self) -> list[tuple[()]]:
        """The only product has an empty key."""
        return [()]

    def path(self) -> Path:
        """The file, under ``products``."""
        return self.config.products / "mean_field.h5"

    def recipe(self) -> dict[str, Any]:
        """What determines the mean field, a mapping for JSON."""
        return {"mean_field": baseline_recipe(self.run)}

    def make(self) -> dict[str, np.ndarray]:
        """Average κ̂ over the sky's patches."""
        assert self._estimator is not None  # of a reader alone
        sky = observe_sky(self.run, "train", 0)
        total = np.zeros(sky.q.shape[1:])
        for start in tqdm(range(0, len(sky.q), CHUNK), desc=self.kind, unit=f"{CHUNK} patches"):
            rows = slice(start, start + CHUNK)
            total += self._estimator.reconstruct(sky.q[rows], sky.u[rows]).sum(0)
        return {"kappa": total / len(sky.q)}

    def read(self) -> np.ndarray:
        """Read the mean field.

        Returns
        -------
        (n, n)

        Raises
        ------
        products.ProductError
            if it is missing, damaged, or of another configuration
        """
        return self.arrays()["kappa"]
