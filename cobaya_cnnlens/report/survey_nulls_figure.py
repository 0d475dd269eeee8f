"""The null tests of a survey as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .drawing import subplots

if TYPE_CHECKING:
    from ..validate.survey_nulls import SurveyNulls

COLUMNS = 4
COLOURS = {"FAILS": "C3", "doubtful": "C1"}


def survey_nulls_figure(table: SurveyNulls) -> Figure:
    """Every null by bin with its PTE, those that fail in red; points of ranges of l or L have one
    bin."""
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
