"""Blinding: a hidden change of cosmology that moves the bandpowers of a release.

As in Muir et al. 2020 (arXiv:1911.05929), the data are shifted by the change of their model between
two cosmologies. The scatter of the power of κ̂ over R² is proportional to its mean. We therefore
multiply this power by the ratio of its means (docs/blinding)::

    d + N  →  (d + N) (µ(ρC) + N + c) / (µ(C) + N + c),      ρ = C^κκ(θ_fid + Δθ) / C^κκ(θ_fid)

C is the fiducial C^κκ times the amplitude that fits the data. c is the correction that the survey's
own power gives. The variables of Hamimeche & Lewis do not change, so χ² and the PTE nearly keep
their values. Δθ depends on the key alone, so releases with one key share it. The release keeps the
open bandpowers, the truth and Δθ encrypted (:mod:`.encryption`). The commands that make releases
blind them. :func:`unblind` needs no pipeline.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..errors import ReleaseError
from ..theory.camb import Cosmology
from .declarations import Blinding
from .document import digest_of_numbers, seal, to_document
from .encryption import BlindingKey, decrypted, encrypted
from .fields import Release
from .spectra import Bands
from .statistics import inverse_covariance

# Largest hidden changes of ω_c and of ln A_s. The first is 4σ of the mock survey in docs/survey,
# and 14σ of 160 patches at 1 µK-arcmin, whose response surface is valid seven times as far.
LARGEST_OFFSET = {"omch2": 0.004, "logA": 0.04}
# Range of the amplitude of C^κκ. For data beyond it, the nearer end is used.
AMPLITUDES = 0.5, 2.0
# First word of the version of a blinded release, which is kept beside a chain.
_BLINDED_VERSION = "blinded "


@dataclass(frozen=True)
class Offset:
    """A change of cosmology.

    Attributes
    ----------
    omch2 : change of ω_c
    logA : change of ln A_s
    """

    omch2: float
    logA: float

    @classmethod
    def drawn(cls, key: BlindingKey) -> Offset:
        """Draw the offset of a key, from a flat distribution within ± :data:`LARGEST_OFFSET`.

        Parameters
        ----------
        key : that hides it

        Returns
        -------
        the change
        """
        return cls(
            **{
                name: largest * (2.0 * int.from_bytes(key.derived(name)[:8], "big") / 2**64 - 1.0)
                for name, largest in LARGEST_OFFSET.items()
            }
        )

    def applied(self, cosmology: Cosmology) -> Cosmology:
        """Add the offset to a cosmology.

        Parameters
        ----------
        cosmology : to start from

        Returns
        -------
        the changed one
        """
        return cosmology.vary(
            omch2=cosmology.omch2 + self.omch2, As=cosmology.As * math.exp(self.logA)
        )


def expected_bandpowers(release: Release, clkk: np.ndarray) -> np.ndarray:
    """Model µ of d' with its second order (docs/noise-bias, eq. 13), for the simulated instrument.

    Parameters
    ----------
    release : whose calibration is used
    clkk : C_L^κκ from L = 0, as long as the release's fiducial one

    Returns
    -------
    (n_bins,)
    """
    changes = Bands(release.kk_edges, release.fiducial_kk).power(clkk) - 1.0
    u = float(release.kk_direction @ changes)
    cross = release.debias_cross @ release.amplitudes if release.n_v else 0.0
    signal = release.windows @ clkk[: release.windows.shape[1]]
    return signal + release.kk_derivatives @ changes + release.curvature * u**2 + cross * u


def amplitude(release: Release) -> float:
    """Amplitude of the data's C^κκ over the fiducial one: a least-squares fit within AMPLITUDES.

    Parameters
    ----------
    release : with its data

    Returns
    -------
    the factor
    """
    step, kk = 0.01, release.fiducial_kk
    fiducial = expected_bandpowers(release, kk)
    slope = (expected_bandpowers(release, (1.0 + step) * kk) - fiducial) / step
    weight = inverse_covariance(release.covariance) @ slope
    residual = release.bandpowers - release.correction - fiducial
    return float(np.clip(1.0 + weight @ residual / (weight @ slope), *AMPLITUDES))


def shifted_bandpowers(release: Release, ratio: np.ndarray) -> np.ndarray:
    """Bandpowers that a survey would have if every C_L^κκ were multiplied by a factor.

    Parameters
    ----------
    release : with its data
    ratio : ρ_L from L = 0, as long as the release's fiducial C_L^κκ

    Returns
    -------
    d, not debiased, (n_bins,)

    Raises
    ------
    ReleaseError
        if the survey's own power subtracts more than the whole power of κ̂
    """
    near = amplitude(release) * release.fiducial_kk
    added = release.noise + release.correction
    total, shifted = (expected_bandpowers(release, kk) + added for kk in (near, ratio * near))
    if not (total > 0).all() or not (shifted > 0).all():
        raise ReleaseError(
            f"release '{release.name}': field 'data.power' subtracts more than all power of κ̂, so "
            "that no cosmology can be hidden there; look at the maps and their calibration first"
        )
    return (release.bandpowers + release.noise) * shifted / total - release.noise


def blind(release: Release, ratio: np.ndarray, key: BlindingKey) -> Release:
    """Hide a release's bandpowers behind those of another cosmology, and its truth.

    Parameters
    ----------
    release : the open one
    ratio : ρ_L of the key's :class:`Offset`, as of :func:`shifted_bandpowers`
    key : that unblinds it again

    Returns
    -------
    the blinded release
    """
    document = seal(to_document(release))
    hidden = {
        "bandpowers": document["data"]["bandpowers"],
        "truth": document["truth"],
        "digest": document["digest"],
        "offset": asdict(Offset.drawn(key)),
    }
    return replace(
        release,
        bandpowers=shifted_bandpowers(release, ratio),
        truth=None,
        blinding=Blinding(key.name, encrypted(json.dumps(hidden), key)),
    )


def unblind(release: Release, key: BlindingKey) -> tuple[Release, Offset]:
    """Recover the open release, as it would be without blinding.

    Parameters
    ----------
    release : a blinded one
    key : with which it was blinded

    Returns
    -------
    the open release, and the offset that was hidden in it

    Raises
    ------
    ReleaseError
        if the release is not blinded, or is the combination of several, or the key is another one
    """
    if release.blinding is None:
        raise ReleaseError(f"release '{release.name}' is not blinded; use it as it is")
    if release.blinding.hidden is None:
        raise ReleaseError(
            f"release '{release.name}' combines blinded releases; unblind these, and combine them "
            "again"
        )
    text = decrypted(release.blinding.hidden, key)
    if text is None:
        said = f"blinded with the key {release.blinding.key}, the given one is {key.name}"
        if key.name == release.blinding.key:
            said = "blinded with this key, but its field 'blinding.hidden' was altered"
        raise ReleaseError(
            f"release '{release.name}' was {said}; give the file of the key with which it was made"
        )
    hidden = json.loads(text)
    opened = replace(
        release, bandpowers=np.array(hidden["bandpowers"]), truth=hidden["truth"], blinding=None
    )
    if seal(to_document(opened))["digest"] != hidden["digest"]:
        raise ReleaseError(
            f"release '{release.name}': field 'blinding.hidden' is that of another release; take "
            "the file as `--blind` wrote it"
        )
    return opened, Offset(**hidden["offset"])


def version_of(release: Release) -> str:
    """Version of a release that is kept beside a chain: a digest, and whether it is blinded.

    Parameters
    ----------
    release : of one survey, or combined

    Returns
    -------
    16 hex digits, perhaps after "blinded"

    Examples
    --------
    >>> from cobaya_cnnlens import read_release
    >>> is_blinded(version_of(read_release("refined_fiducial")))
    False
    """
    digest = digest_of_numbers(release)
    return f"{_BLINDED_VERSION}{digest}" if release.blinding else digest


def is_blinded(version: object) -> bool:
    """Whether the chain that is kept with this version has blinded bandpowers.

    Parameters
    ----------
    version : of :func:`version_of`; any other value counts as open

    Returns
    -------
    True for a blinded one
    """
    return str(version).startswith(_BLINDED_VERSION)
