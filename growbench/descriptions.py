"""What the files of methods and architectures say of themselves, read without running them."""

from __future__ import annotations

import ast
from pathlib import Path


def of_file(path: Path) -> str:
    """The first line of the file's docstring."""
    return (ast.get_docstring(_parsed(path)) or "").partition("\n")[0]


def of_method(path: Path) -> str:
    """The first line of the method class's docstring; empty if there is none."""
    for node in _parsed(path).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Method" for base in node.bases):
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def paper(path: Path) -> str:
    """What the method class says in `paper`; empty if it says nothing."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "paper":
            return str(ast.literal_eval(node.value)) if node.value else ""
    return ""


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
