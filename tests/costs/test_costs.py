"""What training costs, against closed forms, fvcore and the paper's golden values. Equality, no tolerance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from growbench import architectures
from growbench.config.schema import ModelConfig
from growbench.costs.accounts import Unit
from growbench.costs.flops import count, fvcore_forward
from growbench.costs.ledger import Costs, Stopwatch
from growbench.costs.published import ligo_paper_construction, ligo_paper_step, paper_step
from growbench.costs.teaching import teacher
from growbench.data import Batch
from growbench.errors import UsageError
from growbench.method import Task, task_loss
from growbench.method.loss import cross_entropy

TINY = ModelConfig(layers=2, width=32, heads=4, vocabulary=128, positions=64, patch=3)
OTHER = {"kv_heads": 2, "class_layers": 1, "dropout": 0.1, "drop_path": 0.1, "tied": False}
CPU, META = torch.device("cpu"), torch.device("meta")
NAMES = architectures.names()
IMAGES = [name for name in NAMES if architectures.get(name).objective == "classes"]
MASKED = [name for name in NAMES if architectures.get(name).objective == "masked"]
GATED = [name for name in NAMES if any(row.name == "ffn.gate.weight" for row in architectures.get(name).table(TINY))]

each = pytest.mark.parametrize("name", NAMES)
WHOLE = [(name, {"ffn": 50, "layers": 3}) for name in NAMES]
OPTIONS = [(name, {key: OTHER[key]}) for name in NAMES for key in architectures.get(name).options]
each_option = pytest.mark.parametrize(("name", "options"), WHOLE + OPTIONS)
# An option does the same in each layer, but paths are dropped in upper ones alone.
each_option_in_a_layer = pytest.mark.parametrize(
    ("name", "options"), WHOLE + [(name, option if "drop_path" in option else option | {"layers": 1}) for name, option in OPTIONS]
)


def batch_of(name: str, sizes: ModelConfig, rows: int = 2) -> Batch:
    if name in IMAGES:
        side = sizes.patch * math.isqrt(sizes.positions)
        return Batch(torch.randn(rows, 3, side, side), None, torch.randint(sizes.vocabulary, (rows,)))
    tokens = torch.randint(sizes.vocabulary, (rows, sizes.positions))
    if name not in MASKED:
        return Batch(tokens, None, tokens.flatten())
    labelled = torch.arange(rows)[:, None] * sizes.positions + torch.arange(1, 10)
    return Batch(tokens, labelled.flatten(), tokens[:, 1:10].flatten())


def products(name: str, sizes: ModelConfig, batch: Batch) -> Counter[str]:
    """FLOPs of a forward pass by part, derived by hand. A product of (m, k) and (k, n) is 2 m k n.

    Text: a sequence has T tokens. ViT: P patches and the class token, T = P + 1. CaiT: P patches, T = P; the class token
    joins them in the layers of class attention only.
    """
    rows, d, ffn, patches = len(batch.inputs), sizes.width, sizes.ffn, sizes.positions
    keys = sizes.key_value_heads * sizes.head_size
    length = patches + {"vit": 1, "dinov3": 5}.get(name, 0)  # a class token, four registers
    tokens, pairs = rows * length, rows * length * length
    parts = Counter(
        {
            # a convolution whose windows do not overlap: each patch's 3 x side x side values times a matrix
            "patches": rows * patches * 3 * sizes.patch**2 * d if name in IMAGES else 0,
            # query and output (d, d); key and value (d, kv heads x head size)
            "projections": sizes.layers * tokens * (2 * d * d + 2 * d * keys),
            # query x key and weights x value: head size for each pair of tokens and each query head, also where masked
            "attention": sizes.layers * pairs * 2 * d,
            # talking heads: a (heads, heads) product before and one after the softmax, for each pair of tokens
            "talking": sizes.layers * pairs * 2 * sizes.heads**2 if name == "cait" else 0,
            # up and down, and the gate if there is one
            "ffn": sizes.layers * tokens * (3 if name in GATED else 2) * d * ffn,
            # timm: query, output and FFN of the class token alone, key and value of the class token and all patches;
            # one query attends to P + 1 tokens; heads do not talk
            "class": sizes.class_layers
            * rows
            * (2 * d * d + 2 * d * ffn + (patches + 1) * (2 * d * d + 2 * d))
            * (name == "cait"),
            # the transform of masked models, of labelled positions only
            "transform": len(batch.labels) * d * d if name in MASKED else 0,
            # the decoder of labelled positions; images: the classifier of the class token
            "decoder": len(batch.labels) * d * sizes.vocabulary,
        }
    )
    return Counter({part: 2 * multiply_adds for part, multiply_adds in parts.items()})


def training(parts: Counter[str]) -> int:
    """Backward is two products of the forward's size, one for the weights and one for the inputs: 3 in all.

    But images need no gradient, so the projection of patches has one.
    """
    return 3 * parts.total() - parts["patches"]


@each_option_in_a_layer
def test_our_counter_equals_the_closed_form_and_fvcore(name: str, options: dict[str, Any]) -> None:
    sizes = replace(TINY, **options)
    model, batch = architectures.get(name).build(sizes), batch_of(name, sizes)
    expected = products(name, sizes, batch)
    with torch.no_grad():
        assert count(lambda: model.eval()(batch.inputs, batch.positions))[0] == expected.total()
        assert fvcore_forward(model, batch) == expected.total()
    model.train()
    assert count(lambda: task_loss(model, batch).backward())[0] == training(expected)


@each_option_in_a_layer
def test_counting_on_the_meta_device_is_exact(name: str, options: dict[str, Any]) -> None:
    sizes = replace(TINY, **options)
    with META:
        model = architectures.get(name).build(sizes).train()
    batch = batch_of(name, sizes)
    on_meta = batch.to(META)
    assert count(lambda: task_loss(model, on_meta).backward())[0] == training(products(name, sizes, batch))


def test_masks_of_local_attention_save_nothing() -> None:
    """Attention is charged in full, beyond the window of ModernBERT's local layers too."""
    sizes = replace(TINY, positions=200)
    model, batch = architectures.get("modernbert").build(sizes), batch_of("modernbert", sizes)
    expected = products("modernbert", sizes, batch).total()
    with torch.no_grad():
        assert count(lambda: model(batch.inputs, batch.positions))[0] == expected == fvcore_forward(model, batch)


