"""Lazy tensors: what they compute, in whole and in part, is what torch computes at once, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from growbench.growth import lazy_draws
from growbench.growth.lazy import Evaluation, Lazy, Stored
from growbench.growth.selections import Selection, selected

Change = Callable[[Tensor], Tensor]


def lazy(value: Tensor, stored: torch.dtype | None = None, reads: list[Selection] | None = None) -> Lazy:
    """A lazy tensor of these entries, which may be stored in a narrower type; `reads` gets what is read of it."""

    def read(wanted: Selection) -> Tensor:
        if reads is not None:
            reads.append(wanted)
        return selected(value.to(stored or value.dtype), wanted)

    return Lazy(Stored(torch.empty_like(value, device="meta"), read))


def changes(draw: st.DrawFn, value: Tensor) -> Change:
    """A random operation that a tensor like `value` allows."""
    dims = value.dim()
    dim = draw(st.integers(0, dims - 1)) if dims else 0
    size = value.shape[dim] if dims else 1
    other = torch.randn(value.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    index = torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6)))
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    step = draw(st.integers(1, 2))
    order = draw(st.permutations(range(dims)))
    distinct = torch.tensor(draw(st.permutations(range(size)))[: stop - start])

    def written(into: Change, how: Callable[[Tensor], object]) -> Change:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            before = into(x)
            how(into(x))
            return x + before.sum()  # a view sees what is written later, too

        return change

    part = [slice(None)] * dim + [slice(start, stop, step)]
    pointwise: list[Change] = [
        lambda x: x * 0.3,
        lambda x: x / torch.ones(value.shape[dim:]),
        lambda x: x / other,
        lambda x: x + other.to(torch.float64),
        lambda x: other - x,
        lambda x: x.square().sqrt(),
        lambda x: x.to(torch.float64),
        lambda x: x.clone().detach(),
        lambda x: torch.where(other > 0, x, 0.0),
        lambda x: x.where(other[..., :1] > 0 if dims else other > 0, 1.5),
        lambda x: x - x.clamp(min=0),
        lambda x: x + torch.zeros_like(x) + x.new_full(x.shape, 2.0),
    ]
    if not dims:
        return draw(st.sampled_from(pointwise))
    shaped: list[Change] = [
        lambda x: x.index_select(dim, index),
        lambda x: x[tuple([slice(None)] * dim + [index])],
        lambda x: x[tuple([slice(None)] * (dim - 1) + [torch.tensor([[0], [-1]]), index])] if dim else x[index - size],
        lambda x: x[tuple(part)],
        lambda x: x.select(dim, start),
        lambda x: x.narrow(dim, start, stop - start),
        lambda x: torch.stack(x.unbind(dim)[::-1], start % dims),
        lambda x: torch.cat([*x.split(stop, dim), x, x.new_zeros(x.shape)], dim),
        lambda x: x.split([start, size - start], dim)[1],
        lambda x: x.chunk(2, dim)[0],
        lambda x: x.permute(order),
        lambda x: x.transpose(0, dim),
        lambda x: x.mT if dims > 1 else x,
        lambda x: x.unsqueeze(dim).expand(*x.shape[:dim], 3, *x.shape[dim:]),
        lambda x: x.flatten(0, dim),
        lambda x: x.reshape(*x.shape[:dim], 1, *x.shape[dim:]),
        lambda x: x.index_copy(dim, distinct, x.index_select(dim, distinct) * 2),
        lambda x: x.index_add(dim, distinct, x.index_select(dim, distinct)),
        lambda x: x.index_fill(dim, distinct, 7.0),
        lambda x: x + x.mean(dim, keepdim=True),
        lambda x: x.sum(dim),
        lambda x: x.flip(dim),  # has no rule
        lambda x: x * (x.std() if x.numel() > 1 else 1.0),
        lambda x: torch.tensordot(torch.ones(2, x.shape[0], dtype=x.dtype), x, 1),
        written(lambda x: x[tuple(part)], lambda view: view.copy_(torch.full_like(view, 3.0))),
        written(lambda x: x[..., start % x.shape[-1] :], lambda view: view.mul_(2)),
        written(lambda x: x, lambda view: view.index_fill_(dim, distinct, 0.0)),
        written(lambda x: x.select(dim, start), lambda view: view.fill_(5)),
        written(lambda x: x.transpose(0, dim)[0], lambda view: view.zero_()),
    ]
    return draw(st.sampled_from([*pointwise, *shaped]))


@st.composite
def programs(draw: st.DrawFn) -> tuple[Tensor, list[Change], Tensor]:
    """A tensor whose entries bfloat16 holds, operations on it, and their result by torch."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    value = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).bfloat16().float()
    chosen: list[Change] = []
    result = value
    for _ in range(draw(st.integers(1, 6))):
        if result.numel() > 500 or result.dim() > 5:
            break
        chosen.append(changes(draw, result))
        result = chosen[-1](result)
    return value, chosen, result


