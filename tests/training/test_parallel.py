"""Several processes on one run give what one gives: the same losses, FLOPs and files, however models are divided."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from growbench import architectures, cli
from growbench.architectures.families.gpt2 import GPT2
from growbench.config.loading import load
from growbench.config.schema import Machine, ModelConfig, Training
from growbench.costs.accounts import Account
from growbench.data import Batch
from growbench.errors import FailedAlone, UsageError
from growbench.method import Method, Phase, Phases, Task, cross_entropy, task_loss
from growbench.method.interface import LossFn
from growbench.planning import plan
from growbench.registry import Found, get_all
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting
from growbench.runs.signals import Interruption
from growbench.training import parallel as parallel_module
from growbench.training import replicas
from growbench.training.optimizer_state import is_element_wise
from growbench.training.parallel import Parallel, start
from growbench.training.replicas import DataParallelReplica, LossScope, Replica, ShardedParameter, ShardedReplica, place
from growbench.training.step import Step
from growbench.training.tensor_parallel import Cut, check
from tests import figures
from tests.conftest import Once, documents
from tests.processes import work_together
from tests.training.optimizers import Faded, Optimized, Rewarmed

CPU, META = torch.device("cpu"), torch.device("meta")
DIVISIONS = {
    "replicated": Parallel(CPU, dp_degree=2),
    "sharded": Parallel(CPU, dp_degree=2, sharded=True),
    "tensor": Parallel(CPU, tp_degree=2),
    "both": Parallel(CPU, dp_degree=2, tp_degree=2),
}
OPTIONS = {"ligo": {"operator_steps": 3}, "bert2bert": {"sub_model_share": 0.3, "sub_model_layers": 1}}
WITH_SOURCE = "replicated"  # the division that trains a source too; the others take the one that was trained alone
CASES = {  # mslt: a plain model and then a partly frozen one; ligo: one that is no plain transformer
    ("gpt2", "replicated"): ("mslt", "ligo", "ki", "progressive_net"),
    ("gpt2", "sharded"): ("ligo", "bert2bert"),
    ("gpt2", "tensor"): ("ligo",),
    ("bert", "sharded"): ("mslt",),
    ("bert", "tensor"): ("mslt",),
}


OWN = {  # losses and optimizers of a method's own
    "replicated": ("ASGD by parts", "faded", "rewarmed muon"),
    "sharded": ("ASGD by parts", "CombinedOptimizer", "Lookahead", "faded", "rewarmed adamw"),
    "tensor": ("Muon", "Eventful by parts", "rewarmed adamw"),
    "both": ("Orthogonal by parts", "rewarmed muon"),
}
BY_PARTS = " by parts"


class Reborn(Method):
    """Most of the training, then a fresh model for the rest: what it starts with hangs on torch's own generator."""

    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build(), steps=3)
        yield Phase(model=task.build())


REBORN = Found("scratch", Reborn(), "here")  # by this name it needs no other run


def own_methods(names: Sequence[str]) -> list[Found]:
    methods = {"faded": Faded(), "rewarmed adamw": Rewarmed("adamw"), "rewarmed muon": Rewarmed("muon")}
    methods |= {name: ByParts(name.removesuffix(BY_PARTS)) for name in names if name.endswith(BY_PARTS)}
    return [Found(name, methods.get(name) or Optimized(name), "here") for name in names]


def benchmark(experiment: Path, folder: Path, parallel: Parallel, methods: Sequence[Found], steps: int = 3) -> None:
    """Train on a vocabulary that no number of processes divides."""
    settings = ["data.vocabulary=301", f"train.steps={steps}"]
    assert Benchmark(Setting(load(str(experiment), settings), folder, parallel)).run(methods, [0])


def interrupted(experiment: Path, folder: Path, parallel: Parallel) -> None:
    """Stopped after two of four steps, before the third: one process is asked, and all stop."""
    calls = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Interruption, "__call__", lambda self: next(calls) == 2 and parallel.rank == 1)
        benchmark(experiment, folder, parallel, [REBORN], steps=4)


def by_parts(model: Any, batch: Batch, step: int) -> torch.Tensor:
    """Calls the model's parts in its own way, reads attributes and parameters, and leaves one parameter out."""
    assert isinstance(model, GPT2) and model.num_parameters()
    base = model.transformer
    hidden = base.wte(batch.inputs)
    for block in base.h[: model.sizes.layers]:
        hidden = block(hidden)
    logits = model.lm_head(base.ln_f(hidden).flatten(0, 1))
    return cross_entropy(logits, batch.labels) + base.ln_f.weight.square().mean()


