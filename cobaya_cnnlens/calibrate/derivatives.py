"""Banded derivatives of the debiased bandpowers, from simulations with common random numbers.

With κ̂ of one sky observed with one band of C_L^κκ, or of the unlensed C_l^EE, scaled by 1 ± ε,

    N'_bj = ∂[⟨κ̂κ̂*⟩_b/R_b² − ⟨κκ*⟩_b] / ∂ ln C_j .

Subtracting the change of the truth leaves the derivative of the *noise bias*: the change of the
response, of the N1-like part and of the noise with theory. The windows carry the signal exactly.
The paper's §6.3 leaves this correction to future work; compare Planck 2015 XV, App. C.

An error x of the instrument has a first and a second order,

    d_b(x) = d_b(0) + A_b x + B_b x² ,   A = [d(x) − d(−x)]/2x ,  B = [d(x) + d(−x) − 2 d(0)]/2x² .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .response import standard_error


@dataclass(frozen=True)
class BandDerivatives:
    """Noise-bias derivatives in the bands of one spectrum.

    Attributes
    ----------
    edges : of the bands, (n_bands + 1,)
    patches : by patch, (n_patches, n_bins, n_bands)
    """

    edges: np.ndarray
    patches: np.ndarray

    @classmethod
    def of_bands(cls, edges: Sequence[int], by_band: np.ndarray) -> BandDerivatives:
        """From derivatives band by band, as stages keep them.

        Parameters
        ----------
        edges : of the bands, (n_bands + 1,)
        by_band : (n_bands, n_patches, n_bins)

        Returns
        -------
        derivatives by patch
        """
        return cls(np.array(edges), by_band.transpose(1, 2, 0))

    @property
    def values(self) -> np.ndarray:
        """Means over the patches, (n_bins, n_bands)."""
        return self.patches.mean(0)

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of the means, (n_bins, n_bands)."""
        return standard_error(self.patches)


@dataclass(frozen=True)
class NoiseDerivatives:
    """Noise-bias derivatives with respect to both spectra.

    Attributes
    ----------
    kk, ee : in the bands of C^κκ and of unlensed C^EE
    centre : the noise bias of the same patches at the fiducial cosmology, (n_patches, n_bins)
    """

    kk: BandDerivatives
    ee: BandDerivatives
    centre: np.ndarray

    def change_at(self, bands: np.ndarray) -> np.ndarray:
        """First-order change.

        Parameters
        ----------
        bands : δ_j, C^κκ before C^EE, (n_kk + n_ee,)

        Returns
        -------
        by patch, (n_patches, n)
        """
        kk, ee = np.split(bands, [self.kk.patches.shape[2]])
        return self.kk.patches @ kk + self.ee.patches @ ee


def nuisance_orders(
    steps: np.ndarray, centre: np.ndarray, below_above: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and second order in each nuisance of what was measured of patches.

    Parameters
    ----------
    steps : x of each, (n_simulated,)
    centre : without a systematic, (n_patches, n)
    below_above : at −x and +x of each, (2, n_patches, n, n_simulated)

    Returns
    -------
    A and B, (n_patches, n, n_simulated) each
    """
    below, above = below_above
    first = (above - below) / (2.0 * steps)
    second = (above + below - 2.0 * centre[..., None]) / (2.0 * steps**2)
    return first, second
