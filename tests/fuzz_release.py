"""Fuzz the release reader: every malformed file must be refused in one clear error.

python -m tests.fuzz_release 100000
"""

import random
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from cobaya_cnnlens.errors import ReleaseError
from cobaya_cnnlens.likelihood.document import to_document
from cobaya_cnnlens.likelihood.release import read_release, write_release

from .conftest import synthetic_release
from .damage import cut_or_overwritten, wrong_but_sealed


def fuzz(number: int, folder: Path, seed: int = 0, quiet: bool = False) -> int:
    """Read ``number`` malformed files; how many were refused.

    Raises
    ------
    AssertionError
        naming the file kept, if one was accepted or raised another error
    """
    path = folder / "r.json"
    release = synthetic_release(2)
    write_release(release, path)
    text, document = path.read_text(), to_document(release)
    source = random.Random(seed)
    refused = 0
    for _ in tqdm(range(number), unit="file", disable=quiet):
        damaged = None
        while damaged is None:
            if source.random() < 0.5:
                damaged = cut_or_overwritten(text, source)
            else:
                damaged = wrong_but_sealed(document, source)
        path.write_text(damaged)
        try:
            read_release(path)
        except ReleaseError as error:
            if str(path) not in str(error):
                raise AssertionError(f"'{error}' names no file") from error
            refused += 1
        except Exception as error:
            raise AssertionError(f"{path}: {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"{path} was accepted")
    return refused


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    where = Path(tempfile.mkdtemp())
    print(f"{fuzz(count, where)} of {count} malformed files refused, none accepted, no crash")
