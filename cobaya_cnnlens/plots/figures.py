"""Figures of every stage, from its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import CNNLensError
from ..pipeline import networks
from ..pipeline.assemble import make_release
from ..pipeline.estimators import label_of
from ..pipeline.observation import observe_sky
from ..pipeline.run import Run
from ..reconstruct import Estimator
from ..validate import stages
from ..validate.coverage import CoverageTable, coverage_tables
from ..validate.foregrounds import ForegroundTable, foregrounds_table
from ..validate.noise import noise_table
from ..validate.primary import JointCovariance, read_joint
from .drawing import draw_map, figure_of, panel, subplots
from .null_figures import nulls_figure

# The patch of the first test sky that is drawn; any would do.
PATCH = 40
# Of the noise debias by which a bias is found.
MARKERS = {"data": "o", "fixed": "d", "theory": "s"}


def draw(run: Run, stage: str) -> Figure:
    """Draw the figure of a stage.

    Parameters
    ----------
    run : a configuration, with its products and networks
    stage : a key of :data:`STAGES`

    Returns
    -------
    figure : of that stage

    Raises
    ------
    CNNLensError
        for an unknown stage, or when the stage's products are missing
    """
    if stage not in STAGES:
        raise CNNLensError(f"no figure for stage '{stage}'; choose one of {', '.join(STAGES)}")
    return STAGES[stage](run)


def theory_figure(run: Run) -> Figure:
    """C_L^κκ and unlensed C_l^EE of every cosmology in the configuration.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : two panels
    """
    figure, (left, right) = subplots(1, 2, figsize=(11, 4))
    for name in ("test", *(f"survey-{s}" for s in run.config.surveys)):
        cosmology = run.config.set_cosmology(name)
        theory = run.spectra(cosmology)
        l = np.arange(2, theory.lmax + 1)
        label = rf"{name}, $\Omega_c h^2$ = {cosmology.omch2:g}"
        left.loglog(l, theory.kk[2:], label=label)
        right.loglog(l, l * (l + 1) / (2 * np.pi) * theory.ee[2:], label=label)
    left.set(xlabel="$L$", ylabel=r"$C_L^{\kappa\kappa}$")
    right.set(xlabel=r"$\ell$", ylabel=r"unlensed $D_\ell^{EE}$ [$\mu$K$^2$]", ylim=(1e-3, None))
    left.legend(fontsize=7)
    return figure


def sky_figure(run: Run) -> Figure:
    """One patch of the first test sky, and the sky's spectra against theory.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : maps and spectra
    """
    seen = observe_sky(run, "test", 0)
    patch = _shown_patch(len(seen.q))
    power = stages.sky_power(run, seen)
    figure, axes = subplots(2, 3, figsize=(13, 8))
    half = run.config.patch.size_deg / 2
    titles = (r"$\tilde Q$ [$\mu$K]", r"$\tilde U$ [$\mu$K]", r"$E$ [$\mu$K]", r"$\kappa$")
    maps = (seen.q, seen.u, seen.e, seen.kappa)
    for axis, values, title in zip(axes.flat, maps, titles, strict=False):
        _map(figure, axis, values[patch], title, half)
    L = run.bandpowers.bins.centres
    observed, kappa = axes[1, 1:]
    for name, colour in (("e", "C0"), ("b", "C1")):
        field = power[name]
        observed.errorbar(L, field.mean, field.error, fmt=".", color=colour, label=name.upper())
        observed.plot(L, field.expected, color=colour, lw=1)
    observed.set(yscale="log", xlabel=r"$\ell$", ylabel=r"$C_\ell$ [$\mu$K$^2$]")
    observed.set_title("observed E and B (points), CAMB through the mask + noise (lines)", size=8)
    observed.legend()
    ratio = power["kappa"].over(power["kappa"].expected)
    kappa.errorbar(L, ratio.mean - 1, ratio.error, fmt=".")
    kappa.axhline(0, color="k", lw=0.8)
    kappa.set(xlabel="$L$", ylabel=r"$C_L^{\kappa\kappa}$: patches / theory $-$ 1")
    figure.tight_layout()
    return figure


def training_figure(run: Run, axis: Axes | None = None) -> Figure:
    """Loss against epoch, training and validation, of κ and of E, or of Q and U.

    Parameters
    ----------
    run : a configuration, with its products and networks
    axis : the axis to draw on; that of a new figure by default

    Returns
    -------
    figure : one panel

    Raises
    ------
    CNNLensError
    If no epoch has finished.
    """
    from ..pipeline.training_state import TrainingRun

    directory = networks.training_directory(run)
    history = TrainingRun(directory, networks.recipe(run)).history
    if not history:
        raise CNNLensError(
            f"{networks.training_directory(run)}: no finished epoch; run `cnnlens train`"
        )
    epochs = [h["epoch"] for h in history]
    axis = panel(axis, (7, 4.5))
    for name, colour in (("kappa", "C0"), ("e", "C1")):
        axis.plot(
            epochs,
            [h[f"val_{name}_loss"] for h in history],
            colour,
            label=f"{name}, validation",
        )
        axis.plot(
            epochs,
            [h[f"{name}_loss"] for h in history],
            colour,
            ls=":",
            label=f"{name}, training",
        )
    axis.set(xlabel="epoch", ylabel="mean squared error / variance", yscale="log")
    axis.legend()
    return figure_of(axis)


def reconstruction_figure(run: Run) -> Figure:
    """κ, κ̂ and E, Ê of one test patch with their differences; κ alone where there is no Ê.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a row for each field
    """
    sky = observe_sky(run, "test", 0)
    patch = _shown_patch(len(sky.q))
    estimates = _reconstruct(run.estimator, sky.q[[patch]], sky.u[[patch]])
    rows = [(sky.kappa[patch], "kappa", r"\kappa"), (sky.e[patch], "e", "E")]
    rows = [row for row in rows if row[1] in estimates]
    figure, axes = subplots(len(rows), 3, figsize=(13, 4 * len(rows)), squeeze=False)
    half = run.config.patch.size_deg / 2
    for line, (true, name, label) in zip(axes, rows, strict=True):
        scale = 3 * true.std()
        for axis, values, title in zip(
            line,
            (true, estimates[name][0], true - estimates[name][0]),
            (f"true ${label}$", rf"$\hat {label}$", rf"${label} - \hat {label}$"),
            strict=True,
        ):
            _map(figure, axis, values, title, half, scale)
    figure.tight_layout()
    return figure


def noise_figure(run: Run) -> Figure:
    """Reconstruction noise, its ratios to the analytic curves, and bandpower errors.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : three panels
    """
    table, theory, baseline = noise_table(run), run.spectra(), run.config.baseline
    name = "network" if baseline is None else label_of(baseline)
    figure, (left, middle, right) = subplots(1, 3, figsize=(15, 4.3))
    L = np.arange(40, int(table.L[-1]) + 60)
    left.loglog(L, theory.kk[L], "k", label=r"$C_L^{\kappa\kappa}$")
    left.errorbar(table.L, table.noise, table.noise_error, fmt="o", ms=3, label=f"{name}, $N_L$")
    left.plot(table.L, table.n0_eb, label="EB quadratic estimator, analytic")
    left.plot(table.L, table.n0_iterated, label="iterated EB, analytic")
    left.set(xlabel="$L$", ylabel=r"$N_L^{\kappa\kappa}$")
    left.legend(fontsize=7)
    for other, label in ((table.n0_eb, "EB QE"), (table.n0_iterated, "iterated EB")):
        middle.errorbar(
            table.L, table.noise / other, table.noise_error / other, fmt="o-", ms=3, label=label
        )
    middle.axhline(1, color="k", lw=0.8)
    middle.set(xlabel="$L$", ylabel="$N_L$ / analytic", ylim=(0, None))
    middle.legend()
    right.plot(table.L, 100 * table.relative_error, "o-", ms=3)
    right.set(xlabel="$L$", ylabel="bandpower error of one patch [%]", yscale="log")
    figure.tight_layout()
    return figure


def derivatives_figure(run: Run) -> Figure:
    """Noise-debias derivatives, as fractions of the fiducial bandpower.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : two panels
    """
    measured = stages.relative_derivatives(run)
    figure, axes = subplots(1, 2, figsize=(13, 5))
    labels = {"kk": r"C_L^{\kappa\kappa}", "ee": r"C_\ell^{EE}"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        edges, relative = measured[name]
        limit = np.percentile(np.abs(relative), 98)
        rows = run.bandpowers.bins.edges
        mesh = axis.pcolormesh(edges, rows, relative, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(
            xlabel=rf"band of ${label}$",
            ylabel="$L$ of the bandpower",
            title=rf"$\partial (d_b - \mathrm{{signal}})\,/\,\partial\ln {label}$ over signal",
        )
        figure.colorbar(mesh, ax=axis)
    figure.tight_layout()
    return figure


def bandpowers_figure(run: Run, axis: Axes | None = None) -> Figure:
    """Debiased bandpowers of every survey over the fiducial expectation.

    Parameters
    ----------
    run : a configuration, with its products and networks
    axis : the axis to draw on; that of a new figure by default

    Returns
    -------
    figure : one panel
    """
    L = run.bandpowers.bins.centres
    axis = panel(axis, (8, 5))
    for i, (name, power) in enumerate(stages.survey_powers(run).items()):
        label = rf"{name}, $\Omega_c h^2$ = {run.config.surveys[name].omch2:g}"
        axis.errorbar(L + 8 * i, power.mean, power.error, fmt=".", color=f"C{i}", label=label)
        axis.plot(L, power.expected, color=f"C{i}", lw=1)
    axis.set(xlabel="$L$", ylabel=r"$d_L\,/\,C_L^{\kappa\kappa}$ fiducial", ylim=(0.5, 1.7))
    axis.set_title("noise debias fixed at the fiducial (points), true signal (lines)", size=9)
    axis.legend()
    return figure_of(axis)


def nuisances_figure(run: Run) -> Figure:
    """What the simulated steps of the instrument's systematics do to the bandpowers.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a panel for each nuisance
    """
    L = run.bandpowers.bins.centres
    shifts = stages.nuisance_shifts(run)
    rows = -(-len(shifts) // 2)
    figure, axes = subplots(rows, 2, figsize=(11, 3.5 * rows), sharex=True)
    for axis, (name, both) in zip(axes.flat, shifts.items(), strict=False):
        for shift, colour in zip(both, ("C0", "C3"), strict=True):
            label = f"{name} {shift.size:+g}"
            axis.errorbar(L, shift.mean, shift.error, fmt=".-", color=colour, label=label)
        axis.axhline(0, color="k", lw=0.8)
        axis.legend()
    for axis in axes.flat[len(shifts) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("$L$")
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$\Delta d_L\,/\,C_L^{\kappa\kappa}$")
    figure.tight_layout()
    return figure


def primary_figure(run: Run) -> Figure:
    """Correlation of the lensing bandpowers with E and B power of the same test patches.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : three panels
    """
    joint = read_joint(run)
    names = {"ee": r"lensed $C_\ell^{EE}$", "bb": r"lensed $C_\ell^{BB}$"}
    figure, axes = subplots(1, 3, figsize=(16, 4.6))
    for axis, (name, label) in zip(axes, names.items(), strict=False):
        _correlation(axis, joint, name, label)
    centres = 0.5 * (joint.edges[1:] + joint.edges[:-1])
    together = joint.correlation_with_power(1000)
    for r, label in zip(together[1:], names.values(), strict=True):
        axes[2].errorbar(centres, r, joint.error_of(r), fmt=".-", label=label)
    axes[2].axhline(0, color="k", lw=0.8)
    axes[2].set(xlabel=r"$\ell$", ylabel="correlation with the lensing power at $L < 1000$")
    axes[2].legend()
    figure.suptitle(
        f"{joint.n_sim} patches; error of one coefficient {joint.n_sim**-0.5:.3f}", size=10
    )
    figure.tight_layout()
    return figure


def _correlation(axis: Axes, joint: JointCovariance, name: str, label: str) -> None:
    """The block of the correlation between lensing and E or B power."""
    r = joint.block(joint.correlation, "kk", name)
    limit = np.abs(r).max()
    mesh = axis.pcolormesh(joint.edges, joint.edges, r, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(xlabel=rf"$\ell$ of {label}", ylabel="$L$ of the lensing bandpower")
    axis.figure.colorbar(mesh, ax=axis, label="correlation coefficient")


def coverage_figure(run: Run) -> Figure:
    """Ranks of the truth in the posteriors of the coverage surveys, and their pulls.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a row for each parameter
    """
    release = make_release(run, run.config.first_survey)
    return draw_coverage(coverage_tables(run, release))


def draw_coverage(tables: Sequence[CoverageTable]) -> Figure:
    """The figure of tables of coverage, a row for each parameter; the band holds 68% of sets
    simulated under the release's model, calibration errors included.

    Parameters
    ----------
    tables : one for each parameter

    Returns
    -------
    figure : a row for each parameter
    """
    figure, rows = subplots(len(tables), 2, figsize=(11, 4 * len(tables)), squeeze=False)
    for (left, right), table in zip(rows, tables, strict=True):
        _draw_ranks(left, right, table)
    figure.tight_layout()
    return figure


def _draw_ranks(left: Axes, right: Axes, table: CoverageTable) -> None:
    counts = table.tenths
    edges = np.linspace(0.0, 1.0, len(counts) + 1)
    left.stairs(counts, edges, lw=1.5)
    low, high = np.percentile(table.simulated.tenths, [16, 84], axis=0)
    left.stairs(high, edges, baseline=low, fill=True, color="k", alpha=0.15, lw=0)
    left.set(xlabel="posterior probability below the truth", ylabel="surveys", ylim=(0, None))
    left.set_title(
        f"{len(table.rank)} surveys of {table.patches_each} patches on {table.n_skies} skies; "
        f"uniform with p = {table.uniformity:.3f}",
        size=9,
    )
    right.errorbar(table.truth, table.pulls, fmt=".", ms=3)
    right.axhline(0, color="k", lw=0.8)
    labels = {"omch2": r"$\Omega_c h^2$", "logA": r"$\ln(10^{10} A_s)$"}
    right.set(
        xlabel=f"true {labels[table.parameter]}", ylabel=r"(posterior mean - truth) / $\sigma$"
    )


def foregrounds_figure(run: Run) -> Figure:
    """What foregrounds do to a survey of the configuration; see :func:`draw_foregrounds`.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a panel for each noise debias, and one of ω_c
    """
    return draw_foregrounds(foregrounds_table(run))


def draw_foregrounds(table: ForegroundTable) -> Figure:
    """Bias of every bandpower with each noise debias, and of ω_c by foreground and l_max.

    Parameters
    ----------
    table : of the foregrounds' biases

    Returns
    -------
    figure : a panel for each noise debias, and one of ω_c
    """
    ways = list(table.sigma)
    figure, axes = subplots(1, len(ways) + 1, figsize=(5.2 * (len(ways) + 1), 4.6))
    for axis, way in zip(axes, ways, strict=False):
        for i, b in enumerate(table.of(way)):
            axis.errorbar(table.L, b.bins, b.bins_error, fmt=".-", lw=0.8, color=f"C{i}")
        axis.set(xlabel="$L$", ylabel=rf"bias [$\sigma$ of {table.n_survey} patches]")
        axis.set_title(f"bandpowers, debias from the {way}", size=10)
        _signed(axis, axis.set_yscale)
    axis = axes[-1]
    foregrounds = [b.foreground for b in table.of(ways[0])]
    series = [(way, None) for way in ways] + [("theory", lmax) for lmax in table.sigma_lmax]
    for k, (way, lmax) in enumerate(series):
        biases = [b for b in table.of(way, lmax) if b.foreground in foregrounds]
        rows = np.array([foregrounds.index(b.foreground) for b in biases])
        axis.errorbar(
            [b.omch2 for b in biases],
            rows + 0.15 * (k - 0.5 * (len(series) - 1)),
            xerr=[b.omch2_error for b in biases],
            fmt=MARKERS[way],
            ms=4,
            color="k" if lmax is None else str(0.4 + 0.2 * list(table.sigma_lmax).index(lmax)),
            label=f"debias from the {way}" + (f", l up to {lmax}" if lmax else ""),
        )
    axis.set_yticks(range(len(foregrounds)), [f.label.replace("_", " ") for f in foregrounds])
    for i, tick in enumerate(axis.get_yticklabels()):
        tick.set_color(f"C{i}")
    axis.set(xlabel=r"bias of $\Omega_c h^2$ [its $\sigma$]")
    axis.set_title(f"{table.frequency_ghz:g} GHz, nothing masked or cleaned beyond that", size=10)
    axis.invert_yaxis()
    axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    _signed(axis, axis.set_xscale)
    figure.tight_layout()
    return figure


def _signed(axis: Axes, set_scale: Callable[..., None]) -> None:
    """Both signs over decades; half a σ either way in grey."""
    set_scale("symlog", linthresh=0.5, linscale=0.7)
    upright = set_scale == axis.set_yscale
    low, high = axis.get_ylim() if upright else axis.get_xlim()
    ticks = [x for x in (-100, -10, -1, 0, 1, 10, 100) if low <= x <= high]
    (axis.set_yticks if upright else axis.set_xticks)(ticks, [f"{x:g}" for x in ticks])
    span = axis.axhspan if upright else axis.axvspan
    span(-0.5, 0.5, color="0.9", zorder=0)


def _shown_patch(n_patches: int) -> int:
    """Which patch of a sky is drawn: ``PATCH``, or the last of a sky that has fewer."""
    return min(PATCH, n_patches - 1)


def _reconstruct(estimator: Estimator, q: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """All that an estimator makes of masked Q̃, Ũ (n, ny, nx): ``kappa`` κ̂, and ``e`` or ``qu`` of
    one that has them."""
    heads = getattr(estimator, "reconstruct_heads", None)
    return heads(q, u) if heads else {"kappa": estimator.reconstruct(q, u)}


def _map(
    figure: Figure,
    axis: Axes,
    values: np.ndarray,
    title: str,
    half: float,
    scale: float | None = None,
) -> None:
    image = draw_map(axis, values, title, half, scale or 3 * values.std())
    axis.set_xlabel("x [deg]")
    figure.colorbar(image, ax=axis, fraction=0.046)


STAGES: dict[str, Callable[[Run], Figure]] = {
    "spectra": theory_figure,
    "sky": sky_figure,
    "training": training_figure,
    "reconstruction": reconstruction_figure,
    "noise": noise_figure,
    "bandpowers": bandpowers_figure,
    "derivatives": derivatives_figure,
    "nuisances": nuisances_figure,
    "coverage": coverage_figure,
    "primary": primary_figure,
    "nulls": nulls_figure,
    "foregrounds": foregrounds_figure,
}
