"""A user's own maps against what their estimator was calibrated for: unit, axes, noise, what holds
the same sky twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import MapError
from ..pipeline.map_files import PatchMaps
from ..simulate.instrument import cosine_mask
from ..simulate.modes import (
    half_plane_weights,
    masked_area,
    mode_vectors,
    plane_vectors,
    pure_b_modes,
)
from .own_maps import MapSetup

# Patches whose maps are correlated by more than this, whatever the shift, share sky. Of 500
# independent pairs at 1 to 10 µK-arcmin the highest has .17; 5° patches 2.5° apart along a side
# reach .35.
CORRELATION = 0.3
# The rms of one patch's Q and U may be off by the first before a warning, by the second, times or
# divided by, before the patch is refused; that of all patches, whose unit is then wrong, too. One
# patch's rms scatters by .02.
RMS_TOLERANCE, RMS_IMPOSSIBLE = 0.25, 2.0
# Of the amplitude at the highest multipoles, times the square of the pixels on a side: .04 at 128²,
# where clean maps lie within .01, and four times that at 64², where they come to .09.
NOISE_TOLERANCE = 614.0
# Relative deviation of E's and B's power over all patches before a warning, and by what factor one
# patch's B may be off; one patch's scatters by .05 at 128², .13 at 64² pixels. E's is told beyond
# what other cosmologies do and three times its scatter over the patches: a gain of 1.05 is 1.10.
E_TOLERANCE, B_TOLERANCE, B_FACTOR = 0.05, 0.3, 2.0
E_SCATTER = 6.4  # of one patch, times its number of pixels on a side
# Degrees of a turn of the polarisation that is told, if it is this many times its error; releases
# take .1° for the error of an instrument's angle.
ANGLE_TOLERANCE, ANGLE_SIGMA = 0.25, 4.0
# Patches at a time while spectra are taken.
CHUNK = 32


def check_maps(maps: PatchMaps, setup: MapSetup, source: str) -> list[str]:
    """Compare the patches with what the instrument and the fiducial cosmology give.

    Q and U tell their own mistakes: lensed B is some hundredth of E, so that a turn of the
    polarisation, another sign of U, or the two swapped show in B's power and, a turn to .1 degrees
    in one patch at 1 µK-arcmin, in ⟨EB⟩ = ½ sin 4α (⟨EE⟩ − ⟨BB⟩).

    Returns
    -------
    warnings: a map that ends below the patches' Nyquist multipole, the rms of a patch off by more
    than a quarter, noise at the highest multipoles off by more than 4%, the power of E off by more
    than 5% and its scatter, that of B by more than 30%, the polarisation turned, patches whose
    place is not known

    Raises
    ------
    MapError
        if a patch's rms is off by more than twofold, two patches hold the same sky, or Q and U are
        swapped, mirrored or turned beyond doubt
    """
    theory = setup.theory
    warned = [*_check_band(maps, setup), *_check_rms(maps, setup, theory, source)]
    _check_repeated(maps, setup, source)
    if len(maps.q) > 1 and not np.isfinite(maps.centres).all():
        warned.append(
            "where its patches lie is not known, so nobody can tell whether they overlap: add an "
            "array 'centres', longitude and latitude in degrees"
        )
    warned += _check_polarisation(maps, setup, theory, source)
    found, want = _high_l_power(maps, setup, theory)
    if abs(np.sqrt(found / want) - 1.0) > NOISE_TOLERANCE / setup.patch.n_pixels**2:
        warned.append(
            f"at the highest multipoles the maps have {np.sqrt(found / want):.2f} times the "
            f"amplitude that the beam and {setup.instrument.noise_uk_arcmin:g} µK-arcmin of noise "
            "give"
        )
    return warned


def _check_band(maps: PatchMaps, setup: MapSetup) -> list[str]:
    nyquist = round(setup.patch.nyquist)
    if maps.lmax is None or maps.lmax >= nyquist:
        return []
    nside = 2 ** int(np.ceil(np.log2(nyquist / 2.0)))
    return [
        f"the map ends at l = {maps.lmax} (2 nside), the patches that the network knows at "
        f"{nyquist}: κ̂ is not what calibrated it; take nside {nside} or more"
    ]


def _check_rms(maps: PatchMaps, setup: MapSetup, theory, source: str) -> list[str]:
    """Each patch's rms of Q and U against that of lensed, beamed E and B with noise."""
    patch, instrument = setup.patch, setup.instrument
    l = np.arange(len(theory.ee))
    signal = (theory.lensed_ee + theory.lensed_bb) * instrument.beam(l) ** 2
    inside = (l >= patch.fundamental) & (l <= patch.nyquist)
    variance = np.sum(((2 * l + 1) * signal)[inside]) / (8.0 * np.pi)
    expected = np.sqrt(variance + np.mean(instrument.noise_variance(patch)))
    rms = np.sqrt(0.5 * (maps.q**2 + maps.u**2).mean((1, 2)))
    wrong = (rms > expected * RMS_IMPOSSIBLE) | (rms < expected / RMS_IMPOSSIBLE)
    if wrong.all():
        raise MapError(
            f"{source}: Q and U have rms {np.sqrt(np.mean(rms**2)):.3g} µK, {expected:.3g} µK are "
            "expected; look at their unit"
        )
    if wrong.any():
        raise MapError(
            f"{source}: in {_patches(wrong)} Q and U have rms {rms[wrong][0]:.3g} µK, "
            f"{expected:.3g} µK are expected and the other patches have {np.median(rms):.3g}; mend "
            "the patch or leave it out"
        )
    odd = np.abs(rms / expected - 1.0) > RMS_TOLERANCE
    if not odd.any():
        return []
    return [
        f"in {_patches(odd)} Q and U have rms {rms[odd].mean():.3g} µK where {expected:.3g} µK are "
        "expected"
    ]


