"""A scope round any callable: in force exactly while the body runs, and else the callable is as it was."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import gc
import inspect
import io
import random
import re
import threading
import types
import unittest
import unittest.mock
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scoped_rng.decorators
from scoped_rng import ConcurrentScopeError, capture, deterministic, fixed_seed, isolated, replay
from scoped_rng.scope import activation
from tests import kit

FIRST, SECOND, THIRD = kit.reference(7, 3)


class Boom(Exception):
    """What a body raises."""


def process() -> tuple[Any, ...]:
    """Return all that must be the same before and after."""
    return kit.everything(), bit_generator.randbits, tuple(activation._stack), activation._innermost_here()


def draw() -> tuple[Any, ...]:
    """Draw from every stream, so that gaussians stay cached."""
    return kit.draws()


@pytest.fixture(autouse=True)
def ambient() -> None:
    """Give the ambient streams states that no seed gives, with a cached gaussian each."""
    random.seed(11)
    np.random.seed(12)
    torch.default_generator.manual_seed(13)
    kit.draws()


@types.coroutine
def pause(value: Any = None) -> Iterator[Any]:
    """Give way once, without an event loop; awaiting it gives what is sent."""
    return (yield value)


def end(coroutine: Any) -> Any:
    """Run a coroutine to its end, without an event loop."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


def native(fn: Any) -> Any:
    """Decorate with nothing."""
    return fn


native_and_decorated = pytest.mark.parametrize("make", [native, fixed_seed(7)], ids=["native", "decorated"])


# Every kind of callable.


def function(count: int, /, *, scale: float = 1.0) -> list[Any]:
    """Draw."""
    return [draw() for _ in range(count)]


async def coroutine_function(count: int, /, *, scale: float = 1.0) -> list[Any]:
    """Draw."""
    await pause()
    return [draw() for _ in range(count)]


def generator_function(count: int, /, *, scale: float = 1.0) -> Iterator[Any]:
    """Draw."""
    for _ in range(count):
        yield draw()


async def async_generator_function(count: int, /, *, scale: float = 1.0) -> AsyncIterator[Any]:
    """Draw."""
    for _ in range(count):
        await pause()
        yield draw()
        await pause()


def collect(result: Any) -> list[Any]:
    """Return the draws of a callable of any kind."""
    if inspect.iscoroutine(result):
        return collect(end(result))
    if inspect.isasyncgen(result):

        async def run() -> list[Any]:
            return [value async for value in result]

        return collect(end(run()))
    return list(result)


class Methods:
    """Every kind of callable as an attribute."""

    def method(self, count: int) -> list[Any]:
        return function(count)

    async def coroutine_method(self, count: int) -> list[Any]:
        return await coroutine_function(count)

    def generator_method(self, count: int) -> Iterator[Any]:
        yield from generator_function(count)

    @classmethod
    def class_method(cls, count: int) -> list[Any]:
        assert cls is Methods
        return function(count)

    @staticmethod
    def static_method(count: int) -> list[Any]:
        return function(count)


class Calls:
    """A callable object."""

    def __call__(self, count: int) -> list[Any]:
        return function(count)


class AwaitedCalls:
    """A callable object whose call is to be awaited."""

    async def __call__(self, count: int) -> list[Any]:
        return await coroutine_function(count)


class GeneratingCalls:
    """A callable object that makes generators."""

    def __call__(self, count: int) -> Iterator[Any]:
        yield from generator_function(count)


class AsyncGeneratingCalls:
    """A callable object that makes async generators."""

    async def __call__(self, count: int) -> AsyncIterator[Any]:
        async for value in async_generator_function(count):
            yield value


CALLABLES: dict[str, Any] = {
    "function": function,
    "lambda": lambda count: function(count),
    "coroutine function": coroutine_function,
    "generator": generator_function,
    "async generator": async_generator_function,
    "bound method": Methods().method,
    "bound coroutine method": Methods().coroutine_method,
    "bound generator method": Methods().generator_method,
    "class method": Methods.class_method,
    "static method": Methods.static_method,
    "partial": functools.partial(function, scale=2.0),
    "partial of a coroutine function": functools.partial(coroutine_function, scale=2.0),
    "partial of a generator": functools.partial(generator_function, scale=2.0),
    "partial of an async generator": functools.partial(async_generator_function, scale=2.0),
    "partial of an async callable object": functools.partial(AwaitedCalls()),
    "callable object": Calls(),
    "async callable object": AwaitedCalls(),
    "callable object that generates": GeneratingCalls(),
    "callable object that generates asynchronously": AsyncGeneratingCalls(),
    "cached function": functools.lru_cache(maxsize=0)(function),
}
every_callable = pytest.mark.parametrize("fn", CALLABLES.values(), ids=CALLABLES)
KINDS = [
    inspect.isfunction,
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
    inspect.isclass,
]


@every_callable
def test_every_call_of_any_callable_starts_from_the_seed(fn: Any) -> None:
    before = process()
    decorated = fixed_seed(7)(fn)
    for _ in range(2):
        assert collect(decorated(2)) == [FIRST, SECOND]
        assert process() == before


@every_callable
def test_a_decorated_callable_is_of_the_same_kind(fn: Any) -> None:
    decorated = fixed_seed(7)(fn)
    kind = fn if inspect.isroutine(fn) or isinstance(fn, functools.partial) else type(fn).__call__
    if isinstance(kind, functools.partial) and not inspect.isroutine(kind.func):
        kind = type(kind.func).__call__
    for is_kind in KINDS[1:]:
        assert is_kind(decorated) == is_kind(kind), is_kind.__name__


@every_callable
def test_a_decorated_callable_keeps_its_signature(fn: Any) -> None:
    assert inspect.signature(fixed_seed(7)(fn)) == inspect.signature(fn)


@pytest.mark.parametrize(
    "fn", [function, coroutine_function, generator_function, async_generator_function], ids=lambda fn: fn.__name__
)
def test_a_decorated_function_keeps_its_name_and_docs(fn: Any) -> None:
    decorated = fixed_seed(7)(fn)
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        assert getattr(decorated, attribute) == getattr(fn, attribute)
    assert decorated.__wrapped__ is fn
    assert inspect.isfunction(decorated)


@pytest.mark.parametrize(
    "fn", [coroutine_function, generator_function, async_generator_function], ids=lambda fn: fn.__name__
)
def test_what_a_decorated_function_makes_is_named_after_it(fn: Any) -> None:
    made = fixed_seed(7)(fn)(1)
    assert (made.__name__, made.__qualname__) == (fn.__name__, fn.__qualname__)
    if inspect.iscoroutine(made):
        made.close()


def test_a_decorated_function_keeps_its_attributes() -> None:
    def marked() -> None: ...

    marked.mark = "slow"  # type: ignore[attr-defined]
    assert fixed_seed(marked).mark == "slow"  # type: ignore[attr-defined]


