"""A failure at every step of entering and leaving, in everything that a scope holds: nothing is lost or swallowed.

Each test lets one method fail at its first call, then at its second and so on, until a run comes to its end before.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import random
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scoped_rng import (
    RestoreError,
    RestoreWarning,
    capture,
    deterministic,
    flags,
    isolated,
    register_stream,
    replay,
    scope,
    unregister_stream,
)
from scoped_rng.scope import activation
from scoped_rng.streams import buffers
from scoped_rng.streams import numpy as numpy_streams
from scoped_rng.streams.numpy import NUMPY
from scoped_rng.streams.python import PYTHON
from scoped_rng.streams.registry import put_all
from tests import kit
from tests.fake_device import NAME, FakeGeneratorsModule, FakeLazyBackend

ERRORS = [RuntimeError, MemoryError, KeyboardInterrupt]
every_error = pytest.mark.parametrize("error", ERRORS)


class Boom(Exception):
    """What a body raises."""


class Duck:
    """An object with the three methods that a scope needs, and no more."""

    def __init__(self, seed: int) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self.value = seed

    def getstate(self) -> int:
        return self.value

    def setstate(self, value: int) -> None:
        self.value = value

    def draw(self) -> int:
        self.value += 1
        return self.value


OBJECTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "random.Random": (lambda: random.Random(1), lambda held: (held.gauss(0, 1), held.random())),
    "Generator": (lambda: np.random.default_rng(2), lambda held: (held.random(), held.spawn(1)[0].random())),
    "RandomState": (lambda: np.random.RandomState(3), lambda held: (held.standard_normal(), held.random_sample())),
    "torch.Generator": (
        lambda: torch.Generator().manual_seed(4),
        lambda held: torch.rand(2, generator=held).tolist(),
    ),
    "Module": (
        lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)),
        lambda held: held.train(not held.training)(torch.arange(4.0).reshape(2, 2) + held[0].num_batches_tracked),
    ),
    "duck": (lambda: Duck(5), Duck.draw),
}
"""Each kind of object for ``also=``: how one is made, and something that moves it."""

GLOBAL = ["python", "numpy", "torch", "numpy.entropy", "flags", "pending seeds"]
OTHERS = [f"{NAME}:0", f"{NAME}:1", "dice"]
NAMES = [*GLOBAL, *OTHERS, *(f"also[{place}]" for place in range(len(OBJECTS)))]


class World:
    """All that a scope can hold: the process, two devices, a registered stream, and a user's object of each kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with isolated(8):
            self.objects = [make() for make, _ in OBJECTS.values()]
        self.device = FakeGeneratorsModule()
        monkeypatch.setattr(torch, NAME, self.device, raising=False)
        self.dice = random.Random(6)
        self.start()

    def start(self) -> None:
        """Give the global streams a state with a cached gaussian each: pytest-randomly seeds them anew."""
        random.seed(11)
        np.random.seed(12)
        torch.default_generator.manual_seed(13)
        torch.cuda.manual_seed(14)  # pending, where CUDA is not initialised
        self.move()

    def move(self) -> None:
        """Draw from everything, so that gaussians stay cached."""
        kit.draws()
        np.random.default_rng().random()
        self.device.draws()
        self.dice.gauss(0, 1)
        for held, (_, draw) in zip(self.objects, OBJECTS.values(), strict=True):
            draw(held)

    def upcoming(self) -> dict[str, Any]:
        """Return, for each thing that a scope holds, what is drawn next, and what else it has."""
        rows = list(zip(*kit.continuation(2), strict=True))
        drawn = {name: rows[2 * place : 2 * place + 2] for place, name in enumerate(("python", "numpy", "torch"))}
        dice = random.Random()
        dice.setstate(self.dice.getstate())
        return {
            **drawn,
            "numpy's bit generator": np.random.get_bit_generator(),
            "torch's seed": torch.initial_seed(),
            "numpy.entropy": np.random.bit_generator.randbits,
            **{f"flag {place}": value for place, value in enumerate(kit.flags())},
            "flag of inductor": getattr(sys.modules.get(flags.INDUCTOR), "deterministic", None),
            "flag of cublas": os.environ.get(flags.CUBLAS),
            "pending seeds": [vars(tracker).copy() for tracker in kit.trackers()],
            **{f"{NAME}:{number}": drawn for number, drawn in enumerate(zip(*self.device.ahead(), strict=True))},
            "dice": (dice.gauss(0, 1), dice.random()),
            **{f"also[{place}]": self._upcoming_of(place) for place in range(len(OBJECTS))},
        }

    def _upcoming_of(self, place: int) -> Any:
        held, (_, draw) = self.objects[place], [*OBJECTS.values()][place]
        if isinstance(held, torch.nn.Module):
            buffers = {name: (id(buffer), buffer.tolist()) for name, buffer in held.named_buffers()}
            return buffers, [module.training for module in held.modules()]
        if isinstance(held, torch.Generator):
            return draw(held.clone_state())
        return draw(copy.deepcopy(held))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    here = World(monkeypatch)
    register_stream("dice", here.dice)
    yield here
    unregister_stream("dice")


