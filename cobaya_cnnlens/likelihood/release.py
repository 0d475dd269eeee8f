"""The release file: the one door between the pipeline and the likelihood.

A release is a JSON document, readable by eye and by any language, that holds the data vector with
all that a likelihood needs and all that says how it came to be. It is validated in full when it
is read: every field, shape, finiteness and sign, the covariance, and a digest of the content.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import CNNLensError, ReleaseError
from ..files import atomic_write, given_path
from .document import (
    ARRAYS,
    NUISANCES,
    check_digest,
    check_shape,
    formatted,
    key_of,
    read_only,
    seal,
    to_document,
    values_of,
)
from .statistics import inverse_covariance

DATA_DIRECTORY = Path(__file__).parent / "data"

# Fields of a release that are no numbers of its likelihood; ``data_debias`` is a part of its own.
WORDS = ("name", "description", "theory", "instrument", "provenance", "truth", "data_debias")
# Steps of Newton's method to the amplitude of C^κκ that bandpowers have.
AMPLITUDE_STEPS = 5
POSITIVE = ("response", "response_error", "noise_error", "nuisance_steps")
NOT_NEGATIVE = (
    "kk_derivative_errors",
    "ee_derivative_errors",
    "curvature_errors",
    "nuisance_first_errors",
    "nuisance_second_errors",
)


@dataclass(frozen=True)
class _ReadOnly:
    """Arrays that are handed out must not be written to: a χ² would change with them."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray) and value.flags.writeable:
                object.__setattr__(self, item.name, read_only(value.copy()))


def _absent() -> np.ndarray:
    return np.zeros((0, 0))


