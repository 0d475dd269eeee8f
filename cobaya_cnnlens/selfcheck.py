"""Does the theory code of a Cobaya run reproduce the release's fiducial spectra?

A release was calibrated with one theory code at one accuracy. The same cosmology through the
user's settings must give the same bandpowers, or the difference becomes a bias.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from .model import BandpowerLikelihood
from .theory import convergence_from_potential

# Names of the release's parameters in CLASS, whose inputs differ from CAMB's.
CLASS_NAMES = {
    "ombh2": "omega_b",
    "omch2": "omega_cdm",
    "As": "A_s",
    "ns": "n_s",
    "tau": "tau_reio",
    "H0": "H0",
    "mnu": "m_ncdm",
}
# Options of NodeCAMB that CAMB itself does not have.
NODE_OPTIONS = ("class", "nodes")


@dataclass(frozen=True)
class TheoryOffset:
    """What the theory code gives at the fiducial, against the release.

    ``sigmas`` : √(ΔµᵀC⁻¹Δµ), the largest bias in σ that any one parameter can have from it
    ``worst_bin``, ``worst_change`` : bin of the largest |Δµ|/µ, and that change
    ``settings`` : settings in which the two differ, as "name: theirs (release: ours)"
    """

    sigmas: float
    worst_bin: int
    worst_change: float
    settings: tuple[str, ...]


def theory_offset(theories: dict, likelihood: BandpowerLikelihood) -> TheoryOffset:
    """Run the theory block of a Cobaya input at the release's fiducial cosmology.

    Parameters
    ----------
    theories : the ``theory`` block of the input
    likelihood : of the release

    Raises
    ------
    Exception
        whatever Cobaya raises if the block does not run with the release's parameters
    """
    from cobaya.model import get_model

    release = likelihood.release
    theories = {name: _plain(block) for name, block in deepcopy(dict(theories)).items()}
    given = {key for block in theories.values() for key in (block.get("extra_args") or {})}
    names = CLASS_NAMES if any("classy" in name for name in theories) else {}
    cosmology = {names.get(k, k): v for k, v in release.theory["cosmology"].items()}
    needs = {"Cl": {"pp": likelihood.lmax_kk}, "unlensed_Cl": {"ee": likelihood.lmax_ee}}
    seen = {}

    def keep(_self):
        seen["pp"] = _self.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
        seen["ee"] = _self.provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"]
        return 0.0

    model = get_model(
        {
            "likelihood": {"fiducial": {"external": keep, "requires": needs}},
            "theory": theories,
            "params": {k: v for k, v in cosmology.items() if k not in given},
        }
    )
    model.loglike({})
    model.close()
    clkk = convergence_from_potential(seen["pp"])
    ours = likelihood.model(release.fiducial_kk, release.fiducial_ee)
    change = likelihood.model(clkk, seen["ee"]) - ours
    worst = int(np.argmax(np.abs(change / ours)))
    return TheoryOffset(
        float(np.sqrt(change @ likelihood.inverse @ change)),
        int(likelihood.bins[worst]),
        float(change[worst] / ours[worst]),
        tuple(_different_settings(theories, release.theory.get("settings", {}))),
    )


def _plain(block: dict | None) -> dict:
    block = dict(block or {})
    if "NodeCAMB" in str(block.get("class", "")):
        for key in NODE_OPTIONS:
            block.pop(key, None)
    # Cobaya fills these in for the run at hand, whose parameters are not those of the check.
    for key in ("version", "input_params", "output_params"):
        block.pop(key, None)
    return block


def _different_settings(theories: dict, made_with: dict):
    for block in theories.values():
        settings = block.get("extra_args") or {}
        for key in ("lens_potential_accuracy", "halofit_version"):
            if key in made_with and settings.get(key) != made_with[key]:
                yield f"{key}: {settings.get(key, 'default')} (release: {made_with[key]})"
