"""Experiments as frozen dataclasses. A wrong value is an error of one line that says what is allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from growbench.errors import UsageError

T = TypeVar("T")

PROTOCOL = 2  # of splits, orders of data and evaluation: raised when a run of the same settings comes out otherwise


def added_later(default: T) -> T:
    """A field that was added later. At its default it is left out of a run's identity, so that older runs still count."""
    return field(default=default, metadata={"added_later": True})


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of one transformer. `vocabulary` and all below it follow from data and checkpoint, and stand in no file."""

    layers: int  # the layers that grow; a source may have none: embeddings and head
    width: int  # of the residual stream
    heads: int  # attention heads
    ffn: int = 0  # 0: four times the width
    kv_heads: int = 0  # 0: as many as heads; grouped-query attention has fewer
    head_dim: int = added_later(0)  # dimensions of a head; 0: width / heads
    class_layers: int = 2  # CaiT: layers of class attention, after the layers that grow
    dropout: float = 0.0  # of embeddings, attention and residual branches
    drop_path: float = 0.0  # stochastic depth: share of residual branches that are dropped
    tied: bool = True  # output embedding shared with the input embedding
    vocabulary: int = 0  # tokens, or classes of images
    positions: int = 0  # tokens of a sequence, or patches of an image
    patch: int = 0  # side of an image patch, in pixels
    configuration: str = added_later("")  # config.json of the checkpoint that it comes from; empty: the architecture's usual one
    # What the architecture says, in no file: a norm spans all heads, so that each must be copied as often as the others.
    even_heads: bool = field(default=False, compare=False, repr=False, metadata={"added_later": True})
    # Likewise: each position predicts the next token, so that each has a label.
    causal: bool = field(default=False, compare=False, repr=False, metadata={"added_later": True})

    def __post_init__(self) -> None:
        for key, least in ("layers", 0), ("width", 1), ("heads", 1), ("class_layers", 1):
            if getattr(self, key) < least:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least {least}")
        for key in ("ffn", "kv_heads", "head_dim"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 1, or 0 for the default")
        if not self.head_dim and self.width % self.heads:
            every = "every head has width / heads dimensions, unless head_dim says how many"
            raise UsageError(f"width = {self.width} is not divisible by heads = {self.heads}: {every}")
        for key in ("dropout", "drop_path"):
            if not 0 <= getattr(self, key) < 1:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0 and below 1")
        if not self.ffn:
            object.__setattr__(self, "ffn", 4 * self.width)
        if self.heads % self.key_value_heads:
            raise UsageError(
                f"heads = {self.heads} is not divisible by kv_heads = {self.kv_heads}: heads share them in equal groups"
            )

    @property
    def head_size(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads


@dataclass(frozen=True)
class Training:
    """How a model is trained. Every method has the same budget of `steps`."""

    batch: int  # sequences or images per step
    steps: int  # the budget: scratch's number of steps
    lr: float  # peak learning rate
    warmup: int | float = 0  # linear; a number of steps (an integer) or a share of the budget (below 1)
    schedule: Literal["linear", "cosine", "wsd"] = "linear"  # of the decay to 0; wsd: stable, then linear
    decay: float = 0.2  # wsd: share of the budget that decays
    weight_decay: float = 0.01  # on matrices and embeddings; not on norms and biases
    optimizer: Literal["adamw", "muon"] = added_later("adamw")  # muon: for matrices within layers, beside AdamW for the rest
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW
    clip: float = 1.0  # largest gradient norm
    precision: Literal["auto", "float32", "bf16"] = "auto"  # of forward and backward passes; auto: as [machine] says

    def __post_init__(self) -> None:
        for key in ("batch", "steps", "lr", "clip", "eps"):
            if not 0 < getattr(self, key) < math.inf:
                raise UsageError(f"{key} = {getattr(self, key)}: must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay = {self.weight_decay}: must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas = {self.betas}: must be at least 0 and below 1")
        if not 0 <= self.warmup < (self.steps if isinstance(self.warmup, int) else 1):
            allowed = f"at least 0 and below steps = {self.steps} (an integer), or below 1 (a share of the steps)"
            raise UsageError(f"warmup = {self.warmup}: must be {allowed}")
        if not 0 < self.decay <= 1:
            raise UsageError(f"decay = {self.decay}: must be above 0 and at most 1")

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, always fewer than the budget's."""
        return self.warmup if isinstance(self.warmup, int) else min(round(self.warmup * self.steps), self.steps - 1)

    def in_steps(self) -> Training:
        """The same training with its warm-up as a number of steps, which no change of `steps` changes."""
        return dataclasses.replace(self, warmup=self.warmup_steps)


@dataclass(frozen=True)
class OwnTraining:
    """The keys of [train] that a method may have of its own, in [methods.NAME.train]. None: as in [train]."""

    lr: float | None = None
    warmup: int | float | None = None


