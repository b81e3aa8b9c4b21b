"""Models that leave growbench are their libraries' own and compute the same; pretrained ones enter it, or are refused."""

from __future__ import annotations

import copy
import html
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from growbench import architectures
from growbench.analysis import profiles
from growbench.analysis.comparison import analyse
from growbench.architectures.families.gpt2 import GPT2
from growbench.config import loading
from growbench.config.schema import DataConfig, Experiment, ImageConfig, ModelConfig, Pretrained, TextConfig, Training
from growbench.costs.accounts import Account
from growbench.costs.hardware import Hardware
from growbench.data import load, tokenizer
from growbench.errors import UsageError
from growbench.runs import saved_models, store
from growbench.runs.records import Cost, RunConfig, RunCosts, RunRecord, RunStatus
from tests.conftest import Once, WriteMiniature
from tests.processes import answer

SIZES = ModelConfig(layers=2, width=16, heads=2, ffn=40, vocabulary=300, positions=9)
ACCOUNTS: dict[Account, float | None] = {account: 1.0 for account in Account}
CPU, CUDA = Hardware(device="cpu"), Hardware(device="cuda")
RECORD = RunRecord(
    status=RunStatus.FINISHED, experiment="e", title="E", method="m", seed=0, config=RunConfig({}, {}), final_val_loss=1.0,
    cost=RunCosts({**ACCOUNTS, Account.TRAIN: 20.0, Account.SOURCE: 7.0}, {**ACCOUNTS, Account.SOURCE: None}),
    steps=3, tokens=9, phases=[], hardware=CPU,
)  # fmt: skip

NAMES = architectures.names()
TEXT = [name for name in NAMES if architectures.get(name).tokenizer]
EXACT = {"bert", "cait", "roberta", "vit"}  # the same operations; the others have a fused activation or norm, or other masks
QUERY_NORMS = {"gemma3", "olmo2", "olmo3", "qwen3"}  # norms of queries and keys have the eps of all norms
each_tying = pytest.mark.parametrize(
    ("name", "tied"),
    [(name, tied) for name in NAMES for tied in (True, False) if tied or "tied" in architectures.get(name).options],
)


def sizes_for(name: str, **other: Any) -> ModelConfig:
    images = {} if name in TEXT else {"vocabulary": 5, "patch": 4}
    return replace(SIZES, **images, **other)


def random_model(name: str, sizes: ModelConfig) -> nn.Module:
    """Every parameter random, biases and norms too, so that nothing is equal by chance. It is built once, and copied."""
    model = copy.deepcopy(_random_model(name, sizes))
    torch.manual_seed(1)  # whether it was there or not, a test draws the same numbers next
    return model


