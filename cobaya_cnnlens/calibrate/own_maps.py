"""Bandpowers of a user's own maps, on their way to a release.

A calibration holds for one patch, instrument, binning and network. Both a configuration and a
release say which (:class:`MapSetup`). A release can therefore calibrate maps that come after it,
d_b = ⟨|κ̂|²⟩_b/R_b² − N_b with its response and noise. :mod:`cobaya_cnnlens.pipeline.map_files`
reads the files.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import products
from ..errors import MapError, ProductError, ReleaseError
from ..files import atomic_write, temporary_name
from ..likelihood.release import Release
from ..pipeline.reconstructions import ALGORITHM, measurement_recipe
from ..pipeline.run import Run
from ..pipeline.separation import FRAMES, check_separate
from ..reconstruct import Estimator
from ..simulate.bandpowers import Bins, EBPower, FlatSpectra
from ..simulate.instrument import Instrument, cosine_mask
from ..simulate.one_over_f import OneOverF
from ..simulate.patches import PatchGeometry
from ..theory.camb import Spectra, lensed_polarisation

if TYPE_CHECKING:
    from ..pipeline.map_files import PatchMaps

KIND = "map bandpowers"


def recipe(run: Run) -> dict[str, Any]:
    """What turns a user's maps, which have the beam already, into bandpowers.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    mapping for JSON
    """
    patch = run.config.patch
    size = {"size_deg": patch.size_deg, "n_pixels": patch.n_pixels}
    return {"patch": size, **measurement_recipe(run)}


@dataclass(frozen=True)
class MapSetup:
    """What a user's maps must fit and what measures them.

    Attributes
    ----------
    name : of the configuration or release
    patch, instrument : that the network was calibrated for
    bins : of the bandpowers
    network_hash : of the network or networks
    recipe : everything that turns maps into bandpowers, kept with them
    symmetries : over how many symmetries of the square κ̂ is averaged
    fiducial : the run or release that gives the fiducial spectra
    """

    name: str
    patch: PatchGeometry
    instrument: Instrument
    bins: Bins
    network_hash: str
    recipe: dict[str, Any]
    symmetries: int
    fiducial: Run | Release

    @classmethod
    def of_run(cls, run: Run) -> MapSetup:
        """What a configuration says of the maps that its calibration fits.

        Parameters
        ----------
        run : the configuration and what follows from it

        Returns
        -------
        the setup
        """
        config = run.config
        return cls(
            config.name,
            config.patch,
            config.instrument,
            run.bandpowers.bins,
            run.estimator_id,
            recipe(run),
            config.reconstruction.symmetries,
            run,
        )

    @classmethod
    def of_release(cls, release: Release) -> MapSetup:
        """What a release says of the maps that its calibration fits.

        Parameters
        ----------
        release : of the survey

        Returns
        -------
        the setup

        Raises
        ------
        ReleaseError
            if the release does not say what its patches, instrument, network or theory were
        """
        try:
            given = {
                key: float(release.instrument[key])
                for key in ("noise", "beam_fwhm", "mask_taper_deg", "patch_deg", "patch_pixels")
            }
            depth = release.instrument.get("depth_ratio")
            excess = release.instrument.get("one_over_f")
            excess = None if excess is None else OneOverF(**excess)
            digest = str(release.provenance["network_sha256"])
            symmetries = int(release.provenance.get("symmetries", 1))
        except (KeyError, TypeError, ValueError) as error:
            raise ReleaseError(
                f"release '{release.name}': its fields 'instrument' and 'provenance' do not "
                f"tell what its network measures ({error}); give the configuration that made "
                "it instead"
            ) from None
        patch = PatchGeometry(given["patch_deg"], int(given["patch_pixels"]))
        if "survey" in release.provenance:
            raise ReleaseError(
                f"release '{release.name}': field 'provenance.survey': it is of a survey, whose "
                "calibration is that of the sum of its own tiles; give a release of one patch's "
                "instrument, or the configuration"
            )
        if files := [key for key in release.instrument if key.endswith("_file_sha256")]:
            raise ReleaseError(
                f"release '{release.name}': field 'instrument' holds {', '.join(files)}: its beam, "
                "transfer function or depth stand in files that a release does not hold; give the "
                "configuration that made it instead"
            )
        instrument = Instrument(
            given["noise"],
            given["beam_fwhm"],
            given["mask_taper_deg"],
            depth_ratio=depth,
            one_over_f=excess,
        )
        widths = np.diff(release.edges)
        if (widths != widths[0]).any():
            raise ReleaseError(
                f"release '{release.name}': field 'bins.edges' has bins of different widths; give "
                "the configuration that made it instead"
            )
        bins = Bins(int(release.edges[0]), int(widths[0]), release.n_bins)
        made_of = {
            "patch": {"size_deg": patch.size_deg, "n_pixels": patch.n_pixels},
            "algorithm": ALGORITHM,
            "instrument": instrument.recipe(),
            "network": digest,
            **({"symmetries": symmetries} if symmetries != 1 else {}),
            "bandpowers": vars(bins),
        }
        return cls(release.name, patch, instrument, bins, digest, made_of, symmetries, release)

    @cached_property
    def mask(self) -> np.ndarray:
        """The apodisation mask, (n, n)."""
        return cosine_mask(self.patch, self.instrument.taper_deg)

    @cached_property
    def spectra(self) -> FlatSpectra:
        """The spectrum estimator of the masked patches."""
        return FlatSpectra(self.patch, self.bins, self.mask)

    @cached_property
    def theory(self) -> Spectra:
        """Fiducial spectra to l = 5000 or beyond.

        A release holds unlensed C^EE and C^κκ alone. Its lensed spectra follow from these, as for
        band-limited skies.
        """
        if isinstance(self.fiducial, Run):
            return self.fiducial.spectra()
        ee, kk = self.fiducial.fiducial_ee, self.fiducial.fiducial_kk
        lmax = max(len(ee), len(kk), 5001) - 1
        ee, kk = (np.pad(cl, (0, lmax + 1 - len(cl))) for cl in (ee, kk))
        lensed = lensed_polarisation(Spectra(ee, kk, ee, np.zeros_like(ee)), lmax)
        return Spectra(ee, kk, *lensed)


def reconstruct_maps(
    setup: MapSetup,
    estimator: Estimator,
    maps: PatchMaps,
    source: str,
    folder: str | Path,
    warnings: Sequence[str] = (),
) -> Path:
    """Reconstruct a user's patches: κ̂ of each as a FITS image, and their bandpowers.

    κ̂ of maps that came as arrays is written as one array too, ``kappa.npz`` with ``kappa``
    (n_patches, n, n) in the patches' frame.

    Parameters
    ----------
    source : where the maps came from, kept in what is written
    folder : where ``kappa_000.fits`` and so on and ``bandpowers.h5`` go
    warnings : of :func:`~cobaya_cnnlens.calibrate.map_checks.check_maps`, kept too

    Returns
    -------
    path of the bandpowers, from which :mod:`~cobaya_cnnlens.pipeline.assemble` makes a release

    Raises
    ------
    MapError
        if κ̂ is not finite, or the folder cannot be written
    """
    from ..pipeline.map_files import write_kappa  # loads healpy and astropy

    folder = Path(folder)
    mask = setup.mask * setup.instrument.seen(setup.patch)
    q, u = maps.q * mask, maps.u * mask
    kappa = estimator.reconstruct(q, u)
    if not np.isfinite(kappa).all():
        raise MapError(f"{source}: κ̂ is not finite; the network is damaged: restore it")
    with _writing(folder):
        for i, (patch, centre) in enumerate(zip(kappa, maps.centres, strict=True)):
            path = folder / f"kappa_{i:03d}.fits"
            cards = {"NETWORK": setup.network_hash[:16], "CONFIG": setup.name}
            write_kappa(path, patch, centre, setup.patch, maps.frame, **cards)
        if maps.arrays:
            with atomic_write(folder / "kappa.npz") as partial:
                np.savez(partial, kappa=kappa.astype(np.float32))
        path = folder / "bandpowers.h5"
        arrays = {
            "auto": setup.spectra.auto(kappa),
            "power": EBPower(setup.patch, setup.bins, setup.mask)(q, u),
            # Products hold no NaN: unknown centres are zero, and said to be unknown.
            "centres": np.nan_to_num(maps.centres),
            "known": np.isfinite(maps.centres).all(1),
            "frame": np.bytes_(maps.frame.encode()),
            "source": np.bytes_(source.encode()),
            "warnings": products.texts(warnings),
        }
        products.write_product(path, KIND, setup.recipe, arrays)
    return path


def check_folder(folder: str | Path) -> None:
    """Make a folder for what will be written, and refuse it now if it cannot be.

    Parameters
    ----------
    folder : is made if it is not there

    Raises
    ------
    MapError
    """
    folder = Path(folder)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial = temporary_name(folder / "trial")
        try:
            trial.write_bytes(b"trial")
        finally:
            trial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MapError(
            f"{folder}: cannot be written ({error.strerror or error}); name another folder with "
            "--out, or make room"
        ) from None


@dataclass(frozen=True)
class MapBandpowers:
    """What was measured of a survey's patches, before any calibration.

    Attributes
    ----------
    auto : ⟨κ̂κ̂*⟩, (n_patches, n_bins)
    power : of E and B, (n_patches, n_power) in µK²
    source : names of the maps they came from
    warnings : of what is suspicious of the maps
    """

    auto: np.ndarray
    power: np.ndarray
    source: str
    warnings: tuple[str, ...]


def read_map_bandpowers(
    paths: str | Path | Iterable[str | Path],
    recipe: dict[str, Any],
    size_deg: float,
    calibration: str,
) -> MapBandpowers:
    """The bandpowers that :func:`reconstruct_maps` wrote, of one file or of
    several that make one survey.

    Parameters
    ----------
    paths : one file, or several that make one survey
    recipe : of the calibration, which that of the bandpowers must equal
    size_deg : side of a patch in degrees
    calibration : what it is, for errors

    Returns
    -------
    bandpowers, power and warnings of all patches

    Raises
    ------
    ProductError
        if a file is missing, damaged, or made with another network, instrument, patch or binning
    MapError
        if patches overlap or are there twice
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    calibrated = json.loads(json.dumps(recipe))
    autos, powers, places, frames, sources, warnings = [], [], [], [], [], []
    for path in paths:
        with products.open_product(path, KIND) as product:
            different = products.differences(product.recipe, calibrated)
        if different:
            raise ProductError(
                f"{path}: measured otherwise than {calibration} was calibrated: "
                f"{'; '.join(different)}; reconstruct the maps again with what made the calibration"
            )
        with products.open_product(path, KIND, recipe) as product:
            autos.append(product.array("auto"))
            powers.append(product.array("power"))
            known = product.array("known")[:, None]
            places.append(np.where(known, product.array("centres"), np.nan))
            frames.append(bytes(product.array("frame")).decode())
            sources.append(bytes(product.array("source")).decode())
            where = "" if len(paths) == 1 else f"{sources[-1]}: "
            warnings += [where + warning for warning in product.texts("warnings")]
    named = ", ".join(map(str, paths))
    if len(set(frames)) > 1:
        raise MapError(
            f"{named}: their coordinates are {', '.join(FRAMES[f] for f in sorted(set(frames)))}, "
            "so it cannot be seen whether patches overlap; give all maps in one frame"
        )
    auto = np.concatenate(autos)
    check_separate(np.concatenate(places), size_deg, named)
    for i, row in enumerate(auto[:-1]):
        same = np.isclose(auto[i + 1 :], row, rtol=1e-6, atol=0.0).all(1)
        if same.any():
            raise MapError(
                f"{named}: patches {i} and {i + 1 + int(np.argmax(same))} have the same "
                "bandpowers: the same map is there twice; leave one out"
            )
    source = ", ".join(dict.fromkeys(sources))
    return MapBandpowers(auto, np.concatenate(powers), source, tuple(dict.fromkeys(warnings)))
