"""The instrument: beam, white noise and apodisation mask of a patch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from .modes import mode_vectors
from .patches import PatchGeometry

ARCMIN = np.pi / (180.0 * 60.0)


@dataclass(frozen=True)
class Instrument:
    """White noise of Q and of U each (µK′), Gaussian beam (FWHM in ′), mask taper (degrees).

    With ``depth_ratio`` D the noise is ``noise_uk_arcmin`` in the middle of a patch and falls
    smoothly along y from √D times that at one side to 1/√D times that at the other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    noise_uk_arcmin: float = 1.0
    beam_fwhm_arcmin: float = 1.0
    taper_deg: float = 0.5
    depth_ratio: float | None = None

    def noise_rms(self, geometry: PatchGeometry) -> float | np.ndarray:
        """Noise per pixel of Q and of U, in µK: a number, or (n, n) where the depth varies."""
        rms = self.noise_uk_arcmin / (geometry.pixel / ARCMIN)
        if self.depth_ratio is None:
            return rms
        n = geometry.n_pixels
        slope = np.cos(np.pi * (np.arange(n) + 0.5) / n)[:, None] * np.ones(n)
        return rms * self.depth_ratio ** (0.5 * slope)

    def beam(self, ell: np.ndarray) -> np.ndarray:
        """Beam transfer function exp(−l²σ²/2), σ = FWHM/√(8 ln 2); same shape as ``ell``."""
        sigma = self.beam_fwhm_arcmin * ARCMIN / np.sqrt(8.0 * np.log(2.0))
        return np.exp(-0.5 * (np.asarray(ell) * sigma) ** 2)


@dataclass(frozen=True)
class Systematics:
    """How an instrument differs from what it is taken for.

    ``gain``: relative change of the sky's polarisation in the maps, whose noise stays;
    ``beam``: of the beam's FWHM; ``noise``: of the noise rms; ``angle``: rotation of the
    polarisation by so many degrees, Q + iU → e^{2iα}(Q + iU)
    """

    gain: float = 0.0
    beam: float = 0.0
    noise: float = 0.0
    angle: float = 0.0

    def of(self, instrument: Instrument) -> Instrument:
        """The instrument with its beam and noise off."""
        return replace(
            instrument,
            noise_uk_arcmin=instrument.noise_uk_arcmin * (1.0 + self.noise),
            beam_fwhm_arcmin=instrument.beam_fwhm_arcmin * (1.0 + self.beam),
        )

    def distort(self, q: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Noiseless Q and U with gain and angle off; same shapes."""
        if not self.gain and not self.angle:
            return q, u
        cos, sin = ((1.0 + self.gain) * f(2.0 * np.radians(self.angle)) for f in (np.cos, np.sin))
        return cos * q - sin * u, sin * q + cos * u


def cosine_mask(geometry: PatchGeometry, taper_deg: float) -> np.ndarray:
    """Product of cosine tapers, (n_pixels, n_pixels): 0 at the edge, 1 beyond ``taper_deg``.

    One side falls as ½[1 − cos(π d/taper)], d the distance of the pixel centre to the edge,
    so that value and slope both vanish at the edge.
    """
    n = geometry.n_pixels
    taper = np.radians(taper_deg) / geometry.pixel
    distance = np.minimum(np.arange(n) + 0.5, n - 0.5 - np.arange(n))
    if taper <= 0:
        side = np.ones(n)
    else:
        side = 0.5 * (1.0 - np.cos(np.pi * np.minimum(distance / taper, 1.0)))
    return side[:, None] * side[None, :]


def convolve_beam(
    padded: np.ndarray, instrument: Instrument, geometry: PatchGeometry
) -> np.ndarray:
    """Padded maps (..., n_padded, n_padded) → beamed and cropped (..., n_pixels, n_pixels).

    The padding keeps the wrap-around of the Fourier convolution off the patch.
    """
    n = geometry.n_padded
    transfer = instrument.beam(np.hypot(*mode_vectors(n, geometry.pixel)))
    beamed = np.fft.irfft2(np.fft.rfft2(padded) * transfer, s=(n, n))
    return geometry.crop(beamed)


def white_noise(
    shape: tuple[int, ...],
    instrument: Instrument,
    geometry: PatchGeometry,
    generator: np.random.Generator,
) -> np.ndarray:
    """White noise in µK per pixel, float32 of the given shape."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    return noise * np.asarray(instrument.noise_rms(geometry), np.float32)
