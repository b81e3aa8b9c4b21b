"""What a comparison of training loops says of times that are known, and what it measures of growbench's loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from growbench import architectures
from growbench.config.loading import load
from growbench.data import load as load_data
from growbench.errors import Interrupted
from growbench.tools.loop_table import BARE, OURS, TRAINER, Comparison, Ratio, markdown
from growbench.tools.throughput import growbench_seconds
from growbench.training.evaluation import Evaluation
from growbench.training.step import Step
from tests.gpu.stages import speed


def test_a_ratio_is_of_pairs_so_that_a_slow_round_cancels() -> None:
    """The machine was ten times slower in one round; quotients of medians would say 1.2."""
    ratio = Ratio.of([2.0, 20.0, 2.2], [1.0, 10.0, 1.1])
    assert (ratio.median, ratio.lower, ratio.upper) == pytest.approx((2, 2, 2))
    spread = Ratio.of([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert str(spread) == "3.00 x (2.00 to 4.00)"


FOUND = Comparison(
    "e", {BARE: [0.5, 5.0, 0.5], OURS: [0.5, 4.0, 1.0], TRAINER: [1.0, 10.0, 2.0]}, 1000, 10**9, 1e10, ["head"], ["foot"]
)


def test_no_column_contradicts_another() -> None:
    """Tokens a second of two loops are in the ratio that the last column has, whatever their own medians are."""
    rows = [line.replace("\N{NO-BREAK SPACE}", "") for line in FOUND.text.splitlines()[2:5]]
    assert rows == [
        "bare loop                      1000         10.0%       1000.0   2.00 x (2.00 to 3.00)",
        "growbench                      1000         10.0%       1000.0   2.00 x (2.00 to 2.25)",
        "transformers.Trainer            500          5.0%       2000.0   1.00 x (1.00 to 1.00)",
    ]


def test_the_summary_of_a_gpu_session_has_what_the_table_says() -> None:
    assert speed(FOUND.text).replace("\N{NO-BREAK SPACE}", "") == "10.0% of the peak, 2.00 x Trainer"
    assert speed("growbench: corpus = 'hub:c4': cannot be read") == "none"


def test_the_table_of_all_has_a_row_for_each_experiment() -> None:
    lines = markdown([FOUND, FOUND]).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {6}
    assert "2.00 x (2.00 to 2.25)" in lines[2]


@pytest.fixture
def measured(miniature: Path) -> Callable[[int], tuple[float, float, int]]:
    """Measures so many steps of growbench's loop on the miniature."""
    experiment = load(str(miniature))
    architecture = architectures.of(experiment)
    data = load_data(experiment.data, architecture.objective, architecture.tokenizer, experiment.train.batch)
    return lambda steps: growbench_seconds(experiment, data, torch.device("cpu"), steps, compiled=False)


def test_of_growbenchs_loop_the_steps_are_measured_and_no_final_losses(
    measured: Callable[[int], tuple[float, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Final losses, on whole splits, would take longer than the steps."""
    done, update = [], Step.update

    def counted(step: Step) -> None:
        done.append(step)
        update(step)

    monkeypatch.setattr(Step, "update", counted)
    monkeypatch.setattr(Evaluation, "held_out", None)
    seconds, _, memory = measured(3)
    assert len(done) == 3 and seconds > 0 and memory > 0


def test_a_signal_ends_the_measurement(
    measured: Callable[[int], tuple[float, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(step: Step) -> None:
        raise Interrupted

    monkeypatch.setattr(Step, "update", interrupted)
    with pytest.raises(Interrupted):
        measured(3)
