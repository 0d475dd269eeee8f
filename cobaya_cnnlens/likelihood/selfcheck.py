"""Does the theory code of a Cobaya run reproduce the release's fiducial spectra?

A release was calibrated with one theory code at one accuracy. The same cosmology through the
user's settings must give the same bandpowers, or the difference becomes a bias.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TheoryError
from ..theory.camb import convergence_from_potential
from ..theory.cobaya import LOWEST_MULTIPOLE
from ..theory.emulator_files import read_emulator
from .bandpowers import BandpowerLikelihood

# Names of the release's parameters in CLASS, whose inputs differ from CAMB's.
CLASS_NAMES = {
    "ombh2": "omega_b",
    "omch2": "omega_cdm",
    "As": "A_s",
    "ns": "n_s",
    "tau": "tau_reio",
    "H0": "H0",
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
# Settings of CLASS that say which neutrinos there are.
CLASS_NEUTRINOS = (
    *("N_ur", "N_eff", "N_ncdm", "deg_ncdm", "T_ncdm"),
    *("m_ncdm", "omega_ncdm", "Omega_ncdm"),
)
# Options of NodeCAMB that CAMB itself does not have.
NODE_OPTIONS = ("class", "nodes", "cache")
OURS = ("EmulatedCAMB", "NodeCAMB")


@dataclass(frozen=True)
class TheoryOffset:
    """What the theory code gives at the fiducial cosmology, against the release.

    Attributes
    ----------
    sigmas : √(ΔµᵀC⁻¹Δµ), the largest bias in σ that any one parameter can have from it
    worst_bin, worst_change : bin of the largest |Δµ|/µ, and that change
    factor : words for a C_L^κκ that is off by a known factor, or None
    settings : settings in which the two differ, as "name: theirs (release: ours)"
    """

    sigmas: float
    worst_bin: int
    worst_change: float
    factor: str | None
    settings: tuple[str, ...]

    def describe(self, edges: np.ndarray) -> str:
        """By how much and where the theory is off, and what to do.

        Parameters
        ----------
        edges : of all bins of the release, (n_bins + 1,), in L

        Returns
        -------
        sentences
        """
        mend = "Its known settings are the release's; look at its version, neutrinos and l_max."
        if self.factor:
            mend = f"{self.factor}."
        elif self.settings:
            mend = f"Set as in the release what differs: {'; '.join(self.settings)}."
        low, high = edges[self.worst_bin : self.worst_bin + 2]
        return (
            f"at the release's fiducial cosmology the theory's bandpowers are off by "
            f"{self.sigmas:.2f} sigma (the largest bias of a parameter), most in L = "
            f"{low:.0f}-{high:.0f}, by {100 * self.worst_change:+.2f}%. {mend}"
        )


def requirements(likelihood: BandpowerLikelihood) -> dict[str, dict[str, int]]:
    """What a likelihood asks of the theory, as Cobaya takes it.

    C_l^TT to l = 1, which is zero, is not used. Cobaya has CLASS compute lensed spectra for
    C_L^φφ, which CLASS refuses unless there is one of the CMB to be lensed.

    Parameters
    ----------
    likelihood : of the release

    Returns
    -------
    requirements by quantity
    """
    lensing = {"Cl": {"pp": likelihood.lmax_kk, "tt": LOWEST_MULTIPOLE - 1}}
    if not likelihood.needs_ee:
        return lensing
    return lensing | {"unlensed_Cl": {"ee": likelihood.lmax_ee}}


def theory_offset(theories: Mapping[str, Any], likelihood: BandpowerLikelihood) -> TheoryOffset:
    """Run the theory block of a Cobaya input at the release's fiducial cosmology.

    Parameters
    ----------
    theories : the ``theory`` block of the input
    likelihood : of the release

    Returns
    -------
    the offset

    Raises
    ------
    TheoryError
        if the block has no spectra at the release's fiducial cosmology
    Exception
        whatever else Cobaya or the theory raises there
    """
    spectra = spectra_of(theories, likelihood, likelihood.release.theory["cosmology"])
    return offset_of(theories, likelihood, *spectra)


def offset_of(
    theories: Mapping[str, Any],
    likelihood: BandpowerLikelihood,
    clkk: np.ndarray,
    clee: np.ndarray | None,
) -> TheoryOffset:
    """Compare spectra that a theory gives at the release's fiducial cosmology with the release's.

    Parameters
    ----------
    theories : the ``theory`` block of the input, whose settings are compared too
    likelihood : of the release
    clkk, clee : as :func:`spectra_of` gives them there

    Returns
    -------
    the offset
    """
    release = likelihood.release
    ours = likelihood.model(release.fiducial_kk, release.fiducial_ee)
    change = likelihood.model(clkk, clee) - ours
    worst = int(np.argmax(np.abs(change / ours)[: len(likelihood.bins)]))
    return TheoryOffset(
        float(np.sqrt(change @ likelihood.inverse @ change)),
        int(likelihood.bins[worst]),
        float(change[worst] / ours[worst]),
        likelihood.factor(clkk, clee),
        tuple(different_settings(theories, release.theory.get("settings", {}))),
    )


def spectra_of(
    theories: Mapping[str, Any], likelihood: BandpowerLikelihood, cosmology: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Run the theory block of a Cobaya input at one cosmology.

    Parameters
    ----------
    theories : the ``theory`` block of the input
    likelihood : of the release, which says how far the spectra must reach
    cosmology : under CAMB's names, as a release holds it

    Returns
    -------
    clkk : C_L^κκ from L = 0
    clee : unlensed C_l^EE in µK² from l = 0; None unless the likelihood needs it

    Raises
    ------
    TheoryError
        if the block has no spectra at the cosmology
    Exception
        whatever else Cobaya or the theory raises there
    """
    from cobaya.model import get_model

    theories, parameters = _at_cosmology(theories, cosmology)
    spectra: dict[str, np.ndarray] = {}

    def keep(_self: Any) -> float:
        spectra["pp"] = _self.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
        if likelihood.needs_ee:
            spectra["ee"] = _self.provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"]
        return 0.0

    needs = requirements(likelihood)
    with silent():  # errors are raised too, and the caller says what they mean
        model = get_model(
            {
                "likelihood": {"fiducial": {"external": keep, "requires": needs}},
                "theory": theories,
                "params": parameters,
                "stop_at_error": True,
            }
        )
        model.loglike({})
        model.close()
    if "pp" not in spectra:
        listed = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        raise TheoryError(f"no spectra at {listed}")
    return convergence_from_potential(spectra["pp"]), spectra.get("ee")


