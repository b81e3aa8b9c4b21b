"""The code that trains and measures: functions and constants of growbench, functions of torch and of the libraries of models."""

from __future__ import annotations

import inspect
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

from torch.optim import Optimizer

OWN = re.compile(r"growbench(\.|$)")
LIBRARIES = re.compile(
    r"(builtins|time|torch|torch\.(autograd|amp|linalg|nn|nn\.(functional|init|attention|utils\.clip_grad|modules\..*)|optim\.\w+"
    r"|_tensor|utils\.flop_counter)|transformers\.(models\..*\.modeling_\w+|masking_utils|activations|pytorch_utils|modeling_layers"
    r"|integrations\.sdpa_attention)|timm\.(models\.(vision_transformer|cait|eva)|layers\.(attention|mlp|norm|patch_embed|pos_embed|pos_embed_sincos)))$"
)
ROOTS = ("builtins", "torch")  # whose many classes are not watched, torch.Tensor apart
NOT_WATCHED = re.compile(r"_fused_|_init_group$|SparseAdam$|LBFGS$")  # in torch.optim: torch.compile replaces them
CONTAINERS = re.compile(r"_?[A-Z][A-Z_]*$|flop_registry$")  # constants whose content counts
SPECIAL = (
    "__call__",
    "__init__",
    "__new__",
    "__post_init__",
    "__getattr__",
    "__getattribute__",
    "__setattr__",
    "__torch_function__",
)
HOOK = Optimizer.profile_hook_step(lambda optimizer: None).__code__  # torch wraps an optimizer's step in it at its first use
CODE, DEFAULTS = operator.attrgetter("__code__"), operator.attrgetter("__defaults__")
GONE = object()


class Code:
    """All that is watched, as it is now. A module that is imported later is watched from then on."""

    def __init__(self) -> None:
        self._spaces: list[Namespace] = []
        self._whole = Pairs([])
        self._modules: set[str] = set()
        self._count = 0  # of modules when they were looked at last
        self._watch_new_modules()

    def begin(self) -> None:
        """What has changed so far is as it should be."""
        if not self._whole.is_intact():
            for number, space in enumerate(self._spaces):
                if not space.pairs.is_intact():
                    self._spaces[number] = Namespace(space.name, space.holder, space.own)
            self._whole = Pairs(self._spaces)
        self._watch_new_modules()

    def changes(self) -> str:
        """The first name whose value is another one now, in words; empty if there is none."""
        for space in self._altered():
            for name in space.changed():
                return f"changed {space.name}.{name}, which all methods use"
        self._watch_new_modules()
        return ""

    def restore(self) -> None:
        """Put back what has changed."""
        for space in self._altered():
            space.restore()

    def _altered(self) -> list[Namespace]:
        return [] if self._whole.is_intact() else [space for space in self._spaces if not space.pairs.is_intact()]

    def _watch_new_modules(self) -> None:
        if len(sys.modules) == self._count:
            return
        self._count = len(sys.modules)
        watched = len(self._spaces)
        for name in [name for name in sys.modules if name not in self._modules]:
            self._modules.add(name)
            module = sys.modules[name]
            own = OWN.match(name) is not None
            if name == "torch":
                self._spaces.append(Namespace("torch.Tensor", module.Tensor, own))
            if isinstance(module, ModuleType) and (own or LIBRARIES.match(name)):
                self._spaces.append(Namespace(name, module, own))
                for key, value in list(vars(module).items()):
                    if inspect.isclass(value) and value.__module__ == name and name not in ROOTS and not NOT_WATCHED.search(key):
                        self._spaces.append(Namespace(f"{name}.{key}", value, own))
        if len(self._spaces) > watched:
            self._whole = Pairs(self._spaces)


