"""Theory spectra from CAMB: the one place where cosmology becomes C_l.

Every spectrum is raw (no l(l+1) factor), filled from l = 0. Polarisation is in
µK², the convergence is dimensionless with C_L^κκ = [L(L+1)]²/4 C_L^φφ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import TheoryError


@dataclass(frozen=True)
class Cosmology:
    """Flat ΛCDM, one massive neutrino; the defaults are the fiducial of Caldeira et al., §5."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    ombh2: float = 0.0222
    omch2: float = 0.1185
    As: float = 2.21e-9
    ns: float = 0.9624
    tau: float = 0.0943
    H0: float = 67.94
    mnu: float = 0.06

    def vary(self, **changes: float) -> Cosmology:
        """The same cosmology with some parameters changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class CambSettings:
    """CAMB's numerical settings, recorded in every product made from its spectra.

    ``lens_potential_accuracy`` 8 holds C_L^κκ to 0.1% up to L = 3000; 1 (a common
    choice) is 14% low there.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lmax: int = 5000
    lens_potential_accuracy: float = 8.0
    halofit_version: str = "mead2020"


@dataclass(frozen=True)
class Spectra:
    """Spectra of one cosmology, each an array of shape (lmax + 1,) from l = 0.

    Attributes
    ----------
    ee : unlensed C_l^EE in µK²
    kk : C_L^κκ
    lensed_ee, lensed_bb : lensed C_l in µK²; zero above the reach of CAMB's lensing
    """

    ee: np.ndarray
    kk: np.ndarray
    lensed_ee: np.ndarray
    lensed_bb: np.ndarray

    @property
    def lmax(self) -> int:
        """The last multipole."""
        return len(self.ee) - 1

    @property
    def pp(self) -> np.ndarray:
        """C_L^φφ, shape (lmax + 1,)."""
        return potential_from_convergence(self.kk)


def potential_from_convergence(clkk: np.ndarray) -> np.ndarray:
    """C_L^φφ = 4 C_L^κκ / [L(L+1)]².

    Parameters
    ----------
    clkk : from L = 0

    Returns
    -------
    clpp : same shape, zero at L = 0
    """
    L = np.arange(len(clkk), dtype=float)
    clpp = np.zeros_like(clkk, dtype=float)
    clpp[1:] = 4.0 * clkk[1:] / (L[1:] * (L[1:] + 1.0)) ** 2
    return clpp


def convergence_from_potential(clpp: np.ndarray) -> np.ndarray:
    """C_L^κκ = [L(L+1)]² C_L^φφ / 4.

    Parameters
    ----------
    clpp : from L = 0

    Returns
    -------
    clkk : same shape
    """
    L = np.arange(len(clpp), dtype=float)
    return 0.25 * (L * (L + 1.0)) ** 2 * clpp


@contextmanager
def camb_refusals(asked: object) -> Iterator[None]:
    """Turn the exceptions of CAMB inside the context into one line.

    Parameters
    ----------
    asked : what CAMB is asked for, as the line names it

    Yields
    ------
    None : once

    Raises
    ------
    TheoryError
        for values that CAMB refuses, or cannot compute
    """
    import camb

    refusals = (camb.CAMBError, camb.CAMBFortranError, ValueError, TypeError)
    try:
        yield
    except refusals as error:
        said = " ".join(str(error).split())
        raise TheoryError(f"CAMB refuses {asked}: {said}; change the parameters") from None


def background_parameters(cosmology: Cosmology, angle: Mapping[str, float] | None = None) -> Any:
    """Parameters of the background of a cosmology, for CAMB.

    Parameters
    ----------
    cosmology : amplitude and tilt have no effect
    angle : ``cosmomc_theta`` or ``thetastar`` with its value, from which CAMB finds H0 instead of
        taking the cosmology's

    Returns
    -------
    parameters : ``camb.CAMBparams``
    """
    import camb

    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        **(angle or {"H0": cosmology.H0}),
        ombh2=cosmology.ombh2,
        omch2=cosmology.omch2,
        mnu=cosmology.mnu,
        tau=cosmology.tau,
        omk=0.0,
    )
    return parameters


def expansion(cosmology: Cosmology) -> Any:
    """H(z) and distances of a cosmology, without recombination; takes 1 ms.

    Parameters
    ----------
    cosmology : amplitude and tilt have no effect

    Returns
    -------
    background : ``camb.CAMBdata``
    """
    import camb

    return camb.get_background(background_parameters(cosmology), no_thermo=True)


def hubble_constant(cosmology: Cosmology, angle: Mapping[str, float]) -> float:
    """H0 that an acoustic scale implies; takes 10 ms.

    Parameters
    ----------
    cosmology : its own H0 has no effect
    angle : ``cosmomc_theta``, the approximate r_s/D_A of CosmoMC; or ``thetastar``, at z*

    Returns
    -------
    H0 : in km/s/Mpc

    Raises
    ------
    TheoryError
        if CAMB finds none between 10 and 100 km/s/Mpc, or refuses the other parameters
    """
    asked = " and ".join(f"{name} = {value:.6g}" for name, value in angle.items())
    with camb_refusals(f"{asked} for {cosmology}"):
        return float(background_parameters(cosmology, angle).H0)


