"""What :class:`~cobaya_cnnlens.NodeCAMB` and :class:`~cobaya_cnnlens.EmulatedCAMB` share: the two
spectra of the likelihood, as Cobaya asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from cobaya.log import LoggedError
from cobaya.theories.cosmo import BoltzmannBase
from cobaya.theory import Theory
from cobaya.tools import str_to_list

DERIVED = ("sigma8", "omegam")
PROVIDED = {"Cl": "pp", "unlensed_Cl": "ee"}
# No spectrum has power below: every theory can give any one so far.
LOWEST_MULTIPOLE = 2


class VersionedByDigest:
    """What components share that read a file, and whose version is the digest of that file.

    Cobaya keeps the version beside the chain, and hands it over when the chain is resumed or its
    input is used again. ``_file_option`` is the option that names the file, or several.
    """

    _file_option: str
    log: Any
    version: Any
    get_version: Callable[[], str]

    @classmethod
    def get_modified_defaults(
        cls, defaults: dict[str, Any], input_options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Defaults as they are; the path in the block of the user becomes text.

        Parameters
        ----------
        defaults : of the component
        input_options : the block of the user

        Returns
        -------
        defaults : the same
        """
        paths_as_text(input_options, cls._file_option)
        return defaults

    @classmethod
    def compare_versions(cls, version_a: Any, version_b: Any, equal: bool = True) -> bool:
        """Compare digests, which have no order.

        Another digest counts as higher, so that Cobaya refuses it.

        Parameters
        ----------
        version_a, version_b : digests
        equal : whether equality suffices

        Returns
        -------
        compared : as Cobaya asks for it
        """
        return (version_a == version_b) is equal

    def refuse_other_version(self, file: str) -> None:
        """Refuse to resume a chain with another data file than the one it was begun with.

        Parameters
        ----------
        file : how to call the file in the error

        Raises
        ------
        LoggedError
            if the versions differ
        """
        begun_with, at_hand = self.version, self.get_version()
        if begun_with is not None and begun_with != at_hand:
            raise LoggedError(
                self.log,
                "%s is not the one that the chain was begun with (digest %s, then %s). Bring that "
                "file back; or begin anew (cobaya-run --force); or, if the change does not matter, "
                "go on with --allow-changes. In an input file, remove 'version'.",
                file,
                at_hand,
                begun_with,
            )


def paths_as_text(options: Mapping[str, Any] | None, name: str) -> None:
    """Write the paths of an option as text into the block of a component.

    Cobaya keeps the block beside a chain; for a :class:`pathlib.Path` it would write ``true``.

    Parameters
    ----------
    options : the block, changed in place
    name : of the option
    """
    if not isinstance(options, dict) or name not in options:
        return
    if isinstance(value := options[name], list | tuple):
        options[name] = [str(v) if isinstance(v, os.PathLike) else v for v in value]
    elif isinstance(value, os.PathLike):
        options[name] = str(value)


class SpectraTheory(Theory):
    """Provides ``Cl: pp``, ``unlensed_Cl: ee`` and the derived ``sigma8`` and ``omegam``.

    A subclass puts raw C_l from l = 0 into ``state["pp"]`` and ``state["ee"]`` (µK²), to at least
    ``self._lmax`` of each.
    """

    speed = 1000
    _derived: Sequence[str] = DERIVED
    _provided: Sequence[str] = tuple(PROVIDED)

    def initialize(self) -> None:
        """Begin with no multipole asked for; what is provided comes from here, not from another
        theory of the input that could give it too."""
        self._lmax = dict.fromkeys(PROVIDED.values(), 0)
        self._empty: set[str] = set()
        known = (*self._provided, *self._derived)
        chosen = str_to_list(getattr(self, "provides", None) or [])
        if unknown := [name for name in chosen if name not in known]:
            raise LoggedError(
                self.log, "option 'provides' has %s; choose of %s", unknown, ", ".join(known)
            )
        self._provided = [name for name in self._provided if name in chosen] or self._provided
        self.provides = [*self._provided, *self._derived]

    def initialize_with_provider(self, provider: Any) -> None:
        """Refuse a Boltzmann code of which nothing is asked.

        Cobaya's camb would fail without an understandable cause.

        Parameters
        ----------
        provider : of Cobaya
        """
        super().initialize_with_provider(provider)
        asked = [id(theory) for theory in provider.requirement_providers.values()]
        # Those that Cobaya has left out already, as its `post` does, are not in this order.
        for theory in provider.model._component_order:
            idle = id(theory.get_provider()) not in asked and not theory.output_params
            if idle and isinstance(theory, BoltzmannBase):
                name = theory.get_name()
                raise LoggedError(
                    self.log,
                    "nothing is asked of the theory '%s', because %s provides %s. Remove '%s' from "
                    "the input; or name under 'provides' of %s what is to come from it, e.g. "
                    "provides: [Cl]",
                    *(name, self.get_name(), ", ".join(self.provides), name, self.get_name()),
                )

    def get_can_provide_params(self) -> list[str]:
        """The derived parameters."""
        return list(self._derived)

    def get_can_provide_methods(self) -> dict[str, Any]:
        """The spectra, and what else a subclass has; or what the input's ``provides`` names."""
        methods = super().get_can_provide_methods()
        return {name: methods[name] for name in self._provided}

    def must_provide(self, **requirements: Any) -> None:
        """Note how far up each spectrum is asked for; refuse any other that has power there."""
        super().must_provide(**requirements)
        for key, spectra in requirements.items():
            for name, lmax in spectra.items() if key in PROVIDED else ():
                kind = PROVIDED[key]
                if lmax < LOWEST_MULTIPOLE:
                    self._empty.add(name.lower())
                    continue
                if name.lower() != kind:
                    raise LoggedError(
                        self.log,
                        "%s has no '%s: %s'; use cobaya's own camb in its place, not beside it",
                        type(self).__name__,
                        key,
                        name,
                    )
                self._lmax[kind] = max(self._lmax[kind], lmax)

    def get_Cl(self, ell_factor: bool = False, units: str = "FIRASmuK2") -> dict[str, np.ndarray]:
        """C_L^φφ as Cobaya's likelihoods ask for it.

        Spectra that are asked for to l = 1 alone are zero.

        Parameters
        ----------
        ell_factor : whether to multiply by [L(L+1)]²/2π
        units : has no effect on φ

        Returns
        -------
        spectra : ``"pp"`` and others by name, with ``"ell"``, from L = 0
        """
        pp = self.current_state["pp"].copy()
        L = np.arange(len(pp))
        if ell_factor:
            pp *= (L * (L + 1.0)) ** 2 / (2.0 * np.pi)
        return dict.fromkeys(self._empty, np.zeros(LOWEST_MULTIPOLE)) | {"ell": L, "pp": pp}

    def get_unlensed_Cl(
        self, ell_factor: bool = False, units: str = "FIRASmuK2"
    ) -> dict[str, np.ndarray]:
        """Unlensed C_l^EE as Cobaya's likelihoods ask for it.

        Parameters
        ----------
        ell_factor : whether to multiply by l(l+1)/2π
        units : of temperature

        Returns
        -------
        spectra : ``"ee"`` in µK² with ``"ell"``, from l = 0
        """
        if units not in ("muK2", "FIRASmuK2"):
            raise LoggedError(
                self.log, "%s gives C_l in muK2, not in '%s'", type(self).__name__, units
            )
        ee = self.current_state["ee"].copy()
        l = np.arange(len(ee))
        if ell_factor:
            ee *= l * (l + 1.0) / (2.0 * np.pi)
        return {"ell": l, "ee": ee}
