"""Keep torch.compile out of what it cannot hold, without importing it: dynamo and inductor take a second.

Two things are needed. A caller that is being traced must stop at our functions: dynamo looks for two attributes, which
``torch.compiler.disable`` sets as well. And where the caller runs eagerly then, dynamo would trace each function of
ours by itself, as it does with any frame: it is told to skip them, with all that they call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["MESSAGE", "imported", "never_compile", "skip_frames", "skipped"]

F = TypeVar("F", bound="Callable[..., Any]")
MESSAGE = (
    "scoped_rng: a scope saves and restores generators, which a compiled graph cannot hold. Move it outside: open the "
    "scope round the call of the compiled function"
)
waiting: list[Any] = []
"""The code of functions whose frames are to be skipped, as soon as torch is there."""


def imported(name: str) -> Any:
    """Return a module that is imported to its end, or None; a stand-in that a test has put in its place has no spec."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if spec is None or getattr(spec, "_initializing", False) else module


def skipped(fn: F) -> F:
    """Run ``fn`` and all that it calls eagerly, where its caller runs eagerly."""
    waiting.append(fn.__code__)
    if imported("torch") is not None:
        skip_frames()
    return fn


def never_compile(fn: F) -> F:
    """Run ``fn`` eagerly, and break the graph where a compiled function calls it."""
    fn._torchdynamo_disable = True  # type: ignore[attr-defined]
    fn._torchdynamo_disable_msg = MESSAGE  # type: ignore[attr-defined]
    return skipped(fn)


def skip_frames() -> None:
    """Tell dynamo of the functions that wait for it."""
    frames: Any = getattr(getattr(sys.modules["torch"]._C, "_dynamo", None), "eval_frame", None)
    known = hasattr(frames, "set_code_exec_strategy")
    while waiting:
        code = waiting.pop()
        if known:
            skip = frames._FrameAction.SKIP
            frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, skip))


never_compile(skip_frames)
