"""The accounts that costs are kept in."""

from __future__ import annotations

UNITS = ("flops", "seconds")


LEDGERS = ("reuse", "build")  # the source model is free; the source model is charged


CHARGED = ("growth", "operator", "teacher", "train")  # accounts of the reuse ledger; the build ledger adds `source`


UNCHARGED = ("evaluation", "compilation", "overhead")