@st.composite
def selections(draw: st.DrawFn, shape: torch.Size) -> Selection:
    """Consecutive indices, or any, along some dimensions."""
    wanted: dict[int, range | Tensor] = {}
    for dim in draw(st.sets(st.sampled_from(range(len(shape))))) if len(shape) else ():
        if draw(st.booleans()):
            start = draw(st.integers(0, shape[dim] - 1))
            wanted[dim] = range(start, draw(st.integers(start + 1, shape[dim])))
        else:
            wanted[dim] = torch.tensor(draw(st.lists(st.integers(0, shape[dim] - 1), min_size=1, max_size=40)))
    return wanted


@settings(max_examples=60, deadline=None)
@given(data=st.data(), stored=st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_part_of_a_random_program_is_what_torch_computes(data: st.DataObject, stored: torch.dtype) -> None:
    value, chosen, expected = data.draw(programs())
    found: Tensor = lazy(value, stored)
    for change in chosen:
        found = change(found)
    assert isinstance(found, Lazy)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    wanted = data.draw(selections(expected.shape))
    for part in ({}, wanted):
        assert torch.equal(found.part(part).to(expected.dtype), selected(expected, part))
        rounded = found.part(part, Evaluation(torch.bfloat16)).bfloat16()
        assert torch.equal(rounded, selected(expected, part).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operation", [torch.mul, torch.div, torch.add, torch.sub])
def test_what_half_precision_holds_is_computed_in_it_if_the_result_is_rounded_to_it(
    operation: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    bits = torch.randint(-(2**15), 2**15, (2, 9, 999), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    value, other = bits.view(dtype).nan_to_num(1.0).where(bits != 0, 1.0).float()
    held = [other, other[0], lazy(other, dtype), torch.tensor([2]), 0.5, 3]
    wider = [other * (1 + 2**-12), lazy(other * (1 + 2**-12)), torch.tensor([2049]), 0.3, 2**12 + 1]

    def kind(found: Tensor, expected: Tensor) -> torch.dtype:
        """The type that some rows are computed in, if these are right."""
        assert isinstance(found, Lazy)
        part = found.part({0: range(3, 5)}, Evaluation(dtype))
        assert torch.equal(part.to(dtype).view(torch.int16), expected[3:5].to(dtype).view(torch.int16))
        assert torch.equal(found.part({}), expected)
        return part.dtype

    for by in (*held, *wider):
        found = operation(lazy(value, dtype), by)
        expected = operation(value, by.part({}).float() if isinstance(by, Lazy) else by)
        assert kind(found, expected) == (dtype if any(by is each for each in held) else torch.float32)
        both = [torch.stack([each, each.clamp(min=0)], 1) for each in (found, expected)]
        assert kind(*both) == kind(found, expected)
        assert kind(found / other, expected / other) == torch.float32  # of operands that were not rounded


@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_large_draws_are_those_of_torch_whichever_part_is_computed_first(draw: Callable[..., Tensor], monkeypatch) -> None:
    monkeypatch.setattr(lazy_draws, "LARGE", 40)
    monkeypatch.setattr(lazy_draws, "BLOCK", 32)
    shapes = (3, 7, 9), (5,), (64, 2), (50,), (2, 3, 4, 5)

    def drawn(rng: torch.Generator) -> list[Tensor]:
        return [*(draw(shape, generator=rng) for shape in shapes), torch.randperm(9, generator=rng)]

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    expected, rng = drawn(seeded()), seeded()
    with lazy_draws.large_are_lazy(rng):
        assert not any(isinstance(each, Lazy) for each in drawn(seeded()))  # of another generator
        found = drawn(rng)
    assert [isinstance(each, Lazy) for each in found] == [True, False, True, True, True, False]
    parts: list[Selection] = [
        {0: range(1, 2), 1: range(1, 3)},
        {1: torch.tensor([2, 0]), 2: range(1, 4)},
        {0: torch.tensor([1, 0, 1])},
        {},
    ]
    for value, whole in reversed(list(zip(found, expected, strict=True))):
        for part in parts if isinstance(value, Lazy) else []:
            fits = {dim: each for dim, each in part.items() if dim < whole.dim() and int(max(each)) < whole.shape[dim]}
            assert torch.equal(value.part(fits), selected(whole, fits))
        assert isinstance(value, Lazy) or torch.equal(value, whole)


def test_what_is_drawn_into_a_tensor_is_drawn_once_and_in_order(monkeypatch) -> None:
    """As freshly initialised models do, with any generator, whole tensors and parts of them."""
    monkeypatch.setattr(lazy_draws, "LARGE", 40)
    monkeypatch.setattr(lazy_draws, "BLOCK", 32)
    rng = torch.Generator()

    def drawn() -> list[Tensor]:
        torch.manual_seed(2)
        rng.manual_seed(1)
        linear = torch.nn.Linear(9, 7)
        with torch.no_grad():
            linear.weight.normal_(1.0, std=0.5)
            linear.weight[2:, 1].uniform_(-1, 1)
            linear.weight[:, 1:5].normal_()  # torch draws other numbers where entries are not consecutive
            linear.weight.mT[1:3].normal_(generator=rng)
        truncated = torch.nn.init.trunc_normal_(torch.empty(8, 9), std=0.1, generator=rng)
        return [
            linear.weight.detach(),
            linear.bias.detach(),
            truncated,
            torch.randn(8, 8),
            torch.rand(3),
            torch.rand(3, generator=rng),
        ]

    expected = drawn()
    with lazy_draws.large_are_lazy(rng):
        found = drawn()
    assert [isinstance(each, Lazy) for each in found] == [True, False, True, True, False, False]
    for value, whole in zip(found, expected, strict=True):
        for wanted in ({0: range(1, 3)}, {}, {0: torch.tensor([2, 0])}):
            assert torch.equal(
                value.part(wanted) if isinstance(value, Lazy) else selected(value, wanted), selected(whole, wanted)
            )


def test_a_generator_may_be_seeded_between_draws(monkeypatch) -> None:
    """Also with the same seed again. What waits keeps its numbers, and the generator has its own state in the end."""
    monkeypatch.setattr(lazy_draws, "LARGE", 40)
    monkeypatch.setattr(lazy_draws, "BLOCK", 32)
    rng, seeds = torch.Generator(), (1, 7, 7)

    def drawn() -> list[Tensor]:
        found = []
        for seed in seeds:
            rng.manual_seed(seed)
            found += [torch.randn(64, generator=rng), torch.randn(8, 8, generator=rng)]
        return found

    expected = drawn()
    with lazy_draws.large_are_lazy(rng):
        found = drawn()
        assert torch.equal(torch.rand(3, generator=rng), torch.rand(3, generator=after(expected, seeds[-1])))
        drawn()
    assert torch.equal(rng.get_state(), torch.Generator().manual_seed(seeds[-1]).get_state())
    for value, whole in reversed(list(zip(found, expected, strict=True))):
        assert isinstance(value, Lazy) and torch.equal(value.part({}), whole)


def after(drawn: list[Tensor], seed: int) -> torch.Generator:
    """A generator with this seed behind the last two draws."""
    rng = torch.Generator().manual_seed(seed)
    for each in drawn[-2:]:
        torch.randn(each.shape, generator=rng)
    return rng


def test_sums_of_a_layer_are_rounded_as_among_all_layers() -> None:
    """torch divides a sum among threads if it is the only result, which rounds it in another way."""
    value = torch.randn(3, 300, 400, generator=torch.Generator().manual_seed(0))
    mean = lazy(value).square().mean((-2, -1), keepdim=True)
    transposed = lazy(value.mT).square().sum((1, 2))
    assert isinstance(mean, Lazy) and isinstance(transposed, Lazy)
    for layer in range(3):
        assert torch.equal(mean.part({0: range(layer, layer + 1)})[0], value.square().mean((-2, -1), keepdim=True)[layer])
        assert torch.equal(transposed.part({0: range(layer, layer + 1)})[0], value.mT.square().sum((1, 2))[layer])


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 2), (2,)])
def test_a_sum_is_rounded_alike_whichever_of_its_entries_are_wanted(dims: tuple[int, ...]) -> None:
    """torch adds in another order where its vectors do not reach, and along a row that stands alone."""
    whole = torch.randn(17, 100, 65, generator=torch.Generator().manual_seed(0))
    for value in (whole, whole.transpose(0, 2)):
        for reduce in (Tensor.sum, Tensor.mean, Tensor.std, Tensor.logsumexp, torch.linalg.vector_norm):
            found, expected = reduce(lazy(value), dim=dims), reduce(value, dim=dims)
            assert isinstance(found, Lazy)
            for dim, size in enumerate(expected.shape):
                for wanted in (range(1, 2), range(3, size), torch.tensor([size - 1, 0])):
                    assert torch.equal(found.part({dim: wanted}), selected(expected, {dim: wanted}))


def test_only_the_layers_and_rows_that_are_wanted_are_read() -> None:
    """Width and depth grown as methods do: three rows of one new layer."""
    reads: list[Selection] = []
    layers = [lazy(torch.randn(8, 6), reads=reads) for _ in range(5)]
    index, copies = torch.arange(16) % 8, torch.full((12,), 2.0)
    wide = torch.stack(layers).index_select(1, index).index_select(2, torch.arange(12) % 6) / copies
    found = wide.index_select(0, torch.tensor([0, 1, 2, 3, 4, 3, 4])).unbind(0)[5]
    assert isinstance(found, Lazy)
    found.part({0: range(7, 10)})
    assert [list(read[0]) for read in reads] == [[7, 0, 1]]


def test_what_is_changed_after_its_use_is_an_error() -> None:
    mask = torch.ones(3)
    found = lazy(torch.randn(3)) * mask
    mask[0] = 0
    assert isinstance(found, Lazy)
    with pytest.raises(RuntimeError, match="changed in place"):
        found.part({})
