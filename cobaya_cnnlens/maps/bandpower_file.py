"""The bandpowers of a user's own maps, on their way to a release."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import products
from ..errors import MapError, ProductError
from ..files import atomic_write, temporary_name
from ..reconstruct import Estimator
from ..simulate.bandpowers import EBPower
from .map_setup import MapSetup
from .patch_files import PatchMaps, write_kappa
from .separation import FRAMES, check_separate

KIND = "map bandpowers"


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
    warnings : of :func:`~cobaya_cnnlens.maps.map_checks.check_maps`, kept too

    Returns
    -------
    path of the bandpowers, from which :mod:`~cobaya_cnnlens.calibrate.assemble` makes a release

    Raises
    ------
    MapError
        if κ̂ is not finite, or the folder cannot be written
    """
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


def read_map_bandpowers(paths: str | Path | Iterable[str | Path], setup: MapSetup) -> MapBandpowers:
    """The bandpowers that :func:`reconstruct_maps` wrote, of one file or of
    several that make one survey.

    Parameters
    ----------
    paths : one file, or several that make one survey
    setup : of the calibration, which that of the bandpowers must equal

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
    calibrated = json.loads(json.dumps(setup.recipe))
    autos, powers, places, frames, sources, warnings = [], [], [], [], [], []
    for path in paths:
        with products.open_product(path, KIND) as product:
            different = products.differences(product.recipe, calibrated)
            if different:
                raise ProductError(
                    f"{path}: measured otherwise than {setup.source} was calibrated: "
                    f"{'; '.join(different)}; reconstruct the maps again with what made the "
                    "calibration"
                )
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
    check_separate(np.concatenate(places), setup.patch.size_deg, named)
    for i, row in enumerate(auto[:-1]):
        same = np.isclose(auto[i + 1 :], row, rtol=1e-6, atol=0.0).all(1)
        if same.any():
            raise MapError(
                f"{named}: patches {i} and {i + 1 + int(np.argmax(same))} have the same "
                "bandpowers: the same map is there twice; leave one out"
            )
    source = ", ".join(dict.fromkeys(sources))
    return MapBandpowers(auto, np.concatenate(powers), source, tuple(dict.fromkeys(warnings)))
