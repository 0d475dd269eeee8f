"""What the stages made, in numbers to look at: power of skies and surveys beside what is expected,
and what derivatives and systematics do to the bandpowers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..calibrate.response import standard_error
from ..calibrate.windows import expected_e_and_b
from ..likelihood.fields import NUISANCES
from ..pipeline.assemble import calibration_of
from ..pipeline.nuisances import Nuisances
from ..pipeline.observation import ObservedPatches
from ..pipeline.perturbations import Derivatives
from ..pipeline.reconstructions import Bandpowers, signal_bandpowers
from ..pipeline.run import Run
from ..simulate.bandpowers import e_and_b
from ..theory.camb import lensed_polarisation


@dataclass(frozen=True)
class Power:
    """Mean bandpowers of patches, their standard errors, and what is expected, (n_bins,) each."""

    mean: np.ndarray
    error: np.ndarray
    expected: np.ndarray

    @classmethod
    def of(cls, each: np.ndarray, expected: np.ndarray) -> Power:
        """The mean power of patches.

        Parameters
        ----------
        each : bandpowers of every patch, (n_patches, n_bins)
        expected : expected bandpowers, (n_bins,)

        Returns
        -------
        power : mean, standard error and expectation
        """
        return cls(each.mean(0), standard_error(each), expected)

    def over(self, other: np.ndarray) -> Power:
        """The power in units of other bandpowers.

        Parameters
        ----------
        other : bandpowers, (n_bins,)

        Returns
        -------
        power : the ratios
        """
        return Power(self.mean / other, self.error / other, self.expected / other)


def sky_power(run: Run, seen: ObservedPatches) -> dict[str, Power]:
    """Power of a sky's masked patches: ``e`` and ``b`` as observed, in µK², and ``kappa``.

    Expected is CAMB's through beam and mask, and white noise in every mode of E and B.

    Parameters
    ----------
    run : a configuration, with its products and networks
    seen : observed patches of one sky

    Returns
    -------
    power : by field
    """
    config, spectra, theory = run.config, run.bandpowers, run.spectra()
    lensed_ee, lensed_bb = lensed_polarisation(theory)
    beam2 = config.instrument.beam(np.arange(len(lensed_ee))) ** 2
    white = np.mean(config.instrument.noise_variance(config.patch)) * config.patch.pixel**2
    expected = expected_e_and_b(spectra, lensed_ee * beam2, lensed_bb * beam2)
    modes = e_and_b(spectra, seen.q, seen.u)
    return {
        **{
            name: Power.of(spectra.cross(m, m), signal + white)
            for name, m, signal in zip(("e", "b"), modes, expected, strict=True)
        },
        "kappa": Power.of(spectra.auto(seen.kappa), signal_bandpowers(run, theory.kk)),
    }


def survey_powers(run: Run) -> dict[str, Power]:
    """Bandpowers of every survey's first sky with the noise debias of the fiducial cosmology, over
    the fiducial signal; expected is the signal at the survey's own cosmology.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    power : by survey
    """
    calibration, _ = calibration_of(run)
    fiducial = signal_bandpowers(run, run.spectra().kk)
    powers = {}
    for name in run.config.surveys:
        data = calibration.debias(Bandpowers(run).read(f"survey-{name}", [0]).auto)
        truth = run.spectra(run.config.set_cosmology(f"survey-{name}"))
        powers[name] = Power.of(data, signal_bandpowers(run, truth.kk)).over(fiducial)
    return powers


def relative_derivatives(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Edges of the bands of ``kk`` and ``ee``, (n_bands + 1,), and the noise-debias derivatives by
    them over the fiducial signal, (n_bins, n_bands).

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    derivatives : edges and values by spectrum
    """
    calibration, _ = calibration_of(run)
    signal = signal_bandpowers(run, run.spectra().kk)
    measured = Derivatives(run).read(calibration.response)
    spectra = {"kk": measured.kk, "ee": measured.ee}
    return {name: (bands.edges, bands.values / signal[:, None]) for name, bands in spectra.items()}


@dataclass(frozen=True)
class Shift:
    """What a systematic of a size does to the bandpowers, over the fiducial signal, and its
    standard error, (n_bins,) each."""

    size: float
    mean: np.ndarray
    error: np.ndarray


def nuisance_shifts(run: Run) -> dict[str, tuple[Shift, Shift]]:
    """Of every nuisance: the shifts at one step up and one step down of the configuration.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    shifts : by nuisance
    """
    calibration, _ = calibration_of(run)
    first, second = Nuisances(run).read(calibration.response)
    signal = signal_bandpowers(run, run.spectra().kk)

    def shift(i: int, size: float) -> Shift:
        each = size * first[..., i] + size**2 * second[..., i]
        return Shift(size, each.mean(0) / signal, standard_error(each) / signal)

    steps = {name: getattr(run.config.nuisances, name) for name in NUISANCES}
    return {name: (shift(i, x), shift(i, -x)) for i, (name, x) in enumerate(steps.items())}
