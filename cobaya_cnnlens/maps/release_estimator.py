"""What a release's record of its network and theory gives: its estimator, and its blinding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CNNLensError, ReleaseError
from ..likelihood.blinding import Offset, blind
from ..likelihood.encryption import BlindingKey
from ..likelihood.release import Release
from ..pipeline.ranges import HALOFIT_VERSIONS, RANGES
from ..reconstruct import Estimator
from ..reconstruct.files import kind_of
from ..theory.camb import CambSettings, Cosmology, Spectra, compute_spectra
from .map_setup import MapSetup

# The spectra from a release's record may differ so much from its own, relative.
TOLERANCE = 1e-4


def release_estimator(setup: MapSetup, paths: Iterable[str | Path]) -> Callable[[], Estimator]:
    """A function that loads the estimator of a release's networks.

    A refining network needs fiducial spectra up to higher multipoles than the release holds. The
    release's record of its theory is read now. CAMB runs when the estimator is loaded.

    Parameters
    ----------
    setup : of the release
    paths : of the networks that made it (:mod:`.release_networks`)

    Returns
    -------
    a function without arguments that loads the estimator

    Raises
    ------
    NetworkError
        if the networks cannot be read, or are of different kinds
    ReleaseError
        if the network needs the theory and the release's record of it does not suffice
    """
    paths, release = list(paths), setup.fiducial
    assert isinstance(release, Release)  # a configuration loads its own estimator
    if kind_of(paths) != "ResUNet":
        recorded_theory(release)

    def load() -> Estimator:
        from ..reconstruct.learned import learned_estimator

        spectra = partial(fiducial_spectra, release)
        return learned_estimator(
            paths,
            setup.patch,
            setup.instrument,
            setup.mask,
            spectra,
            setup.symmetries,
            lmin_b=setup.lmin_b,
        )

    return load


def fiducial_spectra(release: Release) -> Spectra:
    """The spectra that a release was made with, by CAMB from its record of them.

    Parameters
    ----------
    release : whose record is read

    Returns
    -------
    the spectra

    Raises
    ------
    ReleaseError
        if the record does not suffice, or gives other spectra than the release holds
    """
    cosmology, settings = recorded_theory(release)
    try:
        spectra = compute_spectra(cosmology, settings)
    except CNNLensError as error:
        raise _refusal(release, "cosmology", f"cannot be computed: {error}") from None
    for key in ("kk", "ee"):
        stored, computed = getattr(release, f"fiducial_{key}"), getattr(spectra, key)
        if len(stored) > len(computed):
            problem = f"is {settings.lmax}, where field 'fiducial.{key}' ends at {len(stored) - 1}"
            raise _refusal(release, "settings.lmax", problem)
        # There is no power below l = 2.
        stored, computed = stored[2:], computed[2 : len(stored)]
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.where(computed == stored, 0.0, np.abs(computed / stored - 1.0))
        if not (off <= TOLERANCE).all():
            raise _refusal(release, "", _difference(release, key, off.max()))
    return spectra


def recorded_theory(release: Release) -> tuple[Cosmology, CambSettings]:
    """The cosmology and CAMB's settings that a release records, whole.

    Parameters
    ----------
    release : whose record is read

    Returns
    -------
    cosmology, and settings of CAMB

    Raises
    ------
    ReleaseError
        if the code was not CAMB, or a value is missing, unknown or beyond what CAMB is run for
    """
    if (code := release.theory.get("code")) != "camb":
        raise _refusal(release, "code", f"is {code!r:.40}, not 'camb'")
    cosmology = _section(release, "cosmology", Cosmology, RANGES["cosmology"])
    settings = _section(release, "settings", CambSettings, RANGES["camb"])
    if settings.halofit_version not in HALOFIT_VERSIONS:
        raise _refusal(release, "settings.halofit_version", f"is {settings.halofit_version!r:.40}")
    return cosmology, settings


def blinded(release: Release, key: BlindingKey) -> Release:
    """A release with the offset of a key in its bandpowers; CAMB runs twice.

    Parameters
    ----------
    release : the open one
    key : that hides the offset

    Returns
    -------
    the blinded release

    Raises
    ------
    ReleaseError
        if the record of the theory does not suffice, or the bandpowers have no power of lensing
    """
    cosmology, settings = recorded_theory(release)
    fiducial = fiducial_spectra(release).kk
    hidden = compute_spectra(Offset.drawn(key).applied(cosmology), settings).kk
    ratio = np.ones_like(fiducial)
    ratio[2:] = hidden[2:] / fiducial[2:]
    return blind(release, ratio[: len(release.fiducial_kk)], key)


def _section(
    release: Release, section: str, kind: type[Any], ranges: dict[str, tuple[float, float]]
) -> Any:
    """A section of the record as the dataclass ``kind``."""
    record, default = release.theory.get(section, {}), asdict(kind())
    for key in sorted(default.keys() ^ record.keys()):
        said = "is missing" if key in default else "is none that is known"
        raise _refusal(release, f"{section}.{key}", said)
    for key, value in record.items():
        expected = (int, float) if isinstance(default[key], float) else type(default[key])
        if not isinstance(value, expected) or isinstance(value, bool):
            raise _refusal(release, f"{section}.{key}", f"is {value!r:.40}")
        low, high = ranges.get(key, (value, value))
        if not low <= value <= high:
            problem = f"is {value:g}; it must lie between {low:g} and {high:g}"
            raise _refusal(release, f"{section}.{key}", problem)
    return kind(**record)


def _difference(release: Release, key: str, worst: float) -> str:
    import camb

    return (
        f"gives a spectrum that is off by {worst:.2g} of field 'fiducial.{key}', more than "
        f"{TOLERANCE:g}, with CAMB {camb.__version__} (the record's is "
        f"{release.theory.get('version')})"
    )


def _refusal(release: Release, key: str, problem: str) -> ReleaseError:
    return ReleaseError(
        f"release '{release.name}': field '{f'theory.{key}' if key else 'theory'}' {problem}; the "
        "refining network, or blinding, needs the theory that the release was made with: restore "
        "the record, or give the configuration that made the release instead"
    )
