"""The page of one experiment, and its savings as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from growbench.analysis import savings, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.notes import LEFT_OUT
from growbench.costs.accounts import LEDGERS, UNCHARGED, UNITS, Ledger, Unit
from growbench.formatting import Scale, counted, data_size, digits, p_value, percent, settings
from growbench.registry import SCRATCH
from growbench.report import drawing, parts
from growbench.report.cells import UNKNOWN, cost_scale, saving_of, unknown
from growbench.runs import store
from growbench.runs.records import RunError
from growbench.runs.store import Run

FIGURES = {
    "ladder": (
        "Final loss against budget",
        "Each dot is the end of runs with a budget and a complete learning-rate decay of their own. What lies to the left of "
        "scratch at the height of the target is saved. Bands span the seeds.",
    ),
    "loss_vs_flops": (
        "Loss against FLOPs",
        "Curves take the small model as free. Dots mark where a method meets the target: full, at this cost (reuse); open, with "
        "the small model's training charged (build). Dotted: the model is not yet the target, or its operator is being learned; "
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
        "Small dots: the seeds. Black tick: what the method's paper claims, by its own counter. A dot at the left edge stands "
        "for −100\N{NO-BREAK SPACE}% or worse.",
    ),
    "savings_curve": (
        "Savings at every loss",
        "What a method has saved when it passes a loss, against what scratch paid to pass the same loss. A saving that shrinks "
        "towards the right is a head start that scratch catches up with. What lies below −100\N{NO-BREAK SPACE}% is cut off.",
    ),
    "amortised": (
        "One source, several targets",
        "What is saved on each target when several are grown from the same small model and share the cost of its training. Open "
        "dot: one target pays for all of it (build). Full dot: nobody pays (reuse). Bands span the seeds. Methods that missed "
        "the target have no line.",
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
<li><b>Interval</b>: 95 % over seeds, at either end the wider of the percentile bootstrap and Student's t. One seed has no
interval.</li>
<li><b>One budget flatters</b>: a saving read off one run's curve is of the single-budget protocol. Scratch meets its own final
loss only at the very end of its learning-rate decay, so a method that is ahead mid-way is credited with the whole rest. A gain
counts as real once it holds on the ladder: against scratch runs with smaller budgets and a complete decay of their own.</li>
</ul>
"""

CONVENTIONS = """
<ul>
<li>FLOPs: a multiply-add is 2; matrix products only; attention in full, masked or not; no recomputation; no optimizer.</li>
<li>Charged: growth, learning an operator, a teacher, training. Evaluation, compiling and overhead (saving, probing) are
recorded, never charged.</li>
<li>Seconds: training steps with the device synchronised. Nominal seconds are steps &times; median step time, free of a noisy
machine's outliers.</li>
<li>Every method has the same data order per seed, the same evaluation batches and cadence. Optimizer and schedule are the
experiment's, but for what was tuned for a method or is its own, as its card says.</li>
</ul>
"""


