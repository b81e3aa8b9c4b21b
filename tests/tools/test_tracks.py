"""Tracks: `growbench freeze` makes one, `growbench submit` enters a method's runs, and what is not as it was is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growbench import cli, registry
from growbench.analysis import columns, standing
from growbench.analysis.comparison import analyse
from growbench.analysis.standing import Standing
from growbench.config import loading
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.planning.budgets import Budgets
from growbench.runs import chain, tracks
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting
from growbench.tools import submit
from growbench.training.parallel import Parallel
from tests.conftest import Once, WriteMiniature

MINE = '''"""A method of one's own."""

from growbench.method import Method, Phase


class Mine(Method):
    """Train the target at half of its budget, in two phases."""

    uses_source = False
    share: float = 0.25

    def phases(self, task):
        model = task.build()
        yield Phase(model=model, share=self.share)
        yield Phase(model=model)
'''
SEEDS = [0, 1]


class Place:
    """A folder with results, a loose method, and tracks; and the commands on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.results, self.tracks = root, root / "results", root / "results" / "tracks"
        self.code, self.experiment = root / "mine.py", root / "miniature.toml"

    @property
    def track(self) -> Path:
        return self.tracks / "miniature@1"

    def run(self, name: str) -> Path:
        return self.results / "miniature" / name

    def freeze(self, *more: str) -> int:
        asked = [str(self.experiment), "--results", str(self.results), "--tracks", str(self.tracks), "--by", "Ada"]
        return cli.main(["freeze", *asked, "--set", "train.schedule=wsd", *more])

    def submit(self, *runs: str | Path, code: bool = True, more: tuple[str, ...] = ()) -> int:
        folders = [str(run if isinstance(run, Path) else self.run(run)) for run in runs or ("mine-seed0", "mine-seed1")]
        attached = ["--code", str(self.code)] if code else []
        return cli.main(
            ["submit", *folders, "--to", "miniature@1", "--tracks", str(self.tracks), "--by", "Bob", *attached, *more]
        )

    def change(self, run: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a stored run's record."""
        file = self.run(run) / "run.json"
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))

    def copy_seed(self, seed: int, to: int) -> None:
        """All runs of a seed, as if they were another's."""
        for run in sorted((self.results / "miniature").glob(f"*-seed{seed}*")):
            name = run.name.replace(f"-seed{seed}", f"-seed{to}")
            shutil.copytree(run, self.run(name))
            self.change(name, lambda record: record.update(seed=to))

    def change_rows(self, run: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Change a stored run's curve, and its digest and count in the record, as somebody would who means to deceive."""
        file = self.run(run) / "curve.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        change(rows)
        curve = "".join(f"{json.dumps(row)}\n" for row in rows)
        file.write_text(curve)
        digest = hashlib.sha256(curve.encode()).hexdigest()
        self.change(run, lambda record: record.update(evaluations=len(rows), sha256=record["sha256"] | {"curve.jsonl": digest}))


@pytest.fixture(scope="module")
def trained(write_miniature: WriteMiniature, once: Once) -> Path:
    """A ladder of two seeds of scratch, of a built-in method and of a loose one; the track, without the loose one."""
    return once("track", partial(_frozen, write_miniature))


def _frozen(write_miniature: WriteMiniature, root: Path) -> None:
    place = Place(root)
    file = write_miniature(root)
    file.write_text(file.read_text().replace('precision = "float32"', ""))
    place.code.write_text(MINE)
    experiment = loading.load(str(place.experiment), ["train.schedule=wsd", "machine.precision=float32"])
    setting = Setting(experiment, place.results / "miniature", Parallel(torch.device("cpu")))
    methods = [registry.get(spec) for spec in ("scratch", "direct_copy", str(place.code))]
    assert Benchmark(setting, Budgets.ladder(experiment, (0.5, 1.0))).run(methods, SEEDS)
    assert place.freeze() == 0


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Place:
    """A copy to spoil."""
    shutil.copytree(trained, tmp_path / "copy")
    return Place(tmp_path / "copy")


ALL = ("mine-seed0", "mine-seed1", "mine-seed0-budget0.5", "mine-seed1-budget0.5")


def refused(place: Place, said: str, capsys: pytest.CaptureFixture[str], *runs: str | Path, **asked: Any) -> None:
    """The runs are refused in one line, and nothing is written."""
    before = snapshot(place.tracks)
    capsys.readouterr()
    assert place.submit(*runs or ALL, **asked) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0], lines
    assert snapshot(place.tracks) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_track_names_what_it_freezes_and_what_was_left_out(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    track = tracks.load(place.track)
    definition = track.definition
    assert (definition.protocol, definition.seeds, definition.budgets) == ("ladder", (0, 1), (0.5, 1.0))
    assert set(definition.sha256) == {f"scratch-seed{seed}{share}" for seed in SEEDS for share in ("", "-budget0.5")} | {
        "source-seed0", "source-seed1"
    }  # fmt: skip
    finals = [json.loads((place.run(f"scratch-seed{seed}") / "run.json").read_text())["final_val_loss"] for seed in SEEDS]
    assert definition.target_loss == pytest.approx(sum(finals) / 2)
    assert definition.configuration["train"]["steps"] == 12 and definition.configuration["fingerprint"]
    (entry,) = track.entries
    assert entry.name == "direct_copy@1" and entry.origin == registry.get("direct_copy").origin
    assert entry.command == (
        f"growbench run {definition.experiment} --set train.schedule=wsd --set machine.precision=float32 --methods direct_copy "
        "--seeds 0,1 --protocol ladder --budgets 0.5,1"
    )
    assert track.precision == ("machine.precision=float32",)
    shutil.rmtree(place.run("direct_copy-seed1"))
    assert place.freeze() == 0
    out = capsys.readouterr().out
    assert "miniature@2; entries: none" in out and "left out: direct_copy: 1 of 4 runs are missing: direct_copy-seed1" in out
    assert "left out: mine: its code is not growbench's own" in out


def test_a_run_in_another_precision_than_scratch_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """In part, too, as where it was resumed."""
    again = "and scratch on miniature@1 in float32: run it again with --set machine.precision=float32"
    place.change("mine-seed1", lambda record: record["hardware"].update(earlier="device cpu, name x, precision bf16, threads 1"))
    refused(place, f"mine-seed1: was trained in bf16, {again}", capsys)
    place.change("mine-seed0", lambda record: record["hardware"].update(precision="bf16"))
    refused(place, f"mine-seed0: was trained in bf16, {again}", capsys)


def test_a_loose_method_is_entered_with_its_code_and_stands_on_the_track(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert place.submit(*ALL) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("miniature@1/entries/mine@1.toml") and [line.partition(":")[0] for line in said[1:]] == ["next"] * 2
    track = tracks.load(place.track)
    entry = track.current["mine"]
    assert (place.track / entry.code).read_text() == MINE and entry.origin.startswith("mine.py sha256:")
    assert entry.command.endswith("--methods results/tracks/miniature@1/entries/mine@1/mine.py --seeds 0,1 --protocol ladder "
                                  "--budgets 0.5,1")  # fmt: skip
    assert {path.name for path in (place.track / "entries/mine@1/mine-seed0").iterdir()} == {
        "run.json", "curve.jsonl", "documents.npy"
    }  # fmt: skip
    of_track, of_runs = Standing.of(track).comparison, analyse(place.results / "miniature")
    column = columns.saving(Unit.FLOPS, Ledger.REUSE)
    both = [found.ladder.set_index("method")[column] for found in (of_track, of_runs)]
    assert list(both[0].index) == ["scratch", "direct_copy", "mine"]
    np.testing.assert_array_equal(both[0], both[1])


def test_what_is_laid_out_elsewhere_is_the_same(place: Place, tmp_path: Path) -> None:
    before = snapshot(place.tracks)
    assert place.submit(*ALL, more=("--out", str(tmp_path / "out"))) == 0
    assert snapshot(place.tracks) == before
    assert place.submit(*ALL) == 0
    after = snapshot(place.tracks)
    assert snapshot(tmp_path / "out") == {name: after[name] for name in after if after[name] != before.get(name)}


def test_an_entry_is_superseded_by_other_runs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.submit(*ALL) == 0
    refused(place, "these runs are those of mine@1 on miniature@1 already", capsys)
    for run in ALL:
        place.change(run, lambda record: record["versions"].update(python="3.99"))
    assert place.submit(*ALL) == 0
    assert "which supersedes mine@1" in capsys.readouterr().out
    track = tracks.load(place.track)
    assert [entry.name for entry in track.entries] == ["direct_copy@1", "mine@1", "mine@2"]
    assert track.current["mine"].number == 2 and {run.name for run in track.runs if run.record.method == "mine"} == set(ALL)
    assert {run.folder.parent.name for run in track.runs if run.record.method == "mine"} == {"mine@2"}


@pytest.fixture
def wide(place: Place, capsys: pytest.CaptureFixture[str]) -> Place:
    """A track of four seeds, of which direct_copy has three: its last one lacks a budget."""
    place.copy_seed(0, 2), place.copy_seed(1, 3)
    shutil.rmtree(place.run("direct_copy-seed3-budget0.5"))
    shutil.rmtree(place.track)
    assert place.freeze() == 0
    assert "entries: direct_copy@1 (3 of 4 seeds)" in capsys.readouterr().out
    return place


def test_an_entry_may_have_fewer_seeds_and_is_compared_on_these(wide: Place) -> None:
    track = tracks.load(wide.track)
    entry = track.current["direct_copy"]
    assert track.seeds_of(entry) == (0, 1, 2) and "--seeds 0,1,2 " in entry.command and len(track.definition.seeds) == 4
    found = Standing.of(track)
    losses = {run.name: run.final_loss for run in found.runs}
    table = found.comparison.ladder.set_index("method")
    assert table.loc["direct_copy", "seeds"] == 3 and table.loc["scratch", "seeds"] == 4
    own = [losses[f"direct_copy-seed{seed}"] - losses[f"scratch-seed{seed}"] for seed in (0, 1, 2)]
    assert table.loc["direct_copy", columns.difference(Ledger.REUSE)] == pytest.approx(sum(own) / 3)
    points = standing.pareto(found).set_index(["method", "budget"])["val_loss"]
    scratch = [losses[f"scratch-seed{seed}"] for seed in range(4)]
    assert points["scratch", 1.0] == pytest.approx(sum(scratch) / 4)
    assert points["direct_copy", 1.0] == pytest.approx(sum(scratch) / 4 + sum(own) / 3)


def test_seeds_are_not_chosen(wide: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by passing one over, nor by leaving out one that failed, nor by a later entry with fewer."""
    three, passed, few = ([f"mine-seed{seed}{share}" for seed in seeds for share in ("", "-budget0.5")] for seeds in
                          ((0, 1, 2), (0, 1, 3), (0, 1)))  # fmt: skip
    refused(wide, "missing: mine-seed2, mine-seed2-budget0.5", capsys, *passed)
    refused(wide, "an entry has the first 3 seeds or more of the track at every budget; missing: mine-seed2", capsys, *few)
    assert wide.submit(*three, "mine-seed3", "mine-seed3-budget0.5") == 0
    refused(wide, "mine@1 has 4 seeds: an entry that supersedes it has as many, or more", capsys, *three)
    wide.change("direct_copy-seed3", lambda record: record.update(status="failed"))
    assert wide.freeze() == 0
    assert "left out: direct_copy: direct_copy-seed3 failed" in capsys.readouterr().out


def lower(rows: list[dict[str, Any]]) -> None:
    rows[-1]["val_loss"] = -1.0


def flattered(rows: list[dict[str, Any]]) -> None:
    rows[-1]["val_loss"] -= 0.5


def backwards(rows: list[dict[str, Any]]) -> None:
    rows[3]["step"] = 1


def not_finite(rows: list[dict[str, Any]]) -> None:
    rows[2]["val_loss"] = float("nan")


def fewer(rows: list[dict[str, Any]]) -> None:
    del rows[4]


def cheaper(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["flops"] *= 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lower, "val_loss is -1 at step"),
        (flattered, "nats beside its loss on the whole validation split"),
        (backwards, "line 4, step 1, does not follow step 2"),
        (not_finite, "line 3 is not an evaluation"),
        (fewer, "the evaluations are at other steps than those of 12 steps in 2 phases"),
        (cheaper, "the curve ends at"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(
    place: Place, capsys: pytest.CaptureFixture[str], change: Callable[[list[dict[str, Any]]], None], said: str
) -> None:
    place.change_rows("mine-seed1", change)
    refused(place, said, capsys)


def other_training(record: dict[str, Any]) -> None:
    record["config"]["experiment"]["train"]["lr"] = 0.5


def half_the_cost(record: dict[str, Any]) -> None:
    """In all places that must agree, the curve apart."""
    record["cost"]["flops"]["train"] /= 2
    for phase in record["phases"]:
        phase["flops_per_step"] = {account: each / 2 for account, each in phase["flops_per_step"].items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_training, "has another configuration than miniature@1: train.lr is 0.5, and must be 0.001"),
        (lambda record: record.update(status="failed"), "has not finished: failed"),
        (lambda record: record.update(seed=7), "mine-seed7 is none of the track"),
        (lambda record: record.update(origin="mine.py sha256:0123456789abcdef"), "origin is 'mine.py sha256:0123456789abcdef'"),
        (lambda record: record["config"]["method"].update(share=0.5), "has other hyperparameters"),
        (lambda record: record["config"].update(stop_at_loss=5.0), "stopped at a target"),
        (lambda record: record.update(method="../../x"), "method is '../../x'"),
        (lambda record: record.update(steps=7), "run.json says 7 steps, and there are 12"),
        (lambda record: record.update(tokens=7), "run.json says 7 tokens, and there are"),
        (lambda record: record.update(control=True), "control is True, and False in mine"),
        (lambda record: record["cost"]["flops"].update(source=5), "is charged 5 FLOPs for its source, which cost 0"),
        (lambda record: record["config"]["experiment"].update(extra=1), "extra is 1, and must be missing"),
        (lambda record: record["sha256"].pop("curve.jsonl"), "was stored by an earlier version, without digests"),
    ],
)
def test_a_run_that_does_not_belong_is_refused(
    place: Place, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], None], said: str
) -> None:
    place.change("mine-seed1", change)
    refused(place, said, capsys)


def test_a_run_that_is_cheaper_than_its_plan_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Although its curve and its record agree."""
    for run in ALL:
        place.change(run, half_the_cost)
        place.change_rows(run, cheaper)
    refused(place, "differs from the plan of mine", capsys)


def test_a_source_that_is_said_to_be_free_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    others = [place.run(run.replace("mine", "direct_copy")) for run in ALL]
    free = [shutil.copytree(run, place.root / run.name) for run in others]
    for run in free:
        record = json.loads((run / "run.json").read_text())
        record["cost"]["flops"]["source"] = 0
        (run / "run.json").write_text(json.dumps(record))
    refused(place, "is charged 0 FLOPs for its source, which cost", capsys, *free, code=False)


def test_other_losses_by_document_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    file = place.run("mine-seed0") / "documents.npy"
    documents = np.load(file)
    documents[:, 1] += 1
    np.save(file, documents)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    place.change("mine-seed0", lambda record: record["sha256"].update({"documents.npy": digest}))
    refused(place, "of another validation split than scratch's", capsys)


def test_missing_and_repeated_runs_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    refused(place, "missing: mine-seed1, mine-seed1-budget0.5", capsys, "mine-seed0", "mine-seed0-budget0.5")
    refused(place, "mine-seed0 was given twice", capsys, *ALL, "mine-seed0")
    refused(place, "scratch belongs to the frozen runs", capsys, "scratch-seed0")
    (place.run("mine-seed0") / "curve.jsonl").write_text("")
    refused(place, "curve.jsonl is damaged (0 evaluations", capsys)


def test_other_code_than_that_of_the_runs_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    refused(place, "attach its file with --code FILE.py", capsys, code=False)
    place.code.write_text(MINE.replace("Phase(model=model)", "Phase(model=model, name='end')"))
    refused(place, "run it again with this code", capsys)
    place.code.write_text("import other_part\n" + MINE)
    (place.root / "other_part.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place.root)
        origin = registry.get(str(place.code)).origin
        for run in ALL:
            place.change(run, lambda record: record.update(origin=origin))
        refused(place, "mine.py imports other_part.py: the method of an entry is one file", capsys)
    others = [run.replace("mine", "direct_copy") for run in ALL]
    refused(place, "--code: direct_copy is the name of a method that is known", capsys, *others)


def test_attacks_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that leads elsewhere, links, files that are none, and a huge one that is never read."""
    for run in ALL:
        place.change(run, lambda record: record.update(method="../../../evil"))
    refused(place, "a method cannot be named '../../../evil'", capsys)
    curve = place.run("mine-seed0") / "curve.jsonl"
    kept = curve.with_name("kept")
    curve.rename(kept)
    curve.symlink_to(kept)
    refused(place, "must be a plain file, and no link", capsys)
    curve.unlink()
    os.mkfifo(curve)
    refused(place, "must be a plain file, and no link", capsys)
    curve.unlink()
    with curve.open("wb") as file:
        file.truncate(2**40)
    refused(place, "is larger than", capsys)
    linked = place.root / "linked"
    linked.symlink_to(place.run("mine-seed1"))
    refused(place, "must be a folder, and no link", capsys, linked)
    refused(place, "no track '../x' in", capsys, more=("--to", "../x"))


def test_an_entry_is_not_written_through_a_link(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "elsewhere").mkdir()
    (place.track / "entries/mine@1").symlink_to(place.root / "elsewhere")
    refused(place, "entries/mine@1: must be a folder, and no link", capsys)
    (place.track / "entries/mine@1").unlink()
    (place.track / "entries").rename(place.root / "entries")
    (place.track / "entries").symlink_to(place.root / "entries")
    refused(place, "miniature@1/entries: must be a folder, and no link", capsys)
    assert not any((place.root / "elsewhere").iterdir()) and not (place.root / "entries/mine@1").exists()


def test_nothing_is_left_of_an_entry_that_cannot_be_written(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == chain.FILE:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(submit, "write_text", full)
    refused(place, "No space left on device; choose another folder", capsys)
    assert not (place.track / "entries/mine@1").exists()


def test_runs_are_not_taken_from_where_they_are_laid_out(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    laid_out = place.track / "entries/mine@1"
    shutil.copytree(place.results / "miniature", laid_out)
    refused(place, "lies where the entry is laid out", capsys, *(laid_out / run for run in ALL))


def test_an_edited_entry_is_refused_by_every_command(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entry = place.track / "entries" / "direct_copy@1.toml"
    entry.write_text(entry.read_text().replace('"Ada"', '"Eve"'))
    refused(place, "entries/direct_copy@1.toml is not as it was when chain.txt recorded it", capsys)
    with pytest.raises(UsageError, match="never edited"):
        tracks.load_all(place.tracks)


def rewritten(place: Place, name: str, old: str, new: str) -> None:
    """Edit a file and make the chain anew, as somebody would who means to deceive."""
    file = place.track / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    names = [line.partition("  ")[2] for line in (place.track / chain.FILE).read_text().splitlines()]
    (place.track / chain.FILE).unlink()
    for each in names:
        (place.track / chain.FILE).write_text(chain.extended(place.track, each, (place.track / each).read_bytes()))


def test_a_chain_made_anew_has_another_head_and_leads_nowhere_else(place: Place) -> None:
    before = tracks.load(place.track).head
    rewritten(place, "entries/direct_copy@1.toml", '"Ada"', '"Eve"')
    track = tracks.load(place.track)
    assert track.head != before
    rewritten(place, "entries/direct_copy@1.toml", f'runs = "{track.definition.runs}"', 'runs = "../../../../.."')
    with pytest.raises(UsageError, match="leads out of"):
        tracks.load(place.track).runs  # noqa: B018


def test_a_frozen_run_and_the_target_cannot_change(place: Place) -> None:
    track = tracks.load(place.track)
    rewritten(place, "track.toml", f"target_loss = {track.definition.target_loss!r}", "target_loss = 9.5")
    with pytest.raises(UsageError, match=r"target_loss = 9\.5, and scratch ends at"):
        Standing.of(tracks.load(place.track))
    place.change("scratch-seed0", lambda record: record.update(final_val_loss=9.0))
    with pytest.raises(UsageError, match="scratch-seed0 is not the run that miniature@1 holds"):
        tracks.load(place.track).runs  # noqa: B018


def test_a_track_needs_complete_runs_of_scratch_by_this_experiment(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place.run("scratch-seed1-budget0.5"))
    assert place.freeze() == 2
    assert "1 of 4 runs are missing: scratch-seed1-budget0.5" in capsys.readouterr().err
    assert place.freeze("--set", "train.lr=0.5") == 2
    assert "train.lr is 0.001, and must be 0.5; give with --set what it was made with" in capsys.readouterr().err
    assert [path.name for path in place.tracks.iterdir()] == ["miniature@1"]


def test_the_front_is_what_no_other_run_beats(place: Place) -> None:
    table = standing.pareto(Standing.of(tracks.load(place.track)))
    assert len(table) == 4 and set(table["seeds"]) == {2}
    for ledger in Ledger:
        points = list(zip(table[f"flops_{ledger}"], table["val_loss"], strict=True))
        beaten = [any(each != point and each[0] <= point[0] and each[1] <= point[1] for each in points) for point in points]
        assert list(table[standing.front(ledger)]) == [not each for each in beaten]
