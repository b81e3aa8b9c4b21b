"""DPT: deep progressive training from no layer, or from one."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import nn

from growbench.method import Method, Phase, Phases, Task, UsageError, deepen, tunable


class Dpt(Method):
    """Train embeddings and head with no layer or one for most of the budget, then add all layers at once.

    Formula: start = 0: the new layers are freshly initialised. start = 1: each is a copy of the one layer. Embeddings, last norm
    and head are kept, and so is the learning rate: growth is in the stable phase of the schedule wsd, `stable` of the budget
    before the decay begins.
    Paper: Bu 2025 (2511.04981). It scales fresh layers by muP; here they are as the architecture initialises them.
    Function preserving: no, on purpose: layers whose outputs begin at zero learn no features in the paper.
    Claim: about 80 % less compute for GPT-2 with 60 layers (7B parameters), 3 to 5 times less for LLaMA-3 and DeepSeek-V3, with a
    loss that is less than 0.5 % higher, under wsd; under cosine, late growth does not catch up. The saving in FLOPs is
    nearly fixed by the depths, so the loss at the end decides. Embeddings and head are trained at full cost, a far larger
    share in small models.
    Defaults: start 0. stable 0.1, so that growth is at 80 % of the budget with a decay of 10 %, as in the paper. Other schedules
    than wsd grow at the same step. What becomes of the optimizer's state is not known; here it is new.
    from_source: the given small model, of no layer or one and the target's width, is grown at once.
    Costs: all is charged as training. There is no source model, except with from_source.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2511.04981"
    miniature: ClassVar[dict[str, Any]] = {"train.schedule": "wsd"}
    start: Literal[0, 1] = 0  # layers
    stable: float = tunable(0.1, 0.02, 0.5)  # of the budget, with all layers before the decay
    from_source: bool = False

    @property
    def uses_source(self) -> bool:  # type: ignore[override]
        return self.from_source

    def phases(self, task: Task) -> Phases:
        large = task.target_config
        share = 1 - task.training.decay - self.stable
        if self.from_source:
            small = task.source_config
            if small.layers > 1 or replace(small, layers=large.layers) != large:
                raise UsageError(
                    "from_source: dpt grows no layer or one into many, so the source's other sizes must be the target's"
                )
            model = task.source
        elif self.start >= large.layers:
            raise UsageError(f"start = {self.start}: must be less than target.layers = {large.layers}")
        elif self.stable < 0 or share <= 0:
            raise UsageError(
                f"stable = {self.stable}: must be at least 0 and below {1 - task.training.decay:g}, where the decay begins"
            )
        else:
            shallow = task.build(replace(large, layers=self.start))
            trained = yield Phase(model=shallow, share=share, name=f"depth {self.start}")
            model = trained.model
        yield Phase(model=self.deeper(task, model), name=f"depth {large.layers}")

    def deeper(self, task: Task, model: nn.Module) -> nn.Module:
        """The target, its layers new or copies of the model's only one, with all else from the model."""
        kept = task.read(model)
        if (task.source_config.layers if self.from_source else self.start) == 1:
            return task.model_from(deepen(kept, [0] * task.target_config.layers))
        return task.model_from({**task.read(task.build()), **kept})
