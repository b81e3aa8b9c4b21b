"""Reports: of one experiment a page with tables and figures; of several also a board.

Everything a page shows lies beside it: every table as CSV, every figure as PNG and SVG with its data as CSV. The data of the
figures of savings are savings.csv and ladder_savings.csv.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from growbench.analysis import equal_cost, tables
from growbench.analysis.comparison import Comparison, analyse
from growbench.analysis.protocols import Protocol
from growbench.analysis.standing import Standing
from growbench.config import plain
from growbench.console import say
from growbench.errors import UsageError
from growbench.report import board, board_tracks, page, plots, sheets, terminal
from growbench.runs import store, tracks

VERDICT = "verdict.txt"  # of a report, for a terminal
# folders among experiments, or among runs, that are neither
NO_EXPERIMENTS = ("report", store.TUNING, store.REPLACED, tracks.FOLDER)


def make(folder: Path, out: Path | None = None, target_loss: float | None = None, price: float | None = None) -> Path:
    """Write the report of the runs in `folder` to `out` (default: `folder`/report), and give the path of its index.html.

    `price`: of an hour; with it, the page says what methods cost. Raises UsageError when there is nothing to compare, or `out`
    cannot be written.
    """
    above = folder.parent / "report" / "index.html"
    return _write(_analyse(folder, target_loss, price), out or folder / "report", above if above.is_file() else None)


def make_all(folder: Path, out: Path | None = None, target_loss: float | None = None, price: float | None = None) -> list[Path]:
    """The reports of the experiments in `folder`, and of the tracks there: gives the pages, a board last.

    `out` is the board's folder, and the experiments' reports are in folders there. Raises UsageError as `make` does.
    """
    within = folder if tracks.are_in(folder) else folder / tracks.FOLDER
    if not tracks.are_in(within):
        return make_experiments(folder, out, target_loss, price)
    elsewhere = out and (out if within == folder else out / tracks.FOLDER)
    pages = []
    if any(folder.glob("*/run.json")) or _experiments(folder):
        pages = make_experiments(folder, out, target_loss, price)
    elif target_loss is not None or price is not None:
        raise UsageError("--target-loss and --price: not for tracks, whose target is frozen")
    return [*pages, make_tracks(within, elsewhere or within / "report")]


def make_tracks(folder: Path, out: Path) -> Path:
    """Write the board of the tracks in `folder` to `out`, and give the path of its index.html.

    Raises UsageError for a track that is not as it was written, and if `out` cannot be written.
    """
    standings = [Standing.of(track) for track in tracks.load_all(folder)]
    with _writing(out) as draft:
        for name, text in board_tracks.save(standings, draft, out).items():
            (draft / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return out / "index.html"


def make_experiments(folder: Path, out: Path | None, target_loss: float | None, price: float | None) -> list[Path]:
    """The report of `folder`; if it holds several experiments, that of each one, and last their board. Gives the pages.

    Raises UsageError as `make` does.
    """
    experiments = _experiments(folder)
    if any(folder.glob("*/run.json")) or not experiments:
        return [make(folder, out, target_loss, price)]
    if len(experiments) == 1:
        return [make(experiments[0], out, target_loss, price)]
    if target_loss is not None:
        names = ", ".join(map(str, experiments))
        raise UsageError(f"--target-loss: {folder} holds {len(experiments)} experiments; name one of them: {names}")
    comparisons = _compare(_folders(folder), price)
    above = out or folder / "report"
    pages = {
        name: _write(comparison, out / name if out else folder / name / "report", above / "index.html")
        for name, comparison in comparisons.items()
    }
    return [*pages.values(), _write_board(comparisons, pages, above)]


def _folders(folder: Path) -> list[Path]:
    """Those that may be an experiment's."""
    return [path for path in sorted(folder.glob("*")) if path.is_dir() and path.name not in NO_EXPERIMENTS]


def _experiments(folder: Path) -> list[Path]:
    """The folders of experiments that have ended runs."""
    return [path for path in _folders(folder) if any(path.glob("*/run.json"))]


def _analyse(folder: Path, target_loss: float | None, price: float | None) -> Comparison:
    found = analyse(folder, target_loss)
    return found if price is None else found.at_price(price)


def _compare(folders: list[Path], price: float | None) -> dict[str, Comparison]:
    """The experiments by name; those that cannot be compared are named and left out. Raises UsageError if none can."""
    comparisons = {}
    for folder in folders:
        try:
            if not plain.is_text(folder.name):
                raise UsageError("its name is not UTF-8: rename the folder")
            comparisons[folder.name] = _analyse(folder, None, price)
        except UsageError as error:
            say(f"left out: {folder.name}: {error}")
    if not comparisons:
        raise UsageError(f"nothing to compare in {folders[0].parent}")
    return comparisons


def _write(comparison: Comparison, out: Path, board: Path | None) -> Path:
    """`board`: the page that this one links back to, if there is one."""
    home = _address(board, out) if board else ""
    with _writing(out) as folder:
        sheets.write(comparison.outcomes, folder / "savings_by_seed.csv")
        sheets.write(tables.phases(comparison), folder / "phases.csv")
        sheets.write(tables.growth(comparison), folder / "growth.csv")
        if not comparison.ladder.empty:
            sheets.write(comparison.own_savings(Protocol.LADDER), folder / "ladder_savings_by_seed.csv")
            sheets.write(comparison.rungs, folder / "ladder_by_seed.csv")
        sheets.write(equal_cost.table(comparison.equal_cost), folder / "equal_cost.csv")
        (folder / "savings.md").write_text(page.markdown(comparison), encoding="utf-8", errors="backslashreplace")
        (folder / VERDICT).write_text(terminal.text(comparison), encoding="utf-8", errors="backslashreplace")
        images = plots.save(comparison, folder)
        text = page.html(comparison, images, home, board_tracks.pages_of(comparison, out))
        (folder / "index.html").write_text(text, encoding="utf-8", errors="backslashreplace")
        for name in set(plots.PLOTS) - set(images):  # of an earlier report, which had data for it
            for kind in ("csv", "png", "svg"):
                (out / f"{name}.{kind}").unlink(missing_ok=True)
    return out / "index.html"


def _write_board(comparisons: Mapping[str, Comparison], pages: Mapping[str, Path], out: Path) -> Path:
    links = {name: _address(page, out) for name, page in pages.items()}
    with _writing(out) as folder:
        (folder / "index.html").write_text(board.save(comparisons, links, folder), encoding="utf-8", errors="backslashreplace")
    return out / "index.html"


def _address(page: Path, folder: Path) -> str:
    """Of a page, for a link in a page in `folder`."""
    return quote(os.fsencode(Path(os.path.relpath(page, folder)).as_posix()))


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """A folder for a report's files; they are moved to `out` once all are there. Raises UsageError if `out` cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
            yield Path(folder)
            for file in Path(folder).iterdir():
                file.replace(out / file.name)
    except OSError as error:
        raise UsageError(f"cannot write the report to {out}: {error.strerror}; choose another folder with --out") from error
