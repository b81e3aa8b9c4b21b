"""What `python -m tests.gpu.session` does, stage by stage. Each stage gives its outcome in one line."""

from __future__ import annotations

import re
import shlex
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from growbench.runs import step_seconds, store
from growbench.runs.store import Run
from tests.gpu.processes import GRACE, Ended, Environment, run, shared_gpu

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results"
GROWBENCH = ["-m", "growbench"]
ALONE = {"OMP_NUM_THREADS": "1"}  # processes that share the cores

PRECISION, KINDS = ("gpt2-tiny", "bert-tiny", "qwen3-tiny"), ("float32", "bf16")
LADDER = "gpt2-mini"
LITE, PAPERS_METHODS = "bert-small-base-lite", "stackbert,mslt,bert2bert,ki,ligo"
LITTLE_ELSE = "machine.compile=off", "data.evaluation_batches=1"  # in the benches, beside steps
SHORTER = "import sys; from growbench import cli; from growbench.tools import throughput; {}; sys.exit(cli.main(sys.argv[1:]))"


def settings(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@dataclass(frozen=True)
class Way:
    """How processes train side by side."""

    processes: int = 1
    mps: bool = False
    graphs: bool = False

    @classmethod
    def of(cls, text: str) -> Way:
        """From a number of processes and what they use, as in 16,mps,graphs. Raises ValueError."""
        count, *named = text.split(",")
        if {*named} - {"mps", "graphs"}:
            raise ValueError(text)
        return cls(int(count), "mps" in named, "graphs" in named)

    def __str__(self) -> str:
        return f"{self.processes}{',mps' * self.mps}{',graphs' * self.graphs}"

    @property
    def settings(self) -> list[str]:
        return ["machine.graphs=true"] * self.graphs


@dataclass(frozen=True)
class Sizes:
    """How much of each stage is done: whole on a GPU, or cut for a rehearsal on a CPU."""

    seeds: str = "0,1,2,3,4"  # of the comparison of precisions
    precision: Sequence[str] = ()  # --set
    bench: Mapping[str, Sequence[str]] = field(default_factory=dict)  # --set of each experiment
    bench_is: str = "throughput.SECONDS = 1.0"
    ways: Sequence[Way] = (Way(16), Way(1, graphs=True), Way(8, graphs=True), Way(16, mps=True), Way(16, mps=True, graphs=True))
    sharing_seconds: float = 4.0
    ladder: Sequence[str] = ()  # further options
    seconds: Sequence[str] = ("--rounds", "5")  # further options
    lite: Sequence[str] = ()  # --set


# GPT-2 Medium and DeiT-B at a smaller batch: a measurement takes seconds. Micro-batches are for 80 GB
WHOLE = Sizes(
    bench={
        "bert-small-base": ["machine.micro_batch=256"],
        "gpt2-base-medium": ["train.batch=16", "machine.micro_batch=8"],
        "deit-s-b": ["train.batch=128"],
    }
)

_SMALL = ["target.layers=2", "target.width=48", "target.heads=2", "source.layers=1", "source.width=24", "source.heads=1"]
_SHORT = ["train.steps=20", "source.steps=10", "train.warmup=2", "train.batch=4", "data.evaluation_batches=1"]
CUT = Sizes(
    seeds="0,1",
    precision=[*_SHORT, "source.warmup=2"],
    bench={
        "bert-small-base": [*_SMALL, "train.batch=4", "machine.micro_batch=2"],
        "gpt2-base-medium": [*_SMALL, "train.batch=2", "machine.micro_batch=2", "data.sequence_length=128"],
        "deit-s-b": [*_SMALL, "train.batch=4", "machine.micro_batch=2"],
    },
    bench_is="throughput.SECONDS, throughput.matrix_peak = 0.1, lambda *_: 1e12",  # the peak of a CPU takes minutes
    ways=(Way(1), Way(2), Way(2, mps=True)),
    sharing_seconds=0.5,
    ladder=["--methods", "bert2bert", "--budgets", "0.5,1", *settings([*_SHORT, "source.warmup=2"])],
    seconds=["--methods", "bert2bert", "--rounds", "5", *settings([*_SHORT, "source.warmup=2"])],
    lite=[*_SMALL, *_SHORT, "source.warmup=2", "machine.micro_batch=2"],
)


@dataclass
class Session:
    """What the stages share. `corpus`: a folder of prepared tokens, in place of the hub's text."""

    work: Path  # folder
    device: str
    sizes: Sizes
    corpus: Path | None
    seeds: str | None  # of the ladder; None: those of its committed runs
    settings: Sequence[str]  # --set of the last stage
    precision: Sequence[str]  # further options of growbench run in the stage of that name
    anew: bool  # whether the ladder's committed runs are trained again
    way: Way  # of the processes of a stage that trains several runs

    @property
    def results(self) -> Path:
        return self.work / "results"

    @property
    def way_file(self) -> Path:
        """Holds the fastest way, once it was found."""
        return self.work / "way.txt"

    def log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.txt"

    @contextmanager
    def environment(self, mps: bool) -> Iterator[Environment]:
        """Of processes side by side. Raises OSError where there is no MPS."""
        sharing: AbstractContextManager[Environment] = shared_gpu(self.work / "mps") if mps else nullcontext({})
        with sharing as environment:
            yield {**ALONE, **environment}

    def text(self) -> list[str]:
        """--set of an experiment on the hub's text, if prepared tokens take its place."""
        return [f"data.corpus=tokens:{self.corpus}", "data.tokenizer=", "data.documents=0"] if self.corpus else []


def verdict(ended: Sequence[Ended]) -> str:
    """In words, what of these commands did not end well; empty if all did."""
    failed = [each for each in ended if each.code and not each.late]
    late = sum(each.late for each in ended)
    found = [f"{each.log.stem} ends with {each.code}: {each.last_line}" for each in failed[:2]]
    return "; ".join([*found, *[f"{late} of {len(ended)} ran out of time"] * bool(late)])


def tests(session: Session, seconds: float) -> str:
    """The tests of tests/gpu, one process for each file; on CUDA those that run on it alone."""
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "--durations=5", *(["-m", "gpu"] if session.device == "cuda" else [])]
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    ended = run({session.log(file.stem): ["-m", "pytest", str(file), *options] for file in files}, seconds, ALONE)
    said = [f"{each.log.stem.removeprefix('test_')}: {'no time' if each.late else each.last_line.strip('= ')}" for each in ended]
    return f"{'FAILED: ' * any(each.code for each in ended)}{'; '.join(said)}"


