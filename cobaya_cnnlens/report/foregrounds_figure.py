"""Biases by foregrounds as a picture."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..pipeline.run import Run
from ..validate.foregrounds import ForegroundTable, foregrounds_table
from .drawing import subplots

MARKERS = {"data": "o", "fixed": "s"}


def foregrounds_figure(run: Run) -> Figure:
    """What foregrounds do to a survey of the configuration; see :func:`draw_foregrounds`."""
    return draw_foregrounds(foregrounds_table(run))


def draw_foregrounds(table: ForegroundTable) -> Figure:
    """Bias of every bandpower with each noise debias, and of ω_c by foreground and l_max."""
    ways = list(table.sigma)
    figure, axes = subplots(1, len(ways) + 1, figsize=(5.2 * (len(ways) + 1), 4.6))
    for axis, way in zip(axes, ways, strict=False):
        for i, b in enumerate(table.of(way)):
            axis.errorbar(table.L, b.bins, b.bins_error, fmt=".-", lw=0.8, color=f"C{i}")
        axis.set(xlabel="$L$", ylabel=rf"bias [$\sigma$ of {table.n_survey} patches]")
        axis.set_title(f"bandpowers, noise_debias {way}", size=10)
        _signed(axis, axis.set_yscale)
    axis = axes[-1]
    foregrounds = [b.foreground for b in table.of(ways[0])]
    series = [(way, None) for way in ways] + [("fixed", lmax) for lmax in table.sigma_lmax]
    for k, (way, lmax) in enumerate(series):
        biases = [b for b in table.of(way, lmax) if b.foreground in foregrounds]
        rows = np.array([foregrounds.index(b.foreground) for b in biases])
        axis.errorbar(
            [b.omch2 for b in biases],
            rows + 0.15 * (k - 0.5 * (len(series) - 1)),
            xerr=[b.omch2_error for b in biases],
            fmt=MARKERS[way],
            ms=4,
            color="k" if lmax is None else str(0.4 + 0.2 * list(table.sigma_lmax).index(lmax)),
            label=f"noise_debias {way}" + (f", l up to {lmax}" if lmax else ""),
        )
    axis.set_yticks(range(len(foregrounds)), [f.label.replace("_", " ") for f in foregrounds])
    for i, tick in enumerate(axis.get_yticklabels()):
        tick.set_color(f"C{i}")
    axis.set(xlabel=r"bias of $\Omega_c h^2$ [its $\sigma$]")
    axis.set_title(f"{table.frequency_ghz:g} GHz, nothing masked or cleaned beyond that", size=10)
    axis.invert_yaxis()
    axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    _signed(axis, axis.set_xscale)
    figure.tight_layout()
    return figure


def _signed(axis, set_scale) -> None:
    """Both signs over decades; half a σ either way in grey."""
    set_scale("symlog", linthresh=0.5, linscale=0.7)
    upright = set_scale == axis.set_yscale
    low, high = axis.get_ylim() if upright else axis.get_xlim()
    ticks = [x for x in (-100, -10, -1, 0, 1, 10, 100) if low <= x <= high]
    (axis.set_yticks if upright else axis.set_xticks)(ticks, [f"{x:g}" for x in ticks])
    span = axis.axhspan if upright else axis.axvspan
    span(-0.5, 0.5, color="0.9", zorder=0)
