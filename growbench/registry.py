"""Finds methods by name: files in methods/, entry points of other packages, loose files."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import growbench
from growbench import descriptions
from growbench.config.loading import own_training, parse
from growbench.errors import Interrupted, UsageError, check_name, closest, did_you_mean
from growbench.origins import BUILT_IN, digest, entry_points_of
from growbench.variants import Spec, refuse_twin

if TYPE_CHECKING:
    from growbench.method import Method

SOURCE = "source"  # the small model's own run, kept beside the methods' runs; no method may have this name
SCRATCH = "scratch"  # the reference: the target trained from a random start
ENTRY_POINTS = "growbench.methods"


@dataclass(frozen=True)
class Found:
    """A method and its origin: its owner, and the digest of its code. Runs of another origin are trained again.

    The owner is growbench for a built-in method, the package and its version for an installed one, and the file's name
    for a loose file. A built-in method needs no version, because the digest covers all its code.
    """

    name: str
    method: Method
    origin: str
    training: Mapping[str, Any] = field(default_factory=dict)  # values of [train] that are its own: set by hand, or tuned
    variant_of: str = ""  # the method's own name, if `name` is that of a variant

    @property
    def foreign(self) -> bool:
        """Whether its code, or that of a method that it wraps, is not growbench's own."""
        return not type(self.method).__module__.startswith(f"{BUILT_IN}.") or any(map(is_foreign, self.method.wraps))


@dataclass(frozen=True)
class _Located:
    name: str
    cls: type[Method]
    owner: str


def built_in() -> dict[str, Path]:
    """The files in methods/, by name, without importing them."""
    folder = importlib.import_module(BUILT_IN).__path__
    return {module.name: Path(folder[0]) / f"{module.name}.py" for module in pkgutil.iter_modules(folder)}


def installed() -> dict[str, EntryPoint]:
    """The methods of other packages, by name, without importing them. Raises UsageError if two claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points_of(ENTRY_POINTS):
        if point.name in found or point.name in built_in() or point.name == SOURCE:
            first = _owner(found[point.name]) if point.name in found else f"growbench {growbench.__version__}"
            raise UsageError(f"two methods are named {point.name!r}: one of {first}, one of {_owner(point)}; uninstall one")
        found[point.name] = point
    return found


def names() -> list[str]:
    """Every method that can be given by its name alone."""
    return sorted([*built_in(), *installed()])


def summaries() -> dict[str, str]:
    """Each built-in method's first line, and each installed one's owner, without importing any."""
    lines = {name: descriptions.of_method(path) for name, path in built_in().items()}
    return {**lines, **{name: f"of {_owner(point)}" for name, point in installed().items()}}


@cache
def papers() -> dict[str, str]:
    """The address of each built-in method's paper, without importing any."""
    return {name: paper for name, path in built_in().items() if (paper := descriptions.paper(path))}


def architecture_summaries() -> dict[str, str]:
    """Each architecture's first line, without importing any."""
    files = sorted((Path(growbench.__file__).parent / "architectures" / "families").glob("[!_]*.py"))
    return {path.stem: descriptions.of_file(path) for path in files}


def get(spec: str, options: Mapping[str, Any] | None = None) -> Found:
    """The method that `spec` names, with the hyperparameters in `options`.

    `spec` is a name, `./file.py`, `./file.py:Class`, or a variant of one, `mid=name`. Raises UsageError for an unknown name, a
    name that is taken, a file that does not hold exactly one method, and hyperparameters that it or one that it wraps lacks.
    """
    if not is_foreign(spec, options):
        return _get(spec, options or {}, ())
    from growbench.guards import Guard

    guard = Guard()
    try:
        found = _get(spec, options or {}, ())
    finally:
        changes = guard.changes()
    if changes:
        raise UsageError(f"{spec} {changes} while it was loaded: code outside phases() must leave it as it is")
    return found


def get_all(specs: list[str], options: Mapping[str, Mapping[str, Any]]) -> list[Found]:
    """Every method in `specs`, each with its own hyperparameters. Raises UsageError as `named` and `get` do."""
    return [get(spec, options_of(name, spec, options)) for name, spec in named(specs, options).items()]


