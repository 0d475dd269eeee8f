"""Tables as text for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..likelihood.combined import calibration_digest
from ..likelihood.document import NUISANCES
from ..likelihood.release import Release

if TYPE_CHECKING:
    from ..calibrate.nuisances import NuisanceCheck
    from ..pipeline.emulation import Errors
    from ..pipeline.run import Run
    from ..validate.coverage import CoverageTable
    from ..validate.forecast import Forecast
    from ..validate.foregrounds import Bias, ForegroundTable
    from ..validate.noise import Comparison, NoiseTable, ResidualTable
    from ..validate.nulls import NullTable, NullTest, PowerRatio
    from ..validate.omch2 import Recovery
    from ..validate.points import PointsTable
    from ..validate.predictive import Predictive
    from ..validate.primary import JointCovariance
    from ..validate.survey_nulls import SurveyNulls


def describe_release(release: Release) -> str:
    """A release for human eyes: head, bandpowers with errors, provenance."""
    sigma = np.sqrt(np.diag(release.covariance))
    noise_mc = np.sqrt(np.diag(release.noise_covariance))
    lines = [release.name, release.description, ""]
    lines.append(f"patches in the survey     {release.n_patches}")
    lines.append(f"simulations (covariance)  {release.n_sim}")
    lines.append(f"digest of the calibration  {calibration_digest(release)}")
    lines += _mapping("instrument", release.instrument)
    if release.truth is not None:
        lines += _mapping("truth of the mock", release.truth)
    lines += _mapping("theory", release.theory)
    lines += _mapping("provenance", release.provenance)
    lines += [
        f"bands of the derivatives: {len(release.kk_edges) - 1} in C^kk "
        f"(L {release.kk_edges[0]}-{release.kk_edges[-1]}), {len(release.ee_edges) - 1} in "
        f"unlensed C^EE (l {release.ee_edges[0]}-{release.ee_edges[-1]})",
        "",
        "bandpowers in units of 1e-9",
        "       L        d_b      sigma   N_b (fid)     MC(N)   fiducial        R",
    ]
    fiducial = release.windows @ release.fiducial_kk[: release.windows.shape[1]]
    for b in range(release.n_bins):
        lines.append(
            f"{release.edges[b]:5d}-{release.edges[b + 1]:<5d}"
            f"{1e9 * release.bandpowers[b]:9.3f}  {1e9 * sigma[b]:9.3f}  "
            f"{1e9 * release.noise[b]:9.3f}  {1e9 * noise_mc[b]:8.3f}  "
            f"{1e9 * fiducial[b]:9.3f}  {release.response[b]:7.4f}"
        )
    steps = ", ".join(f"{n} {s:g}" for n, s in zip(NUISANCES, release.nuisance_steps, strict=True))
    lines += ["", f"shift of d_b over the fiducial, the instrument off by {steps}"]
    lines.append("       L   " + "".join(f"{name:>9s}" for name in NUISANCES))
    shifts = release.nuisance_first * release.nuisance_steps
    shifts = (shifts + release.nuisance_second * release.nuisance_steps**2) / fiducial[:, None]
    for b, row in enumerate(shifts):
        cells = "".join(f"{x:+9.4f}" for x in row)
        lines.append(f"{release.edges[b]:5d}-{release.edges[b + 1]:<5d}{cells}")
    return "\n".join(lines)


def _mapping(title: str, content: dict, indent: int = 0) -> list[str]:
    pad = " " * indent
    lines = [f"{pad}{title}"]
    width = max((len(key) for key, x in content.items() if not isinstance(x, dict)), default=0)
    for key, value in content.items():
        if isinstance(value, dict):
            lines += _mapping(key, value, indent + 2)
        else:
            lines.append(f"{pad}  {key:{max(width + 2, 24)}s}{value}")
    return lines


def format_noise(table: NoiseTable) -> str:
    """Reconstruction noise, one line per bin."""
    lines = [
        "      L       R  +-       N_L       N_L/N0(EB)   +-    N_L/N0(iter)  +-    sigma(d)/C  rho"
        "    power"
    ]
    for b, L in enumerate(table.L):
        eb, iterated = table.n0_eb[b], table.n0_iterated[b]
        lines.append(
            f"{L:7.1f}  {table.response[b]:.3f} {table.response_error[b]:.3f}  "
            f"{table.noise[b]:.3e}    {table.noise[b] / eb:6.3f} {table.noise_error[b] / eb:6.3f}"
            f"      {table.noise[b] / iterated:6.3f} {table.noise_error[b] / iterated:6.3f}"
            f"      {table.relative_error[b]:6.3f}   {table.correlation[b]:.3f}"
            f"  {table.power[b]:.3f}"
        )
    return "\n".join(lines)


def format_residual(table: ResidualTable) -> str:
    """Debiased bandpowers minus the truth of the same patches, one line per bin."""
    lines = ["      L      C (true)   (d-C)/C  +-      (d-C)/+-"]
    for L, truth, residual, error in zip(
        table.L, table.truth, table.residual, table.error, strict=True
    ):
        lines.append(
            f"{L:7.1f}  {truth:.4e}  {residual / truth:+.4f}  {error / truth:.4f}  "
            f"{residual / error:+.2f}"
        )
    lines.append(
        f"{table.n_patches} patches: chi2 = {table.chi2:.1f} for {len(table.L)} bins, "
        f"PTE {table.pte:.3f}"
    )
    return "\n".join(lines)


def format_comparison(table: Comparison) -> str:
    """N_L of several configurations side by side."""
    width = max(16, *(len(name) + 2 for name in table.names))

    def rows(cells: Callable[[int], Iterable[str]]) -> list[str]:
        """The names, and a line for each bin b of ``cells(b)``."""
        entries = [("L", table.names), *((f"{L:.1f}", cells(b)) for b, L in enumerate(table.L))]
        return [" ".join([f"{L:>7s}", *(f"{c:>{width}s}" for c in line)]) for L, line in entries]

    def block(title: str, values: np.ndarray, errors: np.ndarray) -> list[str]:
        pairs = list(zip(values, errors, strict=True))
        return [title, *rows(lambda b: [f"{v[b]:.3f} +- {e[b]:.3f}" for v, e in pairs])]

    lines = block("N_L over the analytic N0 of the iterated EB", table.excess, table.excess_error)
    errors = "paired errors" if table.paired.all() else "errors of unlike patches unpaired"
    relative = block(
        f"N_L over that of {table.names[0]}, {errors}", table.relative, table.relative_error
    )
    lines += ["", *relative, "", "power of khat over that of kappa, before calibration"]
    lines += rows(lambda b: [f"{p[b]:.3f}" for p in table.power])
    if table.scatter is not None:
        lines += ["", "scatter of <khat khat> of one patch between the networks (eq. 18), in %"]
        lines += [f"{L:7.1f}  {100 * s:6.2f}" for L, s in zip(table.L, table.scatter, strict=True)]
        lines.append(f"   mean  {100 * table.scatter.mean():6.2f}")
    return "\n".join(lines)


def format_predictive(check: Predictive) -> str:
    """Posterior-predictive p, and χ² and PTE at the best fit."""
    at = ", ".join(f"{name} = {value:.6g}" for name, value in check.best.items())
    return "\n".join(
        [
            f"{len(check.chi2)} samples of the posterior, {len(check.data)} bins",
            f"chi2(d, mu)               {check.chi2.mean():.2f} on average",
            f"posterior-predictive p    {check.p:.4f}",
            f"best sample               {at}",
            f"chi2, PTE there           {check.best_chi2:.2f}, {check.best_pte:.4f} "
            "(no parameter counted as fitted)",
            f"chi2 less that on average {check.chi2.mean() - check.best_chi2:.2f} "
            "(about the number of parameters that the data fix)",
            f"largest difference from the chi2 in the chain  {check.difference:.2g}",
        ]
    )


def format_joint(joint: JointCovariance, true: JointCovariance, largest: int = 8) -> str:
    """Correlations of lensing with the primary CMB: the largest, and of neighbouring bins.

    Parameters
    ----------
    joint, true : with the debiased bandpowers, and with those of the true κ
    largest : how many of each pair of blocks
    """
    lines = [f"{joint.n_sim} patches; correlation coefficients with their Monte-Carlo errors"]
    edges = joint.edges
    for other in joint.blocks[1:]:
        r = joint.block(joint.correlation, "kk", other)
        error = joint.block(joint.correlation_error, "kk", other)
        of_true = true.block(true.correlation, "kk", other)
        # Σ z² of all pairs, each z of unit variance if there is no correlation.
        z2 = (r.size, float(np.sum(r**2) * (joint.n_sim - 1.0)))
        lines += [
            "",
            f"kk x {other}: mean {r.mean():+.4f}, sum of (r/error)^2 {z2[1]:.0f} for {z2[0]} pairs",
            f"  L of kk      l of {other}        r       +-    with the true kappa",
        ]
        order = np.argsort(-np.abs(r), axis=None)[:largest]
        for i, j in zip(*np.unravel_index(order, r.shape), strict=True):
            lines.append(
                f"  {edges[i]:4d}-{edges[i + 1]:<5d}  {edges[j]:4d}-{edges[j + 1]:<5d}  "
                f"{r[i, j]:+.3f}  {error[i, j]:.3f}    {of_true[i, j]:+.3f}"
            )
    return "\n".join(lines)


def format_forecasts(forecasts: dict[str, Forecast]) -> str:
    """Fisher errors of ω_c from one patch, one line per configuration."""
    width = max(13, *(len(name) for name in forecasts))
    lines = [
        f"{'one patch':{width}s}  sigma(omch2)  +-       with fixed debias  +-       "
        "part of a change found with fixed debias"
    ]
    for name, f in forecasts.items():
        lines.append(
            f"{name:{width}s}  {f.sigma:.5f}       {f.sigma_error:.5f}  {f.sigma_fixed:.5f}"
            f"            {f.sigma_fixed_error:.5f}  {f.recovered:.3f} +- {f.recovered_error:.3f}"
        )
    return "\n".join(lines)


def format_nuisance_checks(run: Run, checks: list[NuisanceCheck]) -> str:
    """Shifts of the bandpowers that a changed instrument makes, and those predicted."""
    lines = []
    for check in checks:
        lines += [
            f"{check.change} {check.size:+g}: shift of d_b in units of 1e-9",
            "      L      found  predicted      +-   difference/+-",
        ]
        pulls = (check.found - check.predicted) / check.error
        for L, found, predicted, error, pull in zip(
            run.bandpowers.bins.centres,
            check.found,
            check.predicted,
            check.error,
            pulls,
            strict=True,
        ):
            lines.append(
                f"{L:7.1f}  {1e9 * found:9.4f}  {1e9 * predicted:9.4f}  {1e9 * error:6.4f}  "
                f"{pull:+.2f}"
            )
        lines.append(f"{(np.abs(pulls) < 2).sum()} of {len(pulls)} bins within 2 standard errors\n")
    return "\n".join(lines)


def format_points(group: str, table: PointsTable) -> str:
    """Bias of ω_c at other cosmologies, one line per point."""
    lines = [
        f"{group}: shift of omch2 in sigma of {table.n_survey} patches, from {table.n_patches} "
        "patches that share phases and noise with fiducial ones",
        "   shift   +-     first order only   chi2   PTE    omch2, As, H0 together    at",
    ]
    for i, change in enumerate(table.changes):
        at = ", ".join(f"{key} {value:g}" for key, value in change.items())
        lines.append(
            f"  {table.shift[i]:+.3f}  {table.shift_error[i]:.3f}  {table.shift_linear[i]:+.3f}"
            f"             {table.chi2[i]:5.1f}  {table.pte[i]:.3f}  "
            f"{'  '.join(f'{value:+.2f}' for value in table.joint[i])}       {at}"
        )
    lines.append(
        f"mean residual of all: chi2 = {table.mean_chi2:.1f} for {table.n_bins} bins, "
        f"PTE {table.mean_pte:.3f}\n"
    )
    return "\n".join(lines)


def format_coverage(table: CoverageTable) -> str:
    """Coverage of posteriors of one parameter, with errors of resampled skies, beside what
    simulated sets of surveys with the calibration's own error give."""
    from ..validate.coverage import INTERVALS

    low, high = table.prior
    bias, error = table.bias()
    scatter, scatter_error = table.scatter()
    sigma = float(np.sqrt(np.mean(table.sigma**2)))
    lines = [
        f"{table.parameter}: {len(table.rank)} disjoint surveys of {table.patches_each} patches "
        f"from {table.n_skies} skies; drawn evenly from {low} to {high}",
        "errors: block bootstrap over the skies"
        + ("; one sky alone gives none" if table.n_skies == 1 else ""),
    ]
    for probability, expected in zip(INTERVALS, table.simulated.covered.T, strict=True):
        part, off = table.covered(probability)
        lines.append(
            f"{100 * probability:.0f}% interval holds the truth in {100 * part:.1f} +- "
            f"{100 * off:.1f}% of them; simulated sets, each with a calibration error: "
            f"{100 * expected.mean():.1f} +- {100 * expected.std(ddof=1):.1f}%"
        )
    lines += [
        f"ranks of the truth, tenths: {' '.join(map(str, table.tenths))}; uniform with p = "
        f"{table.uniformity:.3f} (chi2 of the tenths among {len(table.simulated.tenths)} simulated "
        "sets)",
        f"posterior mean minus truth: {bias:+.5f} +- {error:.5f} ({bias / sigma:+.3f} of a "
        f"posterior's sigma, {sigma:.5f}); its rms {scatter:.3f} +- {scatter_error:.3f} sigma",
    ]
    n_skies, ratio, p = table.anova()
    if np.isfinite(ratio):
        lines.append(
            f"pulls, mean square between over within {n_skies} skies whose truth the prior's ends "
            f"do not touch: {ratio:.2f}, as large by chance with p = {p:.4f}"
        )
    edges = np.linspace(low, high, 5)
    for a, b in itertools.pairwise(edges):
        pulls = table.pulls[(table.truth >= a) & (table.truth < b)]
        if len(pulls) > 1:
            lines.append(
                f"  truth {a:.4f}-{b:.4f}: pulls {pulls.mean():+.3f} +- {pulls.std(ddof=1):.3f}"
            )
    return "\n".join(lines)


