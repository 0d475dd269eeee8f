"""Temperature of simulated skies: what leaks into polarisation.

No estimator here reads temperature, and shards hold none. A sky's T is drawn to its E,

    T_lm = (C^TE/C^EE) E_lm + (C^TT − (C^TE)²/C^EE)^½ x_lm ,

with unlensed spectra and phases x of its own, so that E and φ are as they were; then it is lensed
by the same deflection.
"""

from __future__ import annotations

import numpy as np

from ..errors import SpectrumError
from ..theory.camb import TemperatureSpectra
from .patches import Pointing, deflect_by, gradient_at, scalar_at
from .shards import HarmonicSky
from .skies import scale_alm, seed_sequence, unit_alm


def temperature_alm(
    sky: HarmonicSky,
    ee: np.ndarray,
    temperature: TemperatureSpectra,
    seed: int,
    stage: str,
    index: int,
) -> np.ndarray:
    """Unlensed T_lm of a sky in µK, to its ``lmax``.

    Parameters
    ----------
    ee, temperature : unlensed spectra in µK², of which the sky's E was drawn
    seed, stage, index : of the sky

    Raises
    ------
    SpectrumError
        if spectra end below the sky's ``lmax``, or |C^TE|² > C^TT C^EE
    """
    stop = slice(sky.lmax + 1)
    ee, tt, te = (cl[stop] for cl in (ee, temperature.tt, temperature.te))
    if min(map(len, (ee, tt, te))) < sky.lmax + 1:
        raise SpectrumError(f"spectra of temperature end below the sky's lmax = {sky.lmax}")
    ratio = np.divide(te, ee, out=np.zeros_like(te), where=ee > 0)
    left = tt - ratio * te
    if (left < -1e-9 * tt).any():
        raise SpectrumError(
            f"|C^TE|² > C^TT C^EE at l = {int(np.argmin(left))}; are both spectra unlensed?"
        )
    generator = np.random.default_rng(seed_sequence(seed, f"temperature/{stage}", index))
    own = scale_alm(unit_alm(sky.lmax, generator), np.sqrt(np.maximum(left, 0.0)))
    return scale_alm(sky.elm, ratio) + own


def lensed_temperature(
    tlm: np.ndarray, sky: HarmonicSky, pointing: Pointing, nthreads: int = 0
) -> np.ndarray:
    """T̃ in µK at the pixels, (n,), lensed as the sky's polarisation is."""
    deflection = deflect_by(
        gradient_at(sky.philm, sky.lmax, pointing, nthreads), pointing, nthreads
    )
    moved = Pointing(deflection.theta, deflection.phi, pointing.frame)
    return scalar_at(tlm, sky.lmax, moved, nthreads)
