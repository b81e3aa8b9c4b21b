"""`growbench verify` finds each kind of damage and names it; what it counts and measures is what other code finds."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from growbench import architectures, registry
from growbench.architectures import sizes_of
from growbench.architectures.new_parts import NewParts
from growbench.architectures.symmetry import symmetric
from growbench.cli import main
from growbench.config.schema import ModelConfig, Training
from growbench.data import tokenizer
from growbench.method import Task
from growbench.runs.saved_models import TrainedModel
from growbench.tools import probe
from tests.runs.test_saved_models import RECORD, TEXT, random_model, sizes_for, trained_tokenizer

WIDER = {"width": 32, "heads": 4, "ffn": 80}
Edit = Callable[[dict[str, Tensor], dict[str, Any]], None]  # of tensors and configuration


def save(name: str, model: nn.Module, folder: Path, corpus: Path) -> Path:
    """As a run does."""
    architecture, sizes = architectures.get(name), sizes_of(model)
    own = tokenizer.for_transformers(*trained_tokenizer(name, corpus), sizes.positions) if name in TEXT else None
    TrainedModel(architecture, model, sizes, own).save(folder, RECORD)
    return folder


def grown(name: str, source: nn.Module, method: str, target: ModelConfig, **options: Any) -> nn.Module:
    """The model that a method makes, before any training."""
    training, rng = Training(batch=2, steps=10, lr=1e-3), torch.Generator().manual_seed(0)
    task = Task(architectures.get(name), target, 10, training, torch.device("cpu"), rng, sizes_of(source))
    return next(registry.get(method, options).method.phases(task.with_source(source.requires_grad_(False)))).model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A small GPT-2."""
    return save("gpt2", random_model("gpt2", sizes_for("gpt2")), tmp_path_factory.mktemp("source") / "model", corpus)


@pytest.fixture(scope="module")
def wide(source: Path) -> Path:
    """The same, twice as wide, as `growbench grow` grows it."""
    out = source.parent / "wide"
    assert main(["grow", str(source), "--to", "width=32", "--out", str(out)]) == 0
    return out


