"""The pipeline's configuration, checked by pydantic: one section per stage.

:mod:`.loading` reads the files.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import ConfigError, InstrumentError
from ..simulate.foregrounds import SourceCounts
from ..simulate.instrument import FILES, Instrument
from ..simulate.patches import PatchGeometry, closest_centres
from ..simulate.shards import SkySettings
from ..theory.camb import CambSettings, Cosmology
from .estimators import own_options, registered
from .ranges import HALOFIT_VERSIONS, RANGES, check_ranges


def _plain_path(path: Path) -> Path:
    if not str(path).isprintable():
        raise ValueError("a path holds control characters; take them out")
    return path


FilePath = Annotated[Path, AfterValidator(_plain_path)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Kinds of baseline that leave out what was not seen.
FILTERS = ("wiener", "map")
# Sets of skies that have all patches, whatever `centres.spread` says.
WHOLE = ("train", "validation", "test")


class SkyCounts(Section):
    """Number of fiducial skies of each set. The sets never share phases."""

    train: int = Field(gt=0, le=100_000)
    validation: int = Field(gt=0, le=100_000)
    test: int = Field(gt=0, le=100_000)
    derivatives: int = Field(gt=0, le=100_000)


class PatchCentres(Section):
    """Where the patches of a sky lie.

    Attributes
    ----------
    nside : of the HEALPix map whose pixels are the centres
    poles : how many centres are left out at each pole
    rings : patches side by side in rings of equal latitude instead, as many as go, none over
        another
    spread : how many of a sky's patches, spread evenly over it, the sets other than train,
        validation and test take; all by default
    """

    nside: int = Field(default=4, gt=0, le=64)
    poles: int = Field(default=16, ge=0, le=24_576)
    rings: bool = False
    spread: int | None = Field(default=None, gt=0)

    def recipe(self, set_name: str) -> dict[str, Any]:
        """What determines where the patches of a set's skies lie.

        Parameters
        ----------
        set_name : name of the set of skies

        Returns
        -------
        mapping for JSON
        """
        where = {"rings": True} if self.rings else self.model_dump(include={"nside", "poles"})
        few = self.spread is not None and set_name not in WHOLE
        return where | ({"spread": self.spread} if few else {})


class Network(Section):
    """The network and where it comes from.

    Attributes
    ----------
    pretrained : a network to use as it is, instead of training, or several whose mean κ̂ is used
    initial : a trained network of the same width that training starts from
    kind : "resunet", the paper's on the maps, or "refined", a residual U-net on MAP features
        (:mod:`cobaya_cnnlens.reconstruct.refined`)
    width : channels: 64 in the paper's; at half the patch's resolution for "refined"
    dropout : its rate, of "resunet"
    seed : of the first weights
    """

    pretrained: FilePath | Annotated[list[FilePath], Field(min_length=1)] | None = None
    initial: FilePath | None = None
    kind: Literal["resunet", "refined"] = "resunet"
    width: int = Field(default=64, gt=0, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=1, ge=0, lt=2**32)


class Phase(Section):
    """One phase of training.

    Attributes
    ----------
    steps, batch : number of batches, and of patches in each
    crop : pixels along a side that a batch holds; 0 for the whole patch
    learning_rate, final_rate : at the start, and at the end of schedule "cosine"
    warmup : steps in which the rate rises to ``learning_rate``
    schedule : "cosine", or, of the last phase, "plateau": halved after 3 stale epochs, stopped
        after 10, as in the paper
    """

    steps: int = Field(gt=0, le=10**9)
    batch: int = Field(default=32, gt=0, le=100_000)
    crop: int = Field(default=0, ge=0)
    learning_rate: float = Field(gt=0, le=10)
    final_rate: float = Field(default=0.0, ge=0, le=10)
    warmup: int = Field(default=0, ge=0)
    schedule: str = Field(default="cosine", pattern="^(cosine|plateau)$")


class Training(Section):
    """How the network is trained; see ``training/README.md`` for what each choice bought.

    The loss is the mean squared error of E and κ in units of their variance.

    Attributes
    ----------
    phases : one after another
    clip_norm : largest norm of a gradient; None for no limit
    augment : whether patches are turned and flipped at random
    fresh_noise : whether each batch has noise of its own; else each patch has one realisation, as
        in the paper
    steps_per_epoch : after which the state is kept
    validation_patches : on which the loss is measured after each epoch
    jit_compile : whether XLA compiles the step, which takes a minute
    seed : of batches and noise
    """

    phases: list[Phase] = Field(min_length=1)
    clip_norm: float | None = Field(default=1.0, gt=0, le=1e6)
    augment: bool = True
    fresh_noise: bool = True
    steps_per_epoch: int = Field(default=200, gt=0, le=10**9)
    validation_patches: int = Field(default=160, gt=0, le=10**7)
    jit_compile: bool = True
    seed: int = Field(default=1, ge=0, lt=2**32)


class Refining(Section):
    """Files of the features from which a refining network learns.

    Attributes
    ----------
    batch : patches in a file
    """

    batch: int = Field(default=96, gt=0, le=10_000)


class Reconstruction(Section):
    """How the network is applied.

    Attributes
    ----------
    symmetries : 8 averages κ̂ over the symmetries of the square, at eight times the cost of 1
    jit_compile : whether XLA compiles the network, which is not worth it for a small one
    """

    symmetries: Literal[1, 8] = 1
    jit_compile: bool = True


class Baseline(Section):
    """An estimator without a network, to be measured in a network's place.

    Its mean field comes from the first training sky. A kind that another package registers
    (:mod:`.estimators`) may have options of its own.

    Attributes
    ----------
    kind : "quadratic"; "wiener", the quadratic estimator of Wiener-filtered maps; or "map", the
        maximum a posteriori (MAP) iteration
    combination : of filtered E and B in the quadratic estimator
    leakage : of E into B by the mask: left in ("naive", as in the paper) or taken out ("pure")
    passes : quasi-Newton steps of the MAP iteration, of which 6 are best
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str = Field(max_length=50)
    combination: Literal["eb", "ee", "mv"] = "eb"
    leakage: Literal["naive", "pure"] = "naive"
    passes: int = Field(default=6, ge=2, le=1000)

    @field_validator("kind")
    @classmethod
    def _registered(cls, kind: str) -> str:
        registered(kind)
        return kind

    @model_validator(mode="after")
    def _own_options(self) -> Baseline:
        extra = self.model_extra
        assert extra is not None  # by extra="allow"
        extra.update(own_options(self.kind, dict(extra)))
        return self


