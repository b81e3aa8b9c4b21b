"""What growbench promises of every family: each promise is a number that is measured on a checkpoint of the family's library.

The checkpoints have settings unlike their class's own wherever there is a choice. The manual's table of families is made from
what is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from growbench import architectures, cli
from growbench.architectures import Architecture, sizes_of
from growbench.architectures.timm_library import Timm
from growbench.config.schema import ModelConfig
from growbench.growth import maps
from growbench.growth.weights import Axis, Weights, deepen, widen

LENGTH = 12  # tokens: more than the windows below


@dataclass(frozen=True)
class Family:
    """A family, and the settings of a small checkpoint of it.

    `settings`: of its library's configuration; sizes that are no multiples of each other, and nothing at its usual value.
    `layers`: of the deepened model. `changes`: the promises that cannot be kept, each with the reason.
    """

    name: str  # of the architecture
    settings: Mapping[str, Any]
    layers: int = 7
    changes: Mapping[str, str] = field(default_factory=dict)


SIZES = {
    "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "intermediate_size": 20, "vocab_size": 37, "max_position_embeddings": 64, "rms_norm_eps": 1e-2,
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
ROPE: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 500_000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1_000_000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
}
ENCODER = {
    "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20, "vocab_size": 37,
    "tie_word_embeddings": True,
}  # fmt: skip
AFTER = "its norms stand behind the sums, so that a new layer normalises once more"
IMAGES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 7}
BIASES = {"attention_bias": True, "mlp_bias": True}
FAMILIES = [
    Family(
        "bert",
        {**ENCODER, "max_position_embeddings": 16, "type_vocab_size": 3, "hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
        changes={"depth": AFTER, "configuration": AFTER},
    ),
    Family(
        "roberta",
        {**ENCODER, "max_position_embeddings": 18, "type_vocab_size": 1, "hidden_act": "silu", "layer_norm_eps": 1e-2},
        changes={"depth": AFTER, "configuration": AFTER},
    ),
    Family(
        "modernbert",
        {
            **ENCODER,
            "num_hidden_layers": 4,
            "max_position_embeddings": 64,
            "norm_eps": 1e-2,
            "local_attention": 6,
            "hidden_activation": "silu",
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        },
    ),
    Family(
        "gpt2",
        {
            "n_layer": 3,
            "n_embd": 16,
            "n_head": 4,
            "n_inner": 20,
            "vocab_size": 37,
            "n_positions": 16,
            "layer_norm_epsilon": 1e-2,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
    Family("llama", {**SIZES, **BIASES, "rope_parameters": ROPE["llama3"], "tie_word_embeddings": False}),
    Family("mistral", {**SIZES, "rope_parameters": ROPE["linear"], "sliding_window": 5, "tie_word_embeddings": True}),
    Family("qwen2", {**SIZES, **WINDOW, "max_window_layers": 2, "rope_parameters": ROPE["yarn"], "tie_word_embeddings": False}),
    Family(
        "gemma3",
        {
            **SIZES,
            "model_type": "gemma3_text",
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
            },
            "tie_word_embeddings": True,
            "attention_bias": True,
            "query_pre_attn_scalar": 10,
            "final_logit_softcapping": 5.0,
            "sliding_window": 5,
        },
        layers=13,
        changes={"configuration": "transformers holds the embedding's scale, the root of the width, in float32"},
    ),
    Family(
        "olmo2",
        {**SIZES, "rope_parameters": ROPE["yarn"], "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "gelu"},
    ),
    Family(
        "olmo3",
        {
            **SIZES,
            "num_hidden_layers": 4,
            "rope_parameters": {
                "full_attention": ROPE["yarn"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
            },
            "tie_word_embeddings": True,
            "sliding_window": 5,
        },
        layers=9,
    ),
    Family(
        "qwen3",
        {
            **SIZES,
            **WINDOW,
            "attention_bias": True,
            "rope_parameters": ROPE["yarn"],
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    Family(
        "smollm3",
        {
            **SIZES,
            **WINDOW,
            **BIASES,
            "no_rope_layer_interval": 2,
            "rope_parameters": ROPE["linear"],
            "tie_word_embeddings": True,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),  # the usual ones are beyond the vocabulary
        },
    ),
    Family("vit", {**IMAGES, "model_name": "deit3_small_patch16_224", "mlp_ratio": 2.5, "reg_tokens": 3, "global_pool": "avg"}),
    Family("dinov3", {**IMAGES, "model_name": "vit_small_plus_patch16_dinov3_qkvb", "rope_temperature": 50.0}),
]


class CastsToDouble(TorchFunctionMode):
    """Casts to float32 give float64: a library's own code, which computes norms and rotations in float32, in double precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


