"""Every built-in method on every architecture keeps the interface's promises; each does what its paper says."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growbench import architectures, registry
from growbench.architectures import sizes_of
from growbench.config.schema import Experiment, ImageConfig, ModelConfig, TextConfig, Training
from growbench.console import Progress
from growbench.costs.flops import count
from growbench.costs.ledger import Costs
from growbench.errors import UsageError
from growbench.growth.maps import copying
from growbench.growth.weights import Axis, Select, Weights, deepen, widen
from growbench.method import Method, Phase, Task, interleave, schedule, stack, stack_and_top, task_loss
from growbench.planning.plan import plan
from growbench.registry import get
from growbench.tools import check, miniatures
from growbench.tools.check import broken_promises
from growbench.tools.miniatures import CPU, VOCABULARY, Cell, RandomData
from growbench.training.phases import PhaseDriver, PhaseStart
from growbench.training.state import Outcome
from growbench.training.trainer import Output, Trainer, Work

META = torch.device("meta")
# One of each kind: norms after and before, tied and untied, grouped heads and gates, types of layers, images, class layers.
CELLS = [Cell("bert"), Cell("gpt2", tied=False), Cell("llama", grouped=True), Cell("modernbert"), Cell("vit"), Cell("cait")]
SMALL = ModelConfig(layers=3, width=16, heads=2)
LARGE = ModelConfig(layers=7, width=24, heads=3)  # no integer ratio anywhere
GROUPED = {"heads": 4, "kv_heads": 2}

each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_architecture = pytest.mark.parametrize("architecture", list(dict.fromkeys(cell.architecture for cell in CELLS)))
in_double_precision = pytest.mark.usefixtures("double")


def small_of(cell: Cell) -> ModelConfig:
    return replace(SMALL, tied=cell.tied, **GROUPED if cell.grouped else {})


def large_of(cell: Cell) -> ModelConfig:
    return replace(LARGE, tied=cell.tied, **{"heads": 6, "kv_heads": 3} if cell.grouped else {})


def times(sizes: ModelConfig, factor: int, **changes: Any) -> ModelConfig:
    """The sizes with every width multiplied."""
    widths = {key: factor * getattr(sizes, key) for key in ("width", "heads", "ffn", "kv_heads")}
    return replace(sizes, **widths | changes)


def experiment_of(architecture: str, source: ModelConfig = SMALL, target: ModelConfig = LARGE, **training: Any) -> Experiment:
    images = architectures.get(architecture).objective == "classes"
    data = (
        ImageConfig("mnist-sample", image_size=16, patch=4, classes=VOCABULARY)
        if images
        else TextConfig("wikipedia-sample", sequence_length=16, vocabulary=VOCABULARY)
    )
    steps = Training(**{"batch": 4, "steps": 9, "lr": 1e-3, "warmup": 0, "precision": "float32"} | training)
    return Experiment("mini", "mini", architecture, source, target, data, steps, steps)


def data_of(experiment: Experiment) -> RandomData:
    return RandomData(experiment.data, architectures.of(experiment).objective, experiment.train.batch)


def task_of(experiment: Experiment, seed: int = 0, device: torch.device = CPU) -> Task:
    """A source in which no two weights are equal by chance."""
    torch.manual_seed(seed)
    with device:
        source = architectures.of(experiment).build(experiment.sizes("source", VOCABULARY))
        for parameter in source.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Task.of(experiment, "target", VOCABULARY, device, seed, source.requires_grad_(False).eval())


def task_in(cell: Cell, target: ModelConfig) -> Task:
    return task_of(experiment_of(cell.architecture, small_of(cell), target))


def first(method: Method, task: Task) -> Phase:
    return next(method.phases(task))


def grown(task: Task, name: str, **options: Any) -> nn.Module:
    """What the method's first phase starts with."""
    return first(get(name, options).method, task).model


def run(experiment: Experiment, name: str, seed: int = 0, **options: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    """The method through the real loop, as the benchmark runs it; the curve without its seconds."""
    task, curve = task_of(experiment, seed), []
    torch.manual_seed(seed)
    method, costs = get(name, options).method, Costs(CPU)
    progress = Progress("test", 1, None, shown=False)
    outcome = Trainer(Work(task, data_of(experiment), seed, costs), Output(curve, progress)).run(method)
    return outcome, [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


def train_by_hand(start: PhaseStart, data: RandomData, steps: int = 2) -> None:
    """Train a phase for a few steps by a loop of our own."""
    for step in range(steps):
        start.phase.loss(start.model.train(), data.train_batch(step, 0), step).backward()
        start.optimizer.step()
        start.optimizer.zero_grad()


def driven(method: Method, task: Task, data: RandomData) -> Iterator[Phase]:
    """Each phase of a method, trained for a few steps when the next one is asked for."""
    driver = PhaseDriver(method, task, Costs(CPU))
    for start in driver:
        yield start.phase
        train_by_hand(start, data)
        driver.trained(0.0)


def relative_change(task: Task, model: nn.Module) -> float:
    """Of the outputs on validation, against the source's."""
    batch = data_of(experiment_of(task.architecture.name)).validation_batches()[0]
    with torch.no_grad():
        expected, output = task.source(*batch[:2]), model.eval()(*batch[:2])
    return ((output - expected).norm() / expected.norm()).item()


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name].value, weight.value), name


def copied(task: Task, model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.value.clone() for name, weight in task.read(model).items()}


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the interface's promises


BUILT_IN = [*registry.built_in()]
KINDS = ("images", "norms after", "norms first", "grouped heads")


def kind_of(name: str) -> str:
    architecture = architectures.get(name)
    if architecture.objective == "classes":
        return "images"
    if architecture.norm == "post":
        return "norms after"
    return "grouped heads" if "kv_heads" in architecture.options else "norms first"


