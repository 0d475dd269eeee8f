"""A run of the pipeline: a configuration, and what every stage of it needs."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..simulate.bandpowers import Bins, FlatSpectra
from ..simulate.instrument import cosine_mask
from ..simulate.tiling import evenly, ring_centres
from ..theory.camb import Cosmology, Spectra
from . import networks, skies
from .config import WHOLE, Config

if TYPE_CHECKING:
    from ..reconstruct import Estimator
    from ..simulate.patches import Pointing


class Run:
    """A configuration, with what its stages share; each is computed when first used.

    Parameters
    ----------
    config : the pipeline's configuration
    estimator_id : what stands for the estimator in recipes; from the configuration if None
    estimator : the estimator itself, in the place of the configuration's
    """

    def __init__(
        self,
        config: Config,
        estimator_id: str | None = None,
        estimator: Estimator | None = None,
    ):
        self.config = config
        self._spectra: dict[Cosmology, Spectra] = {}
        # What is given lies where the cached properties look first.
        given = {"estimator_id": estimator_id, "estimator": estimator}
        vars(self).update({name: value for name, value in given.items() if value is not None})

    def __reduce__(self) -> tuple[type[Run], tuple[Config, str | None]]:
        # Another process makes anew what it needs: Keras's networks are not sent.
        return Run, (self.config, vars(self).get("estimator_id"))

    @cached_property
    def estimator_id(self) -> str:
        """The hash of the network or networks, or of the baseline's recipe.

        Raises
        ------
        NetworkError
            if a network cannot be read, or was trained for another configuration
        """
        return networks.estimator_id(self)

    @cached_property
    def estimator(self) -> Estimator:
        """Maps → κ̂: the network or networks, for which Keras is loaded, or the baseline.

        Raises
        ------
        NetworkError
            as :attr:`estimator_id`
        """
        from .estimators import build_estimator

        return build_estimator(self)

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
            self._spectra[cosmology] = skies.spectra(self, cosmology)
        return self._spectra[cosmology]
