"""Index maps of growth methods: the old unit or layer that each new one copies."""

from __future__ import annotations

import torch
from torch import Tensor

from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import Axis, Maps, Select, refuse_no_layers


def even(old: int, new: int, rng: torch.Generator) -> Tensor:
    """(new,) indices of old units, each as often as the others as far as possible. Norms are preserved if it is exact."""
    whole = torch.arange(old).repeat(new // old)
    return torch.cat([whole, torch.randperm(old, generator=rng)[: new % old]])


def circular(old: int, new: int) -> Tensor:
    """(new,) indices of old units in order, again and again. Norms are preserved if `old` divides `new`."""
    return torch.arange(new) % old


def random(old: int, new: int, rng: torch.Generator) -> Tensor:
    """(new,) indices of old units: the old ones keep their places, new ones copy old ones at random (Net2Net, section 2.2)."""
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=rng)])


def copying(small: ModelConfig, large: ModelConfig, rng: torch.Generator) -> Maps:
    """The maps of function-preserving width growth (Net2Net; FPI of bert2BERT), which copy whole heads and FFN neurons.

    Heads and neurons are copied at random, the residual axis evenly, as are heads that one norm spans. Growth by an integer
    factor preserves the function; other factors change mean and variance in the norms.
    Raises UsageError if whole heads cannot be copied.
    """
    heads, key_value_heads = head_maps(small, large, rng)
    residual = Select(even(small.width, large.width, rng))
    return {
        Axis.WIDTH: residual,
        Axis.HEAD_TRANSFORM: residual,
        Axis.HEADS: Select(_dimensions(heads, small.head_size)),
        Axis.KV_HEADS: Select(_dimensions(key_value_heads, small.head_size)),
        Axis.HEAD_COUNT: Select(heads),
        Axis.FFN: Select(random(small.ffn, large.ffn, rng)),
    }


def tiling(small: ModelConfig, large: ModelConfig) -> Maps:
    """The maps that repeat units in order, heads whole. At integer ratios they are [x, ..., x], as in HyperCloning.

    Raises UsageError if whole heads cannot be copied.
    """
    _check_head_size(small, large)
    key_value_heads = circular(small.key_value_heads, large.key_value_heads)
    heads = _heads_of(small, large, key_value_heads)
    residual = Select(circular(small.width, large.width))
    return {
        Axis.WIDTH: residual,
        Axis.HEAD_TRANSFORM: residual,
        Axis.HEADS: Select(_dimensions(heads, small.head_size)),
        Axis.KV_HEADS: Select(_dimensions(key_value_heads, small.head_size)),
        Axis.HEAD_COUNT: Select(heads),
        Axis.FFN: Select(circular(small.ffn, large.ffn)),
    }


def zero_sum(noise: Tensor, index: Tensor) -> Tensor:
    """Noise on the columns of a matrix, minus its mean over the copies of each old input: the product does not see it.

    `index`: (N,) the old input that each new one copies, or -1 where the input is zero: there the noise stays as it is.
    """
    unit, is_copy = index.clamp(min=0).to(noise.device), (index >= 0).to(noise)
    copies = torch.bincount(index[index >= 0]).to(noise)
    sums = noise.new_zeros(*noise.shape[:-1], len(copies)).index_add(-1, unit, noise * is_copy)
    return noise - (sums / copies).index_select(-1, unit) * is_copy


def head_maps(small: ModelConfig, large: ModelConfig, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(heads,) and (key-value heads,): the old head that each new one copies. Every head keeps its own keys and values.

    Raises UsageError if the head size changes, or if a group of heads becomes too small for its old heads.
    """
    _check_head_size(small, large)
    old_group, new_group = small.heads // small.key_value_heads, large.heads // large.key_value_heads
    # An old group that is split into smaller ones needs enough of them.
    copies = even if new_group < old_group or small.even_heads or large.even_heads else random
    key_value_heads = copies(small.key_value_heads, large.key_value_heads, rng)
    return _heads_of(small, large, key_value_heads), key_value_heads


def _check_head_size(small: ModelConfig, large: ModelConfig) -> None:
    if small.head_size != large.head_size:
        sizes = f"target.width / target.heads = {large.head_size} must equal the source's {small.head_size}"
        if large.head_dim or small.head_dim:
            sizes = f"target.head_dim = {large.head_size} must equal the source's {small.head_size}"
        raise UsageError(f"heads are copied whole: {sizes}")


def _heads_of(small: ModelConfig, large: ModelConfig, key_value_heads: Tensor) -> Tensor:
    """(heads,) the old head that each new one copies, if its key-value head copies the one that the old head has."""
    old_group, new_group = small.heads // small.key_value_heads, large.heads // large.key_value_heads
    heads = torch.empty(large.heads, dtype=torch.int64)
    for old in range(small.key_value_heads):
        groups = (key_value_heads == old).nonzero()  # the new groups with this key-value head
        places = (groups * new_group + torch.arange(new_group)).flatten()
        if len(places) < old_group:
            grown = f"from {small.heads} / {small.key_value_heads} to {large.heads} / {large.key_value_heads}"
            raise UsageError(f"heads / kv_heads {grown}: a group of {old_group} heads has only {len(places)} places to go")
        heads[places] = old * old_group + torch.arange(len(places)) % old_group
    return heads


def _dimensions(heads: Tensor, head_size: int) -> Tensor:
    return (heads[:, None] * head_size + torch.arange(head_size)).flatten()


def stack(old: int, new: int) -> list[int]:
    """Layer l copies layer l mod `old` (StackBERT, algorithm 1). Raises UsageError, as all layer maps, if there is none."""
    refuse_no_layers(old)
    return [layer % old for layer in range(new)]


def stack_and_top(old: int, new: int) -> list[int]:
    """Whole copies of the stack, then the remaining layers from the top of the old one (bert2BERT)."""
    refuse_no_layers(old)
    return list(range(old)) * (new // old) + list(range(old - new % old, old))


def interleave(old: int, new: int) -> list[int]:
    """Layer l copies layer floor(l old / new): every old layer is repeated in place."""
    refuse_no_layers(old)
    return [layer * old // new for layer in range(new)]


def repeat_block(start: int, block: int, old: int, new: int) -> list[int]:
    """The old layers in order; the block from `start` on is repeated behind itself, the last time in part, up to `new` layers."""
    end = start + block
    return [*range(end), *(start + number % block for number in range(new - old)), *range(end, old)]