@cache
def in_turns(number: int) -> list[Cell]:
    """The miniatures of method `number`: one of each kind of architecture, of those with grouped heads one or two."""
    images, after, first, grouped = ([name for name in architectures.names() if kind_of(name) == kind] for kind in KINDS)
    names = [kind[number % len(kind)] for kind in (images, after, first)]
    names += [grouped[place % len(grouped)] for place in range(5 * number // 3, 5 * (number + 1) // 3)]
    in_full = names[number % len(names)]
    of_each = {name: [cell for cell in miniatures.cells() if cell.architecture == name] for name in names}
    return [cells[0 if name == in_full else (number // 2) % len(cells)] for name, cells in of_each.items()]


def compared(number: int) -> int:
    """The place of the miniature in which the method's run is compared with its plan: the first of its architecture."""
    return number % len(in_turns(number))


def rounded(number: int) -> int:
    """The place of the miniature in which the method trains in bf16."""
    return (number + 1) % len(in_turns(number))


IN_BF16 = {"train.precision": "bf16"}
TYPES = (
    "layer 2 of 2 is of type sliding_attention, and with 1 layer there is only full_attention to copy: "
    "grow from at least 2 layers"
)
DEAD = "layers.attention.norm.weight and the norm behind its branch are both zero in a layer, which would never be trained"
REFUSED = {
    **{(name, "modernbert"): TYPES for name in ("midas", "mslt", "stackbert")},
    ("staged_training", "gemma3"): DEAD,  # it has norms before and behind each branch
}


@pytest.mark.parametrize(
    ("name", "cell", "compares"),
    [
        pytest.param(name, cell.at(IN_BF16 if place == rounded(number) else {}), place == compared(number), id=f"{cell}-{name}")
        for number, name in enumerate(BUILT_IN)
        for place, cell in enumerate(in_turns(number))
    ],
)
def test_every_method_keeps_every_promise_on_every_kind_of_architecture(name: str, cell: Cell, compares: bool) -> None:
    """With its plan and a second run on one, in bf16 on another. `growbench check NAME` does all else in every miniature."""
    refused = REFUSED.get((name, cell.architecture))
    if refused:
        assert broken_promises(get(name).method, cell) == [f"refused: {refused}"]
        cell = cell.at({"target.layers": 8})  # of types of layers each has one then
    if refused != DEAD:
        assert broken_promises(get(name).method, cell, compares) == []


def test_every_miniature_has_its_share_of_the_methods() -> None:
    cells = [cell for number in range(len(BUILT_IN)) for cell in in_turns(number)]
    of_architectures = Counter(cell.architecture for cell in cells)
    assert {*cells} == {*miniatures.cells()}
    assert of_architectures.keys() == {*architectures.names()} and min(of_architectures.values()) >= 6
    assert all(in_turns(number)[compared(number)].plain for number in range(len(BUILT_IN)))


@pytest.mark.parametrize("name", registry.built_in())
def test_every_card_says_what_a_reader_needs(name: str) -> None:
    method = get(name).method
    card = inspect.getdoc(type(method)) or ""
    assert check.card_warnings(method) == []
    assert name == "scratch" or all(word in card for word in ("Formula:", "Paper:", "Function preserving:", "Defaults:", "Costs"))


# --- function preservation


@in_double_precision
@each_cell
@pytest.mark.parametrize(
    ("name", "options", "factor"),
    [
        ("bert2bert", {"init": "fpi"}, 1),
        ("bert2bert", {"init": "fpi"}, 2),
        ("bert2bert", {"init": "fpi"}, 3),
        ("interpolation", {}, 2),
        ("net2net", {"noise": 0.0}, 2),
    ],
)
def test_copies_preserve_the_function_in_width(name: str, options: dict[str, Any], factor: int, cell: Cell) -> None:
    task = task_in(cell, times(small_of(cell), factor))
    assert relative_change(task, grown(task, name, **options)) < 1e-12


@in_double_precision
@each_cell
def test_net2nets_identities_preserve_the_function_where_norms_come_first(cell: Cell) -> None:
    task = task_in(cell, times(small_of(cell), 2, layers=7))
    change = relative_change(task, grown(task, "net2net", noise=0.0))
    assert change < 1e-12 if task.architecture.norm == "pre" else change > 1e-3


@in_double_precision
@each_cell
def test_a_morph_preserves_the_function_where_only_ffn_neurons_are_new(cell: Cell) -> None:
    small = replace(small_of(cell), ffn=40)
    task = task_of(experiment_of(cell.architecture, small, replace(small, ffn=64)))
    assert relative_change(task, grown(task, "direct_copy", new="morph")) < 1e-12
    assert relative_change(task, grown(task, "direct_copy", new="random")) > 1e-6


@in_double_precision
@each_architecture
def test_aki_and_stacking_do_not_preserve_the_function(architecture: str) -> None:
    task = task_of(experiment_of(architecture, target=times(SMALL, 2)))
    assert relative_change(task, grown(task, "bert2bert")) > 1e-3
    task = task_of(experiment_of(architecture, target=times(SMALL, 2, layers=6)))
    assert relative_change(task, grown(task, "bert2bert", init="fpi")) > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "llama", "vit"])
def test_a_run_records_how_growth_changed_the_outputs(architecture: str) -> None:
    """At 1.5 times the width nothing can be copied evenly."""
    experiment = experiment_of(architecture, target=replace(LARGE, layers=3), steps=1)
    outcome, _ = run(experiment, "bert2bert", init="fpi")
    task = task_of(experiment)
    torch.manual_seed(0)
    change = relative_change(task, grown(task, "bert2bert", init="fpi"))
    assert 1e-3 < change < 100
    assert outcome.phases[0].output_change == pytest.approx(change, rel=1e-4)


# --- bert2BERT


@in_double_precision
def test_aki_takes_whole_new_units_from_the_next_layer() -> None:
    """Bit by bit: old heads as in the layer, new heads a divided copy of one of the next layer's, the last one's of its own."""
    task = task_of(experiment_of("bert", target=times(SMALL, 2)))
    small, large = task.read(task.source), task.read(grown(task, "bert2bert"))

    def heads(weights: Weights, name: str, layer: int, dim: int) -> list[Tensor]:
        return list(weights[f"layers.attention.{name}"].value[layer].split(8, dim))

    for low, upper in ((0, 1), (1, 2), (2, 2)):
        tiled = [torch.cat([rows, rows], 1) / 2 for rows in heads(small, "query.weight", low, 0)]
        above = [torch.cat([rows, rows], 1) / 2 for rows in heads(small, "query.weight", upper, 0)]
        wide = heads(large, "query.weight", low, 0)
        for old in (0, 1):
            assert torch.equal(wide[old], tiled[old])
        for new in (2, 3):
            assert any(torch.equal(wide[new], candidate) for candidate in above)
            # the same head's column of the output projection, divided by its number of copies
            number = next(i for i, candidate in enumerate(above) if torch.equal(wide[new], candidate))
            column = heads(large, "out.weight", low, 1)[new]
            ratio = column[:16] / heads(small, "out.weight", upper, 1)[number]
            assert ratio.std() < 1e-12 and round(1 / ratio.mean().item(), 9) in (2, 3)


@pytest.mark.parametrize("grouped", [False, True])
def test_akis_new_units_are_those_that_are_not_first_copies(grouped: bool) -> None:
    """Against FPI of the same maps: rows of first copies are equal, all others are not."""
    small = small_of(Cell("llama", grouped=grouped))
    experiment = experiment_of("llama", small, times(small, 2))
    maps = copying(small, experiment.target, torch.Generator().manual_seed(0))
    fpi, aki = (task.read(grown(task, "bert2bert", init=init)) for init in ("fpi", "aki") for task in [task_of(experiment)])
    rows = {"attention.query": Axis.HEADS, "attention.key": Axis.KV_HEADS, "attention.value": Axis.KV_HEADS, "ffn.up": Axis.FFN}
    for name, axis in rows.items():
        copies = maps[axis]
        assert isinstance(copies, Select)
        index = copies.index.tolist()
        is_first = torch.tensor([old not in index[:place] for place, old in enumerate(index)])
        key = f"layers.{name}.weight"
        for low in (0, 1):
            assert torch.equal((fpi[key].value[low] == aki[key].value[low]).all(1), is_first), name
        assert torch.equal(fpi[key].value[2], aki[key].value[2]), "the last layer has no next one"


def two_stages(cell: Cell) -> tuple[Experiment, Task, Phase]:
    """bert2BERT's first stage from 3 to 6 layers, in sub-models of 2, 4 and 6."""
    sizes = small_of(cell)
    experiment = experiment_of(cell.architecture, sizes, times(sizes, 2, layers=6), steps=40)
    task = task_of(experiment)
    return experiment, task, first(get("bert2bert", {"sub_model_share": 0.5, "sub_model_layers": 2}).method, task)


@each_cell
def test_a_step_of_a_sub_model_moves_its_top_layers_and_the_head_only(cell: Cell) -> None:
    experiment, task, phase = two_stages(cell)
    assert phase.workload is not None
    steps = {phase.workload(step): step for step in range(20)}
    assert steps.keys() == {2, 4, 6}
    optimizer, data = task.optimizer(phase.model), data_of(experiment)
    for depth, step in steps.items():
        before = copied(task, phase.model)
        phase.loss(phase.model, data.train_batch(step, 0), step).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, value in copied(task, phase.model).items():
            moved = value != before[name]
            if name.startswith("layers."):
                by_layer = moved.flatten(1).any(1).tolist()
                # in ModernBERT, layer 0 has the norm of the embeddings
                own = slice(1, None) if name == "layers.attention.norm.weight" else slice(None)
                assert by_layer[own] == [depth - 2 <= number < depth for number in range(6)][own], name
            else:
                assert moved.any() == (depth == 2 or not name.startswith("embeddings")), name


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_a_sub_models_step_costs_that_of_a_model_of_its_depth_frozen_below(architecture: str) -> None:
    experiment, task, phase = two_stages(Cell(architecture))
    assert phase.workload is not None
    batch, costs = data_of(experiment).train_batch(0, 0), Costs(CPU)
    forwards = {}
    for depth, step in {phase.workload(step): step for step in range(20)}.items():
        shallow = task.build(replace(task.target_config, layers=depth))
        head = count(lambda: task.build(replace(task.target_config, layers=1))(*batch[:2]))[0]
        task.train_only(shallow, lambda name, at: at >= depth - 2 if at is not None else not (depth > 2 and "embed" in name))  # noqa: B023
        expected, _ = count(lambda: task_loss(shallow, batch).backward())  # noqa: B023
        assert costs.probe(lambda: phase.loss(phase.model, batch, step).backward(), "train") == {"train": expected}  # noqa: B023
        forwards[depth] = count(lambda: shallow(*batch[:2]))[0] - head  # noqa: B023
    block = forwards[4] / 3
    assert sum(forwards.values()) / 3 == block * (6 / 2 + 2 / 2 - 1), "on average half the depth and half a sub-model"


def test_layers_are_ordered_as_the_papers_say() -> None:

    assert stack(3, 6) == [0, 1, 2, 0, 1, 2]
    assert stack(3, 3) == [0, 1, 2]
    assert stack_and_top(3, 7) == [0, 1, 2, 0, 1, 2, 2]
    assert stack_and_top(5, 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 3, 4]
    assert stack_and_top(4, 4) == [0, 1, 2, 3]
    assert interleave(3, 7) == [0, 0, 0, 1, 1, 2, 2]


def test_bert2bert_refuses_heads_of_another_size() -> None:
    with pytest.raises(UsageError, match="whole"):
        grown(task_of(experiment_of("bert", target=replace(LARGE, heads=6))), "bert2bert")


# --- StackBERT


def test_stackbert_doubles_the_trained_layers_and_keeps_the_rest() -> None:
    experiment = experiment_of("gpt2", target=replace(LARGE, layers=4))
    task = task_of(experiment)
    phases = driven(get("stackbert").method, task, data_of(experiment))
    shallow = next(phases).model
    assert sizes_of(shallow).layers == 1
    deeper = next(phases).model
    assert_equal(task.read(deeper), deepen(task.read(shallow), [0, 0]))


@each_cell
def test_stackbert_from_a_source_of_the_targets_depth_is_the_identity(cell: Cell) -> None:
    task = task_in(cell, small_of(cell))
    model: Any = grown(task, "stackbert", from_source=True)
    assert_equal(task.read(model), task.read(task.source))
    if not cell.images:
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == cell.tied


def test_stackbert_from_a_source_needs_the_targets_width() -> None:
    with pytest.raises(UsageError, match="depth only"):
        grown(task_of(experiment_of("gpt2")), "stackbert", from_source=True)
    task = task_of(experiment_of("gpt2", target=replace(SMALL, layers=6)))
    assert_equal(task.read(grown(task, "stackbert", from_source=True)), deepen(task.read(task.source), [0, 1, 2, 0, 1, 2]))


# --- MSLT


RULES = ["frozen", "decoder", "untied"]


def mslt_stages(cell: Cell, rule: str) -> Iterator[tuple[Phase, dict[str, Tensor], dict[str, Tensor]]]:
    """Each stage of MSLT to 6 layers, with its weights before and after two steps."""
    experiment = experiment_of(cell.architecture, small_of(cell), times(small_of(cell), 2, layers=6))
    task, data = task_of(experiment), data_of(experiment)
    driver = PhaseDriver(get("mslt", {"tied_embedding": rule, "shares": [0.2, 0.2, 0.2]}).method, task, Costs(CPU))
    for start in driver:
        before = copied(task, start.model)
        train_by_hand(start, data)
        yield start.phase, before, copied(task, start.model)
        driver.trained(0.0)


TYPED_TOPS = {4: [1, 0], 6: [2, 2]}  # of ModernBERT, whose layers are global, local, local, global, local, local


@pytest.mark.parametrize(
    ("cell", "rule"),
    [*[(cell, "frozen") for cell in CELLS], *[(Cell(name), rule) for name in ("gpt2", "bert") for rule in ("decoder", "untied")]],
    ids=str,
)
def test_mslt_trains_the_new_top_layers_and_the_head_only(cell: Cell, rule: str) -> None:
    names, last = [], {}
    for phase, before, after in mslt_stages(cell, rule):
        names.append(phase.name)
        depth = sizes_of(phase.model).layers
        shallow = 0 if phase.name.startswith(("depth", "all")) else depth - 2
        tied = "head.weight" not in before
        assert tied == (cell.tied and not cell.images and not (rule == "untied" and shallow))
        for name, value in after.items():
            moved = value != before[name]
            if name.startswith("layers."):
                own = slice(1, None) if name == "layers.attention.norm.weight" else slice(None)
                assert moved.flatten(1).any(1).tolist()[own] == [number >= shallow for number in range(depth)][own], name
                if shallow:
                    assert torch.equal(before[name][:shallow], last[name])
                    copied = TYPED_TOPS[depth] if cell.architecture == "modernbert" else [shallow - 2, shallow - 1]
                    assert torch.equal(before[name][shallow:], last[name][copied]), "new layers are copies of the top ones"
            else:
                frozen = shallow and name.startswith("embeddings.")
                by_decoder = tied and rule == "decoder" and name == "embeddings.token"
                assert moved.any() == (not frozen or by_decoder), name
        if phase.name == "all layers" and rule == "untied" and tied and not cell.images:
            assert torch.equal(before["embeddings.token"], last["head.weight"]), "tied again, with the decoder's weights"
            embeddings = phase.model.get_input_embeddings(), phase.model.get_output_embeddings()  # type: ignore[operator]
            assert embeddings[0].weight is embeddings[1].weight
        last = after
    assert names == ["depth 2", "top of 4", "top of 6", "all layers"]


def test_mslts_stages_of_bert_base_are_those_of_the_paper() -> None:
    method = get("mslt").method
    assert list(method.stages(12)) == [3, 6, 9, 12]  # type: ignore[attr-defined]
    sizes = ModelConfig(layers=12, width=16, heads=2)
    planned = plan(experiment_of("bert", sizes, sizes, steps=100), get("mslt"), VOCABULARY)
    names = ["depth 3", "top of 6", "top of 9", "top of 12", "all layers"]
    assert [(phase.name, phase.steps) for phase in planned] == [(name, 20) for name in names]


@pytest.mark.parametrize(("architecture", "rule"), [*[("gpt2", rule) for rule in RULES], ("bert", "frozen")])
def test_mslts_frozen_layers_cost_their_forward_only(architecture: str, rule: str) -> None:
    """Without autograd below the trained layers: a step is F_below + 3 F_trained, and the head's."""
    target = times(SMALL, 2, layers=6)
    experiment = experiment_of(architecture, target=target, steps=4)
    outcome, _ = run(experiment, "mslt", tied_embedding=rule, shares=[0.25, 0.25, 0.25])
    d, tokens = target.width, 4 * 16
    block = 2 * tokens * (4 * d * d + 2 * d * target.ffn) + 4 * 4 * 16 * 16 * d
    labelled = tokens if architecture == "gpt2" else 4 * 2
    decoder = 2 * labelled * d * VOCABULARY
    transform = 0 if architecture == "gpt2" else 2 * labelled * d * d
    # BERT's lowest trained layer reads what is frozen without a norm between: no gradient for what enters the attention
    spared = 0 if architecture == "gpt2" else 3 * 2 * tokens * d * d
    head = (2 if rule == "frozen" else 3) * decoder + 3 * transform
    expected = [
        3 * (2 * block + decoder + transform),
        2 * block + 3 * 2 * block + head - spared,
        4 * block + 3 * 2 * block + head - spared,
        3 * (6 * block + decoder + transform),
    ]
    assert [phase.flops_per_step for phase in outcome.phases] == [{"train": flops} for flops in expected]


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_mslts_decoder_rule_trains_the_tied_matrix_by_the_decoders_gradient_alone(architecture: str) -> None:
    experiment = experiment_of(architecture, target=times(SMALL, 2, layers=6))
    task, data = task_of(experiment), data_of(experiment)
    phases = driven(get("mslt", {"tied_embedding": "decoder"}).method, task, data)
    next(phases)
    model: Any = next(phases).model
    batch, entered = data.train_batch(5, 0), []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0].detach()))
    task_loss(model, batch).backward()
    hook.remove()
    hidden = entered[0].flatten(0, -2)
    with torch.no_grad():
        slope = torch.softmax(model(*batch[:2]), -1) - nn.functional.one_hot(batch.labels, VOCABULARY)
    torch.testing.assert_close(
        model.get_input_embeddings().weight.grad, slope.T @ hidden / len(batch.labels), rtol=1e-4, atol=1e-6
    )


