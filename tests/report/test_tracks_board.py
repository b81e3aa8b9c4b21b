"""The board of tracks: every saving where it belongs, each cell's way to its entry and back, and what it refuses to show."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver import Chrome

from growbench import cli, report
from growbench.analysis.comparison import analyse
from growbench.analysis.standing import Standing, pareto
from growbench.costs.accounts import Ledger
from growbench.errors import UsageError
from growbench.formatting import percent
from growbench.report import board_front, board_tracks, drawing, looks
from growbench.runs import chain, store, tracks
from growbench.runs.tracks import Definition
from growbench.tools import entered
from growbench.tools.entered import Place
from tests.report.browser import hindrances, pretend
from tests.report.results import METHODS, change, read, write_results, write_run

Figures = Callable[[], AbstractContextManager[None]]
CONFIGURATION = {"architecture": "gpt2", "train": {"steps": 400}}


def add(track: Path, name: str, content: str) -> None:
    """As the commands do."""
    (track / "entries").mkdir(parents=True, exist_ok=True)
    (track / chain.FILE).write_text(chain.extended(track, name, content.encode()))
    (track / name).write_text(content)


def write_track(results: Path, name: str, experiment: Path, budgets: Sequence[float] = (1.0,)) -> Path:
    """A track of all runs in an experiment's folder, which has every seed."""
    runs = {run.name: run for run in store.load_all(experiment)}
    seeds = sorted({run.record.seed for run in runs.values() if run.record.method == "scratch"})
    track = results / "tracks" / name
    place = f"../../{experiment.name}"
    found = analyse(experiment)
    definition = Definition(
        title="GPT-2 2x64 -> 4x128", experiment="gpt2-tiny", overrides=(), protocol="ladder" if len(budgets) > 1 else "single",
        budgets=tuple(budgets), seeds=tuple(seeds), target_loss=found.ladder_loss if len(budgets) > 1 else found.target_loss,
        frozen_by="Ada", date="2026-11-27", runs=place, sha256={}, configuration=CONFIGURATION,
        configuration_sha256=tracks.digest_of_configuration(CONFIGURATION),
    )  # fmt: skip
    frozen = {each: tracks.digest_of(runs[each].folder) for each in definition.run_names("scratch", seeds)}
    add(track, tracks.FILE, tracks.text(replace(definition, sha256=frozen)))
    for method in sorted({run.record.method for run in runs.values()} - {"scratch", "source"}):
        entered_seeds = [seed for seed in seeds if set(definition.run_names(method, [seed])) <= set(runs)]
        own = [runs[each] for each in definition.run_names(method, entered_seeds)]
        made = entered.entry(definition, 1, own, Place(place), "Bob & Co <b>")
        add(track, made.file, tracks.text(made))
    return track


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracks of four seeds, of which a control has three, and of one seed on a ladder; an earlier version; an odd name."""
    folder = tmp_path_factory.mktemp("board") / "results"
    four = write_results(folder / "four", 4)
    change(four / "ligo-seed0", keeps_source=True)
    for seed in range(3):
        write_run(four, "scratch_restart", seed, METHODS["scratch"], noise=np.random.default_rng([9, seed]))
        change(four / f"scratch_restart-seed{seed}", control=True)
    one = write_results(folder / "one", 1, {method: METHODS[method] for method in ("scratch", "ligo")})
    write_run(one, "<b>", 0, METHODS["ligo"], noise=np.random.default_rng(3))
    for method in ("scratch", "ligo", "<b>"):
        write_run(one, method, 0, METHODS.get(method, METHODS["ligo"]), noise=np.random.default_rng(4), budget=0.5)
    write_track(folder, "four@1", four)
    write_track(folder, "four@2", four)
    write_track(folder, "one@1", one, (0.5, 1.0))
    report.make(four)
    return folder


@pytest.fixture(scope="module")
def board(results: Path) -> Path:
    return report.make_all(results / "tracks")[-1]


def test_the_front_is_drawn_with_the_names_of_its_members(results: Path, figures: Figures, tmp_path: Path) -> None:
    standing = Standing.of(tracks.load(results / "tracks/four@2"))
    points = pareto(standing)
    with figures():
        cuts = drawing.save("front", points, board_front.figure(standing.comparison), tmp_path)
    for cut in cuts:
        texts = re.findall(r"<text[^>]*>([^<]*)</text>|</title>([^<]+)</text>", cut.body)
        shown = {name for pair in texts for name in pair}
        assert set(board_front.members(points, standing.comparison, Ledger.REUSE)) <= shown
        assert {str(method) for method in points["method"]} == set(re.findall(r'data-method="([^"]+)"', cut.body))


def test_the_board_has_a_page_for_each_track_and_ways_there_and_back(results: Path, board: Path) -> None:
    assert board == results / "tracks/report/index.html"
    made = {path.name for path in board.parent.iterdir()}
    assert {"index.html", "one@1.html", "four@1.html", "four@2.html", "board.csv", "front-four@2.csv"} <= made
    pages = {path.name: read(path) for path in board.parent.glob("*.html")}
    cells = [link for link in pages["index.html"].links if ".html#" in link]
    assert len(cells) == 2 * (4 + 2)  # both ledgers of the methods of four@2 and of one@1
    for name, page in pages.items():
        for link in (unquote(link) for link in page.links if not link.startswith("https://")):
            place, _, anchor = link.partition("#")
            assert (board.parent / place).exists() or place.endswith((".png", ".svg"))  # which are not drawn here
            assert not anchor or anchor in pages[place or name].ids, link
        assert name == "index.html" or page.links[0] == "index.html"
    assert "../../four/report/index.html" in pages["four@2.html"].links


@pytest.mark.parametrize(("name", "width", "scheme"), [("index.html", 1200, "dark"), ("four@2.html", 400, "light")])
def test_everybody_can_read_the_board(browser: Chrome, board: Path, name: str, width: int, scheme: str) -> None:
    """axe-core finds nothing serious, and only tables in their boxes scroll sideways."""
    pretend(browser, width, scheme)
    browser.get(board.with_name(name).as_uri())
    assert hindrances(browser) == "[]" and browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_window_of_1000_pixels_shows_all_columns_of_a_track(browser: Chrome, board: Path) -> None:
    pretend(browser, 1000)
    browser.get(board.with_name("four@2.html").as_uri())
    box = "document.getElementById('standing-table').parentElement"
    assert browser.execute_script(f"return {box}.scrollWidth <= {box}.clientWidth")


def test_the_page_of_a_track_says_how_to_enter_a_method(board: Path) -> None:
    """By the command that made its entries, with another method."""
    page = read(board.with_name("one@1.html")).text
    made = re.search(r"--methods ligo( --seeds 0 --protocol ladder --budgets [\d.,]+)", page)
    assert made and f"growbench run gpt2-tiny --methods ./mine.py{made[1]}" in page
    assert "growbench submit results/one/mine-seed* --to one@1 --by NAME --code ./mine.py" in page


def test_the_page_of_an_experiment_links_to_its_tracks(results: Path, board: Path, tmp_path: Path) -> None:
    """To those whose pages are there."""
    links = read(report.make(results / "one", tmp_path / "one")).links
    (address,) = [link for link in links if "one%401.html" in link]
    assert (tmp_path / "one" / unquote(address)).resolve() == board.with_name("one@1.html").resolve()
    assert not [link for link in links if "four" in link]


def test_every_saving_is_that_of_the_analysis_in_both_ledgers(results: Path, board: Path) -> None:
    rows = read(board).methods("board")
    for track, folder, table in ("four@2", "four", "savings"), ("one@1", "one", "ladder"):
        found = getattr(analyse(results / folder), table).set_index("method")
        for method in found.index.drop("scratch"):
            (row,) = rows["ligo†" if method == "ligo" else method]  # it kept its source on one track
            for ledger in ("reuse", "build"):
                assert percent(found.loc[method, f"flops_saving_{ledger}"]) in row[f"{track}, {ledger}"]
    assert not any("four@1" in head for row in rows.values() for cells in row for head in cells)  # superseded
    csv = pd.read_csv(board.with_name("board.csv"))
    assert set(csv["track"]) == {"one@1", "four@1", "four@2"}


def test_controls_and_single_seeds_are_named_as_such(board: Path) -> None:
    text = read(board).text
    assert text.index("Methods by tracks") < text.index("Controls") < text.index("scratch_restart")
    assert "one seed, no test" in text and "4 seeds, single protocol" in text and "ladder of 2 budgets" in text
    assert "One seed:" in read(board.parent / "one@1.html").text and "One seed:" not in read(board.parent / "four@2.html").text
    assert "There is no control:" in read(board.parent / "one@1.html").text
    assert "There is no control:" not in read(board.parent / "four@2.html").text


def test_an_entry_of_fewer_seeds_is_said_to_have_them(board: Path) -> None:
    (row,), (other,) = (read(board).methods("board")[method] for method in ("scratch_restart", "bert2bert"))
    for ledger in Ledger:
        assert row[f"four@2, {ledger}"].endswith("3 of 4 seeds") and "seeds" not in other[f"four@2, {ledger}"]
    page = read(board.parent / "four@2.html")
    assert "scratch_restart@1, 3 of 4 seeds" in page.text and "compared with scratch on these alone" in page.text
    assert "fewer seeds" in read(board).text and "fewer seeds" not in read(board.parent / "one@1.html").text


def test_an_entry_says_who_made_it_how_and_who_reproduced_it(results: Path, board: Path) -> None:
    page = read(board.parent / "four@2.html")
    assert "growbench run gpt2-tiny --set ligo.operator_steps=20 --methods ligo --seeds 0,1,2,3" in page.text
    assert "By Bob & Co <b>, " in page.text and "b" not in page.tags
    assert "reproduced: not yet" in page.text
    (row,) = page.methods("standing-table")["bert2bert"]
    assert row["reproduced by"] == "not yet" and row["code"] == "earlier than today's"


def test_methods_beside_the_front_are_not_called_its_members(results: Path, board: Path) -> None:
    """Against all points by pairs."""
    points = pd.read_csv(board.with_name("front-four@2.csv"))
    for ledger in ("reuse", "build"):
        costs, losses = points[f"flops_{ledger}"], points["val_loss"]
        for place in points.index:
            better = (costs <= costs[place]) & (losses <= losses[place]) & ((costs < costs[place]) | (losses < losses[place]))
            assert points.loc[place, f"front_{ledger}"] == (not better.any())


def test_a_stamp_is_shown_and_changes_no_entry(results: Path, tmp_path: Path) -> None:
    run = next(iter(store.load_all(results / "four")))
    stamp = {
        "date": "2026-12-01", "versions": {"commit": "0123456789"}, "hardware": {"device": "cpu", "name": "Other CPU"},
        "steps": 400, "evaluations": 9, "largest_difference": 0.0, "origin": run.record.origin,
        "config": {"experiment": {}, "method": {}},
    }  # fmt: skip
    (results / "four" / "bert2bert-seed0" / "reproduced.json").write_text(json.dumps(stamp))
    index = report.make_tracks(results / "tracks", tmp_path / "out")
    (row,) = read(index.with_name("four@2.html")).methods("standing-table")["bert2bert"]
    assert row["reproduced by"] == "1 of 4 runs, bit-identical: growbench 0123456 on Other CPU, 2026-12-01"
    (results / "four" / "bert2bert-seed0" / "reproduced.json").unlink()


def test_experiments_beside_tracks_are_reported_too(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board of tracks comes last, and has a folder of its own."""
    asked = []
    monkeypatch.setattr(report, "make_experiments", lambda *given: asked.append(given) or [tmp_path / "index.html"])
    pages = report.make_all(results, tmp_path, None, 2.0)
    assert asked == [(results, tmp_path, None, 2.0)] and pages == [tmp_path / "index.html", tmp_path / "tracks/index.html"]
    (tmp_path / "others").mkdir()
    shutil.copytree(results / "tracks", tmp_path / "others/tracks")
    with pytest.raises(UsageError, match=r"scratch-seed0.*No such file"):  # not of a run beside them
        report.make_all(tmp_path / "others")
    assert len(asked) == 1


