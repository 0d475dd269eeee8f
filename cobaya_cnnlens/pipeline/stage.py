"""The base of all stages. A stage owns one kind of product: it alone reads and writes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from .. import products
from .simulation import Simulation

# What a stage works on: a simulation, or a run with its estimator.
RunT = TypeVar("RunT", bound=Simulation)


class Stage(ABC, Generic[RunT]):
    """One kind of product of a configuration: where it lies, what determines it, how it is made.

    A *key* tells the products of a stage apart, for example the name of a set of skies and the
    number of a sky. Every method takes the entries of a key as its arguments.

    Parameters
    ----------
    run : the configuration and what follows from it
    threads : of transforms; 0 for all cores. Products do not depend on it

    Attributes
    ----------
    kind : what a file holds; the folder of its products is called so too
    algorithm : raised when the stage gives other numbers, so that older products are refused
    command : what makes a product, for messages, with the entries of the key in braces
    unit : of progress
    """

    kind: ClassVar[str]
    algorithm: ClassVar[int] = 1
    command: ClassVar[str]
    unit: ClassVar[str] = "sky"

    def __init__(self, run: RunT, threads: int = 0):
        self.run, self.config, self.threads = run, run.config, threads

    @abstractmethod
    def recipe(self, *key: Any, **named: Any) -> dict[str, Any]:
        """All that determines a product, and nothing else.

        Parameters
        ----------
        *key, **named : of the product

        Returns
        -------
        mapping for JSON
        """

    @abstractmethod
    def make(self, *key: Any, **named: Any) -> Mapping[str, np.ndarray]:
        """Make a product.

        Parameters
        ----------
        *key, **named : of the product

        Returns
        -------
        arrays by name, which the stage's class describes
        """

    @abstractmethod
    def keys(self, *which: Any, **named: Any) -> list[tuple[Any, ...]]:
        """Keys of the products that a configuration asks for, or of some of them.

        Parameters
        ----------
        *which, **named : of most stages the name of a set of skies, and ``indices``, numbers of
            skies; all by default

        Returns
        -------
        a tuple for each product
        """

    def path(self, *key: Any) -> Path:
        """Where a product lies.

        Parameters
        ----------
        *key : of the product; its last entry is the number of a sky

        Returns
        -------
        the file, under ``products``
        """
        *folders, index = key
        return self.config.products.joinpath(self.kind, *folders, f"sky_{index:04d}.h5")

    def exists(self, *key: Any) -> bool:
        """Whether a finished product is in the configuration's own folder.

        Parameters
        ----------
        *key : of the product

        Returns
        -------
        True if it is

        Raises
        ------
        products.ProductError
            if a product of another recipe is there
        """
        return products.exists(self.path(*key), self.kind, self.recipe(*key))

    def measure(self, *which: Any, **named: Any) -> list[Path]:
        """Make the products that are not there yet.

        Parameters
        ----------
        *which, **named : of :meth:`keys`

        Returns
        -------
        the files of all these keys
        """
        keys = self.keys(*which, **named)
        missing = [key for key in keys if not self.exists(*key)]
        for key in tqdm(missing, desc=self.kind, unit=self.unit, disable=not missing):
            self.write(self.make(*key), *key)
        return [self.path(*key) for key in keys]

    def write(self, arrays: Mapping[str, np.ndarray], *key: Any) -> None:
        """Write a product; the file appears whole or not at all.

        Parameters
        ----------
        arrays : by name
        *key : of the product
        """
        products.write_product(self.path(*key), self.kind, self.recipe(*key), arrays)

    def arrays(self, *key: Any, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays of a product, or of the shipped one if the configuration has none of its own.

        Parameters
        ----------
        *key : of the product
        names : of the arrays; all by default

        Returns
        -------
        arrays by name

        Raises
        ------
        products.ProductError
            if it is missing, damaged, or made with another network or configuration
        """
        place = self.path(*key), self.kind, self.recipe(*key), self.config.shipped
        with products.open_product(*place, command=self.command.format(*key)) as product:
            return {name: product.array(name) for name in names or product.names()}
