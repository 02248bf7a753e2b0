"""The pytest plugin, run from its entry point on small suites: what each of their tests draws is noted in a file."""

from __future__ import annotations

import ast
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest

# pytest forgets the modules that a suite run in this process is the first to import; these must not be among them.
from scoped_rng import fold_in
from tests import kit

pytest_plugins = ["pytester"]

HEADER = """
import asyncio
import os
import random
import unittest
from pathlib import Path

import numpy as np
import pytest
import torch

from scoped_rng import ScopeOrderWarning, deterministic, fixed_seed, fold_in, isolated
from tests import kit

NOTES = Path(__file__).with_name("notes.txt")


def note(name, value):
    with NOTES.open("a") as file:
        file.write(repr((name, value)) + "\\n")
"""
Notes = dict[str, Any]
ONLY_FUNCTION_LOOPS = ("-o", "asyncio_default_fixture_loop_scope=function")


class Suite:
    """A suite in a directory of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path

    def write(self, source: str, name: str = "test_suite.py") -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(HEADER + textwrap.dedent(source))

    def run(self, *args: str, randomly: bool = False, process: bool = False, moves: bool = False) -> pytest.RunResult:
        """Run it; nothing of it may be left in this process, unless it is to move the streams."""
        (self.path / "notes.txt").unlink(missing_ok=True)
        before, saved = kit.everything(), kit.ambient()
        options = [
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            *ONLY_FUNCTION_LOOPS,
            *(() if randomly else ("-p", "no:randomly")),
            *args,
        ]
        run = self.pytester.runpytest_subprocess if process else self.pytester.runpytest_inprocess
        result = run(*options)
        if moves or randomly:  # which seeds the global streams when a run begins
            kit.put_ambient(saved)
        assert kit.everything() == before
        return result

    def notes(self, *args: str, passed: int | None = None, **how: bool) -> Notes:
        """Run it and return what its tests have noted."""
        result = self.run(*args, **how)
        if passed is not None:
            result.assert_outcomes(passed=passed)
        file = self.path / "notes.txt"
        return dict(ast.literal_eval(line) for line in file.read_text().splitlines()) if file.exists() else {}


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return Suite(pytester)


def seed_of(name: str, run: int = 0) -> int:
    return fold_in(run, f"test_suite.py::{name}")


TWO_TESTS = """
def test_one():
    note("one", kit.draws())

def test_two():
    note("two", [kit.draws(), kit.draws()])
"""


# Without options


def test_without_options_tests_draw_from_the_ambient_streams(suite: Suite) -> None:
    suite.write(TWO_TESTS)
    notes = suite.notes(passed=2, moves=True)
    assert [notes["one"], *notes["two"]] == kit.continuation(3)
    suite.run(moves=True).stdout.no_fnmatch_line("*scoped_rng:*")


@pytest.mark.parametrize("options", [(), ("--rng-seed=0",), ("--rng-leaks=error",)])
def test_the_plugin_imports_neither_numpy_nor_torch(suite: Suite, options: tuple[str, ...]) -> None:
    (suite.path / "test_plain.py").write_text("""
import random, sys
import pytest

def test_nothing_is_imported():
    assert not {"torch", "numpy"} & set(sys.modules)

@pytest.mark.fixed_seed(7)
def test_python_is_seeded_all_the_same():
    assert random.random() == random.Random(7).random()

@pytest.mark.fixed_seed(7, strict=True)
def test_an_import_in_the_test_is_covered_from_the_next_on():
    import numpy, torch

@pytest.mark.fixed_seed(7)
def test_now_it_is():
    import numpy as np, torch
    assert np.random.random_sample() == np.random.RandomState(7).random_sample()
    assert torch.initial_seed() == 7
    assert torch.are_deterministic_algorithms_enabled()

def test_and_is_over_then():
    import torch
    assert not torch.are_deterministic_algorithms_enabled()
""")
    result = suite.run("-p", "no:hypothesispytest", *options, process=True)
    result.assert_outcomes(passed=5)


def test_numpy_is_covered_without_torch(suite: Suite) -> None:
    (suite.path / "test_numpy.py").write_text("""
import sys
import numpy as np, pytest

@pytest.mark.fixed_seed(7)
def test_numpy():
    assert np.random.random_sample() == np.random.RandomState(7).random_sample()
    first = np.random.default_rng().random()
    np.random.seed(7)
    assert "torch" not in sys.modules

def test_leak():
    np.random.random_sample()
""")
    result = suite.run("--rng-leaks=warn", process=True)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*LeakWarning: test_numpy.py::test_leak leaks: the test moves numpy.*"])


@pytest.mark.parametrize(
    "source",
    [
        """
class Proxy:
    @property
    def __class__(self):
        raise RuntimeError

proxy = Proxy()
""",
        """
class Meta(type):
    @property
    def __module__(cls):
        raise RuntimeError

class Strange(metaclass=Meta):
    pass
""",
        """
class Mark:
    @property
    def name(self):
        raise ValueError

class Marked:
    pytestmark = [Mark()]
