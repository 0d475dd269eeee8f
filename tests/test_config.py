import pytest

import yaml
from cobaya_cnnlens.config import load_config
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.products import identity_of

from .conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "training" / "config").glob("*.yaml"))


@pytest.fixture
def content():
    return yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())


def write(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config.derivatives.kk_edges[-1] <= config.sky.band_limit + 1
    assert config.derivatives.ee_edges[-1] <= config.sky.lmax + 1


def test_the_papers_configuration():
    config = load_config(REPOSITORY / "training" / "config" / "paper.yaml")
    assert (config.skies.train, config.skies.validation, config.skies.test) == (56, 7, 7)
    phase = config.training.phases[0]
    assert (phase.learning_rate, phase.batch, phase.schedule) == (0.25, 32, "plateau")
    assert (config.network.width, config.network.dropout) == (64, 0.3)
    assert config.training.steps_per_epoch * phase.batch == 8960


@pytest.mark.parametrize(
    ("section", "key"),
    [(None, "nosie"), ("instrument", "noise"), ("cosmology", "omega_c"), ("training", "epochs")],
)
def test_unknown_key(content, tmp_path, section, key):
    (content.setdefault(section, {}) if section else content)[key] = 1
    name = f"{section}.{key}" if section else key
    with pytest.raises(ConfigError, match=rf"c\.yaml: unknown key '{name}'"):
        load_config(write(tmp_path, content))


def test_wrong_values_are_all_named(content, tmp_path):
    content["skies"]["train"] = 0
    content["network"]["width"] = "wide"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    assert "skies.train" in str(caught.value)
    assert "network.width" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sky": {"lmax": 2600, "band_limit": 3000}}, "Nyquist"),
        ({"camb": {"lmax": 2000}}, r"camb\.lmax must reach"),
        ({"derivatives": {"kk_edges": [2, 500, 400], "ee_edges": [2, 9]}}, "must ascend"),
        (
            {"derivatives": {"kk_edges": [2, 9000], "ee_edges": [2, 9]}},
            r"kk_edges must lie between",
        ),
        ({"bandpowers": {"width": 254, "n_bins": 40}}, "last bin ends at L = 10196"),
        ({"patch": {"n_pixels": 66}}, r"n_pixels is 66; the network needs multiples of 4"),
        ({"centres": {"nside": 4, "poles": 96}}, "no patch"),
        ({"instrument": {"noise_uk_arcmin": -1.0}}, "must not be negative"),
        ({"surveys": {"a/b": {"omch2": 0.12}}}, "a/b"),
    ],
)
def test_inconsistent_values(content, tmp_path, change, message):
    content.update(change)
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, content))


@pytest.mark.parametrize("crop", [63, 500])
def test_crops_that_do_not_fit(content, tmp_path, crop):
    content["training"]["phases"][0]["crop"] = crop
    with pytest.raises(ConfigError, match=rf"phases\.0\.crop is {crop}; the network needs"):
        load_config(write(tmp_path, content))


def test_skies_outside_a_set(content, tmp_path):
    config = load_config(write(tmp_path, content))
    with pytest.raises(ConfigError, match="set 'train' has skies 0 to 1, not 2"):
        config.check_index("train", 2)


def test_unreadable(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(tmp_path / "list.yaml")


def test_identity_follows_what_determines_a_product(content, tmp_path):
    base = load_config(write(tmp_path, content))
    content["training"]["phases"][0]["learning_rate"] = 0.1
    trained = load_config(write(tmp_path, content))
    content["cosmology"] = {"ns": 0.97}
    moved = load_config(write(tmp_path, content))

    def sky(config):
        return identity_of(config.sky_recipe("train", 0))

    assert sky(base) == sky(trained) != sky(moved)
    assert identity_of(base.sky_recipe("train", 1)) != sky(base)


def test_unknown_set(content, tmp_path):
    config = load_config(write(tmp_path, content))
    with pytest.raises(ConfigError, match="no sky set 'survey-none'"):
        config.set_size("survey-none")
