"""Writes the generated parts of README.md and the manual: what stands between `<!-- generated: NAME -->` and `<!-- end -->`.

    python -m docs.generate

A test compares them with what the code and the committed results say.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from docs import picture
from docs.mistakes import MISTAKES, said

if TYPE_CHECKING:
    from tests.architectures.promises import Family

ROOT = Path(__file__).resolve().parents[1]
PART = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n)(?P<content>.*?)(<!-- end -->)", re.DOTALL)
PICTURE = ROOT / "docs" / "architecture.svg"
HEADING = re.compile(
    r"(Formula|Paper|Function preserving|Defaults|Costs|Costs beyond training|Hyperparameters|Source):(?= |$)"
)  # of a card's paragraphs


def pages() -> list[Path]:
    """Every page that may hold generated parts or examples."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """A page with its generated parts as they should be."""
    return PART.sub(lambda match: f"{match[1]}{part(match['name']).strip()}\n{match[4]}", text)


def part(name: str) -> str:
    """A generated part by its name, as `keys Training`."""
    function, *arguments = name.split()
    return PARTS[function](*arguments)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else ""


# --- fields with the comments beside them


@dataclass(frozen=True)
class Field:
    """A field of a class, or a member of an enum, as its source file has it."""

    name: str
    type: str
    default: str
    comment: str


@cache
def fields(cls: type) -> list[Field]:
    """The fields of a class in order, each with the comment on its line."""
    path = Path(inspect.getfile(cls))
    with path.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    body = next(
        node.body for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    found = []
    for node in body:
        comment = comments.get(node.end_lineno or 0, "")
        if isinstance(node, ast.AnnAssign):
            default = "" if node.value is None else ast.unparse(node.value)
            found.append(Field(ast.unparse(node.target), ast.unparse(node.annotation), default, comment))
        elif isinstance(node, ast.Assign):
            found.append(Field(ast.unparse(node.targets[0]), "", ast.unparse(node.value), comment))
    return found


def keys(name: str) -> str:
    """The keys of one section of an experiment."""
    schema = importlib.import_module("growbench.config.schema")
    from_data = ("vocabulary", "positions", "patch", "configuration", "even_heads", "causal") if name == "ModelConfig" else ()
    rows = []
    for each in fields(getattr(schema, name)):
        if each.name not in from_data:
            default = _as_toml(re.sub(r"^added_later\((.*)\)$", r"\1", each.default))
            rows.append((code(each.name), code(_kind(each.type)), code(default) or "required", each.comment))
    return table(("Key", "Type", "Default", "Meaning"), rows)


def _as_toml(default: str) -> str:
    """A default as an experiment file writes it; an empty one stays empty."""
    value = ast.literal_eval(default) if default else None
    return default if value is None or isinstance(value, float) else json.dumps(value)


def _kind(annotation: str) -> str:
    """A type as a person reads it."""
    if annotation.startswith("Literal["):
        return " or ".join(re.findall(r"'(.*?)'", annotation))
    names = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}
    return {**names, "int | float": "number", "tuple[float, float]": "two numbers"}.get(annotation, annotation)


def axes() -> str:
    from growbench.growth.weights import Axis

    return table(("Axis", "Ranges over"), [(code(each.name), each.comment or each.default.strip("'")) for each in fields(Axis)])


def accounts() -> str:
    from growbench.costs.accounts import Account

    return table(("Account", "What is in it"), [(code(each.default.strip("'")), each.comment) for each in fields(Account)])


# --- what there is


def experiments() -> str:
    from growbench.config import loading

    rows = []
    for name in loading.available():
        experiment = loading.load(name)
        rows.append((code(name), experiment.title, f"{experiment.train.steps:,}"))
    return table(("Experiment", "What it is", "Steps"), rows)


def methods() -> str:
    from growbench import registry

    rows = [(code(name), registry.summaries()[name], f"[{_short(_paper(name))}]({_paper(name)})") for name in registry.built_in()]
    return table(("Method", "What it does", "Paper"), rows)


def _paper(name: str) -> str:
    from growbench import registry

    return str(type(registry.get(name).method).paper)


def _short(address: str) -> str:
    """A paper's address as the text of a link: arXiv:2303.00980, or the site."""
    _, _, place = address.partition("://")
    return place.replace("arxiv.org/abs/", "arXiv:") if place.startswith("arxiv.org/abs/") else place.partition("/")[0]


