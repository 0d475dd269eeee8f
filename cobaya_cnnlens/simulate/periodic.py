"""The periodic box around a flat patch: modes, beam and lensing; and skies that fill it.

Without a mask, on a periodic patch, analytic noise and response of quadratic estimators are exact.
"""

from __future__ import annotations

import ducc0
import numpy as np
import scipy.fft

from ..theory.camb import Spectra
from .instrument import ARCMIN, Instrument
from .modes import plane_vectors
from .patches import PatchGeometry

# Relative errors of the non-uniform Fourier transforms, by precision. That of single precision is
# .006 µK, a seventieth of the noise of a pixel at 1 µK'.
EPSILON = {"double": 1e-6, "single": 1e-3}
# Around the patch displaced values are known to so many σ of the beam, and to so many pixels: a
# beam narrower than a pixel rings, and what lies beyond is .3% of the field's rms in the patch.
BEAM_REACH, LEAST_REACH = 4.0, 6


class Displaced:
    """Points x + ∇φ around the pixels of a patch, at which modes are evaluated; used many times.

    Parameters
    ----------
    box : whose modes
    coordinates : of the points that stand for the box's ``region``, (m², 2) in radians
    """

    def __init__(self, box: Box, coordinates: np.ndarray):
        self.coordinates, self._n, self._blocks = coordinates, box.n, box.blocks
        self._size = len(box.region[1][0])
        self._transform = {
            forward: ducc0.nufft.plan(
                nu2u=forward,
                coord=coordinates.astype(box.real),
                grid_shape=(box.n, box.n),
                epsilon=EPSILON[box.precision],
                nthreads=1,
                periodicity=box.n * box.pixel,
                fft_order=True,
            )
            for forward in (False, True)
        }

    def values(self, modes: np.ndarray) -> np.ndarray:
        """Evaluate Σ_l f_l e^{il·x} at the displaced points.

        Parameters
        ----------
        modes : f_l, (n, n)

        Returns
        -------
        values : at the box's pixels, (n, n); zero where there is no point
        """
        out = np.zeros((self._n, self._n), modes.dtype)
        at_points = self._transform[False].u2nu(forward=False, grid=modes)
        at_points = at_points.reshape(self._size, self._size)
        for in_box, in_region in self._blocks:
            out[in_box] = at_points[in_region]
        return out

    def modes(self, values: np.ndarray) -> np.ndarray:
        """The adjoint of :meth:`values`.

        Parameters
        ----------
        values : (n, n)

        Returns
        -------
        modes : (n, n)
        """
        points = np.empty((self._size, self._size), values.dtype)
        for in_box, in_region in self._blocks:
            points[in_region] = values[in_box]
        return self._transform[True].nu2u(forward=True, points=points.ravel())