@dataclass(frozen=True)
class Machine:
    """How the work is done. It decides speed and memory; results are the same up to rounding."""

    micro_batch: int = 0  # sequences or images in one forward pass; gradients are summed over the batch. 0: the whole batch
    precision: Literal["auto", "float32", "bf16"] = "auto"  # for auto in [train]; auto: as the folder's runs, or the fast one
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on CUDA
    workers: int = -1  # processes that prepare batches of images; -1: one for each spare core
    graphs: bool = False  # on CUDA: capture each phase's step as CUDA graphs, where that can be done, and compile nothing

    def __post_init__(self) -> None:
        if self.graphs and self.compile == "on":
            raise UsageError('graphs = true: must be false with compile = "on"')
        for key, least in ("micro_batch", 0), ("workers", -1):
            if getattr(self, key) < least:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least {least}")

    def micro_batch_size(self, batch: int) -> int:
        """Sequences or images in one forward pass, at most the batch."""
        return min(self.micro_batch or batch, batch)


@dataclass(frozen=True)
class TextConfig:
    """Text to train on."""

    corpus: str  # wikipedia-sample, tokens:FOLDER, files:GLOB or hub:NAME[:CONFIG]
    sequence_length: int  # tokens
    vocabulary: int = 0  # train a tokenizer of this size on the corpus...
    tokenizer: str = ""  # ...or use this one: a name on the hub, or a folder; `vocabulary`, if given, is at least its size
    text_column: str = "text"  # of JSON lines, parquet and hub datasets
    documents: int = added_later(0)  # of the corpus, from its start; 0: all
    evaluation_batches: int = 8  # fixed batches of validation that curves are measured on, the same for every method
    mask_share: float = 0.15  # masked models: share of positions that are predicted

    def __post_init__(self) -> None:
        if not (self.vocabulary or self.tokenizer or self.prepared):
            raise UsageError("vocabulary (a size, to train a tokenizer on the corpus) or tokenizer (a name) is missing")
        if self.vocabulary < 0:
            raise UsageError(f"vocabulary = {self.vocabulary}: must be at least 0")
        if self.documents < 0:
            raise UsageError(f"documents = {self.documents}: must be at least 0 (0: all)")
        if self.sequence_length < 4:
            raise UsageError(f"sequence_length = {self.sequence_length}: must be at least 4")
        if not 0 < self.mask_share < 1:
            raise UsageError(f"mask_share = {self.mask_share}: must be above 0 and below 1")
        _check_corpus(self, "wikipedia-sample", "tokens:FOLDER")
        if self.prepared and (self.tokenizer or self.documents):
            raise UsageError(f"corpus = {self.corpus!r}: is read whole and has its own tokenizer: no tokenizer, no documents")

    @property
    def prepared(self) -> str:
        """The folder of a corpus whose tokens are there already; empty: they are not."""
        kind, _, folder = self.corpus.partition(":")
        return folder if kind == "tokens" else ""

    @property
    def positions(self) -> int:
        """Tokens of a sequence."""
        return self.sequence_length

    @property
    def patch(self) -> int:
        return 0


