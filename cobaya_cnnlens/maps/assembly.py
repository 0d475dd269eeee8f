"""From a survey's bandpowers and what calibrates them to a release.

The release is one of the ordinary format: its patches are the tiles, weighted (:mod:`.weights`),
its N the sum's, its covariance that of the sum times the number of tiles. R is divided out tile by
tile, and the release's is its weighted mean, for reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..calibrate import debias
from ..calibrate.debias import SimulatedChanges
from ..calibrate.derivatives import BandDerivatives, NoiseDerivatives, nuisance_orders
from ..calibrate.release_warnings import with_warnings
from ..calibrate.response import FIELDS, Calibration, PatchBandpowers, standard_error
from ..errors import ConfigError
from ..likelihood.document import seal, to_document
from ..likelihood.fields import NUISANCES
from ..likelihood.release import Release
from ..pipeline import assemble
from ..pipeline.estimators import name_of
from ..pipeline.nuisances import nuisance_steps
from ..pipeline.perturbations import shifted_changes
from ..pipeline.run import Run
from ..simulate.depth import DepthClasses, depth_classes, tile_depths
from . import calibration, reconstruction
from .bandpower_file import read_map_bandpowers
from .calibration import TEST, VALIDATION
from .map_setup import MapSetup
from .plan import Plan
from .simulated import tiles_in_turn
from .weights import TileWeights, effective_number, neighbour_correlation, weighted


def classes_of(plan: Plan) -> DepthClasses:
    """Group the survey's tiles by depth and holes.

    Parameters
    ----------
    plan : the survey's plan

    Returns
    -------
    classes : the class of every tile
    """
    rms = np.stack([tile.rms for tile in plan.tiles])
    return depth_classes(tile_depths(rms, plan.tiles[0].taper, plan.geometry))


@dataclass(frozen=True)
class Calibrated:
    """What was simulated of a survey, read.

    Attributes
    ----------
    n_patches : that N rests on
    arrays : of :func:`.calibration.read`
    weights : of the tiles
    """

    run: Run
    plan: Plan
    n_patches: int
    arrays: dict[str, np.ndarray]
    weights: TileWeights

    @classmethod
    def read(cls, run: Run, plan: Plan, folder: str | Path) -> Calibrated:
        """Read a survey's calibration, and compute the weights of its tiles.

        Parameters
        ----------
        run : a configuration, with its products and networks
        plan : the survey's plan
        folder : the survey's products

        Returns
        -------
        calibrated : simulated bandpowers and power of E and B, with the tiles' weights

        Raises
        ------
        ProductError
            if it is missing, or of another plan or configuration
        """
        n_patches, arrays = calibration.read(run, plan, folder)
        tiles = tiles_in_turn(plan, calibration.counts(plan, n_patches)[VALIDATION])
        found = PatchBandpowers(*(arrays[f"{VALIDATION}_{name}"] for name in FIELDS))
        modes = np.array([tile.weight for tile in plan.tiles])
        weights = TileWeights.of(found, tiles, classes_of(plan).label, modes)
        return cls(run, plan, n_patches, arrays, weights)

    @property
    def test_tiles(self) -> np.ndarray:
        """As which tile each test patch was seen, (n_patches,)."""
        return tiles_in_turn(self.plan, self.n_patches)

    def noise(self) -> np.ndarray:
        """⟨κ̂κ̂*⟩/R² − ⟨κκ*⟩ of every test patch, (n_patches, n_bins)."""
        auto = self.weights.normalised(self.arrays[f"{TEST}_auto"], self.test_tiles)
        return auto - self.arrays[f"{TEST}_truth"]

    def test(self) -> tuple[PatchBandpowers, np.ndarray]:
        """The test patches as those of a survey of weighted tiles, with R divided out, and the
        power of E and B."""
        tiles = self.test_tiles
        auto = self.weights.normalised(self.arrays[f"{TEST}_auto"], tiles)
        auto, truth = (
            self._sum(x, tiles, self.weights.weight) for x in (auto, self.arrays[f"{TEST}_truth"])
        )
        return PatchBandpowers(auto, auto, truth), self._power(self.arrays[f"{TEST}_power"], tiles)

    def changes(self) -> tuple[SimulatedChanges, SimulatedChanges]:
        """How d − signal and p̂ of the weighted tiles change."""
        bandpowers = self._changes(self._noise_bias, "auto")
        return bandpowers, self._changes(
            lambda values, truth, tiles: self._power(values, tiles), "power"
        )

    def _changes(self, combine: Callable[..., np.ndarray], name: str) -> SimulatedChanges:
        arrays, config = self.arrays, self.run.config
        tiles = calibration.derivative_patches(self.run, self.plan).tiles

        def of(what: str) -> np.ndarray:
            truth = arrays.get(f"{what}_truth")
            values = arrays[f"{what}_{name}"]
            truths = [None] * len(values) if truth is None else truth
            return np.stack([combine(v, t, tiles) for v, t in zip(values, truths, strict=True)])

        kk, ee = (
            BandDerivatives(np.array(edges), np.moveaxis(of(spectrum), 0, -1))
            for spectrum, edges in (
                ("kk", config.derivatives.kk_edges),
                ("ee", config.derivatives.ee_edges),
            )
        )
        which = calibration.nuisance_patches(self.run, self.plan, self.n_patches)
        tiles = self.test_tiles[which]
        centre = arrays[f"{TEST}_{name}"][which]
        shifted = np.stack([arrays[f"{x}_{name}"] for x in NUISANCES], axis=-1)
        orders_of_nuisances = nuisance_orders(nuisance_steps(self.run), centre, shifted)
        first, second = (
            np.stack([combine(x[..., i], None, tiles) for i in range(x.shape[-1])], axis=-1)
            for x in orders_of_nuisances
        )
        tiles = calibration.derivative_patches(self.run, self.plan).tiles
        first_order = NoiseDerivatives(kk, ee, of("fiducial")[0])
        return SimulatedChanges(first_order, of("shifted"), (first, second))

    def _noise_bias(
        self, auto: np.ndarray, truth: np.ndarray | None, tiles: np.ndarray
    ) -> np.ndarray:
        """⟨κ̂κ̂*⟩/R² less the truth, of weighted tiles, (n_patches, n_bins)."""
        normalised = self.weights.normalised(auto, tiles)
        normalised = normalised if truth is None else normalised - truth
        return self._sum(normalised, tiles, self.weights.weight)

    def _power(self, power: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        return self._sum(power, tiles, self.weights.modes[:, None])

    def _sum(self, values: np.ndarray, tiles: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weighted(values, tiles, weight, self.weights.label)

    def n_sim(self) -> int:
        """Of how many patches the covariance is worth."""
        tiles, label = self.test_tiles, self.weights.label
        auto = self.weights.normalised(self.arrays[f"{TEST}_auto"], tiles)
        classes = label[tiles]
        # The variance of a bandpower goes as its square.
        variance = np.array([auto[classes == c].mean(0) ** 2 for c in range(label.max() + 1)])
        return effective_number(tiles, self.weights.weight, label, variance)


def make_patch_release(
    calibration: Run | Release, files: str | Path | Iterable[str | Path], name: str
) -> Release:
    """Make the release of a user's own patches, by the calibration of a configuration or by that
    which another release holds.

    The bandpowers ⟨|κ̂|²⟩_b/R_b² − N_b and the number of patches are the maps'; R, N, derivatives,
    windows, one patch's covariance and its n_sim are the calibration's.

    Parameters
    ----------
    calibration : a configuration with its products, or the release whose calibration holds for the
        maps
    files : bandpowers of the patches, in one file or in several that make one survey
    name : of the new release

    Returns
    -------
    release : debiased bandpowers of the patches

    Raises
    ------
    ReleaseError
        if the calibrating release does not say what it is a calibration of
    ProductError
        if a file was made with another network, instrument, patch or binning
    MapError
        if patches overlap
    """
    setup = MapSetup.of(calibration)
    measured = read_map_bandpowers(files, setup)
    origin = {"maps": measured.source}
    if isinstance(calibration, Run):
        release = assemble.release_of_run(calibration, measured.auto, origin)
    else:
        # The calibration's own data are no part of this release.
        skies = {
            key: value
            for key, value in dict(calibration.provenance.get("skies", {})).items()
            if key != "maps" and not key.startswith("survey-")
        }
        digest = seal(to_document(calibration))["digest"]
        provenance = calibration.provenance | {
            "skies": skies | origin,
            "calibration": {"release": calibration.name, "digest": digest},
        }
        release = replace(calibration, provenance=provenance, truth=None)
    release = replace(
        assemble.with_data(release, measured.auto, measured.power),
        name=name,
        description=assemble.patches_of(
            len(measured.auto), setup.patch, setup.instrument, release.provenance.get("estimator")
        ),
        provenance=release.provenance | {"packages": assemble.package_versions()},
    )
    return with_warnings(release, measured.warnings)


def make_release(run: Run, plan: Plan, folder: str | Path, name: str) -> Release:
    """Make the release of a survey.

    Parameters
    ----------
    run : of the configuration that reconstructed and calibrated it
    plan : the survey's plan
    folder : where the products of both lie
    name : name of the release

    Returns
    -------
    release : debiased bandpowers with their covariance, response and derivatives

    Raises
    ------
    ProductError
        if a stage has not been run, or was with another plan or configuration
    ConfigError
        if the covariance is not worth enough patches
    """
    data = reconstruction.read(plan, MapSetup.of_run(run), folder)
    found = Calibrated.read(run, plan, folder)
    weights, n_tiles = found.weights, len(plan.tiles)
    test, power = found.test()
    each = test.auto - test.truth
    unit = np.ones(test.auto.shape[1])
    made = Calibration(unit, unit, each.mean(0), standard_error(each))
    n_sim, n_bins = found.n_sim(), len(unit)
    if n_sim <= n_bins + 2:
        raise ConfigError(
            f"{calibration.path(folder)}: {found.n_patches} patches of tiles as different as these "
            f"are worth {n_sim} alike, and {n_bins} bins need {n_bins + 3}; calibrate with more "
            "--patches, or take fewer bins"
        )
    changes, power_changes = found.changes()
    auto = weights.combine(data.auto)
    fitted = None
    if run.config.data_debias:
        # A second order over the prior needs skies of many cosmologies: here it is along ω_c.
        fitted = debias.fit(
            changes,
            power_changes,
            made.debias(test.auto),
            power,
            shifted_changes(run),
            None,
            len(auto),
            weights.label[found.test_tiles],
        )
    origin = {"maps": ", ".join(Path(p).name for p in plan.sources.maps)}
    release = assemble.assembled(run, made, test, changes, fitted, auto, origin)
    if fitted is not None:
        release = replace(release, power=(weights.modes[:, None] * data.power).sum(0))
    depths = [tile.depth for tile in plan.tiles]
    patch = run.config.patch
    correlation, error = neighbour_correlation(
        weights.normalised(found.arrays[f"{TEST}_auto"], found.test_tiles),
        found.test_tiles,
        weights.label,
    )
    made_release = replace(
        release,
        name=name,
        description=(
            f"{n_tiles} tiles of {patch.size_deg:g} x {patch.size_deg:g} deg at "
            f"{min(depths):.3g} to {max(depths):.3g} uK arcmin: "
            f"{assemble.bandpowers_of(name_of(run.config))}"
        ),
        response=weights.mean_response,
        response_error=_response_error(found),
        n_sim=n_sim,
        instrument=release.instrument | {"noise": _mean_level(plan)},
        provenance=release.provenance
        | {
            "survey": {
                "plan": plan.identity,
                "tiles": [tile.number for tile in plan.tiles],
                "area_deg2": round(plan.area_deg2, 2),
                "classes": int(weights.label.max()) + 1,
                "simulated_patches": found.n_patches,
                "neighbour_correlation": [round(correlation, 4), round(error, 4)],
            },
            "packages": assemble.package_versions(),
        },
    )
    return with_warnings(made_release, data.warnings)


def _mean_level(plan: Plan) -> float:
    """µK′ whose inverse square is the tiles' mean one."""
    return float(np.mean([tile.depth**-2.0 for tile in plan.tiles]) ** -0.5)


def _response_error(calibrated: Calibrated) -> np.ndarray:
    """Standard error of Σ_t w R, by the scatter of the validation patches, (n_bins,)."""
    weights, arrays = calibrated.weights, calibrated.arrays
    count = calibration.counts(calibrated.plan, calibrated.n_patches)[VALIDATION]
    tiles = tiles_in_turn(calibrated.plan, count)
    cross, truth = (arrays[f"{VALIDATION}_{name}"] for name in ("cross", "truth"))
    scatter = cross - weights.response[weights.label[tiles]] * truth
    return standard_error(weighted(scatter, tiles, weights.weight, weights.label)) / truth.mean(0)
