"""Flat patches of the curved sky: exact lensing at the pixels of a Lambert projection.

A patch is a square in the Lambert azimuthal equal-area plane about its centre;
axis 0 is y (north), axis 1 is x (east). Q and U refer to the patch's own axes,
with the HEALPix (COSMO) sign: Q > 0 along y, and U > 0 at 45° from south towards
east. At the centre they equal HEALPix's; elsewhere they are parallel transported
from the centre along great circles. The flat-sky E and B that go with this are in
:mod:`cobaya_cnnlens.simulate.bandpowers`.

Lensing is X̃(n) = X(n + ∇φ) with κ = −½∇²φ, CAMB's and lenspyx's sign.

ducc0 is imported where it is called: the geometry alone, as analytic noise needs it, goes without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..errors import CNNLensError
from .skies import scale_alm

# Target accuracy of the non-uniform transforms; the error measured is 3e-7 of the rms.
EPSILON = 1e-5
# A dataclass of arrays.
_Arrays = TypeVar("_Arrays")


@dataclass(frozen=True)
class PatchGeometry:
    """A square patch.

    Defaults are the paper's 5 deg x 5 deg at 128² pixels (2.34 arcmin, Nyquist l = 4608).
    ``pad`` pixels are added on every side while the beam is applied.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    size_deg: float = 5.0
    n_pixels: int = 128
    pad: int = 4

    @property
    def pixel(self) -> float:
        """Pixel side in radians."""
        return np.radians(self.size_deg) / self.n_pixels

    @property
    def n_padded(self) -> int:
        """Pixels along a side with the padding."""
        return self.n_pixels + 2 * self.pad

    @property
    def nyquist(self) -> float:
        """Multipole π/Δ beyond which power aliases."""
        return np.pi / self.pixel

    @property
    def fundamental(self) -> float:
        """Multipole 2π/(nΔ) of the longest wave in the patch."""
        return 2.0 * np.pi / (self.n_pixels * self.pixel)

    def crop(self, maps: np.ndarray) -> np.ndarray:
        """Cut the patch out of padded maps.

        Parameters
        ----------
        maps : (..., n_padded, n_padded)

        Returns
        -------
        patches : (..., n_pixels, n_pixels)
        """
        inner = slice(self.pad, self.pad + self.n_pixels)
        return maps[..., inner, inner]


@dataclass(frozen=True)
class Pointing:
    """Sky positions of a set of pixels, each array of shape (n,), in radians.

    ``frame`` is the angle from the meridian (south) to the patch's −y axis at the
    pixel, so that P_patch = P_sphere exp(−2i frame) for P = Q + iU.
    """

    theta: np.ndarray
    phi: np.ndarray
    frame: np.ndarray


def patch_centres(nside: int = 4, poles: int = 16) -> np.ndarray:
    """Centres of the patches of a simulated sky.

    They are the centres of HEALPix pixels without the ``poles`` nearest each pole. At nside 4 they
    are 14 deg apart, so that patches of 5 deg do not overlap.

    Parameters
    ----------
    nside : of HEALPix
    poles : how many centres to leave out at each pole

    Returns
    -------
    centres : colatitude and longitude in radians, (160, 2) by default
    """
    import healpy  # takes a second or two, for matplotlib; every command reads this module

    theta, phi = healpy.pix2ang(nside, np.arange(healpy.nside2npix(nside)))
    return np.stack([theta, phi], axis=1)[poles : len(theta) - poles]


def healpix_pointing(nside: int, pixels: np.ndarray) -> Pointing:
    """Positions of HEALPix pixels.

    Parameters
    ----------
    nside : of HEALPix
    pixels : numbers in ring order, (n,)

    Returns
    -------
    pointing : with the frame of HEALPix
    """
    import healpy

    theta, phi = healpy.pix2ang(nside, pixels)
    return Pointing(theta, phi, np.zeros(len(pixels)))


def closest_centres(nside: int, poles: int, enough: float) -> float:
    """Angle between the two closest of :func:`patch_centres`.

    If a lower bound already exceeds ``enough``, the bound is returned and healpy is not loaded.
    Neighbouring HEALPix centres are never closer than 0.79 of the root of a pixel's area.

    Parameters
    ----------
    nside : of HEALPix
    poles : how many centres are left out at each pole
    enough : angle in degrees above which a bound will do

    Returns
    -------
    angle : in degrees
    """
    bound = 0.79 * np.degrees(np.sqrt(np.pi / 3.0)) / nside
    centres = 12 * nside**2 - 2 * poles
    if bound > enough or centres < 2:
        return bound if centres > 1 else 180.0
    from scipy.spatial import cKDTree

    theta, phi = patch_centres(nside, poles).T
    points = _local_axes(theta, phi)[2]
    distances, _ = cKDTree(points).query(points, 2)
    chord = np.asarray(distances)[:, 1].min()
    return float(np.degrees(2.0 * np.arcsin(0.5 * chord)))


