"""Run a script, a module or a function in this interpreter under a seed, as Python itself would run it."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib.util
import inspect
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


def launch(
    target: Target, seed: int, *, strict: bool = False, trace: str | None = None, result: str | None = None
) -> None:
    """Run a target under a seed to the very end of this interpreter.

    What it raises is shown as Python would show it, and raised again, for Python to end with the exit code it would
    have. The scope is never left: what the target does at exit is covered as well.

    Args:
        target: what to run; a function is called without arguments.
        seed: as in `deterministic`.
        strict: as in `deterministic`.
        trace: the file for the trace of its torch ops.
        result: the file for what a function returns; without one that is let go.
    """
    os.environ.setdefault(CUBLAS, ":4096:8")  # before torch is imported: cuBLAS reads it once
    sys.argv = ["-m" if target.kind == "module" else target.name, *target.args]
    _look_first_in(str(Path(target.name).resolve().parent) if target.kind == "script" else os.getcwd())
    from .. import deterministic  # which imports torch and numpy when it is entered

    deterministic(seed, strict=strict).__enter__()
    if trace is not None:
        from ..trace import record

        recording = record(trace)
        recording.__enter__()
        atexit.register(recording.__exit__, None, None, None)  # the first to be registered is the last to be called
    try:
        if target.kind == "function":
            value = _function(target.name)()
            if result is not None:
                _keep(value, result)
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


def _look_first_in(folder: str) -> None:
    if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
        sys.path[0] = folder


def _main_module(**more: Any) -> types.ModuleType:
    before = vars(sys.modules["__main__"])
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(module).update({"__annotations__": {}} if "__annotations__" in before else {})  # from 3.14 on it has none
    vars(module).update(__builtins__=builtins, __cached__=None, **more)
    return module


def _script(name: str) -> tuple[types.ModuleType, types.CodeType]:
    path = os.path.join(os.getcwd(), name)  # not normalised, as in Python
    module = _main_module(__file__=path, __loader__=SourceFileLoader("__main__", path))
    return module, compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)


def _module(name: str) -> tuple[types.ModuleType, types.CodeType]:
    """Find a module and its code; or exit with the words that Python has for it."""
    try:
        spec, wanted = importlib.util.find_spec(name), name
        if spec is not None and spec.submodule_search_locations is not None:  # a package
            wanted = f"{name}.__main__"
            spec = importlib.util.find_spec(wanted)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # of something that it imports
            raise
        sys.exit(f"{sys.executable}: Error while finding module specification for {name!r} ({_named(error)})")
    code = getattr(spec and spec.loader, "get_code", lambda name: None)(wanted)
    if spec is None or code is None:
        but = "" if wanted == name else f"; {name!r} is a package and cannot be directly executed"
        sys.exit(
            f"{sys.executable}: {'No module named' if spec is None else 'No code object available for'} {wanted}{but}"
        )
    sys.argv[0] = str(spec.origin)
    module = _main_module(__file__=spec.origin, __loader__=spec.loader, __package__=spec.parent, __spec__=spec)
    return module, code


def _function(name: str) -> Any:
    module, _, path = name.partition(":")
    __import__(module)  # whose traceback has no frames of the import system, other than importlib's
    function: Any = sys.modules[module]
    for attribute in path.split("."):
        if not hasattr(function, attribute):
            sys.exit(f"there is no {name}: {module} was found, {attribute} in it was not")
        function = getattr(function, attribute)
    if not callable(function):
        sys.exit(f"{name} is no function but {function!r}")
    with contextlib.suppress(ValueError):  # of some that are written in C
        signature = inspect.signature(function)
        try:
            signature.bind()
        except TypeError as error:
            sys.exit(
                f"{name}{signature} is called without arguments: {error}; name a function that needs none and reads "
                "what it wants from sys.argv"
            )
    return function


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _keep(value: Any, file: str) -> None:
    """Write what a function has returned; or, next to it, why that cannot be done."""
    import torch

    try:
        torch.save(value, file)
    except Exception as error:
        told = f"{type(value).__qualname__}: {_named(error)}"
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
    _look_first_in(os.getcwd())
    # Both files are private, and were written a moment ago by children of the process that asks.
    found = first_difference(*(torch.load(file, map_location="cpu", weights_only=False) for file in (first, second)))
    answer = None if found is None else [found.what != "incomparable", str(found)]
    Path(told).write_text(json.dumps(answer), encoding="utf-8")
