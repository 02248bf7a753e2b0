"""What a test leaves moved or changed, for the pytest plugin."""

from __future__ import annotations

import pickle
from collections.abc import Generator
from typing import Any

import pytest

from ..activation import ambient_value
from ..dynamo import imported
from ..errors import LeakWarning
from ..streams import loaded_streams

__all__ = ["Leaks"]


class Leaks:
    """Tell of a test that leaves a stream moved or a flag changed, and of the fixture or phase that did it."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._first: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._moved: dict[str, dict[str, None]] = {}  # by whom, each once

    def _look(self, where: str) -> None:
        now = _values()
        for name in _differing(self._last, now):
            self._moved.setdefault(name, {})[where] = None
        self._last = now

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        self._first = self._last = _values()
        self._moved = {}
        try:
            return (yield)
        finally:
            self._look("the setup")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        finally:
            self._look("the test")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        name = fixturedef.argname
        request.addfinalizer(lambda: self._look(f"the teardown of the fixture {name!r}"))
        self._look("the setup")
        try:
            return (yield)
        finally:
            self._look(f"the fixture {name!r}")
            request.addfinalizer(lambda: self._look("the teardown"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        failed = True
        try:
            result = yield
            failed = False
        finally:
            self._look("the teardown")
            told = self._told()
            message = (
                f"{item.nodeid} leaks: {told}. Draw in a scope (isolated() or deterministic(seed)) or from a generator "
                "of your own; --rng-seed isolates the streams of every test"
            )
            if told and (failed or self._mode == "warn"):
                item.warn(LeakWarning(message))
        if told and self._mode == "error":
            pytest.fail(message, pytrace=False)
        return result

    def _told(self) -> str:
        """Return what has moved, by who moved it."""
        told: dict[str, list[str]] = {}
        for name in _differing(self._first, self._last):
            was, now = self._first[name], self._last[name]
            change = "" if isinstance(now, bytes) else f" from {was!r} to {now!r}"
            told.setdefault(" and ".join(self._moved[name]), []).append(name + change)
        return "; ".join(f"{where} moves {', '.join(names)}" for where, names in told.items())


def _values() -> dict[str, Any]:
    """Return the streams, as bytes, and the flags of what is imported, as they are outside of all open scopes.

    What a scope holds, be it the test's own or that of a fixture which lives on, will be put back.
    """
    values: dict[str, Any] = {}
    for held in loaded_streams():
        # Neither the seeds that wait for a backend nor fresh entropy, which a test cannot move.
        if held.kind and held.name != "numpy.entropy":
            value = ambient_value(held)
            if hasattr(held, "as_dict"):
                value = held.as_dict(value)  # NumPy's bit generator itself would be pickled as it is now
            # A tensor's pickle has an address in it.
            values[held.name] = value.numpy().tobytes() if hasattr(value, "numpy") else pickle.dumps(value)
    if imported("torch") is not None:
        from ..flags import NAMES, WARN

        values.update(zip(NAMES, ambient_value(WARN), strict=True))
    return values


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what has another value; what was imported in between has no value before."""
    return [name for name in before if before[name] is not None and after.get(name, before[name]) != before[name]]