def format_recovery(found: Recovery) -> str:
    """Recovered ω_c with and without the noise-debias derivatives, and the null test."""
    lines = [
        "survey      debias     patches    truth     mean      +-        (mean-truth)/+-  scatter  "
        "at edge"
    ]
    for name, ways in found.estimates.items():
        for debias, r in ways.items():
            pull = (r.mean - r.truth) / r.error
            lines.append(
                f"{name:10s}  {debias:9s}  {len(r.estimates):4d}x{r.patches_each:<4d}  "
                f"{r.truth:.4f}  {r.mean:.5f}  {r.error:.5f}  {pull:+8.2f}         "
                f"{r.scatter:.5f}  {r.at_edge}"
            )
    lines += ["", "null hypothesis (fiducial cosmology), single patches"]
    for name, (chi2, sigma) in found.nulls.items():
        lines.append(
            f"{name:10s}  chi2 = {chi2.mean():.1f} +- {chi2.std(ddof=1):.1f} for "
            f"{found.n_bins[name]} bins, rejected at {sigma.mean():.2f} +- {sigma.std(ddof=1):.2f} "
            "sigma"
        )
    return "\n".join(lines)


def format_nulls(table: NullTable) -> str:
    """Verdicts first, then the bins."""
    from ..validate.nulls import PowerRatio

    skies = "1 sky" if table.n_skies == 1 else f"{table.n_skies} skies"
    lines = [
        f"{skies}, {len(table.L)} bins; mean of the bins, weighted by 1/error^2, of <kappa khat>/"
        "<kappa kappa> (R for lensed maps);",
        "of mean fields, of the mean map's power over <khat khat>",
        "",
        *_null_rows(table.tests),
        *_null_remarks(table),
    ]
    cross = [PowerRatio(t.name, t.L, 1e3 * t.values, 1e3 * t.errors) for t in table.cross]
    lines += _null_block("<kappa khat>/<kappa kappa> in units of 1e-3", cross, "+.2f")
    fields = [PowerRatio(t.name, t.L, 1e3 * t.values, 1e3 * t.errors) for t in table.mean_fields]
    lines += _null_block("power of mean khat over <khat khat> in units of 1e-3", fields, "+.2f")
    lines += _null_block(
        "<khat khat>/R^2 over N_L of the test sky's patches", table.over_noise, ".4f"
    )
    lines += _null_block("power of parts of khat over <khat khat>", table.over_own, ".5f")
    return "\n".join(lines)


