"""Where patches lie on a simulated sky: far apart as in the paper, or side by side.

A sky costs its Legendre transforms, not its patches, so that a tiling as full as it goes makes
patches for a fraction of what separate ones cost.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import CNNLensError

# Points of each side of a patch at which its reach is measured.
EDGE_POINTS = 65
# Rounding of the rings' latitudes: 1e-6 of a degree, .004 arcsec.
ROUNDING_DEG = 1e-6


def ring_centres(size_deg: float) -> np.ndarray:
    """Centres of square patches in rings of equal latitude, none overlapping, as full as it goes.

    The equator has a ring; every further one lies as near to the last as the edges allow, until a
    patch would reach a pole. Within a ring the patches stand at equal distances.

    Parameters
    ----------
    size_deg : side of a patch in degrees, in the equal-area projection about its centre

    Returns
    -------
    colatitude and longitude in radians, (n, 2), from north to south

    Raises
    ------
    CNNLensError
        if a patch does not fit on the sky
    """
    if not 0 < size_deg < 60:
        raise CNNLensError(f"patches of {size_deg} degrees; a tiling takes sides between 0 and 60")
    half = np.radians(0.5 * size_deg)
    latitudes = [0.0]
    while (following := _next_latitude(latitudes[-1], half)) is not None:
        latitudes.append(following)
    rings = [*(-b for b in latitudes[:0:-1]), *latitudes][::-1]
    return np.concatenate([_ring(latitude, half) for latitude in rings])


def rings(size_deg: float, shift: float) -> list[np.ndarray]:
    """As :func:`ring_centres`, from south to north, but of any place along the meridian: the
    southernmost ring lies so many sides above the lowest that holds no pole.

    Parameters
    ----------
    size_deg : side of a patch
    shift : how many sides the southernmost ring lies above the lowest that holds no pole

    Returns
    -------
    colatitude and longitude in radians of each ring, (n, 2); a ring may be turned about the pole
    without touching another
    """
    half = np.radians(0.5 * size_deg)
    # In the place of the lowest that clears a pole by the rounding.
    first = np.sqrt(2.0) * half - 0.5 * np.pi + np.radians(ROUNDING_DEG) + 2.0 * half * shift
    latitudes: list[float] = []
    following: float | None = first
    while following is not None:
        latitudes.append(following)
        following = _next_latitude(following, half)
    return [_ring(latitude, half) for latitude in latitudes]


def evenly(n: int, wanted: int | None) -> np.ndarray:
    """Choose some of n patches, spread evenly over their numbers.

    Parameters
    ----------
    n : number of patches
    wanted : how many to choose; all for None, or for more than n

    Returns
    -------
    chosen : numbers of the patches
    """
    wanted = min(wanted or n, n)
    return np.arange(wanted) * n // wanted


def portion(n: int, size: int, number: int) -> np.ndarray:
    """Choose a portion of n patches, spread over all of them.

    Portions share no patch before all patches are taken. They are pieces of the sequence k·s mod n,
    whose step s is near the golden section of n (a Kronecker sequence).

    Parameters
    ----------
    n : number of patches
    size : how many to choose; all of them if there are fewer
    number : of the portion

    Returns
    -------
    chosen : numbers of the patches, ascending

    Examples
    --------
    >>> portion(10, 3, 0), portion(10, 3, 1)
    (array([0, 4, 7]), array([1, 5, 8]))
    """
    golden = round(n * (np.sqrt(5.0) - 1.0) / 2.0)
    step = next(s for s in range(max(golden, 1), n + 2) if math.gcd(s, n) == 1)
    size = min(size, n)
    return np.sort((number * size + np.arange(size)) * step % n)


def some(of_patches: np.ndarray, wanted: int | None, axis: int = 0) -> np.ndarray:
    """Take the values of the patches that :func:`evenly` chooses.

    Parameters
    ----------
    of_patches : values with the patches along ``axis``
    wanted : how many to choose
    axis : of the patches

    Returns
    -------
    chosen : the same array with fewer patches
    """
    return of_patches.take(evenly(of_patches.shape[axis], wanted), axis=axis)


def _ring(latitude: float, half: float) -> np.ndarray:
    """The centres of one ring; its first patch lies at longitude 0."""
    reach = np.abs(_edge(abs(latitude), half)[1]).max()
    n = max(int(np.pi / reach), 1)
    longitudes = 2.0 * np.pi * np.arange(n) / n
    return np.stack([np.full(n, 0.5 * np.pi - latitude), longitudes], axis=1)


def _next_latitude(latitude: float, half: float) -> float | None:
    """Latitude north of ``latitude`` ≥ 0 at which a patch's lowest point clears the last ring's
    highest; None if that patch would hold the pole."""
    wanted = _edge(latitude, half)[0].max()
    low, high = latitude, 0.5 * np.pi
    while high - low > np.radians(ROUNDING_DEG):
        middle = 0.5 * (low + high)
        below = _edge(middle, half)[0].min() < wanted
        low, high = (middle, high) if below else (low, middle)
    return high if high + np.sqrt(2.0) * half < 0.5 * np.pi else None


def _edge(latitude: float, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude from the centre's of points around a patch's edge, (n,) each.

    Lambert's equal-area projection: the plane's radius r is the angle 2 arcsin(r/2) on the sky.
    """
    along = np.linspace(-half, half, EDGE_POINTS)
    end = np.full_like(along, half)
    x = np.concatenate([along, along, end, -end])
    y = np.concatenate([end, -end, along, along])
    r = np.hypot(x, y)
    rho = 2.0 * np.arcsin(0.5 * r)
    sin, cos = np.sin(rho) / r, np.cos(rho)
    up = np.sin(latitude) * cos + np.cos(latitude) * y * sin
    ahead = np.cos(latitude) * cos - np.sin(latitude) * y * sin
    return np.arcsin(up), np.arctan2(x * sin, ahead)


