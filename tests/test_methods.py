"""Every built-in method on every architecture keeps the interface's promises; each does what its paper says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growbench import architectures, registry
from growbench.config import Experiment, ModelConfig, TextConfig, Training, UsageError
from growbench.cost import Costs
from growbench.data import load
from growbench.method import Method, Phase, Task
from growbench.progress import Progress
from growbench.registry import get
from growbench.trainer import Trainer
from growbench.weights import Axis, Weights

CPU = torch.device("cpu")
CELLS = [(m, a, tied) for m in registry.built_in() for a in architectures.names() for tied in (True, False)]
OPTIONS: dict[str, dict[str, Any]] = {"ligo": {"operator_steps": 3}}
SMALL = ModelConfig(layers=3, width=16, heads=2)
LARGE = ModelConfig(layers=7, width=24, heads=3)  # no integer ratio anywhere


def method_of(name: str) -> Method:
    return get(name, OPTIONS.get(name)).method


def experiment_of(architecture: str, tied: bool = True, source: ModelConfig = SMALL, target: ModelConfig = LARGE) -> Experiment:
    data = TextConfig(corpus="wikipedia-sample", sequence_length=16, vocabulary=300, evaluation_batches=1)
    training = Training(batch=4, steps=9, lr=1e-3, warmup=2)
    models = (replace(source, tied=tied), replace(target, tied=tied))
    return Experiment("mini", "mini", architecture, *models, data, training, training)


def task_of(experiment: Experiment, seed: int = 0) -> Task:
    torch.manual_seed(seed)
    source = architectures.get(experiment.architecture).build(experiment.sizes("source", 300))
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Task.of(experiment, "target", 300, Costs(CPU), seed, source.requires_grad_(False).eval())


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def first(method: Method, task: Task) -> Phase:
    return next(method.phases(task))


def relative_change(model: nn.Module, other: nn.Module) -> float:
    tokens = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, output = model.eval()(tokens), other.eval()(tokens)
    return ((output - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("name", "architecture", "tied"), CELLS)
def test_every_method_trains_every_architecture_to_the_targets_sizes(
    name: str, architecture: str, tied: bool, corpus: Path
) -> None:
    experiment = experiment_of(architecture, tied)
    experiment = replace(experiment, data=replace(experiment.data, corpus=f"files:{corpus}"))
    kind = architectures.get(architecture)
    data = load(experiment.data, kind.objective, kind.tokenizer, experiment.train.batch)
    task, curve = task_of(experiment), []
    source = {key: value.clone() for key, value in task.source.state_dict().items()}
    costs = Costs(CPU)
    trainer = Trainer(task, data, 0, costs, curve.append, Progress("test", 1, None, shown=False))
    outcome = trainer.run(method_of(name))
    model = outcome.model
    assert model is not None and architectures.sizes_of(model) == task.target
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert all(parameter.requires_grad and parameter.isfinite().all() for parameter in model.parameters())
    assert all(torch.equal(value, source[key]) for key, value in task.source.state_dict().items()), "the source was changed"
    scored = [phase for phase in outcome.phases if phase["scored"]]
    assert sum(phase["steps"] for phase in scored) == 9
    assert curve[-1]["scored"] and curve[-1]["val_loss"] < curve[0]["val_loss"] + 1


@pytest.mark.parametrize(("name", "architecture", "tied"), [cell for cell in CELLS if method_of(cell[0]).uses_source])
def test_growth_writes_every_parameter(name: str, architecture: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lay in the large model's storage before is gone."""
    task = task_of(experiment_of(architecture, tied))
    build = Task.build

    def poisoned(self: Task, sizes: ModelConfig | None = None) -> nn.Module:
        model = build(self, sizes)
        for parameter in model.parameters():
            nn.init.constant_(parameter, float("nan"))
        return model

    monkeypatch.setattr(Task, "build", poisoned)
    options = {"operator_steps": 0} if name == "ligo" else {}
    model = first(get(name, options).method, task).model
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", registry.built_in())
def test_every_card_says_what_a_reader_needs(name: str) -> None:
    card = inspect.getdoc(type(method_of(name))) or ""
    assert card.partition("\n")[0].endswith(".")
    assert name == "scratch" or all(word in card for word in ("Formula:", "Paper:", "Function preserving:", "Defaults:", "Costs"))
    assert type(method_of(name)).paper.startswith("https://")


