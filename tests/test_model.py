"""Scopes in any order against a model: plain values in a dict, and plain generators that draw from them.

The machine does everything twice, to the process and to the model, and compares every number drawn and, after every
step, every number that would be drawn next.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from scoped_rng import (
    RestoreWarning,
    RngState,
    ScopeOrderWarning,
    StateMismatchError,
    capture,
    deterministic,
    fold_in,
    isolated,
    replay,
    scope,
)
from scoped_rng.scope import activation
from tests import kit

SEEDS = (0, 1, 2**32 + 5, 2**64 - 1)
GLOBAL, MINE = ("python", "numpy", "torch"), ("my python", "my numpy", "my torch", "my module")
KINDS = ("uniform", "gaussian")
FRESH = np.random.bit_generator.randbits  # where NumPy asks for fresh entropy, outside of scopes


# Plain generators. A value is what a generator's public functions give as its state, and is never changed.


class Bits(NamedTuple):
    """NumPy's global stream: its state, and the bit generator that is installed (None: one that a scope has made)."""

    state: dict[str, Any]
    installed: Any = None


def python(value: Any) -> random.Random:
    generator = random.Random(0)
    generator.setstate(value)
    return generator


def random_state(value: Bits) -> np.random.RandomState:
    generator = np.random.RandomState(getattr(np.random, value.state["bit_generator"])(0))
    generator.set_state(value.state)
    return generator


def numpy_generator(value: Any) -> np.random.Generator:
    bits, spawning = value
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(**spawning)))
    generator.bit_generator.state = bits
    return generator


def numpy_generator_value(generator: np.random.Generator) -> Any:
    return generator.bit_generator.state, generator.bit_generator.seed_seq.state


