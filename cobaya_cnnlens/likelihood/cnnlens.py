"""The Cobaya likelihood.

All of its mathematics is in :mod:`cobaya_cnnlens.likelihood.bandpowers`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from cobaya.likelihood import Likelihood
from cobaya.log import LoggedError, get_logger

from ..errors import CNNLensError, SpectrumError
from ..theory.cobaya import VersionedByDigest
from .bandpowers import BandpowerLikelihood
from .blinding import version_of
from .combined import combine
from .declarations import BLINDED
from .fields import NUISANCES, ROTATION
from .release import Release, read_release
from .selfcheck import requirements, theory_offset
from .statistics import POOR_FIT

# Points count as beyond the range of the noise debias at this many times the excursion at which it
# was measured, and as carrying the posterior within this of the lowest χ² seen. A warning is due
# when of so many such points more than this fraction is beyond: 1% is in lensing-only ΛCDM of a
# survey at the fiducial and 5% of one at omch2 + .01, where a noise debias that does not go on
# beyond its range moves no parameter by more than .07 and .22 σ.
EXCURSION, NEAR, WATCHED, TOLERATED = 1.25, 4.0, 300, 0.2
# Offset of the theory at the fiducial, in σ of the survey, beyond which a warning is due.
THEORY_TOLERANCE = 0.1
# The instrument of the data: off by the nuisances, under their priors, or the simulated one.
INSTRUMENTS = ("uncertain", "known")


def parameter(name: str, suffix: str = "") -> str:
    """A parameter of the likelihood as inputs and chains name it.

    Parameters
    ----------
    name : of a nuisance, "chi2" or "pte"
    suffix : option of the likelihood

    Returns
    -------
    the name in inputs and chains

    Examples
    --------
    >>> parameter("gain", "_north")
    'cnnlens_gain_north'
    """
    return f"cnnlens_{name}{suffix}"


class CNNLens(VersionedByDigest, Likelihood):
    """CMB-lensing bandpowers measured by a ResUNet on polarisation maps.

    Needs C_L^φφ from the theory, and unlensed C_l^EE where its options make it look at that.
    Options are in ``CNNLens.yaml``. Its version, as Cobaya keeps it beside a chain, is the digest
    of the release: a chain is not resumed with other data.

    Attributes
    ----------
    release_data : the :class:`~cobaya_cnnlens.likelihood.release.Release` in use
    likelihood : the :class:`~.bandpowers.BandpowerLikelihood` that does the work
    bandpowers : d_b, (n_bins,)
    nuisance_parameters : names of the instrument's nuisances, in the order of the release's
    chi2_parameter : name of the derived χ²
    """

    release: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    instrument: str
    noise_debias: str
    statistics: str
    L_min: float | None
    L_max: float | None
    calibration_errors: bool
    primary: bool
    check_theory: bool
    suffix: str
    _file_option = "release"

    @classmethod
    def get_modified_defaults(
        cls, defaults: dict[str, Any], input_options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The parameters carry the suffix; those of a known instrument are fixed at zero.

        Cobaya puts ``params`` of the block in the place of all of these, the derived χ² included.
        They are completed here, in the block itself.

        Parameters
        ----------
        defaults : content of ``CNNLens.yaml``
        input_options : the likelihood's block of the input

        Returns
        -------
        ``defaults`` with other ``params``
        """
        defaults = super().get_modified_defaults(defaults, input_options)
        options = input_options or {}
        suffix, known = options.get("suffix") or "", options.get("instrument") == "known"
        named = {}
        for name, content in defaults["params"].items():
            fixed = known and not content.get("derived")
            named[f"{name}{suffix}"] = {
                **({"value": 0} if fixed else content),
                "latex": content["latex"] + _label_of(suffix),
            }
        if isinstance(options, dict) and "params" in options:
            if isinstance(options["params"], Mapping):
                _refuse_rotation(options["params"], suffix)
            _check_parameters(options["params"], list(named))
            options["params"] = named = named | dict(options["params"] or {})
        return {**defaults, "params": named}

    def initialize(self) -> None:
        """Read the release and check the options."""
        self._check_options()
        try:
            given: Any = self.release
            names = given if isinstance(given, list | tuple) else [given]
            releases = [read_release(name) for name in names]
            self.release_data: Release = combine(releases)
            self._likelihood = self.likelihood_of(self.release_data)
        except CNNLensError as error:
            raise LoggedError(self.log, "%s", error) from None
        self._surveys = {release.bandpowers.tobytes() for release in releases}
        self._version = version_of(self.release_data)
        self.refuse_other_version(f"release '{', '.join(map(str, names))}'")
        self.nuisance_parameters = tuple(parameter(name, self.suffix) for name in NUISANCES)
        self.chi2_parameter = parameter("chi2", self.suffix)
        self._watch = Watch()
        self._computed = self._refused = self._doubted = False
        # A chain's tails may be anywhere; :class:`Watch` tells where its posterior is.
        self._likelihood.doubt_said = True
        L = np.arange(self._likelihood.lmax_kk + 1, dtype=float)
        self._kappa_factor = 0.25 * (L * (L + 1.0)) ** 2
        self.log.info(
            "%s: %d bandpowers of %d patches, noise debias %s",
            self.release_data.name,
            len(self._likelihood.bins),
            self.release_data.n_patches,
            self._likelihood.noise_debias + (", with their E and B" if self.primary else ""),
        )
        if self.release_data.blinding:
            self.log.info("%s: %s", self.release_data.name, BLINDED)
        for warning in self.release_data.warnings:
            self.log.warning("%s: %s", self.release_data.name, warning)

    def _check_options(self) -> None:
        """What YAML reads as another type, as the text "false" for false, is told."""
        kinds = {
            "release": (str | os.PathLike | list | tuple, "a name or path, or a list of them"),
            "instrument": (str, "a word"),
            "noise_debias": (str, "a word"),
            "statistics": (str, "a word"),
            "L_min": (Real | None, "a number, or null for no limit"),
            "L_max": (Real | None, "a number, or null for no limit"),
            "calibration_errors": (bool, "true or false"),
            "primary": (bool, "true or false"),
            "check_theory": (bool, "true or false"),
            "suffix": (str, "a text, e.g. _north"),
        }
        for name, (kind, wanted) in kinds.items():
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not isinstance(value, kind) or (
                kind is not bool
                and (isinstance(value, bool) or (number and np.isnan(float(value))))
            ):
                raise LoggedError(self.log, "option '%s' is %r; give %s", name, value, wanted)
        if self.instrument not in INSTRUMENTS:
            raise LoggedError(
                self.log,
                "option 'instrument' is '%s'; choose one of %s",
                self.instrument,
                INSTRUMENTS,
            )

    def likelihood_of(self, release: Release) -> BandpowerLikelihood:
        """The likelihood of any release with the options of this component.

        Parameters
        ----------
        release : its own, or a mock with its calibration

        Returns
        -------
        the likelihood
        """
        return BandpowerLikelihood(
            release,
            self.noise_debias,
            self.statistics,
            self.L_min,
            self.L_max,
            self.calibration_errors,
            self.primary,
        )

    def get_version(self) -> str:
        """The digest of the release, and whether that is blinded."""
        return self._version

    @property
    def likelihood(self) -> BandpowerLikelihood:
        """What does the work, without Cobaya."""
        return self._likelihood

    @property
    def bandpowers(self) -> np.ndarray:
        """d_b of the bins in use, (n_bins,)."""
        return self._likelihood.bandpowers

    def get_can_support_params(self) -> list[str]:
        """The parameter of earlier versions that :meth:`initialize_with_params` refuses."""
        return [parameter(ROTATION, self.suffix)]

    def initialize_with_params(self) -> None:
        """Refuse an input that samples or fixes the rotation of the polarisation."""
        super().initialize_with_params()
        _refuse_rotation(self.input_params, self.suffix)

    def initialize_with_provider(self, provider: Any) -> None:
        """Check the theory that Cobaya has found, if that is asked for.

        Parameters
        ----------
        provider : Cobaya's
        """
        super().initialize_with_provider(provider)
        self._refuse_data_given_twice(provider.model.likelihood)
        self._refuse_other_blinding(provider.model.likelihood)
        if self.check_theory and "cosmology" in self.release_data.theory:
            self._check_theory(provider.model.info().get("theory") or {})

    def _refuse_data_given_twice(self, likelihoods: Mapping[str, Any]) -> None:
        """Two blocks may share a survey only if they use different bins of it."""
        for name, other in likelihoods.items():
            if (
                other is not self
                and isinstance(other, CNNLens)
                and self._surveys & other._surveys
                and np.intersect1d(self._likelihood.bins, other._likelihood.bins).size
            ):
                raise LoggedError(
                    self.log,
                    "the likelihood '%s' holds the same bandpowers of the same survey, which would "
                    "count twice; give each survey once",
                    name,
                )

    def _refuse_other_blinding(self, likelihoods: Mapping[str, Any]) -> None:
        """Releases with different offsets, or none, would fit no cosmology together."""
        own = self.release_data.blinding
        for name, other in likelihoods.items():
            if isinstance(other, CNNLens) and (theirs := other.release_data.blinding) != own:
                if own and theirs and own.key == theirs.key:
                    continue
                raise LoggedError(
                    self.log,
                    "release '%s' and release '%s' of the likelihood '%s' are not blinded with one "
                    "key: their bandpowers have different offsets; blind both with one, or unblind "
                    "both",
                    self.release_data.name,
                    other.release_data.name,
                    name,
                )

    def _check_theory(self, theories: dict[str, Any]) -> None:
        try:
            offset = theory_offset(theories, self._likelihood)
        except Exception as error:  # whatever a foreign theory code may raise
            self.log.warning(
                "the theory gives no spectra at the release's fiducial cosmology, by which it is "
                "checked: %s: %.500s. Mend the theory's block; or, if that cosmology is not one of "
                "the model that you sample, set check_theory: false",
                type(error).__name__,
                " ".join(str(error).split()),
            )
            return
        if offset.sigmas < THEORY_TOLERANCE:
            self.log.info(
                "the theory reproduces the release's fiducial bandpowers to %.3f sigma",
                offset.sigmas,
            )
            return
        self.log.warning("%s", offset.describe(self.release_data.edges))

    def get_requirements(self) -> dict[str, dict[str, int]]:
        """C_L^φφ, and unlensed C_l^EE if it plays a part, as far up as the release needs them; and
        C_l^TT, without which CLASS makes no C_L^φφ."""
        return requirements(self._likelihood)

    def logp(self, _derived: dict[str, float] | None = None, **params: float) -> float:
        """ln L of the point that Cobaya samples; the derived χ² and PTE.

        Parameters
        ----------
        _derived : is filled with χ² and PTE, unless it is None
        **params : the nuisances by name

        Returns
        -------
        ln L
        """
        spectra = self.theory_spectra()
        nuisances = [params[name] for name in self.nuisance_parameters]
        try:
            chi2 = self._likelihood.chi2(*spectra, nuisances)
        except SpectrumError as error:
            self._refuse(error)
            raise
        if not self._computed and (factor := self._likelihood.factor(*spectra, nuisances)):
            self.log.warning("at the first point %s", factor)
        self._computed = True
        if self._watch.near(chi2):
            self._count(spectra[0])
        if _derived is not None:
            _derived[self.chi2_parameter] = chi2
            _derived[parameter("pte", self.suffix)] = self._likelihood.pte(chi2)
        return self._likelihood.log_likelihood_of(chi2)

    def _refuse(self, error: SpectrumError) -> None:
        """Stop at spectra that cannot be used, if they are the first: their form is wrong at every
        point. Once some could be used, Cobaya gives such a point no likelihood; it is said once."""
        if self.stop_at_error or not self._computed:
            raise LoggedError(self.log, "%s", error) from None
        if not self._refused:
            self._refused = True
            self.log.warning("such a point has no likelihood: %s. This is said once.", error)

    def _count(self, clkk: np.ndarray) -> None:
        """Count a point that carries the posterior; warn of a poor fit, and of a noise debias
        beyond its range."""
        u, band_change, step = 0.0, 0.0, self.release_data.derivative_step
        if self.noise_debias != "fixed" and not self._watch.over:
            u, band_change = self._likelihood.model.excursion(clkk)
        fraction = self._watch.count(abs(u) > EXCURSION or band_change > EXCURSION * step)
        if fraction is None:
            return
        self._warn_of_fit(self._watch.lowest)
        if fraction <= TOLERATED:
            return
        self._watch.over = True
        self.log.warning(
            "the posterior lies where the noise bias was not measured: %.0f%% of the points "
            "within %g of the lowest chi^2 (the last: %.2f times the largest measured change of "
            "C_L^kappakappa; beyond that a band's power changes by %.0f%%, measured to %.0f%%). "
            "Run it with noise_debias: fixed too: what moves between them rests on an "
            "extrapolation. If that matters, add data or priors that hold the cosmology nearer to "
            "the release's, or calibrate a release at the best fit ('cosmology' in its "
            "configuration). This is said once.",
            100 * fraction,
            NEAR,
            u,
            100 * band_change,
            100 * step,
        )

    def _warn_of_fit(self, chi2: float) -> None:
        """Say once that the lowest χ² so far is no fit."""
        pte = self._likelihood.pte(chi2)
        if pte >= POOR_FIT or self._watch.poor:
            return
        self._watch.poor = True
        self.log.warning(
            "the data do not fit: the lowest chi^2 so far is %.0f for %d bandpowers (PTE %.1g). "
            "Look at the maps and their calibration (`cnnlens release show`), the theory and the "
            "priors before you use the posterior. This is said once.",
            chi2,
            len(self._likelihood.bandpowers),
            pte,
        )

    def log_likelihood(
        self,
        clkk: np.ndarray,
        clee: np.ndarray | None = None,
        nuisances: Sequence[float] | None = None,
    ) -> float:
        """ln L of two spectra, without a theory code. It warns of a power that is doubtful.

        Parameters
        ----------
        clkk, clee, nuisances : as of :meth:`.BandpowerLikelihood.model`

        Returns
        -------
        ln L
        """
        if not self._doubted and (doubt := self._likelihood.doubt(clkk, clee, nuisances)):
            self._doubted = True
            self.log.warning("%s. This is said once.", doubt)
        return self._likelihood.log_likelihood(clkk, clee, nuisances)

    def theory_spectra(self) -> tuple[np.ndarray, np.ndarray | None]:
        """C_L^κκ and unlensed C_l^EE (µK²), None where it plays no part, of the point being
        sampled."""
        clpp = self.provider.get_Cl(ell_factor=False, units="muK2")["pp"]
        n = len(self._kappa_factor)
        if len(clpp) < n:
            raise LoggedError(
                self.log,
                "the theory's C_L^pp ends at L = %d; it must reach %d",
                len(clpp) - 1,
                n - 1,
            )
        clkk = self._kappa_factor * clpp[:n]
        if not self._likelihood.needs_ee:
            return clkk, None
        clee = self.provider.get_unlensed_Cl(ell_factor=False, units="muK2")["ee"]
        if len(clee) <= self._likelihood.lmax_ee:
            raise LoggedError(
                self.log,
                "the theory's unlensed C_l^ee ends at l = %d; it must reach %d",
                len(clee) - 1,
                self._likelihood.lmax_ee,
            )
        return clkk, clee

    def model(self, nuisances: Sequence[float] | None = None) -> np.ndarray:
        """µ_b of the spectra of the point being sampled, (n_bins,), as ``bandpowers``.

        Parameters
        ----------
        nuisances : x in the order of ``NUISANCES``; None for zero

        Returns
        -------
        (n_bins,)
        """
        return self._likelihood.model(*self.theory_spectra(), nuisances)

    def residuals(self, nuisances: Sequence[float] | None = None) -> np.ndarray:
        """d_b − µ_b of the spectra of the point being sampled, (n_bins,).

        Parameters
        ----------
        nuisances : x in the order of ``NUISANCES``; None for zero

        Returns
        -------
        (n_bins,)
        """
        return self._likelihood.residuals(*self.theory_spectra(), nuisances)


