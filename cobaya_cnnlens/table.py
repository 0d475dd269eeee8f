"""Results as aligned text: what the commands print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def text_table(columns: Mapping[str, tuple[str, Iterable[Any]]], title: str = "") -> str:
    """A line of heads and a line for each row, under a title if there is one.

    Parameters
    ----------
    columns : format specification and values of each column by its head, all of one length; a
        column of the format "" is text and is aligned to the left, every other one to the right
    title : one or several lines

    Returns
    -------
    the lines, without a line break at the end

    Examples
    --------
    >>> print(text_table({"L": (".0f", [100, 1500]), "note": ("", ["low", "high"])}))
       L  note
     100  low
    1500  high
    """
    aligned = []
    for head, (form, values) in columns.items():
        cells = [head, *(format(value, form) for value in values)]
        width = max(map(len, cells))
        aligned.append([cell.rjust(width) if form else cell.ljust(width) for cell in cells])
    lines = ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]
    return "\n".join([title, *lines] if title else lines)


def plus_minus(values: Iterable[float], errors: Iterable[float], form: str) -> list[str]:
    """Values with their errors, for a column of the format ">".

    Parameters
    ----------
    values, errors : of each row
    form : format specification of both; a sign that it asks for is the value's alone

    Returns
    -------
    "value ± error" of each row
    """
    pairs = zip(values, errors, strict=True)
    return [f"{value:{form}} ± {error:{form.lstrip('+')}}" for value, error in pairs]