def html(comparison: Comparison, images: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The whole page. `images`: by plot, its SVG for wide and for narrow screens."""
    body = f"""<h1>{escape(comparison.title)}</h1>
<p class="soft">{escape(_setting(comparison))}</p>
<p class="headline">{escape(headline(comparison))}</p>
{_savings_table(comparison)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in comparison.notes)}
{_ladder(comparison)}
{"".join(parts.figure(name, *FIGURES[name], images[name]) for name in FIGURES if name in images)}
{_papers(comparison)}
{_tests(comparison)}
{_growth(comparison)}
<h2>Phases</h2>
{_phases_table(comparison)}
<h2>How to read this</h2>
{READING}
<h2>Conventions</h2>
{CONVENTIONS}
{_failures([run for run in (*comparison.runs, *comparison.shorter) if not run.finished])}
<h2>The runs</h2>
<details><summary>{counted(len(comparison.runs), "run")}: losses, steps, seconds, memory</summary>
{_runs_table(comparison.runs)}</details>
<h2>Methods as run</h2>
{_methods_table(comparison)}
{_tuning(comparison)}
<h2>Setting</h2>
{_provenance(comparison.runs)}"""
    return parts.document(comparison.title, body)


def headline(comparison: Comparison) -> str:
    """The result in a few sentences: the best method, and what the best control saves."""
    rows = [row for row in tables.records(comparison.savings) if row["method"] != SCRATCH]
    target = f"the target loss of {comparison.target:.3f}"
    if not rows:
        return f"Only scratch has been run. Its mean final loss is {target} that other methods will have to meet."
    best, control = (_best(row for row in rows if row["control"] == control) for control in (False, True))
    if best is None:
        text = f"No method can be said to save anything: none met {target} in every seed beside a scratch run."
    else:
        reuse = _more_or_less(best["flops_saving_reuse"])
        charged = f"with {_more_or_less(best['flops_saving_build'])}, once the small model's own training is charged."
        if unknown(best, "flops_saving_build"):
            charged = "what the small model's own training cost is not known."
        start = "" if best["flops_saving_reuse"] > 0 else "No method saves training. At best, "
        text = (
            f"{start}{comparison.label(best['method'])} meets {target} with {reuse} FLOPs than scratch{_certainty(best)}; "
            f"{charged}"
        )
        for climbed in tables.records(comparison.ladder):
            if climbed["method"] == best["method"]:
                text += f" On the ladder it saves {saving_of(climbed, 'flops', 'reuse')}."
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
    low, high = (percent(row[f"flops_saving_reuse_{end}"], 0) for end in ("low", "high"))
    return f" (95\N{NO-BREAK SPACE}% interval of the saving {low} to {high}, {row['seeds']} seeds)"


def _more_or_less(saving: float) -> str:
    return f"{percent(abs(saving), 0)} {'fewer' if saving > 0 else 'more'}"


def _setting(comparison: Comparison) -> str:
    seeds = len({run.record.seed for run in comparison.runs})
    machines = _distinct(_machine(run) for run in comparison.runs)
    methods = len(comparison.methods)
    experiment = comparison.runs[0].record.experiment
    return " · ".join((experiment, counted(methods, "method"), counted(seeds, "seed"), machines))


def _machine(run: Run) -> str:
    hardware = run.record.hardware
    details = [hardware.device, counted(hardware.threads, "thread"), hardware.precision, hardware.processes]
    if hardware.micro_batch:
        details.append(f"micro-batches of {hardware.micro_batch}")
    if hardware.compile != "auto":
        details.append(f"compile {hardware.compile}")
    if hardware.earlier:
        details.append(f"begun on {hardware.earlier}")
    return f"{hardware.name} ({', '.join(filter(None, details))})"


MEASURES = ("to target, reuse", "to target, build", "saved, reuse", "saved, build")  # of each unit
GROUPS = {"flops": "FLOPs", "seconds": "Time"}  # titles of groups of columns
TITLES = {"flops": "FLOPs", "seconds": "time"}


def _savings_table(comparison: Comparison) -> str:
    """The table that comes first: per method its final loss, how often it met the target, and what that cost and saved."""
    scales = _scales(comparison)
    own = _own_heads(comparison)
    groups = {
        f"{GROUPS[unit]} ({scales[unit].name})": dict(zip(MEASURES, _cost_heads(scales, unit), strict=True)) for unit in UNITS
    }
    rows = [
        (_method_cell(row["method"], comparison), _cells(row, scales, comparison)[1:])
        for row in tables.records(comparison.savings)
    ]
    return (
        f"{parts.grouped_table('savings-table', own, groups, rows)}"
        f'<p class="soft">Target loss {comparison.target:.4f}. In brackets, 95 % intervals over seeds. '
        "Reuse: the small model is free. Build: its training is charged. To target: ∞ if a seed did not reach it.</p>"
        f"{parts.footnotes([comparison])}"
    )


def _method_cell(method: str, comparison: Comparison) -> str:
    """A method's name behind its marker, with a tag if it is a control."""
    return parts.method_name(
        comparison.label(method), drawing.looks(comparison.methods)[method], method in comparison.where("control")
    )


