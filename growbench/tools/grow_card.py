"""What a grown checkpoint says of itself: the model card README.md, and growbench.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from growbench.config.schema import ModelConfig
from growbench.costs.accounts import Unit
from growbench.formatting import settings
from growbench.method.options import is_common
from growbench.runs.checkpoints import MODEL_CARD
from growbench.runs.records import versions
from growbench.runs.stored_tensors import Checkpoint
from growbench.tools import grow_table
from growbench.tools.cards import parts
from growbench.tools.grow_sizes import SIZES

if TYPE_CHECKING:
    from growbench.tools.grow import Destination, Growth

PRESERVING = "Function preserving"  # how the part of a method's description begins that says what growth keeps


def about(growth: Growth, command: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """What growbench.json says, but for the sha256 of its files. `digests`: the sha256 of the source's files.

    Growth costs nothing; what the source cost is known if it has a growbench.json.
    """
    checkpoint, found = growth.checkpoint, growth.found
    card = checkpoint.card
    costs = {unit: card.get("cost", {}).get(unit, {}).get("total") for unit in Unit}
    return {
        "title": f"{growth.request.source}, grown",
        "method": found.name,
        "origin": found.origin,
        "hyperparameters": asdict(found.method),  # type: ignore[call-overload]
        "seed": growth.request.seed,
        "command": command,
        "preserves": preserves(growth),
        "source": {"checkpoint": growth.request.source, "sha256": source_digest(digests), "files": dict(digests)},
        "architecture": checkpoint.architecture.name,
        "sizes": asdict(growth.target),
        "settings": dict(growth.settings),
        "layers": grow_table.layer_map(growth),
        "layer_origins": grow_table.layer_origins(growth),
        "cost": {unit: {"own": 0.0, "source": cost, "total": cost} for unit, cost in costs.items()},
        "hardware": card.get("hardware", {}),
        "versions": versions(),
    }


def source_digest(digests: Mapping[str, str]) -> str:
    """One sha256 of all files, as an experiment's [source] has it."""
    return hashlib.sha256("".join(f"\0{name}\0{digest}" for name, digest in digests.items()).encode()).hexdigest()


def preserves(growth: Growth) -> str:
    """What growth keeps, in the words of the method's description."""
    said = (part for part in parts(growth.found.method) if part.startswith(PRESERVING))
    return next(said, f"{PRESERVING}: the method does not say.")


def readme(growth: Growth, to: Destination, about: Mapping[str, Any]) -> str:
    """The model card."""
    request, checkpoint, found = growth.request, growth.checkpoint, growth.found
    name, source = to.out.name, request.source
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    fields = type(found.method).__dataclass_fields__
    kind = "timm" if "architecture" in growth.config() else "transformers"
    base = [] if checkpoint.folder.as_posix() == source.rstrip("/") else [f"base_model: {source}"]
    head = ["---", *_licence(checkpoint), *base, f"library_name: {kind}", "tags: [growbench]", "---"]
    shown = {key: value for key, value in about["hyperparameters"].items() if not is_common(fields[key])}
    return "\n".join(
        [
            *head,
            f"# {name}",
            "",
            f"Grown from `{source}` by growbench. It has not been trained since.",
            "",
            *_sizes(checkpoint.sizes, growth.target),
            "",
            "## Recipe",
            "",
            f"- Method: `{found.name}` ({settings(shown)}), seed {request.seed}. {parts(found.method)[0]}",
            *(f"- {part}" for part in parts(found.method) if part.startswith("Formula")),
            f"- Paper: {found.method.paper}",
            f"- Layers: {about['layers']}",
            f"- Command: `{to.command}`",
            f"- Source: `{source}`, sha256 `{about['source']['sha256']}` of its configuration and weights",
            "",
            "## What is preserved",
            "",
            f"{about['preserves']}",
            "",
            f"The tensors are {dtype}, as the source's. Copies are untouched; what is computed is computed in float32 at "
            f"least, and rounded once. `growbench verify {name} {source}` measures what that changes.",
            "",
        ]
    )  # fmt: skip


def _licence(checkpoint: Checkpoint) -> list[str]:
    """The lines of the source's model card that name its licence."""
    file = checkpoint.folder / MODEL_CARD
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    if not lines or lines[0].strip() != "---":
        return []
    found, inside = [], False
    for line in lines[1:]:
        if line.strip() == "---":
            break
        inside = line.startswith("license") or (inside and line.startswith((" ", "-", "\t")))
        if inside:
            found.append(line)
    return found


def _sizes(source: ModelConfig, target: ModelConfig) -> list[str]:
    rows = [f"| {key} | {getattr(source, name)} | {getattr(target, name)} |" for key, name in SIZES.items()]
    return ["| | source | grown |", "|---|---|---|", *rows]
