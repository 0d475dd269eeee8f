"""DESI DR2's BAO as a Cobaya likelihood that needs no installed data.

It is Cobaya's own ``bao.generic``: a Gaussian in D_M/r_d, D_H/r_d and D_V/r_d. The 13 values and
their covariance come with this package, so that an input needs neither a path nor a download::

    likelihood:
      cobaya_cnnlens.DESIDR2BAO:

Its χ² is that of ``bao.desi_dr2.desi_bao_all``, which ``cobaya-install`` provides.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from cobaya.likelihoods.bao.generic import generic


class DESIDR2BAO(generic):
    """All tracers of DESI DR2 (Abdul Karim et al. 2025, arXiv:2503.14738, Table IV)."""

    # Cobaya would ask for an installation of its own data otherwise.
    install_options: dict[str, Any] = {}  # noqa: RUF012
    measurements_file: str = "desi_dr2_bao_mean.txt"
    cov_file: str = "desi_dr2_bao_cov.txt"
    invcov_file: str | None = None
    rs_fid: float = 1.0
    aliases: list[str] = ["BAO"]  # noqa: RUF012

    def initialize(self) -> None:
        """Read the values beside this module."""
        self.path = str(files("cobaya_cnnlens.likelihood") / "data")
        super().initialize()
