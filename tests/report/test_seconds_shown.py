"""What a page says about seconds, energy and money."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib import style

from growbench import cli
from growbench.analysis.comparison import analyse
from growbench.costs.accounts import Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.report import drawing, plots
from growbench.runs import step_seconds, store
from growbench.runs.step_seconds import MethodSeconds, PhaseSeconds, StepSeconds
from tests.report.results import METHODS, change, write_results

HOUR = 3600.0
CPU = {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"}
LIGO = {"ligo": METHODS["ligo"], "scratch": METHODS["scratch"]}


def slow_down(run: Path, factor: float) -> None:
    """Let a stored run have taken so many times as long."""
    record = json.loads((run / "run.json").read_text())
    spent = {account: factor * seconds for account, seconds in record["cost"]["seconds"].items()}
    change(run, cost={**record["cost"], "seconds": spent})
    rows = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    slower = [json.dumps({**row, "seconds": factor * row["seconds"]}) + "\n" for row in rows]
    (run / "curve.jsonl").write_text("".join(slower))


def of_step_seconds(folder: Path, seconds: Sequence[float]) -> None:
    """Let scratch's runs have taken so many seconds, by seed."""
    for seed, each in enumerate(seconds):
        run = store.load(folder / f"scratch-seed{seed}")
        assert run is not None
        slow_down(run.folder, each / run.cost(Unit.SECONDS, Ledger.REUSE))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three seeds of scratch and ligo; scratch took an hour in each."""
    folder = write_results(tmp_path / "e", 3, LIGO)
    of_step_seconds(folder, (HOUR, HOUR, HOUR))
    return folder


def made(folder: Path, *options: str) -> tuple[str, str, pd.DataFrame]:
    """The page, the Markdown and savings.csv of a report."""
    assert cli.main(["report", str(folder), *options]) == 0
    files = [(folder / "report" / name).read_text() for name in ("index.html", "savings.md")]
    return (
        files[0].replace("\N{NO-BREAK SPACE}", " "),
        files[1],
        pd.read_csv(folder / "report" / "savings.csv", index_col="method"),
    )


def bench(folder: Path, each: float) -> None:
    """Leave the step times that a bench would have measured: the operator's step takes twice as long."""
    ligo, scratch = (store.load(folder / f"{name}-seed0") for name in ("ligo", "scratch"))
    assert ligo and scratch

    def phases(run: store.Run) -> list[PhaseSeconds]:
        return [
            PhaseSeconds(
                name=phase.name or "",
                steps=phase.steps,
                step_seconds=each * (2 if phase.name == "operator" else 1),
                spread=0.01,
                error=0.001,
                growth_seconds=0,
            )
            for phase in run.record.phases
        ]

    def method(run: store.Run) -> MethodSeconds:
        config = step_seconds.digest_of_method(run.record.config.method)
        return MethodSeconds(origin=run.record.origin, config=config, commit="c", date="2026-11-26", phases=phases(run))

    measured = StepSeconds(
        hardware=Hardware(**CPU),
        versions={},
        experiment=step_seconds.digest_of_experiment(scratch.record.config.experiment),
        methods={"scratch": method(scratch), "ligo": method(ligo), "source": method(scratch)},
    )
    step_seconds.store(folder, measured)


def test_seconds_that_do_not_repeat_stand_nowhere_and_the_page_says_why(results: Path) -> None:
    of_step_seconds(results, (1091, 1013, 626))
    page, markdown, savings = made(results, "--price", "2.5")
    assert "vary by 27.4 %" in page and "growbench bench EXPERIMENT" in page
    assert "time saved" not in markdown.lower() and "price at" not in markdown.lower()
    assert "No seconds compare, so no price can be given." in page
    assert "No seconds of the training of the source" not in page  # that they do not compare has been said
    assert savings["seconds_saving_reuse"].drop("scratch").isna().all()
    assert savings["flops_saving_reuse"].notna().all()
    assert "loss_vs_seconds" not in page


def test_reference_seconds_take_their_place(results: Path) -> None:
    """Scratch's are 400 steps of 9 s, an hour; a price of 2 an hour is then 2."""
    of_step_seconds(results, (1091, 1013, 626))
    bench(results, 9.0)
    page, markdown, savings = made(results, "--price", "2")
    assert "reference seconds: steps x the time of a step measured alone, on Some CPU" in page
    assert savings.loc["scratch", "seconds_to_target_reuse"] == pytest.approx(HOUR)
    assert savings.loc["scratch", "price_to_target_reuse"] == pytest.approx(2)
    cost = savings.loc["ligo", "seconds_to_target_reuse"]
    assert savings.loc["ligo", "seconds_saving_reuse"] == pytest.approx(1 - cost / HOUR)
    assert savings.loc["ligo", "price_to_target_build"] == pytest.approx(savings.loc["ligo", "price_to_target_reuse"] + 2)
    assert "price, reuse" in markdown and "Price at 2 an hour" in page


def test_measured_seconds_have_a_price(results: Path) -> None:
    page, _, savings = made(results, "--price", "2.5")
    assert "Seconds are as measured" in page
    assert savings.loc["scratch", "price_to_target_reuse"] == pytest.approx(2.5)
    assert "price_to_target_reuse" not in made(results)[2]


def test_time_savings_say_over_how_many_seeds_they_are(results: Path) -> None:
    change(results / "ligo-seed1", hardware={**CPU, "name": "Another CPU"})
    page, markdown, savings = made(results)
    assert savings.loc["ligo", "timed"] == 2 and savings.loc["scratch", "timed"] == 3
    assert markdown.count("; 2 of 3 seeds") == 2
    assert "Ran on other hardware than scratch, hence no saving in seconds: ligo-seed1." in page


def test_a_method_without_seconds_that_compare_has_no_line_over_seconds(results: Path) -> None:
    for seed in range(3):
        change(results / f"ligo-seed{seed}", hardware={**CPU, "name": "Another CPU"})
    assert made(results)[2].loc["ligo", "timed"] == 0
    comparison = analyse(results)
    plot = plots.PLOTS["loss_vs_seconds"]
    with style.context(["default", drawing.PARAMETERS]):
        figure = plot.draw(comparison, plot.data(comparison), drawing.WIDE)
        figure.savefig(io.BytesIO(), format="png")
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "scratch" in texts and "ligo" not in texts


GPU_AND_CPU = {"gpu": {"train": 1.5, "operator": 0.5, "evaluation": 9.0}, "cpu": {"train": 0.25}}


@pytest.mark.parametrize(("energy", "said"), [({}, "not measured"), (GPU_AND_CPU, "2.00 kWh GPU, 0.250 kWh CPU")])
def test_the_table_of_runs_has_the_energy_that_is_charged(results: Path, energy: dict[str, Any], said: str) -> None:
    change(results / "ligo-seed0", energy_kwh=energy)
    page = made(results)[0]
    assert page.count(said) == (6 if not energy else 1)


@pytest.mark.parametrize("price", ["0", "-1", "free"])
def test_a_price_is_a_number_above_0(results: Path, price: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(["report", str(results), f"--price={price}"])
    assert refused.value.code == 2 and "must be a number above 0" in capsys.readouterr().err
