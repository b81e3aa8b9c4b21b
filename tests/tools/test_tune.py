"""Tuning: as many trials for every method in one space, kept whatever happens, and values that reach nothing but their method."""

from __future__ import annotations

import csv
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growbench import cli, errors, files, registry
from growbench.config import loading
from growbench.method import tunable
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.sources import Sources
from growbench.tools import tuned_values
from growbench.tools.cards import card
from growbench.tools.search_space import Range, best, defaults, space, with_values
from growbench.tools.tune import Search, open_storage
from tests.processes import ended, start

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from growbench.method import Method, Phase, Phases, Task, tunable

class Mine(Method):
    "Scratch, but its weights may start out smaller; with the second trial's learning rate it breaks."
    paper: ClassVar[str] = "https://example.org"
    uses_source: ClassVar[bool] = False
    scale: float = tunable(1.0, 0.01, 1.0)
    repeats: int = tunable(2, 1, 5)

    def phases(self, task: Task) -> Phases:
        model = task.build()
        for parameter in model.parameters():
            parameter.data *= self.scale
        trained = yield Phase(model=model)
        planned = trained.loss != trained.loss  # NaN: nothing was computed
        if task.training.lr != 1e-3 and not planned:
            raise RuntimeError("broken on purpose")
"""
SEED = 1000  # of tuning, by default
TUNE_AGAIN = "; growbench tune writes such files: tune again"


class Tuned(NamedTuple):
    """The miniature, tuned: two trials of scratch, ligo and a plugin."""

    experiment: Path
    plugin: Path
    results: Path

    @property
    def file(self) -> Path:
        return self.results / "miniature" / "tuning" / "tuned.toml"

    @property
    def methods(self) -> str:
        return f"ligo,{self.plugin}"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "miniature" / "tuning" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def tune(*arguments: object) -> int:
    return cli.main(["tune", *map(str, arguments)])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, write_miniature: Callable[..., Path]) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    plugin = folder / "mine.py"
    plugin.write_text(PLUGIN)
    done = Tuned(write_miniature(folder), plugin, folder / "results")
    assert tune(done.experiment, "--methods", done.methods, "--trials", 2, "--results", done.results) == 0
    return done


@pytest.fixture
def refused(tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run with a file of tuned values, which must be refused: exit code 2, one line, which is given back, and no result."""

    def run(*arguments: object, file: Path = tuned.file, methods: object = "ligo") -> str:
        folder = tmp_path / "results"
        options = ["--methods", methods, "--results", folder, "--tuned", file, *arguments]
        assert cli.main(["run", *map(str, [tuned.experiment, *options])]) == 2
        answer = capsys.readouterr()
        assert len(answer.err.splitlines()) == 1 and not answer.out
        assert not folder.exists()
        return answer.err

    return run


# The space


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.integers(0, 2**32 - 1))
def test_samples_lie_in_their_range(low: float, high: float, value: float, seed: int) -> None:
    """Ends included; wide enough for the default."""
    held = Range(min(low, high), max(low, high)).holding(value)
    assert held.low <= min(low, high) and held.high >= max(low, high) and held.low <= value <= held.high
    assert held.low <= held.suggest(trial(seed), "it") <= held.high


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_whole_numbers_stay_whole(low: int, high: int, seed: int) -> None:
    held = Range(low, low).holding(high)
    sample = held.suggest(trial(seed), "it")
    assert type(sample) is int and held.low <= sample <= held.high


def trial(seed: int) -> optuna.Trial:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


@given(st.floats(1e-9, 1e3))
@settings(max_examples=30)
def test_a_range_over_a_factor_of_ten_is_searched_by_ratio(low: float) -> None:
    """Whatever rounding does to its ends."""
    assert Range(0.3 * low, 3 * low).log and not Range(low, 9 * low).log and not Range(0.0, low).log


