"""torch under Hypothesis' control, scopes on and in property tests, and the strategies."""

from __future__ import annotations

import gc
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import hypothesis
import numpy
import pytest
import torch
from hypothesis import HealthCheck, example, find, given, reproduce_failure, settings
from hypothesis import strategies as st
from hypothesis.internal.entropy import RANDOMS_TO_MANAGE
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import scoped_rng
from scoped_rng import RestoreError, RestoreWarning, capture, deterministic, fixed_seed, isolated, replay
from scoped_rng.hypothesis_plugin import TorchRandom, generators, register, seeds
from tests import kit
from tests.fake_device import NAME, FakeGeneratorsModule, FakeLazyBackend, seeded_draws

FEW = settings(max_examples=5, database=None)
ZERO, SEVEN = kit.reference(0, 2), kit.reference(7, 2)
SITE = Path(scoped_rng.__file__).parents[1]


class Boom(Exception):
    """The failure of a test."""


@pytest.fixture(autouse=True)
def registered() -> None:
    """Have torch registered also where the package is not installed with its entry point."""
    register()


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


# Every example starts from Hypothesis' seed, and the ambient streams go on after the test.


def test_every_example_draws_torch_from_the_seed_as_it_does_python_and_numpy() -> None:
    seen, before = [], kit.everything()

    @FEW
    @given(st.integers())
    def test(number: int) -> None:
        seen.append([kit.draws(), kit.draws()])

    test()
    assert len(seen) > 1
    assert all(drawn == ZERO for drawn in seen)
    assert kit.everything() == before


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_an_example_that_raises_leaves_the_ambient_streams_alone(error: type[BaseException]) -> None:
    kit.draws()  # leaves gaussians cached
    before = kit.everything()

    @FEW
    @given(st.integers())
    def test(number: int) -> None:
        kit.draws()
        raise error

    with pytest.raises(error):
        test()
    assert kit.everything() == before


def test_a_failure_that_depends_on_torch_is_shrunk() -> None:
    above = kit.reference(0)[0][kit.STREAMS.index("torch")] - 1e-9

    @settings(database=None)
    @given(st.integers())
    def test(number: int) -> None:
        if number >= 100 and kit.draw("torch") > above:
            raise Boom(number)

    with pytest.raises(Boom) as caught:
        test()
    assert caught.value.args == (100,)


def test_an_explicit_example_starts_from_the_seed() -> None:
    seen = []

    @settings(FEW, phases=[hypothesis.Phase.explicit])
    @example(1)
    @example(2)
    @given(st.integers())
    def test(number: int) -> None:
        seen.append(kit.draws())

    test()
    assert seen == [ZERO[0]] * 2


def test_a_failure_is_reproduced_from_its_blob_with_the_same_draws() -> None:
    seen: list[Any] = []

    def body(number: int) -> None:
        seen.append((number, kit.draws()))
        if number > 10:
            raise Boom

    with pytest.raises(Boom) as caught:
        settings(database=None, print_blob=True)(given(st.integers())(body))()
    version, blob = re.search(r"reproduce_failure\('(.+?)', b'(.+?)'\)", notes(caught.value)).groups()  # type: ignore[union-attr]
    seen.clear()
    with pytest.raises(Boom):
        reproduce_failure(version, blob.encode())(FEW(given(st.integers())(body)))()
    assert set(seen) == {(11, ZERO[0])}


def test_random_module_varies_torch_with_the_others() -> None:
    before = kit.everything()

    @settings(FEW, max_examples=20)
    @given(st.random_module())
    def test(seeder: Any) -> None:
        assert kit.draws() == kit.reference(seeder.seed)[0]

    test()
    assert kit.everything() == before


def test_an_example_goes_on_where_it_was_after_a_property_test_inside_it() -> None:
    @settings(FEW, suppress_health_check=list(HealthCheck))
    @given(st.integers())
    def outer(number: int) -> None:
        assert kit.draws() == ZERO[0]

        @FEW
        @given(st.integers())
        def inner(number: int) -> None:
            assert kit.draws() == ZERO[0]

        inner()
        assert kit.draws() == ZERO[1]

    outer()


