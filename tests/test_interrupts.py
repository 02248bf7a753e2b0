"""Whatever is raised at whatever line of the package, the process is as it was.

A sweep runs one form again and again, with a KeyboardInterrupt at the first, second, third... line that is executed
inside the package, until a run comes to its end before its line is reached.
"""

from __future__ import annotations

import itertools
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator
import pytest
import torch

import scoped_rng
from scoped_rng import (
    capture,
    deterministic,
    fixed_seed,
    isolated,
    replay,
    scope,
)
from scoped_rng.scope import activation
from scoped_rng.streams import numpy as numpy_streams
from tests import kit

PACKAGE = str(Path(scoped_rng.__file__).parent)


class Boom(Exception):
    """What a body raises."""


def process() -> tuple[Any, ...]:
    """Return all that must be the same before and after."""
    return kit.everything(), bit_generator.randbits, tuple(activation._stack), activation._innermost_here()


def draw() -> None:
    """Draw from everything, so that gaussians stay cached."""
    kit.draws()
    np.random.default_rng().random()


class Run:
    """One run of a form, with a KeyboardInterrupt at one line of the package."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0
        self.place = ""
        self.is_first_line_of_exit = False
        self._has_begun_exit: Any = None

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if frame.f_code is scope.Scope.__exit__.__code__:
            self._has_begun_exit = frame
        return self._line

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}, in {frame.f_code.co_name}"
                self.is_first_line_of_exit = self._has_begun_exit is frame
                raise KeyboardInterrupt
            self._has_begun_exit = None
        return self._line

    def step(self, action: Callable[[], Any]) -> Any:
        """Do one thing that goes into the package and out; return what it returns or raises."""
        return next(self._outcome(action))

    def _outcome(self, action: Callable[[], Any]) -> Iterator[Any]:
        # In a generator, which has a stack of handled errors of its own: where a tracer raises between two instructions
        # that never do, CPython leaves an error on it, and all that is raised later would have that one as its context.
        tracer = sys.gettrace()
        try:
            if not self.place:
                sys.settrace(self)
            try:
                outcome = action()
            finally:
                sys.settrace(tracer)
                release_locks()
        except BaseException as error:
            outcome = error.with_traceback(None)
        yield outcome


def release_locks() -> None:
    # A trace function can raise where no signal can: at the line event between the last line of `with lock:` and the
    # release. Such a lock would stay with this thread for ever, and the next test with another thread would hang.
    for lock in (np.random.get_bit_generator().lock, activation._lock, numpy_streams._entropy_lock):
        while lock._is_owned():
            lock.release()


def sweep(run_form: Callable[[Run], None], leave: Callable[[], Any] | None = None) -> None:
    """Run ``run_form`` with an interrupt at every line, and check after each that the process is as before.

    Args:
        run_form: takes a `Run` and goes through its ``step`` wherever it enters the package; it ends early once the run
            was interrupted.
        leave: what ends a ``with`` block whose ``__exit__`` was interrupted at its first line: the one line that is
            not protected. None where the form has no such line.
    """
    run_form(Run(0))  # what runs on the first use alone
    draw()
    before = process()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        for at in itertools.count(1):
            run = Run(at)
            run_form(run)
            if run.is_first_line_of_exit:
                assert leave is not None, f"a form of the package has an unprotected line: {run.place}"
                leave()
                told.clear()
            assert process() == before, f"after an interrupt at {run.place}"
            assert not told, f"after an interrupt at {run.place}: {told[0].message}"
            if not run.place:
                break
    assert at > 50, "the sweep has reached no line of the package"


@pytest.fixture(autouse=True)
def cached_gaussians() -> None:
    """Give the ambient streams a cached gaussian each, and torch a seed that is no default."""
    random.seed(11)
    np.random.seed(12)
    torch.default_generator.manual_seed(13)
    torch.cuda.manual_seed(14)  # pending, where CUDA is not initialised
    kit.draws()


@pytest.fixture
def raised_in_vain(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect what is raised where nobody can catch it, such as in a generator that is collected."""
    raised: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(repr(unraisable.exc_value)))
    yield raised
    assert not raised


