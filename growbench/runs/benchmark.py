"""The runs of one experiment: methods x seeds x budgets. Finished runs are skipped; a failed run does not stop the others."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from growbench import architectures
from growbench.console import say
from growbench.data import Data, tokenizer_to_save
from growbench.elapsed import Part, elapsed
from growbench.errors import UsageError
from growbench.files import check_folder
from growbench.planning import plan
from growbench.planning.branches import branching_steps
from growbench.planning.budgets import Budgets
from growbench.registry import SCRATCH, SOURCE, Found
from growbench.runs import store
from growbench.runs.claims import Claims
from growbench.runs.execution import Branch, Execution
from growbench.runs.jobs import Job, Setting
from growbench.runs.records import RunStatus
from growbench.runs.sources import Sources
from growbench.training import tensor_parallel

Ladder = Sequence[Job]  # one method on one seed at some budgets, the longest first


class JobState(Enum):
    """The state of a method on one seed, over all budgets."""

    DONE = "done"
    FAILED = "failed"
    ELSEWHERE = "elsewhere"  # another process is training it


class Benchmark:
    """Trains methods on one experiment.

    `target_loss`: nats; None: the mean loss at the end of scratch's curves. `follows`: a benchmark in another process has checked
    the experiment and the methods, and has trained scratch and the source, which this one only reads. `only`: names of the runs
    to train, and of sources; None: all.
    """

    def __init__(
        self,
        setting: Setting,
        budgets: Budgets | None = None,
        target_loss: float | None = None,
        follows: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        self.setting, self.budgets, self.target_loss, self.follows = setting, budgets or Budgets(), target_loss, follows
        self.only = only
        self.claims = Claims(setting.folder, setting.parallel)
        self.sources = Sources(setting, self.claims, trains=not follows)

    def run(self, methods: Iterable[Found], seeds: Iterable[int], sources_of: Collection[int] = ()) -> bool:
        """Train all runs that are not finished, scratch first: it sets the target. Returns False if a method failed.

        Methods that are not growbench's own come last, when all that they could change is trained: scratch, the sources, the
        other methods. `sources_of`: seeds whose source is trained too. Raises UsageError, before any training, for a request that
        cannot be carried out.
        """
        methods, seeds = list(methods), list(seeds)
        data = self.setting.load_data("target") if self.follows else self.prepare(methods)
        with elapsed.part(Part.OTHER):
            return self._train(methods, seeds, sources_of, data)

    def _train(self, methods: Sequence[Found], seeds: Sequence[int], sources_of: Collection[int], data: Data) -> bool:
        """Train what `run` has checked."""
        foreign = [found for found in methods if found.foreign and found.name != SCRATCH]
        scratch = [found for found in methods if found.name == SCRATCH]
        others = [found for found in methods if not (found.foreign or found.name == SCRATCH)]
        first = self.round(data)
        succeeded = first.finish(self._ladders(scratch, seeds))
        rest = replace(first, target_loss=self.shown_target(seeds))
        succeeded &= rest.finish(self._ladders(others, seeds))
        named = self._named_sources(seeds)
        for seed in sorted({*sources_of, *named, *(self.growing(foreign, seeds, data) if foreign else ())}):
            succeeded &= self.sources.of(seed) is not None or seed not in named
        if foreign:
            self.sources.trains = False
            succeeded &= rest.finish(self._ladders(foreign, seeds))
        return succeeded

    def prepare(self, methods: Iterable[Found]) -> Data:
        """Load the data, and say what is unusual. Raises UsageError for a request that cannot be carried out."""
        data = self.check(methods)
        if self.setting.parallel.is_main_process:
            check_folder(self.setting.folder)
        self._announce(data)
        return data

    def round(self, data: Data, target_loss: float | None = None) -> Round:
        """`target_loss`: if the request has none."""
        return Round(self.setting, self.claims, self.sources, data, self.target_loss or target_loss)

    def shown_target(self, seeds: Iterable[int]) -> float | None:
        """The target loss that progress is shown with: by default what scratch has reached; None if it is not known yet."""
        return self._scratch_loss(seeds) if self.target_loss is None else self.target_loss

    def sources_left(self, methods: Iterable[Found], seeds: Sequence[int], data: Data) -> list[int]:
        """The seeds whose source is trained here, or is to be there before a run is trained."""
        if self.setting.experiment.pretrained:
            return []
        return sorted({*self._named_sources(seeds), *self.growing(methods, seeds, data)})

    def _named_sources(self, seeds: Iterable[int]) -> list[int]:
        """The seeds whose source is among the runs to train."""
        return [seed for seed in seeds if store.name(SOURCE, seed) in (self.only or ())]

    def _ladders(self, methods: Iterable[Found], seeds: Iterable[int]) -> list[Ladder]:
        """The runs to do of each method on each seed, at every budget, the longest first."""
        every = [[Job(found, seed, share) for share in self.budgets.of(found.name)] for seed in seeds for found in methods]
        ladders = [[job for job in ladder if self.only is None or job.name in self.only] for ladder in every]
        return [ladder for ladder in ladders if ladder]

    def check(self, methods: Iterable[Found]) -> Data:
        """Load the data. Raises UsageError for a request that cannot be carried out."""
        setting, experiment = self.setting, self.setting.experiment
        self.sources.pretrained_cost()
        plan.check_sizes(experiment, 1000)  # with any vocabulary, before the data are prepared
        data = setting.load_data("target")
        with elapsed.part(Part.PLAN):
            for found in methods:
                for share in self.budgets.of(found.name):
                    plan.refuse(experiment.at(share, found.training), found, data.vocabulary, setting.parallel.device)
        _check_parallelism(setting)
        if setting.save:
            tokenizer_to_save(data)  # raises UsageError if there is none
        return data

    def growing(self, methods: Iterable[Found], seeds: Iterable[int], data: Data) -> list[int]:
        """The seeds on which one of these methods has a run left to train that grows a source."""
        jobs = [job for ladder in self._ladders(methods, seeds) for job in ladder]
        return sorted({job.seed for job in jobs if job.uses_source and not self.setting.is_done(job, data)})

    def _announce(self, data: Data) -> None:
        """Print what is unusual about the experiment."""
        asked, source_cost = self.setting.experiment.data.evaluation_batches, self.sources.pretrained_cost()
        if data.evaluation_batches < asked:
            say(f"validation data fill {data.evaluation_batches} batches, not {asked}")
        if source_cost and None in (source_cost.flops, source_cost.seconds):
            say(f"source: {store.UNKNOWN_SOURCE}")

    def _scratch_loss(self, seeds: Iterable[int]) -> float | None:
        """The mean loss at the end of the curves of the scratch runs that finished; None if none did."""
        runs = [store.load(self.setting.folder / store.name(SCRATCH, seed)) for seed in seeds]
        losses = [run.curve_loss for run in runs if run and run.finished]
        return statistics.fmean(losses) if losses else None


@dataclass(frozen=True)
class Round:
    """Jobs of a benchmark that know the same target loss: those of scratch, and then those of the other methods."""

    setting: Setting
    claims: Claims
    sources: Sources
    data: Data
    target_loss: float | None  # nats; for progress only

    def finish(self, ladders: Sequence[Ladder]) -> bool:
        """Do all jobs: first those that no other process is training, then wait for the others. Returns False if one failed."""
        succeeded, left = True, list(ladders)
        elsewhere: set[str] = set()  # jobs that another process was training
        while left:
            done = [self._work(ladder, ladder[0].name in elsewhere) for ladder in left]
            succeeded &= JobState.FAILED not in done
            left = [ladder for ladder, state in zip(left, done, strict=True) if state == JobState.ELSEWHERE]
            if names := {ladder[0].name for ladder in left}:
                self.claims.wait(names - elsewhere)
                elsewhere |= names
        return succeeded

    def _work(self, ladder: Ladder, was_elsewhere: bool) -> JobState:
        """Train a method on a seed, unless it is done, or another process is training it or failed to."""
        full = replace(ladder[0], budget_share=1.0)
        with self.claims.claimed(*(job.name for job in ladder)) as mine:
            if not mine:
                return JobState.ELSEWHERE
            missing = [job for job in ladder if not self.setting.done(job, self.data)]
            for job in ladder:  # a killed process may have left some
                if not missing or (job not in missing and job != full):
                    self.setting.checkpoints_of(job).remove()
            if not missing:
                return JobState.DONE
            stored = [run for job in missing if (run := store.load(self.setting.folder_of(job)))]
            if was_elsewhere and any(run.record.status == RunStatus.FAILED for run in stored):
                return JobState.FAILED
            if full.uses_source and self.sources.of(full.seed) is None:
                say(f"{full.name:<18} needs the small model, whose training failed")
                return JobState.FAILED
            return self._climb(missing)

    def _climb(self, ladder: Sequence[Job]) -> JobState:
        """Train one method at several budgets, the longest first. With the schedule wsd, shorter ones branch off the full one."""
        full = replace(ladder[0], budget_share=1.0)
        trunk = self.setting.checkpoints_of(full)
        steps = self._branching_steps(full, ladder)
        finished = []
        for job in ladder:
            checkpoint = trunk.branch(steps[job.name]) if job.name in steps else None
            branch = Branch(trunk, checkpoint) if checkpoint else None
            source = self.sources.of(job.seed) if job.uses_source else None
            execution = Execution(self.setting, job, self.data, source, branch, steps.values() if job == full else ())
            finished.append(execution.run(self.target_loss) == RunStatus.FINISHED)
        if (self.setting.folder_of(full) / "run.json").is_file():  # otherwise it is to be resumed first
            trunk.remove()
        return JobState.DONE if all(finished) else JobState.FAILED

    def _branching_steps(self, full: Job, ladder: Sequence[Job]) -> dict[str, int]:
        """By name, the number of scored steps after which jobs branch off the run at the full budget. A longer job never does."""
        jobs = [job for job in ladder if job.budget_share < 1]
        longer, *shorter = (self.setting.experiment.at(job.budget_share, full.found.training) for job in (full, *jobs))
        steps = branching_steps(longer, shorter, full.found.method, self.data.vocabulary)
        return {job.name: step for job, step in zip(jobs, steps, strict=True) if step is not None}


def _check_parallelism(setting: Setting) -> None:
    """Raise UsageError if the processes cannot divide the batch or the model among them."""
    experiment, dp_degree, tp_degree = setting.experiment, setting.parallel.dp_degree, setting.parallel.tp_degree
    for training in (experiment.train, experiment.source_train):
        rows, left = divmod(training.batch, dp_degree)
        if left:
            raise UsageError(f"batch = {training.batch}: must be divisible by the data-parallel degree, {dp_degree}")
        if rows % experiment.machine.micro_batch_size(rows):
            raise UsageError(
                f"batch = {training.batch}: {rows} rows for each of {dp_degree} data-parallel processes: "
                f"must be divisible by micro_batch = {experiment.machine.micro_batch}"
            )
    if dp_degree > 1 and tp_degree > 1 and experiment.machine.compile == "on":
        raise UsageError(
            'machine.compile = "on": torch cannot compile models under data and tensor parallelism together; '
            "allowed here: auto, off"
        )
    if tp_degree > 1:
        for which in ("source", "target"):
            tensor_parallel.check(architectures.of(experiment, which), experiment.sizes(which, 1), tp_degree)
