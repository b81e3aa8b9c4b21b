"""What training costs, against closed forms, fvcore and the paper's golden values. Equality, no tolerance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from growbench import architectures
from growbench.config import ModelConfig
from growbench.cost import Costs, Stopwatch, count, fvcore_forward, ligo_paper_construction, ligo_paper_step, paper_step
from growbench.data import Batch
from growbench.loss import cross_entropy
from growbench.method import Task, task_loss

TINY = ModelConfig(layers=2, width=32, heads=4, vocabulary=128, positions=64)
CPU, META = torch.device("cpu"), torch.device("meta")
CELLS = [(name, tied, dropout) for name in architectures.names() for tied in (True, False) for dropout in (0.0, 0.1)]


def batch_of(name: str, rows: int, length: int, vocabulary: int) -> Batch:
    tokens = torch.randint(vocabulary, (rows, length))
    if architectures.get(name).objective == "causal":
        return Batch(tokens, None, tokens.flatten())
    scored = torch.arange(rows)[:, None] * length + torch.arange(1, 10)
    return Batch(tokens, scored.flatten(), tokens[:, 1:10].flatten())


def closed_form_forward(name: str, sizes: ModelConfig, batch: Batch) -> int:
    """2 x matrix parameters x tokens, attention's two products, and the head at the scored positions."""
    rows, length = batch.inputs.shape
    d, scored = sizes.width, len(batch.labels)
    block = (4 * d * d + 2 * d * sizes.ffn) * rows * length + 2 * rows * length * length * d
    head = scored * d * sizes.vocabulary + (scored * d * d if name == "bert" else 0)
    return 2 * (sizes.layers * block + head)


@pytest.mark.parametrize(("name", "tied", "dropout"), CELLS)
def test_our_counter_equals_the_closed_form_and_fvcore(name: str, tied: bool, dropout: float) -> None:
    sizes = replace(TINY, tied=tied, dropout=dropout)
    model, batch = architectures.get(name).build(sizes), batch_of(name, 2, 64, 128)
    expected = closed_form_forward(name, sizes, batch)
    with torch.no_grad():
        assert count(lambda: model(batch.inputs, batch.positions))[0] == expected
        assert fvcore_forward(model, batch) == expected
    model.train()
    assert count(lambda: task_loss(model, batch).backward())[0] == 3 * expected


def test_the_counter_of_whole_sequences_gives_the_measured_values() -> None:
    """Two layers, width 32, 128 tokens of vocabulary, 2 x 64: forward 9,699,328 (BERT) and 9,437,184 (GPT-2)."""
    tokens = torch.randint(128, (2, 64))
    for name, forward in (("bert", 9_699_328), ("gpt2", 9_437_184)):
        model = architectures.get(name).build(TINY)
        assert count(lambda: model(tokens))[0] == forward  # noqa: B023


def test_counting_on_the_meta_device_is_exact() -> None:
    for name in architectures.names():
        with META:
            model = architectures.get(name).build(TINY)
        batch = batch_of(name, 2, 64, 128)
        on_meta = batch.to(META)
        assert count(lambda: task_loss(model, on_meta).backward())[0] == 3 * closed_form_forward(name, TINY, batch)  # noqa: B023


def test_frozen_lower_layers_cost_their_forward_only() -> None:
    model, batch = architectures.get("gpt2").build(TINY), batch_of("gpt2", 2, 64, 128)
    for part in (model.transformer.wte, model.transformer.wpe, model.transformer.h[0]):
        part.requires_grad_(False)
    one_block = closed_form_forward("gpt2", TINY, batch) - closed_form_forward("gpt2", replace(TINY, layers=1), batch)
    head = 2 * 2 * 64 * 32 * 128  # tied to the frozen embedding: no weight gradient
    assert (
        count(lambda: task_loss(model, batch).backward())[0]
        == 3 * closed_form_forward("gpt2", TINY, batch) - 2 * one_block - head
    )


def test_products_of_matrix_and_vector_are_counted() -> None:
    m, n = torch.randn(5, 7), torch.randn(7)
    assert count(lambda: m @ n)[0] == 70
    assert count(lambda: torch.addmv(torch.zeros(5), m, n))[0] == 70
    assert count(lambda: n @ n)[0] == 14