class ByParts(Optimized):
    loss: ClassVar[LossFn] = staticmethod(by_parts)


def averaged(rank: int) -> list[list[float]]:
    """What becomes of the weights 0 when both processes use the first parameter, the second one the second, none the third."""

    def loss(model: Any, batch: Batch, step: int) -> torch.Tensor:
        value: torch.Tensor = (model[0] * torch.tensor([1.0, rank]) + (model[1] if rank else 0.0)).sum()
        return value

    model: Any = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(3)])
    phase, optimizer = Phase(model=model, loss=loss), torch.optim.SGD(model.parameters(), lr=1.0)
    live = place(phase, optimizer, architectures.get("gpt2"), replace(DIVISIONS["replicated"], rank=rank), True)
    nothing = torch.zeros(1)
    live.run(partial(loss, model, Batch(nothing, None, nothing), 0)).backward()
    assert model[2].grad is None
    live.update(largest_norm=100.0)
    return [parameter.tolist() for parameter in model]


class Fails(Method):
    """Fails at its second step, in these processes."""

    ranks: tuple[int, ...] = (0, 1)

    def phases(self, task: Task) -> Phases:
        def loss(model: nn.Module, batch: Batch, step: int) -> torch.Tensor:
            if step == 1 and torch.distributed.get_rank() in self.ranks:
                raise MemoryError("no memory left")
            return task_loss(model, batch)

        yield Phase(model=task.build(), loss=loss)


def fail_alone(rank: int, experiment: Path, folder: Path, parallel: Parallel) -> None:
    """What fails everywhere is a failed run. What fails in one process ends it, and so those that waited for it."""
    failing = Benchmark(Setting(load(str(experiment)), folder / "failed", parallel))
    succeeded, alone = failing.run([Found("scratch", Fails(), "here")], [0]), False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_module, "FAILURE_TIMEOUT", 1.0)
        try:
            failing.run([Found("alone", Fails((1,)), "here")], [0])
        except FailedAlone:
            alone = True
    (folder / f"failed-{rank}.json").write_text(json.dumps([succeeded, alone]))


def work(rank: int, port: int, processes: int, experiments: dict[str, Path], folder: Path) -> None:
    """One of so many processes: every case for them in turn."""
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    plan.refuse = lambda *_: None  # the process that trains alone has planned every method
    store = start(CPU, 1, False).store
    divisions = {name: each for name, each in DIVISIONS.items() if each.processes == processes}
    mine = {name: replace(each, rank=rank, store=store) for name, each in divisions.items()}
    for division, parallel in mine.items():
        found = get_all(list(CASES.get(("gpt2", division), ())), OPTIONS) + own_methods(OWN[division])
        benchmark(experiments["gpt2"], folder / division / "gpt2", parallel, found)
        if others := CASES.get(("bert", division)):
            benchmark(experiments["bert"], folder / division / "bert", parallel, get_all(list(others), OPTIONS))
        interrupted(experiments["gpt2"], folder / "interrupted" / division, parallel)
        if parallel.is_main_process:
            shutil.copytree(folder / "interrupted" / division, folder / "resumed" / division)
        benchmark(experiments["gpt2"], folder / "resumed" / division, parallel, [REBORN], steps=4)
    if processes == 2:
        (folder / f"averaged-{rank}.json").write_text(json.dumps(averaged(rank)))
        fail_alone(rank, experiments["gpt2"], folder, mine["replicated"])


@pytest.fixture(scope="module")
def done(write_miniature: Callable[..., Path], once: Once) -> Path:
    """All results: of one process below `alone`, of two and four below each division."""
    return once("parallel", partial(train_all, write_miniature))


