"""Fixtures that hold a scope open round a test, async and sync, as pytest-asyncio, anyio and unittest run them.

Each test here runs a small suite in this process, and looks at the streams and flags before and after it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

# pytest forgets the modules that a suite run in this process is the first to import; these must not be among them.
from tests import kit

pytest_plugins = ["pytester"]

HEADER = """
import asyncio
import unittest
from contextlib import ExitStack

import pytest

from scoped_rng import deterministic, fixed_seed, isolated
from tests import kit

FIXTURES = kit.reference(0, 8)
OWN = kit.reference(1, 2)


async def two_draws(sleep):
    drawn = [kit.draws()]
    await sleep(0)
    return drawn + [kit.draws()]


async def use_scopes(drawn=0, sleep=asyncio.sleep, task=asyncio.create_task):
    '''Go on with the stream of a fixture that holds deterministic(0), and open scopes of its own round awaits.'''
    assert kit.draws() == FIXTURES[drawn]
    with deterministic(1, strict=True):
        assert await two_draws(sleep) == OWN
    with isolated(1):
        assert await two_draws(sleep) == OWN
    assert await fixed_seed(1)(two_draws)(sleep) == OWN
    assert await task(two_draws(sleep)) == FIXTURES[drawn + 1 : drawn + 3]
    assert kit.draws() == FIXTURES[drawn + 3]
"""
TRIO = ["trio"] if importlib.util.find_spec("trio") else []


@pytest.fixture
def run_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a suite, whose tests must all pass without a warning and without a trace."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run_suite(suite: str, *args: str, tests: int) -> None:
        pytester.makepyfile(HEADER + suite)
        before = kit.everything()
        result = pytester.runpytest_inprocess("-W", "error", "-p", "no:randomly", "-p", "no:cacheprovider", *args)
        assert kit.everything() == before
        result.assert_outcomes(passed=tests)

    return run_suite


def pytest_asyncio(mode: str) -> tuple[str, ...]:
    return "-p", "no:anyio", "-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"


@pytest.mark.parametrize("loop_scope", ["function", "module"])
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_an_async_fixture_holds_a_scope_round_async_tests(
    run_suite: Callable[..., None], mode: str, loop_scope: str
) -> None:
    suite = f"""
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope={loop_scope!r})


@pytest_asyncio.fixture(loop_scope={loop_scope!r})
async def seeded():
    with deterministic(0):
        await asyncio.sleep(0)
        yield
        await asyncio.sleep(0)


async def test_one(seeded):
    await use_scopes()


async def test_two(seeded):
    await use_scopes()
"""
    run_suite(suite, *pytest_asyncio(mode), tests=2)


@pytest.mark.parametrize("loop_scope", ["function", "module"])
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_a_sync_fixture_holds_a_scope_round_async_tests(
    run_suite: Callable[..., None], mode: str, loop_scope: str
) -> None:
    suite = f"""
pytestmark = pytest.mark.asyncio(loop_scope={loop_scope!r})


@pytest.fixture
def seeded():
    with deterministic(0):
        yield


async def test_one(seeded):
    await use_scopes()


async def test_two(seeded):
    await use_scopes()
"""
    run_suite(suite, *pytest_asyncio(mode), tests=2)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_fixture_of_a_whole_module_holds_one_scope_round_all_its_tests(
    run_suite: Callable[..., None], kind: str
) -> None:
    fixture = "pytest_asyncio.fixture(loop_scope='module', scope='module')\nasync "
    suite = f"""
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")


@{fixture if kind == "async" else "pytest.fixture(scope='module')"}
def seeded():
    with deterministic(0):
        yield


async def test_one(seeded):
    await use_scopes()


async def test_two(seeded):
    await use_scopes(drawn=4)
""".replace("async \ndef", "async def")
    run_suite(suite, *pytest_asyncio("strict"), tests=2)


def test_async_and_sync_fixtures_hold_scopes_in_each_other(run_suite: Callable[..., None]) -> None:
    suite = """
import pytest_asyncio

in_module = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def outermost():
    with isolated(7):
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def outer(outermost):
    with deterministic(8, strict=True):
        yield


@pytest_asyncio.fixture(loop_scope="module")
async def inner(outer):
    with isolated(9):
        yield


@pytest.fixture
def innermost(inner):
    with deterministic(0):
        yield


@in_module
async def test_one(innermost):
    await use_scopes()


def test_sync(innermost):
    assert kit.draws() == FIXTURES[0]
    with deterministic(1):
        assert kit.draws() == OWN[0]


@in_module
async def test_two(innermost):
    await use_scopes()
"""
    run_suite(suite, *pytest_asyncio("strict"), tests=3)


def test_decorated_async_fixtures_and_tests_do_not_hold_their_scope_while_the_other_runs(
    run_suite: Callable[..., None],
) -> None:
    suite = """
import pytest_asyncio

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
@deterministic(0)
async def drawn():
    await asyncio.sleep(0)
    yield kit.draws()
    assert kit.draws() == FIXTURES[1]


@fixed_seed(1)
async def test_one(drawn):
    assert drawn == FIXTURES[0]
    assert await two_draws(asyncio.sleep) == OWN


@fixed_seed(1)
class TestClass:
    async def test_two(self, drawn):
        assert drawn == FIXTURES[0]
        assert await two_draws(asyncio.sleep) == OWN
"""
    run_suite(suite, *pytest_asyncio("strict"), tests=2)


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("library", ["asyncio", *TRIO])
def test_a_fixture_holds_a_scope_round_a_test_that_anyio_runs(
    run_suite: Callable[..., None], library: str, kind: str
) -> None:
    suite = f"""
import anyio

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return {library!r}


@pytest.fixture
{"async " if kind == "async" else ""}def seeded():
    with deterministic(0):
        yield


async def in_a_task(coroutine):
    drawn = []

    async def draw():
        drawn.extend(await coroutine)

    async with anyio.create_task_group() as group:
        group.start_soon(draw)
    return drawn


async def test_one(seeded):
    await use_scopes(sleep=anyio.sleep, task=in_a_task)


async def test_two(seeded):
    await use_scopes(sleep=anyio.sleep, task=in_a_task)
"""
    run_suite(suite, "-p", "no:asyncio", tests=2)


def test_an_anyio_fixture_of_a_whole_module_holds_one_scope_round_all_its_tests(run_suite: Callable[..., None]) -> None:
    suite = """
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def seeded(anyio_backend):
    with deterministic(0):
        yield


async def test_one(seeded):
    await use_scopes()


async def test_two(seeded):
    await use_scopes(drawn=4)
"""
    run_suite(suite, "-p", "no:asyncio", tests=2)


@pytest.mark.parametrize("method", ["setUp", "asyncSetUp"])
def test_the_set_up_of_an_isolated_asyncio_test_case_holds_a_scope_round_its_tests(
    run_suite: Callable[..., None], method: str
) -> None:
    suite = f"""
class TestSeeded(unittest.IsolatedAsyncioTestCase):
    {"async " if method == "asyncSetUp" else ""}def {method}(self):
        stack = ExitStack()
        stack.enter_context(deterministic(0))
        self.addCleanup(stack.close)

    async def test_one(self):
        await use_scopes()

    async def test_two(self):
        await use_scopes()
"""
    run_suite(suite, "-p", "no:asyncio", "-p", "no:anyio", tests=2)
