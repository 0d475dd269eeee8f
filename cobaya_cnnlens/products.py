"""Product files of the pipeline: HDF5 with a stated kind, identity, provenance and digest.

A product is written under a temporary name and renamed when complete, so a file that exists is
whole; what a killed process left is removed when the product is next written. Its *identity* is
the hash of everything that determined its content; reading with an expected identity refuses a
file made from another configuration.

The first 512 bytes, HDF5's user block, say format and version, and hold the SHA-256 of all the
rest. It is compared before HDF5 sees the file (once per process and state of the file), because
HDF5's own checksums do not cover all that tells where the data lie: one altered bit could read
back as zeros, or end the process.

Products may also be *shipped*, many in one file: :func:`open_product` looks there for what the
configuration's own folder lacks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import ProductError
from .files import locked_write

FORMAT_VERSION = 2
# HDF5's user block must be 512 bytes or a power of two above.
USER_BLOCK = 512
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Rows of an array are read, checked and compressed in chunks of at least this many bytes.
CHUNK_BYTES = 1 << 16
SHIPPED = "shipped"
# Binary digits of the numbers in shipped products.
SHIPPED_BITS = 11
# What makes each kind of product, unless its stage says so; set and index are those of its sky.
COMMANDS = {
    "spectra": "skies CONFIG --set train",
    "map bandpowers": "reconstruct CONFIG --maps FILE",
    "coverage": "coverage CONFIG --index {index}",
    "nulls": "nulltest CONFIG --index {index}",
    "foregrounds": "foregrounds CONFIG --index {index}",
    "primary": "primary CONFIG --set {set} --index {index}",
    "emulator point": "emulator PLAN",
    "survey tiles": "survey plan",
    "survey maps": "survey reconstruct PLAN",
    "survey tile": "survey reconstruct PLAN",
    "survey nulls": "survey nulls PLAN",
    "survey simulations": "survey calibrate PLAN",
    "survey calibration": "survey calibrate PLAN",
    "survey own simulation": "survey calibrate PLAN --simulations SIMS",
    "survey own simulations": "survey calibrate PLAN --simulations SIMS",
    "mosaic simulation": "survey map PLAN",
    SHIPPED: "ship CONFIG",
}


def identity_of(recipe: Mapping[str, Any]) -> str:
    """Hash of a recipe: SHA-256 of its canonical JSON, 16 hex digits; a null is an absent key.

    Parameters
    ----------
    recipe : mapping for JSON

    Returns
    -------
    16 hex digits

    Examples
    --------
    >>> identity_of({"seed": 1, "shipped": None}) == identity_of({"seed": 1})
    True
    """
    text = json.dumps(
        _without_nulls(recipe), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


def write_product(
    path: str | Path,
    kind: str,
    recipe: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    compress: bool = False,
) -> None:
    """Write arrays atomically.

    Parameters
    ----------
    path : destination; parent folders are made
    kind : what the file is, e.g. ``"sky"``
    recipe : JSON-able mapping of everything that determined the arrays
    arrays : named arrays; a name may hold slashes, which make groups
    compress : lossless, for what goes into a repository

    Raises
    ------
    ProductError
        if an array holds NaN or infinity, or the file cannot be written
    """
    path = Path(path)
    for name, array in arrays.items():
        _check_finite(path, name, np.asarray(array))
    # HDF5 writes to memory: on a disk that fills up it would end the process.
    content = io.BytesIO()
    # The older layout takes more for each small group than is in it.
    layout = {"libver": ("v110", "v110")} if compress else {}
    with h5py.File(content, "w", userblock_size=USER_BLOCK, **layout) as file:
        file.attrs["kind"] = kind
        file.attrs["identity"] = identity_of(recipe)
        file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
        for name, array in arrays.items():
            _add_array(file, name, np.asarray(array), compress)
    content.seek(0)
    content.write(_header(hashlib.sha256(content.getbuffer()[USER_BLOCK:]).hexdigest()))
    try:
        with locked_write(path) as file:
            file.write(content.getbuffer())
    except OSError as error:
        raise ProductError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or give the "
            "configuration another 'products' folder"
        ) from None


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    if array.dtype.kind in "fc" and not (finite := np.isfinite(array)).all():
        raise ProductError(
            f"{path}: field '{name}': {(~finite).sum()} of {array.size} values are not finite; "
            "not written: look for NaN in what it was made from (maps, weights of the network)"
        )


def _add_array(file: h5py.File, name: str, array: np.ndarray, compress: bool) -> None:
    if array.ndim == 0 or array.size == 0:
        file.create_dataset(name, data=array)
        return
    rows = max(CHUNK_BYTES * len(array) // array.nbytes, 1)
    gzip = {"shuffle": True, "compression": "gzip", "compression_opts": 9}
    filters = gzip if compress else {}
    chunks = (min(rows, len(array)), *array.shape[1:])
    file.create_dataset(name, data=array, chunks=chunks, fletcher32=True, **filters)


def _header(digest: str) -> bytes:
    text = f"cobaya_cnnlens product\nformat_version {FORMAT_VERSION}\nsha256 {digest}\n"
    return text.encode().ljust(USER_BLOCK, b"\n")


def texts(lines: Iterable[str]) -> np.bytes_:
    """Lines of text as a product's array, which :meth:`Product.texts` reads.

    Parameters
    ----------
    lines : of text

    Returns
    -------
    array for :func:`write_product`
    """
    return np.bytes_(json.dumps(list(lines)).encode())


class Product:
    """An open product; arrays are read on access. Use :func:`open_product`.

    Parameters
    ----------
    file : the open file
    path : its path, for messages
    group : where the arrays are, the file's root for an own product; those of a shipped one are
        stored in single precision and handed out in double
    recipe : of the arrays, where that is not the file's
    """

    def __init__(
        self,
        file: h5py.File,
        path: Path,
        group: h5py.Group | None = None,
        recipe: dict[str, Any] | None = None,
    ):
        self._file, self._group, self.path = file, file if group is None else group, path
        self._shipped = group is not None
        self.recipe: dict[str, Any] = json.loads(file.attrs["recipe"]) if recipe is None else recipe
        self.identity: str = identity_of(self.recipe)

    def names(self) -> list[str]:
        """Names of the arrays."""
        return [name for name in self._group if name != "recipe"]

    def texts(self, name: str) -> list[str]:
        """Lines of text that :func:`texts` made an array.

        Parameters
        ----------
        name : of the array

        Returns
        -------
        the lines
        """
        lines: list[str] = json.loads(bytes(self.array(name)).decode())
        return lines

    def array(self, name: str, selection: Any = ()) -> np.ndarray:
        """One array, or the part of it that ``selection`` picks.

        Parameters
        ----------
        name : of the array
        selection : index of the part; all by default

        Returns
        -------
        the array

        Raises
        ------
        ProductError
            if there is no such array, or it is damaged
        """
        if name not in self._group:
            raise ProductError(
                f"{self.path}: no field '{name}' (it has {', '.join(self.names())}); "
                "delete the file and make it again with this version"
            )
        try:
            values = self._group[name][selection]
        except OSError as error:
            raise ProductError(
                f"{self.path}: field '{name}' is damaged ({error}); "
                "delete the file and run the stage again"
            ) from None
        return values.astype(float) if self._shipped else values

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Product:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_product(
    path: str | Path,
    kind: str,
    recipe: Mapping[str, Any] | None = None,
    shipped: str | Path | None = None,
    command: str | None = None,
) -> Product:
    """Open a product for reading.

    Parameters
    ----------
    path : the product
    kind : what it must be
    recipe : what must have determined it
    shipped : a file of shipped products, to be looked into if there is nothing at ``path``
    command : what makes it, for the message that it is missing; that of its kind by default

    Returns
    -------
    the open product

    Raises
    ------
    ProductError
        if the file is missing, cut off, altered, of another kind, or of another identity
    """
    path = Path(path)
    if not path.exists():
        if shipped and (product := open_shipped(shipped, kind, recipe)):
            return product
        nor = f" and {shipped} has none of this configuration" if shipped else ""
        raise ProductError(f"{path}: no such file{nor}; run {_command(kind, recipe, command)}")
    _verify(path)
    try:
        # A finished product never changes, so that no lock is needed to read it.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ProductError(
            f"{path}: cannot be read as HDF5 ({error}); delete it and run the stage again"
        ) from None
    try:
        stored_kind = file.attrs.get("kind")
        if stored_kind != kind:
            raise ProductError(f"{path}: field 'kind' is {stored_kind!r} where {kind!r} is needed")
        product = Product(file, path)
        if product.identity != file.attrs.get("identity"):
            raise ProductError(
                f"{path}: field 'identity' is {file.attrs.get('identity')}, but that of its recipe "
                f"is {product.identity}: the file was edited; delete it and run the stage again"
            )
        if recipe is not None and product.identity != identity_of(recipe):
            needed = json.loads(json.dumps(recipe))
            raise ProductError(
                f"{path}: field 'identity': made from another configuration, which differs in "
                f"{'; '.join(differences(product.recipe, needed)) or 'nothing named'}; delete the "
                "file and run the stage again, or use another products directory"
            )
    except ProductError:
        file.close()
        raise
    except (KeyError, ValueError, TypeError) as error:
        file.close()
        raise ProductError(
            f"{path}: field 'recipe' cannot be read ({error!r}); delete the file and run the "
            "stage again"
        ) from None
    except BaseException:
        file.close()
        raise
    return product


def _command(kind: str, recipe: Mapping[str, Any] | None, command: str | None) -> str:
    """The command that makes a product."""
    if command is not None:
        return f"`cnnlens {command}`"
    if kind not in COMMANDS:
        return f"the stage that makes the '{kind}' product"
    recipe = recipe or {}
    sky = recipe.get("sky", {}) if "set" not in recipe else recipe
    where = {"set": sky.get("set", "SET"), "index": sky.get("index", "INDEX")}
    return f"`cnnlens {COMMANDS[kind].format(**where)}`"


# What of each file the digest was last compared for: its device, inode, size and time of change.
_verified: dict[Path, tuple[int, ...]] = {}


def _verify(path: Path) -> None:
    """Compare a file's digest with its content.

    Raises
    ------
    ProductError
        if they differ, or if it is no product of this format
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if _verified.get(path) == state:
                return
            header = file.read(USER_BLOCK)
            digest = _digest(file)
    except OSError as error:
        raise ProductError(f"{path}: cannot be read ({error.strerror})") from None
    if header != _header(digest):
        raise ProductError(f"{path}: {_what_is_wrong(header)}; delete it and run the stage again")
    _verified[path] = state


