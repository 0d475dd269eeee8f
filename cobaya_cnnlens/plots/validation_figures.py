"""Figures of the validation: noise, covariance with E and B, coverage, foregrounds, null tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import CNNLensError
from ..pipeline.assemble import make_release
from ..pipeline.estimators import label_of
from ..pipeline.run import Run
from ..validate import nulls
from ..validate.coverage import coverage_tables, read
from ..validate.foregrounds import ForegroundTable, foregrounds_table
from ..validate.noise import noise_table
from ..validate.null_tests import NullTable, nulls_table
from ..validate.nulls import NULLS
from ..validate.primary import JointCovariance, read_joint
from ..validate.ranks import CoverageTable
from .drawing import subplots

if TYPE_CHECKING:
    from ..validate.survey_nulls import SurveyNulls

# Symbols for the words of a null test's description.
WORDS = {"khat": "κ̂", "kappa": "κ", "C^kk": "$C^{κκ}$", " x ": " × ", " - ": " − "}
PARAMETERS = {"omch2": r"$\Omega_c h^2$", "logA": r"$\ln(10^{10} A_s)$"}
COLUMNS = 4
COLOURS = {"FAILS": "C3", "doubtful": "C1"}


def noise_figure(run: Run) -> Figure:
    """Reconstruction noise, its ratios to the analytic curves, and bandpower errors.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : three panels
    """
    table, theory, baseline = noise_table(run), run.spectra(), run.config.baseline
    name = "network" if baseline is None else label_of(baseline)
    figure, (left, middle, right) = subplots(1, 3, figsize=(15, 4.3))
    L = np.arange(40, int(table.L[-1]) + 60)
    left.loglog(L, theory.kk[L], "k", label=r"$C_L^{\kappa\kappa}$")
    left.errorbar(table.L, table.noise, table.noise_error, fmt="o", ms=3, label=f"{name}, $N_L$")
    left.plot(table.L, table.n0_eb, label="quadratic EB, analytic")
    left.plot(table.L, table.n0_iterated, label="iterative EB, analytic")
    left.set(xlabel="$L$", ylabel=r"$N_L^{\kappa\kappa}$")
    left.legend(fontsize=7)
    for other, label in ((table.n0_eb, "quadratic EB"), (table.n0_iterated, "iterative EB")):
        middle.errorbar(
            table.L, table.noise / other, table.noise_error / other, fmt="o-", ms=3, label=label
        )
    middle.axhline(1, color="k", lw=0.8)
    middle.set(xlabel="$L$", ylabel="$N_L$ / analytic", ylim=(0, None))
    middle.legend()
    right.plot(table.L, 100 * table.relative_error, "o-", ms=3)
    right.set(xlabel="$L$", ylabel="bandpower error of one patch [%]", ylim=(0, None))
    figure.tight_layout()
    return figure


def primary_figure(run: Run) -> Figure:
    """Correlation of the lensing bandpowers with E and B power of the same test patches.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : three panels
    """
    joint = read_joint(run)
    names = {"ee": r"lensed $C_\ell^{EE}$", "bb": r"lensed $C_\ell^{BB}$"}
    figure, axes = subplots(1, 3, figsize=(16, 4.6))
    for axis, (name, label) in zip(axes, names.items(), strict=False):
        _correlation(axis, joint, name, label)
    centres = 0.5 * (joint.edges[1:] + joint.edges[:-1])
    together = joint.correlation_with_power(1000)
    for r, label in zip(together[1:], names.values(), strict=True):
        axes[2].errorbar(centres, r, joint.error_of(r), fmt=".-", label=label)
    axes[2].axhline(0, color="k", lw=0.8)
    axes[2].set(xlabel=r"$\ell$", ylabel="correlation with the lensing power at $L < 1000$")
    axes[2].legend()
    figure.suptitle(
        f"{joint.n_sim} patches; error of one coefficient {joint.n_sim**-0.5:.3f}", size=10
    )
    figure.tight_layout()
    return figure


def _correlation(axis: Axes, joint: JointCovariance, name: str, label: str) -> None:
    """The block of the correlation between lensing and E or B power."""
    r = joint.block("kk", name)
    limit = np.abs(r).max()
    mesh = axis.pcolormesh(joint.edges, joint.edges, r, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(xlabel=rf"$\ell$ of {label}", ylabel="$L$ of the lensing bandpower")
    axis.figure.colorbar(mesh, ax=axis, label="correlation coefficient")


def coverage_figure(run: Run) -> Figure:
    """Ranks of the truth in the posteriors of the coverage surveys, and their pulls.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a row for each parameter
    """
    release = make_release(run, run.config.first_survey)
    return draw_coverage(coverage_tables(run, release, read(run)))


def draw_coverage(tables: Sequence[CoverageTable]) -> Figure:
    """The figure of tables of coverage, a row for each parameter; the band holds 68% of sets
    simulated under the release's model, calibration errors included.

    Parameters
    ----------
    tables : one for each parameter

    Returns
    -------
    figure : a row for each parameter
    """
    figure, rows = subplots(len(tables), 2, figsize=(11, 4 * len(tables)), squeeze=False)
    for (left, right), table in zip(rows, tables, strict=True):
        _draw_ranks(left, right, table)
    figure.tight_layout()
    return figure


def _draw_ranks(left: Axes, right: Axes, table: CoverageTable) -> None:
    counts = table.tenths
    edges = np.linspace(0.0, 1.0, len(counts) + 1)
    left.stairs(counts, edges, lw=1.5)
    low, high = np.percentile(table.simulated.tenths, [16, 84], axis=0)
    left.stairs(high, edges, baseline=low, fill=True, color="k", alpha=0.15, lw=0)
    name = PARAMETERS[table.parameter]
    left.set(xlabel=f"posterior probability below the true {name}", ylabel="surveys")
    left.set_ylim(bottom=0)
    left.set_title(
        f"{len(table.rank)} surveys of {table.patches_each} patches on {table.n_skies} skies; "
        f"uniform with p = {table.uniformity:.3f}",
        size=9,
    )
    right.errorbar(table.truth, table.pulls, fmt=".", ms=3)
    right.axhline(0, color="k", lw=0.8)
    right.set(xlabel=f"true {name}", ylabel=r"(posterior mean $-$ truth) / $\sigma$")


def foregrounds_figure(run: Run) -> Figure:
    """What foregrounds do to a survey of the configuration; see :func:`draw_foregrounds`.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a panel for each debias, and one of ω_c
    """
    return draw_foregrounds(foregrounds_table(run))


def draw_foregrounds(table: ForegroundTable) -> Figure:
    """Bias of every bandpower with each debias, and of ω_c by foreground.

    Parameters
    ----------
    table : of the foregrounds' biases

    Returns
    -------
    figure : a panel for each debias, and one of ω_c
    """
    n = len(table.sigma)
    figure, axes = subplots(1, n + 1, figsize=(5.2 * (n + 1), 4.6))
    last = axes[-1]
    for k, (axis, debias) in enumerate(zip(axes, table.sigma, strict=False)):
        biases, rows = table.of(debias), np.arange(len(table.of(debias)))
        for i, b in enumerate(biases):
            axis.errorbar(table.L, b.bins, b.bins_error, fmt=".-", lw=0.8, color=f"C{i}")
        axis.set(xlabel="$L$", ylabel=rf"bias [$\sigma$ of {table.n_survey} patches]")
        axis.set_title(f"bandpowers, debias: {debias}", size=10)
        _signed(axis, axis.set_yscale)
        omch2, errors = [b.omch2 for b in biases], [b.omch2_error for b in biases]
        places = rows + 0.15 * (k - 0.5 * (n - 1))
        style = {"fmt": "ko", "ms": 4, "mfc": ("k", "w")[k], "label": f"debias: {debias}"}
        last.errorbar(omch2, places, xerr=errors, **style)
    last.set_yticks(rows, [b.foreground.label.replace("_", " ") for b in biases])
    for i, tick in enumerate(last.get_yticklabels()):
        tick.set_color(f"C{i}")
    last.set(xlabel=r"bias of $\Omega_c h^2$ [its $\sigma$]")
    last.set_title(f"{table.frequency_ghz:g} GHz, nothing masked or cleaned beyond that", size=10)
    last.invert_yaxis()
    last.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    _signed(last, last.set_xscale)
    figure.tight_layout()
    return figure


def _signed(axis: Axes, set_scale: Callable[..., None]) -> None:
    """Both signs over decades; half a σ either way in grey."""
    set_scale("symlog", linthresh=0.5, linscale=0.7)
    upright = set_scale == axis.set_yscale
    low, high = axis.get_ylim() if upright else axis.get_xlim()
    ticks = [x for x in (-100, -10, -1, 0, 1, 10, 100) if low <= x <= high]
    (axis.set_yticks if upright else axis.set_xticks)(ticks, [f"{x:g}" for x in ticks])
    span = axis.axhspan if upright else axis.axvspan
    span(-0.5, 0.5, color="0.9", zorder=0)


def nulls_figure(run: Run) -> Figure:
    """Every null by bin with its PTE, mean fields, and the power of κ̂ that needs not vanish.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : nine panels

    Raises
    ------
    CNNLensError
        if no null test has been measured
    """
    measured = [name for name in NULLS if nulls.path(run, name, 0).exists()]
    if not measured:
        raise CNNLensError(
            f"{run.config.products / 'nulls'}: no null test has been measured; run `cnnlens "
            "nulltest`"
        )
    table = nulls_table(run, measured)
    figure, axes = subplots(3, 3, figsize=(15, 11))
    *crosses, fields, powers = axes.ravel()
    for axis, t in zip(crosses, table.cross, strict=False):
        axis.errorbar(t.L, 1e3 * t.values, 1e3 * t.errors, fmt=".", color=f"C{NULLS.index(t.name)}")
        description = _with_symbols(t.description)
        numbers = f"χ² = {t.chi2:.1f} for {len(t.L)} bins, PTE {t.pte:.3f}"
        axis.set_title(f"{t.name}: {description}\n{numbers}", size=9)
        axis.set_ylabel(r"$\langle\kappa\hat\kappa\rangle/\langle\kappa\kappa\rangle$ [$10^{-3}$]")
    for axis in crosses[len(table.cross) :]:
        axis.set_visible(False)
    for i, t in enumerate(table.mean_fields):
        label = f"{t.name.removeprefix('mean ')}, PTE {t.pte:.3f}"
        fields.errorbar(t.L + 12 * i, t.values, t.errors, fmt=".", label=label)
    fields.set(ylabel=r"power of mean $\hat\kappa$ / $\langle\hat\kappa\hat\kappa\rangle$")
    fields.set_title("mean fields, of noise and B beyond the mask's symmetries", size=9)
    for axis in (*crosses, fields):
        axis.axhline(0, color="k", lw=0.8)
    _draw_powers(powers, table)
    if table.mean_fields:
        fields.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    for axis in axes.flat:
        axis.set_xlabel("$L$")
    figure.tight_layout()
    return figure


def _draw_powers(axis: Axes, table: NullTable) -> None:
    """Powers that need not vanish: of κ̂ over N_L, and of its components over its own."""
    for ratios, style in ((table.over_noise, ".-"), (table.over_own, ".:")):
        for p in ratios:
            null = p.name.removeprefix("mean, ").replace("odd part", "parity")
            colour = f"C{NULLS.index(null)}"
            axis.errorbar(p.L, p.values, p.errors, fmt=style, color=colour, label=p.name)
    axis.axhline(1, color="k", lw=0.8, ls=":")
    axis.set_yscale("log", nonpositive="mask")
    axis.set_title("power of κ̂/R over $N_L$; of components of κ̂ over κ̂'s (dotted)", size=9)
    if table.over_noise or table.over_own:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _with_symbols(description: str) -> str:
    for word, symbol in WORDS.items():
        description = description.replace(word, symbol)
    return description


def survey_nulls_figure(table: SurveyNulls) -> Figure:
    """Every null by bin with its PTE, those that fail in red; points of ranges of l or L have one
    bin.

    Parameters
    ----------
    table : the survey's null tests

    Returns
    -------
    figure : a panel for each test
    """
    tests = table.tests
    rows = -(-len(tests) // COLUMNS)
    figure, axes = subplots(rows, COLUMNS, figsize=(15, 3 * rows), squeeze=False)
    for axis, test in zip(axes.ravel(), tests, strict=False):
        colour = COLOURS.get(test.verdict, "C0")
        axis.errorbar(test.L, test.values, test.errors, fmt="o", color=colour, ms=4)
        axis.axhline(0, color="k", lw=0.8)
        name = test.name.replace(" x kappa", " × κ̂")
        numbers = f"PTE {test.pte:.3f}, {test.verdict}"
        # Above the power of ten of the axis.
        axis.set_title(f"{name}, {numbers}\n{_with_symbols(test.description)}", size=9, pad=14)
        axis.set(xlabel="$L$ or $l$", xlim=(0.0, 1.1 * max(other.L.max() for other in tests)))
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axis in axes.ravel()[len(tests) :]:
        axis.set_visible(False)
    figure.suptitle(f"{table.name}: {table.n_tiles} tiles")
    figure.tight_layout()
    return figure
