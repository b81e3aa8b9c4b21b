"""Checkpoints of any settings compute what their library computes, or are refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from growbench import architectures
from growbench.architectures.decoder import NO_TOKENS
from growbench.errors import UsageError
from growbench.runs import stored_tensors
from tests.architectures.promises import FAMILIES, LENGTH, ROPE, Family, equal, logits, relative, written

NAMES = ["llama", "mistral", "olmo2", "olmo3", "qwen2", "qwen3", "smollm3"]
FULL, SLIDING = "full_attention", "sliding_attention"
LONG = 4 * LENGTH  # positions


def rope_of(kind: str, theta: float, factor: float, original: int, head_dim: int) -> dict[str, Any]:
    """What a configuration says of rotary positions of this type."""
    of_frequencies = [[1 + step * place for place in range(head_dim // 2)] for step in (0.5, 2.0)]
    own: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": factor},
        "dynamic": {"factor": factor},
        "yarn": {"factor": factor, "original_max_position_embeddings": original, "beta_fast": 8.0},
        "llama3": {**ROPE["llama3"], "factor": factor, "original_max_position_embeddings": original},
        "longrope": {
            "short_factor": of_frequencies[0],
            "long_factor": of_frequencies[1],
            "original_max_position_embeddings": original,  # the factors are short or long, as the sequence is
        },
    }
    return {**own[kind], "rope_type": kind, "rope_theta": theta}


@st.composite
def configurations(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Settings of the family's class, each key that it has."""
    kind: Any = architectures.get(name).library
    heads, layers, head_dim = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 5)), 2 * draw(st.integers(2, 4))
    rope = st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope"])
    original = draw(st.sampled_from([6, LENGTH, LONG]))
    of_layers = st.lists(st.sampled_from([FULL, SLIDING]), min_size=layers, max_size=layers)
    drawn = {
        "num_hidden_layers": layers,
        "hidden_size": heads * draw(st.integers(1, 6)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([each for each in (1, 2, 4) if heads % each == 0])),
        "intermediate_size": draw(st.integers(1, 20)),
        "vocab_size": draw(st.integers(5, 40)),
        "max_position_embeddings": LONG,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 0.1])),
        "rope_parameters": rope_of(draw(rope), draw(st.floats(10, 1e7)), draw(st.floats(1, 8)), original, head_dim),
        "sliding_window": draw(st.integers(1, LENGTH + 2)),
        **{key: draw(st.booleans()) for key in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")},
        "layer_types": draw(of_layers),
        "no_rope_layers": draw(st.lists(st.integers(0, 1), min_size=layers, max_size=layers)),
        "hidden_act": draw(st.sampled_from(["silu", "gelu", "relu"])),
    }
    known = {key: value for key, value in drawn.items() if hasattr(kind.stock.config_class, key)}
    if known.get("use_sliding_window") is False:  # then there is no window that a layer could be of
        known["layer_types"] = [FULL] * layers
    return {**known, **NO_TOKENS, "head_dim": head_dim}


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_any_settings_computes_what_its_library_does(name: str) -> None:
    @settings(deadline=None, max_examples=6)
    @given(configurations(name))
    def check(own: dict[str, Any]) -> None:
        with TemporaryDirectory() as folder:
            assert equal(written(Family(name, own), Path(folder))) <= 1e-10

    check()


def family(name: str, **own: Any) -> Family:
    """A small checkpoint of that family, with these settings in place of its own."""
    found = next(each for each in FAMILIES if each.name == name)
    return Family(name, {**found.settings, **own})