@dataclass(frozen=True)
class DataDebias(_ReadOnly):
    """The noise debias from the survey's own E and B.

    With amplitudes v = Pᵀ (p̂ − p^fid) it is

        d'_b = d_b − Σ_i G_bi (p̂_i − p_i^fid) − Σ_{i≤j} S_bij (v_i v_j − ⟨δv_i δv_j⟩/n),

    and this holds of d' all that a release holds of d (:mod:`cobaya_cnnlens.calibrate.debias`). The
    model of d' has no part of C^EE: the derivatives in it that the section holds are what was
    measured of such a part, zero within their errors.

    Attributes
    ----------
    e_edges, b_edges : of the bins of ⟨EE*⟩ and of the one of ⟨BB*⟩ that make p, (n_power,) together
    power, fiducial_power : p̂ of the survey's masked maps, and its fiducial mean, in µK²
    coefficients : G, (n_bins, n_power) in 1/µK²
    kk_direction : a with u = Σ_j a_j δ^κκ_j, (n_kk,)
    ee_directions : P, (n_power, n_v) in 1/µK²; n_v may be zero
    amplitude_covariance : of v of one patch about its mean, (n_v, n_v)
    second : S, (n_bins, n_v (n_v + 1)/2) in the order 11, 12, …, 22, …
    cross : X, (n_bins, n_v): the model has Σ_i X_bi v_i u
    power_kk_derivatives, power_ee_derivatives : ∂p/∂ ln C_j of the bands, (n_power, n_bands) in
        µK²; these and the following may be missing, all together: p̂ as data of their own
    power_nuisance_first, power_nuisance_second : as the release's, of p, (n_power, 4)
    power_covariance : of p̂ of one patch, (n_power, n_power)
    power_cross_covariance : of d' and p̂ of one patch, (n_bins, n_power)
    power_error_covariance, power_error_cross : Monte-Carlo covariance of the model of p, and of it
        with that of d', as the release's noise and derivative covariances together

    all others : as of a :class:`Release`, which they take the place of; ``curvature`` is that in u
    """

    e_edges: np.ndarray
    b_edges: np.ndarray
    power: np.ndarray
    fiducial_power: np.ndarray
    coefficients: np.ndarray
    kk_direction: np.ndarray
    patch_covariance: np.ndarray
    noise_covariance: np.ndarray
    derivative_covariance: np.ndarray
    kk_derivatives: np.ndarray
    kk_derivative_errors: np.ndarray
    ee_derivatives: np.ndarray
    ee_derivative_errors: np.ndarray
    curvature: np.ndarray
    curvature_errors: np.ndarray
    nuisance_first: np.ndarray
    nuisance_first_errors: np.ndarray
    nuisance_second: np.ndarray
    nuisance_second_errors: np.ndarray
    ee_directions: np.ndarray = field(default_factory=_absent)
    amplitude_covariance: np.ndarray = field(default_factory=_absent)
    second: np.ndarray = field(default_factory=_absent)
    cross: np.ndarray = field(default_factory=_absent)
    power_kk_derivatives: np.ndarray = field(default_factory=_absent)
    power_ee_derivatives: np.ndarray = field(default_factory=_absent)
    power_nuisance_first: np.ndarray = field(default_factory=_absent)
    power_nuisance_second: np.ndarray = field(default_factory=_absent)
    power_covariance: np.ndarray = field(default_factory=_absent)
    power_cross_covariance: np.ndarray = field(default_factory=_absent)
    power_error_covariance: np.ndarray = field(default_factory=_absent)
    power_error_cross: np.ndarray = field(default_factory=_absent)

    @property
    def n_v(self) -> int:
        """Amplitudes of C^EE that have a second order."""
        return self.ee_directions.shape[1]

    @property
    def has_primary(self) -> bool:
        """Whether it holds what `primary: true` needs."""
        return bool(self.power_covariance.size)

    @property
    def amplitudes(self) -> np.ndarray:
        """v of the survey's power, (n_v,)."""
        return (self.power - self.fiducial_power) @ self.ee_directions if self.n_v else np.zeros(0)

    def correction(self, n_patches: int) -> np.ndarray:
        """What is taken off the bandpowers of a survey of so many patches, (n_bins,)."""
        linear = self.correction_of(self.power)
        if not self.n_v:
            return linear
        v, scatter = self.amplitudes, self.amplitude_covariance / n_patches
        return linear + self.second @ (np.outer(v, v) - scatter)[np.triu_indices(self.n_v)]

    def correction_of(self, power: np.ndarray) -> np.ndarray:
        """Its first order for other power, (..., n_power) → (..., n_bins)."""
        return (power - self.fiducial_power) @ self.coefficients.T

    def in_place(self) -> dict[str, Any]:
        """What takes the place of a release's fields of the same name."""
        names = {item.name for item in fields(self)} & {item.name for item in fields(Release)}
        return {name: getattr(self, name) for name in sorted(names)}