# --- KI


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("bert", {"weight": 0.0}), ("cait", {"weight": 0.0}), ("gpt2", {"share": 0.0})],
)
def test_ki_without_guidance_is_scratch_bit_for_bit(architecture: str, options: dict[str, float]) -> None:
    experiment = experiment_of(architecture, target=replace(LARGE, layers=4), steps=4)
    (guided, curve), (plain, expected) = run(experiment, "ki", **options), run(experiment, "scratch")
    assert curve == expected
    assert guided.model is not None and plain.model is not None
    for key, value in plain.model.state_dict().items():
        assert torch.equal(guided.model.state_dict()[key], value), key
    assert guided.costs.flops["teacher"] == 0


def test_kis_distillation_is_the_divergence_from_the_teacher() -> None:
    from growbench.methods.ki import distillation
    from torch.distributions import Categorical, kl_divergence

    student, teacher = torch.randn(2, 20, VOCABULARY)
    for temperature in (1.0, 2.0, 5.0):
        expected = kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature)).mean()
        torch.testing.assert_close(distillation(student, teacher, temperature), temperature**2 * expected)
        assert distillation(student, student, temperature).abs() < 1e-6


def test_kis_teacher_fades_linearly() -> None:
    """On a loss whose two parts are known: 0.8 at the first of 10 guided steps, 0.08 at the last."""
    from growbench.methods.ki import distillation

    experiment = experiment_of("gpt2", steps=20)
    task, batch = task_of(experiment), data_of(experiment).train_batch(0, 0)
    phase = first(get("ki", {"share": 0.5, "weight": 0.8}).method, task)
    assert phase.length(task.budget, 0) == 10
    with torch.no_grad():
        own, taught = (model(*batch[:2]) for model in (phase.model, task.source))
        plain, guided = nn.functional.cross_entropy(own, batch.labels), distillation(own, taught, 2.0)
        for step in range(10):
            a = 0.8 * (10 - step) / 10
            torch.testing.assert_close(phase.loss(phase.model, batch, step), (1 - a) * plain + a * guided)


