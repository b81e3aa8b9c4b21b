"""The stages of `growbench run`: each method that is not growbench's own in a process of its own, all others in one.

To import a plugin is to run its code. So scratch, the source and the built-in methods are trained in a process that imports none,
and the process of the command neither imports any nor trains.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from growbench import registry
from growbench.config import loading
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.errors import UsageError

if TYPE_CHECKING:
    import torch

    from growbench.planning.budgets import Budgets, MethodCost
    from growbench.registry import Found
    from growbench.runs.benchmark import Benchmark
    from growbench.runs.jobs import Setting


def train(options: argparse.Namespace, specs: Sequence[str], experiment: Experiment) -> bool:
    """Train the methods that these specs name. False if one failed. Raises UsageError before any training."""
    own, foreign = split(specs, experiment)
    options.only = _selected(options, specs, experiment)
    if options.workers > 1:
        from growbench.tools import at_once

        return at_once.train(options, own, foreign)
    return _train_apart(options, own, foreign) if foreign else _train(options, own)


def _selected(options: argparse.Namespace, specs: Sequence[str], experiment: Experiment) -> frozenset[str] | None:
    """The names of the runs to train; None: all. Raises UsageError for --only of what is no run of this request."""
    if options.only is None:
        return None
    from growbench.runs import store
    from growbench.tools import shares

    methods = registry.named(specs, experiment.methods)
    request = shares.units(experiment, methods, options.seeds, _shared_budgets(options, experiment))
    trained = [] if experiment.pretrained else [store.name(registry.SOURCE, seed) for seed in options.seeds]
    return shares.selected(options.only, request, trained, any_budget=options.protocol == "equal-cost")


def split(specs: Sequence[str], experiment: Experiment) -> tuple[list[str], list[str]]:
    """Growbench's own methods, and those that a process must not import if it trains others."""
    named = registry.named(specs, {})
    foreign = [
        spec for name, spec in named.items() if registry.is_foreign(spec, registry.options_of(name, spec, experiment.methods))
    ]
    return [spec for spec in specs if spec not in foreign], foreign


def _train_apart(options: argparse.Namespace, own: Sequence[str], foreign: Sequence[str]) -> bool:
    """Train growbench's own methods in one process, and each other method in one of its own. False if a method failed.

    This process imports no plugin and trains nothing. Before any training, each plugin is checked, also in a process of its own.
    """
    from growbench.runs.apart import Died, apart

    checked = check_apart(options, foreign)
    seeds = sorted({seed for each in checked.values() for seed in each.sources})
    costs = {each.name: each.cost for each in checked.values() if each.cost}
    succeeded = apart(_train, options, own, seeds, costs)
    for spec, each in checked.items():
        try:
            succeeded &= apart(_train_alone, options, spec)
        except Died as error:
            say(f"{each.name:<18} failed: its process {error} before its runs were finished")
            succeeded = False
    return succeeded


def check_apart(options: argparse.Namespace, foreign: Sequence[str]) -> dict[str, Checked]:
    """What is known of plugins, each of which is checked in a process of its own. Raises UsageError if one cannot run."""
    from growbench.runs.apart import Died, apart

    checked = {}
    for spec in foreign:
        try:
            checked[spec] = apart(_check_alone, options, spec)
        except Died as error:
            raise UsageError(f"{spec}: its process {error} while the method was loaded and planned") from None
    return checked


@dataclass(frozen=True)
class Checked:
    """What is known of a method once it has been planned in a process of its own."""

    name: str
    sources: list[int]  # the seeds whose source it grows in a run that is left to train
    cost: MethodCost | None  # for the protocol equal-cost


def _check_alone(options: argparse.Namespace, spec: str) -> Checked:
    """Raises UsageError if the method cannot be loaded or cannot run."""
    from growbench.planning.budgets import method_cost

    experiment, (found,) = asked(options, [spec])
    benchmark = benchmark_of(options, setting_of(options, experiment, f"check {spec}"))
    data = benchmark.check([found])
    cost = None
    if options.protocol == "equal-cost":
        cost = method_cost(experiment, found, data.vocabulary, benchmark.setting.parallel.dp_degree)
    return Checked(found.name, benchmark.growing([found], options.seeds, data), cost)


def _train_alone(options: argparse.Namespace, spec: str) -> bool:
    """Train a method that has been checked. False if it failed."""
    experiment, methods = asked(options, [spec])
    setting = setting_of(options, experiment, f"train {spec}")
    return benchmark_of(options, setting, follows=True).run(methods, options.seeds)


