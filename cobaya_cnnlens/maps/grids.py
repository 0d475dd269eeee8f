"""The two pixelisations of survey maps: HEALPix and plate carrée (CAR).

A map is an array of the pixels of its grid, (n,): in ring order for HEALPix, row by row for CAR. A
quadrature over the rings of the map gives the a_lm, and these give Q and U anywhere. Weights come
from the nearest pixel. Nothing is interpolated between pixels.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ducc0
import healpy
import numpy as np
from astropy.io import fits

from ..errors import MapError
from .fits_maps import FitsMap, read_fits
from .headers import MapHeader
from .projection import PLACE_TOLERANCE, odd_keywords, wcs_of

# Quadrature is good up to these multiples of nside, and of a CAR map's Nyquist multipole.
HEALPIX_LMAX, CAR_LMAX = 2.0, 0.9
# So many pixels along each side of a CAR map are compared with the places in its header.
SAMPLES = 17
# A map whose steps are rounded may reach so far beyond the sky.
ROUNDING_DEG = 0.01


class Grid(ABC):
    """A pixelisation.

    Attributes
    ----------
    name : in words
    frame : of the coordinates, a key of :data:`~cobaya_cnnlens.maps.headers.FRAMES`
    size : number of pixels
    step : side of a pixel in radians
    lmax : multipole up to which its a_lm are good
    """

    frame: str

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def size(self) -> int: ...

    @property
    @abstractmethod
    def step(self) -> float: ...

    @property
    @abstractmethod
    def lmax(self) -> int: ...

    @abstractmethod
    def pixels_at(self, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        """Find the pixels in which positions lie.

        Parameters
        ----------
        theta : colatitudes in radians
        phi : longitudes in radians

        Returns
        -------
        pixels : numbers of the pixels, same shape; −1 beyond the map
        """

    @abstractmethod
    def areas(self) -> np.ndarray | float:
        """Of all pixels, (n,), or of each, in sr."""

    @abstractmethod
    def neighbours(self, pixels: np.ndarray) -> np.ndarray:
        """Find the 8 pixels around each.

        Parameters
        ----------
        pixels : numbers of pixels, (n,)

        Returns
        -------
        neighbours : their numbers, (8, n); −1 where there is none
        """

    @abstractmethod
    def harmonics(self, q: np.ndarray, u: np.ndarray, lmax: int, nthreads: int) -> np.ndarray:
        """Analyse Q and U.

        Parameters
        ----------
        q, u : in µK, COSMO convention, zero where nothing is known, (n,) each
        lmax : largest multipole of the a_lm
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

        Returns
        -------
        alm : of E and B in µK, (2, n_lm)
        """


@dataclass(frozen=True)
class HealpixGrid(Grid):
    """HEALPix in ring order."""

    nside: int
    frame: str

    @property
    def name(self) -> str:
        return f"HEALPix nside {self.nside}"

    @property
    def size(self) -> int:
        return 12 * self.nside**2

    @property
    def step(self) -> float:
        return float(np.sqrt(self.areas()))

    @property
    def lmax(self) -> int:
        return int(HEALPIX_LMAX * self.nside)

    def pixels_at(self, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        return healpy.ang2pix(self.nside, theta, phi)

    def areas(self) -> float:
        return 4.0 * np.pi / self.size

    def neighbours(self, pixels: np.ndarray) -> np.ndarray:
        return healpy.get_all_neighbours(self.nside, pixels)

    def harmonics(self, q: np.ndarray, u: np.ndarray, lmax: int, nthreads: int) -> np.ndarray:
        return self._analysed(np.stack([q, u]), 2, lmax, nthreads)

    def scalar_harmonics(self, values: np.ndarray, lmax: int, nthreads: int = 0) -> np.ndarray:
        """Analyse a scalar field by quadrature.

        Parameters
        ----------
        values : of all pixels, zero where nothing is known, (n,)
        lmax : largest multipole
        nthreads : of ducc0; 0 for one per core

        Returns
        -------
        alm : in HEALPix order
        """
        return self._analysed(values[None], 0, lmax, nthreads)[0]

    def _analysed(self, maps: np.ndarray, spin: int, lmax: int, nthreads: int) -> np.ndarray:
        """The a_lm of maps of some spin; rings without any known pixel are left out."""
        known = np.flatnonzero((maps != 0).any(0))
        if not len(known):
            return np.zeros((len(maps), healpy.Alm.getsize(lmax)), complex)
        part, rings = self._rings_of(known[0], known[-1])
        values = maps[:, part].astype(float) * (4.0 * np.pi / self.size)
        return ducc0.sht.adjoint_synthesis(
            map=values, spin=spin, lmax=lmax, nthreads=nthreads, **rings
        )

    def gradient_values(
        self, alm: np.ndarray, lmax: int, spin: int, pixels: np.ndarray, nthreads: int = 0
    ) -> np.ndarray:
        """Evaluate gradient modes of some spin; rings without any pixel are left out.

        Parameters
        ----------
        alm : in HEALPix order
        lmax : of ``alm``
        spin : 1 or more
        pixels : numbers in ring order, (n,)
        nthreads : of ducc0; 0 for one per core

        Returns
        -------
        values : (n,) complex
        """
        part, rings = self._rings_of(pixels.min(), pixels.max())
        real, imaginary = ducc0.sht.synthesis(
            alm=alm[None], spin=spin, lmax=lmax, mode="GRAD_ONLY", nthreads=nthreads, **rings
        )
        return (real + 1j * imaginary)[pixels - part.start]

    def _rings_of(self, first: int, last: int) -> tuple[slice, dict[str, np.ndarray]]:
        """The pixels of all rings from that of a pixel to that of another, and these rings."""
        rings = ducc0.healpix.Healpix_Base(self.nside, "RING").sht_info()
        starts = rings["ringstart"].astype(int)
        low, high = np.searchsorted(starts, [first, last], side="right")
        rings = {key: values[low - 1 : high] for key, values in rings.items()}
        rings["ringstart"] = rings["ringstart"] - rings["ringstart"][0]
        return slice(starts[low - 1], [*starts, self.size][high]), rings


@dataclass(frozen=True)
class CarGrid(Grid):
    """Plate carrée, analysed by pixell.

    Attributes
    ----------
    shape : rows and columns
    steps : in degrees of longitude along x and of latitude along y
    longitude : of the middle of the columns, in degrees
    equator : the row that lies at latitude 0, counted from 1 as in FITS
    """

    shape: tuple[int, int]
    steps: tuple[float, float]
    longitude: float
    equator: float
    frame: str = "C"

    @property
    def name(self) -> str:
        return f"CAR {self.shape[1]} x {self.shape[0]} pixels of {60 * np.degrees(self.step):.3g}'"

    @cached_property
    def _wcs(self) -> Any:
        from pixell import wcsutils

        # pixell does not use the frame.
        header: dict[str, Any] = {"CTYPE1": "RA---CAR", "CTYPE2": "DEC--CAR"}
        header |= {"CRVAL1": self.longitude, "CRPIX1": 0.5 * (self.shape[1] + 1)}
        header |= {"CRVAL2": 0.0, "CRPIX2": self.equator}
        header |= {"CDELT1": self.steps[0], "CDELT2": self.steps[1]}
        return wcsutils.WCS(fits.Header(header))

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def step(self) -> float:
        return float(np.radians(np.abs(self._wcs.wcs.cdelt).max()))

    @property
    def lmax(self) -> int:
        return int(CAR_LMAX * np.pi / self.step)

    def pixels_at(self, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        from pixell import enmap

        at = enmap.sky2pix(self.shape, self._wcs, [0.5 * np.pi - theta, phi], safe=True)
        y, x = np.rint(at).astype(int)
        # pixell turns longitudes to within half a circle of the map's middle.
        around = round(2.0 * np.pi / np.radians(abs(self._wcs.wcs.cdelt[0])))
        x = np.where(x < 0, x + around, np.where(x >= self.shape[1], x - around, x))
        inside = (y >= 0) & (y < self.shape[0]) & (x >= 0) & (x < self.shape[1])
        return np.where(inside, y * self.shape[1] + x, -1)

    def areas(self) -> np.ndarray:
        from pixell import enmap

        rows = enmap.pixsizemap(self.shape, self._wcs, separable=True, broadcastable=True)
        return np.repeat(np.array(rows)[:, 0], self.shape[1])

    def neighbours(self, pixels: np.ndarray) -> np.ndarray:
        rows, columns = self.shape
        y, x = np.divmod(np.asarray(pixels), columns)
        steps = [(j, i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (j, i) != (0, 0)]
        numbers = []
        for j, i in steps:
            inside = (y + j >= 0) & (y + j < rows) & (x + i >= 0) & (x + i < columns)
            numbers.append(np.where(inside, (y + j) * columns + x + i, -1))
        return np.array(numbers)

    def harmonics(self, q: np.ndarray, u: np.ndarray, lmax: int, nthreads: int) -> np.ndarray:
        from pixell import curvedsky, enmap

        maps = np.stack([q, u]).astype(float).reshape(2, *self.shape)
        # The analysis takes whole circles, but only at the latitudes of the map.
        return curvedsky.map2alm(
            enmap.ndmap(maps, self._wcs), lmax=lmax, spin=2, method="cyl", nthread=nthreads
        )


@dataclass(frozen=True)
class SkyFile:
    """A map of the sky and its grid: ``planes`` (k, n) in float32, NaN in Q and U where nothing was
    seen (see :meth:`.FitsMap.with_holes`), zero in other planes where a number stands for that."""

    grid: Grid
    map: FitsMap

    @classmethod
    def healpix(cls, sky_map: FitsMap, nside: int) -> SkyFile:
        """A HEALPix map with its grid.

        Parameters
        ----------
        sky_map : as its file holds it
        nside : of its pixels

        Returns
        -------
        file : in equatorial coordinates where no header says any
        """
        return cls(HealpixGrid(nside, sky_map.header.frame() or "C"), sky_map)

    @property
    def path(self) -> Path:
        return self.map.path

    @property
    def planes(self) -> np.ndarray:
        return self.map.planes.reshape(len(self.map.planes), -1)

    def without_planes(self) -> SkyFile:
        """What other files are compared with, of no size."""
        return replace(self, map=replace(self.map, planes=self.map.planes[:, :0].copy()))

    @property
    def assumed_frame(self) -> bool:
        """Whether no header says of which frame the coordinates are."""
        return self.map.nside is not None and self.map.header.frame() is None


def read_sky(path: str | Path, stokes: str = "") -> SkyFile:
    """Read a HEALPix or CAR map.

    Parameters
    ----------
    path : of the FITS file
    stokes : "QU" for the planes Q and U; else the file must hold one plane

    Returns
    -------
    file : the map and its grid

    Raises
    ------
    MapError
        if it is missing, damaged, neither, without the planes, or a CAR map and pixell is not
        installed
    """
    sky_map = read_fits(Path(path), stokes, np.float32)
    if sky_map.nside is not None:
        file = SkyFile.healpix(sky_map, sky_map.nside)
    else:
        rows, columns = sky_map.planes.shape[1:]
        file = SkyFile(_car_grid(sky_map.header, (rows, columns)), sky_map)
    if stokes:
        sky_map.with_holes()
    else:
        # Values that are not finite stay: readers refuse them, or give them a meaning.
        holes = np.isfinite(sky_map.planes) & sky_map.header.holes(sky_map.planes)
        sky_map.planes[holes] = 0.0
    return file


def q_and_u(file: SkyFile, unit: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Q and U of a map in µK, with the COSMO sign of U.

    Parameters
    ----------
    file : the map, with planes Q and U
    unit : of Q and U where the header does not say

    Returns
    -------
    q, u : NaN where nothing was seen, (n,) each

    Raises
    ------
    MapError
        if the header does not say unit or, of a CAR map, the sign of U, or says another
    """
    header = file.map.header
    factor = np.float32(header.factor_to_uk(file.map.unit_keys, unit))
    sign = np.float32(header.sign_of_u("" if file.map.nside is None else "COSMO"))
    return file.planes[0] * factor, file.planes[1] * factor * sign


