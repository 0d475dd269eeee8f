"""Products small enough to travel with the code: what tables, releases and forecasts are made of.

One file for a configuration, its key ``shipped``, holds bandpowers of every patch, derivatives,
second order, nuisances and primary spectra in single precision. Commands read it where the
configuration's own products lack something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .. import products
from ..errors import ConfigError, ProductError
from ..pipeline.config import Config
from ..reconstruct.files import shipped_recipe
from ..validate import primary
from . import curvature, derivatives, measure, nuisances

Entry = tuple[str, str, Path, dict]


def ship_products(config: Config) -> dict[str, int]:
    """Write the configuration's file of shipped products from all that there are of its own; what
    was shipped before and is still valid stays.

    Returns
    -------
    number of skies by what they are

    Raises
    ------
    ConfigError
        if the configuration names no file, or that of another
    ProductError
        if a product is damaged or of another configuration, or if there is none
    """
    if config.shipped is None:
        raise ConfigError(
            f"configuration '{config.name}': key 'shipped' names no file; add one, e.g. "
            f"shipped: training/bandpowers/{config.name}.h5"
        )
    recipe = shipped_recipe(config)
    if config.shipped.exists():
        with products.open_product(config.shipped, products.SHIPPED) as old:
            owner = old.recipe["configuration"]
        if owner != config.name:
            raise ConfigError(
                f"configuration '{config.name}': key 'shipped': {config.shipped} holds the "
                f"products of '{owner}'; give this configuration a file of its own"
            )
    found, counts = [], Counter()
    for what, kind, path, own in _entries(config, recipe["network"]):
        if not products.exists(path, kind, own, config.shipped):
            continue
        with products.open_product(path, kind, own, config.shipped) as product:
            found.append((kind, own, {name: product.array(name) for name in product.names()}))
        counts[what] += 1
    if not found:
        raise ProductError(
            f"{config.products}: holds nothing to ship of '{config.name}'; run `cnnlens "
            "reconstruct CONFIG --set test` and its like first"
        )
    products.ship(config.shipped, recipe, found)
    return dict(counts)


def _entries(config: Config, network_hash: str) -> Iterator[Entry]:
    """What is shipped: its name, kind, path and recipe."""
    sets = ["validation", "test", *(f"survey-{name}" for name in config.surveys)]
    for name in sets:
        for i in range(config.set_size(name)):
            recipe = config.bandpower_recipe(name, i, network_hash)
            yield f"bandpowers, {name}", measure.KIND, config.bandpower_path(name, i), recipe
    for i in range(config.skies.derivatives):
        recipe = config.derivative_recipe(i, network_hash)
        yield "derivatives", derivatives.KIND, config.derivative_path(i), recipe
        recipe = config.curvature_recipe(i, network_hash)
        yield "second order", curvature.KIND, config.curvature_path(i), recipe
    for i in range(config.nuisances.skies):
        recipe = config.nuisance_recipe(i, network_hash)
        yield "nuisances", nuisances.KIND, config.nuisance_path(i), recipe
    for i in range(config.skies.test):
        path, recipe = primary.path_of(config, "test", i), primary.recipe_of(config, "test", i)
        yield "primary spectra", primary.KIND, path, recipe
