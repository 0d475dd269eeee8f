"""The check of the built site's links, on which the documentation rests."""

import importlib.util

import pytest

from ..conftest import REPOSITORY


@pytest.fixture(scope="module")
def broken_links():
    spec = importlib.util.spec_from_file_location(
        "check_links", REPOSITORY / "docs" / "check_links.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.broken_links


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="#here">', None),
        ('<a href="https://arxiv.org/abs/1810.01483">', None),
        ('<a href="other.html#gone">', "no such anchor"),
        ('<a href="#gone">', "no such anchor"),
        ('<a href="gone.html">', "no such file"),
        ('<img src="gone.png">', "no such file"),
        ('<img src="https://example.org/a.png">', "from elsewhere"),
        ('<script src="//example.org/a.js"></script>', "from elsewhere"),
    ],
)
def test_broken_links_of_a_site_are_told(broken_links, tmp_path, link, problem):
    (tmp_path / "other.html").write_text('<h1 id="there"></h1>')
    (tmp_path / "index.html").write_text(f'<h1 id="here"></h1>{link}')
    found = broken_links(tmp_path)
    assert [problem in line for line in found] == ([True] if problem else [])
