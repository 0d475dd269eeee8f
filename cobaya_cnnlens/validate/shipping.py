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
from ..errors import ConfigError, ProductError
from ..pipeline import networks
from ..pipeline.cosmologies import Points, checked, fitted
from ..pipeline.nuisances import Nuisances
from ..pipeline.perturbations import Derivatives, ShiftedSkies
from ..pipeline.power import Power
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..pipeline.stage import Stage
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
    stages: list[tuple[str, Stage[Run], list[tuple[Any, ...]]]] = []
    for name in ("validation", "test", *(f"survey-{survey}" for survey in config.surveys)):
        stages.append((f"bandpowers, {name}", Bandpowers(run), Bandpowers(run).keys(name)))
    stages += [
        ("derivatives", Derivatives(run), Derivatives(run).keys()),
        ("second order", ShiftedSkies(run), ShiftedSkies(run).keys()),
        ("nuisances", Nuisances(run), Nuisances(run).keys()),
        ("fit", Points(run), Points(run).keys(fitted(run))),
        ("points", Points(run), Points(run).keys(checked(run))),
    ]
    for name in Power(run).counts() if config.data_debias else ():
        stages.append((f"power, {name}", Power(run), Power(run).keys(name)))
    for label, stage, keys in stages:
        for key in keys:
            yield label, stage.kind, stage.path(*key), stage.recipe(*key)
    for i in range(config.skies.test):
        of_sky = run, "test", i
        yield "primary spectra", primary.KIND, primary.path(*of_sky), primary.recipe(*of_sky)
    for i in range(config.coverage.skies):
        yield "coverage", coverage.KIND, coverage.path(run, i), coverage.recipe(run, i)
