"""Noise that is correlated from pixel to pixel: 1/f noise of the detectors and the atmosphere.

The power of the noise is white times

    1 + (l_knee/l_eff)^s ,   l_eff² = l_∥² + (l_⊥/a)² ,

with l_∥ along the scan and l_⊥ across it. For a = 1 it is isotropic, as in forecasts of
ground-based noise (Ade et al. 2019, arXiv:1808.07445, eq. 1, with α = −s). Scans at one angle give
a → ∞: drifts appear at small l_∥ for every l_⊥ (Crawford 2007, astro-ph/0702608). Where the depth
varies, a map is the noise rms of each pixel times noise of unit white level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import scipy.fft

from ..errors import InstrumentError
from .modes import mode_vectors

# Noise is drawn on a box so many times the patch's side, less its mean: drifts longer than that are
# left out, as they are by any map-maker's filters.
BOX = 2
# Least l_eff that the formula is taken at: of l = 0 alone.
LEAST_MULTIPOLE = 1.0
# Points along a side of a mode's cell over which its power is averaged.
CELL = 8
# Of the noise that is drawn: part of the identity of what is simulated with an excess.
ALGORITHM = 2
LARGEST = {"knee": 5000.0, "slope": 6.0, "anisotropy": 100.0, "scan_deg": 180.0}


@dataclass(frozen=True)
class OneOverF:
    """Excess of the noise's power at low multipoles.

    Attributes
    ----------
    knee : multipole at which the excess is as large as the white noise
    slope : s > 0 of (l_knee/l)^s
    anisotropy : a, how many times farther the excess reaches across the scan than along it
    scan_deg : direction of the scan, from east (+x) towards north (+y)
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    knee: float
    slope: float
    anisotropy: float = 1.0
    scan_deg: float = 0.0

    def __post_init__(self) -> None:
        least = {"knee": 0.0, "slope": 0.0, "anisotropy": 1.0, "scan_deg": 0.0}
        for name, most in LARGEST.items():
            if not least[name] <= getattr(self, name) <= most:
                raise InstrumentError(
                    f"one_over_f.{name} is {getattr(self, name):.6g}; it lies between "
                    f"{least[name]:g} and {most:g}"
                )

    def ratio(self, ly: np.ndarray, lx: np.ndarray) -> np.ndarray:
        """Power at modes relative to the white noise.

        Parameters
        ----------
        ly, lx : components of l, of any one shape

        Returns
        -------
        ratio : of the same shape
        """
        cos, sin = np.cos(np.radians(self.scan_deg)), np.sin(np.radians(self.scan_deg))
        along, across = cos * lx + sin * ly, cos * ly - sin * lx
        effective = np.maximum(np.hypot(along, across / self.anisotropy), LEAST_MULTIPOLE)
        return 1.0 + (self.knee / effective) ** self.slope

    def mean_ratio(self, ell: np.ndarray) -> np.ndarray:
        """:meth:`ratio` averaged over the directions of l.

        Parameters
        ----------
        ell : multipoles, of any shape

        Returns
        -------
        ratio : of the shape of ``ell``
        """
        angle = 2.0 * np.pi * (np.arange(720) + 0.5) / 720
        ell = np.asarray(ell, float)[..., None]
        return self.ratio(ell * np.sin(angle), ell * np.cos(angle)).mean(-1)

    def cell_ratio(self, n: int, pixel: float) -> np.ndarray:
        """:meth:`ratio` averaged over the cell of each mode of a box, without longer drifts.

        The ratio is steep where a box has few modes. At the centres of the cells it would be up to
        40% too large. The part of a cell below the first mode is drifts that are left out.

        Parameters
        ----------
        n : pixels on a side of the box
        pixel : side of a pixel in radians

        Returns
        -------
        ratio : (n, n//2 + 1), zero for the mean
        """
        first = 2.0 * np.pi / (n * pixel)
        ly, lx = mode_vectors(n, pixel)
        steps = ((np.arange(CELL) + 0.5) / CELL - 0.5) * first
        total = np.zeros(ly.shape)
        for y in steps:
            for x in steps:
                inside = np.hypot(ly + y, lx + x) >= first
                total += np.where(inside, self.ratio(ly + y, lx + x), 0.0)
        total[0, 0] = 0.0
        return total / CELL**2

    def draw(self, n: int, pixel: float, generator: np.random.Generator) -> np.ndarray:
        """Draw periodic noise of unit white level without its mean.

        Parameters
        ----------
        n : pixels on a side
        pixel : side of a pixel in radians
        generator : source of the random numbers

        Returns
        -------
        noise : (n, n) float32
        """
        roots = _roots(self, n, pixel)
        white = generator.standard_normal((n, n), dtype=np.float32)
        return scipy.fft.irfft2(scipy.fft.rfft2(white) * roots, s=(n, n))


@lru_cache(maxsize=8)
def _roots(excess: OneOverF, n: int, pixel: float) -> np.ndarray:
    """Roots of :meth:`.OneOverF.cell_ratio`, kept because every patch takes them."""
    return np.sqrt(excess.cell_ratio(n, pixel)).astype(np.float32)


def unit_noise(
    shape: tuple[int, ...],
    one_over_f: OneOverF | None,
    pixel: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw noise of unit white level on patches.

    Parameters
    ----------
    shape : (..., n, n)
    one_over_f : None for white noise
    pixel : side of a pixel in radians
    generator : source of the random numbers

    Returns
    -------
    noise : float32 of that shape
    """
    if one_over_f is None:
        return generator.standard_normal(shape, dtype=np.float32)
    n = shape[-1]
    size = scipy.fft.next_fast_len(BOX * n, real=True)
    noise = np.empty((int(np.prod(shape[:-2])), n, n), np.float32)
    for patch in noise:
        patch[:] = one_over_f.draw(size, pixel, generator)[:n, :n]
    return noise.reshape(shape)
