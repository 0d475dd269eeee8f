"""Posteriors from Cobaya chains, and what they predict, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from getdist import MCSamples
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..validate.chains import check_params, true_parameters
from ..validate.predictive import Predictive
from .drawing import panel


def posteriors_figure(chains: Mapping[str, MCSamples], params: list[str] | None = None) -> Figure:
    """The posteriors of one or more chains over each other; truths of mocks are marked.

    Parameters
    ----------
    chains : samples by chain root, as in ``output`` of the Cobaya input
    params : parameters to draw; the sampled ones that all chains share by default

    Raises
    ------
    CNNLensError
        if a parameter is not in a chain
    """
    samples = list(chains.values())
    if params is None:
        params = [p.name for p in samples[0].paramNames.names if not p.isDerived]
        params = [p for p in params if all(s.paramNames.hasParam(p) for s in samples)]
    for root, chain in chains.items():
        check_params(root, chain, params)
    truths = [true_parameters(root) for root in chains]
    plotter = _plotter(width_inch=6 if len(params) == 1 else 8)
    labels = [_label(*named) for named in zip(chains, truths, samples, strict=True)]
    colours = [f"C{i}" for i in range(len(chains))]
    if len(params) == 1:
        plotter.plot_1d(samples, params[0], colors=colours)
        _finish_one(plotter.subplots[0, 0], params[0], truths, labels, colours)
    else:
        plotter.triangle_plot(
            samples,
            params,
            filled=True,
            legend_labels=labels,
            contour_colors=colours,
            markers={k: v for k, v in truths[0].items() if k in params},
        )
    _forget(plotter.fig)
    return plotter.fig


def _finish_one(
    axis: Axes, param: str, truths: list[dict[str, float]], labels: list[str], colours: list[str]
) -> None:
    """The truths of a single parameter, and whose posterior is whose, above the curves."""
    for truth, colour in zip(truths, colours, strict=True):
        if param in truth:
            axis.axvline(truth[param], color=colour, ls="--", lw=1)
    handles = [Line2D([], [], color=colour) for colour in colours]
    axis.set_ylim(top=1.15 + 0.08 * len(labels))
    axis.legend(handles, labels, loc="upper center", fontsize=9, frameon=False)


def _plotter(**options):
    """getdist's plotter, which draws with pyplot.

    Where there is no display, importing it takes Agg for the whole session, a notebook's too; the
    backend of before is put back.
    """
    backend = matplotlib.get_backend()
    from getdist import plots

    matplotlib.use(backend, force=False)
    return plots.get_subplot_plotter(**options)


def _forget(figure: Figure) -> None:
    """Take a figure out of pyplot's list, by which a notebook would show it once more."""
    from matplotlib import pyplot

    pyplot.close(figure)


def _label(root: str, truth: dict[str, float], chain) -> str:
    """A chain's name, and what is true of its sky."""
    name = Path(root).name.replace("_", " ")
    if "omch2" not in truth:
        return name
    has = chain.paramNames.hasParam("omch2")
    label = chain.paramNames.parWithName("omch2").label if has else r"\Omega_\mathrm{c} h^2"
    return f"{name} (true ${label}$ = {truth['omch2']:g})"


def predictive_figure(check: Predictive, axis: Axes | None = None) -> Figure:
    """Bandpowers over those of the best fit, with the predictive band."""
    centres = check.edges.mean(1)
    band, data = check.band / check.best_model - 1, check.data / check.best_model - 1
    axis = panel(axis, (8, 4.5))
    for low, high, shade, label in ((0, 4, 0.2, "95%"), (1, 3, 0.4, "68%")):
        axis.fill_between(
            centres,
            band[low],
            band[high],
            color="C0",
            alpha=shade,
            lw=0,
            label=f"{label} predicted",
        )
    spread = check.model_band / check.best_model - 1
    for line, label in zip(spread, ("68% of the posterior's models", None), strict=True):
        axis.plot(centres, line, "C0", lw=0.8, label=label)
    axis.errorbar(
        centres, data, xerr=0.5 * np.diff(check.edges)[:, 0], fmt="k.", lw=1, label="bandpowers"
    )
    axis.axhline(0, color="k", lw=0.8)
    axis.set(xlabel="$L$", ylabel=r"$d_L\,/\,\mu_L$(best fit) $-$ 1")
    axis.set_title(
        rf"$\chi^2$ = {check.best_chi2:.1f} of {len(data)} bins, "
        f"posterior-predictive p = {check.p:.3f}",
        size=10,
    )
    axis.legend(fontsize=8)
    return axis.figure