@pytest.mark.parametrize("architecture", ["gpt2", "vit"])
def test_kis_teacher_is_charged_its_forward_for_its_share_of_the_steps(architecture: str) -> None:
    experiment = experiment_of(architecture, target=replace(LARGE, layers=3), steps=10)
    online, precomputed = run(experiment, "ki")[0], run(experiment, "ki", teacher="precomputed")[0]
    batch = data_of(experiment).train_batch(0, 0)
    forward, _ = count(lambda: task_of(experiment).source(*batch[:2]))
    assert online.costs.flops["teacher"] == 3 * forward
    assert precomputed.costs.flops["teacher"] == 0
    assert online.costs.flops["train"] == precomputed.costs.flops["train"] == run(experiment, "scratch")[0].costs.flops["train"]
    assert [phase.steps for phase in online.phases] == [3, 7]


def test_kis_teacher_costs_what_the_papers_counter_says() -> None:
    """BERT-Small teaches BERT-Base: 16.5 % of a step in LiGO's counter, so 11.0 % if backward counts twice the forward.

    Our own counter has no dense embedding, which makes most of the small model there: 8 %.
    """
    small, base = ModelConfig(layers=6, width=512, heads=8), ModelConfig(layers=12, width=768, heads=12)
    experiment = experiment_of("bert", small, base, batch=2)
    experiment = replace(experiment, data=TextConfig("wikipedia-sample", sequence_length=128, vocabulary=30522))
    guided, plain = plan(experiment, get("ki"), 30522)
    assert guided.paper_flops_per_step is not None and plain.paper_flops_per_step is not None
    share = guided.paper_flops_per_step / plain.paper_flops_per_step - 1
    assert share == pytest.approx(0.165, abs=5e-4)
    assert share * 2 / 3 == pytest.approx(0.110, abs=5e-4)
    assert guided.flops_per_step["train"] == plain.flops_per_step["train"]

    def forward(layers: int, d: int) -> int:
        return layers * (2 * 128 * 12 * d * d + 4 * 128 * 128 * d) + 2 * 19 * (d * d + d * 30522)

    assert guided.flops_per_step["teacher"] / guided.flops_per_step["train"] == forward(6, 512) / (3 * forward(12, 768))


