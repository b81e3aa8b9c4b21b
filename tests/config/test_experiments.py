"""The shipped experiments: they can be planned with the methods of LiGO's paper, and a lite one runs on data of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growbench import cli
from growbench.config import loading, schema
from growbench.planning.plan import plan, plan_source
from growbench.registry import get_all
from growbench.runs import store

PAPERS = ["ligo", "ki", "stackbert", "mslt", "bert2bert"]
LITE = [name for name in loading.available() if name.endswith("-lite")]

# FLOPs per step of source and target by the paper's counter, batch 256 x 128
GOLDEN = {
    "bert-small-base": (4.97735e12, 1.506823133184e13),
    "bert-small50k-base": (4.97735e12, 1.506823133184e13),
    "bert-base-large": (1.506823133184e13, 4.530815e13),
    "bert-small-large": (4.97735e12, 4.530815e13),
    "bert-depth": (9.32438e12, 1.506823133184e13),
}
SOURCES = {"bert-small-base": 1.0950e18, "bert-small50k-base": 2.489e17, "bert-base-large": 6.0273e18}


# Steps of warm-up of target and source, as these experiments said them before they could say shares
WARMUP = {
    "bert-base-large": (10000, 10000),
    "bert-base-large-lite": (288, 288),
    "bert-depth": (10000, 10000),
    "bert-depth-lite": (132, 132),
    "bert-mini": (150, 150),
    "bert-small-base": (10000, 10000),
    "bert-small-base-lite": (132, 132),
    "bert-small-large": (10000, 10000),
    "bert-small-large-lite": (300, 300),
    "bert-small50k-base": (10000, 10000),
    "bert-small50k-base-lite": (140, 140),
    "bert-tiny": (20, 20),
    "bert-width": (10000, 10000),
    "bert-width-lite": (132, 132),
    "cait-mini": (60, 60),
    "cait-tiny": (40, 40),
    "cait-xs-s": (5630, 5630),
    "cait-xs-s-lite": (167, 167),
    "deit-s-b": (5630, 5630),
    "deit-s-b-lite": (92, 92),
    "gpt2-base-medium": (500, 500),
    "gpt2-base-medium-lite": (132, 132),
    "gpt2-mini": (50, 50),
    "gpt2-tiny": (40, 40),
    "llama-tiny": (40, 40),
    "modernbert-base-large": (396, 396),
    "modernbert-base-large-lite": (10, 10),
    "modernbert-mini": (100, 100),
    "modernbert-tiny": (100, 100),
    "qwen3-grow": (400, 400),
    "qwen3-grow-lite": (20, 20),
    "qwen3-tiny": (40, 40),
    "roberta-small-base": (10000, 10000),
    "roberta-small-base-lite": (132, 132),
    "smollm2-grow": (400, 400),
    "smollm2-grow-lite": (56, 56),
    "smollm2-grow-wide": (400, 400),
    "smollm2-grow-wide-lite": (25, 25),
    "smollm2-tiny": (40, 40),
}


def test_warm_up_takes_as_many_steps_as_ever() -> None:
    """And a run's identity has steps, whatever the file says."""
    experiments = {name: loading.load(name) for name in loading.available()}
    assert {name: (each.train.warmup_steps, each.source_train.warmup_steps) for name, each in experiments.items()} == WARMUP
    for name, experiment in experiments.items():
        identity = experiment.identity()
        assert (identity["train"]["warmup"], identity.get("source_train", identity["train"])["warmup"]) == WARMUP[name]
        assert isinstance(identity["train"]["warmup"], int)


@pytest.mark.parametrize("name", loading.available())
def test_a_shorter_budget_just_works(name: str) -> None:
    """Any experiment, source and target: the warm-up becomes shorter with it."""
    full = loading.load(name)
    short = loading.load(name, ["train.steps=60", *([] if full.pretrained else ["source.steps=30"])])
    of_source = 60 if full.pretrained else 30
    for each, own, steps in (short.train, full.train, 60), (short.source_train, full.source_train, of_source):
        assert each.warmup_steps == round(own.warmup * steps) < steps


