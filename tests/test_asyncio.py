"""Scopes and asyncio: interleaved tasks, cancellation, early ends, and which overlaps are none."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest
import torch

from scoped_rng import ConcurrentScopeError, ScopeOrderWarning, capture, deterministic, isolated, replay, scope
from tests import kit

REFUSED = (
    "{} is open in the task {!r} while another scope is being entered, and neither is nested in the other; the "
    "random streams belong to the process, so both would be wrong. Open one after the other (put a lock round the "
    "blocks), decorate coroutines and generators instead of using `with` across an await or a yield, or use processes"
)
from_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup came with Python 3.11")
from_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")


def refused_by(opener: object, task: str) -> Any:
    """Expect the error that tells of ``opener``, which the task has open."""
    return pytest.raises(ConcurrentScopeError, match=f"^{re.escape(REFUSED.format(opener, task))}$")


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run ``main()`` in a new loop, and check that it leaves everything as it was."""
    before = kit.everything()
    result = asyncio.run(main())
    assert kit.everything() == before
    return result


give_way = functools.partial(asyncio.sleep, 0)


async def drawing(count: int, gap: Callable[[], Awaitable[Any]] = give_way) -> list[Any]:
    """Draw ``count`` times from every stream, giving way in between."""
    drawn = []
    for _ in range(count):
        drawn.append(kit.draws())
        await gap()
    return drawn


class Ring:
    """A place where a task can be held until the test lets it go, and that tells when the task is there."""

    def __init__(self) -> None:
        self.here, self.go_on = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.here.set()
        await self.go_on.wait()


async def hold(opened: scope.Scope, ring: Ring) -> Any:
    """Hold a plain ``with`` open across an await."""
    with opened:
        first = kit.draws()
        await ring.wait()
        return first, kit.draws()


# Interleaved


def test_a_hundred_interleaved_decorated_tasks_each_see_exactly_their_own_stream() -> None:
    async def main() -> Any:
        return await asyncio.gather(*(deterministic(seed)(drawing)(2 + seed % 4) for seed in range(100)))

    assert run(main) == [kit.reference(seed, 2 + seed % 4) for seed in range(100)]


def test_tasks_of_every_kind_of_scope_interleave() -> None:
    kit.seed_everything(5)
    state = capture()
    recipes = [deterministic(1), deterministic(2, strict=True), isolated(3), isolated(), replay(state)]

    async def main() -> Any:
        return await asyncio.gather(*(recipe(drawing)(3) for recipe in recipes))

    assert run(main) == [kit.reference(seed, 3) for seed in (1, 2, 3, 5, 5)]


def test_one_scope_decorates_tasks_that_run_at_once() -> None:
    twice = deterministic(4)(drawing)

    async def main() -> Any:
        return await asyncio.gather(twice(3), twice(2), twice(3))

    assert run(main) == [kit.reference(4, count) for count in (3, 2, 3)]


def test_what_is_not_decorated_draws_from_the_ambient_streams_in_between() -> None:
    kit.seed_everything(6)

    async def main() -> Any:
        return await asyncio.gather(deterministic(1)(drawing)(4), drawing(3))

    assert asyncio.run(main()) == [kit.reference(1, 4), kit.reference(6, 3)]
    assert kit.continuation() == kit.reference(6, 6)[3:]


def test_the_flags_are_those_of_each_task_while_it_runs() -> None:
    async def look() -> Any:
        before = kit.flags()
        await asyncio.sleep(0)
        return before, kit.flags()

    async def main() -> Any:
        loose, strict = deterministic(0)(look), deterministic(0, strict=True)(look)
        return await asyncio.gather(loose(), strict(), isolated()(look)(), look())

    ambient = kit.flags()
    with deterministic(0):
        loose = kit.flags()
    with deterministic(0, strict=True):
        strict = kit.flags()
    assert run(main) == [(loose, loose), (strict, strict), (ambient, ambient), (ambient, ambient)]


