"""Likelihood of B modes and a template of their lensing part, for r.

The template t of :mod:`cobaya_cnnlens.maps.delensing` stands beside the measured B modes as a
second map (BICEP/Keck & SPTpol 2021, arXiv:2011.08163). In each bin of multipoles, the power matrix
of (B, t) is

    C = [[r C^T + A_L C^L + N,  A_L C^X        ],
         [A_L C^X,              A_L C^S + N^t  ]],

with tensor modes of r = 1 (T), lensing B modes (L), their cross spectrum with the template (X), the
part of the template's power that is proportional to C^φφ (S), and the noise of B and of the
template. The likelihood is that of Hamimeche & Lewis 2008 (arXiv:0801.0554, eq. 47), with a
covariance from simulations.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CNNLensError, ReleaseError
from ..files import atomic_write, given_path
from .document import seal
from .statistics import hamimeche_lewis, hartlap_factor, hotelling_pte, inverse_covariance

FORMAT = "cobaya_cnnlens BB"
# B modes and the template; their power matrix is kept as BB, Bt, tt.
N_FIELDS, N_SPECTRA = 2, 3
_ROWS, _COLUMNS = (0, 0, 1), (0, 1, 1)
_POWERS = ("tensor", "lensing", "noise", "cross", "template_signal", "template_noise")
N_PARAMETERS = 2  # r and A_L
# So many simulations more than bandpowers does the likelihood need.
LEAST_MORE = 5
# No power of B modes is as large, in µK².
LARGEST = 1.0
_DIRECTORY = Path(str(files("cobaya_cnnlens.likelihood"))) / "data" / "bb"


@dataclass(frozen=True)
class BBData:
    """Bandpowers of B modes and of a lensing template, and what models them. Spectra are in µK².

    Attributes
    ----------
    name : of the survey
    description : one sentence
    edges : of the bins: bin b holds edges[b] ≤ l < edges[b+1], (n_bins + 1,)
    bandpowers : of BB, Bt and tt, (n_bins, 3)
    tensor : C^T, BB of r = 1, (n_bins,)
    lensing : C^L, (n_bins,)
    noise : N, (n_bins,)
    cross : C^X, (n_bins,)
    template_signal : C^S, (n_bins,)
    template_noise : N^t, (n_bins,)
    covariance : of all bandpowers at r = 0 and A_L = 1, bin by bin in the order BB, Bt, tt,
        (3 n_bins, 3 n_bins) in µK⁴
    n_sim : simulations behind the covariance
    truth : r and Alens of a mock; empty for data
    """

    name: str
    description: str
    edges: np.ndarray
    bandpowers: np.ndarray
    tensor: np.ndarray
    lensing: np.ndarray
    noise: np.ndarray
    cross: np.ndarray
    template_signal: np.ndarray
    template_noise: np.ndarray
    covariance: np.ndarray
    n_sim: int
    truth: Mapping[str, float]

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    def model(self, r: float, alens: float) -> np.ndarray:
        """Expected power matrices.

        Parameters
        ----------
        r : tensor-to-scalar ratio
        alens : A_L, which multiplies C^φφ

        Returns
        -------
        power : of B and t, (n_bins, 2, 2) in µK²
        """
        bb = r * self.tensor + alens * self.lensing + self.noise
        tt = alens * self.template_signal + self.template_noise
        return matrices(np.stack([bb, alens * self.cross, tt], axis=1))


def matrices(spectra: np.ndarray) -> np.ndarray:
    """Power matrices of B and t.

    Parameters
    ----------
    spectra : BB, Bt and tt, (..., 3)

    Returns
    -------
    power : symmetric, (..., 2, 2)
    """
    power = np.empty((*spectra.shape[:-1], N_FIELDS, N_FIELDS))
    power[..., _ROWS, _COLUMNS] = power[..., _COLUMNS, _ROWS] = spectra
    return power


class BBLikelihood:
    """Likelihood of r and A_L.

    Parameters
    ----------
    data : bandpowers and their model
    template : use the template; without it, BB alone

    Attributes
    ----------
    n_fields : 2 with the template, else 1

    Raises
    ------
    ReleaseError
        if the covariance cannot be inverted
    """

    def __init__(self, data: BBData, template: bool = True):
        self.data = data
        self.n_fields = n = N_FIELDS if template else 1
        chosen = [i for i in range(N_SPECTRA) if _COLUMNS[i] < n]
        self._rows, self._columns = [_ROWS[i] for i in chosen], [_COLUMNS[i] for i in chosen]
        rows = [N_SPECTRA * b + i for b in range(data.n_bins) for i in chosen]
        self._measured = matrices(data.bandpowers)[:, :n, :n]
        self._root = _power(self.model(0.0, 1.0), 0.5)
        try:
            self._inverse = inverse_covariance(data.covariance[np.ix_(rows, rows)])
        except CNNLensError as error:
            raise ReleaseError(f"BB data '{data.name}': 'covariance' is {error}") from None
        if data.n_sim < (least := len(rows) + LEAST_MORE):
            raise ReleaseError(
                f"BB data '{data.name}': 'n_sim' is {data.n_sim}; a covariance of {len(rows)} "
                f"bandpowers needs {least} simulations at least"
            )
        self._factor = hartlap_factor(data.n_sim, len(rows))

    @property
    def n_bandpowers(self) -> int:
        """Number of bandpowers in use."""
        return len(self._inverse)

    def model(self, r: float, alens: float) -> np.ndarray:
        """Expected power matrices of what is used.

        Parameters
        ----------
        r, alens : as of :meth:`BBData.model`

        Returns
        -------
        power : (n_bins, n_fields, n_fields) in µK²
        """
        return self.data.model(r, alens)[:, : self.n_fields, : self.n_fields]

    def chi2(self, r: float, alens: float = 1.0) -> float:
        """χ² of the Hamimeche-Lewis variables, with the Hartlap factor.

        Parameters
        ----------
        r, alens : as of :meth:`BBData.model`

        Returns
        -------
        chi2 : infinite where a power matrix of the model or of the data is not positive definite
        """
        model = self.model(r, alens)
        if not (np.linalg.eigvalsh(model) > 0).all():
            return np.inf
        whitening = _power(model, -0.5)
        values, vectors = np.linalg.eigh(whitening @ self._measured @ whitening)
        if not (values > 0).all():
            return np.inf
        g = (vectors * hamimeche_lewis(values)[:, None]) @ vectors.swapaxes(1, 2)
        x = (self._root @ g @ self._root)[:, self._rows, self._columns].ravel()
        return self._factor * float(x @ self._inverse @ x)

    def log_likelihood(self, r: float, alens: float = 1.0) -> float:
        """ln L, up to a constant, with the error of the simulated covariance.

        The Hartlap factor alone makes errors of parameters too small (Dodelson & Schneider 2013).
        This is the t distribution of Percival et al. 2022 (arXiv:2108.10402), of which the
        intervals of two parameters have their frequentist coverage.

        Parameters
        ----------
        r, alens : as of :meth:`BBData.model`

        Returns
        -------
        ln L : −∞ where :meth:`chi2` is infinite
        """
        n_sim, free = self.data.n_sim, self.n_bandpowers - N_PARAMETERS
        more = n_sim - self.n_bandpowers
        b = (more - 2.0) / ((more - 1.0) * (more - 4.0)) * free
        power = N_PARAMETERS + 2.0 + (n_sim - 1.0 + b) / (1.0 + b)
        t2 = self.chi2(r, alens) / self._factor
        return -0.5 * power * float(np.log1p(t2 / (n_sim - 1.0)))

    def best_pte(self) -> float:
        """Probability to exceed the lowest χ² of a grid of r and A_L, by Hotelling's T².

        Returns
        -------
        pte : near zero if the data and the model differ, for example in their unit
        """
        grid = itertools.product(np.linspace(0.0, 0.3, 31) ** 2, np.linspace(0.5, 1.5, 21))
        lowest = min(self.chi2(r, alens) for r, alens in grid)
        if not np.isfinite(lowest):
            return 0.0
        return float(hotelling_pte(lowest / self._factor, self.data.n_sim, self.n_bandpowers))


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Power of symmetric positive matrices, (n, m, m)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values[:, None] ** exponent) @ vectors.swapaxes(1, 2)


def shipped() -> list[str]:
    """Names of the data that come with this package.

    Returns
    -------
    names : for :func:`read_bb`
    """
    return sorted(path.stem for path in _DIRECTORY.glob("*.json"))


def read_bb(path: str | Path) -> BBData:
    """Read BB data.

    Parameters
    ----------
    path : a JSON file, or the name of a shipped one

    Returns
    -------
    data : checked

    Raises
    ------
    ReleaseError
        if the file is missing or damaged, or a field is missing, unknown, not finite or of a wrong
        shape
    """
    file = _DIRECTORY / f"{path}.json" if str(path) in shipped() else given_path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(shipped())
        raise ReleaseError(
            f"{path}: no such BB data; give a file, or one of the shipped {names}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{path}: not readable as JSON ({error}); get the file again") from None
    return _checked(document, str(path))


def _checked(document: Any, path: str) -> BBData:
    """The data of a document."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ReleaseError(f"{path}: 'format' is not '{FORMAT}'; give a file of write_bb")
    content = {key: value for key, value in document.items() if key != "format"}
    names = {field.name for field in fields(BBData)}
    if odd := sorted(names ^ set(content)):
        raise ReleaseError(
            f"{path}: fields {', '.join(odd)[:200]} are missing or unknown; BB data have "
            f"{', '.join(sorted(names))}"
        )
    edges = content["edges"]
    n_bins = max(len(edges) - 1, 1) if isinstance(edges, list) else 1
    shapes = {
        "edges": (n_bins + 1,),
        "bandpowers": (n_bins, N_SPECTRA),
        "covariance": (N_SPECTRA * n_bins, N_SPECTRA * n_bins),
        **dict.fromkeys(_POWERS, (n_bins,)),
    }
    arrays = {
        name: _array(content[name], shape, f"{path}: '{name}'") for name, shape in shapes.items()
    }
    if arrays["edges"][0] < 0 or not (np.diff(arrays["edges"]) > 0).all():
        raise ReleaseError(f"{path}: 'edges' must rise from 0 or more, two numbers at least")
    for name in _POWERS:
        if (arrays[name] < 0).any():
            raise ReleaseError(f"{path}: '{name}' is negative, but is a power; check its sign")
    for name in (*_POWERS, "bandpowers"):
        if (np.abs(arrays[name]) > LARGEST).any():
            raise ReleaseError(f"{path}: '{name}' exceeds {LARGEST:g}; its unit must be µK²")
    if type(content["n_sim"]) is not int:
        raise ReleaseError(f"{path}: 'n_sim' is {content['n_sim']!r:.40}; give an integer")
    for name in ("name", "description"):
        if not isinstance(content[name], str):
            raise ReleaseError(f"{path}: '{name}' is {content[name]!r:.40}; give a text")
    truth = content["truth"]
    if (
        not isinstance(truth, dict)
        or not set(truth) <= {"r", "Alens"}
        or not all(type(x) in (int, float) and np.isfinite(x) for x in truth.values())
    ):
        raise ReleaseError(f"{path}: 'truth' may hold the numbers 'r' and 'Alens' alone")
    data = BBData(**{**content, **arrays})
    for name, power in (("bandpowers", matrices(data.bandpowers)), ("model", data.model(0.0, 1.0))):
        if bad := np.flatnonzero(np.linalg.eigvalsh(power)[:, 0] <= 0).tolist():
            raise ReleaseError(
                f"{path}: the power matrix of B and the template by '{name}' is not positive "
                f"definite in bins {bad}; it must contain the noise"
            )
    return data