class Bandpowers(Section):
    """Bins of equal width in L.

    Attributes
    ----------
    lmin : where the first bin begins
    width : of a bin, as in the paper
    n_bins : number of bins
    """

    lmin: int = Field(default=36, gt=0)
    width: int = Field(default=127, gt=0)
    n_bins: int = Field(default=24, gt=0)


class Derivatives(Section):
    """Derivatives of the noise bias in bands of both spectra, on skies of their own.

    Attributes
    ----------
    kk_edges, ee_edges : of the bands [edge_i, edge_i+1) of C^κκ and unlensed C^EE
    step : ε, by which a band is scaled up and down
    omch2_step : shift of ω_c at which the second order is measured
    patches : of each sky, spread evenly; all by default
    """

    kk_edges: list[int] = Field(min_length=2)
    ee_edges: list[int] = Field(min_length=2)
    step: float = Field(default=0.1, gt=0, lt=1)
    omch2_step: float = Field(default=0.01, gt=0, lt=0.05)
    patches: int | None = Field(default=None, gt=0)

    def recipe(self) -> dict[str, Any]:
        """What determines derivatives by bands."""
        return self.model_dump(exclude={"omch2_step", *(() if self.patches else ("patches",))})

    @model_validator(mode="after")
    def _ascending(self) -> Derivatives:
        for name in ("kk_edges", "ee_edges"):
            edges = getattr(self, name)
            if any(b <= a for a, b in itertools.pairwise(edges)):
                raise ValueError(f"{name} must ascend")
        return self