def sharing(session: Session, seconds: float) -> str:
    """Steps a second of processes side by side, all together, in several ways. What follows uses the fastest."""
    deadline = time.monotonic() + seconds
    found: dict[Way, float] = {}
    said = []
    for mps in False, True:
        try:
            with session.environment(mps) as environment:
                for way in [way for way in session.sizes.ways if way.mps == mps]:
                    left = deadline - time.monotonic() - GRACE
                    if left > 0:
                        found[way] = _together(session, way, environment, left)
                        said.append(f"{way}: {found[way]:.0f}")
        except OSError as error:
            said.append(f"no MPS: {error}")
    session.way = max(found, key=lambda way: found[way])
    session.way_file.write_text(str(session.way))
    return f"{'FAILED: ' * (not any(found.values()))}steps/s of {LADDER} together: {'; '.join(said)}"


def _together(session: Session, way: Way, environment: Environment, seconds: float) -> float:
    """Steps a second of all processes together; 0 if one of them failed."""
    name = f"sharing-{way}"
    meet = session.work / name
    shutil.rmtree(meet, ignore_errors=True)
    meet.mkdir()
    command = ["-m", "tests.gpu.sharing", LADDER, "--device", session.device, *settings(way.settings), "--meet", str(meet)]
    command += ["--seconds", str(session.sizes.sharing_seconds), "--processes", str(way.processes), "--number"]
    commands = {session.log(f"{name}-{number}"): [*command, str(number)] for number in range(way.processes)}
    ended = run(commands, seconds, environment)
    if verdict(ended):
        print(f"{name}: {verdict(ended)}")
        return 0.0
    return sum(float(each.last_line) for each in ended)