@dataclass(frozen=True)
class Release(_ReadOnly):
    """Debiased bandpowers of a survey, with their calibration; arrays are read-only.

    Attributes
    ----------
    name, description : what this is
    edges : bin edges in L, (n_bins + 1,)
    bandpowers : d_b = ⟨|κ̂|²⟩/R_b² − N_b, mean over the survey's patches, (n_bins,)
    n_patches : patches in the survey
    n_sim : simulated patches behind the covariance
    patch_covariance : covariance of d_b of one patch, (n_bins, n_bins)
    noise_covariance : Monte-Carlo covariance of N_b, same shape
    derivative_covariance : Monte-Carlo covariance of the model, from the derivatives' errors at the
        excursion stated in ``provenance``, same shape
    response, response_error, noise, noise_error : R_b, N_b and their standard errors, (n_bins,)
    windows : W_bL, (n_bins, L_max + 1) from L = 0
    kk_edges, ee_edges : edges of the bands in C^κκ and unlensed C^EE
    kk_derivatives, ee_derivatives : N'_bj = ∂(d_b − signal)/∂ ln C_j, (n_bins, n_bands)
    kk_derivative_errors, ee_derivative_errors : their standard errors, same shapes
    curvature, curvature_errors : second order Q_b of the noise debias along ω_c, (n_bins,)
    kk_direction, ee_direction : a_j with t = Σ a_j δ_j the amplitude along ω_c, (n_bands,) each
    nuisance_steps : changes of the instrument's ``NUISANCES`` that were simulated, (4,)
    nuisance_first, nuisance_second : A_bi and B_bi with d_b moved by Σ_i A_bi x_i + B_bi x_i² when
        the instrument is off by x_i, (n_bins, 4)
    nuisance_first_errors, nuisance_second_errors : their standard errors, same shape
    fiducial_kk, fiducial_ee : C_L^κκ and unlensed C_l^EE (µK²) from l = 0
    theory : code, version, cosmology and settings that gave the fiducial spectra
    instrument : noise (µK′), beam (′), mask
    provenance : network, seeds, configuration, package versions
    truth : the cosmology of a mock survey, or None for data
    data_debias : the noise debias from the survey's own E and B, or None
    """

    name: str
    description: str
    edges: np.ndarray
    bandpowers: np.ndarray
    n_patches: int
    n_sim: int
    patch_covariance: np.ndarray
    noise_covariance: np.ndarray
    derivative_covariance: np.ndarray
    response: np.ndarray
    response_error: np.ndarray
    noise: np.ndarray
    noise_error: np.ndarray
    windows: np.ndarray
    kk_edges: np.ndarray
    ee_edges: np.ndarray
    kk_derivatives: np.ndarray
    kk_derivative_errors: np.ndarray
    ee_derivatives: np.ndarray
    ee_derivative_errors: np.ndarray
    curvature: np.ndarray
    curvature_errors: np.ndarray
    kk_direction: np.ndarray
    ee_direction: np.ndarray
    nuisance_steps: np.ndarray
    nuisance_first: np.ndarray
    nuisance_first_errors: np.ndarray
    nuisance_second: np.ndarray
    nuisance_second_errors: np.ndarray
    fiducial_kk: np.ndarray
    fiducial_ee: np.ndarray
    theory: dict[str, Any] = field(default_factory=dict)
    instrument: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, Any] | None = None
    data_debias: DataDebias | None = None

    def __repr__(self) -> str:
        low, high = self.edges[0], self.edges[-1]
        bins = f"{self.n_bins} bins in L = {low}-{high}"
        return f"<Release '{self.name}': {bins}, {self.n_patches} patches>"

    @property
    def n_bins(self) -> int:
        """Bins of the release."""
        return len(self.bandpowers)

    @property
    def centres(self) -> np.ndarray:
        """Bin centres in L, (n_bins,)."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is suspicious of its maps or bandpowers, from ``provenance``."""
        return tuple(self.provenance.get("warnings", ()))

    @property
    def derivative_step(self) -> float:
        """Relative change of a band's power to which the derivatives were measured."""
        return float(self.provenance.get("derivative_step", 0.1))

    @cached_property
    def covariance(self) -> np.ndarray:
        """Covariance of the survey's bandpowers about the model, (n_bins, n_bins)."""
        return read_only(
            self.patch_covariance / self.n_patches
            + self.noise_covariance
            + self.derivative_covariance
        )


def digest_of_numbers(release: Release, without: Container[str] = ()) -> str:
    """Hash of the numbers of a release and of its data debias, but for fields of these names, 16
    hex digits."""
    digest = hashlib.sha256()
    for part in (release, release.data_debias):
        for item in fields(part) if part is not None else ():
            if item.name not in WORDS and item.name not in without:
                value = np.asarray(getattr(part, item.name), dtype=float)
                digest.update(f"{item.name}{value.shape}".encode() + value.tobytes())
    return digest.hexdigest()[:16]


