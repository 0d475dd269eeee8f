"""Configurations: what is read and refused, and the recipes of products: what determines a product
is in its identity, and nothing else is.
"""

import json
import math
import re
from copy import deepcopy
from dataclasses import is_dataclass, replace
from functools import reduce

import numpy as np
import pytest

import yaml
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.maps import map_setup
from cobaya_cnnlens.pipeline import (
    assemble,
    cosmologies,
    loading,
    mean_field,
    networks,
    reconstructions,
)
from cobaya_cnnlens.pipeline import config as schema
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.cosmologies import Points
from cobaya_cnnlens.pipeline.features import Features
from cobaya_cnnlens.pipeline.loading import load_config, load_study
from cobaya_cnnlens.pipeline.mean_field import MeanField, baseline_recipe
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.perturbations import Derivatives, ShiftedSkies
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections.calibration_settings import CosmologyGroup, Fit
from cobaya_cnnlens.pipeline.sections.estimator_settings import Phase
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.products import identity_of
from cobaya_cnnlens.simulate.instrument import FILES as INSTRUMENT_FILES
from cobaya_cnnlens.simulate.one_over_f import OneOverF
from cobaya_cnnlens.simulate.patches import closest_centres, patch_centres
from cobaya_cnnlens.validate import coverage, foregrounds, nulls, primary

from ..conftest import REPOSITORY, write_network

FIXTURES = REPOSITORY / "tests" / "fixtures"
TABLE = FIXTURES / "identities.yaml"
PINNED = ("refined", "resunet_1uk", "test")
FILES = sorted((REPOSITORY / "training" / "config").rglob("*.yaml"))
STUDIES = [path for path in FILES if "members" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in FILES if path not in STUDIES]


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
        ({"instrument": {"noise_uk_arcmin": -1.0}}, "must lie between 0 and 1000"),
        ({"instrument": {"taper_deg": 3.0}}, r"taper_deg 3 leaves no pixel of a patch of 5°"),
        ({"patch": {"n_pixels": 64, "pad": 65}}, r"patch\.pad 65 must not lie above"),
        ({"patch": {"n_pixels": 64, "size_deg": 0}}, r"size_deg is 0; it must lie between"),
        ({"centres": {"nside": 16}}, r"nside 16 puts centres of patches 2\.98° apart, less"),
        ({"camb": {"lmax": 2600, "halofit_version": "mead2022"}}, "'mead2022' is none of CAMB's"),
        ({"sky": {"lmax": 2100, "band_limit": 2200}}, "band_limit 2200 must not lie above"),
        ({"surveys": {"high": {"omch2": 2}}}, r"surveys\.high\.omch2 is 2; it must lie between"),
        ({"coverage": {"omch2": [0.001, 0.12]}}, r"coverage\.omch2\.0\.omch2 is 0\.001"),
        (
            {"points": {"at": {"a": {"cosmologies": [{"ns": 9.6}]}}}},
            r"points\.at\.a\.cosmologies\.0\.ns is 9\.6",
        ),
        ({"products": "a\nb"}, "key 'products': a path holds control characters"),
        ({"surveys": {"a/b": {"omch2": 0.12}}}, "a/b"),
        ({"foregrounds": {"sources": [1200.0]}}, r"foregrounds.*flux cut of 1200 mJy; the counts"),
        ({"foregrounds": {"skies": 2}}, r"foregrounds\.skies is 2, but there are 1 test"),
    ],
)
def test_inconsistent_values(content, tmp_path, change, message):
    content.update(change)
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, content))


EVERYTHING = {
    "baseline": {"kind": "wiener"},
    "instrument": {"one_over_f": {"knee": 200, "slope": 3, "anisotropy": 2, "scan_deg": 10}},
    "points": {"at": {"lcdm": {"cosmologies": [{"ns": 0.97, "H0": 68.0}]}}},
}


