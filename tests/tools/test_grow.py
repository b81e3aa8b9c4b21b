"""A checkpoint grown tensor by tensor is the one that the method makes in memory; a bad one is refused, and nothing is left."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from growbench import architectures, registry
from growbench.architectures.timm_library import Timm
from growbench.cli import main
from growbench.config.schema import ModelConfig, Pretrained
from growbench.errors import UsageError
from growbench.growth import lazy_draws
from growbench.growth.selections import Selection
from growbench.method import Task
from growbench.method.streaming import BUDGET
from growbench.runs import checkpoints, saved_models, sharded, stored_tensors
from growbench.runs.records import Cost
from growbench.runs.stored_tensors import Checkpoint
from growbench.tools import grow_sizes

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
        stored = {key: architecture.library.to_stored(key, value.detach()) for key, value in model.named_parameters()}
        save_file({key: value.to(dtype).contiguous() for key, value in stored.items()}, folder / "model.safetensors")
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


KINDS = ("bert", "cait", "dinov3", "gemma3", "gpt2", "llama", "vit")  # each family is grown in tests/architectures/promises.py
CASES = [(name, "hypercloning", {}) for name in KINDS]
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
    monkeypatch.setattr(sharded, "ROWS", 1000)  # bytes: several parts a tensor
    monkeypatch.setattr(lazy_draws, "LARGE", 64)
    monkeypatch.setattr(lazy_draws, "BLOCK", 64)
    model = saved(name, tmp_path / "source")
    given = [part for key, value in options.items() for part in ("--set", f"{method}.{key}={value}")]
    out = grow(tmp_path / "source", tmp_path / "out", "--method", method, "--seed", "3", *given)
    found, expected = tensors(out), in_memory(name, model, method, 3, **options)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        rounded = name == "gemma3" and "norm" in key  # Gemma's library stores a gain minus 1
        stored = architectures.get(name).library.to_stored(key, value)
        torch.testing.assert_close(found[key], stored, rtol=0, atol=2**-22 if rounded else 0, msg=key)


def test_half_precision_is_grown_in_float32_and_rounded_once(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "source", torch.bfloat16)
    found = tensors(grow(tmp_path / "source", tmp_path / "out"))
    expected = in_memory("llama", model, "hypercloning", 0)
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in expected.items())


def test_shards_in_and_out_and_the_files_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("llama", tmp_path / "whole", torch.bfloat16)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    source = tmp_path / "source"
    source.mkdir()
    names = sorted(whole)
    parts = {f"model-0000{number + 1}-of-00003.safetensors": names[number::3] for number in range(3)}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, source / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((tmp_path / "whole" / "config.json").read_text()) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    (source / "README.md").write_text("---\nlanguage: en\nlicense: other\nlicense_name: mine\n---\n# Source\n")
    (source / "optimizer.pt").write_bytes(b"not to be copied")
    monkeypatch.setattr(sharded, "SHARD", 4000)
    out = grow(source, tmp_path / "out")
    same = grow(tmp_path / "whole", tmp_path / "same")
    assert all(torch.equal(value, tensors(same)[name]) for name, value in tensors(out).items())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(value.numel() for value in tensors(out).values())
    for name, file in index["weight_map"].items():
        assert name in load_file(out / file)
    grown_config = json.loads((out / "config.json").read_text())
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
    }
    assert grown_config == config | sizes
    for name in ("tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not (out / "optimizer.pt").exists()
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: mine\nlibrary_name: transformers\n")
    about = json.loads((out / "growbench.json").read_text())
    for said in (f"growbench grow {source} --to layers=3,width=32", about["source"]["sha256"], "Function preserving: in width"):
        assert said in card
    assert (about["method"], about["layers"]) == ("hypercloning", "0-1 from 0-1, 2 from 1")
    assert about["sizes"]["width"] == 32
    assert checkpoints.damage(out) == ""
    assert saved_models.cost(Pretrained(str(out))) == Cost()  # as an experiment's source; that of its own source is not known
    assert set(about["sha256"]) == {path.name for path in out.iterdir()} - {"growbench.json"}


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_grown_checkpoint_loads_in_its_library_and_can_grow_again(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "source")
    out = grow(tmp_path / "source", tmp_path / "out", "--set", "hypercloning.noisy=false", to="width=32")
    library = architectures.get(name).library
    inputs, expected = library.example(library.load(tmp_path / "source"), 9)
    stock = library.load(out)
    with torch.no_grad():
        found = stock(inputs) if isinstance(library, Timm) else stock(inputs).logits.flatten(0, 1)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)  # the method's promise
    grow(out, tmp_path / "again", to="layers=3")


def test_changed_settings_are_in_the_configuration(tmp_path: Path) -> None:
    saved("llama", tmp_path / "source")
    out = grow(tmp_path / "source", tmp_path / "out", "--method", "lemon", to="width=24,heads=3,kv_heads=1,ffn=60")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "source", out)]
    assert configs[1]["rms_norm_eps"] == pytest.approx(configs[0]["rms_norm_eps"] * 16 / 24)


def test_a_dry_run_shows_every_tensor_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved("llama", tmp_path / "source", torch.bfloat16)
    before = sorted(tmp_path.rglob("*"))
    asked = ["grow", str(tmp_path / "source"), "--to", "layers=5,width=32", "--method", "depth_map"]
    assert main([*asked, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "model.layers.{0..4}.mlp.gate_proj.weight" in shown
    assert "40 x 16" in shown and "80 x 32" in shown
    assert "layers: 0-1 from 0-1, 2-3 from 0-1, 4 from 0" in shown
    total = 60 * 32 + 32 + 5 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 80 * 32 + 2 * 32)
    assert f"{total / 1000:.1f} k" in shown
    assert sorted(tmp_path.rglob("*")) == before
    assert main(asked) == 2
    assert "--out DIR: where to write the grown checkpoint" in capsys.readouterr().err


def refused(source: Path, *options: str, to: str = "layers=3", capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why; nothing is written."""
    before = sorted(source.parent.rglob("*"))
    out = source.parent / "out"
    assert main(["grow", str(source), "--to", to, "--out", str(out), *options]) == 2
    assert sorted(source.parent.rglob("*")) == before
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert not said.out
    return line


