"""Recipes: what determines a product is in its identity, and nothing else is."""

from dataclasses import is_dataclass, replace

import pytest

from cobaya_cnnlens import config as schema
from cobaya_cnnlens.calibrate import primary
from cobaya_cnnlens.config import Config, load_config
from cobaya_cnnlens.products import identity_of
from cobaya_cnnlens.reconstruct.files import training_recipe

from .conftest import REPOSITORY, write_network

HASH = "a" * 64
POINT = {"H0": 70.0}


def recipes(config: Config) -> dict[str, dict]:
    """Every recipe of a configuration, of one sky each."""
    return {
        "spectra": config.spectra_recipe(config.cosmology),
        "sky": config.sky_recipe("test", 0),
        "training sky": config.sky_recipe("train", 0),
        "survey sky": config.sky_recipe("survey-low", 0),
        "training": training_recipe(config),
        "bandpowers": config.bandpower_recipe("test", 0, HASH),
        "survey": config.bandpower_recipe("survey-low", 0, HASH),
        "maps": config.map_recipe(HASH),
        "exhibit": config.exhibit_recipe(HASH),
        "derivatives": config.derivative_recipe(0, HASH),
        "curvature": config.curvature_recipe(0, HASH),
        "nuisances": config.nuisance_recipe(0, HASH),
        "coverage": config.coverage_recipe(0, HASH),
        "points": config.point_recipe(POINT, 0, HASH),
        "null": config.null_recipe("unlensed", 0, HASH),
        "training null": config.null_recipe("training", 0, HASH),
        "primary": primary.recipe_of(config, "test", 0),
        "baseline": config.baseline_recipe(),
        "mean field": config.mean_field_recipe(),
    }


BASELINE = {"baseline", "mean field"}
MEASURED = {
    *("bandpowers", "survey", "maps", "exhibit", "derivatives", "curvature", "nuisances"),
    *("coverage", "points", "null", "training null"),
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
    "shipped": NOTHING,
    "seed": FROM_SKIES,
    "cosmology": FROM_SPECTRA,
    # Those of a product's own are put in the fiducial's place.
    "cosmology.omch2": FROM_SPECTRA - {"coverage", "survey sky", "survey"},
    "cosmology.H0": FROM_SPECTRA - {"points"},
    "cosmology.ns": FROM_SPECTRA - TRAINING_SKY,
    "train_cosmologies": TRAINING_SKY,
    "camb": FROM_SPECTRA,
    "sky": FROM_SKIES,
    "patch": FROM_SKIES | {"maps"},
    "centres": FROM_SKIES,
    "instrument": SEEN,
    "skies": NOTHING,
    "skies.train": {"training"},
    # A trained network stands in recipes by its hash.
    "network": {"training"},
    "network.pretrained": NOTHING,
    "training": {"training"},
    "training.jit_compile": NOTHING,
    "reconstruction.symmetries": MEASURED,
    "reconstruction.jit_compile": NOTHING,
    "baseline": BASELINE,
    "bandpowers": MEASURED | {"primary"},
    "derivatives": {"derivatives"},
    "derivatives.omch2_step": {"curvature"},
    "nuisances": {"nuisances"},
    "nuisances.skies": NOTHING,
    "coverage": NOTHING,
    "coverage.omch2": {"coverage"},
    "points": NOTHING,
    "nulls": NOTHING,
    "surveys.low.omch2": {"survey sky", "survey"},
    "surveys.low.skies": NOTHING,
}


@pytest.fixture
def full(tmp_path):
    """A configuration in which every key has a say."""
    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    start = write_network(tmp_path / "start.keras")
    low = schema.Survey(omch2=0.1085)
    return config.model_copy(
        update={
            "train_cosmologies": [{"ns": 0.95}],
            "instrument": replace(config.instrument, noise_uk_arcmin=0.1, depth_ratio=2.0),
            "network": config.network.model_copy(update={"initial": start}),
            "baseline": schema.Baseline(kind="iterated"),
            "points": schema.Points(at={"one": [POINT]}),
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
    "train_cosmologies": [{"ns": 0.99}],
    "skies_from": "elsewhere",
    "shipped": "elsewhere.h5",
    "network.pretrained": "elsewhere.keras",
    "training.phases": [schema.Phase(steps=77, learning_rate=1e-3)],
    "training.noise_max_uk_arcmin": 7.0,
    "points.at": {"other": [{"ns": 0.9}]},
}


def another(key, value):
    if key in OTHER:
        return OTHER[key]
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
        *(full.sky_recipe(name, i) for name in full.set_names() for i in (0, 1)),
        *(full.bandpower_recipe(name, 0, h) for name in ("test", "validation") for h in "ab"),
        *(full.derivative_recipe(i, h) for i in (0, 1) for h in "ab"),
        *(full.curvature_recipe(i, h) for i in (0, 1) for h in "ab"),
        *(full.nuisance_recipe(i, h) for i in (0, 1) for h in "ab"),
        *(full.coverage_recipe(i, h) for i in (0, 1) for h in "ab"),
        *(full.point_recipe(c, i, h) for c in (POINT, {"ns": 0.9}) for i in (0, 1) for h in "ab"),
        *(full.null_recipe(n, i, h) for n in ("noise", "curl") for i in (0, 1) for h in "ab"),
        *(full.map_recipe(h) for h in "ab"),
        *(full.exhibit_recipe(h) for h in "ab"),
        *(primary.recipe_of(full, name, i) for name in ("test", "validation") for i in (0, 1)),
        full.baseline_recipe(),
        full.mean_field_recipe(),
    ]
    assert len({identity_of(recipe) for recipe in variants}) == len(variants)