def _train(
    options: argparse.Namespace,
    specs: Sequence[str],
    sources_of: Sequence[int] = (),
    costs: Mapping[str, MethodCost] | None = None,
) -> bool:
    """Train methods, and the source of these seeds. `costs`: of methods that are trained elsewhere. False if a method failed."""
    experiment, methods = asked(options, specs)
    benchmark = benchmark_of(options, setting_of(options, experiment))
    benchmark.budgets = budgets_of(options, experiment, methods, benchmark.setting.parallel.dp_degree, costs)
    return benchmark.run(methods, options.seeds, sources_of)


def asked(options: argparse.Namespace, specs: Sequence[str]) -> tuple[Experiment, list[Found]]:
    """The experiment, and some of the methods that were asked for, with their hyperparameters and tuned values."""
    experiment = experiment_of(options)
    named = registry.named(specs, {})
    methods = [registry.get(spec, registry.options_of(name, spec, experiment.methods)) for name, spec in named.items()]
    if options.tuned:
        from growbench.tools import tuned_values

        by_hand = [override.partition("=")[0].strip().removeprefix("methods.") for override in options.set]
        methods = tuned_values.apply(options.tuned, experiment, methods, options.seeds, by_hand)
    return experiment, methods


def setting_of(options: argparse.Namespace, experiment: Experiment, stage: str = "") -> Setting:
    """What all runs share. `stage`: of the processes that torchrun started, if there are any."""
    from growbench.costs.hardware import choose_device
    from growbench.runs.jobs import Setting, settled
    from growbench.training import parallel

    processes = parallel.start(choose_device(options.device), options.tensor_parallel, options.shard, stage)
    stop_at_loss = options.target_loss if options.stop_at_target else None
    folder = options.results / experiment.name
    return Setting(settled(experiment, processes, folder), folder, processes, stop_at_loss, options.save, options.track)


def settled_for(options: argparse.Namespace, experiment: Experiment, device: torch.device) -> Experiment:
    """The experiment with the precision of the runs that are asked for, in one process that trains none of them."""
    from growbench.runs.jobs import settled
    from growbench.training.parallel import Parallel

    return settled(experiment, Parallel(device), options.results / experiment.name)


def benchmark_of(options: argparse.Namespace, setting: Setting, follows: bool = False) -> Benchmark:
    """The benchmark, with the budgets that all methods share."""
    from growbench.runs.benchmark import Benchmark

    return Benchmark(setting, _shared_budgets(options, setting.experiment), options.target_loss, follows, options.only)


def _shared_budgets(options: argparse.Namespace, experiment: Experiment) -> Budgets:
    """Those that every method has."""
    from growbench.planning.budgets import LADDER, Budgets

    return Budgets.ladder(experiment, options.budgets or LADDER) if options.protocol == "ladder" else Budgets()


def budgets_of(
    options: argparse.Namespace,
    experiment: Experiment,
    methods: Sequence[Found],
    dp_degree: int = 1,
    costs: Mapping[str, MethodCost] | None = None,
) -> Budgets:
    """`costs`: of methods that are planned elsewhere."""
    from growbench.data.shapes import vocabulary_size
    from growbench.planning.budgets import equal_cost
    from growbench.runs import saved_models

    if options.protocol != "equal-cost":
        return _shared_budgets(options, experiment)
    pretrained_flops = saved_models.flops(experiment.pretrained) if experiment.pretrained else None
    return equal_cost(experiment, methods, vocabulary_size(experiment.data), pretrained_flops, dp_degree, costs)


def specs_of(names: str | None, experiment: Experiment) -> list[str]:
    """What was asked for, scratch first. Imports no method. Raises UsageError as registry.named does."""
    return list(registry.named(["scratch", *expanded("all" if names is None else names)], experiment.methods).values())


def expanded(names: str) -> list[str]:
    """The specs in a list with commas; "all" stands for every method that has a name."""
    words = [word.strip() for word in names.split(",") if word.strip()]
    return list(dict.fromkeys(spec for word in words for spec in (registry.names() if word == "all" else [word])))


def experiment_of(options: argparse.Namespace) -> Experiment:
    """The experiment that was asked for; the sizes of a pretrained source are read from its checkpoint.

    A forecast takes those that the experiment states, so that it needs no network.
    """
    experiment = loading.load(options.experiment, options.set)
    prepare()
    pretrained = experiment.pretrained
    if pretrained is None or (pretrained.stated and getattr(options, "dry_run", False)):
        return experiment
    from growbench.runs import saved_models

    return saved_models.resolved(experiment)


def prepare() -> None:
    """Let the process keep freed memory, and keep messages and questions of libraries out of the progress display."""
    import huggingface_hub
    import transformers
    from transformers import dynamic_module_utils

    from growbench.costs import memory

    memory.keep_freed()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # refuse code beside a model instead of asking on stdin whether to run it