def _own_heads(comparison: Comparison) -> list[str]:
    """The heads of the columns before those on costs."""
    return ["method", "final loss", *(["final accuracy"] if comparison.has_accuracy else []), "reached"]


def _cost_heads(scales: Mapping[str, Scale], unit: str) -> list[str]:
    """The heads of a unit's columns, each readable by itself."""
    return [f"{scales[unit].name} {measure}" for measure in MEASURES[:2]] + [
        f"{TITLES[unit]} {measure}" for measure in MEASURES[2:]
    ]


def _scales(comparison: Comparison) -> dict[str, Scale]:
    """One unit a column: the one that suits the most expensive finished run."""
    costs = {unit: [run.curve[-1][unit] for run in comparison.runs if run.curve] for unit in UNITS}
    return {unit: cost_scale(max(costs[unit]), unit) for unit in UNITS}


def _cells(row: Mapping[str, Any], scales: Mapping[str, Scale], comparison: Comparison) -> list[str]:
    """A method's name and figures as plain text, in the order of the heads."""
    cells = [comparison.label(row["method"]), "–" if math.isnan(row["final_val_loss"]) else f"{row['final_val_loss']:.3f}"]
    if comparison.has_accuracy:
        cells.append(percent(row["final_val_accuracy"]))
    cells.append(f"{row['reached']} of {row['seeds']}")
    for unit in UNITS:
        costs = [row[f"{unit}_to_target_{ledger}"] for ledger in LEDGERS]
        cells += [UNKNOWN if math.isnan(cost) else scales[unit].text(cost) for cost in costs]
        cells += [saving_of(row, unit, ledger) for ledger in LEDGERS]
    return cells


LADDER = """
<p class="soft">Single: one budget, the cost read off each run's curve. Ladder: the same target, but the cost at which runs with
a budget and a complete learning-rate decay of their own end at it; for scratch likewise. ≥: in some seed the smallest budget
already met the target, so that more may be saved. A gain that vanishes from the first to the second was never one.</p>
"""


def _ladder(comparison: Comparison) -> str:
    """What one budget says and what several say, side by side."""
    if comparison.ladder.empty:
        return ""
    single = {row["method"]: row for row in tables.records(comparison.savings)}
    columns = [(unit, ledger) for unit in UNITS for ledger in LEDGERS]
    groups = {
        f"{GROUPS[unit]} saved, {ledger}": {
            protocol: f"{TITLES[unit]} saved, {ledger}: {protocol}" for protocol in ("single", "ladder")
        }
        for unit, ledger in columns
    }
    rows = [
        (
            _method_cell(row["method"], comparison),
            [cell for pair in columns for cell in (saving_of(single[row["method"]], *pair), saving_of(row, *pair))],
        )
        for row in tables.records(comparison.ladder)
    ]
    return (
        f"<h2>One budget and several</h2>{LADDER}{parts.grouped_table('ladder-table', ['method'], groups, rows)}"
        f'<p class="soft">{_spent(comparison.rungs)}</p>'
    )


def _spent(rungs: pd.DataFrame) -> str:
    """What the ladder's runs were charged, and what they really cost."""
    charged, spent = rungs["flops_reuse"].sum(), rungs["spent_flops"].sum()
    scale = cost_scale(charged, "flops")
    text = f"The {counted(len(rungs), 'run')} of the ladder were charged {scale.text(charged)} {scale.name} in all, "
    if spent < charged:
        text += (
            f"each as if trained alone; really spent were {scale.text(spent)} {scale.name}, since runs that branch off a longer "
        )
        text += "one share its trunk."
    else:
        text += "and spent as much: none branched off another."
    return text + " The small models' training comes on top."


PAPERS = """
<p class="soft">What the methods' papers claim, in their own settings, takes the small model as free. LiGO's paper counts a
training step by a counter of its own, in which the backward pass costs no more than the forward and looking up an embedding is a
matrix product: only its column compares with the claims. A dash: the counter does not know such a model, or no such figure.</p>
"""