@pytest.mark.parametrize("name", loading.available())
def test_every_method_of_the_paper_can_be_planned(name: str) -> None:
    """No network, no weights in memory; the paper's own figures where it has some.

    At full size scratch and one of the methods, in turns; `growbench run NAME --dry-run` plans all.
    """
    experiment = loading.load(name)
    vocabulary = experiment.data.classes if isinstance(experiment.data, schema.ImageConfig) else experiment.data.vocabulary
    (source,) = plan_source(experiment, vocabulary, torch.device("cuda"))
    full = [each.removesuffix("-lite") for each in LITE]
    methods = ["scratch", *([PAPERS[full.index(name) % len(PAPERS)]] if name in full else [])]
    plans = {
        found.name: plan(experiment, found, vocabulary, torch.device("cuda")) for found in get_all(methods, experiment.methods)
    }
    for phases in plans.values():
        assert sum(phase.steps for phase in phases if phase.scored) == experiment.train.steps
        assert 0 < max(phase.memory for phase in phases) < 78 * 2**30, "more than a GPU of 80 GB has"
    if name in GOLDEN:
        (target,) = plans["scratch"]
        per_step = source.paper_flops_per_step, target.paper_flops_per_step
        assert per_step == pytest.approx(GOLDEN[name], rel=1e-6)
        assert per_step[0] and source.steps * per_step[0] == pytest.approx(
            SOURCES.get(name, source.steps * per_step[0]), rel=3e-4
        )


@pytest.mark.parametrize("name", LITE)
def test_a_lite_experiment_keeps_the_proportions(name: str) -> None:
    lite, full = loading.load(name), loading.load(name.removesuffix("-lite"))
    for key in ("layers", "width", "heads", "ffn"):
        ratios = [getattr(each.source, key) / getattr(each.target, key) for each in (lite, full)]
        assert ratios[0] == ratios[1], key
    shares = [(each.source_train.steps / each.train.steps, each.train.warmup_steps / each.train.steps) for each in (lite, full)]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)
    assert lite.target.head_size == full.target.head_size
    assert lite.train.lr / lite.train.batch == pytest.approx(full.train.lr / full.train.batch) or lite.train.lr == full.train.lr
    assert "lite" in lite.title and not lite.published, "the paper's figures are of the full size"


def tiny(name: str, *overrides: str) -> list[str]:
    sizes = ["source.layers=1", "source.width=16", "source.heads=2", "target.layers=2", "target.width=32", "target.heads=4"]
    budget = ["source.steps=3", "train.steps=4", "train.warmup=1", "train.batch=4", "machine.micro_batch=0"]
    settings = [*sizes, *budget, "data.evaluation_batches=1", "ligo.operator_steps=2", *overrides]
    return ["run", name, "--methods", "ligo", *(part for each in settings for part in ("--set", each))]


def check_run(arguments: list[str], folder: Path) -> None:
    assert cli.main([*arguments, "--results", str(folder)]) == 0
    run = store.load(folder / arguments[1] / "ligo-seed0")
    assert run is not None and run.record.status == "finished" and run.record.steps == 6


def test_a_lite_experiment_runs_on_a_text_of_ones_own(corpus: Path, tmp_path: Path) -> None:
    """And with a tokenizer of its own: an empty name asks for one to be trained."""
    own = [f"data.corpus=files:{corpus}", "data.tokenizer=", "data.vocabulary=300", "data.documents=0", "data.sequence_length=16"]
    check_run(tiny("bert-small-base-lite", *own), tmp_path)


def test_a_lite_experiment_runs_on_images_of_ones_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(100):
        folder = tmp_path / "images" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{number}.png")
    own = [f"data.corpus=files:{tmp_path}/images/*/*.png", "data.image_size=16", "data.patch=8", "data.classes=3"]
    own += ["machine.workers=0"]  # those take seconds to start
    check_run(tiny("cait-xs-s-lite", *own), tmp_path)
