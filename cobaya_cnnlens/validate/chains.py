"""Chains of Cobaya in numbers, and the inputs that they were made with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from getdist import MCSamples, loadMCSamples

import yaml

from ..errors import CNNLensError
from ..likelihood.release import read_release

LIKELIHOOD = "cobaya_cnnlens.CNNLens"
# What is in a chain beside parameters.
NO_PARAMETERS = ("chi2", "minuslogprior", "cnnlens_chi2", "cnnlens_pte")


def load_chain(root: str) -> MCSamples:
    """The getdist samples of a chain without its first fifth.

    Read from the chain itself: getdist's cache goes by the files' dates, which a copy keeps.

    Raises
    ------
    CNNLensError
        if there is none, or too little of one
    """
    if not Path(f"{root}.1.txt").exists():
        raise CNNLensError(f"{root}.1.txt: no such chain; run cobaya-run first")
    try:
        # getdist does not look into the current folder for a root without one.
        at = str(Path(root).absolute())
        return loadMCSamples(at, no_cache=True, settings={"ignore_rows": 0.2})
    except Exception as error:  # whatever getdist raises for files that are empty or damaged
        said = " ".join(str(error).split()) or type(error).__name__
        raise CNNLensError(
            f"{root}: the chain cannot be read ({said:.200}); it has hardly begun, or is damaged"
        ) from None


def chain_input(root: str) -> dict:
    """The input that a chain's posterior is of, defaults included, as Cobaya wrote it.

    Raises
    ------
    CNNLensError
        if it is missing, or cannot be read
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


def likelihood_blocks(info: dict) -> dict[str, dict]:
    """Our likelihoods in a chain's input, by the name that they have there."""
    blocks = (info.get("likelihood") or {}).items()
    return {
        name: block
        for name, block in blocks
        if isinstance(block, dict) and (block.get("class") or name) == LIKELIHOOD
    }


def true_parameters(root: str) -> dict[str, float]:
    """True parameters of the mock that the chain used, empty for data."""
    if not Path(f"{root}.updated.yaml").exists():
        return {}
    blocks = likelihood_blocks(chain_input(root))
    truths = [read_release(block["release"]).truth or {} for block in blocks.values()]
    if not truths or any(truth != truths[0] for truth in truths):
        return {}
    # Chains sample ln 10¹⁰A_s.
    amplitude = truths[0].get("As")
    return {**truths[0], **({"logA": float(np.log(1e10 * amplitude))} if amplitude else {})}


def check_params(root: str, chain: MCSamples, params: list[str]) -> None:
    for name in params:
        if not chain.paramNames.hasParam(name):
            known = ", ".join(chain.paramNames.list())
            raise CNNLensError(f"{root}: no parameter '{name}'; the chain has {known}")


@dataclass(frozen=True)
class Marginal:
    """Posterior of one parameter: ``mean`` and ``sigma``, the ``effective`` number of independent
    samples behind them, and the ``truth`` of a mock or None."""

    chain: str
    parameter: str
    mean: float
    sigma: float
    effective: float
    truth: float | None

    @property
    def pull(self) -> float | None:
        """(mean − truth)/σ; None without a truth or width."""
        if self.truth is None or not self.sigma > 0:
            return None
        return (self.mean - self.truth) / self.sigma


def marginals(chains: Mapping[str, MCSamples], params: list[str] | None = None) -> list[Marginal]:
    """Means, errors and pulls of one or more chains.

    Parameters
    ----------
    chains : samples by chain root, as in ``output`` of the Cobaya input (:func:`load_chain`)
    params : parameters; all of each chain by default, sampled and derived

    Raises
    ------
    CNNLensError
        if a parameter is not in a chain
    """
    found = []
    for root, samples in chains.items():
        truth = true_parameters(root)
        if params is not None:
            check_params(root, samples, params)
        for name in params or samples.paramNames.list():
            if params is None and name.startswith(NO_PARAMETERS):
                continue
            index = samples.paramNames.numberOfName(name)
            values = samples.mean(name), samples.std(name), samples.getEffectiveSamples(index)
            found.append(Marginal(Path(root).name, name, *map(float, values), truth.get(name)))
    return found


def format_marginals(found: list[Marginal]) -> str:
    """The table that `cnnlens plot` prints, two digits of every error."""
    rows = [("chain", "parameter", "mean", "+-", "effective samples", "truth", "(mean-truth)/+-")]
    for m in found:
        digits = max(0, 1 - math.floor(math.log10(m.sigma))) if m.sigma > 0 else 0
        form = f".{digits}f" if digits < 8 else ".3e"
        truth = "" if m.truth is None else f"{m.truth:.6g}"
        pull = "" if m.pull is None else f"{m.pull:+.2f}"
        numbers = f"{m.mean:{form}}", f"{m.sigma:{form}}", f"{m.effective:.0f}"
        rows.append((m.chain, m.parameter, *numbers, truth, pull))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(w) if i < 2 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
