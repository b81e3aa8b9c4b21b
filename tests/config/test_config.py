"""Experiments: a bad key or value is one line that names it and says what is allowed; a good one means what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from growbench.config import loading, schema
from growbench.config.loading import load
from growbench.errors import UsageError
from growbench.method import schedule


def refusal(experiment: Path | str, *overrides: str) -> str:
    """The text of the UsageError, which must be one line."""
    with pytest.raises(UsageError) as caught:
        load(str(experiment), overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


BAD_VALUES = [
    ("train.steps=0", "train: steps = 0: must be above 0"),
    ("train.steps=3.5", "train.steps = 3.5: must be a valid integer"),
    ("train.steps=true", "train.steps = True: must be a valid integer"),
    ("train.steps=many", "train.steps = 'many': must be a valid integer"),
    ("train.steps=", "train.steps = '': must be a valid integer"),
    ("train.batch=-4", "train: batch = -4: must be above 0"),
    ("train.lr=0", "train: lr = 0.0: must be above 0"),
    ("train.lr=nan", "train.lr = nan: must be"),
    ("train.lr=inf", "train.lr = inf: must be"),
    ("train.lr=[1e-3]", "train.lr = [0.001]: must be a valid number"),
    ("train.clip=0", "train: clip = 0.0: must be above 0"),
    ("train.warmup=12", "train: warmup = 12: must be at least 0 and below steps = 12"),
    ("train.warmup=-1", "train: warmup = -1: must be at least 0 and below steps = 12"),
    (
        "train.warmup=1.0",
        "train: warmup = 1.0: must be at least 0 and below steps = 12 (an integer), or below 1 (a share of the steps)",
    ),
    ("train.warmup=-0.1", "train: warmup = -0.1: must be at least 0 and below steps = 12 (an integer), or below 1"),
    ("train.warmup=nan", "train.warmup = nan: must be a valid integer or a finite number"),
    ("train.warmup=long", "train.warmup = 'long': must be a valid integer or a valid number"),
    ("train.decay=0", "train: decay = 0.0: must be above 0 and at most 1"),
    ("train.decay=1.5", "train: decay = 1.5: must be above 0 and at most 1"),
    ("train.weight_decay=-0.1", "train: weight_decay = -0.1: must be"),
    ("train.eps=-1e-8", "train: eps = -1e-08: must be"),
    ("train.betas=[0.9]", "train.betas[1] is missing"),
    ("train.betas=0.9", "train.betas = 0.9: must be a valid array"),
    ('train.betas=[0.9, "x"]', "train.betas[1] = 'x': must be a valid number"),
    ("train.betas=[0.9, 1.5]", "train: betas = (0.9, 1.5): must be"),
    ("train.schedule=linaer", "train.schedule = 'linaer': must be 'linear', 'cosine' or 'wsd'"),
    ("train.optimizer=sgd", "train.optimizer = 'sgd': must be 'adamw' or 'muon'"),
    ("train.precision=fp8", "train.precision = 'fp8': must be 'auto', 'float32' or 'bf16'"),
    ("source.layers=-1", "source: layers = -1: must be at least 0"),
    ("target.layers=0", "target.layers = 0: must be at least 1; only a source may have none"),
    ("target.width=0", "target: width = 0: must be at least 1"),
    ("target.heads=-2", "target: heads = -2: must be at least 1"),
    ("target.heads=5", "target: width = 32 is not divisible by heads = 5"),
    ("target.ffn=-8", "target: ffn = -8: must be"),
    ("target.dropout=1", "target: dropout = 1.0: must be at least 0 and below 1"),
    ("target.tied=maybe", "target.tied = 'maybe': must be a valid boolean"),
    ("target.tied=1", "target.tied = 1: must be a valid boolean"),
    ("target.vocabulary=99", "target.vocabulary: unknown key; it follows from [data]"),
    ("source.layers=3", "source.layers = 3 is larger than target.layers = 2: a source can only grow"),
    ("source.ffn=999", "source.ffn = 999 is larger than target.ffn = 128: a source can only grow"),
    ("data.vocabulary=0", "data: vocabulary (a size, to train a tokenizer on the corpus) or tokenizer (a name) is missing"),
    ("data.vocabulary=-5", "data: vocabulary = -5: must be"),
    ("data.sequence_length=3", "data: sequence_length = 3: must be at least 4"),
    ("data.evaluation_batches=0", "data: evaluation_batches = 0: must be at least 1"),
    ("data.documents=-1", "data: documents = -1: must be at least 0 (0: all)"),
    ("machine.micro_batch=-1", "machine: micro_batch = -1: must be at least 0"),
    ("machine.micro_batch=3", "batch = 4: must be divisible by machine.micro_batch = 3"),
    ("machine.compile=yes", "machine.compile = 'yes': must be 'auto', 'on' or 'off'"),
    ("machine.workers=-2", "machine: workers = -2: must be at least -1"),
    ("data.mask_share=0", "data: mask_share = 0.0: must be above 0 and below 1"),
    ("data.mask_share=1", "data: mask_share = 1.0: must be above 0 and below 1"),
    ("data.corpus=3", "data.corpus = 3: must be a valid string"),
    (
        "data.corpus=wikipedia",
        "data: corpus = 'wikipedia': allowed are wikipedia-sample, tokens:FOLDER, files:GLOB and hub:NAME[:CONFIG]",
    ),
    ("published.ligo.flops=many", "published.ligo.flops = 'many': must be a valid number"),
    ("published.ligo.flops=nan", "published.ligo.flops = nan: must be a finite number"),
]


@pytest.mark.parametrize(("override", "message"), BAD_VALUES, ids=[override for override, _ in BAD_VALUES])
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(miniature: Path, override: str, message: str) -> None:
    assert message in refusal(miniature, override)


SECTIONS = ["source", "target", "data", "train", "machine", "methods", "published", "methods.ligo", "published.ligo"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_must_be_a_table(miniature: Path, section: str) -> None:
    """A number where a table belongs is refused, however it came there."""
    text = miniature.read_text()
    heading = rf"(?ms)^\[{re.escape(section)}[.\]].*?(?=^\[|\Z)"
    miniature.write_text(f"{section} = 3\n" + re.sub(heading, "", text))
    assert f"{section} = 3: must be a table" in refusal(miniature)


@pytest.mark.parametrize("lines", ['extends = ["gpt2-tiny"]', "extends = 3", 'extends = "gpt2-tiny"\nsource = 5'])
def test_what_an_experiment_extends_is_a_name(tmp_path: Path, lines: str) -> None:
    (tmp_path / "mine.toml").write_text(lines + "\n")
    assert "extends = " in (message := refusal(tmp_path / "mine.toml")) or "source = 5: must be a table" in message


def test_set_of_a_key_below_a_value_is_refused(miniature: Path) -> None:
    """`train.steps.more` is no place."""
    assert refusal(miniature, "train.steps.more=3") == "--set 'train.steps.more=3': steps is not a table"


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.=3"])
def test_set_needs_a_key_and_a_value(miniature: Path, override: str) -> None:
    assert refusal(miniature, override) == f"--set {override!r}: must be key=value, as in train.steps=100"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.stpes=3", "unknown key train.stpes: did you mean steps?"),
        ("source.stpes=3", "unknown key source.stpes: did you mean steps?"),
        ("target.widht=8", "unknown key target.widht: did you mean width?"),
        ("data.corpsu=x", "unknown key data.corpsu: did you mean corpus?"),
        ("published.ligo.flop=3", "unknown key published.ligo.flop: did you mean flops?"),
        ("titel=x", "unknown key titel: did you mean title?"),
        ("target.steps=3", "unknown key target.steps: "),  # a key of [train], allowed in [source] only
    ],
)
def test_an_unknown_key_gets_a_suggestion_and_the_list(miniature: Path, override: str, meant: str) -> None:
    message = refusal(miniature, override)
    assert message.startswith(meant)
    assert "known: " in message


FIELDS = {
    "source": {*schema.ModelConfig.__dataclass_fields__, *schema.Training.__dataclass_fields__},
    "target": {*schema.ModelConfig.__dataclass_fields__},
    "data": {*schema.TextConfig.__dataclass_fields__},
    "train": {*schema.Training.__dataclass_fields__},
}


@given(section=st.sampled_from(sorted(FIELDS)), key=st.from_regex(r"[A-Za-z_-]{1,12}", fullmatch=True))
def test_any_unknown_key_is_refused(section: str, key: str) -> None:
    """Whatever it is called: a key that is none of its section's fields is refused by its name."""
    assume(key not in FIELDS[section])
    assert refusal("gpt2-tiny", f"{section}.{key}=1").startswith(f"unknown key {section}.{key}: ")