def test_what_a_task_sets_by_hand_stays_with_it() -> None:
    async def body(seed: int) -> Any:
        await asyncio.sleep(0)
        kit.seed_everything(seed)
        torch.backends.cudnn.benchmark = seed == 1
        await asyncio.sleep(0)
        return kit.draws(), torch.backends.cudnn.benchmark

    async def main() -> Any:
        return await asyncio.gather(*(deterministic(0)(body)(seed) for seed in (1, 2)))

    flags, continuation = kit.flags(), kit.continuation()
    assert asyncio.run(main()) == [(kit.reference(1)[0], True), (kit.reference(2)[0], False)]
    assert (kit.flags(), kit.continuation()) == (flags, continuation)


def test_scopes_opened_by_the_bodies_of_interleaved_tasks_are_taken_out_and_put_in_with_them() -> None:
    async def body(seed: int) -> Any:
        outer = [kit.draws()]
        with isolated(seed + 100):
            inner = await drawing(2)
            with deterministic(seed + 200):
                innermost = await drawing(2)
            inner += await drawing(1)
        outer.append(kit.draws())
        return outer, inner, innermost

    async def main() -> Any:
        return await asyncio.gather(*(deterministic(seed)(body)(seed) for seed in range(5)))

    assert run(main) == [
        (kit.reference(seed, 2), kit.reference(seed + 100, 3), kit.reference(seed + 200, 2)) for seed in range(5)
    ]


def test_decorated_coroutines_await_each_other() -> None:
    @deterministic(1)
    async def inner() -> Any:
        return await drawing(2)

    @deterministic(0)
    async def outer() -> Any:
        first = await drawing(1)
        return first, await inner(), await drawing(1)

    async def main() -> Any:
        return await asyncio.gather(outer(), outer())

    first, second = kit.reference(0, 2)
    assert run(main) == 2 * [([first], kit.reference(1, 2), [second])]


def test_async_generators_interleave() -> None:
    @deterministic(1)
    async def one() -> AsyncIterator[Any]:
        for _ in range(3):
            yield kit.draws()
            await asyncio.sleep(0)

    two = deterministic(2)(drawing)

    async def main() -> Any:
        async def consume() -> Any:
            return [drawn async for drawn in one()]

        return await asyncio.gather(consume(), two(4), consume())

    assert run(main) == [kit.reference(1, 3), kit.reference(2, 4), kit.reference(1, 3)]


# How a body ends


def test_a_task_cancelled_where_it_waits_leaves_everything_as_it_was() -> None:
    cleaned = []

    @deterministic(1)
    async def body() -> None:
        try:
            kit.draws()
            await asyncio.Event().wait()
        finally:
            cleaned.append(kit.draws())

    async def main() -> None:
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert cleaned == kit.reference(1, 2)[1:], "the cleanup ran outside of the scope"


def test_a_task_cancelled_before_it_has_begun_touches_nothing() -> None:
    async def main() -> None:
        task = asyncio.create_task(deterministic(1)(drawing)(3))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_a_body_that_swallows_its_cancellation_goes_on_with_its_stream() -> None:
    @deterministic(1)
    async def body() -> Any:
        drawn = [kit.draws()]
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return drawn + await drawing(2)

    async def main() -> Any:
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert run(main) == kit.reference(1, 3)


