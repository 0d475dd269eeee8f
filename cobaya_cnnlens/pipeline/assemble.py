"""From the pipeline's products to a release."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..calibrate import debias
from ..calibrate.debias import DataDebias, SimulatedChanges
from ..calibrate.error_fields import error_fields
from ..calibrate.release_warnings import with_warnings
from ..calibrate.response import Calibration, PatchBandpowers, calibrate
from ..calibrate.rotation import rotation_of
from ..calibrate.windows import bandpower_windows, trim_windows
from ..errors import CNNLensError
from ..likelihood.fields import NUISANCES, ROTATION, Group, Release
from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..theory.camb import settings_record
from .cosmologies import Points
from .estimators import name_of
from .nuisances import Nuisances, nuisance_steps
from .perturbations import Derivatives, ShiftedSkies, shifted_changes
from .power import Power, power_of
from .reconstructions import Bandpowers
from .run import Run

PACKAGES = ("cobaya_cnnlens", "camb", "ducc0", "healpy", "keras", "numpy", "scipy", "tensorflow")


def release_name(run: Run, survey: str, sky: int = 0) -> str:
    """Name of the release of one sky of a survey.

    Parameters
    ----------
    run, survey, sky : the configuration, its survey and which of that one's skies

    Returns
    -------
    configuration and survey, e.g. ``main_fiducial``, with the sky unless that is the first
    """
    return f"{run.config.name}_{survey}" + (f"_sky{sky}" if sky else "")


def path(run: Run, survey: str, sky: int = 0) -> Path:
    """Where the release of one sky of a survey lies.

    Parameters
    ----------
    run, survey, sky : the configuration, its survey and which of that one's skies

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "releases" / f"{release_name(run, survey, sky)}.json"


def calibration_of(run: Run) -> tuple[Calibration, PatchBandpowers]:
    """R and N of a configuration, and the test set they rest on.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    calibration, and the bandpowers of the test set
    """
    validation = Bandpowers(run).read("validation")
    test = Bandpowers(run).read("test")
    return calibrate(validation, test), test


def make_release(run: Run, survey: str, sky: int = 0, packages: bool = True) -> Release:
    """The release of one mock survey: the patches of one of its skies.

    Parameters
    ----------
    run : the configuration and what follows from it
    survey : name of the survey in the configuration
    sky : which of its skies is the data

    Returns
    -------
    the release

    Raises
    ------
    products.ProductError
        if a stage has not been run, or was run with another network or configuration
    ValueError
        if there are too few simulations for the number of bins
    """
    [release] = make_releases(run, {survey: sky}, packages).values()
    return release


def make_releases(
    run: Run, surveys: Mapping[str, int], packages: bool = True
) -> dict[str, Release]:
    """The releases of several mock surveys by name, as :func:`make_release` of each; what they
    share, all but the data, is assembled once.

    Parameters
    ----------
    run : the configuration and what follows from it
    surveys : name of each survey, and which of its skies is the data

    Returns
    -------
    releases by the name of the survey
    """
    data, powers = {}, dict[str, dict[str, np.ndarray]]()
    for survey, sky in surveys.items():
        run.config.check_index(f"survey-{survey}", sky)
        data[survey] = Bandpowers(run).read(f"survey-{survey}", [sky]).auto
        if run.config.data_debias:
            powers[survey] = Power(run).read(f"survey-{survey}", [sky])
    made, calibrated, estimator = {}, None, name_of(run.config)
    for survey, sky in surveys.items():
        origin = {f"survey-{survey}": f"sky {sky}"}
        if calibrated is None:
            calibrated = release_of_run(run, data[survey], {})
        release = replace(
            with_data(calibrated, data[survey], **powers.get(survey, {})),
            name=release_name(run, survey, sky),
            description="Mock survey of "
            + patches_of(len(data[survey]), run.config.patch, run.config.instrument, estimator),
            provenance=calibrated.provenance
            | {"skies": calibrated.provenance["skies"] | origin}
            | {"packages": package_versions() if packages else {}},
            truth=asdict(run.config.set_cosmology(f"survey-{survey}")),
        )
        made[survey] = with_warnings(release)
    return made


