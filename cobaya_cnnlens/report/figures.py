"""Figures of every stage, from its products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..calibrate import bandpowers, derivatives, nuisances
from ..calibrate.assemble import calibration_of, make_release
from ..calibrate.bandpowers import signal_bandpowers
from ..calibrate.response import standard_error
from ..calibrate.windows import expected_e_and_b
from ..errors import CNNLensError
from ..likelihood.release import NUISANCES
from ..pipeline import networks
from ..pipeline.observation import observe_sky
from ..pipeline.run import Run
from ..simulate.bandpowers import e_and_b
from ..theory.camb import lensed_polarisation
from ..validate.coverage import CoverageTable, coverage_table
from ..validate.exhibits import reconstruct_all, shown_patch
from ..validate.noise import noise_table
from ..validate.primary import read_joint
from .nulls_figure import nulls_figure

DPI = 130


def draw(run: Run, stage: str, out: Path | None = None) -> Path:
    """Draw one stage's figure and return its path.

    Raises
    ------
    CNNLensError
        for an unknown stage, or when the stage's products are missing
    """
    if stage not in STAGES:
        raise CNNLensError(f"no figure for stage '{stage}'; choose one of {', '.join(STAGES)}")
    return save(STAGES[stage](run), out or run.config.products / "figures" / f"{stage}.png")


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options):
    """A figure and its axes, as pyplot's, which needs no display and leaves a notebook's plots
    alone: pyplot, its backend and its list of open figures know nothing of it."""
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    return path


def theory_figure(run: Run):
    """C_L^κκ and unlensed C_l^EE of every cosmology in the configuration."""
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


def sky_figure(run: Run):
    """One patch of the first test sky, and the sky's spectra against theory."""
    seen = observe_sky(run, "test", 0)
    patch = shown_patch(len(seen.q))
    spectra = run.bandpowers
    figure, axes = subplots(2, 3, figsize=(13, 8))
    half = run.config.patch.size_deg / 2
    titles = (r"$\tilde Q$ [$\mu$K]", r"$\tilde U$ [$\mu$K]", r"$E$ [$\mu$K]", r"$\kappa$")
    maps = (seen.q, seen.u, seen.e, seen.kappa)
    for axis, values, title in zip(axes.flat, maps, titles, strict=False):
        _map(figure, axis, values[patch], title, half)
    e_l, b_l = e_and_b(spectra, seen.q, seen.u)
    theory = run.spectra()
    lensed_ee, lensed_bb = lensed_polarisation(theory)
    l = np.arange(len(lensed_ee))
    beam2 = run.config.instrument.beam(l) ** 2
    rms = np.sqrt(np.mean(np.square(run.config.instrument.noise_rms(run.config.patch))))
    white = np.full(len(l), (rms * run.config.patch.pixel) ** 2)
    expected = expected_e_and_b(spectra, lensed_ee * beam2, lensed_bb * beam2)
    L = spectra.bins.centres
    for modes, model, label, colour in (
        (e_l, expected[0], "E", "C0"),
        (b_l, expected[1], "B", "C1"),
    ):
        power = spectra.cross(modes, modes)
        error = power.std(0, ddof=1) / np.sqrt(len(power))
        axes[1, 1].errorbar(L, power.mean(0), error, fmt=".", color=colour, label=label)
        axes[1, 1].plot(L, model + white[0], color=colour, lw=1)
    axes[1, 1].set(yscale="log", xlabel=r"$\ell$", ylabel=r"$C_\ell$ [$\mu$K$^2$]")
    axes[1, 1].set_title("observed E and B (points), CAMB through the mask + noise (lines)", size=8)
    axes[1, 1].legend()
    kappa = spectra.auto(seen.kappa)
    model = signal_bandpowers(run, theory.kk)
    error = kappa.std(0, ddof=1) / np.sqrt(len(kappa)) / model
    axes[1, 2].errorbar(L, kappa.mean(0) / model - 1, error, fmt=".")
    axes[1, 2].axhline(0, color="k", lw=0.8)
    axes[1, 2].set(xlabel="$L$", ylabel=r"$C_L^{\kappa\kappa}$: patches / theory $-$ 1")
    figure.tight_layout()
    return figure


