"""The runs that commands are given, once it is known that what they need is there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import CNNLensError, ConfigError, ReleaseError

if TYPE_CHECKING:
    from ..likelihood.encryption import BlindingKey
    from ..likelihood.release import Release
    from ..pipeline.run import Run

# What the `pipeline` extra installs and a light installation may lack, but for TensorFlow: Keras
# runs on jax too.
PIPELINE_PACKAGES = ("ducc0", "healpy", "keras", "pydantic", "tqdm", "yaml")


def load(path: Path) -> Run:
    """The run of a configuration.

    Parameters
    ----------
    path : of the configuration (YAML), or FILE#MEMBER of a study

    Returns
    -------
    run : the configuration with its products
    """
    need_pipeline()
    from ..pipeline.loading import load_config
    from ..pipeline.run import Run

    return Run(load_config(path))


def load_study(path: Path) -> list[Run]:
    """The runs of a study's members.

    Parameters
    ----------
    path : of the study (YAML)

    Returns
    -------
    runs : one for each member
    """
    need_pipeline()
    from ..pipeline.loading import load_study
    from ..pipeline.run import Run

    return [Run(config) for config in load_study(path).values()]


def need_pipeline() -> None:
    """Tell what to install, if it is the pipeline that is missing, before anything starts.

    Raises
    ------
    CNNLensError
        if a package is not there
    """
    for name in PIPELINE_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise not_installed(name)


def threads() -> int:
    """How many threads OMP_NUM_THREADS allows; 0, which takes all cores, where it is not set.

    Returns
    -------
    threads : at least 0. Results do not depend on it

    Raises
    ------
    ConfigError
        If the variable holds no number.
    """
    value = os.environ.get("OMP_NUM_THREADS", "") or "0"
    first = value.partition(",")[0].strip()  # a list has a number for each level of nesting
    if not first.isdecimal():
        raise ConfigError(f"OMP_NUM_THREADS is {value!r:.60}; give a number of threads")
    return int(first)


def warn(source: str | Path, warnings: Iterable[str]) -> None:
    """Print warnings of a file or of maps.

    Parameters
    ----------
    source : what the warnings are of
    warnings : texts
    """
    for warning in warnings:
        typer.secho(f"warning: {source}: {warning}", fg="yellow", err=True)


def blinding_key(path: Path, file: Path | None) -> BlindingKey | None:
    """The key that blinds a release, before anything slow.

    Parameters
    ----------
    path : where the release will be written
    file : that holds the key; None for an open release

    Returns
    -------
    the key, or None

    Raises
    ------
    ConfigError
        if an open release would take the place of a blinded one
    CNNLensError
        if the file holds no key
    """
    from ..likelihood.encryption import read_key
    from ..likelihood.release import read_release

    if file is not None:
        return read_key(file)
    with contextlib.suppress(ReleaseError):
        if read_release(path).blinding:
            raise ConfigError(
                f"{path}: holds a blinded release, which an open one would give away; blind this "
                "one too with --blind KEY, or name another file with --out"
            )
    return None


def write_made(made: Release, path: Path, key: BlindingKey | None) -> None:
    """Write a release that was made, blinded if there is a key, and print its path.

    Parameters
    ----------
    made : the open release
    path : destination
    key : of :func:`blinding_key`
    """
    from ..likelihood.release import write_release

    if key is not None:
        from ..maps.release_estimator import blinded

        made = blinded(made, key)
    write_release(made, path)
    warn(path, made.warnings)
    typer.echo(path)


def not_installed(package: str) -> CNNLensError:
    """The error of a command that needs the pipeline where it is not installed.

    Parameters
    ----------
    package : the one that is missing

    Returns
    -------
    error : to be raised
    """
    extra = "pipeline-jax" if package == "jax" else "pipeline"
    return CNNLensError(
        f"this command needs the pipeline, of which {package} is not installed; "
        f"install it with: pip install '.[{extra}]'"
    )


def ready(run: Run) -> Run:
    """Check that the run's network is there, before Keras is loaded.

    Parameters
    ----------
    run : a configuration, with its products and networks

    Returns
    -------
    run : the same; bandpowers that are shipped do not replace the network

    Raises
    ------
    CNNLensError
    If a network is missing, or Keras has another backend than TensorFlow or JAX.
    """
    from ..pipeline import networks
    from ..reconstruct import check_backend
    from ..reconstruct.files import networks_hash

    _ = run.estimator_id
    if run.config.baseline is None:
        check_backend()
        networks_hash(networks.paths(run))
    return run
