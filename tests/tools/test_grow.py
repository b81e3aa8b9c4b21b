"""A checkpoint grown tensor by tensor is the one that the method makes in memory; a bad one is refused, and nothing is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from growbench import architectures, registry
from growbench.architectures.library import Timm
from growbench.cli import main
from growbench.config.schema import ModelConfig
from growbench.growth import lazy_draws
from growbench.method import Task
from growbench.method.streaming import BUDGET
from growbench.runs import sharded

SIZES = ModelConfig(layers=2, width=16, heads=2, ffn=40, vocabulary=60, positions=9)
GROUPED = {"kv_heads": 1}


def sizes_of(name: str) -> ModelConfig:
    options = architectures.get(name).options
    images = {"vocabulary": 5, "patch": 4} if architectures.get(name).objective == "classes" else {}
    return replace(SIZES, **images, **(GROUPED if "kv_heads" in options else {}))


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32, sizes: ModelConfig | None = None) -> nn.Module:
    """A random model of ours, and the same as a checkpoint."""
    architecture, sizes = architectures.get(name), sizes or sizes_of(name)
    torch.manual_seed(0)
    model = architecture.build(sizes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
        parameter.data = parameter.data.to(dtype).float()
    folder.mkdir()
    if isinstance(architecture.library, Timm):
        architecture.library.save(model, sizes, folder, None)
    else:
        config: Any = model.config
        (folder / "config.json").write_text(config.to_json_string(use_diff=False))
        save_file(
            {key: value.detach().to(dtype).contiguous() for key, value in model.named_parameters()}, folder / "model.safetensors"
        )
    return model


def grow(source: Path, out: Path, *options: str, to: str = "layers=3,width=32") -> Path:
    assert main(["grow", str(source), "--to", to, "--out", str(out), *options]) == 0
    return out


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def in_memory(name: str, model: nn.Module, method: str, seed: int, **options: Any) -> dict[str, Tensor]:
    """What the method makes of the model in a run."""
    small = sizes_of(name)
    groups = {"kv_heads": 2} if small.kv_heads else {}
    large = replace(small, layers=3, width=32, heads=4, ffn=80, **groups)
    rng = torch.Generator().manual_seed(seed)
    task = Task(architectures.get(name), large, BUDGET.steps, BUDGET, torch.device("cpu"), rng, small).with_source(model)
    torch.manual_seed(seed)
    phase = next(iter(registry.get(method, options).method.phases(task)))
    return {key: parameter.detach() for key, parameter in phase.model.named_parameters()}


CASES = [(name, "hypercloning", {}) for name in architectures.names()]
CASES += [
    ("gpt2", method, {}) for method in ("bert2bert", "net2net", "lemon", "direct_copy", "szp", "block_expansion", "depth_map")
]
CASES += [
    ("llama", "lemon", {"split": "complement", "outputs": "cancel"}),
    ("llama", "hypercloning", {"form": "diagonal"}),
    ("modernbert", "modernbert_tiling", {}),
    ("bert", "shuffled_source", {"like": "net2net"}),
    ("roberta", "bert2bert", {"init": "fpi"}),
]


@pytest.mark.parametrize(("name", "method", "options"), CASES, ids=lambda each: each if isinstance(each, str) else "")
def test_a_grown_checkpoint_is_the_model_that_the_method_makes_in_memory(
    name: str, method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "ROWS", 300)  # bytes: several parts a tensor
    monkeypatch.setattr(lazy_draws, "LARGE", 64)
    monkeypatch.setattr(lazy_draws, "BLOCK", 64)
    model = saved(name, tmp_path / "source")
    given = [part for key, value in options.items() for part in ("--set", f"{method}.{key}={value}")]
    out = grow(tmp_path / "source", tmp_path / "out", "--method", method, "--seed", "3", *given)
    found, expected = tensors(out), in_memory(name, model, method, 3, **options)
    assert found.keys() == expected.keys()
    differ = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    assert not differ