class Coins(RuleBasedStateMachine):
    """Draw from torch at every step, and fail on the third."""

    seen: list[Any]
    steps_to_failure = 0

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Any] = []

    @initialize()
    def start(self) -> None:
        self.drawn.append(kit.draws())
        self.seen.append(self.drawn)

    @rule()
    def step(self) -> None:
        self.drawn.append(kit.draws())
        if len(self.drawn) == self.steps_to_failure and self.drawn[-1][kit.STREAMS.index("torch")] == FAILS_AT:
            raise Boom


FAILS_AT = kit.reference(0, 3)[2][kit.STREAMS.index("torch")]


def test_every_run_of_a_state_machine_starts_from_the_seed() -> None:
    before = kit.everything()

    class Machine(Coins):
        seen: list[Any] = []  # noqa: RUF012 - of this test

    run_state_machine_as_test(Machine, settings=settings(FEW, stateful_step_count=3))
    runs = [drawn for drawn in Machine.seen if len(drawn) > 1]
    assert runs
    assert all(drawn[:2] == ZERO for drawn in runs)
    assert kit.everything() == before


def test_a_state_machine_whose_failure_depends_on_torch_is_not_flaky() -> None:
    class Machine(Coins):
        seen: list[Any] = []  # noqa: RUF012 - of this test
        steps_to_failure = 3

    with pytest.raises(Boom):
        run_state_machine_as_test(Machine, settings=settings(database=None, stateful_step_count=5))


# Scopes and property tests.


@pytest.fixture(params=["deterministic", "isolated", "replay"])
def seven(request: pytest.FixtureRequest) -> Any:
    """A scope of each kind that starts at what seed 7 gives."""
    with deterministic(7):
        state = capture()
    return {"deterministic": deterministic(7), "isolated": isolated(7), "replay": replay(state)}[request.param]