def rewritten(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Changes a checkpoint's tensors."""

    def spoil(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return spoil


def with_config(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def with_index(**files: str) -> Callable[[Path], None]:
    """An index that says another file for some tensors."""

    def spoil(folder: Path) -> None:
        names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
        changed = names | {name.replace("__", "."): file for name, file in files.items()}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": changed}))

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def without_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def with_card(card: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "growbench.json").write_text(json.dumps(card))

    return spoil


def in_two_ways(folder: Path) -> None:
    with_index()(folder)
    shutil.copyfile(folder / "model.safetensors", folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model.safetensors", "model-1.safetensors"))


OTHER_WEIGHTS = {"sha256": {"model.safetensors": "0" * 64}}
NORM, QUERY = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"


def with_entry(number: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights[QUERY][3, 5] = number
        return weights

    return change


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle only": (pickled, "only pickled weights (pytorch_model.bin), which can run code: save it as safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    "code of its own": (with_config(auto_map={"AutoModel": "mine.Model"}), "brings code of its own (auto_map in config.json)"),
    "missing tensor": (rewritten(lambda weights: {k: v for k, v in weights.items() if k != NORM}), f"lacks weights: {NORM}"),
    "extra tensor": (rewritten(lambda weights: weights | {"more.weight": torch.ones(2)}), "llama does not have: more.weight"),
    "NaN": (rewritten(with_entry(float("nan"))), f"{QUERY} holds NaN or infinity"),
    "infinity": (rewritten(with_entry(float("-inf"))), f"{QUERY} holds NaN or infinity"),
    "mixed types": (rewritten(lambda weights: weights | {NORM: weights[NORM].half()}), "several types (F16, F32)"),
    "quantised by configuration": (with_config(quantization_config={"bits": 4}), "quantised (quantization_config)"),
    "integers": (rewritten(lambda weights: weights | {NORM: weights[NORM].to(torch.int8)}), f"quantised ({NORM} is I8)"),
    "8 bits": (rewritten(lambda weights: weights | {NORM: weights[NORM].to(torch.float8_e4m3fn)}), f"({NORM} is F8_E4M3)"),
    "complex": (rewritten(lambda weights: weights | {NORM: weights[NORM].to(torch.complex64)}), "holds complex numbers"),
    "index outside": (with_index(model__norm__weight="../model.safetensors"), "points outside its folder"),
    "index elsewhere": (with_index(model__norm__weight="/etc/passwd"), "points outside its folder"),
    "index without file": (with_index(model__norm__weight="model-2.safetensors"), "model-2.safetensors, which"),
    "index of another": (with_index(other__weight="model.safetensors"), "differ in other.weight"),
    "cut off": (cut_off, "model.safetensors is damaged or cut off"),
    "no safetensors": (without_header, "model.safetensors is damaged or cut off"),
    "index of other files": (in_two_ways, "holds model.safetensors, and model.safetensors.index.json of other files"),
    "card of a list": (with_card([1]), "growbench.json is no JSON object"),
    "card of a wrong cost": (with_card({"cost": {"flops": 1}}), "growbench.json: cost must hold tables"),
    "damaged": (with_card(OTHER_WEIGHTS), "model.safetensors: is damaged (sha256 differs from growbench.json)"),
    "shape": (rewritten(lambda weights: weights | {NORM: torch.ones(5)}), f"{NORM} has shape (5,)"),
    "tied and different": (rewritten(lambda weights: weights | {"lm_head.weight": torch.ones(60, 16)}), "tied, and differ"),
    "unknown family": (with_config(model_type="t5"), "'t5' is no family that growbench can read: it reads transformers' bert,"),
    "size of text": (with_config(hidden_size="many"), "Field 'hidden_size' expected int, got str (value: 'many')"),
    "layers below zero": (with_config(num_hidden_layers=-3, layer_types=["full_attention"]), "`num_hidden_layers` (-3) must be"),
    "layers of no tensors": (with_config(num_hidden_layers=10**6, layer_types=None), "says 1,000,000 layers, and there are"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    "configuration of text": (lambda folder: (folder / "config.json").write_text("{") and None, "config.json: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, reason = BAD[case]
    saved("llama", tmp_path / "source")
    spoil(tmp_path / "source")
    assert reason in refused(tmp_path / "source", capsys=capsys)


def test_what_the_library_leaves_out_is_left_out(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    weights = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}  # as on the hub
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 9, 9), "lm_head.weight": weights["wte.weight"].clone()}, path)
    found = tensors(grow(tmp_path / "source", tmp_path / "out", to="layers=3"))
    assert torch.equal(found["transformer.wte.weight"], weights["wte.weight"])
    assert "lm_head.weight" not in found


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoders_other_heads_and_old_names_are_left_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As BERT stands on the hub: norms of gamma and beta, a pooler, next-sentence prediction, numbers of positions."""
    saved(name, tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    weights = load_file(path)
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weights[key]
        for key in weights
    }
    old |= {f"{name}.pooler.dense.weight": torch.ones(16, 16), f"{name}.pooler.dense.bias": torch.ones(16)}
    old |= {"cls.seq_relationship.weight": torch.ones(2, 16)} if name == "bert" else {}
    save_file(old | {f"{name}.embeddings.position_ids": torch.arange(9)[None]}, path)
    found = tensors(grow(tmp_path / "source", tmp_path / "out", to="layers=3"))
    norm = f"{name}.embeddings.LayerNorm.weight"
    assert torch.equal(found[norm], weights[norm])
    assert f"left out, as {name} has no use for them: " in capsys.readouterr().out
    assert not any("pooler" in key or "seq_relationship" in key or "position_ids" in key for key in found)


SOURCE = {"layers": 24, "width": 2048, "heads": 32, "kv_heads": 8, "ffn": 8192}


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("width=3000", "widths that do: 2816, 3072; or name heads, kv_heads or ffn, too"),
        ("layers=12", "--to layers=12: the source has 24, and a model only grows"),
        ("width=4096,ffn=4096", "--to ffn=4096: the source has 8192"),
        ("layers=24", "names no size that is larger"),
        ("depth=30", "unknown size 'depth'"),
        ("layers", "'layers' is none"),
        ("layers=30,layers=31", "each once"),
        ("layers=-3", "each once"),
        ("layers=" + "9" * 30, "each once"),
        ("heads=33", "do not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(to: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        grow_sizes.target(ModelConfig(**SOURCE), grow_sizes.asked(to), architectures.get("llama"))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("layers=32", SOURCE | {"layers": 32}),
        ("width=4096", {"layers": 24, "width": 4096, "heads": 64, "kv_heads": 16, "ffn": 16384}),
        ("width=3072", {"layers": 24, "width": 3072, "heads": 48, "kv_heads": 12, "ffn": 12288}),
        ("ffn=9000", SOURCE | {"ffn": 9000}),
        ("width=3000,heads=64,ffn=9001", {"layers": 24, "width": 3000, "heads": 64, "kv_heads": 16, "ffn": 9001, "head_dim": 64}),
        ("kv_heads=32", SOURCE | {"heads": 128, "kv_heads": 32, "head_dim": 64}),
        ("heads=64,kv_heads=8", SOURCE | {"heads": 64, "head_dim": 64}),
    ],
)
def test_sizes_that_are_not_named_follow(to: str, expected: dict[str, int]) -> None:
    assert grow_sizes.target(ModelConfig(**SOURCE), grow_sizes.asked(to), architectures.get("llama")) == ModelConfig(**expected)


@pytest.mark.parametrize("name", architectures.names())
def test_entries_are_counted_as_those_of_the_model(name: str) -> None:
    architecture, old = architectures.get(name), sizes_of(name)
    new = replace(old, layers=5, width=32, heads=4, ffn=90, kv_heads=2 * old.kv_heads)
    real = sum(shape.numel() for shape in architecture.shapes(new).values())
    assert grow_sizes.entries(architecture.shapes(old), old, new, architecture) == real


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("width=16016", "--to width=16016: the source has 16; at most 1,000 times as much is allowed"),
        ("layers=2147483647", "--to layers=2147483647: the source has 2; at most 1,000 times as much is allowed"),
        ("layers=2000,width=16000", "are free there"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_planned(
    to: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("llama", tmp_path / "source")
    monkeypatch.setattr("growbench.tools.grow.grown", None)
    assert reason in refused(tmp_path / "source", to=to, capsys=capsys)


def test_heads_that_follow_from_the_width_grow_whole() -> None:
    with pytest.raises(UsageError, match=r"heads grow|grow whole, with the source's 8: heads=4 fits"):
        grow_sizes.target(SIZES, {"width": 32, "heads": 2}, architectures.get("gpt2"))
    with pytest.raises(UsageError, match="kv_heads=2: gpt2 has none of its own"):
        grow_sizes.target(SIZES, {"kv_heads": 2}, architectures.get("gpt2"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "ligo"], "ligo needs data before its target exists: growbench run EXPERIMENT --methods ligo --save"),
        (["--method", "progressive_net"], "progressive_net needs data"),
        (["--method", "midas"], "midas grows no source"),
        (["--method", "lemmon"], "did you mean lemon"),
        (["--set", "train.steps=3"], "--set train.steps=3: grow takes hyperparameters of its method, as hypercloning.KEY=VALUE"),
        (["--set", "hypercloning.nosy=true"], "nosy"),
    ],
)
def test_methods_that_cannot_grow_a_checkpoint_say_why(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("gpt2", tmp_path / "source")
    assert reason in refused(tmp_path / "source", *options, capsys=capsys)


def test_a_folder_that_exists_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved("gpt2", tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert "exists already" in refused(tmp_path / "source", capsys=capsys)


def test_a_link_that_leads_nowhere_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved("gpt2", tmp_path / "source")
    (tmp_path / "out").symlink_to("nowhere")
    assert "exists already" in refused(tmp_path / "source", capsys=capsys)


def test_folders_that_were_made_for_it_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the source turns out to be damaged while it is read; what was there before stays."""
    saved("llama", tmp_path / "source")
    rewritten(with_entry(float("nan")))(tmp_path / "source")
    (tmp_path / "mine").mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "mine" / "new" / "deep" / "out"
    assert main(["grow", str(tmp_path / "source"), "--to", "layers=3", "--out", str(out)]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_that_vanishes_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("gpt2", tmp_path / "source")
    weights, read = tmp_path / "source" / "model.safetensors", Checkpoint.read

    def read_once_gone(checkpoint: Checkpoint, name: str, wanted: Selection) -> Tensor:
        weights.unlink(missing_ok=True)
        return read(checkpoint, name, wanted)

    monkeypatch.setattr(Checkpoint, "read", read_once_gone)
    assert main(["grow", str(tmp_path / "source"), "--to", "layers=3", "--out", str(tmp_path / "out")]) == 2
    assert f"growbench: {weights}: cannot be read ([Errno 2] No such file" in capsys.readouterr().err


def test_a_source_that_changes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("gpt2", tmp_path / "source")
    weights, check = tmp_path / "source" / "model.safetensors", Checkpoint.check_rest

    def check_and_write(checkpoint: Checkpoint) -> None:
        check(checkpoint)
        os.utime(weights, (1, 1))  # as a writer does

    monkeypatch.setattr(Checkpoint, "check_rest", check_and_write)
    assert main(["grow", str(tmp_path / "source"), "--to", "layers=3", "--out", str(tmp_path / "out")]) == 2
    assert f"growbench: {weights}: was changed while it was read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_must_not_be_read_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("gpt2", tmp_path / "source")
    opened: Any = Path.open

    def forbidden(path: Path, *mode: Any, **more: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *mode, **more)

    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(stored_tensors, "safe_open", forbidden)
    assert "source: cannot be read ([Errno 13] Permission denied: " in refused(tmp_path / "source", capsys=capsys)


def test_a_disk_that_fills_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("gpt2", tmp_path / "source")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        assert "File too large: nothing was kept" in refused(tmp_path / "source", capsys=capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 1000))  # type: ignore[attr-defined]
    assert "1.00 kB are free there" in refused(tmp_path / "source", capsys=capsys)


def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And does not say that something can be resumed."""
    saved("gpt2", tmp_path / "source")
    monkeypatch.setattr("growbench.tools.grow.flush_all", interrupted)
    assert main(["grow", str(tmp_path / "source"), "--to", "layers=3", "--out", str(tmp_path / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert capsys.readouterr().err.splitlines()[-1] == "growbench: interrupted"


def interrupted(folder: Path) -> None:
    assert list(folder.glob("*.safetensors"))
    raise KeyboardInterrupt