""",
    ],
    ids=["a proxy", "a metaclass", "a mark"],
)
def test_strange_things_in_a_module_are_left_alone(suite: Suite, source: str) -> None:
    (suite.path / "test_strange.py").write_text(source + "\ndef test_one():\n    pass\n")
    suite.run().assert_outcomes(passed=1)


# A seed for the run


@pytest.mark.parametrize("run", [0, 2**64 - 1])
def test_every_test_starts_from_the_run_s_seed_and_its_own_name(suite: Suite, run: int) -> None:
    suite.write(TWO_TESTS)
    notes = suite.notes(f"--rng-seed={run}", passed=2)
    assert notes == {
        "one": kit.reference(seed_of("test_one", run))[0],
        "two": kit.reference(seed_of("test_two", run), 2),
    }


ORDER = """
import pytest

@pytest.fixture(scope="session")
def session():
    return kit.draws()

@pytest.fixture(scope="module", params=["a", "b"])
def module(session, request):
    yield kit.draws()
    note(f"end of module {request.param}", kit.draws())

@pytest.fixture(scope="class")
def cls(request):
    late = request.getfixturevalue("late")
    return kit.draws(), late

@pytest.fixture(scope="module")
def late():
    return kit.draws()

def test_first(session):
    note("first", [session, kit.draws()])

@pytest.mark.parametrize("x", [1, 2])
def test_module(module, x, request):
    note(request.node.name, [module, kit.draws()])

class TestClass:
    def test_a(self, cls):
        note("a", [cls, kit.draws()])

    def test_b(self, cls, late):
        note("b", [cls, late, kit.draws()])

class TestCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.drawn = kit.draws()

    def setUp(self):
        self.mine = kit.draws()

    def test_case(self):
        note("case", [self.drawn, self.mine, kit.draws()])

def test_last(request):
    note("last", [kit.draws(), request.getfixturevalue("late"), kit.draws()])
"""


@pytest.fixture
def in_order(suite: Suite) -> Notes:
    suite.write(ORDER)
    return suite.notes("--rng-seed=5", passed=9)


@pytest.mark.parametrize("test", ["first", "a", "b", "case", "last"])
def test_a_test_alone_gives_what_it_gives_among_others(suite: Suite, in_order: Notes, test: str) -> None:
    notes = suite.notes("--rng-seed=5", "-k", f"test_{test}", passed=1)
    assert notes[test] == in_order[test]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_tests_does_not_matter(suite: Suite, in_order: Notes, seed: int) -> None:
    assert suite.notes("--rng-seed=5", f"--randomly-seed={seed}", randomly=True, passed=9) == in_order


@pytest.mark.parametrize("options", [("-n2",), ("-n2", "--dist=loadgroup")], ids=" ".join)
def test_workers_of_xdist_give_the_same(suite: Suite, in_order: Notes, options: tuple[str, ...]) -> None:
    source = (suite.path / "test_suite.py").read_text()
    (suite.path / "test_suite.py").write_text(
        source.replace("class TestClass", '@pytest.mark.xdist_group("g")\nclass TestClass')
    )
    assert suite.notes("--rng-seed=5", *options, passed=9) == in_order


def test_other_seeds_give_other_numbers(suite: Suite, in_order: Notes) -> None:
    others = suite.notes("--rng-seed=6", passed=9)
    assert all(others[name] != value for name, value in in_order.items())


def test_one_activation_spans_setup_call_and_teardown(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture
    def around():
        note("setup", kit.draws())
        yield
        note("teardown", kit.draws())

    def test_one(around):
        note("call", kit.draws())
    """)
    notes = suite.notes("--rng-seed=0", passed=1)
    assert [notes["setup"], notes["call"], notes["teardown"]] == kit.reference(seed_of("test_one"), 3)


def test_a_fixture_that_seeds_keeps_its_meaning(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture(autouse=True)
    def seed():
        kit.seed_everything(3)

    def test_one():
        note("one", kit.draws())
    """)
    assert suite.notes("--rng-seed=0", randomly=True, passed=1) == {"one": kit.reference(3)[0]}


def test_fresh_entropy_of_numpy_repeats_in_a_seeded_test(suite: Suite) -> None:
    suite.write("""
    def test_one():
        note("one", np.random.default_rng().random())
    """)
    assert suite.notes("--rng-seed=0", passed=1) == suite.notes("--rng-seed=0", passed=1)


def test_flags_are_left_alone_by_a_seed_for_the_run(suite: Suite) -> None:
    suite.write("""
    def test_one():
        assert not torch.are_deterministic_algorithms_enabled()
    """)
    suite.notes("--rng-seed=0", passed=1)


def test_scopes_in_tests_nest(suite: Suite) -> None:
    suite.write("""
    @fixed_seed(1)
    def test_one():
        note("one", kit.draws())
        with deterministic(2):
            note("two", kit.draws())
    """)
    assert suite.notes("--rng-seed=0", passed=1) == {"one": kit.reference(1)[0], "two": kit.reference(2)[0]}


# Fixtures of a wider scope


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
@pytest.mark.parametrize("options", [("--rng-seed=0",), ("--rng-seed=0", "--rng-leaks=error")])
def test_a_wide_fixture_may_hold_a_scope(suite: Suite, scope: str, options: tuple[str, ...]) -> None:
    suite.write(f"""
    @pytest.fixture(scope={scope!r})
    def held():
        with deterministic(0, strict=True):
            yield kit.draws()
            note("end", kit.draws())

    class Test:
        def test_before(self):
            assert not torch.are_deterministic_algorithms_enabled()

        def test_one(self, held):
            note("held", held)
            note("one", kit.draws())
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert torch.are_deterministic_algorithms_enabled()

        def test_two(self):
            note("two", kit.draws())
            assert torch.are_deterministic_algorithms_enabled()
    """)
    notes = suite.notes("-W", "error", *options, passed=3)
    assert notes["held"] == kit.reference(0)[0]
    assert notes["one"] == kit.reference(seed_of("Test::test_one"))[0]
    assert notes["two"] == kit.reference(seed_of("Test::test_two"))[0]


def test_a_wide_fixture_asked_for_inside_a_test_s_own_scope_does_not_disturb_it(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture(scope="module")
    def held():
        with deterministic(0):
            yield kit.draws()

    def test_one(request):
        with deterministic(1):
            first = kit.draws()
            note("held", request.getfixturevalue("held"))
            note("draws", [first, kit.draws()])
        note("outside", kit.draws())
    """)
    notes = suite.notes("--rng-seed=0", "-W", "error", passed=1)
    assert notes["held"] == kit.reference(0)[0]
    assert notes["draws"] == kit.reference(1, 2)
    assert notes["outside"] == kit.reference(seed_of("test_one"))[0]


