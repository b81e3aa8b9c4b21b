"""Reads the tensors of a checkpoint one by one, or in part, from safetensors in one file or several, none of it mapped.

A checkpoint that cannot be read in full and safely is refused, before any of its tensors is read where its headers show it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from growbench import architectures
from growbench.architectures import Architecture
from growbench.architectures.library import CONFIG
from growbench.config import plain
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.files import sha256
from growbench.growth.lazy import Lazy, Stored
from growbench.growth.selections import Selection, joined, runs, selected
from growbench.runs.checkpoints import CARD, INDEX, SINGLE, card_of, one_line, refuse_foreign

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32), 8: (torch.int64, np.uint64)}  # by bytes
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LATEST = 2  # tensors that are kept once they were read whole, because rows of them are asked for in any order
LEGACY = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))  # names that transformers still reads


@dataclass(frozen=True)
class Place:
    """Where a tensor is stored."""

    file: Path
    start: int  # of its first byte
    kind: str  # safetensors' name of its type
    shape: tuple[int, ...]


@dataclass
class Checkpoint:
    """A checkpoint of one of growbench's families. Its tensors have the names of the family's table."""

    folder: Path
    architecture: Architecture
    sizes: ModelConfig
    places: dict[str, Place]
    left_out: list[str]  # names of tensors that the family's model does not have, and its library leaves out too
    card: Mapping[str, Any]  # growbench.json; empty if there is none
    stamps: Mapping[Path, tuple[int, int]]  # of configuration and weights, when they were opened
    reads: set[str] = field(default_factory=set)  # names of tensors that were read, in whole or in part
    _latest: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[next(iter(self.places.values())).kind]

    def tensors(self) -> dict[str, Lazy]:
        """Each tensor, read when it is wanted. Half precision counts as float32, in which methods compute."""
        wide = torch.promote_types(self.dtype, torch.float32)
        shapes = {name: torch.empty(place.shape, dtype=wide, device="meta") for name, place in self.places.items()}
        return {name: Lazy(Stored(meta, partial(self.read, name))) for name, meta in shapes.items()}

    def read(self, name: str, wanted: Selection) -> Tensor:
        """The wanted part of a tensor, in the type that it is stored in. Raises UsageError for NaN and infinity."""
        place = self.places[name]
        rest = {dim: indices for dim, indices in wanted.items() if dim}
        if 0 not in wanted:
            return selected(self._rows(name, place, range(place.shape[0] if place.shape else 1)), rest)
        rows = [wanted[0]] if isinstance(wanted[0], range) else runs(wanted[0])
        if rows is not None:
            parts = [selected(self._rows(name, place, each), rest) for each in rows]
            return joined(parts, 0)
        if name not in self._latest:
            self._latest[name] = self._rows(name, place, range(place.shape[0]))
            if len(self._latest) > LATEST:
                self._latest.popitem(last=False)
        return selected(self._latest[name], wanted)

    def _rows(self, name: str, place: Place, rows: range) -> Tensor:
        dtype = TYPES[place.kind]
        row = torch.Size(place.shape[1:]).numel() * dtype.itemsize
        data = torch.empty(len(rows) * row, dtype=torch.uint8)
        with one_line(str(place.file)), place.file.open("rb", buffering=0) as file:
            file.seek(place.start + rows.start * row)
            if file.readinto(memoryview(data.numpy())) != len(data):  # type: ignore[arg-type]
                raise UsageError(f"ends within {name}")
        value = data.view(dtype).view(len(rows), *place.shape[1:]) if place.shape else data.view(dtype)[0]
        if not is_finite(value):
            raise UsageError(f"{self.folder}: {name} holds NaN or infinity")
        self.reads.add(name)
        return value

    def check_rest(self) -> None:
        """Raise UsageError if a tensor that was not needed holds NaN or infinity."""
        for name in self.places.keys() - self.reads:
            self.read(name, {})

    def digests(self) -> dict[str, str]:
        """The sha256 of configuration and weights, by file. Raises UsageError if growbench.json says others."""
        with one_line(str(self.folder)):
            found = {path.name: sha256(path) for path in self.stamps}
        known = self.card.get("sha256", {})
        if damaged := [name for name, digest in found.items() if known.get(name, digest) != digest]:
            raise UsageError(f"{self.folder / damaged[0]}: is damaged (sha256 differs from {CARD})")
        return found

    def check_unchanged(self) -> None:
        """Raise UsageError if a file was changed since it was opened: its tensors may be of two checkpoints."""
        for path, stamp in self.stamps.items():
            with one_line(str(path)):
                if _stamp(path) != stamp:
                    raise UsageError("was changed while it was read")


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite.

    The bits of these are the largest whole numbers: signed for positive entries, unsigned for negative ones. To compare them is
    many times as fast as to compare entries.
    """
    signed, unsigned = WHOLE[value.dtype.itemsize]
    bits = value.view(signed).numpy()
    positive, negative = _infinities(value.dtype)
    return bool(bits.max(initial=0) < positive and bits.view(unsigned).max(initial=0) < negative)


