"""Which networks made a release: those that come with the package, or those that a user names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import NetworkError
from ..likelihood.release import DATA_DIRECTORY, Release, is_shipped
from ..reconstruct.files import estimator_hash, kind_of

NETWORKS = DATA_DIRECTORY / "networks"


def is_release(name: str | Path) -> bool:
    """Whether a command's argument is a release, by its name, rather than a configuration.

    Parameters
    ----------
    name : the argument

    Returns
    -------
    True for the name of a shipped release, and of a file that ends in ``.json``
    """
    return Path(name).suffix == ".json" or is_shipped(name)


def find_networks(release: Release, named: Sequence[str | Path] = ()) -> list[Path]:
    """The network or networks that made a release: those named, or a shipped one.

    Parameters
    ----------
    release : made with the networks
    named : files that a user names; none for a shipped network

    Returns
    -------
    the files

    Raises
    ------
    NetworkError
        if those named did not make it, or none of the shipped did
    """
    if named:
        check_network(release, named)
        return [Path(path) for path in named]
    made_with = str(release.provenance.get("network_sha256"))
    for path in sorted(NETWORKS.glob("*.keras")):
        if estimator_hash([path]) == made_with:
            return [path]
    raise NetworkError(
        f"release '{release.name}' was made with network {made_with[:16]}…, which does not come "
        "with the package; name its file with --network, or give the configuration that made the "
        "release instead"
    )


def check_network(release: Release, paths: Iterable[str | Path]) -> None:
    """Refuse networks that did not make the release.

    Parameters
    ----------
    release : made with the networks
    paths : files of the networks

    Raises
    ------
    NetworkError
        if the hashes differ, or the networks are of different kinds
    """
    paths = list(paths)
    made_with, given = release.provenance.get("network_sha256"), estimator_hash(paths)
    if made_with != given:
        hashed = "weights" if kind_of(paths) == "ResUNet" else "weights and features"
        raise NetworkError(
            f"{', '.join(map(str, paths))}: the hash of its {hashed} is {given[:16]}…, but release "
            f"'{release.name}' names {str(made_with)[:16]}… in field 'provenance.network_sha256'; "
            "use the network that made the release, or make the release again"
        )
