"""The command line: what is asked for, what is refused, and what is shown."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scoped_rng import __main__, cli
from scoped_rng.cli import checking, children, doctor, show
from scoped_rng.cli.checking import Difference, Parting, Report, Run
from scoped_rng.cli.children import Plan
from scoped_rng.cli.doctor import Finding
from scoped_rng.cli.launch import Target
from tests.test_launch import python

Call = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Call the command in this process, in a folder with one script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_end_on_signals", lambda: None)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "train.py").touch()

    def called(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scoped-rng", *args])
        try:
            code: Any = __main__.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return called


def plain(text: str) -> str:
    """Return a text without the line breaks of a narrow page."""
    return " ".join(text.split())


RUNS = [
    Run(1, 0, 1.25, 1234, {"exit status": "same", "torch ops": "same", "stdout": "same", "stderr": "same"}),
    Run(
        2, 0, 1.5, 1234, {"exit status": "same", "torch ops": "same", "stdout": "same", "stderr": "same but for times"}
    ),
]


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "verdict": "reproducible",
        "told": "reproducible under seed 0: both runs agree in 1,234 torch ops, stdout (5 bytes) and stderr (empty)",
        "target": "train.py",
        "args": ("--epochs", "1"),
        "seed": 0,
        "strict": False,
        "hash_seed": None,
        "runs": RUNS,
        "differences": [],
        "parting": None,
        "failure": "",
        "notes": (),
        **changes,
    }
    return Report(**values)


def parting(**changes: Any) -> Parting:
    values: dict[str, Any] = {
        "run": 2,
        "kind": "op",
        "told": "the runs part",
        "op": "aten::index_put_",
        "index": 5,
        "phase": "forward",
        "module": "encoder.layers.3",
        "file": os.path.abspath("train.py"),
        "line": 7,
        "function": "step",
        "streams": (),
        "why": "Its output differs.",
        "source": {6: "before", 7: "\tx.index_put_(é)"},
        "strip": (0, 0, 0.5, 1),
        "at": 2,
        "advice": ("use one thread",),
        **changes,
    }
    return Parting(**values)


PARTED = {"verdict": "not reproducible", "told": "not reproducible under seed 0: torch ops differ"}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what was planned; nothing is run."""
    plans: list[Any] = [report()]

    def check(plan: Plan, started: Callable[[int], Any]) -> Report:
        started(1)
        started(0)
        plans.append(plan)
        found: Report = plans[0]
        return found

    monkeypatch.setattr(checking, "check", check)
    return plans


def test_every_option_comes_where_it_belongs(call: Call, planned: list[Any]) -> None:
    options = ["--runs", "3", "--strict", "--no-trace", "--hash-seed", "5", "--output", "a", "--output=b", "--output=a"]
    assert call("check", "--seed", "7", "train.py", "--epochs", "1", *options)[0] == 0
    target = Target("script", "train.py", ("--epochs", "1"))
    assert planned[1] == Plan(target, 7, 3, True, False, 5, ("a", "b"))