# --- Net2Net


def test_net2nets_noise_is_on_new_entries_only_and_has_the_asked_size() -> None:
    sizes = ModelConfig(layers=1, width=64, heads=4)
    experiment = experiment_of("bert", sizes, replace(sizes, width=96, heads=6, ffn=384))
    maps = copying(sizes, experiment.target, torch.Generator().manual_seed(0))
    plain, noisy = (task.read(grown(task, "net2net", noise=noise)) for noise in (0.0, 0.1) for task in [task_of(experiment)])
    for name, weight in noisy.items():
        difference = weight.value - plain[name].value
        is_new = torch.zeros(weight.value.shape, dtype=torch.bool)
        for dim, axis in enumerate(weight.axes):
            if axis in maps:
                index = maps[axis].index.tolist()  # type: ignore[union-attr]
                further = [place for place, old in enumerate(index) if old in index[:place]]
                is_new.index_fill_(dim, torch.tensor(further), True)
        assert not difference[~is_new].any(), name
        if weight.consumes and weight.role != "norm":
            assert difference[is_new].std() / plain[name].value.std() == pytest.approx(0.1, rel=0.1), name
        else:
            assert not difference.any(), f"{name} is no matrix"


@each_cell
def test_net2nets_new_layers_are_silent_copies_of_the_top_one(cell: Cell) -> None:
    task = task_in(cell, replace(small_of(cell), layers=7))
    weights, old = task.read(grown(task, "net2net", noise=0.0)), task.read(task.source)
    for name, weight in weights.items():
        if Axis.LAYER in weight.axes:
            assert torch.equal(weight.value[:3], old[name].value)
            for number in range(3, 7):
                top = old[name].value[0 if cell.architecture == "modernbert" and number % 3 == 0 else 2]  # of its type
                expected = torch.zeros_like(top) if weight.residual else top
                assert torch.equal(weight.value[number], expected), name
    assert sum(weight.residual for name, weight in weights.items() if name.startswith("layers.")) in (2, 4)