def debiased_by_data(release: Release) -> Release:
    """The release whose noise debias is from the survey's own E and B.

    Its model is linear in C^κκ, and has no part of C^EE. Of the second order, v is the survey's,
    and u² = 2 û u − û² + (u − û)² is taken to first order about the amplitude û that the bandpowers
    themselves have: what that leaves, Q (u − û)², is of the order of Q times the variance of û.

    Raises
    ------
    CNNLensError
        if the release does not hold it
    """
    if release.data_debias is None:
        raise CNNLensError(
            f"noise_debias 'data': release '{release.name}' was made without the power of its "
            "patches; take noise_debias: best or quadratic, or make it again with "
            "`data_debias: true` in its configuration"
        )
    debias = release.data_debias
    taken = debias.in_place()
    bandpowers = release.bandpowers - debias.correction(release.n_patches)
    linear, curvature = debias.kk_derivatives, debias.curvature
    along = debias.kk_direction
    if debias.n_v:
        linear = linear + np.outer(debias.cross @ debias.amplitudes, along)
    covariance = debias.patch_covariance / release.n_patches
    u = _amplitude(release, bandpowers, covariance, linear, curvature, along)
    return replace(
        release,
        **taken
        | {
            "bandpowers": bandpowers + curvature * u**2,
            "kk_derivatives": linear + 2.0 * u * np.outer(curvature, along),
            "curvature": np.zeros_like(curvature),
            "ee_derivatives": np.zeros_like(debias.ee_derivatives),
            "ee_direction": np.zeros(debias.ee_derivatives.shape[1]),
            "data_debias": None,
        },
    )


def _amplitude(
    release: Release,
    bandpowers: np.ndarray,
    covariance: np.ndarray,
    linear: np.ndarray,
    curvature: np.ndarray,
    along: np.ndarray,
) -> float:
    """û of bandpowers that are those of the fiducial C^κκ (1 + u a/|a|²) of every band, by least
    squares with a covariance, (n_bins, n_bins)."""
    shape = along / (along @ along)
    changes = np.zeros(release.windows.shape[1])
    for low, high, change in zip(release.kk_edges[:-1], release.kk_edges[1:], shape, strict=True):
        changes[low:high] = change
    signal = release.windows * release.fiducial_kk[: len(changes)]
    residual, slope = bandpowers - signal.sum(1), signal @ changes + linear @ shape
    weight = inverse_covariance(covariance)
    u = 0.0
    for _ in range(AMPLITUDE_STEPS):
        tangent = slope + 2.0 * curvature * u
        u = float(tangent @ weight @ (residual + curvature * u**2) / (tangent @ weight @ tangent))
    return u


def write_release(release: Release, path: str | Path) -> None:
    """Validate and write a release atomically.

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
        raise ReleaseError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_release(path: str | os.PathLike[str]) -> Release:
    """Read and validate a release.

    Parameters
    ----------
    path : a file, or the name of a shipped release (see :func:`shipped_releases`), before which a
        file of that name comes

    Raises
    ------
    ReleaseError
        if the file is missing, cut off, altered, or any field is wrong
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
        raise ReleaseError(
            f"{path}: not valid JSON ({error}); it was cut off or damaged: restore the file"
        ) from None
    return from_document(document, str(path))


def is_shipped(name: str | os.PathLike[str]) -> bool:
    """Whether this is the name of a shipped release, and of no file here (a folder is none)."""
    return str(name) in shipped_releases() and not Path(name).is_file()


def shipped_releases() -> list[str]:
    """Names of the releases that come with the package."""
    return sorted(p.stem for p in DATA_DIRECTORY.glob("*.json"))


@np.errstate(all="ignore")
def from_document(document: dict[str, Any], source: str) -> Release:
    """Validate a document in full; ``source`` names it in errors.

    Raises
    ------
    ReleaseError
    """
    values = values_of(document, source)
    if values["data_debias"] is not None:
        values["data_debias"] = DataDebias(**values["data_debias"])
    release = Release(**values)
    _check_physics(release, source)
    if release.data_debias is not None:
        _check_data_debias(release, release.data_debias, source)
    check_digest(document, source)
    return release