class Fails:
    """A function that raises from its N-th call on, for so many calls: before it has done anything, or when it has."""

    def __init__(
        self, function: Callable[..., Any], first: int, count: int, error: type[BaseException], is_done: bool
    ) -> None:
        self.function, self.first, self.last = function, first, first + count - 1
        self.error, self.is_done = error, is_done
        self.calls = 0
        self.raised: list[BaseException] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        fails = self.first <= self.calls <= self.last
        result = None if fails and not self.is_done else self.function(*arguments, **options)
        if fails:
            self.raised.append(self.error(f"call {self.calls}"))
            raise self.raised[-1]
        return result


# The forms, each with a scope of its own inside where the body gives way.


def with_form(held: scope.Scope, body: Callable[[], None]) -> None:
    with held:
        body()


def function_form(held: scope.Scope, body: Callable[[], None]) -> None:
    held(body)()


def generator_form(held: scope.Scope, body: Callable[[], None]) -> None:
    @held
    def generate() -> Iterator[None]:
        with deterministic(5):
            yield
            body()

    list(generate())


@types.coroutine
def pause() -> Iterator[None]:
    yield


def coroutine_form(held: scope.Scope, body: Callable[[], None]) -> None:
    @held
    async def run() -> None:
        with deterministic(5):
            await pause()
            body()

    run_out(run())


def async_generator_form(held: scope.Scope, body: Callable[[], None]) -> None:
    @held
    async def generate() -> Any:
        with deterministic(5):
            await pause()
            yield
            body()

    generator = generate()
    run_out(generator.asend(None))
    run_out(generator.asend(None))


def run_out(awaitable: Any) -> None:
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        while True:
            awaitable.send(None)


FORMS = {
    "with": with_form,
    "generator": generator_form,
    "function": function_form,
    "coroutine": coroutine_form,
    "async generator": async_generator_form,
}


# The sweep


