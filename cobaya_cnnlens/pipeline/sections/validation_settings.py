"""Sections of the validation: coverage, null tests and foregrounds."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from ...simulate.foregrounds import SourceCounts
from . import Section

# What a foreground's level is called, in tables and names of files.
LevelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=50)]


class Coverage(Section):
    """Surveys of the coverage test, whose true cosmologies are drawn from a prior.

    Attributes
    ----------
    skies : number of skies
    omch2 : the two ends of the prior of ω_c
    logA : those of ln(10¹⁰ A_s), which is then drawn and inferred too
    stratified : whether the truths are those of a low-discrepancy sequence
    patches : of each sky, spread evenly; all by default
    patches_each : patches of a survey
    """

    skies: int = Field(default=100, gt=0, le=100_000)
    omch2: tuple[float, float] = (0.1085, 0.1285)
    logA: tuple[float, float] | None = None
    stratified: bool = False
    patches: int | None = Field(default=None, gt=0)
    patches_each: int = Field(default=16, gt=0, le=100_000)

    @model_validator(mode="after")
    def _ascending(self) -> Coverage:
        for name in ("omch2", "logA"):
            ends = getattr(self, name)
            if ends is not None and not 0 < ends[0] < ends[1]:
                raise ValueError(f"{name} must hold the prior's lower and upper end")
        return self

    @property
    def prior(self) -> dict[str, tuple[float, float]]:
        """The two ends of every parameter that is drawn."""
        ends = {name: getattr(self, name) for name in ("omch2", "logA")}
        return {name: pair for name, pair in ends.items() if pair is not None}

    def changes(self) -> dict[str, dict[str, float]]:
        """The prior's ends as changes of the fiducial cosmology, by key of the configuration."""
        changes = {f"coverage.omch2.{i}": {"omch2": end} for i, end in enumerate(self.omch2)}
        for i, end in enumerate(self.logA or ()):
            changes[f"coverage.logA.{i}"] = {"As": 1e-10 * math.exp(end)}
        return changes


class Nulls(Section):
    """On how many test and training skies, the first of each set, null tests are made; on
    ``patches`` of each, spread evenly, all by default."""

    skies: int = Field(default=1, gt=0)
    patches: int | None = Field(default=None, gt=1)


class Foregrounds(Section):
    """Foregrounds that are added to test patches (:mod:`cobaya_cnnlens.simulate.foregrounds`).

    Attributes
    ----------
    skies : number of test skies, from the first on
    patches : of each, spread evenly; all by default
    frequency_ghz : of the maps
    sources : flux cuts in mJy
    dust, synchrotron : D_l^EE at l = 80 in µK², at 353 and 23 GHz, by name of the level
    """

    skies: int = Field(default=1, gt=0)
    patches: int | None = Field(default=None, gt=0)
    frequency_ghz: float = Field(default=150.0, ge=20, le=400)
    sources: list[Annotated[float, Field(gt=0, le=10_000)]] = Field(
        default=[3.0, 10.0, 30.0, 100.0]
    )
    dust: dict[LevelName, Annotated[float, Field(gt=0, le=1e5)]] = Field(
        default={"cleaned": 0.088, "bicep": 8.8, "half_sky": 120.0}
    )
    synchrotron: dict[LevelName, Annotated[float, Field(gt=0, le=1e5)]] = Field(
        default={"sky": 4.3}
    )

    @model_validator(mode="after")
    def _counted(self) -> Foregrounds:
        for cut in self.sources:
            SourceCounts(cut, self.frequency_ghz)
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources holds a value twice")
        return self
