"""Units, accounts and ledgers of costs. Their values are the names in run.json and in the reports' CSV files."""

from __future__ import annotations

from enum import StrEnum


class Unit(StrEnum):
    """What a cost is measured in."""

    FLOPS = "flops"  # multiply-add = 2, matrix products only
    SECONDS = "seconds"  # wall time


class Account(StrEnum):
    """What a run's costs are for: every FLOP and every second of it is in one account."""

    SOURCE = "source"  # training of the small model, in a run of its own: charged in the build ledger only
    GROWTH = "growth"  # what a method computes between two phases: charged
    OPERATOR = "operator"  # training steps outside of the budget, as those that learn a growth operator: charged
    TEACHER = "teacher"  # a teacher's forward passes in training steps: charged
    TRAIN = "train"  # training steps of the budget: charged
    EVALUATION = "evaluation"  # losses on held-out data: recorded, never charged
    COMPILATION = "compilation"  # torch.compile at a phase's start: recorded, never charged
    OPTIMIZER = "optimizer"  # FLOPs of matrix products in an optimizer's step, as Muon's: recorded, never charged
    OVERHEAD = "overhead"  # counting FLOPs, saving, a teacher whose outputs count as stored, all the rest: never charged


class Part(StrEnum):
    """A part of the machine whose energy is measured."""

    GPU = "gpu"  # the GPUs of the run, with their memory
    CPU = "cpu"  # all CPU packages, with their memory where it has a counter of its own


class Ledger(StrEnum):
    """Which accounts a method is charged for."""

    REUSE = "reuse"  # the source model is there already, and free
    BUILD = "build"  # the source model is trained for this, and charged


CHARGED = (Account.GROWTH, Account.OPERATOR, Account.TEACHER, Account.TRAIN)  # build adds the source
UNCHARGED = (Account.EVALUATION, Account.COMPILATION, Account.OVERHEAD)  # with seconds; an optimizer's are those of its step
