"""A release in other people's formats: Cobaya's CMBlikes, candl, SACC.

The first two know models that are linear in the spectra: bandpower windows, and a correction
M (C − C^fid) of the noise bias. The covariance that is written holds Hartlap's factor, so that χ²
is ours with ``statistics`` "hartlap". Neither format needs C^EE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import yaml

from ..errors import CNNLensError
from ..files import atomic_write
from .bandpowers import NOISE_DEBIAS
from .document import check_name
from .fields import Group, Release
from .release import check_arrays, debiased_by_data, with_fixed_debias
from .spectra import band_matrix
from .statistics import hartlap_factor

FORMATS = ("cmblikes", "candl", "sacc")
# What the exported files say of their model.
STATEMENTS = {
    "data": (
        "The noise debias is from the survey's own E and B power: chi2 is that of noise_debias: "
        "data, in CMBlikes with statistics: hamimeche-lewis, in candl with hartlap. It needs no "
        "theory EE."
    ),
    "fixed": (
        "The noise debias is fixed at the fiducial cosmology, as in Caldeira et al. 2018: chi2 is "
        "that of noise_debias: fixed, and parameters are biased away from the fiducial."
    ),
}


@dataclass(frozen=True)
class LinearModel:
    """µ = W C^κκ + K (C^κκ − C^κκ_fid), the model of a release.

    Attributes
    ----------
    noise_debias : "data" or "fixed"
    release : the debiased one, whose bandpowers and covariance go with the model
    windows : W, (n_bins, lmax + 1) from L = 0
    kk : K, of the same shape; zero for a fixed noise bias
    fiducial_correction : K C^κκ_fid, (n_bins,)
    subtracted : c, what the debias subtracted from the bandpowers, (n_bins,)
    """

    noise_debias: str
    release: Release
    windows: np.ndarray
    kk: np.ndarray
    fiducial_correction: np.ndarray
    subtracted: np.ndarray

    @property
    def lmax(self) -> int:
        """The last multipole of the matrices."""
        return self.windows.shape[1] - 1


def linear_model(release: Release, noise_debias: str = "data") -> LinearModel:
    """The release's model as matrices on C^κκ.

    Parameters
    ----------
    release : as it was read
    noise_debias : "data" or "fixed"

    Returns
    -------
    the matrices, with the debiased release

    Raises
    ------
    CNNLensError
        for an unknown ``noise_debias``, or "data" of a release that does not hold it
    """
    if noise_debias not in NOISE_DEBIAS:
        raise CNNLensError(f"noise_debias is {noise_debias!r}; choose one of {NOISE_DEBIAS}")
    measured = release.bandpowers
    release = (debiased_by_data if noise_debias == "data" else with_fixed_debias)(release)
    check_arrays(release)
    size = max(release.windows.shape[1], release.kk_edges[-1])
    windows = np.zeros((release.n_bins, size))
    windows[:, : release.windows.shape[1]] = release.windows
    kk = band_matrix(release.kk_edges, release.fiducial_kk, release.kk_derivatives, size)
    # Σ_j N'_bj: a band's own correction of the fiducial is its derivative.
    fiducial_correction = release.kk_derivatives.sum(1)
    subtracted = measured - release.bandpowers
    return LinearModel(noise_debias, release, windows, kk, fiducial_correction, subtracted)


def export_release(
    release: Release, format: str, folder: str | Path, noise_debias: str | None = None
) -> Path:
    """Write a release in another format.

    Parameters
    ----------
    release : as it was read
    format : "cmblikes" (a ``.dataset`` with its files), "candl" (an info file with its files) or
        "sacc" (one FITS file; it has no place for a correction)
    folder : new folder to write to
    noise_debias : "data" or "fixed"; by default "data" where the release and the format hold it,
        else "fixed". CMBlikes takes "data" in the variables of Hamimeche & Lewis; all else is
        Gaussian

    Returns
    -------
    the file that the other code is to be given

    Raises
    ------
    CNNLensError
        for a blinded release, an unknown format, a folder that exists or cannot be written, a
        model that the format cannot hold, or a release whose name is no file's name
    """
    writers = {"cmblikes": _write_cmblikes, "candl": _write_candl, "sacc": _write_sacc}
    if format not in writers:
        raise CNNLensError(f"format is {format!r}; choose one of {FORMATS}")
    if release.blinding:
        raise CNNLensError(
            f"release '{release.name}' is blinded, which no other format says; unblind it first"
        )
    if problem := check_name(release.name):
        raise CNNLensError(f"the release's name {problem}")
    folder = Path(folder)
    if folder.exists():
        raise CNNLensError(f"{folder}: exists already; name a folder that does not")
    if noise_debias is None:
        by_data = release.has(Group.DEBIAS) and format != "sacc"
        noise_debias = "data" if by_data else "fixed"
    model = linear_model(release, noise_debias)
    if format == "sacc" and noise_debias != "fixed":
        raise CNNLensError("format 'sacc' has no place for a correction; export 'fixed'")
    try:
        with atomic_write(folder) as partial:
            partial.mkdir()
            name = writers[format](model.release, model, partial)
    except OSError as error:
        raise CNNLensError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return folder / name


def _comments(release: Release, model: LinearModel) -> str:
    """Head of an exported file; the description as one line, whatever it holds."""
    lines = (
        " ".join(release.description.split()),
        "The covariance holds Hartlap's factor.",
        STATEMENTS[model.noise_debias],
    )
    return "".join(f"# {line}\n" for line in lines)


def _scaled_covariance(release: Release) -> np.ndarray:
    return release.covariance / hartlap_factor(release.n_sim, release.n_bins)


def _write_cmblikes(release: Release, model: LinearModel, folder: Path) -> str:
    """Bandpowers are in CMBlikes' units of lensing, [L(L+1)]² C^φφ/2π = (4/2π) C^κκ."""
    unit = 4.0 / (2.0 * np.pi)
    L = np.arange(2, model.lmax + 1)
    from_pp = 2.0 * np.pi / 4.0  # CMBlikes' spectrum is [L(L+1)]² C^φφ/2π
    (folder / "windows").mkdir()
    for b in range(release.n_bins):
        window = unit * from_pp * model.windows[b, 2:]
        np.savetxt(folder / "windows" / f"window{b + 1}.dat", np.c_[L, window], fmt="%5d %.17e")
    sigma = np.sqrt(np.diag(release.covariance))
    bins = np.c_[
        np.arange(1, release.n_bins + 1),
        release.edges[:-1],
        release.edges[1:] - 1,
        release.centres,
        unit * release.bandpowers,
        unit * sigma,
    ]
    np.savetxt(
        folder / "bandpowers.dat",
        bins,
        fmt="%3d %5d %5d %8.1f %.17e %.17e",
        header="bin L_min L_max L_av PP Error",
    )
    np.savetxt(folder / "covariance.dat", unit**2 * _scaled_covariance(release), fmt="%.17e")
    by_data = model.noise_debias == "data"
    settings = (
        f"like_approx = {'HL' if by_data else 'gaussian'}\n"
        "fields_use = P\n"
        "binned = T\n"
        f"nbins = {release.n_bins}\n"
        "use_min = 1\n"
        f"use_max = {release.n_bins}\n"
        "cl_lmin = 2\n"
        f"cl_lmax = {model.lmax}\n"
        "cl_hat_file = bandpowers.dat\n"
        "bin_window_files = windows/window%u.dat\n"
        "bin_window_in_order = PP\n"
        "bin_window_out_order = PP\n"
        "covmat_cl = PP\n"
        "covmat_fiducial = covariance.dat\n"
    )
    if by_data:
        # Of the transform of Hamimeche & Lewis: N + c, which data and model get, and the fiducial
        # total power, which holds N alone.
        fiducial = release.fiducial_bandpowers + release.noise
        settings += "cl_fiducial_includes_noise = T\n"
        for name, values in (("noise", release.noise + model.subtracted), ("fiducial", fiducial)):
            numbered = np.c_[np.arange(1, release.n_bins + 1), unit * values]
            np.savetxt(folder / f"{name}.dat", numbered, fmt="%3d %.17e", header="bin PP")
            settings += f"cl_{name}_file = {name}.dat\n"
    if model.noise_debias != "fixed":
        (folder / "corrections").mkdir()
        for b in range(release.n_bins):
            correction = unit * from_pp * model.kk[b, 2:]
            path = folder / "corrections" / f"window{b + 1}.dat"
            np.savetxt(path, np.c_[L, correction], fmt=["%5d", "%.17e"])
        fiducial = np.c_[np.arange(1, release.n_bins + 1), unit * model.fiducial_correction]
        np.savetxt(folder / "fiducial_correction.dat", fiducial, fmt="%3d %.17e", header="bin PP")
        settings += (
            "fields_required = P\n"
            "linear_correction_fiducial_file = fiducial_correction.dat\n"
            "linear_correction_fiducial_order = PP\n"
            "linear_correction_bin_window_files = corrections/window%u.dat\n"
            "linear_correction_bin_window_in_order = PP\n"
            "linear_correction_bin_window_out_order = PP\n"
        )
    name = f"{release.name}.dataset"
    (folder / name).write_text(_comments(release, model) + settings, encoding="utf-8")
    return name


