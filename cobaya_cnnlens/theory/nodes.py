"""CAMB at nodes: a Cobaya theory for one or two slow parameters.

:class:`NodeCAMB` runs CAMB on a regular grid of nodes, each when a chain first needs it. Between
nodes it interpolates ln C_l by the cubic through the four nearest in each parameter. With the
spacing of ``yaml/omegac.yaml`` the error is 1e-4, the level of CAMB's numerical noise. C_L^φφ is
proportional to ``Alens``, which needs no nodes. Nodes are kept in files for the next run, and for
the other processes of an MPI run; the name of a file holds everything that determines the node.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from cobaya.log import LoggedError

from ..errors import TheoryError
from ..files import atomic_write
from .camb import camb_refusals, sigma8
from .cobaya import DERIVED, SpectraTheory

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system: processes may make a node twice
    fcntl = None  # type: ignore[assignment]

INPUTS = (
    *("omch2", "ombh2", "omk", "As", "ns", "nrun", "tau", "H0", "cosmomc_theta", "thetastar"),
    *("mnu", "nnu", "YHe", "TCMB", "w", "wa", "Alens"),
)
MAX_NODE_PARAMETERS = 2
# Lowest node, in units of the spacing, of what cannot be negative, or not zero either.
LOWEST_NODE = {"mnu": 0} | dict.fromkeys(
    ("omch2", "ombh2", "As", "tau", "H0", "cosmomc_theta", "thetastar", "nnu", "YHe", "TCMB"), 1
)
# Raised when a node's code changes what it gives.
ALGORITHM = 1
# A run whose other parameters took more values than this samples them: its nodes are not kept.
MAX_TABLES = 8


class NodeCAMB(SpectraTheory):
    """Provides ``Cl: pp``, ``unlensed_Cl: ee`` and the derived ``sigma8`` and ``omegam``.

    It takes the place of ``camb`` in an input file. Without ``class`` and ``nodes`` the same file
    runs CAMB at every step::

        theory:
          camb:
            class: cobaya_cnnlens.NodeCAMB
            nodes: {omch2: 0.002}
            extra_args: {lens_potential_accuracy: 8}

    Attributes
    ----------
    nodes : parameter → spacing of its nodes; at most two parameters
    extra_args : passed to ``camb.set_params``, as cobaya's own CAMB does
    cache : folder where nodes are kept; null for ``cobaya_cnnlens/nodes`` in the user's cache
        (``$XDG_CACHE_HOME`` or ``~/.cache``), false to keep none
    """

    nodes: dict[str, float]
    extra_args: dict[str, Any]
    cache: str | bool | None

    def initialize(self) -> None:
        """Check the options; no node is made yet."""
        super().initialize()
        self._check_options()
        # True was refused.
        self._files = (
            None if isinstance(self.cache, bool) else NodeFiles(self.cache or default_cache())
        )
        self._made_for: tuple[dict[str, float], dict[str, int]] = ({}, {})
        self._table: dict[tuple[int, ...], np.ndarray] = {}
        self._tables = 0
        self._refused = False

    def _check_options(self) -> None:
        for name in ("nodes", "extra_args"):
            if not isinstance(getattr(self, name), Mapping):
                raise LoggedError(
                    self.log,
                    "option '%s' is %r; give names and values, e.g. %s: {omch2: 0.002}",
                    *(name, getattr(self, name), name),
                )
        if not self.nodes or len(self.nodes) > MAX_NODE_PARAMETERS:
            raise LoggedError(
                self.log,
                "option 'nodes' must name one or %d parameters with the spacing of their nodes, "
                "e.g. {omch2: 0.002}; for more parameters use cobaya's own camb",
                MAX_NODE_PARAMETERS,
            )
        for name, spacing in self.nodes.items():
            if name not in INPUTS:
                raise LoggedError(self.log, "option 'nodes': '%s' is not a CAMB parameter", name)
            number = isinstance(spacing, int | float) and not isinstance(spacing, bool)
            if not (number and 0 < spacing < np.inf):
                raise LoggedError(
                    self.log,
                    "option 'nodes': the spacing of '%s' is %r; it must be a positive number",
                    name,
                    spacing,
                )
        if self.cache is True or not isinstance(self.cache, str | os.PathLike | bool | None):
            raise LoggedError(
                self.log,
                "option 'cache' is %r; give a folder, null for the usual one, or false for none",
                self.cache,
            )

    def get_can_support_params(self) -> list[str]:
        """CAMB's parameters."""
        return list(INPUTS)

    def calculate(self, state: dict[str, Any], want_derived: bool = True, **params: float) -> bool:
        """Spectra and derived parameters of a point.

        Parameters
        ----------
        state : of Cobaya, filled here
        want_derived : whether derived parameters are wanted
        **params : by Cobaya's names

        Returns
        -------
        computed : False where CAMB refuses a node around the point
        """
        missing = [name for name in self.nodes if name not in params]
        if missing:
            raise LoggedError(self.log, "option 'nodes': %s is not an input parameter", missing)
        if twice := sorted(set(params) & set(self.extra_args)):
            raise LoggedError(
                self.log, "%s: given both as parameters and in 'extra_args'; remove one", twice
            )
        # CAMB multiplies C_L^φφ by Alens, after everything else.
        amplitude = params.pop("Alens", 1.0)
        spacings = {name: s for name, s in self.nodes.items() if name != "Alens"}
        self._choose_table({k: v for k, v in params.items() if k not in spacings})
        stencils = [
            _cubic(params[name] / spacing, LOWEST_NODE.get(name))
            for name, spacing in spacings.items()
        ]
        steps = list(product(range(4), repeat=len(stencils)))
        nodes = [tuple(s[0] + i for s, i in zip(stencils, step, strict=True)) for step in steps]
        try:
            self._make_missing(nodes, spacings)
        except TheoryError as error:
            if self.stop_at_error:
                raise LoggedError(self.log, "%s", error) from None
            if not self._refused:
                self._refused = True
                self.log.warning("such a point has no likelihood: %s. This is said once.", error)
            return False
        weights = [
            np.prod([s[1][i] for s, i in zip(stencils, step, strict=True)]) for step in steps
        ]
        values = np.exp(weights @ np.array([self._table[node] for node in nodes]))
        n_pp, n_ee = self._lengths()
        state["pp"] = amplitude * np.concatenate([[0.0, 0.0], values[:n_pp]])
        state["ee"] = np.concatenate([[0.0, 0.0], values[n_pp : n_pp + n_ee]])
        if want_derived:
            state["derived"] = dict(zip(DERIVED, values[n_pp + n_ee :].tolist(), strict=True))
        return True

    def _choose_table(self, fixed: dict[str, float]) -> None:
        """Nodes hold for the other parameters, and for the multipoles, that they were made for."""
        made_for = (fixed, dict(self._lmax))
        if made_for == self._made_for:
            return
        self._made_for, self._table = made_for, {}
        self._tables += 1
        if self._tables == MAX_TABLES + 1:
            self.log.warning(
                "parameters beside those of 'nodes' vary, and every change of them makes all nodes "
                "anew: use cobaya's own camb, or an emulator. This is said once."
            )

    def _lengths(self) -> tuple[int, int]:
        return max(self._lmax["pp"], 2) - 1, max(self._lmax["ee"], 2) - 1

    def _make_missing(self, nodes: Iterable[tuple[int, ...]], spacings: dict[str, float]) -> None:
        """Fill the table with ln of C_L^φφ, C_l^EE (from l = 2) and the derived parameters.

        What another process is making is left for last, and then waited for.
        """
        files = self._files if self._tables <= MAX_TABLES else None
        for wait in (False, True):
            for node in nodes:
                if node in self._table:
                    continue
                at = {n: i * s for i, (n, s) in zip(node, spacings.items(), strict=True)}
                recipe = self._recipe(at)
                values = files.read(recipe, sum(self._lengths()) + len(DERIVED)) if files else None
                if values is None:
                    with files.alone(recipe, wait) if files else nullcontext(True) as ours:
                        if not ours:
                            continue
                        values = self._make(at, recipe, files)
                self._table[node] = values

    def _make(
        self, at: dict[str, float], recipe: dict[str, Any], files: NodeFiles | None
    ) -> np.ndarray:
        """One node; from its file if another process wrote it while this one waited."""
        if files:
            values = files.read(recipe, sum(self._lengths()) + len(DERIVED))
            if values is not None:
                return values
        start = perf_counter()
        values = self._run_camb(at)
        self.log.info(
            "CAMB at %s: %.1f s, node %d",
            ", ".join(f"{k} = {v:.6g}" for k, v in at.items()) or "the only node",
            perf_counter() - start,
            len(self._table) + 1,
        )
        if files and self._files:
            try:
                files.write(recipe, values)
            except OSError as error:
                self._files = None
                self.log.warning(
                    "nodes are not kept (%s: %s); name a folder with the option 'cache', or set "
                    "cache: false",
                    files.folder,
                    error.strerror or error,
                )
        return values

    def _recipe(self, at: dict[str, float]) -> dict[str, Any]:
        """Everything that fixes a node."""
        import camb

        fixed, lmax = self._made_for
        return {
            "algorithm": ALGORITHM,
            "camb": camb.__version__,
            "lmax": lmax,
            "parameters": fixed | at,
            "extra_args": dict(self.extra_args),
        }

    def _run_camb(self, at: dict[str, float]) -> np.ndarray:
        import camb

        given = {**self._made_for[0], **at, **self.extra_args}
        asked = ", ".join(f"{k} = {v}" for k, v in given.items())
        n_pp, n_ee = self._lengths()
        with camb_refusals(asked):
            try:
                parameters = camb.set_params(lmax=max(self._lmax.values()), **given)
            except camb.CAMBValueError:
                raise
            except (ValueError, TypeError) as error:  # a name or setting that CAMB does not know
                raise LoggedError(
                    self.log, "CAMB cannot be run with %s: %s", asked, error
                ) from None
            results = camb.get_results(parameters)
            clpp = results.get_lens_potential_cls(n_pp + 1, raw_cl=True)[2 : n_pp + 2, 0]
            clee = results.get_unlensed_scalar_cls(n_ee + 1, CMB_unit="muK", raw_cl=True)
            derived = [sigma8(parameters), parameters.omegam]
        values = np.concatenate([clpp, clee[2 : n_ee + 2, 1], derived])
        if not (np.isfinite(values) & (values > 0.0)).all():
            raise TheoryError(f"CAMB's spectra are not positive at {asked}; change the parameters")
        return np.log(values)