def _array(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Finite numbers of a document, of some shape."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # lists of different lengths, or numbers beyond any range
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" or array.shape != shape or not np.isfinite(array).all():
        raise ReleaseError(
            f"{name} has shape {array.shape}; it must hold finite numbers of shape {shape}"
        )
    return array.astype(float)


def write_bb(data: BBData, path: str | Path) -> None:
    """Write BB data.

    Parameters
    ----------
    data : to be written
    path : of the JSON file

    Raises
    ------
    ReleaseError
        if :func:`read_bb` would refuse them
    """
    document = _document(data)
    _checked(document, str(path))
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")


def digest_of(data: BBData) -> str:
    """Digest of BB data.

    Parameters
    ----------
    data : of a survey

    Returns
    -------
    digest : as :func:`.seal` gives it to a release
    """
    return str(seal(_document(data))["digest"])


def _document(data: BBData) -> dict[str, Any]:
    """The data as JSON has them."""
    document: dict[str, Any] = {"format": FORMAT}
    for field in fields(BBData):
        value = getattr(data, field.name)
        if isinstance(value, np.ndarray):
            # Seven digits are far more than the simulations determine.
            value = np.vectorize(lambda x: float(f"{x:.6e}"))(value).tolist()
        if isinstance(value, Mapping):
            value = {key: float(x) for key, x in sorted(value.items())}
        document[field.name] = int(value) if field.name == "n_sim" else value
    return document
