"""The page on extending: its code, run from outside the package."""

import re
import sys
from importlib import import_module

import numpy as np
import pytest

import yaml
from cobaya_cnnlens.errors import ProductError
from cobaya_cnnlens.pipeline import mean_field, skies
from cobaya_cnnlens.pipeline.estimators import label_of
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate.shards import FIELDS, write_shard

from .conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")


def blocks(section, language):
    """The page's code of one section."""
    text = PAGE.partition(f"({section})=")[2].partition("\n(")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of another's: modules, and what its pyproject.toml registers."""

    def install(name, code, registered=""):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(registered)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return import_module(name)

    return install


@pytest.fixture
def content(small_config):
    """A configuration whose first training and test skies are two patches of noise."""
    generator = np.random.default_rng(5)
    n, run = small_config.patch.n_padded, Run(small_config)
    fields = {f: generator.standard_normal((2, n, n)).astype("f4") for f in FIELDS}
    for name in ("train", "test"):
        write_shard(skies.path(run, name, 0), skies.recipe(run, name, 0), fields)
    return small_config.model_dump(mode="json")


def test_an_estimator(package, content, tmp_path):
    [code], [toml], [own] = (blocks("an-estimator", kind) for kind in ("python", "toml", "yaml"))
    header, line = toml.strip().splitlines()
    [group] = re.findall(r'entry-points\."(.*)"', header)
    package("scaled", code, f"[{group}]\n{line}\n".replace('"', ""))
    (tmp_path / "laptop.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "mine.yaml").write_text(own)
    config = load_config(tmp_path / "mine.yaml")
    made = tmp_path / "products" / "skies"
    config = config.model_copy(update={"products": tmp_path / "p", "skies_from": made})
    scaled = Run(config)
    assert label_of(config.baseline) == "Wiener QE, scaled"
    wiener = config.baseline.model_copy(update={"kind": "wiener"})
    whole = Run(config.model_copy(update={"baseline": wiener, "products": tmp_path / "w"}))
    seen = observe_sky(scaled, "test", 0)
    np.testing.assert_allclose(
        scaled.estimator.reconstruct(seen.q, seen.u),
        0.8 * whole.estimator.reconstruct(seen.q, seen.u),
    )
    assert mean_field.path(scaled).exists()
    assert scaled.estimator_id != whole.estimator_id


def test_a_stage(package, small_config, content):
    """What is there is left alone, and what was made otherwise refused."""
    code, use = blocks("a-stage", "python")
    signs = package("signs", code)

    class Mirrored:
        calls = 0

        def reconstruct(self, q, u):
            self.calls += 1
            return -observe_sky(run, "test", 0).kappa

    mirrored = Mirrored()
    run = Run(small_config, "a" * 64, mirrored)
    names = {"measure": signs.measure, "read": signs.read, "print": lambda mean: None}
    signs.measure(run, 0)
    signs.measure(run, 0)
    assert mirrored.calls == 1
    # Beyond the mask there is neither.
    np.testing.assert_allclose(signs.read(run, 0), np.mean(run.mask == 0), atol=1e-3)
    with pytest.raises(ProductError, match="made from another configuration"):
        signs.read(Run(small_config, "b" * 64), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobaya_cnnlens.pipeline.loading.load_config", lambda path: small_config)
        patch.setattr("cobaya_cnnlens.pipeline.run.Run", lambda config: run)
        exec(use, names)
