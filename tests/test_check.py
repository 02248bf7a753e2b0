"""``python -m scoped_rng check``: every test runs the command as a user would."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import scoped_rng

DIGITS = Path(__file__).parents[1] / "benchmarks" / "workloads" / "digits.py"
TELL = "import sys; print(sys.argv, __file__, __name__, __package__, sys.path[0], __builtins__, file=sys.stderr)\n"
RUN = "import pathlib; run = pathlib.Path('runs'); run.open('a').write('.'); run = len(run.read_text())\n"


def environment(**more: str) -> dict[str, str]:
    # With the package from wherever the tests have it, installed or not.
    return {**os.environ, "PYTHONPATH": str(Path(scoped_rng.__file__).parents[1]), **more}


def python(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=environment(**env), capture_output=True, text=True, encoding="utf-8")


def check(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "scoped_rng", "check", *args, cwd=cwd, **env)


def write(folder: Path, script: str) -> str:
    (folder / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
    return "script.py"


def test_a_script_that_draws_from_every_stream_is_reproducible_to_its_very_end(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        import atexit, random, numpy, torch
        print(random.random(), numpy.random.rand(), numpy.random.default_rng().random(), torch.rand(()).item())
        atexit.register(lambda: print(random.random()))
        """,
    )
    result = check(script, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("reproducible under seed 0: both runs printed the same ")


def test_the_users_training_script_is_reproducible(tmp_path: Path) -> None:
    result = check(DIGITS, "--epochs", "1", "--seed", "0", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "print('same'); print(f'naïve {run}'); print(run)",
            "line 2 of the output differs\n  run 1: 'naïve 1\\n'\n  run 2: 'naïve 2\\n'\n",
        ),
        ("print('more\\n' * (3 - run), end='')", "line 2 of the output differs\n  run 1: 'more\\n'\n  run 2: ''\n"),
        ("import sys; sys.exit(3 * (run - 1))", "the exit status is 0 in run 1 and 3 in run 2\n"),
        ("assert run == 2", "the exit status is 1 in run 1 and 0 in run 2\n"),
    ],
    ids=["another line", "fewer lines", "fails second", "fails first"],
)
def test_the_first_difference_is_shown(tmp_path: Path, script: str, told: str) -> None:
    result = check(write(tmp_path, RUN + script), "--seed=7", cwd=tmp_path, PYTHONUTF8="1")
    assert (result.returncode, result.stdout) == (1, f"not reproducible under seed 7: {told}")


def test_entropy_of_the_operating_system_is_not_reproducible(tmp_path: Path) -> None:
    result = check(write(tmp_path, "import os; print(os.urandom(16).hex())"), cwd=tmp_path)
    assert result.returncode == 1
    first, second = (line.split(": ")[1] for line in result.stdout.splitlines()[1:])
    assert first != second


@pytest.mark.parametrize(
    ("script", "status"),
    [("def f():\n    1 / 0\nprint(1)\nf()", 1), ("def (", 1), ("import sys; sys.exit(3)", 3)],
    ids=["raises", "syntax error", "exit status"],
)
def test_a_script_that_fails_shows_what_python_shows(tmp_path: Path, script: str, status: int) -> None:
    write(tmp_path, script)
    plain = python("script.py", cwd=tmp_path)
    result = check("script.py", cwd=tmp_path)
    assert result.returncode == 2
    told = f"the exit status is {status} in run 1 and {status} in run 2"
    assert result.stdout == f"the script failed under seed 0: {told}\n"
    assert (plain.returncode, plain.stderr * 2) == (status, result.stderr)


def test_the_script_runs_as_python_would_run_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", TELL + "import random; print(random.random(), sys.stdin.read(), file=sys.stderr)")
    (tmp_path / "link.py").symlink_to(tmp_path / "inner" / "script.py")
    args = ["a b", "-x", "--flag", "--seed", "7", "--help", "--"]
    plain = python("link.py", *args, cwd=tmp_path).stderr.splitlines()[0]
    seed_before = check("--seed", "5", "link.py", "--", *args, cwd=tmp_path)
    seed_between = check("link.py", "a b", "-x", "--seed", "5", "--flag", "--", *args[3:], cwd=tmp_path)
    drawn = random.Random(5).random()
    for result in (seed_before, seed_between):
        assert result.returncode == 0
        assert result.stderr.splitlines() == [plain, f"{drawn} "] * 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path")
def test_with_a_safe_path_the_folder_of_the_script_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, TELL)
    plain = python("script.py", cwd=tmp_path, PYTHONSAFEPATH="1")
    result = check("script.py", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert (result.returncode, result.stderr) == (0, plain.stderr * 2)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "the script is missing"),
        (["--", "nowhere.py"], "there is no script 'nowhere.py'"),
        (["."], "there is no script '.'"),
        (["script.py", "--seed"], "argument --seed: expected one argument"),
        (["--seed", "-1", "script.py"], "a seed must be in [0, 2**64), got -1; take it modulo 2**64"),
        (["--seed", "train", "script.py"], "got str 'train'; derive one from the name: fold_in(0, 'train')"),
        (["--seed=1.5", "script.py"], "a seed must be an int in [0, 2**64), got str '1.5'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_runs_nothing(tmp_path: Path, args: list[str], told: str) -> None:
    write(tmp_path, RUN)
    result = check(*args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_help_tells_how_the_script_gets_options_of_the_same_name(tmp_path: Path) -> None:
    result = check("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "usage: python -m scoped_rng check [--seed N] SCRIPT [ARGS]..." in result.stdout
    assert "check SCRIPT -- --seed 1" in " ".join(result.stdout.split())
    assert "{check}" in result.stdout
    assert python("-m", "scoped_rng", cwd=tmp_path).returncode == 2


def test_an_interrupt_leaves_no_child_behind(tmp_path: Path) -> None:
    script = write(tmp_path, "import pathlib, time; pathlib.Path('started').touch(); time.sleep(600)")
    command = [sys.executable, "-m", "scoped_rng", "check", script]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)  # reads until the last process that has this stderr is gone
    assert process.returncode not in (0, 1, 2)