@cache
def _random_model(name: str, sizes: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    model = architectures.get(name).build(sizes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def trained_tokenizer(name: str, corpus: Path) -> tuple[Any, Any]:
    """As growbench trains them, with at most 300 tokens."""
    architecture = architectures.get(name)
    assert architecture.tokenizer is not None
    trained, vocabulary = _trained_tokenizer(architecture.tokenizer, architecture.objective == "masked", corpus)
    return type(trained).from_str(trained.to_str()), vocabulary  # what is saved gets ends of its own


@cache
def _trained_tokenizer(kind: Literal["wordpiece", "bytes"], masked: bool, corpus: Path) -> tuple[Any, Any]:
    return tokenizer.train(kind, 300, masked, [corpus.read_text(encoding="utf-8")])


Checkpoint = Callable[..., Path]
Original = Callable[..., Path]


def saved(name: str, model: nn.Module, folder: Path, corpus: Path) -> Path:
    """The folder, with the model as a run saves it."""
    sizes = architectures.sizes_of(model)
    own = tokenizer.for_transformers(*trained_tokenizer(name, corpus), sizes.positions) if name in TEXT else None
    saved_models.TrainedModel(architectures.get(name), model, sizes, own).save(folder, RECORD)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, corpus: Path) -> Checkpoint:
    """Saves a model as a run does, for a test that changes it."""
    return lambda name, model: saved(name, model, tmp_path / f"{name}-model", corpus)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Original:
    """The random model of a name in a folder that is read only, saved once."""

    @cache
    def save(name: str, tied: bool = True) -> Path:
        return saved(name, random_model(name, sizes_for(name, tied=tied)), tmp_path_factory.mktemp(name) / "model", corpus)

    return save


def experiment_from(name: str, folder: Path, length: int = 9, **target: Any) -> Experiment:
    """An experiment that starts from a checkpoint; its target is a little larger."""
    large = ModelConfig(**({"layers": 3, "width": 24, "heads": 3} | target))
    data: DataConfig = ImageConfig(corpus="mnist-sample", image_size=12, patch=4, classes=5)
    if name in TEXT:
        data = TextConfig(corpus="wikipedia-sample", sequence_length=length, vocabulary=300, tokenizer=str(folder))
    training = Training(batch=2, steps=3, lr=1e-3)
    source = Pretrained(str(folder))
    return Experiment("e", "E", name, large, large, data, training, training, pretrained=source)


def taken_over(name: str, folder: Path, length: int = 9, **target: Any) -> nn.Module:
    return saved_models.load(saved_models.resolved(experiment_from(name, folder, length, **target)), torch.device("cpu"))


def by_the_library(name: str, folder: Path) -> Any:
    """The model as anybody loads it."""
    if name not in TEXT:
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    masked = architectures.get(name).objective == "masked"
    return (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(folder).eval()


@each_tying
def test_a_saved_model_is_its_librarys_own_and_computes_the_same(name: str, tied: bool, original: Original) -> None:
    sizes = sizes_for(name, tied=tied)
    model = random_model(name, sizes)
    loaded = by_the_library(name, original(name, tied))
    assert type(loaded) is type(model).__base__
    inputs = torch.randint(300, (4, 9))
    inputs[0, :3] = torch.arange(3)  # the tokens that padding has in one model or another
    if name not in TEXT:
        inputs = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        found = loaded(inputs).logits.flatten(0, 1) if name in TEXT else loaded(inputs)
        expected = model(inputs)
    torch.testing.assert_close(found, expected, rtol=0 if name in EXACT else 1e-5, atol=0 if name in EXACT else 1e-5)


@pytest.mark.parametrize("name", [name for name in TEXT if name not in QUERY_NORMS])
def test_a_changed_setting_is_saved_with_the_model(name: str, tmp_path: Path, corpus: Path) -> None:
    """The library alone computes the same; growbench.json says which setting was changed."""
    sizes, settings = sizes_for(name), {"norm_eps": 0.5}
    usual, architecture = random_model(name, sizes), architectures.get(name)
    model = architecture.build(sizes, settings).eval()
    model.load_state_dict(usual.state_dict())
    own = tokenizer.for_transformers(*trained_tokenizer(name, corpus), sizes.positions)
    folder = tmp_path / "model"
    saved_models.TrainedModel(architecture, model, sizes, own).save(folder, RECORD)
    inputs = torch.randint(3, 300, (4, 9))
    with torch.no_grad():
        found, expected, other = by_the_library(name, folder)(inputs).logits.flatten(0, 1), model(inputs), usual(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - other).abs().max() > 0.01
    assert json.loads((folder / "growbench.json").read_text())["settings"] == settings
    assert architecture.library.settings(model) == settings and architectures.changed_settings(usual) == {}


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("vit", "norm_eps", "ViT has no setting 'norm_eps': timm's configurations cannot hold any"),
        ("gpt2", "eps", "GPT2 has no setting 'eps' that a method may change: it has norm_eps"),
        ("olmo2", "norm_eps", "Olmo2 has norms of queries and keys beside those of the residual stream, and one norm_eps"),
    ],
)
def test_a_setting_that_cannot_be_saved_is_refused(name: str, setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        architectures.get(name).build(sizes_for(name), {setting: 0.5})


@each_tying
def test_a_saved_model_comes_back_bit_by_bit(name: str, tied: bool, original: Original) -> None:
    model = random_model(name, sizes_for(name, tied=tied))
    back = taken_over(name, original(name, tied), tied=tied)
    assert type(back) is type(model) and not back.training
    for key, value in model.state_dict().items():
        rounded = name == "gemma3" and key.endswith("norm.weight")  # Gemma's library stores a gain minus 1
        torch.testing.assert_close(back.state_dict()[key], value, rtol=0, atol=2**-23 if rounded else 0, msg=key)
    assert not any(parameter.requires_grad for parameter in back.parameters())


@pytest.mark.parametrize(
    ("name", "options"), [("llama", {"heads": 4, "kv_heads": 2}), ("cait", {"class_layers": 1}), ("gpt2", {})]
)
def test_sizes_are_read_from_the_checkpoint(name: str, options: dict[str, Any], checkpoint: Checkpoint) -> None:
    sizes = sizes_for(name, **options)
    folder = checkpoint(name, random_model(name, sizes))
    stored = architectures.get(name).library.sizes(folder)
    assert json.loads(stored.configuration) == json.loads((folder / "config.json").read_text())
    assert replace(stored, configuration="") == sizes
    target = {"width": 32, "heads": 8, "kv_heads": 4} if name == "llama" else {"class_layers": options.get("class_layers", 2)}
    resolved = saved_models.resolved(experiment_from(name, folder, **target))
    assert resolved.source == replace(stored, vocabulary=0, positions=0, patch=0)
    assert resolved.target.configuration == stored.configuration


def test_a_checkpoint_of_another_architecture_keeps_its_configuration_to_itself(checkpoint: Checkpoint) -> None:
    """A GPT-2 that teaches a Llama: read by its own table, and larger than the target where it happens to be."""
    folder = checkpoint("gpt2", random_model("gpt2", sizes_for("gpt2", layers=5)))
    experiment = replace(experiment_from("gpt2", folder), architecture="llama", source_architecture="gpt2")
    resolved = saved_models.resolved(experiment)
    assert resolved.source.layers == 5 and resolved.source.configuration and resolved.target == experiment.target
    model = saved_models.load(resolved, torch.device("cpu"))
    assert type(model) is type(architectures.get("gpt2").build(sizes_for("gpt2")))


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_of_more_positions_the_first_are_taken(name: str, checkpoint: Checkpoint) -> None:
    """As transformers does: on a shorter text it computes the same."""
    model = random_model(name, sizes_for(name, positions=16))
    short = taken_over(name, checkpoint(name, model), length=9)
    inputs = torch.randint(300, (4, 9))
    assert architectures.sizes_of(short).positions == 9
    assert torch.equal(short(inputs), model(inputs))


@pytest.mark.parametrize("name", TEXT)
def test_the_tokenizer_beside_a_model_is_the_one_it_was_trained_with(name: str, original: Original, corpus: Path) -> None:
    """The same ids and roles; of masked models a row has the same ends, and the mask in a text is the mask."""
    from transformers import AutoTokenizer

    own, vocabulary = trained_tokenizer(name, corpus)
    folder = original(name)
    found = AutoTokenizer.from_pretrained(folder)
    text = "The river's known for Größe, [UNK] and 日本."
    ids = own.encode(text, add_special_tokens=False).ids
    assert found(text, add_special_tokens=False)["input_ids"] == ids
    assert found.get_vocab() == own.get_vocab()
    assert tokenizer.named(str(folder), vocabulary.mask is not None)[1] == vocabulary
    if vocabulary.mask is None:
        assert found(text)["input_ids"] == ids and found.eos_token_id == vocabulary.separator
    else:
        assert found(text)["input_ids"] == [vocabulary.start, *ids, vocabulary.separator]
        assert vocabulary.mask in found(f"the {found.mask_token} is")["input_ids"]


def test_images_are_prepared_as_they_were_in_training(original: Original) -> None:
    from timm.data import resolve_model_data_config
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    found = resolve_model_data_config(by_the_library("vit", original("vit")))
    assert found["input_size"] == (3, 12, 12) and found["interpolation"] == "bicubic" and found["crop_pct"] == 1
    assert (*found["mean"], *found["std"]) == (*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD)


def test_the_cost_of_a_source_is_what_its_card_or_the_experiment_says(checkpoint: Checkpoint) -> None:
    """Its own and its source's; seconds on the same hardware only; what nobody knows is None."""
    folder = checkpoint("gpt2", random_model("gpt2", sizes_for("gpt2")))
    pretrained = Pretrained(str(folder))
    assert saved_models.cost(pretrained, CPU) == Cost(30.0, None)
    card = json.loads((folder / "growbench.json").read_text())
    card["cost"]["seconds"]["total"] = 5.0
    (folder / "growbench.json").write_text(json.dumps(card))
    assert saved_models.cost(pretrained, CPU) == Cost(30.0, 5.0)
    assert saved_models.cost(pretrained, CUDA) == Cost(30.0, None)
    assert saved_models.cost(replace(pretrained, flops=8.0, seconds=9.0), CUDA) == Cost(8.0, 9.0)
    (folder / "growbench.json").unlink()
    assert saved_models.cost(pretrained, CPU) == Cost()


# What does not fit


def refusal(experiment: Experiment) -> str:
    with pytest.raises(UsageError) as refused:
        saved_models.load(saved_models.resolved(experiment), torch.device("cpu"))
    text = str(refused.value)
    assert text.startswith(("source", "tokenizer")) and "\n" not in text
    return text


def test_a_checkpoint_that_does_not_fit_is_refused(original: Original) -> None:
    """By its name, what is wrong, and what is allowed."""
    folder = original("bert")
    fits = experiment_from("bert", folder)
    data = fits.data
    assert isinstance(data, TextConfig)
    assert f"--set data.tokenizer={folder}" in refusal(replace(fits, data=replace(data, tokenizer="")))
    assert "data.sequence_length = 10: must be at most its 9 positions" in refusal(experiment_from("bert", folder, 10))
    assert "a vocabulary of 300, [data] one of 301" in refusal(replace(fits, data=replace(data, vocabulary=301)))
    assert "is a model of type 'bert', the experiment's are of type 'roberta'" in refusal(replace(fits, architecture="roberta"))
    assert "source.layers = 2 is larger than target.layers = 1" in refusal(experiment_from("bert", folder, layers=1))
    assert "source.tied = True differs from target.tied = False" in refusal(experiment_from("bert", folder, tied=False))


def test_sizes_that_a_file_states_are_those_of_the_checkpoint(checkpoint: Checkpoint) -> None:
    """Whichever way they are said: no kv_heads are as many as heads."""
    sizes = sizes_for("llama", heads=4, kv_heads=2)
    folder = checkpoint("llama", random_model("llama", sizes))
    read = experiment_from("llama", folder, width=32, heads=8, kv_heads=4)
    stated = replace(read, source=replace(sizes, vocabulary=0, positions=0, head_dim=sizes.head_size))
    stated = replace(stated, pretrained=Pretrained(str(folder), stated=("layers", "width", "heads", "kv_heads", "head_dim")))
    assert saved_models.resolved(stated).source == saved_models.resolved(read).source
    wrong = replace(stated, source=replace(stated.source, kv_heads=0))
    assert "source.kv_heads = 4: the checkpoint has 2; sizes may be left out" in refusal(wrong)


def test_a_forecast_needs_no_checkpoint_whose_sizes_and_cost_the_file_states(miniature: Path, tmp_path: Path) -> None:
    """It is that of a source of the same sizes that is trained here."""
    experiment = tmp_path / "stated.toml"
    source = '[source]\ncheckpoint = "nowhere"\nlayers = 2\nwidth = 16\nheads = 2\nffn = 64\nflops = 3e12\n'
    experiment.write_text(f'extends = "{miniature.name}"\n{source}')
    forecast = ("--dry-run", "--methods", "bert2bert", "--throughput", "1e9")
    code, out, said = growbench("run", experiment, *forecast)
    assert (code, said) == (0, "")
    stated, trained = (
        next(line for line in text.splitlines() if line.startswith("bert2bert")).split()
        for text in (out, growbench("run", miniature, *forecast)[1])
    )
    assert stated[:-6] == trained[:-6] and " ".join(stated).count("3.00 T") == 1
    assert "source: what the experiment's file states; growbench has not measured it" in out
    code, _, said = growbench("run", experiment, "--methods", "bert2bert", "--results", tmp_path / "results")
    assert code == 2 and "'nowhere': not a folder" in said


def test_another_tokenizer_than_the_models_own_is_refused(checkpoint: Checkpoint) -> None:
    folder, other = (checkpoint(name, random_model(name, sizes_for(name))) for name in ("gpt2", "roberta"))
    fits = experiment_from("gpt2", folder)
    assert saved_models.resolved(fits).pretrained
    message = refusal(replace(fits, data=replace(fits.data, tokenizer=str(other))))
    assert f"data.tokenizer = {str(other)!r} is another one than the model's own" in message


def test_a_broken_checkpoint_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("bert", random_model("bert", sizes_for("bert")))
    fits = experiment_from("bert", folder)
    absent = replace(fits, pretrained=Pretrained(str(tmp_path / "absent")))
    assert "absent': not a folder, and could not be fetched from the hub" in refusal(absent)
    weights, settings = folder / "model.safetensors", folder / "config.json"
    file = replace(fits, pretrained=Pretrained(str(weights)))
    assert "model.safetensors': is a file; name the folder that holds it" in refusal(file)
    content = weights.read_bytes()
    weights.write_bytes(content[:-9])
    assert "cannot be read" in refusal(fits)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "holds no safetensors, the only format that is read" in refusal(fits)
    weights.write_bytes(content)
    settings.write_text("{")
    assert "cannot be read" in refusal(fits)


def test_a_damaged_source_is_refused(checkpoint: Checkpoint) -> None:
    """One that was changed on purpose loses its card, which would state another model's cost. Files beside it may be missing."""
    folder = checkpoint("gpt2", random_model("gpt2", sizes_for("gpt2")))
    fits = experiment_from("gpt2", folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    saved_models.load(saved_models.resolved(fits), torch.device("cpu"))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors is damaged (sha256 differs): restore it; if it was changed on purpose" in refusal(fits)
    (folder / "growbench.json").unlink()
    saved_models.load(saved_models.resolved(fits), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "layer_norm_eps", 0.1), ("bert", "hidden_act", "relu"),
        ("llama", "rope_theta", 100.0), ("llama", "attention_bias", True), ("modernbert", "local_attention", 4),
        ("gpt2", "activation_function", "relu"), ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ],
)  # fmt: skip
def test_the_settings_of_a_checkpoint_are_taken_over(name: str, key: str, value: Any, checkpoint: Checkpoint) -> None:
    """The model computes what the library's does, which is not what the usual settings give. A target would have them too."""
    folder = checkpoint(name, random_model(name, sizes_for(name)))
    (folder / "growbench.json").unlink()
    usual = taken_over(name, folder)
    settings = json.loads((folder / "config.json").read_text())
    if key == "rope_theta":
        settings["rope_parameters"] = {**settings["rope_parameters"], key: value}
    (folder / "config.json").write_text(json.dumps({**settings, key: value}))
    if key == "attention_bias":
        weights = load_file(folder / "model.safetensors")
        names = {name for name in weights if "self_attn" in name}
        biases = {name.replace("weight", "bias"): torch.randn(len(weights[name])) for name in names}
        save_file({**weights, **biases}, folder / "model.safetensors", {"format": "pt"})
    found = taken_over(name, folder)
    inputs = torch.randint(3, 300, (4, 9))
    with torch.no_grad():
        expected = by_the_library(name, folder)(inputs).logits.flatten(0, 1)
        torch.testing.assert_close(found(inputs), expected, rtol=1e-5, atol=1e-5)
        assert (usual(inputs) - expected).norm() > 1e-4 * expected.norm()
    target = saved_models.resolved(experiment_from(name, folder)).target
    grown: Any = architectures.get(name).build(replace(target, vocabulary=300, positions=9))
    assert value in (getattr(grown.config, key, None), (getattr(grown.config, "rope_parameters", None) or {}).get(key))


