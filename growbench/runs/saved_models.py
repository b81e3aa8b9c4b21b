"""Saves trained models and loads pretrained ones, as checkpoints of the models' own libraries.

Beside a model's weights and configuration lies growbench.json: what the model is, what it cost, and the sha256 of the files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from growbench import architectures
from growbench.architectures import Architecture
from growbench.config import plain
from growbench.config.schema import Experiment, ImageConfig, ModelConfig, Pretrained
from growbench.costs.accounts import Account, Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.data.shapes import vocabulary_size
from growbench.data.sources import digest
from growbench.data.tokenizer import named
from growbench.errors import UsageError
from growbench.files import flush_all, move, sha256, write_text
from growbench.growth.weights import Axis
from growbench.runs.checkpoints import (
    CARD,
    FILES,
    SAME,
    TOKENIZERS,
    damage,
    difference,
    folder_of,
    one_line,
    refuse_complex_numbers,
)
from growbench.runs.records import Cost, RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ABOUT = (  # fields of a run's record that go into growbench.json
    "experiment", "title", "method", "origin", "seed", "budget_share", "final_val_loss", "final_val_accuracy", "steps", "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class TrainedModel:
    """A trained model to be saved, with its tokenizer."""

    architecture: Architecture
    model: nn.Module
    sizes: ModelConfig
    tokenizer: PreTrainedTokenizerBase | None  # None: images

    def save(self, folder: Path, record: RunRecord) -> None:
        """Save it in `folder`, in full or not at all. `record`: of its run.

        Raises UsageError if the stored model, as its library loads it, computes something else.
        """
        draft = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            self.architecture.library.save(self.model, self.sizes, draft, self.tokenizer)
            self._compare(draft)
            card = self._card(record) | {"sha256": {path.name: sha256(path) for path in sorted(draft.iterdir())}}
            write_text(draft / CARD, json.dumps(card, indent=1) + "\n")
            flush_all(draft)
            move(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _compare(self, folder: Path) -> None:
        stock = self.architecture.library.load(folder)
        change = difference(self.architecture, self.model.eval(), stock, self.sizes.positions)
        if not change < SAME:
            raise UsageError(
                f"its logits differ from those of {type(stock).__name__} with the same weights (by {change:.2g}): "
                "remove hooks, and declare changed settings: task.model_from(weights, settings=...)"
            )

    def _card(self, record: RunRecord) -> dict[str, Any]:
        """What growbench.json says. Cost: the run's own, the source's (None: not known), and both."""
        known = {unit: getattr(record.cost, unit)[Account.SOURCE] is not None for unit in Unit}
        return {
            **{key: getattr(record, key) for key in ABOUT},
            "architecture": self.architecture.name,
            "sizes": asdict(self.sizes),
            "settings": architectures.changed_settings(self.model),
            "cost": {
                unit: {
                    "own": record.cost.charged(unit),
                    "source": record.cost.of(unit, Account.SOURCE) if known[unit] else None,
                    "total": record.cost.charged(unit, Ledger.BUILD) if known[unit] else None,
                }
                for unit in Unit
            },
            "hardware": record.hardware.settings(),
            "versions": record.versions,
            "data": record.data,
        }


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with the sizes of its pretrained source, and the digest of its content.

    Raises UsageError if there is none, if it has other sizes than the experiment states, or does not fit the target and the data.
    """
    pretrained = experiment.pretrained
    if pretrained is None:
        return experiment
    where, architecture = _where(pretrained), architectures.of(experiment, "source")
    folder = folder_of(pretrained.checkpoint, where)
    with one_line(where):
        sizes = architecture.library.sizes(folder)
        files = [(path.name, path) for pattern in FILES[:2] for path in sorted(folder.glob(pattern))]
        if len(files) < 2:
            raise UsageError("holds no safetensors, the only format that is read")
        refuse_complex_numbers(path for _, path in files if path.suffix == ".safetensors")
    _check_stated(where, sizes, experiment)
    _check_data(where, sizes, experiment, folder)
    sha256 = digest("", files)
    source = replace(sizes, vocabulary=0, positions=0, patch=0)
    target = experiment.target
    if not experiment.source_architecture:  # what growth does not change passes through to the target
        target = replace(target, configuration=sizes.configuration, head_dim=target.head_dim or sizes.head_dim)
    return replace(experiment, source=source, target=target, pretrained=replace(pretrained, sha256=sha256))


