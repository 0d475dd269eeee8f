"""Null tests judged: whether the mean of what was measured vanishes, as Hotelling's T² says.

A null of a configuration (:mod:`.nulls`) is the mean over patches of ⟨κκ̂*⟩/⟨κκ*⟩ by bin, a null of
a survey (:mod:`.survey_nulls`) a mean over tiles. The covariance is the scatter of the same patches
or tiles, so that T² follows Hotelling's distribution (Hotelling 1931). The power of a mean field is
judged by random signs of the patches instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..calibrate.covariance import sample_covariance
from ..calibrate.response import PatchBandpowers, standard_error
from ..likelihood.statistics import hotelling_pte, inverse_covariance
from ..pipeline.assemble import calibration_of
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..table import plus_minus, text_table
from .nulls import check_names, read

# A null whose PTE lies below the second fails; below the first it is doubtful.
DOUBTFUL, FAILED = 0.05, 1e-3
# Fraction of κ̂'s power below which κ̂_odd is rounding.
ROUNDING = 1e-10

DESCRIPTIONS = {
    "training": "unlensed training maps x the kappa trained on",
    "unlensed": "unlensed test maps x their kappa",
    "swapped": "test maps x kappa half a sky away",
    "noise": "noise alone x kappa",
    "b_only": "Gaussian B and noise x kappa",
    "parity": "mirror-odd part of khat x kappa",
    "curl": "curl-deflected maps x the potential's kappa",
}
# By null: the test of a mean field, its array in the product, and what it is the mean field of.
MEAN_FIELDS = {
    "swapped": ("mean test", "mean_field", "mean khat of test maps"),
    "noise": ("mean noise", "beyond_mask", "mean khat of noise, beyond the mask's symmetries"),
    "b_only": (
        "mean b_only",
        "beyond_mask",
        "mean khat of B and noise, beyond the mask's symmetries",
    ),
}
# What needs not vanish: over N_L of the test sky's patches, lensed, and over κ̂'s own power.
OVER_NOISE = ("unlensed", "noise", "b_only", "curl")
OVER_OWN = {"parity": "odd part", "noise": "mean, noise", "b_only": "mean, b_only"}


@dataclass(frozen=True)
class NullTest:
    """What should be zero, by bin.

    Attributes
    ----------
    name, description : of the test, and what it compares
    L : centres of the bins, (n_bins,)
    values, errors : (n_bins,); ⟨κκ̂*⟩/⟨κκ*⟩, R for lensed maps, and its standard error over patches;
        of a mean field the power of the mean κ̂ over ⟨κ̂κ̂*⟩, and its scatter under random signs
    n_samples : patches (pairs of them for ``swapped``) or tiles
    mean, mean_error : of the bins, weighted by 1/errors²
    chi2, pte : T² and Hotelling's probability of more; of a mean field that of random signs
    """

    name: str
    description: str
    L: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    n_samples: int
    mean: float
    mean_error: float
    chi2: float
    pte: float

    @property
    def verdict(self) -> str:
        """The PTE in words."""
        if not self.values.any():
            return "zero to rounding"
        if self.pte < FAILED:
            return "FAILS"
        return "doubtful" if self.pte < DOUBTFUL else "consistent with zero"


def null_test(
    name: str,
    description: str,
    L: np.ndarray,
    samples: np.ndarray,
    others: np.ndarray | None = None,
) -> NullTest:
    """Test whether the mean of samples vanishes, or two groups of samples have one mean.

    T² = n δᵀ Ŝ⁻¹ δ (Hotelling 1931), with n the number of samples, or n_a n_b/(n_a + n_b) of two
    groups, δ the mean or the difference of the means, and Ŝ the covariance about each group's mean.

    Parameters
    ----------
    name : name of the test
    description : what is compared, in words
    L : centres of the bins, (n_bins,)
    samples : of independent patches or tiles, (n_samples, n_bins)
    others : samples of a second group, (n_others, n_bins), whose mean should be that of the first

    Returns
    -------
    test : mean or difference, errors, T² and PTE

    Raises
    ------
    CNNLensError
        if there are too few samples for a covariance of the bins
    """
    groups = [samples] if others is None else [samples, others]
    residual = np.concatenate([group - group.mean(0) for group in groups])
    n, dof = len(residual), len(residual) - len(groups)
    covariance = sample_covariance(residual) * ((n - 1.0) / dof)
    scale = 1.0 / sum(1.0 / len(group) for group in groups)
    mean = samples.mean(0) - (0.0 if others is None else others.mean(0))
    t2 = float(scale * mean @ inverse_covariance(covariance) @ mean)
    error = np.sqrt(np.diag(covariance) / scale)
    weight = error**-2 / np.sum(error**-2)
    mean_error = np.linalg.norm([standard_error(group @ weight) for group in groups])
    pte = float(hotelling_pte(t2, dof + 1, len(L)))
    return NullTest(
        name, description, L, mean, error, n, float(mean @ weight), float(mean_error), t2, pte
    )


@dataclass(frozen=True)
class PowerRatio:
    """Power that needs not vanish with its standard error, (n_bins,): of κ̂/R over N_L, or of a
    component of κ̂ over that of κ̂."""

    name: str
    L: np.ndarray
    values: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class NullTable:
    """``cross`` and ``mean_fields``: nulls; ``over_noise`` and ``over_own``: ratios that are none,
    of power to N_L and to ⟨κ̂κ̂*⟩."""

    L: np.ndarray
    n_skies: int
    cross: list[NullTest]
    mean_fields: list[NullTest]
    over_noise: list[PowerRatio]
    over_own: list[PowerRatio]

    @property
    def tests(self) -> list[NullTest]:
        """All nulls."""
        return [*self.cross, *self.mean_fields]

    def table(self) -> str:
        """As text: the verdicts first, then the bins."""
        skies = "1 sky" if self.n_skies == 1 else f"{self.n_skies} skies"
        title = (
            f"{skies}, {len(self.L)} bins; the mean is that of the bins, weighted by 1/error^2: of "
            "<kappa khat>/\n<kappa kappa>, which is R for lensed maps; of mean fields of the mean "
            "map's power over <khat khat>"
        )
        blocks = (
            ("<kappa khat>/<kappa kappa> in units of 1e-3", self.cross, 1e3, "+.2f"),
            ("power of mean khat over <khat khat> in units of 1e-3", self.mean_fields, 1e3, "+.2f"),
            ("<khat khat>/R^2 over N_L of the test sky's patches", self.over_noise, 1.0, ".4f"),
            (
                "power of components of khat over <khat khat>; no nulls: the mask makes mean\n"
                "fields, and only an equivariant estimator has no odd part",
                self.over_own,
                1.0,
                ".5f",
            ),
        )
        tables = [title, verdicts_table(self.tests)]
        for heading, each, scale, form in blocks:
            columns = {
                x.name: (">", plus_minus(scale * x.values, scale * x.errors, form)) for x in each
            }
            if each:
                tables.append(text_table({"L": (".1f", self.L), **columns}, heading))
        return "\n\n".join(tables)


def verdicts_table(tests: list[NullTest]) -> str:
    """A line for each null test, and how likely the lowest PTE of them is.

    Parameters
    ----------
    tests : the null tests

    Returns
    -------
    table : as text
    """
    lowest = min(t.pte for t in tests)
    by_chance = 1.0 - (1.0 - lowest) ** len(tests)
    rows = text_table(
        {
            "null": ("", [t.name for t in tests]),
            "patches": ("d", [t.n_samples for t in tests]),
            "mean": (
                ">",
                plus_minus([t.mean for t in tests], [t.mean_error for t in tests], "+.1e"),
            ),
            "chi2": (".1f", [t.chi2 for t in tests]),
            "PTE": (".4f", [t.pte for t in tests]),
            "verdict": ("", [t.verdict for t in tests]),
            "of what": ("", [t.description for t in tests]),
        }
    )
    return (
        f"{rows}\nlowest PTE {lowest:.4f}; {len(tests)} independent tests of true nulls have one "
        f"as low with probability {by_chance:.2f}"
    )


def nulls_table(
    run: Run, names: Iterable[str] | None = None, indices: Iterable[int] | None = None
) -> NullTable:
    """The null tests that have been measured; R and N_L from validation and test bandpowers.

    Parameters
    ----------
    run : a configuration whose null tests were measured
    names, indices : which nulls and skies; all of ``nulls.skies`` by default

    Returns
    -------
    table : verdicts, bandpowers and mean fields

    Raises
    ------
    products.ProductError
        if a null or the bandpowers have not been measured, or were with another network or
        configuration
    CNNLensError
        if there are no more patches than bins
    """
    names = check_names(run, names)
    indices = list(range(run.config.nulls.skies) if indices is None else indices)
    L = run.bandpowers.bins.centres
    calibration, _ = calibration_of(run)
    lensed = Bandpowers(run).read("test", indices, run.config.nulls.patches)
    cross, fields, over_noise, over_own = [], [], [], []
    for name in names:
        measured = read(run, name, indices)
        cross.append(_cross_test(name, L, measured))
        if name in MEAN_FIELDS:
            fields.append(_mean_field_test(name, L, measured))
        if name in OVER_NOISE:
            ratio = _over_noise(run, measured["auto"], lensed, calibration.response)
            over_noise.append(PowerRatio(name, L, *ratio))
        if name in OVER_OWN:
            over_own.append(PowerRatio(OVER_OWN[name], L, *_over_own(name, measured)))
    return NullTable(L, len(indices), cross, fields, over_noise, over_own)


def _cross_test(name: str, L: np.ndarray, measured: dict[str, np.ndarray]) -> NullTest:
    description = DESCRIPTIONS[name]
    if name == "parity" and (measured["auto"].mean(0) < ROUNDING * measured["even"].mean(0)).all():
        return _rounding(name, description, L, len(measured["cross"]))
    return null_test(name, description, L, measured["cross"] / measured["truth"].mean(0))


def _rounding(name: str, description: str, L: np.ndarray, n_samples: int) -> NullTest:
    zero = np.zeros(len(L))
    return NullTest(name, description, L, zero, zero, n_samples, 0.0, 0.0, 0.0, 1.0)


def _mean_field_test(null: str, L: np.ndarray, measured: dict[str, np.ndarray]) -> NullTest:
    name, array, description = MEAN_FIELDS[null]
    relative, n = measured[array] / measured["auto"].mean(0), len(measured["auto"])
    if np.abs(relative).max() < ROUNDING:
        return _rounding(name, description, L, n)
    values, draws = relative[0], relative[1:]
    inverse = inverse_covariance(np.cov(draws, rowvar=False))
    chi2, by_chance = (np.einsum("...b,bc,...c", x, inverse, x) for x in (values, draws))
    # The draws and the maps as they are are equally likely under the null.
    pte = float((1 + np.sum(by_chance >= chi2)) / (1 + len(draws)))
    errors = draws.std(0, ddof=1)
    weight = errors**-2 / np.sum(errors**-2)
    mean, mean_error = float(values @ weight), float((draws @ weight).std(ddof=1))
    return NullTest(name, description, L, values, errors, n, mean, mean_error, float(chi2), pte)


def _over_own(name: str, measured: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if name == "parity":
        return _ratio(measured["auto"], measured["even"])
    relative = measured["mean_field"] / measured["auto"].mean(0)
    return relative[0], relative[1:].std(0, ddof=1)


def _over_noise(
    run: Run, auto: np.ndarray, lensed: PatchBandpowers, response: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Power over N_L = ⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩ of the same test patches, and its standard error."""
    noise = lensed.auto / response**2 - lensed.truth
    ratio, error = _ratio(auto / response**2, noise)
    # N_L R² = ⟨κ̂κ̂*⟩ − R²⟨κκ*⟩ moves with R, whose error is that of the validation patches.
    validation = Bandpowers(run).read("validation")
    scatter = validation.cross - response * validation.truth
    relative_error = standard_error(scatter) / validation.truth.mean(0) / response
    by_response = 2.0 * ratio * lensed.truth.mean(0) / noise.mean(0) * relative_error
    return ratio, np.hypot(error, by_response)


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of means over the same patches, and its standard error."""
    ratio = above.mean(0) / below.mean(0)
    return ratio, standard_error(above - ratio * below) / np.abs(below.mean(0))
