"""N1 of the EB estimator by Monte Carlo, from pairs of maps that share φ.

With κ̂_ij the estimator's κ̂ of E of map i and B of map j, two maps of the same φ but of independent
unlensed E and noise give (Story et al. 2015, arXiv:1412.4760, eq. 17; Namikawa et al. 2013)

    N0 + N1 = ⟨|κ̂_12|²⟩ + ⟨κ̂_12 κ̂_21*⟩,

since nothing in E_1 B_2 responds to their φ; maps of different φ give N0 alone. Both are made of
the same E and noise, so that the difference has little of their scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..calibrate.response import standard_error
from ..reconstruct.n0 import Filter
from ..reconstruct.quadratic import QuadraticEstimator
from ..simulate.bandpowers import Bins, FlatSpectra
from ..simulate.instrument import Instrument
from ..simulate.patches import PatchGeometry
from ..simulate.periodic import PeriodicSkies
from ..simulate.skies import seed_sequence
from ..table import plus_minus, text_table
from ..theory.camb import Spectra


@dataclass(frozen=True)
class MonteCarloN1:
    """L, N1^κ and its standard error, and N0^κ of the same pairs, (n_bins,) each."""

    L: np.ndarray
    n1: np.ndarray
    error: np.ndarray
    n0: np.ndarray
    n_pairs: int

    def table(self) -> str:
        """As text, a line for each bin."""
        return text_table(
            {
                "L": (".0f", self.L),
                "N1^kk": (">", plus_minus(self.n1, self.error, ".4e")),
                "N1/N0": (".3f", self.n1 / self.n0),
            },
            f"N1 by Monte Carlo, {self.n_pairs} pairs",
        )


def n1_eb(
    geometry: PatchGeometry,
    instrument: Instrument,
    spectra: Spectra,
    bins: Bins,
    n_pairs: int,
    seed: int = 0,
    band: Filter | None = None,
) -> MonteCarloN1:
    """N1^κ of the EB estimator with N0's normalisation, in bins, from ``n_pairs`` pairs of maps of
    periodic patches.

    Raises
    ------
    CNNLensError
        if the bins pass the patch's Nyquist multipole, or the spectra end below the filter
    """
    n = geometry.n_pixels
    skies = PeriodicSkies(geometry, instrument, spectra)
    measured = FlatSpectra(geometry, bins, np.ones((n, n)))
    band = band or Filter()
    estimator = QuadraticEstimator(geometry, instrument, np.ones((n, n)), spectra, band=band)

    def power(one, two):
        """⟨|κ̂_12|²⟩ + ⟨κ̂_12 κ̂_21*⟩ by bin."""
        kappas = [
            estimator.combine({"e": a["e"], "b": b["b"]}) for a, b in ((one, two), (two, one))
        ]
        first, second = measured.transform(np.array(kappas))
        sums = first[None], (first + second)[None]
        return measured.cross(*sums)[0]

    same, different = [], []
    for index in tqdm(range(n_pairs), desc="N1", unit="pair"):
        generator = np.random.default_rng(seed_sequence(seed, "n1", index))
        phis = [skies.draw("phi", generator) for _ in range(2)]
        maps = []
        for of_phi in ((phis[0],), phis):
            e, noise = skies.draw("e", generator), skies.noise(generator)
            maps.append([skies.lensed(e, phi) + noise for phi in of_phi])
        (first,), (second, other) = (
            [estimator.modes(x.real, x.imag) for x in group] for group in maps
        )
        same.append(power(first, second))
        different.append(power(first, other))
    n0 = np.array(different)
    n1 = np.array(same) - n0
    return MonteCarloN1(bins.centres, n1.mean(0), standard_error(n1), n0.mean(0), n_pairs)
