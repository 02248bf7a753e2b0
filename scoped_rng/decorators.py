"""A scope round any callable: in force exactly while the body runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, SupportsIndex, TypeVar, overload

from .dynamo import never_compile, skipped
from .errors import ConcurrentScopeError
from .scope import Scope, deterministic
from .scope.activation import Activation, Transaction, run_within

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
    # A classmethod is not callable either, nor a property, which is an error of its own.
    is_decorated = callable(seed) or hasattr(type(seed), "__get__")
    if is_decorated and not hasattr(type(seed), "__index__"):
        return deterministic(0, strict=strict, also=also, devices=devices)(seed)
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
    if isinstance(fn, functools.partialmethod):
        return functools.partialmethod(decorate(scope, fn.func), *fn.args, **fn.keywords)
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
    # Not the attributes of an object that can be called, a module's, say: they would be copies that go stale.
    wrapper = functools.update_wrapper(_wrapper(scope, fn), fn, updated=("__dict__",) if inspect.isroutine(fn) else ())
    for name in [name for name in vars(wrapper) if name.startswith("_torchdynamo") or name in _OF_COMPILED]:
        delattr(wrapper, name)  # by which dynamo would go to the compiled function itself, past the scope
    return never_compile(wrapper)


_OF_COMPILED = ("get_compiler_config", "_is_torch_compile")


def _decorate_tests(scope: Scope, cls: type) -> type:
    tests = {name: inspect.getattr_static(cls, name) for name in dir(cls) if name.startswith("test")}
    tests = {name: test for name, test in tests.items() if callable(getattr(cls, name)) and not isinstance(test, type)}
    if not tests:
        raise TypeError(
            f"{scope!r} decorates the methods of a class whose names start with 'test', and {cls.__name__} has none; "
            "decorate its methods one by one"
        )
    decorated = {}
    for name, test in tests.items():
        if name not in vars(cls) and hasattr(getattr(test, "hypothesis", None), "inner_test"):
            decorated[name] = _inherited(scope, test)
        else:
            decorated[name] = decorate(scope, test)
            if not hasattr(test, "__get__"):  # an object that can be called, which does not take self
                decorated[name] = staticmethod(decorated[name])
    for name, test in decorated.items():
        setattr(cls, name, test)
    return cls


def _inherited(scope: Scope, test: Any) -> Any:
    """Decorate a Hypothesis test of a parent class, whose hook is the parent's as well, for each call alone."""

    @functools.wraps(test)
    def method(*args: Any, **kwargs: Any) -> Any:
        plain = test.hypothesis.inner_test
        test.hypothesis.inner_test = decorate(scope, plain)
        try:
            return test(*args, **kwargs)
        finally:
            test.hypothesis.inner_test = plain

    return method


