"""The Cobaya likelihood; all of its mathematics is in :mod:`cobaya_cnnlens.model`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cobaya.likelihood import Likelihood
from cobaya.log import LoggedError

from .errors import CNNLensError
from .model import BandpowerLikelihood
from .release import NUISANCES, Release, read_release
from .selfcheck import theory_offset

# Beyond this many times the excursion at which the noise debias was measured a warning is due.
EXCURSION = 1.25
# Offset of the theory at the fiducial, in σ of the survey, beyond which a warning is due.
THEORY_TOLERANCE = 0.1
NUISANCE_PARAMETERS = tuple(f"cnnlens_{name}" for name in NUISANCES)


class CNNLens(Likelihood):
    """CMB-lensing bandpowers measured by a ResUNet on polarisation maps.

    Needs C_L^φφ and unlensed C_l^EE from the theory. Options are in ``CNNLens.yaml``.

    Attributes
    ----------
    release_data : the :class:`~cobaya_cnnlens.release.Release` in use
    likelihood : the :class:`~cobaya_cnnlens.model.BandpowerLikelihood` that does the work
    bandpowers : d_b, (n_bins,)
    """

    release: str
    noise_debias: str
    statistics: str
    L_min: float | None
    L_max: float | None
    calibration_errors: bool
    check_theory: bool

    def initialize(self) -> None:
        try:
            self.release_data: Release = read_release(self.release)
            self._likelihood = BandpowerLikelihood(
                self.release_data,
                self.noise_debias,
                self.statistics,
                self.L_min,
                self.L_max,
                self.calibration_errors,
            )
        except CNNLensError as error:
            raise LoggedError(self.log, "%s", error) from None
        self._left_the_range = False
        L = np.arange(self._likelihood.lmax_kk + 1, dtype=float)
        self._kappa_factor = 0.25 * (L * (L + 1.0)) ** 2
        self.log.info(
            "%s: %d bandpowers of %d patches, noise debias %s",
            self.release_data.name,
            len(self.bandpowers),
            self.release_data.n_patches,
            self.noise_debias,
        )

    @property
    def likelihood(self) -> BandpowerLikelihood:
        return self._likelihood

    @property
    def bandpowers(self) -> np.ndarray:
        return self._likelihood.bandpowers

    def initialize_with_provider(self, provider) -> None:
        super().initialize_with_provider(provider)
        if self.check_theory and "cosmology" in self.release_data.theory:
            self._check_theory(provider.model.info().get("theory") or {})

    def _check_theory(self, theories: dict) -> None:
        try:
            offset = theory_offset(theories, self._likelihood)
        except Exception as error:  # whatever a foreign theory code may raise
            self.log.warning(
                "the theory could not be run at the release's fiducial cosmology to check it "
                "(%s: %.200s); set check_theory: false to leave this out",
                type(error).__name__,
                error,
            )
            return
        if offset.sigmas < THEORY_TOLERANCE:
            self.log.info(
                "the theory reproduces the release's fiducial bandpowers to %.3f sigma",
                offset.sigmas,
            )
            return
        edges = self.release_data.edges
        mend = "Its known settings are the release's; look at its version, neutrinos and l_max."
        if offset.settings:
            mend = f"Set as in the release what differs: {'; '.join(offset.settings)}."
        self.log.warning(
            "at the release's fiducial cosmology the theory's bandpowers are off by %.2f sigma "
            "(the largest bias of a parameter), most in L = %d-%d, by %+.2f%%. %s",
            offset.sigmas,
            edges[offset.worst_bin],
            edges[offset.worst_bin + 1],
            100 * offset.worst_change,
            mend,
        )

    def get_requirements(self) -> dict:
        return {
            "Cl": {"pp": self._likelihood.lmax_kk},
            "unlensed_Cl": {"ee": self._likelihood.lmax_ee},
        }

    def logp(self, _derived: dict | None = None, **params) -> float:
        spectra = self.theory_spectra()
        nuisances = [params[name] for name in NUISANCE_PARAMETERS]
        chi2 = self._likelihood.chi2(*spectra, nuisances)
        if not self._left_the_range and self.noise_debias != "fixed":
            self._warn_of_excursion(*self._likelihood.excursion(*spectra))
        if _derived is not None:
            _derived["cnnlens_chi2"] = chi2
            _derived["cnnlens_pte"] = self._likelihood.pte(chi2)
        return self._likelihood.log_likelihood_of(chi2)

    def _warn_of_excursion(self, t: float, rest: float) -> None:
        step = self.release_data.derivative_step
        if abs(t) <= EXCURSION and rest <= EXCURSION * step:
            return
        self._left_the_range = True
        self.log.warning(
            "a sampled cosmology leaves the range in which the noise debias was measured: "
            "%.2f times the measured change along omch2 (1 is %s of it), and beyond that a band's "
            "power changes by %.0f%% (measured to %.0f%%). Posteriors that reach so far rest on an "
            "extrapolation; make a release at a nearer fiducial. This is said once.",
            t,
            self.release_data.provenance.get("derivative_excursion_omch2", "one step"),
            100 * rest,
            100 * step,
        )

    def log_likelihood(
        self, clkk: np.ndarray, clee: np.ndarray, nuisances: Sequence[float] | None = None
    ) -> float:
        """ln L of C_L^κκ and unlensed C_l^EE (µK²), both from l = 0; needs no theory code."""
        return self._likelihood.log_likelihood(clkk, clee, nuisances)

    def theory_spectra(self) -> tuple[np.ndarray, np.ndarray]:
        """C_L^κκ and unlensed C_l^EE (µK²) of the point being sampled."""
        clpp = self.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
        clee = self.provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"]
        n = len(self._kappa_factor)
        if len(clpp) < n:
            raise LoggedError(
                self.log,
                "the theory's C_L^pp ends at L = %d; it must reach %d",
                len(clpp) - 1,
                n - 1,
            )
        if len(clee) <= self._likelihood.lmax_ee:
            raise LoggedError(
                self.log,
                "the theory's unlensed C_l^ee ends at l = %d; it must reach %d",
                len(clee) - 1,
                self._likelihood.lmax_ee,
            )
        return self._kappa_factor * clpp[:n], clee

    def model(self, nuisances: Sequence[float] | None = None) -> np.ndarray:
        """µ_b of the spectra of the point being sampled, (n_bins,)."""
        return self._likelihood.model(*self.theory_spectra(), nuisances)

    def residuals(self, nuisances: Sequence[float] | None = None) -> np.ndarray:
        """d_b − µ_b of the spectra of the point being sampled, (n_bins,)."""
        return self._likelihood.residuals(*self.theory_spectra(), nuisances)
