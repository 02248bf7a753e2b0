"""A target runs as Python itself would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import scoped_rng
from scoped_rng.cli.launch import Target, parse

TELL = """
import json, sys, os
main = sys.modules["__main__"]
names = ("__file__", "__name__", "__package__", "__cached__", "__doc__")
told = [sys.argv, sys.path[0], type(__loader__).__name__, __spec__ and __spec__.name, vars(main) is globals()]
print(json.dumps([*told, *(globals()[name] for name in names), __builtins__.__name__, sorted(vars(main))]))
"""
# Without the scope, for which a child would have to import torch.
BARE = """
import contextlib, scoped_rng
scoped_rng.deterministic = lambda seed, *, strict: contextlib.nullcontext()
from scoped_rng.cli.launch import main
main()
"""
COMPARE = "from scoped_rng.cli.launch import compare; compare()"


def environment(**more: str) -> dict[str, str]:
    # With the package from wherever the tests have it, installed or not.
    return {**os.environ, "PYTHONPATH": str(Path(scoped_rng.__file__).parents[1]), **more}


def python(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    env = environment(PYTHONIOENCODING="utf-8", **env)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8")


def launched(
    kind: str, name: str, *args: str, cwd: Path, result: str | None = "result", **env: str
) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"seed": 0, "result": result}
    return python(
        "-c", BARE, json.dumps({"kind": kind, "name": name, "args": args, "options": options}), cwd=cwd, **env
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


ARGS = ["a b", "-x", "--seed", "7", "--help", "--", "\udcff"]


def test_a_script_finds_what_python_gives_it(tmp_path: Path) -> None:
    write(tmp_path / "inner" / "script.py", f'"""Its doc."""\n{TELL}')
    (tmp_path / "link.py").symlink_to(tmp_path / "inner" / "script.py")
    plain = python("link.py", *ARGS, cwd=tmp_path)
    result = launched("script", "link.py", *ARGS, cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (result.returncode, result.stderr) == (0, "")
    assert plain.stdout == result.stdout


@pytest.mark.parametrize("name", ["./script.py", "inner/../script.py", "inner//script.py"])
def test_the_file_of_a_script_is_as_python_writes_it(tmp_path: Path, name: str) -> None:
    write(tmp_path / "script.py", TELL)
    write(tmp_path / "inner" / "script.py", TELL)
    assert launched("script", name, cwd=tmp_path).stdout == python(name, cwd=tmp_path).stdout


@pytest.mark.parametrize("name", ["package.module", "package", "script"])
def test_a_module_finds_what_python_gives_it(tmp_path: Path, name: str) -> None:
    for file in ("package/module.py", "package/__main__.py", "script.py"):
        write(tmp_path / file, TELL)
    write(tmp_path / "package" / "__init__.py", "import sys; sys.argv += [__name__, sys.argv[0]]")
    plain = python("-m", name, *ARGS, cwd=tmp_path)
    result = launched("module", name, *ARGS, cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (result.returncode, result.stderr) == (0, "")
    ours, theirs = json.loads(result.stdout), json.loads(plain.stdout)
    assert (ours.pop(8), str(theirs.pop(8))[-3:]) == (None, "pyc")  # __cached__, which Python is about to drop
    assert ours == theirs


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path")
def test_with_a_safe_path_the_folder_of_the_script_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "script.py", TELL)
    plain = python("script.py", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert launched("script", "script.py", cwd=tmp_path, PYTHONSAFEPATH="1").stdout == plain.stdout
    for name in "ab":
        torch.save(1, tmp_path / name)
    result = python("-P", "-c", COMPARE, "a", "b", "answer", cwd=tmp_path)
    assert (result.stderr, (tmp_path / "answer").read_text()) == ("", "null")


CHAIN = """
def f():
    1 / 0
try:
    f()
except ZeroDivisionError as error:
    raise KeyError("naïve") from error
"""
HOOK = """
import sys, traceback
def hook(kind, error, frames):
    print(kind, error, traceback.extract_tb(frames), file=sys.stderr)
sys.excepthook = hook
1 / 0
"""


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (CHAIN, 1),
        ("def (", 1),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('why')", 1),
        ("import atexit\natexit.register(print, 'end')\n1 / 0", 1),
        ("raise KeyboardInterrupt", -2),
        ("class Own(BaseException): pass\nraise Own", 1),
        (HOOK, 1),
        ("import os; os._exit(4)", 4),
    ],
    ids=["chain", "syntax", "status", "message", "atexit", "interrupt", "base", "hook", "os._exit"],
)
def test_a_script_that_ends_in_another_way_ends_as_in_python(tmp_path: Path, script: str, status: int) -> None:
    write(tmp_path / "script.py", script)
    plain = python("script.py", cwd=tmp_path)
    result = launched("script", "script.py", cwd=tmp_path)
    assert (plain.returncode, plain.stdout, plain.stderr) == (result.returncode, result.stdout, result.stderr)
    assert plain.returncode == status


def test_a_traceback_of_a_module_has_no_frames_of_ours(tmp_path: Path) -> None:
    write(tmp_path / "package" / "module.py", CHAIN)
    result = launched("module", "package.module", cwd=tmp_path)
    assert result.returncode == 1
    assert "naïve" in result.stderr
    assert "scoped_rng" not in result.stderr


@pytest.mark.parametrize("name", ["nowhere", "nowhere.module", "package", "package.nowhere", "math", "imports"])
def test_a_module_that_cannot_be_run_is_told_in_the_words_of_python(tmp_path: Path, name: str) -> None:
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "imports" / "__init__.py", "import nowhere")
    plain = python("-m", name, cwd=tmp_path)
    result = launched("module", name, cwd=tmp_path)
    assert (result.returncode, plain.returncode) == (1, 1)
    assert result.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]


SPAWN = """
import multiprocessing, os, sys
class Result:
    value = 3