def test_a_wide_fixture_that_fails_leaves_the_tests_their_seeds(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture(scope="module")
    def broken():
        with deterministic(1):
            kit.draws()
            raise OSError

    @pytest.fixture(scope="module")
    def broken_at_the_end():
        yield
        kit.draws()
        raise OSError

    @pytest.fixture
    def own(broken_at_the_end):
        yield
        note("own", kit.draws())

    def test_broken(broken):
        pass

    def test_one(own):
        note("one", kit.draws())
    """)
    result = suite.run("--rng-seed=0")
    result.assert_outcomes(passed=1, errors=2)
    notes = dict(ast.literal_eval(line) for line in (suite.path / "notes.txt").read_text().splitlines())
    assert [notes["one"], notes["own"]] == kit.reference(seed_of("test_one"), 2)


def test_a_wide_async_fixture_and_its_tests_are_seeded(suite: Suite) -> None:
    suite.write("""
    import pytest_asyncio

    pytestmark = pytest.mark.asyncio(loop_scope="module")

    @pytest_asyncio.fixture(loop_scope="module", scope="module")
    async def wide():
        with deterministic(0):
            await asyncio.sleep(0)
            yield kit.draws()

    async def test_one(wide):
        await asyncio.sleep(0)
        note("wide", wide)
        note("one", kit.draws())

    async def test_two(wide):
        with deterministic(3):
            await asyncio.sleep(0)
            note("two", kit.draws())
    """)
    notes = suite.notes("--rng-seed=0", "-W", "error", passed=2)
    assert notes["wide"] == kit.reference(0)[0]
    assert notes["one"] == kit.reference(seed_of("test_one"))[0]
    assert notes["two"] == kit.reference(3)[0]


@pytest.mark.parametrize("tests", ["test_a or test_b", "test_b"])
def test_a_parametrised_wide_fixture_is_seeded_by_its_value(suite: Suite, tests: str) -> None:
    suite.write("""
    @pytest.fixture(scope="session")
    def data(request):
        return kit.draws()

    @pytest.mark.parametrize("data", [10, 20, (1, "a"), object], indirect=True)
    def test_a(data):
        pass

    @pytest.mark.parametrize("data", [(1, "a"), 20, 10], indirect=True, ids=str)
    def test_b(data, request):
        note(request.node.callspec.id, data)
    """)
    notes = suite.notes("--rng-seed=0", "-k", tests)
    for name, value in {"(1, 'a')": (1, "a"), "20": 20, "10": 10}.items():
        seed = fold_in(0, "fixture", "", "test_suite.py", "data", repr(value), "setup")
        assert notes[name] == kit.reference(seed)[0]


# The marker


def test_a_marked_test_starts_at_exactly_its_seed_and_its_fixtures_at_another(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture
    def data():
        yield kit.draws()
        note("end", kit.draws())

    @pytest.mark.fixed_seed(7)
    def test_one(data):
        note("data", data)
        note("one", [kit.draws(), torch.are_deterministic_algorithms_warn_only_enabled()
                     if hasattr(torch, "are_deterministic_algorithms_warn_only_enabled")
                     else torch.is_deterministic_algorithms_warn_only_enabled()])
    """)
    notes = suite.notes(passed=1)
    assert notes["one"] == [kit.reference(7)[0], True]
    assert [notes["data"], notes["end"]] == kit.reference(fold_in(7, "setup"), 2)


