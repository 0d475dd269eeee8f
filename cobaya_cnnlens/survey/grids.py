"""The two pixelisations that maps of a survey come in, HEALPix and plate carrée (CAR).

A map is an array of its grid's pixels, (n,): HEALPix's in ring order, those of a CAR map row by
row. Both are turned into a_lm by quadrature over the rings that the map has. Values between pixels
are not interpolated: Q and U come from the a_lm, and weights, which say of each pixel what is known
there, from the nearest pixel.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import ducc0
import healpy
import numpy as np
import scipy.sparse
from astropy.io import fits
from astropy.wcs import WCS
from scipy.sparse.linalg import cg

from ..errors import MapError
from ..pipeline.map_files import AXES, reading

# Of a HEALPix map's nside, and of a CAR map's Nyquist multipole: where quadrature is good.
HEALPIX_LMAX, CAR_LMAX = 2.0, 0.9
# Norm of the residual of filled pixels over their right-hand side; what is asked of them is that
# they be smooth.
FILL_TOLERANCE, FILL_LIMIT = 1e-4, 4000


class Grid(Protocol):
    """A pixelisation. ``name`` in words; ``frame`` of the coordinates, a key of
    :data:`~cobaya_cnnlens.pipeline.separation.FRAMES`; ``size``, the number of pixels; ``step``,
    a pixel's side in radians; ``lmax``, to which multipole its a_lm are good."""

    name: str
    frame: str
    size: int
    step: float
    lmax: int

    def pixels_at(self, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        """The pixels in which positions lie, same shape; −1 beyond the map."""

    def areas(self) -> np.ndarray | float:
        """Of all pixels, (n,), or of each, in sr."""

    def neighbours(self, pixels: np.ndarray) -> np.ndarray:
        """The 8 pixels around each, (8, n); −1 where there is none."""

    def harmonics(self, q: np.ndarray, u: np.ndarray, lmax: int, nthreads: int) -> np.ndarray:
        """E and B a_lm, (2, n_lm), of Q and U (COSMO), zero where nothing is known."""


@dataclass(frozen=True)
class HealpixGrid:
    """HEALPix, ring order; see :class:`Grid`."""

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
        rings = ducc0.healpix.Healpix_Base(self.nside, "RING").sht_info()
        starts, counts = rings["ringstart"].astype(int), rings["nphi"].astype(int)
        # Only the rings that hold anything.
        known = np.add.reduceat((q != 0) | (u != 0), starts) > 0
        low, high = (int(x) for x in np.flatnonzero(known)[[0, -1]])
        part = slice(starts[low], starts[high] + counts[high])
        rings = {key: values[low : high + 1] for key, values in rings.items()}
        rings["ringstart"] = rings["ringstart"] - rings["ringstart"][0]
        maps = np.stack([q[part], u[part]]).astype(float)
        maps *= 4.0 * np.pi / self.size
        return ducc0.sht.adjoint_synthesis(map=maps, spin=2, lmax=lmax, nthreads=nthreads, **rings)


@dataclass(frozen=True)
class CarGrid:
    """Plate carrée in equatorial coordinates, read and analysed by pixell; see :class:`Grid`.

    ``header``: of the map's WCS, as text; ``shape``: rows and columns
    """

    header: str
    shape: tuple[int, int]
    frame: str = "C"

    @property
    def name(self) -> str:
        return f"CAR {self.shape[1]} x {self.shape[0]} pixels of {60 * np.degrees(self.step):.3g}'"

    @cached_property
    def _wcs(self):
        from pixell import wcsutils

        return wcsutils.WCS(fits.Header.fromstring(self.header))

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
        found = []
        for j, i in steps:
            inside = (y + j >= 0) & (y + j < rows) & (x + i >= 0) & (x + i < columns)
            found.append(np.where(inside, (y + j) * columns + x + i, -1))
        return np.array(found)

    def harmonics(self, q: np.ndarray, u: np.ndarray, lmax: int, nthreads: int) -> np.ndarray:
        from pixell import curvedsky, enmap

        maps = np.stack([q, u]).astype(float).reshape(2, *self.shape)
        # Around whole circles of latitude, but of the map's latitudes only.
        return curvedsky.map2alm(
            enmap.ndmap(maps, self._wcs), lmax=lmax, spin=2, method="cyl", nthread=nthreads
        )


@dataclass(frozen=True)
class SkyFile:
    """What a file of the sky holds: planes (k, n) in float32, HEALPix's unseen pixels NaN in Q and
    U and zero in others; its header, and the keywords of that which say the planes' unit."""

    path: Path
    grid: Grid
    planes: np.ndarray
    header: fits.Header
    unit_keys: list[str]


def read_sky(path: str | Path, wanted: str = "") -> SkyFile:
    """Read a HEALPix or CAR map.

    Parameters
    ----------
    wanted : "QU" for the planes Q and U; else the file must hold one plane

    Raises
    ------
    MapError
        if it is missing, damaged, neither, without the planes, or a CAR map and pixell is not
        installed
    """
    path = Path(path)
    if not path.is_file():
        raise MapError(f"{path}: no such file")
    header, image, extension = None, None, 0
    with reading(path), path.open("rb") as opened, fits.open(opened, memmap=False) as file:
        for number, part in enumerate(file):
            if part.header.get("PIXTYPE") == "HEALPIX":
                header, extension = part.header.copy(), number
                break
            if part.is_image and part.header.get("NAXIS", 0) >= 2:
                header, image = part.header.copy(), np.asarray(part.data, np.float32)
                break
    if header is None:
        raise MapError(f"{path}: neither a HEALPix map nor an image; write one")
    if image is None:
        return _healpix(path, header, extension, wanted)
    return _car(path, header, image, wanted)


def _healpix(path: Path, header: fits.Header, number: int, wanted: str) -> SkyFile:
    frame = str(header.get("COORDSYS", "C")).strip().upper()[:1] or "C"
    if frame not in AXES:
        raise MapError(
            f"{path}: COORDSYS is '{header['COORDSYS']}'; it must be C, G or E, for equatorial, "
            "galactic or ecliptic"
        )
    names = {
        i + 1: name
        for i in range(header["TFIELDS"])
        if (name := str(header.get(f"TTYPE{i + 1}", ""))).strip().upper() != "PIXEL"
    }
    if wanted:
        first = [[i for i, n in names.items() if n.upper().startswith(x)][:1] for x in wanted]
        columns = [i for found in first for i in found]
    else:
        columns = list(names)
    if len(columns) != (len(wanted) or 1):
        needed = "Q and U; name them Q_POLARISATION, U_POLARISATION" if wanted else "one plane"
        raise MapError(f"{path}: holds columns {list(names.values())}; it must hold {needed}")
    with reading(path):
        # By name: healpy does not count the column of pixel numbers that a part of the sky has.
        planes = healpy.read_map(
            path, field=[names[i] for i in columns], hdu=number, dtype=np.float32
        )
        planes = np.atleast_2d(planes)
        nside = healpy.get_nside(planes[0])
    planes[planes == np.float32(healpy.UNSEEN)] = np.nan if wanted else 0.0
    return SkyFile(path, HealpixGrid(nside, frame), planes, header, [f"TUNIT{i}" for i in columns])


def _car(path: Path, header: fits.Header, image: np.ndarray, wanted: str) -> SkyFile:
    kinds = [str(header.get(f"CTYPE{axis}", "")).strip().upper() for axis in (1, 2)]
    if kinds != ["RA---CAR", "DEC--CAR"]:
        raise MapError(
            f"{path}: CTYPE1 and CTYPE2 are '{kinds[0]}' and '{kinds[1]}'; a survey's image is in "
            "plate carrée, 'RA---CAR' and 'DEC--CAR': reproject, or give the map as HEALPix"
        )
    if importlib.util.find_spec("pixell") is None:
        raise MapError(
            f"{path}: a CAR map, which is read by pixell, and pixell is not installed; install it "
            "with: pip install '.[survey]', or give the map as HEALPix"
        )
    rows, columns = image.shape[-2:]
    planes = image.reshape(-1, rows * columns)
    if len(planes) not in ((2, 3) if wanted else (1,)):
        needed = "(Q, U) or (I, Q, U)" if wanted else "one"
        raise MapError(f"{path}: holds {len(planes)} planes; it must hold {needed}")
    with reading(path):
        place = WCS(header, naxis=2).to_header(relax=True)
    for key, value in place.items():
        # So that what differs by rounding is the same grid.
        if isinstance(value, float):
            place[key] = round(value, 13)
    grid = CarGrid(place.tostring(), (rows, columns))
    return SkyFile(path, grid, planes[-len(wanted) :], header, ["BUNIT"])


def dilated(grid: Grid, known: np.ndarray, steps: int) -> np.ndarray:
    """The pixels, by number, that are not known and lie within so many steps of one that is."""
    state = known.copy()
    edge, found = np.flatnonzero(known), []
    for _ in range(steps):
        edge = np.unique(grid.neighbours(edge))
        edge = edge[edge >= 0]
        edge = edge[~state[edge]]
        state[edge] = True
        found.append(edge)
    return np.sort(np.concatenate(found)) if found else np.zeros(0, int)


def fill(grid: Grid, maps: list[np.ndarray], known: np.ndarray, steps: int) -> list[np.ndarray]:
    """Maps (n,) that go on smoothly where they are not known: to zero within ``steps`` pixels of
    what is known beyond the survey, and through holes.

    Every filled pixel is the mean of its neighbours (∇²f = 0): there is no step at an edge, which a
    band limit would make ring into what is known.
    """
    maps = [np.where(known, values, 0.0).astype(np.float32) for values in maps]
    unknown = dilated(grid, known, steps)
    if not len(unknown):
        return maps
    around = grid.neighbours(unknown)
    place = np.searchsorted(unknown, around)
    place[place == len(unknown)] = 0
    is_unknown = (unknown[place] == around) & (around >= 0)
    is_known = (around >= 0) & known[around]
    _, rows = np.nonzero(is_unknown)
    n = len(unknown)
    coupling = scipy.sparse.csr_matrix(
        (np.ones(len(rows)), (rows, place[is_unknown])), shape=(n, n)
    )
    operator = scipy.sparse.diags_array(np.full(n, float(len(around)))) - coupling
    for values in maps:
        right = np.where(is_known, values[around], 0.0).sum(0, dtype=float)
        values[unknown] = cg(operator, right, rtol=FILL_TOLERANCE, maxiter=FILL_LIMIT)[0]
    return maps
