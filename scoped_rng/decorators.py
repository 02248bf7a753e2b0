"""A scope round any callable: in force exactly while the body runs."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any, SupportsIndex, TypeVar, overload

from .activation import Activation
from .dynamo import never_compile, skipped
from .scope import Scope, deterministic

__all__ = ["decorate", "fixed_seed"]

F = TypeVar("F", bound="Callable[..., Any]")


@overload
def fixed_seed(seed: F) -> F: ...
@overload
def fixed_seed(
    seed: SupportsIndex = 0, *, strict: bool = False, also: Any = (), devices: Sequence[Any] | None = None
) -> Callable[[F], F]: ...
def fixed_seed(seed: Any = 0, *, strict: bool = False, also: Any = (), devices: Sequence[Any] | None = None) -> Any:
    """Run every call of a function under `deterministic`, bare or with arguments.

    It covers the whole life of a call and keeps the function's name, docs, signature and kind:

    - a function, method, static or class method, partial or callable object: one activation per call;
    - a coroutine function, generator or async generator: the scope is in force exactly while the body runs. Wherever it
      gives way, everything is taken out, so that interleaved tasks do not see each other. Tasks that the body starts
      are tasks of their own, and not covered;
    - a class: every method whose name starts with ``test``;
    - a Hypothesis test, above or below ``@given``: every example starts from the seed.

    Args:
        seed: as in `deterministic`.
        strict: as in `deterministic`.
        also: as in `deterministic`.
        devices: as in `deterministic`.

    Raises:
        TypeError: what is decorated cannot be called, or is a class without a test.

    >>> import random
    >>> @fixed_seed
    ... def noise():
    ...     return random.random()
    >>> noise() == noise()
    True
    >>> @fixed_seed(7)
    ... def more():
    ...     return random.random()
    >>> noise() == more()
    False
    """
    if callable(seed) and not hasattr(type(seed), "__index__"):
        return deterministic(0)(seed)
    return deterministic(seed, strict=strict, also=also, devices=devices)


@skipped
def decorate(scope: Scope, fn: Any) -> Any:
    """Return ``fn`` with ``scope`` in force while its body runs; a class is changed in place.

    Raises:
        TypeError: ``fn`` cannot be called, or is a class without a method whose name starts with ``test``.
    """
    if isinstance(fn, type):
        return _decorate_tests(scope, fn)
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(decorate(scope, fn.__func__))
    if not callable(fn):
        raise TypeError(
            f"{scope!r} decorates functions, methods, callable objects and test classes, got {type(fn).__name__} "
            f"{fn!r}; put it below @property and the like, next to the function"
        )
    given: Any = getattr(fn, "hypothesis", None)
    if hasattr(given, "inner_test"):  # the hook that Hypothesis documents for those who wrap each example
        given.inner_test = decorate(scope, given.inner_test)
        return fn
    if type(fn).__name__ == "FixtureFunctionDefinition":
        raise TypeError(f"{scope!r} decorates the function of a fixture: put it below @pytest.fixture")
    return functools.update_wrapper(never_compile(_wrapper(scope, fn)), fn)


def _decorate_tests(scope: Scope, cls: type) -> type:
    names = [name for name in dir(cls) if name.startswith("test") and inspect.isroutine(getattr(cls, name))]
    if not names:
        raise TypeError(
            f"{scope!r} decorates the methods of a class whose names start with 'test', and {cls.__name__} has none; "
            "decorate its methods one by one"
        )
    for name in names:
        setattr(cls, name, decorate(scope, inspect.getattr_static(cls, name)))
    return cls


def _wrapper(scope: Scope, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same kind as ``fn``, with an activation of its own for each call.

    Each form has two finally blocks round the same call: where an interrupt hits the inner one, the outer one goes on.
    """

    def is_kind(check: Callable[[Any], bool]) -> bool:
        return check(fn) or check(getattr(type(fn), "__call__", None))

    if is_kind(inspect.iscoroutinefunction):

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return await _run_through(scope, fn(*args, **kwargs))

        return coroutine

    if is_kind(inspect.isasyncgenfunction):

        async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            body = fn(*args, **kwargs)
            activation = Activation(scope)
            step = _first_step(body)
            failed = True
            try:
                try:
                    try:
                        while True:
                            ended, value = await _step(activation, step)
                            if ended:
                                break
                            with _Thrown() as thrown:
                                step = body.asend((yield value))
                            if thrown.error is not None:
                                step = body.athrow(thrown.error)
                            del thrown
                    finally:
                        _close(activation, _Closing(body, step))
                finally:
                    activation.stop()
                failed = False
            finally:
                activation.stop()
                activation.report(sys.exc_info()[1] if failed else None)

        return async_generator

    if is_kind(inspect.isgeneratorfunction):

        def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from _run_through(scope, fn(*args, **kwargs)))

        return generator

    def function(*args: Any, **kwargs: Any) -> Any:
        activation = Activation(scope)
        failed = True
        try:
            try:
                activation.start()
                result = fn(*args, **kwargs)
            finally:
                activation.stop()
            failed = False
            return result
        finally:
            activation.stop()
            activation.report(sys.exc_info()[1] if failed else None)

    return function


