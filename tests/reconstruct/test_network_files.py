"""Network files without Keras: what their hash depends on, and which are refused unread."""

import hashlib
import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from cobaya_cnnlens.errors import NetworkError
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.pipeline import networks
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.release_networks import NETWORKS, check_network
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.files import (
    network_hash,
    networks_hash,
    read_network,
)

from ..conftest import REPOSITORY, write_network

KERNEL, BIAS = np.arange(12.0, dtype="f4").reshape(1, 1, 3, 4), np.ones(4, "f4")
WEIGHTS = {"layers/c7/vars/0": KERNEL, "layers/c7/vars/1": BIAS}


def test_the_same_weights_are_the_same_network(tmp_path):
    """Saved on another day, by a version that names its defaults, with an optimiser, under another
    name, for another training or compressed."""
    plain = network_hash(write_network(tmp_path / "a.keras"))
    later = {
        "date": {"date": "2027-02-03@04:05:06"},
        "defaults": {"noise_map": False, "polarisation": "e", "frozen_norm": True, "dropout": 0.3},
        "optimiser": {"weights": {**WEIGHTS, "optimizer/vars/1": np.zeros(7)}},
        "names": {"name": "res_u_net_3", "metadata": {"recipe": {"seed": 3}}},
    }
    for name, changes in later.items():
        assert network_hash(write_network(tmp_path / "b.keras", **changes)) == plain, name
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as source,
        zipfile.ZipFile(tmp_path / "c.keras", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in reversed(source.namelist()):
            target.writestr(member, source.read(member))
    assert network_hash(tmp_path / "c.keras") == plain


def test_what_the_hash_depends_on(tmp_path):
    """A last bit of a weight, which array it is in, its shape and type, the normalisation and
    every argument that changes κ̂."""
    bit = KERNEL.copy()
    bit[0, 0, 1, 1] = np.nextafter(bit[0, 0, 1, 1], np.float32(99))
    changes = [
        {},
        {"weights": {**WEIGHTS, "layers/c7/vars/0": bit}},
        {"weights": {"layers/c7/vars/0": KERNEL, "layers/c8/vars/1": BIAS}},
        {"weights": {**WEIGHTS, "layers/c7/vars/0": KERNEL.reshape(1, 3, 1, 4)}},
        {"weights": {**WEIGHTS, "layers/c7/vars/0": KERNEL.astype("f8")}},
        {"weights": {**WEIGHTS, "layers/c9/vars/0": BIAS}},
        {"input_std": [1.0, 2.0]},
        {"output_std": [1.0, 0.07]},
        {"noise_map": True},
        {"levels": 4},
    ]
    hashes = [network_hash(write_network(tmp_path / "n.keras", **c)) for c in changes]
    assert len(set(hashes)) == len(changes)


def test_the_hash_of_several(tmp_path):
    paths = [write_network(tmp_path / f"{i}.keras", input_std=[1.0, 2.0 + i]) for i in range(2)]
    assert networks_hash(paths) == networks_hash(paths[::-1]) != networks_hash(paths[:1])
    assert networks_hash(paths[:1]) == network_hash(paths[0])


def test_the_shipped_networks_hash(tmp_path):
    """Pinned: every release and product made with it names it."""
    digest = "2c23619ba8c7b64d57407ceedc18190ff3d079a1e49e04e77f5df99504820309"
    assert network_hash(NETWORKS / "resunet_1uk.keras") == digest
    release = read_release("refined_fiducial")
    check_network(release, [NETWORKS / "refined.keras"])
    with pytest.raises(NetworkError, match="the hash of its weights is 2c23619ba8c7b64d…, but"):
        check_network(release, [NETWORKS / "resunet_1uk.keras"])


def test_the_networks_readme_names_their_hashes():
    text = (REPOSITORY / "training" / "networks" / "README.md").read_text()
    assert all(network_hash(path) in text for path in NETWORKS.glob("*.keras"))


def test_a_network_of_another_output_is_refused(tmp_path):
    path = write_network(tmp_path / "n.keras", polarisation="qu")
    with pytest.raises(NetworkError, match="'polarisation' is 'qu'; this version knows"):
        read_network(path)


def with_members(path, members):
    """A network's file in which some members are others, or missing: None."""
    with zipfile.ZipFile(write_network(path)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | members
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def bomb(path, member):
    """Half a gigabyte of zeros in a member of a file of half a megabyte."""
    with_members(path, {member: None})
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w") as opened,
    ):
        for _ in range(64):
            opened.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("member", ["model.weights.h5", "config.json", "assets/one"])
def test_a_zip_bomb_is_not_unpacked(tmp_path, member, monkeypatch):
    path = bomb(tmp_path / "n.keras", member)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("was read"))
    with pytest.raises(NetworkError, match=r"n\.keras: 671\d+ bytes inside a file of"):
        read_network(path)


