"""What calibrates a survey: simulated patches seen as its tiles, with their noise and holes.

Everything a release rests on is measured of the sum of tiles: R and the tiles' weights of patches
of the ``validation`` set, N and the covariance of the ``test`` set, derivatives and the second
order along ω_c of the first sky of the ``derivatives`` set, nuisances of some of the test patches.
Each part (32 patches, or a band, or a step of a nuisance) is kept as soon as it is there, with κ̂'s
power and that of E and B side by side, and a run that was stopped goes on from the last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.response import patch_bandpowers
from ..errors import ConfigError
from ..likelihood.fields import NUISANCES
from ..pipeline import perturbations
from ..pipeline.perturbations import perturbed_sky
from ..pipeline.reconstructions import measurement_recipe
from ..pipeline.run import Run
from ..pipeline.skies import Skies
from ..simulate.instrument import Systematics
from ..simulate.perturbed_skies import Observation, PerturbedSky
from .plan import Plan
from .simulated import SeenAs, neighbours, subset_in_turn, tiles_in_turn

KIND, PART_KIND = "survey calibration", "survey simulations"
ALGORITHM = 1
# Patches of a part.
BATCH = 32
# Simulated patches for each tile, unless said otherwise.
EACH = 4
VALIDATION, TEST = "validation", "test"


class PartKind(Enum):
    """What a part of the simulations gives."""

    SET = "bandpowers of patches of a set"
    NUISANCE = "test patches under an error of the instrument"
    FIDUCIAL = "patches at the fiducial cosmology, from which derivatives start"
    SHIFTED = "the same patches at a shifted omch2"
    BAND = "the same patches with one band of a spectrum changed"


@dataclass(frozen=True)
class Part:
    """One part of the simulations.

    Attributes
    ----------
    kind : what the part gives
    label : name of the set, of the nuisance, or of the spectrum; else that of the kind
    number : of the batch of patches, of the step, or of the band
    """

    kind: PartKind
    label: str
    number: int

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return f"{self.label}_{self.number:03d}"


def path(folder: str | Path) -> Path:
    """Path of the survey's calibration.

    Parameters
    ----------
    folder : the survey's products

    Returns
    -------
    path : of the product
    """
    return Path(folder) / "calibration.h5"


def part_path(folder: str | Path, part: Part) -> Path:
    """Path of one part of the simulations.

    Parameters
    ----------
    folder : the survey's products
    part : the part

    Returns
    -------
    path : of the product
    """
    return Path(folder) / "calibration" / f"{part.name}.h5"


def recipe(run: Run, plan: Plan, n_patches: int) -> dict[str, Any]:
    """What determines the calibration.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan
    n_patches : number of simulated patches

    Returns
    -------
    recipe : of the plan it holds the noise and holes of the tiles, so that other maps of the same
        depth take the same calibration.
    """
    config = run.config
    return {
        "depth": _digest_of(plan),
        "taper_deg": plan.taper_deg,
        "survey_algorithm": ALGORITHM,
        "patches": n_patches,
        "skies": {
            name: Skies(run).recipe(name, 0) for name in (VALIDATION, TEST, perturbations.SET)
        },
        "estimator": measurement_recipe(run),
        "derivatives": config.derivatives.recipe(),
        "omch2_step": config.derivatives.omch2_step,
        "nuisances": config.nuisances.recipe(),
    }


def _digest_of(plan: Plan) -> str:
    """Of the inverse variance of all tiles' pixels, 16 hex digits."""
    digest = hashlib.sha256()
    for tile in plan.tiles:
        digest.update(np.where(tile.seen, tile.split_ivar.sum(0), 0.0).astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def part_recipe(run: Run, plan: Plan, n_patches: int, part: Part) -> dict[str, Any]:
    """What determines one part of the simulations.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan
    n_patches : number of simulated patches
    part : the part

    Returns
    -------
    recipe : of the part's product
    """
    return recipe(run, plan, n_patches) | {"part": part.name}


def counts(plan: Plan, n_patches: int) -> dict[str, int]:
    """Number of simulated patches of each set.

    Parameters
    ----------
    plan : the survey's plan
    n_patches : number of test patches

    Returns
    -------
    counts : by set; the validation set has half as many, and one of each tile at least
    """
    return {TEST: n_patches, VALIDATION: max(len(plan.tiles), -(-n_patches // 2))}


def parts(run: Run, plan: Plan, n_patches: int) -> list[Part]:
    """List all parts of the simulations in the order in which they are made.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan
    n_patches : number of test patches

    Returns
    -------
    parts : sets, nuisances, shifted skies and bands
    """
    parts_in_order = [
        Part(PartKind.SET, name, number)
        for name, count in counts(plan, n_patches).items()
        for number in range(-(-count // BATCH))
    ]
    settings = run.config.derivatives
    parts_in_order += [
        Part(PartKind.NUISANCE, name, number) for name in NUISANCES for number in (0, 1)
    ]
    parts_in_order += [Part(PartKind.FIDUCIAL, "fiducial", 0)]
    parts_in_order += [Part(PartKind.SHIFTED, "shifted", number) for number in (0, 1)]
    for spectrum, edges in (("kk", settings.kk_edges), ("ee", settings.ee_edges)):
        parts_in_order += [Part(PartKind.BAND, spectrum, band) for band in range(len(edges) - 1)]
    return parts_in_order


def check(run: Run, plan: Plan, n_patches: int) -> None:
    """Refuse a configuration that cannot calibrate the survey, before anything slow.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan
    n_patches : number of simulated patches

    Raises
    ------
    ConfigError
    """
    if n_patches < len(plan.tiles):
        raise ConfigError(
            f"--patches {n_patches}: {plan.path} has {len(plan.tiles)} tiles, each of which needs "
            f"a simulated patch; give --patches {EACH * len(plan.tiles)}, or more"
        )
    if (n_bins := run.config.bandpowers.n_bins) + 3 > n_patches:
        raise ConfigError(
            f"--patches {n_patches}: too few for the covariance of {n_bins} bins; give "
            f"{4 * n_bins}, or more"
        )
    for name, count in counts(plan, n_patches).items():
        neighbours(run, name, count)


def measure(run: Run, plan: Plan, folder: str | Path, n_patches: int, nthreads: int = 0) -> Path:
    """Simulate the parts that are not there yet; skies are made where they are missing.

    Parameters
    ----------
    run : configuration of the survey's optics, network and skies
    plan : the survey's plan
    folder : the survey's products
    n_patches : for N and the covariance, each tile in turn

    Returns
    -------
    path of all that was measured

    Raises
    ------
    ConfigError
        if there are fewer patches than tiles or fewer skies than patches need
    """
    check(run, plan, n_patches)
    whole = recipe(run, plan, n_patches)
    if products.exists(path(folder), KIND, whole):
        return path(folder)
    every = parts(run, plan, n_patches)
    recipes = {part: part_recipe(run, plan, n_patches, part) for part in every}
    todo = [p for p in every if not products.exists(part_path(folder, p), PART_KIND, recipes[p])]
    for name, count in counts(plan, n_patches).items():
        needed = {int(i) for i in neighbours(run, name, count)[0]}
        if any(part.label in (name, *(NUISANCES if name == TEST else ())) for part in todo):
            Skies(run, nthreads).measure(name, sorted(needed))
    simulations = _Simulations(run, plan, n_patches, nthreads)
    with tqdm(total=len(every), initial=len(every) - len(todo), desc=KIND, unit="part") as bar:
        for part in todo:
            arrays = simulations.measure(part)
            products.write_product(part_path(folder, part), PART_KIND, recipes[part], arrays)
            bar.update()
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for part in every:
        with products.open_product(part_path(folder, part), PART_KIND, recipes[part]) as product:
            for name in product.names():
                found.setdefault(part.label, {}).setdefault(name, []).append(product.array(name))
    arrays = {
        f"{label}_{name}": (np.concatenate if label in (TEST, VALIDATION) else np.stack)(values)
        for label, named in found.items()
        for name, values in named.items()
    }
    products.write_product(path(folder), KIND, whole, arrays)
    return path(folder)


class _Simulations:
    """Makes the parts, with what they share in memory."""

    def __init__(self, run: Run, plan: Plan, n_patches: int, nthreads: int):
        self.run, self.plan, self.n_patches, self.nthreads = run, plan, n_patches, nthreads
        self._bench: PerturbedSky | None = None

    def measure(self, part: Part) -> dict[str, np.ndarray]:
        if part.kind is PartKind.SET:
            rows = slice(part.number * BATCH, (part.number + 1) * BATCH)
            return self._set(part.label, rows)
        if part.kind is PartKind.NUISANCE:
            return self._nuisance(part)
        if part.kind is PartKind.SHIFTED:
            omch2 = self.run.config.shifted_omch2()[part.number]
            return self._named(self._new_bench(omch2).unperturbed())
        if self._bench is None:
            self._bench = self._new_bench()
        return self._named(self._bench.measure(part.label, part.number))

    def _set(self, set_name: str, rows: slice) -> dict[str, np.ndarray]:
        """Patches of a set, sky by sky."""
        found: dict[str, list[np.ndarray]] = {}
        for seen, maps in self._skies(set_name, np.arange(self._count(set_name))[rows]):
            q, u = seen.observe(maps[0], maps[1])
            kappa = self.run.config.patch.crop(maps[2]) * self.run.mask
            of_kappa = patch_bandpowers(self.run.bandpowers, seen.estimate(q, u), kappa)
            arrays = vars(of_kappa) | {"power": seen.power(q, u)}
            for name, values in arrays.items():
                found.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in found.items()}

    def _nuisance(self, part: Part) -> dict[str, np.ndarray]:
        step = getattr(self.run.config.nuisances, part.label)
        off = Systematics(**{part.label: (-step, step)[part.number]})
        which = nuisance_patches(self.run, self.plan, self.n_patches)
        measured = [
            seen.measure(*seen.observe(maps[0], maps[1], off))
            for seen, maps in self._skies(TEST, which)
        ]
        return self._named({"auto": np.concatenate(measured)})

    def _count(self, set_name: str) -> int:
        return counts(self.plan, self.n_patches)[set_name]

    def _skies(
        self, set_name: str, which: np.ndarray
    ) -> Iterator[tuple[SeenAs, tuple[np.ndarray, ...]]]:
        """Patches by number among those of a set, and their Q̃, Ũ, κ, padded, without noise."""
        count = self._count(set_name)
        index, row = (values[which] for values in neighbours(self.run, set_name, count))
        tiles = tiles_in_turn(self.plan, count)[which]
        for sky in np.unique(index):
            here = index == sky
            names = ("lensed_q", "lensed_u", "kappa")
            fields = Skies(self.run).read(set_name, int(sky), names)
            maps = tuple(values[row[here]] for values in fields)
            yield SeenAs(self.run, self.plan, set_name, int(sky), row[here], tiles[here]), maps

    def _new_bench(self, omch2: float | None = None) -> PerturbedSky:
        run = self.run
        cosmology = None if omch2 is None else run.config.cosmology.vary(omch2=omch2)
        seen = derivative_patches(run, self.plan)
        return perturbed_sky(
            run,
            seen.index,
            self.nthreads,
            cosmology,
            measured=seen.measure,
            observation=Observation(run.config.instrument, seen.noise(), seen.mask),
        )

    def _named(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With the power of E and B by itself, which :meth:`.SeenAs.measure` puts beside κ̂'s."""
        n_bins = self.run.config.bandpowers.n_bins
        joined = arrays["auto"]
        return arrays | {"auto": joined[:, :n_bins], "power": joined[:, n_bins:]}


def derivative_patches(run: Run, plan: Plan) -> SeenAs:
    """The patches that give the derivatives.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan

    Returns
    -------
    patches : of the first sky of the set ``derivatives``, with their tiles
    """
    n = run.config.derivatives.patches or len(run.spread)
    n = min(n, len(run.spread))
    return SeenAs(run, plan, perturbations.SET, 0, np.arange(n), tiles_in_turn(plan, n))


def nuisance_patches(run: Run, plan: Plan, n_patches: int) -> np.ndarray:
    """The test patches that give the nuisances.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan
    n_patches : number of test patches

    Returns
    -------
    patches : their numbers, (n,)
    """
    return subset_in_turn(len(plan.tiles), n_patches, run.config.nuisances.patches)


def read(run: Run, plan: Plan, folder: str | Path) -> tuple[int, dict[str, np.ndarray]]:
    """Read the calibration of a survey.

    Parameters
    ----------
    run : a configuration, with its products and networks
    plan : the survey's plan
    folder : the survey's products

    Returns
    -------
    n_patches : number of test patches
    arrays : by part and name, (n_patches, n_bins); of bands, signs and steps (n, n_patches,
        n_bins).

    Raises
    ------
    ProductError
        if it is missing, or of another plan or configuration
    """
    with products.open_product(path(folder), KIND) as product:
        n_patches = int(product.recipe.get("patches", 0))
    with products.open_product(path(folder), KIND, recipe(run, plan, n_patches)) as product:
        return n_patches, {name: product.array(name) for name in product.names()}