def _papers(comparison: Comparison) -> str:
    """The papers' figures beside ours, each counter in a column of its own."""
    claims = comparison.savings.filter(regex="^published_").notna().any(axis=1)
    if not claims.any():
        return ""
    groups = {
        "FLOPs saved, reuse": {
            "our counter": "FLOPs saved, our counter", "the paper's counter": "FLOPs saved, the paper's counter",
            "the paper claims": "FLOPs saved, the paper claims",
        },
        "Time saved, reuse": {"measured": "time saved, measured", "the paper claims": "time saved, the paper claims"},
    }  # fmt: skip
    rows = [
        (
            _method_cell(row["method"], comparison),
            [
                saving_of(row, "flops", "reuse"), percent(row["flops_saving_paper_counter"]),
                percent(row["published_flops_saving"]), saving_of(row, "seconds", "reuse"),
                percent(row["published_seconds_saving"]),
            ],
        )
        for row in tables.records(comparison.savings[claims])
    ]  # fmt: skip
    return f"<h2>Beside the papers</h2>{PAPERS}{parts.grouped_table('papers', ['method'], groups, rows)}"


TESTS = """
<p class="soft">Two-sided t-tests, paired by seed: that a method saves as many FLOPs as scratch, none; and as many as the best of
the other growth methods. Adjusted over the methods by Holm's procedure: what is below 0.05 is told from chance; which of the two
saves more, the savings tell.</p>
"""


def _tests(comparison: Comparison) -> str:
    """The p-values, where the seeds are enough for any."""
    others = {"scratch": "against scratch", "best": "against the best other"}
    groups: dict[str, dict[str, str]] = {
        title.capitalize(): {ledger: f"p {title}, {ledger}" for ledger in LEDGERS} for title in others.values()
    }
    columns = [f"flops_p_{other}_{ledger}" for other in others for ledger in LEDGERS]
    tested = comparison.savings[columns].notna().any(axis=1)
    if not tested.any():
        return ""
    rows = [
        (_method_cell(row["method"], comparison), [p_value(row[column]) for column in columns])
        for row in tables.records(comparison.savings[tested])
    ]
    return f"<h2>Tests</h2>{TESTS}{parts.grouped_table('tests', ['method'], groups, rows)}"


GROWTH = """
<p class="soft">Each phase that took over a model, from the phase before or from the source; means over the finished seeds. Output
change: the norm of the difference of logits on validation data before and after, over that before. Steps to recover: until the
loss is as low as before growth; a dash where a seed never was, with the number of those that were. Duplicates: the share of
feed-forward units whose incoming weights point the same way as another's, after growth and at the phase's end. Optimizer: whether
its state was kept.</p>
"""


def _growth(comparison: Comparison) -> str:
    """What growth did to each model, and how long that took to mend."""
    table = tables.growth(comparison)
    if table.empty:
        return ""
    table["place"] = table.groupby(["method", "seed"]).cumcount()
    heads = ("phase", "loss before → after", "output change", "steps to recover", "duplicates", "optimizer")
    rows = {
        str(method): [_growth_cells(seeds) for _, seeds in rows.groupby("place")]
        for method, rows in table.groupby("method", sort=False)
    }
    shown = [place for place in range(len(heads)) if any(cells[place] for found in rows.values() for cells in found)]
    methods = [
        (_method_cell(method, comparison), [[cells[place] for place in shown] for cells in found])
        for method, found in rows.items()
    ]
    return f"<h2>Growth</h2>{GROWTH}{parts.table_by_method('growth', [heads[place] for place in shown], methods)}"


