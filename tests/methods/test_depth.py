"""The methods that grow in depth: layer maps written out by hand, and what each paper says of its schedule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from growbench.architectures import sizes_of
from growbench.console import Progress
from growbench.costs.flops import count
from growbench.costs.ledger import Costs
from growbench.errors import UsageError
from growbench.growth.weights import deepen
from growbench.method import Batch, EntrySchedule, Phase, Task, Trained, task_loss
from growbench.planning.plan import plan
from growbench.registry import get
from growbench.runs.store import CurveFile
from growbench.tools.check import broken_promises
from growbench.tools.miniatures import CPU, VOCABULARY, Cell
from growbench.training.checkpoint import Checkpoints
from growbench.training.trainer import Output, Trainer, Work
from growbench.training.work import Stop
from tests.methods.test_methods import (
    CELLS,
    LARGE,
    SMALL,
    assert_equal,
    data_of,
    double,
    each_architecture,
    experiment_of,
    first,
    grown,
    in_double_precision,
    relative_change,
    run,
    task_of,
    times,
)

__all__ = ["double"]  # a fixture

TEXT = [cell.architecture for cell in CELLS if cell.plain and not cell.images]

RNG = torch.Generator()


def layers(old: int, new: int, **options: Any) -> list[int]:
    return get("depth_map", options).method.layers(old, new, RNG)  # type: ignore[attr-defined,no-any-return]


# --- depth_map


@pytest.mark.parametrize(
    ("options", "old", "new", "expected"),
    [
        ({"map": "stack"}, 3, 6, [0, 1, 2, 0, 1, 2]),
        ({"map": "stack"}, 2, 5, [0, 1, 0, 1, 0]),
        ({"map": "interpose"}, 3, 6, [0, 0, 1, 1, 2, 2]),
        ({"map": "interpose"}, 2, 5, [0, 0, 0, 1, 1]),
        ({"map": "middle"}, 4, 8, [0, 1, 2, 1, 2, 1, 2, 3]),
        ({"map": "middle"}, 4, 7, [0, 1, 2, 1, 2, 1, 3]),
        ({"map": "middle", "block": 1}, 3, 6, [0, 1, 1, 1, 1, 2]),
        ({"map": "middle", "block": 3}, 3, 6, [0, 1, 2, 0, 1, 2]),
        ({"map": "last"}, 4, 8, [0, 1, 2, 3, 2, 3, 2, 3]),
        ({"map": "last", "block": 1}, 3, 6, [0, 1, 2, 2, 2, 2]),
        ({"map": "solar"}, 6, 9, [0, 1, 2, 3, 4, 2, 3, 4, 5]),
        ({"map": "solar"}, 32, 48, [*range(24), *range(8, 32)]),
        ({"map": "solar"}, 3, 6, [0, 1, 2, 0, 1, 2]),
        *(({"map": each}, 3, 3, [0, 1, 2]) for each in ("stack", "interpose", "middle", "last", "solar")),
    ],
)
def test_each_layer_copies_the_one_that_the_papers_say(options: dict[str, Any], old: int, new: int, expected: list[int]) -> None:
    assert layers(old, new, **options) == expected


def test_random_copies_each_layer_as_often_as_stack_in_another_order_each_time() -> None:
    drawn = [layers(4, 12, map="random") for _ in range(8)]
    assert all(sorted(order) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] for order in drawn)
    assert len(set(map(tuple, drawn))) > 1


def test_blocks_and_overlaps_that_a_source_has_not_are_refused() -> None:
    with pytest.raises(UsageError, match="block = 4: must be from 1 to the source's 3 layers"):
        layers(3, 6, map="middle", block=4)
    with pytest.raises(UsageError, match=r"target\.layers = 7 must be at most twice the source's 3"):
        layers(3, 7, map="solar")


def test_a_depth_map_copies_all_of_each_layer_and_keeps_the_rest() -> None:
    task = task_of(experiment_of("gpt2", target=times(SMALL, 1, layers=LARGE.layers)))
    model = grown(task, "depth_map", map="middle", block=1)
    assert_equal(task.read(model), deepen(task.read(task.source), [0, 1, 1, 1, 1, 1, 2]))


# --- MIDAS and LIDAS


def marked(task: Any, model: Any) -> list[float]:
    """A mark of each layer, which copies share."""
    return task.read(model)["layers.attention.out.weight"].value.flatten(1).sum(1).tolist()  # type: ignore[no-any-return]


def stages_of(name: str, layers: int, **options: Any) -> list[list[int]]:
    """For each later stage of an untrained run, the layer of the stage before that each layer copies."""
    task = task_of(experiment_of("gpt2", target=times(SMALL, 1, layers=layers), steps=60))
    phases, maps = get(name, options).method.phases(task), []
    model, before = next(phases).model, list[float]()
    while True:
        if before:
            maps.append([before.index(mark) for mark in marked(task, model)])
        with torch.no_grad():  # as after training: no two layers are equal
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        before = marked(task, model)
        try:
            model = phases.send(Trained(model, task.optimizer(model), 1, 0.0)).model
        except StopIteration:
            return maps


def test_midas_repeats_the_block_in_the_middle() -> None:
    """Four stages of blocks of two: of one block the first, of two the first, of three the second."""
    assert stages_of("midas", 8, stages=4) == [
        [0, 1, 0, 1],
        [0, 1, 0, 1, 2, 3],
        [0, 1, 2, 3, 2, 3, 4, 5],
    ]


def test_lidas_repeats_the_layers_exactly_in_the_middle() -> None:
    assert stages_of("midas", 8, stages=4, middle="layers") == [
        [0, 1, 0, 1],
        [0, 1, 2, 1, 2, 3],
        [0, 1, 2, 3, 2, 3, 4, 5],
    ]


def test_prop_alpha_lengths_are_the_published_arithmetic() -> None:
    """Six stages with alpha 1: scratch costs 1.385 times as much; alpha 2 leaves more to the deep stages."""
    midas: Any = get("midas").method
    cost = sum(midas.share(stage, 6) * stage / 6 for stage in range(1, 7))
    assert 1 / cost == pytest.approx(1.385, abs=1e-3)
    assert get("midas", {"alpha": 2.0}).method.share(1, 3) == pytest.approx(1 / 14)  # type: ignore[attr-defined]


def test_stages_must_divide_the_layers() -> None:
    for layers, stages in ((8, 3), (7, 0), (4, 8), (4, 1)):
        with pytest.raises(UsageError, match=f"must be a number that divides target.layers = {layers}, at least 2"):
            stages_of("midas", layers, stages=stages)


# --- LLaMA-Pro


@pytest.mark.parametrize(
    ("old", "new", "layers", "places"),
    [
        (4, 6, [0, 1, 1, 2, 3, 3], [2, 5]),
        (3, 4, [0, 1, 2, 2], [3]),
        (2, 4, [0, 0, 1, 1], [1, 3]),
        (2, 5, [0, 0, 1, 1, 1], [1, 3, 4]),
        (32, 40, [layer for old in range(32) for layer in [old] * (2 if old % 4 == 3 else 1)], [4, 9, 14, 19, 24, 29, 34, 39]),
    ],
)
def test_copies_are_inserted_behind_every_group(old: int, new: int, layers: list[int], places: list[int]) -> None:
    from growbench.methods.block_expansion import expanded

    found, is_new = expanded(old, new)
    assert found == layers and [place for place, inserted in enumerate(is_new) if inserted] == places


@in_double_precision
@each_architecture
@pytest.mark.parametrize("factor", [1, 2])
def test_inserted_blocks_preserve_the_function_where_norms_come_first(architecture: str, factor: int) -> None:
    task = task_of(experiment_of(architecture, target=times(SMALL, factor, layers=7)))
    change = relative_change(task, grown(task, "block_expansion"))
    assert change < 1e-12 if task.architecture.norm == "pre" else change > 1e-3


@pytest.mark.parametrize(("trained", "moving"), [("new", [2, 5]), ("existing", [1, 4]), ("all", [0, 1, 2, 3, 4, 5])])
def test_only_the_chosen_layers_train(trained: str, moving: list[int]) -> None:
    """Two steps: the matrices of an identity that come first get a gradient once the last ones are no longer zero."""
    experiment = experiment_of("gpt2", source=times(SMALL, 1, layers=4), target=times(SMALL, 1, layers=6))
    task = task_of(experiment)
    phase = first(get("block_expansion", {"trained": trained}).method, task)
    before, optimizer = task.read(phase.model), task.optimizer(phase.model)
    for step in range(2):
        phase.loss(phase.model, data_of(experiment).train_batch(step, 0), step).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in task.read(phase.model).items():
        moved = weight.value != before[name].value
        if name.startswith("layers."):
            assert [layer for layer, each in enumerate(moved.flatten(1).any(1).tolist()) if each] == moving, name
        else:
            assert moved.any() == (trained == "all"), name


def test_the_control_computes_the_source_with_as_many_layers_trained() -> None:
    """Its copies write nothing: a step costs the forward pass of all layers, and moves those of the source alone."""
    task = task_of(experiment_of("gpt2", target=times(SMALL, 1, layers=6)))
    weights = task.read(grown(task, "block_expansion", trained="existing"))
    for name in ("attention.out.weight", "attention.out.bias", "ffn.down.weight", "ffn.down.bias"):
        silent = (weights[f"layers.{name}"].value == 0).flatten(1).all(1)
        assert silent.tolist() == [False, True] * 3, name


# --- RaPTr


def test_a_path_keeps_the_first_and_the_last_layer() -> None:
    from growbench.methods.raptr import random_paths

    task = task_of(experiment_of("gpt2", target=times(SMALL, 1, layers=7)))
    for length in (2, 3, 5, 7):
        paths = random_paths(task, length)
        assert len(paths) == task.budget
        assert all(len(path) == length and path == sorted(set(path)) and (path[0], path[-1]) == (0, 6) for path in paths)
    assert len(set(map(tuple, random_paths(task, 4)))) > 1
    assert set(map(tuple, random_paths(task, 1))) == {(0,)}


@each_architecture
def test_a_short_path_moves_its_layers_alone_and_costs_a_model_of_its_depth(architecture: str) -> None:
    experiment = experiment_of(architecture, target=times(SMALL, 1, layers=6))
    task = task_of(experiment)
    phase = first(get("raptr").method, task)
    batch, before = data_of(experiment).train_batch(0, 0), task.read(phase.model)
    flops, _ = count(lambda: phase.loss(phase.model, batch, 0).backward())
    expected, _ = count(lambda: task_loss(task.build(replace(task.target_config, layers=3)), batch).backward())
    assert flops == expected and phase.name == "3 of 6 layers"
    task.optimizer(phase.model).step()
    moved = (task.read(phase.model)["layers.ffn.down.weight"].value != before["layers.ffn.down.weight"].value).flatten(1).any(1)
    assert moved.sum() == 3 and moved[0] and moved[-1]


# --- SALT


def test_salts_loss_is_that_of_the_paper_in_both_parts() -> None:
    experiment = experiment_of("gpt2", steps=10)
    task = task_of(experiment)
    phases = get("salt", {"weight": 0.75, "temperature": 2.0, "share": 0.5}).method.phases(task)
    phase, batch = next(phases), data_of(experiment).train_batch(0, 0)
    with torch.no_grad():
        student, teacher = phase.model(*batch[:2]), task.source(*batch[:2])
        soft, logs = (teacher / 2).softmax(-1), student.log_softmax(-1)
        hard = -logs[torch.arange(len(batch.labels)), batch.labels].mean()
        expected = 0.25 * hard - 0.75 * (soft * logs).sum(-1).mean()
    with Costs(CPU).keeping():
        torch.testing.assert_close(phase.loss(phase.model, batch, 0), expected)
    later = phases.send(Trained(phase.model, task.optimizer(phase.model), 5, 0.0))
    torch.testing.assert_close(later.loss(phase.model, batch, 0), hard)


def test_salts_teacher_is_charged_for_the_first_part_alone() -> None:
    outcome, _ = run(experiment_of("gpt2", steps=10), "salt", share=0.5)
    first_part, rest = outcome.phases
    assert first_part.steps == 5 and first_part.flops_per_step["teacher"] > 0  # type: ignore[index]
    assert "teacher" not in rest.flops_per_step and rest.steps == 5


def selected_by_hand(task: Task, batch: Batch, likeliest: int, kept: int) -> list[int]:
    """Label by label: the sequences with the highest median loss of what the teacher finds likely, in their order."""
    with torch.no_grad():
        logs = task.source(*batch[:2]).log_softmax(-1)
    scores, each = [], len(batch.labels) // len(batch.inputs)
    for sequence in range(len(batch.inputs)):
        found = range(sequence * each, (sequence + 1) * each)
        rows = [(logs[place], int(batch.labels[place])) for place in found]
        losses = sorted(-row[label].item() for row, label in rows if (row > row[label]).sum() < likeliest)
        scores.append(losses[(len(losses) - 1) // 2] if losses else -1.0)
    return sorted(sorted(range(len(scores)), key=lambda sequence: -scores[sequence])[:kept])


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "vit"])
def test_salts_first_part_trains_on_what_is_hard_for_the_small_model_yet_learnable(architecture: str) -> None:
    """Of causal, masked and image batches: its loss is that of the batch which these sequences make."""
    experiment = experiment_of(architecture, batch=6)
    task, batch = task_of(experiment), data_of(experiment).train_batch(0, 0)
    options = {"selected": 0.5, "likeliest": 8}
    phase = first(get("salt", options).method, task)
    kept = selected_by_hand(task, batch, 8, 3)
    parts = [batch.rows(row, row + 1) for row in kept]
    length = batch.inputs.shape[1]
    moved = None if batch.positions is None else torch.cat([part.positions + n * length for n, part in enumerate(parts)])  # type: ignore[operator]
    alone = Batch(torch.cat([part.inputs for part in parts]), moved, torch.cat([part.labels for part in parts]))
    plain = first(get("salt").method, task_of(experiment))
    plain.model.load_state_dict(phase.model.state_dict())
    with Costs(CPU).keeping(), torch.no_grad():
        torch.testing.assert_close(phase.loss(phase.model, batch, 0), plain.loss(plain.model, alone, 0))


def test_salts_selection_costs_the_whole_batchs_teacher_and_the_kept_ones_training() -> None:
    experiment = experiment_of("gpt2", steps=4)
    (guided, _), (whole, _) = (plan(experiment, get("salt", {"selected": share}), VOCABULARY) for share in (0.5, 1.0))
    assert guided.flops_per_step["teacher"] == whole.flops_per_step["teacher"]
    assert guided.flops_per_step["train"] == whole.flops_per_step["train"] / 2


def test_a_sequence_without_a_learnable_label_comes_last() -> None:
    from growbench.methods.salt import median_learnable_loss

    taught = torch.tensor([[9.0, 1, 0], [0, 1, 9], [9, 1, 0], [9, 1, 0], [1, 9, 0], [9, 1, 0]])
    labels = torch.tensor([2, 1, 1, 0, 0, 0])  # sequences of two labels, of which the two likeliest tokens count
    losses = -taught.log_softmax(-1).gather(-1, labels[:, None]).view(3, 2)
    found = median_learnable_loss(taught, labels, 2, 3)
    torch.testing.assert_close(found, torch.stack([losses[0, 1], losses[1].min(), losses[2].min()]))
    assert median_learnable_loss(taught[:1], labels[:1], 1, 1).item() == -1.0


# --- LAG


def driven_lag(losses: dict[str, float], **options: Any) -> tuple[Task, list[Phase]]:
    """The phases of lag, whose trials end with these losses."""
    task = task_of(experiment_of("gpt2", target=times(SMALL, 1, layers=6), steps=20, warmup=4))
    phases = get("lag", {"lag": 0.2, **options}).method.phases(task)
    seen = [next(phases)]
    try:
        while True:
            optimizer = seen[-1].optimizer or task.optimizer(seen[-1].model)
            loss = losses.get(seen[-1].name.removeprefix("try "), 0.0)
            seen.append(phases.send(Trained(seen[-1].model, optimizer, 4, loss)))
    except StopIteration:
        return task, seen


def test_lag_goes_on_with_the_candidate_of_the_lowest_loss() -> None:
    task, phases = driven_lag({"stack": 3.0, "inter": 2.0, "mid": 2.5})
    assert [phase.name for phase in phases] == ["try stack", "try inter", "try mid", "go on with the best"]
    assert [phase.account for phase in phases] == ["operator"] * 3 + ["train"]
    assert [phase.length(20, 0) for phase in phases] == [4, 4, 4, 16]
    assert phases[-1].model is phases[1].model and phases[-1].optimizer is not None
    assert_equal(task.read(phases[1].model), deepen(task.read(task.source), [0, 0, 1, 1, 2, 2]))


def test_lags_trials_and_the_rest_have_the_schedule_of_one_run() -> None:
    task, phases = driven_lag({"stack": 1.0, "inter": 2.0, "mid": 2.5})
    multipliers = [phase.schedule(step, 99) for phase in (phases[0], phases[-1]) for step in range(phase.length(20, 0))]  # type: ignore[misc]
    assert multipliers == [task.schedule(step, 20) for step in range(20)]


def test_all_that_depends_on_the_step_goes_on_where_the_trial_ended() -> None:
    from growbench.methods.lag import part_of

    task = task_of(experiment_of("gpt2", steps=20))
    asked: list[tuple[int, int]] = []

    def schedule(step: int, steps: int) -> float:
        asked.append((step, steps))
        return 1.0

    def view(model: nn.Module, step: int, steps: int) -> dict[str, Any]:
        asked.append((step, steps))
        return {}

    entries = [EntrySchedule({}, schedule)]
    whole = Phase(model=task.build(), schedule=schedule, group_schedules=[schedule, None], entry_schedules=entries, view=view)
    part = part_of(replace(whole, workload=lambda step: step, loss=lambda model, batch, step: torch.tensor(step)), 4, 20)
    assert part.schedule and part.view and part.group_schedules[0] and part.group_schedules[1] is None
    for of_step in (part.schedule, part.group_schedules[0], part.entry_schedules[0].schedule):
        of_step(3, 16)
    part.view(whole.model, 3, 16)
    assert asked == [(7, 20)] * 4 and part.workload_of(3) == 7
    assert part.loss(whole.model, data_of(experiment_of("gpt2")).train_batch(0, 0), 3).item() == 7


def test_a_trials_loss_is_the_mean_of_its_second_half_and_its_gradient_the_steps_own() -> None:
    from growbench.methods.lag import with_mean_loss

    experiment = experiment_of("gpt2", target=times(SMALL, 1, layers=6))
    task = task_of(experiment)
    plain = first(get("depth_map").method, task)
    batches = [data_of(experiment).train_batch(step, 0) for step in range(4)]
    each = [task_loss(plain.model, batch).item() for batch in batches]
    task_loss(plain.model, batches[3]).backward()
    expected = [parameter.grad.clone() for parameter in plain.model.parameters() if parameter.grad is not None]
    plain.model.zero_grad()
    trial = with_mean_loss(plain, 4)
    shown = [trial.loss(trial.model, batch, step) for step, batch in enumerate(batches)]
    means = [each[0], each[1], each[2], (each[2] + each[3]) / 2]
    assert [loss.item() for loss in shown] == pytest.approx(means, rel=1e-6)
    shown[3].backward()
    assert all(
        torch.equal(found, wanted) for found, wanted in zip((p.grad for p in plain.model.parameters()), expected, strict=True)
    )


def test_lag_with_its_candidates_alone_costs_one_run_and_the_other_trials() -> None:
    experiment = experiment_of("gpt2", target=times(SMALL, 1, layers=6), steps=10)
    outcome, _ = run(experiment, "lag", lag=0.2)
    alone, _ = run(experiment, "depth_map")
    step = alone.phases[0].flops_per_step["train"]
    assert outcome.costs.flops["operator"] == 3 * 2 * step and outcome.costs.flops["train"] == 8 * step  # type: ignore[index]


def test_lag_refuses_candidates_that_it_cannot_try() -> None:
    with pytest.raises(UsageError, match="must be a table for each candidate"):
        get("lag", {"options": {"mid": 3}})
    for candidates, said in (
        (["depth_map"], "1 candidates of 4 of 20 steps"),
        (["depth_map", "ki"], "ki must train the grown model in one phase"),
        (["depth_map", "ligo"], "ligo must train the grown model in one phase"),
        (["depth_map", "stackbert"], "stackbert must be a method that grows a source"),
        (["depth_map", "lag"], "lag must train the grown model in one phase"),
    ):
        with pytest.raises(UsageError, match=said):
            driven_lag({}, candidates=candidates, options={})


# --- DPT, and sources without layers


@pytest.mark.parametrize("start", [0, 1])
@each_architecture
def test_dpt_keeps_embeddings_and_head_and_adds_all_layers_at_once(architecture: str, start: int) -> None:
    task = task_of(experiment_of(architecture, target=times(SMALL, 1, layers=5), steps=20, schedule="wsd"))
    phases = get("dpt", {"start": start}).method.phases(task)
    shallow = next(phases)
    assert shallow.length(20, 0) == 14 and sizes_of(shallow.model).layers == start
    before = task.read(shallow.model)
    if start and architecture == "modernbert":
        with pytest.raises(UsageError, match="with 1 layer there is only full_attention to copy"):
            phases.send(Trained(shallow.model, task.optimizer(shallow.model), 14, 0.0))
        return
    after = task.read(phases.send(Trained(shallow.model, task.optimizer(shallow.model), 14, 0.0)).model)
    for name, weight in after.items():
        if not name.startswith("layers."):
            assert torch.equal(weight.value, before[name].value), name
        elif start:
            assert all(torch.equal(layer, before[name].value[0]) for layer in weight.value), name
    matrices = after["layers.ffn.down.weight"].value
    assert start or len({layer.sum().item() for layer in matrices}) == 5, "each new layer is drawn by itself"


def test_dpt_grows_a_source_without_layers_and_others_refuse_it() -> None:
    for layers in (0, 1):
        task = task_of(experiment_of("gpt2", times(SMALL, 1, layers=layers), times(SMALL, 1, layers=5)))
        model = grown(task, "dpt", from_source=True)
        assert torch.equal(task.read(model)["embeddings.token"].value, task.read(task.source)["embeddings.token"].value)
    none = experiment_of("gpt2", times(SMALL, 1, layers=0), times(SMALL, 1, layers=5))
    for name in ("depth_map", "bert2bert", "net2net", "block_expansion", "interpolation"):
        with pytest.raises(UsageError, match=r"source\.layers = 0: there is no layer to copy"):
            grown(task_of(none), name)
    with pytest.raises(UsageError, match="dpt grows no layer or one into many"):
        grown(task_of(experiment_of("gpt2", target=times(SMALL, 1, layers=5))), "dpt", from_source=True)


def test_dpt_grows_before_the_decay() -> None:
    for options, decay, said in (
        ({"stable": 0.5}, 0.5, "must be at least 0 and below 0.5, where the decay begins"),
        ({"start": 1}, 0.2, r"must be less than target\.layers = 1"),
    ):
        task = task_of(experiment_of("gpt2", times(SMALL, 1, layers=1), times(SMALL, 1, layers=1), schedule="wsd", decay=decay))
        with pytest.raises(UsageError, match=said):
            grown(task, "dpt", **options)


@pytest.mark.parametrize("architecture", TEXT)
def test_a_source_without_layers_is_planned_trained_and_used(architecture: str) -> None:
    assert broken_promises(get("ki").method, Cell(architecture).at({"source.layers": 0})) == []


def test_lag_resumed_within_a_trial_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Its losses so far are in the model, and so in the checkpoint."""

    def rows(folder: Path, *stops: int) -> list[dict[str, Any]]:
        folder.mkdir()
        experiment = experiment_of("gpt2", times(SMALL, 1, layers=1), times(SMALL, 1, layers=2), steps=12, batch=2)
        for stop in stops:
            work = Work(task_of(experiment), data_of(experiment), 0, Costs(CPU))
            output = Output(CurveFile(folder / "curve.jsonl"), Progress("lag", 1, None, shown=False), Checkpoints(folder))
            Trainer(work, output, Stop(after_steps=stop)).run(get("lag", {"lag": 0.34}).method)
        lines = (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()
        return [{**json.loads(line), "seconds": 0} for line in lines]

    assert rows(tmp_path / "parts", 3, 99) == rows(tmp_path / "whole", 99)
