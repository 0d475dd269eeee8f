"""The release file: the one door between the pipeline and the likelihood.

A release is a JSON document, readable by eye and by any language, that holds the data vector with
all that a likelihood needs and all that says how it came to be. It is validated in full when it
is read: every field, shape, finiteness and sign, the covariance, and a digest of the content.
:mod:`.fields` declares the fields, :mod:`.document` reads and writes them.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import CNNLensError, ReleaseError
from ..files import atomic_write, given_path
from .declarations import LENGTHS
from .document import (
    check_digest,
    check_dimensions,
    check_shape,
    digest_of_numbers,
    formatted,
    seal,
    to_document,
    values_of,
)
from .fields import ARRAYS, Group, Release, Sign
from .spectra import change_along
from .statistics import inverse_covariance

__all__ = [
    "Group",
    "Release",
    "check_arrays",
    "debiased_by_data",
    "digest_of_numbers",
    "from_document",
    "read_release",
    "shipped_releases",
    "with_fixed_debias",
    "write_release",
]

DATA_DIRECTORY = Path(__file__).parent / "data"

# What a debiased release has no more.
OF_DATA_DEBIAS = (
    Group.DEBIAS,
    Group.SECOND_ORDER,
    Group.PRIMARY,
    Group.FIXED,
    Group.ROTATION,
)
# How many errors beyond the simulated step a rotation of the polarisation may be.
ROTATION_SIGMA = 3.0
# Lowest eigenvalue of the correlations of the surface's error, which rounding may give.
LEAST_EIGENVALUE = -1e-6

# Steps of Newton's method to the amplitude of C^κκ that bandpowers have.
AMPLITUDE_STEPS = 5


def debiased_by_data(release: Release) -> Release:
    """The release with d' for its bandpowers, whose model is linear in C^κκ and has no part of
    C^EE.

    Of the second order, v is the survey's, and u² = 2 û u − û² + (u − û)² is taken to first order
    about the amplitude û that the bandpowers themselves have: what that leaves, Q (u − û)², is of
    the order of Q times the variance of û. The error of the model is that at v and û.

    Parameters
    ----------
    release : with the power of its patches

    Returns
    -------
    a release without the group ``DEBIAS``, whose ``curvature`` is zero

    Raises
    ------
    CNNLensError
        if the release does not hold the power of its patches
    """
    if not release.has(Group.DEBIAS):
        raise CNNLensError(
            f"noise_debias 'data': release '{release.name}' does not hold the power of its "
            "patches; take noise_debias: fixed, or make the release again with `data_debias: "
            "true` in its "
            "configuration"
        )
    bandpowers = release.bandpowers - release.correction
    derivatives, along = release.kk_derivatives, release.kk_direction
    if release.n_v:
        derivatives = derivatives + np.outer(release.debias_cross @ release.amplitudes, along)
    u = _amplitude(release, bandpowers, derivatives)
    rotated, variance = release.squared_rotation
    second = release.rotation_second
    error = release.derivative_covariance + np.diag((release.rotation_second_errors * rotated) ** 2)
    if release.n_v:
        error = error + release.surface_error(u)
    # The error of the rotation is the survey's own, as the scatter of its patches is.
    own = release.n_patches * variance * np.outer(second, second)
    return replace(
        without(release, *OF_DATA_DEBIAS),
        bandpowers=bandpowers + release.curvature * u**2,
        patch_covariance=release.patch_covariance + own,
        kk_derivatives=derivatives + 2.0 * u * np.outer(release.curvature, along),
        curvature=np.zeros_like(release.curvature),
        derivative_covariance=error,
    )


def with_fixed_debias(release: Release) -> Release:
    """The release with a noise bias that stays at the fiducial cosmology (Caldeira et al. 2018).

    Parameters
    ----------
    release : of either noise debias

    Returns
    -------
    a release of d, without the group ``DEBIAS`` and with derivatives of zero
    """
    kept: dict[str, Any] = {}
    if release.has(Group.FIXED):
        kept = {
            "patch_covariance": release.fixed_patch_covariance,
            "noise_covariance": release.fixed_noise_covariance,
            "nuisance_first": release.fixed_nuisance_first,
            "nuisance_second": release.fixed_nuisance_second,
        }
    for name in ("derivative_covariance", "kk_derivatives", "curvature"):
        kept[name] = np.zeros_like(getattr(release, name))
    return replace(without(release, *OF_DATA_DEBIAS), **kept)


def with_unrotated_power(release: Release) -> Release:
    """The release with p̂ of a survey whose polarisation is not rotated, and the covariances of
    that p̂.

    Parameters
    ----------
    release : with the group ``PRIMARY``

    Returns
    -------
    a release whose ``power`` is data; what it subtracts from the bandpowers is not that of the
    given one
    """
    rotated, variance = release.squared_rotation
    change, scale = release.power_rotation_second, release.n_patches * variance
    cross = release.power_cross_covariance + scale * np.outer(release.rotation_second, change)
    return replace(
        release,
        power=release.power - change * rotated,
        power_covariance=release.power_covariance + scale * np.outer(change, change),
        power_cross_covariance=cross,
    )


def without(release: Release, *groups: Group) -> Release:
    """The release without the fields of some groups.

    Parameters
    ----------
    release : any
    *groups : to leave out

    Returns
    -------
    the release
    """
    absent: dict[str, Any] = {
        name: np.zeros((0, 0)) for name, numbers in ARRAYS.items() if numbers.group in groups
    }
    return replace(release, **absent)


def _amplitude(release: Release, bandpowers: np.ndarray, derivatives: np.ndarray) -> float:
    """û of bandpowers that are those of the fiducial C^κκ (1 + u a/|a|²) of every band, by least
    squares with the covariance of the patches.

    Parameters
    ----------
    bandpowers : d', (n_bins,)
    derivatives : of the noise bias, (n_bins, n_kk)
    """
    along, curvature = release.kk_direction, release.curvature
    if not curvature.any():
        return 0.0
    shape = along / (along @ along)
    changes = change_along(release.windows.shape[1], release.kk_edges, along)
    signal = release.windows * release.fiducial_kk[: len(changes)]
    residual, slope = bandpowers - signal.sum(1), signal @ changes + derivatives @ shape
    weight = inverse_covariance(release.patch_covariance / release.n_patches)
    u = 0.0
    for _ in range(AMPLITUDE_STEPS):
        tangent = slope + 2.0 * curvature * u
        u = float(tangent @ weight @ (residual + curvature * u**2) / (tangent @ weight @ tangent))
    return u


def write_release(release: Release, path: str | Path) -> None:
    """Validate and write a release atomically.

    Parameters
    ----------
    release : of the survey
    path : destination

    Raises
    ------
    ReleaseError
        if the release would not be accepted when read, or the file cannot be written
    """
    path = Path(path)
    try:
        document = seal(to_document(release))
    except RecursionError:
        raise ReleaseError(f"{path}: its metadata are nested too deeply; flatten them") from None
    from_document(document, str(path))
    try:
        with atomic_write(path) as partial:
            partial.write_text(formatted(document), encoding="utf-8")
    except OSError as error:
        raise ReleaseError(
            f"{path}: cannot be written ({error.strerror or error}); name another file, or make "
            "room"
        ) from None


def read_release(path: str | os.PathLike[str]) -> Release:
    """Read and validate a release.

    Parameters
    ----------
    path : a file, or the name of a shipped release (see :func:`shipped_releases`), before which a
        file of that name comes

    Returns
    -------
    the release

    Raises
    ------
    ReleaseError
        if the file is missing, cut off, altered, or any field is wrong

    Examples
    --------
    >>> read_release("refined_fiducial")
    <Release 'refined_fiducial': 24 bins in L = 36-3084, 160 patches>
    """
    names = f"give the path of a file, or one of the shipped {', '.join(shipped_releases())}"
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ReleaseError(f"release {path!r:.40} is not a path; {names}")
    if is_shipped(path):
        path = DATA_DIRECTORY / f"{path}.json"
    path = given_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReleaseError(f"{path}: no such release; {names}") from None
    except OSError as error:
        raise ReleaseError(
            f"{path}: cannot be read as a release ({error.strerror or error}); {names}"
        ) from None
    except ValueError as error:  # no UTF-8, or a path that cannot be one
        raise ReleaseError(
            f"{str(path)!r}: cannot be read as text ({error}), as a release is; {names}"
        ) from None
    try:
        document = json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise ReleaseError(f"{path}: nested too deeply to be a release") from None
    except ValueError as error:
        mend = "it was cut off or damaged: restore the file"
        if text.strip() and not text.lstrip().startswith("{"):
            mend = f"it is no release: {names}"
        raise ReleaseError(f"{path}: not valid JSON ({error}); {mend}") from None
    return from_document(document, str(path))


def is_shipped(name: str | os.PathLike[str]) -> bool:
    """Whether this is the name of a shipped release, and of no file here (a folder is none).

    Parameters
    ----------
    name : perhaps a path

    Returns
    -------
    True for a shipped one

    Examples
    --------
    >>> is_shipped(shipped_releases()[0])
    True
    """
    return str(name) in shipped_releases() and not Path(name).is_file()


def shipped_releases() -> list[str]:
    """Names of the releases that come with the package."""
    return sorted(p.stem for p in DATA_DIRECTORY.glob("*.json"))


@np.errstate(all="ignore")
def from_document(document: dict[str, Any], source: str) -> Release:
    """Validate a document in full; ``source`` names it in errors.

    Parameters
    ----------
    document : content of the file
    source : what errors name

    Returns
    -------
    the release

    Raises
    ------
    ReleaseError
    """
    release = Release(**values_of(document, source))
    _check_physics(release, source)
    check_digest(document, source)
    return release


def _check_bands(release: Release, source: str) -> None:
    """Edges ascend, and the fiducial spectra have power in every band."""

    def refuse(name: str, problem: str) -> NoReturn:
        raise ReleaseError(f"{source}: field '{ARRAYS[name].key}' {problem}")

    for name in ("edges", "kk_edges", "ee_edges", "e_edges", "b_edges"):
        edges = getattr(release, name)
        if edges.size and ((np.diff(edges) <= 0).any() or edges[0] < 0):
            refuse(name, "must ascend from zero or above; correct the order")
    for name, edges in (("fiducial_kk", release.kk_edges), ("fiducial_ee", release.ee_edges)):
        if not edges.size:
            continue
        spectrum = getattr(release, name)
        if len(spectrum) < edges[-1]:
            refuse(name, f"ends at l = {len(spectrum) - 1}, its bands at {edges[-1] - 1}")
        if not (spectrum[max(2, edges[0]) : edges[-1]] > 0).all():
            refuse(name, "must be positive within its bands")
    if release.curvature.any() and not release.kk_direction.any():
        refuse("kk_direction", "is zero where the curvature is not; make the release again")


def _check_physics(release: Release, source: str) -> None:
    def refuse(key: str, problem: str) -> NoReturn:
        raise ReleaseError(f"{source}: field '{key}' {problem}")

    _check_bands(release, source)
    if release.n_patches < 1:
        refuse("data.n_patches", f"is {release.n_patches}; a survey has at least one patch")
    if release.n_sim <= release.n_bins + 2:
        refuse(
            "covariance.n_sim",
            f"is {release.n_sim}: too few simulations for {release.n_bins} bins; "
            f"use at least {release.n_bins + 3}, or fewer bins",
        )
    for name, numbers in ARRAYS.items():
        values = getattr(release, name)
        if numbers.sign is Sign.POSITIVE and not (values > 0).all():
            refuse(numbers.key, "must be positive throughout")
        if numbers.sign is Sign.NOT_NEGATIVE and not (values >= 0).all():
            refuse(numbers.key, "must not be negative")
    empty = np.flatnonzero(~release.windows.any(axis=1)).tolist()
    if empty:
        refuse("windows.values", f"has no weight in bins {empty}; make the release again")
    if release.windows.shape[1] > len(release.fiducial_kk):
        refuse("windows.values", f"reach L = {release.windows.shape[1] - 1}, beyond fiducial.kk")
    if problem := rotation_problem(release):
        refuse("data.rotation", problem)
    _check_covariances(release, source)


def rotation_problem(release: Release) -> str | None:
    """What is wrong with the rotation of the polarisation that a survey has measured.

    Parameters
    ----------
    release : perhaps with the group ``ROTATION``

    Returns
    -------
    the end of an error message; None if nothing is wrong
    """
    if not release.rotation.size:
        return None
    angle, error, share = release.rotation.T
    if not ((error > 0).all() and (share > 0).all() and share.sum() < 1.0 + 1e-6):
        return (
            "must hold positive standard errors, and parts of the patches that sum to at most one; "
            "make the release again"
        )
    worst, step = np.argmax(np.abs(angle) - ROTATION_SIGMA * error), release.rotation_step
    if not (error <= step).all():
        return (
            f"has a standard error of {error.max():.3g} degrees, and the effect of a rotation was "
            f"simulated to {step:g}; give more patches"
        )
    if np.abs(angle[worst]) <= step + ROTATION_SIGMA * error[worst]:
        return None
    return (
        f"is a rotation of the polarisation by {angle[worst]:.3g} ± {error[worst]:.2g} degrees, "
        f"whose effect was simulated to {step:g}; rotate Q and U of the maps back by that angle, "
        "and measure them again"
    )


def _check_covariances(release: Release, source: str) -> None:
    """Covariances are symmetric and have no negative variance, that of the response surface along
    no direction; those of the data have an inverse."""

    def refuse(key: str, problem: str) -> NoReturn:
        raise ReleaseError(f"{source}: field '{key}' {problem}")

    for name, numbers in ARRAYS.items():
        matrix = getattr(release, name)
        if not matrix.size or len(numbers.shape) < 2 or numbers.shape[0] != numbers.shape[1]:
            continue
        scale = np.sqrt(np.abs(np.outer(np.diag(matrix), np.diag(matrix))))
        if (np.abs(matrix - matrix.T) > 1e-8 * scale + 1e-300).any():
            refuse(numbers.key, "is not symmetric; estimate it again")
        if (np.diag(matrix) < 0).any():
            refuse(numbers.key, "has a negative variance; estimate it again")
    # The likelihood adds xᵀKx at any x, after this check of the covariance.
    surface = ("surface_error_terms", "surface_error_bins") if release.n_v else ()
    for name in surface:
        matrix = getattr(release, name)
        scale = np.sqrt(np.diag(matrix))
        scale = np.where(scale > 0, scale, scale.max(initial=1e-300))
        if np.linalg.eigvalsh(matrix / scale / scale[:, None])[0] < LEAST_EIGENVALUE:
            refuse(ARRAYS[name].key, "is no covariance: it has a negative eigenvalue; fit it again")
    inverted = {"covariance.patch": release.patch_covariance, "covariance": release.covariance}
    if release.has(Group.FIXED):
        inverted["fixed.patch"] = release.fixed_patch_covariance
    if release.has(Group.PRIMARY):
        blocks = release.patch_covariance, release.power_cross_covariance, release.power_covariance
        inverted["primary.covariance"] = joined(*blocks)
    for key, matrix in inverted.items():
        try:
            inverse_covariance(matrix)
        except (CNNLensError, np.linalg.LinAlgError) as error:
            refuse(key, f"is {error}; estimate it from more simulations")


def joined(first: np.ndarray, cross: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One covariance of two vectors, from their blocks (n, n), (n, m) and (m, m).

    Parameters
    ----------
    first, cross, second : (n, n), (n, m) and (m, m)

    Returns
    -------
    (n + m, n + m)

    Examples
    --------
    >>> joined(np.eye(1), np.array([[0.5]]), np.eye(1)).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    return np.block([[first, cross], [cross.T, second]])


def check_arrays(release: Release) -> None:
    """Check that the arrays of a release, perhaps made by hand, fit together.

    Parameters
    ----------
    release : to be checked

    Raises
    ------
    ReleaseError
        If one is missing of a group whose others are there, a shape is wrong, or a band has no
        power.
    """
    dimensions = dict(LENGTHS)
    arrays = {name: np.asarray(getattr(release, name)) for name in ARRAYS}
    present = {Group.ALWAYS, *(ARRAYS[name].group for name in ARRAYS if arrays[name].size)}
    for name, numbers in ARRAYS.items():
        if numbers.group not in present:
            continue
        if not arrays[name].size:
            raise ReleaseError(
                f"{release.name}: field '{numbers.key}' is missing; give all fields of "
                f"{numbers.group.value}"
            )
        check_shape(arrays[name], numbers.key, numbers.shape, dimensions, release.name)
    windows = np.asarray(release.windows)
    check_shape(windows, "windows.values", ("n_bins", "L_windows"), dimensions, release.name)
    check_dimensions(dimensions, release.name)
    _check_bands(release, release.name)
    if problem := rotation_problem(release):
        raise ReleaseError(f"{release.name}: field 'data.rotation' {problem}")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number; every value must be finite")
