"""The calibration of a survey: simulated patches seen as its tiles, with their noise and holes.

Everything is measured for the sum of the tiles. The ``validation`` set gives R and the weights of
the tiles, the ``test`` set N and the covariance, and some of the test patches the nuisances. Test
patches at the cosmologies of ``points.fit`` give the response surface. The first sky of the set
``derivatives`` gives the derivatives and the second order along ω_c. Each part (32 patches, a band,
a cosmology, or a step of a nuisance) is written as soon as it is measured, with the power of κ̂ and
that of E and B. A run that was stopped continues from the last part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.response import patch_bandpowers
from ..errors import ConfigError
from ..likelihood.fields import SIMULATED
from ..pipeline import cosmologies, perturbations
from ..pipeline.cosmologies import Point
from ..pipeline.perturbations import perturbed_sky
from ..pipeline.reconstructions import measurement_recipe
from ..pipeline.run import Run
from ..pipeline.skies import Skies
from ..simulate.instrument import Systematics
from ..simulate.perturbed_skies import Observation, PerturbedSky
from ..theory.camb import Spectra
from .job import Job
from .plan import Plan
from .simulated import SeenAs, neighbours, subset_in_turn, tiles_in_turn

KIND, PART_KIND = "survey calibration", "survey simulations"
ALGORITHM = 1
# A part holds the bandpowers of so many patches.
BATCH = 32
# By default there are so many simulated patches for each tile.
EACH = 4
VALIDATION, TEST = "validation", "test"


class PartKind(Enum):
    """What a part of the simulations gives."""

    SET = "bandpowers of patches of a set"
    NUISANCE = "test patches under an error of the instrument"
    POINT = "test patches at another cosmology"
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
    number : of the batch of patches, of the step, of the cosmology, or of the band
    """

    kind: PartKind
    label: str
    number: int

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return f"{self.label}_{self.number:03d}"