class Case:
    """One way to let one method fail."""

    def __init__(self, world: World, name: str, error: type[BaseException]) -> None:
        self.world, self.name, self.error = world, name, error
        self.harmed: tuple[str, ...] = (name, "flag ") if name == "flags" else (name,)
        self.form, self.count, self.is_done, self.body_raises = "with", 1, False, False

    def __repr__(self) -> str:
        when = "after" if self.is_done else "before"
        return f"{self.form}, {when} the call, {self.count} times, body raises: {self.body_raises}"

    def body(self) -> None:
        self.world.move()
        if self.body_raises:
            raise Boom("from the body")

    def sweep(self, held: scope.Scope, owner: Any, attribute: Any, keeps: bool) -> None:
        """Fail at each call of a function.

        Args:
            attribute: the name of the function, or of a list and the function's place in it.
            keeps: whether what fails is as before nevertheless.
        """
        self.world.start()
        undo = [(one, one.take()) for one in held.plan()]
        before = self.world.upcoming()
        for call in itertools.count(1):
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                fails = self._install(patch, owner, attribute, call)
                raised = self._run(held)
            assert activation._stack == [], (self, call)
            assert activation._suspended == {}, (self, call)
            after = self.world.upcoming()
            unlike = [name for name in before if after[name] != before[name]]
            if not keeps and fails.raised:
                unlike = [name for name in unlike if not name.startswith(self.harmed)]
            assert unlike == [], (self, call)
            for one, value in undo:
                one.put(value)
            if not fails.raised:
                assert isinstance(raised, Boom) if self.body_raises else raised is None
                assert not told
                assert call > 1, "never called"
                break
            self._check(raised, fails.raised, [str(warning.message) for warning in told], call)

    def _install(self, patch: pytest.MonkeyPatch, owner: Any, attribute: Any, call: int) -> Fails:
        if isinstance(attribute, str):
            fails = Fails(getattr(owner, attribute), call, self.count, self.error, self.is_done)
            patch.setattr(owner, attribute, fails)
        else:
            name, place = attribute
            functions = [*getattr(owner, name)]
            functions[place] = fails = Fails(functions[place], call, self.count, self.error, self.is_done)
            patch.setattr(owner, name, functions)
        return fails

    def _run(self, held: scope.Scope) -> BaseException | None:
        try:
            FORMS[self.form](held, self.body)
        except (Boom, RestoreError, *ERRORS) as error:
            return error
        return None

    def _check(self, raised: BaseException | None, failures: list[BaseException], told: list[str], call: int) -> None:
        """Check that it is told which method has failed, and that nothing of the body is hidden."""
        assert raised is not None, f"swallowed: {self}, call {call}"
        if any(raised is failure for failure in failures):
            return
        # What was not raised as it is has hit what puts things back; an interrupt is raised all the same.
        assert issubclass(self.error, Exception), (self, call, raised)
        text = f"{self.name}: {self.error.__name__}: {failures[0]}"
        if isinstance(raised, RestoreError):
            assert not self.body_raises, (self, call)
            assert any(raised.__cause__ is failure for failure in failures), (self, call)
            assert str(raised).startswith(f"could not be put back when the scope was left: {text}"), (self, call)
        else:
            assert self.body_raises, (self, call)
            assert any(text in message for message in told), (self, call, told)


def variants(case: Case, long: bool) -> Iterator[Case]:
    """Yield a case in every form, with a body that raises and without; in two of them failing in other ways too."""
    few = [("with", False, 1, False), ("with", True, 1, False), ("generator", False, 1, False)]
    more = itertools.product(FORMS, (False, True), (1,), (False,))
    others = itertools.product(("with", "generator"), (False, True), (1, 1000), (True,))
    for form, body_raises, count, is_done in (*more, *others) if long else few:
        case.form, case.body_raises, case.count, case.is_done = form, body_raises, count, is_done
        yield case


def is_tried_again(case: Case) -> bool:
    """Say whether what could not be put back is tried again: an interrupt that comes once is not its fault."""
    return case.count == 1 and case.error is KeyboardInterrupt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["take", "seed", "put"])
@every_error
def test_whatever_fails_at_any_call_is_told_of_and_all_else_is_as_it_was(
    name: str, method: str, error: Any, world: World, long: bool
) -> None:
    held = deterministic(7, strict=True, also=world.objects)
    (owner,) = (one for one in held.plan() if one.name == name)
    for case in variants(Case(world, name, error), long):
        case.sweep(held, owner, method, keeps=method != "put" or is_tried_again(case))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("flags", "pending seeds")])
@every_error
def test_a_replay_in_which_a_stream_cannot_be_put_is_told_of_and_all_else_is_as_it_was(
    name: str, error: Any, world: World, long: bool
) -> None:
    with isolated(3, also=world.objects):
        held = replay(capture(also=world.objects), also=world.objects)
    (owner,) = (one for one in held.plan() if one.name == name)
    for case in variants(Case(world, name, error), long):
        case.sweep(held, owner, "put", keeps=is_tried_again(case))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("numpy.entropy", "flags", "pending seeds")])
