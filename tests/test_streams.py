"""Every kind of stream: NumPy's global one, its fresh entropy, the user's objects, and registered streams."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import random
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator
import pytest
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from scoped_rng import (
    ScopeOrderWarning,
    capture,
    deterministic,
    fixed_seed,
    fold_in,
    isolated,
    register_stream,
    replay,
    unregister_stream,
)
from scoped_rng.streams import ambient
from scoped_rng.streams import numpy as numpy_streams
from scoped_rng.streams import python as streams
from tests import kit

BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
EVERY_SCOPE: dict[str, Callable[..., Any]] = {
    "deterministic": lambda **keywords: deterministic(0, **keywords),
    "strict": lambda **keywords: deterministic(0, strict=True, **keywords),
    "seeded": lambda **keywords: isolated(0, **keywords),
    "isolated": lambda **keywords: isolated(**keywords),
}


class Dice:
    """The smallest stream that a user can write, with the state of his choice."""

    def __init__(self, state: Any = 0) -> None:
        self.state = state

    def seed(self, seed: int) -> None:
        self.state = seed

    def getstate(self) -> Any:
        return self.state

    def setstate(self, state: Any) -> None:
        self.state = state

    def roll(self) -> int:
        self.state = fold_in(self.state, "roll")
        return self.state % 6


class Broken(Dice):
    """A stream that fails where it is told to."""

    def __init__(self, *fails: str) -> None:
        super().__init__()
        self.fails = fails

    def seed(self, seed: int) -> None:
        if "seed" in self.fails:
            raise RuntimeError("cannot be seeded")
        super().seed(seed)

    def getstate(self) -> Any:
        if "getstate" in self.fails:
            raise RuntimeError("cannot be read")
        return super().getstate()


# Python's global stream


PYTHON_WAYS: dict[str, Callable[[], streams.PythonStream]] = {
    "direct": streams.PythonStream,
    "plain": lambda: streams.PythonStream(direct=False),
}
PYTHON_BEFORE: dict[str, Callable[[], Any]] = {
    "fresh": lambda: None,
    "cached gaussian": lambda: random.gauss(0, 1),
    "both gaussians drawn": lambda: [random.gauss(0, 1) for _ in range(2)],
    "end of the block": lambda: [random.random() for _ in range(312)],
    "middle of the block": lambda: [random.getrandbits(32) for _ in range(101)],
}


def python_continuation() -> list[Any]:
    """Return what Python's next draws would be, by its own functions alone."""
    saved = random.getstate()
    try:
        return [random.gauss(0, 1), random.gauss(0, 1), random.random(), random.getrandbits(2**15)]
    finally:
        random.setstate(saved)


@pytest.mark.parametrize("way", PYTHON_WAYS.values(), ids=PYTHON_WAYS)
@pytest.mark.parametrize("before", PYTHON_BEFORE.values(), ids=PYTHON_BEFORE)
@pytest.mark.parametrize("after", PYTHON_BEFORE.values(), ids=PYTHON_BEFORE)
def test_putting_a_value_brings_back_pythons_stream_with_its_cached_gaussian(way: Any, before: Any, after: Any) -> None:
    random.seed(5)
    before()
    stream, expected = way(), python_continuation()
    value = stream.take()
    assert python_continuation() == expected
    assert stream.as_tuple(value) == random.getstate()
    stream.seed(8)
    after()
    stream.put(value)
    stream.put(value)  # twice is as good as once
    assert python_continuation() == expected


@pytest.mark.parametrize("way", PYTHON_WAYS.values(), ids=PYTHON_WAYS)
@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_seeding_pythons_stream_forgets_the_cached_gaussian(way: Any, seed: int) -> None:
    random.gauss(0, 1)
    way().seed(seed)
    assert random.getstate() == random.Random(seed).getstate()


@pytest.mark.parametrize("reader", PYTHON_WAYS.values(), ids=PYTHON_WAYS)
@pytest.mark.parametrize("writer", PYTHON_WAYS.values(), ids=PYTHON_WAYS)
def test_every_way_to_put_pythons_stream_takes_what_python_gives(reader: Any, writer: Any) -> None:
    random.gauss(0, 1)
    expected, reading = python_continuation(), reader()
    value = reading.as_tuple(reading.take())
    random.seed(3)
    writer().put(value)
    assert python_continuation() == expected


def test_pythons_memory_is_laid_out_as_the_direct_way_expects() -> None:
    assert streams.python_memory_is_as_known(random.Random(1))


