"""What is generated in the README and the manual is what the code and the committed results say."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import pytest

from docs import picture
from docs.generate import PART, PARTS, PICTURE, ROOT, card_as_markdown, pages, part
from growbench.config import schema

FOUND = [
    pytest.param(match["name"], match["content"], id=f"{page.name} {match['name']}")
    for page in pages()
    for match in PART.finditer(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_every_part_is_up_to_date(name: str, content: str) -> None:
    assert content.strip() == part(name).strip(), "run make generated"


def test_every_part_is_somewhere_and_no_mark_is_misspelt() -> None:
    assert {str(parameters.values[0]).split()[0] for parameters in FOUND} == PARTS.keys()
    marks = sum(len(re.findall(r"<!-- *(?:generated|end)", page.read_text(encoding="utf-8"))) for page in pages())
    assert marks == 2 * len(FOUND)


def test_the_picture_shows_every_package_in_the_order_of_the_contract() -> None:
    text = PICTURE.read_text(encoding="utf-8")
    assert text == picture.svg(ROOT), "run make generated"
    shown = re.findall(r'class="package"[^>]*>(\w+)<', text)
    folder = ROOT / "growbench"
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    assert sorted(shown) == sorted(packages | modules)
    places = [int(y) for y in re.findall(r'class="package"[^>]*y="(\d+)"', text)]
    assert places == sorted(places) and len(places) == len(shown)


def test_only_the_headings_of_a_card_are_bold() -> None:
    card = """halves
    Control: train half of the layers, and then
    all: the baseline. More of it.
    Formula: W = [I; M]. AKI: the
    next layer's.
    Depth: whole copies.
    Two-stage pretraining: `share` of the budget.
    Costs beyond training: none.
    Hyperparameters:
        share: float = 0.5  # of the budget, which is
            long
    Source: not used
    https://example.org"""
    assert card_as_markdown(card).split("\n\n") == [
        "## halves",
        "Control: train half of the layers, and then all: the baseline. More of it.",
        "**Formula:** W = \\[I; M\\]. AKI: the next layer's.",
        "Depth: whole copies.",
        "Two-stage pretraining: `share` of the budget.",
        "**Costs beyond training:** none.",
        "**Hyperparameters:**",
        "- `share: float = 0.5`: of the budget, which is long",
        "**Source:** not used",
        "<https://example.org>",
    ]


@pytest.mark.parametrize("name", ["ModelConfig", "Training", "TextConfig", "ImageConfig", "Machine"])
def test_defaults_stand_as_an_experiment_file_takes_them(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `[^`]+` \| `(.+?)` \|", part(f"keys {name}"), re.MULTILINE)
    written = tomllib.loads("\n".join(f"{key} = {default}" for key, default in rows))
    known = {field.name: field.default for field in dataclasses.fields(getattr(schema, name))}
    declared = {key: default for key, default in known.items() if default is not dataclasses.MISSING}
    from_data = {"vocabulary", "positions", "patch", "configuration", "even_heads", "causal"} if name == "ModelConfig" else set()
    assert written.keys() == declared.keys() - from_data
    assert all(declared[key] == (tuple(value) if isinstance(value, list) else value) for key, value in written.items())
