"""Two processes on one run give what one gives: the same losses, FLOPs and files, however models are divided."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growbench import architectures, results
from growbench.benchmark import Benchmark
from growbench.config import ModelConfig, UsageError, load
from growbench.data import Batch
from growbench.parallel import Parallel, start
from growbench.registry import get_all
from growbench.signals import Interruption
from growbench.tensor_parallel import Cut, check

CPU = torch.device("cpu")
METHODS = ("scratch", "stackbert", "mslt", "ki", "bert2bert", "ligo", "progressive_net")
DIVISIONS = {
    "replicated": Parallel(CPU, shares=2),
    "sharded": Parallel(CPU, shares=2, sharded=True),
    "tensor": Parallel(CPU, parts=2),
}
FEW = ("scratch", "mslt", "ligo")  # a plain model, one that is partly frozen, one that is no plain transformer
CASES = {
    ("gpt2", "replicated"): METHODS,
    ("gpt2", "sharded"): FEW,
    ("gpt2", "tensor"): FEW,
    ("bert", "sharded"): FEW,
    ("bert", "tensor"): FEW,
}


def benchmark(experiment: Path, folder: Path, parallel: Parallel, methods: Sequence[str] = METHODS) -> None:
    assert Benchmark(load(str(experiment)), folder, parallel).run(get_all(methods, {"ligo": {"operator_steps": 3}}), [0])


def interrupted(experiment: Path, folder: Path, parallel: Parallel) -> None:
    """Scratch, stopped after seven of twelve steps: one process is asked, and all stop."""
    calls = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Interruption, "__call__", lambda self: next(calls) == 6 and parallel.rank == 1)
        benchmark(experiment, folder, parallel, ["scratch"])


def work(rank: int, port: int, experiments: dict[str, Path], folder: Path) -> None:
    """One of two processes: every case in turn."""
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    start(CPU, 1, False)
    for (architecture, division), methods in CASES.items():
        parallel = replace(DIVISIONS[division], rank=rank)
        benchmark(experiments[architecture], folder / division / architecture, parallel, methods)
    for division, parallel in DIVISIONS.items():
        interrupted(experiments["gpt2"], folder / "interrupted" / division, replace(parallel, rank=rank))


@pytest.fixture(scope="module")
def done(write_miniature: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All results: of one process below `alone`, of two below each division."""
    folder = tmp_path_factory.mktemp("parallel")
    experiments = {}
    for architecture in ("gpt2", "bert"):
        (folder / "experiments" / architecture).mkdir(parents=True)
        experiments[architecture] = write_miniature(folder / "experiments" / architecture, architecture)
        benchmark(
            experiments[architecture], folder / "alone" / architecture, Parallel(CPU), METHODS if architecture == "gpt2" else FEW
        )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(work, (port, experiments, folder), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("architecture", "division"), CASES)
def test_two_processes_give_what_one_gives(done: Path, architecture: str, division: str) -> None:
    """The same curves to float tolerance, and the same FLOPs, at the same global batch."""
    two = results.load_all(done / division / architecture)
    assert {run.folder.name for run in two} == {f"{name}-seed0" for name in ("source", *CASES[architecture, division])}
    for run in two:
        one = results.load(done / "alone" / architecture / run.folder.name)
        assert one is not None
        assert run.record["hardware"]["processes"] == DIVISIONS[division].describe()
        assert [row["step"] for row in run.curve] == [row["step"] for row in one.curve]
        losses, expected = ([row["val_loss"] for row in each.curve] for each in (run, one))
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=2e-5, atol=0)
        for account, flops in run.record["cost"]["flops"].items():
            if account not in ("overhead", "operator"):  # each of two processes builds the weights that an operator makes
                assert flops == one.record["cost"]["flops"][account], (run.folder.name, account)


@pytest.mark.parametrize("division", DIVISIONS)
def test_one_process_goes_on_where_two_stopped(done: Path, division: str) -> None:
    """A checkpoint holds whole models and optimizers, however they were divided."""
    folder = done / "interrupted" / division
    stopped = results.load(folder / "scratch-seed0")
    assert stopped is not None
    assert (stopped.record["status"], stopped.record["steps"]) == ("interrupted", 7)
    benchmark(done / "experiments" / "gpt2" / "miniature.toml", folder, Parallel(CPU), ["scratch"])
    went_on, expected = results.load(folder / "scratch-seed0"), results.load(done / "alone" / "gpt2" / "scratch-seed0")
    assert went_on is not None and expected is not None
    assert [row["step"] for row in went_on.curve] == [row["step"] for row in expected.curve]
    losses, whole = (torch.tensor([row["val_loss"] for row in run.curve]) for run in (went_on, expected))
    torch.testing.assert_close(losses, whole, rtol=2e-5, atol=0)


def test_torchrun_starts_the_command_line(miniature: Path, tmp_path: Path) -> None:
    """One process speaks and writes; the page says how many worked."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "growbench", "run"]
    arguments = [str(miniature), "--methods", "scratch", "--tensor-parallel", "2", "--results", str(tmp_path)]
    answer = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("scratch-seed0      finished") == 1
    assert answer.stdout.count("report: ") == 1
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
    """Rows in order, and each scored position still points at its own token."""
    inputs = torch.arange(4 * 8).view(4, 8)
    positions = (torch.arange(4)[:, None] * 8 + torch.tensor([1, 4, 6])).flatten() if masked else None
    labels = inputs.flatten() if positions is None else inputs.flatten()[positions]
    several = [Batch(inputs, positions, labels).part(number, parts) for number in range(parts)]
    assert torch.equal(torch.cat([part.inputs for part in several]), inputs)
    assert torch.equal(torch.cat([part.labels for part in several]), labels)
    for part in several:
        scored = part.inputs.flatten() if part.positions is None else part.inputs.flatten()[part.positions]
        assert torch.equal(scored, part.labels)


def test_what_cannot_be_divided_is_refused(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(str(miniature))
    with pytest.raises(UsageError, match=r"^batch = 4: must divide into 3 shares$"):
        Benchmark(experiment, tmp_path / "results", Parallel(CPU, shares=3)).run([], [0])
    twelve = replace(experiment.train, batch=12)
    machine = replace(experiment.machine, micro_batch=4)
    odd = replace(experiment, train=twelve, source_train=twelve, machine=machine)
    with pytest.raises(UsageError, match=r"^batch = 12: must divide into 2 shares of micro-batches of 4$"):
        Benchmark(odd, tmp_path / "results", Parallel(CPU, shares=2)).run([], [0])
    with pytest.raises(UsageError, match=r"^--tensor-parallel 4: must divide the heads of every model, and one has 2$"):
        Benchmark(experiment, tmp_path / "results", Parallel(CPU, parts=4)).run([], [0])
    with pytest.raises(UsageError, match=r"^--tensor-parallel 2: must divide the number of processes, 1;"):
        start(CPU, 2, False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match=r"^--tensor-parallel 2: must divide the number of processes, 3;"):
        start(CPU, 2, False)


def test_heads_that_talk_stay_together() -> None:
    """CaiT mixes its heads, so that only its FFN and classes are split: any number of heads will do."""
    sizes = ModelConfig(layers=1, width=12, heads=3, vocabulary=10, positions=16, patch=4)
    check(architectures.get("cait"), sizes, 2)
    with pytest.raises(UsageError, match="must divide the heads"):
        check(architectures.get("vit"), sizes, 2)
