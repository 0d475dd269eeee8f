"""What is measured of an instrument, from files: beam, transfer function, inverse variance.

A beam is text of columns l, B_l and, where there are any, error modes e_i(l) in units of B_l, so
that B_l (1 + Σ a_i e_i(l)) with standard normal a_i is a beam that the measurement allows. With
error modes, a comment line names the columns: ``# l B_l e_1 e_2``, or ``# l B_l dB_1 dB_2`` where
they are absolute, δB_i = B_l e_i; ``dB_1/B`` and ``dlnB_1`` are relative. A
transfer function is text of columns l, F_l, or an ``.npz`` of ``ly`` (n,) from −l_max to l_max,
``lx`` (m,) from 0, and ``transfer`` (n, m), even in l: F(−l) = F(l), or it would make real maps
complex. Inverse variance, of Q and of U each, is an ``.npz`` or ``.npy`` of ``ivar`` (ny, nx) in
1/µK² per pixel, 0 where nothing was seen, axes as in
:mod:`cobaya_cnnlens.simulate.patches`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import InstrumentError

# How far from 1 the first B_l may be before it is asked whether the file is in other units, and
# the least that is left of a mode: filters divide by it.
NORMALISED = 2e-3
LEAST, MOST = 1e-6, 10.0
# Names of a relative and of an absolute error mode, and the largest |δB/B| of one: more is no error
# of a measured beam, but a column of something else.
_OF_B, _DELTA = r"B_?(l|ell|T|E|P|pol)?_?\d*(\(l\))?", r"(d|delta|δ|Δ)_?"
RELATIVE = re.compile(
    rf"(?-i:e)_?\d*(\(l\))?|{_DELTA}{_OF_B}/{_OF_B}|{_DELTA}ln_?{_OF_B}", re.IGNORECASE
)
ABSOLUTE = re.compile(_DELTA + _OF_B, re.IGNORECASE)
# Names of a window, the square of a beam.
SQUARE = re.compile(r"W_?(l|ell)?|\|?B_?(l|ell)?(\(l\))?\|?(\^2|\*\*2|²|2)", re.IGNORECASE)
LARGEST_ERROR = 0.5
# A table may begin so high: between there and l = 0 it is taken as flat.
FIRST = 2


@dataclass(frozen=True, eq=False)
class Beam:
    """B_l of a table: between its multipoles ln B is linear in l², and beyond the last ln B ∝ l²,
    as a Gaussian's is throughout.

    Attributes
    ----------
    ell : (n,), from 0
    values : (n,), B_0 = 1
    errors : relative error modes e_i(l), (n_modes, n)
    """

    ell: np.ndarray
    values: np.ndarray
    errors: np.ndarray

    def __call__(self, ell: np.ndarray) -> np.ndarray:
        """B at multipoles of any shape; same shape."""
        l2, end = np.square(np.asarray(ell, float)), float(self.ell[-1]) ** 2
        logs = np.log(self.values)
        inside = np.interp(l2, np.square(self.ell.astype(float)), logs)
        return np.exp(np.where(l2 > end, logs[-1] * l2 / end, inside))

    def off(self, amplitudes: np.ndarray | tuple[float, ...]) -> Beam:
        """The beam with its error modes at given amplitudes.

        Parameters
        ----------
        amplitudes : in standard deviations, the first for the first error mode

        Returns
        -------
        beam : the beam with these errors

        Raises
        ------
        InstrumentError
            if the beam has fewer error modes, or if it does not stay positive
        """
        if len(amplitudes) > len(self.errors):
            raise InstrumentError(
                f"the beam has {len(self.errors)} error modes, not {len(amplitudes)}; add columns "
                "e_i(l) to its file"
            )
        change = 1.0 + np.asarray(amplitudes) @ self.errors[: len(amplitudes)]
        if not (change > 0).all():
            raise InstrumentError(
                "error modes of the beam at these amplitudes leave nothing positive of it; are "
                "they in units of B_l?"
            )
        return Beam(self.ell, self.values * change, self.errors)

    @property
    def fwhm(self) -> float:
        """FWHM in radians of the Gaussian that falls as this beam does up to its last multipole:
        of ln B = −σ²l²/2 by least squares in ln B."""
        l2 = np.square(self.ell.astype(float))
        sigma2 = -2.0 * (np.log(self.values) @ l2) / (l2 @ l2)
        return float(np.sqrt(max(sigma2, 0.0) * 8.0 * np.log(2.0)))


@dataclass(frozen=True, eq=False)
class Transfer:
    """What is left of the sky's modes in the maps, beside the beam.

    Attributes
    ----------
    axes : (ell,) of an isotropic transfer function, or (ly, lx) of a half plane
    values : (n,) or (n_ly, n_lx)
    """

    axes: tuple[np.ndarray, ...]
    values: np.ndarray

    def __call__(self, ly: np.ndarray, lx: np.ndarray) -> np.ndarray:
        """F at modes, linear between those of the table and flat beyond them; same shape."""
        if len(self.axes) == 1:
            return np.interp(np.hypot(ly, lx), self.axes[0], self.values)
        from scipy.interpolate import RegularGridInterpolator

        turned = np.where(np.asarray(lx) < 0, -1.0, 1.0)
        at = [
            np.clip(turned * l, axis[0], axis[-1])
            for l, axis in zip((ly, lx), self.axes, strict=True)
        ]
        return RegularGridInterpolator(self.axes, self.values)(np.stack(at, axis=-1))

    def mean(self, ell: np.ndarray) -> np.ndarray:
        """Root mean square of F over the directions of l.

        Parameters
        ----------
        ell : multipoles, of any shape

        Returns
        -------
        mean : of the shape of ``ell``
        """
        if len(self.axes) == 1:
            return np.interp(ell, self.axes[0], self.values)
        ell, angle = np.asarray(ell, float)[..., None], np.pi * (np.arange(180) + 0.5) / 180
        return np.sqrt(np.mean(self(ell * np.cos(angle), ell * np.sin(angle)) ** 2, axis=-1))

    @property
    def lmax(self) -> float:
        """The multipole to which the table knows all directions."""
        return float(min(axis[-1] for axis in self.axes))


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file, which stands for the file in recipes.

    Parameters
    ----------
    path : of the file

    Returns
    -------
    digest : 64 hexadecimal digits

    Raises
    ------
    InstrumentError
        if it cannot be read
    """
    return _digest(*_state(path))


