"""KI: knowledge inheritance."""

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from growbench.method import Batch, Method, Phase, Phases, Task, UsageError, cross_entropy, task_loss, tunable


class Ki(Method):
    """Train the large model from random initialisation, at first with the small model as its teacher.

    Formula: (1 - a) CE + a tau^2 KL(teacher || student) at the labelled positions, with both distributions of the KL at
    temperature tau. a falls linearly from `weight` to 0 over the first `share` of the budget; plain training without a teacher
    follows. The teacher runs in evaluation mode without gradients.
    Paper: Qin et al., NAACL 2022, section 3.
    Function preserving: nothing is grown and no weight is reused.
    Defaults: tau 2 and weight 1, as in the authors' code (thunlp/Knowledge-Inheritance); share 0.3, within the range of the
    paper's table 7 (18 to 68 %, longer for larger teachers). The teacher stops where a is 0. teacher_stops = false: it runs in
    every step to the end, as in the authors' code, and as LiGO's paper counts it; its outputs weigh nothing there, so the losses
    are the same. The experiments of that paper set this. teacher = "precomputed" counts the teacher's outputs as stored before,
    as KI's own paper does.
    Costs beyond training: one forward pass of the teacher per step in which it runs, charged to `teacher`. Where it is
    precomputed, that is recorded as overhead and not charged.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2105.13880"
    share: float = tunable(0.3, 0.1, 0.7)  # of the budget, with a teacher
    weight: float = 1.0  # of the teacher at the first step
    temperature: float = tunable(2.0, 1.0, 4.0)
    teacher: Literal["online", "precomputed"] = "online"
    teacher_stops: bool = True  # after its share of the budget

    def __post_init__(self) -> None:
        for key in ("share", "weight"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0 and at most 1")
        if self.temperature <= 0:
            raise UsageError(f"temperature = {self.temperature}: must be above 0")

    def phases(self, task: Task) -> Phases:
        student = task.build()
        if not (self.share and self.weight):
            yield Phase(model=student)
            return
        guided_steps = round(self.share * task.budget)

        def taught_by_source(batch: Batch) -> Tensor:
            with task.teacher(precomputed=self.teacher == "precomputed"):
                taught: Tensor = task.source(batch.inputs, batch.positions)
            return taught

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            taught = taught_by_source(batch)
            logits = model(batch.inputs, batch.positions)
            a = self.weight * (1 - step / guided_steps)
            return (1 - a) * cross_entropy(logits, batch.labels) + a * distillation(logits, taught, self.temperature)

        def unguided(model: nn.Module, batch: Batch, step: int) -> Tensor:
            taught_by_source(batch)  # paid for, and not used
            return task_loss(model, batch)

        trained = yield Phase(model=student, share=self.share, loss=loss, name="inherit")
        yield Phase(model=student, optimizer=trained.optimizer, loss=task_loss if self.teacher_stops else unguided)


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(teacher || student), mean over the rows of logits (N, classes)."""
    student, teacher = (functional.log_softmax(each.float() / temperature, -1) for each in (logits, taught))
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
