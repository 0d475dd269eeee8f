"""Does the theory code of a Cobaya run reproduce the release's fiducial spectra?

A release was calibrated with one theory code at one accuracy. The same cosmology through the
user's settings must give the same bandpowers, or the difference becomes a bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..theory.camb import convergence_from_potential
from .bandpowers import BandpowerLikelihood

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
# What CLASS needs to reproduce the spectra of a release made with HMcode-2020 (CAMB's "mead2020").
# The first two are Cobaya's and CLASS's defaults. The last one's default, .001, ends the Limber
# integral of C_L^φφ at k = L_max/1000 per Mpc: 1% too little power at L = 1500, 3% at 4000.
CLASS_SETTINGS = {
    "non_linear": "hmcode",
    "hmcode_version": "2020",
    "k_max_limber_over_l_max_scalars": 0.02,
}
CLASS_DEFAULTS = CLASS_SETTINGS | {"k_max_limber_over_l_max_scalars": 0.001}
# Options of NodeCAMB that CAMB itself does not have.
NODE_OPTIONS = ("class", "nodes", "cache")


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


def requirements(likelihood: BandpowerLikelihood) -> dict[str, dict[str, int]]:
    """What a likelihood asks of the theory, as Cobaya takes it."""
    lensing = {"Cl": {"pp": likelihood.lmax_kk}}
    if not likelihood.needs_ee:
        return lensing
    return lensing | {"unlensed_Cl": {"ee": likelihood.lmax_ee}}


def theory_offset(theories: dict[str, Any], likelihood: BandpowerLikelihood) -> TheoryOffset:
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
    # Ours need no other theory; Cobaya's camb beside one fails where nothing is asked of it.
    enough = {name: block for name, block in theories.items() if _is_ours(name, block)}
    theories = {k: _plain(block) for k, block in deepcopy(enough or dict(theories)).items()}
    given = {key for block in theories.values() for key in (block.get("extra_args") or {})}
    names = CLASS_NAMES if any("classy" in name for name in theories) else {}
    cosmology = {names.get(k, k): v for k, v in release.theory["cosmology"].items()}
    needs = requirements(likelihood)
    seen: dict[str, np.ndarray] = {}

    def keep(_self: Any) -> float:
        seen["pp"] = _self.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
        if likelihood.needs_ee:
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
    change = likelihood.model(clkk, seen.get("ee")) - ours
    worst = int(np.argmax(np.abs(change / ours)[: len(likelihood.bins)]))
    return TheoryOffset(
        float(np.sqrt(change @ likelihood.inverse @ change)),
        int(likelihood.bins[worst]),
        float(change[worst] / ours[worst]),
        tuple(different_settings(theories, release.theory.get("settings", {}))),
    )


def _is_ours(name: str, block: Mapping[str, Any] | None) -> bool:
    given = (block or {}).get("class") or name
    return str(given).endswith(("EmulatedCAMB", "NodeCAMB"))


def _plain(block: Mapping[str, Any] | None) -> dict[str, Any]:
    block = dict(block or {})
    if "NodeCAMB" in str(block.get("class", "")):
        for key in NODE_OPTIONS:
            block.pop(key, None)
    # Cobaya fills these in for the run at hand, whose parameters are not those of the check.
    for key in ("version", "input_params", "output_params"):
        block.pop(key, None)
    return block


def different_settings(theories: dict[str, Any], made_with: dict[str, Any]) -> Iterator[str]:
    """Settings of a ``theory`` block that differ from those that a release's spectra were made
    with, as "name: theirs (release: ours)"."""
    for name, block in theories.items():
        settings = block.get("extra_args") or {}
        if "classy" in name:
            given = {key.replace("non linear", "non_linear"): x for key, x in settings.items()}
            settings = CLASS_DEFAULTS | given
            wanted = CLASS_SETTINGS if made_with.get("halofit_version") == "mead2020" else {}
        else:
            keys = ("lens_potential_accuracy", "halofit_version")
            wanted = {key: made_with[key] for key in keys if key in made_with}
        for key, value in wanted.items():
            if settings.get(key) != value and str(settings.get(key)) != str(value):
                yield f"{key}: {settings.get(key, 'default')} (release: {value})"
