"""Polarised foregrounds of flat patches: point sources, Galactic dust and synchrotron.

Radio sources are drawn one by one from their counts. Their power is white and the same for E and B,

    C_l^EE = C_l^BB = ½ ⟨p²⟩ g⁻² ∫ S² dN/dS dS,   g = ∂B_ν/∂T at 2.7255 K.

Dust and synchrotron are Gaussian fields with power laws D_l = A (l/80)^slope for E and for B, where
A is in µK² (CMB) at 353 GHz for dust and at 23 GHz for synchrotron. A power law is drawn on a box
:data:`BOX` times as wide as the patch. docs/foregrounds.md gives the sources of all numbers, and
says what the model leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import constants

from ..errors import CNNLensError
from .modes import mode_vectors, plane_vectors, polarisation_angles
from .patches import PatchGeometry

CMB_TEMPERATURE = 2.7255  # K
# Fluxes in Jy at 148 GHz, and dN/dS in 1/(Jy sr) there.
COUNT_FREQUENCY = 148.0
COUNT_FLUXES = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
COUNTS = np.array([1.16e9, 1.85e7, 1.98e5, 1.71e3, 14.0])
SOURCE_INDEX = -0.5
POLARISED_FRACTION = 0.03  # root of the mean square
DUST_FREQUENCY, DUST_BETA, DUST_TEMPERATURE = 353.0, 1.53, 19.6
DUST_SLOPES = (-0.42, -0.54)
SYNCHROTRON_FREQUENCY, SYNCHROTRON_BETA = 23.0, -3.1
SYNCHROTRON_SLOPES = (-1.0, -1.0)
B_OVER_E = 0.5
PIVOT = 80
BOX = 4
# What a kind of foreground's level is.
KINDS = {
    "sources": "flux cut in mJy",
    "dust": "D_80^EE at 353 GHz in uK^2",
    "synchrotron": "D_80^EE at 23 GHz in uK^2",
}


def thermodynamic(frequency: float) -> float:
    """Conversion g = ∂B_ν/∂T from CMB temperature to brightness.

    Parameters
    ----------
    frequency : in GHz

    Returns
    -------
    g : in Jy/sr per µK
    """
    nu = 1e9 * frequency
    x = constants.h * nu / (constants.k * CMB_TEMPERATURE)
    planck = 2.0 * constants.k * (nu / constants.c) ** 2 * (0.5 * x / np.sinh(0.5 * x)) ** 2
    return float(planck * 1e26 * 1e-6)


def dust_scaling(frequency: float) -> float:
    """Brightness of dust relative to 353 GHz, in CMB temperature.

    Parameters
    ----------
    frequency : in GHz

    Returns
    -------
    ratio : one at 353 GHz
    """

    def grey(ghz: float) -> float:
        x = constants.h * 1e9 * ghz / (constants.k * DUST_TEMPERATURE)
        return float(ghz ** (3.0 + DUST_BETA) / np.expm1(x)) / thermodynamic(ghz)

    return grey(frequency) / grey(DUST_FREQUENCY)


def synchrotron_scaling(frequency: float) -> float:
    """Brightness of synchrotron relative to 23 GHz, in CMB temperature.

    Parameters
    ----------
    frequency : in GHz

    Returns
    -------
    ratio : one at 23 GHz
    """

    def power(ghz: float) -> float:
        return ghz ** (2.0 + SYNCHROTRON_BETA) / thermodynamic(ghz)

    return power(frequency) / power(SYNCHROTRON_FREQUENCY)


@dataclass(frozen=True)
class SourceCounts:
    """Radio sources at ``frequency`` (GHz) with fluxes below ``flux_cut`` (mJy).

    Between the nodes :data:`COUNT_FLUXES`, moved to the frequency, dN/dS is a power law, and below
    the first there are no sources.

    Raises
    ------
    CNNLensError
        if the cut lies beyond the counts
    """

    flux_cut: float
    frequency: float = 150.0

    def __post_init__(self) -> None:
        low, high = 1e3 * self._moved * COUNT_FLUXES[[0, -1]]
        if not low < self.flux_cut <= high:
            raise CNNLensError(
                f"a flux cut of {self.flux_cut:g} mJy; the counts of sources at "
                f"{self.frequency:g} GHz go from {low:.3g} to {high:.4g} mJy"
            )

    @property
    def _moved(self) -> float:
        """Flux at the frequency over that at which the counts were modelled."""
        return float((self.frequency / COUNT_FREQUENCY) ** SOURCE_INDEX)

    def _pieces(self, cut: float) -> list[tuple[float, float, float, float]]:
        """Of each power law below a cut in Jy: its ends in Jy, dN/dS at the lower, its slope."""
        fluxes, counts = COUNT_FLUXES * self._moved, COUNTS / self._moved
        slopes = np.diff(np.log(counts)) / np.diff(np.log(fluxes))
        ends = np.minimum(fluxes[1:], cut)
        pieces = zip(fluxes[:-1], ends, counts[:-1], slopes, strict=True)
        return [(low, high, n, slope) for low, high, n, slope in pieces if low < high]

    def moment(self, power: float) -> float:
        """Integral ∫ S^power dN/dS dS of the counts below the flux cut.

        Parameters
        ----------
        power : of the flux

        Returns
        -------
        moment : in Jy^power/sr
        """
        return sum(
            n * low ** (power + 1.0) * _integral(power + slope, high / low)
            for low, high, n, slope in self._pieces(1e-3 * self.flux_cut)
        )

    @property
    def power(self) -> float:
        """C_l of E, which is that of B, in µK²."""
        return 0.5 * POLARISED_FRACTION**2 * self.moment(2) / thermodynamic(self.frequency) ** 2

    def draw(self, area: float, generator: np.random.Generator) -> np.ndarray:
        """Draw the fluxes of the sources in an area; their number is Poisson.

        The sources above the cut are drawn too, so that another cut does not change the others.

        Parameters
        ----------
        area : in sr
        generator : source of the random numbers

        Returns
        -------
        fluxes : (n_sources,) in Jy
        """
        fluxes = []
        for low, high, n, slope in self._pieces(np.inf):
            end, ratio = slope + 1.0, high / low
            mean = area * n * low * _integral(slope, ratio)
            u = generator.random(generator.poisson(mean))
            fluxes.append(low * (1.0 + u * (ratio**end - 1.0)) ** (1.0 / end))
        return np.concatenate(fluxes)


def _integral(power: float, end: float) -> float:
    """∫_1^end x^power dx."""
    if abs(power + 1.0) < 1e-9:
        return float(np.log(end))
    return float((end ** (power + 1.0) - 1.0) / (power + 1.0))


@dataclass(frozen=True)
class PowerLaw:
    """D_80 of E and of B in µK² at the maps' frequency, and their slopes."""

    ee: float
    bb: float
    slopes: tuple[float, float]

    @classmethod
    def dust(cls, level: float, frequency: float = 150.0) -> PowerLaw:
        """Spectra of polarised dust.

        Parameters
        ----------
        level : D_80^EE at 353 GHz, in µK²
        frequency : of the maps, in GHz

        Returns
        -------
        law : at that frequency
        """
        ee = level * dust_scaling(frequency) ** 2
        return cls(ee, B_OVER_E * ee, DUST_SLOPES)

    @classmethod
    def synchrotron(cls, level: float, frequency: float = 150.0) -> PowerLaw:
        """Spectra of polarised synchrotron.

        Parameters
        ----------
        level : D_80^EE at 23 GHz, in µK²
        frequency : of the maps, in GHz

        Returns
        -------
        law : at that frequency
        """
        ee = level * synchrotron_scaling(frequency) ** 2
        return cls(ee, B_OVER_E * ee, SYNCHROTRON_SLOPES)

    def spectra(self, ell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """C_l of E and of B, zero at l = 0.

        Parameters
        ----------
        ell : multipoles, of any shape

        Returns
        -------
        ee, bb : in µK², each of the shape of ``ell``
        """
        ell = np.asarray(ell, dtype=float)
        l = np.where(ell > 0, ell, 1.0)
        spectra = (
            amplitude * (l / PIVOT) ** slope * 2.0 * np.pi / (l * (l + 1.0))
            for amplitude, slope in zip((self.ee, self.bb), self.slopes, strict=True)
        )
        ee, bb = (np.where(ell > 0, cl, 0.0) for cl in spectra)
        return ee, bb


def source_patches(
    counts: SourceCounts, geometry: PatchGeometry, generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Q and U of point sources on padded patches, without beam.

    The modes of a source are (q, u) exp(−il·x) up to the Nyquist multipole of a periodic patch.

    Parameters
    ----------
    counts : numbers of sources by flux, and their polarisation
    geometry : of the patches
    generators : one for each patch

    Returns
    -------
    maps : Q and U in µK, (2, n_patches, n_padded, n_padded)
    """
    import ducc0

    n, pixel = geometry.n_padded, geometry.pixel
    side = n * pixel
    band = np.hypot(*plane_vectors(n, pixel)) < geometry.nyquist
    # Modes without Δ², which the inverse transform's 1/n² wants as much as the surface brightness.
    unit = POLARISED_FRACTION / np.sqrt(2.0) / thermodynamic(counts.frequency) / pixel**2
    maps = np.empty((2, len(generators), n, n))
    for i, generator in enumerate(generators):
        fluxes = counts.draw(side**2, generator)
        where = generator.uniform(0.0, side, (len(fluxes), 2))
        fractions = generator.standard_normal((2, len(fluxes)))
        left = fluxes <= 1e-3 * counts.flux_cut
        q, u = unit * fluxes[left] * fractions[:, left]
        modes = ducc0.nufft.nu2u(
            points=q + 1j * u,
            coord=where[left],
            forward=True,
            epsilon=1e-9,
            nthreads=1,
            out=np.zeros((n, n), complex),
            periodicity=side,
            fft_order=True,
        )
        p = np.fft.ifft2(modes * band)
        maps[:, i] = p.real, p.imag
    return maps


def power_law_patches(
    law: PowerLaw, geometry: PatchGeometry, generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Q and U of a Gaussian foreground on padded patches, without beam.

    Each patch is cut from a larger periodic box of its own.

    Parameters
    ----------
    law : spectra of E and B
    geometry : of the patches
    generators : one for each patch

    Returns
    -------
    maps : Q and U in µK, (2, n_patches, n_padded, n_padded)
    """
    n, pixel = geometry.n_padded, geometry.pixel
    wide = BOX * n
    ly, lx = mode_vectors(wide, pixel)
    ell = np.hypot(ly, lx)
    cos2, sin2 = polarisation_angles(ly, lx)
    roots = [np.sqrt(np.where(ell < geometry.nyquist, cl, 0.0)) / pixel for cl in law.spectra(ell)]
    maps = np.empty((2, len(generators), n, n))
    for i, generator in enumerate(generators):
        e, b = (root * np.fft.rfft2(generator.standard_normal((wide, wide))) for root in roots)
        for maps_of, modes in zip(maps, (cos2 * e - sin2 * b, sin2 * e + cos2 * b), strict=True):
            maps_of[i] = np.fft.irfft2(modes, s=(wide, wide))[:n, :n]
    return maps


def foreground_patches(
    kind: str,
    level: float,
    frequency: float,
    geometry: PatchGeometry,
    generators: Sequence[np.random.Generator],
) -> np.ndarray:
    """Q and U of one foreground on padded patches, without beam.

    Parameters
    ----------
    kind : one of :data:`KINDS`, which say what its ``level`` is
    level : of the foreground, in the unit that :data:`KINDS` states
    frequency : in GHz
    geometry : of the patches
    generators : one for each patch

    Returns
    -------
    maps : Q and U in µK, (2, n_patches, n_padded, n_padded)

    Raises
    ------
    CNNLensError
        if there is no such foreground, or none of that level
    """
    if kind == "sources":
        return source_patches(SourceCounts(level, frequency), geometry, generators)
    if kind not in KINDS:
        raise CNNLensError(f"no foreground '{kind}'; there are {', '.join(KINDS)}")
    law = getattr(PowerLaw, kind)(level, frequency)
    return power_law_patches(law, geometry, generators)