def largest_overlap(centres: np.ndarray, size_deg: float) -> float:
    """Deepest that any patch's edge or centre reaches into another patch, in degrees; negative for
    the narrowest gap between two patches.

    Parameters
    ----------
    centres : colatitude and longitude in radians, (n, 2)
    size_deg : side of a patch

    Returns
    -------
    overlap : in degrees
    """
    half = np.radians(0.5 * size_deg)
    deepest = -np.inf
    up = unit_vectors(centres)
    for i, (theta, phi) in enumerate(centres):
        near = np.flatnonzero(up @ up[i] > np.cos(4.0 * half))
        latitude, offset = _edge(0.5 * np.pi - theta, half)
        edge = unit_vectors(np.stack([0.5 * np.pi - latitude, phi + offset], axis=1))
        # Edges of the same patch twice only touch.
        edge = np.concatenate([edge, up[i : i + 1]])
        for j in near[near != i]:
            x, y = project(edge, centres[j])
            deepest = max(deepest, float((half - np.maximum(np.abs(x), np.abs(y))).max()))
    return float(np.degrees(deepest))


def unit_vectors(angles: np.ndarray) -> np.ndarray:
    """Unit vectors of directions.

    Parameters
    ----------
    angles : colatitude and longitude in radians, (n, 2)

    Returns
    -------
    vectors : (n, 3)
    """
    theta, phi = angles.T
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], 1)


def project(points: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project directions onto the equal-area plane about a centre.

    Parameters
    ----------
    points : unit vectors, (n, 3)
    centre : colatitude and longitude in radians, (2,)

    Returns
    -------
    x, y : towards east and north in radians, (n,) each
    """
    theta, phi = centre
    east = np.array([-np.sin(phi), np.cos(phi), 0.0])
    north = np.array([-np.cos(theta) * np.cos(phi), -np.cos(theta) * np.sin(phi), np.sin(theta)])
    up = unit_vectors(centre[None])[0]
    scale = np.sqrt(2.0 / np.maximum(1.0 + points @ up, 1e-12))
    return points @ east * scale, points @ north * scale
