"""`growbench verify`: whether a grown checkpoint is whole, and what growth has kept of its source.

The models are loaded one after the other, never both at once. The larger one must fit in memory in float32.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growbench.architectures.library import Loaded
from growbench.architectures.new_parts import NewParts
from growbench.architectures.symmetry import symmetric
from growbench.errors import UsageError, reason
from growbench.files import sha256
from growbench.formatting import counted, difference
from growbench.formatting import settings as listed
from growbench.method.options import COMMON_NAMES
from growbench.runs import checkpoints, stored_tensors
from growbench.runs.checkpoints import SAME, Described
from growbench.tools import probe, promise
from growbench.tools.probe import Outputs, Probe
from growbench.tools.verify_report import Report, gradient_table, symmetry_table

ROUNDINGS = 3  # how much of what rounding changes in SOURCE a kept function may change: SOURCE, GROWN and its weights are rounded
NOTES = ("_name_or_path", "architectures", "dtype", "transformers_version")  # keys of configurations that are no settings
SIZES = ("layers", "width", "heads", "key_value_heads", "ffn")  # that grow


@dataclass(frozen=True)
class Request:
    """What to verify."""

    grown: str  # a folder, or an id on the hub
    source: str | None  # None: the one that growbench.json of the grown model names, if it is there
    text: Path | None  # None: the English sample
    device: torch.device


class Broken(Exception):
    """What is wrong with the grown model, where nothing that follows can be examined."""


def verify(request: Request) -> str:
    """Print what is found. Returns the first thing that is wrong with the grown model; empty if nothing is.

    Raises UsageError if a checkpoint cannot be read, if its family is not known, or if the two are no source and its grown model.
    """
    grown = checkpoints.described(request.grown, f"GROWN = {request.grown!r}")
    source = _source(request.source, grown)
    if source is not None:
        _refuse_unrelated(grown, source)
    report = Report()
    verification = _Verification(request, grown, source, report)
    try:
        verification.run()
    except Broken as broken:
        report.fault(str(broken))
    return report.wrong


def _source(asked: str | None, grown: Described) -> Described | None:
    if asked is not None:
        return checkpoints.described(asked, f"SOURCE = {asked!r}")
    named = grown.card.get("source", {}).get("checkpoint")
    return checkpoints.described(named, f"SOURCE = {named!r}") if named and Path(named).is_dir() else None


def _refuse_unrelated(grown: Described, source: Described) -> None:
    if grown.architecture is not source.architecture:
        raise UsageError(
            f"GROWN is of the family {grown.architecture.name}, SOURCE of {source.architecture.name}: must be the same"
        )
    for key in SIZES:
        new, old = getattr(grown.sizes, key), getattr(source.sizes, key)
        if new < old:
            raise UsageError(f"GROWN has {key} = {new}, SOURCE {old}: a model only grows; the order is GROWN SOURCE")


@dataclass(frozen=True)
class _Verification:
    request: Request
    grown: Described
    source: Described | None
    report: Report

    def run(self) -> None:
        """Raises Broken."""
        report, grown, source = self.report, self.grown, self.source
        report.row("GROWN", f"{grown.name}: {_sizes(grown)}")
        if source is not None:
            report.row("SOURCE", f"{source.name}: {_sizes(source)}")
            if other := self._other_file(source):
                report.row("", f"not the one that GROWN was grown from: {other} is another")
        dtype = self._dtype()
        promised = self._method()
        loaded = self._grown(dtype)
        self._structure(loaded)
        self._files()
        folders = [each.folder for each in (grown, source) if each is not None]
        tried = probe.of(grown.architecture, grown.sizes, folders, self.request.text)
        report.row("tried on", tried.what)
        after = {dtype: probe.outputs(loaded.model, tried)}
        del loaded
        before = {} if source is None else self._before(source, tried, dtype)
        model = self._grown(torch.float32).model
        after[torch.float32] = probe.outputs(model, tried)
        self._function(before, after, dtype, promised)
        self._loss(before, after, tried)
        self._parts(model, tried)

    def _other_file(self, source: Described) -> str:
        """The first of SOURCE's files that is not as growbench.json of the grown model says; empty if none is."""
        expected = self.grown.card.get("source", {}).get("files", {})
        paths = {name: source.folder / name for name in expected}
        return next((name for name, path in paths.items() if not path.is_file() or sha256(path) != expected[name]), "")

    def _method(self) -> bool:
        """Show how the model was grown. Returns whether the method preserves the function."""
        card = self.grown.card
        if "source" not in card:  # not written by `growbench grow`
            self.report.row("method", f"not known: {checkpoints.CARD} names none")
            return False
        own = {key: value for key, value in card["hyperparameters"].items() if key not in COMMON_NAMES}
        self.report.row("method", f"{card['method']} ({listed(own)}), seed {card['seed']}")
        self.report.row("", card["preserves"])
        if self.source is None:
            return False
        try:
            change = promise.change(card, self.grown.architecture, self.source.sizes, self.grown.sizes)
        except Exception as error:
            self.report.row("promise", f"not known: the method cannot be tried on a miniature ({reason(error)})")
            return False
        kept = change < SAME
        what = "so it preserves the function" if kept else "so it does not preserve the function"
        self.report.row(
            "promise", f"on a miniature of the same proportions the method changes the logits by {change:.1e}, {what}"
        )
        return kept

    def _dtype(self) -> torch.dtype:
        """The checkpoint's own: that of most of its tensors. Raises Broken."""
        try:
            stored = stored_tensors.headers(self.grown.folder)
            stored_tensors.check_layers(stored, self.grown.sizes)
        except UsageError as error:
            raise Broken(str(error)) from error
        found = Counter(place.kind for place in stored.values())
        known = {name: count for name, count in found.items() if name in stored_tensors.TYPES}
        if not known:
            raise Broken(f"has no weights of {', '.join(stored_tensors.TYPES)}, but of {', '.join(found)}")
        if len(found) > 1 and "source" in self.grown.card:
            self.report.fault(f"its weights are of several types ({', '.join(sorted(found))}): growbench grow writes one")
        return stored_tensors.TYPES[max(known, key=lambda name: known[name])]

    def _grown(self, dtype: torch.dtype) -> Loaded:
        try:
            loaded = self.grown.architecture.library.examine(self.grown.folder, dtype)
        except Exception as error:
            raise Broken(f"its library cannot load it ({reason(error)})") from error
        loaded.model.to(self.request.device)
        return loaded

    def _structure(self, loaded: Loaded) -> None:
        """Configuration, tensors and ties. Raises Broken."""
        report, model = self.report, loaded.model
        report.row("configuration", f"loads as {type(model).__name__}{self._changes(model)}")
        for what, names in (
            ("lacks", loaded.missing),
            ("", loaded.misshapen),
            ("has a tensor that its class has not:", loaded.extra),
        ):
            if names:
                others = f" (and {counted(len(names) - 1, 'other')})" if len(names) > 1 else ""
                raise Broken(f"{what} {names[0]}{others}".strip())
        state = model.state_dict()
        for name, value in state.items():
            if not bool(value.isfinite().all()):
                raise Broken(f"{name} holds NaN or infinity, {counted(int((~value.isfinite()).sum()), 'time')}")
        report.row("tensors", f"{len(state)}, all present, of the right shape and finite; none extra")
        self._ties(model)

    def _changes(self, model: Any) -> str:
        """What differs between the configurations, beside what follows from the sizes."""
        if self.source is None:
            return ""
        library = self.grown.architecture.library
        expected = library.config_json(replace(self.grown.sizes, configuration=self.source.sizes.configuration))
        own = json.loads(self.grown.sizes.configuration)
        if hasattr(model, "config"):  # with the defaults of transformers' class
            expected, own = (type(model.config).from_dict(each).to_dict() for each in (expected, own))
        names = sorted(key for key in own.keys() | expected.keys() if own.get(key) != expected.get(key) and key not in NOTES)
        changed = ", ".join(f"{key} from {json.dumps(expected.get(key))} to {json.dumps(own.get(key))}" for key in names)
        return f"; besides the sizes, growth changed {changed}" if changed else "; growth changed the sizes alone"

    def _ties(self, model: Any) -> None:
        """Raises Broken."""
        grown, source = self.grown.sizes, None if self.source is None else self.source.sizes
        if "tied" not in self.grown.architecture.options:
            return
        if source is not None and source.tied and not grown.tied:
            raise Broken("is not tied: its configuration gives it a head of its own, SOURCE's is its embedding")
        if grown.tied and model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
            raise Broken("is not tied: embedding and head are different tensors, its configuration says that they are one")
        self.report.row("ties", "embedding and head are one tensor" if grown.tied else "none: the head is a tensor of its own")

    def _files(self) -> None:
        """Raises Broken."""
        listed_layers, layers = len(self.grown.card.get("layer_origins", [])), self.grown.sizes.layers
        if listed_layers not in (0, layers):
            raise Broken(f"{checkpoints.CARD}: layer_origins lists {counted(listed_layers, 'layer')}, the model has {layers}")
        wrong = checkpoints.damage(self.grown.folder)
        digests = self.grown.card.get("sha256")
        self.report.row(
            "files", f"as {checkpoints.CARD} describes them" if digests else f"no digests: {checkpoints.CARD} has none"
        )
        if wrong:
            self.report.fault(wrong)

    def _before(self, source: Described, tried: Probe, dtype: torch.dtype) -> dict[torch.dtype, Outputs]:
        """What SOURCE makes of the same, in the grown model's dtype and in float32. Raises UsageError."""
        found = {}
        with checkpoints.one_line(f"SOURCE = {source.name!r}"):
            for each in {dtype, torch.float32}:
                loaded = source.architecture.library.examine(source.folder, each)
                if lacking := loaded.missing or loaded.misshapen:
                    raise UsageError(f"lacks weights: {lacking[0]}")
                found[each] = probe.outputs(loaded.model.to(self.request.device), tried)
                del loaded  # before the next one is there
            if not found[torch.float32].finite:
                raise UsageError("its logits are not finite")
        return found

    def _function(
        self, before: dict[torch.dtype, Outputs], after: dict[torch.dtype, Outputs], dtype: torch.dtype, promised: bool
    ) -> None:
        if not after[torch.float32].finite:
            raise Broken("its logits are not finite")
        if not before:
            return
        rounding = before[dtype].change(before[torch.float32])  # 0 if that is the dtype
        bound = max(SAME, ROUNDINGS * rounding)
        for each in dict.fromkeys((dtype, torch.float32)):
            change = after[each].change(before[each])
            self.report.row("logits", f"relative change {change:.1e} in {_name(each)}; {_promise(promised, bound, rounding)}")
            if promised and not change <= bound:
                self.report.fault(
                    f"its function is another: logits change by {change:.1e} in {_name(each)}, at most {bound:.1e} is rounding"
                )

    def _loss(self, before: dict[torch.dtype, Outputs], after: dict[torch.dtype, Outputs], tried: Probe) -> None:
        if not tried.says:
            self.report.row("loss", "not measured: there is no text")
            return
        new = after[torch.float32].loss
        if not before:
            self.report.row("loss", f"{new:.4f} nats a token")
            return
        old = before[torch.float32].loss
        self.report.row("loss", f"{old:.4f} before, {new:.4f} after ({difference(new - old)}), nats a token")

    def _parts(self, model: nn.Module, tried: Probe) -> None:
        """Symmetric units, and the gradient of what is new. The model is of no use afterwards."""
        architecture, sizes, source = self.grown.architecture, self.grown.sizes, self.source
        state = architecture.library.state(model)
        self.report.table(symmetry_table(symmetric(architecture.pieces(state, sizes), sizes)))
        del state
        parts = NewParts.of(sizes if source is None else source.sizes, sizes, self.grown.card.get("layer_origins", []))
        found = probe.gradients(architecture, model, parts, tried)
        self.report.table(gradient_table(found, source is not None))
        if not parts.heads_first:
            self.report.row("", "Old and new heads are not told apart: their size, or the number that shares keys, changed.")
        for dead in found.dead:
            self.report.fault(f"no gradient reaches {dead}: no training changes what is new there")


def _promise(promised: bool, bound: float, rounding: float) -> str:
    if not promised:
        return "nothing is promised"
    origin = f"{ROUNDINGS} times what rounding changes in SOURCE" if rounding else "rounding"
    return f"promised is at most {bound:.1e}, {origin}"


def _sizes(checkpoint: Described) -> str:
    sizes = checkpoint.sizes
    kept = [f"{key} {getattr(sizes, key)}" for key in SIZES if key != "key_value_heads" or sizes.kv_heads]
    head = [f"head_dim {sizes.head_dim}"] if sizes.head_dim else []
    return ", ".join([f"{checkpoint.architecture.name}", *kept, *head])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