def test_a_cancelled_task_takes_the_scopes_that_its_body_has_open_with_it() -> None:
    async def main() -> None:
        task = asyncio.create_task(deterministic(1)(hold)(isolated(2), Ring()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_a_plain_with_in_a_cancelled_task_is_left() -> None:
    async def main() -> None:
        task = asyncio.create_task(hold(deterministic(1), Ring()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_tasks_still_waiting_when_asyncio_run_ends_leave_everything_as_it_was() -> None:
    tasks = []

    async def main() -> None:
        tasks.extend(asyncio.create_task(deterministic(seed)(hold)(isolated(), Ring())) for seed in range(5))
        await asyncio.sleep(0)

    run(main)
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt("ours"), SystemExit("ours")], ids=repr)
def test_an_error_of_the_body_passes_through(error: BaseException) -> None:
    @deterministic(1)
    async def body() -> None:
        await drawing(1)
        raise error

    async def main() -> None:
        with pytest.raises(type(error), match=r"^ours$") as caught:
            await body()
        assert caught.value is error

    run(main)


def test_an_error_thrown_in_reaches_the_body_inside_its_scope() -> None:
    @deterministic(1)
    async def body(future: asyncio.Future[None]) -> Any:
        first = kit.draws()
        try:
            await future
        except LookupError as error:
            return first, kit.draws(), str(error)

    async def main() -> Any:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(body(future))
        await asyncio.sleep(0)
        future.set_exception(LookupError("thrown in"))
        return await task

    assert run(main) == (*kit.reference(1, 2), "thrown in")


@pytest.mark.parametrize("decorated", [True, False])
def test_wait_for_gives_up_on_a_body_and_leaves_everything_as_it_was(decorated: bool) -> None:
    body = deterministic(1)(drawing) if decorated else functools.partial(_under, deterministic(1))

    async def main() -> Any:
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(body(3, asyncio.Event().wait), timeout=0.001)
        return await asyncio.wait_for(body(3), timeout=60)

    assert run(main) == kit.reference(1, 3)


async def _under(opened: scope.Scope, *args: Any) -> Any:
    with opened:
        return await drawing(*args)


@from_311
@pytest.mark.parametrize("inside", [True, False], ids=["in the body", "round the body"])
def test_a_timeout_cuts_a_body_short_and_leaves_everything_as_it_was(inside: bool) -> None:
    async def cut_short(body: Callable[..., Awaitable[Any]]) -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await body(3, asyncio.Event().wait)
        return await body(2)

    async def main() -> Any:
        if inside:
            return await deterministic(1)(cut_short)(drawing)
        return await cut_short(deterministic(1)(drawing))

    first, *rest = kit.reference(1, 3)
    assert run(main) == (rest if inside else [first, rest[0]])


@from_311
def test_a_task_group_of_decorated_tasks() -> None:
    async def main() -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(deterministic(seed)(drawing)(3)) for seed in range(10)]
        return [task.result() for task in tasks]

    assert run(main) == [kit.reference(seed, 3) for seed in range(10)]


@from_311
def test_a_task_group_that_one_failing_task_cancels_leaves_everything_as_it_was() -> None:
    @deterministic(1)
    async def failing() -> None:
        await drawing(2)
        raise ValueError("ours")

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821 - from 3.11 on
            async with asyncio.TaskGroup() as group:
                group.create_task(failing())
                for seed in range(5):
                    group.create_task(deterministic(seed)(drawing)(3, asyncio.Event().wait))
        assert caught.group_contains(ValueError, match="^ours$")

    run(main)


@from_311
def test_a_task_group_in_a_decorated_body_has_tasks_of_its_own() -> None:
    @deterministic(0)
    async def body() -> Any:
        first = kit.draws()
        async with asyncio.TaskGroup() as group:
            covered = group.create_task(deterministic(1)(drawing)(2))
            uncovered = group.create_task(drawing(2))
        return first, covered.result(), uncovered.result(), kit.draws()

    kit.seed_everything(9)
    first, second = kit.reference(0, 2)
    assert asyncio.run(body()) == (first, kit.reference(1, 2), kit.reference(9, 2), second)
    assert kit.continuation(1) == kit.reference(9, 3)[2:]


# Async generators that are not used up


def numbers(cleaned: list[Any], gap: Callable[[], Awaitable[Any]]) -> Callable[[], AsyncIterator[Any]]:
    """Make a decorated async generator that draws in its cleanup as well."""

    @deterministic(1)
    async def generate() -> AsyncIterator[Any]:
        try:
            while True:
                await gap()
                yield kit.draws()
        finally:
            await gap()
            cleaned.append(kit.draws())

    return generate


async def no_gap() -> None:
    """Return without giving way."""


GAPS = pytest.mark.parametrize("gap", [no_gap, give_way], ids=["no gap", "gap"])


@GAPS
def test_an_async_generator_closed_early_cleans_up_inside_its_scope(gap: Callable[[], Awaitable[Any]]) -> None:
    cleaned: list[Any] = []

    async def main() -> Any:
        async with aclosing(numbers(cleaned, gap)()) as generator:
            return [await anext(generator), await anext(generator)]

    *drawn, last = kit.reference(1, 3)
    assert run(main) == drawn
    assert cleaned == [last]


def test_an_async_generator_closed_before_it_has_begun_touches_nothing() -> None:
    cleaned: list[Any] = []

    async def main() -> None:
        await numbers(cleaned, no_gap)().aclose()

    run(main)
    assert not cleaned


@GAPS
def test_an_async_generator_collected_half_consumed_cleans_up_inside_its_scope(
    gap: Callable[[], Awaitable[Any]],
) -> None:
    cleaned: list[Any] = []

    async def main() -> Any:
        drawn = []
        async for number in numbers(cleaned, gap)():
            drawn.append(number)
            break
        gc.collect()
        while not cleaned:  # the loop closes it in a task of its own
            await asyncio.sleep(0)
        return drawn

    first, second = kit.reference(1, 2)
    assert run(main) == [first]
    assert cleaned == [second]


@GAPS
def test_async_generators_kept_until_the_loop_ends_clean_up_inside_their_scopes(
    gap: Callable[[], Awaitable[Any]],
) -> None:
    cleaned: list[Any] = []
    kept = []

    async def main() -> Any:
        kept.extend(numbers(cleaned, gap)() for _ in range(10))
        return [await anext(generator) for generator in kept]

    first, second = kit.reference(1, 2)
    assert run(main) == 10 * [first]
    assert cleaned == 10 * [second]


def test_an_async_generator_collected_after_its_loop_has_ended_leaves_everything_as_it_was() -> None:
    async def main() -> Any:
        sys.set_asyncgen_hooks(firstiter=None, finalizer=None)  # as in a loop that knows of no generators
        generator = numbers([], no_gap)()
        await anext(generator)
        return generator

    before = kit.everything()
    kept = [asyncio.run(main())]
    assert kit.everything() == before
    kept.clear()
    gc.collect()
    assert kit.everything() == before


def test_an_error_in_the_middle_of_async_for_leaves_everything_as_it_was() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"^ours$"):
            async for _ in numbers([], no_gap)():
                raise ValueError("ours")
        gc.collect()
        await asyncio.sleep(0)

    run(main)


