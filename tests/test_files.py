"""What is written appears whole or not at all."""

import os
import re
import stat
from pathlib import Path

import pytest

import cobaya_cnnlens
from cobaya_cnnlens.files import atomic_write

PACKAGE = Path(cobaya_cnnlens.__file__).parent


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_write(path) as partial:
        partial.write_text("half")
        assert partial.parent == path.parent
        assert partial.suffix == ".json"
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def fail_with(path, write):
    with atomic_write(path) as partial:
        write(partial)
        raise ZeroDivisionError


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_with(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_written_so_too(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(ZeroDivisionError):
        fail_with(folder, lambda partial: (partial / "one").mkdir(parents=True))
    assert not list(tmp_path.iterdir())
    with atomic_write(folder) as partial:
        partial.mkdir()
        (partial / "one").write_text("1")
    assert (folder / "one").read_text() == "1"


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with atomic_write(path) as one, atomic_write(path) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1"


def test_others_may_read_what_was_written(tmp_path):
    """The file's mode is that of any other, by the umask."""
    with atomic_write(tmp_path / "a") as partial:
        partial.write_text("1")
    (tmp_path / "plain").write_text("1")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a", "plain")}
    assert len(modes) == 1


def test_nothing_else_renames_what_it_wrote():
    users = [
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if re.search(r"os\.(replace|rename)\(|\.partial\b", file.read_text(encoding="utf-8"))
    ]
    assert users == ["files.py"]