@pytest.fixture
def verify(corpus: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command. Gives its exit code, what it prints, and the last line on stderr."""

    def run(*folders: Path, text: Path | None = corpus) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["verify", *map(str, folders), *(["--text", str(text)] if text else [])])
        said = capsys.readouterr()
        assert all(len(line) <= 80 for line in said.out.splitlines() if str(corpus) not in line and "/" not in line)
        return code, " ".join(said.out.split()), (said.err.strip().splitlines() or [""])[-1]

    return run


def changed(folder: Path, out: Path, edit: Edit, digests: bool = False) -> Path:
    """A copy with other tensors and another configuration. `digests`: growbench.json still has those of the old files."""
    shutil.copytree(folder, out)
    tensors, config = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    before = dict(config)
    edit(tensors, config)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    if config != before:
        (out / "config.json").write_text(json.dumps(config))
    if not digests:
        card = json.loads((out / "growbench.json").read_text())
        del card["sha256"]
        (out / "growbench.json").write_text(json.dumps(card))
    return out


Verify = Callable[..., tuple[int, str, str]]


def test_a_grown_checkpoint_verifies_and_its_source_is_found(source: Path, wide: Path, verify: Verify) -> None:
    code, said, error = verify(wide)
    assert (code, error) == (0, "")
    assert f"SOURCE {source}: gpt2, layers 2, width 16" in said and "hypercloning (form = symmetric" in said
    assert "so it preserves the function" in said and "promised is at most 1.0e-04, rounding" in said
    assert "29, all present, of the right shape and finite; none extra" in said
    assert "embedding and head are one tensor" in said and "growth changed the sizes alone" in said


def test_a_grown_model_alone_verifies(wide: Path, tmp_path: Path, verify: Verify) -> None:
    alone = changed(wide, tmp_path / "alone", lambda tensors, config: None)
    (alone / "growbench.json").unlink()
    code, said, error = verify(alone)
    assert (code, error) == (0, "") and "not known" in said and "SOURCE" not in said and "symmetric pairs" in said


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("gpt2", ("bert2bert", WIDER, {"init": "fpi"})),
        ("bert", ("hypercloning", WIDER, {"noisy": False})),
        ("llama", ("block_expansion", {"layers": 4}, {})),
        ("vit", ("hypercloning", WIDER, {})),
    ],
)
def test_models_grown_in_a_run_verify(
    name: str, growth: tuple[str, dict[str, int], dict[str, Any]], tmp_path: Path, corpus: Path, verify: Verify
) -> None:
    method, target, options = growth
    small = random_model(name, sizes_for(name))
    large = grown(name, small, method, replace(sizes_of(small), **target), **options)
    folders = [save(name, model, tmp_path / key, corpus) for key, model in (("large", large), ("small", small))]
    code, said, error = verify(*folders, text=corpus if name in TEXT else None)
    assert (code, error) == (0, "")
    change = float(said.partition("relative change ")[2].split()[0])
    assert change < 1e-5 and "nothing is promised" in said
    assert ("4 random images" in said) == (name == "vit")


# Damage


def without(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    del tensors["transformer.h.1.ln_1.weight"]


def beyond(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["transformer.h.2.ln_1.weight"] = torch.ones(32)


def misshapen(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["transformer.h.1.ln_1.weight"] = torch.ones(16)


def not_finite(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = torch.nan


def of_several_types(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"] = tensors["transformer.h.1.mlp.c_fc.weight"].bfloat16()


def untied(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


def untied_by_configuration(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    config["tie_word_embeddings"] = False


def another_function(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"] *= 1.01


def layers_of_no_tensors(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["n_layer"] = 10**6


def more_layers(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["n_layer"] = 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without, "lacks transformer.h.1.ln_1.weight"),
        (layers_of_no_tensors, "config.json says 1,000,000 layers, and there are 28 tensors"),
        (more_layers, "lacks transformer.h.2.attn.c_attn.bias (and 11 others)"),
        (beyond, "has a tensor that its class has not: transformer.h.2.ln_1.weight"),
        (misshapen, "transformer.h.1.ln_1.weight has shape (16,), in its class (32,)"),
        (not_finite, "transformer.h.1.mlp.c_fc.weight holds NaN or infinity, 1 time"),
        (of_several_types, "its weights are of several types (BF16, F32): growbench grow writes one"),
        (untied, "is not tied: embedding and head are different tensors"),
        (untied_by_configuration, "is not tied: its configuration gives it a head of its own"),
        (another_function, "its function is another: logits change by"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_damage_is_found_and_named(edit: Edit, message: str, wide: Path, tmp_path: Path, verify: Verify) -> None:
    broken = changed(wide, tmp_path / "broken", edit)
    code, said, error = verify(broken)
    assert code == 1 and error.startswith(f"growbench: {broken}: {message}")
    assert "WRONG" in said


@pytest.mark.parametrize(
    ("written", "code", "message"),
    [
        (("model.safetensors.index.json", "[1"), 1, "model.safetensors.index.json: cannot be read (Expecting ',' delimiter"),
        (("model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}'), 1, "points outside its folder"),
        (("growbench.json", "{"), 2, "growbench.json: cannot be read"),
        (("growbench.json", "[1]"), 2, "growbench.json is no JSON object"),
        (("growbench.json", '{"source": {}, "method": "lemon"}'), 2, "growbench.json: hyperparameters is missing, or no dict"),
        (("growbench.json", '{"sha256": []}'), 2, "growbench.json: sha256 is missing, or no dict"),
        (("growbench.json", '{"layer_origins": [0, 1]}'), 2, "growbench.json: layer_origins must hold lists of layers"),
        (("growbench.json", '{"layer_origins": [[0], [[1]]]}'), 2, "growbench.json: layer_origins must hold lists of layers"),
        (("growbench.json", '{"layer_origins": [[0]]}'), 1, "growbench.json: layer_origins lists 1 layer, the model has 2"),
    ],
)
def test_a_description_that_cannot_be_read_is_named(
    written: tuple[str, str], code: int, message: str, wide: Path, tmp_path: Path, verify: Verify
) -> None:
    shutil.copytree(wide, tmp_path / "broken")
    file, content = written
    (tmp_path / "broken" / file).write_text(content)
    found, _, error = verify(tmp_path / "broken")
    assert found == code and message in error


def test_a_file_that_was_cut_off_is_named(wide: Path, tmp_path: Path, verify: Verify) -> None:
    shutil.copytree(wide, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    code, _, error = verify(tmp_path / "cut")
    assert code == 1 and "model.safetensors is damaged or cut off" in error


def test_weights_without_a_digest_are_named(wide: Path, tmp_path: Path, verify: Verify) -> None:
    """Where other files have one."""
    shutil.copytree(wide, tmp_path / "undescribed")
    card = tmp_path / "undescribed" / "growbench.json"
    content = json.loads(card.read_text())
    del content["sha256"]["model.safetensors"]
    card.write_text(json.dumps(content))
    code, _, error = verify(tmp_path / "undescribed")
    assert code == 1 and "model.safetensors is not among the files that growbench.json describes" in error


def test_a_file_that_growbench_json_does_not_describe_is_named(wide: Path, tmp_path: Path, verify: Verify) -> None:
    other = changed(wide, tmp_path / "other", another_function, digests=True)
    code, said, error = verify(other)
    assert code == 1 and "model.safetensors is damaged (sha256 differs)" in error
    assert "its function is another" in said  # the rest is examined nevertheless


def test_a_source_that_is_another_is_named(source: Path, wide: Path, tmp_path: Path, verify: Verify) -> None:
    other = changed(source, tmp_path / "other", another_function)
    code, said, error = verify(wide, other)
    assert "not the one that GROWN was grown from: model.safetensors is another" in said
    assert code == 1 and "its function is another" in error
    assert "grown from" not in verify(wide, source)[1]


def test_a_source_whose_logits_are_all_zero_is_compared(source: Path, wide: Path, tmp_path: Path, verify: Verify) -> None:
    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["transformer.wte.weight"].zero_()

    before, after = (changed(each, tmp_path / each.name, edit) for each in (source, wide))
    code, said, _ = verify(after, before)
    assert "relative change 0.0e+00 in float32" in said
    code, said, error = verify(wide, before)
    assert code == 1 and "its function is another: logits change by inf in float32" in error


def test_a_source_whose_logits_are_not_finite_is_refused(source: Path, wide: Path, tmp_path: Path, verify: Verify) -> None:
    bad = changed(source, tmp_path / "bad", not_finite)
    code, _, error = verify(wide, bad)
    assert code == 2 and f"SOURCE = '{bad}': its logits are not finite" in error


def test_a_configuration_that_growth_should_not_change_is_shown(wide: Path, tmp_path: Path, verify: Verify) -> None:
    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["layer_norm_epsilon"] = 0.5

    code, said, _ = verify(changed(wide, tmp_path / "other", edit))
    assert code == 1 and "besides the sizes, growth changed layer_norm_epsilon from 1e-05 to 0.5" in said


@pytest.mark.parametrize(
    ("zeroed", "dead"),
    [
        (("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight"), "40 of the 40 new FFN neurons of layer 0"),
        (("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"), "2 of the 2 new attention heads of layer 0"),
    ],
)
def test_new_units_without_gradient_are_found(
    zeroed: tuple[str, ...], dead: str, source: Path, wide: Path, tmp_path: Path, verify: Verify
) -> None:
    """Units whose incoming and outgoing weights are all zero learn nothing."""

    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in zeroed:
            value = tensors[f"transformer.h.0.{name}"]
            if "c_proj" in name:
                value[len(value) // 2 :] = 0
            else:
                for part in value.chunk(3 if "attn" in name else 1, -1):
                    part[..., part.shape[-1] // 2 :] = 0

    folder = changed(wide, tmp_path / "dead", edit)
    (folder / "growbench.json").unlink()
    code, _, error = verify(folder, source)
    assert code == 1 and f"no gradient reaches {dead}: " in error


def test_layers_that_begin_as_the_identity_have_a_gradient(tmp_path: Path, corpus: Path, verify: Verify) -> None:
    """Only their outgoing weights have one at first. Without these, a new layer is dead."""
    small = random_model("llama", sizes_for("llama"))
    large = grown("llama", small, "block_expansion", replace(sizes_of(small), layers=3))
    folders = [save("llama", model, tmp_path / key, corpus) for key, model in (("large", large), ("small", small))]
    assert verify(*folders)[0] == 0

    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in tensors:
            if name.startswith("model.layers.2."):
                tensors[name].zero_()

    code, _, error = verify(changed(folders[0], tmp_path / "dead", edit), folders[1])
    assert code == 1 and "no gradient reaches layer 2" in error


# Bounds and figures


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_change_of_function(dtype: torch.dtype, source: Path, tmp_path: Path, verify: Verify) -> None:
    """In half precision the bound is what rounding does to the source. Another weight is more."""

    def rounded(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["dtype"] = str(dtype).removeprefix("torch.")
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weight"] *= 1.5

    half = changed(source, tmp_path / "half", rounded)
    assert main(["grow", str(half), "--to", "width=48", "--out", str(tmp_path / "grown")]) == 0
    code, said, _ = verify(tmp_path / "grown")
    assert code == 0 and "3 times what rounding changes in SOURCE" in said
    code, _, error = verify(changed(tmp_path / "grown", tmp_path / "off", edit))
    assert code == 1 and "logits change by" in error and str(dtype).removeprefix("torch.") in error


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta"])
def test_the_loss_is_the_librarys_own(name: str, tmp_path: Path, corpus: Path) -> None:
    model = random_model(name, sizes_for(name))
    folder, architecture = save(name, model, tmp_path / "model", corpus), architectures.get(name)
    tried = probe.of(architecture, sizes_of(model), [folder], corpus)
    found = probe.outputs(architecture.library.load(folder), tried)
    inputs = tried.batch.inputs
    with torch.no_grad():
        if name == "gpt2":  # the last label is no input
            whole = torch.cat([inputs, tried.batch.labels.reshape(inputs.shape)[:, -1:]], 1)
            stock = AutoModelForCausalLM.from_pretrained(folder).eval()
            logits = stock(inputs).logits
            expected = nn.functional.cross_entropy(logits.transpose(1, 2), whole[:, 1:])
        else:
            labels = torch.full((inputs.numel(),), -100)
            labels[tried.batch.positions] = tried.batch.labels
            expected = AutoModelForMaskedLM.from_pretrained(folder).eval()(inputs, labels=labels.reshape(inputs.shape)).loss
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert "4 x 9 tokens" in tried.what


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_logits_compared_one_sequence_after_the_other_change_as_a_whole_does(name: str, tmp_path: Path, corpus: Path) -> None:
    models = [random_model(name, sizes_for(name)).eval() for _ in range(2)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    folder = save(name, models[0], tmp_path / "model", corpus)
    tried = probe.of(architectures.get(name), sizes_of(models[0]), [folder], corpus if name in TEXT else None)
    found = [probe.outputs(model, tried) for model in models]
    with torch.no_grad():
        whole = [probe.logits_of(model, tried.batch.inputs) for model in models]
    for each, logits in zip(found, whole, strict=True):
        torch.testing.assert_close(torch.cat(list(each.logits())), logits)
        labelled = logits if tried.batch.positions is None else logits[tried.batch.positions]
        assert each.loss == pytest.approx(float(nn.functional.cross_entropy(labelled, tried.batch.labels)), rel=1e-6)
    change = float((whole[1] - whole[0]).norm() / whole[0].norm())
    assert found[0].change(found[0]) == 0
    assert change > 0.01 and found[1].change(found[0]) == pytest.approx(change, rel=1e-5)


def test_logits_that_do_not_fit_on_the_disk_are_refused_in_one_line(
    wide: Path, corpus: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    code, _, error = verify(wide)
    assert code == 2 and "logits cannot wait there (No space left on device): set TMPDIR" in error


@pytest.mark.parametrize("name", ["bert", "gemma3", "gpt2"])
def test_norms_of_gradients_are_those_of_a_plain_backward_pass(name: str, tmp_path: Path, corpus: Path) -> None:
    """Each of the library's own parameters is what one row of the table, or several, hold; Gemma's library has gain minus 1."""
    model = random_model(name, sizes_for(name))
    folder, architecture, sizes = save(name, model, tmp_path / "model", corpus), architectures.get(name), sizes_of(model)
    tried = probe.of(architecture, sizes, [folder], corpus if name in TEXT else None)
    plain, first = architecture.library.load(folder), tried.batch.rows(0, 1)
    logits = probe.logits_of(plain, first.inputs)
    logits = logits if first.positions is None else logits[first.positions]
    nn.functional.cross_entropy(logits, first.labels).backward()
    expected = {key: parameter.grad for key, parameter in plain.named_parameters()}
    half = replace(sizes, width=sizes.width // 2, heads=sizes.heads // 2, ffn=sizes.ffn // 2, layers=1)
    corners = {(row.key, layer): each.shape for row, layer, each in architecture.pieces(_zeros(name, half), half)}
    squares: dict[str, list[float]] = {row.key: [0.0, 0.0] for row in architecture.rows(sizes)}
    for row, layer, gradient in architecture.pieces(expected, sizes):
        old = gradient[tuple(map(slice, corners.get((row.key, layer), (0,))))]
        squares[row.key][0] += float(old.double().square().sum())
        squares[row.key][1] += float(gradient.double().square().sum())
    loaded = architecture.library.load(folder)
    found = probe.gradients(architecture, loaded, NewParts.of(half, sizes, []), tried)
    assert found.inputs == 1 and not found.dead
    for key, (before, new) in found.norms.items():
        assert [(before or 0) ** 2, (before or 0) ** 2 + (new or 0) ** 2] == pytest.approx(squares[key], rel=1e-4, abs=1e-12)
    assert all(parameter.grad is None for parameter in loaded.parameters())


@pytest.mark.parametrize(("fires_on", "inputs"), [(0, 1), (1, 2), (None, 4)])
def test_a_unit_that_one_sequence_leaves_asleep_is_tried_on_the_next(
    fires_on: int | None, inputs: int, source: Path, corpus: Path
) -> None:
    """New neurons with a ReLU that fires at the last token of one sequence alone, or nowhere."""
    architecture, old = architectures.get("gpt2"), architectures.get("gpt2").library.sizes(source)
    model: Any = architecture.library.load(source)
    tried, mlp = probe.of(architecture, old, [source], corpus), model.transformer.h[0].mlp
    seen: list[Tensor] = []
    mlp.act = nn.ReLU()
    mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        probe.logits_of(model, tried.batch.inputs)
        wakes = torch.zeros(old.width) if fires_on is None else seen[0][fires_on, -1]
        mlp.c_fc.weight[:, old.ffn // 2 :] = wakes[:, None]
        mlp.c_fc.bias[old.ffn // 2 :] = -0.99 * wakes @ wakes if wakes.any() else -1
    found = probe.gradients(architecture, model, NewParts.of(replace(old, ffn=old.ffn // 2), old, []), tried)
    assert found.inputs == inputs
    assert found.dead == ([f"{old.ffn // 2} of the {old.ffn // 2} new FFN neurons of layer 0"] if fires_on is None else [])


def _zeros(name: str, sizes: ModelConfig) -> dict[str, Tensor]:
    return {key: torch.zeros(shape) for key, shape in architectures.get(name).shapes(sizes).items()}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("method", ["bert2bert", "hypercloning"])
def test_symmetric_units_are_those_that_a_comparison_of_all_pairs_finds(name: str, method: str) -> None:
    options: dict[str, Any] = {"init": "fpi"} if method == "bert2bert" else {"noisy": False}
    grouped = {"kv_heads": 1} if name == "llama" else {}
    small = random_model(name, sizes_for(name, **grouped))
    target = replace(sizes_of(small), **WIDER, **({"kv_heads": 2} if grouped else {}))
    model, architecture = grown(name, small, method, target, **options), architectures.get(name)
    found = {each.place: each.pairs for each in symmetric(architecture.pieces(dict(model.named_parameters()), target), target)}
    assert {place: pairs for place, pairs in found.items()} == by_brute_force(name, model, target)
    assert sum(found.values()) > 0


def by_brute_force(name: str, model: nn.Module, sizes: ModelConfig) -> dict[tuple[str, str, int | None], int]:
    """By canonical weights, one vector of incoming and one of outgoing weights for each unit."""
    weights = architectures.get(name).read(model)
    layers = [{key: weight.value[layer] for key, weight in weights.items() if "layers." in key} for layer in range(sizes.layers)]
    found: dict[tuple[str, str, int | None], int] = {}
    group = sizes.heads // sizes.key_value_heads
    for number, layer in enumerate(layers):
        of = {key.removeprefix("layers."): value for key, value in layer.items()}
        into = [of[key] for key in ("ffn.up.weight", "ffn.gate.weight", "ffn.up.bias") if key in of]
        out = of["ffn.down.weight"]
        found["FFN neurons", "layers", number] = pairs(
            [[part[unit] for part in into] for unit in range(sizes.ffn)], [out[:, unit] for unit in range(sizes.ffn)]
        )
        size = sizes.head_size

        def head(key: str, number: int, of: dict[str, Tensor] = of, size: int = size) -> list[Tensor]:
            rows = slice(number * size, (number + 1) * size)
            return [of[f"attention.{key}.{kind}"][rows] for kind in ("weight", "bias") if f"attention.{key}.{kind}" in of]

        found["attention heads", "layers", number] = pairs(
            [[*head("query", unit), *head("key", unit // group), *head("value", unit // group)] for unit in range(sizes.heads)],
            [of["attention.out.weight"][:, unit * size : (unit + 1) * size] for unit in range(sizes.heads)],
        )
    into_residual, out_of_residual = [], []
    for weight in weights.values():
        for dim, axis in enumerate(weight.axes):
            if axis.value == "width":
                last = weight.consumes and dim == len(weight.axes) - 1
                (out_of_residual if last else into_residual).append(weight.value.movedim(dim, 0))
    found["residual units", "", None] = pairs(
        [[part[unit] for part in into_residual] for unit in range(sizes.width)],
        [torch.cat([part[unit].flatten() for part in out_of_residual]) for unit in range(sizes.width)],
    )
    return found


def pairs(incoming: list[list[Tensor]], outgoing: list[Tensor]) -> int:
    def symmetric_pair(a: int, b: int) -> bool:
        if not all(torch.equal(x, y) for x, y in zip(incoming[a], incoming[b], strict=True)):
            return False
        x, y = outgoing[a].flatten().double(), outgoing[b].flatten().double()
        return bool((x * y.norm() - y * x.norm()).norm() <= 1e-6 * x.norm() * y.norm())

    return sum(symmetric_pair(a, b) for a, b in itertools.combinations(range(len(outgoing)), 2))


def test_symmetric_neurons_get_equal_gradients() -> None:
    """Up to the factor between their outgoing weights."""
    small = random_model("gpt2", sizes_for("gpt2"))
    model: Any = grown("gpt2", small, "bert2bert", replace(sizes_of(small), **WIDER), init="fpi").requires_grad_(True)
    up, down = model.transformer.h[0].mlp.c_fc.weight, model.transformer.h[0].mlp.c_proj.weight
    with torch.no_grad():
        up[:, 1], model.transformer.h[0].mlp.c_fc.bias[1], down[1] = (
            up[:, 0],
            model.transformer.h[0].mlp.c_fc.bias[0],
            3 * down[0],
        )
    pieces = architectures.get("gpt2").pieces(dict(model.named_parameters()), sizes_of(model))
    first = next(each for each in symmetric(pieces, sizes_of(model)) if each.place == ("FFN neurons", "layers", 0))
    assert first.pairs > 0
    nn.functional.cross_entropy(model(torch.arange(9)[None]), torch.arange(9)).backward()
    torch.testing.assert_close(up.grad[:, 1], 3 * up.grad[:, 0])
    torch.testing.assert_close(down.grad[1], down.grad[0])


def test_the_first_copy_of_a_layer_is_the_old_one() -> None:
    old, new = ModelConfig(layers=2, width=8, heads=2), ModelConfig(layers=4, width=8, heads=2)
    assert NewParts.of(old, new, []).layers == {2, 3}
    assert NewParts.of(old, new, [[0], [0], [1], [1]]).layers == {1, 3}
    assert NewParts.of(old, new, [[0], [], [0, 1], [1]]).layers == {1, 2}


# Wrong requests


def test_wrong_requests_are_refused(source: Path, wide: Path, tmp_path: Path, corpus: Path, verify: Verify) -> None:
    def refused(*folders: Path, text: Path | None = corpus) -> str:
        code, _, error = verify(*folders, text=text)
        assert code == 2
        return error

    assert "not a folder" in refused(tmp_path / "none")
    assert "the order is GROWN SOURCE" in refused(source, wide)
    assert "cannot be read (No such file or directory)" in refused(wide, text=tmp_path / "no.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    assert "is no UTF-8 text" in refused(wide, text=tmp_path / "binary.txt")
    (tmp_path / "empty.txt").touch()
    assert "holds no tokens" in refused(wide, text=tmp_path / "empty.txt")

    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["model_type"] = "t5"

    assert "no family that growbench can read" in refused(changed(wide, tmp_path / "t5", edit))
    bert = save("bert", random_model("bert", sizes_for("bert")), tmp_path / "bert", corpus)
    assert "GROWN is of the family gpt2, SOURCE of bert" in refused(wide, bert)
    quantised = changed(wide, tmp_path / "q", lambda tensors, config: config.update(quantization_config={"bits": 4}))
    assert "its weights are quantised (quantization_config)" in refused(quantised)
    foreign = changed(wide, tmp_path / "own", lambda tensors, config: config.update(auto_map={"AutoModel": "mine.Model"}))
    assert f"GROWN = '{foreign}': brings code of its own (auto_map in config.json)" in refused(foreign)
    assert f"SOURCE = '{foreign}': brings code of its own" in refused(wide, foreign)


def test_without_a_tokenizer_the_tokens_are_random_and_this_is_said(source: Path, tmp_path: Path, verify: Verify) -> None:
    bare = changed(source, tmp_path / "bare", lambda tensors, config: None)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    code, said, _ = verify(bare, text=None)
    assert code == 0 and "random tokens, because there is no tokenizer" in said and "not measured: there is no text" in said
    assert verify(bare)[0] == 2


def test_no_file_that_a_checkpoint_names_as_its_method_is_run(wide: Path, tmp_path: Path, verify: Verify) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    folder = changed(wide, tmp_path / "named", lambda tensors, config: None)
    card = json.loads((folder / "growbench.json").read_text())
    (folder / "growbench.json").write_text(json.dumps(card | {"method": str(tmp_path / "mine.py")}))
    code, said, _ = verify(folder)
    assert code == 0 and "unknown method" in said and not (tmp_path / "ran").exists()