def test_asend_and_athrow_reach_the_body_inside_its_scope() -> None:
    @deterministic(1)
    async def echo() -> AsyncIterator[Any]:
        sent: object = None
        while sent != "stop":
            try:
                sent = yield sent, kit.draws()
            except LookupError as error:
                sent = str(error)

    async def main() -> Any:
        generator = echo()
        got = [await anext(generator), await generator.asend("sent"), await generator.athrow(LookupError("thrown"))]
        with pytest.raises(StopAsyncIteration):
            await generator.asend("stop")
        return got

    first, second, third = kit.reference(1, 3)
    assert run(main) == [(None, first), ("sent", second), ("thrown", third)]


def test_a_task_cancelled_inside_an_async_generator_cleans_up_inside_its_scope() -> None:
    cleaned: list[Any] = []
    gaps = iter([asyncio.sleep(0), asyncio.sleep(60), asyncio.sleep(0)])

    async def consume() -> None:
        async for _ in numbers(cleaned, gaps.__next__)():
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert cleaned == kit.reference(1, 2)[1:]


def test_an_asynccontextmanager_can_be_decorated() -> None:
    @asynccontextmanager
    @deterministic(1)
    async def managed() -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        yield kit.draws()
        kit.draws()

    async def main() -> Any:
        before = kit.everything()
        async with managed() as drawn:
            assert kit.everything() == before
        return drawn

    assert run(main) == kit.reference(1)[0]


