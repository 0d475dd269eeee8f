"""What foregrounds that no simulation held do to the bandpowers and to ω_c.

Each foreground at each level is added, through beam and mask, to the same test patches with the
same noise, and the estimator is run again. The differences of the debiased bandpowers from those of
the patches without a foreground are the bias,

    Δd_b = Δ⟨|κ̂|²⟩/R_b²,   Δd'_b = Δd_b − Σ_i G_bi Δp̂_i,

the latter with the debias from the data. A foreground is part of the power p̂ of the survey's own
maps. The debias subtracts the part that looks like noise or E
(:mod:`cobaya_cnnlens.calibrate.debias`).
The scatter of CMB, lensing and noise is common and cancels; errors are those of the mean
difference. Nothing is calibrated anew: this is the bias of a survey that does not know of the
foreground.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.response import patch_bandpowers, standard_error
from ..errors import ConfigError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..pipeline.assemble import make_release
from ..pipeline.observation import observe_sky
from ..pipeline.power import power_of
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..simulate.foregrounds import foreground_patches
from ..simulate.instrument import convolve_beam
from ..simulate.skies import seed_sequence
from ..simulate.tiling import evenly, some
from ..table import plus_minus, text_table
from .omch2 import Omch2Likelihood, fisher

KIND = "foregrounds"
SET = "test"
ALGORITHM = 1


@dataclass(frozen=True)
class Foreground:
    """One foreground at one level: ``kind`` and ``level`` as in
    :data:`~cobaya_cnnlens.simulate.foregrounds.KINDS`, ``name`` for tables and files."""

    kind: str
    name: str
    level: float

    @property
    def label(self) -> str:
        """Name for tables and figures."""
        return f"{self.kind} {self.name}"


CLEAN = Foreground("none", "clean", 0.0)


def foregrounds_of(run: Run) -> list[Foreground]:
    """The foregrounds of a configuration.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    foregrounds : types and levels

    Raises
    ------
    ConfigError
        if it lists none
    """
    settings = run.config.foregrounds
    foregrounds = [Foreground("sources", f"{cut:g}_mJy", cut) for cut in settings.sources]
    for kind in ("dust", "synchrotron"):
        levels = getattr(settings, kind)
        foregrounds += [Foreground(kind, name, level) for name, level in levels.items()]
    if not foregrounds:
        raise ConfigError(
            f"configuration '{run.config.name}': key 'foregrounds' lists neither sources, dust nor "
            "synchrotron; add a level"
        )
    return foregrounds


def path(run: Run, foreground: Foreground, index: int) -> Path:
    """Path of the bandpowers of a test sky with a foreground.

    Parameters
    ----------
    run : a configuration, with its products and networks
    foreground : type and level of the foreground
    index : number of the sky

    Returns
    -------
    path : of the product
    """
    name = f"{foreground.kind}_{foreground.name}.h5"
    return run.config.products / KIND / f"sky_{index:04d}" / name


def recipe(run: Run, foreground: Foreground, index: int) -> dict[str, Any]:
    """What determines the bandpowers of a test sky with a foreground.

    Parameters
    ----------
    run : a configuration, with its products and networks
    foreground : type and level of the foreground
    index : number of the sky

    Returns
    -------
    recipe : of the product
    """
    settings = run.config.foregrounds
    added = {
        "kind": foreground.kind,
        "level": foreground.level,
        "frequency": settings.frequency_ghz,
    }
    return {
        **Bandpowers(run).recipe(SET, index),
        "foreground_algorithm": ALGORITHM,
        **({} if foreground == CLEAN else {"foreground": added}),
        **({"patches": n} if (n := settings.patches) is not None else {}),
    }


def measure(run: Run, index: int) -> None:
    """Measure a test sky with every foreground and level that has no product yet, and without one.

    A product holds, by patch, ``auto`` ⟨κ̂κ̂*⟩, ``cross`` ⟨κκ̂*⟩ and ``truth`` ⟨κκ*⟩, (n_patches,
    n_bins) each, and ``power`` of the maps themselves, (n_patches, n_power).

    Parameters
    ----------
    run : a configuration, with its products and networks
    index : number of the sky
    """
    run.config.check_index(SET, index)
    cases = [CLEAN, *foregrounds_of(run)]
    todo = [foreground for foreground in cases if not _exists(run, foreground, index)]
    if not todo:
        return
    sky = observe_sky(run, SET, index, masked=False)
    q, u, kappa = (some(m, run.config.foregrounds.patches) for m in (sky.q, sky.u, sky.kappa))
    del sky
    mask = run.mask.astype(np.float32)
    for foreground in tqdm(todo, desc=f"{KIND}/{index}", unit="sky"):
        maps = (np.stack([q, u]) + _added(run, foreground, index)) * mask
        estimate = run.estimator.reconstruct(*maps)
        measured = patch_bandpowers(run.bandpowers, estimate, kappa * mask)
        arrays = vars(measured) | {"power": power_of(run)(*maps)}
        case = run, foreground, index
        products.write_product(path(*case), KIND, recipe(*case), arrays)


def _exists(run: Run, foreground: Foreground, index: int) -> bool:
    return products.exists(path(run, foreground, index), KIND, recipe(run, foreground, index))


def _added(run: Run, foreground: Foreground, index: int) -> np.ndarray:
    """Q and U that a foreground adds to the maps, (2, n_patches, n, n) float32.

    Places and phases are those of kind and patch: other levels have the same, and fewer patches.
    """
    config = run.config
    chosen = evenly(run.n_patches, config.foregrounds.patches)
    if foreground == CLEAN:
        n = config.patch.n_pixels
        return np.zeros((2, len(chosen), n, n), np.float32)
    stage = f"foregrounds/{foreground.kind}"
    maps = foreground_patches(
        foreground.kind,
        foreground.level,
        config.foregrounds.frequency_ghz,
        config.patch,
        [np.random.default_rng(seed_sequence(config.seed, stage, index, i)) for i in chosen],
    )
    return convolve_beam(maps, config.instrument, config.patch).astype(np.float32)


def read(run: Run, foreground: Foreground, indices: Iterable[int]) -> dict[str, np.ndarray]:
    """Read the bandpowers of test skies with a foreground, one after another.

    Parameters
    ----------
    run : a configuration, with its products and networks
    foreground : type and level of the foreground
    indices : numbers of the skies

    Returns
    -------
    arrays : by name as :func:`measure` lists them

    Raises
    ------
    products.ProductError
        if it has not been measured, or was with another network or configuration
    """
    skies = []
    for index in indices:
        case = run, foreground, index
        with products.open_product(path(*case), KIND, recipe(*case)) as product:
            skies.append({name: product.array(name) for name in product.names()})
    return {name: np.concatenate([sky[name] for sky in skies]) for name in skies[0]}


@dataclass(frozen=True)
class Bias:
    """What a foreground does to a survey, with standard errors of the paired differences.

    ``debias`` "data" or "fixed"; ``bins`` of each bandpower in its σ, (n_bins,); ``omch2`` of ω_c,
    all else fixed, in its σ
    """

    foreground: Foreground
    debias: str
    bins: np.ndarray
    bins_error: np.ndarray
    omch2: float
    omch2_error: float

    @property
    def largest(self) -> int:
        """The bin of the largest bias."""
        return int(np.argmax(np.abs(self.bins)))


@dataclass(frozen=True)
class ForegroundTable:
    """Biases of a survey of ``n_survey`` patches, from ``n_patches`` paired ones.

    ``L`` of the bins; ``sigma`` of ω_c by debias; ``missing`` what of the configuration has not
    been measured
    """

    L: np.ndarray
    frequency_ghz: float
    n_survey: int
    n_patches: int
    sigma: dict[str, float]
    biases: list[Bias]
    missing: list[Foreground]

    def of(self, debias: str) -> list[Bias]:
        """The biases with one debias, in the order of the foregrounds.

        Parameters
        ----------
        debias : a key of ``sigma``

        Returns
        -------
        biases : of each foreground
        """
        return [bias for bias in self.biases if bias.debias == debias]

    def table(self) -> str:
        """As text: bias of ω_c and the largest of a bandpower by foreground and debias, and every
        bandpower's."""
        title = (
            f"foregrounds at {self.frequency_ghz:g} GHz that the calibration does not know, added "
            f"to {self.n_patches} test patches;\nbiases in sigma of {self.n_survey} patches"
        )
        names = {"data": "debias from the data", "fixed": "fixed debias"}
        summaries, bins = [], []
        for debias, sigma in self.sigma.items():
            biases = self.of(debias)
            summaries.append(self._summary(biases, f"{names[debias]}: sigma(omch2) {sigma:.5f}"))
            for start in range(0, len(biases), 4):
                columns = {
                    b.foreground.label: (">", plus_minus(b.bins, b.bins_error, "+.2f"))
                    for b in biases[start : start + 4]
                }
                heading = f"bias of each bandpower in its sigma, {names[debias]}"
                bins.append(text_table({"L": (".1f", self.L), **columns}, heading))
        missing = [f"not measured: {'; '.join(f.label for f in self.missing)}"]
        return "\n\n".join([title, *summaries, *bins, *(missing if self.missing else [])])

    def _summary(self, biases: list[Bias], title: str) -> str:
        """A line for each foreground: bias of ω_c, and the largest of a bandpower."""
        omch2 = plus_minus([b.omch2 for b in biases], [b.omch2_error for b in biases], "+.2f")
        largest = plus_minus(
            [b.bins[b.largest] for b in biases], [b.bins_error[b.largest] for b in biases], "+.2f"
        )
        return text_table(
            {
                "foreground": ("", [b.foreground.label for b in biases]),
                "omch2": (">", omch2),
                "largest of a bandpower": (">", largest),
                "at L": (".0f", [self.L[b.largest] for b in biases]),
            },
            title,
        )


