"""Expected numbers of the shipped files: digests, χ² at two points, and posteriors of the inputs.

They are in ``data/reference.json``, which ``python -m tests.reference`` makes from the shipped
releases, emulators and inputs. :mod:`.verification` compares an installation, an input or a chain
with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from ..errors import CNNLensError
from ..likelihood.combined import combine
from ..likelihood.release import digest_of_numbers, read_release
from ..theory.camb import Cosmology
from .truths import CLASS_NAMES, LIKELIHOOD, blocks_of

REFERENCE = files("cobaya_cnnlens.validate") / "data" / "reference.json"
# Options of the likelihood that change a posterior; the release counts by its digest.
OPTIONS = (
    *("instrument", "noise_debias", "statistics", "L_min", "L_max"),
    *("calibration_errors", "primary"),
)
# Fixed parameters that change no posterior if they are left out: their defaults.
DEFAULTS = {**asdict(Cosmology()), "Alens": 1.0}


@dataclass(frozen=True)
class Marginal:
    """Reference posterior of one parameter: mean, standard deviation, and the effective number of
    independent samples behind both."""

    mean: float
    sigma: float
    effective: float


@dataclass(frozen=True)
class Posterior:
    """Reference posterior of a shipped input.

    Attributes
    ----------
    content : what determines the posterior, as :func:`content_of` gives it
    marginals : by parameter, sampled and derived
    """

    content: dict[str, Any]
    marginals: dict[str, Marginal]


@dataclass(frozen=True)
class Reference:
    """Expected numbers.

    Attributes
    ----------
    made_with : versions of the packages that made them
    release, emulator : digests of the shipped files by name
    chi2_second : χ² of the noiseless mock of ``refined_fiducial`` at the second point, by CAMB
    chi2_data : χ² of ``refined_fiducial`` itself at the mock point, by CAMB
    posteriors : of the shipped inputs, by name
    """

    made_with: dict[str, str]
    release: dict[str, str]
    emulator: dict[str, str]
    chi2_second: float
    chi2_data: float
    posteriors: dict[str, Posterior]

    def closest(self, content: Mapping[str, Any]) -> tuple[str, list[str]] | None:
        """The shipped input that samples the same parameters and differs least.

        Parameters
        ----------
        content : of another input, as :func:`content_of` gives it

        Returns
        -------
        name, and the differences as text; None if no shipped input samples the same parameters
        """
        found = {
            name: self._differences(content, posterior.content)
            for name, posterior in self.posteriors.items()
            if _sampled(posterior.content) == _sampled(content)
        }
        return min(found.items(), key=lambda item: len(item[1])) if found else None

    def _differences(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        names = {digest: name for name, digest in self.release.items()}
        told = []
        for key in dict.fromkeys([*one, *other]):
            default = 0.0 if key.startswith("cnnlens_") else DEFAULTS.get(key)
            theirs, ours = one.get(key, default), other.get(key, default)
            if theirs != ours:
                values = [names.get(str(value), value) for value in (theirs, ours)]
                told.append(f"{key}: {values[0]} (there: {values[1]})")
        return told


def read_reference() -> Reference:
    """The expected numbers that come with the package.

    Returns
    -------
    reference : digests, χ² and posteriors

    Examples
    --------
    >>> sorted(read_reference().emulator)
    ['feedback', 'lcdm', 'mnu']
    """
    content = json.loads(REFERENCE.read_text(encoding="utf-8"))
    posteriors = {
        name: Posterior(
            entry["content"], {key: Marginal(*row) for key, row in entry["marginals"].items()}
        )
        for name, entry in content.pop("posteriors").items()
    }
    return Reference(**content, posteriors=posteriors)


def content_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the posterior of an input, whatever its theory code and its sampler are.

    Parameters
    ----------
    info : the input with its defaults, as Cobaya writes it beside a chain

    Returns
    -------
    content : options of each CNNLens likelihood with the digest of its release, the other
        likelihoods, and by parameter its prior or its fixed value; CLASS's names are CAMB's.
    """
    likelihoods = info.get("likelihood") or {}
    blocks = blocks_of(likelihoods, LIKELIHOOD)
    content: dict[str, Any] = {}
    for name, block in blocks.items():
        before = "" if len(blocks) == 1 else f"{name} "
        content[f"{before}release"] = _digest(block)
        content |= {f"{before}{option}": block.get(option) for option in OPTIONS}
    content |= {name: "in use" for name in likelihoods if name not in blocks}
    for name, entry in (info.get("params") or {}).items():
        entry = entry if isinstance(entry, Mapping) else {"value": entry}
        if "prior" in entry:
            content[CLASS_NAMES.get(name, name)] = {"prior": _plain(entry["prior"])}
        elif entry.get("value") is not None:
            content[CLASS_NAMES.get(name, name)] = _plain(entry["value"])
    return content


def closest_input(info: Mapping[str, Any], reference: Reference) -> tuple[str, ...]:
    """In one line, the shipped input that an input is like, and where they differ.

    Parameters
    ----------
    info : the input, with its defaults
    reference : contents of the shipped inputs

    Returns
    -------
    remarks : of a :class:`.verification.Verification`
    """
    closest = reference.closest(content_of(info))
    if closest is None:
        return ("No shipped input samples the same parameters.",)
    name, differences = closest
    if not differences:
        return (f"The data, options and priors are those of the shipped input {name}.yaml.",)
    return (f"The closest shipped input is {name}.yaml; it differs in {'; '.join(differences)}.",)


def _digest(block: Mapping[str, Any]) -> str:
    if block.get("version"):
        return str(block["version"])
    sources: Any = block.get("release")
    try:
        sources = sources if isinstance(sources, list | tuple) else [sources]
        return digest_of_numbers(combine([read_release(source) for source in sources]))
    except CNNLensError:
        return str(sources)


def _sampled(content: Mapping[str, Any]) -> set[str]:
    return {name for name, entry in content.items() if isinstance(entry, dict)}


def _plain(value: Any) -> Any:
    """A prior or a value of which equal ones compare as equal, through JSON too."""
    if isinstance(value, Mapping):
        return {key: _plain(x) for key, x in value.items() if (key, x) != ("dist", "uniform")}
    if isinstance(value, list | tuple):
        return {side: _plain(x) for side, x in zip(("min", "max"), value, strict=False)}
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if isinstance(value, int | float) else value
