"""The report: every file is there, the page stands alone, names are escaped, a method keeps its colour."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from growbench import registry, report
from growbench.analysis import tables
from growbench.analysis.comparison import Comparison, analyse
from growbench.costs import accounts
from growbench.errors import UsageError
from growbench.formatting import percent
from growbench.report import board, drawing, page, plots
from growbench.runs import store

Figures = Callable[[], AbstractContextManager[None]]
STEPS, STEP_FLOPS, STEP_SECONDS = 400, 4.2e10, 0.031
# What growth does, as (steps on the small model, its cost there, operator steps, training that growth is worth).
METHODS = {
    "scratch": (0, 1.0, 0, 0.0),
    "stackbert": (100, 0.4, 0, 0.13),
    "bert2bert": (0, 1.0, 0, 0.30),
    "ligo": (0, 1.0, 20, 0.38),
}
TEXT_PLOTS = [name for name in plots.PLOTS if name not in ("accuracy_vs_flops", "ladder")]


def write_results(folder: Path, seeds: int, methods: dict[str, tuple[int, float, int, float]] = METHODS) -> Path:
    """An experiment's results as the benchmark would leave them."""
    for index, (method, shape) in enumerate(methods.items()):
        for seed in range(seeds):
            write_run(folder, method, seed, *shape, noise=np.random.default_rng([index, seed]))
    write_run(folder, "source", 0, 0, 1.0, 0, 0.0, noise=np.random.default_rng(99))
    return folder