def test_the_counter_of_whole_sequences_gives_the_measured_values() -> None:
    """Two layers, width 32, 128 tokens of vocabulary, 2 x 64: forward 9,699,328 (BERT) and 9,437,184 (GPT-2)."""
    tokens = torch.randint(128, (2, 64))
    for name, forward in (("bert", 9_699_328), ("gpt2", 9_437_184)):
        model = architectures.get(name).build(TINY)
        assert count(lambda: model(tokens))[0] == forward  # noqa: B023


@each_option
def test_frozen_lower_layers_cost_their_forward_only(name: str, options: dict[str, Any]) -> None:
    """Embeddings and layer 0 frozen. What backward is left out, by hand: two products for each of the forward's."""
    sizes = replace(TINY, **options)
    architecture = architectures.get(name)
    model, batch = architecture.build(sizes).train(), batch_of(name, sizes)
    for key, layer, parameter in architecture.parameters(model):
        if key.startswith("embeddings.") or (layer == 0 and key.startswith("layers.")):
            parameter.requires_grad_(False)
    whole = products(name, sizes, batch)
    layer_0 = (whole - products(name, replace(sizes, layers=sizes.layers - 1), batch)).total()
    saved = 2 * layer_0 + whole["patches"]  # of the patches' backward, there was one product
    if sizes.tied and name not in IMAGES:
        saved += whole["decoder"]  # no gradient for the frozen embedding that it shares
    normed = any(row.key == "layers.attention.norm.weight" for row in architecture.table(sizes))
    if architecture.norm == "post" or not normed:  # layer 1 projects the frozen layer's output itself, not a trained norm of it
        d, keys = sizes.width, sizes.key_value_heads * sizes.head_size
        saved += (
            whole["projections"] // sizes.layers * (d + 2 * keys) // (2 * d + 2 * keys)
        )  # no input gradient of query, key, value
    assert count(lambda: task_loss(model, batch).backward())[0] == training(whole) - saved


def test_products_of_matrix_and_vector_are_counted() -> None:
    m, n = torch.randn(5, 7), torch.randn(7)
    assert count(lambda: m @ n)[0] == 70
    assert count(lambda: torch.addmv(torch.zeros(5), m, n))[0] == 70
    assert count(lambda: n @ n)[0] == 14