# --- bert2BERT


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("architecture", architectures.names())
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_fpi_preserves_the_function_in_width(architecture: str, tied: bool, factor: int) -> None:
    wide = replace(SMALL, width=16 * factor, heads=2 * factor, ffn=64 * factor)
    task = task_of(experiment_of(architecture, tied, target=wide))
    grown = first(get("bert2bert", {"init": "fpi"}).method, task).model
    assert relative_change(task.source, grown) < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("architecture", architectures.names())
def test_aki_and_stacking_do_not_preserve_the_function(architecture: str) -> None:
    wide = replace(SMALL, width=32, heads=4, ffn=128)
    task = task_of(experiment_of(architecture, target=wide))
    assert relative_change(task.source, first(get("bert2bert").method, task).model) > 1e-3
    task = task_of(experiment_of(architecture, target=replace(wide, layers=6)))
    assert relative_change(task.source, first(get("bert2bert", {"init": "fpi"}).method, task).model) > 1e-3


@pytest.mark.usefixtures("double")
def test_aki_takes_whole_new_units_from_the_next_layer() -> None:
    """Bit by bit: old heads as in the layer, new heads a divided copy of one of the next layer's, the last one's of its own."""
    task = task_of(experiment_of("bert", target=replace(SMALL, width=32, heads=4, ffn=128)))
    small, large = task.read(task.source), task.read(first(get("bert2bert").method, task).model)

    def heads(weights: Weights, name: str, layer: int, dim: int) -> list[Tensor]:
        return list(weights[f"layers.attention.{name}"].value[layer].split(8, dim))

    for layer, upper in ((0, 1), (1, 2), (2, 2)):
        tiled = [torch.cat([rows, rows], 1) / 2 for rows in heads(small, "query.weight", layer, 0)]
        above = [torch.cat([rows, rows], 1) / 2 for rows in heads(small, "query.weight", upper, 0)]
        grown = heads(large, "query.weight", layer, 0)
        for old in (0, 1):
            assert torch.equal(grown[old], tiled[old])
        for new in (2, 3):
            assert any(torch.equal(grown[new], candidate) for candidate in above)
            # the same head's column of the output projection, divided by its number of copies
            number = next(i for i, candidate in enumerate(above) if torch.equal(grown[new], candidate))
            column = heads(large, "out.weight", layer, 1)[new]
            ratio = column[:16] / heads(small, "out.weight", upper, 1)[number]
            assert ratio.std() < 1e-12 and round(1 / ratio.mean().item(), 9) in (2, 3)


def test_stacking_orders() -> None:
    from growbench.methods.bert2bert import stack_and_top
    from growbench.methods.stackbert import stacked

    assert stacked(3, 6) == [0, 1, 2, 0, 1, 2]
    assert stacked(3, 3) == [0, 1, 2]
    assert stack_and_top(3, 7) == [0, 1, 2, 0, 1, 2, 2]
    assert stack_and_top(5, 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 3, 4]
    assert stack_and_top(4, 4) == [0, 1, 2, 3]


def test_bert2bert_refuses_heads_of_another_size() -> None:
    task = task_of(experiment_of("bert", target=replace(LARGE, heads=6)))
    with pytest.raises(UsageError, match="whole heads"):
        first(get("bert2bert").method, task)


# --- StackBERT


def test_stackbert_doubles_the_trained_layers_and_keeps_the_rest() -> None:
    task = task_of(experiment_of("gpt2", target=replace(LARGE, layers=4)))
    phases = get("stackbert").method.phases(task)
    shallow = next(phases).model
    assert architectures.sizes_of(shallow).layers == 1
    for parameter in shallow.parameters():
        nn.init.normal_(parameter)  # as if trained
    from growbench.method import Trained

    before = task.read(shallow)
    deeper = phases.send(Trained(shallow, task.optimizer(shallow), 1, 0.0)).model
    for name, weight in task.read(deeper).items():
        expected = before[name].value
        assert torch.equal(weight.value, torch.cat([expected, expected]) if Axis.LAYER in weight.axes else expected)


# --- LiGO


