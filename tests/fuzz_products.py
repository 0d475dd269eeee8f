"""Flip one bit of a product at a time: every such file must be refused in one clear error.

python -m tests.fuzz_products 3400

Files are read in a process of their own, so that one that hangs or ends its reader is counted.
"""

import contextlib
import multiprocessing
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cobaya_cnnlens import products
from cobaya_cnnlens.errors import ProductError

from .damage import flip_bit

RECIPE = {"seed": 1, "sky": {"set": "test", "index": 3}}
PATIENCE = 60.0


def content() -> dict[str, np.ndarray]:
    """What products hold: maps, bandpowers, a spectrum, a number, text."""
    draw = np.random.default_rng(0).standard_normal
    return {
        "maps": draw((6, 40, 40)).astype("f4"),
        "auto": draw((160, 24)),
        "kk": draw(3000),
        "number": np.array(2.0),
        "source": np.frombuffer(b"maps.fits", np.uint8),
    }


def write(folder: Path) -> list[tuple[Path, str]]:
    """A product, and a file of shipped ones; with their kinds."""
    own, shipped = folder / "own.h5", folder / "shipped.h5"
    products.write_product(own, "bandpowers", RECIPE, content())
    products.ship(shipped, {"configuration": "a"}, [("bandpowers", RECIPE, content())])
    return [(own, "bandpowers"), (shipped, products.SHIPPED)]


def read(path: Path, kind: str) -> dict[str, np.ndarray]:
    """Everything in a product."""
    if kind == products.SHIPPED:
        product = products.open_shipped(path, "bandpowers", RECIPE)
        assert product is not None, "is not among the shipped"
    else:
        product = products.open_product(path, kind, RECIPE)
    with product:
        return {name: product.array(name) for name in product.names()}


def outcome(path: Path, kind: str, expected: dict[str, np.ndarray]) -> str:
    """What reading gives: "refused", "equal", "different", or the error that came instead."""
    try:
        found = read(path, kind)
    except ProductError as error:
        return "refused" if str(path) in str(error) else f"refused without its name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    same = found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )
    return "equal" if same else "different"


def _serve(connection, expected):
    with contextlib.suppress(EOFError):
        while True:
            path, kind = connection.recv()
            connection.send(outcome(path, kind, expected[kind]))


class Reader:
    """A process that reads files, started again when it has died or hung."""

    def __init__(self, expected):
        self._expected, self._process = expected, None

    def __call__(self, path: Path, kind: str) -> str:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._expected))
            self._process.start()
            theirs.close()
        self._connection.send((path, kind))
        try:
            if self._connection.poll(PATIENCE):
                return self._connection.recv()
            return self.stop("hung")
        except EOFError:
            return self.stop("died")

    def stop(self, why: str = "") -> str:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None
        return why


def fuzz(number: int, folder: Path, seed: int = 0, quiet: bool = False) -> Counter:
    """Outcomes of ``number`` flips, by what they are."""
    files = write(folder)
    expected = {kind: read(path, kind) for path, kind in files}
    whole = {path: path.read_bytes() for path, _ in files}
    source, found, reader = random.Random(seed), Counter(), Reader(expected)
    try:
        for k in tqdm(range(number), unit="file", disable=quiet):
            path, kind = files[k % len(files)]
            path.write_bytes(whole[path])
            flip_bit(path, source.randrange(8 * len(whole[path])))
            found[reader(path, kind)] += 1
    finally:
        reader.stop()
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3400
    outcomes = fuzz(count, Path(tempfile.mkdtemp()))
    for what, times in outcomes.most_common():
        print(f"{times:6d} {what}")
    sys.exit(outcomes != Counter(refused=count))
