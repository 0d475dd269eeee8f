"""Network files as files: their hash, and whether a release was made with one. A light
installation is enough for that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NetworkError
from ..release import Release

if TYPE_CHECKING:
    from ..config import Config


def network_hash(path: str | Path) -> str:
    """SHA-256 of the network file, as ``sha256sum`` prints it.

    Raises
    ------
    NetworkError
        if the file cannot be read
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise NetworkError(
            f"{path}: the network cannot be read ({error.strerror}); run `cnnlens train`, or name "
            "a network file under 'network.pretrained' in the configuration"
        ) from None


def networks_hash(paths: Iterable[str | Path]) -> str:
    """The file's hash of one network; of several, SHA-256 of their sorted hashes as text."""
    hashes = sorted(network_hash(path) for path in paths)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def estimator_hash(config: Config) -> str:
    """What stands for a configuration's estimator in recipes: the hash of its network or networks,
    or of its baseline's recipe."""
    if config.baseline is not None:
        from ..products import identity_of

        return identity_of(config.baseline_recipe())
    return networks_hash(config.network_paths)


def check_network(release: Release, paths: Iterable[str | Path]) -> None:
    """Refuse networks that did not make the release.

    Raises
    ------
    NetworkError
        if the hashes differ
    """
    paths = list(paths)
    made_with, found = release.provenance.get("network_sha256"), networks_hash(paths)
    if made_with != found:
        raise NetworkError(
            f"{', '.join(map(str, paths))}: its hash is {found[:16]}…, but release "
            f"'{release.name}' names {str(made_with)[:16]}… in field 'provenance.network_sha256'; "
            "use the network that made the release, or make the release again"
        )
