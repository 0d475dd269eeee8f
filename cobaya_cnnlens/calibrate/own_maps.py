"""A user's own maps on the way to a release: what they must fit, their bandpowers, the release.

A configuration and a release both know the patch, the instrument, the bins and the network that a
calibration holds for; :class:`MapSetup` is that knowledge, from either. A release therefore
calibrates maps that come after it: d_b = ⟨|κ̂|²⟩_b/R_b² − N_b with its response and noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import products
from ..errors import MapError, NetworkError, ProductError, ReleaseError
from ..likelihood.release import DATA_DIRECTORY, Release, shipped_releases
from ..pipeline.config import ALGORITHM, Config
from ..pipeline.skies import spectra_for
from ..reconstruct.files import check_network, network_hash
from ..simulate.instrument import Instrument, cosine_mask
from ..simulate.patches import PatchGeometry
from ..theory.camb import Spectra, lensed_polarisation
from .bandpowers import Bins, FlatSpectra
from .measure import MAP_BANDPOWERS

NETWORKS = DATA_DIRECTORY / "networks"
# Frames of a map's coordinates, as HEALPix spells them: equatorial, galactic, ecliptic.
FRAMES = {"C": "equatorial", "G": "galactic", "E": "ecliptic"}


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
    fiducial : the configuration or release that gives the fiducial spectra
    """

    name: str
    patch: PatchGeometry
    instrument: Instrument
    bins: Bins
    network_hash: str
    recipe: dict
    symmetries: int
    fiducial: Config | Release

    @classmethod
    def of_config(cls, config: Config, network_hash: str) -> MapSetup:
        return cls(
            config.name,
            config.patch,
            config.instrument,
            Bins(**config.bandpowers.model_dump()),
            network_hash,
            config.map_recipe(network_hash),
            config.reconstruction.symmetries,
            config,
        )

    @classmethod
    def of_release(cls, release: Release) -> MapSetup:
        """What a release says of the maps that its calibration fits.

        Raises
        ------
        ReleaseError
            if the release does not say what its patches, instrument, network or theory were
        """
        try:
            seen = {
                key: float(release.instrument[key])
                for key in ("noise", "beam_fwhm", "mask_taper_deg", "patch_deg", "patch_pixels")
            }
            depth = release.instrument.get("depth_ratio")
            digest = str(release.provenance["network_sha256"])
            symmetries = int(release.provenance.get("symmetries", 1))
        except (KeyError, TypeError, ValueError) as error:
            raise ReleaseError(
                f"release '{release.name}': its fields 'instrument' and 'provenance' do not "
                f"tell what its network measures ({error}); give the configuration that made "
                "it instead"
            ) from None
        patch = PatchGeometry(seen["patch_deg"], int(seen["patch_pixels"]))
        instrument = Instrument(seen["noise"], seen["beam_fwhm"], seen["mask_taper_deg"], depth)
        widths = np.diff(release.edges)
        if (widths != widths[0]).any():
            raise ReleaseError(
                f"release '{release.name}': field 'bins.edges' has bins of different widths; give "
                "the configuration that made it instead"
            )
        bins = Bins(int(release.edges[0]), int(widths[0]), release.n_bins)
        recipe = {
            "patch": {"size_deg": patch.size_deg, "n_pixels": patch.n_pixels},
            "algorithm": ALGORITHM["bandpowers"],
            "instrument": vars(instrument),
            "network": digest,
            **({"symmetries": symmetries} if symmetries != 1 else {}),
            "bandpowers": vars(bins),
        }
        return cls(release.name, patch, instrument, bins, digest, recipe, symmetries, release)

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
        """Fiducial spectra to l = 5000 or beyond; those of a release are lensed as band-limited
        skies are from the unlensed C^EE and the C^κκ that it holds."""
        if isinstance(self.fiducial, Config):
            return spectra_for(self.fiducial, self.fiducial.cosmology)
        ee, kk = self.fiducial.fiducial_ee, self.fiducial.fiducial_kk
        lmax = max(len(ee), len(kk), 5001) - 1
        ee, kk = (np.pad(cl, (0, lmax + 1 - len(cl))) for cl in (ee, kk))
        lensed = lensed_polarisation(Spectra(ee, kk, ee, np.zeros_like(ee)), lmax)
        return Spectra(ee, kk, *lensed)


def is_release(name: str | Path) -> bool:
    """Whether a command's argument is a release, by its name, rather than a configuration."""
    path = Path(name)
    return path.suffix == ".json" or (str(name) in shipped_releases() and not path.exists())


