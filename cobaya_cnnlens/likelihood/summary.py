"""A release as text, which `cnnlens release show` prints."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..table import text_table
from .combined import calibration_digest
from .declarations import BLINDED
from .fields import NUISANCES, Group
from .release import Release


def release_table(release: Release) -> str:
    """What a release is and where it came from, its bandpowers with errors, and what an instrument
    that is off does to them.

    Parameters
    ----------
    release : read from a file, or made

    Returns
    -------
    several blocks of lines
    """
    head = [release.name, release.description, ""]
    if release.blinding:
        head += [BLINDED]
    head += [f"warning: {warning}" for warning in release.warnings]
    facts = {
        "patches in the survey": release.n_patches,
        "simulations (covariance)": release.n_sim,
        "digest of the calibration": calibration_digest(release),
        **({} if release.blinding is None else {"blinded with the key": release.blinding.key}),
        "instrument": release.instrument,
        **({} if release.truth is None else {"truth of the mock": release.truth}),
        "theory": release.theory,
        "provenance": {k: v for k, v in release.provenance.items() if k != "warnings"},
        "bands of C^kk": _bands("L", release.kk_edges),
        "noise debias": "data or fixed" if release.has(Group.DEBIAS) else "fixed",
        **_rotation(release),
    }
    return "\n".join([*head, *_lines(facts), "", _bandpowers(release), "", _nuisances(release)])


def _rotation(release: Release) -> dict[str, str]:
    if not release.has(Group.ROTATION):
        return {}
    angles = (f"{angle:.4f} ± {error:.4f} deg" for angle, error, _ in release.rotation)
    return {"measured rotation": ", ".join(angles)}


def _bands(multipole: str, edges: np.ndarray) -> str:
    return f"{len(edges) - 1}, {multipole} {edges[0]}-{edges[-1]}"


def _lines(content: dict[str, Any], indent: int = 0) -> list[str]:
    lines = []
    for key, value in content.items():
        pad = " " * indent
        if isinstance(value, dict):
            lines += [f"{pad}{key}", *_lines(value, indent + 2)]
        else:
            lines.append(f"{pad}{key:26s}  {value}")
    return lines


def _bins(release: Release) -> tuple[str, list[str]]:
    return ">", [f"{low}-{high}" for low, high in itertools.pairwise(release.edges)]


def _bandpowers(release: Release) -> str:
    sigma, noise_error = (
        np.sqrt(np.diag(c)) for c in (release.covariance, release.noise_covariance)
    )
    blinded = "blinded " if release.blinding else ""
    return text_table(
        {
            "L": _bins(release),
            "d_b": (".3f", 1e9 * (release.bandpowers - release.correction)),
            "sigma": (".3f", 1e9 * sigma),
            "N_b (fid)": (".3f", 1e9 * release.noise),
            "MC(N)": (".3f", 1e9 * noise_error),
            "fiducial": (".3f", 1e9 * release.fiducial_bandpowers),
            "R": (".4f", release.response),
        },
        f"{blinded}bandpowers in units of 1e-9, "
        "debiased by the survey's own E and B power if it is held",
    )


def _nuisances(release: Release) -> str:
    steps = release.nuisance_steps
    shifts = release.nuisance_first * steps + release.nuisance_second * steps**2
    columns = {
        f"{name} {step:g}": ("+.4f", shift / release.fiducial_bandpowers)
        for name, step, shift in zip(NUISANCES, steps, shifts.T, strict=True)
    }
    if release.has(Group.DEBIAS):
        step = release.rotation_step
        shift = release.rotation_second * step**2
        columns[f"rotation {step:g}"] = ("+.4f", shift / release.fiducial_bandpowers)
    title = "shift of d_b over the fiducial, the instrument off by"
    return text_table({"L": _bins(release), **columns}, title)
