"""The two spectra that the likelihood takes: their checks, and the mistakes that they can hold.

A spectrum whose power no cosmology has is refused, with the form that it looks like
(:func:`diagnosis`). A constant factor of a few, such as 2/π of CAMB's own scaling of the lensing
potential, is a power that some cosmology has: it is named where the power says so
(:data:`FACTORS`), and the likelihood warns. Lensed C_l^EE for unlensed goes unseen: at the fiducial
its bands differ by −4 to +23%, as cosmologies do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import namespace
from ..errors import SpectrumError

# Power over the fiducial's that a spectrum may have: C^κκ at one L and C^EE in one band, both in
# the middle of the release's. At the corners of .08 < omch2 < .16, 2.5 < ln(1e10 As) < 3.7,
# 50 < H0 < 90, .5 < A_L < 2, Σm_ν < 1 eV it is .02 to 18 in C^κκ and .4 to 2 in C^EE; the wrong
# forms below give less than 6e-5, or more than 3,000. C_l^TT is 20 to 50 times C_l^EE there, and
# C_l^BB 0.03 times.
LEAST_POWER, MOST_POWER = 5e-4, 200.0
LEAST_E_POWER, MOST_E_POWER = 0.05, 15.0
# A wrong form is named if, put right, every band is within this factor of the fiducial.
_RECOGNISED = 100.0
_T_CMB = 2.7255e6  # µK


def band_powers(edges: np.ndarray, fiducial: np.ndarray) -> np.ndarray:
    """Power Σ (2l+1) C_l of every band.

    Parameters
    ----------
    edges : of the bands, (n_bands + 1,)
    fiducial : C_l from l = 0

    Returns
    -------
    (n_bands,)

    Examples
    --------
    >>> band_powers(np.array([0, 2, 3]), np.ones(3)).tolist()
    [4.0, 5.0]
    """
    l = np.arange(edges[0], edges[-1])
    return np.add.reduceat((2.0 * l + 1.0) * fiducial[edges[0] : edges[-1]], edges[:-1] - edges[0])


def band_matrix(
    edges: np.ndarray, fiducial: np.ndarray, derivatives: np.ndarray, size: int
) -> np.ndarray:
    """The derivatives of each bin as a matrix on C_l, N'_bj (2l+1) / Σ_j (2l+1) C_l^fid for l in
    band j.

    Parameters
    ----------
    edges : of the bands, (n_bands + 1,)
    fiducial : C_l^fid from l = 0
    derivatives : N'_bj, (n_bins, n_bands)
    size : number of multipoles

    Returns
    -------
    (n_bins, size) from l = 0
    """
    matrix = np.zeros((len(derivatives), size))
    powers = band_powers(edges, fiducial)
    for j, (low, high) in enumerate(itertools.pairwise(edges)):
        weight = 2.0 * np.arange(low, high) + 1.0
        matrix[:, low:high] = derivatives[:, j, None] * weight / powers[j]
    return matrix


def terms(amplitudes: np.ndarray) -> np.ndarray:
    """Amplitudes w and their products w_i w_j, i ≤ j, as a response surface holds them.

    Parameters
    ----------
    amplitudes : (..., n)

    Returns
    -------
    (..., n + n (n + 1)/2)

    Examples
    --------
    >>> terms(np.array([2.0, 3.0])).tolist()
    [2.0, 3.0, 4.0, 6.0, 9.0]
    """
    first, second = np.triu_indices(amplitudes.shape[-1])
    products = amplitudes[..., first] * amplitudes[..., second]
    return np.concatenate([amplitudes, products], axis=-1)


def n_terms(n: int) -> int:
    """How many :func:`terms` there are.

    Parameters
    ----------
    n : number of amplitudes

    Returns
    -------
    n + n (n + 1)/2

    Examples
    --------
    >>> n_terms(2)
    5
    """
    return n + n * (n + 1) // 2


def change_along(size: int, edges: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Relative change u a_j/|a|² of a spectrum in every band, for u = 1.

    Parameters
    ----------
    size : length of the spectrum
    edges : of the bands, (n_bands + 1,)
    direction : a, (n_bands,); where it is zero nothing changes

    Returns
    -------
    by multipole, (size,); zero beyond the bands

    Examples
    --------
    >>> change_along(4, np.array([1, 2, 4]), np.array([0.0, 2.0])).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    change = np.zeros(max(size, edges[-1]))
    if direction.any():
        shape = direction / (direction @ direction)
        change[edges[0] : edges[-1]] = np.repeat(shape, np.diff(edges))
    return change[:size]


class Bands:
    """Power in the bands of a spectrum, relative to that of the fiducial one: 1 + δ_j."""

    def __init__(self, edges: np.ndarray, fiducial: np.ndarray):
        self.edges, self.stop, self.size = edges, int(edges[-1]), len(edges) - 1
        self._multipoles = slice(int(edges[0]), self.stop)
        self._starts = np.asarray(edges[:-1] - edges[0], dtype=np.intp)
        weight = 2.0 * np.arange(edges[0], edges[-1]) + 1.0
        self._weight = weight / np.repeat(band_powers(edges, fiducial), np.diff(edges))

    def power(self, cl: np.ndarray) -> np.ndarray:
        """Σ (2l+1) C_l / Σ (2l+1) C_l^fid of every band.

        Parameters
        ----------
        cl : from l = 0

        Returns
        -------
        (n_bands,)
        """
        return namespace(cl).add.reduceat(self._weight * cl[self._multipoles], self._starts)


@dataclass(frozen=True)
class Quantity:
    """A spectrum that the likelihood takes: its name, and the letter of its multipole."""

    name: str
    letter: str


KAPPA = Quantity("C_L^κκ", "L")
UNLENSED_E = Quantity("unlensed C_l^EE", "l")


def checked_spectrum(cl: ArrayLike | None, lmax: int, quantity: Quantity) -> np.ndarray:
    """A spectrum as an array that begins at l = 0 and reaches ``lmax``.

    Parameters
    ----------
    cl : the spectrum
    lmax : highest multipole that is needed
    quantity : which of the two it is

    Returns
    -------
    (≥ lmax + 1,)

    Raises
    ------
    SpectrumError
        if it is no such array
    """
    if type(cl) is not np.ndarray or cl.ndim != 1 or cl.dtype.kind != "f":
        cl = _as_array(cl, quantity)
    if len(cl) <= lmax:
        raise SpectrumError(
            f"{quantity.name} ends at {quantity.letter} = {len(cl) - 1}, the release needs "
            f"{quantity.letter} = {lmax}"
        )
    # Neither κ nor E has a monopole. (NaN there is let be: it says "undefined".)
    if cl.item(0) > 0.0:
        raise SpectrumError(
            f"{quantity.name} has power at {quantity.letter} = 0, as if its first entry were "
            f"{quantity.letter} = 2; fill the array from {quantity.letter} = 0 with zeros"
        )
    if cl.item(2) == 0.0 and (begin := 3 if cl.item(3) > 0.0 else 4 if cl.item(4) > 0.0 else 0):
        raise SpectrumError(
            f"{quantity.name} begins at {quantity.letter} = {begin}, as if {quantity.letter} = 0"
            f"{' and 1' if begin == 4 else ''} were there twice; entry {quantity.letter} of the "
            f"array must be C_{quantity.letter}"
        )
    return cl


def refuse_gaps(cl: np.ndarray, lmax: int, quantity: Quantity) -> None:
    """Refuse a spectrum with gaps, as one that was filled up with zeros.

    Parameters
    ----------
    cl : from l = 0; one without any power is let pass
    lmax : last multipole that must be positive, from l = 2 on
    quantity : what errors call it

    Raises
    ------
    SpectrumError
        if it is zero or negative somewhere
    """
    if cl[2 : lmax + 1].min() <= 0.0 and cl[: lmax + 1].any():
        wrong = 2 + np.flatnonzero(cl[2 : lmax + 1] <= 0.0)
        raise SpectrumError(
            f"{quantity.name} is zero or negative at {len(wrong)} multipoles from "
            f"{quantity.letter} = {wrong[0]} to {wrong[-1]}, which no cosmology gives; compute it "
            f"to {quantity.letter} = {lmax}"
        )


def _as_array(cl: ArrayLike | None, quantity: Quantity) -> np.ndarray:
    try:
        array = np.asarray(cl)
        if array.dtype.kind not in "fiu":
            raise TypeError
    except (TypeError, ValueError):
        raise SpectrumError(
            f"{quantity.name} is {cl!r:.40}; give an array of real numbers, entry "
            f"{quantity.letter} for multipole {quantity.letter}"
        ) from None
    if array.ndim != 1:
        raise SpectrumError(
            f"{quantity.name} has shape {array.shape}; give one dimension, entry {quantity.letter} "
            f"for multipole {quantity.letter}"
        )
    return array.astype(float)


# Constant factors that C_L^κκ is often off by, with the form that has it and the mend.
FACTORS = {
    2.0 / np.pi: "it looks like [L(L+1)]² C_L^φφ/2π, CAMB's own scaling: multiply that by π/2",
    np.pi / 2.0: "it looks like C_L^κκ multiplied by π/2 once too often: multiply it by 2/π",
    4.0: "it looks like [L(L+1)]² C_L^φφ: divide that by 4",
    0.25: "it looks like C_L^κκ divided by 4 once too often: multiply it by 4",
    2.0: "it looks like [L(L+1)]² C_L^φφ/2: divide that by 2",
    0.5: "it looks like C_L^κκ/2: multiply it by 2",
    2.0 * np.pi: "it looks like 2π C_L^κκ: divide it by 2π",
    0.5 / np.pi: "it looks like C_L^κκ/2π: multiply it by 2π",
    4.0 * np.pi: "it looks like 4π C_L^κκ: divide it by 4π",
    0.25 / np.pi: "it looks like C_L^κκ/4π: multiply it by 4π",
    (1e-6 * _T_CMB) ** 2: "it looks like C_L^κκ times T_CMB² in K²; κ has no unit",
    (1e-6 * _T_CMB) ** -2: "it looks like C_L^κκ over T_CMB² in K²; κ has no unit",
}
# A factor is named if the power of every band is within this much of it.
_AS_A_FACTOR = 0.04


def factor_of(powers: np.ndarray) -> str | None:
    """What is said of a C_L^κκ of which every band is off by one of :data:`FACTORS`, or None.

    Parameters
    ----------
    powers : of the bands, over the fiducial's

    Returns
    -------
    words of :data:`FACTORS`, or None

    Examples
    --------
    >>> factor_of(np.array([4.0, 4.0]))
    'it looks like [L(L+1)]² C_L^φφ: divide that by 4'
    """
    for factor, words in FACTORS.items():
        if (np.abs(powers / factor - 1.0) < _AS_A_FACTOR).all():
            return words
    return None


# Other forms of the two spectra: what it is, the mend, and the factor from it to the right form as
# a function of l.
_Form = tuple[str, str, Callable[[np.ndarray], np.ndarray | float]]
_WITHOUT = "give C_{0} without the factor {0}({0}+1)/2π"
FORMS: dict[Quantity, tuple[_Form, ...]] = {
    KAPPA: (
        ("D_L = L(L+1) C_L/2π", _WITHOUT.format("L"), lambda x: 2.0 * np.pi / x),
        ("C_L^φφ", "give C_L^κκ = [L(L+1)]²/4 C_L^φφ", lambda x: x**2 / 4.0),
        ("L(L+1) C_L^φφ", "give C_L^κκ = [L(L+1)]²/4 C_L^φφ", lambda x: x / 4.0),
        ("L(L+1) C_L^φφ/2π", "give C_L^κκ = [L(L+1)]²/4 C_L^φφ", lambda x: np.pi / 2.0 * x),
        ("C_L^κκ times T_CMB² in µK²", "leave T_CMB out: κ has no unit", lambda x: _T_CMB**-2),
    ),
    UNLENSED_E: (
        ("D_l = l(l+1) C_l/2π", _WITHOUT.format("l"), lambda x: 2.0 * np.pi / x),
        ("C_l in K²", "give µK²", lambda x: 1e12),
        ("C_l in mK²", "give µK²", lambda x: 1e6),
        ("C_l in units of T_CMB²", "give µK²", lambda x: _T_CMB**2),
        ("D_l in K²", f"{_WITHOUT.format('l')}, in µK²", lambda x: 1e12 * 2.0 * np.pi / x),
        (
            "D_l in units of T_CMB²",
            f"{_WITHOUT.format('l')}, in µK²",
            lambda x: _T_CMB**2 * 2.0 * np.pi / x,
        ),
    ),
}


def diagnosis(
    quantity: Quantity, given: dict[Quantity, np.ndarray], bands: dict[Quantity, Bands]
) -> str:
    """What is wrong with a spectrum whose power no cosmology has.

    Parameters
    ----------
    quantity : the spectrum that is wrong
    given : both spectra from l = 0
    bands : of both spectra

    Returns
    -------
    message of an error
    """
    powers = bands[quantity].power(given[quantity])
    if not np.isfinite(powers).all():
        return f"{quantity.name} is not finite; check the theory"
    said = (
        f"{quantity.name} has {np.median(powers):.1e} times the power of the release's fiducial one"
    )
    miss, form, mend = min(candidates(quantity, given, bands), key=lambda candidate: candidate[0])
    if miss < math.log(_RECOGNISED):
        return f"{said}: it looks like {form}; {mend}"
    return (
        f"{said}, which no cosmology gives; give the raw C_{quantity.letter}"
        f"{' in µK²' if quantity is UNLENSED_E else ''}, from {quantity.letter} = 0"
    )


def candidates(
    quantity: Quantity, given: dict[Quantity, np.ndarray], bands: dict[Quantity, Bands]
) -> Iterator[tuple[float, str, str]]:
    """Try the wrong forms of a spectrum, and the other spectrum.

    Parameters
    ----------
    quantity : the spectrum that is wrong
    given : both spectra from l = 0
    bands : of both spectra

    Yields
    ------
    largest |ln(power over the fiducial's)| of a band, put right; name of the form; the mend
    """

    def miss(of: Bands, corrected: np.ndarray) -> float:
        if np.ndim(corrected) != 1 or len(corrected) < of.stop:
            return math.inf
        power = of.power(corrected)
        return float(np.abs(np.log(power)).max()) if (power > 0).all() else math.inf

    l = np.arange(len(given[quantity])).clip(1.0)
    for form, mend, factor in FORMS[quantity]:
        yield miss(bands[quantity], given[quantity] * factor(l * (l + 1.0))), form, mend
    swapped = max(miss(bands[KAPPA], given[UNLENSED_E]), miss(bands[UNLENSED_E], given[KAPPA]))
    other = UNLENSED_E if quantity is KAPPA else KAPPA
    yield swapped, other.name, f"are the arguments swapped? {KAPPA.name} comes first"