def test_arrays_larger_than_their_file(tmp_path):
    """HDF5 may promise a terabyte that was never written."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("layers/c7/vars/0", (1, 1, 1 << 38, 4), "f4", chunks=(1, 1, 1, 4))
    path = with_members(tmp_path / "n.keras", {"model.weights.h5": content.getvalue()})
    with pytest.raises(NetworkError, match="holds less than its arrays' sizes"):
        read_network(path)


def test_a_width_that_the_weights_do_not_have(tmp_path):
    """Keras would build the network of that width before it reads a weight."""
    path = write_network(tmp_path / "n.keras", width=100_000)
    with pytest.raises(NetworkError, match=r"of width 100000 by its 'config.json' and 1 by its"):
        read_network(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    bias = np.array([1, value, 1, 1], "f4")
    path = write_network(tmp_path / "n.keras", {**WEIGHTS, "layers/c7/vars/1": bias})
    with pytest.raises(NetworkError, match=r"n\.keras: weights 'layers/c7/vars/1' are not finite"):
        network_hash(path)


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_files_cut_off(tmp_path, keep):
    path = write_network(tmp_path / "n.keras")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(NetworkError, match=r"n\.keras: cannot be read as a Keras model"):
        read_network(path)


@pytest.mark.parametrize("member", ["model.weights.h5", "config.json"])
def test_members_missing(tmp_path, member):
    path = with_members(tmp_path / "n.keras", {member: None})
    with pytest.raises(NetworkError, match=rf"cannot be read as a Keras model.*{member}"):
        read_network(path)


@pytest.mark.parametrize(
    "change",
    [
        {"class_name": "Sequential", "registered_name": "Sequential"},
        {"registered_name": "builtins>eval"},
        {"registered_name": None},
    ],
)
def test_what_is_no_resunet_never_reaches_keras(tmp_path, change):
    path = write_network(tmp_path / "n.keras")
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    with_members(path, {"config.json": json.dumps(config | change)})
    with pytest.raises(NetworkError, match="neither a ResUNet nor a RefiningUNet"):
        read_network(path)


@pytest.fixture
def trained(small_config):
    """A configuration, and a network in its products that says it was trained so."""
    small_config.products.mkdir()
    metadata = {"recipe": json.loads(json.dumps(networks.recipe(Run(small_config))))}
    write_network(networks.path(Run(small_config)), metadata=metadata)
    return small_config


def test_a_network_of_another_training_is_refused(trained):
    """`train` has always refused it; `reconstruct`, `derivatives` and releases use the hash."""
    assert Run(trained).estimator_id == network_hash(networks.path(Run(trained)))
    louder = trained.instrument.__class__(noise_uk_arcmin=5.0)
    moved = trained.model_copy(update={"instrument": louder})
    with pytest.raises(
        NetworkError,
        match=r"network\.keras: was trained for .*instrument\.noise_uk_arcmin \(1\.0 ≠ 5\.0\); "
        "delete it .* run `cnnlens train`",
    ):
        _ = Run(moved).estimator_id
    network = moved.network.model_copy(update={"pretrained": networks.path(Run(trained))})
    as_it_is = moved.model_copy(update={"network": network})
    assert Run(as_it_is).estimator_id == network_hash(networks.path(Run(trained)))
    compiled = trained.training.model_copy(update={"jit_compile": False})
    networks.check_trained(Run(trained.model_copy(update={"training": compiled})))
    for key, value in (("clip_norm", None), ("seed", 7), ("augment", False)):
        changed = trained.training.model_copy(update={key: value})
        with pytest.raises(NetworkError, match=rf"training\.{key} "):
            networks.check_trained(Run(trained.model_copy(update={"training": changed})))


def test_a_network_that_does_not_say_how_it_was_trained(trained):
    write_network(networks.path(Run(trained)))
    with pytest.raises(NetworkError, match="does not say how it was trained"):
        _ = Run(trained).estimator_id


def test_recipes_of_older_networks(trained):
    """What they leave out had the default's value; options that are no more had one that changed
    nothing; of the network to start from they name the file's hash."""
    recipe = json.loads(json.dumps(networks.recipe(Run(trained))))
    del recipe["training"]["augment"]
    recipe["training"] |= {"ema": None, "jit_compile": False, "loss": "pixel"}
    recipe["network"]["noise_map"] = False
    write_network(networks.path(Run(trained)), metadata={"recipe": recipe})
    networks.check_trained(Run(trained))
    spectral = recipe | {"training": recipe["training"] | {"loss": "spectral"}}
    write_network(networks.path(Run(trained)), metadata={"recipe": spectral})
    with pytest.raises(NetworkError, match=r"training\.loss \(spectral ≠ None\)"):
        networks.check_trained(Run(trained))
    initial = write_network(trained.products / "initial.keras", input_std=[2.0, 2.0])
    network = trained.network.model_copy(update={"initial": initial})
    started = trained.model_copy(update={"network": network})
    with pytest.raises(NetworkError, match=r"network\.initial \(None ≠ "):
        networks.check_trained(Run(started))
    recipe["network"]["initial"] = hashlib.sha256(initial.read_bytes()).hexdigest()
    write_network(networks.path(Run(trained)), metadata={"recipe": recipe})
    networks.check_trained(Run(started))
    write_network(initial, input_std=[3.0, 3.0])
    with pytest.raises(NetworkError, match=r"network\.initial"):
        networks.check_trained(Run(started))


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ("resunet_1uk", "resunet_1uk.yaml"),
        ("refined", "refined.yaml"),
    ],
)
def test_the_shipped_networks_were_trained_as_their_configurations_say(
    network, config, tmp_path, monkeypatch
):
    monkeypatch.chdir(REPOSITORY)
    if network == "refined":  # on features of before the filter knew the mean of Q and U
        monkeypatch.setattr("cobaya_cnnlens.pipeline.features.Features.algorithm", 1)
    config = load_config(f"training/config/{config}")
    untrained = config.network.model_copy(update={"pretrained": None})
    config = config.model_copy(update={"network": untrained})
    (tmp_path / "network.keras").write_bytes((NETWORKS / f"{network}.keras").read_bytes())
    networks.check_trained(Run(config.model_copy(update={"products": tmp_path})))