def test_ligos_operator_computes_what_the_grown_model_computes() -> None:
    for architecture, tied in (("bert", True), ("bert", False), ("gpt2", True)):
        task = task_of(experiment_of(architecture, tied))
        operator = first(get("ligo").method, task).model.eval()
        tokens = torch.randint(300, (4, 16))
        with torch.no_grad():
            learned = operator(tokens)
            grown = operator.materialise()
            torch.testing.assert_close(grown.eval()(tokens), learned)


@pytest.mark.parametrize("order", ["depth_first", "width_first"])
def test_ligo_starts_with_the_stacked_small_model_in_the_corner(order: str) -> None:
    """Without depth noise: old units of layer l are layer l mod 3, exactly; new ones are averages of the old."""
    task = task_of(experiment_of("gpt2"))
    small = task.read(task.source)
    model = first(get("ligo", {"operator_steps": 0, "depth_noise": 0.0, "order": order}).method, task).model
    for name, weight in task.read(model).items():
        old = small[name].value
        if Axis.LAYER in weight.axes:
            old = old[torch.arange(7) % 3]
        corner = weight.value[tuple(slice(n) for n in old.shape)]
        torch.testing.assert_close(corner, old, rtol=0, atol=0)
    table = task.read(model)["embeddings.token"].value  # (vocabulary, width)
    assert (table[:, 16:].max(1).values <= table[:, :16].max(1).values).all()


def test_ligo_learns_its_operator_and_leaves_the_small_model_alone(corpus: Path) -> None:
    experiment = experiment_of("bert")
    experiment = replace(experiment, data=replace(experiment.data, corpus=f"files:{corpus}"))
    data = load(experiment.data, "masked", "wordpiece", 4)
    task = task_of(experiment)
    phases = get("ligo", {"operator_steps": 3}).method.phases(task)
    phase = next(phases)
    operator = phase.model
    before = {name: p.detach().clone() for name, p in operator.named_parameters() if p.requires_grad}
    assert before.keys() == {n for n, _ in operator.named_parameters() if n.startswith(("width.", "depth."))}
    batch = data.train_batch(0, 0)
    phase.loss(operator, batch, 0).backward()
    assert phase.optimizer is not None
    phase.optimizer.step()
    moved = [name for name, p in operator.named_parameters() if p.requires_grad and not torch.equal(p, before[name])]
    assert len(moved) == len(before), "every operator and every depth mixing gets a gradient"


def test_ligos_initialisation_has_the_published_scale() -> None:
    """New rows have about sqrt(4 / (3 n)) of the old rows' size; the stacked layer has about 0.93 of the depth weight."""
    from growbench.methods.ligo import noisy_stack, random_averages

    generator = torch.Generator().manual_seed(0)
    rows = random_averages((256, 512), generator)
    torch.testing.assert_close(rows.sum(1), torch.ones(256))
    old = torch.randn(512, 1000, generator=generator)
    assert (rows @ old).square().mean().sqrt().item() == pytest.approx((4 / (3 * 512)) ** 0.5, rel=0.03)
    depth = noisy_stack(6, 12, 0.03, generator)
    torch.testing.assert_close(depth.sum(1), torch.ones(12))
    assert depth[torch.arange(12), torch.arange(12) % 6].mean().item() == pytest.approx(0.93, abs=0.01)


def test_ligos_operator_has_the_published_number_of_parameters() -> None:
    """BERT-Small to BERT-Base: 30,147,712 in the authors' code, 1,152 of them depth coefficients, the head's own matrix included.

    Tied, the head shares the residual matrix, which is 131,072 fewer. Depth: they keep two vectors a module for 16 tensors.
    """
    small = ModelConfig(layers=6, width=512, heads=8)
    experiment = experiment_of("bert", tied=False, source=small, target=ModelConfig(layers=12, width=768, heads=12))
    with torch.device("meta"):
        source = architectures.get("bert").build(experiment.sizes("source", 300))
    task = Task.of(experiment, "target", 300, Costs(torch.device("meta")), 0, source)
    operator = first(get("ligo").method, task).model
    parameters = {name: p.numel() for name, p in operator.named_parameters() if p.requires_grad}
    assert sum(parameters.values()) == 30_147_712
    assert sum(n for name, n in parameters.items() if name.startswith("depth.")) == 1_152
