"""Does the calibration predict larger errors of the instrument, on a sky that did not make it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..calibrate.response import standard_error
from ..errors import CNNLensError
from ..likelihood.fields import SIMULATED
from ..pipeline.nuisances import SET, Nuisances
from ..pipeline.run import Run
from ..table import plus_minus, text_table


@dataclass(frozen=True)
class NuisanceCheck:
    """A change of the instrument, simulated on a sky and predicted by A and B of other skies.

    Attributes
    ----------
    change, size : name of the nuisance, and x
    simulated, predicted : mean shift of d_b, (n_bins,) each
    error : standard error of their difference, (n_bins,)
    """

    change: str
    size: float
    simulated: np.ndarray
    predicted: np.ndarray
    error: np.ndarray

    def table(self, L: np.ndarray) -> str:
        """The check as text, a line for each bin.

        Parameters
        ----------
        L : centres of the bins, (n_bins,)

        Returns
        -------
        the lines
        """
        difference = self.simulated - self.predicted
        pulls = difference / self.error
        rows = text_table(
            {
                "L": (".1f", L),
                "found": (".4f", 1e9 * self.simulated),
                "predicted": (".4f", 1e9 * self.predicted),
                "difference": (">", plus_minus(1e9 * difference, 1e9 * self.error, "+.4f")),
                "in errors": ("+.2f", pulls),
            },
            f"{self.change} {self.size:+g}: shift of d_b in units of 1e-9",
        )
        near = (np.abs(pulls) < 2).sum()
        return f"{rows}\n{near} of {len(pulls)} bins within 2 standard errors\n"


def check_nuisances(
    run: Run, response: np.ndarray, index: int, changes: Mapping[str, float]
) -> list[NuisanceCheck]:
    """Simulate changes of the instrument on a test sky that gave no derivatives.

    Parameters
    ----------
    run : the configuration and what follows from it
    response : R_b, (n_bins,)
    index : of a test sky
    changes : by name of the nuisance

    Returns
    -------
    a check for each change

    Raises
    ------
    CNNLensError
        if the sky is one of those that did
    """
    run.config.check_index(SET, index)
    if index < (first_free := run.config.nuisances.skies):
        raise CNNLensError(
            f"sky {index} gave the derivatives itself; check on one from {first_free}"
        )
    nuisances = Nuisances(run)
    first, second = nuisances.read(response)
    centre = nuisances.centre([index])
    checks = []
    for name, x in tqdm(changes.items(), desc=f"nuisances/{index}", unit="sky"):
        shift = (nuisances.shifted(index, name, x) - centre) / response**2
        column = SIMULATED.index(name)
        by_patch = first[..., column] * x + second[..., column] * x**2
        error = np.hypot(standard_error(shift), standard_error(by_patch))
        checks.append(NuisanceCheck(name, x, shift.mean(0), by_patch.mean(0), error))
    return checks
