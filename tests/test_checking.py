"""How runs are compared: from what they have left in their folders, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scoped_rng.cli import checking, children
from scoped_rng.cli.checking import Report, check, strip
from scoped_rng.cli.children import Ended, Plan, run
from scoped_rng.cli.launch import Target
from scoped_rng.cli.texts import byte_that_differs, cut, steady
from scoped_rng.trace.file import Source, Writer
from tests.test_tracefile import draft, written

SCRIPT, FUNCTION = Target("script", "train.py"), Target("function", "train:main")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Runs:
    """Runs that are made up: what each has left is said, and nothing is run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[dict[str, Any]] = []
        monkeypatch.setattr(checking, "run", self._run)

    def _run(self, plan: Plan, number: int, folder: Path, outputs: Any) -> Ended:
        folder.mkdir()
        left = {"status": 0, "stdout": b"", "stderr": b"", "outputs": {}, **self.left[number - 1]}
        for name in ("stdout", "stderr"):
            (folder / name).write_bytes(left[name])
        for name, content in left["outputs"].items():
            (folder / name).write_bytes(content)
        if isinstance(left.get("trace"), bytes):
            (folder / "trace").write_bytes(left["trace"])
        elif left.get("trace"):
            written(folder / "trace", *left["trace"])
        elif "trace" in left:
            Writer(folder / "trace").close()
        if "result" in left:
            torch.save(left["result"], folder / "result")
        if "refused" in left:
            (folder / "result.refused").write_text(left["refused"])
        return Ended(number, left["status"], 1.25, folder, {name: folder / name for name in left["outputs"]})

    def __call__(self, *left: dict[str, Any], target: Target = SCRIPT, **options: Any) -> Report:
        self.left = list(left)
        plan = Plan(target, **{"seed": 7, "runs": len(left), "trace": False, **options})
        return check(plan)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def test_runs_that_agree_are_reproducible(runs: Runs) -> None:
    report = runs({"stdout": b"1\n"}, {"stdout": b"1\n"})
    assert (report.verdict, report.exit_code, report.differences) == ("reproducible", 0, [])
    assert report.told == "reproducible under seed 7: both runs agree in stdout (2 bytes) and stderr (empty)"
    assert [run.found for run in report.runs] == [{"exit status": "same", "stdout": "same", "stderr": "same"}] * 2


@pytest.mark.parametrize(("count", "told"), [(0, "1 torch op,"), (1999, "2,000 torch ops,")])
def test_it_is_told_how_many_ops_agree(runs: Runs, count: int, told: str) -> None:
    report = runs(*[{"trace": [draft()] * (count + 1)}] * 3, trace=True)
    assert report.exit_code == 0
    assert report.told.startswith(f"reproducible under seed 7: all 3 runs agree in {told}")
    assert [run.ops for run in report.runs] == [count + 1] * 3


def test_traces_that_differ_in_what_does_not_count_agree(runs: Runs) -> None:
    report = runs({"trace": [draft()]}, {"trace": [draft(streams={"python": 6})]}, trace=True)
    assert (report.exit_code, report.runs[1].found["torch ops"]) == (0, "same")


@pytest.mark.parametrize("broken", [None, b"", b"not a trace", "cut", "flipped"])
@pytest.mark.parametrize(
    ("whole", "told"),
    [
        ([True, False], "run 2 left no whole trace of torch ops"),
        ([False, True], "run 1 left no whole trace of torch ops"),
        ([True, False, False], "runs 2 and 3 left no whole trace of torch ops"),
        ([False, False], "no run left a whole trace of torch ops"),
    ],
)
def test_ops_whose_trace_is_not_whole_are_never_said_to_agree(
    runs: Runs, whole: list[bool], told: str, broken: Any, tmp_path: Path
) -> None:
    if isinstance(broken, str):
        content = written(tmp_path / "made", *[draft()] * 3).path.read_bytes()
        broken = content[:-9] if broken == "cut" else content[:60] + bytes([content[60] ^ 1]) + content[61:]
    left: dict[str, Any] = {} if broken is None else {"trace": broken}
    report = runs(*({"trace": [draft()] * 3} if is_whole else left for is_whole in whole), trace=True)
    assert (report.verdict, report.exit_code) == ("failed", 2)
    assert report.told == f"not compared under seed 7: {told}"
    assert [run.ops for run in report.runs] == [3 if is_whole else None for is_whole in whole]
    assert report.runs[1].found["torch ops"] == "not compared"
    (note,) = report.notes
    assert "--no-trace compares all the rest" in note