def cards() -> str:
    """What `growbench list methods --long` prints, as Markdown."""
    from growbench import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(["list", "methods", "--long"])
    return "\n\n".join(card_as_markdown(text) for text in printed.getvalue().strip().split("\n\n"))


def card_as_markdown(text: str) -> str:
    """A card as `growbench list` prints it, with bold headings and a list of hyperparameters."""
    name, *lines = text.splitlines()
    paragraphs: list[str] = []
    for line in lines:
        if line.startswith(" " * 8) and not line.startswith(" " * 12):
            paragraphs.append(f"- {line.strip()}")  # a hyperparameter
        elif _opens(line, paragraphs[-1] if paragraphs else "."):
            paragraphs.append(line.strip())
        else:
            paragraphs[-1] += f" {line.strip()}"
    return "\n\n".join([f"## {name}", *map(_paragraph, paragraphs)]).replace("\n\n- ", "\n- ").replace(":**\n- ", ":**\n\n- ")


def _opens(line: str, before: str) -> bool:
    """Whether a card's line opens a paragraph: with a heading, with the paper's address, or with `name: ` after a full stop."""
    text = line.strip()
    named = before.endswith(".") and re.match(r"\w[\w -]*: ", text)
    return bool(HEADING.match(text) or re.match(r"https?://", text) or len(before) < 2 or named)


def _paragraph(text: str) -> str:
    if text.startswith("- "):
        setting, _, comment = text[2:].partition("  # ")
        return f"- `{setting}`{': ' * bool(comment)}{comment}"
    if text.startswith("http"):
        return f"<{text}>"
    heading = HEADING.match(text)
    return f"**{heading[0]}**{_literal(text[heading.end() :])}" if heading else _literal(text)


