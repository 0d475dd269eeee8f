"""The one printer of tables: rows of text with their columns aligned."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of a table as lines of text.

    Parameters
    ----------
    rows : the header and the rows, each with a text for every column
    left : how many of the first columns are aligned to the left; the others are to the right

    Returns
    -------
    table : one line a row, two spaces between columns

    Examples
    --------
    >>> print(aligned([("name", "mean"), ("H0", "67.9"), ("omch2", "0.1185")]))
    name     mean
    H0       67.9
    omch2  0.1185
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