def test_what_differs_is_told_before_what_is_not_compared(runs: Runs) -> None:
    report = runs({"stdout": b"1"}, {"stdout": b"2"}, trace=True)
    assert report.told == "not reproducible under seed 7: stdout differs"
    assert report.notes[0] == "not compared: no run left a whole trace of torch ops"
    report = runs({"status": -9}, {"status": -9}, trace=True)
    assert (report.told[-33:], report.notes) == ("it was killed by SIGKILL in both runs"[-33:], ())


def test_runs_without_any_op_say_so(runs: Runs) -> None:
    report = runs({"trace": [], "stdout": b"1\n"}, {"trace": [], "stdout": b"1\n"}, trace=True)
    assert (report.exit_code, report.notes) == (0, ())
    told = "both runs agree in stdout (2 bytes) and stderr (empty); no torch op ran"
    assert report.told == f"reproducible under seed 7: {told}"


@pytest.mark.parametrize("trace", [True, False])
def test_runs_that_leave_nothing_to_compare_are_told_what_to_do(runs: Runs, trace: bool) -> None:
    (note,) = runs({"trace": []}, {"trace": []}, trace=trace).notes
    assert note.startswith("that is next to nothing: print what is to be compared, or name the files")
    left = {"trace": [], "outputs": {"a.pt": b"1"}}
    assert runs(left, left, trace=trace, outputs=("a.pt",)).notes == ()


def test_without_a_trace_it_is_told_what_one_would_show(runs: Runs) -> None:
    report = runs({"stdout": b"1"}, {"stdout": b"2"})
    assert report.notes == ("without --no-trace the first torch op that differs is shown, if one does",)


@pytest.mark.parametrize(
    ("target", "file"),
    [
        (Target("module", "a.b"), "a/b.py"),
        (Target("module", "a.b"), "a/b/__main__.py"),
        (Target("function", "a.b:f"), "a/b.py"),
        (Target("function", "a.b:f"), "a/b/__init__.py"),
    ],
)
def test_the_source_of_a_module_is_looked_at_as_well(runs: Runs, target: Target, file: str) -> None:
    Path(file).parent.mkdir(parents=True)
    Path(file).write_text("import os\nos.urandom(3)\n")
    (found,) = runs({"stdout": b"1"}, {"stdout": b"2"}, target=target).differences
    assert "py:2: os.urandom draws from the operating system" in found.advice[0]
    (found,) = runs({"stdout": b"1"}, {"stdout": b"2"}, target=Target("module", "c")).differences
    assert found.advice == ()


@pytest.mark.parametrize(
    ("first", "second", "told", "shown"),
    [
        (b"a\nna\xc3\xafve 1\n", b"a\nna\xc3\xafve 2\n", "line 2 differs", ("'naïve 1\\n'", "'naïve 2\\n'")),
        (b"a\na\n", b"a\n", "line 2 differs", ("'a\\n'", "''")),
        (b"\xff", b"\xfe", "line 1 differs", ("'\\\\xff'", "'\\\\xfe'")),
        (b"\0\0\1", b"\0\0\2", "byte 2 differs", (None, None)),
    ],
)
def test_the_first_line_of_stdout_that_differs_is_shown(
    runs: Runs, first: bytes, second: bytes, told: str, shown: Any
) -> None:
    report = runs({"stdout": first}, {"stdout": second})
    assert (report.verdict, report.exit_code) == ("not reproducible", 1)
    assert report.told == "not reproducible under seed 7: stdout differs"
    (found,) = report.differences
    assert (found.run, found.what, found.told, (found.first, found.second)) == (2, "stdout", told, shown)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<A at 0x7f00aabb1122>", "<A at 0x7f11aabb1100>"),
        ("2026-11-22 08:30:01,123 INFO start", "2026-11-23 18:31:59,001 INFO start"),
        ("W1122 08:31:09.123000 4711 torch/x.py", "W1122 08:31:10.123000 815 torch/x.py"),
        ("took 3.1 s", "took 12 s"),
        ("pid 17", "pid 18"),
        (
            "\r 0%| | 0/3 [00:00<?, ?it/s]\r100%|##| 3/3 [00:01<00:00, 2.9it/s]",
            "\r 0%| | 0/3 [00:00<?, ?it/s]\r 33%|#| 1/3 [00:00<00:01, 1.9it/s]\r100%|##| 3/3 [00:02<00:00, 1.45s/it]",
        ),
    ],
)
def test_times_addresses_and_process_numbers_do_not_count_on_stderr(runs: Runs, first: str, second: str) -> None:
    assert steady(first) == steady(second)
    left = [{"stderr": first.encode()}, {"stderr": second.encode()}]
    report = runs(*left)
    assert (report.exit_code, report.runs[1].found["stderr"]) == (0, "same but for times")
    report = runs(*({"stdout": one["stderr"]} for one in left))
    assert report.exit_code == 1
    (found,) = report.differences
    assert any("address" in advice for advice in found.advice)