# A plain `with` across an await: what overlaps is refused


def test_of_two_tasks_with_a_plain_with_across_an_await_the_second_is_refused() -> None:
    async def main() -> Any:
        ring = Ring()
        first = asyncio.create_task(hold(deterministic(1), ring), name="the first")
        await ring.here.wait()
        inside = kit.everything()
        with refused_by("deterministic(1)", "the first"):
            await asyncio.create_task(hold(deterministic(2), Ring()))
        assert kit.everything() == inside
        ring.go_on.set()
        return await first

    assert run(main) == tuple(kit.reference(1, 2))


@pytest.mark.parametrize("form", ["with", "function", "generator"])
def test_synchronous_forms_in_another_task_are_refused_as_well(form: str) -> None:
    async def other() -> None:
        kit.FORMS[form](isolated(2), kit.draws)

    async def main() -> None:
        ring = Ring()
        first = asyncio.create_task(hold(deterministic(1), ring), name="the first")
        await ring.here.wait()
        with refused_by("deterministic(1)", "the first"):
            await asyncio.create_task(other())
        ring.go_on.set()
        await first

    run(main)


def test_a_decorated_coroutine_that_begins_while_another_task_holds_a_plain_with_is_refused() -> None:
    async def main() -> None:
        ring = Ring()
        first = asyncio.create_task(hold(deterministic(1), ring), name="the first")
        await ring.here.wait()
        with refused_by("deterministic(1)", "the first"):
            await asyncio.create_task(deterministic(2)(drawing)(3))
        ring.go_on.set()
        await first

    run(main)


def test_a_decorated_coroutine_that_has_begun_goes_on_beside_a_plain_with_and_neither_disturbs_the_other() -> None:
    async def main() -> Any:
        ring, here = Ring(), Ring()
        decorated = asyncio.create_task(deterministic(2)(drawing)(4, here.wait))
        await here.here.wait()
        plain = asyncio.create_task(hold(deterministic(1), ring))
        await ring.here.wait()
        here.go_on.set()
        drawn = await decorated
        ring.go_on.set()
        return drawn, await plain

    assert run(main) == (kit.reference(2, 4), tuple(kit.reference(1, 2)))


def test_a_task_is_still_refused_after_it_has_awaited_a_decorated_coroutine_beside_the_open_scope() -> None:
    """The context of a decorated step must not take the scope that it happened to run beside for its own."""

    async def other(here: Ring) -> None:
        await deterministic(2)(drawing)(4, here.wait)
        with isolated():
            pass

    async def main() -> None:
        ring, here = Ring(), Ring()
        second = asyncio.create_task(other(here))
        await here.here.wait()
        first = asyncio.create_task(hold(deterministic(1), ring), name="the first")
        await ring.here.wait()
        here.go_on.set()
        with refused_by("deterministic(1)", "the first"):
            await second
        ring.go_on.set()
        await first

    run(main)


def test_the_parent_is_refused_while_its_child_holds_a_scope_open() -> None:
    async def main() -> None:
        ring = Ring()
        child = asyncio.create_task(hold(deterministic(1), ring), name="the child")
        await ring.here.wait()
        with refused_by("deterministic(1)", "the child"):
            isolated().__enter__()
        ring.go_on.set()
        await child

    run(main)


def test_a_parent_that_opened_the_outer_scope_is_refused_as_well_while_its_child_holds_the_inner_one() -> None:
    async def main() -> None:
        ring = Ring()
        with isolated():
            child = asyncio.create_task(hold(deterministic(1), ring), name="the child")
            await ring.here.wait()
            with refused_by("deterministic(1)", "the child"):
                isolated().__enter__()
            ring.go_on.set()
            await child

    run(main)


