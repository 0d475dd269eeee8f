"""The list of mutants is of the code that there is."""

import json
import re

import pytest

from . import mutate

MUTANTS = json.loads(mutate.LIST.read_text(encoding="utf-8"))


def test_each_has_its_own_name():
    assert len({mutant["id"] for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m["id"])
def test_it_can_be_planted(mutant):
    """Where its line stands, once, and with tests that there are."""
    text = (mutate.REPOSITORY / mutant["file"]).read_text(encoding="utf-8")
    assert mutate.planted(mutant, text) != text
    for named in mutant["tests"]:
        file, _, test = named.partition("::")
        content = (mutate.REPOSITORY / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test.partition('[')[0]}\(", content, re.M), named