def train_all(write_miniature: Callable[..., Path], folder: Path) -> None:
    experiments, corpus = {}, folder / "corpus.txt"
    corpus.write_text("\n\n".join(documents().split("\n\n")[:60]), encoding="utf-8")  # less to evaluate at each run's end
    for architecture in ("gpt2", "bert"):
        (folder / "experiments" / architecture).mkdir(parents=True)
        experiments[architecture] = write_miniature(folder / "experiments" / architecture, architecture, corpus)
        methods = sorted({name for case, names in CASES.items() for name in names if case[0] == architecture})
        own = sorted({name for names in OWN.values() for name in names}) if architecture == "gpt2" else []
        found = get_all(methods, OPTIONS) + own_methods(own)
        benchmark(experiments[architecture], folder / "alone" / architecture, Parallel(CPU), found)
    benchmark(experiments["gpt2"], folder / "alone" / "reborn", Parallel(CPU), [REBORN], steps=4)
    for division in DIVISIONS.keys() - {WITH_SOURCE}:
        shutil.copytree(folder / "alone" / "gpt2" / "source-seed0", folder / division / "gpt2" / "source-seed0")
    for processes in (2, 4):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = (port, processes, experiments, folder)
        work_together(work, arguments, processes)


def test_a_process_that_fails_alone_ends(done: Path) -> None:
    """Rather than go on to the next run while the others wait within a step; a failure of all is a failed run as ever."""
    for rank in range(2):
        assert json.loads((done / f"failed-{rank}.json").read_text()) == [False, True]


@pytest.mark.parametrize(("architecture", "division"), CASES)
def test_several_processes_give_what_one_gives(done: Path, architecture: str, division: str) -> None:
    """The same curves to float tolerance, and the same FLOPs, at the same global batch."""
    trained = [*CASES[architecture, division], *(["source"] if division == WITH_SOURCE else [])]
    for name in trained:
        run, one = (store.load(done / each / architecture / f"{name}-seed0") for each in (division, "alone"))
        assert run is not None and one is not None
        assert run.record.hardware.processes == DIVISIONS[division].describe()
        assert [row["step"] for row in run.curve] == [row["step"] for row in one.curve]
        losses, expected = ([row["val_loss"] for row in each.curve] for each in (run, one))
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=2e-5, atol=0)
        for account, flops in run.record.cost.flops.items():
            if account not in ("overhead", "operator"):  # each of two processes builds the weights that an operator makes
                assert flops == one.record.cost.flops[account], (name, account)


@pytest.mark.parametrize(("division", "name"), [(division, name) for division, names in OWN.items() for name in names])
def test_a_method_s_own_loss_and_optimizer_do_what_they_do_in_one_process(done: Path, division: str, name: str) -> None:
    """Whatever the loss calls of the model, and whatever the optimizer holds or needs to see of a parameter."""
    in_bfloat16 = name in ("Muon", "CombinedOptimizer", "rewarmed muon")  # torch's Muon multiplies matrices in it
    tolerance = 5e-4 if in_bfloat16 else 2e-5
    assert_same_run(done / division / "gpt2" / f"{name}-seed0", done / "alone" / "gpt2" / f"{name}-seed0", tolerance)


@pytest.mark.parametrize("division", DIVISIONS)
def test_one_process_goes_on_where_several_stopped(done: Path, division: str) -> None:
    """A checkpoint holds whole models and optimizers, however they were divided."""
    folder = done / "interrupted" / division
    stopped = store.load(folder / "scratch-seed0")
    assert stopped is not None
    assert (stopped.record.status, stopped.record.steps) == ("interrupted", 2)
    benchmark(done / "experiments" / "gpt2" / "miniature.toml", folder, Parallel(CPU), [REBORN], steps=4)
    assert_same_run(folder / "scratch-seed0", done / "alone" / "reborn" / "scratch-seed0")


@pytest.mark.parametrize("division", DIVISIONS)
def test_several_processes_go_on_where_they_stopped(done: Path, division: str) -> None:
    """The optimizer is divided again, and what is drawn after the phase that was broken off is what would have been drawn."""
    assert_same_run(done / "resumed" / division / "scratch-seed0", done / "alone" / "reborn" / "scratch-seed0")


def assert_same_run(one: Path, other: Path, tolerance: float = 2e-5) -> None:
    runs = [run for path in (one, other) if (run := store.load(path))]
    steps, losses = ([[row[key] for row in run.curve] for run in runs] for key in ("step", "val_loss"))
    assert steps[0] == steps[1]
    for account in (Account.TRAIN, Account.OPTIMIZER):
        assert runs[0].record.cost.flops[account] == runs[1].record.cost.flops[account]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=tolerance, atol=0)


def test_gradients_are_averaged_over_all_processes(done: Path) -> None:
    """Zeros stand for a gradient that a process has not; what none has stays as it is."""
    for rank in range(2):
        assert json.loads((done / f"averaged-{rank}.json").read_text()) == [[-1.0, -0.5], [-0.5, -0.5], [0.0, 0.0]]


