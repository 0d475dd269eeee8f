"""Instruments drawn at random: noise levels, depths, holes and tapers for one set of weights.

A network that corrects a filter knows the instrument through the noise rms of every pixel, infinite
in pixels without data, and through the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .instrument import ARCMIN, Instrument
from .patches import PatchGeometry


@dataclass(frozen=True)
class Variation:
    """How instruments differ from the one of a configuration.

    Attributes
    ----------
    as_it_is : share of patches that have the instrument's own noise level
    noise_uk_arcmin : both ends of the levels of the others in µK-arcmin, evenly in their
        logarithm; a ``noiseless`` share of all patches has the lower one
    depth_share, depth_ratio : share of patches whose depth varies along a direction of its own, and
        the largest ratio of the noise at the patch's two ends
    hole_share, holes, hole_arcmin : share of patches with holes, the largest number of them, and
        both ends of their diameters in arcmin
    taper_share, tapers_deg : share of *batches of patches* with another taper than the
        instrument's, and the tapers that these take in turn
    """

    as_it_is: float = 0.4
    noise_uk_arcmin: tuple[float, float] = (0.3, 10.0)
    noiseless: float = 0.08
    depth_share: float = 0.3
    depth_ratio: float = 4.0
    hole_share: float = 0.4
    holes: int = 14
    hole_arcmin: tuple[float, float] = (5.0, 20.0)
    taper_share: float = 0.25
    tapers_deg: tuple[float, ...] = (0.25, 0.75, 1.0)

    def taper(self, batch: int, instrument: Instrument) -> float:
        """Width of the mask's taper for a batch of patches.

        Parameters
        ----------
        batch : number of the batch
        instrument : of the configuration

        Returns
        -------
        taper : in degrees
        """
        others = int((batch + 1) * self.taper_share)
        if others == int(batch * self.taper_share):
            return instrument.taper_deg
        return self.tapers_deg[(others - 1) % len(self.tapers_deg)]

    def draw(
        self, geometry: PatchGeometry, instrument: Instrument, generator: np.random.Generator
    ) -> tuple[float, np.ndarray]:
        """Draw the depth of one patch.

        Parameters
        ----------
        geometry : of the patch
        instrument : of the configuration
        generator : source of the random numbers

        Returns
        -------
        level, rms : noise level in µK-arcmin; noise per pixel in µK, (n, n), infinite in holes
        """
        level = self._level(instrument, generator)
        n = geometry.n_pixels
        seen = instrument.at_level(level)
        rms = np.full((n, n), seen.noise_rms(geometry))
        if generator.random() < self.depth_share:
            rms = rms * self._depth(n, generator)
        if generator.random() < self.hole_share:
            rms[self._holes(geometry, generator)] = np.inf
        return level, rms

    def _level(self, instrument: Instrument, generator: np.random.Generator) -> float:
        kind, place = generator.random(2)
        low, high = self.noise_uk_arcmin
        if kind < self.as_it_is:
            return instrument.noise_uk_arcmin
        if kind < self.as_it_is + self.noiseless:
            return low
        return float(low * (high / low) ** place)

    def _depth(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """exp(½ ln D sin πs), s from −½ to ½ along a random direction, ln D even up to the
        largest."""
        angle, size = generator.random(2) * (2.0 * np.pi, np.log(self.depth_ratio))
        place = (np.arange(n) + 0.5) / n - 0.5
        along = np.cos(angle) * place[:, None] + np.sin(angle) * place[None, :]
        return np.exp(0.5 * size * np.sin(np.pi * np.clip(along, -0.5, 0.5)))

    def _holes(self, geometry: PatchGeometry, generator: np.random.Generator) -> np.ndarray:
        n = geometry.n_pixels
        hidden = np.zeros((n, n), bool)
        y, x = np.mgrid[:n, :n] + 0.5
        for _ in range(int(generator.integers(1, self.holes + 1)) if self.holes else 0):
            diameter = generator.uniform(*self.hole_arcmin) * ARCMIN / geometry.pixel
            at_y, at_x = generator.uniform(0.0, n, 2)
            hidden |= np.hypot(y - at_y, x - at_x) < 0.5 * diameter
        return hidden
