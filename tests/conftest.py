"""Shared fixtures: a fiducial theory, a small configuration, a synthetic release."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process a core: threads that wait for each other would only hold each other up.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from cobaya_cnnlens.likelihood.fields import ARRAYS, NUISANCES, Group, Release, fields_of
from cobaya_cnnlens.likelihood.release import with_fixed_debias, without
from cobaya_cnnlens.reconstruct import check_backend
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Cosmology,
    Spectra,
    compute_spectra,
    settings_record,
)

REPOSITORY = Path(__file__).parents[1]
# Cobaya inputs, and those of them with the lensing likelihood.
INPUTS = sorted((REPOSITORY / "yaml").glob("*.yaml"))
LENSING_INPUTS = [path for path in INPUTS if "CNNLens" in path.read_text()]
# Some tests load Keras before the package does, which sets its backend.
check_backend()


def pytest_collection_modifyitems(items):
    """Checks of the repository have a mark of their own."""
    for item in items:
        if item.path.parent.name == "meta":
            item.add_marker(pytest.mark.meta)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of all processes of a test run."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def camb_once(shared):
    """The pipeline's CAMB runs once per cosmology and settings in all processes of a test run; the
    fixture is :func:`compute_spectra` with that memory."""

    def remembered(cosmology: Cosmology, settings: CambSettings) -> Spectra:
        from cobaya_cnnlens import products

        recipe = settings_record(cosmology, settings)
        path = shared / "spectra" / f"{products.identity_of(recipe)}.h5"
        if not path.exists():
            spectra = compute_spectra(cosmology, settings)
            products.write_product(path, "spectra", recipe, vars(spectra))
        with products.open_product(path, "spectra", recipe) as product:
            return Spectra(**{name: product.array(name) for name in product.names()})

    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError):  # a light installation has no pipeline
            patch.setattr("cobaya_cnnlens.pipeline.simulation.compute_spectra", remembered)
            patch.setattr("cobaya_cnnlens.validate.analytic.compute_spectra", remembered)
            # κ̂ differs where the last bits of the spectra do, as CAMB's do between processes.
            patch.setattr("cobaya_cnnlens.maps.release_estimator.compute_spectra", remembered)
        yield remembered


@pytest.fixture(scope="session", autouse=True)
def nodes_of_this_run(shared):
    """NodeCAMB's nodes are kept for all processes of a test run, and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        yield


@pytest.fixture(scope="session")
def simulated_run(camb_once, shared):
    """A run whose products are simulated once for all processes of a test run."""
    from .written import simulated_run

    return simulated_run(shared / "simulated")


@pytest.fixture(scope="session")
def fiducial(camb_once) -> Spectra:
    """Spectra of the fiducial cosmology to l = 5000, at the pipeline's accuracy."""
    return camb_once(Cosmology(), CambSettings())


@pytest.fixture
def small_config(tmp_path):
    """The test configuration with its products in a fresh folder."""
    from cobaya_cnnlens.pipeline.loading import load_config

    config = load_config(REPOSITORY / "training" / "config" / "test.yaml")
    return config.model_copy(update={"products": tmp_path / "products"})


@pytest.fixture
def eager():
    """TensorFlow runs operations one by one: a few steps of training take seconds, tracing them
    takes a minute. JAX compiles as it always does."""
    from cobaya_cnnlens.reconstruct.backend import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow

    tensorflow.config.run_functions_eagerly(True)
    yield
    tensorflow.config.run_functions_eagerly(False)


def write_network(path, weights=None, date="2026-01-01@00:00:00", **arguments) -> Path:
    """A ``.keras`` file as Keras writes it, without Keras: of width 1, with a kernel of its widest
    layer and a bias unless ``weights`` are given by path, and with other ``arguments``."""
    import h5py

    if weights is None:
        weights = {
            "layers/c7/vars/0": np.arange(12.0, dtype="f4").reshape(1, 1, 3, 4),
            "layers/c7/vars/1": np.ones(4, "f4"),
        }
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, values in weights.items():
            file[name] = values
    config = {
        "module": "cobaya_cnnlens.reconstruct.resunet",
        "class_name": "ResUNet",
        "config": {"width": 1, "input_std": [1.0, 1.0], "output_std": [1.0, 1.0], **arguments},
        "registered_name": "cobaya_cnnlens>ResUNet",
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"date_saved": date}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", content.getvalue())
    return path


