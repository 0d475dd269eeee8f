"""Several surveys of one calibration as one survey.

Surveys whose bandpowers were calibrated by the same simulations share the errors of R, N and their
derivatives: multiplied as if independent, those would shrink as 1/√n_surveys. As every patch of
theirs has the same model and covariance, the means of d and p̂ over the patches of all are
sufficient, and their likelihood is that of one release of Σ n patches, in which what they share
enters once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import ReleaseError
from .declarations import Blinding
from .document import check_name, digest_of_numbers
from .fields import Group, Release

# Numbers of a release that are a survey's own.
OWN = ("bandpowers", "n_patches", "power", "rotation")


def calibration_digest(release: Release) -> str:
    """Hash of all numbers that a release has from its calibration.

    Parameters
    ----------
    release : of one survey

    Returns
    -------
    16 hex digits; two releases with the same were calibrated by the same simulations
    """
    return digest_of_numbers(release, OWN)


def combine(releases: Sequence[Release], name: str | None = None) -> Release:
    """The release of all patches of several surveys, which must lie apart on the sky.

    Parameters
    ----------
    releases : of surveys that share a calibration
    name : of the combined release; the names of the releases with "+" between them by default

    Returns
    -------
    a release whose bandpowers and power are the means over all patches

    Raises
    ------
    ReleaseError
        if there is none, two have not the same calibration or blinding, or one is there twice
    """
    if not releases:
        raise ReleaseError("there is no release to combine; give at least one")
    first, *others = releases
    calibrations = [calibration_digest(release) for release in releases]
    for other, calibration in zip(others, calibrations[1:], strict=True):
        if calibration != calibrations[0]:
            raise ReleaseError(
                f"release '{other.name}' has the calibration {calibration}, '{first.name}' "
                f"{calibrations[0]}: releases are combined where they share one; give each a "
                "likelihood of its own, with a suffix, whose calibrations count as independent"
            )
    keys = [release.blinding.key if release.blinding else None for release in releases]
    for other, key in zip(others, keys[1:], strict=True):
        if key != keys[0]:
            raise ReleaseError(
                f"releases '{first.name}' and '{other.name}' are not blinded with one key: their "
                "bandpowers have different offsets; blind both with one, or unblind both"
            )
    name_of_data: dict[bytes, str] = {}
    for release in releases:
        data = release.bandpowers.tobytes()
        if data in name_of_data:
            raise ReleaseError(
                f"releases '{name_of_data[data]}' and '{release.name}' hold the same bandpowers; "
                "give each survey once"
            )
        name_of_data[data] = release.name
    if not others:
        return first
    n_patches = np.array([release.n_patches for release in releases])

    def mean(values: list[np.ndarray]) -> np.ndarray:
        return np.average(values, axis=0, weights=n_patches)

    rotations = [
        release.rotation * (1.0, 1.0, n / n_patches.sum())
        for release, n in zip(releases, n_patches, strict=True)
        if release.has(Group.ROTATION)
    ]
    name = name or "+".join(release.name for release in releases)
    if problem := check_name(name):
        raise ReleaseError(f"the name of the combined release {problem}")
    surveys = {
        release.name: {"n_patches": release.n_patches, "skies": release.provenance.get("skies")}
        for release in releases
    }
    of_one_survey = ("skies", "warnings")
    provenance = {key: value for key, value in first.provenance.items() if key not in of_one_survey}
    warnings = [f"{release.name}: {text}" for release in releases for text in release.warnings]
    if warnings:
        provenance["warnings"] = warnings
    same_truth = all(release.truth == first.truth for release in releases)
    return replace(
        first,
        name=name,
        description=f"{len(releases)} surveys of one calibration, {n_patches.sum()} patches",
        bandpowers=mean([release.bandpowers for release in releases]),
        n_patches=int(n_patches.sum()),
        power=mean([release.power for release in releases])
        if first.has(Group.DEBIAS)
        else first.power,
        rotation=np.concatenate(rotations) if rotations else first.rotation,
        provenance=provenance | {"combined": surveys},
        truth=first.truth if same_truth else None,
        blinding=None if keys[0] is None else Blinding(keys[0], hidden=None),
    )
