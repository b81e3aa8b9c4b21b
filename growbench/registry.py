"""Finds methods by name: files in methods/, entry points of other packages, loose files."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import growbench
from growbench import registry
from growbench.config.loading import parse
from growbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from growbench.method import Method

SOURCE = "source"  # the small model's own run, kept beside the methods' runs; no method may have this name
SCRATCH = "scratch"  # the reference: the target trained from a random start
BUILT_IN = "growbench.methods"
ENTRY_POINTS = "growbench.methods"


@dataclass(frozen=True)
class Found:
    """A method and where it came from: a package with its version, or a file with its sha256."""

    name: str
    method: Method
    origin: str
    training: Mapping[str, Any] = field(default_factory=dict)  # values of [train] that are its own, as tuning found them


@dataclass(frozen=True)
class Card:
    """What a built-in method says of itself, read without running its file."""

    docstring: str
    settings: list[tuple[str, str]]  # hyperparameters with type and default, and the comment beside each
    paper: str
    uses_source: str  # True, False, or the expression that decides
    keeps_source: str

    @classmethod
    def of(cls, path: Path) -> Card:
        node = _method_class(path)
        assert node is not None
        comments = _comments(path)
        settings, constants = [], {"uses_source": "True", "keeps_source": "False", "paper": ""}
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.annotation).startswith("ClassVar"):
                constants[ast.unparse(statement.target)] = ast.unparse(statement.value) if statement.value else ""
            elif isinstance(statement, ast.AnnAssign):
                settings.append((_setting(statement), comments.get(statement.end_lineno or 0, "")))
            elif isinstance(statement, ast.FunctionDef) and statement.name in constants:
                returned = next(each for each in ast.walk(statement) if isinstance(each, ast.Return))
                constants[statement.name] = ast.unparse(returned.value).removeprefix("self.") if returned.value else ""
        paper = constants["paper"].strip("'")
        return cls(ast.get_docstring(node) or "", settings, paper, constants["uses_source"], constants["keeps_source"])

    def text(self, name: str) -> str:
        """The card under the method's name, at most 100 columns wide."""
        lines = [name]
        for part in re.split(r"\n\n|\n(?=[A-Z][\w -]*: |\w+: )", self.docstring):
            lines += textwrap.wrap(" ".join(part.split()), 100, initial_indent="    ", subsequent_indent="    ")
        lines += ["    Hyperparameters:" if self.settings else "    Hyperparameters: none"]
        for setting, comment in self.settings:
            lines += textwrap.wrap(
                f"{setting}  {'# ' * bool(comment)}{comment}", 100, initial_indent=" " * 8, subsequent_indent=" " * 12
            )
        source = {"True": "grown from a trained small model", "False": "not used"}
        kept = ", which the final model needs" if self.keeps_source == "True" else ""
        lines += [f"    Source: {source.get(self.uses_source, f'grown from if {self.uses_source}')}{kept}"]
        return "\n".join([*lines, f"    {self.paper}"])


def built_in() -> dict[str, Path]:
    """The files in methods/, by name, without importing them."""
    folder = importlib.import_module(BUILT_IN).__path__
    return {module.name: Path(folder[0]) / f"{module.name}.py" for module in pkgutil.iter_modules(folder)}


def installed() -> dict[str, EntryPoint]:
    """The methods of other packages, by name, without importing them. Raises UsageError if two claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in found or point.name in built_in() or point.name == registry.SOURCE:
            first = _origin(found[point.name]) if point.name in found else f"growbench {growbench.__version__}"
            raise UsageError(f"two methods are named {point.name!r}: one of {first}, one of {_origin(point)}; uninstall one")
        found[point.name] = point
    return found


def names() -> list[str]:
    """Every method that can be had by its name alone."""
    return sorted([*built_in(), *installed()])


def summaries() -> dict[str, str]:
    """Each built-in method's first line, and each installed one's origin, without importing any."""
    lines = {name: _first_line(path) for name, path in built_in().items()}
    return {**lines, **{name: f"of {_origin(point)}" for name, point in installed().items()}}


def cards() -> dict[str, Card]:
    """Each built-in method's card, without importing any."""
    return {name: Card.of(path) for name, path in built_in().items()}