def _digest(file: io.BufferedReader) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    while n := file.readinto(block):
        digest.update(block[:n])
    return digest.hexdigest()


def _what_is_wrong(header: bytes) -> str:
    if header.startswith(HDF5_SIGNATURE):
        return f"'format_version' is 1, without a digest; this version reads {FORMAT_VERSION}"
    lines = header.split(b"\n")
    if (
        len(lines) > 2
        and lines[0] == b"cobaya_cnnlens product"
        and lines[1][:15] == (b"format_version ")
    ):
        version = lines[1][15:].decode(errors="replace")
        if version != str(FORMAT_VERSION):
            return f"'format_version' is {version}, this version reads {FORMAT_VERSION}"
        return "its content is not what was written ('sha256'): it was cut off, damaged or edited"
    return "is no product of cobaya_cnnlens: it was cut off or damaged"


def exists(
    path: str | Path, kind: str, recipe: Mapping[str, Any], shipped: str | Path | None = None
) -> bool:
    """Whether the finished product of this recipe is there, or shipped.

    Parameters
    ----------
    path : of the product
    kind : of the product
    recipe : what must have determined it
    shipped : a file of shipped products, to be looked into too

    Returns
    -------
    True if it is

    Raises
    ------
    ProductError
        if another product is there
    """
    if not Path(path).exists():
        product = open_shipped(shipped, kind, recipe) if shipped else None
        if product:
            product.close()
        return product is not None
    open_product(path, kind, recipe).close()
    return True


