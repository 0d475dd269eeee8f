"""Products small enough to travel with the code: what tables, releases and forecasts are made of.

One file for a configuration, its key ``shipped``, holds bandpowers of every patch, derivatives,
second order, nuisances and primary spectra in single precision. Commands read it where the
configuration's own products lack something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import products
from ..calibrate import bandpowers, cosmologies, curvature, derivatives, nuisances, power
from ..errors import ConfigError, ProductError
from ..pipeline import networks
from ..pipeline.run import Run
from . import coverage, primary

Entry = tuple[str, str, Path, dict[str, Any]]


def recipe(run: Run) -> dict[str, Any]:
    """What a file of shipped products says of itself.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    recipe : the configuration, the hash of its estimator, and how that was trained, unless it is
        used as it is.
    """
    config = run.config
    trained = config.baseline is None and config.network.pretrained is None
    return {
        "configuration": config.name,
        "network": run.estimator_id,
        **({"training": networks.recipe(run)} if trained else {}),
    }


def ship(run: Run) -> dict[str, int]:
    """Write the configuration's file of shipped products from all of its own; what was shipped
    before and is still valid stays.

    Parameters
    ----------
    run : a configuration with a file of shipped products

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
    config = run.config
    if config.shipped is None:
        raise ConfigError(
            f"configuration '{config.name}': key 'shipped' names no file; add one, e.g. "
            f"shipped: training/bandpowers/{config.name}.h5"
        )
    if config.shipped.exists():
        with products.open_product(config.shipped, products.SHIPPED) as old:
            owner = old.recipe["configuration"]
        if owner != config.name:
            raise ConfigError(
                f"configuration '{config.name}': key 'shipped': {config.shipped} holds the "
                f"products of '{owner}'; give this configuration a file of its own"
            )
    entries, counts = [], Counter[str]()
    for label, kind, path, own in _entries(run):
        if not products.exists(path, kind, own, config.shipped):
            continue
        with products.open_product(path, kind, own, config.shipped) as product:
            entries.append((kind, own, {name: product.array(name) for name in product.names()}))
        counts[label] += 1
    if not entries:
        raise ProductError(
            f"{config.products}: holds nothing to ship of '{config.name}'; run `cnnlens "
            "reconstruct CONFIG --set test` and its like first"
        )
    products.ship(config.shipped, recipe(run), entries)
    return dict(counts)


def _entries(run: Run) -> Iterator[Entry]:
    """What is shipped: its name, kind, path and recipe."""
    config = run.config
    sets = ["validation", "test", *(f"survey-{name}" for name in config.surveys)]
    stages: list[tuple[str, Any, tuple[str, ...], int]] = [
        (f"bandpowers, {name}", bandpowers, (name,), config.set_size(name)) for name in sets
    ]
    stages += [
        ("derivatives", derivatives, (), config.skies.derivatives),
        ("second order", curvature, (), config.skies.derivatives),
        ("nuisances", nuisances, (), config.nuisances.skies),
        ("primary spectra", primary, ("test",), config.skies.test),
        ("coverage", coverage, (), config.coverage.skies),
    ]
    for label, stage, set_names, size in stages:
        for index in range(size):
            key = *set_names, index
            yield label, stage.KIND, stage.path(run, *key), stage.recipe(run, *key)
    for label, points in (("fit", cosmologies.fitted(run)), ("points", cosmologies.checked(run))):
        for point in points:
            own = cosmologies.recipe(run, point)
            yield label, cosmologies.KIND, cosmologies.path(run, point), own
    for entry in power.entries(run) if config.data_debias else ():
        yield f"power, {entry[0]}", power.KIND, power.path(run, *entry), power.recipe(run, *entry)