@pytest.mark.parametrize("lacks", ["cpython", "gil", "size", "layout"])
def test_a_python_whose_memory_cannot_be_copied_gets_the_plain_way(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = types.SimpleNamespace(**vars(sys))
    monkeypatch.setattr(streams, "sys", seen)
    if lacks == "cpython":
        seen.implementation = types.SimpleNamespace(name="pypy")
    elif lacks == "gil":
        seen._is_gil_enabled = lambda: False
    elif lacks == "size":
        smaller = types.SimpleNamespace(__base__=types.SimpleNamespace(__basicsize__=object.__basicsize__ + 2499))
        monkeypatch.setattr(streams, "random", types.SimpleNamespace(**{**vars(random), "Random": smaller}))
    else:
        generator = random.Random(2)
        memory = streams.python_memory(generator)  # of another generator than asked for
        monkeypatch.setattr(streams, "python_memory", lambda generator: memory)
    random.gauss(0, 1)
    stream, expected = streams.PythonStream(), python_continuation()
    value = stream.take()
    assert value == random.getstate()
    random.seed(3)
    stream.put(value)
    assert python_continuation() == expected


# NumPy's global stream


def plain_stream() -> numpy_streams.NumPyStream:
    return numpy_streams.NumPyStream(direct=False)


def stream_that_seeds_without_python() -> numpy_streams.NumPyStream:
    stream = numpy_streams.NumPyStream()
    stream._python = None
    return stream


def stream_without_the_short_cut_for_gaussians() -> numpy_streams.NumPyStream:
    stream = numpy_streams.NumPyStream()
    stream._put_gaussian = numpy_streams._put_gaussian
    return stream


def stream_without_the_short_cut_for_sequences() -> numpy_streams.NumPyStream:
    stream = numpy_streams.NumPyStream()
    stream._put_sequence = numpy_streams._put_sequence
    return stream


WAYS: dict[str, Callable[[], numpy_streams.NumPyStream]] = {
    "direct": numpy_streams.NumPyStream,
    "plain": plain_stream,
    "slow gaussian": stream_without_the_short_cut_for_gaussians,
    "slow sequence": stream_without_the_short_cut_for_sequences,
    "slow seed": stream_that_seeds_without_python,
}
BEFORE: dict[str, Callable[[], Any]] = {
    "fresh": lambda: None,
    "cached gaussian": lambda: np.random.standard_normal(),
    "both gaussians drawn": lambda: np.random.standard_normal(2),
    "end of the block": lambda: np.random.random_sample(312),
    "middle of the block": lambda: np.random.random_sample(100),
    "half a double": lambda: np.random.bytes(4),
}


def numpy_draws() -> list[Any]:
    return [*np.random.standard_normal(3), *np.random.random_sample(3), np.random.bytes(3), np.random.randint(10**6)]


def numpy_continuation() -> list[Any]:
    """Return what NumPy's next draws would be, by its own functions alone."""
    saved = np.random.get_state(legacy=False)
    try:
        return numpy_draws()
    finally:
        np.random.set_state(saved)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def stream(request: pytest.FixtureRequest) -> numpy_streams.NumPyStream:
    return request.param()


@pytest.fixture(params=BEFORE.values(), ids=BEFORE)
def some_draws_before(request: pytest.FixtureRequest) -> None:
    np.random.seed(5)
    request.param()


@pytest.mark.usefixtures("some_draws_before")
def test_taking_the_value_of_numpys_stream_does_not_move_it(stream: Any) -> None:
    bits, expected = np.random.get_bit_generator(), numpy_continuation()
    for _ in range(3):
        stream.take()
    assert np.random.get_bit_generator() is bits
    assert numpy_draws() == expected


@pytest.mark.usefixtures("some_draws_before")
@pytest.mark.parametrize("after", BEFORE.values(), ids=BEFORE)
def test_putting_a_value_brings_back_numpys_stream_with_its_cached_gaussian(stream: Any, after: Any) -> None:
    bits, expected = np.random.get_bit_generator(), numpy_continuation()
    value = stream.take()
    stream.seed(8)
    after()
    stream.put(value)
    stream.put(value)  # twice is as good as once
    assert np.random.get_bit_generator() is bits
    assert numpy_draws() == expected


@pytest.mark.usefixtures("some_draws_before")
@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**64 - 1])
def test_seeding_numpys_stream_forgets_the_cached_gaussian(stream: Any, seed: int) -> None:
    stream.seed(seed)
    fresh = np.random.RandomState([seed % 2**32, seed // 2**32, 1] if seed >= 2**32 else seed)
    assert list(np.random.standard_normal(3)) == list(fresh.standard_normal(3))


@pytest.mark.usefixtures("some_draws_before")
def test_every_way_to_read_numpys_stream_gives_the_dict_that_numpy_gives(stream: Any) -> None:
    numpys = np.random.get_state(legacy=False)
    told = stream.as_dict(stream.take())
    assert told["bit_generator"] == numpys["bit_generator"]
    assert told["state"]["pos"] == numpys["state"]["pos"]
    assert np.array_equal(told["state"]["key"], numpys["state"]["key"])
    assert (told["has_gauss"], told["gauss"]) == (numpys["has_gauss"], numpys["gauss"])


@pytest.mark.parametrize("reader", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("writer", WAYS.values(), ids=WAYS)
def test_what_one_way_has_taken_the_other_ways_can_put(reader: Any, writer: Any) -> None:
    np.random.standard_normal()
    expected, reading, writing = numpy_continuation(), reader(), writer()
    for value in (reading.take(), reading.as_dict(reading.take())):
        np.random.seed(3)
        np.random.standard_normal()
        writing.put(value)
        assert numpy_continuation() == expected


def test_numpys_memory_is_laid_out_as_the_direct_way_expects() -> None:
    assert numpy_streams._mt19937_memory_is_as_known() == kit.NUMPY_2  # whose locks are reentrant
    assert numpy_streams._puts_gaussian_alone()
    assert numpy_streams.NumPyStream()._direct == kit.NUMPY_2


def test_a_numpy_with_another_memory_layout_gets_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_streams, "_mt19937_memory_is_as_known", lambda: False)
    stream = numpy_streams.NumPyStream()
    np.random.standard_normal()
    expected = numpy_continuation()
    value = stream.take()
    assert isinstance(value[1], dict)
    np.random.seed(3)
    stream.put(value)
    assert numpy_draws() == expected


def test_a_numpy_that_has_more_or_less_in_its_memory_is_known_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_streams, "MersenneMemory", ctypes.c_char * 2499)
    assert not numpy_streams._mt19937_memory_is_as_known()


def test_a_numpy_whose_lock_cannot_be_taken_twice_gets_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_plain_lock(seed: int) -> Any:
        bits = np.random.MT19937(seed)
        return types.SimpleNamespace(state=bits.state, ctypes=bits.ctypes, lock=threading.Lock(), kept=bits)

    monkeypatch.setattr(numpy_streams, "_MT19937", with_a_plain_lock)
    assert not numpy_streams._mt19937_memory_is_as_known()


def test_a_numpy_that_reads_a_state_in_another_order_gets_the_slow_way_to_put_a_gaussian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numpy_streams, "_puts_gaussian_alone", lambda: False)
    assert numpy_streams.NumPyStream()._put_gaussian is numpy_streams._put_gaussian


def test_a_numpy_that_reads_a_pickle_in_another_order_gets_the_slow_way_to_put_a_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numpy_streams, "_puts_sequence_alone", lambda: False)
    assert numpy_streams.NumPyStream()._put_sequence is numpy_streams._put_sequence