def numbers_of(content, above=()):
    """Keys of all numbers in a configuration."""
    if isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers_of(value, (*above, key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield above


def test_no_number_can_be_senseless(content, monkeypatch):
    """Every numeric key of the schema refuses what is no number, none that is finite, negative, or
    beyond all measure; the message names the file and the section."""
    content |= {**EVERYTHING, "instrument": content["instrument"] | EVERYTHING["instrument"]}
    content["instrument"]["depth_ratio"] = 2.0
    monkeypatch.setattr(loading, "_read_yaml", lambda path, named: deepcopy(content))
    content = json.loads(load_config("c.yaml").model_dump_json(exclude_none=True))
    fields = list(numbers_of(content))
    assert len(fields) >= 70
    bad = [math.nan, math.inf, -math.inf, -1, -0.5, 1e30, 10**30, True, "wide", [1], {}]
    for field in fields:
        for value in bad:
            *sections, key = field
            part = reduce(lambda inner, name: inner[name], sections, content)
            kept, part[key] = part[key], value
            try:
                with pytest.raises(ConfigError, match=rf"^c\.yaml: .*{field[0]}"):
                    load_config("c.yaml")
            finally:
                part[key] = kept
    load_config("c.yaml")


def test_patches_of_a_sky_do_not_overlap(content, tmp_path):
    """Closest centres of HEALPix against the diagonal: nside 4 takes patches of 9° at most."""
    content["centres"] = {"nside": 4, "poles": 16}
    content["bandpowers"] = {"lmin": 36, "width": 100, "n_bins": 4}
    content["derivatives"] = {"kk_edges": [2, 900], "ee_edges": [2, 900]}
    content["sky"] = content["camb"] = {"lmax": 1200}
    content["sky"] = {"lmax": 1200, "band_limit": 1000}
    for size, fits in ((9.0, True), (9.1, False)):  # 12.77° / √2 = 9.03°
        content["patch"] = {"size_deg": size, "n_pixels": 64}
        if fits:
            load_config(write(tmp_path, content))
        else:
            with pytest.raises(ConfigError, match=r"12\.77° apart, less than the diagonal 12\.87°"):
                load_config(write(tmp_path, content))


@pytest.mark.parametrize("nside", [1, 2, 3, 4, 8, 16])
def test_closest_centres(nside):
    """The bound that spares loading healpy lies below the closest pair."""
    exact = closest_centres(nside, 0, 180.0)
    theta, phi = patch_centres(nside, 0).T
    x, y, z = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)
    cosines = np.outer(x, x) + np.outer(y, y) + np.outer(z, z) - 2 * np.eye(len(x))
    assert exact == pytest.approx(np.degrees(np.arccos(cosines.max())), rel=1e-9)
    assert 0 < closest_centres(nside, 0, 0.0) < exact


def test_halofit_versions_are_cambs():
    from camb.nonlinear import halofit_version_names

    assert set(schema.HALOFIT_VERSIONS) == set(halofit_version_names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nseed: 1\nname: b\n", "key 'name' stands twice in one section, in lines 1 and 3"),
        ("instrument: {taper_deg: 1, taper_deg: 2}\n", "key 'taper_deg' stands twice"),
        ("name: \xe9".encode("latin-1"), "not UTF-8 at byte 6"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: 2020-13-45", "holds a value that YAML cannot read"),
        ("name: \0", "not valid YAML"),
        (b"x" * 1_100_000, "larger than a configuration can be"),
        ("? [1, 2]\n: 3\n", "c.yaml"),
        ("1: 2", "c.yaml"),
        ("", "must hold a mapping"),
    ],
    ids=range(12),
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_an_alias_bomb_is_refused_at_once(tmp_path, content):
    """9⁹ values in 300 bytes, where a message would print the name; an alias itself is fine."""
    levels = ["x: [&a0 [1]]"]
    levels += [f"y{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "c.yaml").write_text("\n".join([*levels, "name: *a9"]))
    with pytest.raises(ConfigError, match="holds more than 20000 values"):
        load_config(tmp_path / "c.yaml")
    del content["surveys"]
    text = yaml.safe_dump(content) + "surveys: {one: &s {omch2: 0.12}, two: *s}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml").surveys["two"].omch2 == 0.12


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)  # a folder
    (tmp_path / "c.yaml").write_text('base: "a\\0b"')
    with pytest.raises(ConfigError, match="key 'base' must be the path"):
        load_config(tmp_path / "c.yaml")


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
        return identity_of(Skies(Run(config)).recipe("train", 0))

    assert sky(base) == sky(trained) != sky(moved)
    assert identity_of(Skies(Run(base)).recipe("train", 1)) != sky(base)


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
    trained = {networks.path(Run(m)) for m in members if m.network.pretrained is None}
    networks_there = REPOSITORY.glob("cobaya_cnnlens/likelihood/data/networks/*.keras")
    shipped = {file.relative_to(REPOSITORY) for file in networks_there}
    assert all(set(networks.paths(Run(m))) <= trained | shipped for m in members)


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
    assert networks.path(Run(two)) == one.products.parent / "two" / "network.keras"
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


def test_members_name_folders(tmp_path, content):
    """No member leads out of the study's folder, and none makes up what the study does not say."""
    for name in ("..", "a/b", "$(touch x)", ".hidden"):
        with pytest.raises(ConfigError, match="key 'members' has the name"):
            load_study(write(tmp_path, {**content, "members": {name: {}}}))
    del content["products"], content["name"]
    content["members"] = {"one": {}}
    with pytest.raises(ConfigError, match="key 'products': Field required"):
        load_config(f"{write(tmp_path, content)}#one")


def test_a_file_with_a_hash_in_its_name(tmp_path, content):
    folder = tmp_path / "a#b"
    folder.mkdir()
    path = write(folder, content)
    assert load_study(path) == {str(path): load_config(path)}
    content["members"] = {"one": {}}
    path = write(folder, content)
    assert list(load_study(path)) == [f"{path}#one"]
    assert load_config(f"{path}#one").name == "test_one"


def test_a_plain_configuration_is_a_study_of_itself(tmp_path, content):
    path = write(tmp_path, content)
    assert load_study(path) == {str(path): load_config(path)}
    with pytest.raises(ConfigError, match="no member 'one'; key 'members' has none"):
        load_config(f"{path}#one")


def test_a_release_needs_a_survey(content, tmp_path):
    content["surveys"] = {}
    config = load_config(write(tmp_path, content))
    with pytest.raises(ConfigError, match=r"key 'surveys' is empty"):
        _ = config.first_survey
    surveys = {name: schema.Survey(omch2=0.11) for name in ("low", "high")}
    assert config.model_copy(update={"surveys": surveys}).first_survey == "low"


@pytest.mark.parametrize("name", ["train", "test", "survey-low", coverage.KIND])
def test_every_set_has_its_own_number_of_skies(content, tmp_path, name):
    content["surveys"] = {"low": {"omch2": 0.11, "skies": 3}}
    content["skies"] = {"train": 2, "validation": 1, "test": 4, "derivatives": 1}
    content["coverage"] = {"skies": 5}
    config = load_config(write(tmp_path, content))
    size = {"train": 2, "test": 4, "survey-low": 3}.get(name, 5)
    among = config.coverage.skies if name == coverage.KIND else None
    config.check_index(name, 0, among)
    config.check_index(name, size - 1, among)
    for index in (-1, size):
        with pytest.raises(ConfigError, match=f"set '{name}' has skies 0 to {size - 1}, not"):
            config.check_index(name, index, among)


HASH = "a" * 64
POINT = {"H0": 70.0}
DUST = foregrounds.Foreground("dust", "some", 8.8)


def recipes(config: Config) -> dict[str, dict]:
    """Every recipe of a configuration, of one sky each."""
    run = Run(config, HASH)
    return {
        "spectra": run.spectra_recipe(config.cosmology),
        "sky": Skies(run).recipe("test", 0),
        "training sky": Skies(run).recipe("train", 0),
        "survey sky": Skies(run).recipe("survey-low", 0),
        "training": networks.recipe(run),
        "bandpowers": Bandpowers(run).recipe("test", 0),
        "survey": Bandpowers(run).recipe("survey-low", 0),
        "maps": map_setup.recipe(run),
        "derivatives": Derivatives(run).recipe(0),
        "curvature": ShiftedSkies(run).recipe(0),
        "nuisances": Nuisances(run).recipe(0),
        "coverage": coverage.recipe(run, 0),
        "points": Points(run).recipe(cosmologies.Point(POINT, 0, run.config.points.patches)),
        "null": nulls.recipe(run, "unlensed", 0),
        "training null": nulls.recipe(run, "training", 0),
        "foreground": foregrounds.recipe(run, DUST, 0),
        "primary": primary.recipe(run, "test", 0),
        "baseline": baseline_recipe(run),
        "mean field": MeanField(run).recipe(),
    }


# What must be refused when the number of a stage's algorithm is raised.
ALGORITHMS = {
    Skies: lambda: FROM_SKIES,
    reconstructions: lambda: MEASURED,
    Derivatives: lambda: {"derivatives"},
    ShiftedSkies: lambda: {"curvature"},
    Nuisances: lambda: {"nuisances"},
    coverage: lambda: {"coverage"},
    Points: lambda: {"points"},
    nulls: lambda: {"null", "training null"},
    foregrounds: lambda: {"foreground"},
    mean_field: lambda: BASELINE,
    primary: lambda: {"primary"},
}


BASELINE = {"baseline", "mean field"}
MEASURED = {
    *("bandpowers", "survey", "maps", "derivatives", "curvature", "nuisances"),
    *("coverage", "points", "null", "training null", "foreground"),
}
TRAINING_SKY = {"training sky", "training", "training null", *BASELINE}
FROM_SKIES = MEASURED - {"maps"} | TRAINING_SKY | {"sky", "survey sky", "primary"}
FROM_SPECTRA = FROM_SKIES | {"spectra"}
SEEN = MEASURED | BASELINE | {"primary", "training"}
NOTHING = set()

# Which products another value of a key makes stale: of the key itself, or of its section.
STALE = {
    "name": NOTHING,
    "products": NOTHING,
    "skies_from": NOTHING,
    "features_from": NOTHING,
    "shipped": NOTHING,
    "seed": FROM_SKIES,
    "cosmology": FROM_SPECTRA,
    # Those of a product's own are put in the fiducial's place.
    "cosmology.omch2": FROM_SPECTRA - {"coverage", "survey sky", "survey"},
    "cosmology.H0": FROM_SPECTRA - {"points"},
    "camb": FROM_SPECTRA,
    "sky": FROM_SKIES,
    "patch": FROM_SKIES | {"maps"},
    # The beam is in one's own maps already, for which the pad is.
    "patch.pad": FROM_SKIES,
    "centres": FROM_SKIES,
    # Training, validation and test skies stay whole.
    "centres.spread": {
        *("survey sky", "survey", "derivatives", "curvature", "coverage"),
    },
    # Files stand in recipes by their content.
    "instrument": SEEN,
    "skies": NOTHING,
    "skies.train": {"training"},
    # A trained network stands in recipes by its hash.
    "network": {"training"},
    "network.pretrained": NOTHING,
    "training": {"training"},
    "training.jit_compile": NOTHING,
    # What only a refining network's training knows.
    "refining": NOTHING,
    "reconstruction.symmetries": MEASURED,
    "reconstruction.jit_compile": NOTHING,
    "reconstruction.lmin_b": MEASURED | BASELINE,
    "baseline": BASELINE,
    "bandpowers": MEASURED | {"primary"},
    # The power of the patches themselves is a product beside all others.
    "data_debias": NOTHING,
    "derivatives": {"derivatives"},
    "derivatives.omch2_step": {"curvature"},
    "derivatives.patches": {"derivatives", "curvature"},
    "nuisances": {"nuisances"},
    "nuisances.skies": NOTHING,
    "coverage": NOTHING,
    # (The first truth of a sequence is that of independent ones: ``stratified`` moves the others.)
    **{f"coverage.{key}": {"coverage"} for key in ("omch2", "logA", "patches")},
    "points": NOTHING,
    "points.patches": {"points"},
    "nulls": NOTHING,
    "nulls.patches": {"null", "training null"},
    # Each level is a product of its own.
    "foregrounds": NOTHING,
    "foregrounds.patches": {"foreground"},
    "foregrounds.frequency_ghz": {"foreground"},
    "surveys.low.omch2": {"survey sky", "survey"},
    "surveys.low.skies": NOTHING,
}


@pytest.fixture
def full(tmp_path):
    """A configuration in which every key has a say."""
    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    start = write_network(tmp_path / "start.keras")
    low = schema.Survey(omch2=0.1085)
    files = {name: tmp_path / f"{name}.txt" for name in INSTRUMENT_FILES}
    for file in files.values():
        file.write_text(file.name)
        file.with_name(f"{file.name}x").write_text("another")
    instrument = replace(
        config.instrument,
        noise_uk_arcmin=0.1,
        depth_ratio=2.0,
        beam_modes=(1.0,),
        normalise_beam=True,
        one_over_f=OneOverF(200.0, 3.0, 2.0, 10.0),
        **files,
    )
    return config.model_copy(
        update={
            "instrument": instrument,
            "network": config.network.model_copy(update={"initial": start}),
            "baseline": schema.Baseline(kind="map"),
            "points": schema.Points(at={"one": CosmologyGroup(cosmologies=[POINT])}),
            "surveys": {"low": low},
        }
    )


def sections(config):
    """(key, value) of every leaf of a configuration."""

    def walk(prefix, value):
        if is_dataclass(value) or isinstance(value, schema.Section):
            names = type(value).model_fields if isinstance(value, schema.Section) else vars(value)
            for name in names:
                yield from walk((*prefix, name), getattr(value, name))
        elif isinstance(value, dict) and prefix == ("surveys",):
            for name, survey in value.items():
                yield from walk((*prefix, name), survey)
        else:
            yield prefix, value

    return list(walk((), config))


# Other values of keys that have no number, text or truth to change.
OTHER = {
    "skies_from": "elsewhere",
    "features_from": "elsewhere",
    "shipped": "elsewhere.h5",
    "network.pretrained": "elsewhere.keras",
    "network.kind": "refined",
    "training.phases": [Phase(steps=77, learning_rate=1e-3)],
    "points.at": {"other": CosmologyGroup(cosmologies=[{"ns": 0.9}])},
    "points.fit": Fit(cosmologies=[{"ns": 0.9}]),
    "coverage.logA": (2.9, 3.2),
    "foregrounds.dust": {"other": 7.0},
    "foregrounds.synchrotron": {"other": 7.0},
}


def another(key, value):
    if key in OTHER:
        return OTHER[key]
    if value is None and key.endswith((".patches", ".spread")):
        return 3
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else 1.01 * value + 1e-12
    if isinstance(value, (list, tuple)):
        return type(value)([*value[:-1], another(key, value[-1])])
    return f"{value}x"


def changed(item, key, value):
    """A configuration (or section of it) with another value of a key, not validated."""
    head, *rest = key
    if isinstance(item, dict):
        return {**item, head: changed(item[head], rest, value)}
    if rest:
        value = changed(getattr(item, head), rest, value)
    if is_dataclass(item):
        return replace(item, **{head: value})
    return item.model_copy(update={head: value})


def identities(config):
    return {name: identity_of(recipe) for name, recipe in recipes(config).items()}


def test_every_key_makes_stale_what_it_determines_and_nothing_else(full, tmp_path):
    before = identities(full)
    assert set(before) == FROM_SPECTRA | MEASURED
    wrong = []
    other_start = write_network(tmp_path / "other.keras", input_std=[2.0, 2.0])
    for path, value in sections(full):
        key = ".".join(path)
        expected = next((STALE[k] for k in (key, ".".join(path[:-1]), path[0]) if k in STALE), None)
        assert expected is not None, f"'{key}' is new: say in STALE which products it determines"
        value = other_start if key == "network.initial" else another(key, value)
        after = identities(changed(full, path, value))
        stale = {name for name in after if after[name] != before[name]}
        if stale != expected:
            wrong.append((key, "not stale", expected - stale, "stale", stale - expected))
    assert not wrong


def test_the_table_names_keys_that_exist(full):
    keys = {".".join(path[:i]) for path, _ in sections(full) for i in range(1, len(path) + 1)}
    assert set(STALE) <= keys


def test_a_recipe_is_of_one_sky_estimator_and_test(full):
    """Which sky, which set, which network, which null and which cosmology: none is another's."""
    variants = [
        *(Skies(Run(full)).recipe(name, i) for name in full.set_names() for i in (0, 1)),
        *(
            Bandpowers(Run(full, h)).recipe(name, 0)
            for name in ("test", "validation")
            for h in "ab"
        ),
        *(Derivatives(Run(full, h)).recipe(i) for i in (0, 1) for h in "ab"),
        *(ShiftedSkies(Run(full, h)).recipe(i) for i in (0, 1) for h in "ab"),
        *(Nuisances(Run(full, h)).recipe(i) for i in (0, 1) for h in "ab"),
        *(coverage.recipe(Run(full, h), i) for i in (0, 1) for h in "ab"),
        *(
            Points(Run(full, h)).recipe(cosmologies.Point(c, i, None))
            for c in (POINT, {"ns": 0.9})
            for i in (0, 1)
            for h in "ab"
        ),
        *(
            nulls.recipe(Run(full, h), n, i)
            for n in ("noise", "curl")
            for i in (0, 1)
            for h in "ab"
        ),
        *(
            foregrounds.recipe(Run(full, h), f, i)
            for f in (
                foregrounds.CLEAN,
                DUST,
                replace(DUST, level=1.0),
                replace(DUST, kind="sources"),
            )
            for i in (0, 1)
            for h in "ab"
        ),
        *(map_setup.recipe(Run(full, h)) for h in "ab"),
        *(primary.recipe(Run(full), name, i) for name in ("test", "validation") for i in (0, 1)),
        baseline_recipe(Run(full)),
        MeanField(Run(full)).recipe(),
    ]
    assert len({identity_of(recipe) for recipe in variants}) == len(variants)


@pytest.mark.parametrize("stage", ALGORITHMS, ids=lambda stage: stage.__name__.rpartition(".")[2])
def test_a_changed_algorithm_makes_its_products_stale(full, monkeypatch, stage):
    before = identities(full)
    monkeypatch.setattr(stage, "algorithm" if isinstance(stage, type) else "ALGORITHM", 99)
    after = identities(full)
    assert {name for name in after if after[name] != before[name]} == ALGORITHMS[stage]()


def test_identities_of_what_was_made_do_not_change():
    """Products that took weeks, and those that are shipped, would be refused."""
    assert shipped_identities() == yaml.safe_load(TABLE.read_text())


def shipped_identities():
    """Identities of three shipped configurations, by file and product."""
    folder = REPOSITORY / "training" / "config"
    configs = {name: load_config(folder / f"{name}.yaml") for name in PINNED}
    return {name: identities(with_everything(config)) for name, config in configs.items()}


def with_everything(config):
    """With the survey and the baseline that :func:`recipes` names."""
    baseline = config.baseline or schema.Baseline(kind="map")
    surveys = {"low": schema.Survey(omch2=0.1085)}
    return config.model_copy(update={"baseline": baseline, "surveys": surveys})


def test_shifted_cosmologies_ascend(full):
    """`curvature` holds them as (below, above), and its recipe holds the step alone."""
    centre, step = full.cosmology.omch2, full.derivatives.omch2_step
    assert full.shifted_omch2() == pytest.approx((centre - step, centre + step), abs=1e-8)


def test_paths_of_different_products_differ(full):
    run = Run(full)
    points = (POINT, {"H0": 71.0}, {"ns": 70.0}, {**POINT, "ns": 0.9}, {**POINT, "ns": 0.95})
    paths = [
        *(Skies(run).path(name, i) for name in full.set_names() for i in (0, 1)),
        *(Bandpowers(run).path(name, i) for name in full.set_names() for i in (0, 1)),
        *(primary.path(run, name, i) for name in full.set_names() for i in (0, 1)),
        *(Derivatives(run).path(i) for i in (0, 1)),
        *(ShiftedSkies(run).path(i) for i in (0, 1)),
        *(Nuisances(run).path(i) for i in (0, 1)),
        *(coverage.path(run, i) for i in (0, 1)),
        *(Points(run).path(cosmologies.Point(c, i, None)) for c in points for i in (0, 1)),
        *(nulls.path(run, n, i) for n in ("noise", "curl") for i in (0, 1)),
        *(
            foregrounds.path(run, f, i)
            for f in (foregrounds.CLEAN, DUST, replace(DUST, name="more"))
            for i in (0, 1)
        ),
        *(assemble.path(run, s, i) for s in ("low", "high") for i in (0, 1)),
        MeanField(run).path(),
        networks.path(run),
        networks.training_directory(run),
    ]
    assert len(set(paths)) == len(paths)
    assert all(full.products in path.parents for path in paths)
    elsewhere = full.model_copy(update={"skies_from": REPOSITORY})
    assert REPOSITORY in Skies(Run(elsewhere)).path("test", 0).parents
    assert Bandpowers(Run(elsewhere)).path("test", 0) == Bandpowers(run).path("test", 0)
    shared = full.model_copy(update={"features_from": REPOSITORY})
    assert REPOSITORY in Features(Run(shared)).path("train", 0, 0).parents
    assert Skies(Run(shared)).path("test", 0) == Skies(run).path("test", 0)


if __name__ == "__main__":  # the table anew, where an identity is meant to change
    TABLE.write_text(yaml.safe_dump(shipped_identities(), default_flow_style=None, width=100))


SOME = [{"ns": 0.9 + 0.01 * i} for i in range(15)]


@pytest.mark.parametrize(
    ("tested_on", "fit", "data_debias", "message"),
    [
        (2, None, True, r"points\.at\.a\.sky is 2, but the last test sky is 1"),
        (0, ([0, 5], SOME), True, r"points\.fit\.skies is 5, but the last test sky is 1"),
        (1, ([0], SOME), False, "set data_debias"),
        (
            1,
            ([0], SOME[:14]),
            True,
            r"points\.fit has 14 cosmologies, a fit of 14 terms needs more",
        ),
        (1, ([0], SOME), True, r"directions is 3, but derivatives\.ee_edges make 2 bands of C\^EE"),
        (1, ([0, 1], SOME), True, r"at\.a\.sky 1 is one of the fit, which it tests; choose"),
    ],
)
def test_wrong_points(tested_on, fit, data_debias, message):
    at = {"a": CosmologyGroup(sky=tested_on, cosmologies=SOME)}
    fitted = None if fit is None else Fit(skies=fit[0], cosmologies=fit[1])
    with pytest.raises(ValueError, match=message):
        schema.Points(at=at, fit=fitted).check(2, data_debias, 2 if "bands" in message else 3)
