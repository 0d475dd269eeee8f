"""Figures of the stages of the pipeline, from their products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..calibrate.response import standard_error
from ..calibrate.windows import expected_e_and_b
from ..errors import CNNLensError
from ..likelihood.fields import SIMULATED
from ..pipeline import networks
from ..pipeline.assemble import calibration_of
from ..pipeline.nuisances import Nuisances
from ..pipeline.observation import ObservedPatches, observe_sky
from ..pipeline.perturbations import Derivatives
from ..pipeline.reconstructions import Bandpowers, signal_bandpowers
from ..pipeline.run import Run
from ..reconstruct import Estimator
from ..simulate.bandpowers import e_and_b
from ..theory.camb import lensed_polarisation
from . import validation_figures
from .drawing import draw_map, figure_of, panel, subplots

# The patch of the first test sky that is drawn; any would do.
PATCH = 40


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
        width = 4 if name == "test" else 1.5  # a survey may have the same cosmology
        left.loglog(l, theory.kk[2:], lw=width, label=label)
        right.loglog(l, l * (l + 1) / (2 * np.pi) * theory.ee[2:], lw=width)
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
    sky = observe_sky(run, "test", 0)
    patch = _shown_patch(len(sky.q))
    figure, axes = subplots(2, 3, figsize=(13, 8))
    half = run.config.patch.size_deg / 2
    titles = (r"$\tilde Q$ [$\mu$K]", r"$\tilde U$ [$\mu$K]", r"$E$ [$\mu$K]", r"$\kappa$")
    maps = (sky.q, sky.u, sky.e, sky.kappa)
    for axis, values, title in zip(axes.flat, maps, titles, strict=False):
        _map(figure, axis, values[patch], title, half)
    observed, kappa = axes[1, 1:]
    _draw_e_and_b(observed, run, sky)
    power = run.bandpowers.auto(sky.kappa) / signal_bandpowers(run, run.spectra().kk)
    L = run.bandpowers.bins.centres
    kappa.errorbar(L, power.mean(0) - 1, standard_error(power), fmt=".")
    kappa.axhline(0, color="k", lw=0.8)
    kappa.set(xlabel="$L$", ylabel=r"$C_L^{\kappa\kappa}$: patches / theory $-$ 1")
    figure.tight_layout()
    return figure


def _draw_e_and_b(axis: Axes, run: Run, sky: ObservedPatches) -> None:
    """Power of a sky's masked E and B; CAMB's through beam and mask, with the maps' white noise."""
    config, spectra = run.config, run.bandpowers
    lensed_ee, lensed_bb = lensed_polarisation(run.spectra())
    beam2 = config.instrument.beam(np.arange(len(lensed_ee))) ** 2
    white = np.mean(config.instrument.noise_variance(config.patch)) * config.patch.pixel**2
    expected = expected_e_and_b(spectra, lensed_ee * beam2, lensed_bb * beam2)
    modes = e_and_b(spectra, sky.q, sky.u)
    L = spectra.bins.centres
    for name, m, signal, colour in zip("EB", modes, expected, ("C0", "C1"), strict=True):
        power = spectra.cross(m, m)
        axis.errorbar(L, power.mean(0), standard_error(power), fmt=".", color=colour, label=name)
        axis.plot(L, signal + white, color=colour, lw=1)
    axis.set(yscale="log", xlabel=r"$\ell$", ylabel=r"$C_\ell$ [$\mu$K$^2$]")
    axis.set_title("observed E and B (points), CAMB through the mask + noise (lines)", size=8)
    axis.legend()


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
        if no epoch has finished
    """
    from ..pipeline.training_state import TrainingRun

    directory = networks.training_directory(run)
    history = TrainingRun(directory, networks.recipe(run)).history
    if not history:
        raise CNNLensError(f"{directory}: no finished epoch; run `cnnlens train`")
    epochs = [h["epoch"] for h in history]
    axis = panel(axis, (7, 4.5))
    for name, colour in (("kappa", "C0"), ("e", "C1")):
        for prefix, style, patches in (("val_", "-", "validation"), ("", ":", "training")):
            losses = [h[f"{prefix}{name}_loss"] for h in history]
            axis.plot(epochs, losses, colour, ls=style, label=f"{name}, {patches}")
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


def derivatives_figure(run: Run) -> Figure:
    """Derivatives of the noise bias, as fractions of the fiducial bandpower.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : two panels
    """
    calibration, _ = calibration_of(run)
    signal = signal_bandpowers(run, run.spectra().kk)
    measured = Derivatives(run).read(calibration.response)
    figure, axes = subplots(1, 2, figsize=(13, 5))
    labels = r"C_L^{\kappa\kappa}", r"C_\ell^{EE}"
    for axis, bands, label in zip(axes, (measured.kk, measured.ee), labels, strict=True):
        relative = bands.values / signal[:, None]
        limit = np.percentile(np.abs(relative), 98)
        rows = run.bandpowers.bins.edges
        mesh = axis.pcolormesh(bands.edges, rows, relative, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(
            xlabel=rf"band of ${label}$",
            ylabel="$L$ of the bandpower",
            title=rf"$\partial (d_b - \mathrm{{signal}})\,/\,\partial\ln {label}$ over signal",
        )
        figure.colorbar(mesh, ax=axis, extend="both")
    figure.tight_layout()
    return figure


def bandpowers_figure(run: Run, axis: Axes | None = None) -> Figure:
    """Bandpowers of every survey's first sky, debiased at the fiducial cosmology, over the fiducial
    signal.

    Parameters
    ----------
    run : a configuration, with its products and networks
    axis : the axis to draw on; that of a new figure by default

    Returns
    -------
    figure : one panel
    """
    calibration, _ = calibration_of(run)
    fiducial = signal_bandpowers(run, run.spectra().kk)
    L = run.bandpowers.bins.centres
    axis = panel(axis, (8, 5))
    for i, (name, survey) in enumerate(run.config.surveys.items()):
        data = calibration.debias(Bandpowers(run).read(f"survey-{name}", [0]).auto) / fiducial
        truth = run.spectra(run.config.set_cosmology(f"survey-{name}"))
        label = rf"{name}, $\Omega_c h^2$ = {survey.omch2:g}"
        mean, error = data.mean(0), standard_error(data)
        axis.errorbar(L + 8 * i, mean, error, fmt=".", color=f"C{i}", label=label)
        axis.plot(L, signal_bandpowers(run, truth.kk) / fiducial, color=f"C{i}", lw=1)
    axis.set(xlabel="$L$", ylabel=r"$d_L\,/\,C_L^{\kappa\kappa}$ fiducial", ylim=(0.5, 1.7))
    axis.set_title("debias fixed at the fiducial cosmology (points), true signal (lines)", size=9)
    axis.legend()
    return figure_of(axis)


def nuisances_figure(run: Run) -> Figure:
    """What one step up and one step down of the instrument's systematics do to the bandpowers.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    figure : a panel for each nuisance
    """
    calibration, _ = calibration_of(run)
    first, second = Nuisances(run).read(calibration.response)
    signal = signal_bandpowers(run, run.spectra().kk)
    L = run.bandpowers.bins.centres
    rows = -(-len(SIMULATED) // 2)
    figure, axes = subplots(rows, 2, figsize=(11, 3.5 * rows), sharex=True)
    for i, (axis, name) in enumerate(zip(axes.flat, SIMULATED, strict=False)):
        step = getattr(run.config.nuisances, name)
        for size, colour in ((step, "C0"), (-step, "C3")):
            shift = (size * first[..., i] + size**2 * second[..., i]) / signal
            mean, error = shift.mean(0), standard_error(shift)
            axis.errorbar(L, mean, error, fmt=".-", color=colour, label=f"{name} {size:+g}")
        axis.axhline(0, color="k", lw=0.8)
        axis.legend()
    for axis in axes.flat[len(SIMULATED) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("$L$")
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$\Delta d_L\,/\,C_L^{\kappa\kappa}$")
    figure.tight_layout()
    return figure


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
    "noise": validation_figures.noise_figure,
    "bandpowers": bandpowers_figure,
    "derivatives": derivatives_figure,
    "nuisances": nuisances_figure,
    "coverage": validation_figures.coverage_figure,
    "primary": validation_figures.primary_figure,
    "nulls": validation_figures.nulls_figure,
    "foregrounds": validation_figures.foregrounds_figure,
}
