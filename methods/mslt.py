"""MSLT: multi-stage layer-wise training."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import nn

from growbench.method import Method, Phase, Phases, Task, UsageError, Weight, Weights, deepen


class Mslt(Method):
    """Train a shallow model; add copies of its top layers and train only those, stage by stage; then train all layers.

    Formula: stage k has depth k n; its top n layers start as copies of the previous stage's top n. Stage 1 trains everything;
    later stages train the top n layers and the head, and everything below, embeddings included, is frozen and runs without
    autograd (in training mode, so its dropout acts). A last stage trains all layers.
    Paper: Yang et al. 2020, "Progressively Stacking 2.0".
    Function preserving: no, the loss jumps at each stage.
    Defaults: four stages (BERT-Base: 3, 6, 9, 12 layers) of a fifth of the budget each, and the last fifth for all layers;
    the paper's lengths are not known to us. Where the decoder is tied to the embeddings, "embeddings frozen" and "head trained"
    contradict each other. tied_embedding: "frozen" freezes the tied matrix and trains the rest of the head; "decoder" trains it
    by the decoder's gradient alone; "untied" parts the two until the last stage, which goes on with the decoder's.
    New optimizer state at each stage, the learning rate goes on along one curve.
    Costs: every stage is training and is charged as such; frozen layers cost their forward only. No source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2011.13635"
    uses_source: ClassVar[bool] = False
    shares: tuple[float, ...] = (0.2, 0.2, 0.2, 0.2)  # of the budget, one stage each before the joint one
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
        """Depth and share of the budget of each stage before the joint one; a shallow target has fewer stages, as long in all."""
        stages: dict[int, float] = {}
        for number, share in enumerate(self.shares, 1):
            depth = -(-layers * number // len(self.shares))
            stages[depth] = stages.get(depth, 0.0) + share
        return stages

    def freeze_below(self, task: Task, model: nn.Module, lowest: int) -> Any:
        """Freeze all but the layers from `lowest` on and the head; returns the handle of what detaches the embeddings, if any."""
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
    """With a decoder of its own, which starts as a copy of the embeddings."""
    embeddings = weights["embeddings.token"]
    return {**weights, "head.weight": Weight(embeddings.value.clone(), embeddings.axes, "head", consumes=True)}


def tie(weights: Weights) -> Weights:
    """With the decoder for embeddings."""
    decoder = weights["head.weight"]
    rest = {name: weight for name, weight in weights.items() if name != "head.weight"}
    return {**rest, "embeddings.token": replace(weights["embeddings.token"], value=decoder.value)}