@pytest.mark.skipif(not kit.NUMPY_2, reason="np.random.seed forgets how the bit generator spawns before NumPy 2")
@pytest.mark.parametrize("bits", ["MT19937", "PCG64"])
def test_a_bit_generator_spawns_as_before_what_has_seeded_it_meanwhile(stream: Any, bits: str) -> None:
    np.random.set_bit_generator(getattr(np.random, bits)(11))
    value, expected = stream.take(), numpy_continuation()
    np.random.get_bit_generator().__setstate__((np.random.get_bit_generator().state, np.random.SeedSequence(3)))
    np.random.random(5)
    stream.put(value)
    assert numpy_draws() == expected
    (spawned,) = np.random.get_bit_generator().spawn(1)
    assert spawned.random_raw() == getattr(np.random, bits)(11).spawn(1)[0].random_raw()


@pytest.mark.skipif(not kit.NUMPY_2, reason="NumPy's memory is read directly from NumPy 2 on")
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("where", ["before the draw", "after it"])
def test_an_interrupt_while_the_gaussian_is_looked_for_leaves_numpys_stream_as_it_was(
    cached: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.random.seed(5)
    if cached:
        np.random.standard_normal()
    stream, expected = numpy_streams.NumPyStream(), numpy_continuation()
    interrupts = [KeyboardInterrupt]

    def interrupted(*arguments: Any) -> Any:
        if interrupts:
            raise interrupts.pop()
        return set_bit_generator(*arguments)

    if where == "after it":
        set_bit_generator = numpy_streams._set_bit_generator
        monkeypatch.setattr(numpy_streams, "_set_bit_generator", interrupted)
    else:
        monkeypatch.setattr(numpy_streams, "_standard_normal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.take()
    assert numpy_draws() == expected
    assert is_free(np.random.get_bit_generator().lock)


def is_free(lock: Any) -> bool:
    """Whether another thread could have ``lock`` now."""
    answers: list[bool] = []

    def ask() -> None:
        answers.append(lock.acquire(blocking=False))
        if answers[0]:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("name", BIT_GENERATORS)
@pytest.mark.parametrize("make", EVERY_SCOPE.values(), ids=EVERY_SCOPE)
def test_a_bit_generator_that_the_user_has_installed_survives_a_scope(make: Any, name: str) -> None:
    bits = getattr(np.random, name)(11)
    np.random.set_bit_generator(bits)
    np.random.standard_normal()  # leaves one behind
    expected = numpy_continuation()
    with make():
        kit.draws()
    assert np.random.get_bit_generator() is bits
    assert numpy_draws() == expected


@pytest.mark.parametrize("name", BIT_GENERATORS)
def test_the_numbers_inside_do_not_depend_on_the_bit_generator_outside(name: str) -> None:
    np.random.set_bit_generator(getattr(np.random, name)(11))
    with deterministic(3):
        assert kit.draws() == kit.reference(3)[0]


@pytest.mark.parametrize("swapped", BIT_GENERATORS)
@pytest.mark.parametrize("installed", ["MT19937", "PCG64"])
@pytest.mark.parametrize("make", EVERY_SCOPE.values(), ids=EVERY_SCOPE)
def test_a_body_that_swaps_the_bit_generator_changes_nothing_outside(make: Any, installed: str, swapped: str) -> None:
    bits = getattr(np.random, installed)(11)
    np.random.set_bit_generator(bits)
    np.random.standard_normal()
    expected = numpy_continuation()
    with make():
        kit.draws()
        np.random.set_bit_generator(getattr(np.random, swapped)(4))
        kit.draws()
    assert np.random.get_bit_generator() is bits
    assert numpy_draws() == expected


def test_a_subclass_of_numpys_mersenne_twister_survives_a_scope() -> None:
    class Mine(np.random.MT19937):
        pass

    bits = Mine(11)
    np.random.set_bit_generator(bits)
    np.random.standard_normal()
    expected = numpy_continuation()
    with deterministic(0):
        assert kit.draws() == kit.reference(0)[0]
    assert np.random.get_bit_generator() is bits
    assert numpy_draws() == expected


@pytest.mark.parametrize("make", EVERY_SCOPE.values(), ids=EVERY_SCOPE)
def test_a_generator_built_on_the_global_bit_generator_goes_on_where_it_was(make: Any) -> None:
    generator = np.random.Generator(np.random.get_bit_generator())
    np.random.standard_normal()
    before = copy.deepcopy(generator.bit_generator.state)
    expected = numpy_continuation()
    with make():
        generator.random(7)
        kit.draws()
    assert numpy_continuation() == expected
    state = generator.bit_generator.state["state"]
    assert state["pos"] == before["state"]["pos"]
    assert np.array_equal(state["key"], before["state"]["key"])


def test_the_global_bit_generator_can_spawn_after_a_scope_as_before() -> None:
    np.random.set_bit_generator(np.random.MT19937(11))
    with deterministic(0):
        kit.draws()
    spawned = np.random.get_bit_generator().spawn(1)[0]
    assert spawned.random_raw() == np.random.MT19937(11).spawn(1)[0].random_raw()


@pytest.mark.parametrize("bits", ["MT19937", "PCG64"])
def test_draws_in_other_threads_meet_no_error_and_leave_no_lock_behind(bits: str) -> None:
    np.random.set_bit_generator(getattr(np.random, bits)(11))
    done, failures = threading.Event(), []

    def draw_all_the_while() -> None:
        try:
            while not done.is_set():
                numbers = [*kit.draws(), *np.random.standard_normal(5), *np.random.default_rng().random(2)]
                assert all(-50 < number < 50 for number in numbers)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw_all_the_while) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(200):
            with deterministic(number):
                kit.draws()
            capture()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert type(np.random.get_bit_generator()).__name__ == bits
    assert is_free(np.random.get_bit_generator().lock)
    expected = numpy_continuation()
    with deterministic(3):
        assert kit.draws() == kit.reference(3)[0]
    assert numpy_draws() == expected


# NumPy's fresh entropy


def seed_anew_and_draw() -> float:
    np.random.seed()
    return float(np.random.random_sample())


UNSEEDED: dict[str, Callable[[], Any]] = {
    "default_rng()": lambda: float(np.random.default_rng().random()),
    "default_rng(None)": lambda: float(np.random.default_rng(None).random()),
    "SeedSequence()": lambda: np.random.SeedSequence().entropy,
    "SeedSequence(pool_size=8)": lambda: np.random.SeedSequence(pool_size=8).entropy,
    "RandomState()": lambda: float(np.random.RandomState().random_sample()),
    "np.random.seed()": seed_anew_and_draw,
    **{
        f"{name}()": lambda name=name: int(getattr(np.random, name)().random_raw())  # type: ignore[misc]
        for name in BIT_GENERATORS
    },
}


@pytest.fixture(params=UNSEEDED.values(), ids=UNSEEDED)
def unseeded(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_an_unseeded_generator_repeats_inside_a_seeded_scope(form: Any, unseeded: Any) -> None:
    def body() -> list[Any]:
        return [unseeded() for _ in range(3)]

    assert form(deterministic(4), body) == form(deterministic(4), body) == form(isolated(4), body)


def test_unseeded_generators_differ_among_themselves_and_across_seeds(unseeded: Any) -> None:
    drawn = []
    for seed in (0, 1, 2**64 - 1):
        with isolated(seed):
            drawn += [unseeded() for _ in range(5)]
    assert len(set(drawn)) == 15


def test_unseeded_generators_are_independent_of_the_global_stream() -> None:
    with deterministic(0):
        fresh, first = np.random.default_rng().random(), np.random.random_sample()
    assert first == np.random.RandomState(0).random_sample()
    assert fresh not in (first, np.random.default_rng(0).random())


@pytest.mark.parametrize("make", [lambda: isolated(), lambda: replay(capture())], ids=["isolated", "replay"])
def test_an_unseeded_generator_stays_fresh_outside_of_a_seeded_scope(make: Any, unseeded: Any) -> None:
    drawn = [unseeded() for _ in range(2)]
    for _ in range(2):
        with make():
            drawn.append(unseeded())
    with isolated(0):
        drawn.append(unseeded())
    drawn.append(unseeded())
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_numpy_asks_the_operating_system_again_after_a_scope(form: Any) -> None:
    asked = bit_generator.randbits  # type: ignore[attr-defined]
    inside = form(deterministic(0), lambda: bit_generator.randbits)  # type: ignore[attr-defined]
    assert inside is not asked
    assert bit_generator.randbits is asked  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        form(deterministic(0), lambda: 1 / 0)
    assert bit_generator.randbits is asked  # type: ignore[attr-defined]


def test_nested_seeded_scopes_have_their_own_entropy_and_the_outer_goes_on_where_it_was(unseeded: Any) -> None:
    with deterministic(1):
        alone = [unseeded() for _ in range(3)]
    with deterministic(2):
        other = [unseeded() for _ in range(2)]
    with deterministic(1):
        outer = [unseeded()]
        with deterministic(2):
            assert [unseeded() for _ in range(2)] == other
        outer.append(unseeded())
        with deterministic(1):
            assert [unseeded() for _ in range(3)] == alone
        outer.append(unseeded())
    assert outer == alone


def test_isolated_inside_a_seeded_scope_goes_on_and_is_put_back(unseeded: Any) -> None:
    with deterministic(1):
        alone = [unseeded() for _ in range(3)]
    with deterministic(1):
        assert unseeded() == alone[0]
        for _ in range(2):
            with isolated():
                assert [unseeded(), unseeded()] == alone[1:]
        assert [unseeded(), unseeded()] == alone[1:]


def test_the_entropy_of_a_half_consumed_generator_is_its_own() -> None:
    @fixed_seed(1)
    def numbers() -> Iterator[float]:
        for _ in range(3):
            yield np.random.default_rng().random()

    alone = list(numbers())
    interleaved = zip(numbers(), numbers(), strict=True)
    with deterministic(2):
        first = np.random.default_rng().random()
    drawn = []
    with deterministic(2):
        for pair in interleaved:
            drawn.append(pair)
            if len(drawn) == 1:
                assert np.random.default_rng().random() == first
    assert drawn == [(number, number) for number in alone]


def test_entropy_of_any_size_is_within_its_bits() -> None:
    for bits in (1, 31, 32, 63, 64, 65, 128, 256, 1000):
        with deterministic(0):
            drawn = [bit_generator.randbits(bits) for _ in range(20)]  # type: ignore[attr-defined]
        assert all(0 <= number < 2**bits for number in drawn)
        assert len(set(drawn)) > 1
        assert any(number >> (bits - 1) for number in drawn)


def test_a_numpy_without_the_place_keeps_its_entropy_fresh_and_everything_else_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specification: Any = importlib.util.spec_from_file_location("scoped_rng.streams.again", numpy_streams.__file__)
    again = importlib.util.module_from_spec(specification)
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "bit_generator", types.SimpleNamespace())
        patch.delattr("os.register_at_fork")  # once is enough, and the lock of a NumPy before 2 is not reentrant
        specification.loader.exec_module(again)
    assert again.NUMPY_STREAMS == [again.NUMPY]
    torch_stream = ambient._global_streams[2]
    monkeypatch.setattr(ambient, "_global_streams", [streams.PYTHON, *again.NUMPY_STREAMS, torch_stream])
    before = kit.continuation()
    with deterministic(0):
        assert kit.draws() == kit.reference(0)[0]
        drawn = np.random.default_rng().random()
    with deterministic(0):
        assert np.random.default_rng().random() != drawn
    assert kit.continuation() == before


def test_a_python_with_another_memory_layout_leaves_large_seeds_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_streams, "python_memory_is_as_known", lambda generator: False)
    assert numpy_streams.NumPyStream()._python is None


