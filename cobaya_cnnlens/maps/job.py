"""One of several equal jobs that make the products of a survey between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ConfigError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """Job ``number`` of ``total`` jobs, from 1. It makes every ``total``-th product.

    Attributes
    ----------
    number, total : which job it is, and of how many
    """

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read a job from the command line.

        Parameters
        ----------
        text : K/N, for example 3/8

        Returns
        -------
        job : the K-th of N

        Raises
        ------
        ConfigError
            if it is not two numbers, or K is not from 1 to N

        Examples
        --------
        >>> Job.parse("2/3").of(["a", "b", "c", "d", "e"])
        ['b', 'e']
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, total = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= total:
            raise ConfigError(f"--job {text}: give K/N, job K of N jobs, for example 1/8")
        return cls(number, total)

    def of(self, items: Sequence[_T]) -> Sequence[_T]:
        """What this job makes of all products.

        Parameters
        ----------
        items : all of them, in the same order for every job

        Returns
        -------
        items : every ``total``-th
        """
        return items[self.number - 1 :: self.total]
