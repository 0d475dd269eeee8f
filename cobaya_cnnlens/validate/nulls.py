"""Null tests as a table: is nothing found where there is nothing?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .. import products
from ..calibrate.assemble import calibration_of
from ..calibrate.covariance import sample_covariance
from ..calibrate.measure import read_bandpowers, spectra_of
from ..calibrate.response import standard_error
from ..likelihood.statistics import hotelling_pte, inverse_covariance
from ..pipeline.config import Config
from .null_inputs import KIND, check_names

# A null whose PTE lies below the second fails; below the first it is doubtful.
DOUBTFUL, FAILED = 0.05, 1e-3
# Part of κ̂'s power below which κ̂_odd is rounding.
ROUNDING = 1e-10
# Caldeira et al. 2018, eq. 14: ⟨κκ̂*⟩/⟨κκ*⟩ of unlensed training maps.
PAPER_LIMIT = 1e-4

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


def nulls_table(
    config: Config,
    network_hash: str,
    names: Iterable[str] | None = None,
    indices: Iterable[int] | None = None,
) -> NullTable:
    """The null tests that have been measured; R and N_L from validation and test bandpowers.

    Parameters
    ----------
    names, indices : which nulls and skies; all of ``nulls.skies`` by default

    Raises
    ------
    products.ProductError
        if a null or the bandpowers have not been measured, or were with another network or
        configuration
    CNNLensError
        if there are no more patches than bins
    """
    names = check_names(config, names)
    indices = list(range(config.nulls.skies) if indices is None else indices)
    L = spectra_of(config).bins.centres
    calibration, _ = calibration_of(config, network_hash)
    noise = _Noise(config, network_hash, calibration.response, indices)
    cross, fields, over_noise, over_own = [], [], [], []
    for name in names:
        found = _read(config, network_hash, name, indices)
        cross.append(_cross_test(name, L, found))
        if name in MEAN_FIELDS:
            fields.append(_mean_field_test(name, L, found))
        if name in OVER_NOISE:
            over_noise.append(PowerRatio(name, L, *noise.ratio(found["auto"])))
        if name in OVER_OWN:
            over_own.append(PowerRatio(OVER_OWN[name], L, *_over_own(name, found)))
    return NullTable(L, calibration.response, len(indices), cross, fields, over_noise, over_own)


def _read(config, network_hash, name, indices):
    parts = []
    for index in indices:
        recipe = config.null_recipe(name, index, network_hash)
        with products.open_product(config.null_path(name, index), KIND, recipe) as product:
            parts.append({key: product.array(key) for key in product.names()})
    skies = {"mean_field", "beyond_mask"}
    return {
        key: (np.mean if key in skies else np.concatenate)([part[key] for part in parts], axis=0)
        for key in parts[0]
    }


def null_test(name: str, what: str, L: np.ndarray, samples: np.ndarray) -> NullTest:
    """Whether the mean of independent samples (n_samples, n_bins) vanishes (Hotelling 1931).

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


def _cross_test(name, L, found):
    if name == "parity" and (found["auto"].mean(0) < ROUNDING * found["even"].mean(0)).all():
        return _rounding(name, WHAT[name], L, len(found["cross"]))
    return null_test(name, WHAT[name], L, found["cross"] / found["truth"].mean(0))


def _rounding(name, what, L, n_samples):
    zero = np.zeros(len(L))
    return NullTest(name, what, L, zero, zero, n_samples, 0.0, 0.0, 0.0, 1.0)


def _mean_field_test(name, L, found):
    array, what = MEAN_FIELDS[name]
    name = "mean " + ("test" if name == "swapped" else name)
    relative = found[array] / found["auto"].mean(0)
    if np.abs(relative).max() < ROUNDING:
        return _rounding(name, what, L, len(found["auto"]))
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
        len(found["auto"]),
        float(values @ weight),
        float((draws @ weight).std(ddof=1)),
        float(chi2),
        # The draws and the maps as they are are equally likely under the null.
        float((1 + np.sum(by_chance >= chi2)) / (1 + len(draws))),
    )


def _over_own(name, found):
    if name == "parity":
        return _ratio(found["auto"], found["even"])
    relative = found["mean_field"] / found["auto"].mean(0)
    return relative[0], relative[1:].std(0, ddof=1)