def test_a_model_that_computes_something_else_is_refused(original: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = original("gpt2")
    forward = GPT2.forward
    monkeypatch.setattr(GPT2, "forward", lambda *arguments: 1.001 * forward(*arguments))
    message = "computes something else than growbench's gpt2 with the same settings"
    assert message in refusal(experiment_from("gpt2", folder))


def test_weights_that_do_not_fit_their_configuration_are_refused(checkpoint: Checkpoint) -> None:
    folder = checkpoint("gpt2", random_model("gpt2", sizes_for("gpt2")))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "n_inner": 80}))
    assert "transformer.h.0.mlp.c_fc.bias has shape (40,), in its class (80,)" in refusal(experiment_from("gpt2", folder))


def test_images_of_another_kind_are_refused(original: Original) -> None:
    fits = experiment_from("vit", original("vit"))
    data = fits.data
    assert isinstance(data, ImageConfig)
    assert "needs data.image_size = 12 and data.patch = 4" in refusal(replace(fits, data=replace(data, image_size=8)))
    assert "needs data.classes = 5" in refusal(replace(fits, data=replace(data, classes=6)))
    assert "is a VisionTransformer, the experiment's models are Cait" in refusal(replace(fits, architecture="cait"))


# Through the command line


def growbench(*arguments: object, figures: bool = False) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; without the report's figures unless asked for them: they take longest."""
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr("growbench.report.plots.save", lambda comparison, out: {})
        return answer(*arguments)


