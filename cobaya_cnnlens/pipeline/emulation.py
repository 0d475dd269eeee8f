"""What an emulator is made of: CAMB at the points of a design (:mod:`.emulator_fit` fits them).

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
from scipy.stats import qmc
from tqdm import tqdm

from .. import products
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
    NONLINEAR,
    SCALARS,
)
from .loading import load_as

KIND = "emulator point"
# Raised when a point's code changes what it gives.
ALGORITHM = 3


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
    kernel, degree, smoothing, scales, logarithmic : of
        :class:`~cobaya_cnnlens.theory.emulator.Emulator`
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
    logarithmic: list[str] = field(default_factory=list)
    components: int = 16
    upon: str = ""
    at_low_side: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.at_low_side) - set(self.box):
            raise ValueError(f"at_low_side: {sorted(unknown)} are not in the box")
        for name, scale in self.scales.items():
            if name not in self.box or not 0 < scale < np.inf:
                raise ValueError(f"scales: {name} {scale}; give parameters of the box, positive")
        for name in self.logarithmic:
            if name not in self.box or self.box[name][0] <= 0:
                raise ValueError(f"logarithmic: {name}; give parameters of the box, positive in it")

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
        return Cosmology(**{k: v for k, v in values.items() if k not in NONLINEAR})

    def nonlinear(self, point: Iterable[float]) -> dict[str, float]:
        """The parameters of the non-linear matter power at a point of the box.

        Parameters
        ----------
        point : parameters in the order of ``box``

        Returns
        -------
        values by CAMB's names, none if the box has no such parameter
        """
        values = dict(zip(self.box, map(float, point), strict=True))
        return {name: value for name, value in values.items() if name in NONLINEAR}

    def recipe(self, point: Iterable[float]) -> dict[str, Any]:
        """What determines the spectra at a point.

        Parameters
        ----------
        point : parameters in the order of ``box``

        Returns
        -------
        mapping for JSON
        """
        record = {**settings_record(self.cosmology(point), self.camb), "algorithm": ALGORITHM}
        nonlinear = self.nonlinear(point)
        return {**record, "nonlinear": nonlinear} if nonlinear else record

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
        parameters = camb_parameters(cosmology, plan.camb, plan.nonlinear(point))
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
