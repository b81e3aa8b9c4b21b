"""The manual: MyST Markdown by Sphinx. `make docs` builds it; every warning, as of a broken link, is an error."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import growbench.method

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the build's own folder is another one
from docs.generate import fields

project = "growbench"
author = "The growbench authors"
copyright = author
release = version = growbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3  # headings down to this level can be linked to
smartquotes_action = "qe"  # quotes and dots; two hyphens begin an option
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_type_aliases = {name: f"growbench.method.{name}" for name in ("Phases", "Schedule", "Weights", "Maps")}
toc_object_entries = False

html_theme = "pydata_sphinx_theme"
html_title = f"growbench {release}"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["templates"]
html_sidebars = {"**": ["contents.html"]}
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_theme_options = {
    "navbar_center": [],
    "navbar_persistent": [],
    "navbar_end": ["search-field", "theme-switcher"],
    "article_header_start": [],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def describe_fields(app: Sphinx) -> None:
    """A field's comment is its description: autodoc by itself knows only comments that begin with `#:`."""
    for cls in {each for each in vars(growbench.method).values() if inspect.isclass(each)}:
        if cls.__module__.startswith("growbench."):
            analyzer = ModuleAnalyzer.for_module(cls.__module__)
            for each in fields(cls):
                if each.comment:
                    sentence = f"{each.comment[0].upper()}{each.comment[1:].rstrip('.')}."
                    analyzer.find_attr_docs()[cls.__name__, each.name] = [sentence, ""]


def mark_up(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """docutils does not know `name`(...) as markup."""
    lines[:] = [re.sub(r"(`[^`]+`)(?=[\w(])", r"\1\\ ", line) for line in lines]


def hide_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """The fields of a class stand below it, each with its type and default."""
    return ("", None) if what == "class" else None


def open_pages(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Linked reports and texts are shown, not saved."""
    if "body" in context:
        link = r'class="reference download internal" download="" (href="[^"]*\.(?:html|txt)")'
        context["body"] = re.sub(link, r'class="reference internal" \1', context["body"])


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", describe_fields)
    app.connect("autodoc-process-docstring", mark_up)
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("html-page-context", open_pages)
