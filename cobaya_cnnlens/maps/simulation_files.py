"""Files of an experiment's own simulations: the names that the user gives, and their checks.

For each index a simulation has Q and U of every split, in any format that the survey's maps may
have, and the a_lm of the true κ or φ in the coordinates of the maps. All checks that need no
reconstruction run before the first one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import healpy
import numpy as np
from astropy.io import fits
from pydantic import Field, model_validator

from ..errors import ConfigError, MapError
from ..pipeline.loading import load_as
from ..pipeline.sections import Section
from ..simulate.patches import convergence_alm, truncate_alm
from .fits_maps import check_file, reading
from .grids import Grid, q_and_u, read_sky

# Limits of the power of the true κ over the fiducial one. Beyond KAPPA_RATIO, the a_lm are of
# another field. If a bin is off by more than OTHER_COSMOLOGY and SCATTER errors together, the
# simulations have another cosmology.
KAPPA_RATIO, OTHER_COSMOLOGY, SCATTER = (0.5, 2.0), 0.02, 5.0
WRITE_ALM = "write a_lm with healpy.write_alm('alm.fits', alm)"
# Placeholder for a split in the name of a file.
SPLIT = "{split}"

Template = Annotated[str, Field(min_length=1)]


class SimulationFiles(Section):
    """An experiment's simulations, as the user's YAML file names them.

    Names of files hold ``{index}``, with a format such as ``{index:04d}``, and ``{split}`` if each
    split has its own. They are relative to the YAML file.

    Attributes
    ----------
    maps : Q and U that are added, for example of the signal and of the noise
    mean : Q and U whose mean is added, for example of the noise of several data splits
    kappa, phi : a_lm of the true κ, or of φ; exactly one of the two
    index : first and last simulation
    validation : number of first simulations that give R and the tiles' weights; a third by default
    splits : what stands for ``{split}`` in the order of the plan's maps; 0, 1, … by default
    """

    maps: tuple[Template, ...] = ()
    mean: tuple[Template, ...] = ()
    kappa: Template | None = None
    phi: Template | None = None
    index: tuple[int, int]
    validation: int | None = Field(default=None, gt=0)
    splits: tuple[str | int, ...] | None = None

    @model_validator(mode="after")
    def _whole(self) -> SimulationFiles:
        if not self.maps + self.mean:
            raise ValueError("there are no 'maps' and no 'mean'; give the files of Q and U")
        if (self.kappa is None) == (self.phi is None):
            raise ValueError("give the a_lm of the true convergence, either 'kappa' or 'phi'")
        first, last = self.index
        if not 0 <= first < last:
            raise ValueError("index: give the first and the last simulation, as in [0, 99]")
        if self.n_validation >= len(self.indices):
            raise ValueError(
                f"validation: {self.n_validation} of {len(self.indices)} simulations leave none "
                "for the noise bias; give fewer"
            )
        for template in (*self.maps, *self.mean, self.truth):
            try:
                names = {template.format(index=i, split="a") for i in self.index}
            except (KeyError, IndexError, ValueError):
                names = set()
            if len(names) < 2:
                raise ValueError(
                    f"'{template}' does not name a file for each simulation; write {{index}}, or "
                    "{index:04d}, and {split} if each split has its own"
                )
        return self

    @property
    def truth(self) -> str:
        """Name of the a_lm's files."""
        return self.kappa or self.phi or ""

    @property
    def indices(self) -> range:
        """Numbers of all simulations."""
        return range(self.index[0], self.index[1] + 1)

    @property
    def n_validation(self) -> int:
        """How many simulations give R and the weights."""
        return self.validation or max(len(self.indices) // 3, 1)

    @property
    def by_split(self) -> bool:
        """Whether every split has files of its own; otherwise the maps are of the coadd."""
        return any(SPLIT in template for template in (*self.maps, *self.mean))


def read_simulation_files(path: str | Path) -> SimulationFiles:
    """Read the file that names an experiment's simulations.

    Parameters
    ----------
    path : of the YAML file

    Returns
    -------
    files : with absolute names

    Raises
    ------
    ConfigError
        if the file cannot be read, or has a wrong key or value
    """
    given = load_as(SimulationFiles, path)
    folder = str(Path(path).absolute().parent).replace("{", "{{").replace("}", "}}")

    def absolute(template: str) -> str:
        return template if Path(template).is_absolute() else f"{folder}/{template}"

    changes = {key: tuple(map(absolute, getattr(given, key))) for key in ("maps", "mean")}
    truth = {key: absolute(name) for key in ("kappa", "phi") if (name := getattr(given, key))}
    return given.model_copy(update=changes | truth)


def split_names(files: SimulationFiles, n_splits: int) -> tuple[str | int, ...]:
    """What stands for ``{split}`` in the names of files.

    Parameters
    ----------
    files : of the simulations
    n_splits : of the plan

    Returns
    -------
    names : one for each split; for simulations of the coadd, one name that is not used

    Raises
    ------
    ConfigError
        if there are names for more or fewer splits than the plan has
    """
    if not files.by_split:
        return (0,)
    names = tuple(range(n_splits)) if files.splits is None else files.splits
    if len(names) != n_splits:
        raise ConfigError(
            f"key 'splits' names {len(names)} splits, and the plan has {n_splits} maps; name one "
            "for each, in their order"
        )
    return names


def map_names(files: SimulationFiles, index: int, split: str | int) -> Iterator[tuple[Path, float]]:
    """The maps whose weighted sum is a split of a simulation.

    Parameters
    ----------
    files : of the simulations
    index : of the simulation
    split : its name

    Returns
    -------
    names : paths, with the weight of each
    """
    for templates, weight in ((files.maps, 1.0), (files.mean, 1.0 / max(len(files.mean), 1))):
        for template in templates:
            yield Path(template.format(index=index, split=split)), weight


def all_names(files: SimulationFiles, index: int, n_splits: int) -> list[Path]:
    """All files of a simulation; the file of the a_lm is the last.

    Parameters
    ----------
    files : of the simulations
    index : of the simulation
    n_splits : of the plan

    Returns
    -------
    paths : each once
    """
    splits = split_names(files, n_splits)
    maps = [path for split in splits for path, _ in map_names(files, index, split)]
    return [*dict.fromkeys(maps), Path(files.truth.format(index=index))]


def check_files(files: SimulationFiles, n_splits: int) -> None:
    """Refuse simulations if a file is missing, or has another kind or size than the first one's.

    Parameters
    ----------
    files : of the simulations
    n_splits : of the plan

    Raises
    ------
    MapError
    """
    needed: int | None = None
    for index in files.indices:
        *maps, truth = all_names(files, index, n_splits)
        for path in maps:
            check_file(path)
        check_file(truth, WRITE_ALM)
        with reading(truth):
            header = fits.getheader(truth, 1)
        if str(header.get("TTYPE1")).strip().lower() != "index":
            raise MapError(f"{truth}: holds no a_lm (columns index, real, imag); {WRITE_ALM}")
        rows = int(header["NAXIS2"])
        needed = needed or rows
        if rows != needed:
            raise MapError(
                f"{truth}: holds {rows} a_lm, and simulation {files.index[0]} holds {needed}; "
                "write all to the same l_max"
            )


def read_split(
    files: SimulationFiles,
    index: int,
    split: str | int,
    grid: Grid,
    known: np.ndarray,
    unit: str | None,
) -> list[np.ndarray]:
    """Q and U of one split of a simulation.

    Parameters
    ----------
    files : of the simulations
    index : of the simulation
    split : its name
    grid : of the survey's maps
    known : whether the survey's split saw a pixel, (n,)
    unit : of the survey's maps; used for Q and U if a header states none

    Returns
    -------
    maps : Q and U in µK, COSMO, zero where the survey saw nothing, (n,) each

    Raises
    ------
    MapError
        if a map is of another pixelisation or without a unit, or lacks pixels that the survey saw
    """
    total = [np.zeros(grid.size, np.float32) for _ in "QU"]
    for path, weight in map_names(files, index, split):
        file = read_sky(path, "QU")
        if file.grid != grid:
            raise MapError(
                f"{path}: {file.grid.name}, and the survey's maps are {grid.name}, or of another "
                "header or frame; write simulations in the pixelisation of the survey's maps"
            )
        for values, part in zip(total, q_and_u(file, unit), strict=True):
            lacking = int((known & ~np.isfinite(part)).sum())
            if lacking:
                raise MapError(
                    f"{path}: {lacking} pixels that the survey saw are not finite, or zero in Q "
                    "and U; write the simulation there, or plan with a --mask of what both saw"
                )
            values += np.where(known, weight * part, np.float32(0))
    return total


def read_kappa(files: SimulationFiles, index: int, band_limit: int) -> tuple[np.ndarray, int]:
    """Read the true κ_lm of a simulation, up to a multipole. From φ, κ_L = ½ L(L+1) φ_L.

    Parameters
    ----------
    files : of the simulations
    index : of the simulation
    band_limit : largest multipole

    Returns
    -------
    kappalm : complex, in HEALPix order
    lmax : its largest multipole, that of the file or the band limit

    Raises
    ------
    MapError
        if the a_lm are not finite, or lack some m up to their l_max
    """
    path = Path(files.truth.format(index=index))
    with reading(path):
        alm, mmax = healpy.read_alm(path, return_mmax=True)
    lmax = healpy.Alm.getlmax(len(alm), None if mmax is None else int(mmax))
    if lmax < 1 or mmax != lmax:
        raise MapError(
            f"{path}: holds a_lm to l = {lmax}, m = {mmax}; write all with m up to l_max"
        )
    if not np.isfinite(alm).all():
        raise MapError(f"{path}: holds a_lm that are not finite; write zero where there is none")
    limit = min(lmax, band_limit)
    alm = alm.astype(complex)
    if files.phi is not None:
        return convergence_alm(alm, lmax, limit), limit
    return truncate_alm(alm, lmax, limit), limit


def check_kappa(
    path: str, kappalm: np.ndarray, lmax: int, fiducial: np.ndarray, edges: np.ndarray
) -> list[str]:
    """Compare the power of the true κ of a simulation with that of the fiducial cosmology.

    Parameters
    ----------
    path : of the a_lm, for messages
    kappalm : of the whole sky
    lmax : of the a_lm
    fiducial : C^κκ of the configuration from L = 0
    edges : of the bins of the bandpowers

    Returns
    -------
    warnings

    Raises
    ------
    MapError
        if the a_lm end within the bins, or are not of κ
    """
    if lmax < edges[-1]:
        raise MapError(
            f"{path}: the a_lm end at l = {lmax}, and the bandpowers at {edges[-1]:g}; write a_lm "
            "that reach so far, or take fewer bins"
        )
    power, weight = healpy.alm2cl(kappalm), 2.0 * np.arange(lmax + 1) + 1.0
    bins = [slice(round(a), round(b)) for a, b in itertools.pairwise(edges)]
    ratio = np.array([(weight * power)[b].sum() for b in bins])
    ratio = ratio / [(weight * fiducial[: lmax + 1])[b].sum() for b in bins]
    if not (ratio > KAPPA_RATIO[0]).all() or not (ratio < KAPPA_RATIO[1]).all():
        raise MapError(
            f"{path}: the a_lm have {ratio.min():.3g} to {ratio.max():.3g} times the power of κ in "
            "the bins; give κ of the whole sky as 'kappa', κ_L = ½ L(L+1) φ_L, or φ as 'phi'"
        )
    error = np.sqrt(2.0 / np.array([weight[b].sum() for b in bins]))
    off = (np.abs(ratio - 1.0) - SCATTER * error) > OTHER_COSMOLOGY
    if not off.any():
        return []
    worst = ratio[off][np.argmax(np.abs(ratio[off] - 1.0))]
    return [
        f"the true κ has {worst:.3f} times the power of the configuration's cosmology in a bin; N "
        "must be that of this cosmology: give the simulations' as 'cosmology' in the configuration"
    ]
