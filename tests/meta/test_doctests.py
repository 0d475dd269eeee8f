"""The examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import cobaya_cnnlens

PACKAGE = Path(cobaya_cnnlens.__file__).parent
MODULES = [
    ".".join(("cobaya_cnnlens", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert (failed, tried > 0) == (0, True)
