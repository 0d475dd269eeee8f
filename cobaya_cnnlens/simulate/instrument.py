"""The instrument: beam, noise and apodisation mask of a patch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import InstrumentError
from .instrument_files import (
    Beam,
    Transfer,
    digest_of,
    read_beam,
    read_rms,
    read_transfer,
)
from .modes import mode_vectors
from .one_over_f import ALGORITHM as ONE_OVER_F_ALGORITHM
from .one_over_f import OneOverF, unit_noise
from .patches import PatchGeometry

ARCMIN = np.pi / (180.0 * 60.0)
# Fields of an instrument that name files; each stands in recipes by its digest.
FILES = ("beam_file", "transfer_file", "ivar_file")


@dataclass(frozen=True)
class Instrument:
    """White noise of Q and of U (µK-arcmin), Gaussian beam (FWHM, arcmin), mask taper (degrees).

    With ``depth_ratio`` D the noise is ``noise_uk_arcmin`` in the middle of a patch and falls
    smoothly along y from √D times that at one side to 1/√D times that at the other.

    What is measured of an instrument stands in files (:mod:`.instrument_files`), and
    :meth:`measured` then sets level and width to what they say. A level or width that is changed
    afterwards scales what the files hold: the noise of every pixel, and B_l → B_{l s}.

    Attributes
    ----------
    beam_file : B_l in the Gaussian's place; ``normalise_beam`` divides it by its first value, and
        ``beam_modes`` are amplitudes of its error modes in standard deviations
    transfer_file : what the map-maker leaves of each mode, beside the beam
    ivar_file : inverse variance of the patch's pixels, in the place of one depth
    one_over_f : excess of the noise at low multipoles
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    noise_uk_arcmin: float = 1.0
    beam_fwhm_arcmin: float = 1.0
    taper_deg: float = 0.5
    depth_ratio: float | None = None
    beam_file: Path | None = None
    normalise_beam: bool | None = None
    beam_modes: tuple[float, ...] | None = None
    transfer_file: Path | None = None
    ivar_file: Path | None = None
    one_over_f: OneOverF | None = None

    def measured(self, geometry: PatchGeometry) -> Instrument:
        """The instrument with the noise level and the beam FWHM of its files.

        The noise level is that of the mean inverse variance of the pixels with data.

        Parameters
        ----------
        geometry : of the patches

        Returns
        -------
        instrument : with both numbers filled in

        Raises
        ------
        InstrumentError
            if a file cannot be used, or does not fit the geometry or another key
        """
        if self.ivar_file is not None and self.depth_ratio is not None:
            raise InstrumentError(
                "ivar_file and depth_ratio both say how the depth varies; remove one"
            )
        for key in ("normalise_beam", "beam_modes"):
            if getattr(self, key) is not None and self.beam_file is None:
                raise InstrumentError(f"{key} is of a beam from a file; set beam_file or remove it")
        measured = self
        if (beam := self._table()) is not None:
            _check_reach("beam", self.beam_file, "B_l", beam.ell[-1], geometry)
            measured = replace(measured, beam_fwhm_arcmin=beam.fwhm / ARCMIN)
        if (transfer := self._transfer()) is not None:
            _check_reach("transfer function", self.transfer_file, "F_l", transfer.lmax, geometry)
        if self.ivar_file is not None:
            rms = read_rms(self.ivar_file, geometry.n_pixels)
            measured = replace(measured, noise_uk_arcmin=level_of(rms, geometry))
        return measured

    def recipe(self) -> dict[str, Any]:
        """What determines what is observed: files by their content, and what was not set is not
        there.

        Raises
        ------
        InstrumentError
            if a file cannot be read
        """
        recipe = self._settings()
        if self.one_over_f is not None:
            recipe["one_over_f"] |= {"algorithm": ONE_OVER_F_ALGORITHM}
        return recipe

    def _settings(self) -> dict[str, Any]:
        """All settings, files by their content."""
        settings = asdict(self)
        for key in FILES:
            settings[key] = None if settings[key] is None else digest_of(settings[key])
        return settings

    def beyond_numbers(self) -> dict[str, Any]:
        """What a record says beside level, width of the beam and taper: what was set alone, of
        files the digest."""
        numbers = ("noise_uk_arcmin", "beam_fwhm_arcmin", "taper_deg")
        return {
            f"{key}_sha256" if key in FILES else key: value
            for key, value in self._settings().items()
            if key not in numbers and value is not None
        }

    def at_level(self, noise_uk_arcmin: float) -> Instrument:
        """The same optics and 1/f noise with uniform white noise.

        Parameters
        ----------
        noise_uk_arcmin : level of the white noise in µK-arcmin

        Returns
        -------
        instrument : without a depth map
        """
        return replace(self, noise_uk_arcmin=noise_uk_arcmin, depth_ratio=None, ivar_file=None)

    def noise_rms(self, geometry: PatchGeometry) -> float | np.ndarray:
        """White noise per pixel of Q and of U.

        Parameters
        ----------
        geometry : of the patches

        Returns
        -------
        rms : in µK; a number, or (n, n) where the depth varies, infinite in pixels without data
        """
        if self.ivar_file is not None:
            return self._scaled(read_rms(self.ivar_file, geometry.n_pixels), geometry)
        rms = self.noise_uk_arcmin / (geometry.pixel / ARCMIN)
        if self.depth_ratio is None:
            return rms
        n = geometry.n_pixels
        slope = np.cos(np.pi * (np.arange(n) + 0.5) / n)[:, None] * np.ones(n)
        return rms * self.depth_ratio ** (0.5 * slope)

    def noise_variance(self, geometry: PatchGeometry) -> float | np.ndarray:
        """Variance of the white noise of Q and of U in the pixels of a map.

        Parameters
        ----------
        geometry : of the patches

        Returns
        -------
        variance : in µK²; a number, or (n, n) where the depth varies, 0 in pixels without data
        """
        rms = self.noise_rms(geometry)
        return np.where(np.isfinite(rms), np.square(rms), 0.0)

    def _scaled(self, rms: np.ndarray, geometry: PatchGeometry) -> np.ndarray:
        """A map of the noise whose level is the instrument's."""
        return rms * (self.noise_uk_arcmin / level_of(rms, geometry))

    def seen(self, geometry: PatchGeometry) -> np.ndarray:
        """Whether the pixels have data.

        Parameters
        ----------
        geometry : of the patches

        Returns
        -------
        has_data : (n_pixels, n_pixels), boolean
        """
        n = geometry.n_pixels
        return np.broadcast_to(np.isfinite(self.noise_rms(geometry)), (n, n))

    @property
    def symmetry(self) -> str | None:
        """Under what noise and response stay as they are: "square", its rotations and mirrors;
        "mirror", x → −x alone; or None, nothing."""
        excess = self.one_over_f
        turned = excess is not None and excess.anisotropy > 1.0
        skew = excess is not None and turned and excess.scan_deg % 90.0 != 0.0
        transfer = self._transfer()
        if self.ivar_file is not None or skew or (transfer is not None and len(transfer.axes) > 1):
            return None
        return "square" if self.depth_ratio is None and not turned else "mirror"

    def beam(self, ell: np.ndarray) -> np.ndarray:
        """Beam times transfer function at multipoles.

        The beam is exp(−l²σ²/2) with σ = FWHM/√(8 ln 2), or the one of the beam file. A transfer
        function that depends on direction enters by its rms over directions.

        Parameters
        ----------
        ell : multipoles, of any shape

        Returns
        -------
        beam : of the shape of ``ell``
        """
        transfer = self._transfer()
        optics = self._optics(ell)
        return optics if transfer is None else optics * transfer.mean(ell)

    def response(self, ly: np.ndarray, lx: np.ndarray) -> np.ndarray:
        """Beam times transfer function at the modes of a patch.

        Parameters
        ----------
        ly, lx : components of l, of any one shape

        Returns
        -------
        response : of the same shape
        """
        transfer, optics = self._transfer(), self._optics(np.hypot(ly, lx))
        return optics if transfer is None else optics * transfer(ly, lx)

    def _optics(self, ell: np.ndarray) -> np.ndarray:
        table = self._table()
        if table is not None:
            stretch = self.beam_fwhm_arcmin / (table.fwhm / ARCMIN)
            return table.off(self.beam_modes or ())(np.asarray(ell) * stretch)
        sigma = self.beam_fwhm_arcmin * ARCMIN / np.sqrt(8.0 * np.log(2.0))
        return np.exp(-0.5 * (np.asarray(ell) * sigma) ** 2)

    def _table(self) -> Beam | None:
        if self.beam_file is None:
            return None
        return read_beam(self.beam_file, bool(self.normalise_beam))

    def _transfer(self) -> Transfer | None:
        return None if self.transfer_file is None else read_transfer(self.transfer_file)


