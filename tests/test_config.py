import pytest

import yaml
from cobaya_cnnlens.config import Config, load_config, load_study
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.products import identity_of

from .conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "training" / "config").glob("*.yaml"))
STUDIES = sorted((REPOSITORY / "training" / "config" / "studies").glob("*.yaml"))


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
        ({"sky": {"lmax": 2300, "band_limit": 3000}}, "Nyquist"),
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
    with pytest.raises(ConfigError, match="set 'train' has skies 0 to 2, not 3"):
        config.check_index("train", 3)


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


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_shipped_studies(path):
    """Every study loads; each member has its own products, and an ensemble names members'."""
    members = list(load_study(path).values())
    assert len(members) >= 2
    assert len({m.name for m in members}) == len({m.products for m in members}) == len(members)
    assert all(m.name.startswith(path.stem) for m in members)
    trained = {m.trained_path for m in members if m.network.pretrained is None}
    shipped = {p.relative_to(REPOSITORY) for p in REPOSITORY.glob("training/networks/*.keras")}
    assert all(set(m.network_paths) <= trained | shipped for m in members)
    assert (len(trained) >= 20) == (path.stem == "seeds_full")


def test_base(tmp_path, content):
    """Sections merge key by key, lists are replaced, null takes away; a base may have a base."""
    write(tmp_path, content)
    (tmp_path / "sub").mkdir()
    middle = {"base": "../c.yaml", "name": "middle", "network": {"width": 8}}
    (tmp_path / "sub" / "middle.yaml").write_text(yaml.safe_dump(middle))
    top = {
        "base": "middle.yaml",
        "instrument": {"noise_uk_arcmin": 5.0, "taper_deg": None},
        "derivatives": {"kk_edges": [2, 100, 200]},
    }
    (tmp_path / "sub" / "top.yaml").write_text(yaml.safe_dump(top))
    config = load_config(tmp_path / "sub" / "top.yaml")
    plain = load_config(tmp_path / "c.yaml")
    assert (config.name, config.network.width, config.network.seed) == ("middle", 8, 1)
    assert config.instrument.noise_uk_arcmin == 5.0
    assert config.instrument.taper_deg == Config.model_fields["instrument"].default.taper_deg
    assert config.derivatives.kk_edges == [2, 100, 200]
    assert config.derivatives.ee_edges == plain.derivatives.ee_edges
    assert config.training == plain.training


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("c.yaml", "leads back to this file"),
        ("none.yaml", r"none\.yaml: cannot be read .*named as 'base' by .*c\.yaml"),
        (["a.yaml"], "key 'base' must be the path"),
    ],
)
def test_wrong_bases(tmp_path, content, base, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, {**content, "base": base}))


def test_members_of_a_study(tmp_path, content):
    content["members"] = {"one": {}, "two": {"network": {"width": 8}, "skies_from": "elsewhere"}}
    path = write(tmp_path, content)
    study = load_study(path)
    assert list(study) == [f"{path}#one", f"{path}#two"]
    one, two = study.values()
    assert (one.name, two.name) == ("test_one", "test_two")
    assert (one.network.width, two.network.width) == (4, 8)
    assert two.trained_path == one.products.parent / "two" / "network.keras"
    assert load_study(f"{path}#two") == {f"{path}#two": two}
    with pytest.raises(ConfigError, match=r"study of 2 members; name one, as in .*c\.yaml#one"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"no member 'three'; key 'members' has one, two"):
        load_config(f"{path}#three")
    content["members"]["two"] = {"network": {"wide": 8}}
    write(tmp_path, content)
    with pytest.raises(ConfigError, match=r"c\.yaml#two: unknown key 'network\.wide'"):
        load_config(f"{path}#two")
    with pytest.raises(ConfigError, match="key 'members' must map names"):
        load_config(write(tmp_path, {**content, "members": ["one"]}))


def test_a_plain_configuration_is_a_study_of_itself(tmp_path, content):
    path = write(tmp_path, content)
    assert load_study(path) == {str(path): load_config(path)}
    with pytest.raises(ConfigError, match="no member 'one'; key 'members' has none"):
        load_config(f"{path}#one")


def test_training_cosmologies_move_the_training_skies_only(tmp_path, content):
    plain = load_config(write(tmp_path, content))
    content["train_cosmologies"] = [{"omch2": 0.1}, {"omch2": 0.13}]
    varied = load_config(write(tmp_path, content))
    seen = [varied.set_cosmology("train", i).omch2 for i in range(3)]
    assert seen == [0.1, 0.13, 0.1]
    assert varied.sky_recipe("test", 0) == plain.sky_recipe("test", 0)
    assert varied.sky_recipe("train", 0) != plain.sky_recipe("train", 0)
    content["train_cosmologies"] = [{"omega_c": 0.1}]
    with pytest.raises(ConfigError, match=r"train_cosmologies\.0: no cosmological parameter omega"):
        load_config(write(tmp_path, content))