def test_every_method_has_the_same_learning_rates_and_warm_ups(tuned: Tuned) -> None:
    """And what it declares of its own: a plugin's as a built-in's."""
    experiment = loading.load(str(tuned.experiment))
    spaces = {found.name: space(experiment, found) for found in registry.get_all(["scratch", "ligo", str(tuned.plugin)], {})}
    shared = {"train.lr": Range(0.3e-3, 3e-3), "train.warmup": Range(0, 2)}
    assert spaces == {
        "scratch": shared,
        "ligo": shared | {"operator_lr": Range(3e-4, 3e-2)},
        "mine": shared | {"scale": Range(0.01, 1.0), "repeats": Range(1, 5)},
    }


def test_a_default_outside_of_a_range_widens_it(tuned: Tuned) -> None:
    """The first trial is what the experiment says, whatever that is."""
    experiment = loading.load(str(tuned.experiment), ["train.warmup=6"])
    found = registry.get("ligo", {"operator_lr": 1.0})
    assert space(experiment, found)["train.warmup"] == Range(0, 6)
    assert space(experiment, found)["operator_lr"] == Range(3e-4, 1.0)


def test_a_range_must_hold_its_default() -> None:
    for default, low, high in ((1.0, 2.0, 3.0), (3, 2, 1)):
        with pytest.raises(ValueError, match="must be a default, and a range that holds it"):
            tunable(default, low, high)


def test_a_card_shows_default_and_range() -> None:
    assert "operator_lr: float = 0.003 (tuned: 0.0003 to 0.03)" in card(registry.get("ligo"))


@pytest.mark.parametrize("name", registry.names())
def test_a_method_accepts_the_ends_of_its_ranges(tuned: Tuned, name: str) -> None:
    found, experiment = registry.get(name), loading.load(str(tuned.experiment))
    ranges = space(experiment, found)
    assert with_values(found, defaults(experiment, found)).method == found.method
    for end in ("low", "high"):
        with_values(found, {key: getattr(each, end) for key, each in ranges.items()})


# Trials


def test_every_method_has_as_many_trials(tuned: Tuned) -> None:
    """Scratch included, those that fail included; the first is the defaults, the others try the same of what all share."""
    trials = rows(tuned.results)
    assert [(row["method"], row["trial"]) for row in trials] == [(name, n) for name in ("scratch", "ligo", "mine") for n in "01"]
    assert {row["seeds"] for row in trials} == {str(SEED)}
    first, second = trials[::2], trials[1::2]
    assert {(row["train.lr"], row["train.warmup"]) for row in first} == {("0.001", "2")}
    assert (first[1]["ligo.operator_lr"], first[2]["mine.scale"], first[2]["mine.repeats"]) == ("0.003", "1.0", "2")
    assert len({row["train.lr"] for row in second}) == 1 and second[0]["train.lr"] != "0.001"
    assert all(float(row["flops"]) > 0 for row in trials if row["status"] == "finished")


def test_a_trial_that_fails_is_kept_with_its_error(tuned: Tuned) -> None:
    failed = rows(tuned.results)[-1]
    assert (failed["status"], failed["loss"], failed["error"]) == ("failed", "", "RuntimeError: broken on purpose")
    assert tomllib.loads(tuned.file.read_text())["methods"]["mine"]["train"]["lr"] == 1e-3


def test_trials_are_runs_of_their_own_that_no_report_compares(tuned: Tuned) -> None:
    """All from the experiment's own source model, trained once, with the experiment's own values."""
    folder = tuned.results / "miniature"
    runs = {run.folder.name: run.record for run in store.load_all(folder / "tuning")}
    names = [f"{name}-trial{number}-seed{SEED}" for name in ("scratch", "ligo", "mine") for number in (0, 1)]
    assert runs.keys() == {f"source-seed{SEED}", *names}
    source = runs[f"source-seed{SEED}"].config.experiment
    others = [run.config.experiment for name, run in runs.items() if name in names]
    assert all(other == others[0] and other.items() >= source.items() for other in others)
    for row in rows(tuned.results):
        run = runs[f"{row['method']}-trial{row['trial']}-seed{SEED}"]
        if row["status"] == "finished":
            assert run.final_val_loss == float(row["loss"])
    assert store.load_all(folder) == []