@pytest.fixture(scope="module")
def done(once: Once, write_miniature: WriteMiniature) -> tuple[Path, Path, str]:
    """The miniature's file, its results with the models of two methods, and what was said."""

    def train(folder: Path) -> None:
        asked = ("run", write_miniature(folder), "--methods", "bert2bert,progressive_net", "--save")
        code, _, said = growbench(*asked, "--results", folder / "results")
        assert code == 0
        (folder / "said").write_text(said, encoding="utf-8")

    folder = once("saved models", train)
    return folder / "miniature.toml", folder / "results" / "miniature", (folder / "said").read_text(encoding="utf-8")


def test_run_saves_what_it_scored(done: tuple[Path, Path, str]) -> None:
    """transformers alone gets the run's final validation loss from the model; the card has the costs of the chain."""
    miniature, folder, _ = done
    experiment = loading.load(str(miniature))
    data = load(experiment.data, "causal", "bytes", experiment.train.batch)
    losses = {}
    for run in ("source-seed0", "scratch-seed0", "bert2bert-seed0"):
        record = json.loads((folder / run / "run.json").read_text())
        model = by_the_library("gpt2", folder / run / "model")
        with torch.no_grad():
            for split, key in ("validation", "final_val_loss"), ("test", "final_test_loss"):
                batches = [each.batch for each in data.held_out_batches(split)]  # type: ignore[arg-type]
                found = [nn.functional.cross_entropy(model(b.inputs).logits.flatten(0, 1), b.labels).item() for b in batches]
                expected = np.average(found, weights=[len(b.labels) for b in batches])
                assert record[key] == pytest.approx(expected, rel=1e-5), (run, split)
        card = json.loads((folder / run / "model" / "growbench.json").read_text())
        losses[run] = card["cost"]["flops"]
    assert losses["source-seed0"]["source"] == 0
    assert losses["bert2bert-seed0"]["source"] == losses["source-seed0"]["total"] > 0
    assert losses["bert2bert-seed0"]["total"] == losses["bert2bert-seed0"]["own"] + losses["bert2bert-seed0"]["source"]