def _patches(which: np.ndarray) -> str:
    numbers = np.flatnonzero(which).tolist()
    if len(numbers) == len(which):
        return "all patches" if len(which) > 1 else "the patch"
    more = f" and {len(numbers) - 5} others" if len(numbers) > 5 else ""
    return f"patch {', '.join(map(str, numbers[:5]))}{more}"


def _check_repeated(maps: PatchMaps, setup: MapSetup, source: str) -> None:
    """Refuse patches that hold the same sky, shifted or not: their maps are correlated.

    |Σ_x P_a(x) P_b*(x + s)| over all shifts s, beside √(Σ|P_a|² Σ|P_b|²), of multipoles below a
    third of Nyquist, where E is; a common turn of the axes leaves it as it is.
    """
    n = setup.patch.n_pixels
    low = np.r_[0 : n // 6, n - n // 6 : n]
    p = (maps.q + 1j * maps.u) * setup.mask
    modes = np.fft.fft2(p)[:, low[:, None], low].astype(np.complex64)
    modes /= np.sqrt((np.abs(modes) ** 2).sum((1, 2), keepdims=True))
    for i in range(len(modes) - 1):
        pairs = modes[i].conj() * modes[i + 1 :]
        found = np.abs(np.fft.ifft2(pairs)).max((1, 2)) * modes[0].size
        if found.max() > CORRELATION:
            raise MapError(
                f"{source}: patches {i} and {i + 1 + int(np.argmax(found))} hold the same sky "
                f"(their maps are correlated by {found.max():.2f}), and would count as "
                "independent; leave one out"
            )


@dataclass(frozen=True)
class _Polarisation:
    """Power of pure E and of pure B over what is expected, mean over modes, (n_patches,) each, and
    by how many degrees all patches' polarisation is turned, with its error."""

    e: np.ndarray
    b: np.ndarray
    angle: float
    angle_error: float


def _polarisation(setup: MapSetup, theory, q: np.ndarray, u: np.ndarray) -> _Polarisation:
    """What E and B of unmasked Q, U say about their axes. A turn by α, Q + iU → e^{2iα}(Q + iU),
    makes ⟨EB⟩ of C^EE − C^BB; every mode counts by 1/(C^EE C^BB)."""
    patch, instrument = setup.patch, setup.instrument
    # Pure B needs a mask that vanishes at the edge, whatever that of κ̂ is.
    mask = cosine_mask(patch, max(instrument.taper_deg, 0.1 * patch.size_deg))
    ell = np.hypot(*mode_vectors(patch.n_pixels, patch.pixel))
    # Above a few wavelengths of the patch the mask bends no spectrum, below .6 Nyquist no power
    # aliases, and theory has to have B.
    end = min(0.6 * patch.nyquist, np.flatnonzero(theory.lensed_bb)[-1])
    used = (ell > 3.0 * patch.fundamental) & (ell < end)
    weight = half_plane_weights(patch.n_pixels)[used]
    l = np.minimum(np.round(ell[used]).astype(int), len(theory.ee) - 1)
    rms2 = instrument.noise_variance(patch) * mask**2
    noise = np.mean(rms2) / np.mean(mask**2) * patch.pixel**2
    beam = instrument.beam(l) ** 2
    ee, bb = (cl[l] * beam + noise for cl in (theory.lensed_ee, theory.lensed_bb))
    area = masked_area(mask, patch.pixel)
    sums = []
    for start in range(0, len(q), CHUNK):
        rows = slice(start, start + CHUNK)
        # Pure E is pure B of the maps turned by 45°.
        b = pure_b_modes(q[rows], u[rows], mask, patch.pixel)[:, used]
        e = pure_b_modes(-u[rows], q[rows], mask, patch.pixel)[:, used]
        e2, b2, eb = np.abs(e) ** 2, np.abs(b) ** 2, (e * b.conj()).real
        terms = (e2 / ee, b2 / bb, eb / (ee * bb), (e2 - b2) / (ee * bb))
        sums.append(np.stack([(weight * term).sum(-1) / area for term in terms]))
    e, b, odd, even = np.concatenate(sums, axis=1)
    angle = 0.25 * np.arctan2(2.0 * odd.sum(), even.sum())
    # Of Gaussian modes, fewer than there are by ⟨M⁴⟩/⟨M²⟩² under a mask.
    variance = (weight / (ee * bb)).sum() * np.mean(mask**4) / np.mean(mask**2) ** 2
    error = 0.5 * np.sqrt(variance / len(q)) / (weight * (ee - bb) / (ee * bb)).sum()
    return _Polarisation(e / weight.sum(), b / weight.sum(), *np.degrees([angle, error]))


def _check_polarisation(maps: PatchMaps, setup: MapSetup, theory, source: str) -> list[str]:
    found = _polarisation(setup, theory, maps.q, maps.u)
    odd = (found.b > B_FACTOR) | (found.b < 1.0 / B_FACTOR)
    turned = abs(found.angle) > max(ANGLE_TOLERANCE, ANGLE_SIGMA * found.angle_error)
    if odd.any() or abs(found.b.mean() - 1.0) > B_TOLERANCE:
        which = odd if odd.any() else np.ones(len(odd), bool)
        _refuse_wrong_axes(maps, setup, theory, source, which)
    warned = []
    if turned:
        warned.append(
            f"the polarisation is turned by {found.angle:.2f} ± {found.angle_error:.2f} degrees, "
            "as ⟨EB⟩ tells: is the detectors' angle right, and the frame that of the coordinates?"
        )
    if odd.any():
        warned.append(
            f"in {_patches(odd)} B has {found.b[odd].mean():.2f} times the power that lensing and "
            "noise give"
        )
    elif abs(found.b.mean() - 1.0) > B_TOLERANCE and not turned:
        warned.append(f"B has {found.b.mean():.2f} times the power that lensing and noise give")
    scatter = E_SCATTER / setup.patch.n_pixels / np.sqrt(len(found.e))
    if abs(found.e.mean() - 1.0) > E_TOLERANCE + 3.0 * scatter:
        warned.append(f"E has {found.e.mean():.2f} times the power of the fiducial cosmology")
    return warned


def _refuse_wrong_axes(maps: PatchMaps, setup: MapSetup, theory, source: str, which) -> None:
    """Refuse the patches ``which`` if mirrored, turned or swapped Q and U have the power in B that
    is expected, and Q and U as they are have not."""
    q, u = maps.q[which], maps.u[which]
    # P → e^{−2iα}P, of Q + iU and of its mirror image.
    left = {}
    for name, p in {
        "": q + 1j * u,
        "the sign of U is the other one: is POLCCONV right, or an axis reversed?": q - 1j * u,
        "Q and U are swapped": u + 1j * q,
    }.items():
        turn = _polarisation(setup, theory, p.real, p.imag).angle if not name else 0.0
        p = p * np.exp(-2j * np.radians(turn))
        if not name and abs(turn) > 22.5:
            name = f"the polarisation is turned by {turn:.0f} degrees"
        left[name] = _polarisation(setup, theory, p.real, p.imag).b.mean()
    as_it_is = _polarisation(setup, theory, q, u).b.mean()
    best = min(left, key=left.get)
    if best and left[best] < 0.5 * as_it_is and abs(np.log(left[best])) < np.log(B_FACTOR):
        raise MapError(
            f"{source}: in {_patches(which)} B has {as_it_is:.3g} times the power that lensing and "
            f"noise give, and {left[best]:.2f} times if {best}"
        )


def _high_l_power(maps: PatchMaps, setup: MapSetup, theory) -> tuple[float, float]:
    """Mean power of Q and U over modes of .8 to 1 Nyquist, or of the last fifth before the maps
    end, measured and expected."""
    patch, instrument, mask = setup.patch, setup.instrument, setup.mask
    n, pixel = patch.n_pixels, patch.pixel
    ell = np.hypot(*plane_vectors(n, pixel))
    end = min(patch.nyquist, maps.lmax or np.inf)
    ring = (ell > 0.8 * end) & (ell < end)
    area = masked_area(mask, pixel)
    found = np.mean(
        [
            (np.abs(np.fft.fft2(m * mask) * pixel**2) ** 2 / area)[..., ring].mean()
            for m in (maps.q, maps.u)
        ]
    )
    l = np.minimum(np.round(ell[ring]).astype(int), len(theory.ee) - 1)
    beam = instrument.beam(l) ** 2
    signal = 0.5 * np.mean((theory.lensed_ee[l] + theory.lensed_bb[l]) * beam)
    rms = instrument.noise_variance(patch) * mask**2
    return float(found), float(signal + np.mean(rms) / np.mean(mask**2) * pixel**2)