def point_patch(centre: np.ndarray, geometry: PatchGeometry) -> Pointing:
    """Positions of the pixels of a padded patch.

    Parameters
    ----------
    centre : colatitude and longitude of the centre in radians
    geometry : of the patch

    Returns
    -------
    pointing : row by row, n = n_padded²
    """
    n = geometry.n_padded
    offset = (np.arange(n) - 0.5 * (n - 1)) * geometry.pixel
    x, y = (c.ravel() for c in np.meshgrid(offset, offset))
    r = np.hypot(x, y)
    rho = 2.0 * np.arcsin(0.5 * r)
    bearing = np.arctan2(x, -y)  # from south towards east, at the centre

    theta0, phi0 = centre
    south0, east0, up0 = _local_axes(theta0, phi0)
    outward = np.cos(bearing)[:, None] * south0 + np.sin(bearing)[:, None] * east0
    n_hat = np.cos(rho)[:, None] * up0 + np.sin(rho)[:, None] * outward
    tangent = -np.sin(rho)[:, None] * up0 + np.cos(rho)[:, None] * outward

    theta = np.arctan2(np.hypot(n_hat[:, 0], n_hat[:, 1]), n_hat[:, 2])
    phi = np.arctan2(n_hat[:, 1], n_hat[:, 0]) % (2.0 * np.pi)
    south, east, _ = _local_axes(theta, phi)
    bearing_there = np.arctan2((tangent * east).sum(-1), (tangent * south).sum(-1))
    return Pointing(theta, phi, bearing_there - bearing)


def point_patches(centres: np.ndarray, geometry: PatchGeometry) -> Pointing:
    """Positions of the pixels of all patches, one patch after another.

    Parameters
    ----------
    centres : colatitude and longitude in radians, (n_patches, 2)
    geometry : of the patches

    Returns
    -------
    pointing : n = n_patches · n_padded²
    """
    return _join([point_patch(centre, geometry) for centre in centres])


def repeat_pointing(pointing: Pointing, times: int) -> Pointing:
    """The same pixels several times over.

    Parameters
    ----------
    pointing : n pixels
    times : how often

    Returns
    -------
    pointing : n · times pixels
    """
    return _join([pointing] * times)


def _join(parts: Sequence[_Arrays]) -> _Arrays:
    """Dataclasses of arrays, one after another along the first axis."""
    fields = type(parts[0]).__annotations__
    return type(parts[0])(*(np.concatenate([getattr(p, k) for p in parts]) for k in fields))