@pytest.mark.parametrize("stage", schema.ALGORITHM)
def test_a_changed_algorithm_makes_its_products_stale(full, monkeypatch, stage):
    expected = {
        "sky": FROM_SKIES,
        "bandpowers": MEASURED,
        "baseline": BASELINE,
        "nulls": {"null", "training null"},
    }.get(stage, {stage})
    before = identities(full)
    monkeypatch.setitem(schema.ALGORITHM, stage, 99)
    after = identities(full)
    assert {name for name in after if after[name] != before[name]} == expected


def test_the_noise_floor_counts_where_it_is_used(full):
    """Above it the filters do not see it."""
    louder = changed(full, ("instrument", "noise_uk_arcmin"), 1.0)
    recipe = identity_of(louder.baseline_recipe())
    other = changed(louder, ("baseline", "noise_floor"), 0.5)
    assert identity_of(other.baseline_recipe()) == recipe


def test_identities_of_what_was_made_do_not_change():
    """Products of weeks, and those that are shipped, would be refused."""
    config = load_config(REPOSITORY / "training" / "config" / "laptop.yaml")
    config = config.model_copy(update={"baseline": schema.Baseline(kind="iterated")})
    assert identities(config) == PINNED


PINNED = {
    "spectra": "f784b8911e2ef8a3",
    "sky": "3eef84f5d07ef6fd",
    "training sky": "bc572fb50075720e",
    "survey sky": "40bf143383391579",
    "training": "4fe5472d36f5ebf1",
    "bandpowers": "5902e5ff9671d712",
    "survey": "2a67274828386c1c",
    "maps": "e1fd7885ac180868",
    "exhibit": "66c30a86992948cd",
    "derivatives": "a84a791dab814d48",
    "curvature": "b88826897bf4fd14",
    "nuisances": "1a8350b6ce1b8d21",
    "coverage": "0fe40ef165f4b5ee",
    "points": "072fc7279fc73b4d",
    "null": "8f7ec61fbe05c6fd",
    "training null": "5d5e26ee09701843",
    "primary": "356cf58499e2add3",
    "baseline": "9c1604e0ee626fbb",
    "mean field": "785661ea5400b214",
}


def test_shifted_cosmologies_ascend(full):
    """`curvature` holds them as (below, above), and its recipe holds the step alone."""
    centre, step = full.cosmology.omch2, full.derivatives.omch2_step
    assert full.shifted_omch2() == pytest.approx((centre - step, centre + step), abs=1e-8)


def test_paths_of_different_products_differ(full):
    paths = [
        *(full.sky_path(name, i) for name in full.set_names() for i in (0, 1)),
        *(full.bandpower_path(name, i) for name in full.set_names() for i in (0, 1)),
        *(primary.path_of(full, name, i) for name in full.set_names() for i in (0, 1)),
        *(full.derivative_path(i) for i in (0, 1)),
        *(full.curvature_path(i) for i in (0, 1)),
        *(full.nuisance_path(i) for i in (0, 1)),
        *(full.coverage_path(i) for i in (0, 1)),
        *(full.point_path(c, i) for c in (POINT, {"H0": 71.0}, {"ns": 70.0}) for i in (0, 1)),
        *(full.null_path(n, i) for n in ("noise", "curl") for i in (0, 1)),
        *(full.release_path(s, i) for s in ("low", "high") for i in (0, 1)),
        full.mean_field_path,
        full.exhibit_path,
        full.trained_path,
        full.training_directory,
    ]
    assert len(set(paths)) == len(paths)
    assert all(full.products in path.parents for path in paths)
    elsewhere = full.model_copy(update={"skies_from": REPOSITORY})
    assert REPOSITORY in elsewhere.sky_path("test", 0).parents
    assert elsewhere.bandpower_path("test", 0) == full.bandpower_path("test", 0)