def foregrounds_table(run: Run, indices: Iterable[int] | None = None) -> ForegroundTable:
    """The biases of the foregrounds that a configuration lists, of those that have been measured.

    The survey is that of the configuration's first mock survey's release.

    Parameters
    ----------
    run : a configuration with foregrounds
    indices : of test skies; all of ``foregrounds.skies`` by default

    Returns
    -------
    table : biases of the bandpowers and of ω_c

    Raises
    ------
    products.ProductError
        if no foreground, or not what makes a release, has been measured
    """
    settings, foregrounds = run.config.foregrounds, foregrounds_of(run)
    indices = list(range(settings.skies) if indices is None else indices)
    clean = read(run, CLEAN, indices)
    missing = [f for f in foregrounds if not all(_exists(run, f, i) for i in indices)]
    if len(missing) == len(foregrounds):
        read(run, missing[0], indices)  # which says what to run
    release = make_release(run, run.config.first_survey)
    sigma, biases = {}, []
    for debias in release.noise_debiases:
        likelihood = BandpowerLikelihood(release, debias)
        covariance = likelihood.covariance
        width = np.sqrt(np.diag(covariance))
        slope = Omch2Likelihood(run, likelihood).slope(run.config.cosmology.omch2)
        (sigma[debias],), (gain,) = fisher(slope[None], covariance)
        for foreground in foregrounds:
            if foreground in missing:
                continue
            measured = read(run, foreground, indices)
            shift = (measured["auto"] - clean["auto"]) / release.response**2
            if debias == "data":
                own = measured["power"] - clean["power"]
                shift = shift - own @ release.debias_coefficients.T
            bins, bins_error = shift.mean(0) / width, standard_error(shift) / width
            moved = shift @ gain
            omch2_bias = float(moved.mean()), float(standard_error(moved))
            biases.append(Bias(foreground, debias, bins, bins_error, *omch2_bias))
    numbers = settings.frequency_ghz, release.n_patches, len(clean["auto"])
    return ForegroundTable(run.bandpowers.bins.centres, *numbers, sigma, biases, missing)