@pytest.mark.parametrize("key", ["title", "architecture", "source", "target", "data", "train"])
def test_a_missing_section_is_named(miniature: Path, key: str) -> None:
    text = re.sub(rf"(?m)^{key} = .*$", "", miniature.read_text())
    miniature.write_text(re.sub(rf"(?ms)^\[{key}\].*?(?=^\[|\Z)", "", text))
    assert refusal(miniature) == f"{key} is missing"


@pytest.mark.parametrize(("section", "key"), [("source", "layers"), ("target", "width"), ("data", "corpus"), ("train", "lr")])
def test_a_missing_key_is_named(miniature: Path, section: str, key: str) -> None:
    miniature.write_text(re.sub(rf"(?ms)(^\[{section}\].*?)^{key} = .*?$", r"\1", miniature.read_text()))
    assert refusal(miniature) == f"{section}.{key} is missing"


def test_an_experiment_extends_another(miniature: Path, tmp_path: Path) -> None:
    """What it does not say is as in the file beside it, or in the shipped one; --set still wins."""
    child = tmp_path / "child.toml"
    child.write_text('extends = "middle.toml"\n[train]\nlr = 0.5\n[published.ligo]\nflops = 7\n')
    (tmp_path / "middle.toml").write_text(f'extends = "{miniature.name}"\ntitle = "Middle"\n[train]\nlr = 0.25\nsteps = 9\n')
    base, experiment = load(str(miniature)), load(str(child), ["target.layers=3"])
    assert (experiment.name, experiment.title) == ("child", "Middle")
    assert (experiment.train.lr, experiment.train.steps, experiment.train.batch) == (0.5, 9, base.train.batch)
    assert (experiment.target.layers, experiment.target.width) == (3, base.target.width)
    assert experiment.source == base.source
    assert experiment.published["ligo"].flops == 7
    child.write_text('extends = "bert-small-base"\n[published]\nki = { flops = 3 }\n')
    assert load(str(child)).published == {"ki": schema.Published(flops=3)}, "the base's figures are not this experiment's"
    child.write_text('extends = "bert-small-base"\npublished = {}\n')
    assert load(str(child)).published == {} != load("bert-small-base").published
    child.write_text('extends = "gpt2-tiny"\ntitle = "Mine"')
    assert load(str(child)).identity() == load("gpt2-tiny").identity()


