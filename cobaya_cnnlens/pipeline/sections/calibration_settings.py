"""Sections of the calibration: bins, derivatives, nuisances, and other cosmologies."""

from __future__ import annotations

import itertools
from typing import Any

from pydantic import Field, NonNegativeInt, model_validator

from ...likelihood.spectra import n_terms
from . import Section


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

    def check(self, nyquist: float) -> None:
        """Refuse bins beyond what patches hold.

        Parameters
        ----------
        nyquist : multipole of the patches
        """
        if (last := self.lmin + self.width * self.n_bins) > nyquist:
            raise ValueError(
                f"the bandpowers' last bin ends at L = {last}, beyond the patch's Nyquist "
                f"multipole {nyquist:.0f}; use fewer or narrower bins"
            )


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

    def check(self, lmax: int) -> None:
        """Refuse bands beyond the skies' multipoles.

        Parameters
        ----------
        lmax : of the skies
        """
        for name in ("kk_edges", "ee_edges"):
            edges = getattr(self, name)
            if edges[0] < 2 or edges[-1] > lmax + 1:
                raise ValueError(
                    f"derivatives.{name} must lie between 2 and sky.lmax + 1 = {lmax + 1}"
                )


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


class Fit(Section):
    """The response surface of the debias from the data (docs/noise-bias, eq. 11).

    Attributes
    ----------
    cosmologies : changes of the fiducial one, at which it is fitted
    skies : numbers of the test skies, which the cosmologies take in turn
    patches : of each cosmology. Cosmologies of one sky have different patches, as far as they
        suffice; by default each has all patches of its sky.
    directions : number of directions of the changes of C^EE that have an amplitude
    """

    cosmologies: list[dict[str, float]]
    skies: list[NonNegativeInt] = Field(default=[0], min_length=1)
    patches: int | None = Field(default=None, gt=0)
    directions: int = Field(default=3, gt=0, le=4)


class CosmologyGroup(Section):
    """Cosmologies at which a test sky is made again.

    Attributes
    ----------
    sky : number of the test sky
    cosmologies : changes of the fiducial one
    """

    sky: int = Field(default=0, ge=0)
    cosmologies: list[dict[str, float]]


class Points(Section):
    """Cosmologies at which the model of the noise bias is fitted and tested.

    Attributes
    ----------
    patches : of each sky at which it is tested, spread evenly; all by default
    at : the cosmologies at which it is tested, by name of a group
    fit : the response surface; without one, the second order is along ω_c alone
    """

    patches: int | None = Field(default=None, gt=0)
    at: dict[str, CosmologyGroup] = Field(default={})
    fit: Fit | None = None

    def changes(self) -> dict[str, dict[str, float]]:
        """Changes of the fiducial cosmology, by key of the configuration."""
        groups = {f"at.{name}": group.cosmologies for name, group in self.at.items()}
        if self.fit is not None:
            groups["fit"] = self.fit.cosmologies
        return {
            f"points.{name}.cosmologies.{i}": change
            for name, cosmologies in groups.items()
            for i, change in enumerate(cosmologies)
        }

    def check(self, n_test: int, data_debias: bool, n_bands: int) -> None:
        """Refuse test skies that are not there, and a fit that is not used or tests itself.

        Parameters
        ----------
        n_test : number of test skies
        data_debias : whether releases are debiased by their data
        n_bands : number of bands of C^EE, of which directions are made

        Raises
        ------
        ValueError
        """
        skies = {f"at.{name}.sky": [group.sky] for name, group in self.at.items()}
        if self.fit is not None:
            skies["fit.skies"] = self.fit.skies
        for key, numbers in skies.items():
            if max(numbers) >= n_test:
                raise ValueError(
                    f"points.{key} is {max(numbers)}, but the last test sky is {n_test - 1}"
                )
        if self.fit is None:
            return
        if not data_debias:
            raise ValueError("points.fit is of the debias from the data: set data_debias")
        if self.fit.directions > n_bands:
            raise ValueError(
                f"points.fit.directions is {self.fit.directions}, but derivatives.ee_edges make "
                f"{n_bands} bands of C^EE; take no more directions than bands"
            )
        # First and second order in the directions of C^EE and the one of C^κκ.
        needed, n_cosmologies = n_terms(self.fit.directions + 1), len(self.fit.cosmologies)
        if n_cosmologies <= needed:
            raise ValueError(
                f"points.fit has {n_cosmologies} cosmologies, a fit of {needed} terms needs more"
            )
        for name, group in self.at.items():
            if group.sky in self.fit.skies:
                raise ValueError(
                    f"points.at.{name}.sky {group.sky} is one of the fit, which it tests; choose "
                    "another"
                )