def _label_of(suffix: Any) -> str:
    """What follows the label of a parameter in LaTeX, by which surveys differ."""
    name = str(suffix).strip("_").replace("_", r"\_")
    return rf"\ (\mathrm{{{name}}})" if name else ""


def _refuse_rotation(given: Iterable[Any], suffix: str) -> None:
    """Refuse the rotation of the polarisation among the parameters of an input."""
    if (name := parameter(ROTATION, suffix)) in given:
        raise LoggedError(
            get_logger("cnnlens"),
            "'%s' is no parameter any more: the rotation of the polarisation is measured from the "
            "survey's own EB spectrum, and noise_debias: data corrects for it; take it out of the "
            "input.",
            name,
        )


def _check_parameters(given: Any, known: Sequence[str]) -> None:
    """Refuse parameters of a block that the likelihood lacks; Cobaya would sample them in vain."""
    if not isinstance(given, Mapping | None):
        problem = f"is {given!r:.60}; give a mapping"
    elif unknown := ", ".join(str(name) for name in given or () if name not in known):
        problem = f"has {unknown}, unknown to the likelihood"
    else:
        return
    raise LoggedError(
        get_logger("cnnlens"),
        "option 'params' %s. Its parameters are %s; others go among the 'params' of the input.",
        problem,
        ", ".join(known),
    )