A, B = torch.randn(5, 7), torch.randn(2, 5, 5)
SAME_PRODUCTS: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (lambda: torch.zeros(5, 5).addmm_(A, A.mT), lambda: A @ A.mT),
    (lambda: torch.zeros(2, 5, 5).baddbmm_(B, B), lambda: B @ B),
    (lambda: torch.addbmm(torch.zeros(5, 5), B, B), lambda: B @ B),
    (lambda: torch.zeros(5, 5).addbmm_(B, B), lambda: B @ B),
    (lambda: torch.zeros(5).addmv_(A, A[0]), lambda: A @ A[0]),
    (lambda: torch.vdot(A[0], A[1]), lambda: A[0] @ A[1]),
    (lambda: torch.cdist(A, A, compute_mode="use_mm_for_euclid_dist"), lambda: torch.randn(5, 9) @ torch.randn(9, 5)),
]


@pytest.mark.parametrize(("other", "plain"), SAME_PRODUCTS)
def test_a_product_counts_alike_however_it_is_written(other: Callable[[], Any], plain: Callable[[], Any]) -> None:
    assert count(other)[0] == count(plain)[0] > 0


def test_a_product_that_is_made_known_after_its_first_use_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(lambda: torch.hypot(A, A))[0] == 0
    monkeypatch.setitem(flop_registry, torch.ops.aten.hypot, lambda a, b, out_val: 3 * a.numel())
    assert count(lambda: torch.hypot(A, A))[0] == 3 * 35


UNCOUNTED: list[Callable[[], Any]] = [
    lambda: nn.functional.bilinear(A, A, torch.randn(3, 7, 7)),
    lambda: torch.sparse.mm(A.to_sparse(), A.mT),
    lambda: nn.LSTM(7, 7)(A),
]


@pytest.mark.parametrize("product", UNCOUNTED)
def test_a_product_that_the_counter_does_not_know_is_an_error(product: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match="is a product that the FLOP counter does not know: write it with matmul or einsum"):
        count(product)


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
    from growbench.config.schema import Experiment, TextConfig, Training
    from growbench.planning.plan import plan
    from growbench.registry import get

    data = TextConfig(corpus="wikipedia-sample", sequence_length=128, vocabulary=30522)
    training = Training(batch=256, steps=400_000, lr=2e-4)
    experiment = Experiment("x", "x", "bert", bert(6, 512), bert(12, 768), data, training, training)
    operator, train = plan(experiment, get("ligo"), 30522)
    assert operator.steps * operator.paper_flops_per_step == 3_612_974_851_276_800
    assert train.paper_flops_per_step == 15_068_231_331_840
    plain, fused = train.flops_per_step["train"], operator.flops_per_step["operator"]
    assert 1 < fused / plain < 1.02


@each
def test_a_forward_without_gradients_counts_as_one_with_them(name: str) -> None:
    """As a teacher's, or a check's: torch's counter by module fails there on CaiT, whose class token is a parameter's view."""
    model, batch = architectures.get(name).build(TINY), batch_of(name, TINY)
    with_gradients, _ = count(lambda: model(batch.inputs, batch.positions))
    with torch.no_grad():
        assert count(lambda: model(batch.inputs, batch.positions))[0] == with_gradients > 0


def test_charges_land_in_their_accounts() -> None:
    costs = Costs(CPU)
    a = torch.randn(10, 10)
    assert costs.charged("growth", lambda: a @ a).shape == (10, 10)
    assert costs.flops["growth"] == 2000 and costs.seconds["growth"] > 0
    costs.flops["evaluation"] = costs.flops["source"] = 7
    assert costs.total(Unit.FLOPS) == 2000


def test_a_teachers_forward_is_charged_apart_and_without_gradients() -> None:
    costs = Costs(CPU)
    small, student = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    x = torch.randn(3, 8)

    def step() -> None:
        with teacher():
            goal = small(x)
        assert not goal.requires_grad
        (student(x) - goal).square().sum().backward()

    forward = 2 * 3 * 8 * 4
    with costs.keeping():
        assert costs.probe(step, "train") == {"train": 2 * forward, "teacher": forward}  # no input gradient
        assert set(costs.teacher_seconds().values()) == {0}  # a probe is not charged
        step()
    assert costs.teacher_seconds()["teacher"] > 0


def test_a_probe_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Costs(CPU).probe(lambda: torch.nn.functional.dropout(torch.ones(9, requires_grad=True)).sum().backward(), "train")
    assert torch.equal(torch.rand(4), expected)


