"""Damaged files. Releases: bytes cut, repeated or overwritten; documents wrong but sealed.
Products: one bit flipped; edited by hand and given the digest that fits.
"""

import copy
import hashlib
import json
import random
from pathlib import Path

import h5py

from cobaya_cnnlens import products
from cobaya_cnnlens.likelihood.document import seal

# Sections whose content is free: a change there makes another release, not a malformed one.
FREE = ("theory", "instrument", "provenance", "truth", "name", "description", "digest")
WRONG = (None, True, "1.0", [], {}, float("nan"), float("inf"), -(10**400), [[]], "nan")


def cut_or_overwritten(text: str, source: random.Random) -> str | None:
    """The text with a piece cut, repeated or overwritten; None if it still says the same."""
    a, b = sorted(source.randrange(len(text)) for _ in range(2))
    b = min(b, a + source.choice((1, 5, 200)))
    middle = source.choice(
        ("", text[a:b] * 2, source.choice('0123456789.,[]{}":eE-') * (b - a), "null")
    )
    damaged = text[:a] + middle + text[b:]
    return None if _same_content(damaged, text) else damaged


def wrong_but_sealed(document: dict, source: random.Random) -> str:
    """A field missing, of another type, longer or shorter, or one number of it no number; the
    digest is that of the wrong content."""
    document = copy.deepcopy(document)
    holder, key = document, source.choice([k for k in document if k not in FREE])
    while isinstance(holder[key], dict):
        holder = holder[key]
        key = source.choice(list(holder))
    kinds = ["missing", "type", "element"]
    if holder is not document.get("fiducial"):  # whose spectra may end anywhere beyond the bands
        kinds += ["shorter", "longer"]
    kind = source.choice(kinds)
    values = holder[key]
    if kind == "missing":
        del holder[key]
    elif kind == "type" or not isinstance(values, list):
        holder[key] = source.choice([w for w in WRONG if w != values])
    elif kind == "shorter":
        values.pop(source.randrange(len(values)))
    elif kind == "longer":
        values.insert(source.randrange(len(values) + 1), copy.deepcopy(values[0]))
    else:
        while isinstance(values[0], list):
            values = source.choice(values)
        values[source.randrange(len(values))] = source.choice(WRONG)
    return json.dumps(seal(document))


def _same_content(a: str, b: str) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except (ValueError, RecursionError):
        return False


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def edit(path: Path, change) -> None:
    """Edit a product with h5py, as a user may."""
    with h5py.File(path, "a") as file:
        change(file)


def seal_product(path: Path) -> None:
    """Give a product the digest of what it holds now."""
    content = path.read_bytes()[products.USER_BLOCK :]
    path.write_bytes(products._header(hashlib.sha256(content).hexdigest()) + content)
