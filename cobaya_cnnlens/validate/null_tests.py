"""Null tests judged: whether what :mod:`.nulls` measured vanishes, as Hotelling's T² says.

A null is the mean over patches of ⟨κκ̂*⟩/⟨κκ*⟩ by bin. Its covariance is the scatter of the same
patches, so that T² = n x̄ᵀ Ŝ⁻¹ x̄ follows Hotelling's distribution (Hotelling 1931). The power of a
mean field is judged by random signs of the patches instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..calibrate.covariance import sample_covariance
from ..calibrate.response import standard_error
from ..likelihood.statistics import hotelling_pte, inverse_covariance
from ..pipeline.assemble import calibration_of
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..table import plus_minus, text_table
from .nulls import check_names, read

# A null whose PTE lies below the second fails; below the first it is doubtful.
DOUBTFUL, FAILED = 0.05, 1e-3
# Part of κ̂'s power below which κ̂_odd is rounding.
ROUNDING = 1e-10

WHAT = {
    "training": "unlensed training maps x the kappa trained on",
    "unlensed": "unlensed test maps x their kappa",
    "swapped": "test maps x kappa half a sky away",
    "noise": "noise alone x kappa",
    "b_only": "Gaussian B and noise x kappa",
    "parity": "mirror-odd part of khat x kappa",
    "curl": "curl-deflected maps x the potential's kappa",
}
# Array of the product, and what it is the mean field of.
MEAN_FIELDS = {
    "swapped": ("mean_field", "mean khat of test maps"),
    "noise": ("beyond_mask", "mean khat of noise, beyond the mask's symmetries"),
    "b_only": ("beyond_mask", "mean khat of B and noise, beyond the mask's symmetries"),
}
# What needs not vanish: over N_L of the test sky's patches, lensed, and over κ̂'s own power.
OVER_NOISE = ("unlensed", "noise", "b_only", "curl")
OVER_OWN = {"parity": "odd part", "noise": "mean, noise", "b_only": "mean, b_only"}


@dataclass(frozen=True)
class NullTest:
    """What should be zero, by bin.

    Attributes
    ----------
    values, errors : (n_bins,); ⟨κκ̂*⟩/⟨κκ*⟩, R for lensed maps, and its standard error over patches;
        of a mean field the power of the mean κ̂ over ⟨κ̂κ̂*⟩, and its scatter under random signs
    n_samples : patches (pairs of them for ``swapped``)
    mean, mean_error : of the bins, weighted by 1/errors²
    chi2, pte : T² = n x̄ᵀ Ŝ⁻¹ x̄ and Hotelling's probability of more, Ŝ being the covariance of these
        same patches; of a mean field that of random signs
    """

    name: str
    what: str
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
        if not self.values.any():
            return "zero to rounding"
        if self.pte < FAILED:
            return "FAILS"
        return "doubtful" if self.pte < DOUBTFUL else "consistent with zero"


@dataclass(frozen=True)
class PowerRatio:
    """Power that needs not vanish with its standard error, (n_bins,): of κ̂/R over N_L, or of a part
    of κ̂ over that of κ̂."""

    name: str
    L: np.ndarray
    values: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class NullTable:
    """``cross`` and ``mean_fields``: nulls; ``over_noise`` and ``over_own``: ratios that are none,
    of power to N_L and to ⟨κ̂κ̂*⟩; ``response`` R_b, (n_bins,)."""

    L: np.ndarray
    response: np.ndarray
    n_skies: int
    cross: list[NullTest]
    mean_fields: list[NullTest]
    over_noise: list[PowerRatio]
    over_own: list[PowerRatio]

    @property
    def tests(self) -> list[NullTest]:
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
                "power of parts of khat over <khat khat>; no nulls: the mask makes mean fields,\n"
                "and only an equivariant estimator has no odd part",
                self.over_own,
                1.0,
                ".5f",
            ),
        )
        bins = [self._by_bin(*block) for block in blocks if block[1]]
        return "\n\n".join([title, verdicts_table(self.tests), *bins])

    def _by_bin(
        self, title: str, each: list[NullTest] | list[PowerRatio], scale: float, form: str
    ) -> str:
        columns = {
            x.name: (">", plus_minus(scale * x.values, scale * x.errors, form)) for x in each
        }
        return text_table({"L": (".1f", self.L), **columns}, title)


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
            "of what": ("", [t.what for t in tests]),
        }
    )
    return (
        f"{rows}\nlowest PTE {lowest:.4f}; {len(tests)} independent tests of true nulls have one "
        f"as low with probability {by_chance:.2f}"
    )


def nulls_table(
    run: Run,
    names: Iterable[str] | None = None,
    indices: Iterable[int] | None = None,
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
    noise = _Noise(run, calibration.response, indices)
    cross, fields, over_noise, over_own = [], [], [], []
    for name in names:
        measured = read(run, name, indices)
        cross.append(_cross_test(name, L, measured))
        if name in MEAN_FIELDS:
            fields.append(_mean_field_test(name, L, measured))
        if name in OVER_NOISE:
            over_noise.append(PowerRatio(name, L, *noise.ratio(measured["auto"])))
        if name in OVER_OWN:
            over_own.append(PowerRatio(OVER_OWN[name], L, *_over_own(name, measured)))
    return NullTable(L, calibration.response, len(indices), cross, fields, over_noise, over_own)


def null_test(name: str, what: str, L: np.ndarray, samples: np.ndarray) -> NullTest:
    """Test whether the mean of independent samples vanishes (Hotelling 1931).

    Parameters
    ----------
    name : name of the test
    what : what is correlated, in words
    L : centres of the bins, (n_bins,)
    samples : of patches or tiles, (n_samples, n_bins)

    Returns
    -------
    test : mean, errors, T² and PTE

    Raises
    ------
    CNNLensError
        if there are too few samples for a covariance of the bins
    """
    n, n_bins = samples.shape
    mean, error = samples.mean(0), standard_error(samples)
    inverse = inverse_covariance(sample_covariance(samples))
    t2 = n * mean @ inverse @ mean
    weighted = samples @ (error**-2 / np.sum(error**-2))
    return NullTest(
        name,
        what,
        L,
        mean,
        error,
        n,
        weighted.mean(),
        float(standard_error(weighted)),
        t2,
        float(hotelling_pte(t2, n, n_bins)),
    )


def _cross_test(name: str, L: np.ndarray, measured: dict[str, np.ndarray]) -> NullTest:
    if name == "parity" and (measured["auto"].mean(0) < ROUNDING * measured["even"].mean(0)).all():
        return _rounding(name, WHAT[name], L, len(measured["cross"]))
    return null_test(name, WHAT[name], L, measured["cross"] / measured["truth"].mean(0))


def _rounding(name: str, what: str, L: np.ndarray, n_samples: int) -> NullTest:
    zero = np.zeros(len(L))
    return NullTest(name, what, L, zero, zero, n_samples, 0.0, 0.0, 0.0, 1.0)


def _mean_field_test(name: str, L: np.ndarray, measured: dict[str, np.ndarray]) -> NullTest:
    array, what = MEAN_FIELDS[name]
    name = "mean " + ("test" if name == "swapped" else name)
    relative = measured[array] / measured["auto"].mean(0)
    if np.abs(relative).max() < ROUNDING:
        return _rounding(name, what, L, len(measured["auto"]))
    values, draws = relative[0], relative[1:]
    inverse = inverse_covariance(np.cov(draws, rowvar=False))
    chi2, by_chance = (np.einsum("...b,bc,...c", x, inverse, x) for x in (values, draws))
    errors = draws.std(0, ddof=1)
    weight = errors**-2 / np.sum(errors**-2)
    return NullTest(
        name,
        what,
        L,
        values,
        errors,
        len(measured["auto"]),
        float(values @ weight),
        float((draws @ weight).std(ddof=1)),
        float(chi2),
        # The draws and the maps as they are are equally likely under the null.
        float((1 + np.sum(by_chance >= chi2)) / (1 + len(draws))),
    )


def _over_own(name: str, measured: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if name == "parity":
        return _ratio(measured["auto"], measured["even"])
    relative = measured["mean_field"] / measured["auto"].mean(0)
    return relative[0], relative[1:].std(0, ddof=1)


class _Noise:
    """N_L = ⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩ of test skies, for ratios to it on the same patches."""

    def __init__(self, run: Run, response: np.ndarray, indices: list[int]):
        self.response = response
        self.lensed = Bandpowers(run).read("test", indices, run.config.nulls.patches)
        validation = Bandpowers(run).read("validation")
        scatter = validation.cross - response * validation.truth
        self.relative_error = standard_error(scatter) / validation.truth.mean(0) / response

    def ratio(self, auto: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise = self.lensed.auto / self.response**2 - self.lensed.truth
        ratio, error = _ratio(auto / self.response**2, noise)
        # N_L R² = ⟨κ̂κ̂*⟩ − R²⟨κκ*⟩ moves with R, whose error is that of the validation patches.
        by_response = 2.0 * ratio * self.lensed.truth.mean(0) / noise.mean(0) * self.relative_error
        return ratio, np.hypot(error, by_response)


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of means over the same patches, and its standard error."""
    ratio = above.mean(0) / below.mean(0)
    return ratio, standard_error(above - ratio * below) / np.abs(below.mean(0))
