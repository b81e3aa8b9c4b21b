"""The report of one experiment: every file is there, the page stands alone, and its tables say what the runs say."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from growbench import registry, report
from growbench.analysis import tables
from growbench.analysis.comparison import Comparison, analyse
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.formatting import p_value, percent
from growbench.report import live, page, parts, plots, sheets
from growbench.report.cells import saving_of
from growbench.report.headline import headline, sentences
from tests.report.results import METHODS, STEP_FLOPS, STEPS, TEXT_PLOTS, Page, change, fail, of_images, read, write_results

Figures = Callable[..., AbstractContextManager[None]]


def test_every_file_is_there(made: Path) -> None:
    expected = {"index.html", "savings.md", "verdict.txt", "savings_by_seed.csv", "phases.csv", "growth.csv"}
    expected |= {f"{name}.{kind}" for name in TEXT_PLOTS for kind in ("png", "svg", "csv")}
    assert {path.name for path in made.iterdir()} == expected
    assert all(path.stat().st_size for path in made.iterdir())


def test_savings_table_has_the_promised_columns(made: Path) -> None:
    measures = [f"{unit}_saving_{ledger}" for unit in ("flops", "seconds") for ledger in ("reuse", "build")]
    expected = ["method", "protocol", "seeds", "finished", "reached", "timed"]
    expected += [name + end for name in measures for end in ("", "_low", "_high", "_relation")]
    tests = ("loss_difference", "tested_at", "flops_p", "flops_p_holm", "flops_verdict")
    expected += [f"{name}_{ledger}" for ledger in ("reuse", "build") for name in tests]
    table = pd.read_csv(made / "savings.csv")
    assert list(table.columns[: len(expected)]) == expected
    ligo = table.set_index("method").loc["ligo"]
    assert ligo["flops_saving_reuse_low"] <= ligo["flops_saving_reuse"] <= ligo["flops_saving_reuse_high"] < 1
    assert ligo["published_flops_saving"] == pytest.approx(0.447)
    assert table["flops_saving_reuse"].isna().tolist() == [False, False, False, True]


def test_page_stands_alone(made: Path) -> None:
    """It loads nothing; its scripts are inside; it links to its own parts, to the files beside it, and to papers."""
    page = read(made / "index.html")
    assert not {"script src", "img", "link", "iframe"} & page.tags and len(page.scripts) == 1 + len(live.SCRIPTS)
    papers = {link for link in page.links if link.startswith("https://")}
    parts = {link for link in page.links if link.startswith("#")}
    files = set(page.links) - papers - parts
    assert papers == {registry.papers()[method] for method in METHODS}
    assert parts and {part.removeprefix("#") for part in parts} <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    assert files and files <= {f"{name}.{kind}" for name in TEXT_PLOTS for kind in ("csv", "png", "svg")}
    assert not re.search(r"url\((?!#)|@import", page.source)


def test_page_says_what_was_not_reached_and_why(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "did not finish<small>(1 of 3)" in page
    assert "loss is &lt;nan&gt;" in page and "<nan>" not in page
    assert "stackbert-seed1" in page


def test_markdown_table_is_well_formed(made: Path) -> None:
    lines = (made / "savings.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(METHODS)
    assert "did not finish (1 of 3)" in lines[-1]


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


def test_whole_flops_above_64_bits_make_the_same_report(tmp_path: Path, figures: Figures) -> None:
    """As in runs of the paper's sizes: BERT-Large takes 1.8e19."""
    savings = []
    for name, scale in ("small", 1), ("large", 2**40):
        folder = write_results(tmp_path / name, 2, {method: METHODS[method] for method in ("scratch", "ligo")})
        for run in folder.iterdir():
            record = json.loads((run / "run.json").read_text())
            flops = {account: int(each or 0) * scale for account, each in record["cost"]["flops"].items()}
            (run / "run.json").write_text(json.dumps({**record, "cost": {**record["cost"], "flops": flops}}))
            rows = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
            rows = [{**row, "flops": int(row["flops"]) * scale} for row in rows]
            (run / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with figures("loss_vs_flops", "savings_curve", "cost_breakdown") if name == "large" else nullcontext():
            savings.append(pd.read_csv(report.make(folder).parent / "savings.csv")["flops_saving_reuse"].tolist())
    assert savings[1] == pytest.approx(savings[0], nan_ok=True)


def test_a_text_experiment_has_no_accuracy(made: Path) -> None:
    assert not (made / "accuracy_vs_flops.csv").exists()
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "ccuracy" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL) and '"measures":["loss"]' in page
    assert not any("accuracy" in column for column in pd.read_csv(made / "savings.csv"))
    assert not any("accuracy" in column for column in pd.read_csv(made / "loss_vs_flops.csv"))


