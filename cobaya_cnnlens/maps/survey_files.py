"""Files of a survey: Q and U of its splits, mask and depth, with their checks.

The depth is kept as the inverse variance of Q and of U each per unit of solid angle, ρ in
1/(µK² sr). A pixel of area Ω and inverse variance w has ρ = w/Ω. White noise of a level σ in
µK-arcmin has ρ = 1/σ². A patch's pixel of side Δ has the noise rms 1/(Δ √ρ).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MapError
from ..simulate.instrument import ARCMIN
from . import units
from .fits_maps import check_file
from .grids import Grid, SkyFile, q_and_u, read_sky
from .headers import FRAMES

# A pixel is seen from this value of the mask on.
SEEN = 0.5
# A split may lack this part of what the others saw.
COVERAGE = 0.01
# A survey has a noise level between these, in µK-arcmin. Beyond them, a unit is wrong.
LEVELS = (0.01, 1e4)
# Rounding may move the values of a mask and of an inverse variance by so much, relative.
ROUNDING = 1e-5
# The name of a column or of an extension with another kind of noise holds one of the first parts,
# that of an inverse variance one of the second.
OTHER_NOISE = re.compile(r"COV|VAR|RMS|STD|SIGMA|STANDARD|ERR|NOISE|DEPTH|HIT|OBS|COUNT|TIME|EXPOS")
INVERSE = re.compile(r"INV|IVAR")


@dataclass(frozen=True)
class Sources:
    """The files of a survey, as the user names them.

    Attributes
    ----------
    maps : Q and U, one of each split; none for a footprint alone
    mask : 0 to 1, with holes; all that was seen without one
    ivar : inverse variance of Q and of U each, per pixel: one of each split, or one of the coadd,
        which the splits then share equally
    level : instead, the coadd's noise of Q and of U each in µK-arcmin: a number, or a map of it
    unit : of Q and U where a header does not say
    pixel_window : whether to divide a HEALPix map's pixel window out
    """

    maps: tuple[str, ...] = ()
    mask: str | None = None
    ivar: tuple[str, ...] = ()
    level: str | None = None
    unit: str | None = None
    pixel_window: bool = False

    @property
    def n_splits(self) -> int:
        """One for a footprint alone."""
        return max(len(self.maps), 1)

    def check(self) -> None:
        """Refuse what cannot be right before a file is read.

        Raises
        ------
        MapError
        """
        if not (self.maps or self.mask or self.ivar):
            raise MapError("no map and no footprint; give MAPS, or --mask with --level")
        if bool(self.ivar) == (self.level is not None):
            raise MapError("the depth is needed once: give either --ivar or --level")
        if len(self.ivar) not in (0, 1, self.n_splits):
            raise MapError(
                f"{len(self.ivar)} --ivar for {self.n_splits} splits; give one of each split, in "
                "their order, or one of the coadd"
            )
        if self.unit is not None:
            units.unit_option(self.unit)
        for name in self.files():
            check_file(Path(name))

    def files(self) -> list[str]:
        """All that are to be read."""
        level = [self.level] if self.level is not None and _number(self.level) is None else []
        return [*self.maps, *([self.mask] if self.mask else []), *self.ivar, *level]

    def recipe(self) -> dict[str, Any]:
        """What they are, by content.

        Raises
        ------
        MapError
            if two splits are the same
        """
        digests = {name: digest_of(name) for name in self.files()}
        if len({digests[name] for name in self.maps}) < len(self.maps):
            raise MapError("a map is given twice; splits are maps of independent noise")
        return {
            "maps": [digests[name] for name in self.maps],
            "mask": digests.get(self.mask or ""),
            "ivar": [digests[name] for name in self.ivar],
            "level": None if self.level is None else digests.get(self.level, _number(self.level)),
            "unit": self.unit,
            "pixel_window": self.pixel_window,
        }


@dataclass(frozen=True)
class Split:
    """One split of a survey.

    Attributes
    ----------
    grid : the pixelisation
    maps : Q and U in µK, COSMO, zero where it saw nothing, (n,) each; none of a footprint alone
    density : inverse variance per sr, zero where it saw nothing, (n,)
    assumed_frame : whether some file does not say its frame
    """

    grid: Grid
    maps: tuple[np.ndarray, ...]
    density: np.ndarray
    assumed_frame: bool = False


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file's content.

    Parameters
    ----------
    path : path of the file

    Returns
    -------
    digest : 16 hex digits
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_splits(sources: Sources, chosen: Collection[int] | None = None) -> Iterator[Split]:
    """The splits of a survey, one after another, checked by themselves and against the first.

    Parameters
    ----------
    sources : the survey's files
    chosen : which, by number; all by default

    Returns
    -------
    splits : an iterator over the splits

    Raises
    ------
    MapError
        naming the file, the field and the mend
    """
    sources.check()
    first: SkyFile | None = None
    mask, shared = None, None
    assumed = False
    if sources.mask is not None:
        file = read_sky(sources.mask)
        mask, assumed, first = _mask(file), file.assumed_frame, file.without_planes()
    for i in range(sources.n_splits) if chosen is None else sorted(chosen):
        maps: tuple[np.ndarray, ...] = ()
        factor = None
        if sources.maps:
            file = read_sky(sources.maps[i], "QU")
            first = first or file.without_planes()
            _check_same(file, first)
            maps, assumed = q_and_u(file, sources.unit), assumed or file.assumed_frame
            factor = file.map.header.factor_to_uk(file.map.unit_keys, sources.unit)
        if shared is None:
            density, first, of_depth = _density(sources, i, mask, first, factor)
            assumed |= of_depth
            # An inverse variance that all splits share is read once.
            shared = density if len(sources.ivar) < 2 else None
        else:
            density = shared
        known = density > 0
        if mask is not None:
            known &= mask
        for values in maps:
            known &= np.isfinite(values)
        maps = tuple(np.where(known, values, np.float32(0)) for values in maps)
        assert first is not None  # the density is on a grid
        yield Split(first.grid, maps, np.where(known, density, np.float32(0)), assumed)


def check_coverage(sources: Sources, seen: list[np.ndarray]) -> np.ndarray:
    """The pixels that all splits saw; the splits must cover nearly the same area.

    Parameters
    ----------
    sources : the survey's files
    seen : whether each split saw a pixel, (n,) each

    Returns
    -------
    seen : whether all splits saw a pixel, (n,)

    Raises
    ------
    MapError
        if some split lacks more than a hundredth of what others saw
    """
    every, some = np.logical_and.reduce(seen), np.logical_or.reduce(seen)
    if not some.any():
        raise MapError(f"{', '.join(sources.files())}: nothing was seen; is the mask inverted?")
    for name, part in zip(sources.maps, seen, strict=len(sources.maps) > 0):
        lacking = 1.0 - part.sum() / some.sum()
        if lacking > COVERAGE:
            raise MapError(
                f"{name}: this split lacks {100 * lacking:.3g}% of what the others saw; give a "
                "--mask of what all of them saw, or leave the split out"
            )
    return every


def _mask(file: SkyFile) -> np.ndarray:
    values = np.nan_to_num(file.planes[0])
    if not ((values >= -ROUNDING) & (values <= 1.0 + ROUNDING)).all():
        raise MapError(
            f"{file.path}: a mask of values from {values.min():.7g} to {values.max():.7g}; they "
            "must lie between 0 (not seen) and 1"
        )
    return values >= SEEN


def _check_same(file: SkyFile, first: SkyFile) -> None:
    grid, other = file.grid, first.grid
    if grid == other:
        return
    if grid.name != other.name:
        raise MapError(
            f"{file.path}: {grid.name}, and {first.path} is {other.name}; bring them to one "
            "pixelisation"
        )
    if grid.frame == other.frame:
        raise MapError(
            f"{file.path}: of another header (CRVAL, CRPIX, CDELT) than {first.path}; bring them "
            "to one pixelisation"
        )
    frames, mend = [FRAMES[of.frame] for of in (grid, other)], "rotate one"
    for silent in (file, first):
        if silent.assumed_frame:
            mend = f"{silent.path} has no COORDSYS, which is taken as equatorial: write it"
    raise MapError(
        f"{file.path}: of other coordinates ({frames[0]}) than {first.path} ({frames[1]}); {mend}"
    )


def _density(
    sources: Sources,
    i: int,
    mask: np.ndarray | None,
    first: SkyFile | None,
    map_factor: float | None,
) -> tuple[np.ndarray, SkyFile, bool]:
    """ρ of a split's pixels, the file that has the grid, and whether a frame is assumed.

    Parameters
    ----------
    map_factor : to µK, of the maps
    """
    if sources.level is not None and (level := _number(sources.level)) is not None:
        if not LEVELS[0] <= level <= LEVELS[1]:
            raise MapError(f"--level {sources.level}: give the noise in µK-arcmin, e.g. 5")
        value = 1.0 / (level * ARCMIN) ** 2 / sources.n_splits
        assert first is not None  # Sources.check asks for a map or a mask
        return np.full(first.grid.size, value, np.float32), first, False
    file = read_sky(sources.level or sources.ivar[min(i, len(sources.ivar) - 1)])
    first = first or file.without_planes()
    _check_same(file, first)
    values, header = file.planes[0], file.map.header
    [name], [keys] = file.map.names, file.map.unit_keys
    if sources.level is not None:
        _check_values(file, values, mask, "level", "inf or a mask of 0")
        values = values * (header.factor(keys, name, units.LEVEL) or 1.0)
        with np.errstate(divide="ignore"):
            density = np.where(values > 0, 1.0 / np.square(values * ARCMIN), 0.0)
    else:
        _check_values(file, values, mask, "inverse variance", "0")
        factor = _ivar_factor(file, sources.unit, map_factor)
        density = np.where(np.isfinite(values), values, 0.0) * (factor / file.grid.areas())
    share = len(sources.ivar) if len(sources.ivar) > 1 else 1
    density = np.maximum(density * (share / sources.n_splits), 0.0).astype(np.float32)
    _check_level(file, density, mask, sources)
    return density, first, file.assumed_frame


def _check_values(
    file: SkyFile, values: np.ndarray, mask: np.ndarray | None, quantity: str, instead: str
) -> None:
    """Negative anywhere, or not a number where the mask, if there is one, sees."""
    bad = values < -ROUNDING * np.nanmax(np.abs(values), initial=0.0, where=np.isfinite(values))
    unknown = ~np.isfinite(values) if quantity == "inverse variance" else np.isnan(values)
    if mask is not None:
        unknown &= mask
    for wrong, how in ((bad, "negative"), (unknown, "not finite")):
        if wrong.any():
            raise MapError(
                f"{file.path}: {wrong.sum()} pixels of the {quantity} are {how}, the first number "
                f"{int(np.argmax(wrong))}; write {instead} where nothing was seen"
            )


def _ivar_factor(file: SkyFile, unit: str | None, map_factor: float | None) -> float:
    """Factor to 1/µK² of an inverse variance: as the file says, or as --unit does, or as the maps.

    Raises
    ------
    MapError
        if the file says that it is something else, or nothing says the unit
    """
    [name], [keys], header = file.map.names, file.map.unit_keys, file.map.header
    said = header.factor(keys, name, units.INVERSE_VARIANCE)
    if said is not None:
        return said
    name = name or header.alone.text("EXTNAME")
    mend = units.MENDS[units.INVERSE_VARIANCE]
    if OTHER_NOISE.search(name.upper()) and not INVERSE.search(name.upper()):
        raise MapError(f"{file.path}: '{name}' without {keys[0]} is no inverse variance; {mend}")
    of_maps = map_factor if unit is None else units.unit_option(unit)
    if of_maps is None:
        raise MapError(
            f"{file.path}: {keys[0]} is missing; write the unit of the inverse variance, uK^-2 or "
            "K^-2, or give that of Q and U as --unit"
        )
    return 1.0 / of_maps**2


def _check_level(
    file: SkyFile, density: np.ndarray, mask: np.ndarray | None, sources: Sources
) -> None:
    seen = density > 0 if mask is None else (density > 0) & mask
    if not seen.any():
        raise MapError(f"{file.path}: nothing was seen where the mask is open")
    level = 1.0 / np.sqrt(float(np.median(density[seen])) * sources.n_splits) / ARCMIN
    if not LEVELS[0] <= level <= LEVELS[1]:
        raise MapError(
            f"{file.path}: gives noise of {level:.3g} µK-arcmin; look at its unit (inverse "
            "variance per pixel of Q and of U, in the inverse square of --unit)"
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
