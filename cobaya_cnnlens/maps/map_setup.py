"""What a user's maps must fit, and what measures them.

A calibration holds for one patch, instrument, binning and network. Both a configuration and a
release say which (:class:`MapSetup`). A release can therefore calibrate maps that come after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ReleaseError
from ..likelihood.release import Release
from ..pipeline.reconstructions import ALGORITHM, measurement_recipe
from ..pipeline.run import Run
from ..pipeline.sections.estimator_settings import Reconstruction
from ..simulate.bandpowers import Bins, EBPower, FlatSpectra
from ..simulate.instrument import Instrument, cosine_mask
from ..simulate.one_over_f import OneOverF
from ..simulate.patches import PatchGeometry
from ..theory.camb import Spectra, lensed_polarisation


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
    lmin_b : κ̂ does not use B modes below this multipole
    """

    name: str
    patch: PatchGeometry
    instrument: Instrument
    bins: Bins
    network_hash: str
    recipe: dict[str, Any]
    symmetries: int
    fiducial: Run | Release
    lmin_b: int = 0

    @classmethod
    def of(cls, source: Run | Release) -> MapSetup:
        """What a configuration or a release says of the maps that its calibration fits.

        Parameters
        ----------
        source : a configuration, with its products and networks, or a release

        Returns
        -------
        the setup

        Raises
        ------
        ReleaseError
            as :meth:`of_release`
        """
        return cls.of_run(source) if isinstance(source, Run) else cls.of_release(source)

    @property
    def source(self) -> str:
        """The configuration or release, as a message names it."""
        kind = "configuration" if isinstance(self.fiducial, Run) else "release"
        return f"{kind} '{self.name}'"

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
            config.reconstruction.lmin_b,
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
            applied = Reconstruction(
                symmetries=release.provenance.get("symmetries", 1),
                lmin_b=release.provenance.get("lmin_b", 0),
            )
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
            **applied.recipe(),
            "bandpowers": vars(bins),
        }
        known = release.name, patch, instrument, bins, digest, made_of, applied.symmetries
        return cls(*known, release, applied.lmin_b)

    @property
    def cards(self) -> dict[str, str | int]:
        """What the headers of κ̂'s images and maps say of the estimator."""
        return {"NETWORK": self.network_hash[:16], "CONFIG": self.name, "LMIN_B": self.lmin_b}

    @cached_property
    def mask(self) -> np.ndarray:
        """The apodisation mask, (n, n)."""
        return cosine_mask(self.patch, self.instrument.taper_deg)

    @cached_property
    def spectra(self) -> FlatSpectra:
        """The spectrum estimator of the masked patches."""
        return FlatSpectra(self.patch, self.bins, self.mask)

    @cached_property
    def power(self) -> EBPower:
        """What measures E and B of the masked patches."""
        return EBPower(self.patch, self.bins, self.mask)

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
