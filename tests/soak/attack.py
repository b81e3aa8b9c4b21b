"""Attack growbench in every way that has been thought of, and say what it kept. Exits with 1 if something was not kept.

    python -m tests.soak.attack                 all attacks, and the table results/soak/attack.txt
    python -m tests.soak.attack --list          what there is
    python -m tests.soak.attack --only NAME     one of them, or all whose name begins so

A new attack is a function in a file of tests/soak/attacks; tests/soak/attempt.py says what it is given. `make test` carries out
those that are marked as short.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.soak.attempt import ATTACKS, Attack, Attempt

TABLE = Path("results/soak/attack.txt")
COMMAND = "$ python -m tests.soak.attack"
HEAD = ("attack", "what was done", "what must hold", "what happened", "kept?")

for file in sorted((Path(__file__).parent / "attacks").glob("*.py")):
    importlib.import_module(f"tests.soak.attacks.{file.stem}")


def carry_out(attack: Attack, folder: Path, shared: Path) -> tuple[str, bool]:
    """What happened, and whether growbench kept what it must. `shared`: see Attempt."""
    try:
        return attack.carry_out(Attempt(folder, shared)), True
    except AssertionError as error:
        return " ".join(str(error).split()), False
    except Exception as error:  # of the attack itself
        return f"{type(error).__name__}: {' '.join(str(error).split())}", False


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.attack", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", metavar="NAME", help="attacks whose name begins so; no table is written")
    parser.add_argument("--list", action="store_true", help="print the names of the attacks and what they do")
    options = parser.parse_args()
    chosen = [attack for name, attack in sorted(ATTACKS.items()) if name.startswith(options.only)]
    if not chosen:
        parser.error(f"no attack's name begins with {options.only!r}: see --list")
    if options.list:
        print("\n".join(f"{attack.name:<40} {attack.does}" for attack in chosen))
        return 0
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # other numbers of threads give other bits
    rows, lost = [row(*HEAD), row(*["---"] * len(HEAD))], 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:  # each waits for a process of growbench
        ends = pool.map(lambda attack: carry_out(attack, Path(folder) / attack.name, Path(folder) / "shared"), chosen)
        for attack, (happened, kept) in zip(chosen, ends, strict=True):
            lost += not kept
            rows.append(row(attack.name, attack.does, attack.must, happened, "yes" if kept else "NO"))
            print(rows[-1], flush=True)
    end = f"{len(chosen) - lost} of {len(chosen)} attacks: what must hold was kept"
    print(end)
    if not options.only:
        TABLE.write_text("\n".join([COMMAND, *rows, "", end, ""]), encoding="utf-8")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
