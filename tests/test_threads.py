"""Scopes and the threads and processes beside them: an overlap is refused, what is nested is not, nothing is lost."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import multiprocessing
import os
import pickle
import random
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch

from scoped_rng import ConcurrentScopeError, capture, deterministic, fixed_seed, isolated, replay, scope
from scoped_rng.scope import activation
from tests import kit

REFUSED = (
    "{} is open in a thread while another scope is being entered, and neither is nested in the other; the "
    "random streams belong to the process, so both would be wrong. Open one after the other (put a lock round the "
    "blocks), decorate coroutines and generators instead of using `with` across an await or a yield, or use processes"
)
PATIENCE = 20  # seconds until a thread or process that hangs fails its test; none takes a tenth of it
RECIPES: dict[str, Callable[[], scope.Scope]] = {
    "deterministic": lambda: deterministic(3),
    "strict": lambda: deterministic(3, strict=True),
    "isolated": lambda: isolated(3),
    "isolated, no seed": isolated,
    "replay": lambda: replay(capture()),
}

# From 3.12 on, Python warns of every fork of a process with threads, such as those of torch.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Callable[[], scope.Scope]:
    return RECIPES[request.param]


def refused_by(opener: object) -> Any:
    """Expect the error that tells of ``opener``, which a thread has open."""
    return pytest.raises(ConcurrentScopeError, match=f"^{re.escape(REFUSED.format(opener))}$")


def in_thread(body: Callable[[], Any]) -> Any:
    """Return what ``body`` returns in a thread of its own, or raise what it raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(body).result(PATIENCE)


