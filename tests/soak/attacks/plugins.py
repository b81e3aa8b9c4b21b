"""Methods that change others' runs, end the program, hide work, or change while they are used."""

from __future__ import annotations

import csv
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.soak.attempt import REFUSED, Attempt, NotKept, at_evaluation, attack, brief, no_traceback

HEAD = """import gc, os, sys, threading, time
import torch
from growbench.costs.ledger import Costs
from growbench.method import Method, Phase, task_loss
from growbench.training.evaluation import Evaluation

def ledgers():
    return [each for each in gc.get_objects() if type(each) is Costs]

def more(model, batch):
    task_loss(model, batch).backward()
    model.zero_grad()

class {name}(Method):
    '''An attack.'''

    def phases(self, task):
"""
SPOILS = {  # what others' runs would be changed by
    "dtype": "torch.set_default_dtype(torch.float64)",
    "threads": "torch.set_num_threads(3)",
    "gradients": "torch.set_grad_enabled(False)",
    "patched_evaluation": "Evaluation.scores = lambda *arguments: 0.0",
}
OF_SOURCE = {
    "source_in_place": "next(task.source.parameters()).data.add_(1)",
    "source_by_numpy": "next(task.source.parameters()).detach().numpy()[:] += 1",
    "source_by_view": "torch.as_strided(next(task.source.parameters()).detach(), (4,), (1,)).fill_(0)",
}
ENDS = {
    "exits": "sys.exit()",
    "interrupts": "raise KeyboardInterrupt",
    "exits_at_once": "os._exit(0)",
    "base_exception": "raise BaseException('gone')",
    "endless": "while True: yield Phase(model=task.build(), steps=1, account='operator')",
    "no_phase": "return",
    "no_model": "yield Phase(model=None)",
    "deep": "self.phases(task).__next__()",
}
IN_THE_LOSS = """
        def loss(model, batch, step):
            {0}
            return task_loss(model, batch)
        yield Phase(model=task.build(), loss=loss)"""
CHEATS = {
    "in_the_loss": IN_THE_LOSS.format("0 < step < task.budget - 1 and more(model, batch)"),
    "in_the_schedule": """
        model, batches = task.build(), []
        def loss(model, batch, step):
            batches.append(batch)
            return task_loss(model, batch)
        def schedule(step, steps):
            for batch in batches: more(model, batch)
            return 1.0
        def products(step, steps):
            return float((torch.ones(4, 4) @ torch.ones(4, 4))[0, 0]) / 4
        yield Phase(model=model, loss=loss, schedule=schedule, steps=6)
        yield Phase(model=model, schedule=products)""",
    "in_a_thread": """
        def work():
            while True: torch.ones(8, 8) @ torch.ones(8, 8)
        threading.Thread(target=work, daemon=True).start()
        yield Phase(model=task.build())""",
    "ledger": IN_THE_LOSS.format("step == 5 and [each.flops.update(train=0) for each in ledgers()]"),
}
OTHERS_KEPT = "exit code 1; each of them fails and is named, and all others have the losses of an undisturbed run"


def plugin(folder: Path, name: str, body: str, dodges: bool = False) -> Path:
    """A method in a file: what it does first, and a phase if it has none. One that dodges does it only where it is trained."""
    lines = body.strip().splitlines()
    if dodges:
        lines = ["if task.device.type != 'meta':", *(f"    {line}" for line in lines)]
    if dodges or "Phase(" not in body:
        lines.append("yield Phase(model=task.build())")
    text = "\n".join(f"        {line}" if dodges or line[:1] != " " else line for line in lines)
    file = folder / f"{name}.py"
    file.write_text(HEAD.format(name=re.sub(r"\W", "", f"M{name}").title().replace("_", "")) + text + "\n", encoding="utf-8")
    return file


def each_fails(attempt: Attempt, bodies: dict[str, str], dodge: bool = False) -> str:
    """A run of these plugins, beside bert2bert, that must be failed one by one."""
    files = [plugin(attempt.folder, name, body, dodge) for name, body in bodies.items()]
    said = attempt.run("--methods", ",".join(["bert2bert", *map(str, files)]))
    no_traceback(said)
    done = attempt.losses()
    if escaped := [name for name in bodies if f"{name}-seed0" in done or not said.lines(f"{name}-seed0", f"{name} ")]:
        raise NotKept(f"exit code {said.code}; not failed, or not named: {', '.join(escaped)}: {brief(said)}")
    if said.code != 1:
        raise NotKept(f"exit code {said.code}: {brief(said)}")
    attempt.compare(attempt.undisturbed())
    return f"exit code 1; each of {len(bodies)} failed alone"


