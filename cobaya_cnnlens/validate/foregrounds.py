"""What foregrounds that no simulation held do to the bandpowers and to ω_c.

Each foreground at each level is added, through beam and mask, to the same test patches with the
same noise, and the estimator is run again. The differences of the debiased bandpowers from those of
the patches without a foreground are the bias,

    Δd_b = Δ⟨|κ̂|²⟩/R_b²,   Δd'_b = Δd_b − Σ_i G_bi Δp̂_i,

the latter with the noise debias from the data: a foreground is part of the power p̂ of the survey's
own maps, and what of it looks like noise or E is taken off
(:mod:`cobaya_cnnlens.calibrate.debias`). The scatter of CMB, lensing and noise is common and
cancels; errors are those of the mean difference. Nothing is calibrated anew: this is what a survey
finds that does not know of the foreground.

With a limit l_max, Q and U are low-passed sharply before they are masked. The estimator was not
made for such maps, so that R is measured again on the same patches without a foreground, and
the errors of the bandpowers are the release's times the ratio of the patches' scatter with the
limit to that without; correlations, and how the bandpowers move with ω_c, are the release's. The
coefficients G belong to the maps with all l: with a limit the bias is given for the fixed noise
bias alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from tqdm import tqdm

from .. import products
from ..calibrate.response import patch_bandpowers, standard_error
from ..errors import ConfigError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.fields import Group
from ..likelihood.statistics import inverse_covariance
from ..pipeline.assemble import make_release
from ..pipeline.observation import observe_sky
from ..pipeline.power import power_of
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..simulate.foregrounds import foreground_patches
from ..simulate.instrument import convolve_beam
from ..simulate.patches import PatchGeometry
from ..simulate.skies import seed_sequence
from ..simulate.tiling import evenly, some
from ..table import plus_minus, text_table
from .omch2 import Omch2Likelihood, shift_gain

KIND = "foregrounds"
SET = "test"
ALGORITHM = 1
# The noise debiases, as the likelihood names them.
DEBIASES = ("data", "fixed")


@dataclass(frozen=True)
class Foreground:
    """One foreground at one level: ``kind`` and ``level`` as in
    :data:`~cobaya_cnnlens.simulate.foregrounds.KINDS`, ``name`` for tables and files."""

    kind: str
    name: str
    level: float

    @property
    def label(self) -> str:
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
    found = [Foreground("sources", f"{cut:g}_mJy", cut) for cut in settings.sources]
    for kind in ("dust", "synchrotron"):
        levels = getattr(settings, kind)
        found += [Foreground(kind, name, level) for name, level in levels.items()]
    if not found:
        raise ConfigError(
            f"configuration '{run.config.name}': key 'foregrounds' lists neither sources, dust nor "
            "synchrotron; add a level"
        )
    return found


def path(run: Run, foreground: Foreground, lmax: int | None, index: int) -> Path:
    """Path of the bandpowers of a test sky with a foreground.

    Parameters
    ----------
    run : a configuration, with its products and networks
    foreground : type and level of the foreground
    lmax : multipole beyond which maps are filtered; None for no filter
    index : number of the sky

    Returns
    -------
    path : of the product
    """
    name = f"{foreground.kind}_{foreground.name}" + (f"_lmax_{lmax}" if lmax else "")
    return run.config.products / KIND / f"sky_{index:04d}" / f"{name}.h5"


def recipe(run: Run, foreground: Foreground, lmax: int | None, index: int) -> dict[str, Any]:
    """What determines the bandpowers of a test sky with a foreground.

    Parameters
    ----------
    run : a configuration, with its products and networks
    foreground : type and level of the foreground
    lmax : multipole beyond which maps are filtered; None for no filter
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
        **({"lmax": lmax} if lmax else {}),
        **({"patches": n} if (n := settings.patches) is not None else {}),
    }


def measure(run: Run, index: int) -> None:
    """Measure a test sky with every foreground, level and l_max that has no product yet.

    A product holds, by patch, ``auto`` ⟨κ̂κ̂*⟩, ``cross`` ⟨κκ̂*⟩ and ``truth`` ⟨κκ*⟩, (n_patches,
    n_bins) each, and ``power`` of the maps themselves, (n_patches, n_power).

    Parameters
    ----------
    run : a configuration, with its products and networks
    index : number of the sky
    """
    run.config.check_index(SET, index)
    todo = [case for case in _cases(run) if not _there(run, *case, index)]
    if not todo:
        return
    sky = observe_sky(run, SET, index, masked=False)
    q, u, kappa = (some(m, run.config.foregrounds.patches) for m in (sky.q, sky.u, sky.kappa))
    del sky
    mask = run.mask.astype(np.float32)
    for foreground, lmax in tqdm(todo, desc=f"{KIND}/{index}", unit="sky"):
        maps = np.stack([q, u]) + _seen(run, foreground, index)
        arrays = _measure(run, low_pass(maps, lmax, run.config.patch) * mask, kappa * mask)
        case = run, foreground, lmax, index
        products.write_product(path(*case), KIND, recipe(*case), arrays)