def ship(
    path: str | Path,
    recipe: Mapping[str, Any],
    contents: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
) -> None:
    """Write many products into one file, rounded to :data:`SHIPPED_BITS` binary digits.

    Patches scatter by 5% and more, a thousand times the rounding; zeros at the end compress well.

    Parameters
    ----------
    path : destination
    recipe : what the file as a whole says of itself
    contents : kind, recipe and arrays of each product
    """
    arrays: dict[str, np.ndarray] = {}
    for kind, product_recipe, values in contents:
        group = f"{kind}/{identity_of(product_recipe)}"
        text = json.dumps(product_recipe, sort_keys=True).encode()
        arrays[f"{group}/recipe"] = np.frombuffer(text, np.uint8)
        for name, array in values.items():
            arrays[f"{group}/{name}"] = rounded(array, SHIPPED_BITS)
    write_product(path, SHIPPED, recipe, arrays, compress=True)


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Values in single precision with few binary digits.

    Parameters
    ----------
    values : any
    bits : of the mantissa, at most 24

    Returns
    -------
    the nearest numbers with so many binary digits

    Examples
    --------
    >>> rounded(np.array([1.03, -5.9e-9]), 3).tolist()
    [1.0, -5.587935447692871e-09]
    """
    mantissa, exponent = np.frexp(np.asarray(values, np.float32))
    return np.ldexp(np.rint(mantissa * 2.0**bits) / np.float32(2.0**bits), exponent)


def open_shipped(path: str | Path, kind: str, recipe: Mapping[str, Any] | None) -> Product | None:
    """A product among the shipped ones of a file, or None if it is not there.

    Parameters
    ----------
    path : of the file of shipped products
    kind : of the product
    recipe : what must have determined it

    Returns
    -------
    the open product, or None

    Raises
    ------
    ProductError
        if the file is there but is not whole
    """
    if recipe is None or not Path(path).exists():
        return None
    file = open_product(path, SHIPPED)._file
    group = file.get(f"{kind}/{identity_of(recipe)}")
    if group is None:
        file.close()
        return None
    stored = json.loads(bytes(group["recipe"][()]))
    if identity_of(stored) != identity_of(recipe):
        file.close()
        raise ProductError(
            f"{path}: group '{group.name}' holds another recipe, which differs in "
            f"{'; '.join(differences(stored, recipe))}: the file was edited; restore it"
        )
    return Product(file, Path(path), group, stored)


def differences(recipe: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two recipes differ, for error messages.

    Parameters
    ----------
    recipe, other : mappings for JSON
    prefix : of the keys

    Returns
    -------
    "key (value ≠ other value)" for each

    Examples
    --------
    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b (1 ≠ 3)']
    """
    keys: list[str] = []
    for key in sorted(set(recipe) | set(other)):
        a, b = recipe.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key} ({a} ≠ {b})")
    return keys
