import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from cobaya_cnnlens import files, products
from cobaya_cnnlens.errors import ProductError

from .damage import edit, flip_bit, seal_product
from .fuzz_products import fuzz

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

    class Stopped(Exception):
        pass

    def watched(source, destination):
        assert destination.read_bytes() == before
        with products.open_product(source, "sky", RECIPE) as product:
            assert product.array("maps").shape == (1, 2)
        raise Stopped

    before = path.read_bytes()
    monkeypatch.setattr(files.os, "replace", watched)
    with pytest.raises(Stopped):
        products.write_product(path, "sky", RECIPE, {"maps": np.ones((1, 2))})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


# Writes a product and stops before the rename. To others the process seems not to be there, as one
# in another container does: they cannot ask for its number.
WRITE_AND_WAIT = """
import os, sys, time
import numpy as np
from cobaya_cnnlens import products
os.getpid = lambda: 2**22 + 1
os.replace = lambda *_: time.sleep(60)
products.write_product(sys.argv[1], "sky", {}, {"maps": np.ones((2, 2))})
"""


def test_what_a_killed_process_left_is_removed(path):
    """SIGKILL leaves a hidden file, and the next write of that product removes it; that of a
    process which lives, be it in another container, of another product or of another machine
    stays."""

    def start(target):
        there = set(path.parent.iterdir())
        child = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(target)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            new = {p for p in set(path.parent.iterdir()) - there if p.stat().st_size}
            if new:
                return child, new.pop()
            time.sleep(0.02)
        raise AssertionError("nothing was written")

    other = path.with_name("b.h5")
    (dead, left), (alive, kept), (second, another) = start(path), start(path), start(other)
    foreign = path.with_name(f".a.h5.elsewhere.{'0' * 16}.partial")
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


def test_a_partial_file_removed_before_it_was_locked_is_made_again(path, monkeypatch):
    """Another process may take a file for abandoned between its making and its locking."""
    plain, seen = files._locked, []

    def late(file, wait):
        if wait and not seen:
            seen.append(file.name)
            os.unlink(file.name)
        return plain(file, wait)

    monkeypatch.setattr(files, "_locked", late)
    products.write_product(path, "sky", RECIPE, {"maps": np.zeros(3)})
    with products.open_product(path, "sky", RECIPE) as product:
        assert product.array("maps").tolist() == [0.0, 0.0, 0.0]
    assert len(seen) == 1


def test_nothing_is_abandoned_where_there_are_no_locks(path, monkeypatch):
    left = files.temporary_name(path)
    left.write_text("half")
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37)))
    products.write_product(path, "sky", RECIPE, {"maps": np.zeros(3)})
    assert left.exists()


FULL_DISK = """
import resource, sys
import numpy as np
from cobaya_cnnlens import products
from cobaya_cnnlens.errors import ProductError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    products.write_product(sys.argv[1], "sky", {}, {"maps": np.ones((50, 40, 40))})
except ProductError as error:
    print(error)
"""


def test_a_full_disk_is_one_error(path):
    """Here a limit on the size of files. HDF5 itself would end in a traceback, or in nothing."""
    before = path.read_bytes()
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"a\.h5: cannot be written \(File too large\); free some space", ended.stdout)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_a_folder_that_cannot_be_written(path):
    with pytest.raises(ProductError, match=r"b\.h5: cannot be written \(File exists\)"):
        products.write_product(path / "b.h5", "sky", RECIPE, {})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_written(path, value):
    maps = np.ones((3, 4), "f4")
    maps[1, 2] = value
    before = path.read_bytes()
    with pytest.raises(ProductError, match="field 'maps': 1 of 12 values are not finite"):
        products.write_product(path, "sky", RECIPE, {"maps": maps})
    assert path.read_bytes() == before


def test_missing(tmp_path):
    assert not products.exists(tmp_path / "no.h5", "sky", RECIPE)
    with pytest.raises(ProductError, match=r"no\.h5: no such file; run the stage"):
        products.open_product(tmp_path / "no.h5", "sky")


SKY = {"set": "train", "index": 7, "sky": {"lmax": 100}}


@pytest.mark.parametrize(
    ("kind", "recipe", "command"),
    [
        ("primary", {"sky": SKY}, "primary CONFIG --set train --index 7"),
        ("nulls", {"sky": SKY}, "nulltest CONFIG --index 7"),
        ("spectra", {"camb": {}}, "skies CONFIG --set train"),
    ],
)
def test_what_is_missing_names_its_command(tmp_path, kind, recipe, command):
    with pytest.raises(ProductError, match=f"no such file; run `cnnlens {command}`"):
        products.open_product(tmp_path / "no.h5", kind, recipe)