def bert(layers: int, width: int) -> ModelConfig:
    return ModelConfig(layers=layers, width=width, heads=width // 64, vocabulary=30522, positions=128)


@pytest.mark.parametrize(
    ("sizes", "flops"),
    [
        (bert(6, 512), 4.97735e12),
        (bert(3, 768), 6.45246e12),
        (bert(6, 768), 9.32438e12),
        (bert(9, 768), 1.219631e13),
        (bert(24, 1024), 4.530815e13),
    ],
)
def test_golden_values_of_the_papers_counter(sizes: ModelConfig, flops: float) -> None:
    assert ligo_paper_step(sizes, 256, 128) == pytest.approx(flops, rel=1e-6)


def test_golden_values_of_bert_base_and_ligos_operator() -> None:
    small, base = bert(6, 512), bert(12, 768)
    step = ligo_paper_step(base, 256, 128)
    assert step == 15_068_231_331_840
    assert ligo_paper_construction(small, base) == 12 * 3_427_981_312
    assert 100 * (step + 2 * 256 * ligo_paper_construction(small, base)) == 3_612_974_851_276_800
    assert 400_000 * step == pytest.approx(6.0273e18, rel=1e-5)


def test_ligos_own_operator_reports_the_golden_value() -> None:
    """100 fused steps from the method itself, on the meta device: 3.6129748512768e15."""
    from growbench.config import Experiment, TextConfig, Training
    from growbench.plan import plan
    from growbench.registry import get

    data = TextConfig(corpus="wikipedia-sample", sequence_length=128, vocabulary=30522)
    training = Training(batch=256, steps=400_000, lr=2e-4)
    experiment = Experiment("x", "x", "bert", bert(6, 512), bert(12, 768), data, training, training)
    operator, train = plan(experiment, get("ligo"), 30522)
    assert operator.steps * operator.paper_flops_per_step == 3_612_974_851_276_800
    assert train.paper_flops_per_step == 15_068_231_331_840
    plain, fused = train.flops_per_step["train"], operator.flops_per_step["operator"]
    assert 1 < fused / plain < 1.02


def test_charges_land_in_their_accounts() -> None:
    costs = Costs(CPU)
    a = torch.randn(10, 10)
    assert costs.charged("growth", lambda: a @ a).shape == (10, 10)
    assert costs.flops["growth"] == 2000 and costs.seconds["growth"] > 0
    costs.flops["evaluation"] = costs.flops["source"] = 7
    assert costs.total("flops") == 2000


def test_a_teachers_forward_is_charged_apart_and_without_gradients() -> None:
    costs = Costs(CPU)
    teacher, student = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    x = torch.randn(3, 8)

    def step() -> None:
        with costs.teacher():
            goal = teacher(x)
        assert not goal.requires_grad
        (student(x) - goal).square().sum().backward()

    forward = 2 * 3 * 8 * 4
    assert costs.probe(step, "train") == {"train": 2 * forward, "teacher": forward}  # no input gradient
    assert costs.teacher_seconds() == 0  # a probe is not charged
    step()
    assert costs.teacher_seconds() > 0


def test_a_probe_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Costs(CPU).probe(lambda: torch.nn.functional.dropout(torch.ones(9, requires_grad=True)).sum().backward(), "train")
    assert torch.equal(torch.rand(4), expected)


def test_a_stopwatch_reads_each_lap_once() -> None:
    watch = Stopwatch(CPU)
    for _ in range(4):
        watch.mark()
    laps = watch.read()
    assert len(laps) == 3 and min(laps) >= 0 and watch.read() == []


def test_paper_step_of_a_plain_model_needs_only_its_sizes() -> None:
    model = architectures.get("bert").build(TINY)
    assert paper_step(model, 2, 64) == ligo_paper_step(TINY, 2, 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cross_entropy_equals_torchs(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 30, dtype=dtype, requires_grad=True)
    labels = torch.randint(30, (50,))
    ours = cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    theirs = torch.nn.functional.cross_entropy(logits, labels)
    (expected,) = torch.autograd.grad(3 * theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_cross_entropy_of_bf16_logits_is_computed_in_float32() -> None:
    logits = torch.randn(50, 30).bfloat16().requires_grad_()
    labels = torch.randint(30, (50,))
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.float(), labels))
    loss.backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_a_source_is_there_only_for_methods_that_use_one() -> None:
    from growbench import config

    task = Task.of(config.load("gpt2-tiny"), "target", 128, Costs(CPU))
    with pytest.raises(RuntimeError, match="uses_source"):
        _ = task.source