def camb_parameters(
    cosmology: Cosmology, settings: CambSettings, nonlinear: Mapping[str, Any] | None = None
) -> Any:
    """Parameters of CAMB for :func:`compute_spectra`.

    Parameters
    ----------
    cosmology : whose spectra are wanted
    settings : accuracy and ranges
    nonlinear : parameters of the non-linear matter power by CAMB's names, such as
        ``HMCode_logT_AGN``; also another ``halofit_version`` than that of the settings

    Returns
    -------
    parameters : ``camb.CAMBparams``
    """
    parameters = background_parameters(cosmology)
    parameters.InitPower.set_params(As=cosmology.As, ns=cosmology.ns)
    parameters.set_for_lmax(settings.lmax, lens_potential_accuracy=settings.lens_potential_accuracy)
    model = {"halofit_version": settings.halofit_version, **(nonlinear or {})}
    parameters.NonLinearModel.set_params(**model)
    return parameters


def compute_spectra(
    cosmology: Cosmology | None = None, settings: CambSettings | None = None
) -> Spectra:
    """Run CAMB once.

    Parameters
    ----------
    cosmology : defaults to the fiducial
    settings : CAMB's numerical settings

    Returns
    -------
    Spectra to ``settings.lmax``

    Raises
    ------
    TheoryError
        if CAMB refuses the parameters
    """
    import camb

    cosmology, settings = cosmology or Cosmology(), settings or CambSettings()
    lmax = settings.lmax
    with camb_refusals(cosmology):
        results = camb.get_results(camb_parameters(cosmology, settings))
        unlensed = results.get_unlensed_scalar_cls(lmax, CMB_unit="muK", raw_cl=True)
        lensed = results.get_lensed_scalar_cls(lmax, CMB_unit="muK", raw_cl=True)
        clpp = results.get_lens_potential_cls(lmax, raw_cl=True)[:, 0]
    return Spectra(
        ee=np.ascontiguousarray(unlensed[:, 1]),
        kk=convergence_from_potential(clpp),
        lensed_ee=np.ascontiguousarray(lensed[:, 1]),
        lensed_bb=np.ascontiguousarray(lensed[:, 2]),
    )


def sigma8(parameters: Any) -> float:
    """Linear σ_8 today, from a CAMB run of its own.

    Transfer functions that are asked for along with the spectra would change C_L^κκ by 0.1%.

    Parameters
    ----------
    parameters : ``camb.CAMBparams``

    Returns
    -------
    sigma8 : at z = 0
    """
    import camb

    linear = parameters.copy()
    linear.WantCls = False
    linear.NonLinear = "NonLinear_none"
    linear.set_matter_power(redshifts=[0.0], kmax=2.0)
    return float(camb.get_results(linear).get_sigma8_0())


def lensed_polarisation(spectra: Spectra, lmax: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    """Lensed C_l^EE and C_l^BB (µK²) of fields that end sharply at ``spectra.lmax``, to ``lmax``.

    Simulated skies are band-limited, while CAMB's own lensed spectra continue its input beyond
    lmax; lensing also lifts power past the band limit, where pixels alias it. CAMB's curved-sky
    correlation functions (Challinor & Lewis 2005, astro-ph/0502425) give exactly what such skies
    should show.

    Parameters
    ----------
    spectra : unlensed E and φ, to ``spectra.lmax``
    lmax : largest multipole of the result

    Returns
    -------
    ee, bb : lensed spectra from l = 0 in µK², (lmax + 1,) each
    """
    from camb import correlations

    l = np.arange(lmax + 1, dtype=float)
    n = spectra.lmax + 1
    unlensed = np.zeros((lmax + 1, 4))
    unlensed[:n, 1] = spectra.ee * l[:n] * (l[:n] + 1.0) / (2.0 * np.pi)
    clpp = np.zeros(lmax + 1)
    clpp[:n] = spectra.pp * (l[:n] * (l[:n] + 1.0)) ** 2 / (2.0 * np.pi)
    lensed = correlations.lensed_cls(unlensed, clpp, lmax=lmax)
    factor = np.zeros(lmax + 1)
    factor[1:] = 2.0 * np.pi / (l[1:] * (l[1:] + 1.0))
    return lensed[:, 1] * factor, lensed[:, 2] * factor


def settings_record(cosmology: Cosmology, settings: CambSettings) -> dict[str, Any]:
    """Everything that determines the spectra, with the version of CAMB.

    Parameters
    ----------
    cosmology : of the spectra
    settings : of CAMB

    Returns
    -------
    record : plain dictionary
    """
    import camb

    return {
        "code": "camb",
        "version": camb.__version__,
        "cosmology": asdict(cosmology),
        "settings": asdict(settings),
    }
