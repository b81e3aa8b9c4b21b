"""The command line: a request is carried out, and whatever stops it is said in one line. The exit code tells how it ended."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from growbench.arguments import parser
from growbench.console import lasting_streams, say
from growbench.errors import FailedAlone, UsageError
from growbench.runs import signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 1 a method failed, 2 wrong request, 130 interrupted.

    It does not depend on whether somebody reads stdout to its end. 1 also where stdout cannot be written, as on a full disk.
    """
    with lasting_streams() as out:
        code = _carry_out(_parsed(arguments))
        out.flush()
        if out.lost is None or isinstance(out.lost, BrokenPipeError):
            return code
        say(f"growbench: cannot write to stdout: {out.lost.strerror}")
        return code or 1


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options. Exits with code 2 and one line if they are not known."""
    top = parser()
    options, unknown = top.parse_known_args(arguments)
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}; {options.prog} --help lists all")
    return options


def _carry_out(options: argparse.Namespace) -> int:
    try:
        with signals.raising():
            return _do(options)
    except UsageError as error:
        say(f"growbench: {error}")
        return 2
    except OSError as error:
        if error.strerror is None:  # not of the operating system
            raise
        say(f"growbench: {f'{error.filename}: ' if error.filename else ''}{error.strerror}")
        return 2
    except FailedAlone as error:
        say(str(error))
        os._exit(1)  # an orderly end would wait for the others
    except KeyboardInterrupt:
        say("growbench: interrupted" + ("; finished work is kept, and the same command resumes" if _stores_runs(options) else ""))
        return 130


def _stores_runs(options: argparse.Namespace) -> bool:
    trains = options.command in ("run", "tune") or getattr(options, "aa", None) is not None
    return trains and not getattr(options, "dry_run", False)


def _do(options: argparse.Namespace) -> int:
    from growbench import commands  # --help does without it

    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and options.command != "run":
        raise UsageError("torchrun starts several processes: only growbench run works with them")
    code: int = getattr(commands, options.command)(options)
    return code