# --- direct copy and interpolation


@each_cell
@pytest.mark.parametrize("new", ["random", "morph"])
def test_direct_copy_keeps_the_source_in_the_corner_of_a_fresh_model(new: str, cell: Cell) -> None:
    task = task_in(cell, large_of(cell))
    torch.manual_seed(5)
    weights = task.read(grown(task, "direct_copy", new=new))
    torch.manual_seed(5)
    expected, small = copied(task, task.build()), deepen(task.read(task.source), [0, 1, 2, 0, 1, 2, 0])
    for name, value in expected.items():
        corner = small[name].value
        if new == "morph" and small[name].consumes:
            value[..., corner.shape[-1] :] = 0
        value[tuple(slice(size) for size in corner.shape)] = corner
        assert torch.equal(weights[name].value, value), name


@each_cell
def test_interpolation_repeats_every_layer_in_place(cell: Cell) -> None:
    task = task_in(cell, replace(small_of(cell), layers=7))
    expected = deepen(task.read(task.source), [0, 0, 0, 1, 1, 2, 2])
    assert_equal(task.read(grown(task, "interpolation")), expected)


# --- controls


def test_random_source_grows_what_was_never_trained() -> None:
    experiment = experiment_of("gpt2", target=times(SMALL, 2))
    task = replace(task_of(experiment), _source=None)
    torch.manual_seed(3)
    weights = task.read(grown(task, "random_source"))
    torch.manual_seed(3)
    untrained = task.build(task.source_config)
    kept = weights["embeddings.token"].value[:, :16]
    assert torch.equal(kept, task.read(untrained)["embeddings.token"].value)
    assert not get("random_source").method.uses_source
    outcome, _ = run(experiment, "random_source", like="interpolation")
    assert outcome.costs.flops["source"] == 0