def test_every_command_that_a_message_names_exists():
    """And every kind of product has one, of its stage or in the list."""
    from typer.main import get_command

    from cobaya_cnnlens.cli.main import app

    package = Path(products.__file__).parent
    texts = "\n".join(file.read_text() for file in package.rglob("*.py"))
    kinds = set(re.findall(r'^(?:KIND|SPECTRA) = "(.*)"', texts, re.M))
    of_stages = re.findall(r'^    command = "(.*)"', texts, re.M)
    assert len(of_stages) == len(re.findall(r'^    kind = "', texts, re.M)) > 8
    assert kinds <= set(products.COMMANDS)
    for text in (*products.COMMANDS.values(), *of_stages):
        command = get_command(app)
        for word in itertools.takewhile(str.islower, text.split()):
            command = command.commands[word]
        options = {o for p in command.params for o in p.opts}
        assert options >= {word for word in text.split() if word.startswith("--")}


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


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, 40000])
def test_file_cut_off(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ProductError, match=r"a\.h5: .*cut off.*delete it and run"):
        products.open_product(path, "sky", RECIPE)


def test_a_flipped_bit_is_refused(tmp_path):
    """In data, in what tells where they lie, in the digest itself: HDF5 sees none of them."""
    assert fuzz(150, tmp_path, quiet=True) == {"refused": 150}


def test_bits_of_the_head(path):
    """Every bit of the first lines counts, and of what pads them."""
    whole = path.read_bytes()
    for bit in [*range(0, 8 * 120, 5), 8 * 300, 8 * 511 + 7]:
        flip_bit(path, bit)
        with pytest.raises(ProductError, match=r"a\.h5: "):
            products.open_product(path, "sky", RECIPE)
        path.write_bytes(whole)
    products.open_product(path, "sky", RECIPE).close()


def test_what_changes_after_it_was_read_is_refused(path):
    products.open_product(path, "sky", RECIPE).close()
    status = path.stat()
    flip_bit(path, 8 * 20000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(ProductError, match="was cut off, damaged or edited"):
        products.open_product(path, "sky", RECIPE)
    # Another file under its name, of the same size and time.
    flip_bit(path, 8 * 20000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    products.open_product(path, "sky", RECIPE).close()
    other = path.with_name("b.h5")
    other.write_bytes(path.read_bytes())
    flip_bit(other, 8 * 20000)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    with pytest.raises(ProductError, match="was cut off, damaged or edited"):
        products.open_product(path, "sky", RECIPE)


def test_a_file_is_compared_once(path, monkeypatch):
    """So that parts of large shards are read without reading them whole each time."""
    products.open_product(path, "sky", RECIPE).close()
    monkeypatch.delattr(products, "_digest")
    with products.open_product(path, "sky", RECIPE) as product:
        assert product.array("maps", slice(3, 4)).shape == (1, 20, 20)


def test_rows_of_large_arrays_are_stored_apart(tmp_path):
    """A selected patch is read without its neighbours; small rows are taken together."""
    arrays = {"maps": np.ones((6, 140, 140), "f4"), "auto": np.ones((160, 24)), "kk": np.ones(9)}
    products.write_product(tmp_path / "a.h5", "sky", RECIPE, arrays)
    with h5py.File(tmp_path / "a.h5") as file:
        chunks = [file[name].chunks for name in arrays]
    assert chunks == [(1, 140, 140), (160, 24), (9,)]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["maps"].__setitem__(3, 0.0),
        lambda file: file.attrs.__setitem__("kind", "bandpowers"),
        lambda file: file.create_dataset("more", data=1.0),
    ],
)
def test_a_product_edited_by_hand_is_refused(path, change):
    edit(path, change)
    with pytest.raises(ProductError, match=r"a\.h5: its content is not what was written"):
        products.open_product(path, "sky")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__setitem__("recipe", '{"seed": 2}'), "the file was edited"),
        (lambda f: f.attrs.__setitem__("identity", "0" * 16), "the file was edited"),
        (lambda f: f.attrs.__setitem__("recipe", "{"), "field 'recipe' cannot be read"),
        (lambda f: f.attrs.__delitem__("recipe"), "field 'recipe' cannot be read"),
    ],
)
def test_an_identity_is_that_of_the_recipe_inside(path, change, message):
    """Whoever edits a recipe, and knows how to make a digest, is refused too."""
    edit(path, change)
    seal_product(path)
    with pytest.raises(ProductError, match=message):
        products.open_product(path, "sky")