def test_a_python_that_seeds_in_another_way_leaves_large_seeds_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    other = random.Random(1)  # which must live as long as its memory is looked at
    monkeypatch.setattr(numpy_streams, "python_memory", lambda generator: streams.python_memory(other))
    assert numpy_streams.NumPyStream()._python is None


@pytest.mark.parametrize("seed", [2**32, 2**40 + 7, 2**64 - 1])
def test_python_and_numpy_draw_different_numbers_from_a_large_seed(seed: int) -> None:
    with deterministic(seed):
        assert random.random() != np.random.random_sample()


def test_scikit_learns_default_random_state_is_covered() -> None:
    def split() -> list[int]:
        return train_test_split(list(range(100)))[0] + list(check_random_state(None).permutation(100))

    with deterministic(5):
        first = split()
    before = kit.continuation()
    with deterministic(5):
        assert split() == first
    with deterministic(6):
        assert split() != first
    assert kit.continuation() == before


# The user's own objects


class Numbers:
    """A kind of object for also=: how to make one, draw from it, and make the one that a seed gives."""

    def __init__(self, make: Callable[[], Any], draw: Callable[[Any], Any], seeded: Callable[[int], Any]) -> None:
        self.make, self.draw, self.seeded = make, draw, seeded


def drawn_from_generator(generator: np.random.Generator) -> list[Any]:
    children = generator.spawn(2)
    return [
        *generator.standard_normal(2),
        generator.integers(10, dtype=np.uint32),  # leaves half a word behind
        generator.bytes(3),
        *[child.random() for child in children],
    ]


