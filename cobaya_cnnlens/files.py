"""The one way to write a file: under another name beside it, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from errno import ENOTDIR
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # no POSIX system: nothing is known to be abandoned
    fcntl = None  # type: ignore[assignment]


def given_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it: ``~`` stands for the home folder.

    Parameters
    ----------
    path : as the user gives it

    Returns
    -------
    the path
    """
    with contextlib.suppress(RuntimeError):  # ~name of nobody here is a file's own name
        return Path(path).expanduser()
    return Path(path)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A name beside ``path`` for a file or folder to be written; it takes the place of ``path``
    when the context ends, and is gone if that fails. Parent folders are made.

    The name ends as ``path`` does, for writers that go by it.

    Parameters
    ----------
    path : destination

    Yields
    ------
    the name to write to
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), str(path.parent)) from None
    partial = temporary_name(path)
    partial = partial.with_name(partial.name + path.suffix)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_write(path: Path) -> Iterator[BinaryIO]:
    """As :func:`atomic_write`, a file open for writing; what killed writers of ``path`` left is
    removed first, which the lock of a living one tells from its own.

    Parameters
    ----------
    path : destination

    Yields
    ------
    the open file
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    with _new_partial(path) as (file, partial):
        yield file
        file.flush()
        os.replace(partial, path)


def temporary_name(path: Path) -> Path:
    """A name under which ``path`` may be written; another one at every call, since processes of
    different containers may share a host's name and a number.

    Parameters
    ----------
    path : destination

    Returns
    -------
    a path in the same folder
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{secrets.token_hex(8)}.partial")


def remove_abandoned(path: Path) -> None:
    """Remove what writers of ``path`` on this machine that are no more (``kill -9``) left of it.

    A writer holds a lock on its file, which ends with its process. Another machine's, on a shared
    disk, may not be seen from here: those stay, and so does all where there are no locks.

    Parameters
    ----------
    path : destination of the writers
    """
    prefix = f".{path.name}.{socket.gethostname()}."
    for partial in path.parent.iterdir():
        if partial.name.startswith(prefix) and partial.name.endswith(".partial"):
            with contextlib.suppress(OSError), partial.open("r+b") as opened:
                if _locked(opened, wait=False):
                    partial.unlink(missing_ok=True)


def _locked(file: BinaryIO, wait: bool) -> bool:
    """Lock an open file; whether this process has the lock now."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _new_partial(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside ``path``, locked while it is open, and gone at the end."""
    while True:
        partial = temporary_name(path)
        with partial.open("xb") as file:
            # Between its making and its locking the file looks abandoned and may be removed.
            if _locked(file, wait=True) and os.fstat(file.fileno()).st_nlink == 0:
                continue
            try:
                yield file, partial
            finally:
                partial.unlink(missing_ok=True)
            return
