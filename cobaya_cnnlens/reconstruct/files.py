"""Network files as files: what is in them, their hash, their metadata. No Keras here."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import NetworkError

# Networks by the name that Keras has them under.
# A learner is what a stopped training goes on from.
CLASSES = {
    f"cobaya_cnnlens>{name}": name for name in ("ResUNet", "RefiningUNet", "RefiningLearner")
}
# What reconstructs, as opposed to what training goes on from.
ESTIMATORS = ("ResUNet", "RefiningUNet")
# Of the features that a refining network reads, the ascent whose passes they are included: part of
# what stands for the network.
FEATURES_ALGORITHM = 2
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# Keras stores weights as they are: what unpacks to more than this many times its size is no
# network.
MAX_EXPANSION = 4
# Arguments of a ResUNet on which κ̂ does not depend, and those that older files leave out.
NOT_IN_HASH = {"name", "metadata", "dropout", "frozen_norm"}
DEFAULTS = {"noise_map": False, "polarisation": "e"}


@dataclass(frozen=True)
class NetworkFile:
    """A ``.keras`` file's content: the network's ``kind`` ("ResUNet" or "RefiningUNet"), its
    ``arguments``, and its ``weights`` by path."""

    kind: str
    arguments: dict[str, Any]
    weights: dict[str, np.ndarray]

    @property
    def metadata(self) -> dict[str, Any]:
        """What it was trained for."""
        return self.arguments.get("metadata") or {}


def read_network(path: str | Path) -> NetworkFile:
    """Read a network file without Keras, and without the state of the optimiser.

    Whoever gives a file to Keras reads it here first, because Keras builds whatever the file names,
    of any size.

    Parameters
    ----------
    path : of the ``.keras`` file

    Returns
    -------
    network : its kind, arguments and weights

    Raises
    ------
    NetworkError
        if the file is missing, damaged or no network of this package, if it unpacks to far more
        than its size, or if weights are not finite
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            limit = MAX_EXPANSION * path.stat().st_size + (1 << 20)
            if (size := sum(member.file_size for member in archive.infolist())) > limit:
                raise NetworkError(
                    f"{path}: {size} bytes inside a file of {path.stat().st_size}: no network is "
                    "compressed so; do not use it"
                )
            config = json.loads(archive.read(CONFIG))
            content = archive.read(WEIGHTS)
        if (kind := CLASSES.get(config.get("registered_name"))) is None:
            raise NetworkError(
                f"{path}: holds a {config['class_name']}, neither a ResUNet nor a RefiningUNet"
            )
        arguments, weights = config["config"], _read_weights(path, content)
        if (head := arguments.get("polarisation", "e")) != "e":
            raise NetworkError(
                f"{path}: 'polarisation' is {head!r:.20}; this version knows networks whose first "
                "output is unlensed E"
            )
        _check_weights(path, kind, arguments, weights)
    except OSError as error:
        raise NetworkError(
            f"{path}: the network cannot be read ({error.strerror or error}); run `cnnlens train`, "
            "or name a network file under 'network.pretrained' in the configuration"
        ) from None
    except NetworkError:
        raise
    # A damaged archive: zipfile and json raise much else (BadZipFile, zlib.error, KeyError, …).
    except Exception as error:
        raise NetworkError(
            f"{path}: cannot be read as a Keras model ({type(error).__name__}: "
            f"{str(error)[:200]}); the file is damaged: restore it or train again"
        ) from None
    return NetworkFile(kind, arguments, weights)


def _read_weights(path: Path, content: bytes) -> dict[str, np.ndarray]:
    datasets: dict[str, Any] = {}

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            datasets[name] = item

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(collect)
        if sum(item.nbytes for item in datasets.values()) > MAX_EXPANSION * len(content):
            raise NetworkError(f"{path}: '{WEIGHTS}' holds less than its arrays' sizes; not used")
        return {name: item[()] for name, item in sorted(datasets.items())}


def _check_weights(
    path: Path, kind: str, arguments: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> None:
    width = arguments["width"]
    # A ResUNet's widest layer, c7, has 4 width channels; a refining one doubles them at every level
    # up to that.
    times = 4 if kind == "ResUNet" else min(2 ** (arguments["levels"] - 1), 4)
    widest = max((w.shape[-1] for w in weights.values() if w.ndim == 4), default=0)
    if widest != times * width:
        raise NetworkError(
            f"{path}: is of width {width} by its '{CONFIG}' and {widest / times:g} by its weights; "
            "the file was edited: restore it or train again"
        )
    for name, values in weights.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NetworkError(
                f"{path}: weights '{name}' are not finite; train again with a lower learning rate"
            )


def network_hash(path: str | Path) -> str:
    """SHA-256 of what a network does: its architecture, normalisation and weights.

    The same weights saved on another day, by another version or with their optimiser are the same
    network.

    Parameters
    ----------
    path : of the ``.keras`` file

    Returns
    -------
    digest : 64 hexadecimal digits

    Raises
    ------
    NetworkError
        as :func:`read_network`
    """
    network = read_network(path)
    architecture = {
        k: v
        for k, v in network.arguments.items()
        if k not in NOT_IN_HASH and v != DEFAULTS.get(k, ...)
    }
    if network.kind != "ResUNet":
        architecture["kind"] = network.kind
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, values in network.weights.items():
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        digest.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def networks_hash(paths: Iterable[str | Path]) -> str:
    """Hash of networks that are used together.

    Parameters
    ----------
    paths : of the ``.keras`` files

    Returns
    -------
    digest : that of one network; of several, SHA-256 of their sorted hashes as text

    Raises
    ------
    NetworkError
        as :func:`read_network`
    """
    hashes = sorted(network_hash(path) for path in paths)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def kind_of(paths: Iterable[str | Path]) -> str:
    """The common kind of networks that are used together.

    Parameters
    ----------
    paths : of the ``.keras`` files

    Returns
    -------
    kind : one of :data:`ESTIMATORS`

    Raises
    ------
    NetworkError
        if a file cannot be read, holds no estimator, or they are of different kinds
    """
    kinds = {str(path): read_network(path).kind for path in paths}
    for path, kind in kinds.items():
        if kind not in ESTIMATORS:
            raise NetworkError(
                f"{path}: holds a {kind}, neither of {' and '.join(ESTIMATORS)}; name the network "
                "that training left"
            )
    if len(set(kinds.values())) > 1:
        named = ", ".join(f"{path} holds a {kind}" for path, kind in kinds.items())
        raise NetworkError(
            f"networks of different kinds have no mean: {named}; name those of one kind"
        )
    return next(iter(kinds.values()))


def estimator_hash(paths: Iterable[str | Path]) -> str:
    """Hash of the estimator that networks make.

    Refining networks read features, so that the version of the features enters too.

    Parameters
    ----------
    paths : of the ``.keras`` files

    Returns
    -------
    digest : :func:`networks_hash`; for refining networks SHA-256 of it and the version

    Raises
    ------
    NetworkError
        as :func:`kind_of`
    """
    paths = list(paths)
    digest = networks_hash(paths)
    if kind_of(paths) == "ResUNet":
        return digest
    return hashlib.sha256(f"{digest} features {FEATURES_ALGORITHM}".encode()).hexdigest()
