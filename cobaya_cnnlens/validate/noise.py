"""Reconstruction noise: beside analytic curves, and of estimators side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibrate.response import Calibration, PatchBandpowers, calibrate, standard_error
from ..errors import CNNLensError
from ..pipeline.config import Config
from ..pipeline.reconstructions import Bandpowers, signal_bandpowers
from ..pipeline.run import Run
from ..pipeline.skies import Skies
from ..reconstruct.n0 import band_of, n0_eb, n0_iterated
from ..table import plus_minus, text_table
from ..theory.camb import Spectra

# Analytic curves of the iterated estimator by what determines them.
Curves = dict[tuple[Any, ...], np.ndarray]


@dataclass(frozen=True)
class NoiseTable:
    """Per bin, each (n_bins,): L; R and its error; N_L and its error; analytic N0 of the quadratic
    and of the iterative EB estimator; relative error of one patch's bandpower; correlation
    coefficient ρ; recovered power ⟨κ̂κ̂*⟩/⟨κκ*⟩ before calibration (the paper's Fig. 8).

    The error of N_L is that of its mean over the test patches and that of R from the validation
    patches, which moves N_L by −2⟨κ̂κ̂*⟩/R³ δR.
    """

    L: np.ndarray
    response: np.ndarray
    response_error: np.ndarray
    noise: np.ndarray
    noise_error: np.ndarray
    n0_eb: np.ndarray
    n0_iterated: np.ndarray
    relative_error: np.ndarray
    correlation: np.ndarray
    power: np.ndarray

    def table(self) -> str:
        """As text, a line for each bin."""
        over = {"EB": self.n0_eb, "iterated": self.n0_iterated}
        ratios = {
            f"N_L/N0({name})": (">", plus_minus(self.noise / n0, self.noise_error / n0, ".3f"))
            for name, n0 in over.items()
        }
        return text_table(
            {
                "L": (".1f", self.L),
                "R": (">", plus_minus(self.response, self.response_error, ".3f")),
                "N_L": (".3e", self.noise),
                **ratios,
                "sigma(d)/C": (".3f", self.relative_error),
                "rho": (".3f", self.correlation),
                "power": (".3f", self.power),
            }
        )


def noise_table(run: Run, merge: int = 1, curves: Curves | None = None) -> NoiseTable:
    """Reconstruction noise of the network beside the analytic curves, on the test set.

    Parameters
    ----------
    run : a configuration whose sets ``validation`` and ``test`` were reconstructed
    merge : number of neighbouring bins to take together
    curves : analytic curves already computed, to which this table's are added

    Returns
    -------
    table : noise, response and errors by bin

    Raises
    ------
    CNNLensError
        if fewer bins are left than one
    """
    spectra = run.bandpowers
    if not 1 <= merge <= spectra.bins.n_bins:
        raise CNNLensError(f"cannot merge {merge} of {spectra.bins.n_bins} bins")
    validation, test = _merged_bandpowers(run, merge)
    calibration = calibrate(validation, test)
    theory = run.spectra()
    L = spectra.merge(spectra.bins.centres, merge)
    expected = spectra.merge(signal_bandpowers(run, theory.kk), merge)
    scatter = calibration.debias(test.auto).std(0, ddof=1)
    n_test, n_validation = noise_by_patch(calibration, validation, test)
    auto, cross, truth = (getattr(test, k).mean(0) for k in ("auto", "cross", "truth"))
    quadratic, iterated = _analytic_noise(run.config, L, theory, {} if curves is None else curves)
    return NoiseTable(
        L,
        calibration.response,
        calibration.response_error,
        calibration.noise,
        np.hypot(standard_error(n_test), standard_error(n_validation)),
        quadratic,
        iterated,
        scatter / expected,
        cross / np.sqrt(auto * truth),
        auto / truth,
    )


def _merged_bandpowers(run: Run, merge: int) -> tuple[PatchBandpowers, PatchBandpowers]:
    """Validation and test patches, with neighbouring bins taken together."""
    validation, test = (
        PatchBandpowers(
            *(run.bandpowers.merge(v, merge) for v in vars(Bandpowers(run).read(name)).values())
        )
        for name in ("validation", "test")
    )
    return validation, test


def noise_by_patch(
    calibration: Calibration, validation: PatchBandpowers, test: PatchBandpowers
) -> tuple[np.ndarray, np.ndarray]:
    """Contribution of each patch of the two sets to N_L.

    The test patches add their own κ̂κ̂*/R² − κκ*; the validation patches add
    −2⟨κ̂κ̂*⟩/R³ (κκ̂* − Rκκ*)/⟨κκ*⟩ through R.

    Parameters
    ----------
    calibration : response and noise bias of the two sets
    validation : bandpowers of the validation patches
    test : bandpowers of the test patches

    Returns
    -------
    test : contributions of the test patches, (n_patches, n_bins)
    validation : contributions of the validation patches, (n_patches, n_bins)
    """
    response = calibration.response
    noise = test.auto / response**2 - test.truth
    change = (validation.cross - response * validation.truth) / validation.truth.mean(0)
    return noise, -2.0 * test.auto.mean(0) / response**3 * change


def _analytic_noise(
    config: Config, L: np.ndarray, theory: Spectra, curves: Curves
) -> tuple[np.ndarray, np.ndarray]:
    """N0 of the quadratic EB estimator, and of the iterative one: seconds, for all L at a time."""
    band = band_of(config.patch, theory, round(config.patch.fundamental))
    key = (config.instrument, config.cosmology, config.camb, band)
    multipoles = np.arange(band.lmax + 1.0)
    if key not in curves:
        curves[key] = n0_iterated(multipoles, theory, config.instrument, band)
    return n0_eb(L, theory, config.instrument, band), np.interp(L, multipoles, curves[key])


@dataclass(frozen=True)
class Comparison:
    """Reconstruction noise of several configurations in the same bins; L (n_bins,), the others
    (n_configurations, n_bins) unless it says otherwise.

    ``excess`` : N_L over the analytic N0 of the iterative EB estimator at each one's own noise
    level, with its standard error over the test patches
    ``relative`` : N_L over the first one's, with its standard error; where both are of the same
    patches (``paired``, (n_configurations,)), the scatter that they have in common cancels
    ``power`` : ⟨κ̂κ̂*⟩/⟨κκ*⟩ before calibration (Caldeira et al. 2018, Figs 8 and 12)
    ``scatter`` (n_bins,) : scatter of one patch's ⟨κ̂κ̂*⟩ between the configurations over its mean
    (Caldeira et al. 2018, eq. 18), averaged over the patches; None for fewer than three, or where
    the patches are not the same
    """

    names: tuple[str, ...]
    L: np.ndarray
    excess: np.ndarray
    excess_error: np.ndarray
    relative: np.ndarray
    relative_error: np.ndarray
    paired: np.ndarray
    power: np.ndarray
    scatter: np.ndarray | None

    def table(self) -> str:
        """As text: the configurations beside each other, a line for each bin."""
        first, errors = self.names[0], "paired errors"
        if not self.paired.all():
            errors = "errors of unlike patches unpaired"
        power, form = self.power, ".3f"
        excess, relative = (
            [(">", plus_minus(*row, form)) for row in zip(values, each_error, strict=True)]
            for values, each_error in (
                (self.excess, self.excess_error),
                (self.relative, self.relative_error),
            )
        )
        blocks = {
            "N_L over the analytic N0 of the iterated EB": excess,
            f"N_L over that of {first}, {errors}": relative,
            "power of khat over that of kappa, before calibration": [(form, row) for row in power],
        }
        tables = [
            text_table({"L": (".1f", self.L), **dict(zip(self.names, columns, strict=True))}, title)
            for title, columns in blocks.items()
        ]
        if self.scatter is not None:
            title = "scatter of <khat khat> of one patch between the networks (eq. 18), in %"
            rows = {"L": (".1f", self.L), "scatter": (".2f", 100 * self.scatter)}
            tables.append(text_table(rows, title) + f"\nmean {100 * self.scatter.mean():.2f}")
        return "\n\n".join(tables)


def compare(runs: list[Run], merge: int = 1) -> Comparison:
    """N_L of several networks, noise levels, patches or ways of application, side by side.

    Parameters
    ----------
    runs : of configurations with the same bins
    merge : number of neighbouring bins to take together

    Returns
    -------
    comparison : noise of all configurations by bin

    Raises
    ------
    CNNLensError
        if the bins differ
    """
    first = runs[0].config
    for other in (run.config for run in runs[1:]):
        if other.bandpowers != first.bandpowers:
            raise CNNLensError(
                f"configurations '{first.name}' and '{other.name}' differ in 'bandpowers'; only "
                "the same bins can be compared"
            )
    tables, contributions, autos = [], [], []
    curves: Curves = {}
    for run in runs:
        validation, test = _merged_bandpowers(run, merge)
        tables.append(noise_table(run, merge, curves))
        contributions.append(noise_by_patch(calibrate(validation, test), validation, test))
        autos.append(test.auto)
    noise, error, iterative = (
        np.array([getattr(t, name) for t in tables])
        for name in ("noise", "noise_error", "n0_iterated")
    )
    ratio = noise / noise[0]
    paired = np.array([_same_patches(run, runs[0]) for run in runs])
    relative_error = [
        np.hypot(*(standard_error(a - r * b) for a, b in zip(own, contributions[0], strict=True)))
        if same
        else np.hypot(e, r * error[0])
        for own, r, e, same in zip(contributions, ratio, error, paired, strict=True)
    ]
    scatter = None
    if len(runs) > 2 and paired.all():
        stack = np.array(autos)
        scatter = (stack.std(0, ddof=1) / stack.mean(0)).mean(0)
    return Comparison(
        names=tuple(run.config.name for run in runs),
        L=tables[0].L,
        excess=noise / iterative,
        excess_error=error / iterative,
        relative=ratio,
        relative_error=np.array(relative_error) / noise[0],
        paired=paired,
        power=np.array([t.power for t in tables]),
        scatter=scatter,
    )


def _same_patches(one: Run, other: Run) -> bool:
    tapers = [run.config.instrument.taper_deg for run in (one, other)]
    return tapers[0] == tapers[1] and all(
        one.config.set_size(name) == other.config.set_size(name)
        and Skies(one).recipe(name, 0) == Skies(other).recipe(name, 0)
        for name in ("validation", "test")
    )