@contextmanager
def in_double_precision() -> Iterator[None]:
    """What is made is float64, and what casts to float32 casts to float64."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), CastsToDouble():
            yield
    finally:
        torch.set_default_dtype(usual)


@dataclass(eq=False)
class Checkpoint:
    """A checkpoint in a folder, as its library loads it and as growbench reads it; both compute in double precision.

    What is read of it is read once.
    """

    family: Family
    folder: Path

    @cached_property
    def architecture(self) -> Architecture:
        return architectures.of_checkpoint(self.folder)

    @cached_property
    def sizes(self) -> ModelConfig:
        return self.architecture.library.sizes(self.folder)

    @cached_property
    def stock(self) -> nn.Module:
        return self.architecture.library.load(self.folder).double()

    @cached_property
    def weights(self) -> Weights:
        return self.architecture.canonical(self.architecture.library.state(self.stock), self.sizes)

    @cached_property
    def ours(self) -> nn.Module:
        return self.model(self.weights, self.sizes)

    def model(self, weights: Weights, sizes: ModelConfig) -> nn.Module:
        """growbench's model of these sizes with these weights."""
        return self.architecture.write(weights, self.architecture.build(sizes).double().eval())

    @cached_property
    def example(self) -> tuple[Tensor, Tensor]:
        """Inputs, and the library's logits of them."""
        stock = self.stock  # its frequencies of rotation are float32, as ours
        with in_double_precision():
            return self.architecture.library.example(stock, LENGTH)


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with in_double_precision():
        return model(inputs)  # type: ignore[no-any-return]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def written(family: Family, folder: Path) -> Checkpoint:
    """A checkpoint of the family's library with random weights, norms and biases too."""
    stock: Any = architectures.get(family.name).library.stock  # type: ignore[attr-defined]
    torch.manual_seed(0)
    images = isinstance(architectures.get(family.name).library, Timm)
    model = timm.create_model(**family.settings) if images else stock(stock.config_class(**family.settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if images:
        arguments = {key: value for key, value in family.settings.items() if key != "model_name"}
        save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    else:
        model.save_pretrained(folder)
    return Checkpoint(family, folder)


def doubled(sizes: ModelConfig) -> ModelConfig:
    """Every width twice as large; the heads keep their size."""
    return replace(sizes, width=2 * sizes.width, heads=2 * sizes.heads, kv_heads=2 * sizes.kv_heads, ffn=2 * sizes.ffn)


def equal(checkpoint: Checkpoint) -> float:
    """A checkpoint that is read computes what its library computes."""
    inputs, expected = checkpoint.example
    return relative(logits(checkpoint.ours, inputs), expected)


def change(checkpoint: Checkpoint, sizes: ModelConfig, *grown: Weights) -> float:
    """The most that growth to these sizes changes the logits, of several draws: one model holds each in turn."""
    inputs, _ = checkpoint.example
    expected, model = logits(checkpoint.ours, inputs), checkpoint.architecture.build(sizes).double().eval()
    return max(relative(logits(checkpoint.architecture.write(each, model), inputs), expected) for each in grown)


def width(checkpoint: Checkpoint) -> float:
    """Twice the width, heads and neurons copied at random: the most that any of six draws changes the logits."""
    small, large = (
        checkpoint.sizes,
        replace(doubled(checkpoint.sizes), ffn=2 * checkpoint.sizes.ffn + 8),
    )  # DINOv3 wants a multiple of 8
    weights = checkpoint.weights
    draws = [maps.copying(small, large, torch.Generator().manual_seed(seed)) for seed in range(6)]
    return change(checkpoint, large, *(widen(weights, draw) for draw in draws))


def tiling(checkpoint: Checkpoint) -> float:
    """Twice the width, in order."""
    large = doubled(checkpoint.sizes)
    return change(checkpoint, large, widen(checkpoint.weights, maps.tiling(checkpoint.sizes, large)))


def identities(checkpoint: Checkpoint) -> tuple[Weights, ModelConfig]:
    """The model with new layers whose output matrices are zero, and its sizes."""
    small = checkpoint.sizes
    large = replace(small, layers=checkpoint.family.layers)
    layers, is_new = among(*(checkpoint.architecture.layer_types(sizes) for sizes in (small, large)))
    deeper = deepen(checkpoint.weights, layers)
    for weight in deeper.values():
        if weight.residual and Axis.LAYER in weight.axes:
            weight.value[torch.tensor(is_new)] = 0
    return deeper, large


def among(old: Sequence[Any], new: Sequence[Any]) -> tuple[list[int], list[bool]]:
    """For each new layer the old one of the same type that it copies, and whether it is added.

    The old layers keep their order, and stand as low as their types allow: ModernBERT's first one has no norm of its own.
    """
    layers, is_new, place = [], [], 0
    for kind in new:
        placed = place < len(old) and kind == old[place]
        layers.append(place if placed else old.index(kind))
        is_new.append(not placed)
        place += placed
    assert place == len(old), f"{old} are not among {new}"
    return layers, is_new


def depth(checkpoint: Checkpoint) -> float:
    """New layers with zero output matrices are identities."""
    deeper, large = identities(checkpoint)
    return change(checkpoint, large, deeper)


def grown(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint that is twice as wide and deeper, in a folder: its configuration is the source's with new sizes."""
    deeper, deep = identities(checkpoint)
    large = doubled(deep)
    architecture = checkpoint.architecture
    native = architecture.native(widen(deeper, maps.tiling(deep, large)), large)
    folder.mkdir()
    native = {name: architecture.library.to_stored(name, value) for name, value in native.items()}
    (folder / "config.json").write_text(json.dumps(architecture.library.config_json(large)))
    save_file({name: value.contiguous() for name, value in native.items()}, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint(checkpoint.family, folder)


def configuration(checkpoint: Checkpoint) -> float:
    """A grown checkpoint loads in its library and computes the same: the settings are the source's, the sizes new."""
    (_, expected), (_, found) = (each.example for each in (checkpoint, grown(checkpoint, checkpoint.folder / "grown")))
    return relative(found, expected)


def ties(checkpoint: Checkpoint) -> float:
    """The share of tied parameters that are not tied any more after growth."""
    model = checkpoint.model(*identities(checkpoint))
    every, distinct = (len(list(model.named_parameters(remove_duplicate=flag))) for flag in (False, True))
    asked = "tied" in checkpoint.architecture.options and sizes_of(model).tied
    return float((every > distinct) != asked)


def typed(checkpoint: Checkpoint) -> float:
    """The share of layers, of a stacked model, that copy one of another type than their place has."""
    small, large = checkpoint.sizes, replace(checkpoint.sizes, layers=checkpoint.family.layers)
    old, new = (checkpoint.architecture.layer_types(sizes) for sizes in (small, large))
    weights = checkpoint.weights
    name = "layers.ffn.down.weight"
    kinds = list(zip(weights[name].value, old, strict=True))
    stacked = deepen(weights, maps.stack(small.layers, large.layers))[name].value
    copied = [next(kind for value, kind in kinds if value.equal(layer)) for layer in stacked]
    return sum(found != kind for found, kind in zip(copied, new, strict=True)) / len(new)


def by_command(checkpoint: Checkpoint) -> float:
    """`growbench grow` doubles the width of the folder, which then loads in its library and computes the same."""
    out = checkpoint.folder / "by command"
    asked = ["--to", f"width={2 * checkpoint.sizes.width}", "--set", "hypercloning.noisy=false", "--out", str(out)]
    assert cli.main(["grow", str(checkpoint.folder), *asked]) == 0
    (_, expected), (_, found) = (each.example for each in (checkpoint, Checkpoint(checkpoint.family, out)))
    return relative(found, expected)


def verified(checkpoint: Checkpoint) -> float:
    """The exit code of `growbench verify` on what `growbench grow` wrote."""
    out = checkpoint.folder / "by command"
    if not out.exists():
        by_command(checkpoint)
    return cli.main(["verify", str(out), str(checkpoint.folder)])


@dataclass(frozen=True)
class Promise:
    """A number that must be at most `bound`."""

    measure: Callable[[Checkpoint], float]
    bound: float

    def kept(self, figure: float) -> bool:
        return figure <= self.bound


PROMISES = {
    "read equal": Promise(equal, 1e-10),
    "width": Promise(width, 1e-12),
    "tiling": Promise(tiling, 1e-12),
    "depth": Promise(depth, 0.0),
    "ties": Promise(ties, 0.0),
    "configuration": Promise(configuration, 1e-12),
    "typed layers": Promise(typed, 0.0),
    "grow": Promise(by_command, 1e-6),
    "verify": Promise(verified, 0.0),
}
