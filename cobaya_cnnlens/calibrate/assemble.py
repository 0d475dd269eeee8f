"""From the pipeline's products to a release."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from .. import __version__, products
from ..likelihood.release import NUISANCES, Release, seal, to_document
from ..pipeline.config import Config
from ..pipeline.skies import spectra_for
from ..theory.camb import settings_record
from . import curvature, derivatives
from .covariance import mean_covariance, sample_covariance
from .measure import PatchBandpowers, read_bandpowers, spectra_of
from .nuisances import read_nuisances
from .own_maps import MapSetup, read_map_bandpowers
from .response import Calibration, calibrate, standard_error
from .windows import bandpower_windows

# Part of a bandpower that the stored windows may leave out.
WINDOW_TOLERANCE = 1e-6
PACKAGES = ("cobaya_cnnlens", "camb", "ducc0", "healpy", "keras", "numpy", "scipy", "tensorflow")


@dataclass(frozen=True)
class BandDerivatives:
    """Noise-debias derivatives of one kind.

    ``edges`` (n_bands + 1,); ``values`` and ``errors`` (n_bins, n_bands); ``patches``
    (n_patches, n_bins, n_bands), whose mean the values are
    """

    edges: np.ndarray
    patches: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return self.patches.mean(0)

    @property
    def errors(self) -> np.ndarray:
        return standard_error(self.patches)


@dataclass(frozen=True)
class NoiseDerivatives:
    """Noise-debias derivatives in C^κκ and unlensed C^EE, and the noise debias itself of the same
    patches at the fiducial, ``centre`` (n_patches, n_bins)."""

    kk: BandDerivatives
    ee: BandDerivatives
    centre: np.ndarray


def read_derivatives(config: Config, network_hash: str, response: np.ndarray) -> NoiseDerivatives:
    """Noise-debias derivatives from all skies of the ``derivatives`` set."""
    kk, ee, centre = [], [], []
    for index in range(config.skies.derivatives):
        recipe = config.derivative_recipe(index, network_hash)
        path = config.derivative_path(index)
        with products.open_product(path, derivatives.KIND, recipe, config.shipped) as product:
            kk.append(product.array("kk") / response**2 - product.array("kk_truth"))
            ee.append(product.array("ee") / response**2)
            centre.append(product.array("auto") / response**2 - product.array("truth"))
    settings = config.derivatives
    bands = (
        BandDerivatives(np.array(edges), np.concatenate(parts, axis=1).transpose(1, 2, 0))
        for edges, parts in ((settings.kk_edges, kk), (settings.ee_edges, ee))
    )
    return NoiseDerivatives(*bands, np.concatenate(centre))


@dataclass(frozen=True)
class Curvature:
    """Second order of the noise debias: ``patches`` (n_patches, n_bins), whose mean Q is; the
    directions in C^κκ and C^EE that give the amplitude t, (n_bands,) each; and what the whole
    correction is at ω_c + step, ``shift`` (n_patches, n_bins)."""

    kk_direction: np.ndarray
    ee_direction: np.ndarray
    patches: np.ndarray
    shift: np.ndarray


def read_curvature(
    config: Config, network_hash: str, response: np.ndarray, first: NoiseDerivatives
) -> Curvature:
    """What the first order leaves at ω_c ± step, from all skies of the set."""
    fiducial = spectra_for(config, config.cosmology)
    changes = []
    for omch2 in config.shifted_omch2():
        moved = spectra_for(config, config.cosmology.vary(omch2=omch2))
        kk = band_changes(first.kk.edges, moved.kk, fiducial.kk)
        changes.append(np.concatenate([kk, band_changes(first.ee.edges, moved.ee, fiducial.ee)]))
    changes = np.array(changes)
    along = curvature.direction(*changes)
    change = shifted_noise(config, network_hash, response) - first.centre
    bands = np.concatenate([first.kk.patches, first.ee.patches], axis=2)
    first_order = np.einsum("pbj,sj->spb", bands, changes)
    amplitudes = changes @ along
    patches = curvature.second_order(change - first_order, amplitudes)
    n_kk = len(first.kk.edges) - 1
    shift = first_order[1] + patches * amplitudes[1] ** 2
    return Curvature(along[:n_kk], along[n_kk:], patches, shift)


def shifted_noise(config: Config, network_hash: str, response: np.ndarray) -> np.ndarray:
    """Noise debias at ω_c − step and ω_c + step of the ``derivatives`` skies' patches,
    (2, n_patches, n_bins)."""
    shifted = []
    for index in range(config.skies.derivatives):
        recipe = config.curvature_recipe(index, network_hash)
        path = config.curvature_path(index)
        with products.open_product(path, curvature.KIND, recipe, config.shipped) as product:
            shifted.append(product.array("auto") / response**2 - product.array("truth"))
    return np.concatenate(shifted, axis=1)


def band_changes(edges: np.ndarray, cl: np.ndarray, fiducial: np.ndarray) -> np.ndarray:
    """δ_j = Σ (2l+1) C_l / Σ (2l+1) C_l^fid − 1 over each band, (n_bands,)."""
    weight = 2.0 * np.arange(len(fiducial)) + 1.0
    bands = [slice(a, b) for a, b in itertools.pairwise(edges)]
    ratio = [(weight[b] * cl[b]).sum() / (weight[b] * fiducial[b]).sum() for b in bands]
    return np.array(ratio) - 1.0


def trim_windows(windows: np.ndarray, clkk: np.ndarray) -> np.ndarray:
    """Windows without their far wings, ``WINDOW_TOLERANCE`` of the bandpower on each side."""
    trimmed = np.zeros_like(windows)
    for b, row in enumerate(windows):
        power = np.abs(row * clkk[: len(row)])
        cumulative = np.cumsum(power) / power.sum()
        start = np.searchsorted(cumulative, WINDOW_TOLERANCE)
        stop = np.searchsorted(cumulative, 1.0 - WINDOW_TOLERANCE) + 1
        trimmed[b, start:stop] = row[start:stop]
    return trimmed


def calibration_of(config: Config, network_hash: str) -> tuple[Calibration, PatchBandpowers]:
    """R and N of a configuration, and the test set they rest on."""
    validation = read_bandpowers(config, network_hash, "validation")
    test = read_bandpowers(config, network_hash, "test")
    return calibrate(validation, test), test


def make_release(
    config: Config, network_hash: str, survey: str, sky: int = 0, packages: bool = True
) -> Release:
    """The release of one mock survey: the patches of one of its skies.

    Parameters
    ----------
    config : the pipeline's configuration
    network_hash : SHA-256 of the network that made the bandpowers
    survey : name of the survey in the configuration
    sky : which of its skies is the data

    Raises
    ------
    products.ProductError
        if a stage has not been run, or was run with another network or configuration
    ValueError
        if there are too few simulations for the number of bins
    """
    [release] = make_releases(config, network_hash, {survey: sky}, packages).values()
    return release


def make_releases(
    config: Config, network_hash: str, surveys: Mapping[str, int], packages: bool = True
) -> dict[str, Release]:
    """The releases of several mock surveys by name, as :func:`make_release` of each; what they
    share, all but the data, is assembled once.

    Parameters
    ----------
    surveys : name of each survey, and which of its skies is the data
    """
    data = {}
    for survey, sky in surveys.items():
        config.check_index(f"survey-{survey}", sky)
        data[survey] = read_bandpowers(config, network_hash, f"survey-{survey}", [sky]).auto
    made, calibrated = {}, None
    for survey, sky in surveys.items():
        origin = {f"survey-{survey}": f"sky {sky}"}
        if calibrated is None:
            calibrated = _assemble(config, network_hash, data[survey], {})
        made[survey] = replace(
            calibrated,
            name=config.release_name(survey, sky),
            description=f"Mock survey of {_description(len(data[survey]), config)}",
            bandpowers=_debiased(data[survey], calibrated),
            n_patches=len(data[survey]),
            provenance=calibrated.provenance
            | {"skies": calibrated.provenance["skies"] | origin}
            | {"packages": _package_versions() if packages else {}},
            truth=asdict(config.set_cosmology(f"survey-{survey}")),
        )
    return made


def make_data_release(
    config: Config, network_hash: str, bandpowers: str | Path | Iterable[str | Path], name: str
) -> Release:
    """The release of a user's own maps, from the bandpowers that :mod:`.maps` wrote, in one file or
    in several that make one survey.

    Raises
    ------
    products.ProductError
        if a file was made with another network, instrument, patch or binning
    MapError
        if patches overlap
    """
    measured = read_map_bandpowers(
        bandpowers,
        config.map_recipe(network_hash),
        config.patch.size_deg,
        f"configuration '{config.name}'",
    )
    release = _assemble(config, network_hash, measured.auto, {"maps": measured.source})
    return replace(
        release,
        name=name,
        provenance=release.provenance | {"packages": _package_versions()},
    )


def make_calibrated_release(
    bandpowers: str | Path | Iterable[str | Path], calibration: Release, name: str
) -> Release:
    """The release of a user's own maps by the calibration that another release holds.

    The bandpowers ⟨|κ̂|²⟩_b/R_b² − N_b and the number of patches are the maps'; R, N, derivatives,
    windows, one patch's covariance and its n_sim are the calibration's.

    Raises
    ------
    ReleaseError
        if the calibration does not say what it is one of
    products.ProductError, MapError
        as :func:`make_data_release`
    """
    setup = MapSetup.of_release(calibration)
    measured = read_map_bandpowers(
        bandpowers, setup.recipe, setup.patch.size_deg, f"release '{calibration.name}'"
    )
    # The calibration's own data are no part of this release.
    skies = {
        key: value
        for key, value in dict(calibration.provenance.get("skies", {})).items()
        if key != "maps" and not key.startswith("survey-")
    }
    return replace(
        calibration,
        name=name,
        description=_description(len(measured.auto), setup),
        bandpowers=_debiased(measured.auto, calibration),
        n_patches=len(measured.auto),
        provenance=calibration.provenance
        | {
            "skies": {**skies, "maps": measured.source},
            "calibration": {
                "release": calibration.name,
                "digest": seal(to_document(calibration))["digest"],
            },
            "packages": _package_versions(),
        },
        truth=None,
    )


def _assemble(config: Config, network_hash: str, auto: np.ndarray, origin: dict) -> Release:
    """The release of measured ⟨κ̂κ̂*⟩, (n_patches, n_bins), that came from ``origin``."""
    calibration, test = calibration_of(config, network_hash)
    debiased = calibration.debias(test.auto)
    fiducial = spectra_for(config, config.cosmology)
    limit = config.sky.band_limit
    windows = trim_windows(bandpower_windows(spectra_of(config), limit), fiducial.kk)
    first = read_derivatives(config, network_hash, calibration.response)
    kk, ee = first.kk, first.ee
    curved = read_curvature(config, network_hash, calibration.response, first)
    by_patch = read_nuisances(config, network_hash, calibration.response)
    reach = max(windows.shape[1], kk.edges[-1], ee.edges[-1])
    return Release(
        name=config.name,
        description=_description(len(auto), config),
        edges=spectra_of(config).bins.edges,
        bandpowers=calibration.debias(auto).mean(0),
        n_patches=len(auto),
        n_sim=len(debiased),
        patch_covariance=sample_covariance(debiased),
        noise_covariance=mean_covariance(debiased - test.truth),
        # Monte-Carlo error of the model at the shifted ω_c.
        derivative_covariance=mean_covariance(curved.shift),
        response=calibration.response,
        response_error=calibration.response_error,
        noise=calibration.noise,
        noise_error=calibration.noise_error,
        windows=windows,
        kk_edges=kk.edges,
        ee_edges=ee.edges,
        kk_derivatives=kk.values,
        kk_derivative_errors=kk.errors,
        ee_derivatives=ee.values,
        ee_derivative_errors=ee.errors,
        curvature=curved.patches.mean(0),
        curvature_errors=standard_error(curved.patches),
        kk_direction=curved.kk_direction,
        ee_direction=curved.ee_direction,
        nuisance_steps=np.array([getattr(config.nuisances, name) for name in NUISANCES]),
        nuisance_first=by_patch[0].mean(0),
        nuisance_first_errors=standard_error(by_patch[0]),
        nuisance_second=by_patch[1].mean(0),
        nuisance_second_errors=standard_error(by_patch[1]),
        fiducial_kk=fiducial.kk[:reach],
        fiducial_ee=fiducial.ee[:reach],
        theory=settings_record(config.cosmology, config.camb),
        instrument={
            "noise": config.instrument.noise_uk_arcmin,
            "beam_fwhm": config.instrument.beam_fwhm_arcmin,
            "mask_taper_deg": config.instrument.taper_deg,
            "patch_deg": config.patch.size_deg,
            "patch_pixels": config.patch.n_pixels,
            **({"depth_ratio": d} if (d := config.instrument.depth_ratio) is not None else {}),
        },
        provenance={
            "configuration": config.name,
            "network_sha256": network_hash,
            **({"symmetries": n} if (n := config.reconstruction.symmetries) != 1 else {}),
            "seed": config.seed,
            "skies": {
                **config.skies.model_dump(),
                **origin,
            },
            "derivative_excursion_omch2": config.derivatives.omch2_step,
            "derivative_step": config.derivatives.step,
        },
    )


def _debiased(auto: np.ndarray, calibration: Release) -> np.ndarray:
    """Mean over patches of ⟨|κ̂|²⟩_b/R_b² − N_b, (n_bins,), by a release's calibration."""
    return (auto / calibration.response**2 - calibration.noise).mean(0)


def _description(n_patches: int, of: Config | MapSetup) -> str:
    return (
        f"{n_patches} patches of {of.patch.size_deg:g} x {of.patch.size_deg:g} deg at "
        f"{of.instrument.noise_uk_arcmin:g} uK arcmin: ResUNet convergence bandpowers, debiased"
    )


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "cobaya_cnnlens": __version__}
    for name in PACKAGES[1:]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