def drawn_from_random_state(state: np.random.RandomState) -> list[Any]:
    return [*state.standard_normal(3), state.random_sample(), state.bytes(3)]


def drawn_from_torch(generator: torch.Generator) -> list[Any]:
    gaussian = torch.randn((), generator=generator, dtype=torch.float64)
    return [float(gaussian), *torch.rand(2, generator=generator).tolist(), generator.initial_seed()]


def generator_of(name: str) -> Numbers:
    bits = getattr(np.random, name)
    return Numbers(
        lambda: np.random.Generator(bits(1)), drawn_from_generator, lambda seed: np.random.Generator(bits(seed))
    )


def random_state_of(name: str) -> Numbers:
    bits = getattr(np.random, name)
    return Numbers(
        lambda: np.random.RandomState(bits(1)), drawn_from_random_state, lambda seed: np.random.RandomState(bits(seed))
    )


OBJECTS: dict[str, Numbers] = {
    "random.Random": Numbers(lambda: random.Random(1), lambda it: [it.gauss(0, 1), it.random()], random.Random),
    **{f"Generator({name})": generator_of(name) for name in BIT_GENERATORS},
    **{f"RandomState({name})": random_state_of(name) for name in BIT_GENERATORS},
    "torch.Generator": Numbers(
        lambda: torch.Generator().manual_seed(1), drawn_from_torch, lambda seed: torch.Generator().manual_seed(seed)
    ),
    "an object": Numbers(lambda: Dice(1), lambda it: [it.roll(), it.roll(), it.state], Dice),
}


@pytest.fixture(params=OBJECTS.values(), ids=OBJECTS)
def kind(request: pytest.FixtureRequest) -> Numbers:
    return request.param


@pytest.mark.parametrize("make", EVERY_SCOPE.values(), ids=EVERY_SCOPE)
def test_a_users_object_goes_on_after_a_scope_where_it_was(make: Any, kind: Numbers) -> None:
    held, twin = kind.make(), kind.make()
    kind.draw(held)
    kind.draw(twin)
    with make(also=held):
        kind.draw(held)
        kind.draw(held)
    assert kind.draw(held) == kind.draw(twin)


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_a_users_object_goes_on_after_every_form_where_it_was(form: Any, kind: Numbers) -> None:
    held, twin = kind.make(), kind.make()
    form(deterministic(3, also=[held]), lambda: kind.draw(held))
    with pytest.raises(ZeroDivisionError):
        form(deterministic(3, also=[held]), lambda: kind.draw(held) and 1 / 0)
    assert kind.draw(held) == kind.draw(twin)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_users_object_is_seeded_with_a_child_of_the_seed_by_its_position(seed: int, kind: Numbers) -> None:
    one, two = kind.make(), kind.make()
    kind.draw(one)  # what it was before does not matter
    for _ in range(2):
        with deterministic(seed, also=[one, two]):
            assert kind.draw(one) == kind.draw(kind.seeded(fold_in(seed, "also", 0)))
            assert kind.draw(two) == kind.draw(kind.seeded(fold_in(seed, "also", 1)))


def test_a_users_object_goes_on_inside_a_scope_without_a_seed(kind: Numbers) -> None:
    held, twin = kind.make(), kind.make()
    with isolated(also=held):
        assert kind.draw(held) == kind.draw(twin)


def test_two_users_objects_of_a_kind_draw_different_numbers(kind: Numbers) -> None:
    one, two = kind.make(), kind.make()
    with deterministic(0, also=(one, two)):
        assert kind.draw(one) != kind.draw(two)


def test_users_objects_repeat_none_of_the_global_streams() -> None:
    python, numpy, tensor = random.Random(1), np.random.RandomState(1), torch.Generator()
    with deterministic(0, also=[python, numpy, tensor]):
        assert python.random() != random.random()
        assert numpy.random_sample() != np.random.random_sample()
        assert not torch.equal(torch.rand(4, generator=tensor), torch.rand(4))


def test_users_objects_do_not_change_what_the_global_streams_draw(kind: Numbers) -> None:
    held = kind.make()
    with deterministic(7, also=[held]):
        kind.draw(held)
        assert kit.draws() == kit.reference(7)[0]


@pytest.mark.parametrize(
    "wrap", [lambda held: held, lambda held: [held], lambda held: (held,)], ids=["one", "list", "tuple"]
)
def test_one_object_is_taken_as_it_is_or_in_a_list_or_tuple(wrap: Any, kind: Numbers) -> None:
    held = kind.make()
    with deterministic(0, also=wrap(held)):
        assert kind.draw(held) == kind.draw(kind.seeded(fold_in(0, "also", 0)))


@pytest.mark.parametrize("nothing", [(), []], ids=repr)
def test_no_objects_are_none(nothing: Any) -> None:
    with deterministic(0, also=nothing):
        assert kit.draws() == kit.reference(0)[0]


def test_a_list_that_is_changed_later_does_not_change_the_scope() -> None:
    one, two = random.Random(1), random.Random(2)
    also = [one]
    scope = deterministic(0, also=also)
    also[0] = two
    with scope:
        assert one.random() == random.Random(fold_in(0, "also", 0)).random()
        assert two.random() == random.Random(2).random()


