"""The file of the bandpowers of observed patches, own ones or tiles, before any calibration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import products
from ..errors import MapError, ProductError
from ..files import temporary_name
from .headers import FRAMES
from .map_setup import MapSetup
from .tiles import check_separate

KIND = "map bandpowers"


@dataclass(frozen=True)
class MapBandpowers:
    """What was measured of patches.

    Attributes
    ----------
    auto : ⟨κ̂κ̂*⟩, (n_patches, n_bins)
    power : of E and B, as :class:`.EBPower`, (n_patches, n_power) in
        µK²
    rotation : sums that give the rotation of the polarisation, :meth:`.EBPower.rotation`,
        (n_patches, 2) in µK²
    centres : colatitude and longitude in radians, (n_patches, 2); NaN where unknown
    frame : of the coordinates, a key of :data:`~cobaya_cnnlens.maps.headers.FRAMES`
    source : names of the maps they came from
    warnings : of what is suspicious of the maps
    """

    auto: np.ndarray
    power: np.ndarray
    rotation: np.ndarray
    centres: np.ndarray
    frame: str
    source: str
    warnings: tuple[str, ...]

    def write(self, path: Path, recipe: Mapping[str, Any]) -> None:
        """Write them.

        Parameters
        ----------
        path : of the product
        recipe : everything that determined them
        """
        arrays = {
            "auto": self.auto,
            "power": self.power,
            "rotation": self.rotation,
            # Products hold no NaN: unknown centres are zero, and said to be unknown.
            "centres": np.nan_to_num(self.centres),
            "known": np.isfinite(self.centres).all(1),
            "frame": np.bytes_(self.frame.encode()),
            "source": np.bytes_(self.source.encode()),
            "warnings": products.texts(self.warnings),
        }
        products.write_product(path, KIND, recipe, arrays)

    @classmethod
    def of(cls, product: products.Product) -> MapBandpowers:
        """What a file holds.

        Parameters
        ----------
        product : the open file

        Returns
        -------
        bandpowers : of its patches
        """
        known = product.array("known")[:, None]
        return cls(
            product.array("auto"),
            product.array("power"),
            product.array("rotation"),
            np.where(known, product.array("centres"), np.nan),
            bytes(product.array("frame")).decode(),
            bytes(product.array("source")).decode(),
            tuple(product.texts("warnings")),
        )


def read_map_bandpowers(paths: str | Path | Iterable[str | Path], setup: MapSetup) -> MapBandpowers:
    """Read the bandpowers of own patches, of one file or of several that make one survey.

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
    files = []
    for path in paths:
        with products.open_product(path, KIND) as product:
            different = products.differences(product.recipe, calibrated)
            if different:
                raise ProductError(
                    f"{path}: measured otherwise than {setup.source} was calibrated: "
                    f"{'; '.join(different)}; reconstruct the maps again with what made the "
                    "calibration"
                )
            files.append(MapBandpowers.of(product))
    named, frames = ", ".join(map(str, paths)), sorted({file.frame for file in files})
    if len(frames) > 1:
        raise MapError(
            f"{named}: their coordinates are {', '.join(FRAMES[frame] for frame in frames)}, "
            "so it cannot be seen whether patches overlap; give all maps in one frame"
        )
    auto, power, rotation, centres = (
        np.concatenate([getattr(file, name) for file in files])
        for name in ("auto", "power", "rotation", "centres")
    )
    check_separate(centres, setup.patch.size_deg, named)
    for i, row in enumerate(auto[:-1]):
        same = np.isclose(auto[i + 1 :], row, rtol=1e-6, atol=0.0).all(1)
        if same.any():
            raise MapError(
                f"{named}: patches {i} and {i + 1 + int(np.argmax(same))} have the same "
                "bandpowers: the same map is there twice; leave one out"
            )
    source = ", ".join(dict.fromkeys(file.source for file in files))
    warnings = dict.fromkeys(
        warning if len(files) == 1 else f"{file.source}: {warning}"
        for file in files
        for warning in file.warnings
    )
    measured = auto, power, rotation, centres
    return MapBandpowers(*measured, frames[0], source, tuple(warnings))


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
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial = temporary_name(folder / "trial")
        try:
            trial.write_bytes(b"trial")
        finally:
            trial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the error of a folder that cannot be written into one of ours.

    Parameters
    ----------
    folder : for the message

    Yields
    ------
    nothing
    """
    try:
        yield
    except OSError as error:
        raise MapError(
            f"{folder}: cannot be written ({error.strerror or error}); name another folder with "
            "--out, or make room"
        ) from None
