"""The picture of the packages, as SVG: from top to bottom in the order of the contract that `lint-imports` checks."""

from __future__ import annotations

import ast
import re
import tomllib
from html import escape
from pathlib import Path
from textwrap import wrap

WIDTH, HEIGHT, GAP = 760, 46, 8  # pixels: of the picture, of a package, between two


def packages(root: Path) -> list[str]:
    """The packages from top to bottom."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return [package for package in settings["contracts"][0]["layers"] if package != "__main__"]


def about(root: Path, package: str) -> str:
    """The first sentence of a package's docstring."""
    path = root / "growbench" / package
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.) |\n", docstring)[0].rstrip(".")


def svg(root: Path) -> str:
    """Each package above what it uses."""
    drawn = []
    for place, package in enumerate(packages(root)):
        y = GAP + place * (HEIGHT + GAP)
        lines = wrap(about(root, package), 84)
        first = y + 28 - 9 * (len(lines) - 1)
        drawn.append(
            f'<rect x="{GAP}" y="{y}" width="{WIDTH - 2 * GAP}" height="{HEIGHT}" rx="6"/>'
            f'<text class="package" x="24" y="{y + 28}">{package}</text>'
            + "".join(f'<text x="148" y="{first + 18 * number}">{escape(line)}</text>' for number, line in enumerate(lines))
        )
    height = GAP + len(drawn) * (HEIGHT + GAP)
    label = "The packages of growbench, from the commands at the top to the errors at the bottom"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">
<style>
rect {{ fill: #f4f7fa; stroke: #7a8ca0; }}
.paper {{ stroke: none; fill: #ffffff; }}
text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; font-size: 13px; fill: #3c4a58; }}
.package {{ font-size: 14px; font-weight: 700; fill: #1c2733; }}
</style>
<rect class="paper" width="{WIDTH}" height="{height}"/>
{chr(10).join(drawn)}
</svg>
"""