def test_an_edited_entry_makes_no_board(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = results / "tracks/four@2/entries/ligo@1.toml"
    before = entry.read_text()
    entry.write_text(before.replace("Bob", "Eve"))
    try:
        assert cli.main(["report", str(results / "tracks"), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "ligo@1.toml is not as it was when chain.txt recorded it" in line and not (tmp_path / "out").exists()
    finally:
        entry.write_text(before)
    assert cli.main(["report", str(results / "tracks"), "--target-loss", "5"]) == 2
    assert "whose target is frozen" in capsys.readouterr().err


def luminance(colour: Sequence[float]) -> float:
    """Of WCAG 2, from shares of red, green and blue."""
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def shares(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("variable", ["m-0", "m-1"])
def test_text_on_the_strongest_colour_has_enough_contrast(scheme: str, variable: str) -> None:
    share = board_tracks.STRONGEST / 100
    ground = share * shares(getattr(looks.VARIABLES[variable], scheme)) + (1 - share) * shares(getattr(looks.PAPER, scheme))
    bright, dark = sorted([luminance(ground), luminance(shares(getattr(looks.INK, scheme)))], reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5
    styles = (Path(report.__file__).parent / "templates/board.css.html").read_text()
    assert set(re.findall(r"var\(--(m-\d)\) var\(--tint\)", styles)) == {"m-0", "m-1"}
