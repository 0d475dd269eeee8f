"""Classes of tiles with similar depth, which share a calibration.

A calibration holds for the noise and the holes that it was simulated with. It costs hours, and a
survey has hundreds of tiles. Complete linkage joins tiles so that no two of one class differ by
more than a limit in any of three numbers: ln of the noise level, the fraction of the patch with
data, and the area of holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from ..errors import InstrumentError
from .instrument import level_of
from .patches import PatchGeometry


@dataclass(frozen=True)
class TileDepth:
    """How deep tiles are, arrays (n_tiles,).

    Attributes
    ----------
    level : noise level in µK-arcmin of the mean inverse variance of the pixels with data
    seen : fraction of the mask's ∫M² in pixels with data
    holes : area in deg² of pixels without data that do not connect to the tile's edge
    """

    level: np.ndarray
    seen: np.ndarray
    holes: np.ndarray


@dataclass(frozen=True)
class DepthClasses:
    """Classes of tiles, the deepest first.

    Attributes
    ----------
    label : class of each tile, (n_tiles,)
    depth : means of each class, (n_classes,) each; that of ``level`` is geometric
    spread : the largest differences within each class, of ``level`` its ratio less one
    typical : the tile of each class that is nearest to its mean, to simulate, (n_classes,)
    """

    label: np.ndarray
    depth: TileDepth
    spread: TileDepth
    typical: np.ndarray


def tile_depths(rms: np.ndarray, mask: np.ndarray, geometry: PatchGeometry) -> TileDepth:
    """Noise level, seen fraction and area of holes of each tile.

    Parameters
    ----------
    rms : noise per pixel in µK, (n_tiles, n, n), infinite in pixels without data
    mask : (n, n)
    geometry : of the tiles

    Returns
    -------
    depths : one entry for each tile

    Raises
    ------
    InstrumentError
        if a tile has no pixel with data
    """
    seen = np.isfinite(rms) & (mask > 0)
    if not seen.any((1, 2)).all():
        empty = int(np.argmin(seen.any((1, 2))))
        raise InstrumentError(f"'rms' of tile {empty} is infinite throughout; leave it out")
    level = [level_of(np.where(s, r, np.inf), geometry) for r, s in zip(rms, seen, strict=True)]
    share = (seen * mask**2).sum((1, 2)) / (mask**2).sum()
    area = np.degrees(geometry.pixel) ** 2
    holes = [area * np.count_nonzero(enclosed(~np.isfinite(r))) for r in rms]
    return TileDepth(np.array(level), share, np.array(holes))


def enclosed(hidden: np.ndarray) -> np.ndarray:
    """Label the holes: connected hidden pixels that do not reach the edge.

    Parameters
    ----------
    hidden : whether a pixel has no data, (n, n); pixels that touch by a side or a corner are
        connected

    Returns
    -------
    labels : (n, n), numbers from 1, and 0 elsewhere
    """
    parts, _ = scipy.ndimage.label(hidden, np.ones((3, 3)))
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    inner = np.where(np.isin(parts, edge), 0, parts)
    return np.unique(np.append(inner, 0), return_inverse=True)[1][:-1].reshape(hidden.shape)


def depth_classes(
    depth: TileDepth, level: float = 0.05, seen: float = 0.03, holes: float = 0.1
) -> DepthClasses:
    """Put the tiles into classes of similar depth.

    Parameters
    ----------
    depth : of :func:`tile_depths`
    level : largest ratio of noise levels within a class, less one
    seen : largest difference of the seen fraction
    holes : largest difference of the area of holes in deg²

    Returns
    -------
    classes : no two tiles of one class differ by more than the limits

    Raises
    ------
    InstrumentError
        if a spread is not positive, or a tile's depth is not finite
    """
    for name, value in (("level", level), ("seen", seen), ("holes", holes)):
        if not value > 0:
            raise InstrumentError(f"the spread '{name}' is {value:g}; it must be positive")
        if not np.isfinite(getattr(depth, name)).all():
            raise InstrumentError(f"'{name}' of a tile is not finite; leave the tile out")
    from scipy.cluster.hierarchy import fcluster, linkage

    units = np.array([np.log1p(level), seen, holes])
    at = np.stack([np.log(depth.level), depth.seen, depth.holes], axis=1) / units
    cluster = np.zeros(len(at), int)
    if len(at) > 1:
        tree = linkage(at, "complete", metric="chebyshev")
        cluster = fcluster(tree, 1.0, criterion="distance") - 1
    means = np.array([at[cluster == c].mean(0) for c in range(cluster.max() + 1)])
    order = np.argsort(means[:, 0])
    label = np.argsort(order)[cluster]
    members = [np.flatnonzero(label == c) for c in range(len(order))]
    means = means[order]
    typical = [m[np.argmin(np.abs(at[m] - x).max(1))] for m, x in zip(members, means, strict=True)]
    ends = np.array([np.ptp(at[m], axis=0) for m in members]) * units
    log_level, share, area = (means * units).T
    return DepthClasses(
        label,
        TileDepth(np.exp(log_level), share, area),
        TileDepth(np.expm1(ends[:, 0]), ends[:, 1], ends[:, 2]),
        np.array(typical),
    )