@dataclass(frozen=True)
class ImageConfig:
    """Images to classify, and their augmentation: the keys of DeiT's recipe, each off by default."""

    corpus: str  # mnist-sample, files:GLOB (a folder a class, or parquet) or hub:NAME[:CONFIG]
    image_size: int  # side of an image, in pixels
    patch: int  # side of a patch (one token), in pixels
    classes: int  # at least 2
    image_column: str = "image"  # of parquet and hub datasets
    label_column: str = "label"  # likewise
    evaluation_batches: int = 8  # fixed batches of validation that curves are measured on, the same for every method
    flip: float = 0.0  # probability of mirroring left and right
    crop: float = 1.0  # least share of the image that a random crop keeps; 1: no crop
    auto_augment: str = ""  # a policy by timm's name, as rand-m9-mstd0.5-inc1
    erase: float = 0.0  # probability of erasing a random rectangle
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha
    smoothing: float = 0.0  # of the labels

    def __post_init__(self) -> None:
        if self.patch < 1 or self.image_size < self.patch or self.image_size % self.patch:
            raise UsageError(f"image_size = {self.image_size}: must be a multiple of patch = {self.patch}, which is at least 1")
        if self.classes < 2:
            raise UsageError(f"classes = {self.classes}: must be at least 2")
        for key in ("flip", "erase"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0 and at most 1")
        if not 0 < self.crop <= 1:
            raise UsageError(f"crop = {self.crop}: must be above 0 and at most 1")
        for key in ("mixup", "cutmix"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing = {self.smoothing}: must be at least 0 and below 1")
        _check_corpus(self, "mnist-sample")

    @property
    def positions(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch) ** 2


DataConfig = TextConfig | ImageConfig


def _check_corpus(data: DataConfig, *own: str) -> None:
    """`own`: the corpora of this kind of data, beside files and datasets of the hub."""
    if data.evaluation_batches < 1:
        raise UsageError(f"evaluation_batches = {data.evaluation_batches}: must be at least 1")
    allowed = [*own, "files:GLOB", "hub:NAME[:CONFIG]"]
    kind, colon, _ = data.corpus.partition(":")
    if f"{kind}{colon}" not in {name[: name.find(":") + 1] or name for name in allowed}:
        raise UsageError(f"corpus = {data.corpus!r}: allowed are {', '.join(allowed[:-1])} and {allowed[-1]}")


@dataclass(frozen=True)
class Published:
    """A paper's savings of one method, in percent of scratch's cost."""

    flops: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Pretrained:
    """A trained model that serves as the source. Its sizes are read from it; those that the file states must be the same."""

    checkpoint: str  # a folder, or an id on the hub
    flops: float | None = None  # of its training and of the models it was grown from; None: as its growbench.json says
    seconds: float | None = None  # likewise
    sha256: str = ""  # of its configuration and weights, once they are read
    stated: tuple[str, ...] = ()  # the sizes in the file, by which it can be planned with unread

    def __post_init__(self) -> None:
        for key in ("flops", "seconds"):
            if (cost := getattr(self, key)) is not None and not 0 < cost < math.inf:
                raise UsageError(f"{key} = {cost}: must be above 0 and finite")


@dataclass(frozen=True)
class Experiment:
    """A source, a target, data and a budget: everything that the compared methods share."""

    name: str
    title: str
    architecture: str
    source: ModelConfig  # until a pretrained source is read, the sizes that the file states of it, or the target's
    target: ModelConfig
    data: DataConfig
    train: Training
    source_train: Training
    machine: Machine = field(default_factory=Machine)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # [methods.NAME]: hyperparameters
    published: Mapping[str, Published] = field(default_factory=dict)
    pretrained: Pretrained | None = None  # the source, if it is not trained here
    source_architecture: str = ""  # empty: the target's; a source of another one can teach, but not grow

    def __post_init__(self) -> None:
        if not self.source_architecture:
            self._check_growth()
        for training in (self.train, self.source_train):
            if training.batch % self.machine.micro_batch_size(training.batch):
                raise UsageError(
                    f"batch = {training.batch}: must be divisible by machine.micro_batch = {self.machine.micro_batch}"
                )

    def _check_growth(self) -> None:
        for key in ("layers", "width", "heads", "ffn", "key_value_heads"):
            source, target = getattr(self.source, key), getattr(self.target, key)
            if source > target:
                raise UsageError(f"source.{key} = {source} is larger than target.{key} = {target}: a source can only grow")
        for key in ("class_layers", "tied"):
            source, target = getattr(self.source, key), getattr(self.target, key)
            if source != target:
                raise UsageError(f"source.{key} = {source} differs from target.{key} = {target}: it does not grow")

    def architecture_of(self, which: Literal["source", "target"]) -> str:
        return (self.source_architecture if which == "source" else "") or self.architecture

    def sizes(self, which: Literal["source", "target"], vocabulary: int) -> ModelConfig:
        """The source's or the target's sizes, complete with what follows from the data."""
        model = self.source if which == "source" else self.target
        return dataclasses.replace(model, vocabulary=vocabulary, positions=self.data.positions, patch=self.data.patch)

    def at(self, budget_share: float, training: Mapping[str, Any]) -> Experiment:
        """The experiment at a share of its budget, with unchanged steps of warm-up, and with other values of `training`."""
        steps = round(budget_share * self.train.steps)
        return dataclasses.replace(self, train=dataclasses.replace(self.train.in_steps(), steps=steps, **training))

    def identity(self) -> dict[str, Any]:
        """What decides a run's outcome, as plain JSON values. Runs are comparable if theirs are equal."""
        sections = {"source": self.source, "target": self.target, "data": self.data, "train": self.train.in_steps()}
        if self.pretrained is None:
            sections["source_train"] = self.source_train.in_steps()
        identity: dict[str, Any] = {"protocol": PROTOCOL, "architecture": self.architecture}
        if self.source_architecture:
            identity["source_architecture"] = self.source_architecture
        identity |= {key: _identity(section) for key, section in sections.items()}
        if self.pretrained:
            identity["pretrained"] = {key: getattr(self.pretrained, key) for key in ("checkpoint", "sha256")}
        return identity


def _identity(section: Any) -> dict[str, Any]:
    left_out = {
        f.name for f in dataclasses.fields(section) if "added_later" in f.metadata and getattr(section, f.name) == f.default
    }
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in left_out}