def test_state_that_need_not_fit_waits_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's step counts stay on the device. Here "meta" stands for the host first, then for the device."""
    monkeypatch.setattr(replicas, "HOST", META)
    monkeypatch.setattr(DataParallelReplica, "of", lambda model, optimizer, *_: Replica(model, optimizer))
    pieces, whole = nn.Linear(2, 2), nn.Linear(2, 2, device=META)
    parallel, optimizer = Parallel(META, dp_degree=2, sharded=True), torch.optim.AdamW(whole.parameters())
    live = sharded_replica(whole, pieces, optimizer, parallel)
    pieces(torch.ones(2)).sum().backward()
    live.update(largest_norm=1.0)
    live.gather()
    assert devices(live.local_optimizer) == {"step": CPU, "exp_avg": CPU, "exp_avg_sq": CPU}
    assert devices(optimizer) == {"step": CPU, "exp_avg": META, "exp_avg_sq": META}
    optimizer.state = defaultdict(dict, zip(whole.parameters(), live.local_optimizer.state.values(), strict=True))
    live.close()
    assert devices(optimizer) == {"step": CPU, "exp_avg": CPU, "exp_avg_sq": CPU}
    place(Phase(model=whole, workload=lambda step: step), optimizer, architectures.get("gpt2"), parallel, skips_parameters=True)
    assert devices(optimizer) == {"step": CPU, "exp_avg": META, "exp_avg_sq": META}


def sharded_replica(whole: nn.Module, sharded: nn.Module, optimizer: torch.optim.Optimizer, parallel: Parallel) -> ShardedReplica:
    pairs = zip(whole.parameters(), sharded.parameters(), strict=True)
    parameters = [ShardedParameter(one, other, None, parallel) for one, other in pairs]
    return ShardedReplica(sharded, optimizer, LossScope(sharded), whole, parameters, parallel)


@pytest.mark.parametrize(("sharded", "device"), [(True, CPU), (False, META)])
def test_state_is_restored_to_where_it_waits(sharded: bool, device: torch.device) -> None:
    """Only element-wise optimizers wait in host memory: others are never sharded, and keep their state on the device."""
    parallel, parameters = Parallel(META, dp_degree=2, sharded=sharded), [nn.Parameter(torch.zeros(2, 2))]
    assert parallel.idle_state_device(torch.optim.AdamW(parameters)) == device
    assert parallel.idle_state_device(torch.optim.Adafactor(parameters)) == META


def test_an_optimizer_with_hooks_is_not_taken_for_element_wise() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    assert is_element_wise(optimizer)
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert not is_element_wise(optimizer)
    handle.remove()
    optimizer.step = lambda: None  # type: ignore[method-assign]
    assert not is_element_wise(optimizer)


def devices(optimizer: torch.optim.Optimizer) -> dict[str, torch.device]:
    return {key: value.device for state in optimizer.state.values() for key, value in state.items()}


@pytest.mark.parametrize(("dp_degree", "tp_degree"), [(2, 1), (1, 2), (2, 2)])
def test_what_is_divided_both_ways_is_not_compiled(dp_degree: int, tp_degree: int) -> None:
    model: Any = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    live = sharded_replica(model, model, optimizer, Parallel(CPU, dp_degree=dp_degree, tp_degree=tp_degree))
    step = Step.of(Phase(model=model), live, Training(batch=1, steps=1, lr=1.0), Machine(compile="on"), CPU, steps=1)
    assert step.compiled == (dp_degree == 1 or tp_degree == 1)


def command_line(folder: Path, *arguments: str) -> int:
    """growbench in one of torchrun's processes. What it says goes to files."""
    rank = os.environ["RANK"]
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), descriptor)
    figures.leave_out()
    return cli.main(arguments)


