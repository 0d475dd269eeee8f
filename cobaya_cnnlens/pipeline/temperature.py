"""Lensed temperature of simulated patches, for what leaks of it into Q and U: made when it is first
asked for, as spectra are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import products
from ..theory.camb import temperature_spectra
from . import skies

if TYPE_CHECKING:
    from .run import Run

KIND = "temperature"
ALGORITHM = 1


def path(run: Run, set_name: str, index: int) -> Path:
    """Where the temperature of a sky's patches lies."""
    return run.config.sky_directory / KIND / set_name / f"sky_{index:04d}.h5"


def recipe(run: Run, set_name: str, index: int) -> dict:
    """What determines the temperature of a sky's patches."""
    return {"sky": skies.recipe(run, set_name, index), "temperature_algorithm": ALGORITHM}


def measure(run: Run, set_name: str, index: int, nthreads: int = 0) -> None:
    """Draw and lens the temperature of one sky, unless that is done."""
    from ..simulate import shards
    from ..simulate.temperature import lensed_temperature, temperature_alm

    config = run.config
    config.check_index(set_name, index)
    where, wanted = path(run, set_name, index), recipe(run, set_name, index)
    if products.exists(where, KIND, wanted):
        return
    cosmology = config.set_cosmology(set_name, index)
    theory = run.spectra(cosmology)
    unlensed = temperature_spectra(cosmology, config.camb, lensed=False)
    of = (config.seed, set_name, index)
    sky = shards.draw_sky(theory, config.sky.lmax, *of)
    tlm = temperature_alm(sky, theory.ee, unlensed, *of)
    values = lensed_temperature(tlm, sky, run.pointing_of(set_name), nthreads)
    n = config.patch.n_padded
    products.write_product(where, KIND, wanted, {"t": values.astype(np.float32).reshape(-1, n, n)})


def read(run: Run, set_name: str, index: int) -> np.ndarray:
    """T̃ in µK without beam and noise, (n_patches, n_padded, n_padded) float32; made if missing.

    Raises
    ------
    products.ProductError
        if the file is damaged, or from another configuration
    """
    measure(run, set_name, index)
    wanted = recipe(run, set_name, index)
    with products.open_product(path(run, set_name, index), KIND, wanted) as product:
        return product.array("t")