def load(experiment: Experiment, device: torch.device) -> nn.Module:
    """The pretrained source of a resolved experiment, as our model: frozen, in evaluation mode.

    Raises UsageError if it cannot be read, is damaged, or computes something else than our model.
    """
    pretrained = experiment.pretrained
    assert pretrained is not None
    where, architecture = _where(pretrained), architectures.of(experiment, "source")
    folder, library = folder_of(pretrained.checkpoint, where), architecture.library
    with one_line(where):
        found = library.sizes(folder)
        sizes = experiment.sizes("source", found.vocabulary)
        stock = library.load(folder)
        model = _taken_over(architecture, sizes, library.state(stock)).requires_grad_(False).eval()
        if not difference(architecture, model, stock, sizes.positions) < SAME:
            raise UsageError(f"computes something else than growbench's {architecture.name} with the same settings")
        if wrong := damage(folder):
            raise UsageError(
                f"{wrong}: restore it; if it was changed on purpose, remove {CARD}, and set flops and seconds in [source]"
            )
    return model.to(device)


def _taken_over(architecture: Architecture, sizes: ModelConfig, state: dict[str, torch.Tensor]) -> nn.Module:
    """Our model with these weights. Positions beyond its own number are dropped."""
    model = architecture.build(sizes)
    own = model.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise UsageError(f"lacks weights: {', '.join(missing[:3])}")
    positions = {row.native for row in architecture.table(sizes) if Axis.POSITION in row.axes}
    taken = {name: state[name][: len(own[name])] if name in positions else state[name] for name in own}
    for name, value in taken.items():
        if value.shape != own[name].shape:
            raise UsageError(
                f"{name} has shape {tuple(value.shape)}, in growbench's {architecture.name} {tuple(own[name].shape)}"
            )
    model.load_state_dict(taken)
    return model


def cost(pretrained: Pretrained, hardware: Hardware | None = None) -> Cost:
    """The cost of the model's training, that of its own source included: as the experiment states it, or from growbench.json.

    Seconds are not known unless they were measured on the same `hardware` as the run's.
    """
    file = folder_of(pretrained.checkpoint, _where(pretrained)) / CARD
    with one_line(f"{_where(pretrained)}: {CARD}"):
        known = _card_cost(plain.from_json(file.read_text(encoding="utf-8")), hardware) if file.is_file() else Cost()
    return Cost(**{unit: known.of(unit) if (stated := getattr(pretrained, unit)) is None else stated for unit in Unit})


def flops(pretrained: Pretrained) -> float | None:
    """The FLOPs of the model's training; nothing is read if the experiment states them. None: they are not known."""
    return cost(pretrained).flops if pretrained.flops is None else pretrained.flops


def _card_cost(card: dict[str, Any], hardware: Hardware | None) -> Cost:
    flops, seconds = (card["cost"][unit]["total"] for unit in Unit)
    on = {{"elsewhere": "earlier"}.get(key, key): value for key, value in card["hardware"].items()}
    return Cost(flops, seconds if hardware == Hardware(**on) else None)


def _check_stated(where: str, sizes: ModelConfig, experiment: Experiment) -> None:
    """Refuse a model of other sizes than the experiment states beside it."""
    assert experiment.pretrained is not None
    for key in experiment.pretrained.stated:
        name = {"kv_heads": "key_value_heads", "head_dim": "head_size"}.get(key, key)  # whose 0 stands for another size
        stated, found = getattr(experiment.source, name), getattr(sizes, name)
        if stated != found:
            raise UsageError(f"{where}: source.{key} = {stated}: the checkpoint has {found}; sizes may be left out")


def _check_data(where: str, sizes: ModelConfig, experiment: Experiment, folder: Path) -> None:
    """Refuse a model of other tokens, positions or classes than the experiment's."""
    data = experiment.data
    if isinstance(data, ImageConfig):
        if (sizes.patch, sizes.positions) != (data.patch, data.positions):
            side = sizes.patch * round(sizes.positions**0.5)
            raise UsageError(f"{where}: needs data.image_size = {side} and data.patch = {sizes.patch}")
        if sizes.vocabulary != data.classes:
            raise UsageError(f"{where}: needs data.classes = {sizes.vocabulary}")
        return
    if not data.tokenizer:
        own = "; for its own: --set data.tokenizer=" + (experiment.pretrained.checkpoint if experiment.pretrained else "")
        raise UsageError(
            f"{where}: data.tokenizer is missing: a tokenizer trained on the corpus has other tokens than the model{own}"
        )
    if sizes.positions < data.positions:
        raise UsageError(f"{where}: data.sequence_length = {data.positions}: must be at most its {sizes.positions} positions")
    vocabulary = vocabulary_size(data)
    if sizes.vocabulary != vocabulary:
        raise UsageError(f"{where}: has a vocabulary of {sizes.vocabulary}, [data] one of {vocabulary}: set data.vocabulary")
    if any((folder / name).is_file() for name in TOKENIZERS):
        masked = architectures.of(experiment).objective == "masked"
        if named(str(folder), masked)[0].get_vocab() != named(data.tokenizer, masked)[0].get_vocab():
            raise UsageError(f"{where}: data.tokenizer = {data.tokenizer!r} is another one than the model's own")


def _where(pretrained: Pretrained) -> str:
    return f"source = {pretrained.checkpoint!r}"
