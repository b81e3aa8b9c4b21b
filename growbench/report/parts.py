"""What the pages are made of: one HTML file each that needs nothing else, its tables readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape

from growbench.analysis.comparison import KEEPS, Comparison
from growbench.report.drawing import Look

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #5c5c5c; --rule: #ddd; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.2rem 4rem; max-width: 72rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.headline { font-size: 1.2rem; line-height: 1.45; margin: .8rem 0 1.2rem; }
.soft, figcaption { color: var(--soft); font-size: .87rem; max-width: 52rem; }
.note { border-left: 3px solid #E69F00; padding: .1rem 0 .1rem .8rem; margin: .5rem 0; max-width: 46rem; }
.note { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .36rem .5rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
td { border-bottom: 1px solid var(--rule); }
thead th { font-weight: 600; border-bottom: 1px solid #888; vertical-align: bottom; white-space: normal; }
thead tr.groups th { white-space: nowrap; }
thead tr.groups th { text-align: left; border-bottom: 0; padding-bottom: 0; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; font-weight: 600; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
th.group, td.group { border-left: 1px solid var(--rule); }
td small { display: block; color: var(--soft); font-size: .92em; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; font-weight: 400; }
.dot { display: inline-block; width: 1.3em; }
.tag { border: 1px solid #999; border-radius: .7em; padding: 0 .45em; color: var(--soft); font-size: .85em; font-weight: 400; }
td > .tag { display: block; width: max-content; margin: .1rem 0 0 1.5em; }
th > .tag { margin-left: .6em; }
.by-method td:first-child { font-weight: 400; padding-left: 1.3em; }
tr.method th { padding-top: .8rem; border-bottom: 1px solid #888; }
summary { color: var(--soft); cursor: pointer; font-size: .9rem; }
figure { margin: .6rem 0 0; max-width: 68rem; }
figure img { display: block; width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .9rem; margin: .4rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
li { margin: .25rem 0; max-width: 46rem; }
pre { font-size: .78rem; overflow-x: auto; background: #f6f6f6; padding: .7rem; }
@media (max-width: 600px) {
  body { padding: 1.3rem 1rem 3rem; }
  h1 { font-size: 1.35rem; }
  .headline { font-size: 1.08rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  table, tbody, tr, td { display: block; }
  thead { display: none; }
  tr { display: grid; grid-template-columns: repeat(4, 1fr); gap: .25rem .4rem; padding: .6rem 0 .7rem;
    border-bottom: 1px solid var(--rule); }
  td, td.text { padding: 0; border: 0; min-width: 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-head); display: flex; align-items: flex-end; min-height: 2.5em; line-height: 1.25;
    color: var(--soft); font-size: .85em; }
  td:empty { display: none; }
  td small { font-size: .85em; }
  th:first-child, td:first-child, td.text { grid-column: 1 / -1; position: static; }
  td:first-child::before { content: none; }
  .by-method td:first-child { padding: 0; }
  td.text::before { min-height: 0; }
  td > .tag { display: inline; margin-left: .6em; }
  td.group { grid-column-start: 1; border: 0; }
  #ladder-table tr, #tests tr { grid-template-columns: 1fr 1fr; }
  #papers tr, #growth tr { grid-template-columns: repeat(3, 1fr); }
  tr.method { display: block; padding: 1rem 0 .2rem; border-bottom: 1px solid #888; }
  tr.method th { display: block; padding: 0; border: 0; }
}
@media print {
  html { font-size: 11px; }
  body { max-width: none; padding: 0; font-size: 1rem; }
  .scroll { overflow: visible; }
  th, td { padding: .3rem .35rem; }
  th:first-child, td:first-child { position: static; }
  figure { max-width: 54rem; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

GROUP = ' class="group"'  # opens a group of columns with a rule


def document(title: str, body: str) -> str:
    """A whole page. `title`: plain text."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table to paste into a README: the first columns are names, the others figures."""
    rule = ["---" if index < names else "---:" for index in range(len(heads))]
    lines = (heads, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figure(name: str, title: str, caption: str, cuts: tuple[bytes, bytes]) -> str:
    """A figure under its title. `cuts`: its SVG for wide and for narrow screens."""
    wide, narrow = map(_data_uri, cuts)
    return (
        f'<h2>{title}</h2><figure id="{name}"><picture><source media="(max-width: 600px)" srcset="{narrow}">'
        f'<img src="{wide}" alt="{title}"></picture><figcaption>{caption}</figcaption></figure>\n'
    )


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def cell(head: str, content: str, kind: str = "") -> str:
    """A table's cell of HTML `content`; narrow screens show its head beside it."""
    return f'<td{kind} data-head="{escape(head)}">{content}</td>'


def two_lines(text: str) -> str:
    """Plain text as HTML, what is in brackets, an interval or a count, on a second and quieter line."""
    value, bracket, rest = escape(text).partition(" (")
    return f"{value}<small>({rest}</small>" if bracket else value


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """A table of plain texts, escaped here. `text_columns`: those that hold sentences, and may wrap."""
    kinds = [' class="text"' if place in text_columns else "" for place in range(len(heads))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    body = ""
    for row in rows:
        cells = zip(heads, map(escape, row), kinds, strict=True)
        body += f"<tr>{''.join(cell(*entry) for entry in cells)}</tr>"
    return _scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


Groups = Mapping[str, Mapping[str, str]]  # title of a group of columns: heads below it: the same heads, readable alone


def grouped_table(name: str, own: Sequence[str], groups: Groups, rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table whose columns, but for the `own` first ones, stand in groups.

    `rows`: the first cell, as HTML, and the others, as plain texts. Titles of groups are HTML.
    """
    starts, heads, alone = set(), list(own), list(own)
    for columns in groups.values():
        starts.add(len(heads))
        heads += columns.keys()
        alone += columns.values()
    above = f'<th></th>{f"""<th colspan="{len(own) - 1}"></th>""" * (len(own) > 1)}'
    above += "".join(f'<th{GROUP} colspan="{len(columns)}">{title}</th>' for title, columns in groups.items())
    head = "".join(f"<th{GROUP * (place in starts)}>{escape(text)}</th>" for place, text in enumerate(heads))
    body = ""
    for first, texts in rows:
        cells = enumerate(zip(alone[1:], texts, strict=True), start=1)
        body += f"<tr><td>{first}</td>"
        body += "".join(cell(name, two_lines(text), GROUP * (place in starts)) for place, (name, text) in cells) + "</tr>"
    return _scrolling(
        f'<table id="{name}"><thead><tr class="groups">{above}</tr><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def table_by_method(name: str, heads: Sequence[str], methods: Iterable[tuple[str, Iterable[Sequence[str]]]]) -> str:
    """A table with rows of plain texts below each method's name, which is HTML."""
    body = ""
    for method, rows in methods:
        body += f'<tr class="method"><th colspan="{len(heads)}">{method}</th></tr>'
        for row in rows:
            body += f"<tr>{''.join(map(cell, heads, map(two_lines, row)))}</tr>"
    head = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return _scrolling(f'<table id="{name}" class="by-method"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _scrolling(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


MARKS = {
    "keeps_source": f"{KEEPS} keeps its source: the final model contains the small one and is larger than the target.",
    "control": "Control: no trained small model behind it, given or trained on the way; what it saves is not owed to growth.",
}


def footnotes(comparisons: Collection[Comparison]) -> str:
    """What the marks of methods mean, where there are any."""
    found = [mark for mark in MARKS if any(comparison.where(mark) for comparison in comparisons)]
    return "".join(f'<p class="soft">{MARKS[mark]}</p>' for mark in found)


def method_name(label: str, look: Look, control: bool) -> str:
    """A method's name behind its marker, with a tag if it is a control."""
    tag = '<span class="tag">control</span>' * control
    return f'<span class="dot" style="color:{look.colour}">{look.glyph}</span>{escape(label)}{tag}'
