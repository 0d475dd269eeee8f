"""Units as FITS headers spell them, parsed by astropy: only the right dimension passes."""

from __future__ import annotations

import re

from astropy import units

from ..errors import MapError

TEMPERATURE, INVERSE_VARIANCE, LEVEL = "uK", "uK-2", "uK arcmin"
# A message says what a unit is the unit of, and what to do if another one is needed.
QUANTITIES = {
    TEMPERATURE: "a temperature or its rms",
    INVERSE_VARIANCE: "an inverse variance",
    LEVEL: "a noise level",
    "uK2": "a variance",
}
MENDS = {
    TEMPERATURE: "write the unit of Q and U, uK or K",
    INVERSE_VARIANCE: "an inverse variance is in uK^-2 or K^-2: give 1/variance or 1/rms^2, or a "
    "noise level as --level",
    LEVEL: "a noise level is in uK arcmin: multiply the rms of a pixel by its side in arcmin, or "
    "give an inverse variance as --ivar",
}


def unit_option(text: str) -> float:
    """Factor to µK of the unit that a user gives as ``--unit``.

    Parameters
    ----------
    text : uK, mK or K

    Returns
    -------
    the factor

    Raises
    ------
    MapError
    """
    try:
        return factor_of(text, TEMPERATURE)
    except ValueError:
        raise MapError(f"--unit {text}: give uK, mK or K") from None


def factor_of(text: str, target: str) -> float:
    """Factor from a unit as headers spell it, CMB temperature in K, to ``target``.

    >>> factor_of("uK_{CMB}^{-2}", "uK-2")
    1.0

    Parameters
    ----------
    text : the unit as a header spells it
    target : the unit that is needed

    Returns
    -------
    the factor

    Raises
    ------
    ValueError
        if it is unknown or has another dimension, with what it is the unit of
    """
    try:
        unit = units.Unit(_plain(text))
    except (ValueError, TypeError):
        raise ValueError("") from None
    if not isinstance(unit, units.UnitBase) or not unit.decompose().scale > 0:
        raise ValueError("")
    if unit.is_equivalent(target):
        return float(f"{unit.to(target):.12g}")
    quantities = [name for known, name in QUANTITIES.items() if unit.is_equivalent(known)]
    raise ValueError(f", {quantities[0]}" if quantities else "")


def _plain(text: str) -> str:
    """A unit as astropy spells it, without TeX, and without the CMB in temperatures."""
    text = re.sub(r"\\(mathrm|rm|text|,)|\$", "", re.sub(r"^ *\[(.*)\] *$", r"\1", text))
    text = re.sub(r"\\mu *|µ|μ|micro|mu(?=k)", "u", text, flags=re.IGNORECASE)
    text = re.sub(r"milli(?=k)", "m", text, flags=re.IGNORECASE)
    text = text.replace("{", "(").replace("}", ")")
    text = re.sub(r"[ *.·-]*(arcminutes?|arcmin|'|′)", " arcmin", text, flags=re.IGNORECASE)
    kind = r"(cmb|thermo(dynamic)?)"
    kelvin = rf"(?<![a-z])((?-i:[uUm]?))k(elvins?)?([ _,]*({kind}|[([] *{kind} *[])]))?(?![a-z])"
    text = re.sub(kelvin, lambda m: f"{m[1].lower()}K", text, flags=re.IGNORECASE)
    text = re.sub(r"\( *([um]?K) *\)", r"\1", text)
    return re.sub("(?<=K)-(?=[a-z])", " ", text)
