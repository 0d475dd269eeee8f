"""Observed patches: a shard seen through the instrument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..simulate.instrument import Instrument, Systematics, convolve_beam, draw_noise
from ..simulate.skies import seed_sequence
from .skies import Skies

if TYPE_CHECKING:
    from .simulation import Simulation

AS_CONFIGURED = Systematics()


@dataclass(frozen=True)
class ObservedPatches:
    """Maps of one sky, masked unless asked otherwise, (n_patches, n_pixels, n_pixels) float32 each.

    Attributes
    ----------
    q, u : beamed, noisy Q̃ and Ũ in µK
    e : unlensed E in µK
    kappa : convergence
    """

    q: np.ndarray
    u: np.ndarray
    e: np.ndarray
    kappa: np.ndarray


def observe_sky(
    run: Simulation,
    set_name: str,
    index: int,
    *,
    lensed: bool = True,
    masked: bool = True,
    systematics: Systematics = AS_CONFIGURED,
) -> ObservedPatches:
    """Read one shard and apply beam, noise and mask.

    The noise depends on (seed, set, index) only, so that skies which differ in cosmology but
    share phases may share noise too.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one
    lensed : False gives the unlensed Q, U with the same noise (null tests)
    masked : False leaves the mask out (pure B puts its own on)
    systematics : how the instrument differs from the configuration's

    Returns
    -------
    the maps of all patches
    """
    names = (*(("lensed_q", "lensed_u") if lensed else ("q", "u")), "e", "kappa")
    config = run.config
    q, u, e, kappa = Skies(run).read(set_name, index, names)
    mask: np.ndarray | np.float32 = np.float32(1.0)
    data_mask = mask
    if masked:
        mask, data_mask = (m.astype(np.float32) for m in (run.mask, run.data_mask))
    instrument = systematics.of(config.instrument)
    noise = sky_noise(run, set_name, index, len(q), instrument)
    q, u = systematics.distort(q, u)
    q, u = (
        (convolve_beam(maps, instrument, config.patch).astype(np.float32) + n) * data_mask
        for maps, n in zip((q, u), noise, strict=True)
    )
    e, kappa = (config.patch.crop(maps) * mask for maps in (e, kappa))
    return ObservedPatches(q, u, e, kappa)


def sky_noise(
    run: Simulation,
    set_name: str,
    index: int,
    n_patches: int,
    instrument: Instrument | None = None,
) -> np.ndarray:
    """Noise of Q and U of one sky.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one
    n_patches : of the sky
    instrument : whose noise it is; the configuration's by default

    Returns
    -------
    (2, n_patches, n_pixels, n_pixels) float32 in µK
    """
    config = run.config
    generator = np.random.default_rng(seed_sequence(config.seed, f"noise/{set_name}", index))
    n = config.patch.n_pixels
    shape = (2, n_patches, n, n)
    return draw_noise(shape, instrument or config.instrument, config.patch, generator)
