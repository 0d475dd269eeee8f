"""What a field of a release can be declared as: key, shape, unit, meaning, group, sign.

:mod:`.fields` declares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

# Of the format: a reader refuses any other.
VERSION = 6
# Nuisances of the instrument in the order of the arrays, and what they are.
NUISANCE_MEANINGS = {
    "gain": "relative change of the sky's polarisation",
    "beam": "relative change of the beam's FWHM",
    "noise": "relative change of the noise rms",
}
NUISANCES = tuple(NUISANCE_MEANINGS)
# What simulations of an instrument change: the nuisances, and the rotation of the polarisation,
# which every survey measures by itself.
ROTATION = "angle"
SIMULATED = (*NUISANCES, ROTATION)
# Dimensions of the arrays whose length the format fixes.
LENGTHS = {"n_nuisances": len(NUISANCES), "n_rotation": 3}

# What is told wherever blinded bandpowers, or a posterior of theirs, are shown.
BLINDED = "blinded: a hidden offset moves bandpowers and parameters; chi2, PTE and errors are right"

KAPPA = "C_L^κκ, dimensionless"
KAPPA2 = "(C_L^κκ)²"


class Group(Enum):
    """Fields of a release that are present together, or absent together."""

    ALWAYS = "always"
    DEBIAS = "the noise debias from the survey's own E and B power"
    SECOND_ORDER = "the second order of that debias"
    PRIMARY = "the survey's E and B power as data"
    ROTATION = "the rotation of the polarisation that the survey measures"
    FIXED = "the noise debias that stays at the fiducial cosmology"


class Sign(Enum):
    """Which values an array may hold."""

    ANY = "any"
    POSITIVE = "positive"
    NOT_NEGATIVE = "not negative"


@dataclass(frozen=True)
class Blinding:
    """What a blinded release says of what it hides (:mod:`.blinding`).

    Attributes
    ----------
    key : names the key, 16 hex digits
    hidden : what the key opens; None of a combined release, whose surveys are opened one by one
    """

    key: str
    hidden: str | None


@dataclass(frozen=True)
class Numbers:
    """Declaration of an array.

    Attributes
    ----------
    key : section and name in the file, with a dot between
    shape : names of the dimensions, "+1" after one that is longer by one
    unit, meaning : for people
    group : the fields that are present with it
    sign : which values it may hold
    integers : whether it holds integers
    """

    key: str
    shape: tuple[str, ...]
    unit: str
    meaning: str
    group: Group = Group.ALWAYS
    sign: Sign = Sign.ANY
    integers: bool = False


def numbers(
    key: str,
    shape: str,
    unit: str,
    meaning: str,
    group: Group = Group.ALWAYS,
    sign: Sign = Sign.ANY,
    integers: bool = False,
) -> Any:
    """Declare an array as a field of a dataclass.

    Parameters
    ----------
    key : as of :class:`Numbers`
    shape : names of the dimensions, with spaces between
    unit, meaning, group, sign, integers : as of :class:`Numbers`

    Returns
    -------
    a field with the declaration in its metadata; empty by default unless its group is always there
    """
    declared = Numbers(key, tuple(shape.split()), unit, meaning, group, sign, integers)
    if group is Group.ALWAYS:
        return field(metadata={"numbers": declared})
    return field(metadata={"numbers": declared}, default_factory=_absent)


def _absent() -> np.ndarray:
    return np.zeros((0, 0))


def read_only(array: np.ndarray) -> np.ndarray:
    """Make an array read-only, in place.

    Parameters
    ----------
    array : of any shape

    Returns
    -------
    the same array
    """
    array.setflags(write=False)
    return array
