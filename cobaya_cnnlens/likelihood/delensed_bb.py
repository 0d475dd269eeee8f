"""The Cobaya likelihood of r from B modes and their lensing template.

All of its mathematics is in :mod:`cobaya_cnnlens.likelihood.bmodes`.
"""

from __future__ import annotations

import os

from cobaya.likelihood import Likelihood
from cobaya.log import LoggedError

from ..errors import CNNLensError
from ..theory.cobaya import VersionedByDigest
from .bmodes import BBLikelihood, digest_of, read_bb
from .statistics import POOR_FIT


class DelensedBB(VersionedByDigest, Likelihood):
    """B-mode bandpowers of a survey, with a template of their lensing part.

    It samples r and A_L, and needs no theory code: the shape of each spectrum is in the data file.
    Options are in ``DelensedBB.yaml``. Its version, as Cobaya keeps it beside a chain, is the
    digest of the data: a chain is not resumed with other data.

    Attributes
    ----------
    likelihood : the :class:`~.bmodes.BBLikelihood` that does the work
    """

    data: str | os.PathLike[str]
    template: bool
    _file_option = "data"

    def initialize(self) -> None:
        """Read the data."""
        if not isinstance(self.template, bool):
            raise LoggedError(
                self.log, "option 'template' is %r; give true or false", self.template
            )
        try:
            data = read_bb(str(self.data))
            self.likelihood = BBLikelihood(data, self.template)
        except CNNLensError as error:
            raise LoggedError(self.log, "%s", error) from None
        if (pte := self.likelihood.best_pte()) < POOR_FIT:
            self.log.warning(
                "%s: no r and A_L fit the bandpowers (PTE %.1e at best). Check the unit of all "
                "spectra, µK², and the order of the covariance, BB, Bt, tt bin by bin",
                data.name,
                pte,
            )
        self._digest = digest_of(data)
        self.refuse_other_version(f"BB data '{self.data}'")
        used = "with" if self.template else "without"
        self.log.info("%s: %d bins, %s the template", data.name, data.n_bins, used)

    def get_version(self) -> str:
        """The digest of the data."""
        return self._digest

    def logp(self, _derived: dict[str, float] | None = None, **params: float) -> float:
        """ln L of the point that Cobaya samples.

        Parameters
        ----------
        _derived : is filled with χ², unless it is None
        **params : r and Alens

        Returns
        -------
        ln L
        """
        point = params["r"], params["Alens"]
        if _derived is not None:
            _derived["bb_chi2"] = self.likelihood.chi2(*point)
        return self.likelihood.log_likelihood(*point)