def test_a_saved_model_that_is_damaged_is_said(done: tuple[Path, Path, str], tmp_path: Path) -> None:
    miniature, results, _ = done
    copy = shutil.copytree(results, tmp_path / "miniature")
    (copy / "bert2bert-seed0" / "model" / "model.safetensors").write_bytes(b"damaged")
    card = copy / "scratch-seed0" / "model" / "growbench.json"
    for broken in ("{", "[]", '{"sha256": 3}'):
        card.write_text(broken)
        code, _, said = growbench("run", miniature, "--methods", "bert2bert", "--results", tmp_path, "--save")
        assert code == 0
        assert "of its saved model model.safetensors is damaged (sha256 differs): remove its folder to train it again" in said
        assert "of its saved model growbench.json cannot be read" in said


def test_a_model_that_is_not_saved_is_said(done: tuple[Path, Path, str], tmp_path: Path) -> None:
    """One that needs its source; and one whose run is over."""
    miniature, folder, said = done
    assert "progressive_net-seed0 has a model that is not saved: it contains the source, and so is of no library's class" in said
    assert not (folder / "progressive_net-seed0" / "model").exists()
    shutil.copytree(folder, tmp_path / "miniature")
    shutil.rmtree(tmp_path / "miniature" / "bert2bert-seed0" / "model")
    code, _, said = growbench("run", miniature, "--methods", "bert2bert,progressive_net", "--save", "--results", tmp_path)
    hints = [line for line in said.splitlines() if line.endswith("its model was not saved: remove its folder to train it again")]
    assert code == 0 and [line.split()[0] for line in hints] == ["bert2bert-seed0"]


