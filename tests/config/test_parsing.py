"""Plain values to a dataclass: what each type takes and what it refuses, in one line; the types a method's author may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growbench.config.loading import parse
from growbench.errors import UsageError
from growbench.method import Method, Phases, Task, tunable

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Order(Enum):
    DEPTH = "depth"
    WIDTH = "width"


class Opaque:
    """A type that no text file can hold."""


@dataclass(frozen=True)
class Types:
    """One field a type."""

    whole: int = 1
    number: float = 1.0
    text: str = ""
    flag: bool = False
    length: int | float = 1
    maybe: float | None = None
    named: int | str = 1
    one_of: Literal["linear", "cosine", 2] = "linear"
    order: Order = Order.DEPTH
    place: Path = Path()
    pair: tuple[float, float] = (0.0, 0.0)
    many: tuple[int, ...] = ()
    layers: list[int] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    after: Callable[[], None] | Opaque = Opaque()  # noqa: RUF009
    constant: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.whole < 0:
            raise UsageError(f"whole = {self.whole}: must be\nat least 0")
        if self.text == "wrong":
            raise ValueError("wrong\ntext")


def refusal(cls: type, **values: Any) -> str:
    """The text of the UsageError, which must be one line."""
    with pytest.raises(UsageError) as caught:
        parse(cls, values, "mine")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("whole", 3, 3),
        ("number", 3, 3.0),
        ("number", 1e-300, 1e-300),
        ("length", 3, 3),
        ("length", 3.0, 3.0),
        ("length", 0.5, 0.5),
        ("maybe", 2, 2.0),
        ("maybe", None, None),
        ("named", "3", "3"),
        ("one_of", "cosine", "cosine"),
        ("one_of", 2, 2),
        ("order", "width", Order.WIDTH),
        ("place", "a/b", Path("a/b")),
        ("pair", [1, 0.5], (1.0, 0.5)),
        ("many", (1, 2, 3), (1, 2, 3)),
        ("layers", [4, 2], [4, 2]),
        ("rates", {"head": 1}, {"head": 1.0}),
    ],
)
def test_a_value_is_taken_as_its_type(key: str, value: Any, meant: Any) -> None:
    made = parse(Types, {key: value}, "mine")
    assert (getattr(made, key), type(getattr(made, key))) == (meant, type(meant))
    assert made == Types(**{key: meant}), "the other fields have their defaults"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("whole", 3.0, "mine.whole = 3.0: must be a valid integer"),
        ("whole", True, "mine.whole = True: must be a valid integer"),
        ("whole", "3", "mine.whole = '3': must be a valid integer"),
        ("whole", None, "mine.whole = None: must be a valid integer"),
        ("whole", [3], "mine.whole = [3]: must be a valid integer"),
        ("number", "0.5", "mine.number = '0.5': must be a valid number"),
        ("number", False, "mine.number = False: must be a valid number"),
        ("number", float("inf"), "mine.number = inf: must be a finite number"),
        ("number", 10**400, f"mine.number = 1{'0' * 89} ... {'0' * 20}: must be a finite number"),
        ("text", 3, "mine.text = 3: must be a valid string"),
        ("flag", 1, "mine.flag = 1: must be a valid boolean"),
        ("flag", "true", "mine.flag = 'true': must be a valid boolean"),
        ("length", "long", "mine.length = 'long': must be a valid integer or a valid number"),
        ("length", True, "mine.length = True: must be a valid integer or a valid number"),
        ("length", float("nan"), "mine.length = nan: must be a valid integer or a finite number"),
        ("maybe", "none", "mine.maybe = 'none': must be a valid number"),
        ("named", 1.5, "mine.named = 1.5: must be a valid integer or a valid string"),
        ("one_of", "linaer", "mine.one_of = 'linaer': must be 'linear', 'cosine' or 2"),
        ("order", "both", "mine.order = 'both': must be 'depth' or 'width'"),
        ("pair", 0.5, "mine.pair = 0.5: must be a valid array"),
        ("pair", [0.5], "mine.pair[1] is missing"),
        ("pair", [1, 2, 3], "mine.pair = [1, 2, 3]: Tuple should have at most 2 items after validation, not 3"),
        ("many", [1, 2.5], "mine.many[1] = 2.5: must be a valid integer"),
        ("layers", "12", "mine.layers = '12': must be a valid array"),
        ("rates", 3, "mine.rates = 3: must be a table"),
        ("rates", {"head": "high"}, "mine.rates.head = 'high': must be a valid number"),
        ("whole", -1, "mine: whole = -1: must be at least 0"),
        ("text", "wrong", "mine = {'text': 'wrong'}: Value error, wrong text"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(key: str, value: Any, said: str) -> None:
    assert refusal(Types, **{key: value}) == said


def test_an_unknown_key_is_refused() -> None:
    """A constant of the class too."""
    assert refusal(Types, legnth=4).startswith("unknown key mine.legnth: did you mean length? known: ")
    assert refusal(Types, constant=4).startswith("unknown key mine.constant: ")


@given(value=st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.lists(st.integers()), st.none()))
def test_a_union_takes_exactly_what_its_types_take(value: Any) -> None:
    """`int | float`: integers stay integers, finite floats stay floats, bit by bit; all else is refused."""
    number = type(value) is int or (type(value) is float and abs(value) != float("inf") and value == value)
    if number:
        made = parse(Types, {"length": value}, "mine").length
        assert (made, type(made)) == (value, type(value))
    else:
        assert refusal(Types, length=value).startswith("mine.length = ")


def test_a_required_field_is_named() -> None:
    @dataclass(frozen=True)
    class Required:
        steps: int
        rate: float = 1.0

    assert refusal(Required, rate=2.0) == "mine.steps is missing"
    assert parse(Required, {"steps": 3}, "mine") == Required(3)


class Staged(Method):
    """A method with hyperparameters of many types."""

    paper = "none"
    length: int | float = 0.5
    order: Literal["up", "down"] = "up"
    layers: list[int] = field(default_factory=lambda: [1, 2])
    rate: float = tunable(0.1, 0.01, 1.0)

    def phases(self, task: Task) -> Phases:
        yield from ()


def test_hyperparameters_of_a_method() -> None:
    """A share or a number of steps; a list with a default of its own for each instance."""
    made = [parse(Staged, values, "staged") for values in ({}, {}, {"length": 3}, {"length": 0.25, "layers": [4], "rate": 1})]
    assert [each.length for each in made] == [0.5, 0.5, 3, 0.25]
    assert [each.layers for each in made] == [[1, 2], [1, 2], [1, 2], [4]]
    assert made[0].layers is not made[1].layers
    assert (made[3].rate, type(made[3].rate)) == (1.0, float)
    assert refusal(Staged, layers=[0.5]) == "mine.layers[0] = 0.5: must be a valid integer"


def test_a_type_that_cannot_be_read_is_refused() -> None:
    """As one that a file imports for type checkers alone."""

    @dataclass(frozen=True)
    class Mine:
        what: Unknown | None = None

    assert refusal(Mine).startswith("mine: Mine has a field whose type is unknown: ")