def test_arguments_and_the_result_pass_through() -> None:
    @fixed_seed
    def echo(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert echo(1, 2, seed=3, scope=4, fn=5, self=6) == ((1, 2), {"seed": 3, "scope": 4, "fn": 5, "self": 6})


def test_a_call_that_does_not_fit_the_signature_fails_as_natively() -> None:
    before = process()
    with pytest.raises(TypeError, match=re.escape("function() missing 1 required positional argument: 'count'")):
        fixed_seed(function)()  # type: ignore[call-arg]
    assert process() == before


def test_a_function_that_calls_itself_starts_from_the_seed_each_time() -> None:
    @fixed_seed(7)
    def recurse(depth: int) -> list[Any]:
        return [draw(), *(recurse(depth - 1) if depth else []), draw()]

    assert recurse(2) == [FIRST, FIRST, FIRST, SECOND, SECOND, SECOND]


# Every way to write it.


class Written:
    """The scope above and below what makes a method special."""

    @fixed_seed(7)
    def method(self) -> Any:
        return self, draw()

    @fixed_seed(7)
    @classmethod
    def class_method_above(cls) -> Any:
        return cls, draw()

    @classmethod
    @fixed_seed(7)
    def class_method_below(cls) -> Any:
        return cls, draw()

    @fixed_seed(7)
    @staticmethod
    def static_method_above() -> Any:
        return Written, draw()

    @staticmethod
    @fixed_seed(7)
    def static_method_below() -> Any:
        return Written, draw()

    @property
    @fixed_seed(7)
    def property_below(self) -> Any:
        return self, draw()

    @fixed_seed(7)
    @classmethod
    async def class_coroutine(cls) -> Any:
        await pause()
        return cls, draw()

    @fixed_seed(7)
    @staticmethod
    def static_generator() -> Any:
        yield Written, draw()


def test_a_scope_on_a_method_covers_it() -> None:
    held = Written()
    assert held.method() == (held, FIRST)
    assert held.property_below == (held, FIRST)


@pytest.mark.parametrize("name", ["class_method", "static_method"])
@pytest.mark.parametrize("place", ["above", "below"])
@pytest.mark.parametrize("owner", [Written, Written()], ids=["class", "instance"])
def test_a_scope_above_or_below_a_class_or_static_method_covers_it(name: str, place: str, owner: Any) -> None:
    assert getattr(owner, f"{name}_{place}")() == (Written, FIRST)


def test_a_scope_above_a_class_or_static_method_keeps_its_kind() -> None:
    assert isinstance(inspect.getattr_static(Written, "class_method_above"), classmethod)
    assert isinstance(inspect.getattr_static(Written, "static_method_above"), staticmethod)
    assert inspect.iscoroutinefunction(Written.class_coroutine)
    assert inspect.isgeneratorfunction(Written.static_generator)
    assert end(Written.class_coroutine()) == (Written, FIRST)
    assert list(Written.static_generator()) == [(Written, FIRST)]


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_bare_fixed_seed_may_stand_above_a_class_or_static_method(kind: Any) -> None:
    class Owner:
        @fixed_seed
        @kind
        def method(*owner: Any) -> Any:
            return draw()

    assert isinstance(inspect.getattr_static(Owner, "method"), kind)
    assert Owner.method() == kit.reference(0)[0]


def test_a_method_that_is_fetched_from_the_class_takes_the_instance() -> None:
    held = Written()
    assert Written.method(held) == (held, FIRST)


def replayed() -> Any:
    with isolated(7):
        return replay(capture())


@pytest.mark.parametrize(
    ("make", "seed"),
    [
        (lambda: fixed_seed, 0),
        (lambda: fixed_seed(), 0),
        (lambda: fixed_seed(7), 7),
        (lambda: fixed_seed(seed=np.int64(7), strict=True, also=[], devices=[]), 7),
        (lambda: deterministic(7), 7),
        (lambda: isolated(7), 7),
        (replayed, 7),
    ],
    ids=["bare", "empty", "fixed_seed", "all arguments", "deterministic", "isolated", "replay"],
)
@every_callable
def test_every_way_to_decorate_gives_the_seed(make: Any, seed: int, fn: Any) -> None:
    before = process()
    assert collect(make()(fn)(2)) == kit.reference(seed, 2)
    assert process() == before


@every_callable
def test_an_unseeded_isolated_decorator_draws_on_from_the_ambient_state(fn: Any) -> None:
    before, upcoming = process(), kit.continuation(2)
    assert collect(isolated()(fn)(2)) == upcoming
    assert process() == before


def test_one_scope_decorates_many_functions() -> None:
    held = deterministic(7)
    one, two = held(function), held(coroutine_function)
    with held:
        assert one(1) == end(two(1)) == [FIRST]
        assert draw() == FIRST


def test_the_innermost_decorator_has_the_last_word() -> None:
    assert isolated(8)(fixed_seed(7)(function))(1) == [FIRST]
    assert list(isolated(8)(fixed_seed(7)(generator_function))(2)) == [FIRST, SECOND]


def test_fixed_seed_sets_the_flags_while_the_body_runs_and_isolated_leaves_them() -> None:
    ambient_flags = kit.flags()
    for strict in (False, True):
        with deterministic(7, strict=strict):
            inside = kit.flags()
        assert inside != ambient_flags
        assert fixed_seed(7, strict=strict)(kit.flags)() == inside
    assert isolated(7)(kit.flags)() == ambient_flags


@every_callable
def test_a_user_object_starts_anew_at_every_call_and_goes_on_outside(fn: Any) -> None:
    rng, seen = random.Random(3), []
    state = rng.getstate()

    @fixed_seed(7, also=rng)
    def roll() -> None:
        seen.append(rng.random())
        collect(fn(1))

    roll(), roll()
    assert seen[0] == seen[1]
    assert rng.getstate() == state


# What cannot be decorated.


class NoTests:
    """A class without tests."""

    def check(self) -> None: ...

    test_data = (1, 2)


class Unusual:
    """What is there to decorate but cannot be called."""

    wrapped = property(lambda self: 1)
    cached = functools.cached_property(lambda self: 1)


@pytest.mark.parametrize("make", [fixed_seed, fixed_seed(0), deterministic(0)], ids=["bare", "called", "deterministic"])
@pytest.mark.parametrize("name", ["wrapped", "cached"])
def test_what_cannot_be_called_is_refused_with_a_word_on_where_to_put_the_decorator(make: Any, name: str) -> None:
    thing = vars(Unusual)[name]
    told = (
        "deterministic(0) decorates functions, methods, callable objects and test classes, got "
        f"{type(thing).__name__} {thing!r}; put it below @property and the like, next to the function"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
        make(thing)


@pytest.mark.parametrize("make", [fixed_seed, fixed_seed(0)], ids=["bare", "called"])
def test_a_class_without_tests_is_refused(make: Any) -> None:
    told = (
        "deterministic(0) decorates the methods of a class whose names start with 'test', and NoTests has none; "
        "decorate its methods one by one"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
        make(NoTests)


@pytest.mark.parametrize("make", [fixed_seed, fixed_seed(0)], ids=["bare", "called"])
def test_a_fixture_is_refused_with_a_word_on_where_to_put_the_decorator(make: Any) -> None:
    @pytest.fixture
    def numbers() -> list[Any]:
        return function(1)

    told = "deterministic(0) decorates the function of a fixture: put it below @pytest.fixture"
    with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
        make(numbers)


# Test classes.


class Base:
    """What the class below inherits."""

    def test_inherited(self) -> Any:
        return draw()


@fixed_seed(7)
class Suite(Base):
    """Test methods of every kind, and others."""

    test_data = (1, 2)

    class test_nested:
        """Not a method."""

    @property
    def test_property(self) -> Any:
        return draw()

    def test_method(self) -> Any:
        return draw()

    async def test_coroutine(self) -> Any:
        await pause()
        return draw()

    def test_generator(self) -> Any:
        yield draw()

    @staticmethod
    def test_static() -> Any:
        return draw()

    @classmethod
    def test_class(cls) -> Any:
        assert cls is Suite
        return draw()

    def helper(self) -> Any:
        return draw()


@pytest.mark.parametrize("name", ["test_method", "test_static", "test_class", "test_inherited"])
def test_every_test_method_of_a_class_starts_from_the_seed(name: str) -> None:
    before = process()
    assert getattr(Suite(), name)() == FIRST
    assert process() == before


def test_async_and_generating_test_methods_of_a_class_start_from_the_seed() -> None:
    before = process()
    assert inspect.iscoroutinefunction(Suite.test_coroutine)
    assert end(Suite().test_coroutine()) == FIRST
    assert list(Suite().test_generator()) == [FIRST]
    assert process() == before


def test_a_decorated_class_stays_the_class_that_it_was() -> None:
    class Plain:
        def test_one(self) -> None: ...

    assert fixed_seed(Plain) is Plain
    assert isinstance(inspect.getattr_static(Suite, "test_static"), staticmethod)
    assert isinstance(inspect.getattr_static(Suite, "test_class"), classmethod)


@pytest.mark.parametrize("name", ["helper", "test_property"])
def test_what_is_no_test_method_of_a_class_is_left_alone(name: str) -> None:
    upcoming = kit.continuation(1)[0]
    value = getattr(Suite(), name)
    assert (value() if callable(value) else value) == upcoming
    assert Suite.test_data == (1, 2)
    assert isinstance(Suite.test_nested, type)


def test_a_decorated_class_leaves_the_one_that_it_inherits_from_alone() -> None:
    upcoming = kit.continuation(1)[0]
    assert Base().test_inherited() == upcoming


def run_unittest(case: Any) -> None:
    result = unittest.TextTestRunner(stream=io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.wasSuccessful(), (result.errors, result.failures)
    assert result.testsRun == 2


def test_a_unittest_class_starts_every_test_from_the_seed() -> None:
    seen, before = [], process()

    @fixed_seed(7)
    class Case(unittest.TestCase):
        def setUp(self) -> None:
            seen.append(len(activation._stack))

        def test_one(self) -> None:
            assert draw() == FIRST

        def test_two(self) -> None:
            assert [draw(), draw()] == [FIRST, SECOND]

    run_unittest(Case)
    assert seen == [0, 0], "only the tests are covered"
    assert process() == before


def test_an_async_unittest_class_starts_every_test_from_the_seed() -> None:
    before = process()

    @fixed_seed(7)
    class Case(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self) -> None:
            await asyncio.sleep(0)

        async def test_one(self) -> None:
            first = draw()
            await asyncio.sleep(0)
            assert [first, draw()] == [FIRST, SECOND]

        def test_two(self) -> None:
            assert draw() == FIRST

    run_unittest(Case)
    assert process() == before


# Under pytest.


@pytest.mark.parametrize("place", [1, 2])
@fixed_seed(7)
def test_a_decorated_test_gets_its_parameters_and_fixtures(place: int, tmp_path: Any) -> None:
    assert tmp_path.exists()
    assert place in (1, 2)
    assert draw() == FIRST


@fixed_seed(7)
@pytest.mark.parametrize("place", [1, 2])
def test_a_test_decorated_above_its_marks_keeps_them(place: int) -> None:
    assert place in (1, 2)
    assert draw() == FIRST


@pytest.mark.asyncio
@fixed_seed(7)
async def test_a_decorated_async_test_is_run_as_one() -> None:
    first = draw()
    await asyncio.sleep(0)
    assert [first, draw()] == [FIRST, SECOND]


@pytest.fixture
@fixed_seed(7)
def drawn_by_fixture() -> Iterator[Any]:
    drawn = draw()
    yield drawn
    assert draw() == SECOND


def test_a_decorated_generator_fixture_does_not_cover_the_test(drawn_by_fixture: Any) -> None:
    assert drawn_by_fixture == FIRST
    assert not activation._stack


# Under Hypothesis.


def property_tests() -> dict[str, Callable[[list[Any]], Any]]:
    """Return makers of property tests, each with the scope in another place, that collect what every example draws."""

    def make(*decorators: Any) -> Callable[[list[Any]], Any]:
        def making(seen: list[Any]) -> Any:
            def example(number: int) -> None:
                seen.append((draw(), draw()))

            for decorator in reversed(decorators):
                example = decorator(example)
            return example

        return making

    held, is_given, limited = fixed_seed(7), given(st.integers()), settings(max_examples=5)
    return {
        "above given": make(held, is_given),
        "below given": make(is_given, held),
        "above given and settings": make(held, limited, is_given),
        "between settings and given": make(limited, held, is_given),
        "below settings and given": make(limited, is_given, held),
        "above given, settings below": make(held, is_given, limited),
        "between given and settings": make(is_given, held, limited),
        "below given and settings": make(is_given, limited, held),
        "above and below": make(held, limited, is_given, held),
    }


PROPERTY_TESTS = property_tests()


@pytest.mark.parametrize("make", PROPERTY_TESTS.values(), ids=PROPERTY_TESTS)
def test_every_example_of_a_hypothesis_test_starts_from_the_seed(make: Any) -> None:
    seen: list[Any] = []
    before = process()
    make(seen)()
    assert len(seen) > 1
    assert set(seen) == {(FIRST, SECOND)}
    assert process() == before


def test_a_hypothesis_test_that_fails_is_shrunk_with_the_scope_in_force() -> None:
    before = process()

    @fixed_seed(7)
    @settings(database=None)
    @given(st.integers())
    def example(number: int) -> None:
        assert draw() == FIRST
        if number > 10:
            raise Boom(number)

    with pytest.raises(Boom) as caught:
        example()
    assert caught.value.args == (11,)
    assert process() == before


def test_a_hypothesis_test_in_a_decorated_class_starts_from_the_seed() -> None:
    seen = []

    @fixed_seed(7)
    class Case:
        @settings(max_examples=5)
        @given(number=st.integers())
        def test_it(self, number: int) -> None:
            seen.append(draw())

    Case().test_it()
    assert set(seen) == {FIRST}


def test_a_hypothesis_test_that_a_decorated_class_inherits_starts_from_the_seed() -> None:
    seen = []

    class Parent:
        @settings(max_examples=5)
        @given(number=st.integers())
        def test_it(self, number: int) -> None:
            seen.append((draw(), draw()))

    @fixed_seed(7)
    class Child(Parent):
        pass

    before = process()
    Child().test_it()
    assert len(seen) > 1
    assert set(seen) == {(FIRST, SECOND)}
    assert process() == before


def test_decorating_a_class_leaves_the_hypothesis_tests_of_its_parent_alone() -> None:
    seen = []

    class Parent:
        @settings(max_examples=5)
        @given(number=st.integers())
        def test_it(self, number: int) -> None:
            seen.append(len(activation._stack))

    @fixed_seed(7)
    class Child(Parent):
        pass

    assert issubclass(Child, Parent)
    Parent().test_it()
    assert set(seen) == {0}


# Generators, coroutines and async generators behave as natively: each of these is run with the scope and without, by
# the same script, and both must have told the same.


def listening(log: list[Any]) -> Any:
    """Tell what comes in, in every way that something can."""
    received = None
    try:
        while received != "stop":
            draw()
            try:
                received = yield received
                log.append(("received", received))
            except ValueError as error:
                log.append(("caught", str(error)))
                received = "caught"
        return "returned"
    finally:
        draw()
        log.append("closed")


def delegating(log: list[Any]) -> Any:
    returned = yield from listening(log)
    log.append(("delegate returned", returned))
    yield "after"
    return returned


def clinging(log: list[Any]) -> Any:
    """Refuse to be closed, once."""
    try:
        yield 1
    except GeneratorExit:
        log.append("refused")
        yield 2
    log.append("went on")


def leaking_stop_iteration(log: list[Any]) -> Any:
    yield 1
    raise StopIteration("leaked")


def failing_to_close(log: list[Any]) -> Any:
    try:
        yield 1
    finally:
        raise Boom("while closing")


def replacing(log: list[Any]) -> Any:
    try:
        yield 1
    except ValueError as error:
        raise Boom("instead") from error


def returning_when_closed(log: list[Any]) -> Any:
    try:
        yield 1
    except GeneratorExit:
        return "closed"


def empty(log: list[Any]) -> Any:
    return "nothing"
    yield


GENERATORS = [
    listening,
    delegating,
    clinging,
    leaking_stop_iteration,
    failing_to_close,
    replacing,
    returning_when_closed,
    empty,
]
SCRIPTS: dict[str, list[tuple[str, Any]]] = {
    "to the end": [("send", None), ("send", "a"), ("send", "b"), ("send", "stop"), ("send", None), ("send", None)],
    "closed": [("send", None), ("send", "a"), ("close", None), ("send", None), ("close", None)],
    "closed twice": [("send", None), ("close", None), ("close", None), ("send", None)],
    "closed before the start": [("close", None), ("send", None)],
    "sent to before the start": [("send", "early"), ("send", None)],
    "thrown into before the start": [("throw", ValueError("early")), ("send", None)],
    "thrown into": [("send", None), ("throw", ValueError("caught")), ("send", "a"), ("throw", KeyError("not caught"))],
    "thrown a class": [("send", None), ("throw", ValueError), ("throw", Boom), ("send", None)],
    "thrown an interrupt": [("send", None), ("throw", KeyboardInterrupt()), ("send", None)],
    "thrown into after the end": [("send", None), ("close", None), ("throw", ValueError("late"))],
    "thrown GeneratorExit": [("send", None), ("throw", GeneratorExit()), ("send", None)],
    "thrown StopIteration": [("send", None), ("throw", StopIteration("thrown")), ("send", None)],
    "thrown StopAsyncIteration": [("send", None), ("throw", StopAsyncIteration("thrown")), ("send", None)],
}
every_script = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


def told(error: BaseException) -> Any:
    """Return what an error says, and what it says of its cause."""
    return type(error), error.args, getattr(error, "value", None), error.__cause__ and told(error.__cause__)


def follow(make: Any, script: list[tuple[str, Any]]) -> list[Any]:
    """Do to a generator or coroutine what the script says; return what came of it."""
    log: list[Any] = []
    generator, is_native = make(log), not hasattr(make, "__wrapped__")
    for method, argument in script:
        arguments = () if method == "close" else (copy.copy(argument),)
        before = process()
        try:
            log.append((method, getattr(generator, method)(*arguments)))
        except BaseException as error:
            log.append((method, told(error)))
        assert is_native or process() == before, f"after {method}"
    logged = log[:]
    finish(generator.close)
    return logged


def finish(close: Callable[[], Any]) -> None:
    """Close a generator that may refuse it, so that nothing is left for the collector."""
    for _ in range(3):
        with contextlib.suppress(BaseException):
            close()


@pytest.mark.parametrize("body", GENERATORS, ids=lambda body: body.__name__)
@every_script
@pytest.mark.parametrize("make", [fixed_seed(7), isolated(7)], ids=["fixed_seed", "isolated"])
def test_a_decorated_generator_does_what_it_does_natively(body: Any, script: Any, make: Any) -> None:
    with isolated():
        native = follow(body, script)
    assert follow(make(body), script) == native


@pytest.mark.parametrize("body", GENERATORS, ids=lambda body: body.__name__)
@every_script
def test_a_decorated_coroutine_does_what_it_does_natively(body: Any, script: Any) -> None:
    awaited = types.coroutine(body)

    async def run(log: list[Any]) -> Any:
        return await awaited(log)

    with isolated():
        native = follow(run, script)
    assert follow(fixed_seed(7)(run), script) == native


async def listening_async(log: list[Any]) -> Any:
    """Tell what comes in, in every way that something can."""
    received = None
    try:
        while received != "stop":
            draw()
            await pause("inside")
            try:
                received = yield received
                log.append(("received", received))
            except ValueError as error:
                log.append(("caught", str(error)))
                received = "caught"
    finally:
        draw()
        await pause("closing")
        log.append("closed")


async def clinging_async(log: list[Any]) -> Any:
    try:
        yield 1
    except GeneratorExit:
        log.append("refused")
        yield 2
    log.append("went on")


async def leaking_stop_iteration_async(log: list[Any]) -> Any:
    yield 1
    raise StopIteration("leaked")


async def leaking_stop_async_iteration(log: list[Any]) -> Any:
    yield 1
    raise StopAsyncIteration("leaked")


async def failing_to_close_async(log: list[Any]) -> Any:
    try:
        yield 1
    finally:
        raise Boom("while closing")


async def empty_async(log: list[Any]) -> Any:
    return
    yield


ASYNC_GENERATORS = [
    listening_async,
    clinging_async,
    leaking_stop_iteration_async,
    leaking_stop_async_iteration,
    failing_to_close_async,
    empty_async,
]


def follow_async(make: Any, script: list[tuple[str, Any]]) -> list[Any]:
    """Do to an async generator what the script says, without an event loop; return what came of it."""
    log: list[Any] = []
    generator, is_native = make(log), not hasattr(make, "__wrapped__")
    for method, argument in script:
        arguments = () if method == "close" else (copy.copy(argument),)
        try:
            awaitable = getattr(generator, f"a{method}")(*arguments)
            while True:
                before = process()
                try:
                    log.append(("gave way", awaitable.send(None)))
                finally:
                    assert is_native or process() == before, f"after {method}"
        except BaseException as error:
            log.append((method, told(error)))
    logged = log[:]
    finish(lambda: end(generator.aclose()))
    return logged


@pytest.mark.parametrize("body", ASYNC_GENERATORS, ids=lambda body: body.__name__)
@every_script
def test_a_decorated_async_generator_does_what_it_does_natively(body: Any, script: Any) -> None:
    with isolated():
        native = follow_async(body, script)
    assert follow_async(fixed_seed(7)(body), script) == native


@native_and_decorated
def test_two_who_ask_an_async_generator_at_once_are_told_as_natively(make: Any) -> None:
    @make
    async def generate() -> Any:
        await pause()
        yield 1

    generator = generate()
    one, two = generator.asend(None), generator.asend(None)
    with isolated():
        one.send(None)
        with pytest.raises(RuntimeError, match=re.escape("anext(): asynchronous generator is already running")):
            two.send(None)
        with pytest.raises(StopIteration):
            one.send(None)


# In force exactly while the body runs.


class Drawing:
    """A body of each form that draws at every step; ``step`` takes one and returns what it drew."""

    def __init__(self, form: str, make: Any) -> None:
        self.seen: list[Any] = []
        if form == "generator":

            @make
            def body() -> Any:
                for _ in range(6):
                    self.seen.append(draw())
                    yield

            generator = body()
            self._step = lambda: next(generator)
            self.close = generator.close
        elif form == "coroutine":

            @make
            async def run() -> Any:
                for _ in range(6):
                    self.seen.append(draw())
                    await pause()

            coroutine = run()
            self._step = lambda: coroutine.send(None)
            self.close = coroutine.close
        else:

            @make
            async def generate() -> Any:
                for place in range(6):
                    self.seen.append(draw())
                    if place % 2:
                        await pause()
                    else:
                        yield

            async_generator = generate()
            self._awaitable: Any = None

            def step() -> None:
                if self._awaitable is None:
                    self._awaitable = async_generator.asend(None)
                try:
                    self._awaitable.send(None)
                except StopIteration:
                    self._awaitable = None

            def close() -> None:
                if self._awaitable is not None:
                    with contextlib.suppress(GeneratorExit):
                        self._awaitable.throw(GeneratorExit)
                with contextlib.suppress(StopIteration):
                    async_generator.aclose().send(None)

            self._step, self.close = step, close

    def step(self) -> Any:
        self._step()
        return self.seen[-1]


STEPPING = ["generator", "coroutine", "async generator"]
every_stepping_form = pytest.mark.parametrize("form", STEPPING)


@every_stepping_form
def test_a_half_consumed_body_leaves_the_ambient_streams_alone(form: str) -> None:
    before = process()
    body = Drawing(form, fixed_seed(7))
    for _ in range(3):
        body.step()
        assert process() == before
    body.close()
    assert process() == before


@every_stepping_form
def test_draws_of_the_caller_between_two_steps_do_not_disturb_the_body(form: str) -> None:
    body, ambient_draws = Drawing(form, fixed_seed(7)), kit.continuation(5)
    for place, expected in enumerate(kit.reference(7, 5)):
        assert body.step() == expected
        assert draw() == ambient_draws[place]
    body.close()


@every_stepping_form
def test_what_the_caller_sets_between_two_steps_is_there_after_the_next(form: str) -> None:
    body = Drawing(form, fixed_seed(7))
    body.step()
    kit.seed_everything(5)
    torch._C._set_cudnn_benchmark(True)
    bits = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        before = process()
        assert body.step() == SECOND
        assert process() == before
        body.close()
        assert process() == before
    finally:
        torch._C._set_cudnn_benchmark(False)
        np.random.set_bit_generator(bits)


@every_stepping_form
@pytest.mark.parametrize("other", STEPPING)
def test_two_interleaved_bodies_do_not_see_each_other(form: str, other: str) -> None:
    before = process()
    bodies = Drawing(form, fixed_seed(7)), Drawing(other, isolated(8))
    for place, (one, two) in enumerate(zip(kit.reference(7, 4), kit.reference(8, 4), strict=True)):
        assert bodies[place % 2].step() == (two if place % 2 else one)
        assert bodies[1 - place % 2].step() == (one if place % 2 else two)
        assert process() == before
    for body in bodies:
        body.close()
    assert process() == before


@every_stepping_form
def test_two_bodies_of_the_same_function_have_a_stream_each(form: str) -> None:
    make = fixed_seed(7)
    bodies = [Drawing(form, make) for _ in range(3)]
    for expected in kit.reference(7, 3):
        assert [body.step() for body in bodies] == [expected] * 3
    for body in bodies:
        body.close()


@every_stepping_form
def test_a_body_stepped_in_the_body_of_another_has_its_own_stream(form: str) -> None:
    inner = Drawing(form, fixed_seed(8))

    @fixed_seed(7)
    def outer() -> Any:
        for _ in range(3):
            yield draw(), inner.step()

    assert list(outer()) == list(zip(kit.reference(7, 3), kit.reference(8, 3), strict=True))
    inner.close()


@every_stepping_form
def test_a_body_may_be_stepped_inside_and_outside_of_scopes(form: str) -> None:
    before = process()
    body = Drawing(form, fixed_seed(7))
    with deterministic(3):
        assert body.step() == FIRST
        assert draw() == kit.reference(3)[0]
    assert body.step() == SECOND
    with isolated(4):
        assert body.step() == THIRD
        assert draw() == kit.reference(4)[0]
        body.close()
        assert draw() == kit.reference(4, 2)[1]
    assert process() == before


@every_stepping_form
def test_a_body_may_be_stepped_by_one_thread_after_another(form: str) -> None:
    before = process()
    body = Drawing(form, fixed_seed(7))
    seen = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: seen.append(body.step()))
        thread.start()
        thread.join()
    body.close()
    assert seen == [FIRST, SECOND, THIRD]
    assert process() == before


@every_stepping_form
def test_a_body_that_is_dropped_half_consumed_leaves_the_ambient_streams_alone(form: str) -> None:
    before = process()
    body = Drawing(form, fixed_seed(7))
    body.step()
    body.close()
    del body
    gc.collect()
    assert process() == before


def test_a_generator_that_is_collected_cleans_up_inside_its_scope() -> None:
    seen, before = [], process()

    @fixed_seed(7)
    def generate() -> Any:
        try:
            yield draw()
        finally:
            seen.append(draw())

    generator = generate()
    next(generator)
    del generator
    assert seen == [SECOND]
    assert process() == before


def test_a_coroutine_that_is_collected_cleans_up_inside_its_scope() -> None:
    seen, before = [], process()

    @fixed_seed(7)
    async def run() -> Any:
        try:
            seen.append(draw())
            await pause()
        finally:
            seen.append(draw())

    coroutine: Any = run()
    coroutine.send(None)
    del coroutine
    assert seen == [FIRST, SECOND]
    assert process() == before


def test_an_async_generator_that_is_collected_cleans_up_inside_its_scope() -> None:
    seen, before = [], process()

    @fixed_seed(7)
    async def generate() -> Any:
        try:
            yield draw()
        finally:
            await asyncio.sleep(0)
            seen.append(draw())

    async def run() -> None:
        generator = generate()
        await anext(generator)
        del generator
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(run())
    assert seen == [SECOND]
    assert process() == before


def test_an_async_generator_that_the_loop_closes_at_its_end_cleans_up_inside_its_scope() -> None:
    seen, before, kept = [], process(), []

    @fixed_seed(7)
    async def generate() -> Any:
        try:
            yield draw()
        finally:
            await asyncio.sleep(0)
            seen.append(draw())

    async def run() -> None:
        kept.append(generate())
        await anext(kept[0])

    asyncio.run(run())
    assert seen == [SECOND]
    assert process() == before


@pytest.mark.parametrize("kind", ["generator", "coroutine", "async generator"])
def test_a_body_that_never_starts_touches_nothing(kind: str) -> None:
    before = process()
    fn = {
        "generator": generator_function,
        "coroutine": coroutine_function,
        "async generator": async_generator_function,
    }[kind]
    made: Any = fixed_seed(7)(fn)(1)
    if kind == "coroutine":
        made.close()
    del made
    assert process() == before


def test_a_coroutine_that_is_never_awaited_is_told_of_by_its_name() -> None:
    with pytest.warns(RuntimeWarning, match=re.escape("coroutine 'coroutine_function' was never awaited")):
        fixed_seed(7)(coroutine_function)(1)


def test_a_decorated_coroutine_in_a_loop_does_not_disturb_a_task_that_draws() -> None:
    before = kit.continuation(4)

    @fixed_seed(7)
    async def body() -> list[Any]:
        seen = []
        for _ in range(3):
            seen.append(draw())
            await asyncio.sleep(0)
        return seen

    async def bystander() -> list[Any]:
        seen = []
        for _ in range(3):
            seen.append(draw())
            await asyncio.sleep(0)
        return seen

    async def run() -> Any:
        return await asyncio.gather(body(), bystander(), body())

    assert asyncio.run(run()) == [[FIRST, SECOND, THIRD], before[:3], [FIRST, SECOND, THIRD]]
    assert draw() == before[3]


# Scopes that the body opens itself.


@pytest.mark.parametrize("form", ["generator", "coroutine", "async generator"])
def test_scopes_opened_in_the_body_are_taken_out_where_it_gives_way(form: str) -> None:
    """And put in again, in the state in which they were."""
    before, seen = process(), []
    rng, state = random.Random(3), random.Random(3).getstate()

    def open_scopes() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(isolated(8, also=rng))
        seen.append(draw())
        stack.enter_context(deterministic(9, strict=True))
        seen.append(draw())
        seen.append(kit.flags())
        return stack

    def after() -> None:
        seen.append(draw())
        seen.append(kit.flags())
        seen.append(rng.random())

    def body() -> Any:
        seen.append(draw())
        with open_scopes():
            yield
            after()
            yield
            after()
        seen.append(draw())

    async def generate() -> Any:
        seen.append(draw())
        with open_scopes():
            await pause()
            after()
            yield
            after()
        seen.append(draw())

    with isolated():
        list(body())
    native, seen[:] = seen[:], []
    native[0], native[-1] = FIRST, SECOND
    if form == "generator":
        generator = fixed_seed(7)(body)()
        steps = [lambda: next(generator, None)] * 3
    elif form == "coroutine":
        coroutine = fixed_seed(7)(awaiting(body))()
        steps = [lambda: suppressed(coroutine.send, None)] * 3
    else:
        async_generator = fixed_seed(7)(generate)()
        first, second = async_generator.asend(None), async_generator.asend(None)
        steps = [lambda: first.send(None), lambda: suppressed(first.send, None), lambda: suppressed(second.send, None)]
    for step in steps:
        step()
        assert process() == before
        assert rng.getstate() == state
    assert seen == native


def awaiting(body: Any) -> Any:
    awaited = types.coroutine(body)

    async def run() -> Any:
        return await awaited()

    return run


def suppressed(function: Any, *arguments: Any) -> Any:
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        return function(*arguments)


def test_a_body_that_is_closed_leaves_the_scopes_that_it_has_opened() -> None:
    before, seen = process(), []

    @fixed_seed(7)
    def generate() -> Any:
        seen.append(draw())
        try:
            with isolated(8), deterministic(9):
                yield
        finally:
            seen.append(draw())

    generator = generate()
    next(generator)
    generator.close()
    assert seen == [FIRST, SECOND]
    assert process() == before


def test_decorated_bodies_inside_each_other_are_taken_out_together() -> None:
    before = process()

    @fixed_seed(8)
    def inner() -> Any:
        for _ in range(2):
            yield draw()

    @fixed_seed(7)
    def outer() -> Any:
        yield draw()
        yield from inner()
        yield draw()

    seen = []
    for value in outer():
        seen.append(value)
        assert process() == before
    assert seen == [FIRST, *kit.reference(8, 2), SECOND]


def test_user_objects_are_taken_out_where_the_body_gives_way() -> None:
    rng, generator, net = random.Random(3), np.random.default_rng(4), torch.nn.BatchNorm1d(2)
    states = rng.getstate(), generator.bit_generator.state, net.running_mean.clone()

    @fixed_seed(7, also=[rng, generator, net])
    def body() -> Any:
        for _ in range(3):
            net(torch.randn(4, 2))
            yield rng.random(), generator.random(), net.running_mean.tolist()

    def check() -> None:
        assert rng.getstate() == states[0]
        assert generator.bit_generator.state == states[1]
        assert torch.equal(net.running_mean, states[2])

    seen = []
    for values in body():
        seen.append(values)
        check()
    assert seen == list(body())
    assert len({repr(values) for values in seen}) == 3
    check()


# Context variables.

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default="unset")


@native_and_decorated
@pytest.mark.parametrize("form", ["function", "generator", "coroutine", "async generator"])
def test_context_variables_are_seen_on_both_sides_as_natively(make: Any, form: str) -> None:
    seen = []

    @make
    def function() -> None:
        seen.append(variable.get())
        variable.set("by the body")

    @make
    def generator() -> Any:
        seen.append(variable.get())
        variable.set("by the body")
        yield
        seen.append(variable.get())
        variable.set("by the body, later")

    @make
    async def coroutine() -> Any:
        seen.append(variable.get())
        variable.set("by the body")
        await pause()
        seen.append(variable.get())
        variable.set("by the body, later")

    @make
    async def async_generator() -> Any:
        seen.append(variable.get())
        variable.set("by the body")
        yield
        seen.append(variable.get())
        variable.set("by the body, later")

    def run() -> None:
        variable.set("by the caller")
        if form == "function":
            function()
            seen.append(variable.get())
            return
        if form == "async generator":
            made = async_generator()
            step = lambda: suppressed(made.asend(None).send, None)  # noqa: E731
        else:
            made = generator() if form == "generator" else coroutine()
            step = lambda: suppressed(made.send, None)  # noqa: E731
        step()
        seen.append(variable.get())
        variable.set("by the caller, later")
        step()
        seen.append(variable.get())

    contextvars.copy_context().run(run)
    later = [] if form == "function" else ["by the caller, later", "by the body, later"]
    assert seen == ["by the caller", "by the body", *later]


# What is kept alive.


class Marker:
    """Something that a weak reference can be made to."""


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Switch the cyclic garbage collector off, so that what dies has no cycle."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def raising(form: str, make: Any, when: str) -> tuple[Any, Any]:
    """Let a body of the form raise; return weak references to the error and to an object in the body's frame."""
    references: list[Any] = []

    def fail() -> None:
        marker = Marker()
        references.append(weakref.ref(marker))
        raise Boom

    @make
    def function() -> None:
        fail()

    @make
    def generator() -> Any:
        if when == "at once":
            fail()
        yield
        fail()

    @make
    async def coroutine() -> Any:
        if when == "at once":
            fail()
        await pause()
        fail()

    @make
    async def async_generator() -> Any:
        if when == "at once":
            fail()
        yield
        fail()

    def run() -> None:
        if form == "with":
            with make:
                fail()
        elif form == "function":
            function()
        elif form == "async generator":
            made = async_generator()
            suppressed(made.asend(None).send, None)
            if when == "thrown":
                made.athrow(thrown()).send(None)
            made.asend(None).send(None)
        else:
            made = generator() if form == "generator" else coroutine()
            made.send(None)
            if when == "thrown":
                made.throw(thrown())
            made.send(None)

    def thrown() -> BaseException:
        error = Boom()
        marker = error.marker = Marker()  # type: ignore[attr-defined]
        references.append(weakref.ref(marker))
        return error

    try:
        run()
    except Boom as error:
        references.append(weakref.ref(error))
    return references[0], references[1]


@native_and_decorated
@pytest.mark.parametrize("form", ["function", "generator", "coroutine", "async generator"])
@pytest.mark.parametrize("when", ["at once", "later", "thrown"])
def test_an_error_from_the_body_is_in_no_reference_cycle(form: str, when: str, make: Any) -> None:
    with no_collector():
        marker, error = raising(form, make, when)
        assert error() is None
        assert marker() is None


@native_and_decorated
def test_an_error_thrown_into_an_await_of_an_async_generator_is_in_no_reference_cycle(make: Any) -> None:
    references: list[Any] = []

    @make
    async def awaiting() -> Any:
        await pause()
        yield

    def thrown() -> BaseException:
        error = Boom()
        references.append(weakref.ref(error))
        return error

    def run() -> None:
        step = awaiting().asend(None)
        step.send(None)
        with contextlib.suppress(Boom):
            step.throw(thrown())

    with no_collector():
        run()
        assert references[0]() is None


def test_an_error_from_a_with_block_is_in_no_reference_cycle() -> None:
    with no_collector():
        marker, error = raising("with", fixed_seed(7), "at once")
        assert error() is None
        assert marker() is None


@native_and_decorated
@pytest.mark.parametrize("form", ["generator", "coroutine", "async generator"])
def test_what_went_in_and_out_is_not_kept_while_the_body_waits(form: str, make: Any) -> None:
    references = []

    def mark() -> Marker:
        marker = Marker()
        references.append(weakref.ref(marker))
        return marker

    @types.coroutine
    def give() -> Any:
        return (yield mark())

    @make
    def generator() -> Any:
        while True:
            taken = yield mark()
            references.append(weakref.ref(taken))
            del taken

    @make
    async def coroutine() -> Any:
        while True:
            taken = await give()
            references.append(weakref.ref(taken))
            del taken

    @make
    async def async_generator() -> Any:
        while True:
            taken = yield mark()
            references.append(weakref.ref(taken))
            del taken

    with no_collector():
        if form == "async generator":
            made = async_generator()
            send = lambda value: suppressed(made.asend(value).send, None)  # noqa: E731
        else:
            made = generator() if form == "generator" else coroutine()
            send = lambda value: suppressed(made.send, value)  # noqa: E731
        send(None)
        send(Marker())
        first_out, taken, second_out = references
        assert taken() is None, "what was sent is kept"
        assert first_out() is None, "what was yielded before is kept"
        assert second_out() is None, "what was yielded is kept"
        if form == "async generator":
            suppressed(made.aclose().send, None)
        else:
            made.close()


@native_and_decorated
@pytest.mark.parametrize("form", ["generator", "coroutine", "async generator", "await in an async generator"])
def test_what_was_thrown_in_is_not_kept_while_the_body_waits(form: str, make: Any) -> None:
    @types.coroutine
    def give() -> Any:
        yield

    @make
    def generator() -> Any:
        while True:
            with contextlib.suppress(Boom):
                yield

    @make
    async def coroutine() -> Any:
        while True:
            with contextlib.suppress(Boom):
                await give()

    @make
    async def async_generator() -> Any:
        while True:
            with contextlib.suppress(Boom):
                yield

    @make
    async def awaiting() -> Any:
        while True:
            with contextlib.suppress(Boom):
                await give()
        yield

    bodies = {"generator": generator, "coroutine": coroutine, "async generator": async_generator}
    with no_collector():
        made = bodies.get(form, awaiting)()
        steps = made.asend(None) if form == "await in an async generator" else made
        throw = (lambda error: made.athrow(error).send(None)) if form == "async generator" else steps.throw
        suppressed(made.asend(None).send if form == "async generator" else steps.send, None)
        error = Boom()
        reference = weakref.ref(error)
        suppressed(throw, error)
        del error
        assert reference() is None
        suppressed(made.aclose().send, None) if form == "async generator" else steps.close()


@pytest.mark.parametrize("form", ["function", "generator", "coroutine", "async generator"])
def test_nothing_is_left_of_a_body_that_has_ended(form: str) -> None:
    def body() -> Any:
        marker = Marker()
        reference = weakref.ref(marker)
        seen.append(reference)

    seen: list[Any] = []
    with no_collector():
        kit.FORMS[form](fixed_seed(7), body)
        assert seen[0]() is None


@pytest.mark.parametrize("form", ["generator", "coroutine", "async generator"])
def test_no_body_counts_as_waiting_once_it_has_ended(form: str) -> None:
    kit.FORMS[form](fixed_seed(7), draw)
    assert not activation._suspended


def test_a_scope_that_is_dropped_lets_go_of_its_user_objects() -> None:
    with no_collector():
        rng, net = random.Random(3), torch.nn.BatchNorm1d(2)
        references = weakref.ref(rng), weakref.ref(net)
        with fixed_seed(7, also=[rng, net]):
            pass
        del rng, net
        assert [reference() for reference in references] == [None, None]


def test_what_a_refused_body_draws_at_its_end_moves_no_other_threads_scope() -> None:
    @fixed_seed(7)
    def generate() -> Iterator[None]:
        try:
            yield
        finally:
            drawn.append(draw())

    def other() -> Any:
        with deterministic(1):
            entered.set()
            assert leave.wait(60)
            return kit.draws()

    drawn: list[Any] = []
    entered, leave = threading.Event(), threading.Event()
    before, generator = process(), generate()
    next(generator)
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(other)
        assert entered.wait(60)
        try:
            with pytest.raises(ConcurrentScopeError):
                next(generator)
        finally:
            leave.set()
        assert drawing.result() == kit.reference(1)[0]
    assert len(drawn) == 1
    assert process() == before


# What a suspension costs.


class Counted(random.Random):
    """A user's stream that counts what is done to it."""

    calls: dict[str, int]

    def getstate(self) -> Any:
        self.calls["take"] += 1
        return super().getstate()

    def setstate(self, state: Any) -> None:
        self.calls["put"] += 1
        super().setstate(state)

    def seed(self, *arguments: Any) -> None:
        if arguments and hasattr(self, "calls"):
            self.calls["seed"] += 1
        super().seed(*arguments)


@every_stepping_form
def test_a_suspension_costs_each_stream_at_most_what_two_empty_scopes_do(form: str) -> None:
    rng = Counted(3)
    rng.calls = dict.fromkeys(("take", "put", "seed"), 0)
    with deterministic(7, also=rng):
        pass
    empty_scope = dict(rng.calls)
    assert empty_scope == {"take": 1, "put": 1, "seed": 1}
    body = Drawing(form, fixed_seed(7, also=rng))
    body.step()
    for _ in range(3):
        rng.calls = dict.fromkeys(("take", "put", "seed"), 0)
        body.step()
        assert rng.calls == {"take": 2, "put": 2, "seed": 0}
    body.close()


# What other decorators have made of a function.


def test_every_kind_of_test_in_a_class_starts_from_the_seed() -> None:
    class Called:
        def __call__(self) -> Any:
            return draw()

    @fixed_seed(7)
    class Tests:
        def base(self, scale: int) -> Any:
            return draw()

        test_part = functools.partialmethod(base, scale=2)
        test_called = Called()

    first = kit.reference(7)[0]
    assert Tests().test_part() == Tests().test_called() == first


def test_a_class_with_something_that_cannot_be_decorated_is_left_whole() -> None:
    class Tests:
        def test_one(self) -> None: ...

        def test_two(self) -> None: ...

    before = dict(vars(Tests))
    first_alone = unittest.mock.patch.object(scoped_rng.decorators, "decorate", side_effect=[draw, TypeError])
    with pytest.raises(TypeError), first_alone:
        scoped_rng.decorators._decorate_tests(deterministic(0), Tests)
    assert dict(vars(Tests)) == before


def passing(fn: Any) -> Any:
    """Wrap a function in a plain one, as a decorator that does not know of coroutines does."""

    @functools.wraps(fn)
    def inner(*args: Any) -> Any:
        return fn(*args)

    return inner


def a_generator() -> Iterator[Any]:
    yield draw()


async def an_async_generator() -> Any:
    yield draw()


async def a_coroutine() -> Any:
    return draw()


@pytest.mark.parametrize(
    ("made", "result"),
    [
        (contextlib.contextmanager(a_generator), "_GeneratorContextManager"),
        (passing(a_generator), "generator"),
        (passing(a_coroutine), "coroutine"),
        (passing(an_async_generator), "async_generator"),
    ],
    ids=["a context manager", "a generator", "a coroutine", "an async generator"],
)
def test_a_call_that_only_makes_what_runs_the_body_later_is_refused(made: Any, result: str) -> None:
    before = process()
    told = (
        f"deterministic(7) decorates {made.__name__}, whose body has not run when the call returns a {result}; put it "
        "below the other decorators (@contextmanager, say), next to the function"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
        fixed_seed(7)(made)()
    assert process() == before


def test_a_decorator_that_runs_a_coroutine_to_its_end_is_no_such_thing() -> None:
    @functools.wraps(a_coroutine)
    def run() -> Any:
        return asyncio.run(a_coroutine())

    assert fixed_seed(7)(run)() == kit.reference(7)[0]


def test_a_function_that_wraps_an_ordinary_one_may_return_a_generator() -> None:
    made = fixed_seed(7)(passing(lambda: a_generator()))()
    assert inspect.isgenerator(made)


def test_an_inherited_hypothesis_test_is_the_parents_own_again_behind_each_call() -> None:
    class Parent:
        @given(st.none())
        def test_it(self, value: None) -> None:
            seen.append(draw())

    @fixed_seed(7)
    class Child(Parent):
        pass

    seen: list[Any] = []
    hook: Any = Parent.test_it
    plain = hook.hypothesis.inner_test
    Child().test_it()
    assert seen == [kit.reference(7)[0]]
    assert hook.hypothesis.inner_test is plain
    assert Child.test_it.__name__ == "test_it"
    assert fixed_seed(7)(hook) is hook


@pytest.mark.parametrize("decorator", [fixed_seed, fixed_seed(), fixed_seed(7), fixed_seed(strict=False)])
def test_fixed_seed_sets_the_flags_of_a_scope_that_is_not_strict(decorator: Any) -> None:
    with deterministic(7):
        expected = kit.flags()
    assert decorator(lambda: kit.flags())() == expected
    with deterministic(7, strict=True):
        expected = kit.flags()
    assert fixed_seed(7, strict=True)(lambda: kit.flags())() == expected


def test_fixed_seed_on_a_function_takes_the_other_arguments_too() -> None:
    rng = random.Random(3)
    drawn = fixed_seed(lambda: rng.random(), strict=False, also=rng)  # type: ignore[call-overload]
    assert drawn() == drawn()


def test_an_object_that_can_be_called_keeps_its_attributes_to_itself() -> None:
    net = torch.nn.Dropout()
    wrapped = fixed_seed(net)
    assert not hasattr(wrapped, "training")
    assert torch.equal(wrapped(torch.ones(64)), wrapped(torch.ones(64)))
