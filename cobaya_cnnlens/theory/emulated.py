"""An emulator as a Cobaya theory: spectra in half a millisecond.

In an input file it stands where ``camb`` stands::

    theory:
      cobaya_cnnlens.EmulatedCAMB:
        emulator: lcdm   # a shipped emulator (lcdm, mnu, feedback), or a path

Its parameters are those of its box, with ``As`` for ``logA``. One of ``ANGLES`` may be given in
place of ``H0``, and ``Alens`` too: C_L^φφ is proportional to it. For BAO it provides what Cobaya's
``bao`` likelihoods ask for: H(z) and distances from CAMB's background, and an emulated r_drag.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from cobaya.conventions import Const
from cobaya.log import LoggedError

from ..errors import EmulatorError, TheoryError
from .camb import Cosmology, expansion, hubble_constant, potential_from_convergence
from .cobaya import DERIVED, PROVIDED, SpectraTheory, VersionedByDigest
from .emulator import AMPLITUDE, Emulator, same
from .emulator_files import read_emulator

# Acoustic scales in place of H0: CAMB's name for each, and the factor that makes it CAMB's.
ANGLES = {
    "cosmomc_theta": ("cosmomc_theta", 1.0),
    "theta_MC_100": ("cosmomc_theta", 0.01),
    "thetastar": ("thetastar", 1.0),
}
BACKGROUND = ("Hubble", "angular_diameter_distance", "comoving_radial_distance")
# C_L^κκ does not depend on τ at a given A_s: CAMB's changes by 1e-4 from 0.03 to 0.12.
TAU_RANGE = (0.01, 0.2)


class EmulatedCAMB(VersionedByDigest, SpectraTheory):
    """Provides ``Cl: pp``, ``unlensed_Cl: ee``, ``Hubble``, ``angular_diameter_distance``,
    ``comoving_radial_distance`` and the derived ``sigma8``, ``omegam``, ``rdrag`` and ``H0``.

    A point outside the emulator's box has no likelihood; that is said once. A parameter that was
    fixed when the emulator was made may be given, with the value it had then. τ may have another
    value if no likelihood asks for C^EE.

    Attributes
    ----------
    emulator : name of a shipped emulator, or a path; or a list of some whose ratios are multiplied,
        as ``[mnu, feedback]``
    extra_args : must be empty; a setting of CAMB would have no effect
    """

    emulator: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    extra_args: Any
    _file_option = "emulator"
    _derived = (*DERIVED, "rdrag", "H0")
    _provided = (*PROVIDED, *BACKGROUND)

    def initialize(self) -> None:
        """Read the emulator."""
        super().initialize()
        try:
            self.source: Emulator = read_emulator(self.emulator)
        except EmulatorError as error:
            raise LoggedError(self.log, "%s", error) from None
        if self.extra_args:
            settings = self.source.record.get("settings", {})
            made_with = ", ".join(f"{name}: {value}" for name, value in settings.items())
            raise LoggedError(
                self.log,
                "option 'extra_args' is CAMB's, and no CAMB runs here: the emulator '%s' was made "
                "with %s. Remove 'extra_args', or use cobaya's own camb.",
                *(self.emulator, made_with or "settings that its file does not hold"),
            )
        self.refuse_other_version(f"emulator '{self.emulator}'")
        self._inputs = ["As" if name == AMPLITUDE else name for name in self.source.parameters]
        self._needs_background = self._was_refused = False

    def initialize_with_params(self) -> None:
        """Check that the input has every parameter once, H0 or an angle in its place."""
        given = set(self.input_params)
        missing = sorted(set(self._inputs) - given - {"H0"})
        scales = sorted(given & {"H0", *ANGLES})
        if missing or not scales:
            missing += [] if scales else [f"H0 (or one of {', '.join(ANGLES)})"]
            raise LoggedError(
                self.log, "the emulator '%s' needs %s", self.emulator, ", ".join(missing)
            )
        if len({ANGLES.get(name, (name,))[0] for name in scales}) > 1:
            raise LoggedError(
                self.log,
                "%s are all input parameters, but each fixes H0; keep one of them",
                " and ".join(scales),
            )
        self._scales = scales

    def get_version(self) -> str:
        """The digest of the emulator."""
        return self.source.digest

    def get_can_support_params(self) -> list[str]:
        """The box's parameters, those that were fixed, ``ANGLES`` and ``Alens``."""
        return [*self._inputs, *self.source.fixed, *ANGLES, "Alens"]

    def must_provide(self, **requirements: Any) -> None:
        """Refuse multipoles beyond the emulator's; note whether distances are asked for."""
        super().must_provide(**requirements)
        self._needs_background |= not set(BACKGROUND).isdisjoint(requirements)
        for kind, lmax in self._lmax.items():
            if lmax > self.source.lmax:
                raise LoggedError(
                    self.log,
                    "%s is asked for to l = %d, the emulator '%s' ends at %d; use cobaya's own "
                    "camb, or make an emulator with a larger lmax",
                    kind,
                    lmax,
                    self.emulator,
                    self.source.lmax,
                )

    def calculate(self, state: dict[str, Any], want_derived: bool = True, **params: float) -> bool:
        """Spectra, background and derived parameters of a point.

        Parameters
        ----------
        state : of Cobaya, filled here
        want_derived : whether derived parameters are wanted
        **params : by Cobaya's names

        Returns
        -------
        inside : False outside the box of the emulator
        """
        self._check_fixed(params)
        try:
            cosmology = self._cosmology(params)
            values = {**params, **asdict(cosmology)}
            point = {name: values[name] for name in self._inputs if name != "As"}
            point[AMPLITUDE] = np.log(1e10 * cosmology.As)
            outside = self.source.outside(point)
        except TheoryError as error:
            outside = [str(error)]
        low, high = TAU_RANGE
        if not low <= params.get("tau", low) <= high:
            outside.append(f"tau = {params['tau']:.6g} (from {low:g} to {high:g})")
        if outside:
            if not self._was_refused:
                self._was_refused = True
                self.log.warning(
                    "a point outside the emulator's box has no likelihood: %s. Where the "
                    "posterior reaches there, use cobaya's own camb. This is said once.",
                    ", ".join(outside),
                )
            return False
        clkk, clee, scalars = self.source(point)
        state["pp"] = params.get("Alens", 1.0) * potential_from_convergence(clkk)
        state["ee"] = clee
        if self._needs_background:
            state["background"] = expansion(cosmology)
        if want_derived:
            known = {**scalars, "H0": cosmology.H0}
            state["derived"] = {name: known[name] for name in self._derived}
        return True

    def _check_fixed(self, params: dict[str, float]) -> None:
        """Refuse another value of a fixed parameter, unless it is τ and no C^EE is asked for."""
        for name in sorted(set(self.source.fixed) & set(params)):
            value, made_at = params[name], self.source.fixed[name]
            if same(value, made_at) or (name == "tau" and not self._lmax["ee"]):
                continue
            mend = (
                "C^EE at l < 60 depends on it, and a likelihood asks for C^EE. Remove tau from the "
                "input, or choose noise_debias: data and primary: false, which need no C^EE"
                if name == "tau"
                else "remove the parameter from the input, take another emulator ('mnu' has the "
                "neutrinos' mass)"
            )
            raise LoggedError(
                self.log,
                "%s = %g, but the emulator '%s' was made at %g; %s, or use cobaya's own camb",
                *(name, value, self.emulator, made_at, mend),
            )

    def _cosmology(self, params: dict[str, float]) -> Cosmology:
        """The cosmology of a point; CAMB finds its H0 if an angle is given."""
        known = {**self.source.fixed, **params}
        cosmology = Cosmology(**{k: v for k, v in known.items() if hasattr(Cosmology, k)})
        if "H0" in self._scales:
            return cosmology
        angles = {ANGLES[name][0]: ANGLES[name][1] * params[name] for name in self._scales}
        if any(not same(params[n] * ANGLES[n][1], angles[ANGLES[n][0]]) for n in self._scales):
            raise LoggedError(
                self.log, "%s contradict each other; keep one", " and ".join(self._scales)
            )
        return cosmology.vary(H0=hubble_constant(cosmology, angles))

    def get_Hubble(self, z: Any, units: str = "km/s/Mpc") -> np.ndarray:
        """Expansion rate.

        Parameters
        ----------
        z : redshifts
        units : ``km/s/Mpc`` or ``1/Mpc``

        Returns
        -------
        H : one value per redshift
        """
        factors = {"km/s/Mpc": 1.0, "1/Mpc": 1.0 / Const.c_km_s}
        if units not in factors:
            raise LoggedError(self.log, "H(z) in '%s': give one of %s", units, list(factors))
        return factors[units] * self._background().hubble_parameter(np.atleast_1d(z))

    def get_angular_diameter_distance(self, z: Any) -> np.ndarray:
        """Physical angular diameter distance.

        Parameters
        ----------
        z : redshifts

        Returns
        -------
        distance : in Mpc, one value per redshift
        """
        return self._background().angular_diameter_distance(np.atleast_1d(z))

    def get_comoving_radial_distance(self, z: Any) -> np.ndarray:
        """Comoving radial distance.

        Parameters
        ----------
        z : redshifts

        Returns
        -------
        distance : in Mpc, one value per redshift
        """
        return self._background().comoving_radial_distance(np.atleast_1d(z))

    def _background(self) -> Any:
        return self.current_state["background"]