def options_of(name: str, spec: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The hyperparameters in `tables` of a spec that `named` gives this name. A variant has those of its method, and its own."""
    return {**tables.get(_own_name(spec), {}), **tables.get(name, {})}


def named(specs: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each spec by the name of its method or variant, without importing any.

    Raises UsageError for files that are absent, for clashes, and for options without a method.
    """
    found: dict[str, str] = {}
    known = names()
    for spec in dict.fromkeys(specs):
        asked = Spec.of(spec)
        asked.refuse_taken([*known, SOURCE])
        name = asked.variant or _own_name(spec)
        if _is_file(asked.method):
            _file_of(asked.method)
        refuse_twin(name, spec, found)
        found[name] = spec
    for name in options:
        if name not in found and name not in known:
            near = closest(name, {*found, *known})
            raise UsageError(
                f"hyperparameters for {name!r}, which is no method and no table of an experiment: "
                f"{near}`growbench list methods` names all methods"
            )
    return found


def is_foreign(spec: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a method, or one that its hyperparameters name, is not growbench's own. Imports none.

    The code of such a method must not run in a process that trains others.
    """
    method = Spec.of(spec).method
    return _is_file(method) or method in installed() or any(is_foreign(text) for text in _texts(options or {}))


def _is_file(method: str) -> bool:
    return method.partition(":")[0].endswith(".py")


def _own_name(spec: str) -> str:
    """The name of a spec's method itself, whatever a variant is called."""
    method = Spec.of(spec).method
    return Path(method.partition(":")[0]).stem if _is_file(method) else method


def _texts(value: Any) -> Iterator[str]:
    """All texts within a value of TOML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _get(spec: str, options: Mapping[str, Any], around: tuple[str, ...]) -> Found:
    """`around`: the methods that wrap this one, itself the last."""
    variant, method_spec = Spec.of(spec)
    own = _located(method_spec)
    located = dataclasses.replace(own, name=variant or own.name)
    check_name("a method", located.name)
    with _loading(f"method {located.name!r}", refusals=True):
        training, options = own_training(options, located.name)
        method = _made(located, options)
    if repeated := set(around) & set(method.wraps):
        raise UsageError(f"{located.name} wraps {', '.join(repeated)}, which wraps it in turn")
    wrapped = [_get(each, {}, (*around, each)).origin for each in method.wraps]
    return Found(located.name, method, f"{located.owner} {digest(located.cls, wrapped)}", training, own.name if variant else "")


def _made(located: _Located, options: Mapping[str, Any]) -> Method:
    """The method with these hyperparameters. Raises UsageError unless all that growbench asks it for are plain values."""
    cls = located.cls
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        if each.init and each.default is each.default_factory is dataclasses.MISSING and each.name not in options:
            key = f"{located.name}.{each.name}"
            raise UsageError(f"{key} is missing, and has no default: give it with --set {key}=VALUE")
    method = parse(cls, options, located.name)
    for name in ("uses_source", "keeps_source", "control"):
        if not isinstance(value := getattr(method, name), bool):
            raise UsageError(f"{cls.__name__}.{name} = {value!r}: must be True or False")
    if not isinstance(method.wraps, tuple):
        raise UsageError(f"{cls.__name__}.wraps = {method.wraps!r}: must be a tuple of names or files, as ('ligo',)")
    if not isinstance(method.miniature, dict):
        raise UsageError(f"{cls.__name__}.miniature = {method.miniature!r}: must be a table, as {{'target.width': 32}}")
    try:
        json.dumps(dataclasses.asdict(method))  # type: ignore[call-overload]
    except TypeError as error:
        raise UsageError(
            f"{located.name}: hyperparameters must be numbers, texts, or lists and tables of them: {error}"
        ) from error
    return method


def _located(spec: str) -> _Located:
    if _is_file(spec):
        return _loose(spec)
    if spec in built_in():
        with _loading(f"method {spec!r}"):
            module = importlib.import_module(f"{BUILT_IN}.{spec}")
        return _Located(spec, _only_method(module, spec), "growbench")
    if spec in installed():
        point = installed()[spec]
        with _loading(f"method {spec!r} of {_owner(point)}"):
            cls = point.load()
        return _Located(spec, _checked(cls, spec), _owner(point))
    mine = [f"./{spec}.py"] if Path(f"{spec}.py").is_file() else []
    raise UsageError(f"unknown method {spec!r}: {did_you_mean([*mine, spec][0], [*mine, *names()])}; or a file, as ./mine.py")


def _loose(spec: str) -> _Located:
    file, _, class_name = spec.partition(":")
    path = _file_of(spec)
    # known to sys.modules before it runs: dataclasses look their own module up
    module_name = f"_growbench_plugin_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    spec_of_file = importlib.util.spec_from_file_location(module_name, path)
    assert spec_of_file is not None and spec_of_file.loader is not None
    module = importlib.util.module_from_spec(spec_of_file)
    sys.modules[module_name] = module
    try:
        with _loading(f"method file {file}"):
            spec_of_file.loader.exec_module(module)
    except UsageError:
        del sys.modules[module_name]
        raise
    if class_name and not hasattr(module, class_name):
        raise UsageError(f"{file} has no {class_name}: {did_you_mean(class_name, _methods_of(module))}")
    cls = _checked(getattr(module, class_name), spec) if class_name else _only_method(module, file)
    return _Located(path.stem, cls, path.name)


def _file_of(spec: str) -> Path:
    """The file that a spec names. Raises UsageError if there is none, or if it has another method's name."""
    file = spec.partition(":")[0]
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"method file {file} does not exist")
    _check_free(path.stem, file)
    return path


def _check_free(name: str, file: str) -> None:
    """Refuse a loose file that has another method's name."""
    owner = "growbench" if name in built_in() else _owner(installed()[name]) if name in installed() else None
    if owner:
        raise UsageError(f"{file}: the name {name!r} is already the method of {owner}; rename the file")
    if name == SOURCE:
        raise UsageError(f"{file}: the name {name!r} is kept for the small model's run; rename the file")


@contextmanager
def _loading(what: str, refusals: bool = False) -> Iterator[None]:
    """Turns an error while code is loaded into a UsageError that says where it is, and what to write.

    `refusals`: let a UsageError through as it is.
    """
    try:
        yield
    except Interrupted:
        raise
    except UsageError as error:
        if refusals:
            raise
        raise UsageError(f"{what} cannot be loaded: {_place(error)}{_reason(error)}") from error
    except BaseException as error:  # also of code that calls sys.exit()
        raise UsageError(f"{what} cannot be loaded: {_place(error)}{_reason(error)}") from error


def _place(error: BaseException) -> str:
    """File and line of an error: the first in the traceback outside this module and Python's import machinery."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '').name}, line {error.lineno}: "
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    outside = [frame for frame in frames if not re.search(r"<frozen|\bimportlib\b", frame.filename)]
    return f"{Path(outside[0].filename).name}, line {outside[0].lineno}: " if outside else ""


def _reason(error: BaseException) -> str:
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, TypeError) and re.match("Cannot overwrite attribute|cannot inherit", str(error)):
        return "remove @dataclass: every subclass of Method is a frozen dataclass already"
    hint = "; put the folder of a module of your own on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}{hint}"


def _methods_of(module: ModuleType) -> dict[str, type[Method]]:
    from growbench.method import Method

    classes = inspect.getmembers(module, inspect.isclass)
    return {name: cls for name, cls in classes if issubclass(cls, Method) and cls.__module__ == module.__name__}


def _only_method(module: ModuleType, where: str) -> type[Method]:
    classes = _methods_of(module)
    if not classes:
        raise UsageError(f"{where} holds no method: write class NAME(Method), with Method from growbench.method")
    if len(classes) > 1:
        raise UsageError(f"{where} holds {len(classes)} methods ({', '.join(classes)}): name one, as {where}:CLASS")
    return _checked(next(iter(classes.values())), where)


def _checked(cls: Any, where: str) -> type[Method]:
    from growbench.method import Method

    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise UsageError(f"{where}: {cls!r} is not a growbench.method.Method")
    if inspect.isabstract(cls):
        raise UsageError(
            f"{where}: {cls.__name__} does not define {', '.join(sorted(cls.__abstractmethods__))}: "
            "write def phases(self, task: Task) -> Phases, which yields each Phase"
        )
    return cls


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
