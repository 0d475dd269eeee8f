"""Which networks a run uses, how its own is trained, and what stands for them in recipes.

No Keras here: recipes and paths are asked for before it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NetworkError
from ..products import SHIPPED, differences, identity_of, open_product
from ..reconstruct.files import estimator_hash, kind_of, network_hash, read_network
from ..simulate.instrument import Instrument
from . import mean_field
from .sections.estimator_settings import Network, Training
from .skies import Skies

if TYPE_CHECKING:
    from .simulation import Simulation

# What the files of a configuration's `network.kind` hold.
KINDS = {"resunet": "ResUNet", "refined": "RefiningUNet"}
# Keys of the configuration's `network` that enter a recipe in another form, or only when set.
NOT_IN_RECIPE = {"pretrained", "initial", "kind"}
# Options that there were once, with the value that changed nothing.
FORMER: dict[str, dict[str, Any]] = {
    "network": {"noise_map": False},
    "training": {"loss": "pixel", "depth_variation": 0.0, "precision": "float32"},
}


def path(run: Simulation) -> Path:
    """Where training leaves its network.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / "network.keras"


def paths(run: Simulation) -> tuple[Path, ...]:
    """The networks in use: the trained one, or those that ``network.pretrained`` names.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the files
    """
    named = run.config.network.pretrained
    if named is None:
        return (path(run),)
    return tuple(named) if isinstance(named, list) else (named,)


def training_directory(run: Simulation) -> Path:
    """Where training keeps its state.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the folder, under ``products``
    """
    return run.config.products / "training"


def recipe(run: Simulation) -> dict[str, Any]:
    """What determines a training run.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    mapping for JSON
    """
    config = run.config
    sky = Skies(run).recipe("train", 0)
    del sky["index"], sky["set"]
    if config.network.kind == "refined":
        return _refining_recipe(run, sky)
    return {
        **sky,
        "train_skies": config.skies.train,
        "instrument": config.instrument.recipe(),
        "network": config.network.model_dump(exclude=NOT_IN_RECIPE)
        | ({"initial": network_hash(initial)} if (initial := config.network.initial) else {}),
        # XLA changes how fast a run is and how it rounds, not what it is.
        "training": config.training.model_dump(exclude={"jit_compile"}),
    }


# Keys of the configuration that a refining network's training knows.
REFINING = {"network": {"width", "seed"}, "training": {"phases", "clip_norm", "seed"}}


def _refining_recipe(run: Simulation, sky: dict[str, Any]) -> dict[str, Any]:
    """What determines a training run on features."""
    from ..reconstruct.features import PASSES
    from .features import VARIATION, Features

    config = run.config
    initial = config.network.initial
    return {
        **sky,
        "train_skies": config.skies.train,
        "instrument": config.instrument.recipe(),
        "features": {
            "algorithm": Features.algorithm,
            "passes": PASSES,
            "batch": config.refining.batch,
            "variation": asdict(VARIATION),
            **config.reconstruction.recipe(),
        },
        "network": {"kind": "refined", **config.network.model_dump(include=REFINING["network"])}
        | ({"initial": network_hash(initial)} if initial else {}),
        "training": config.training.model_dump(include=REFINING["training"])
        | {"steps_per_epoch": config.training.steps_per_epoch},
    }


def estimator_id(run: Simulation) -> str:
    """What stands for a run's estimator in recipes: the hash of its network or networks, or of its
    baseline's recipe. Where a network is yet to be trained, that of the one which made the shipped
    bandpowers stands for it, if that was trained as the configuration says.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the hash

    Raises
    ------
    NetworkError
        if a network cannot be read, or was trained for another configuration
    """
    if run.config.baseline is not None:
        return identity_of(mean_field.baseline_recipe(run))
    if run.config.network.pretrained is None:
        if not path(run).exists() and (shipped := _shipped_hash(run)):
            return shipped
        check_trained(run)
    check_kind(run)
    return estimator_hash(paths(run))


def check_kind(run: Simulation) -> None:
    """Refuse networks of another kind than the configuration's.

    Parameters
    ----------
    run : the configuration and what follows from it

    Raises
    ------
    NetworkError
        if the files hold another kind
    """
    held, configured = kind_of(paths(run)), KINDS[run.config.network.kind]
    if held != configured:
        raise NetworkError(
            f"{', '.join(map(str, paths(run)))}: holds a {held}, not a {configured}; correct "
            "'network.kind' or 'network.pretrained' in the configuration"
        )


def _shipped_hash(run: Simulation) -> str | None:
    shipped = run.config.shipped
    if shipped is None or not shipped.exists():
        return None
    with open_product(shipped, SHIPPED) as product:
        made_with = product.recipe
    if training_differences(made_with.get("training", {}), recipe(run)):
        return None
    return made_with["network"]


def training_differences(recorded: Mapping[str, Any], configured: Mapping[str, Any]) -> list[str]:
    """Keys in which two training recipes differ; what an older one leaves out is the default.

    Parameters
    ----------
    recorded, configured : recipe of the file, and that of the configuration

    Returns
    -------
    dotted keys with both values
    """
    return differences(_completed(recorded), _completed(configured))


def _completed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A training recipe with the defaults of what it leaves out, and without former options."""
    completed: dict[str, Any] = json.loads(json.dumps(recipe))
    defaults: dict[str, dict[str, Any]] = {
        "network": Network().model_dump(mode="json", exclude=NOT_IN_RECIPE),
        "training": {k: f.default for k, f in Training.model_fields.items() if not f.is_required()},
        "instrument": asdict(Instrument()),
    }
    for section, values in defaults.items():
        values = {**values, **completed.get(section, {})}
        values.pop("jit_compile", None)
        former = FORMER.get(section, {})
        completed[section] = {
            k: v
            for k, v in values.items()
            if v is not None and not (k in former and v == former[k])
        }
    return completed


def check_trained(run: Simulation) -> None:
    """Refuse a network in the products' folder that was not trained as the configuration says.

    Parameters
    ----------
    run : the configuration and what follows from it

    Raises
    ------
    NetworkError
        if it was trained otherwise, or does not say how
    """
    file = path(run)
    recorded = read_network(file).metadata.get("recipe")
    mend = (
        f"delete it with the folder {training_directory(run)} and run `cnnlens train`, or name "
        "it under 'network.pretrained' to use it as it is"
    )
    if not isinstance(recorded, dict):
        raise NetworkError(f"{file}: does not say how it was trained (no 'recipe'); {mend}")
    recorded, initial = json.loads(json.dumps(recorded)), run.config.network.initial
    network = recorded.setdefault("network", {})
    # Networks of earlier versions name the whole file's hash.
    if initial and network.get("initial") == hashlib.sha256(initial.read_bytes()).hexdigest():
        network["initial"] = network_hash(initial)
    if different := training_differences(recorded, recipe(run)):
        raise NetworkError(
            f"{file}: was trained for another configuration, which differs in "
            f"{'; '.join(different)}; {mend}"
        )
