"""A source of another architecture than the target: it teaches, and what would grow it is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from growbench import cli
from growbench.architectures import sizes_of
from growbench.config.loading import load
from growbench.config.schema import Experiment
from growbench.errors import UsageError
from growbench.method import Task
from growbench.planning.plan import check_sizes, plan
from growbench.registry import get
from growbench.runs import store
from growbench.runs.jobs import _of_source
from growbench.tools.experiment_card import card
from growbench.tools.reproduce import experiment_of

LLAMA = "target.architecture=llama"
GROWN = "a source of gpt2 has other weights than llama: it can teach, but not be grown"


def test_the_architecture_of_the_target_stands_in_its_table(miniature: Path) -> None:
    experiment = load(str(miniature), [LLAMA])
    assert (experiment.architecture_of("source"), experiment.architecture_of("target")) == ("gpt2", "llama")
    same = load(str(miniature), ["target.architecture=gpt2"])
    assert same == load(str(miniature)) and same.identity() == load(str(miniature)).identity()
    text = miniature.read_text(encoding="utf-8")
    miniature.write_text(text.replace("[target]\n", '[target]\narchitecture = "llama"\n'), encoding="utf-8")
    assert load(str(miniature)) == experiment
    shown = " ".join(card(str(miniature)).split())
    assert "source gpt2: layers = 1" in shown and "target llama: layers = 2" in shown


def test_its_source_is_the_one_of_an_experiment_of_the_sources_architecture(miniature: Path) -> None:
    """So that a source is trained once for targets of all architectures."""
    two, one = (load(str(miniature), each).identity() for each in ([LLAMA], []))
    assert two["architecture"] == "llama" and _of_source(two) == _of_source(one)
    assert _of_source(_of_source(two)) == _of_source(two)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ('"bert"', r"target.architecture = 'bert': bert (masked, wordpiece) and gpt2 (causal, bytes) are trained on different"),
        (
            '"vit"',
            r"target.architecture = 'vit': vit (classes, images) and gpt2 (causal, bytes) are trained on different batches",
        ),
        ('"lama"', "unknown architecture 'lama'"),
        ("3", "target.architecture = 3: must be a text"),
    ],
)
def test_architectures_that_cannot_share_batches_are_refused(miniature: Path, architecture: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_sizes(load(str(miniature), [f"target.architecture={architecture}"]), 300)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_teacher_may_be_larger_in_what_it_does_not_share(miniature: Path) -> None:
    assert load(str(miniature), [LLAMA, "source.layers=3"]).source.layers == 3
    with pytest.raises(UsageError, match=r"source\.layers = 3 is larger than target\.layers = 2"):
        load(str(miniature), ["source.layers=3"])


def two(miniature: Path, *settings: str) -> Experiment:
    return load(str(miniature), [LLAMA, *settings])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("bert2bert", "ligo", "mango", "lemon", "msg", "progressive_net", "shuffled_source", "lag")),
        ("ki", {"state": "grown"}),
    ],
    ids=str,
)
def test_what_would_grow_the_source_is_refused_in_one_line(miniature: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refusal:
        plan(two(miniature, "train.schedule=wsd"), get(name, options), 300)
    assert GROWN in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["scratch", "scratch_short", "ki", "salt", "stackbert", "multilevel", "random_source"])
def test_what_grows_no_source_is_planned(miniature: Path, name: str) -> None:
    (*_, last) = plan(two(miniature), get(name), 300)
    assert last.scored


def test_a_source_that_would_train_on_as_the_target_is_refused_too(miniature: Path) -> None:
    sizes = ["source.width=32", "source.heads=4", "source.ffn=128", "target.ffn=128", "train.schedule=wsd"]
    with pytest.raises(UsageError, match=GROWN):
        plan(two(miniature, *sizes), get("dpt", {"from_source": True}), 300)


def test_a_model_knows_its_architecture(miniature: Path) -> None:
    experiment = two(miniature)
    teacher, student = (Task.of(experiment, which, 300, torch.device("cpu")) for which in ("source", "target"))
    model = teacher.build()
    student = student.with_source(model)
    for ask in (student.read, student.architecture.stack, lambda model: list(student.architecture.parameters(model))):
        with pytest.raises(UsageError, match=GROWN):
            ask(model)
    assert sizes_of(student.build()).width == 32 and teacher.read(model)


def test_a_gpt2_teaches_a_llama(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: its source is that of the GPT-2 experiment, scratch that of a Llama one; the run can be reproduced."""
    arguments = ["--methods", "ki", "--set", "train.steps=4", "--set", "train.warmup=1", "--results", str(tmp_path / "results")]
    assert cli.main(["run", str(miniature), *arguments, "--set", "methods.ki.share=0.5", "--set", LLAMA]) == 0
    folder = tmp_path / "results" / "miniature"
    source, ki, scratch = (store.load(folder / f"{name}-seed0") for name in ("source", "ki", "scratch"))
    assert source and ki and scratch and (source.finished, ki.finished) == (True, True)
    capsys.readouterr()
    assert cli.main(["reproduce", str(folder / "ki-seed0"), "--steps", "all"]) == 0
    assert "bit-identical" in capsys.readouterr().out
    assert experiment_of(ki.record).source_architecture == "gpt2"
    text = miniature.read_text(encoding="utf-8").replace('"gpt2"', '"llama"')
    miniature.write_text(text.replace("width = 16", "width = 32\nffn = 64"), encoding="utf-8")
    alone = ["run", str(miniature), "--methods", "scratch", "--results", str(tmp_path / "alone"), *arguments[2:6]]
    assert cli.main(alone) == 0
    llama = store.load(tmp_path / "alone" / "miniature" / "scratch-seed0")
    assert llama and [row["val_loss"] for row in llama.curve] == [row["val_loss"] for row in scratch.curve]