def test_an_image_experiment_has_accuracy_in_table_and_plot(tmp_path: Path, figures: Figures) -> None:
    folder = of_images(write_results(tmp_path, 2, {method: METHODS[method] for method in ("scratch", "ligo")}))
    with figures("accuracy_vs_flops"):
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
    assert f'data-head="final accuracy">{shown}</td>' in page and 'id="fig-accuracy_vs_flops"' in page
    assert f"| {shown} |" in (out / "savings.md").read_text(encoding="utf-8")
    assert (out / "accuracy_vs_flops.png").stat().st_size and (out / "accuracy_vs_flops.svg").stat().st_size


def test_phases_show_where_the_work_is(made: Path) -> None:
    table = pd.read_csv(made / "phases.csv").set_index(["method", "phase"])
    assert list(table.loc["stackbert"].index) == ["small", "train"]
    assert table.loc[("stackbert", "small"), "share_of_scratch"] == pytest.approx(0.4)
    assert table.loc[("ligo", "operator"), "operator"] == 1.5 * STEP_FLOPS
    assert math.isnan(table.loc[("ligo", "operator"), "train"])
    page = read(made / "index.html")
    operator, _ = page.methods("phases")["ligo"]
    small, _ = page.methods("phases")["stackbert"]
    assert (operator["phase"], operator["of scratch's step"]) == ("operator", "1.50")
    assert (small["phase"], small["of scratch's step"]) == ("small", "0.400")
    assert "teacher, not charged" not in page.text


def test_a_precomputed_teacher_and_an_optimizers_products_are_shown_and_not_charged(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {method: METHODS[method] for method in ("scratch", "bert2bert")})
    path = folder / "bert2bert-seed0"
    phases = json.loads((path / "run.json").read_text())["phases"]
    phases[0]["flops_per_step"] = {"train": STEP_FLOPS, "overhead": 0.1 * STEP_FLOPS, "optimizer": 0.2 * STEP_FLOPS}
    change(path, phases=phases)
    row = read(report.make(folder)).row("phases", "bert2bert")
    shown = (row["of scratch's step"], row["teacher, not charged"], row["optimizer, not charged"])
    assert shown == ("1.00", "0.100", "0.200")


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
    assert (
        re.findall(r">([^<>]*)</a><span class=\"tag\">control", page) == ["bert2bert"] * 4
    )  # savings, equal cost, growth, phases
    assert ">ligo†</a></td>" in page and "| ligo† |" in table and "| bert2bert (control) |" in table
    assert "stackbert†" not in page and "scratch†" not in page
    assert "There is no control:" not in page
    assert "No control is shown to save (bert2bert)." in page and "no method is shown to save FLOPs; the best estimate is" in page


