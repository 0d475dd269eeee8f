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

import numpy as np
import scipy.fft
from scipy.sparse.linalg import LinearOperator, cg

from ..simulate.periodic import Box


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