def release_of_run(run: Run, auto: np.ndarray, origin: dict[str, Any]) -> Release:
    """The release of measured bandpowers by the calibration of a configuration.

    Parameters
    ----------
    run : the configuration and what follows from it
    auto : ⟨κ̂κ̂*⟩ of the survey, (n_patches, n_bins)
    origin : where that came from

    Returns
    -------
    the release

    Raises
    ------
    products.ProductError
        if a stage has not been run, or was run with another network or configuration
    """
    calibration, test = calibration_of(run)
    changes = bandpower_changes(run, calibration)
    fitted = None
    if run.config.data_debias:
        fitted = fit_debias(run, calibration, test, changes, len(auto))
    return assembled(run, calibration, test, changes, fitted, auto, origin)


def bandpower_changes(run: Run, calibration: Calibration) -> SimulatedChanges:
    """How d − signal changes, from the products of a configuration.

    Parameters
    ----------
    run : the configuration and what follows from it
    calibration : response and noise bias

    Returns
    -------
    changes of d − signal, divided by R²

    Raises
    ------
    products.ProductError
        if a stage has not been run, or was for another network or configuration
    """
    response = calibration.response
    return SimulatedChanges(
        Derivatives(run).read(response),
        ShiftedSkies(run).read(response),
        Nuisances(run).read(response),
    )


def fit_debias(
    run: Run,
    calibration: Calibration,
    test: PatchBandpowers,
    changes: SimulatedChanges,
    n_patches: int,
) -> DataDebias:
    """The debias of surveys of ``n_patches``, from the products of a configuration.

    Parameters
    ----------
    run : the configuration and what follows from it
    calibration : response and noise bias
    test : bandpowers of the test set
    changes : of d − signal, divided by R²
    n_patches : of the survey

    Returns
    -------
    coefficients, and the derivatives of the debiased bandpowers

    Raises
    ------
    products.ProductError
        if the power of a set, or a point of the response surface, has not been measured
    """
    return debias.fit(
        changes,
        Power(run).changes(),
        calibration.debias(test.auto),
        Power(run).read("test", range(run.config.skies.test))["power"],
        shifted_changes(run),
        Points(run).fit_points(calibration.response),
        n_patches,
    )


def assembled(
    run: Run,
    calibration: Calibration,
    test: PatchBandpowers,
    changes: SimulatedChanges,
    fitted: DataDebias | None,
    auto: np.ndarray,
    origin: dict[str, Any],
) -> Release:
    """The release of patches by what was measured of simulated ones.

    Parameters
    ----------
    run : the configuration and what follows from it
    calibration : R and N
    test : the patches that N and the covariance rest on
    changes : of d − signal, divided by R²
    fitted : the debias from the data; None for one that stays at the fiducial cosmology
    auto : ⟨κ̂κ̂*⟩ of the survey, (n_patches, n_bins)
    origin : where that came from

    Returns
    -------
    the release
    """
    config, settings = run.config, run.config.derivatives
    fiducial = run.spectra()
    windows = trim_windows(bandpower_windows(run.bandpowers, config.sky.band_limit), fiducial.kk)
    reach = max(windows.shape[1], settings.kk_edges[-1], settings.ee_edges[-1])
    return Release(
        name=config.name,
        description=patches_of(len(auto), config.patch, config.instrument, name_of(config)),
        edges=run.bandpowers.bins.edges,
        bandpowers=calibration.debias(auto).mean(0),
        n_patches=len(auto),
        n_sim=len(test.auto),
        response=calibration.response,
        response_error=calibration.response_error,
        noise=calibration.noise,
        noise_error=calibration.noise_error,
        windows=windows,
        kk_edges=np.array(settings.kk_edges),
        nuisance_steps=nuisance_steps(run)[: len(NUISANCES)],
        fiducial_kk=fiducial.kk[:reach],
        fiducial_ee=fiducial.ee[:reach],
        **_edges_of_power(run, fitted),
        **error_fields(calibration, test, changes, fitted, shifted_changes(run)),
        theory=settings_record(config.cosmology, config.camb),
        instrument={
            "noise": config.instrument.noise_uk_arcmin,
            "beam_fwhm": config.instrument.beam_fwhm_arcmin,
            "mask_taper_deg": config.instrument.taper_deg,
            "patch_deg": config.patch.size_deg,
            "patch_pixels": config.patch.n_pixels,
            **config.instrument.beyond_numbers(),
        },
        provenance={
            "configuration": config.name,
            "network_sha256": run.estimator_id,
            "estimator": name_of(config),
            **config.reconstruction.recipe(),
            "seed": config.seed,
            "skies": {
                **config.skies.model_dump(),
                **origin,
            },
            "derivative_excursion_omch2": settings.omch2_step,
            "derivative_step": settings.step,
            "rotation_step": getattr(config.nuisances, ROTATION),
        },
    )