def test_without_marks_there_are_no_footnotes(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "†" not in page and "Control:" not in page and 'class="tag"' not in page
    assert page.count("There is no control:") == 1


def test_cells_carry_their_heads_for_narrow_screens(made: Path) -> None:
    page = read(made / "index.html")
    rows = [row for name in page.tables for row in page.body(name)]
    assert len(rows) > 20 and all(cell.head for row in rows for cell in row[1:])
    assert {"FLOPs saved, build", "time saved, reuse"} <= set(page.row("savings-table", "ligo"))


def test_the_committed_report_is_what_its_runs_give(tmp_path: Path) -> None:
    """Each figure, which is drawn elsewhere, has its data."""
    folder = Path(__file__).parents[2] / "results/reference/gpt2-tiny"
    out = report.make(folder, tmp_path).parent
    made, committed = ({path.name for path in place.iterdir()} for place in (out, folder / "report"))
    drawn = {f"{name}.{kind}" for name in plots.PLOTS if f"{name}.csv" in made for kind in ("png", "svg")}
    assert drawn and made | drawn == committed
    for name in ("savings.md", "phases.csv"):
        assert (out / name).read_bytes() == (folder / "report" / name).read_bytes()


def test_the_ladder_stands_beside_the_single_budget(climbed: Path) -> None:
    page = read(climbed / "index.html")
    rows = {method: page.row("ladder-table", method) for method in page.methods("ladder-table")}
    assert set(rows) == set(METHODS) and set(rows["scratch"].values()) == {"reference", ""}
    single, ladder = (pd.read_csv(climbed / f"{name}.csv").set_index("method") for name in ("savings", "ladder_savings"))
    for ledger in ("reuse", "build"):
        for protocol, table in (("single", single), ("ladder", ladder)):
            cell = rows["bert2bert"][f"FLOPs saved, {ledger}: {protocol}"]
            assert percent(table.loc["bert2bert", f"flops_saving_{ledger}"]) in cell
        p = ladder.loc["ligo", f"flops_p_holm_{ledger}"]
        assert rows["ligo"][f"verdict, {ledger}: ladder"] == (
            f"{ladder.loc['ligo', f'flops_verdict_{ledger}']} (p\N{NO-BREAK SPACE}{p_value(p, equals=True)})"
        )
    bound = percent(ladder.loc["ligo", "flops_saving_build"])
    assert rows["ligo"]["FLOPs saved, build: ladder"].startswith(f"> {bound}")
    assert rows["stackbert"]["FLOPs saved, reuse: ladder"].startswith("< ")


def verdicts(comparison: Comparison, said: str) -> Comparison:
    """With this verdict of every method but scratch, on the ladder and off it."""
    changed = {f"flops_verdict_{ledger}": said for ledger in ("reuse", "build")}
    tables = {name: getattr(comparison, name).assign(**changed) for name in ("savings", "ladder")}
    return dataclasses.replace(comparison, **tables)


def test_the_headline_says_what_the_ladder_says(climbed: Path) -> None:
    comparison = analyse(climbed.parent)
    saving = f"bert2bert {saving_of(row(comparison.ladder, 'bert2bert'), Unit.FLOPS, Ledger.REUSE)}"
    text = headline(verdicts(comparison, "saves"))
    assert text.startswith("By the ladder of budgets, with the source free (reuse ledger), 3 of 3 methods save FLOPs: ")
    assert saving in text and "With the source's training charged (build ledger), 3 of 3 methods save FLOPs" in text
    text = headline(verdicts(comparison, "costs more"))
    assert f"(reuse ledger), no method is shown to save FLOPs; the best estimate is {saving}, costs more." in text


def test_no_interval_of_the_headline_is_divided(climbed: Path) -> None:
    said = "saves 30.7 % (12.5 to 41.7), ligo 27.3 % (> 16.1). With it charged (build ledger)"
    shown = said.replace("12.5 to 41.7", "12.5_to_41.7").replace("> 16.1", ">_16.1").replace("_", "\N{NO-BREAK SPACE}")
    assert parts.unbroken(said) == shown
    page = html.unescape((climbed / "index.html").read_text(encoding="utf-8"))
    said = "".join(f"<p>{parts.unbroken(sentence)}</p>" for sentence in sentences(analyse(climbed.parent)))
    assert f'id="verdict">{said}</div>' in page


def test_the_headline_ranks_what_is_known(made: Path) -> None:
    """StackBERT did not finish in a seed, and has no saving."""
    comparison = analyse(made.parent)
    changed = {f"flops_verdict_{ledger}": "costs more" for ledger in ("reuse", "build")}
    for order in (["stackbert", "bert2bert", "ligo"], ["ligo", "stackbert", "bert2bert"], ["bert2bert", "ligo", "stackbert"]):
        savings = comparison.savings.set_index("method").loc[["scratch", *order]].reset_index().assign(**changed)
        best = savings.loc[savings["flops_saving_reuse"].idxmax(), "method"]
        assert f"(reuse ledger), no method is shown to save FLOPs; the best estimate is {best} " in headline(
            dataclasses.replace(comparison, savings=savings)
        )


def row(table: pd.DataFrame, method: str) -> dict[str, Any]:
    return next(row for row in tables.records(table) if row["method"] == method)


def test_the_ladder_says_what_was_charged_and_what_was_spent(climbed: Path) -> None:
    """Runs below the full budget inherited 0.3 of what they were charged."""
    runs = pd.read_csv(climbed / "ladder_by_seed.csv")
    assert len(runs) == 4 * 2 * 3
    charged = runs["flops_reuse"].sum()
    spent = charged - 0.3 * runs.loc[runs["budget"] < 1, "flops_reuse"].sum()
    text = " ".join(read(climbed / "index.html").text.split())
    assert f"The 24 runs of the ladder were charged {charged / 1e12:.0f} TFLOP in all" in text
    assert f"In fact {spent / 1e12:.0f} TFLOP were spent" in text
    comparison = analyse(climbed.parent)
    alone = dataclasses.replace(comparison, rungs=comparison.rungs.assign(spent_flops=comparison.rungs["flops_reuse"]))
    assert "and spent as much" in page.html(alone, {})


def test_the_papers_figures_stand_beside_ours_by_counter(made: Path) -> None:
    page = read(made / "index.html")
    table = pd.read_csv(made / "savings.csv").set_index("method")
    assert list(page.methods("papers")) == ["ligo"]
    ligo = page.row("papers", "ligo")
    assert ligo["FLOPs saved, our counter"].startswith(percent(table.loc["ligo", "flops_saving_reuse"]))
    assert ligo["FLOPs saved, the paper's counter"] == percent(table.loc["ligo", "flops_saving_paper_counter"])
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
    first, shown = read(made / "index.html").methods("growth")["ligo"]
    assert (first["phase"], shown["phase"]) == ("operator", "train")
    assert shown["loss before → after"] == f"{train['loss_before'].mean():.3f} → {train['loss_after'].mean():.3f}"
    assert shown["duplicates"] == f"{percent(0.5)} → {percent(0.125)}" and shown["optimizer"] == "new"
    assert shown["steps to recover"] == f"{train['steps_to_recover'].mean():.0f}"


def test_a_loss_that_never_recovers_in_some_seed_is_a_dash(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 2, {method: METHODS[method] for method in ("scratch", "bert2bert")})
    path = folder / "bert2bert-seed1"
    (phase,) = json.loads((path / "run.json").read_text())["phases"]
    change(path, phases=[{**phase, "loss_before": 1.0}])
    assert read(report.make(folder)).row("growth", "bert2bert")["steps to recover"] == "– (1 of 2)"


def test_tests_are_shown_where_there_are_any(made: Path) -> None:
    comparison = analyse(made.parent)
    shown, saved = read(made / "index.html"), comparison.savings.set_index("method").loc["ligo"]
    assert set(shown.methods("tests-single")) == {"bert2bert", "ligo"}  # stackbert did not finish
    cells = shown.row("tests-single", "ligo")
    assert cells["p, reuse"] == p_value(saved["flops_p_reuse"]) and cells["Holm's p, build"] == p_value(
        saved["flops_p_holm_build"]
    )
    assert cells["difference, reuse"].replace("−", "-") == f"{saved['loss_difference_reuse']:+.4f}"
    assert cells["at, reuse"] == percent(saved["tested_at_reuse"])
    untested = comparison.savings.assign(flops_p_reuse=math.nan, flops_p_build=math.nan)
    assert "tests-single" not in Page(page.html(dataclasses.replace(comparison, savings=untested), {})).tables


def test_runs_of_older_versions_leave_blank_what_they_did_not_record(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1)
    new = ("paper_flops_per_step", "optimizer", "loss_before", "loss_after", "duplicates", "duplicates_end")
    for path in folder.iterdir():
        record = json.loads((path / "run.json").read_text())
        phases = [{key: value for key, value in phase.items() if key not in new} for phase in record["phases"]]
        record = {key: value for key, value in record.items() if key not in ("budget", "inherited")}
        (path / "run.json").write_text(json.dumps({**record, "phases": phases}))
    out = report.make(folder).parent
    page = read(out / "index.html")
    assert page.row("papers", "ligo")["FLOPs saved, the paper's counter"] == "–"
    heads = {head for rows in page.methods("growth").values() for row in rows for head in row}
    assert "output change" in heads and "steps to recover" not in heads
    assert pd.read_csv(out / "growth.csv")["steps_to_recover"].isna().all()


def test_runs_that_recorded_nothing_about_their_phases(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {"scratch": METHODS["scratch"]})
    change(folder / "scratch-seed0", phases=[{"steps": STEPS, "median_step_seconds": 0.1}])
    assert "did not record their phases" in report.make(folder).read_text(encoding="utf-8")


def test_only_a_failed_run_and_a_target_by_hand(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {"a_method_with_a_very_long_name": METHODS["ligo"]})
    fail(folder / "a_method_with_a_very_long_name-seed0")
    page = report.make(folder, target_loss=5.0).read_text(encoding="utf-8")
    assert "did not finish" in page and "Without a finished scratch run" in page
    with pytest.raises(UsageError, match="--target-loss"):
        report.make(folder)


def test_a_figure_without_data_leaves_no_files_of_an_earlier_report(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", 1, {"scratch": METHODS["scratch"]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/accuracy_vs_flops.csv").write_text("old")
    (tmp_path / "out/mine.csv").write_text("mine")
    report.make(folder, tmp_path / "out")
    assert not (tmp_path / "out/accuracy_vs_flops.csv").exists() and (tmp_path / "out/mine.csv").exists()


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", 1, {"scratch": METHODS["scratch"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        report.make(folder, tmp_path / "file")


def test_the_verdict_for_a_terminal_is_the_tables(made: Path, climbed: Path) -> None:
    """At 80 columns: every method, its saving and verdict in either ledger as the deciding table has them, or once for both."""
    for folder, table in ((made, "savings.csv"), (climbed, "ladder_savings.csv")):
        text = (folder / "verdict.txt").read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 80
        head, lines = text.partition("method ")[::2]
        assert " ".join(head.split()) in _plain((folder / "index.html").read_text(encoding="utf-8"))
        begins = [0, *(re.search(name, f"method {lines}").start() for name in ("loss", "ledger", "FLOPs saved", "verdict"))]  # type: ignore[union-attr]
        cells = [[line[a:b].strip() for a, b in itertools.pairwise([*begins, None])] for line in lines.splitlines()[1:] if line]
        for row in sheets.read(folder / table).to_dict("records"):
            at = next(index for index, line in enumerate(cells) if line[0].rstrip("*†") == row["method"])
            both = cells[at][2] == "both"
            for ledger, line in (("reuse", cells[at]), ("build", cells[at if both else at + 1])):
                assert both or line[2] == ledger
                mean, verdict = row[f"flops_saving_{ledger}"], row[f"flops_verdict_{ledger}"]
                if row["method"] == "scratch":
                    assert line[3:] == ["reference", ""]
                elif row["finished"] != row["seeds"]:
                    assert line[3].startswith("did not finish")
                else:
                    assert f"{100 * float(mean):.1f} %".replace("-", "−") in line[3] or not mean
                    assert line[4] in (verdict.removesuffix(" from scratch"), "no verdict")


def _plain(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", page)).replace("\N{NO-BREAK SPACE}", " ").split())
