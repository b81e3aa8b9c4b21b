"""The interactive layer of an experiment's page: its data, scripts and styles, all of them inline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from growbench.analysis.comparison import Comparison
from growbench.registry import SCRATCH
from growbench.report.live_data import runs_of
from growbench.report.looks import CHIPS, looks
from growbench.report.ranking import FEW, groups, named

STYLES = ("uplot-1.6.32.min.css", "live.css")
# each uses those before it
SCRIPTS = (
    "uplot-1.6.32.min.js", "estimator.js", "reading.js", "format.js", "curves.js", "chart.js", "savings.js", "live.js",
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
    methods = [
        {
            "name": method,
            "label": comparison.label(method),
            "control": method in controls,
            "named": method in chosen,
            "variable": drawn[method].variable.removeprefix("var(").removesuffix(")"),
            "glyph": drawn[method].glyph,
            "dashes": drawn[method].dashes,
        }
        for method in _ranked(comparison)
    ]
    return {
        "target": comparison.single.target_loss,
        "units": comparison.units,
        "few": FEW,  # lines, up to which all of them have their names and colours
        "climbers": [] if comparison.ladder.empty else list(comparison.ladder["method"]),
        "methods": methods,
        "chips": {verdict: {"name": verdict.name.lower(), "text": chip.text} for verdict, chip in CHIPS.items()},
        "runs": runs_of(comparison),
    }
