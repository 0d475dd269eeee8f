"""The report: every section, from products alone; what is missing does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..errors import CNNLensError
from . import inference_sections as inference
from . import sections
from .material import Material, ReportPlan
from .page import Missing, Section, write


@dataclass(frozen=True)
class Part:
    """A section: anchor, title, what fills it, the plan's key that it needs if any, and the
    commands that make its products."""

    name: str
    title: str
    fill: Callable[[Material, Section], None]
    key: str | None
    command: Callable[[Material], str]


def _on_first(*stages: str) -> Callable[[Material], str]:
    def commands(material: Material) -> str:
        path = material.path(material.networks[0])
        return " && ".join(f"cnnlens {stage.format(path=repr(path))}" for stage in stages)

    return commands


def _study(key: str) -> Callable[[Material], str]:
    workflow = "snakemake -s training/Snakefile --cores all --config pipeline="
    return lambda material: f"{workflow}{getattr(material.plan, key)}"


PARTS = (
    Part("maps", "Maps", sections.maps, None, _on_first("exhibit {path}")),
    Part("spectra", "Recovered power", sections.spectra, None, _study("estimators")),
    Part("noise", "Reconstruction noise", sections.noise, None, _study("estimators")),
    Part("errors", "Bandpower errors", sections.errors, None, _study("estimators")),
    Part("correlation", "Correlation", sections.correlation, None, _study("estimators")),
    Part("nulls", "Null tests", sections.nulls, None, _on_first("nulltest {path}")),
    Part(
        "cosmology",
        "Cosmology",
        inference.cosmology,
        None,
        _on_first(
            "reconstruct {path} --set survey-fiducial",
            "reconstruct {path} --set survey-low",
            "reconstruct {path} --set survey-high",
            "derivatives {path}",
            "nuisances {path}",
        ),
    ),
    Part("cutout", "Size of the cut-out", inference.cutout, "cutout", _study("cutout")),
    Part("seeds", "Initialisations", inference.seeds, "seeds", _study("seeds")),
    Part("learning", "Learning curves", inference.learning, "trained", _study("estimators")),
    Part(
        "coverage",
        "Coverage",
        inference.coverage,
        "coverage",
        lambda material: f"cnnlens coverage {material.plan.coverage}",
    ),
    Part("network", "The network", inference.network, None, _study("estimators")),
)


def make_report(plan: ReportPlan) -> tuple[Path, list[Missing]]:
    """Write the report of a plan.

    Returns
    -------
    path of the page, and what is missing from it

    Raises
    ------
    ConfigError
        if the study of estimators cannot be read or has no network
    """
    material = Material(plan)
    filled = []
    for part in tqdm(PARTS, desc="report", unit="section"):
        if part.key and not getattr(plan, part.key):
            continue
        section = Section(part.name, part.title)
        try:
            part.fill(material, section)
        except CNNLensError as error:
            section.missing.append(Missing(part.title, str(error), part.command(material)))
        filled.append(section)
    preface = [
        "Ours beside Caldeira et al. 2018 (arXiv:1810.01483, “the paper”), from product files. "
        "Errors are Monte-Carlo, 1σ. “Better” and “worse” mean beyond two standard errors of the "
        "difference; a scatter's own error is included."
    ]
    gaps = list(dict.fromkeys(gap for section in filled for gap in section.missing))
    return write(plan.out, plan.title, preface, filled), gaps