def replayed() -> scoped_rng.scope.Scope:
    with isolated(7):
        return replay(capture())


def with_user_objects() -> scoped_rng.scope.Scope:
    also = [random.Random(1), np.random.default_rng(2), np.random.RandomState(3), torch.nn.BatchNorm1d(2)]
    return deterministic(7, strict=True, also=also)


SCOPES: dict[str, Callable[[], Any]] = {
    "deterministic": lambda: deterministic(7),
    "isolated": isolated,
    "isolated with a seed": lambda: isolated(7),
    "replay": replayed,
    "strict and user objects": with_user_objects,
}
every_scope = pytest.mark.parametrize("make", SCOPES.values(), ids=SCOPES)


@every_scope
@pytest.mark.parametrize("error", [None, Boom], ids=["normal exit", "exception"])
def test_an_interrupt_anywhere_in_a_with_block_leaves_the_process_as_it_was(make: Any, error: Any) -> None:
    held = make()

    def block() -> None:
        with held:
            draw()
            if error is not None:
                raise error

    def run_form(run: Run) -> None:
        outcome = run.step(block)
        if run.place:
            assert isinstance(outcome, KeyboardInterrupt), f"swallowed at {run.place}"

    sweep(run_form, leave=lambda: held.__exit__(None, None, None))


def test_an_interrupt_anywhere_in_a_nested_with_block_leaves_the_outer_scope_as_it_was() -> None:
    outer, inner = deterministic(3), deterministic(7)

    def block() -> None:
        with inner:
            draw()

    with outer:
        draw()
        sweep(lambda run: run.step(block), leave=lambda: inner.__exit__(None, None, None))


def test_the_first_line_of_exit_is_the_only_one_that_is_not_protected() -> None:
    """It is what the docs say; and leaving once more puts everything back."""
    held = deterministic(7)
    before = process()

    def block() -> None:
        with held:
            draw()

    unprotected = []
    for at in itertools.count(1):
        run = Run(at)
        run.step(block)
        if not run.place:
            break
        if process() != before:
            unprotected.append(run.is_first_line_of_exit)
            held.__exit__(None, None, None)
            assert process() == before
    assert unprotected == [True]


