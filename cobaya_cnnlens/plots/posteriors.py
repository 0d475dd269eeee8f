"""Posteriors from Cobaya chains, and what they predict, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser

from ..errors import CNNLensError
from ..validate.chains import Chain, check_chain, quiet
from ..validate.predictive import Predictive
from .drawing import figure_of, panel


def posteriors_figure(chains: Sequence[Chain], params: Sequence[str] | None = None) -> Figure:
    """The posteriors of one or more chains over each other, with the truths of mocks.

    Below a curve it says if the prior makes the posterior of that parameter.

    Parameters
    ----------
    chains : as :func:`~cobaya_cnnlens.validate.chains.load_chain` reads them
    params : parameters to draw; by default the sampled ones and σ8 Ω_m^0.25, of those that all
        chains share

    Returns
    -------
    figure : one panel, a row, or a triangle

    Raises
    ------
    CNNLensError
        If a parameter is not in a chain, or the chains share none.
    """
    chosen = list(params or _shared_parameters(chains))
    for chain in chains:
        if not chosen:
            raise CNNLensError(
                f"{chain.root}: no parameter that varies and that all chains have; name some with "
                f"--param. This chain has {', '.join(chain.names) or 'none that varies'}"
            )
        check_chain(chain, chosen)
        _make_labels_drawable(chain)
    samples = [chain.samples for chain in chains]
    colours, labels = [f"C{i}" for i in range(len(chains))], [_label(chain) for chain in chains]
    plotter = _plotter(width_inch=6 if len(chosen) == 1 else 8)
    # What follows from one sampled parameter is drawn beside it, not against it.
    beside = len(chosen) == 1 or (params is None and len(_sampled(chains[0])) == 1)
    with quiet():
        if beside:
            plotter.plots_1d(samples, chosen, nx=len(chosen), colors=colours, legend_labels=[])
            for i, name in enumerate(chosen):
                _mark_truths(plotter.subplots[0, i], name, chains, colours)
            _add_legend(plotter.subplots[0, 0], labels, colours)
        else:
            plotter.triangle_plot(
                samples,
                chosen,
                filled=True,
                legend_labels=labels,
                contour_colors=colours,
                markers={k: v for k, v in chains[0].truth.items() if k in chosen},
            )
    for i, name in enumerate(chosen):
        _mark_priors(plotter.subplots[0 if beside else i, i], name, chains, colours)
    _forget(plotter.fig)
    return plotter.fig


def _make_labels_drawable(chain: Chain) -> None:
    """Put a parameter's name in the place of a LaTeX label that matplotlib does not know."""
    parser = MathTextParser("agg")
    for parameter in chain.samples.paramNames.names:
        parameter.label = str(parameter.label).strip("$")
        try:
            parser.parse(f"${parameter.label}$")
        except ValueError:
            name = parameter.name.replace("_", r"\_")
            parameter.label = rf"\mathrm{{{name}}}"


def _sampled(chain: Chain) -> list[str]:
    return [p.name for p in chain.samples.paramNames.names if not p.isDerived]


def _shared_parameters(chains: Sequence[Chain]) -> list[str]:
    """The sampled parameters, and σ8 Ω_m^0.25, that all chains have."""
    names = [*_sampled(chains[0]), "s8omegamp25"]
    return [name for name in names if all(chain.has(name) for chain in chains)]


def _mark_truths(axis: Axes, name: str, chains: Sequence[Chain], colours: list[str]) -> None:
    """A line at the truth of each chain's mock."""
    for chain, colour in zip(chains, colours, strict=True):
        if name in chain.truth:
            axis.axvline(chain.truth[name], color=colour, ls="--", lw=1)


def _add_legend(axis: Axes, labels: list[str], colours: list[str]) -> None:
    """Whose posterior is whose, above the curves of a panel."""
    handles = [Line2D([], [], color=colour) for colour in colours]
    axis.set_ylim(top=1.15 + 0.08 * len(labels))
    style = {"fontsize": 9, "framealpha": 1.0, "edgecolor": "none"}  # hides the lines of truths
    axis.legend(handles, labels, loc="upper center", **style)


def _mark_priors(axis: Axes, name: str, chains: Sequence[Chain], colours: list[str]) -> None:
    """Below the curves of a parameter: whose posterior is as wide as its prior, or cut by it."""
    height = 0.03
    for chain, colour in zip(chains, colours, strict=True):
        if mark := chain.prior_mark(name):
            style: dict[str, Any] = {
                "ha": "center",
                "size": 7,
                "color": colour,
                "transform": axis.transAxes,
            }
            axis.text(0.5, height, mark, **style)
            height += 0.09


def _plotter(**options: Any) -> Any:
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


def _label(chain: Chain) -> str:
    """A chain's name, whether it is blinded, and the true ω_c of its sky."""
    name = chain.name.replace("_", " ").replace("$", r"\$")
    if chain.blinded:
        return f"{name} (blinded)"
    if "omch2" not in chain.truth:
        return name
    parameter = chain.samples.paramNames.parWithName("omch2")
    label = parameter.label if parameter else r"\Omega_\mathrm{c} h^2"
    return f"{name} (true ${label}$ = {chain.truth['omch2']:g})"


def predictive_figure(check: Predictive, axis: Axes | None = None) -> Figure:
    """Bandpowers over those of the best fit, with the predictive band.

    Parameters
    ----------
    check : of a chain
    axis : the axis to draw on; that of a new figure by default

    Returns
    -------
    figure : one panel
    """
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
    for line, name in zip(spread, ("68% of the posterior's models", None), strict=True):
        axis.plot(centres, line, "C0", lw=0.8, label=name)
    axis.errorbar(
        centres, data, xerr=0.5 * np.diff(check.edges)[:, 0], fmt="k.", lw=1, label="bandpowers"
    )
    axis.axhline(0, color="k", lw=0.8)
    axis.set(xlabel="$L$", ylabel=r"$d_L\,/\,\mu_L$(best fit) $-$ 1")
    axis.set_title(
        f"{'blinded: ' if check.blinded else ''}"
        rf"$\chi^2$ = {check.best_chi2:.1f} of {len(data)} bins, "
        f"posterior-predictive p = {check.p:.3f}",
        size=10,
    )
    axis.legend(fontsize=8)
    return figure_of(axis)
