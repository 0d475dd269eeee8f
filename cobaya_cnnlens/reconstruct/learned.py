"""Network files, of whichever kind they are, as an estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import NetworkError
from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..theory.camb import Spectra
from . import Estimator
from .files import kind_of


def learned_estimator(
    paths: Iterable[str | Path],
    geometry: PatchGeometry,
    instrument: Instrument,
    mask: np.ndarray,
    spectra: Callable[[], Spectra],
    symmetries: int = 1,
    jit_compile: bool = True,
    lmin_b: int = 0,
) -> Estimator:
    """The estimator of network files.

    A ResUNet reads the maps, a refining network reads features of them. Several networks of one
    kind are averaged.

    Parameters
    ----------
    paths : of the ``.keras`` files
    geometry, instrument : of the patches
    mask : (n, n)
    spectra : returns the fiducial spectra; only a refining network calls it
    symmetries, jit_compile : of :class:`.resunet.NetworkEstimator`
    lmin_b : of :class:`.map_lensing.MAPLensing`

    Returns
    -------
    estimator : of κ

    Raises
    ------
    NetworkError
        if a file cannot be read, the networks are of different kinds, a refining one should be
        averaged over symmetries, or a ResUNet should leave out B modes
    """
    paths = list(paths)
    if kind_of(paths) == "ResUNet":
        if lmin_b:
            raise NetworkError(
                f"{', '.join(map(str, paths))}: a ResUNet on maps uses B modes of all multipoles; "
                f"'lmin_b' is {lmin_b}, make it 0 or take a refining network"
            )
        from .resunet import networks_estimator

        return networks_estimator(paths, symmetries, instrument.noise_rms(geometry), jit_compile)
    if symmetries != 1:
        raise NetworkError(
            f"{', '.join(map(str, paths))}: a refining network is not averaged over symmetries; "
            f"'symmetries' is {symmetries}, make it 1"
        )
    from .features import PASSES
    from .map_lensing import MAPLensing
    from .refined import RefinedEstimator, load_refining

    # Refuses a file before the filters are made, which takes seconds.
    networks = [load_refining(path) for path in paths]
    steps = MAPLensing(geometry, instrument, mask, spectra(), PASSES, lmin_b=lmin_b)
    return RefinedEstimator(steps, networks)