def _null_rows(tests: list[NullTest]) -> list[str]:
    """A line for each null, and how likely the lowest PTE of them is."""
    width = max(11, *(len(t.name) for t in tests))
    lines = [
        f"{'null':{width}s} {'patches':>7s}  {'mean':>9s}  {'+-':7s}     {'chi2':>4s}   PTE     "
        "verdict"
    ]
    for t in tests:
        lines.append(
            f"{t.name:{width}s} {t.n_samples:7d}  {t.mean:+.2e}  {t.mean_error:.1e}  "
            f"{t.chi2:7.1f}   {t.pte:.4f}  {t.verdict:21s} {t.what}"
        )
    lowest = min(t.pte for t in tests)
    by_chance = 1.0 - (1.0 - lowest) ** len(tests)
    return [
        *lines,
        f"lowest PTE {lowest:.4f}; {len(tests)} independent tests of true nulls have one as "
        f"low with probability {by_chance:.2f}",
    ]


def format_survey_nulls(table: SurveyNulls) -> str:
    """Verdicts first, then what was left out and why, then the bins."""
    lines = [
        f"{table.name}: nulls of {table.n_tiles} tiles, whose scatter is the covariance; twins are "
        "simulated tiles",
        f"of the same noise, mask and holes; mean of the bins, weighted by 1/error^2; "
        f"l_max is {table.lmax}",
        "",
        *_null_rows(table.tests),
        *(f"{name}: left out, {why}" for name, why in table.skipped.items()),
    ]
    for t in table.tests:
        lines.append("")
        lines.append(f"{t.name}: {t.what}")
        for L, value, error in zip(t.L, t.values, t.errors, strict=True):
            lines.append(f"{L:7.1f}  {value:+.3e} +- {error:.1e}")
    return "\n".join(lines)