def test_two_children_of_one_open_scope_that_hold_scopes_at_once_are_refused() -> None:
    async def main() -> Any:
        ring = Ring()
        with isolated():
            first = asyncio.create_task(hold(deterministic(1), ring), name="the first")
            await ring.here.wait()
            with refused_by("deterministic(1)", "the first"):
                await asyncio.create_task(hold(deterministic(2), Ring()))
            ring.go_on.set()
            return await first

    assert run(main) == tuple(kit.reference(1, 2))


def test_a_task_that_had_to_wait_gets_in_afterwards() -> None:
    async def main() -> Any:
        lock = asyncio.Lock()

        async def locked(seed: int) -> Any:
            async with lock:
                with deterministic(seed):
                    return await drawing(2)

        return await asyncio.gather(*map(locked, range(10)))

    assert run(main) == [kit.reference(seed, 2) for seed in range(10)]


def test_a_callback_that_opens_a_scope_beside_a_task_that_holds_one_is_refused() -> None:
    async def main() -> None:
        ring, called = Ring(), asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                called.set_result(kit.FORMS["with"](isolated(), kit.draws))
            except ConcurrentScopeError as error:
                called.set_exception(error)

        first = asyncio.create_task(hold(deterministic(1), ring), name="the first")
        await ring.here.wait()
        asyncio.get_running_loop().call_soon(callback)
        with refused_by("deterministic(1)", "the first"):
            await called
        ring.go_on.set()
        await first

    run(main)


# Overlaps that are none


def test_a_child_task_awaited_inside_an_open_scope_is_nested() -> None:
    async def child() -> Any:
        with deterministic(1):
            return await drawing(2)

    async def main() -> Any:
        with deterministic(0):
            return kit.draws(), await asyncio.create_task(child()), kit.draws()

    first, second = kit.reference(0, 2)
    assert run(main) == (first, kit.reference(1, 2), second)


def test_asyncio_run_inside_an_open_scope_is_nested() -> None:
    async def main() -> Any:
        with deterministic(1):
            return await drawing(2)

    before = kit.everything()
    with deterministic(0):
        drawn = [kit.draws(), asyncio.run(main()), kit.draws()]
    first, second = kit.reference(0, 2)
    assert drawn == [first, kit.reference(1, 2), second]
    assert kit.everything() == before


def test_asyncio_run_in_a_decorated_function_is_nested() -> None:
    @deterministic(0)
    def outer() -> Any:
        return kit.draws(), asyncio.run(deterministic(1)(drawing)(2)), kit.draws()

    first, second = kit.reference(0, 2)
    assert outer() == (first, kit.reference(1, 2), second)


@pytest.mark.parametrize("made", ["before", "inside"])
def test_a_scope_round_run_until_complete_is_nested_whenever_the_task_was_made(made: str) -> None:
    async def main() -> Any:
        with deterministic(1):
            return await drawing(2)

    before, loop = kit.everything(), asyncio.new_event_loop()
    try:
        task = loop.create_task(main()) if made == "before" else None
        with deterministic(0):
            drawn = [kit.draws(), loop.run_until_complete(task or main()), kit.draws()]
    finally:
        loop.close()
    first, second = kit.reference(0, 2)
    assert drawn == [first, kit.reference(1, 2), second]
    assert kit.everything() == before


def test_a_gather_of_decorated_tasks_inside_a_plain_scope() -> None:
    async def main() -> Any:
        with deterministic(0):
            first = kit.draws()
            gathered = await asyncio.gather(*(deterministic(seed)(drawing)(3) for seed in range(1, 6)))
            return first, gathered, kit.draws()

    first, second = kit.reference(0, 2)
    assert run(main) == (first, [kit.reference(seed, 3) for seed in range(1, 6)], second)