def _at_cosmology(
    theories: Mapping[str, Any], cosmology: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """A theory block that fixes no parameter of a cosmology, and these under the block's names."""
    theories = {k: _plain(block) for k, block in deepcopy(_sufficient(theories)).items()}
    parameters = dict(cosmology)
    for name, block in theories.items():
        settings = block.get("extra_args") or {}
        neutrinos: dict[str, float] = {}
        if _is_class(name, block):
            parameters, neutrinos = class_cosmology(parameters)
            settings = {k: v for k, v in settings.items() if k not in CLASS_NEUTRINOS}
        if settings or neutrinos:
            # What the block fixes takes the release's value: else it were another cosmology.
            kept = {k: v for k, v in settings.items() if k not in parameters}
            block["extra_args"] = kept | neutrinos
    return theories, parameters


def _sufficient(theories: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks that give the spectra. Ours need no other theory, and Cobaya's camb beside one
    fails where nothing is asked of it."""
    blocks = {name: dict(block or {}) for name, block in theories.items()}
    ours = {name: block for name, block in blocks.items() if _is(block, name, *OURS)}
    return ours or blocks


def _is(block: Mapping[str, Any], name: str, *classes: str) -> bool:
    return str(block.get("class") or name).endswith(classes)


def class_cosmology(cosmology: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """A release's cosmology under CLASS's names, and its neutrinos as settings of CLASS.

    CAMB made the release with one massive neutrino, and N_eff = 3.044. ``m_ncdm`` of CLASS is the
    mass of each neutrino of a species, whose number ``deg_ncdm`` an input may have set.

    Parameters
    ----------
    cosmology : of the release, under CAMB's names, with Σm_ν in eV

    Returns
    -------
    cosmology, and settings
    """
    renamed = {CLASS_NAMES.get(name, name): value for name, value in cosmology.items()}
    mass = renamed.pop("mnu", 0.0)
    return renamed, {"N_ncdm": 1, "m_ncdm": mass, "N_ur": 2.0308} if mass else {"N_ur": 3.044}


@contextmanager
def silent() -> Iterator[None]:
    """Keep what Cobaya logs inside the context from the terminal.

    Yields
    ------
    None
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _is_class(name: str, block: Mapping[str, Any]) -> bool:
    return "classy" in f"{name} {block.get('class', '')}"


def _plain(block: dict[str, Any]) -> dict[str, Any]:
    if "NodeCAMB" in str(block.get("class", "")):
        for key in NODE_OPTIONS:
            block.pop(key, None)
    # Cobaya fills these in for the run at hand, whose parameters are not those of the check.
    for key in ("version", "input_params", "output_params"):
        block.pop(key, None)
    return block


def different_settings(theories: Mapping[str, Any], made_with: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a ``theory`` block that differ from those that a release's spectra were made
    with, as "name: theirs (release: ours)". Those of an emulator are in its file.

    Parameters
    ----------
    theories : the ``theory`` block of the input
    made_with : settings of the release

    Yields
    ------
    text for each
    """
    from camb.nonlinear import halofit_default

    for name, block in _sufficient(theories).items():
        settings = block.get("extra_args") or {}
        if _is_class(name, block):
            given = {key.replace("non linear", "non_linear"): x for key, x in settings.items()}
            settings = CLASS_DEFAULTS | given
            expected = CLASS_SETTINGS if made_with.get("halofit_version") == "mead2020" else {}
        else:
            keys = ("lens_potential_accuracy", "halofit_version")
            expected = {key: made_with[key] for key in keys if key in made_with}
            if _is(block, name, "EmulatedCAMB"):
                settings = read_emulator(block.get("emulator") or "lcdm").record.get("settings", {})
            elif "num_massive_neutrinos" in settings:
                expected["num_massive_neutrinos"] = 1
            settings = {"halofit_version": halofit_default, **settings}
        for key, value in expected.items():
            if settings.get(key) != value and str(settings.get(key)) != str(value):
                yield f"{key}: {settings.get(key, 'default')} (release: {value})"
