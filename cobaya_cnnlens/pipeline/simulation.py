"""A configuration with what its simulated skies share, whatever estimator sees them."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import products
from ..simulate.bandpowers import Bins, FlatSpectra
from ..simulate.instrument import cosine_mask
from ..simulate.tiling import evenly, ring_centres
from ..theory.camb import Cosmology, Spectra, compute_spectra
from .config import Config
from .sections.sky_settings import WHOLE

if TYPE_CHECKING:
    from ..simulate.patches import Pointing

SPECTRA = "spectra"


class Simulation:
    """A configuration, with what its skies and maps share; each is computed when first used.

    Parameters
    ----------
    config : the pipeline's configuration
    """

    def __init__(self, config: Config):
        self.config = config
        self._spectra: dict[Cosmology, Spectra] = {}

    @cached_property
    def mask(self) -> np.ndarray:
        """Of a patch, (n_pixels, n_pixels)."""
        return cosine_mask(self.config.patch, self.config.instrument.taper_deg)

    @cached_property
    def data_mask(self) -> np.ndarray:
        """Of observed Q and U: :attr:`mask`, and zero where nothing was seen, (n_pixels,
        n_pixels). κ̂ is known in holes too, from what lies around them."""
        return self.mask * self.config.instrument.seen(self.config.patch)

    @cached_property
    def bandpowers(self) -> FlatSpectra:
        """What measures the binned power of masked patches."""
        bins = Bins(**self.config.bandpowers.model_dump())
        return FlatSpectra(self.config.patch, bins, self.mask)

    @cached_property
    def n_patches(self) -> int:
        """Patches of one whole sky."""
        centres = self.config.centres
        if centres.rings:
            return len(ring_centres(self.config.patch.size_deg))
        return 12 * centres.nside**2 - 2 * centres.poles

    @cached_property
    def spread(self) -> np.ndarray:
        """Which of a sky's patches ``centres.spread`` takes, evenly over it; all without that."""
        return evenly(self.n_patches, self.config.centres.spread)

    def pointing_of(self, set_name: str) -> Pointing:
        """Where on the sky the pixels of all patches of a set's skies lie.

        Parameters
        ----------
        set_name : name of the set of skies

        Returns
        -------
        positions of the pixels, patch after patch
        """
        from ..simulate import shards

        centres = self.config.centres
        if centres.rings:
            every = shards.pointing_in_rings(self.config.patch)
        else:
            every = shards.pointing_of(self.config.patch, centres.nside, centres.poles)
        if set_name in WHOLE or centres.spread is None:
            return every
        return shards.some_patches(every, self.config.patch, self.spread)

    def spectra(self, cosmology: Cosmology | None = None) -> Spectra:
        """Theory's spectra of a cosmology, the fiducial by default; CAMB runs once for each, and
        they are kept on disk.

        Parameters
        ----------
        cosmology : the fiducial by default

        Returns
        -------
        unlensed and lensed spectra
        """
        cosmology = self.config.cosmology if cosmology is None else cosmology
        if cosmology not in self._spectra:
            self._spectra[cosmology] = self._kept_spectra(cosmology)
        return self._spectra[cosmology]

    def _kept_spectra(self, cosmology: Cosmology) -> Spectra:
        """Those of the product, which is made when missing."""
        recipe = self.spectra_recipe(cosmology)
        path = self.config.sky_directory / "spectra" / f"{products.identity_of(recipe)}.h5"
        if not products.exists(path, SPECTRA, recipe):
            computed = compute_spectra(cosmology, self.config.camb)
            products.write_product(path, SPECTRA, recipe, vars(computed))
        with products.open_product(path, SPECTRA, recipe) as product:
            return Spectra(**{name: product.array(name) for name in Spectra.__annotations__})

    def spectra_recipe(self, cosmology: Cosmology) -> dict[str, Any]:
        """What determines the spectra of a cosmology.

        Parameters
        ----------
        cosmology : of the spectra

        Returns
        -------
        mapping for JSON
        """
        return {"cosmology": asdict(cosmology), "camb": asdict(self.config.camb)}
