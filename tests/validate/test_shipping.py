"""Products that travel with the code give the numbers that the configuration's own give."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens import products
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError, ConfigError, NetworkError, ProductError
from cobaya_cnnlens.likelihood.fields import SIMULATED
from cobaya_cnnlens.pipeline import networks
from cobaya_cnnlens.pipeline.assemble import make_release
from cobaya_cnnlens.pipeline.loading import load_config, load_study
from cobaya_cnnlens.pipeline.nuisances import Nuisances
from cobaya_cnnlens.pipeline.perturbations import Derivatives, ShiftedSkies
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.validate import coverage, primary, shipping
from cobaya_cnnlens.validate.forecast import forecast
from cobaya_cnnlens.validate.noise import noise_table

from ..conftest import REPOSITORY, write_network

PATCHES = 60


@pytest.fixture(autouse=True)
def flat_curves(monkeypatch):
    """Analytic curves are tested elsewhere, and take seconds."""
    for name in ("n0_eb", "n0_iterated"):
        monkeypatch.setattr(
            f"cobaya_cnnlens.validate.noise.{name}", lambda L, *_: np.full(len(L), 1e-7)
        )


@pytest.fixture
def made(tmp_path):
    """A configuration whose network is trained and whose products are all there, of made-up
    numbers; its file is written as YAML beside them."""
    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    content |= {"products": str(tmp_path / "own"), "shipped": str(tmp_path / "ships" / "a.h5")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    config = load_config(tmp_path / "c.yaml")
    config.products.mkdir()
    write_network(networks.path(Run(config)), metadata={"recipe": networks.recipe(Run(config))})
    digest = Run(config).estimator_id
    generator = np.random.default_rng(1)
    n_bins, bands = config.bandpowers.n_bins, config.derivatives

    def power(*shape):
        return 1e-8 * generator.chisquare(40, (*shape, PATCHES, n_bins)) / 40

    for name in ("validation", "test", *(f"survey-{s}" for s in config.surveys)):
        for i in range(config.set_size(name)):
            truth, noise = power(), power()
            arrays = {"auto": 0.25 * (truth + noise), "cross": 0.5 * truth, "truth": truth}
            recipe = Bandpowers(Run(config, digest)).recipe(name, i)
            products.write_product(
                Bandpowers(Run(config)).path(name, i), "bandpowers", recipe, arrays
            )
    for i in range(config.skies.derivatives):
        n_kk, n_ee = len(bands.kk_edges) - 1, len(bands.ee_edges) - 1
        arrays = {"kk": power(n_kk), "kk_truth": power(n_kk), "ee": power(n_ee)}
        arrays |= {"auto": power(), "truth": power()}
        recipe = Derivatives(Run(config, digest)).recipe(i)
        products.write_product(Derivatives(Run(config)).path(i), "derivatives", recipe, arrays)
        arrays = {"auto": power(2), "truth": power(2)}
        recipe = ShiftedSkies(Run(config, digest)).recipe(i)
        products.write_product(ShiftedSkies(Run(config)).path(i), "curvature", recipe, arrays)
    for i in range(config.nuisances.skies):
        arrays = {name: power(2) for name in SIMULATED}
        recipe = Nuisances(Run(config, digest)).recipe(i)
        products.write_product(Nuisances(Run(config)).path(i), "nuisances", recipe, arrays)
    for i in range(config.skies.test):
        path, recipe = primary.path(Run(config), "test", i), primary.recipe(Run(config), "test", i)
        products.write_product(path, "primary", recipe, {"ee": power(), "bb": power()})
    return config


def elsewhere(config):
    """As in a fresh clone: neither a network nor a product."""
    return config.model_copy(update={"products": config.products.with_name("clone")})


def test_shipped_products_give_the_same_numbers(made, monkeypatch):
    """But for the rounding, which is not asked for here."""
    monkeypatch.setattr("cobaya_cnnlens.products.SHIPPED_BITS", 24)
    counts = shipping.ship(Run(made))
    assert counts["bandpowers, test"] == made.skies.test
    assert set(counts) >= {"derivatives", "second order", "nuisances", "primary spectra"}
    clone, digest = elsewhere(made), Run(made).estimator_id
    assert Run(clone).estimator_id == digest
    found = []
    for config in (made, clone):
        release = make_release(Run(config, digest), config.first_survey, packages=False)
        joint = primary.read_joint(Run(config, digest))
        noise = noise_table(Run(config, digest))
        found.append(
            [
                *(release.bandpowers, release.covariance, release.kk_derivatives),
                *(release.curvature, release.nuisance_second, joint.covariance),
                *(noise.response, noise.noise),
                np.array(vars(forecast(Run(config, digest)))["sigma"]),
            ]
        )
    for own, shipped in zip(*found, strict=True):
        scale = np.abs(own).max()
        np.testing.assert_allclose(shipped / scale, own / scale, rtol=1e-5, atol=1e-6)


def test_commands_work_from_what_is_shipped_alone(made, tmp_path):
    """A clone holds the configuration and its shipped file."""
    shipping.ship(Run(made))
    content = yaml.safe_load((tmp_path / "c.yaml").read_text())
    content["products"] = str(tmp_path / "clone")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    for command, *options in (("evaluate",), ("evaluate", "--table", "forecast"), ("primary",)):
        result = CliRunner().invoke(app, [command, str(tmp_path / "c.yaml"), *options])
        assert result.exit_code == 0, (command, result.exception)
        assert len(result.output.splitlines()) > 1
    (made.shipped).unlink()
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "c.yaml")])
    assert isinstance(result.exception, NetworkError)


def test_the_command(made, tmp_path):
    result = CliRunner().invoke(app, ["ship", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.exception
    assert f"{made.skies.test:4d} skies of bandpowers, test" in result.output
    assert str(made.shipped) in result.output


def test_own_products_win_and_what_was_shipped_stays(made):
    """Also when the shipped file is written anew: from what there is of both."""
    shipping.ship(Run(made))
    digest = Run(made).estimator_id
    path, recipe = (
        Bandpowers(Run(made)).path("test", 0),
        Bandpowers(Run(made, digest)).recipe("test", 0),
    )
    ours = {name: np.full((PATCHES, made.bandpowers.n_bins), 0.5) for name in ("auto", "cross")}
    path.unlink()
    products.write_product(path, "bandpowers", recipe, {**ours, "truth": ours["auto"]})
    Bandpowers(Run(made)).path("validation", 0).unlink()
    for config in (made, elsewhere(made)):
        changed = (Bandpowers(Run(config, digest)).read("test", [0]).auto == 0.5).all()
        assert changed == (config is made)
    before = Bandpowers(Run(elsewhere(made), digest)).read("validation")
    shipping.ship(Run(made))
    assert (Bandpowers(Run(elsewhere(made), digest)).read("test", [0]).auto == 0.5).all()
    after = Bandpowers(Run(elsewhere(made), digest)).read("validation")
    np.testing.assert_array_equal(after.auto, before.auto)


def test_another_training_has_no_shipped_bandpowers(made):
    """Nor has another instrument: its recipe is looked for."""
    shipping.ship(Run(made))
    clone, digest = elsewhere(made), Run(made).estimator_id
    network = clone.network.model_copy(update={"seed": 9})
    with pytest.raises(NetworkError, match="run `cnnlens train`"):
        _ = Run(clone.model_copy(update={"network": network})).estimator_id
    louder = replace(clone.instrument, noise_uk_arcmin=9.0)
    with pytest.raises(ProductError, match=r"a\.h5 has none of this configuration; run `cnnlens"):
        Bandpowers(Run(clone.model_copy(update={"instrument": louder}), digest)).read("test")


def test_stages_want_a_network_of_their_own(made, tmp_path):
    """What is shipped does not stand for a network that must run; told before Keras is loaded."""
    shipping.ship(Run(made))
    networks.path(Run(made)).unlink()
    result = CliRunner().invoke(app, ["reconstruct", str(tmp_path / "c.yaml"), "--set", "test"])
    assert isinstance(result.exception, NetworkError)
    assert "own/network.keras: the network cannot be read" in str(result.exception)


def test_what_cannot_be_shipped(made):
    with pytest.raises(ConfigError, match=r"key 'shipped' names no file; add one"):
        shipping.ship(Run(made.model_copy(update={"shipped": None})))
    shipping.ship(Run(made))
    with pytest.raises(ConfigError, match=r"holds the products of 'test'; give this"):
        shipping.ship(Run(made.model_copy(update={"name": "other"})))
    made.shipped.unlink()
    empty = elsewhere(made)
    empty.products.mkdir()
    networks.path(Run(made)).rename(networks.path(Run(empty)))
    with pytest.raises(CNNLensError, match="holds nothing to ship of 'test'; run `cnnlens"):
        shipping.ship(Run(empty))
    assert not made.shipped.exists()


SHIPPED = sorted((REPOSITORY / "training" / "bandpowers").glob("*.h5"))
CONFIGURATIONS = sorted((REPOSITORY / "training" / "config").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_what_this_repository_ships(path, monkeypatch, tmp_path):
    """Every file is its configuration's, of the network that ships, and gives N_L from a clone; or
    the bandpowers of coverage skies, noise and signal."""
    monkeypatch.chdir(REPOSITORY)
    with products.open_product(path, products.SHIPPED) as product:
        owner = product.recipe["configuration"]
    (config,) = (c for f in CONFIGURATIONS for c in load_study(f).values() if c.name == owner)
    assert config.shipped.resolve() == path
    config = config.model_copy(update={"products": tmp_path})
    digest = Run(config).estimator_id
    if path.stem.startswith("refined_coverage"):
        skies = coverage.read(Run(config, digest))
        assert len({tuple(sky.parameters.values()) for sky in skies}) == len(skies) > 15
        for sky in skies:
            assert sky.auto.shape == sky.truth.shape
            assert len(sky.auto) == len(sky.power) == (config.coverage.patches or 160)
            assert (sky.auto.mean(0) > 0).all()
        return
    table = noise_table(Run(config, digest))
    assert (table.noise > 0).all()
    n = Run(config).n_patches
    assert len(Bandpowers(Run(config, digest)).read("test").auto) == n * config.skies.test


def test_what_this_repository_ships_is_small():
    """The power of a dense sky is another .4 MB beside the .4 of its bandpowers."""
    assert sum(path.stat().st_size for path in SHIPPED) < 20e6