HOOKED = """
from growbench.method import Method, Phase, Phases, Task

class {name}(Method):
    \"\"\"Train a model that is more than its weights.\"\"\"
    paper = ""
    uses_source = False
    def phases(self, task: Task) -> Phases:
        model = task.build()
        {change}
        yield Phase(model=model)
"""
CHANGES = {
    "hooked": "model.register_forward_hook(lambda module, inputs, output: 2 * output)",
    "set": "model.transformer.ln_f.eps = 0.5",
    "plain": "model.register_forward_hook(lambda module, inputs, output: output)",
}


def test_a_model_that_its_weights_do_not_make_is_not_saved(miniature: Path, tmp_path: Path) -> None:
    """One line says so, and the run is kept; a hook that changes nothing does not matter."""
    for name, change in CHANGES.items():
        (tmp_path / f"{name}.py").write_text(HOOKED.format(name=name.capitalize(), change=change))
    methods, short = ",".join(str(tmp_path / f"{name}.py") for name in CHANGES), ("--set", "train.steps=3")
    code, _, said = growbench("run", miniature, "--methods", methods, "--save", "--results", tmp_path / "results", *short)
    assert code == 0
    folder = tmp_path / "results" / "miniature"
    assert {path.parent.name for path in folder.glob("*/model")} == {"scratch-seed0", "plain-seed0"}
    assert not list(folder.rglob("*.part"))
    for name in ("hooked", "set"):
        run = store.load(folder / f"{name}-seed0")
        assert run is not None and run.finished
        (line,) = (line for line in said.splitlines() if line.startswith(f"{name}-seed0") and "not saved" in line)
        assert "its logits differ from those of GPT2LMHeadModel with the same weights" in line


