"""What is left of the lensed B power after delensing by κ̂."""

from __future__ import annotations

import numpy as np

from ..pipeline.run import Run
from ..reconstruct.n0 import delensed_part
from .noise import NoiseTable


def b_power_left(run: Run, table: NoiseTable, ell: np.ndarray) -> np.ndarray:
    """C_l^BB after delensing over C_l^BB, at ``ell``, by κ̂ of the correlation ρ_L of a table, which
    is taken as 0 where no bin measures it."""
    theory = run.spectra()
    rho = np.interp(np.arange(len(theory.pp)), table.L, table.correlation)
    rho[: run.config.bandpowers.lmin] = 0.0
    rho[int(table.L[-1]) :] = 0.0
    return delensed_part(ell, theory, rho)
