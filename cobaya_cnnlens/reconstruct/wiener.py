"""Wiener-filtered E and B of a masked patch, and what they say of the lensing potential.

Data d = M (b ∗ P̃ + n), with P = Q + iU, divided by the mask M where it is not zero, are b ∗ P̃ + n:
white noise on the patch, no data around it. The patch lies in a larger periodic box. With
X_l = E_l + iB_l = e^{−2iϑ} P_l and A = (beam) (lensing by φ) e^{2iϑ}, the filtered field X is at
the maximum of

    ln p(X | d, φ) = −½ |d − A X|²/σ² − ½ Σ_l (|E_l|²/C^E_l + |B_l|²/C^B_l),

and the slope of ln p(d | φ) is that of its first term at this X (Hirata & Seljak 2003,
astro-ph/0306354; Carron & Lewis 2017, arXiv:1704.08230, eq. 2.10),

    ∂ ln p/∂φ = −∇·Re[(Aᵀ residual)* (∇P)(x + ∇φ)],

less its mean over skies of this φ, the mean field. At φ = 0, with lensed spectra in the filter,
this is the quadratic estimator of E and B together.
"""

from __future__ import annotations

import ducc0
import numpy as np
import scipy.fft
from scipy.sparse.linalg import LinearOperator, cg

from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry

# Of the non-uniform Fourier transforms, relative.
EPSILON = 1e-6
# White noise in µK' that stands for none: filters divide by the noise.
FLOOR = 0.1


