"""What ``cnnlens survey template`` makes: a template of a survey's lensing B modes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..simulate.bandpowers import Bins
from ..simulate.one_over_f import OneOverF
from ..simulate.patches import healpix_pointing
from ..simulate.skies import scale_alm
from . import delensing
from .cutting import dilated, sky_alm
from .grids import Grid, HealpixGrid
from .map_setup import MapSetup
from .mosaic import Mosaic
from .mosaic_simulations import binned
from .plan import Plan, splits_of

# The B modes of the template end here. Those for r end at 300; masks couple neighbours.
LMAX = 500
# Bins of the transfer function.
BINS = Bins(30, 30, 9)
# Filtered E modes reach so far beyond the footprint, in radians.
MARGIN = np.radians(2.0)
# Where the beam leaves less than this, it is not divided out.
LEAST_BEAM = 1e-3
# Pixels of less than this part of the median inverse variance count as unseen.
SHALLOW = 0.1


@dataclass(frozen=True)
class Coadd:
    """Q and U of all splits of a survey.

    Attributes
    ----------
    grid : the pixelisation
    maps : mean of Q and of U over the splits, weighted by inverse variance, in µK, (n,) each
    density : inverse variance per sr, zero where nothing was seen, (n,)
    """

    grid: Grid
    maps: tuple[np.ndarray, ...]
    density: np.ndarray

    @classmethod
    def of(cls, plan: Plan) -> Coadd:
        """Read and add the splits of a survey.

        Parameters
        ----------
        plan : of the survey

        Returns
        -------
        coadd : of its splits

        Raises
        ------
        MapError
            if a file is not the one that the plan was made from
        """
        total: list[np.ndarray] = []
        for split in splits_of(plan, range(plan.n_splits)):
            parts = [split.density, *(split.density * values for values in split.maps)]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        density, *sums = total
        # Noise of the shallowest pixels, at edges, would fill all E modes.
        least = SHALLOW * np.median(density[density > 0])
        density = np.where(density < least, np.float32(0), density)
        maps = (np.divide(s, density, out=np.zeros_like(s), where=density > 0) for s in sums)
        return cls(split.grid, tuple(maps), density)

    def noise_power(self, excess: OneOverF | None, lmax: int) -> np.ndarray:
        """N_l of E in µK², averaged over the area, with the beam.

        Parameters
        ----------
        excess : the 1/f noise, if there is any
        lmax : largest multipole

        Returns
        -------
        noise : (lmax + 1,)
        """
        seen = self.density > 0
        areas = np.broadcast_to(self.grid.areas(), seen.shape)[seen]
        white = np.average(1.0 / self.density[seen].astype(float), weights=areas)
        ratio = np.ones(lmax + 1)
        return white * (ratio if excess is None else excess.mean_ratio(np.arange(lmax + 1)))


@dataclass(frozen=True)
class KappaModes:
    """Modes of the map of κ̂ that ``survey map`` made, with what filters them.

    Attributes
    ----------
    alm : of κ̂ times its mask, in HEALPix order
    transfer : T_L, from L = 0, (lmax + 1,)
    noise : N_L, infinite below the first bin, (lmax + 1,)
    """

    alm: np.ndarray
    transfer: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, mosaic: Mosaic, table: dict[str, np.ndarray], nthreads: int = 0) -> KappaModes:
        """Analyse the map.

        Parameters
        ----------
        mosaic : the map of κ̂
        table : its extension SPECTRA
        nthreads : threads of the transforms; 0 takes all cores

        Returns
        -------
        modes : to the end of the last bin
        """
        lmax = int(table["L_MAX"][-1])
        ell = np.arange(lmax + 1)
        transfer, noise = (np.interp(ell, table["L"], table[name]) for name in ("T_L", "N_L"))
        noise[ell < table["L_MIN"][0]] = np.inf
        return cls(mosaic.modes(mosaic.kappa, lmax, nthreads), transfer, noise)

    def potential(self, kk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Filtered φ̂_LM = 2 κ̂_LM/(L(L+1) T_L) C/(C + N).

        Parameters
        ----------
        kk : C_L^κκ, from L = 0

        Returns
        -------
        philm : in HEALPix order
        filter : C/(C + N), (lmax + 1,)
        """
        weight = delensing.wiener(kk[: len(self.noise)], self.noise)
        return delensing.potential_alm(self.alm, weight / self.transfer), weight


