"""Sphinx configuration: ``pip install '.[docs]' && sphinx-build -W -b html docs docs/_build``."""

import os
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent

# Pages that wait for what they describe; a name is taken off the list when that is there.
#   contributing    includes CONTRIBUTING.md
#   own_maps        runs `cnnlens reconstruct RELEASE --maps` and `release make --calibration`
PENDING = [
    *([] if (HERE.parent / "CONTRIBUTING.md").exists() else ["contributing.md"]),
    "tutorials/own_maps.md",
]

project = "cobaya_cnnlens"
author = "The cobaya_cnnlens developers"
project_copyright = author
release = version = metadata.version("cobaya_cnnlens")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", *PENDING]
suppress_warnings = ["toc.excluded"] if PENDING else []
templates_path = ["_templates"]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials run when the site is built, each in its own process; a changed cell runs it again.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# Their shell commands are this environment's, and draw no progress bars.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["TQDM_DISABLE"] = "1"

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "pydata_sphinx_theme"
html_title = "cobaya_cnnlens"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 4,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
