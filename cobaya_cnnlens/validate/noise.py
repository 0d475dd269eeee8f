"""Reconstruction noise: beside analytic curves, of estimators side by side, and what is left of d_b
on patches that gave neither R nor N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibrate.covariance import mean_covariance
from ..calibrate.response import Calibration, PatchBandpowers, calibrate, standard_error
from ..errors import CNNLensError
from ..likelihood.statistics import hotelling_pte, inverse_covariance
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
    """Per bin, each (n_bins,): L; R and its error; N_L and its error; analytic N0 of the EB and of
    the iterated EB estimator; relative error of one patch's bandpower; correlation coefficient ρ;
    recovered power ⟨κ̂κ̂*⟩/⟨κκ*⟩ before calibration (the paper's Fig. 8).

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
    validation, test = merged_bandpowers(run, merge)
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


def merged_bandpowers(run: Run, merge: int) -> tuple[PatchBandpowers, PatchBandpowers]:
    """Read the validation and test patches, with neighbouring bins taken together.

    Parameters
    ----------
    run : a configuration, with its products and networks
    merge : how many neighbouring bins to take together

    Returns
    -------
    validation, test : bandpowers by patch
    """
    spectra = run.bandpowers
    sets = (Bandpowers(run).read(name) for name in ("validation", "test"))
    validation, test = (
        PatchBandpowers(*(spectra.merge(v, merge) for v in vars(measured).values()))
        for measured in sets
    )
    return validation, test


def noise_by_patch(
    calibration: Calibration, validation: PatchBandpowers, test: PatchBandpowers
) -> tuple[np.ndarray, np.ndarray]:
    """What each patch of the two sets adds to N_L, (n_patches, n_bins) each: the test patches' own
    κ̂κ̂*/R² − κκ*, and the validation patches' −2⟨κ̂κ̂*⟩/R³ (κκ̂* − Rκκ*)/⟨κκ*⟩ by way of R.

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
    each = test.auto / response**2 - test.truth
    influence = (validation.cross - response * validation.truth) / validation.truth.mean(0)
    return each, -2.0 * test.auto.mean(0) / response**3 * influence


def _analytic_noise(
    config: Config, L: np.ndarray, theory: Spectra, curves: Curves
) -> tuple[np.ndarray, np.ndarray]:
    """N0 of the EB estimator, and of the iterated one: seconds, for all L at a time."""
    band = band_of(config.patch, theory, round(config.patch.fundamental))
    key = (config.instrument, config.cosmology, config.camb, band)
    every = np.arange(band.lmax + 1.0)
    if key not in curves:
        curves[key] = n0_iterated(every, theory, config.instrument, band)
    return n0_eb(L, theory, config.instrument, band), np.interp(L, every, curves[key])


@dataclass(frozen=True)
class Comparison:
    """Reconstruction noise of several configurations in the same bins; L (n_bins,), the rest
    (n_configurations, n_bins) unless it says otherwise.

    ``excess`` : N_L over the analytic iterated-EB N0 of each one's own noise level, with its
    standard error over the test patches
    ``relative`` : N_L over the first one's, with its standard error; where both saw the same
    patches (``paired``, (n_configurations,)), what those have in common cancels
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
        errors = "paired errors" if self.paired.all() else "errors of unlike patches unpaired"
        blocks = [
            self._block(
                "N_L over the analytic N0 of the iterated EB", self.excess, self.excess_error
            ),
            self._block(
                f"N_L over that of {self.names[0]}, {errors}", self.relative, self.relative_error
            ),
            self._block("power of khat over that of kappa, before calibration", self.power),
        ]
        if self.scatter is not None:
            title = "scatter of <khat khat> of one patch between the networks (eq. 18), in %"
            rows = {"L": (".1f", self.L), "scatter": (".2f", 100 * self.scatter)}
            blocks.append(text_table(rows, title) + f"\nmean {100 * self.scatter.mean():.2f}")
        return "\n\n".join(blocks)

    def _block(self, title: str, values: np.ndarray, errors: np.ndarray | None = None) -> str:
        columns: dict[str, Any] = {"L": (".1f", self.L)}
        for i, name in enumerate(self.names):
            columns[name] = (
                (".3f", values[i])
                if errors is None
                else (">", plus_minus(values[i], errors[i], ".3f"))
            )
        return text_table(columns, title)


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
    tables, noises, autos = [], [], []
    curves: Curves = {}
    for run in runs:
        validation, test = merged_bandpowers(run, merge)
        tables.append(noise_table(run, merge, curves))
        noises.append(noise_by_patch(calibrate(validation, test), validation, test))
        autos.append(test.auto)
    ratio = np.array([t.noise / tables[0].noise for t in tables])
    paired = np.array([_same_patches(run, runs[0]) for run in runs])
    error = [
        np.hypot(*(standard_error(a - r * b) for a, b in zip(n, noises[0], strict=True)))
        if same
        else np.hypot(t.noise_error, r * tables[0].noise_error)
        for n, r, t, same in zip(noises, ratio, tables, paired, strict=True)
    ]
    scatter = None
    if len(runs) > 2 and paired.all():
        stack = np.array(autos)
        scatter = (stack.std(0, ddof=1) / stack.mean(0)).mean(0)
    return Comparison(
        tuple(run.config.name for run in runs),
        tables[0].L,
        np.array([t.noise / t.n0_iterated for t in tables]),
        np.array([t.noise_error / t.n0_iterated for t in tables]),
        ratio,
        np.array(error) / tables[0].noise,
        paired,
        np.array([t.power for t in tables]),
        scatter,
    )


def _same_patches(one: Run, other: Run) -> bool:
    tapers = [run.config.instrument.taper_deg for run in (one, other)]
    return tapers[0] == tapers[1] and all(
        one.config.set_size(name) == other.config.set_size(name)
        and Skies(one).recipe(name, 0) == Skies(other).recipe(name, 0)
        for name in ("validation", "test")
    )


@dataclass(frozen=True)
class ResidualTable:
    """Debiased bandpowers of a set of patches against the true spectra of the same patches, each
    (n_bins,): L, truth ⟨κκ*⟩, mean of d − κκ* and its standard error; and χ² of all bins together
    with its probability to exceed."""

    L: np.ndarray
    truth: np.ndarray
    residual: np.ndarray
    error: np.ndarray
    n_patches: int
    chi2: float
    pte: float

    def table(self) -> str:
        """As text, a line for each bin, and χ² of all."""
        relative = plus_minus(self.residual / self.truth, self.error / self.truth, "+.4f")
        rows = text_table(
            {
                "L": (".1f", self.L),
                "C (true)": (".4e", self.truth),
                "(d-C)/C": (">", relative),
                "in errors": ("+.2f", self.residual / self.error),
            }
        )
        return (
            f"{rows}\n{self.n_patches} patches: chi2 = {self.chi2:.1f} for {len(self.L)} bins, "
            f"PTE {self.pte:.3f}"
        )


def residual_table(run: Run, set_name: str, merge: int = 1) -> ResidualTable:
    """Is d = ⟨κ̂κ̂*⟩/R² − N unbiased on patches that gave neither R nor N?

    Parameters
    ----------
    run : a configuration with its bandpowers
    set_name : a set at the fiducial cosmology other than ``validation`` and ``test``
    merge : number of neighbouring bins to take together

    Returns
    -------
    table : residuals by bin, with χ² and PTE

    Raises
    ------
    CNNLensError
        for a set whose patches gave R or N
    """
    if set_name in ("validation", "test"):
        raise CNNLensError(
            f"set '{set_name}' gave the calibration; look at patches that did not, as in "
            "--on survey-fiducial"
        )
    spectra = run.bandpowers
    validation, test = merged_bandpowers(run, merge)
    calibration = calibrate(validation, test)
    measured = Bandpowers(run).read(set_name)
    auto, truth = (spectra.merge(v, merge) for v in (measured.auto, measured.truth))
    each = calibration.debias(auto) - truth
    noise = test.auto / calibration.response**2 - test.truth
    covariance = mean_covariance(each) + mean_covariance(noise)
    mean = each.mean(0)
    chi2 = float(mean @ inverse_covariance(covariance) @ mean)
    return ResidualTable(
        spectra.merge(spectra.bins.centres, merge),
        truth.mean(0),
        mean,
        np.sqrt(np.diag(covariance)),
        len(each),
        chi2,
        float(hotelling_pte(chi2, len(each), len(mean))),
    )
