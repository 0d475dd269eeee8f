"""The simulation stage: spectra once per cosmology, then one shard per sky."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..simulate import shards
from ..theory.camb import Cosmology, Spectra, compute_spectra

if TYPE_CHECKING:
    from .run import Run

KIND = shards.KIND
SPECTRA = "spectra"
# Raised when what a stage makes changes, so that older products are refused.
ALGORITHM = 1


def spectra_recipe(run: Run, cosmology: Cosmology) -> dict[str, Any]:
    """What determines a product of spectra.

    Parameters
    ----------
    run : the configuration and what follows from it
    cosmology : of the spectra

    Returns
    -------
    mapping for JSON
    """
    return {"cosmology": asdict(cosmology), "camb": asdict(run.config.camb)}


def spectra(run: Run, cosmology: Cosmology) -> Spectra:
    """The spectra of a cosmology, from its product, which is made when missing.

    Parameters
    ----------
    run : the configuration and what follows from it
    cosmology : of the spectra

    Returns
    -------
    unlensed and lensed spectra
    """
    made_of = spectra_recipe(run, cosmology)
    file = run.config.sky_directory / "spectra" / f"{products.identity_of(made_of)}.h5"
    if not products.exists(file, SPECTRA, made_of):
        computed = compute_spectra(cosmology, run.config.camb)
        products.write_product(file, SPECTRA, made_of, vars(computed))
    with products.open_product(file, SPECTRA, made_of) as product:
        return Spectra(**{name: product.array(name) for name in Spectra.__annotations__})


def path(run: Run, set_name: str, index: int) -> Path:
    """Where a shard lies.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one

    Returns
    -------
    the file, under the directory of skies
    """
    return run.config.sky_directory / set_name / f"sky_{index:04d}.h5"


def recipe(run: Run, set_name: str, index: int) -> dict[str, Any]:
    """What determines one shard.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one

    Returns
    -------
    mapping for JSON
    """
    config = run.config
    return {
        **spectra_recipe(run, config.set_cosmology(set_name)),
        "algorithm": ALGORITHM,
        "seed": config.seed,
        "set": set_name,
        "index": index,
        "sky": asdict(config.sky),
        "patch": asdict(config.patch),
        "centres": config.centres.recipe(set_name),
    }


def measure(
    run: Run, set_name: str, indices: Iterable[int] | None = None, nthreads: int = 0
) -> list[Path]:
    """Make the missing shards of a set, one after another.

    Parameters
    ----------
    set_name : which set, see :meth:`Config.set_names`
    indices : which skies; all by default
    nthreads : threads of the transforms; 0 takes all cores. The shards do not depend on it

    Returns
    -------
    paths of the shards
    """
    config = run.config
    indices = range(config.set_size(set_name)) if indices is None else list(indices)
    for index in indices:
        config.check_index(set_name, index)
    paths = [path(run, set_name, i) for i in indices]
    missing = [
        (i, file)
        for i, file in zip(indices, paths, strict=True)
        if not products.exists(file, KIND, recipe(run, set_name, i))
    ]
    for index, file in tqdm(missing, desc=f"skies/{set_name}", unit="sky", disable=not missing):
        theory = run.spectra(config.set_cosmology(set_name))
        sky = shards.draw_sky(theory, config.sky.lmax, config.seed, set_name, index)
        pointing = run.pointing_of(set_name)
        fields = shards.sample_patches(sky, config.sky, config.patch, pointing, nthreads)
        shards.write_shard(file, recipe(run, set_name, index), fields)
    return paths


def read(run: Run, set_name: str, index: int, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Chosen fields of a shard, each (n_patches, n_padded, n_padded) float32.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one
    names : of the fields

    Returns
    -------
    an array for each name

    Raises
    ------
    products.ProductError
        if the file is missing, damaged, or from another configuration
    """
    return shards.read_fields(path(run, set_name, index), names, recipe(run, set_name, index))