def test_the_same_object_twice_is_put_back_all_the_same(kind: Numbers) -> None:
    held, twin = kind.make(), kind.make()
    with deterministic(0, also=[held, held]):
        kind.draw(held)
    assert kind.draw(held) == kind.draw(twin)


def test_nested_scopes_round_one_object_each_put_back_what_they_found(kind: Numbers) -> None:
    held, twin = kind.make(), kind.make()
    with deterministic(1, also=held):
        alone = [kind.draw(held), kind.draw(held)]
    with deterministic(1, also=held):
        drawn = [kind.draw(held)]
        with deterministic(2, also=held):
            kind.draw(held)
        drawn.append(kind.draw(held))
    assert drawn == alone
    assert kind.draw(held) == kind.draw(twin)


def test_the_children_that_a_generator_spawns_inside_repeat_and_outside_go_on() -> None:
    generator, twin = np.random.default_rng(1), np.random.default_rng(1)
    generator.spawn(2)
    twin.spawn(2)
    inside = []
    for _ in range(2):
        with deterministic(0, also=generator):
            inside.append([child.random() for child in generator.spawn(3)])
    assert inside[0] == inside[1]
    assert [child.random() for child in generator.spawn(2)] == [child.random() for child in twin.spawn(2)]


def test_a_generator_whose_bit_generator_cannot_spawn_is_held_all_the_same() -> None:
    bits = np.random.RandomState(3)._bit_generator  # seeded in the legacy way, without a seed sequence
    generator, twin = np.random.Generator(bits), np.random.Generator(np.random.RandomState(3)._bit_generator)
    with deterministic(0, also=generator):
        first = generator.random()
    assert generator.random() == twin.random()
    with deterministic(0, also=generator):
        assert generator.random() == first


def test_a_subclass_of_random_is_held_by_its_own_methods() -> None:
    class Loaded(random.Random):
        def seed(self, a: Any = None, version: int = 2) -> None:
            self.seeds = [*getattr(self, "seeds", []), a]
            super().seed(a)

    held = Loaded(1)
    with deterministic(0, also=held):
        assert held.seeds == [1, fold_in(0, "also", 0)]
    assert held.random() == random.Random(1).random()


@pytest.mark.parametrize("base", BIT_GENERATORS)
@pytest.mark.parametrize("over", [np.random.Generator, np.random.RandomState])
def test_a_numpy_object_over_a_bit_generator_of_ones_own_is_held(over: Any, base: str) -> None:
    mine = type("Mine", (getattr(np.random, base),), {})
    held, twin = over(mine(1)), over(mine(1))
    drawn = []
    for _ in range(2):
        with deterministic(0, also=held):
            drawn.append(held.standard_normal())
    assert drawn[0] == drawn[1]
    assert held.standard_normal() == twin.standard_normal()


def test_an_object_is_seeded_with_a_plain_int() -> None:
    held = Dice()
    with deterministic(np.uint64(5), also=held):
        assert type(held.state) is int
        assert held.state == fold_in(5, "also", 0)


def normed() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))


def test_a_module_that_is_iterable_is_one_object_with_all_its_buffers() -> None:
    net, dice = normed(), Dice()
    expected = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with deterministic(0, also=net):
        net(torch.randn(4, 2))
        net.eval()
    assert all(torch.equal(buffer, expected[name]) for name, buffer in net.named_buffers())
    assert all(module.training for module in net.modules())
    with deterministic(0, also=[net, dice]):  # and takes one position
        assert dice.state == fold_in(0, "also", 1)


def test_a_modules_parameters_are_not_held() -> None:
    net = normed()
    with deterministic(0, also=net), torch.no_grad():
        net[0].weight.fill_(3)
    assert bool((net[0].weight == 3).all())


def test_seeding_does_not_touch_a_modules_buffers() -> None:
    net = normed()
    net(torch.randn(4, 2))
    expected = [buffer.clone() for buffer in net.buffers()]
    with deterministic(0, also=net):
        assert all(map(torch.equal, net.buffers(), expected))


class Holder(torch.nn.Module):
    def __init__(self, buffer: Any) -> None:
        super().__init__()
        self.register_buffer("held", buffer)


BUFFERS: dict[str, Callable[[], Any]] = {
    "float": lambda: torch.tensor([1.0, -0.0, float("nan")]),
    "0-dim": lambda: torch.tensor(3),
    "bool": lambda: torch.tensor([True, False]),
    "half": lambda: torch.tensor([1.5], dtype=torch.float16),
    "bfloat16": lambda: torch.tensor([1.5], dtype=torch.bfloat16),
    "complex": lambda: torch.tensor([1 + 2j]),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "empty": lambda: torch.empty(0, 3),
    "transposed": lambda: torch.arange(6).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(3).expand(2, -1),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "inference": lambda: made_in_inference_mode(),
}


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(2)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.to_dense(), other.to_dense()
    return (
        one.dtype == other.dtype
        and torch.equal(one.isnan(), other.isnan())
        and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    )


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_a_buffer_that_nobody_has_changed_is_as_before(make: Any) -> None:
    module = Holder(make())
    buffer = module.held
    with deterministic(0, also=module):
        pass
    assert module.held is buffer
    assert same(module.held, make())


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_a_buffer_that_the_body_has_replaced_is_the_one_before(make: Any) -> None:
    module = Holder(make())
    buffer = module.held
    with deterministic(0, also=module):
        module.held = torch.zeros(7)
    assert module.held is buffer
    assert same(module.held, make())


@pytest.mark.parametrize("name", [name for name in BUFFERS if name not in ("expanded", "sparse", "inference")])
def test_a_buffer_that_the_body_has_written_to_is_as_before(name: str) -> None:
    module = Holder(BUFFERS[name]())
    with deterministic(0, also=module):
        module.held.zero_()
    assert same(module.held, BUFFERS[name]())


def test_a_buffer_that_the_body_has_resized_is_as_before() -> None:
    module = Holder(torch.arange(3.0))
    with deterministic(0, also=module):
        module.held.resize_(7).zero_()
    assert torch.equal(module.held, torch.arange(3.0))


