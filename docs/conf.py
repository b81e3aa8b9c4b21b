"""The manual: MyST Markdown by Sphinx. `make docs` builds it; every warning, as of a broken link, is an error."""

from __future__ import annotations

import ast
import inspect
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import growbench

project = "growbench"
author = "The growbench authors"
copyright = author
release = version = growbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["generate.py"]
myst_heading_anchors = 3  # headings down to this level can be linked to
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries = False

html_theme = "pydata_sphinx_theme"
html_title = f"growbench {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_theme_options = {
    "show_prev_next": True,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


@cache
def _comments(cls: type) -> dict[str, str]:
    """The comment beside each annotated field of a class."""
    path = Path(inspect.getfile(cls))
    with path.open("rb") as file:
        beside = {token.start[0]: token.string.lstrip("# ") for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT}
    node = next(
        node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    return {ast.unparse(each.target): beside.get(each.end_lineno or 0, "") for each in fields}


def field_comments(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A field's comment is its description."""
    if what != "attribute" or lines:
        return
    module, owner, field = name.rsplit(".", 2)
    cls = getattr(__import__(module, fromlist=[owner]), owner)
    for each in cls.__mro__[:-1]:
        if comment := _comments(each).get(field):
            lines.append(f"{comment[0].upper()}{comment[1:].rstrip('.')}.")
            return


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", field_comments)
