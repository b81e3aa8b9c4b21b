"""SPARKLING: wider in the middle of the run, with moments for the old units only, and a higher rate for the new ones."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from growbench.method import (
    EntrySchedule,
    Maps,
    Method,
    Phase,
    Phases,
    Schedule,
    Select,
    Task,
    UsageError,
    tiling,
    tunable,
    widen,
)


class Sparkling(Method):
    """Train a narrow model, and in mid-run repeat its units; then break the symmetry by optimizer state and learning rate.

    Formula: the narrow model has the source's widths and the target's depth. Growth from d to d' units repeats them in order.
    Weights that sum over repeated units are multiplied by 1 / sqrt(1 + 3 c) with c = d' / d - 1, or by 1 / (1 + c) for c above
    1, which keeps the mean square of activations; a tied decoder's factor is taken by the norm in front of it. Old entries keep
    their moments, new ones start at zero. The learning rate of new entries rises to `new_peak` times that of old ones.
    Paper: Yu et al. 2026.
    Function preserving: where every width is multiplied by a whole number. Heads are copied whole.
    Claim: 20 % of the FLOPs saved at equal tokens (FFN doubled), 25 % (hidden size), 35 % (both), at a slightly higher loss, for
    a mixture of experts with 2.5B parameters. The narrow model's training is charged.
    Defaults: growth at half of the budget and a peak of 1.3, as in the paper. There the rate rises over 250 steps of a run whose
    number of steps is not known; here over 1 % of the budget. state = "kept" is the paper's. The run's learning-rate schedule
    continues, so that both rates fall to the same end. The paper does not grow depth.
    Costs: both phases are charged as training. There is no source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2602.02472"
    uses_source: ClassVar[bool] = False
    miniature: ClassVar[dict[str, int]] = {"target.width": 32}
    share: float = tunable(0.5, 0.1, 0.9)  # of the budget, before growth
    state: Literal["new", "kept", "grown"] = "kept"  # what the optimizer has of the old units after growth
    new_peak: float = 1.3  # of the rate of new entries; 1: that of the old ones
    new_share: float = 0.01  # of the budget, in which it rises

    def __post_init__(self) -> None:
        for key in ("share", "new_share"):
            if not 0 < getattr(self, key) < 1:
                raise UsageError(f"{key} = {getattr(self, key)}: must be above 0 and below 1")
        if self.new_peak <= 0:
            raise UsageError(f"new_peak = {self.new_peak}: must be above 0")

    def phases(self, task: Task) -> Phases:
        narrow = replace(task.source_config, layers=task.target_config.layers)
        if narrow == task.target_config:
            raise UsageError("sparkling grows widths, and the source's are those of the target")
        units = tiling(narrow, task.target_config)
        maps: Maps = {axis: Repeat(each.index) for axis, each in units.items() if isinstance(each, Select)}
        trained = yield Phase(model=task.build(narrow), share=self.share, name=f"width {narrow.width}")
        model = task.model_from(widen(task.read(trained.model), maps))
        new = replace(task, source_config=narrow).new_entries(model)  # new beside the narrow model, not the source
        rising = [EntrySchedule(new, self.rising(round(self.new_share * task.budget)))] if self.new_peak != 1 else []
        yield Phase(model=model, entry_schedules=rising, name=f"width {task.target_config.width}")

    def rising(self, steps: int) -> Schedule:
        """From the rate of old entries to the peak."""
        return lambda step, _: 1 + (self.new_peak - 1) * min(1.0, (step + 1) / max(1, steps))


@dataclass(frozen=True)
class Repeat(Select):
    """Copies whose sums keep their mean square."""

    def consume(self, value: Tensor, dim: int) -> Tensor:
        more = len(self.index) / (int(self.index.max()) + 1) - 1
        return self.produce(value, dim) * ((1 + 3 * more) ** -0.5 if more <= 1 else 1 / (1 + more))
