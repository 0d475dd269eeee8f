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

E of scales larger than the box, most of it from reionisation, is a nearly constant Q + iU on the
patch. It has neither E nor B modes there, and mode 0 of X stands for P_0 itself, with that
variance. Left out, it would be explained by modes that the patch has: κ̂ then has less response
where it is large, and since it is coherent over tens of degrees, the noise of whole skies would
differ by more than that of independent patches.

Noise with an excess at low multipoles (:mod:`cobaya_cnnlens.simulate.one_over_f`) has N⁻¹ = σ⁻¹ W
σ⁻¹, W the power of white noise over that of the noise: exact for one depth and no mask, and under a
mask a weight that gives less information than there is, but no wrong one, since κ̂'s response and
noise are measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import scipy.fft

from ..simulate.periodic import Box, Displaced


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
        self._turn = box.turn.copy()
        self._turn[0, 0] = 1.0
        self._turn_back = np.conj(self._turn)
        # ⟨|X_l|²⟩ = C_l n²/Δ² for modes Σ X(x) e^{−il·x}.
        roots = [box.n / box.pixel * np.sqrt(box.spectrum(cl)) for cl in (clee, clbb)]
        # Mode 0 is its own mirror: equal roots of E and B are those of Q and of U.
        for root in roots:
            root[0, 0] = box.n**2 * np.sqrt(0.5 * variance_beyond(box, clee))
        self._powers = [(root * box.beam / box.n) ** 2 for root in roots]
        inverse = [np.divide(1.0, r, out=np.zeros_like(r), where=r > 0) for r in roots]
        self._roots, self._inverse_roots = self._halves(roots), self._halves(inverse)
        self._set_noise(rms)

    def _set_noise(self, rms: np.ndarray) -> None:
        box = self.box
        inverse = 1.0 / np.square(rms)
        mean = 1.0 / np.mean(np.square(rms[np.isfinite(rms)]))
        if box.whiteness is not None:
            inverse, mean = np.sqrt(inverse), mean * box.whiteness
        self._weight = box.pad(inverse).astype(box.real)
        self._diagonal = self._halves([1.0 / (1.0 + power * mean) for power in self._powers])

    def with_noise(self, rms: np.ndarray, tolerance: float | None = None) -> WienerFilter:
        """The same filter for other noise, and another tolerance if one is given."""
        other = copy.copy(self)
        other._set_noise(rms)
        other._tolerance = tolerance or self._tolerance
        return other

    def _halves(self, factors: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Half the sum and half the difference of factors of E and of B."""
        e, b = factors
        return [(0.5 * part).astype(self.box.real) for part in (e + b, e - b)]

    def _colour(self, z: np.ndarray, factors: Iterable[np.ndarray]) -> np.ndarray:
        """Multiply E and B modes by a real, even factor each, given as :meth:`_halves` of them."""
        same, mixed = factors
        mirrored = np.empty_like(z)
        mirrored[0, 0], mirrored[0, 1:] = z[0, 0], z[0, :0:-1]
        mirrored[1:, 0], mirrored[1:, 1:] = z[:0:-1, 0], z[:0:-1, :0:-1]
        np.conjugate(mirrored, out=mirrored)
        mirrored *= mixed
        mirrored += same * z
        return mirrored

    def weigh(self, values: np.ndarray) -> np.ndarray:
        """N⁻¹ of values on the box, (n, n)."""
        box = self.box
        if box.whiteness is None:
            return self._weight * values
        white = scipy.fft.ifft2(box.whiteness * scipy.fft.fft2(self._weight * values))
        return self._weight * white

    def predict(self, x: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """A X on the box's pixels, (n, n) complex, in µK."""
        return self.box.blur(self.box.at(self._turn * x, positions))

    def back(self, values: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """Aᵀ of values on the box's pixels: modes, (n, n)."""
        return self._turn_back * self.box.adjoint_at(self.box.blur(values), positions)

    def filter(
        self, data: np.ndarray, positions: Displaced | None, start: np.ndarray | None = None
    ) -> np.ndarray:
        """The filtered modes of X, (n, n); mode 0 is that of P.

        Parameters
        ----------
        data : Q + iU over the mask in the box, zero beyond the patch, (n, n)
        positions : displaced positions, or None for no lensing
        start : modes of X to start from
        """
        # Whitened unknown z = S^{−1/2} X: (1 + S^{1/2} Aᵀ N⁻¹ A S^{1/2}) z = S^{1/2} Aᵀ N⁻¹ d.
        roots = self._roots

        def apply(z: np.ndarray) -> np.ndarray:
            seen = self.predict(self._colour(z, roots), positions)
            return z + self._colour(self.back(self.weigh(seen), positions), roots)

        solution = conjugate_gradients(
            apply,
            self._colour(self.back(self.weigh(data), positions), roots),
            lambda z: self._colour(z, self._diagonal),
            None if start is None else self._colour(start, self._inverse_roots),
            self._tolerance,
            self._limit,
        )
        return self._colour(solution, roots)

    def weighted_residual(
        self, data: np.ndarray, x: np.ndarray, positions: Displaced | None
    ) -> np.ndarray:
        """Aᵀ's part before displacement: b ∗ N⁻¹ (d − A X) on the box's pixels, (n, n), in 1/µK."""
        return self.box.blur(self.weigh(data - self.predict(x, positions)))

    def slope(self, data: np.ndarray, x: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """Modes Σ_x e^{−il·x} ∂ ln p(d | X, φ)/∂φ(x), (n, n), at the filtered X."""
        box = self.box
        residual = np.conj(self.weighted_residual(data, x, positions))
        parts = [(residual * box.at(g * x, positions)).real for g in box.gradients]
        return -1j * sum(
            l * scipy.fft.fft2(part) for l, part in zip((box.ly, box.lx), parts, strict=True)
        )


def variance_beyond(box: Box, clee: np.ndarray) -> float:
    """Variance of Q + iU in µK² from E of scales that the box's modes do not hold: those within the
    square of Fourier space, a mode's width wide, around l = 0."""
    edge = 2.0 * np.sqrt(np.pi) / (box.n * box.pixel)
    ell = np.arange(min(len(clee), int(edge) + 1))
    return float(np.sum((2.0 * ell + 1.0) * clee[: len(ell)]) / (4.0 * np.pi))


def conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray | None,
    tolerance: float,
    limit: int,
) -> np.ndarray:
    """Solve ``apply(z) = right`` for a symmetric positive operator on real and imaginary parts.

    As scipy's ``cg``, in the precision of ``right`` and with sums in double precision, without
    BLAS: many patches run at a time, one to a core.

    Parameters
    ----------
    start : where to start; None for zero
    tolerance : norm of the residual over that of ``right`` at which to end
    limit : most iterations
    """
    real = right.real.dtype.type

    def dot(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.add.reduce((a.view(real) * b.view(real)).ravel(), dtype=float))

    z = np.zeros_like(right) if start is None else start
    residual = right if start is None else right - apply(z)
    enough = (tolerance**2) * dot(right, right)
    direction, old = 0.0, 1.0
    for _ in range(limit):
        if dot(residual, residual) <= enough:
            break
        better = precondition(residual)
        new = dot(residual, better)
        direction = better + real(new / old) * direction
        applied = apply(direction)
        step = real(new / dot(direction, applied))
        z = z + step * direction
        residual = residual - step * applied
        old = new
    return z