class Watch:
    """Which part of the points that carry the posterior lies beyond a range, and how well they fit.

    Attributes
    ----------
    lowest : the lowest χ² seen, to one
    over, poor : whether points beyond, or a poor fit, have been told

    Single points say little: the tails of a wide posterior leave any range, and burn-in begins
    anywhere. Counted is what lies near the lowest χ² seen, anew when a much lower one is found.
    """

    def __init__(self) -> None:
        self.over = self.poor = False
        self.lowest = np.inf
        self._seen = self._beyond = 0

    def near(self, chi2: float) -> bool:
        """Whether a point of this χ² counts.

        Parameters
        ----------
        chi2 : of the point

        Returns
        -------
        True if it lies near the lowest
        """
        if chi2 < self.lowest - 1.0:
            self.lowest, self._seen, self._beyond = chi2, 0, 0
        return chi2 < self.lowest + NEAR

    def count(self, beyond: bool) -> float | None:
        """Count a point; the fraction beyond of every ``WATCHED``, and None until then.

        Parameters
        ----------
        beyond : whether the point lies beyond the range

        Returns
        -------
        fraction beyond, or None
        """
        self._seen += 1
        self._beyond += beyond
        if self._seen < WATCHED:
            return None
        fraction = self._beyond / self._seen
        self._seen = self._beyond = 0
        return fraction
