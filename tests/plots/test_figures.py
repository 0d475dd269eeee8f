"""Every stage's figure, of a small configuration and of products written by hand."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens import products
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.pipeline import networks
from cobaya_cnnlens.pipeline.assemble import make_release
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.plots import figures, validation_figures
from cobaya_cnnlens.plots.drawing import save, subplots
from cobaya_cnnlens.plots.figures import PATCH
from cobaya_cnnlens.plots.posteriors import predictive_figure
from cobaya_cnnlens.validate import coverage, primary
from cobaya_cnnlens.validate.noise import NoiseTable

from ..conftest import REPOSITORY
from ..written import Written, small

NETWORK = REPOSITORY / "tests" / "fixtures" / "width4.keras"
# Theirs are tests of their own: test_nulls draws the nulls.
DRAWN = set(figures.STAGES) - {"nulls", "foregrounds"}


@pytest.fixture(scope="module")
def made(camb_once, tmp_path_factory) -> Config:
    """A configuration that names a network, and the products of its stages; patches of a sky are
    fewer than the one that the figures would show."""
    folder = tmp_path_factory.mktemp("figures")
    content = small(folder / "products")
    content["network"]["pretrained"] = str(NETWORK)
    content["coverage"] = {"skies": 2, "patches_each": 2}
    content["skies"]["test"] = 2
    config = Config.model_validate(content)
    digest = Run(config).estimator_id
    written = Written(config, digest)
    Skies(Run(config), 1).measure("test", [0, 1])
    primary.measure(Run(config))
    for index in range(2):
        auto = written.auto[10 * index : 10 * (index + 1)]
        recipe = coverage.recipe(Run(config, digest), index)
        arrays = {"auto": auto, "truth": auto}
        products.write_product(coverage.path(Run(config), index), "coverage", recipe, arrays)
    from cobaya_cnnlens.pipeline.training_state import TrainingRun

    run = TrainingRun(networks.training_directory(Run(config)), networks.recipe(Run(config)))
    losses = {f"{v}{name}_loss": 1.0 for name in ("e", "kappa") for v in ("", "val_")}
    run.directory.mkdir(parents=True)
    record = {"epoch": 1, "val_loss": 2.0, **losses}
    run.finish_epoch(Saved(), record)
    run.finish_epoch(Saved(), {**record, "epoch": 2, "val_loss": 1.5})
    return config


class Saved:
    """In a network's place."""

    def save(self, path):
        path.write_bytes(b"")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name in ("n0_eb", "n0_iterated"):
        monkeypatch.setattr(
            f"cobaya_cnnlens.validate.noise.{name}", lambda L, *_: np.full(np.shape(L), 1e-8)
        )
    monkeypatch.setattr(
        "cobaya_cnnlens.validate.omch2.OMCH2_NODES", np.array([0.1, 0.11, 0.1185, 0.13, 0.14])
    )


@pytest.mark.parametrize("stage", sorted(DRAWN))
def test_every_stage_has_a_figure(made, tmp_path, stage, eager):
    """A picture is written, in which every axis that is shown holds something."""
    out = tmp_path / "new" / f"{stage}.png"
    figure = figures.draw(Run(made), stage)
    assert save(figure, out) == out
    assert out.read_bytes().startswith(b"\x89PNG")
    for axis in figure.axes:
        assert axis.has_data() or not axis.get_visible()


def test_the_patch_that_is_shown():
    """One of a sky of 160; the last of a sky that has it not."""
    assert figures._shown_patch(160) == PATCH
    assert [figures._shown_patch(n) for n in (1, PATCH, PATCH + 1)] == [0, PATCH - 1, PATCH]


def test_maps_are_those_of_one_patch(made, eager):
    """κ, κ̂ and their difference, E likewise, of the same patch of the test sky."""
    axes = figures.reconstruction_figure(Run(made)).axes
    shown = [image.get_array() for axis in axes for image in axis.get_images()]
    assert len(shown) == 6
    for true, found, difference in (shown[:3], shown[3:]):
        np.testing.assert_allclose(difference, true - found, atol=1e-6)
    sky = [
        image.get_array() for axis in figures.sky_figure(Run(made)).axes for image in axis.images
    ]
    np.testing.assert_array_equal(sky[3], shown[0])
    np.testing.assert_array_equal(sky[2], shown[3])


def test_an_estimator_without_e_is_shown_without(made):
    """A baseline gives κ̂ alone."""

    class Alone:
        def reconstruct(self, q, u):
            return 0.1 * q

    axes = figures.reconstruction_figure(Run(made, estimator=Alone())).axes
    assert sum(len(axis.get_images()) for axis in axes) == 3


@pytest.mark.parametrize(
    ("baseline", "name"),
    [
        (None, "network"),
        ({"kind": "wiener"}, "Wiener QE of E and B"),
        ({"kind": "quadratic", "combination": "ee"}, "EE QE, naive"),
    ],
)
def test_the_noise_is_called_by_the_estimators_name(made, monkeypatch, baseline, name):
    """Not all estimators are ResUNets."""
    content = {**made.model_dump(mode="json"), "baseline": baseline}
    table = NoiseTable(L, *[np.full(3, 1e-8)] * 9)
    monkeypatch.setattr(validation_figures, "noise_table", lambda _: table)
    left, *_ = validation_figures.noise_figure(Run(Config.model_validate(content))).axes
    assert f"{name}, $N_L$" in left.get_legend_handles_labels()[1]