def _write_candl(release: Release, model: LinearModel, folder: Path) -> str:
    """Bandpowers are C^κκ, candl's "kk"."""
    L = np.arange(2, model.lmax + 1)
    (folder / "windows").mkdir()
    np.savetxt(
        folder / "windows" / "kk_window_functions.txt",
        np.c_[L, model.windows[:, 2:].T],
        fmt=["%5d"] + ["%.17e"] * release.n_bins,
    )
    np.savetxt(folder / "bandpowers.txt", release.bandpowers, fmt="%.17e")
    np.savetxt(folder / "covariance.txt", _scaled_covariance(release), fmt="%.17e")
    content = {
        "name": release.name,
        "band_power_file": "bandpowers.txt",
        "covariance_file": "covariance.txt",
        "window_functions_folder": "windows/",
        "spectra_info": [{"kk": release.n_bins}],
    }
    if model.noise_debias != "fixed":
        (folder / "corrections").mkdir()
        none = np.zeros(len(L))
        for b in range(release.n_bins):
            np.savetxt(
                folder / "corrections" / f"window_{b}.txt",
                np.c_[L, none, none, none, none, model.kk[b, 2:]],
                fmt=["%5d"] + ["%.17e"] * 5,
                header="L TT TE EE BB kk",
            )
        np.savetxt(folder / "fiducial_correction.txt", model.fiducial_correction, fmt="%.17e")
        content["data_model"] = [
            {
                "Module": "common_lensing.ResponseFunctionM",
                "M_matrices_folder": "corrections/",
                "Mmodes": ["kk"],
                "fiducial_correction_file": "fiducial_correction.txt",
            }
        ]
    name = f"{release.name}.yaml"
    text = _comments(release, model) + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / name).write_text(text, encoding="utf-8")
    return name