def _cases(run: Run) -> list[tuple[Foreground, int | None]]:
    """All that is measured of a sky; with all l first."""
    limits, foregrounds = (None, *run.config.foregrounds.lmax), (CLEAN, *foregrounds_of(run))
    return [(foreground, lmax) for lmax in limits for foreground in foregrounds]


def _there(run: Run, foreground: Foreground, lmax: int | None, index: int) -> bool:
    case = run, foreground, lmax, index
    return products.exists(path(*case), KIND, recipe(*case))


def _measure(run: Run, maps: np.ndarray, kappa: np.ndarray) -> dict[str, np.ndarray]:
    q, u = maps
    measured = patch_bandpowers(run.bandpowers, run.estimator.reconstruct(q, u), kappa)
    return vars(measured) | {"power": power_of(run)(q, u)}


def _seen(run: Run, foreground: Foreground, index: int) -> np.ndarray:
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


def low_pass(maps: np.ndarray, lmax: int | None, geometry: PatchGeometry) -> np.ndarray:
    """Remove the modes of maps beyond a multipole.

    Parameters
    ----------
    maps : without a mask, (..., n, n)
    lmax : largest multipole; None leaves the maps as they are
    geometry : size and pixels of the patches

    Returns
    -------
    maps : filtered, (..., n, n)
    """
    if lmax is None:
        return maps
    l = np.pi * np.arange(geometry.n_pixels) / (geometry.n_pixels * geometry.pixel)
    kept = np.hypot(l[:, None], l) <= lmax
    modes = scipy.fft.dctn(maps, axes=(-2, -1), norm="ortho")
    return scipy.fft.idctn(modes * kept, axes=(-2, -1), norm="ortho").astype(maps.dtype)


