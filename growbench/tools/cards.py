"""Cards of methods, read from their classes, and tables of an architecture's weights."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import textwrap
import tokenize

from growbench import architectures
from growbench.architectures import GROUPS, Row
from growbench.config.schema import ModelConfig
from growbench.method import Method
from growbench.method.options import is_common
from growbench.registry import Found
from growbench.tools.listing import COLUMNS


def card(found: Found) -> str:
    """The card under the method's name, as wide as a terminal of 80 columns."""
    cls = type(found.method)
    lines = [found.name]
    for part in parts(found.method):
        lines += _wrapped(part, 4, 4)
    fields = [each for each in dataclasses.fields(cls) if not is_common(each)]  # type: ignore[arg-type]
    lines.append("    Hyperparameters:" if fields else "    Hyperparameters: none")
    comments = _comments(cls)
    for field in fields:
        comment = comments.get(field.name, "")
        lines += _wrapped(f"{_setting(field)}  {comment}".rstrip(), 8, 12)
    return "\n".join([*lines, f"    Source: {_source(found.method)}", f"    {cls.paper}"])


def parts(method: Method) -> list[str]:
    """The paragraphs of a method's description, such as "Function preserving: in width at integer ratios.", each in one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=[A-Z][\w -]*: |\w+: )", inspect.getdoc(type(method)) or "")]


def common_card() -> str:
    """The hyperparameters that every method has."""
    comments = _comments_of(Method)
    lines = ["every method", "    Hyperparameters, which a method that they do not fit refuses:"]
    for field in filter(is_common, dataclasses.fields(Method)):
        lines += _wrapped(f"{_setting(field)}  {comments[field.name]}", 8, 12)
    return "\n".join(lines)


def weights(architecture: str) -> str:
    """The canonical weights of an architecture, as methods see them, one per line. Raises UsageError for an unknown one."""
    found = architectures.get(architecture)
    sizes = ModelConfig(layers=1, width=1, heads=1, vocabulary=1, positions=1, patch=1)
    tied = found.table(sizes)
    lines = [("weight", "axes", "role", "consumes", "residual"), *map(_weight, tied)]
    if "tied" in found.options:
        untied = found.table(dataclasses.replace(sizes, tied=False))
        lines += [("with tied = false:", "", "", "", ""), *(_weight(row) for row in untied if row not in tied)]
    columns = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, columns)).rstrip() for line in lines)


def _weight(row: Row) -> tuple[str, str, str, str, str]:
    axes = [axis.name for axis in ((GROUPS[row.group], *row.axes) if row.per_layer else row.axes)]
    return row.key, f"({', '.join(axes)})", row.role, "yes" if row.consumes else "-", "yes" if row.residual else "-"


def _wrapped(text: str, indent: int, further: int) -> list[str]:
    margin, rest = " " * indent, " " * further
    return textwrap.wrap(text, COLUMNS, initial_indent=margin, subsequent_indent=rest, break_on_hyphens=False)


def _setting(field: dataclasses.Field[object]) -> str:
    """A hyperparameter's type and default, and the range in which it is tuned."""
    kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    given = "" if default is dataclasses.MISSING else f" = {default!r}"
    tuned = " (tuned: {!r} to {!r})".format(*field.metadata["range"]) if "range" in field.metadata else ""
    return f"{field.name}: {kind}{given}{tuned}"


def _source(method: Method) -> str:
    decided = isinstance(inspect.getattr_static(method, "uses_source"), property)
    use = "grown from a trained small model" if method.uses_source else "not used"
    kept = ", which the final model needs" if method.keeps_source else ""
    return f"{use}{kept}" + (" by default; the hyperparameters decide" if decided else "")


def _comments(cls: type[Method]) -> dict[str, str]:
    """The comments beside the fields of a class and of the methods that it extends, by field."""
    methods = [base for base in reversed(cls.__mro__) if issubclass(base, Method) and base is not Method]
    return {name: comment for base in methods for name, comment in _comments_of(base).items()}


def _comments_of(cls: type) -> dict[str, str]:
    """Those of one class."""
    comments: dict[str, str] = {}
    depth, name = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(cls)).readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type == tokenize.NAME and not token.line[: token.start[1]].strip():
            name = token.string if depth == 1 else ""  # the first word of a line of the class's body
        elif token.type == tokenize.COMMENT:
            comments[name] = token.string
    return comments
