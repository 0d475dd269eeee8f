"""Chains of Cobaya in numbers, and the inputs that they were made with."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import getdist.chains
import numpy as np
from cobaya.tools import get_scipy_1d_pdf
from getdist import MCSamples
from getdist.chains import WeightedSamples

import yaml

from ..errors import CNNLensError
from ..files import given_path
from ..likelihood.blinding import is_blinded
from ..likelihood.declarations import BLINDED
from ..table import plus_minus, text_table
from .truths import LIKELIHOOD, blocks_of, true_parameters

# What is in a chain beside parameters.
NO_PARAMETERS = ("chi2", "minuslogprior", "cnnlens_chi2", "cnnlens_pte")
BURN_IN = 0.2
# What may follow a chain's root: the ends of its files, whole or as far as a shell completes them.
FILE_ENDS = re.compile(
    r"\.(|\d+|\d+\.|(\d+\.)?txt|(input|updated)\.yaml(\.locked)?|updated\.dill_pickle"
    r"|checkpoint|progress|covmat|png)$"
)
# Samples that getdist's densities need at least.
FEWEST = 20
# Pieces into which a single chain is cut, to compare their means.
PIECES = 4
# A posterior is as wide as its prior where a Gaussian prior would hold more information than the
# data. It is cut where its density at a side of the prior is above this fraction of the highest.
AS_WIDE, CUT = math.sqrt(0.5), 0.1
AMPLITUDE_LABEL = r"\sigma_8 \Omega_\mathrm{m}^{0.25}"


@dataclass(frozen=True)
class Chain:
    """A chain as :func:`load_chain` reads it.

    Attributes
    ----------
    root : as in ``output`` of the Cobaya input
    samples : what is left after the burn-in, of all its files together
    info : the input that it was made with, with its defaults
    burn_in : fraction of every file that was left out from its start
    """

    root: str
    samples: MCSamples
    info: dict[str, Any]
    burn_in: float

    @property
    def name(self) -> str:
        """The last part of the root."""
        return Path(self.root).name

    @property
    def names(self) -> list[str]:
        """Parameters of the chain, sampled and derived, and what else it has columns of."""
        return self.samples.paramNames.list()

    def has(self, *names: str) -> bool:
        """Whether the chain has some parameters.

        Parameters
        ----------
        *names : of the parameters

        Returns
        -------
        True if it has all
        """
        return set(names) <= set(self.names)

    @cached_property
    def _truth(self) -> tuple[dict[str, float], str]:
        try:
            return true_parameters(self.info, self.names), ""
        except CNNLensError as error:
            return {}, f"no truth of a mock is shown: {error}"

    @property
    def truth(self) -> dict[str, float]:
        """True parameters of the mock that the chain used; empty for data, or if not known."""
        return self._truth[0]

    @property
    def remark(self) -> str:
        """Why the truth is not known, if it is not for data; else empty."""
        return self._truth[1]

    @property
    def blinded(self) -> bool:
        """Whether the chain is of bandpowers with a hidden offset."""
        blocks = blocks_of(self.info.get("likelihood"), LIKELIHOOD)
        return any(is_blinded(block.get("version")) for block in blocks.values())

    @cached_property
    def convergence(self) -> float:
        """R − 1 of the means (Brooks & Gelman 1998) of the files, or of the quarters of one file;
        NaN where it cannot be computed."""
        pieces = self.samples.getSeparateChains()
        if len(pieces) == 1:
            samples, weights = (
                np.array_split(x, PIECES) for x in (self.samples.samples, self.samples.weights)
            )
            pieces = [
                WeightedSamples(samples=s, weights=w)
                for s, w in zip(samples, weights, strict=True)
                if len(s) > 1
            ]
        try:
            with quiet(), np.errstate(all="ignore"):
                return float(self.samples.getGelmanRubin(chainlist=pieces))
        except (ArithmeticError, TypeError, ValueError, np.linalg.LinAlgError):
            return math.nan

    def fit(self) -> str:
        """χ² and PTE of each likelihood at the sample of the highest posterior, and R − 1; below it
        whether the chain is blinded."""
        best = self.samples.samples[np.argmin(self.samples.loglikes)]
        texts = []
        blocks = blocks_of(self.info.get("likelihood"), LIKELIHOOD)
        for block in blocks.values():
            suffix = block.get("suffix") or ""
            names = f"cnnlens_chi2{suffix}", f"cnnlens_pte{suffix}"
            if self.has(*names):
                chi2, pte = (best[self.samples.paramNames.numberOfName(name)] for name in names)
                of = f" ({suffix.strip('_')})" if suffix else ""
                texts.append(f"best fit{of}: chi2 = {chi2:.1f}, PTE = {pte:.2g}")
        texts.append(f"R-1 = {self.convergence:.2g}")
        texts.append(f"burn-in: first {100 * self.burn_in:.3g}% left out")
        blinded = f"\n{BLINDED}" if self.blinded else ""
        return f"{self.root}: {'; '.join(texts)}{blinded}"

    def prior_mark(self, name: str) -> str:
        """Whether the prior of a sampled parameter makes its posterior: ``as wide as its prior``,
        ``cut by its prior``, or empty.

        Parameters
        ----------
        name : name of a parameter of the chain

        Returns
        -------
        mark : text
        """
        parameters: Any = self.info.get("params") or {}
        try:
            prior = get_scipy_1d_pdf(parameters[name]["prior"])
            width, sides = float(prior.std()), prior.support()
        except (AttributeError, KeyError, TypeError, ValueError):
            return ""  # no prior of its own: fixed, derived, or a function of several
        if self.samples.std(name) > AS_WIDE * width:
            return "as wide as its prior"
        with quiet():
            density = self.samples.get1DDensity(name)
        if any(density.Prob(side) > CUT * density.P.max() for side in sides if np.isfinite(side)):
            return "cut by its prior"
        return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what getdist says while it reads and computes from the terminal."""
    details, disabled = getdist.chains.print_load_details, logging.root.manager.disable
    getdist.chains.print_load_details = False
    logging.disable(max(disabled, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(disabled)
        getdist.chains.print_load_details = details


def _chain_files(root: str) -> list[str]:
    """The files of a chain in the order of their numbers: ``root.N.txt``, or ``root.txt``."""
    path = Path(root).absolute()
    if not path.name:
        return []
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)\.txt")
    folder = path.parent.iterdir() if path.parent.is_dir() else ()
    numbered = {int(m[1]): file for file in folder if (m := pattern.fullmatch(file.name))}
    if numbered or re.search(r"\.\d+$", path.name):  # of root.N, root.N.txt is a file of `root`
        return [str(numbered[i]) for i in sorted(numbered)]
    single = path.with_name(f"{path.name}.txt")
    return [str(single)] if single.is_file() else []


def chain_root(given: str | Path) -> str:
    """The root of a chain, from itself or from the name of one of its files.

    Parameters
    ----------
    given : root of the chain, or one of its files

    Returns
    -------
    root : of the chain

    Raises
    ------
    CNNLensError
        If there is no such chain.
    """
    root = str(given_path(given))
    for candidate in (root, FILE_ENDS.sub("", root)):
        if _chain_files(candidate):
            return candidate
    path = Path(root)
    folder = path if path.is_dir() else path.parent
    names = {
        m[1] for file in folder.glob("*.txt") if (m := re.match(r"(.+)\.\d+\.txt$", file.name))
    }
    known = ", ".join(str(folder / name) for name in sorted(names)[:10])
    raise CNNLensError(
        f"{root}: no such chain ({root}.1.txt, {root}.2.txt, …); "
        + (f"the chains there are {known}" if known else "run cobaya-run first")
    )


def load_chain(given: str | Path, burn_in: float = BURN_IN) -> Chain:
    """Read a chain without its burn-in.

    The files themselves are read, not getdist's cache, which goes by the files' dates.

    Parameters
    ----------
    given : root of the chain, as in ``output`` of the Cobaya input, or one of its files
    burn_in : fraction of every file to leave out from its start, from 0 to less than 1

    Returns
    -------
    chain : samples after the burn-in, and the input

    Raises
    ------
    CNNLensError
        If there is none, or too little of one, or the input beside it is missing.
    """
    root = chain_root(given)
    info = chain_input(root)
    try:
        with quiet():
            # getdist does not look into the current folder for a root without one.
            settings = {"ignore_rows": burn_in}
            samples = MCSamples(str(Path(root).absolute()), settings=settings)
            _refuse_other_columns(root, samples.paramNames.list())
            # Of several processes, one may not have accepted its first sample yet.
            samples.readChains([file for file in _chain_files(root) if _has_samples(file)])
    except CNNLensError:
        raise
    except Exception as error:  # whatever getdist raises for files that are empty or damaged
        said = " ".join(str(error).split()) or type(error).__name__
        raise CNNLensError(
            f"{root}: the chain cannot be read ({said:.200}); it has hardly begun, or is "
            "damaged. If a run was killed within its last line, remove that line"
        ) from None
    chain = Chain(root, samples, info, burn_in)
    _add_amplitude(chain)
    return chain


def _add_amplitude(chain: Chain) -> None:
    """Add σ8 Ω_m^0.25 to the derived parameters of a chain that has both."""
    density = "omegam" if chain.has("omegam") else "Omega_m"
    if chain.has("sigma8", density) and not chain.has("s8omegamp25"):
        at = chain.samples.getParams()
        values = at.sigma8 * getattr(at, density) ** 0.25
        with quiet():
            chain.samples.addDerived(values, name="s8omegamp25", label=AMPLITUDE_LABEL)
            chain.samples.updateBaseStatistics()


def _refuse_other_columns(root: str, names: Sequence[str]) -> None:
    """Refuse files whose columns are not those of the input beside them, whose names getdist
    takes."""
    for file in _chain_files(root):
        with open(file, encoding="utf-8", errors="replace") as lines:
            head = lines.readline()
        columns = head.lstrip("#").split()[2:]  # after the weight and the posterior
        if head.startswith("#") and columns != list(names):
            raise CNNLensError(
                f"{file}: its columns are {', '.join(columns)}; those of the input beside it, "
                f"{root}.updated.yaml, are {', '.join(names)}: the two are of different runs. "
                "Bring the right file back, or run cobaya-run -f"
            )


def _has_samples(file: str) -> bool:
    with open(file, encoding="utf-8", errors="replace") as lines:
        return any(line.strip() and not line.startswith("#") for line in lines)


def chain_input(root: str) -> dict[str, Any]:
    """The input that a chain's posterior is of, defaults included, as Cobaya wrote it.

    Parameters
    ----------
    root : of the chain

    Returns
    -------
    info : the input as a dictionary

    Raises
    ------
    CNNLensError
        If it is missing, or cannot be read.
    """
    path = Path(f"{root}.updated.yaml")
    try:
        info = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CNNLensError(
            f"{path}: no such file; it is written beside a chain by cobaya-run"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise CNNLensError(f"{path}: cannot be read ({said:.200}); restore the file") from None
    if not isinstance(info, dict):
        raise CNNLensError(f"{path}: holds no input of Cobaya; restore the file")
    return info


def check_chain(chain: Chain, params: Sequence[str]) -> None:
    """Refuse a chain that is too short for densities, and names of parameters that it lacks.

    Parameters
    ----------
    chain : as :func:`load_chain` reads it
    params : names of parameters

    Raises
    ------
    CNNLensError
    """
    if (n := len(chain.samples.samples)) < FEWEST:
        raise CNNLensError(
            f"{chain.root}: the chain has {n} samples after its burn-in, and a posterior needs "
            f"{FEWEST}; let it run on, or give a smaller --burn-in"
        )
    for name in params:
        if not chain.has(name):
            known = ", ".join(chain.names)
            raise CNNLensError(f"{chain.root}: no parameter '{name}'; the chain has {known}")


@dataclass(frozen=True)
class Marginal:
    """Posterior of one parameter: ``mean`` and ``sigma``, the ``effective`` number of independent
    samples behind them, the ``truth`` of a mock or None, and what its ``prior`` does to it."""

    parameter: str
    mean: float
    sigma: float
    effective: float
    truth: float | None
    prior: str = ""

    @property
    def pull(self) -> float | None:
        """(mean − truth)/σ; None without a truth or width."""
        if self.truth is None or not self.sigma > 0:
            return None
        return (self.mean - self.truth) / self.sigma


@dataclass(frozen=True)
class ChainSummary:
    """What ``cnnlens plot`` prints of a chain: its fit, its parameters, and a remark if any."""

    fit: str
    marginals: list[Marginal]
    remark: str = ""

    def table(self) -> str:
        """As text, two digits of every error."""
        values = []
        for m in self.marginals:
            digits = max(0, 1 - math.floor(math.log10(m.sigma))) if m.sigma > 0 else 0
            values += plus_minus([m.mean], [m.sigma], f".{digits}f" if digits < 8 else ".3e")
        truths = ["" if m.truth is None else f"{m.truth:.6g}" for m in self.marginals]
        pulls = ["" if m.pull is None else f"{m.pull:+.2f}" for m in self.marginals]
        rows = text_table(
            {
                "parameter": ("", [m.parameter for m in self.marginals]),
                "mean ± error": (">", values),
                "effective samples": (".0f", [m.effective for m in self.marginals]),
                "truth": (">", truths),
                "pull": (">", pulls),
                "prior": ("", [m.prior for m in self.marginals]),
            },
            self.fit,
        )
        return f"{rows}\n{self.remark}" if self.remark else rows


def summarise(chain: Chain, params: Sequence[str] | None = None) -> ChainSummary:
    """Means, errors and pulls of a chain, and its fit.

    Parameters
    ----------
    chain : as :func:`load_chain` reads it
    params : parameters; all of the chain by default, sampled and derived

    Returns
    -------
    summary : of each parameter, with the fit of all

    Raises
    ------
    CNNLensError
        if a parameter is not in the chain
    """
    check_chain(chain, params or ())
    names = params or [name for name in chain.names if not name.startswith(NO_PARAMETERS)]
    samples, marginals = chain.samples, []
    for name in names:
        with quiet():
            effective = samples.getEffectiveSamples(samples.paramNames.numberOfName(name))
            numbers = float(samples.mean(name)), float(samples.std(name)), float(effective)
        truth = chain.truth.get(name)
        marginals.append(Marginal(name, *numbers, truth, chain.prior_mark(name)))
    return ChainSummary(chain.fit(), marginals, chain.remark)