def write_run(
    folder: Path, method: str, seed: int, small: int, small_cost: float, operator: int, gain: float, noise: np.random.Generator,
    budget: float = 1.0,
) -> None:  # fmt: skip
    length = round(STEPS * budget)
    small = round(small * budget)
    head_start = gain + noise.normal(0, 0.02)
    pace = noise.uniform(0.95, 1.1) * STEP_SECONDS
    rows: list[dict] = []
    flops = seconds = 0.0
    plan = [("operator", operator, 1.5, False), ("small", small, small_cost, False), ("train", length - small, 1.0, True)]
    grown = method not in ("scratch", "source", "stackbert")
    phases, step, before = [], 0, 5.2 if grown else None
    for name, steps, cost, scored in plan:
        if not steps:
            continue
        for done in range(0, steps + 1, 4):
            share = (step + done) / length
            loss = 4.88 + 0.3 * (1 - budget)
            loss += 2.72 * (1 - share) ** 1.3 * math.exp(-3.2 * share - 3.4 * head_start * (scored or name == "operator"))
            loss += 0.25 * (name == "small") * share - 0.22 * head_start * share * scored + noise.normal(0, 0.006)
            rows.append(
                {
                    "step": step + done, "phase": name, "tokens": (step + done) * 2048, "val_loss": loss,
                    "train_loss": loss if done else None, "lr": 3e-3, "scored": scored,
                    "flops": flops + done * cost * STEP_FLOPS, "seconds": seconds + done * cost * pace,
                }
            )  # fmt: skip
        phases.append(
            {
                "name": name, "scored": name != "operator", "target_sized": name != "small", "first_step": step, "steps": steps,
                "flops_per_step": {"train" if scored or name == "small" else "operator": cost * STEP_FLOPS},
                "median_step_seconds": 0.98 * cost * pace, "growth_flops": 0.0, "output_change": 0.5 if step else None,
                "paper_flops_per_step": round(0.7 * cost * STEP_FLOPS), "optimizer": "new",
                "loss_before": before, "loss_after": rows[-1 - steps // 4]["val_loss"],
                "duplicates": None if name == "small" else 0.5, "duplicates_end": None if name == "small" else 0.125,
            }
        )  # fmt: skip
        before = rows[-1]["val_loss"]
        flops, seconds = rows[-1]["flops"], rows[-1]["seconds"]
        step += 0 if name == "operator" else steps
    source = 0.35 * STEPS * STEP_FLOPS * grown
    spent_by_operator = operator * 1.5 * STEP_FLOPS
    path = folder / store.name(method.replace("/", "_"), seed, budget)
    path.mkdir(parents=True)
    (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "status": "finished", "experiment": "gpt2-tiny", "title": "GPT-2 2x64 -> 4x128 on a Wikipedia sample", "method": method,
        "origin": "growbench 0.1.0", "seed": seed,
        "config": {"experiment": {"architecture": "gpt2", "train": {"steps": STEPS}}, "method": {"operator_steps": operator}},
        "published": {"flops": 44.7, "seconds": 40.7} if method == "ligo" else None,
        "cost": {
            "flops": {"source": source, "growth": 0.0, "operator": spent_by_operator, "train": flops - spent_by_operator,
                      "evaluation": 1e12, "overhead": 0.0},
            "seconds": {"source": source / STEP_FLOPS * pace, "growth": 0.02 * grown, "operator": operator * 1.5 * pace,
                        "train": seconds - operator * 1.5 * pace, "evaluation": 1.5, "overhead": 0.8},
        },
        "final_val_loss": rows[-1]["val_loss"], "steps": length, "tokens": length * 2048, "parameters": 1_058_304,
        "peak_memory_bytes": 523_000_000, "phases": phases, "versions": {"torch": "2.14.1", "python": "3.11.2"},
        "hardware": {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"},
        "data": {"name": "wikipedia-sample", "fingerprint": "a53f4648", "train_tokens": 700_000, "validation_tokens": 40_000},
        "error": None, "budget": budget, "inherited": None if budget == 1 else {"flops": 0.3 * flops, "seconds": 0.3 * seconds},
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(record))


def change(run: Path, **changes: Any) -> None:
    """Change entries of a stored run's run.json."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **changes}))


def of_images(folder: Path) -> Path:
    """Turn the results of a text experiment into those of an image experiment, whose accuracy is 2 / loss."""
    for path in folder.iterdir():
        rows = [json.loads(line) for line in (path / "curve.jsonl").read_text().splitlines()]
        rows = [{**row, "val_accuracy": 2 / row["val_loss"]} for row in rows]
        (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        change(path, final_val_accuracy=rows[-1]["val_accuracy"])
    return folder


def texts(figure: Figure) -> list[Text]:
    """What is written in a figure; of the ticks those of the vertical axes, where methods' names may stand."""
    figure.draw_without_rendering()
    found = [*figure.findobj(Text, include_self=False)]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ticks = [label for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")]
        left_out = {id(label) for label in ticks} - {
            id(label) for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high
        }
        found = [text for text in found if id(text) not in left_out]
    return [text for text in found if isinstance(text, Text) and text.get_text() and text.get_visible()]


def fail(run: Path, message: str = "loss is not finite") -> None:
    """Turn a stored run into one that broke off half-way."""
    record = json.loads((run / "run.json").read_text())
    error = {"step": 200, "message": message, "traceback": "Traceback (most recent call last): ..."}
    (run / "run.json").write_text(json.dumps({**record, "status": "failed", "final_val_loss": None, "error": error}))
    lines = (run / "curve.jsonl").read_text().splitlines(keepends=True)
    (run / "curve.jsonl").write_text("".join(lines[: len(lines) // 2]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, figures: Figures) -> Path:
    """The report of three seeds of four methods, one of whose runs failed."""
    folder = write_results(tmp_path_factory.mktemp("results"), seeds=3)
    fail(folder / "stackbert-seed1", "loss is <nan>")
    with figures():
        return report.make(folder).parent


def test_every_file_is_there(made: Path) -> None:
    expected = {"index.html", "savings.md", "savings_by_seed.csv", "phases.csv", "growth.csv"}
    expected |= {f"{name}.{kind}" for name in TEXT_PLOTS for kind in ("png", "svg", "csv")}
    assert {path.name for path in made.iterdir()} == expected
    assert all(path.stat().st_size for path in made.iterdir())


def test_savings_table_has_the_promised_columns(made: Path) -> None:
    measures = [f"{unit}_saving_{ledger}" for unit in ("flops", "seconds") for ledger in ("reuse", "build")]
    expected = ["method", "seeds", "reached", "target_loss"]
    expected += [name + end for name in measures for end in ("", "_low", "_high")]
    expected += ["published_flops_saving", "published_seconds_saving"]
    table = pd.read_csv(made / "savings.csv")
    assert list(table.columns[: len(expected)]) == expected
    ligo = table.set_index("method").loc["ligo"]
    assert ligo["flops_saving_reuse_low"] <= ligo["flops_saving_reuse"] <= ligo["flops_saving_reuse_high"] < 1
    assert ligo["published_flops_saving"] == pytest.approx(0.447)
    assert table["flops_saving_reuse"].isna().tolist() == [False, False, False, True]


def test_page_stands_alone(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert links and all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import", page)


def test_page_says_what_was_not_reached_and_why(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "not reached<small>(2 of 3)" in page
    assert "loss is &lt;nan&gt;" in page and "<nan>" not in page
    assert "stackbert-seed1" in page


def test_markdown_table_is_well_formed(made: Path) -> None:
    lines = (made / "savings.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(METHODS)
    assert "not reached (2 of 3)" in lines[-1]


def test_names_are_escaped_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", 1, {"scratch": METHODS["scratch"], "<b>$x|": METHODS["ligo"]})
    out = report.make(folder, tmp_path / "out").parent
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<b>$x" not in page and "&lt;b&gt;$x|" in page
    assert "One seed" in page
    assert pd.read_csv(out / "savings.csv")["flops_saving_reuse_low"].isna().all()


def test_the_same_runs_give_the_same_bytes(made: Path, tmp_path: Path, figures: Figures) -> None:
    with figures():
        report.make(made.parent, tmp_path)
    for path in made.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_method_keeps_its_colour(made: Path) -> None:
    looks = drawing.looks(METHODS)
    assert looks == drawing.looks(reversed(METHODS))
    alone = drawing.looks(["ligo", "my_plugin"])
    assert alone["ligo"] == looks["ligo"] and alone["my_plugin"] not in looks.values()
    page = (made / "index.html").read_text(encoding="utf-8")
    for method in ("scratch", "bert2bert", "ligo"):
        assert f'style="color:{looks[method].colour}">{looks[method].glyph}</span>{method}' in page
        for name in TEXT_PLOTS:
            figure = (made / f"{name}.svg").read_text(encoding="utf-8")
            if name != "amortised" or method != "scratch":
                assert looks[method].colour.lower() in figure.lower(), (method, name)


def test_many_methods_look_different() -> None:
    looks = drawing.looks(["scratch", *(f"method{number}" for number in range(40))])
    assert len(set(looks.values())) == len(looks)


# Machado et al. 2009, severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def lab(colour: str, vision: Any) -> np.ndarray:
    """A colour in CIELAB, as it is seen."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    white = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1094, 0.8726]])
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in white @ seen)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_built_in_methods_are_told_apart_by_the_colour_blind() -> None:
    looks = drawing.looks(registry.built_in())
    assert len(looks) >= 12 and len(set(looks.values())) == len(looks)
    for one, other in itertools.combinations(looks.values(), 2):
        if one.marker == other.marker:
            for name, vision in VISIONS.items():
                assert np.linalg.norm(lab(one.colour, vision) - lab(other.colour, vision)) > 15, (one, other, name)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """All built-in methods and a plugin with a long name, on images, all with almost the same curves, at two budgets."""
    folder = tmp_path_factory.mktemp("many")
    for index, method in enumerate(sorted({*registry.built_in(), "a_plugin_whose_name_is_long"})):
        for budget in (0.5, 1):
            write_run(folder, method, 0, *METHODS["bert2bert"], noise=np.random.default_rng(index), budget=budget)
    change(folder / "ligo-seed0", keeps_source=True)
    return analyse(of_images(folder))


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
@pytest.mark.parametrize("name", plots.PLOTS)
def test_labels_of_many_methods_neither_overlap_nor_leave_the_figure(many: Comparison, name: str, width: float) -> None:
    plot = plots.PLOTS[name]
    with style.context(["default", drawing.PARAMETERS]):
        figure = plot.draw(many, plot.data(many), width)
        labels = assert_texts_fit(figure)
    for method in many.methods:
        if (name, method) != ("savings", "scratch"):
            assert drawing.brief(many.label(method)) in labels


def assert_texts_fit(figure: Figure) -> list[str]:
    """What is written in a figure neither overlaps nor leaves it."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
    for label, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height, label
    for (one, box), (other, its) in itertools.combinations(boxes, 2):
        lines = 0.25 * min(box.height, its.height)  # boxes hold room for accents and descenders
        overlap = min(box.x1, its.x1) > max(box.x0, its.x0) and min(box.y1, its.y1) > max(box.y0, its.y0) + lines
        assert not overlap, (one, other)
    return [label for label, _ in boxes]


def test_a_text_experiment_has_no_accuracy(made: Path) -> None:
    assert not (made / "accuracy_vs_flops.csv").exists()
    assert "ccuracy" not in (made / "index.html").read_text(encoding="utf-8")
    assert not any("accuracy" in column for column in pd.read_csv(made / "savings.csv"))
    assert not any("accuracy" in column for column in pd.read_csv(made / "loss_vs_flops.csv"))


def test_an_image_experiment_has_accuracy_in_table_and_plot(tmp_path: Path, figures: Figures) -> None:
    folder = of_images(write_results(tmp_path, 2, {method: METHODS[method] for method in ("scratch", "ligo")}))
    with figures():
        out = report.make(folder).parent
    finals = [json.loads((folder / f"ligo-seed{seed}/run.json").read_text())["final_val_accuracy"] for seed in range(2)]
    table = pd.read_csv(out / "savings.csv")
    assert table.set_index("method").loc["ligo", "final_val_accuracy"] == pytest.approx(sum(finals) / 2)
    assert list(table.columns).index("final_val_accuracy") > list(table.columns).index("published_seconds_saving")
    curve = pd.read_csv(out / "accuracy_vs_flops.csv")
    assert curve.loc[curve["method"] == "ligo", "val_accuracy"].iloc[-1] == pytest.approx(sum(finals) / 2)
    assert (curve["val_accuracy_low"] <= curve["val_accuracy"]).all()
    page = (out / "index.html").read_text(encoding="utf-8")
    shown = percent(sum(finals) / 2)
    assert f'data-head="final accuracy">{shown}</td>' in page and '<figure id="accuracy_vs_flops">' in page
    assert f"| {shown} |" in (out / "savings.md").read_text(encoding="utf-8")
    assert (out / "accuracy_vs_flops.png").stat().st_size and (out / "accuracy_vs_flops.svg").stat().st_size


def test_phases_show_where_the_work_is(made: Path) -> None:
    table = pd.read_csv(made / "phases.csv").set_index(["method", "phase"])
    assert list(table.loc["stackbert"].index) == ["small", "train"]
    assert table.loc[("stackbert", "small"), "share_of_scratch"] == pytest.approx(0.4)
    assert table.loc[("ligo", "operator"), "operator"] == 1.5 * STEP_FLOPS
    assert math.isnan(table.loc[("ligo", "operator"), "train"])
    page = (made / "index.html").read_text(encoding="utf-8")
    assert re.search(
        r'>ligo</th></tr><tr><td data-head="phase">operator</td>.*?data-head="of scratch&#x27;s step">1.50</td>', page
    )
    assert 'data-head="of scratch&#x27;s step">0.400</td>' in page
    assert "teacher, not charged" not in page


def test_a_precomputed_teacher_is_shown_and_not_charged(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {method: METHODS[method] for method in ("scratch", "bert2bert")})
    path = folder / "bert2bert-seed0"
    phases = json.loads((path / "run.json").read_text())["phases"]
    phases[0]["flops_per_step"] = {"train": STEP_FLOPS, "overhead": 0.1 * STEP_FLOPS}
    change(path, phases=phases)
    page = report.make(folder).read_text(encoding="utf-8")
    assert 'data-head="of scratch&#x27;s step">1.00</td>' in page
    assert 'data-head="teacher, not charged">0.100</td>' in page


def test_controls_and_kept_sources_are_marked(tmp_path: Path) -> None:
    names = ("scratch", "bert2bert", "ligo", "stackbert")
    folder = write_results(tmp_path, 1, {method: METHODS[method] for method in names})
    change(folder / "ligo-seed0", keeps_source=True)
    cost = json.loads((folder / "bert2bert-seed0/run.json").read_text())["cost"]
    for unit in cost:
        cost[unit]["source"] = 0.0
    change(folder / "bert2bert-seed0", cost=cost)
    out = report.make(folder).parent
    page, table = ((out / name).read_text(encoding="utf-8") for name in ("index.html", "savings.md"))
    note = "keeps its source: the final model contains the small one and is larger than the target"
    assert page.count(note) == 1 and table.count(note) == 1
    assert re.findall(r">([^<>]*)<span class=\"tag\">control", page) == ["bert2bert"] * 3  # savings, growth and phases
    assert ">ligo†</td>" in page and "| ligo† |" in table and "| bert2bert (control) |" in table
    assert "stackbert†" not in page and "scratch†" not in page
    assert "The best control, bert2bert, needs" in page and "bert2bert meets" not in page


def test_without_marks_there_are_no_footnotes(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "†" not in page and "Control:" not in page and 'class="tag"' not in page


def test_cells_carry_their_heads_for_narrow_screens(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    for row in re.findall("<tr>(<td.*?)</tr>", page):
        assert all("data-head" in cell for cell in re.findall(r"<td(?: [^>]*)?>", row)[1:]), row
    assert 'data-head="FLOPs saved, build"' in page and 'data-head="time saved, reuse"' in page


def test_the_committed_report_is_what_its_runs_give(tmp_path: Path, figures: Figures) -> None:
    folder = Path(__file__).parents[2] / "results/reference/gpt2-tiny"
    with figures():
        out = report.make(folder, tmp_path).parent
    assert {path.name for path in out.iterdir()} == {path.name for path in (folder / "report").iterdir()}
    for name in ("savings.md", "phases.csv"):
        assert (out / name).read_bytes() == (folder / "report" / name).read_bytes()


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory, figures: Figures) -> Path:
    """The report of a ladder: two seeds at three budgets; stackbert misses the target in one seed, ligo is ahead at once."""
    folder = write_results(tmp_path_factory.mktemp("climbed"), 2)
    for index, (method, shape) in enumerate(METHODS.items()):
        for seed, budget in itertools.product(range(2), (0.4, 0.7)):
            write_run(folder, method, seed, *shape, noise=np.random.default_rng([index, seed, int(10 * budget)]), budget=budget)
    change(folder / "stackbert-seed1", final_val_loss=5.5)
    for seed in range(2):
        change(folder / f"ligo-seed{seed}-budget0.4", final_val_loss=4.5)
        change(folder / f"ligo-seed{seed}-budget0.7", final_val_loss=4.4)
    with figures():
        return report.make(folder).parent


def rows_of(page: str, table: str) -> dict[str, dict[str, str]]:
    """What a table with groups of columns says, by its first cells and by the heads that narrow screens show."""
    (body,) = re.findall(f'<table id="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    found = {}
    for row in re.findall("<tr>(.*?)</tr>", body):
        name = re.sub("<.*?>|[●■▲]", "", re.findall("<td>(.*?)</td>", row)[0])
        cells = re.findall('data-head="(.*?)">(.*?)</td>', row)
        found[name] = {head: re.sub("<.*?>", " ", cell).strip() for head, cell in cells}
    return found


def test_the_ladder_stands_beside_the_single_budget(climbed: Path) -> None:
    page = (climbed / "index.html").read_text(encoding="utf-8")
    rows = rows_of(page, "ladder-table")
    assert set(rows) == set(METHODS) and set(rows["scratch"].values()) == {"reference"}
    single, ladder = (pd.read_csv(climbed / f"{name}.csv").set_index("method") for name in ("savings", "ladder_savings"))
    for ledger in ("reuse", "build"):
        column = f"flops_saving_{ledger}"
        cells = [rows["bert2bert"][f"FLOPs saved, {ledger}: {protocol}"] for protocol in ("single", "ladder")]
        for cell, table in zip(cells, (single, ladder), strict=True):
            ends = [percent(table.loc["bert2bert", column + end]) for end in ("", "_low", "_high")]
            assert cell == f"{ends[0]} ({ends[1][:-2]} to {ends[2][:-2]})"
        bound = percent(ladder.loc["ligo", column])
        assert rows["ligo"][f"FLOPs saved, {ledger}: ladder"] == f"≥ {bound}"
        assert rows["stackbert"][f"time saved, {ledger}: ladder"] == "not reached (1 of 2)"


def test_the_ladder_says_what_was_charged_and_what_was_spent(climbed: Path) -> None:
    """Runs below the full budget inherited 0.3 of what they were charged."""
    runs = pd.read_csv(climbed / "ladder_by_seed.csv")
    assert len(runs) == 4 * 2 * 3
    charged = runs["flops_reuse"].sum()
    spent = charged - 0.3 * runs.loc[runs["budget"] < 1, "flops_reuse"].sum()
    text = (climbed / "index.html").read_text(encoding="utf-8")
    assert f"The 24 runs of the ladder were charged {charged / 1e12:.0f} TFLOP in all" in text
    assert f"really spent were {spent / 1e12:.0f} TFLOP" in text
    comparison = analyse(climbed.parent)
    alone = dataclasses.replace(comparison, rungs=comparison.rungs.assign(spent_flops=comparison.rungs["flops_reuse"]))
    assert "and spent as much" in page.html(alone, {})


def test_the_ladder_is_drawn_in_both_ledgers(climbed: Path, made: Path) -> None:
    curve = pd.read_csv(climbed / "ladder.csv")
    runs = pd.read_csv(climbed / "ladder_by_seed.csv")
    ligo = runs[(runs["method"] == "ligo") & (runs["budget"] == 0.7)]
    for ledger in ("reuse", "build"):
        (found,) = tables.records(curve[(curve["method"] == "ligo") & (curve["budget"] == 0.7) & (curve["ledger"] == ledger)])
        assert found["flops"] == pytest.approx(ligo[f"flops_{ledger}"].mean())
    assert (curve["low"] <= curve["val_loss"]).all() and (curve["val_loss"] <= curve["high"]).all()
    assert (climbed / "ladder.png").stat().st_size and (climbed / "ladder.svg").stat().st_size
    assert '<figure id="ladder">' in (climbed / "index.html").read_text(encoding="utf-8")
    assert "ladder-table" not in re.sub(
        "<style>.*?</style>", "", (made / "index.html").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert not list(made.glob("ladder*"))


def test_the_papers_figures_stand_beside_ours_by_counter(made: Path) -> None:
    rows = rows_of((made / "index.html").read_text(encoding="utf-8"), "papers")
    table = pd.read_csv(made / "savings.csv").set_index("method")
    assert list(rows) == ["ligo"]
    ligo = rows["ligo"]
    assert ligo["FLOPs saved, our counter"].startswith(percent(table.loc["ligo", "flops_saving_reuse"]))
    assert ligo["FLOPs saved, the paper&#x27;s counter"] == percent(table.loc["ligo", "flops_saving_paper_counter"])
    assert ligo["FLOPs saved, the paper claims"] == percent(0.447)
    assert ligo["time saved, the paper claims"] == percent(0.407)


def test_growth_is_told_phase_by_phase(made: Path) -> None:
    table = pd.read_csv(made / "growth.csv")
    assert set(table["method"]) == {"stackbert", "bert2bert", "ligo"}
    operator, train = (table[(table["method"] == "ligo") & (table["phase"] == phase)] for phase in ("operator", "train"))
    assert operator["seed"].tolist() == [0, 1, 2] and set(operator["loss_before"]) == {5.2}
    curve = [json.loads(line) for line in (made.parent / "ligo-seed0/curve.jsonl").read_text().splitlines()]
    assert train["loss_before"].iloc[0] == [row["val_loss"] for row in curve if row["phase"] == "operator"][-1]
    assert train["loss_after"].iloc[0] == next(row["val_loss"] for row in curve if row["phase"] == "train")
    page = (made / "index.html").read_text(encoding="utf-8")
    (section,) = re.findall('<table id="growth".*?</table>', page, re.DOTALL)
    assert f'"loss before → after">{train["loss_before"].mean():.3f} → {train["loss_after"].mean():.3f}<' in section
    assert f'"duplicates">{percent(0.5)} → {percent(0.125)}<' in section and '"optimizer">new<' in section
    assert f'"steps to recover">{train["steps_to_recover"].mean():.0f}<' in section


def test_a_loss_that_never_recovers_in_some_seed_is_a_dash(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 2, {method: METHODS[method] for method in ("scratch", "bert2bert")})
    path = folder / "bert2bert-seed1"
    (phase,) = json.loads((path / "run.json").read_text())["phases"]
    change(path, phases=[{**phase, "loss_before": 1.0}])
    assert '"steps to recover">–<small>(1 of 2)' in report.make(folder).read_text(encoding="utf-8")


def test_tests_are_shown_where_there_are_any(made: Path) -> None:
    comparison = analyse(made.parent)
    p = {"flops_p_scratch_reuse": [math.nan, 0.0004, 0.0123, math.nan], "flops_p_scratch_build": [math.nan, 0.2, 1.0, math.nan]}
    p |= {"flops_p_best_reuse": [math.nan] * 4, "flops_p_best_build": [math.nan] * 4}
    tested = dataclasses.replace(comparison, savings=comparison.savings.assign(**p))
    rows = rows_of(page.html(tested, {}), "tests")
    assert {method: list(cells.values()) for method, cells in rows.items()} == {
        "bert2bert": ["&lt; 0.001", "0.200", "–", "–"],
        "ligo": ["0.012", "1.000", "–", "–"],
    }
    untested = dataclasses.replace(comparison, savings=comparison.savings.assign(**{column: math.nan for column in p}))
    assert 'id="tests"' not in page.html(untested, {})


def test_amortised_ends_are_the_two_ledgers(made: Path) -> None:
    table, savings = (pd.read_csv(made / f"{name}.csv") for name in ("amortised", "savings"))
    assert set(table["method"]) == {"bert2bert", "ligo"}  # stackbert missed the target
    for method, targets, ledger in itertools.product(("bert2bert", "ligo"), (1, math.inf), ("reuse", "build")):
        if (targets == 1) == (ledger == "build"):
            found = table[(table["method"] == method) & (table["targets"] == targets)]["saving"]
            assert found.item() == pytest.approx(savings.set_index("method").loc[method, f"flops_saving_{ledger}"])


# Several experiments


def write_experiments(folder: Path, methods: list[list[str]]) -> Path:
    """Experiments of one seed with these methods beside scratch."""
    for number, names in enumerate(methods):
        chosen = {method: METHODS.get(method, METHODS["ligo"]) for method in ("scratch", *names)}
        write_results(folder / f"experiment {number}", 1, chosen)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The reports of three experiments; ligo was not run in one of them, and beside them lies what is no experiment."""
    folder = tmp_path_factory.mktemp("several")
    write_experiments(folder, [["ligo", "bert2bert"], ["bert2bert", "<b>"], ["ligo", "bert2bert"]])
    change(folder / "experiment 0/ligo-seed0", keeps_source=True)
    for name in ("tuning", "notes"):
        (folder / name).mkdir()
    for budget in (0.4, 0.7):
        for method in ("scratch", "bert2bert"):
            write_run(folder / "experiment 1", method, 0, *METHODS[method], noise=np.random.default_rng(5), budget=budget)
    return report.make_all(folder)


def test_several_experiments_have_an_overview_with_links(several: list[Path]) -> None:
    *pages, index = several
    folder = index.parents[1]
    assert pages == [folder / f"experiment {number}/report/index.html" for number in range(3)] and all(map(Path.is_file, pages))
    assert index == folder / "report/index.html"
    made = {"index.html", "overview.csv", "overview.md", "mean_ratios.csv", "performance_profile.csv"}
    assert {path.name for path in index.parent.iterdir()} == made
    text = index.read_text(encoding="utf-8")
    links = [unquote(link) for link in re.findall('href="(.*?)"', text)]
    assert [(index.parent / link).resolve() for link in links] == [page.resolve() for page in pages]
    assert "<script" not in text and "<b>" not in text and "&lt;b&gt;" in text
    assert "hence not shown: &lt;b&gt;, ligo†." in text
    assert "keeps its source" in text


def test_the_overview_holds_every_saving_in_both_ledgers(several: list[Path]) -> None:
    text = several[-1].read_text(encoding="utf-8")
    (section,) = re.findall(">bert2bert</th></tr>(.*?)<tr class", text)
    rows = re.findall("<tr>.*?</tr>", section)
    for index in several[:-1]:
        saved = pd.read_csv(index.with_name("savings.csv")).set_index("method").loc["bert2bert"]
        for ledger, row in zip(("reuse", "build"), rows, strict=True):
            shown = percent(saved[f"flops_saving_{ledger}"])
            assert f'"ledger">{ledger}<' in row and f'"{index.parents[1].name}">{shown}<' in row
    table = pd.read_csv(several[-1].with_name("overview.csv"))
    assert {("experiment 1", "<b>"), ("experiment 2", "ligo")} <= set(zip(table["experiment"], table["method"], strict=True))


def test_the_overview_has_a_column_for_a_ladder_and_is_there_as_markdown(several: list[Path]) -> None:
    text = several[-1].with_name("overview.md").read_text(encoding="utf-8")
    head, _, *rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert [name.strip() for name in head[2:]] == ["experiment 0", "experiment 1", "experiment 1, ladder", "experiment 2"]
    ladder = pd.read_csv(several[1].with_name("ladder_savings.csv")).set_index("method").loc["bert2bert"]
    (reuse,) = [row for row in rows if [cell.strip() for cell in row[:2]] == ["bert2bert", "reuse"]]
    assert percent(ladder["flops_saving_reuse"]) in reuse[4] and percent(ladder["flops_saving_reuse"]) not in reuse[3]
    assert "ligo†" in text and "keeps its source" in text
    assert '"experiment 1, ladder">' in several[-1].read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_experiments(tmp_path, [["ligo"], ["ligo"], ["ligo"]])
    fail(folder / "experiment 1/scratch-seed0")
    for name in ("tuning", "notes"):
        (folder / name).mkdir()
    *pages, index = report.make_all(folder)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in said] == ["experiment 1", "notes"]
    assert len(pages) == 2 and not (index.parent / "performance_profile.svg").exists()  # two experiments are too few


def test_runs_that_were_replaced_are_no_experiment(tmp_path: Path) -> None:
    write_results(tmp_path / "replaced", 1)
    with pytest.raises(UsageError):
        report.make_all(tmp_path)


def test_one_experiment_is_reported_alone(tmp_path: Path) -> None:
    folder = write_experiments(tmp_path / "results", [["ligo"]])
    assert report.make_all(folder) == [folder / "experiment 0/report/index.html"]
    assert report.make_all(folder / "experiment 0", tmp_path / "out") == [tmp_path / "out/index.html"]
    assert not (folder / "report").exists()


def test_several_experiments_elsewhere_and_refusals(tmp_path: Path) -> None:
    folder = write_experiments(tmp_path / "results", [["ligo"], ["ligo"]])
    pages = report.make_all(folder, tmp_path / "out")
    assert pages == [tmp_path / "out" / name / "index.html" for name in ("experiment 0", "experiment 1", "")]
    assert 'href="experiment%200/index.html"' in pages[-1].read_text(encoding="utf-8")
    assert not list(folder.glob("**/report"))
    with pytest.raises(UsageError, match="holds 2 experiments; name one"):
        report.make_all(folder, target_loss=5.0)
    for path in folder.glob("*/scratch-seed0"):
        fail(path)
    with pytest.raises(UsageError, match="nothing to compare"):
        report.make_all(folder)
    with pytest.raises(UsageError, match="no ended run"):
        report.make_all(tmp_path / "absent")


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_labels_of_the_performance_profile_fit(width: float) -> None:
    """Thirteen methods whose lines all but coincide."""
    labels = {
        method: method for method in ["scratch", *sorted(set(registry.built_in()) - {"scratch"}), "a_plugin_with_a_long_name"]
    }
    rows = [
        (method, ledger, tau, share)
        for method in labels
        for ledger in accounts.LEDGERS
        for tau, share in ((1, 0), (2, 1), (4, 1))
    ]
    with style.context(["default", drawing.PARAMETERS]):
        figure = board.performance_profile(labels, pd.DataFrame(rows, columns=["method", "ledger", "tau", "share"]), width)
        assert_texts_fit(figure)


# What older runs, and broken ones, leave


def test_runs_of_older_versions_leave_blank_what_they_did_not_record(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1)
    new = ("paper_flops_per_step", "optimizer", "loss_before", "loss_after", "duplicates", "duplicates_end")
    for path in folder.iterdir():
        record = json.loads((path / "run.json").read_text())
        phases = [{key: value for key, value in phase.items() if key not in new} for phase in record["phases"]]
        record = {key: value for key, value in record.items() if key not in ("budget", "inherited")}
        (path / "run.json").write_text(json.dumps({**record, "phases": phases}))
    out = report.make(folder).parent
    page = (out / "index.html").read_text(encoding="utf-8")
    assert rows_of(page, "papers")["ligo"]["FLOPs saved, the paper&#x27;s counter"] == "–"
    assert "output change" in page and "steps to recover</th>" not in page
    assert pd.read_csv(out / "growth.csv")["steps_to_recover"].isna().all()


def test_runs_that_recorded_nothing_about_their_phases(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {"scratch": METHODS["scratch"]})
    change(folder / "scratch-seed0", phases=[{"steps": STEPS, "median_step_seconds": 0.1}])
    assert "did not record their phases" in report.make(folder).read_text(encoding="utf-8")


def test_only_a_failed_run_and_a_target_by_hand(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {"a_method_with_a_very_long_name": METHODS["ligo"]})
    fail(folder / "a_method_with_a_very_long_name-seed0")
    page = report.make(folder, target_loss=5.0).read_text(encoding="utf-8")
    assert "not reached" in page and "Without a finished scratch run" in page
    with pytest.raises(UsageError, match="--target-loss"):
        report.make(folder)


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", 1, {"scratch": METHODS["scratch"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        report.make(folder, tmp_path / "file")