@pytest.mark.parametrize("options", [(), ("--rng-seed=5",)], ids=["alone", "with a seed for the run"])
@pytest.mark.parametrize("randomly", [False, True], ids=["", "with pytest-randomly"])
def test_the_closest_marker_counts(suite: Suite, options: tuple[str, ...], randomly: bool) -> None:
    suite.write("""
    pytestmark = pytest.mark.fixed_seed(1)

    def test_of_the_module():
        note("module", kit.draws())

    @pytest.mark.fixed_seed
    def test_bare():
        note("bare", kit.draws())

    @pytest.mark.fixed_seed(2)
    class TestClass:
        def test_of_the_class(self):
            note("class", kit.draws())

        @pytest.mark.fixed_seed(seed=3)
        def test_of_its_own(self):
            note("own", kit.draws())

    @pytest.mark.fixed_seed(4)
    class TestCase(unittest.TestCase):
        def test_case(self):
            note("case", kit.draws())
    """)
    notes = suite.notes(*options, randomly=randomly, passed=5)
    seeds = {"module": 1, "bare": 0, "class": 2, "own": 3, "case": 4}
    assert notes == {name: kit.reference(seed)[0] for name, seed in seeds.items()}


def test_the_marker_has_the_arguments_of_fixed_seed(suite: Suite) -> None:
    suite.write("""
    RNG = random.Random(1)
    BEFORE = RNG.getstate()

    @pytest.mark.fixed_seed(7, strict=True, also=[RNG], devices=[])
    def test_one():
        note("one", [kit.draws(), RNG.random()])
        assert not torch.is_deterministic_algorithms_warn_only_enabled()

    def test_two():
        assert RNG.getstate() == BEFORE
        assert not torch.are_deterministic_algorithms_enabled()
    """)
    import random

    notes = suite.notes(passed=2)
    assert notes["one"] == [kit.reference(7)[0], random.Random(fold_in(7, "also", 0)).random()]


@pytest.mark.parametrize("plugin", ["asyncio", "anyio"])
def test_async_tests_run_inside_the_scope(suite: Suite, plugin: str) -> None:
    suite.write(f"""
    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.mark.{plugin}
    @pytest.mark.fixed_seed(7)
    async def test_one():
        first = kit.draws()
        await asyncio.sleep(0)
        note("marked", [first, kit.draws()])

    @pytest.mark.{plugin}
    async def test_two():
        note("seeded", await asyncio.create_task(asyncio.to_thread(kit.draws)))
    """)
    notes = suite.notes("--rng-seed=0", "-W", "error", passed=2)
    assert notes == {"marked": kit.reference(7, 2), "seeded": kit.reference(seed_of("test_two"))[0]}