def template(
    mosaic: Mosaic, elm: np.ndarray, philm: np.ndarray, lmax: tuple[int, int], nthreads: int = 0
) -> np.ndarray:
    """B modes that lensing makes of filtered E modes, on the pixels of a map.

    Parameters
    ----------
    mosaic : the map of κ̂, of which only the pixels enter
    elm, philm : filtered E modes in µK, and filtered potential, in HEALPix order
    lmax : largest multipoles of both
    nthreads : threads of the transforms; 0 takes all cores

    Returns
    -------
    template : Q + iU in µK, (n,)
    """
    grid = HealpixGrid(mosaic.nside, "C")
    known = np.zeros(grid.size, bool)
    known[mosaic.pixels] = True
    # An edge where the filtered E modes have not ended would turn E into B.
    known[dilated(grid, known, int(np.ceil(MARGIN / grid.step)))] = True
    pixels = np.flatnonzero(known)
    nside = mosaic.nside
    change = delensing.lensing_change(elm, lmax[0], philm, lmax[1], nside, pixels, nthreads)
    blm = delensing.e_and_b_modes(nside, pixels, change, LMAX, nthreads)[1]
    at = healpix_pointing(nside, mosaic.pixels)
    return delensing.b_polarisation_at(blm, LMAX, at, nthreads)


@dataclass(frozen=True)
class SurveyTemplate:
    """The template of a survey's lensing B modes.

    Attributes
    ----------
    plan : of the survey
    setup : instrument and theory
    folder : of the survey's products
    """

    plan: Plan
    setup: MapSetup
    folder: Path

    @property
    def warnings(self) -> list[str]:
        """Why r must not be inferred with this template, if it must not."""
        end = BINS.edges[-1]
        if self.setup.lmin_b >= end:
            return []
        return [
            f"κ̂ uses B modes at l < {end}, and the template then contains a part of them; do not "
            f"infer r with it: reconstruct with a configuration that has `reconstruction: "
            f"{{lmin_b: {end}}}`"
        ]

    def make(self, nthreads: int = 0) -> Path:
        """Write the template from the map of κ̂ and from the survey's Q and U.

        Parameters
        ----------
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it

        Returns
        -------
        path : of the template

        Raises
        ------
        ConfigError
            if there is no map of κ̂, or it is of another plan or estimator
        """
        cards: dict[str, str | int] = {"PLAN": self.plan.identity, **self.setup.cards}
        mosaic, table = Mosaic.read(self.folder / "mosaic.fits", **cards)
        theory, kappa = self.setup.theory, KappaModes.of(mosaic, table, nthreads)
        philm, kappa_filter = kappa.potential(theory.kk)
        elm, e_filter = self.e_modes(len(kappa_filter) - 1 + BINS.edges[-1], nthreads)
        lmax = (len(e_filter) - 1, len(kappa_filter) - 1)
        p = template(mosaic, elm, philm, lmax, nthreads)
        power = delensing.template_power(theory, e_filter, kappa_filter, LMAX)
        spectra = {
            "L_MIN": BINS.edges[:-1].astype(float),
            "L_MAX": BINS.edges[1:] - 1.0,
            "L": BINS.centres,
            "T_L": binned(power, BINS) / binned(theory.lensed_bb[: LMAX + 1], BINS),
            "C_L": binned(theory.lensed_bb[: LMAX + 1], BINS),
        }
        path = self.folder / "template.fits"
        columns = {"Q": p.real, "U": p.imag, "MASK": mosaic.mask, "WEIGHT": mosaic.weight}
        said: dict[str, str | float] = {"POLCCONV": "COSMO", "L_MAX": float(LMAX), **cards}
        mosaic.write(path, self.plan.frame, columns, spectra, **said)
        return path

    def e_modes(self, lmax: int, nthreads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Filtered E modes of the survey's maps, without the beam.

        Parameters
        ----------
        lmax : largest multipole, if the maps and the theory reach it
        nthreads : threads of the transforms; 0 takes all cores

        Returns
        -------
        elm : in µK, in HEALPix order
        filter : C/(C + N), from l = 0 to the largest multipole
        """
        setup, sources, coadd = self.setup, self.plan.sources, Coadd.of(self.plan)
        window_of = sources.maps[0] if sources.pixel_window else None
        lmax = min(lmax, coadd.grid.lmax, setup.theory.lmax)
        seen, geometry = coadd.density > 0, self.plan.geometry
        alm = sky_alm(coadd.grid, coadd.maps, seen, geometry, lmax, window_of, nthreads)[0]
        beam = np.maximum(setup.instrument.beam(np.arange(lmax + 1)), LEAST_BEAM)
        noise = coadd.noise_power(setup.instrument.one_over_f, lmax) / beam**2
        weight = delensing.wiener(setup.theory.lensed_ee[: lmax + 1], noise)
        return scale_alm(alm, weight / beam), weight
