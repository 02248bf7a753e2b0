"""Run a script, a module or a function in this interpreter under a seed, as Python itself would run it."""

from __future__ import annotations

import atexit
import builtins
import importlib
import importlib.util
import json
import os
import re
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["Target", "compare", "launch", "main", "parse"]

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


class Target(NamedTuple):
    """What is to be run."""

    kind: Literal["script", "module", "function"]
    name: str
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"-m {self.name}" if self.kind == "module" else self.name


def parse(first: str, *rest: str) -> Target:
    """Tell what the words of a command line ask to run.

    Raises:
        ValueError: there is no such script, or the words are no target.
    """
    if first.startswith("-m"):
        name, args = (first[2:], rest) if len(first) > 2 else (rest[0] if rest else "", rest[1:])
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise ValueError(f"-m takes the name of a module, such as package.module; got {name!r}")
        return Target("module", name, args)
    if first.startswith("-"):
        raise ValueError(f"there is no option {first}; those of the target stand behind it")
    if Path(first).is_file():
        return Target("script", first, rest)
    if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", first):
        return Target("function", first, rest)
    raise ValueError(
        f"there is no script {first!r} (a module is -m package.module, a function package.module:function)"
    )


def launch(target: Target, seed: int, *, strict: bool = False, trace: str | None = None, result: str = "") -> None:
    """Run a target under a seed to the very end of this interpreter.

    What it raises is shown as Python would show it, and raised again, for Python to end with the exit code it would
    have. The scope is never left: what the target does at exit is covered as well.

    Args:
        target: what to run; a function is called without arguments.
        seed: as in `deterministic`.
        strict: as in `deterministic`.
        trace: the file for the trace of its torch ops.
        result: the file for what a function returns.
    """
    os.environ.setdefault(CUBLAS, ":4096:8")  # before torch is imported: cuBLAS reads it once
    sys.argv = [target.name, *target.args]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(target.name).resolve().parent) if target.kind == "script" else os.getcwd()
    from .. import deterministic  # which imports torch and numpy when it is entered

    deterministic(seed, strict=strict).__enter__()
    if trace is not None:
        from ..trace import record

        recording = record(trace)
        recording.__enter__()
        atexit.register(recording.__exit__, None, None, None)  # the first to be registered is the last to be called
    try:
        if target.kind == "function":
            _keep(_call(target.name), result)
        else:
            module, code = _script(target.name) if target.kind == "script" else _module(target.name)
            exec(code, vars(module))
    except SystemExit:
        raise
    except BaseException as error:
        # Python's own traceback begins with the target; the first frames here are ours. Python shows it once more,
        # with all frames, and ends by the signal where it was an interrupt: so it is given a hook that shows nothing.
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        sys.excepthook = lambda *error: None
        raise


def _main_module(**more: Any) -> types.ModuleType:
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(module).update(__builtins__=builtins, __cached__=None, **more)
    return module


def _script(name: str) -> tuple[types.ModuleType, types.CodeType]:
    path = Path(name).absolute()
    module = _main_module(__file__=str(path), __loader__=SourceFileLoader("__main__", str(path)))
    return module, compile(path.read_bytes(), path, "exec", dont_inherit=True)


def _module(name: str) -> tuple[types.ModuleType, types.CodeType]:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:  # a package
        spec = importlib.util.find_spec(f"{name}.__main__")
    code = getattr(spec and spec.loader, "get_code", lambda name: None)(spec and spec.name)
    if spec is None or code is None:
        sys.exit(f"{sys.executable}: there is no module {name} that can be run")
    sys.argv[0] = str(spec.origin)
    module = _main_module(__file__=spec.origin, __loader__=spec.loader, __package__=spec.parent, __spec__=spec)
    return module, code


def _call(name: str) -> Any:
    module, _, path = name.partition(":")
    function: Any = importlib.import_module(module)
    for attribute in path.split("."):
        function = getattr(function, attribute)
    return function()


def _keep(value: Any, file: str) -> None:
    """Write what a function has returned; or, next to it, why that cannot be done."""
    import torch

    try:
        torch.save(value, file)
    except Exception as error:
        told = f"{type(value).__qualname__}: {type(error).__name__}: {error}"
        Path(f"{file}.refused").write_text(told, encoding="utf-8", errors="replace")


def main() -> None:
    """Run what the one argument of a child says."""
    task = json.loads(sys.argv[1])
    launch(Target(task["kind"], task["name"], tuple(task["args"])), **task["options"])


def compare() -> None:
    """Write where the values in two files differ, for the files and the path that a child is given."""
    import torch

    from ..compare import first_difference

    first, second, told = sys.argv[1:]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd()
    # Both files are private, and were written a moment ago by children of the process that asks.
    found = first_difference(*(torch.load(file, map_location="cpu", weights_only=False) for file in (first, second)))
    answer = None if found is None else [found.what != "incomparable", str(found)]
    Path(told).write_text(json.dumps(answer), encoding="utf-8")