class NodeFiles:
    """Nodes on disk, one file each, named by the hash of its recipe.

    Parameters
    ----------
    folder : made when the first node is written
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def path(self, recipe: dict[str, Any]) -> Path:
        """The file of a node.

        Parameters
        ----------
        recipe : what determines the node

        Returns
        -------
        path : in the cache
        """
        return self.folder / f"{hashlib.sha256(_text(recipe).encode()).hexdigest()[:24]}.npz"

    def read(self, recipe: dict[str, Any], size: int) -> np.ndarray | None:
        """Read a node.

        Parameters
        ----------
        recipe : what determines the node
        size : how many values it has

        Returns
        -------
        values : (size,); None if there is no file, or none that is whole
        """
        try:
            with self.path(recipe).open("rb") as opened, np.load(opened) as file:
                if str(file["recipe"]) != _text(recipe):
                    return None
                values = file["values"]
        except Exception:  # missing, or whatever zipfile and NumPy raise for a damaged file
            return None
        whole = values.shape == (size,) and values.dtype == float and np.isfinite(values).all()
        return values if whole else None

    def write(self, recipe: dict[str, Any], values: np.ndarray) -> None:
        """Keep a node; the file appears only when it is whole.

        Parameters
        ----------
        recipe : what determines the node
        values : (size,)
        """
        with atomic_write(self.path(recipe)) as partial:
            np.savez(partial, recipe=np.array(_text(recipe)), values=values)

    @contextmanager
    def alone(self, recipe: dict[str, Any], wait: bool) -> Iterator[bool]:
        """Let one process make a node while the others wait, or go on.

        The lock ends with the process that holds it, even if it is killed. Where a folder cannot be
        locked, every process makes its own nodes.

        Parameters
        ----------
        recipe : what determines the node
        wait : whether to wait for another process

        Yields
        ------
        alone : whether this process is the one to make the node
        """
        path = self.path(recipe).with_suffix(".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError:
            yield True
            return
        with file:
            if fcntl:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield False
                    return
                except OSError:  # a file system without locks
                    pass
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)


def default_cache() -> Path:
    """Folder of the user's cache where nodes are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cobaya_cnnlens" / "nodes"


def _text(recipe: dict[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True, default=str)


def _cubic(position: float, lowest: int | None = None) -> tuple[int, np.ndarray]:
    """First of the four nodes around ``position`` (in units of the spacing) of which none lies
    below ``lowest``, and Lagrange's weights of the cubic through them, (4,)."""
    first = int(np.floor(position)) - 1
    if lowest is not None:
        first = max(first, lowest)
    t = position - first
    weights = np.array(
        [
            -(t - 1.0) * (t - 2.0) * (t - 3.0) / 6.0,
            t * (t - 2.0) * (t - 3.0) / 2.0,
            -t * (t - 1.0) * (t - 3.0) / 2.0,
            t * (t - 1.0) * (t - 2.0) / 6.0,
        ]
    )
    return first, weights
