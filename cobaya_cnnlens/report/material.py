"""What a report is made of: a plan that names configurations, and what their products hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ..errors import ConfigError
from ..pipeline.estimators import label_of
from ..pipeline.loading import load_as, load_config, load_study
from ..pipeline.run import Run
from ..validate.noise import NoiseTable, noise_table


@dataclass(frozen=True)
class ReportPlan:
    """A report's configuration file; paths of files are relative to it.

    ``out`` : folder of the report. ``estimators`` : a study of networks and of baselines, at one
    or several noise levels, on the same patches. ``seeds`` and ``cutout`` : studies of random
    initialisations and of patch sizes; ``trained`` : configurations whose learning curves are
    shown; ``coverage`` : one whose coverage skies are judged under ``release``, a shipped release
    or a file. What is left out is not in the report.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    title: str
    out: Path
    estimators: Path
    seeds: Path | None = None
    cutout: Path | None = None
    trained: list[Path] = field(default_factory=list)
    coverage: Path | None = None
    release: str = "refined_fiducial"


def load_plan(path: str | Path) -> ReportPlan:
    """Read a plan.

    Raises
    ------
    ConfigError
        if it cannot be read, or has a wrong key or value
    """
    plan = load_as(ReportPlan, path)
    near = Path(path).parent
    named = {
        key: near / found
        for key in ("estimators", "seeds", "cutout", "coverage")
        if (found := getattr(plan, key)) is not None
    }
    trained = [near / p for p in plan.trained]
    return ReportPlan(**{**vars(plan), **named, "trained": trained})


class Material:
    """A plan's configurations and their products, read when asked for and only once.

    Raises
    ------
    ConfigError
        if the study of estimators has no network
    """

    def __init__(self, plan: ReportPlan):
        self.plan = plan
        study = load_study(plan.estimators)
        self._paths = {config.name: path for path, config in study.items()}
        self.runs = [Run(config) for config in study.values()]
        self.networks = sorted((r for r in self.runs if r.config.baseline is None), key=level_of)
        if not self.networks:
            raise ConfigError(f"{plan.estimators}: no member is a network; a report needs one")
        # Analytic noise curves, which tables share.
        self.curves: dict = {}
        self._noise: dict[tuple[str, int], NoiseTable] = {}

    def path(self, run: Run) -> str:
        """How commands name a configuration of the study of estimators."""
        return self._paths[run.config.name]

    def label(self, run: Run) -> str:
        """A short name of an estimator: what it is, without the study's name or its noise."""
        baseline = run.config.baseline
        return "network" if baseline is None else label_of(baseline)

    @cached_property
    def levels(self) -> dict[float, list[Run]]:
        """All estimators by noise level in µK′, the network first."""
        found: dict[float, list[Run]] = {}
        for run in [*self.networks, *(r for r in self.runs if r.config.baseline is not None)]:
            found.setdefault(level_of(run), []).append(run)
        return dict(sorted(found.items()))

    def noise(self, run: Run, merge: int) -> NoiseTable:
        """Reconstruction noise of a configuration with ``merge`` bins together."""
        key = run.config.name, merge
        if key not in self._noise:
            self._noise[key] = noise_table(run, merge, self.curves)
        return self._noise[key]

    def study(self, path: Path) -> list[Run]:
        """The members of another study of the plan."""
        return [Run(config) for config in load_study(path).values()]

    def run(self, path: Path) -> Run:
        """Another configuration of the plan."""
        return Run(load_config(path))


def level_of(run: Run) -> float:
    """The instrument's noise in µK′."""
    return run.config.instrument.noise_uk_arcmin
