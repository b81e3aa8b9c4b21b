"""MSLT: multi-stage layer-wise training."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import nn

from growbench.method import Method, Phase, Phases, Task, UsageError, Weight, Weights, deepen


class Mslt(Method):
    """Train a shallow model; in stages, add copies of its top layers and train only those; then train all layers.

    Formula: stage k has depth k n; its top n layers start as copies of the previous stage's top n. Stage 1 trains all parameters.
    Later stages train the top n layers and the head; the layers below and the embeddings are frozen and run without autograd,
    but with dropout. A last stage trains all layers.
    Paper: Yang et al. 2020, "Progressively Stacking 2.0".
    Function preserving: no; the loss jumps at each stage.
    Defaults: four stages (BERT-Base: 3, 6, 9, 12 layers) of a fifth of the budget each, and the last fifth for all layers. The
    paper's lengths are not known. If the decoder is tied to the embeddings, freezing embeddings contradicts training the head.
    tied_embedding: "frozen" freezes the tied matrix and trains the rest of the head; "decoder" trains the matrix by the
    decoder's gradient only; "untied" unties them until the last stage, which ties both to the decoder's matrix. The optimizer's
    state is new at each stage; the run's learning-rate schedule continues.
    Costs: every stage is charged as training; frozen layers cost their forward pass only. There is no source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2011.13635"
    uses_source: ClassVar[bool] = False
    shares: tuple[float, ...] = (0.2, 0.2, 0.2, 0.2)  # of the budget, for each stage before the last
    tied_embedding: Literal["frozen", "decoder", "untied"] = "frozen"

    def __post_init__(self) -> None:
        if not self.shares or not all(share > 0 for share in self.shares) or sum(self.shares) >= 1:
            raise UsageError(f"shares = {list(self.shares)}: at least one, each above 0, their sum below 1")

    def phases(self, task: Task) -> Phases:
        (depth, share), *later = self.stages(task.target_config.layers).items()
        model = task.build(replace(task.target_config, layers=depth))
        trained = yield Phase(model=model, share=share, name=f"depth {depth}")
        untied = self.tied_embedding == "untied" and "head.weight" not in task.read(model)
        for deeper, share in later:
            weights = deepen(task.read(trained.model), [*range(depth), *range(2 * depth - deeper, depth)])
            sizes = replace(task.target_config, layers=deeper)
            if untied:
                weights, sizes = untie(weights), replace(sizes, tied=False)
            model = task.model_from(weights, sizes)
            detached = self.freeze_below(task, model, depth)
            trained = yield Phase(model=model, share=share, name=f"top of {deeper}")
            if detached:
                detached.remove()
            depth = deeper
        if untied and later:
            model = task.model_from(tie(task.read(model)))
        yield Phase(model=model.requires_grad_(True), name="all layers")

    def stages(self, layers: int) -> dict[int, float]:
        """Depth -> share of the budget, for each stage before the last. Shallow targets have fewer stages."""
        stages: dict[int, float] = {}
        for number, share in enumerate(self.shares, 1):
            depth = -(-layers * number // len(self.shares))
            stages[depth] = stages.get(depth, 0.0) + share
        return stages

    def freeze_below(self, task: Task, model: nn.Module, lowest: int) -> Any:
        """Freeze all but the head and the layers from `lowest` on. Returns the hook that detaches the embeddings, or None."""
        by_decoder = self.tied_embedding == "decoder" and "head.weight" not in task.read(model)

        def trained(name: str, layer: int | None) -> bool:
            if layer is not None:
                return layer >= lowest
            return not name.startswith("embeddings.") or (by_decoder and name == "embeddings.token")

        task.train_only(model, trained)
        if not by_decoder:
            return None
        return model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.detach())  # type: ignore[operator]


def untie(weights: Weights) -> Weights:
    """Add a decoder that is a copy of the embeddings."""
    embeddings = weights["embeddings.token"]
    return {**weights, "head.weight": Weight(embeddings.value.clone(), embeddings.axes, "head", consumes=True)}


def tie(weights: Weights) -> Weights:
    """Replace the embeddings by the decoder, and remove the decoder."""
    decoder = weights["head.weight"]
    rest = {name: weight for name, weight in weights.items() if name != "head.weight"}
    return {**rest, "embeddings.token": replace(weights["embeddings.token"], value=decoder.value)}