def work(x):
    return x + Result.value, __name__, sys.argv[1:], os.path.basename(sys.modules["__main__"].__file__)
print("top", __name__)
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [1, 2]))
"""


def test_processes_that_the_target_spawns_find_it(tmp_path: Path) -> None:
    write(tmp_path / "script.py", SPAWN)
    write(tmp_path / "package" / "module.py", SPAWN)
    for plain, kind, name in (
        (("script.py",), "script", "script.py"),
        (("-m", "package.module"), "module", "package.module"),
    ):
        expected = python(*plain, "x", cwd=tmp_path)
        result = launched(kind, name, "x", cwd=tmp_path)
        assert (result.stdout, result.stderr, result.returncode) == (expected.stdout, "", 0)
        assert "top __mp_main__\n" in result.stdout


def test_a_class_of_the_script_can_be_pickled(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)")
    assert launched("script", "script.py", cwd=tmp_path).stdout == "True\n"


def test_the_variable_of_cublas_is_set_before_the_script_begins_unless_it_is(tmp_path: Path) -> None:
    write(
        tmp_path / "script.py", "import os, sys; print(os.environ['CUBLAS_WORKSPACE_CONFIG'], 'torch' in sys.modules)"
    )
    assert launched("script", "script.py", cwd=tmp_path).stdout == ":4096:8 False\n"
    given = launched("script", "script.py", cwd=tmp_path, CUBLAS_WORKSPACE_CONFIG=":16:8")
    assert given.stdout == ":16:8 False\n"


FUNCTIONS = """
import sys
class Trainer:
    @staticmethod
    def run():
        return {"args": sys.argv, "path": sys.path[0], "value": Value(len(sys.argv))}
class Value:
    def __init__(self, number):
        self.number = number
    def __eq__(self, other):
        return self.number == other.number
    __hash__ = None
def generator():
    return (i for i in ())
def needs(x, *, y=1):
    pass
number = 3
def fails():
    raise KeyError("x")
"""


def test_what_a_function_returns_is_kept_and_compared_by_another_process(tmp_path: Path) -> None:
    write(tmp_path / "package" / "module.py", FUNCTIONS)
    name = "package.module:Trainer.run"
    for args in ((), ("x",)):
        assert launched("function", name, *args, cwd=tmp_path).stderr == ""
        (tmp_path / "result").rename(tmp_path / f"result{len(args)}")
    for other in (0, 1):
        result = python("-c", COMPARE, "result0", f"result{other}", "answer", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        answer = json.loads((tmp_path / "answer").read_text())
        assert answer == (None if other == 0 else [True, "['args']: structure differs: only the second has [1]"])


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    write(tmp_path / "module.py", FUNCTIONS)
    assert launched("function", "module:generator", cwd=tmp_path).returncode == 0
    told = (tmp_path / "result.refused").read_text()
    assert told.startswith("generator: TypeError: cannot")
    result = launched("function", "module:fails", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.endswith("KeyError: 'x'\n")
    assert "launch.py" not in result.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("module:nowhere", "there is no module:nowhere: module was found, nowhere in it was not"),
        ("module:Trainer.nowhere", "there is no module:Trainer.nowhere: module was found, nowhere in it was not"),
        ("module:number", "module:number is no function but 3"),
        ("module:needs", "module:needs(x, *, y=1) is called without arguments: missing a required argument: 'x'; "),
        ("nowhere:f", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_function_that_cannot_be_called_is_told(tmp_path: Path, name: str, told: str) -> None:
    write(tmp_path / "module.py", FUNCTIONS)
    result = launched("function", name, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(told)
    assert len(result.stderr.splitlines()) == 1


def test_what_a_function_returns_is_let_go_where_no_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "module.py", FUNCTIONS)
    for name in ("module:generator", "time:time"):  # the second is written in C, and does not tell its arguments
        result = launched("function", name, cwd=tmp_path, result=None)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["module.py"]


def test_what_is_to_be_run_is_told_by_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    (tmp_path / "a:b").touch()
    assert parse("train.py", "-m", "x") == Target("script", "train.py", ("-m", "x"))
    assert parse("-m", "a.b", "--x") == Target("module", "a.b", ("--x",))
    assert parse("-ma.b", "--x") == Target("module", "a.b", ("--x",))
    assert parse("a.b:C.d", "x") == Target("function", "a.b:C.d", ("x",))
    assert parse("a:b") == Target("script", "a:b", ())
    assert list(map(str, (parse("train.py", "x"), parse("-m", "a.b"), parse("a:f")))) == ["train.py", "-m a.b", "a:f"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.py"], "there is no script 'nowhere.py' (a module is -m package.module, a function"),
        (["."], "there is no script '.'"),
        (["a:"], "there is no script 'a:'"),
        (["--sed", "3"], "there is no option --sed; those of the target stand behind it"),
        (["-m"], "-m takes the name of a module, such as package.module; got ''"),
        (["-m", "train.py:f"], "got 'train.py:f'"),
        (["-m", "../x"], "got '../x'"),
    ],
)
def test_words_that_are_no_target_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse(*words)
