"""κ̂ of a survey as one HEALPix map, for cross-correlations.

Tiles that do not overlap leave gaps at their tapers. Further tiles fill these
(:func:`.tiles.filling_tiles`). At a pixel of the map,

    κ̂ = Σ_t w_t κ̂_t / Σ_t w_t,   w_t = M_t²/ν_t where tile t saw something, else 0,

with the taper M and the relative noise ν of the tile. κ̂_t is divided by the response R_L of tiles
of its depth, up to a multipole beyond which it falls to zero (:class:`Normalisation`). Simulations
(:mod:`.mosaic_simulations`) give R, ν, the transfer function of the map and its noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import healpy
import numpy as np
from astropy.io import fits
from scipy.ndimage import map_coordinates

from ..errors import ConfigError
from ..files import atomic_write
from ..simulate.bandpowers import Bins
from ..simulate.depth import depth_classes, tile_depths
from ..simulate.modes import plane_vectors
from ..simulate.patches import PatchGeometry
from ..simulate.tiling import project
from .grids import HealpixGrid
from .tiles import Tile
from .weights import by_class

# Where every taper is smaller, the map has no pixel.
LEAST = 0.05
# κ̂ falls to zero between the largest multipole and so many times it.
BEYOND = 1.1
# Bins are about so many fundamental modes of a tile wide.
MODES = 2
# Tiles whose noise levels differ by less than this ratio share one response.
SAME_DEPTH = 0.1
# Of no concern there: more than a tile's area, in deg².
HOLES = 1e4
# Units of the columns that have one.
UNITS = {"Q": "uK", "U": "uK"}
# A smaller response would make noise of the map, and little else.
LEAST_RESPONSE = 0.05


def nside_for(lmax: int) -> int:
    """Resolution of a HEALPix map whose quadrature is good to a multipole.

    Parameters
    ----------
    lmax : largest multipole

    Returns
    -------
    nside : a power of two, at least ``lmax`` / 2
    """
    return 2 ** int(np.ceil(np.log2(0.5 * lmax)))


def bins_to(lmax: int, geometry: PatchGeometry) -> Bins:
    """Bins in which the response and the noise of a mosaic are measured.

    Parameters
    ----------
    lmax : where they end
    geometry : of the tiles

    Returns
    -------
    bins : with whole edges, from about half of the fundamental multipole of a tile

    Raises
    ------
    ConfigError
        if the tiles have no such multipoles
    """
    lmin = 0.5 * geometry.fundamental
    n_bins = round((lmax - lmin) / (MODES * geometry.fundamental))
    if n_bins < 1 or BEYOND * lmax > geometry.nyquist:
        low, high = 4 * geometry.fundamental, geometry.nyquist / BEYOND
        raise ConfigError(f"--lmax {lmax}: give a multipole from {low:.0f} to {high:.0f}")
    width = int((lmax - lmin) / n_bins)
    return Bins(lmax - n_bins * width, width, n_bins)


@dataclass(frozen=True)
class Normalisation:
    """Response and noise of tiles, by class of depth.

    Attributes
    ----------
    bins : of the response, which end at the map's largest multipole
    label : class of each tile, (n_tiles,)
    response : R of each class, (n_classes, n_bins)
    noise : N of each class, (n_classes, n_bins)
    """

    bins: Bins
    label: np.ndarray
    response: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(
        cls,
        tiles: Sequence[Tile],
        bins: Bins,
        auto: np.ndarray,
        cross: np.ndarray,
        truth: np.ndarray,
    ) -> Normalisation:
        """Response and noise that simulations of the tiles give.

        Parameters
        ----------
        tiles : of the survey
        bins : of the bandpowers
        auto, cross, truth : ⟨κ̂κ̂*⟩, ⟨κκ̂*⟩ and ⟨κκ*⟩ under the mask of each tile,
            (n_simulations, n_tiles, n_bins) each

        Returns
        -------
        normalisation : R = ⟨κκ̂*⟩/⟨κκ*⟩ and N = ⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩ of each class

        Raises
        ------
        ConfigError
            if a class has next to no response in some bin
        """
        depths = tile_depths(np.stack([t.rms for t in tiles]), tiles[0].taper, tiles[0].geometry)
        # The bandpowers are those under the mask, so that holes and edges hardly matter.
        label = depth_classes(depths, SAME_DEPTH, seen=1.0, holes=HOLES).label
        auto, cross, truth = (by_class(values.mean(0), label) for values in (auto, cross, truth))
        response = cross / truth
        if (response < LEAST_RESPONSE).any():
            first = int(np.argmax((response < LEAST_RESPONSE).any(0)))
            raise ConfigError(
                f"--lmax {bins.edges[-1]}: the response of some tile is below {LEAST_RESPONSE} "
                f"at L = {bins.centres[first]:.0f}, where dividing by it would make noise; give "
                f"--lmax {bins.edges[first]} or less"
            )
        return cls(bins, label, response, auto / response**2 - truth)

    @property
    def relative_noise(self) -> np.ndarray:
        """ν, the noise of each tile over the mean one, averaged over the bins, (n_tiles,)."""
        noise = self.noise[self.label]
        return (noise / noise.mean(0)).mean(1)

    @property
    def mean_response(self) -> np.ndarray:
        """R averaged over the tiles, (n_bins,)."""
        return self.response[self.label].mean(0)

    def normalised(self, kappa: np.ndarray, number: int, geometry: PatchGeometry) -> np.ndarray:
        """Divide κ̂ of a tile by R, and remove multipoles beyond the bins.

        Parameters
        ----------
        kappa : κ̂ with the taper, (n, n)
        number : position of the tile
        geometry : of the tile

        Returns
        -------
        kappa : with the taper, (n, n)
        """
        ell = np.hypot(*plane_vectors(geometry.n_pixels, geometry.pixel))
        lmax = self.bins.edges[-1]
        beyond = np.clip((ell / lmax - 1.0) / (BEYOND - 1.0), 0.0, 1.0)
        response = np.interp(ell, self.bins.centres, self.response[self.label[number]])
        factor = np.cos(0.5 * np.pi * beyond) ** 2 / response
        return np.fft.ifft2(np.fft.fft2(kappa) * factor).real


def pixels_within(tile: Tile, nside: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HEALPix pixels that a tile sees.

    Parameters
    ----------
    tile : of the survey
    nside : of the map

    Returns
    -------
    pixels : numbers in ring order, (n,)
    place : rows and columns of the tile there, (2, n)
    taper : of the tile there, (n,)
    """
    geometry = tile.geometry
    middle = healpy.ang2vec(*tile.centre)
    # A radius r of the plane is the angle 2 arcsin(r/2).
    reach = 2.0 * np.arcsin(0.5 * np.radians(geometry.size_deg) / np.sqrt(2.0))
    pixels = healpy.query_disc(nside, middle, reach)
    x, y = project(np.stack(healpy.pix2vec(nside, pixels), axis=1), tile.centre)
    place = np.stack([y, x]) / geometry.pixel + 0.5 * (geometry.n_pixels - 1)
    inside = np.all((place >= 0) & (place <= geometry.n_pixels - 1), axis=0)
    pixels, place = pixels[inside], place[:, inside]
    taper = map_coordinates(tile.taper, place, order=1)
    seen = map_coordinates(tile.seen.astype(np.uint8), place, order=0) > 0
    kept = seen & (taper >= LEAST)
    return pixels[kept], place[:, kept], taper[kept]


