"""Effect of the instrument's systematics on the debiased bandpowers, by simulation.

Skies of the test set are observed again with the same noise realisation and one error of the
instrument at a time: in polarisation gain, beam width, noise level or polarisation angle. The
differences give the first and second order of each,

    d_b(x) = d_b(0) + A_b x + B_b x² ,   A = [d(x) − d(−x)]/2x ,  B = [d(x) + d(−x) − 2 d(0)]/2x² .

A measured beam (``instrument.beam_file``) changes in width too, B_l → B_{l(1 + x)}. The angle needs
the second order. By parity its first order vanishes for an estimator that is equivariant under
reflections, and is small for a network that has nearly learned to be so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import CNNLensError
from ..likelihood.fields import NUISANCES
from ..pipeline.observation import observe_sky
from ..pipeline.run import Run
from ..simulate.instrument import Systematics
from ..simulate.tiling import some
from ..table import plus_minus, text_table
from . import bandpowers
from .response import standard_error

KIND = "nuisances"
SET = "test"
ALGORITHM = 1


def path(run: Run, index: int) -> Path:
    """Where the bandpowers of a test sky seen with systematics lie.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "nuisances" / f"sky_{index:04d}.h5"


def recipe(run: Run, index: int) -> dict[str, Any]:
    """What determines the bandpowers of a test sky seen with systematics.

    Parameters
    ----------
    run, index : the configuration, and the number of the sky

    Returns
    -------
    mapping for JSON
    """
    return {
        **bandpowers.recipe(run, SET, index),
        "nuisance_algorithm": ALGORITHM,
        "nuisances": run.config.nuisances.recipe(),
    }


def measure(run: Run, index: int) -> None:
    """Observe and reconstruct one test sky with each systematic at ± its step, unless that is done.

    The product holds, by name of the systematic, ``auto`` at −step and +step,
    (2, n_patches, n_bins).

    Parameters
    ----------
    run, index : the configuration, and the number of the sky
    """
    run.config.check_index(SET, index)
    file, made_of = path(run, index), recipe(run, index)
    if products.exists(file, KIND, made_of):
        return
    jobs = [(name, sign) for name in NUISANCES for sign in (-1, 1)]
    shifted: dict[str, list[np.ndarray]] = {name: [] for name in NUISANCES}
    for name, sign in tqdm(jobs, desc=f"nuisances/{index}", unit="sky"):
        x = sign * getattr(run.config.nuisances, name)
        shifted[name].append(_shifted_auto(run, index, name, x))
    arrays = {name: np.stack(values) for name, values in shifted.items()}
    products.write_product(file, KIND, made_of, arrays)


def _shifted_auto(run: Run, index: int, name: str, x: float) -> np.ndarray:
    """⟨κ̂κ̂*⟩ of a test sky under one systematic, (n_patches, n_bins)."""
    sky = observe_sky(run, SET, index, systematics=Systematics(**{name: x}))
    q, u = (some(maps, run.config.nuisances.patches) for maps in (sky.q, sky.u))
    return run.bandpowers.auto(run.estimator.reconstruct(q, u))


def _centre(run: Run, indices: Iterable[int]) -> np.ndarray:
    """⟨κ̂κ̂*⟩ of the same patches without a systematic, (n_patches, n_bins)."""
    return bandpowers.read(run, SET, indices, run.config.nuisances.patches).auto


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
    first, second = read(run, response)
    centre = _centre(run, [index])
    checks = []
    for name, x in tqdm(changes.items(), desc=f"nuisances/{index}", unit="sky"):
        shift = (_shifted_auto(run, index, name, x) - centre) / response**2
        column = NUISANCES.index(name)
        by_patch = first[..., column] * x + second[..., column] * x**2
        error = np.hypot(standard_error(shift), standard_error(by_patch))
        checks.append(NuisanceCheck(name, x, shift.mean(0), by_patch.mean(0), error))
    return checks


def read(run: Run, response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B of every patch, per unit of each nuisance in the order of ``NUISANCES``.

    Parameters
    ----------
    run : the configuration and what follows from it
    response : R_b, (n_bins,)

    Returns
    -------
    A and B, (n_patches, n_bins, n_nuisances) each

    Raises
    ------
    products.ProductError
        if a sky has not been measured, or was with another network or configuration
    """
    indices = range(run.config.nuisances.skies)
    centre = _centre(run, indices) / response**2
    shifted = []
    for index in indices:
        file, made_of = path(run, index), recipe(run, index)
        with products.open_product(file, KIND, made_of, run.config.shipped) as product:
            shifted.append(np.stack([product.array(name) for name in NUISANCES], axis=-1))
    return orders(run, centre, np.concatenate(shifted, axis=1) / response[:, None] ** 2)


def orders(run: Run, centre: np.ndarray, below_above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second order in each nuisance of what was measured of patches.

    Parameters
    ----------
    run : the configuration and what follows from it
    centre : without a systematic, (n_patches, n)
    below_above : at −step and +step of each, (2, n_patches, n, n_nuisances)

    Returns
    -------
    A and B, (n_patches, n, n_nuisances) each
    """
    below, above = below_above
    step = np.array([getattr(run.config.nuisances, name) for name in NUISANCES])
    first = (above - below) / (2.0 * step)
    second = (above + below - 2.0 * centre[..., None]) / (2.0 * step**2)
    return first, second