class _Noise:
    """N_L = ⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩ of test skies, for ratios to it on the same patches."""

    def __init__(self, config, network_hash, response, indices):
        self.response = response
        self.lensed = read_bandpowers(config, network_hash, "test", indices)
        validation = read_bandpowers(config, network_hash, "validation")
        scatter = validation.cross - response * validation.truth
        self.relative_error = standard_error(scatter) / validation.truth.mean(0) / response

    def ratio(self, auto):
        noise = self.lensed.auto / self.response**2 - self.lensed.truth
        ratio, error = _ratio(auto / self.response**2, noise)
        # N_L R² = ⟨κ̂κ̂*⟩ − R²⟨κκ*⟩ moves with R, whose error is that of the validation patches.
        by_response = 2.0 * ratio * self.lensed.truth.mean(0) / noise.mean(0) * self.relative_error
        return ratio, np.hypot(error, by_response)


def _ratio(above, below):
    """Ratio of means over the same patches, and its standard error."""
    ratio = above.mean(0) / below.mean(0)
    return ratio, standard_error(above - ratio * below) / np.abs(below.mean(0))


def format_nulls(table: NullTable) -> str:
    """Verdicts first, then the bins."""
    skies = "1 sky" if table.n_skies == 1 else f"{table.n_skies} skies"
    lines = [
        f"{skies}, {len(table.L)} bins; mean of the bins, weighted by 1/error^2, of <kappa khat>/"
        "<kappa kappa> (R for lensed maps);",
        "of mean fields, of the mean map's power over <khat khat>",
        "",
        f"{'null':11s} {'patches':>7s}  {'mean':>9s}  {'+-':7s}     {'chi2':>4s}   PTE     verdict",
    ]
    for t in table.tests:
        lines.append(
            f"{t.name:11s} {t.n_samples:7d}  {t.mean:+.2e}  {t.mean_error:.1e}  {t.chi2:7.1f}   "
            f"{t.pte:.4f}  {t.verdict:21s} {t.what}"
        )
    lowest = min(t.pte for t in table.tests)
    by_chance = 1.0 - (1.0 - lowest) ** len(table.tests)
    lines += [
        f"lowest PTE {lowest:.4f}; {len(table.tests)} independent tests of true nulls have one as "
        f"low with probability {by_chance:.2f}",
        *_remarks(table),
    ]
    cross = [PowerRatio(t.name, t.L, 1e3 * t.values, 1e3 * t.errors) for t in table.cross]
    lines += _block("<kappa khat>/<kappa kappa> in units of 1e-3", cross, "+.2f")
    fields = [PowerRatio(t.name, t.L, 1e3 * t.values, 1e3 * t.errors) for t in table.mean_fields]
    lines += _block("power of mean khat over <khat khat> in units of 1e-3", fields, "+.2f")
    lines += _block("<khat khat>/R^2 over N_L of the test sky's patches", table.over_noise, ".4f")
    lines += _block("power of parts of khat over <khat khat>", table.over_own, ".5f")
    return "\n".join(lines)


def _block(title, columns, form):
    if not columns:
        return []
    lines = ["", title, "      L" + "".join(f"{c.name:>20s}" for c in columns)]
    for b, L in enumerate(columns[0].L):
        cells = (f"{c.values[b]:{form}} +- {c.errors[b]:{form.lstrip('+')}}" for c in columns)
        lines.append(f"{L:7.1f}" + "".join(f"{cell:>20s}" for cell in cells))
    return lines


def _remarks(table):
    lines = []
    for t in table.cross:
        if t.name == "training" and t.mean_error > 0:
            needed = t.n_samples * (t.mean_error / PAPER_LIMIT) ** 2
            lines.append(
                f"training: {t.mean:+.1e} +- {t.mean_error:.1e}, {t.verdict}; Caldeira et al. "
                f"(2018, eq. 14): below {PAPER_LIMIT:.0e},\n  an error that takes "
                f"{needed:,.0f} patches"
            )
    for p in table.over_noise:
        if p.name == "unlensed":
            low, high = (
                f"{p.values[b]:.2f} +- {p.errors[b]:.2f} (L = {p.L[b]:.0f})"
                for b in (np.argmin(p.values), np.argmax(p.values))
            )
            lines.append(
                f"unlensed: power {low} to {high} of N_L (their Fig. 11: within a few per cent)"
            )
            if p.values.mean() < 1:
                lines.append(
                    "  less is expected: B of unlensed maps is noise alone, that of lensed ones is "
                    "part of what khat's noise is made of"
                )
    if any(p.name == "odd part" for p in table.over_own):
        lines.append(
            "parity: the power of the odd part is no null; an equivariant estimator's is 0"
        )
    if any(p.name.startswith("mean") for p in table.over_own):
        lines.append(
            "mean fields of noise and of B are no nulls: the mask makes them where the power is "
            "not what the estimator expects;\n  what is not symmetric in them as the mask is, is "
            "one for an equivariant estimator"
        )
    return lines
