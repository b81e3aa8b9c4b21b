"""Where methods come from: entry points of packages, and the digest of a method's code.

The code is its file, and the files that it imports, except those of installed packages.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoints, entry_points, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from growbench.errors import UsageError

BUILT_IN = "growbench.methods"
DIGITS = 16  # of the digest, hexadecimal


def digest(cls: type, wrapped: Iterable[str] = ()) -> str:
    """The digest of a method's code, with the origins of the methods that it wraps.

    Docstrings, comments and formatting do not count. Import statements are followed to modules that are in no installed package,
    to the rest of the method's own package, and to growbench.methods. Raises UsageError if the method's code is in no file.
    """
    code = {name: _parsed(file.read_bytes()).plain for name, file in files(cls).items()}
    whole = json.dumps([cls.__qualname__, sorted(code.items()), list(wrapped)])
    return f"sha256:{hashlib.sha256(whole.encode()).hexdigest()[:DIGITS]}"


def files(cls: type) -> dict[str, Path]:
    """The files of a method's code by module; its own has no name, as a loose file may have any.

    Raises UsageError if the method is in no file.
    """
    module = sys.modules[cls.__module__]
    path = Path(module.__file__ or "")
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{cls.__qualname__} is in no Python file, so no digest of its code can be made")
    found = {"": path}
    waiting = list(_imported(_parsed(path.read_bytes()).imports, module.__package__ or "", cls.__module__))
    while waiting:
        name = waiting.pop()
        file = None if name in found else _file(name)
        if file is not None:
            found[name] = file
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imported(_parsed(file.read_bytes()).imports, package, cls.__module__)
    return found


class _Parsed(NamedTuple):
    """What counts in a file."""

    plain: Any  # its syntax tree, as lists and texts
    imports: list[ast.Import | ast.ImportFrom]


@lru_cache(256)
def _parsed(code: bytes) -> _Parsed:
    tree = ast.parse(code)
    return _Parsed(_plain(tree), [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))])


def _plain(node: Any) -> Any:
    """A syntax tree as lists and texts, without prose and positions: the same in every version of Python."""
    if isinstance(node, list):
        return [_plain(each) for each in node if not _is_prose(each)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(key, value) for key, value in ast.iter_fields(node) if value is not None and value != []]
    return [type(node).__name__, *([key, _plain(value)] for key, value in fields if key not in ("ctx", "kind"))]


def _is_prose(node: Any) -> bool:
    """Whether it is a statement that consists of a text, as docstrings do."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(imports: Iterable[ast.Import | ast.ImportFrom], package: str, method: str) -> Iterator[str]:
    """The modules that a module of `package` imports, and the packages around them, if they count as code of `method`."""
    for node in imports:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            around = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]  # a module, or something in `base`
        for parts in (name.split(".") for name in names):
            prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
            yield from (prefix for prefix in prefixes if _counts(prefix, method))


def _counts(name: str, method: str) -> bool:
    top = name.partition(".")[0]
    if top == "growbench":
        return f"{name}.".startswith(f"{BUILT_IN}.")
    return top not in sys.stdlib_module_names and (top == method.partition(".")[0] or not _is_installed(top))


def _is_installed(top: str) -> bool:
    """Whether a top-level module belongs to an installed package, be it one that is installed in place."""
    spec = _spec(top)
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
    return any("site-packages" in place or "dist-packages" in place for place in places) or top in _of_distributions()


_of_distributions = cache(packages_distributions)


def entry_points_of(group: str) -> EntryPoints:
    """Those of a group. All packages' are read again, which takes some milliseconds, only if a folder of sys.path has changed."""
    folders = [Path(folder) for folder in sys.path]
    return _entry_points(group, tuple((folder, folder.stat().st_mtime_ns) for folder in folders if folder.exists()))


@lru_cache(1)
def _entry_points(group: str, folders: tuple[tuple[Path, int], ...]) -> EntryPoints:
    return entry_points(group=group)


def _file(name: str) -> Path | None:
    """The Python file of a module, found without importing it. None if there is none."""
    root = BUILT_IN if name.startswith(BUILT_IN) else name.partition(".")[0]
    spec = _spec(root)
    if spec is None:
        return None
    file, folders = Path(spec.origin or ""), [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in name.removeprefix(root).split(".")[1:]:
        folders = [folder / part for folder in folders]
        candidates = [file for folder in folders for file in (folder / "__init__.py", folder.with_suffix(".py"))]
        file = next((file for file in candidates if file.is_file()), Path())
    return file if file.suffix == ".py" and file.is_file() else None


def _spec(top: str) -> ModuleSpec | None:
    try:
        return find_spec(top)
    except (ImportError, ValueError):  # ValueError: of a module that was made by hand
        return None