def test_a_gather_of_decorated_tasks_inside_a_decorated_body() -> None:
    @deterministic(0)
    async def main() -> Any:
        first = kit.draws()
        gathered = await asyncio.gather(*(deterministic(seed)(drawing)(3) for seed in range(1, 6)))
        return first, gathered, kit.draws()

    first, second = kit.reference(0, 2)
    assert run(main) == (first, [kit.reference(seed, 3) for seed in range(1, 6)], second)


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_a_callback_runs_nested_in_the_scope_in_which_it_was_scheduled(method: str) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        called = loop.create_future()

        def callback() -> None:
            called.set_result(kit.FORMS["with"](deterministic(1), kit.draws))

        with deterministic(0):
            first = kit.draws()
            getattr(loop, method)(*[0][: method == "call_later"], callback)
            return first, await called, kit.draws()

    first, second = kit.reference(0, 2)
    assert run(main) == (first, kit.reference(1)[0], second)


def test_a_callback_scheduled_in_a_scope_that_has_been_left_runs_in_the_ambient_state() -> None:
    async def main() -> Any:
        called = asyncio.get_running_loop().create_future()

        def callback() -> None:
            ambient = kit.continuation(1)
            called.set_result((ambient, kit.FORMS["with"](deterministic(1), kit.draws)))

        with deterministic(0):
            asyncio.get_running_loop().call_soon(callback)
        return await called

    ambient = kit.continuation(1)
    assert run(main) == (ambient, kit.reference(1)[0])


def test_a_task_that_has_ended_and_left_a_scope_open_does_not_stand_in_the_next_ones_way() -> None:
    """This is what an async fixture does: entered in one task, left in another, a test in a third between them."""
    opened = deterministic(0)

    async def enter() -> None:
        opened.__enter__()

    async def test() -> Any:
        first = kit.draws()
        with deterministic(1):
            own = await drawing(2)
        return first, own, await deterministic(2)(drawing)(2), kit.draws()

    async def leave() -> None:
        opened.__exit__(None, None, None)

    async def main() -> Any:
        await asyncio.create_task(enter())
        result = await asyncio.create_task(test())
        await asyncio.create_task(leave())
        return result

    first, second = kit.reference(0, 2)
    assert run(main) == (first, kit.reference(1, 2), kit.reference(2, 2), second)


def test_an_async_generator_that_holds_a_scope_between_two_runs_of_the_loop_is_no_overlap() -> None:
    @asynccontextmanager
    async def fixture() -> AsyncIterator[None]:
        with deterministic(0):
            yield

    before, loop = kit.everything(), asyncio.new_event_loop()
    try:
        managed = fixture()
        loop.run_until_complete(managed.__aenter__())
        drawn = [kit.draws(), loop.run_until_complete(deterministic(1)(drawing)(2))]
        with isolated(2):
            drawn.append(kit.draws())
        loop.run_until_complete(managed.__aexit__(None, None, None))
    finally:
        loop.close()
    assert drawn == [kit.reference(0)[0], kit.reference(1, 2), kit.reference(2)[0]]
    assert kit.everything() == before


def test_a_task_suspended_in_a_loop_that_does_not_run_does_not_stand_in_the_way() -> None:
    before, loop = kit.everything(), asyncio.new_event_loop()
    try:
        ring = Ring()
        task = loop.create_task(hold(deterministic(1), ring))
        loop.run_until_complete(ring.here.wait())
        inside = kit.FORMS["with"](deterministic(2), kit.draws)
        ring.go_on.set()
        first, second = loop.run_until_complete(task)
    finally:
        loop.close()
    assert [first, second] == kit.reference(1, 2)
    assert inside == kit.reference(2)[0]
    assert kit.everything() == before


def test_a_generator_kept_open_by_a_task_that_has_ended_is_left_out_of_order_with_a_warning() -> None:
    def keeps_open() -> Iterator[None]:
        with deterministic(0):
            yield

    kept = keeps_open()

    async def start() -> None:
        next(kept)

    async def other() -> None:
        with isolated(1):
            with pytest.warns(ScopeOrderWarning, match=r"^deterministic\(0\) was left before a scope"):
                kept.close()
            assert kit.draws() == kit.reference(1)[0]

    async def main() -> None:
        await asyncio.create_task(start())
        await asyncio.create_task(other())

    run(main)