def _growth_cells(seeds: pd.DataFrame) -> list[str]:
    """One phase's row: figures averaged over seeds, blank where nothing was recorded."""
    mean = {key: pd.to_numeric(seeds[key]).mean() for key in tables.GROWTH if key != "optimizer"}
    steps = pd.to_numeric(seeds["steps_to_recover"])
    recovered = (
        f"– ({(steps < math.inf).sum()} of {len(steps)})" if math.isinf(steps.max()) else f"{mean['steps_to_recover']:.0f}"
    )
    return [
        str(seeds["phase"].iloc[0]),
        "" if math.isnan(mean["loss_before"]) else f"{mean['loss_before']:.3f} → {mean['loss_after']:.3f}",
        _change(mean["output_change"]),
        "" if math.isnan(mean["steps_to_recover"]) else recovered,
        "" if math.isnan(mean["duplicates"]) else " → ".join(percent(mean[key]) for key in ("duplicates", "duplicates_end")),
        _distinct(seeds["optimizer"].dropna()),
    ]


PHASES = """
<p class="soft">First finished seed. FLOPs per step: all that is charged; beside it the same as a share of scratch's step, in all
and by account: below 1 where the model is still smaller, or layers are frozen and have no backward pass.</p>
"""


def _phases_table(comparison: Comparison) -> str:
    """What each method did in order, and what a step of it cost beside a step of scratch."""
    table = tables.phases(comparison)
    if table["flops_per_step"].isna().all():
        return '<p class="soft">These runs did not record their phases.</p>'
    scale = cost_scale(table["flops_per_step"].max(), "flops")
    names = {"train": "train", "operator": "operator", "teacher": "teacher", "overhead": "teacher, not charged"}
    accounts = [account for account in names if (table[account] > 0).any()]
    works = [names[account] for account in accounts]
    heads = ["phase", "steps", f"{scale.name} per step", "of scratch's step", *works]
    methods = [
        (_method_cell(str(method), comparison), [_phase_cells(row, accounts, scale) for row in tables.records(rows)])
        for method, rows in table.groupby("method", sort=False)
    ]
    return PHASES + parts.table_by_method("phases", heads, methods)


def _phase_cells(row: Mapping[str, Any], accounts: Sequence[str], scale: Scale) -> list[str]:
    share = row["share_of_scratch"]
    shares = [share, *(share * row[account] / row["flops_per_step"] for account in accounts)]
    shown = (digits(share) if share > 0 else "" for share in shares)
    return [str(row["phase"]), f"{row['steps']:,}", scale.text(row["flops_per_step"]), *shown]


def _change(change: float) -> str:
    """A relative change of outputs; blank where there was nothing to compare with."""
    return "" if math.isnan(change) else digits(change) if change >= 0.001 else "< 0.001"


