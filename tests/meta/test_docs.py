"""What the documentation rests on: the package's own names, the check of the built site's links."""

import importlib.util
import subprocess
import sys

import pytest

import cobaya_cnnlens

from ..conftest import REPOSITORY


@pytest.mark.parametrize("name", cobaya_cnnlens.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cobaya_cnnlens, name) is not None


def test_public_names_load_only_what_is_asked_for():
    code = (
        "import sys, cobaya_cnnlens; cobaya_cnnlens.read_release('refined_fiducial'); "
        "sys.exit(bool({'cobaya', 'camb', 'keras', 'healpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CNNlens'"):
        cobaya_cnnlens.CNNlens  # noqa: B018


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