def test_anything_else_counts_on_stderr(runs: Runs) -> None:
    report = runs({"stderr": b"[00:01] loss 1.5\n"}, {"stderr": b"[00:02] loss 1.25\n"})
    assert report.told == "not reproducible under seed 7: stderr differs"
    assert steady("loss 1.5") != steady("loss 1.25")


@pytest.mark.parametrize(
    ("first", "second", "exit_code", "told"),
    [
        (1, 1, 2, "the target failed under seed 7: it ended with exit status 1 in both runs"),
        (-9, -9, 2, "the target failed under seed 7: it was killed by SIGKILL in both runs"),
        (-250, -250, 2, "the target failed under seed 7: it was killed by signal 250 in both runs"),
        (0, 3, 1, "not reproducible under seed 7: exit status and stderr differ"),
        (1, 0, 1, "not reproducible under seed 7: exit status and stderr differ"),
    ],
)
def test_a_target_that_fails(runs: Runs, first: int, second: int, exit_code: int, told: str) -> None:
    report = runs(*({"status": status, "stderr": b"why" if status else b""} for status in (first, second)))
    assert (report.exit_code, report.told, report.failure) == (exit_code, told, "why")


def test_the_ways_in_which_runs_have_ended_are_told_apart(runs: Runs) -> None:
    found = runs({"status": 0}, {"status": -11}).differences[0]
    assert (found.first, found.second) == ("ended with exit status 0", "was killed by SIGSEGV")


def test_values_that_agree_need_no_more_than_their_bytes(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "call", None)
    report = runs({"result": torch.ones(2)}, {"result": torch.ones(2)}, target=FUNCTION)
    assert (report.exit_code, report.runs[1].found["return value"]) == (0, "same")
    report = runs({"status": 1}, {"result": 1}, target=FUNCTION)
    assert "return value" not in report.runs[0].found
    assert report.runs[1].found["return value"] == "same"


@pytest.mark.parametrize(
    ("status", "answer", "exit_code", "told"),
    [
        (0, [True, "['a']: 1 against 2"], 1, "not reproducible under seed 7: return value differs"),
        (0, None, 0, "reproducible under seed 7: both runs agree in stdout (empty), stderr (empty) and return value"),
        (0, [False, "objects cannot be compared"], 2, "not compared under seed 7: objects cannot be compared"),
        (1, None, 2, "not compared under seed 7: what the function returned cannot be loaded"),
    ],
)
def test_values_of_other_bytes_are_compared_by_a_process_of_their_own(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, status: int, answer: Any, exit_code: int, told: str
) -> None:
    def call(name: str, arguments: list[str], **options: Any) -> int:
        assert name == "compare"
        Path(arguments[2]).write_text(json.dumps(answer))
        return status

    monkeypatch.setattr(checking, "call", call)
    report = runs({"result": 1}, {"result": 2}, target=FUNCTION)
    assert (report.exit_code, report.told) == (exit_code, told)
    assert [found.told for found in report.differences] == ([answer[1]] if exit_code == 1 else [])


def test_a_value_that_cannot_be_saved_is_refused(runs: Runs) -> None:
    report = runs(*[{"refused": "generator: TypeError: no"}] * 2, target=FUNCTION)
    assert report.exit_code == 2
    assert report.told.endswith("the function returned what cannot be saved, generator: TypeError: no")


@pytest.mark.parametrize(
    ("first", "second", "exit_code", "told"),
    [
        ({"a.pt": b"\0\1"}, {"a.pt": b"\0\1"}, 0, "stderr (empty) and a.pt"),
        ({"a.pt": b"\0\1"}, {"a.pt": b"\0\1\2"}, 1, "a.pt differs"),
        ({"a.pt": b"x"}, {}, 1, "a.pt differs"),
        ({}, {"a.pt": b"x"}, 1, "a.pt differs"),
        ({}, {}, 2, "no run wrote a.pt; --output takes a path relative to "),
    ],
)
def test_files_are_compared(runs: Runs, first: Any, second: Any, exit_code: int, told: str) -> None:
    report = runs({"outputs": first}, {"outputs": second}, outputs=("a.pt",))
    assert report.exit_code == exit_code
    assert told in report.told
    if exit_code == 1:
        only = {(1, 0): "only run 1 wrote it", (0, 1): "only run 2 wrote it"}
        assert report.differences[0].told == only.get((len(first), len(second)), "byte 2 differs")