def level_of(rms: np.ndarray, geometry: PatchGeometry) -> float:
    """Noise level of the mean inverse variance of the pixels with data.

    Parameters
    ----------
    rms : noise per pixel in µK, infinite in pixels without data
    geometry : of the pixels

    Returns
    -------
    level : in µK-arcmin
    """
    seen = rms[np.isfinite(rms)]
    return float(geometry.pixel / ARCMIN / np.sqrt(np.mean(1.0 / np.square(seen))))


def _check_reach(
    what: str, path: Path | None, column: str, lmax: float, geometry: PatchGeometry
) -> None:
    needed = int(geometry.nyquist)
    if lmax < needed:
        raise InstrumentError(
            f"{path}: {what} file too short: {column} ends at l = {lmax:g}, the patch's pixels "
            f"hold l = {needed}; continue the table to there, or take larger pixels"
        )


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
        """Apply the errors of beam and noise to an instrument.

        Parameters
        ----------
        instrument : without errors

        Returns
        -------
        instrument : with beam and noise changed
        """
        return replace(
            instrument,
            noise_uk_arcmin=instrument.noise_uk_arcmin * (1.0 + self.noise),
            beam_fwhm_arcmin=instrument.beam_fwhm_arcmin * (1.0 + self.beam),
        )

    def distort(self, q: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the errors of gain and polarisation angle to noiseless maps.

        Parameters
        ----------
        q, u : in µK, of any one shape

        Returns
        -------
        q, u : of the same shapes
        """
        if not self.gain and not self.angle:
            return q, u
        cos, sin = ((1.0 + self.gain) * f(2.0 * np.radians(self.angle)) for f in (np.cos, np.sin))
        return cos * q - sin * u, sin * q + cos * u


def cosine_mask(geometry: PatchGeometry, taper_deg: float) -> np.ndarray:
    """Product of cosine tapers: 0 at the edge, 1 further in than the taper.

    Each side falls as ½[1 − cos(π d/taper)], where d is the distance of the pixel's centre from the
    edge. Value and slope both vanish at the edge.

    Parameters
    ----------
    geometry : of the patch
    taper_deg : width of the taper in degrees

    Returns
    -------
    mask : (n_pixels, n_pixels)
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
    """Convolve padded maps with the beam and cut out the patch.

    The padding keeps the wrap-around of the Fourier convolution off the patch.

    Parameters
    ----------
    padded : (..., n_padded, n_padded)
    instrument : whose beam and transfer function are applied
    geometry : of the patches

    Returns
    -------
    maps : (..., n_pixels, n_pixels)
    """
    n = geometry.n_padded
    transfer = instrument.response(*mode_vectors(n, geometry.pixel))
    beamed = np.fft.irfft2(np.fft.rfft2(padded) * transfer, s=(n, n))
    return geometry.crop(beamed)


def draw_noise(
    shape: tuple[int, ...],
    instrument: Instrument,
    geometry: PatchGeometry,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw the noise of maps: white, or with the 1/f noise of the instrument.

    Parameters
    ----------
    shape : (..., n_pixels, n_pixels)
    instrument : whose noise it is
    geometry : of the patches
    generator : source of the random numbers

    Returns
    -------
    noise : float32 in µK, of that shape; zero in pixels without data
    """
    rms = np.asarray(instrument.noise_rms(geometry), np.float32)
    noise = unit_noise(shape, instrument.one_over_f, geometry.pixel, generator)
    return noise * np.where(np.isfinite(rms), rms, np.float32(0.0))