def test_a_stopwatch_reads_each_interval_once() -> None:
    watch = Stopwatch(CPU)
    for _ in range(4):
        watch.mark()
    seconds = watch.read()
    assert len(seconds) == 3 and min(seconds) >= 0 and watch.read() == []


def meta_bert(sizes: ModelConfig) -> nn.Module:
    with META:
        return architectures.get("bert").build(sizes)


def test_paper_step_of_a_plain_model_needs_only_its_sizes() -> None:
    assert paper_step(architectures.get("bert"), meta_bert(TINY), 2, 64) == ligo_paper_step(TINY, 2, 64)


@pytest.mark.parametrize(("layers", "flops"), [(3, "6.45e+12"), (6, "6.35e+12"), (9, "7.78e+12"), (12, "9.22e+12")])
def test_paper_step_of_a_partly_frozen_model_has_no_backward_of_what_is_frozen(layers: int, flops: str) -> None:
    """Stages of MSLT: the top three layers train, and the head; from the second stage on, the embeddings are frozen."""
    sizes, architecture = bert(layers, 768), architectures.get("bert")
    model = meta_bert(sizes)
    for key, layer, parameter in architecture.parameters(model):
        if (key.startswith("embeddings.") and layers > 3) or (layer is not None and layer < layers - 3):
            parameter.requires_grad_(False)
    step = paper_step(architecture, model, 256, 128)
    assert f"{step:.2e}" == flops
    assert step == ligo_paper_step(sizes, 256, 128, trained_layers=3, trained_embeddings=layers == 3)
    assert paper_step(architecture, model.requires_grad_(True), 256, 128) == ligo_paper_step(sizes, 256, 128)


def test_the_papers_counter_of_a_joint_stage_is_that_of_the_whole_model() -> None:
    assert f"{ligo_paper_step(bert(12, 768), 256, 128, trained_layers=12):.3e}" == "1.507e+13"


def test_freezing_takes_a_layers_backward_from_the_papers_counter_once() -> None:
    """Counted equal to forward: half of what the layer adds to a step."""
    sizes = bert(6, 512)
    layer = (ligo_paper_step(sizes, 1, 128) - ligo_paper_step(replace(sizes, layers=5), 1, 128)) // 2
    for trained in range(7):
        saved = ligo_paper_step(sizes, 1, 128) - ligo_paper_step(sizes, 1, 128, trained_layers=trained)
        assert saved == (6 - trained) * layer


def test_a_count_of_its_own_is_taken_where_a_phase_has_one() -> None:
    architecture = architectures.get("bert")
    assert paper_step(architecture, nn.Linear(2, 2), 2, 64) is None
    assert paper_step(architecture, nn.Linear(2, 2), 2, 64, own=lambda batch, length: 1000 * batch + length) == 2064


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cross_entropy_of_soft_labels_equals_torchs(dtype: torch.dtype) -> None:
    """And its definition: the mean over the rows of - sum p log q."""
    logits = torch.randn(50, 30, dtype=dtype, requires_grad=True)
    labels = torch.rand(50, 30, dtype=dtype).softmax(-1)
    gradients = []
    for loss in (
        cross_entropy(logits, labels),
        torch.nn.functional.cross_entropy(logits, labels),
        -(labels * logits.log_softmax(-1)).sum(-1).mean(),
    ):
        torch.testing.assert_close(loss, cross_entropy(logits, labels))
        gradients += torch.autograd.grad(3 * loss, logits)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradients[0], gradient)


def test_cross_entropy_of_one_hot_rows_is_that_of_the_labels() -> None:
    logits, labels = torch.randn(50, 30, dtype=torch.float64, requires_grad=True), torch.randint(30, (50,))
    hard, soft = cross_entropy(logits, labels), cross_entropy(logits, torch.eye(30, dtype=torch.float64)[labels])
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (hard, soft)))


def test_cross_entropy_of_bf16_logits_and_soft_labels_is_computed_in_float32() -> None:
    logits = torch.randn(50, 30).bfloat16().requires_grad_()
    labels = torch.rand(50, 30).softmax(-1)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.float(), labels))
    loss.backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_a_source_is_there_only_for_methods_that_use_one() -> None:
    from growbench.config import loading

    task = Task.of(loading.load("gpt2-tiny"), "target", 128, CPU)
    with pytest.raises(RuntimeError, match="uses_source"):
        _ = task.source
