"""Null tests of a survey's own maps: what :mod:`..maps.tile_nulls` measured of the tiles, judged.

Every null is a number of each tile and bin whose mean over the tiles should vanish, or be the same
in two groups of tiles; docs/survey-nulls lists them. The covariance is the scatter of the tiles, so
that Hotelling's T² says how likely the mean is. Neighbouring bins are taken together until there
are four tiles for each.

Powers are compared with those of each tile's matched simulation, a lensed sky with the survey's own
power of κ and E, and with the same beam, noise, mask and holes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import CNNLensError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.release import Release
from ..likelihood.statistics import chi2_pte, inverse_covariance
from ..maps.map_setup import MapSetup
from ..maps.plan import Plan
from ..maps.tile_nulls import PEAKS, TileNulls
from ..table import plus_minus, text_table
from .null_tests import NullTest, null_test, verdicts_table

# Nulls that take two halves of the data.
OF_SPLITS = ("noise", "gain", "null", "null x kappa", "splits")
# Tiles to a bin, and bins at most.
TILES_EACH, MOST_BINS = 4, 6
LEAST_TILES = 4
# Depths of two halves that differ by less are one.
SAME_DEPTH = 1.02

DESCRIPTIONS = {
    "noise": "E and B of the splits' difference - simulation",
    "gain": "half A's gain over half B's - simulation",
    "null": "khat of the splits' difference - simulation",
    "null x kappa": "khat of the difference x khat - simulation",
    "splits": "khat of half A - khat of half B, - simulation",
    "rotation": "<EB>/<EE>, twice the angle",
    "curl": "curl estimator x khat",
    "peaks": "kurtosis of the polarisation - simulation",
    "l_max": "khat of l < l_max - khat, - simulation",
    "network": "another network's khat - khat, - simulation",
    "L range": "amplitude of C^kk, high L - low L",
}


@dataclass(frozen=True)
class SurveyNulls:
    """``tests``, and ``skipped``, a reason for each null that could not be computed; ``n_tiles`` of
    the plan, ``lmax`` of the null of that name, and ``e_power``, what multiplies C_l^EE of the
    theory in the matched simulations at l = 0 and at the end of the bins."""

    name: str
    n_tiles: int
    lmax: int
    tests: list[NullTest]
    skipped: dict[str, str]
    e_power: tuple[float, float]

    def table(self) -> str:
        """As text: the verdicts first, then what was left out and why, then the bins."""
        title = (
            f"{self.name}: nulls of {self.n_tiles} tiles, whose scatter is the covariance; "
            "simulations are\nof the same noise, mask and holes; mean of the bins, weighted by "
            f"1/error^2; l_max is {self.lmax}\nthe simulations have the survey's power: E of the "
            f"theory times {self.e_power[0]:.3f} at l = 0, {self.e_power[1]:.3f} at the end of the "
            "bins; if no cosmology\nhas such factors, look at the beam, the gain and foregrounds"
        )
        skipped = [f"{name}: left out, {why}" for name, why in self.skipped.items()]
        verdicts = "\n".join([verdicts_table(self.tests), *skipped])
        bins = [
            text_table(
                {"L": (".1f", t.L), "value": (">", plus_minus(t.values, t.errors, "+.2e"))},
                f"{t.name}: {t.description}",
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
    measured = _TileTests(plan, nulls.reconstruction.setup, nulls.read())
    tests, skipped = measured.of_tiles()
    half_tests, half_reasons = measured.of_halves()
    tests, skipped = [*tests, *half_tests], {**skipped, **half_reasons}
    if release is None:
        skipped["L range"] = "no release of the survey was given"
    elif release.blinding:
        skipped["L range"] = "the offset of a blinded release changes it; compare chains of both"
    else:
        tests.append(range_test(release))
    return SurveyNulls(plan.name, len(plan.tiles), lmax, tests, skipped, nulls.read_e_power())


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


class _TileTests:
    """What was measured of a plan's tiles, by bins of which there are enough tiles."""

    def __init__(self, plan: Plan, setup: MapSetup, arrays: dict[str, np.ndarray]):
        self.plan, self.arrays = plan, arrays
        bins = setup.bins
        n_bins = min(max((len(plan.tiles) - 1) // TILES_EACH, 1), MOST_BINS, bins.n_bins)
        factor = -(-bins.n_bins // n_bins)
        self.merge: Callable[[np.ndarray], np.ndarray] = lambda values: setup.spectra.merge(
            values, factor
        )
        self.L = bins.centres[: bins.n_bins // factor * factor].reshape(-1, factor).mean(1)
        edges = np.array(PEAKS) * setup.patch.nyquist
        self.bands = 0.5 * (edges[1:] + edges[:-1])
        if n_bins < len(self.bands):
            self.bands = self.bands.mean(keepdims=True)

    def tile(self, name: str) -> np.ndarray:
        """Of the tiles, (n_tiles, n_bins)."""
        return self.merge(self.arrays[name][:, 0])

    def matched(self, name: str) -> np.ndarray:
        """Of their matched simulations, the mean of each tile's."""
        return self.merge(self.arrays[name][:, 1:].mean(1))

    def excess(self, name: str, over: str) -> np.ndarray:
        """The tiles' less the simulations', over the mean of the simulations' power ``over``."""
        return (self.tile(name) - self.matched(name)) / self.matched(over).mean(0)

    def relative(self, name: str, over: str) -> np.ndarray:
        """:func:`relative` of two powers."""
        return relative(
            *(np.stack([read(n) for n in (name, over)], 1) for read in (self.tile, self.matched))
        )

    def gain(self) -> np.ndarray:
        tiles, matched = (
            0.5 * (read("e_aa") - read("e_bb")) / read("e_ab").mean(0)
            for read in (self.tile, self.matched)
        )
        return tiles - matched

    def peaks(self) -> np.ndarray:
        values = self.arrays["peaks"]
        difference = values[:, 0] - values[:, 1:].mean(1)
        return difference if len(self.bands) > 1 else difference.mean(1, keepdims=True)

    def of_tiles(self) -> tuple[list[NullTest], dict[str, str]]:
        """Nulls of all tiles, and why others are not there."""
        samples: dict[str, np.ndarray] = {}
        skipped: dict[str, str] = {}
        if "null" in self.arrays:
            samples["noise"] = self.excess("noise", "noise")
            samples["gain"] = self.gain()
            samples["null"] = self.excess("null", "null")
            samples["null x kappa"] = self.excess("null_cross", "kk")
            samples["splits"] = self.relative("halves", "kk")
        else:
            skipped = dict.fromkeys(OF_SPLITS, "the survey has one split; these take two")
        samples["rotation"] = self.tile("eb") / self.tile("ee").mean(0)
        samples["curl"] = self.tile("curl") / self.tile("kk").mean(0)
        samples["peaks"] = self.peaks()
        samples["l_max"] = self.relative("low", "kk")
        if "other" in self.arrays:
            samples["network"] = self.relative("other", "kk")
        else:
            skipped["network"] = "no other network was given"
        return [
            null_test(name, DESCRIPTIONS[name], self.bands if name == "peaks" else self.L, values)
            for name, values in samples.items()
        ], skipped

    def of_halves(self) -> tuple[list[NullTest], dict[str, str]]:
        """Nulls of one half of the tiles against the other."""
        tests: list[NullTest] = []
        skipped: dict[str, str] = {}
        theta, phi = self.plan.centres.T
        depth = np.array([tile.depth for tile in self.plan.tiles])
        middle = np.angle(np.exp(1j * phi).sum())
        east = np.angle(np.exp(1j * (phi - middle)))
        for half, value in (("north", -theta), ("east", east), ("deep", -depth)):
            first = np.zeros(len(value), bool)
            first[np.argsort(value, kind="stable")[len(value) // 2 :]] = True
            names = [f"kappa {half}", f"E {half}"]
            if half == "deep" and depth.max() < SAME_DEPTH * depth.min():
                skipped |= dict.fromkeys(names, "all tiles have the same depth")
            elif len(value) <= len(self.L) + 3:
                skipped |= dict.fromkeys(names, "too few tiles for their scatter")
            else:
                for name, key, field in zip(names, ("kk", "ee"), ("khat", "E"), strict=True):
                    each = self.excess(key, key)
                    description = f"power of {field} - simulation, {half} half - other"
                    tests.append(null_test(name, description, self.L, each[first], each[~first]))
        return tests, skipped


def relative(tiles: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """Ratios of mean powers, the tiles' less the simulations'.

    About each ratio r = x̄/ȳ the tiles' own are taken to first order, r + (x − r y)/ȳ, so that their
    scatter is that of the ratio.

    Parameters
    ----------
    tiles, matched : powers x and y of the tiles, and of their simulations, (n_tiles, 2, n_bins)

    Returns
    -------
    differences : (n_tiles, n_bins)
    """
    ratios = []
    for powers in (tiles, matched):
        x, y = powers[:, 0], powers[:, 1]
        ratios.append((x - x.mean(0) / y.mean(0) * y + x.mean(0)) / y.mean(0))
    return ratios[0] - ratios[1]


def range_test(release: Release) -> NullTest:
    """Compare the amplitude of C^κκ at high and at low multipoles, by least squares.

    Parameters
    ----------
    release : the release, with its calibration

    Returns
    -------
    test : the difference of the amplitudes; C^EE is the fiducial's
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
    weights = []
    for half in (slice(0, n // 2), slice(n // 2, n)):
        weight = np.zeros(n)
        weight[half] = inverse_covariance(covariance[half, half]) @ slope[half]
        weights.append(weight / (weight @ slope))
    contrast = weights[1] - weights[0]
    value = contrast @ (likelihood.bandpowers - model)
    error = np.sqrt(contrast @ covariance @ contrast)
    chi2 = (value / error) ** 2
    L = release.centres[likelihood.bins][[n // 2]]
    test = "L range", DESCRIPTIONS["L range"], L, np.array([value]), np.array([error])
    numbers = map(float, (value, error, chi2, chi2_pte(chi2, 1)))
    return NullTest(*test, release.n_patches, *numbers)