@dataclass(frozen=True)
class SurveyCalibration:
    """The products with what calibrates a survey.

    Attributes
    ----------
    run : configuration of the survey's optics, network and skies
    plan : of the survey
    folder : of the survey's products
    n_patches : test patches, for N and the covariance, which take the tiles in turn
    """

    run: Run
    plan: Plan
    folder: Path
    n_patches: int

    @property
    def path(self) -> Path:
        """Of all that was measured."""
        return self.folder / "calibration.h5"

    def part_path(self, part: Part) -> Path:
        """Path of one part of the simulations.

        Parameters
        ----------
        part : of the simulations

        Returns
        -------
        path : of the product
        """
        return self.folder / "calibration" / f"{part.name}.h5"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What determines the calibration; of the plan the noise and holes of its tiles, so that
        other maps of the same depth take the same."""
        run, config = self.run, self.run.config
        points = [self._point_recipe(point) for point in self.points]
        return {
            "depth": digest_of_depth(self.plan),
            "taper_deg": self.plan.taper_deg,
            "survey_algorithm": ALGORITHM,
            "patches": self.n_patches,
            "skies": {
                name: Skies(run).recipe(name, 0) for name in (VALIDATION, TEST, perturbations.SET)
            },
            "estimator": measurement_recipe(run),
            "derivatives": config.derivatives.recipe(),
            "omch2_step": config.derivatives.omch2_step,
            "nuisances": config.nuisances.recipe(),
            **({"points": points} if points else {}),
        }

    def _point_recipe(self, point: Point) -> dict[str, Any]:
        """What determines the patches at another cosmology, beside what determines all parts."""
        cosmology = self.run.config.cosmology.vary(**point.change)
        return {**self.run.spectra_recipe(cosmology), "rows": self.point_rows(point).tolist()}

    def part_recipe(self, part: Part) -> dict[str, Any]:
        """What determines one part of the simulations.

        Parameters
        ----------
        part : of the simulations

        Returns
        -------
        recipe : of the part's product
        """
        # Patches and cosmologies may be added later, without those parts that do not have them.
        recipe = {key: value for key, value in self.recipe.items() if key != "points"}
        if part.kind in (PartKind.FIDUCIAL, PartKind.SHIFTED, PartKind.BAND):
            del recipe["patches"]
        if part.kind is PartKind.POINT:
            recipe |= self._point_recipe(self.points[part.number])
        return recipe | {"part": part.name}

    @property
    def counts(self) -> dict[str, int]:
        """Patches of each set; of the validation set half as many, and one a tile at least."""
        validation = max(len(self.plan.tiles), -(-self.n_patches // 2))
        return {TEST: self.n_patches, VALIDATION: validation}

    def tiles(self, set_name: str) -> np.ndarray:
        """As which tile each patch of a set is seen.

        Parameters
        ----------
        set_name : test or validation

        Returns
        -------
        tiles : positions in the plan, (n_patches,)
        """
        return tiles_in_turn(self.plan, self.counts[set_name])

    @property
    def parts(self) -> list[Part]:
        """All parts of the simulations, in the order in which they are made."""
        settings = self.run.config.derivatives
        bands = {"kk": len(settings.kk_edges) - 1, "ee": len(settings.ee_edges) - 1}
        kinds = [
            *((PartKind.SET, name, -(-count // BATCH)) for name, count in self.counts.items()),
            *((PartKind.NUISANCE, name, 2) for name in SIMULATED),
            (PartKind.POINT, "point", len(self.points)),
            (PartKind.FIDUCIAL, "fiducial", 1),
            (PartKind.SHIFTED, "shifted", 2),
            *((PartKind.BAND, spectrum, count) for spectrum, count in bands.items()),
        ]
        return [Part(kind, label, n) for kind, label, count in kinds for n in range(count)]

    def derivative_patches(self) -> SeenAs:
        """The patches of the first sky of their set that give the derivatives, with their tiles."""
        most = len(self.run.spread)
        n = min(self.run.config.derivatives.patches or most, most)
        tiles = tiles_in_turn(self.plan, n)
        return SeenAs(self.run, self.plan, perturbations.SET, 0, np.arange(n), tiles)

    @cached_property
    def _test_patches(self) -> tuple[np.ndarray, np.ndarray]:
        """The sky of each test patch, and its number there, (n_patches,) each."""
        return neighbours(self.run, TEST, self.n_patches)

    @cached_property
    def points(self) -> list[Point]:
        """Cosmologies of the response surface, each with a portion of the test patches of a sky."""
        fitted = cosmologies.fitted(self.run)
        if not fitted:
            return []
        skies = np.unique(self._test_patches[0])
        return [
            replace(point, index=int(skies[i % len(skies)]), part=i // len(skies))
            for i, point in enumerate(fitted)
        ]

    def point_rows(self, point: Point) -> np.ndarray:
        """Choose the test patches that are simulated again at another cosmology.

        Parameters
        ----------
        point : of :attr:`points`

        Returns
        -------
        rows : numbers among the test patches, (n,)
        """
        here = np.flatnonzero(self._test_patches[0] == point.index)
        return here[point.rows(len(here))]

    def point_patches(self, point: Point) -> SeenAs:
        """The test patches that are simulated again at another cosmology, with their tiles.

        Parameters
        ----------
        point : of :attr:`points`

        Returns
        -------
        patches : of one sky
        """
        which = self.point_rows(point)
        row, tiles = self._test_patches[1][which], self.tiles(TEST)[which]
        return SeenAs(self.run, self.plan, TEST, point.index, row, tiles)

    def nuisance_patches(self) -> np.ndarray:
        """Numbers of the test patches that give the nuisances, (n,)."""
        chosen = self.run.config.nuisances.patches
        return subset_in_turn(len(self.plan.tiles), self.n_patches, chosen)

    def check(self) -> None:
        """Refuse a configuration that cannot calibrate the survey, before anything slow.

        Raises
        ------
        ConfigError
            if there are fewer patches than tiles, or fewer skies than patches need
        """
        plan, n_patches = self.plan, self.n_patches
        if n_patches < len(plan.tiles):
            raise ConfigError(
                f"--patches {n_patches}: {plan.path} has {len(plan.tiles)} tiles, each of which "
                f"needs a simulated patch; give --patches {EACH * len(plan.tiles)}, or more"
            )
        if (n_bins := self.run.config.bandpowers.n_bins) + 3 > n_patches:
            raise ConfigError(
                f"--patches {n_patches}: too few for the covariance of {n_bins} bins; give "
                f"{4 * n_bins}, or more"
            )
        for name, count in self.counts.items():
            neighbours(self.run, name, count)

    def skies(self, parts: list[Part]) -> list[tuple[str, int]]:
        """The skies from which parts of the simulations are cut, the set and number of each.

        The sky of the derivatives is not among them: it is drawn again for each job.

        Parameters
        ----------
        parts : of the simulations

        Returns
        -------
        skies : set and number of each
        """
        return [
            (name, int(index))
            for name, count in self.counts.items()
            if any(part.label in (name, *(SIMULATED if name == TEST else ())) for part in parts)
            for index in np.unique(neighbours(self.run, name, count)[0])
        ]

    def measure(self, nthreads: int = 0, job: Job | None = None) -> Path:
        """Simulate the parts that are not there yet; skies are made where they are missing.

        One of several jobs only makes its own parts.

        Parameters
        ----------
        nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
        job : which of several jobs this is; None for the whole

        Returns
        -------
        path : of all that was measured, which one of several jobs does not write

        Raises
        ------
        ConfigError
            as :meth:`check`
        """
        self.check()
        if products.exists(self.path, KIND, self.recipe):
            return self.path
        every = self.parts if job is None else job.of(self.parts)
        todo = [
            part
            for part in every
            if not products.exists(self.part_path(part), PART_KIND, self.part_recipe(part))
        ]
        for set_name, index in self.skies(todo):
            Skies(self.run, nthreads).measure(set_name, [index])
        simulations = _Simulations(self, nthreads)
        with tqdm(total=len(every), initial=len(every) - len(todo), desc=KIND, unit="part") as bar:
            for part in todo:
                path, recipe = self.part_path(part), self.part_recipe(part)
                products.write_product(path, PART_KIND, recipe, simulations.measure(part))
                bar.update()
        if job is not None:
            return self.path
        values: dict[str, list[np.ndarray]] = {}
        for part in every:
            path, recipe = self.part_path(part), self.part_recipe(part)
            with products.open_product(path, PART_KIND, recipe) as product:
                for name in product.names():
                    values.setdefault(f"{part.label}_{name}", []).append(product.array(name))
        joined = {
            name: np.concatenate(arrays)
            if name.startswith((TEST, VALIDATION))
            else np.stack(arrays)
            for name, arrays in values.items()
        }
        products.write_product(self.path, KIND, self.recipe, joined)
        return self.path

    @classmethod
    def read(
        cls, run: Run, plan: Plan, folder: Path
    ) -> tuple[SurveyCalibration, dict[str, np.ndarray]]:
        """Read the calibration of a survey.

        Parameters
        ----------
        run : a configuration, with its products and networks
        plan : the survey's plan
        folder : the survey's products

        Returns
        -------
        calibration : with the number of test patches
        arrays : by part and name, (n_patches, n_bins); of bands, signs and steps (n, n_patches,
            n_bins).

        Raises
        ------
        ProductError
            if it is missing, or of another plan or configuration
        """
        unknown = cls(run, plan, folder, 0)
        with products.open_product(unknown.path, KIND) as product:
            known = replace(unknown, n_patches=int(product.recipe.get("patches", 0)))
        with products.open_product(known.path, KIND, known.recipe) as product:
            return known, {name: product.array(name) for name in product.names()}


def digest_of_depth(plan: Plan) -> str:
    """Digest of the inverse variance of all tiles' pixels.

    Parameters
    ----------
    plan : the survey's plan

    Returns
    -------
    digest : 16 hex digits
    """
    digest = hashlib.sha256()
    for tile in plan.tiles:
        digest.update(np.where(tile.seen, tile.split_ivar.sum(0), 0.0).astype("<f4").tobytes())
    return digest.hexdigest()[:16]


class _Simulations:
    """Makes the parts, with what they share in memory."""

    def __init__(self, calibration: SurveyCalibration, nthreads: int):
        self.calibration, self.run, self.nthreads = calibration, calibration.run, nthreads
        self._bench: PerturbedSky | None = None

    def measure(self, part: Part) -> dict[str, np.ndarray]:
        if part.kind is PartKind.SET:
            rows = slice(part.number * BATCH, (part.number + 1) * BATCH)
            return self._set(part.label, rows)
        if part.kind is PartKind.NUISANCE:
            return self._nuisance(part)
        if part.kind is PartKind.POINT:
            return self._point(self.calibration.points[part.number])
        if part.kind is PartKind.SHIFTED:
            omch2 = self.run.config.shifted_omch2()[part.number]
            return self._named(self._new_bench(omch2).unperturbed())
        if self._bench is None:
            self._bench = self._new_bench()
        return self._named(self._bench.measure(part.label, part.number))

    def _set(self, set_name: str, rows: slice) -> dict[str, np.ndarray]:
        """Patches of a set, sky by sky."""
        of_skies: list[dict[str, np.ndarray]] = []
        count = self.calibration.counts[set_name]
        for seen, maps in self._skies(set_name, np.arange(count)[rows]):
            q, u = seen.observe(maps[0], maps[1])
            kappa = self.run.config.patch.crop(maps[2]) * self.run.mask
            of_kappa = patch_bandpowers(self.run.bandpowers, seen.estimate(q, u), kappa)
            of_skies.append(vars(of_kappa) | {"power": seen.power(q, u)})
        return {name: np.concatenate([sky[name] for sky in of_skies]) for name in of_skies[0]}

    def _nuisance(self, part: Part) -> dict[str, np.ndarray]:
        step = getattr(self.run.config.nuisances, part.label)
        off = Systematics(**{part.label: (-step, step)[part.number]})
        measured = [
            seen.measure(*seen.observe(maps[0], maps[1], off))
            for seen, maps in self._skies(TEST, self.calibration.nuisance_patches())
        ]
        return self._named({"auto": np.concatenate(measured)})

    def _point(self, point: Point) -> dict[str, np.ndarray]:
        """Test patches at another cosmology, with the phases and noise of the fiducial ones."""
        seen = self.calibration.point_patches(point)
        spectra = self.run.spectra(self.run.config.cosmology.vary(**point.change))
        return self._named(self._perturbed(seen, spectra, seen.rows).unperturbed())

    def _skies(
        self, set_name: str, which: np.ndarray
    ) -> Iterator[tuple[SeenAs, tuple[np.ndarray, ...]]]:
        """Patches by number among those of a set, and their Q̃, Ũ, κ, padded, without noise."""
        count = self.calibration.counts[set_name]
        index, row = (values[which] for values in neighbours(self.run, set_name, count))
        tiles, plan = self.calibration.tiles(set_name)[which], self.calibration.plan
        for sky in np.unique(index):
            here = index == sky
            names = ("lensed_q", "lensed_u", "kappa")
            fields = Skies(self.run).read(set_name, int(sky), names)
            maps = tuple(values[row[here]] for values in fields)
            yield SeenAs(self.run, plan, set_name, int(sky), row[here], tiles[here]), maps

    def _new_bench(self, omch2: float | None = None) -> PerturbedSky:
        run = self.run
        spectra = None if omch2 is None else run.spectra(run.config.cosmology.vary(omch2=omch2))
        return self._perturbed(self.calibration.derivative_patches(), spectra)

    def _perturbed(
        self, seen: SeenAs, spectra: Spectra | None, rows: np.ndarray | None = None
    ) -> PerturbedSky:
        """Patches of a sky of some spectra, by default all that the derivatives take."""
        return perturbed_sky(
            self.run,
            seen.index,
            self.nthreads,
            spectra,
            seen.set_name,
            seen.measure,
            rows,
            Observation(self.run.config.instrument, seen.noise(), seen.mask),
        )

    def _named(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With the power of E and B by itself, which :meth:`.SeenAs.measure` puts beside κ̂'s."""
        n_bins = self.run.config.bandpowers.n_bins
        joined = arrays["auto"]
        return arrays | {"auto": joined[:, :n_bins], "power": joined[:, n_bins:]}
