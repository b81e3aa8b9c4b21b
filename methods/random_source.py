"""Growth from an untrained source."""

from typing import ClassVar

from growbench.method import Method, Phases, Task, UsageError
from growbench.registry import get


class RandomSource(Method):
    """Control: grow an untrained small model by another method.

    Formula: that of the method `like`, with a freshly initialised source. A saving that remains comes from the structure of the
    grown weights, not from what the source has learned.
    Paper: Rusu et al. 2016 (Progressive Neural Networks) compare with a random frozen column; G_stack (Du et al. 2024) compares
    with growth after no tokens.
    Function preserving: as `like`.
    Defaults: bert2bert with its defaults.
    Costs beyond training: those of `like`. No source is trained, so none is charged.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1606.04671"
    uses_source: ClassVar[bool] = False
    like: str = "bert2bert"

    @property
    def wraps(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.like,)

    def phases(self, task: Task) -> Phases:
        method = get(self.like).method
        if not method.uses_source or method.keeps_source:
            raise UsageError(f"random_source.like = {self.like!r}: must be a method that grows a source, and does not keep it")
        untrained = task.build(task.source_config).requires_grad_(False).eval()
        yield from method.phases(task.with_source(untrained))