def test_what_is_not_said_is_what_most_people_want(call: Call, planned: list[Any]) -> None:
    call("check", "train.py")
    assert planned[1] == Plan(Target("script", "train.py"), 0, 2, False, True, None, ())


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["train.py", "a b", "-x", "--flag"], Target("script", "train.py", ("a b", "-x", "--flag"))),
        (["train.py", "-x", "--", "--seed", "7", "--"], Target("script", "train.py", ("-x", "--seed", "7", "--"))),
        (["--", "train.py", "--seed", "7"], Target("script", "train.py", ("--seed", "7"))),
        (["-m", "package.module", "-m", "x"], Target("module", "package.module", ("-m", "x"))),
        (["-mpackage", "x"], Target("module", "package", ("x",))),
        (["package:main", "x"], Target("function", "package:main", ("x",))),
    ],
)
def test_the_target_has_the_words_that_are_no_options(
    call: Call, planned: list[Any], words: list[str], target: Target
) -> None:
    assert call("check", *words)[0] == 0
    assert planned[1].target == target


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "Missing argument"),
        (["--", "nowhere.py"], "there is no script 'nowhere.py'"),
        (["."], "there is no script '.'"),
        (["--sed", "1", "train.py"], "there is no option --sed; those of the target stand behind it"),
        (["train.py", "--seed"], "requires an argument"),
        (["--seed", "-1", "train.py"], "a seed must be in [0, 2**64), got -1; take it modulo 2**64"),
        (["--seed", "train", "train.py"], "got str 'train'; derive one from the name: fold_in(0, 'train')"),
        (["--seed=1.5", "train.py"], "a seed must be an int in [0, 2**64), got str '1.5'"),
        (["--runs", "1", "train.py"], "'--runs'"),
        (["--hash-seed", "-1", "train.py"], "'--hash-seed'"),
        (["--json", "nowhere/a", "train.py"], "'nowhere/a' is not a file in a folder that exists"),
        (["--svg", ".", "train.py"], "'.' is not a file in a folder that exists"),
        (["--output", ".", "train.py"], "'.' is not a file in a folder that exists"),
        (["-m"], "-m takes the name of a module"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_runs_nothing(
    call: Call, planned: list[Any], args: list[str], told: str
) -> None:
    code, out, err = call("check", *args)
    assert (code, out, len(planned)) == (2, "", 1)
    assert plain(told) in plain(err)


def test_without_xxhash_there_is_no_trace(call: Call, planned: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    code, _, err = call("check", "train.py")
    assert code == 2
    assert "a trace needs xxhash: pip install 'scoped-rng[cli]'; or --no-trace" in plain(err)
    assert call("check", "--no-trace", "train.py")[0] == 0


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_is_told_how_to_install_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "scoped_rng.cli")
    monkeypatch.delattr("scoped_rng.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    if missing == "rich":
        monkeypatch.setitem(sys.modules, "typer", _Raises("rich"))
    assert __main__.main() == 2
    assert capsys.readouterr().err == f"the command needs {missing}: pip install 'scoped-rng[cli]'\n"


def test_another_module_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scoped_rng.cli")
    monkeypatch.delattr("scoped_rng.cli")
    monkeypatch.setitem(sys.modules, "typer", _Raises("click"))
    with pytest.raises(ModuleNotFoundError, match="click"):
        __main__.main()


class _Raises:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise ModuleNotFoundError(self._name, name=self._name)


def test_help_imports_neither_torch_nor_numpy_nor_rich(tmp_path: Path) -> None:
    code = """if True:
        import sys, scoped_rng.__main__
        sys.argv = ["scoped-rng", "--help"]
        try:
            scoped_rng.__main__.main()
        except SystemExit as end:
            print(end.code, sorted({"torch", "numpy", "rich.console", "xxhash"} & set(sys.modules)))
    """
    result = python("-c", code, cwd=tmp_path)
    assert result.stdout.endswith("0 []\n")
    assert all(f"\n  {name} " in result.stdout for name in ("check", "run", "doctor"))


def test_the_help_tells_how_the_script_gets_options_of_the_same_name(call: Call) -> None:
    code, out, _ = call("check", "--help")
    assert code == 0
    assert out.startswith("Usage: scoped-rng check [OPTIONS] ")
    assert "check SCRIPT -- --seed 1" in plain(out)
    assert max(map(len, out.splitlines())) <= 80
    code, _, err = call()
    assert (code, "Missing command" in err) == (2, True)


def test_a_check_that_finds_nothing_says_so(call: Call, planned: list[Any]) -> None:
    code, out, err = call("check", "train.py")
    assert (code, err) == (0, "")
    told, table = out.split("\n\n")
    assert plain(told) == f"✔ {planned[0].told}"
    head, first, second = (line.split() for line in table.splitlines())
    assert head == ["run", "exit", "seconds", "torch", "ops", "stdout", "stderr"]
    assert first == ["1", "0", "1.2", "1,234", "-", "-"]
    assert plain(" ".join(second)) == "2 0 1.5 same same same but for times"


def test_runs_that_part_are_shown_with_line_and_advice(call: Call, planned: list[Any]) -> None:
    planned[0] = report(**PARTED, parting=parting(), differences=[Difference(2, "torch ops", "the runs part")])
    code, out, err = call("check", "train.py")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    begin = lines.index("run 1 and run 2 part at aten::index_put_ (op 5, forward, in encoder.layers.3)")
    assert [line.rstrip() for line in lines[begin + 1 :]] == [
        "  ──▒█",
        "    ▲",
        "  ─ equal  ▒ partly  █ different",
        "",
        "train.py:7 in step",
        "     6 │ before",
        ">    7 │     x.index_put_(é)",
        "",
        "  Its output differs.",
        " -> use one thread",
    ]


def test_a_place_without_module_or_source_is_shown_without(call: Call, planned: list[Any]) -> None:
    planned[0] = report(**PARTED, parting=parting(module="", file=None, line=None, function=None, source={}))
    _, out, _ = call("check", "train.py")
    assert "part at aten::index_put_ (op 5, forward)\n" in out
    assert "train.py" not in out


def test_a_source_that_is_gone_is_told_to_be(call: Call, planned: list[Any]) -> None:
    planned[0] = report(**PARTED, parting=parting(source={}))
    assert "\ntrain.py:7 in step, whose source cannot be read\n" in call("check", "train.py")[1]


@pytest.mark.parametrize("other_drive", [False, True])
def test_a_file_elsewhere_is_shown_with_its_whole_path(
    call: Call, planned: list[Any], monkeypatch: pytest.MonkeyPatch, other_drive: bool
) -> None:
    if other_drive:

        def relpath(path: str) -> str:
            raise ValueError("path is on mount 'D:'")

        monkeypatch.setattr(show.os.path, "relpath", relpath)
    planned[0] = report(**PARTED, parting=parting(file="/elsewhere/data.py"))
    assert "\n/elsewhere/data.py:7 in step\n" in call("check", "train.py")[1]


def test_lines_that_differ_are_shown_of_the_first_run_that_differs(call: Call, planned: list[Any]) -> None:
    found = [
        Difference(2, "stdout", "line 3 differs", "'a'", "'b'", ("sort it",)),
        Difference(2, "a.pt", "only run 1 wrote it"),
        Difference(3, "stdout", "line 4 differs", "'c'", "'d'"),
    ]
    planned[0] = report(**PARTED, differences=found, notes=("torch warned",))
    _, out, _ = call("check", "train.py")
    *_, stdout, file, notes = out.rstrip().split("\n\n")
    shown = [" ".join(line.split()) for line in stdout.splitlines()]
    assert shown == ["stdout: line 3 differs", "run 1: 'a'", "run 2: 'b'", "-> sort it"]
    assert file == "a.pt: only run 1 wrote it"
    assert notes.strip() == "-> torch warned"


@pytest.mark.parametrize(
    ("count", "told"), [(2, ["same", "differs"]), (5, ["same", "differs", "same", "2 of 5 differ"])]
)
def test_files_have_columns_as_far_as_there_is_room(
    call: Call, planned: list[Any], count: int, told: list[str]
) -> None:
    found = {f"runs/{i}.pt": "differs" if i in (1, 4) else "same" for i in range(count)}
    runs = [
        Run(number, 0, 1, None, {"exit status": "same", "stdout": "same", "stderr": "same", **found})
        for number in (1, 2)
    ]
    planned[0] = report(runs=runs)
    _, out, _ = call("check", "train.py")
    head, _, last = out.rstrip().splitlines()[-3:]
    assert re.split(r"\s{2,}", head.strip())[5:] == [f"{i}.pt" for i in range(min(count, 3))] + ["files"] * (count > 3)
    assert re.split(r"\s{2,}", last.strip())[-len(told) :] == told


def test_what_a_target_that_failed_wrote_is_shown_on_stderr(call: Call, planned: list[Any]) -> None:
    told = "the target failed under seed 0: it ended with exit status 1 in both runs"
    planned[0] = report(verdict="failed", told=told, failure="Traceback\n  1 / 0\n")
    code, out, err = call("check", "train.py")
    assert (code, err) == (2, "Traceback\n  1 / 0\n")
    assert plain(out).startswith(f"! {told} run exit")


def test_the_json_has_all_that_was_found(call: Call, planned: list[Any], tmp_path: Path) -> None:
    planned[0] = report(**PARTED, parting=parting(), differences=[Difference(2, "torch ops", "the runs part")])
    assert call("check", "train.py", "--json", "found.json")[0] == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["verdict"], found["exit_code"], found["parting"]["op"]) == ("not reproducible", 1, "aten::index_put_")
    assert found["parting"]["source"] == {"6": "before", "7": "\tx.index_put_(é)"}
    assert found["runs"][0]["found"]["stdout"] == "same"


def test_the_picture_has_colours_though_the_page_has_none(call: Call, planned: list[Any], tmp_path: Path) -> None:
    planned[0] = report(**PARTED, parting=parting(), differences=[Difference(2, "torch ops", "the runs part")])
    _, out, _ = call("check", "train.py", "--svg", "found.svg")
    assert "\x1b" not in out
    picture = (tmp_path / "found.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert "scoped-rng&#160;check&#160;train.py&#160;--epochs&#160;1" in picture
    assert "aten::index_put_" in picture
    assert len(set(re.findall(r"fill: (#\w+)", picture))) > 3


def test_a_page_that_can_hold_no_more_is_in_ascii(
    call: Call, planned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned[0] = report(**PARTED, parting=parting(), differences=[Difference(2, "torch ops", "the runs part")])
    page = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", page)
    call("check", "train.py")
    page.seek(0)
    out = page.read()
    assert "  --=#\n    ^\n" in out
    assert "\\xe9" in out


def test_an_interrupt_has_an_exit_code_of_its_own(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(plan: Plan, started: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "check", check)
    assert call("check", "train.py") == (130, "", "interrupted; no run is left behind\n")


class _Page(io.StringIO):
    """A page that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as it is set in CI, where the page is a log
    for terminal in (False, True):
        monkeypatch.setattr(sys, "stderr", page := _Page(terminal))
        with show.progress(2) as started:
            started(2)
            started(0)
        assert (
            bool(page.getvalue()) == ("run 2 of 2" in page.getvalue()) == ("comparing" in page.getvalue()) == terminal
        )


@pytest.mark.parametrize("verdict", [{}, PARTED])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_page_that_nobody_reads_changes_no_exit_code(
    call: Call,
    planned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verdict: dict[str, str],
    stream: str,
) -> None:
    planned[0] = report(failure="why\n" * 10_000, **verdict)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as page:
        monkeypatch.setattr(sys, stream, page)
        code, out, err = call("check", "train.py", "--json", "found.json", "--svg", "found.svg")
        monkeypatch.undo()
    assert code == planned[0].exit_code
    assert (bool(out), bool(err)) == (stream == "stderr", stream == "stdout")
    assert json.loads((tmp_path / "found.json").read_text())["exit_code"] == code
    assert (tmp_path / "found.svg").exists()


def test_without_any_page_there_is_the_exit_code(
    call: Call, planned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned[0] = report(**PARTED, failure="why")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert call("check", "train.py") == (1, "", "")


def test_what_cannot_be_written_is_told_and_is_no_verdict(
    call: Call, planned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "save_svg", lambda *_: Path("nowhere/found.svg").write_text(""))
    code, out, err = call("check", "train.py", "--svg", "found.svg")
    assert (code, plain(planned[0].told) in plain(out)) == (2, True)
    assert err.startswith("what was found could not be written: [Errno 2] ")


def test_runs_that_cannot_be_made_are_told_and_are_no_verdict(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(plan: Plan, started: Any) -> Any:
        raise PermissionError(13, "Permission denied", "model.pt")

    monkeypatch.setattr(checking, "check", check)
    code, out, err = call("check", "train.py")
    assert (code, out) == (2, "")
    assert err == "the runs could not be made or compared: [Errno 13] Permission denied: 'model.pt'\n"


def test_run_takes_its_options_before_the_target(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(cli, "launch", lambda *args, **options: told.append((args, options)))
    assert call("run", "--seed", "7", "--strict", "train.py", "--seed", "8", "--", "-x", "--help")[0] is None
    target = Target("script", "train.py", ("--seed", "8", "--", "-x", "--help"))
    assert told == [((target, 7), {"strict": True})]
    assert call("run", "-m", "package", "--seed", "8")[0] is None
    assert told[1][0][0] == Target("module", "package", ("--seed", "8"))


FINDINGS = [
    Finding("versions", "torch", "2.13", "kernels change with it"),
    Finding(doctor.CHECKS, "dropout repeats (cpu)", "yes", "two forwards agree", "", True),
    Finding(doctor.CHECKS, "streams untouched (cpu)", "no", "as before", "report it", False),
]


def test_the_doctor_shows_what_it_has_found(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: FINDINGS)
    code, out, _ = call("doctor")
    assert code == 1
    assert [line.rstrip() for line in out.splitlines()] == [
        "versions",
        "  torch: 2.13",
        "    kernels change with it",
        "",
        "live checks",
        "  dropout repeats (cpu): yes",
        "    two forwards agree",
        "  streams untouched (cpu): no",
        "    as before",
        "    -> report it",
    ]


def test_the_doctor_speaks_to_machines(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: FINDINGS[:2])
    code, out, _ = call("doctor", "--json")
    assert code == 0
    assert json.loads(out)[1] == {**FINDINGS[1]._asdict()}


# Children and signals.


def test_the_interpreter_of_a_run_has_the_options_of_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error", "ignore::UserWarning"])
    monkeypatch.setattr(sys, "_xoptions", {"utf8": "1", "dev": True})

    class Flags:
        optimize, no_user_site = 2, 1

    assert children.python_options(Flags) == [
        *("-O", "-O", "-s", "-Werror", "-Wignore::UserWarning", "-Xutf8=1", "-Xdev")
    ]


def test_the_status_of_a_child_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "import sys; print(sys.argv[-3:], sys.stdin.read()); sys.exit(7)")
    with (tmp_path / "out").open("wb") as out:
        assert children.call("main", ["task"], stdout=out) == 7
    code = "from scoped_rng.cli.launch import main; main()"
    assert (tmp_path / "out").read_text() == f"{['-c', code, 'task']} \n"


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Have something else run in the place of the interpreter."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable} -S\n{text}")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


STUBBORN = """
import os, signal, subprocess, sys, time
from pathlib import Path
inner = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGINT, {handler})
Path("started.new").write_text(f"{{os.getpid()}} {{inner.pid}}")
os.rename("started.new", "started")
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # which nobody has waited for yet


def interrupt_when_started(process: int) -> threading.Thread:
    def interrupt() -> None:
        while not Path("started").exists():
            time.sleep(0.02)
        os.kill(process, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "signal.default_int_handler"])
@pytest.mark.parametrize("has_groups", [True, False])
def test_an_interrupt_ends_a_child_and_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str, has_groups: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(children, "_PATIENCE", 0.2)
    program(tmp_path, monkeypatch, STUBBORN.format(handler=handler))
    group = os.killpg
    if not has_groups:
        monkeypatch.delattr(os, "killpg")
    thread = interrupt_when_started(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        children.call("main", [], stderr=subprocess.DEVNULL)
    thread.join()
    child, inner = map(int, (tmp_path / "started").read_text().split())
    if not has_groups:
        group(child, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while is_alive(child) or is_alive(inner):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_what_has_ended_by_itself_needs_no_end(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    def killpg(group: int, number: int) -> None:
        raise error

    monkeypatch.setattr(os, "killpg", killpg)
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        children._end(process, signal.SIGINT)
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_would_end_the_command_is_an_interrupt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_: dict[int, Any] = {}
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", set_.__setitem__)
    cli._end_on_signals()
    with pytest.raises(KeyboardInterrupt):
        set_[getattr(signal, name)](0, None)


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", None)
    cli._end_on_signals()
    monkeypatch.delattr(signal, "SIGHUP")
    cli._end_on_signals()