def training_figure(run: Run):
    """Loss against epoch, training and validation, of κ and of E, or of Q and U."""
    from ..pipeline.training import TrainingRun

    directory = networks.training_directory(run)
    history = TrainingRun(directory, networks.recipe(run)).history
    if not history:
        raise CNNLensError(
            f"{networks.training_directory(run)}: no finished epoch; run `cnnlens train`"
        )
    epochs = [h["epoch"] for h in history]
    figure, axis = subplots(figsize=(7, 4.5))
    for name, colour in (("kappa", "C0"), (run.config.network.polarisation, "C1")):
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
    return figure


def reconstruction_figure(run: Run):
    """κ, κ̂ and E, Ê of one test patch with their differences; κ alone where there is no Ê."""
    seen = observe_sky(run, "test", 0)
    patch = shown_patch(len(seen.q))
    both = reconstruct_all(run.estimator, seen.q[[patch]], seen.u[[patch]])
    rows = [(seen.kappa[patch], "kappa", r"\kappa"), (seen.e[patch], "e", "E")]
    rows = [row for row in rows if row[1] in both]
    figure, axes = subplots(len(rows), 3, figsize=(13, 4 * len(rows)), squeeze=False)
    half = run.config.patch.size_deg / 2
    for line, (true, name, label) in zip(axes, rows, strict=True):
        scale = 3 * true.std()
        for axis, values, title in zip(
            line,
            (true, both[name][0], true - both[name][0]),
            (f"true ${label}$", rf"$\hat {label}$", rf"${label} - \hat {label}$"),
            strict=True,
        ):
            _map(figure, axis, values, title, half, scale)
    figure.tight_layout()
    return figure


def noise_figure(run: Run):
    """Reconstruction noise, its ratios to the analytic curves, and bandpower errors."""
    table = noise_table(run)
    theory = run.spectra()
    figure, (left, middle, right) = subplots(1, 3, figsize=(15, 4.3))
    L = np.arange(40, int(table.L[-1]) + 60)
    left.loglog(L, theory.kk[L], "k", label=r"$C_L^{\kappa\kappa}$")
    left.errorbar(table.L, table.noise, table.noise_error, fmt="o", ms=3, label="ResUNet $N_L$")
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