def torch_generator(value: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(value)
    return generator


class Averages(torch.nn.Module):
    """Keep an average in a buffer that is changed in place, and the sum in one that is bound anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))

    def forward(self, x: float) -> torch.Tensor:
        if self.training:
            self.average.mul_(0.5).add_(x)
            self.total = self.total + x
        return self.average + self.total


def module_value(module: Averages) -> tuple[float, float, bool]:
    return float(module.average), float(module.total), module.training


def numpy_seed(seed: int) -> Any:
    return seed if seed < 2**32 else [seed % 2**32, seed // 2**32, 1]


def seeded(name: str, seed: int, before: Any) -> Any:
    """Return the value that a scope with ``seed`` starts a stream with."""
    if name == "my module":
        return before
    if name in MINE:
        seed = fold_in(seed, "also", MINE.index(name))
    if name in ("python", "my python"):
        return random.Random(seed).getstate()
    if name == "numpy":
        kept = before.installed if before.state["bit_generator"] == "MT19937" else None
        legacy = np.random.RandomState(np.random.MT19937(0))  # RandomState(seed) itself would draw fresh entropy
        legacy.seed(numpy_seed(seed))
        return Bits(legacy.get_state(legacy=False), kept)
    if name == "my numpy":
        return numpy_generator_value(np.random.default_rng(seed))
    return torch.Generator().manual_seed(seed).get_state()


def draw(name: str, kind: str, value: Any) -> tuple[float, Any]:
    """Draw from a value; return the number, and the value after it."""
    if name in ("python", "my python"):
        plain = python(value)
        return draw_from(plain, kind), plain.getstate()
    if name == "numpy":
        legacy = random_state(value)
        return draw_from(legacy, kind), Bits(legacy.get_state(legacy=False), value.installed)
    if name == "my numpy":
        generator = numpy_generator(value)
        return draw_from(generator, kind), numpy_generator_value(generator)
    if name == "my module":
        average, total, training = value
        training = training if kind == "uniform" else not training
        if training:
            average, total = average * 0.5 + 1.0, total + 1.0
        return average + total, (average, total, training)
    torchs = torch_generator(value)
    return draw_from(torchs, kind), torchs.get_state()


def draw_from(generator: Any, kind: str) -> float:
    """Draw from an object of any library; what the second kind of draw leaves behind is part of its state."""
    if isinstance(generator, Averages):
        return float(generator.train(generator.training == (kind == "uniform"))(1.0))
    if isinstance(generator, torch.Generator):
        function = torch.rand if kind == "uniform" else torch.randn
        return float(function((), dtype=torch.float64, generator=generator))
    if isinstance(generator, np.random.Generator):
        return float((generator if kind == "uniform" else generator.spawn(1)[0]).random())
    if isinstance(generator, np.random.RandomState):
        return float(generator.random_sample() if kind == "uniform" else generator.standard_normal())
    return generator.random() if kind == "uniform" else generator.gauss(0, 1)


@functools.cache
def fresh_entropy(seed: int, count: int = 64) -> list[float]:
    """Return what one unseeded ``default_rng()`` after the other draws in a scope that does nothing else."""
    with deterministic(seed):
        drawn = [float(np.random.default_rng().random()) for _ in range(count)]
    assert len(set(drawn)) == count
    return drawn


def set_flags(values: tuple[bool, ...]) -> None:
    """Set what `kit.flags` returns; the public setters may have been frozen by torch's own test helpers."""
    torch._C._set_cudnn_deterministic(values[0])
    torch._C._set_cudnn_benchmark(values[1])
    torch._C._set_mkldnn_deterministic(values[2])
    torch._C._set_deterministic_algorithms(values[3], warn_only=values[4])
    torch._C._set_deterministic_fill_uninitialized_memory(values[5])


# The model


class Recipe(NamedTuple):
    """What a scope is made from, which is all that the model knows of it."""

    name: str
    seed: int | None = None
    strict: bool = False
    with_mine: bool = False
    state: tuple[RngState, dict[str, Any]] | None = None

    def make(self, mine: dict[str, Any]) -> scope.Scope:
        also = list(mine.values()) if self.with_mine else []
        if self.name == "deterministic":
            return deterministic(self.seed, strict=self.strict, also=also)
        if self.name == "isolated":
            return isolated(self.seed, also=also)
        return replay(self.state[0], also=also, missing="error" if self.with_mine else "skip")

    def covered(self) -> list[str]:
        flags = ["flags"] if self.name == "deterministic" else []
        return [*GLOBAL, "entropy", *flags, *(MINE if self.with_mine else ())]

    def start(self, now: dict[str, Any]) -> dict[str, Any]:
        """Return the values with which the block begins, of what it changes."""
        begin: dict[str, Any] = {}
        for name in self.covered():
            if self.state is not None:
                begin.update(restored(self.state[1], name, now))
            elif name == "flags":
                begin[name] = (True, False, True, True, not self.strict, self.strict)
            elif self.seed is not None:
                begin[name] = (self.seed, 0) if name == "entropy" else seeded(name, self.seed, now[name])
        return begin


def restored(state: dict[str, Any], name: str, now: dict[str, Any]) -> dict[str, Any]:
    """Return the value of a stream after a state is put back, if the state has it."""
    if state.get(name) is None:
        return {}
    if name == "numpy":
        same_kind = now[name].state["bit_generator"] == state[name].state["bit_generator"]
        return {name: Bits(state[name].state, now[name].installed if same_kind else None)}
    return {name: state[name]}


class Entry:
    """One entry of a scope: what it covers, and what that was before it."""

    def __init__(self, opened: Any, found: dict[str, Any]) -> None:
        self.opened, self.found = opened, found


class Model:
    """The values now, and the entries that are open, innermost last."""

    def __init__(self, now: dict[str, Any]) -> None:
        self.now = now
        self.open: list[Entry] = []

    def enter(self, opened: Any, recipe: Recipe) -> Entry:
        entry = Entry(opened, {name: self.now[name] for name in recipe.covered()})
        self.now.update(recipe.start(self.now))
        self.open.append(entry)
        return entry

    def leave(self, entry: Entry) -> bool:
        """Leave an entry that is open; say whether another one has to take over what it found."""
        above = self.open[self.open.index(entry) + 1 :]
        for name, value in entry.found.items():
            heirs = [other for other in above if name in other.found]
            (heirs[0].found if heirs else self.now)[name] = value
        self.open.remove(entry)
        return bool(above)

    def take_out(self, base: Entry) -> list[tuple[Entry, dict[str, Any]]]:
        """Take out an entry and all that is open in it; return them with their values, outermost first."""
        taken = []
        for entry in reversed(self.open[self.open.index(base) :]):
            taken.insert(0, (entry, {name: self.now[name] for name in entry.found}))
            self.leave(entry)
        return taken

    def put_in(self, taken: list[tuple[Entry, dict[str, Any]]]) -> None:
        for entry, values in taken:
            entry.found = {name: self.now[name] for name in values}
            self.now.update(values)
            self.open.append(entry)


class Place:
    """A decorated generator in which the machine can do things, in the process and in the model."""

    def __init__(self, model: Model, recipe: Recipe, mine: dict[str, Any]) -> None:
        self.model, self.recipe = model, recipe
        self.base: Entry | None = None
        self.taken: list[tuple[Entry, dict[str, Any]]] = []

        @recipe.make(mine)
        def body() -> Iterator[Any]:
            result = None
            while True:
                action = yield result
                if action is None:
                    return
                result = action()

        self.generator = body()

    def resume(self) -> None:
        if self.base is None:
            self.base = self.model.enter(None, self.recipe)
        self.model.put_in(self.taken)
        self.taken = []

    def suspend(self) -> None:
        self.taken = self.model.take_out(self.base)

    def end(self) -> bool:
        if self.base is None:
            return False
        self.resume()
        return self.model.leave(self.base)


# The machine

recipes = st.builds(
    lambda name, seed, strict, with_mine: Recipe(name, seed, strict, with_mine),
    st.sampled_from(["deterministic", "isolated"]),
    st.sampled_from(SEEDS),
    st.booleans(),
    st.booleans(),
) | st.builds(lambda with_mine: Recipe("isolated", None, False, with_mine), st.booleans())


class ScopesInAnyOrder(RuleBasedStateMachine):
    entries, states = Bundle("entries"), Bundle("states")
    anywhere = st.integers(0, 3)  # the main program, or one of the generators
    new_scopes = recipes | st.builds(
        lambda with_mine, state: Recipe("replay", None, False, with_mine, state), st.booleans(), states
    )

    def __init__(self) -> None:
        super().__init__()
        for seed in SEEDS:
            fresh_entropy(seed)
        self.as_found = kit.ambient(), kit.flags()
        kit.seed_everything(99)
        self.mine = {
            "my python": random.Random(1),
            "my numpy": np.random.default_rng(1),
            "my torch": torch.Generator().manual_seed(1),
            "my module": Averages(),
        }
        self.model = Model(
            {
                "python": random.getstate(),
                "numpy": Bits(np.random.get_state(legacy=False), np.random.get_bit_generator()),
                "torch": torch.get_rng_state(),
                "entropy": None,  # the operating system's; in a seeded scope the seed, and how often it was drawn from
                "flags": kit.flags(),
                **self.values_of_mine(),
            }
        )
        self.places: list[Place] = []

    def values_of_mine(self) -> dict[str, Any]:
        return {
            "my python": self.mine["my python"].getstate(),
            "my numpy": numpy_generator_value(self.mine["my numpy"]),
            "my torch": self.mine["my torch"].get_state(),
            "my module": module_value(self.mine["my module"]),
        }

    def do(
        self, where: int, in_model: Callable[[], Any], in_process: Callable[[], Any], out_of_order: Any = bool
    ) -> tuple[Any, Any]:
        """Do a thing in both worlds, in the main program or in a generator; return what came of it in each."""
        places = [None, *self.places]
        place = places[where % len(places)]
        if place is None:
            expected = in_model()
            with warns(out_of_order(expected)):
                return expected, in_process()
        if place.base is None:
            next(place.generator)  # a generator that has not begun takes nothing but None
            place.resume()
            place.suspend()
        place.resume()
        expected = in_model()
        place.suspend()
        with warns(out_of_order(expected)):
            return expected, place.generator.send(in_process)

    # Draws and changes

    @rule(where=anywhere)
    def draw_from_every_stream(self, where: int) -> None:
        for name in GLOBAL + MINE:
            for kind in KINDS:
                self.draw(where, name, kind)

    @rule(where=anywhere, name=st.sampled_from(GLOBAL + MINE), kind=st.sampled_from(KINDS))
    def draw(self, where: int, name: str, kind: str) -> None:
        def in_model() -> float:
            number, self.model.now[name] = draw(name, kind, self.model.now[name])
            return number

        def in_process() -> float:
            if name in MINE:
                return draw_from(self.mine[name], kind)
            return kit.draw(name if kind == "uniform" else f"{name} gaussian")

        expected, drawn = self.do(where, in_model, in_process, out_of_order=never)
        assert drawn == expected

    @rule(where=anywhere)
    def draw_fresh_entropy(self, where: int) -> None:
        def in_model() -> float | None:
            if self.model.now["entropy"] is None:
                return None
            seed, drawn = self.model.now["entropy"]
            self.model.now["entropy"] = (seed, drawn + 1)
            return fresh_entropy(seed)[drawn]

        expected, drawn = self.do(where, in_model, lambda: np.random.default_rng().random(), out_of_order=never)
        assert drawn == expected or expected is None

    @rule(where=anywhere, name=st.sampled_from(GLOBAL), seed=st.sampled_from(SEEDS))
    def seed_by_hand(self, where: int, name: str, seed: int) -> None:
        def in_model() -> None:
            now = self.model.now
            if name == "numpy" and now[name].state["bit_generator"] != "MT19937":
                # NumPy seeds any other bit generator as well, but keeps its cached gaussian.
                state = getattr(np.random, now[name].state["bit_generator"])(numpy_seed(seed)).state
                now[name] = Bits({**now[name].state, **state}, now[name].installed)
            else:
                now[name] = seeded(name, seed, now[name])

        def in_process() -> None:
            if name == "python":
                random.seed(seed)
            elif name == "numpy":
                np.random.seed(numpy_seed(seed))
            else:
                torch.manual_seed(seed)

        self.do(where, in_model, in_process)

    @rule(where=anywhere, name=st.sampled_from(["MT19937", "PCG64", "Philox"]), seed=st.integers(0, 9))
    def install_a_bit_generator(self, where: int, name: str, seed: int) -> None:
        bits, plain = (getattr(np.random, name)(seed) for _ in range(2))

        def in_model() -> None:
            state = np.random.RandomState(plain).get_state(legacy=False)
            self.model.now["numpy"] = Bits(state, bits)

        self.do(where, in_model, lambda: np.random.set_bit_generator(bits))

    @rule(where=anywhere, values=st.tuples(*[st.booleans()] * 6))
    def set_flags(self, where: int, values: tuple[bool, ...]) -> None:
        self.do(where, lambda: self.model.now.update(flags=values), lambda: set_flags(values))

    # Scopes

    @rule(target=entries, where=anywhere, recipe=new_scopes)
    def enter(self, where: int, recipe: Recipe) -> tuple[scope.Scope, Recipe]:
        made = recipe.make(self.mine)
        self.do(where, lambda: self.model.enter(made, recipe), made.__enter__, out_of_order=never)
        return made, recipe

    @rule(target=entries, entry=entries)
    def enter_again(self, entry: tuple[scope.Scope, Recipe]) -> tuple[scope.Scope, Recipe]:
        made, recipe = entry
        self.do(0, lambda: self.model.enter(made, recipe), made.__enter__, out_of_order=never)
        return entry

    @rule(where=anywhere, entry=consumes(entries), error=st.none() | st.builds(KeyError))
    def leave(self, where: int, entry: tuple[scope.Scope, Recipe], error: Exception | None) -> None:
        made, _ = entry

        def in_model() -> bool:
            for candidate in reversed(self.model.open):
                if candidate.opened is made:
                    return self.model.leave(candidate)
            for place in self.places:  # not open now, but taken out with the generator in which it was entered
                for taken in place.taken:
                    if taken[0].opened is made:
                        place.taken.remove(taken)
                        return False
            raise AssertionError("the model has lost an entry")

        self.do(where, in_model, lambda: made.__exit__(error and type(error), error, None))

    # Decorated generators

    @rule(recipe=new_scopes)
    def make_a_generator(self, recipe: Recipe) -> None:
        self.places.append(Place(self.model, recipe, self.mine))

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 3), how=st.sampled_from(["close", "throw", "return"]))
    def end_a_generator(self, which: int, how: str) -> None:
        place = self.places.pop(which % len(self.places))
        with warns(place.end()):
            if how == "close":
                place.generator.close()
            elif how == "throw":
                with pytest.raises(KeyError):
                    place.generator.throw(KeyError("thrown in"))
            else:
                assert next(place.generator, "ended") in ("ended", None)
                assert next(place.generator, "ended") == "ended"

    # States

    @initialize(target=states)
    def capture_at_first(self) -> tuple[RngState, dict[str, Any]]:
        return self.captured(0)

    @rule(target=states, where=anywhere)
    def capture(self, where: int) -> tuple[RngState, dict[str, Any]]:
        return self.captured(where)

    def captured(self, where: int) -> tuple[RngState, dict[str, Any]]:
        values, state = self.do(
            where,
            lambda: {name: value for name, value in self.model.now.items() if name != "flags"},
            lambda: capture(also=list(self.mine.values())),
            out_of_order=never,
        )
        return state, values

    @rule(where=anywhere, state=states)
    def restore(self, where: int, state: tuple[RngState, dict[str, Any]]) -> None:
        def in_model() -> None:
            now = self.model.now
            for name in (*GLOBAL, *MINE, *(["entropy"] if now["entropy"] else [])):
                now.update(restored(state[1], name, now))

        def in_process() -> None:
            with pytest.warns(RestoreWarning, match="fresh entropy") if is_lost else contextlib.nullcontext():
                state[0].restore(also=list(self.mine.values()))

        is_lost = "numpy.entropy" in state[0].names and not self.model.now["entropy"]
        self.do(where, in_model, in_process)

    @rule(where=anywhere)
    def replay_a_state_that_lacks_something(self, where: int) -> None:
        def in_process() -> None:
            with pytest.raises(StateMismatchError):
                replay(capture(), also=self.mine["my python"]).__enter__()

        self.do(where, lambda: None, in_process)

    # What must hold after every step

    @invariant()
    def every_number_that_would_be_drawn_next_is_the_models(self) -> None:
        now = dict(self.model.now)
        assert kit.flags() == now["flags"]
        assert (np.random.bit_generator.randbits is FRESH) == (now["entropy"] is None)
        assert torch.initial_seed() == torch_generator(now["torch"]).initial_seed()
        here, saved = self.values_of_mine(), kit.ambient()
        expected, drawn = {}, {}
        for kind in KINDS:
            for name in GLOBAL:
                drawn[name, kind] = kit.draw(name if kind == "uniform" else f"{name} gaussian")
            for name in MINE:
                drawn[name, kind], here[name] = draw(name, kind, here[name])
            for name in GLOBAL + MINE:
                expected[name, kind], now[name] = draw(name, kind, now[name])
        kit.put_ambient(saved)
        assert drawn == expected
        assert now["numpy"].installed in (None, np.random.get_bit_generator())

    def teardown(self) -> None:
        ambient, flags = self.as_found
        try:
            while self.places:
                self.end_a_generator(0, "close")
            while self.model.open:
                oldest = self.model.open[0].opened
                self.leave(0, (oldest, None), None)
            self.every_number_that_would_be_drawn_next_is_the_models()
        finally:
            while activation._stack:  # after a failure: leave none of it to the next example
                activation._stack[-1].stop()
            kit.put_ambient(ambient)
            set_flags(flags)


def never(_: Any) -> bool:
    return False


def warns(out_of_order: bool) -> AbstractContextManager[Any]:
    """Expect the warning about scopes that are left out of order, if they are."""
    if out_of_order:
        return pytest.warns(ScopeOrderWarning, match=r"was left before a scope that was entered after it")
    return nullcontext()


TestScopesInAnyOrder = ScopesInAnyOrder.TestCase
TestScopesInAnyOrder.settings = settings(max_examples=3 * settings.default.max_examples)


def test_scopes_left_out_of_order_in_a_generator_do_not_go_round_in_circles() -> None:
    @isolated()
    def body() -> Iterator[None]:
        first, second = isolated(), isolated()
        first.__enter__()
        second.__enter__()
        with warns(True):
            first.__exit__(None, None, None)
        yield
        yield
        second.__exit__(None, None, None)

    before = kit.everything()
    with isolated():
        generator = body()
        next(generator)
        next(generator)
        with deterministic(0):
            assert kit.draws() == kit.reference(0)[0]
        assert list(generator) == []
    assert kit.everything() == before