def precision(session: Session, seconds: float) -> str:
    """Final losses in bf16 and in float32, beside the spread over seeds: scratch and bert2bert on three small experiments.

    A GPU is shared by all; on a CPU the two precisions of one experiment are side by side, each on one thread.
    """
    deadline, ended = time.monotonic() + seconds, []
    together = [PRECISION] if session.device == "cuda" else [(name,) for name in PRECISION]
    with session.environment(session.way.mps) as environment:
        for number, names in enumerate(together):
            left = (deadline - time.monotonic()) / (len(together) - number)
            commands = dict(_in_precision(session, name, kind) for name in names for kind in KINDS)
            ended += run(commands, left, environment)
    rows = [line for name in PRECISION for line in _compared(session, name)]
    (session.work / "precision.txt").write_text("\n".join([COMPARED, *rows, ""]))
    print("\n".join([COMPARED, *rows]))
    return f"{'FAILED: ' * bool(verdict(ended))}{verdict(ended) or f'{len(rows)} comparisons'}"


def _in_precision(session: Session, name: str, kind: str) -> tuple[Path, list[str]]:
    """The log and the command of an experiment's runs in one precision."""
    options = ["--methods", "bert2bert", "--seeds", session.sizes.seeds, "--device", session.device, "--only", "1/1"]
    changes = settings([*session.sizes.precision, *session.way.settings, f"train.precision={kind}"])
    where = ["--results", str(session.work / "precision" / kind)]
    return session.log(f"precision-{name}-{kind}"), [*GROWBENCH, "run", name, *options, *changes, *where, *session.precision]


COMPARED = f"{'final validation loss':<28} {'seeds':>5} {'float32':>9} {'bf16':>9} {'difference':>11} {'std over seeds':>15}"


def _compared(session: Session, experiment: str) -> Iterator[str]:
    """A line for each method that has finished in both precisions on some seeds: means over these, and the spread in float32."""
    kinds = [_finished(session.work / "precision" / kind / experiment) for kind in KINDS]
    for method in sorted({name.rpartition("-seed")[0] for name in kinds[0]}):
        names = [name for name in kinds[0] if name.startswith(f"{method}-seed") and name in kinds[1]]
        if len(names) > 1:
            losses = [[runs[name].final_loss for name in names] for runs in kinds]
            exact, rounded = map(statistics.fmean, losses)
            row = f"{f'{experiment} {method}':<28} {len(names):>5} {exact:>9.4f} {rounded:>9.4f}"
            yield f"{row} {rounded - exact:>+11.4f} {statistics.stdev(losses[0]):>15.4f}"


def _finished(folder: Path) -> dict[str, Run]:
    return {run.name: run for run in store.load_all(folder) if run.finished} if folder.is_dir() else {}


def bench(session: Session, seconds: float) -> str:
    """growbench's loop, a bare one and transformers.Trainer, on three targets of full size, one after the other."""
    command = ["-c", SHORTER.format(session.sizes.bench_is), "bench", "--rounds", "5", *settings(LITTLE_ELSE)]
    ended = _targets(session, seconds, "bench", command)
    said = [f"{name}: {speed(each.log.read_text(errors='replace'))}" for name, each in ended.items()]
    return _said(said, ended.values())


def kernels(session: Session, seconds: float) -> str:
    """The share of the matrix peak that the compiled step of each target of the stage bench has, and its kernels."""
    ended = _targets(session, seconds, "kernels", ["-m", "tests.gpu.kernels"])
    return _said([each.last_line for each in ended.values()], ended.values())


def _targets(session: Session, seconds: float, stage: str, command: Sequence[str]) -> dict[str, Ended]:
    """Run a command on each target of full size, one after the other. Each gets an equal share of the time that is left."""
    deadline, ended = time.monotonic() + seconds, dict[str, Ended]()
    for number, (name, changes) in enumerate(session.sizes.bench.items()):
        left = (deadline - time.monotonic()) / (len(session.sizes.bench) - number)
        data = _images(session) if name == "deit-s-b" else session.text()
        request = [*command, name, "--device", session.device, *settings([*data, *changes])]
        (ended[name],) = run({session.log(f"{stage}-{name}"): request}, left)
        print(ended[name].log.read_text(errors="replace"))
    return ended