def test_files_that_are_long_differ_at_a_byte(tmp_path: Path) -> None:
    for name, last in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).write_bytes(bytes(200_000) + last)
    assert byte_that_differs(tmp_path / "a", tmp_path / "b") == 200_000


def test_a_long_line_is_cut() -> None:
    assert cut("x" * 500) == "'" + "x" * 159 + "…"
    assert cut("x") == "'x'"


def test_what_torch_has_warned_of_is_told_once(runs: Runs) -> None:
    line = b"s.py:1: UserWarning: put_ does not have a deterministic implementation, but you set ...\n"
    report = runs(*[{"stderr": 2 * line}] * 2)
    assert report.notes == ("torch warned: put_ does not have a deterministic implementation; --strict raises there",)
    assert runs(*[{"stderr": 2 * line}] * 2, strict=True).notes == ()  # it has raised, and is shown


def part(one: Any, other: Any, runs: Runs) -> checking.Parting:
    report = runs({"trace": one}, {"trace": other}, trace=True)
    assert report.told == "not reproducible under seed 7: torch ops differ"
    assert report.parting is not None
    return report.parting


def test_runs_that_part_are_shown_where(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text("one\ntwo\nthree\n\tfour\n")
    place = ("net.0", Source(str(file), 3, "step"))
    found = part(
        [draft(place=place), draft(place=place, op="aten::index_put_"), draft(place=place)],
        [draft(place=place), draft(place=place, op="aten::index_put_", outputs=[4]), draft(place=place)],
        runs,
    )
    assert (found.run, found.kind, found.op, found.index, found.phase) == (2, "op", "aten::index_put_", 1, "forward")
    assert (found.module, found.file, found.line, found.function) == ("net.0", str(file), 3, "step")
    assert found.source == {1: "one", 2: "two", 3: "three", 4: "\tfour"}
    assert (found.strip, found.at) == ((0, 1, 0), 1)
    assert found.why.startswith("Its output differs while all that it read is the same")
    assert found.told.startswith("the runs part at aten::index_put_ (record 1, forward, in net.0)")


def test_a_place_without_source_has_none_to_show(runs: Runs) -> None:
    found = part([draft(place=("", None))], [draft(place=("", None), outputs=[9])], runs)
    assert (found.file, found.line, found.source) == (None, None, {})


def test_the_first_run_that_parts_is_the_one_that_is_shown(runs: Runs) -> None:
    one, other = {"trace": [draft()]}, {"trace": [draft(outputs=[9])]}
    report = runs(one, one, other, other, trace=True)
    assert report.parting is not None
    assert report.parting.run == 3
    assert [found.run for found in report.differences] == [3, 4]


OUTSIDE = "What it read differs, and no torch op made that: it came from outside torch."
DRAWS = "It draws from a torch generator whose state differed before."


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (
            [draft(scalars="1")],
            [draft(scalars="2")],
            f"{OUTSIDE} Its other arguments are (1) and (2).",
        ),
        (
            [draft(inputs=[1], unwritten={})],
            [draft(inputs=[2], unwritten={}, streams={"python": 6})],
            f"{OUTSIDE} Random streams that had parted by then: python.",
        ),
        (
            [draft("aten::empty", unwritten={}), draft(inputs=[5], unwritten={0: 0})],
            [draft("aten::empty", unwritten={}), draft(inputs=[6], unwritten={0: 0})],
            "It read memory that no op had written since aten::empty at train.py:7.",
        ),
        (
            [draft("aten::rand")],
            [draft("aten::rand", outputs=[7], streams={"torch": 1})],
            f"{DRAWS} Random streams that had parted by then: torch.",
        ),
        ([draft()], [draft(), draft("aten::relu")], "Run 2 alone calls it here."),
        ([draft(), draft("aten::relu")], [draft()], "Run 1 alone calls it here."),
        (
            [draft("aten::relu")],
            [draft("aten::abs")],
            "Run 1 alone calls it here, where the other one calls aten::abs at train.py:7.",
        ),
        (
            [draft("aten::relu")],
            [draft("aten::abs", place=("", None))],
            "Run 1 alone calls it here, where the other one calls aten::abs.",
        ),
    ],
)
def test_it_is_told_what_brought_the_difference_in(runs: Runs, one: Any, other: Any, why: str) -> None:
    assert part(one, other, runs).why == why