class Nuisances(Section):
    """Steps of the instrument's systematics, at which test skies are observed again.

    Attributes
    ----------
    skies : number of test skies, from the first on
    gain, beam, noise : relative steps of the gain, of the beam's width and of the noise rms
    angle : step in degrees
    patches : of each sky, spread evenly; all by default
    """

    skies: int = Field(default=1, gt=0)
    gain: float = Field(default=0.01, gt=0, lt=0.5)
    beam: float = Field(default=0.05, gt=0, lt=0.5)
    noise: float = Field(default=0.05, gt=0, lt=0.5)
    angle: float = Field(default=0.5, gt=0, lt=20)
    patches: int | None = Field(default=None, gt=0)

    def recipe(self) -> dict[str, Any]:
        """What determines a sky's nuisances."""
        return self.model_dump(exclude={"skies", *(() if self.patches else ("patches",))})


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


class Fit(Section):
    """Cosmologies to which the second order of the debias from the data is fitted.

    Attributes
    ----------
    sky : number of the test sky that is made again at each
    patches : of it, spread evenly; all by default
    directions : number of directions of the changes of C^EE that have a second order
    at : changes of the fiducial cosmology
    """

    sky: int = Field(default=0, ge=0)
    patches: int | None = Field(default=None, gt=0)
    directions: int = Field(default=2, gt=0, le=4)
    at: list[dict[str, float]]

    @model_validator(mode="after")
    def _enough(self) -> Fit:
        n = self.directions
        # First and second order in the directions of C^EE and the one of C^κκ.
        terms = (n + 1) + (n + 1) * (n + 2) // 2
        if len(self.at) <= terms:
            raise ValueError(
                f"at has {len(self.at)} cosmologies, a fit of {terms} terms needs more"
            )
        return self


class Points(Section):
    """Cosmologies at which the model of the noise bias is tested.

    Attributes
    ----------
    first, skies : number of the first test sky that is made again at each, and how many
    patches : of each sky, spread evenly; all by default
    at : changes of the fiducial cosmology, by name of a group
    fit : those to which a part of the model is fitted
    """

    first: int = Field(default=0, ge=0)
    skies: int = Field(default=1, gt=0)
    patches: int | None = Field(default=None, gt=0)
    at: dict[str, list[dict[str, float]]] = {}
    fit: Fit | None = None

    @property
    def skies_of(self) -> range:
        """Numbers of the test skies."""
        return range(self.first, self.first + self.skies)


class Nulls(Section):
    """On how many test and training skies, the first of each set, null tests are made; on
    ``patches`` of each, spread evenly, all by default."""

    skies: int = Field(default=1, gt=0)
    patches: int | None = Field(default=None, gt=1)


# What a foreground's level is called, in tables and names of files.
LevelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=50)]


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
    sources: list[Annotated[float, Field(gt=0, le=10_000)]] = [3.0, 10.0, 30.0, 100.0]
    dust: dict[LevelName, Annotated[float, Field(gt=0, le=1e5)]] = {
        "cleaned": 0.088,
        "bicep": 8.8,
        "half_sky": 120.0,
    }
    synchrotron: dict[LevelName, Annotated[float, Field(gt=0, le=1e5)]] = {"sky": 4.3}

    @model_validator(mode="after")
    def _counted(self) -> Foregrounds:
        for cut in self.sources:
            SourceCounts(cut, self.frequency_ghz)
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources holds a value twice")
        return self


class Survey(Section):
    """A mock survey.

    Attributes
    ----------
    omch2 : its true ω_c
    skies : how many skies it has for tests
    """

    omch2: float
    skies: int = Field(default=1, gt=0, le=100_000)