def _check_bands(release: Release, source: str) -> None:
    """Edges ascend, and the fiducial spectra have power in every band."""

    def refuse(key: str, problem: str) -> NoReturn:
        raise ReleaseError(f"{source}: field '{key_of(key)}' {problem}")

    for key in ("edges", "kk_edges", "ee_edges"):
        edges = getattr(release, key)
        if (np.diff(edges) <= 0).any() or edges[0] < 0:
            refuse(key, "must ascend from zero or above; correct the order")
    for key, edges in (("fiducial_kk", release.kk_edges), ("fiducial_ee", release.ee_edges)):
        spectrum = getattr(release, key)
        if len(spectrum) < edges[-1]:
            refuse(key, f"ends at l = {len(spectrum) - 1}, its bands at {edges[-1] - 1}")
        if not (spectrum[max(2, edges[0]) : edges[-1]] > 0).all():
            refuse(key, "must be positive within its bands")


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
    for key in POSITIVE:
        if (getattr(release, key) <= 0).any():
            refuse(key_of(key), "must be positive throughout")
    for key in NOT_NEGATIVE:
        if (getattr(release, key) < 0).any():
            refuse(key_of(key), "must not be negative")
    empty = np.flatnonzero(~release.windows.any(axis=1)).tolist()
    if empty:
        refuse("windows.values", f"has no weight in bins {empty}; make the release again")
    if release.windows.shape[1] > len(release.fiducial_kk):
        refuse("windows.values", f"reach L = {release.windows.shape[1] - 1}, beyond fiducial.kk")
    for key in ("patch_covariance", "noise_covariance", "derivative_covariance"):
        matrix = getattr(release, key)
        scale = np.sqrt(np.abs(np.outer(np.diag(matrix), np.diag(matrix))))
        if (np.abs(matrix - matrix.T) > 1e-8 * scale + 1e-300).any():
            refuse(key_of(key), "is not symmetric; estimate it again")
        if (np.diag(matrix) < 0).any():
            refuse(key_of(key), "has a negative variance; estimate it again")
    for key, matrix in (
        ("covariance.patch", release.patch_covariance),
        ("covariance", release.covariance),
    ):
        try:
            inverse_covariance(matrix)
        except (CNNLensError, np.linalg.LinAlgError) as error:
            refuse(key, f"is {error}; estimate it from more simulations")


def _check_data_debias(release: Release, debias: DataDebias, source: str) -> None:
    """The release that it makes must hold as well as the one that it is part of."""
    for key in ("e_edges", "b_edges"):
        if (np.diff(getattr(debias, key)) <= 0).any():
            raise ReleaseError(
                f"{source}: field 'data_debias.{key}' must ascend; correct the order"
            )
    for key in ("power", "fiducial_power"):
        if not (getattr(debias, key) > 0).all():
            raise ReleaseError(
                f"{source}: field 'data_debias.{key}' must be positive throughout; it is the power "
                "of maps in µK²"
            )
    try:
        _check_physics(replace(release, data_debias=None, **debias.in_place()), source)
    except ReleaseError as error:
        raise ReleaseError(f"{error} (in the section data_debias)") from None
    if debias.has_primary:
        own = debias.patch_covariance, debias.power_cross_covariance, debias.power_covariance
        try:
            inverse_covariance(joined(*own))
        except (CNNLensError, np.linalg.LinAlgError) as error:
            raise ReleaseError(
                f"{source}: field 'data_debias.power_covariance' with what goes with it is "
                f"{error}; estimate it from more simulations"
            ) from None


def joined(first: np.ndarray, cross: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One covariance of two vectors, from their blocks (n, n), (n, m) and (m, m)."""
    return np.block([[first, cross], [cross.T, second]])


def check_arrays(release: Release) -> None:
    """Whether the arrays of a release, perhaps made by hand, fit together and every band has power.

    Raises
    ------
    ReleaseError
    """
    dimensions: dict[str, int] = {"n_nuisances": len(NUISANCES)}
    shapes = {**ARRAYS, "windows.values": ("windows", ("n_bins", "L_windows"))}
    for key, (attribute, shape) in shapes.items():
        check_shape(np.asarray(getattr(release, attribute)), key, shape, dimensions, release.name)
    _check_bands(release, release.name)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number; every value must be finite")
