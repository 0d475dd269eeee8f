"""Chains of Cobaya, and the inputs that they were made with."""

from __future__ import annotations

from pathlib import Path

from getdist import loadMCSamples

import yaml

from ..errors import CNNLensError

LIKELIHOOD = "cobaya_cnnlens.CNNLens"


def load_chain(root: str):
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
        return loadMCSamples(root, no_cache=True, settings={"ignore_rows": 0.2})
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