@pytest.mark.parametrize("method", ["take", "put"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@every_error
def test_a_state_is_restored_whole_or_not_at_all(
    name: str, method: str, is_done: bool, error: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = capture(also=world.objects)
    world.move()
    before, (stream,) = world.upcoming(), (one for one in isolated(also=world.objects).plan() if one.name == name)
    adapted = isolated(also=world.objects).plan()
    fails = Fails(getattr(stream, method), 1, 1, error, is_done)
    (owner,) = (one for one in adapted if one.name == name)
    monkeypatch.setattr(owner, method, fails)
    monkeypatch.setattr("scoped_rng.streams.ambient.adapt_all", lambda also: adapted[-len(also) :])
    with pytest.raises(error, match=r"^call 1$") as caught:
        state.restore(also=world.objects)
    assert caught.value is fails.raised[0]
    assert world.upcoming() == before


# What is under the streams, one by one


SWITCHES: dict[str, tuple[Any, Any, Any]] = {
    **{f"reading {place}": (flags.STRICT, ("_read", place), "") for place in range(4)},
    "reading algorithms": (flags.STRICT, "_algorithms", ""),
    "reading warn_only": (flags.STRICT, "_warn_only", ""),
    "reading inductor": (flags, "read_inductor", ""),
    **{
        f"setting {place}": (flags.STRICT, ("_write", place), f"flag {number}")
        for place, number in enumerate((0, 1, 2, 5))
    },
    "setting algorithms": (flags.STRICT, "_set_algorithms", ("flag 3", "flag 4")),
    "setting inductor": (flags, "write_inductor", "flag of inductor"),
}
"""What reads and sets each flag, and what may be left where it cannot be set."""


@every_error
@pytest.mark.parametrize(("owner", "attribute", "harmed"), SWITCHES.values(), ids=SWITCHES)
def test_a_flag_that_cannot_be_read_or_set_is_told_of_and_every_other_flag_is_as_it_was(
    owner: Any, attribute: Any, harmed: Any, error: Any, world: World, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, flags.INDUCTOR, types.SimpleNamespace(deterministic=False))
    monkeypatch.setattr(flags.STRICT, "_cuda_is_built", True)
    held = deterministic(7, strict=True, also=world.objects)
    case = Case(world, "flags", error)
    case.harmed = harmed or ("nothing",)
    for variant in variants(case, long):
        variant.sweep(held, owner, attribute, keeps=is_tried_again(variant))


@every_error
@pytest.mark.parametrize("function", ["get_state", "set_state", "manual_seed"])
def test_a_device_that_fails_is_told_of_and_the_other_one_is_as_it_was(
    function: str, error: Any, world: World, long: bool
) -> None:
    held = deterministic(7, also=world.objects)
    for case in variants(Case(world, f"{NAME}:0", error), long):
        case.sweep(held, world.device.default_generators[0], function, keeps=is_tried_again(case))


BELOW: list[tuple[str, Any, str]] = [
    ("python", PYTHON, "_seed"),
    ("numpy", numpy_streams, "_get_bit_generator"),
    ("numpy", numpy_streams, "_set_bit_generator"),
    ("numpy", numpy_streams, "_standard_normal"),
    ("numpy", NUMPY, "_put_gaussian"),
    ("also[4]", buffers, "copies_of"),
    ("also[4]", buffers, "put_copies"),
    ("also[4]", buffers, "_put_copy"),
]


@every_error
@pytest.mark.parametrize(("name", "owner", "attribute"), BELOW, ids=[attribute for _, _, attribute in BELOW])
def test_a_function_below_a_stream_that_fails_is_told_of_and_all_else_is_as_it_was(
    name: str, owner: Any, attribute: str, error: Any, world: World, long: bool
) -> None:
    held = deterministic(7, also=world.objects)
    for case in variants(Case(world, name, error), long):
        case.sweep(held, owner, attribute, keeps=False)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_buffer_that_cannot_be_put_back_is_told_of_and_the_others_are_put_back(
    error: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, before = world.objects[4], world.upcoming()["also[4]"]
    fails = Fails(buffers._put_copy, 2, 1, error, False)
    monkeypatch.setattr(buffers, "_put_copy", fails)
    with pytest.raises(RestoreError, match=re.escape(f"also[0]: {error.__name__}: call 2; everything else was")):
        with deterministic(7, also=module):
            module.eval().train()
            module(torch.ones(2, 2))
    after = world.upcoming()["also[4]"]
    assert after[1] == before[1]
    assert [name for name in before[0] if after[0][name] != before[0][name]] == ["0.running_var"]


def test_a_backend_that_cannot_be_put_back_is_told_of_and_the_others_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, xpu = FakeLazyBackend("cuda", monkeypatch), FakeLazyBackend("xpu", monkeypatch)
    torch.cuda.manual_seed(3)
    torch.xpu.manual_seed(4)
    pending = xpu.pending()
    with pytest.raises(RestoreError, match=r"left: pending seeds: RuntimeError: call 1; everything else was$"):
        with deterministic(7):
            cuda.init()
            broken = types.SimpleNamespace(seed=Fails(lambda: None, 1, 1, RuntimeError, False))
            monkeypatch.setattr(torch.cuda, "default_generators", (broken,))
    assert xpu.pending() == pending


# Several at once


@pytest.mark.parametrize(
    "names", list(itertools.combinations(["python", "numpy", "torch", "flags", f"{NAME}:1", "dice"], 2)), ids="-".join
)
def test_of_two_that_cannot_be_put_back_the_first_is_the_cause_and_both_are_named(
    names: tuple[str, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = deterministic(7, also=world.objects)
    owners = [one for one in held.plan() if one.name in names]
    undo = [(one, one.take()) for one in held.plan()]
    before = world.upcoming()
    errors = [ValueError("first"), MemoryError("second")]
    for owner, error in zip(reversed(owners), errors, strict=True):
        monkeypatch.setattr(owner, "put", Fails(owner.put, 1, 1, lambda _, error=error: error, False))
    last, first = (owner.name for owner in owners)
    told = (
        f"could not be put back when the scope was left: {first}: ValueError: first; {last}: MemoryError: second; "
        "everything else was"
    )
    with pytest.raises(RestoreError, match=f"^{re.escape(told)}$") as caught, held:
        world.move()
    assert caught.value.__cause__ is errors[0]
    after = world.upcoming()
    harmed = (*names, "flag ") if "flags" in names else names
    assert [name for name in before if after[name] != before[name] and not name.startswith(harmed)] == []
    monkeypatch.undo()
    for one, value in undo:
        one.put(value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != f"also[{len(OBJECTS) - 1}]"])
@every_error
def test_an_entry_that_fails_is_told_of_first_where_something_cannot_be_put_back_either(
    name: str, error: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = deterministic(7, also=world.objects)
    undo, before = [(one, one.take()) for one in held.plan()], world.upcoming()
    failing = held.plan()[-2]  # the last that has something to seed; the flags come after it
    (stuck,) = (one for one in held.plan() if one.name == name)
    monkeypatch.setattr(failing, "seed", Fails(failing.seed, 1, 1, error, False))
    monkeypatch.setattr(stuck, "put", Fails(stuck.put, 1, 1, lambda _: OSError("stuck"), False))
    with pytest.warns(RestoreWarning, match=re.escape(f"left: {name}: OSError: stuck; everything else was")):
        with pytest.raises(error, match=r"^call 1$"), held:
            raise AssertionError("the body must not run")
    after = world.upcoming()
    harmed = (name, "flag ") if name == "flags" else name
    assert [name for name in before if after[name] != before[name] and not name.startswith(harmed)] == []
    for one, value in undo:
        stuck.put.function(value) if one is stuck else one.put(value)


@pytest.mark.parametrize("waits_first", [False, True], ids=["between two steps", "in a step"])
def test_a_body_that_waits_while_it_is_closed_is_closed_as_far_as_it_goes(
    waits_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    @deterministic(7)
    async def generate() -> Any:
        try:
            if waits_first:
                await pause()
            yield 1
        finally:
            closed.append(random.random())
            await pause()
            closed.append("has waited")

    before = kit.everything()
    generator = generate()
    step = generator.asend(None)
    with contextlib.suppress(StopIteration):
        step.send(None)
    taken = iter([Boom("no")])

    def take() -> Any:
        for error in taken:
            raise error
        return type(PYTHON).take(PYTHON)

    monkeypatch.setattr(PYTHON, "take", take)
    with pytest.raises(Boom):
        (step if waits_first else generator.asend(None)).send(None)
    assert closed == [random.Random(7).random()]
    assert kit.everything() == before


@pytest.mark.parametrize(
    ("errors", "first"),
    [((Boom, MemoryError), Boom), ((Boom, KeyboardInterrupt, MemoryError), KeyboardInterrupt)],
    ids=["the first", "an interrupt"],
)
def test_all_are_put_and_the_first_failure_is_told(
    errors: tuple[type[BaseException], ...], first: type[BaseException]
) -> None:
    put = []

    def failing(error: type[BaseException]) -> None:
        put.append(error)
        raise error("no")

    with pytest.raises(first):
        put_all([functools.partial(failing, error) for error in errors])
    assert put == [*errors]
