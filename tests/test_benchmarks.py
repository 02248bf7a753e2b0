"""`python -m benchmarks` runs, writes what it says, and draws; its numbers are not looked at here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import torch

import benchmarks
from benchmarks import behaviour, figures, outcomes
from benchmarks.__main__ import COMMANDS, missed, parse
from benchmarks.devices import Counter, devices
from benchmarks.expected import ROWS, Boom, expect
from benchmarks.peers import PEERS
from benchmarks.table import Row
from scoped_rng import capture

ROOT = Path(__file__).parents[1]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


class Measured(NamedTuple):
    """What a quick run has printed and written."""

    output: str
    results: dict[str, Any]
    folder: Path


NAMES = ("scope", "decorators", "state", "growth")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("benchmarks")
    done = command("--quick", *NAMES, "--json", str(folder / "results.json"), "--figures", str(folder))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return Measured(done.stdout, json.loads((folder / "results.json").read_text("utf-8")), folder)


def test_one_file_has_the_numbers_of_all_the_machine_and_the_versions(measured: Measured) -> None:
    results = measured.results
    assert tuple(results["benchmarks"]) == NAMES
    assert results["quick"]
    assert results["machine"]["cores"] == os.cpu_count()
    assert {"python", "torch", "numpy"} <= set(results["versions"])
    for numbers in results["benchmarks"].values():
        for section in numbers["sections"]:
            rows = [Row(**row) for row in section["rows"]]
            assert rows
            assert all(row.value is not None or row.absent for row in rows)


def test_a_goal_that_is_missed_is_said_to_be_missed(measured: Measured) -> None:
    late = missed(measured.results["benchmarks"])
    tables, _, summary = measured.output.partition("# Goals that were missed")
    assert tables.count("MISSED") == len(late)
    assert summary.split("\n\n", 1)[1] == "\n".join(late or ["none"]) + "\n"


def test_the_size_of_a_saved_state_has_its_goal(measured: Measured) -> None:
    rows = [Row(**row) for row in measured.results["benchmarks"]["state"]["sections"][1]["rows"]]
    (plain,) = (row for row in rows if row.name.endswith("0 devices"))
    assert plain.goal == 20
    assert plain.is_met


@pytest.mark.parametrize("name", ["scope", "growth"])
def test_the_figures_are_drawn(measured: Measured, name: str) -> None:
    check_svg(measured.folder / f"{name}.svg")


def check_svg(file: Path) -> str:
    text = file.read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.findall(".//{*}text"), "the text is not text"
    assert "prefers-color-scheme: dark" in text
    assert not any(word in text for word in ("font-face", "<image", "dc:date"))
    assert len(text) < 100_000
    return text


def results_of_a_loader(added: float) -> dict[str, Any]:
    def row(name: str, ratio: float, **more: Any) -> dict[str, Any]:
        return {"name": name, "value": 1000 * ratio, "ratio": ratio, "goal": None, "absent": "", **more}

    points = [row(f"{x} ms", added / x, series="added", x=x) for x in (0.1, 1, 10)]
    sections = [
        {"title": "Between two samples", "unit": "µs", "rows": [row("in the main process", added, goal=0.05)]},
        {"title": "By the time that a sample takes", "unit": "µs", "rows": points},
    ]
    return {"benchmarks": {"data": {"sections": sections}}}


@pytest.mark.parametrize(
    ("added", "caption"),
    [
        (0.02, "All goals met."),
        (-0.001, "All goals met."),
        (0.08, "MISSED: in the main process: 0.08, the goal is 0.05"),
    ],
)
def test_a_figure_says_below_which_goals_were_missed(added: float, caption: str, tmp_path: Path) -> None:
    figures.draw(results_of_a_loader(added), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["loader.svg"], "there are no numbers for the others"
    assert caption in check_svg(tmp_path / "loader.svg")


def test_the_same_numbers_give_the_same_figure(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        figures.draw(results_of_a_loader(0.02), tmp_path / folder)
    assert (tmp_path / "one" / "loader.svg").read_bytes() == (tmp_path / "two" / "loader.svg").read_bytes()


def test_without_matplotlib_no_figures_are_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    figures.draw(results_of_a_loader(0.02), tmp_path)
    assert not list(tmp_path.iterdir())
    assert "matplotlib is not installed; pip install 'scoped-rng[benchmarks]'" in capsys.readouterr().out


def test_without_a_name_everything_runs_and_is_written_into_the_checkout() -> None:
    names, given, options = parse([])
    folder = Path(benchmarks.__file__).parent
    assert names == list(COMMANDS)
    assert (given.json, given.figures) == (folder / "results.json", folder / "figures")
    assert options["behaviour"].markdown == folder / "behaviour.md"


def test_what_is_quick_or_named_is_written_where_it_is_told_alone() -> None:
    for words in (["--quick"], ["scope"], ["scope", "behaviour"]):
        names, given, options = parse(words)
        assert given.json is given.figures is None
        assert "behaviour" not in names or options["behaviour"].markdown is None


def test_an_option_reaches_those_that_have_it() -> None:
    _, _, options = parse(["scope", "distributed", "--rounds", "3", "--ranks", "2"])
    assert options["scope"].rounds == options["distributed"].rounds == 3
    assert options["distributed"].ranks == [2]


def test_what_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["scope", "stat"])
    assert "nobody knows stat; the names are scope, decorators, " in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("state",)])
def test_there_is_a_help_page(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse([*words, "--help"])
    assert leaving.value.code == 0
    assert ("--rounds" if words else "--figures") in capsys.readouterr().out


def test_devices_that_are_not_there_are_taken_for_real_ones() -> None:
    with devices(2, Counter):
        name = torch._C._get_privateuse1_backend_name()
        assert {f"{name}:0", f"{name}:1"} <= set(capture().names)
    assert f"{name}:0" not in capture().names


# The table of the peers.


def test_scoped_rng_passes_every_row_and_a_peer_that_is_absent_has_no_column(tmp_path: Path) -> None:
    files = "--markdown", str(tmp_path / "table.md"), "--json", str(tmp_path / "cells.json")
    done = command("behaviour", "--peers", "scoped_rng", "torch", "composer", *files)
    assert (done.returncode, done.stderr) == (0, "")
    table = (tmp_path / "table.md").read_text("utf-8")
    assert table in done.stdout
    found = json.loads((tmp_path / "cells.json").read_text("utf-8"))["benchmarks"]["behaviour"]["peers"]
    cells = {name: {title: cell[0] for title, cell in its.get("cells", {}).items()} for name, its in found.items()}
    assert cells["scoped_rng"] == dict.fromkeys(ROWS, outcomes.PASSES)
    assert set(cells["torch"]) == set(ROWS)
    assert cells["torch"]["decorates coroutines and generators"] == outcomes.FAILS
    assert cells["torch"]["torch's determinism flags put back, frozen or not"] == outcomes.NOT_APPLICABLE
    header, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == len(ROWS)
    for name in found:
        distribution = PEERS[name][0]
        there = behaviour.version(distribution) is not None and "absent" not in found[name]
        assert (f"| {name} {behaviour.version(distribution)} |" in header) == there
        assert there or f"{name}, " in table.partition("What was run")[2]


def raises_boom() -> None:
    raise Boom("on the way\nand on")


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        (lambda: None, (outcomes.PASSES, "")),
        (lambda: expect(False, "so it is"), (outcomes.FAILS, "so it is")),
        (raises_boom, (outcomes.FAILS, "benchmarks.expected.Boom: on the way")),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), (outcomes.FAILS, "the process ended by SIGKILL")),
        (lambda: sys.exit(3), (outcomes.FAILS, "SystemExit: 3")),
    ],
    ids=["passes", "fails", "raises", "dies", "leaves"],
)
def test_a_cell_says_how_its_process_ended(check: Any, outcome: tuple[str, str]) -> None:
    assert outcomes.in_child(check) == outcome