def _first_step(body: Any) -> Any:
    """Begin an async generator that its loop does not know: it shall close the wrapper, which closes the body."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return body.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


class _Thrown:
    """Catch what is thrown in at a yield.

    As a ``try`` would; but that is a line of its own, which CPython leaves out of the blocks round it, and a tracer can
    raise there.
    """

    error: BaseException | None = None

    def __enter__(self) -> _Thrown:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        self.error = error
        return True


async def _step(activation: Activation, step: Any) -> tuple[bool, Any]:
    """Do one step of an async generator; return whether it has ended, and what it gives."""
    try:
        given = await _steps(activation, step)
    except StopAsyncIteration:
        return True, None
    activation.suspend()
    return False, given


def _close(activation: Activation, body: Any) -> None:
    """Close a body that was interrupted between two steps, in its own scope; else it has ended."""
    try:
        if activation.inside:
            activation.resume()
    finally:
        body.close()


class _Closing:
    """Close an async generator as far as it goes without waiting for anything."""

    def __init__(self, body: Any, step: Any) -> None:
        self._body, self._step = body, step

    def close(self) -> None:
        # Not close() of a step: before Python 3.13 the generator would not hear of it.
        closing = self._step if self._body.ag_running else self._body.aclose()
        try:
            if not self._body.ag_running:
                closing.send(None)
            closing.throw(GeneratorExit())  # inside an await, or about to, for which it is too late
        except (GeneratorExit, StopIteration, StopAsyncIteration):
            pass


@types.coroutine
def _run_through(scope: Scope, body: Any) -> Generator[Any, Any, Any]:
    """Run a generator or coroutine to its end, in force exactly while it runs."""
    activation = Activation(scope)
    failed = True
    try:
        try:
            try:
                result = yield from _steps(activation, body)
            finally:
                _close(activation, body)
        finally:
            activation.stop()
        failed = False
        return result
    finally:
        activation.stop()
        activation.report(sys.exc_info()[1] if failed else None)


@types.coroutine
def _steps(activation: Activation, body: Any) -> Generator[Any, Any, Any]:
    """Run ``body`` step by step, passing on what goes in and out; take the activation out wherever it gives way.

    At the end the activation is in force. Where an error comes out, it is for the caller to close the body.

    Args:
        body: what has ``send`` and ``throw``: a generator, a coroutine, or one step of an async generator.
    """
    step, value = body.send, None
    while True:
        activation.resume()
        try:
            given = step(value)
        except StopIteration as stop:
            return stop.value
        finally:
            value = None  # an error that goes through here must not be kept alive by this frame
        activation.suspend()
        try:
            step, value = body.send, (yield given)
        except BaseException as error:
            step, value = body.throw, error
