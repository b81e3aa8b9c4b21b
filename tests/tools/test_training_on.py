"""A grown checkpoint is trained on elsewhere: by transformers' Trainer, and by peft on copies that share their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from growbench.cli import main


def test_a_model_trained_here_is_grown_verified_and_trained_on(miniature: Path, corpus: Path, tmp_path: Path) -> None:
    """With a loss that falls, first where training here ended."""
    results, out = tmp_path / "results", tmp_path / "grown"
    assert main(["run", str(miniature), "--methods", "scratch", "--save", "--results", str(results)]) == 0
    source = results / miniature.stem / "scratch-seed0" / "model"
    assert main(["grow", str(source), "--to", "width=64", "--out", str(out)]) == 0
    assert main(["verify", str(out), "--text", str(corpus)]) == 0
    small, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, out))
    tokens = AutoTokenizer.from_pretrained(out)(corpus.read_text(encoding="utf-8"))["input_ids"]
    blocks = torch.tensor(tokens[: len(tokens) // 16 * 16]).reshape(-1, 16)
    with torch.no_grad():
        before, after = (float(each.eval()(blocks[:8], labels=blocks[:8]).loss) for each in (small, model))
    assert after == pytest.approx(before, rel=1e-4)
    rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in blocks.tolist()])
    arguments = TrainingArguments(
        str(tmp_path / "trained"), max_steps=12, per_device_train_batch_size=8, learning_rate=3e-3, lr_scheduler_type="constant",
        logging_steps=4, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(("order", "replication"), [("stack", [[0, 3], [0, 2]]), ("interpose", [[0, 1], [0, 2], [1, 3]])])
def test_layers_that_peft_replicates_compute_what_a_grown_model_does(order: str, replication: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = LlamaConfig(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    source = LlamaForCausalLM(sizes).eval()
    source.save_pretrained(tmp_path / "source")
    grow = ["--method", "depth_map", "--set", f"depth_map.map={order}", "--to", "layers=5", "--out", str(tmp_path / "grown")]
    assert main(["grow", str(tmp_path / "source"), *grow]) == 0
    origins = json.loads((tmp_path / "grown" / "growbench.json").read_text())["layer_origins"]
    assert origins == [[layer] for start, end in replication for layer in range(start, end)]
    inputs = torch.randint(60, (2, 9))
    with torch.no_grad():
        alone = source(inputs).logits
        grown = LlamaForCausalLM.from_pretrained(tmp_path / "grown").eval()(inputs).logits
        replicated = get_peft_model(source, LoraConfig(task_type="CAUSAL_LM", layer_replication=replication)).eval()
        found = replicated(inputs, use_cache=False).logits
    torch.testing.assert_close(found, grown)
    assert (alone - grown).abs().max() > 1e-3
