"""Cross-correlation of κ̂ with a tracer of the matter, tile by tile, with their joint covariance.

The bandpowers of a survey are sums over its tiles, of κ̂ itself and of κ̂ with the tracer g,

    d^κκ_b = Σ_t w_tb (⟨κ̂κ̂*⟩_tb/R_tb² − N_tb),   d^κg_b = Σ_t v_tb ⟨κ̂g*⟩_tb/R_tb,

with R and N of the tile's class of depth (:class:`.mosaic.Normalisation`). The joint covariance
comes from simulated tiles, each of which gives both bandpowers. In them g is Gaussian with known
spectra. docs/cross-correlation.md shows the use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..calibrate.covariance import sample_covariance
from ..calibrate.windows import bandpower_windows
from ..errors import CNNLensError
from ..likelihood.export import SaccSpectrum, write_sacc
from ..simulate.bandpowers import FlatSpectra
from ..simulate.skies import scale_alm, unit_alm
from .mosaic import Normalisation
from .tiles import Tile
from .weights import weighted


@dataclass(frozen=True)
class TracerSpectra:
    """Spectra of a tracer g, from L = 0, (lmax + 1,) each.

    Attributes
    ----------
    kg : C_L^κg
    gg : C_L^gg, including shot noise
    """

    kg: np.ndarray
    gg: np.ndarray

    def draw(
        self, kappa_lm: np.ndarray, kk: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw a Gaussian tracer that is correlated with a sky's κ.

        Parameters
        ----------
        kappa_lm : of κ to the lmax of the spectra, in HEALPix order
        kk : C_L^κκ of that sky, from L = 0
        generator : source of the random numbers

        Returns
        -------
        tracer_lm : in HEALPix order

        Raises
        ------
        CNNLensError
            if no tracer has these spectra
        """
        lmax = len(self.kg) - 1
        kk = kk[: lmax + 1]
        slope = np.divide(self.kg, kk, out=np.zeros(lmax + 1), where=kk > 0)
        uncorrelated = self.gg - slope * self.kg
        if (uncorrelated < 0).any():
            raise CNNLensError(
                f"C^gg at L = {int(np.argmin(uncorrelated))} is below (C^κg)²/C^κκ: the tracer "
                "would be correlated with κ by more than one; look at the bias and the shot noise"
            )
        own = scale_alm(unit_alm(lmax, generator), np.sqrt(uncorrelated))
        return scale_alm(kappa_lm, slope) + own


@dataclass(frozen=True)
class TileSpectra:
    """Bandpowers of κ̂ and of κ̂ with a tracer, of every tile of a survey.

    Attributes
    ----------
    tiles : of the survey; they must not overlap
    spectra : measures flat-sky spectra of the tiles under their taper
    normalisation : R and N of the tiles, in the bins of ``spectra``
    """

    tiles: tuple[Tile, ...]
    spectra: FlatSpectra
    normalisation: Normalisation

    def measure(self, kappa: np.ndarray, tracer: np.ndarray) -> np.ndarray:
        """Measure the bandpowers of all tiles.

        Parameters
        ----------
        kappa : κ̂ with the taper, (n_tiles, n, n)
        tracer : g without a mask, (n_tiles, n, n)

        Returns
        -------
        bandpowers : of κκ, then of κg, (n_tiles, 2 n_bins)
        """
        seen = np.stack([tile.seen for tile in self.tiles])
        mask = np.stack([tile.mask for tile in self.tiles])
        share = np.array([tile.seen_fraction for tile in self.tiles])[:, None]
        label = self.normalisation.label[: len(self.tiles)]
        response = self.normalisation.response[label]
        estimated = self.spectra.transform(kappa * seen)
        of_tracer = self.spectra.transform(tracer * mask)
        auto = self.spectra.cross(estimated, estimated) / share / response**2
        cross = self.spectra.cross(estimated, of_tracer) / share / response
        return np.hstack([auto - self.normalisation.noise[label], cross])

    def weight(self, kk: np.ndarray) -> np.ndarray:
        """Weights w and v of the tiles: inverse variances, if g has the same noise in all tiles.

        Parameters
        ----------
        kk : bandpowers of the fiducial C^κκ, (n_bins,)

        Returns
        -------
        weight : of κκ, then of κg, (n_tiles, 2 n_bins); each bin sums to one over the tiles
        """
        label = self.normalisation.label[: len(self.tiles)]
        total = kk + self.normalisation.noise[label]
        modes = np.array([tile.weight for tile in self.tiles])[:, None]
        weight = np.hstack([modes / total**2, modes / total])
        return weight / weight.sum(0)

    def survey(
        self, bandpowers: np.ndarray, simulated: np.ndarray, kk: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bandpowers of the survey and their covariance.

        Parameters
        ----------
        bandpowers : of the tiles, (n_tiles, 2 n_bins)
        simulated : the same of simulations, (n_simulations, n_tiles, 2 n_bins)
        kk : bandpowers of the fiducial C^κκ, (n_bins,)

        Returns
        -------
        bandpowers : of κκ, then of κg, (2 n_bins,)
        covariance : of both, (2 n_bins, 2 n_bins)
        """
        weight, n_tiles = self.weight(kk), len(self.tiles)
        turns = np.tile(np.arange(n_tiles), len(simulated))
        label = self.normalisation.label[:n_tiles]
        patches = weighted(simulated.reshape(len(turns), -1), turns, weight, label)
        return (weight * bandpowers).sum(0), sample_covariance(patches) / n_tiles

    def write(
        self,
        path: Path,
        bandpowers: np.ndarray,
        covariance: np.ndarray,
        lmax: int,
        **metadata: str | int,
    ) -> None:
        """Write bandpowers of κκ and of κg with their covariance as SACC.

        Parameters
        ----------
        path : of the FITS file
        bandpowers : of κκ, then of κg, (2 n_bins,)
        covariance : of both, (2 n_bins, 2 n_bins)
        lmax : largest multipole of the windows
        **metadata : added to that of :func:`~cobaya_cnnlens.likelihood.export.write_sacc`
        """
        windows = bandpower_windows(self.spectra, lmax)
        edges = self.spectra.bins.edges
        spectra = [
            SaccSpectrum(other, edges, values, windows)
            for other, values in zip(("ck", "gc"), np.split(bandpowers, 2), strict=True)
        ]
        write_sacc(path, spectra, covariance, metadata)