def in_raw_thread(body: Callable[[], Any]) -> Any:
    """Do the same in a thread that Python's threading does not know of, such as C++ code starts."""
    done, outcome = threading.Event(), []

    def run() -> None:
        sys.settrace(threading.gettrace())  # as threading does in its threads
        try:
            outcome.append((body(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            done.set()

    _thread.start_new_thread(run, ())
    assert done.wait(PATIENCE)
    [(result, error)] = outcome
    if error is not None:
        raise error
    return result


@contextmanager
def open_in_a_thread(opened: scope.Scope) -> Iterator[None]:
    """Hold a scope open in another thread."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with opened:
            entered.set()
            assert leave.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        try:
            assert entered.wait(PATIENCE)
            yield
        finally:
            leave.set()
            holding.result(PATIENCE)


@contextmanager
def threads(count: int, body: Callable[[int], Any]) -> Iterator[None]:
    """Run ``body(number)`` in many threads that start at once, beside the block; raise what they raise."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(PATIENCE)
        body(number)

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(run, number) for number in range(count)]
        try:
            yield
        finally:
            for thread in running:
                thread.result(PATIENCE)


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Make Python switch threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def words(saved: tuple[Any, ...], count: int) -> dict[str, np.ndarray]:
    """Return the next ``count`` words of the streams that `kit.ambient` has saved."""
    (_, (*key, position), _), _, numpy_state, torch_state = saved
    python_bits, numpy_bits = np.random.MT19937(0), np.random.MT19937(0)
    state = {"key": np.array(key, np.uint32), "pos": position}
    python_bits.state = {"bit_generator": "MT19937", "state": state}
    numpy_bits.state = {"bit_generator": "MT19937", "state": numpy_state["state"]}
    generator = torch.Generator()
    generator.set_state(torch_state)
    return {
        "python": python_bits.random_raw(count),
        "numpy": numpy_bits.random_raw(count),
        "torch": torch.rand(count, generator=generator).numpy(),  # of 24 bits, one word each
    }


def further_along(earlier: tuple[Any, ...], later: tuple[Any, ...], count: int) -> dict[str, bool]:
    """Say of each stream whether it is where it was or at most ``count`` words further, and nowhere else."""
    before, after = words(earlier, count + 8), words(later, 8)
    windows = {name: np.lib.stride_tricks.sliding_window_view(raw, 8) for name, raw in before.items()}
    return {name: bool((windows[name] == after[name]).all(axis=1).any()) for name in after}


# Many threads


def test_of_many_threads_that_open_scopes_each_gets_its_own_numbers_or_is_refused(
    short_turns: None, recipe: Callable[[], scope.Scope]
) -> None:
    before, expected = kit.everything(), {}
    for number in range(8):
        with isolated(number):
            expected[number] = kit.draws()
    entered: list[int] = []

    def body(number: int) -> None:
        for _ in range(20):
            with suppress(ConcurrentScopeError), recipe(), isolated(number):
                assert kit.draws() == expected[number]
                entered.append(number)

    with threads(8, body):
        pass
    assert kit.everything() == before
    assert entered


def test_threads_that_take_turns_under_a_lock_all_get_in(short_turns: None, recipe: Callable[[], scope.Scope]) -> None:
    before, reference, lock = kit.everything(), kit.reference(9)[0], threading.Lock()
    entered: list[int] = []

    def body(number: int) -> None:
        for _ in range(10):
            with lock, recipe(), deterministic(9):
                assert kit.draws() == reference
                entered.append(number)

    with threads(8, body):
        pass
    assert kit.everything() == before
    assert sorted(entered) == sorted(10 * list(range(8)))


@pytest.mark.parametrize("locked", [True, False], ids=["in turn", "at once"])
def test_threads_that_draw_all_the_while_leave_the_ambient_streams_on_their_own_track(
    short_turns: None, locked: bool
) -> None:
    """What they draw inside of scopes is lost; what they draw outside moves each stream along, by words of 32 bits."""
    lock, done, drawn = threading.Lock(), threading.Event(), [0, 0]
    kit.seed_everything(1)
    earlier, flags, randbits = kit.ambient(), kit.flags(), np.random.bit_generator.randbits

    def draw(number: int) -> None:
        while not done.is_set() and drawn[number] < 20_000:
            kit.draws()
            drawn[number] += 1

    def enter(number: int) -> None:
        for _ in range(25):
            if locked:
                with lock, deterministic(number):
                    kit.draws()
            else:
                with suppress(ConcurrentScopeError), deterministic(number):
                    kit.draws()

    with threads(2, draw):
        try:
            with threads(4, enter):
                pass
        finally:
            done.set()
    later, count = kit.ambient(), 1000 + 32 * sum(drawn)
    assert further_along(earlier, later, count) == {"python": True, "numpy": True, "torch": True}
    assert later[1] is earlier[1]
    assert torch.initial_seed() == 1
    assert kit.flags() == flags
    assert np.random.bit_generator.randbits is randbits


# Two threads


def test_a_scope_in_another_thread_is_refused_before_anything_is_touched(recipe: Callable[[], scope.Scope]) -> None:
    opened, entering = deterministic(0), recipe()
    with opened:
        before, open_now = kit.everything(), list(activation._stack)
        with refused_by("deterministic(0)"):
            in_thread(entering.__enter__)
        assert kit.everything() == before
        assert activation._stack == open_now


@pytest.mark.parametrize("form", kit.FORMS)
def test_every_form_is_refused_while_another_thread_has_a_scope_open(form: str) -> None:
    ran: list[None] = []
    with open_in_a_thread(isolated(4)):
        before = kit.everything()
        with refused_by("isolated(4)"):
            kit.FORMS[form](deterministic(0), lambda: ran.append(None))
        assert kit.everything() == before
    assert not ran


@pytest.mark.parametrize("form", kit.FORMS)
def test_every_form_works_once_the_other_thread_has_left(form: str) -> None:
    before = kit.everything()
    with open_in_a_thread(isolated(4)):
        pass
    assert kit.FORMS[form](deterministic(0), kit.draws) == kit.reference(0)[0]
    assert kit.everything() == before


def test_the_scope_that_is_open_goes_on_after_another_thread_was_refused() -> None:
    before = kit.everything()
    with deterministic(0):
        draws = [kit.draws()]
        with refused_by("deterministic(0)"):
            in_thread(deterministic(1).__enter__)
        draws.append(kit.draws())
    assert draws == kit.reference(0, 2)
    assert kit.everything() == before


def test_the_message_names_a_replayed_state() -> None:
    state = capture()
    with replay(state), refused_by(f"replay({state!r})"):
        in_thread(isolated().__enter__)


def test_user_objects_are_not_touched_by_a_refused_entry() -> None:
    mine, same = random.Random(1), random.Random(1)
    with deterministic(0), refused_by("deterministic(0)"):
        in_thread(isolated(5, also=mine).__enter__)
    assert mine.random() == same.random()


def test_a_pool_thread_that_runs_in_a_copied_context_is_nested(recipe: Callable[[], scope.Scope]) -> None:
    before = kit.everything()
    with recipe():
        inside = kit.everything()
        context = contextvars.copy_context()
        draws = in_thread(lambda: context.run(kit.FORMS["with"], deterministic(1), kit.draws))
        assert draws == kit.reference(1)[0]
        assert kit.everything() == inside
    assert kit.everything() == before


def test_asyncio_to_thread_is_nested() -> None:
    async def body() -> Any:
        with deterministic(0):
            draws = await asyncio.to_thread(kit.FORMS["function"], deterministic(1), kit.draws)
            return draws, kit.draws()

    before = kit.everything()
    assert asyncio.run(body()) == (kit.reference(1)[0], kit.reference(0)[0])
    assert kit.everything() == before


def test_to_thread_out_of_a_decorated_coroutine_runs_beside_what_is_ambient_there() -> None:
    @deterministic(0)
    async def body() -> Any:
        first = kit.draws()
        draws = await asyncio.to_thread(kit.FORMS["with"], deterministic(1), kit.draws)
        return first, draws, kit.draws()

    before = kit.everything()
    first, second = kit.reference(0, 2)
    assert asyncio.run(body()) == (first, kit.reference(1)[0], second)
    assert kit.everything() == before


def test_a_thread_that_enters_a_scope_before_the_coroutine_that_started_it_gives_way_disturbs_nothing() -> None:
    @deterministic(0)
    async def body() -> Any:
        entered, given_way = threading.Event(), threading.Event()

        def nested() -> tuple[float, ...]:
            with deterministic(1):
                entered.set()
                assert given_way.wait(PATIENCE)
                return kit.draws()

        first, loop = kit.draws(), asyncio.get_running_loop()
        thread = loop.run_in_executor(None, contextvars.copy_context().run, nested)  # which is what to_thread does
        assert entered.wait(PATIENCE)
        loop.call_soon(given_way.set)
        draws = await thread
        return first, draws, kit.draws()

    before = kit.everything()
    first, second = kit.reference(0, 2)
    assert asyncio.run(body()) == (first, kit.reference(1)[0], second)
    assert kit.everything() == before


def test_a_context_copied_inside_a_scope_is_not_nested_in_a_later_one() -> None:
    with deterministic(0):
        context = contextvars.copy_context()
    with deterministic(1), refused_by("deterministic(1)"):
        in_thread(lambda: context.run(kit.FORMS["with"], isolated(), kit.draws))


def test_a_context_copied_inside_a_scope_can_be_used_when_that_is_left() -> None:
    with deterministic(0):
        context = contextvars.copy_context()
    draws = in_thread(lambda: context.run(kit.FORMS["with"], deterministic(1), kit.draws))
    assert draws == kit.reference(1)[0]


def test_run_in_executor_copies_no_context_and_is_refused() -> None:
    async def body() -> None:
        with isolated():
            await asyncio.get_running_loop().run_in_executor(None, kit.FORMS["with"], isolated(), kit.draws)

    before = kit.everything()
    with pytest.raises(ConcurrentScopeError, match=re.escape("isolated() is open in the task 'Task-")):
        asyncio.run(body())
    assert kit.everything() == before


def test_a_scope_entered_in_one_thread_can_be_left_in_another(recipe: Callable[[], scope.Scope]) -> None:
    before, opened = kit.everything(), recipe()
    in_thread(opened.__enter__)
    opened.__exit__(None, None, None)
    assert kit.everything() == before


# Decorated generators that change threads


@deterministic(0)
def three() -> Iterator[tuple[float, ...]]:
    for _ in range(3):
        yield kit.draws()


def test_a_decorated_generator_can_be_advanced_by_one_thread_after_the_other() -> None:
    before, generator = kit.everything(), three()
    assert [next(generator), in_thread(lambda: next(generator)), next(generator)] == kit.reference(0, 3)
    assert in_thread(lambda: next(generator, None)) is None
    assert kit.everything() == before


def test_resuming_a_decorated_generator_while_another_thread_has_a_scope_open_is_refused_and_nothing_is_lost() -> None:
    before, generator = kit.everything(), three()
    assert next(generator) == kit.reference(0)[0]
    with open_in_a_thread(deterministic(1)):
        inside = kit.everything()
        with refused_by("deterministic(1)"):
            next(generator)
        assert kit.everything() == inside
    assert kit.everything() == before
    assert list(generator) == []


def test_another_thread_cannot_resume_a_decorated_generator_into_an_open_scope() -> None:
    before, generator = kit.everything(), three()
    first = next(generator)
    with deterministic(1):
        with refused_by("deterministic(1)"):
            in_thread(lambda: next(generator))
        assert kit.draws() == kit.reference(1)[0]
    assert first == kit.reference(0)[0]
    assert kit.everything() == before


def test_a_refused_generator_gives_up_the_scopes_that_its_body_had_open() -> None:
    @isolated(0)
    def body() -> Iterator[None]:
        with deterministic(7, strict=True):
            yield

    before, generator = kit.everything(), body()
    next(generator)
    with open_in_a_thread(isolated()):
        inside = kit.everything()
        with refused_by("isolated()"):
            next(generator)
        assert kit.everything() == inside
    assert kit.everything() == before
    assert not activation._suspended


def test_closing_a_decorated_generator_while_another_thread_has_a_scope_open_is_refused_and_nothing_is_lost() -> None:
    before, generator = kit.everything(), three()
    next(generator)
    with open_in_a_thread(deterministic(1)):
        inside = kit.everything()
        with refused_by("deterministic(1)"):
            generator.close()
        assert kit.everything() == inside
    assert kit.everything() == before


def test_a_suspended_generator_stands_in_no_other_threads_way() -> None:
    before, generator = kit.everything(), three()
    assert next(generator) == kit.reference(0)[0]
    assert in_thread(lambda: kit.FORMS["with"](deterministic(1), kit.draws)) == kit.reference(1)[0]
    assert next(generator) == kit.reference(0, 2)[1]
    generator.close()
    assert kit.everything() == before


# Backward, which autograd runs on a thread of its own for each accelerator


class ScopeInBackward(torch.autograd.Function):
    """Draw under a scope in backward, as activation checkpointing does when it runs the forward again."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, drawn: list[Any]) -> torch.Tensor:
        ctx.drawn = drawn
        return tensor * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        with deterministic(1):
            ctx.drawn.append(kit.draws())
        return gradient * 2, None


def loss(drawn: list[Any]) -> torch.Tensor:
    return ScopeInBackward.apply(torch.ones(2, requires_grad=True), drawn).sum()


def test_a_scope_in_backward_on_a_device_thread_is_nested_in_the_scope_of_the_thread_that_waits() -> None:
    before, drawn = kit.everything(), []
    with deterministic(0):
        in_raw_thread(loss(drawn).backward)
        assert kit.draws() == kit.reference(0)[0]
    assert drawn == kit.reference(1)
    assert kit.everything() == before


def test_a_scope_in_backward_on_the_thread_that_called_it_is_nested() -> None:
    before, drawn = kit.everything(), []
    with deterministic(0):
        loss(drawn).backward()
        assert kit.draws() == kit.reference(0)[0]
    assert drawn == kit.reference(1)
    assert kit.everything() == before


def test_a_foreign_thread_that_runs_no_backward_is_refused() -> None:
    with deterministic(0), refused_by("deterministic(0)"):
        in_raw_thread(deterministic(1).__enter__)


def test_a_backward_that_another_python_thread_runs_is_refused() -> None:
    drawn: list[Any] = []
    with deterministic(0):
        with refused_by("deterministic(0)"):
            in_thread(loss(drawn).backward)
        assert kit.draws() == kit.reference(0)[0]
    assert not drawn


def test_a_decorated_function_called_in_backward_on_a_device_thread_is_nested() -> None:
    drawn: list[Any] = []
    tensor = torch.ones(2, requires_grad=True)
    tensor.register_hook(lambda gradient: drawn.append(fixed_seed(1)(kit.draws)()))
    with deterministic(0):
        in_raw_thread((tensor * 2).sum().backward)
        assert kit.draws() == kit.reference(0)[0]
    assert drawn == kit.reference(1)


# Processes


def in_child(body: Callable[[], Any]) -> Any:
    """Return what ``body`` returns in a forked child that then ends at once."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                answer = (body(), "")
            except BaseException:
                answer = (None, traceback.format_exc())
            with open(writer, "wb") as file:
                pickle.dump(answer, file)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with open(reader, "rb") as file:
            assert select.select([file], [], [], PATIENCE)[0], "the child hangs"
            result, error = pickle.load(file)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
    assert not error, error
    return result


@forks
def test_scopes_work_in_a_child_that_was_forked_while_another_thread_had_one_open(
    recipe: Callable[[], scope.Scope],
) -> None:
    def child() -> Any:
        before = kit.continuation()
        with recipe():
            with deterministic(1):
                draws = kit.draws()
        return draws, kit.continuation() == before, len(activation._stack)

    with open_in_a_thread(deterministic(0)):
        assert in_child(child) == (kit.reference(1)[0], True, 0)


@forks
def test_scopes_work_in_a_child_forked_by_a_thread_that_has_a_scope_open_itself() -> None:
    before = kit.continuation()

    def child() -> Any:
        with deterministic(1):
            return kit.draws()

    def fork_inside() -> Any:
        with isolated(2):
            drawn = in_child(child)
            return drawn, kit.draws()

    assert in_thread(fork_inside) == (kit.reference(1)[0], kit.reference(2)[0])
    assert kit.continuation() == before


@forks
def test_scopes_work_in_a_child_forked_by_a_thread_while_the_main_thread_has_one_open() -> None:
    def child() -> Any:
        with deterministic(1):
            return kit.draws()

    with isolated(2):
        assert in_thread(lambda: in_child(child)) == kit.reference(1)[0]
        assert kit.draws() == kit.reference(2)[0]


@forks
def test_the_parents_other_thread_is_still_in_its_scope_after_a_fork() -> None:
    before = kit.everything()
    with open_in_a_thread(deterministic(0)):
        in_child(lambda: None)
        with refused_by("deterministic(0)"):
            isolated().__enter__()
    assert kit.everything() == before


@forks
def test_a_child_forked_inside_a_scope_is_in_the_scope_as_well() -> None:
    def child() -> Any:
        first = kit.draws()
        with deterministic(1):
            nested = kit.draws()
        return first[2:], nested, kit.draws()[2:]  # Python seeds its own stream anew in every child

    with deterministic(0):
        first, second = kit.reference(0, 2)
        assert in_child(child) == (first[2:], kit.reference(1)[0], second[2:])
        assert kit.draws() == first


@forks
def test_a_child_that_leaves_the_parents_block_has_the_ambient_state_back() -> None:
    before = kit.continuation(), kit.flags()
    opened = deterministic(0)

    def child() -> Any:
        opened.__exit__(None, None, None)
        return (kit.continuation(), kit.flags()) == before, len(activation._stack)

    with opened:
        assert in_child(child) == (True, 0)
        assert kit.draws() == kit.reference(0)[0]
    assert (kit.continuation(), kit.flags()) == before


@forks
def test_a_thread_of_a_child_is_refused_while_the_child_has_a_scope_open() -> None:
    def child() -> str:
        with isolated(2):
            try:
                in_thread(isolated(3).__enter__)
            except ConcurrentScopeError as error:
                return str(error)
        return ""

    assert in_child(child) == REFUSED.format("isolated(2)")


@forks
def test_a_decorated_generator_can_be_resumed_in_a_child() -> None:
    before, generator = kit.everything(), three()
    first, second, third = kit.reference(0, 3)
    assert next(generator) == first
    assert in_child(lambda: list(generator)) == [second, third]
    assert list(generator) == [second, third]
    assert kit.everything() == before


@forks
def test_a_fork_while_another_thread_enters_and_leaves_scopes_leaves_the_child_able_to_open_its_own(
    short_turns: None,
) -> None:
    begun, done = threading.Event(), threading.Event()
    with isolated():  # imports what it needs: Python cannot fork safely while another thread imports
        pass

    def body(number: int) -> None:
        sys.settrace(None)  # what measures coverage has a lock of its own, which a child would wait for
        while not done.is_set():
            with isolated():
                pass
            begun.set()

    def child() -> Any:
        with activation._lock, deterministic(1):
            return random.random()

    with threads(1, body):
        try:
            assert begun.wait(PATIENCE)
            draws = {in_child(child) for _ in range(10)}
        finally:
            done.set()
    assert draws == {random.Random(1).random()}


def _put(queue: Any, number: int) -> None:
    with deterministic(number):
        queue.put((number, kit.draws()))


@forks
def test_processes_of_multiprocessing_started_in_a_scope_open_scopes_of_their_own() -> None:
    context = multiprocessing.get_context("fork")
    before = kit.everything()
    with deterministic(0):
        queue = context.SimpleQueue()
        processes = [context.Process(target=_put, args=(queue, number)) for number in range(2)]
        for process in processes:
            process.start()
        answers = dict(queue.get() for _ in processes)
        for process in processes:
            process.join(PATIENCE)
        assert kit.draws() == kit.reference(0)[0]
    assert answers == {number: kit.reference(number)[0] for number in range(2)}
    assert kit.everything() == before


class Noise(torch.utils.data.Dataset):
    """Draw in the worker: from the streams that it has, and under a scope of its own."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with isolated(index):
            own = kit.draws()
        return torch.tensor([own, kit.draws()], dtype=torch.float64)


@forks
def test_the_forked_workers_of_a_data_loader_made_in_a_scope_repeat() -> None:
    def epoch() -> torch.Tensor:
        loader = torch.utils.data.DataLoader(
            Noise(), batch_size=1, shuffle=True, num_workers=2, multiprocessing_context="fork"
        )
        with deterministic(0):
            batches = list(loader)
            assert kit.draws()[:2] == kit.reference(0)[0][:2]  # of torch, the loader has drawn
        return torch.cat(batches)

    before = kit.everything()
    first, second = epoch(), epoch()
    assert kit.everything() == before
    assert torch.equal(first, second)
    own = {kit.reference(index)[0] for index in range(4)}
    assert {tuple(sample) for sample in first[:, 0].tolist()} == own
    assert len({tuple(sample) for sample in first[:, 1].tolist()}) == 4


@forks
def test_workers_that_outlive_the_scope_they_were_started_in_work_on() -> None:
    loader = torch.utils.data.DataLoader(
        Noise(), batch_size=1, num_workers=1, prefetch_factor=1, multiprocessing_context="fork"
    )
    before = kit.everything()
    with deterministic(0):
        batches = iter(loader)
        first = next(batches)
    assert kit.everything() == before
    samples = [sample[0, 0].tolist() for sample in (first, *batches)]
    assert list(map(tuple, samples)) == [kit.reference(index)[0] for index in range(4)]