def format_foregrounds(table: ForegroundTable) -> str:
    """Bias of ω_c by every foreground, a line for each with the noise debias from the data and from
    the theory, and the largest of a bandpower; the same with each l_max; then every bandpower's."""
    ways = list(table.sigma)
    column = "omch2    +-   largest of a bandpower"
    lines = [
        f"foregrounds at {table.frequency_ghz:g} GHz that the calibration does not know, added to "
        f"{table.n_patches} test patches;",
        f"biases in sigma of {table.n_survey} patches; sigma(omch2) "
        + ", ".join(f"{s:.5f} with the debias from the {w}" for w, s in table.sigma.items()),
        "",
        " " * 24 + "".join(f"   {f'debias from the {way}':42s}" for way in ways).rstrip(),
        " " * 24 + "".join(f"   {column:42s}" for _ in ways).rstrip(),
    ]
    lines += _bias_rows(table, [table.of(way) for way in ways])
    for lmax, sigma in table.sigma_lmax.items():
        lines += ["", f"l up to {lmax}, debias from the theory: sigma(omch2) {sigma:.5f}"]
        lines += _bias_rows(table, [table.of("theory", lmax)])
    for way in ways:
        biases = table.of(way)
        lines += ["", f"bias of each bandpower in its sigma, debias from the {way}"]
        for start in range(0, len(biases), 4):
            part = biases[start : start + 4]
            lines.append("      L" + "".join(f"{b.foreground.label:>22s}" for b in part))
            for i, L in enumerate(table.L):
                cells = (f"{b.bins[i]:+.2f} +- {b.bins_error[i]:.2f}" for b in part)
                lines.append(f"{L:7.1f}" + "".join(f"{cell:>22s}" for cell in cells))
    if table.missing:
        cases = (f"{f.label}" + (f", l up to {lmax}" if lmax else "") for f, lmax in table.missing)
        lines += ["", "not measured: " + "; ".join(cases)]
    return "\n".join(lines)


