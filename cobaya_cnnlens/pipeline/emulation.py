"""Making an emulator: CAMB at the points of a design, then the fit, then its errors.

The points are a Sobol sequence in the box; those with Ω_m near 1 or above, which a flat universe
with dark energy does not have, are left out. Every point is kept on disk when it is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.stats import qmc
from tqdm import tqdm

from .. import products
from ..errors import EmulatorError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.fields import Group, Release
from ..table import text_table
from ..theory.approximations import matter_density
from ..theory.camb import (
    CambSettings,
    Cosmology,
    camb_parameters,
    camb_refusals,
    convergence_from_potential,
    settings_record,
    sigma8,
)
from ..theory.emulator import (
    AMPLITUDE,
    LARGEST_DENSITY,
    REIONISATION,
    SCALARS,
    Emulator,
    Tables,
    baselines,
    stretched,
    unit_box,
)
from ..theory.emulator_files import check_base, read_emulator
from .loading import load_as

KIND = "emulator point"
# Raised when a point's code changes what it gives.
ALGORITHM = 3
# The corners of a box stretch a little more than any point of the design.
STRETCH_MARGIN = 0.02
# Spacing of the nodes: in ln L for C^κκ (1 at least), in x for C^EE.
LOG_SPACING, STRETCHED_SPACING = 0.03, 6.0


@dataclass(frozen=True)
class Plan:
    """What to emulate, read from a YAML file.

    Attributes
    ----------
    name, products : of the emulator, and the folder of CAMB's spectra
    box : the two sides of each parameter; ``logA`` is ln 10¹⁰A_s
    fixed : the other parameters of :class:`~cobaya_cnnlens.theory.Cosmology`
    lmax : highest multipole of the emulator
    camb : settings, whose ``lmax`` exceeds the emulator's by as much as θ* varies over the box
    points, checks : number of points of the design, and of those after them that only measure
        errors
    seed : of the Sobol sequence
    kernel, degree, smoothing, scales : of :class:`~cobaya_cnnlens.theory.emulator.Emulator`
    components : principal components of either spectrum
    upon : a shipped emulator, or the path of one, to which this one adds parameters; empty for none
    at_low_side : how many of the first points are taken once more at a parameter's low side
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    products: Path
    box: dict[str, tuple[float, float]]
    fixed: dict[str, float]
    lmax: int = 4400
    camb: CambSettings = field(default_factory=CambSettings)
    points: int = 400
    checks: int = 40
    seed: int = 1
    kernel: str = "cubic"
    degree: int = 3
    smoothing: float = 1.0
    scales: dict[str, float] = field(default_factory=dict)
    components: int = 16
    upon: str = ""
    at_low_side: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.at_low_side) - set(self.box):
            raise ValueError(f"at_low_side: {sorted(unknown)} are not in the box")
        for name, scale in self.scales.items():
            if name not in self.box or not 0 < scale < np.inf:
                raise ValueError(f"scales: {name} {scale}; give parameters of the box, positive")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the box's parameters, in order."""
        return tuple(self.box)

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper sides of the box, (n_parameters,) each."""
        low, high = np.array(list(self.box.values()), dtype=float).T
        return low, high

    def design(self) -> np.ndarray:
        """All points, those of the checks last, (points + checks, n_parameters)."""
        low, high = self.sides()
        n_points = self.points + self.checks
        sobol = qmc.Sobol(len(low), scramble=True, seed=self.seed)
        drawn = qmc.scale(sobol.random_base2(int(np.ceil(np.log2(4 * n_points)))), low, high)
        flat = [self.cosmology(point) for point in drawn]
        allowed = [matter_density(asdict(c)) < LARGEST_DENSITY for c in flat]
        points = drawn[allowed][:n_points]
        sides = []
        for name, count in self.at_low_side.items():
            side = points[:count].copy()
            side[:, self.parameters.index(name)] = low[self.parameters.index(name)]
            sides.append(side)
        return np.vstack([points[: self.points], *sides, points[self.points :]])

    def check_points(self) -> np.ndarray:
        """Those of the design that only check, (checks, n_parameters)."""
        design = self.design()
        return design[len(design) - self.checks :]

    def cosmology(self, point: Iterable[float]) -> Cosmology:
        """The cosmology of a point of the box.

        Parameters
        ----------
        point : parameters in the order of ``box``

        Returns
        -------
        cosmology
        """
        values = {**dict(zip(self.box, map(float, point), strict=True)), **self.fixed}
        values["As"] = 1e-10 * float(np.exp(values.pop(AMPLITUDE)))
        return Cosmology(**values)

    def recipe(self, point: Iterable[float]) -> dict[str, Any]:
        """What determines the spectra at a point.

        Parameters
        ----------
        point : parameters in the order of ``box``

        Returns
        -------
        mapping for JSON
        """
        return {**settings_record(self.cosmology(point), self.camb), "algorithm": ALGORITHM}

    def path(self, recipe: dict[str, Any]) -> Path:
        """Where the spectra of a recipe lie.

        Parameters
        ----------
        recipe : of :meth:`recipe`

        Returns
        -------
        the file, under ``products``
        """
        return self.products / f"{products.identity_of(recipe)}.h5"


def load_plan(path: str | Path) -> Plan:
    """Read a plan.

    Parameters
    ----------
    path : of the YAML file

    Returns
    -------
    the plan

    Raises
    ------
    ConfigError
        if the file cannot be read, or has a wrong key or value
    """
    return load_as(Plan, path)


def run_camb(plan: Plan, points: np.ndarray, jobs: int = 1) -> None:
    """Run CAMB at every one of a design's points that has not been, in ``jobs`` processes.

    Parameters
    ----------
    plan : of the emulator
    points : (n, n_parameters)
    jobs : number of processes
    """
    missing = [p for p in points if not products.exists(*_product(plan, p))]
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _set_threads, (threads,)) as pool:
        for _ in tqdm(
            pool.map(_run_point, [plan] * len(missing), missing),
            total=len(points),
            initial=len(points) - len(missing),
            desc=plan.name,
            unit="point",
            disable=not missing,
        ):
            pass


def _product(plan: Plan, point: np.ndarray) -> tuple[Path, str, dict[str, Any]]:
    recipe = plan.recipe(point)
    return plan.path(recipe), KIND, recipe


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _run_point(plan: Plan, point: np.ndarray) -> None:
    import camb

    cosmology, lmax = plan.cosmology(point), plan.camb.lmax
    with camb_refusals(cosmology):
        parameters = camb_parameters(cosmology, plan.camb)
        results = camb.get_results(parameters)
        clpp = results.get_lens_potential_cls(lmax, raw_cl=True)[:, 0]
        clee = results.get_unlensed_scalar_cls(lmax, CMB_unit="muK", raw_cl=True)[:, 1]
        derived = results.get_derived_params()
        scalars = {
            "thetastar": derived["thetastar"] / 100.0,
            "sigma8": sigma8(parameters),
            "omegam": parameters.omegam,
            "rdrag": derived["rdrag"],
        }
    path, kind, recipe = _product(plan, point)
    arrays = {"kk": convergence_from_potential(clpp), "ee": clee}
    products.write_product(path, kind, recipe, {**arrays, **scalars})


@dataclass(frozen=True)
class Points:
    """CAMB's spectra at points of the design.

    Attributes
    ----------
    at : the points, (n, n_parameters)
    kk, ee : C_L^κκ, and unlensed C_l^EE in µK², (n, camb.lmax + 1) each
    scalars : derived parameters, (n, 4)
    """

    at: np.ndarray
    kk: np.ndarray
    ee: np.ndarray
    scalars: np.ndarray

    def __getitem__(self, which: slice | np.ndarray) -> Points:
        return Points(self.at[which], self.kk[which], self.ee[which], self.scalars[which])


def read_points(plan: Plan, at: np.ndarray) -> Points:
    """CAMB's spectra at points of the design.

    Parameters
    ----------
    plan : of the emulator
    at : the points, (n, n_parameters)

    Returns
    -------
    the points with their spectra

    Raises
    ------
    ProductError
        if one has not been run
    """
    kk, ee, scalars = [], [], []
    for point in at:
        with products.open_product(*_product(plan, point)) as product:
            kk.append(product.array("kk"))
            ee.append(product.array("ee"))
            scalars.append([float(product.array(name)) for name in SCALARS])
    return Points(at, np.array(kk), np.array(ee), np.array(scalars))


def fit(plan: Plan, points: Points) -> Emulator:
    """The emulator of a design.

    Parameters
    ----------
    plan : of the emulator
    points : with CAMB's spectra, those of the checks left out

    Returns
    -------
    the emulator

    Raises
    ------
    EmulatorError
        if CAMB's spectra do not reach as far as the stretched multipoles must, or the base does not
        hold the box
    """
    base = read_emulator(plan.upon) if plan.upon else None
    sides = plan.sides()
    theta = points.scalars[:, SCALARS.index("thetastar")]
    reference = float(base.tables.thetastar if base else np.exp(np.log(theta).mean()))
    stretch = theta / reference
    L, x = _multipoles(plan), _stretched_multipoles(plan, stretch)
    kk, ee = _logarithms(plan, points, stretch, L, x)
    if base:
        check_base(base, plan.box, plan.fixed, (L[-1], x[-1]), plan.name)
    known = _take_known_off(plan, points, base, (L, kk), (x, ee))
    at, scalars = points.at, np.log(points.scalars / known)
    if base:
        # Where the further parameters are the base's, nothing is left of any of these.
        known_at = _where_the_base_is(plan, base, at)
        at, n = np.vstack([at, known_at]), len(known_at)
        kk, ee, scalars = (
            np.vstack([values, np.zeros((n, values.shape[1]))]) for values in (kk, ee, scalars)
        )
    kk_mean, kk_basis, kk_parts = _components(kk, plan.components)
    low, high = (
        _components(np.where(part, ee, 0.0), plan.components)
        for part in (x < REIONISATION, x >= REIONISATION)
    )
    tables = Tables(
        low=sides[0],
        high=sides[1],
        design=unit_box(at, *sides),
        targets=np.hstack([kk_parts, scalars[:, :-1]]),
        rdrag=scalars[:, -1],
        linear=np.hstack([low[2], high[2]]),
        L=L,
        kk_mean=kk_mean,
        kk_basis=kk_basis,
        x=x,
        ee_mean=low[0] + high[0],
        ee_basis=np.concatenate([low[1], high[1]]),
        thetastar=np.array(reference),
    )
    return Emulator(tables, _record(plan, points, base), base)


def _multipoles(plan: Plan) -> np.ndarray:
    """Nodes in L of C^κκ, evenly spaced in ln L from 2 to ``plan.lmax``."""
    L = np.unique(
        np.round(np.exp(np.arange(np.log(2.0), np.log(plan.lmax), LOG_SPACING))).astype(int)
    )
    return np.append(L[plan.lmax > L], plan.lmax)


def _stretched_multipoles(plan: Plan, stretch: np.ndarray) -> np.ndarray:
    """Nodes in x, the stretched multipole, of C^EE.

    Raises
    ------
    EmulatorError
        if CAMB's spectra do not reach the last
    """
    # Every point must reach the last node, which lmax needs where the stretch is largest.
    first = stretched(np.array([2.0]), stretch.max())[0]
    last = plan.lmax * (stretch.max() + STRETCH_MARGIN)
    if plan.camb.lmax * stretch.min() < last:
        raise EmulatorError(
            f"{plan.name}: over this box θ* varies by {np.ptp(stretch):.0%}; raise 'camb.lmax' to "
            f"{int(np.ceil(last / stretch.min() / 100)) * 100}, or shrink the box"
        )
    return np.concatenate(
        [np.arange(first, REIONISATION), np.arange(REIONISATION, last, STRETCHED_SPACING)]
    )


def _logarithms(
    plan: Plan, points: Points, stretch: np.ndarray, L: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln C^κκ at L and ln l²C^EE at x over A_s, (n_points, n_L) and (n_points, n_x)."""
    logA = points.at[:, plan.parameters.index(AMPLITUDE)][:, None]
    l = np.arange(2.0, plan.camb.lmax + 1.0)
    # l²C_l is what stays put at fixed x.
    ee = (
        -logA
        - 2.0 * np.log(stretch)[:, None]
        + np.array(
            [
                CubicSpline(stretched(l, s), np.log(cl[2:]))(x)
                for s, cl in zip(stretch, points.ee, strict=True)
            ]
        )
    )
    return np.log(points.kk[:, L]) - logA, ee


