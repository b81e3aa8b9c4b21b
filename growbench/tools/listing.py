"""What there is: methods, experiments and architectures, in groups, for a terminal of 80 columns. Nothing is imported for it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from growbench import registry
from growbench.config import loading
from growbench.registry import SCRATCH

COLUMNS = 80
CONTROL = "Control: "  # how the card of a control begins
SMALL = ("-tiny", "-mini")  # how the names of experiments end that two CPU cores run
LITE = "-lite"


def methods() -> str:
    """Those that LiGO's paper compares, the other ones, controls, and those of other packages."""
    lines = registry.summaries()
    controls = [name for name, line in lines.items() if line.startswith(CONTROL)]
    compared = [SCRATCH, *sorted(loading.published() & lines.keys())]
    packages = sorted(registry.installed())
    others = [name for name in lines if name not in {*compared, *controls, *packages}]
    return _groups(
        {
            "methods that LiGO's paper compares": {name: lines[name] for name in compared},
            "other methods": {name: lines[name] for name in others},
            "controls": {name: _sentence(lines[name].removeprefix(CONTROL)) for name in controls},
            "methods of other packages": {name: lines[name] for name in packages},
        }
    )


def small() -> list[str]:
    """The names of the experiments for two CPU cores."""
    return [name for name in loading.available() if name.endswith(SMALL)]


def experiments() -> str:
    """Those for two CPU cores, those of papers, and the papers' in small."""
    files = loading.available()
    lines = {name: ": ".join(filter(None, (loading.title(name), duration(file)))) for name, file in files.items()}
    cores = small()
    lite = [name for name in files if name.endswith(LITE)]
    papers = [name for name in files if name not in {*cores, *lite}]
    groups = {"experiments for two CPU cores": cores, "experiments of papers": papers, "the same in small": lite}
    return _groups({title: {name: lines[name] for name in names} for title, names in groups.items()})


def architectures() -> str:
    return _groups({"architectures": registry.architecture_summaries()})


def duration(file: Path) -> str:
    """How long a shipped experiment takes, as the first line of its file says: `# growbench run NAME   minutes on two cores`."""
    command, _, said = file.read_text(encoding="utf-8").partition("\n")[0].partition("  ")
    return said.strip() if command.startswith(f"# growbench run {file.stem}") else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _groups(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Each group that has entries, under its title."""
    parts = []
    for title, lines in groups.items():
        margin = 4 + max(map(len, lines), default=0)
        entries = [_entry(name, line, margin) for name, line in lines.items()]
        parts += ["\n".join([f"{title}:", *entries])] * bool(entries)
    return "\n\n".join(parts)


def _entry(name: str, line: str, margin: int) -> str:
    first = f"  {name:<{margin - 2}}"
    return textwrap.fill(line, COLUMNS, initial_indent=first, subsequent_indent=" " * margin, break_on_hyphens=False)