def _bias_rows(table: ForegroundTable, columns: list[list[Bias]]) -> list[str]:
    """A line for each foreground, whose biases stand beside each other."""
    lines = []
    for row in zip(*columns, strict=True):
        cells = (
            f"{b.omch2:+8.2f} {b.omch2_error:5.2f}   {b.bins[b.largest]:+8.2f} +- "
            f"{b.bins_error[b.largest]:.2f} at L = {table.L[b.largest]:.0f}"
            for b in row
        )
        lines.append(f"{row[0].foreground.label:24s}" + "".join(f"{c:45s}" for c in cells).rstrip())
    return lines


def _null_block(title: str, columns: list[PowerRatio], form: str) -> list[str]:
    if not columns:
        return []
    lines = ["", title, "      L" + "".join(f"{c.name:>20s}" for c in columns)]
    for b, L in enumerate(columns[0].L):
        cells = (f"{c.values[b]:{form}} +- {c.errors[b]:{form.lstrip('+')}}" for c in columns)
        lines.append(f"{L:7.1f}" + "".join(f"{cell:>20s}" for cell in cells))
    return lines


def _null_remarks(table: NullTable) -> list[str]:
    from ..validate.nulls import PAPER_LIMIT

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


def format_emulator(found: Errors) -> str:
    """Errors of an emulator: median, 95% and largest over the points, and where that is."""
    lines = [
        f"{len(found.at)} points that did not make the emulator",
        f"{'':36s}   median      95%  largest",
    ]
    rows = (
        ("largest |dC/C| of C^kk, %", 100 * found.kk),
        ("largest |dC/C| of C^EE, %", 100 * found.ee),
        ("largest |dC/C| of a band of C^EE, %", 100 * found.ee_bands),
        ("dchi2 of the survey's bandpowers", found.delta_chi2),
        ("derived parameters, %", 100 * found.scalars),
    )
    for name, values in rows:
        median, high, worst = np.percentile(values, (50, 95, 100))
        lines.append(f"{name:36s} {median:8.4f} {high:8.4f} {worst:8.4f}")
    return "\n".join(lines)