def _take_known_off(
    plan: Plan,
    points: Points,
    base: Emulator | None,
    kk: tuple[np.ndarray, np.ndarray],
    ee: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Take what the base has of the logarithms off them, in place; the derived parameters as the
    base or else fitting formulae have them, (n_points, n_scalars).

    Parameters
    ----------
    kk, ee : nodes, and logarithms there by point
    """
    named = [dict(zip(plan.parameters, at, strict=True)) for at in points.at]
    if base is None:
        return np.array([baselines({**plan.fixed, **point}) for point in named])
    (L, log_kk), (x, log_ee), known = kk, ee, []
    for i, point in enumerate(named):
        below, splines, logarithms = base.logarithms(point)
        log_kk[i] -= below[L - 2]
        log_ee[i] -= sum(spline(x) for spline in splines)
        known.append(np.exp(logarithms))
    return np.array(known)


def _where_the_base_is(plan: Plan, base: Emulator, at: np.ndarray) -> np.ndarray:
    """The points with the parameters that the base has not at its values, each once."""
    known_at = at.copy()
    for i, name in enumerate(plan.parameters):
        if name not in base.parameters:
            known_at[:, i] = base.fixed[name]
    return np.unique(known_at, axis=0)


def _record(plan: Plan, points: Points, base: Emulator | None) -> dict[str, Any]:
    """What an emulator says of itself."""
    return {
        "name": plan.name,
        "parameters": list(plan.parameters),
        "fixed": plan.fixed,
        "kernel": plan.kernel,
        "degree": plan.degree,
        "smoothing": plan.smoothing,
        "scales": plan.scales,
        **({"base": plan.upon, "base_digest": base.digest} if base else {}),
        **{k: v for k, v in plan.recipe(points.at[0]).items() if k != "cosmology"},
    }


@dataclass(frozen=True)
class Errors:
    """An emulator's errors at each of n points.

    Attributes
    ----------
    at : the points, (n, n_parameters)
    kk, ee : largest relative error of C^κκ and of unlensed C^EE at any multipole, (n,) each
    ee_bands : largest relative error of the power of C^EE in a band of the release, or of C^κκ if
        it has none, (n,)
    delta_chi2 : ΔµᵀC⁻¹Δµ of a survey's bandpowers, (n,)
    scalars : largest relative error of the derived parameters, (n,)
    """

    at: np.ndarray
    kk: np.ndarray
    ee: np.ndarray
    ee_bands: np.ndarray
    delta_chi2: np.ndarray
    scalars: np.ndarray

    def table(self) -> str:
        """As text: median, 95% and largest over the points."""
        rows = {
            "largest |dC/C| of C^kk, %": 100 * self.kk,
            "largest |dC/C| of C^EE, %": 100 * self.ee,
            "largest |dC/C| of a band of C^EE, %": 100 * self.ee_bands,
            "dchi2 of the survey's bandpowers": self.delta_chi2,
            "derived parameters, %": 100 * self.scalars,
        }
        median, high, largest = np.percentile(list(rows.values()), (50, 95, 100), axis=1)
        title = f"{len(self.at)} points that did not make the emulator"
        return text_table(
            {
                "error": ("", rows),
                "median": (".4f", median),
                "95%": (".4f", high),
                "largest": (".4f", largest),
            },
            title,
        )


def errors(emulator: Emulator, points: Points, release: Release) -> Errors:
    """Errors of an emulator at points that did not make it, against CAMB's own spectra.

    Parameters
    ----------
    emulator : the fitted one
    points : that did not make it
    release : whose bandpowers measure the error

    Returns
    -------
    errors by point
    """
    rows, likelihood = [], BandpowerLikelihood(release)
    n = emulator.lmax + 1
    edges = release.ee_edges if release.has(Group.PRIMARY) else release.kk_edges
    weight = 2.0 * np.arange(edges[0], edges[-1]) + 1.0

    def bands(cl: np.ndarray) -> np.ndarray:
        return np.add.reduceat(weight * cl[edges[0] : edges[-1]], edges[:-1] - edges[0])

    for at, kk, ee, scalars in zip(points.at, points.kk, points.ee, points.scalars, strict=True):
        kk, ee = kk[:n], ee[:n]
        emulated_kk, emulated_ee, derived = emulator(
            dict(zip(emulator.parameters, at, strict=True))
        )
        moved = likelihood.model(emulated_kk, emulated_ee) - likelihood.model(kk, ee)
        rows.append(
            (
                np.abs(emulated_kk[2:] / kk[2:] - 1.0).max(),
                np.abs(emulated_ee[2:] / ee[2:] - 1.0).max(),
                np.abs(bands(emulated_ee) / bands(ee) - 1.0).max(),
                moved @ likelihood.inverse @ moved,
                np.abs(np.array([derived[name] for name in SCALARS]) / scalars - 1.0).max(),
            )
        )
    return Errors(points.at, *np.array(rows).T)


def _components(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, principal components (n, …) and the values' coordinates along them."""
    mean = values.mean(0)
    _, _, vt = np.linalg.svd(values - mean, full_matrices=False)
    basis = vt[:n]
    return mean, basis, (values - mean) @ basis.T
