import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from cobaya_cnnlens import products
from cobaya_cnnlens.errors import ProductError

RECIPE = {"seed": 1, "sky": {"lmax": 100, "index": 3}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "deep" / "a.h5"
    data = np.random.default_rng(0).standard_normal((40, 20, 20)).astype("f4")
    products.write_product(path, "sky", RECIPE, {"maps": data, "scalar": np.array(2.0)})
    return path


def test_round_trip(path):
    with products.open_product(path, "sky", RECIPE) as product:
        assert product.recipe == RECIPE
        assert product.array("maps").shape == (40, 20, 20)
        assert product.array("maps", slice(3, 5)).shape == (2, 20, 20)
        assert product.array("scalar") == 2.0
    assert products.exists(path, "sky", RECIPE)
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_failed_write_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        products.write_product(path, "sky", RECIPE, {"maps": object()})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_a_file_appears_whole(path, monkeypatch):
    """Until the rename, the destination is untouched; what is renamed is complete."""

    def watched(source, destination):
        assert destination.read_bytes() == before
        with products.open_product(source, "sky", RECIPE) as product:
            assert product.array("maps").shape == (1, 2)
        raise InterruptedError

    before = path.read_bytes()
    monkeypatch.setattr(products.os, "replace", watched)
    with pytest.raises(InterruptedError):
        products.write_product(path, "sky", RECIPE, {"maps": np.ones((1, 2))})
    assert path.read_bytes() == before


WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from cobaya_cnnlens.products import temporary_name
temporary_name(Path(sys.argv[1])).write_text("half")
time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed(path):
    """SIGKILL leaves a hidden file, and the next write of that product removes it; that of a
    process which lives, of another product or of another machine stays."""

    def start(target):
        child = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(target)])
        name = products.temporary_name(target).name.replace(str(os.getpid()), str(child.pid))
        deadline = time.monotonic() + 30
        while not (path.parent / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return child, path.parent / name

    other = path.with_name("b.h5")
    (dead, left), (alive, kept), (second, another) = start(path), start(path), start(other)
    foreign = path.with_name(f".a.h5.elsewhere.{dead.pid}.partial")
    foreign.write_text("half")
    try:
        for child in (dead, second):
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert left.exists()
        products.write_product(path, "sky", RECIPE, {"maps": np.ones((2, 2))})
        assert {p.name for p in path.parent.iterdir()} == {
            "a.h5",
            kept.name,
            another.name,
            foreign.name,
        }
    finally:
        for child in (dead, alive, second):
            child.kill()
            child.wait()


def test_missing(tmp_path):
    assert not products.exists(tmp_path / "no.h5", "sky", RECIPE)
    with pytest.raises(ProductError, match=r"no\.h5: no such file; run the stage"):
        products.open_product(tmp_path / "no.h5", "sky")


def test_other_recipe_names_what_differs(path):
    other = {"seed": 1, "sky": {"lmax": 200, "index": 3}}
    with pytest.raises(ProductError, match=r"sky\.lmax \(100 ≠ 200\)"):
        products.exists(path, "sky", other)


def test_other_kind(path):
    with pytest.raises(ProductError, match="field 'kind' is 'sky'"):
        products.open_product(path, "bandpowers")


def test_missing_field(path):
    with (
        products.open_product(path, "sky") as product,
        pytest.raises(ProductError, match="no field 'kappa'"),
    ):
        product.array("kappa")


@pytest.mark.parametrize("keep", [0, 100, 5000, 40000])
def test_file_cut_off(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with (
        pytest.raises(ProductError, match=r"cut off or damaged|is damaged"),
        products.open_product(path, "sky", RECIPE) as product,
    ):
        product.array("maps")


def test_altered_bytes_are_caught_by_the_checksum(path):
    with h5py.File(path) as file:
        offset = file["maps"].id.get_chunk_info(20).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 8] ^= 0xFF
    path.write_bytes(content)
    with (
        products.open_product(path, "sky", RECIPE) as product,
        pytest.raises(ProductError, match="field 'maps' is damaged"),
    ):
        product.array("maps")


def test_other_format_version(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(ProductError, match="format_version"):
        products.open_product(path, "sky")