def _failures(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    return "<h2>Runs that did not finish</h2>" + "".join(_failure(run) for run in runs)


def _failure(run: Run) -> str:
    error = run.record.error or RunError()
    where = "" if error.step is None else f" at step {error.step}"
    said = f": {error.message}" if error.message else ""
    text = f"<b>{escape(run.name)}</b> {escape(run.record.status + where + said)}"
    if error.traceback:
        text += f"<details><summary>traceback</summary><pre>{escape(error.traceback)}</pre></details>"
    return f'<div class="note">{text}</div>'


def _runs_table(runs: Sequence[Run]) -> str:
    sizes = ("steps", "tokens", "tokens / parameter")
    times = ("seconds", "nominal seconds", *UNCHARGED)
    return parts.table(("run", "status", "final loss", *sizes, *times, "peak memory"), [_run_row(run) for run in runs])


def _run_row(run: Run) -> list[str]:
    record, loss = run.record, run.record.final_val_loss
    uncharged = [record.cost.of(Unit.SECONDS, account) for account in UNCHARGED]
    times = (run.cost(Unit.SECONDS, Ledger.REUSE), savings.nominal_seconds(run), *uncharged)
    return [
        run.name, record.status, "–" if loss is None else f"{loss:.4f}", f"{record.steps:,}", f"{record.tokens:,}",
        digits(savings.tokens_per_parameter(run)), *(digits(time) for time in times),
        data_size(record.peak_memory_bytes) if record.peak_memory_bytes else "–",
    ]  # fmt: skip


def _methods_table(comparison: Comparison) -> str:
    first = {run.record.method: run.record for run in reversed(comparison.runs)}
    rows = [(method, settings(first[method].config.method), first[method].origin) for method in comparison.methods]
    return parts.table(("method", "hyperparameters", "from"), rows, text_columns=(1, 2))


def _tuning(comparison: Comparison) -> str:
    """Which methods ran with tuned values, and every trial of the tuning that lies beside the runs."""
    settings = {run.record.method: run.record.config.method for run in comparison.runs}
    untuned = [method for method in comparison.methods if "train.lr" not in settings[method]]
    file = comparison.runs[0].folder.parent / store.TUNING / "trials.csv"
    text = ""
    if tuned := [method for method in comparison.methods if method not in untuned]:
        text += f"<p>Learning rate, warm-up and hyperparameters as tuned: {escape(', '.join(tuned))}.</p>"
        if untuned:
            text += f'<p class="note">Not tuned, and at a disadvantage: {escape(", ".join(untuned))}.</p>'
    if file.is_file():
        trials = pd.read_csv(file, dtype=str)
        scale = cost_scale(trials["flops"].astype(float).max(), "flops")
        heads = ("method", "trial", "final loss", scale.name, "values")
        rows = [_trial_row(row, scale) for row in tables.records(trials)]
        if elsewhere := [method for method in tuned if method not in set(trials["method"])]:
            text += f'<p class="note">Tuned elsewhere or earlier, so without trials here: {escape(", ".join(elsewhere))}.</p>'
        text += (
            f"<details><summary>{counted(len(trials), 'trial')} on seed {escape(trials['seeds'][0].replace(' ', ', '))}; "
            f"the first of each method has its defaults</summary>{parts.table(heads, rows, text_columns=[4])}</details>"
        )
    return f"<h2>Tuning</h2>{text}" if text else ""


def _trial_row(row: Mapping[str, Any], scale: Scale) -> tuple[str, ...]:
    """A trial as trials.csv has it, its values under the names that --set knows."""
    values = {key: text for key, text in row.items() if "." in key and isinstance(text, str)}
    shown = settings({key: text if text.isdigit() else float(text) for key, text in values.items()})
    finished = row["status"] == "finished"
    loss, note = (f"{float(row['loss']):.4f}", "") if finished else ("failed", f"; {row['error']}")
    return row["method"], row["trial"], loss, scale.text(float(row["flops"])), shown + note


def _provenance(runs: Sequence[Run]) -> str:
    """Hardware, versions, data, parameters and the experiment itself; one line each, several values where the runs differ."""
    rows = {
        "hardware": _distinct(_machine(run) for run in runs),
        "versions": _distinct(settings(run.record.versions) for run in runs),
        "data": _distinct(settings(run.record.data) for run in runs),
        "target parameters": _distinct(f"{run.record.parameters:,}" for run in runs if run.record.parameters),
    }
    for key, value in runs[0].record.config.experiment.items():
        rows[key.replace("_", " ")] = settings(value) if isinstance(value, Mapping) else str(value)
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows.items()) + "</dl>"


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def markdown(comparison: Comparison) -> str:
    """The savings as a Markdown table, to paste into a README."""
    scales = _scales(comparison)
    heads = _own_heads(comparison) + [head for unit in UNITS for head in _cost_heads(scales, unit)]
    rows = []
    for row in tables.records(comparison.savings):
        name, *cells = _cells(row, scales, comparison)
        rows.append([name + " (control)" * row["control"], *cells])
    keeps = f" {parts.MARKS['keeps_source']}" if comparison.where("keeps_source") else ""
    urgent = [note for note in comparison.notes if store.UNKNOWN_SOURCE in note or note.startswith(LEFT_OUT)]
    notes = " ".join([f"Target loss {comparison.target:.4f}. In brackets, 95 % intervals over seeds.{keeps}", *urgent])
    return f"{parts.markdown_table(heads, rows)}\n{notes}\n"
