"""How every figure begins, and how it ends up in a file.

Figures are matplotlib's own and not pyplot's: they need no display, no backend counts them as open,
and those of a notebook are left alone, which shows one that is the value of a cell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..errors import CNNLensError

DPI = 130


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any
) -> tuple[Figure, Any]:
    """Make a figure and its axes, as pyplot's function of that name does.

    Parameters
    ----------
    rows : of axes
    columns : of axes
    figsize : width and height in inches
    **options : of matplotlib's ``Figure.subplots``

    Returns
    -------
    figure : the figure
    axes : one axis, or an array
    """
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def panel(axis: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The axis for a drawing of one panel.

    Parameters
    ----------
    axis : an axis; None makes a new figure
    figsize : width and height of a new figure in inches

    Returns
    -------
    axis : the given or the new one
    """
    if axis is not None:
        return axis
    _, new = subplots(figsize=figsize)
    return cast(Axes, new)


def figure_of(axis: Axes) -> Figure:
    """The figure of an axis.

    Parameters
    ----------
    axis : of a figure, not of a subfigure

    Returns
    -------
    figure : the whole figure
    """
    return cast(Figure, axis.figure)


def draw_map(
    axis: Axes, values: np.ndarray, title: str, half: float, scale: float, size: float | None = None
) -> AxesImage:
    """Draw a map in colours from −scale to scale.

    Parameters
    ----------
    axis : the axis to draw on
    values : the map, (n, n)
    title : of the axis
    half : half the side in degrees
    scale : value of the last colour, in units of the map
    size : of the title's font

    Returns
    -------
    image : for a colour bar
    """
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


def save(figure: Figure, path: Path, **options: Any) -> Path:
    """Write a figure to a file.

    Parameters
    ----------
    figure : the figure
    path : of the picture, a PNG without a suffix; its folder is made if there is none
    **options : of ``savefig``

    Returns
    -------
    path : of the picture

    Raises
    ------
    CNNLensError
        If the suffix is of no known format.
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
