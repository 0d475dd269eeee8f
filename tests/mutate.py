"""Plant wrong lines, one at a time, in a copy of the repository, and see which the tests miss.

    python tests/mutate.py [NAME …] [--file PART] [--list]

``mutants.json`` lists them: ``id``; ``file``; ``old``, which stands in it exactly once; ``new``;
and ``tests``, pytest's arguments, of which some must fail. The exit code is 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LIST = REPOSITORY / "tests" / "mutants.json"
# pytest's exit codes for failed tests and for tests that cannot even be imported
NOTICED = (1, 2)
LONGEST = 900  # seconds that a mutant's tests may take


def planted(mutant: dict, text: str) -> str:
    """The file's text with the mutant in it."""
    if text.count(mutant["old"]) != 1:
        raise SystemExit(
            f"{mutant['id']}: its old text stands {text.count(mutant['old'])} times in "
            f"{mutant['file']}; write it anew"
        )
    return text.replace(mutant["old"], mutant["new"])


def copy(folder: Path) -> None:
    """What is tracked, and what is not yet but is not ignored."""
    listed = subprocess.run(
        ["git", "-C", REPOSITORY, "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        source, target = REPOSITORY / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def noticed(mutant: dict, folder: Path) -> bool:
    """Whether the mutant's tests fail on it."""
    path = folder / mutant["file"]
    text = path.read_text(encoding="utf-8")
    path.write_text(planted(mutant, text), encoding="utf-8")
    try:
        return run(mutant["tests"], folder) in NOTICED
    finally:
        path.write_text(text, encoding="utf-8")


def run(tests: list[str], folder: Path) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:  # it hangs: noticed
        return NOTICED[0]
    if done.returncode not in (0, *NOTICED):
        raise SystemExit(f"pytest {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants; all by default")
    parser.add_argument("--file", default="", help="only those whose file's path holds this")
    parser.add_argument("--list", action="store_true", help="print them and stop")
    options = parser.parse_args()
    mutants = [m for m in json.loads(LIST.read_text()) if options.file in m["file"]]
    if unknown := set(options.names) - {m["id"] for m in mutants}:
        parser.error(f"no mutants {', '.join(sorted(unknown))}")
    mutants = [m for m in mutants if not options.names or m["id"] in options.names]
    if options.list:
        for mutant in mutants:
            print(f"{mutant['id']:32s}{mutant['file']}")
        return
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        copy(Path(name))
        for tests in {tuple(m["tests"]) for m in mutants}:
            if run(list(tests), Path(name)):
                raise SystemExit(f"pytest {' '.join(tests)} fails without any mutant")
        for mutant in mutants:
            found = noticed(mutant, Path(name))
            survivors += [] if found else [mutant["id"]]
            print(f"{'noticed ' if found else 'SURVIVED'}  {mutant['id']}", flush=True)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} noticed")
    raise SystemExit(bool(survivors))


if __name__ == "__main__":
    main()