class Box:
    """The periodic box around a patch: modes within a band of multipoles, beam and lensing.

    Parameters
    ----------
    geometry : the patch, in the box's corner
    instrument : for the beam, and how white the noise is
    lmax : modes beyond are left out
    border : pixels of the box beyond the patch, at least
    precision : "double", or "single" of all maps and modes
    """

    def __init__(
        self,
        geometry: PatchGeometry,
        instrument: Instrument,
        lmax: int,
        border: int = 28,
        precision: str = "double",
    ):
        self.n_patch, self.pixel = geometry.n_pixels, geometry.pixel
        self.n = scipy.fft.next_fast_len(self.n_patch + border)
        self.precision = precision
        self.real = np.dtype(np.float32 if precision == "single" else np.float64)
        self.complex = np.dtype(np.complex64 if precision == "single" else np.complex128)
        self.ly, self.lx = plane_vectors(self.n, self.pixel)
        self.ell = np.hypot(self.ly, self.lx)
        self.band = (self.ell > 0) & (self.ell <= lmax)
        self.beam = self._even(instrument.response(self.ly, self.lx))
        # White noise over the noise's power, or None where that is white.
        self.whiteness: np.ndarray | None = None
        if instrument.one_over_f is not None:
            ratio = instrument.one_over_f.ratio(self.ly, self.lx)
            self.whiteness = self._even(1.0 / ratio)
        # e^{2iϑ}, ϑ from south towards east.
        with np.errstate(invalid="ignore", divide="ignore"):
            turn = (self.ly - 1j * self.lx) ** 2 / self.ell**2
        self.turn = np.where(self.band, turn, 0.0).astype(self.complex)
        # ∂/∂y and ∂/∂x of P from the modes of X.
        self.gradients = [(1j * l * self.turn).astype(self.complex) for l in (self.ly, self.lx)]
        sigma = instrument.beam_fwhm_arcmin * ARCMIN / np.sqrt(8.0 * np.log(2.0)) / self.pixel
        reach = max(int(np.ceil(BEAM_REACH * sigma)) + 1, LEAST_REACH)
        # A transfer function mixes in what is degrees away.
        if self.n_patch + 2 * reach >= self.n or instrument.transfer_file is not None:
            pixels = np.arange(self.n)
        else:
            pixels = np.arange(-reach, self.n_patch + reach)
        self.region = np.ix_(pixels % self.n, pixels % self.n)
        # The same in slices of the box and of the region, which are faster than indices: what lies
        # before the patch is at the box's end.
        size, before = len(pixels), int(np.argmin(pixels % self.n))
        parts = (
            (slice(self.n - before, self.n), slice(0, before)),
            (slice(0, size - before), slice(before, size)),
        )
        self.blocks = [((y[0], x[0]), (y[1], x[1])) for y in parts for x in parts]
        at = pixels * self.pixel
        self._grid = np.stack(np.meshgrid(at, at, indexing="ij"), -1)

    def _even(self, factors: np.ndarray) -> np.ndarray:
        """Real factors of modes, (n, n), in the box's precision, equal at l and −l also where a
        mode at the Nyquist multipole stands for its mirror image."""
        mirrored = np.roll(factors[::-1, ::-1], 1, (0, 1))
        return (0.5 * (factors + mirrored)).astype(self.real)

    def spectrum(self, cl: np.ndarray) -> np.ndarray:
        """A power spectrum on the modes of the box.

        Parameters
        ----------
        cl : C_l from l = 0

        Returns
        -------
        power : (n, n), zero outside the band
        """
        power = np.interp(self.ell, np.arange(len(cl)), cl, right=0.0)
        return np.where(self.band, power, 0.0)

    def gradient(self, phi: np.ndarray) -> np.ndarray:
        """∇φ on the pixels of the box.

        Parameters
        ----------
        phi : modes of φ, (n, n)

        Returns
        -------
        gradient : (n, n, 2) in radians
        """
        parts = [scipy.fft.ifft2(1j * l * phi).real for l in (self.ly, self.lx)]
        return np.stack(parts, -1)

    def positions(self, phi: np.ndarray | None) -> Displaced | None:
        """Displaced positions x + ∇φ of the patch's pixels, and of those that the beam mixes in.

        Parameters
        ----------
        phi : modes of φ, (n, n); None for no lensing

        Returns
        -------
        positions : None for no lensing
        """
        if phi is None:
            return None
        displaced = self._grid + self.gradient(phi)[self.region]
        return Displaced(self, displaced.reshape(-1, 2))

    def at(self, modes: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """Evaluate Σ_l f_l e^{il·x}/n² at positions.

        Parameters
        ----------
        modes : f_l, (n, n)
        positions : of :meth:`positions`

        Returns
        -------
        values : (n, n), zero where there is no position
        """
        if positions is None:
            return scipy.fft.ifft2(modes)
        return positions.values(modes) * self.real.type(1.0 / self.n**2)

    def adjoint_at(self, values: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """The adjoint of :meth:`at`.

        Parameters
        ----------
        values : at the positions, (n, n)
        positions : of :meth:`positions`

        Returns
        -------
        modes : (n, n)
        """
        scale = self.real.type(1.0 / self.n**2)
        if positions is None:
            return scipy.fft.fft2(values) * scale
        return positions.modes(values) * scale

    def blur(self, values: np.ndarray) -> np.ndarray:
        """Convolve values with the beam.

        Parameters
        ----------
        values : (n, n)

        Returns
        -------
        convolved : (n, n)
        """
        modes = ducc0.fft.c2c(values.astype(self.complex, copy=False))
        modes *= self.beam
        return ducc0.fft.c2c(modes, forward=False, inorm=2, out=modes)

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Put a patch into the box, with zeros around it.

        Parameters
        ----------
        values : (n_patch, n_patch)

        Returns
        -------
        padded : (n, n)
        """
        out = np.zeros((self.n, self.n), values.dtype)
        out[: self.n_patch, : self.n_patch] = values
        return out

    def crop(self, values: np.ndarray) -> np.ndarray:
        """Cut the patch out of values on the box.

        Parameters
        ----------
        values : (..., n, n)

        Returns
        -------
        patch : (..., n_patch, n_patch)
        """
        return values[..., : self.n_patch, : self.n_patch]


class PeriodicSkies:
    """Lensed, beamed, noisy Q + iU of a periodic patch.

    Parameters
    ----------
    geometry : the patch; its pixels should resolve what lensing lifts past ``lmax``
    instrument : beam and white noise
    spectra : whose unlensed E and φ are drawn, to their end
    """

    def __init__(self, geometry: PatchGeometry, instrument: Instrument, spectra: Spectra):
        self.geometry = geometry
        self._box = Box(geometry, instrument, min(spectra.lmax, int(geometry.nyquist) - 1), 0)
        self._rms = instrument.noise_rms(geometry)
        self._roots = {
            name: np.sqrt(self._box.spectrum(cl)) / self._box.pixel
            for name, cl in (("e", spectra.ee), ("phi", spectra.pp))
        }

    def draw(self, name: str, generator: np.random.Generator) -> np.ndarray:
        """Draw the modes Σ f(x) e^{−il·x} of one Gaussian field.

        Parameters
        ----------
        name : ``"e"`` (µK) or ``"phi"``
        generator : source of the random numbers

        Returns
        -------
        modes : (n, n) complex
        """
        n = self._box.n
        return scipy.fft.fft2(generator.standard_normal((n, n))) * self._roots[name]

    def noise(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the noise of Q + iU: white, or with the 1/f noise of the instrument.

        Parameters
        ----------
        generator : source of the random numbers

        Returns
        -------
        noise : (n, n) complex, in µK
        """
        q, u = generator.standard_normal((2, self._box.n, self._box.n))
        if self._box.whiteness is not None:
            roots = 1.0 / np.sqrt(self._box.whiteness)
            roots[0, 0] = 0.0
            q, u = (scipy.fft.ifft2(scipy.fft.fft2(part) * roots).real for part in (q, u))
        return self._rms * (q + 1j * u)

    def lensed(self, e: np.ndarray, phi: np.ndarray | None) -> np.ndarray:
        """Lens E by ∇φ and convolve it with the beam; there is no noise.

        Parameters
        ----------
        e : modes of unlensed E in µK, (n, n)
        phi : modes of φ, (n, n); None for no lensing

        Returns
        -------
        polarisation : Q + iU in µK, (n, n) complex
        """
        box = self._box
        return box.blur(box.at(box.turn * e, box.positions(phi)))

    def convergence(self, phi: np.ndarray) -> np.ndarray:
        """κ = ½ L²φ on the pixels.

        Parameters
        ----------
        phi : modes of φ, (n, n)

        Returns
        -------
        kappa : (n, n)
        """
        return scipy.fft.ifft2(0.5 * self._box.ell**2 * phi).real
