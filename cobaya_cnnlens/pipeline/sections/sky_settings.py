"""Sections of the skies: how many there are, where their patches lie, and mock surveys."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from ...simulate.patches import PatchGeometry, closest_centres
from . import Section

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

    def check(self, patch: PatchGeometry) -> None:
        """Refuse patches that do not go onto the sky, or that lie over one another.

        Parameters
        ----------
        patch : their geometry
        """
        if self.rings:
            return
        if self.poles >= 6 * self.nside**2:
            raise ValueError(
                f"centres.poles {self.poles} leaves no patch on the sky; take fewer than "
                f"{6 * self.nside**2}"
            )
        diagonal = math.sqrt(2) * patch.size_deg
        if (closest := closest_centres(self.nside, self.poles, diagonal)) < diagonal:
            raise ValueError(
                f"centres.nside {self.nside} puts centres of patches {closest:.2f}° apart, less "
                f"than the diagonal {diagonal:.2f}° of a patch: what they share would count "
                "twice; take a smaller nside or patch.size_deg"
            )


class Survey(Section):
    """A mock survey.

    Attributes
    ----------
    omch2 : its true ω_c
    skies : how many skies it has for tests
    """

    omch2: float
    skies: int = Field(default=1, gt=0, le=100_000)
