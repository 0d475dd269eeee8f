"""Wiener-filtered E and B of a masked patch, and their slope with respect to the lensing potential.

The data are d = b ∗ P̃ + n on the patch, with P = Q + iU; the patch lies in a larger periodic box.
With X_l = E_l + iB_l = e^{−2iϑ} P_l and A = (beam) (lensing by φ) e^{2iϑ}, the filtered X maximises

    ln p(X | d, φ) = −½ |d − A X|²/σ² − ½ Σ_l (|E_l|²/C^E_l + |B_l|²/C^B_l),
    ∂ ln p/∂φ = −∇·Re[(Aᵀ residual)* (∇P)(x + ∇φ)]

(Hirata & Seljak 2003, astro-ph/0306354; Carron & Lewis 2017, arXiv:1704.08230, eq. 2.10; without
the mean field). At φ = 0, with lensed spectra in the filter, it is the quadratic estimator.
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
        """The same filter for other noise.

        Parameters
        ----------
        rms : noise per pixel in µK, (n_patch, n_patch), infinite in pixels without data
        tolerance : of the conjugate gradients; unchanged by default

        Returns
        -------
        filter : which shares all else with this one
        """
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
        """Apply the inverse noise covariance N⁻¹.

        With 1/f noise (:mod:`cobaya_cnnlens.simulate.one_over_f`) N⁻¹ = σ⁻¹ W σ⁻¹, where W is the
        power of white noise over that of the noise. It is exact for one depth without a mask. Under
        a mask the weight is not optimal; simulations measure the response and noise of κ̂ with it.

        Parameters
        ----------
        values : on the box, (n, n)

        Returns
        -------
        weighted : (n, n)
        """
        box = self.box
        if box.whiteness is None:
            return self._weight * values
        white = scipy.fft.ifft2(box.whiteness * scipy.fft.fft2(self._weight * values))
        return self._weight * white

    def predict(self, x: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """Predict the data A X: lensed, beamed polarisation on the pixels of the box.

        Parameters
        ----------
        x : modes of X, (n, n)
        positions : displaced positions; None for no lensing

        Returns
        -------
        polarisation : Q + iU in µK, (n, n) complex
        """
        return self.box.blur(self.box.at(self._turn * x, positions))

    def back(self, values: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """Apply Aᵀ, the adjoint of :meth:`predict`.

        Parameters
        ----------
        values : on the pixels of the box, (n, n)
        positions : displaced positions; None for no lensing

        Returns
        -------
        modes : (n, n)
        """
        return self._turn_back * self.box.adjoint_at(self.box.blur(values), positions)

    def filter(
        self, data: np.ndarray, positions: Displaced | None, start: np.ndarray | None = None
    ) -> np.ndarray:
        """Wiener-filter the data.

        Parameters
        ----------
        data : Q + iU over the mask in the box, zero beyond the patch, (n, n)
        positions : displaced positions, or None for no lensing
        start : modes of X from which the conjugate gradients start; None for zero

        Returns
        -------
        modes : of X, (n, n); mode 0 is that of P
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
        """Residual b ∗ N⁻¹ (d − A X), the part of Aᵀ before the displacement.

        Parameters
        ----------
        data : as for :meth:`filter`
        x : modes of X, (n, n)
        positions : displaced positions; None for no lensing

        Returns
        -------
        residual : on the pixels of the box, (n, n) in 1/µK
        """
        return self.box.blur(self.weigh(data - self.predict(x, positions)))

    def slope(self, data: np.ndarray, x: np.ndarray, positions: Displaced | None) -> np.ndarray:
        """Slope of ln p(d | X, φ) with respect to φ, at the filtered X.

        Parameters
        ----------
        data : as for :meth:`filter`
        x : filtered modes of X, (n, n)
        positions : displaced positions; None for no lensing

        Returns
        -------
        modes : Σ_x e^{−il·x} ∂ ln p/∂φ(x), (n, n)
        """
        box = self.box
        residual = np.conj(self.weighted_residual(data, x, positions))
        parts = [(residual * box.at(g * x, positions)).real for g in box.gradients]
        return -1j * sum(
            l * scipy.fft.fft2(part) for l, part in zip((box.ly, box.lx), parts, strict=True)
        )


def variance_beyond(box: Box, clee: np.ndarray) -> float:
    """Variance of Q + iU from E modes on scales that the box does not hold.

    These modes lie in the square of Fourier space around l = 0, one mode spacing wide. Most of
    their power comes from reionisation. On the patch they are a nearly constant Q + iU, and mode 0
    of X stands for it with this variance. Without it other modes of the patch would explain that
    constant: κ̂ would respond less where it is large, and it is coherent over tens of degrees.

    Parameters
    ----------
    box : of the filter
    clee : from l = 0, in µK²

    Returns
    -------
    variance : in µK²
    """
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
    apply : the operator
    right : right-hand side, of any shape, complex
    precondition : an approximate inverse of the operator
    start : where to start; None for zero
    tolerance : norm of the residual over that of ``right`` at which to end
    limit : most iterations

    Returns
    -------
    z : of the shape of ``right``
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
