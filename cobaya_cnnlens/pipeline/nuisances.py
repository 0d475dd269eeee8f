"""Bandpowers of skies under errors of the instrument.

Skies of the test set are observed again with the same noise realisation and one error of the
instrument at a time: in polarisation gain, beam width, noise level or polarisation angle. A
measured beam (``instrument.beam_file``) changes in width too, B_l → B_{l(1 + x)}. The angle needs
the second order. By parity its first order vanishes for an estimator that is equivariant under
reflections, and is small for a network that has nearly learned to be so. The likelihood does not
sample the angle, which every survey measures by itself (docs/noise-bias, eq. 17).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..calibrate.derivatives import nuisance_orders
from ..likelihood.fields import SIMULATED
from ..simulate.instrument import Systematics
from ..simulate.tiling import some
from .observation import observe_sky
from .reconstructions import Bandpowers
from .run import Run
from .simulation import Simulation
from .stage import Stage

# The set whose skies are observed again.
SET = "test"


def nuisance_steps(run: Simulation) -> np.ndarray:
    """The steps at which skies are observed.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    x in the order of ``SIMULATED``, (n_simulated,)
    """
    return np.array([getattr(run.config.nuisances, name) for name in SIMULATED])


class Nuisances(Stage[Run]):
    """Bandpowers of κ̂ by patch, with one error of the instrument at a time.

    A product holds, by name of the nuisance, those at −step and +step, (2, n_patches, n_bins).
    """

    kind = "nuisances"
    command = "nuisances CONFIG --index {}"

    def keys(self, indices: Iterable[int] | None = None) -> list[tuple[int]]:
        """The test skies that are observed again."""
        indices = range(self.config.nuisances.skies) if indices is None else indices
        return [(index,) for index in self.config.indices(SET, indices)]

    def recipe(self, index: int) -> dict[str, Any]:
        """What determines the bandpowers of a test sky seen with systematics."""
        return {
            **Bandpowers(self.run).recipe(SET, index),
            "nuisance_algorithm": self.algorithm,
            "nuisances": self.config.nuisances.recipe(),
        }

    def make(self, index: int) -> dict[str, np.ndarray]:
        """Observe and reconstruct a test sky with each systematic at ± its step."""
        steps = {name: getattr(self.config.nuisances, name) for name in SIMULATED}
        return {
            name: np.stack([self.shifted(index, name, x) for x in (-step, step)])
            for name, step in steps.items()
        }

    def shifted(self, index: int, name: str, x: float) -> np.ndarray:
        """⟨κ̂κ̂*⟩ of a test sky under one systematic.

        Parameters
        ----------
        index : number of the sky
        name, x : of the nuisance, and its size

        Returns
        -------
        (n_patches, n_bins)
        """
        sky = observe_sky(self.run, SET, index, systematics=Systematics(**{name: x}))
        q, u = (some(maps, self.config.nuisances.patches) for maps in (sky.q, sky.u))
        return self.run.bandpowers.auto(self.run.estimator.reconstruct(q, u))

    def centre(self, indices: Iterable[int]) -> np.ndarray:
        """⟨κ̂κ̂*⟩ of the same patches without a systematic.

        Parameters
        ----------
        indices : numbers of the skies

        Returns
        -------
        (n_patches, n_bins)
        """
        return Bandpowers(self.run).read(SET, indices, self.config.nuisances.patches).auto

    def read(self, response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second order in each step, in the order of ``SIMULATED``.

        Parameters
        ----------
        response : R_b, (n_bins,)

        Returns
        -------
        A and B of every patch, (n_patches, n_bins, n_simulated) each

        Raises
        ------
        products.ProductError
            if a sky has not been measured, or was with another network or configuration
        """
        skies = [self.arrays(*key, names=SIMULATED) for key in self.keys()]
        shifted = [np.stack(list(sky.values()), axis=-1) for sky in skies]
        below_above = np.concatenate(shifted, axis=1) / response[:, None] ** 2
        centre = self.centre(range(self.config.nuisances.skies)) / response**2
        return nuisance_orders(nuisance_steps(self.run), centre, below_above)
