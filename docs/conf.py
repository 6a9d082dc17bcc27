"""The documentation site: `make docs`, from these pages and the docstrings."""

import re
from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

project = "gmmcnn"
version = release = version_of("gmmcnn")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"gmmcnn {version}"
html_extra_path = ["llms.txt"]
html_show_copyright = False
autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which types do not
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["myst.header"]  # tables of experiments begin at the third level


def name_files_outside(_app: Any, _page: str, source: list[str]) -> None:
    """What lies outside docs is no page of the site: name the file in place of a link."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", source[0])


def write_formula(translator: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw themselves: the site asks no other host for anything."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", name_files_outside)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