def _said(said: Sequence[str], ended: Iterable[Ended]) -> str:
    wrong = verdict([*ended])
    return f"{'FAILED: ' * bool(wrong)}{'; '.join(filter(None, [*said, wrong]))}"


def speed(printed: str) -> str:
    """What growbench bench found of its own loop, in words, from what it printed."""
    found = re.search(r"^growbench +\d+ +(\S+\s%) +\S+ +(\S+ x) ", printed, re.MULTILINE)
    return f"{found[1]} of the peak, {found[2]} Trainer" if found else "none"


def _images(session: Session) -> list[str]:
    """--set of an experiment on ImageNet, if random images take its place: as many as batches of training and validation need."""
    if session.corpus is None:
        return []
    import numpy as np
    from PIL import Image

    folder, rng = session.work / "images", np.random.default_rng(0)
    batch = next(int(value.partition("=")[2]) for value in session.sizes.bench["deit-s-b"] if value.startswith("train.batch="))
    if not folder.exists():
        for number in range(20 * batch + 20):
            place = folder / f"class-{number % 2}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            if number < 16:
                Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(place, quality=90)
            else:
                shutil.copy(folder / f"class-{number % 2}" / f"{number % 16}.jpg", place)
    return [f"data.corpus=files:{folder}"]


def ladder(session: Session, seconds: float) -> str:
    """The runs of results/README.md's command that are missing or of earlier code, or all, by processes side by side."""
    folder = session.results / "mini" / LADDER
    if not (session.anew or any(folder.glob(f"*/{store.RECORD}"))):
        kept = shutil.ignore_patterns("report", step_seconds.FILE)
        shutil.copytree(COMMITTED / "mini" / LADDER, folder, ignore=kept, dirs_exist_ok=True)
    before = {name: run.record for name, run in _finished(folder).items()}
    request = [*GROWBENCH, *_command_of_ladder(), "--device", session.device]
    request += ["--seeds", session.seeds] if session.seeds else []
    request += ["--results", str(folder.parent), *session.sizes.ladder, *settings(session.way.settings)]
    count = session.way.processes
    parts = [[*request, "--only", f"{number + 1}/{count}"] for number in range(count)]
    commands = {session.log(f"ladder-{number}"): command for number, command in enumerate(parts)}
    with session.environment(session.way.mps) as environment:
        ended = run(commands, seconds, environment)
    after = _finished(folder)
    new = [name for name, each in after.items() if before.get(name) != each.record]
    failed = any(each.code and not each.late for each in ended)
    return f"{'FAILED: ' * failed}{len(new)} runs trained; {verdict(ended) or 'all done'}"


def seconds(session: Session, seconds: float) -> str:
    """Reference seconds of the ladder's methods: their steps alone, in one process with nothing beside it."""
    request = _command_of_ladder()
    methods = request[request.index("--methods") + 1]
    command = [
        *GROWBENCH,
        "bench",
        LADDER,
        "--methods",
        methods,
        "--device",
        session.device,
        "--results",
        str(session.results / "mini"),
    ]
    command += [*session.sizes.seconds, *settings(["machine.compile=off", *session.way.settings])]
    (ended,) = run({session.log("seconds"): command}, seconds)
    return f"{'FAILED: ' * bool(ended.code)}{verdict([ended]) or ended.last_line}"


def _command_of_ladder() -> list[str]:
    """growbench's arguments that results/README.md gives for the ladder."""
    page = (COMMITTED / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^growbench (run {LADDER} .*)$", page, re.MULTILINE)
    return shlex.split(line)


def lite(session: Session, seconds: float) -> str:
    """BERT-Small to BERT-Base by the paper's six methods, in one process, as far as the time reaches."""
    where = ["--results", str(session.results / "lite"), "--device", session.device, "--only", "1/1"]
    changes = settings([*session.text(), *session.sizes.lite, *session.settings])
    command = [*GROWBENCH, "run", LITE, "--methods", PAPERS_METHODS, *where, *changes]
    (ended,) = run({session.log("lite"): command}, seconds)
    done = _finished(session.results / "lite" / LITE)
    return f"{'FAILED: ' * bool(ended.code and not ended.late)}finished: {', '.join(done) or 'none'}; {verdict([ended])}"
