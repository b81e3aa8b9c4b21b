"""The methods that grow in depth: layer maps written out by hand, and what each paper says of its schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from growbench.errors import UsageError
from growbench.growth.weights import deepen
from growbench.registry import get
from tests.methods.test_methods import LARGE, SMALL, assert_equal, experiment_of, grown, task_of, times

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
