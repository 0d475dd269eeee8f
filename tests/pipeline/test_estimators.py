"""The choice of an estimator: a baseline in a network's place, its mean field and its identity."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field

import yaml
from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.pipeline import estimators
from cobaya_cnnlens.pipeline.assemble import bandpowers_of
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.estimators import (
    ESTIMATORS,
    GROUP,
    label_of,
    name_of,
    registered,
    with_own_options,
)
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.mean_field import MeanField
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import measurement_recipe
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.sections import Section
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.products import ProductError
from cobaya_cnnlens.reconstruct.map_lensing import LOWEST_LEVEL, TOLERANCES, MAPLensing
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.shards import FIELDS

from ..conftest import REPOSITORY


def with_baseline(config, **baseline):
    content = {**config.model_dump(mode="json"), "baseline": baseline}
    return with_own_options(Config.model_validate(content))


@pytest.fixture
def noisy(small_config):
    """A configuration whose one training sky is two patches of noise."""
    generator = np.random.default_rng(5)
    n = small_config.patch.n_padded
    fields = {f: generator.standard_normal((2, n, n)).astype("f4") for f in FIELDS}
    Skies(Run(small_config)).write(fields, "train", 0)
    return small_config


def test_mean_field_is_subtracted_and_kept(noisy):
    """κ̂ of the very patches that gave the mean field averages to nothing; a second run reads it."""
    config = with_baseline(noisy, kind="quadratic")
    estimator = Run(config).estimator
    seen = observe_sky(Run(config), "train", 0)
    found = estimator.reconstruct(seen.q, seen.u)
    mask = Run(config).mask
    bare = QuadraticEstimator(
        config.patch, config.instrument, mask, Run(config).spectra()
    ).reconstruct(seen.q, seen.u)
    np.testing.assert_allclose(found, mask * (bare - bare.mean(0)), atol=1e-9 * bare.std())
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-9 * found.std())
    Skies(Run(config)).path("train", 0).unlink()
    again = Run(config).estimator.reconstruct(seen.q, seen.u)
    np.testing.assert_array_equal(again, found)
    MeanField(Run(config)).path().unlink()
    with pytest.raises(ProductError, match=r"sky_0000\.h5: no such file"):
        _ = Run(config).estimator


@pytest.mark.parametrize("kind", ["wiener", "map"])
def test_threads_change_nothing(noisy, kind):
    config = with_baseline(noisy, kind=kind, passes=2)
    estimator = Run(config).estimator
    seen = observe_sky(Run(config), "train", 0)
    one = estimator.reconstruct(seen.q[:2], seen.u[:2])
    for i in (0, 1):
        alone = estimator.reconstruct(seen.q[i : i + 1], seen.u[i : i + 1])
        np.testing.assert_array_equal(one[i : i + 1], alone)
    assert np.isfinite(one).all()
    assert one.std() > 0


def test_a_baseline_has_an_identity_of_its_own(small_config):
    kinds = [{"kind": "quadratic"}, {"kind": "quadratic", "leakage": "pure"}, {"kind": "wiener"}]
    kinds.append({"kind": "map"})
    hashes = {Run(with_baseline(small_config, **kind)).estimator_id for kind in kinds}
    assert len(hashes) == 4


def test_an_own_option_may_have_the_name_of_a_shipped_one(small_config, monkeypatch):
    class Options(Section):
        passes: int = 3

    monkeypatch.setattr(estimators, "registered", lambda kind: (None, "mine", Options))
    assert with_baseline(small_config, kind="mine", passes=9).baseline.passes == 9
    assert with_baseline(small_config, kind="mine").baseline.passes == 3


def noiseless(config):
    instrument = replace(config.instrument, noise_uk_arcmin=0.0)
    return config.model_copy(update={"instrument": instrument})


@pytest.mark.parametrize(
    ("kind", "refused"), [("wiener", False), ("map", False), ("quadratic", True), (None, True)]
)
def test_only_filters_leave_out_b_modes(small_config, kind, refused):
    """A ResUNet, which has no baseline, and the quadratic estimator of plain modes cannot."""
    content = small_config.model_dump() | {"reconstruction": {"lmin_b": 300}}
    content["baseline"] = kind and {"kind": kind}
    if refused:
        with pytest.raises(ValueError, match=r"reconstruction\.lmin_b is 300; a ResUNet or quad"):
            Config.model_validate(content)
        return
    with_all = Config.model_validate(content | {"reconstruction": {}})
    runs = Run(Config.model_validate(content)), Run(with_all)
    low, every = map(measurement_recipe, runs)
    # The mean field is that of κ̂ without these modes.
    assert low["network"] == runs[0].estimator_id != runs[1].estimator_id == every["network"]
    assert low == every | {"lmin_b": 300, "network": low["network"]}


def test_filters_take_the_floor_for_less_noise(noisy):
    """κ̂ of noiseless maps is that of filters made for the floor."""
    config = with_baseline(noiseless(noisy), kind="wiener")
    seen = observe_sky(Run(config), "train", 0)
    mask = Run(config).mask
    theory = Run(config).spectra()
    floored = replace(config.instrument, noise_uk_arcmin=LOWEST_LEVEL)
    bare = MAPLensing(config.patch, floored, mask, theory, 1, tolerances=TOLERANCES[-1:])
    bare = bare.reconstruct(seen.q, seen.u)
    found = Run(config).estimator.reconstruct(seen.q, seen.u)
    np.testing.assert_allclose(found, mask * (bare - bare.mean(0)), atol=1e-9 * bare.std())


def test_wrong_baselines_are_refused(small_config, tmp_path):
    import yaml
    from cobaya_cnnlens.pipeline.loading import load_config

    for baseline, message in (
        ({"kind": "bilinear"}, "baseline.kind"),
        ({"kind": "wiener", "passes": 1}, "baseline.passes"),
    ):
        content = {**small_config.model_dump(mode="json"), "baseline": baseline}
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=message):
            load_config(path)


class Share(BaseModel):
    """Options of an estimator of another package."""

    model_config = ConfigDict(extra="forbid")
    share: float = Field(0.9, gt=0, le=1)


class Scaled:
    def __init__(self, estimator, share):
        self.estimator, self.share = estimator, share

    def reconstruct(self, q, u):
        return self.share * self.estimator.reconstruct(q, u)


def build_scaled(run):
    build_wiener, *_ = ESTIMATORS["wiener"]
    return Scaled(build_wiener(run), run.config.baseline.share)


def test_an_estimator_is_added_in_one_line(noisy, monkeypatch):
    """Its κ̂ has the mean field taken off and the mask put on; its options are part of what it is,
    those left out too."""
    monkeypatch.setitem(ESTIMATORS, "scaled", (build_scaled, "Wiener QE, scaled", Share))
    run = Run(with_baseline(noisy, kind="scaled", share=0.8))
    seen = observe_sky(run, "train", 0)
    wiener = Run(with_baseline(noisy, kind="wiener"))
    expected = wiener.estimator.reconstruct(seen.q, seen.u)
    MeanField(wiener).path().unlink()
    np.testing.assert_allclose(run.estimator.reconstruct(seen.q, seen.u), 0.8 * expected)
    assert label_of(run.config.baseline) == "Wiener QE, scaled"
    same = [{"kind": "scaled"}, {"kind": "scaled", "share": 0.9}]
    one, two = (Run(with_baseline(noisy, **baseline)).estimator_id for baseline in same)
    assert one == two != run.estimator_id


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"kind": "wiener", "share": 0.5}, "no option 'share' of the estimator 'wiener'; remove"),
        ({"kind": "scaled", "shared": 0.5}, "shared"),
        ({"kind": "scaled", "share": 2.0}, "less than or equal to 1"),
        (
            {"kind": "other"},
            "no estimator 'other'; there are map, quadratic, scaled",
        ),
    ],
)
def test_options_of_ones_own_are_checked(small_config, tmp_path, monkeypatch, baseline, message):
    monkeypatch.setitem(ESTIMATORS, "scaled", (build_scaled, "Wiener QE, scaled", Share))
    content = {**small_config.model_dump(mode="json"), "baseline": baseline}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "c.yaml")
    assert "baseline" in str(caught.value)


def test_another_package_adds_one(small_config, tmp_path, monkeypatch):
    """By an entry point, which is all that it takes."""
    (tmp_path / "elsewhere.py").write_text(
        "class Nothing:\n"
        "    def reconstruct(self, q, u):\n"
        "        return 0.0 * q\n"
        "entry = (lambda run: Nothing(), 'nothing')\n"
    )
    folder = tmp_path / "elsewhere-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\nnothing = elsewhere:entry\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = with_baseline(small_config, kind="nothing")
    builder, label = registered("nothing")
    maps = np.ones((1, 4, 4))
    assert (builder(Run(config)).reconstruct(maps, maps) == 0).all()
    assert label_of(config.baseline) == label == "nothing"


@pytest.mark.parametrize(
    ("file", "changes", "name"),
    [
        ("resunet_1uk.yaml", {}, "ResUNet"),
        ("refined.yaml", {}, "refining network"),
        ("resunet_1uk.yaml", {"baseline": {"kind": "quadratic"}}, "EB QE, naive"),
        ("resunet_1uk.yaml", {"baseline": {"kind": "map"}}, "MAP"),
    ],
)
def test_a_release_is_described_by_what_made_it(file, changes, name):
    content = load_config(REPOSITORY / "training" / "config" / file).model_dump()
    config = Config.model_validate(content | changes)
    assert name_of(config) == name
    assert bandpowers_of(name) == f"convergence bandpowers ({name}), debiased"
    assert bandpowers_of(None) == "convergence bandpowers, debiased"
