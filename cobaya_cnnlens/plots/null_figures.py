"""Figures of null tests: those of a configuration and those of a survey."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ..errors import CNNLensError
from ..pipeline.run import Run
from ..validate import nulls
from ..validate.null_tests import nulls_table
from ..validate.nulls import NULLS
from .drawing import subplots

if TYPE_CHECKING:
    from ..validate.survey_nulls import SurveyNulls

COLUMNS = 4
COLOURS = {"FAILS": "C3", "doubtful": "C1"}


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
    If no null test has been measured.
    """
    made = [name for name in NULLS if nulls.path(run, name, 0).exists()]
    if not made:
        raise CNNLensError(
            f"{run.config.products / 'nulls'}: no null test has been measured; run `cnnlens "
            "nulltest`"
        )
    table = nulls_table(run, made)
    figure, axes = subplots(3, 3, figsize=(15, 11))
    flat = axes.ravel()
    for axis, t in zip(flat, table.cross, strict=False):
        axis.errorbar(t.L, 1e3 * t.values, 1e3 * t.errors, fmt=".", color=f"C{NULLS.index(t.name)}")
        what = t.what.replace("kappa", "κ").replace("khat", "κ̂").replace(" x ", " × ")
        title = f"{t.name}: {what}"
        title += f"\nχ² = {t.chi2:.1f} for {len(t.L)} bins, PTE {t.pte:.3f}"
        axis.set_title(title, size=9)
        axis.set_ylabel(r"$\langle\kappa\hat\kappa\rangle/\langle\kappa\kappa\rangle$ [$10^{-3}$]")
    for axis in flat[len(table.cross) : -2]:
        axis.set_visible(False)
    for i, t in enumerate(table.mean_fields):
        label = f"{t.name.removeprefix('mean ')}, PTE {t.pte:.3f}"
        axis = flat[-2]
        axis.errorbar(t.L + 12 * i, t.values, t.errors, fmt=".", label=label)
    flat[-2].set(ylabel=r"power of mean $\hat\kappa$ / $\langle\hat\kappa\hat\kappa\rangle$")
    flat[-2].set_title("mean fields, of noise and B beyond the mask's symmetries", size=9)
    for p in table.over_noise:
        colour = f"C{NULLS.index(p.name)}"
        flat[-1].errorbar(p.L, p.values, p.errors, fmt=".-", color=colour, label=p.name)
    for p in table.over_own:
        name = p.name.removeprefix("mean, ").replace("odd part", "parity")
        colour = f"C{NULLS.index(name)}"
        flat[-1].errorbar(p.L, p.values, p.errors, fmt=".:", color=colour, label=p.name)
    flat[-1].axhline(1, color="k", lw=0.8, ls=":")
    flat[-1].set_yscale("log", nonpositive="mask")
    flat[-1].set_title("power of κ̂/R over $N_L$; of parts of κ̂ over κ̂'s (dotted)", size=9)
    for axis, place in (
        (flat[-2], {}),
        (flat[-1], {"loc": "center left", "bbox_to_anchor": (1, 0.5)}),
    ):
        if axis.has_data():
            axis.legend(fontsize=8, **place)
    for axis in flat[:-1]:
        axis.axhline(0, color="k", lw=0.8)
    for axis in flat:
        axis.set_xlabel("$L$")
    figure.tight_layout()
    return figure


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
        what = test.what.replace("khat", "κ̂").replace(" x ", " × ").replace(" - ", " − ")
        axis.set_title(
            f"{test.name.replace(' x kappa', ' × κ̂')}, PTE {test.pte:.3f}, {test.verdict}\n{what}",
            size=9,
        )
        axis.set_xlabel("$L$ or $l$")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axis in axes.ravel()[len(tests) :]:
        axis.set_visible(False)
    figure.suptitle(f"{table.name}: {table.n_tiles} tiles")
    figure.tight_layout()
    return figure