class Namespace:
    """The functions of a module or class, and if it is growbench's own its constants too."""

    def __init__(self, name: str, holder: Any, own: bool) -> None:
        self.name, self.holder, self.own = name, holder, own
        self.inherited = {key for base in holder.__mro__[1:-1] for key in vars(base)} if inspect.isclass(holder) else set()
        self.names = frozenset(vars(holder))
        self.values = {key: value for key, value in vars(holder).items() if self._counts(key, value)}
        self.read = _reader(self.values)
        self.functions = {key: function for key, value in self.values.items() if (function := _function(value))}
        self.parts = {key: _parts(function, own) for key, function in self.functions.items()}
        self.closed = [key for key, function in self.functions.items() if own and function.__closure__]
        kinds = (key for key, value in self.values.items() if CONTAINERS.match(key) and type(value) in (dict, list, set))
        self.containers = {key: type(self.values[key])(self.values[key]) for key in kinds}

    @cached_property
    def pairs(self) -> Pairs:
        """What is watched in it alone."""
        return Pairs([self])

    def changed(self) -> list[str]:
        """The names whose value, code or content is another one. Not those that torch changes itself."""
        now = vars(self.holder)
        names = [key for key, value in self.values.items() if now.get(key, GONE) is not value or self.alters(key)]
        names += [key for key, content in self.containers.items() if not _holds(self.values[key], content)]
        if self.inherited:  # a new name may hide an inherited one
            names += [key for key in now.keys() - self.names if key in self.inherited and self._counts(key, now[key])]
        return [key for key in names if not _is_of_torch(now.get(key))]

    def restore(self) -> None:
        for key in dict.fromkeys(self.changed()):
            if key in self.values:
                setattr(self.holder, key, self.values[key])
            else:
                delattr(self.holder, key)
        for key, function in self.functions.items():
            function.__code__, function.__defaults__, function.__kwdefaults__ = self.parts[key][:3]
        for key, content in self.containers.items():
            value = self.values[key]
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)

    def alters(self, key: str) -> bool:
        """Whether the function of that name computes with something else."""
        if key not in self.functions:
            return False
        before, now = self.parts[key], _parts(self.functions[key], self.own)
        return len(before) != len(now) or not all(map(operator.is_, before, now))

    def _counts(self, key: str, value: Any) -> bool:
        if (key.startswith("__") and key not in SPECIAL) or NOT_WATCHED.search(key):
            return False
        return self.own or callable(value) or isinstance(value, (staticmethod, classmethod, property)) or key == "flop_registry"


class Pairs:
    """What is watched in some namespaces, as it was: in flat lists, as it is compared before and after every phase.

    Lists and tuples of the same objects are equal without a look into these. Others that say they are equal count as the same.
    """

    def __init__(self, spaces: Iterable[Namespace]) -> None:
        spaces = list(spaces)
        self.tables = [(space.read, vars(space.holder), tuple(space.values.values())) for space in spaces if space.values]
        self.functions = [function for space in spaces for function in space.functions.values()]
        self.codes = [parts[0] for space in spaces for parts in space.parts.values()]
        self.defaults = [parts[1] for space in spaces for parts in space.parts.values()]
        closed = [(space.functions[key], space.parts[key]) for space in spaces for key in space.closed]
        self.keywords = [(function, parts[2]) for function, parts in closed]
        self.cells = [cell for function, _ in closed for cell in function.__closure__ or ()]
        self.contents = [content for _, parts in closed for content in parts[3:]]
        self.containers = [(space.values[key], content) for space in spaces for key, content in space.containers.items()]
        self.sizes = [(vars(space.holder), len(space.names)) for space in spaces if space.inherited]

    def is_intact(self) -> bool:
        """Whether nothing has changed."""
        try:
            return (
                all(read(table) == values for read, table, values in self.tables)
                and list(map(CODE, self.functions)) == self.codes
                and list(map(DEFAULTS, self.functions)) == self.defaults
                and list(map(_content, self.cells)) == self.contents
                and all(function.__kwdefaults__ is keywords for function, keywords in self.keywords)
                and all(_holds(value, content) for value, content in self.containers)
                and all(len(table) == size for table, size in self.sizes)
            )
        except Exception:  # a name is gone, or a new value cannot be compared
            return False


def _reader(keys: Iterable[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """What reads the values of these keys from a table, at once."""
    keys = tuple(keys)
    return operator.itemgetter(*keys) if len(keys) > 1 else lambda table: tuple(table[key] for key in keys)


def _function(value: Any) -> FunctionType | None:
    """The Python function in an entry of a module or class; None if there is none."""
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return inner if isinstance(inner, FunctionType) else None


def _parts(function: FunctionType, closure: bool) -> tuple[Any, ...]:
    """What a function computes with, beside its globals: code, defaults, those of keywords, and if asked for its closure."""
    cells = (function.__closure__ if closure else None) or ()
    return function.__code__, function.__defaults__, function.__kwdefaults__, *map(_content, cells)


def _content(cell: Any) -> Any:
    """The function in a cell of a closure; a function may count in others."""
    try:
        return cell.cell_contents if callable(cell.cell_contents) else GONE
    except ValueError:  # it is empty
        return GONE


def _holds(value: Any, content: Any) -> bool:
    """Whether a container holds what it held, or, if it is a table, at least that."""
    if isinstance(content, dict):
        return all(value.get(key, GONE) is each for key, each in content.items())
    return bool(value == content)


def _is_of_torch(value: Any) -> bool:
    """Whether torch itself has replaced a function: an optimizer's step, to call hooks, or for compiling Module.__init__."""
    if not isinstance(value, FunctionType):
        return False
    compiler = sys.modules.get("torch._dynamo.mutation_guard")
    return value.__code__ is HOOK or (compiler is not None and value.__globals__ is vars(compiler))
