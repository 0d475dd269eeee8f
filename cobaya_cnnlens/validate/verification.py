"""Check an installation, and the theory of a Cobaya input (docs/check.md).

The data are a noiseless mock: a release whose bandpowers and power are those of its model at its
fiducial cosmology, the *mock point*. χ² is 0 there, and has a known value at a second point. A
theory whose bandpowers are off by ε σ changes χ² by at most ε² + 2ε √χ². The limits at both points
are for ε = 0.1, at which the likelihood warns too. :mod:`.chain_comparison` checks a chain.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from cobaya.input import update_info
from cobaya.log import LoggedError
from cobaya.yaml import InputSyntaxError, yaml_load_file
from packaging.requirements import Requirement
from tqdm import tqdm

from .. import __version__
from ..errors import CNNLensError
from ..files import given_path
from ..likelihood.cnnlens import THEORY_TOLERANCE, CNNLens
from ..likelihood.release import Group, Release, digest_of_numbers, is_shipped, read_release
from ..likelihood.selfcheck import offset_of, silent, spectra_of
from ..table import text_table
from ..theory.emulator_files import read_emulator
from .reference import Reference, closest_input, read_reference
from .truths import EMULATOR, LIKELIHOOD, blocks_of

PACKAGE = "cobaya_cnnlens"
COMPONENT, EMULATED_CAMB = f"{PACKAGE}.{LIKELIHOOD}", f"{PACKAGE}.{EMULATOR}"
# The release of the installation's noiseless mock.
MOCK = "refined_fiducial"
# Steps from the mock point to the second point; H0 in km/s/Mpc.
STEPS = {"omch2": 0.001, "ns": 0.005, "H0": -0.5}
# Emulators whose range contains both points.
EMULATORS = ("lcdm", "mnu")
AGAIN = "Install the package again."
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Check:
    """One line of the table, as text: an item, its expected value, the value found and the limit.

    ``fault`` says what is wrong, why, and how to correct it. It is empty if nothing is wrong.
    """

    item: str
    expected: str
    found: str
    limit: str = ""
    fault: str = ""

    @property
    def verdict(self) -> str:
        """The verdict in one word. An item without a limit was not compared."""
        if self.fault:
            return "FAILS"
        return "passes" if self.limit else "not compared"


# The name of a step, which the progress bar shows, and the function that it runs.
Steps: TypeAlias = dict[str, Callable[[], list[Check]]]


@dataclass(frozen=True)
class Verification:
    """Checks under a title, and ``remarks``, which report no fault."""

    title: str
    checks: list[Check]
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no check has a fault."""
        return not any(check.fault for check in self.checks)

    def table(self) -> str:
        """As text: a line for each check, then the faults."""
        names = ("item", "expected", "found", "limit", "verdict")
        columns = {name: ("", [getattr(c, name) for c in self.checks]) for name in names}
        lines = [text_table(columns, self.title)] if self.checks else [self.title]
        lines += [f"fault: {c.item}: {c.fault}" for c in self.checks if c.fault]
        return "\n".join([*lines, *self.remarks])


def noiseless(release: Release, noise_debias: str) -> Release:
    """Make the mock whose data are the model at the fiducial cosmology of its release.

    Parameters
    ----------
    release : gives the calibration of the mock
    noise_debias : option of the likelihood that will read the mock

    Returns
    -------
    mock : a release whose χ² is 0 at the fiducial spectra
    """
    if not release.has(Group.DEBIAS) or noise_debias != "data":
        return replace(release, bandpowers=release.fiducial_bandpowers)
    mock = replace(release, power=release.fiducial_power)
    if release.rotation.size:  # an angle equal to its error is the estimate of no rotation
        _, error, share = release.rotation.T
        mock = replace(mock, rotation=np.stack([error, error, share], axis=1))
    return replace(mock, bandpowers=release.fiducial_bandpowers + mock.correction)


def second_point(cosmology: Mapping[str, float]) -> dict[str, float]:
    """The point at which the noiseless mock has the second expected χ².

    Parameters
    ----------
    cosmology : the mock point, which is the fiducial one of a release

    Returns
    -------
    cosmology : the mock point, changed by :data:`STEPS`
    """
    return {name: value + STEPS.get(name, 0.0) for name, value in cosmology.items()}