def of_nuisances(*first: float, others: float = 0.0) -> np.ndarray:
    """One number for each of ``NUISANCES``: those of the first, and what all others have."""
    return np.array([*first, *[others] * (len(NUISANCES) - len(first))])


# Attributes of a release whose numbers are written with fewer digits.
BY_MULTIPOLE = "windows", "fiducial_kk", "fiducial_ee"


def synthetic_release(n_bins: int = 5, **changes) -> Release:
    """A release of smooth made-up numbers that holds every field. Its bandpowers are the model at
    the fiducial cosmology; two bins of E and one of B differ from the fiducial power."""
    generator = np.random.default_rng(1)
    l = np.arange(1201, dtype=float)
    kk = 1e-7 / (1.0 + (l / 200.0) ** 1.5)
    ee = 1e-4 * np.exp(-l / 400.0) * (1.2 + np.sin(l / 50.0))
    kk[:2] = ee[:2] = 0.0
    edges = 36 + 200 * np.arange(n_bins + 1)
    windows = np.zeros((n_bins, 1100))
    for b in range(n_bins):
        windows[b, edges[b] : edges[b + 1]] = 1.0 / 200.0
    signal = windows @ kk[:1100]
    root = np.eye(n_bins) + 0.1 * generator.standard_normal((n_bins, n_bins))
    patch = 0.04 * np.outer(signal, signal) * (root @ root.T)
    power = np.array([2e-4, 1e-4, 1e-6])
    power_covariance = np.diag([4e-3, 2e-3, 1e-4]) * np.outer(power, power)
    cross = 0.1 * np.sqrt(np.outer(np.diag(patch), np.diag(power_covariance)))

    def of_bins(*shape: int) -> np.ndarray:
        return signal[:, None] * generator.standard_normal((n_bins, *shape))

    values = {
        "name": "synthetic",
        "description": "made-up numbers for tests",
        "edges": edges,
        "bandpowers": signal.copy(),
        "power": 1.05 * power,
        "n_patches": 40,
        "n_sim": 500,
        "patch_covariance": patch,
        "noise_covariance": patch / 500,
        "derivative_covariance": patch / 1000,
        "response": np.full(n_bins, 0.7),
        "response_error": np.full(n_bins, 0.01),
        "noise": 0.5 * signal,
        "noise_error": 0.01 * signal,
        "windows": windows,
        "kk_edges": np.array([2, 400, 1100]),
        "kk_derivatives": 0.1 * of_bins(2),
        "kk_derivative_errors": 0.01 * np.ones((n_bins, 2)) * signal[:, None],
        "kk_direction": np.array([1.5, 2.5]),
        "curvature": -0.02 * signal,
        "curvature_errors": 0.001 * signal,
        "e_edges": np.array([36.0, 536.0, 1036.0]),
        "b_edges": np.array([1100.0, 1200.0]),
        "fiducial_power": power,
        "debias_coefficients": 0.3 * of_bins(3) / power,
        "ee_directions": np.array([[0.8, -0.1], [0.3, 0.7], [0.0, 0.0]]) / power[:, None],
        "amplitude_covariance": np.array([[4e-3, 1e-3], [1e-3, 2e-3]]),
        "debias_second": 0.2 * of_bins(3),
        "debias_cross": 0.2 * of_bins(2),
        # Nine terms of three amplitudes, and the third order.
        "surface_error_terms": 0.01 * (np.eye(10) + 0.2),
        "surface_error_bins": patch / 4,
        "nuisance_steps": of_nuisances(0.01, 0.05, 0.05, others=0.1),
        "nuisance_first": signal[:, None] * of_nuisances(2.0, 0.3, 0.2),
        "nuisance_first_errors": 0.01 * signal[:, None] * of_nuisances(others=1.0),
        "nuisance_second": signal[:, None] * of_nuisances(1.0, 0.1, 0.3),
        "nuisance_second_errors": 0.01 * signal[:, None] * of_nuisances(others=1.0),
        "ee_edges": np.array([2, 300, 700, 1200]),
        "power_kk_derivatives": power[:, None]
        * np.array([[-0.02, 0.01], [0.03, -0.01], [0.3, 0.2]]),
        "power_ee_derivatives": power[:, None]
        * np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0, 0.1]]),
        "power_nuisance_first": power[:, None] * of_nuisances(2.0, 0.3, 0.2),
        "power_nuisance_second": power[:, None] * of_nuisances(1.0, 0.1, 0.3),
        "rotation": np.array([[0.15, 0.03, 1.0]]),
        "rotation_second": np.linspace(1.0, 0.5, n_bins) * signal,
        "rotation_second_errors": 0.05 * signal,
        "power_rotation_second": np.array([-0.02, -0.01, 0.05]) * power,
        "power_covariance": power_covariance,
        "power_cross_covariance": cross * generator.standard_normal((n_bins, 3)),
        "power_error_covariance": power_covariance / 300,
        "power_error_cross": cross * generator.standard_normal((n_bins, 3)) / 300,
        "fixed_patch_covariance": 1.2 * patch,
        "fixed_noise_covariance": 1.2 * patch / 500,
        "fixed_nuisance_first": 1.5 * signal[:, None] * of_nuisances(2.0, 0.3, 0.2),
        "fixed_nuisance_second": 1.5 * signal[:, None] * of_nuisances(1.0, 0.1, 0.3),
        "fiducial_kk": kk,
        "fiducial_ee": ee,
        "theory": {"code": "made up"},
        "instrument": {"noise": 1.0},
        "provenance": {"network_sha256": "0" * 64},
        "truth": {"omch2": 0.1185},
    }
    return replace(Release(**values), **changes)