class Box:
    """The periodic box around a patch: modes within a band of multipoles, beam and lensing.

    Parameters
    ----------
    geometry : the patch, in the box's corner
    instrument : for the beam
    lmax : modes beyond are left out
    border : pixels of the box beyond the patch, at least
    """

    def __init__(
        self, geometry: PatchGeometry, instrument: Instrument, lmax: int, border: int = 28
    ):
        self.n_patch, self.pixel = geometry.n_pixels, geometry.pixel
        self.n = scipy.fft.next_fast_len(self.n_patch + border)
        frequency = 2.0 * np.pi * np.fft.fftfreq(self.n, self.pixel)
        self.ly, self.lx = np.meshgrid(frequency, frequency, indexing="ij")
        self.ell = np.hypot(self.ly, self.lx)
        self.band = (self.ell > 0) & (self.ell <= lmax)
        self.beam = instrument.beam(self.ell)
        # e^{2iϑ}, ϑ from south towards east.
        with np.errstate(invalid="ignore", divide="ignore"):
            turn = (self.ly - 1j * self.lx) ** 2 / self.ell**2
        self.turn = np.where(self.band, turn, 0.0)
        at = np.arange(self.n) * self.pixel
        self._grid = np.stack(np.meshgrid(at, at, indexing="ij"), -1)

    def spectrum(self, cl: np.ndarray) -> np.ndarray:
        """C_l from l = 0 on the box's modes within the band, zero elsewhere, (n, n)."""
        found = np.interp(self.ell, np.arange(len(cl)), cl, right=0.0)
        return np.where(self.band, found, 0.0)

    def gradient(self, phi: np.ndarray) -> np.ndarray:
        """∇φ on the box's pixels, (n, n, 2), from the modes of φ."""
        parts = [scipy.fft.ifft2(1j * l * phi).real for l in (self.ly, self.lx)]
        return np.stack(parts, -1)

    def positions(self, phi: np.ndarray | None) -> np.ndarray | None:
        """Displaced positions x + ∇φ, (n², 2); None for no lensing."""
        if phi is None:
            return None
        return (self._grid + self.gradient(phi)).reshape(-1, 2)

    def at(self, modes: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """Σ_l f_l e^{il·x}/n² at the positions, (n, n)."""
        if positions is None:
            return scipy.fft.ifft2(modes)
        found = ducc0.nufft.u2nu(
            grid=modes,
            coord=positions,
            forward=False,
            epsilon=EPSILON,
            nthreads=1,
            periodicity=self.n * self.pixel,
            fft_order=True,
        )
        return found.reshape(self.n, self.n) / self.n**2

    def adjoint_at(self, values: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """The adjoint of :meth:`at`: values at the positions → modes, (n, n)."""
        if positions is None:
            return scipy.fft.fft2(values) / self.n**2
        out = np.empty((self.n, self.n), complex)
        ducc0.nufft.nu2u(
            points=values.ravel(),
            coord=positions,
            forward=True,
            epsilon=EPSILON,
            nthreads=1,
            out=out,
            periodicity=self.n * self.pixel,
            fft_order=True,
        )
        return out / self.n**2

    def blur(self, values: np.ndarray) -> np.ndarray:
        """Beam-convolved values, (n, n)."""
        return scipy.fft.ifft2(self.beam * scipy.fft.fft2(values))

    def pad(self, values: np.ndarray) -> np.ndarray:
        """A patch's values in the box, zero around it."""
        out = np.zeros((self.n, self.n), values.dtype)
        out[: self.n_patch, : self.n_patch] = values
        return out


class WienerFilter:
    """Wiener filter of X = E + iB under known lensing, by conjugate gradients.

    Parameters
    ----------
    box : geometry and beam
    clee, clbb : spectra of the field before lensing, from l = 0, in µK²
    rms : noise of Q and of U per pixel in µK, (n_patch, n_patch); infinite where nothing was seen
    tolerance : norm of the residual over the right-hand side's at which iterations end
    limit : most iterations
    """

    def __init__(
        self,
        box: Box,
        clee: np.ndarray,
        clbb: np.ndarray,
        rms: np.ndarray,
        tolerance: float = 1e-4,
        limit: int = 400,
    ):
        self.box, self._tolerance, self._limit = box, tolerance, limit
        # ⟨|X_l|²⟩ = C_l n²/Δ² for modes Σ X(x) e^{−il·x}.
        self._roots = [box.n / box.pixel * np.sqrt(box.spectrum(cl)) for cl in (clee, clbb)]
        self._inverse_roots = [
            np.divide(1.0, root, out=np.zeros_like(root), where=root > 0) for root in self._roots
        ]
        self._weight = box.pad(1.0 / np.square(rms))
        mean = 1.0 / np.mean(np.square(rms[np.isfinite(rms)]))
        self._diagonal = [
            1.0 / (1.0 + (root * box.beam / box.n) ** 2 * mean) for root in self._roots
        ]

    def _colour(self, z, factors):
        """Multiply E and B modes by a real, even factor each."""
        e, b = factors
        mirrored = np.conj(np.roll(z[::-1, ::-1], 1, (0, 1)))
        return 0.5 * ((e + b) * z + (e - b) * mirrored)

    def predict(self, x: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """A X on the box's pixels, (n, n) complex, in µK."""
        return self.box.blur(self.box.at(self.box.turn * x, positions))

    def back(self, values: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """Aᵀ of values on the box's pixels: modes, (n, n)."""
        return np.conj(self.box.turn) * self.box.adjoint_at(self.box.blur(values), positions)

    def filter(
        self, data: np.ndarray, positions: np.ndarray | None, start: np.ndarray | None = None
    ) -> np.ndarray:
        """The filtered modes of X, (n, n).

        Parameters
        ----------
        data : Q + iU over the mask in the box, zero beyond the patch, (n, n)
        positions : displaced positions, (n², 2), or None
        start : modes of X to start from
        """
        # Whitened unknown z = S^{−1/2} X: (1 + S^{1/2} Aᵀ N⁻¹ A S^{1/2}) z = S^{1/2} Aᵀ N⁻¹ d.
        roots, shape = self._roots, data.shape

        def flat(z):
            return z.ravel().view(float)

        def modes(vector):
            return np.ascontiguousarray(vector, float).view(complex).reshape(shape)

        def apply(vector):
            z = modes(vector)
            seen = self.predict(self._colour(z, roots), positions)
            return flat(z + self._colour(self.back(self._weight * seen, positions), roots))

        def precondition(vector):
            return flat(self._colour(modes(vector), self._diagonal))

        size = 2 * data.size
        solution, _ = cg(
            LinearOperator((size, size), apply),
            flat(self._colour(self.back(self._weight * data, positions), roots)),
            x0=None if start is None else flat(self._colour(start, self._inverse_roots)),
            M=LinearOperator((size, size), precondition),
            rtol=self._tolerance,
            maxiter=self._limit,
        )
        return self._colour(modes(solution), roots)

    def slope(self, data: np.ndarray, x: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """Modes Σ_x e^{−il·x} ∂ ln p(d | X, φ)/∂φ(x), (n, n), at the filtered X."""
        box = self.box
        residual = box.blur(self._weight * (data - self.predict(x, positions)))
        parts = [
            (np.conj(residual) * box.at(1j * l * box.turn * x, positions)).real
            for l in (box.ly, box.lx)
        ]
        return -1j * sum(
            l * scipy.fft.fft2(part) for l, part in zip((box.ly, box.lx), parts, strict=True)
        )