def _write_sacc(release: Release, model: LinearModel, folder: Path) -> str:
    """The covariance is without Hartlap's factor: ``n_sim`` is in the metadata."""
    spectrum = SaccSpectrum("ck", release.edges, release.bandpowers, model.windows)
    metadata = {
        "name": release.name,
        "description": " ".join(release.description.split()),
        "noise_debias": STATEMENTS["fixed"],
        "lmax": model.lmax,
        "soliket": f"load with the option lmax: {model.lmax + 1}",
        "n_patches": release.n_patches,
        "n_sim": release.n_sim,
        "network_sha256": str(release.provenance.get("network_sha256")),
    }
    name = f"{release.name}.fits"
    write_sacc(folder / name, [spectrum], release.covariance, metadata)
    return name


@dataclass(frozen=True)
class SaccSpectrum:
    """Bandpowers of κ with itself or with another tracer, for SACC.

    Attributes
    ----------
    other : the tracer's name: "ck" of κ itself, or "gc" of galaxies
    edges : of the bins, (n_bins + 1,)
    bandpowers : (n_bins,)
    windows : W_bL, (n_bins, lmax + 1) from L = 0
    """

    other: str
    edges: np.ndarray
    bandpowers: np.ndarray
    windows: np.ndarray


def write_sacc(
    path: Path,
    spectra: Sequence[SaccSpectrum],
    covariance: np.ndarray,
    metadata: Mapping[str, object],
) -> None:
    """Write bandpowers with their windows and covariance as SACC.

    Parameters
    ----------
    path : of the FITS file
    spectra : each with the same multipoles of the windows
    covariance : of all bandpowers, in the order of ``spectra``
    metadata : beside the bin edges, what the windows are, and a digest of all numbers

    Raises
    ------
    CNNLensError
        if the package sacc is not installed
    """
    try:
        import sacc
    except ModuleNotFoundError:
        raise CNNLensError("format 'sacc' needs the package sacc; pip install sacc") from None

    data = sacc.Sacc()
    ell = np.arange(spectra[0].windows.shape[1])
    quantities = {"ck": "cmb_convergence", "gc": "galaxy_density"}
    kinds = {"ck": "cmb_convergence_cl", "gc": "cmbGalaxy_convergenceDensity_cl"}
    digest = hashlib.sha256(np.ascontiguousarray(covariance, "<f8").tobytes())
    for name in dict.fromkeys(["ck", *(spectrum.other for spectrum in spectra)]):
        beam = np.ones(len(ell))
        data.add_tracer("Map", name, quantity=quantities[name], spin=0, ell=ell, beam=beam)
    edges = {}
    for spectrum in spectra:
        centres = 0.5 * (spectrum.edges[1:] + spectrum.edges[:-1])
        windows = sacc.BandpowerWindow(ell, spectrum.windows.T)
        kind = kinds[spectrum.other]
        data.add_ell_cl(kind, "ck", spectrum.other, centres, spectrum.bandpowers, windows)
        edges[f"bin_edges_ck_{spectrum.other}"] = " ".join(f"{edge:g}" for edge in spectrum.edges)
        for values in (spectrum.edges, spectrum.bandpowers, spectrum.windows):
            digest.update(np.ascontiguousarray(values, "<f8").tobytes())
    data.add_covariance(covariance)
    data.metadata = {
        **metadata,
        **edges,
        "windows": "<d_b> = sum_L W_bL C_L; rows do not sum to one, and must not be made to",
        "sha256": digest.hexdigest(),
    }
    data.save_fits(str(path))
