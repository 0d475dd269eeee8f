"""Product files of the pipeline: HDF5 with a stated kind, identity and provenance.

A product is written under a temporary name and renamed when complete, so a file
that exists is whole; what a killed process left is removed when the product is
next written. Its *identity* is the hash of everything that determined its
content; reading with an expected identity refuses a file made from another
configuration. Checksums (Fletcher-32) catch altered bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from .errors import ProductError

FORMAT_VERSION = 1


def identity_of(recipe: Mapping) -> str:
    """Hash of a recipe: SHA-256 of its canonical JSON, 16 hex digits; a null is an absent key."""
    text = json.dumps(
        _without_nulls(recipe), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_nulls(value):
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


def temporary_name(path: Path) -> Path:
    """The name under which ``path`` is being written; one per process and machine."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that are no more (``kill -9``) left of ``path``.

    Another machine's processes, on a shared disk, cannot be known to be dead: theirs stay.
    """
    own = temporary_name(path)
    prefix = own.name.removesuffix(f"{os.getpid()}.partial")
    for found in path.parent.iterdir():
        pid = found.name.removeprefix(prefix).removesuffix(".partial")
        if found.name == f"{prefix}{pid}.partial" and pid.isdecimal() and not _runs(int(pid)):
            found.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no number of a process
        return True
    return True


def write_product(
    path: str | Path, kind: str, recipe: Mapping, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays atomically.

    Parameters
    ----------
    path : destination; parent folders are made
    kind : what the file is, e.g. ``"sky"``
    recipe : JSON-able mapping of everything that determined the arrays
    arrays : named arrays; each is chunked along its first axis and checksummed
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    partial = temporary_name(path)
    try:
        with h5py.File(partial, "w") as file:
            file.attrs["format"] = "cobaya_cnnlens product"
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["kind"] = kind
            file.attrs["identity"] = identity_of(recipe)
            file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
            for name, array in arrays.items():
                array = np.asarray(array)
                if array.ndim == 0 or array.size == 0:
                    file.create_dataset(name, data=array)
                else:
                    chunks = (1, *array.shape[1:]) if array.ndim > 1 else True
                    file.create_dataset(name, data=array, chunks=chunks, fletcher32=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Product:
    """An open product; arrays are read on access. Use :func:`open_product`."""

    def __init__(self, file: h5py.File, path: Path):
        self._file, self.path = file, path
        self.recipe: dict = json.loads(file.attrs["recipe"])
        self.identity: str = file.attrs["identity"]

    def names(self) -> list[str]:
        return list(self._file)

    def array(self, name: str, selection=()) -> np.ndarray:
        """One array, or the part of it that ``selection`` picks."""
        if name not in self._file:
            raise ProductError(
                f"{self.path}: no field '{name}' (it has {', '.join(self._file)}); "
                "delete the file and make it again with this version"
            )
        try:
            return self._file[name][selection]
        except OSError as error:
            raise ProductError(
                f"{self.path}: field '{name}' is damaged ({error}); "
                "delete the file and run the stage again"
            ) from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Product:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_product(path: str | Path, kind: str, recipe: Mapping | None = None) -> Product:
    """Open a product for reading.

    Raises
    ------
    ProductError
        if the file is missing, cut off, of another kind, or of another identity
    """
    path = Path(path)
    if not path.exists():
        raise ProductError(f"{path}: no such file; run the stage that makes the '{kind}' product")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ProductError(
            f"{path}: cannot be read as HDF5 ({error}); it was cut off or damaged: "
            "delete it and run the stage again"
        ) from None
    try:
        found = file.attrs.get("kind")
        if found != kind:
            raise ProductError(f"{path}: field 'kind' is {found!r} where {kind!r} is needed")
        if file.attrs.get("format_version") != FORMAT_VERSION:
            raise ProductError(
                f"{path}: field 'format_version' is {file.attrs.get('format_version')}, this "
                f"version reads {FORMAT_VERSION}; delete the file and run the stage again"
            )
        product = Product(file, path)
        if recipe is not None and product.identity != identity_of(recipe):
            wanted = json.loads(json.dumps(recipe))
            raise ProductError(
                f"{path}: field 'identity': made from another configuration, which differs in "
                f"{'; '.join(differences(product.recipe, wanted)) or 'nothing named'}; delete the "
                "file and run the stage again, or use another products directory"
            )
    except BaseException:
        file.close()
        raise
    return product


def exists(path: str | Path, kind: str, recipe: Mapping) -> bool:
    """Whether the finished product of this recipe is there; another one raises ProductError."""
    if not Path(path).exists():
        return False
    open_product(path, kind, recipe).close()
    return True


def differences(recipe: Mapping, other: Mapping, prefix: str = "") -> list[str]:
    """Dotted keys in which two recipes differ, for error messages."""
    keys: list[str] = []
    for key in sorted(set(recipe) | set(other)):
        a, b = recipe.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key} ({a} ≠ {b})")
    return keys