def read_beam(path: str | Path, normalise: bool = False) -> Beam:
    """Read a measured beam; the module's docstring describes the file.

    Parameters
    ----------
    path : of the file
    normalise : divide by the first B_l, whatever it is

    Returns
    -------
    beam : from l = 0, with its error modes

    Raises
    ------
    InstrumentError
        if the file cannot be read, does not begin at l ≤ 2 with B = 1, is not finite and positive,
        its multipoles do not ascend, or further columns are not named or no error modes
    """
    return _beam(*_state(path), normalise)


def read_transfer(path: str | Path) -> Transfer:
    """Read a transfer function; the module's docstring describes the file.

    Parameters
    ----------
    path : of the file

    Returns
    -------
    transfer : on its grid of l

    Raises
    ------
    InstrumentError
        if the file cannot be read, is not finite and positive, or not even in l
    """
    return _transfer(*_state(path))


def read_rms(path: str | Path, n_pixels: int) -> np.ndarray:
    """Read the noise per pixel of Q and of U from a file of inverse variance.

    Parameters
    ----------
    path : of the file
    n_pixels : pixels on a side of the patch

    Returns
    -------
    rms : (n_pixels, n_pixels) in µK, infinite in pixels without data

    Raises
    ------
    InstrumentError
        if the file cannot be read, or is not of that shape; and as :func:`rms_of`
    """
    return _rms(*_state(path), n_pixels)