@pytest.mark.parametrize("control", ["random_source", "shuffled_source"])
@pytest.mark.parametrize("like", ["scratch", "stackbert", "random_source", "progressive_net"])
def test_a_control_refuses_methods_that_grow_no_source(like: str, control: str) -> None:
    with pytest.raises(UsageError, match="must be a method that grows a source"):
        grown(task_of(experiment_of("gpt2")), control, like=like)


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "llama"])
def test_shuffled_source_keeps_the_entries_of_each_tensor_and_not_their_order(architecture: str) -> None:
    experiment = experiment_of(architecture, target=times(SMALL, 2))
    task = task_of(experiment)
    before = task.read(task.source)
    found = []

    class Spy(type(get("bert2bert").method)):  # type: ignore[misc]
        """Keeps the source that it is given."""

        def phases(self, inner: Any) -> Any:
            found.append(inner.source)
            yield from super().phases(inner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growbench.methods.shuffled_source.get", lambda name: replace(get(name), method=Spy()))
        grown(task, "shuffled_source")
    (source,) = found
    assert not source.training and not any(parameter.requires_grad for parameter in source.parameters())
    for (name, parameter), (other, trained) in zip(source.named_parameters(), task.source.named_parameters(), strict=True):
        assert name == other and torch.equal(parameter.flatten().sort().values, trained.flatten().sort().values), name
        if len(trained.unique()) > 4:
            assert not torch.equal(parameter, trained), name
    after = task.read(task.source)
    assert all(torch.equal(after[name].value, weight.value) for name, weight in before.items()), "the source itself is as before"


def test_shuffled_source_is_charged_for_its_source_and_is_a_control() -> None:
    assert get("shuffled_source").method.uses_source and get("shuffled_source").method.control
    assert not get("bert2bert").method.control


def test_scratch_short_ends_its_own_schedule() -> None:
    experiment = experiment_of("gpt2", steps=40, warmup=4)
    outcome, curve = run(experiment, "scratch_short")
    assert outcome.steps == 20 == curve[-1]["step"]
    short = schedule.of(replace(experiment.train, steps=20))
    assert [row["lr"] for row in curve[1:]] == [1e-3 * short(step, 20) for step in range(20)]
    assert curve[-1]["lr"] < 0.1 * 1e-3


# --- Progressive nets


@each_cell
def test_a_progressive_net_starts_as_scratch_and_leaves_the_source_alone(cell: Cell) -> None:
    experiment = experiment_of(cell.architecture, small_of(cell), large_of(cell))
    task, data = task_of(experiment), data_of(experiment)
    torch.manual_seed(5)
    model: Any = grown(task, "progressive_net")
    torch.manual_seed(5)
    scratch = grown(task, "scratch")
    batch = data.train_batch(0, 0)
    with torch.no_grad():
        assert torch.equal(model.eval()(*batch[:2]), scratch.eval()(*batch[:2]))
    before = {name: value.clone() for name, value in model.source.state_dict().items()}
    optimizer = task.optimizer(model)
    for _ in range(2):
        assert not model.train().source.training and model.column.training
        optimizer.zero_grad()
        task_loss(model, batch).backward()
        optimizer.step()
    for name, value in model.source.state_dict().items():
        assert torch.equal(value, before[name]), name
    without = [name for name, p in model.adapters.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == [], "each adapter learns, once its U is no longer 0"
    assert not any(module._forward_pre_hooks for module in task.source.modules()), "other methods use the source too"


def test_a_progressive_nets_step_costs_the_target_the_sources_forward_and_the_adapters() -> None:
    experiment = experiment_of("gpt2", steps=2)
    outcome, _ = run(experiment, "progressive_net")
    scratch, _ = run(experiment, "scratch")
    batch = data_of(experiment).train_batch(0, 0)
    forward, _ = count(lambda: task_of(experiment).source(*batch[:2]))
    adapters = LARGE.layers * 2 * 64 * (SMALL.width**2 + SMALL.width * LARGE.width)
    step = scratch.phases[0].flops_per_step["train"] + forward + 3 * adapters
    assert outcome.phases[0].flops_per_step == {"train": step}
    assert get("progressive_net").method.keeps_source


# --- LiGO


def operator_of(task: Task, **options: Any) -> Any:
    from growbench.methods.ligo import Operator

    return Operator(task, get("ligo", options).method)  # type: ignore[arg-type]


NET2NET = {"width": "selection", "divided": True, "depth_noise": 0.0}


@each_cell
@pytest.mark.parametrize(("sharing", "order"), [("all", "depth_first"), ("all", "width_first"), ("layer", "depth_first")])
def test_ligo_with_selections_is_fpi_and_stacking_bit_for_bit(sharing: str, order: str, cell: Cell) -> None:
    """The maps of FPI from the operator's own one-hot rows, layer by layer where it has one map a layer."""
    task = task_in(cell, large_of(cell))
    operator = operator_of(task, sharing=sharing, order=order, **NET2NET)
    stacked = deepen(task.read(task.source), [0, 1, 2, 0, 1, 2, 0])
    with torch.no_grad():
        found = operator.grown()

    def copies(matrix: Tensor) -> Select:
        return Select(torch.cat([torch.arange(matrix.shape[1]), matrix.argmax(1)]))

    matrices = {key: operator.width[name].detach() for key, name in operator.names.items()}
    if sharing == "all":
        expected = widen(stacked, {key: copies(matrix) for key, matrix in matrices.items()})
        assert_equal(found, expected)
        return
    for name, weight in stacked.items():
        by_layer = weight.axes[0] in (Axis.LAYER, Axis.CLASS_LAYER)
        for number, value in enumerate(weight.value if by_layer else [weight.value]):
            one = replace(weight, value=value, axes=weight.axes[by_layer:])
            mine = {key: matrix for key, matrix in matrices.items() if matrix.dim() == 2 or len(matrix) == len(weight.value)}
            maps = {key: copies(matrix if matrix.dim() == 2 else matrix[number]) for key, matrix in mine.items()}
            now = found[name].value[number] if by_layer else found[name].value
            assert torch.equal(now, widen({name: one}, maps)[name].value), name


@each_cell
def test_ligos_operator_computes_what_the_grown_model_computes(cell: Cell) -> None:
    task = task_in(cell, large_of(cell))
    operator = first(get("ligo").method, task).model.eval()
    batch = data_of(experiment_of(cell.architecture)).train_batch(0, 0)
    with torch.no_grad():
        learned = operator(*batch[:2])
        model = operator.materialise()  # type: ignore[operator]
        torch.testing.assert_close(model.eval()(*batch[:2]), learned, rtol=1e-4, atol=1e-5)


@in_double_precision
@each_cell
def test_ligos_orders_agree_where_all_layers_share_a_map(cell: Cell) -> None:
    task = task_in(cell, large_of(cell))
    depth_first, width_first = (operator_of(task, sharing="all", order=order) for order in ("depth_first", "width_first"))
    assert all(matrix.dim() == 2 for matrix in depth_first.width.values())
    width_first.load_state_dict(depth_first.state_dict())
    with torch.no_grad():
        one, other = depth_first.grown(), width_first.grown()
    for name, weight in one.items():
        torch.testing.assert_close(weight.value, other[name].value, rtol=1e-12, atol=1e-12)


def test_ligo_has_one_map_a_layer_or_one_for_all() -> None:
    task = task_of(experiment_of("bert"))
    shapes = {name: tuple(m.shape) for name, m in operator_of(task).width.items()}
    assert shapes == {"width": (8, 16), "ffn": (7, 32, 64)} | {name: (7, 8, 16) for name in ("query", "key", "value")}
    shapes = {name: tuple(m.shape) for name, m in operator_of(task, order="width_first").width.items()}
    assert shapes["query"] == (3, 8, 16), "before the layers are mixed there are the source's"
    shapes = {name: tuple(m.shape) for name, m in operator_of(task, sharing="all").width.items()}
    assert shapes["query"] == (8, 16)


@each_architecture
def test_ligo_learns_only_what_grows(architecture: str) -> None:
    deeper = operator_of(task_of(experiment_of(architecture, target=replace(SMALL, layers=6))))
    assert deeper.depth and not deeper.width
    wider = operator_of(task_of(experiment_of(architecture, target=times(SMALL, 2))))
    assert wider.width and not wider.depth
    task = task_of(experiment_of(architecture, target=SMALL))
    assert_equal(task.read(first(get("ligo").method, task).model), task.read(task.source))


@pytest.mark.parametrize("target", [replace(LARGE, heads=4), replace(LARGE, width=32, heads=2), replace(LARGE, heads=2)], ids=str)
@each_architecture
def test_ligo_knows_no_heads(architecture: str, target: ModelConfig) -> None:
    """More heads of another size, or as many larger ones."""
    task = task_of(experiment_of(architecture, target=target))
    model = grown(task, "ligo", operator_steps=0)
    assert sizes_of(model) == task.target_config
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("depth", ["stack", "interleave"])
@pytest.mark.parametrize("order", ["depth_first", "width_first"])
def test_ligo_starts_with_the_deepened_small_model_in_the_corner(order: str, depth: str) -> None:
    """Without depth noise: old units are those of the copied layer, exactly; new ones are averages of the old."""
    task = task_of(experiment_of("gpt2"))
    layers = {"stack": [0, 1, 2, 0, 1, 2, 0], "interleave": [0, 0, 0, 1, 1, 2, 2]}[depth]
    old = deepen(task.read(task.source), layers)
    weights = task.read(grown(task, "ligo", operator_steps=0, depth_noise=0.0, order=order, depth=depth))
    for name, weight in weights.items():
        corner = weight.value[tuple(slice(n) for n in old[name].value.shape)]
        assert torch.equal(corner, old[name].value), name
    table = weights["embeddings.token"].value  # (vocabulary, width)
    assert (table[:, 16:].max(1).values <= table[:, :16].max(1).values).all()


@each_cell
def test_ligo_learns_its_operator_and_leaves_the_small_model_alone(cell: Cell) -> None:
    experiment = experiment_of(cell.architecture, small_of(cell), large_of(cell))
    task = task_of(experiment)
    phase = first(get("ligo").method, task)
    operator = phase.model
    before = {name: p.detach().clone() for name, p in operator.named_parameters() if p.requires_grad}
    assert before.keys() == {name for name, _ in operator.named_parameters() if name.startswith(("width.", "depth."))}
    phase.loss(operator, data_of(experiment).train_batch(0, 0), 0).backward()
    assert phase.optimizer is not None
    phase.optimizer.step()
    still = [name for name, p in operator.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert still == [], "every operator and every depth mixing gets a gradient"


def test_ligos_initialisation_has_the_published_scale() -> None:
    """New rows have about sqrt(4 / (3 n)) of the old rows' size; the stacked layer has about 0.93 of the depth weight."""
    ligo: Any = get("ligo").method
    generator = torch.Generator().manual_seed(0)
    rows = ligo.width_rows((256, 512), generator)
    torch.testing.assert_close(rows.sum(1), torch.ones(256))
    old = torch.randn(512, 1000, generator=generator)
    assert (rows @ old).square().mean().sqrt().item() == pytest.approx((4 / (3 * 512)) ** 0.5, rel=0.03)
    depth = ligo.depth_rows(6, 12, generator)
    torch.testing.assert_close(depth.sum(1), torch.ones(12))
    assert depth[torch.arange(12), torch.arange(12) % 6].mean().item() == pytest.approx(0.93, abs=0.01)


def test_ligos_operator_has_the_published_number_of_parameters() -> None:
    """BERT-Small to BERT-Base: 30,147,712 in the authors' code, 1,152 of them depth coefficients, the head's own matrix included.

    Tied, the head shares the residual matrix, which is 131,072 fewer. Depth: they keep two vectors a module for 16 tensors.
    """
    small = ModelConfig(layers=6, width=512, heads=8, tied=False)
    task = task_of(experiment_of("bert", small, ModelConfig(layers=12, width=768, heads=12, tied=False)), device=META)
    operator = first(get("ligo").method, task).model
    parameters = {name: p.numel() for name, p in operator.named_parameters() if p.requires_grad}
    assert sum(parameters.values()) == 30_147_712
    assert sum(n for name, n in parameters.items() if name.startswith("depth.")) == 1_152


def test_scratch_restart_is_scratch_but_for_adams_moments() -> None:
    """Without moments and without their corrections there is nothing to lose: then it is scratch, bit by bit."""
    plain, moments = experiment_of("gpt2", betas=(0.0, 0.0)), experiment_of("gpt2")
    losses = {}
    for name, experiment in (("plain", plain), ("moments", moments)):
        for method in ("scratch", "scratch_restart"):
            outcome, curve = run(experiment, method)
            assert outcome.steps == 9
            losses[name, method] = [row["val_loss"] for row in curve][-7:]  # the restart is after two steps
    assert losses["plain", "scratch"] == losses["plain", "scratch_restart"]
    assert losses["moments", "scratch"] != losses["moments", "scratch_restart"]