def test_an_experiment_extends_something_that_is_there(miniature: Path) -> None:
    text = miniature.read_text()
    for name, said in [
        ('"gpt2-tyni"', "extends = 'gpt2-tyni': did you mean gpt2-tiny?"),
        ("3", "extends = 3: known: "),
        ('"absent.toml"', "cannot read experiment"),
        (f'"{miniature.name}"', f"extends = '{miniature.name}': extends itself"),
    ]:
        miniature.write_text(f"extends = {name}\n{text}")
        assert said in refusal(miniature)


def test_an_unknown_experiment_gets_a_suggestion() -> None:
    message = refusal("gpt2-tyni")
    assert message.startswith("unknown experiment 'gpt2-tyni': did you mean gpt2-tiny? known: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Absent, a folder, not TOML, not UTF-8: each is one line with the path."""
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "broken.toml").write_text("title = \n[train")
    (tmp_path / "latin.toml").write_bytes('title = "Größe"'.encode("latin-1"))
    for name in ("absent", "folder", "broken", "latin"):
        path = tmp_path / f"{name}.toml"
        assert refusal(path).startswith(f"cannot read experiment {path}: ")


def test_set_overrides_the_file(miniature: Path) -> None:
    """TOML values, bare words, lists and bools reach the field they name; the last one wins."""
    experiment = load(
        str(miniature),
        [
            "train.steps=3",
            "train.steps=7",
            "train.schedule=cosine",
            "train.betas=[0.8, 0.95]",
            "source.tied=false",
            "target.tied=false",
            "train.lr=1",
        ],
    )
    assert (experiment.train.steps, experiment.train.schedule, experiment.train.betas) == (7, "cosine", (0.8, 0.95))
    assert experiment.target.tied is False
    assert (experiment.train.lr, type(experiment.train.lr)) == (1.0, float)