class Fails:
    """A method that raises from its N-th call on, for so many calls."""

    def __init__(self, method: Callable[..., Any], first: int, count: int, error: type[BaseException] = Boom) -> None:
        self.method, self.first, self.last, self.error = method, first, first + count - 1, error
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.first <= self.calls <= self.last:
            raise self.error("no")
        return self.method(*arguments)


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "not open"])
def test_an_interrupt_while_the_activation_to_leave_is_looked_up_goes_on(
    is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = deterministic(7)
    before = process()
    if is_open:
        held.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(scope, "find", Fails(scope.find, 1, 1, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            held.__exit__(None, None, None)
    assert process() == before


@every_scope
@pytest.mark.parametrize("error", [None, Boom], ids=["normal exit", "exception"])
def test_an_interrupt_anywhere_in_a_decorated_function_leaves_the_process_as_it_was(make: Any, error: Any) -> None:
    @make()
    def function() -> None:
        draw()
        if error is not None:
            raise error

    def run_form(run: Run) -> None:
        outcome = run.step(function)
        if run.place:
            assert isinstance(outcome, KeyboardInterrupt), f"swallowed at {run.place}"

    sweep(run_form)


def test_an_interrupt_anywhere_in_restoring_a_state_leaves_the_process_as_it_was() -> None:
    with isolated(7):
        state = capture()
    before = process()
    for at in itertools.count(1):
        run = Run(at)
        run.step(state.restore)
        if not run.place:
            break
        assert process() == before, f"after an interrupt at {run.place}"
    assert at > 50


# The bodies of generators and coroutines: one that draws, one that holds an inner scope open where it gives way, and
# one that draws while it is closed.


def drawing() -> Iterator[None]:
    draw()
    yield
    draw()
    yield
    draw()


def holding() -> Iterator[None]:
    with deterministic(5):
        draw()
        yield
        draw()
        yield
        draw()


def tidying() -> Iterator[None]:
    try:
        draw()
        yield
        draw()
        yield
    finally:
        kit.draws()


BODIES = [drawing, holding, tidying]
every_body = pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
every_end = pytest.mark.parametrize("end", ["exhausted", "closed", "thrown into"])


@every_body
@every_end
@pytest.mark.usefixtures("raised_in_vain")
def test_an_interrupt_anywhere_in_a_decorated_generator_leaves_the_process_as_it_was(body: Any, end: str) -> None:
    make = fixed_seed(7)(body)

    def run_form(run: Run) -> None:
        generator = make()
        ends = {
            "exhausted": [lambda: next(generator, None)] * 2,
            "closed": [generator.close],
            "thrown into": [lambda: generator.throw(Boom)],
        }
        for action in [lambda: next(generator), *ends[end]]:
            outcome = run.step(action)
            if run.place:
                assert isinstance(outcome, KeyboardInterrupt), f"swallowed at {run.place}"
                return

    sweep(run_form, leave=leave_all)


@every_body
@every_end
@pytest.mark.usefixtures("raised_in_vain")
def test_an_interrupt_anywhere_in_a_decorated_coroutine_leaves_the_process_as_it_was(body: Any, end: str) -> None:
    awaited = types.coroutine(body)

    @fixed_seed(7)
    async def run_body() -> None:
        await awaited()

    def run_form(run: Run) -> None:
        coroutine: Any = run_body()
        ends = {
            "exhausted": [lambda: coroutine.send(None)] * 2,
            "closed": [coroutine.close],
            "thrown into": [lambda: coroutine.throw(Boom)],
        }
        for action in [lambda: coroutine.send(None), *ends[end]]:
            outcome = run.step(action)
            if run.place:
                assert isinstance(outcome, KeyboardInterrupt), f"swallowed at {run.place}"
                return

    sweep(run_form, leave=leave_all)


@types.coroutine
def pause() -> Iterator[None]:
    yield


async def drawing_async() -> Any:
    draw()
    await pause()
    draw()
    yield
    draw()


async def holding_async() -> Any:
    with deterministic(5):
        draw()
        await pause()
        draw()
        yield
        draw()


async def tidying_async() -> Any:
    try:
        draw()
        await pause()
        draw()
        yield
    finally:
        kit.draws()


@pytest.mark.parametrize("body", [drawing_async, holding_async, tidying_async], ids=lambda body: body.__name__)
@every_end
@pytest.mark.usefixtures("raised_in_vain")
def test_an_interrupt_anywhere_in_a_decorated_async_generator_leaves_the_process_as_it_was(body: Any, end: str) -> None:
    make = fixed_seed(7)(body)

    def run_form(run: Run) -> None:
        generator: Any = make()
        ends = {
            "exhausted": lambda: generator.asend(None),
            "closed": generator.aclose,
            "thrown into": lambda: generator.athrow(Boom),
        }
        for awaitable in [lambda: generator.asend(None), ends[end]]:
            step = awaitable()
            while True:
                outcome = run.step(lambda step=step: step.send(None))
                if run.place:
                    assert isinstance(outcome, KeyboardInterrupt), f"swallowed at {run.place}"
                    return
                if isinstance(outcome, BaseException):
                    break

    sweep(run_form, leave=leave_all)


def leave_all() -> None:
    """Leave a scope of the body's own whose ``__exit__`` was interrupted at its first line."""
    while activation._stack:
        activation._stack[-1].scope.__exit__(None, None, None)
