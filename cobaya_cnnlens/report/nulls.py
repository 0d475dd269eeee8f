"""Null tests as a table and a picture: is nothing found where there is nothing?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .. import products
from ..calibrate.assemble import calibration_of
from ..calibrate.covariance import sample_covariance
from ..calibrate.measure import read_bandpowers, spectra_of
from ..calibrate.nulls import KIND, NULLS, check_names
from ..calibrate.response import standard_error
from ..config import Config
from ..errors import CNNLensError
from ..reconstruct.files import estimator_hash
from ..statistics import hotelling_pte, inverse_covariance

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
MEAN_FIELDS = {"swapped": "test maps", "noise": "noise alone", "b_only": "Gaussian B and noise"}
POWERS = {
    "unlensed": "unlensed test maps: <khat khat>/R^2 over N_L of the same patches lensed",
    "noise": "noise alone: <khat khat>/R^2 over N_L",
    "b_only": "Gaussian B and noise: <khat khat>/R^2 over N_L",
    "curl": "curl-deflected maps: <khat khat>/R^2 over N_L",
    "parity": "mirror-odd part of khat: its power over that of khat",
}


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
    """Power of κ̂ that needs not vanish, over the noise N_L or over that of κ̂, with its standard
    error; (n_bins,)."""

    name: str
    what: str
    L: np.ndarray
    values: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class NullTable:
    """``cross`` and ``mean_fields``: nulls; ``powers``: ratios that are none; ``response`` R_b."""

    L: np.ndarray
    response: np.ndarray
    n_skies: int
    cross: list[NullTest]
    mean_fields: list[NullTest]
    powers: list[PowerRatio]

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
    names = check_names(names)
    indices = list(range(config.nulls.skies) if indices is None else indices)
    L = spectra_of(config).bins.centres
    response = calibration_of(config, network_hash)[0].response
    cross, fields, powers = [], [], []
    for name in names:
        found = _read(config, network_hash, name, indices)
        cross.append(_cross_test(name, L, found))
        if name in MEAN_FIELDS:
            fields.append(_mean_field_test(name, L, found))
        if name in POWERS:
            powers.append(_power(config, network_hash, name, L, found, indices))
    return NullTable(L, response, len(indices), cross, fields, powers)


def _read(config, network_hash, name, indices):
    parts = []
    for index in indices:
        recipe = config.null_recipe(name, index, network_hash)
        with products.open_product(config.null_path(name, index), KIND, recipe) as product:
            parts.append({key: product.array(key) for key in product.names()})
    draws = np.mean([part.pop("mean_field") for part in parts], axis=0)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {**joined, "mean_field": draws}


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
        zero = np.zeros(len(L))
        return NullTest(name, WHAT[name], L, zero, zero, len(found["cross"]), 0.0, 0.0, 0.0, 1.0)
    return null_test(name, WHAT[name], L, found["cross"] / found["truth"].mean(0))


def _mean_field_test(name, L, found):
    relative = found["mean_field"] / found["auto"].mean(0)
    values, draws = relative[0], relative[1:]
    inverse = inverse_covariance(np.cov(draws, rowvar=False))
    chi2, by_chance = (np.einsum("...b,bc,...c", x, inverse, x) for x in (values, draws))
    errors = draws.std(0, ddof=1)
    weight = errors**-2 / np.sum(errors**-2)
    return NullTest(
        f"mean {name}" if name != "swapped" else "mean test",
        f"power of the mean khat of {MEAN_FIELDS[name]}",
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


def _power(config, network_hash, name, L, found, indices):
    auto = found["auto"]
    if name == "parity":
        ratio, error = _ratio(auto, found["even"])
        return PowerRatio(name, POWERS[name], L, ratio, error)
    response = calibration_of(config, network_hash)[0].response
    lensed = read_bandpowers(config, network_hash, "test", indices)
    noise = lensed.auto / response**2 - lensed.truth
    ratio, error = _ratio(auto / response**2, noise)
    # N_L R² = ⟨κ̂κ̂*⟩ − R²⟨κκ*⟩ moves with R, whose error is that of the validation patches.
    validation = read_bandpowers(config, network_hash, "validation")
    scatter = validation.cross - response * validation.truth
    relative = standard_error(scatter) / validation.truth.mean(0) / response
    by_response = 2.0 * ratio * lensed.truth.mean(0) / noise.mean(0) * relative
    return PowerRatio(name, POWERS[name], L, ratio, np.hypot(error, by_response))


def _ratio(above, below):
    """Ratio of means over the same patches, and its standard error."""
    ratio = above.mean(0) / below.mean(0)
    return ratio, standard_error(above - ratio * below) / np.abs(below.mean(0))


def format_nulls(table: NullTable) -> str:
    """Verdicts first, then the bins."""
    lines = [
        f"{table.n_skies} sky(s); mean of <kappa khat>/<kappa kappa> over the bins (R for lensed "
        "maps), weighted by 1/error^2;",
        f"of mean fields, power of the mean khat over <khat khat>. {len(table.tests)} tests of "
        f"{len(table.L)} bins",
        "",
        f"{'null':11s} {'patches':>7s}  {'mean':>9s}   {'+-':7s}   {'chi2':>6s}   PTE     verdict",
    ]
    for t in table.tests:
        lines.append(
            f"{t.name:11s} {t.n_samples:7d}  {t.mean:+.2e}  {t.mean_error:.1e}  {t.chi2:7.1f}   "
            f"{t.pte:.4f}  {t.verdict:21s} {t.what}"
        )
    lowest = min(t.pte for t in table.tests)
    by_chance = 1.0 - (1.0 - lowest) ** len(table.tests)
    lines.append(
        f"lowest PTE {lowest:.4f}; {len(table.tests)} independent tests of true nulls have one as "
        f"low with probability {by_chance:.2f}"
    )
    lines += _remarks(table)
    lines += ["", "<kappa khat>/<kappa kappa> in units of 1e-3", *_by_bin(table)]
    for p in table.powers:
        lines += ["", p.what]
        lines += [f"{p.L[i]:7.1f}  {p.values[i]:.4f} +- {p.errors[i]:.4f}" for i in range(len(p.L))]
    return "\n".join(lines)


def _by_bin(table):
    lines = ["      L        R" + "".join(f"{t.name:>17s}" for t in table.cross)]
    for b, L in enumerate(table.L):
        cells = (f"{1e3 * t.values[b]:+8.2f} +-{1e3 * t.errors[b]:6.2f}" for t in table.cross)
        row = "".join(f"{cell:>17s}" for cell in cells)
        lines.append(f"{L:7.1f}  {1e3 * table.response[b]:7.1f}{row}")
    return lines


def _remarks(table):
    lines = []
    for t in table.cross:
        if t.name == "training" and t.mean_error > 0:
            needed = t.n_samples * (t.mean_error / PAPER_LIMIT) ** 2
            lines.append(
                f"training: {t.mean:+.1e} +- {t.mean_error:.1e}, {t.verdict}; Caldeira et al. (2018,"
                f" eq. 14) have < {PAPER_LIMIT:.0e}, which takes {needed:,.0f} patches to see"
            )
    for p in table.powers:
        if p.name == "unlensed":
            lines.append(
                "unlensed: khat has less power than N_L, in which lensing's own part is missing: "
                "without lensing there is no B but noise, which is what khat is made of"
            )
        if p.name == "parity":
            lines.append(
                "parity: the odd part has no null of its own; it vanishes for an estimator that is "
                "equivariant under mirrors (a network averaged over symmetries, a quadratic one)"
            )
    if any(t.name != "mean test" for t in table.mean_fields):
        lines.append(
            "mean fields of noise and of B: the mask's, in maps without the power that the "
            "estimator expects; no sky has these maps, and that of test maps is what counts"
        )
    return lines


def nulls_figure(config: Config):
    """Every null by bin with its PTE, mean fields, and the power of κ̂ that needs not vanish."""
    import matplotlib.pyplot as plt

    digest = estimator_hash(config)
    made = [name for name in NULLS if config.null_path(name, 0).exists()]
    if not made:
        raise CNNLensError(
            f"{config.products / 'nulls'}: no null test has been measured; run `cnnlens nulltest`"
        )
    table = nulls_table(config, digest, made)
    figure, axes = plt.subplots(3, 3, figsize=(15, 11))
    flat = axes.ravel()
    for axis, t in zip(flat, table.cross, strict=False):
        axis.errorbar(t.L, 1e3 * t.values, 1e3 * t.errors, fmt=".", color=f"C{NULLS.index(t.name)}")
        title = f"{t.name}: {t.what.replace('kappa', 'κ').replace('khat', 'κ̂')}"
        title += f"\nχ² = {t.chi2:.1f} for {len(t.L)} bins, PTE {t.pte:.3f}"
        axis.set_title(title, size=9)
        axis.set_ylabel(r"$\langle\kappa\hat\kappa\rangle/\langle\kappa\kappa\rangle$ [$10^{-3}$]")
    for axis in flat[len(table.cross) : -2]:
        axis.set_visible(False)
    for i, t in enumerate(table.mean_fields):
        label = f"{t.name.removeprefix('mean ')}, PTE {t.pte:.3f}"
        axis = flat[-2]
        axis.errorbar(t.L + 12 * i, t.values, t.errors, fmt=".", label=label)
    flat[-2].set(ylabel=r"power of mean $\hat\kappa$ / $\langle\hat\kappa\hat\kappa\rangle$")
    flat[-2].set_title("mean fields", size=9)
    for p in table.powers:
        colour = f"C{NULLS.index(p.name)}"
        flat[-1].errorbar(p.L, p.values, p.errors, fmt=".-", color=colour, label=p.name)
    flat[-1].axhline(1, color="k", lw=0.8, ls=":")
    flat[-1].set_title("power of κ̂/R over $N_L$; of its odd part over its own", size=9)
    for axis in flat[-2:]:
        if axis.has_data():
            axis.legend(fontsize=8)
    for axis in flat:
        axis.axhline(0, color="k", lw=0.8)
        axis.set_xlabel("$L$")
    figure.tight_layout()
    return figure