def read(
    run: Run, foreground: Foreground, lmax: int | None, indices: Iterable[int]
) -> dict[str, np.ndarray]:
    """Read the bandpowers of test skies with a foreground, one after another.

    Parameters
    ----------
    run : a configuration, with its products and networks
    foreground : type and level of the foreground
    lmax : multipole beyond which maps are filtered; None for no filter
    indices : numbers of the skies

    Returns
    -------
    arrays : by name as :func:`measure` lists them

    Raises
    ------
    products.ProductError
        if it has not been measured, or was with another network or configuration
    """
    parts = []
    for index in indices:
        case = run, foreground, lmax, index
        with products.open_product(path(*case), KIND, recipe(*case)) as product:
            parts.append({name: product.array(name) for name in product.names()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Bias:
    """What a foreground does to a survey, with standard errors of the paired differences.

    ``debias`` one of :data:`DEBIASES`; ``bins`` of each bandpower in its σ, (n_bins,), zero where
    the estimator knows nothing; ``omch2`` of ω_c, all else fixed, in its σ
    """

    foreground: Foreground
    lmax: int | None
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

    ``L`` of the bins; ``sigma`` of ω_c by debias, and ``sigma_lmax``, by l_max, that of the fixed
    noise bias; ``missing`` what of the configuration has not been measured
    """

    L: np.ndarray
    frequency_ghz: float
    n_survey: int
    n_patches: int
    sigma: dict[str, float]
    sigma_lmax: dict[int, float]
    biases: list[Bias]
    missing: list[tuple[Foreground, int | None]]

    def of(self, debias: str, lmax: int | None = None) -> list[Bias]:
        """The biases with one noise debias and l_max, in the order of the foregrounds.

        Parameters
        ----------
        debias : noise debias, a key of ``sigma``
        lmax : multipole beyond which maps were filtered; None for no filter

        Returns
        -------
        biases : of each foreground
        """
        return [b for b in self.biases if (b.debias, b.lmax) == (debias, lmax)]

    def table(self) -> str:
        """As text: bias of ω_c and the largest of a bandpower by foreground and noise debias, the
        same with each l_max, and every bandpower's."""
        title = (
            f"foregrounds at {self.frequency_ghz:g} GHz that the calibration does not know, added "
            f"to {self.n_patches} test patches;\nbiases in sigma of {self.n_survey} patches"
        )
        cases = [
            (way, None, sigma, f"debias from the {way}") for way, sigma in self.sigma.items()
        ] + [
            ("theory", lmax, sigma, f"l up to {lmax}, debias from the theory")
            for lmax, sigma in self.sigma_lmax.items()
        ]
        blocks = [
            self._summary(self.of(way, lmax), f"{name}: sigma(omch2) {sigma:.5f}")
            for way, lmax, sigma, name in cases
        ]
        for way in self.sigma:
            biases = self.of(way)
            title_bins = f"bias of each bandpower in its sigma, debias from the {way}"
            for start in range(0, len(biases), 4):
                columns = {
                    b.foreground.label: (">", plus_minus(b.bins, b.bins_error, "+.2f"))
                    for b in biases[start : start + 4]
                }
                blocks.append(text_table({"L": (".1f", self.L), **columns}, title_bins))
        if self.missing:
            names = (f.label + (f", l up to {lmax}" if lmax else "") for f, lmax in self.missing)
            blocks.append("not measured: " + "; ".join(names))
        return "\n\n".join([title, *blocks])

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


@dataclass(frozen=True)
class _Judge:
    """Shifts of bandpowers as a survey sees them: σ of the bandpowers and their covariance,
    ∂µ/∂ω_c."""

    covariance: np.ndarray
    slope: np.ndarray

    @property
    def sigma(self) -> float:
        """Of ω_c."""
        return float((self.slope @ inverse_covariance(self.covariance) @ self.slope) ** -0.5)

    def bias(self, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Of the patches' shifts (n_patches, n_bins) what a :class:`Bias` holds."""
        width = np.sqrt(np.diag(self.covariance))
        moved = shifts @ shift_gain(self.slope, self.covariance)
        return (
            shifts.mean(0) / width,
            standard_error(shifts) / width,
            float(moved.mean()),
            float(standard_error(moved)),
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
    settings, cases = run.config.foregrounds, _cases(run)
    indices = list(range(settings.skies) if indices is None else indices)
    missing = [case for case in cases if not all(_there(run, *case, i) for i in indices)]
    whole = [case for case in missing if case[1] is None]
    if (CLEAN, None) in whole or len(whole) == len(foregrounds_of(run)):
        read(run, *whole[0], indices)  # which says what to run
    found = {case: read(run, *case, indices) for case in cases if case not in missing}
    clean = {lmax: measured for (f, lmax), measured in found.items() if f == CLEAN}
    made = make_release(run, run.config.first_survey)
    judges = {
        way: _judge(run, BandpowerLikelihood(made, way))
        for way in DEBIASES
        if way == "fixed" or made.has(Group.DEBIAS)
    }
    limited = {
        lmax: _Limited(judges["fixed"], clean[None], measured)
        for lmax, measured in clean.items()
        if lmax is not None
    }
    biases = []
    for (f, lmax), more in found.items():
        if f == CLEAN or lmax not in clean:
            continue
        shift = more["auto"] - clean[lmax]["auto"]
        if lmax is not None:
            biases.append(Bias(f, lmax, "fixed", *limited[lmax].bias(shift)))
            continue
        shift = shift / made.response**2
        biases.append(Bias(f, lmax, "fixed", *judges["fixed"].bias(shift)))
        if made.has(Group.DEBIAS):
            own = (more["power"] - clean[lmax]["power"]) @ made.debias_coefficients.T
            biases.append(Bias(f, lmax, "data", *judges["data"].bias(shift - own)))
    return ForegroundTable(
        run.bandpowers.bins.centres,
        settings.frequency_ghz,
        made.n_patches,
        len(clean[None]["auto"]),
        {name: judge.sigma for name, judge in judges.items()},
        {lmax: judge.sigma for lmax, judge in limited.items()},
        biases,
        missing,
    )


def _judge(run: Run, likelihood: BandpowerLikelihood) -> _Judge:
    slope = Omch2Likelihood(run, likelihood).slope(run.config.cosmology.omch2)
    return _Judge(likelihood.covariance, slope)


class _Limited:
    """The survey with l_max: R and the scatter from patches without a foreground, those of all l
    beside those with the limit; bins without a response left out."""

    def __init__(self, judge: _Judge, whole: dict[str, np.ndarray], limited: dict[str, np.ndarray]):
        before, after = (p["cross"].mean(0) / p["truth"].mean(0) for p in (whole, limited))
        self._known = (before > 0) & (after > 0)
        self._response = np.where(self._known, after, 1.0)
        scatter, wider = (
            p["auto"].std(0, ddof=1)[self._known] / response[self._known] ** 2
            for p, response in ((whole, before), (limited, after))
        )
        scale = wider / scatter
        kept = np.ix_(self._known, self._known)
        covariance = judge.covariance[kept] * np.outer(scale, scale)
        self._judge = _Judge(covariance, judge.slope[self._known])

    @property
    def sigma(self) -> float:
        return self._judge.sigma

    def bias(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Of the patches' shifts of ⟨κ̂κ̂*⟩, (n_patches, n_bins)."""
        *bins, omch2, error = self._judge.bias((shift / self._response**2)[:, self._known])
        every = np.zeros((2, len(self._known)))
        every[:, self._known] = bins
        return every[0], every[1], omch2, error
