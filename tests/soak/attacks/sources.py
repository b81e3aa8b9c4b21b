"""Pretrained sources and tokenizers that are damaged, poisoned, of another kind, or made to be slow."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from growbench import architectures
from growbench.config.schema import ModelConfig
from growbench.data import tokenizer
from growbench.runs import checkpoints, saved_models
from tests.conftest import documents
from tests.runs.test_saved_models import RECORD
from tests.soak.attempt import REFUSED, Attempt, NotKept, attack
from tests.test_trust import AUTO_MAP, Bomb, changed, with_evil_code

SIZES = ModelConfig(layers=1, width=16, heads=2, vocabulary=300, positions=16)
YES = b"y\n" * 100


def model(folder: Path) -> Path:
    """A GPT-2 with its tokenizer, as a run saves it, but for growbench.json, by whose digests damage would be found at once."""
    transformers.logging.disable_progress_bar()
    architecture = architectures.get("gpt2")
    torch.manual_seed(0)
    own = tokenizer.for_transformers(*tokenizer.train("bytes", 300, False, [documents()]), SIZES.positions)
    saved_models.TrainedModel(architecture, architecture.build(SIZES), SIZES, own).save(folder, RECORD)
    (folder / checkpoints.CARD).unlink()
    return folder


def grow(attempt: Attempt, source: Path) -> tuple[object, ...]:
    """A run that grows the model in a folder with bert2bert."""
    sets = (f"source={source}", f"data.tokenizer={source}", "target.heads=4", "train.steps=2", "train.warmup=1")
    return (
        "run",
        attempt.experiment,
        "--methods",
        "bert2bert",
        "--results",
        attempt.results,
        *sum((("--set", s) for s in sets), ()),
    )


def weights(source: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a model in place."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})


def header(source: Path, change: Callable[[dict[str, Any]], object], length: int = 0) -> None:
    """Change the header of a model's safetensors, or the length that it says it has."""
    file = source / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:end])
    change(table)
    text = json.dumps(table).encode()
    file.write_bytes((length or len(text)).to_bytes(8, "little") + text + content[end:])


def first(tensors: Mapping[str, Any]) -> str:
    return next(name for name in sorted(tensors) if name != "__metadata__" and "wte" in name)


def overlapping(table: dict[str, Any]) -> None:
    """Every tensor at the place of the first."""
    for entry in table.values():
        if "data_offsets" in entry:
            length = entry["data_offsets"][1] - entry["data_offsets"][0]
            entry["data_offsets"] = [0, length]


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors)][0, 0] = float("nan")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a tensor is missing": lambda source: weights(source, lambda tensors: tensors.pop(first(tensors))),
    "a weight is NaN": lambda source: weights(source, set_nan),
    "integers": lambda source: weights(source, lambda tensors: tensors.update({k: v.long() for k, v in tensors.items()})),
    "complex numbers": lambda source: weights(source, lambda t: t.update({k: v.to(torch.complex64) for k, v in t.items()})),
    "another shape": lambda source: weights(source, lambda tensors: tensors.update({first(tensors): torch.zeros(7, 7)})),
    "offsets that overlap": lambda source: header(source, overlapping),
    "a header of 2^62 bytes": lambda source: header(source, lambda table: None, 2**62),
    "an unknown type": lambda source: header(source, lambda table: table[first(table)].update(dtype="F1024")),
    "cut short": lambda source: (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100]),
    "no bytes": lambda source: (source / "model.safetensors").write_bytes(b""),
    "another architecture": lambda source: changed(source / "config.json", model_type="bert"),
    "an unknown architecture": lambda source: changed(source / "config.json", model_type="no-such"),
    "negative sizes": lambda source: changed(source / "config.json", n_layer=-1, n_embd=-16),
    "sizes of text": lambda source: changed(source / "config.json", n_embd="sixteen"),
    "10^9 layers": lambda source: changed(source / "config.json", n_layer=10**9),
    "no JSON": lambda source: (source / "config.json").write_text("[" * 100_000),
    "no end of text": lambda source: without_special_tokens(source),
    "a tokenizer of no JSON": lambda source: (source / "tokenizer.json").write_text("{"),
    "a folder for a file": lambda source: ((source / "model.safetensors").unlink(), (source / "model.safetensors").mkdir()),
}


