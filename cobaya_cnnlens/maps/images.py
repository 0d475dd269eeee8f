"""FITS images of patches, with their world coordinate system (WCS)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from ..files import atomic_write
from ..simulate.patches import PatchGeometry, point_patch
from .headers import AXES

# The headers of κ̂ explain the images in these words.
KAPPA_COMMENTS = (
    "kappa is dimensionless (BUNIT is empty); it is times the mask,",
    "and not divided by the response R.",
    "Longitude grows to the left: data[:, ::-1] has the order of an array",
    "of maps (.npz), axis 0 north, axis 1 east.",
)


def write_images(
    path: str | Path,
    planes: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
    unit: str,
    frame: str = "C",
    comments: Sequence[str] = (),
    **cards: str | float,
) -> None:
    """Write a patch, (ny, nx) or (n_planes, ny, nx), as a FITS image with its WCS, atomically; one
    whose ``centre`` is not known (NaN) with the size of its pixels alone.

    Polarisation planes must refer to the local meridian, see :func:`to_meridian`.

    Parameters
    ----------
    path : destination
    planes : the map, (ny, nx) or (n_planes, ny, nx)
    centre : colatitude and longitude in radians, (2,), NaN where unknown
    geometry : of the patches
    unit : for ``BUNIT``
    frame : of the coordinates, a key of :data:`~.headers.FRAMES`
    comments : for the header
    **cards : further keywords of the header
    """
    n, step = geometry.n_pixels, np.degrees(geometry.pixel)
    # In astronomical images longitude grows to the left.
    image = fits.PrimaryHDU(np.ascontiguousarray(planes[..., ::-1], dtype=np.float32))
    header = image.header
    latitude, longitude = 90.0 - np.degrees(centre[0]), np.degrees(centre[1])
    known = bool(np.isfinite(centre).all())
    kinds, place = [f"{axis}ZEA" for axis in AXES[frame]], (longitude, latitude)
    if not known:
        kinds, place = ["X", "Y"], (0.0, 0.0)
    for axis, (kind, value, sign) in enumerate(
        zip(kinds, place, (-1.0, 1.0), strict=True), start=1
    ):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = kind, "deg"
        header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = value, sign * step
        header[f"CRPIX{axis}"] = 0.5 * (n + 1)
    header["BUNIT"] = unit
    for key, value in cards.items():
        header[key] = value
    for comment in comments:
        header.add_comment(comment)
    with atomic_write(path) as partial:
        image.writeto(partial, overwrite=True)


def write_kappa(
    path: str | Path,
    kappa: np.ndarray,
    centre: np.ndarray,
    geometry: PatchGeometry,
    frame: str,
    **cards: str | float,
) -> None:
    """Write κ̂ of a patch, (ny, nx) in the patch's frame, as :func:`write_images` does, and say in
    the header what it is.

    Parameters
    ----------
    path : destination
    kappa : κ̂ in the patch's frame, (ny, nx)
    centre : colatitude and longitude in radians, (2,), NaN where unknown
    geometry : of the patches
    frame : of the coordinates, a key of :data:`~.headers.FRAMES`
    **cards : further keywords of the header
    """
    write_images(path, kappa, centre, geometry, "", frame, KAPPA_COMMENTS, **cards)


def to_meridian(
    q: np.ndarray, u: np.ndarray, centre: np.ndarray, geometry: PatchGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Turn Q and U from the patch's frame to the local meridian, with the sign of COSMO.

    Parameters
    ----------
    q, u : in the patch's frame, (n, n) each
    centre : colatitude and longitude in radians, (2,)
    geometry : of the patches

    Returns
    -------
    Q and U, (n, n) each
    """
    flat = PatchGeometry(geometry.size_deg, geometry.n_pixels, pad=0)
    frame = point_patch(centre, flat).frame.reshape(q.shape)
    p = (q + 1j * u) * np.exp(2j * frame)
    return p.real, p.imag
