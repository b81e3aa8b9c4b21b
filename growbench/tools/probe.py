"""What a checkpoint is tried on: a few sequences of text, or random images; and what it makes of them: logits and loss."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from growbench.architectures import Architecture, Row
from growbench.architectures.new_parts import GradientCount, Gradients, NewParts
from growbench.config.schema import ModelConfig, TextConfig
from growbench.data import tokenizer as tokenizers
from growbench.data.documents import Documents
from growbench.data.text import Batch, Cut, Masking, causal, evenly_spread
from growbench.errors import UsageError
from growbench.method.loss import cross_entropy
from growbench.runs.checkpoints import TOKENIZERS

ROWS, LENGTH = 4, 256  # sequences or images, and tokens of a sequence, at most
SAMPLE = TextConfig(corpus="wikipedia-sample", sequence_length=LENGTH, vocabulary=1, documents=1)  # held out: see tokens.split_of
MASK_SHARE = 0.15  # of positions that a masked model predicts
CHARACTERS = 1_000_000  # of a text, at most


@dataclass(frozen=True)
class Probe:
    """Inputs and labels, and what they are. `says`: whether the loss on them says anything."""

    batch: Batch
    what: str
    says: bool


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a probe. Its logits wait in a temporary file: with a large vocabulary they are gigabytes."""

    file: BinaryIO
    shapes: list[torch.Size]  # (N, vocabulary) of the logits of each sequence or image, float32
    loss: float  # nats per labelled token or image
    finite: bool  # all logits

    def logits(self) -> Iterator[Tensor]:
        """(N, vocabulary) float32, on the CPU: of one sequence, or of one image, after the other."""
        start = 0
        for shape in self.shapes:
            block = torch.empty(shape)
            self.file.seek(start)  # another iterator may read in between
            start += self.file.readinto(memoryview(block.numpy()))  # type: ignore[attr-defined, arg-type]
            yield block

    def change(self, before: Outputs) -> float:
        """The relative change of the logits."""
        changes, squares = [], []
        for new, old in zip(self.logits(), before.logits(), strict=True):
            squares.append(float(old.norm()) ** 2)
            changes.append(float((new - old).norm()) ** 2)
        return math.sqrt(math.fsum(changes) / max(math.fsum(squares), sys.float_info.min))  # all may be 0


def outputs(model: nn.Module, probe: Probe) -> Outputs:
    """Without gradients, sequence by sequence, on the model's device. Raises UsageError if there is no room for the logits."""
    device = next(model.parameters()).device
    shapes, losses, finite = [], [], True
    try:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  gone with the result
        for number in range(len(probe.batch.inputs)):
            row = probe.batch.rows(number, number + 1)
            with torch.no_grad():
                logits = logits_of(model, row.inputs.to(device)).float().cpu().contiguous()
            file.write(memoryview(logits.numpy()))  # type: ignore[arg-type]
            shapes.append(logits.shape)
            finite = finite and bool(logits.isfinite().all())
            losses.append(float(_loss(logits, row)))
        file.flush()
    except OSError as error:
        raise UsageError(f"{tempfile.gettempdir()}: logits cannot wait there ({error.strerror}): set TMPDIR") from error
    return Outputs(file, shapes, math.fsum(losses) / len(losses), finite)


def gradients(architecture: Architecture, model: nn.Module, parts: NewParts, probe: Probe) -> Gradients:
    """Of the loss on the first sequence or image, through a library's model, which is of no use afterwards.

    The others follow while a new part has no gradient. Memory beside the model: the activations of one layer, which are
    computed twice, and the gradients of a few weights.
    """
    rows = architecture.rows(parts.new)
    _keep_no_activations(model, rows)
    names: dict[Tensor, list[str]] = {}  # several of a tied one
    for name, each in model.named_parameters(remove_duplicate=False):
        names.setdefault(each, []).append(name)
    count, unreached = GradientCount(rows, parts), set(names)

    def consume(parameter: Tensor, squares: Tensor) -> None:
        unreached.discard(parameter)
        for piece in architecture.pieces(dict.fromkeys(names[parameter], squares), parts.new):
            count.add(piece)

    def accumulated(parameter: Tensor) -> None:
        assert parameter.grad is not None
        consume(parameter, parameter.grad.square_())
        parameter.grad = None

    for parameter in names:
        parameter.register_post_accumulate_grad_hook(accumulated)
    device = next(iter(names)).device
    for number in range(len(probe.batch.inputs)):
        row = probe.batch.rows(number, number + 1).to(device)
        _loss(logits_of(model, row.inputs), row).backward()
        for parameter in list(unreached):  # those that the loss does not depend on
            consume(parameter, torch.zeros((), device=device).expand_as(parameter))
        found = count.found(number + 1)
        if not found.dead:
            break
    return found


