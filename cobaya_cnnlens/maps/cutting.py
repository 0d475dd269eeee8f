"""From Q and U of the sky to patches: fill unseen pixels, take the a_lm, synthesise the patches.

Holes and the surroundings of the survey are filled smoothly before the harmonic analysis. The a_lm
reach the corner of a patch's modes, √2 of the Nyquist multipole, and would alias on its pixels. The
synthesis therefore has pixels of half the size. It interpolates nothing. Modes beyond those of the
patch are then removed, so that white noise of the maps stays white noise of the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ducc0
import healpy
import numpy as np
import scipy.sparse
from scipy.sparse.linalg import cg
from tqdm import tqdm

from ..errors import MapError
from ..simulate.patches import EPSILON, PatchGeometry, point_patches
from .grids import Grid, HealpixGrid

# The a_lm end at this multiple of a patch's Nyquist multipole, the corner of its modes.
CORNER = np.sqrt(2.0)
# The solver stops at this norm of the residual over that of the right-hand side, or after so many
# iterations. Filled pixels need only be smooth.
FILL_TOLERANCE, FILL_LIMIT = 1e-4, 4000
# Maps are continued by so many pixels of a patch where they end.
BEYOND = 8
# While modes beyond its own are removed, a patch has a border of its side over BORDER, of so many
# pixels at least. Fields to 0.87 of the Nyquist multipole come out to 4e-4 of their rms at 128²
# pixels, and to 0.5% at 32².
BORDER, LEAST_BORDER = 4, 16
# So many patches are synthesised, and the neighbours of so many pixels looked for, at a time.
CHUNK, PIXELS = 100, 1 << 20


def lmax_of(grid: Grid, geometry: PatchGeometry) -> int:
    """Multipole at which the a_lm of patches end.

    Parameters
    ----------
    grid : of the map that they are cut from
    geometry : of the patches

    Returns
    -------
    lmax : that of the map, or of the corner of the patches' modes
    """
    return min(grid.lmax, int(np.ceil(CORNER * geometry.nyquist)))


def cut_map(
    grid: Grid,
    maps: Sequence[np.ndarray],
    known: np.ndarray,
    centres: np.ndarray,
    geometry: PatchGeometry,
    window_of: str | Path | None = None,
    nthreads: int = 0,
) -> np.ndarray:
    """Cut patches from a map of the sky.

    Parameters
    ----------
    grid : the pixelisation
    maps : Q and U in µK, COSMO, (n,) each
    known : whether a pixel was seen, (n,)
    centres : colatitude and longitude of each patch in radians, (n_patches, 2)
    geometry : of the patches, without padding
    window_of : the file of a HEALPix map whose pixel window is divided out; None to leave it
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

    Returns
    -------
    patches : Q + iU in the patches' frames in µK, (n_patches, n, n)

    Raises
    ------
    MapError
        if the pixel window cannot be had
    """
    lmax = lmax_of(grid, geometry)
    alm = sky_alm(grid, maps, known, geometry, lmax, window_of, nthreads)
    return cut(alm, lmax, centres, geometry, nthreads)


def sky_alm(
    grid: Grid,
    maps: Sequence[np.ndarray],
    known: np.ndarray,
    geometry: PatchGeometry,
    lmax: int,
    window_of: str | Path | None = None,
    nthreads: int = 0,
) -> np.ndarray:
    """Fill a map of the sky, and take its a_lm.

    Parameters
    ----------
    grid, maps, known, geometry : as of :func:`cut_map`
    lmax : largest multipole
    window_of, nthreads : as of :func:`cut_map`

    Returns
    -------
    alm : of E and B in µK, (2, n_lm)

    Raises
    ------
    MapError
        if the pixel window cannot be had
    """
    # If the window cannot be had, the user learns it before anything slow.
    window = None if window_of is None else _pixel_window(Path(window_of), grid, lmax)
    q, u = fill(grid, maps, known, int(np.ceil(BEYOND * geometry.pixel / grid.step)))
    alm = grid.harmonics(q, u, lmax, nthreads)
    if window is not None:
        inverse = np.divide(1.0, window, out=np.zeros_like(window), where=window > 0)
        alm = np.array([healpy.almxfl(a, inverse) for a in alm])
    return alm


def _pixel_window(path: Path, grid: Grid, lmax: int) -> np.ndarray:
    """Window of polarisation of a HEALPix map's pixels, (lmax + 1,)."""
    assert isinstance(grid, HealpixGrid)  # a plan refuses it of another
    try:
        return healpy.pixwin(grid.nside, pol=True, lmax=lmax)[1]
    except (OSError, ValueError) as error:
        raise MapError(
            f"{path}: healpy has no pixel window for nside {grid.nside} and fetches it from the "
            f"network ({error}); run `python -c 'import healpy; healpy.pixwin({grid.nside})'` "
            "where there is one"
        ) from None