PLACES: dict[str, Callable[[Any, Any], Any]] = {
    "above given": lambda scope, body: scope(FEW(given(st.integers())(body))),
    "between given and settings": lambda scope, body: FEW(scope(given(st.integers())(body))),
    "below given": lambda scope, body: FEW(given(st.integers())(scope(body))),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_kind_of_scope_on_a_property_test_holds_for_each_example(seven: Any, place: str) -> None:
    seen, before = [], kit.everything()

    def body(number: int) -> None:
        seen.append([kit.draws(), kit.draws()])

    PLACES[place](seven, body)()
    assert len(seen) > 1
    assert all(drawn == SEVEN for drawn in seen)
    assert kit.everything() == before


@pytest.mark.parametrize("place", PLACES)
def test_a_scope_without_a_seed_keeps_the_seed_of_hypothesis(place: str) -> None:
    seen, before = [], kit.everything()

    def body(number: int) -> None:
        seen.append(kit.draws())

    PLACES[place](isolated(), body)()
    assert set(seen) == {ZERO[0]}
    assert kit.everything() == before


def test_fresh_entropy_of_numpy_repeats_under_a_scope_on_the_test() -> None:
    seen = []
    fixed_seed(7)(FEW(given(st.integers())(lambda number: seen.append(numpy.random.default_rng().random()))))()
    assert len(seen) > 1
    assert len(set(seen)) == 1


def test_fresh_entropy_of_numpy_stays_fresh_without_a_scope() -> None:
    seen = []
    FEW(given(st.integers())(lambda number: seen.append(numpy.random.default_rng().random())))()
    assert len(set(seen)) == len(seen)


def test_a_property_test_inside_a_scope_starts_from_its_own_seed_and_the_scope_goes_on() -> None:
    seen, before = [], kit.everything()
    with deterministic(7):
        assert kit.draws() == SEVEN[0]
        FEW(given(st.integers())(lambda number: seen.append(kit.draws())))()
        assert kit.draws() == SEVEN[1]
    assert set(seen) == {ZERO[0]}
    assert kit.everything() == before


def test_an_example_goes_on_from_its_seed_after_a_scope_inside_it(seven: Any) -> None:
    before = kit.everything()

    @FEW
    @given(st.integers())
    def test(number: int) -> None:
        assert kit.draws() == ZERO[0]
        with seven:
            assert kit.draws() == SEVEN[0]
        assert kit.draws() == ZERO[1]

    test()
    assert kit.everything() == before


# Accelerators.


def test_every_initialised_device_starts_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeGeneratorsModule()
    monkeypatch.setattr(torch, NAME, device, raising=False)
    ahead, seen = device.ahead(), []
    FEW(given(st.integers())(lambda number: seen.append([device.draws(), device.draws()])))()
    assert len(seen) > 1
    assert all(drawn == [[number] * 2 for number in seeded_draws(0, 2)] for drawn in seen)
    assert device.ahead() == ahead


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_a_device_that_an_example_initialises_starts_from_the_seed_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy, seen = FakeLazyBackend(name, monkeypatch), []
    lazy.module.manual_seed(5)  # waits for the initialisation
    FEW(given(st.integers())(lambda number: seen.append(lazy.draws())))()
    assert len(seen) > 1
    assert all(drawn == seeded_draws(0) * 2 for drawn in seen)
    assert lazy.draws()[0] == seeded_draws(5)[0]  # torch seeds the current device alone


def test_a_backend_that_no_example_uses_keeps_the_seed_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = FakeLazyBackend("cuda", monkeypatch)
    lazy.module.manual_seed(5)
    pending = lazy.pending()
    FEW(given(st.integers())(lambda number: None))()
    assert not lazy.module.is_initialized()
    assert lazy.pending() == pending


# What cannot be put back.


class Stuck(FakeGeneratorsModule):
    """Two devices, where putting a state back to the second fails as long as there are errors to raise."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__()
        self.errors = list(errors)
        put = self._generators[1].set_state

        def set_state(state: torch.Tensor) -> None:
            if self.errors:
                raise self.errors.pop()
            put(state)

        self._generators[1].set_state = set_state  # type: ignore[method-assign]


def test_a_device_that_cannot_be_restored_is_told_and_all_others_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Stuck(Boom("gone"))
    monkeypatch.setattr(torch, NAME, device, raising=False)
    ahead, before, source = device.ahead(), kit.continuation(), TorchRandom()
    state = source.getstate()
    source.seed(3)
    message = f"could not be put back when the scope was left: {NAME}:1: Boom: gone; everything else was"
    with pytest.raises(RestoreError, match=re.escape(message)):
        source.setstate(state)
    assert kit.continuation() == before
    assert [drawn[0] for drawn in device.ahead()] == [drawn[0] for drawn in ahead]


def test_the_failure_of_an_example_is_not_hidden_by_a_device_that_cannot_be_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, NAME, Stuck(Boom("gone")), raising=False)
    source = TorchRandom()

    def test() -> None:
        state = source.getstate()
        try:
            raise Boom("the example")
        finally:
            source.setstate(state)

    with pytest.raises(Boom, match="the example"), pytest.warns(RestoreWarning, match=f"{NAME}:1: Boom: gone"):
        test()


def test_an_interrupt_while_restoring_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Stuck(KeyboardInterrupt())
    monkeypatch.setattr(torch, NAME, device, raising=False)
    ahead, before, source = device.ahead(), kit.everything(), TorchRandom()
    state = source.getstate()
    source.seed(3)
    with pytest.raises(KeyboardInterrupt):
        source.setstate(state)
    assert (kit.everything(), device.ahead()) == (before, ahead)


# Where torch is not there, or not yet.


def half_imported() -> ModuleType:
    module = ModuleType("torch")
    module.__spec__ = ModuleSpec("torch", None)
    module.__spec__._initializing = True  # type: ignore[attr-defined]
    return module


STAND_INS: dict[str, Callable[[], Any]] = {
    "blocked": lambda: None,
    "an empty module": lambda: ModuleType("torch"),
    "a mock": MagicMock,
    "half imported": half_imported,
}


@pytest.mark.parametrize("stand_in", STAND_INS)
def test_what_is_not_torch_is_left_alone(stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = [], torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", STAND_INS[stand_in]())
        FEW(given(st.integers())(lambda number: seen.append(random.random())))()
    assert set(seen) == {ZERO[0][0]}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stand_in_that_an_example_puts_in_place_does_not_keep_torch_from_being_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = kit.everything()

    @settings(max_examples=1, database=None)
    @given(st.integers())
    def test(number: int) -> None:
        kit.draws()
        monkeypatch.setitem(sys.modules, "torch", None)

    test()
    monkeypatch.undo()
    assert kit.everything() == before


def test_torch_is_registered_once_and_stays() -> None:
    register()
    gc.collect()
    assert sum(isinstance(source, TorchRandom) for source in RANDOMS_TO_MANAGE.values()) == 1


# In a process of its own, from the entry point.


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds the package installed with its entry point."""
    info = tmp_path / "site" / "scoped_rng_hook-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scoped-rng-hook\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hypothesis]\nscoped_rng = scoped_rng.hypothesis_plugin:register\n")
    path = [str(tmp_path), str(info.parent), str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return {**inherited, "PYTHONPATH": os.pathsep.join(path)}


def python(code: str, environment: dict[str, str], cwd: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


FLAKY = """
import pytest, torch
from hypothesis import given, settings, strategies as st

@pytest.mark.parametrize("ambient", range(8))
def test_noise(ambient):
    torch.manual_seed(ambient)

    @settings(database=None, derandomize=True)
    @given(size=st.integers(1, 100))
    def noise_is_small(size):
        assert torch.randn(size).max() < 2

    noise_is_small()
"""


@pytest.mark.parametrize("options", [(), ("-p", "no:hypothesispytest")], ids=["", "without the pytest plugin"])
@pytest.mark.parametrize("plugin", [True, False], ids=["with", "without"])
def test_a_test_that_is_flaky_without_is_shrunk_with(
    plugin: bool, options: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(FLAKY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    if not plugin:
        environment["HYPOTHESIS_NO_PLUGINS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *options]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    sizes = re.findall(r"^E +size=(\d+)", run.stdout, re.MULTILINE)
    if plugin:
        assert "Flaky" not in run.stdout
        assert len(sizes) == 8, "every one fails"
        assert len(set(sizes)) == 1, "and of the same example, whatever torch has drawn before"
    else:
        assert "Flaky" in run.stdout


def test_the_entry_point_imports_neither_numpy_nor_torch_nor_pytest(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
        import random, sys
        import hypothesis
        from hypothesis import given, settings
        assert "scoped_rng.hypothesis_plugin" in sys.modules
        from scoped_rng.hypothesis_plugin import generators, seeds

        @settings(database=None)
        @given(generators(random.Random), seeds())
        def test(generator, seed):
            assert isinstance(generator, random.Random)

        test()
        generators()
        print({"numpy", "torch", "pytest"} & set(sys.modules))
    """
    assert python(code, environment, tmp_path) == "set()\n"


def test_the_plugin_may_be_imported_before_hypothesis(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
        import sys
        from scoped_rng.hypothesis_plugin import TorchRandom, seeds
        assert "hypothesis" not in sys.modules
        seeds()
        from hypothesis.internal.entropy import RANDOMS_TO_MANAGE
        print(sum(isinstance(source, TorchRandom) for source in RANDOMS_TO_MANAGE.values()))
    """
    assert python(code, environment, tmp_path) == "1\n"


def test_torch_that_an_example_imports_is_covered_from_the_next_one_on(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
        from hypothesis import given, settings, strategies as st
        seen = []

        @settings(max_examples=5, database=None, deadline=None)
        @given(st.integers())
        def test(number):
            import torch
            seen.append(torch.rand(()).item())

        test()
        import torch
        torch.manual_seed(0)
        seeded = torch.rand(()).item()
        print(seen[0] != seeded, set(seen[1:]) == {seeded})
    """
    assert python(code, environment, tmp_path) == "True True\n"


def test_a_property_test_runs_while_torch_is_being_imported(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import half\nhalf.test()\n")
    code = """
        from hypothesis import given, settings, strategies as st
        seen = []

        @settings(max_examples=5, database=None)
        @given(st.integers())
        def test(number):
            seen.append(number)
    """
    (tmp_path / "half.py").write_text(textwrap.dedent(code))
    assert python("import torch, half; print(len(half.seen) > 1)", environment, tmp_path) == "True\n"


# Strategies.

EDGES = (0, 2**32 - 1, 2**32, 2**63, 2**64 - 1)


@given(seeds())
def test_a_seed_is_one_that_every_scope_takes(seed: int) -> None:
    assert type(seed) is int
    assert deterministic(seed).seed == seed


def test_the_edges_come_up_in_every_test() -> None:
    seen = set()
    settings(max_examples=200, database=None, derandomize=True)(given(seeds())(lambda seed: seen.add(seed)))()
    assert seen >= set(EDGES)
    assert len(seen) > 50


@pytest.mark.parametrize("least", [0, 1, 1000, 2**31, 2**32, 2**40 + 1, 2**63, 2**64 - 1])
def test_a_seed_shrinks_to_the_least_that_fails(least: int) -> None:
    found = find(seeds(), lambda seed: seed >= least, settings=settings(database=None, max_examples=1000))
    assert found == least


@pytest.mark.parametrize("low", [2**16, 2**32 + 1, 2**63 + 1])
def test_a_seed_need_not_be_an_edge(low: int) -> None:
    found = find(seeds(), lambda seed: low < seed and seed not in EDGES, settings=settings(database=None))
    assert found == low + 1


KINDS: dict[type[Any], Callable[[Any], float]] = {
    random.Random: lambda generator: generator.random(),
    numpy.random.Generator: lambda generator: float(generator.random()),
    numpy.random.RandomState: lambda generator: float(generator.random_sample()),
    torch.Generator: lambda generator: float(torch.rand((), generator=generator)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_falsifying_example_shows_how_to_make_the_generator(kind: type[Any]) -> None:
    seen = []

    @settings(database=None)
    @given(generators(kind))
    def test(generator: Any) -> None:
        assert type(generator) is kind
        drawn = KINDS[kind](generator)
        seen.append(drawn)
        assert drawn < 0.9

    with pytest.raises(AssertionError) as caught:
        test()
    shown = re.search(r"generator=(\S+\([\d_]+\))", notes(caught.value))
    assert shown is not None, notes(caught.value)
    made = eval(shown[1], {"random": random, "numpy": numpy, "torch": torch})
    assert type(made) is kind
    assert KINDS[kind](made) == seen[-1]


@pytest.mark.parametrize("kinds", [(), tuple(KINDS), (torch.Generator, random.Random)])
def test_generators_are_of_all_kinds_asked_for_and_shrink_to_the_first(kinds: tuple[type[Any], ...]) -> None:
    seen = set()
    settings(FEW, max_examples=60)(given(generators(*kinds))(lambda generator: seen.add(type(generator))))()
    assert seen == set(kinds or KINDS)
    assert type(find(generators(*kinds), lambda generator: True)) is (kinds or tuple(KINDS))[0]


@pytest.mark.parametrize("kind", [torch.Generator, numpy.random.Generator, random.Random])
def test_generators_take_seeds_from_2_to_the_32_on(kind: type[Any]) -> None:
    seen = set()

    @settings(max_examples=60, database=None)
    @given(generators(kind))
    def test(generator: Any) -> None:
        seen.add(KINDS[kind](generator))

    test()
    expected = {
        random.Random: KINDS[random.Random](random.Random(2**64 - 1)),
        numpy.random.Generator: float(numpy.random.default_rng(2**64 - 1).random()),
        torch.Generator: float(torch.rand((), generator=torch.Generator().manual_seed(2**64 - 1))),
    }
    assert expected[kind] in seen


def test_generators_are_not_the_global_streams() -> None:
    @FEW
    @given(generators())
    def test(generator: Any) -> None:
        KINDS[type(generator)](generator)
        assert kit.draws() == ZERO[0]

    test()


@pytest.mark.parametrize(
    "kind", [None, "torch", int, random.SystemRandom, torch.Generator()], ids=lambda kind: type(kind).__name__
)
def test_another_kind_is_refused_with_those_there_are(kind: Any) -> None:
    message = (
        "generators() takes the classes random.Random, numpy.random.Generator, numpy.random.RandomState, "
        f"torch.Generator, or nothing for all of them, got {kind!r}; give the class itself, as in "
        "generators(random.Random)"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        generators(random.Random, kind)