def test_what_parts_is_advised_on_once(runs: Runs) -> None:
    Path("train.py").write_text("import os\nos.urandom(3)\n")
    report = runs(
        {"trace": [draft(scalars="1")], "stdout": b"1"}, {"trace": [draft(scalars="2")], "stdout": b"2"}, trace=True
    )
    assert report.parting is not None
    assert "train.py:2: os.urandom draws from the operating system" in report.parting.advice[0]
    assert [found.advice for found in report.differences] == [(), ()]
    (found,) = runs({"stdout": b"1"}, {"stdout": b"2"}).differences
    assert "train.py:2: os.urandom" in found.advice[0]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 129, 1000])
def test_a_strip_has_a_place_for_every_op(count: int, tmp_path: Path) -> None:
    ops = [draft()] * count
    one, other = written(tmp_path / "one", *ops), written(tmp_path / "other", *ops[:-1], draft(outputs=[9]))
    parts, size = strip(one, other)
    assert len(parts) == -(-count // size) <= 64
    assert sum(map(bool, parts)) == 1
    assert parts[-1] == pytest.approx(1 / (count - size * (len(parts) - 1)))
    assert set(strip(one, one)[0]) == {0}


def test_a_strip_is_as_long_as_the_longer_run(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one", draft()), written(tmp_path / "other", draft(), draft())
    assert strip(one, other) == strip(other, one) == ((0, 1), 1)
    assert strip([], []) == ((0,), 1)


# How runs are started, and what they leave: with a child that is made up.


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def call(name: str, arguments: list[str], **options: Any) -> int:
        calls.append((name, json.loads(arguments[0]), options))
        options["stdout"].write(b"out")
        for path in calls[0][1]["args"]:
            with Path(path).open("a") as file:
                file.write(".")
        return 5

    monkeypatch.setattr(children, "call", call)
    return calls


def test_a_run_is_told_what_to_do(child: list[Any], tmp_path: Path) -> None:
    plan = Plan(Target("module", "a.b", ("--x",)), 7, strict=True, hash_seed=3)
    ended = run(plan, 2, tmp_path / "2", [])
    ((name, task, options),) = child
    assert (name, task["kind"], task["name"], task["args"]) == ("main", "module", "a.b", ["--x"])
    folder = tmp_path / "2"
    told = {"seed": 7, "strict": True, "trace": str(folder / "trace"), "result": str(folder / "result")}
    assert task["options"] == told
    assert options["env"]["PYTHONHASHSEED"] == "3"
    assert (ended.number, ended.status, ended.outputs) == (2, 5, {})
    assert (ended.folder / "stdout").read_bytes() == b"out"


def test_without_a_trace_none_is_asked_for(child: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    run(Plan(SCRIPT, trace=False), 1, tmp_path / "1", [])
    ((_, task, options),) = child
    assert "trace" not in task["options"]
    assert "PYTHONHASHSEED" not in options["env"]


@pytest.mark.parametrize("before", [None, "old"])
def test_each_run_finds_the_files_as_the_first_one_did(
    child: list[Any], tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        Path("log").write_text(before)
    seen: list[str] = []
    monkeypatch.setattr(checking._Comparison, "report", lambda self: seen.extend(map(_log, self.ended)))
    check(Plan(Target("script", "train.py", ("log",)), runs=3, outputs=("log",)))
    assert seen == [f"{before or ''}."] * 3
    assert Path("log").read_text() == f"{before or ''}."


def _log(ended: Ended) -> str:
    return ended.outputs["log"].read_text()


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_a_run_does_not_write_is_not_its_output(
    child: list[Any], tmp_path: Path, before: str | None
) -> None:
    if before is not None:
        Path("log").write_text(before)
    output = children.Output("log", tmp_path / "kept")
    assert run(Plan(SCRIPT), 1, tmp_path / "1", [output]).outputs == {}


def test_the_runs_are_told_as_they_begin(runs: Runs) -> None:
    told: list[int] = []
    runs.left = [{}, {}]
    check(Plan(SCRIPT, trace=False), told.append)
    assert told == [1, 2, 0]