def test_torchrun_starts_the_command_line(miniature: Path, tmp_path: Path) -> None:
    """Its launcher starts two processes. One speaks and writes; the page says how many worked."""
    launch = LaunchConfig(1, 1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver")
    arguments = ["run", str(miniature), "--methods", "scratch", "--set", "train.steps=3", "--tensor-parallel", "2"]
    codes = elastic_launch(launch, command_line)(tmp_path, *arguments, "--results", str(tmp_path))
    said = {name: "".join((tmp_path / f"{name}-{rank}").read_text() for rank in range(2)) for name in ("out", "err")}
    assert codes == {0: 0, 1: 0}, said
    assert said["err"].count("scratch-seed0      finished") == 1
    assert said["out"].count("report: ") == 1
    assert "2 tensor-parallel" in (tmp_path / "miniature" / "report" / "index.html").read_text()


@given(blocks=st.integers(1, 4), parts=st.integers(1, 4), share=st.integers(1, 5), dim=st.integers(0, 1))
def test_a_fused_matrix_is_cut_block_by_block(blocks: int, parts: int, share: int, dim: int) -> None:
    """Each part holds its share of every block, and gathering undoes it."""
    size = blocks * parts * share
    value = torch.arange(size * 3.0).view(size, 3) if dim == 0 else torch.arange(size * 3.0).view(3, size)
    cut = Cut(dim, blocks)
    scattered = cut.scattered(value, parts)
    assert torch.equal(cut.gathered(scattered, parts), value)
    for number, held in enumerate(scattered.chunk(parts, dim)):
        shares = [block.chunk(parts, dim)[number] for block in value.chunk(blocks, dim)]
        assert torch.equal(held, torch.cat(shares, dim))


@given(parts=st.sampled_from([1, 2, 4]), masked=st.booleans())
def test_the_parts_of_a_batch_are_the_batch(parts: int, masked: bool) -> None:
    """Rows in order, and each label is still that of its own position."""
    inputs = torch.arange(4 * 8).view(4, 8)
    positions = (torch.arange(4)[:, None] * 8 + torch.tensor([1, 4, 6])).flatten() if masked else None
    labels = inputs.flatten() if positions is None else inputs.flatten()[positions]
    several = [Batch(inputs, positions, labels).part(number, parts) for number in range(parts)]
    assert torch.equal(torch.cat([part.inputs for part in several]), inputs)
    assert torch.equal(torch.cat([part.labels for part in several]), labels)
    for part in several:
        labelled = part.inputs.flatten() if part.positions is None else part.inputs.flatten()[part.positions]
        assert torch.equal(labelled, part.labels)


def test_what_cannot_be_divided_is_refused(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(str(miniature))
    with pytest.raises(UsageError, match=r"^batch = 4: must be divisible by the data-parallel degree, 3$"):
        Benchmark(Setting(experiment, tmp_path / "results", Parallel(CPU, dp_degree=3))).run([], [0])
    twelve = replace(experiment.train, batch=12)
    machine = replace(experiment.machine, micro_batch=4)
    odd = replace(experiment, train=twelve, source_train=twelve, machine=machine)
    with pytest.raises(
        UsageError, match=r"^batch = 12: 6 rows for each of 2 data-parallel processes: must be divisible by micro_batch = 4$"
    ):
        Benchmark(Setting(odd, tmp_path / "results", Parallel(CPU, dp_degree=2))).run([], [0])
    sizes = ModelConfig(layers=1, width=8, heads=2, vocabulary=4, positions=4)
    with pytest.raises(UsageError, match=r"^--tensor-parallel 2: olmo2 norms queries and keys, which no part can do alone$"):
        check(architectures.get("olmo2"), sizes, 2)
    with pytest.raises(UsageError, match=r"^heads = 2: must be divisible by --tensor-parallel 4$"):
        Benchmark(Setting(experiment, tmp_path / "results", Parallel(CPU, tp_degree=4))).run([], [0])
    compiled = replace(experiment, machine=Machine(compile="on"))
    with pytest.raises(
        UsageError,
        match=r'^machine.compile = "on": torch cannot compile models under data and tensor parallelism together; allowed here',
    ):
        Benchmark(Setting(compiled, tmp_path / "results", Parallel(CPU, dp_degree=2, tp_degree=2))).run([], [0])
    with pytest.raises(UsageError, match=r"^--tensor-parallel 2: the number of processes, 1, must"):
        start(CPU, 2, False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match=r"^--tensor-parallel 2: the number of processes, 3, must"):
        start(CPU, 2, False)


def test_heads_that_talk_stay_together() -> None:
    """CaiT mixes its heads, so that only its FFN and classes are split: any number of heads will do."""
    sizes = ModelConfig(layers=1, width=12, heads=3, vocabulary=10, positions=16, patch=4)
    check(architectures.get("cait"), sizes, 2)
    with pytest.raises(UsageError, match=r"^heads = .*must be divisible"):
        check(architectures.get("vit"), sizes, 2)