def test_a_buffer_that_the_body_has_added_or_removed_is_not_or_is_there() -> None:
    module = Holder(torch.arange(3.0))
    module.register_buffer("none", None)
    with deterministic(0, also=module):
        del module.held
        module.none = torch.ones(1)
        module.register_buffer("more", torch.ones(1))
    assert torch.equal(module.held, torch.arange(3.0))
    assert module.none is None
    assert not hasattr(module, "more")


def test_a_buffer_that_the_body_makes_persistent_or_not_is_as_it_was_for_a_state_dict() -> None:
    module = Holder(torch.arange(3.0))
    module.register_buffer("passing", torch.ones(1), persistent=False)
    with deterministic(0, also=module):
        module.register_buffer("passing", torch.ones(1))
        module.register_buffer("held", torch.ones(1), persistent=False)
    assert list(module.state_dict()) == ["held"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_buffers_of_a_scripted_module_are_put_back() -> None:
    net = torch.jit.script(torch.nn.BatchNorm1d(2))
    with deterministic(0, also=net):
        net(torch.randn(4, 2))
        net.eval()
    assert net.running_mean.tolist() == [0, 0]
    assert net.training


def test_a_buffer_that_two_modules_share_is_shared_after_it() -> None:
    shared = torch.ones(2)
    net = torch.nn.ModuleList([Holder(shared), Holder(shared)])
    with deterministic(0, also=net):
        net[0].held.zero_()
        net[1].held = torch.zeros(3)
    assert net[0].held is net[1].held is shared
    assert torch.equal(shared, torch.ones(2))


def test_the_backward_behind_the_block_of_a_forward_in_it_works() -> None:
    net, twin = normed(), normed()
    twin.load_state_dict(net.state_dict())
    values = torch.randn(8, 2)
    with deterministic(0, also=net):
        loss = net(values).square().sum()
    loss.backward()
    twin(values).square().sum().backward()
    assert torch.equal(net[0].weight.grad, twin[0].weight.grad)


NOT_TAKEN: dict[str, Any] = {
    "SystemRandom": random.SystemRandom(),
    "a class": random.Random,
    "a class of one's own": Dice,
    "an int": 3,
    "None": None,
    "a str": "python",
    "a dict": {},
    "a nested list": [random.Random(1)],
    "a bit generator": np.random.PCG64(1),
    "a seed sequence": np.random.SeedSequence(1),
    "np.random": np.random,
    "torch": torch,
    "a tensor": torch.zeros(2),
}


@pytest.mark.parametrize("make", EVERY_SCOPE.values(), ids=EVERY_SCOPE)
@pytest.mark.parametrize("wrong", NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_what_cannot_be_held_is_refused_when_the_scope_is_made(make: Any, wrong: Any) -> None:
    before = kit.everything()
    text = (
        f"also[1] is {type(wrong).__name__} {wrong!r}; also= takes random.Random, numpy.random.Generator, "
        "numpy.random.RandomState, torch.Generator, torch.nn.Module, or an object with the methods seed(int), "
        "getstate() and setstate(state); one of them, or a list or tuple"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        make(also=[random.Random(1), wrong])
    assert kit.everything() == before


@pytest.mark.parametrize(
    "wrong",
    [3, None, "python", Dice, {"a": random.Random(1)}, iter([random.Random(1)])],
    ids=lambda value: type(value).__name__,
)
def test_a_single_wrong_object_is_refused_as_the_first(wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"also[0] is {type(wrong).__name__} {wrong!r}; also= takes ")):
        deterministic(0, also=wrong)


@pytest.mark.parametrize("lacking", ["seed", "getstate", "setstate"])
def test_an_object_without_one_of_the_methods_is_refused(lacking: str) -> None:
    wrong = Dice()
    setattr(wrong, lacking, None)
    with pytest.raises(TypeError, match=re.escape(f"also[0] is Dice {wrong!r}; also= takes ")):
        isolated(0, also=wrong)


GLOBAL_OBJECTS: dict[str, Any] = {
    "random": random,
    "random's generator": random._inst,  # type: ignore[attr-defined]
    "np.random's generator": np.random.mtrand._rand,
    "torch.default_generator": torch.default_generator,
}


@pytest.mark.parametrize("known", GLOBAL_OBJECTS.values(), ids=GLOBAL_OBJECTS)
def test_a_global_stream_is_refused_as_a_users_object(known: Any) -> None:
    text = f"also[0] is {known!r}, a global stream, which every scope covers; leave it out of also="
    for make in (deterministic, isolated, fixed_seed):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            make(0, also=[known])
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        capture(also=known)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        replay(capture(), also=known)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        capture().restore(also=known)


@pytest.mark.parametrize("fails", ["getstate", "seed"])
def test_an_object_that_fails_on_entry_leaves_everything_as_it_was(fails: str) -> None:
    good = random.Random(1)
    before = kit.everything()
    with pytest.raises(RuntimeError, match=r"^cannot be "), deterministic(0, also=[good, Broken(fails)]):
        raise AssertionError("the body must not run")
    assert good.random() == random.Random(1).random()
    assert kit.everything() == before


# Registered streams


@pytest.fixture
def dice() -> Iterator[Dice]:
    stream = Dice(1)
    register_stream("dice", stream)
    yield stream
    if "dice" in streams.REGISTERED:
        unregister_stream("dice")


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_a_registered_stream_is_covered_by_every_scope(dice: Dice, form: Any) -> None:
    for scope in (deterministic(5), isolated(5)):
        assert form(scope, lambda: (dice.state, dice.roll())[0]) == fold_in(5, "stream", "dice")
        assert dice.state == 1
    form(isolated(), dice.roll)
    assert dice.state == 1


def test_a_scope_that_was_made_before_covers_a_stream_that_is_registered_later() -> None:
    scope, stream = deterministic(5), Dice(1)
    register_stream("later", stream)
    try:
        with scope:
            assert stream.state == fold_in(5, "stream", "later")
    finally:
        unregister_stream("later")
    with scope:
        assert stream.state == 1


def test_a_registered_stream_is_part_of_a_state(dice: Dice) -> None:
    state = capture()
    assert "dice" in state.names
    first = dice.roll()
    assert capture().diff(state) == ["dice"]
    with replay(state):
        assert dice.roll() == first
    state.restore()
    assert dice.roll() == first


def test_two_registered_streams_are_seeded_apart(dice: Dice) -> None:
    other = Dice(1)
    register_stream("other", other)
    try:
        with deterministic(5):
            assert dice.state != other.state
    finally:
        unregister_stream("other")


def test_a_registered_stream_does_not_change_what_the_global_streams_draw(dice: Dice) -> None:
    with deterministic(7):
        dice.roll()
        assert kit.draws() == kit.reference(7)[0]


def test_an_open_scope_keeps_a_stream_that_is_taken_back_until_it_is_left(dice: Dice) -> None:
    with deterministic(5):
        unregister_stream("dice")
        dice.roll()
        with deterministic(6):
            rolled = dice.state
            dice.roll()
        assert dice.state != rolled  # the inner one does not know it any more
    assert dice.state == 1


def test_an_open_scope_does_not_touch_a_stream_that_is_registered_in_its_body() -> None:
    stream = Dice(1)
    try:
        with deterministic(5):
            register_stream("inside", stream)
            stream.state = 2
        assert stream.state == 2
    finally:
        unregister_stream("inside")


def test_a_name_can_be_used_again_after_it_was_taken_back(dice: Dice) -> None:
    unregister_stream("dice")
    another = Dice(2)
    register_stream("dice", another)
    with deterministic(5):
        assert (dice.state, another.state) == (1, fold_in(5, "stream", "dice"))


def test_a_registered_stream_that_fails_on_entry_leaves_everything_as_it_was() -> None:
    before = kit.everything()
    for fails in ("getstate", "seed"):
        register_stream("broken", Broken(fails))
        try:
            with pytest.raises(RuntimeError, match=r"^cannot be "), deterministic(0):
                raise AssertionError("the body must not run")
        finally:
            unregister_stream("broken")
    assert kit.everything() == before


@pytest.mark.parametrize(
    "name",
    ["python", "numpy", "numpy.entropy", "torch", "flags", "dice", "", "cuda:0", "a:b", "also[0]", "a["],
    ids=repr,
)
@pytest.mark.usefixtures("dice")
def test_a_name_that_is_taken_or_would_be_mistaken_is_refused(name: str) -> None:
    text = (
        f"a stream cannot be named {name!r}: it needs a name of its own, without ':' and '['; "
        "taken are python, numpy, numpy.entropy, torch, flags, dice"
    )
    registered = dict(streams.REGISTERED)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        register_stream(name, Dice())
    assert registered == streams.REGISTERED


@pytest.mark.parametrize("name", [None, 3, b"dice", ("dice",)], ids=repr)
def test_a_name_that_is_no_str_is_refused(name: Any) -> None:
    text = f"the name of a stream must be a str, got {type(name).__name__} {name!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        register_stream(name, Dice())


@pytest.mark.parametrize(
    ("wrong", "lacks"),
    [
        (3, "seed, getstate, setstate"),
        (None, "seed, getstate, setstate"),
        (np.random.RandomState(1), "getstate, setstate"),
        (np.random.default_rng(1), "seed, getstate, setstate"),
        (torch.Generator(), "getstate, setstate"),
        (np.random.PCG64(1), "seed, getstate, setstate"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stream_without_the_methods_is_refused_and_told_what_it_lacks(wrong: Any, lacks: str) -> None:
    text = f"a stream needs the methods seed(int), getstate() and setstate(state); {type(wrong).__name__} lacks {lacks}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        register_stream("wrong", wrong)
    assert "wrong" not in streams.REGISTERED


@pytest.mark.parametrize(
    "wrong", [Dice, random.Random, random.SystemRandom()], ids=["a class", "random.Random", "SystemRandom"]
)
def test_what_has_the_methods_but_cannot_be_a_stream_is_refused(wrong: Any) -> None:
    try:
        with pytest.raises(TypeError):
            register_stream("wrong", wrong)
        assert "wrong" not in streams.REGISTERED
    finally:
        streams.REGISTERED.pop("wrong", None)


@pytest.mark.parametrize("known", [random, random._inst], ids=["random", "random's generator"])  # type: ignore[attr-defined]
def test_a_global_stream_cannot_be_registered_under_another_name(known: Any) -> None:
    # It would be seeded twice, so that deterministic(0) does not give the numbers of random.seed(0) any more.
    try:
        with pytest.raises(ValueError, match="global stream"):
            register_stream("mine", known)
        assert "mine" not in streams.REGISTERED
    finally:
        streams.REGISTERED.pop("mine", None)


def test_taking_back_a_stream_that_is_not_registered_is_refused_and_tells_which_are() -> None:
    with pytest.raises(ValueError, match=r"^no stream is registered as 'dice'; registered: none$"):
        unregister_stream("dice")
    register_stream("zebra", Dice())
    register_stream("ape", Dice())
    try:
        with pytest.raises(ValueError, match=r"^no stream is registered as 'python'; registered: ape, zebra$"):
            unregister_stream("python")
    finally:
        unregister_stream("zebra")
        unregister_stream("ape")


@pytest.mark.parametrize("over", [np.random.Generator, np.random.RandomState])
def test_a_generator_over_the_global_bit_generator_is_refused_since_every_scope_covers_it(over: Any) -> None:
    with pytest.raises(ValueError, match=r"a global stream, which every scope covers; leave it out of also=$"):
        deterministic(0, also=over(np.random.get_bit_generator()))


def test_two_generators_over_one_bit_generator_are_one_stream_to_scopes_left_out_of_order() -> None:
    bits = np.random.PCG64(3)
    one, two, twin = np.random.Generator(bits), np.random.Generator(bits), np.random.default_rng(np.random.PCG64(3))
    outer, inner = isolated(0, also=one), isolated(0, also=two)
    outer.__enter__()
    one.random()
    inner.__enter__()
    two.random()
    with pytest.warns(ScopeOrderWarning):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert one.random() == twin.random()


@pytest.mark.parametrize("wrong", [np.array([1, 2]), np.array(3)], ids=["an array", "a number"])
def test_an_array_is_refused_as_an_object_whatever_it_makes_of_a_comparison(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^also\[0\] is ndarray"):
        deterministic(0, also=wrong)
