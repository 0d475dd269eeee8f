"""Harmonic skies: a_lm of the unlensed E mode and of the lensing potential.

A sky is fixed by its *phases*, unit-variance a_lm drawn from a seed keyed by
(stage, index), times the square roots of the spectra. Two cosmologies that
share phases share their cosmic variance, so it cancels in their difference
(common random numbers).
"""

from __future__ import annotations

import zlib

import numpy as np

from ..errors import CNNLensError


def seed_sequence(seed: int, stage: str, *index: int) -> np.random.SeedSequence:
    """Seed of one unit of random work, independent of which worker does it.

    Parameters
    ----------
    seed : the survey's root seed
    stage : name of the stage or set, e.g. ``"train"``, ``"noise/test"``
    *index : indices of the unit within the stage

    Returns
    -------
    sequence : the same for the same arguments, on every machine
    """
    return np.random.SeedSequence([seed, zlib.crc32(stage.encode()), *index])


def unit_alm(lmax: int, generator: np.random.Generator) -> np.ndarray:
    """Draw Gaussian a_lm with C_l = 1.

    a_l0 is real with unit variance; Re and Im of a_lm for m > 0 have variance 1/2 each.

    Parameters
    ----------
    lmax : largest multipole
    generator : source of the random numbers

    Returns
    -------
    alm : in HEALPix order, ((lmax+1)(lmax+2)/2,) complex128
    """
    size = (lmax + 1) * (lmax + 2) // 2
    alm = generator.standard_normal((size, 2)).view(np.complex128)[:, 0]
    alm[lmax + 1 :] *= np.sqrt(0.5)
    alm[: lmax + 1] = alm[: lmax + 1].real
    return alm


def scale_alm(alm: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiply a_lm by a function of l.

    Parameters
    ----------
    alm : in HEALPix order, complex
    factor : from l = 0, (lmax + 1,)

    Returns
    -------
    alm : in HEALPix order
    """
    lmax = len(factor) - 1
    if alm.shape != ((lmax + 1) * (lmax + 2) // 2,):
        raise CNNLensError(
            f"alm of shape {alm.shape} does not fit a factor of length {lmax + 1}; "
            f"lmax {lmax} needs {(lmax + 1) * (lmax + 2) // 2} coefficients"
        )
    scaled = np.empty_like(alm)
    start = 0
    for m in range(lmax + 1):
        stop = start + lmax + 1 - m
        scaled[start:stop] = alm[start:stop] * factor[m:]
        start = stop
    return scaled
