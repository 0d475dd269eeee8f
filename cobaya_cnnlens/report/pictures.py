"""Figures of the report, counterparts of those of Caldeira et al. 2018."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..validate.exhibits import Exhibit
from ..validate.noise import NoiseTable
from ..validate.nulls import PowerRatio
from .drawing import draw_map, panel, subplots


def maps(
    rows: list[list[tuple[str, np.ndarray] | None]], size_deg: float, unit: str = ""
) -> Figure:
    """A grid of maps on one colour scale a row, ±3 standard deviations of its first map."""
    width = max(len(row) for row in rows)
    figure, axes = subplots(len(rows), width, figsize=(2.9 * width, 2.9 * len(rows)), squeeze=False)
    half = 0.5 * size_deg
    for line, row in zip(axes, rows, strict=True):
        scale = 3.0 * next(shown for shown in row if shown)[1].std()
        for axis, shown in zip(line, [*row, *[None] * (width - len(row))], strict=True):
            if shown is None:
                axis.axis("off")
                continue
            title, values = shown
            image = draw_map(axis, values, title, half, scale, size=9)
            axis.tick_params(labelsize=7)
        figure.colorbar(image, ax=line, fraction=0.02, pad=0.01, label=unit)
    return figure


def spectra(
    L: np.ndarray,
    exhibits: dict[float, Exhibit],
    kappa: dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """Fig. 8: power of true and recovered E and κ, and of their difference over the truth's.

    ``kappa`` : ⟨κκ*⟩, ⟨κ̂κ̂*⟩ and ⟨|κ − κ̂|²⟩ by noise level, (n_bins,) each
    """
    exhibits = {level: e for level, e in exhibits.items() if e.e_auto is not None}
    figure, axes = subplots(2, 2, figsize=(11, 7), sharex="col", height_ratios=(2, 1))
    for i, (noise, (truth, auto, difference)) in enumerate(kappa.items()):
        label = f"{noise:g} µK′"
        if not i:
            axes[0, 1].semilogy(L, truth, "k", label="true κ")
        axes[0, 1].semilogy(L, auto, f"C{i}", label=label)
        axes[1, 1].plot(L, difference / truth, f"C{i}")
    for i, (noise, exhibit) in enumerate(exhibits.items()):
        truth = exhibit.e_truth.mean(0)
        dl = L * (L + 1) / (2 * np.pi)
        if not i:
            axes[0, 0].semilogy(L, dl * truth, "k", label="true E")
        axes[0, 0].semilogy(L, dl * exhibit.e_auto.mean(0), f"C{i}", label=f"{noise:g} µK′")
        axes[1, 0].plot(L, exhibit.e_difference.mean(0) / truth, f"C{i}")
    axes[0, 0].set(ylabel=r"$D_\ell^{EE}$ [µK²]")
    axes[0, 1].set(ylabel=r"$C_L^{\kappa\kappa}$")
    axes[1, 0].set(xlabel=r"$\ell$", ylabel="power of E − Ê / of E", ylim=(0, 1.05))
    axes[1, 1].set(xlabel="$L$", ylabel="power of κ − κ̂ / of κ", ylim=(0, 1.05))
    axes[0, 1].legend(fontsize=8)
    if not exhibits:
        axes[0, 0].set_visible(False)
        axes[1, 0].set_visible(False)
    figure.tight_layout()
    return figure


def noise(levels: dict[float, dict[str, NoiseTable]], kk: np.ndarray) -> Figure:
    """Fig. 9: reconstruction noise by noise level, of every estimator, and the analytic curves."""
    columns = min(2, len(levels))
    lines = -(-len(levels) // columns)
    figure, axes = subplots(
        lines, columns, figsize=(5.8 * columns, 4.2 * lines), squeeze=False, sharex=True
    )
    for axis, (level, tables) in zip(axes.flat, levels.items(), strict=False):
        first = next(iter(tables.values()))
        ell = np.arange(40, int(first.L[-1]) + 60)
        axis.loglog(ell, kk[ell], "k", lw=1, label=r"$C_L^{\kappa\kappa}$")
        axis.loglog(first.L, first.n0_eb, "0.5", ls="--", label="EB, analytic")
        if level > 0:  # without noise the curve goes to zero
            axis.loglog(first.L, first.n0_iterated, "0.5", ls=":", label="iterated EB, analytic")
        for i, (label, table) in enumerate(tables.items()):
            good = table.noise > 0
            axis.errorbar(
                table.L[good],
                table.noise[good],
                table.noise_error[good],
                fmt="o-" if label == "network" else ".-",
                color=f"C{i}",
                ms=4,
                lw=1.6 if label == "network" else 0.8,
                label=label,
            )
        axis.set_title(f"{level:g} µK′", size=10)
        axis.set_ylim(1e-10, 3e-6)
    for axis in axes[-1]:
        axis.set_xlabel("$L$")
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$N_L^{\kappa\kappa}$")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def errors(tables: dict[float, NoiseTable], axis: Axes | None = None) -> Figure:
    """Fig. 10: relative error of the bandpowers of one patch."""
    axis = panel(axis, (7, 4.3))
    for i, (level, table) in enumerate(tables.items()):
        axis.semilogy(table.L, table.relative_error, f"C{i}o-", ms=3, label=f"{level:g} µK′")
    axis.set(xlabel="$L$", ylabel="error of one patch's bandpower / $C_L$")
    axis.legend()
    return axis.figure


def unlensed(ratios: dict[str, PowerRatio], axis: Axes | None = None) -> Figure:
    """Fig. 11: power of κ̂/R of unlensed maps over N_L of the lensed ones, by name."""
    axis = panel(axis, (7, 4.3))
    for i, (name, r) in enumerate(ratios.items()):
        axis.errorbar(r.L + 6 * i, r.values, r.errors, fmt=".-", lw=0.8, label=name)
    axis.axhline(1.0, color="k", lw=0.8)
    axis.set(xlabel="$L$", ylabel=r"unlensed $\langle\hat\kappa\hat\kappa^*\rangle/R^2\,/\,N_L$")
    axis.legend(fontsize=8)
    return axis.figure


def correlation(
    tables: dict[str, dict[float, NoiseTable]],
    ell: np.ndarray,
    left: dict[str, dict[float, np.ndarray]],
) -> Figure:
    """ρ_L of κ̂ with κ, and the part of the lensed B power that is left after delensing by it."""
    figure, (first, second) = subplots(1, 2, figsize=(11, 4.3))
    for style, label in zip(("-", ":"), tables, strict=False):
        for i, (level, table) in enumerate(tables[label].items()):
            name = f"{label}, {level:g} µK′"
            first.plot(table.L, table.correlation, f"C{i}{style}", label=name)
            second.plot(ell, left[label][level], f"C{i}{style}", label=name)
    first.set(xlabel="$L$", ylabel=r"$\rho_L$", ylim=(0, 1))
    second.set(xlabel=r"$\ell$", ylabel=r"$C_\ell^{BB}$ left / lensed", ylim=(0, 1))
    first.legend(fontsize=7)
    figure.tight_layout()
    return figure


def cosmology(estimates: dict[str, dict[str, np.ndarray]], truths: dict[str, float]) -> Figure:
    """§6.3: maximum-likelihood ω_c of single patches, with fixed and with corrected debias."""
    figure, axes = subplots(1, len(estimates), figsize=(5.5 * len(estimates), 4), sharey=True)
    bins = np.linspace(0.10, 0.14, 41)
    for axis, (debias, surveys) in zip(np.atleast_1d(axes), estimates.items(), strict=True):
        for i, (name, values) in enumerate(surveys.items()):
            inside = values.clip(bins[0], bins[-1])
            axis.hist(inside, bins, histtype="step", color=f"C{i}", label=name)
            axis.axvline(truths[name], color=f"C{i}", ls=":")
            axis.axvline(values.mean(), color=f"C{i}")
        axis.set(xlabel=r"$\Omega_c h^2$, maximum likelihood")
        axis.set_title(f"{debias}; dotted: true, full: mean", size=9)
        axis.legend(fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("patches")
    return figure


def ratio(
    L: dict[str, np.ndarray],
    values: dict[str, np.ndarray],
    label: str,
    title: str,
    axis: Axes | None = None,
) -> Figure:
    """Curves of several configurations by their names."""
    axis = panel(axis, (7, 4.3))
    for name, curve in values.items():
        axis.plot(L[name], curve, ".-", label=name)
    axis.set(xlabel="$L$", ylabel=label)
    axis.set_title(title, size=9)
    axis.legend(fontsize=8)
    return axis.figure


def learning(histories: dict[str, list[dict]], axis: Axes | None = None) -> Figure:
    """Loss of E and κ against epoch: validation full, training dotted."""
    axis = panel(axis, (7, 4.3))
    for i, (name, history) in enumerate(histories.items()):
        epochs = [h["epoch"] for h in history]
        for head, width in (("kappa", 1.6), ("e", 0.8)):
            label = f"{name}, {'κ' if head == 'kappa' else 'E'}"
            axis.plot(epochs, [h[f"val_{head}_loss"] for h in history], f"C{i}", lw=width)
            axis.plot(epochs, [h[f"{head}_loss"] for h in history], f"C{i}:", lw=width, label=label)
    axis.set(xlabel="epoch", ylabel="mean squared error / variance", yscale="log")
    axis.legend(fontsize=8)
    return axis.figure