def find_networks(release: Release, named: Sequence[str | Path] = ()) -> list[Path]:
    """The network or networks that made a release: those named, or a shipped one.

    Raises
    ------
    NetworkError
        if those named did not make it, or none of the shipped did
    """
    if named:
        check_network(release, named)
        return [Path(path) for path in named]
    made_with = str(release.provenance.get("network_sha256"))
    for path in sorted(NETWORKS.glob("*.keras")):
        if network_hash(path) == made_with:
            return [path]
    raise NetworkError(
        f"release '{release.name}' was made with network {made_with[:16]}…, which does not come "
        "with the package; name its file with --network, or give the configuration that made the "
        "release instead"
    )


def check_separate(centres: np.ndarray, size_deg: float, source: str) -> None:
    """Refuse patches that may overlap: a survey's errors are those of independent ones.

    Parameters
    ----------
    centres : colatitude and longitude in radians, (n, 2); NaN where unknown, which is passed over
    size_deg : side of a patch; squares further apart than their diagonal never touch

    Raises
    ------
    MapError
    """
    known = np.flatnonzero(np.isfinite(centres).all(1))
    theta, phi = centres[known].T
    n_hat = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    # The chord keeps its precision where the cosine of a small angle does not.
    for i in range(len(known) - 1):
        chord = np.linalg.norm(n_hat[:, i + 1 :] - n_hat[:, i, None], axis=0)
        apart = np.degrees(2.0 * np.arcsin(np.minimum(0.5 * chord, 1.0)))
        j = int(np.argmin(apart))
        if apart[j] < np.sqrt(2.0) * size_deg:
            (a, b), first = centres[known[[i, i + 1 + j]]], known[i]
            raise MapError(
                f"{source}: patches {first} at {_place(a)} and {known[i + 1 + j]} at {_place(b)} "
                f"are {apart[j]:.3g} degrees apart, less than the diagonal "
                f"{np.sqrt(2.0) * size_deg:.3g} of a patch: they overlap or nearly do, and would "
                "count as independent; leave one out"
            )


def _place(centre: np.ndarray) -> str:
    return f"(lon, lat) = ({np.degrees(centre[1]):g}, {90.0 - np.degrees(centre[0]):g})"


@dataclass(frozen=True)
class MapBandpowers:
    """⟨κ̂κ̂*⟩ of a survey's patches before any calibration, ``auto`` (n_patches, n_bins), and the
    names of the maps they came from."""

    auto: np.ndarray
    source: str


def read_map_bandpowers(
    paths: str | Path | Iterable[str | Path], recipe: dict, size_deg: float, calibration: str
) -> MapBandpowers:
    """The bandpowers that :func:`.maps.reconstruct_maps` wrote, of one file or of
    several that make one survey.

    Parameters
    ----------
    recipe : of the calibration, which that of the bandpowers must equal
    calibration : what it is, for errors

    Raises
    ------
    ProductError
        if a file is missing, damaged, or made with another network, instrument, patch or binning
    MapError
        if patches overlap or are there twice
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    wanted = json.loads(json.dumps(recipe))
    auto, centres, frames, sources = [], [], [], []
    for path in paths:
        with products.open_product(path, MAP_BANDPOWERS) as product:
            wrong = products.differences(product.recipe, wanted)
        if wrong:
            raise ProductError(
                f"{path}: measured otherwise than {calibration} was calibrated: "
                f"{'; '.join(wrong)}; reconstruct the maps again with what made the calibration"
            )
        with products.open_product(path, MAP_BANDPOWERS, recipe) as product:
            auto.append(product.array("auto"))
            known = product.array("known")[:, None]
            centres.append(np.where(known, product.array("centres"), np.nan))
            frames.append(bytes(product.array("frame")).decode())
            sources.append(bytes(product.array("source")).decode())
    named = ", ".join(map(str, paths))
    if len(set(frames)) > 1:
        raise MapError(
            f"{named}: their coordinates are {', '.join(FRAMES[f] for f in sorted(set(frames)))}, "
            "so it cannot be seen whether patches overlap; give all maps in one frame"
        )
    auto, centres = np.concatenate(auto), np.concatenate(centres)
    check_separate(centres, size_deg, named)
    for i, row in enumerate(auto[:-1]):
        same = np.isclose(auto[i + 1 :], row, rtol=1e-6, atol=0.0).all(1)
        if same.any():
            raise MapError(
                f"{named}: patches {i} and {i + 1 + int(np.argmax(same))} have the same "
                "bandpowers: the same map is there twice; leave one out"
            )
    return MapBandpowers(auto, ", ".join(dict.fromkeys(sources)))