def architecture_summaries() -> dict[str, str]:
    """Each architecture's first line, without importing any."""
    folder = Path(growbench.__file__).parent / "architectures" / "families"
    files = [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    return {path.stem: (ast.get_docstring(_parsed(path)) or "").partition("\n")[0] for path in files}


def get(spec: str, options: Mapping[str, Any] | None = None) -> Found:
    """The method that `spec` names, with the hyperparameters in `options`.

    `spec` is a name, `./file.py`, or `./file.py:Class`. Raises UsageError for an unknown name, a name that is taken, a file
    that does not hold exactly one method, and hyperparameters that it does not have.
    """
    if spec.partition(":")[0].endswith(".py"):
        name, cls, origin = _loose(spec)
    elif spec in built_in():
        module = importlib.import_module(f"{BUILT_IN}.{spec}")
        name, cls, origin = spec, _only_method(module, spec), f"growbench {growbench.__version__}"
    elif spec in installed():
        point = installed()[spec]
        name, cls, origin = spec, _checked(_loaded(point), spec), _origin(point)
    else:
        raise UsageError(f"unknown method {spec!r}: {did_you_mean(spec, names())}; or a file, as ./mine.py")
    if not re.fullmatch(r"[^./\\\0][^/\\\0]*", name):
        raise UsageError(f"a method cannot be named {name!r}: its runs' folders bear its name")
    return Found(name, parse(cls, options or {}, name), origin)


def get_all(specs: list[str], options: Mapping[str, Mapping[str, Any]]) -> list[Found]:
    """Every method in `specs`, each with its own hyperparameters. Raises UsageError for clashes and for options of none."""
    found: dict[str, Found] = {}
    for spec in dict.fromkeys(specs):
        name = Path(spec.partition(":")[0]).stem if spec.partition(":")[0].endswith(".py") else spec
        method = get(spec, options.get(name))
        if method.name in found:
            raise UsageError(f"two methods are named {method.name!r}: one of {found[method.name].origin}, one of {method.origin}")
        found[method.name] = method
    for name in options:
        if name not in found and name not in names():
            raise UsageError(f"hyperparameters for {name!r}: {did_you_mean(name, [*found, *names()])}")
    return list(found.values())


def _loose(spec: str) -> tuple[str, type[Method], str]:
    file, _, class_name = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"method file {file} does not exist")
    name = path.stem
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = f"{path.name} sha256:{digest}"
    taken = built_in().get(name) or (_origin(installed()[name]) if name in installed() else None)
    if taken or name == registry.SOURCE:
        owner = (
            f"already the method of {'growbench' if isinstance(taken, Path) else taken}"
            if taken
            else "kept for the small model's run"
        )
        raise UsageError(f"{file}: the name {name!r} is {owner}; rename the file")
    # known to sys.modules before it runs: dataclasses look their own module up
    module_name = f"_growbench_plugin_{name}_{digest[:12]}"
    spec_of_file = importlib.util.spec_from_file_location(module_name, path)
    assert spec_of_file is not None and spec_of_file.loader is not None
    module = importlib.util.module_from_spec(spec_of_file)
    sys.modules[module_name] = module
    try:
        spec_of_file.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UsageError(f"method file {file} cannot be loaded: {type(error).__name__}: {error}") from error
    if class_name:
        if not hasattr(module, class_name):
            raise UsageError(f"{file} has no {class_name}: {did_you_mean(class_name, _methods_of(module))}")
        return name, _checked(getattr(module, class_name), spec), origin
    return name, _only_method(module, file), origin


def _methods_of(module: ModuleType) -> dict[str, type[Method]]:
    from growbench.method import Method

    classes = inspect.getmembers(module, inspect.isclass)
    return {name: cls for name, cls in classes if issubclass(cls, Method) and cls.__module__ == module.__name__}


def _only_method(module: ModuleType, where: str) -> type[Method]:
    classes = _methods_of(module)
    if len(classes) != 1:
        raise UsageError(f"{where} holds {len(classes)} methods ({', '.join(classes) or 'none'}): name one, as {where}:CLASS")
    return _checked(next(iter(classes.values())), where)


def _checked(cls: Any, where: str) -> type[Method]:
    from growbench.method import Method

    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise UsageError(f"{where}: {cls!r} is not a growbench.method.Method")
    if inspect.isabstract(cls):
        raise UsageError(f"{where}: {cls.__name__} does not define {', '.join(sorted(cls.__abstractmethods__))}")
    return cls


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise UsageError(
            f"method {point.name!r} of {_origin(point)} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _first_line(path: Path) -> str:
    """The first line of the method class's docstring, read without running the file."""
    node = _method_class(path)
    return (ast.get_docstring(node) or "").partition("\n")[0] if node else ""


def _method_class(path: Path) -> ast.ClassDef | None:
    for node in _parsed(path).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Method" for base in node.bases):
            return node
    return None


def _setting(statement: ast.AnnAssign) -> str:
    """A hyperparameter's type and default, and the range in which it is tuned."""
    if isinstance(value := statement.value, ast.Call) and ast.unparse(value.func) == "tunable":
        default, low, high = map(ast.unparse, value.args)
        return f"{ast.unparse(statement.target)}: {ast.unparse(statement.annotation)} = {default} (tuned: {low} to {high})"
    return ast.unparse(statement)


def _comments(path: Path) -> dict[int, str]:
    """The comment on each line that has one."""
    with path.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
