"""Sphinx configuration: ``pip install '.[docs]' && sphinx-build -W -b html docs docs/_build``."""

import json
import os
import re
import sys
from importlib import metadata
from pathlib import Path

from cobaya_cnnlens.likelihood.schema import json_schema

HERE = Path(__file__).parent

# What waits for something that is not there yet; a name is taken off when it is.
#   tutorials/own_maps runs `cnnlens reconstruct RELEASE --maps` and `release make --calibration`:
#   until then the page is built and not run.
NOT_RUN: list[str] = []
MISSING = [] if (HERE.parent / "CONTRIBUTING.md").exists() else ["contributing.md"]

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
exclude_patterns = ["_build", "jupyter_execute", "_generated/release_fields.md", *MISSING]
suppress_warnings = ["toc.not_readable"] if MISSING else []
templates_path = ["_templates"]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials and studies run when the site is built, each in its own process. A changed cell runs
# them again.
nb_execution_mode = "cache"
nb_execution_excludepatterns = NOT_RUN
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache")
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

# Every page in the left margin under its heading, light and dark, for telephones too; glass and
# many of Python's tools use it.
html_theme = "furo"
html_title = "cobaya_cnnlens"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False


def release_fields() -> str:
    """The release's fields as MyST definition lists, from the JSON schema."""
    schema = json_schema()
    sections = {k: s for k, s in schema["properties"].items() if s.get("type") == "object"}
    single = {k: s for k, s in schema["properties"].items() if k not in sections}
    lines = ["## Head and foot", "", *_definitions(single)]
    for name, section in sections.items():
        lines += [f"## `{name}`", "", section["description"], ""]
        lines += _definitions(section["properties"], set(section.get("required", ())), f"{name}.")
    return "\n".join(lines)


def _definitions(properties: dict, required: set | None = None, prefix: str = "") -> list[str]:
    lines = []
    for key, part in properties.items():
        kind = part.get("type", "")
        if "const" in part:
            kind = json.dumps(part["const"])
        if "enum" in part:
            kind = " or ".join(json.dumps(value) for value in part["enum"])
        if "anyOf" in part:
            kind = " or ".join(option["type"] for option in part["anyOf"])
        if shape := part.get("x-shape"):
            kind = f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"
        if unit := part.get("x-unit"):
            kind += f", {unit}"
        optional = "" if required is None or key in required else ", optional"
        lines += [f"`{prefix}{key}` — {kind}{optional}", f": {part['description']}", ""]
    return lines


(HERE / "_generated").mkdir(exist_ok=True)
(HERE / "_generated" / "release_fields.md").write_text(release_fields(), encoding="utf-8")
(HERE / "_generated" / "release.schema.json").write_text(
    json.dumps(json_schema(), indent=1, ensure_ascii=False), encoding="utf-8"
)


def _escape(app, what, name, obj, options, lines: list[str]) -> None:
    """|t| in a docstring is a modulus, not one of reStructuredText's substitutions."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.+?``)", line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _escape, priority=100)  # before numpydoc
