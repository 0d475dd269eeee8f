"""B modes that lensing makes of a survey's own E modes: a template to delens with, for r.

With filtered E modes as the polarisation P = Q + iU, and the filtered potential φ̂ of κ̂,

    t(n) = B modes of d/dε P(n + ε∇φ̂) at ε = 0,

which is of first order in φ̂. The observed E modes are lensed themselves. To first order, the
displacement that E has already and that which the lensed B modes have are then the same. Moving P
by all of ∇φ̂ would move it twice (Baleato Lizancos et al. 2021, arXiv:2010.14286). Theory gives the
transfer function of the template, which is also its squared correlation with the lensing B modes:

    T_l = ⟨tB*⟩/⟨BB*⟩ = ρ_l².

docs/delensing.md shows the use.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..simulate import patches
from ..simulate.patches import Pointing
from ..simulate.skies import scale_alm
from ..theory.camb import Spectra, lensed_polarisation
from .grids import HealpixGrid

# For a spectrum of first order in C^φφ, the potential's power is multiplied by this.
SMALL = 1e-3


def wiener(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Wiener filter C/(C + N).

    Parameters
    ----------
    signal : C_l, (n,)
    noise : N_l, (n,); infinite where nothing was measured

    Returns
    -------
    filter : zero where there is no signal, (n,)
    """
    total = signal + noise
    return np.divide(signal, total, out=np.zeros(len(signal)), where=total > 0)


def potential_alm(kappa_lm: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """φ_lm = 2 κ_lm/(l(l+1)), times a filter.

    Parameters
    ----------
    kappa_lm : in HEALPix order, complex
    factor : filter, from l = 0, (lmax + 1,)

    Returns
    -------
    philm : in HEALPix order
    """
    ell = np.arange(len(factor), dtype=float)
    inverse = np.divide(2.0, ell * (ell + 1.0), out=np.zeros(len(ell)), where=ell > 0)
    return scale_alm(kappa_lm, factor * inverse)


def lensing_change(
    elm: np.ndarray,
    lmax_e: int,
    philm: np.ndarray,
    lmax_phi: int,
    nside: int,
    pixels: np.ndarray,
    nthreads: int = 0,
) -> np.ndarray:
    """Change of the polarisation by lensing, to first order in φ.

    With the spin derivatives ð and ð̄, ∇φ·∇P = ½ (ð̄φ ðP + ðφ ð̄P), where ðP has spin 3 and ð̄P spin 1
    (ð and ð̄ of harmonics: Okamoto & Hu 2003, astro-ph/0301031, app. A).

    Parameters
    ----------
    elm : of E in µK, in HEALPix order
    lmax_e : of ``elm``
    philm : of the potential, in HEALPix order
    lmax_phi : of ``philm``
    nside : of HEALPix
    pixels : numbers in ring order, (n,)
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    change : of Q + iU in µK, (n,) complex
    """
    e, phi = np.arange(lmax_e + 1.0), np.arange(lmax_phi + 1.0)
    raised, lowered = (e - 2.0) * (e + 3.0), (e + 2.0) * (e - 1.0)
    # ð ₂Y = √(l−2)(l+3) ₃Y and ð̄ ₂Y = −√(l+2)(l−1) ₁Y; ð̄φ is the conjugate of ðφ.
    grid = HealpixGrid(nside, "C")
    up, down = (
        grid.gradient_values(
            scale_alm(elm, np.sqrt(np.maximum(x, 0.0))), lmax_e, spin, pixels, nthreads
        )
        for x, spin in ((raised, 3), (lowered, 1))
    )
    slope = scale_alm(philm, np.sqrt(phi * (phi + 1.0)))
    gradient = grid.gradient_values(slope, lmax_phi, 1, pixels, nthreads)
    return 0.5 * (gradient * down - np.conj(gradient) * up)


def e_and_b_modes(
    nside: int, pixels: np.ndarray, p: np.ndarray, lmax: int, nthreads: int = 0
) -> np.ndarray:
    """E and B modes of a polarisation that is zero beyond some pixels.

    Parameters
    ----------
    nside : of HEALPix
    pixels : numbers in ring order, (n,)
    p : Q + iU in µK, (n,)
    lmax : largest multipole
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    elm, blm : in HEALPix order, µK, (2, n_lm)
    """
    grid = HealpixGrid(nside, "C")
    q, u = np.zeros((2, grid.size))
    q[pixels], u[pixels] = p.real, p.imag
    return grid.harmonics(q, u, lmax, nthreads)


def b_polarisation_at(blm: np.ndarray, lmax: int, at: Pointing, nthreads: int = 0) -> np.ndarray:
    """Evaluate Q + iU of a field that is pure B.

    Parameters
    ----------
    blm : in HEALPix order, µK
    lmax : of ``blm``
    at : n pixels
    nthreads : of ducc0; 0 for one per core

    Returns
    -------
    polarisation : in µK, (n,) complex
    """
    # Q + iU goes as E + iB.
    return 1j * patches.polarisation_at(blm, lmax, at, nthreads)


def template_power(
    theory: Spectra, e_filter: np.ndarray, kappa_filter: np.ndarray, lmax: int
) -> np.ndarray:
    """Power of the template if both filters are Wiener's, and so also its power with lensing B.

    It is the power of first order in C^φφ that lensed E modes of power W^E C^EE have, lensed by
    W^φ C^φφ. With W = 1, the difference from the whole lensed C_l^BB is below 1% at l < 300.

    Parameters
    ----------
    theory : fiducial spectra
    e_filter : W^E, from l = 0, zero beyond its end
    kappa_filter : W^φ, from L = 0, zero beyond its end
    lmax : largest multipole

    Returns
    -------
    power : in µK², (lmax + 1,)
    """
    ee, kk = np.zeros((2, theory.lmax + 1))
    n_e, n_kappa = (min(len(w), theory.lmax + 1) for w in (e_filter, kappa_filter))
    ee[:n_e] = (e_filter * theory.lensed_ee[: len(e_filter)])[:n_e]
    kk[:n_kappa] = SMALL * kappa_filter[:n_kappa] * theory.kk[:n_kappa]
    filtered = replace(theory, ee=ee, kk=kk)
    return lensed_polarisation(filtered, max(theory.lmax, lmax))[1][: lmax + 1] / SMALL