def limit_of(chi2: float) -> float:
    """How far χ² may be from an expected one.

    Parameters
    ----------
    chi2 : the expected χ²

    Returns
    -------
    limit : for bandpowers that are off by 0.1 σ in the worst direction
    """
    return THEORY_TOLERANCE**2 + 2.0 * THEORY_TOLERANCE * math.sqrt(chi2)


def check_installation() -> Verification:
    """Check the packages, the shipped files, and the likelihood with CAMB and with emulators.

    CAMB runs twice. A bar on the terminal shows the present step.

    Returns
    -------
    verification : passes on a good installation
    """
    reference = read_reference()
    checks = _run(
        {
            "packages": lambda: [_check_packages()],
            "releases": lambda: [check_release(name, reference) for name in reference.release],
            "emulators": lambda: [check_emulator(name, reference) for name in reference.emulator],
        }
    )
    if all(check.found != UNREADABLE for check in checks):
        checks += _run(_installation_steps(reference))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("cobaya", "camb"))
    python = ".".join(map(str, sys.version_info[:3]))
    return Verification(f"{PACKAGE} {__version__}, {versions}, Python {python}", checks)


def _installation_steps(reference: Reference) -> Steps:
    """Steps that run a theory: the likelihood with the data, and each theory with the mock."""
    with silent():
        component = CNNLens({"release": MOCK})
    settings = component.release_data.theory["settings"]
    names = "lens_potential_accuracy", "halofit_version"
    camb = {name: settings[name] for name in names} | {"num_massive_neutrinos": 1}
    theories: dict[str, dict[str, Any]] = {
        f"emulator {name}": {EMULATED_CAMB: {"emulator": name}} for name in EMULATORS
    }
    theories["camb"] = {"camb": {"extra_args": camb}}
    steps: Steps = {f"data {MOCK}": lambda: [_check_data(theories["emulator lcdm"], reference)]}
    for name, block in theories.items():
        steps[name] = partial(check_theory, block, component, reference.chi2_second, name)
    return steps


def check_input(path: str | os.PathLike[str]) -> Verification:
    """Check the releases, the emulators and the theory that a Cobaya input names.

    Parameters
    ----------
    path : of the input

    Returns
    -------
    verification : passes if the theory gives the expected χ² for the noiseless mock of the input's
        own release.

    Raises
    ------
    CNNLensError
        If the file is no input with a CNNLens likelihood and a theory.
    """
    reference, info = read_reference(), read_input(path)
    blocks = blocks_of(info["likelihood"], LIKELIHOOD)
    emulators = blocks_of(info["theory"], EMULATOR).values()
    releases = [name for block in blocks.values() for name in _listed(block, "release")]
    files: Steps = {
        "releases": lambda: [check_release(name, reference) for name in releases],
        "emulators": lambda: [
            check_emulator(name, reference)
            for block in emulators
            for name in _listed(block, "emulator")
        ],
    }
    checks = _run(files)
    if all(check.found != UNREADABLE for check in checks):
        steps: Steps = {n: partial(_check_block, info["theory"], n, b) for n, b in blocks.items()}
        checks += _run(steps)
    return Verification(f"{path}", checks, closest_input(info, reference))


