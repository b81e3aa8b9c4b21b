"""MIDAS and LIDAS: gradual stacking around the middle."""

from dataclasses import replace
from typing import ClassVar, Literal

from growbench.method import Method, Phase, Phases, Task, UsageError, deepen, repeat_block

MOST_STAGES = 6  # by default


class Midas(Method):
    """Train a shallow model; in stages, repeat the block of layers in its middle, up to the target's depth.

    Formula: n stages of blocks of b layers; stage i has i blocks. From stage i to i + 1 the block ceil(i / 2), counted from 1, is
    repeated behind itself, with biases and norms; all other weights are kept. middle = "layers": the b layers exactly in the
    middle are repeated (LIDAS), also where they belong to two blocks. Stage i takes i^alpha / sum_j j^alpha of the budget
    (Prop-alpha). All layers train in every stage.
    Paper: Saunshi et al. 2024 (MIDAS), with the lengths of Reddi et al. 2023; Kapl et al. 2025 (2512.08819, LIDAS).
    Function preserving: no; the loss jumps at each stage.
    Claim: "up to 40 %" faster (28.6 % saved) for UL2 models of 1B to 8B, at similar or slightly worse perplexity. Six stages with
    alpha 1 cost 28 % less than scratch for the same number of steps, whatever they reach. LIDAS claims no further saving.
    Defaults: alpha 1, as Prop-1. stages: as many as divide the target's layers, up to six, as in 24 layers with blocks of four.
    What becomes of the optimizer's state is not known; here it is new at each stage. The run's learning-rate schedule continues.
    Costs: every stage is charged as training. There is no source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.19044"
    uses_source: ClassVar[bool] = False
    stages: int = 0  # must divide the target's layers; 0: the largest number up to 6 that does
    alpha: float = 1.0  # of the stages' lengths
    middle: Literal["block", "layers"] = "block"  # layers: LIDAS

    def phases(self, task: Task) -> Phases:
        layers = task.target_config.layers
        stages = self.stages or max(number for number in range(1, MOST_STAGES + 1) if layers % number == 0)
        if not 1 <= stages <= layers or layers % stages or (stages == 1 < layers):
            raise UsageError(f"midas.stages = {self.stages}: must be a number that divides target.layers = {layers}, at least 2")
        block = layers // stages
        model = task.build(replace(task.target_config, layers=block))
        for stage in range(1, stages):
            trained = yield Phase(model=model, share=self.share(stage, stages), name=f"depth {stage * block}")
            depth, deeper = stage * block, (stage + 1) * block
            start = (stage + 1) // 2 * block - block if self.middle == "block" else (depth - block) // 2
            weights = deepen(task.read(trained.model), repeat_block(start, block, depth, deeper))
            model = task.model_from(weights, replace(task.target_config, layers=deeper))
        yield Phase(model=model, name=f"depth {layers}")

    def share(self, stage: int, stages: int) -> float:
        """The share of the budget that a stage takes, counted from 1."""
        return stage**self.alpha / sum(each**self.alpha for each in range(1, stages + 1))
