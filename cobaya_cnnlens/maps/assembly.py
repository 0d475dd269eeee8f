"""From the bandpowers of observed patches and their calibration to a release.

Own patches take a calibration that exists already, of a configuration or of a release. A survey has
a calibration of its own (:mod:`.calibration`). The patches of its release are the weighted tiles
(:mod:`.weights`). N is that of their sum, and the covariance is that of the sum times the number of
tiles. Each tile is divided by its own R; the release keeps the weighted mean of R for reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..calibrate import debias
from ..calibrate.debias import SimulatedChanges
from ..calibrate.derivatives import BandDerivatives, NoiseDerivatives, nuisance_orders
from ..calibrate.release_warnings import with_warnings
from ..calibrate.response import FIELDS, Calibration, PatchBandpowers, standard_error
from ..calibrate.rotation import rotated_back, rotation_of
from ..calibrate.second_order import FitPoints
from ..errors import ConfigError
from ..likelihood.document import seal, to_document
from ..likelihood.fields import SIMULATED, Group
from ..likelihood.release import Release
from ..pipeline import assemble
from ..pipeline.estimators import name_of
from ..pipeline.nuisances import nuisance_steps
from ..pipeline.perturbations import bands_of, shifted_changes
from ..pipeline.run import Run
from ..simulate.depth import DepthClasses, depth_classes, tile_depths
from .bandpower_file import read_map_bandpowers
from .calibration import TEST, VALIDATION, SurveyCalibration
from .comparison import Scaling
from .map_setup import MapSetup
from .own_simulations import OwnSimulations
from .plan import Plan
from .reconstruction import TileReconstruction
from .simulation_files import SimulationFiles
from .weights import TileWeights, by_class, effective_number, neighbour_correlation, weighted


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
    calibration : its products
    arrays : of :meth:`.SurveyCalibration.read`, or of :meth:`.OwnSimulations.read`
    weights : of the tiles
    seen_as : as which tile each patch of the test and validation sets was seen, (n_patches,) each
    """

    calibration: SurveyCalibration
    arrays: dict[str, np.ndarray]
    weights: TileWeights
    seen_as: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, run: Run, plan: Plan, folder: Path) -> Calibrated:
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
        calibration, arrays = SurveyCalibration.read(run, plan, folder)
        return cls._of_sets(calibration, arrays, calibration.tiles)

    @classmethod
    def _of_sets(
        cls,
        calibration: SurveyCalibration,
        arrays: dict[str, np.ndarray],
        tiles: Callable[[str], np.ndarray],
    ) -> Calibrated:
        """With the weights that the validation set gives."""
        plan = calibration.plan
        seen_as = {name: tiles(name) for name in (TEST, VALIDATION)}
        validation = PatchBandpowers(*(arrays[f"{VALIDATION}_{name}"] for name in FIELDS))
        modes = np.array([tile.weight for tile in plan.tiles])
        label = classes_of(plan).label
        weights = TileWeights.of(validation, seen_as[VALIDATION], label, modes)
        return cls(calibration, arrays, weights, seen_as)

    def by(self, simulations: OwnSimulations) -> tuple[Calibrated, Calibrated]:
        """The survey by the experiment's own simulations, and this one with their tiles' weights.

        Parameters
        ----------
        simulations : which were measured

        Returns
        -------
        own : R, N, power and covariance of the experiment's simulations, without changes
        internal : this one, of the same weighted sum of tiles

        Raises
        ------
        ProductError
            as :meth:`.OwnSimulations.read`
        """
        own = self._of_sets(self.calibration, simulations.read(), simulations.tiles)
        weights = replace(self.weights, weight=own.weights.weight)
        return own, replace(self, weights=weights)

    @property
    def tiles(self) -> np.ndarray:
        """As which tile each test patch was seen, (n_patches,)."""
        return self.seen_as[TEST]

    @cached_property
    def normalised(self) -> np.ndarray:
        """⟨κ̂κ̂*⟩/R² of every test patch, (n_patches, n_bins)."""
        return self.weights.normalised(self.arrays[f"{TEST}_auto"], self.tiles)

    def test(self) -> tuple[PatchBandpowers, np.ndarray]:
        """The test patches as those of a survey of weighted tiles, with R divided out, and the
        power of E and B."""
        auto, truth = (
            self._sum(values, self.tiles, self.weights.weight)
            for values in (self.normalised, self.arrays[f"{TEST}_truth"])
        )
        power = self._power(self.arrays[f"{TEST}_power"], None, self.tiles)
        return PatchBandpowers(auto, auto, truth), power

    def changes(self) -> tuple[SimulatedChanges, SimulatedChanges]:
        """How d − signal and p̂ of the weighted tiles change."""
        return self._changes(self._noise_bias, "auto"), self._changes(self._power, "power")

    def fit_points(self) -> FitPoints | None:
        """Changes of d − signal and of p̂ of the weighted tiles at the cosmologies of the response
        surface; None if the configuration has none."""
        calibration, arrays = self.calibration, self.arrays
        run, noise, power, bands = calibration.run, [], [], []
        if (fit := run.config.points.fit) is None:
            return None
        for i, point in enumerate(calibration.points):
            rows = calibration.point_rows(point)
            auto, truth, of_power = (
                arrays[f"point_{name}"][i] - arrays[f"{TEST}_{name}"][rows]
                for name in ("auto", "truth", "power")
            )
            noise.append(self._noise_bias(auto, truth, self.tiles[rows]))
            power.append(self._power(of_power, None, self.tiles[rows]))
            bands.append(bands_of(run, run.spectra(run.config.cosmology.vary(**point.change))))
        return FitPoints(np.array(noise), np.array(power), np.array(bands), fit.directions)

    def _changes(self, combine: Callable[..., np.ndarray], name: str) -> SimulatedChanges:
        arrays, settings = self.arrays, self.calibration.run.config.derivatives
        tiles = self.calibration.derivative_patches().tiles

        def combined(label: str) -> np.ndarray:
            values = arrays[f"{label}_{name}"]
            truths = arrays.get(f"{label}_truth", [None] * len(values))
            return np.stack([combine(v, t, tiles) for v, t in zip(values, truths, strict=True)])

        kk, ee = (
            BandDerivatives.of_bands(edges, combined(spectrum))
            for spectrum, edges in (("kk", settings.kk_edges), ("ee", settings.ee_edges))
        )
        which = self.calibration.nuisance_patches()
        centre = arrays[f"{TEST}_{name}"][which]
        shifted = np.stack([arrays[f"{step}_{name}"] for step in SIMULATED], axis=-1)
        first, second = (
            np.stack(
                [combine(x[..., i], None, self.tiles[which]) for i in range(x.shape[-1])], axis=-1
            )
            for x in nuisance_orders(nuisance_steps(self.calibration.run), centre, shifted)
        )
        first_order = NoiseDerivatives(kk, ee, combined("fiducial")[0])
        return SimulatedChanges(first_order, combined("shifted"), (first, second))

    def _noise_bias(
        self, auto: np.ndarray, truth: np.ndarray | None, tiles: np.ndarray
    ) -> np.ndarray:
        """⟨κ̂κ̂*⟩/R² less the truth, of weighted tiles, (n_patches, n_bins)."""
        normalised = self.weights.normalised(auto, tiles)
        normalised = normalised if truth is None else normalised - truth
        return self._sum(normalised, tiles, self.weights.weight)

    def _power(self, power: np.ndarray, truth: None, tiles: np.ndarray) -> np.ndarray:
        return self._sum(power, tiles, self.weights.modes[:, None])

    def _sum(self, values: np.ndarray, tiles: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weighted(values, tiles, weight, self.weights.label)

    def n_sim(self) -> int:
        """Of how many patches the covariance is worth."""
        label = self.weights.label
        # The variance of a bandpower goes as its square.
        variance = by_class(self.normalised, label[self.tiles]) ** 2
        return effective_number(self.tiles, self.weights.weight, label, variance)

    def record(self) -> dict[str, Any]:
        """What the release's provenance says of the survey."""
        plan, label = self.calibration.plan, self.weights.label
        correlation = neighbour_correlation(self.normalised, self.tiles, label)
        return {
            "plan": plan.identity,
            "tiles": [tile.number for tile in plan.tiles],
            "area_deg2": round(plan.area_deg2, 2),
            "classes": int(label.max()) + 1,
            "simulated_patches": len(self.tiles),
            "neighbour_correlation": [round(value, 4) for value in correlation],
        }

    def rotation_zero(self) -> float:
        """The rotation in degrees that the EB spectrum of unrotated simulations of the experiment
        tells, as a filter along the scan makes one."""
        modes = self.weights.modes[self.tiles]
        return float(rotation_of(self.arrays[f"{TEST}_rotation"], modes)[0, 0])

    def response_error(self) -> np.ndarray:
        """Standard error of Σ_t w R, by the scatter of the validation patches, (n_bins,)."""
        weights, tiles = self.weights, self.seen_as[VALIDATION]
        cross, truth = (self.arrays[f"{VALIDATION}_{name}"] for name in ("cross", "truth"))
        scatter = cross - weights.response[weights.label[tiles]] * truth
        return standard_error(weighted(scatter, tiles, weights.weight, weights.label)) / truth.mean(
            0
        )


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
        assemble.with_data(release, measured.auto, measured.power, measured.rotation),
        name=name,
        description=assemble.patches_of(
            len(measured.auto), setup.patch, setup.instrument, release.provenance.get("estimator")
        ),
        provenance=release.provenance | {"packages": assemble.package_versions()},
    )
    warnings = list(measured.warnings)
    if release.has(Group.DEBIAS) and not release.has(Group.ROTATION):
        warnings.append(
            "the rotation of the polarisation is not corrected: one patch does not tell the error "
            "of its measurement; give more patches"
        )
    return with_warnings(release, warnings)


