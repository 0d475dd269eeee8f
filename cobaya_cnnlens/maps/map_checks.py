"""Q and U of patches against what their estimator was calibrated for.

Every map passes these checks, as patches (``reconstruct --maps``) or as the tiles of a survey: all
together, and each by itself with its own noise and holes. They refuse what no instrument does:
another unit, noise or gain, Q and U that are swapped, mirrored or rotated, the same sky twice. What
is only suspicious gives a warning, which the bandpowers and their release keep.

The EB spectrum measures the axes of Q and U. A rotation by α, Q + iU → e^{2iα}(Q + iU), makes
⟨EB⟩ = ½ sin 4α (C^EE − C^BB), with the total power C. With G = (C^EE − C^BB)/(C^EE C^BB) the log
likelihood of a rotation by −α is, up to a constant,

    ln L(α) = ¼ [cos 4α Σ G (|E|² − |B|²) + sin 4α Σ G 2 Re(E B*)],

summed over the modes of real fields. With Q − iU in place of Q + iU it is that of mirrored maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage

from ..errors import MapError
from ..simulate.instrument import ARCMIN, cosine_mask
from ..simulate.modes import half_plane_weights, mode_vectors, pure_b_modes
from .map_setup import MapSetup
from .patch_maps import PLURALS, PatchMaps

ALGORITHM = 1
# Patches whose maps are correlated by more than this, whatever the shift, share sky. Of 500
# independent pairs at 1 to 10 µK-arcmin the highest has 0.17; 5° patches 2.5° apart along a side
# reach 0.35.
CORRELATION = 0.3
# Before the spectra, holes are widened by so many pixels and smoothed by a Gaussian of this rms.
WIDENED, SMOOTHED = 6, 1.5
# A patch whose mean of the mask squared is smaller is not checked; its ratios get this error.
LEAST_SEEN, UNKNOWN = 0.02, 1e9
# Lensing makes the scatter of a patch's power larger than that of Gaussian modes; by at most this.
NON_GAUSSIAN = 2.0
# A deviation beyond its limits by SIGMA_TOLD errors gives a warning, or is refused. None is refused
# within SIGMA_REFUSED errors of what is expected.
SIGMA_TOLD, SIGMA_REFUSED = 3.0, 5.0
# A rotation of the polarisation by more degrees gives a warning, or is refused. A release corrects
# a rotation, whose effect is simulated to 0.5, and every calibrated angle is known to that.
ANGLE_TOLERANCE, ANGLE_IMPOSSIBLE = 0.25, 0.5
# Mirrored or swapped Q and U are refused if ln L is better by so much.
ODDS = 10.0


@dataclass(frozen=True)
class _Quantity:
    """A quantity of the maps, over what is expected: between which ratios it is as expected, of all
    patches and of one, and between which it is possible; what a message says of it."""

    told: tuple[float, float]
    told_of_one: tuple[float, float]
    possible: tuple[float, float]
    text: str
    remedy: str


QUANTITIES = {
    "rms": _Quantity(
        (0.8, 1.25),
        (0.8, 1.25),
        (0.5, 2.0),
        "the rms of Q and U is {ratio:.3g} times what sky and noise give",
        "look at their unit",
    ),
    # These limits are of patches of 128 pixels a side; :func:`_limits` gives those of others.
    "noise": _Quantity(
        (0.96, 1.04),
        (0.9, 1.1),
        (1 / 1.5, 1.5),
        "the amplitude at the highest multipoles is {ratio:.2f} times what noise of {level:.3g} "
        "µK-arcmin gives",
        "look at the depth or inverse variance, and its unit",
    ),
    # Maps of an unlensed sky have no B apart from noise.
    "b": _Quantity(
        (0.7, 1.3),
        (0.5, 2.0),
        (0.0, 2.0),
        "the power of B is {ratio:.3g} times what lensing and noise give",
        "look for foregrounds and sources, and at the depth",
    ),
    # A gain of 1.05 changes E by 1.10; other cosmologies change it by more.
    "e": _Quantity(
        (0.95, 1.05),
        (0.7, 1.4),
        (1 / 1.5, 1.5),
        "the power of E is {ratio:.2f} times that of the fiducial cosmology",
        "look at calibration, beam and unit",
    ),
}


@dataclass(frozen=True)
class _Measured:
    """Of every patch, (n_patches,).

    Attributes
    ----------
    ratios : of ``rms``, of the amplitude at the highest multipoles (``noise``) and of the power of
        E and B (``e``, ``b``): measured over expected
    errors : their standard errors, UNKNOWN where too little was seen to tell
    level : noise in µK-arcmin
    axes : Σ G (|E|² − |B|²) + i Σ G 2 Re(E B*) of Q + iU and of Q − iU, (n_patches, 2)
    unturned_b : as of ``b``, of maps that are turned back by the angle of each
    information : of that sum, Σ G (C^EE − C^BB); zero where too little was seen
    """

    ratios: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    level: np.ndarray
    axes: np.ndarray
    unturned_b: np.ndarray
    information: np.ndarray


def check_maps(patches: PatchMaps, setup: MapSetup) -> list[str]:
    """Compare patches with what the instrument and the fiducial cosmology give, all together and
    each by itself.

    Parameters
    ----------
    patches : a user's own, or the tiles of a survey
    setup : what their estimator was calibrated for

    Returns
    -------
    warnings of what is suspicious: maps that end below the patches' Nyquist multipole; rms, noise,
    or the power of E or B off; the polarisation turned; patches of which too little was seen, or
    of which nobody knows where they lie

    Raises
    ------
    MapError
        if Q and U are swapped, mirrored or turned by more than half a degree, if the rms, the noise
        or the power of E or B is what no instrument gives, or if two patches hold the same sky
    """
    rms = patches.rms
    if rms is None:
        rms = np.broadcast_to(setup.instrument.noise_rms(setup.patch), (1, *patches.q.shape[1:]))
    warned = band_warnings(patches.lmax, setup.patch.nyquist)
    measured = _measure(patches, rms, setup)
    unseen = measured.information == 0.0
    if unseen.any():
        warned.append(f"too little was seen of {patches.named(unseen)} to check its Q and U")
    warned += _judge(patches, measured, "rms")
    _check_repeated(patches, np.isfinite(rms), setup)
    warned += _check_axes(patches, measured)
    for name in ("noise", "e", "b"):
        warned += _judge(patches, measured, name)
    if len(patches.q) > 1 and not np.isfinite(patches.centres).all():
        warned.append(
            "where its patches lie is not known, so nobody can tell whether they overlap: add an "
            "array 'centres', longitude and latitude in degrees"
        )
    return warned


def band_warnings(lmax: int | None, nyquist: float) -> list[str]:
    """Warn of maps that end below the Nyquist multipole of the patches.

    Parameters
    ----------
    lmax : multipole at which the maps end, None if it is not known
    nyquist : of the patches

    Returns
    -------
    one warning, or none
    """
    if lmax is None or lmax >= round(nyquist):
        return []
    nside = 2 ** int(np.ceil(np.log2(round(nyquist) / 2.0)))
    return [
        f"the maps end at l = {lmax} (2 nside of HEALPix), the patches that the network knows at "
        f"{round(nyquist)}: κ̂ is not what calibrated it; take finer maps, of HEALPix nside {nside}"
    ]


def _judge(patches: PatchMaps, measured: _Measured, name: str) -> list[str]:
    """Refuse or warn of one quantity: of the patches that are off, or of all by their mean."""
    limits, ratio, error = _limits(name, patches), measured.ratios[name], measured.errors[name]
    checkable = measured.information > 0.0
    for refused, of_all, of_one in (
        (True, limits.possible, limits.possible),
        (False, limits.told, limits.told if len(ratio) == 1 else limits.told_of_one),
    ):
        which = _outside(ratio, error, of_one, refused)
        others = checkable & ~which
        mean_error = np.sqrt(np.sum(error[others] ** 2)) / max(others.sum(), 1)
        if others.any() and _outside(ratio[others].mean(), mean_error, of_all, refused):
            which = checkable
        if not which.any():
            continue
        level = np.sqrt(np.mean(measured.level[which] ** 2))
        text = limits.text.format(ratio=ratio[which].mean(), level=level)
        statement = f"in {patches.named(which)} {text}"
        if refused:
            leave = "" if which.all() else f", or leave the {patches.noun} out"
            raise MapError(
                f"{patches.source}: {statement}, more than any instrument is off; "
                f"{limits.remedy}{leave}"
            )
        return [f"{statement}; {limits.remedy}"]
    return []


def _limits(name: str, patches: PatchMaps) -> _Quantity:
    """Few pixels alias E into their highest multipoles, as the inverse square of their number."""
    limits, wider = QUANTITIES[name], (128 / patches.q.shape[-1]) ** 2
    if name != "noise" or wider <= 1.0:
        return limits
    told, of_one = (
        (1.0 - min(wider * (1.0 - low), 0.5), 1.0 + wider * (high - 1.0))
        for low, high in (limits.told, limits.told_of_one)
    )
    return replace(limits, told=told, told_of_one=of_one)


def _outside(
    ratio: np.ndarray, error: np.ndarray, bounds: tuple[float, float], refused: bool
) -> np.ndarray:
    """Whether ratios lie outside of bounds, with what their errors allow."""
    margin, least = SIGMA_TOLD * error, SIGMA_REFUSED * error if refused else 0.0
    low = np.minimum(bounds[0] - margin, 1.0 - least)
    return (ratio < low) | (ratio > np.maximum(bounds[1] + margin, 1.0 + least))


def _check_axes(patches: PatchMaps, measured: _Measured) -> list[str]:
    """Refuse Q and U that are mirrored, swapped or turned, in some patches or by the sum of all;
    warn of a small turn of all."""
    whole = measured.information > 0.0
    if not whole.any():
        return []
    wrong = np.array([_axes(measured, one)[1] for one in np.eye(len(whole), dtype=bool)])
    which = wrong if 0 < wrong.sum() <= 0.5 * whole.sum() else whole
    told, refused = _axes(measured, which)
    if refused:
        raise MapError(f"{patches.source}: in {patches.named(which)} {told}")
    return [told] if told else []


def _axes(measured: _Measured, which: np.ndarray) -> tuple[str, bool]:
    """What is wrong with the axes of patches, "" for nothing, and whether it is refused."""
    if not measured.information[which].any():
        return "", False
    straight, mirrored = measured.axes[which].sum(0)
    turn, other = (0.25 * np.degrees(np.angle(x)) for x in (straight, mirrored))
    # If B is larger than expected, it also scatters more.
    loud = max(measured.unturned_b[which].mean(), 1.0)
    error = 0.5 * np.degrees((loud / measured.information[which].sum()) ** 0.5)
    if 0.25 * (abs(mirrored) - abs(straight)) > ODDS * loud:
        mirror, mend = "the sign of U is the other one", "is POLCCONV right, or an axis reversed?"
        if abs(other) > 22.5:
            mirror, mend = "Q and U are swapped", "exchange them"
        ratio = measured.ratios["b"][which].mean()
        return (
            f"{mirror}, by which B has {ratio:.3g} times the power that lensing and noise give; "
            f"{mend}",
            True,
        )
    if abs(turn) <= max(ANGLE_TOLERANCE, SIGMA_TOLD * error):
        return "", False
    return (
        f"the polarisation is turned by {turn:.2f} ± {error:.2f} degrees, as ⟨EB⟩ tells; is the "
        "detectors' angle right, and the frame that of the coordinates?",
        abs(turn) > max(ANGLE_IMPOSSIBLE + SIGMA_TOLD * error, SIGMA_REFUSED * error),
    )


def _check_repeated(patches: PatchMaps, seen: np.ndarray, setup: MapSetup) -> None:
    """Refuse patches that hold the same sky, shifted or not: their maps are correlated.

    |Σ_x P_a(x) P_b*(x + s)| over all shifts s, beside √(Σ|P_a|² Σ|P_b|²), of multipoles below a
    third of Nyquist, where E is; a common turn of the axes leaves it as it is.
    """
    n = setup.patch.n_pixels
    low = np.r_[0 : n // 6, n - n // 6 : n]
    p = (patches.q + 1j * patches.u) * setup.mask * seen
    modes = np.fft.fft2(p)[:, low[:, None], low].astype(np.complex64)
    modes /= np.sqrt((np.abs(modes) ** 2).sum((1, 2), keepdims=True))
    for i in range(len(modes) - 1):
        pairs = modes[i].conj() * modes[i + 1 :]
        correlation = np.abs(np.fft.ifft2(pairs)).max((1, 2)) * modes[0].size
        if correlation.max() > CORRELATION:
            pair = patches.numbers[i], patches.numbers[i + 1 + int(np.argmax(correlation))]
            raise MapError(
                f"{patches.source}: {PLURALS[patches.noun]} {pair[0]} and {pair[1]} hold the same "
                f"sky (their maps are correlated by {correlation.max():.2f}), and would count as "
                "independent; leave one out"
            )


class _Window:
    """The mask of one patch's spectra: it vanishes smoothly at the edge and at what was not seen.

    Attributes
    ----------
    mask : (n, n)
    area : Σ mask² times a pixel's area, by which |mode|² is divided to give power
    noise : power of the noise under it, µK²
    independent : which part of the modes is independent, as ⟨M²⟩²/⟨M⁴⟩ counts them
    """

    def __init__(self, edges: np.ndarray, rms: np.ndarray, pixel: float):
        observed = np.isfinite(rms)
        self.mask = edges
        if not observed.all():
            away = scipy.ndimage.distance_transform_edt(observed) > WIDENED
            self.mask = edges * scipy.ndimage.gaussian_filter(
                away.astype(float), SMOOTHED, mode="nearest", truncate=WIDENED / SMOOTHED
            )
        square = self.mask**2
        total = max(square.sum(), 1e-9)
        self.area = total * pixel**2
        self.noise = float((np.where(observed, rms, 0.0) ** 2 * square).sum() / total * pixel**2)
        self.independent = float(total**2 / max((square**2).sum(), 1e-9) / square.size)


def _measure(patches: PatchMaps, rms: np.ndarray, setup: MapSetup) -> _Measured:
    """Spectra of every patch beside what is expected of its own noise ``rms``, (n_patches or 1, n,
    n)."""
    patch, instrument, theory = setup.patch, setup.instrument, setup.theory
    l = np.arange(len(theory.ee))
    sky = np.stack([theory.lensed_ee, theory.lensed_bb]) * instrument.beam(l) ** 2
    inside = (l >= patch.fundamental) & (l <= patch.nyquist)
    variance = ((2 * l + 1) * sky.sum(0))[inside].sum() / (8.0 * np.pi)
    ell = np.hypot(*mode_vectors(patch.n_pixels, patch.pixel))
    end = min(patch.nyquist, patches.lmax or np.inf)
    # Beyond a few modes of the patch neither mask nor holes bend the spectrum.
    start = min(6.0, patch.n_pixels / 16.0) * patch.fundamental
    used = (ell > start) & (ell < end)
    ell, weight = ell[used], half_plane_weights(patch.n_pixels)[used]
    # Below 0.6 Nyquist no power aliases, and theory has to have B.
    low = ell < min(0.6 * patch.nyquist, np.flatnonzero(theory.lensed_bb)[-1])
    high = ell > 0.8 * end
    sky = sky[:, np.minimum(np.round(ell).astype(int), l[-1])]
    excess = 1.0 if instrument.one_over_f is None else instrument.one_over_f.mean_ratio(ell)
    # Pure modes need a mask that vanishes at the edge, whatever that of κ̂ is.
    edges = cosine_mask(patch, max(instrument.taper_deg, 0.1 * patch.size_deg))
    rows, window = [], None
    for i, (q, u) in enumerate(zip(patches.q, patches.u, strict=True)):
        if window is None or len(rms) > 1:
            window = _Window(edges, rms[min(i, len(rms) - 1)], patch.pixel)
        if np.mean(window.mask**2) < LEAST_SEEN:
            rows.append([1.0, UNKNOWN] * 4 + [0.0] * 5)
            continue
        ee, bb = sky + window.noise * excess
        e, b = _pure_modes(q, u, window, patch.pixel, used)
        rms2 = 0.5 * ((q**2 + u**2) * window.mask**2).sum() * patch.pixel**2 / window.area
        row = [np.sqrt(rms2 / (variance + window.noise / patch.pixel**2)), 0.02]
        if not low.any():  # of maps that end below the patch's own multipoles
            rows.append([*row, *[1.0, UNKNOWN] * 3, *[0.0] * 5])
            continue
        for power, which, root, wider in (
            ((np.abs(e) ** 2 + np.abs(b) ** 2) / (ee + bb), high, 0.5, 1.0),
            (np.abs(b) ** 2 / bb, low, 1.0, NON_GAUSSIAN),
            (np.abs(e) ** 2 / ee, low, 1.0, NON_GAUSSIAN),
        ):
            count = weight[which].sum()
            error = root * wider * np.sqrt(2.0 / (count * window.independent))
            row += [((weight * power)[which].sum() / count) ** root, error]
        contrast = (window.independent * weight * (ee - bb) / (ee * bb))[low]
        mirrored = _pure_modes(q, -u, window, patch.pixel, used)
        for x, y in ((e, b), mirrored):
            axes = np.abs(x) ** 2 - np.abs(y) ** 2 + 2j * (x * y.conj()).real
            row.append((contrast * axes[low]).sum())
        turn = 0.25 * np.angle(row[-2])
        unturned = np.abs(np.cos(2.0 * turn) * b - np.sin(2.0 * turn) * e) ** 2 / bb
        row.append((weight * unturned)[low].sum() / weight[low].sum())
        information = (contrast * (ee - bb)[low]).sum()
        rows.append([*row, information, np.sqrt(window.noise) / ARCMIN])
    table = np.array(rows, complex).T
    ratios, errors = (
        dict(zip(("rms", "noise", "b", "e"), table[k:8:2].real, strict=True)) for k in (0, 1)
    )
    unturned, information, level = table[10:].real
    return _Measured(ratios, errors, level, table[8:10].T, unturned, information)


def _pure_modes(
    q: np.ndarray, u: np.ndarray, window: _Window, pixel: float, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """E and B of the modes ``used`` whose |·|² is power, each (n_used,) complex."""
    norm = 1.0 / np.sqrt(window.area)
    # Pure E is pure B of the maps turned by 45°.
    e, b = (pure_b_modes(x, y, window.mask, pixel)[used] for x, y in ((-u, q), (q, u)))
    return norm * e, norm * b
