"""Mistakes that the author of a method makes at first, and what `growbench check` says to each."""

from __future__ import annotations

import re
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

BEGIN = '''
import random

import torch

from growbench.method import Method, Phase, Phases, Task, copying, task_loss, widen


class Mine(Method):
    """Make a mistake."""

    paper = "https://example.org"
'''
HEAD = "    def phases(self, task: Task) -> Phases:\n"


@dataclass(frozen=True)
class Mistake:
    """What a person wrote in `phases`, and the lines around it that it takes; `field`: what was written in the class."""

    what: str
    before: str = ""
    after: str = "yield Phase(model=task.build())"
    field: str = ""

    @property
    def source(self) -> str:
        body = "\n".join(line for line in (self.before, self.what if not self.field else "", self.after) if line)
        uses_source = bool(re.search(r"task\.source\b", body))
        fields = f"uses_source = {uses_source}\n{self.field}"  # a field of its own replaces it
        return BEGIN + textwrap.indent(fields, "    ") + "\n\n" + HEAD + textwrap.indent(body, " " * 8) + "\n"


MODEL = "model = task.build()"
WITH_LOSS = "yield Phase(model=task.build(), loss=loss)"
WIDE = "wide = widen(task.read(task.source), copying(task.source_config, task.target_config, task.rng))"
MISTAKES = (
    Mistake("share = 0.5", field="share = 0.5"),
    Mistake("return Phase(model=task.build())", after=""),
    Mistake("yield task.build()", after=""),
    Mistake("yield Phase(model=task.read(task.source))", after=""),
    Mistake("yield Phase(model=task.build(), steps=0.5)", after=""),
    Mistake("yield Phase(model=task.build(), steps=2, share=0.5)", after=""),
    Mistake('yield Phase(model=task.build(), account="operator")'),
    Mistake("yield Phase(model=task.build(task.source_config))", after=""),
    Mistake("yield Phase(model=task.model_from(wide))", before=WIDE, after=""),
    Mistake("uses_source = True", field="uses_source = True"),
    Mistake("loss = lambda model, batch, step: model(batch.inputs, batch.positions)", after=WITH_LOSS),
    Mistake("torch.manual_seed(0)"),
    Mistake("task.source.requires_grad_(True)"),
    Mistake("torch.optim.SGD(model.parameters()).step()", before=MODEL),
    Mistake("yield Phase(model=model, optimizer=torch.optim.AdamW([*model.parameters()][1:]))", before=MODEL, after=""),
    Mistake("loss = lambda model, batch, step: task_loss(model, batch) * random.random()", after=WITH_LOSS),
    Mistake("loss = lambda model, batch, step: sum(task_loss(model, batch) for _ in range(1 + step // 3))", after=WITH_LOSS),
)


def said(mistake: Mistake) -> str:
    """The first line that check has for a mistake, or the refusal to load the file."""
    from growbench import registry
    from growbench.errors import UsageError
    from growbench.tools.check import broken_promises
    from growbench.tools.miniatures import Cell

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.py"
        path.write_text(mistake.source, encoding="utf-8")
        try:
            lines = broken_promises(registry.get(str(path)).method, Cell("gpt2"))
        except UsageError as error:
            lines = [str(error)]
        line = lines[0].replace(f"{folder}/", "./")
    return re.sub(r"(from task\.rng) \(.*\)", r"\1", line)  # without losses, which are drawn anew each time
