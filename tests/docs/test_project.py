"""What people expect of a project: short modules, a layered package, and papers that agree with one another."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

import growbench
import growbench.method
from docs import picture
from docs.generate import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LONGEST = 350  # lines of a module


def modules() -> list[Path]:
    return sorted([*(ROOT / "growbench").rglob("*.py"), *(ROOT / "methods").glob("*.py")])


def test_no_module_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert len(lengths) > 80
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def imported(path: Path) -> Iterator[str]:
    """What a module imports of growbench, wherever in it, in full; imports for types alone included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "growbench":
            yield from (f"growbench.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_nothing_imports_upwards() -> None:
    """As lint-imports says, by another way: no package imports one that the picture shows above it."""
    height = {package: place for place, package in enumerate(reversed(picture.packages(ROOT)))}
    seen = 0
    for path in (ROOT / "growbench").rglob("*.py"):
        package = path.relative_to(ROOT / "growbench").parts[0].removesuffix(".py")
        for name in imported(path):
            other = name.split(".")[1] if name.startswith("growbench.") else ""
            if other in height and package in height and other != package:
                seen += 1
                assert height[other] < height[package], f"{path} imports {name}"
    assert seen > 150


def test_a_method_imports_the_interface() -> None:
    """And nothing else of growbench, but for a method that grows by others, which it looks up."""
    seen = 0
    for path in (ROOT / "methods").glob("*.py"):
        names = [name for name in imported(path) if name.startswith("growbench")]
        seen += len(names)
        assert set(names) <= (
            {"growbench.method", "growbench.registry"}
            if path.stem in ("random_source", "shuffled_source", "lag")
            else {"growbench.method"}
        ), path
    assert seen >= 13


def test_the_reference_names_the_whole_interface() -> None:
    page = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\s*\.\. (?:autoclass|autofunction|autoexception|py:type|py:data):: (\w+)$", page, re.MULTILINE))
    assert named == set(growbench.method.__all__)


def test_the_readme_is_short() -> None:
    assert 300 < len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_citation_names_this_version() -> None:
    """The keys that the format demands, and what pyproject.toml says."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == growbench.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PYPROJECT["project"]["authors"]]


def test_the_licence_is_there_in_full() -> None:
    own, notice, others = PYPROJECT["project"]["license-files"]
    assert (own, notice) == ("LICENSE", "NOTICE")
    brought = {path.name.removesuffix(".min.js") for path in (ROOT / "growbench" / "report" / "assets").glob("*.min.js")}
    assert brought and brought == {path.name.removesuffix(".LICENSE.txt") for path in ROOT.glob(others)}
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence
    assert all(f"\n   {number}. " in licence for number in range(1, 10)) and "END OF TERMS AND CONDITIONS" in licence
    counter = (ROOT / "growbench" / "costs" / "published.py").read_text(encoding="utf-8")
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "flop_computation.py" in counter and "flop_computation.py" in notice


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" and growbench.__version__ in headings


def test_the_workflow_runs_the_tests_on_every_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert job["steps"][-1] == {"run": "make test"}
    versions = job["strategy"]["matrix"]["python"]
    classifiers = PYPROJECT["project"]["classifiers"]
    assert (
        versions
        == [line.rpartition(" ")[2] for line in classifiers if re.search(r":: 3\.\d+$", line)]
        == ["3.11", "3.12", "3.13"]
    )


def test_make_test_runs_every_linter() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("ruff check", "ruff format --check", "lint-imports", "mypy", "pytest", "sphinx-build"):
        assert f"$(BIN)/{command}" in makefile
    assert re.search(r"^checks: .*\bdocs\b", makefile, re.MULTILINE)
    (recipe,) = re.findall(r"^test:.*\n\t(.*)$", makefile, re.MULTILINE)
    assert {"checks", "tests"} <= set(recipe.split())