def test_unknown_stages_and_missing_products_are_told(made, tmp_path):
    with pytest.raises(CNNLensError, match="no figure for stage 'skies'; choose one of spectra"):
        figures.draw(Run(made), "skies")
    empty = made.model_copy(update={"products": tmp_path, "skies_from": made.sky_directory})
    for stage in sorted(DRAWN - {"spectra", "sky", "reconstruction"}):
        with pytest.raises(CNNLensError):
            figures.draw(Run(empty), stage)


def test_the_command(made, tmp_path):
    """`cnnlens figure CONFIG spectra`, in the products' folder unless told otherwise."""
    path = tmp_path / "config.yaml"
    path.write_text(made.model_dump_json())
    result = CliRunner().invoke(app, ["figure", str(path), "spectra"])
    assert result.exit_code == 0, result.output
    assert (made.products / "figures" / "spectra.png").exists()


def python(code, *arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


# Backends of notebooks: matplotlib-inline's name is known to getdist, ipympl's is not.
BACKENDS = ("svg", "module://notebook_inline", "module://notebook_widget")
LOOK = """
import importlib, pkgutil, sys
import matplotlib
from cobaya_cnnlens import plots
for module in pkgutil.iter_modules(plots.__path__):
    importlib.import_module(f"cobaya_cnnlens.plots.{module.name}")
    assert matplotlib.rcParams._get("backend") == sys.argv[1], module.name
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.get_backend() == sys.argv[1]
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The environment of a notebook's process on a machine without a display."""
    folder = tmp_path_factory.mktemp("backends")
    for name in ("inline", "widget"):
        text = "from matplotlib.backends.backend_agg import FigureCanvas\n"
        (folder / f"notebook_{name}.py").write_text(text)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"DISPLAY": "", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_notebook_keeps_its_plots(notebook, backend):
    """No module of the figures chooses a backend when it is imported, or makes one be chosen.
    getdist draws with pyplot, and its import takes Agg: the backend stays, so does a figure that
    is open, and the one drawn is not left open beside it."""
    code = """
import io
import matplotlib.pyplot as plt
import numpy as np
from getdist import MCSamples

from cobaya_cnnlens.plots.posteriors import posteriors_figure
from cobaya_cnnlens.validate.chains import Chain
own = plt.figure()
samples = np.random.default_rng(0).standard_normal((2000, 2))
chain = MCSamples(samples=samples, names=["a", "b"], settings={"ignore_rows": 0})
for params in (["a"], ["a", "b"]):
    posteriors_figure([Chain("chains/none", chain, {}, 0.0)], params).savefig(io.BytesIO())
assert matplotlib.get_backend() == sys.argv[1]
assert type(plt.figure().canvas) is type(own.canvas)
assert plt.get_fignums() == [1, 2]
"""
    result = python(LOOK + code, backend, MPLBACKEND=backend, **notebook)
    assert result.returncode == 0, result.stderr


def test_one_module_writes_pictures():
    """The others return figures, for whoever asked to write or to show."""
    folder = REPOSITORY / "cobaya_cnnlens"
    writers = [path for path in folder.rglob("*.py") if "savefig" in path.read_text()]
    assert writers == [folder / "plots" / "drawing.py"]


L = np.array([100.0, 200.0, 300.0])
PREDICTED = SimpleNamespace(
    edges=np.stack([L - 50, L + 50], axis=1),
    data=L,
    best_model=L,
    band=np.ones((5, 3)),
    model_band=np.ones((2, 3)),
    best_chi2=1.0,
    p=0.5,
    blinded=False,
)
PANELS = {
    "training": lambda config, axis: figures.training_figure(Run(config), axis),
    "bandpowers": lambda config, axis: figures.bandpowers_figure(Run(config), axis),
    "predictive": lambda _, axis: predictive_figure(PREDICTED, axis),
}


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_is_drawn_where_it_is_wanted(made, name):
    """On the given axis and no other, or on that of a figure of its own."""
    figure, (left, right) = subplots(1, 2, figsize=(8, 4))
    assert PANELS[name](made, right) is figure
    assert right.has_data()
    assert not left.has_data()
    (own,) = PANELS[name](made, None).axes
    assert own.has_data()
    assert own.figure is not figure


def test_figures_need_no_display_and_leave_none_open(made, tmp_path):
    """Drawn by a backend that needs a screen, where there is none; from Python and as a command."""
    path = tmp_path / "config.yaml"
    path.write_text(made.model_dump_json())
    code = """
import sys
from pathlib import Path
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.plots.drawing import save
from cobaya_cnnlens.plots.figures import draw
save(draw(Run(load_config(sys.argv[2])), "spectra"), Path("a.png"))
assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
from cobaya_cnnlens.cli.main import run
run()
"""
    options = ["figure", str(path), "spectra", "--out", str(tmp_path / "b.png")]
    result = python(code, *options, MPLBACKEND="TkAgg", DISPLAY="", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_figure_of_coverage(made):
    """Ranks by tenths over the band of simulated sets, and every survey's pull at its truth."""
    run = Run(made)
    tables = coverage.coverage_tables(run, make_release(run, "fiducial"), coverage.read(run))
    left, right = validation_figures.draw_coverage(tables).axes
    (table,) = tables
    ranks, band = (patch.get_data() for patch in left.patches)
    np.testing.assert_array_equal(ranks.values, table.tenths)
    assert (band.baseline <= band.values).all()
    assert (band.baseline < band.values).any()
    np.testing.assert_array_equal(right.lines[0].get_xdata(), table.truth)
    np.testing.assert_allclose(right.lines[0].get_ydata(), table.pulls)