def test_context_variables_set_in_a_decorated_body_are_seen_as_if_it_were_not_decorated() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    async def body(name: str) -> Any:
        seen = [variable.get()]
        variable.set(name)
        await asyncio.sleep(0)
        return [*seen, variable.get()]

    async def main() -> Any:
        variable.set("main's")
        decorated = deterministic(0)(body)
        tasks = await asyncio.gather(decorated("one"), decorated("two"))
        awaited = await decorated("awaited")
        return tasks, awaited, variable.get()

    assert run(main) == ([["main's", "one"], ["main's", "two"]], ["main's", "awaited"], "awaited")


def test_a_decorated_body_sees_its_own_task() -> None:
    @deterministic(0)
    async def body() -> Any:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        return before is asyncio.current_task() is not None

    assert run(body)


def test_a_shielded_task_goes_on_in_its_own_stream_when_its_awaiter_is_cancelled() -> None:
    async def main() -> Any:
        ring = Ring()
        inner = asyncio.create_task(deterministic(1)(drawing)(3, ring.wait))

        @deterministic(2)
        async def awaiting() -> None:
            kit.draws()
            await asyncio.shield(inner)

        outer = asyncio.create_task(awaiting())
        await ring.here.wait()
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        ring.go_on.set()
        return await inner

    assert run(main) == kit.reference(1, 3)


@from_312
def test_eager_decorated_tasks_each_see_their_own_stream() -> None:
    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        with deterministic(0):
            first = kit.draws()
            tasks = [asyncio.create_task(deterministic(seed)(drawing)(3)) for seed in range(1, 6)]
            second = kit.draws()
        return first, second, await asyncio.gather(*tasks)

    assert run(main) == (*kit.reference(0, 2), [kit.reference(seed, 3) for seed in range(1, 6)])


@from_312
def test_eager_tasks_started_by_a_decorated_body_go_on_without_it() -> None:
    @deterministic(0)
    async def body() -> Any:
        first = kit.draws()
        tasks = [asyncio.create_task(deterministic(seed)(drawing)(3)) for seed in range(1, 6)]
        second = kit.draws()
        return first, second, await asyncio.gather(*tasks)

    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await body()

    assert run(main) == (*kit.reference(0, 2), [kit.reference(seed, 3) for seed in range(1, 6)])


@from_312
def test_the_parent_of_an_eager_task_that_holds_a_scope_open_is_refused() -> None:
    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        ring = Ring()
        child = asyncio.create_task(hold(deterministic(1), ring), name="the child")
        with refused_by("deterministic(1)", "the child"):
            isolated().__enter__()
        ring.go_on.set()
        return await child

    assert run(main) == tuple(kit.reference(1, 2))


def test_a_thread_that_is_awaited_is_nested_also_behind_a_scope_that_was_left() -> None:
    async def main() -> Any:
        with deterministic(7):
            with deterministic(2):
                kit.draws()
            return await asyncio.to_thread(kit.FORMS["function"], deterministic(1), kit.draws)

    assert run(main) == kit.reference(1)[0]


def test_a_generator_is_not_resumed_beside_a_thread_that_is_nested_in_the_same_scope() -> None:
    @deterministic(0)
    def generate() -> Iterator[Any]:
        while True:
            yield kit.draws()

    async def main() -> Any:
        entered, leave = threading.Event(), threading.Event()

        def nested() -> Any:
            with deterministic(1):
                entered.set()
                assert leave.wait(60)
                return kit.draws()

        with deterministic(7):
            generator = generate()
            next(generator)
            thread = asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, nested)
            assert entered.wait(60)
            try:
                with pytest.raises(ConcurrentScopeError, match=re.escape("deterministic(1) is open in a thread")):
                    next(generator)
            finally:
                leave.set()
            return await thread, kit.draws()

    assert run(main) == (kit.reference(1)[0], kit.reference(7)[0])