def _edges_of_power(run: Run, fitted: DataDebias | None) -> dict[str, Any]:
    """Edges of the bins of E and B power, if a release is debiased by them."""
    if fitted is None:
        return {}
    measured, ee_edges = power_of(run), np.array(run.config.derivatives.ee_edges)
    return {"e_edges": measured.e_edges, "b_edges": measured.b_edges, "ee_edges": ee_edges}


def with_data(
    calibration: Release,
    auto: np.ndarray,
    power: np.ndarray | None = None,
    rotation: np.ndarray | None = None,
) -> Release:
    """The release of other patches by this calibration; it is open, even where that of the
    calibration is blinded.

    Parameters
    ----------
    calibration : the release of the same calibration
    auto : ⟨κ̂κ̂*⟩, (n_patches, n_bins)
    power : of E and B of the same patches, (n_patches, n_power), for the debias from the data
    rotation : the sums of :meth:`.EBPower.rotation`, (n_patches, 2); None of simulated patches
        whose polarisation is not rotated

    Returns
    -------
    the release
    """
    return replace(
        calibration,
        bandpowers=calibration.noise_subtracted(auto).mean(0),
        power=_own_power(calibration, power),
        rotation=rotation_of(rotation if calibration.has(Group.DEBIAS) else None),
        n_patches=len(auto),
        blinding=None,
    )


def _own_power(calibration: Release, power: np.ndarray | None) -> np.ndarray:
    """Mean of the patches' power, (n_patches, n_power) → (n_power,), if the calibration uses it."""
    if not calibration.has(Group.DEBIAS):
        return calibration.power
    if power is None:
        raise CNNLensError(
            f"the E and B power of the patches was not measured, which release "
            f"'{calibration.name}' debiases by; measure the patches again"
        )
    return power.mean(0)


def patches_of(
    n_patches: int, patch: PatchGeometry, instrument: Instrument, estimator: str | None
) -> str:
    """What a release of equal patches holds, in words.

    Parameters
    ----------
    n_patches : of the survey
    patch, instrument : of each
    estimator : its name; None where it is not recorded

    Returns
    -------
    the release's description
    """
    return (
        f"{n_patches} patches of {patch.size_deg:g} x {patch.size_deg:g} deg at "
        f"{instrument.noise_uk_arcmin:g} uK arcmin: {bandpowers_of(estimator)}"
    )


def bandpowers_of(estimator: str | None) -> str:
    """What a release of an estimator holds, in words.

    Parameters
    ----------
    estimator : its name; None where it is not recorded

    Returns
    -------
    the end of the release's description
    """
    made_by = "" if estimator is None else f" ({estimator})"
    return f"convergence bandpowers{made_by}, debiased"


def package_versions() -> dict[str, str]:
    """Of Python, this package and those that the numbers depend on."""
    versions = {"python": platform.python_version(), "cobaya_cnnlens": __version__}
    for name in PACKAGES[1:]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
