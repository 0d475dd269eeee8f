"""The simulation stage: spectra once per cosmology, then one shard per sky."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from .. import products
from ..simulate import shards
from ..theory.camb import Cosmology, Spectra, compute_spectra
from .config import Config


def spectra_for(config: Config, cosmology: Cosmology) -> Spectra:
    """The spectra of a cosmology, from its product, which is made when missing."""
    recipe = config.spectra_recipe(cosmology)
    path = config.sky_directory / "spectra" / f"{products.identity_of(recipe)}.h5"
    if not products.exists(path, "spectra", recipe):
        spectra = compute_spectra(cosmology, config.camb)
        products.write_product(path, "spectra", recipe, vars(spectra))
    with products.open_product(path, "spectra", recipe) as product:
        return Spectra(**{name: product.array(name) for name in Spectra.__annotations__})


def make_skies(
    config: Config, set_name: str, indices: Iterable[int] | None = None, nthreads: int = 0
) -> list[Path]:
    """Make the missing shards of a set, one after another.

    Parameters
    ----------
    config : the pipeline's configuration
    set_name : which set, see :meth:`Config.set_names`
    indices : which skies; all by default
    nthreads : threads of the transforms; 0 takes all cores. The shards do not depend on it

    Returns
    -------
    paths of the shards
    """
    indices = range(config.set_size(set_name)) if indices is None else list(indices)
    for index in indices:
        config.check_index(set_name, index)
    paths = [config.sky_path(set_name, i) for i in indices]
    missing = [
        (i, path)
        for i, path in zip(indices, paths, strict=True)
        if not products.exists(path, shards.KIND, config.sky_recipe(set_name, i))
    ]
    if not missing:
        return paths
    pointing = shards.pointing_of(config.patch, config.centres.nside, config.centres.poles)
    for index, path in tqdm(missing, desc=f"skies/{set_name}", unit="sky"):
        spectra = spectra_for(config, config.set_cosmology(set_name, index))
        sky = shards.draw_sky(spectra, config.sky.lmax, config.seed, set_name, index)
        fields = shards.sample_patches(sky, config.sky, config.patch, pointing, nthreads)
        shards.write_shard(path, config.sky_recipe(set_name, index), fields)
    return paths