def _wrapper(scope: Scope, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same kind as ``fn``, with an activation of its own for each call.

    Each form has two finally blocks round the same call: where an interrupt hits the inner one, the outer one goes on.
    """
    kind: Any = fn
    while isinstance(kind, functools.partial):
        kind = kind.func

    def is_kind(check: Callable[[Any], bool]) -> bool:
        return check(kind) or check(getattr(type(kind), "__call__", None))

    if is_kind(inspect.isasyncgenfunction):

        async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            body, activation, failed = fn(*args, **kwargs), Activation(scope), True
            try:
                try:
                    step = _first_step(body)
                    try:
                        while True:
                            ended, given = await _step(activation, step)
                            if ended:
                                break
                            step = None
                            with _Thrown() as thrown:
                                step = body.asend((yield given.pop()))
                            if thrown.error is not None:
                                step = body.athrow(thrown.error)
                            del thrown
                    finally:
                        _close(activation, _Closing(body, step))
                finally:
                    step = None
                    activation.stop()
                failed = False
            finally:
                activation.stop()
                activation.report(sys.exc_info()[1] if failed else None)

        return async_generator

    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        body, activation, failed = fn(*args, **kwargs), Activation(scope), True
        try:
            try:
                try:
                    # Not `yield from`, which closes what it goes through where a GeneratorExit is thrown in.
                    call = [body.send, None]
                    while True:
                        ended, given = _advance(activation, call)
                        if ended:
                            break
                        with _Thrown() as thrown:
                            call = [body.send, (yield given.pop())]
                        if thrown.error is not None:
                            call = [body.throw, thrown.error]
                        del thrown
                finally:
                    _close(activation, body)
            finally:
                activation.stop()
            failed = False
            return given.pop()
        finally:
            activation.stop()
            activation.report(sys.exc_info()[1] if failed else None)

    if is_kind(inspect.isgeneratorfunction):
        return generator
    if is_kind(inspect.iscoroutinefunction):
        run = types.coroutine(generator)

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return await run(*args, **kwargs)

        return coroutine

    inner = inspect.unwrap(kind)
    checks = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    hides_body = inner is not kind and any(check(inner) for check in checks)

    body = _refusing_what_has_not_run(scope, fn) if hides_body else fn

    def function(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return run_within(Activation(scope), body, *args, **kwargs)

    return function


def _refusing_what_has_not_run(scope: Scope, fn: Any) -> Any:
    """Return ``fn``, raising where a call has only made what will run the body later, outside of the scope."""
    later = (
        AbstractContextManager,
        AbstractAsyncContextManager,
        types.CoroutineType,
        types.GeneratorType,
        types.AsyncGeneratorType,
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        if isinstance(result, later):
            if isinstance(result, types.CoroutineType):
                result.close()
            raise TypeError(
                f"{scope!r} decorates {fn.__name__}, whose body has not run when the call returns a "
                f"{type(result).__name__}; put it below the other decorators (@contextmanager, say), next to the "
                "function"
            )
        return result

    return call


def _advance(activation: Activation, call: list[Any]) -> tuple[bool, list[Any]]:
    """Let a body run to where it gives way, and take the activation out there; return whether it has ended.

    What goes in and out is in lists that are emptied: no frame here shall keep it alive while the body waits, nor an
    error that goes through.

    Args:
        call: the body's ``send`` or ``throw``, and what to call it with.
    """
    activation.resume()
    try:
        given = [call.pop(0)(call.pop())]
    except StopIteration as stop:
        return True, [stop.value]
    activation.suspend()
    return False, given


@types.coroutine
def _steps(activation: Activation, body: Any) -> Generator[Any, Any, list[Any]]:
    """Run one step of an async generator, which may give way to the loop any number of times."""
    call = [body.send, None]
    try:
        while True:
            ended, given = _advance(activation, call)
            if ended:
                return given
            with _Thrown() as thrown:
                call = [body.send, (yield given.pop())]
            if thrown.error is not None:
                call = [body.throw, thrown.error]
            del thrown
    finally:
        del body  # it holds what was thrown in


async def _step(activation: Activation, body: Any) -> tuple[bool, list[Any]]:
    """Do one step of an async generator and take the activation out; return whether it has ended, and what it gives."""
    try:
        given = await _steps(activation, body)
    except StopAsyncIteration:
        return True, []
    finally:
        del body  # it holds what was thrown in
    activation.suspend()
    return False, given


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


def _close(activation: Activation, body: Any) -> None:
    """Close a body that was interrupted between two steps, in its own scope; else it has ended."""
    aside = Transaction()
    try:
        if activation.inside:
            activation.resume()
    except ConcurrentScopeError:  # another thread's scope is open, which what the body still draws must not move
        aside.take(activation.scope.plan())
        raise
    finally:
        try:
            body.close()
        finally:
            aside.put_back()


class _Closing:
    """Close an async generator as far as it goes without waiting for anything."""

    def __init__(self, body: Any, step: Any) -> None:
        self._body, self._step = body, step

    def close(self) -> None:
        # Not close() of a step: before Python 3.13 the generator would not hear of it.
        closing = self._step if self._body.ag_running else self._body.aclose()
        with contextlib.suppress(GeneratorExit, StopIteration, StopAsyncIteration):
            if not self._body.ag_running:
                closing.send(None)
            closing.throw(GeneratorExit())  # inside an await, or about to, for which it is too late