def test_a_marked_test_has_wide_fixtures_in_the_ambient_streams(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture(scope="module")
    def wide():
        assert not torch.are_deterministic_algorithms_enabled()
        with isolated():
            yield kit.draws()

    @pytest.mark.fixed_seed(7)
    def test_one(wide):
        note("wide", wide)
        note("one", kit.draws())
    """)
    expected = kit.continuation(1)[0]
    assert suite.notes("-W", "error", passed=1) == {"wide": expected, "one": kit.reference(7)[0]}


def test_every_example_of_a_hypothesis_test_starts_at_the_marker_s_seed(suite: Suite) -> None:
    suite.write("""
    from hypothesis import given, settings, strategies as st

    DRAWN = set()

    @pytest.mark.fixed_seed(7)
    @settings(max_examples=5, database=None)
    @given(st.integers())
    def test_one(x):
        DRAWN.add(kit.draws())
        assert torch.are_deterministic_algorithms_enabled()

    @settings(max_examples=5, database=None)
    @given(st.integers())
    def test_two(x):
        assert not torch.are_deterministic_algorithms_enabled()

    class TestCase(unittest.TestCase):
        @pytest.mark.fixed_seed(8)
        @settings(max_examples=5, database=None)
        @given(st.integers())
        def test_case(self, x):
            note("case", kit.draws())

    def test_end():
        note("drawn", sorted(DRAWN))
    """)
    notes = suite.notes(passed=4)
    assert notes == {"drawn": kit.reference(7), "case": kit.reference(8)[0]}


def test_what_hooks_draw_is_not_the_test_s(suite: Suite) -> None:
    (suite.path / "conftest.py").write_text("""
import random, pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    random.random()
    return (yield)
""")
    suite.write("""
    @pytest.mark.fixed_seed(7)
    def test_one():
        note("one", kit.draws())
    """)
    assert suite.notes("--rng-seed=0", passed=1) == {"one": kit.reference(7)[0]}


MARKER = "the marker is fixed_seed(seed=0, *, strict=False, also=(), devices=None)"


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("fixed_seed(sed=7)", f"fixed_seed() got an unexpected keyword argument 'sed'; {MARKER}"),
        ("fixed_seed(1, 2)", f"fixed_seed() takes from 0 to 1 positional arguments but 2 were given; {MARKER}"),
        ("fixed_seed(-1)", "a seed must be in [0, 2**64), got -1; take it modulo 2**64 or derive one: fold_in(0, -1)"),
        ("fixed_seed(True)", "a seed must be an int in [0, 2**64), got bool True"),
        ("fixed_seed('a')", "got str 'a'; derive one from the name: fold_in(0, 'a')"),
        ("fixed_seed(strict=1)", "strict= is True or False, got int 1"),
        ("fixed_seed(also=3)", "also[0] is int 3; also= takes random.Random"),
    ],
)
def test_a_wrong_marker_is_an_error_before_the_test_runs(suite: Suite, marker: str, told: str) -> None:
    suite.write(f"""
    @pytest.mark.{marker}
    class TestClass:
        def test_one(self):
            note("ran", True)

    def test_another():
        pass
    """)
    result = suite.run()
    result.assert_outcomes(passed=1, errors=1)
    shown = " ".join(result.outlines)
    assert "@pytest.mark.fixed_seed on test_suite.py::TestClass: " in shown
    assert told in shown
    assert "During handling" not in shown
    assert not (suite.path / "notes.txt").exists()


EMPTY = """
@pytest.mark.fixed_seed(7)
class {name}:
    def helper(self):
        pass

def test_one():
    note("ran", True)
"""


@pytest.mark.parametrize("name", ["TestEmpty", "Helper"])
@pytest.mark.parametrize("outer", ["", "TestOuter"])
def test_a_marker_on_a_class_without_tests_is_an_error_before_any_test_runs(
    suite: Suite, name: str, outer: str
) -> None:
    source = EMPTY.format(name=name)
    suite.write(f"class {outer}:" + textwrap.indent(source, "    ") if outer else source)
    result = suite.run()
    result.assert_outcomes(errors=1)
    shown = " ".join(result.outlines)
    assert f"@pytest.mark.fixed_seed on the class {name}, which has no tests; put it on a class with tests" in shown
    assert not (suite.path / "notes.txt").exists()


@pytest.mark.parametrize(
    "base",
    [
        "class Base:\n    def test_one(self):\n        note('one', kit.draws())",
        "class Base:\n    draws = staticmethod(kit.draws)",
        "class TestBase:\n    __test__ = False\n    def test_one(self):\n        note('one', kit.draws())",
        "class TestBase:\n    draws = staticmethod(kit.draws)",
    ],
)
def test_a_marked_base_class_lends_its_marker(suite: Suite, base: str) -> None:
    name = "TestBase" if "TestBase" in base else "Base"
    suite.write(f"""
@pytest.mark.fixed_seed(7)
{base}

class TestClass({name}):
    __test__ = True

    def test_one(self):
        note("one", kit.draws())
""")
    assert suite.notes(passed=1) == {"one": kit.reference(7)[0]}


def test_a_marked_base_class_in_a_file_of_its_own_says_so(suite: Suite) -> None:
    suite.write("@pytest.mark.fixed_seed(7)\nclass TestBase:\n    __test__ = False\n")
    assert suite.run().ret == pytest.ExitCode.NO_TESTS_COLLECTED


# What the options may be


@pytest.mark.parametrize("value", ["banana", "-1", str(2**64), "1.5", "", "1_0", " 3", "٣"])
def test_a_wrong_seed_is_a_usage_error_before_collection(suite: Suite, value: str) -> None:
    suite.write("raise SystemError")
    result = suite.run(f"--rng-seed={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*argument --rng-seed: expected a number in [[]0, 2[*][*]64), 'fresh' or 'off', got '{value}'"]
    )


def test_a_wrong_value_for_leaks_is_a_usage_error(suite: Suite) -> None:
    result = suite.run("--rng-leaks=loud")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*argument --rng-leaks: expected 'ignore', 'warn' or 'error', got 'loud'"])


@pytest.mark.parametrize(("name", "value"), [("rng_seed", str(2**64)), ("rng_seed", "x"), ("rng_leaks", "loud")])
def test_a_wrong_value_in_the_configuration_file_names_the_file(suite: Suite, name: str, value: str) -> None:
    suite.pytester.makeini(f"[pytest]\n{name} = {value}\n")
    result = suite.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {name} in {suite.path / 'tox.ini'}: expected *, got '{value}'"])


def test_the_configuration_file_gives_the_defaults(suite: Suite) -> None:
    suite.pytester.makeini("[pytest]\nrng_seed = 3\n")
    suite.write(TWO_TESTS)
    assert suite.notes(passed=2)["one"] == kit.reference(seed_of("test_one", 3))[0]
    assert suite.notes("--rng-seed=4", passed=2)["one"] == kit.reference(seed_of("test_one", 4))[0]
    assert suite.notes("--rng-seed=off", passed=2, moves=True)["one"] == kit.continuation(1)[0]


def test_the_header_shows_what_is_on(suite: Suite) -> None:
    suite.write(TWO_TESTS)
    result = suite.run("--rng-seed=3", "--rng-leaks=warn")
    result.stdout.fnmatch_lines(["scoped_rng: --rng-seed=3 --rng-leaks=warn"])


def test_a_wrong_value_that_overrides_the_configuration_is_told_as_well(suite: Suite) -> None:
    result = suite.run("-o", "rng_seed=x")
    result.stderr.fnmatch_lines(["ERROR: rng_seed in the configuration: expected *, got 'x'"])


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "with xdist"])
def test_a_fresh_seed_is_shown_and_shared_and_repeats_the_run(suite: Suite, workers: tuple[str, ...]) -> None:
    suite.write(TWO_TESTS)
    result = suite.run("--rng-seed=fresh", *workers)
    result.assert_outcomes(passed=2)
    fresh = (suite.path / "notes.txt").read_text()
    (shown,) = [line for line in result.outlines if line.startswith("scoped_rng: --rng-seed=")]
    suite.run(shown.removeprefix("scoped_rng: "))
    assert sorted((suite.path / "notes.txt").read_text().splitlines()) == sorted(fresh.splitlines())
    assert suite.notes("--rng-seed=fresh") != suite.notes("--rng-seed=fresh")


def test_without_the_plugin_its_options_are_unknown(suite: Suite) -> None:
    result = suite.run("-p", "no:scoped_rng", "--rng-seed=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --rng-seed=1*"])


def test_the_marker_is_listed(suite: Suite) -> None:
    suite.run("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.fixed_seed(seed=0, [*], strict=False, also=(), devices=None): run the test's call*"]
    )


# The line that repeats a test


FAILING = """
def test_one():
    print("some output")
    assert np.random.random_sample() < 0
"""


def last_section(result: pytest.RunResult) -> str:
    """Return the last line above the summary."""
    end = next(place for place, line in enumerate(result.outlines) if "short test summary info" in line)
    return result.outlines[end - 1]


@pytest.mark.parametrize("capture", ["all", "no", "stdout"])
def test_a_failing_test_s_report_ends_with_the_line_that_repeats_it(suite: Suite, capture: str) -> None:
    suite.write(FAILING)
    result = suite.run("--rng-seed=3", f"--show-capture={capture}")
    result.assert_outcomes(failed=1)
    line = "pytest --rng-seed=3 'test_suite.py::test_one'"
    assert line in result.outlines
    if capture != "stdout":  # whose captured output stands behind it
        assert last_section(result) == line


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "with xdist"])
def test_the_line_holds_for_a_fresh_seed(suite: Suite, workers: tuple[str, ...]) -> None:
    suite.write("""
    def test_one():
        raise AssertionError(str(kit.draws()))
    """)
    result = suite.run("--rng-seed=fresh", *workers)
    (error,) = [line for line in result.outlines if line.startswith("E  ")]
    _, option, name = last_section(result).split()
    again = suite.run(option, name.strip("'"))
    assert error in again.outlines


def test_the_line_is_for_the_directory_and_the_shell_that_pytest_was_started_in(suite: Suite) -> None:
    suite.write(
        """
    @pytest.mark.parametrize("x", ["it's"])
    def test_one(x):
        assert not x
    """,
        "below/test_suite.py",
    )
    suite.pytester.makeini("[pytest]\n")
    (suite.path / "beside").mkdir()
    import os

    os.chdir(suite.path / "beside")
    result = suite.run("--rng-seed=3", "../below")
    assert last_section(result) == """pytest --rng-seed=3 --rootdir='..' '../below/test_suite.py::test_one[it'"'"'s]'"""


@pytest.mark.parametrize("options", [(), ("--rng-seed=off",)])
def test_no_line_is_shown_without_a_seed(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write("@pytest.mark.fixed_seed(7)" + FAILING)
    suite.run(*options).stdout.no_fnmatch_line("*--rng-seed*")


def test_the_line_ends_every_report_of_setups_doctests_unittests_and_subtests(suite: Suite) -> None:
    suite.write('''
    @pytest.fixture
    def broken():
        raise OSError

    def test_one(broken):
        pass

    def function():
        """
        >>> random.random() < 0
        True
        """

    class TestCase(unittest.TestCase):
        def test_case(self):
            for i in range(2):
                with self.subTest(i=i):
                    self.assertLess(random.random(), 0)
    def test_sub(subtests):
        with subtests.test(i=0):
            print("some output")
            assert random.random() < 0
    ''')
    (suite.path / "test_text.txt").write_text(">>> 1\n2\n")
    result = suite.run("--rng-seed=3", "--doctest-modules")
    for name in ("test_one", "TestCase::test_case"):
        assert f"pytest --rng-seed=3 'test_suite.py::{name}'" in result.outlines
    assert "pytest --rng-seed=3 --doctest-modules 'test_suite.py::test_suite.function'" in result.outlines
    assert "pytest --rng-seed=3 --doctest-glob='test_text.txt' 'test_text.txt::test_text.txt'" in result.outlines
    command = "pytest --rng-seed=3 'test_suite.py::test_sub'"
    assert result.outlines.index("some output") < result.outlines.index(command)


WHERE = [("--rootdir=..",), ("-c", "other.ini"), ("--rootdir=..", "-c", "other.ini")]


@pytest.mark.parametrize("options", WHERE, ids=" ".join)
def test_the_line_repeats_a_test_wherever_the_root_is(suite: Suite, options: tuple[str, ...]) -> None:
    (suite.path / "other.ini").write_text("[pytest]\n")
    suite.write("""
    def test_one():
        raise AssertionError(str(kit.draws()))
    """)
    result = suite.run("--rng-seed=3", *options)
    (error,) = [line for line in result.outlines if line.startswith("E  ")]
    again = suite.run(*shlex.split(last_section(result))[1:])
    assert error in again.outlines


def test_the_line_is_in_the_junit_file(suite: Suite) -> None:
    suite.write(FAILING)
    suite.run("--rng-seed=3", "--junitxml=report.xml")
    shown = (suite.path / "report.xml").read_text()
    assert """<property name="repeat" value="pytest --rng-seed=3 'test_suite.py::test_one'" />""" in shown


# Leaks


LEAKING = """
@pytest.fixture
def setup():
    torch.rand(1)

@pytest.fixture
def teardown():
    yield
    random.random()

@pytest.fixture(scope="module")
def wide():
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = False

def test_clean():
    with deterministic(0):
        kit.draws()

def test_call():
    np.random.standard_normal()

def test_fixtures(setup, teardown):
    pass

def test_both(wide):
    random.random()

def setup_function(function):
    if function.__name__ == "test_hook":
        random.random()

def test_hook():
    pass

def test_twice(setup):
    torch.rand(1)

def test_put_back(monkeypatch):
    state = random.getstate()
    random.random()
    random.setstate(state)
    monkeypatch.setattr(torch.backends.mkldnn, "deterministic", True)
"""
BENCHMARK = "torch.backends.cudnn.benchmark from"
FOR_STREAMS = "raw in a scope (isolated() or deterministic(seed)) or from a generator of your own"
FOR_FLAGS = "et flags in a scope (deterministic(seed)), or put them back"
WITHOUT_SEED = f"D{FOR_STREAMS}, or isolate every test with --rng-seed"
LEAKS = {
    "test_call": f"the test moves numpy. {WITHOUT_SEED}",
    "test_fixtures": "the teardown of the fixture 'teardown' moves python; the fixture 'setup' moves torch. D",
    "test_both": "the test moves python; "
    f"the fixture 'wide' changes {BENCHMARK} False to True. {WITHOUT_SEED}; s{FOR_FLAGS}",
    "test_hook": f"setup_function() moves python. {WITHOUT_SEED}",
    "test_put_back": f"the teardown of the fixture 'wide' changes {BENCHMARK} True to False. S{FOR_FLAGS}",
    "test_twice": "the fixture 'setup' and the test move torch. D",
}


def test_leaks_are_warned_of_by_name_and_place(suite: Suite) -> None:
    suite.write(LEAKING)
    result = suite.run("--rng-leaks=warn", moves=True)
    result.assert_outcomes(passed=7, warnings=6)
    shown = " ".join(result.outlines)
    for name, told in LEAKS.items():
        assert f"LeakWarning: test_suite.py::{name} leaks: {told}" in shown
    assert "test_clean leaks" not in shown


def test_leaks_are_errors_where_asked(suite: Suite) -> None:
    suite.write(LEAKING)
    result = suite.run("--rng-leaks=error", moves=True)
    result.assert_outcomes(passed=7, errors=6)
    assert f"test_suite.py::test_call leaks: {LEAKS['test_call']}" in " ".join(result.outlines)


@pytest.mark.parametrize("options", [(), ("--rng-leaks=ignore",)])
def test_leaks_are_not_told_otherwise(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write(LEAKING)
    result = suite.run("-W", "error", *options, moves=True)
    result.assert_outcomes(passed=7)


def test_a_seed_for_the_run_leaves_only_flags_to_leak(suite: Suite) -> None:
    suite.write(LEAKING)
    result = suite.run("--rng-leaks=error", "--rng-seed=0")
    result.assert_outcomes(passed=7, errors=2)
    shown = " ".join(result.outlines)
    assert f"test_both leaks: the fixture 'wide' changes {BENCHMARK} False to True. S{FOR_FLAGS}" in shown
    assert "test_call leaks" not in shown


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_a_leak_does_not_hide_a_failure(suite: Suite, mode: str) -> None:
    suite.write("""
    @pytest.fixture
    def broken():
        yield
        raise OSError("teardown")

    def test_one(broken):
        torch.backends.cudnn.benchmark = True
        raise KeyError("call")

    def test_two():
        torch.backends.cudnn.benchmark = False
    """)
    result = suite.run(f"--rng-leaks={mode}", "--rng-seed=0", "-W", "error")
    result.assert_outcomes(passed=1, failed=1, errors=2)
    shown = " ".join(result.outlines)
    assert "KeyError: 'call'" in shown
    assert "OSError: teardown" in shown
    assert f"test_one leaks: the test changes {BENCHMARK} False to True" in shown


def test_a_test_that_imports_torch_is_not_blamed_for_what_was_not_there(suite: Suite) -> None:
    (suite.path / "test_plain.py").write_text("def test_one():\n    import torch\n    torch.manual_seed(0)\n")
    suite.run("--rng-leaks=error", process=True).assert_outcomes(passed=1)


# The test's own seed


def test_the_fixture_gives_the_seed_of_the_test(suite: Suite) -> None:
    suite.write("""
    def test_one(rng_seed):
        note("one", rng_seed)

    @pytest.mark.fixed_seed(7)
    def test_two(rng_seed):
        note("two", rng_seed)
    """)
    assert suite.notes(passed=2) == {"one": seed_of("test_one"), "two": 7}
    assert suite.notes("--rng-seed=3", passed=2) == {"one": seed_of("test_one", 3), "two": 7}
    assert suite.notes("--rng-seed=off", passed=2) == {"one": seed_of("test_one"), "two": 7}


def test_the_fixture_gives_the_seed_that_the_test_has_been_set_up_with(suite: Suite) -> None:
    suite.write("""
    @pytest.fixture(autouse=True)
    def late(request):
        request.applymarker(pytest.mark.fixed_seed(7))

    def test_one(rng_seed):
        note("one", [rng_seed, kit.draws()])
    """)
    seed = seed_of("test_one")
    assert suite.notes("--rng-seed=0", passed=1) == {"one": [seed, kit.reference(seed)[0]]}


# Beside other plugins


def test_a_rerun_repeats_the_seed(suite: Suite) -> None:
    suite.write("""
    RUNS = []

    @pytest.fixture
    def data():
        return kit.draws()

    def test_one(data):
        RUNS.append([data, kit.draws()])
        assert len(RUNS) == 3
        note("runs", RUNS)
    """)
    result = suite.run("--rng-seed=0", "--reruns=2")
    result.assert_outcomes(passed=1)
    (_, runs) = ast.literal_eval((suite.path / "notes.txt").read_text())
    assert runs == [kit.reference(seed_of("test_one"), 2)] * 3


@pytest.mark.parametrize("off", [(), ("-p", "no:randomly"), ("-p", "no:xdist"), ("-p", "no:rerunfailures")], ids=str)
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("-p", "no:asyncio", "-p", "no:anyio"),
        (
            "-p",
            "no:subtests",
        ),
    ],
    ids=str,
)
def test_it_works_with_and_without_other_plugins(suite: Suite, off: tuple[str, ...], more: tuple[str, ...]) -> None:
    suite.write("""
    @pytest.fixture(autouse=True)
    def data():
        note("data", kit.draws())
        yield
        note("end", kit.draws())

    def test_one():
        note("one", kit.draws())
    """)
    notes = suite.notes("--rng-seed=0", *off, *more, randomly="no:randomly" not in off, passed=1)
    assert [notes["data"], notes["one"], notes["end"]] == kit.reference(seed_of("test_one"), 3)


def test_pytest_randomly_seeds_the_tests_that_no_marker_does(suite: Suite) -> None:
    suite.write("""
    def test_one():
        note("one", random.random())

    @pytest.mark.fixed_seed(7)
    def test_two():
        note("two", kit.draws())
    """)
    for order in ("1", "2"):
        notes = suite.notes(f"--randomly-seed={order}", randomly=True, passed=2)
        assert notes["two"] == kit.reference(7)[0]
    assert (
        suite.notes("--randomly-seed=1", randomly=True)["one"] == suite.notes("--randomly-seed=1", randomly=True)["one"]
    )


# What ends a run


@pytest.mark.parametrize("where", ["setup", "call", "teardown", "wide setup", "wide teardown"])
@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "pytest.exit('enough')"])
@pytest.mark.parametrize("options", [(), ("--rng-seed=0",), ("--rng-seed=0", "--rng-leaks=warn")], ids=" ".join)
def test_an_interrupted_run_leaves_nothing_behind(suite: Suite, where: str, end: str, options: tuple[str, ...]) -> None:
    suite.write(f"""
    def end(where):
        if where == {where!r}:
            kit.draws()
            {end}

    @pytest.fixture(scope="module")
    def wide():
        end("wide setup")
        with deterministic(0):
            yield
        end("wide teardown")

    @pytest.fixture
    def narrow():
        end("setup")
        with deterministic(1):
            yield
        end("teardown")

    @pytest.mark.fixed_seed(7)
    def test_one(wide, narrow):
        end("call")
    """)
    before = kit.everything()
    saved = kit.ambient()
    result = suite.pytester.inline_run(
        "-p", "no:randomly", "-p", "no:cacheprovider", *ONLY_FUNCTION_LOOPS, *options, no_reraise_ctrlc=True
    )
    assert result.ret in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.NO_TESTS_COLLECTED, 2, 1, 0)
    if not options and where.startswith("wide"):
        kit.put_ambient(saved)  # where nothing holds the streams
    assert kit.everything() == before


def test_a_scope_that_a_test_leaves_open_is_told_of(suite: Suite) -> None:
    suite.write("""
    KEPT = []

    def forgetful():
        with deterministic(1):
            yield

    def test_one():
        KEPT.append(forgetful())
        next(KEPT[0])

    def test_two():
        KEPT.pop().close()
    """)
    result = suite.run("--rng-seed=0")
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(["*ScopeOrderWarning: isolated(*) was left before a scope that was entered after it*"])


def test_what_cannot_be_put_back_fails_the_test(suite: Suite) -> None:
    suite.write("""
    class Stuck:
        def seed(self, seed): pass
        def getstate(self): return 0
        def setstate(self, state): raise OSError("stuck")

    @pytest.mark.fixed_seed(7, also=Stuck())
    def test_one():
        pass
    """)
    result = suite.run()
    assert "RestoreError: could not be put back when the scope was left: also[0]: OSError: stuck" in " ".join(
        result.outlines
    )
