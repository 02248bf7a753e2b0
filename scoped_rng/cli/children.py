"""Fresh interpreters that run a target, what they leave behind, and an end to all of them on an interrupt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from .launch import Target

__all__ = ["Ended", "Output", "Plan", "call", "python_options", "run"]

_PATIENCE = 3  # seconds


class Plan(NamedTuple):
    """What is to be run, and what of it is compared."""

    target: Target
    seed: int = 0
    runs: int = 2
    strict: bool = False
    trace: bool = True
    hash_seed: int | None = None
    outputs: tuple[str, ...] = ()


class Ended(NamedTuple):
    """A run that has ended, and the folder that holds what it has left."""

    number: int
    status: int
    seconds: float
    folder: Path
    outputs: dict[str, Path]
    """The copy of each output that the run has written."""


class Output:
    """A file that each run writes. Before each run it is put back to what it was before the first."""

    def __init__(self, name: str, kept: Path) -> None:
        self.name, self._path, self._kept = name, Path(name), kept
        if self._path.exists():
            shutil.copy2(self._path, kept)

    def prepare(self) -> None:
        """Put it back, and note what it is."""
        self._path.unlink(missing_ok=True)
        if self._kept.exists():
            shutil.copy2(self._kept, self._path)
        self._before = self._stamp()

    def take(self, copy: Path) -> bool:
        """Copy it, if the run that has ended has written it."""
        if self._stamp() in (None, self._before):
            return False
        shutil.copy2(self._path, copy)
        return True

    def _stamp(self) -> tuple[int, ...] | None:
        if not self._path.is_file():
            return None
        stat = self._path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def run(plan: Plan, number: int, folder: Path, outputs: list[Output]) -> Ended:
    """Run the target once, as the user would start it, but for the seed."""
    folder.mkdir()
    for output in outputs:
        output.prepare()
    options: dict[str, Any] = {"seed": plan.seed, "strict": plan.strict, "result": str(folder / "result")}
    if plan.trace:
        options["trace"] = str(folder / "trace")
    env = dict(os.environ)
    if plan.hash_seed is not None:
        env["PYTHONHASHSEED"] = str(plan.hash_seed)
    task = json.dumps({**plan.target._asdict(), "options": options})
    begun = time.perf_counter()
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        status = call("main", [task], env=env, stdout=stdout, stderr=stderr)
    seconds = time.perf_counter() - begun
    copies = {output.name: folder / f"output{place}" for place, output in enumerate(outputs)}
    taken = {output.name: copies[output.name] for output in outputs if output.take(copies[output.name])}
    return Ended(number, status, seconds, folder, taken)


def call(name: str, arguments: list[str], **options: Any) -> int:
    """Call a function of `launch` in a fresh interpreter and return its exit status; if interrupted, end it."""
    code = f"from {__package__}.launch import {name}; {name}()"
    command = [sys.executable, *python_options(), "-c", code, *arguments]
    # In a session of its own, so that an interrupt comes here alone, and ends with it whatever it has started.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        return process.wait()
    except BaseException:
        try:
            _end(process, signal.SIGINT)
            process.wait(_PATIENCE)  # for it to clean up
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()
        raise


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and to all that it has started; end the process where there are no groups."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):  # it has ended; macOS says the second of one not yet waited for
        pass


_FLAGS = {
    "optimize": "O",
    "bytes_warning": "b",
    "dont_write_bytecode": "B",
    "ignore_environment": "E",
    "isolated": "I",
    "no_user_site": "s",
    "no_site": "S",
    "safe_path": "P",  # from Python 3.11 on
}


def python_options(flags: Any = sys.flags) -> list[str]:
    """Return the options that this interpreter was started with, for another one to be started with."""
    return [
        *(f"-{letter}" for name, letter in _FLAGS.items() for _ in range(getattr(flags, name, 0))),
        *(f"-W{option}" for option in sys.warnoptions),
        *(f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()),
    ]