def test_the_best_trial_is_chosen(tuned: Tuned) -> None:
    """By its loss, with full precision."""
    chosen = tomllib.loads(tuned.file.read_text())["methods"]
    for name in ("scratch", "ligo"):
        row = min((row for row in rows(tuned.results) if row["method"] == name), key=lambda row: float(row["loss"]))
        assert chosen[name]["train"] == {"lr": float(row["train.lr"]), "warmup": int(row["train.warmup"])}
    assert best([]) is None


def test_tuning_goes_on_where_it_was_broken_off(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second trial, then asked for two, then for three: the same trials as at once, and none trained twice."""
    trained: list[str] = []
    train = Benchmark.run

    def counted(self: Benchmark, methods: Any, seeds: Any) -> bool:
        trained.append(methods[0].name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(self, methods, seeds)

    monkeypatch.setattr(Benchmark, "run", counted)
    command = [miniature, "--methods", "scratch", "--results", tmp_path / "parts", "--trials"]
    assert tune(*command, 3) == 130
    assert tune(*command, 2) == 0
    assert len(rows(tmp_path / "parts")) == 2
    assert tune(*command, 3) == 0
    assert trained == [f"scratch-trial{number}" for number in (0, 1, 1, 2)]
    assert tune(*command[:-2], tmp_path / "whole", "--trials", 3) == 0
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert tune(*command, 2) == 0, "fewer than there are: the first ones"
    assert len(rows(tmp_path / "parts")) == 2 and len(trained) == 7


def test_another_experiment_is_tuned_anew(miniature: Path, tmp_path: Path) -> None:
    command = [miniature, "--methods", "scratch", "--results", tmp_path / "results", "--trials", 1]
    assert tune(*command) == 0
    before = rows(tmp_path / "results")
    assert tune(*command, "--set", "train.steps=14") == 0
    assert rows(tmp_path / "results")[0]["loss"] != before[0]["loss"]


def test_a_loss_is_the_mean_over_seeds(miniature: Path, tmp_path: Path) -> None:
    command = [miniature, "--methods", "scratch", "--results", tmp_path / "results", "--trials", 1, "--seeds", "7,8"]
    assert tune(*command) == 0
    losses = [run.record.final_val_loss for run in store.load_all(tmp_path / "results" / "miniature" / "tuning")]
    (row,) = rows(tmp_path / "results")
    assert row["seeds"] == "7 8" and float(row["loss"]) == pytest.approx(sum(losses) / 2) and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trials", "0"), "--trials 0: must be at least 1"),
        (("--trials", "few"), "--trials: invalid int value: 'few'"),
        (("--methods", "liggo"), "unknown method 'liggo': did you mean ligo?"),
        (("--seeds", "one"), "--seeds: 'one': must be"),
        (("--methods", "bert2bert", "--set", "target.heads=2"), "heads are copied whole"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    """In one line, before anything trains."""
    try:
        code = tune(miniature, "--results", tmp_path / "results", *arguments)
    except SystemExit as exit:  # argparse
        code = int(exit.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_searches_that_cannot_be_read_are_refused(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results" / "miniature" / "tuning"
    folder.mkdir(parents=True)
    (folder / "studies.jsonl").write_text("no\nJSON\n")
    assert tune(miniature, "--methods", "scratch", "--results", tmp_path / "results") == 2
    error = capsys.readouterr().err
    assert "remove it to tune anew" in error and len(error.splitlines()) == 1


def test_values_that_a_method_refuses_are_a_failed_trial(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where an older run of that name is left."""
    command = [miniature, "--methods", "ki", "--results", tmp_path / "results", "--trials", 2]
    assert tune(*command) == 0
    monkeypatch.setattr("growbench.methods.ki.Ki.__post_init__", refuse_all_but_the_default)
    assert tune(*command, "--set", "ki.weight=0.9") == 0
    first, second = (row for row in rows(tmp_path / "results") if row["method"] == "ki")
    assert first["status"] == "finished"
    assert (second["status"], second["flops"]) == ("failed", "0") and "ki: share = " in second["error"]


def test_what_is_not_the_values_fault_is_no_trial(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results that cannot be written, a small model that cannot be trained: refused in one line, and later tried again."""
    command = [miniature, "--methods", "mslt", "--results", tmp_path / "results", "--trials", 1]

    def full(self: Benchmark, methods: Any, seeds: Any) -> bool:
        raise errors.UsageError("cannot write results: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Benchmark, "run", full)
        assert tune(*command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "growbench: cannot write results: No space left on device"
    with monkeypatch.context() as patch:
        patch.setattr(Sources, "of", lambda *_: None)
        assert tune(*command, "--methods", "net2net") == 2
    assert "net2net-trial0 needs the small model, whose training failed" in capsys.readouterr().err.splitlines()[-1]
    assert tune(*command, "--methods", "mslt,net2net") == 0
    assert [(row["trial"], row["status"]) for row in rows(tmp_path / "results")] == [("0", "finished")] * 3


def refuse_all_but_the_default(ki: Any) -> None:
    if ki.share != 0.3:
        raise errors.UsageError(f"share = {ki.share}: too much")


# One folder, several commands


class Folder(NamedTuple):
    """Where the miniature is tuned without being trained: a trial's loss is its number."""

    experiment: Path
    results: Path

    def tune(self, methods: str, trials: int = 1, *arguments: object) -> int:
        return tune(self.experiment, "--methods", methods, "--results", self.results, "--trials", trials, *arguments)

    @property
    def file(self) -> Path:
        return self.results / "miniature" / "tuning" / "tuned.toml"

    def trials(self) -> list[tuple[str, str]]:
        return [(row["method"], row["trial"]) for row in rows(self.results)]

    def run(self, methods: str, *arguments: object) -> int:
        """Exit code of a run with the values tuned, which is not trained."""
        options = ["--methods", methods, "--tuned", self.file, "--dry-run", *arguments]
        return cli.main(["run", *map(str, [self.experiment, *options])])


@pytest.fixture
def untrained(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    def try_next(search: Search, number: int) -> None:
        trial = search.study.ask()
        for key, each in space(search.benchmark.setting.experiment, search.found).items():
            each.suggest(trial, key)
        trial.set_user_attr("flops", 1.0)
        search.study.tell(trial, number)

    monkeypatch.setattr(Search, "try_next", try_next)
    return Folder(miniature, tmp_path / "results")


def test_a_later_command_keeps_what_was_tuned_alike(untrained: Folder) -> None:
    """As long as seeds, trials and experiment are the same: another wording of the experiment is."""
    assert untrained.tune("net2net,ki") == 0
    first = tomllib.loads(untrained.file.read_text())["methods"]
    assert untrained.tune("ligo,ki", 1, "--set", "train.lr=1e-3") == 0
    assert untrained.trials() == [(name, "0") for name in ("scratch", "ligo", "ki", "net2net")]
    table = tomllib.loads(untrained.file.read_text())
    assert table["methods"].keys() == table["variants"].keys() == {"scratch", "ligo", "ki", "net2net"}
    assert first.items() <= table["methods"].items()
    assert rows(untrained.results)[-2]["ki.share"] == "0.3" and rows(untrained.results)[-2]["ligo.operator_lr"] == ""
    assert untrained.run("net2net,ki") == untrained.run("ligo") == 0


@pytest.mark.parametrize("arguments", [(2,), (1, "--seeds", "7"), (1, "--set", "train.steps=14")])
def test_what_was_tuned_otherwise_is_not_mixed_in(
    untrained: Folder, capsys: pytest.CaptureFixture[str], arguments: tuple[Any, ...]
) -> None:
    """And that is said; the command that tuned it brings it back."""
    assert untrained.tune("net2net") == 0
    assert untrained.tune("ki", *arguments) == 0
    assert "net2net: tuned on other trials or seeds, or another experiment, so no longer in" in capsys.readouterr().err
    assert {name for name, _ in untrained.trials()} == {"scratch", "ki"}
    assert untrained.tune("net2net") == 0
    assert untrained.trials() == [("scratch", "0"), ("net2net", "0")]


def test_files_are_whole_whenever_tuning_is_broken_off(untrained: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first method, or while they are written: as they were."""

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    assert untrained.tune("net2net,ki") == 0
    before = untrained.trials(), untrained.file.read_text()
    for place in ("growbench.tools.tune.best", "growbench.files.os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            assert untrained.tune("net2net,ki,ligo", 2) == 130
        assert (untrained.trials(), untrained.file.read_text()) == before


def test_what_another_process_tunes_is_waited_for(
    untrained: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other methods are tuned first; a claim of a dead process is none."""
    code = (
        "import sys, filelock, time; own = filelock.FileLock(sys.argv[1]); own.acquire(); print('held', flush=1); time.sleep(99)"
    )
    lock = untrained.file.parent / ".locks" / "ki.lock"
    lock.parent.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    tuned: list[str] = []
    run = Search.run

    def noted(search: Search) -> Any:
        assert search.found.name != "ki" or other.poll() is not None
        tuned.append(search.found.name)
        return run(search)

    def until_it_dies(text: str) -> None:
        if "ki                 is being tuned by another process: waiting for it" in text:
            tuned.append("waits")
            other.kill()
            other.wait()

    monkeypatch.setattr(Search, "run", noted)
    monkeypatch.setattr("growbench.tools.tune.say", until_it_dies)
    try:
        assert untrained.tune("ki,ligo") == 0
    finally:
        other.kill()
    assert tuned == ["scratch", "ligo", "waits", "ki"]
    assert [name for name, _ in untrained.trials()] == ["scratch", "ki", "ligo"]


def test_the_searches_lock_leads_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else optuna waits for ever for a process that was killed with it."""
    monkeypatch.chdir(tmp_path)
    storage: Any = open_storage(Path("tuning"))
    storage._backend._lock.acquire()
    assert Path("tuning/studies.jsonl.lock").exists()
    storage._backend._lock.release()


def test_two_at_once_share_the_methods(miniature: Path, tmp_path: Path) -> None:
    """Every trial is trained once, by one of them, and both end with all of them."""
    names = ("scratch", "mslt")
    arguments = ["tune", str(miniature), "--methods", ",".join(names), "--results", str(tmp_path), "--trials", "2"]
    answers = ended([start(arguments) for _ in "12"])
    assert answers[0][0] == answers[1][0]
    for name in names:
        for number in (0, 1):
            run = f"{name}-trial{number}-seed{SEED}"
            assert sum(f"{run:<18} finished" in said for _, said in answers) == 1, run
    assert [(row["method"], row["trial"], row["status"]) for row in rows(tmp_path)] == [
        (name, number, "finished") for name in names for number in "01"
    ]


# Tuned values


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda name: "." not in name
)
NUMBERS = st.integers(1 - 10**18, 10**18 - 1) | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.dictionaries(NAMES.filter(lambda name: name != "train"), NUMBERS)


@given(
    st.dictionaries(NAMES, st.tuples(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))), ROWS)),
    st.floats(1e-9, 1.0),
)
def test_a_file_of_tuned_values_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, methods: dict[str, Any], lr: float
) -> None:
    """Whatever the methods and their hyperparameters are called; whole numbers and floats keep their type and every bit."""
    file = tmp_path_factory.getbasetemp() / "read-back.toml"
    rows = {name: {**row, "train.lr": lr, "train.warmup": 6} for name, (_, row) in methods.items()}
    written = tuned_values.Tuned(
        tuned_values.Tuning("gpt2-tiny", "ab12", (1000, 1001), 3), {name: said for name, (said, _) in methods.items()}, rows
    )
    files.write_text(file, written.toml())
    read = tuned_values.read(file)
    assert read == written
    assert [[(key, type(value)) for key, value in sorted(row.items())] for row in read.rows.values()] == [
        [(key, type(value)) for key, value in sorted(row.items())] for row in rows.values()
    ]
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    assert all(table["methods"][name]["train"] == {"lr": lr, "warmup": 6} for name in methods)


def test_tuned_values_reach_their_method_alone(tuned: Tuned, tmp_path: Path) -> None:
    """Its optimizer, its warm-up, its hyperparameters, its configuration; --set wins; the others stay comparable."""
    file = tmp_path / "tuned.toml"
    table = tomllib.loads(tuned.file.read_text())
    table["methods"]["ligo"] = {"train": {"lr": 5e-4, "warmup": 6}, "operator_lr": 2e-2}
    file.write_text(tuned.file.read_text().partition("[methods.ligo]")[0] + written(table["methods"], "ligo", "mine"))
    command = ["run", tuned.experiment, "--methods", tuned.methods, "--results", tmp_path, "--tuned", file]
    assert cli.main([str(part) for part in [*command, "--set", "mine.repeats=4"]]) == 0
    runs = {run.record.method: run for run in store.load_all(tmp_path / "miniature")}
    peak = {name: max(row["lr"] for row in run.curve if row["scored"]) for name, run in runs.items()}
    assert peak["ligo"] == pytest.approx(5e-4)
    assert peak["scratch"] == pytest.approx(table["methods"]["scratch"]["train"]["lr"])
    assert [row["lr"] for row in runs["ligo"].curve if row["scored"]][1:7] == pytest.approx([5e-4 * n / 6 for n in range(1, 7)])
    assert peak["mine"] == peak["source"] == pytest.approx(1e-3)
    assert [row["lr"] for row in runs["ligo"].curve if not row["scored"]] == [2e-2] * 4
    settings = {name: run.record.config.method for name, run in runs.items()}
    assert settings["ligo"].items() >= {"train.lr": 5e-4, "train.warmup": 6, "operator_lr": 2e-2, "operator_steps": 3}.items()
    assert settings["mine"]["repeats"] == 4 and "train.lr" not in settings["source"]
    source = runs.pop("source").record.config.experiment
    others = [run.record.config.experiment for run in runs.values()]
    assert all(other == others[0] and other.items() >= source.items() for other in others)
    page = (tmp_path / "miniature" / "report" / "index.html").read_text()
    assert "train.lr = 0.0005, train.warmup = 6" in page and "tuned or set by hand: scratch, ligo, mine" in page


def written(methods: dict[str, dict[str, Any]], *names: str) -> str:
    """Tables of tuned values by hand, with a table for training."""
    text = ""
    for name in names:
        values = {key: value for key, value in methods[name].items() if key != "train"}
        training = methods[name]["train"]
        for head, table in ((f"methods.{name}", values), (f"methods.{name}.train", training)):
            text += f"[{head}]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())
    return text


def test_a_report_shows_the_trials_beside_its_runs(tuned: Tuned) -> None:
    """Folded, with failures; and says who was not tuned."""
    command = ["run", tuned.experiment, "--results", tuned.results]
    assert cli.main([str(part) for part in [*command, "--methods", "stackbert"]]) == 0
    page = (tuned.results / "miniature" / "report" / "index.html").read_text()
    assert "6 trials on seed 1000" in page and "broken on purpose" in page and "ligo.operator_lr = 0.003" in page
    assert "tuned or set by hand:" not in page
    assert cli.main([str(part) for part in [*command, "--methods", "scratch", "--tuned", tuned.file]]) == 0
    page = (tuned.results / "miniature" / "report" / "index.html").read_text()
    assert "tuned or set by hand: scratch." in page and "Not tuned, and at a disadvantage: stackbert." in page


def test_seeds_of_tuning_are_refused(refused: Callable[..., str]) -> None:
    assert f"tuned on seed {SEED}: --seeds must name others than {SEED}" in refused("--seeds", f"0,{SEED}")


def test_values_of_another_experiment_are_refused(refused: Callable[..., str], tuned: Tuned) -> None:
    message = refused("--set", "train.steps=13")
    assert f"tuned on another experiment ({tuned.experiment}): give that experiment and its --set options" in message


def test_a_method_that_was_not_tuned_is_refused(refused: Callable[..., str]) -> None:
    assert "stackbert was not tuned: --methods may name scratch, ligo, mine" in refused(methods="ligo,stackbert")


def test_a_method_that_was_tuned_otherwise_is_refused(refused: Callable[..., str], tuned: Tuned, tmp_path: Path) -> None:
    """Set by hand what tuning leaves alone, or edited: the line says which. What is tuned may be set."""
    message = refused("--set", "ligo.operator_steps=4")
    assert "ligo was tuned with operator_steps = 3, and now has operator_steps = 4: give what it was tuned with" in message
    edited = tmp_path / "mine.py"
    edited.write_text(PLUGIN.replace("0.01, 1.0", "0.01, 2.0"))
    message = refused(methods=edited)
    assert message.count("mine.py sha256:") == 2
    assert "scale from 0.01 to 1.0, and now has" in message and "scale from 0.01 to 2.0: give" in message


def test_a_variant_is_tuned_and_run_as_such(untrained: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert untrained.tune("bert2bert", 1, "--set", "bert2bert.init=fpi") == 0
    assert untrained.run("bert2bert", "--set", "bert2bert.init=fpi") == 0
    assert untrained.run("bert2bert") == 2
    assert 'bert2bert was tuned with init = "fpi", and now has init = "aki"' in capsys.readouterr().err
    assert untrained.tune("bert2bert") == untrained.run("bert2bert") == 0


def test_a_file_of_an_older_version_is_refused(refused: Callable[..., str], tuned: Tuned, tmp_path: Path) -> None:
    text = tuned.file.read_text()
    file = tmp_path / "old.toml"
    file.write_text(text.partition("[variants]")[0] + text[text.index("[methods") :])
    assert f"variants is missing{TUNE_AGAIN}" in refused(file=file)


def test_a_report_says_whose_trials_it_lacks(tuned: Tuned, tmp_path: Path) -> None:
    folder = tmp_path / "miniature" / "tuning"
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text((tuned.file.parent / "trials.csv").read_text().replace("scratch,", "mslt,"))
    command = ["run", tuned.experiment, "--results", tmp_path, "--methods", "scratch", "--tuned", tuned.file]
    assert cli.main([str(part) for part in command]) == 0
    page = (tmp_path / "miniature" / "report" / "index.html").read_text()
    assert "tuned or set by hand: scratch." in page and "without trials here: scratch." in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[tuned]", "[tuned", "cannot be read: "),
        ("[tuned]", "", "unknown key experiment: "),
        ("[tuned]", "tuned = 3\n[methods.other]", f"tuned = 3: must be a table{TUNE_AGAIN}"),
        ("[variants]", "[methods.other]", f"variants is missing{TUNE_AGAIN}"),
        ("scratch = [", "scratch = 3\nother = [", "variants.scratch = 3: must be a valid array"),
        ("scratch = [", "other = [", f"variants.scratch is missing{TUNE_AGAIN}"),
        ("trials = 2", "", "tuned.trials is missing"),
        ("trials = 2", "trails = 2", "unknown key tuned.trails: did you mean trials?"),
        ("warmup = ", "wramup = ", "unknown key scratch.train.wramup: did you mean train.warmup?"),
        ("warmup = ", "# ", "scratch.train.warmup is missing"),
        ("warmup = ", "warmup = 0.", "must be a whole number"),
        ("warmup = ", "warmup = 99", "scratch.train.warmup = 99"),
        ("operator_lr = ", "operator_lr = -", "ligo: operator_lr = -"),
        ("[variants]", "[methods]\nother = 3\n[variants]", "methods.other = 3: must be a table"),
    ],
)
def test_a_garbled_file_is_refused(
    refused: Callable[..., str], tuned: Tuned, tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = tmp_path / "garbled.toml"
    file.write_text(tuned.file.read_text().replace(old, new, 1))
    answer = refused(file=file)
    assert message in answer and str(file) in answer


def test_an_absent_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert f"--tuned {tmp_path / 'none.toml'}: cannot be read: " in refused(file=tmp_path / "none.toml")
