"""Assertions for tests: that two results are the same bit for bit, and that a call repeats.

Nothing here needs pytest; pytest hides the frames of these functions from its tracebacks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypeVar, overload

from ..compare import first_difference
from ..scope import Scope, deterministic, isolated
from ..state import RngState, capture
from .repetition import Call, Repetition

__all__ = ["assert_bitwise_equal", "assert_does_not_touch", "assert_repeatable", "repeatable"]

F = TypeVar("F", bound="Callable[..., Any]")
T = TypeVar("T")


def assert_bitwise_equal(first: Any, second: Any, *, grad: bool = False) -> None:
    """Assert that two nested values are the same bit for bit, as `first_difference` compares them.

    Args:
        first: any value.
        second: the one to compare with it.
        grad: compare whether tensors require a gradient, and their gradients.

    Raises:
        AssertionError: they differ; the message says where and how.
        TypeError: something in them cannot be compared, such as a tensor on the meta device or a lock.

    >>> import torch
    >>> assert_bitwise_equal([torch.ones(2)], [torch.ones(2)])
    """
    __tracebackhide__ = True
    difference = first_difference(first, second, grad=grad)
    if difference is not None and difference.what == "incomparable":
        raise TypeError(str(difference))
    if difference is not None:
        raise AssertionError(f"not the same bit for bit: {difference}")


def assert_repeatable(
    fn: Callable[..., T],
    /,
    *args: Any,
    seed: SupportsIndex = 0,
    runs: int = 2,
    strict: bool = False,
    trace: bool = False,
    **kwargs: Any,
) -> T:
    """Assert that a call gives the same, bit for bit, whenever it is made under the same seed.

    Each run is made under ``deterministic(seed)`` on a deep copy of its own of the function and all arguments, which
    are copied together: an optimizer still points at its model's parameters, so a whole training step can be checked.
    Compared are the results, what the runs have made of their arguments (gradients, buffers and generators too), and
    where the random streams are after the call. What was passed in, the streams and the flags stay as they are.

    A plain function is not copied, so neither is what it closes over: hand over as an argument what it changes. Where
    the function itself takes an argument ``seed``, ``runs``, ``strict`` or ``trace``, wrap it in a lambda or a
    ``partial``. Make a learning-rate scheduler inside of the function: torch warns of copied ones.

    Args:
        fn: a function, bound method, ``nn.Module`` or anything else that can be called.
        args: its arguments.
        seed: as in `deterministic`.
        runs: how often to call it, 2 or more.
        strict: as in `deterministic`.
        trace: record the torch ops of each run as `scoped_rng.trace.record` does, which takes two or three times as
            long, so that a failure names the first op in which the runs part.
        kwargs: its keyword arguments.

    Returns:
        What the first run has returned.

    Raises:
        AssertionError: two runs differ; the message says in what. Or one has raised, but not the first.
        ImportError: a trace needs xxhash; ``pip install 'scoped-rng[cli]'``.
        TypeError: an argument cannot be copied or compared, or the call has only made a coroutine or a generator.
        ValueError: ``runs`` is less than 2.

    >>> import torch
    >>> assert_repeatable(torch.nn.Dropout(), torch.ones(3)).shape
    torch.Size([3])
    """
    __tracebackhide__ = True
    if not callable(fn):
        raise TypeError(f"assert_repeatable takes a function and its arguments, got {type(fn).__name__} {fn!r}")
    if not isinstance(trace, bool):
        raise TypeError(f"trace= is True or False, got {type(trace).__name__} {trace!r}")
    scope = deterministic(seed, strict=strict)
    repetition = Repetition(Call(fn, args, kwargs), scope, _check_runs(runs))
    if trace:
        from ..trace import record

        repetition.record = record
    result: T = repetition.repeat()
    return result


def _check_runs(runs: int) -> int:
    if not isinstance(runs, int) or isinstance(runs, bool):
        raise TypeError(f"runs= is a whole number of 2 or more, got {type(runs).__name__} {runs!r}")
    if runs < 2:
        raise ValueError(f"runs= must be 2 or more, since a run is compared with the first, got {runs}")
    return runs


def assert_does_not_touch(
    fn: Callable[..., T], /, *args: Any, streams: str | Sequence[str] | None = None, **kwargs: Any
) -> T:
    """Assert that a call draws from no global stream: that all its random numbers come from generators it was given.

    Where the streams are is compared before and after, so a call that puts back what it has drawn passes. They are left
    as they were before it, whatever comes out. An unseeded ``np.random.default_rng()`` moves no global stream.

    Args:
        fn: a function or anything else that can be called.
        args: its arguments, which are not copied.
        streams: the names of those that it must not move, such as ``["torch", "numpy"]``; None for all.
        kwargs: its keyword arguments.

    Returns:
        What the call has returned.

    Raises:
        AssertionError: a stream has moved; the message says which.
        TypeError: the call has only made a coroutine or a generator, whose body has not run.
        ValueError: there is no stream of that name.

    >>> import numpy as np
    >>> assert_does_not_touch(lambda rng: int(rng.integers(3)), np.random.default_rng(0))
    2
    """
    __tracebackhide__ = True
    call = Call(fn, args, kwargs)

    @isolated()
    def watch() -> tuple[T, list[str]]:
        __tracebackhide__ = True
        before = capture()
        watched = _names(streams, before)
        result: T = call.check(fn(*args, **kwargs))
        return result, [name for name in capture().diff(before) if name in watched]

    result, moved = watch()
    if moved:
        raise AssertionError(
            f"{call.name} has moved the global stream{'s' if len(moved) > 1 else ''} {', '.join(moved)}; let it draw "
            "from a generator that it is given, or in a block of isolated()"
        )
    return result


def _names(streams: str | Sequence[str] | None, state: RngState) -> list[str]:
    known = [name for name in state.names if name != "numpy.entropy"]
    if streams is None:
        return known
    asked = [streams] if isinstance(streams, str) else list(streams)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ValueError(f"streams= names {', '.join(map(repr, unknown)) or 'no stream'}; there are {', '.join(known)}")
    return asked


@overload
def repeatable(seed: F) -> F: ...
@overload
def repeatable(seed: SupportsIndex = 0, *, runs: int = 2, strict: bool = False) -> Callable[[F], F]: ...
def repeatable(seed: Any = 0, *, runs: int = 2, strict: bool = False) -> Any:
    """Run a test several times, and assert that each run draws, returns and makes of its fixtures the same.

    Decorate a test function, a method or a coroutine, bare or with arguments, above or below ``@given`` and marks. As
    in `assert_repeatable`, each run has a deep copy of its own of all arguments: of the fixtures' values, and of
    ``self``. What belongs to pytest (``monkeypatch``, ``capsys``, ``request`` and such) and a ``unittest.TestCase`` are
    handed over as they are. All runs get the same ``tmp_path``.

    Args:
        seed: as in `deterministic`.
        runs: how often to run the test, 2 or more.
        strict: as in `deterministic`.

    Raises:
        TypeError: what is decorated is a class, a fixture or a generator, or cannot be called.

    >>> import torch
    >>> @repeatable
    ... def test_noise():
    ...     assert torch.rand(()) < 1
    >>> test_noise()
    """
    decorates = callable(seed) or isinstance(seed, (staticmethod, classmethod))
    scope = deterministic(0 if decorates else seed, strict=strict)
    _check_runs(runs)

    def decorate(fn: Any) -> Any:
        if isinstance(fn, (staticmethod, classmethod)):
            return type(fn)(decorate(fn.__func__))
        given: Any = getattr(fn, "hypothesis", None)
        if hasattr(given, "inner_test"):  # the hook that Hypothesis documents for those who wrap each example
            given.inner_test = decorate(given.inner_test)
            return fn
        return _repeat_test(fn, scope, runs)

    return decorate(seed) if decorates else decorate


def _repeat_test(fn: Any, scope: Scope, runs: int) -> Any:
    lazy = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
    if not callable(fn) or isinstance(fn, type) or lazy or type(fn).__name__ == "FixtureFunctionDefinition":
        kind = "generator function" if lazy else "class" if isinstance(fn, type) else type(fn).__name__
        raise TypeError(
            f"repeatable decorates test functions, methods and coroutines, got the {kind} "
            f"{getattr(fn, '__name__', repr(fn))}; put it on each test"
        )

    def repetition_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Repetition:
        handed_over = [value for value in (*args, *kwargs.values()) if _belongs_to_the_runner(value)]
        return Repetition(Call(fn, args, kwargs), scope, runs, handed_over)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            return await repetition_of(args, kwargs).repeat_async()

        return coroutine

    @functools.wraps(fn)
    def function(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return repetition_of(args, kwargs).repeat()

    return function


def _belongs_to_the_runner(value: Any) -> bool:
    modules = [kind.__module__ for kind in type(value).__mro__]
    return any(name == "unittest.case" or name.partition(".")[0].lstrip("_").startswith("pytest") for name in modules)
