"""Null tests of a survey's own maps: what :mod:`..maps.tile_nulls` measured of the tiles, judged.

Every null is a number of each tile and bin whose mean over the tiles should vanish, or be the same
in two groups of tiles. Its covariance is the scatter of the tiles, so that Hotelling's T² says how
likely it is; neighbouring bins are taken together until tiles outnumber them fourfold.

    noise           power of E and B of D, the halves' difference, less its twin's
    gain            ½(⟨EE*⟩ of half A − that of B) over ⟨E_A E_B*⟩, less the twin's
    null            power of κ̂ of D, less the twin's
    null x kappa    κ̂ of D with κ̂ of the coadd, less the twin's
    splits          power of κ̂_A − κ̂_B over that of κ̂, less the twin's
    rotation        ⟨EB*⟩ over ⟨EE*⟩, which is twice the angle by which the polarisation is turned
    curl            ⟨ω̂κ̂*⟩ over ⟨κ̂κ̂*⟩, with ω̂ of the curl's quadratic estimator: odd under mirrors
    peaks           kurtosis of the polarisation in bands of l, less the twin's: single sources
    l_max           power of κ̂ of E and B to l_max less κ̂, over that of κ̂, less the twin's
    network         power of another network's κ̂ less κ̂, over that of κ̂, less the twin's
    kappa, E north, east, deep
                    power of κ̂, and of E, less the twin's: one half of the tiles, and the other
    L range         amplitude of C^κκ of a release above the middle of its bins less that below

Twins are of the fiducial cosmology. Ratios are compared where the sky's own power would tell; what
another cosmology does to them is of second order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..calibrate.covariance import sample_covariance
from ..calibrate.response import standard_error
from ..errors import CNNLensError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.release import Release
from ..likelihood.statistics import chi2_pte, hotelling_pte, inverse_covariance
from ..maps.map_setup import MapSetup
from ..maps.plan import Plan
from ..maps.tile_nulls import PEAKS, TileNulls
from ..table import plus_minus, text_table
from .null_tests import NullTest, null_test, verdicts_table

# Tiles to a bin, and bins at most.
TILES_EACH, MOST_BINS = 4, 6
LEAST_TILES = 4
# Depths of two halves that differ by less are one.
SAME_DEPTH = 1.02

WHAT = {
    "noise": "E and B of the splits' difference - twin",
    "gain": "half A's gain over half B's - twin",
    "null": "khat of the splits' difference - twin",
    "null x kappa": "khat of the difference x khat - twin",
    "splits": "khat of half A - khat of half B, - twin",
    "rotation": "<EB>/<EE>, twice the angle",
    "curl": "curl estimator x khat",
    "peaks": "kurtosis of the polarisation - twin",
    "l_max": "khat of l < l_max - khat, - twin",
    "network": "another network's khat - khat, - twin",
    "L range": "amplitude of C^kk, high L - low L",
}


@dataclass(frozen=True)
class SurveyNulls:
    """``tests``, and ``skipped``, a reason for each null that could not be had; ``n_tiles`` of the
    plan, ``lmax`` of the null of that name."""

    name: str
    n_tiles: int
    lmax: int
    tests: list[NullTest]
    skipped: dict[str, str]

    def table(self) -> str:
        """As text: the verdicts first, then what was left out and why, then the bins."""
        title = (
            f"{self.name}: nulls of {self.n_tiles} tiles, whose scatter is the covariance; twins "
            "are simulated tiles\nof the same noise, mask and holes; mean of the bins, weighted by "
            f"1/error^2; l_max is {self.lmax}"
        )
        skipped = [f"{name}: left out, {why}" for name, why in self.skipped.items()]
        verdicts = "\n".join([verdicts_table(self.tests), *skipped])
        bins = [
            text_table(
                {"L": (".1f", t.L), "value": (">", plus_minus(t.values, t.errors, "+.2e"))},
                f"{t.name}: {t.what}",
            )
            for t in self.tests
        ]
        return "\n\n".join([title, verdicts, *bins])


def survey_nulls(nulls: TileNulls, release: Release | None = None) -> SurveyNulls:
    """The null tests of a survey whose tiles have been measured.

    Parameters
    ----------
    nulls : what was measured of the tiles
    release : of the survey's bandpowers, for the null of the L range

    Returns
    -------
    verdicts : the tests, and the reasons for those that were skipped

    Raises
    ------
    ProductError
        if a tile is missing, or was measured otherwise
    CNNLensError
        if there are too few tiles for their scatter to be known
    """
    plan, lmax = nulls.reconstruction.plan, nulls.choices.lmax
    check_tiles(plan)
    judge = _Judge(plan, nulls.reconstruction.setup, nulls.read())
    tests, skipped = judge.of_tiles()
    more, also = judge.of_halves()
    if release is None:
        also["L range"] = "no release of the survey was given"
    else:
        more.append(range_test(release))
    return SurveyNulls(plan.name, len(plan.tiles), lmax, [*tests, *more], {**skipped, **also})


def check_tiles(plan: Plan) -> None:
    """Refuse a plan of too few tiles.

    Parameters
    ----------
    plan : the survey's plan

    Raises
    ------
    CNNLensError
    """
    if len(plan.tiles) < LEAST_TILES:
        raise CNNLensError(
            f"{plan.path}: {len(plan.tiles)} tiles; nulls are judged by the scatter of "
            f"{LEAST_TILES} or more"
        )


class _Judge:
    """What was measured of a plan's tiles, by bins of which there are enough tiles."""

    def __init__(self, plan: Plan, setup: MapSetup, found: dict[str, np.ndarray]):
        self.plan, self.found = plan, found
        bins = setup.bins
        wanted = min(max((len(plan.tiles) - 1) // TILES_EACH, 1), MOST_BINS, bins.n_bins)
        factor = -(-bins.n_bins // wanted)
        self.merge: Callable[[np.ndarray], np.ndarray] = lambda values: setup.spectra.merge(
            values, factor
        )
        self.L = bins.centres[: bins.n_bins // factor * factor].reshape(-1, factor).mean(1)
        edges = np.array(PEAKS) * setup.patch.nyquist
        self.bands = 0.5 * (edges[1:] + edges[:-1])
        if wanted < len(self.bands):
            self.bands = self.bands.mean(keepdims=True)

    def tile(self, name: str) -> np.ndarray:
        """Of the tiles, (n_tiles, n_bins)."""
        return self.merge(self.found[name][:, 0])

    def twin(self, name: str) -> np.ndarray:
        """Of their twins, the mean of each tile's."""
        return self.merge(self.found[name][:, 1:].mean(1))

    def excess(self, name: str, over: str) -> np.ndarray:
        """Over the mean of the twins' power ``over``, the tiles' less the twins'."""
        return (self.tile(name) - self.twin(name)) / self.twin(over).mean(0)

    def relative(self, name: str, over: str) -> np.ndarray:
        """Ratios of the mean powers, the tiles' less the twins'; about each the tiles' own by its
        first order, (x − r y)/ȳ, so that their scatter is that of the ratio."""
        tiles, twins = (
            (x - x.mean(0) / y.mean(0) * y + x.mean(0)) / y.mean(0)
            for x, y in ((read(name), read(over)) for read in (self.tile, self.twin))
        )
        return tiles - twins

    def gain(self) -> np.ndarray:
        of = []
        for read in (self.tile, self.twin):
            of.append(0.5 * (read("e_aa") - read("e_bb")) / read("e_ab").mean(0))
        return of[0] - of[1]

    def peaks(self) -> np.ndarray:
        values = self.found["peaks"]
        difference = values[:, 0] - values[:, 1:].mean(1)
        return difference if len(self.bands) > 1 else difference.mean(1, keepdims=True)

    def of_tiles(self) -> tuple[list[NullTest], dict[str, str]]:
        """Nulls of all tiles, and why others are not there."""
        splits: dict[str, Callable[[], np.ndarray]] = {
            "noise": lambda: self.excess("noise", "noise"),
            "gain": self.gain,
            "null": lambda: self.excess("null", "null"),
            "null x kappa": lambda: self.excess("null_cross", "kk"),
            "splits": lambda: self.relative("halves", "kk"),
        }
        every: dict[str, Callable[[], np.ndarray]] = {
            "rotation": lambda: self.tile("eb") / self.tile("ee").mean(0),
            "curl": lambda: self.tile("curl") / self.tile("kk").mean(0),
            "peaks": self.peaks,
            "l_max": lambda: self.relative("low", "kk"),
            "network": lambda: self.relative("other", "kk"),
        }
        skipped: dict[str, str] = {}
        if "null" not in self.found:
            skipped |= dict.fromkeys(splits, "the survey has one split; these take two")
            splits = {}
        if "other" not in self.found:
            skipped["network"] = "no other network was given"
            del every["network"]
        return [
            null_test(name, WHAT[name], self.bands if name == "peaks" else self.L, samples())
            for name, samples in {**splits, **every}.items()
        ], skipped

    def of_halves(self) -> tuple[list[NullTest], dict[str, str]]:
        """Nulls of one half of the tiles against the other."""
        tests: list[NullTest] = []
        skipped: dict[str, str] = {}
        for half, value in self._places().items():
            first = np.zeros(len(value), bool)
            first[np.argsort(value, kind="stable")[len(value) // 2 :]] = True
            names = [f"{what} {half}" for what in ("kappa", "E")]
            depth = np.array([tile.depth for tile in self.plan.tiles])
            if half == "deep" and depth.max() < SAME_DEPTH * depth.min():
                skipped |= dict.fromkeys(names, "all tiles have the same depth")
            elif len(value) <= len(self.L) + 3:
                skipped |= dict.fromkeys(names, "too few tiles for their scatter")
            else:
                for name, key in zip(names, ("kk", "ee"), strict=True):
                    samples = self.excess(key, key)
                    what = f"power of {'khat' if key == 'kk' else 'E'} - twin, {half} half - other"
                    tests.append(two_groups(name, what, self.L, samples[first], samples[~first]))
        return tests, skipped

    def _places(self) -> dict[str, np.ndarray]:
        """By what tiles are halved: northward, eastward of the middle, and how shallow they are
        not."""
        theta, phi = self.plan.centres.T
        middle = np.angle(np.exp(1j * phi).sum())
        east = np.angle(np.exp(1j * (phi - middle)))
        return {
            "north": -theta,
            "east": east,
            "deep": -np.array([tile.depth for tile in self.plan.tiles]),
        }


def two_groups(name: str, what: str, L: np.ndarray, a: np.ndarray, b: np.ndarray) -> NullTest:
    """Whether two groups of samples, (n_a, n_bins) and (n_b, n_bins), have one mean.

    T² = n_a n_b/(n_a + n_b) δᵀ Ŝ⁻¹ δ, with the covariance Ŝ that both share (Hotelling 1931), of
    n_a + n_b − 2 degrees of freedom.

    Parameters
    ----------
    name : name of the test
    what : what is compared, in words
    L : centres of the bins, (n_bins,)
    a : samples of the first group, (n_a, n_bins)
    b : samples of the second group, (n_b, n_bins)

    Returns
    -------
    test : difference, errors, T² and PTE

    Raises
    ------
    CNNLensError
        if there are too few samples for a covariance of the bins
    """
    n_a, n_b = len(a), len(b)
    difference = a.mean(0) - b.mean(0)
    # Samples about their group's mean, of which there are n_a + n_b − 2 free ones.
    residual = np.concatenate([a - a.mean(0), b - b.mean(0)])
    covariance = sample_covariance(residual) * ((n_a + n_b - 1.0) / (n_a + n_b - 2.0))
    scale = n_a * n_b / (n_a + n_b)
    t2 = float(scale * difference @ inverse_covariance(covariance) @ difference)
    error = np.sqrt(np.diag(covariance) / scale)
    weight = error**-2 / np.sum(error**-2)
    return NullTest(
        name,
        what,
        L,
        difference,
        error,
        n_a + n_b,
        float(weight @ difference),
        float(np.hypot(*(standard_error(group @ weight) for group in (a, b)))),
        t2,
        float(hotelling_pte(t2, n_a + n_b - 1, len(L))),
    )


def range_test(release: Release) -> NullTest:
    """Compare the amplitude of C^κκ at high and at low multipoles, by least squares.

    Parameters
    ----------
    release : the release, with its calibration

    Returns
    -------
    test : the difference of the amplitudes. C^EE is the fiducial's
    """
    likelihood = BandpowerLikelihood(release)
    kk = np.pad(release.fiducial_kk, (0, max(likelihood.lmax_kk + 1 - len(release.fiducial_kk), 0)))
    ee = np.pad(release.fiducial_ee, (0, max(likelihood.lmax_ee + 1 - len(release.fiducial_ee), 0)))
    step = 0.01
    model = likelihood.model(kk, ee)
    slope = (likelihood.model((1.0 + step) * kk, ee) - likelihood.model((1.0 - step) * kk, ee)) / (
        2.0 * step
    )
    covariance, n = likelihood.covariance, len(model)
    rows = []
    for part in (slice(0, n // 2), slice(n // 2, n)):
        weight = np.zeros(n)
        weight[part] = inverse_covariance(covariance[part, part]) @ slope[part]
        rows.append(weight / (weight @ slope))
    contrast = rows[1] - rows[0]
    value = float(contrast @ (likelihood.bandpowers - model))
    error = float(np.sqrt(contrast @ covariance @ contrast))
    chi2 = (value / error) ** 2
    return NullTest(
        "L range",
        WHAT["L range"],
        release.centres[likelihood.bins][[n // 2]],
        np.array([value]),
        np.array([error]),
        release.n_patches,
        value,
        error,
        chi2,
        float(chi2_pte(chi2, 1)),
    )
