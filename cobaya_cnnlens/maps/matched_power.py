"""The power of κ and of E in a survey's matched simulations: the survey's own.

A ratio of two powers of κ̂ depends on C^κκ and C^EE to first order: κ is in one of the powers, and
cancels in the other. Simulations of the fiducial cosmology therefore fail a survey of another
cosmology. The survey's excess over one simulation of each tile is fitted as

    ⟨κ̂κ̂*⟩ − K = (A − 1) √(S K) ,   ⟨EE*⟩ − ⟨EE*⟩_sim = (a + b l) S_E ,

where K is ⟨κ̂κ̂*⟩ of that simulation, S = ⟨κ̂κ*⟩²/⟨κκ*⟩ the part of it that κ makes, and S_E its power
of E without noise. Lensing B is noise of κ̂, so that K changes by more than S and less than K; the
next round finds the rest. The fit has the Gaussian errors of the powers. A prior of width
:data:`PRIOR` counts only if a survey measures an amplitude no better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..simulate.bandpowers import FlatSpectra
from ..theory.camb import Spectra

# How far a survey's power may be from the fiducial one, relative.
PRIOR = 0.5
# A round changes no power by a smaller factor.
LEAST = 0.3


@dataclass(frozen=True)
class MatchedPower:
    """What multiplies the fiducial spectra.

    Attributes
    ----------
    factors : of C^κκ; of C^EE at l = 0 and at ``reach``, linear in between and constant beyond
    reach : multipole at which the bins end
    """

    factors: tuple[float, ...]
    reach: float

    def updated(self, spectra: FlatSpectra, powers: dict[str, np.ndarray]) -> MatchedPower:
        """Fit the power of a survey from simulations that have this one.

        Parameters
        ----------
        spectra : with the bins
        powers : ``tile_kk`` ⟨κ̂κ̂*⟩ and ``tile_ee`` ⟨EE*⟩ in µK² of the tiles, ``kk`` and ``ee`` of a
            simulation of each, and of these ``cross`` ⟨κ̂κ*⟩, ``kappa`` ⟨κκ*⟩ and ``signal``, ⟨EE*⟩
            without noise in µK², (n_tiles, n_bins) each

        Returns
        -------
        power : that comes closer
        """
        mean = {name: values.mean(0) for name, values in powers.items()}
        at = spectra.bins.centres / self.reach
        templates = {
            "kk": [np.abs(mean["cross"]) * np.sqrt(mean["kk"] / mean["kappa"])],
            "ee": [(1.0 - at) * mean["signal"], at * mean["signal"]],
        }
        changes = []
        for name, columns in templates.items():
            # Tiles and simulations scatter alike.
            error = mean[name] * np.sqrt(4.0 / (spectra.modes * len(powers[name])))
            changes.append(_fit(columns, mean[f"tile_{name}"] - mean[name], error))
        factors = np.array(self.factors) * np.maximum(1.0 + np.concatenate(changes), LEAST)
        return MatchedPower(tuple(factors.tolist()), self.reach)

    def spectra(self, theory: Spectra) -> Spectra:
        """Spectra with this power.

        Parameters
        ----------
        theory : fiducial spectra

        Returns
        -------
        spectra : unlensed E and κ; the lensed spectra are still the fiducial ones
        """
        kappa, *e = self.factors
        factor = np.interp(np.arange(theory.lmax + 1.0), [0.0, self.reach], e)
        return replace(theory, ee=factor * theory.ee, kk=kappa * theory.kk)


def _fit(columns: list[np.ndarray], values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Amplitudes of columns in values with errors, with a prior of width :data:`PRIOR` about 0."""
    design = np.stack(columns, axis=1) / error[:, None]
    inverse = design.T @ design + np.eye(len(columns)) / PRIOR**2
    return np.linalg.solve(inverse, design.T @ (values / error))