def rms_of(ivar: np.ndarray, source: str = "inverse variance") -> np.ndarray:
    """Noise per pixel of an inverse-variance map.

    Parameters
    ----------
    ivar : inverse variance in 1/µK², of any shape, 0 in pixels without data
    source : what to call the map in errors

    Returns
    -------
    rms : in µK, of the same shape, infinite in pixels without data

    Raises
    ------
    InstrumentError
        naming ``source``, if it is negative, not finite, or zero throughout
    """
    ivar = np.asarray(ivar, float)
    for wrong, what in ((~np.isfinite(ivar), "not finite"), (ivar < 0, "negative")):
        if wrong.any():
            raise InstrumentError(
                f"{source}: 'ivar' is {what} in {wrong.sum()} of {ivar.size} pixels; give 1/σ² in "
                "1/µK², 0 where nothing was seen"
            )
    if not (ivar > 0).any():
        raise InstrumentError(f"{source}: 'ivar' is zero throughout; nothing was seen")
    with np.errstate(divide="ignore"):
        return 1.0 / np.sqrt(ivar)


def _state(path: str | Path) -> tuple[str, int, int]:
    """A file's path, and what tells that it has changed since it was read."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InstrumentError(
            f"{path}: cannot be read ({error.strerror}); correct the path"
        ) from None
    return str(path), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _digest(path: str, *_state: int) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InstrumentError(f"{path}: cannot be read ({error.strerror}); name a file") from None


@lru_cache(maxsize=16)
def _beam(path: str, _mtime: int, _size: int, normalise: bool) -> Beam:
    table = _columns(path, "l, B_l")
    ell, values = table[0], table[1]
    if ell[0] > FIRST:
        raise InstrumentError(
            f"{path}: column l begins at {ell[0]:g}; a beam begins at l = 0, 1 or {FIRST}, or its "
            "normalisation is not known"
        )
    squares = [name for name in _names(path, len(table))[1:2] if SQUARE.fullmatch(name)]
    if squares:
        raise InstrumentError(
            f"{path}: column {squares[0]} is a window, the square of a beam; give its root, B_l"
        )
    errors = _error_modes(path, table[2:], values)
    if normalise and values[0] > 0:
        values = values / values[0]
    if values[0] > 0 and abs(values[0] - 1.0) > NORMALISED:
        raise InstrumentError(
            f"{path}: column B_l begins with {values[0]:.6g}, not 1; is it B_l² or a solid angle? "
            "If only its normalisation is another, set 'instrument.normalise_beam: true'"
        )
    _check_positive(path, "B_l", values)
    if ell[0] > 0:
        ell, values = np.r_[0.0, ell], np.r_[values[0], values]
        errors = np.hstack([errors[:, :1], errors])
    if values.max() > 1.5:
        at = ell[np.argmax(values)]
        raise InstrumentError(
            f"{path}: column B_l rises to {values.max():.3g} at l = {at:g}; give the beam, not its "
            "inverse"
        )
    return Beam(ell, values, errors)


def _error_modes(path: str, columns: np.ndarray, beam: np.ndarray) -> np.ndarray:
    """Relative error modes, (n_modes, n), of a beam's further columns, by their names."""
    if not len(columns):
        return columns
    names = _names(path, 2 + len(columns))[2:]
    absolute = [bool(ABSOLUTE.fullmatch(name)) for name in names]
    unknown = [
        name
        for name, d in zip(names, absolute, strict=True)
        if not d and not RELATIVE.fullmatch(name)
    ]
    if not names or unknown:
        what = f"column {unknown[0]} is" if unknown else "columns beyond the second are"
        raise InstrumentError(
            f"{path}: nothing says that {what} an error mode of the beam. Keep l and one B_l, that "
            "of the polarisation; or name error modes in a comment line above the table: "
            "'# l B_l e_1' if they are in units of B_l, '# l B_l dB_1' if they are absolute"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        modes = np.where(np.array(absolute)[:, None], columns / beam, columns)
    largest = np.abs(modes).max(1)
    if not (largest < LARGEST_ERROR).all():
        worst = int(np.argmax(~(largest < LARGEST_ERROR)))
        raise InstrumentError(
            f"{path}: column {names[worst]} reaches {largest[worst]:.3g} of B_l; an error mode is "
            f"one standard deviation of a measured beam, below {LARGEST_ERROR:g}: give the error, "
            "not another beam, or end the table where the beam is known"
        )
    return modes


def _names(path: str, count: int) -> list[str]:
    """Names of so many columns, from the last comment line above a table that has as many words;
    empty if there is none."""
    names: list[str] = []
    for line in Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        words = re.split(r"[\s,;]+", line.strip(" #,;\t"))
        names = words if len(words) == count else names
    return names


@lru_cache(maxsize=16)
def _transfer(path: str, *_state: int) -> Transfer:
    if not path.endswith(".npz"):
        ell, values, *_ = _columns(path, "l, F_l")
        _check_positive(path, "F_l", values)
        return Transfer((ell,), values)
    ly, lx, values = (_array(path, name) for name in ("ly", "lx", "transfer"))
    for name, axis in (("ly", ly), ("lx", lx)):
        if axis.ndim != 1 or len(axis) < 2 or not (np.diff(axis) > 0).all():
            raise InstrumentError(
                f"{path}: field '{name}' must be one axis of ascending multipoles"
            )
    if values.shape != (len(ly), len(lx)):
        raise InstrumentError(
            f"{path}: field 'transfer' has shape {values.shape}, 'ly' and 'lx' {len(ly)} and "
            f"{len(lx)} multipoles; axis 0 is ly"
        )
    if lx[0] != 0 or not np.allclose(ly, -ly[::-1]):
        raise InstrumentError(
            f"{path}: fields 'lx' and 'ly' must be a half plane: lx from 0, ly from −l_max to l_max"
        )
    _check_positive(path, "transfer", values)
    if not np.allclose(values[:, 0], values[::-1, 0], rtol=1e-6):
        raise InstrumentError(
            f"{path}: field 'transfer' differs at (ly, 0) and (−ly, 0); a real map's transfer "
            "function is even in l"
        )
    return Transfer((ly, lx), values)


@lru_cache(maxsize=4)
def _rms(path: str, _mtime: int, _size: int, n_pixels: int) -> np.ndarray:
    ivar = _array(path, "ivar")
    if ivar.shape != (n_pixels, n_pixels):
        raise InstrumentError(
            f"{path}: field 'ivar' has shape {ivar.shape}, the patch {n_pixels} × {n_pixels} "
            "pixels; cut it at the patch's own pixels"
        )
    rms = rms_of(ivar, path)
    rms.flags.writeable = False
    return rms


def _columns(path: str, names: str) -> np.ndarray:
    """The columns of a text table whose first one ascends, (n_columns, n)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file
            table = np.loadtxt(path, ndmin=2, encoding="utf-8-sig").T
    except (OSError, ValueError) as error:
        raise InstrumentError(
            f"{path}: is no table of columns {names} ({str(error).splitlines()[0]:.120}); write "
            "them as text with spaces between, and comments after #"
        ) from None
    if len(table) < 2 or table.shape[1] < 2:
        raise InstrumentError(f"{path}: has no rows of columns {names}")
    if not np.isfinite(table).all():
        row = int(np.argmax(~np.isfinite(table).all(0)))
        raise InstrumentError(f"{path}: row {row + 1} of columns {names} is not finite; mend it")
    if table[0, 0] < 0 or not (np.diff(table[0]) > 0).all():
        row = int(np.argmax(np.diff(table[0]) <= 0)) + 1
        raise InstrumentError(
            f"{path}: column l does not ascend at row {row + 1} from 0 or more; sort it, each "
            "multipole once"
        )
    return table


def _check_positive(path: str, name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise InstrumentError(f"{path}: '{name}' is not finite; mend it")
    if not ((values >= LEAST) & (values <= MOST)).all():
        wrong = values[(values < LEAST) | (values > MOST)][0]
        raise InstrumentError(
            f"{path}: '{name}' holds {wrong:.3g}; it must lie between {LEAST:g} and {MOST:g}: "
            "filters divide by it, so end the table before, or put the least there"
        )


def _array(path: str, name: str) -> np.ndarray:
    """One array of real numbers of a NumPy file; of an ``.npy`` the one there is."""
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            with array:
                array = array[name]
    except KeyError:
        raise InstrumentError(f"{path}: has no array '{name}'; add it") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InstrumentError(
            f"{path}: is no NumPy file of an array '{name}' ({str(error).splitlines()[0]:.120})"
        ) from None
    if array.dtype.kind not in "fiu":
        raise InstrumentError(f"{path}: array '{name}' is of {array.dtype}, not of numbers")
    return array.astype(float)
