"""An emulator as a Cobaya theory: spectra in about a millisecond.

In an input file it stands where ``camb`` stands; its parameters are those of its box, with ``As``
for ``logA``::

    theory:
      cobaya_cnnlens.EmulatedCAMB:
        emulator: lcdm   # a shipped emulator (lcdm, mnu), or the path of one

``Alens`` may be given too: C_L^φφ is proportional to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from cobaya.log import LoggedError

from ..errors import EmulatorError
from .camb import potential_from_convergence
from .cobaya import DERIVED, SpectraTheory, paths_as_text, refuse_other_version
from .emulator import AMPLITUDE, Emulator, read_emulator


class EmulatedCAMB(SpectraTheory):
    """Provides ``Cl: pp``, ``unlensed_Cl: ee``, ``sigma8`` and ``omegam`` from an emulator.

    A point outside the emulator's box has no likelihood; that is said once. A parameter that was
    fixed when the emulator was made may be given, with the value it had then.

    Attributes
    ----------
    emulator : name of a shipped emulator, or a path
    """

    emulator: str | os.PathLike[str]

    @classmethod
    def get_modified_defaults(
        cls, defaults: dict[str, Any], input_options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As they are; the block has its path as a text."""
        paths_as_text(input_options, "emulator")
        return defaults

    def initialize(self) -> None:
        """Read the emulator."""
        super().initialize()
        try:
            self.source: Emulator = read_emulator(self.emulator)
        except EmulatorError as error:
            raise LoggedError(self.log, "%s", error) from None
        refuse_other_version(self, f"emulator '{self.emulator}'")
        self._inputs = ["As" if name == AMPLITUDE else name for name in self.source.parameters]
        self._left_the_box = False

    def get_version(self) -> str:
        """The digest of the emulator."""
        return self.source.digest

    @classmethod
    def compare_versions(cls, version_a: Any, version_b: Any, equal: bool = True) -> bool:
        """Digests have no order: another one counts as higher, so that Cobaya refuses it."""
        return (version_a == version_b) is equal

    def get_can_support_params(self) -> list[str]:
        """The box's parameters, those that were fixed, and ``Alens``."""
        return [*self._inputs, *self.source.fixed, "Alens"]

    def must_provide(self, **requirements: Any) -> None:
        """Refuse multipoles beyond the emulator's."""
        super().must_provide(**requirements)
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
        """Spectra and derived parameters of a point; False outside the box."""
        for name, value in self.source.fixed.items():
            if params.get(name, value) != value:
                raise LoggedError(
                    self.log,
                    "%s = %g, but the emulator '%s' was made at %g; remove the parameter from "
                    "the input, take another emulator ('mnu' has the neutrinos' mass), or use "
                    "cobaya's own camb",
                    name,
                    params[name],
                    self.emulator,
                    value,
                )
        if missing := sorted(set(self._inputs) - set(params)):
            raise LoggedError(self.log, "the emulator '%s' needs %s", self.emulator, missing)
        point = {name: params[name] for name in self._inputs if name != "As"}
        point[AMPLITUDE] = np.log(1e10 * params["As"])
        if outside := self.source.outside(point):
            if not self._left_the_box:
                self._left_the_box = True
                self.log.warning(
                    "a point outside the emulator's box has no likelihood: %s. Where the "
                    "posterior reaches there, use cobaya's own camb. This is said once.",
                    ", ".join(outside),
                )
            return False
        clkk, clee, scalars = self.source(point)
        state["pp"] = params.get("Alens", 1.0) * potential_from_convergence(clkk)
        state["ee"] = clee
        if want_derived:
            state["derived"] = {name: scalars[name] for name in DERIVED}
        return True