def read_input(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Cobaya input, and complete it with the defaults of its components.

    Parameters
    ----------
    path : of the input

    Returns
    -------
    info : the input

    Raises
    ------
    CNNLensError
        If the file is no input with a CNNLens likelihood and a theory.
    """
    try:
        info = yaml_load_file(str(given_path(path)))
        for section in ("likelihood", "theory"):
            if not (isinstance(info, Mapping) and isinstance(info.get(section), Mapping)):
                raise CNNLensError(f"{path}: section '{section}' is missing; give a Cobaya input")
        info = with_defaults(info)
    except (OSError, LoggedError, UnicodeDecodeError, InputSyntaxError) as error:
        said = " ".join(str(error).split())
        raise CNNLensError(f"{path}: cannot be read as a Cobaya input ({said:.300})") from None
    if not blocks_of(info["likelihood"], LIKELIHOOD):
        raise CNNLensError(f"{path}: section 'likelihood' has no {COMPONENT}; add one")
    return info


def with_defaults(info: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an input with the defaults of our likelihood and of its theories.

    Parameters
    ----------
    info : a Cobaya input

    Returns
    -------
    info : its likelihoods, theories and parameters. Samplers and other likelihoods may not be
        installed, so they are not imported.
    """
    likelihoods = {name: block or {} for name, block in info["likelihood"].items()}
    ours = blocks_of(likelihoods, LIKELIHOOD)
    with silent():
        sections = {key: info.get(key) or {} for key in ("theory", "params")}
        completed = update_info({"likelihood": ours, **sections})
    return {**completed, "likelihood": likelihoods | completed["likelihood"]}


def check_release(source: Any, reference: Reference) -> Check:
    """Whether a release is the shipped one whose name it has.

    Parameters
    ----------
    source : name of a shipped release, or path
    reference : the expected digests

    Returns
    -------
    check : a release of another name passes
    """
    try:
        release = read_release(source)
    except CNNLensError as error:
        expected = reference.release.get(str(source), "")
        mend = AGAIN if is_shipped(source) else ""
        return Check(f"release {source}", expected, UNREADABLE, "equal", f"{error}. {mend}")
    names = (str(source), Path(str(source)).stem, release.name)
    return check_digest("release", source, digest_of_numbers(release), names, reference.release)


def check_emulator(source: Any, reference: Reference) -> Check:
    """Whether an emulator is the shipped one whose name it has.

    Parameters
    ----------
    source : name of a shipped emulator, or path
    reference : the expected digests

    Returns
    -------
    check : an emulator of another name passes
    """
    try:
        emulator = read_emulator(source)
    except CNNLensError as error:
        expected = reference.emulator.get(str(source), "")
        mend = AGAIN if expected and not Path(str(source)).is_file() else ""
        fault = f"the emulator is truncated or damaged: {error}. {mend}".strip()
        return Check(f"emulator {source}", expected, UNREADABLE, "equal", fault)
    names = (str(source), Path(str(source)).stem.removeprefix("emulator_"))
    return check_digest("emulator", source, emulator.digest, names, reference.emulator)


def check_digest(
    kind: str, source: Any, found: str, names: Iterable[str], digests: Mapping[str, str]
) -> Check:
    """Compare a digest with that of the shipped file that has one of the names, if any.

    Parameters
    ----------
    kind : "release" or "emulator"
    source : as the input names it
    found : the digest
    names : names of the file, of which one may be that of a shipped file
    digests : of the shipped files by name

    Returns
    -------
    check : a file that has no shipped name passes
    """
    item = f"{kind} {source}"
    name = next((name for name in names if name in digests), None)
    if name is None:
        return Check(item, "a file of your own", found)
    if found == digests[name]:
        return Check(item, digests[name], found, "equal")
    other = next((f" It is {key}." for key, value in digests.items() if value == found), "")
    own = f"Name the shipped {kind} itself, or give your own another name."
    return Check(
        item,
        digests[name],
        found,
        "equal",
        f"other {kind}: its numbers are not those of the shipped {name}.{other} Results do not "
        f"compare with it. {own if Path(str(source)).is_file() else AGAIN}",
    )


def _check_packages() -> Check:
    """Whether the required packages have the required versions."""
    needed = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    needed = [package for package in needed if package.marker is None]
    wrong = []
    for package in needed:
        try:
            version = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not package.specifier.contains(version, prereleases=True):
            wrong.append(f"{package.name} {version} (needed: {package.specifier})")
    n = len(needed)
    fault = f"{'; '.join(wrong)}. Install what is missing or too old." if wrong else ""
    return Check("packages", f"{n} new enough", f"{n - len(wrong)}", "equal", fault)


def _check_data(theories: Mapping[str, Any], reference: Reference) -> Check:
    """χ² of a shipped mock survey, with its noise, by the component within Cobaya."""
    from cobaya.model import get_model

    block = {"release": MOCK, "instrument": "known", "check_theory": False}
    expected, item = reference.chi2_data, f"data {MOCK}"
    try:
        with silent():
            model = get_model(
                {
                    "likelihood": {COMPONENT: block},
                    "theory": dict(theories),
                    "params": read_release(MOCK).theory["cosmology"],
                    "stop_at_error": True,
                }
            )
            _, derived = model.loglikes({}, as_dict=True)
            model.close()
    except (LoggedError, CNNLensError) as error:
        return _unreachable(item, expected, error)
    found, limit = float(derived["cnnlens_chi2"]), limit_of(expected)
    fault = ""
    if not abs(found - expected) < limit:
        fault = f"the likelihood gives another chi2 for the shipped data. {AGAIN}"
    return Check(item, f"chi2 {expected:.2f}", f"{found:.2f}", f"{limit:.2f}", fault)


def check_theory(
    theories: Mapping[str, Any], component: CNNLens, expected: float | None, name: str
) -> list[Check]:
    """Compare χ² of the noiseless mock at two points, with a theory, to the expected values.

    Parameters
    ----------
    theories : the ``theory`` block of a Cobaya input
    component : the likelihood, with its options
    expected : χ² at the second point; None if it is not known
    name : of the theory in the table

    Returns
    -------
    checks : of both points; of the first alone if that fails, or the second is not known
    """
    release = component.release_data
    mock = component.likelihood_of(noiseless(release, component.noise_debias))
    mock.doubt_said = True  # what is doubtful is the fault that is told
    cosmology = dict(release.theory["cosmology"])
    checks: list[Check] = []
    for point, place, chi2 in (
        (cosmology, "mock point", 0.0),
        (second_point(cosmology), "second point", expected),
    ):
        if chi2 is None or any(check.fault for check in checks):
            break
        item = f"{name}, {place}"
        try:
            spectra = spectra_of(theories, mock, point)
            found = mock.chi2(*spectra)
        except Exception as error:  # a foreign theory code may raise anything
            checks.append(_unreachable(item, chi2, error))
            break
        limit, fault = limit_of(chi2), ""
        if not abs(found - chi2) < limit:
            fault = (
                offset_of(theories, component.likelihood, *spectra).describe(release.edges)
                if not checks
                else "the theory is right at the mock point and wrong here, where "
                f"{', '.join(STEPS)} are others; look at how it takes its parameters"
            )
        checks.append(Check(item, f"chi2 {chi2:.3f}", f"{found:.3f}", f"{limit:.2f}", fault))
    return checks


def _unreachable(item: str, chi2: float, error: Exception) -> Check:
    said = " ".join(str(error).split())
    return Check(
        item, f"chi2 {chi2:.3f}", "none", "", f"no chi2 ({type(error).__name__}: {said:.500})"
    )


def _check_block(theories: Mapping[str, Any], name: str, block: Mapping[str, Any]) -> list[Check]:
    """The checks of one CNNLens likelihood of an input."""
    try:
        with silent():
            component = CNNLens(dict(block), name=name)
    except LoggedError as error:
        return [_unreachable(name, 0.0, error)]
    if not component.check_theory or "cosmology" not in component.release_data.theory:
        why = "check_theory: false" if not component.check_theory else "no fiducial cosmology"
        return [Check(f"{name}, theory", "", why)]
    mock = component.likelihood_of(noiseless(component.release_data, component.noise_debias))
    point = second_point(component.release_data.theory["cosmology"])
    try:
        spectra = spectra_of({EMULATED_CAMB: {"emulator": "lcdm"}}, mock, point)
        expected = mock.chi2(*spectra)
    except (CNNLensError, LoggedError):  # the point is outside of the shipped emulator's box
        expected = None
    theory = " + ".join(theories)
    return check_theory(theories, component, expected, theory)


def _listed(block: Mapping[str, Any], option: str) -> list[Any]:
    given = block.get(option)
    return list(given) if isinstance(given, list | tuple) else [given]


def _run(steps: Steps) -> list[Check]:
    """Run the steps one by one. A bar on a terminal names the present step."""
    checks: list[Check] = []
    with tqdm(steps.items(), desc="check", unit="step", leave=False, disable=None) as bar:
        for name, step in bar:
            bar.set_postfix_str(name)
            checks += step()
    return checks
