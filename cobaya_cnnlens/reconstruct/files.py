"""Network files as files: what is in them, their hash, what they were trained for, and whether a
release was made with one. No Keras here.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from ..errors import NetworkError
from ..likelihood.release import Release
from ..products import SHIPPED, differences, identity_of, open_product

if TYPE_CHECKING:
    from ..pipeline.config import Config

CLASS = "cobaya_cnnlens>ResUNet"
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# Keras stores weights as they are: what unpacks to more than this many times its size is no
# network.
MAX_EXPANSION = 4
# Arguments of a ResUNet on which κ̂ does not depend, and those that older files leave out.
NOT_IN_HASH = {"name", "metadata", "dropout", "frozen_norm"}
DEFAULTS = {"noise_map": False, "polarisation": "e"}
# Keys of the configuration's `network` that enter a recipe in another form, or only when set.
NOT_IN_RECIPE = {"pretrained", "initial", "polarisation", "frozen_norm"}


@dataclass(frozen=True)
class NetworkFile:
    """A ``.keras`` file's content: the ResUNet's ``arguments``, and its ``weights`` by path."""

    arguments: dict
    weights: dict[str, np.ndarray]

    @property
    def metadata(self) -> dict:
        """What it was trained for."""
        return self.arguments.get("metadata") or {}


def read_network(path: str | Path) -> NetworkFile:
    """Read a network file without Keras, the optimiser's state left out.

    Whoever gives a file to Keras reads it here first: Keras builds what the file names, of the
    size that it names.

    Raises
    ------
    NetworkError
        if the file is missing, damaged, no ResUNet, larger inside than outside, or if weights are
        not finite
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
        if config.get("registered_name") != CLASS:
            raise NetworkError(f"{path}: holds a {config['class_name']}, not a ResUNet")
        arguments, weights = config["config"], _read_weights(path, content)
        _check_weights(path, arguments["width"], weights)
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
    return NetworkFile(arguments, weights)


def _read_weights(path: Path, content: bytes) -> dict[str, np.ndarray]:
    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = item

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(collect)
        if sum(item.nbytes for item in found.values()) > MAX_EXPANSION * len(content):
            raise NetworkError(f"{path}: '{WEIGHTS}' holds less than its arrays' sizes; not used")
        return {name: item[()] for name, item in sorted(found.items())}


def _check_weights(path: Path, width: int, weights: Mapping[str, np.ndarray]) -> None:
    # The widest layer, c7, has 4 width channels.
    widest = max((w.shape[-1] for w in weights.values() if w.ndim == 4), default=0)
    if widest != 4 * width:
        raise NetworkError(
            f"{path}: is of width {width} by its '{CONFIG}' and {widest / 4:g} by its weights; "
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
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, values in network.weights.items():
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        digest.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def networks_hash(paths: Iterable[str | Path]) -> str:
    """The hash of one network; of several, SHA-256 of their sorted hashes as text."""
    hashes = sorted(network_hash(path) for path in paths)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def estimator_hash(config: Config) -> str:
    """What stands for a configuration's estimator in recipes: the hash of its network or networks,
    or of its baseline's recipe. Where a network is yet to be trained, that of the one which made
    the shipped bandpowers stands for it, if that was trained as the configuration says.

    Raises
    ------
    NetworkError
        if a network cannot be read, or was trained for another configuration
    """
    if config.baseline is not None:
        return identity_of(config.baseline_recipe())
    if config.network.pretrained is None:
        if not config.trained_path.exists() and (shipped := _shipped_hash(config)):
            return shipped
        check_trained(config)
    return networks_hash(config.network_paths)


def _shipped_hash(config: Config) -> str | None:
    if config.shipped is None or not config.shipped.exists():
        return None
    with open_product(config.shipped, SHIPPED) as product:
        made_with = product.recipe
    if training_differences(made_with.get("training", {}), training_recipe(config)):
        return None
    return made_with["network"]


def shipped_recipe(config: Config) -> dict:
    """What a file of shipped products says of itself: whose they are, the hash of the estimator
    that made them, and how that was trained, unless it is used as it is."""
    trained = config.baseline is None and config.network.pretrained is None
    return {
        "configuration": config.name,
        "network": estimator_hash(config),
        **({"training": training_recipe(config)} if trained else {}),
    }


def training_recipe(config: Config) -> dict:
    """What determines a training run."""
    sky = config.sky_recipe("train", 0)
    del sky["index"], sky["set"]
    return {
        **sky,
        **({"train_cosmologies": config.train_cosmologies} if config.train_cosmologies else {}),
        "train_skies": config.skies.train,
        "instrument": asdict(config.instrument),
        "network": config.network.model_dump(exclude=NOT_IN_RECIPE)
        | ({"polarisation": head} if (head := config.network.polarisation) != "e" else {})
        | ({"frozen_norm": True} if config.network.frozen_norm else {})
        | ({"initial": network_hash(path)} if (path := config.network.initial) else {}),
        # XLA changes how fast a run is and how it rounds, not what it is.
        "training": config.training.model_dump(exclude={"jit_compile"}),
    }


def training_differences(found: Mapping, wanted: Mapping) -> list[str]:
    """Keys in which two training recipes differ; what an older one leaves out is the default."""
    return differences(_completed(found), _completed(wanted))


def _completed(recipe: Mapping) -> dict:
    from ..pipeline.config import Network, Training
    from ..simulate.instrument import Instrument

    recipe = json.loads(json.dumps(recipe))
    defaults = {
        "network": Network().model_dump(mode="json", exclude=NOT_IN_RECIPE),
        "training": {k: f.default for k, f in Training.model_fields.items() if not f.is_required()},
        "instrument": asdict(Instrument()),
    }
    for section, values in defaults.items():
        values = {**values, **recipe.get(section, {})}
        values.pop("jit_compile", None)
        recipe[section] = {k: v for k, v in values.items() if v is not None}
    return recipe


def check_trained(config: Config) -> None:
    """Refuse a network in the products' folder that was not trained as the configuration says.

    Raises
    ------
    NetworkError
    """
    path = config.trained_path
    found = read_network(path).metadata.get("recipe")
    mend = (
        f"delete it with the folder {config.training_directory} and run `cnnlens train`, or name "
        "it under 'network.pretrained' to use it as it is"
    )
    if not isinstance(found, dict):
        raise NetworkError(f"{path}: does not say how it was trained (no 'recipe'); {mend}")
    found, initial = json.loads(json.dumps(found)), config.network.initial
    network = found.setdefault("network", {})
    # Networks of earlier versions name the whole file's hash.
    if initial and network.get("initial") == hashlib.sha256(initial.read_bytes()).hexdigest():
        network["initial"] = network_hash(initial)
    if different := training_differences(found, training_recipe(config)):
        raise NetworkError(
            f"{path}: was trained for another configuration, which differs in "
            f"{'; '.join(different)}; {mend}"
        )


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
            f"{', '.join(map(str, paths))}: the hash of its weights is {found[:16]}…, but release "
            f"'{release.name}' names {str(made_with)[:16]}… in field 'provenance.network_sha256'; "
            "use the network that made the release, or make the release again"
        )