def _keep_no_activations(model: nn.Module, rows: Iterable[Row]) -> None:
    """Compute each layer twice in a backward pass, so that only one layer's activations are there."""
    for stack in dict.fromkeys(row.native.partition(".{}")[0] for row in rows if row.per_layer):
        for layer in model.get_submodule(stack).children():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    if config := getattr(model, "config", None):
        config.use_cache = False  # keys and values that the second computation would add to


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """(N, vocabulary) of a library's model."""
    out = model(inputs)
    logits: Tensor = getattr(out, "logits", out)
    return logits.flatten(0, -2)


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    labelled = logits if batch.positions is None else logits[batch.positions]
    return cross_entropy(labelled, batch.labels)


def of(architecture: Architecture, sizes: ModelConfig, folders: Sequence[Path], text: Path | None) -> Probe:
    """A probe for models of these sizes. `folders`: where a tokenizer may lie, the first one that does is used.

    `text`: a file; None: the English sample. Raises UsageError if the text cannot be read, is too short or has no tokenizer.
    """
    rng = torch.Generator().manual_seed(0)
    if architecture.tokenizer is None:
        if text is not None:
            raise UsageError(f"--text {text}: {architecture.name} reads images")
        side = sizes.patch * math.isqrt(sizes.positions)
        images = torch.randn(ROWS, 3, side, side, generator=rng)
        labels = torch.randint(sizes.vocabulary, (ROWS,), generator=rng)
        return Probe(Batch(images, None, labels), f"{ROWS} random images", False)
    length = min(LENGTH, sizes.positions)
    folder = next((each for each in folders if any((each / name).is_file() for name in TOKENIZERS)), None)
    if folder is not None:
        return _text(architecture.objective == "masked", sizes, folder, _read(text))
    if text is not None:
        raise UsageError(f"--text {text}: there is no tokenizer beside the model")
    tokens = torch.randint(sizes.vocabulary, (ROWS, length + 1), generator=rng)
    batch = Batch(tokens[:, :-1].contiguous(), None, tokens[:, 1:].flatten())
    return Probe(batch, f"{ROWS} x {length} random tokens, because there is no tokenizer beside the model", False)


@dataclass(frozen=True)
class _Text:
    name: str
    text: str


def _read(file: Path | None) -> _Text:
    if file is None:
        return _Text("the English sample", next(iter(Documents(SAMPLE))))
    try:
        with file.open(encoding="utf-8") as opened:
            return _Text(str(file), opened.read(CHARACTERS))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise UsageError(f"--text {file}: cannot be read ({reason})") from error


def _text(masked: bool, sizes: ModelConfig, folder: Path, text: _Text) -> Probe:
    tokenizer, vocabulary = tokenizers.named(str(folder), masked)
    tokens = tokenizer.encode(text.text, add_special_tokens=False).ids
    if not tokens:
        raise UsageError(f"{text.name}: holds no tokens")
    if max(tokens) >= sizes.vocabulary:
        raise UsageError(f"{folder}: its tokenizer has tokens beyond the model's vocabulary of {sizes.vocabulary}")
    length = min(LENGTH, sizes.positions)
    cut: Cut = causal
    # A causal model of a library may need the token that its tokenizer puts before every text.
    whole = tokenizer.encode(text.text[:100]).ids
    before = [] if masked else whole[: whole.index(tokens[0])]
    if masked:
        cut, width = Masking.of(vocabulary, MASK_SHARE), length - 2
    else:
        width = length + 1 - len(before)
    blocks = _blocks(np.array(tokens), min(width, len(tokens)))
    batch = cut(np.concatenate([np.tile(np.array(before, np.int64), (len(blocks), 1)), blocks], 1), (0,))
    if not len(batch.labels):
        raise UsageError(f"{text.name}: holds a single token, at least 2 are needed")
    return Probe(batch, f"{text.name}, {len(blocks)} x {batch.inputs.shape[1]} tokens", True)


def _blocks(tokens: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """(rows, width): at most ROWS blocks, spread evenly over the tokens."""
    every = sliding_window_view(tokens, width)[::width]
    return every[evenly_spread(len(every), 1, min(ROWS, len(every)))[0]]