def test_warm_up_is_steps_or_a_share_of_the_budget(miniature: Path) -> None:
    """A source inherits what is said; a budget of the same experiment has as many steps of warm-up."""
    share = load(str(miniature), ["train.steps=60", "source.steps=30", "train.warmup=0.1"])
    steps = load(str(miniature), ["train.steps=60", "source.steps=30", "train.warmup=6"])
    assert (share.train.warmup_steps, share.source_train.warmup_steps) == (6, 3)
    assert (steps.train.warmup_steps, steps.source_train.warmup_steps) == (6, 6)
    rates = [[schedule.of(each.train)(step, 60) for step in range(60)] for each in (share, steps)]
    assert rates[0] == rates[1] and rates[0][:7] == [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1]
    assert share.identity()["train"] == steps.identity()["train"]
    assert share.at(0.5, {}).train.warmup_steps == steps.at(0.5, {}).train.warmup_steps == 6
    assert share.at(0.5, {"warmup": 2}).train.warmup_steps == 2


@given(share=st.floats(0, 1, exclude_max=True), steps=st.integers(1, 10**6))
def test_any_share_leaves_a_step_after_warm_up(share: float, steps: int) -> None:
    training = schema.Training(batch=1, steps=steps, lr=1.0, warmup=share)
    assert 0 <= training.warmup_steps < steps
    assert abs(training.warmup_steps - share * steps) <= 1


def test_set_reaches_hyperparameters_of_methods(miniature: Path) -> None:
    """`METHOD.field` is short for `methods.METHOD.field`; one method may have several."""
    experiment = load(str(miniature), ["ligo.operator_steps=50", "methods.ligo.order=width_first", "mine.fast=true"])
    assert experiment.methods == {"ligo": {"operator_steps": 50, "order": "width_first"}, "mine": {"fast": True}}


def test_source_trains_as_the_target_unless_told_otherwise(miniature: Path) -> None:
    """Any key of [train] may stand in [source]; the others come from [train]."""
    experiment = load(str(miniature), ["source.steps=5", "source.lr=0.01", "train.schedule=cosine"])
    assert (experiment.source_train.steps, experiment.source_train.lr, experiment.source_train.schedule) == (5, 0.01, "cosine")
    assert (experiment.train.steps, experiment.train.lr) == (12, 1e-3)
    assert "source: warmup = 5: must be at least 0 and below steps = 5" in refusal(miniature, "source.steps=5", "source.warmup=5")


def test_defaults_follow_from_sizes(miniature: Path) -> None:
    """The FFN is four widths, the head size width / heads, positions and vocabulary come from the data."""
    experiment = load(str(miniature))
    sizes = experiment.sizes("target", vocabulary=300)
    assert (sizes.ffn, sizes.head_size, sizes.vocabulary, sizes.positions) == (128, 8, 300, 16)


@pytest.mark.parametrize("name", loading.available())
def test_a_shipped_experiment_loads_and_grows(name: str) -> None:
    """Every shipped file is valid, says what to run in its first line, and names an architecture and methods that exist."""
    from growbench import architectures, registry

    experiment = load(name)
    assert experiment.architecture in architectures.names()
    assert {*experiment.methods, *experiment.published} <= set(registry.built_in())
    assert loading.available()[name].read_text(encoding="utf-8").startswith(f"# growbench run {name} ")


def test_identity_is_what_json_gives_back(miniature: Path) -> None:
    """A stored run's identity equals the one of the experiment that made it; a change of the outcome changes it."""
    experiment = load(str(miniature))
    stored = json.loads(json.dumps(experiment.identity()))
    assert stored == json.loads(json.dumps(load(str(miniature)).identity()))
    assert stored["train"]["betas"] == [0.9, 0.999]
    assert load(str(miniature), ["title=other", "ligo.operator_steps=9"]).identity() == experiment.identity()
    assert load(str(miniature), ["machine.micro_batch=2", "machine.compile=on"]).identity() == experiment.identity()
    assert "documents" not in experiment.identity()["data"], "runs stored before it existed still count"
    for override in (
        "data.documents=7",
        "train.lr=0.5",
        "source.steps=5",
        "data.sequence_length=8",
        "target.layers=3",
        "architecture=bert",
    ):
        assert load(str(miniature), [override]).identity() != experiment.identity(), override
