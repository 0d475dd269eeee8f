"""How every figure begins, and how it ends up in a file.

Figures are matplotlib's own and not pyplot's: they need no display, no backend counts them as open,
and those of a notebook are left alone, which shows one that is the value of a cell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..errors import CNNLensError

DPI = 130


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options
) -> tuple[Figure, Any]:
    """A figure and its axes, one or an array, as pyplot's."""
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def panel(axis: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The axis for a drawing of one panel: the one given, or that of a new figure."""
    return subplots(figsize=figsize)[1] if axis is None else axis


def draw_map(
    axis: Axes, values: np.ndarray, title: str, half: float, scale: float, size: float | None = None
) -> AxesImage:
    """One map, (n, n) and 2·``half`` degrees a side, in colours from −scale to scale."""
    image = axis.imshow(
        values,
        origin="lower",
        extent=(-half, half, -half, half),
        vmin=-scale,
        vmax=scale,
        cmap="RdBu_r",
    )
    axis.set_title(title, size=size)
    return image


def save(figure: Figure, path: Path, **options) -> Path:
    """Write a figure, with other ``options`` of ``savefig`` if any, and return its path.

    A path without an end becomes a PNG file.

    Raises
    ------
    CNNLensError
        If its end is of no known format.
    """
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    known = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise CNNLensError(
            f"{path}: '{path.suffix}' is no format of a picture; give one of {', '.join(known)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **{"dpi": DPI, "bbox_inches": "tight", **options})
    return path