def without_special_tokens(source: Path) -> None:
    changed(source / "tokenizer_config.json", eos_token=None, bos_token=None, unk_token=None, pad_token=None)
    (source / "special_tokens_map.json").unlink(missing_ok=True)


@attack(f"sources with {', '.join(DAMAGE)}", REFUSED)
def damaged_sources(attempt: Attempt) -> str:
    whole, cases = model(attempt.folder / "model"), []
    for number, damage in enumerate(DAMAGE.values()):
        source = attempt.folder / f"damaged-{number}"
        shutil.copytree(whole, source)
        damage(source)
        cases.append(grow(attempt, source))
    return attempt.each_refused(cases, names=list(DAMAGE))


@attack("a pickle that would run, in place of the safetensors, and where their index names it", REFUSED)
def poisoned_pickle(attempt: Attempt) -> str:
    source, mark = model(attempt.folder / "model"), attempt.folder / "mark"
    bomb = pickle.dumps(Bomb(mark))
    for name in ("pytorch_model.bin", "model.bin", "optimizer.pt"):
        (source / name).write_bytes(bomb)
    beside = attempt.growbench(*grow(attempt, source))
    assert beside.code == 0 and not mark.exists(), beside
    shutil.rmtree(attempt.results)
    (source / "model.safetensors").unlink()
    said = attempt.each_refused([grow(attempt, source)])
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    said = attempt.each_refused([grow(attempt, source)])
    (source / "model.safetensors").write_bytes(bomb)
    said = attempt.each_refused([grow(attempt, source)])
    if mark.exists():
        raise NotKept("the pickle ran")
    return f"{said}, in all three places; it did not run"


def answer_yes() -> None:
    import io

    sys.stdin = io.TextIOWrapper(io.BytesIO(YES))


@attack("evil.py beside a source and its tokenizer, which name it in auto_map; y on stdin as often as it is asked", REFUSED)
def remote_code(attempt: Attempt) -> str:
    source, mark = model(attempt.folder / "model"), attempt.folder / "mark"
    with_evil_code(source, mark)
    changed(source / "config.json", auto_map=AUTO_MAP, model_type="evil")
    changed(source / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="EvilTokenizer")
    said = attempt.each_refused([grow(attempt, source)], before=answer_yes)
    if mark.exists():
        raise NotKept("evil.py ran")
    return f"{said}; evil.py did not run"


@attack("a source in five shards, with a tensor that no model has", "exit code 0, as with the model in one file")
def sharded_source(attempt: Attempt) -> str:
    source = model(attempt.folder / "model")
    said = attempt.growbench(*grow(attempt, source))
    expected = attempt.losses()
    assert said.code == 0 and len(expected) == 2, said
    tensors = load_file(source / "model.safetensors") | {"unknown.weight": torch.ones(3)}
    names = {name: f"model-{number % 5 + 1:05}-of-00005.safetensors" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, source / file, {"format": "pt"})
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    (source / "model.safetensors").unlink()
    attempt.results = attempt.folder / "sharded"
    said = attempt.growbench(*grow(attempt, source))
    assert said.code == 0, said
    attempt.compare(expected)
    return "exit code 0; losses equal"


CATASTROPHIC = {"type": "Split", "pattern": {"Regex": r"(?:(?:\w+)+\s?)+$"}, "behavior": "Isolated", "invert": False}


@attack(
    "a tokenizer whose regular expression backtracks for ever on the corpus",
    "it does not hang, and prints no traceback",
)
def catastrophic_expression(attempt: Attempt) -> str:
    source = model(attempt.folder / "model")
    changed(source / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [CATASTROPHIC, BYTES]})
    said = attempt.growbench(*grow(attempt, source))
    if said.code not in (0, 2) or "Traceback" in said.err:
        raise NotKept(f"exit code {said.code}: {said.err[-200:]}")
    return f"exit code {said.code}"


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@attack("a tokenizer of 500,000 tokens for a model of 300", REFUSED)
def huge_vocabulary(attempt: Attempt) -> str:
    source = model(attempt.folder / "model")
    table = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = table["model"]["vocab"]
    vocabulary |= {f"token{number}": number for number in range(len(vocabulary), 500_000)}
    (source / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    return attempt.each_refused([grow(attempt, source)])