def _literal(text: str) -> str:
    """Docstring as Markdown: formulas hold stars and brackets, which stay as they are."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_\[\]<>])", r"\\\1", part) for part in parts)


def weights() -> str:
    """The canonical weights of each architecture, as reading a model without values gives them."""
    import torch

    from growbench import architectures
    from growbench.tools.miniatures import VOCABULARY, Cell

    texts = []
    for name in architectures.names():
        architecture = architectures.get(name)
        may_untie = "tied" in architecture.options
        with torch.device("meta"):
            read = [
                architecture.read(architecture.build(Cell(name, tied).experiment.sizes("target", VOCABULARY)))
                for tied in ([True, False] if may_untie else [True])
            ]
        rows = []
        for key, weight in read[-1].items():
            tied = " (tied)" * (key not in read[0])
            dims = ", ".join(axis.name for axis in weight.axes)
            rows.append(
                (code(key) + tied, code(dims), code(weight.role), *("yes" * on for on in (weight.consumes, weight.residual)))
            )
        texts.append(f"### {name}\n\n{table(('Weight', 'Axes', 'Role', 'Consumes', 'Residual'), rows)}")
    return "\n\n".join(texts)


# --- the command line


def commands() -> str:
    """Every command with its arguments, as the parser knows them."""
    from growbench import arguments

    (action,) = (each for each in arguments.parser()._actions if isinstance(each, argparse._SubParsersAction))
    return "\n\n".join(_command(name, parser) for name, parser in action.choices.items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    description = (parser.description or "").rstrip(".")
    text = f"## {name}\n\n{description[:1].upper()}{description[1:]}."
    rows = [(code(_usage(action)), _literal(_help(action))) for action in parser._actions if action.dest != "help"]
    return f"{text}\n\n{table(('Argument', 'Meaning'), rows)}"


def _usage(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    value = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices or [])) or action.dest.upper()
    if action.nargs == 0:
        return names
    return f"{names} {value}".strip() if names else f"[{value}]" if action.nargs == "?" else value


def _help(action: argparse.Action) -> str:
    text = re.sub(r"--[a-z][\w-]*", lambda option: code(option[0]), (action.help or "") % vars(action))
    if action.option_strings and action.choices and "default" not in text:
        text = f"{text}; default: {action.default}".removeprefix("; ")
    return text


def mistakes() -> str:
    """What `growbench check` says to what people write at first."""
    return table(("You wrote", "`growbench check` says"), [(code(each.what), _literal(said(each))) for each in MISTAKES])


# --- results


def savings() -> str:
    return (ROOT / "results/reference/gpt2-tiny/report/savings.md").read_text(encoding="utf-8")


def aa_test() -> str:
    """What the A/A test wrote, without its heading."""
    return (ROOT / "results/aa_test/gpt2-tiny/summary.md").read_text(encoding="utf-8").partition("\n")[2]


def claims() -> str:
    """Shares of the A/A test's table, in percent: a row for each experiment, case and number of seeds."""
    import pandas as pd

    rows: list[list[str]] = []
    found = pd.read_csv(ROOT / "results/aa_test/gpt2-tiny/outcomes.csv")
    for (experiment, protocol, case, seeds), group in found.groupby(["experiment", "protocol", "case", "seeds"], sort=False):
        by_saving = group.set_index("saving")
        null, savings = by_saving.loc[0.0], by_saving.index.drop(0.0)
        shares = [null["saves"], null["costs_more"], null["family"], null["covered"]]
        shares += [by_saving.loc[saving, column] for column in ("covered", "saves") for saving in savings]
        cells = [f"{100 * share:.1f}" for share in shares]
        rows.append([f"{experiment} ({protocol})", case, str(seeds), *cells, *["–"] * (8 - len(cells))])
    nulls = ("nulls said to save", "to cost more", "families claimed")
    true = ("0 % held", "10 % held", "30 % held", "10 % claimed", "30 % claimed")
    return table(("Experiment", "Case", "n", *nulls, *true), rows)


def mini() -> str:
    return (ROOT / "results/mini/report/overview.md").read_text(encoding="utf-8")


def speed() -> str:
    """The table at the end of what `growbench bench --all` printed."""
    lines = (ROOT / "results/speed.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def headline() -> str:
    """Three methods of the reference run, and the columns that say most."""
    lines = [line.strip("| ").split(" | ") for line in savings().splitlines() if line.startswith("|")]
    heads, rows = lines[0], lines[2:]
    ledgers = [f"{head}, {ledger}" for ledger in ("reuse", "build") for head in ("FLOPs saved", "verdict")]
    shown = [heads.index(head) for head in ("method", "final loss", *ledgers)]
    return table([heads[place] for place in shown], [[row[place] for place in shown] for row in rows if row[0] != "scratch"][:3])


def promises() -> str:
    """Every family with every promise, as tests/architectures/test_families.py asserts it: kept, or not and why."""
    from tests.architectures.promises import FAMILIES, PROMISES

    def cell(family: Family, promise: str) -> str:
        return f"no: {family.changes[promise]}" if promise in family.changes else "yes"

    rows = [[f"`{family.name}`", *(cell(family, promise) for promise in PROMISES)] for family in FAMILIES]
    return table(["Family", *PROMISES], sorted(rows))


PARTS: dict[str, Callable[..., str]] = {
    each.__name__: each
    for each in (
        keys,
        axes,
        accounts,
        experiments,
        methods,
        cards,
        weights,
        promises,
        commands,
        mistakes,
        savings,
        aa_test,
        claims,
        mini,
        speed,
        headline,
    )
}


def main() -> None:
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    PICTURE.write_text(picture.svg(ROOT), encoding="utf-8")


if __name__ == "__main__":
    main()
