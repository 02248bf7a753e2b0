"""``scoped-rng check``, ``run`` and ``doctor`` on real programs, each called as a user would."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.test_launch import environment, python, write

DIGITS = Path(__file__).parents[1] / "benchmarks" / "workloads" / "digits.py"


def command(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "scoped_rng", *args, cwd=cwd, COLUMNS="80", **env)


def plain(text: str) -> str:
    return " ".join(text.split())


STREAMS = """
import atexit, os, random, sys, tempfile
import numpy, torch
names = [name for name in ("scoped_rng.trace.recorder", "xxhash") if name in sys.modules]
draws = random.random(), numpy.random.rand(), numpy.random.default_rng().random(), torch.rand(()).item()
print(draws, len(names), file=open("draws.txt", "w"))
atexit.register(lambda: print(random.random(), torch.rand(2)))
if "--set" in sys.argv:
    print({str(i) for i in range(100)})
"""


def test_a_script_that_draws_from_every_stream_is_reproducible_to_its_very_end(tmp_path: Path) -> None:
    write(tmp_path / "script.py", STREAMS)
    result = command("check", "script.py", "--output", "draws.txt", "--json", "a", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "a").read_text())
    assert found["runs"][0]["ops"] == 3  # rand and item, and rand at the end
    assert found["told"].startswith("reproducible under seed 0: both runs agree in 3 torch ops, stdout (")
    assert found["told"].endswith(" bytes), stderr (empty) and draws.txt")
    assert (tmp_path / "draws.txt").read_text().endswith(" 2\n")


def test_the_order_of_a_set_differs_unless_a_hash_seed_is_given(tmp_path: Path) -> None:
    write(tmp_path / "script.py", STREAMS)
    env = {"PYTHONHASHSEED": "random"}
    result = command("check", "--no-trace", "script.py", "--set", cwd=tmp_path, **env)
    assert (result.returncode, result.stderr) == (1, "")
    assert plain(result.stdout).startswith(
        "✘ not reproducible under seed 0: stdout differs run exit seconds stdout stderr"
    )
    assert "the same words in another order: a set of str (try --hash-seed 0)" in plain(result.stdout)
    assert "script.py:9: {...} has an order that PYTHONHASHSEED decides" in plain(result.stdout)
    assert (tmp_path / "draws.txt").read_text().endswith(" 0\n")  # no trace, and nothing that makes one
    result = command("check", "--no-trace", "--hash-seed", "3", "script.py", "--set", cwd=tmp_path, **env)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_users_training_script_is_reproducible(tmp_path: Path) -> None:
    result = command("check", DIGITS, "--epochs", "1", "--seed", "0", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


TRAINING = """
import os
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x).square().mean()


def noise():
    return torch.tensor(list(os.urandom(4))) / 256


