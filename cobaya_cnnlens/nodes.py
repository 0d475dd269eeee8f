"""CAMB at nodes: a Cobaya theory for one or two slow parameters.

A posterior narrower than the prior by a hundred needs CAMB at a handful of points, not at every
step of a chain. :class:`NodeCAMB` runs CAMB on a regular grid of nodes, each when it is first
needed, and interpolates ln C_l between them by the cubic through the four nearest in each
parameter. With the spacing of ``yaml/omegac.yaml`` C_l differs from CAMB's own by about 1e-4, the
level of CAMB's numerical noise.

In an input file it stands where ``camb`` stands and takes the same ``extra_args``::

    theory:
      camb:
        class: cobaya_cnnlens.NodeCAMB
        nodes: {omch2: 0.002}
        extra_args: {lens_potential_accuracy: 8}

Without the ``class`` and ``nodes`` lines the same file runs CAMB at every step.
"""

from __future__ import annotations

from itertools import product
from time import perf_counter

import numpy as np
from cobaya.log import LoggedError

from .spectra_theory import DERIVED, SpectraTheory
from .theory import sigma8

INPUTS = (
    *("omch2", "ombh2", "omk", "As", "ns", "nrun", "tau", "H0", "cosmomc_theta", "thetastar"),
    *("mnu", "nnu", "YHe", "TCMB", "w", "wa", "Alens"),
)
MAX_NODE_PARAMETERS = 2


class NodeCAMB(SpectraTheory):
    """Provides ``Cl: pp``, ``unlensed_Cl: ee`` and the derived ``sigma8`` and ``omegam``.

    Options
    -------
    nodes : parameter → spacing of its nodes; at most two parameters
    extra_args : passed to ``camb.set_params``, as cobaya's own CAMB does
    """

    nodes: dict = {}  # noqa: RUF012  (Cobaya reads class attributes as the options' defaults)
    extra_args: dict = {}  # noqa: RUF012

    def initialize(self) -> None:
        super().initialize()
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
            if not isinstance(spacing, (int, float)) or not spacing > 0:
                raise LoggedError(
                    self.log, "option 'nodes': the spacing of '%s' must be positive", name
                )
        self._fixed: dict | None = None
        self._table: dict[tuple[int, ...], np.ndarray] = {}

    def get_can_support_params(self):
        return list(INPUTS)

    def calculate(self, state, want_derived=True, **params):
        missing = [name for name in self.nodes if name not in params]
        if missing:
            raise LoggedError(self.log, "option 'nodes': %s is not an input parameter", missing)
        if twice := sorted(set(params) & set(self.extra_args)):
            raise LoggedError(
                self.log, "%s: given both as parameters and in 'extra_args'; remove one", twice
            )
        fixed = {k: v for k, v in params.items() if k not in self.nodes}
        if fixed != self._fixed:
            self._fixed, self._table = fixed, {}
        corners, weights = zip(
            *(_cubic(params[name] / spacing) for name, spacing in self.nodes.items()), strict=True
        )
        interpolated = 0.0
        for steps in product(range(4), repeat=len(corners)):
            node = tuple(corner + step for corner, step in zip(corners, steps, strict=True))
            weight = np.prod([w[step] for w, step in zip(weights, steps, strict=True)])
            interpolated = interpolated + weight * self._logarithms(node)
        values = np.exp(interpolated)
        n_pp, n_ee = self._lengths()
        state["pp"] = np.concatenate([[0.0, 0.0], values[:n_pp]])
        state["ee"] = np.concatenate([[0.0, 0.0], values[n_pp : n_pp + n_ee]])
        if want_derived:
            state["derived"] = dict(zip(DERIVED, values[n_pp + n_ee :].tolist(), strict=True))

    def _lengths(self) -> tuple[int, int]:
        return max(self._lmax["pp"], 2) - 1, max(self._lmax["ee"], 2) - 1

    def _logarithms(self, node: tuple[int, ...]) -> np.ndarray:
        """ln of C_L^φφ, C_l^EE (from l = 2) and the derived parameters at a node."""
        if node not in self._table:
            at = {n: i * s for i, (n, s) in zip(node, self.nodes.items(), strict=True)}
            start = perf_counter()
            self._table[node] = self._run_camb(at)
            self.log.info(
                "CAMB at %s: %.1f s, node %d",
                ", ".join(f"{k} = {v:.6g}" for k, v in at.items()),
                perf_counter() - start,
                len(self._table),
            )
        return self._table[node]

    def _run_camb(self, at: dict[str, float]) -> np.ndarray:
        import camb

        parameters = camb.set_params(
            lmax=max(self._lmax.values()), **self._fixed, **at, **self.extra_args
        )
        results = camb.get_results(parameters)
        n_pp, n_ee = self._lengths()
        clpp = results.get_lens_potential_cls(n_pp + 1, raw_cl=True)[2 : n_pp + 2, 0]
        clee = results.get_unlensed_scalar_cls(n_ee + 1, CMB_unit="muK", raw_cl=True)
        derived = [sigma8(parameters), parameters.omegam]
        return np.log(np.concatenate([clpp, clee[2 : n_ee + 2, 1], derived]))


def _cubic(position: float) -> tuple[int, np.ndarray]:
    """First of the four nodes around ``position`` (in units of the spacing), and their weights."""
    cell = int(np.floor(position))
    t = position - cell
    weights = np.array(
        [
            -t * (t - 1.0) * (t - 2.0) / 6.0,
            (t + 1.0) * (t - 1.0) * (t - 2.0) / 2.0,
            -(t + 1.0) * t * (t - 2.0) / 2.0,
            (t + 1.0) * t * (t - 1.0) / 6.0,
        ]
    )
    return cell - 1, weights