def _local_axes(theta: ArrayLike, phi: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors e_θ (south), e_φ (east), e_r at (θ, φ), each (..., 3)."""
    st, ct, sp, cp = np.sin(theta), np.cos(theta), np.sin(phi), np.cos(phi)
    zero = np.zeros_like(st)
    south = np.stack([ct * cp, ct * sp, -st], axis=-1)
    east = np.stack([-sp, cp, zero], axis=-1)
    up = np.stack([st * cp, st * sp, ct], axis=-1)
    return south, east, up


def scalar_at(alm: np.ndarray, lmax: int, pointing: Pointing, nthreads: int = 0) -> np.ndarray:
    """Evaluate a scalar field at the pixels.

    Parameters
    ----------
    alm : in HEALPix order, complex
    lmax : of ``alm``
    pointing : n pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    values : (n,)
    """
    import ducc0

    return ducc0.sht.synthesis_general(
        alm=alm[None],
        spin=0,
        lmax=lmax,
        loc=np.stack([pointing.theta, pointing.phi], axis=1),
        epsilon=EPSILON,
        nthreads=nthreads,
    )[0]


@dataclass(frozen=True)
class Deflection:
    """Where each pixel's light came from: angles and the rotation of axes on the way, (n,) each."""

    theta: np.ndarray
    phi: np.ndarray
    rotation: np.ndarray


def gradient_at(philm: np.ndarray, lmax: int, pointing: Pointing, nthreads: int = 0) -> np.ndarray:
    """Evaluate ∇φ at the pixels; it is linear in ``philm``.

    Parameters
    ----------
    philm : in HEALPix order, complex
    lmax : of ``philm``
    pointing : n pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    gradient : components along south and east, (n, 2) in radians
    """
    import ducc0

    gradient = ducc0.sht.synthesis_general(
        alm=philm[None],
        spin=1,
        mode="DERIV1",
        lmax=lmax,
        loc=np.stack([pointing.theta, pointing.phi], axis=1),
        epsilon=EPSILON,
        nthreads=nthreads,
    )
    return np.ascontiguousarray(gradient.T)


def deflect_by(gradient: np.ndarray, pointing: Pointing, nthreads: int = 0) -> Deflection:
    """Move every pixel by ∇φ along a great circle (Lewis 2005, astro-ph/0502469, app. A).

    Parameters
    ----------
    gradient : of :func:`gradient_at`, (n, 2) in radians
    pointing : n pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    deflection : new positions and rotations of the frame
    """
    import ducc0

    n = len(pointing.theta)
    angles = ducc0.misc.get_deflected_angles(
        theta=pointing.theta,
        phi0=pointing.phi,
        nphi=np.ones(n, dtype=np.uint64),
        ringstart=np.arange(n, dtype=np.uint64),
        deflect=gradient,
        calc_rotation=True,
        nthreads=nthreads,
    )
    return Deflection(angles[:, 0], angles[:, 1], angles[:, 2])


def join_deflections(deflections: list[Deflection]) -> Deflection:
    """Join several deflections of the same pixels, one after another.

    Parameters
    ----------
    deflections : of n pixels each

    Returns
    -------
    deflection : of all
    """
    return _join(deflections)


def polarisation_at(
    elm: np.ndarray, lmax: int, pointing: Pointing, nthreads: int = 0
) -> np.ndarray:
    """Evaluate Q + iU of an unlensed pure-E field, in the frame of the patch.

    Parameters
    ----------
    elm : in HEALPix order, µK, complex
    lmax : of ``elm``
    pointing : n pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    polarisation : (n,) complex, in µK
    """
    p = _spin2(elm, lmax, pointing.theta, pointing.phi, nthreads)
    return p * np.exp(-2j * pointing.frame)


def lensed_polarisation_at(
    elm: np.ndarray, lmax: int, pointing: Pointing, deflection: Deflection, nthreads: int = 0
) -> np.ndarray:
    """Evaluate lensed Q̃ + iŨ, in the frame of the patch; it is linear in ``elm``.

    Parameters
    ----------
    elm : in HEALPix order, µK, complex
    lmax : of ``elm``
    pointing : n pixels
    deflection : of these pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    polarisation : (n,) complex, in µK
    """
    p = _spin2(elm, lmax, deflection.theta, deflection.phi, nthreads)
    return p * np.exp(2j * (deflection.rotation - pointing.frame))


def lensed_and_unlensed_at(
    elm: np.ndarray, lmax: int, pointing: Pointing, deflection: Deflection, nthreads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Lensed and unlensed polarisation from one Legendre transform, which is nearly all of the
    cost.

    Parameters
    ----------
    elm : in HEALPix order, µK, complex
    lmax : of ``elm``
    pointing : n pixels
    deflection : of these pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    lensed, unlensed : Q + iU, (n,) complex each, in µK
    """
    theta = np.concatenate([deflection.theta, pointing.theta])
    phi = np.concatenate([deflection.phi, pointing.phi])
    lensed, unlensed = np.split(_spin2(elm, lmax, theta, phi, nthreads), 2)
    return (
        lensed * np.exp(2j * (deflection.rotation - pointing.frame)),
        unlensed * np.exp(-2j * pointing.frame),
    )


def _spin2(
    elm: np.ndarray, lmax: int, theta: np.ndarray, phi: np.ndarray, nthreads: int
) -> np.ndarray:
    import ducc0

    q, u = ducc0.sht.synthesis_general(
        alm=elm[None],
        spin=2,
        mode="GRAD_ONLY",
        lmax=lmax,
        loc=np.stack([theta, phi], axis=1),
        epsilon=EPSILON,
        nthreads=nthreads,
    )
    return q + 1j * u


def truncate_alm(alm: np.ndarray, lmax: int, band_limit: int) -> np.ndarray:
    """The a_lm with l ≤ ``band_limit``.

    Parameters
    ----------
    alm : in HEALPix order, complex
    lmax : of ``alm``
    band_limit : at most ``lmax``

    Returns
    -------
    alm : in HEALPix order for that limit
    """
    if band_limit > lmax:
        raise CNNLensError(f"band_limit {band_limit} lies above lmax {lmax}")
    starts = [m * (2 * lmax + 1 - m) // 2 for m in range(band_limit + 1)]
    return np.concatenate([alm[s + m : s + band_limit + 1] for m, s in enumerate(starts)])


def convergence_alm(philm: np.ndarray, lmax: int, band_limit: int) -> np.ndarray:
    """κ_lm = ½ l(l+1) φ_lm for l ≤ ``band_limit``; sampling would alias higher multipoles.

    Parameters
    ----------
    philm : in HEALPix order, complex
    lmax : of ``philm``
    band_limit : at most ``lmax``

    Returns
    -------
    kappalm : in HEALPix order for the band limit
    """
    ell = np.arange(band_limit + 1, dtype=float)
    return scale_alm(truncate_alm(philm, lmax, band_limit), 0.5 * ell * (ell + 1.0))
