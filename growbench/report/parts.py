"""What the pages are made of: tables of formatted cells, methods' names, and the templates that lay them out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from growbench.analysis.comparison import KEEPS, Comparison
from growbench.formatting import counted
from growbench.report import looks
from growbench.report.looks import Look
from growbench.report.ranking import papers

MARKS = {
    "keeps_source": f"{KEEPS} keeps its source: the final model contains the small one and is larger than the target.",
    "control": "Control: uses no trained small model, neither a given one nor one trained on the way, so that what it saves is "
    "not due to growth.",
}


@dataclass(frozen=True)
class MethodName:
    """A method as a reader sees it: its label behind its marker, whether it is tagged as a control, its paper's address."""

    name: str
    label: str
    look: Look
    control: bool
    paper: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a grouped table. `alone`: its head where it stands without its group's title."""

    head: str
    alone: str
    opens_group: bool = False


@dataclass(frozen=True)
class MethodRow:
    """A method's row: its name, and the cells of the other columns."""

    method: MethodName
    cells: Sequence[str]


@dataclass(frozen=True)
class GroupedTable:
    """One row a method. After the methods' names come columns of their `own`, then groups of columns.

    `groups`: by a group's title, the heads below it, and by each the same head, readable without the title.
    """

    own: Sequence[str]
    groups: Mapping[str, Mapping[str, str]]
    rows: Sequence[MethodRow]

    @property
    def columns(self) -> list[Column]:
        """All columns but the first, which holds the methods' names."""
        grouped = [
            Column(head, alone, opens_group=place == 0)
            for heads in self.groups.values()
            for place, (head, alone) in enumerate(heads.items())
        ]
        return [*(Column(head, head) for head in self.own), *grouped]


@dataclass(frozen=True)
class MethodRows:
    """A method's name, and the rows below it."""

    method: MethodName
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class TableByMethod:
    """Several rows a method, below its name."""

    heads: Sequence[str]
    blocks: Sequence[MethodRows]


@dataclass(frozen=True)
class PlainTable:
    """Rows of cells. `sentences`: the heads of columns that hold sentences, and may wrap."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    sentences: Collection[str] = ()


def method_names(comparison: Comparison) -> dict[str, MethodName]:
    """The methods of one experiment, as a reader sees them."""
    found, controls, links = looks.looks(comparison.methods), comparison.where("control"), papers(comparison)
    return {
        method: MethodName(method, comparison.label(method), found[method], method in controls, links.get(method, ""))
        for method in comparison.methods
    }


def footnotes(comparisons: Collection[Comparison]) -> list[str]:
    """What the marks of methods mean, where there are any."""
    return [text for mark, text in MARKS.items() if any(comparison.where(mark) for comparison in comparisons)]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table to paste into a README: the first columns are names, the others figures."""
    rule = ["---" if index < names else "---:" for index in range(len(heads))]
    cells = ([*map(markdown_text, row[:names]), *(cell.replace("|", "\\|") for cell in row[names:])] for row in rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in (map(markdown_text, heads), rule, *cells))


def markdown_text(text: str) -> str:
    """A name or a sentence in Markdown, where it makes no tag, link, image or cell of its own."""
    one_line = " ".join(text.split()).replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", one_line)


def unbroken(text: str) -> str:
    """The text with intervals that no line break divides."""
    return re.sub(r"\([^()a-z]*(?: to [^()a-z]*)?\)", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def render(template: str, **content: Any) -> str:
    """A page. Text in `content` is escaped; a name that the template needs and `content` lacks is an error."""
    return _environment().get_template(template).render(content)


@cache
def _environment() -> Environment:
    """The templates, each compiled once a process: that takes a third of a small page's time."""
    environment = Environment(
        loader=PackageLoader("growbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"counted": counted, "zip": partial(zip, strict=True), "palette": looks.css}
    return environment