class Config(Section):
    """The whole pipeline, from one file: a section for each stage, and what they share.

    Attributes
    ----------
    name, seed : of the configuration, and of all its random numbers
    products : folder of what the stages make
    skies_from, features_from : folders of skies and features that configurations share; those of
        ``products`` by default
    shipped : file of bandpowers that commands read where ``products`` has none (`cnnlens ship`
        writes it)
    data_debias : whether releases hold the noise debias from the survey's own E and B power
    surveys : mock surveys by name
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)
    seed: int = Field(ge=0, lt=2**63)
    products: FilePath
    skies_from: FilePath | None = None
    features_from: FilePath | None = None
    shipped: FilePath | None = None
    cosmology: Cosmology = Cosmology()
    camb: CambSettings = CambSettings()
    sky: SkySettings = SkySettings()
    patch: PatchGeometry = PatchGeometry()
    centres: PatchCentres = PatchCentres()
    instrument: Instrument = Instrument()
    skies: SkyCounts
    network: Network
    training: Training
    refining: Refining = Refining()
    reconstruction: Reconstruction = Reconstruction()
    baseline: Baseline | None = None
    bandpowers: Bandpowers = Bandpowers()
    data_debias: bool = False
    derivatives: Derivatives
    nuisances: Nuisances = Nuisances()
    coverage: Coverage = Coverage()
    points: Points = Points()
    nulls: Nulls = Nulls()
    foregrounds: Foregrounds = Foregrounds()
    surveys: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=50)], Survey]

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for section, ranges in RANGES.items():
            check_ranges(section, getattr(self, section), ranges)
        self._check_cosmologies()
        self._check_patches()
        self._measure_instrument()
        if self.camb.halofit_version not in HALOFIT_VERSIONS:
            raise ValueError(
                f"camb.halofit_version {self.camb.halofit_version!r:.40} is none of CAMB's: "
                f"{', '.join(HALOFIT_VERSIONS)}"
            )
        if self.sky.band_limit >= self.patch.nyquist:
            raise ValueError(
                f"sky.band_limit {self.sky.band_limit} must lie below the patch's Nyquist "
                f"multipole {self.patch.nyquist:.0f}"
            )
        if self.sky.band_limit > self.sky.lmax:
            raise ValueError(
                f"sky.band_limit {self.sky.band_limit} must not lie above sky.lmax {self.sky.lmax}"
            )
        if self.camb.lmax < self.sky.lmax:
            raise ValueError(f"camb.lmax must reach sky.lmax = {self.sky.lmax}")
        bins = self.bandpowers
        if (last := bins.lmin + bins.width * bins.n_bins) > self.patch.nyquist:
            raise ValueError(
                f"the bandpowers' last bin ends at L = {last}, beyond the patch's Nyquist "
                f"multipole {self.patch.nyquist:.0f}; use fewer or narrower bins"
            )
        for name in ("kk_edges", "ee_edges"):
            edges = getattr(self.derivatives, name)
            if edges[0] < 2 or edges[-1] > self.sky.lmax + 1:
                raise ValueError(
                    f"derivatives.{name} must lie between 2 and sky.lmax + 1 = {self.sky.lmax + 1}"
                )
        self._check_training()
        for name in ("nuisances", "points", "nulls", "foregrounds"):
            if (skies := getattr(self, name).skies) > self.skies.test:
                raise ValueError(
                    f"{name}.skies is {skies}, but there are {self.skies.test} test skies"
                )
        fit = self.points.fit
        for key, sky in (
            ("first", self.points.skies_of[-1]),
            *((("fit.sky", fit.sky),) if fit is not None else ()),
        ):
            if sky >= self.skies.test:
                raise ValueError(
                    f"points.{key} asks for test sky {sky}, but the last is {self.skies.test - 1}"
                )
        if fit is not None and not self.data_debias:
            raise ValueError("points.fit is of the noise debias from the data: set data_debias")
        if fit is not None and self.points.at and fit.sky in self.points.skies_of:
            raise ValueError(
                f"points.fit.sky {fit.sky} is among the skies that test the fit; choose another, "
                "or another points.first"
            )
        if self.nulls.skies > self.skies.train:
            raise ValueError(
                f"nulls.skies is {self.nulls.skies}, but there are {self.skies.train} training "
                "skies"
            )
        return self

    def _check_training(self) -> None:
        """Crops that fit, rates that fall, inputs that tell what a network must know."""
        sizes = {"patch.n_pixels": self.patch.n_pixels}
        for i, phase in enumerate(self.training.phases):
            sizes[f"training.phases.{i}.crop"] = phase.crop
            if phase.schedule == "plateau" and i + 1 < len(self.training.phases):
                raise ValueError(f"training.phases.{i}: only the last phase can be a plateau")
            if phase.final_rate > phase.learning_rate or phase.warmup > phase.steps:
                raise ValueError(
                    f"training.phases.{i}: final_rate must not lie above learning_rate, nor "
                    "warmup above steps"
                )
        for key, size in sizes.items():
            if size % 4 or size > self.patch.n_pixels:
                raise ValueError(
                    f"{key} is {size}; the network needs multiples of 4, at most the patch's "
                    f"{self.patch.n_pixels} pixels"
                )
        self._check_refined()

    def _measure_instrument(self) -> None:
        """Noise level and width of the beam that the instrument's files have, put in; and whether
        the estimator can take what the instrument is."""
        for key in FILES:
            if (path := getattr(self.instrument, key)) is not None:
                _plain_path(path)
        try:
            instrument = self.instrument.measured(self.patch)
        except InstrumentError as error:
            raise ValueError(f"instrument: {error}") from None
        check_ranges("instrument", instrument, RANGES["instrument"])
        object.__setattr__(self, "instrument", instrument)
        baseline = self.baseline
        keys = [k for k in ("ivar_file", "one_over_f") if getattr(instrument, k) is not None]
        if keys and baseline is None and self.network.pretrained is None:
            raise ValueError(
                f"instrument.{keys[0]}: networks are trained on white noise; name a trained one as "
                "network.pretrained, or a baseline"
            )
        filters = self.network.kind == "refined" if baseline is None else baseline.kind in FILTERS
        if not filters and not instrument.seen(self.patch).all():
            raise ValueError(
                f"instrument.ivar_file {instrument.ivar_file}: holds pixels that were not seen, of "
                "which a ResUNet or quadratic estimator knows nothing; take network.kind 'refined' "
                f"or a baseline of {', '.join(FILTERS)}"
            )

    def _check_refined(self) -> None:
        """What a refining network takes, and what it does not."""
        if self.network.kind != "refined":
            return
        if self.network.dropout:
            raise ValueError("network.dropout is of kind 'resunet'; remove it")
        if self.patch.n_pixels % 16:
            raise ValueError(
                f"patch.n_pixels is {self.patch.n_pixels}; a refining network needs multiples of 16"
            )
        if any(phase.crop or phase.schedule != "cosine" for phase in self.training.phases):
            raise ValueError(
                "a refining network learns whole patches at rates that fall as a cosine; leave "
                "crop and schedule out of training.phases"
            )

    def _check_cosmologies(self) -> None:
        """Every cosmology that some stage will ask CAMB for."""
        changes: dict[str, dict[str, float]] = {}
        for group, points in self.points.at.items():
            changes |= {f"points.at.{group}.{i}": c for i, c in enumerate(points)}
        if self.points.fit is not None:
            changes |= {f"points.fit.at.{i}": c for i, c in enumerate(self.points.fit.at)}
        changes |= {f"surveys.{name}": {"omch2": s.omch2} for name, s in self.surveys.items()}
        changes |= {f"coverage.omch2.{i}": {"omch2": x} for i, x in enumerate(self.coverage.omch2)}
        if self.coverage.logA is not None:
            ends = enumerate(self.coverage.logA)
            changes |= {f"coverage.logA.{i}": {"As": 1e-10 * math.exp(x)} for i, x in ends}
        for sign, omch2 in zip("-+", self.shifted_omch2(), strict=True):
            changes[f"cosmology.omch2 {sign} derivatives.omch2_step"] = {"omch2": omch2}
        for key, change in changes.items():
            if unknown := set(change) - set(asdict(self.cosmology)):
                raise ValueError(
                    f"{key}: no cosmological parameter {', '.join(unknown)}; "
                    f"there are {', '.join(asdict(self.cosmology))}"
                )
            check_ranges(key, self.cosmology.vary(**change), RANGES["cosmology"])

    def _check_patches(self) -> None:
        """Patches that fit into the mask's tapers and onto the sky, none over another."""
        patch, centres = self.patch, self.centres
        if patch.pad > patch.n_pixels:
            raise ValueError(
                f"patch.pad {patch.pad} must not lie above patch.n_pixels {patch.n_pixels}"
            )
        if 2 * self.instrument.taper_deg > patch.size_deg:
            raise ValueError(
                f"instrument.taper_deg {self.instrument.taper_deg:g} leaves no pixel of a patch of "
                f"{patch.size_deg:g}° unmasked; take at most half of patch.size_deg"
            )
        if centres.rings:
            return
        if centres.poles >= 6 * centres.nside**2:
            raise ValueError(
                f"centres.poles {centres.poles} leaves no patch on the sky; take fewer than "
                f"{6 * centres.nside**2}"
            )
        diagonal = math.sqrt(2) * patch.size_deg
        if (closest := closest_centres(centres.nside, centres.poles, diagonal)) < diagonal:
            raise ValueError(
                f"centres.nside {centres.nside} puts centres of patches {closest:.2f}° apart, less "
                f"than the diagonal {diagonal:.2f}° of a patch: what they share would count "
                "twice; take a smaller nside or patch.size_deg"
            )

    def set_names(self) -> list[str]:
        """All sky sets: the fiducial ones and ``survey-NAME`` for each survey."""
        return [*SkyCounts.model_fields, *(f"survey-{name}" for name in self.surveys)]

    def set_size(self, name: str) -> int:
        """Number of skies in a set.

        Parameters
        ----------
        name : of the set

        Returns
        -------
        number of skies

        Raises
        ------
        ConfigError
            if there is no such set
        """
        self._check_set(name)
        if name.startswith("survey-"):
            return self.surveys[name.removeprefix("survey-")].skies
        return getattr(self.skies, name)

    def set_cosmology(self, name: str) -> Cosmology:
        """True cosmology of the skies of a set.

        Parameters
        ----------
        name : of the set

        Returns
        -------
        cosmology

        Raises
        ------
        ConfigError
            if there is no such set
        """
        self._check_set(name)
        if name.startswith("survey-"):
            return self.cosmology.vary(omch2=self.surveys[name.removeprefix("survey-")].omch2)
        return self.cosmology

    def _check_set(self, name: str) -> None:
        if name not in self.set_names():
            raise ConfigError(
                f"configuration '{self.name}': no sky set '{name}'; "
                f"it has {', '.join(self.set_names())}"
            )

    def shifted_omch2(self) -> tuple[float, float]:
        """ω_c − step and ω_c + step, at which the second order is measured."""
        centre, step = self.cosmology.omch2, self.derivatives.omch2_step
        return round(centre - step, 8), round(centre + step, 8)

    def check_index(self, name: str, index: int, size: int | None = None) -> None:
        """Refuse a sky that a set does not have, or that is not among ``size``.

        Parameters
        ----------
        name : of the set
        index : number of the sky
        size : number of skies; that of the set by default

        Raises
        ------
        ConfigError
        """
        size = self.set_size(name) if size is None else size
        if not 0 <= index < size:
            raise ConfigError(
                f"configuration '{self.name}': set '{name}' has skies 0 to {size - 1}, not {index}"
            )

    @property
    def first_survey(self) -> str:
        """The survey whose release stands for the configuration where any would do.

        Raises
        ------
        ConfigError
            if there is none
        """
        if not self.surveys:
            raise ConfigError(
                f"configuration '{self.name}': key 'surveys' is empty, but a release needs the "
                "data of one; add a survey"
            )
        return next(iter(self.surveys))

    @property
    def sky_directory(self) -> Path:
        """Folder of the skies."""
        return self.skies_from or self.products / "skies"

    @property
    def feature_directory(self) -> Path:
        """Folder of the features."""
        return self.features_from or self.products / "features"