model = Net()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(10):
    x = torch.randn(8, 4)
    if step == 5:
        x = x + noise()
    loss = model(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
"""


class Checked(NamedTuple):
    result: subprocess.CompletedProcess[str]
    found: dict[str, Any]
    svg: str


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    folder = tmp_path_factory.mktemp("parted")
    write(folder / "train.py", TRAINING)
    result = command("check", "train.py", "--json", "found.json", "--svg", "found.svg", cwd=folder)
    return Checked(result, json.loads((folder / "found.json").read_text()), (folder / "found.svg").read_text("utf-8"))


def test_where_runs_part_is_shown_with_its_line_and_what_to_do(parted: Checked) -> None:
    assert (parted.result.returncode, parted.result.stderr) == (1, "")
    out = parted.result.stdout
    assert out.startswith("✘ not reproducible under seed 0: torch ops and stdout differ\n")
    assert "\ntrain.py:17 in noise\n" in out
    assert "\n>   17 │     return torch.tensor(list(os.urandom(4))) / 256\n" in out
    assert "it came from outside torch" in plain(out)
    assert "-> train.py:17: os.urandom draws from the operating system, which no seed reaches" in plain(out)
    assert "run 1: '" in out


def test_in_a_pipe_there_are_80_columns_and_neither_colours_nor_progress(parted: Checked) -> None:
    assert "\x1b" not in parted.result.stdout
    assert max(map(len, parted.result.stdout.splitlines())) <= 80


def test_the_json_of_a_real_divergence(parted: Checked) -> None:
    found = parted.found
    assert (found["verdict"], found["exit_code"], found["seed"]) == ("not reproducible", 1, 0)
    parting = found["parting"]
    assert (parting["kind"], parting["line"], parting["function"]) == ("input", 17, "noise")
    assert parting["streams"] == []
    assert not any(parting["strip"][: parting["at"]])
    assert any(parting["strip"][parting["at"] :])
    assert [difference["what"] for difference in found["differences"]] == ["torch ops", "stdout"]


def test_the_picture_of_a_real_divergence(parted: Checked) -> None:
    assert parted.svg.startswith("<svg")
    assert "os.urandom" in parted.svg


FUNCTIONS = """
import os, torch
def same():
    return {"rand": torch.rand(3), "module": torch.nn.Linear(2, 2)}
def other():
    return [torch.rand(3), os.getpid()]
"""


@pytest.mark.parametrize(("name", "code"), [("same", 0), ("other", 1)])
def test_what_a_function_returns_is_compared(tmp_path: Path, name: str, code: int) -> None:
    write(tmp_path / "package" / "module.py", FUNCTIONS)
    result = command("check", f"package.module:{name}", "--json", "found.json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (code, "")
    found = json.loads((tmp_path / "found.json").read_text())
    if code:
        (difference,) = found["differences"]
        assert difference["what"] == "return value"
        assert difference["told"].startswith("[1]: ")
    else:
        assert found["told"].endswith("stderr (empty) and return value")


def test_a_target_that_fails_shows_what_python_shows(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "def f():\n    1 / 0\nprint(1)\nf()")
    shown = python("script.py", cwd=tmp_path)
    result = command("check", "script.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, shown.stderr)
    told = "! the target failed under seed 0: it ended with exit status 1 in both runs"
    assert result.stdout.splitlines()[0] == told


def test_ops_that_were_not_compared_are_no_ops_that_agree(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "import os, torch\nprint(torch.rand(3), flush=True)\nos._exit(0)")
    result = command("check", "script.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, "")
    told = "! not compared under seed 0: no run left a whole trace of torch ops"
    assert result.stdout.splitlines()[0] == told
    assert "--no-trace compares all the rest" in plain(result.stdout)


def test_a_script_without_torch_is_reproducible(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "import random\nprint(random.random())")
    result = command("check", "script.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "agree in stdout (19 bytes) and stderr (empty); no torch op ran run exit" in plain(result.stdout)


def test_a_pipe_that_is_closed_changes_no_exit_code(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "import os; print(os.getpid())")
    arguments = [sys.executable, "-m", "scoped_rng", "check", "--no-trace", "--json", "found.json", "script.py"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(arguments, cwd=tmp_path, env=environment(), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")
    assert json.loads((tmp_path / "found.json").read_text())["verdict"] == "not reproducible"


def test_run_is_the_script_under_the_seed(tmp_path: Path) -> None:
    write(
        tmp_path / "script.py",
        """
        import os, random, sys
        print(os.environ["CUBLAS_WORKSPACE_CONFIG"], random.random(), sys.argv[1:])
        import torch
        print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        raise KeyError("end")
        """,
    )
    result = command("run", "--seed", "5", "--strict", "script.py", "--seed", "7", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == f":4096:8 {random.Random(5).random()} ['--seed', '7']\nTrue False\n"
    script = tmp_path / "script.py"
    assert result.stderr.startswith(f'Traceback (most recent call last):\n  File "{script}", line 6, in <module>\n')
    assert result.stderr.count("File ") == 1


def test_the_doctor_finds_that_all_is_well(tmp_path: Path) -> None:
    result = command("doctor", "--json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert {finding["value"] for finding in json.loads(result.stdout) if finding["group"] == "live checks"} == {"yes"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_child_behind(tmp_path: Path, number: int) -> None:
    write(tmp_path / "script.py", "import pathlib, time; pathlib.Path('started').touch(); time.sleep(600)")
    arguments = [sys.executable, "-m", "scoped_rng", "check", "--no-trace", "script.py"]
    env = environment(TMPDIR=str(tmp_path))
    with subprocess.Popen(arguments, cwd=tmp_path, env=env, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (held,) = (path for path in tmp_path.glob("scoped_rng-*/1/stdout"))
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"interrupted; no run is left behind\n")
    assert not held.exists()
    if Path("/proc/self/cmdline").exists():
        assert not [pid for pid in os.listdir("/proc") if pid.isdecimal() and str(tmp_path) in _folder(pid)]


def _folder(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
