"""Shards: one simulated sky per file, all patches and fields of it.

Fields, each float32 of shape (n_patches, n_padded, n_padded), without beam, noise or
mask: ``lensed_q``, ``lensed_u`` (Q̃, Ũ), ``q``, ``u`` (unlensed), ``e`` (unlensed E), all
in µK, and ``kappa``. E and κ are band-limited below the patch's Nyquist multipole.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..errors import CNNLensError
from ..theory.camb import Spectra
from . import patches
from .patches import PatchGeometry
from .skies import scale_alm, seed_sequence, unit_alm
from .tiling import ring_centres

FIELDS = ("lensed_q", "lensed_u", "q", "u", "e", "kappa")


@dataclass(frozen=True)
class SkySettings:
    """Harmonic limits of a sky: ``lmax`` of the a_lm, ``band_limit`` of the E and κ maps."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lmax: int = 5000
    band_limit: int = 4400


@dataclass(frozen=True)
class HarmonicSky:
    """Unlensed E and lensing potential of one sky, a_lm to ``lmax`` in HEALPix order."""

    elm: np.ndarray
    philm: np.ndarray
    lmax: int


def draw_sky(spectra: Spectra, lmax: int, seed: int, stage: str, index: int) -> HarmonicSky:
    """Draw one sky; its phases depend on (seed, stage, index), not on the spectra.

    Parameters
    ----------
    spectra : of φ and of unlensed E
    lmax : band limit of the sky
    seed : the root seed of the survey
    stage : name of the set, for example ``"train"``
    index : number of the sky in the set

    Returns
    -------
    sky : its a_lm

    Raises
    ------
    CNNLensError
        if the spectra end below ``lmax``
    """
    if spectra.lmax < lmax:
        raise CNNLensError(f"spectra end at l = {spectra.lmax}, the sky needs lmax = {lmax}")
    factors = (np.sqrt(spectra.ee[: lmax + 1]), np.sqrt(spectra.pp[: lmax + 1]))

    def field(job: tuple[np.random.SeedSequence, np.ndarray]) -> np.ndarray:
        child, factor = job
        return scale_alm(unit_alm(lmax, np.random.default_rng(child)), factor)

    children = seed_sequence(seed, f"sky/{stage}", index).spawn(2)
    with ThreadPoolExecutor(2) as pool:
        elm, philm = pool.map(field, zip(children, factors, strict=True))
    return HarmonicSky(elm, philm, lmax)


@lru_cache(maxsize=2)
def pointing_of(geometry: PatchGeometry, nside: int, poles: int) -> patches.Pointing:
    """Positions of the pixels of all patches; kept, because every sky shares them.

    Parameters
    ----------
    geometry : of the patches
    nside, poles : of :func:`.patches.patch_centres`

    Returns
    -------
    pointing : n = n_patches · n_padded²
    """
    return patches.point_patches(patches.patch_centres(nside, poles), geometry)


@lru_cache(maxsize=2)
def pointing_in_rings(geometry: PatchGeometry) -> patches.Pointing:
    """Positions of the pixels of patches side by side in rings; kept.

    Parameters
    ----------
    geometry : of the patches

    Returns
    -------
    pointing : n = n_patches · n_padded²
    """
    return patches.point_patches(ring_centres(geometry.size_deg), geometry)


def some_patches(
    pointing: patches.Pointing, geometry: PatchGeometry, chosen: np.ndarray
) -> patches.Pointing:
    """Positions of the pixels of some of the patches.

    Parameters
    ----------
    pointing : of all patches
    geometry : of the patches
    chosen : numbers of the patches, (n_chosen,)

    Returns
    -------
    pointing : n = n_chosen · n_padded²
    """
    fields = (getattr(pointing, name) for name in patches.Pointing.__annotations__)
    by_patch = (values.reshape(-1, geometry.n_padded**2) for values in fields)
    return patches.Pointing(*(values[chosen].ravel() for values in by_patch))


def sample_patches(
    sky: HarmonicSky,
    settings: SkySettings,
    geometry: PatchGeometry,
    pointing: patches.Pointing,
    nthreads: int = 0,
) -> dict[str, np.ndarray]:
    """Sample all fields of a sky at the pixels of the patches.

    Parameters
    ----------
    sky : its a_lm
    settings : band limits and names of the fields
    geometry : of the patches
    pointing : of the patches
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    fields : by name, with the shapes that the module's docstring states
    """
    n = geometry.n_padded
    gradient = patches.gradient_at(sky.philm, sky.lmax, pointing, nthreads)
    deflection = patches.deflect_by(gradient, pointing, nthreads)
    lensed, unlensed = patches.lensed_and_unlensed_at(
        sky.elm, sky.lmax, pointing, deflection, nthreads
    )
    e = patches.scalar_at(
        patches.truncate_alm(sky.elm, sky.lmax, settings.band_limit),
        settings.band_limit,
        pointing,
        nthreads,
    )
    kappa = patches.scalar_at(
        patches.convergence_alm(sky.philm, sky.lmax, settings.band_limit),
        settings.band_limit,
        pointing,
        nthreads,
    )
    maps = (lensed.real, lensed.imag, unlensed.real, unlensed.imag, e, kappa)
    return {
        name: values.astype(np.float32).reshape(-1, n, n)
        for name, values in zip(FIELDS, maps, strict=True)
    }