def each_is_refused(attempt: Attempt, bodies: dict[str, str]) -> str:
    """What goes wrong while a run is planned is refused before anything is trained."""
    files = [plugin(attempt.folder, name, body) for name, body in bodies.items()]
    cases = [["run", attempt.experiment, "--methods", file, "--results", attempt.results] for file in files]
    return attempt.each_refused(cases, names=list(bodies))


@attack(f"methods that change what others' runs depend on: {', '.join(SPOILS)}", REFUSED)
def spoiling_methods(attempt: Attempt) -> str:
    return each_is_refused(attempt, SPOILS)


@attack(f"the same, and {', '.join(OF_SOURCE)}, by methods that keep still while they are planned", OTHERS_KEPT)
def spoiling_methods_that_dodge(attempt: Attempt) -> str:
    return each_fails(attempt, SPOILS | OF_SOURCE, dodge=True)


@attack(f"methods that end or hang the program: {', '.join(ENDS)}", REFUSED)
def ending_methods(attempt: Attempt) -> str:
    return each_is_refused(attempt, ENDS)


@attack("the same, by methods that keep still while they are planned", OTHERS_KEPT)
def ending_methods_that_dodge(attempt: Attempt) -> str:
    return each_fails(attempt, {name: ENDS[name] for name in ENDS if name not in ("no_phase", "endless")}, dodge=True)


@attack(f"work that is not charged: {', '.join(CHEATS)}", OTHERS_KEPT)
def hidden_work(attempt: Attempt) -> str:
    return each_fails(attempt, CHEATS)


VERSION = "yield Phase(model=task.build(), steps={})\nyield Phase(model=task.build())"


@attack("a method's file is changed in mid-run", "the run goes on with what it has read; the same command trains the new one")
def file_changed(attempt: Attempt) -> str:
    file = plugin(attempt.folder, "changing", VERSION.format(3))
    change = partial(plugin, attempt.folder, "changing", VERSION.format(5))
    first = attempt.run("--methods", file, before=partial(at_evaluation, 2, change))
    no_traceback(first)
    second = attempt.run("--methods", file)
    no_traceback(second)
    if (first.code, second.code) != (0, 0):
        raise NotKept(f"exit codes {first.code}, {second.code}: {brief(first)}; {brief(second)}")
    return "exit codes 0 and 0"


@attack(
    "a method named as a formula, =1+1, in a CSV file that a spreadsheet opens", "no cell of text begins with = + - @ and goes on"
)
def formula_in_csv(attempt: Attempt) -> str:
    said = attempt.run("--methods", plugin(attempt.folder, "=1+1", "pass"))
    assert said.code == 0, said
    tables = list((attempt.results / "miniature" / "report").rglob("*.csv"))
    cells = [cell for table in tables for row in csv.reader(table.open(encoding="utf-8")) for cell in row]
    assert any("=1+1" in cell for cell in cells), "the method is in no table"
    if formulas := [cell for cell in cells if len(cell) > 1 and cell[0] in "=+-@" and not is_number(cell)]:
        raise NotKept(f"cells: {', '.join(sorted(set(formulas)))}")
    return f"none of the cells of {len(tables)} tables"


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@attack("two processes at once, with two methods of one name in one results folder", "both end; none has a traceback")
def two_versions_at_once(attempt: Attempt) -> str:
    files = []
    for version in 3, 5:
        folder = attempt.folder / f"version-{version}"
        folder.mkdir()
        files.append(plugin(folder, "versions", VERSION.format(version)))
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda file: attempt.run("--methods", file), files))
    for each in said:
        no_traceback(each)
    if any(each.code for each in said) or len(list((attempt.results / "miniature" / "replaced").iterdir())) != 1:
        raise NotKept(f"exit codes {said[0].code}, {said[1].code}: {brief(said[0])}; {brief(said[1])}")
    return "exit codes 0 and 0; the later one's run is there, the other is archived"
