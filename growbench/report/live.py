"""The interactive layer of an experiment's page: its data, scripts and styles, all of them inline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Unit
from growbench.registry import SCRATCH
from growbench.report import inline
from growbench.report.drawing import brief
from growbench.report.forest import ARROWS, geometry
from growbench.report.live_data import number, runs_of
from growbench.report.looks import CHIPS, looks
from growbench.report.ranking import CONTROLS, FEW, MEETS, MISSES, UNKNOWN, groups, named, papers

STYLES = ("uplot-1.6.32.min.css", "live.css")
# each uses those before it
SCRIPTS = (
    "uplot-1.6.32.min.js", "estimator.js", "reading.js", "format.js", "curves.js", "chart.js", "savings.js", "forest.js",
    "live.js",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """What a page needs for it: `style` in its head, `scripts` at the end of its body."""

    style: Markup
    scripts: Markup


def layer(comparison: Comparison) -> Layer:
    """It takes the place of the figure of curves. Where scripts are off it is not there, and that figure stays."""
    data = f'<script type="application/json" id="live-data">{_json(data_of(comparison))}</script>'
    scripts = "\n".join(f"<script>\n{asset(name)}</script>" for name in SCRIPTS)
    return Layer(Markup("\n".join(map(asset, STYLES))), Markup(f"{data}\n{scripts}"))


@cache
def asset(name: str) -> str:
    """A file of growbench/report/assets."""
    return resources.files("growbench.report").joinpath("assets", name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """As it can stand in a script, which ends at the first "</script>" whatever is around it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _ranked(comparison: Comparison) -> list[str]:
    """The methods in the order of the page's verdicts, scratch first, those without one last."""
    ranked = [SCRATCH, *(row["method"] for group in groups(comparison.verdicts) for row in group.rows)]
    return [
        *(each for each in ranked if each in comparison.methods),
        *(each for each in comparison.methods if each not in ranked),
    ]


def data_of(comparison: Comparison) -> dict[str, Any]:
    """All that the page's scripts read, in JSON's types. `climbers`: the methods on the ladder, scratch included."""
    drawn, controls, chosen = looks(comparison.methods), comparison.where("control"), named(comparison)
    addresses = papers(comparison)
    claims = {row[columns.METHOD]: row for row in tables.records(comparison.savings)}
    methods = [
        {
            "name": method,
            "label": comparison.label(method),
            "brief": brief(comparison.label(method)),
            "place": comparison.methods.index(method),
            "paper": addresses.get(method),
            "claims": {unit: number(claims[method][columns.published_saving(unit)]) for unit in Unit},
            "control": method in controls,
            "named": method in chosen,
            "variable": drawn[method].variable.removeprefix("var(").removesuffix(")"),
            "glyph": drawn[method].glyph,
            "shape": inline.shape(drawn[method].marker),
            "dashes": drawn[method].dashes,
        }
        for method in _ranked(comparison)
    ]
    return {
        "target": comparison.single.target_loss,
        "units": comparison.units,
        "measures": ["loss", "accuracy"] if comparison.has_accuracy else ["loss"],
        "few": FEW,  # lines, up to which all of them have their names and colours
        "climbers": [] if comparison.ladder.empty else list(comparison.ladder["method"]),
        "methods": methods,
        "cuts": geometry(comparison),
        "groups": {"meets": MEETS, "misses": MISSES, "unknown": UNKNOWN, "controls": CONTROLS},
        "arrows": {"none": inline.shape("o"), **{relation: inline.shape(marker) for relation, marker in ARROWS.items()}},
        "chips": {verdict: {"name": verdict.name.lower(), "text": chip.text} for verdict, chip in CHIPS.items()},
        "runs": runs_of(comparison),
    }
