"""Noise of estimators on the same patches, with paired errors: what several benchmarks share."""

import numpy as np

from cobaya_cnnlens.pipeline.run import Run

REALISATIONS = 300


class Paired:
    """Patches whose κ is known.

    Parameters
    ----------
    run : for the spectra of masked maps
    kappa : masked truth, (n, ny, nx)
    """

    def __init__(self, run: Run, kappa: np.ndarray):
        self.spectra, n = run.bandpowers, len(kappa)
        self.true = self.spectra.transform(kappa)
        self.power = self.spectra.cross(self.true, self.true)
        self.ones = np.ones(n)
        generator = np.random.default_rng(1)
        # How often each patch counts in a bootstrap.
        self.draws = generator.multinomial(n, self.ones / n, REALISATIONS).astype(float)

    def measured(self, kappa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """⟨κ̂κ̂*⟩ and ⟨κκ̂*⟩ of each patch, the mean of masked κ̂ taken off.

        That takes 1/n of both: left so, N would be (C + N)/n too large, 9% at L = 350 for n = 160.
        """
        found, left = self.spectra.transform(kappa - kappa.mean(0)), 1.0 - 1.0 / len(kappa)
        cross = self.spectra.cross
        return cross(found, found) / left, cross(self.true, found) / left

    def noise(self, auto: np.ndarray, cross: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """N_L = ⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩ over the patches, each counted so often."""
        auto, cross, truth = (weight @ p / weight.sum() for p in (auto, cross, self.power))
        return auto * truth**2 / cross**2 - truth

    def ratio(self, found: tuple, reference: tuple) -> tuple[np.ndarray, np.ndarray]:
        """N_L of what :meth:`measured` found over that of another estimator, and its error."""

        def of(weight: np.ndarray) -> np.ndarray:
            return self.noise(*found, weight) / self.noise(*reference, weight)

        return of(self.ones), np.std([of(w) for w in self.draws], axis=0)
