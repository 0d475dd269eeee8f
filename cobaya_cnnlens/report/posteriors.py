"""Posteriors from Cobaya chains: drawn with getdist, and as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from getdist import MCSamples, plots
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..validate.chains import check_params, true_parameters
from ..validate.predictive import Predictive


def plot_posteriors(
    chains: Mapping[str, MCSamples], params: list[str] | None = None, out: Path | None = None
) -> Path:
    """Draw the posteriors of one or more chains over each other.

    Parameters
    ----------
    chains : samples by chain root, as in ``output`` of the Cobaya input
    params : parameters to draw; the sampled ones that all chains share by default
    out : picture to write; beside the first chain by default

    Returns
    -------
    path of the picture

    Raises
    ------
    CNNLensError
        if a parameter is not in a chain
    """
    roots, samples = list(chains), list(chains.values())
    if params is None:
        params = [p.name for p in samples[0].paramNames.names if not p.isDerived]
        params = [p for p in params if all(s.paramNames.hasParam(p) for s in samples)]
    for root, chain in chains.items():
        check_params(root, chain, params)
    truths = [true_parameters(root) for root in roots]
    plotter = plots.get_subplot_plotter(width_inch=6 if len(params) == 1 else 8)
    labels = [_label(*named) for named in zip(roots, truths, samples, strict=True)]
    colours = [f"C{i}" for i in range(len(roots))]
    if len(params) == 1:
        plotter.plot_1d(samples, params[0], colors=colours)
        for truth, colour in zip(truths, colours, strict=True):
            if params[0] in truth:
                plotter.subplots[0, 0].axvline(truth[params[0]], color=colour, ls="--", lw=1)
        axis = plotter.subplots[0, 0]
        handles = [Line2D([], [], color=colour) for colour in colours]
        axis.set_ylim(top=1.15 + 0.08 * len(labels))
        axis.legend(handles, labels, loc="upper center", fontsize=9, frameon=False)
    else:
        plotter.triangle_plot(
            samples,
            params,
            filled=True,
            legend_labels=labels,
            contour_colors=colours,
            markers={k: v for k, v in truths[0].items() if k in params},
        )
    path = out or Path(f"{roots[0]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    plotter.export(str(path))
    return path


def _label(root: str, truth: dict[str, float], chain) -> str:
    """A chain's name, and what is true of its sky."""
    name = Path(root).name.replace("_", " ")
    if "omch2" not in truth:
        return name
    has = chain.paramNames.hasParam("omch2")
    label = chain.paramNames.parWithName("omch2").label if has else r"\Omega_\mathrm{c} h^2"
    return f"{name} (true ${label}$ = {truth['omch2']:g})"


def draw_predictive(check: Predictive, path: Path) -> Path:
    """Write :func:`predictive_figure`; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    predictive_figure(check).savefig(path, dpi=130, bbox_inches="tight")
    return path


def predictive_figure(check: Predictive) -> Figure:
    """Bandpowers over those of the best fit, with the predictive band."""
    centres = check.edges.mean(1)
    band, data = check.band / check.best_model - 1, check.data / check.best_model - 1
    figure = Figure(figsize=(8, 4.5))
    axis = figure.subplots()
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
    spread = np.percentile(check.models, [16, 84], axis=0) / check.best_model - 1
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
    return figure
