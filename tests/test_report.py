"""The report: every file is there, the page stands alone, names are escaped, a method keeps its colour."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from growbench import analysis, registry, report
from growbench.config import UsageError
from growbench.report import plots, units

STEPS, STEP_FLOPS, STEP_SECONDS = 400, 4.2e10, 0.031
# What growth does, as (steps on the small model, its cost there, operator steps, training that growth is worth).
METHODS = {
    "scratch": (0, 1.0, 0, 0.0),
    "stackbert": (100, 0.4, 0, 0.13),
    "bert2bert": (0, 1.0, 0, 0.30),
    "ligo": (0, 1.0, 20, 0.38),
}
TEXT_PLOTS = [name for name in plots.PLOTS if name != "accuracy_vs_flops"]


def write_results(folder: Path, seeds: int, methods: dict[str, tuple[int, float, int, float]] = METHODS) -> Path:
    """An experiment's results as the benchmark would leave them."""
    for index, (method, shape) in enumerate(methods.items()):
        for seed in range(seeds):
            write_run(folder, method, seed, *shape, noise=np.random.default_rng([index, seed]))
    write_run(folder, "source", 0, 0, 1.0, 0, 0.0, noise=np.random.default_rng(99))
    return folder


def write_run(
    folder: Path, method: str, seed: int, small: int, small_cost: float, operator: int, gain: float, noise: np.random.Generator
) -> None:
    head_start = gain + noise.normal(0, 0.02)
    pace = noise.uniform(0.95, 1.1) * STEP_SECONDS
    rows: list[dict] = []
    flops = seconds = 0.0
    plan = [("operator", operator, 1.5, False), ("small", small, small_cost, False), ("train", STEPS - small, 1.0, True)]
    phases, step = [], 0
    for name, steps, cost, scored in plan:
        if not steps:
            continue
        for done in range(0, steps + 1, 4):
            share = (step + done) / STEPS
            loss = 4.88 + 2.72 * (1 - share) ** 1.3 * math.exp(-3.2 * share - 3.4 * head_start * (scored or name == "operator"))
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
            }
        )  # fmt: skip
        flops, seconds = rows[-1]["flops"], rows[-1]["seconds"]
        step += 0 if name == "operator" else steps
    grown = method not in ("scratch", "source", "stackbert")
    source = 0.35 * STEPS * STEP_FLOPS * grown
    spent_by_operator = operator * 1.5 * STEP_FLOPS
    path = folder / f"{method.replace('/', '_')}-seed{seed}"
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
        "final_val_loss": rows[-1]["val_loss"], "steps": STEPS, "tokens": STEPS * 2048, "parameters": 1_058_304,
        "peak_memory_bytes": 523_000_000, "phases": phases, "versions": {"torch": "2.14.1", "python": "3.11.2"},
        "hardware": {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"},
        "data": {"name": "wikipedia-sample", "fingerprint": "a53f4648", "train_tokens": 700_000, "validation_tokens": 40_000},
        "error": None,
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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three seeds of four methods, one of whose runs failed."""
    folder = write_results(tmp_path_factory.mktemp("results"), seeds=3)
    fail(folder / "stackbert-seed1", "loss is <nan>")
    return report.make(folder).parent


def test_every_file_is_there(made: Path) -> None:
    expected = {"index.html", "savings.md", "savings_by_seed.csv", "phases.csv"}
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


def test_the_same_runs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    report.make(made.parent, tmp_path)
    for path in made.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_method_keeps_its_colour(made: Path) -> None:
    looks = plots.looks(METHODS)
    assert looks == plots.looks(reversed(METHODS))
    alone = plots.looks(["ligo", "my_plugin"])
    assert alone["ligo"] == looks["ligo"] and alone["my_plugin"] not in looks.values()
    page = (made / "index.html").read_text(encoding="utf-8")
    for method in ("scratch", "bert2bert", "ligo"):
        assert f'style="color:{looks[method].colour}">{looks[method].glyph}</span>{method}' in page
        for name in TEXT_PLOTS:
            drawing = (made / f"{name}.svg").read_text(encoding="utf-8")
            assert looks[method].colour.lower() in drawing.lower(), (method, name)


def test_many_methods_look_different() -> None:
    looks = plots.looks(["scratch", *(f"method{number}" for number in range(40))])
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
    looks = plots.looks(registry.built_in())
    assert len(looks) >= 12 and len(set(looks.values())) == len(looks)
    for one, other in itertools.combinations(looks.values(), 2):
        if one.marker == other.marker:
            for name, vision in VISIONS.items():
                assert np.linalg.norm(lab(one.colour, vision) - lab(other.colour, vision)) > 15, (one, other, name)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> analysis.Comparison:
    """All built-in methods and a plugin with a long name, on images, all with almost the same curves."""
    folder = tmp_path_factory.mktemp("many")
    for index, method in enumerate(sorted({*registry.built_in(), "a_plugin_whose_name_is_long"})):
        write_run(folder, method, 0, *METHODS["bert2bert"], noise=np.random.default_rng(index))
    change(folder / "ligo-seed0", keeps_source=True)
    return analysis.analyse(of_images(folder))


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
@pytest.mark.parametrize("name", plots.PLOTS)
def test_labels_of_many_methods_neither_overlap_nor_leave_the_figure(many: analysis.Comparison, name: str, width: float) -> None:
    plot = plots.PLOTS[name]
    with style.context(["default", plots.PARAMETERS]):
        figure = plot.draw(many, plot.data(many), width)
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
    labels = [label for label, _ in boxes]
    for method in many.methods:
        if (name, method) != ("savings", "scratch"):
            assert plots.brief(many.label(method)) in labels
    for label, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height, label
    for (one, box), (other, its) in itertools.combinations(boxes, 2):
        lines = 0.25 * min(box.height, its.height)  # boxes hold room for accents and descenders
        overlap = min(box.x1, its.x1) > max(box.x0, its.x0) and min(box.y1, its.y1) > max(box.y0, its.y0) + lines
        assert not overlap, (one, other)


def test_a_text_experiment_has_no_accuracy(made: Path) -> None:
    assert not (made / "accuracy_vs_flops.csv").exists()
    assert "ccuracy" not in (made / "index.html").read_text(encoding="utf-8")
    assert not any("accuracy" in column for column in pd.read_csv(made / "savings.csv"))
    assert not any("accuracy" in column for column in pd.read_csv(made / "loss_vs_flops.csv"))


def test_an_image_experiment_has_accuracy_in_table_and_plot(tmp_path: Path) -> None:
    folder = of_images(write_results(tmp_path, 2, {method: METHODS[method] for method in ("scratch", "ligo")}))
    out = report.make(folder).parent
    finals = [json.loads((folder / f"ligo-seed{seed}/run.json").read_text())["final_val_accuracy"] for seed in range(2)]
    table = pd.read_csv(out / "savings.csv")
    assert table.set_index("method").loc["ligo", "final_val_accuracy"] == pytest.approx(sum(finals) / 2)
    assert list(table.columns).index("final_val_accuracy") > list(table.columns).index("published_seconds_saving")
    curve = pd.read_csv(out / "accuracy_vs_flops.csv")
    assert curve.loc[curve["method"] == "ligo", "val_accuracy"].iloc[-1] == pytest.approx(sum(finals) / 2)
    assert (curve["val_accuracy_low"] <= curve["val_accuracy"]).all()
    page = (out / "index.html").read_text(encoding="utf-8")
    shown = units.percent(sum(finals) / 2)
    assert f'data-head="final accuracy">{shown}</td>' in page and '<figure id="accuracy_vs_flops">' in page
    assert f"| {shown} |" in (out / "savings.md").read_text(encoding="utf-8")
    assert (out / "accuracy_vs_flops.png").stat().st_size and (out / "accuracy_vs_flops.svg").stat().st_size


def test_phases_show_where_the_work_is(made: Path) -> None:
    table = pd.read_csv(made / "phases.csv").set_index(["method", "phase"])
    assert list(table.loc["stackbert"].index) == ["small", "train"]
    assert table.loc[("stackbert", "small"), "share_of_scratch"] == pytest.approx(0.4)
    assert table.loc[("ligo", "operator"), "operator"] == 1.5 * STEP_FLOPS
    assert math.isnan(table.loc[("ligo", "operator"), "train"]) and table.loc[("stackbert", "train"), "output_change"] == 0.5
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
    assert re.findall(r">([^<>]*)<span class=\"tag\">control", page) == ["bert2bert"] * 2  # savings and phases
    assert ">ligo†</td>" in page and "| ligo† |" in table and "| bert2bert (control) |" in table
    assert "stackbert†" not in page and "scratch†" not in page
    assert "The best control, bert2bert, needs" in page and "bert2bert meets" not in page


def test_without_marks_there_are_no_footnotes(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "†" not in page and "Control:" not in page and 'class="tag"' not in page


def test_cells_carry_their_heads_for_narrow_screens(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    cells = re.findall(r"<td(?: [^>]*)?>", page)
    assert sum("data-head" not in cell for cell in cells) == len(METHODS)  # the names in the savings table
    assert 'data-head="FLOPs saved, build"' in page and 'data-head="time saved, reuse"' in page


def test_the_committed_report_is_what_its_runs_give(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "results/reference/gpt2-tiny"
    out = report.make(folder, tmp_path).parent
    assert {path.name for path in out.iterdir()} == {path.name for path in (folder / "report").iterdir()}
    for name in ("savings.md", "phases.csv"):
        assert (out / name).read_bytes() == (folder / "report" / name).read_bytes()


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (9.899, "9.90"),
        (9.999, "10.0"),
        (0.99999, "1.00"),
        (123.4, "123"),
        (54321, "54,321"),
        (-1.5, "−1.50"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert units.digits(value) == text


def test_units_fit_the_largest_cost() -> None:
    assert units.scale(2.3e15, "flops").name == "PFLOP"
    assert units.scale(100.0, "seconds").name == "s" and units.scale(7200.0, "seconds").name == "min"
    assert units.scale(1.0, "flops").text(math.inf) == "∞"