def test_other_formats(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"format_version 2", b"format_version 9", 1))
    with pytest.raises(ProductError, match="'format_version' is 9, this version reads 2"):
        products.open_product(path, "sky")
    with h5py.File(path, "w") as file:  # format 1: HDF5 from the first byte
        file.attrs["format_version"] = 1
    with pytest.raises(ProductError, match="'format_version' is 1, without a digest"):
        products.open_product(path, "sky")
    path.write_text("some text that is no product, and no HDF5 either")
    with pytest.raises(ProductError, match="is no product of cobaya_cnnlens"):
        products.open_product(path, "sky")


def test_equal_products_are_equal_bytes(tmp_path):
    """At another time, under another name and with the recipe's keys in another order."""
    data = np.random.default_rng(0).standard_normal((40, 20, 20))
    products.write_product(tmp_path / "a.h5", "sky", {"a": 1, "b": {"c": 2, "d": 3}}, {"m": data})
    time.sleep(1.1)
    products.write_product(tmp_path / "b.h5", "sky", {"b": {"d": 3, "c": 2}, "a": 1}, {"m": data})
    assert hash((tmp_path / "a.h5").read_bytes()) == hash((tmp_path / "b.h5").read_bytes())


@pytest.fixture
def shipped(tmp_path):
    """Two skies of bandpowers and one of derivatives in one file."""
    path = tmp_path / "bandpowers" / "a.h5"
    entries = [
        ("bandpowers", {"index": i}, {"auto": np.full((160, 24), 1e-9 * (i + 1) / 3)})
        for i in (0, 1)
    ]
    entries.append(("derivatives", {"index": 0}, {"kk": np.arange(6.0).reshape(2, 3)}))
    products.ship(path, {"configuration": "a"}, entries)
    return path


def test_shipped_products_are_read_where_there_are_no_own(shipped, tmp_path):
    """By kind and recipe, in double precision and to eleven binary digits; an own product wins."""
    own = tmp_path / "own.h5"
    for i in (0, 1):
        with products.open_product(own, "bandpowers", {"index": i}, shipped) as product:
            assert product.names() == ["auto"]
            auto = product.array("auto")
            assert (product.recipe, auto.dtype) == ({"index": i}, np.float64)
            np.testing.assert_allclose(auto, 1e-9 * (i + 1) / 3, rtol=2.0**-12)
            assert product.array("auto", slice(2, 4)).shape == (2, 24)
    with products.open_product(own, "derivatives", {"index": 0}, shipped) as product:
        assert product.names() == ["kk"]
    assert products.exists(own, "bandpowers", {"index": 1}, shipped)
    assert not products.exists(own, "bandpowers", {"index": 2}, shipped)
    assert not products.exists(own, "bandpowers", {"index": 1})
    products.write_product(own, "bandpowers", {"index": 1}, {"auto": np.zeros(3)})
    with products.open_product(own, "bandpowers", {"index": 1}, shipped) as product:
        assert product.array("auto").shape == (3,)
    with pytest.raises(ProductError, match=r"own\.h5: field 'identity'.*index \(1 ≠ 0\)"):
        products.open_product(own, "bandpowers", {"index": 0}, shipped)


@pytest.mark.parametrize(
    ("kind", "recipe"), [("bandpowers", {"index": 2}), ("curvature", {"index": 0})]
)
def test_what_is_neither_own_nor_shipped(shipped, tmp_path, kind, recipe):
    with pytest.raises(ProductError, match=r"own\.h5: no such file and .*a\.h5 has none.*; run"):
        products.open_product(tmp_path / "own.h5", kind, recipe, shipped)
    shipped.unlink()
    with pytest.raises(ProductError, match=r"own\.h5: no such file"):
        products.open_product(tmp_path / "own.h5", kind, recipe, shipped)


def test_a_shipped_recipe_edited_by_hand(shipped, tmp_path):
    def change(file):
        group = file[f"bandpowers/{products.identity_of({'index': 0})}"]
        del group["recipe"]
        group["recipe"] = np.frombuffer(b'{"index": 9}', np.uint8)

    edit(shipped, change)
    with pytest.raises(ProductError, match=r"a\.h5: its content is not what was written"):
        products.open_product(tmp_path / "own.h5", "bandpowers", {"index": 0}, shipped)
    seal_product(shipped)
    with pytest.raises(ProductError, match=r"a\.h5: group .* another recipe.*index \(9 ≠ 0\)"):
        products.open_product(tmp_path / "own.h5", "bandpowers", {"index": 0}, shipped)


def test_a_product_of_another_configuration_is_said_to_be_one(tmp_path):
    """Its recipe can be read; that it differs is the only fault."""
    path = tmp_path / "a.h5"
    products.write_product(path, "bandpowers", {"index": 0}, {"auto": np.ones(3)})
    with pytest.raises(ProductError) as error:
        products.open_product(path, "bandpowers", {"index": 1})
    assert str(error.value).startswith(f"{path}: field 'identity': made from another")
    assert "cannot be read" not in str(error.value)