def make_release(
    run: Run,
    plan: Plan,
    folder: str | Path,
    name: str,
    files: SimulationFiles | None = None,
) -> Release:
    """Make the release of a survey.

    Parameters
    ----------
    run : of the configuration that reconstructed and calibrated it
    plan : the survey's plan
    folder : where the products of both lie
    name : name of the release
    files : the experiment's own simulations, which then give R, N and the covariance

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
    folder = Path(folder)
    data = TileReconstruction(plan, MapSetup.of_run(run), folder).read()
    calibrated = Calibrated.read(run, plan, folder)
    scaling, simulations = None, None
    if files is None:
        changes, power_changes = calibrated.changes()
        points = calibrated.fit_points()
    else:
        simulations = OwnSimulations(run, plan, folder, files)
        calibrated, internal = calibrated.by(simulations)
        scaling = Scaling.of(calibrated, internal)
        changes, power_changes = scaling.changes(internal)
        points = scaling.points(internal)
    weights, rotation = calibrated.weights, data.rotation
    test, power = calibrated.test()
    of_patches = test.auto - test.truth
    unit = np.ones(test.auto.shape[1])
    made = Calibration(unit, unit, of_patches.mean(0), standard_error(of_patches))
    n_sim, n_bins = calibrated.n_sim(), len(unit)
    if n_sim <= n_bins + 2:
        path = calibrated.calibration.path if simulations is None else simulations.path
        more = "calibrate with more --patches" if simulations is None else "give more simulations"
        raise ConfigError(
            f"{path}: {len(calibrated.tiles)} patches of tiles as different as these "
            f"are worth {n_sim} alike, and {n_bins} bins need {n_bins + 3}; {more}, or take fewer "
            "bins"
        )
    auto = weights.combine(data.auto)
    fitted = None
    if run.config.data_debias:
        fitted = debias.fit(
            changes,
            power_changes,
            made.debias(test.auto),
            power,
            shifted_changes(run),
            points,
            len(auto),
            weights.label[calibrated.tiles],
        )
    release = assemble.assembled(run, made, test, changes, fitted, auto, {"maps": data.source})
    if scaling is not None:
        release = scaling.with_error(release, changes, shifted_changes(run)[1])
        rotation = rotated_back(rotation, calibrated.rotation_zero())
    if fitted is not None:
        release = replace(
            release,
            power=weights.modes @ data.power,
            rotation=rotation_of(rotation, weights.modes),
        )
    depths, patch = np.array([tile.depth for tile in plan.tiles]), run.config.patch
    survey = calibrated.record()
    if simulations is not None:
        survey |= {"own_simulations": simulations.record()}
    release = replace(
        release,
        name=name,
        description=(
            f"{len(depths)} tiles of {patch.size_deg:g} x {patch.size_deg:g} deg at "
            f"{depths.min():.3g} to {depths.max():.3g} uK arcmin: "
            f"{assemble.bandpowers_of(name_of(run.config))}"
        ),
        response=weights.mean_response,
        response_error=calibrated.response_error(),
        n_sim=n_sim,
        # The level whose inverse square is the tiles' mean one.
        instrument=release.instrument | {"noise": float(np.mean(depths**-2.0) ** -0.5)},
        provenance=release.provenance | {"survey": survey, "packages": assemble.package_versions()},
    )
    return with_warnings(release, data.warnings)