def _car_grid(header: MapHeader, shape: tuple[int, int]) -> CarGrid:
    """The plain plate carrée on which the whole header puts the pixels.

    Raises
    ------
    MapError
        if they lie on none: along a row longitude alone changes, along a column latitude, evenly
    """
    frame = header.frame_of_axes("CAR")
    if importlib.util.find_spec("pixell") is None:
        raise MapError(
            f"{header.path}: a CAR map, which is read by pixell, and pixell is not installed; "
            "install it with: pip install '.[survey]', or give the map as HEALPix"
        )
    wcs, steps = wcs_of(header)
    rows, columns = shape
    middle = 0.5 * np.array([columns - 1, rows - 1])
    x, y = np.meshgrid(*(np.linspace(0, n - 1, SAMPLES) for n in (columns, rows)))
    longitude, latitude = wcs.all_pix2world(x, y, 0)
    centre = wcs.all_pix2world([middle], 0)[0]
    off = np.array([longitude, latitude]) - centre[:, None, None]
    off -= steps[:, None, None] * (np.array([x, y]) - middle[:, None, None])
    off[0] = (off[0] + 180.0) % 360.0 - 180.0
    # At a pole every longitude is the same point.
    off[0] *= np.cos(np.radians(latitude))
    moved = any(header.own.get(f"PV1_{i}", 0.0) != 0.0 for i in range(5))
    if moved or not np.abs(off / steps[:, None, None]).max() < PLACE_TOLERANCE:
        raise MapError(
            f"{header.path}: the header puts pixels elsewhere than a plate carrée about the "
            f"equator has them, CRVAL2 0 and no turn{odd_keywords(header.own)}; CRVAL2 is "
            f"{header.alone.number('CRVAL2', 0.0):g}: reproject the map, or give it as HEALPix"
        )
    width, height = np.abs(steps) * [columns, rows - 1]
    if width > 360.0 + ROUNDING_DEG or 0.5 * height + abs(centre[1]) > 90.0 + ROUNDING_DEG:
        raise MapError(
            f"{header.path}: {columns} x {rows} pixels of CDELT1 {steps[0]:g} and CDELT2 "
            f"{steps[1]:g} degrees reach more than once around the sky, or beyond a pole; cut the "
            "map there"
        )
    # The numbers are rounded, so that grids which differ by rounding are equal.
    step_x, step_y = (round(float(step), 13) for step in steps)
    equator = round(float(middle[1] + 1.0 - centre[1] / steps[1]), 6)
    where = round(float(centre[0] % 360.0), 9)
    return CarGrid((rows, columns), (step_x, step_y), where, equator, frame)
