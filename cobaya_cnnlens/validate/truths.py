"""The true parameters of the mock survey that a chain used, derived ones included.

A release holds the cosmology that its mock was simulated with. Derived parameters follow from it by
the definitions in the chain's own input, by the chain's emulator, or by CAMB. Each is computed only
if the chain has it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from cobaya.tools import get_external_function

from ..errors import CNNLensError
from ..likelihood.blinding import is_blinded, version_of
from ..likelihood.combined import combine
from ..likelihood.release import read_release
from ..theory.camb import CambSettings, Cosmology, camb_parameters, camb_refusals, sigma8
from ..theory.emulator_files import read_emulator

LIKELIHOOD, EMULATOR = "CNNLens", "EmulatedCAMB"
# What CLASS calls parameters that CAMB has too.
CLASS_NAMES = {
    "omega_cdm": "omch2",
    "omega_b": "ombh2",
    "A_s": "As",
    "n_s": "ns",
    "tau_reio": "tau",
    "Omega_m": "omegam",
}
# Of CAMB's background; its thetastar is 100 θ*, which inputs name the same as θ*.
BACKGROUND = ("age", "rdrag", "rstar", "zdrag", "zstar", "zeq", "keq", "cosmomc_theta")


def blocks_of(section: Mapping[str, Any] | None, component: str) -> dict[str, dict[str, Any]]:
    """Our components in the ``likelihood`` or ``theory`` of an input.

    Parameters
    ----------
    section : of the input
    component : name of the class

    Returns
    -------
    blocks : options by the component's name in the input
    """
    return {
        name: block
        for name, block in (section if isinstance(section, Mapping) else {}).items()
        if isinstance(block, dict)
        and str(block.get("class") or name).startswith("cobaya_cnnlens.")
        and str(block.get("class") or name).endswith(f".{component}")
    }


def true_parameters(info: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """True parameters of the mock that a chain used.

    Parameters
    ----------
    info : the chain's input, with its defaults
    names : further parameters to compute, where they follow from the simulated cosmology

    Returns
    -------
    truth : the simulated cosmology and those of ``names`` that follow from it; empty for data

    Raises
    ------
    CNNLensError
        If a release is not what the chain was begun with, or the releases have different truths.
    """
    blocks = blocks_of(info.get("likelihood"), LIKELIHOOD)
    simulated = [_simulated(name, block) for name, block in blocks.items()]
    if not any(simulated):
        return {}
    if any(truth != simulated[0] for truth in simulated):
        raise CNNLensError("the releases of the chain were simulated with different cosmologies")
    truth = Truth(simulated[0], info)
    values = {name: truth(name) for name in dict.fromkeys([*simulated[0], *names])}
    return {name: value for name, value in values.items() if value is not None}


def _simulated(name: str, block: dict[str, Any]) -> dict[str, float]:
    """The simulated cosmology of a likelihood's releases, empty for data and for blinded ones,
    whose files may be open by now."""
    if is_blinded(block.get("version")):
        return {}
    sources: Any = block.get("release")
    releases = [read_release(s) for s in (sources if isinstance(sources, list) else [sources])]
    version = version_of(combine(releases))
    if block.get("version") not in (None, version):
        raise CNNLensError(
            f"release {sources!r} of {name} is not the one that the chain was begun with (digest "
            f"{version}, then {block['version']})"
        )
    truths = [release.truth or {} for release in releases]
    if any(truth != truths[0] for truth in truths):
        raise CNNLensError("the releases of the chain were simulated with different cosmologies")
    return truths[0]


class Truth:
    """Values of parameters at a simulated cosmology, each computed when it is first asked for.

    Parameters
    ----------
    simulated : the parameters that the mock was simulated with, by CAMB's names
    info : the input of the chain, whose definitions of derived parameters are used
    """

    def __init__(self, simulated: Mapping[str, float], info: Mapping[str, Any]):
        # Simulated skies are lensed as general relativity has it.
        self._known: dict[str, float | None] = {"Alens": 1.0, **simulated}
        self._simulated, self._info = simulated, info

    def __call__(self, name: str) -> float | None:
        """The value of a parameter; None where it does not follow from the cosmology."""
        if name not in self._known:
            self._known[name] = None  # for a definition that refers to itself
            value = self._defined(name)
            self._known[name] = self._computed(name) if value is None else value
        return self._known[name]

    def _defined(self, name: str) -> float | None:
        """The value by the definition in the chain's input, ``derived`` or ``value``."""
        entry = (self._info.get("params") or {}).get(name)
        entry = entry if isinstance(entry, dict) else {"value": entry}
        definition = next(
            (x for x in (entry.get("derived"), entry.get("value")) if _is_code(x)), None
        )
        if definition is None:
            return None
        try:
            function = get_external_function(definition, name=name)
            arguments = {key: self(key) for key in inspect.signature(function).parameters}
            if None in arguments.values():
                return None
            return float(function(**arguments))
        except Exception:  # whatever a definition of the user's own raises
            return None

    def _computed(self, name: str) -> float | None:
        """The value by a formula, the chain's emulator or CAMB."""
        if name in CLASS_NAMES:
            return self(CLASS_NAMES[name])
        if name in ("logA", "ln10As") and (amplitude := self("As")):
            return float(np.log(1e10 * amplitude))
        if name == "theta_MC_100" and (theta := self("cosmomc_theta")):
            return 100.0 * theta
        if name == "s8omegamp25" and (amplitude := self("sigma8")) and (density := self("omegam")):
            return amplitude * density**0.25
        if name not in ("sigma8", "omegam", *BACKGROUND):
            return None
        if name in self._emulated:
            return self._emulated[name]
        if self._camb is None:
            return None
        with camb_refusals("the mock's cosmology"):
            if name == "omegam":
                return float(self._camb.omegam)
            return sigma8(self._camb) if name == "sigma8" else self._background.get(name)

    @cached_property
    def _emulated(self) -> dict[str, float]:
        """σ8 and Ω_m by the emulator that the chain used, which has the same small errors."""
        for block in blocks_of(self._info.get("theory"), EMULATOR).values():
            try:
                emulator = read_emulator(block["emulator"])
                values = {name: self(name) for name in emulator.parameters}
                point = {name: value for name, value in values.items() if value is not None}
                fixed = {name: self(name) for name in emulator.fixed}
                if len(point) == len(values) and fixed == emulator.fixed:
                    scalars = emulator(point)[2]
                    return {name: scalars[name] for name in ("sigma8", "omegam")}
            except (CNNLensError, KeyError):
                return {}
        return {}

    @cached_property
    def _camb(self) -> Any:
        names = {field.name for field in fields(Cosmology)}
        if not names <= set(self._simulated):
            return None
        cosmology = Cosmology(**{name: self._simulated[name] for name in names})
        return camb_parameters(cosmology, CambSettings())

    @cached_property
    def _background(self) -> dict[str, float]:
        import camb

        results = camb.get_background(self._camb)
        return {**results.get_derived_params(), "cosmomc_theta": float(results.cosmomc_theta())}


def _is_code(definition: object) -> bool:
    return isinstance(definition, str) and ("lambda" in definition or "import_module" in definition)