@cache
def _infinities(dtype: torch.dtype) -> tuple[int, int]:
    """The bits of infinity as a signed whole number, and of minus infinity as an unsigned one."""
    signed, unsigned = WHOLE[dtype.itemsize]
    bits = torch.tensor([math.inf, -math.inf], dtype=dtype).view(signed).numpy()
    return int(bits[0]), int(bits.view(unsigned)[1])


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises UsageError for one that cannot be grown, saying why."""
    config = _config(folder)
    architecture = architectures.of_checkpoint(folder)
    with one_line(str(folder)):
        refuse_foreign(config)
        sizes = architecture.library.sizes(folder)
        stored = headers(folder)
        check_layers(stored, sizes)
        names, left_out = _names(architecture, stored, sizes)
        places = {name: stored[own] for name, own in names.items()}
        _check_types(places)
        _check_shapes(architecture, places, sizes)
        files = sorted({folder / CONFIG, *(place.file for place in places.values())})
        stamps = {path: _stamp(path) for path in files}
        return Checkpoint(folder, architecture, sizes, places, left_out, card_of(folder), stamps)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def headers(folder: Path) -> dict[str, Place]:
    """Where each tensor of a checkpoint is. Raises UsageError if a file is missing, damaged or cut off."""
    return {name: place for file in _files(folder) for name, place in _header(file).items()}


def check_layers(stored: Mapping[str, Place], sizes: ModelConfig) -> None:
    """Raise UsageError for more layers than tensors, before a model is built that fits in no memory."""
    if sizes.layers > len(stored):
        raise UsageError(f"{CONFIG} says {sizes.layers:,} layers, and there are {len(stored):,} tensors")


def _config(folder: Path) -> Mapping[str, Any]:
    with one_line(f"{folder}: {CONFIG}"):
        config = plain.from_json((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise UsageError("is no JSON object")
        return config


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises UsageError if there are none, one is missing, or an index points elsewhere."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        what = f"only pickled weights ({pickles[0]}), which can run code: save it" if pickles else "no weights: save them"
        raise UsageError(f"holds {what} as safetensors, the only format that is read")
    with one_line(INDEX):
        table = plain.from_json(index.read_bytes())
    found = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UsageError(f"{INDEX} has no weight_map")
    for name in found.values():
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise UsageError(f"{INDEX} points outside its folder, or to another kind of file: {name!r}")
    names = sorted(set(found.values()))
    if (folder / SINGLE).is_file() and SINGLE not in names:  # which transformers would read instead
        raise UsageError(f"holds {SINGLE}, and {INDEX} of other files: remove one of them")
    for name in names:
        if not (folder / name).is_file():
            raise UsageError(f"{name}, which {INDEX} names, is missing")
        if differ := _header(folder / name).keys() ^ {key for key, file in found.items() if file == name}:
            raise UsageError(f"{INDEX} and {name} differ in {min(differ)}")
    return [folder / name for name in names]


def _header(path: Path) -> dict[str, Place]:
    """The tensors of a file, by name. Raises UsageError if it is damaged or cut off, OSError if it must not be read."""
    with path.open("rb") as file:
        try:
            with safe_open(path, framework="pt"):  # checks that the file is whole, and that tensors do not overlap
                pass
        except Exception as error:
            raise UsageError(f"{path.name} is damaged or cut off ({' '.join(str(error).split())})") from error
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    return {
        name: Place(path, 8 + length + each["data_offsets"][0], each["dtype"], tuple(each["shape"]))
        for name, each in table.items()
        if name != "__metadata__"
    }


def _names(architecture: Architecture, stored: Mapping[str, Place], sizes: ModelConfig) -> tuple[dict[str, str], list[str]]:
    """The stored name of each of the model's tensors, and the stored names that the model's library leaves out.

    Raises UsageError for tensors that are missing, and for others that the model does not have.
    """
    stock, expected = architecture.library.stock, architecture.shapes(sizes)
    prefix = getattr(stock, "base_model_prefix", "")
    names: dict[str, str] = {}
    others = []
    for own in stored:
        name = own
        for old, new in LEGACY:
            name = name.replace(old, new)
        found = next((each for each in (name, f"{prefix}.{name}") if each in expected), None)
        if found is None:
            others.append(own)
        else:
            names[found] = own
    if missing := sorted(expected.keys() - names.keys()):
        raise UsageError(f"lacks weights: {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}")
    left_out = [own for own in others if _is_left_out(architecture, own, names, stored)]
    if more := sorted(set(others) - set(left_out)):
        raise UsageError(f"holds weights that {architecture.name} does not have: {', '.join(more[:3])}")
    return names, left_out


def _is_left_out(architecture: Architecture, own: str, names: Mapping[str, str], stored: Mapping[str, Place]) -> bool:
    """Whether the library leaves a stored tensor out: it knows that it is of no use, or it is a copy of a tied one."""
    stock = architecture.library.stock
    ignored = getattr(stock, "_keys_to_ignore_on_load_unexpected", None) or ()
    if any(re.search(pattern, own) for pattern in (*ignored, *architecture.library.left_out)):
        return True
    partner = (getattr(stock, "_tied_weights_keys", None) or {}).get(own)
    if partner is None or partner not in names:
        return False
    if _content(stored[own]) != _content(stored[names[partner]]):
        raise UsageError(f"{own} and {partner} are tied, and differ")
    return True


def _content(place: Place) -> str:
    """The sha256 of a tensor's bytes, with its type and shape."""
    digest = hashlib.sha256(f"{place.kind} {place.shape}".encode())
    for block in _blocks(place):
        digest.update(block)
    return digest.hexdigest()


def _blocks(place: Place, size: int = 1 << 24) -> Iterator[bytes]:
    left = torch.Size(place.shape).numel() * TYPES[place.kind].itemsize if place.kind in TYPES else 0
    with place.file.open("rb") as file:
        file.seek(place.start)
        while left:
            block = file.read(min(size, left))
            left -= len(block)
            yield block


def _check_types(places: Mapping[str, Place]) -> None:
    for name, place in places.items():
        if place.kind.startswith("C"):
            raise UsageError(f"{name} holds complex numbers")
        if place.kind not in TYPES:
            raise UsageError(f"its weights are quantised ({name} is {place.kind}): only floating-point weights are read")
    kinds = sorted({place.kind for place in places.values()})
    if len(kinds) > 1:
        raise UsageError(f"its weights are of several types ({', '.join(kinds)}): save them in one")


def _check_shapes(architecture: Architecture, places: Mapping[str, Place], sizes: ModelConfig) -> None:
    for name, shape in architecture.shapes(sizes).items():
        if places[name].shape != tuple(shape):
            found = f"{name} has shape {places[name].shape}"
            raise UsageError(f"{found}, in growbench's {architecture.name} of its {CONFIG} {tuple(shape)}")
