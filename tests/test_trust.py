"""Nothing that lies beside a model, a tokenizer or a data set is executed, and nobody is asked whether to."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import growbench
from growbench import architectures
from growbench.config.schema import Experiment, ModelConfig, Pretrained, TextConfig, Training
from growbench.data import documents, tokenizer
from growbench.errors import UsageError
from growbench.runs import checkpoints, saved_models
from tests.runs.test_saved_models import RECORD

EVIL = """import pathlib
pathlib.Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Evil(PretrainedConfig): model_type = "evil"
class EvilTokenizer(PreTrainedTokenizerFast): pass
def generate(*args, **kwargs): pass
"""
YES = "y\n" * 100
AUTO_MAP = {
    "AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoModel": "evil.Evil",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}  # fmt: skip
SIZES = ModelConfig(layers=1, width=16, heads=2, vocabulary=300, positions=9)


class Bomb:
    """Once unpickled it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What evil code leaves behind. Whoever asks whether to run it reads yes on stdin, as often as it wants."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(YES))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "mark"


@pytest.fixture
def model(tmp_path: Path, corpus: Path) -> Path:
    """A GPT-2 with its tokenizer, as a run saves it, but for growbench.json, which would not let its files be changed."""
    architecture, folder = architectures.get("gpt2"), tmp_path / "model"
    trained = tokenizer.train("bytes", 300, False, [corpus.read_text(encoding="utf-8")])
    own = tokenizer.for_transformers(*trained, SIZES.positions)
    saved_models.TrainedModel(architecture, architecture.build(SIZES), SIZES, own).save(folder, RECORD)
    (folder / checkpoints.CARD).unlink()
    return folder


def changed(file: Path, **values: Any) -> None:
    """A JSON file with other values; None: without the key."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def with_evil_code(folder: Path, mark: Path) -> None:
    """Files that a library might import from the folder of a model, tokenizer or data set."""
    (folder / "custom_generate").mkdir()
    for name in ("evil.py", "modeling.py", "tokenizer.py", "custom_generate/generate.py", f"{folder.name}.py"):
        (folder / name).write_text(EVIL.format(mark=str(mark)), encoding="utf-8")


def use(folder: Path) -> list[str]:
    """All that a run does with a pretrained source and a tokenizer: loading them as it must fail, in one line each."""
    large = replace(SIZES, width=32, heads=4, vocabulary=0, positions=0)
    data = TextConfig(corpus="wikipedia-sample", sequence_length=9, vocabulary=300, tokenizer=str(folder))
    training = Training(batch=2, steps=3, lr=1e-3)
    experiment = Experiment("e", "E", "gpt2", large, large, data, training, training, pretrained=Pretrained(str(folder)))
    refusals = []
    for wanted in (
        lambda: saved_models.load(saved_models.resolved(experiment), torch.device("cpu")),
        lambda: tokenizer.named(str(folder), False),
    ):
        try:
            wanted()
        except UsageError as error:
            refusals.append(str(error))
    return refusals


@pytest.mark.parametrize("model_type", ["gpt2", "evil", None])
def test_code_beside_a_model_and_its_tokenizer_never_runs(model: Path, mark: Path, model_type: str | None) -> None:
    """A model of a known type is read by the library's own class; one that needs its own code is refused."""
    with_evil_code(model, mark)
    changed(model / "config.json", auto_map=AUTO_MAP, model_type=model_type)
    changed(model / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="EvilTokenizer")
    refusals = use(model)
    assert not mark.exists()
    assert sys.stdin.read() == YES, "stdin was read"
    assert bool(refusals) == (model_type != "gpt2")
    assert all("contains custom code" in refusal or "config.json" in refusal for refusal in refusals), refusals


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_not_fetched(model: Path, mark: Path, where: str) -> None:
    changed(model / where, auto_map={key: "someone/else--evil.Evil" for key in AUTO_MAP})
    changed(model / "config.json", model_type="evil" if where == "config.json" else "gpt2")
    assert bool(use(model)) == (where == "config.json")
    assert not mark.exists() and sys.stdin.read() == YES


def test_a_kernel_that_a_configuration_names_is_not_fetched(model: Path) -> None:
    """Kernels of the hub are code."""
    changed(model / "config.json", attn_implementation="someone/kernel", _attn_implementation="someone/kernel")
    assert not use(model)
    assert "kernel" not in architectures.of_checkpoint(model).library.sizes(model).configuration


def test_a_model_of_complex_numbers_is_refused(model: Path) -> None:
    """Libraries would drop the imaginary parts, with no more than a warning."""
    tensors = load_file(model / "model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].to(torch.complex64)}, model / "model.safetensors", {"format": "pt"})
    (refusal,) = use(model)
    assert refusal.endswith(f"{name} holds complex numbers")


def test_a_poisoned_pickle_never_runs(model: Path, mark: Path) -> None:
    """Neither in place of the safetensors, nor where their index names it."""
    (weights := model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "optimizer.pt", ".metadata"):
        (model / name).write_bytes(pickle.dumps(Bomb(mark)))
    assert any("holds no safetensors" in refusal for refusal in use(model))
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert use(model)
    weights.write_bytes(pickle.dumps(Bomb(mark)))
    assert use(model)
    assert not mark.exists()
    pickle.loads(weights.read_bytes())
    assert mark.exists()  # it works where pickles are read


def test_a_script_beside_a_data_set_never_runs(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "script"
    folder.mkdir()
    with_evil_code(folder, mark)
    config = TextConfig(corpus=f"hub:{folder}", sequence_length=9, vocabulary=300)
    with pytest.raises(UsageError, match="cannot be read"):
        list(documents.Documents(config))
    assert not mark.exists() and sys.stdin.read() == YES


# calls that can run what a file holds, and what each needs so that it cannot
SAFE = {
    "from_pretrained": ("trust_remote_code", False),
    "load_dataset": ("trust_remote_code", False),
    "load_dataset_builder": ("trust_remote_code", False),
    "read_array": ("allow_pickle", False),
}
FORBIDDEN = {"eval", "exec", "read_pickle", "from_config", "input", "load_custom_generate", "pipeline", "hf_hub_download"}
LOADERS = {"torch.load", "pickle.load", "pickle.loads", "np.load", "joblib.load", "dill.load", "cloudpickle.load"}


def unsafe_calls(code: str) -> list[str]:
    """The calls in Python code that can run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            full = ast.unparse(node.func)
            name = full.rpartition(".")[2]
            values = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            key, value = SAFE.get(name, ("", None))
            if full in LOADERS or full in FORBIDDEN or name in FORBIDDEN - {"eval"} or (key and values.get(key) is not value):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


PACKAGE = Path(growbench.__file__).parent
SOURCES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "methods").glob("*.py")]


def test_no_call_can_run_what_a_file_holds() -> None:
    assert len(SOURCES) > 100
    assert {str(path): calls for path in SOURCES if (calls := unsafe_calls(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "call",
    [
        "AutoModel.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoConfig.from_pretrained(x, trust_remote_code=None)",
        "AutoModel.from_config(x)",
        "load_dataset('json', data_files=x)",
        "torch.load(x)",
        "np.load(x)",
        "np.lib.format.read_array(x)",
        "input('run it? ')",
        "eval(x)",
    ],
)
def test_a_call_that_can_is_found(call: str) -> None:
    assert unsafe_calls(call)
