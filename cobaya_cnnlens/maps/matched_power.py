"""Fit the survey's own power of κ and of E, which its matched simulations then have.

The null of l_max is a ratio of two powers of κ̂. κ cancels in the first but not in the second, so
that the null depends on C^κκ and C^EE to first order. With simulations of the fiducial cosmology, a
survey of another cosmology would fail. With one simulation of each tile, we fit

    ⟨κ̂κ̂*⟩ − K = (A − 1) √(S K) ,   ⟨EE*⟩ − ⟨EE*⟩_sim = (a + b l) S_E ,

where K is ⟨κ̂κ̂*⟩ of that simulation, S = ⟨κ̂κ*⟩²/⟨κκ*⟩ the part of K that comes from κ, and S_E its
power of E without noise. Lensing B modes are noise of κ̂. If C^κκ doubles, K therefore grows by more
than S but less than K, and √(S K) is in between. A further round of simulations corrects what is
left. The fit uses the Gaussian errors of the powers. A prior of width :data:`PRIOR` matters only if
a survey measures an amplitude worse than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..simulate.bandpowers import FlatSpectra
from ..theory.camb import Spectra

# Width of the prior of an amplitude about the fiducial one, relative.
PRIOR = 0.5
# Smallest factor by which one round may change a power.
LEAST = 0.3


@dataclass(frozen=True)
class MatchedPower:
    """Factors that multiply the fiducial spectra.

    Attributes
    ----------
    factors : of C^κκ, of C^EE at l = 0, and of C^EE at ``reach``; linear in between, then constant
    reach : multipole at which the bins end
    """

    factors: tuple[float, ...]
    reach: float

    def updated(self, spectra: FlatSpectra, powers: dict[str, np.ndarray]) -> MatchedPower:
        """Fit the power of a survey, with simulations that have the present power.

        Parameters
        ----------
        spectra : with the bins
        powers : ``tile_kk`` ⟨κ̂κ̂*⟩ and ``tile_ee`` ⟨EE*⟩ in µK² of the tiles, ``kk`` and ``ee`` of a
            simulation of each, and of these ``cross`` ⟨κ̂κ*⟩, ``kappa`` ⟨κκ*⟩ and ``signal``, ⟨EE*⟩
            without noise in µK², (n_tiles, n_bins) each

        Returns
        -------
        power : closer to that of the survey
        """
        mean = {name: values.mean(0) for name, values in powers.items()}
        at = spectra.bins.centres / self.reach
        templates = {
            "kk": [np.abs(mean["cross"]) * np.sqrt(mean["kk"] / mean["kappa"])],
            "ee": [(1.0 - at) * mean["signal"], at * mean["signal"]],
        }
        changes = []
        for name, columns in templates.items():
            # Data and simulation have the same scatter, so that the variance doubles.
            error = mean[name] * np.sqrt(4.0 / (spectra.modes * len(powers[name])))
            changes.append(_fit(columns, mean[f"tile_{name}"] - mean[name], error))
        factors = np.array(self.factors) * np.maximum(1.0 + np.concatenate(changes), LEAST)
        return MatchedPower(tuple(factors.tolist()), self.reach)

    def spectra(self, theory: Spectra) -> Spectra:
        """Fiducial spectra multiplied by the factors.

        Parameters
        ----------
        theory : fiducial spectra

        Returns
        -------
        spectra : with other unlensed E and κ; the lensed spectra stay the fiducial ones
        """
        kappa, *e = self.factors
        factor = np.interp(np.arange(theory.lmax + 1.0), [0.0, self.reach], e)
        return replace(theory, ee=factor * theory.ee, kk=kappa * theory.kk)


def _fit(columns: list[np.ndarray], values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Least-squares amplitudes of columns, with a prior of width :data:`PRIOR` about 0."""
    design = np.stack(columns, axis=1) / error[:, None]
    inverse = design.T @ design + np.eye(len(columns)) / PRIOR**2
    return np.linalg.solve(inverse, design.T @ (values / error))