def fill(grid: Grid, maps: Sequence[np.ndarray], known: np.ndarray, steps: int) -> list[np.ndarray]:
    """Maps (n,) that go on smoothly where they are not known: to zero within ``steps`` pixels of
    what is known beyond the survey, and through holes.

    Every filled pixel is the mean of its neighbours (∇²f = 0): there is no step at an edge, which a
    band limit would make ring into what is known.

    Parameters
    ----------
    grid : the pixelisation
    maps : values of the pixels, (n,) each
    known : whether a pixel holds a value, (n,)
    steps : pixels beyond the survey over which the maps fall to zero

    Returns
    -------
    maps : filled, (n,) float32 each
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


def dilated(grid: Grid, known: np.ndarray, steps: int) -> np.ndarray:
    """Find the pixels that are not known and lie within some steps of one that is.

    Parameters
    ----------
    grid : the pixelisation
    known : whether a pixel holds a value, (n,)
    steps : in pixels

    Returns
    -------
    pixels : numbers, ascending, (n_found,)
    """
    if known.all():
        return np.zeros(0, int)
    state = known.copy()
    edge, reached = np.flatnonzero(known), []
    for _ in range(steps):
        nearest = []
        # The neighbours of all known pixels, the first edge, would fill the memory.
        for part in np.array_split(edge, len(edge) // PIXELS + 1):
            near = grid.neighbours(part).ravel()
            near = near[near >= 0]
            near = np.unique(near[~state[near]])
            state[near] = True
            nearest.append(near)
        edge = np.concatenate(nearest)
        reached.append(edge)
    return np.sort(np.concatenate(reached))


def cut(
    alm: np.ndarray, lmax: int, centres: np.ndarray, geometry: PatchGeometry, nthreads: int = 0
) -> np.ndarray:
    """Synthesise the patches of a survey from its a_lm, without modes beyond those of their pixels.

    Parameters
    ----------
    alm : of E and B in µK, (2, n_lm)
    lmax : largest multipole of the a_lm
    centres : colatitude and longitude of each patch in radians, (n_patches, 2)
    geometry : size and pixels of the patches
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

    Returns
    -------
    patches : Q + iU in the patches' frames in µK, (n_patches, n, n)
    """
    n = geometry.n_pixels
    border = max(n // BORDER, LEAST_BORDER)
    padded = n + 2 * border
    fine = PatchGeometry(geometry.size_deg * padded / n, 2 * padded, pad=0)
    chunks = []
    starts = range(0, len(centres), CHUNK)
    for start in tqdm(starts, desc="synthesis", unit="chunk", leave=False, disable=len(starts) < 2):
        pointing = point_patches(centres[start : start + CHUNK], fine)
        q, u = ducc0.sht.synthesis_general(
            alm=alm,
            spin=2,
            lmax=lmax,
            loc=np.stack([pointing.theta, pointing.phi], axis=1),
            epsilon=EPSILON,
            nthreads=nthreads,
        )
        p = ((q + 1j * u) * np.exp(-2j * pointing.frame)).reshape(-1, 2 * padded, 2 * padded)
        chunks.append(halved(p, border)[:, border:-border, border:-border])
    return np.concatenate(chunks)


def halved(maps: np.ndarray, border: int) -> np.ndarray:
    """Resample maps on half as many pixels a side, without the modes that these pixels do not have.

    Parameters
    ----------
    maps : on fine pixels, (n, 2m, 2m)
    border : coarse pixels over which the maps fall to zero, so that opposite edges meet

    Returns
    -------
    maps : on coarse pixels, (n, m, m)
    """
    fine = maps.shape[-1]
    coarse = fine // 2
    away = np.minimum(np.arange(fine), fine - 1 - np.arange(fine)) + 0.5
    # Half of the border is left as it is, because the filter reaches so far.
    side = np.sin(0.5 * np.pi * np.minimum(away / border, 1.0)) ** 2
    modes = np.fft.fft2(maps * side[:, None] * side)
    numbers = np.fft.fftfreq(coarse, 1.0 / coarse)
    rows = numbers.astype(int)
    # Coarse pixels' centres lie half a fine pixel beyond the fine ones'.
    shift = np.exp(1j * np.pi * numbers / fine)
    # The mode at the Nyquist frequency stands for two, and is removed.
    shift[coarse // 2] = 0.0
    kept = modes[:, rows[:, None], rows] * shift[:, None] * shift
    return np.fft.ifft2(kept) * (coarse / fine) ** 2
