"""CPU time of a survey's stages, counted in reconstructions of a patch and in simulated skies.

The workflow prints it before it starts anything (training/rules/survey.smk).
"""

from __future__ import annotations

from ..likelihood.fields import SIMULATED
from ..table import text_table
from .calibration import PartKind, SurveyCalibration
from .tile_nulls import ROUNDS

# CPU-seconds that one takes (docs/survey, on a cluster): κ̂ of a patch, a sky lensed at the pixels
# of tens of patches, and the harmonic analysis of one split's map.
RECONSTRUCTION, SKY, SPLIT = 1.0, 30.0, 40.0
# κ̂ of a tile and of its matched simulation that the null tests take: of l < l_max, both halves and
# their difference; the simulation's coadd; and those that match the power.
OF_NULLS = 2 * 4 + 1 + ROUNDS


def reconstructions(calibration: SurveyCalibration) -> dict[str, int]:
    """Count the reconstructions of each stage.

    Parameters
    ----------
    calibration : of the survey

    Returns
    -------
    counts : by stage
    """
    n_tiles, n_derivatives = len(calibration.plan.tiles), len(calibration.derivative_patches().rows)
    kinds = [part.kind for part in calibration.parts]
    of_sets = sum(calibration.counts.values())
    of_nuisances = 2 * len(SIMULATED) * len(calibration.nuisance_patches())
    of_points = sum(len(calibration.point_rows(point)) for point in calibration.points)
    of_derivatives = (
        1 + kinds.count(PartKind.SHIFTED) + 2 * kinds.count(PartKind.BAND)
    ) * n_derivatives
    return {
        "reconstruct": n_tiles,
        "calibrate": of_sets + of_nuisances + of_points + of_derivatives,
        "nulls": OF_NULLS * n_tiles,
    }


def hours_table(calibration: SurveyCalibration) -> str:
    """The CPU time of each stage as text.

    Parameters
    ----------
    calibration : of the survey

    Returns
    -------
    table : reconstructions and CPU-hours of each stage
    """
    counts = reconstructions(calibration)
    kinds = [part.kind for part in calibration.parts]
    perturbed = (PartKind.FIDUCIAL, PartKind.SHIFTED, PartKind.BAND, PartKind.POINT)
    skies = len(calibration.skies(calibration.parts)) + sum(map(kinds.count, perturbed))
    beside = {
        "reconstruct": SPLIT * calibration.plan.n_splits,
        "calibrate": SKY * skies,
        "nulls": 0.0,
    }
    seconds = [RECONSTRUCTION * counts[stage] + beside[stage] for stage in counts]
    return text_table(
        {
            "stage": ("", counts),
            "reconstructions": ("d", counts.values()),
            "CPU-hours": (".1f", [value / 3600.0 for value in seconds]),
        },
        f"{calibration.plan.name}: {len(calibration.plan.tiles)} tiles, about",
    )
