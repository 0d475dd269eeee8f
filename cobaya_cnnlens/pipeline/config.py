"""The pipeline's configuration: its sections, and what must hold between them.

:mod:`.loading` reads the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from ..errors import ConfigError, InstrumentError
from ..simulate.instrument import FILES, Instrument
from ..simulate.patches import PatchGeometry
from ..simulate.shards import SkySettings
from ..theory.camb import CambSettings, Cosmology
from .ranges import HALOFIT_VERSIONS, RANGES, check_ranges
from .sections import FilePath, Section, plain_path
from .sections.calibration_settings import Bandpowers, Derivatives, Nuisances, Points
from .sections.estimator_settings import (
    FILTERS,
    Baseline,
    Network,
    Reconstruction,
    Refining,
    Training,
)
from .sections.sky_settings import PatchCentres, SkyCounts, Survey
from .sections.validation_settings import Coverage, Foregrounds, Nulls


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
        patch, lmax = self.patch, self.sky.lmax
        self._check_cosmologies()
        self._check_patch()
        self.centres.check(patch)
        self._measure_instrument()
        self._check_multipoles()
        self.bandpowers.check(patch.nyquist)
        self.derivatives.check(lmax)
        self.training.check(patch.n_pixels)
        if self.network.kind == "refined":
            self.training.check_refined(self.network, patch.n_pixels)
        for name in ("nuisances", "nulls", "foregrounds"):
            if (skies := getattr(self, name).skies) > self.skies.test:
                raise ValueError(
                    f"{name}.skies is {skies}, but there are {self.skies.test} test skies"
                )
        n_bands = len(self.derivatives.ee_edges) - 1
        self.points.check(self.skies.test, self.data_debias, n_bands)
        if self.nulls.skies > self.skies.train:
            raise ValueError(
                f"nulls.skies is {self.nulls.skies}, but there are {self.skies.train} training "
                "skies"
            )
        return self

    def _check_cosmologies(self) -> None:
        """Every cosmology that some stage will ask CAMB for."""
        changes = self.points.changes() | self.coverage.changes()
        changes |= {f"surveys.{name}": {"omch2": s.omch2} for name, s in self.surveys.items()}
        for sign, omch2 in zip("-+", self.shifted_omch2(), strict=True):
            changes[f"cosmology.omch2 {sign} derivatives.omch2_step"] = {"omch2": omch2}
        for key, change in changes.items():
            if unknown := set(change) - set(asdict(self.cosmology)):
                raise ValueError(
                    f"{key}: no cosmological parameter {', '.join(unknown)}; "
                    f"there are {', '.join(asdict(self.cosmology))}"
                )
            check_ranges(key, self.cosmology.vary(**change), RANGES["cosmology"])

    def _check_patch(self) -> None:
        """A patch that has a pixel beyond its padding and the mask's taper."""
        patch, taper = self.patch, self.instrument.taper_deg
        if patch.pad > patch.n_pixels:
            raise ValueError(
                f"patch.pad {patch.pad} must not lie above patch.n_pixels {patch.n_pixels}"
            )
        if 2 * taper > patch.size_deg:
            raise ValueError(
                f"instrument.taper_deg {taper:g} leaves no pixel of a patch of "
                f"{patch.size_deg:g}° unmasked; take at most half of patch.size_deg"
            )

    def _check_multipoles(self) -> None:
        """Spectra that reach as far as skies, and skies as far as patches need."""
        if self.camb.halofit_version not in HALOFIT_VERSIONS:
            raise ValueError(
                f"camb.halofit_version {self.camb.halofit_version!r:.40} is none of CAMB's: "
                f"{', '.join(HALOFIT_VERSIONS)}"
            )
        limit, lmax = self.sky.band_limit, self.sky.lmax
        if limit >= self.patch.nyquist:
            raise ValueError(
                f"sky.band_limit {limit} must lie below the patch's Nyquist "
                f"multipole {self.patch.nyquist:.0f}"
            )
        if limit > lmax:
            raise ValueError(f"sky.band_limit {limit} must not lie above sky.lmax {lmax}")
        if self.camb.lmax < lmax:
            raise ValueError(f"camb.lmax must reach sky.lmax = {lmax}")

    def _measure_instrument(self) -> None:
        """Noise level and width of the beam that the instrument's files have, put in; and whether
        the estimator can take what the instrument is."""
        for key in FILES:
            if (path := getattr(self.instrument, key)) is not None:
                plain_path(path)
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
        if not filters and self.reconstruction.lmin_b:
            raise ValueError(
                f"reconstruction.lmin_b is {self.reconstruction.lmin_b}; a ResUNet or quadratic "
                "estimator uses B modes of all multipoles: take network.kind 'refined' or a "
                f"baseline of {', '.join(FILTERS)}"
            )
        if not filters and not instrument.seen(self.patch).all():
            raise ValueError(
                f"instrument.ivar_file {instrument.ivar_file}: holds pixels that were not seen, of "
                "which a ResUNet or quadratic estimator knows nothing; take network.kind 'refined' "
                f"or a baseline of {', '.join(FILTERS)}"
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

    def indices(
        self, name: str, chosen: Iterable[int] | None = None, size: int | None = None
    ) -> list[int]:
        """Numbers of the skies of a set, or of those among them that are asked for.

        Parameters
        ----------
        name : of the set
        chosen : numbers of some skies; all by default
        size : number of skies; that of the set by default

        Returns
        -------
        numbers of the skies

        Raises
        ------
        ConfigError
            if the set does not have one of them
        """
        size = self.set_size(name) if size is None else size
        numbers = list(range(size) if chosen is None else chosen)
        for index in numbers:
            self.check_index(name, index, size)
        return numbers

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