def derivatives_figure(run: Run):
    """Noise-debias derivatives, as fractions of the fiducial bandpower."""
    calibration, _ = calibration_of(run)
    signal = signal_bandpowers(run, run.spectra().kk)
    measured = derivatives.read(run, calibration.response)
    figure, axes = subplots(1, 2, figsize=(13, 5))
    for axis, bands, label in zip(
        axes,
        (measured.kk, measured.ee),
        (r"C_L^{\kappa\kappa}", r"C_\ell^{EE}"),
        strict=True,
    ):
        relative = bands.values / signal[:, None]
        limit = np.percentile(np.abs(relative), 98)
        centres = run.bandpowers.bins.edges
        mesh = axis.pcolormesh(
            bands.edges, centres, relative, cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        axis.set(
            xlabel=rf"band of ${label}$",
            ylabel="$L$ of the bandpower",
            title=rf"$\partial (d_b - \mathrm{{signal}})\,/\,\partial\ln {label}$ over signal",
        )
        figure.colorbar(mesh, ax=axis)
    figure.tight_layout()
    return figure


def bandpowers_figure(run: Run):
    """Debiased bandpowers of every survey over the fiducial expectation."""
    calibration, _ = calibration_of(run)
    fiducial = signal_bandpowers(run, run.spectra().kk)
    L = run.bandpowers.bins.centres
    figure, axis = subplots(figsize=(8, 5))
    for i, name in enumerate(run.config.surveys):
        data = calibration.debias(bandpowers.read(run, f"survey-{name}", [0]).auto)
        error = data.std(0, ddof=1) / np.sqrt(len(data)) / fiducial
        label = rf"{name}, $\Omega_c h^2$ = {run.config.surveys[name].omch2:g}"
        axis.errorbar(
            L + 8 * i, data.mean(0) / fiducial, error, fmt=".", color=f"C{i}", label=label
        )
        truth = run.spectra(run.config.set_cosmology(f"survey-{name}"))
        axis.plot(L, signal_bandpowers(run, truth.kk) / fiducial, color=f"C{i}", lw=1)
    axis.set(xlabel="$L$", ylabel=r"$d_L\,/\,C_L^{\kappa\kappa}$ fiducial", ylim=(0.5, 1.7))
    axis.set_title("noise debias fixed at the fiducial (points), true signal (lines)", size=9)
    axis.legend()
    return figure


def nuisances_figure(run: Run):
    """What the simulated steps of the instrument's systematics do to the bandpowers."""
    calibration, _ = calibration_of(run)
    first, second = nuisances.read(run, calibration.response)
    signal = signal_bandpowers(run, run.spectra().kk)
    L = run.bandpowers.bins.centres
    rows = -(-len(NUISANCES) // 2)
    figure, axes = subplots(rows, 2, figsize=(11, 3.5 * rows), sharex=True)
    for i, (name, axis) in enumerate(zip(NUISANCES, axes.flat, strict=False)):
        step = getattr(run.config.nuisances, name)
        for sign, colour in ((1, "C0"), (-1, "C3")):
            shift = sign * step * first[..., i] + step**2 * second[..., i]
            axis.errorbar(
                L,
                shift.mean(0) / signal,
                standard_error(shift) / signal,
                fmt=".-",
                color=colour,
                label=f"{name} {sign * step:+g}",
            )
        axis.axhline(0, color="k", lw=0.8)
        axis.legend()
    for axis in axes.flat[len(NUISANCES) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("$L$")
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$\Delta d_L\,/\,C_L^{\kappa\kappa}$")
    figure.tight_layout()
    return figure


def primary_figure(run: Run):
    """Correlation of the lensing bandpowers with E and B power of the same test patches."""
    joint = read_joint(run)
    names = {"ee": r"lensed $C_\ell^{EE}$", "bb": r"lensed $C_\ell^{BB}$"}
    figure, axes = subplots(1, 3, figsize=(16, 4.6))
    for axis, (name, label) in zip(axes, names.items(), strict=False):
        r = joint.block(joint.correlation, "kk", name)
        limit = np.abs(r).max()
        mesh = axis.pcolormesh(joint.edges, joint.edges, r, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(xlabel=rf"$\ell$ of {label}", ylabel="$L$ of the lensing bandpower")
        figure.colorbar(mesh, ax=axis, label="correlation coefficient")
    # With the power of all bins below L = 1000 together, what single bins hide in their error.
    low = joint.edges[1:] <= 1000
    n = len(low)
    weight = np.zeros(len(joint.mean))
    weight[:n][low] = 1.0 / joint.mean[:n][low]
    covariance = joint.covariance @ weight
    sigma = np.sqrt(np.diag(joint.covariance) * (weight @ covariance))
    together = (covariance / sigma).reshape(len(joint.blocks), n)
    centres = 0.5 * (joint.edges[1:] + joint.edges[:-1])
    for r, label in zip(together[1:], names.values(), strict=True):
        error = (1 - r**2) / np.sqrt(joint.n_sim - 1)
        axes[2].errorbar(centres, r, error, fmt=".-", label=label)
    axes[2].axhline(0, color="k", lw=0.8)
    axes[2].set(xlabel=r"$\ell$", ylabel="correlation with the lensing power at $L < 1000$")
    axes[2].legend()
    figure.suptitle(
        f"{joint.n_sim} patches; error of one coefficient {joint.n_sim**-0.5:.3f}", size=10
    )
    figure.tight_layout()
    return figure


def coverage_figure(run: Run):
    """Ranks of the truth in the posteriors of the coverage surveys, and their pulls."""
    release = make_release(run, run.config.first_survey)
    return draw_coverage(coverage_table(run, release))


def draw_coverage(table: CoverageTable):
    """The figure of a table of coverage; the band holds 68% of sets simulated under the release's
    model, calibration errors included."""
    figure, (left, right) = subplots(1, 2, figsize=(11, 4))
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
    right.set(xlabel=r"true $\Omega_c h^2$", ylabel=r"(estimate - truth) / expected error")
    figure.tight_layout()
    return figure


def _map(figure, axis, values, title, half, scale=None):
    image = draw_map(axis, values, title, half, scale or 3 * values.std())
    axis.set_xlabel("x [deg]")
    figure.colorbar(image, ax=axis, fraction=0.046)


def draw_map(axis, values, title, half, scale, size=None):
    """One map, (n, n) and 2·``half`` degrees a side, in colours from −scale to scale."""
    image = axis.imshow(
        values,
        origin="lower",
        extent=(-half, half, -half, half),
        vmin=-scale,
        vmax=scale,
        cmap="RdBu_r",
    )
    axis.set_title(title, size=size)
    return image


STAGES: dict[str, Callable] = {
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
}
