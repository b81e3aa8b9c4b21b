"""The page that a person reads: one HTML file that needs nothing else, and the savings as Markdown."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from growbench import analysis, results
from growbench.analysis import LEDGERS, SCRATCH, UNITS, Comparison
from growbench.report import plots, units
from growbench.results import Run

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
#phases td:first-child { font-weight: 400; padding-left: 1.3em; }
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
  tr { display: grid; grid-template-columns: 3fr 4fr 4fr 3fr; gap: .25rem .5rem; padding: .6rem 0 .7rem;
    border-bottom: 1px solid var(--rule); }
  td, td.text { padding: 0; border: 0; min-width: 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-head); display: flex; align-items: flex-end; min-height: 2.5em; line-height: 1.25;
    color: var(--soft); font-size: .85em; }
  td:empty { display: none; }
  td small { font-size: .85em; }
  th:first-child, td:first-child, td.text { grid-column: 1 / -1; position: static; }
  td:first-child::before { content: none; }
  td.text::before { min-height: 0; }
  td > .tag { display: inline; margin-left: .6em; }
  td.group { grid-column-start: 1; border: 0; }
  tr.method { display: block; padding: 1rem 0 .2rem; border-bottom: 1px solid #888; }
  tr.method th { display: block; padding: 0; border: 0; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

FIGURES = {
    "loss_vs_flops": (
        "Loss against FLOPs",
        "Dots mark where a method meets the target. Dotted: the model is not yet the target, or its operator is being learned; "
        "such losses cannot meet the target. A tick is a new phase, as at growth; a cross, a run that broke off. Bands span the "
        "seeds.",
    ),
    "loss_vs_seconds": ("Loss against wall time", "Training steps only, on the hardware named below. Read as the figure above."),
    "accuracy_vs_flops": (
        "Accuracy against FLOPs",
        "The share of validation images that are classified right. Read as the first figure, but no target: that is a loss.",
    ),
    "savings": (
        "Savings over scratch",
        "Full dot: the small model is free (reuse). Open dot: its training is charged (build). Line: 95 % interval over seeds. "
        "Small dots: the seeds. Black tick: what the method's paper claims. A dot at the left edge stands for −100 % or worse.",
    ),
    "savings_curve": (
        "Savings at every loss",
        "What a method has saved when it passes a loss, against what scratch paid to pass the same loss. A saving that shrinks "
        "towards the right is a head start that scratch catches up with. What lies below −100 % is cut off.",
    ),
    "cost_breakdown": (
        "Where the cost goes",
        "A whole run, not only its part until the target. The outlined part, source, is charged in the build ledger alone. A "
        "teacher whose outputs count as stored is overhead, and not shown.",
    ),
}

READING = """
<ul>
<li><b>Target</b>: the mean final validation loss of the scratch runs, at their full budget, unless one was given by hand.</li>
<li><b>Cost to target</b>: the first crossing, linear between the last evaluation above the target and the first at or below it.
Only evaluations of the full-sized model in a scored phase count. A run that never crosses, or breaks off, has not reached the
target: it is never dropped, and its method has no saving.</li>
<li><b>Saving</b>: 1 &minus; cost / reference, seed by seed, then the mean. The reference is the full budget of scratch with the
same seed; for a target given by hand, what scratch paid to reach that.</li>
<li><b>Two ledgers</b>: <i>reuse</i> takes the small model as given, as the papers do; <i>build</i> charges its training.</li>
<li><b>Interval</b>: 95 %, percentile bootstrap over seeds. With three seeds it spans no more than the seeds themselves do.
One seed has no interval.</li>
<li><b>One budget flatters</b>: this is the single-budget protocol. Scratch meets its own final loss only at the very end of its
learning-rate decay, so a method that is ahead mid-way is credited with the whole rest. A gain counts as real once it
holds against scratch runs with smaller budgets and a complete decay of their own.</li>
</ul>
"""

CONVENTIONS = """
<ul>
<li>FLOPs: a multiply-add is 2; matrix products only; attention in full, masked or not; no recomputation; no optimizer.</li>
<li>Charged: growth, learning an operator, a teacher, training. Evaluation and overhead (saving, probing, compiling) are
recorded, never charged.</li>
<li>Seconds: training steps with the device synchronised. Nominal seconds are steps &times; median step time, free of a noisy
machine's outliers.</li>
<li>Every method has the same data order per seed, the same evaluation batches, optimizer, schedule and evaluation cadence.</li>
</ul>
"""


def html(comparison: Comparison, images: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The whole page. `images`: by plot, its SVG for wide and for narrow screens."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(comparison.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(comparison.title)}</h1>
<p class="soft">{escape(_setting(comparison))}</p>
<p class="headline">{escape(headline(comparison))}</p>
{savings_table(comparison)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in comparison.notes)}
{"".join(_figure(name, *FIGURES[name], *images[name]) for name in FIGURES if name in images)}
<h2>Phases</h2>
{_phases_table(comparison)}
<h2>How to read this</h2>
{READING}
<h2>Conventions</h2>
{CONVENTIONS}
{_failures([run for run in comparison.runs if not analysis.is_finished(run)])}
<h2>The runs</h2>
<details><summary>{_count(len(comparison.runs), "run")}: losses, steps, seconds, memory</summary>
{_runs_table(comparison.runs)}</details>
<h2>Methods as run</h2>
{_methods_table(comparison)}
<h2>Setting</h2>
{_provenance(comparison.runs)}
</body>
</html>
"""