@dataclass(frozen=True)
class Mosaic:
    """A map of κ̂ on some HEALPix pixels.

    Attributes
    ----------
    nside : of the map
    pixels : numbers in ring order, ascending, (n,)
    kappa : κ̂ at the centres of the pixels, (n,)
    mask : the largest taper of a tile that sees the pixel, (n,)
    weight : inverse of the relative noise ν, averaged over the tiles, (n,)
    """

    nside: int
    pixels: np.ndarray
    kappa: np.ndarray
    mask: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls,
        tiles: Sequence[Tile],
        kappas: Iterable[np.ndarray],
        normalisation: Normalisation,
        nside: int,
    ) -> Mosaic:
        """Put the tiles of a survey together.

        Parameters
        ----------
        tiles : which may overlap
        kappas : κ̂ of each with the taper, (n, n)
        normalisation : of the tiles
        nside : of the map

        Returns
        -------
        mosaic : at all pixels that some tile sees
        """
        within = [pixels_within(tile, nside) for tile in tiles]
        pixels = np.unique(np.concatenate([numbers for numbers, _, _ in within]))
        total, weight, squares, mask = np.zeros((4, len(pixels)))
        noise = normalisation.relative_noise
        for i, (tile, kappa) in enumerate(zip(tiles, kappas, strict=True)):
            numbers, place, taper = within[i]
            at = np.searchsorted(pixels, numbers)
            tapered = normalisation.normalised(kappa, i, tile.geometry)
            # κ̂ has the taper once already.
            total[at] += taper * map_coordinates(tapered, place, order=5) / noise[i]
            weight[at] += taper**2 / noise[i]
            squares[at] += taper**2
            mask[at] = np.maximum(mask[at], taper)
        return cls(nside, pixels, total / weight, mask, weight / squares)

    @classmethod
    def read(cls, path: Path, **cards: str | int) -> tuple[Mosaic, dict[str, np.ndarray]]:
        """Read the map that ``survey map`` wrote.

        Parameters
        ----------
        path : of the file
        **cards : keywords that its header must hold with these values

        Returns
        -------
        mosaic : the map
        table : columns of its extension SPECTRA by name, (n_bins,) each

        Raises
        ------
        ConfigError
            if there is no such file, or it is of another plan or estimator
        """
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; run `cnnlens survey map` first")
        header, spectra = fits.getheader(path, 1), fits.getdata(path, "SPECTRA")
        for key, value in cards.items():
            if header.get(key) != value:
                raise ConfigError(
                    f"{path}: keyword {key} is {header.get(key)!r}, not {value!r}: the map was "
                    "made with another plan or estimator; give that one, or run `cnnlens survey "
                    "map` again"
                )
        rows = fits.getdata(path, 1)
        columns = (np.array(rows[name], float) for name in ("KAPPA", "MASK", "WEIGHT"))
        table = {name: np.array(spectra[name], float) for name in spectra.names}
        return cls(int(header["NSIDE"]), np.array(rows["PIXEL"], int), *columns), table

    def modes(self, values: np.ndarray, lmax: int, nthreads: int = 0) -> np.ndarray:
        """Analyse values on the pixels under the mask.

        Parameters
        ----------
        values : on the pixels, (n,)
        lmax : largest multipole
        nthreads : of ducc0; 0 for one per core

        Returns
        -------
        alm : of values times mask, in HEALPix order
        """
        grid = HealpixGrid(self.nside, "C")
        whole = np.zeros(grid.size)
        whole[self.pixels] = values * self.mask
        return grid.scalar_harmonics(whole, lmax, nthreads)

    def write(
        self,
        path: Path,
        frame: str,
        columns: dict[str, np.ndarray],
        table: dict[str, np.ndarray],
        **cards: str | float,
    ) -> None:
        """Write columns of the map, and a table of spectra, as FITS.

        Parameters
        ----------
        path : of the file
        frame : of the coordinates, a key of :data:`~.headers.FRAMES`
        columns : values on the pixels by name, (n,) each
        table : columns of the second extension, SPECTRA; none without any
        **cards : further keywords of the map's header
        """
        whole = np.full((len(columns), 12 * self.nside**2), healpy.UNSEEN, np.float32)
        whole[:, self.pixels] = list(columns.values())
        with atomic_write(path) as partial:
            healpy.write_map(
                partial,
                whole,
                partial=True,
                coord=frame,
                column_names=list(columns),
                column_units=[UNITS.get(name, "") for name in columns],
                dtype=np.float32,
                extra_header=list(cards.items()),
                overwrite=True,
            )
            if table:
                rows = [fits.Column(name, "D", array=values) for name, values in table.items()]
                hdu = fits.BinTableHDU.from_columns(rows, name="SPECTRA")
                fits.append(partial, hdu.data, hdu.header)
