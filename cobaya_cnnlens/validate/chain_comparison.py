"""Has a chain the means and widths of the reference posterior of its shipped input?"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

from ..errors import CNNLensError
from ..likelihood.release import read_release
from ..likelihood.selfcheck import different_settings
from .chains import Chain, quiet
from .reference import Marginal, Reference, closest_input, content_of, read_reference
from .truths import CLASS_NAMES, EMULATOR, LIKELIHOOD, blocks_of
from .verification import MOCK, Check, Verification, check_digest

# A mean (in σ) and a width (relative) may differ by this from other causes than the number of
# samples; how many standard errors of both chains are added; how many samples that needs.
MEAN_TOLERANCE, WIDTH_TOLERANCE, ERRORS, FEWEST = 0.1, 0.05, 4.0, 50


def compare_chain(chain: Chain) -> Verification:
    """Compare means and widths of a chain with the reference posterior of a shipped input.

    A mean may be off by (0.1 + 4 √(1/n + 1/n_ref)) σ, and a width by 5% + 4 √(1/2n + 1/2n_ref),
    with n the effective samples of the parameter in each chain: four standard errors, and what an
    allowed error of the theory makes.

    Parameters
    ----------
    chain : as :func:`.chains.load_chain` reads it

    Returns
    -------
    verification : without checks, and with a remark, if the input is of no shipped posterior
    """
    reference = read_reference()
    closest = reference.closest(content_of(chain.info))
    checks = _check_versions(chain.info, reference)
    if closest is None or closest[1]:
        title = f"{chain.root} is not compared with a reference posterior."
        return Verification(title, checks, closest_input(chain.info, reference))
    name = closest[0]
    columns = {CLASS_NAMES.get(column, column): column for column in chain.names}
    for parameter, marginal in reference.posteriors[name].marginals.items():
        if parameter in columns:
            checks.append(_check_marginal(chain, columns[parameter], marginal))
    wrong = any(check.fault for check in checks)
    remarks = _other_settings(chain.info, columns) if wrong else ()
    title = f"{chain.root} against the reference posterior of {name}.yaml"
    return Verification(title, checks, remarks)


def _other_settings(info: Mapping[str, Any], parameters: Container[str]) -> tuple[str, ...]:
    """What the theory of a chain has set otherwise than that of the reference posterior."""
    made_with = dict(read_release(MOCK).theory["settings"])
    if "HMCode_logT_AGN" in parameters:
        made_with["halofit_version"] = "mead2020_feedback"
    try:
        differ = "; ".join(different_settings(info.get("theory") or {}, made_with))
    except CNNLensError:  # the emulator is not here any more
        return ()
    return (f"The theory of the chain has other settings: {differ}.",) if differ else ()


def _check_versions(info: Mapping[str, Any], reference: Reference) -> list[Check]:
    """Whether a chain was made with the shipped files that its input names."""
    checks = []
    for kind, section, component in (
        ("release", "likelihood", LIKELIHOOD),
        ("emulator", "theory", EMULATOR),
    ):
        digests = getattr(reference, kind)
        for block in blocks_of(info.get(section), component).values():
            source, version = block.get(kind), block.get("version")
            if version and isinstance(source, str) and source in digests:
                checks.append(check_digest(kind, source, version, (source,), digests))
    return checks


def _check_marginal(chain: Chain, column: str, reference: Marginal) -> Check:
    """Mean and width of one parameter against the reference's."""
    samples = chain.samples
    with quiet():
        mean, sigma = float(samples.mean(column)), float(samples.std(column))
        n = float(samples.getEffectiveSamples(samples.paramNames.numberOfName(column)))
    error = math.sqrt(1.0 / max(n, 1.0) + 1.0 / reference.effective)
    mean_limit = MEAN_TOLERANCE + ERRORS * error
    width_limit = WIDTH_TOLERANCE + ERRORS * error / math.sqrt(2.0)
    shift, stretch = (mean - reference.mean) / reference.sigma, sigma / reference.sigma - 1.0
    faults = []
    if not n >= FEWEST:
        faults.append(
            f"{n:.0f} effective samples are too few for a comparison, which needs {FEWEST}: "
            "continue the chain (cobaya-run -r) with a lower Rminus1_stop"
        )
    if not abs(shift) < mean_limit:
        faults.append(f"the mean is off by {shift:+.2f} sigma")
    if not abs(stretch) < width_limit:
        faults.append(f"the width is off by {100 * stretch:+.0f}%")
    return Check(
        column,
        f"{reference.mean:.6g} ± {reference.sigma:.2g}",
        f"{mean:.6g} ± {sigma:.2g}",
        f"{mean_limit:.2f} sigma, {100 * width_limit:.0f}%",
        "; ".join(faults),
    )