def headline(comparison: Comparison) -> str:
    """The result in a few sentences: the best method, and what the best control saves."""
    rows = [row for row in analysis.records(comparison.savings) if row["method"] != SCRATCH]
    target = f"the target loss of {comparison.target:.3f}"
    if not rows:
        return f"Only scratch has been run. Its mean final loss is {target} that other methods will have to meet."
    best, control = (_best(row for row in rows if row["control"] == control) for control in (False, True))
    if best is None:
        text = f"No method can be said to save anything: none met {target} in every seed beside a scratch run."
    else:
        reuse, build = (_more_or_less(best[f"flops_saving_{ledger}"]) for ledger in LEDGERS)
        start = "" if best["flops_saving_reuse"] > 0 else "No method saves training. At best, "
        text = (
            f"{start}{comparison.label(best['method'])} meets {target} with {reuse} FLOPs than scratch{_certainty(best)}; "
            f"with {build}, once the small model's own training is charged."
        )
    if control:
        text += f" The best control, {control['method']}, needs {_more_or_less(control['flops_saving_reuse'])}."
    return text


def _best(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The method that saves most FLOPs; None if none has a saving."""
    saving = [row for row in rows if not math.isnan(row["flops_saving_reuse"])]
    return max(saving, key=lambda row: row["flops_saving_reuse"], default=None)


def _certainty(row: Mapping[str, Any]) -> str:
    if row["seeds"] == 1:
        return " (one seed)"
    low, high = (units.percent(row[f"flops_saving_reuse_{end}"], 0) for end in ("low", "high"))
    return f" (95\N{NO-BREAK SPACE}% interval of the saving {low} to {high}, {row['seeds']} seeds)"


def _more_or_less(saving: float) -> str:
    return f"{units.percent(abs(saving), 0)} {'fewer' if saving > 0 else 'more'}"


def _setting(comparison: Comparison) -> str:
    seeds = len({run.record["seed"] for run in comparison.runs})
    machines = _distinct(_machine(run) for run in comparison.runs)
    methods = len(comparison.methods)
    parts = (comparison.runs[0].record["experiment"], _count(methods, "method"), _count(seeds, "seed"), machines)
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _machine(run: Run) -> str:
    device, name, threads, precision = analysis.hardware(run)
    return f"{name} ({device}, {_count(threads, 'thread')}, {precision})"


MEASURES = ("to target", "saved, reuse", "saved, build", "paper")  # of each unit
GROUP = ' class="group"'  # opens a group of columns with a rule


def savings_table(comparison: Comparison) -> str:
    """The table that comes first: per method its final loss, how often it met the target, and what that cost and saved."""
    scales = _scales(comparison)
    drawn = plots.looks(comparison.methods)
    own = _own_heads(comparison)
    starts = (len(own), len(own) + len(MEASURES))
    titles = {"flops": "FLOPs", "seconds": "Time"}
    groups = "".join(f'<th{GROUP} colspan="{len(MEASURES)}">{titles[unit]} ({scales[unit].name})</th>' for unit in UNITS)
    heads = "".join(f"<th{GROUP * (place in starts)}>{head}</th>" for place, head in enumerate((*own, *MEASURES, *MEASURES)))
    body = ""
    for row in analysis.records(comparison.savings):
        cells = list(zip(_heads(comparison, scales), _cells(row, scales, comparison), strict=True))[1:]
        places = enumerate(cells, start=1)
        body += f"<tr><td>{_method_cell(row['method'], comparison, drawn)}</td>"
        body += "".join(_cell(head, _two_lines(cell), GROUP * (place in starts)) for place, (head, cell) in places) + "</tr>"
    return (
        f'<div class="scroll"><table id="savings-table"><thead><tr class="groups"><th></th><th colspan="{len(own) - 1}"></th>'
        f"{groups}</tr><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="soft">Target loss {comparison.target:.4f}. In brackets, 95 % intervals over seeds. '
        "Reuse: the small model is free. Build: its training is charged. To target: reuse ledger, ∞ if a seed did not reach it. "
        f"Paper: the saving that the method's paper claims, in its own setting.</p>{_footnotes(comparison)}"
    )


KEEPS_NOTE = f"{analysis.KEEPS} keeps its source: the final model contains the small one and is larger than the target."
CONTROL_NOTE = "Control: no trained small model behind it, given or trained on the way; what it saves is not owed to growth."


def _footnotes(comparison: Comparison) -> str:
    """What the marks of methods mean, where there are any."""
    notes = [note for mark, note in (("keeps_source", KEEPS_NOTE), ("control", CONTROL_NOTE)) if comparison.where(mark)]
    return "".join(f'<p class="soft">{note}</p>' for note in notes)


def _method_cell(method: str, comparison: Comparison, drawn: Mapping[str, plots.Look]) -> str:
    """A method's name behind its marker, with a tag if it is a control."""
    tag = '<span class="tag">control</span>' * (method in comparison.where("control"))
    look = drawn[method]
    return f'<span class="dot" style="color:{look.colour}">{look.glyph}</span>{escape(comparison.label(method))}{tag}'


def _own_heads(comparison: Comparison) -> list[str]:
    """The heads of the columns before those on costs."""
    return ["method", "final loss", *(["final accuracy"] if comparison.has_accuracy else []), "reached"]


def _heads(comparison: Comparison, scales: Mapping[str, units.Scale]) -> list[str]:
    """The heads of all columns, each readable by itself."""
    heads = _own_heads(comparison)
    for unit, title in (("flops", "FLOPs"), ("seconds", "time")):
        heads += [f"{scales[unit].name} to target", *(f"{title} {measure}" for measure in MEASURES[1:])]
    return heads


def _cell(head: str, content: str, kind: str = "") -> str:
    """A table's cell of HTML `content`; narrow screens show its head beside it."""
    return f'<td{kind} data-head="{escape(head)}">{content}</td>'


def _two_lines(cell: str) -> str:
    """Plain text as HTML, what is in brackets, an interval or a count, on a second and quieter line."""
    value, bracket, rest = escape(cell).partition(" (")
    return f"{value}<small>({rest}</small>" if bracket else value


def _scales(comparison: Comparison) -> dict[str, units.Scale]:
    """One unit a column: the one that suits the most expensive finished run."""
    costs = {unit: [run.curve[-1][unit] for run in comparison.runs if run.curve] for unit in UNITS}
    return {unit: units.scale(max(costs[unit]), unit) for unit in UNITS}


def _cells(row: Mapping[str, Any], scales: Mapping[str, units.Scale], comparison: Comparison) -> list[str]:
    """A method's name and figures as plain text, in the order of `_heads`."""
    cells = [comparison.label(row["method"]), "–" if math.isnan(row["final_val_loss"]) else f"{row['final_val_loss']:.3f}"]
    if comparison.has_accuracy:
        cells.append(units.percent(row["final_val_accuracy"]))
    cells.append(f"{row['reached']} of {row['seeds']}")
    for unit in UNITS:
        cells.append(scales[unit].text(row[f"{unit}_to_target_reuse"]))
        cells += [_saving_cell(row, unit, ledger) for ledger in LEDGERS]
        cells.append(units.percent(row[f"published_{unit}_saving"]))
    return cells


def _saving_cell(row: Mapping[str, Any], unit: str, ledger: str) -> str:
    if row["method"] == SCRATCH:
        return "reference"
    column = f"{unit}_saving_{ledger}"
    return units.outcome(row["reached"], row["seeds"], row[column], row[f"{column}_low"], row[f"{column}_high"])


def _figure(name: str, title: str, caption: str, wide: bytes, narrow: bytes) -> str:
    return (
        f'<h2>{title}</h2><figure id="{name}"><picture><source media="(max-width: 600px)" srcset="{_data_uri(narrow)}">'
        f'<img src="{_data_uri(wide)}" alt="{title}"></picture><figcaption>{caption}</figcaption></figure>\n'
    )


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """A table of plain texts, escaped here. `text_columns`: those that hold sentences, and may wrap."""
    kinds = [' class="text"' if place in text_columns else "" for place in range(len(heads))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    body = ""
    for row in rows:
        cells = zip(heads, map(escape, row), kinds, strict=True)
        body += f"<tr>{''.join(_cell(*cell) for cell in cells)}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


PHASES = """
<p class="soft">First finished seed. FLOPs per step: all that is charged; beside it the same as a share of scratch's step, in all
and by account: below 1 where the model is still smaller, or layers are frozen and have no backward pass. Output change: the norm
of the difference of logits on validation data before growth (the phase before, or the source) and after, over that before.</p>
"""


def _phases_table(comparison: Comparison) -> str:
    """What each method did in order, and what a step of it cost beside a step of scratch."""
    table = analysis.phases(comparison)
    if table["flops_per_step"].isna().all():
        return '<p class="soft">These runs did not record their phases.</p>'
    scale = units.scale(table["flops_per_step"].max(), "flops")
    names = {"train": "train", "operator": "operator", "teacher": "teacher", "overhead": "teacher, not charged"}
    accounts = [account for account in names if (table[account] > 0).any()]
    works = [names[account] for account in accounts]
    heads = ["phase", "steps", f"{scale.name} per step", "of scratch's step", *works, "output change"]
    drawn = plots.looks(comparison.methods)
    body = ""
    for method, rows in table.groupby("method", sort=False):
        body += f'<tr class="method"><th colspan="{len(heads)}">{_method_cell(str(method), comparison, drawn)}</th></tr>'
        for row in analysis.records(rows):
            share = row["share_of_scratch"]
            shares = [share, *(share * row[account] / row["flops_per_step"] for account in accounts)]
            cells = [
                str(row["phase"]), f"{row['steps']:,}", scale.text(row["flops_per_step"]),
                *(units.digits(share) if share > 0 else "" for share in shares), _change(row["output_change"]),
            ]  # fmt: skip
            body += f"<tr>{''.join(map(_cell, heads, map(escape, cells)))}</tr>"
    head = "".join(f"<th>{head}</th>" for head in heads)
    return f'{PHASES}<div class="scroll"><table id="phases"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _change(change: float | None) -> str:
    """A relative change of outputs; blank where there was nothing to compare with."""
    if change is None or math.isnan(change):
        return ""
    return units.digits(change) if change >= 0.001 else "< 0.001"


def _failures(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    return "<h2>Runs that did not finish</h2>" + "".join(_failure(run) for run in runs)


def _failure(run: Run) -> str:
    error = {"step": None, "message": "", "traceback": "", **(run.record["error"] or {})}
    where = "" if error["step"] is None else f" at step {error['step']}"
    said = f": {error['message']}" if error["message"] else ""
    text = f"<b>{escape(_name(run))}</b> {escape(run.record['status'] + where + said)}"
    if error["traceback"]:
        text += f"<details><summary>traceback</summary><pre>{escape(error['traceback'])}</pre></details>"
    return f'<div class="note">{text}</div>'


def _name(run: Run) -> str:
    return results.name(run.record["method"], run.record["seed"])


def _runs_table(runs: Sequence[Run]) -> str:
    sizes = ("steps", "tokens", "tokens / parameter")
    times = ("seconds", "nominal seconds", "evaluation", "overhead")
    return _table(("run", "status", "final loss", *sizes, *times, "peak memory"), [_run_row(run) for run in runs])


def _run_row(run: Run) -> list[str]:
    record, seconds = run.record, run.record["cost"]["seconds"]
    loss, per_parameter = record["final_val_loss"], analysis.tokens_per_parameter(run)
    charged = sum(seconds.get(account, 0.0) for account in analysis.CHARGED)
    times = (charged, analysis.nominal_seconds(run), seconds.get("evaluation", 0.0), seconds.get("overhead", 0.0))
    return [
        _name(run), record["status"], "–" if loss is None else f"{loss:.4f}", f"{record['steps']:,}", f"{record['tokens']:,}",
        "–" if math.isnan(per_parameter) else units.digits(per_parameter), *(units.digits(time) for time in times),
        units.data_size(record["peak_memory_bytes"]),
    ]  # fmt: skip


def _methods_table(comparison: Comparison) -> str:
    first = {run.record["method"]: run.record for run in reversed(comparison.runs)}
    rows = [(method, _settings(first[method]["config"]["method"]), first[method]["origin"]) for method in comparison.methods]
    return _table(("method", "hyperparameters", "from"), rows, text_columns=(1, 2))


def _settings(values: Mapping[str, Any]) -> str:
    """A table's keys and values in one line."""
    return ", ".join(f"{key} = {_value(value)}" for key, value in values.items()) or "none"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _provenance(runs: Sequence[Run]) -> str:
    """Hardware, versions, data, parameters and the experiment itself; one line each, several values where the runs differ."""
    rows = {
        "hardware": _distinct(_machine(run) for run in runs),
        "versions": _distinct(_settings(run.record["versions"]) for run in runs),
        "data": _distinct(_settings(run.record["data"]) for run in runs),
        "target parameters": _distinct(f"{run.record['parameters']:,}" for run in runs if analysis.is_finished(run)),
    }
    for key, value in runs[0].record["config"]["experiment"].items():
        rows[key.replace("_", " ")] = _settings(value) if isinstance(value, Mapping) else str(value)
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows.items()) + "</dl>"


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def markdown(comparison: Comparison) -> str:
    """The savings as a Markdown table, to paste into a README."""
    scales = _scales(comparison)
    heads = _heads(comparison, scales)
    rows = []
    for row in analysis.records(comparison.savings):
        name, *cells = _cells(row, scales, comparison)
        rows.append([name.replace("|", "\\|") + " (control)" * row["control"], *cells])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    keeps = f" {KEEPS_NOTE}" if comparison.where("keeps_source") else ""
    return f"{table}\n\nTarget loss {comparison.target:.4f}. In brackets, 95 % intervals over seeds.{keeps}\n"