def test_a_run_starts_from_a_saved_model_and_is_charged_for_it(done: tuple[Path, Path, str], tmp_path: Path) -> None:
    """As its card says; without a card nothing with it charged is a number, until the experiment says what it cost."""
    miniature, folder, _ = done
    source = tmp_path / "model"
    shutil.copytree(folder / "bert2bert-seed0" / "model", source)
    card = json.loads((source / "growbench.json").read_text())
    larger = ["--set", "target.layers=3", "--set", "target.width=64", "--set", "target.heads=8"]
    start = ["run", miniature, "--methods", "bert2bert", "--results", tmp_path / "results", "--target-loss", "5.6", *larger]
    start += ["--set", f"source={source}", "--set", f"data.tokenizer={source}"]
    results = tmp_path / "results" / "miniature"

    def charged() -> dict[str, Any]:
        record = json.loads((results / "bert2bert-seed0" / "run.json").read_text())
        return {unit: record["cost"][unit]["source"] for unit in ("flops", "seconds")}

    code, plan, _ = growbench(*start, "--dry-run")
    assert code == 0 and f"the source is pretrained: {source}" in plan
    code, _, said = growbench(*start)
    assert code == 0 and "unknown" not in said
    assert charged() == {unit: card["cost"][unit]["total"] for unit in ("flops", "seconds")}
    assert not (results / "source-seed0").exists()
    identity = json.loads((results / "bert2bert-seed0" / "run.json").read_text())["config"]["experiment"]
    assert identity["pretrained"]["checkpoint"] == str(source) and len(identity["pretrained"]["sha256"]) == 64

    (source / "growbench.json").unlink()
    shutil.rmtree(results)
    code, shown, said = growbench(*start, figures=True)
    assert code == 0 and charged() == {"flops": None, "seconds": None}
    table = (results / "report" / "savings.md").read_text()
    for text in (said, table, " ".join(shown.split())):
        assert text.count("set flops = X and seconds = Y") == 1
    (row,) = (line for line in table.splitlines() if line.startswith("| bert2bert"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [place for place, cell in enumerate(cells) if cell == "unknown"] == [5, 8]  # FLOPs and time of the build ledger
    page = html.unescape((results / "report" / "index.html").read_text())
    assert "The source was pretrained, and the cost of its training is unknown" in page
    savings = pd.read_csv(results / "report" / "savings.csv").set_index("method").loc["bert2bert"]
    assert savings.filter(regex="saving_build$").isna().all() and savings.filter(regex="saving_reuse$").notna().all()
    comparison = analyse(results, 5.6)
    assert not comparison.savings["control"].any()
    ratios = profiles.savings({"one": comparison}).set_index("method")
    assert math.isnan(ratios.loc["bert2bert", "to_best_build"]) and ratios.loc["scratch", "to_best_build"] == 1

    code, shown, said = growbench(*start, "--set", "source.flops=1e7", "--set", "source.seconds=2")
    assert code == 0 and "bert2bert-seed0    is done" in said and "unknown" not in said + shown
    assert charged() == {"flops": 1e7, "seconds": 2.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source=nowhere", "source = 'nowhere': not a folder, and could not be fetched from the hub"),
        ("source.checkpoint=nowhere", "source = 'nowhere': not a folder, and could not be fetched from the hub"),
        (
            'source={checkpoint="x", dropout=0.1}',
            "source.dropout: not allowed beside checkpoint, which is trained already; allowed are flops, seconds, layers",
        ),
        ('source={checkpoint="x", flops=0}', "source: flops = 0.0: must be above 0"),
        ("source=3", "source = 3: must be a table"),
    ],
)
def test_a_source_that_is_none_is_refused(override: str, message: str, miniature: Path, tmp_path: Path) -> None:
    code, out, said = growbench("run", miniature, "--set", override, "--results", tmp_path / "results")
    assert code == 2 and message in said and len(said.splitlines()) == 1 and not out
    assert not (tmp_path / "results").exists()


def test_a_file_names_its_source_in_a_line_and_in_place_of_the_one_it_extends(miniature: Path, tmp_path: Path) -> None:
    """The identity of an experiment without one is what it was."""
    short, full = tmp_path / "short.toml", tmp_path / "full.toml"
    short.write_text(f'extends = "{miniature.name}"\nsource = "somewhere"\n')
    full.write_text(f'extends = "{miniature.name}"\n[source]\ncheckpoint = "somewhere"\nflops = 1e18\n')
    assert loading.load(str(short)).pretrained == Pretrained("somewhere")
    assert loading.load(str(full)).pretrained == Pretrained("somewhere", flops=1e18)
    usual = loading.load(str(miniature)).identity()
    assert "pretrained" not in usual and usual["source_train"]["steps"] == 12
