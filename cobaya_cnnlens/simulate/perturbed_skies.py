"""One simulated sky, observed again and again with the same phases and noise.

Scaling C_j of a band by 1 ± ε multiplies the band's a_lm by √(1 ± ε). The lensed map is linear in
the unlensed E, and the deflection linear in φ, so one extra transform per band serves both signs.
The difference of what is measured, over 2ε, is a derivative with respect to ln C_j without the
scatter of skies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import patches
from .bandpowers import FlatSpectra
from .instrument import Instrument, convolve_beam
from .shards import HarmonicSky
from .skies import scale_alm


@dataclass(frozen=True)
class Observation:
    """How the patches of a sky are observed.

    Attributes
    ----------
    instrument : whose beam the maps have
    noise : of Q and U, (2, n_patches, ny, nx) in µK
    mask : (ny, nx), or (n_patches, ny, nx) for patches with masks of their own
    """

    instrument: Instrument
    noise: np.ndarray
    mask: np.ndarray


class PerturbedSky:
    """One sky, kept in memory while its bands are perturbed one by one.

    Parameters
    ----------
    sky : its a_lm
    pointing : of the patches
    observation : of the patches
    spectra : of masked patches; they measure κ
    measured : from masked Q̃ and Ũ, (n_patches, ny, nx) each, to (n_patches, n)
    edges : of the bands of "kk" and "ee"
    step : ε, by which a band is scaled up and down
    band_limit : of κ
    nthreads : threads of the transforms; 0 for all cores
    """

    def __init__(
        self,
        sky: HarmonicSky,
        pointing: patches.Pointing,
        observation: Observation,
        spectra: FlatSpectra,
        measured: Callable[[np.ndarray, np.ndarray], np.ndarray],
        edges: Mapping[str, Sequence[int]],
        step: float,
        band_limit: int,
        nthreads: int = 0,
    ):
        self.sky, self.pointing, self.observation = sky, pointing, observation
        self.spectra, self._measured = spectra, measured
        self.edges, self.step, self.band_limit, self.nthreads = edges, step, band_limit, nthreads
        self.gradient = patches.gradient_at(sky.philm, sky.lmax, pointing, nthreads)
        (self.lensed,) = self._lens([self.gradient])
        self.kappa = self._kappa(sky.philm)

    def bands(self) -> list[tuple[str, int]]:
        """All bands, C^κκ before C^EE, as :meth:`measure` takes them."""
        return [(kind, band) for kind in ("kk", "ee") for band in range(len(self.edges[kind]) - 1)]

    def measure(self, kind: str, band: int) -> dict[str, np.ndarray]:
        """Derivatives in one band, or the bandpowers of the sky as it is.

        Parameters
        ----------
        kind : "kk", "ee" or "fiducial"
        band : number of the band

        Returns
        -------
        ``auto`` of κ̂ and, but for "ee", ``truth`` of κ, (n_patches, n_bins) each
        """
        if kind == "fiducial":
            return self.unperturbed()
        return (self._kk if kind == "kk" else self._ee)(band)

    def unperturbed(self) -> dict[str, np.ndarray]:
        """Bandpowers of κ̂ and of the true κ of the sky as it is, each (n_patches, n_bins)."""
        return {"auto": self._auto(self.lensed), "truth": self.spectra.auto(self.kappa)}

    def _ee(self, band: int) -> dict[str, np.ndarray]:
        low, high = self.edges["ee"][band : band + 2]
        elm, lmax = self._band_alm(self.sky.elm, low, high)
        deflection = patches.deflect_by(self.gradient, self.pointing, self.nthreads)
        extra = patches.lensed_polarisation_at(elm, lmax, self.pointing, deflection, self.nthreads)
        up, down = (self._auto(self.lensed + change * extra) for change in self._changes())
        return {"auto": (up - down) / (2.0 * self.step)}

    def _kk(self, band: int) -> dict[str, np.ndarray]:
        low, high = self.edges["kk"][band : band + 2]
        philm, lmax = self._band_alm(self.sky.philm, low, high)
        gradient = patches.gradient_at(philm, lmax, self.pointing, self.nthreads)
        kappa = self._kappa(philm, lmax)
        changes = self._changes()
        lensed = self._lens([self.gradient + change * gradient for change in changes])
        up, down = (self._auto(maps) for maps in lensed)
        kappa_up, kappa_down = (self.spectra.auto(self.kappa + c * kappa) for c in changes)
        return {
            "auto": (up - down) / (2.0 * self.step),
            "truth": (kappa_up - kappa_down) / (2.0 * self.step),
        }

    def _changes(self) -> tuple[float, float]:
        """√(1 ± ε) − 1."""
        return np.sqrt(1.0 + self.step) - 1.0, np.sqrt(1.0 - self.step) - 1.0

    def _band_alm(self, alm: np.ndarray, low: int, high: int) -> tuple[np.ndarray, int]:
        """The a_lm with low ≤ l < high, cut at the band's top so that transforms are cheap."""
        lmax = min(high - 1, self.sky.lmax)
        cut = patches.truncate_alm(alm, self.sky.lmax, lmax)
        return scale_alm(cut, (np.arange(lmax + 1) >= low).astype(float)), lmax

    def _lens(self, gradients: list[np.ndarray]) -> list[np.ndarray]:
        """The sky's E under several deflections, from one Legendre transform."""
        deflections = [patches.deflect_by(g, self.pointing, self.nthreads) for g in gradients]
        lensed = patches.lensed_polarisation_at(
            self.sky.elm,
            self.sky.lmax,
            patches.repeat_pointing(self.pointing, len(gradients)),
            patches.join_deflections(deflections),
            self.nthreads,
        )
        return np.split(lensed, len(gradients))

    def _kappa(self, philm: np.ndarray, lmax: int | None = None) -> np.ndarray:
        lmax = lmax or self.sky.lmax
        limit = min(lmax, self.band_limit)
        kappa = patches.scalar_at(
            patches.convergence_alm(philm, lmax, limit), limit, self.pointing, self.nthreads
        )
        return self._patches(kappa) * self.spectra.mask

    def _patches(self, values: np.ndarray) -> np.ndarray:
        geometry = self.spectra.geometry
        return geometry.crop(values.reshape(-1, geometry.n_padded, geometry.n_padded))

    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Masked Q̃, Ũ of the sky as it is, (n_patches, ny, nx) each in µK."""
        return self._observed(self.lensed)

    def _observed(self, lensed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From padded, noiseless Q̃ + iŨ."""
        geometry, observation = self.spectra.geometry, self.observation
        shape = (-1, geometry.n_padded, geometry.n_padded)
        q, u = (
            (convolve_beam(maps.reshape(shape), observation.instrument, geometry) + noise)
            * observation.mask
            for maps, noise in zip((lensed.real, lensed.imag), observation.noise, strict=True)
        )
        return q, u

    def _auto(self, lensed: np.ndarray) -> np.ndarray:
        """What is measured of padded, noiseless Q̃ + iŨ, (n_patches, n)."""
        return self._measured(*self._observed(lensed))
