"""Power p̂ of E and B of the patches themselves, from which a release corrects the noise bias.

The noise bias depends on the E power of a patch, on the gain, and on the noise. The maps measure
all three: E in bins half as wide as those of κ̂, up to multipoles where noise dominates, and B there
in one bin. Of a survey they also measure the rotation of the polarisation. The change of p̂ with the
spectra is measured on the same skies, of fixed phases and noise, as that of the bandpowers. No
network runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from ..calibrate.debias import SimulatedChanges
from ..calibrate.derivatives import BandDerivatives, NoiseDerivatives, nuisance_orders
from ..likelihood.fields import SIMULATED
from ..simulate.bandpowers import EBPower
from ..simulate.instrument import Systematics
from ..simulate.tiling import some
from . import nuisances, perturbations
from .observation import observe_sky
from .perturbations import perturbed_sky, shifted_cosmologies
from .run import Run
from .simulation import Simulation
from .skies import Skies
from .stage import Stage

# Of the sums that give the rotation of a survey.
ROTATION_ALGORITHM = 1
# In the place of a set: test skies under errors of the instrument.
NUISANCE_SKIES = "nuisances"


def power_of(run: Simulation) -> EBPower:
    """What measures the patches of a configuration.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    from Q and U to their power
    """
    return EBPower(run.config.patch, run.bandpowers.bins, run.mask)


def _is_survey(name: str) -> bool:
    """Whether a set is data, whose rotation a release corrects."""
    return name.startswith("survey-")


class Power(Stage[Run]):
    """Power of E and B by patch, of a sky of a set, or of one under errors ("nuisances").

    A set's product holds ``power`` (n_patches, n_power), and that of a mock survey ``rotation``
    (n_patches, 2), the sums of :meth:`.EBPower.rotation`. That of the derivatives holds ``power``
    of its patches; ``kk`` and ``ee``, derivatives with respect to ln C of each band,
    (n_bands, n_patches, n_power); and ``shifted``, at ω_c − step and ω_c + step. That of the
    nuisances holds, by name, the power at −step and +step, (2, n_patches, n_power).
    """

    kind = "power"
    command = "power CONFIG --what {} --index {}"

    def counts(self) -> dict[str, int]:
        """How many skies of each set, or of "nuisances", a configuration's releases need."""
        config = self.config
        return {
            "test": config.skies.test,
            **{f"survey-{name}": survey.skies for name, survey in config.surveys.items()},
            perturbations.SET: config.skies.derivatives,
            NUISANCE_SKIES: config.nuisances.skies,
        }

    def keys(
        self, name: str | None = None, indices: Iterable[int] | None = None
    ) -> list[tuple[str, int]]:
        """The power that a configuration's releases need."""
        chosen = None if indices is None else set(indices)
        return [
            (kind, index)
            for kind, count in self.counts().items()
            for index in range(count)
            if name in (None, kind) and (chosen is None or index in chosen)
        ]

    def recipe(self, name: str, index: int) -> dict[str, Any]:
        """What determines the power of one sky."""
        config = self.config
        set_name = nuisances.SET if name == NUISANCE_SKIES else name
        settings: dict[str, dict[str, Any]] = {
            perturbations.SET: {
                "derivatives": config.derivatives.recipe(),
                "omch2_step": config.derivatives.omch2_step,
            },
            NUISANCE_SKIES: {"nuisances": config.nuisances.recipe()},
        }
        return {
            "sky": Skies(self.run).recipe(set_name, index),
            "power_algorithm": self.algorithm,
            "what": name,
            "instrument": config.instrument.recipe(),
            "bandpowers": config.bandpowers.model_dump(),
            **settings.get(name, {}),
            **({"rotation_algorithm": ROTATION_ALGORITHM} if _is_survey(name) else {}),
        }

    def make(self, name: str, index: int) -> dict[str, np.ndarray]:
        """Measure one sky."""
        if name == perturbations.SET:
            return self._derivatives(index)
        if name == NUISANCE_SKIES:
            return self._nuisances(index)
        sky = observe_sky(self.run, name, index)
        measured = power_of(self.run)
        arrays = {"power": measured(sky.q, sky.u)}
        if _is_survey(name):
            arrays["rotation"] = measured.rotation(sky.q, sky.u)
        return arrays

    def _derivatives(self, index: int) -> dict[str, np.ndarray]:
        run, threads, measured = self.run, self.threads, power_of(self.run)
        sky = perturbed_sky(run, index, threads, measured=measured)
        by_band: dict[str, list[np.ndarray]] = {"kk": [], "ee": []}
        for kind, band in tqdm(sky.bands(), desc=f"{self.kind}, derivatives/{index}", unit="band"):
            by_band[kind].append(sky.measure(kind, band)["auto"])
        shifted = [
            perturbed_sky(run, index, threads, run.spectra(cosmology), measured=measured)
            for cosmology in shifted_cosmologies(run)
        ]
        return {
            "power": sky.unperturbed()["auto"],
            "shifted": np.stack([moved.unperturbed()["auto"] for moved in shifted]),
            **{name: np.stack(values) for name, values in by_band.items()},
        }

    def _nuisances(self, index: int) -> dict[str, np.ndarray]:
        measured, arrays = power_of(self.run), {}
        patches = self.config.nuisances.patches
        for name in SIMULATED:
            step = getattr(self.config.nuisances, name)
            observed = [
                observe_sky(self.run, nuisances.SET, index, systematics=Systematics(**{name: x}))
                for x in (-step, step)
            ]
            arrays[name] = np.stack(
                [measured(*(some(maps, patches) for maps in (sky.q, sky.u))) for sky in observed]
            )
        return arrays

    def read(
        self, name: str, indices: Iterable[int], patches: int | None = None
    ) -> dict[str, np.ndarray]:
        """Read the power of some skies.

        Parameters
        ----------
        name : of a set of skies, or "nuisances"
        indices : numbers of the skies
        patches : of each sky, spread evenly over it; all by default

        Returns
        -------
        arrays by name, patches the last axis but one

        Raises
        ------
        products.ProductError
            if it has not been measured, or was for another configuration
        """
        parts = [
            {key: some(array, patches, -2) for key, array in self.arrays(name, index).items()}
            for index in indices
        ]
        return {key: np.concatenate([part[key] for part in parts], axis=-2) for key in parts[0]}

    def changes(self) -> SimulatedChanges:
        """How p̂ changes with the spectra and the instrument.

        Returns
        -------
        changes of p̂ in µK²

        Raises
        ------
        products.ProductError
            if it has not been measured, or was for another configuration
        """
        config, settings = self.config, self.config.derivatives
        perturbed = self.read(perturbations.SET, range(config.skies.derivatives))
        indices = range(config.nuisances.skies)
        centre = self.read(nuisances.SET, indices, config.nuisances.patches)["power"]
        by_name = self.read(NUISANCE_SKIES, indices)
        below_above = np.stack([by_name[name] for name in SIMULATED], axis=-1)
        kk = BandDerivatives.of_bands(settings.kk_edges, perturbed["kk"])
        ee = BandDerivatives.of_bands(settings.ee_edges, perturbed["ee"])
        return SimulatedChanges(
            NoiseDerivatives(kk, ee, perturbed["power"]),
            perturbed["shifted"],
            nuisance_orders(nuisances.nuisance_steps(self.run), centre, below_above),
        )
