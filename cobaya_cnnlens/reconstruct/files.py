"""Network files as files: their hash, and whether a release was made with one. Loads no Keras."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import NetworkError
from ..release import Release


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


def check_network(release: Release, path: str | Path) -> None:
    """Refuse a network that did not make the release.

    Raises
    ------
    NetworkError
        if the hashes differ
    """
    made_with, found = release.provenance.get("network_sha256"), network_hash(path)
    if made_with != found:
        raise NetworkError(
            f"{path}: its hash is {found[:16]}…, but release '{release.name}' names "
            f"{str(made_with)[:16]}… in field 'provenance.network_sha256'; use the network that "
            "made the release, or make the release again"
        )