def test_other_settings_are_noticed(tmp_path: Path) -> None:
    """The check above can fail: a model of another theta, eps or window computes something else."""
    checkpoint = written(family("qwen3"), tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    weights, (inputs, expected) = checkpoint.weights, checkpoint.example
    for key, value in {"rms_norm_eps": 0.02, "sliding_window": 6, "rope_parameters": ROPE["linear"]}.items():
        other = replace(checkpoint.sizes, configuration=json.dumps({**stated, key: value}))
        assert relative(logits(checkpoint.model(weights, other), inputs), expected) > 1e-4, key


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", DYNAMIC),
        ("olmo3", {FULL: DYNAMIC, SLIDING: {"rope_type": "default", "rope_theta": 1e3}}),
        ("gemma3", {FULL: DYNAMIC, SLIDING: {"rope_type": "default", "rope_theta": 1e3}}),
    ],
)
def test_rotary_positions_that_depend_on_earlier_sequences_are_refused(name: str, rope: Any, tmp_path: Path) -> None:
    """Those of type dynamic beyond the model's positions. Within them nothing asks the device: FLOPs are counted without one."""
    checkpoint = written(family(name, rope_parameters=rope, max_position_embeddings=LENGTH), tmp_path)
    assert equal(checkpoint) <= 1e-10
    model = checkpoint.ours
    message = "a sequence of 13 tokens: rotary positions of type 'dynamic' are known up to max_position_embeddings = 12"
    with pytest.raises(UsageError, match=f"^{message}$"):
        model(torch.zeros(1, LENGTH + 1, dtype=torch.int64))
    with torch.device("meta"):
        assert checkpoint.architecture.build(checkpoint.sizes)(torch.zeros(1, LENGTH, dtype=torch.int64)).is_meta


def test_configurations_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """As most on the hub are: the base and the scaling of rotary positions stand apart, and there are no types of layers."""
    checkpoint = written(family("llama"), tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    weights, (inputs, expected) = checkpoint.weights, checkpoint.example
    rope = stated.pop("rope_parameters")
    older = {**stated, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    checkpoint = replace(checkpoint)  # read anew
    assert equal(checkpoint) <= 1e-10
    assert relative(logits(checkpoint.model(weights, checkpoint.sizes), inputs), expected) <= 1e-10
    grown = checkpoint.architecture.library.config_json(replace(checkpoint.sizes, layers=5))
    assert grown == {**older, "num_hidden_layers": 5}


def test_what_a_class_does_not_know_changes_nothing(tmp_path: Path) -> None:
    """Llama has no windows and no types of layers, whatever a configuration states; it passes through to what is grown."""
    checkpoint = written(family("llama"), tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    more = {"sliding_window": 2, "layer_types": [SLIDING] * 3}
    (tmp_path / "config.json").write_text(json.dumps(stated | more))
    assert equal(checkpoint) <= 1e-10
    assert checkpoint.architecture.library.config_json(replace(checkpoint.sizes, width=32)).items() >= more.items()


def test_mistral_with_types_of_layers_is_refused(tmp_path: Path) -> None:
    """transformers takes it for another family."""
    checkpoint = written(family("mistral"), tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stated, "layer_types": [FULL] * 3}))
    with pytest.raises(UsageError, match="is a model of type 'ministral', the experiment's are of type 'mistral'"):
        assert checkpoint.sizes


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_tied_head_may_be_stored_if_it_is_the_embedding(name: str, tmp_path: Path) -> None:
    checkpoint = written(family(name, tie_word_embeddings=True), tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    assert "lm_head.weight" not in weights
    embedding = weights["model.embed_tokens.weight"]
    save_file({**weights, "lm_head.weight": embedding.clone()}, path, {"format": "pt"})
    assert equal(checkpoint) <= 1e-10
    assert "lm_head.weight" not in stored_tensors.opened(tmp_path).tensors()
    save_file({**weights, "lm_head.weight": embedding + 1}, path, {"format": "pt"})
    with pytest.raises(UsageError, match=r"lm_head\.weight and model\.embed_tokens\.weight are tied, and differ"):
        stored_tensors.opened(tmp_path)
    assert equal(replace(checkpoint)) > 0.01  # so a run refuses it: its library computes with the head as it is stored