def at_fiducial_power(release: Release) -> Release:
    """The release whose own power is the fiducial one, without the scatter of its amplitudes or a
    rotation: its debiased bandpowers are its bandpowers."""
    scatter = np.zeros_like(release.amplitude_covariance)
    changes = {"power": release.fiducial_power, "amplitude_covariance": scatter}
    return replace(without(release, Group.ROTATION), **changes)


def fixed_release(n_bins: int = 5, **changes) -> Release:
    """The synthetic release with the fixed noise bias alone."""
    return with_fixed_debias(synthetic_release(n_bins, **changes))


def with_made_up_debias(release: Release) -> Release:
    """A release of two bands of C^κκ with the debias of :func:`synthetic_release`."""
    made, groups = (
        synthetic_release(release.n_bins),
        (Group.DEBIAS, Group.SECOND_ORDER, Group.FIXED),
    )
    names = [name for group in groups for name in fields_of(group)]
    names += ["kk_direction", "curvature"]
    return replace(release, **{name: getattr(made, name) for name in names})


def with_lengths(release: Release, **rows) -> Release:
    """The release with some entries, by their indices, of the dimensions of these names."""
    changes = {"windows": release.windows[rows["n_bins"]]} if "n_bins" in rows else {}
    for name, numbers in ARRAYS.items():
        array = getattr(release, name)
        for axis, dimension in enumerate(numbers.shape if array.size else ()):
            base, _, extra = dimension.partition("+")
            if base in rows:
                keep = rows[base] if not extra else np.arange(len(rows[base]) + int(extra))
                array = np.take(array, keep, axis)
        changes[name] = array
    return replace(release, **changes)


@pytest.fixture
def release() -> Release:
    return synthetic_release()


def in_process(program, *arguments, folder=".", environment=()) -> subprocess.CompletedProcess:
    """A program's entry point, called in this process with these arguments and in this folder: as a
    process of its own, without the seconds that its imports take. Both streams are kept apart."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in dict(environment).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [program.__module__, *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = program()
            except SystemExit as end:
                code = end.code
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


def cnnlens(*arguments, folder=".") -> subprocess.CompletedProcess:
    """The command in this process, with what its entry point sets for a process of its own."""
    from cobaya_cnnlens.cli import run

    own = {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return in_process(run, *arguments, folder=folder, environment=own)


def snakemake_dry_run(folder, *arguments, snakefile=None) -> subprocess.CompletedProcess:
    """What the workflow would run, with every shell command; all of it on ``stdout``.

    Handlers that other programs, Cobaya among them, left on the root logger are set aside: their
    streams may be closed, and what they print of that would be read as commands.
    """
    from snakemake.cli import main

    given = ["-s", snakefile or REPOSITORY / "training" / "Snakefile", "--cores", "1"]
    given += ["--dry-run", "--printshellcmds", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        result = in_process(main, *given, folder=folder)
    result.stdout += result.stderr
    return result


def png(figure) -> bytes:
    """A figure as the bytes of a picture."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
